package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// tree is a filesystem in memory.
type tree map[string]string

func (t tree) read(name string, limit int) ([]byte, fs.FileMode, error) {
	s, ok := t[name]
	switch {
	case !ok:
		return nil, 0, errors.New("no such file")
	case len(s) > limit:
		return nil, 0, tooLarge(limit)
	case strings.HasSuffix(name, ".open"):
		return []byte(s), 0o644, nil
	}
	return []byte(s), 0o600, nil
}

func (t tree) glob(pattern string) ([]string, error) {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, name)
		}
	}
	return out, nil
}

func environment(kv ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i+1 < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1], true
			}
		}
		return "", false
	}
}

const secret64 = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="

const bindKey = "key \"ddns.\" {\n\talgorithm hmac-sha512;\n\tsecret \"" + secret64 + "\";\n};\n"

// options reads from files and knows nothing of the machine.
func options(files tree) Options {
	return Options{Env: environment("CREDENTIALS_DIRECTORY", "/run/credentials"), HostName: "ams1", filesystem: files}
}

// example returns a file of the project's examples.
func example(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../config", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parse reads text that has to be right.
func parse(t testing.TB, text string, files ...tree) *Config {
	t.Helper()
	c, err := Parse("/etc/rota/rota.yaml", []byte(text), options(merged(files)))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

func merged(files []tree) tree {
	all := tree{}
	for _, f := range files {
		maps.Copy(all, f)
	}
	return all
}

// problems reads text that has to be wrong and returns what is.
func problems(t testing.TB, text string, files ...tree) []Problem {
	t.Helper()
	c, err := Parse("/etc/rota/rota.yaml", []byte(text), options(merged(files)))
	if err == nil {
		t.Fatalf("accepted:\n%s", text)
	}
	if c != nil {
		t.Fatal("a configuration beside an error")
	}
	all, ok := errors.AsType[*Errors](err)
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	return all.Problems
}

func said(ps []Problem) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%d:%d: %s", p.Line, p.Column, p.Message)
		if p.Hint != "" {
			fmt.Fprintf(&b, " (%s)", p.Hint)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestFullSaysOnlyNotSupportedYet(t *testing.T) {
	files := tree{
		"/etc/rota/ops.token": "opensesame", "/etc/rota/xfr.key": bindKey, "/run/credentials/tsig.key": secret64,
		"/etc/rota/cluster-ca.crt": certPEM, "/etc/rota/agents.crt": certPEM, "/etc/rota/agents.key": keyPEM, "/etc/rota/agents-ca.crt": certPEM,
		"/etc/rota/autodns.pw": "a", "/etc/rota/dynu.token": "b", "/etc/rota/cf.token": "c", "/etc/rota/pdns.key": "d", "/etc/rota/desec.token": "g", "/etc/rota/hook.secret": secret64,
		"/etc/rota/probe.pw": "h", "/etc/rota/probe.crt": certPEM, "/etc/rota/probe.key": keyPEM, "/etc/rota/internal-ca.crt": certPEM,
	}
	o := options(merged([]tree{certificates, files}))
	o.Env = environment("CREDENTIALS_DIRECTORY", "/run/credentials", "ROTA_GRAFANA_TOKEN", "look", "ACME_TSIG", secret64,
		"AUTODNS_USER", "me", "DO_TOKEN", "f")
	_, err := Parse("/etc/rota/rota.yaml", []byte(example(t, "full.yaml")), o)
	all, ok := errors.AsType[*Errors](err)
	if !ok {
		t.Fatalf("got %v, want what is not supported yet", err)
	}
	var got []string
	for _, p := range all.Problems {
		what, _, ok := strings.Cut(p.Message, " is not supported yet")
		if !ok || p.Line == 0 || p.Column == 0 {
			t.Errorf("%s", p)
		}
		got = append(got, what)
	}
	want := []string{
		"metrics: statsd", "api: tls: acme",
		"dns: dot", "dns: doh", "dns: cookies", "dns: rrl", "dns: geoip",
		`zone "lb.example.org": dnssec`, `zone "lb.example.org": transfer`, `zone "lb.example.org": update`,
		`service "shop.example.org": policy: failback`,
		`service "api.lb.example.org": endpoints: place`, `service "api.lb.example.org": endpoints: capacity`,
		`service "api.lb.example.org": endpoints: place`, `service "api.lb.example.org": endpoints: capacity`,
		`service "api.lb.example.org": policy: place`, `service "api.lb.example.org": policy: stay`, `service "api.lb.example.org": policy: best_of`,
		`service "api.lb.example.org": records`,
		"discover (kubernetes)", "discover (dns)", "discover (file)", "maintenance", "notify",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestMinimalExamplesLoad(t *testing.T) {
	c := parse(t, example(t, "min-embedded.yaml"))
	v := c.Spec.Services[0]
	if v.Name != "www.lb.example.org." || v.Zone != "lb.example.org." || !slices.Equal(v.Publish, []string{rota.Embedded}) || v.TTL != 30 {
		t.Errorf("service: %+v", v)
	}
	if len(v.Endpoints) != 2 || v.Endpoints[1].Address != netip.MustParseAddr("192.0.2.11") || v.Endpoints[1].Checks[0].Check.Port != 443 {
		t.Errorf("endpoints: %+v", v.Endpoints)
	}
	want := Zone{
		Name: "lb.example.org.", NS: []rota.Name{"ns1.example.org.", "ns2.example.org."}, MName: "ns1.example.org.", RName: "hostmaster.lb.example.org.",
		Refresh: 7200, Retry: 1800, Expire: 1209600, Minimum: 5, TTL: 3600,
	}
	if d := cmp.Diff(&DNS{Listen: []string{":53"}, Zones: []Zone{want}}, c.DNS); d != "" {
		t.Error(d)
	}
	if err := c.Spec.Validate(); err != nil {
		t.Error(err)
	}

	c = parse(t, example(t, "min-rfc2136.yaml"), tree{"/etc/rota/tsig.key": bindKey})
	p := c.Publishers[0]
	if len(c.Publishers) != 1 || p.Name != "ns1.example.org/example.org" || !slices.Equal(p.RFC2136.Servers, []string{"ns1.example.org:53"}) ||
		!slices.Equal(p.Zones, []rota.Name{"example.org."}) || len(p.RFC2136.Keys) != 1 || p.RFC2136.Keys[0].Name != "ddns." ||
		p.RFC2136.Keys[0].Algorithm != "hmac-sha512." || p.RFC2136.Keys[0].Secret.Reveal() != secret64 {
		t.Errorf("publisher: %+v %+v", p, p.RFC2136)
	}
	v = c.Spec.Services[0]
	k := v.Endpoints[2].Checks[0].Check
	if !slices.Equal(v.Publish, []string{p.Name}) || k.Kind != rota.KindHTTPS || k.Port != 443 || k.Host != "www.example.org" || k.Path != "/health" || k.Timing != rota.DefaultTiming() {
		t.Errorf("service: %+v", v)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
}

// Who is checked is asked under the service's name, under another, or under its own address, which the effective configuration says again.
func TestHostOfAnEndpointItself(t *testing.T) {
	for host, want := range map[string]string{"": "www.lb.test", ", host: shop.test": "shop.test", `, host: "{}"`: ""} {
		text := `services: {www.lb.test: {endpoints: [192.0.2.1], check: {type: http, port: 80` + host + `}, publish: "rfc2136://192.0.2.53/lb.test"}}`
		c := parse(t, text)
		if got := c.Spec.Services[0].Endpoints[0].Checks[0].Check.Host; got != want {
			t.Errorf("host%s: %q, want %q", host, got, want)
		}
		if got := parse(t, string(c.Effective())).Spec.Services[0].Endpoints[0].Checks[0].Check.Host; got != want {
			t.Errorf("host%s: %q after the effective configuration was read, want %q", host, got, want)
		}
	}
}
