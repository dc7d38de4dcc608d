package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// firstBatch takes the zone example.test and makes the changes.
func firstBatch(changes ...rota.Change) Batch {
	return Batch{Zone: "example.test.", Fence: rota.Change{
		Old: rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}, New: Fence{Owner: "test", Epoch: 1, By: "00"}.RRset("example.test."),
	}, Changes: changes}
}

// address changes the A records of a name.
func address(name rota.Name, ttl uint32, old, to []string) rota.Change {
	return rota.Change{
		Old: rota.RRset{Name: name, Type: rota.TypeA, TTL: ttl, Data: old}, New: rota.RRset{Name: name, Type: rota.TypeA, TTL: ttl, Data: to},
	}
}

const fenceLine = "_rota.example.test.\t60\tIN\tTXT\t\"owner=test epoch=1 seq=0 by=00\"\n"

// What rota does not change stays byte for byte, in whatever way it was written.
func TestZoneFileEdit(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	const soa, raised = "@ 300 IN SOA ns1 root 7 3600 600 86400 30\n", "@ 300 IN SOA ns1 root 8 3600 600 86400 30\n"
	for _, c := range []struct {
		name, text, want string // want "": refused
		changes          []rota.Change
	}{
		{
			"adds a block at the end", "; a comment (with a parenthesis\n" + soa + "@ 300 NS ns1\n\n\tA 192.0.2.53 ; no line end",
			"; a comment (with a parenthesis\n" + raised + "@ 300 NS ns1\n\n\tA 192.0.2.53 ; no line end\n" + zoneBegin + "\n" + fenceLine + "www.example.test.\t30\tIN\tA\t192.0.2.1\n" + zoneEnd + "\n",
			[]rota.Change{address("www.example.test.", 30, nil, []string{"192.0.2.1"})},
		},
		{
			"goes on in the block", soa + zoneBegin + "\nwww.example.test.\t30\tIN\tA\t192.0.2.1\nwww.example.test.\t30\tIN\tA\t192.0.2.2\n" + zoneEnd + "\nlast 5 A 192.0.2.9\n",
			raised + zoneBegin + "\nwww.example.test.\t30\tIN\tA\t192.0.2.1\n" + fenceLine + "www.example.test.\t30\tIN\tA\t192.0.2.3\n" + zoneEnd + "\nlast 5 A 192.0.2.9\n",
			[]rota.Change{address("www.example.test.", 30, []string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1", "192.0.2.3"})},
		},
		{
			"takes a line that was there, and lends its owner to the next", soa + "www 30 A 192.0.2.1\n  ; still www\n    300 TXT \"mine\"\n\t300 MX 5 x\n",
			raised + "  ; still www\nwww.example.test.    300 TXT \"mine\"\n\t300 MX 5 x\n" + zoneBegin + "\n" + fenceLine + "www.example.test.\t30\tIN\tA\t192.0.2.2\n" + zoneEnd + "\n",
			[]rota.Change{address("www.example.test.", 30, []string{"192.0.2.1"}, []string{"192.0.2.2"})},
		},
		{
			"keeps a line that stays", soa + "WWW 30 A 192.0.2.1 ; by hand\nwww 30 IN A 192.0.2.2\n",
			raised + "WWW 30 A 192.0.2.1 ; by hand\n" + zoneBegin + "\n" + fenceLine + zoneEnd + "\n",
			[]rota.Change{address("www.example.test.", 30, []string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1"})},
		},
		{
			"other origins, strings and parentheses", "$TTL 1h\n" + soa + "$ORIGIN sub.example.test.\nt TXT \"a;b ( \\\" c\" (\n \"two\" ; x\n )\na\tA 192.0.2.7\n$GENERATE 1-3/2 g$ A 192.0.2.$\n",
			"$TTL 1h\n" + raised + "$ORIGIN sub.example.test.\nt TXT \"a;b ( \\\" c\" (\n \"two\" ; x\n )\n$GENERATE 1-3/2 g$ A 192.0.2.$\n" + zoneBegin + "\n" + fenceLine + zoneEnd + "\n",
			[]rota.Change{{
				Old: rota.RRset{Name: "a.sub.example.test.", Type: rota.TypeA, TTL: 3600, Data: []string{"192.0.2.7"}},
				New: rota.RRset{Name: "a.sub.example.test.", Type: rota.TypeA},
			}},
		},
		{"a record of $GENERATE", soa + "$GENERATE 1-3 g$ 5 A 192.0.2.$\n", "", []rota.Change{address("g2.example.test.", 5, []string{"192.0.2.2"}, nil)}},
		{"an end without a beginning", soa + zoneEnd + "\n", raised + zoneEnd + "\n" + zoneBegin + "\n" + fenceLine + zoneEnd + "\n", nil},
	} {
		b := firstBatch(c.changes...)
		z, err := parseZone([]byte(c.text), "example.test.")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		held, err := z.entries()
		if err != nil || stands(b, held) != nil {
			t.Errorf("%s: %v, %v", c.name, err, stands(b, held))
		}
		got, err := z.edit(b, at)
		if (err == nil) != (c.want != "") {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
		if err != nil {
			continue
		}
		again, err := parseZone([]byte(got), "example.test.")
		if err != nil || !z.same(again, b) {
			t.Errorf("%s: says something else: %v", c.name, err)
		}
	}
}

func TestZoneFileRefuses(t *testing.T) {
	const soa = "example.test. 300 IN SOA ns1.example.test. root.example.test. 7 3600 600 86400 30\n"
	for name, c := range map[string]struct {
		text   string
		origin rota.Name
		want   string
	}{
		"empty":              {"", "example.test.", "no SOA"},
		"junk":               {"\x00\x01(((", "example.test.", "zone file"},
		"HTML":               {"<html><body>404</body></html>\n", "example.test.", "zone file"},
		"cut in an SOA":      {"@ SOA ns1 root ( 1 2 3\n", "example.test.", "zone file"},
		"relative names":     {"@ 300 IN SOA ns1 root 7 3600 600 86400 30\n", "", "name the zone"},
		"another zone":       {soa, "other.test.", "not of other.test"},
		"another file in it": {soa + "$INCLUDE /etc/passwd\n", "", "zone file"},
	} {
		if _, err := parseZone([]byte(c.text), c.origin); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, o := range []ZoneFileOptions{{Path: "zone"}, {Path: "/z", Reload: []string{"nsd-control"}, Run: commands}, {Path: "/z", Reload: []string{"/bin/true"}}} {
		if _, err := NewZoneFile(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func TestNextSerial(t *testing.T) {
	now := time.Date(2026, 11, 21, 23, 59, 0, 0, time.FixedZone("", -3600)) // the 22nd in UTC
	for _, c := range []struct{ old, want uint32 }{
		{7, 8},
		{0, 1},
		{1<<32 - 1, 0},
		{2026010100, 2026112200},
		{2026112200, 2026112201},
		{2026112299, 2026112300},
		{2026112300, 2026112301},
		{1795000000, uint32(now.Unix())},
		{uint32(now.Unix()), uint32(now.Unix()) + 1},
		{3000000000, 3000000001},
	} {
		if got := nextSerial(c.old, now); got != c.want {
			t.Errorf("after %d comes %d, want %d", c.old, got, c.want)
		}
	}
}

// FuzzZoneFile: whatever stands in a file, an edit changes what it should and nothing else, or is refused.
func FuzzZoneFile(f *testing.F) {
	const soa = "@ 300 IN SOA ns1 root 7 3600 600 86400 30\n"
	for _, s := range []string{
		zoneHead, soa + "www 30 A 192.0.2.1\n\tTXT x\n", soa + "$GENERATE 1-3 g$ A 192.0.2.$\n", soa + "a TXT ( \"x\n\" )\n", soa + zoneBegin + "\n" + zoneBegin + "\n" + zoneEnd,
		soa + "w A 192.0.2.1;\nw\\046w A 192.0.2.1\r\n", "$TTL 5\n@ SOA a b (1 ; c\n2 3 4 5)\n", soa + "x A 192.0.2.1\n$ORIGIN y.\n A 192.0.2.2\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		z, err := parseZone([]byte(text), "example.test.")
		if err != nil {
			return
		}
		whole := ""
		for _, l := range z.lines {
			whole += l.text
		}
		if whole != text {
			t.Fatalf("the lines are not the file: %q", whole)
		}
		held, err := z.entries()
		if err != nil {
			return
		}
		r := reading("example.test.", []rota.Key{{Name: "www.example.test.", Type: rota.TypeA}, FenceKey("example.test.")}, held)
		old := find(r.Sets, rota.Key{Name: "www.example.test.", Type: rota.TypeA})
		b := firstBatch(rota.Change{Old: old, New: rota.RRset{Name: old.Name, Type: old.Type, TTL: 30, Data: []string{"192.0.2.1", "192.0.2.9"}}})
		next, err := z.edit(b, time.Unix(1795000000, 0))
		if err != nil {
			return
		}
		again, err := parseZone([]byte(next), "example.test.")
		if err != nil || !z.same(again, b) {
			return // which commit refuses
		}
		now, err := again.entries()
		if err != nil {
			t.Fatal(err)
		}
		got := reading("example.test.", []rota.Key{old.Key()}, now)
		if s := find(got.Sets, old.Key()); !slices.Equal(s.Data, b.Changes[0].New.Data) || s.TTL != 30 {
			t.Fatalf("the zone holds %v after\n%s", s, next)
		}
	})
}

// zoneFileAt writes a zone and returns it with a backend whose reloads are answered by reload.
func zoneFileAt(t testing.TB, reload func() (Output, error)) (*ZoneFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zone")
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte(zoneHead), 0o640), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	z, err := NewZoneFile(ZoneFileOptions{Path: path, Reload: []string{"/bin/reload", "zone"}, Run: func(_ context.Context, c Command) (Output, error) {
		if fmt.Sprint(c.Argv) != "[/bin/reload zone]" || c.Timeout != commandTimeout {
			t.Errorf("runs %+v", c)
		}
		return reload()
	}})
	if err != nil {
		t.Fatal(err)
	}
	return z, path
}

// A reload that fails is a reason, is tried again, by another process too, and nothing counts as published before it succeeds.
func TestZoneFileReload(t *testing.T) {
	var fails atomic.Bool
	var calls atomic.Int32
	reload := func() (Output, error) {
		calls.Add(1)
		if fails.Load() {
			return Output{Started: true, Code: 1, Stderr: []byte("error: could not reach the server\n")}, nil
		}
		return Output{Started: true}, nil
	}
	z, path := zoneFileAt(t, reload)
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, quick(w, z), 1)
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) && len(w.recorded()) == 1 })
	if n := calls.Load(); n != 2 { // the fence is taken, the records are written
		t.Errorf("%d reloads", n)
	}
	fails.Store(true)
	w.down("192.0.2.2")
	eventually(t, "the reason", func() bool {
		s := p.Status().Zones[0]
		return s.Failures >= 2 && s.Reasons[0].Code == CodeScript && strings.Contains(s.Reasons[0].Text, "could not reach the server")
	})
	if got := w.recorded(); len(got) != 1 {
		t.Errorf("%d events before the server was told", len(got))
	}
	p.stop()
	told := calls.Load()
	again, err := NewZoneFile(ZoneFileOptions{Path: path, Reload: []string{"/bin/reload"}, Run: func(context.Context, Command) (Output, error) { return reload() }})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Read(t.Context(), "example.test.", []rota.Key{FenceKey("example.test.")}); err != nil || len(got.Sets) != 1 || calls.Load() != told {
		t.Errorf("who only reads: %v, %v, %d reloads", got, err, calls.Load()-told)
	}
	q := run(t, quick(w, again), 2)
	eventually(t, "the reason of the next leader", func() bool { return reasonCode(q.Publisher) == CodeScript })
	fails.Store(false)
	eventually(t, "settled", func() bool { return settled(q.Publisher, w.State().At()) && reasonCode(q.Publisher) == "" })
}

// The file keeps its place, its mode and its owner; what cannot be done is a reason and leaves it as it was.
func TestZoneFileOnDisk(t *testing.T) {
	z, path := zoneFileAt(t, func() (Output, error) { return Output{Started: true}, nil })
	real := filepath.Join(t.TempDir(), "real")
	if err := errors.Join(os.Rename(path, real), os.Symlink(real, path)); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if os.Geteuid() == 0 {
		if err := os.Chown(real, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := z.Write(t.Context(), firstBatch(address("www.example.test.", 30, nil, []string{"192.0.2.1"}))); err != nil {
		t.Fatal(err)
	}
	link, err := os.Readlink(path)
	info, serr := os.Stat(real)
	if err != nil || serr != nil || link != real || info.Mode().Perm() != 0o640 {
		t.Errorf("link to %q, %v %v, %v", link, info.Mode(), err, serr)
	}
	if sys := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && (sys.Uid != nobody || sys.Gid != nobody) {
		t.Errorf("the owner is now %d:%d", sys.Uid, sys.Gid)
	}
	text, err := os.ReadFile(real)
	today := time.Now().UTC().Format("20060102")
	want := strings.Replace(zoneHead, "2026010100", today+"00", 1) + zoneBegin + "\n" + fenceLine + "www.example.test.\t30\tIN\tA\t192.0.2.1\n" + zoneEnd + "\n"
	if diff := cmp.Diff(want, string(text)); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	left, err := os.ReadDir(filepath.Dir(real))
	if err != nil || len(left) != 2 { // the file and its lock
		t.Errorf("left behind: %v, %v", left, err)
	}

	// Another process has the lock.
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(real), ".real.rota-lock"), os.O_RDWR, 0) // beside the file that the link leads to
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	next := Batch{Zone: "example.test.", Fence: rota.Change{
		Old: Fence{Owner: "test", Epoch: 1, By: "00"}.RRset("example.test."), New: Fence{Owner: "test", Epoch: 1, Seq: 1, By: "00"}.RRset("example.test."),
	}}
	if _, err := z.Write(ctx, next); err == nil || ReasonOf(err).InDoubt || !strings.Contains(err.Error(), "lock") {
		t.Errorf("beside another writer: %v", err)
	}
	lock.Close()

	if err := os.WriteFile(real, []byte("<html>\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Read(t.Context(), "example.test.", nil); ReasonOf(err).Code != CodeMalformed {
		t.Errorf("a file that is no zone: %v", err)
	}
	os.Remove(real)
	if _, err := z.Write(t.Context(), next); ReasonOf(err).Code != CodeNoZone || ReasonOf(err).InDoubt {
		t.Errorf("a file that is gone: %v", err)
	}
	if _, err := os.Stat(real); err == nil {
		t.Error("the zone was made anew")
	}
}

// What a write is planned on is compared again while the lock is held, and once more in the last moment; where it would change what others
// wrote it does not happen.
func TestZoneFileCompares(t *testing.T) {
	z, path := zoneFileAt(t, func() (Output, error) { return Output{Started: true}, nil })
	b := firstBatch(address("www.example.test.", 30, nil, []string{"192.0.2.1"}))
	held, err := (*zoneFileDriver)(z).list(t.Context(), b.Zone, nil)
	if err != nil || stands(b, held) != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	put := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o640), os.Chtimes(path, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(path); err != nil || string(text) != want {
			t.Errorf("the file is now %q, %v", text, err)
		}
	}
	taken := zoneHead + Fence{Owner: "test", Epoch: 2, By: "01"}.RRset(b.Zone).Name.String() + ` 60 IN TXT "owner=test epoch=2 seq=0 by=01"` + "\n"
	put(taken) // by another leader, since it was read
	if err := (*zoneFileDriver)(z).commit(t.Context(), b, held); !errors.Is(err, ErrMoved) {
		t.Errorf("under the lock: %v", err)
	}
	holds(taken)
	if err := z.replace([]byte(zoneHead), "nothing"); !errors.Is(err, ErrMoved) {
		t.Errorf("in the last moment: %v", err)
	}
	holds(taken)

	const lent = `example.test. 300 IN SOA ns1.example.test. root.example.test. 7 3600 600 86400 30
www.example.test. 30 IN A 192.0.2.1
last.example.test. IN A 192.0.2.9 ; whose TTL is that of the record before
`
	put(lent)
	gone := firstBatch(address("www.example.test.", 30, []string{"192.0.2.1"}, nil))
	if _, err := z.Write(t.Context(), gone); ReasonOf(err).Code != CodeMalformed || ReasonOf(err).InDoubt {
		t.Errorf("a change that would change another record: %v", err)
	}
	holds(lent)
}

// A file that changed a moment ago may not be whole yet: whoever writes it in its place goes on with what was replaced meanwhile.
func TestZoneFileStill(t *testing.T) {
	z, path := zoneFileAt(t, func() (Output, error) { return Output{Started: true}, nil })
	b := firstBatch(address("www.example.test.", 30, nil, []string{"192.0.2.1"}))
	if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(t.Context(), b); ReasonOf(err).Code != CodeMoving || !ReasonOf(err).Transient || ReasonOf(err).InDoubt {
		t.Fatalf("just written by somebody: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != zoneHead {
		t.Errorf("%q, %v", text, err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-zoneStill)); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	// What we wrote ourselves is whole.
	b.Fence.Old, b.Changes = b.Fence.New, nil
	b.Fence.New = Fence{Owner: "test", Epoch: 1, Seq: 1, By: "00"}.RRset("example.test.")
	if _, err := z.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// Whoever may write beside the zone file cannot have rota wait or write elsewhere.
func TestZoneFileTraps(t *testing.T) {
	z, path := zoneFileAt(t, func() (Output, error) { return Output{Started: true}, nil })
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	lock := filepath.Join(filepath.Dir(path), ".zone.rota-lock")
	if err := os.Symlink(elsewhere, lock); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(t.Context(), firstBatch()); err == nil || ReasonOf(err).InDoubt {
		t.Errorf("a lock that leads elsewhere: %v", err)
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("a file was made elsewhere")
	}
	os.Remove(lock)
	next := filepath.Join(filepath.Dir(path), ".zone.rota-new")
	if err := errors.Join(os.WriteFile(elsewhere, nil, 0o600), os.Symlink(elsewhere, next)); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(t.Context(), firstBatch()); err != nil {
		t.Errorf("beside what a writer left: %v", err)
	}
	if text, err := os.ReadFile(elsewhere); err != nil || len(text) > 0 {
		t.Errorf("written elsewhere: %q, %v", text, err)
	}
	if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Read(t.Context(), "example.test.", nil); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a pipe: %v", err)
	}
}

// A file from elsewhere: its line ends are not ours, its marks are.
func TestZoneFileLineEnds(t *testing.T) {
	text := strings.ReplaceAll(zoneHead, "\n", "\r\n") + zoneBegin + "\r\nwww.example.test.\t30\tIN\tA\t192.0.2.9\r\n" + zoneEnd
	z, err := parseZone([]byte(text), "example.test.")
	if err != nil {
		t.Fatal(err)
	}
	b := firstBatch(address("www.example.test.", 30, []string{"192.0.2.9"}, []string{"192.0.2.1"}))
	held, err := z.entries()
	if err != nil || stands(b, held) != nil {
		t.Fatal(err, stands(b, held))
	}
	got, err := z.edit(b, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	want := strings.Replace(strings.ReplaceAll(zoneHead, "\n", "\r\n"), "2026010100", "2026010101", 1) +
		zoneBegin + "\r\n" + fenceLine + "www.example.test.\t30\tIN\tA\t192.0.2.1\n" + zoneEnd
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	again, err := parseZone([]byte(got), "example.test.")
	if err != nil || !z.same(again, b) {
		t.Errorf("says something else: %v", err)
	}
}

// A zone of 100,000 lines is written while a writer may wait.
func TestZoneFileLarge(t *testing.T) {
	z, path := zoneFileAt(t, func() (Output, error) { return Output{Started: true}, nil })
	var b strings.Builder
	b.WriteString(zoneHead)
	for i := range 100_000 {
		fmt.Fprintf(&b, "h%06d 300 IN A 198.51.100.%d ; by hand\n", i, i%250)
	}
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte(b.String()), 0o640), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(t.Context(), firstBatch(address("www.example.test.", 30, nil, []string{"192.0.2.1"}))); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "; by hand\n") != 100_000 || !strings.Contains(string(text), "www.example.test.\t30\tIN\tA\t192.0.2.1\n") {
		t.Errorf("%v, %d bytes", err, len(text))
	}
}

// A real NSD serves what is written, once its own tool was told.
func TestZoneFileNSD(t *testing.T) {
	t.Parallel()
	dir, port := t.TempDir(), peers.FreePort(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("example.test.zone", zoneHead+strings.Join(foreignRecords, "\n")+"\nns.elsewhere.example.test. 5 IN A 192.0.2.99\n")
	write("nsd.conf", fmt.Sprintf(`server:
	ip-address: 127.0.0.1@%d
	username: ""
	chroot: ""
	database: ""
	zonesdir: %q
	pidfile: %q
	xfrdfile: %q
	xfrdir: %q
	zonelistfile: %q
	server-count: 1
remote-control:
	control-enable: yes
	control-interface: %q
zone:
	name: example.test
	zonefile: example.test.zone
`, port, dir, at("pid"), at("xfrd.state"), dir, at("zone.list"), at("ctl")))
	cmd := exec.Command(program(t, "nsd", "nsd"), "-d", "-c", at("nsd.conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	ask := func(name string, typ uint16) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(name, typ)
		answer, _, err := (&dns.Client{Timeout: time.Second}).Exchange(m, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return new(dns.Msg)
		}
		return answer
	}
	addresses := func() (out []string) {
		for _, rr := range ask("www.example.test.", dns.TypeA).Answer {
			data, _ := rdata(rr)
			out = append(out, data)
		}
		slices.Sort(out)
		return out
	}
	serial := func() uint32 {
		for _, rr := range ask("example.test.", dns.TypeSOA).Answer {
			return rr.(*dns.SOA).Serial
		}
		return 0
	}
	eventually(t, "NSD answers", func() bool { return serial() == 2026010100 })
	z, err := NewZoneFile(ZoneFileOptions{
		Path: at("example.test.zone"), Reload: []string{program(t, "nsd-control", "nsd"), "-c", at("nsd.conf"), "reload", "example.test"}, Run: commands,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, quick(w, z), 1)
	// While NSD reloads, its old process still answers: what it says is only proof together with the publisher's own word.
	shows := func(want ...string) func() bool {
		return func() bool { return settled(p.Publisher, w.State().At()) && slices.Equal(addresses(), want) }
	}
	eventually(t, "both addresses", shows("192.0.2.1", "192.0.2.2"))
	first := serial()
	for range 3 {
		w.down("192.0.2.2")
		eventually(t, "removal", shows("192.0.2.1"))
		w.up("192.0.2.2")
		eventually(t, "return", shows("192.0.2.1", "192.0.2.2"))
	}
	eventually(t, "six more serials", func() bool { return int32(serial()-first) >= 6 })
	if got := ask("www.example.test.", dns.TypeTXT).Answer; len(got) != 1 || !strings.Contains(got[0].String(), "beside our addresses") {
		t.Errorf("the record beside ours: %v", got)
	}
	if got := ask("_rota.example.test.", dns.TypeTXT).Answer; len(got) != 1 {
		t.Errorf("the fence: %v", got)
	}
	if r := reasonCode(p.Publisher); r != "" {
		t.Errorf("a reason: %s", r)
	}
}
