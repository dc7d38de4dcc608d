package witness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Server is one authoritative address of a zone.
type Server struct {
	Name   string // as the delegation or the configuration names it, without trailing dot; empty: by its address
	Addr   netip.AddrPort
	Origin bool // where the publisher writes, and nobody else is sent
}

func (s Server) String() string {
	if s.Name == "" {
		return s.Addr.String()
	}
	return s.Name + " " + s.Addr.String()
}

// Delegation is what the parent of a zone says of it, and what could not be learnt.
type Delegation struct {
	At       time.Time
	Parent   rota.Name // empty: not found
	NS       []string  // at the parent, canonical, sorted; none: not seen
	Missing  bool      // the parent says that there is no such zone
	Signed   bool      // the parent was asked for DS records and has some
	DS       []*dns.DS
	Homeless []string // names of servers that have no address, canonical
	Partial  bool     // there may be servers that were not found
	Blind    []string // what could not be seen, for people
}

// Limits of discovery.
const (
	maxHosts     = 16 // names of servers
	maxAddresses = 8  // of one name
	maxParents   = 4  // servers of the parent that are asked
	locateWithin = 20 * time.Second
)

// systemResolvers are those of /etc/resolv.conf.
func systemResolvers() []string {
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range c.Servers {
		out = append(out, net.JoinHostPort(s, c.Port))
	}
	return out
}

// search finds the servers of one zone.
type search struct {
	w         *Witness
	resolvers []netip.AddrPort
	found     Delegation
	own       []string                // the zone's NS by a server that holds its parent as well
	hosts     map[string][]netip.Addr // by canonical name
	glue      map[string][]netip.Addr
}

func (s *search) blind(format string, args ...any) {
	s.found.Blind = append(s.found.Blind, rota.CleanReason(format, args...))
}

// locate returns the servers of a zone: those that are configured, or those that the delegation and the zone itself name. The error
// says why none was found.
func (w *Witness) locate(ctx context.Context, subject Subject) ([]Server, Delegation, error) {
	ctx, cancel := context.WithTimeout(ctx, locateWithin)
	defer cancel()
	s := &search{w: w, hosts: map[string][]netip.Addr{}, glue: map[string][]netip.Addr{}, found: Delegation{At: time.Now()}}
	resolvers := subject.Resolvers
	if len(resolvers) == 0 {
		resolvers = w.o.System()
	}
	for _, r := range resolvers {
		if a, err := netip.ParseAddrPort(r); err == nil {
			s.resolvers = append(s.resolvers, a)
		}
	}
	var out []Server
	if len(subject.Servers) > 0 {
		out = s.configured(ctx, subject.Servers, false)
	} else {
		s.delegated(ctx, subject.Zone)
		names := s.found.NS
		if len(names) == 0 {
			names = s.own
		}
		if len(names) == 0 {
			names = s.ask(ctx, subject.Zone)
		}
		s.found.Partial = s.found.Partial || len(names) == 0
		out = s.servers(ctx, names)
		if own := s.inZone(ctx, out, subject.Zone); len(own) > 0 {
			out = append(out, s.servers(ctx, slices.DeleteFunc(own, func(n string) bool { return slices.Contains(names, n) }))...)
		}
	}
	origins := s.configured(ctx, subject.Origins, true)
	out = unique(append(out, origins...))
	if len(out) == 0 {
		return nil, s.found, fmt.Errorf("no server of %s was found: %s", subject.Zone.Short(), strings.Join(s.found.Blind, "; "))
	}
	return out, s.found, nil
}

// unique leaves out what occurs again; a server that the world is sent to is no mere origin.
func unique(all []Server) []Server {
	var out []Server
	for _, s := range all {
		if !slices.ContainsFunc(out, func(o Server) bool { return o.Addr == s.Addr }) && len(out) < maxServers {
			out = append(out, s)
		}
	}
	return out
}

// configured returns the addresses of host:port pairs.
func (s *search) configured(ctx context.Context, at []string, origin bool) []Server {
	var out []Server
	for _, hp := range at {
		if a, err := netip.ParseAddrPort(hp); err == nil {
			out = append(out, Server{Addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), Origin: origin})
			continue
		}
		host, text, err := net.SplitHostPort(hp)
		port, perr := strconv.ParseUint(text, 10, 16)
		if err = errors.Join(err, perr); err != nil {
			s.blind("server %q: want host:port", hp)
			s.found.Partial = true
			continue
		}
		for _, a := range s.addresses(ctx, canonical(host)) {
			out = append(out, Server{Name: host, Addr: netip.AddrPortFrom(a, uint16(port)), Origin: origin})
		}
	}
	return out
}

// servers returns the addresses of names of servers.
func (s *search) servers(ctx context.Context, names []string) []Server {
	var out []Server
	for _, n := range names[:min(len(names), maxHosts)] {
		for _, a := range s.addresses(ctx, n) {
			out = append(out, Server{Name: rota.Name(n).Short(), Addr: netip.AddrPortFrom(a, s.w.o.Port)})
		}
	}
	return out
}

// addresses finds the addresses of a name, by the resolvers and, for a name inside the zone, by its parent's glue.
func (s *search) addresses(ctx context.Context, name string) []netip.Addr {
	if out, ok := s.hosts[name]; ok {
		return out
	}
	out, failed := slices.Clone(s.glue[name]), false
	if a, err := netip.ParseAddr(name); err == nil {
		out = append(out, a.Unmap())
	} else {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			answer, err := s.resolve(ctx, name, t)
			if err != nil {
				s.blind("addresses of %s: %v", name, err)
				failed = true
				continue
			}
			for _, rr := range answer.Answer {
				switch rr := rr.(type) { // of whatever name an alias leads to: it is a resolver that says so
				case *dns.A:
					out = append(out, address(rr.A.To4()))
				case *dns.AAAA:
					out = append(out, address(rr.AAAA.To16()))
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.DeleteFunc(slices.Compact(out), func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() || a.IsMulticast() })
	out = out[:min(len(out), maxAddresses)]
	s.hosts[name] = out
	s.found.Partial = s.found.Partial || failed
	if len(out) == 0 && !failed {
		s.found.Homeless = append(s.found.Homeless, name)
	}
	return out
}

// resolve asks the resolvers in turn.
func (s *search) resolve(ctx context.Context, name string, t uint16) (*dns.Msg, error) {
	err := errors.New("no resolver is configured, and the machine has none")
	for _, r := range s.resolvers {
		m := question(rota.Name(name), t)
		m.RecursionDesired = true
		var answer *dns.Msg
		if answer, err = s.exchange(ctx, r, m); err == nil && answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer, nil
		}
		if err == nil {
			err = fmt.Errorf("%s from resolver %s", dns.RcodeToString[answer.Rcode], r)
		}
	}
	return nil, err
}

// exchange asks over UDP, and over TCP for what was cut.
func (s *search) exchange(ctx context.Context, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	answer, _, err := s.w.exchange(ctx, UDP, server, m)
	if err == nil && answer.Truncated {
		answer, _, err = s.w.exchange(ctx, TCP, server, m)
	}
	return answer, err
}

// delegated learns from the parent's own servers which servers the zone has, and by which keys it is signed.
func (s *search) delegated(ctx context.Context, zone rota.Name) {
	if zone == "." {
		return
	}
	parent, servers := s.parent(ctx, zone)
	s.found.Parent = parent
	for _, at := range servers[:min(len(servers), maxParents)] {
		answer, err := s.exchange(ctx, at.Addr, question(zone, dns.TypeNS))
		if err != nil {
			s.blind("the parent's server %s: %v", at, err)
			continue
		}
		if answer.Rcode == dns.RcodeNameError && answer.Authoritative {
			if s.own = s.ask(ctx, zone); len(s.own) > 0 { // it is of this network only
				s.blind("%s says that there is no %s, which the resolvers here know: what others are told is not to be seen", at, zone.Short())
			}
			s.found.Missing = len(s.own) == 0
			return
		}
		// A server that holds parent and child alike answers for the child: what the parent says is not to be seen there.
		if answer.Rcode == dns.RcodeSuccess && answer.Authoritative && len(answer.Answer) > 0 {
			s.own = nsOf(answer, zone)
			continue
		}
		if answer.Rcode != dns.RcodeSuccess {
			continue
		}
		for _, rr := range answer.Ns {
			if ns, ok := rr.(*dns.NS); ok && canonical(ns.Hdr.Name) == zone.String() && len(s.found.NS) < maxHosts {
				s.found.NS = append(s.found.NS, canonical(ns.Ns))
			}
		}
		if len(s.found.NS) == 0 {
			continue
		}
		slices.Sort(s.found.NS)
		s.found.NS = slices.Compact(s.found.NS)
		s.glued(answer.Extra, zone)
		s.signed(ctx, at.Addr, zone)
		return
	}
	if len(s.own) == 0 {
		s.blind("no server of the parent shows the delegation of %s", zone.Short())
	}
}

// glued takes the addresses that come with a referral, of servers it names whose names lie in the zone itself: they cannot be found otherwise.
func (s *search) glued(extra []dns.RR, zone rota.Name) {
	for _, rr := range extra {
		name := canonical(rr.Header().Name)
		if !rota.Name(name).In(zone) || !slices.Contains(s.found.NS, name) || len(s.glue[name]) >= maxAddresses {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			s.glue[name] = append(s.glue[name], address(rr.A.To4()))
		case *dns.AAAA:
			s.glue[name] = append(s.glue[name], address(rr.AAAA.To16()))
		}
	}
}

// maxDS bounds the DS records that are looked at.
const maxDS = 16

func (s *search) signed(ctx context.Context, at netip.AddrPort, zone rota.Name) {
	answer, err := s.exchange(ctx, at, question(zone, dns.TypeDS))
	if err != nil || answer.Rcode != dns.RcodeSuccess || !answer.Authoritative {
		s.blind("the parent's server %s does not say whether %s has DS records", at, zone.Short())
		return
	}
	for _, rr := range answer.Answer {
		if ds, ok := rr.(*dns.DS); ok && canonical(ds.Hdr.Name) == zone.String() && len(s.found.DS) < maxDS {
			s.found.DS = append(s.found.DS, ds)
		}
	}
	s.found.Signed = len(s.found.DS) > 0
}

// parent finds the zone above and its servers.
func (s *search) parent(ctx context.Context, zone rota.Name) (rota.Name, []Server) {
	for p := zone.Parent(); ; p = p.Parent() {
		answer, err := s.resolve(ctx, p.String(), dns.TypeNS)
		if err != nil {
			s.blind("the zone above %s: %v", zone.Short(), err)
			return "", nil
		}
		var names []string
		for _, rr := range answer.Answer {
			if ns, ok := rr.(*dns.NS); ok && canonical(ns.Hdr.Name) == p.String() && len(names) < maxParents {
				names = append(names, canonical(ns.Ns))
			}
		}
		if len(names) > 0 {
			servers := s.servers(ctx, names)
			s.found.Homeless, s.found.Partial = nil, false // said of the parent, not of the zone
			return p, servers
		}
		if p == "." {
			s.blind("the zone above %s was not found", zone.Short())
			return "", nil
		}
	}
}

// ask asks the resolvers for the zone's NS.
func (s *search) ask(ctx context.Context, zone rota.Name) []string {
	answer, err := s.resolve(ctx, zone.String(), dns.TypeNS)
	if err != nil {
		s.blind("the servers of %s: %v", zone.Short(), err)
		return nil
	}
	return nsOf(answer, zone)
}

// inZone asks the servers for the NS records that the zone itself holds.
func (s *search) inZone(ctx context.Context, at []Server, zone rota.Name) []string {
	var mu sync.Mutex // guards out
	var out []string
	var wg sync.WaitGroup
	for _, x := range at {
		wg.Go(func() {
			answer, err := s.exchange(ctx, x.Addr, question(zone, dns.TypeNS))
			if err != nil || !answer.Authoritative {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, nsOf(answer, zone)...)
		})
	}
	wg.Wait()
	slices.Sort(out)
	return slices.Compact(out)
}

// nsOf returns the NS records of a zone in an answer, canonical and sorted.
func nsOf(answer *dns.Msg, zone rota.Name) []string {
	a := read(answer, rota.Key{Name: zone, Type: rota.TypeNS})
	return a.Data[:min(len(a.Data), maxHosts)]
}
