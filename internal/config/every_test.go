package config

import (
	"fmt"
	"strings"
	"testing"
)

// sound has many places that can be broken one by one.
const sound = `version: 1
node: {name: ams1, site: ams}
log: {level: info, format: json}
metrics: {prometheus: {path: /prom}}
api:
  listen: 127.0.0.1:8081
  tokens: [{name: ops, role: admin, token: {file: ops.token}}]
vantage:
  quorum: any
  max_age: 1m
  uplink: {checks: ["icmp://192.0.2.91", "tcp://192.0.2.92:53"], need: 2}
  agents: {accept: [foo, {name: bar, site: fra}], healthagent: {listen: 127.0.0.1:3443, tls: {cert: crt, key: pem, client_ca: ca}}}
dns:
  listen: ["127.0.0.1:5354"]
  zones:
    lb.example.org:
      ns: [ns1.example.net]
      soa: {minimum: 5s}
      records: |
        txt 60 IN TXT "a"
keys:
  k: {algorithm: hmac-sha256, secret: {file: base}}
publish:
  b: {type: rfc2136, servers: [192.0.2.53], key: k, transport: tcp}
  idle: {type: rfc2136, servers: [192.0.2.54], key: k}
  cf: {type: cloudflare, token: {file: cf.token}, proxied: on, proof: {within: 3m}}
  pdns: {type: powerdns, url: "https://pdns.example.net", token: {file: pdns.token}}
ownership: {registry: txt, owner: me, prefix: _r.}
safety: {min_hold: 10s, fail_open_below: 40%, max_change: {per: 20m}, max_sites: 1}
defaults: {ttl: 20s, rise: 2}
checks:
  web: {type: http, port: 80, path: /health, status: [200], interval: 5s, timeout: 2s, fall: 2}
  tls: {type: tls, port: 443, interval: 7s, fast_interval: 1s}
  idle: {type: tcp, port: 22, interval: 9s, timeout: 3s}
services:
  www.example.org:
    endpoints: [192.0.2.1, {address: 192.0.2.2, weight: 3, check: web}]
    checks: [web, {use: tls, rise: 5}]
    publish: [b, cf]
    labels: {team: shop}
  ftp.example.org:
    ttl: 40s
    endpoints:
      - {address: 192.0.2.3, priority: 2, check: {type: tcp, port: 21, interval: 4s, timeout: 1s}}
    safety: {min_published: 1}
    publish: "rfc2136://192.0.2.53/example.org?key=k&transport=udp"
  www.lb.example.org:
    endpoints: [192.0.2.4]
    check: "https://{}/"
    policy: {answers: 3}
`

// faults are breaks of sound: what is written instead, and what has to be said of it.
var faults = []struct{ old, with, want string }{
	{"version: 1", "version: 2", "version: 2 is out of range"},
	{"site: ams", "sit: ams", `unknown key "sit" in node`},
	{"level: info", "level: loud", `"loud"`},
	{"path: /prom", "path: /api", "path /api is taken"},
	{"127.0.0.1:8081", "nowhere:8081", `"nowhere" is no address of this machine`},
	{"name: ops, ", "", "tokens has no name"},
	{"role: admin", "role: boss", `"boss"`},
	{"token: {file: ops.token}", "token: {file: no.token}", "no.token: no such file"},
	{"quorum: any", "quorum: 4", "quorum 4 is larger"},
	{"max_age: 1m", "max_age: 1", `"1" has no unit`},
	{"icmp://192.0.2.91", "icmp://gw.example.net", "names are not looked up"},
	{"tcp://192.0.2.92:53", "tcp://192.0.2.92", "wants a port"},
	{"need: 2", "need: 3", "need 3 is above the 2"},
	{"accept: [foo", "accept: [f/o", `"f/o" cannot be a name`},
	{"name: bar", "name: ams1", `agent "ams1" has the name of this node`},
	{"site: fra", "site: ''", "cannot be a site"},
	{"127.0.0.1:3443", "agents:3443", `"agents" is no address of this machine`},
	{"cert: crt", "cert: no.crt", "no.crt: no such file"},
	{"key: pem", "key: odd", "cannot be used"},
	{"client_ca: ca", "client_ca: odd", "odd holds no certificate"},
	{"127.0.0.1:5354", "127.0.0.1:99999", "99999 is out of range"},
	{"ns: [ns1.example.net]", "ns: []", "ns is empty"},
	{"minimum: 5s", "minimum: 1h", "minimum 1h is above"},
	{"IN TXT \"a\"", "IN A 1.2.3", "zone lb.example.org: bad A A"},
	{"algorithm: hmac-sha256", "algorithm: hmac-md5", "weak algorithm hmac-md5"},
	{"secret: {file: base}", "secret: {file: odd}", `the secret of key "k" is not base64`},
	{"proxied: on", "proxied: yes", `proxied "yes": want keep, on or off`},
	{"token: {file: cf.token}, ", "", `publisher "cf" (cloudflare) has no token`},
	{"within: 3m", "within: 3", `"3" has no unit`},
	{"url: \"https://pdns.example.net\"", "url: \"http://pdns.example.net\"", "use https, or write insecure: true"},
	{"token: {file: pdns.token}", "token: {file: gone.token}", "gone.token: no such file"},
	{"registry: txt", "registry: text", `registry "text": want none or txt`},
	{"owner: me", "owner: m e", `"m e" cannot be the owner`},
	{"prefix: _r.", "prefix: _r", `"_r" is no prefix`},
	{"servers: [192.0.2.53]", "servers: []", "servers is empty"},
	{"key: k, transport", "key: nokey, transport", `unknown key "nokey"`},
	{"transport: tcp", "transport: pigeon", `"pigeon"`},
	{"servers: [192.0.2.54], ", "", `publisher "idle" (rfc2136) has no servers`},
	{"54], key: k", "54], key: lost", `unknown key "lost"`},
	{"min_hold: 10s", "min_hold: 10", `"10" has no unit`},
	{"fail_open_below: 40%", "fail_open_below: 40", "40 has no percent sign"},
	{"per: 20m", "per: 20", `"20" has no unit`},
	{"max_sites: 1", "max_sites: one", `"one" is no whole number`},
	{"ttl: 20s", "ttl: 1.5", `"1.5" is no TTL`},
	{"type: http,", "type: htps,", `check "web": type "htps"`},
	{"port: 80", "port: 0", `check "web"`},
	{"path: /health", "path: health", `path "health" does not begin with /`},
	{"status: [200]", "status: [900]", `"900" is no HTTP status`},
	{"timeout: 2s", "timeout: 10s", "timeout 10s is not below interval 5s"},
	{"fall: 2", "fall: 0", "fall: 0 is out of range"},
	{"port: 443, ", "", `check "tls" of type tls has no port`},
	{"fast_interval: 1s", "fast_interval: 8s", "fast_interval 8s is not below interval 7s"},
	{"port: 22", "pot: 22", `unknown key "pot"`},
	{"timeout: 3s", "timeout: 30s", "timeout 30s is not below interval 9s"},
	{"  www.example.org:", "  w*w.example.org:", `label "w*w" holds "*"`},
	{"endpoints: [192.0.2.1, {address: 192.0.2.2, weight: 3, check: web}]", "endpoints: []", "endpoints is empty"},
	{"[192.0.2.1,", "[192.0.2,", "want four parts"},
	{"weight: 3", "weight: -3", "-3 is out of range"},
	{"check: web", "check: wbe", `unknown check "wbe"`},
	{"use: tls, rise: 5", "use: tls, path: /", "a check of type tls has no path"},
	{"publish: [b, cf]", "publish: [bb, cf]", `unknown publisher "bb"`},
	{"labels: {team: shop}", "label: {team: shop}", `unknown key "label"`},
	{"ttl: 40s", "ttl: forty", `"forty" is no TTL`},
	{"address: 192.0.2.3, ", "", "has no address"},
	{"priority: 2", "priority: two", `"two" is no whole number`},
	{"timeout: 1s", "timeout: 5s", "timeout 5s is not below interval 4s"},
	{"min_published: 1", "min_published: 0", "min_published: 0 is out of range"},
	{"?key=k", "?key=kk", "publish URL: key= wants"},
	{"transport=udp", "transport=tram", `"tram"`},
	{"org:\n    endpoints: [192.0.2.4]", "net:\n    endpoints: [192.0.2.4]", "is in no zone under dns.zones"},
	{"192.0.2.4", "0.0.0.0", "unspecified address"},
	{"https://{}/", "htps://{}/", `did you mean "https"?`},
	{"answers: 3", "answers: 0", "answers: 0 is out of range"},
}

// follows tells of pairs in which one fault takes away what the other is about.
func follows(i, j int) bool {
	has := func(k int, what string) bool { return strings.Contains(faults[k].want, what) }
	for _, p := range [][2]int{{i, j}, {j, i}} {
		switch a, b := p[0], p[1]; {
		case has(a, `"htps"`) && (has(b, `check "web"`) || has(b, "has no path")), // nobody knows the kind any more
			has(a, "endpoints is empty") && has(b, "want four parts"),
			has(a, "minimum 1h") && has(b, "is in no zone under"), // the only service of the zone
			has(a, `"f/o"`) && has(b, "quorum 4"),                 // nobody knows how many there are
			has(a, "no.crt") && has(b, "cannot be used"),
			has(a, `registry "text"`) && has(b, `"m e" cannot be`):
			return true
		}
	}
	return false
}

func TestNoErrorHidesAnother(t *testing.T) {
	files := tree{
		"/etc/rota/base": secret64, "/etc/rota/odd": "%%%", "/etc/rota/ops.token": "x", "/etc/rota/cf.token": "y", "/etc/rota/pdns.token": "z", "/etc/rota/crt": certPEM, "/etc/rota/pem": keyPEM, "/etc/rota/ca": certPEM,
	}
	parse(t, sound, files)
	for i, a := range faults {
		if strings.Count(sound, a.old) != 1 {
			t.Fatalf("%q stands %d times", a.old, strings.Count(sound, a.old))
		}
		one := strings.Replace(sound, a.old, a.with, 1)
		if got := said(problems(t, one, files)); !strings.Contains(got, a.want) {
			t.Fatalf("%q for %q: got\n%swant %s", a.with, a.old, got, a.want)
		}
		for j, b := range faults[:i] {
			if strings.Count(one, b.old) != 1 || !strings.Contains(strings.Replace(one, b.old, b.with, 1), a.with) || follows(i, j) {
				continue // both in one place
			}
			t.Run(fmt.Sprintf("%s,%s", a.with, b.with), func(t *testing.T) {
				got := said(problems(t, strings.Replace(one, b.old, b.with, 1), files))
				for _, want := range []string{a.want, b.want} {
					if !strings.Contains(got, want) {
						t.Errorf("got\n%swant %s", got, want)
					}
				}
			})
		}
	}
}

func TestKeyFaultsAtOnce(t *testing.T) {
	got := said(problems(t, "keys: {k: {secret: '%%%', algorithm: hmac-md5}, l: {secret: {file: none}, algorithm: hmac-sha1}}"))
	for _, want := range []string{
		`the secret of key "k" is not base64`, `key "k" is of the weak algorithm hmac-md5`,
		"none: no such file", `key "l" is of the weak algorithm hmac-sha1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%swant %s", got, want)
		}
	}
}
