package probe

import (
	"container/heap"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// opine returns the opinion after an observation: the same one when nothing that it says has changed. Its reason is that of the
// observation that decided, or of the last one that failed; once failures are forgiven, that of the success that did it. Its weight is
// what the last success asked for.
func opine(last *rota.Opinion, was, is rota.Streak) *rota.Opinion {
	o := is.Last
	next := *last
	next.Status, next.Since = is.Status, is.Since
	switch {
	case is.Status != was.Status,
		o.Status == rota.Down,
		is.Status == rota.Unknown,
		was.Failures > 0 && is.Failures == 0:
		next.Class, next.Reason = o.Class, o.Reason
	}
	switch {
	case next.Status != rota.Up:
		next.Weight = 0
	case o.Status == rota.Up:
		next.Weight = rota.RoundWeight(last.Weight, o.Weight)
	}
	if next.Status == last.Status && next.Class == last.Class && next.Reason == last.Reason && next.Weight == last.Weight {
		return last
	}
	changed := next // here, so that an unchanged opinion costs no memory
	return &changed
}

// mind takes in the streak of an entry after one more observation: its opinion, what is counted of it and what is said of it.
func (s *scheduler) mind(e *entry, was rota.Streak) {
	if next := opine(e.opinion, was, e.streak); next != e.opinion {
		if next.Status != e.opinion.Status {
			s.p.log.Info("opinion changed", "target", e.id, "status", next.Status.String(), "class", next.Class, "reason", next.Reason)
			s.p.mu.Lock()
			s.p.stats.kind(e.q.check.Kind).changes++
			s.p.mu.Unlock()
		}
		e.opinion = next
		s.dirty = true
	}
	if was.Status == rota.Up && e.streak.Status == rota.Up && was.Failures > 0 && e.streak.Failures == 0 {
		s.p.mu.Lock()
		s.p.stats.kind(e.q.check.Kind).forgiven++
		s.p.mu.Unlock()
		s.damped.add(e.id)
	}
	if n, example := s.damped.say(time.Since(s.base)); n > 0 {
		s.p.log.Info("flapping damped: targets failed and were forgiven, and stay up", "times", n, "for_example", example)
	}
}

// damped is what is still to be said of failures that changed no opinion.
type damped struct {
	times   int
	example rota.TargetID
	said    time.Duration // when something was said last, since the scheduler began
}

// dampedGap is the time between two lines of the log about it, however many targets flap.
const dampedGap = time.Minute

func (d *damped) add(id rota.TargetID) {
	d.times++
	d.example = id
}

// say returns how often failures were forgiven since it was last said, and an example; 0 while it is too early to say it again.
func (d *damped) say(now time.Duration) (int, rota.TargetID) {
	if d.times == 0 || d.said != 0 && now-d.said < dampedGap {
		return 0, ""
	}
	n := d.times
	d.times, d.said = 0, now
	return n, d.example
}

// wake brings an entry to whether something depends on it. One that begins to is due within its interval, not when the slow one is over.
func (s *scheduler) wake(e *entry, lazy bool, now int64) {
	if e.lazy == lazy {
		return
	}
	e.lazy = lazy
	if lazy || e.heap < 0 { // after the probe in flight, next sees it
		return
	}
	e.slow, e.slot = false, 0
	if soon := now + phase(e.id, e.q.check.Interval); soon < e.due {
		e.due = soon
		heap.Fix(&s.waiting, e.heap)
	}
}
