package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// node is an upstream by hand.
type node struct {
	name string

	mu      sync.Mutex
	table   Table
	fail    error // of every call
	hang    bool  // calls never come back
	deaf    error // of Report only
	news    chan struct{}
	asked   atomic.Int64
	reports []rota.Report
	times   []time.Time
}

func newNode(name string, ts ...rota.Target) *node {
	return &node{name: name, table: Table{Fingerprint: fmt.Sprint(ts), Lead: "n1/1", Targets: ts}, news: make(chan struct{})}
}

func (n *node) String() string { return n.name }

func (n *node) change(f func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
	close(n.news)
	n.news = make(chan struct{})
}

func (n *node) Targets(ctx context.Context, known Table) (Table, error) {
	n.asked.Add(1)
	end := time.After(waitForNews)
	for {
		n.mu.Lock()
		t, fail, hang, news := n.table, n.fail, n.hang, n.news
		n.mu.Unlock()
		switch {
		case hang:
			<-ctx.Done()
			return Table{}, ctx.Err()
		case fail != nil:
			return Table{}, fail
		case t.Fingerprint != known.Fingerprint || t.Lead != known.Lead:
			return t, nil
		}
		select {
		case <-news:
		case <-end:
			return t, nil
		case <-ctx.Done():
			return Table{}, ctx.Err()
		}
	}
}

func (n *node) Report(ctx context.Context, r *rota.Report) error {
	n.mu.Lock()
	fail, hang := errors.Join(n.fail, n.deaf), n.hang
	if fail == nil && !hang {
		n.reports = append(n.reports, *r)
		n.times = append(n.times, time.Now())
	}
	n.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return fail
}

func (n *node) when() []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.times)
}

func (n *node) got() []rota.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.reports)
}

// bubble runs an agent with upstreams for the length of f.
func bubble(t *testing.T, us []*node, f func(t *testing.T, p *prober)) {
	synctest.Test(t, func(t *testing.T) {
		p := newProber()
		a := Agent{Name: "edge", Prober: p}
		for _, u := range us {
			u.news = make(chan struct{}) // of this bubble
			a.Upstreams = append(a.Upstreams, u)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		synctest.Wait()
		f(t, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

var one, two = target(rota.KindTCP, "10.0.0.1:80"), target(rota.KindTCP, "10.0.0.2:80")

// wait passes time and lets everything settle.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestAgentPace(t *testing.T) {
	n := newNode("n1", one)
	bubble(t, []*node{n}, func(t *testing.T, p *prober) {
		wait(time.Minute)
		times := n.when()
		for i, at := range times[1:] {
			if gap := at.Sub(times[i]); gap > ReportEvery || gap < ReportEvery*9/10 {
				t.Errorf("reports %d and %d are %v apart", i, i+1, gap)
			}
		}
		for i, r := range n.got() {
			if r.Seq != uint64(i+1) || r.Vantage != "edge" {
				t.Errorf("report %d is number %d of %s", i, r.Seq, r.Vantage)
			}
		}
		if n.asked.Load() > 8 {
			t.Errorf("asked for the targets %d times in a quiet minute", n.asked.Load())
		}
		// A change is told at once; a burst is one more report.
		before := len(n.got())
		began := time.Now()
		p.hold("-")
		synctest.Wait()
		if got := n.got(); len(got) != before+1 || got[before].Opinions[0].Status != rota.Down || !n.when()[before].Equal(began) {
			t.Errorf("a change was told with %d reports", len(got)-before)
		}
		for range 50 {
			p.hold("+")
			time.Sleep(time.Millisecond)
			p.hold("-")
			synctest.Wait()
		}
		wait(reportGap)
		if got := n.got(); len(got) > before+3 || got[len(got)-1].Opinions[0].Status != rota.Down {
			t.Errorf("a burst of a hundred changes was told with %d reports", len(got)-before-1)
		}
		// Other targets and another leader: at once.
		n.change(func(n *node) { n.table = Table{Fingerprint: "2", Lead: "n1/1", Targets: []rota.Target{one, two}} })
		wait(askGap)
		if c, _ := p.counts(); c != 2 {
			t.Errorf("the prober has %d targets", c)
		}
		wait(time.Second)
		before = len(n.got())
		n.change(func(n *node) { n.table.Lead = "n2/2" })
		wait(askGap)
		if got := len(n.got()); got != before+1 {
			t.Errorf("a new leader was told %d reports", got-before)
		}
		if _, sets := p.counts(); sets != 2 {
			t.Errorf("the prober's targets were set %d times", sets)
		}
	})
}

func TestAgentFailsOver(t *testing.T) {
	a, b := newNode("a", one), newNode("b", one)
	a.fail = errors.New("refused")
	bubble(t, []*node{a, b}, func(t *testing.T, p *prober) {
		if len(b.got()) != 1 {
			t.Fatalf("the second upstream got %d reports at the start", len(b.got()))
		}
		// The one in use hangs: the other gets the next report within the time of one.
		a.change(func(n *node) { n.fail = nil })
		b.change(func(n *node) { n.hang = true })
		wait(ReportEvery + sendTimeout)
		if len(a.got()) == 0 {
			t.Error("the first upstream got nothing while the second hangs")
		}
		// All gone for an hour: the prober keeps its targets, nobody is stormed, and nothing is kept for later.
		a.change(func(n *node) { n.fail = errors.New("gone") })
		b.change(func(n *node) { n.fail, n.hang = errors.New("gone"), false })
		wait(time.Minute)
		asked, had := a.asked.Load(), len(a.got())+len(b.got())
		for i := range 60 {
			p.hold([]string{"+", "-"}[i%2])
			wait(time.Minute)
		}
		if c, sets := p.counts(); c != 1 || sets != 1 {
			t.Errorf("without an upstream the prober has %d targets, set %d times", c, sets)
		}
		if n := a.asked.Load() - asked; n > 3600/2 || n < 3600/10 {
			t.Errorf("asked %d times in an hour without an answer", n)
		}
		p.hold("+")
		a.change(func(n *node) { n.fail = nil })
		wait(2 * maxPause)
		got := a.got()
		if len(a.got())+len(b.got())-had > 2 || got[len(got)-1].Opinions[0].Status != rota.Up {
			t.Errorf("after an hour %d reports, the last %v", len(got)-had, statusesOf(&got[len(got)-1]))
		}
	})
}

// A node that can be asked and cannot hand on reports is left for reports only.
func TestAgentDeafNode(t *testing.T) {
	a, b := newNode("a", one), newNode("b", one)
	a.deaf = errors.New("503 no leader")
	bubble(t, []*node{a, b}, func(t *testing.T, _ *prober) {
		wait(time.Minute)
		if len(b.got()) < 6 || b.asked.Load() != 0 {
			t.Errorf("b got %d reports and %d questions", len(b.got()), b.asked.Load())
		}
		if got := b.got(); got[0].Seq != 1 || got[1].Seq != 2 {
			t.Errorf("numbers %d, %d", got[0].Seq, got[1].Seq)
		}
		// Overtaken: it begins anew.
		b.change(func(n *node) { n.deaf = fmt.Errorf("%w: 99", ErrOvertaken) })
		wait(ReportEvery)
		b.change(func(n *node) { n.deaf = nil })
		before := len(b.got())
		wait(2 * ReportEvery)
		if got := b.got(); got[before].Seq != 1 {
			t.Errorf("after being overtaken the number is %d", got[before].Seq)
		}
	})
}

func TestAgentStart(t *testing.T) {
	n := newNode("n", one)
	n.fail = errors.New("503 no state yet")
	bubble(t, []*node{n}, func(t *testing.T, p *prober) {
		wait(time.Minute)
		if _, sets := p.counts(); sets != 0 || len(n.got()) != 0 {
			t.Error("without targets something was set or reported")
		}
		// An answer that names no table is none.
		n.change(func(n *node) { n.fail, n.table = nil, Table{} })
		wait(time.Minute)
		if _, sets := p.counts(); sets != 0 {
			t.Error("an empty answer set the targets")
		}
	})
	if err := (Agent{}).Run(t.Context()); err == nil {
		t.Error("an agent without upstreams runs")
	}
}
