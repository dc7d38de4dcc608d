package cluster

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// How often a vantage reports.
const (
	reportEvery  = 10 * time.Second       // at least, whether or not anything changed
	reportGap    = 500 * time.Millisecond // at most, however much changes
	reportGather = 50 * time.Millisecond  // changes within this time go together
	reportWithin = 5 * time.Second        // a report that is not taken by then has failed
	reportAgain  = time.Second            // after a failure; doubled with each, up to reportEvery
)

// Outbox sends the reports of one vantage to the leader: when they change, at a fixed rate when they do not, and at once to a new
// leader. A failed one is not kept: the next is whole.
type Outbox struct {
	Vantage string                                    // its name
	Report  func() *rota.Report                       // what it holds now; its vantage and number are set by the Outbox
	Table   func() *rota.Table                        // the targets it was given
	Leader  func() string                             // who leads, as far as is known; empty: nobody, and nothing is sent. nil: Send knows
	Send    func(ctx context.Context, b []byte) error // brings a packed report to the leader
	Log     *slog.Logger                              // nil: silent

	// Each returns a channel that is closed when what the function of that name returns is no longer the newest. nil: it is looked at
	// again each time something is sent.
	ReportChanged, TableChanged, LeaderChanged func() <-chan struct{}
}

// sending is what there is to send, and to whom.
type sending struct {
	report *rota.Report
	table  *rota.Table
	leader string
}

// says reports whether both say the same of the same targets.
func (s sending) says(o sending) bool {
	return s.table.Fingerprint() == o.table.Fingerprint() &&
		(s.report == o.report || s.report.Abstain == o.report.Abstain && slices.Equal(s.report.Opinions, o.report.Opinions))
}

// pace is what a vantage remembers of its sending. It decides when to send; the clock is an argument.
type pace struct {
	tried    sending
	at       time.Time // when tried was begun; zero: nothing was sent yet
	failures int       // in a row, of tried.leader
	changed  time.Time // since when there is something that tried did not say; zero: there is not
}

// due reports whether to send what there is now, and if not, when to ask again though nothing changes; the zero time: not then.
func (p *pace) due(now time.Time, s sending) (bool, time.Time) {
	switch {
	case s.leader == "":
		return false, time.Time{}
	case p.at.IsZero() || s.leader != p.tried.leader:
		return true, now
	}
	next := p.at.Add(reportEvery)
	if p.failures > 0 {
		next = p.at.Add(min(reportAgain<<min(p.failures-1, 10), reportEvery))
	}
	switch {
	case s.says(p.tried):
		p.changed = time.Time{}
	case p.changed.IsZero():
		p.changed = now
	}
	// What failed is not tried sooner for news, but for other targets: those may be what was lacking.
	if !p.changed.IsZero() && (p.failures == 0 || s.table.Fingerprint() != p.tried.table.Fingerprint()) {
		soon := p.changed.Add(reportGather)
		if free := p.at.Add(reportGap); free.After(soon) {
			soon = free
		}
		next = earlier(next, soon)
	}
	return !next.After(now), next
}

// begin notes that what there is is being sent.
func (p *pace) begin(now time.Time, s sending) {
	if s.leader != p.tried.leader {
		p.failures = 0
	}
	p.tried, p.at, p.changed = s, now, time.Time{}
}

// end notes what came of it.
func (p *pace) end(err error) {
	if p.failures++; err == nil {
		p.failures = 0
	}
}

// Run sends until ctx ends; then it returns nil.
func (o *Outbox) Run(ctx context.Context) error {
	log := cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	incarnation, seq := uint64(time.Now().UnixNano()), uint64(0)
	var p pace
	var pause waiting
	defer pause.stop()
	for {
		reportChanged, tableChanged, leaderChanged := changes(o.ReportChanged), changes(o.TableChanged), changes(o.LeaderChanged)
		s := sending{o.Report(), o.Table(), o.leader()}
		now := time.Now()
		due, wake := p.due(now, s)
		if due {
			seq++
			r := *s.report
			r.Vantage, r.Incarnation, r.Seq, r.Sent = o.Vantage, incarnation, seq, now
			p.begin(now, s)
			failed := p.failures > 0
			err := o.send(ctx, s.table.Pack(&r), s.leader)
			if ctx.Err() != nil {
				return nil
			}
			p.end(err)
			switch {
			case err != nil && p.failures == 1:
				log.Warn("the report was not taken and will be sent again", "leader", s.leader, "err", err)
			case err == nil && failed:
				log.Info("reports are taken again", "leader", s.leader)
			}
			continue
		}
		var woken <-chan time.Time
		if !wake.IsZero() {
			woken = pause.until(wake.Sub(now))
		}
		select {
		case <-reportChanged:
		case <-tableChanged:
		case <-leaderChanged:
		case <-woken:
		case <-ctx.Done():
			return nil
		}
	}
}

func changes(f func() <-chan struct{}) <-chan struct{} {
	if f == nil {
		return nil
	}
	return f()
}

func (o *Outbox) leader() string {
	if o.Leader == nil {
		return "the leader"
	}
	return o.Leader()
}

// send sends and waits; when another one leads meanwhile, it gives up, so that the new leader hears at once.
func (o *Outbox) send(ctx context.Context, b []byte, leader string) error {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- o.Send(ctx, b) }() // ends soon after ctx does; waited for in every case
	for {
		changed := changes(o.LeaderChanged)
		if o.leader() != leader {
			cancel()
			changed = nil
		}
		select {
		case err := <-done:
			return err
		case <-changed:
		}
	}
}
