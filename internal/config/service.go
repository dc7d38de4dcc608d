package config

import (
	"cmp"
	"errors"
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
	v.Name = name
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
	v.Policy = rota.Policy{Answers: intOr(policy.get("answers"), 0), Pick: rota.Pick(textOr(policy.get("pick"), ""))}
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
		b.bodyOfHead(def, name, []*node{def})
	}
}

// notBelow refuses a time that is longer than the interval.
func (b *builder) notBelow(at *node, check, key string, v, interval time.Duration) {
	if v > interval {
		b.fail(at.at, "", "check %q: %s %s is not below interval %s", check, key, formatDuration(v), formatDuration(interval))
	}
}

// bodyOfHead refuses to match the body of an answer that has none.
func (b *builder) bodyOfHead(at *node, check string, from []*node) {
	if body := first(from, "body"); body != nil && textOr(first(from, "method"), "") == "HEAD" {
		b.fail(body.placeOr(at.at), "", "check %q: an answer to HEAD has no body to match", check)
	}
}

// once notes that a kind is not supported yet, once for each thing of that kind.
func (b *builder) once(at place, what, name, kind string) {
	if id := what + " " + name; !b.later[id] {
		b.later[id] = true
		b.fail(at, "", "%s %q: type %s is not supported yet", what, short(name), kind)
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
		ep.Site, ep.Labels = textOr(n.get("site"), ""), pairs(n.get("labels"))
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

// parseCheckURL reads a check written as a URL with {} for the address.
func parseCheckURL(t string) (rota.Check, error) {
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok {
		return rota.Check{}, fmt.Errorf("%q is no URL: want one such as https://{}/health", short(t))
	}
	c := rota.Check{Kind: rota.Kind(scheme)}
	if !slices.Contains(rota.Kinds(), c.Kind) {
		var kinds []string
		for _, k := range rota.Kinds() {
			kinds = append(kinds, string(k))
		}
		if w := closest(scheme, kinds); w != "" {
			return c, fmt.Errorf("unknown scheme %q: did you mean %q?", short(scheme), w)
		}
		return c, fmt.Errorf("unknown scheme %q: want %s", short(scheme), oneOf(kinds))
	}
	hostport := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		hostport, c.Path = rest[:i], rest[i:]
	}
	if strings.Contains(hostport, "@") {
		return c, errors.New("a check takes no user and password in its URL")
	}
	host, port, hasPort := strings.Cut(strings.Replace(strings.Replace(hostport, "[{}]", "{}", 1), "{}", "\x00", 1), ":")
	if host != "\x00" {
		return c, fmt.Errorf("%q is asked of one fixed place: write %s for the endpoint's address, and the name under host", short(t), scheme+"://{}")
	}
	if hasPort {
		p, err := parseInteger(port, 1, 65535)
		if err != nil {
			return c, fmt.Errorf("port %w", err)
		}
		c.Port = uint16(p)
	}
	web := c.Kind == rota.KindHTTP || c.Kind == rota.KindHTTPS
	switch {
	case !web && strings.Trim(c.Path, "/") != "":
		return c, fmt.Errorf("a check of type %s has no path", c.Kind)
	case !web:
		c.Path = ""
	case c.Path != "":
		if c.Path[0] == '?' {
			c.Path = "/" + c.Path
		}
		if err := parsePath(c.Path); err != nil {
			return c, err
		}
	}
	switch c.Kind {
	case rota.KindICMP:
		if hasPort {
			return c, errors.New("a check of type icmp has no port")
		}
	case rota.KindTCP, rota.KindTLS:
		if !hasPort {
			return c, fmt.Errorf("a check of type %s wants a port: %s://{}:PORT", c.Kind, c.Kind)
		}
	}
	return c, nil
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
	if !slices.Contains(rota.Kinds(), c.Kind) {
		s.refused = true
		id := name
		if id == "" {
			id = fmt.Sprintf("%s:%d", s.service, kind.at.line)
		}
		s.b.once(kind.at, "check", id, kind.text)
		s.timing(at, id, from)
		return rota.Use{}, false
	}
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

// fill sets what the maps say, the first that says it winning.
func (s *scope) fill(c rota.Check, from []*node) rota.Check {
	c.Port = uint16(intOr(first(from, "port"), int(c.Port)))
	c.Path = textOr(first(from, "path"), c.Path)
	c.Host = textOr(first(from, "host"), c.Host)
	c.ServerName = textOr(first(from, "server_name"), c.ServerName)
	c.Method = textOr(first(from, "method"), c.Method)
	c.Body = textOr(first(from, "body"), c.Body)
	c.Follow = textOr(first(from, "follow"), "false") == "same"
	c.MaxBody = intOr(first(from, "max_body"), c.MaxBody)
	c.Verify = rota.Verify(textOr(first(from, "verify"), string(c.Verify)))
	c.CertDays = intOr(first(from, "cert_days"), c.CertDays)
	c.Send = textOr(first(from, "send"), c.Send)
	c.Expect = textOr(first(from, "expect"), c.Expect)
	c.Count = intOr(first(from, "count"), c.Count)
	c.Loss = percentOr(first(from, "loss"), c.Loss)
	c.Header = headers(first(from, "header"))
	c.ExpectHeader = headers(first(from, "expect_header"))
	for _, n := range elements(first(from, "status")) {
		if r, err := parseStatus(n.text); err == nil {
			c.Status = append(c.Status, r)
		}
	}
	return c
}

func headers(n *node) []rota.Header {
	var hs []rota.Header
	for _, e := range anyKey.entries(n) {
		if !e.value.bad {
			hs = append(hs, rota.Header{Name: e.key, Value: e.value.text})
		}
	}
	slices.SortFunc(hs, func(a, b rota.Header) int { return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return hs
}

// itself stands for the endpoint's own address.
const itself = "{}"

// asciiHost turns a U-label host into what is sent; addresses stay.
func asciiHost(h string) string {
	if n, err := parseHost(h); err == nil && !strings.Contains(h, ":") {
		if _, err := netip.ParseAddr(h); err != nil {
			return n.Short()
		}
	}
	return h
}

// finish fills the defaults of a check's kind and its timing. from are the maps that belong to the check itself.
func (s *scope) finish(at *node, c rota.Check, from []*node) (rota.Use, bool) {
	label, portless, name := c.Name, false, s.service
	switch c.Kind {
	case rota.KindHTTP, rota.KindHTTPS:
		c.Port = cmp.Or(c.Port, map[rota.Kind]uint16{rota.KindHTTP: 80, rota.KindHTTPS: 443}[c.Kind])
		c.Path, c.Method = cmp.Or(c.Path, "/"), cmp.Or(c.Method, "GET")
		if c.Host = asciiHost(cmp.Or(c.Host, name)); c.Host == itself {
			c.Host = ""
		}
		c.MaxBody = cmp.Or(c.MaxBody, rota.DefaultMaxBody)
		if len(c.Status) == 0 {
			c.Status = []rota.StatusRange{{From: 200, To: 399}}
		}
		slices.SortFunc(c.Status, func(a, b rota.StatusRange) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
		c.Status = slices.Compact(c.Status)
	case rota.KindTCP, rota.KindTLS:
		if c.Port == 0 && !anyBad(from, "port") {
			s.b.fail(at.at, "write port: N", "check %q of type %s has no port", label, c.Kind)
			s.refused, portless = true, true
		}
		if c.Expect != "" {
			c.MaxBody = cmp.Or(c.MaxBody, rota.DefaultMaxBody)
		}
	case rota.KindICMP:
		c.Count = cmp.Or(c.Count, 1)
	}
	if c.Kind == rota.KindTLS {
		c.ServerName = cmp.Or(c.ServerName, name)
	}
	if c.Kind == rota.KindTLS || c.Kind == rota.KindHTTPS {
		c.ServerName, c.Verify = asciiHost(c.ServerName), cmp.Or(c.Verify, rota.VerifyStrict)
	}
	s.b.bodyOfHead(at, label, from)
	if c.Name == "" {
		c.Name = c.Describe()
	}
	c.Timing = s.timing(at, c.Name, from)
	return rota.Use{Check: c, Observe: textOr(first(from, "role"), "required") == "observe"}, !portless
}

func anyBad(from []*node, key string) bool {
	v := first(from, key)
	return v == nil && len(from) > 0 && from[0].has(key)
}

// timing reads a check's timing: what the use says, then the check, then the service, then defaults. A timeout or fast interval
// that comes from farther away than the interval gives way to it; one that stands beside it is held against it.
func (s *scope) timing(at *node, name string, from []*node) rota.Timing {
	layers := slices.Concat(from, nonNil(s.layers...))
	find := func(key string) (*node, int) {
		for i, n := range layers {
			if n.has(key) {
				return n.get(key), i
			}
		}
		return nil, len(layers)
	}
	t := rota.DefaultTiming()
	iv, i := find("interval")
	to, j := find("timeout")
	fast, k := find("fast_interval")
	t.Interval = durationOr(iv, t.Interval)
	t.Timeout = durationOr(to, t.Timeout)
	t.FastInterval = durationOr(fast, t.FastInterval)
	judged := iv != nil || i == len(layers) // an interval that was refused is held against nothing
	if t.Timeout > t.Interval {
		if j <= i && to != nil && judged {
			s.b.notBelow(to, name, "timeout", t.Timeout, t.Interval)
		}
		t.Timeout = t.Interval
	}
	if t.FastInterval > t.Interval {
		if k <= i && fast != nil && judged {
			s.b.notBelow(fast, name, "fast_interval", t.FastInterval, t.Interval)
		}
		t.FastInterval = t.Interval
	}
	if iv != nil && t.Interval > 10*time.Minute {
		s.b.warn(iv.at, "10s is usual", "check %q: with an interval of %s a failure is seen late", name, formatDuration(t.Interval))
	}
	fall, _ := find("fall")
	rise, _ := find("rise")
	ok, _ := find("ok")
	t.Fall = intOr(fall, t.Fall)
	t.Rise = intOr(rise, t.Rise)
	t.OK = intOr(ok, t.Fall)
	return t
}
