package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// check runs `rota check` with real probes and returns its exit code and what it wrote.
func check(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, getenv: os.Getenv, version: "v1.2.3", now: func() time.Time { return t0 }, once: probeOnce}
	code = a.main(context.Background(), append([]string{"check"}, args...))
	return code, o.String(), e.String()
}

// says reports which patterns, one for each line of want, are not found in order.
func says(t *testing.T, text, want string) {
	t.Helper()
	rest := text
	for line := range strings.Lines(want) {
		line = strings.TrimSpace(line)
		at := regexp.MustCompile("(?m)^ *" + line + "$").FindStringIndex(rest)
		if at == nil {
			t.Errorf("no line %s, or not in this order, in\n%s", line, text)
			return
		}
		rest = rest[at[1]:]
	}
}

// speaker listens on a free port of 127.0.0.1 and says something to whoever connects.
func speaker(t *testing.T, text string) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, text)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr()
}

// nameServer answers on a free UDP port of 127.0.0.1 with one address.
func nameServer(t *testing.T) net.Addr {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, done := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.80")
		if err != nil {
			panic(err)
		}
		r.Answer = append(r.Answer, rr)
		_ = w.WriteMsg(r)
	})}
	go func() {
		defer close(done)
		_ = s.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() { _ = s.Shutdown(); <-done })
	return pc.LocalAddr()
}

func pages(t *testing.T, secure bool) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "session=hunter2")
		if r.URL.Path == "/private" && r.Header.Get("Authorization") != "Bearer opensesame" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return strings.TrimPrefix(strings.TrimPrefix(s.URL, "https://"), "http://")
}

// Every kind with a URL is probed once, with its phases, what was sent and what came back.
func TestCheckShowsEveryPhase(t *testing.T) {
	plain, secure := pages(t, false), pages(t, true)
	closed := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}()
	for _, c := range []struct {
		url  string
		code int
		want string
	}{
		{
			"http://" + plain + "/health?a=b", 0, `http://127.0.0.1:\d+/health\?a=b
			connect +[\d.]+ms at +[\d.]+ms  127.0.0.1:\d+ to 127.0.0.1:\d+
			request +.*GET /health\?a=b
			first byte .*
			body .*15 bytes
			> GET /health\?a=b HTTP/1.1
			< HTTP/1.1 200 OK
			< Set-Cookie: \*\*\*
			15 bytes read
			up: status 200 \(.*ms\)`,
		},
		{
			"https://" + secure, 1, `https://127.0.0.1:\d+/
			connect .*
			tls .*
			TLS 1.3 TLS_.*
			certificate .*Acme Co.* for example.com.*, by .*, valid 1970-01-01 to 2084-01-29
			DOWN: .*certificate.*`,
		},
		{"tls://" + secure, 1, "tls://127.0.0.1:.*\nDOWN: .*certificate.*"},
		{"tcp://" + plain, 0, "tcp://127.0.0.1:.*\nconnect .*\nup.*"},
		{"tcp://" + closed, 1, "connect .*failed\nDOWN: connect: refused.*"},
		{"http://" + closed, 1, "connect .*failed\nDOWN: connect: refused.*"},
		{"dns://" + nameServer(t).String() + "/www.example.org", 0, `dns://127.0.0.1:\d+/www.example.org\.
			up.*`},
		{"agent-check://" + speaker(t, "up 75%\n").String(), 0, "agent-check://127.0.0.1:.*\nup.*, weight 75 %.*"},
		{"agent-check://" + speaker(t, "drain # being moved\n").String(), 1, "DRAINING.*"},
	} {
		t.Run(c.url, func(t *testing.T) {
			code, out, errs := check(t, c.url)
			if code != c.code || errs != "" {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, out, errs)
			}
			says(t, out, c.want)
			if strings.Contains(out, "hunter2") {
				t.Errorf("a cookie is shown:\n%s", out)
			}
			code, out, _ = check(t, c.url, "-o", "json")
			var all []checked
			if err := json.Unmarshal([]byte(out), &all); err != nil || code != c.code || len(all) != 1 || len(all[0].Probes) != 1 || all[0].Probes[0].Took <= 0 {
				t.Errorf("exit code %d, %v\n%s", code, err, out)
			}
		})
	}
}

// A name in a URL is looked up before the probe, and is what the check asks for.
func TestCheckLooksNamesUp(t *testing.T) {
	_, port, err := net.SplitHostPort(pages(t, false))
	if err != nil {
		t.Fatal(err)
	}
	_, out, _ := check(t, "http://localhost:"+port+"/")
	says(t, out, `http://127.0.0.1:\d+/ host localhost
		> Host: localhost.*
		up: status 200.*`)
	code, _, errs := check(t, "tcp://no-such-host.invalid:1")
	if code != 1 || !strings.Contains(errs, "no-such-host.invalid") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

// A service is probed as this machine's own file says, by all of its checks or by one.
func TestCheckOfAService(t *testing.T) {
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(pages(t, false))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rota.yaml")
	text := fmt.Sprintf(`checks:
  web: {type: http, port: %s, host: shop.example.org, json: {/status: ok}}
  bad: {type: http, port: %s, json: {/status: good}, role: observe}
  said: {type: agent}
services:
  www.example.org: {endpoints: [{address: %s, agent: me}], checks: [web, bad, said], publish: "rfc2136://192.0.2.53/example.org"}
`, port, port, host)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := check(t, "www.example.org/127.0.0.1", "--config", file)
	if code != 1 || errs != "" {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	says(t, out, `127.0.0.1 web
		> Host: shop.example.org
		up.*
		127.0.0.1 bad
		DOWN: .*
		127.0.0.1 said
		nobody asks: the endpoint says how it is; .*`)
	if code, out, _ := check(t, "www.example.org", "web", "--config", file); code != 0 || strings.Contains(out, "bad") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, _ := check(t, "www.example.org", "said", "--config", file); code != 1 || !strings.Contains(out, "nobody asks") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, _, errs := check(t, "--last", "http://192.0.2.1/", "--config", file); code != 2 || !strings.Contains(errs, "with --last it is SERVICE") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, _, errs := check(t, "www.example.org", "wbe", "--config", file); code != 2 || !strings.Contains(errs, "it has bad, said, web") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

// Secrets are read and commands run as this machine's own file names them, and no output has the secret.
func TestCheckUsesSecretsAndCommands(t *testing.T) {
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(pages(t, false))
	if err != nil {
		t.Fatal(err)
	}
	exporter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, "node_load5 0.5\n")
	}))
	t.Cleanup(exporter.Close)
	_, metrics, err := net.SplitHostPort(exporter.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("token", "opensesame\n", 0o600)
	script := write("plugin", "#!/bin/sh\necho \"it is $1 by $ROTA_ADDRESS|a=1\"\nexit 2\n", 0o700)
	file := write("rota.yaml", fmt.Sprintf(`checks:
  private: {type: http, port: %s, path: /private, auth: {bearer: {file: token}}}
  plugin: {type: exec, command: [%s, "{}"]}
  load: {type: node_exporter, port: %s, ping: false, rules: {node_load5: "< 2"}}
services:
  www.example.org: {endpoints: [%s], checks: [private, plugin, load], publish: "rfc2136://192.0.2.53/example.org"}
`, port, script, metrics, host), 0o600)
	for _, format := range []string{"table", "json", "yaml"} {
		code, out, errs := check(t, "www.example.org", "-o", format, "--config", file)
		if code != 1 || errs != "" || strings.Contains(out, "opensesame") {
			t.Errorf("exit code %d\n%s%s", code, errs, out)
		}
		if format == "table" {
			says(t, out, `127.0.0.1 private
				> Authorization: \*\*\*
				up: status 200.*
				127.0.0.1 plugin
				DOWN: .*it is 127.0.0.1 by 127.0.0.1 .*
				127.0.0.1 load
				up.*`)
		}
	}
}

// What the format takes, the prober can ask: nothing that `rota validate` finds right is found wrong at night.
func TestEveryCheckOfTheFormatCanBeAsked(t *testing.T) {
	text := `dns: {zones: {example.org: {ns: [ns1.example.net]}}}
services:
  www.example.org:
    endpoints: [127.0.0.1]
    timeout: 1s
    checks:
      - {type: http, port: 1, method: PATCH, data: x, json: {/a: "< 1", "": ~}, header: {A: b}, expect_header: {C: d}, auth: {user: a, password: {env: X}}, follow: same}
      - {type: http, port: 1, http2: true, drain_header: "-"}
      - {type: http, port: 1, reuse: true, watch: true, drain_header: Leaving, max_body: 1}
      - {type: https, port: 1, client_cert: {env: X}, client_key: {env: X}, ca: {env: X}, verify: ca, cert_days: 3650, http2: true}
      - {type: tcp, port: 1, send: a, expect: b, watch: true}
      - {type: tls, port: 1, server_name: a.b, verify: none, expect: c}
      - {type: icmp, count: 20, loss: 100%, timeout: 100ms}
      - {type: node_exporter, port: 1, rules: [all, net(eth0), mem_free(MemFree)]}
      - {type: node_exporter, port: 1, ping: false, on_error: down, rules: {'a_b{c="d"}': "!= 1e3", load1: "<= 1.5 cores", mem_free: "> 1GiB"}}
      - {type: dns, port: 1, query: ., query_type: HTTPS, rcode: [YXRRSET, NOERROR], expect: x, recurse: true}
      - {type: dns, port: 1, query: a.b, query_type: ANY, transport: tcp}
      - {type: grpc, port: 1, service: a/b-c_d.E}
      - {type: grpc, port: 1, tls: true, auth: {bearer: {env: X}}, client_cert: {env: X}, client_key: {env: X}}
      - {type: exec, command: [true, "{}", "a b"], on_error: down}
      - {type: agent-check, port: 1, send: "hi\n", on_error: down}
`
	c, err := config.Parse("/etc/rota/rota.yaml", []byte(text), config.Options{NoSecrets: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range c.Spec.Services[0].Endpoints[0].Checks {
		p := probeOnce(t.Context(), c, rota.NewTarget(netip.MustParseAddr("127.0.0.1"), target.Check))
		if strings.Contains(p.Reason, "cannot be asked") {
			t.Errorf("%s: %s", target.Check.Key(), p.Reason)
		}
	}
	if want := len(rota.Kinds()) - 1; want != 10 { // all but agent, which nobody asks
		t.Errorf("this test knows 10 kinds; there are %d", want)
	}
}

// Text of an endpoint does not reach a terminal as it came.
func TestCheckShowsNoControlCharacters(t *testing.T) {
	_, out, _ := check(t, "agent-check://"+speaker(t, "down # \x1b[31mred\u202e\n").String())
	if strings.ContainsAny(out, "\x1b\u202e") || !strings.Contains(out, "DOWN") {
		t.Errorf("%q", out)
	}
}

func TestPhasesAreBounded(t *testing.T) {
	steps := make([]api.ProbeStep, 64)
	for i := range steps {
		steps[i] = api.ProbeStep{Name: "redirect", Took: time.Millisecond}
	}
	if got := phases(steps); strings.Count(got, "redirect") != 8 || !strings.HasSuffix(got, "… (64)") {
		t.Error(got)
	}
	if got := withPhases(api.Probe{Observation: rota.Observation{Status: rota.Down}}); got != "" {
		t.Error(got)
	}
}
