package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// hub is a Server under test with what it is wired to.
type hub struct {
	*Server
	ca  *authority
	url string

	mu      sync.Mutex
	targets []rota.Target
	lead    string
	changed chan struct{}
	fail    error
	reports []*rota.Report
	sites   []string
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
		Changed: func() <-chan struct{} { h.mu.Lock(); defer h.mu.Unlock(); return h.changed },
		Report: func(_ context.Context, site string, r *rota.Report) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.fail != nil {
				return h.fail
			}
			h.reports, h.sites = append(h.reports, r), append(h.sites, site)
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
	up := &HTTPUpstream{Client: client(t, h.ca, h.ca.issue(t, "edge", time.Hour, "agent.edge")), Base: h.url, Site: "ams"}
	if _, err := up.Targets(ctx, Table{}); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("before there is a state: %v", err)
	}
	h.change(func() { h.targets = sorted(one, full, later) })
	known, err := up.Targets(ctx, Table{})
	if err != nil || len(known.Targets) != 2 || known.Lead != "n1/1" {
		t.Fatalf("%+v, %v", known, err)
	}
	for _, tg := range known.Targets {
		if rota.NewTarget(tg.Address, tg.Check).ID != tg.ID {
			t.Errorf("%s came as something else", tg.ID)
		}
	}
	// It waits for news: another leader, other targets.
	for _, f := range []func(){func() { h.lead = "n2/2" }, func() { h.targets = sorted(one, two) }} {
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
		known = <-answer
	}
	if known.Lead != "n2/2" || len(known.Targets) != 2 {
		t.Errorf("now %+v", known)
	}
	if err := up.Report(ctx, reportOf("edge", 1, "+-", one, two)); err != nil {
		t.Fatal(err)
	}
	if got := h.got()[0]; statusesOf(got) != "up down" || h.sites[0] != "ams" || got.At.IsZero() {
		t.Errorf("%+v of %s", got, h.sites)
	}
	// Opinions keep their pointers although zones of time travelled, and one that lies about the future does not move.
	again := reportOf("edge", 2, "+-", one, two)
	for i := range again.Opinions {
		again.Opinions[i].Since = h.got()[0].Opinions[i].Since.In(time.FixedZone("y", 7200))
	}
	if err := up.Report(ctx, again); err != nil {
		t.Fatal(err)
	}
	for i := range again.Opinions {
		again.Opinions[i].Since = time.Now().Add(time.Hour)
	}
	again.Seq, again.At = 3, time.Now().Add(1000*time.Hour)
	if err := up.Report(ctx, again); err != nil {
		t.Fatal(err)
	}
	for i, r := range h.got()[1:] {
		if r.Opinions[0] != h.got()[0].Opinions[0] || time.Until(r.At) > 0 {
			t.Errorf("report %d: moved %v, at %v", i, rota.Moved(h.got()[0], r), r.At)
		}
	}
	// A replay and an older one are refused; number 1 begins anew.
	if err := up.Report(ctx, again); !errors.Is(err, ErrOvertaken) {
		t.Errorf("a replay: %v", err)
	}
	if err := up.Report(ctx, reportOf("edge", 1, "+-", one, two)); err != nil {
		t.Error(err)
	}
	// Targets that are not in force are refused one by one.
	if err := up.Report(ctx, reportOf("edge", 2, "-+-", one, two, full)); err != nil {
		t.Error(err)
	}
	if got := h.got(); len(got[len(got)-1].Opinions) != 2 || h.Stats().Strangers != 1 {
		t.Errorf("%+v, %+v", got[len(got)-1], h.Stats())
	}
	// A node that cannot hand on says so.
	h.change(func() { h.fail = errors.New("no leader") })
	if err := up.Report(ctx, reportOf("edge", 3, "++", one, two)); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("without a leader: %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	h := newHub(t, sorted(one, two))
	h.run(t)
	edge := client(t, h.ca, h.ca.issue(t, "edge", time.Hour, "agent.edge"))
	other := newAuthority(t, "other")
	good, _ := json.Marshal(reportOf("edge", 1, "+-", one, two))
	o := func(id string) string { return fmt.Sprintf(`{"target":%q,"status":"up"}`, id) }
	in := func(opinions string) string { return `{"vantage":"edge","seq":1,"opinions":[` + opinions + `]}` }
	var many strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&many, "%s,", o(fmt.Sprintf("x%08d", i)))
	}
	for _, c := range []struct {
		what         string
		client       *http.Client
		method, path string
		body         string
		want         int
	}{
		{"no certificate", client(t, h.ca), "POST", ReportPath, string(good), 0},
		{"a foreign CA", client(t, h.ca, other.issue(t, "edge", time.Hour, "agent.edge")), "POST", ReportPath, string(good), 0},
		{"expired", client(t, h.ca, h.ca.issue(t, "edge", -time.Minute, "agent.edge")), "POST", ReportPath, string(good), 0},
		{"a node's certificate", client(t, h.ca, h.ca.issue(t, "n1", time.Hour, "node.n1")), "POST", ReportPath, string(good), 403},
		{"another agent's report", client(t, h.ca, h.ca.issue(t, "b", time.Hour, "agent.b")), "POST", ReportPath, string(good), 403},
		{"a node's report", edge, "POST", ReportPath, strings.Replace(string(good), "edge", "n1", 1), 403},
		{"a path", edge, "GET", "/v1/raft", "", 404},
		{"GET of the report", edge, "GET", ReportPath, "", 405},
		{"POST of the targets", edge, "POST", TargetsPath, string(good), 405},
		{"a wait that is none", edge, "GET", TargetsPath + "?known=x&wait=-1", "", 400},
		{"truncated", edge, "POST", ReportPath, string(good[:len(good)-5]), 400},
		{"nothing", edge, "POST", ReportPath, "", 400},
		{"HTML", edge, "POST", ReportPath, "<html>", 400},
		{"an array", edge, "POST", ReportPath, "[]", 400},
		{"null", edge, "POST", ReportPath, "null", 400},
		{"without opinions", edge, "POST", ReportPath, `{"vantage":"edge","seq":1}`, 400},
		{"null for opinions", edge, "POST", ReportPath, `{"vantage":"edge","seq":1,"opinions":null}`, 400},
		{"number 0", edge, "POST", ReportPath, `{"vantage":"edge","opinions":[]}`, 400},
		{"opinions twice", edge, "POST", ReportPath, `{"vantage":"edge","seq":1,"opinions":[],"opinions":[]}`, 400},
		{"vantage twice", edge, "POST", ReportPath, `{"vantage":"edge","vantage":"n1","seq":1,"opinions":[]}`, 400},
		{"two reports", edge, "POST", ReportPath, string(good) + string(good), 400},
		{"out of order", edge, "POST", ReportPath, in(o("b") + "," + o("a")), 400},
		{"twice the same", edge, "POST", ReportPath, in(o("a") + "," + o("a")), 400},
		{"a null opinion", edge, "POST", ReportPath, in("null"), 400},
		{"far more opinions than targets", edge, "POST", ReportPath, in(strings.TrimSuffix(many.String(), ",")), 400},
		{"deep", edge, "POST", ReportPath, `{"x":` + strings.Repeat("[", 12000) + strings.Repeat("]", 12000) + `,"vantage":"edge","seq":1,"opinions":[]}`, 400},
		{"more than there is to say", edge, "POST", ReportPath, `{"vantage":"edge","seq":1,"opinions":[` + strings.Repeat(" ", 1<<20) + `]}`, 413},
		{"a huge field", edge, "POST", ReportPath, `{"x":"` + strings.Repeat("x", 10000) + `","vantage":"edge","seq":1,"opinions":[]}`, 400},
	} {
		req, err := http.NewRequest(c.method, h.url+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
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
		{"Content-Type", "text/plain"}: 415, {"Content-Encoding", "gzip"}: 415, {SiteHeader, strings.Repeat("x", 65)}: 400,
		{"X-Unknown", "1"}: 204,
	} {
		req, _ := http.NewRequest("POST", h.url+ReportPath, strings.NewReader(string(good)))
		req.Header.Set("Content-Type", "application/json")
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
	// A million opinions are given up long before their end, and a field of a later version is skipped.
	r, n, err := readReport(strings.NewReader(`{"new":{"a":[1]},"vantage":"edge","seq":7,"opinions":[`+o(string(one.ID))+`]}`), sorted(one, two), nil, time.Now())
	if err != nil || n != 0 || r.Seq != 7 || statusesOf(r) != "up" {
		t.Errorf("%+v, %d, %v", r, n, err)
	}
	read := &counting{}
	if _, _, err := readReport(read, sorted(one), nil, time.Now()); err == nil || read.n > 1<<20 {
		t.Errorf("an endless report was read for %d bytes: %v", read.n, err)
	}
}

// counting is an endless report.
type counting struct{ n int }

func (c *counting) Read(b []byte) (int, error) {
	s := `{"vantage":"e","seq":1,"opinions":[`
	if c.n > 0 {
		s = fmt.Sprintf(`{"target":"x%09d"},`, c.n)
	}
	n := copy(b, s)
	if n < len(s) {
		return 0, io.ErrShortBuffer
	}
	c.n += n
	return n, nil
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
	a := Agent{Name: "edge", Prober: p, Upstreams: []Upstream{
		&HTTPUpstream{Client: c, Base: "https://" + dead.Addr().String()}, &HTTPUpstream{Client: c, Base: h.url},
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
