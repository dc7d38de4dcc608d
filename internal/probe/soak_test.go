package probe

import (
	"context"
	"flag"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

var soakInterval = flag.Duration("soak", 40*time.Minute, "interval of the checks in TestSoak; what real checks have, 10s, takes an hour")

// sky is what the targets of a soak are like for a while.
type sky struct {
	name string
	// find says what a probe finds: chance is even below 100, of the target while this sky lasts; once, of this probe alone.
	find func(chance, once int) (finding, time.Duration)
}

func skies(timeout time.Duration) []sky {
	fine := func(once int) (finding, time.Duration) { return up("fine"), time.Duration(once) * time.Millisecond }
	refused := func() (finding, time.Duration) { return down(rota.ClassRefused, "connect: refused"), time.Millisecond }
	dark := func() (finding, time.Duration) { return down(rota.ClassTimeout, "connect: not done"), timeout }
	own := func() (finding, time.Duration) {
		return unknown(rota.ClassResource, "connect: no descriptor left here"), time.Millisecond
	}
	flap := func(once int) (finding, time.Duration) {
		if once < 50 {
			return down(rota.ClassStatus, "status 503"), time.Millisecond
		}
		return fine(once)
	}
	return []sky{
		{"all up", func(_, once int) (finding, time.Duration) { return fine(once) }},
		{"some of everything", func(chance, once int) (finding, time.Duration) {
			switch {
			case chance < 5:
				return refused()
			case chance < 10:
				return dark()
			case chance < 12:
				return flap(once)
			case chance < 17:
				return own()
			}
			return fine(once)
		}},
		{"all refuse", func(int, int) (finding, time.Duration) { return refused() }},
		{"all are dark", func(int, int) (finding, time.Duration) { return dark() }},
		{"nothing works here", func(int, int) (finding, time.Duration) { return own() }},
		{"many flap", func(chance, once int) (finding, time.Duration) {
			if chance < 10 {
				return flap(once)
			}
			return fine(once)
		}},
		{"loss everywhere", func(_, once int) (finding, time.Duration) {
			if once < 3 {
				return dark()
			}
			return fine(once)
		}},
	}
}

// sleeper is a log that, once armed, holds up whoever says something next, as if the process had been stopped.
type sleeper struct {
	slog.Handler
	armed atomic.Bool
	slept atomic.Int64
}

func (s *sleeper) Enabled(context.Context, slog.Level) bool { return true }

func (s *sleeper) Handle(context.Context, slog.Record) error {
	if s.armed.CompareAndSwap(true, false) {
		time.Sleep(time.Minute)
		s.slept.Add(1)
	}
	return nil
}

// footprint is what must not grow.
type footprint struct {
	goroutines int
	heap       uint64
	traces     int
}

// TestSoak probes 10,000 targets for 24 virtual hours, in which they fail in every way, the process stops, and a quarter of them is
// replaced by others every 90 minutes. At the end of each eight hours everything is well for two: then the rate is as even, and what is
// kept as small, as it was the first time.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("millions of virtual probes")
	}
	const (
		count   = 10_000
		replace = count / 4
		rounds  = 3
		rough   = 4 // periods with faults in a round
		period  = 90 * time.Minute
		calm    = time.Hour
	)
	check := rota.Check{Kind: rota.KindTCP, Port: 80, Timing: rota.DefaultTiming()}
	check.Interval = *soakInterval
	check.FastInterval = max(check.Interval/10, time.Second)
	check.Timeout = 3 * time.Second
	grid := check.Interval / 300
	all := skies(check.Timeout)
	const seed = 1
	random := rand.New(rand.NewPCG(seed, 0))

	synctest.Test(t, func(t *testing.T) {
		p := New(Options{Log: slog.New(slog.DiscardHandler)})
		held := &sleeper{Handler: slog.DiscardHandler}
		p.log = slog.New(held)
		var now atomic.Pointer[sky]
		var salt atomic.Uint64 // of the sky: who fails under it
		var flying, most, probes atomic.Int64
		hashes := maphash.MakeSeed()
		p.probe = func(ctx context.Context, e *entry, _ *pinger) *Trace {
			tr := &Trace{Target: e.id, Kind: e.q.check.Kind, Started: time.Now()}
			probes.Add(1)
			if n := flying.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer flying.Add(-1)
			f, took := now.Load().find(int((maphash.String(hashes, string(e.id))^salt.Load()*0x9e3779b97f4a7c15)>>32%100), rand.IntN(100))
			end := tr.Started.Add(took + grid).Truncate(grid) // those of a while end together: a report is made of all of them
			select {
			case <-time.After(end.Sub(tr.Started)):
			case <-ctx.Done():
				f = unknown(rota.ClassCancelled, "cancelled")
			}
			tr.Observation = rota.Observation{Status: f.status, Class: f.class, Reason: f.reason, At: time.Now(), Took: time.Since(tr.Started)}
			return tr
		}

		var made uint32
		fresh := func() rota.Target {
			made++
			return rota.NewTarget(netip.AddrFrom4([4]byte{10, byte(made >> 16), byte(made >> 8), byte(made)}), check)
		}
		targets := make([]rota.Target, count)
		for i := range targets {
			targets[i] = fresh()
		}
		now.Store(&all[0])
		p.Set(targets)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.Run(ctx) })

		// rest lets everything be well for two hours and measures in the second.
		rest := func() footprint {
			now.Store(&all[0])
			time.Sleep(calm)
			synctest.Wait()
			for _, o := range p.Report().Opinions {
				if o.Status != rota.Up {
					t.Fatalf("%s is %v (%s) after %v in which it was up", o.Target, o.Status, o.Reason, calm)
				}
			}
			if n := p.Fallen(); n != 0 {
				t.Errorf("%d targets count as fallen, and all are up", n)
			}
			seq, step := p.Report().Seq, check.Interval/10
			want := float64(count) / 10
			for range calm / step {
				before := probes.Load()
				time.Sleep(step)
				if n := float64(probes.Load() - before); n < .75*want || n > 1.25*want {
					t.Errorf("%.0f probes in a tenth of the interval, want about %.0f", n, want)
				}
			}
			if n := p.Report().Seq - seq; n != 0 {
				t.Errorf("%d reports were made though nothing changed", n)
			}
			synctest.Wait()
			var f footprint
			for _, x := range targets {
				kept := p.History(x.ID)
				f.traces += len(kept)
				if len(kept) > maxSuccesses+maxFailures {
					t.Fatalf("%s: %d traces are kept", x.ID, len(kept))
				}
				for _, k := range kept {
					if k.Streak.Failures > check.Fall || k.Streak.Successes > max(check.Rise, check.OK) {
						t.Fatalf("%s: the streak counts on: %+v", x.ID, k.Streak)
					}
				}
			}
			if s := p.Stats(); s.Targets != count || s.InFlight != int(flying.Load()) {
				t.Errorf("%d targets and %d probes in flight are counted; there are %d and %d", s.Targets, s.InFlight, count, flying.Load())
			}
			f.goroutines = runtime.NumGoroutine() - int(flying.Load())
			runtime.GC()
			runtime.GC() // what pools hold lives through one
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			f.heap = m.HeapAlloc
			return f
		}

		var first footprint
		for round := range rounds {
			for i := range rough {
				next := &all[1+random.IntN(len(all)-1)]
				if i == 0 {
					next = &all[1] // opinions change, so that the log, and with it the stop, has its turn
					held.armed.Store(true)
				}
				now.Store(next)
				salt.Add(1)
				time.Sleep(period / 2)
				for range replace {
					targets[random.IntN(count)] = fresh()
				}
				p.Set(targets)
				time.Sleep(period / 2)
			}
			f := rest()
			t.Logf("after %d hours: %d goroutines, %d KiB, %d traces, %d probes, %d in flight at most", 8*(round+1), f.goroutines, f.heap>>10, f.traces, probes.Load(), most.Load())
			switch {
			case round == 0:
				first = f
			case f.goroutines > first.goroutines+2:
				t.Errorf("%d goroutines, and %d at first", f.goroutines, first.goroutines)
			case f.heap > first.heap+first.heap/10:
				t.Errorf("%d KiB are in use, and %d at first", f.heap>>10, first.heap>>10)
			}
			if f.traces > DefaultHistory {
				t.Errorf("%d traces are kept, want at most %d", f.traces, DefaultHistory)
			}
		}
		if n := held.slept.Load(); n != rounds {
			t.Errorf("the process stopped %d times, want %d", n, rounds)
		}
		if n := most.Load(); n > DefaultConcurrency {
			t.Errorf("%d probes in flight at once, want at most %d", n, DefaultConcurrency)
		}
		cancel()
		wg.Wait()
		if n := flying.Load(); n != 0 {
			t.Errorf("%d probes are left when Run has returned", n)
		}
	})
}
