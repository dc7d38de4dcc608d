package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// with puts a service's lines into a configuration that is right otherwise.
func with(lines string) string {
	return "dns: {zones: {example.org: {ns: [ns.example.net]}}}\nservices:\n  www.example.org:\n    " + strings.ReplaceAll(lines, "\n", "\n    ") + "\n"
}

func TestBadInput(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		// YAML
		{"duplicate key", "node: {name: a, name: b}", `1:17: key "name" stands twice in one map: first at line 1`},
		{"duplicate service", "services: {a.example.org: {endpoints: [192.0.2.1], publish: b}, A.Example.ORG.: {endpoints: [192.0.2.1], publish: b}}\npublish: {b: {type: rfc2136, servers: 192.0.2.53}}", `1:65: service "a.example.org" stands twice`},
		{"tab", "node:\n\tname: x\n", "2:1: a tab indents this line (YAML wants spaces)"},
		{"nul", "node: a\x00\n", "1:8: NUL byte"},
		{"bad utf-8", "node: {name: \xff}", "1:14: byte 0xff is not UTF-8"},
		{"utf-16", "\xff\xfea\x00", "is UTF-16; save it as UTF-8"},
		{"carriage return", "a: 1\rb: 2", "carriage return without a line feed"},
		{"two documents", "node: {}\n---\nnode: {}\n", "expected single document"},
		{"unclosed", "node: [a\nlog: b\n", "2:"},
		{"empty", "", "is empty; it needs at least services:"},
		{"comments only", "# nothing\n", "is empty; it needs at least services:"},
		{"a list", "- a\n", "a configuration is a map"},
		{"depth", "x-a: " + strings.Repeat("[", 10000) + strings.Repeat("]", 10000), "more than 100 levels of nesting"},
		{"json depth", "{\"x-a\": " + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + "}", "more than 100 levels of nesting"},
		{"tag", "node: !!binary aGk=", "tag !!binary is not used here"},
		{"self alias", "x-a: &a [*a]", "contains itself"},
		{"no value", "services:", "1:10: services has no value"},
		// words that look like others
		{"NO", "dns: {cookies: NO, zones: {}}", `1:16: dns: cookies "NO": want true or false (write true or false)`},
		{"octal", with("endpoints: [{address: 192.0.2.1, weight: 010}]"), "010 has a leading zero, which some read as octal: write 10"},
		{"1e3", with("ttl: 1e3\nendpoints: [192.0.2.1]"), `"1e3" is no TTL`},
		{"float", with("ttl: 1.5\nendpoints: [192.0.2.1]"), `"1.5" is no TTL`},
		{"hex", with("endpoints: [{address: 192.0.2.1, weight: 0x10}]"), `"0x10" is no whole number`},
		{"no unit", "defaults: {interval: 10}", `"10" has no unit: write 10s`},
		{"no percent", "safety: {fail_open_below: 50}", "50 has no percent sign"},
		{"percent", "safety: {fail_open_below: 101%}", "out of range"},
		// numbers
		{"ttl below", with("ttl: -1\nendpoints: [192.0.2.1]"), "-1 is out of range: want 0 to 2147483647"},
		{"ttl above", with("ttl: 2147483648\nendpoints: [192.0.2.1]"), "2147483648 is out of range"},
		{"ttl far above", with("ttl: 99999999999999999999\nendpoints: [192.0.2.1]"), "out of range"},
		{"weight", with("endpoints: [{address: 192.0.2.1, weight: -1}]"), "-1 is out of range"},
		{"weight 2^63", with("endpoints: [{address: 192.0.2.1, weight: 9223372036854775808}]"), "out of range"},
		{"weight NaN", with("endpoints: [{address: 192.0.2.1, weight: .nan}]"), `".nan" is no whole number`},
		{"interval 0", "defaults: {interval: 0s}", "0s is out of range"},
		{"interval 1ns", "defaults: {interval: 1ns}", "1ns is out of range"},
		{"interval ten years", "defaults: {interval: 3650d}", "out of range"},
		{"interval eternal", "defaults: {interval: 99999999999999999999999d}", "longer than ten years"},
		{"fall", "defaults: {fall: 0}", "0 is out of range: want 1 to 1000"},
		{"min_published", "safety: {min_published: 0}", "0 is out of range"},
		{"port 0", with("endpoints: [192.0.2.1]\ncheck: tcp://{}:0"), "port 0 is out of range"},
		{"port 65536", with("endpoints: [192.0.2.1]\ncheck: tcp://{}:65536"), "port 65536 is out of range"},
		{"server port", "publish: {b: {type: rfc2136, servers: \"a:0\"}}", "port 0 is out of range"},
		// addresses
		{"0.0.0.0", with("endpoints: [0.0.0.0]"), "unspecified address"},
		{"::", with("endpoints: [\"::\"]"), "unspecified address"},
		{"multicast", with("endpoints: [224.0.0.1]"), "multicast"},
		{"multicast 6", with("endpoints: [\"ff02::1\"]"), "multicast"},
		{"broadcast", with("endpoints: [255.255.255.255]"), "broadcast"},
		{"leading zero", with("endpoints: [010.1.1.1]"), "010.1.1.1 has a leading zero"},
		{"three parts", with("endpoints: [1.2.3]"), "want four parts"},
		{"hex parts", with("endpoints: [0x7f.1]"), `"0x7f.1" is no address`},
		{"network", with("endpoints: [192.0.2.0/24]"), "192.0.2.0/24 is a network"},
		{"mapped", with("endpoints: [\"::ffff:1.2.3.4\"]"), "write 1.2.3.4"},
		{"encoded zone", with("endpoints: [\"fe80::1%25eth0\"]"), "write %eth0"},
		{"empty zone", with("endpoints: [\"fe80::1%\"]"), "is empty"},
		{"zone on global", with("endpoints: [\"2001:db8::1%eth0\"]"), "only link-local"},
		{"with port", with("endpoints: [\"[::1]:80\"]"), "has a port"},
		{"name", with("endpoints: [web.example.org]"), "names are not looked up"},
		{"twins", with("endpoints: [\"2001:db8::1\", \"2001:DB8:0::0:1\"]"), "endpoint 2001:db8::1 stands twice: first at line 4"},
		// names
		{"empty name", "services: {\"\": {endpoints: [192.0.2.1]}}", "empty domain name"},
		{"root", "services: {.: {endpoints: [192.0.2.1]}}", "the root is no name"},
		{"dots", "services: {a..b: {endpoints: [192.0.2.1]}}", "empty label"},
		{"leading dot", "services: {.a.b: {endpoints: [192.0.2.1]}}", "empty label"},
		{"label 64", "services: {" + strings.Repeat("a", 64) + ".b: {endpoints: [192.0.2.1]}}", "label of 64 octets"},
		{"name 256", "services: {" + strings.Repeat(strings.Repeat("a", 49)+".", 5) + "example.org: {endpoints: [192.0.2.1]}}", "the limit is 255"},
		{"star inside", "services: {a.*.b: {endpoints: [192.0.2.1]}}", `holds "*"`},
		{"hyphen", "services: {-a.example.org: {endpoints: [192.0.2.1]}}", "hyphen"},
		{"space", "services: {a b.example.org: {endpoints: [192.0.2.1]}}", "contains a space"},
		{"escaped", "services: {'a\\.b.example.org': {endpoints: [192.0.2.1]}}", "hosts have letters"},
		{"bad A-label", "services: {xn--zz.example.org: {endpoints: [192.0.2.1]}}", "no valid"},
		{"empty A-label", "services: {xn--.example.org: {endpoints: [192.0.2.1]}}", "empty label"},
		{"RTL mark", "services: {\"a\\u200f.example.org\": {endpoints: [192.0.2.1]}}", "no valid"},
		{"outside", "dns: {zones: {example.org: {ns: [a.b]}}}\nservices: {www.evilexample.org: {endpoints: [192.0.2.1]}}", "in no zone under dns.zones (example.org)"},
		{"nobody", "services: {www.example.org: {endpoints: [192.0.2.1]}}", "is published by nobody"},
		// keys and references
		{"unknown key", with("endpoints: [192.0.2.1]\ntll: 30s"), `5:5: unknown key "tll" in service "www.example.org" (did you mean "ttl"?)`},
		{"unknown check", with("endpoints: [192.0.2.1]\ncheck: wbe") + "checks: {web: {type: http}}", `unknown check "wbe" (did you mean "web"?)`},
		{"unknown publisher", with("endpoints: [192.0.2.1]\npublish: bnid") + "publish: {bind: {type: rfc2136, servers: a}}", `unknown publisher "bnid" (did you mean "bind"?)`},
		{"unknown kind", "checks: {web: {type: htps}}", `did you mean "https"?`},
		{"unknown tsig key", with("endpoints: [192.0.2.1]\npublish: b") + "publish: {b: {type: rfc2136, servers: a, key: dnds}}\nkeys: {ddns: {secret: {file: k}}}", `unknown key "dnds" (did you mean "ddns"?)`},
		{"both", with("endpoints: [192.0.2.1]\ncheck: a\nchecks: [a]"), "both check and checks"},
		{"wrong key of a kind", "checks: {a: {type: tcp, path: /}}", `unknown key "path" in check "a" (tcp)`},
		{"use with wrong key", with("endpoints: [192.0.2.1]\ncheck: {use: a, path: /}") + "checks: {a: {type: tcp, port: 1}}", "a check of type tcp has no path"},
		{"fixed place", with("endpoints: [192.0.2.1]\ncheck: https://www.example.org/"), "asked of one fixed place"},
		{"scheme", with("endpoints: [192.0.2.1]\ncheck: htp://{}/"), `did you mean "http"?`},
		{"no port", with("endpoints: [192.0.2.1]\ncheck: tcp://{}"), "wants a port"},
		{"userinfo", with("endpoints: [192.0.2.1]\ncheck: http://u:p@{}/"), "no user and password"},
		{"authorization", "checks: {a: {type: http, header: {Authorization: hush}}}", "write auth:"},
		{"regexp", "checks: {a: {type: http, body: '('}}", "malformed regular expression"},
		{"role", "checks: {a: {type: http, role: observ}}", `did you mean "observe"?`},
		{"publish dns", "publish: {dns: {type: rfc2136, servers: a}}", "cannot be defined"},
		// things that contradict each other
		{"timeout", "checks:\n  web: {type: http, interval: 5s, timeout: 10s}\n" + with("endpoints: [192.0.2.1]\ncheck: web"), `2:44: check "web": timeout 10s is not below interval 5s`},
		{"fast interval", "checks:\n  web: {type: http, interval: 5s, fast_interval: 10s}\n" + with("endpoints: [192.0.2.1]\ncheck: web"), "fast_interval 10s is not below interval 5s"},
		{"quorum", "vantage: {quorum: 2}", "1:19: quorum 2 is larger than the 1 configured vantages"},
		{"quorum 0", "vantage: {quorum: 0}", "want any, majority"},
		{"fallback missing", "safety: {on_all_down: fallback}", "wants fallback: {cname: NAME}"},
		{"fallback to itself", with("endpoints: [192.0.2.1]\nsafety: {on_all_down: fallback, fallback: {cname: WWW.example.org.}}"), `3:3: service "www.example.org" falls back to itself: www.example.org → www.example.org`},
		{"fallback of all", "safety: {on_all_down: fallback, fallback: {cname: www.example.org}}\n" + with("endpoints: [192.0.2.1]"), "www.example.org → www.example.org"},
		{"fallback loop", with("endpoints: [192.0.2.1]\nsafety: {on_all_down: fallback, fallback: {cname: b.example.org}}") +
			"  b.example.org: {endpoints: [192.0.2.2], safety: {on_all_down: fallback, fallback: {cname: c.example.org}}}\n" +
			"  c.example.org: {endpoints: [192.0.2.3], safety: {on_all_down: fallback, fallback: {cname: b.example.org}}}\n", "falls back to itself: b.example.org → c.example.org → b.example.org"},
		{"fallback at apex", "dns: {zones: {example.org: {ns: [a.b]}}}\nservices: {example.org: {endpoints: [192.0.2.1], safety: {on_all_down: fallback, fallback: {cname: b.c}}}}", "can be no CNAME"},
		{"minimum", "dns: {zones: {example.org: {ns: [a.b], soa: {minimum: 1h}}}}\nservices: {www.example.org: {endpoints: [192.0.2.1]}}", "1:55: zone example.org: minimum 1h is above the TTL 30s of service www.example.org"},
		{"no ns", "dns: {zones: {example.org: {}}}", "zone example.org has no name servers (write ns: [NAME])"},
		{"no zones", "dns: {}", "dns has no zones"},
		{"zone twice", "dns: {zones: {example.org: {ns: [a.b]}, example.org.: {ns: [a.b]}}}", "zone example.org stands twice"},
		{"service of a publisher's other zone", with("endpoints: [192.0.2.1]\npublish: rfc2136://a/example.net"), "is not in zone example.net"},
		{"not supported", "cluster: {election: kubernetes}", "election is not supported yet: kubernetes"},
		{"max change", "safety: {max_change: {records: 40}}", "1:32: safety: max_change: records: 40 has no percent sign"},
		{"max change per", "safety: {max_change: {per: 25h}}", "25h is out of range: want 1s to 1d"},
		{"max change min records", "safety: {max_change: {min_records: -1}}", "-1 is out of range"},
		{"max change key", "safety: {max_change: {record: 40%}}", `did you mean "records"?`},
		{"max change alone", "safety: {max_change: 40%}", "max_change is a value: want a map"},
		{"max sites", "safety: {max_sites: -1}", "1:21: safety: max_sites: -1 is out of range: want 0 to 10000"},
		{"version", "version: 2", "out of range"},
		{"json comma", "{\"node\": {\"name\": 1,,}}", "1:"},
		{"variable", "node: {name: \"${NOPE}\"}", "environment variable NOPE is not set"},
		{"variable form", "node: {name: \"${NO PE}\"}", "malformed variable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ps := problems(t, c.in)
			if !strings.Contains(said(ps), c.want) {
				t.Errorf("got\n%swant %s", said(ps), c.want)
			}
		})
	}
}

func TestAllowed(t *testing.T) {
	for name, in := range map[string]string{
		"bom, crlf":          "\ufeff" + strings.ReplaceAll(with("endpoints: [192.0.2.1]"), "\n", "\r\n"),
		"underscore":         with("_why: because\nx-note: {a: [1]}\nendpoints: [192.0.2.1]"),
		"merge key":          "x-web: &w {ttl: 10s}\n" + with("<<: *w\nendpoints: [192.0.2.1]"),
		"json with comments": "{\n// why\n\"dns\": {\"zones\": {\"example.org\": {\"ns\": [\"a.b\"]}}}, /* and */ \"services\": {\"a.example.org\": {\"endpoints\": [\"192.0.2.1\"]},},\n}",
		"defaults only said": "cluster: {election: singleton}\nsafety: {max_change: {records: 30%, per: 600s, min_records: 10}}\nownership: {registry: none, prefix: _rota.}\n" + with("policy: {failback: auto}\nendpoints: [192.0.2.1]"),
		"unused, later kind": "checks: {n: {type: node_exporter, rules: {cpu: \"< 90%\"}}}\npublish: {r: {type: route53}}\n" + with("endpoints: [192.0.2.1]"),
		"inherited timeout":  "defaults: {timeout: 3s}\n" + with("interval: 1s\nendpoints: [192.0.2.1]\ncheck: http://{}/"),
		"x-ray is a host":    "dns: {zones: {example.org: {ns: [a.b]}}}\nservices: {x-ray.example.org: {endpoints: [192.0.2.1]}}",
		"wildcard":           "dns: {zones: {example.org: {ns: [a.b]}}}\nservices: {\"*.example.org\": {endpoints: [192.0.2.1], check: \"https://{}/\"}}",
	} {
		t.Run(name, func(t *testing.T) {
			c := parse(t, in)
			if len(c.Spec.Services) != 1 {
				t.Errorf("%d services", len(c.Spec.Services))
			}
		})
	}
}

func TestInternationalNames(t *testing.T) {
	c := parse(t, "dns: {zones: {Bücher.example: {ns: [ns.example.net]}}}\nservices: {www.bücher.example: {endpoints: [192.0.2.1], check: \"https://{}/\"}}")
	v := c.Spec.Services[0]
	if v.Name != "www.xn--bcher-kva.example." || v.Zone != c.DNS.Zones[0].Name || v.Endpoints[0].Checks[0].Check.Host != "www.xn--bcher-kva.example" {
		t.Errorf("%+v", v)
	}
}

func TestEveryErrorAtOnce(t *testing.T) {
	ps := problems(t, "node: {nam: x}\nlog: {level: loud}\nservices:\n  www.example.org: {endpoints: [1.2.3, 0.0.0.0], publish: x, ttl: 1.5}\nkeys: {a: {}}\n")
	if len(ps) != 7 {
		t.Errorf("got %d:\n%s", len(ps), said(ps))
	}
}

func TestHowErrorsLook(t *testing.T) {
	_, err := Parse("/etc/rota/rota.yaml", []byte("publish: {b: {type: rfc2136, servers: a}}\nservices:\n  www.example.org:\n    endpoints: [192.0.2.10]\n    publish: b\n    tll: 30s\n"+
		"defaults: {interval: 5s, timeout: 10s}\nchecks: {ä: {tüpe: http}}\n"), options(nil))
	want := `/etc/rota/rota.yaml:6:5: unknown key "tll" in service "www.example.org" (did you mean "ttl"?)
    5 |     publish: b
    6 |     tll: 30s
      |     ^^^
/etc/rota/rota.yaml:8:13: check "ä" has no type: want http, https, tcp, tls, icmp, node_exporter, dns, grpc, exec, agent-check or agent (did you mean "type" by "tüpe"?)
    7 | defaults: {interval: 5s, timeout: 10s}
    8 | checks: {ä: {tüpe: http}}
      |             ^
2 errors`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestLargeConfigurations(t *testing.T) {
	var b strings.Builder
	b.WriteString("dns: {zones: {example.org: {ns: [a.b]}}}\ndefaults: {ttl: 5s}\nservices:\n")
	for i := range 100_000 {
		fmt.Fprintf(&b, "  s%d.example.org: {endpoints: [192.0.2.1], check: \"tcp://{}:%d\"}\n", i, 1+i%65535)
	}
	start := time.Now()
	c := parse(t, b.String())
	t.Logf("100,000 services, %d bytes: %v", b.Len(), time.Since(start))
	if len(c.Spec.Services) != 100_000 {
		t.Error(len(c.Spec.Services))
	}
	ps := problems(t, "x-a: '"+strings.Repeat("x", maxConfig)+"'")
	if !strings.Contains(said(ps), "more than 16 MiB") {
		t.Error(said(ps))
	}
	bomb := "x-a: &a [x,x,x,x,x,x,x,x,x]\n"
	for r := 'b'; r < 'm'; r++ {
		bomb += fmt.Sprintf("x-%c: &%c [%s]\n", r, r, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", r-1), 9), ","))
	}
	if ps := problems(t, bomb); !strings.Contains(said(ps), "aliases bring more than") {
		t.Error(said(ps))
	}
}

func TestInclude(t *testing.T) {
	main := "include: [conf.d/*.yaml]\nservices: {a.example.org: {endpoints: [192.0.2.1], publish: b, labels: {x: \"1\"}}}\n"
	files := tree{
		"/etc/rota/conf.d/1.yaml":     "publish: {b: {type: rfc2136, servers: [192.0.2.53]}}\nservices: {a.example.org: {endpoints: [192.0.2.2], labels: {y: \"2\"}}}\n",
		"/etc/rota/conf.d/2.yaml":     "include: sub/*.json\n",
		"/etc/rota/conf.d/sub/3.json": `{"services": {"b.example.org": {"endpoints": ["192.0.2.3"], "publish": "b"}}}`,
	}
	c := parse(t, main, files)
	if len(c.Spec.Services) != 2 || len(c.Spec.Services[0].Endpoints) != 2 || len(c.Spec.Services[0].Labels) != 2 || len(c.Files) != 4 {
		t.Errorf("%+v %v", c.Spec.Services, c.Files)
	}
	for name, f := range map[string]struct {
		files tree
		want  string
	}{
		"scalar twice": {tree{"/etc/rota/conf.d/1.yaml": "services: {a.example.org: {publish: c}}"}, "services.a.example.org.publish is set twice: first at /etc/rota/rota.yaml:2:61"},
		"kinds differ": {tree{"/etc/rota/conf.d/1.yaml": "services: [a]"}, "services is a list here and a map at /etc/rota/rota.yaml:2:11"},
		"loop":         {tree{"/etc/rota/conf.d/1.yaml": "include: ../conf.d/1.yaml"}, "includes itself"},
		"twice":        {tree{"/etc/rota/conf.d/1.yaml": "include: 2.yaml", "/etc/rota/conf.d/2.yaml": "node: {name: a}"}, "is included twice"},
		"missing":      {tree{"/etc/rota/conf.d/1.yaml": "include: nope.yaml"}, "no such file"},
		"error inside": {tree{"/etc/rota/conf.d/1.yaml": "\nnod: {}"}, `2:1: unknown key "nod"`},
	} {
		if ps := problems(t, main, f.files); !strings.Contains(said(ps), f.want) {
			t.Errorf("%s: got\n%swant %s", name, said(ps), f.want)
		}
	}
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 100<<20); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "is no regular file", dir: "is a directory", filepath.Join(dir, "none"): "no such file", "/dev/zero": "is no regular file", huge: "larger than 16 MiB",
	} {
		if _, err := Load(path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
	good := filepath.Join(dir, "rota.yaml")
	if err := os.WriteFile(good, []byte("dns: {zones: {example.org: {records: {file: zone}}}}\nservices: {www.example.org: {endpoints: [192.0.2.1]}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "zone"), []byte("$TTL 1h\n@ SOA ns1 ops 5 1h 10m 1w 3600\n@ NS ns1\nns1 A 192.0.2.53\nmail 60 MX 5 ns1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(good, Options{})
	if err != nil {
		t.Fatal(err)
	}
	z := c.DNS.Zones[0]
	want := []rota.RRset{
		{Name: "mail.example.org.", Type: rota.TypeMX, TTL: 60, Data: []string{"5 ns1.example.org."}},
		{Name: "ns1.example.org.", Type: rota.TypeA, TTL: 3600, Data: []string{"192.0.2.53"}},
	}
	if d := cmp.Diff(want, z.Records); d != "" || z.NS[0] != "ns1.example.org." || z.RName != "ops.example.org." || z.Refresh != 3600 {
		t.Errorf("%s %+v", d, z)
	}
}
