package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
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
	r := n.raft.Load()
	for {
		var leading bool
		select {
		case leading = <-r.LeaderCh():
			// Also when it says true: leadership may have been lost and won since the last word.
			end()
			end = func() {}
			n.round.store(nil)
			pause = shortestPause
		case <-retry:
			leading = r.State() == raft.Leader
		case <-ctx.Done():
			return
		}
		retry = nil
		if !leading {
			continue
		}
		begun, cancel, err := n.lead(ctx)
		if err != nil {
			if ctx.Err() == nil {
				n.log.Warn("cannot begin to lead", "err", err)
			}
			retry = again.until(jitter(pause))
			pause = min(2*pause, longestPause)
			continue
		}
		end = cancel
		n.round.store(begun)
	}
}

// lead makes a round: the state holds all that was ordered before it, and says who leads now.
func (n *Node) lead(ctx context.Context) (*round, context.CancelFunc, error) {
	term := n.raft.Load().CurrentTerm()
	if err := n.raft.Load().Barrier(enqueue).Error(); err != nil {
		return nil, nil, raftError(err)
	}
	e, err := n.AppendHere(ctx, rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: n.name, Term: term}})
	if err != nil {
		return nil, nil, err
	}
	n.log.Info("leading", "term", term, "index", e.Index)
	ctx, cancel := context.WithCancel(ctx)
	return &round{ctx, term}, cancel, nil
}

// Lead runs f while this node leads, again in each term; f's context ends when the leadership does, and Lead waits for f. The state
// knows of the term before f runs. When f returns nil it is not run again in this term; when it returns an error, that is logged and
// f runs again after a pause. With ErrUnfit another node is asked to lead, if there is one and that was not tried lately. Lead returns nil when ctx ends and ErrClosed when the node closes. Any number of Leads may run.
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
			if errors.Is(err, ErrUnfit) {
				n.handOver(ctx, r)
			}
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

// ErrUnfit says that a node cannot do as leader what another might, for instance reach the DNS. Lead's f returns it, wrapped or not.
var ErrUnfit = errors.New("this node is not fit to lead")

// How soon a node that was unfit hands leadership over again: doubled each time, so that leadership does not go round and round when
// no node is fit, and forgotten after a while of being fit.
const (
	shortestStay = time.Minute
	longestStay  = time.Hour
)

// handOver hands leadership to another node. Every node bounds for itself how often it does.
func (n *Node) handOver(ctx context.Context, r *round) {
	n.unfit.mu.Lock()
	now := time.Now()
	if now.Sub(n.unfit.last) > 2*n.unfit.stay {
		n.unfit.stay = 0
	}
	due := n.unfit.stay == 0 || now.Sub(n.unfit.last) >= n.unfit.stay
	if due {
		n.unfit.last, n.unfit.stay = now, min(max(2*n.unfit.stay, shortestStay), longestStay)
	}
	n.unfit.mu.Unlock()
	if !due || n.alone || r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.timing.Election+time.Second)
	defer cancel()
	err := n.Transfer(ctx, n.successor())
	if err != nil {
		n.log.Warn("another node should lead, but none could be asked", "term", r.term, "err", err)
		return
	}
	n.log.Warn("another node is asked to lead, because this one is not fit to", "term", r.term)
}

// successor returns who should lead instead of this node: not the one that led before it, if there is another, for that one may have
// been unfit as well.
func (n *Node) successor() string {
	n.unfit.mu.Lock()
	defer n.unfit.mu.Unlock()
	var able []string
	for _, m := range n.Members() {
		if m.Voter && !m.Self && n.alive(raft.ServerID(m.ID)) {
			able = append(able, m.ID)
		}
	}
	if i := slices.Index(able, n.unfit.from); i >= 0 && len(able) > 1 {
		able = slices.Delete(able, i, i+1)
	}
	if len(able) == 0 {
		return ""
	}
	return able[rand.N(len(able))]
}

// followLeader shows who leads to whoever waits for another one.
func (n *Node) followLeader(ctx context.Context, seen <-chan raft.Observation) {
	was := Member{}
	var pause waiting
	defer pause.stop()
	for {
		// Looked at also without a word: raft drops observations that nobody takes in time.
		now, _ := n.Leader()
		if now.ID != was.ID || now.Address != was.Address {
			if !now.Self && now.ID != "" {
				n.unfit.mu.Lock()
				n.unfit.from = now.ID
				n.unfit.mu.Unlock()
			}
			was = now
			n.leader.store(now.ID)
		}
		select {
		case <-seen:
		case <-pause.until(time.Second):
		case <-ctx.Done():
			return
		}
	}
}
