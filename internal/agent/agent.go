package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/rota"
)

// Pacing of an agent.
const (
	ReportEvery = 10 * time.Second       // reports are at most this far apart while an upstream answers
	reportGap   = 200 * time.Millisecond // and at least this far, so that a burst of changes is one report
	askGap      = time.Second            // between questions for the targets, at least
	askTimeout  = MaxWait + 5*time.Second
	sendTimeout = 5 * time.Second
	firstPause  = 500 * time.Millisecond // when all upstreams failed; it doubles, with half of it at random
	maxPause    = 5 * time.Second
)

// Table is what a vantage has to probe, and who leads.
type Table struct {
	Fingerprint string        // equal for equal targets; empty: nothing is known
	Lead        string        // another word when another node leads
	Targets     []rota.Target // left out when the fingerprint is the one known
}

// Upstream is one node, or healthd, that an agent works for.
//
// Targets returns what is to be probed. While fingerprint and lead are as known, it may wait for a change, up to MaxWait, before it
// says so; a known table without fingerprint is answered at once.
//
// Report delivers a whole report. After nil it has been taken; ErrOvertaken says that a later one has been. Both are called by one
// goroutine each and end when their context does.
type Upstream interface {
	Targets(ctx context.Context, known Table) (Table, error)
	Report(ctx context.Context, r *rota.Report) error
	String() string // for people
}

// MaxWait bounds how long Upstream.Targets waits for a change.
const MaxWait = 30 * time.Second

// ErrOvertaken says that an upstream has taken a report with a higher number.
var ErrOvertaken = errors.New("a later report was taken before")

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
	Name      string     // of the vantage, as in its certificate
	Prober    Prober     // probes the targets
	Upstreams []Upstream // the first that answers is worked for; when it fails, the next
	Log       *slog.Logger
}

// Run works until ctx ends and returns nil then.
func (a Agent) Run(ctx context.Context) error {
	if a.Prober == nil || len(a.Upstreams) == 0 || a.Name == "" {
		return errors.New("agent: a name, a prober and at least one upstream are needed")
	}
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	now := make(chan struct{}, 1) // has room for one: report at once
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { a.follow(ctx, now); return nil })
	g.Go(func() error { a.report(ctx, now); return nil })
	return g.Wait()
}

// follow keeps the prober's targets those of the upstream, and has a report sent when there are others or another node leads.
func (a Agent) follow(ctx context.Context, now chan<- struct{}) {
	road := newRoad(a.Log, "targets", a.Upstreams)
	var known Table
	for ctx.Err() == nil {
		began := time.Now()
		t, err := fetch(ctx, road.at(), known)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			sleep(ctx, road.failed(err))
			continue
		}
		road.worked()
		changed := t.Fingerprint != known.Fingerprint
		if changed {
			a.Log.Info("targets", "upstream", road.at(), "targets", len(t.Targets), "fingerprint", rota.CleanReason("%.16s", t.Fingerprint))
			a.Prober.Set(t.Targets)
		}
		if changed || t.Lead != known.Lead {
			select {
			case now <- struct{}{}:
			default: // one is due already
			}
		}
		known = Table{Fingerprint: t.Fingerprint, Lead: t.Lead}
		sleep(ctx, askGap-time.Since(began))
	}
}

func fetch(ctx context.Context, u Upstream, known Table) (Table, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	t, err := u.Targets(ctx, known)
	if err == nil && t.Fingerprint == "" {
		err = errors.New("it names no targets")
	}
	return t, err
}

// report sends the newest report when it changes, when it is told to, and every ReportEvery.
func (a Agent) report(ctx context.Context, now <-chan struct{}) {
	select {
	case <-now: // without targets there is nothing to say
	case <-ctx.Done():
		return
	}
	road := newRoad(a.Log, "reports", a.Upstreams)
	// A receiver drops what it holds to be overtaken, but for number 1, with which a vantage begins anew; so it stays until it is taken.
	seq, begun := uint64(1), false
	for ctx.Err() == nil {
		began := time.Now()
		changed := a.Prober.Changed()
		r := *a.Prober.Report()
		r.Vantage, r.Seq = a.Name, seq
		err := deliver(ctx, road.at(), &r)
		if ctx.Err() != nil {
			return
		}
		if begun = begun || err == nil; begun {
			seq++
		}
		if err != nil {
			if errors.Is(err, ErrOvertaken) {
				seq, begun = 1, false
			}
			sleep(ctx, road.failed(err))
			continue
		}
		road.worked()
		sleep(ctx, reportGap)
		// A little early, and not all agents at once.
		tick := time.NewTimer(ReportEvery - time.Since(began) - rand.N(ReportEvery/20))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-now:
		case <-tick.C:
		}
		tick.Stop()
	}
}

func deliver(ctx context.Context, u Upstream, r *rota.Report) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return u.Report(ctx, r)
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
	upstreams []Upstream
	i         int
	failures  int // in a row
	pause     *backoff.ExponentialBackOff
}

func newRoad(log *slog.Logger, what string, us []Upstream) *road {
	p := backoff.NewExponentialBackOff()
	p.InitialInterval, p.MaxInterval, p.Multiplier, p.RandomizationFactor = firstPause, maxPause, 2, 0.5
	p.Reset()
	return &road{log: log, what: what, upstreams: us, pause: p}
}

func (r *road) at() Upstream { return r.upstreams[r.i] }

// failed turns to the next upstream, and returns how long to wait before it is asked: not at all until all have failed.
func (r *road) failed(err error) time.Duration {
	if r.failures < len(r.upstreams) {
		r.log.Warn("upstream does not take the agent; the next is asked", "what", r.what, "upstream", r.at(), "error", rota.CleanReason("%v", err))
	}
	r.failures++
	r.i = (r.i + 1) % len(r.upstreams)
	if r.failures%len(r.upstreams) != 0 {
		return 0
	}
	if r.failures == len(r.upstreams) {
		r.log.Error("no upstream takes the agent; it goes on probing and asks again", "what", r.what, "upstreams", fmt.Sprint(r.upstreams))
	}
	return r.pause.NextBackOff()
}

func (r *road) worked() {
	if r.failures > 0 {
		r.log.Info("upstream takes the agent", "what", r.what, "upstream", r.at(), "failures", r.failures)
	}
	r.failures = 0
	r.pause.Reset()
}
