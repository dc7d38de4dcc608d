package probe

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Options say who probes and within which bounds. The zero value works.
type Options struct {
	Vantage     string         // name in the report
	Log         *slog.Logger   // nil: silent
	Concurrency int            // probes in flight, at most; 0: DefaultConcurrency, or half of the descriptors allowed here if that is less
	Roots       *x509.CertPool // trusted certificate authorities; nil: the system's
	Forbid      []netip.Prefix // addresses never probed, beside unspecified, multicast and broadcast; nil: DefaultForbid
	UserAgent   string         // of HTTP requests; empty: "rota"
	History     int            // traces kept in all, at most; 0: DefaultHistory

	// Secret reads what is at a place, or says why this machine does not: a place that its own configuration does not name is refused.
	// Nil: there are none.
	Secret func(rota.Place) ([]byte, error)
	// Exec runs a command without a shell and returns when it and all that it started has ended: by itself, at its limit or when ctx
	// ends. It refuses commands that this machine's own configuration does not name. Nil: there are none.
	Exec func(context.Context, ExecCommand) (ExecResult, error)
}

// ExecCommand is a command that a check wants to be run.
type ExecCommand struct {
	Check []string      // as the check has it, which is what a configuration allows
	Argv  []string      // the program and its arguments
	Env   []string      // NAME=value
	Limit time.Duration // from its start
}

// ExecResult is how a command ended. The error that comes with it says why it did not end by itself: context.DeadlineExceeded at its limit.
type ExecResult struct {
	Started        bool          // false: nothing of it happened
	Code           int           // exit code; -1: it did not end by itself
	Stdout, Stderr []byte        // the first of it, at most some kilobytes each
	Took           time.Duration // from its start to its end
}

// Defaults of Options.
const (
	DefaultConcurrency = 4096
	DefaultHistory     = 8192
)

// DefaultForbid lists the addresses that no check reaches unless Options.Forbid says otherwise: the metadata services of clouds,
// which answer whoever asks with credentials of the machine.
func DefaultForbid() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("169.254.169.254/32"),
		netip.MustParsePrefix("fd00:ec2::254/128"),
	}
}

// Prober is one vantage: it probes targets and holds opinions of them. Its methods may be called from any goroutine.
type Prober struct {
	// Immutable.
	vantage     string
	log         *slog.Logger
	concurrency int
	roots       *x509.CertPool
	forbid      []netip.Prefix
	userAgent   string
	secret      func(rota.Place) ([]byte, error)
	exec        func(context.Context, ExecCommand) (ExecResult, error)
	probe       func(context.Context, *entry, *pinger) *Trace // tests of the schedule put it in the place of observe; nil otherwise

	keepable int64 // connections that may outlive a probe, at most: a quarter of the descriptors is for others

	// Shared by pointer.
	keeping atomic.Int64 // connections that outlive a probe
	report  atomic.Pointer[rota.Report]
	running atomic.Bool

	mu      sync.Mutex    // guards what follows
	wanted  []rota.Target // by the last Set, until the scheduler has taken them: they are large
	pending bool          // it has not
	set     chan struct{} // has room for one: wanted changed
	changed chan struct{} // closed at the next report
	history history
	stats   tally
	sights  []*sight // of the targets that are probed
	eyes    eyes     // what they come to
}

// New returns a prober without targets. It does nothing until Run.
func New(o Options) *Prober {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Concurrency <= 0 {
		o.Concurrency = min(DefaultConcurrency, max(descriptors()/2, 8))
	}
	if o.Forbid == nil {
		o.Forbid = DefaultForbid()
	}
	if o.History <= 0 {
		o.History = DefaultHistory
	}
	p := &Prober{
		vantage: o.Vantage, log: o.Log, concurrency: o.Concurrency, roots: o.Roots, forbid: o.Forbid,
		userAgent: cmp.Or(o.UserAgent, "rota"), secret: newSecrets(o.Secret).get, exec: o.Exec,
		set: make(chan struct{}, 1), changed: make(chan struct{}),
		history: newHistory(o.History), stats: newTally(),
		keepable: int64(max(descriptors()/4*3-o.Concurrency, 0)),
	}
	p.report.Store(&rota.Report{Vantage: p.vantage, Opinions: []*rota.Opinion{}})
	return p
}

// Set says which targets to probe, all of them; those that nobody asks (rota.KindAgent) are left out. Targets that stay keep their streaks and their place in the schedule, new ones are
// probed soon, and the others are forgotten: their probes in flight are cancelled. It does not wait, and may be called before Run.
func (p *Prober) Set(targets []rota.Target) {
	ts := slices.DeleteFunc(slices.Clone(targets), func(t rota.Target) bool { return t.Check.Kind == rota.KindAgent })
	slices.SortStableFunc(ts, func(a, b rota.Target) int { return cmp.Compare(a.ID, b.ID) })
	ts = slices.CompactFunc(ts, func(a, b rota.Target) bool { return a.ID == b.ID })
	p.mu.Lock()
	p.wanted, p.pending = ts, true
	p.mu.Unlock()
	select {
	case p.set <- struct{}{}:
	default: // Run has not looked yet and will find the latest
	}
}

// Run probes until ctx ends, then waits for the probes in flight, which end at once, and returns the cause. It owns every goroutine.
// Only one Run may be under way; another returns an error.
func (p *Prober) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("probe: already running")
	}
	defer p.running.Store(false)
	ping := newPinger(p.log)
	defer ping.close()
	newScheduler(p, ping).run(ctx)
	return context.Cause(ctx)
}

// Report returns the opinions of all targets, sorted; a target that has not been probed yet is unknown. The report and what it
// points to never change. An opinion keeps its pointer until its status, class or reason changes. Seq is 0 before the first Set has
// taken effect; At is left to the receiver.
func (p *Prober) Report() *rota.Report { return p.report.Load() }

// Changed returns a channel that is closed when the report changes next. Ask for it before Report, and no change is missed; a burst
// of changes is one.
func (p *Prober) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// publish makes r the report and wakes who waits for it.
func (p *Prober) publish(r *rota.Report) {
	p.report.Store(r)
	p.mu.Lock()
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
}

// History returns the last traces of a target, oldest first: the last maxSuccesses that were up or draining and, kept longer, the last
// maxFailures that were not. With more targets than Options.History has room for, the oldest of all go first.
func (p *Prober) History(id rota.TargetID) []Trace {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.history.of(id)
}

// Stats returns the counts since New.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats.snapshot()
}

// Once probes t once, now, beside any schedule, and returns its whole log. It returns within the check's timeout.
func (p *Prober) Once(ctx context.Context, t rota.Target) Trace {
	ping := newPinger(p.log)
	defer ping.close()
	return *p.observe(ctx, t.ID, t.Address, newQuestion(t.Check), nil, ping)
}
