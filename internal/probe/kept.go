package probe

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// maxKept is how long one connection serves probes. A server that takes no new connections is found out after that.
const maxKept = 5 * time.Minute

// kept is a connection that a probe left open: for the next one (Check.Reuse), or to see its end (Check.Watch).
type kept struct {
	p     *Prober
	conn  net.Conn  // what a request goes over
	link  net.Conn  // what it runs on: the same, or the TCP connection under TLS
	facts *TLSFacts // of its handshake
	until time.Time // it serves probes until then
	serve bool      // it serves probes at all; else only its end is of interest
	broke func()    // tells the scheduler that it ended; nil: nobody wants to know

	quiet   func() bool // reports whether it is open and nothing waits to be read; not for one that is closed
	unwatch func()      // takes it out of the engine's watch; nil: closing does

	state  atomic.Uint32
	over   atomic.Bool // the other side has said goodbye
	closed atomic.Bool
}

// The states of a kept connection. Who takes it out of keptIdle owns it.
const (
	keptUsed  uint32 = iota // by a probe, or by who looks at it for a moment
	keptIdle                // between probes
	keptEnded               // by the other side, between probes
)

// ended notes that the other side closed the connection, reset it or spoke unasked.
func (k *kept) ended() {
	k.over.Store(true)
	if k.state.CompareAndSwap(keptIdle, keptEnded) {
		k.close()
		if k.broke != nil {
			k.broke()
		}
	}
}

// listen ends a connection between two probes on which the other side has spoken unasked: the next probe would take that for its answer.
// Who greets on a connection that serves nobody may do so.
func (k *kept) listen() {
	if !k.serve || !k.state.CompareAndSwap(keptIdle, keptUsed) {
		return
	}
	spoke := !k.quiet()
	k.state.Store(keptIdle)
	if spoke || k.over.Load() {
		k.ended()
	}
}

// close closes the connection, once.
func (k *kept) close() {
	if !k.closed.Swap(true) {
		_ = k.link.Close()
		if k.unwatch != nil {
			k.unwatch()
		}
		k.p.keeping.Add(-1)
	}
}

// keeps reports whether a connection of this probe may outlive it.
func (r *run) keeps() bool {
	return r.memory != nil && r.memory.engine != nil && (r.q.check.Reuse || r.q.check.Watch)
}

// resume takes the connection that the target's last probe left, if it serves this one; release takes the probe's deadline off it.
// One that was only watched, or has served long enough, is closed. When a watched one has ended by itself, this probe confirms that.
func (r *run) resume(ctx context.Context, p page) (k *kept, release func()) {
	if r.memory == nil || r.memory.kept == nil {
		return nil, nil
	}
	k = r.memory.kept
	r.memory.kept = nil
	for !k.state.CompareAndSwap(keptIdle, keptUsed) {
		if k.state.Load() == keptEnded {
			r.confirms = r.q.check.Watch
			return nil, nil
		}
		runtime.Gosched() // the engine looks at it
	}
	if _, secure := k.conn.(*tls.Conn); !r.q.check.Reuse || secure != p.tls || r.trace.Started.After(k.until) {
		k.close()
		return nil, nil
	}
	r.trace.TLS = k.facts
	return k, r.bind(ctx, k.link)
}

// keep leaves a connection for the next probe, after its deadline has been taken off, or closes it when it has ended, or returns
// false: then the caller closes it. k is nil for a fresh one.
func (r *run) keep(ctx context.Context, k *kept, c, link net.Conn) bool {
	if !r.keeps() || ctx.Err() != nil {
		return false
	}
	if k == nil {
		if r.p.keeping.Add(1) > r.p.keepable {
			r.p.keeping.Add(-1)
			return false
		}
		k = &kept{p: r.p, conn: c, link: link, facts: r.trace.TLS, until: r.serves(), serve: r.q.check.Reuse}
		if r.q.check.Watch {
			k.broke = r.memory.broke
		}
		if err := r.memory.engine.hold(k); err != nil {
			r.p.keeping.Add(-1)
			return false
		}
	}
	if k.over.Load() || k.serve && leftover(c, link) { // it closes after each answer, or says more than one: there is nothing to keep
		k.close()
		return true
	}
	_ = link.SetDeadline(time.Time{})
	if r.seat != nil {
		r.seat.leave(link)
	}
	r.memory.kept = k
	k.state.Store(keptIdle)
	if k.over.Load() { // just now
		k.ended()
	}
	k.listen() // what came while the probe used it was no news then
	return true
}

// leftover reports whether TLS holds more than the probe has read of it, or is over.
func leftover(c, link net.Conn) bool {
	t, secure := c.(*tls.Conn)
	if !secure {
		return false
	}
	_ = link.SetDeadline(time.Unix(1, 0)) // nothing is read from the network
	var b [1]byte
	n, err := t.Read(b[:])
	return n > 0 || !timedOut(err)
}

// serves is until when a fresh connection serves probes: not for long, and never past the day that its certificate would be judged
// otherwise.
func (r *run) serves() time.Time {
	until := r.trace.Started.Add(maxKept)
	if f := r.trace.TLS; f != nil && r.q.check.Verify != rota.VerifyNone {
		for _, c := range f.Chain {
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
		}
	}
	if f := r.trace.TLS; f != nil && len(f.Chain) > 0 && r.q.check.CertDays > 0 {
		if at := f.Chain[0].NotAfter.Add(-time.Duration(r.q.check.CertDays) * 24 * time.Hour); at.Before(until) {
			until = at
		}
	}
	return until
}
