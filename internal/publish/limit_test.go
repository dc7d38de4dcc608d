package publish

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/rota-dns/rota/internal/rota"
)

// third is the usual budget.
var third = rota.MaxChange{Share: 0.3, Per: 10 * time.Minute, MinRecords: 10}

// fleet is services s00, s01, … with the same endpoints, at sites a, b, c, ….
func fleet(n int, safety func(*rota.Safety), addrs ...string) []rota.Service {
	var out []rota.Service
	for i := range n {
		v := service(fmt.Sprintf("s%02d.example.test", i), addrs...)
		v.Safety.MaxChange = third
		if safety != nil {
			safety(&v.Safety)
		}
		for j := range v.Endpoints {
			v.Endpoints[j].Site = string(rune('a' + j))
		}
		out = append(out, v)
	}
	return out
}

// planned is what a zone that said what have says would become.
func planned(w *world, have []rota.RRset, left leavings) ZonePlan {
	d := desire{state: w.State(), orders: ordersOf(w.State().Instructions(testPublisher, "example.test."), time.Now())}
	for x := range w.State().Wants(testPublisher) {
		d.wants = append(d.wants, x)
	}
	r := Reading{Sets: have}
	return d.limit(d.plan("example.test.", r), r, left, time.Now())
}

// wanted is what the DNS says when it says all that the state wants.
func wanted(w *world) []rota.RRset {
	var out []rota.RRset
	for x := range w.State().Wants(testPublisher) {
		if len(x.Set.Data) > 0 {
			out = append(out, x.Set)
		}
	}
	return out
}

func gone(changes []rota.Change) (n int) {
	for _, c := range changes {
		n += len(c.Removed())
	}
	return n
}

func heldOf(p ZonePlan) (n int) {
	for _, h := range p.Held {
		n += len(h.Change.Removed())
	}
	return n
}

func (w *world) say(id rota.EndpointID, a rota.Action) {
	w.t.Helper()
	w.apply(rota.Event{Kind: rota.EventOverride, Actor: "ann", Reason: "test", Overrides: []rota.Override{{
		Endpoint: id, Action: a, Author: "ann", Reason: "test", Set: time.Now(), Expires: time.Now().Add(time.Hour),
	}}})
}

func (w *world) order(x rota.Instruction) {
	w.t.Helper()
	if x.Publisher == "" {
		x.Publisher, x.Zone = testPublisher, "example.test."
	}
	w.apply(rota.Event{Kind: rota.EventInstruct, Actor: "ann", Reason: "test", Instruction: &x})
}

func TestLimit(t *testing.T) {
	const a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	all := []string{a, b, c}
	fallback := func(s *rota.Safety) { s.OnAllDown, s.Fallback = rota.OnAllDownFallback, "sorry.example.test." }
	cases := []struct {
		name     string
		services []rota.Service
		left     int // records that left a minute ago
		then     func(*world)
		out      int // records that leave
		held     int
		why      string
	}{
		{"nothing leaves", fleet(6, nil, all...), 0, func(*world) {}, 0, 0, ""},
		{"a site dies", fleet(6, nil, all...), 0, func(w *world) { w.down(a) }, 5, 1, "5 of 18 records already left in the last 10m, allowed 30 %: 5; rota apply --force releases it"},
		{"some left before", fleet(6, nil, all...), 3, func(w *world) { w.down(a) }, 3, 3, "6 of 21 records already left"},
		{"more left before than may", fleet(6, nil, all...), 9, func(w *world) { w.down(a) }, 0, 6, "9 of 27"},
		{"a small zone has no limit", fleet(3, nil, all...), 0, func(w *world) { w.down(a) }, 3, 0, ""},
		{"a zone that was not small a minute ago has", fleet(3, nil, all...), 2, func(w *world) { w.down(a) }, 1, 2, "3 of 11"},
		{"a share of nothing", fleet(6, func(s *rota.Safety) { s.MaxChange.Share = 0 }, all...), 0, func(w *world) { w.down(a) }, 0, 6, "allowed 0 %: 0"},
		{"a tiny share is one record", fleet(6, func(s *rota.Safety) { s.MaxChange.Share = 0.01 }, all...), 0, func(w *world) { w.down(a) }, 1, 5, "allowed 1 %: 1"},
		{"no limit", fleet(6, func(s *rota.Safety) { s.MaxChange.Share = 1 }, all...), 0, func(w *world) { w.down(a) }, 6, 0, ""},
		{"a person drains", fleet(6, nil, all...), 0, func(w *world) {
			for i := range 6 {
				w.say(rota.EndpointID{Service: rota.Name(fmt.Sprintf("s%02d.example.test.", i)), Address: netip.MustParseAddr(a)}, rota.ActionDrain)
			}
		}, 6, 0, ""},
		{"a person drains and others die", fleet(6, nil, all...), 0, func(w *world) {
			for i := range 6 {
				w.say(rota.EndpointID{Service: rota.Name(fmt.Sprintf("s%02d.example.test.", i)), Address: netip.MustParseAddr(a)}, rota.ActionDrain)
			}
			w.down(b)
		}, 11, 1, "5 of 18"},
		{"an edit", fleet(6, nil, all...), 0, func(w *world) {
			w.respec(func(s *rota.Spec) {
				for i := range s.Services {
					s.Services[i].Endpoints = s.Services[i].Endpoints[1:]
				}
			})
		}, 5, 1, "5 of 18"},
		{"released", fleet(6, nil, all...), 0, func(w *world) {
			w.down(a)
			w.order(rota.Instruction{Verb: rota.VerbApply, Names: []rota.Name{"s00.example.test.", "s05.example.test."}})
		}, 5, 1, "5 of 18"},
		{"all released", fleet(6, nil, all...), 9, func(w *world) {
			w.down(a)
			var names []rota.Name
			for i := range 6 {
				names = append(names, rota.Name(fmt.Sprintf("s%02d.example.test.", i)))
			}
			w.order(rota.Instruction{Verb: rota.VerbApply, Names: names})
		}, 6, 0, ""},
		{"fallbacks come whole", fleet(6, fallback, all...), 0, func(w *world) { w.down(all...) }, 3, 15, "3 of 18"},
		{"all of a site say that they drain", fleet(6, nil, all...), 0, func(w *world) { w.judge(rota.Draining, a) }, 5, 1, "5 of 18"},
		{"one site says that it drains", fleet(3, func(s *rota.Safety) { s.MaxSites = 1 }, all...), 0, func(w *world) {
			w.judge(rota.Draining, a)
			w.down(b)
		}, 3, 3, "takes out those of a;"},
		{"one site", fleet(3, func(s *rota.Safety) { s.MaxSites = 1 }, all...), 0, func(w *world) { w.down(a, b) }, 3, 3, "health may take out endpoints of 1 sites at once and takes out those of a;"},
		{"two sites", fleet(3, func(s *rota.Safety) { s.MaxSites = 2 }, all...), 0, func(w *world) { w.down(a, b) }, 6, 0, ""},
		{"sites and people", fleet(3, func(s *rota.Safety) { s.MaxSites = 1 }, all...), 0, func(w *world) {
			w.say(rota.EndpointID{Service: "s00.example.test.", Address: netip.MustParseAddr(b)}, rota.ActionForceDown)
			w.down(a)
		}, 4, 0, ""},
	}
	for _, x := range cases {
		t.Run(x.name, func(t *testing.T) {
			w := newWorld(t, x.services...).up(all...)
			have := wanted(w)
			left := leavings{}
			for i := range x.left {
				left[record{rota.Key{Name: "s00.example.test.", Type: rota.TypeA}, fmt.Sprintf("198.51.100.%d", i)}] = time.Now().Add(-time.Minute)
			}
			x.then(w)
			p := planned(w, have, left)
			why := ""
			if len(p.Held) > 0 {
				why = p.Held[0].Why
			}
			if gone(p.Changes) != x.out || heldOf(p) != x.held || !strings.Contains(why, x.why) {
				t.Errorf("%d records leave and %d are held (%q), want %d and %d (%q)\n%v\n%v", gone(p.Changes), heldOf(p), why, x.out, x.held, x.why, p.Changes, p.Held)
			}
			if held := len(p.Reasons) > 0 && p.Reasons[0].Code == CodeHeld; held != (x.held > 0) {
				t.Errorf("reasons %v", p.Reasons)
			}
		})
	}
}

// What is held keeps what leaves beside what is new, and prefers to lose the dead.
func TestHeldKeepsTheLiving(t *testing.T) {
	old := service("www.example.test", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
	old.Safety.MaxChange = rota.MaxChange{Share: 0.3, Per: time.Minute}
	w := newWorld(t, old).up("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
	have := wanted(w)
	w.respec(func(s *rota.Spec) {
		s.Services[0].Endpoints = append(s.Services[0].Endpoints[2:], service("x.test", "192.0.2.9").Endpoints...)
	})
	w.up("192.0.2.9").down("192.0.2.4")
	p := planned(w, have, leavings{})
	if got := fmt.Sprint(p.Changes); got != "[www.example.test A -192.0.2.4 +192.0.2.9]" {
		t.Errorf("changes %s", got)
	}
	if got := fmt.Sprint(p.Held[0].Change); got != "www.example.test A -192.0.2.1 -192.0.2.2" {
		t.Errorf("held %s", got)
	}
}

// min_published holds although the hub had forgotten it.
func TestMinPublished(t *testing.T) {
	v := service("www.example.test", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	w := newWorld(t, v).up("192.0.2.1", "192.0.2.2", "192.0.2.3")
	have := wanted(w)
	w.down("192.0.2.1", "192.0.2.2")
	d := desire{state: w.State(), wants: slices.Collect(w.State().Wants(testPublisher))}
	r := Reading{Sets: have}
	plan := d.plan("example.test.", r)
	w.respec(func(s *rota.Spec) { s.Services[0].Safety.MinPublished = 2 })
	for _, x := range []struct {
		name   string
		change func(*rota.Service)
		out    int
	}{
		{"two", func(*rota.Service) {}, 1},
		{"more than there are", func(v *rota.Service) { v.Safety.MinPublished = 9 }, 0},
		{"fewer answers", func(v *rota.Service) { v.Policy.Answers = 1 }, 2},
		{"a tier of one", func(v *rota.Service) { v.Endpoints[2].Priority = 7 }, 2},
	} {
		w.respec(func(s *rota.Spec) { x.change(&s.Services[0]) })
		d.state = w.State()
		p := d.limit(plan, r, leavings{}, time.Now())
		if gone(p.Changes) != x.out || heldOf(p) != 2-x.out {
			t.Errorf("%s: %v leave and %v are held, want %d to leave", x.name, p.Changes, p.Held, x.out)
		}
		w.respec(func(s *rota.Spec) {
			s.Services[0] = v
			s.Services[0].Safety.MinPublished = 2
		})
	}
}

// What should have come back and did not is still out: a DNS in trouble lets no more go than one that works.
func TestBudgetInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
		w := newWorld(t, fleet(10, nil, addrs...)...).up(addrs...)
		f := newFake(t)
		run(t, usual(w, f), 1)
		time.Sleep(time.Minute)
		w.down(addrs[0])
		time.Sleep(10 * time.Second)
		f.set(func() { f.faults = []fault{failed} })
		w.up(addrs[0])
		time.Sleep(50 * time.Millisecond)
		w.down(addrs[0], addrs[1])
		time.Sleep(time.Minute)
		if n := strings.Count(f.dump(), "192.0.2."); n < 21 {
			t.Errorf("%d records are left, want at least 21 of 30", n)
		}
	})
}

// A budget is the zone's, not the leader's: a new one goes on where the old one stopped, a plan shows the same, and time frees it.
func TestBudgetSurvivesLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
		w := newWorld(t, fleet(10, nil, addrs...)...).up(addrs...)
		f := newFake(t)
		o := usual(w, f)
		var past []Past
		o.Record = func(_ context.Context, p rota.Published) error {
			past = append(past, Past{time.Now(), p})
			return nil
		}
		o.Recent = func(rota.Name) []Past { return slices.Clone(past) }
		records := func() int { return strings.Count(f.dump(), "192.0.2.") }
		a := run(t, o, 1)
		time.Sleep(time.Minute)
		w.down(addrs[0])
		time.Sleep(time.Minute)
		if n := records(); n != 21 {
			t.Fatalf("%d records, want 21 of 30", n)
		}
		s := a.Status().Zones[0]
		if len(s.Held) != 1 || s.Reasons[0].Code != CodeHeld || s.Drift != 1 {
			t.Errorf("status %+v", s)
		}
		for leading := range 2 {
			p, err := a.Plan(t.Context())
			if err != nil || len(p.Zones[0].Changes) != 0 || len(p.Zones[0].Held) != 1 || p.Zones[0].Held[0].Why != s.Held[0].Why {
				t.Errorf("plan %+v, %v, want what the status says: %+v", p, err, s.Held)
			}
			if leading == 0 {
				a.stop()
			}
		}
		run(t, o, 2)
		time.Sleep(time.Minute)
		if n := records(); n != 21 {
			t.Errorf("a new leader leaves %d records", n)
		}
		w.order(rota.Instruction{Verb: rota.VerbApply, Names: []rota.Name{s.Held[0].Change.Key().Name}})
		time.Sleep(2 * time.Second)
		if n := records(); n != 20 {
			t.Errorf("after apply there are %d records", n)
		}
		w.down(addrs[1])
		time.Sleep(time.Minute)
		if n := records(); n != 19 {
			t.Errorf("with nothing left to spend there are %d records, want only those of the released name to go", n)
		}
		time.Sleep(10 * time.Minute)
		if n := records(); n != 14 {
			t.Errorf("ten minutes later there are %d records, want 30 %% less than 19 and rounded up", n)
		}
		w.up(addrs[0])
		time.Sleep(time.Minute)
		if n := records(); n != 21 {
			t.Errorf("what came back is not spent: %d records, want 30 - 9", n)
		}
	})
}

// TestBudgetOracle drives a zone through random verdicts, edits of people and time, and keeps books of its own: at no write may automation
// have out more than its share of what the zone held, and what is published always includes what is alive.
func TestBudgetOracle(t *testing.T) {
	const services, each = 5, 4
	addr := func(i, j int) string { return fmt.Sprintf("192.0.2.%d", i*16+j+1) }
	rapid.Check(t, func(rt *rapid.T) {
		share := rapid.SampledFrom([]float64{0.1, 0.3, 0.5}).Draw(rt, "share")
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 4).Draw(rt, "what"), rapid.IntRange(0, services*each-1).Draw(rt, "which"), rapid.IntRange(0, 200).Draw(rt, "s")}
		}), 1, 40).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			var all []rota.Service
			var pool []string
			for i := range services {
				var addrs []string
				for j := range each {
					addrs = append(addrs, addr(i, j))
				}
				pool = append(pool, addrs...)
				v := service(fmt.Sprintf("s%d.example.test", i), addrs...)
				v.Safety.MaxChange = rota.MaxChange{Share: share, Per: 10 * time.Minute, MinRecords: 10}
				all = append(all, v)
			}
			f := newFake(t)
			w := newWorld(t, all...).up(pool...)
			down := map[string]bool{}
			left := map[string]time.Time{}
			f.allowed = func(c rota.Change) error {
				for _, x := range c.Removed() {
					left[x] = time.Now()
				}
				for _, x := range c.Added() {
					delete(left, x)
				}
				held := map[string]bool{}
				for k, set := range f.zone {
					for _, x := range set.Data {
						held[x] = k.Type == rota.TypeA
					}
				}
				out := 0
				for x, at := range left {
					if time.Since(at) < 10*time.Minute {
						out++
						held[x] = true
					}
				}
				base := 0
				for _, address := range held {
					if address {
						base++
					}
				}
				if len(c.Removed()) > 0 && base >= 10 && out > max(1, int(math.Floor(share*float64(base)+1e-9))) {
					return fmt.Errorf("%d of at most %d records are out after %v", out, base, c)
				}
				alive := 0
				for _, x := range c.New.Data {
					if !down[x] {
						alive++
					}
				}
				if i := slices.IndexFunc(pool, func(a string) bool {
					return !down[a] && strings.HasPrefix(string(c.Key().Name), fmt.Sprintf("s%d.", slices.Index(pool, a)/each)) && !slices.Contains(c.New.Data, a)
				}); i >= 0 {
					return fmt.Errorf("%v leaves out %s, which is up", c, pool[i])
				}
				if len(c.New.Data) == 0 {
					return fmt.Errorf("%v is empty", c)
				}
				return nil
			}
			p := run(t, usual(w, f), 1)
			time.Sleep(time.Minute)
			for _, s := range steps {
				a := pool[s[1]]
				switch s[0] {
				case 0, 1, 2:
					f.set(func() { down[a] = true })
					w.down(a)
				case 3:
					w.up(a)
					synctest.Wait()
					f.set(func() { delete(down, a) })
				}
				time.Sleep(time.Duration(s[2]) * time.Second)
			}
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			for i := range services {
				var up []string
				for j := range each {
					if !down[addr(i, j)] {
						up = append(up, addr(i, j))
					}
				}
				slices.Sort(up)
				if got := f.data(fmt.Sprintf("s%d.example.test.", i), rota.TypeA); len(up) > 0 && !slices.Equal(got, up) || len(got) == 0 {
					t.Errorf("s%d is %v in the end, the books say %v", i, got, up)
				}
			}
			if s := p.Status().Zones[0]; len(s.Held) > 0 {
				t.Errorf("still held: %v", s.Held)
			}
		})
		if t.Failed() {
			rt.Fatalf("share %v, steps %v", share, steps)
		}
	})
}

// What hosts registered belongs to no service: it counts, and what they left goes by the usual budget.
func TestLimitWithoutService(t *testing.T) {
	w := newWorld(t, fleet(3, func(s *rota.Safety) { s.MaxSites = 1 }, "192.0.2.1", "192.0.2.2")...).up("192.0.2.1", "192.0.2.2")
	d := desire{state: w.State(), wants: slices.Collect(w.State().Wants(testPublisher))}
	r := Reading{Sets: wanted(w)}
	for i := range 8 {
		name := rota.Name(fmt.Sprintf("t%d.example.test.", i))
		for typ, data := range map[rota.Type]string{rota.TypeA: "198.51.100.1", rota.TypePTR: "x.example.test."} {
			s := rota.RRset{Name: name, Type: typ, TTL: 30, Data: []string{data}}
			r.Sets = append(r.Sets, s)
			d.wants = append(d.wants, rota.Want{Service: name, Set: rota.RRset{Name: name, Type: typ, TTL: 30}, Drop: s.Data})
		}
	}
	p := d.decide("example.test.", r, leavings{}, time.Now())
	if gone(p.Changes) != 6 || heldOf(p) != 10 || !strings.Contains(p.Held[0].Why, "6 of 22 records") {
		t.Errorf("%d records leave and %d are held, want 6 and 10: %v", gone(p.Changes), heldOf(p), p)
	}
}
