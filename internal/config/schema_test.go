package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v4"
)

func judge(t *testing.T) func(text string) error {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(text string) error {
		var v any
		if err := yaml.Load([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		return r.Validate(v)
	}
}

func TestSchemaAcceptsTheExamples(t *testing.T) {
	accepts := judge(t)
	for _, name := range []string{"full.yaml", "min-embedded.yaml", "min-rfc2136.yaml"} {
		if err := accepts(example(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := accepts(rich); err != nil {
		t.Errorf("rich: %v", err)
	}
}

func TestSchemaAgreesWithTheReader(t *testing.T) {
	accepts := judge(t)
	for _, text := range []string{
		"servces: {}",
		"services: {a.example.org: {endpoints: [192.0.2.1], tll: 30s}}",
		"services: {a.example.org: {endpoint: [192.0.2.1]}}",
		"services: {a.example.org: {ttl: 30s}}",
		"checks: {web: {type: htps}}",
		"checks: {web: {type: tcp, path: /}}",
		"defaults: {interval: 10}",
		"defaults: {fall: 0}",
		"log: {level: loud}",
		"safety: {fail_open_below: 50}",
		"publish: {b: {type: rfc2136}}",
		"dns: {listen: ':53'}",
		"api: {tokens: [{name: a, role: boss, token: {env: X}}]}",
		"vantage: {max_age: soon}",
		"vantage: {agents: {accept: ['a b']}}",
		"vantage: {agents: {accept: [{site: x}]}}",
		"vantage: {agents: {healthagent: {listen: ':1'}}}",
		"vantage: {uplink: {need: 1}}",
		"cluster: {election: rafft}",
		"cluster: {join: {a: b}}",
		"services: [a]",
	} {
		if accepts(text) == nil {
			t.Errorf("the schema accepts %s", text)
		}
		problems(t, text)
	}
	for _, text := range []string{
		"{_note: anything, x-y: [1], services: {_comment: hello, a.example.org: {_x: 1, endpoints: [192.0.2.1], publish: b, ttl: 30}}, " +
			"publish: {b: {type: rfc2136, servers: 192.0.2.53}}}",
		"{cluster: {election: raft, join: \"10.0.0.2:3648\", raftadmin: \"\"}, vantage: {uplink: {checks: icmp://192.0.2.1}, agents: {accept: foo}}}",
		"{dns: {zones: {example.org: {ns: ns.example.net}}}, services: {a.example.org: {endpoints: [\"http://192.0.2.1:80/\"], check: {use: web, interval: 20s}}}, " +
			"checks: {web: {type: http, status: [200, 204, 300-399], follow: false}}}",
	} {
		if err := accepts(text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
		parse(t, text)
	}
}

func TestSchemaFileIsUpToDate(t *testing.T) {
	path := filepath.Join("../../config/rota.schema.json")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(got), string(Schema())); d != "" {
		t.Errorf("config/rota.schema.json is not what rota schema writes; run UPDATE=1 go test ./internal/config\n%s", d)
	}
}

func TestEffectiveReadsBack(t *testing.T) {
	files := merged([]tree{certificates, {"/etc/rota/tsig.key": bindKey, "/etc/rota/base": secret64, "/etc/rota/t": "token"}})
	for name, text := range map[string]string{
		"embedded": example(t, "min-embedded.yaml"), "rfc2136": example(t, "min-rfc2136.yaml"), "rich": rich,
	} {
		c := parse(t, text, files)
		out := c.Effective()
		again, err := Parse("/etc/rota/rota.yaml", out, options(files))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if d := cmp.Diff(string(out), string(again.Effective())); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		// An inline check is named by what it asks; the question itself has to be the same.
		for _, s := range []*Config{c, again} {
			for i := range s.Spec.Registers {
				for k := range s.Spec.Registers[i].Endpoint.Checks {
					s.Spec.Registers[i].Endpoint.Checks[k].Check.Name = ""
				}
			}
			for i := range s.Spec.Services {
				for j := range s.Spec.Services[i].Endpoints {
					for k := range s.Spec.Services[i].Endpoints[j].Checks {
						s.Spec.Services[i].Endpoints[j].Checks[k].Check.Name = ""
					}
				}
			}
		}
		if d := cmp.Diff(c.Spec, again.Spec, addresses); d != "" {
			t.Errorf("%s: spec: %s", name, d)
		}
		if d := cmp.Diff(c.DNS, again.DNS); d != "" {
			t.Errorf("%s: dns: %s", name, d)
		}
		for part, d := range map[string]string{
			"cluster": cmp.Diff(c.Cluster, again.Cluster), "agents": cmp.Diff(c.Agents, again.Agents),
			"healthagent": cmp.Diff(c.Healthagent, again.Healthagent), "uplink": cmp.Diff(c.Uplink, again.Uplink, addresses),
			"publishers": cmp.Diff(c.Publishers, again.Publishers, secrets), "ownership": cmp.Diff(c.Ownership, again.Ownership),
		} {
			if d != "" {
				t.Errorf("%s: %s: %s", name, part, d)
			}
		}
	}
}

var secrets = cmp.Comparer(func(a, b Secret) bool { return a == b })

var addresses = cmp.Comparer(func(a, b interface {
	String() string
	IsValid() bool
},
) bool {
	return a == b
})

// rich uses every supported key.
const rich = `
node: {name: ams1, site: ams, data_dir: data}
log: {level: warn, format: json, file: /var/log/rota}
metrics: {prometheus: {path: /prom}}
api: {listen: "[::1]:8081", dashboard: {anonymous: none}, tokens: [{name: ops, role: admin, token: {file: t}}]}
cluster:
  election: raft
  listen: "[::]:3649"
  advertise: AMS1.example.org:3649
  join: ["10.0.0.2:3648", "[2001:db8::2]:3648"]
  tls: {cert: node.crt, key: node.key, ca: ca.crt}
  nodes: [fra1, ams1]
  raftadmin: "localhost:3650"
vantage:
  quorum: any
  of: sites
  max_age: 1m
  uplink: {checks: ["icmp://192.0.2.1", "tcp://[2001:db8::1]:443", "https://198.51.100.1/up?x=1", "icmp://[fe80::1%eth0]"], need: 2}
  agents:
    accept: [foo, {name: baz, site: "New York"}, bar]
    healthagent: {listen: ":3443", tls: {cert: node.crt, key: node.key, client_ca: ca.crt}}
dns:
  listen: [":53"]
  zones:
    lb.example.org:
      ns: [ns1.example.org]
      ttl: 2h
      soa: {mname: ns9.example.org, rname: ops.team@example.org, refresh: 1h, retry: 600, expire: 7d, minimum: 3}
      records: |
        @      3600 IN MX 10 MAIL.example.org.
        txt    TXT "a $${x} b" ( "c" )
               A 192.0.2.77
        _s._tcp 60 SRV 1 2 3 host
    2.0.192.in-addr.arpa: {ns: ns1.example.org}
keys:
  k: {file: tsig.key}
  k2: {algorithm: hmac-sha256, secret: {file: base}}
publish:
  b: {type: rfc2136, servers: [192.0.2.53, "[2001:db8::53]:5353", ns.example.org], key: k, transport: tcp, zone: example.org}
  keys: {type: rfc2136, servers: 192.0.2.53, keys: [k2, k], zones: [example.org, b.example.org], zone_transfer: off, plain_reads: true, max_records: 7,
    dry_run: true, min_gap: 100ms, read_every: 10m, proof: {servers: [192.0.2.53, "ns.example.net:5353"], resolvers: 192.0.2.9, within: 1m, every: 1h}}
  ns: {type: nsupdate, command: /usr/bin/knsupdate, servers: 192.0.2.53, key: k, timeout: 3s, proof: off}
  kns: {type: knsupdate, command: [knsupdate, -t, "3"], servers: 192.0.2.53, key: k}
  pdns: {type: powerdns, url: "http://127.0.0.1:8081/", token: {file: t}, server_id: other, zones: [example.org]}
  autodns: {type: autodns, user: {file: t}, password: {file: t}, context: 1, url: "https://api.demo.autodns.com/v1"}
  dynu: {type: dynu, token: {file: t}}
  do: {type: digitalocean, token: {file: t}, url: "http://192.0.2.8/v2", insecure: true}
  cf: {type: cloudflare, token: {file: t}, proxied: on, min_ttl: 30}
  r53: {type: route53, role: "arn:aws:iam::123456789012:role/path/rota", region: eu-central-1, wait: none, profile: dns}
  keyed: {type: route53, access_key: {file: t}, secret_key: {file: t}, zone_id: Z0123456789, private: true}
  desec: {type: desec, token: {file: t}}
  hook: {type: webhook, url: "https://hooks.example.org/dns/$${y}", secret: {file: base}, signed: true, timeout: 20s}
  script: {type: exec, command: [/usr/local/lib/rota/update, "-v", "$${x}"], timeout: 1m}
  simple: {type: exec, command: [update], mode: simple, servers: [192.0.2.53]}
  edns: {type: external-dns-webhook, url: "http://[::1]:8888"}
  file: {type: zonefile, path: lb.zone, zone: example.org, reload: [nsd-control, reload, example.org], timeout: 5s}
  mock: {type: mock, zones: zones.yaml}
  mocked: {type: mockjson, zones: zones.yaml, state: state.json}
ownership: {owner: me, registry: txt, prefix: a._r-}
safety: {min_published: 2, fail_open_below: 12.5%, min_hold: 1m, on_all_down: all, max_change: {records: 12.5%, per: 1h, min_records: 0}, max_sites: 1}
checks:
  web: {type: https, port: 8443, path: "/h?x=1", host: w.example.org, status: [204, 200-201, 3xx], body: "ok|$${y}", header: {X-A: "1"}, expect_header: {Server: "^n"},
    method: OPTIONS, follow: same, max_body: 1000, server_name: s.example.org, verify: ca, cert_days: 7, interval: 20s, timeout: 4s, fast_interval: 2s, fall: 4, rise: 3}
  ping: {type: icmp, count: 3, loss: 5%, role: observe}
  t: {type: tls, port: 853, verify: none, send: "a\r\n", expect: "^b"}
  api: {type: https, method: POST, data: "{}", json: {/a~1b: ok, /b: "< 1e3", /c: "9", /d: 9, /e: "true", /f: false, /g: ~, "": "$${z}"}, auth: {user: me, password: {file: t}},
    client_cert: node.crt, client_key: {file: node.key}, ca: ca.crt, http2: true, drain_header: "-", slow_interval: 1h}
  kept: {type: http, reuse: true, watch: true}
  node: {type: node_exporter, rules: [net(eth0), cpu, all], on_error: down, ping: false, port: 9101, path: /m}
  disk: {type: node_exporter, rules: {'node_filesystem_avail_bytes{mountpoint="/"}': "> 1GiB"}}
  names: {type: dns, query: a.example.net, query_type: SOA, rcode: [NXDOMAIN, NOERROR], transport: tcp, recurse: true, expect: x}
  cart: {type: grpc, port: 1, service: a.B, tls: true, server_name: c.d, auth: {bearer: {file: t}}}
  plugin: {type: exec, command: [/bin/check, "{}", "$${a} b"]}
  weights: {type: agent-check, port: 2, send: "hi\n"}
  said: {type: agent, max_age: 2m}
discover:
  - type: register
    host_name: "{id}-{service}-{env}"
    service_name: "{service}.Hosts.example.org"
    also: {host_record: "{host}.hosts.example.org", zone: example.org, ptr: [{zone: 37.13.in-addr.arpa, publish: mock}, auto, 0-25.2.0.192.in-addr.arpa, 2.0.192.in-addr.arpa]}
    ttl: 10m
    zone: example.org
    expire_after: 1d
    networks: [192.0.2.0/24, "2001:db8::1"]
    endpoint: {weight: 2, priority: 3, site: ams, labels: {a: b}}
    checks: [ping, {type: https, cert_days: 3}, {type: tls, port: 853}, {type: http, host: "{}"}, {type: http, host: a.b}]
    policy: {answers: 3}
    safety: {min_published: 3}
    labels: {c: d}
    publish: [keys, mock]
  - {type: register, name: own, host_name: "{host}", also: {host_record: "{host}.lb.example.org"}}
services:
  WWW.lb.example.org:
    ttl: 10
    endpoints:
      - {address: 192.0.2.1, weight: 3, priority: 2, site: ams, monitor: 10.0.0.1, labels: {a: b}}
      - "tcp://[2001:db8::1]:80"
      - {address: "fe80::1%eth0", check: "icmp://{}"}
    checks: [web, ping, {use: t, fall: 9, port: 8853}]
    policy: {pick: weighted, answers: 2}
    safety: {on_all_down: fallback, fallback: {cname: sorry.example.net}, max_change: {records: 100%}, max_sites: 2}
    labels: {team: x}
  kinds.lb.example.org:
    disabled: true
    endpoints: [{address: 192.0.2.6, agent: worker, checks: [said, api]}, 192.0.2.7, "agent-check://192.0.2.8:9", "grpcs://192.0.2.9:7/x", "dns://192.0.2.10/a.b"]
    checks: [kept, node, disk, names, cart, plugin, weights, "grpc://{}:5/x"]
    policy: {slow_start: 5m}
  b.example.org: {endpoints: [192.0.2.5], check: "http://{}:8080", publish: [b, "rfc2136://ns1.example.org/example.org?key=file:tsig.key"], zone: example.org}
  c.example.org:
    endpoints: [192.0.2.5]
    check: "http://{}:8080"
    ttl: 1h
    publish: [keys, ns, kns, pdns, autodns, dynu, do, cf, r53, keyed, desec, hook, script, simple, edns, file, mock, mocked]
`
