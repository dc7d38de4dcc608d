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
	cancel(e *entry) // the probe of e in flight ends at once, if there is one
	close()          // cancels all probes and waits for them
}

// job is one probe to be run: what of its entry the scheduler may change meanwhile.
type job struct {
	id     rota.TargetID
	addr   netip.Addr
	q      *question
	memory *memory
}

// seated reports whether the probe of a question at addr can do without a goroutine.
func (j job) seated() bool { return kinds[j.q.check.Kind].seated && j.addr.Zone() == "" }
