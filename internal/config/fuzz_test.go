package config

import (
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, name := range []string{"full.yaml", "min-embedded.yaml", "min-rfc2136.yaml"} {
		f.Add("rota.yaml", []byte(example(f, name)))
	}
	f.Add("rota.yaml", []byte(rich))
	f.Add("rota.json", []byte(`{"node": {"name": "é"}, /* x */ "services": {}}`))
	f.Add("rota.yaml", []byte(with("endpoints: [192.0.2.1, \"http://[::1]:80/\"]\ncheck: {use: a}")+"checks: {a: \"tcp://{}:1\"}"))
	f.Add("rota.yaml", []byte("dns: {zones: {a: {ns: b.c, records: \"@ 1 IN TXT (\\n\"}}}\nx-a: &a [1]\n<<: {b: *a}"))
	f.Add("rota.yaml", []byte(with("endpoints: [192.0.2.1]\nsafety: {on_all_down: fallback, fallback: {cname: www.example.org}}")))
	for _, s := range []string{
		`{election: raft, listen: "[::1]:0", advertise: "[2001:db8::1]:1", join: ["a.b:1", a.b, "*:1"], nodes: a, tls: {cert: node.crt, key: node.key, ca: ca.crt}, raftadmin: "[::1]:1"}`,
		`{election: singleton, join: [], nodes: a}`, `{election: raft, listen: "10.0.0.1:1", join: "10.0.0.1:1"}`,
	} {
		f.Add("rota.yaml", []byte("cluster: "+s))
	}
	for _, s := range []string{
		`{quorum: 3, uplink: {checks: ["icmp://fe80::1%25e", "icmp://[fe80::1%e]", "http://[::1]/a#b"], need: 2}}`,
		`{quorum: 2, of: sites, uplink: {checks: icmp://192.0.2.1}, agents: {accept: {name: a, site: "b c"}}}`,
		`{quorum: 3, agents: {accept: [a, {name: b}], healthagent: {listen: ":1", tls: {cert: node.crt, key: node.key, client_ca: ca.crt}}}}`,
	} {
		f.Add("rota.yaml", []byte("vantage: "+s))
	}
	for _, s := range []string{
		`{type: rfc2136, servers: a, keys: [k, k], zones: [auto, b], proof: {servers: [auto, a], within: 1}}`, `{type: rfc2136, servers: [a], proof: off, zone: a, zones: auto}`,
		`{type: exec, command: [a/b, "\0"], mode: simple}`, `{type: exec, command: a}`, `{type: nsupdate, command: "a b", servers: a, dialect: knsupdate}`,
		`{type: route53, url: "http://a/?b#c", access_key: x, role: "arn:aws:iam::1:role/a"}`, `{type: cloudflare, token: ${X}, url: "http://u:p@[::1/"}`,
		`{type: webhook, url: "http://10.0.0.1", secret: {file: base}}`, `{type: zonefile, path: a, zone: .}`, `{type: mockjson, zones: [a], state: b}`,
	} {
		f.Add("rota.yaml", []byte("publish: {p: "+s+"}\nownership: {registry: txt, prefix: a-}\nservices: {a.b: {endpoints: [192.0.2.1], publish: p}}"))
	}
	for _, s := range []string{
		`{type: register, host_name: "{host}", service_name: "{service}.a", publish: p}`, `{type: register, host_name: "{id}x{env}", also: {host_record: "{env}.b"}, networks: [::1/128, 192.0.2.1]}`,
		`{type: register, host_name: "a{service}", service_name: "{service}.b", also: {ptr: auto}, publish: dns}`, `{type: register, service_name: "{", host_name: "}"}`,
		`{type: register, host_name: "{host}", also: {host_record: "{host}", ptr: [{zone: ip6.arpa, publish: p}, b]}, checks: [{type: tls, port: 1}, "http://{}/"], publish: p}`,
	} {
		f.Add("rota.yaml", []byte("publish: {p: {type: mock, zones: z}}\ndns: {zones: {b: {ns: a}}}\ndiscover: ["+s+"]\n"))
	}
	files := tree{"tsig.key": bindKey, "base": secret64, "/etc/rota/tsig.key": bindKey, "t": "token"}
	for name, text := range certificates {
		files[name], files[filepath.Base(name)] = text, text
	}
	for name, text := range maps.Clone(files) { // what checks name becomes an absolute path
		if path, err := filepath.Abs(name); err == nil {
			files[path] = text
		}
	}
	for _, s := range []string{
		`{type: http, json: {/a: "< 90", "/b~0": ~, "": "null"}, auth: {user: a, password: {file: t}}, drain_header: "-"}`, `{type: https, client_cert: node.crt, client_key: {file: node.key}, ca: {env: X}}`,
		`{type: node_exporter, rules: [cpu, "net(a)"], on_error: down, ping: false}`, `{type: node_exporter, rules: {'a_b{c="d"}': "!= 1"}}`, `dns://{}/a.b`, `{type: dns, query: ., rcode: [REFUSED]}`,
		`grpcs://{}:1/a`, `{type: exec, command: [a, "{}"]}`, `agent-check://{}:1`, `{type: agent, max_age: 1s}`, `{type: tcp, port: 1, watch: true, slow_interval: 1h}`,
	} {
		f.Add("rota.yaml", []byte(with("endpoints: [{address: 192.0.2.1, agent: a}]\ndisabled: true\npolicy: {slow_start: 1m}\ncheck: "+s)))
	}
	if _, err := Parse("rota.yaml", []byte(rich), options(files)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		if len(text) > 1<<16 {
			return
		}
		o := options(files)
		c, err := Parse(name, text, o)
		if err == nil {
			if c == nil {
				t.Fatal("neither a configuration nor an error")
			}
			spec := c.Spec
			if c.Cluster.Election == Raft { // the other nodes, whom the file does not know
				spec.Quorum.Need = "any"
			}
			if err := spec.Validate(); err != nil {
				t.Fatalf("the hub refuses what was accepted: %v\n%s", err, text)
			}
			_, err := Parse(filepath.Join(filepath.Dir(name), "rota.yaml"), c.Effective(), o)
			if err != nil && !strings.Contains(err.Error(), hidden) && !strings.Contains(err.Error(), "base64") && !strings.Contains(err.Error(), "no such file") {
				t.Fatalf("effective configuration is refused: %v\n%s", err, c.Effective())
			}
			return
		}
		all, ok := errors.AsType[*Errors](err)
		if c != nil || !ok || len(all.Problems) == 0 {
			t.Fatalf("%v beside %v", c, err)
		}
		for _, p := range all.Problems {
			if p.Message == "" || p.File == "" && name != "" {
				t.Fatalf("%+v", p)
			}
			if s := p.String(); strings.ContainsAny(strings.ReplaceAll(s, "\n", ""), "\x00\x1b\r") {
				t.Fatalf("control characters in %q", s)
			}
		}
	})
}
