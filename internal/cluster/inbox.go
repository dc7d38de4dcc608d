package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Errors of an Inbox, besides ErrNotLeader, rota.ErrReport and rota.ErrTable. Each says to the sender what to do.
var (
	ErrVantage = errors.New("no vantage of this cluster has this name: add it, or stop reporting")
	ErrName    = errors.New("the report is of another vantage than the one that sends it")
	ErrReplay  = errors.New("a newer report of this vantage was taken before: send a new one")
	ErrTwice   = errors.New("another process began later to report as this vantage: give one of them a name and a certificate of its own")
	ErrRate    = errors.New("too many reports: wait before the next")
	ErrAged    = errors.New("the report was made too long ago to count: send a new one")
)

// What an Inbox bears from one vantage. An Outbox sends at most two a second.
const (
	inboxRate  = 5  // reports a second, in the long run
	inboxBurst = 20 // at once
	retired    = 16 // incarnations remembered
	straggle   = 15 * time.Second
)

// Inbox takes in the packed reports of vantages. All methods may be called at any time from any goroutine.
type Inbox struct {
	node  *Node
	table func(vantage string) *rota.Table

	// Guarded by mu.
	mu      sync.Mutex
	senders map[string]*sender
	unknown uint64 // reports of vantages that nobody configured
	warned  time.Time
}

// sender is what is remembered of one vantage. Guarded by mu.
type sender struct {
	mu       sync.Mutex
	unpacker rota.Unpacker
	began    time.Time // when the first report of the incarnation was made
	earlier  []uint64  // incarnations before it, oldest first
	tokens   float64
	filled   time.Time
	refusal  error // the last word was this
	stats    VantageStats
}

// VantageStats is what an Inbox counted of one vantage, for metrics and the page.
type VantageStats struct {
	Vantage     string            `json:"vantage"`
	From        string            `json:"from,omitempty"` // where the last report came from
	Incarnation uint64            `json:"incarnation"`
	Seq         uint64            `json:"seq"`
	At          time.Time         `json:"at,omitzero"`           // when the last report was made, by this node's clock
	Offset      time.Duration     `json:"offset_ns"`             // how far its clock is behind ours, with the way here
	Taken       uint64            `json:"taken"`                 //
	Unchanged   uint64            `json:"unchanged"`             // of those taken
	Bytes       uint64            `json:"bytes"`                 // of those taken
	LastBytes   int               `json:"last_bytes"`            //
	Refused     map[string]uint64 `json:"refused,omitempty"`     // by kind: rate, unreadable, name, replay, aged, twice, table
	Twice       time.Time         `json:"twice,omitzero"`        // when two processes were last heard to report as this vantage
	Refusal     string            `json:"last_refused,omitzero"` // why the newest report was refused; empty: it was taken
}

// NewInbox makes the inbox of a node. table returns the targets that a vantage was given, which alone it may speak of, and nil for one
// that is not configured; when table is nil, every vantage of the spec is given all targets.
func NewInbox(n *Node, table func(vantage string) *rota.Table) *Inbox {
	if table == nil {
		table = n.given
	}
	return &Inbox{node: n, table: table, senders: map[string]*sender{}}
}

// given returns the table of all targets for the vantages of the spec.
func (n *Node) given(vantage string) *rota.Table {
	s := n.State()
	if !slices.ContainsFunc(s.Spec().Vantages, func(v rota.Vantage) bool { return v.Name == vantage }) {
		return nil
	}
	return s.Table()
}

// Take takes in a packed report. The caller vouches for the vantage that sent it; from says for people where it came from. age is how
// long ago it was made, as a node says that passes it on, and 0 when it came straight from the vantage: from then on it ages, by this
// node's clock. It must not be negative, and not above the max_age of the quorum (ErrAged). Only a node that leads takes reports, from the moment on in which it was elected: then they are
// there when it begins to judge. b is not kept.
func (in *Inbox) Take(vantage, from string, age time.Duration, b []byte) error {
	if in.node.raft.Load().State() != raft.Leader {
		return ErrNotLeader
	}
	t := in.table(vantage)
	s := in.sender(vantage, t != nil)
	if s == nil {
		return fmt.Errorf("report of %q: %w", vantage, ErrVantage)
	}
	now := in.node.clock()
	maxAge := cmp.Or(in.node.State().Spec().Quorum.MaxAge, rota.DefaultMaxAge)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.admit(age, maxAge, now)
	var r *rota.Report
	if err == nil {
		r, err = s.read(t, vantage, b, now.Add(-age))
	}
	switch {
	case err == nil:
		if s.refusal != nil {
			in.node.log.Info("reports are taken again", "vantage", vantage, "from", from)
		}
		s.refusal, s.stats.Refusal, s.stats.From = nil, "", from
		in.node.hear(r) // under the lock, so that none overtakes another
		return nil
	case s.refusal == nil || kindOf(s.refusal) != kindOf(err):
		in.node.log.Warn("report refused", "vantage", vantage, "from", from, "before", s.stats.From, "err", err)
	}
	if s.stats.Refused == nil {
		s.stats.Refused = map[string]uint64{}
	}
	s.stats.Refused[kindOf(err)]++
	s.refusal, s.stats.Refusal = err, err.Error()
	return fmt.Errorf("report of %s: %w", vantage, err)
}

// kindOf names a refusal for metrics.
func kindOf(err error) string {
	for _, k := range []struct {
		err  error
		kind string
	}{{ErrRate, "rate"}, {ErrName, "name"}, {ErrReplay, "replay"}, {ErrAged, "aged"}, {ErrTwice, "twice"}, {rota.ErrTable, "table"}} {
		if errors.Is(err, k.err) {
			return k.kind
		}
	}
	return "unreadable"
}

// sender returns what is remembered of a vantage; of one that is not configured nothing is.
func (in *Inbox) sender(vantage string, configured bool) *sender {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := in.senders[vantage]
	if configured && s == nil && len(in.senders) >= maxVantages {
		maps.DeleteFunc(in.senders, func(v string, _ *sender) bool { return in.table(v) == nil })
	}
	if !configured || s == nil && len(in.senders) >= maxVantages {
		delete(in.senders, vantage)
		in.unknown++
		if now := time.Now(); now.Sub(in.warned) >= time.Minute {
			in.warned = now
			in.node.log.Warn("reports of vantages that are not configured, or of more than can be heard", "vantage", vantage, "reports", in.unknown)
		}
		return nil
	}
	if s == nil {
		s = &sender{stats: VantageStats{Vantage: vantage}, tokens: inboxBurst}
		in.senders[vantage] = s
	}
	return s
}

// admit judges what need not be read for it: how many came, and how old this one is.
func (s *sender) admit(age, maxAge time.Duration, now time.Time) error {
	if !s.filled.IsZero() {
		s.tokens = min(inboxBurst, s.tokens+inboxRate*now.Sub(s.filled).Seconds())
	}
	s.filled = now
	if s.tokens < 1 {
		return ErrRate
	}
	s.tokens--
	switch {
	case age < 0:
		return fmt.Errorf("%w: it is said to be made %v from now", rota.ErrReport, -age)
	case age > maxAge:
		return fmt.Errorf("%w: %v, with a max_age of %v", ErrAged, age, maxAge)
	}
	return nil
}

// read judges whether a report that was made at a time may be taken, and unpacks it. What one process made is ordered by its numbers,
// what two made by time.
func (s *sender) read(t *rota.Table, vantage string, b []byte, at time.Time) (*rota.Report, error) {
	e, err := rota.ReadEnvelope(b)
	if err != nil {
		return nil, err
	}
	known := !s.began.IsZero()
	switch {
	case e.Vantage != vantage:
		return nil, fmt.Errorf("%w: it says %q", ErrName, rota.CleanReason("%s", e.Vantage))
	case e.Incarnation == 0 || e.Seq == 0:
		return nil, fmt.Errorf("%w: it has no number or is of no incarnation", rota.ErrReport)
	case known && e.Incarnation == s.stats.Incarnation:
		if e.Seq <= s.stats.Seq {
			return nil, fmt.Errorf("%w: number %d after %d", ErrReplay, e.Seq, s.stats.Seq)
		}
	case slices.Contains(s.earlier, e.Incarnation):
		// What was under way when the vantage began anew may still arrive; what comes later comes from a process that lives.
		if at.Sub(s.began) <= straggle {
			return nil, fmt.Errorf("%w: it is of the process before", ErrReplay)
		}
		s.stats.Twice = at
		return nil, ErrTwice
	case at.Before(s.stats.At):
		return nil, fmt.Errorf("%w: it was made %v before that one", ErrReplay, s.stats.At.Sub(at))
	}
	last := s.unpacker.Last()
	r, err := s.unpacker.Unpack(t, b, at)
	if err != nil {
		return nil, err
	}
	if !known || e.Incarnation != s.stats.Incarnation {
		if known {
			s.earlier = append(s.earlier, s.stats.Incarnation)
			s.earlier = s.earlier[max(0, len(s.earlier)-retired):]
		}
		s.began = at
	}
	st := &s.stats
	st.Incarnation, st.Seq, st.At = e.Incarnation, e.Seq, at
	st.Offset = 0
	if !e.Sent.IsZero() {
		st.Offset = at.Sub(e.Sent)
	}
	st.Taken++
	st.Bytes += uint64(len(b))
	st.LastBytes = len(b)
	if o := r.Opinions; last != nil && last.Abstain == r.Abstain && len(o) == len(last.Opinions) && (len(o) == 0 || &o[0] == &last.Opinions[0]) {
		st.Unchanged++
	}
	return r, nil
}

// Stats returns what was counted of each vantage that was heard since this node started, sorted, and how many reports came from vantages
// that are not configured.
func (in *Inbox) Stats() (vantages []VantageStats, unknown uint64) {
	in.mu.Lock()
	senders := slices.Collect(maps.Values(in.senders))
	unknown = in.unknown
	in.mu.Unlock()
	for _, s := range senders {
		s.mu.Lock()
		st := s.stats
		st.Refused = maps.Clone(st.Refused)
		s.mu.Unlock()
		vantages = append(vantages, st)
	}
	slices.SortFunc(vantages, func(a, b VantageStats) int { return cmp.Compare(a.Vantage, b.Vantage) })
	return vantages, unknown
}
