package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// maxDiscover bounds the places that services come from.
const maxDiscover = 100

// discoverTypes are the places that services come from, beside the configuration.
func discoverTypes() []variant {
	template := required
	publish := field{key: "publish", shape: publishUse}
	return []variant{
		{word: "register", fields: slices.Concat([]field{
			{key: "name", doc: "By which hosts name it where there are several. Default: register, register-2, …", shape: scalar{want: "a name", json: "string", parse: checkName}},
			{
				key: "host_name", doc: "Pattern of host names, such as {id}-{service}-{env}, or {host} for any.", must: true,
				shape: scalar{want: "a pattern such as {id}-{service}-{env}", json: "string", parse: parsed(rota.ParseHostPattern)},
			},
			{key: "service_name", doc: "Template of the service that a host joins. Default: none.", shape: template},
			{key: "also", doc: "What a host has of its own.", shape: object{fields: []field{
				{key: "host_record", doc: "Template of its own name. Default: none.", shape: template},
				{key: "zone", doc: "Zone that holds it. Default: found.", shape: domain},
				{key: "publish", doc: "Publishers of it. Default: those of the service.", shape: publishUse},
				{
					key: "ptr", doc: "Zones in which its addresses point back, or auto: wherever its publishers find one.",
					shape: list{of: either{
						scalar{want: "auto or a domain name", json: "string", parse: parseReverse},
						object{name: "reverse", fields: []field{
							{key: "zone", doc: "Below in-addr.arpa or ip6.arpa, or auto.", shape: scalar{want: "auto or a domain name", json: "string", parse: parseReverse}, must: true},
							{key: "publish", doc: "Publishers. Default: rota's own name server in its zones, else those of the host's record.", shape: publishUse},
						}},
					}, single: true, least: 1, most: 1000},
				},
			}}},
			{key: "expire_after", doc: "A host that has not renewed for so long is taken out; never (default).", shape: scalar{
				want: "never or a duration", json: "string", pattern: "^never$|" + durationForm.String(), parse: parseExpiry,
			}},
			{key: "networks", doc: "Addresses that may be claimed. Default: all that can be published.", shape: list{of: prefix, single: true, least: 1, most: 1000}},
			{key: "endpoint", doc: "What each of its endpoints has.", shape: object{fields: []field{
				{key: "weight", doc: "Share of the answers in its tier. Default: 1.", shape: integer(0, 65535)},
				{key: "priority", doc: "Lower is preferred. Default: 1.", shape: integer(0, 65535)},
				{key: "site", doc: "Where it stands.", shape: required},
				{key: "labels", doc: "For matching.", shape: labels},
			}}},
		}, serviceFields())},
		{word: "kubernetes", later: true, fields: []field{
			{key: "load_balancer_class", shape: text},
			{key: "node_address", shape: object{fields: []field{{key: "annotation", shape: required}, {key: "fallback", shape: list{of: word("ExternalIP", "InternalIP"), single: true}}}}},
			{key: "nodes", shape: word("with-ready-pods", "all-ready")},
			{key: "name", shape: template},
			{key: "alias", shape: object{fields: []field{{key: "namespace", shape: required}, {key: "name", shape: template}}}},
			{key: "resync", shape: span},
			publish,
		}},
		{word: "dns", later: true, fields: []field{{key: "name", shape: domain, must: true}, {key: "service", shape: host, must: true}, publish}},
		{word: "file", later: true, fields: []field{{key: "path", shape: pathname, must: true}, publish}},
	}
}

// parseReverse reads a zone of pointers.
func parseReverse(s string) error {
	n, err := parseName(s)
	switch {
	case s == "auto" || err != nil:
		return err
	case !n.In("in-addr.arpa.") && !n.In("ip6.arpa."):
		return fmt.Errorf("%s holds no pointers: want auto, or a zone below in-addr.arpa or ip6.arpa", n.Short())
	}
	return nil
}

func parseExpiry(s string) error {
	if s == "never" {
		return nil
	}
	d, err := parseDuration(s)
	if err == nil && (d < rota.MinLease || d > rota.MaxLease) {
		err = fmt.Errorf("%s is out of range: want never, or %s to %s", s, formatDuration(rota.MinLease), formatDuration(rota.MaxLease))
	}
	return err
}

// discover reads the places that services come from.
func (b *builder) discover(zones []rota.Name, base rota.Safety) {
	seen := map[string]place{}
	count := 0
	for _, n := range withFaults(b.root.get("discover")) {
		if textOr(n.get("type"), "") != "register" {
			continue
		}
		name := "register"
		if count++; count > 1 {
			name = fmt.Sprintf("register-%d", count)
		}
		at := n.at
		if v := n.get("name"); v != nil {
			name, at = v.text, v.at
		}
		if before, twice := seen[name]; twice {
			b.fail(at, "write name: NAME", "discover: %q stands twice: first at line %d", name, before.line)
		}
		seen[name] = at
		b.c.Spec.Registers = append(b.c.Spec.Registers, b.register(n, name, zones, base))
	}
}

// register reads what hosts that announce themselves may claim.
func (b *builder) register(n *node, name string, zones []rota.Name, base rota.Safety) rota.RegisterTemplate {
	what := fmt.Sprintf("discover %q", name)
	also := n.child("also")
	t := rota.RegisterTemplate{
		Name: name, HostName: textOr(n.get("host_name"), ""), ServiceName: textOr(n.get("service_name"), ""), HostRecord: textOr(also.get("host_record"), ""),
		Service: b.common(n, what, n.at, base), HostZone: nameOr(also.get("zone"), ""),
	}
	if e := n.get("expire_after"); e != nil && e.text != "never" {
		t.ExpireAfter = durationOr(e, 0)
	}
	for _, p := range elements(n.get("networks")) {
		t.Networks = append(t.Networks, networkOf(p.text))
	}
	endpoint := n.child("endpoint")
	t.Endpoint = rota.Endpoint{
		Weight: uint32(intOr(endpoint.get("weight"), 1)), Priority: uint16(intOr(endpoint.get("priority"), 1)),
		Site: textOr(endpoint.get("site"), ""), Labels: pairs(endpoint.get("labels")),
	}
	s := scope{b: b, what: what, service: t.ServiceName, node: n, layers: []*node{n, b.root.get("defaults")}}
	t.Endpoint.Checks = s.checks(n)

	r := &registerReader{b: b, what: what, zones: zones}
	service := r.template(n.get("service_name"), func(text string) rota.RegisterTemplate {
		return rota.RegisterTemplate{HostName: t.HostName, ServiceName: text}
	})
	record := r.template(also.get("host_record"), func(text string) rota.RegisterTemplate {
		return rota.RegisterTemplate{HostName: t.HostName, HostRecord: text}
	})
	if !n.has("service_name") && !also.has("host_record") {
		b.fail(n.at, "write service_name: \"{service}.ZONE\"", "%s has neither service_name nor also: host_record: a host would get no name", what)
	}
	if t.ServiceName != "" && t.ServiceName == t.HostRecord {
		b.fail(also.get("host_record").at, "", "%s: a host's own name is that of its service", what)
	}
	if !n.has("publish") && t.ServiceName == "" && t.HostRecord != "" {
		service = record
	}
	t.Service.Publish, t.Service.Zone = r.publish(n, n, "service_name", service, t.Service, t.Service.Zone)
	switch {
	case t.HostRecord == "" && (also.has("ptr") || also.has("publish") || also.has("zone")):
		b.fail(also.at, "write host_record: \"{host}.ZONE\"", "%s: also has no host_record, which is what the rest is about", what)
	case t.HostRecord != "":
		from := also
		if !also.has("publish") {
			from = n
		}
		t.HostPublish, t.HostZone = r.publish(from, also, "host_record", record, rota.Service{Name: t.Service.Name, TTL: t.Service.TTL}, t.HostZone)
	}
	seen := map[rota.Name]bool{}
	for _, p := range withFaults(also.get("ptr")) {
		zone, at := p, p.at
		if p.kind == isMap {
			zone = p.get("zone")
		}
		if zone == nil {
			continue
		}
		e := rota.Reverse{}
		if zone.text != "auto" {
			e.Zone = nameOr(zone, "")
		}
		if seen[e.Zone] {
			b.fail(zone.at, "", "%s: ptr %s stands twice", what, cmp.Or(e.Zone.Short(), "auto"))
			continue
		}
		seen[e.Zone] = true
		_, own := rota.LongestZone(e.Zone, zones)
		switch {
		case p.has("publish"):
			e.Publish, _ = r.publish(p, p, "ptr", e.Zone, rota.Service{TTL: t.Service.TTL}, "")
		case own && e.Zone != "":
			e.Publish = []string{rota.Embedded}
		default:
			e.Publish = slices.DeleteFunc(slices.Clone(t.HostPublish), func(name string) bool { return name == rota.Embedded || !r.reaches(name, e.Zone) })
			if len(e.Publish) == 0 && len(t.HostPublish) > 0 {
				b.fail(at, "write {zone: ZONE, publish: NAME}, or add the zone to dns.zones", "%s: nobody publishes pointers in %s", what, cmp.Or(e.Zone.Short(), "zones of others"))
			}
		}
		t.Reverse = append(t.Reverse, e)
	}
	return t
}

// registerReader reads the names and publishers of one template.
type registerReader struct {
	b     *builder
	what  string
	zones []rota.Name // rota's own
}

// template checks a template of names by making one, and returns what of its names is always the same.
func (r *registerReader) template(n *node, with func(string) rota.RegisterTemplate) rota.Name {
	if n == nil {
		return ""
	}
	switch {
	case strings.ContainsFunc(n.text, func(c rune) bool { return c > 0x7e }):
		r.b.fail(n.at, "write xn--…", "%s: template %q holds letters outside ASCII", r.what, short(n.text))
		return ""
	case strings.ContainsAny(n.text, " \t"):
		r.b.fail(n.at, "", "%s: template %q contains a space", r.what, short(n.text))
		return ""
	}
	t := with(n.text)
	if _, err := rota.ParseHostPattern(t.HostName); err != nil {
		t.HostName = "{id}-{service}-{env}" // said before; which placeholders it would fill nobody knows
	}
	_, service, record, err := t.Names(sampleHost(t.HostName))
	if err == nil {
		_, err = parseHost(cmp.Or(service, record).String())
	}
	if err != nil {
		r.b.fail(n.at, "", "%s: %v", r.what, err)
		return ""
	}
	i := strings.LastIndex(n.text, "}")
	if i < 0 {
		name, _ := parseName(n.text)
		return name
	}
	_, rest, _ := strings.Cut(n.text[i:], ".")
	name, _ := parseName(cmp.Or(rest, "."))
	return name
}

// sampleHost makes a host name that a pattern takes apart: each placeholder stands for a letter that the pattern does not hold.
func sampleHost(pattern string) string {
	letter := "x"
	for c := 'a'; c <= 'z'; c++ {
		if !strings.ContainsRune(strings.NewReplacer("{id}", "", "{service}", "", "{env}", "", "{host}", "").Replace(strings.ToLower(pattern)), c) {
			letter = string(c)
			break
		}
	}
	return strings.NewReplacer("{id}", letter, "{service}", letter, "{env}", letter, "{host}", letter).Replace(strings.ToLower(pattern))
}

// publish finds out who publishes the names that end in suffix, and in which zone where that has to be known. from has the key
// publish, and at is where its lack is said.
func (r *registerReader) publish(from, at *node, key string, suffix rota.Name, like rota.Service, zone rota.Name) ([]string, rota.Name) {
	own, inside := rota.LongestZone(suffix, r.zones)
	if zone != "" && suffix != "" && !suffix.In(zone) && !zone.In(suffix) {
		r.b.fail(at.get("zone").placeOr(at.at), "", "%s: no name of %s is in zone %s", r.what, key, zone.Short())
	}
	if from.get("publish") == nil {
		switch {
		case suffix == "" || from.has("publish"):
		case inside:
			return []string{rota.Embedded}, own
		case len(r.zones) > 0:
			r.b.fail(at.at, "write publish: NAME, or add the zone to dns.zones", "%s: names of %s are in no zone under dns.zones (%s), and publish names nobody", r.what, key, zoneList(r.zones))
		default:
			r.b.fail(at.at, "write publish: NAME, or add dns: with its zone", "%s is published by nobody", r.what)
		}
		return nil, zone
	}
	var out []string
	for _, u := range elements(from.get("publish")) {
		name := u.text
		switch {
		case name == rota.Embedded && suffix == "":
		case name == rota.Embedded && !inside:
			r.b.fail(u.at, "", "%s: names of %s cannot be answered by rota itself: they are in no zone under dns.zones", r.what, key)
			continue
		case name == rota.Embedded:
			zone = own
		default:
			var p *publisher
			if strings.Contains(name, "://") {
				p = r.b.publisherURL(u)
			} else {
				p = r.b.publisher(u)
			}
			if p == nil {
				continue
			}
			name = p.Name
			if suffix != "" && !r.reaches(name, suffix) {
				r.b.fail(u.at, "", "%s: no name of %s is in a zone of publisher %q (%s)", r.what, key, name, zoneList(p.Zones))
			}
			r.b.raised(r.what, like.TTL, p, u)
		}
		if slices.Contains(out, name) {
			r.b.fail(u.at, "", "%s names publisher %q twice", r.what, name)
			continue
		}
		out = append(out, name)
	}
	return out, zone
}

// reaches reports whether a publisher may keep names that end in suffix.
func (r *registerReader) reaches(publisher string, suffix rota.Name) bool {
	p := r.b.publishers[publisher]
	return p == nil || len(p.Zones) == 0 || slices.ContainsFunc(p.Zones, func(z rota.Name) bool {
		if suffix == "" { // wherever addresses point back
			return z.In("arpa.")
		}
		return suffix.In(z) || z.In(suffix)
	})
}

// networkOf returns a prefix or the address that the grammar has found it to be.
func networkOf(s string) netip.Prefix {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, _ := netip.ParsePrefix(s)
	return p
}
