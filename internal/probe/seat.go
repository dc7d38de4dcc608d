package probe

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// seat is where a probe runs that has no goroutine of its own. Whatever such a probe waits for, it waits for by its seat, its context
// or a connection that the seat dialled. Its methods are for the probe alone, but for wake.
type seat interface {
	// span is the probe's context for the next while, which ends at its deadline, or with the probe's parent context.
	span(limit time.Duration) context.Context
	// dial connects to an address without a zone. holdAck is that of sockets (see holdAck).
	dial(to netip.AddrPort, holdAck bool) (net.Conn, error)
	// take makes a connection that a seat dialled for an earlier probe this one's; leave makes it nobody's.
	take(c net.Conn)
	leave(c net.Conn)
	// wait returns at the time given, at the probe's deadline, when the probe is no longer wanted, or after wake: what it waits for
	// has to be looked at again.
	wait(until time.Time)
	// wake ends a wait. Only the engine's own goroutine calls it.
	wake()
	// aside runs what is heavy or blocks on a goroutine, and returns when it has ended.
	aside(f func())
}

// engine runs probes without a goroutine each. It reports each that it was given once.
type engine interface {
	start(e *entry, j job)
	cancel(e *entry)    // the probe of e in flight ends at once, if there is one
	hold(k *kept) error // calls k.ended when the other side ends it; while a probe uses it, that only notes it
	release(k *kept)    // closes it, if no probe uses it
	close()             // cancels all probes and waits for them
}

// heavy is how many bytes a seated probe looks through at once; for more it leaves the loop to others.
const heavy = 8 << 10

// aside runs f, which looks through n bytes.
func (r *run) aside(n int, f func()) {
	if r.seat != nil && n > heavy {
		r.seat.aside(f)
		return
	}
	f()
}

// job is one probe to be run: what of its entry the scheduler may change meanwhile.
type job struct {
	id     rota.TargetID
	addr   netip.Addr
	q      *question
	memory *memory
}

// seated reports whether the probe can do without a goroutine: neither an interface nor a file has to be looked up.
func (j job) seated() bool {
	c := &j.q.check
	return kinds[c.Kind].seated && j.addr.Zone() == "" && c.Auth.Secret == ""
}
