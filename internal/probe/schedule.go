package probe

import (
	"container/heap"
	"context"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// entry is the schedule's memory of one target. Times are nanoseconds since the scheduler began, on the monotonic clock.
type entry struct {
	id      rota.TargetID
	addr    netip.Addr
	q       *question
	streak  rota.Streak
	opinion *rota.Opinion
	due     int64              // of the next probe, jitter included
	slot    int64              // the same without jitter; 0 while off the grid (first round, fast interval)
	lazy    bool               // as rota.Target.Lazy
	slow    bool               // its grid is that of the slow interval
	heap    int                // index in the heap; -1: in flight
	cancel  context.CancelFunc // of the probe in flight, if it has a goroutine
	gone    bool               // no longer wanted; kept only until its probe in flight has ended
	stale   bool               // the probe in flight began before the target was dropped and wanted again: its outcome is void
	sight   *sight
	past    *past // guarded by the prober's mu; nil: not looked up
	memory  memory
	broken  bool  // its watched connection has ended while its probe was still in flight
	hurried int64 // when a watched connection's end last brought a probe forward; 0: never
	seat    seat  // of the probe in flight; owned by the engine
}

// queue is the heap of waiting entries, by due time.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].heap, q[j].heap = i, j }
func (q *queue) Push(x any)        { e := x.(*entry); e.heap = len(*q); *q = append(*q, e) }
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.heap = -1
	return e
}

// finished is a probe that has ended.
type finished struct {
	e     *entry
	trace *Trace
}

// Bounds of the schedule.
const (
	jitter = 0.025 // of the interval, either way around the slot: two probes are 5 % more or less apart
	// A scheduler that wakes this much later than it meant to was not running: the process was stopped or the machine asleep.
	pause = time.Second
	// While probes are in flight it wakes at least this often, so that a stop is noticed.
	heartbeat = time.Second
	// After so many starts in a row the engine has its turn: what is answered at once then makes room, in the processor's cache too.
	burst = 64
	// Reports are at least this far apart, and a microsecond a target more, so that building them stays a small part of the work.
	reportGap = 5 * time.Millisecond
)

// scheduler is the goroutine of Run. Only it touches entries and streaks.
type scheduler struct {
	p         *Prober
	ping      *pinger
	engine    engine // nil: every probe has a goroutine
	base      time.Time
	entries   map[rota.TargetID]*entry
	order     []*entry // sorted by id, without those gone
	questions map[string]*question
	waiting   queue
	flying    int
	done      chan finished
	wg        sync.WaitGroup
	seq       uint64
	dirty     bool      // the report is behind
	reported  time.Time // when it was last made
	damped    damped
	ended     ended
	woke      int64 // when the scheduler last came back from a stop; probes that began before and failed are not judged
}

func newScheduler(p *Prober, ping *pinger) *scheduler {
	return &scheduler{
		p: p, ping: ping, base: time.Now(),
		entries: map[rota.TargetID]*entry{}, questions: map[string]*question{},
		done: make(chan finished, p.concurrency), woke: -1, seq: p.report.Load().Seq,
		ended: ended{rang: make(chan struct{}, 1)},
	}
}

func (s *scheduler) now() int64 { return int64(time.Since(s.base)) }

func (s *scheduler) run(ctx context.Context) {
	defer s.release()
	defer s.wg.Wait()
	if s.p.probe == nil {
		var err error
		if s.engine, err = newEngine(s.p, s.ping, s.done); err != nil {
			s.p.log.Warn("no event loop: each probe has a goroutine", "err", err)
		}
	}
	if s.engine != nil {
		defer s.engine.close()
	}
	s.apply()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := s.step(ctx)
		timer.Reset(wait)
		meant := s.now() + int64(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.p.set:
			s.noticeStop(meant)
			s.apply()
		case <-s.ended.rang:
			s.noticeStop(meant)
			s.confirm()
		case f := <-s.done:
			s.noticeStop(meant)
			s.finish(f)
		drain:
			for range s.p.concurrency {
				select {
				case f := <-s.done:
					s.finish(f)
				default:
					break drain
				}
			}
		case <-timer.C:
			s.noticeStop(meant)
		}
	}
}

// step starts what is due, makes the report if it is time, and returns how long nothing else needs to be done.
func (s *scheduler) step(ctx context.Context) time.Duration {
	now := s.now()
	for n := 1; len(s.waiting) > 0 && s.waiting[0].due <= now && s.flying < s.p.concurrency; n++ {
		s.start(ctx, heap.Pop(&s.waiting).(*entry), now)
		if n%burst == 0 {
			runtime.Gosched() // with one processor, the engine goes on with these
		}
	}
	wait := time.Hour
	if s.flying > 0 {
		wait = heartbeat
	}
	if s.flying < s.p.concurrency && len(s.waiting) > 0 {
		wait = min(wait, time.Duration(max(s.waiting[0].due-now, 0)))
	}
	if s.dirty {
		gap := reportGap + time.Duration(len(s.order))*time.Microsecond
		if since := time.Since(s.reported); since >= gap {
			s.publish()
		} else {
			wait = min(wait, gap-since)
		}
	}
	return wait
}

// noticeStop sees that the process was stopped when it is much later than the scheduler meant to wake. Then everything that fell due
// meanwhile is spread over its interval again, and failures of probes in flight are not held against their targets.
func (s *scheduler) noticeStop(meant int64) {
	now := s.now()
	if now-meant < int64(pause) {
		return
	}
	s.woke = now
	s.p.mu.Lock()
	s.p.stats.stops++
	s.p.mu.Unlock()
	n := 0
	for _, e := range s.waiting {
		if e.due < now {
			e.slot, e.due = 0, now+phase(e.id, e.q.check.Interval)
			n++
		}
	}
	heap.Init(&s.waiting)
	s.p.log.Warn("process was stopped; probing goes on at the usual rate",
		"for", time.Duration(now-meant).Round(time.Millisecond), "overdue", n, "in_flight", s.flying)
}

// phase is a target's place within a period: a hash of its id, so that targets are spread, yet each in the same place every time.
func phase(id rota.TargetID, period time.Duration) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	x := h.Sum64()
	x ^= x >> 33 // FNV's low bits follow the last bytes of the id closely
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return int64(x % uint64(max(period, 1)))
}

// apply brings the entries to the targets wanted.
func (s *scheduler) apply() {
	s.p.mu.Lock()
	wanted, pending := s.p.wanted, s.p.pending
	s.p.wanted, s.p.pending = nil, false
	s.p.mu.Unlock()
	if !pending && !s.reported.IsZero() {
		return // Run began with them
	}
	now := s.now()
	keep := make(map[rota.TargetID]bool, len(wanted))
	questions := make(map[string]*question)
	order := make([]*entry, 0, len(wanted))
	changed := s.reported.IsZero()
	for _, t := range wanted {
		keep[t.ID] = true
		e := s.entries[t.ID]
		if e == nil || e.gone {
			key := t.Check.Key()
			q := s.questions[key]
			if q == nil {
				if q = questions[key]; q == nil {
					q = newQuestion(t.Check)
					q.key = key
				}
			}
			questions[key] = q
			fresh := &entry{id: t.ID, addr: t.Address, q: q}
			if e != nil { // dropped and wanted again while its last probe is still in flight
				fresh = e
				e.addr, e.q, e.streak, e.past, e.gone, e.stale = t.Address, q, rota.Streak{}, nil, false, true
			}
			fresh.sight = &sight{id: t.ID, addr: t.Address}
			fresh.opinion = &rota.Opinion{Target: t.ID, Reason: "not probed yet"}
			if e == nil {
				s.entries[t.ID] = fresh
				fresh.due = now + phase(t.ID, min(q.check.Interval, q.check.FastInterval))
				heap.Push(&s.waiting, fresh)
			}
			e, changed = fresh, true
		}
		s.wake(e, t.Lazy, now)
		order = append(order, e)
	}
	var dropped []rota.TargetID
	for id, e := range s.entries {
		if keep[id] || e.gone {
			continue
		}
		changed = true
		dropped = append(dropped, id)
		if e.heap < 0 {
			e.gone = true
			s.cancel(e)
			continue
		}
		heap.Remove(&s.waiting, e.heap)
		s.forget(e)
	}
	for _, e := range order { // questions still asked stay shared
		if _, ok := questions[e.q.key]; !ok {
			questions[e.q.key] = e.q
		}
	}
	s.order, s.questions = order, questions
	s.p.mu.Lock()
	s.p.sights, s.p.eyes = make([]*sight, len(order)), eyes{why: s.p.eyes.why}
	for i, e := range order {
		s.p.sights[i] = e.sight
		s.p.eyes.add(e.sight, 1)
	}
	s.p.history.drop(dropped)
	s.p.stats.targets = len(order)
	s.p.mu.Unlock()
	if changed {
		s.dirty = true
	}
}

func (s *scheduler) start(ctx context.Context, e *entry, now int64) {
	s.flying++
	s.p.mu.Lock()
	s.p.stats.started(e.q.check.Kind, time.Duration(now-e.due))
	s.p.mu.Unlock()
	if e.memory.engine = s.engine; e.q.check.Watch && e.memory.broke == nil {
		e.memory.broke = func() { s.ended.add(e) }
	}
	j := job{e.id, e.addr, e.q, &e.memory}
	if s.engine != nil && j.seated() {
		s.engine.start(e, j)
		return
	}
	ctx, e.cancel = context.WithCancel(ctx)
	s.wg.Go(func() {
		var t *Trace
		if s.p.probe != nil {
			t = s.p.probe(ctx, e, s.ping)
		} else {
			t = s.p.observeIn(ctx, j, s.ping, nil)
		}
		s.done <- finished{e, t} // there is room for every probe in flight
	})
}

// forget gives up an entry without a probe in flight, and the connection kept for it.
func (s *scheduler) forget(e *entry) {
	if k := e.memory.kept; k != nil {
		s.engine.release(k)
	}
	delete(s.entries, e.id)
}

// release closes the connections that are kept, once nothing else runs, and leaves the targets for the next Run.
func (s *scheduler) release() {
	s.p.mu.Lock()
	if !s.p.pending {
		s.p.pending = true
		for _, e := range s.order {
			s.p.wanted = append(s.p.wanted, rota.Target{ID: e.id, Address: e.addr, Check: e.q.check, Lazy: e.lazy})
		}
	}
	s.p.mu.Unlock()
	for _, e := range s.entries {
		if k := e.memory.kept; k != nil {
			k.close()
		}
	}
}

// ended collects the entries whose watched connections have ended.
type ended struct {
	rang chan struct{} // has room for one: there are some

	mu   sync.Mutex // guards what follows
	list []*entry
}

func (x *ended) add(e *entry) {
	x.mu.Lock()
	x.list = append(x.list, e)
	x.mu.Unlock()
	select {
	case x.rang <- struct{}{}:
	default: // the scheduler has not looked yet
	}
}

// confirm brings the probes forward of those whose watched connection has ended: to now, but no more than one in a fast interval, so
// that a server that closes idle connections is not stormed.
func (s *scheduler) confirm() {
	s.ended.mu.Lock()
	list := s.ended.list
	s.ended.list = nil
	s.ended.mu.Unlock()
	now := s.now()
	for _, e := range list {
		switch {
		case e.gone:
		case e.heap < 0:
			e.broken = true
		default:
			s.hurry(e, now)
		}
	}
}

// hurry brings the next probe of e forward.
func (s *scheduler) hurry(e *entry, now int64) {
	at := now
	if e.hurried != 0 {
		at = max(at, e.hurried+int64(e.q.check.FastInterval))
	}
	if at < e.due {
		e.due, e.slot, e.hurried = at, 0, at
		heap.Fix(&s.waiting, e.heap)
	}
}

// cancel ends the probe of e in flight.
func (s *scheduler) cancel(e *entry) {
	if e.cancel != nil {
		e.cancel()
		return
	}
	s.engine.cancel(e)
}

// finish takes the outcome of a probe and sets the next.
func (s *scheduler) finish(f finished) {
	e, t := f.e, f.trace
	s.flying--
	if e.cancel != nil {
		e.cancel()
		e.cancel = nil
	}
	o := t.Observation
	began := int64(t.Started.Sub(s.base))
	// What a stop spoilt is no evidence, and the time of the stop is none of its age either.
	void := began < s.woke && (o.Status == rota.Down || o.Status == rota.Unknown)
	if void && o.Status == rota.Down {
		o = rota.Observation{
			Status: rota.Unknown, Class: rota.ClassResource, Reason: "this process was stopped during the probe", At: o.At, Took: o.Took,
		}
		t.Observation = o
	}
	s.p.mu.Lock()
	s.p.stats.ended(t.Kind, o)
	if !e.gone && !e.stale {
		if t.Streak = e.streak; void {
			t.Streak.Last = o
		} else {
			t.Streak = e.streak.Observe(o, e.q.check.Timing)
		}
		if e.past == nil {
			e.past = s.p.history.past(e.id)
		}
		s.p.history.add(e.past, t)
		if t.lacks {
			o.Class = rota.ClassNone
		}
		if !void {
			s.p.eyes.see(e.sight, o)
		}
	}
	s.p.mu.Unlock()
	now := s.now()
	switch {
	case e.gone:
		s.forget(e)
		return
	case e.stale:
		e.stale, e.slot = false, 0
		e.due = now + phase(e.id, min(e.q.check.Interval, e.q.check.FastInterval))
	default:
		was := e.streak
		e.streak = t.Streak
		s.mind(e, was)
		s.next(e, began, now)
	}
	heap.Push(&s.waiting, e)
	if e.broken {
		e.broken = false
		s.hurry(e, now)
	}
}

// next sets when e is due again after a probe that began at began. While a change of mind is pending, that is a fast interval
// later; otherwise the next slot of the target's own grid, so that the rate of all probes stays even however they came to be due.
// The prober's own failures do not make it hurry. What has long been down, and what nothing depends on, has a grid of slow intervals:
// the former leaves it with its first success, the latter when something depends on it.
func (s *scheduler) next(e *entry, began, now int64) {
	t := e.q.check.Timing
	if !e.lazy && e.streak.Pending(t) && e.streak.Last.Status != rota.Unknown {
		e.slot = 0
		e.due = max(began+spread(int64(t.FastInterval)), now)
		return
	}
	if slow := e.lazy || e.streak.Slow(); slow != e.slow {
		e.slow, e.slot = slow, 0 // another grid: all that fell at once do not stay together
	}
	interval := int64(t.Interval)
	if e.slow {
		interval = int64(t.SlowInterval)
	}
	if e.slot != 0 {
		e.slot += interval
	}
	if floor := now + spread(interval)/20; e.slot == 0 || e.slot < now {
		// First slot of the grid that is not right now.
		at := phase(e.id, time.Duration(interval))
		e.slot = at + (floor-at+interval-1)/interval*interval
		for e.slot < floor {
			e.slot += interval
		}
	}
	e.due = max(e.slot+int64(float64(interval)*jitter*(2*rand.Float64()-1)), now)
}

// spread is a period 5 % shorter or longer.
func spread(period int64) int64 {
	return period + int64(float64(period)*2*jitter*(2*rand.Float64()-1))
}

func (s *scheduler) publish() {
	s.seq++
	opinions := make([]*rota.Opinion, len(s.order))
	for i, e := range s.order {
		opinions[i] = e.opinion
	}
	s.dirty, s.reported = false, time.Now()
	s.p.publish(&rota.Report{Vantage: s.p.vantage, Seq: s.seq, Opinions: opinions})
}
