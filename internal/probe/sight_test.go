package probe

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// What was seen up and failed since is counted, and what never was up, or could not be seen, is not.
func TestSight(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	seen := func(s rota.Status, n int) rota.Observation { return rota.Observation{Status: s, At: at(n)} }
	s, e := &sight{}, &eyes{}
	for i, c := range []struct {
		see      rota.Status
		moved    int
		up, down int // seconds; 0: not set
	}{
		{rota.Down, 0, 0, 0}, // it never was up
		{rota.Unknown, 0, 0, 0},
		{rota.Up, 0, 3, 0},
		{rota.Unknown, 0, 3, 0},
		{rota.Down, 1, 3, 5},
		{rota.Down, 0, 3, 5}, // the first failure counts
		{rota.Unknown, 0, 3, 5},
		{rota.Up, -1, 8, 0},
		{rota.Up, 0, 9, 0},
		{rota.Draining, 0, 10, 0}, // it was seen, and has not fallen
		{rota.Down, 1, 10, 11},
		{rota.Draining, -1, 12, 0},
	} {
		was := e.fell
		e.see(s, seen(c.see, i+1))
		if got := e.fell - was; got != c.moved {
			t.Errorf("%d: %v moved %d, want %d", i+1, c.see, got, c.moved)
		}
		is := func(got time.Time, want int) bool {
			return want == 0 && got.IsZero() || want != 0 && got.Equal(at(want))
		}
		if !is(s.up, c.up) || !is(s.down, c.down) {
			t.Errorf("%d: up %v, down %v, want %d, %d", i+1, s.up, s.down, c.up, c.down)
		}
	}
}

// fallen counts by hand what Fallen keeps count of.
func fallen(p *Prober) int {
	n := 0
	for _, s := range p.Sights(func(rota.TargetID) bool { return false }) {
		if !s.Down.IsZero() {
			n++
		}
	}
	return n
}

func TestSights(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(20)
		dead := ts[:0:0]
		w.answer = func(id rota.TargetID, _ int) finding {
			if slices.ContainsFunc(dead, func(t rota.Target) bool { return t.ID == id }) {
				return down(rota.ClassTimeout, "no answer")
			}
			return up("fine")
		}
		kill := func(ts []rota.Target) {
			w.mu.Lock()
			dead = ts
			w.mu.Unlock()
		}
		check := func(what string, want, of int) {
			t.Helper()
			synctest.Wait()
			all := p.Sights(func(rota.TargetID) bool { return false })
			if p.Fallen() != want || fallen(p) != want || len(all) != of {
				t.Errorf("%s: %d fallen, %d by hand, of %d; want %d of %d", what, p.Fallen(), fallen(p), len(all), want, of)
			}
		}
		p.Set(ts)
		time.Sleep(15 * time.Second)
		check("all are up", 0, 20)
		kill(ts[:12])
		time.Sleep(12 * time.Second)
		check("twelve failed", 12, 20)

		// Only what fell is asked about, and said to be shared.
		asked := 0
		shared := 0
		for _, s := range p.Sights(func(id rota.TargetID) bool { asked++; return id == ts[3].ID }) {
			if s.Shared {
				shared++
				if s.Address != ts[3].Address || s.Up.IsZero() || !s.Down.After(s.Up) {
					t.Errorf("%+v", s)
				}
			}
		}
		if asked != 12 || shared != 1 {
			t.Errorf("asked of %d, %d shared", asked, shared)
		}

		p.Set(ts[2:])
		check("two of those that fell are gone", 10, 18)
		p.Set(ts)
		check("they came back and were not seen up since", 10, 20)
		time.Sleep(30 * time.Second)
		check("nor seen at all", 10, 20)
		kill(nil)
		time.Sleep(12 * time.Second)
		check("all are up again", 0, 20)
		p.Set(nil)
		check("nothing is left", 0, 0)
	})
}

// P19. What this machine cannot do any more takes the sight of what it has seen; what it never saw, or cannot read, does not count.
func TestBlind(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(20)
		answer := func(f func(i int) finding) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.answer = func(id rota.TargetID, _ int) finding {
				return f(slices.IndexFunc(ts, func(t rota.Target) bool { return t.ID == id }))
			}
		}
		check := func(what string, want Blind) {
			t.Helper()
			time.Sleep(15 * time.Second)
			synctest.Wait()
			if got := p.Blind(); got != want {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
		}
		noRoute := unknown(rota.ClassUnroutable, "no route")
		answer(func(i int) finding {
			switch {
			case i < 8:
				return noRoute
			case i < 10:
				return draining("it leaves")
			case i < 15:
				return down(rota.ClassRefused, "refused")
			}
			return up("fine")
		})
		p.Set(ts)
		check("eight were never within reach", Blind{Seen: 12})
		full := unknown(rota.ClassResource, "no descriptor left")
		answer(func(int) finding { return full })
		check("nothing can be opened", Blind{12, 12, rota.ClassResource, "no descriptor left"})
		answer(func(int) finding { return lacking("client_key: no such file") })
		check("what checks need is missing", Blind{Seen: 12, Why: "no descriptor left"})
		answer(func(i int) finding {
			switch {
			case i < 16:
				return unknown(rota.ClassPermission, "not permitted")
			case i < 18:
				return unknown(rota.ClassExporter, "it cannot be read")
			}
			return full
		})
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if b := p.Blind(); b.Seen != 12 || b.Lost != 10 || b.Class != rota.ClassPermission {
			t.Errorf("most may not: %+v", b)
		}
		p.Set(ts[:12])
		synctest.Wait()
		if b := p.Blind(); b.Seen != 4 || b.Lost != 4 {
			t.Errorf("fewer are watched: %+v", b)
		}
		answer(func(int) finding { return up("fine") })
		check("all is well", Blind{Seen: 12, Why: p.Blind().Why})
	})
}

// What a probe found of a target that was dropped and wanted again meanwhile is nobody's sight.
func TestSightOfReplaced(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(1)
		p.Set(ts)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		old := p.Sights(func(rota.TargetID) bool { return false })[0]
		if old.Up.IsZero() {
			t.Fatal("it was not seen")
		}
		// A probe that takes its time, and fails.
		w.mu.Lock()
		w.took, w.answer = 2*time.Second, func(rota.TargetID, int) finding { return down(rota.ClassTimeout, "no answer") }
		w.mu.Unlock()
		for w.inFlight() == 0 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		p.Set(nil)
		p.Set(ts)
		synctest.Wait()
		w.mu.Lock()
		w.took, w.answer = time.Millisecond, func(rota.TargetID, int) finding { return up("fine") }
		w.mu.Unlock()
		if now := p.Sights(func(rota.TargetID) bool { return false }); len(now) != 1 || p.Fallen() != 0 || !now[0].Down.IsZero() {
			t.Errorf("%+v, %d fallen", now, p.Fallen())
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if now := p.Sights(func(rota.TargetID) bool { return false })[0]; !now.Up.After(old.Up) || !now.Down.IsZero() || p.Fallen() != 0 {
			t.Errorf("%+v after %+v, %d fallen", now, old, p.Fallen())
		}
	})
}

func (w *world) inFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flying)
}

// BenchmarkSights measures what a vantage pays twice a second while much has fallen, and what it remembers.
func BenchmarkSights(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := New(Options{})
			s := newScheduler(p, nil)
			p.Set(targets(n))
			s.apply()
			now := time.Now()
			for _, e := range s.order {
				p.eyes.see(e.sight, rota.Observation{Status: rota.Up, At: now})
				p.eyes.see(e.sight, rota.Observation{Status: rota.Down, At: now.Add(time.Second)})
			}
			b.ReportAllocs()
			for b.Loop() {
				rota.SelfDoubt(p.Sights(func(rota.TargetID) bool { return false }), now.Add(2*time.Second))
			}
		})
	}
}
