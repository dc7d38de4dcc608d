package probe

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// gaps returns the times between the probes of a target that began in a part of the time, in whole seconds.
func (w *world) gaps(id rota.TargetID, from, to time.Duration) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []int
	last := time.Duration(-1)
	for _, at := range w.started[id] {
		if at < from || at > to {
			continue
		}
		if last >= 0 {
			out = append(out, int((at-last).Round(time.Second)/time.Second))
		}
		last = at
	}
	return out
}

// all reports whether there are values, and all lie in the range.
func all(vs []int, least, most int) bool {
	return len(vs) > 0 && slices.Min(vs) >= least && slices.Max(vs) <= most
}

// What has long been down is asked every slow interval, and every interval again from its first success.
func TestScheduleSlowAfterLongDown(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(50)
		began, back := time.Now(), 40*time.Minute
		w.answer = func(rota.TargetID, int) finding {
			if at := time.Since(began); at > time.Minute && at < back {
				return down(rota.ClassRefused, "connect: refused")
			}
			return up("fine")
		}
		p.Set(ts)
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		perSecond := map[time.Duration]int{}
		for _, target := range ts {
			if g := w.gaps(target.ID, 2*time.Minute, 11*time.Minute); !all(g, 9, 11) {
				t.Fatalf("in the first ten minutes down: %v", g)
			}
			if g := w.gaps(target.ID, 13*time.Minute, back); !all(g, 28, 32) {
				t.Fatalf("long down: %v", g)
			}
			if g := w.gaps(target.ID, back, back+35*time.Second); !slices.Contains(g, 1) {
				t.Fatalf("back: %v, want the fast interval while that is proven", g)
			}
			if g := w.gaps(target.ID, back+45*time.Second, 45*time.Minute); !all(g, 9, 11) {
				t.Fatalf("up again: %v", g)
			}
			for _, at := range w.started[target.ID] {
				if at > 20*time.Minute && at < 39*time.Minute {
					perSecond[at.Truncate(10*time.Second)%(30*time.Second)]++
				}
			}
		}
		for at, n := range perSecond { // 50 targets over 38 slow intervals: about 630 in each third
			if n < 200 {
				t.Errorf("%d probes in the third of the slow interval at %v: those that fell at once stay together", n, at)
			}
		}
	})
}

// What nothing depends on is asked every slow interval, whatever it answers, and keeps its streak when that changes.
func TestScheduleLazy(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		began := time.Now()
		w.answer = func(rota.TargetID, int) finding {
			if at := time.Since(began); at > 10*time.Minute && at < 15*time.Minute && at.Truncate(time.Minute)%(2*time.Minute) == 0 {
				return down(rota.ClassRefused, "connect: refused")
			}
			return up("fine")
		}
		ts := targets(30)
		p.Set(ts)
		time.Sleep(5 * time.Minute)
		lazy := slices.Clone(ts)
		for i := range lazy {
			lazy[i].Lazy = true
		}
		before := p.Report()
		p.Set(lazy)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(p.Report().Opinions, before.Opinions) {
			t.Error("another opinion although only the rate is another")
		}
		time.Sleep(14 * time.Minute)
		synctest.Wait()
		for _, o := range p.Report().Opinions {
			if g := w.gaps(o.Target, 6*time.Minute, 20*time.Minute); !all(g, 28, 32) {
				t.Fatalf("while nothing depends on it: %v", g)
			}
		}
		p.Set(ts)
		synctest.Wait()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		for _, target := range ts {
			g := w.gaps(target.ID, 20*time.Minute, 25*time.Minute)
			w.mu.Lock()
			first := w.started[target.ID][slices.IndexFunc(w.started[target.ID], func(at time.Duration) bool { return at >= 20*time.Minute })]
			w.mu.Unlock()
			// From the first probe on it finds its place in the grid, which may come soon after.
			if first > 20*time.Minute+11*time.Second || g[0] > 11 || !all(g[1:], 9, 11) {
				t.Fatalf("something depends on it again: first %v after, then %v", first-20*time.Minute, g)
			}
		}
	})
}

// What an endpoint says of itself acts with the probe that hears it.
func TestScheduleSaidActsAtOnce(t *testing.T) {
	for name, said := range map[string]finding{
		"draining": {status: rota.Draining, class: rota.ClassSaid, reason: "it drains"},
		"down":     {status: rota.Down, class: rota.ClassSaid, reason: "maint", sure: true},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, Options{}, func(p *Prober, w *world) {
				ts := targets(1)
				w.answer = func(_ rota.TargetID, n int) finding {
					if n == 5 {
						return said
					}
					return finding{status: rota.Up, class: rota.ClassOK, reason: "fine", weight: uint8(30 + n%2)}
				}
				p.Set(ts)
				for p.Stats().Kinds == nil || probes(w, ts[0].ID) < 6 {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
					if o := p.Report().Opinions; len(o) == 1 && o[0].Status == rota.Up && o[0].Weight != 30 {
						t.Fatalf("%+v", o[0])
					}
				}
				time.Sleep(20 * time.Millisecond)
				synctest.Wait()
				o := p.Report().Opinions[0]
				if o.Status != said.status || o.Reason != said.reason || o.Weight != 0 {
					t.Errorf("with the answer: %+v", o)
				}
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if o := p.Report().Opinions[0]; o.Status != rota.Up || o.Weight != 30 {
					t.Errorf("after successes: %+v", o)
				}
				if n := p.Stats().Kinds[0].Changes; n != 3 {
					t.Errorf("%d changes of opinion, want up, %s, up", n, name)
				}
			})
		})
	}
}

func probes(w *world, id rota.TargetID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.started[id])
}

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

// P5: a target that flaps without going down is said and counted, not once a target and flap.
func TestP5_DampedFlappingShows(t *testing.T) {
	var log lines
	scene(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(p *Prober, w *world) {
		w.answer = func(_ rota.TargetID, n int) finding {
			if n%6 == 5 {
				return down(rota.ClassTimeout, "no answer")
			}
			return up("fine")
		}
		p.Set(targets(100))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
	})
	said, opinions := 0, 0
	for _, line := range log.all {
		if strings.Contains(line, "flapping damped") {
			said++
		}
		if strings.Contains(line, "opinion changed") {
			opinions++
		}
	}
	if said < 5 || said > 11 || opinions != 100 {
		t.Errorf("%d lines of damped flapping in ten minutes, %d changed opinions of 100 targets", said, opinions)
	}
}

func TestForgivenIsCounted(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		w.answer = func(_ rota.TargetID, n int) finding {
			if n == 4 || n == 5 || n == 20 {
				return down(rota.ClassTimeout, "no answer")
			}
			return up("fine")
		}
		p.Set(targets(3))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := p.Stats().Kinds[0]; s.Forgiven != 6 || s.Changes != 3 {
			t.Errorf("forgiven %d times, %d changes, want two of each target and its first opinion", s.Forgiven, s.Changes)
		}
	})
}

func TestWeightSteps(t *testing.T) {
	last := uint8(0)
	var got []uint8
	for _, w := range []uint8{50, 52, 54, 55, 53, 51, 50, 1, 2, 4, 6, 99, 97, 96, 95, 200, 0, 3} {
		last = step(last, w)
		got = append(got, last)
	}
	if want := []uint8{50, 50, 50, 55, 55, 55, 50, 5, 5, 5, 5, 100, 100, 100, 95, 100, 0, 5}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
