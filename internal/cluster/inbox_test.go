package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// vantage is a hand-made vantage that reports to an inbox over the wire.
type vantage struct {
	*bench
	in          *Inbox
	name        string
	incarnation uint64
	seq         uint64
	table       *rota.Table
	held        map[rota.TargetID]*rota.Opinion
	abstain     string
}

func (b *bench) vantage(in *Inbox, name string) *vantage {
	v := &vantage{bench: b, in: in, name: name, incarnation: 100, table: b.State().Table(), held: map[rota.TargetID]*rota.Opinion{}}
	v.hold(rota.Up)
	return v
}

// hold makes it hold a status of these targets, by place; without places, of all.
func (v *vantage) hold(s rota.Status, targets ...int) {
	for i, id := range v.table.Targets() {
		hit := len(targets) == 0
		for _, t := range targets {
			hit = hit || t == i
		}
		if hit {
			o := &rota.Opinion{Target: id, Status: s, Class: rota.ClassOK}
			if s == rota.Down {
				o.Class, o.Reason, o.Since = rota.ClassTimeout, "no answer", time.Now()
			}
			v.held[id] = o
		}
	}
}

// restart makes it forget all it held.
func (v *vantage) restart() {
	v.incarnation++
	v.seq, v.held = 0, map[rota.TargetID]*rota.Opinion{}
}

func (v *vantage) pack() []byte {
	v.seq++
	r := &rota.Report{Vantage: v.name, Incarnation: v.incarnation, Seq: v.seq, Sent: time.Now(), Abstain: v.abstain}
	for _, id := range v.table.Targets() {
		if o := v.held[id]; o != nil {
			r.Opinions = append(r.Opinions, o)
		}
	}
	return v.table.Pack(r)
}

func (v *vantage) send() error { return v.in.Take(v.name, "192.0.2.7:1", 0, v.pack()) }

func (v *vantage) must() {
	v.Helper()
	if err := v.send(); err != nil {
		v.Fatal(err)
	}
}

// refused wants an error and that nothing of the report was heard.
func (v *vantage) refused(b []byte, want error) {
	v.Helper()
	before := v.Reports()
	if err := v.in.Take(v.name, "203.0.113.9:1", 0, b); !errors.Is(err, want) {
		v.Errorf("got %v, want %v", err, want)
	}
	after := v.Reports()
	if len(before) != len(after) {
		v.Fatalf("%d vantages heard, before %d", len(after), len(before))
	}
	for i := range after {
		if after[i] != before[i] {
			v.Errorf("heard all the same: %+v", after[i])
		}
	}
}

// three are three vantages that report all up.
func three(b *bench) (in *Inbox, vs [3]*vantage) {
	in = NewInbox(b.Node, nil)
	for i, name := range []string{"a", "b", "c"} {
		vs[i] = b.vantage(in, name)
		vs[i].must()
	}
	b.want(0, rota.Up)
	return in, vs
}

// steady sends from these vantages every ten seconds for a while.
func steady(d time.Duration, vs ...*vantage) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, v := range vs {
			v.must()
		}
		time.Sleep(reportEvery)
	}
	vs[0].settle()
}

func (b *bench) votes(target int) string {
	var out []string
	for _, v := range b.State().Votes(b.State().Targets()[target].ID, b.Reports(), time.Now()) {
		out = append(out, strings.Join(strings.Fields(fmt.Sprint(v.Vantage, " ", v.Status, " ", v.Reason)), " "))
	}
	return strings.Join(out, "; ")
}

// TestV1V2_PartialAndQuorum: one of three changes nothing and is seen; two of three change it at once.
func TestV1V2_PartialAndQuorum(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		_, v := three(b)
		before := b.State().Index()
		v[2].hold(rota.Down, 0)
		steady(2*time.Minute, v[:]...)
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("one of three became an event")
		}
		if d := b.State().Dissent(b.Reports(), time.Now()); d.Services[0].Split != 1 || d.Vantages[2].Against != 1 {
			b.Errorf("not shown as partial: %+v", d)
		}
		v[0].hold(rota.Down, 0)
		v[0].must()
		begun := time.Now()
		b.want(0, rota.Down)
		if took := time.Since(begun); took > time.Second {
			b.Errorf("took %v", took)
		}
		votes := b.State().Verdict(b.State().Targets()[0].ID).Votes
		if votes[0].Reason != "no answer" || votes[1].Status != rota.Up || votes[2].Class != rota.ClassTimeout {
			b.Errorf("evidence %+v", votes)
		}
	})
}

// TestV3_IsolatedVantageAgesOut: its voice counts to the last instant of max_age and no longer; the others decide by the majority of
// those that are configured.
func TestV3_IsolatedVantageAgesOut(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		_, v := three(b)
		v[2].hold(rota.Down, 0)
		v[2].must() // and is never heard again
		spoke := time.Now()
		for range 4 {
			time.Sleep(10 * time.Second)
			v[0].must()
			v[1].must()
		}
		time.Sleep(time.Until(spoke.Add(rota.DefaultMaxAge)))
		if got := b.votes(0); !strings.HasSuffix(got, "c down no answer") {
			b.Errorf("at max_age: %s", got)
		}
		time.Sleep(time.Nanosecond)
		if got := b.votes(0); !strings.HasSuffix(got, "c unknown report is older than 45s") {
			b.Errorf("after max_age: %s", got)
		}
		before := b.State().Index()
		b.want(0, rota.Up)
		v[0].hold(rota.Down, 0)
		v[0].must()
		b.want(0, rota.Up) // one of two that live, of three that are configured
		if b.State().Index() != before {
			b.Error("silence became an event")
		}
		v[1].hold(rota.Down, 0)
		v[1].must()
		b.want(0, rota.Down)
	})
}

// TestV3_JudgedTheInstantItAges: with a quorum of any and two who contradict each other, the verdict turns when one of them ages out:
// not before, and at once.
func TestV3_JudgedTheInstantItAges(t *testing.T) {
	s := spec(1, 3)
	s.Quorum.Need = "any"
	judged(t, s, func(b *bench) {
		in := NewInbox(b.Node, nil)
		x, y := b.vantage(in, "a"), b.vantage(in, "b")
		x.must()
		spoke := time.Now()
		b.want(0, rota.Up)
		y.hold(rota.Down, 0)
		time.Sleep(20 * time.Second)
		y.must()
		time.Sleep(time.Until(spoke.Add(rota.DefaultMaxAge)))
		synctest.Wait()
		if got := b.State().Verdict(b.State().Targets()[0].ID).Status; got != rota.Up {
			b.Errorf("at max_age: %v", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := b.State().Verdict(b.State().Targets()[0].ID).Status; got != rota.Down {
			b.Errorf("after max_age: %v", got)
		}
	})
}

// TestV4_SplitsKeepTheLast: 2/2 and 1/1/1, for as long as they last.
func TestV4_SplitsKeepTheLast(t *testing.T) {
	s := spec(1, 3)
	s.Vantages = append(s.Vantages, rota.Vantage{Name: "d", Site: "w"})
	judged(t, s, func(b *bench) {
		in, v := three(b)
		d := b.vantage(in, "d")
		v[0].hold(rota.Down, 0)
		v[1].hold(rota.Down, 0)
		before := b.State().Index()
		steady(5*time.Minute, v[0], v[1], v[2], d)
		b.want(0, rota.Up)
		v[1].hold(rota.Unknown, 0)
		steady(5*time.Minute, v[0], v[1], v[2], d)
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("a split became an event")
		}
	})
}

// TestV3V4_VantagesComeAndGo: a vantage that is added and silent flips nothing, one that is removed takes its voice with it at once, though
// nobody reports anything new.
func TestV3V4_VantagesComeAndGo(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		_, v := three(b)
		among := func(names ...string) {
			s := b.State().Spec()
			s.Vantages = nil
			for _, x := range names {
				s.Vantages = append(s.Vantages, rota.Vantage{Name: x, Site: x})
			}
			mustAppend(b, b.Node, rota.Event{Kind: rota.EventSpec, Spec: &s})
		}
		v[2].hold(rota.Down, 0)
		v[2].must()
		b.want(0, rota.Up)
		before := b.State().Index()
		among("a", "b", "c", "d")
		b.want(0, rota.Up)
		among("b", "c")
		b.want(0, rota.Up)
		if got := b.State().Index(); got != before+2 {
			b.Errorf("%d events for two changes of vantages", got-before)
		}
		among("c")
		b.want(0, rota.Down)
		among("a", "b", "c")
		b.want(0, rota.Up)
	})
}

// TestV6_AllLoseTheirUplink: all see everything fall within seconds, doubt themselves and say so: nothing changes, until they see again.
func TestV6_AllLoseTheirUplink(t *testing.T) {
	judged(t, spec(10, 3), func(b *bench) {
		_, v := three(b)
		before := b.State().Index()
		for _, x := range v {
			x.hold(rota.Down)
			x.abstain = rota.Doubtful
			x.must()
			time.Sleep(3 * time.Second)
		}
		steady(4*time.Minute, v[:]...)
		b.want(0, rota.Up)
		if got := b.votes(0); strings.Count(got, "abstains: most of what it watches fell at once") != 3 {
			b.Error(got)
		}
		for _, x := range v {
			x.hold(rota.Up)
			x.abstain = ""
			x.must()
		}
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("losing the uplink became an event")
		}
	})
}

// TestV8_RestartWithEmptyMemory: a vantage that begins anew holds nothing of anything, and that changes nothing; it is heard from its first
// report on, though that is numbered lower, and though the first ones are lost.
func TestV8_RestartWithEmptyMemory(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		v[2].hold(rota.Down, 0)
		steady(time.Minute, v[:]...)
		before := b.State().Index()
		v[0].restart()
		v[0].must()
		b.want(0, rota.Up)
		if got := b.votes(0); !strings.HasPrefix(got, "a unknown not probed yet; b up") {
			b.Error(got)
		}
		v[0].restart()
		for range 3 {
			v[0].pack() // lost
		}
		v[0].must()
		if b.State().Index() != before {
			b.Error("a restart became an event")
		}
		v[0].hold(rota.Down, 0)
		v[0].must()
		b.want(0, rota.Down)
		st, _ := in.Stats()
		if st[0].Incarnation != v[0].incarnation || !st[0].Twice.IsZero() {
			b.Errorf("a restart is taken for a double: %+v", st[0])
		}
	})
}

// TestV8_NewLeaderWithEmptyMemory has nobody's report: nothing is judged before a quorum was heard.
func TestV8_NewLeaderWithEmptyMemory(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		_, v := three(b)
		b.reports.store(nil) // as after a change of leader
		before := b.State().Index()
		v[0].hold(rota.Down)
		v[0].must()
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("one report decided")
		}
	})
}

// TestV9_CompromisedVantage says that all is down, then that all is up: nothing follows, and it is named.
func TestV9_CompromisedVantage(t *testing.T) {
	judged(t, spec(10, 3), func(b *bench) {
		in, v := three(b)
		before := b.State().Index()
		v[2].hold(rota.Down)
		steady(time.Minute, v[:]...)
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("one voice decided")
		}
		outliers := func() (out []string) {
			for _, x := range b.State().Dissent(b.Reports(), time.Now()).Vantages {
				if x.Outlier() {
					out = append(out, x.Vantage)
				}
			}
			return out
		}
		if got := fmt.Sprint(outliers()); got != "[c]" {
			b.Errorf("outliers %s", got)
		}
		for _, x := range v[:2] {
			x.hold(rota.Down, 0, 1, 2, 3, 4, 5, 6, 7)
		}
		v[2].hold(rota.Up)
		steady(time.Minute, v[:]...)
		b.want(0, rota.Down)
		if got := fmt.Sprint(outliers()); got != "[c]" {
			b.Errorf("outliers %s", got)
		}
		// It cannot speak as another, nor as one that is not there.
		stolen := v[2].pack()
		v[1].refused(stolen, ErrName)
		x := b.vantage(in, "nobody")
		x.refused(x.pack(), ErrVantage)
		if st, unknown := in.Stats(); unknown != 1 || len(st) != 3 {
			b.Errorf("%d unknown, %d known", unknown, len(st))
		}
	})
}

// TestV10_SamePlaceThrice has a quorum of sites: three vantages of one site are one voice.
func TestV10_SamePlaceThrice(t *testing.T) {
	s := spec(1, 3)
	s.Quorum.Of = "sites"
	for _, name := range []string{"a2", "a3"} {
		s.Vantages = append(s.Vantages, rota.Vantage{Name: name, Site: "x"})
	}
	judged(t, s, func(b *bench) {
		in, v := three(b)
		a2, a3 := b.vantage(in, "a2"), b.vantage(in, "a3")
		for _, x := range []*vantage{v[0], a2, a3} {
			x.hold(rota.Down, 0)
		}
		steady(time.Minute, v[0], a2, a3, v[1], v[2])
		b.want(0, rota.Up)
		v[1].hold(rota.Down, 0)
		v[1].must()
		b.want(0, rota.Down)
	})
}

// TestV15_SkewedVantage sends fields of a later version beside what is known; see also rota.TestV15_VersionSkew.
func TestV15_SkewedVantage(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		p := v[0].pack()
		p = append(p[:len(p)-2], 90, 3, 1, 2, 3, 127, 0) // one more field before the end
		if err := in.Take("a", "", 0, p); err != nil {
			b.Fatal(err)
		}
		p = v[0].pack()
		p[4]++
		v[0].refused(p, rota.ErrReport)
		b.want(0, rota.Up)
	})
}

// TestReplayIsRefused: the same report again, an older one, and one of the process before a restart.
func TestReplayIsRefused(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		a := v[0]
		older, newer := a.pack(), a.pack()
		a.hold(rota.Down, 0)
		if err := in.Take("a", "", 0, newer); err != nil {
			b.Fatal(err)
		}
		a.refused(newer, ErrReplay)
		a.refused(older, ErrReplay)
		late := a.pack()
		a.restart()
		a.must()
		time.Sleep(time.Second)
		a.refused(late, ErrReplay)
		st, _ := in.Stats()
		if st[0].Refused["replay"] != 3 || !st[0].Twice.IsZero() || st[0].Refusal == "" {
			b.Errorf("%+v", st[0])
		}
		// What is replayed does not make the vantage younger.
		time.Sleep(rota.DefaultMaxAge)
		a.refused(late, ErrTwice)
		if got := b.votes(0); !strings.HasPrefix(got, "a unknown report is older") {
			b.Error(got)
		}
	})
}

// TestPassedOn: a report ages from when it was made, not from when a node passed it on.
func TestPassedOn(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		a := v[0]
		at := func() time.Time { return b.Reports()[0].At }
		take := func(age time.Duration, p []byte, want error) {
			b.Helper()
			before := at()
			if err := in.Take("a", "b", age, p); !errors.Is(err, want) {
				b.Errorf("made %v ago: %v, want %v", age, err, want)
			}
			if want != nil && !at().Equal(before) {
				b.Errorf("made %v ago and refused, it is held", age)
			}
		}
		time.Sleep(time.Minute)
		take(20*time.Second, a.pack(), nil)
		if got := time.Since(at()); got != 20*time.Second {
			b.Errorf("held as of %v ago", got)
		}
		take(-1, a.pack(), rota.ErrReport)
		take(rota.DefaultMaxAge+1, a.pack(), ErrAged)
		take(rota.DefaultMaxAge, a.pack(), nil) // later by its number, though whoever passed it on held it longer
		if got := b.votes(0); !strings.HasPrefix(got, "a up") {
			b.Error(got)
		}
		time.Sleep(time.Nanosecond)
		if got := b.votes(0); !strings.HasPrefix(got, "a unknown report is older than 45s") {
			b.Error(got)
		}
		// Of two ways that a vantage uses at once, the slower one takes nothing back.
		slow := a.pack()
		a.must()
		take(0, slow, ErrReplay)
		take(5*time.Second, slow, ErrReplay)
		// What a process before it made arrives at last, and was not heard of before.
		a.incarnation, a.seq = 50, 0
		take(5*time.Second, a.pack(), ErrReplay)
		// A straggler of the process before is told from a twin by when it was made.
		old := a.pack()
		a.incarnation, a.seq = 200, 0
		time.Sleep(time.Second)
		a.must()
		a.incarnation, a.seq = 100, 90
		time.Sleep(2 * straggle)
		take(2*straggle, a.pack(), ErrReplay)
		take(2*straggle+10*time.Second, old, ErrReplay)
		take(0, a.pack(), ErrTwice)
		if st, _ := in.Stats(); st[0].Refused["aged"] != 1 || st[0].Refused["replay"] != 5 || st[0].Refused["twice"] != 1 || st[0].Refused["unreadable"] != 1 {
			b.Errorf("%v", st[0].Refused)
		}
	})
}

// TestTwoWithOneIdentity: the one that began last is heard; that the other lives is said, in the log and to itself.
func TestTwoWithOneIdentity(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		twin := b.vantage(in, "a")
		twin.incarnation = 555
		twin.must()
		v[0].refused(v[0].pack(), ErrReplay) // may have been under way
		for range 4 {
			time.Sleep(reportEvery)
			twin.must()
			err := v[0].send()
			if !errors.Is(err, ErrTwice) && !errors.Is(err, ErrReplay) {
				b.Fatal(err)
			}
		}
		st, _ := in.Stats()
		if got := time.Since(st[0].Twice); got != 0 {
			b.Errorf("last seen twice %v ago", got)
		}
		if !strings.Contains(b.said.String(), "another process began later to report as this vantage") {
			b.Errorf("nothing about it in the log:\n%s", b.said.String())
		}
		if n := strings.Count(b.said.String(), "report refused"); n > 9 {
			b.Errorf("%d lines", n)
		}
		time.Sleep(reportEvery)
		twin.must()
		st, _ = in.Stats()
		if got := time.Since(st[0].Twice); got != reportEvery {
			b.Errorf("last seen twice %v ago", got)
		}
	})
}

// TestTargetsNotGiven: a vantage may speak of the targets it was given and of no others; after a change it hears so and sends anew.
func TestTargetsNotGiven(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		all := b.State().Table()
		few := rota.NewTable(all.Targets()[:2])
		given := map[string]*rota.Table{"a": few, "b": all, "c": all}
		in := NewInbox(b.Node, func(v string) *rota.Table { return given[v] })
		a := b.vantage(in, "a")
		a.refused(a.pack(), rota.ErrTable)
		a.table = few
		a.must()
		if got := len(b.Reports()[0].Opinions); got != 2 {
			b.Errorf("%d opinions", got)
		}
		for _, name := range []string{"b", "c"} {
			b.vantage(in, name).must()
		}
		b.want(2, rota.Up)
		if got := b.votes(2); !strings.HasPrefix(got, "a unknown not probed yet") {
			b.Error(got)
		}
		mustAppend(b, b.Node, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 3)})
		given["b"] = b.State().Table()
		x := b.vantage(in, "b")
		x.incarnation, x.table = 101, all
		x.refused(x.pack(), rota.ErrTable)
		x.table = b.State().Table()
		x.must()
		delete(given, "a")
		a.refused(a.pack(), ErrVantage)
		if st, _ := in.Stats(); len(st) != 2 || st[0].Refused["table"] != 1 {
			b.Errorf("%+v", st)
		}
	})
}

// TestInboxBounds: bytes, rate and the number of vantages.
func TestInboxBounds(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		v[0].refused(make([]byte, rota.MaxPacked+1), rota.ErrReport)
		v[0].refused(nil, rota.ErrReport)
		taken := 0
		for range 1000 {
			if err := v[1].send(); err == nil {
				taken++
			} else if !errors.Is(err, ErrRate) {
				b.Fatal(err)
			}
		}
		if taken >= inboxBurst+1 || taken < inboxBurst/2 {
			b.Errorf("%d taken at once", taken)
		}
		v[2].must() // another one's flood does not touch it
		time.Sleep(10 * time.Second)
		for range 1000 {
			if v[1].send() == nil {
				taken++
			}
		}
		if taken > 2*inboxBurst {
			b.Errorf("%d taken", taken)
		}
		many := NewInbox(b.Node, func(string) *rota.Table { return b.State().Table() })
		full := 0
		for i := range maxVantages + 10 {
			x := b.vantage(many, fmt.Sprint("x", i))
			if err := x.send(); errors.Is(err, ErrVantage) {
				full++
			}
		}
		if st, unknown := many.Stats(); len(st) != maxVantages || full != 10 || unknown != 10 {
			b.Errorf("%d held, %d refused", len(st), full)
		}
		raw, err := json.Marshal(func() any { st, _ := in.Stats(); return st }())
		if err != nil || !strings.Contains(string(raw), `"refused":{"unreadable":2}`) {
			b.Errorf("%v: %s", err, raw)
		}
	})
}

// TestVantagesThatLeftMakeRoom: names that come and go do not fill what is heard.
func TestVantagesThatLeftMakeRoom(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		for i := range maxVantages {
			b.hear(&rota.Report{Vantage: fmt.Sprintf("gone%d", i), Seq: 1})
		}
		three(b)
		if got := len(b.Reports()); got != maxVantages {
			b.Errorf("%d heard", got)
		}
	})
}

// TestUnchangedAndOffset: what metrics tell.
func TestUnchangedAndOffset(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in, v := three(b)
		v[0].must()
		v[0].hold(rota.Down, 0)
		v[0].must()
		r := &rota.Report{Vantage: "a", Incarnation: 100, Seq: 99, Sent: time.Now().Add(-time.Hour)}
		if err := in.Take("a", "192.0.2.1:5", 0, v[0].table.Pack(r)); err != nil {
			b.Fatal(err)
		}
		st, _ := in.Stats()
		if s := st[0]; s.Taken != 4 || s.Unchanged != 1 || s.Offset != time.Hour || s.From != "192.0.2.1:5" || s.LastBytes == 0 || s.Bytes < 4*uint64(s.LastBytes)/2 {
			b.Errorf("%+v", s)
		}
		if got := b.votes(1); !strings.HasPrefix(got, "a unknown not probed yet") {
			b.Errorf("an hour behind: %s", got) // its clock decides nothing: the report counts
		}
	})
}
