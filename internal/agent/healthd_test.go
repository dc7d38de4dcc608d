package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// desk is a Healthd under test with what it is wired to.
type desk struct {
	*Healthd
	ca      *authority // of the agents and of the server
	files   Files
	mu      sync.Mutex
	accept  []string
	targets []rota.Target
	reports []*rota.Report
}

func newDesk(t *testing.T, targets []rota.Target) *desk {
	t.Helper()
	d := &desk{ca: newAuthority(t, "agents"), files: filesIn(t.TempDir()), accept: []string{"foo", "bar", "baz", "n1"}, targets: targets}
	write(t, d.files, d.ca.issue(t, "healthd", time.Hour), d.ca)
	var err error
	d.Healthd, err = NewHealthd(HealthdOptions{
		Listen: "127.0.0.1:0", TLS: d.files,
		Accept:  func() []string { d.mu.Lock(); defer d.mu.Unlock(); return d.accept },
		Nodes:   func() []string { return []string{"n1"} },
		Targets: func() []rota.Target { d.mu.Lock(); defer d.mu.Unlock(); return d.targets },
		Report:  func(r *rota.Report) { d.mu.Lock(); defer d.mu.Unlock(); d.reports = append(d.reports, r) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *desk) set(ts []rota.Target) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.targets = ts
}

// last returns the newest report of an agent, or nil.
func (d *desk) last(name string) *rota.Report {
	for _, r := range d.Reports() {
		if r.Vantage == name {
			return r
		}
	}
	return nil
}

// run serves on loopback for the length of the test and returns the URL.
func (d *desk) run(t *testing.T) string {
	t.Helper()
	if err := d.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "https://" + d.Addr().String()
}

// ask sends one request and returns status and body.
func ask(t *testing.T, c *http.Client, method, url, name string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if name != "" {
		req.Header.Set("X-Agent-Name", name)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func statusesOf(r *rota.Report) string {
	if r == nil {
		return "no report"
	}
	var out []string
	for _, o := range r.Opinions {
		out = append(out, o.Status.String())
	}
	return strings.Join(out, " ")
}

func TestHealthdWire(t *testing.T) {
	d := newDesk(t, nil)
	url := d.run(t)
	foo := client(t, d.ca, d.ca.issue(t, "foo", time.Hour))
	if code, _ := ask(t, foo, "GET", url, "foo", nil); code != 500 {
		t.Errorf("before the targets are known GET gives %d, want 500", code)
	}
	d.set(sorted(target(rota.KindHTTP, "50.0.0.1:80"), target(rota.KindTCP, "75.0.0.1:443")))
	if code, _ := ask(t, foo, "POST", url, "foo", strings.NewReader(`[]`)); code != 500 {
		t.Errorf("a POST before the first GET gives %d, want 500", code)
	}
	for _, path := range []string{"", "/", "/any/path?q=1"} {
		if code, body := ask(t, foo, "GET", url+path, "foo", nil); code != 200 || body != `["http://50.0.0.1:80","tcp://75.0.0.1:443"]` {
			t.Errorf("GET %s gives %d %s", path, code, body)
		}
	}
	post := `[{"IP":"50.0.0.1","Port":80,"Healthy":true,"Message":"success","DidChange":true},{"IP":"","Port":0,"Healthy":false,"Message":"","DidChange":false}]`
	if code, body := ask(t, foo, "POST", url, "foo", strings.NewReader(post)); code != 200 || body != "" {
		t.Errorf("POST gives %d %q", code, body)
	}
	if got := statusesOf(d.last("foo")); got != "up unknown" {
		t.Errorf("the report is %q", got)
	}
	first := d.last("foo")
	post = `[{"IP":"50.0.0.1","Port":80,"Healthy":true,"Message":"success","DidChange":false},{"IP":"75.0.0.1","Port":443,"Healthy":false,"Message":"dial tcp 75.0.0.1:443: connect: connection refused","DidChange":true},{"IP":"9.9.9.9","Port":53,"Healthy":true}]`
	for range 2 { // a replay says nothing new
		if code, body := ask(t, foo, "POST", url, "foo", strings.NewReader(post)); code != 200 {
			t.Errorf("POST gives %d %q", code, body)
		}
	}
	r := d.last("foo")
	if statusesOf(r) != "up down" || r.Opinions[0] != first.Opinions[0] || r.Seq != 3 || r.Opinions[1].Class != rota.ClassRefused {
		t.Errorf("the report is %+v: %s", r, statusesOf(r))
	}
	if moved := rota.Moved(d.reports[1], d.reports[2]); len(moved) != 0 {
		t.Errorf("a replay moved %v", moved)
	}
	if s := d.Stats(); s.Strangers != 2 || s.Reports != 3 || s.Lists != 3 {
		t.Errorf("counts: %+v", s)
	}
	// A name that is no longer accepted is no longer heard, and what it said is gone.
	d.mu.Lock()
	d.accept = []string{"bar"}
	d.mu.Unlock()
	if code, _ := ask(t, foo, "POST", url, "foo", strings.NewReader(post)); code != 403 || len(d.Reports()) != 0 {
		t.Errorf("no longer accepted: %d, and %d reports", code, len(d.Reports()))
	}
	d.mu.Lock()
	d.accept = []string{"foo"}
	d.mu.Unlock()
	// What is left out is unknown from then on.
	if code, _ := ask(t, foo, "POST", url, "foo", strings.NewReader(`[]`)); code != 200 || statusesOf(d.last("foo")) != "unknown unknown" {
		t.Errorf("an empty report gives %d, %s", code, statusesOf(d.last("foo")))
	}
}

func TestHealthdRefuses(t *testing.T) {
	d := newDesk(t, sorted(target(rota.KindTCP, "10.0.0.1:80")))
	url := d.run(t)
	foo := client(t, d.ca, d.ca.issue(t, "foo", time.Hour))
	ask(t, foo, "GET", url, "foo", nil)
	if code, _ := ask(t, foo, "POST", url, "foo", strings.NewReader(`[{"IP":"10.0.0.1","Port":80,"Healthy":true}]`)); code != 200 {
		t.Fatalf("a good POST gives %d", code)
	}
	good := d.last("foo")
	other := newAuthority(t, "other")
	sized := func(n int) io.Reader { return bytes.NewReader(append([]byte("[]"), bytes.Repeat([]byte(" "), n-2)...)) }
	million := "[" + strings.Repeat(`{},`, 999_999) + "{}]"
	html := "<!doctype html><title>502</title>"
	for _, c := range []struct {
		what   string
		client *http.Client
		method string
		name   string
		body   io.Reader
		want   int // 0: no TLS
	}{
		{"no name", foo, "GET", "", nil, 400},
		{"another name than in the certificate", foo, "GET", "bar", nil, 403},
		{"a prefix of the name", foo, "GET", "fo", nil, 403},
		{"a DNS name", client(t, d.ca, d.ca.issue(t, "x", time.Hour, "bar")), "GET", "bar", nil, 200},
		{"a wildcard", client(t, d.ca, d.ca.issue(t, "x", time.Hour, "*.example.org")), "GET", "a.example.org", nil, 403},
		{"a name that is not accepted", client(t, d.ca, d.ca.issue(t, "stranger", time.Hour)), "GET", "stranger", nil, 403},
		{"a node's name", client(t, d.ca, d.ca.issue(t, "n1", time.Hour)), "POST", "n1", strings.NewReader("[]"), 403},
		{"the name monitors", client(t, d.ca, d.ca.issue(t, "monitors", time.Hour)), "POST", "monitors", strings.NewReader("[]"), 403},
		{"no certificate", client(t, d.ca), "GET", "foo", nil, 0},
		{"a foreign CA", client(t, d.ca, other.issue(t, "foo", time.Hour)), "GET", "foo", nil, 0},
		{"expired", client(t, d.ca, d.ca.issue(t, "foo", -time.Minute)), "GET", "foo", nil, 0},
		{"HEAD", foo, "HEAD", "foo", nil, 400},
		{"PUT", foo, "PUT", "foo", strings.NewReader("[]"), 400},
		{"DELETE", foo, "DELETE", "foo", nil, 400},
		{"empty body", foo, "POST", "foo", nil, 400},
		{"chunked", foo, "POST", "foo", struct{ io.Reader }{strings.NewReader("[]")}, 400},
		{"a million bytes", foo, "POST", "foo", sized(1_000_000), 200},
		{"more", foo, "POST", "foo", sized(1_000_001), 400},
		{"a million statuses", foo, "POST", "foo", strings.NewReader(million), 400},
		{"truncated", foo, "POST", "foo", strings.NewReader(`[{"IP":"10.0.0.1","Port":80,"Healthy":fa`), 400},
		{"object", foo, "POST", "foo", strings.NewReader(`{"IP":"10.0.0.1"}`), 400},
		{"null", foo, "POST", "foo", strings.NewReader(`null`), 400},
		{"null in it", foo, "POST", "foo", strings.NewReader(`[null]`), 400},
		{"strings", foo, "POST", "foo", strings.NewReader(`["http://10.0.0.1:80"]`), 400},
		{"two documents", foo, "POST", "foo", strings.NewReader(`[][]`), 400},
		{"HTML", foo, "POST", "foo", strings.NewReader(html), 400},
		{"a port that is none", foo, "POST", "foo", strings.NewReader(`[{"IP":"10.0.0.1","Port":1000000000}]`), 200},
	} {
		before := len(d.reports)
		code, body := ask(t, c.client, c.method, url, c.name, c.body)
		if code != c.want {
			t.Errorf("%s: %d %s, want %d", c.what, code, body, c.want)
		}
		if code != 200 && len(d.reports) != before {
			t.Errorf("%s: was taken for a report", c.what)
		}
	}
	if d.last("foo") == good || d.last("n1") != nil || d.last("monitors") != nil {
		t.Errorf("reports: %v", d.Reports())
	}
	if s := d.Stats(); s.Refused < 15 {
		t.Errorf("counts: %+v", s)
	}
}

// The CA, the certificate and the accepted names of a running server are those of the files.
func TestHealthdReloads(t *testing.T) {
	d := newDesk(t, sorted(target(rota.KindTCP, "10.0.0.1:80")))
	url := d.run(t)
	old := client(t, d.ca, d.ca.issue(t, "foo", time.Hour))
	if code, body := ask(t, old, "GET", url, "foo", nil); code != 200 {
		t.Fatal(code, body)
	}
	touch := func(n int) {
		for _, f := range []string{d.files.Cert, d.files.Key, d.files.CA} {
			at := time.Now().Add(time.Duration(n) * time.Hour)
			if err := os.Chtimes(f, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(d.files.CA, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	touch(1)
	if code, body := ask(t, old, "GET", url, "foo", nil); code != 200 {
		t.Errorf("after a broken file: %d %s", code, body)
	}
	next := newAuthority(t, "next")
	write(t, d.files, next.issue(t, "healthd", time.Hour), next)
	touch(2)
	if code, _ := ask(t, old, "GET", url, "foo", nil); code != 403 {
		t.Errorf("a connection from before, with a certificate of the CA before: %d, want 403", code)
	}
	if code, body := ask(t, client(t, next, next.issue(t, "foo", time.Hour)), "GET", url, "foo", nil); code != 200 {
		t.Errorf("with the new CA: %d %s", code, body)
	}
}

// pipes is a listener without a network, whose connections a bubble can wait for.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error { return nil }
func (p pipes) Addr() net.Addr {
	return &net.TCPAddr{}
}

// A body that drips is given up after ten seconds, and so is a caller that never speaks; others go on meanwhile.
func TestHealthdSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, sorted(target(rota.KindTCP, "10.0.0.1:80")))
		files, err := newReloading(d.files, d.log)
		if err != nil {
			t.Fatal(err)
		}
		l := make(pipes)
		d.Healthd.files, d.listener = files, tls.NewListener(l, files.server())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		pool := x509.NewCertPool()
		pool.AddCert(d.ca.cert)
		dial := func(say string) *tls.Conn {
			here, there := net.Pipe()
			l <- there
			c := tls.Client(here, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{d.ca.issue(t, "foo", time.Hour)}})
			if say != "" {
				if _, err := io.WriteString(c, say); err != nil {
					t.Fatal(err)
				}
			}
			return c
		}
		began := time.Now()
		slow := dial("POST / HTTP/1.1\r\nHost: h\r\nX-Agent-Name: foo\r\nContent-Length: 100\r\n\r\n[")
		mute := dial("")
		quick := dial("GET / HTTP/1.1\r\nHost: h\r\nX-Agent-Name: foo\r\nConnection: close\r\n\r\n")
		if b, err := io.ReadAll(quick); err != nil || !bytes.Contains(b, []byte(`["tcp://10.0.0.1:80"]`)) {
			t.Errorf("beside slow callers: %s, %v", b, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("beside slow callers a GET took %v", took)
		}
		_, _ = io.Copy(io.Discard, slow)
		if took := time.Since(began); took < 9*time.Second || took > 12*time.Second {
			t.Errorf("a slow body was given up after %v", took)
		}
		if err := mute.Handshake(); err == nil {
			t.Error("a handshake begins after its time")
		}
		for _, c := range []*tls.Conn{slow, mute, quick} {
			_ = c.NetConn().Close()
		}
		cancel()
		close(l)
		if err := <-done; err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
		if len(d.reports) != 0 {
			t.Error("a slow body became a report")
		}
	})
}

// While an agent still checks an older list, what it says is about that list.
func TestHealthdListChanges(t *testing.T) {
	d := newDesk(t, sorted(target(rota.KindHTTP, "10.0.0.1:80")))
	url := d.run(t)
	foo := client(t, d.ca, d.ca.issue(t, "foo", time.Hour))
	post := func(s string) string {
		t.Helper()
		if code, body := ask(t, foo, "POST", url, "foo", strings.NewReader(s)); code != 200 {
			t.Fatal(code, body)
		}
		return statusesOf(d.last("foo"))
	}
	ask(t, foo, "GET", url, "foo", nil)
	if got := post(`[{"IP":"10.0.0.1","Port":80,"Message":"status 404"}]`); got != "down" {
		t.Errorf("asked by http: %s", got)
	}
	d.set(sorted(target(rota.KindTCP, "10.0.0.1:80"), target(rota.KindTCP, "10.0.0.2:80")))
	if got := post(`[{"IP":"10.0.0.1","Port":80,"Message":"status 404"}]`); got != "unknown unknown" {
		t.Errorf("a 404 heard under the old list, now that tcp is asked: %s", got)
	}
	ask(t, foo, "GET", url, "foo", nil)
	if got := post(`[{"IP":"10.0.0.1","Port":80,"Healthy":true},{"IP":"10.0.0.2","Port":80}]`); got != "up down" {
		t.Errorf("under the new list: %s", got)
	}
	// A reload that changes nothing gives another slice and the same bytes.
	before := d.monitors()
	d.set(slices.Clone(d.targets))
	if after := d.monitors(); &after.body[0] != &before.body[0] {
		t.Error("the same targets made another list")
	}
}

// NectGmbH's scenarios: three agents, majority of those configured (SPEC 4.10 e, f, g).
func TestNectScenarios(t *testing.T) {
	ep := func(a string) rota.Endpoint {
		tg := target(rota.KindTCP, a)
		return rota.Endpoint{Address: tg.Address, Weight: 1, Checks: []rota.Use{{Check: tg.Check}}}
	}
	spec := rota.Spec{
		Services: []rota.Service{
			{Name: "lb1.test.", Endpoints: []rota.Endpoint{ep("10.0.0.1:80"), ep("10.0.0.2:80")}},
			{Name: "lb2.test.", Endpoints: []rota.Endpoint{ep("10.0.0.3:80")}},
		},
		Vantages: []rota.Vantage{{Name: "foo"}, {Name: "bar"}, {Name: "baz"}},
	}
	state, err := new(rota.State).Apply(rota.Event{Index: 1, Kind: rota.EventSpec, At: time.Now(), Spec: &spec})
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, nil)
	url := d.run(t)
	agents := map[string]*http.Client{}
	for _, n := range []string{"foo", "bar", "baz"} {
		agents[n] = client(t, d.ca, d.ca.issue(t, n, time.Hour))
	}
	// e: nothing before the start, then the exact list.
	if code, _ := ask(t, agents["foo"], "GET", url, "foo", nil); code != 500 {
		t.Errorf("before the start: %d", code)
	}
	d.set(state.Targets())
	for n, c := range agents {
		if code, body := ask(t, c, "GET", url, n, nil); code != 200 || body != `["tcp://10.0.0.1:80","tcp://10.0.0.2:80","tcp://10.0.0.3:80"]` {
			t.Errorf("%s is given %d %s", n, code, body)
		}
	}
	say := func(n, up string) {
		t.Helper()
		var ss []status
		for i, c := range up {
			if c == ' ' {
				continue
			}
			ss = append(ss, status{IP: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, Healthy: c == '+', Message: "m"})
		}
		b, _ := json.Marshal(ss)
		if code, body := ask(t, agents[n], "POST", url, n, bytes.NewReader(b)); code != 200 {
			t.Fatal(code, body)
		}
	}
	var ids []rota.TargetID
	for _, tg := range state.Targets() {
		ids = append(ids, tg.ID)
	}
	judge := func(reports []*rota.Report, want string) {
		t.Helper()
		got := []string{"unknown", "unknown", "unknown"}
		for _, v := range state.Judge(ids, reports, time.Now()) {
			got[slices.Index(ids, v.Target)] = v.Status.String()
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("verdicts %s, want %s", g, want)
		}
	}
	// f: one of three for ep1, two for ep2, none for ep3; then two for ep1.
	say("foo", "++-")
	say("bar", "-+-")
	say("baz", "---")
	judge(d.Reports(), "down up down")
	say("baz", "+--")
	judge(d.Reports(), "up up down")
	// g: one report is five minutes old, another lacks ep1 and ep2; ep3 has two fresh votes. Silence is no vote, and not down.
	say("foo", "+++")
	say("bar", "  +")
	say("baz", "+++")
	reports := d.Reports()
	for i, r := range reports {
		if r.Vantage == "foo" {
			old := *r
			old.At = old.At.Add(-5 * time.Minute)
			reports[i] = &old
		}
	}
	judge(reports, "unknown unknown up")
}

// Each POST is newer than the one before, whichever node takes it.
func TestHealthdNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []*rota.Report
		h := func() *Healthd {
			h, err := NewHealthd(HealthdOptions{
				Accept:  func() []string { return []string{"foo"} },
				Targets: func() []rota.Target { return sorted(one) },
				Report:  func(r *rota.Report) { got = append(got, r) },
			})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		say := func(h *Healthd, method, body string) {
			r := httptest.NewRequest(method, "/", strings.NewReader(body))
			r.Header.Set("X-Agent-Name", "foo")
			cert := &x509.Certificate{Subject: pkix.Name{CommonName: "foo"}, NotAfter: time.Now().Add(time.Hour)}
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusOK {
				t.Fatal(w.Code, w.Body)
			}
		}
		a, b := h(), h()
		for _, h := range []*Healthd{a, b, a, a, b} {
			say(h, "GET", "")
			say(h, "POST", "[]")
			time.Sleep(time.Millisecond)
		}
		say(a, "POST", "[]")
		say(a, "POST", "[]") // at the same moment
		for i, r := range got[1:] {
			if r.Incarnation <= got[i].Incarnation || r.Seq == 0 || r.At.IsZero() {
				t.Errorf("report %d is %d of incarnation %d after %d", i+1, r.Seq, r.Incarnation, got[i].Incarnation)
			}
		}
	})
}
