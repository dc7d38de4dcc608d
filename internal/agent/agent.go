package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/rota"
)

// Pacing of an agent.
const (
	ReportEvery  = 10 * time.Second       // reports are at most this far apart while an upstream answers
	reportGap    = 500 * time.Millisecond // and at least this far, however much changes
	reportGather = 50 * time.Millisecond  // changes within this time go together
	askGap       = time.Second            // between questions for the targets, at least
	askTimeout   = MaxWait + 5*time.Second
	sendTimeout  = 5 * time.Second
	firstPause   = 500 * time.Millisecond // when all upstreams failed; it doubles, with half of it at random
	maxPause     = 5 * time.Second
	maxStale     = 2 // reports in a row on other targets than the upstream's, after which another upstream is tried
)

// Table is what a vantage has to probe, and who leads.
type Table struct {
	Fingerprint string        // equal for equal targets; empty: nothing is known
	Pace        string        // another word when others of the targets are lazy (rota.Target.Lazy); empty: none is
	Lead        string        // another word when another node leads; empty: nobody is known to
	Targets     []rota.Target // those that this version can probe; left out when fingerprint and pace are those known
	Given       *rota.Table   // all of them, by which a report is packed; nil when left out, and of an upstream that does not pack
}

// Upstream is one node, or healthd, that an agent works for.
//
// Targets returns what is to be probed. While fingerprint, pace and lead are as known, it may wait for a change, up to MaxWait, before it
// says so; a known table without fingerprint or lead is answered at once.
//
// Report delivers a whole report on the targets of a table. After nil it has been taken; after rota.ErrTable the targets are others by
// now. Both are called by one goroutine each and end when their context does.
type Upstream interface {
	Targets(ctx context.Context, known Table) (Table, error)
	Report(ctx context.Context, t *rota.Table, r *rota.Report) error
	String() string // for people, and to tell upstreams apart
}

// MaxWait bounds how long Upstream.Targets waits for a change.
const MaxWait = 30 * time.Second

// Prober probes. Set says what, all of it; Report returns all opinions; Changed returns a channel that is closed at the next report.
// Who gives it to an agent runs it, too.
type Prober interface {
	Set(targets []rota.Target)
	Report() *rota.Report
	Changed() <-chan struct{}
}

// Agent is a vantage without a vote in raft: it probes what a node tells it, and reports. It keeps nothing: while no upstream answers
// it goes on probing the last targets, and what it reports afterwards is how things are then.
type Agent struct {
	Name      string            // of the vantage, as in its certificate
	Prober    Prober            // probes the targets
	Upstreams func() []Upstream // the first that answers is worked for; when it fails, the next of those that there are then. Never none
	Log       *slog.Logger
}

// Run works until ctx ends and returns nil then.
func (a Agent) Run(ctx context.Context) error {
	if a.Prober == nil || a.Upstreams == nil || len(a.Upstreams()) == 0 || a.Name == "" {
		return errors.New("agent: a name, a prober and at least one upstream are needed")
	}
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	w := &work{Agent: a, now: make(chan struct{}, 1), again: make(chan Upstream, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { w.follow(ctx); return nil })
	g.Go(func() error { w.report(ctx); return nil })
	return g.Wait()
}

// work is an agent that runs.
type work struct {
	Agent
	given atomic.Pointer[rota.Table] // what reports are packed by
	now   chan struct{}              // has room for one: report at once
	again chan Upstream              // has room for one: ask this one for the targets, at once
}

// follow keeps the prober's targets those of the upstream, and has a report sent when there are others or another node leads.
func (w *work) follow(ctx context.Context) {
	road := newRoad(w.Log, "targets", w.Upstreams)
	var known Table
	for ctx.Err() == nil {
		began := time.Now()
		t, ask, err := w.fetch(ctx, road.now, known)
		switch {
		case ctx.Err() != nil:
			return
		case ask != nil:
			road.now = ask
			known.Lead = "" // then it answers at once, and a report follows
			continue
		case err != nil:
			sleep(ctx, road.failed(err))
			continue
		}
		road.worked()
		changed := t.Fingerprint != known.Fingerprint
		if changed || t.Pace != known.Pace {
			w.Log.Info("targets", "upstream", road.now, "targets", len(t.Targets), "fingerprint", rota.CleanReason("%.16s", t.Fingerprint))
			w.given.Store(t.Given)
			w.Prober.Set(t.Targets)
		}
		if changed || t.Lead != known.Lead {
			select {
			case w.now <- struct{}{}:
			default: // one is due already
			}
		}
		known = Table{Fingerprint: t.Fingerprint, Pace: t.Pace, Lead: t.Lead}
		gap := time.NewTimer(askGap - time.Since(began))
		select {
		case <-ctx.Done():
		case <-gap.C:
		case road.now = <-w.again:
			known.Lead = ""
		}
		gap.Stop()
	}
}

// fetch asks for the targets, unless another upstream is to be asked meanwhile.
func (w *work) fetch(ctx context.Context, u Upstream, known Table) (t Table, ask Upstream, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends soon after ctx does; waited for in every case
		defer close(done)
		t, err = u.Targets(ctx, known)
	}()
	select {
	case <-done:
	case ask = <-w.again:
		cancel()
		<-done
	}
	if err == nil && t.Fingerprint == "" {
		err = errors.New("it names no targets")
	}
	return t, ask, err
}

// report sends the newest report when it changes, when it is told to, and every ReportEvery.
func (w *work) report(ctx context.Context) {
	select {
	case <-w.now: // without targets there is nothing to say
	case <-ctx.Done():
		return
	}
	road := newRoad(w.Log, "reports", w.Upstreams)
	incarnation, seq, stale := uint64(time.Now().UnixNano()), uint64(0), 0
	for ctx.Err() == nil {
		began := time.Now()
		changed := w.Prober.Changed()
		r := *w.Prober.Report()
		seq++
		r.Vantage, r.Incarnation, r.Seq, r.Sent = w.Name, incarnation, seq, began
		err := w.deliver(ctx, road.now, &r)
		if ctx.Err() != nil {
			return
		}
		switch refused, _ := errors.AsType[*Refusal](err); {
		case err == nil:
			stale = 0
			road.worked()
			w.rest(ctx, began, changed)
		case errors.Is(err, errNews):
		case errors.Is(err, rota.ErrTable) && stale < maxStale:
			stale++
			select {
			case w.again <- road.now:
			default: // it is being asked
			}
			w.await(ctx, sendTimeout)
		case refused != nil && refused.Status == http.StatusTooManyRequests:
			w.await(ctx, askGap)
		default:
			stale = 0
			w.await(ctx, road.failed(err)) // another leader is told at once
		}
	}
}

// rest waits until the report after one that was begun at a time is due.
func (w *work) rest(ctx context.Context, began time.Time, changed <-chan struct{}) {
	// A little early, and not all agents at once.
	tick := time.NewTimer(ReportEvery - time.Since(began) - rand.N(ReportEvery/20))
	defer tick.Stop()
	select {
	case <-ctx.Done():
	case <-w.now:
	case <-tick.C:
	case <-changed:
		w.await(ctx, max(reportGather, reportGap-time.Since(began)))
	}
}

// await waits, but not when a report is to be sent at once.
func (w *work) await(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-w.now:
	case <-t.C:
	}
}

// errNews says that a report under way was given up, because there are other targets or another leader.
var errNews = errors.New("there is something newer to report")

func (w *work) deliver(ctx context.Context, u Upstream, r *rota.Report) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- u.Report(ctx, w.given.Load(), r) }() // ends soon after ctx does; waited for in every case
	select {
	case err := <-done:
		return err
	case <-w.now:
		cancel()
		<-done
		return errNews
	}
}

// sleep waits, if there is anything to wait for.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// road is the way to the upstreams: the one in use, and how long to wait when none answers. One goroutine has it.
type road struct {
	log       *slog.Logger
	what      string
	upstreams func() []Upstream
	now       Upstream
	failures  int // in a row
	pause     *backoff.ExponentialBackOff
}

func newRoad(log *slog.Logger, what string, us func() []Upstream) *road {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval, p.Multiplier, p.RandomizationFactor = firstPause, maxPause, 2, 0.5
	p.Reset()
	return &road{log: log, what: what, upstreams: us, now: us()[0], pause: p}
}

// failed turns to the next upstream, and returns how long to wait before it is asked: not at all until all have failed.
func (r *road) failed(err error) time.Duration {
	all := r.upstreams()
	if r.failures < len(all) {
		r.log.Warn("upstream does not take the agent; the next is asked", "what", r.what, "upstream", r.now, "error", err)
	}
	r.failures++
	i := slices.IndexFunc(all, func(u Upstream) bool { return u.String() == r.now.String() })
	r.now = all[(i+1)%len(all)]
	if r.failures%len(all) != 0 {
		return 0
	}
	if r.failures == len(all) {
		r.log.Error("no upstream takes the agent; it goes on probing and asks again", "what", r.what, "upstreams", fmt.Sprint(all))
	}
	return r.pause.NextBackOff()
}

func (r *road) worked() {
	if r.failures > 0 {
		r.log.Info("upstream takes the agent", "what", r.what, "upstream", r.now, "failures", r.failures)
	}
	r.failures = 0
	r.pause.Reset()
}
