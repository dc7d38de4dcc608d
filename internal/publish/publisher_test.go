package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/rota-dns/rota/internal/rota"
)

// usual are the options of a publisher in virtual time.
func usual(w *world, b Backend) Options {
	return Options{Name: testPublisher, Backend: b, Source: w, Owner: named("test"), Record: w.record}
}

func TestFaultsOfOneWrite(t *testing.T) {
	cases := []struct {
		name   string
		faults []fault
		writes int  // that changed records, besides the first
		soon   bool // at once, not after a pause
	}{
		{"fine", []fault{fine}, 1, true},
		{"failed and not done", []fault{failed}, 1, false},
		{"failed but done", []fault{doneLost}, 1, true},
		{"failed thrice", []fault{failed, failed, failed}, 1, false},
		{"refused, then taken", []fault{refusing, refusing}, 1, false},
		{"agreed and not done", []fault{lying}, 1, false},
		{"done and the read-back fails", []fault{unreadable}, 1, false},
		{"done late", []fault{late}, 1, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
				p := run(t, usual(w, f), 3)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				before := f.written()
				f.set(func() { f.faults = c.faults })
				w.down("192.0.2.1")
				time.Sleep(100 * time.Millisecond)
				if done := settled(p.Publisher, w.State().At()); done != c.soon {
					t.Errorf("settled at once: %v, want %v", done, c.soon)
				}
				time.Sleep(2 * time.Minute)
				f.release()
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
					t.Errorf("www is %v", got)
				}
				if n := f.written() - before; n != c.writes {
					t.Errorf("%d writes, want %d", n, c.writes)
				}
				if got := p.Status().Zones[0]; got.Failures != 0 || len(got.Reasons) != 0 || got.Drift != 0 {
					t.Errorf("status %+v", got)
				}
				if n := len(w.recorded()); n != 2 {
					t.Errorf("%d events, want 2: %v", n, w.recorded())
				}
			})
		})
	}
}

// A thousand changes a minute become few writes, and the last state wins.
func TestCoalescing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		run(t, usual(w, f), 1)
		for i := range 1000 {
			time.Sleep(60 * time.Millisecond)
			if i%2 == 0 {
				w.down("192.0.2.1")
			} else {
				w.up("192.0.2.1")
			}
		}
		w.down("192.0.2.1")
		time.Sleep(2 * time.Second)
		if n := f.written(); n > 63 {
			t.Errorf("%d writes in a minute, want at most one a second", n)
		}
		if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
			t.Errorf("www is %v", got)
		}
	})
}

// A dark DNS is asked again ever more slowly, whatever happens meanwhile, and gets one write at the end.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		p := run(t, usual(w, f), 1)
		time.Sleep(time.Second)
		f.set(func() { f.dark, f.reads = true, 0 })
		before := f.written()
		for range 600 { // ten minutes
			w.down("192.0.2.1")
			time.Sleep(500 * time.Millisecond)
			w.up("192.0.2.1")
			time.Sleep(500 * time.Millisecond)
		}
		w.down("192.0.2.1")
		f.set(func() {
			if f.reads < 12 || f.reads > 60 {
				t.Errorf("%d attempts in ten dark minutes, want about 25", f.reads)
			}
			f.dark = false
		})
		if s := p.Status().Zones[0]; s.Failures < 10 || s.Reasons[0].Code != CodeUnreachable {
			t.Errorf("status %+v", s)
		}
		time.Sleep(46 * time.Second)
		if n := f.written() - before; n != 1 {
			t.Errorf("%d writes once it answers again, want 1", n)
		}
		if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
			t.Errorf("www is %v", got)
		}
	})
}

// The audit looks once an interval, repairs, and writes nothing when there is nothing to do.
func TestAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
		p := run(t, usual(w, f), 1)
		time.Sleep(time.Hour)
		f.set(func() {
			if f.reads < 50 || f.reads > 75 || len(f.tries) != 2 {
				t.Errorf("%d reads and %d writes in an hour, want 60 and 2", f.reads, len(f.tries))
			}
			f.zone[rota.Key{Name: "www.example.test.", Type: rota.TypeA}] = rota.RRset{
				Name: "www.example.test.", Type: rota.TypeA, TTL: 5, Data: []string{"203.0.113.1"},
			}
		})
		time.Sleep(70 * time.Second)
		if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("www is %v", got)
		}
		if s := p.Status().Zones[0]; s.Repairs != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// One name that the server refuses holds up no other, and costs few messages.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []rota.Service
		for i := range 1000 {
			services = append(services, service(fmt.Sprintf("s%04d.example.test", i), "192.0.2.1"))
		}
		f := newFake(t)
		f.poison = "s0613.example.test."
		p := run(t, usual(newWorld(t, services...).up("192.0.2.1"), f), 1)
		time.Sleep(time.Second)
		synctest.Wait()
		f.set(func() {
			if len(f.zone) != 1000 || len(f.tries) > 30 {
				t.Errorf("%d records after %d messages, want 999 and the fence", len(f.zone), len(f.tries))
			}
		})
		if r := p.Status().Zones[0].Reasons; len(r) != 1 || r[0].Name != f.poison {
			t.Errorf("reasons %v", r)
		}
		f.set(func() { f.poison = "" })
		time.Sleep(time.Minute)
		if f.data("s0613.example.test.", rota.TypeA) == nil {
			t.Error("the name was not tried again")
		}
	})
}

// Two leaders of one owner: the later one wins, and the earlier one stops unless it can confirm that it leads.
func TestFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		o := usual(w, f)
		deposed := errors.New("not the leader")
		var over atomic.Bool
		o.Confirm = func(_ context.Context, term uint64) error {
			if over.Load() || term != 4 {
				return deposed
			}
			return nil
		}
		a := run(t, o, 4)
		time.Sleep(time.Second)
		over.Store(true)
		b := run(t, usual(w, f), 4)
		time.Sleep(time.Second)
		w.down("192.0.2.2")
		time.Sleep(3 * time.Second)
		<-a.done
		if !errors.Is(a.err, ErrFenced) || !errors.Is(a.err, deposed) {
			t.Errorf("A ended with %v", a.err)
		}
		if s := b.Status(); len(s.Zones[0].Reasons) > 0 || !strings.Contains(s.Zones[0].Fence, "epoch=5 ") {
			t.Errorf("B stands at %+v", s)
		}
		if s := a.Status(); s.Leading {
			t.Error("A says that it leads")
		}
		// What A sent is worth nothing, even where the records are as they were then.
		f.set(func() {
			for _, old := range f.capture[:len(f.capture)-1] {
				if err := f.apply(old); !errors.Is(err, ErrMoved) {
					t.Errorf("replay of %v: %v", old.Changes, err)
				}
			}
		})
	})
}

// P20. Who was stopped writes nothing before it has confirmed that it still leads, and asks no more often than that.
func TestP20_LeadershipAfterAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		o := usual(w, f)
		deposed := errors.New("not the leader")
		var lapses, asked atomic.Uint64
		var over atomic.Bool
		o.Lapses = lapses.Load
		o.Confirm = func(context.Context, uint64) error {
			asked.Add(1)
			if over.Load() {
				return deposed
			}
			return nil
		}
		p := run(t, o, 4)
		changes := func(what string, change func(...string) *world, addr string, times uint64) {
			t.Helper()
			before := asked.Load()
			n := f.written()
			change(addr)
			time.Sleep(10 * time.Second)
			if f.written() == n {
				t.Errorf("%s: nothing was written: %v", what, p.Status().Zones[0].Reasons)
			}
			if got := asked.Load() - before; got != times {
				t.Errorf("%s: leadership was confirmed %d times, want %d", what, got, times)
			}
		}
		time.Sleep(time.Second)
		changes("nothing happened", w.down, "192.0.2.2", 0)
		lapses.Add(3)
		changes("after a stop", w.up, "192.0.2.2", 1)
		changes("and no more", w.down, "192.0.2.2", 0)
		lapses.Add(1)
		over.Store(true)
		n := f.written()
		w.up("192.0.2.2")
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			t.Fatal("it goes on")
		}
		if f.written() != n || !errors.Is(p.err, ErrFenced) || !errors.Is(p.err, deposed) {
			t.Errorf("who was deposed meanwhile wrote %d times and ended with %v", f.written()-n, p.err)
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []rota.Service
		for i := range 50 {
			services = append(services, service(fmt.Sprintf("s%02d.example.test", i), "192.0.2.1", "2001:db8::1"))
		}
		f := newFake(t)
		f.limit = 7
		w := newWorld(t, services...).up("192.0.2.1", "2001:db8::1")
		run(t, usual(w, f), 1)
		time.Sleep(time.Second)
		if got := f.written(); got < 12 || got > 15 {
			t.Errorf("%d writes", got)
		}
		if e := w.recorded(); len(e) != 1 || len(e[0].Changes) != 100 {
			t.Errorf("%d events", len(e))
		}
	})
}

func TestGuard(t *testing.T) {
	set := func(t rota.Type, data ...string) rota.RRset {
		return rota.RRset{Name: "www.", Type: t, TTL: 1, Data: data}
	}
	change := func(old, fresh rota.RRset) rota.Change { return rota.Change{Old: old, New: fresh} }
	emptyA := change(set(rota.TypeA, "192.0.2.1"), set(rota.TypeA))
	known := map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "2001:db8::1": true, "sorry.": true}
	cases := []struct {
		name    string
		changes []rota.Change
		empty   map[rota.Type]bool
		refused bool
	}{
		{"nothing", nil, nil, false},
		{"one less", []rota.Change{change(set(rota.TypeA, "192.0.2.1", "192.0.2.2"), set(rota.TypeA, "192.0.2.2"))}, nil, false},
		{"empty", []rota.Change{emptyA}, nil, true},
		{"empty, permitted", []rota.Change{emptyA}, map[rota.Type]bool{rota.TypeA: true}, false},
		{"empty, another type permitted", []rota.Change{emptyA}, map[rota.Type]bool{rota.TypeAAAA: true}, true},
		{"empty, the other family stays", []rota.Change{emptyA, change(set(rota.TypeAAAA), set(rota.TypeAAAA, "2001:db8::1"))}, nil, true},
		{"fallback takes over", []rota.Change{emptyA, change(set(rota.TypeCNAME), set(rota.TypeCNAME, "sorry."))}, nil, false},
		{"fallback goes, addresses come", []rota.Change{
			change(set(rota.TypeA), set(rota.TypeA, "192.0.2.1")), change(set(rota.TypeCNAME, "sorry."), set(rota.TypeCNAME)),
		}, map[rota.Type]bool{rota.TypeCNAME: true}, false},
		{"fallback goes alone", []rota.Change{change(set(rota.TypeCNAME, "sorry."), set(rota.TypeCNAME))}, nil, true},
		{"CNAME beside addresses", []rota.Change{
			change(set(rota.TypeA), set(rota.TypeA, "192.0.2.1")), change(set(rota.TypeCNAME), set(rota.TypeCNAME, "sorry.")),
		}, nil, true},
		{"foreign address", []rota.Change{change(set(rota.TypeA), set(rota.TypeA, "203.0.113.1"))}, nil, true},
		{"wrong family", []rota.Change{change(set(rota.TypeA), set(rota.TypeA, "2001:db8::1"))}, nil, true},
	}
	for _, c := range cases {
		if r := guard(c.changes, permission{data: known, empty: c.empty}); (r != nil) != c.refused {
			t.Errorf("%s: %v", c.name, r)
		}
	}
}

// Whatever the hub says, a plan that empties a configured name does not reach the backend.
func TestPlanIsGuarded(t *testing.T) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	st := w.State()
	have := Reading{Sets: []rota.RRset{{Name: "www.example.test.", Type: rota.TypeA, TTL: 30, Data: []string{"192.0.2.1", "192.0.2.2"}}}}
	for name, want := range map[string]rota.Want{
		"a want of nothing":    {Service: "www.example.test.", Set: rota.RRset{Name: "www.example.test.", Type: rota.TypeA}},
		"a drop of everything": {Service: "www.example.test.", Set: rota.RRset{Name: "www.example.test.", Type: rota.TypeA}, Drop: have.Sets[0].Data},
		"a foreign address": {Service: "www.example.test.", Set: rota.RRset{
			Name: "www.example.test.", Type: rota.TypeA, TTL: 30, Data: []string{"203.0.113.1"},
		}},
	} {
		p := desire{state: st, wants: []rota.Want{want}}.plan("example.test.", have)
		if len(p.Changes) != 0 || len(p.Reasons) != 1 || p.Reasons[0].Code != CodeGuard {
			t.Errorf("%s: plan %+v", name, p)
		}
	}
}

// TestWithdrawn takes a service's last address of a family out of the configuration: only what was ours goes.
func TestWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "2001:db8::1")).up("192.0.2.1", "2001:db8::1")
		run(t, usual(w, f), 1)
		time.Sleep(time.Second)
		f.set(func() {
			f.zone[rota.Key{Name: "www.example.test.", Type: rota.TypeAAAA}] = rota.RRset{
				Name: "www.example.test.", Type: rota.TypeAAAA, TTL: 30, Data: []string{"2001:db8::1", "2001:db8::99"},
			}
		})
		w.respec(func(s *rota.Spec) { s.Services[0].Endpoints = s.Services[0].Endpoints[:1] })
		time.Sleep(2 * time.Second)
		if got := f.dump(); got != "[www.example.test 30 A 192.0.2.1 www.example.test 30 AAAA 2001:db8::99]" {
			t.Errorf("the zone is %s", got)
		}
	})
}

// TestOracle drives a publisher through random events, faults and edits, while an oracle that knows nothing of selection or plans
// keeps its own books of what may and must be there.
func TestOracle(t *testing.T) {
	pool := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"}
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 7).Draw(rt, "what"), rapid.IntRange(0, 9).Draw(rt, "which"), rapid.IntRange(0, 5000).Draw(rt, "ms")}
		}), 1, 25).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			other := rota.RRset{Name: "other.example.test.", Type: rota.TypeA, TTL: 9, Data: []string{"198.51.100.1"}}
			beside := rota.RRset{Name: "www.example.test.", Type: rota.TypeTXT, TTL: 9, Data: []string{`"mine"`}}
			f := newFake(t, other, beside)
			f.allowed = func(c rota.Change) error {
				if c.Key().Name != "www.example.test." || c.Key().Type != rota.TypeA && c.Key().Type != rota.TypeAAAA {
					return fmt.Errorf("a foreign RRset is changed: %v", c)
				}
				if len(c.New.Data) == 0 {
					return fmt.Errorf("an RRset is emptied: %v", c)
				}
				for _, d := range c.New.Data {
					if !slices.Contains(pool, d) {
						return fmt.Errorf("an address that is not configured: %v", c)
					}
				}
				return nil
			}
			w := newWorld(t, service("www.example.test", pool...)).up(pool...)
			p := run(t, usual(w, f), 1)
			time.Sleep(2 * time.Second)
			books := map[string]bool{}
			for _, a := range pool {
				books[a] = true
			}
			for _, s := range steps {
				a := pool[s[1]%len(pool)]
				switch s[0] {
				case 0, 1:
					w.down(a)
					books[a] = false
				case 2, 3:
					w.up(a)
					books[a] = true
				case 4:
					f.set(func() { f.faults = append(f.faults, fault(s[1]%7)) })
				case 5:
					f.set(func() { f.dark = s[1]%2 == 0 })
				case 6:
					f.release()
				case 7:
					f.set(func() {
						f.zone[rota.Key{Name: "www.example.test.", Type: rota.TypeA}] = rota.RRset{
							Name: "www.example.test.", Type: rota.TypeA, TTL: 77, Data: []string{"203.0.113.1"},
						}
					})
				}
				time.Sleep(time.Duration(s[2]) * time.Millisecond)
			}
			f.set(func() { f.dark, f.faults = false, nil })
			time.Sleep(3 * time.Minute)
			f.release()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			for t4, family := range map[rota.Type][]string{rota.TypeA: pool[:3], rota.TypeAAAA: pool[3:]} {
				var up []string
				for _, a := range family {
					if books[a] {
						up = append(up, a)
					}
				}
				got := f.data("www.example.test.", t4)
				if len(up) > 0 && !slices.Equal(got, up) || len(got) == 0 {
					t.Errorf("%v is %v, the books say %v", t4, got, up)
				}
			}
			f.set(func() {
				if !f.zone[other.Key()].Equal(other) || !f.zone[beside.Key()].Equal(beside) {
					t.Error("foreign records changed")
				}
			})
			if s := p.Status().Zones[0]; len(s.Reasons) > 0 || s.Drift != 0 {
				t.Errorf("status %+v", s)
			}
		})
		if t.Failed() {
			rt.Fatalf("steps %v", steps)
		}
	})
}

// muddled loses the answer to one write and then says SERVFAIL to the read that looks what became of it.
type muddled struct {
	*fake
	stage int // 1: the next write; 2: the next read
}

func (m *muddled) Write(ctx context.Context, b Batch) (int, error) {
	if m.stage == 1 && len(b.Changes) > 0 {
		m.stage = 2
		return len(b.Changes), silence(true)
	}
	return m.fake.Write(ctx, b)
}

func (m *muddled) Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	if m.stage == 2 {
		m.stage = 3
		return Reading{}, &Reason{Code: CodeServfail, Transient: true, Text: "SERVFAIL"}
	}
	return m.fake.Read(ctx, zone, keys)
}

// A failed read after a lost answer says nothing against the name: it is written as soon as the server answers.
func TestReadFailsAfterLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
		m := &muddled{fake: newFake(t), stage: 1}
		p := run(t, usual(w, m), 1)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if m.data("www.example.test.", rota.TypeA) == nil {
			t.Errorf("not written yet: %+v", p.Status().Zones[0])
		}
	})
}

// Of a service that is held nothing is said: its records stay as they are, and no other service waits for it. When the hold ends it is
// published like any other.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, service("held.example.test", "192.0.2.1"), service("free.example.test", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		f := newFake(t)
		var held atomic.Bool
		held.Store(true)
		o := usual(w, f)
		o.Hold = func(n rota.Name) bool { return held.Load() && n == "held.example.test." }
		r := run(t, o, 1)
		defer r.stop()
		time.Sleep(time.Minute)
		if got := f.data("held.example.test.", rota.TypeA); len(got) != 0 {
			t.Errorf("a held service was published as %v", got)
		}
		if got := f.data("free.example.test.", rota.TypeA); len(got) != 1 {
			t.Errorf("the other service has %v, want its address", got)
		}
		held.Store(false)
		w.up("192.0.2.2") // something changed
		time.Sleep(time.Minute)
		if got := f.data("held.example.test.", rota.TypeA); len(got) != 1 {
			t.Errorf("after the hold it has %v, want its address", got)
		}
	})
}

// slow is a DNS that takes its time for each write.
type slow struct {
	*fake
	takes time.Duration
}

func (s slow) Write(ctx context.Context, b Batch) (int, error) {
	time.Sleep(s.takes)
	return s.fake.Write(ctx, b)
}

// A DNS that takes long for what was wanted is not kept from what is wanted now.
func TestNewestWinsInALongWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []rota.Service
		for i := range 200 {
			services = append(services, service(fmt.Sprintf("s%03d.example.test", i), "192.0.2.1", "192.0.2.2"))
		}
		f := newFake(t)
		w := newWorld(t, services...).up("192.0.2.1", "192.0.2.2")
		f.caps.Batch = 1
		p := run(t, usual(w, slow{f, 5 * time.Second}), 1)
		time.Sleep(time.Hour)
		holding := func(a string) int { return strings.Count(f.dump(), a) }
		if n := holding("192.0.2.1"); n != 200 {
			t.Fatalf("%d names, want 200", n)
		}
		w.down("192.0.2.1")
		time.Sleep(time.Minute)
		w.up("192.0.2.1").down("192.0.2.2")
		time.Sleep(40 * time.Second)
		if n, m := holding("192.0.2.1"), holding("192.0.2.2"); n < 180 || m == 200 {
			t.Errorf("%d names have what lives again and %d what died since", n, m)
		}
		if s := p.Status().Zones[0]; s.LastSuccess.After(time.Now().Add(-time.Minute)) {
			t.Errorf("what is half done is called a success of %v", s.LastSuccess)
		}
		time.Sleep(30 * time.Minute)
		if n, m := holding("192.0.2.1"), holding("192.0.2.2"); n != 200 || m != 0 {
			t.Errorf("in the end %d names have what lives and %d what does not", n, m)
		}
		if s := p.Status().Zones[0]; len(s.Reasons) > 0 || s.Drift > 0 {
			t.Errorf("status %+v", s)
		}
	})
}

// What is wrong is logged when it begins, not at each try: not even where the time to wait shrinks.
func TestOneTroubleIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var lines strings.Builder
		v := service("www.example.test", "192.0.2.1")
		o := usual(newWorld(t, v).up("192.0.2.1"), f)
		o.Log = slog.New(slog.NewTextHandler(&lines, nil))
		end := time.Now().Add(20 * time.Minute)
		patient := func() error {
			return &Reason{Code: CodeRateLimited, Transient: true, After: time.Until(end), Text: "429"}
		}
		o.Backend = nothingBut{f, patient}
		p := run(t, o, 1)
		time.Sleep(19 * time.Minute)
		p.stop()
		if n := strings.Count(lines.String(), "429"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, lines.String())
		}
		lines.Reset()
		v.Zone = ""
		o.Source = newWorld(t, v).up("192.0.2.1")
		end = time.Now().Add(20 * time.Minute)
		p = run(t, o, 2)
		time.Sleep(19 * time.Minute)
		p.stop()
		if n := strings.Count(lines.String(), "429"); n != 1 {
			t.Errorf("a zone that is not found is logged %d times:\n%s", n, lines.String())
		}
	})
}

// nothingBut is a DNS that answers nothing but an error.
type nothingBut struct {
	*fake
	why func() error
}

func (r nothingBut) Zone(context.Context, rota.Name) (rota.Name, error) { return "", r.why() }

func (r nothingBut) Read(context.Context, rota.Name, []rota.Key) (Reading, error) {
	return Reading{}, r.why()
}

// Names that come and go leave nothing behind.
func TestForgetsNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		v := service("www.example.test", "192.0.2.1")
		v.Zone = ""
		w := newWorld(t, v).up("192.0.2.1")
		p := run(t, usual(w, f), 1)
		time.Sleep(time.Minute)
		for i := range 50 {
			w.respec(func(s *rota.Spec) { s.Services[0].Name = rota.MustParseName(fmt.Sprintf("s%d.example.test", i)) })
			f.set(func() { f.poison = rota.Name(fmt.Sprintf("s%d.example.test.", i)) })
			time.Sleep(time.Minute)
		}
		w.respec(func(s *rota.Spec) { s.Services[0].Name = v.Name })
		time.Sleep(5 * time.Minute)
		p.stop()
		if n, m := len(p.zoneOf), len(p.zones["example.test."].refused); n != 1 || m != 0 {
			t.Errorf("it knows the zones of %d names and what was refused of %d", n, m)
		}
	})
}
