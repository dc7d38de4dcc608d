package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of what is said of one endpoint.
const (
	saidBurst   = 10  // sayings at once
	saidRate    = 1.0 // a second after that
	saidBy      = 8   // speakers whose numbers are remembered
	saidRetired = 32  // former incarnations of one speaker
	saidSweep   = time.Second
)

// Said is what endpoints' own agents say where nobody asks, on the leader: soft state, bounded by the configuration. What it comes to is the
// report of rota.OwnAgent. Its methods may be called from any goroutine.
type Said struct {
	node  *Node
	moved chan struct{} // something is to be shown

	mu  sync.Mutex // guards what follows
	of  map[rota.TargetID]*word
	seq uint64

	refused map[string]uint64 // by kind
	twice   time.Time         // when two were last heard to speak under one name
	trouble string            // which
}

// word is the last word on one target.
type word struct {
	opinion  *rota.Opinion
	heard    time.Time // by the node's clock; what the speaker's clock shows does not matter
	tokens   float64
	filled   time.Time
	speakers map[string]*speaker
}

// speaker is one name's numbers.
type speaker struct {
	incarnation, seq uint64
	began            time.Time // when the incarnation was first heard
	heard            time.Time
	earlier          []uint64 // incarnations, oldest first
}

// SaidRefusals are the kinds of what is refused: too often, older than what was said before, by a second process of one name.
var SaidRefusals = []string{"often", "before", "twice"}

// Errors of Said.Take.
var (
	ErrSaidBefore = errors.New("something newer was said before")
	ErrSaidTwice  = errors.New("two processes speak under one name")
	ErrSaidOften  = errors.New("too much is said of one endpoint: wait before the next")
)

// NewSaid makes the memory of what is said to a node.
func NewSaid(n *Node) *Said {
	return &Said{node: n, moved: make(chan struct{}, 1), of: map[rota.TargetID]*word{}, refused: map[string]uint64{}}
}

// Take takes in a saying, which the caller has made sure comes from whom it says, and returns the target that it is about. Only a node that
// leads takes it. Its errors are those of State.Said, ErrNotLeader, ErrSaidOften, ErrSaidBefore for a number that is not new, and ErrSaidTwice when
// two processes speak under one name.
func (k *Said) Take(x rota.Saying) (rota.Target, error) {
	if k.node.raft.Load().State() != raft.Leader {
		return rota.Target{}, ErrNotLeader
	}
	t, err := k.node.State().Said(x)
	if err != nil {
		return rota.Target{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.node.clock()
	s := k.of[t.ID]
	if s == nil {
		s = &word{tokens: saidBurst, filled: now, speakers: map[string]*speaker{}}
		k.of[t.ID] = s
	}
	s.tokens = min(saidBurst, s.tokens+saidRate*now.Sub(s.filled).Seconds())
	s.filled = now
	if s.tokens < 1 {
		k.refused["often"]++
		return t, ErrSaidOften
	}
	s.tokens--
	if err := s.order(x, now); err != nil {
		kind := "before"
		if errors.Is(err, ErrSaidTwice) {
			kind, k.twice, k.trouble = "twice", now, fmt.Sprintf("two processes say as %s how %s is: end one of them", x.By, t.ID)
		}
		k.refused[kind]++
		k.node.log.Warn("what was said of an endpoint is refused", "target", t.ID, "by", x.By, "err", err)
		return t, err
	}
	s.heard = now
	reason := "said by " + x.By
	if x.Reason != "" {
		reason += ": " + x.Reason
	}
	next := rota.Opinion{Target: t.ID, Status: x.Status, Class: rota.ClassSaid, Reason: rota.CleanReason("%s", reason), Since: now.UTC().Round(0)}
	if x.Status == rota.Up {
		last := uint8(0)
		if s.opinion != nil {
			last = s.opinion.Weight
		}
		next.Weight = rota.RoundWeight(last, x.Weight)
	}
	k.hold(s, next)
	return t, nil
}

// shownFor is how long Stats tells that two spoke under one name.
const shownFor = 5 * time.Minute

// Stats returns how many sayings were refused, by kind, and what a person should look at, or nothing.
func (k *Said) Stats() (refused map[string]uint64, trouble string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.twice.IsZero() && k.node.clock().Sub(k.twice) < shownFor {
		trouble = k.trouble
	}
	return maps.Clone(k.refused), trouble
}

// order judges whether a saying is newer than what the same speaker said before.
func (s *word) order(x rota.Saying, now time.Time) error {
	if x.Incarnation == 0 && x.Seq == 0 {
		return nil // it does not count
	}
	p := s.speakers[x.By]
	if p == nil {
		if len(s.speakers) >= saidBy {
			oldest := slices.MinFunc(slices.Collect(maps.Keys(s.speakers)), func(a, b string) int { return s.speakers[a].heard.Compare(s.speakers[b].heard) })
			delete(s.speakers, oldest)
		}
		p = &speaker{incarnation: x.Incarnation, began: now}
		s.speakers[x.By] = p
	}
	switch {
	case x.Incarnation == p.incarnation:
		if x.Seq <= p.seq {
			return fmt.Errorf("%w: number %d after %d", ErrSaidBefore, x.Seq, p.seq)
		}
	case slices.Contains(p.earlier, x.Incarnation):
		if now.Sub(p.began) <= straggle {
			return fmt.Errorf("%w: it is of the process before", ErrSaidBefore)
		}
		return fmt.Errorf("%w: end one of the two that speak as %s", ErrSaidTwice, x.By)
	default:
		p.earlier = append(p.earlier, p.incarnation)
		p.earlier = p.earlier[max(0, len(p.earlier)-saidRetired):]
		p.incarnation, p.began = x.Incarnation, now
	}
	p.seq, p.heard = x.Seq, now
	return nil
}

// hold makes an opinion that of a target, and has it shown soon when it is another one: with the others that change meanwhile, since the
// report is whole and many may speak at once.
func (k *Said) hold(s *word, next rota.Opinion) {
	if was := s.opinion; was != nil {
		if was.Status == next.Status {
			next.Since = was.Since
		}
		if *was == next {
			return
		}
	}
	s.opinion = &next
	select {
	case k.moved <- struct{}{}:
	default:
	}
}

// show makes the report what is held now.
func (k *Said) show() {
	r := &rota.Report{Vantage: rota.OwnAgent, At: k.node.clock()}
	for _, s := range k.of {
		if s.opinion != nil {
			r.Opinions = append(r.Opinions, s.opinion)
		}
	}
	slices.SortFunc(r.Opinions, func(a, b *rota.Opinion) int { return cmp.Compare(a.Target, b.Target) })
	k.seq++
	r.Seq = k.seq
	k.node.hear(r)
}

// Run lets what was said age until ctx ends, and then forgets all of it: while another node leads, others are told. It runs where a node
// leads.
func (k *Said) Run(ctx context.Context) {
	tick := time.NewTicker(saidSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			k.mu.Lock()
			clear(k.of)
			k.show()
			k.mu.Unlock()
			return
		case <-k.moved:
			select {
			case <-ctx.Done():
			case <-time.After(coalesce):
				k.mu.Lock()
				select {
				case <-k.moved: // it is in what is shown now
				default:
				}
				k.show()
				k.mu.Unlock()
			}
		case <-tick.C:
			k.sweep()
		}
	}
}

// sweep makes unknown what was said too long ago, and drops what is not asked any more.
func (k *Said) sweep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.of) == 0 {
		return
	}
	now, targets, gone := k.node.clock(), k.node.State().Targets(), false
	for id, s := range k.of {
		i, ok := slices.BinarySearchFunc(targets, id, func(t rota.Target, id rota.TargetID) int { return cmp.Compare(t.ID, id) })
		if !ok {
			delete(k.of, id)
			gone = true
			continue
		}
		age := cmp.Or(targets[i].Check.MaxAge, rota.DefaultMaxAge)
		if last := s.opinion; last != nil && last.Status != rota.Unknown && now.Sub(s.heard) > age {
			k.hold(s, rota.Opinion{
				Target: id, Class: rota.ClassStale, Since: now.UTC().Round(0),
				Reason: rota.CleanReason("nothing was said for %v; it was %v, %s", age, last.Status, last.Reason),
			})
		}
	}
	if gone {
		k.show()
	}
}
