package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
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

func jitter(d time.Duration) time.Duration { return d/2 + time.Duration(below(uint64(d/2)+1)) }

// below draws a number below n. The randomness is crypto/rand's, which a test can seed.
func below(n uint64) uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) % n
}

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
// f runs again after a pause. With ErrUnfit another voter is asked to lead, if one says that it is fit (Network.Fit) and leadership was not
// handed over lately; when none is, this node stays the leader, says so in its Status, and asks again when f fails the next time. Lead
// returns nil when ctx ends and ErrClosed when the node closes. Any number of Leads may run.
func (n *Node) Lead(ctx context.Context, f func(ctx context.Context, term uint64) error) error {
	var again waiting
	defer again.stop()
	pause := shortestPause
	unfit := time.Duration(0) // how long it took f to say so; 0: it did not
	defer func() { n.trouble.over(n.log, troubleUnfit) }()
	for {
		r, changed := n.round.load()
		if r == nil {
			n.trouble.over(n.log, troubleUnfit)
			unfit = 0
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
		well := func() bool { return true }
		if unfit > 0 { // a run that lasts far longer than those that failed goes well
			well = time.AfterFunc(2*unfit+longestPause, func() { n.trouble.over(n.log, troubleUnfit) }).Stop
		}
		err := n.runRound(ctx, r, f)
		well()
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
			unfit = 0
			if errors.Is(err, ErrUnfit) {
				unfit = max(time.Since(begun), 1)
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

// fitWithin is how long the others are asked whether they are fit, all at once.
const fitWithin = 3 * time.Second

// MayHandOver reports whether ErrUnfit would hand leadership over now, if another voter is fit. After a handing over it does not for a
// while, for longer each time that it happens again soon; to end Lead's f with ErrUnfit then only interrupts it.
func (n *Node) MayHandOver() bool {
	n.unfit.mu.Lock()
	defer n.unfit.mu.Unlock()
	past := time.Since(n.unfit.last)
	if past > 2*n.unfit.stay {
		n.unfit.stay = 0
	}
	return past >= n.unfit.stay
}

// handOver hands leadership to another node that is fit. Every node bounds for itself how often it does; asking costs little and is
// bounded by the pauses of Lead.
func (n *Node) handOver(ctx context.Context, r *round) {
	now := time.Now()
	due := n.MayHandOver()
	if n.alone || r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, fitWithin+2*n.timing.Election+time.Second)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	able, err := n.able(ctx)
	switch {
	case r.ctx.Err() != nil:
		return
	case len(able) == 0:
		if !n.trouble.said(troubleUnfit) { // once: what the others say may differ a little each time
			n.trouble.say(n.log, troubleUnfit, err)
		}
		return
	}
	n.trouble.over(n.log, troubleUnfit)
	if !due {
		return
	}
	n.unfit.mu.Lock()
	n.unfit.last, n.unfit.stay = now, min(max(2*n.unfit.stay, shortestStay), longestStay)
	n.unfit.mu.Unlock()
	next := n.successor(able)
	if err := n.Transfer(ctx, next.ID); err != nil {
		n.log.Warn("another node should lead, but did not take over", "term", r.term, "node", next.Label(), "err", err)
		return
	}
	n.log.Warn("another node leads now, because this one is not fit to", "term", r.term, "node", next.Label())
}

// able returns the other voters that answer and are fit, or why there are none.
func (n *Node) able(ctx context.Context) (able []Member, err error) {
	var others []Member
	for _, m := range n.Members() {
		if m.Voter && !m.Self && n.alive(raft.ServerID(m.ID)) {
			others = append(others, m)
		}
	}
	if len(others) == 0 {
		return nil, errors.New("no other voter answers")
	}
	if n.net.Fit == nil {
		return others, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fitWithin)
	defer cancel()
	defer context.AfterFunc(n.life, cancel)()
	said := make([]error, len(others))
	var asked sync.WaitGroup
	for i, m := range others {
		asked.Go(func() { said[i] = n.net.Fit(ctx, m) })
	}
	asked.Wait()
	for i, m := range others {
		if said[i] == nil {
			able = append(able, m)
		} else {
			err = errors.Join(err, fmt.Errorf("%s: %w", m.Label(), said[i]))
		}
	}
	return able, err
}

// successor returns who of those that are able should lead instead of this node: not the one that led before it, if there is another,
// for that one may have been unfit as well.
func (n *Node) successor(able []Member) Member {
	n.unfit.mu.Lock()
	defer n.unfit.mu.Unlock()
	if i := slices.IndexFunc(able, func(m Member) bool { return m.ID == n.unfit.from }); i >= 0 && len(able) > 1 {
		able = slices.Delete(able, i, i+1)
	}
	return able[below(uint64(len(able)))]
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
