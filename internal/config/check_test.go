package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rota-dns/rota/internal/rota"
)

// probeFiles are what checks of the tests name.
var probeFiles = tree{
	"/etc/rota/pw": "hunter2", "/etc/rota/token": "opensesame", "/etc/rota/crt": certPEM, "/etc/rota/key": keyPEM, "/etc/rota/ca": certPEM,
	"/etc/rota/junk": "junk", "/etc/rota/key.open": keyPEM, "/etc/rota/pw.open": "x", "/run/credentials/pw": "y",
}

func only(c *Config) rota.Check { return c.Spec.Services[0].Endpoints[0].Checks[0].Check }

// What every kind is filled with, and that the effective configuration reads back to the same question.
func TestKindsOfChecks(t *testing.T) {
	timing := rota.DefaultTiming()
	web := rota.Check{
		Kind: rota.KindHTTP, Port: 80, Path: "/", Method: "GET", Host: "www.example.org", Status: []rota.StatusRange{{From: 200, To: 399}},
		MaxBody: rota.DefaultMaxBody, DrainHeader: "Rota-Drain",
	}
	withWeb := func(set func(*rota.Check)) rota.Check {
		c := web
		set(&c)
		return c
	}
	all := []rota.Rule{{Name: "cpu", Want: "< 90%"}, {Name: "load1", Want: "<= cores"}, {Name: "mem_free", Want: "> 5%"}}
	exporter := rota.Check{Kind: rota.KindNodeExporter, Port: 9100, Path: "/metrics", MaxBody: rota.LimitMaxBody, Rules: all}
	withExporter := func(set func(*rota.Check)) rota.Check {
		c := exporter
		set(&c)
		return c
	}
	asked := rota.Check{Kind: rota.KindDNS, Port: 53, Query: "www.example.net.", QueryType: "A", RCode: "NOERROR", Transport: "udp"}
	for in, want := range map[string]rota.Check{
		"http://{}": web,
		"{type: http, method: POST, data: '{}', header: {Content-Type: application/json}}": withWeb(func(c *rota.Check) {
			c.Method, c.Data, c.Header = "POST", "{}", []rota.Header{{Name: "Content-Type", Value: "application/json"}}
		}),
		`{type: http, json: {/b: ok, /a/0: "< 90", /c: 90, /d: "90", /e: true, /f: "true", /g: null, /h: "null", "": '>=-1.5e3', "/i~1j": "${x}\"", /k: 1.50}}`: withWeb(func(c *rota.Check) {
			c.JSON = []rota.JSONRule{
				{Pointer: "", Want: ">= -1.5e3"},
				{Pointer: "/a/0", Want: "< 90"},
				{Pointer: "/b", Want: `"ok"`},
				{Pointer: "/c", Want: "90"},
				{Pointer: "/d", Want: `"90"`},
				{Pointer: "/e", Want: "true"},
				{Pointer: "/f", Want: `"true"`},
				{Pointer: "/g", Want: "null"},
				{Pointer: "/h", Want: `"null"`},
				{Pointer: "/i~1j", Want: `"${x}\""`},
				{Pointer: "/k", Want: "1.50"},
			}
		}),
		"{type: http, auth: {user: me, password: {file: pw}}}": withWeb(func(c *rota.Check) { c.Auth = rota.Auth{User: "me", Secret: "file:/etc/rota/pw"} }),
		"{type: http, auth: {bearer: {env: TOKEN}}}":           withWeb(func(c *rota.Check) { c.Auth = rota.Auth{Secret: "env:TOKEN"} }),
		"{type: http, reuse: true, watch: true, drain_header: X-Leaving, max_body: 7}": withWeb(func(c *rota.Check) {
			c.Reuse, c.Watch, c.DrainHeader, c.MaxBody = true, true, "X-Leaving", 7
		}),
		`{type: http, drain_header: "-", http2: true}`: withWeb(func(c *rota.Check) { c.DrainHeader, c.HTTP2 = "-", true }),
		"{type: https, client_cert: crt, client_key: {file: key}, ca: ca}": withWeb(func(c *rota.Check) {
			c.Kind, c.Port, c.Verify = rota.KindHTTPS, 443, rota.VerifyStrict
			c.ClientCert, c.ClientKey, c.CA = "file:/etc/rota/crt", "file:/etc/rota/key", "file:/etc/rota/ca"
		}),
		"{type: tls, port: 853, auth_: 1, ca: {file: /etc/rota/./ca}}": {
			Kind: rota.KindTLS, Port: 853, ServerName: "www.example.org", Verify: rota.VerifyStrict, CA: "file:/etc/rota/ca",
		},
		"{type: tcp, port: 5432, watch: true}": {Kind: rota.KindTCP, Port: 5432, Watch: true},

		"node_exporter://{}":                         exporter,
		"node_exporter://{}:9101/m?x=1":              withExporter(func(c *rota.Check) { c.Port, c.Path = 9101, "/m?x=1" }),
		"{type: node_exporter, rules: all}":          exporter,
		"{type: node_exporter, rules: [cpu, load1]}": withExporter(func(c *rota.Check) { c.Rules = []rota.Rule{all[0], all[1]} }),
		"{type: node_exporter, rules: [net(eth1), net(eth0), cpu, net(eth0)], max_body: 1000}": withExporter(func(c *rota.Check) {
			c.MaxBody = 1000
			c.Rules = []rota.Rule{all[0], {Name: "net(eth0)", Want: "< 80%"}, {Name: "net(eth1)", Want: "< 80%"}}
		}),
		`{type: node_exporter, on_error: down, ping: false, rules: {cpu: "<75%", load1: "<= cores", 'up_seconds{job="a"}': "> 5"}}`: withExporter(func(c *rota.Check) {
			c.OnError, c.NoPing = rota.Down, true
			c.Rules = []rota.Rule{{Name: "cpu", Want: "< 75%"}, all[1], {Name: `up_seconds{job="a"}`, Want: "> 5"}}
		}),

		"dns://{}/www.example.net":             asked,
		"dns://{}:5353/www.example.net.":       func() rota.Check { c := asked; c.Port = 5353; return c }(),
		"{type: dns, query: www.example.net.}": asked,
		"{type: dns, query: '.', query_type: SOA, rcode: [NXDOMAIN, NOERROR, NXDOMAIN], transport: tcp, recurse: true, expect: a}": {
			Kind: rota.KindDNS, Port: 53, Query: ".", QueryType: "SOA", RCode: "NOERROR,NXDOMAIN", Transport: "tcp", Recurse: true, Expect: "a",
		},

		"grpc://{}:50051":              {Kind: rota.KindGRPC, Port: 50051},
		"grpc://{}:50051/shop.v1.Cart": {Kind: rota.KindGRPC, Port: 50051, Service: "shop.v1.Cart"},
		"grpcs://{}:443/shop.v1.Cart":  {Kind: rota.KindGRPC, Port: 443, Service: "shop.v1.Cart", TLS: true, ServerName: "www.example.org", Verify: rota.VerifyStrict},
		"{type: grpc, port: 1, tls: true, server_name: a.b, cert_days: 3, auth: {bearer: {credential: pw}}}": {
			Kind: rota.KindGRPC, Port: 1, TLS: true, ServerName: "a.b", Verify: rota.VerifyStrict, CertDays: 3, Auth: rota.Auth{Secret: "credential:pw"},
		},

		"{type: exec, command: [/usr/bin/check, -H, '{}', 'a b$c']}": {Kind: rota.KindExec, Command: []string{"/usr/bin/check", "-H", "{}", "a b$c"}},
		"agent-check://{}:8404":                         {Kind: rota.KindAgentCheck, Port: 8404},
		`{type: agent-check, port: 8404, send: "hi\n"}`: {Kind: rota.KindAgentCheck, Port: 8404, Send: "hi\n"},
		"{type: agent-check, port: 1, on_error: down}":  {Kind: rota.KindAgentCheck, Port: 1, OnError: rota.Down},
		"{type: exec, command: [a], on_error: down}":    {Kind: rota.KindExec, Command: []string{"a"}, OnError: rota.Down},
		"{type: agent}":              {Kind: rota.KindAgent, MaxAge: rota.DefaultMaxAge},
		"{type: agent, max_age: 2m}": {Kind: rota.KindAgent, MaxAge: 2 * time.Minute},
	} {
		t.Run(in, func(t *testing.T) {
			o := options(probeFiles)
			o.Env = environment("CREDENTIALS_DIRECTORY", "/run/credentials", "TOKEN", "opensesame")
			in = strings.ReplaceAll(strings.ReplaceAll(in, "auth_: 1, ", ""), "${", "$${")
			c, err := Parse("/etc/rota/rota.yaml", []byte(with("endpoints: [192.0.2.1]\ncheck: "+in)), o)
			if err != nil {
				t.Fatal(err)
			}
			want.Timing = timing
			if d := cmp.Diff(want, only(c), cmpopts.IgnoreFields(rota.Check{}, "Name")); d != "" {
				t.Error(d)
			}
			again, err := Parse("/etc/rota/rota.yaml", c.Effective(), o)
			if err != nil {
				t.Fatalf("%v\n%s", err, c.Effective())
			}
			if d := cmp.Diff(only(c), only(again), cmpopts.IgnoreFields(rota.Check{}, "Name")); d != "" {
				t.Errorf("after the effective configuration was read: %s\n%s", d, c.Effective())
			}
			if err := c.Spec.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheFormatHasEveryKind(t *testing.T) {
	var kinds []rota.Kind
	for _, k := range checkKinds() {
		kinds = append(kinds, rota.Kind(k.word))
	}
	if !slices.Equal(kinds, rota.Kinds()) {
		t.Errorf("the format has %v, rota has %v", kinds, rota.Kinds())
	}
}

func manyRules(n int) string {
	var rs []string
	for i := range n {
		rs = append(rs, fmt.Sprintf(`'/a_metric{n="%d"}': "> 1"`, i))
	}
	return strings.Join(rs, ", ")
}

func TestBadChecks(t *testing.T) {
	for in, want := range map[string]string{
		"{type: http, method: DELETE}":                                                       `method "DELETE": want GET, HEAD, OPTIONS, POST, PUT or PATCH`,
		"{type: http, data: x}":                                                              "data is sent with method POST, PUT or PATCH (write method: POST)",
		"{type: http, method: POST, data: " + strings.Repeat("x", 5000):                      "more than 4096 bytes are not sent",
		"{type: http, method: HEAD, json: {/a: 1}}":                                          "an answer to HEAD has no body to match",
		"{type: http, json: {a: 1}}":                                                         `JSON pointer "a": begin with /`,
		"{type: http, json: {/a~2: 1}}":                                                      "write ~ as ~0",
		"{type: http, json: {/a: '< much'}}":                                                 "want a number after <",
		"{type: http, json: {/a: [1]}}":                                                      "is a list: want a value",
		"{type: http, http2: true, reuse: true}":                                             "reuse and watch are for HTTP/1.1",
		"{type: http, json: {" + manyRules(17) + "}}":                                        "17 values: want at most 16",
		"{type: grpc, port: 1, auth: {bearer: {file: token}}}":                               "a gRPC server is told who asks over TLS only (write tls: true)",
		"{type: dns, query: a.b, on_error: down}":                                            `unknown key "on_error"`,
		"{type: http, auth: {}}":                                                             "auth wants {user: NAME, password: {file: PATH}} or {bearer: {file: PATH}}",
		"{type: http, auth: {user: a}}":                                                      ": auth wants both user and password",
		"{type: http, auth: {user: 'a:b', password: {file: pw}}}":                            `"a:b" is no user name`,
		"{type: http, auth: {user: a, bearer: {file: pw}}}":                                  "auth wants {user",
		"{type: http, auth: {bearer: {file: gone}}}":                                         "secret /etc/rota/gone: no such file",
		"{type: http, auth: {bearer: {env: GONE}}}":                                          "environment variable GONE is not set",
		"{type: http, auth: {bearer: {file: pw, env: X}}}":                                   "a secret wants one of",
		"{type: http, header: {Authorization: Bearer x}}":                                    "write auth:",
		"{type: http, header: {Cookie: x}}":                                                  "header Cookie would show a secret",
		"{type: http, drain_header: 'a b'}":                                                  `"a b" is no name of a header field`,
		"{type: http, client_cert: crt, client_key: key}":                                    `unknown key "client_cert" in`,
		"{type: https, client_cert: crt}":                                                    "wants both client_cert and client_key",
		"{type: https, client_key: key}":                                                     "wants both client_cert and client_key",
		"{type: https, client_cert: crt, client_key: junk}":                                  "certificate file:/etc/rota/crt and key file:/etc/rota/junk cannot be used",
		"{type: https, client_cert: gone, client_key: key}":                                  "certificate /etc/rota/gone: no such file",
		"{type: https, ca: junk}":                                                            "file:/etc/rota/junk holds no certificate in PEM",
		"{type: https, ca: ca, verify: none}":                                                "ca is of no use with verify: none",
		"{type: tls, port: 1, reuse: true}":                                                  `unknown key "reuse"`,
		"{type: icmp, watch: true}":                                                          `unknown key "watch"`,
		"{use: ping, watch: true}":                                                           "a check of type icmp has no watch",
		"{use: web, reuse: maybe}":                                                           `reuse "maybe": want true or false`,
		"{type: http, slow_interval: 5s}":                                                    "slow_interval 5s is below interval 10s",
		"{type: http, interval: 1m, slow_interval: 30s}":                                     "slow_interval 30s is below interval 1m",
		"{type: node_exporter, rules: []}":                                                   "rules is empty",
		"{type: node_exporter, rules: {cpu: 90%}}":                                           "cpu",
		"{type: node_exporter, rules: {cpu: '< 90'}}":                                        "cpu",
		"{type: node_exporter, rules: [node_load5]}":                                         "needs a comparison",
		`{type: node_exporter, rules: {` + strings.ReplaceAll(manyRules(33), "/", "") + `}}`: "33 rules: want at most 32",
		"{type: node_exporter, rules: [net]}":                                                "net",
		"{type: node_exporter, on_error: up}":                                                `on_error "up": want unknown or down`,
		"dns://{}":                                                                           "wants a name to ask for: dns://{}/NAME",
		"dns://{}/www.example.org?type=AAAA":                                                 "want dns://{}/NAME, or a map",
		"dns://{}/a..b":                                                                      "empty label",
		"{type: dns}":                                                                        "has no query",
		"{type: dns, query: a.b, query_type: aaaa}":                                          "write AAAA",
		"{type: dns, query: a.b, query_type: AXFR}":                                          "AXFR is not asked for by a check",
		"{type: dns, query: a.b, query_type: X}":                                             `"X" is no record type`,
		"{type: dns, query: a.b, rcode: OK}":                                                 `rcode "OK": want NOERROR`,
		"{type: dns, query: a.b, transport: dot}":                                            `transport "dot": want udp or tcp`,
		"grpc://{}":                                "wants a port: grpc://{}:PORT/SERVICE",
		"{type: grpc}":                             "of type grpc has no port",
		"{type: grpc, port: 1, service: 'a b'}":    `"a b" is no service`,
		"{type: grpc, port: 1, verify: none}":      "verify belongs to TLS (write tls: true)",
		"grpc://{}:1/a b":                          "is no service",
		"exec://{}/usr/bin/true":                   "a check of type exec is written as a map",
		"agent://{}":                               "a check of type agent is written as a map",
		"{type: exec}":                             "has no command",
		"{type: exec, command: []}":                "command is empty",
		"{type: exec, command: /bin/true}":         "is a value: want a list",
		"{type: exec, command: [./check]}":         `"./check" is a relative path`,
		"{type: exec, command: [/bin/sh -c x]}":    "write a list, [PROGRAM, ARGUMENT]",
		"{type: exec, command: [a], port: 1}":      `unknown key "port"`,
		"agent-check://{}":                         "wants a port: agent-check://{}:PORT",
		"{type: agent-check}":                      "of type agent-check has no port",
		"agent-check://{}:1/x":                     "has no path",
		"{type: agent, interval: 5s}":              `unknown key "interval"`,
		"{type: agent, max_age: 1ms}":              "1ms is out of range",
		"agent-chek://{}:1":                        `did you mean "agent-check"?`,
		"ldap://{}:1":                              "want agent-check, dns, grpc, grpcs, http",
		"http://me:pw@{}/":                         "a check takes no user and password in its URL: write a map with auth",
		"{type: http, auth: {bearer: opensesame}}": "a check says where a secret is, and never what it is",
		"{type: https, client_key: \"-----BEGIN EC PRIVATE KEY-----\\nx\"}": "want one line",
	} {
		t.Run(in, func(t *testing.T) {
			text := "checks: {ping: {type: icmp}, web: \"http://{}\"}\n" + with("endpoints: [192.0.2.1]\ncheck: "+in+strings.Repeat("}", strings.Count(in, "{")-strings.Count(in, "}")))
			ps := problems(t, text, probeFiles)
			if got := said(ps); !strings.Contains(got, want) {
				t.Errorf("got\n%swant %s", got, want)
			}
			for _, p := range ps {
				if p.Line == 0 || strings.Contains(p.String(), "opensesame") || strings.Contains(p.String(), "EC PRIVATE") {
					t.Errorf("without a place, or with a secret:\n%s", p)
				}
			}
		})
	}
}

// What is wrong with a named check is said although no service uses it.
func TestBadCheckThatNothingUses(t *testing.T) {
	for in, want := range map[string]string{
		"{type: http, data: x}":                                    "data is sent with method",
		"{type: http, auth: {bearer: {file: gone}}}":               "no such file",
		"{type: node_exporter, rules: {cpu: x}}":                   "cpu",
		"{type: exec, command: [./x]}":                             "relative path",
		"{type: https, client_cert: crt, client_key: junk}":        "cannot be used",
		"{type: tcp, port: 1, interval: 5s, slow_interval: 1s}":    "slow_interval 1s is below interval 5s",
		"{type: grpc, port: 1, client_cert: crt, client_key: key}": "client_cert belongs to TLS",
	} {
		got := said(problems(t, "checks: {idle: "+in+"}\n"+with("endpoints: [192.0.2.1]"), probeFiles))
		if !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
}

func TestWarningsOfChecks(t *testing.T) {
	for in, want := range map[string]string{
		"{type: http, auth: {bearer: {file: token}}}":                      "its token crosses the network in the clear",
		"{type: http, auth: {user: a, password: {file: pw}}}":              "its password crosses the network in the clear",
		"{type: https, verify: none, auth: {bearer: {file: token}}}":       "its token goes to whoever answers",
		"{type: https, auth: {bearer: {file: pw.open}}}":                   "pw.open can be read by everybody",
		"{type: https, client_cert: crt, client_key: key.open}":            "key.open can be read by everybody",
		"{type: http, header: {X-Api-Key: x}}":                             "header X-Api-Key looks like a secret",
		"{type: node_exporter, timeout: 300ms, rules: [load1, net(eth0)]}": "a timeout of 300ms cannot fit the two samples that net(eth0) needs",
		"{type: agent}": "only operators can say how endpoint 192.0.2.1 is",
		"tcp://{}:1\ndisabled: false\nendpoints: [{address: 192.0.2.1, agent: me}]": "agent has no effect",
	} {
		text := with("endpoints: [192.0.2.1]\ncheck: " + in)
		if strings.Contains(in, "endpoints:") {
			text = with("check: " + in)
		}
		c := parse(t, text, probeFiles)
		if got := said(c.Warnings); !strings.Contains(got, want) || len(c.Warnings) != 1 {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
	for _, in := range []string{
		"{type: node_exporter, timeout: 300ms, rules: load1}", "{type: https, auth: {bearer: {file: token}}}", "{type: https, client_cert: crt, client_key: key, ca: ca}",
		"{type: agent}\nendpoints: [{address: 192.0.2.1, agent: me}]",
	} {
		text := with("check: " + in)
		if !strings.Contains(in, "endpoints:") {
			text = with("endpoints: [192.0.2.1]\ncheck: " + in)
		}
		if c := parse(t, text, probeFiles); len(c.Warnings) != 0 {
			t.Errorf("%s: %s", in, said(c.Warnings))
		}
	}
}

// What a machine may read and run for checks is what stands in its own file, whether a service uses it or not, and nothing else.
func TestPlacesAndCommands(t *testing.T) {
	files := merged([]tree{probeFiles, {"/etc/rota/conf.d/more.yaml": "checks: {more: {type: https, auth: {user: u, password: {file: ../pw}}}}", "/etc/rota/base": secret64}})
	c := parse(t, `include: conf.d/*.yaml
keys: {k: {secret: {file: base}}}
checks:
  mtls: {type: https, client_cert: crt, client_key: key, ca: ca}
  idle: {type: exec, command: [/bin/false]}
  ssh: {type: exec, command: [/bin/check, "{}"]}
`+with("endpoints: [192.0.2.1, 192.0.2.2]\nchecks: [more, ssh, {use: ssh, command: [/bin/other]}, {type: http, auth: {bearer: {credential: pw}}}]"), files)
	if want := []rota.Place{"credential:pw", "file:/etc/rota/ca", "file:/etc/rota/crt", "file:/etc/rota/key", "file:/etc/rota/pw"}; !slices.Equal(c.Places, want) {
		t.Errorf("places %v, want %v", c.Places, want)
	}
	if d := cmp.Diff([][]string{{"/bin/check", "{}"}, {"/bin/false"}, {"/bin/other"}}, c.Commands); d != "" {
		t.Error(d)
	}
	if !slices.Contains(c.Files, "/etc/rota/pw") {
		t.Errorf("not watched: %v", c.Files)
	}

	o := options(tree{})
	o.NoSecrets = true
	c, err := Parse("/etc/rota/rota.yaml", []byte(with("endpoints: [192.0.2.1]\ncheck: {type: https, client_cert: crt, client_key: key, ca: ca, auth: {bearer: {file: pw}}}")), o)
	if err != nil || len(c.Places) != 4 || only(c).Auth.Secret != "file:/etc/rota/pw" {
		t.Errorf("secrets left unread: %v, %v", c, err)
	}
}

// A path is the same wherever rota was started.
func TestPlacesAreAbsolute(t *testing.T) {
	o := options(tree{"pw": "x"})
	c, err := Parse("rota.yaml", []byte(with("endpoints: [192.0.2.1]\ncheck: {type: https, auth: {bearer: {file: pw}}}")), o)
	if err != nil {
		t.Fatal(err)
	}
	if p := string(only(c).Auth.Secret); !strings.HasPrefix(p, "file:/") || !strings.HasSuffix(p, "/pw") {
		t.Errorf("place %s", p)
	}
}

func TestSlowInterval(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"":                                30 * time.Second,
		"interval: 1m":                    time.Minute,
		"slow_interval: 45s":              45 * time.Second,
		"interval: 1m\nslow_interval: 2m": 2 * time.Minute,
		"interval: 1m\n_: defaults":       time.Minute,
		"checks: [{use: slow, slow_interval: 1h}]": time.Hour,
	} {
		if !strings.Contains(in, "checks:") {
			in += "\ncheck: slow"
		}
		c := parse(t, "checks: {slow: {type: icmp}}\ndefaults: {slow_interval: 30s}\n"+with("endpoints: [192.0.2.1]\n"+in))
		if got := only(c).SlowInterval; got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// Services whose timing differs share what an endpoint says of itself.
func TestAgentChecksHaveNoTiming(t *testing.T) {
	c := parse(t, with("endpoints: [{address: 192.0.2.1, agent: me}]\ncheck: {type: agent}\ninterval: 5s\nfall: 7\ntimeout: 1s"))
	if got := only(c).Timing; got != rota.DefaultTiming() {
		t.Errorf("%+v", got)
	}
}

func TestKeysOfServicesAndEndpoints(t *testing.T) {
	c := parse(t, with("disabled: true\nendpoints: [{address: 192.0.2.1, agent: worker}]\ncheck: {type: agent}\npolicy: {slow_start: 2m}"))
	v := c.Spec.Services[0]
	if !v.Disabled || v.Endpoints[0].Agent != "worker" || v.Policy.SlowStart != 2*time.Minute {
		t.Errorf("%+v", v)
	}
	if d := cmp.Diff(v, parse(t, string(c.Effective())).Spec.Services[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	got := said(problems(t, with("disabled: perhaps\nendpoints: [{address: 192.0.2.1, agent: ''}]\npolicy: {slow_start: 2d}")))
	for _, want := range []string{`disabled "perhaps": want true or false`, "agent: is empty", "2d is out of range"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%swant %s", got, want)
		}
	}
}
