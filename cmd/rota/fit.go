package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/publish"
)

// A leader is unfit when it cannot reach a DNS that another node can.
const (
	unfitAfter = 10 * time.Second // of a DNS that does not answer, before others are asked
	unfitEvery = 10 * time.Second // between two rounds of asking
	fitWithin  = 5 * time.Second  // for a peer to try
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

// watchFitness ends with cluster.ErrUnfit when this leader has not reached a DNS for a while and another voter does.
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
		if time.Since(since) < unfitAfter {
			continue
		}
		if m, ok := n.fitter(ctx, lost); ok {
			return fmt.Errorf("%w: publishers %v do not reach their DNS from here, and from %s they do", cluster.ErrUnfit, lost, m.Label())
		}
		since = time.Now().Add(unfitEvery - unfitAfter)
	}
}

// fitter returns a voter that reaches the DNS of publishers that this node does not.
func (n *node) fitter(ctx context.Context, lost []string) (cluster.Member, bool) {
	ctx, cancel := context.WithTimeout(ctx, fitWithin)
	defer cancel()
	type reply struct {
		m   cluster.Member
		err error
	}
	var asked []cluster.Member
	for _, m := range n.raft.Members() {
		if m.Voter && !m.Self {
			asked = append(asked, m)
		}
	}
	replies := make(chan reply, len(asked))
	for _, m := range asked {
		go func() { replies <- reply{m, n.net.fit(ctx, m, lost)} }() // ends with ctx
	}
	for range asked {
		if r := <-replies; r.err == nil {
			return r.m, true
		}
	}
	return cluster.Member{}, false
}

// askFit asks a voter whether it reaches the DNS, before leadership is handed to it.
func (w *network) askFit(ctx context.Context, m cluster.Member) error { return w.fit(ctx, m, nil) }

// fit returns nil when a node reaches the DNS of publishers; of all of its own when none is named.
func (w *network) fit(ctx context.Context, m cluster.Member, of []string) error {
	var f fitness
	if err := w.call(ctx, m.ID, http.MethodGet, fitPath, nil, &f); err != nil {
		return err
	}
	for _, p := range f.Unreachable {
		if len(of) == 0 || slices.Contains(of, p) {
			return fmt.Errorf("publisher %s does not reach its DNS from %s either", p, m.Label())
		}
	}
	return nil
}

// fitFor tries this node's way to the DNS: it reads, and changes nothing.
func (n *node) fitFor(ctx context.Context, _ link.Identity, _ struct{}) (fitness, error) {
	ctx, cancel := context.WithTimeout(ctx, fitWithin)
	defer cancel()
	f := fitness{Unreachable: []string{}}
	for _, p := range n.current.Load().publishers {
		plan, err := p.Plan(ctx)
		blind := len(plan.Zones) > 0
		for _, z := range plan.Zones {
			blind = blind && silent(z.Reasons)
		}
		if blind || errors.Is(err, context.DeadlineExceeded) {
			f.Unreachable = append(f.Unreachable, p.Name())
		}
	}
	return f, nil
}
