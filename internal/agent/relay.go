package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Pacing of a Relay.
const (
	RelayFor   = 15 * time.Second // after it came in, a report is not handed on any more
	relayAgain = time.Second      // after a failure
)

// RelayOptions say what a Relay hands on, and when anew. Accept and LeaderChanged are needed.
type RelayOptions struct {
	Accept        func() []string        // names of healthagents that may report; those of others are not kept
	LeaderChanged func() <-chan struct{} // closed when another node leads, which has not heard what the last one heard
	Log           *slog.Logger           // nil: silent
}

// Relay hands the reports that a Healthd took on to the leader: the newest of each healthagent, again each second when that fails, and
// anew when another node leads, until it is RelayFor old. One vantage's reports are under way one after the other.
type Relay struct {
	o    RelayOptions
	wake chan struct{} // has room for one: something was offered, or is no longer under way

	mu   sync.Mutex // guards what follows
	term int        // counts leaders
	kept map[string]*relayed
}

// relayed is the newest report of one healthagent.
type relayed struct {
	report   *rota.Report
	taken    *rota.Report // by the leader of this term
	busy     bool         // one is under way
	next     time.Time    // not before
	failures int          // in a row
}

// NewRelay returns a relay that keeps nothing yet.
func NewRelay(o RelayOptions) (*Relay, error) {
	if o.Accept == nil || o.LeaderChanged == nil {
		return nil, errors.New("relay of healthagents: Accept and LeaderChanged are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Relay{o: o, wake: make(chan struct{}, 1), kept: map[string]*relayed{}}, nil
}

// Offer takes a report to hand on, in place of the one before of the same vantage. Its At is when it came in. It returns at once; r
// must not be changed afterwards.
func (l *Relay) Offer(r *rota.Report) {
	if !slices.Contains(l.o.Accept(), r.Vantage) {
		return
	}
	l.mu.Lock()
	k := l.kept[r.Vantage]
	if k == nil {
		k = &relayed{}
		l.kept[r.Vantage] = k
	}
	k.report = r
	l.mu.Unlock()
	l.stir()
}

func (l *Relay) stir() {
	select {
	case l.wake <- struct{}{}:
	default: // Run has not looked yet
	}
}

// Send brings a report to the leader, wherever that is, within the time of ctx. age is how long ago it came in. After an error it is
// tried again, unless that is a Refusal with the word RefusedReplay: then the leader has a newer one.
type Send func(ctx context.Context, vantage string, age time.Duration, r *rota.Report) error

// Run hands on what is offered until ctx ends; then it waits for what is under way and returns nil. Only one Run may be under way.
func (l *Relay) Run(ctx context.Context, send Send) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		l.serve(ctx, &wg, send)
		l.anew()
	}
	return nil
}

// serve hands on to one leader, until there is another. What is under way then is given up.
func (l *Relay) serve(ctx context.Context, wg *sync.WaitGroup, send Send) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := l.o.LeaderChanged()
	timer := time.NewTimer(RelayFor)
	defer timer.Stop()
	for {
		due, term, next := l.due(time.Now())
		for _, r := range due {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, sendTimeout)
				defer cancel()
				l.sent(r, term, send(ctx, r.Vantage, time.Since(r.At), r))
			})
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-changed:
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// due returns what is to be sent now, and notes that it is under way; the number of the term; and how long nothing else is due. It
// forgets what is too old.
func (l *Relay) due(now time.Time) (due []*rota.Report, term int, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = RelayFor
	for name, k := range l.kept {
		left := RelayFor - now.Sub(k.report.At)
		switch wait := k.next.Sub(now); {
		case k.busy:
		case left <= 0:
			if k.taken != k.report {
				l.o.Log.Warn("a healthagent's report could not be handed on to the leader", "agent", name, "failures", k.failures)
			}
			delete(l.kept, name)
		case k.taken == k.report:
			next = min(next, left)
		case wait > 0:
			next = min(next, left, wait)
		default:
			k.busy = true
			due = append(due, k.report)
		}
	}
	return due, l.term, next
}

// sent notes what came of sending a report in a term.
func (l *Relay) sent(r *rota.Report, term int, err error) {
	l.mu.Lock()
	k := l.kept[r.Vantage]
	k.busy = false
	refused, _ := errors.AsType[*Refusal](err)
	switch {
	case term != l.term: // it is to be sent to the next leader, whatever this one said
	case err == nil || refused != nil && refused.Word == RefusedReplay:
		if k.failures > 0 {
			l.o.Log.Info("a healthagent's report was handed on", "agent", r.Vantage, "failures", k.failures)
		}
		k.taken, k.next, k.failures = r, time.Time{}, 0
	default:
		if k.failures++; k.failures == 1 {
			l.o.Log.Warn("a healthagent's report is not taken by the leader; it is tried again", "agent", r.Vantage, "error", err)
		}
		k.next = time.Now().Add(relayAgain)
	}
	l.mu.Unlock()
	l.stir()
}

// anew has everything sent again.
func (l *Relay) anew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
	for _, k := range l.kept {
		k.taken, k.next = nil, time.Time{}
	}
}
