package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/publish"
)

// A leader is unfit when it cannot reach a DNS that another node can.
const (
	unfitAfter = 10 * time.Second // of a DNS that does not answer, before others are asked
	unfitEvery = 10 * time.Second // between two rounds of asking
	fitWithin  = 10 * time.Second // for all peers to say it
	tryWithin  = 8 * time.Second  // for a node to try
)

// fitness is what a node says of its way to the DNS.
type fitness struct {
	Unreachable []string `json:"unreachable"` // publishers that do not reach their DNS from there
}

// unreachable lists the publishers that do not reach the DNS of any of their zones, by what they said last.
func (n *node) unreachable() []string {
	var out []string
	for _, p := range n.current.Load().publishers {
		if s := p.Status(); outOfReach(s) {
			out = append(out, p.Name())
		}
	}
	return out
}

// outOfReach reports whether a publisher with zones gets no answer for any of them.
func outOfReach(s publish.Status) bool {
	for _, z := range s.Zones {
		if !silent(z.Reasons) {
			return false
		}
	}
	return len(s.Zones) > 0 || silent(s.Lost)
}

func silent(rs []*publish.Reason) bool {
	return slices.ContainsFunc(rs, func(r *publish.Reason) bool { return r.Code == publish.CodeUnreachable })
}

// watchFitness ends with cluster.ErrUnfit when this leader has not reached a DNS for a while, a voter does that lacks nothing which is
// reached from here, and leadership may be handed over now. Nothing less disturbs what a leader does.
func (n *node) watchFitness(ctx context.Context) error {
	if n.net == nil {
		return nil
	}
	since := time.Time{}
	for {
		if err := pause(ctx, time.Second, nil); err != nil {
			return nil
		}
		lost := n.unreachable()
		switch {
		case len(lost) == 0:
			since = time.Time{}
			continue
		case since.IsZero():
			since = time.Now()
		}
		if time.Since(since) < unfitAfter || !n.raft.MayHandOver() {
			continue
		}
		if ms := n.fitter(ctx, lost); len(ms) > 0 {
			n.able.Store(&able{time.Now(), ms})
			return fmt.Errorf("%w: publishers %v do not reach their DNS from here, and from %s more of them do", cluster.ErrUnfit, lost, ms[0].Label())
		}
		since = time.Now().Add(unfitEvery - unfitAfter)
	}
}

// able is who was found to reach the DNS better than this node. It is immutable.
type able struct {
	at      time.Time
	members []cluster.Member
}

// ableFor is how long what the others said of their way to the DNS is believed: until leadership is handed over.
const ableFor = 30 * time.Second

// fitter returns the voters that reach the DNS of more publishers than this node, which lost those, and of none less.
func (n *node) fitter(ctx context.Context, lost []string) (out []cluster.Member) {
	ctx, cancel := context.WithTimeout(ctx, fitWithin)
	defer cancel()
	var asked []cluster.Member
	for _, m := range n.raft.Members() {
		if m.Voter && !m.Self {
			asked = append(asked, m)
		}
	}
	fits := make([]bool, len(asked))
	var wg sync.WaitGroup
	for i, m := range asked {
		wg.Go(func() {
			var f fitness
			fits[i] = n.net.call(ctx, m.ID, http.MethodGet, fitPath, nil, &f) == nil && better(f.Unreachable, lost)
		})
	}
	wg.Wait()
	for i, m := range asked {
		if fits[i] {
			out = append(out, m)
		}
	}
	return out
}

// better reports whether who does not reach some publishers' DNS is better off than who lost others: it lacks nothing else, and not all
// of that.
func better(unreachable, lost []string) bool {
	both := 0
	for _, p := range unreachable {
		if !slices.Contains(lost, p) {
			return false
		}
		both++
	}
	return both < len(lost)
}

// fit says whether a voter was just found to reach the DNS better than this node.
func (n *node) fit(_ context.Context, m cluster.Member) error {
	a := n.able.Load()
	if a == nil || time.Since(a.at) > ableFor || !slices.ContainsFunc(a.members, func(x cluster.Member) bool { return x.ID == m.ID }) {
		return errors.New("it does not say that it reaches the DNS better than this node")
	}
	return nil
}

// fitFor tries this node's way to the DNS: it reads, and changes nothing.
func (n *node) fitFor(ctx context.Context, _ link.Identity, _ struct{}) (fitness, error) {
	ctx, cancel := context.WithTimeout(ctx, tryWithin)
	defer cancel()
	publishers := n.current.Load().publishers
	blind := make([]bool, len(publishers))
	var wg sync.WaitGroup
	for i, p := range publishers {
		wg.Go(func() {
			plan, err := p.Plan(ctx)
			blind[i] = len(plan.Zones) > 0 || err != nil
			for _, z := range plan.Zones {
				blind[i] = blind[i] && silent(z.Reasons)
			}
		})
	}
	wg.Wait()
	f := fitness{Unreachable: []string{}}
	for i, p := range publishers {
		if blind[i] {
			f.Unreachable = append(f.Unreachable, p.Name())
		}
	}
	return f, nil
}
