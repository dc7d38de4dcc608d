package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// maxVantages bounds how many vantages are heard at once.
const maxVantages = 1024

// Report takes in the report of a vantage of this process: the newest replaces the one before, and its time is that of its arrival
// here. A report that was overtaken is dropped: of an earlier incarnation, or in one incarnation of a lower Seq (where the vantage does not say its
// incarnation, 1 begins a new one). What is held ages out, though, and then any report is taken. r must not be changed afterwards.
func (n *Node) Report(r *rota.Report) {
	if r == nil {
		return
	}
	c := *r
	n.take(&c)
}

func (n *Node) take(c *rota.Report) bool {
	c.At = time.Now()
	n.reportsMu.Lock()
	defer n.reportsMu.Unlock()
	old, _ := n.reports.load()
	i, held := findReport(old, c.Vantage)
	switch {
	case held && overtaken(old[i], c, cmp.Or(n.State().Spec().Quorum.MaxAge, rota.DefaultMaxAge)):
		n.counts.Overtaken++
		return false
	case held:
		c.Opinions = intern(old[i].Opinions, c.Opinions)
		next := slices.Clone(old)
		next[i] = c
		n.reports.store(next)
	case len(old) >= maxVantages:
		if gone := n.dispensable(old); gone >= 0 {
			next := slices.Delete(slices.Clone(old), gone, gone+1)
			i, _ := findReport(next, c.Vantage)
			n.reports.store(slices.Insert(next, i, c))
			break
		}
		n.log.Warn("too many vantages report; this one is not heard", "vantage", c.Vantage, "limit", maxVantages)
		return false
	default:
		n.reports.store(slices.Insert(slices.Clone(old), i, c))
	}
	n.counts.Taken++
	return true
}

// dispensable returns the report that can make room: of those that are of no vantage any more, the one that spoke longest ago; -1: none.
func (n *Node) dispensable(rs []*rota.Report) int {
	gone := -1
	for i, r := range rs {
		if n.given(r.Vantage) == nil && (gone < 0 || r.At.Before(rs[gone].At)) {
			gone = i
		}
	}
	return gone
}

// overtaken reports whether what is held is newer than what came.
func overtaken(held, came *rota.Report, maxAge time.Duration) bool {
	switch {
	case came.At.Sub(held.At) > maxAge:
		return false
	case held.Incarnation == 0 || came.Incarnation == 0:
		return came.Seq > 1 && came.Seq < held.Seq
	case came.Incarnation != held.Incarnation:
		return came.Incarnation < held.Incarnation
	}
	return came.Seq < held.Seq
}

// intern returns the new opinions with the old pointers where nothing moved, so that Judge compares pointers also for what came over
// a network. Both are sorted by target.
func intern(old, fresh []*rota.Opinion) []*rota.Opinion {
	var out []*rota.Opinion // made at the first replacement
	i := 0
	for k, o := range fresh {
		for i < len(old) && old[i].Target < o.Target {
			i++
		}
		if i < len(old) && old[i] != o && *old[i] == *o {
			if out == nil {
				out = slices.Clone(fresh)
			}
			out[k] = old[i]
		}
	}
	if out == nil {
		return fresh
	}
	return out
}

// ErrReport says that a report was refused.
var ErrReport = errors.New("the report was refused")

// ReportCounts counts what became of reports since the node started.
type ReportCounts struct {
	Taken     uint64 `json:"taken"`
	Overtaken uint64 `json:"overtaken"` // older than the one held
	Unknown   uint64 `json:"unknown"`   // of no configured vantage
	Malformed uint64 `json:"malformed"` // of another vantage than the sender, unsorted, or with far more opinions than targets
	Foreign   uint64 `json:"foreign"`   // opinions on targets that nobody gave to anyone; they were left out
}

// ReportCounts returns what became of reports.
func (n *Node) ReportCounts() ReportCounts {
	n.reportsMu.Lock()
	defer n.reportsMu.Unlock()
	return n.counts
}

// spareOpinions is how many more opinions than targets a report may hold, for targets that have just left the configuration.
const spareOpinions = 10_000

// Receive takes in a report that came over the network from a vantage that proved to be called so. Only the leader does, because
// only it judges; others return ErrNotLeader, so that the vantage looks for the leader. The error is ErrReport for a report that
// will not be better the next time. A report that was overtaken is dropped without an error. Opinions on targets that are not in the
// state are left out. r must not be changed afterwards.
func (n *Node) Receive(vantage string, r *rota.Report) error {
	if round, _ := n.round.load(); round == nil {
		return ErrNotLeader
	}
	st := n.State()
	refuse := func(counter *uint64, format string, args ...any) error {
		n.reportsMu.Lock()
		defer n.reportsMu.Unlock()
		*counter++
		return fmt.Errorf("%w: %s", ErrReport, fmt.Sprintf(format, args...))
	}
	targets := st.Targets()
	switch {
	case r == nil:
		return refuse(&n.counts.Malformed, "it is empty")
	case r.Vantage != vantage:
		return refuse(&n.counts.Malformed, "%s sent a report of %q", vantage, r.Vantage)
	case len(r.Opinions) > len(targets)+spareOpinions:
		return refuse(&n.counts.Malformed, "%s sent %d opinions, but there are %d targets", vantage, len(r.Opinions), len(targets))
	case !slices.ContainsFunc(st.Spec().Vantages, func(v rota.Vantage) bool { return v.Name == vantage }):
		return refuse(&n.counts.Unknown, "%s is not one of the vantages", vantage)
	}
	if err := r.Validate(); err != nil {
		return refuse(&n.counts.Malformed, "%v", err)
	}
	c := *r
	kept := 0
	opinions := make([]*rota.Opinion, len(r.Opinions))
	i := 0
	for _, o := range r.Opinions {
		for i < len(targets) && targets[i].ID < o.Target {
			i++
		}
		if i < len(targets) && targets[i].ID == o.Target {
			opinions[kept] = o
			kept++
		}
	}
	c.Opinions = opinions[:kept]
	if foreign := len(r.Opinions) - kept; foreign > 0 {
		n.reportsMu.Lock()
		n.counts.Foreign += uint64(foreign)
		n.reportsMu.Unlock()
	}
	n.take(&c)
	return nil
}

// Reports returns the newest report of each vantage that was heard since this node started, sorted by vantage. Nothing in it may be
// changed.
func (n *Node) Reports() []*rota.Report {
	rs, _ := n.reports.load()
	return slices.Clone(rs)
}

func findReport(rs []*rota.Report, vantage string) (int, bool) {
	return slices.BinarySearchFunc(rs, vantage, func(r *rota.Report, v string) int { return cmp.Compare(r.Vantage, v) })
}

// Reporter is a vantage: what it holds now, and when that changes.
type Reporter interface {
	// Report returns the newest report, whole. It is not changed afterwards.
	Report() *rota.Report
	// Changed returns a channel that is closed when the report that Report returned after this call is no longer the newest.
	Changed() <-chan struct{}
}

// The pace of reports.
const (
	ReportEvery = 10 * time.Second       // at least this often, whether anything changed or not
	sendGap     = 100 * time.Millisecond // at least this long apart
	reportWait  = 5 * time.Second        // for the leader to take one
)

// Send takes the reports of this node's own vantage to the leader, wherever that is: on change, at least every ReportEvery, and at
// once when another node leads. It returns nil when ctx ends and ErrClosed when the node closes.
func (n *Node) Send(ctx context.Context, from Reporter) error {
	incarnation := uint64(time.Now().UnixNano())
	var pause, gap waiting
	defer pause.stop()
	defer gap.stop()
	backoff := sendGap
	failing := false
	for {
		_, elected := n.leader.load()
		changed := from.Changed()
		r := *from.Report()
		r.Incarnation = cmp.Or(r.Incarnation, incarnation)
		n.Report(&r)
		next := ReportEvery
		if err := n.sendOnce(ctx, &r); err != nil && ctx.Err() == nil {
			if !failing {
				n.log.Warn("this node's report did not reach the leader", "err", err)
			}
			failing = true
			next = jitter(backoff)
			backoff = min(2*backoff, reportWait)
		} else {
			if failing {
				n.log.Info("this node's reports reach the leader again")
			}
			failing, backoff = false, sendGap
		}
		select {
		case <-changed:
		case <-elected:
			backoff = sendGap
		case <-pause.until(next):
		case <-n.closing:
			return ErrClosed
		case <-ctx.Done():
			return nil
		}
		select {
		case <-gap.until(sendGap):
		case <-n.closing:
			return ErrClosed
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) sendOnce(ctx context.Context, r *rota.Report) error {
	leader, ok := n.Leader()
	switch {
	case n.net.SendReport == nil:
		return nil
	case !ok:
		return ErrNoLeader
	case leader.Self:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	return n.net.SendReport(ctx, leader, r)
}
