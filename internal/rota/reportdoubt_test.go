package rota

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// watched is a vantage that probes addresses, one target each: at its own place in the interval, and faster while its mind changes.
type watched struct {
	timing  Timing
	sights  []Sight
	streaks []Streak
	due     []time.Time
}

func watch(rng *rand.Rand, n int) *watched {
	w := &watched{timing: DefaultTiming(), sights: make([]Sight, n), streaks: make([]Streak, n), due: make([]time.Time, n)}
	for i := range n {
		w.sights[i].Address = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		w.due[i] = epoch.Add(time.Duration(rng.Int64N(int64(w.timing.Interval))))
	}
	return w
}

// run probes until a time. dead says how long a probe of a target takes to fail, and that it does. each is called after every probe.
func (w *watched) run(until time.Time, dead func(i int, at time.Time) (time.Duration, bool), each func(i int, now time.Time, fell bool)) {
	for {
		next := 0
		for i := range w.due {
			if w.due[i].Before(w.due[next]) {
				next = i
			}
		}
		now := w.due[next]
		if now.After(until) {
			return
		}
		took, failed := dead(next, now)
		s := &w.sights[next]
		o := Observation{Status: Up, At: now.Add(took)}
		if failed {
			o.Status = Down
			if s.Down.IsZero() {
				s.Down = o.At
			}
		} else {
			s.Up, s.Down = o.At, time.Time{}
		}
		was := w.streaks[next].Status
		w.streaks[next] = w.streaks[next].Observe(o, w.timing)
		w.due[next] = now.Add(took + w.timing.Interval)
		if w.streaks[next].Pending(w.timing) {
			w.due[next] = now.Add(took + w.timing.FastInterval)
		}
		if each != nil {
			each(next, o.At, was == Up && w.streaks[next].Status == Down)
		}
	}
}

const dies = 20 * time.Second // when the fault begins

// fault makes a share of the addresses fail from dies on, each after some time.
func fault(share float64, n int, took time.Duration) func(int, time.Time) (time.Duration, bool) {
	return func(i int, at time.Time) (time.Duration, bool) {
		if at.Sub(epoch) >= dies && float64(i) < share*float64(n) {
			return took, true
		}
		return 10 * time.Millisecond, false
	}
}

// TestV6_SelfDoubtComesBeforeTheFirstOpinion: a vantage that loses its uplink knows so before any opinion of it turns, so it says nothing
// new. When failures are quick (someone on the way
// refuses) and opinions turn after seconds, that takes a hundred targets; when probes time out, twenty.
func TestV6_SelfDoubtComesBeforeTheFirstOpinion(t *testing.T) {
	for seed := range uint64(10) {
		for _, c := range []struct {
			n    int
			took time.Duration
		}{{20, 3 * time.Second}, {40, 3 * time.Second}, {200, 3 * time.Second}, {100, time.Millisecond}, {200, time.Millisecond}} {
			w, looks := watch(rand.New(rand.NewPCG(seed, 1)), c.n), 0
			w.run(epoch.Add(dies+40*time.Second), fault(1, c.n, c.took), func(i int, now time.Time, fell bool) {
				if looks++; !fell && looks%(1+c.n/20) != 0 {
					return
				}
				doubt := SelfDoubt(w.sights, now) != ""
				if fell && !doubt {
					t.Fatalf("seed %d, %d targets: %d fell %v after the fault, without a doubt", seed, c.n, i, now.Sub(epoch)-dies)
				}
				if doubt && now.Sub(epoch) < dies {
					t.Fatalf("seed %d, %d targets: doubt before the fault", seed, c.n)
				}
				if !doubt && now.Sub(epoch) > dies+20*time.Second {
					t.Fatalf("seed %d, %d targets: no doubt %v after the fault", seed, c.n, now.Sub(epoch)-dies)
				}
			})
		}
	}
}

// TestV7_MassDownIsNoDoubt: when 60 % die and the rest lives, doubt may come by chance and ends within two intervals.
func TestV7_MassDownIsNoDoubt(t *testing.T) {
	for seed := range uint64(10) {
		for _, n := range []int{10, 12, 20, 50, 150} {
			for _, took := range []time.Duration{time.Millisecond, 3 * time.Second} {
				w := watch(rand.New(rand.NewPCG(seed, 2)), n)
				limit := dies + took + 2*w.timing.Interval + time.Second
				w.run(epoch.Add(dies+35*time.Second), fault(0.6, n, took), func(_ int, now time.Time, _ bool) {
					if at := now.Sub(epoch); at > limit && SelfDoubt(w.sights, now) != "" {
						t.Fatalf("seed %d, %d targets: still in doubt %v after the fault", seed, n, at-dies)
					}
				})
			}
		}
	}
}

// TestSelfDoubtBounds are the edges of the rule.
func TestSelfDoubtBounds(t *testing.T) {
	now := epoch.Add(time.Hour)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	fallen := func(from, to int, down time.Duration) (out []Sight) {
		for i := from; i < to; i++ {
			out = append(out, Sight{Address: at(i), Up: ago(down + time.Second), Down: ago(down)})
		}
		return out
	}
	up := func(from, to int, seen time.Duration) (out []Sight) {
		for i := from; i < to; i++ {
			out = append(out, Sight{Address: at(i), Up: ago(seen)})
		}
		return out
	}
	many := func(sets ...[]Sight) (out []Sight) {
		for _, s := range sets {
			out = append(out, s...)
		}
		return out
	}
	never := fallen(0, 20, time.Second)
	shared := fallen(0, 20, time.Second)
	for i := range never {
		never[i].Up = time.Time{}
		shared[i].Shared = true
	}
	var oneMachine []Sight
	for range 30 {
		oneMachine = append(oneMachine, Sight{Address: at(1), Up: ago(11 * time.Second), Down: ago(10 * time.Second)})
	}
	app := fallen(0, 20, 10*time.Second) // the web server of each fell, but the machine answers
	app = append(app, up(0, 20, time.Second)...)
	for name, c := range map[string]struct {
		sights []Sight
		want   bool
	}{
		"nothing":                             {nil, false},
		"all is well":                         {up(0, 100, time.Second), false},
		"nine fell":                           {fallen(0, 9, time.Second), false},
		"ten fell":                            {fallen(0, 10, time.Second), true},
		"four of five":                        {many(fallen(0, 40, 9*time.Second), up(40, 50, time.Second)), true},
		"less than four of five":              {many(fallen(0, 39, 9*time.Second), up(39, 50, time.Second)), false},
		"the others were not looked at since": {many(fallen(0, 20, time.Second), up(20, 100, 2*time.Second)), true},
		"less than a tenth fell":              {many(fallen(0, 20, time.Second), up(20, 300, 2*time.Second)), false},
		"long ago":                            {fallen(0, 20, DoubtHold), false},
		"nearly as long ago":                  {fallen(0, 20, DoubtHold-time.Millisecond), true},
		"dead from the start":                 {never, false},
		"others see it too":                   {shared, false},
		"one machine with thirty checks":      {many(oneMachine, up(2, 3, time.Second)), false},
		"machines answer":                     {app, false},
		"one after the other":                 {many(fallen(0, 30, 4*time.Minute), up(30, 100, time.Second)), false},
	} {
		if got := SelfDoubt(c.sights, now) != ""; got != c.want {
			t.Errorf("%s: doubt is %v", name, got)
		}
	}
}

// TestDoubtEnds when targets are seen again, and when it lasted too long to be believed.
func TestDoubtEnds(t *testing.T) {
	w := watch(rand.New(rand.NewPCG(1, 1)), 50)
	back := dies + 2*time.Minute
	w.run(epoch.Add(back+time.Minute), func(i int, at time.Time) (time.Duration, bool) {
		if at.Sub(epoch) >= back {
			return 10 * time.Millisecond, false
		}
		return fault(1, 50, 3*time.Second)(i, at)
	}, nil)
	if SelfDoubt(w.sights, epoch.Add(back+time.Minute)) != "" {
		t.Error("still in doubt although all is well again")
	}
	w = watch(rand.New(rand.NewPCG(1, 1)), 50)
	w.run(epoch.Add(dies+DoubtHold+20*time.Second), fault(1, 50, 3*time.Second), nil)
	if SelfDoubt(w.sights, epoch.Add(dies+DoubtHold+20*time.Second)) != "" {
		t.Error("still in doubt after DoubtHold")
	}
}

func BenchmarkSelfDoubt(b *testing.B) {
	for _, fell := range []int{9, 100_000} {
		b.Run(fmt.Sprintf("fell=%d", fell), func(b *testing.B) {
			sights := make([]Sight, 100_000)
			for i := range sights {
				sights[i] = Sight{Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Up: epoch}
				if i < fell {
					sights[i].Down = epoch.Add(time.Duration(i))
				}
			}
			for b.Loop() {
				SelfDoubt(sights, epoch.Add(time.Second))
			}
		})
	}
}
