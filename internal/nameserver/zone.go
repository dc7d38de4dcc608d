package nameserver

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Zone is what the operator wrote down about one zone. Zero numbers mean the defaults below; all times are seconds.
type Zone struct {
	Name    rota.Name
	NS      []rota.Name // the apex NS RRset, unless Records holds one
	MName   rota.Name   // SOA: primary name server; empty: the first of NS
	RName   rota.Name   // SOA: mailbox of the person in charge; empty: hostmaster below the zone
	Refresh uint32      // SOA; 0: DefaultRefresh
	Retry   uint32      // SOA; 0: DefaultRetry
	Expire  uint32      // SOA; 0: DefaultExpire
	Minimum uint32      // SOA: how long resolvers remember that something is not there (RFC 2308 §4); 0: DefaultMinimum
	TTL     uint32      // of SOA, NS and every static record that states none; 0: DefaultTTL
	Serial  uint32      // a floor for the SOA serial that grows when Records do, such as the file's time of change; 0: none
	Records string      // static records in zone file form (RFC 1035 §5); a SOA there stands in for the fields above
	File    string      // where Records came from, for errors
	Line    int         // the line of File that Records begin on; 0: 1
}

// What a zone has that says nothing, in seconds.
const (
	DefaultRefresh = 3600
	DefaultRetry   = 600
	DefaultExpire  = 1209600
	DefaultMinimum = 5
	DefaultTTL     = 3600
)

const (
	maxTTL       = 1<<31 - 1 // RFC 2181 §8
	maxRRsetWire = 60000     // octets of an RRset that still fits a message with its surroundings
)

// Zones are compiled zones: checked, indexed and immutable.
type Zones struct {
	zones map[rota.Name]*zone
}

// zone is one compiled zone without its services.
type zone struct {
	name   rota.Name
	soa    dns.SOA             // the serial is the floor
	nodes  map[rota.Name]*node // every name that exists, empty non-terminals too (RFC 8020)
	source Zone
}

// node is one existing name.
type node struct {
	sets []rrset // sorted by type
	cut  bool    // below the apex and with NS: another server's zone begins here
}

// rrset is an RRset ready to be answered.
type rrset struct {
	rrs    []dns.RR    // all of one owner, type and TTL; never changed
	target rota.Name   // of a CNAME
	extra  []rota.Name // names whose addresses belong in the additional section
}

func (n *node) set(t uint16) *rrset {
	for i := range n.sets {
		if n.sets[i].rrs[0].Header().Rrtype == t {
			return &n.sets[i]
		}
	}
	return nil
}

// Compile checks zones and makes them ready to be served. It returns every error, each with file and line where a record is at
// fault: syntax, names outside the zone, CNAME beside other data, duplicates, records that could never be answered, kinds that this
// version does not serve.
func Compile(zones []Zone) (*Zones, error) {
	out := &Zones{zones: make(map[rota.Name]*zone, len(zones))}
	var errs []error
	for _, src := range zones {
		if out.zones[src.Name] != nil {
			errs = append(errs, fmt.Errorf("zone %s is configured twice", src.Name.Short()))
			continue
		}
		z, err := compileZone(src)
		if err != nil {
			errs = append(errs, err)
		}
		out.zones[src.Name] = z
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	// A zone that is served here makes the names above it exist in the zone around it.
	for _, child := range out.zones {
		if child.name == "." {
			continue
		}
		if parent := out.find(child.name.Parent()); parent != nil {
			parent.grow(child.name)
		}
	}
	return out, nil
}

// Names lists the zones, sorted.
func (z *Zones) Names() []rota.Name { return slices.Sorted(maps.Keys(z.zones)) }

// find returns the most specific zone that holds n, or nil.
func (z *Zones) find(n rota.Name) *zone {
	for {
		if found := z.zones[n]; found != nil {
			return found
		}
		if n == "." || n == "" {
			return nil
		}
		n = n.Parent()
	}
}

// record is a static record and the line it ends on.
type record struct {
	owner rota.Name
	rr    dns.RR
	line  int
}

// zoneBuilder gathers what compileZone learns of one zone.
type zoneBuilder struct {
	src  Zone
	z    *zone
	errs []error
}

func (b *zoneBuilder) fail(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf("zone %s: "+format, append([]any{b.src.Name.Short()}, args...)...))
}

func (b *zoneBuilder) failAt(r record, format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf("%s: %s %s: "+format, append([]any{
		b.at(r.line), r.owner.Short(), dns.Type(r.rr.Header().Rrtype),
	}, args...)...))
}

// at names a line of the zone's text.
func (b *zoneBuilder) at(line int) string {
	return fmt.Sprintf("%s:%d", cmp.Or(b.src.File, "zone "+b.src.Name.Short()), line+max(b.src.Line, 1)-1)
}

func compileZone(src Zone) (*zone, error) {
	b := &zoneBuilder{src: src, z: &zone{name: src.Name, nodes: map[rota.Name]*node{}, source: src}}
	if src.Name == "" {
		return nil, errors.New("zone without a name")
	}
	if n, err := rota.ParseName(src.Name.String()); err != nil || n != src.Name {
		return nil, fmt.Errorf("zone %s: not a domain name in canonical form", src.Name)
	}
	records := b.parse()
	seen := map[rota.Name]map[uint16][]record{}
	for _, r := range records {
		if !b.acceptable(r) {
			continue
		}
		if seen[r.owner] == nil {
			seen[r.owner] = map[uint16][]record{}
		}
		t := r.rr.Header().Rrtype
		if i := slices.IndexFunc(seen[r.owner][t], func(o record) bool { return dns.IsDuplicate(o.rr, r.rr) }); i >= 0 {
			b.failAt(r, "duplicate of %s", b.at(seen[r.owner][t][i].line))
			continue
		}
		seen[r.owner][t] = append(seen[r.owner][t], r)
	}
	b.authority(seen)
	for owner, types := range seen {
		n := b.z.grow(owner)
		for _, t := range slices.Sorted(maps.Keys(types)) {
			n.sets = append(n.sets, b.rrset(types[t]))
			n.cut = n.cut || (t == dns.TypeNS && owner != src.Name)
		}
	}
	b.check(seen)
	slices.SortFunc(b.errs, func(x, y error) int { return cmp.Compare(x.Error(), y.Error()) })
	return b.z, errors.Join(b.errs...)
}

// grow makes n exist, and every name between it and the apex.
func (z *zone) grow(n rota.Name) *node {
	for p := n; z.nodes[p] == nil; p = p.Parent() {
		z.nodes[p] = &node{}
		if p == z.name || p == "." {
			break
		}
	}
	return z.nodes[n]
}

// lineReader counts the lines that a reader took. It is an io.ByteReader, so that the parser takes no byte too many.
type lineReader struct {
	text string
	line int // the line of the last byte that was read, from 1
	next int
}

func (r *lineReader) ReadByte() (byte, error) {
	if len(r.text) == 0 {
		return 0, io.EOF
	}
	c := r.text[0]
	r.text = r.text[1:]
	r.line = r.next
	if c == '\n' {
		r.next++
	}
	return c, nil
}

func (r *lineReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = c
	return 1, nil
}

func (b *zoneBuilder) parse() []record {
	text := b.src.Records
	if strings.IndexByte(text, 0) >= 0 {
		b.fail("the records hold a NUL byte, so they are not zone file text")
		return nil
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	in := &lineReader{text: text, line: 1, next: 1}
	p := dns.NewZoneParser(in, b.src.Name.String(), "")
	p.SetDefaultTTL(cmp.Or(b.src.TTL, DefaultTTL))
	var out []record
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		owner, err := rota.ParseName(rr.Header().Name)
		if err != nil {
			b.errs = append(b.errs, fmt.Errorf("%s: %w", b.at(in.line), err))
			continue
		}
		rr.Header().Name = owner.String()
		out = append(out, record{owner, rr, in.line})
	}
	if err := p.Err(); err != nil {
		// The parser counts lines from the start of the text; the file's own count replaces it.
		what, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "dns: "), " at line: ")
		b.errs = append(b.errs, fmt.Errorf("%s: %s", b.at(in.line), what))
	}
	return out
}

// acceptable checks a record by itself.
func (b *zoneBuilder) acceptable(r record) bool {
	h := r.rr.Header()
	switch {
	case h.Class != dns.ClassINET:
		b.failAt(r, "class %s, rota serves IN only", dns.Class(h.Class))
	case !r.owner.In(b.src.Name):
		b.failAt(r, "the name is outside zone %s", b.src.Name.Short())
	case h.Ttl > maxTTL:
		b.failAt(r, "TTL %d is above the limit of %d (RFC 2181 §8)", h.Ttl, maxTTL)
	case h.Rrtype == dns.TypeSOA && r.owner != b.src.Name:
		b.failAt(r, "a SOA record stands at the apex of its zone only")
	case h.Rrtype == dns.TypeDNAME:
		b.failAt(r, "DNAME is not supported; write the names below it, or a wildcard CNAME")
	case h.Rrtype == dns.TypeRRSIG, h.Rrtype == dns.TypeNSEC, h.Rrtype == dns.TypeNSEC3, h.Rrtype == dns.TypeNSEC3PARAM:
		b.failAt(r, "the zone is signed, and rota does not serve signed zones; give it the unsigned records")
	case h.Rrtype == 0, h.Rrtype == dns.TypeOPT, h.Rrtype >= 128 && h.Rrtype < 256:
		b.failAt(r, "records of this type cannot be in a zone (RFC 6895 §3.1)")
	case h.Rrtype == dns.TypeNS && r.owner.Label() == "*":
		b.failAt(r, "NS at a wildcard has no meaning (RFC 4592 §4.2)")
	default:
		return true
	}
	return false
}

// authority takes the SOA and the apex NS from the records, or makes them.
func (b *zoneBuilder) authority(seen map[rota.Name]map[uint16][]record) {
	src, apex := b.src, seen[b.src.Name]
	if apex == nil {
		apex = map[uint16][]record{}
		seen[src.Name] = apex
	}
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: src.Name.String(), Rrtype: t, Class: dns.ClassINET, Ttl: cmp.Or(src.TTL, DefaultTTL)}
	}
	if own := apex[dns.TypeNS]; len(own) > 0 {
		if len(src.NS) > 0 && !sameHosts(own, src.NS) {
			b.failAt(own[0], "the zone's ns setting names other servers; keep one of the two")
		}
	} else {
		for _, ns := range src.NS {
			apex[dns.TypeNS] = append(apex[dns.TypeNS], record{owner: src.Name, rr: &dns.NS{Hdr: header(dns.TypeNS), Ns: ns.String()}})
		}
	}
	if len(apex[dns.TypeNS]) == 0 {
		b.fail("no name server: set ns, or add an NS record at the apex")
	}
	own := apex[dns.TypeSOA]
	delete(apex, dns.TypeSOA) // it is made for each answer
	if len(own) > 1 {
		b.failAt(own[1], "a zone has one SOA record, the first is at %s", b.at(own[0].line))
	}
	if len(own) > 0 {
		b.z.soa = *own[0].rr.(*dns.SOA)
		if src.Serial != 0 {
			b.z.soa.Serial = later(b.z.soa.Serial, src.Serial)
		}
		return
	}
	mname := src.MName
	if mname == "" && len(apex[dns.TypeNS]) > 0 {
		mname = rota.Name(apex[dns.TypeNS][0].rr.(*dns.NS).Ns)
	}
	rname := src.RName
	if rname == "" {
		rname = rota.Name("hostmaster." + strings.TrimPrefix(src.Name.String(), "."))
	}
	b.z.soa = dns.SOA{
		Hdr: header(dns.TypeSOA), Ns: mname.String(), Mbox: rname.String(), Serial: src.Serial,
		Refresh: cmp.Or(src.Refresh, DefaultRefresh), Retry: cmp.Or(src.Retry, DefaultRetry),
		Expire: cmp.Or(src.Expire, DefaultExpire), Minttl: cmp.Or(src.Minimum, DefaultMinimum),
	}
}

func sameHosts(own []record, names []rota.Name) bool {
	var a []rota.Name
	for _, r := range own {
		a = append(a, hostName(r.rr.(*dns.NS).Ns))
	}
	c := slices.Clone(names)
	slices.Sort(a)
	slices.Sort(c)
	return slices.Equal(a, c)
}

// hostName is the canonical form of a name out of a parsed record, or no name.
func hostName(s string) rota.Name {
	n, err := rota.ParseName(s)
	if err != nil {
		return ""
	}
	return n
}

// rrset makes one RRset of records. RFC 2181 §5.2: differing TTLs are an error of the past; the smallest counts.
func (b *zoneBuilder) rrset(rs []record) rrset {
	var s rrset
	ttl, size := rs[0].rr.Header().Ttl, 0
	for _, r := range rs {
		ttl = min(ttl, r.rr.Header().Ttl)
		size += dns.Len(r.rr)
		s.rrs = append(s.rrs, r.rr)
		switch d := r.rr.(type) {
		case *dns.CNAME:
			s.target = hostName(d.Target)
		case *dns.NS:
			s.extra = append(s.extra, hostName(d.Ns))
		case *dns.MX:
			s.extra = append(s.extra, hostName(d.Mx))
		case *dns.SRV:
			s.extra = append(s.extra, hostName(d.Target))
		}
	}
	for _, rr := range s.rrs {
		rr.Header().Ttl = ttl
	}
	if size > maxRRsetWire {
		b.failAt(rs[0], "the RRset takes %d octets, the limit is %d", size, maxRRsetWire)
	}
	slices.Sort(s.extra)
	s.extra = slices.Compact(s.extra)
	return s
}

// check looks for what is wrong between records.
func (b *zoneBuilder) check(seen map[rota.Name]map[uint16][]record) {
	for owner, types := range seen {
		if cname := types[dns.TypeCNAME]; len(cname) > 0 {
			switch {
			case owner == b.src.Name:
				b.failAt(cname[0], "a CNAME cannot stand at the apex of a zone, beside SOA and NS")
			case len(cname) > 1:
				b.failAt(cname[1], "a name has one CNAME, the first is at %s", b.at(cname[0].line))
			case len(types) > 1:
				b.failAt(cname[0], "a CNAME stands alone (RFC 1034 §3.6.2), and this name has other records")
			}
		}
		above := b.cutAbove(owner)
		for t, rs := range types {
			if above != "" && t != dns.TypeA && t != dns.TypeAAAA {
				b.failAt(rs[0], "lies below the delegation of %s and would never be answered", above.Short())
			}
			if n := b.z.nodes[owner]; n.cut && t != dns.TypeNS && t != dns.TypeDS && t != dns.TypeA && t != dns.TypeAAAA {
				b.failAt(rs[0], "stands at a delegation and would never be answered")
			}
		}
		for _, r := range types[dns.TypeNS] {
			b.checkHost(r, seen)
		}
	}
}

// checkHost looks at the name server that an NS record names, as far as this zone speaks of it.
func (b *zoneBuilder) checkHost(r record, seen map[rota.Name]map[uint16][]record) {
	host := hostName(r.rr.(*dns.NS).Ns)
	if len(seen[host][dns.TypeCNAME]) > 0 {
		b.failAt(r, "%s is an alias, and NS must name a host itself (RFC 2181 §10.3)", host.Short())
	}
	if r.owner != b.src.Name && host.In(r.owner) && len(seen[host][dns.TypeA]) == 0 && len(seen[host][dns.TypeAAAA]) == 0 {
		b.failAt(r, "%s lies in the delegated zone and has no address here; add its A or AAAA record", host.Short())
	}
}

// cutAbove returns the delegation strictly above n, or no name.
func (b *zoneBuilder) cutAbove(n rota.Name) rota.Name {
	for n != b.src.Name {
		n = n.Parent()
		if d := b.z.nodes[n]; d != nil && d.cut {
			return n
		}
	}
	return ""
}

// later returns the later of two serials (RFC 1982 §3.2).
func later(a, b uint32) uint32 {
	if int32(b-a) > 0 {
		return b
	}
	return a
}
