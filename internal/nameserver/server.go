package nameserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// Options is what a Server needs. Zero numbers mean the defaults below.
type Options struct {
	Listen      []string            // host:port; no host: every address of both families; [::]: IPv6 only; empty list: DefaultListen
	Zones       []Zone              //
	State       func() *rota.State  // the State of the moment; called for every query, from many goroutines; never nil
	Log         *slog.Logger        // nil: silent
	MaxTCP      int                 // TCP connections in all; 0: DefaultMaxTCP
	MaxClient   int                 // TCP connections of one client, an IPv4 address or an IPv6 /64; 0: DefaultMaxClient
	IdleTimeout time.Duration       // a TCP connection without a query is closed after it; 0: DefaultIdleTimeout
	IOTimeout   time.Duration       // a query must arrive, and an answer be taken, within it; 0: DefaultIOTimeout
	Readers     int                 // goroutines that answer on each UDP socket; 0: as many as processors
	Draw        func(uint64) uint64 // a number uniform in [0,n), from many goroutines; nil: math/rand/v2's
}

// What a server has that is told nothing.
const (
	DefaultListen      = ":53"
	DefaultMaxTCP      = 1000
	DefaultMaxClient   = 50
	DefaultIdleTimeout = 10 * time.Second
	DefaultIOTimeout   = 5 * time.Second
)

// Server answers queries over UDP and TCP. New, then Listen, then Run; the other methods may be called at any time after New.
type Server struct {
	// Immutable.
	opts  Options
	state func() *rota.State
	log   *slog.Logger

	// Set by Listen, closed by Run.
	udp []*udpSocket
	tcp []*net.TCPListener

	// Written under rebuild, read by every query.
	rebuild sync.Mutex
	catalog atomic.Pointer[catalog]

	conns    connTable
	counters counters
	strange  *rate.Limiter // log lines about what strangers ask for
}

// New makes a server. It fails with every error in the zones.
func New(o Options) (*Server, error) {
	if o.State == nil {
		return nil, errors.New("dns: no state to answer from")
	}
	if len(o.Listen) == 0 {
		o.Listen = []string{DefaultListen}
	}
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	o.MaxTCP = cmp.Or(o.MaxTCP, DefaultMaxTCP)
	o.MaxClient = cmp.Or(o.MaxClient, DefaultMaxClient)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, DefaultIdleTimeout)
	o.IOTimeout = cmp.Or(o.IOTimeout, DefaultIOTimeout)
	o.Readers = cmp.Or(o.Readers, runtime.GOMAXPROCS(0))
	if o.Draw == nil {
		o.Draw = rand.Uint64N
	}
	s := &Server{opts: o, state: o.State, log: o.Log, strange: rate.NewLimiter(rate.Every(10*time.Second), 5)}
	if err := s.SetZones(o.Zones); err != nil {
		return nil, err
	}
	return s, nil
}

// SetZones replaces all zones. On an error nothing changes; otherwise every query from now on sees the new ones, and none sees a
// mixture. The serial of a zone whose static part changed grows.
func (s *Server) SetZones(zones []Zone) error {
	compiled, err := Compile(zones)
	if err != nil {
		return err
	}
	s.rebuild.Lock()
	defer s.rebuild.Unlock()
	st := s.state()
	s.install(compiled, st, s.catalog.Load())
	return nil
}

// install makes a catalog of zones and st the current one. Counters and serials go on from prev.
func (s *Server) install(zones *Zones, st *rota.State, prev *catalog) *catalog {
	next := newCatalog(zones, st)
	for n, v := range next.views {
		var old *view
		if prev != nil {
			old = prev.views[n]
		}
		if old == nil {
			v.counts = new(zoneCounts)
			continue
		}
		v.counts = old.counts
		if old.zone == v.zone {
			v.floor = old.floor
			continue
		}
		v.floor = nextFloor(old, v, st.Serial())
	}
	next.warn(s.log)
	s.catalog.Store(next)
	return next
}

// nextFloor keeps the serial from going back, and moves it on when the zone's static part is another one now.
func nextFloor(old, v *view, state uint32) uint32 {
	served, next := serial(old.floor, state), serial(v.floor, state)
	if reflect.DeepEqual(old.source, v.source) {
		return old.floor
	}
	if int32(next-served) > 0 {
		return v.floor
	}
	return max(served+1, 1)
}

// load returns the State of this moment and the catalog that goes with it.
func (s *Server) load() (*catalog, *rota.State) {
	st := s.state()
	if c := s.catalog.Load(); c.current(st) {
		return c, st
	}
	s.rebuild.Lock()
	defer s.rebuild.Unlock()
	st = s.state() // another query may have made the catalog meanwhile, for a State newer than ours
	c := s.catalog.Load()
	if !c.current(st) {
		c = s.install(c.zones, st, c)
	}
	return c, st
}

// serve answers one packet. A bug costs its query an answer of SERVFAIL and no other anything.
func (s *Server) serve(packet []byte, from netip.AddrPort, udp bool) (reply []byte) {
	start := time.Now()
	var what outcome
	defer func() {
		if r := recover(); r != nil {
			s.counters.panics.Add(1)
			if s.strange.Allow() {
				s.log.Error("bug: a query was answered SERVFAIL", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			}
			reply, what = servfail(packet)
		}
		s.counters.count(what, udp, time.Since(start))
	}()
	if from.Port() == 0 {
		s.counters.portZero.Add(1)
		what.drop = dropCounted
		return nil
	}
	c, st := s.load()
	reply, what = respond(c, st, packet, udp, s.opts.Draw)
	if what.notable != "" && s.strange.Allow() {
		s.log.Info("refused", "what", what.notable, "client", network(from.Addr()))
	}
	return reply
}

// servfail answers with no more than the header.
func servfail(packet []byte) ([]byte, outcome) {
	h, err := readHeader(packet)
	if err != nil {
		return nil, outcome{drop: dropMalformed}
	}
	m := &dns.Msg{}
	m.Id, m.Response, m.Opcode, m.RecursionDesired, m.Rcode = h.id, true, h.opcode, h.rd, dns.RcodeServerFailure
	return bare(m)
}

// network is a client as far as logs need to know it.
func network(a netip.Addr) string {
	bits := 56
	if a = a.Unmap(); a.Is4() {
		bits = 24
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

// Run serves until ctx is cancelled, and returns nil after everything has ended. It listens first unless Listen was called.
func (s *Server) Run(ctx context.Context) error {
	if len(s.udp) == 0 {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, u := range s.udp {
		for range s.opts.Readers {
			g.Go(func() error { return u.serve(ctx, s) })
		}
	}
	for _, l := range s.tcp {
		g.Go(func() error { return s.accept(ctx, l) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.close()
		s.conns.closeAll()
		return nil
	})
	return g.Wait()
}

// close closes the sockets.
func (s *Server) close() {
	for _, u := range s.udp {
		u.conn.Close()
	}
	for _, l := range s.tcp {
		l.Close()
	}
}
