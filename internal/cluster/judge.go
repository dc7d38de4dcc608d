package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

const (
	coalesce = 5 * time.Millisecond // reports that arrive within this time are judged together
	maxSleep = 30 * time.Second     // deadlines are looked at again after this: the machine may have slept
	leastGap = time.Second          // between ticks that change nothing
)

// heard is what was last judged of a vantage.
type heard struct {
	report *rota.Report
	fresh  bool
}

// judge is what the leader's loop remembers.
type judge struct {
	node   *Node
	state  *rota.State
	due    time.Time // state's deadline
	ticked time.Time // when the last tick was appended
	spec   *rota.Service
	heard  map[string]heard
}

// Judge is the leader's loop: it turns reports into verdicts and appends those that changed, and appends a tick when the state's
// deadline is due. It appends nothing while nothing changes. It returns nil when ctx ends, else the error of an Append; run it inside
// Lead.
func (n *Node) Judge(ctx context.Context) error {
	j := &judge{node: n}
	var pause, gather waiting
	defer pause.stop()
	defer gather.stop()
	for {
		reports, reported := n.reports.load()
		changed := n.Changed()
		state := n.State()
		now := n.clock()
		wake, err := j.step(ctx, state, reports, now)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if n.State() != state {
			continue
		}
		select {
		case <-reported:
			select {
			case <-gather.until(coalesce):
			case <-ctx.Done():
				return nil
			}
		case <-changed:
		case <-pause.until(min(max(wake.Sub(n.clock()), 0), maxSleep)):
		case <-ctx.Done():
			return nil
		}
	}
}

// step judges what moved and returns when to look again at the latest.
func (j *judge) step(ctx context.Context, s *rota.State, reports []*rota.Report, now time.Time) (wake time.Time, err error) {
	targets, wake := j.moved(s, reports, now)
	if len(targets) > 0 {
		if verdicts := s.Judge(targets, reports, now); len(verdicts) > 0 {
			if err := j.node.appendVerdicts(ctx, verdicts); err != nil {
				return wake, err
			}
		}
	}
	if j.state != s {
		j.state, j.due = s, s.Deadline()
	}
	if j.due.IsZero() {
		return wake, nil
	}
	if !j.due.After(j.node.Now()) {
		if next := j.ticked.Add(leastGap); next.After(now) {
			return earlier(wake, next), nil
		}
		j.ticked = now
		_, err := j.node.AppendHere(ctx, rota.Event{Kind: rota.EventTick})
		return wake, err
	}
	return earlier(wake, j.due), nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// moved returns the targets on which the votes may differ from those last judged, and when a report will have aged out.
func (j *judge) moved(s *rota.State, reports []*rota.Report, now time.Time) (targets []rota.TargetID, wake time.Time) {
	wake = now.Add(maxSleep)
	maxAge := cmp.Or(s.Spec().Quorum.MaxAge, rota.DefaultMaxAge)
	next := make(map[string]heard, len(reports))
	for _, r := range reports {
		own := r.Vantage == rota.OwnAgent // of which each opinion has an age of its own
		h := heard{r, own || now.Sub(r.At) <= maxAge}
		if h.fresh && !own {
			wake = earlier(wake, r.At.Add(maxAge+1))
		}
		next[r.Vantage] = h
		switch was := j.heard[r.Vantage]; {
		case was == h:
		case was.fresh != h.fresh:
			for _, o := range r.Opinions {
				targets = append(targets, o.Target)
			}
			fallthrough // what it no longer speaks of moved as well
		case h.fresh:
			targets = append(targets, rota.Moved(was.report, r)...)
		}
	}
	j.heard = next
	if !j.sameSpec(s) {
		targets = targets[:0]
		for _, t := range s.Targets() {
			targets = append(targets, t.ID)
		}
		return targets, wake
	}
	slices.Sort(targets)
	return slices.Compact(targets), wake
}

// sameSpec reports whether the spec is the one last judged by: a new one may bring targets, vantages and another quorum.
func (j *judge) sameSpec(s *rota.State) bool {
	var first *rota.Service
	if v := s.Services(); len(v) > 0 {
		first = &v[0]
	}
	same := j.state != nil && first == j.spec
	j.spec = first
	return same
}

// appendVerdicts appends the verdicts as one event, so that what fell together is decided together; as more only when one event
// cannot hold them.
func (n *Node) appendVerdicts(ctx context.Context, vs []rota.Verdict) error {
	_, err := n.AppendHere(ctx, rota.Event{Kind: rota.EventVerdicts, Verdicts: vs})
	if errors.Is(err, ErrTooLarge) && len(vs) > 1 {
		if err := n.appendVerdicts(ctx, vs[:len(vs)/2]); err != nil {
			return err
		}
		return n.appendVerdicts(ctx, vs[len(vs)/2:])
	}
	return err
}
