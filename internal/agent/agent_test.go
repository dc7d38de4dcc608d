package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
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
	strict  bool  // takes no report by another table
	stuck   bool  // Report never comes back
	posted  int   // reports, taken or not
	news    chan struct{}
	asked   atomic.Int64
	reports []rota.Report
	times   []time.Time
}

func newNode(name string, ts ...rota.Target) *node {
	return &node{name: name, table: tableOf("n1/1", ts...), news: make(chan struct{})}
}

func tableOf(lead string, ts ...rota.Target) Table {
	t := rota.TableOf(ts)
	return Table{Fingerprint: t.Fingerprint().String(), Lead: lead, Targets: ts, Given: t}
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
		case t.Fingerprint != known.Fingerprint || t.Lead != known.Lead || known.Lead == "":
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

func (n *node) Report(ctx context.Context, t *rota.Table, r *rota.Report) error {
	n.mu.Lock()
	n.posted++
	fail, hang := cmp.Or(n.fail, n.deaf), n.hang || n.stuck
	if fail == nil && n.strict && t.Fingerprint().String() != n.table.Fingerprint {
		fail = fmt.Errorf("the leader says: %w", rota.ErrTable)
	}
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
		var all []Upstream
		for _, u := range us {
			u.news = make(chan struct{}) // of this bubble
			all = append(all, u)
		}
		a := Agent{Name: "edge", Prober: p, Upstreams: func() []Upstream { return all }}
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
			if r.Seq != uint64(i+1) || r.Vantage != "edge" || r.Incarnation == 0 || r.Incarnation != n.got()[0].Incarnation || r.Sent.IsZero() {
				t.Errorf("report %d is number %d of %s", i, r.Seq, r.Vantage)
			}
		}
		if n.asked.Load() > 8 {
			t.Errorf("asked for the targets %d times in a quiet minute", n.asked.Load())
		}
		// A change is told soon; a burst is two more reports.
		wait(reportGap)
		before := len(n.got())
		began := time.Now()
		p.hold("-")
		wait(reportGather)
		if got := n.got(); len(got) != before+1 || got[before].Opinions[0].Status != rota.Down || n.when()[before].Sub(began) != reportGather {
			t.Errorf("a change was told with %d reports", len(got)-before)
		}
		for range 50 {
			p.hold("+")
			time.Sleep(time.Millisecond)
			p.hold("-")
			synctest.Wait()
		}
		wait(reportGap)
		if got := n.got(); len(got) != before+2 || got[len(got)-1].Opinions[0].Status != rota.Down {
			t.Errorf("a burst of a hundred changes was told with %d reports", len(got)-before-1)
		}
		// Other targets and another leader: at once.
		n.change(func(n *node) { n.table = tableOf("n1/1", one, two) })
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

// While nobody leads no node takes reports; whoever leads then is told at once, however long the agent would have waited.
func TestAgentNewLeaderAfterNone(t *testing.T) {
	a := newNode("a", one)
	bubble(t, []*node{a}, func(t *testing.T, _ *prober) {
		a.change(func(n *node) { n.deaf = errors.New("no node leads") })
		wait(time.Minute)
		for term := range 5 {
			before := len(a.got())
			a.change(func(n *node) { n.table.Lead, n.deaf = fmt.Sprint("n2/", term), nil })
			wait(askGap)
			if got := len(a.got()) - before; got != 1 {
				t.Errorf("the new leader of term %d heard %d reports", term, got)
			}
			a.change(func(n *node) { n.deaf = errors.New("no node leads") })
			wait(time.Minute)
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
		for i, r := range b.got()[1:] {
			if r.Seq <= b.got()[i].Seq {
				t.Errorf("number %d after %d", r.Seq, b.got()[i].Seq)
			}
		}
	})
}

// A leader with other targets refuses the report; who said so is asked for them, and the next report fits.
func TestAgentStaleTargets(t *testing.T) {
	a, b := newNode("a", one), newNode("b", one, two)
	a.deaf, b.strict = errors.New("503 no leader"), true
	bubble(t, []*node{a, b}, func(t *testing.T, p *prober) {
		// a still gives old targets, and cannot hand on reports.
		wait(time.Second)
		if got := b.got(); len(got) == 0 {
			t.Error("no report fits after a second")
		}
		if n, _ := p.counts(); n != 2 {
			t.Errorf("%d targets are probed, want the leader's", n)
		}
		// Targets change while the question is open: at once.
		b.mu.Lock()
		b.table = tableOf("n1/1", one) // without a word
		before := len(b.reports)
		b.mu.Unlock()
		p.hold("--")
		wait(reportGap + reportGather)
		if len(b.got()) != before+1 {
			t.Errorf("%d reports were taken after the change", len(b.got())-before)
		}
		// One whose own answers do not fit each other is left for the next, and nobody is stormed.
		a.change(func(n *node) { n.deaf = nil })
		b.mu.Lock()
		b.deaf = fmt.Errorf("forwarded: %w", rota.ErrTable)
		posted, had := b.posted, len(a.reports)
		b.mu.Unlock()
		wait(2 * ReportEvery)
		if len(a.got()) == had {
			t.Error("the other upstream got no report")
		}
		if n := b.posted - posted; n > maxStale+1 {
			t.Errorf("%d reports were sent to one that refuses all", n)
		}
	})
}

// Another leader hears at once, even while a report to the one before hangs; too many reports are a reason to wait, not to turn.
func TestAgentNewsWhileSending(t *testing.T) {
	a := newNode("a", one)
	b := newNode("b", one)
	bubble(t, []*node{a, b}, func(t *testing.T, p *prober) {
		wait(2 * time.Second)
		a.mu.Lock()
		a.stuck = true
		a.mu.Unlock()
		p.hold("-")
		wait(reportGather)
		before := len(a.got())
		a.change(func(n *node) { n.table.Lead, n.stuck = "n2/2", false })
		synctest.Wait()
		if got := len(a.got()) - before; got != 1 {
			t.Errorf("the new leader heard %d reports", got)
		}
		a.change(func(n *node) { n.deaf = &Refusal{Status: http.StatusTooManyRequests} })
		wait(ReportEvery + 2*time.Second)
		if len(b.got()) != 0 || a.posted > 10 {
			t.Errorf("%d reports to the other upstream, %d to this one", len(b.got()), a.posted)
		}
	})
}

// When there are other nodes, the agent turns to them as soon as the one in use fails.
func TestAgentOtherNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := newNode("old", one), newNode("new", one)
		var all atomic.Pointer[[]Upstream]
		all.Store(&[]Upstream{old})
		p := newProber()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Agent{Name: "edge", Prober: p, Upstreams: func() []Upstream { return *all.Load() }}.Run(ctx)
		}()
		wait(time.Second)
		all.Store(&[]Upstream{fresh})
		wait(time.Minute)
		if len(fresh.got()) != 0 {
			t.Error("it left a node that works")
		}
		old.change(func(n *node) { n.fail = errors.New("gone") })
		wait(ReportEvery)
		if len(fresh.got()) == 0 || fresh.asked.Load() == 0 {
			t.Error("the new node hears nothing")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
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
