package rota

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func testTable(n int) *Table {
	ids := make([]TargetID, n)
	for i := range ids {
		ids[i] = TargetID(fmt.Sprintf("http://10.%d.%d.%d:80/health", i>>16, i>>8&255, i&255))
	}
	return NewTable(ids)
}

// upReport is a report in which everything is up, as a prober makes it.
func upReport(t *Table) *Report {
	r := &Report{Vantage: "ams1", Incarnation: 7, Seq: 1, Sent: epoch}
	for _, id := range t.Targets() {
		r.Opinions = append(r.Opinions, &Opinion{Target: id, Status: Up, Class: ClassOK, Since: epoch.Add(-time.Hour), Reason: "status 200"})
	}
	return r
}

func mustUnpack(t testing.TB, u *Unpacker, table *Table, b []byte, at time.Time) *Report {
	t.Helper()
	r, err := u.Unpack(table, b, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	return r
}

// randomReport has opinions of every kind, also of targets outside the table.
func randomReport(rng *rand.Rand, table *Table, share float64) *Report {
	r := &Report{Vantage: "ams1", Incarnation: rng.Uint64(), Seq: 1 + rng.Uint64N(1<<40), Sent: epoch.Add(time.Duration(rng.Int64N(1e15))).Truncate(time.Millisecond)}
	if rng.Float64() < 0.2 {
		r.Abstain = "its uplink is cut"
	}
	for i, id := range table.Targets() {
		o := &Opinion{Target: id, Status: Up, Class: ClassOK}
		if rng.Float64() < share {
			o.Status = Status(rng.IntN(4))
			o.Class = classes[rng.IntN(len(classes))]
			o.Reason = fmt.Sprintf("reason %d", rng.IntN(20))
			if rng.IntN(4) > 0 {
				o.Since = epoch.Add(time.Duration(rng.Int64N(1e16)) - 5e15).Truncate(time.Millisecond).UTC()
			}
		}
		if o.Status == Up && rng.IntN(3) == 0 {
			o.Weight = uint8(1 + rng.IntN(100))
		}
		switch rng.IntN(50) {
		case 0:
			continue // no opinion yet
		case 1:
			r.Opinions = append(r.Opinions, &Opinion{Target: id[:len(id)-1], Status: Down, Reason: "not in the table"})
		}
		r.Opinions = append(r.Opinions, o)
		_ = i
	}
	slices.SortFunc(r.Opinions, func(a, b *Opinion) int { return strings.Compare(string(a.Target), string(b.Target)) })
	return r
}

// same compares what a report says with what arrived: everything, but for what is not on the wire of targets that are plainly up.
func same(t *testing.T, table *Table, sent, got *Report) {
	t.Helper()
	if got.Vantage != sent.Vantage || got.Incarnation != sent.Incarnation || got.Seq != sent.Seq || !got.Sent.Equal(sent.Sent) || got.Abstain != sent.Abstain {
		t.Fatalf("sent %+v\n got %+v", sent, got)
	}
	if len(got.Opinions) != len(table.Targets()) {
		t.Fatalf("%d opinions of %d targets", len(got.Opinions), len(table.Targets()))
	}
	for i, id := range table.Targets() {
		o, want := got.Opinions[i], sent.Opinion(id)
		switch {
		case o.Target != id:
			t.Fatalf("opinion %d is of %s", i, o.Target)
		case want == nil:
			if o.Status != Unknown || o.Reason != notProbed {
				t.Fatalf("of nothing came %+v", o)
			}
		case want.Status == Up && (want.Class == ClassOK || want.Class == ClassNone):
			if o.Status != Up || o.Class != ClassOK || o.Reason != "" || o.Weight != want.Weight {
				t.Fatalf("sent %+v, got %+v", want, o)
			}
		case *o != *want:
			t.Fatalf("sent %+v, got %+v", want, o)
		}
	}
}

func TestPackedReportsArriveWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 3, 4, 5, 31, 32, 33, 100, 1000} {
		table := testTable(n)
		var u Unpacker
		for range 50 {
			r := randomReport(rng, table, rng.Float64())
			b := table.Pack(r)
			same(t, table, r, mustUnpack(t, new(Unpacker), table, b, epoch))
			// Read after others, it says the same.
			same(t, table, r, mustUnpack(t, &u, table, b, epoch))
		}
	}
}

// TestEqualOpinionsKeepTheirPointers is what makes a report in which nothing moved cheap.
func TestEqualOpinionsKeepTheirPointers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	table := testTable(1000)
	var u Unpacker
	r := randomReport(rng, table, 0.3)
	last := mustUnpack(t, &u, table, table.Pack(r), epoch)
	for range 100 {
		next := *r
		next.Seq++
		next.Opinions = slices.Clone(r.Opinions)
		moved := map[TargetID]bool{}
		for range rng.IntN(5) {
			k := rng.IntN(len(next.Opinions))
			o := *next.Opinions[k]
			if o.Status == Up && rng.IntN(2) == 0 {
				o.Weight = 1 + o.Weight%100
			} else {
				o.Status, o.Class, o.Reason, o.Weight = Down, ClassTimeout, fmt.Sprint(rng.Int()), 0
			}
			next.Opinions[k] = &o
			moved[o.Target] = true
		}
		got := mustUnpack(t, &u, table, table.Pack(&next), epoch.Add(time.Minute))
		same(t, table, &next, got)
		for i, o := range got.Opinions {
			if (o != last.Opinions[i]) != moved[o.Target] {
				t.Fatalf("%+v after %+v, moved: %v", o, last.Opinions[i], moved[o.Target])
			}
		}
		if len(moved) == 0 && len(got.Opinions) > 0 && &got.Opinions[0] != &last.Opinions[0] {
			t.Fatal("another list although nothing moved")
		}
		r, last = &next, got
	}
}

// TestUpSince: since when a target is up is told by nobody, and known when it was seen to come up.
func TestUpSince(t *testing.T) {
	table := testTable(2)
	var u Unpacker
	say := func(at time.Duration, s Status) *Opinion {
		r := &Report{Vantage: "a", Seq: 1, Opinions: []*Opinion{{Target: table.ids[0], Status: s, Class: ClassOK, Since: epoch.Add(at - time.Second)}}}
		return mustUnpack(t, &u, table, table.Pack(r), epoch.Add(at)).Opinions[0]
	}
	if o := say(0, Up); !o.Since.IsZero() || o != &table.plain[0] {
		t.Errorf("up from the start: %+v", o)
	}
	if o := say(time.Minute, Down); !o.Since.Equal(epoch.Add(59 * time.Second)) {
		t.Errorf("down: %+v", o)
	}
	for _, later := range []time.Duration{2, 3} {
		if o := say(later*time.Minute, Up); !o.Since.Equal(epoch.Add(2 * time.Minute)) {
			t.Errorf("up again: %+v", o)
		}
	}
}

// TestTablesChange reads on with other targets: what stays keeps what is known of it.
func TestTablesChange(t *testing.T) {
	a := NewTable([]TargetID{"a", "b", "c"})
	b := NewTable([]TargetID{"d", "c", "a", "a"})
	if a.Fingerprint() == b.Fingerprint() || b.Fingerprint() != NewTable([]TargetID{"a", "c", "d"}).Fingerprint() {
		t.Fatal("fingerprints")
	}
	if NewTable([]TargetID{"ab", "c"}).Fingerprint() == NewTable([]TargetID{"a", "bc"}).Fingerprint() {
		t.Fatal("two tables with one fingerprint")
	}
	var u Unpacker
	down := &Opinion{Target: "c", Status: Down, Class: ClassRefused, Reason: "refused", Since: epoch}
	first := mustUnpack(t, &u, a, a.Pack(&Report{Vantage: "x", Seq: 1, Opinions: []*Opinion{down}}), epoch)
	packed := b.Pack(&Report{Vantage: "x", Seq: 2, Opinions: []*Opinion{down}})
	if _, err := u.Unpack(a, packed, epoch); !errors.Is(err, ErrTable) {
		t.Fatalf("a report of another table: %v", err)
	}
	next := mustUnpack(t, &u, b, packed, epoch)
	if next.Opinion("c") != first.Opinion("c") {
		t.Error("an opinion that did not change is another one")
	}
	if len(next.Opinions) != 3 || next.Opinion("b") != nil {
		t.Errorf("opinions %+v", next.Opinions)
	}
	var f Fingerprint
	text, _ := a.Fingerprint().MarshalText()
	if err := f.UnmarshalText(text); err != nil || f != a.Fingerprint() {
		t.Errorf("%s: %v", text, err)
	}
	for _, s := range []string{"", "00", string(text) + "00", strings.Repeat("x", 32)} {
		if f.UnmarshalText([]byte(s)) == nil {
			t.Errorf("fingerprint %q was read", s)
		}
	}
}

// assemble makes a packed report of these fields, each a tag and a payload.
func assemble(fields ...any) []byte {
	b := append([]byte(packMagic), packVersion)
	for i := 0; i < len(fields); i += 2 {
		var payload []byte
		switch p := fields[i+1].(type) {
		case []byte:
			payload = p
		case string:
			payload = []byte(p)
		case int:
			payload = binary.AppendUvarint(nil, uint64(p))
		}
		b = binary.AppendUvarint(append(b, byte(fields[i].(int))), uint64(len(payload)))
		b = append(b, payload...)
	}
	return append(b, fieldEnd, 0)
}

func uv(vs ...uint64) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// TestV15_VersionSkew reads what another version sends: fields, statuses and classes that are not known claim nothing.
func TestV15_VersionSkew(t *testing.T) {
	table := NewTable([]TargetID{"a", "b", "c", "d"})
	b := assemble(fieldVantage, "x", fieldSeq, 9, 9, "a field of tomorrow", fieldTable, table.mark[:],
		fieldStatus, []byte{3<<6 | 2<<4 | 2<<2 | 1}, fieldWords, "\x08quantum!\x03odd\x07timeout\x04slow",
		fieldDetails, uv(1, 2, 0, 4), fieldWeights, []byte{0, 101}, 99, bytes.Repeat([]byte{7}, 300))
	r := mustUnpack(t, new(Unpacker), table, b, epoch)
	var got []string
	for _, o := range r.Opinions {
		got = append(got, fmt.Sprintf("%s=%v%d/%s/%s", o.Target, o.Status, o.Weight, o.Class, o.Reason))
	}
	want := "[a=up0/ok/ b=down0//odd c=down0/timeout/slow d=draining0//too much is unusual at once to tell each reason]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	b[len(packMagic)] = packVersion + 1
	if _, err := ReadEnvelope(b); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), "upgrade the older side") {
		t.Errorf("a form of another version: %v", err)
	}
}

func TestHostileReports(t *testing.T) {
	table := NewTable([]TargetID{"a", "b", "c"})
	mark := table.mark[:]
	ok := []any{fieldVantage, "x", fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{0b010101}}
	with := func(more ...any) []byte { return assemble(append(slices.Clone(ok), more...)...) }
	open := func(b []byte) []byte { return b[:len(b)-2] } // without its end
	if _, err := new(Unpacker).Unpack(table, with(), epoch); err != nil {
		t.Fatal(err)
	}
	whole := table.Pack(randomReport(rand.New(rand.NewPCG(5, 6)), table, 1))
	for name, b := range map[string][]byte{
		"nothing":                         nil,
		"another thing":                   []byte("{\"vantage\": \"x\"}"),
		"more after the end":              append(with(), 127, 0),
		"oversize":                        with(99, make([]byte, MaxPacked)),
		"no fields":                       assemble(),
		"no vantage":                      assemble(ok[2:]...),
		"an empty vantage":                assemble(fieldVantage, "", fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{0}),
		"a huge name":                     assemble(fieldVantage, strings.Repeat("x", 4096), fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{0}),
		"no table":                        assemble(fieldVantage, "x", fieldSeq, 9, fieldStatus, []byte{0}),
		"half a fingerprint":              assemble(fieldVantage, "x", fieldSeq, 9, fieldTable, mark[:8], fieldStatus, []byte{0}),
		"a number of eleven bytes":        assemble(fieldVantage, "x", fieldSeq, bytes.Repeat([]byte{0xff}, 11), fieldTable, mark, fieldStatus, []byte{0}),
		"a field twice":                   with(fieldStatus, []byte{0}),
		"fields out of order":             assemble(fieldSeq, 9, fieldVantage, "x", fieldTable, mark, fieldStatus, []byte{0}),
		"a length beyond the end":         append(open(with()), fieldWords, 200, 1),
		"a length beyond all numbers":     append(open(with()), append([]byte{fieldWords}, bytes.Repeat([]byte{0xff}, 9)...)...),
		"too few statuses":                assemble(fieldVantage, "x", fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{}),
		"too many statuses":               assemble(fieldVantage, "x", fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{0, 0}),
		"a status beyond the table":       assemble(fieldVantage, "x", fieldSeq, 9, fieldTable, mark, fieldStatus, []byte{1 << 6}),
		"a detail beyond the table":       with(fieldDetails, uv(3, 0)),
		"a detail far beyond":             with(fieldDetails, uv(1<<63, 0)),
		"details that run on":             with(fieldDetails, uv(0, 0, 0, 0, 0, 0, 0, 0)),
		"a reason that is not told":       with(fieldDetails, uv(0, 2)),
		"a reason beyond all":             with(fieldDetails, uv(0, 1<<63)),
		"a time cut short":                with(fieldDetails, uv(0, 1)),
		"a detail cut short":              with(fieldDetails, uv(0)),
		"a word cut short":                with(fieldWords, "\x07timeout\x04slo", fieldDetails, uv(0, 2)),
		"a class without reason":          with(fieldWords, "\x07timeout", fieldDetails, uv(0, 2)),
		"more words than a report may":    with(fieldWords, bytes.Repeat([]byte{0, 0}, maxWords+1), fieldDetails, uv(0, 2)),
		"more text than a report may":     with(fieldWords, make([]byte, maxWordBytes+1)),
		"a statement of reason too large": with(fieldDetails, make([]byte, maxDetails+1)),
		"a weight beyond the table":       with(fieldWeights, []byte{3, 50}),
		"weights that run on":             with(fieldWeights, []byte{0, 50, 0, 50, 0, 50, 0, 50}),
		"a weight cut short":              with(fieldWeights, []byte{0}),
		"a weight far beyond":             with(fieldWeights, append(uv(1<<63), 50)),
		"more weights than a report may":  with(fieldWeights, make([]byte, maxWeights+1)),
	} {
		var u Unpacker
		before := mustUnpack(t, &u, table, with(), epoch)
		if _, err := u.Unpack(table, b, epoch); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
		if after := mustUnpack(t, &u, table, with(), epoch); &after.Opinions[0] != &before.Opinions[0] {
			t.Errorf("%s: left something behind", name)
		}
	}
	for i := range whole {
		if _, err := new(Unpacker).Unpack(table, whole[:i], epoch); err == nil {
			t.Errorf("cut after %d of %d bytes: no error", i, len(whole))
		}
	}
	// What is said in them is cleaned: no control characters, no times that cannot be written down.
	b := with(fieldWords, "\x00\x06\x1b[31m!", fieldDetails, append(uv(0, 3), binary.AppendVarint(nil, 1<<62)...))
	r := mustUnpack(t, new(Unpacker), table, b, epoch)
	if o := r.Opinions[0]; o.Reason != "?[31m!" || !o.Since.IsZero() {
		t.Errorf("got %+v", o)
	}
}

// TestReportsOfEverythingUnusual: whatever is wrong, the report stays within its bound and every status arrives.
func TestReportsOfEverythingUnusual(t *testing.T) {
	const n = 100_000
	table := testTable(n)
	r := &Report{Vantage: "a", Seq: 1}
	for i, id := range table.Targets() {
		r.Opinions = append(r.Opinions, &Opinion{
			Target: id, Status: Down, Class: ClassTimeout, Since: epoch.Add(time.Duration(i*7919%n) * time.Second),
			Reason: fmt.Sprintf("%d %s", i, strings.Repeat("x", MaxReason)),
		})
	}
	for i := range table.Targets() { // and those that are up ask for weights
		if i%2 == 1 {
			r.Opinions[i] = &Opinion{Target: r.Opinions[i].Target, Status: Up, Class: ClassStatus, Reason: r.Opinions[i].Reason, Since: epoch, Weight: uint8(1 + i%100)}
		}
	}
	b := table.Pack(r)
	if len(b) > MaxPacked {
		t.Fatalf("%d bytes", len(b))
	}
	t.Logf("%d bytes", len(b))
	for i, o := range mustUnpack(t, new(Unpacker), table, b, epoch).Opinions {
		want := r.Opinions[i]
		if o.Status != want.Status || o.Weight != want.Weight || o.Status == Down && (o.Since.IsZero() || o.Class != ClassTimeout && o.Reason != notTold) {
			t.Fatalf("target %d: %+v, was %+v", i, o, want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	table := testTable(9)
	rng := rand.New(rand.NewPCG(7, 8))
	for i := range 8 {
		f.Add(table.Pack(randomReport(rng, table, float64(i)/8)))
	}
	f.Add(assemble(fieldVantage, "x", fieldSeq, 9, fieldTable, table.mark[:], fieldStatus, []byte{0x57, 1, 1}, fieldDetails, uv(1, 0), fieldWeights, []byte{1, 50, 0, 255}))
	f.Add(assemble(fieldVantage, "x", fieldSeq, 9, 9, "?", fieldTable, table.mark[:], fieldStatus, []byte{1, 2, 3}, fieldDetails, uv(1, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var u Unpacker
		if _, err := u.Unpack(table, table.Pack(upReport(table)), epoch); err != nil {
			t.Fatal(err)
		}
		r, err := u.Unpack(table, b, epoch.Add(time.Minute))
		if err != nil {
			if !errors.Is(err, ErrReport) && !errors.Is(err, ErrTable) {
				t.Fatal(err)
			}
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		fresh, err := new(Unpacker).Unpack(table, b, epoch.Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range r.Opinions {
			if p := fresh.Opinions[i]; o.Status != p.Status || o.Class != p.Class || o.Reason != p.Reason || o.Weight != p.Weight || o.Weight > 100 || o.Weight != 0 && o.Status != Up || len(o.Reason) > MaxReason {
				t.Fatalf("read after another: %+v\nread alone: %+v", o, p)
			}
		}
		// What was read can be sent on, and says the same again.
		again, err := new(Unpacker).Unpack(table, table.Pack(r), epoch)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range r.Opinions {
			if again.Opinions[i].Status != o.Status || again.Opinions[i].Weight != o.Weight {
				t.Fatalf("sent on: %+v, was %+v", again.Opinions[i], o)
			}
		}
	})
}

func TestRoundWeight(t *testing.T) {
	last := uint8(0)
	var got []uint8
	for _, w := range []uint8{50, 52, 54, 55, 53, 51, 50, 1, 2, 4, 6, 99, 97, 96, 95, 200, 0, 3} {
		last = RoundWeight(last, w)
		got = append(got, last)
	}
	if want := []uint8{50, 50, 50, 55, 55, 55, 50, 5, 5, 5, 5, 100, 100, 100, 95, 100, 0, 5}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
