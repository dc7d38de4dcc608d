package config

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// urlForm is how a check of one kind is written as a URL.
type urlForm struct {
	form string // in messages
	port bool   // it has to be there
	bare bool   // there is none
	// path reads what follows the port; nil: nothing may.
	path func(*rota.Check, string) error
}

// urlForms holds the kinds that have one. grpcs is grpc over TLS.
func urlForms() map[string]urlForm {
	return map[string]urlForm{
		"http":          {form: "http://{}/health", path: webPath},
		"https":         {form: "https://{}/health", path: webPath},
		"tcp":           {form: "tcp://{}:PORT", port: true},
		"tls":           {form: "tls://{}:PORT", port: true},
		"icmp":          {form: "icmp://{}", bare: true},
		"node_exporter": {form: "node_exporter://{}", path: webPath},
		"dns":           {form: "dns://{}/NAME", path: queryPath},
		"grpc":          {form: "grpc://{}:PORT/SERVICE", port: true, path: servicePath},
		"grpcs":         {form: "grpcs://{}:PORT/SERVICE", port: true, path: servicePath},
		"agent-check":   {form: "agent-check://{}:PORT", port: true},
	}
}

func webPath(c *rota.Check, path string) error {
	if path == "" {
		return nil
	}
	if path[0] == '?' {
		path = "/" + path
	}
	c.Path = path
	return parsePath(path)
}

func queryPath(c *rota.Check, path string) error {
	name := strings.TrimPrefix(path, "/")
	if name == "" {
		return errors.New("a check of type dns wants a name to ask for: dns://{}/NAME")
	}
	n, err := parseName(name)
	if strings.ContainsAny(name, "/?#") {
		err = fmt.Errorf("%q is no name: want dns://{}/NAME, or a map: {type: dns, query: NAME, query_type: TYPE}", short(name))
	}
	c.Query = n.String()
	return err
}

func servicePath(c *rota.Check, path string) error {
	c.Service = strings.TrimPrefix(path, "/")
	return parseGRPCService(c.Service)
}

// parseCheckURL reads a check written as a URL with {} for the address.
func parseCheckURL(t string) (rota.Check, error) {
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok {
		return rota.Check{}, fmt.Errorf("%q is no URL: want one such as https://{}/health", short(t))
	}
	c := rota.Check{Kind: rota.Kind(scheme)}
	forms := urlForms()
	form, known := forms[scheme]
	switch {
	case !known && slices.Contains(rota.Kinds(), c.Kind):
		return c, fmt.Errorf("a check of type %s is written as a map: {type: %s, …}", scheme, scheme)
	case !known:
		if w := closest(scheme, sortedKeys(forms)); w != "" {
			return c, fmt.Errorf("unknown scheme %q: did you mean %q?", short(scheme), w)
		}
		return c, fmt.Errorf("unknown scheme %q: want %s", short(scheme), oneOf(sortedKeys(forms)))
	case scheme == "grpcs":
		c.Kind, c.TLS = rota.KindGRPC, true
	}
	hostport, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		hostport, path = rest[:i], rest[i:]
	}
	if strings.Contains(hostport, "@") {
		return c, errors.New("a check takes no user and password in its URL: write a map with auth")
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
	switch {
	case form.path == nil && strings.Trim(path, "/") != "":
		return c, fmt.Errorf("a check of type %s has no path", scheme)
	case form.bare && hasPort:
		return c, fmt.Errorf("a check of type %s has no port", scheme)
	case form.port && !hasPort:
		return c, fmt.Errorf("a check of type %s wants a port: %s", scheme, form.form)
	case form.path == nil:
		return c, nil
	}
	return c, form.path(&c, path)
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
	c.Data = textOr(first(from, "data"), c.Data)
	c.JSON = s.b.jsonRules(first(from, "json"))
	c.Auth = s.b.auth(first(from, "auth"))
	c.HTTP2 = boolOr(first(from, "http2"), false)
	c.DrainHeader = textOr(first(from, "drain_header"), c.DrainHeader)
	c.Reuse = boolOr(first(from, "reuse"), false)
	c.Watch = boolOr(first(from, "watch"), false)
	c.ClientCert = s.b.at(first(from, "client_cert"), "certificate", maxPEM).place
	c.ClientKey = s.b.at(first(from, "client_key"), "private key", maxPEM).place
	c.CA = s.b.at(first(from, "ca"), "certificate of the CA", maxPEM).place
	c.Rules = s.b.rules(first(from, "rules"))
	if textOr(first(from, "on_error"), "") == rota.Down.String() {
		c.OnError = rota.Down
	}
	c.NoPing = !boolOr(first(from, "ping"), true)
	c.Query = nameOr(first(from, "query"), rota.Name(c.Query)).String()
	c.QueryType = textOr(first(from, "query_type"), c.QueryType)
	if codes := elements(first(from, "rcode")); len(codes) > 0 {
		c.RCode = joined(codes)
	}
	c.Transport = textOr(first(from, "transport"), c.Transport)
	c.Recurse = boolOr(first(from, "recurse"), false)
	c.Service = textOr(first(from, "service"), c.Service)
	c.TLS = boolOr(first(from, "tls"), c.TLS)
	c.Command = s.b.command(first(from, "command"))
	c.MaxAge = durationOr(first(from, "max_age"), c.MaxAge)
	return c
}

// joined writes the words of a list in order, each once.
func joined(ns []*node) string {
	var ws []string
	for _, n := range ns {
		ws = append(ws, n.text)
	}
	slices.Sort(ws)
	return strings.Join(slices.Compact(ws), ",")
}

// jsonRules reads what the values of a JSON answer have to be. What stands in quotes is a text, unless it is a comparison.
func (b *builder) jsonRules(n *node) []rota.JSONRule {
	var rs []rota.JSONRule
	for _, e := range anyKey.entries(n) {
		if e.value.bad {
			continue
		}
		r := rota.JSONRule{Pointer: e.key, Want: jsonWant(e.value)}
		if _, err := rota.ParseJSONRule(r); err != nil {
			b.fail(e.at, "", "%v", err)
			continue
		}
		rs = append(rs, r)
	}
	if len(rs) > rota.MaxJSONRules {
		b.fail(n.at, "", "%d values: want at most %d", len(rs), rota.MaxJSONRules)
	}
	slices.SortFunc(rs, func(a, b rota.JSONRule) int { return cmp.Compare(a.Pointer, b.Pointer) })
	return rs
}

// comparison is how a number in a JSON answer is held against another.
var comparison = regexp.MustCompile(`^\s*(<=|>=|==|!=|<|>)\s*(.*)$`)

func jsonWant(n *node) string {
	if n.kind == isNull {
		return "null"
	}
	if m := comparison.FindStringSubmatch(n.text); m != nil {
		return m[1] + " " + strings.TrimSpace(m[2])
	}
	if !n.quoted && json.Valid([]byte(n.text)) { // a number, true or false
		return n.text
	}
	text, err := json.Marshal(n.text)
	if err != nil {
		panic(fmt.Sprintf("config: text of a JSON rule: %v", err)) // a string is always encoded
	}
	return string(text)
}

// auth reads who asks.
func (b *builder) auth(n *node) rota.Auth {
	if n == nil {
		return rota.Auth{}
	}
	basic, bearer := n.has("user") || n.has("password"), n.has("bearer")
	switch {
	case basic == bearer:
		b.fail(n.at, "", "auth wants {user: NAME, password: {file: PATH}} or {bearer: {file: PATH}}")
		return rota.Auth{}
	case bearer:
		return rota.Auth{Secret: b.at(n.get("bearer"), "secret", maxSecret).place}
	case !n.has("user") || !n.has("password"):
		b.fail(n.at, "", "auth wants both user and password")
		return rota.Auth{}
	}
	return rota.Auth{User: textOr(n.get("user"), ""), Secret: b.at(n.get("password"), "secret", maxSecret).place}
}

// maxPEM bounds a file of certificates, in bytes.
const maxPEM = 1 << 20

// found is what is at a place that a check names.
type found struct {
	place rota.Place
	text  []byte // empty when it was left unread
}

// at finds out what a check names: a path, or an object with file, env or credential. From then on, this configuration allows this
// machine to read it. The zero value is for what is not there, which is said once.
func (b *builder) at(n *node, what string, limit int) found {
	if n == nil {
		return found{}
	}
	if f, known := b.found[n]; known {
		return f
	}
	form, v := "file", n
	if n.kind == isMap {
		form, v = b.form(n)
	}
	var f found
	if v != nil {
		if c, ok := b.content(v.at, what, form, v.text, limit); ok {
			f = found{rota.Place(c.from), c.text}
			if form == "file" && what != "certificate" && what != "certificate of the CA" && c.mode&forAll != 0 {
				b.openSecret(v.at, c.path)
			}
			if path, err := filepath.Abs(c.path); err == nil && form == "file" {
				f.place = rota.Place("file:" + path)
			}
			b.c.Places = append(b.c.Places, f.place)
		}
	}
	b.found[n] = f
	return f
}

// command reads what a check runs. From then on, this configuration allows this machine to run it.
func (b *builder) command(n *node) []string {
	var words []string
	for i, w := range elements(n) {
		if i == 0 {
			if err := program(w.text); err != nil {
				b.fail(w.at, "", "command: %v", err)
				return nil
			}
		}
		words = append(words, w.text)
	}
	if words != nil && !slices.ContainsFunc(b.c.Commands, func(c []string) bool { return slices.Equal(c, words) }) {
		b.c.Commands = append(b.c.Commands, words)
	}
	return words
}

// rules reads what a machine's numbers have to keep: names with comparisons, or names that have theirs by default.
func (b *builder) rules(n *node) []rota.Rule {
	var rs []rota.Rule
	for _, e := range anyKey.entries(n) {
		if e.value.bad {
			continue
		}
		p, err := rota.ParseRule(rota.Rule{Name: e.key, Want: e.value.text})
		if err != nil {
			b.fail(e.at, "", "%v", err)
			continue
		}
		rs = append(rs, p.Rule())
	}
	for _, name := range elements(n) {
		if name.kind != isScalar {
			continue
		}
		some, err := rota.DefaultRules(name.text)
		if err != nil {
			b.fail(name.at, "", "%v", err)
		}
		rs = append(rs, some...)
	}
	if rs = sortRules(rs); len(rs) > rota.MaxRules {
		b.fail(n.at, "", "%d rules: want at most %d", len(rs), rota.MaxRules)
	}
	return rs
}

// sortRules sorts rules and drops repetitions, so that the same rules are the same question.
func sortRules(rs []rota.Rule) []rota.Rule {
	slices.SortFunc(rs, func(a, b rota.Rule) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Want, b.Want)) })
	return slices.Compact(rs)
}

// machineRules are the rules of a node_exporter check that says nothing.
func machineRules() []rota.Rule {
	rs, err := rota.DefaultRules("all")
	if err != nil {
		panic(fmt.Sprintf("config: the rules of every machine: %v", err)) // they are part of this version
	}
	return sortRules(rs)
}

// judge refuses what a check says against itself, and warns of what is probably not meant. at names it in messages.
func (s *scope) judge(at *node, c rota.Check, from []*node) {
	b := s.b
	where := func(key string) place { return first(from, key).placeOr(at.at) }
	if c.Method == "HEAD" && (c.Body != "" || len(c.JSON) > 0) {
		key := map[bool]string{true: "body", false: "json"}[c.Body != ""]
		b.fail(where(key), "", "check %q: an answer to HEAD has no body to match", c.Name)
	}
	if c.Data != "" && !slices.Contains([]string{"POST", "PUT", "PATCH"}, c.Method) {
		b.fail(where("data"), "write method: POST", "check %q: data is sent with method POST, PUT or PATCH", c.Name)
	}
	b.pair(c, from)
	secure := c.Kind == rota.KindHTTPS || c.Kind == rota.KindTLS || c.TLS
	if c.Kind == rota.KindGRPC && !secure {
		for _, f := range tlsFields() {
			if n := first(from, f.key); n != nil {
				b.fail(n.at, "write tls: true", "check %q: %s belongs to TLS", c.Name, f.key)
			}
		}
	}
	if c.Verify == rota.VerifyNone && c.CA != "" {
		b.fail(where("ca"), "", "check %q: ca is of no use with verify: none", c.Name)
	}
	if c.HTTP2 && (c.Reuse || c.Watch) {
		b.fail(where("http2"), "", "check %q: reuse and watch are for HTTP/1.1: leave out http2 or them", c.Name)
	}
	switch {
	case c.Auth.Secret == "":
	case c.Kind == rota.KindGRPC && !secure:
		b.fail(where("auth"), "write tls: true", "check %q: a gRPC server is told who asks over TLS only", c.Name)
	case !secure:
		b.warn(where("auth"), "use https", "check %q: its %s crosses the network in the clear", c.Name, credential(c.Auth))
	case c.Verify == rota.VerifyNone:
		b.warn(where("verify"), "write ca: FILE", "check %q: its %s goes to whoever answers: verify is none", c.Name, credential(c.Auth))
	}
	for _, h := range c.Header {
		if secretHeader(h.Name) {
			b.warn(where("header"), "use auth where the endpoint takes it", "check %q: header %s looks like a secret, and what a check sends is shown in the names of targets", c.Name, h.Name)
		}
	}
}

func credential(a rota.Auth) string {
	if a.User == "" {
		return "token"
	}
	return "password"
}

// secretHeader reports whether a header field is probably a credential.
func secretHeader(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"token", "secret", "password", "api-key", "apikey", "signature"}, func(w string) bool { return strings.Contains(name, w) })
}

// pair makes sure that a client's certificate and key are both there and fit, and that a CA is one.
func (b *builder) pair(c rota.Check, from []*node) {
	cert, key, ca := first(from, "client_cert"), first(from, "client_key"), first(from, "ca")
	if x := b.at(ca, "certificate of the CA", maxPEM); len(x.text) > 0 && !x509.NewCertPool().AppendCertsFromPEM(x.text) {
		b.fail(ca.at, "", "check %q: %s holds no certificate in PEM", c.Name, x.place)
	}
	if cert == nil && key == nil {
		return
	}
	if cert == nil || key == nil {
		if !anyBad(from, "client_cert") && !anyBad(from, "client_key") {
			b.fail(cmp.Or(cert, key).at, "", "check %q wants both client_cert and client_key", c.Name)
		}
		return
	}
	chain, private := b.at(cert, "certificate", maxPEM), b.at(key, "private key", maxPEM)
	if len(chain.text) == 0 || len(private.text) == 0 {
		return
	}
	if _, err := tls.X509KeyPair(chain.text, private.text); err != nil {
		b.fail(cert.at, "", "check %q: certificate %s and key %s cannot be used: %s", c.Name, chain.place, private.place, strings.TrimPrefix(err.Error(), "tls: "))
	}
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
	wantPort := func() {
		if c.Port == 0 && !anyBad(from, "port") {
			what := fmt.Sprintf("check %q", label)
			if label == "" {
				what = "a check"
			}
			s.b.fail(at.at, "write port: N", "%s of type %s has no port", what, c.Kind)
			s.refused, portless = true, true
		}
	}
	switch c.Kind {
	case rota.KindHTTP, rota.KindHTTPS:
		c.Port = cmp.Or(c.Port, map[rota.Kind]uint16{rota.KindHTTP: 80, rota.KindHTTPS: 443}[c.Kind])
		c.Path, c.Method = cmp.Or(c.Path, "/"), cmp.Or(c.Method, "GET")
		if c.Host = asciiHost(cmp.Or(c.Host, name)); c.Host == itself {
			c.Host = ""
		}
		c.MaxBody, c.DrainHeader = cmp.Or(c.MaxBody, rota.DefaultMaxBody), cmp.Or(c.DrainHeader, rota.DefaultDrainHeader)
		if len(c.Status) == 0 {
			c.Status = []rota.StatusRange{{From: 200, To: 399}}
		}
		slices.SortFunc(c.Status, func(a, b rota.StatusRange) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
		c.Status = slices.Compact(c.Status)
	case rota.KindTCP, rota.KindTLS:
		wantPort()
		if c.Expect != "" {
			c.MaxBody = cmp.Or(c.MaxBody, rota.DefaultMaxBody)
		}
	case rota.KindICMP:
		c.Count = cmp.Or(c.Count, 1)
	case rota.KindNodeExporter:
		c.Port, c.Path, c.MaxBody = cmp.Or(c.Port, 9100), cmp.Or(c.Path, "/metrics"), cmp.Or(c.MaxBody, rota.LimitMaxBody)
		if len(c.Rules) == 0 && !anyBad(from, "rules") {
			c.Rules = machineRules()
		}
	case rota.KindDNS:
		c.Port, c.QueryType = cmp.Or(c.Port, 53), cmp.Or(c.QueryType, "A")
		c.RCode, c.Transport = cmp.Or(c.RCode, "NOERROR"), cmp.Or(c.Transport, "udp")
	case rota.KindGRPC, rota.KindAgentCheck:
		wantPort()
	case rota.KindAgent:
		c.MaxAge = cmp.Or(c.MaxAge, rota.DefaultMaxAge)
	}
	if c.Kind == rota.KindTLS || c.TLS {
		c.ServerName = cmp.Or(c.ServerName, name)
	}
	if c.Kind == rota.KindTLS || c.Kind == rota.KindHTTPS || c.TLS {
		c.ServerName, c.Verify = asciiHost(c.ServerName), cmp.Or(c.Verify, rota.VerifyStrict)
	}
	if c.Name == "" {
		c.Name = c.Describe()
	}
	s.judge(at, c, from)
	if c.Timing = rota.DefaultTiming(); c.Kind != rota.KindAgent { // nobody asks, so that services share one whatever their timing
		c.Timing = s.timing(at, c.Name, from)
	}
	if c.Timeout < twoSamples && slices.ContainsFunc(c.Rules, rate) {
		s.b.warn(first(from, "timeout").placeOr(at.at), "1s is enough", "check %q: a timeout of %s cannot fit the two samples that %s needs when there is none yet", c.Name, formatDuration(c.Timeout), c.Rules[slices.IndexFunc(c.Rules, rate)].Name)
	}
	return rota.Use{Check: c, Observe: textOr(first(from, "role"), "required") == "observe"}, !portless
}

// twoSamples is the least time in which a node_exporter is asked twice, with a moment between.
const twoSamples = 500 * time.Millisecond

// rate reports whether a rule compares two samples.
func rate(r rota.Rule) bool { return r.Name == "cpu" || strings.HasPrefix(r.Name, "net(") }

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
	slow, m := find("slow_interval")
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
	if t.SlowInterval = durationOr(slow, t.SlowInterval); t.SlowInterval < t.Interval {
		if m <= i && slow != nil && judged {
			s.b.notAbove(slow, name, t.SlowInterval, t.Interval)
		}
		t.SlowInterval = t.Interval
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
