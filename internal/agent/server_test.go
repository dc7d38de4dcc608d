package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// hub is a Server under test with what it is wired to.
type hub struct {
	*Server
	ca  *authority
	url string

	mu       sync.Mutex
	targets  []rota.Target
	lead     string
	nodes    []string
	changed  chan struct{}
	fail     error
	unpacker rota.Unpacker
	reports  []*rota.Report
	said     []string // name and site, a report each
}

func newHub(t *testing.T, targets []rota.Target) *hub {
	t.Helper()
	h := &hub{ca: newAuthority(t, "cluster"), targets: targets, lead: "n1/1", changed: make(chan struct{})}
	s, err := NewServer(ServerOptions{
		Identify: func(r *http.Request) (string, error) { // the certificate says what role its bearer has
			c := r.TLS.PeerCertificates[0]
			if name, ok := strings.CutPrefix(c.DNSNames[0], "agent."); ok {
				return name, nil
			}
			return c.Subject.CommonName, errors.New("this is not an agent's certificate")
		},
		Targets: func() []rota.Target { h.mu.Lock(); defer h.mu.Unlock(); return h.targets },
		Lead:    func() string { h.mu.Lock(); defer h.mu.Unlock(); return h.lead },
		Nodes:   func() []string { h.mu.Lock(); defer h.mu.Unlock(); return h.nodes },
		Changed: func() <-chan struct{} { h.mu.Lock(); defer h.mu.Unlock(); return h.changed },
		Report: func(_ context.Context, name, site, from string, body []byte) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.fail != nil {
				return h.fail
			}
			r, err := h.unpacker.Unpack(rota.TableOf(h.targets), body, time.Now())
			if err != nil {
				return &Refusal{Status: http.StatusConflict, Word: RefusedTable, Text: err.Error()}
			}
			if _, err := netip.ParseAddrPort(from); err != nil {
				t.Error(err)
			}
			h.reports, h.said = append(h.reports, r), append(h.said, name+"@"+site)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	return h
}

func (h *hub) run(t *testing.T) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	pool := newPool(h.ca)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{h.ca.issue(t, "node", time.Hour)}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.Config.ErrorLog = quiet
	srv.StartTLS()
	t.Cleanup(srv.Close)
	h.url = srv.URL
}

func (h *hub) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *hub) got() []*rota.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reports[:len(h.reports):len(h.reports)]
}

func reportOf(name string, seq uint64, s string, ts ...rota.Target) *rota.Report {
	r := &rota.Report{Vantage: name, Seq: seq, Opinions: []*rota.Opinion{}}
	for i, tg := range sorted(ts...) {
		o := &rota.Opinion{Target: tg.ID, Since: time.Now().In(time.FixedZone("x", 3600))}
		o.Status = map[byte]rota.Status{'+': rota.Up, '-': rota.Down}[s[i]]
		r.Opinions = append(r.Opinions, o)
	}
	return r
}

func TestServerAndUpstream(t *testing.T) {
	full := target(rota.KindHTTP, "[2001:db8::1]:80", func(c *rota.Check) {
		c.Host, c.Body, c.Header, c.Status = "www", "a<b&c", []rota.Header{{Name: "a", Value: "b"}}, []rota.StatusRange{{From: 200, To: 204}}
	})
	later := target(rota.KindTCP, "10.0.0.9:80")
	later.ID += "#new_option=\"1\"" // what this version would not ask
	h := newHub(t, nil)
	h.run(t)
	ctx := t.Context()
	var heard [][]string
	up := &HTTPUpstream{
		Client: client(t, h.ca, h.ca.issue(t, "edge", time.Hour, "agent.edge")), Base: h.url, Site: "ams",
		Nodes: func(nodes []string) { heard = append(heard, nodes) },
	}
	if _, err := up.Targets(ctx, Table{}); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("before there is a state: %v", err)
	}
	h.change(func() { h.targets, h.nodes = sorted(one, full, later), slices.Repeat([]string{"10.0.0.1:3648"}, 100) })
	known, err := up.Targets(ctx, Table{})
	if err != nil || len(known.Targets) != 2 || known.Lead != "n1/1" {
		t.Fatalf("%+v, %v", known, err)
	}
	if mark := rota.TableOf(h.targets).Fingerprint(); known.Given.Fingerprint() != mark || known.Fingerprint != mark.String() {
		t.Errorf("the fingerprint is %s, want %s", known.Fingerprint, mark)
	}
	if len(heard) != 1 || len(heard[0]) != maxNodes {
		t.Errorf("it heard of the nodes %v", heard)
	}
	for _, tg := range known.Targets {
		if rota.NewTarget(tg.Address, tg.Check).ID != tg.ID {
			t.Errorf("%s came as something else", tg.ID)
		}
	}
	// It waits for news: another leader, other targets, others of them lazy.
	lazy := one
	lazy.Lazy = true
	for _, f := range []func(){
		func() { h.lead = "n2/2" }, func() { h.targets = sorted(one, two) }, func() { h.targets = sorted(lazy, two) }, func() { h.targets = sorted(one, two) },
		func() { h.targets = sorted(lazy, two) },
	} {
		answer := make(chan Table, 1)
		go func() {
			n, err := up.Targets(ctx, known)
			if err != nil {
				t.Error(err)
			}
			answer <- n
		}()
		select {
		case n := <-answer:
			t.Errorf("answered without news: %+v", n)
		case <-time.After(100 * time.Millisecond):
		}
		h.change(f)
		next := <-answer
		if next.Given == nil {
			next.Given, next.Targets = known.Given, known.Targets
		}
		known = next
	}
	if known.Lead != "n2/2" || len(known.Targets) != 2 || !slices.ContainsFunc(known.Targets, func(t rota.Target) bool { return t.Lazy }) {
		t.Errorf("now %+v", known)
	}
	// Who does not know of a leader, or asks without one, is not kept waiting.
	if again, err := up.Targets(ctx, Table{Fingerprint: known.Fingerprint, Pace: known.Pace}); err != nil || again.Lead != "n2/2" || again.Targets != nil {
		t.Errorf("%+v, %v", again, err)
	}
	if err := up.Report(ctx, known.Given, reportOf("edge", 1, "+-", one, two)); err != nil {
		t.Fatal(err)
	}
	if got := h.got()[0]; statusesOf(got) != "up down" || h.said[0] != "edge@ams" || got.Vantage != "edge" || got.Seq != 1 {
		t.Errorf("%+v of %s", got, h.said)
	}
	// What became of it comes back as it was meant.
	for _, c := range []struct {
		fail  error
		want  Refusal
		table bool
	}{
		{errors.New("no leader\x1b[31m"), Refusal{Status: 503, Text: "no leader?[31m"}, false},
		{fmt.Errorf("forwarded: %w", &Refusal{Status: 409, Word: RefusedTable, Text: "fetch"}), Refusal{Status: 409, Word: RefusedTable, Text: "fetch"}, true},
		{&Refusal{Status: 409, Word: RefusedTwice, Text: "another process"}, Refusal{Status: 409, Word: RefusedTwice, Text: "another process"}, false},
		{&Refusal{Status: 429}, Refusal{Status: 429, Text: "no reason given"}, false},
	} {
		h.change(func() { h.fail = c.fail })
		err := up.Report(ctx, known.Given, reportOf("edge", 3, "++", one, two))
		got, ok := errors.AsType[*Refusal](err)
		if !ok || *got != c.want || errors.Is(err, rota.ErrTable) != c.table {
			t.Errorf("%v came back as %+v, %v", c.fail, got, err)
		}
	}
	if s := h.Stats(); s.Reports != 1 || s.Refused != 5 {
		t.Errorf("counted %+v", s)
	}
}

// An answer whose targets are not those of its fingerprint is none: a report by them would be of other targets.
func TestUpstreamThatLies(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(tableBody{Fingerprint: rota.TableOf(sorted(one, two)).Fingerprint().String(), Targets: sorted(one)})
	}))
	defer srv.Close()
	if _, err := (&HTTPUpstream{Client: srv.Client(), Base: srv.URL}).Targets(t.Context(), Table{}); err == nil || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("got %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	h := newHub(t, sorted(one, two))
	h.run(t)
	edge := client(t, h.ca, h.ca.issue(t, "edge", time.Hour, "agent.edge"))
	other := newAuthority(t, "other")
	good := string(rota.TableOf(h.targets).Pack(reportOf("edge", 1, "+-", one, two)))
	for _, c := range []struct {
		what         string
		client       *http.Client
		method, path string
		body         string
		want         int // 0: no answer
	}{
		{"no certificate", client(t, h.ca), "GET", TargetsPath, "", 0},
		{"another CA's certificate", client(t, h.ca, other.issue(t, "edge", time.Hour, "agent.edge")), "GET", TargetsPath, "", 0},
		{"a node's certificate", client(t, h.ca, h.ca.issue(t, "n1", time.Hour, "n1")), "POST", ReportPath, good, 403},
		{"another path", edge, "GET", "/v1/append", "", 404},
		{"another method", edge, "DELETE", TargetsPath, "", 405},
		{"a GET of reports", edge, "GET", ReportPath, "", 405},
		{"a wait that is none", edge, "GET", TargetsPath + "?wait=x", "", 400},
		{"a wait below nothing", edge, "GET", TargetsPath + "?wait=-1", "", 400},
		{"too large", edge, "POST", ReportPath, strings.Repeat("x", rota.MaxPacked+1), 413},
		{"garbage, which is Report's to refuse", edge, "POST", ReportPath, "x", 409},
	} {
		req, err := http.NewRequest(c.method, h.url+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", ReportType)
		resp, err := c.client.Do(req)
		code, text := 0, ""
		if err == nil {
			code = resp.StatusCode
			b, _ := io.ReadAll(resp.Body)
			text = string(b)
			_ = resp.Body.Close()
		}
		if code != c.want {
			t.Errorf("%s: %d %s %v, want %d", c.what, code, text, err, c.want)
		}
	}
	if n := len(h.got()); n != 0 {
		t.Errorf("%d reports were taken", n)
	}
	for header, want := range map[[2]string]int{
		{"Content-Type", "application/json"}: 415, {"Content-Encoding", "gzip"}: 415, {SiteHeader, strings.Repeat("x", 65)}: 400,
		{VantageHeader, "foo"}: 403, {AgeHeader, "0"}: 403, {"X-Unknown", "1"}: 204,
	} {
		req, _ := http.NewRequest("POST", h.url+ReportPath, strings.NewReader(good))
		req.Header.Set("Content-Type", ReportType)
		req.Header.Set(header[0], header[1])
		resp, err := edge.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", header, resp.StatusCode, want)
		}
	}
}

// The log of an agent that is refused again and again is short, and says how often.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := saying{log: slog.New(slog.NewTextHandler(&out, nil))}
		for range 1000 {
			s.refused("agent refused", "edge", "192.0.2.1:1", refuse(429, "too many"))
			s.refused("agent refused", "other", "192.0.2.2:1", refuse(400, "bad"))
		}
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
		time.Sleep(saidEvery)
		s.refused("agent refused", "edge", "192.0.2.1:1", refuse(429, "too many"))
		if last := out.String(); strings.Count(last, "\n") != 3 || !strings.Contains(last, "more_like_it=999") {
			t.Error(last)
		}
		for i := range 10 * saidMost {
			s.refused("agent refused", fmt.Sprint(i), "192.0.2.1:1", refuse(403, "no"))
		}
		if len(s.of) > saidMost {
			t.Errorf("%d agents are remembered", len(s.of))
		}
	})
}

func TestAge(t *testing.T) {
	for _, d := range []time.Duration{0, time.Millisecond, 1500 * time.Millisecond, 15 * time.Second, maxAge} {
		if got, err := ParseAge(FormatAge(d)); err != nil || got != d {
			t.Errorf("%v became %v, %v", d, got, err)
		}
	}
	if got, err := ParseAge(""); err != nil || got != 0 {
		t.Errorf("no age is %v, %v", got, err)
	}
	if got := FormatAge(-time.Second); got != "0.000" {
		t.Errorf("an age below nothing is written %s", got)
	}
	for _, s := range []string{"-1", "x", "NaN", "Inf", "86401", "1e300", "1s", " 1"} {
		if got, err := ParseAge(s); err == nil {
			t.Errorf("%q is an age of %v", s, got)
		}
	}
}

// The whole way: rota's agent works for a node over TLS.
func TestAgentOverTLS(t *testing.T) {
	h := newHub(t, sorted(one, two))
	h.run(t)
	p := newProber()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	c := client(t, h.ca, h.ca.issue(t, "edge", time.Hour, "agent.edge"))
	a := Agent{Name: "edge", Prober: p, Upstreams: func() []Upstream {
		return []Upstream{&HTTPUpstream{Client: c, Base: "https://" + dead.Addr().String()}, &HTTPUpstream{Client: c, Base: h.url}}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	eventually(t, "targets", func() bool { n, _ := p.counts(); return n == 2 })
	p.hold("+-")
	eventually(t, "report", func() bool { g := h.got(); return len(g) > 0 && statusesOf(g[len(g)-1]) == "up down" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
