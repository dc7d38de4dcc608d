package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// services reads all services. names are rota's own zones, and base the safety of services that say nothing of their own.
func (b *builder) services(names []rota.Name, base rota.Safety) {
	for _, e := range domainNames.entries(b.root.child("services")) {
		name, err := parseHost(e.key)
		if e.value.kind != isMap {
			continue
		}
		if err != nil { // refused before; what stands under it is judged without its name
			b.service(rota.Name(e.key), e, base, names, false)
			continue
		}
		if at, twice := b.places[name]; twice {
			b.fail(e.at, "", "service %q stands twice: first at line %d", name.Short(), at.line)
			b.service(name, e, base, names, false)
			continue
		}
		b.places[name] = e.at
		b.c.Spec.Services = append(b.c.Spec.Services, b.service(name, e, base, names, true))
	}
	if len(b.places) == 0 && len(b.c.Spec.Registers) == 0 {
		b.warn(b.root.get("services").placeOr(b.root.at), "write services: {NAME: {endpoints: [ADDRESS]}}", "no service is configured: there is nothing to do")
	}
	slices.SortFunc(b.c.Spec.Services, func(a, v rota.Service) int { return cmp.Compare(a.Name, v.Name) })
	b.fallbacks()
}

// fallbacks refuses services whose fallback leads back to them: when all are down, nobody could follow it to an address.
func (b *builder) fallbacks() {
	next := map[rota.Name]rota.Name{}
	for _, v := range b.c.Spec.Services {
		if v.Safety.Fallback != "" {
			next[v.Name] = v.Safety.Fallback
		}
	}
	done := map[rota.Name]bool{}
	for _, v := range b.c.Spec.Services {
		var path []rota.Name
		n := v.Name
		for next[n] != "" && !done[n] {
			done[n] = true
			path = append(path, n)
			n = next[n]
		}
		// Only a walk that met itself ends on its own path; one that met an earlier walk was spoken of then.
		if i := slices.Index(path, n); i >= 0 {
			loop := make([]string, 0, len(path)-i+1)
			for _, name := range append(path[i:], n) {
				loop = append(loop, name.Short())
			}
			b.fail(b.places[n], "name something else to fall back to", "service %q falls back to itself: %s", n.Short(), strings.Join(loop, " → "))
		}
	}
}

// service reads one service. Unless it is named, its name was refused and nothing is judged by it.
func (b *builder) service(name rota.Name, e entry, base rota.Safety, zones []rota.Name, named bool) rota.Service {
	n := e.value
	what := fmt.Sprintf("service %q", name.Short())
	v := b.common(n, what, e.at, base)
	v.Name, v.Disabled = name, boolOr(n.get("disabled"), false)
	if named && v.Zone != "" && !name.In(v.Zone) {
		b.fail(n.get("zone").at, "", "%s is not in zone %s", what, v.Zone.Short())
	}
	s := scope{b: b, what: what, node: n, layers: []*node{n, b.root.get("defaults")}}
	if name.Label() != "*" {
		s.service = name.Short()
	}
	seen := map[netip.Addr]place{}
	for _, en := range withFaults(n.get("endpoints")) {
		if ep, ok := s.endpoint(en); ok {
			if at, twice := seen[ep.Address]; twice {
				b.fail(en.at, "", "service %q: endpoint %s stands twice: first at line %d", name.Short(), ep.Address, at.line)
				continue
			}
			seen[ep.Address] = en.at
			v.Endpoints = append(v.Endpoints, ep)
		}
	}
	s.warnLoopback("others reach themselves by it")
	if !s.own { // no endpoint has them, and they may be wrong all the same
		s.checks(n)
	}
	if len(v.Endpoints) > 0 && !slices.ContainsFunc(v.Endpoints, func(ep rota.Endpoint) bool { return len(ep.Checks) > 0 }) && !s.refused {
		b.warn(e.at, "add check: https://{}/health or another", "service %q has no check: its endpoints always count as up", name.Short())
	}
	if v.Safety.MinPublished > len(v.Endpoints) && len(v.Endpoints) > 0 {
		b.warn(n.get("safety").get("min_published").placeOr(e.at), "", "service %q: min_published %d is above its %d endpoints: health is never believed",
			name.Short(), v.Safety.MinPublished, len(v.Endpoints))
	}
	b.publish(&v, e, zones, named)
	return v
}

// common reads what a service has beside its endpoints, whether it is configured or made of a template; what names it in messages.
func (b *builder) common(n *node, what string, at place, base rota.Safety) rota.Service {
	v := rota.Service{
		Zone: nameOr(n.get("zone"), ""), Safety: b.safety(n.child("safety"), base), Labels: pairs(n.get("labels")),
		TTL: ttlOr(n.get("ttl"), ttlOr(b.root.get("defaults").get("ttl"), defaultTTL)),
	}
	policy := n.get("policy")
	v.Policy = rota.Policy{
		Answers: intOr(policy.get("answers"), 0), Pick: rota.Pick(textOr(policy.get("pick"), "")), SlowStart: durationOr(policy.get("slow_start"), 0),
	}
	if n.has("check") && n.has("checks") {
		b.fail(n.get("check").placeOr(at), "", "%s has both check and checks", what)
	}
	at = n.get("ttl").placeOr(at)
	switch {
	case v.TTL == 0:
		b.warn(at, "", "%s: TTL 0 makes every client ask for every connection", what)
	case v.TTL > 3600:
		b.warn(at, "30s is usual", "%s: with a TTL of %s clients keep a dead address that long", what, formatDuration(time.Duration(v.TTL)*time.Second))
	}
	return v
}

// placeOr returns where n stands, or def when there is no n.
func (n *node) placeOr(def place) place {
	if n == nil {
		return def
	}
	return n.at
}

// publish finds out who publishes a service.
func (b *builder) publish(v *rota.Service, e entry, zones []rota.Name, named bool) {
	zone, inside := rota.LongestZone(v.Name, zones)
	if inside && v.Zone != "" && v.Zone != zone && slices.Contains(zones, v.Zone) {
		b.fail(e.value.get("zone").placeOr(e.at), "", "service %q is in zone %s, which lies below %s", v.Name.Short(), zone.Short(), v.Zone.Short())
	}
	p := e.value.get("publish")
	if p == nil {
		switch {
		case !named || e.value.has("publish") || b.root.has("dns") && b.root.get("dns") == nil:
		case inside:
			v.Publish, v.Zone = []string{rota.Embedded}, zone
		case len(zones) > 0:
			b.fail(e.at, "write publish: NAME, or add the zone to dns.zones", "service %q is in no zone under dns.zones (%s), and publish names nobody",
				v.Name.Short(), zoneList(zones))
		default:
			b.fail(e.at, "write publish: NAME, or add dns: with its zone", "service %q is published by nobody", v.Name.Short())
		}
		return
	}
	for _, u := range elements(p) {
		name := u.text
		switch {
		case name == rota.Embedded && !named:
		case name == rota.Embedded && !inside:
			b.fail(u.at, "", "service %q cannot be answered by rota itself: it is in no zone under dns.zones", v.Name.Short())
			continue
		case name == rota.Embedded:
			v.Zone = zone
		case strings.Contains(name, "://"):
			pub := b.publisherURL(u)
			if pub == nil {
				continue
			}
			name = pub.Name
			b.limits(v, pub, u, named)
		default:
			pub := b.publisher(u)
			if pub == nil {
				continue
			}
			b.limits(v, pub, u, named)
		}
		if slices.Contains(v.Publish, name) {
			b.fail(u.at, "", "service %q names publisher %q twice", v.Name.Short(), name)
			continue
		}
		v.Publish = append(v.Publish, name)
	}
}

func zoneList(zones []rota.Name) string {
	var short []string
	for _, z := range zones[:min(len(zones), 5)] {
		short = append(short, z.Short())
	}
	if len(zones) > 5 {
		short = append(short, "…")
	}
	return strings.Join(short, ", ")
}

// unused judges the publishers and checks that no service names. Nobody is warned of them.
func (b *builder) unused() {
	warnings := len(b.warnings)
	for _, name := range sortedKeys(b.defined) {
		e := b.defined[name]
		if b.publishers[name] == nil && kindOfPublisher(textOr(e.value.get("type"), "")).read != nil {
			b.c.Idle = append(b.c.Idle, b.readPublisher(e).Publisher)
		}
	}
	b.warnings = b.warnings[:warnings]
	for _, name := range sortedKeys(b.checks) {
		def := b.checks[name].value
		if b.used[name] || def.kind != isMap {
			continue
		}
		// What it does not say may come from where it is used.
		interval := def.get("interval")
		for _, key := range []string{"timeout", "fast_interval"} {
			if v := def.get(key); v != nil && interval != nil {
				b.notBelow(v, name, key, durationOr(v, 0), durationOr(interval, 0))
			}
		}
		if slow := def.get("slow_interval"); slow != nil && interval != nil {
			b.notAbove(slow, name, durationOr(slow, 0), durationOr(interval, 0))
		}
		idle := &scope{b: b, what: fmt.Sprintf("check %q", name)}
		idle.judge(def, idle.fill(rota.Check{Name: name, Kind: rota.Kind(textOr(def.get("type"), ""))}, []*node{def}), []*node{def})
	}
}

// notAbove refuses a slow interval that is shorter than the interval.
func (b *builder) notAbove(at *node, check string, slow, interval time.Duration) {
	if slow < interval {
		b.fail(at.at, "", "check %q: slow_interval %s is below interval %s", check, formatDuration(slow), formatDuration(interval))
	}
}

// notBelow refuses a time that is longer than the interval.
func (b *builder) notBelow(at *node, check, key string, v, interval time.Duration) {
	if v > interval {
		b.fail(at.at, "", "check %q: %s %s is not below interval %s", check, key, formatDuration(v), formatDuration(interval))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// scope is what the checks of one service, or of the uplink, are read in.
type scope struct {
	b        *builder
	what     string // in messages
	service  string // what a web server is asked for unless a check says otherwise; empty: the endpoint's own address
	node     *node
	layers   []*node // service, defaults: where timing comes from when a check does not say
	refused  bool    // a check was refused, so its lack is no oversight
	loopback []*node // endpoints that have such an address
	own      bool    // the service's own checks were read
}

// endpoint reads one endpoint. Without a right address the rest of it is judged all the same.
func (s *scope) endpoint(n *node) (ep rota.Endpoint, ok bool) {
	ep = rota.Endpoint{Weight: 1, Priority: 1}
	checks, own := s.node, false
	var inURL *node
	switch n.kind {
	case isScalar:
		if strings.Contains(n.text, "://") {
			inURL = n
			ep.Address, ok = s.endpointURL(n)
			break
		}
		ep.Address, ok = s.address(n)
	case isMap:
		ep.Address, ok = s.address(n.get("address"))
		if m := n.get("monitor"); m != nil {
			ep.Monitor, _ = s.address(m)
		}
		ep.Weight = uint32(intOr(n.get("weight"), 1))
		ep.Priority = uint16(intOr(n.get("priority"), 1))
		ep.Site, ep.Labels, ep.Agent = textOr(n.get("site"), ""), pairs(n.get("labels")), textOr(n.get("agent"), "")
		if own = n.has("check") || n.has("checks"); own {
			checks = n
		}
		if n.has("check") && n.has("checks") {
			s.b.fail(n.at, "", "endpoint %s has both check and checks", textOr(n.get("address"), ""))
		}
	}
	if inURL != nil {
		if u, ok := s.urlCheck(inURL, endpointTemplate(inURL.text)); ok {
			ep.Checks = append(ep.Checks, u)
		}
		return ep, ok
	}
	ep.Checks = s.checks(checks)
	said := slices.ContainsFunc(ep.Checks, func(u rota.Use) bool { return u.Check.Kind == rota.KindAgent })
	switch {
	case said && ep.Agent == "":
		s.b.warn(n.at, "write agent: NAME, the name of a token of role agent", "%s: only operators can say how endpoint %s is: it has a check of type agent and names no agent", s.what, ep.Address)
	case !said && ep.Agent != "" && !s.refused:
		s.b.warn(n.get("agent").at, "add {type: agent} to its checks", "%s: agent has no effect: endpoint %s has no check of type agent", s.what, ep.Address)
	}
	return ep, ok
}

// checks reads the checks of a service or an endpoint.
func (s *scope) checks(n *node) []rota.Use {
	s.own = s.own || n == s.node
	var uses []rota.Use
	for _, key := range []string{"check", "checks"} {
		c := n.get(key)
		if c == nil {
			c = n.child(key)
		}
		for _, c := range withFaults(c) {
			if u, ok := s.use(c); ok {
				uses = append(uses, u)
			}
		}
	}
	return uses
}

// warnLoopback says once what is odd about the loopback addresses that were read.
func (s *scope) warnLoopback(why string) {
	if len(s.loopback) == 0 {
		return
	}
	which := s.loopback[0].text + " is a loopback address"
	if n := len(s.loopback); n > 1 {
		which = fmt.Sprintf("%s and %d more are loopback addresses", s.loopback[0].text, n-1)
	}
	s.b.warn(s.loopback[0].at, "", "%s: %s: %s", s.what, which, why)
}

func (s *scope) address(n *node) (netip.Addr, bool) {
	if n == nil {
		return netip.Addr{}, false
	}
	a, doubt, err := parseAddress(n.text)
	if err != nil {
		hint := ""
		if _, e := parseHost(n.text); e == nil && strings.Contains(n.text, ".") && strings.Trim(n.text, "0123456789.") != "" {
			hint = "names are not looked up; write its address"
		}
		s.b.fail(n.at, hint, "%s: %v", s.what, err)
		return a, false
	}
	switch {
	case doubt != "" && a.IsLoopback():
		s.loopback = append(s.loopback, n)
	case doubt != "":
		s.b.warn(n.at, "", "%s: %s", s.what, doubt)
	}
	return a, true
}

// endpointTemplate puts {} where the address of an endpoint's URL is.
func endpointTemplate(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	hostport, path := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		hostport, path = rest[:i], rest[i:]
	}
	_, port, _ := splitHostPort(hostport)
	if port != "" {
		port = ":" + port
	}
	return scheme + "://{}" + port + path
}

func (s *scope) endpointURL(n *node) (netip.Addr, bool) {
	_, rest, _ := strings.Cut(n.text, "://")
	hostport := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		hostport = rest[:i]
	}
	if hostport == "{}" || strings.HasPrefix(hostport, "{}:") {
		s.b.fail(n.at, "{} belongs to check:, where it stands for each endpoint's address", "%s: an endpoint wants an address", s.what)
		return netip.Addr{}, false
	}
	// In a URL the % before a zone is written %25 (RFC 6874); many write it as it is.
	h, _, err := splitHostPort(strings.Replace(hostport, "%25", "%", 1))
	if err != nil {
		s.b.fail(n.at, "", "%s: %q: %v", s.what, short(n.text), err)
		return netip.Addr{}, false
	}
	at := *n
	at.text = h
	return s.address(&at)
}

func (s *scope) urlCheck(n *node, template string) (rota.Use, bool) {
	c, err := parseCheckURL(template)
	if err != nil {
		s.refused = true
		s.b.fail(n.at, "", "%s: check: %v", s.what, err)
		return rota.Use{}, false
	}
	c.Name = template
	return s.finish(n, c, nil)
}

// use reads a check as a service or endpoint names it.
func (s *scope) use(n *node) (rota.Use, bool) {
	if n.bad {
		s.refused = true
		return rota.Use{}, false
	}
	if n.kind == isScalar {
		if strings.Contains(n.text, "://") {
			return s.urlCheck(n, n.text)
		}
		return s.named(n, n, nil)
	}
	if u := n.get("use"); u != nil {
		return s.named(n, u, n)
	}
	return s.defined(n, "", n, nil)
}

// named reads a check defined under checks, with what is said on top of it.
func (s *scope) named(at, name, over *node) (rota.Use, bool) {
	e, ok := s.b.checks[name.text]
	if !ok {
		s.refused = true
		known := sortedKeys(s.b.checks)
		hint := didYouMean(name.text, known)
		switch {
		case hint == "" && len(known) > 0:
			hint = "defined are: " + strings.Join(known, ", ")
		case hint == "":
			hint = "write a URL such as https://{}/health, or define it under checks"
		}
		s.b.fail(name.at, hint, "unknown check %q", short(name.text))
		return rota.Use{}, false
	}
	s.b.used[e.key] = true
	if e.value.bad && e.value.kind != isMap {
		s.refused = true
		return rota.Use{}, false
	}
	if e.value.kind == isScalar {
		c, err := parseCheckURL(e.value.text)
		if err != nil {
			s.refused = true
			return rota.Use{}, false
		}
		c.Name = e.key
		ok := true
		if over != nil {
			ok = s.overrides(over, string(c.Kind))
			c = s.fill(c, []*node{over})
		}
		u, fine := s.finish(at, c, nonNil(over))
		return u, ok && fine
	}
	return s.defined(e.value, e.key, at, over)
}

func nonNil(ns ...*node) []*node {
	return slices.DeleteFunc(ns, func(n *node) bool { return n == nil })
}

// overrides checks that the kind has the keys that {use: …} brings.
func (s *scope) overrides(over *node, kind string) bool {
	kinds := aCheck.either[2].(variants).of
	i := slices.IndexFunc(kinds, func(v variant) bool { return v.word == kind })
	if i < 0 {
		return false
	}
	fields := kinds[i].fields
	ok := true
	for _, e := range over.keys {
		if e.key == "use" || ignored(e.key) {
			continue
		}
		if !slices.ContainsFunc(fields, func(f field) bool { return f.key == e.key }) {
			s.b.fail(e.at, "", "a check of type %s has no %s", kind, e.key)
			ok = false
		}
	}
	return ok
}

// defined reads a check that is a map with a type.
func (s *scope) defined(def *node, name string, at, over *node) (rota.Use, bool) {
	from := nonNil(over, def)
	kind := def.get("type")
	if kind == nil || def.bad {
		s.refused = true
		s.timing(at, cmp.Or(name, "without type"), from)
		return rota.Use{}, false
	}
	ok := over == nil || s.overrides(over, kind.text)
	c := rota.Check{Name: name, Kind: rota.Kind(kind.text)}
	c = s.fill(c, from)
	u, fine := s.finish(at, c, from)
	return u, ok && fine
}

// first returns the value of a key in the first map that has it.
func first(from []*node, key string) *node {
	for _, n := range from {
		if n.has(key) {
			return n.get(key)
		}
	}
	return nil
}
