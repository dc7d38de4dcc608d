package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/rota-dns/rota/internal/rota"
)

// publisher is a Publisher with where it was made.
type publisher struct {
	Publisher
	url  string // of a publisher that a service wrote as a URL
	kind publisherKind
}

// publisherReader reads one publisher.
type publisherReader struct {
	b *builder
	n *node
	p *publisher
	e entry
}

// readPublisher reads a publisher that is defined under publish. It returns nil when its type is wrong or not supported yet.
func (b *builder) readPublisher(e entry) *publisher {
	t := e.value.get("type")
	if t == nil {
		return nil
	}
	k := kindOfPublisher(t.text)
	if k.read == nil {
		b.fail(t.at, "", "publisher %q: type %s is not supported yet", short(e.key), t.text)
		return nil
	}
	n := e.value
	p := &publisher{kind: k, Publisher: Publisher{
		Name: e.key, Type: k.word, DryRun: boolOr(n.get("dry_run"), false),
		MinGap:     durationOr(n.get("min_gap"), cmp.Or(k.minGap, defaultMinGap)),
		ReadEvery:  durationOr(n.get("read_every"), cmp.Or(k.readEvery, nearby)),
		MaxRecords: intOr(n.get("max_records"), cmp.Or(k.maxRecords, otherLimit)),
		MinTTL:     ttlOr(n.get("min_ttl"), k.minTTL),
		Proof:      b.proof(e, k),
	}}
	r := &publisherReader{b, n, p, e}
	k.read(r)
	return p
}

// DefaultProof is how a zone is looked at from outside when the configuration does not say.
func DefaultProof() Proof { return Proof{Within: 2 * time.Minute, Every: 5 * time.Minute} }

// proof reads how a publisher's work is looked at from outside.
func (b *builder) proof(e entry, k publisherKind) Proof {
	n := e.value.get("proof")
	if k.unseen || textOr(n, "") == "off" {
		if n != nil && n.kind == isMap {
			b.fail(n.at, "remove it", "publisher %q: no name server answers what a publisher of type %s keeps: there is nothing to prove", e.key, k.word)
		}
		return Proof{Off: true}
	}
	p := DefaultProof()
	p.Within, p.Every = durationOr(n.get("within"), p.Within), durationOr(n.get("every"), p.Every)
	list := func(key string) []string {
		at := elements(n.get(key))
		if len(at) == 1 && at[0].text == "auto" {
			return nil
		}
		for _, s := range at {
			if key == "servers" && s.text == "auto" {
				b.fail(s.at, "", "publisher %q: proof: auto stands alone or not at all", e.key)
			}
		}
		return b.addresses(at, fmt.Sprintf("publisher %q: proof: %s", e.key, strings.TrimSuffix(key, "s")))
	}
	p.Servers, p.Resolvers = list("servers"), list("resolvers")
	return p
}

// addresses reads HOST:PORT of name servers, each once.
func (b *builder) addresses(at []*node, what string) []string {
	var out []string
	for _, s := range at {
		address, err := parseServer(s.text, "53")
		switch {
		case err != nil: // refused before
		case slices.Contains(out, address):
			b.fail(s.at, "", "%s %s stands twice", what, address)
		default:
			out = append(out, address)
		}
	}
	return out
}

func (r *publisherReader) fail(at place, hint, format string, args ...any) {
	r.b.fail(at, hint, "publisher %q: %s", r.p.Name, fmt.Sprintf(format, args...))
}

func (r *publisherReader) bool(key string) bool { return boolOr(r.n.get(key), false) }

func (r *publisherReader) servers() []string {
	return r.b.addresses(elements(r.n.get("servers")), fmt.Sprintf("publisher %q: server", r.p.Name))
}

func (r *publisherReader) timeout() time.Duration { return durationOr(r.n.get("timeout"), askTimeout) }

func (r *publisherReader) path(key string) string {
	if v := r.n.get(key); v != nil {
		return within(v.at.src, v.text)
	}
	return ""
}

// secret reads a secret; the grammar has said when there is none.
func (r *publisherReader) secret(key string) Secret {
	s, _ := r.b.secret(r.n.get(key))
	return s
}

// token reads a secret that is sent in a header of HTTP.
func (r *publisherReader) token() Secret {
	s := r.secret("token")
	if strings.ContainsFunc(s.value, unicode.IsControl) {
		r.fail(r.n.get("token").at, "the token alone, in one line", "the token has several lines")
	}
	return s
}

// account reads what names an account: a secret's forms are taken, and plain text is nothing to warn of.
func (r *publisherReader) account(key string) Secret {
	if v := r.n.get(key); v != nil && v.kind == isScalar {
		return Secret{value: v.text}
	}
	return r.secret(key)
}

// zones reads the names of the zones that a publisher keeps.
func (r *publisherReader) zones() {
	if r.n.has("zone") && r.n.has("zones") {
		r.fail(r.n.get("zone").placeOr(r.e.at), "", "both zone and zones say which")
	}
	given := append(elements(r.n.get("zones")), elements(r.n.get("zone"))...)
	for _, z := range given {
		name, err := parseName(z.text)
		switch {
		case err != nil: // refused before
		case z.text == "auto" && len(given) > 1:
			r.fail(z.at, "", "zones: auto stands alone or not at all")
		case z.text == "auto":
		case slices.Contains(r.p.Zones, name):
			r.fail(z.at, "", "zone %s stands twice", name.Short())
		default:
			r.p.Zones = append(r.p.Zones, name)
		}
	}
	slices.Sort(r.p.Zones)
}

// keys reads the TSIG keys that sign.
func (r *publisherReader) keys() []Key {
	single, several := r.n.get("key"), r.n.get("keys")
	if r.n.has("key") && r.n.has("keys") {
		r.fail(single.placeOr(several.placeOr(r.e.at)), "", "both key and keys say what signs")
	}
	if !r.n.has("key") && !r.n.has("keys") {
		r.b.warn(r.e.at, "add key: NAME and the key under keys", "publisher %q sends its updates unsigned", r.p.Name)
	}
	var out []Key
	for _, k := range append(elements(single), elements(several)...) {
		switch key := r.b.namedKey(k.at, k.text); {
		case key == nil:
		case slices.Contains(out, *key):
			r.fail(k.at, "", "key %q stands twice", short(k.text))
		default:
			out = append(out, *key)
		}
	}
	return out
}

// url reads where an API listens. What goes there holds secrets or moves names: it is encrypted, or does not leave this machine.
func (r *publisherReader) url(def string) string {
	n := r.n.get("url")
	if n == nil {
		return def
	}
	u, err := url.Parse(n.text)
	if err != nil {
		return ""
	}
	insecure := r.bool("insecure")
	switch {
	case u.Scheme == "https" && insecure:
		r.b.warn(r.n.get("insecure").at, "remove insecure", "publisher %q: insecure says nothing of an https URL", r.p.Name)
	case u.Scheme == "https" || onLoopback(u.Hostname()):
	case insecure:
		r.b.warn(n.at, "use https", "publisher %q: what it says, secrets included, crosses the network in the clear", r.p.Name)
	case r.p.Type == "webhook":
		r.fail(n.at, "use https", "what it says crosses the network in the clear, and what it is told could be anybody's")
	default:
		r.fail(n.at, "use https, or write insecure: true", "what it says, secrets included, would cross the network in the clear")
	}
	if u.RawQuery != "" || strings.HasSuffix(n.text, "?") {
		r.fail(n.at, "", "url has a query: want scheme, host and path")
	}
	return strings.TrimSuffix(n.text, "/")
}

// onLoopback reports whether a host is this machine.
func onLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// command reads a program and its arguments.
func (r *publisherReader) command(key string) []string {
	var out []string
	for i, w := range elements(r.n.get(key)) {
		if i == 0 {
			if err := program(w.text); err != nil {
				r.fail(w.at, "", "%s: %v", key, err)
				return nil
			}
		}
		out = append(out, w.text)
	}
	return out
}

func (r *publisherReader) rfc2136() {
	r.zones()
	r.p.RFC2136 = &RFC2136{
		Servers: r.servers(), Keys: r.keys(), PlainReads: r.bool("plain_reads"),
		Transport:  Transport(textOr(r.n.get("transport"), string(TransportAuto))),
		NoTransfer: textOr(r.n.get("zone_transfer"), "auto") == "off",
	}
}

func (r *publisherReader) nsupdate() {
	r.zones()
	r.p.NSUpdate = &NSUpdate{Servers: r.servers(), Keys: r.keys(), PlainReads: r.bool("plain_reads"), Timeout: r.timeout(), Command: r.command("command")}
	if !r.n.has("command") {
		r.p.NSUpdate.Command = []string{r.p.Type}
	}
}

func (r *publisherReader) powerdns() {
	r.zones()
	r.p.PowerDNS = &PowerDNS{URL: r.url(""), Token: r.token(), ServerID: textOr(r.n.get("server_id"), "localhost")}
}

func (r *publisherReader) autodns() {
	r.zones()
	r.p.AutoDNS = &AutoDNS{
		URL: r.url(autodnsURL), User: r.account("user"), Password: r.secret("password"), Context: intOr(r.n.get("context"), 4),
	}
}

func (r *publisherReader) dynu() {
	r.zones()
	r.p.Dynu = &Dynu{URL: r.url(dynuURL), Token: r.token()}
}

func (r *publisherReader) digitalOcean() {
	r.zones()
	r.p.DigitalOcean = &DigitalOcean{URL: r.url(digitalOceanURL), Token: r.token()}
}

func (r *publisherReader) cloudflare() {
	r.zones()
	r.p.Cloudflare = &Cloudflare{URL: r.url(cloudflareURL), Token: r.token(), Proxied: Proxied(textOr(r.n.get("proxied"), string(ProxiedKeep)))}
	if r.p.Cloudflare.Proxied == ProxiedOn && !r.n.has("proof") { // the world is answered Cloudflare's own addresses
		r.p.Proof = Proof{Off: true}
	}
}

func (r *publisherReader) route53() {
	r.zones()
	a := &Route53{
		URL: r.url(""), Role: textOr(r.n.get("role"), ""), Region: textOr(r.n.get("region"), ""), Profile: textOr(r.n.get("profile"), ""),
		AccessKey: r.account("access_key"), SecretKey: r.secret("secret_key"), Wait: textOr(r.n.get("wait"), "insync") == "insync",
		ZoneID: textOr(r.n.get("zone_id"), ""), Private: r.bool("private"),
	}
	if r.n.has("access_key") != r.n.has("secret_key") {
		r.fail(r.e.at, "", "access_key and secret_key belong together")
	}
	if r.n.has("profile") && r.n.has("access_key") {
		r.fail(r.n.get("profile").placeOr(r.e.at), "", "both profile and access_key say who it is")
	}
	r.p.Route53 = a
}

func (r *publisherReader) desec() {
	r.zones()
	r.p.DeSEC = &DeSEC{URL: r.url(desecURL), Token: r.token()}
}

func (r *publisherReader) webhook() {
	r.zones()
	r.p.Webhook = &Webhook{URL: r.url(""), Secret: r.secret("secret"), Signed: r.bool("signed"), Timeout: r.timeout()}
	if s := r.p.Webhook.Secret; !s.IsZero() && len(s.value) < minSigning {
		r.fail(r.n.get("secret").at, "openssl rand -base64 32", "the secret that signs has %d bytes: want at least %d", len(s.value), minSigning)
	}
}

func (r *publisherReader) exec() {
	r.zones()
	x := &Exec{Command: r.command("command"), Mode: ExecMode(textOr(r.n.get("mode"), string(ExecJSON))), Timeout: r.timeout(), Servers: r.servers()}
	switch {
	case x.Mode == ExecSimple && !r.n.has("servers"):
		r.fail(r.e.at, "write servers: [ADDRESS]", "a command of mode simple only writes: what the DNS says has to be asked of its name servers")
	case x.Mode == ExecJSON && r.n.has("servers"):
		r.fail(r.n.get("servers").placeOr(r.e.at), "remove it, or write mode: simple", "a command of mode json is asked itself what the DNS says")
	}
	r.p.Exec = x
}

func (r *publisherReader) externalDNS() {
	r.zones()
	r.p.ExternalDNS = &ExternalDNS{URL: r.url(""), Timeout: r.timeout()}
}

func (r *publisherReader) libDNS() {
	r.zones()
	r.p.LibDNS = &LibDNS{Provider: textOr(r.n.get("provider"), ""), Settings: r.secret("settings")}
	if s := r.p.LibDNS.Settings; !s.IsZero() && !json.Valid([]byte(s.value)) {
		r.fail(r.n.get("settings").placeOr(r.e.at), "", "settings are not JSON")
	}
}

func (r *publisherReader) zoneFile() {
	r.zones()
	r.p.ZoneFile = &ZoneFile{Path: r.path("path"), Reload: r.command("reload"), Timeout: r.timeout()}
}

func (r *publisherReader) mock() {
	r.p.Mock = &Mock{Zones: r.path("zones"), State: r.path("state")}
}

// publisher returns the publisher that a service names, or nil after a problem.
func (b *builder) publisher(use *node) *publisher {
	if p := b.publishers[use.text]; p != nil {
		return p
	}
	e, ok := b.defined[use.text]
	if !ok {
		known := append(sortedKeys(b.defined), rota.Embedded)
		hint := didYouMean(use.text, known)
		if hint == "" {
			hint = "defined are: " + strings.Join(known, ", ")
		}
		b.fail(use.at, hint, "unknown publisher %q", short(use.text))
		return nil
	}
	p := b.readPublisher(e)
	if p != nil {
		b.publishers[e.key] = p
	}
	return p
}

// limits refuses what the DNS behind a publisher would refuse, and says what it would change.
func (b *builder) limits(v *rota.Service, p *publisher, at *node, named bool) {
	zone, inside := rota.LongestZone(v.Name, p.Zones)
	switch {
	case len(p.Zones) == 0:
		zone = v.Zone
	case named && !inside && len(p.Zones) == 1:
		b.fail(at.at, "", "service %q is not in zone %s of publisher %q", v.Name.Short(), p.Zones[0].Short(), p.Name)
	case named && !inside:
		b.fail(at.at, "", "service %q is in none of the zones of publisher %q (%s)", v.Name.Short(), p.Name, zoneList(p.Zones))
	case v.Zone != "" && !slices.Contains(p.Zones, v.Zone):
		b.fail(at.at, "", "service %q is in zone %s, and publisher %q keeps zone %s", v.Name.Short(), v.Zone.Short(), p.Name, zoneList(p.Zones))
	}
	if named && v.Name == zone && v.Safety.Fallback != "" && !p.kind.aliases {
		b.fail(at.at, "", "service %q is the zone's own name, which has SOA and NS and can be no CNAME (fallback)", v.Name.Short())
	}
	if named {
		b.raised(fmt.Sprintf("service %q", v.Name.Short()), v.TTL, p, at)
	}
	var four, six int
	for _, e := range v.Endpoints {
		switch {
		case e.Address.Zone() != "":
		case e.Address.Is4():
			four++
		default:
			six++
		}
	}
	for _, f := range []struct {
		n int
		t rota.Type
	}{{four, rota.TypeA}, {six, rota.TypeAAAA}} {
		switch {
		case f.n <= p.MaxRecords:
		case p.kind.maxRecords == bindLimit:
			b.fail(at.at, fmt.Sprintf("split the service, or raise max-records-per-type there and write max_records: %d for the publisher", f.n),
				"service %q has %d %s records and publisher %q takes %d: BIND refuses more than max-records-per-type, 100 by default",
				v.Name.Short(), f.n, f.t, p.Name, p.MaxRecords)
		default:
			b.fail(at.at, "split the service", "service %q has %d %s records and publisher %q takes %d (max_records)", v.Name.Short(), f.n, f.t, p.Name, p.MaxRecords)
		}
	}
}

// raised warns that a publisher's DNS takes no TTL as small.
func (b *builder) raised(what string, ttl uint32, p *publisher, at *node) {
	if ttl < p.MinTTL {
		least := formatDuration(time.Duration(p.MinTTL) * time.Second)
		b.warn(at.at, "write ttl: "+least, "%s will be published with TTL %s by publisher %q: %s takes no less", what, least, p.Name, p.Type)
	}
}

// namedKey returns the key of that name under keys, or nil after a problem.
func (b *builder) namedKey(at place, name string) *Key {
	if k, ok := b.c.Keys[name]; ok {
		return &k
	}
	var known []string
	for _, e := range words.entries(b.root.get("keys")) {
		if e.key == name {
			return nil // refused where it stands
		}
		known = append(known, e.key)
	}
	hint := didYouMean(name, known)
	switch {
	case hint == "" && len(known) == 0:
		hint = "there are no keys; write keys: {NAME: {file: PATH}}"
	case hint == "":
		hint = "defined are: " + strings.Join(known, ", ")
	}
	b.fail(at, hint, "unknown key %q", short(name))
	return nil
}
