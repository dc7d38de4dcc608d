package probe

import (
	"container/heap"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/rota-dns/rota/internal/rota"
)

func TestMain(m *testing.M) {
	if speaks := os.Getenv(targetProcess); speaks != "" {
		beTarget(speaks)
		return
	}
	goleak.VerifyTestMain(m)
}

// world stands in for the network: it says what each probe finds and remembers when each began.
type world struct {
	mu      sync.Mutex
	took    time.Duration
	wait    func(rota.TargetID) time.Duration     // instead of took; nil: took
	answer  func(id rota.TargetID, n int) finding // n counts the target's probes from 0
	started map[rota.TargetID][]time.Duration
	begin   time.Time
	flying  map[rota.TargetID]int
	most    int // of all, in flight at once
	twice   bool
}

func newWorld() *world {
	return &world{
		begin: time.Now(), started: map[rota.TargetID][]time.Duration{}, flying: map[rota.TargetID]int{},
		answer: func(rota.TargetID, int) finding { return up("fine") }, took: time.Millisecond,
	}
}

func (w *world) probe(ctx context.Context, e *entry, _ *pinger) *Trace {
	start := time.Now()
	w.mu.Lock()
	w.flying[e.id]++
	w.twice = w.twice || w.flying[e.id] > 1
	n := len(w.started[e.id])
	w.started[e.id] = append(w.started[e.id], start.Sub(w.begin))
	total := 0
	for _, c := range w.flying {
		total += c
	}
	w.most = max(w.most, total)
	took, answer := w.took, w.answer
	if w.wait != nil {
		took = w.wait(e.id)
	}
	w.mu.Unlock()
	f := unknown(rota.ClassCancelled, "cancelled")
	select {
	case <-time.After(took):
		f = answer(e.id, n)
	case <-ctx.Done():
	}
	w.mu.Lock()
	if w.flying[e.id]--; w.flying[e.id] == 0 {
		delete(w.flying, e.id)
	}
	w.mu.Unlock()
	return &Trace{Target: e.id, Kind: e.q.check.Kind, Started: start, Observation: rota.Observation{
		Status: f.status, Class: f.class, Reason: f.reason, Sure: f.sure, Weight: f.weight, At: time.Now(), Took: time.Since(start),
	}, lacks: f.lacks}
}

func targets(n int) []rota.Target {
	ts := make([]rota.Target, n)
	for i := range ts {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		ts[i] = rota.NewTarget(a, rota.Check{Kind: rota.KindTCP, Port: 80, Timing: rota.DefaultTiming()})
	}
	return ts
}

// scene runs a prober over a world in a bubble.
func scene(t *testing.T, o Options, f func(p *Prober, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := New(o)
		p.probe = w.probe
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.Run(ctx) })
		f(p, w)
		cancel()
		wg.Wait()
		if w.twice {
			t.Error("a target had two probes in flight")
		}
	})
}

func TestScheduleKeepsIntervalAndSpread(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		p.Set(targets(200))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		perSecond := map[int]int{}
		for id, at := range w.started {
			if at[0] > time.Second {
				t.Fatalf("%s: first probe after %v, want within the fast interval", id, at[0])
			}
			// Rise is 2: one fast probe, then a step onto the grid, then the interval.
			if gap := at[1] - at[0]; gap < 950*time.Millisecond || gap > 1050*time.Millisecond {
				t.Errorf("%s: second probe after %v, want 1s ± 5 %%", id, gap)
			}
			for i := 3; i < len(at); i++ {
				if gap := at[i] - at[i-1]; gap < 9500*time.Millisecond || gap > 10500*time.Millisecond {
					t.Fatalf("%s: gap %v, want 10s ± 5 %%", id, gap)
				}
			}
			for _, a := range at[3:] {
				perSecond[int(a/time.Second)]++
			}
		}
		for s := 40; s < 290; s++ {
			if n := perSecond[s]; n > 60 || n < 3 {
				t.Errorf("second %d has %d probes, want about 20", s, n)
			}
		}
	})
}

func TestScheduleStartIsReproducible(t *testing.T) {
	offsets := func() (at []time.Duration) {
		scene(t, Options{}, func(p *Prober, w *world) {
			ts := targets(50)
			p.Set(ts)
			time.Sleep(2 * time.Second)
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, x := range ts {
				at = append(at, w.started[x.ID][0])
			}
		})
		return at
	}
	a, b := offsets(), offsets()
	if !slices.Equal(a, b) {
		t.Error("offsets differ between two starts")
	}
	slices.Sort(a)
	if a[0] == a[len(a)-1] {
		t.Error("offsets are not spread")
	}
}

func TestScheduleFastWhilePending(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(1)
		w.answer = func(_ rota.TargetID, n int) finding {
			if n >= 5 {
				return down(rota.ClassRefused, "connect: refused")
			}
			return up("fine")
		}
		p.Set(ts)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		o := p.Report().Opinion(ts[0].ID)
		if o.Status != rota.Down || o.Class != rota.ClassRefused || o.Reason != "connect: refused" {
			t.Fatalf("opinion is %+v", o)
		}
		w.mu.Lock()
		at := w.started[ts[0].ID]
		w.mu.Unlock()
		for i := 6; i <= 7; i++ {
			if gap := at[i] - at[i-1]; gap > 1100*time.Millisecond {
				t.Errorf("probe %d came %v after a failure, want the fast interval", i, gap)
			}
		}
		if gap := at[9] - at[8]; gap < 9500*time.Millisecond {
			t.Errorf("once down, a probe came after %v, want the interval", gap)
		}
	})
}

func TestScheduleOwnFailureIsNoEvidence(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(20)
		w.answer = func(_ rota.TargetID, n int) finding {
			if n >= 5 {
				return unknown(rota.ClassResource, "connect: no descriptor left here")
			}
			return up("fine")
		}
		p.Set(ts)
		time.Sleep(time.Minute) // some 20 s of evidence, then nothing
		for _, o := range p.Report().Opinions {
			if o.Status != rota.Up {
				t.Errorf("%s: own failures made it %v", o.Target, o.Status)
			}
		}
		time.Sleep(9 * time.Minute)
		for _, o := range p.Report().Opinions {
			if o.Status != rota.Unknown || o.Class != rota.ClassResource {
				t.Errorf("%s: %v %s after ten minutes without evidence", o.Target, o.Status, o.Reason)
			}
		}
		w.mu.Lock()
		n := len(w.started[ts[0].ID])
		w.mu.Unlock()
		if n > 64 {
			t.Errorf("%d probes in ten minutes: own failures made it hurry", n)
		}
	})
}

func TestScheduleSetKeepsStreaksAndDropsOthers(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(3)
		p.Set(ts)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		before := p.Report()
		changed := p.Changed()
		p.Set([]rota.Target{ts[2], ts[1], ts[1]})
		<-changed
		after := p.Report()
		if len(after.Opinions) != 2 || after.Seq != before.Seq+1 {
			t.Fatalf("report has %d opinions and seq %d after %d", len(after.Opinions), after.Seq, before.Seq)
		}
		for _, x := range ts[1:] {
			if after.Opinion(x.ID) != before.Opinion(x.ID) {
				t.Errorf("%s: the opinion moved", x.ID)
			}
		}
		if !slices.IsSortedFunc(after.Opinions, func(a, b *rota.Opinion) int { return len(a.Target) - len(b.Target) }) {
			t.Error("report is not sorted")
		}
		if len(p.History(ts[0].ID)) != 0 {
			t.Error("the history of a dropped target remains")
		}
		w.mu.Lock()
		n := len(w.started[ts[0].ID])
		w.mu.Unlock()
		time.Sleep(time.Minute)
		w.mu.Lock()
		if len(w.started[ts[0].ID]) != n {
			t.Error("a dropped target is still probed")
		}
		w.mu.Unlock()
		// Unchanged targets and unchanged outcomes: no new report, however long.
		if p.Set(ts[1:]); true {
			time.Sleep(time.Hour)
		}
		if got := p.Report(); got != after {
			t.Errorf("a report was made (seq %d) though nothing changed", got.Seq)
		}
	})
}

func TestScheduleSetWhileInFlight(t *testing.T) {
	scene(t, Options{}, func(p *Prober, w *world) {
		ts := targets(1)
		w.took = 2 * time.Second
		w.answer = func(rota.TargetID, int) finding { return down(rota.ClassTimeout, "late") }
		p.Set(ts)
		time.Sleep(1500 * time.Millisecond) // the first probe is under way
		w.mu.Lock()
		if w.flying[ts[0].ID] != 1 {
			t.Fatal("no probe in flight")
		}
		w.mu.Unlock()
		p.Set(nil)
		synctest.Wait()
		w.mu.Lock()
		if len(w.flying) != 0 {
			t.Error("the probe of a dropped target was not cancelled")
		}
		w.mu.Unlock()
		time.Sleep(time.Second)
		if n := len(p.Report().Opinions); n != 0 {
			t.Errorf("%d opinions remain", n)
		}
		// Dropped and wanted again within one flight: nothing of the old one counts.
		p.Set(ts)
		time.Sleep(1500 * time.Millisecond)
		p.Set(nil)
		p.Set(ts)
		time.Sleep(time.Minute)
		if o := p.Report().Opinion(ts[0].ID); o == nil || o.Status != rota.Down {
			t.Errorf("opinion is %+v", o)
		}
	})
}

// TestScheduleDarkDelaysNobody is P2: what times out elsewhere moves no other target's probes.
func TestScheduleDarkDelaysNobody(t *testing.T) {
	starts := func(dark bool) map[rota.TargetID]int {
		out := map[rota.TargetID]int{}
		scene(t, Options{}, func(p *Prober, w *world) {
			ts := targets(1000)
			is := map[rota.TargetID]bool{}
			for _, x := range ts[:500] {
				is[x.ID] = dark
			}
			w.wait = func(id rota.TargetID) time.Duration {
				if is[id] {
					return 3 * time.Second
				}
				return time.Millisecond
			}
			w.answer = func(id rota.TargetID, _ int) finding {
				if is[id] {
					return down(rota.ClassTimeout, "connect: not done within 3s")
				}
				return up("fine")
			}
			p.Set(ts)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			for _, k := range p.Stats().Kinds {
				for i, n := range k.Lateness.Counts[1:] {
					if n > 0 {
						t.Errorf("%d probes began more than %v s late", n, k.Lateness.Bounds[i])
					}
				}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, x := range ts[500:] {
				out[x.ID] = len(w.started[x.ID])
			}
		})
		return out
	}
	well, dark := starts(false), starts(true)
	for id, n := range well {
		if d := dark[id] - n; d < -1 || d > 1 {
			t.Errorf("%s: %d probes when others were dark, %d when they were not", id, dark[id], n)
		}
	}
}

// TestScheduleAllDark is P17: every target times out, and the sockets stay bounded.
func TestScheduleAllDark(t *testing.T) {
	scene(t, Options{Concurrency: 500}, func(p *Prober, w *world) {
		ts := targets(3000)
		w.took = 3 * time.Second
		w.answer = func(rota.TargetID, int) finding { return down(rota.ClassTimeout, "connect: not done within 3s") }
		p.Set(ts)
		// D is interval x fall + timeout = 33 s; 500 sockets held 3 s each are 166 probes a second: 9,000 probes take 54 s.
		time.Sleep(60 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.most > 500 {
			t.Errorf("%d probes in flight at once, want at most 500", w.most)
		}
		for _, o := range p.Report().Opinions {
			if o.Status != rota.Down {
				t.Fatalf("%s is %v after 60 s", o.Target, o.Status)
			}
		}
	})
}

func TestScheduleStopEndsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.took = time.Hour
		p := New(Options{})
		p.probe = w.probe
		p.Set(targets(100))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(5 * time.Second)
		begin := time.Now()
		if err := p.Run(ctx); err == nil {
			t.Error("a second Run is accepted")
		}
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run returned %v", err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("Run took %v to stop", took)
		}
	})
}

// A stop that is longer than opinions last takes none away: what it spoilt is not counted, and what was known before it stands.
func TestStopTakesNoOpinion(t *testing.T) {
	for name, spoilt := range map[string]finding{
		"failed":   down(rota.ClassTimeout, "connect: not done within 3s"),
		"overrun":  unknown(rota.ClassResource, "this process was held up"),
		"answered": up("status 200"),
	} {
		synctest.Test(t, func(t *testing.T) {
			p := New(Options{})
			p.probe = newWorld().probe
			p.Set(targets(1))
			s := newScheduler(p, nil)
			s.apply()
			probe := func(f finding, meanwhile func()) {
				e := heap.Pop(&s.waiting).(*entry)
				s.flying++
				began := time.Now()
				meanwhile()
				s.finish(finished{e, &Trace{Target: e.id, Started: began, Observation: rota.Observation{
					Status: f.status, Class: f.class, Reason: f.reason, At: time.Now(),
				}}})
			}
			for range 3 {
				probe(up("status 200"), func() { time.Sleep(time.Second) })
			}
			probe(spoilt, func() {
				time.Sleep(10 * time.Minute)
				s.noticeStop(s.now() - int64(9*time.Minute))
			})
			if e := s.order[0]; e.streak.Status != rota.Up || e.opinion.Status != rota.Up || e.streak.Failures != 0 {
				t.Errorf("%s: %+v, %+v", name, e.opinion, e.streak)
			}
		})
	}
}

// A second Run goes on with the targets of the first.
func TestScheduleRunsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := New(Options{})
		p.probe = w.probe
		ts := targets(3)
		p.Set(ts)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_ = p.Run(ctx)
			cancel()
			if n := len(p.Report().Opinions); n != len(ts) {
				t.Fatalf("%d opinions of %d targets", n, len(ts))
			}
		}
		if n := len(w.started[ts[0].ID]); n < 12 {
			t.Errorf("%d probes in two runs of a minute", n)
		}
	})
}

func TestStopIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Options{})
		p.probe = newWorld().probe
		p.Set(targets(1000))
		s := newScheduler(p, nil)
		s.apply()
		time.Sleep(2 * time.Minute) // nobody calls step: as if stopped
		s.noticeStop(int64(time.Second))
		now := s.now()
		soon := 0
		for _, e := range s.waiting {
			if e.due < now {
				t.Fatal("an overdue probe was left overdue")
			}
			if e.due < now+int64(time.Second) {
				soon++
			}
		}
		if soon > 200 {
			t.Errorf("%d of 1000 probes in the first second after a stop, want about 100", soon)
		}
		e := s.order[0]
		p.eyes.see(e.sight, rota.Observation{Status: rota.Up, At: time.Now()})
		e.streak = rota.Streak{Status: rota.Up}
		e.opinion = &rota.Opinion{Target: e.id, Status: rota.Up}
		e.q = newQuestion(rota.Check{Kind: rota.KindTCP, Port: 1, Timing: rota.Timing{Interval: 10 * time.Second, Fall: 1, Rise: 1, OK: 1}})
		for i, x := range s.waiting {
			if x == e {
				s.waiting = slices.Delete(s.waiting, i, i+1)
			}
		}
		e.heap, e.cancel = -1, func() {}
		s.flying++
		p.stats.started(rota.KindTCP, 0)
		s.finish(finished{e, &Trace{
			Target: e.id, Kind: rota.KindTCP, Started: s.base.Add(time.Second), Observation: rota.Observation{Status: rota.Down, Class: rota.ClassTimeout},
		}})
		if e.streak.Status != rota.Up || e.streak.Failures != 0 || e.streak.Last.Class != rota.ClassResource {
			t.Errorf("a probe cut by a stop was judged: %+v", e.streak)
		}
		if b := p.Blind(); b.Lost != 0 || b.Seen != 1 || p.Fallen() != 0 {
			t.Errorf("it took the sight of the target: %+v, %d fallen", b, p.Fallen())
		}
		if p.Stats().Stops != 1 {
			t.Error("the stop was not counted")
		}
	})
}

func TestOpine(t *testing.T) {
	timing := rota.Timing{Fall: 2, Rise: 1, OK: 2}
	ok := rota.Observation{Status: rota.Up, Class: rota.ClassOK, Reason: "status 200"}
	bad := rota.Observation{Status: rota.Down, Class: rota.ClassStatus, Reason: "status 500"}
	own := rota.Observation{Class: rota.ClassResource, Reason: "no descriptor"}
	drains := rota.Observation{Status: rota.Draining, Class: rota.ClassSaid, Reason: "drains"}
	sure := rota.Observation{Status: rota.Down, Class: rota.ClassSaid, Reason: "maint", Sure: true}
	for _, c := range []struct {
		name string
		in   []rota.Observation
		want string
		new  bool // the last observation made a new opinion
	}{
		{"first own failure says why", []rota.Observation{own}, "unknown resource no descriptor", true},
		{"up", []rota.Observation{ok}, "up ok status 200", true},
		{"up again", []rota.Observation{ok, ok}, "up ok status 200", false},
		{"one failure", []rota.Observation{ok, ok, bad}, "up status status 500", true},
		{"own failure", []rota.Observation{ok, ok, own}, "up ok status 200", false},
		{"a success that forgives nothing yet", []rota.Observation{ok, ok, bad, ok}, "up status status 500", false},
		{"forgiven", []rota.Observation{ok, ok, bad, ok, ok}, "up ok status 200", true},
		{"down", []rota.Observation{ok, ok, bad, bad}, "down status status 500", true},
		{"still down", []rota.Observation{ok, ok, bad, bad, bad}, "down status status 500", false},
		{"says that it drains", []rota.Observation{ok, drains}, "draining said drains", true},
		{"says so again", []rota.Observation{ok, drains, drains}, "draining said drains", false},
		{"comes back", []rota.Observation{ok, drains, ok}, "up ok status 200", true},
		{"is down for sure", []rota.Observation{ok, sure}, "down said maint", true},
	} {
		o, s, moved := &rota.Opinion{}, rota.Streak{}, false
		for _, x := range c.in {
			next := s.Observe(x, timing)
			n := opine(o, s, next)
			moved, o, s = n != o, n, next
		}
		if got := fmt.Sprintf("%v %s %s", o.Status, o.Class, o.Reason); got != c.want || moved != c.new {
			t.Errorf("%s: %q, new %v; want %q, %v", c.name, got, moved, c.want, c.new)
		}
	}
}

func TestHistoryKeepsFailuresLongest(t *testing.T) {
	h := newHistory(100)
	add := func(id rota.TargetID, s rota.Status) {
		h.add(h.past(id), &Trace{Target: id, Observation: rota.Observation{Status: s}})
	}
	for range 5 {
		add("a", rota.Down)
	}
	for i := range 1000 {
		add("a", rota.Up)
		add(rota.TargetID(fmt.Sprint("b", i%300)), rota.Up)
	}
	failures := 0
	for _, x := range h.of("a") {
		if x.Observation.Status == rota.Down {
			failures++
		}
	}
	if failures != 5 || len(h.of("a")) != 5+maxSuccesses {
		t.Errorf("%d failures of %d traces kept", failures, len(h.of("a")))
	}
	for range 1000 {
		add("c", rota.Down)
	}
	if n := len(h.of("c")); n != maxFailures {
		t.Errorf("%d traces of a failing target, want %d", n, maxFailures)
	}
	live := 0
	for _, r := range slices.Concat(h.successes.records, h.failures.records) {
		if r.trace != nil {
			live++
		}
	}
	if live > 100 {
		t.Errorf("%d traces kept in all, want at most 100", live)
	}
}
