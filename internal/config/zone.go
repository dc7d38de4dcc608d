package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Defaults of a zone, in seconds (RIPE-203 for those of the SOA).
const (
	defaultRefresh  = 7200
	defaultRetry    = 1800
	defaultExpire   = 1209600
	defaultMinimum  = 5
	defaultZoneTTL  = 3600
	defaultTTL      = 30
	maxZoneEntry    = 128 << 10 // bytes of one record's text
	maxZoneProblems = 20        // of one zone's text
)

// record is a static record with its place.
type record struct {
	rr dns.RR
	at place
}

// zone is a Zone being made.
type zone struct {
	Zone
	at      place
	node    *node
	records []record
	minimum *node // as configured
}

// dns reads the name server and its zones.
func (b *builder) dns() []*zone {
	n := b.root.child("dns")
	if n == nil {
		return nil
	}
	d := &DNS{}
	b.c.DNS = d
	seen := map[string]bool{}
	for _, e := range elements(n.get("listen")) {
		at, _ := parseListen(e.text)
		if seen[at] && !strings.HasSuffix(at, ":0") {
			b.fail(e.at, "", "dns: listen %s stands twice", at)
		}
		seen[at] = true
		d.Listen = append(d.Listen, at)
	}
	if len(d.Listen) == 0 {
		d.Listen = []string{":53"}
	}
	var zones []*zone
	for _, e := range domainNames.entries(n.get("zones")) {
		if e.value.kind != isMap {
			continue
		}
		name, err := parseName(e.key)
		if err != nil {
			continue
		}
		if i := slices.IndexFunc(zones, func(z *zone) bool { return z.Name == name }); i >= 0 {
			b.fail(e.at, "", "zone %s stands twice: first at line %d", name.Short(), zones[i].at.line)
			continue
		}
		zones = append(zones, b.zone(name, e))
	}
	if len(zones) == 0 && !n.has("zones") {
		return nil
	}
	slices.SortFunc(zones, func(a, z *zone) int { return cmp.Compare(a.Name, z.Name) })
	return zones
}

func (b *builder) zone(name rota.Name, e entry) *zone {
	n := e.value
	z := &zone{at: e.at, node: n}
	z.Name, z.TTL = name, ttlOr(n.get("ttl"), defaultZoneTTL)
	for _, s := range elements(n.get("ns")) {
		ns := nameOr(s, "")
		if slices.Contains(z.NS, ns) {
			b.fail(s.at, "", "zone %s: ns %s stands twice", name.Short(), ns.Short())
			continue
		}
		z.NS = append(z.NS, ns)
	}
	b.staticRecords(z, n.get("records"))
	b.apex(z, n)
	soa := n.get("soa")
	if z.MName == "" && len(z.NS) > 0 {
		z.MName = z.NS[0]
	}
	z.MName = nameOr(soa.get("mname"), z.MName)
	if z.RName == "" {
		z.RName = "hostmaster." + z.Name
		if z.Name == "." {
			z.RName = "hostmaster."
		}
	}
	if r := soa.get("rname"); r != nil {
		z.RName, _ = parseMailbox(r.text)
	}
	z.Refresh = ttlOr(soa.get("refresh"), cmp.Or(z.Refresh, defaultRefresh))
	z.Retry = ttlOr(soa.get("retry"), cmp.Or(z.Retry, defaultRetry))
	z.Expire = ttlOr(soa.get("expire"), cmp.Or(z.Expire, defaultExpire))
	z.TTL = ttlOr(soa.get("ttl"), z.TTL)
	z.minimum = soa.get("minimum")
	z.Minimum = ttlOr(z.minimum, defaultMinimum)
	b.static(z)
	return z
}

// apex takes SOA and NS of the apex out of the static records, where a whole zone file has them.
func (b *builder) apex(z *zone, n *node) {
	haveSOA, haveNS := false, len(z.NS) > 0
	z.records = slices.DeleteFunc(z.records, func(r record) bool {
		if rota.Name(r.rr.Header().Name) != z.Name {
			return false
		}
		switch rr := r.rr.(type) {
		case *dns.SOA:
			switch {
			case n.has("soa"):
				b.fail(r.at, "", "zone %s: SOA stands in the records and under soa", z.Name.Short())
			case haveSOA:
				b.fail(r.at, "", "zone %s: SOA stands twice", z.Name.Short())
			default:
				haveSOA = true
				z.MName, _ = parseName(rr.Ns)
				z.RName, _ = parseName(rr.Mbox)
				z.Refresh, z.Retry, z.Expire = rr.Refresh, rr.Retry, rr.Expire
			}
			return true
		case *dns.NS:
			if haveNS {
				b.fail(r.at, "", "zone %s: NS of the zone itself stands in the records and under ns", z.Name.Short())
				return true
			}
			if ns, err := parseName(rr.Ns); err == nil && !slices.Contains(z.NS, ns) {
				z.NS = append(z.NS, ns)
			}
			return true
		}
		return false
	})
	if len(z.NS) == 0 && !n.has("ns") {
		b.fail(z.at, "write ns: [NAME]", "zone %s has no name servers", z.Name.Short())
	}
}

// staticRecords reads the records of a zone: text in the configuration, or a zone file.
func (b *builder) staticRecords(z *zone, n *node) {
	if n == nil {
		return
	}
	if n.kind == isScalar {
		// The text of a block starts on the line below its key; how far it is indented, the first line with text tells.
		at := func(line int) place { return place{n.at.src, n.at.line, n.at.column, n.at.width} }
		if n.block {
			at = func(line int) place {
				p := place{src: n.at.src, line: n.at.line + line}
				s := p.src.line(p.line)
				t := strings.TrimLeft(s, " \t")
				p.column, p.width = len(s)-len(t)+1, max(1, len([]rune(strings.TrimRight(t, " \t"))))
				return p
			}
		}
		b.zoneText(z, n.text, at)
		return
	}
	f := n.get("file")
	if f == nil {
		return
	}
	path := within(f.at.src, f.text)
	raw, err := b.read(path, maxZone)
	if err != nil {
		b.fail(f.at, "", "zone file %s: %v", path, err)
		return
	}
	budget := b.budget
	b.budget = maxZone
	src, ok := b.clean(path, raw)
	b.budget = budget
	if !ok {
		return
	}
	b.zoneText(z, src.text, func(line int) place {
		s := strings.TrimRight(src.line(line), " \t")
		t := strings.TrimLeft(s, " \t")
		return place{src, line, len(s) - len(t) + 1, max(1, len([]rune(t)))}
	})
}

// zoneEntry is one entry of a zone file (RFC 1035 §5.1): a record or a directive, over one line or, in parentheses, several.
type zoneEntry struct {
	line int // from 1
	text string
	open bool // a parenthesis or quote is not closed
}

// zoneEntries cuts the text of a zone into entries.
func zoneEntries(text string) []zoneEntry {
	var out []zoneEntry
	line, start, from, depth := 1, 1, 0, 0
	quote, comment, blank := false, false, true
	end := func(i int) {
		if !blank {
			out = append(out, zoneEntry{start, text[from:i], depth > 0 || quote})
		}
		from, blank, start, depth, quote, comment = min(i+1, len(text)), true, line+1, 0, false, false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			comment = false
			if depth <= 0 && !quote {
				end(i)
			}
			line++
		case comment:
		case c == '\\':
			blank = false
			i++
			if i < len(text) && text[i] == '\n' {
				i--
			}
		case c == '"':
			quote, blank = !quote, false
		case quote:
		case c == ';':
			comment = true
		case c == '(':
			depth++
			blank = false
		case c == ')':
			depth--
			blank = false
		case c != ' ' && c != '\t' && c != '\r':
			blank = false
		}
	}
	line--
	end(len(text))
	return out
}

// parserPosition is what the zone parser appends to its errors; it counts lines that it was not given here.
var parserPosition = regexp.MustCompile(` at line: \d+:\d+$`)

// zoneText parses records one entry at a time, so that every error is found and every record has its place.
func (b *builder) zoneText(z *zone, text string, at func(line int) place) {
	origin, ttl, owner := z.Name, z.TTL, ""
	bad := 0
	fail := func(e zoneEntry, hint, format string, args ...any) {
		if bad++; bad <= maxZoneProblems {
			b.fail(at(e.line), hint, "zone %s: %s", z.Name.Short(), fmt.Sprintf(format, args...))
		}
	}
	for _, e := range zoneEntries(text) {
		words := strings.Fields(e.text)
		switch {
		case e.open:
			fail(e, "", "a parenthesis or quote that starts here is never closed")
			continue
		case len(e.text) > maxZoneEntry:
			fail(e, "", "a record of more than %d KiB is not read", maxZoneEntry>>10)
			continue
		}
		switch strings.ToUpper(words[0]) {
		case "$ORIGIN":
			if len(words) < 2 {
				fail(e, "", "$ORIGIN wants a name")
			} else if name, err := relative(words[1], origin); err != nil {
				fail(e, "", "%v", err)
			} else {
				origin = name
			}
			continue
		case "$TTL":
			if len(words) < 2 {
				fail(e, "", "$TTL wants a number")
			} else if v, err := zoneTTL(words[1]); err != nil {
				fail(e, "", "%v", err)
			} else {
				ttl = v
			}
			continue
		case "$INCLUDE", "$GENERATE":
			fail(e, "write the records themselves", "%s is not supported", strings.ToUpper(words[0]))
			continue
		}
		entry := e.text
		if entry[0] == ' ' || entry[0] == '\t' {
			if owner == "" {
				fail(e, "begin it with a name, or with @ for the zone", "a record that begins with a blank belongs to the one before, and there is none")
				continue
			}
			entry = owner + entry
		} else {
			name, err := relative(words[0], origin)
			if err != nil {
				fail(e, "", "%v", err)
				continue
			}
			owner = string(name)
		}
		p := dns.NewZoneParser(strings.NewReader(entry+"\n"), string(origin), "")
		p.SetDefaultTTL(ttl)
		rr, ok := p.Next()
		if err := p.Err(); err != nil || !ok {
			message := "no record"
			if err != nil {
				message = strings.TrimPrefix(parserPosition.ReplaceAllString(err.Error(), ""), "dns: ")
			}
			fail(e, "", "%s", message)
			continue
		}
		b.zoneRecord(z, rr, at(e.line))
	}
	if bad > maxZoneProblems {
		b.fail(at(1), "", "zone %s: %d more records cannot be read", z.Name.Short(), bad-maxZoneProblems)
	}
}

// zoneRecord takes one record into a zone or refuses it.
func (b *builder) zoneRecord(z *zone, rr dns.RR, at place) {
	h := rr.Header()
	name, err := parseName(h.Name)
	switch {
	case err != nil:
		b.fail(at, "", "zone %s: %v", z.Name.Short(), err)
		return
	case !name.In(z.Name):
		b.fail(at, "", "zone %s: %s is outside the zone", z.Name.Short(), name.Short())
		return
	case h.Class != dns.ClassINET:
		b.fail(at, "", "zone %s: class %s is not served", z.Name.Short(), dns.ClassToString[h.Class])
		return
	case h.Ttl > maxTTL:
		b.fail(at, "", "zone %s: TTL %d is out of range: a TTL is 0 to %d seconds", z.Name.Short(), h.Ttl, uint32(maxTTL))
		return
	}
	switch h.Rrtype {
	case dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY:
		b.fail(at, "remove it", "zone %s: %s is not supported yet: rota does not sign", z.Name.Short(), dns.TypeToString[h.Rrtype])
		return
	case dns.TypeSOA:
		if name != z.Name {
			b.fail(at, "", "zone %s: an SOA of another name, %s", z.Name.Short(), name.Short())
			return
		}
	case dns.TypeDNAME:
		b.fail(at, "", "zone %s: DNAME is not supported yet", z.Name.Short())
		return
	case dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeANY, dns.TypeNone:
		b.fail(at, "", "zone %s: %s is no type of a record in a zone", z.Name.Short(), dns.TypeToString[h.Rrtype])
		return
	}
	h.Name = string(name)
	z.records = append(z.records, record{rr, at})
}

// relative makes a name of a zone file absolute.
func relative(s string, origin rota.Name) (rota.Name, error) {
	switch {
	case s == "@":
		return origin, nil
	case strings.HasSuffix(s, ".") && !strings.HasSuffix(s, `\.`):
		return parseName(s)
	case origin == ".":
		return parseName(s + ".")
	}
	return parseName(s + "." + string(origin))
}

// zoneTTL reads a TTL as zone files write it: seconds, or with BIND's units.
func zoneTTL(s string) (uint32, error) {
	total, digits := uint64(0), uint64(0)
	some := false
	for _, r := range strings.ToLower(s) {
		unit := map[rune]uint64{'s': 1, 'm': 60, 'h': 3600, 'd': 86400, 'w': 604800}[r]
		switch {
		case r >= '0' && r <= '9' && digits <= maxTTL:
			digits, some = digits*10+uint64(r-'0'), true
		case unit > 0 && some && total <= maxTTL:
			total, digits, some = total+digits*unit, 0, false
		default:
			return 0, fmt.Errorf("%q is no TTL", s)
		}
	}
	total += digits
	if total > maxTTL || s == "" {
		return 0, fmt.Errorf("%q is no TTL: want 0 to %d seconds", s, maxTTL)
	}
	return uint32(total), nil
}

// static turns the records of a zone into RRsets and checks them against each other.
func (b *builder) static(z *zone) {
	sets := map[rota.Key]*rota.RRset{}
	first := map[rota.Key]place{}
	var order []rota.Key
	for _, r := range z.records {
		h := r.rr.Header()
		k := rota.Key{Name: rota.Name(h.Name), Type: rota.Type(h.Rrtype)}
		data, err := canonical(r.rr)
		if err != nil {
			b.fail(r.at, "", "zone %s: %v", z.Name.Short(), err)
			continue
		}
		s := sets[k]
		if s == nil {
			s = &rota.RRset{Name: k.Name, Type: k.Type, TTL: h.Ttl}
			sets[k], first[k] = s, r.at
			order = append(order, k)
		}
		if s.TTL != h.Ttl {
			s.TTL = min(s.TTL, h.Ttl)
			b.warn(r.at, "", "zone %s: records of %s have different TTLs; %d is used for all (RFC 2181 §5.2)", z.Name.Short(), k, s.TTL)
		}
		if !slices.Contains(s.Data, data) {
			s.Data = append(s.Data, data)
		}
	}
	byName := map[rota.Name][]rota.Key{}
	for _, k := range order {
		byName[k.Name] = append(byName[k.Name], k)
	}
	for _, k := range order {
		if k.Type != rota.TypeCNAME {
			continue
		}
		if len(sets[k].Data) > 1 {
			b.fail(first[k], "", "zone %s: %s has several CNAMEs", z.Name.Short(), k.Name.Short())
		}
		if k.Name == z.Name {
			b.fail(first[k], "", "zone %s: the zone's own name has SOA and NS, so it can be no CNAME", z.Name.Short())
		}
		for _, o := range byName[k.Name] {
			if o.Type != k.Type {
				b.fail(first[o], "", "zone %s: %s has a CNAME (line %d) and so no other data (RFC 1034 §3.6.2)", z.Name.Short(), k.Name.Short(), first[k].line)
			}
		}
	}
	for _, k := range order {
		s := sets[k]
		slices.Sort(s.Data)
		z.Records = append(z.Records, *s)
	}
	slices.SortFunc(z.Records, func(a, c rota.RRset) int {
		return cmp.Or(cmp.Compare(a.Name, c.Name), cmp.Compare(a.Type, c.Type))
	})
}

// canonical returns the data of a record as the hub writes it: names canonical, addresses as netip writes them.
func canonical(rr dns.RR) (string, error) {
	name := func(s string) (string, error) {
		n, err := parseName(s)
		return n.String(), err
	}
	switch rr := rr.(type) {
	case *dns.A:
		return rr.A.String(), nil
	case *dns.AAAA:
		if rr.AAAA.To4() != nil {
			return "", fmt.Errorf("AAAA %s is an IPv4 address", rr.AAAA)
		}
		return rr.AAAA.String(), nil
	case *dns.CNAME:
		return name(rr.Target)
	case *dns.NS:
		return name(rr.Ns)
	case *dns.PTR:
		return name(rr.Ptr)
	case *dns.MX:
		n, err := name(rr.Mx)
		return strconv.Itoa(int(rr.Preference)) + " " + n, err
	case *dns.SRV:
		n, err := name(rr.Target)
		return fmt.Sprintf("%d %d %d %s", rr.Priority, rr.Weight, rr.Port, n), err
	}
	return strings.TrimSpace(strings.TrimPrefix(rr.String(), rr.Header().String())), nil
}

// crossZones checks zones and services against each other and finishes the zones.
func (b *builder) crossZones(zones []*zone) {
	for _, z := range zones {
		smallest := uint32(maxTTL)
		which := rota.Name("")
		byName := map[rota.Name][]rota.Type{}
		for _, s := range z.Records {
			byName[s.Name] = append(byName[s.Name], s.Type)
		}
		for _, v := range b.c.Spec.Services {
			if v.Zone != z.Name || !slices.Contains(v.Publish, rota.Embedded) {
				continue
			}
			if v.TTL < smallest {
				smallest, which = v.TTL, v.Name
			}
			b.collide(z, v, byName)
		}
		if which != "" && z.Minimum > smallest {
			if z.minimum != nil {
				b.fail(z.minimum.at, fmt.Sprintf("write minimum: %ds", smallest),
					"zone %s: minimum %s is above the TTL %ds of service %s: \"no such name\" would outlive its answers",
					z.Name.Short(), z.minimum.text, smallest, which.Short())
			}
			z.Minimum = smallest
		}
		b.glue(z, byName)
		b.c.DNS.Zones = append(b.c.DNS.Zones, z.Zone)
	}
}

// collide refuses static records that stand where a service answers.
func (b *builder) collide(z *zone, v rota.Service, byName map[rota.Name][]rota.Type) {
	at := b.places[v.Name]
	for _, t := range byName[v.Name] {
		if t == rota.TypeA || t == rota.TypeAAAA || t == rota.TypeCNAME {
			b.fail(at, "remove one of them", "service %q collides with a static %s record of zone %s", v.Name.Short(), t, z.Name.Short())
		} else if v.Safety.Fallback != "" {
			b.fail(at, "", "service %q may become a CNAME (fallback) and has a static %s record: a CNAME has no other data beside it", v.Name.Short(), t)
		}
	}
	if v.Name == z.Name && v.Safety.Fallback != "" {
		b.fail(at, "", "service %q is the zone's own name, which has SOA and NS and can be no CNAME (fallback)", v.Name.Short())
	}
	for n := v.Name; n != z.Name && n != "."; n = n.Parent() {
		if slices.Contains(byName[n], rota.TypeNS) {
			b.fail(at, "", "service %q lies in %s, which zone %s delegates to others", v.Name.Short(), n.Short(), z.Name.Short())
			return
		}
	}
}

// glue warns of name servers inside the zone that have no address.
func (b *builder) glue(z *zone, byName map[rota.Name][]rota.Type) {
	for _, ns := range z.NS {
		if !ns.In(z.Name) {
			continue
		}
		has := slices.ContainsFunc(byName[ns], func(t rota.Type) bool { return t == rota.TypeA || t == rota.TypeAAAA }) ||
			slices.ContainsFunc(b.c.Spec.Services, func(v rota.Service) bool { return v.Name == ns })
		if !has {
			b.warn(z.at, "add it to records", "zone %s: name server %s lies in the zone and has no address there", z.Name.Short(), ns.Short())
		}
	}
}
