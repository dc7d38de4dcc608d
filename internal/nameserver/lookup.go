package nameserver

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// maxChain bounds the CNAMEs that one answer follows.
const maxChain = 16

// question is what is asked, class IN understood.
type question struct {
	asked string    // the name as it came, in presentation form: its case goes into the answer
	name  rota.Name // the same, canonical
	qtype uint16
}

// answer is what lookup found. Its records are shared and must not be changed.
type answer struct {
	rcode      int
	aa         bool
	zone       *view // that the question fell into; nil: none
	answer     []dns.RR
	authority  []dns.RR
	additional []dns.RR
	glue       bool // additional holds addresses without which a referral cannot be followed
}

// draw returns a number that is uniform in [0,n), n > 0. It is the only source of chance in an answer.
type draw func(n uint64) uint64

// lookup answers q from one catalog and one State, which together are one version of everything (RFC 1034 §4.3.2).
func lookup(c *catalog, st *rota.State, q question, rnd draw) answer {
	l := &search{catalog: c, state: st, draw: rnd, qtype: q.qtype}
	v := c.viewFor(q.name, q.qtype)
	if v == nil {
		l.out.rcode = dns.RcodeRefused
		return l.out
	}
	l.out.zone, l.out.aa = v, true
	var visited []rota.Name
	for owner := q.asked; v != nil; {
		visited = append(visited, q.name)
		next := l.step(v, q.name, owner)
		if next == "" || slices.Contains(visited, next) || len(visited) > maxChain {
			break
		}
		q.name, owner = next, next.String()
		v = c.viewFor(next, q.qtype)
	}
	return l.out
}

// search is one run of lookup.
type search struct {
	*catalog
	state *rota.State
	draw  draw
	qtype uint16
	out   answer
}

// viewFor returns the zone that answers for n: the most specific one, but for DS, which its parent holds (RFC 4035 §3.1.4.1).
func (c *catalog) viewFor(n rota.Name, qtype uint16) *view {
	v := c.view(n)
	if v != nil && qtype == dns.TypeDS && n == v.name && n != "." {
		if parent := c.view(n.Parent()); parent != nil {
			return parent
		}
	}
	return v
}

// step answers for one name in one zone, and returns the name to go on with when it is an alias. owner is the name as it shall stand
// in the answer.
func (l *search) step(v *view, n rota.Name, owner string) (next rota.Name) {
	if cut := v.cut(n); cut != "" && (cut != n || l.qtype != dns.TypeDS) {
		l.refer(v, cut)
		return ""
	}
	source := n
	if !v.exists(n) {
		encloser := n.Parent()
		for !v.exists(encloser) {
			encloser = encloser.Parent()
		}
		if source = encloser.Wildcard(); !v.exists(source) {
			l.out.rcode = dns.RcodeNameError
			l.negative(v)
			return ""
		}
	}
	return l.records(v, source, owner)
}

// records answers from the records of an existing name.
func (l *search) records(v *view, source rota.Name, owner string) (next rota.Name) {
	if set := l.alias(v, source); set != nil {
		l.add(set, owner)
		if l.qtype == dns.TypeCNAME || l.qtype == dns.TypeANY {
			return ""
		}
		return set.target
	}
	if l.qtype == dns.TypeANY {
		l.any(v, source, owner)
		return ""
	}
	set := l.rrset(v, source, l.qtype)
	if set == nil {
		l.negative(v)
		return ""
	}
	l.add(set, owner)
	for _, host := range set.extra {
		l.addresses(v, host, false)
	}
	return ""
}

// add puts an RRset into the answer under the name that was asked for.
func (l *search) add(set *rrset, owner string) {
	for _, rr := range set.rrs {
		l.out.answer = append(l.out.answer, withOwner(rr, owner))
	}
}

func withOwner(rr dns.RR, owner string) dns.RR {
	if rr.Header().Name == owner {
		return rr
	}
	rr = dns.Copy(rr)
	rr.Header().Name = owner
	return rr
}

// alias returns the CNAME of a name: a static one, or the fallback of a service in panic.
func (l *search) alias(v *view, n rota.Name) *rrset {
	if v.services[n] {
		if s := l.state.Service(n); s != nil {
			return l.fallback(v, s)
		}
	}
	if d := v.nodes[n]; d != nil && v.claims[n] == nil {
		return d.set(dns.TypeCNAME)
	}
	return nil
}

// fallback returns a service's CNAME when it answers in place of addresses. At the apex, beside SOA and NS, no CNAME can stand: there
// all endpoints answer instead.
func (l *search) fallback(v *view, s *rota.Service) *rrset {
	sel := l.state.Selection(s.Name)
	if sel == nil || !sel.Fallback() || s.Safety.Fallback == "" || s.Name == v.name {
		return nil
	}
	hdr := dns.RR_Header{Name: s.Name.String(), Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: s.TTL}
	return &rrset{rrs: []dns.RR{&dns.CNAME{Hdr: hdr, Target: s.Safety.Fallback.String()}}, target: s.Safety.Fallback}
}

// rrset returns the records of a name and type, or nil.
func (l *search) rrset(v *view, n rota.Name, t uint16) *rrset {
	if n == v.name && t == dns.TypeSOA {
		return &rrset{rrs: []dns.RR{l.soa(v)}}
	}
	if v.services[n] && occluded(t) {
		if s := l.state.Service(n); s != nil {
			return l.service(v, s, t)
		}
	}
	if d := v.claims[n]; d != nil {
		if set := d.set(t); set != nil {
			return set
		}
	}
	if d := v.nodes[n]; d != nil {
		return d.set(t)
	}
	return nil
}

// service returns a service's addresses of one family, picked anew.
func (l *search) service(v *view, s *rota.Service, t uint16) *rrset {
	if t != dns.TypeA && t != dns.TypeAAAA {
		return nil
	}
	addrs := pick(candidates(s, l.state.Selection(s.Name), rota.Type(t), s.Name == v.name), s.Policy, l.draw)
	if len(addrs) == 0 {
		return nil
	}
	set := &rrset{rrs: make([]dns.RR, len(addrs))}
	for i, a := range addrs {
		set.rrs[i] = address(s.Name, s.TTL, a)
	}
	return set
}

func address(n rota.Name, ttl uint32, a netip.Addr) dns.RR {
	hdr := dns.RR_Header{Name: n.String(), Class: dns.ClassINET, Ttl: ttl}
	if a.Is4() {
		hdr.Rrtype = dns.TypeA
		return &dns.A{Hdr: hdr, A: a.AsSlice()}
	}
	hdr.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()}
}

// any answers a question for everything with as little as can be (RFC 8482 §4.2), or not at all where there is nothing.
func (l *search) any(v *view, n rota.Name, owner string) {
	has := v.services[n] || v.claims[n] != nil || n == v.name
	if d := v.nodes[n]; d != nil {
		has = has || len(d.sets) > 0
	}
	if !has {
		l.negative(v)
		return
	}
	hdr := dns.RR_Header{Name: owner, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: v.minimum}
	l.out.answer = append(l.out.answer, &dns.HINFO{Hdr: hdr, Cpu: "RFC8482"})
}

// negative says with the zone's SOA that there is nothing, and for how long (RFC 2308 §3, §5).
func (l *search) negative(v *view) {
	soa := l.soa(v)
	soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
	l.out.authority = append(l.out.authority, soa)
}

// soa returns the zone's SOA of this moment.
func (l *search) soa(v *view) *dns.SOA {
	soa := v.soa
	soa.Minttl = v.minimum
	soa.Serial = serial(v.floor, l.state.Serial())
	return &soa
}

// serial is the later (RFC 1982) of a zone's floor and the State's serial, where 0 is none; it is never 0.
func serial(floor, state uint32) uint32 {
	switch {
	case floor == 0:
		return max(state, 1)
	case state == 0:
		return floor
	}
	return max(later(floor, state), 1)
}

// refer points to the name servers of a delegated zone (RFC 1034 §4.3.2 step 3b), with the addresses that lie in this zone.
func (l *search) refer(v *view, cut rota.Name) {
	set := v.nodes[cut].set(dns.TypeNS)
	// AA speaks of the first name in the answer (RFC 1035 §4.1.1): a referral at the end of an alias leaves it as it is.
	l.out.aa = len(l.out.answer) > 0
	l.out.authority = append(l.out.authority, set.rrs...) // no DS: it is for signed zones (RFC 4035 §3.1.4)
	for _, host := range set.extra {
		before := len(l.out.additional)
		l.addresses(v, host, true)
		l.out.glue = l.out.glue || (host.In(cut) && len(l.out.additional) > before)
	}
}

// addresses puts what is known of a host's addresses into the additional section. Of another zone than v only what this server is
// the authority for counts; below a delegation of v only as glue for a referral.
func (l *search) addresses(v *view, host rota.Name, glue bool) {
	hv := l.view(host)
	if hv == nil {
		return
	}
	if cut := hv.cut(host); cut != "" && (!glue || hv != v) {
		return
	}
	if l.alias(hv, host) != nil {
		return
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if set := l.rrset(hv, host, t); set != nil {
			l.out.additional = append(l.out.additional, set.rrs...)
		}
	}
}

// candidate is an address that may be in the answer, with its share.
type candidate struct {
	addr   netip.Addr
	weight uint64 // rota.Member.Counts
}

// candidates lists the addresses of one family that may be in an answer now. all makes a fallback give way to every endpoint.
func candidates(s *rota.Service, sel *rota.Selection, t rota.Type, all bool) []candidate {
	if sel == nil {
		return everyone(s, t)
	}
	p := sel.Family(t)
	switch p.Mode {
	case rota.ModeAbsent, rota.ModeNone, rota.ModeWithdrawn:
		return nil
	case rota.ModeFallback:
		if all || s.Safety.Fallback == "" {
			return everyone(s, t)
		}
		return nil
	}
	out := make([]candidate, 0, len(p.Members))
	for _, m := range p.Members {
		if m.Serves() {
			out = append(out, candidate{m.Address, m.Counts()})
		}
	}
	return out
}

// everyone lists all endpoints of one family that can be published.
func everyone(s *rota.Service, t rota.Type) []candidate {
	var out []candidate
	for _, e := range s.Endpoints {
		if e.Address.Zone() == "" && e.Address.Is4() == (t == rota.TypeA) {
			out = append(out, candidate{e.Address, rota.Member{Weight: e.Weight}.Counts()})
		}
	}
	return out
}

// pick orders the candidates for one answer and cuts it to what the policy allows. Weighted: each place goes to one of those left with
// the probability of its share; those of weight 0 come last. Otherwise the list begins at each candidate equally often.
func pick(cs []candidate, policy rota.Policy, rnd draw) []netip.Addr {
	n := len(cs)
	if n == 0 {
		return nil
	}
	k := n
	if policy.Answers > 0 {
		k = min(n, policy.Answers)
	}
	out := make([]netip.Addr, 0, k)
	if !weighted(cs, policy.Pick) {
		start := 0
		if n > 1 {
			start = int(rnd(uint64(n)))
		}
		for i := range k {
			out = append(out, cs[(start+i)%n].addr)
		}
		return out
	}
	left := slices.Clone(cs)
	for len(out) < k {
		i := 0
		if len(left) > 1 {
			i = share(left, rnd)
		}
		out = append(out, left[i].addr)
		left = slices.Delete(left, i, i+1)
	}
	return out
}

func weighted(cs []candidate, p rota.Pick) bool {
	switch cmp.Or(p, rota.PickWeighted) {
	case rota.PickRotate:
		return false
	case p:
		return true
	}
	return slices.ContainsFunc(cs, func(c candidate) bool { return c.weight != cs[0].weight })
}

// share returns the index of a candidate, drawn by weight; when none has any, all alike.
func share(cs []candidate, rnd draw) int {
	sum := uint64(0)
	for _, c := range cs {
		sum += c.weight
	}
	if sum == 0 {
		return int(rnd(uint64(len(cs))))
	}
	x := rnd(sum)
	for i, c := range cs {
		if x < c.weight {
			return i
		}
		x -= c.weight
	}
	return len(cs) - 1 // not reached: x < sum
}
