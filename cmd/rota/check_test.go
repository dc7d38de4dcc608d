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
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/api"
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
	if code, _, errs := check(t, "www.example.org", "wbe", "--config", file); code != 2 || !strings.Contains(errs, "it has bad, said, web") {
		t.Errorf("exit code %d\n%s", code, errs)
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
