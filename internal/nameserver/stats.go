package nameserver

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Proto is how a query came.
type Proto string

// The protocols.
const (
	UDP Proto = "udp"
	TCP Proto = "tcp"
)

// Stats are counters since the server was made. Their number is bounded by the zones that are configured.
type Stats struct {
	Queries   []QueryCount  // sorted by zone, protocol and rcode; only those above 0
	Malformed uint64        // packets that got no answer: too short, or answers themselves
	PortZero  uint64        // packets from source port 0, which got no answer
	Truncated uint64        // answers with TC set
	Panics    uint64        // queries that met a bug and got SERVFAIL
	Latency   []LatencyStep // how long answers took, from packet read to packet written; cumulative, the last has no bound
	Took      time.Duration // sum of it
	TCPOpen   int           // connections now
	TCPClosed uint64        // connections closed to make room, or refused for one client's having too many
}

// QueryCount counts the answers of one kind.
type QueryCount struct {
	Zone  rota.Name // empty: outside every zone
	Proto Proto
	Rcode string // NOERROR, NXDOMAIN, …
	Count uint64
}

// LatencyStep counts the answers that took at most Le.
type LatencyStep struct {
	Le    time.Duration // 0 in the last step: no bound
	Count uint64
}

var latencyBounds = [...]time.Duration{
	10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond,
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, time.Second,
}

// rcodes a server of this kind gives; others cannot occur.
var rcodes = [...]int{
	dns.RcodeSuccess, dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNameError, dns.RcodeNotImplemented, dns.RcodeRefused,
	dns.RcodeNotAuth, dns.RcodeBadVers,
}

// zoneCounts counts the answers of one zone, by protocol (UDP first) and rcode.
type zoneCounts [2][len(rcodes)]atomic.Uint64

func (z *zoneCounts) add(udp bool, rcode int) {
	i := slices.Index(rcodes[:], rcode)
	if i < 0 {
		i = slices.Index(rcodes[:], dns.RcodeServerFailure)
	}
	p := 1
	if udp {
		p = 0
	}
	z[p][i].Add(1)
}

// counters is what Stats is read from.
type counters struct {
	outside   zoneCounts
	malformed atomic.Uint64
	portZero  atomic.Uint64
	truncated atomic.Uint64
	panics    atomic.Uint64
	latency   [len(latencyBounds) + 1]atomic.Uint64
	took      atomic.Int64
	tcpClosed atomic.Uint64
}

// dropReason says why a packet got no answer.
type dropReason uint8

const (
	dropNot dropReason = iota
	dropMalformed
	dropCounted // and already counted
)

// outcome is what became of a packet.
type outcome struct {
	drop      dropReason
	view      *view // nil: outside every zone
	rcode     int
	truncated bool
	notable   string // what a stranger asked for that is worth a line in the log
}

func (c *counters) count(o outcome, udp bool, took time.Duration) {
	switch o.drop {
	case dropMalformed:
		c.malformed.Add(1)
		return
	case dropCounted:
		return
	}
	z := &c.outside
	if o.view != nil {
		z = o.view.counts
	}
	z.add(udp, o.rcode)
	if o.truncated {
		c.truncated.Add(1)
	}
	i, _ := slices.BinarySearch(latencyBounds[:], took)
	c.latency[i].Add(1)
	c.took.Add(int64(took))
}

// Stats reads the counters. Those of a zone begin anew when it leaves the configuration and returns.
func (s *Server) Stats() Stats {
	c := &s.counters
	out := Stats{
		Malformed: c.malformed.Load(), PortZero: c.portZero.Load(), Truncated: c.truncated.Load(), Panics: c.panics.Load(),
		Took: time.Duration(c.took.Load()), TCPClosed: c.tcpClosed.Load(), TCPOpen: s.conns.open(),
	}
	read := func(n rota.Name, z *zoneCounts) {
		for p, proto := range []Proto{UDP, TCP} {
			for i := range rcodes {
				if v := z[p][i].Load(); v > 0 {
					out.Queries = append(out.Queries, QueryCount{n, proto, dns.RcodeToString[rcodes[i]], v})
				}
			}
		}
	}
	read("", &c.outside)
	for n, v := range s.catalog.Load().views {
		read(n, v.counts)
	}
	slices.SortFunc(out.Queries, func(a, b QueryCount) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Rcode, b.Rcode))
	})
	sum := uint64(0)
	for i := range c.latency {
		sum += c.latency[i].Load()
		step := LatencyStep{Count: sum}
		if i < len(latencyBounds) {
			step.Le = latencyBounds[i]
		}
		out.Latency = append(out.Latency, step)
	}
	return out
}
