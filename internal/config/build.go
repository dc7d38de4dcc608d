package config

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

var prefix = scalar{want: "a prefix such as 10.0.0.0/8", json: "string", parse: func(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is no prefix: want one such as 10.0.0.0/8", s)
	case p != p.Masked():
		return fmt.Errorf("%s has bits behind its length: write %s", s, p.Masked())
	}
	return nil
}}

// examine holds the merged tree against the format.
func (l *loader) examine(root *node) {
	grammar().check(&examiner{l: l}, root, top)
}

// builder reads an examined tree into a Config. What was found bad is treated as absent.
type builder struct {
	*loader
	root *node
	c    *Config

	checks     map[string]entry
	publishers map[string]*publisher // by name, those that are used
	defined    map[string]entry      // publishers by name, all
	used       map[string]bool       // checks by name, those that a service names
	places     map[rota.Name]place   // of services
	found      map[*node]found       // what checks name
}

func (l *loader) build(root *node) *Config {
	b := &builder{
		loader: l, root: root, c: &Config{}, checks: map[string]entry{}, defined: map[string]entry{},
		publishers: map[string]*publisher{}, used: map[string]bool{}, places: map[rota.Name]place{}, found: map[*node]found{},
	}
	b.node()
	b.log()
	b.metrics()
	b.api()
	b.cluster()
	b.keys()
	zones := b.dns()
	b.vantage()
	for _, e := range words.entries(root.child("checks")) {
		b.checks[e.key] = e
	}
	for _, e := range words.entries(root.child("publish")) {
		b.defined[e.key] = e
	}
	names := make([]rota.Name, len(zones))
	for i, z := range zones {
		names[i] = z.Name
	}
	base := b.safety(root.child("safety"), rota.DefaultSafety())
	b.discover(names, base)
	b.services(names, base)
	b.ownership()
	b.unused()
	b.budgets()
	b.crossZones(zones)
	slices.Sort(b.c.Places)
	b.c.Places = slices.Compact(b.c.Places)
	slices.SortFunc(b.c.Commands, slices.Compare[[]string])
	for _, name := range slices.Sorted(maps.Keys(b.publishers)) {
		b.c.Publishers = append(b.c.Publishers, b.publishers[name].Publisher)
	}
	return b.c
}

// textOr returns the text of a scalar, or def when there is none.
func textOr(n *node, def string) string {
	if n == nil || n.bad || n.kind != isScalar {
		return def
	}
	return n.text
}

func durationOr(n *node, def time.Duration) time.Duration {
	if n == nil || n.bad {
		return def
	}
	d, err := parseDuration(n.text)
	if err != nil {
		return def
	}
	return d
}

func boolOr(n *node, def bool) bool {
	if n == nil || n.bad {
		return def
	}
	v, err := parseBool(n.text)
	if err != nil {
		return def
	}
	return v
}

func intOr(n *node, def int) int {
	if n == nil || n.bad {
		return def
	}
	v, err := parseInteger(n.text, -1<<62, 1<<62)
	if err != nil {
		return def
	}
	return int(v)
}

func ttlOr(n *node, def uint32) uint32 {
	if n == nil || n.bad {
		return def
	}
	v, err := parseTTL(n.text)
	if err != nil {
		return def
	}
	return v
}

func percentOr(n *node, def float64) float64 {
	if n == nil || n.bad {
		return def
	}
	v, err := parsePercent(n.text)
	if err != nil {
		return def
	}
	return v
}

func nameOr(n *node, def rota.Name) rota.Name {
	if n == nil || n.bad {
		return def
	}
	v, err := parseName(n.text)
	if err != nil {
		return def
	}
	return v
}

// elements returns the values of a list, or a lone value as one; bad ones are left out.
func elements(n *node) []*node {
	switch {
	case n == nil || n.bad:
		return nil
	case n.kind == isList:
		return slices.DeleteFunc(slices.Clone(n.items), func(n *node) bool { return n.bad })
	case n.kind == isNull:
		return nil
	}
	return []*node{n}
}

// withFaults returns what elements does, and those maps that lack something: what they hold can be judged all the same.
func withFaults(n *node) []*node {
	if n == nil || n.kind != isList {
		return elements(n)
	}
	return slices.DeleteFunc(slices.Clone(n.items), func(n *node) bool { return n.bad && n.kind != isMap })
}

func pairs(n *node) map[string]string {
	es := anyKey.entries(n)
	if len(es) == 0 {
		return nil
	}
	m := make(map[string]string, len(es))
	for _, e := range es {
		if !e.value.bad {
			m[e.key] = e.value.text
		}
	}
	return m
}

func (b *builder) node() {
	n := b.root.get("node")
	b.c.Node.Name = textOr(n.get("name"), b.o.HostName)
	if b.c.Node.Name == "" {
		b.fail(b.root.at, "write node: {name: NAME}", "this machine has no host name, so the node has no name")
	}
	b.c.Node.Site = textOr(n.get("site"), b.c.Node.Name)
	dir := "rota-data"
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	if state, ok := b.o.Env("STATE_DIRECTORY"); ok && state != "" {
		dir, _, _ = strings.Cut(state, ":")
	}
	if d := n.get("data_dir"); d != nil {
		dir = within(d.at.src, d.text)
	}
	b.c.Node.DataDir = dir
}

// maxOwner is what the fence record has room for, in bytes.
const maxOwner = 128

// defaultPrefix stands before the names of the registry's TXT records.
const defaultPrefix = "_rota."

var (
	ownerForm  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	prefixForm = regexp.MustCompile(`^([a-z0-9_][a-z0-9_-]*\.)*([a-z0-9_][a-z0-9_-]*[.-])$`)
)

// parsePrefix reads what stands before the names of the registry's TXT records.
func parsePrefix(s string) error {
	if len(s) > 60 || !prefixForm.MatchString(s) {
		return fmt.Errorf("%q is no prefix: want labels in lower case that end with a dot, such as _rota., or a part of one that ends with a hyphen, such as rota-", short(s))
	}
	return nil
}

func (b *builder) ownership() {
	o := b.root.get("ownership")
	owner, name := o.get("owner"), b.root.get("node").get("name")
	b.c.Ownership = Ownership{
		Owner: textOr(owner, ""), Registry: Registry(textOr(o.get("registry"), string(RegistryNone))), Prefix: textOr(o.get("prefix"), defaultPrefix),
	}
	if b.c.Ownership.Owner == "" && b.c.Cluster.Election != Raft {
		b.c.Ownership.Owner = b.c.Node.Name
	}
	n := len(url.QueryEscape(b.c.Ownership.Owner))
	switch {
	case b.c.Ownership.Registry == RegistryTXT && !ownerForm.MatchString(cmp.Or(b.c.Ownership.Owner, "x")):
		b.fail(cmp.Or(owner, name).placeOr(b.root.at), "write ownership: {owner: NAME}",
			"ownership: %q cannot be the owner in a registry's TXT record: want letters, digits, and . _ -", short(b.c.Ownership.Owner))
	case n <= maxOwner:
	case owner != nil:
		b.fail(owner.at, "", "ownership: owner takes %d bytes in the fence record, URL-encoded: want at most %d", n, maxOwner)
	case len(b.publishers) > 0:
		b.fail(name.placeOr(b.root.at), "write ownership: {owner: NAME}", "node: name is the owner, too, and takes %d bytes in the fence record, URL-encoded: want at most %d", n, maxOwner)
	}
	if b.c.Ownership.Registry == RegistryTXT {
		b.registryNames()
	}
}

// registryNames refuses services whose names leave no room for those of the registry's records.
func (b *builder) registryNames() {
	for _, v := range b.c.Spec.Services {
		kind := "aaaa"
		if v.Safety.Fallback != "" {
			kind = "cname"
		}
		_, err := rota.ParseName(b.c.Ownership.Prefix + kind + "-" + v.Name.String())
		if err != nil && slices.ContainsFunc(v.Publish, func(p string) bool { return p != rota.Embedded }) {
			b.fail(b.places[v.Name], "shorten the name or ownership.prefix, or leave the registry out", "service %q: the registry's record of it would have no valid name: %v", v.Name.Short(), err)
		}
	}
}

func (b *builder) log() {
	n := b.root.get("log")
	_ = b.c.Log.Level.UnmarshalText([]byte(textOr(n.get("level"), slog.LevelInfo.String())))
	b.c.Log.Format = LogFormat(textOr(n.get("format"), string(LogAuto)))
	if f := n.get("file"); f != nil {
		b.c.Log.File = within(f.at.src, f.text)
		if b.c.Log.Format == LogJournald {
			b.fail(f.at, "", "log: file and format journald exclude each other")
		}
	}
}

func (b *builder) metrics() {
	p := b.root.get("metrics").get("prometheus").get("path")
	b.c.Metrics.Path = textOr(p, "/metrics")
	for _, taken := range []string{"/", "/api", "/livez", "/readyz", "/health", "/healthz", "/dash", "/openapi.json"} {
		if b.c.Metrics.Path == taken || strings.HasPrefix(b.c.Metrics.Path, "/api/") {
			b.fail(p.at, "", "metrics: path %s is taken by the API", b.c.Metrics.Path)
			break
		}
	}
}

// defaultListen is where the API listens when the configuration does not say.
const defaultListen = "127.0.0.1:8080"

func (b *builder) api() {
	n := b.root.get("api")
	a := &b.c.API
	a.Listen = defaultListen
	if v := n.get("listen"); v != nil {
		a.Listen, _ = parseListen(v.text)
	}
	local := isLoopback(a.Listen)
	a.AnonymousRead = local
	if v := n.get("dashboard").get("anonymous"); v != nil {
		a.AnonymousRead = v.text == "read"
	}
	files := b.certificate(n.get("tls"), certificateUse{what: "api"})
	a.CertFile, a.KeyFile = files.cert, files.key
	seen := map[string]place{}
	for _, t := range withFaults(n.get("tokens")) {
		name := t.get("name")
		if name != nil {
			if at, twice := seen[name.text]; twice {
				b.fail(name.at, "", "token %q stands twice: first at line %d", name.text, at.line)
			}
			seen[name.text] = name.at
		}
		s, ok := b.secret(t.get("token"))
		if ok {
			a.Tokens = append(a.Tokens, Token{Name: textOr(name, ""), Role: Role(textOr(t.get("role"), "")), Token: s})
		}
	}
	if len(a.Tokens) > 0 && !local && a.Listen != "" && a.CertFile == "" && !n.has("tls") {
		b.warn(n.at, "add tls: {cert: FILE, key: FILE}", "api: tokens cross the network in the clear")
	}
}

func isLoopback(hostport string) bool {
	h, _, err := splitHostPort(hostport)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(h)
	return h == "localhost" || err == nil && a.IsLoopback()
}

func (b *builder) openSecret(at place, path string) {
	b.warn(at, "chmod o-r", "%s can be read by everybody on this machine", path)
}

// secret reads what a secret names. It returns false when there is none or it was refused.
func (b *builder) secret(n *node) (Secret, bool) {
	if n == nil || n.bad {
		return Secret{}, false
	}
	if n.kind == isScalar {
		b.warn(n.at, "use {file: PATH}, {env: NAME} or {credential: NAME}", "a secret stands in the configuration itself")
		return Secret{value: n.text}, true
	}
	form, v := b.form(n)
	if v == nil {
		return Secret{}, false
	}
	return b.secretFrom(v.at, form, v.text)
}

// form returns which of file, env and credential an object has, and its value, or nil when there is none or it was refused.
func (b *builder) form(n *node) (string, *node) {
	var given []string
	for _, form := range []string{"file", "env", "credential"} {
		if n.has(form) {
			given = append(given, form)
		}
	}
	if len(given) != 1 {
		b.fail(n.at, "", "a secret wants one of {file: PATH}, {env: NAME} and {credential: NAME}")
		return "", nil
	}
	return given[0], n.get(given[0])
}

// secretFrom reads a secret of the form file, env or credential.
func (b *builder) secretFrom(at place, form, name string) (Secret, bool) {
	c, ok := b.content(at, "secret", form, name, maxSecret)
	if ok && form == "file" && c.mode&forAll != 0 {
		b.openSecret(at, c.path)
	}
	return Secret{from: c.from, value: string(c.text)}, ok
}

// content is what is at a place.
type content struct {
	from string // file:PATH, env:NAME or credential:NAME
	path string // of a file or credential
	mode fs.FileMode
	text []byte // without space round it; empty when secrets are left unread
}

// content reads what is at a place of the form file, env or credential, at most limit bytes. It returns false when there is none or it
// was refused; what names it in messages.
func (b *builder) content(at place, what, form, name string, limit int) (content, bool) {
	c := content{from: form + ":" + name}
	switch form {
	case "file":
		c.path = within(at.src, name)
		c.from = "file:" + c.path
	case "credential":
		dir, ok := b.o.Env("CREDENTIALS_DIRECTORY")
		if !ok && !b.o.NoSecrets {
			b.fail(at, "LoadCredential= in the unit, or use {file: PATH}", "credential %q: systemd passed no credentials to this process", name)
			return c, false
		}
		c.path = filepath.Join(dir, name)
	}
	if b.o.NoSecrets {
		return c, true
	}
	if form == "env" {
		v, ok := b.o.Env(name)
		if !ok || strings.TrimSpace(v) == "" {
			b.fail(at, "", "environment variable %s is %s", name, map[bool]string{true: "empty", false: "not set"}[ok])
			return c, false
		}
		c.text = []byte(strings.TrimSpace(v))
		return c, true
	}
	raw, mode, err := b.open(c.path, limit)
	if err != nil {
		b.fail(at, "", "%s %s: %v", what, c.path, err)
		return c, false
	}
	if c.text, c.mode = bytes.TrimSpace(raw), mode; len(c.text) == 0 {
		b.fail(at, "", "%s %s is empty", what, c.path)
		return c, false
	}
	return c, true
}

// safety reads a safety map on top of another.
func (b *builder) safety(n *node, base rota.Safety) rota.Safety {
	if n == nil {
		return base
	}
	s := base
	s.MinPublished = intOr(n.get("min_published"), s.MinPublished)
	s.FailOpenBelow = percentOr(n.get("fail_open_below"), s.FailOpenBelow)
	s.OnAllDown = rota.OnAllDown(textOr(n.get("on_all_down"), string(s.OnAllDown)))
	s.MinHold = durationOr(n.get("min_hold"), s.MinHold)
	change := n.child("max_change")
	s.MaxChange.Share = percentOr(change.get("records"), s.MaxChange.Share)
	s.MaxChange.Per = durationOr(change.get("per"), s.MaxChange.Per)
	s.MaxChange.MinRecords = intOr(change.get("min_records"), s.MaxChange.MinRecords)
	s.MaxSites = intOr(n.get("max_sites"), s.MaxSites)
	cname := n.get("fallback").get("cname")
	s.Fallback = nameOr(cname, s.Fallback)
	switch {
	case s.OnAllDown == rota.OnAllDownFallback && s.Fallback == "" && !n.has("fallback"):
		b.fail(cmp.Or(n.get("on_all_down"), n).at, "", "on_all_down: fallback wants fallback: {cname: NAME}")
	case s.OnAllDown != rota.OnAllDownFallback && cname != nil:
		b.warn(cname.at, "write on_all_down: fallback", "fallback is never answered: on_all_down is %s", s.OnAllDown)
		s.Fallback = ""
	case s.OnAllDown != rota.OnAllDownFallback:
		s.Fallback = ""
	}
	return s
}
