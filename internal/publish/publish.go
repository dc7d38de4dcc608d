// Package publish makes a DNS say the RRsets that the state wants. A Publisher is one loop a zone, desired → plan → write → read
// back, that runs for as long as this node leads; a Backend is one way to reach a DNS. What the DNS says is read each round and
// never trusted from memory; every write is a compare-and-swap that the DNS server itself decides, on the old value of every RRset
// and on the zone's fence record.
//
// See DESIGN.md beside this file for the fence, the failures it was made against and the trade-offs.
package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Backend is one way to reach a DNS. Implementations are safe for concurrent use by several zones; for one zone the Publisher calls
// Read and Write one after the other.
//
// No method retries beyond its own transport: the Publisher looks again, at its own pace. Every method returns within a total
// deadline of its own even when ctx has none, and at once when ctx ends, or when what was begun leaves no name bare. Errors are a *Reason wherever the cause is known, and
// ErrMoved from Write.
type Backend interface {
	// Zone returns the zone that holds a name: the longest match label by label, never by text.
	Zone(ctx context.Context, name rota.Name) (rota.Name, error)

	// Read returns what the DNS says of the keys, as of now: a Read that begins after a Write returned sees that write.
	// All or nothing: when any part could not be read there is an error, because what was not read is unknown and never empty.
	Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error)

	// Write makes b.Fence and the first n of b.Changes true in one transaction, and returns n. n is below len(b.Changes) when more
	// do not fit; the changes of one name are never parted. The transaction happens only if every Old is what the zone holds at that
	// moment (TTLs aside), the fence's included; otherwise nothing happens and the error is ErrMoved. It happens at most once,
	// however often its messages travel, because it replaces the fence it depends on.
	//
	// A nil error says that the DNS agreed, which is not yet that it did: the caller reads back. A *Reason with InDoubt set says that
	// the transaction may have happened or may happen yet.
	Write(ctx context.Context, b Batch) (n int, err error)

	// Capabilities say what the backend can promise. They never change.
	Capabilities() Capabilities
}

// Capabilities are what one kind of DNS can do. Plans are fitted to them, and operators are shown them.
type Capabilities struct {
	Fence  FenceKind   `json:"fence"`             // who refuses a stale writer
	Atomic bool        `json:"atomic"`            // all changes of one Write happen or none does; otherwise additions come before removals
	Batch  int         `json:"batch,omitempty"`   // most changes in one Write, but for a name that has more; 0: as many as fit
	MinTTL uint32      `json:"min_ttl,omitempty"` // seconds; what is wanted with less is published with this
	Types  []rota.Type `json:"types,omitempty"`   // that can be written; nil: all
}

// FenceKind says who refuses a stale writer.
type FenceKind string

// The kinds of fences, strongest first.
const (
	FenceServer  FenceKind = "server"  // the DNS itself, in the very message that writes
	FenceCompare FenceKind = "compare" // the writer: it reads, compares, writes and reads; a request held on its way is noticed afterwards and put right
)

// Takes reports whether records of a type can be written.
func (c Capabilities) Takes(t rota.Type) bool { return c.Types == nil || slices.Contains(c.Types, t) }

// Reading is what a DNS says. An RRset that is absent is not in Sets; a CNAME at a name that was asked for another type is.
type Reading struct {
	Sets    []rota.RRset
	Blocked map[rota.Name]*Reason // names that cannot be written here, such as those below a delegation
	AnyTTL  map[rota.Key]bool     // RRsets whose TTL the DNS chooses by itself
}

// Batch is what one zone should become. Changes are in the order in which they are to be made where they cannot be made at once, those
// of one name together; each key occurs once.
type Batch struct {
	Zone    rota.Name
	Fence   rota.Change // of FenceKey(Zone); New is absent when the zone is given up
	Changes []rota.Change
}

// ErrMoved says that a precondition did not hold: somebody else changed the fence or an RRset. Nothing was written.
var ErrMoved = errors.New("the zone no longer holds what the change was planned on")

// ErrFenced says that another writer of the same owner has taken the zone: this one must make sure that it leads before it goes on.
var ErrFenced = errors.New("another leader has taken the zone's fence")

// Code sorts reasons for machines.
type Code string

// The codes. They are stable: metrics, the API and tests use them.
const (
	CodeUnreachable Code = "unreachable"     // no answer, or no way there
	CodeForged      Code = "unauthenticated" // an answer without a valid signature
	CodeMalformed   Code = "malformed"       // an answer that the protocol does not allow
	CodeRefused     Code = "refused"
	CodeNotAuth     Code = "notauth"
	CodeNotZone     Code = "notzone"
	CodeServfail    Code = "servfail"
	CodeFormerr     Code = "formerr"
	CodeNotimp      Code = "notimp"
	CodeRcode       Code = "rcode" // any other
	CodeBadKey      Code = "badkey"
	CodeBadSig      Code = "badsig"
	CodeBadTime     Code = "badtime"
	CodeNoZone      Code = "no-zone"      // no zone holds the name, or the zone is missing
	CodeLame        Code = "lame"         // the server is not authoritative
	CodeDelegated   Code = "delegated"    // another zone holds the name
	CodeDNAME       Code = "dname"        // a DNAME above redirects the name
	CodeCNAME       Code = "cname"        // a CNAME that is not ours stands at the name
	CodeOther       Code = "other-data"   // other records stand where a CNAME should
	CodeTooLarge    Code = "too-large"    // one name's records do not fit in a message
	CodeConflict    Code = "conflict"     // another owner holds the zone
	CodeFenced      Code = "fenced"       // another leader of the same owner holds the zone
	CodeNotApplied  Code = "not-applied"  // the server agreed, and did not do it
	CodeMoving      Code = "moving"       // somebody changes our records as fast as we do
	CodeDenied      Code = "denied"       // credentials that are wrong, or may not do this
	CodeRateLimited Code = "rate-limited" // asked to slow down
	CodeUnsupported Code = "unsupported"  // a record type, a name or a value that this DNS does not take
	CodeQuota       Code = "quota"        // as many records or zones as the account may have
	CodeScript      Code = "script"       // a command failed
	CodeHeld        Code = "held"         // a change that is over the budget waits for a person
	CodeFrozen      Code = "frozen"       // a person stopped all that is automatic
	CodeDryRun      Code = "dry-run"      // would be written, were this not a dry run
	CodeNotOwned    Code = "not-owned"    // the registry does not say that these records are ours
	CodeReleased    Code = "released"     // a person gave the zone up
	CodeGuard       Code = "guard"        // the change would leave a name empty or name a foreign address
	CodeInternal    Code = "internal"     // an error that is not a Reason
)

// Reason says to the operator why the DNS is not as it should be, and what to do about it.
type Reason struct {
	Code      Code          `json:"code"`
	Transient bool          `json:"transient"`          // it may pass by itself: tried again soon; otherwise at the capped pace
	InDoubt   bool          `json:"in_doubt,omitempty"` // a write may have happened, or may happen yet
	After     time.Duration `json:"after_ns,omitempty"` // not before this is it worth trying again; at most MaxAfter
	Server    string        `json:"server,omitempty"`
	Zone      rota.Name     `json:"zone,omitempty"`
	Name      rota.Name     `json:"name,omitempty"` // when it concerns one name only
	Text      string        `json:"text"`
	Advice    string        `json:"advice,omitempty"`
}

// MaxAfter bounds Reason.After, whatever a server asks for.
const MaxAfter = 5 * time.Minute

// ours reports whether nothing is wrong with the DNS: a person decided that rota does not write.
func (r *Reason) ours() bool {
	switch r.Code {
	case CodeHeld, CodeFrozen, CodeDryRun, CodeReleased:
		return true
	}
	return false
}

// same reports whether there is nothing new in o: how long it is to wait says nothing of why.
func (r *Reason) same(o *Reason) bool {
	x, y := *r, *o
	x.After, y.After = 0, 0
	return x == y
}

// after is how long to wait at least because of reasons.
func after(reasons ...*Reason) time.Duration {
	var wait time.Duration
	for _, r := range reasons {
		if r != nil {
			wait = max(wait, min(r.After, MaxAfter))
		}
	}
	return wait
}

// Error returns the reason in one line: where, what, and what to do.
func (r *Reason) Error() string {
	s := r.Text
	switch {
	case r.Name != "":
		s = r.Name.Short() + ": " + s
	case r.Zone != "":
		s = r.Zone.Short() + ": " + s
	}
	if r.Server != "" {
		s += " (server " + r.Server + ")"
	}
	if r.Advice != "" {
		s += "; " + r.Advice
	}
	return s
}

// Is lets errors.Is find ErrFenced behind its reason.
func (r *Reason) Is(target error) bool { return target == ErrFenced && r.Code == CodeFenced }

// ReasonOf returns the reason behind an error, and one with CodeInternal for an error that has none.
func ReasonOf(err error) *Reason {
	if r, ok := errors.AsType[*Reason](err); ok {
		return r
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Reason{Code: CodeUnreachable, Transient: true, InDoubt: true, Text: err.Error()}
	}
	return &Reason{Code: CodeInternal, Transient: true, InDoubt: true, Text: fmt.Sprint(err)}
}
