package publish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/rota-dns/rota/internal/rota"
)

// shelf is an editor in memory. Each request waits for gate, which may end the goroutine that made it.
type shelf struct {
	gate func(changes bool, do func())

	mu      sync.Mutex // guards what follows
	entries []entry
	next    int
	zoned   []rota.Name
	asked   int // times that zones was called
	lists   int
	fault   error
}

const shelfZone rota.Name = "example.test."

func newShelf(entries ...entry) *shelf {
	s := &shelf{zoned: []rota.Name{"test.", shelfZone}, gate: func(_ bool, do func()) { do() }}
	for _, e := range entries {
		s.put(e)
	}
	return s
}

func (s *shelf) put(e entry) {
	s.next++
	e.ID = strconv.Itoa(s.next)
	s.entries = append(s.entries, e)
}

// do carries out one request when it is its turn.
func (s *shelf) do(changes bool, f func()) error {
	var err error
	s.gate(changes, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err = s.fault; err == nil {
			f()
		}
	})
	return err
}

func (s *shelf) capabilities() Capabilities { return Capabilities{Fence: FenceCompare, MinTTL: 30} }

func (s *shelf) zones(context.Context) (out []rota.Name, _ error) {
	err := s.do(false, func() { s.asked++; out = s.zoned })
	return out, err
}

func (s *shelf) list(context.Context, rota.Name, []rota.Name) (out []entry, _ error) {
	err := s.do(false, func() { s.lists++; out = slices.Clone(s.entries) })
	return out, err
}

func (s *shelf) commit(ctx context.Context, b Batch, held []entry) error {
	return stepwise(ctx, s, b, held)
}

func (s *shelf) create(_ context.Context, _ rota.Name, e entry) error {
	return s.do(true, func() { s.put(e) })
}

func (s *shelf) retime(_ context.Context, _ rota.Name, e entry, ttl uint32) error {
	return s.do(true, func() {
		for i := range s.entries {
			if s.entries[i].ID == e.ID {
				s.entries[i].TTL = ttl
			}
		}
	})
}

func (s *shelf) remove(_ context.Context, _ rota.Name, e entry) error {
	return s.do(true, func() {
		s.entries = slices.DeleteFunc(s.entries, func(o entry) bool { return o.ID == e.ID })
	})
}

func (s *shelf) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *shelf) data(k rota.Key) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.entries {
		if e.Key == k {
			out = append(out, e.Data)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var www = rota.Key{Name: "www.example.test.", Type: rota.TypeA}

func at(k rota.Key, data ...string) rota.RRset {
	return rota.RRset{Name: k.Name, Type: k.Type, TTL: 60, Data: data}
}

func on(s rota.RRset) (out []entry) {
	for _, d := range s.Data {
		out = append(out, entry{Key: s.Key(), TTL: s.TTL, Data: d})
	}
	return out
}

// turns lets several writers make their requests one after the other, in an order that a test draws. A writer may be stopped for ever
// at any request, which is then lost or arrives at some later time.
type turns struct {
	t     *rapid.T
	want  chan turn
	done  chan int
	limbo []func()
}

type turn struct {
	who     int
	changes bool
	do      func()
	goOn    chan bool // false: the writer is no more
}

func (q *turns) start(who int, s *shelf, f func(mine *shelfOf)) {
	go func() {
		defer func() { q.done <- who }()
		f(&shelfOf{s, func(changes bool, do func()) {
			t := turn{who, changes, do, make(chan bool)}
			q.want <- t
			if !<-t.goOn {
				runtime.Goexit()
			}
		}})
	}()
}

// shelfOf is a shelf as one writer reaches it.
type shelfOf struct {
	*shelf
	turn func(bool, func())
}

func (s *shelfOf) do(changes bool, f func()) {
	s.turn(changes, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
	})
}

func (s *shelfOf) list(context.Context, rota.Name, []rota.Name) (out []entry, _ error) {
	s.do(false, func() { out = slices.Clone(s.entries) })
	return out, nil
}

func (s *shelfOf) commit(ctx context.Context, b Batch, held []entry) error {
	return stepwise(ctx, s, b, held)
}

func (s *shelfOf) create(_ context.Context, _ rota.Name, e entry) error {
	s.do(true, func() { s.put(e) })
	return nil
}

func (s *shelfOf) remove(_ context.Context, _ rota.Name, e entry) error {
	s.do(true, func() {
		s.entries = slices.DeleteFunc(s.entries, func(o entry) bool { return o.ID == e.ID })
	})
	return nil
}

// run has n writers go on until all have ended.
func (q *turns) run(n int, look func()) {
	waiting := map[int]turn{}
	for live := n; live > 0; {
		for len(waiting) < live {
			select {
			case t := <-q.want:
				waiting[t.who] = t
			case <-q.done:
				live--
			}
		}
		if live == 0 {
			return
		}
		var ids []int
		for id := range waiting {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		if len(q.limbo) > 0 && rapid.IntRange(0, 3).Draw(q.t, "arrives") == 0 {
			q.arrive()
			look()
		}
		t := waiting[rapid.SampledFrom(ids).Draw(q.t, "whose turn")]
		delete(waiting, t.who)
		switch rapid.IntRange(0, 19).Draw(q.t, "fate") {
		case 0: // stopped, the request is lost
			t.goOn <- false
		case 1: // stopped, the request arrives later
			if t.changes {
				q.limbo = append(q.limbo, t.do)
			}
			t.goOn <- false
		default:
			t.do()
			look()
			t.goOn <- true
		}
	}
}

func (q *turns) arrive() {
	i := rapid.IntRange(0, len(q.limbo)-1).Draw(q.t, "which")
	q.limbo[i]()
	q.limbo = slices.Delete(q.limbo, i, i+1)
}

// take makes what a new leader makes: it takes the fence and writes its own, and looks again when somebody was faster.
func take(d driver, owner string, term uint64, data string) error {
	l := newLedger(d, 0)
	for range 5 {
		have, err := l.Read(context.Background(), shelfZone, []rota.Key{FenceKey(shelfZone), www})
		if err != nil {
			return err
		}
		old := find(have.Sets, FenceKey(shelfZone))
		var f Fence
		if len(old.Data) > 0 {
			if f, err = ParseFence(old); err != nil {
				return err
			}
		}
		_, err = l.Write(context.Background(), Batch{
			Zone: shelfZone, Fence: rota.Change{Old: old, New: f.take(owner, term).RRset(shelfZone)},
			Changes: []rota.Change{{Old: find(have.Sets, www), New: at(www, data)}},
		})
		if !errors.Is(err, ErrMoved) {
			return err
		}
	}
	return ErrMoved
}

// Of several that write at once on the same fence at most one goes on, whoever is stopped wherever and whatever arrives late; the others
// change nothing. The name is never empty, and the next leader puts all right.
func TestStepwiseRace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := Fence{Owner: "test", Epoch: 1, By: "00"}
		s := newShelf(append(on(first.RRset(shelfZone)), on(at(www, "192.0.2.1"))...)...)
		q := &turns{t: t, want: make(chan turn), done: make(chan int)}
		n := rapid.IntRange(2, 3).Draw(t, "writers")
		results := make([]error, n)
		for i := range n {
			results[i] = errors.New("stopped")
			mine := first.take("test", uint64(i)+2)
			q.start(i, s, func(d *shelfOf) {
				_, results[i] = newLedger(d, 0).Write(context.Background(), Batch{
					Zone: shelfZone, Fence: rota.Change{Old: first.RRset(shelfZone), New: mine.RRset(shelfZone)},
					Changes: []rota.Change{{Old: at(www, "192.0.2.1"), New: at(www, fmt.Sprintf("192.0.2.1%d", i))}},
				})
			})
		}
		q.run(n, func() {
			if len(s.data(www)) == 0 {
				t.Fatal("the name is empty")
			}
		})
		went := 0
		for i, err := range results {
			data := fmt.Sprintf("192.0.2.1%d", i)
			switch {
			case err == nil:
				went++
			case errors.Is(err, ErrMoved) && slices.Contains(s.data(www), data):
				t.Fatalf("writer %d gave way and changed the name all the same: %v", i, s.data(www))
			}
		}
		if went > 1 {
			t.Fatalf("%d writers went on", went)
		}
		for len(q.limbo) > 0 {
			q.arrive()
		}
		if err := take(s, "test", 9, "192.0.2.99"); err != nil {
			t.Fatalf("the next leader: %v", err)
		}
		if got := s.data(www); !slices.Equal(got, []string{"192.0.2.99"}) {
			t.Fatalf("the next leader leaves %v", got)
		}
		if got := s.data(FenceKey(shelfZone)); len(got) != 1 || !strings.Contains(got[0], "epoch=9") {
			t.Fatalf("the next leader leaves the fences %q", got)
		}
	})
}

// A writer that was deposed while it writes many names stops within seconds.
func TestStepwiseDeposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := Fence{Owner: "test", Epoch: 1, By: "00"}
		s := newShelf(on(first.RRset(shelfZone))...)
		s.gate = func(_ bool, do func()) { time.Sleep(time.Second); do() }
		var changes []rota.Change
		for i := range 50 {
			k := rota.Key{Name: rota.Name(fmt.Sprintf("h%02d.example.test.", i)), Type: rota.TypeA}
			changes = append(changes, rota.Change{Old: at(k), New: at(k, "192.0.2.1")})
		}
		deposed := 20 * time.Second
		time.AfterFunc(deposed, func() {
			s.set(func() { s.put(on(first.take("test", 7).RRset(shelfZone))[0]) })
		})
		start := time.Now()
		_, err := newLedger(s, 0).Write(t.Context(), Batch{
			Zone: shelfZone, Fence: rota.Change{Old: first.RRset(shelfZone), New: first.Next().RRset(shelfZone)}, Changes: changes,
		})
		if r := ReasonOf(err); err == nil || !r.InDoubt || r.Code != CodeMoving {
			t.Errorf("%v", err)
		}
		if took := time.Since(start); took > deposed+lookEvery+2*time.Second {
			t.Errorf("it went on for %v", took-deposed)
		}
	})
}

// aliasShelf is a shelf that does something else with a new CNAME.
type aliasShelf struct {
	*shelf
	alias func(ctx context.Context, put func()) error
}

func (s aliasShelf) create(ctx context.Context, zone rota.Name, e entry) error {
	if e.Key.Type != rota.TypeCNAME {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return s.shelf.create(ctx, zone, e)
	}
	return s.alias(ctx, func() { s.shelf.create(ctx, zone, e) })
}

// Between its addresses and its CNAME a name is bare. Whatever fails there, it does not stay so; but a writer that was deposed meanwhile
// touches nothing more.
func TestStepwiseFlip(t *testing.T) {
	refused := &Reason{Code: CodeUnsupported, Text: "no CNAMEs today"}
	first := Fence{Owner: "test", Epoch: 1, By: "00"}
	alias := rota.Key{Name: www.Name, Type: rota.TypeCNAME}
	six := rota.Key{Name: www.Name, Type: rota.TypeAAAA}
	for name, tt := range map[string]struct {
		alias func(ctx context.Context, s *shelf, stop func(), put func()) error
		four  []string
		cname []string
		fails bool
	}{
		"done": {func(_ context.Context, _ *shelf, _, put func()) error { put(); return nil }, nil, []string{"sorry.example.test."}, false},
		"refused": {
			func(context.Context, *shelf, func(), func()) error { return refused }, []string{"192.0.2.1", "192.0.2.2"}, nil, true,
		},
		"done, and the answer lost": {
			func(_ context.Context, _ *shelf, _, put func()) error { put(); return refused }, nil, []string{"sorry.example.test."}, true,
		},
		"the writer is to end": {
			func(ctx context.Context, _ *shelf, stop, put func()) error {
				if stop(); ctx.Err() == nil {
					put()
				}
				return ctx.Err()
			}, nil, []string{"sorry.example.test."}, false,
		},
		"the writer is to end, and it is refused": {
			func(_ context.Context, _ *shelf, stop, _ func()) error { stop(); return refused }, []string{"192.0.2.1", "192.0.2.2"}, nil, true,
		},
		"no answer": {
			func(ctx context.Context, _ *shelf, _, _ func()) error { <-ctx.Done(); return ctx.Err() }, []string{"192.0.2.1", "192.0.2.2"}, nil, true,
		},
		"deposed": {
			func(_ context.Context, s *shelf, _, _ func()) error {
				s.set(func() { s.put(on(first.take("test", 7).RRset(shelfZone))[0]) })
				return refused
			}, nil, nil, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(slices.Concat(on(first.RRset(shelfZone)), on(at(www, "192.0.2.1", "192.0.2.2")), on(at(six, "2001:db8::1")))...)
				ctx, stop := context.WithCancel(t.Context())
				d := aliasShelf{s, func(ctx context.Context, put func()) error { return tt.alias(ctx, s, stop, put) }}
				start := time.Now()
				err := stepwise(ctx, d, Batch{
					Zone: shelfZone, Fence: rota.Change{Old: first.RRset(shelfZone), New: first.Next().RRset(shelfZone)},
					Changes: []rota.Change{
						{Old: at(www, "192.0.2.1", "192.0.2.2"), New: at(www)},
						{Old: at(six, "2001:db8::1"), New: at(six)},
						{Old: at(alias), New: at(alias, "sorry.example.test.")},
					},
				}, slices.Clone(s.entries))
				if tt.fails != (err != nil) || err != nil && (!ReasonOf(err).InDoubt || ReasonOf(err).Name != www.Name) {
					t.Errorf("%+v", err)
				}
				if got := s.data(www); !slices.Equal(got, tt.four) || len(s.data(six)) != min(1, len(tt.four)) {
					t.Errorf("its addresses are %v and %v, want %v", got, s.data(six), tt.four)
				}
				if got := s.data(alias); !slices.Equal(got, tt.cname) {
					t.Errorf("its CNAME is %v, want %v", got, tt.cname)
				}
				if took := time.Since(start); took > 2*flipWithin {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// A list that shows what stood there before our write is asked for again; one that shows something else is believed.
func TestLedgerLag(t *testing.T) {
	for _, c := range []struct {
		name  string
		shows []string // after a write of 192.0.2.1 → 192.0.2.2
		takes time.Duration
		fails Code
	}{
		{"the new", []string{"192.0.2.2"}, 0, ""},
		{"the old for ever", []string{"192.0.2.1"}, 0, CodeMoving},
		{"neither", []string{"192.0.2.3"}, 0, ""},
		{"the old for a while", []string{"192.0.2.1"}, 5 * time.Second, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(on(at(www, "192.0.2.1"))...)
				l := newLedger(s, time.Minute)
				f := Fence{}.take("test", 1)
				if _, err := l.Write(t.Context(), Batch{
					Zone: shelfZone, Fence: rota.Change{Old: at(FenceKey(shelfZone)), New: f.RRset(shelfZone)},
					Changes: []rota.Change{{Old: at(www, "192.0.2.1"), New: at(www, "192.0.2.2")}},
				}); err != nil {
					t.Fatal(err)
				}
				s.set(func() {
					s.entries = append(on(f.RRset(shelfZone)), on(at(www, c.shows...))...)
				})
				if c.takes > 0 {
					time.AfterFunc(c.takes, func() { s.set(func() { s.entries = append(on(f.RRset(shelfZone)), on(at(www, "192.0.2.2"))...) }) })
				}
				start := time.Now()
				have, err := l.Read(t.Context(), shelfZone, []rota.Key{www})
				took := time.Since(start)
				switch {
				case c.fails != "":
					if err == nil || ReasonOf(err).Code != c.fails || took > readWithin+time.Second {
						t.Errorf("%v after %v", err, took)
					}
					time.Sleep(time.Minute)
					if have, err = l.Read(t.Context(), shelfZone, []rota.Key{www}); err != nil || !have.Sets[0].Equal(at(www, c.shows...)) {
						t.Errorf("after the time to settle: %v, %v", have.Sets, err)
					}
				case err != nil || took < c.takes || took > c.takes+3*time.Second:
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// A driver that lists no more than the names it is asked for says nothing about others.
func TestLedgerLagOfOtherNames(t *testing.T) {
	s := newShelf()
	l := newLedger(narrow{s}, time.Minute)
	f := Fence{}.take("test", 1)
	if _, err := l.Write(t.Context(), Batch{
		Zone: shelfZone, Fence: rota.Change{Old: at(FenceKey(shelfZone)), New: f.RRset(shelfZone)}, Changes: []rota.Change{{Old: at(www), New: at(www, "192.0.2.2")}},
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if have, err := l.Read(t.Context(), shelfZone, []rota.Key{{Name: "other.example.test.", Type: rota.TypeA}}); err != nil || len(have.Sets) > 0 {
			t.Errorf("%v, %v", have.Sets, err)
		}
	}
}

// narrow is a shelf that lists no more than it is asked for.
type narrow struct{ *shelf }

func (n narrow) list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error) {
	all, err := n.shelf.list(ctx, zone, nil)
	return slices.DeleteFunc(all, func(e entry) bool { return !slices.Contains(names, e.Key.Name) }), err
}

// A zone that had records and lists none is believed at the fourth time.
func TestLedgerEmptyList(t *testing.T) {
	s := newShelf(on(at(www, "192.0.2.1"))...)
	l := newLedger(s, 0)
	read := func() error {
		_, err := l.Read(t.Context(), shelfZone, []rota.Key{www})
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	kept := s.entries
	for _, entries := range [][]entry{nil, nil, kept, nil, nil, nil} {
		s.entries = entries
		if err := read(); (err == nil) != (len(entries) > 0) {
			t.Errorf("%d entries: %v", len(entries), err)
		}
	}
	if err := read(); err != nil {
		t.Errorf("the fourth time: %v", err)
	}
	if err := newLedger(newShelf(), 0).believable(shelfZone, nil); err != nil {
		t.Errorf("a zone that never had records: %v", err)
	}
}

func TestLedgerZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l := newLedger(s, 0)
		ask := func(n rota.Name, want rota.Name, asked int) {
			t.Helper()
			z, err := l.Zone(t.Context(), n)
			if z != want || (err == nil) != (want != "") || s.asked != asked {
				t.Errorf("%s is in %q, %v, after asking %d times", n, z, err, s.asked)
			}
			if err != nil && ReasonOf(err).Code != CodeNoZone {
				t.Error(err)
			}
		}
		ask("www.example.test.", shelfZone, 1)
		ask("wwwexample.test.", "test.", 1)
		ask("example.org.", "", 1)
		s.zoned = append(s.zoned, "example.org.")
		ask("example.org.", "", 1) // asked a moment ago
		time.Sleep(zonesRetry)
		ask("example.org.", "example.org.", 2)
		s.zoned = nil
		ask("example.org.", "example.org.", 2)
		time.Sleep(zonesAge)
		ask("example.org.", "", 3)
	})
}

// endlessZones is a driver whose list of zones has one page more each time, each after a moment.
type endlessZones struct{ *shelf }

func (endlessZones) zones(ctx context.Context) ([]rota.Name, error) {
	for range maxPages {
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, nil
}

// A list of zones that goes on and on is given up, also for whoever waits without a limit of his own.
func TestLedgerZonesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(endlessZones{newShelf()}, 0)
		start := time.Now()
		if _, err := l.Zone(context.Background(), www.Name); ReasonOf(err).Code != CodeUnreachable || time.Since(start) > zonesWithin {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// That the credentials are wrong is asked for once, not once for each of many names.
func TestLedgerZoneDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		asked := 0
		s.gate = func(_ bool, do func()) { asked++; do() }
		l := newLedger(s, 0)
		for i := range 1000 {
			s.fault = &Reason{Code: CodeDenied, Text: "no"}
			n := rota.MustParseName(fmt.Sprintf("h%d.example.test", i))
			if _, err := l.Zone(t.Context(), n); ReasonOf(err).Code != CodeDenied {
				t.Fatal(err)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(zonesRefused)
		s.fault = &Reason{Code: CodeUnreachable, Transient: true, Text: "not now"}
		if _, err := l.Zone(t.Context(), www.Name); ReasonOf(err).Code != CodeUnreachable {
			t.Error(err)
		}
		s.fault = nil
		if z, err := l.Zone(t.Context(), www.Name); err != nil || z != shelfZone {
			t.Errorf("%s, %v", z, err)
		}
	})
}

// What a Write is planned on is compared before it; what is not right is written nowhere.
func TestLedgerCompares(t *testing.T) {
	f := Fence{}.take("test", 1)
	txt := rota.Key{Name: www.Name, Type: rota.TypeTXT}
	cname := rota.Key{Name: www.Name, Type: rota.TypeCNAME}
	entries := slices.Concat(on(f.RRset(shelfZone)), on(at(www, "192.0.2.1")), on(at(txt, `"x"`)))
	same := rota.Change{Old: f.RRset(shelfZone), New: f.Next().RRset(shelfZone)}
	other := f
	other.Seq = 9
	cases := []struct {
		name  string
		fence rota.Change
		c     rota.Change
		fault error
		want  Code // "moved": ErrMoved
	}{
		{"another fence", rota.Change{Old: other.RRset(shelfZone), New: other.Next().RRset(shelfZone)}, rota.Change{Old: at(www, "192.0.2.1"), New: at(www, "192.0.2.2")}, nil, "moved"},
		{"other data", same, rota.Change{Old: at(www, "192.0.2.9"), New: at(www, "192.0.2.2")}, nil, "moved"},
		{"a CNAME beside a TXT", same, rota.Change{Old: at(cname), New: at(cname, "example.org.")}, nil, CodeOther},
		{"no list", same, rota.Change{Old: at(www, "192.0.2.1"), New: at(www, "192.0.2.2")}, &Reason{Code: CodeServfail, InDoubt: true}, CodeServfail},
	}
	for _, c := range cases {
		s := newShelf(entries...)
		s.fault = c.fault
		before := slices.Clone(s.entries)
		_, err := newLedger(s, 0).Write(t.Context(), Batch{Zone: shelfZone, Fence: c.fence, Changes: []rota.Change{c.c}})
		switch {
		case c.want == "moved" && !errors.Is(err, ErrMoved), c.want != "moved" && (ReasonOf(err).Code != c.want || ReasonOf(err).InDoubt):
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(before, s.entries); diff != "" {
			t.Errorf("%s: written:\n%s", c.name, diff)
		}
	}
	// A TTL below the least that is taken is raised, of the fence too.
	s := newShelf(entries...)
	low := at(www, "192.0.2.1", "192.0.2.2")
	low.TTL = 1
	if _, err := newLedger(s, 0).Write(t.Context(), Batch{Zone: shelfZone, Fence: same, Changes: []rota.Change{{Old: at(www, "192.0.2.1"), New: low}}}); err != nil {
		t.Fatal(err)
	}
	for _, e := range s.entries {
		if e.TTL < 30 {
			t.Errorf("%+v", e)
		}
	}
}

func TestReading(t *testing.T) {
	e := func(name, kind, data string) entry {
		return newEntry(rota.Name(name), kind, 60, data)
	}
	entries := []entry{
		e("example.test.", "NS", "ns.example.org."), e("example.test.", "SOA", "1800"), e("sub.example.test.", "NS", "ns.example.org."), e("d.example.test.", "DNAME", "example.org."),
		e("www.example.test.", "A", "192.0.2.2"), e("www.example.test.", "a", "192.0.2.1"), e("www.example.test.", "A", "192.0.2.1"),
		e("x.example.test.", "ALIAS", "example.org"), e("bad.example.test.", "A", "nonsense"), e("caa.example.test.", "CAA", "cut short"), e("c.example.test.", "CNAME", "www.example.test"),
	}
	var keys []rota.Key
	for _, n := range []rota.Name{
		"www.example.test.", "sub.example.test.", "a.sub.example.test.", "d.example.test.", "a.d.example.test.", "x.example.test.", "bad.example.test.", "caa.example.test.",
		"c.example.test.", "none.example.test.", "example.test.",
	} {
		keys = append(keys, rota.Key{Name: n, Type: rota.TypeA})
	}
	have := reading(shelfZone, keys, entries)
	codes := map[rota.Name]Code{}
	for n, r := range have.Blocked {
		codes[n] = r.Code
	}
	if diff := cmp.Diff(map[rota.Name]Code{
		"sub.example.test.": CodeDelegated, "a.sub.example.test.": CodeDelegated, "a.d.example.test.": CodeDNAME, "x.example.test.": CodeOther, "bad.example.test.": CodeOther,
	}, codes); diff != "" {
		t.Error(diff)
	}
	var sets []string
	for _, s := range have.Sets {
		sets = append(sets, s.Key().String()+" "+strings.Join(s.Data, " "))
	}
	if diff := cmp.Diff([]string{
		"www.example.test A 192.0.2.1 192.0.2.2", "bad.example.test A nonsense", "c.example.test CNAME www.example.test.",
	}, sets); diff != "" {
		t.Error(diff)
	}
}

func TestInZone(t *testing.T) {
	for text, want := range map[string]rota.Name{
		"": "example.test.", "@": "example.test.", "www": "www.example.test.", "WWW": "www.example.test.", "www.example.org.": "www.example.org.",
		"*": "*.example.test.", "_rota": "_rota.example.test.", "a..b": "", "..": "",
	} {
		n, err := inZone(shelfZone, text)
		if n != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v", text, n, err)
		}
		if err == nil && n.In(shelfZone) {
			if back, err := inZone(shelfZone, relative(shelfZone, n)); back != n || err != nil {
				t.Errorf("%q comes back as %q, %v", n, back, err)
			}
		}
	}
}

// FuzzTXT holds what a text becomes on its way to a provider and back against the DNS library.
func FuzzTXT(f *testing.F) {
	for _, s := range []string{"", "v=spf1 -all", `quotes " and \ backslashes \000`, strings.Repeat("x", 600), "\x00\x7f\xff", `"quoted"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		data := quoteTXT(text)
		rr, err := dns.NewRR(". 0 IN TXT " + data)
		if err != nil || rr == nil {
			t.Fatalf("%q becomes %q, which is no data of a TXT record: %v", text, data, err)
		}
		if back, err := plainTXT(data); err != nil || back != text {
			t.Errorf("%q comes back as %q, %v", text, back, err)
		}
		if whole, err := canonical(rota.TypeTXT, data); err != nil || whole != data {
			t.Errorf("%q is not canonical: %q, %v", data, whole, err)
		}
	})
}

// slowRoad carries requests, but the first one that removes something named by take is carried only when it is released.
type slowRoad struct {
	http.RoundTripper
	take     atomic.Pointer[string] // end of the path
	caught   chan struct{}
	released chan struct{}
	done     chan struct{}
}

func (r *slowRoad) RoundTrip(req *http.Request) (*http.Response, error) {
	end := r.take.Load()
	if end == nil || req.Method != http.MethodDelete || !strings.HasSuffix(req.URL.Path, *end) || !r.take.CompareAndSwap(end, nil) {
		return r.RoundTripper.RoundTrip(req)
	}
	close(r.caught)
	go func() {
		defer close(r.done)
		<-r.released
		if _, err := r.RoundTripper.RoundTrip(req.Clone(context.Background())); err != nil {
			panic(err)
		}
	}()
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// Where nobody refuses it, a request of a deposed leader that arrives late is put right within seconds, however seldom the zone is read
// otherwise; and so is one of our own that was given up.
func TestLateRequest(t *testing.T) {
	for _, deposed := range []bool{true, false} {
		t.Run(fmt.Sprintf("deposed %v", deposed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeDigitalOcean(t, apiForeign...)
				f.calm = false
				road := &slowRoad{RoundTripper: f.apiFront, caught: make(chan struct{}), released: make(chan struct{}), done: make(chan struct{})}
				pair := []string{"192.0.2.1", "192.0.2.2"}
				app := func() []string {
					var out []string
					for _, l := range linesOf(f.records(""), "app.example.test.") {
						out = append(out, l[strings.LastIndex(l, " ")+1:])
					}
					return out
				}
				start := func(w *world, client http.RoundTripper, term uint64) *running {
					b, err := NewDigitalOcean(DigitalOceanOptions{URL: "https://api.digitalocean.test/v2", Token: f.token, Client: client})
					if err != nil {
						t.Fatal(err)
					}
					o := quick(w, b)
					o.Audit = time.Hour
					o.Confirm = func(context.Context, uint64) error {
						if w.State().Lead().Node == "b" {
							return errors.New("b leads")
						}
						return nil
					}
					return run(t, o, term)
				}
				a := newWorld(t, apiService("app.example.test", pair...)).up(pair...)
				pa := start(a, road, 1)
				time.Sleep(10 * time.Minute) // A has long held the zone
				id := ""
				f.books.mu.Lock()
				for _, r := range f.rows {
					if r.name == "app.example.test." && r.data == "192.0.2.1" {
						id = "/" + strconv.Itoa(r.id)
					}
				}
				f.books.mu.Unlock()
				road.take.Store(&id)
				a.down("192.0.2.1")
				<-road.caught
				if deposed {
					b := newWorld(t, apiService("app.example.test", pair...)).up(pair...)
					start(b, f.apiFront, 2)
					a.apply(rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: "b", Term: 2}})
					<-pa.done
				} else {
					a.up("192.0.2.1")
				}
				time.Sleep(time.Minute)
				if got := app(); !slices.Equal(got, pair) {
					t.Fatalf("before the request arrives: %v", got)
				}
				close(road.released)
				<-road.done
				if got := app(); slices.Equal(got, pair) {
					t.Fatal("the late request changed nothing")
				}
				time.Sleep(lateLook * 12 / 10)
				if got := app(); !slices.Equal(got, pair) {
					t.Errorf("some seconds after the late request: %v", got)
				}
			})
		})
	}
}

// An answer that leaves its list out, or says null, does not say that there are no records.
func TestNoListIsNotEmpty(t *testing.T) {
	zone := rota.Name("example.test.")
	for name, tt := range map[string]struct {
		make    func(http.RoundTripper) (Backend, error)
		answers map[string][]string // by the end of a path
	}{
		"Cloudflare": {
			func(c http.RoundTripper) (Backend, error) {
				return NewCloudflare(CloudflareOptions{Token: "t", client: c})
			},
			map[string][]string{
				"/zones":       {`{"success": true, "result": [{"id": "z", "name": "example.test"}], "result_info": {"page": 1, "total_pages": 1}}`},
				"/dns_records": {`{"success": true, "result": null, "result_info": {"page": 1}}`, `{"success": true, "result_info": {"page": 1}}`},
			},
		},
		"PowerDNS": {
			func(c http.RoundTripper) (Backend, error) {
				return NewPowerDNS(PowerDNSOptions{URL: "http://127.0.0.1:8081", Key: "k", client: c})
			},
			map[string][]string{"/example.test.": {`{"name": "example.test.", "kind": "Native"}`, `{"name": "example.test.", "rrsets": null}`}},
		},
		"deSEC": {
			func(c http.RoundTripper) (Backend, error) { return NewDeSEC(DeSECOptions{Token: "t", client: c}) },
			map[string][]string{"/rrsets/": {`null`}},
		},
		"AutoDNS": {
			func(c http.RoundTripper) (Backend, error) {
				return NewAutoDNS(AutoDNSOptions{User: "u", Password: "p", Rate: 1e9, Client: c})
			},
			map[string][]string{
				"/_search":         {`{"status": {"type": "SUCCESS"}, "data": [{"origin": "example.test", "virtualNameServer": "ns"}]}`},
				"/example.test/ns": {`{"status": {"type": "SUCCESS"}, "data": null}`},
			},
		},
		"Dynu": {
			func(c http.RoundTripper) (Backend, error) { return NewDynu(DynuOptions{Token: "t", Client: c}) },
			map[string][]string{
				"/dns":    {`{"statusCode": 200, "domains": [{"id": 1, "name": "example.test"}]}`},
				"/record": {`{"statusCode": 200}`, `{"statusCode": 200, "dnsRecords": null}`},
			},
		},
		"DigitalOcean": {
			func(c http.RoundTripper) (Backend, error) {
				return NewDigitalOcean(DigitalOceanOptions{Token: "t", Client: c})
			},
			map[string][]string{"/records": {`{}`, `{"domain_records": null}`}},
		},
		"webhook": {
			func(c http.RoundTripper) (Backend, error) {
				return NewWebhook(WebhookOptions{URL: "https://hook.example.test/x", Secret: strings.Repeat("s", 16), Client: c})
			},
			map[string][]string{"/x": {`{}`, `{"rrsets": null}`}},
		},
	} {
		last := 0
		for i := 0; i <= last; i++ {
			asked := ""
			b, err := tt.make(roundTrip(func(r *http.Request) (*http.Response, error) {
				for end, bodies := range tt.answers {
					if strings.HasSuffix(r.URL.Path, end) {
						last = max(last, len(bodies)-1)
						asked = bodies[min(i, len(bodies)-1)]
						return answer(r, 200, "application/json", asked), nil
					}
				}
				t.Errorf("%s: asked for %s", name, r.URL)
				return nil, errors.New("no")
			}))
			if err != nil {
				t.Fatal(err)
			}
			have, err := b.Read(t.Context(), zone, []rota.Key{www, FenceKey(zone)})
			if err == nil || ReasonOf(err).Code != CodeMalformed {
				t.Errorf("%s: %s is read as %v, %v", name, asked, have.Sets, err)
			}
		}
	}
}

// FuzzAPIAnswer answers every request of a Backend with the same nonsense. Whatever it is, there is a Reason or a reading, and nothing
// but questions is sent before the lists can be read.
func FuzzAPIAnswer(f *testing.F) {
	makers := []func(http.RoundTripper) (Backend, error){
		func(c http.RoundTripper) (Backend, error) {
			return NewAutoDNS(AutoDNSOptions{User: "u", Password: "p", Rate: 1e9, Client: c})
		},
		func(c http.RoundTripper) (Backend, error) { return NewDynu(DynuOptions{Token: "t", Client: c}) },
		func(c http.RoundTripper) (Backend, error) {
			return NewDigitalOcean(DigitalOceanOptions{Token: "t", Client: c})
		},
		func(c http.RoundTripper) (Backend, error) {
			return NewExternalDNS(ExternalDNSOptions{URL: "http://127.0.0.1:8888", Client: c})
		},
		func(c http.RoundTripper) (Backend, error) {
			return NewCloudflare(CloudflareOptions{Token: "t", client: c})
		},
		func(c http.RoundTripper) (Backend, error) {
			return NewPowerDNS(PowerDNSOptions{URL: "http://127.0.0.1:8081", Key: "k", client: c})
		},
		func(c http.RoundTripper) (Backend, error) { return NewDeSEC(DeSECOptions{Token: "t", client: c}) },
		func(c http.RoundTripper) (Backend, error) {
			return NewWebhook(WebhookOptions{URL: "https://hook.example.test", Secret: strings.Repeat("s", 16), Client: c})
		},
	}
	for _, s := range []string{
		``, `null`, `[]`, `{}`, `{"statusCode":200,"domains":[{"id":1,"name":"example.test"}],"dnsRecords":[{"nodeName":"www","recordType":"A","state":true}]}`,
		`{"status":{"type":"SUCCESS"},"data":[{"origin":"example.test","virtualNameServer":"a","main":{"address":"x"},"wwwInclude":true,"resourceRecords":[{"type":"MX"}]}]}`,
		`{"domains":[{"name":"example.test"}],"domain_records":[{"type":"MX","name":"@"}],"links":{"pages":{"next":"::"}},"meta":{"total":1}}`,
		`[{"dnsName":"www.example.test","recordType":"A","targets":["192.0.2.1"],"recordTTL":-1}]`, `{"include":["example.test"]}`,
		`{"success":true,"result":[{"id":"1","name":"example.test","type":"A","content":"x"}],"result_info":{"page":1,"total_pages":9}}`,
		`[{"name":"example.test.","subname":"www","type":"A","records":["x"]}]`, `{"name":"example.test.","kind":"Native","rrsets":[{"name":"www.example.test."}]}`,
		`{"zones":["example.test."],"rrsets":[{"name":"www.example.test.","type":"A","data":["192.0.2.1"]}]}`,
	} {
		for i := range makers {
			f.Add(uint8(i), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		sent := 0
		b, err := makers[int(which)%len(makers)](roundTrip(func(r *http.Request) (*http.Response, error) {
			if sent++; sent > 50 || r.Method == http.MethodDelete || r.Method == http.MethodPatch {
				t.Errorf("request %d: %s %s", sent, r.Method, r.URL)
			}
			return answer(r, 200, externalDNSMedia, string(body)), nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		switch d := b.(*ledger).driver.(type) {
		case *dynu:
			d.rest.pace.SetLimit(1e9)
		case *digitalOcean:
			d.rest.pace.SetLimit(1e9)
		case *cloudflare:
			d.rest.pace.SetLimit(1e9)
		case *deSEC:
			d.rest.pace.SetLimit(1e9)
		}
		_, err = b.Zone(t.Context(), www.Name)
		if _, ok := errors.AsType[*Reason](err); err != nil && !ok {
			t.Errorf("no reason: %v", err)
		}
		if have, err := b.Read(t.Context(), shelfZone, []rota.Key{www, FenceKey(shelfZone)}); err != nil {
			if _, ok := errors.AsType[*Reason](err); !ok {
				t.Errorf("no reason: %v", err)
			}
		} else {
			for _, s := range have.Sets {
				if s.Key().Name != www.Name && s.Key() != FenceKey(shelfZone) && s.Key().Name != FenceKey(shelfZone).Name {
					t.Errorf("it reads %v", s)
				}
			}
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
