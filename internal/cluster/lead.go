package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// round is one time of leading. Its context ends with it.
type round struct {
	ctx  context.Context
	term uint64
}

// Pauses before something that failed is tried again: doubled each time, up to the longest, and spread by half.
const (
	shortestPause = 100 * time.Millisecond
	longestPause  = 10 * time.Second
)

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// watch follows raft's word on who leads. A round begins with its EventLead and ends with the leadership.
func (n *Node) watch(ctx context.Context) {
	end := func() {}
	defer func() {
		end()
		n.round.store(nil)
	}()
	var again waiting
	defer again.stop()
	var retry <-chan time.Time
	pause := shortestPause
	for {
		var leading bool
		select {
		case leading = <-n.raft.LeaderCh():
			// Also when it says true: leadership may have been lost and won since the last word.
			end()
			end = func() {}
			n.round.store(nil)
			pause = shortestPause
		case <-retry:
			leading = n.raft.State() == raft.Leader
		case <-ctx.Done():
			return
		}
		retry = nil
		if !leading {
			continue
		}
		r, cancel, err := n.lead(ctx)
		if err != nil {
			if ctx.Err() == nil {
				n.log.Warn("cannot begin to lead", "err", err)
			}
			retry = again.until(jitter(pause))
			pause = min(2*pause, longestPause)
			continue
		}
		end = cancel
		n.round.store(r)
	}
}

// lead makes a round: the state holds all that was ordered before it, and says who leads now.
func (n *Node) lead(ctx context.Context) (*round, context.CancelFunc, error) {
	term := n.raft.CurrentTerm()
	if err := n.raft.Barrier(enqueue).Error(); err != nil {
		return nil, nil, raftError(err)
	}
	e, err := n.Append(ctx, rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: n.name, Term: term}})
	if err != nil {
		return nil, nil, err
	}
	n.log.Info("leading", "term", term, "index", e.Index)
	ctx, cancel := context.WithCancel(ctx)
	return &round{ctx, term}, cancel, nil
}

// Lead runs f while this node leads, again in each term; f's context ends when the leadership does, and Lead waits for f. The state
// knows of the term before f runs. When f returns nil it is not run again in this term; when it returns an error, that is logged and
// f runs again after a pause. Lead returns nil when ctx ends and ErrClosed when the node closes. Any number of Leads may run.
func (n *Node) Lead(ctx context.Context, f func(ctx context.Context, term uint64) error) error {
	var again waiting
	defer again.stop()
	pause := shortestPause
	for {
		r, changed := n.round.load()
		if r == nil {
			select {
			case <-changed:
				pause = shortestPause
				continue
			case <-n.closing:
				return ErrClosed
			case <-ctx.Done():
				return nil
			}
		}
		begun := time.Now()
		err := n.runRound(ctx, r, f)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrClosed):
			return err
		case r.ctx.Err() != nil:
			if err != nil && !errors.Is(err, context.Canceled) {
				n.log.Warn("what this node did as leader ended with an error", "term", r.term, "err", err)
			}
		}
		var wait <-chan time.Time
		if r.ctx.Err() == nil && err != nil {
			if time.Since(begun) > longestPause {
				pause = shortestPause
			}
			d := jitter(pause)
			pause = min(2*pause, longestPause)
			n.log.Error("what this node does as leader failed and will be tried again", "term", r.term, "err", err, "in", d)
			wait = again.until(d)
		}
		select {
		case <-wait:
		case <-changed:
			pause = shortestPause
		case <-n.closing:
			return ErrClosed
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) runRound(ctx context.Context, r *round, f func(ctx context.Context, term uint64) error) error {
	if !n.rounds.enter() {
		return ErrClosed
	}
	defer n.rounds.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	return f(ctx, r.term)
}
