package api

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/rota-dns/rota/internal/rota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2026, 11, 21, 2, 14, 0, 0, time.UTC)

// fold is a Source that applies events at once, as a cluster of one does.
type fold struct {
	mu      sync.Mutex
	state   *rota.State
	changed chan struct{}
	records []Record
	err     error // what Append says instead
}

func newFold() *fold { return &fold{state: &rota.State{}, changed: make(chan struct{})} }

func (f *fold) State() *rota.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fold) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fold) Append(_ context.Context, e rota.Event) (rota.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return e, f.err
	}
	e.Index = f.state.Index() + 1
	next, err := f.state.Apply(e)
	r := Record{Event: e, Transitions: rota.Transitions(f.state, next)}
	if err != nil {
		r.Refused = err.Error()
	}
	f.state, f.records = next, append(f.records, r)
	close(f.changed)
	f.changed = make(chan struct{})
	return e, err
}

func (f *fold) Records(after uint64, limit int) []Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	for i < len(f.records) && f.records[i].Event.Index <= after {
		i++
	}
	if limit > 0 {
		i = max(i, len(f.records)-limit)
	}
	return slices.Clone(f.records[i:])
}

func (f *fold) must(t *testing.T, e rota.Event) {
	t.Helper()
	if _, err := f.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

var vantages = []rota.Vantage{{Name: "ams", Site: "ams"}, {Name: "fra", Site: "fra"}, {Name: "nyc", Site: "nyc"}}

func check() rota.Check {
	return rota.Check{Name: "web", Kind: rota.KindTCP, Port: 443, Timing: rota.DefaultTiming()}
}

func service(name string, addrs ...string) rota.Service {
	v := rota.Service{Name: rota.MustParseName(name), TTL: 30, Safety: rota.DefaultSafety(), Publish: []string{"cf"}, Labels: map[string]string{"team": "shop"}}
	for _, a := range addrs {
		v.Endpoints = append(v.Endpoints, rota.Endpoint{
			Address: netip.MustParseAddr(a), Weight: 1, Site: "ams", Checks: []rota.Use{{Check: check()}},
		})
	}
	return v
}

func verdict(addr string, s rota.Status, reason string) rota.Verdict {
	v := rota.Verdict{Target: rota.NewTarget(netip.MustParseAddr(addr), check()).ID, Status: s, Since: t0, Need: 2}
	for _, w := range vantages {
		v.Votes = append(v.Votes, rota.Vote{Vantage: w.Name, Site: w.Site, Status: s, Reason: reason, Since: t0})
	}
	return v
}

// night is a state with one endpoint of three down.
func night(t *testing.T) *fold {
	t.Helper()
	f := newFold()
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{
		Vantages: vantages,
		Services: []rota.Service{
			service("www.example.org", "192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::10"), service("one.example.org", "198.51.100.1"),
		},
	}})
	f.must(t, rota.Event{At: t0.Add(time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{
		verdict("192.0.2.10", rota.Up, ""), verdict("192.0.2.11", rota.Up, ""), verdict("192.0.2.12", rota.Up, ""),
		verdict("2001:db8::10", rota.Up, ""), verdict("198.51.100.1", rota.Up, ""),
	}})
	f.must(t, rota.Event{At: t0.Add(2 * time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{verdict("192.0.2.11", rota.Down, "connect timeout")}})
	return f
}

// reports are the vantages' reports at a time: all agree, but fra holds 192.0.2.11 up.
func reports(at time.Time) []*rota.Report {
	var out []*rota.Report
	for _, v := range vantages {
		r := &rota.Report{Vantage: v.Name, Seq: 7, At: at}
		for _, a := range []string{"192.0.2.10", "192.0.2.11", "192.0.2.12", "198.51.100.1", "2001:db8::10"} {
			o := &rota.Opinion{Target: rota.NewTarget(netip.MustParseAddr(a), check()).ID, Status: rota.Up, Since: t0}
			if a == "192.0.2.11" && v.Name != "fra" {
				o.Status, o.Reason, o.Class = rota.Down, "connect \x1b[31mtimeout", rota.ClassTimeout
			}
			r.Opinions = append(r.Opinions, o)
		}
		slices.SortFunc(r.Opinions, func(a, b *rota.Opinion) int { return strings.Compare(string(a.Target), string(b.Target)) })
		out = append(out, r)
	}
	return out
}

const (
	viewerToken   = "viewer-0123456789abcdef"
	operatorToken = "operator-0123456789abcdef"
	adminToken    = "admin-0123456789abcdef"
)

func tokens(t *testing.T) []Token {
	t.Helper()
	var out []Token
	for _, x := range []struct {
		name, secret string
		role         Role
	}{{"eve", viewerToken, RoleViewer}, {"ops", operatorToken, RoleOperator}, {"root", adminToken, RoleAdmin}} {
		k, err := NewToken(x.name, x.role, x.secret)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, k)
	}
	return out
}

func options(t *testing.T, f *fold) Options {
	t.Helper()
	now := t0.Add(time.Minute)
	return Options{
		Source: f, Append: f.Append, Records: f.Records, Reports: func() []*rota.Report { return reports(now) },
		Publishers: func() []PublisherStatus {
			name := rota.MustParseName("www.example.org")
			return []PublisherStatus{{Publisher: "cf", Type: "rfc2136", Zones: []PublishedZone{{
				Zone: rota.MustParseName("example.org"), State: "pending", Read: now,
				Records: []rota.RRset{{Name: name, Type: rota.TypeA, TTL: 30, Data: []string{"192.0.2.10", "192.0.2.11"}}},
			}}}}
		},
		Plan: func(context.Context, string) ([]Plan, error) { return nil, nil },
		NameServer: func() NameServer {
			return NameServer{Addresses: []string{"127.0.0.1:53"}, Zones: []rota.Name{"lb.example.org."}}
		},
		Cluster: func() ClusterStatus {
			return ClusterStatus{Node: "ams1", Raft: "leader", Leader: "ams1", Leading: true, Healthy: true}
		},
		Config:   func() []byte { return []byte("version: 1\n") },
		Reload:   func(context.Context) error { return nil },
		Registry: prometheus.NewRegistry(),
		Tokens:   tokens(t),
		Version:  "v1.2.3",
		Now:      func() time.Time { return now },
	}
}

func server(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asUnix marks a request as one that came over the unix socket.
func asUnix(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{1000, true}))
}

func call(s *Server, r *http.Request) *httptest.ResponseRecorder {
	if r.Host == "example.com" { // what httptest puts there
		r.Host = "127.0.0.1:8080"
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func get(s *Server, path string) *httptest.ResponseRecorder {
	return call(s, asUnix(httptest.NewRequest(http.MethodGet, path, nil)))
}

func post(s *Server, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return call(s, asUnix(r))
}

func decode[T any](t *testing.T, w *httptest.ResponseRecorder) T {
	t.Helper()
	var out T
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return out
}

func TestEndpoints(t *testing.T) {
	s := server(t, options(t, night(t)))
	w := get(s, "/api/v1/endpoints?match=www.example.org")
	l := decode[List[EndpointView]](t, w)
	if l.Index != 3 || w.Header().Get("Rota-State-Index") != "3" || len(l.Items) != 4 {
		t.Fatalf("got %+v", l)
	}
	down := l.Items[1]
	want := VotesView{For: 2, Need: 2, Of: 3, Against: []string{"fra up"}}
	if diff := cmp.Diff(want, down.Votes); diff != "" {
		t.Error(diff)
	}
	if down.Verdict != rota.Down || down.InAnswer || !strings.Contains(down.Why, "connect timeout") {
		t.Errorf("got %+v", down)
	}
	for i, want := range []string{"in", "leaving", "pending", "pending"} {
		if p := l.Items[i].Published; len(p) != 1 || p[0].State != want {
			t.Errorf("%s: published %v, want %s", l.Items[i].Endpoint, p, want)
		}
	}
	if strings.Contains(w.Body.String(), "\x1b") || strings.Contains(get(s, "/api/v1/checks").Body.String(), `\u001b`) {
		t.Error("a control character of an endpoint came through")
	}
	if l := decode[List[EndpointView]](t, get(s, "/api/v1/endpoints?label=team=shop&label=tier=1")); len(l.Items) != 0 {
		t.Errorf("labels are not all wanted: %v", l.Items)
	}
}

func TestReads(t *testing.T) {
	s := server(t, options(t, night(t)))
	x := decode[Explained](t, get(s, "/api/v1/explain?name=WWW.example.org.&type=a&client=203.0.113.0/24"))
	if !slices.Equal(x.Answer, []string{"192.0.2.10", "192.0.2.12"}) || len(x.Now) != 3 || x.Published[0].State != "pending" || x.Transition == nil {
		t.Errorf("got %+v", x)
	}
	d := decode[ServiceDetail](t, get(s, "/api/v1/services/www.example.org"))
	if d.Service.Status != "degraded" || d.Service.Up != 3 || len(d.Members) != 4 {
		t.Errorf("got %+v", d)
	}
	v := decode[VantageList](t, get(s, "/api/v1/vantages"))
	if v.Voting != 3 || v.Need != 2 || v.Items[0].Down != 1 {
		t.Errorf("got %+v", v)
	}
	z := decode[List[ZoneView]](t, get(s, "/api/v1/zones"))
	if len(z.Items) != 2 || z.Items[0].Zone != "example.org" || z.Items[0].Services != 2 {
		t.Errorf("got %+v", z)
	}
	c := decode[List[ChangeView]](t, get(s, "/api/v1/changes?limit=1"))
	if len(c.Items) != 1 || !slices.Contains(c.Items[0].Before, "192.0.2.11") || slices.Contains(c.Items[0].After, "192.0.2.11") {
		t.Errorf("got %+v", c)
	}
	for path, want := range map[string]string{
		"/api/v1/services/www.exmple.org":     "did you mean www.example.org",
		"/api/v1/explain?name=wwww":           "no service wwww",
		"/api/v1/endpoints?match=site:nowere": "names no endpoint",
	} {
		if w := get(s, path); w.Code != 404 || !strings.Contains(w.Body.String(), want) || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %q", path, w.Code, w.Body, want)
		}
	}
	// Every list is [], never null, before anything happened.
	empty := server(t, Options{Source: newFold(), Append: newFold().Append})
	for _, p := range []string{"services", "endpoints", "checks", "vantages", "zones", "publishers", "changes", "overrides", "events"} {
		if w := get(empty, "/api/v1/"+p); w.Code != 200 || !strings.Contains(w.Body.String(), `"items":[]`) {
			t.Errorf("%s: %d %s", p, w.Code, w.Body)
		}
	}
}

func TestOverride(t *testing.T) {
	f := night(t)
	s := server(t, options(t, f))
	for _, c := range []struct {
		body string
		code int
		want string
	}{
		{`{"match":"www.example.org/192.0.2.10","action":"drain","for":"2h","reason":"disk","author":"alice"}`, 200, `"author":"alice"`},
		{`{"match":"one.example.org","action":"drain","reason":"x"}`, 409, "no IPv4 address of one.example.org would be left; with --force it is marked"},
		{
			`{"match":"one.example.org","action":"drain","reason":"x","force":true}`, 200,
			`"still_answered":[{"service":"one.example.org.","address":"198.51.100.1"}]`,
		},
		{`{"match":"one.example.org","action":"force-up","reason":"x","for":"3d"}`, 200, `"action":"force-up"`},
		{`{"match":"ww.example.org","action":"drain","reason":"x"}`, 404, "did you mean www.example.org"},
		{`{"match":"www.example.org","action":"kill","reason":"x"}`, 422, "expected value to be one of"},
		{`{"match":"www.example.org","action":"drain"}`, 422, "reason"},
		{`{"match":"www.example.org","action":"drain","reason":"  "}`, 422, "say why"},
		{`{"match":"www.example.org","action":"drain","reason":"x","for":"400d"}`, 422, "at most 366d"},
		{`{"match":"www.example.org","action":"drain","reason":"x","for":"-1h"}`, 422, "above 0"},
	} {
		if w := post(s, "/api/v1/overrides", c.body); w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d %s, want %d %q", c.body, w.Code, w.Body, c.code, c.want)
		}
	}
	if w := post(s, "/api/v1/overrides", `{"match":"www.example.org/2001:db8::10","action":"maintenance","reason":"x"}`); w.Code != 409 ||
		!strings.Contains(w.Body.String(), "held: no IPv6 address of www.example.org would be left; with --force it is marked, and the last answer is kept") {
		t.Errorf("the last IPv6 address: %d %s", w.Code, w.Body)
	}
	if e := f.records[3].Event; e.Actor != "unix:1000" || !e.At.Equal(t0.Add(time.Minute)) || e.Overrides[0].Expires.Sub(e.At) != 2*time.Hour {
		t.Errorf("event %+v", e)
	}
	lift := func(match string) *httptest.ResponseRecorder {
		return call(s, asUnix(httptest.NewRequest(http.MethodDelete, "/api/v1/overrides?match="+match, nil)))
	}
	if r := decode[OverrideReply](t, lift("www.example.org")); len(r.Lifted) != 1 {
		t.Errorf("lifted %v", r.Lifted)
	}
	if w := lift("www.example.org"); w.Code != 404 {
		t.Errorf("lifted twice: %d", w.Code)
	}
	f.err = fmt.Errorf("append: %w", ErrNoLeader)
	if w := post(s, "/api/v1/overrides", `{"match":"www.example.org/192.0.2.10","action":"drain","reason":"x"}`); w.Code != 503 {
		t.Errorf("without a leader: %d", w.Code)
	}
}

// TestAccess tries every route with every role: the whole table, so that a new route is decided on or refused.
// Who empties a name by hand is told what that does: the last answer stays, or, where the operator chose none, nothing does.
func TestOverrideOfTheLast(t *testing.T) {
	f := newFold()
	none := service("none.example.org", "198.51.100.2")
	none.Safety.OnAllDown = rota.OnAllDownNone
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{
		Vantages: vantages, Services: []rota.Service{none, service("one.example.org", "198.51.100.1", "2001:db8::1")},
	}})
	f.must(t, rota.Event{At: t0.Add(time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{
		verdict("198.51.100.1", rota.Up, ""), verdict("198.51.100.2", rota.Up, ""), verdict("2001:db8::1", rota.Up, ""),
	}})
	s := server(t, options(t, f))
	for match, want := range map[string]string{
		"none.example.org": "held: no IPv4 address of none.example.org would be left; with --force the answer is emptied, since on_all_down is none",
		"one.example.org": "held: no IPv4 address of one.example.org would be left; no IPv6 address of one.example.org would be left; " +
			"with --force they are marked, and the last answer is kept until another endpoint serves",
		"*.example.org": "they are marked, and the last answer is kept until another endpoint serves, or emptied where on_all_down is none",
	} {
		if w := post(s, "/api/v1/overrides", `{"match":"`+match+`","action":"drain","reason":"x"}`); w.Code != 409 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %q", match, w.Code, w.Body, want)
		}
	}
	r := decode[OverrideReply](t, post(s, "/api/v1/overrides", `{"match":"*.example.org","action":"drain","reason":"x","force":true}`))
	if got := fmt.Sprint(r.StillAnswered); got != "[one.example.org/198.51.100.1 one.example.org/2001:db8::1]" {
		t.Errorf("still answered: %s", got)
	}
}

// A vantage that cannot probe says so, wherever the endpoint is shown.
func TestOwnFailureIsShown(t *testing.T) {
	f := newFold()
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{
		Vantages: vantages[:1], Services: []rota.Service{service("www.example.org", "192.0.2.10", "192.0.2.11")},
	}})
	o := options(t, f)
	report := &rota.Report{Vantage: "ams", Seq: 1, At: t0.Add(time.Minute)}
	for _, a := range []string{"192.0.2.10", "192.0.2.11"} {
		report.Opinions = append(report.Opinions, &rota.Opinion{
			Target: rota.NewTarget(netip.MustParseAddr(a), check()).ID, Class: rota.ClassPermission, Reason: "no permission for ICMP",
		})
	}
	o.Reports = func() []*rota.Report { return []*rota.Report{report} }
	o.Node = ""
	s := server(t, o)
	for path, want := range map[string]string{
		"services":                     `"unprobed":["192.0.2.10 and 1 more: ams cannot probe it: no permission for ICMP"]`,
		"endpoints":                    `"why":"kept without a verdict: nothing is known against it (web); ams cannot probe it: no permission for ICMP"`,
		"explain?name=www.example.org": `"why":"kept without a verdict: nothing is known against it (web); ams cannot probe it: no permission for ICMP"`,
	} {
		if w := get(s, "/api/v1/"+path); !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %s, want %s", path, w.Body, want)
		}
	}
	o.Node = "ams"
	if w := get(server(t, o), "/api/v1/endpoints"); !strings.Contains(w.Body.String(), "this node cannot probe it: no permission for ICMP") {
		t.Errorf("this node: %s", w.Body)
	}
}

// The fallback is an answer.
func TestExplainFallback(t *testing.T) {
	f := newFold()
	v := service("www.example.org", "192.0.2.10")
	v.Safety.OnAllDown, v.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.net."
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{Vantages: vantages, Services: []rota.Service{v}}})
	f.must(t, rota.Event{At: t0.Add(time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{verdict("192.0.2.10", rota.Up, "")}})
	f.must(t, rota.Event{At: t0.Add(time.Minute), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{verdict("192.0.2.10", rota.Down, "x")}})
	x := decode[Explained](t, get(server(t, options(t, f)), "/api/v1/explain?name=www.example.org"))
	if x.Mode != rota.ModeFallback || !slices.Equal(x.Answer, []string{"CNAME sorry.example.net"}) {
		t.Errorf("mode %v answers %q", x.Mode, x.Answer)
	}
	if c := x.Transition; c == nil || c.Was != rota.ModeNormal || c.Mode != rota.ModeFallback {
		t.Errorf("last change %+v", c)
	}
}

func TestAccess(t *testing.T) {
	o := options(t, night(t))
	want := map[string]Access{
		"GET /api/v1/services": AccessRead, "GET /api/v1/services/{name}": AccessRead, "GET /api/v1/endpoints": AccessRead,
		"GET /api/v1/checks": AccessRead, "GET /api/v1/vantages": AccessRead, "GET /api/v1/zones": AccessRead,
		"GET /api/v1/publishers": AccessRead, "GET /api/v1/changes": AccessRead, "GET /api/v1/overrides": AccessRead,
		"GET /api/v1/cluster": AccessRead, "GET /api/v1/nameserver": AccessRead, "GET /api/v1/explain": AccessRead,
		"GET /api/v1/events": AccessRead, "GET /metrics": AccessRead,
		"GET /api/v1/proof": AccessRead, "GET /api/v1/propagation": AccessKnown,
		"GET /api/v1/freeze": AccessRead, "GET /api/v1/instructions": AccessRead,
		"GET /api/v1/records": AccessKnown, "GET /api/v1/drift": AccessKnown,
		"POST /api/v1/instructions": AccessOperator, "POST /api/v1/freeze": AccessOperator, "DELETE /api/v1/freeze": AccessOperator,
		"POST /api/v1/opinions": AccessAgent,
		"GET /api/v1/plan":      AccessKnown, "GET /api/v1/traces": AccessKnown, "GET /api/v1/config": AccessKnown,
		"POST /api/v1/overrides": AccessOperator, "DELETE /api/v1/overrides": AccessOperator, "POST /api/v1/reload": AccessAdmin,
		"POST /api/v1/cluster/members": AccessAdmin, "DELETE /api/v1/cluster/members/{node}": AccessAdmin,
		"POST /api/v1/cluster/members/{node}/promote": AccessAdmin, "POST /api/v1/cluster/members/{node}/demote": AccessAdmin,
		"POST /api/v1/cluster/transfer": AccessAdmin, "POST /api/v1/cluster/leave": AccessAdmin,
		"POST /api/v1/cluster/tokens": AccessAdmin, "GET /api/v1/cluster/tokens": AccessAdmin, "DELETE /api/v1/cluster/tokens/{id}": AccessAdmin,
		"GET /api/v1/cluster/verify": AccessAdmin, "GET /api/v1/cluster/snapshot": AccessAdmin, "POST /api/v1/cluster/snapshot": AccessAdmin,
		"GET /api/v1/registrations": AccessRead, "POST /api/v1/registrations": AccessAgent, "DELETE /api/v1/registrations": AccessAgent,
		"GET /openapi.json": AccessPublic, "GET /livez": AccessPublic, "GET /readyz": AccessPublic, "GET /startupz": AccessPublic,
		"GET /health": AccessPublic, "GET /healthz": AccessPublic, "GET /-/healthy": AccessPublic, "GET /-/ready": AccessPublic,
	}
	if diff := cmp.Diff(want, server(t, o).access); diff != "" {
		t.Fatal(diff)
	}
	for _, anonymous := range []bool{false, true} {
		o.AnonymousRead = anonymous
		s := server(t, o)
		for _, who := range []struct {
			secret string
			least  Access // the strictest access it has
		}{{"", AccessPublic}, {viewerToken, AccessKnown}, {operatorToken, AccessOperator}, {adminToken, AccessAdmin}} {
			if who.secret == "" && anonymous {
				who.least = AccessRead
			}
			for pattern, access := range want {
				method, path, _ := strings.Cut(pattern, " ")
				path = strings.Replace(path, "{name}", "www.example.org", 1)
				if strings.HasSuffix(path, "explain") {
					path += "?name=www.example.org"
				}
				r := httptest.NewRequest(method, path, nil)
				if who.secret != "" {
					r.Header.Set("Authorization", "Bearer "+who.secret)
				}
				if access == AccessAgent {
					access = AccessOperator // who is no agent
				}
				code := call(s, r).Code
				if refused := code == 401 || code == 403; refused != (access > who.least) {
					t.Errorf("anonymous %v, token %q: %s gives %d, want refused %v", anonymous, who.secret, pattern, code, access > who.least)
				}
			}
		}
	}
	s := server(t, o)
	for _, h := range []string{"Bearer wrong-0123456789abcdef", "Basic YTpi", "Bearer", "Bearer " + adminToken + "x"} {
		r := httptest.NewRequest("GET", "/api/v1/services", nil)
		r.Header.Set("Authorization", h)
		if w := call(s, r); w.Code != 401 || w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d", h, w.Code)
		}
	}
	delete(s.access, "GET /api/v1/services")
	if w := get(s, "/api/v1/services"); w.Code != 403 {
		t.Errorf("a route without a rule lets an admin in: %d", w.Code)
	}
	if got := fmt.Sprintf("%+v", o.Tokens); strings.Contains(got, "0123456789abcdef") {
		t.Error("a token can be printed")
	}
	if _, err := NewToken("x", RoleAdmin, "short"); err == nil {
		t.Error("a short token is taken")
	}
}

func TestBrowserAttacks(t *testing.T) {
	o := options(t, night(t))
	o.AnonymousRead = true
	s := server(t, o)
	local := func(r *http.Request) *http.Request {
		return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}))
	}
	for host, code := range map[string]int{
		"127.0.0.1:8080": 200, "localhost:8080": 200, "[::1]:8080": 200, "LOCALHOST.": 200, "evil.example:8080": 421, "": 421, "localhost.evil.example": 421,
	} {
		r := local(httptest.NewRequest("GET", "/api/v1/services", nil))
		r.Host = host
		if w := call(s, r); w.Code != code {
			t.Errorf("host %q: %d, want %d", host, w.Code, code)
		}
	}
	const body = `{"match":"www.example.org/192.0.2.10","action":"drain","reason":"x"}`
	for _, c := range []struct {
		key, value string
		code       int
	}{
		{"Sec-Fetch-Site", "cross-site", 403},
		{"Sec-Fetch-Site", "same-site", 403},
		{"Origin", "https://evil.example", 403},
		{"Origin", "null", 403},
		{"Content-Type", "application/x-www-form-urlencoded", 415},
		{"Content-Type", "text/plain", 415},
		{"Content-Encoding", "gzip", 415},
		{"X-HTTP-Method-Override", "DELETE", 200},
	} {
		r := local(httptest.NewRequest("POST", "http://127.0.0.1:8080/api/v1/overrides", strings.NewReader(body)))
		r.Header.Set("Authorization", "Bearer "+operatorToken)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(c.key, c.value)
		if w := call(s, r); w.Code != c.code {
			t.Errorf("%s: %s: %d %s, want %d", c.key, c.value, w.Code, w.Body, c.code)
		}
	}
	w := get(s, "/api/v1/services")
	if w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("headers %v", w.Header())
	}
}

func TestHostileRequests(t *testing.T) {
	f := night(t)
	s := server(t, options(t, f))
	before := f.State().Index()
	for name, body := range map[string]string{
		"deep":         strings.Repeat("[", 100_000),
		"large":        `{"reason":"` + strings.Repeat("a", 2<<20) + `"}`,
		"utf-8":        "{\"match\":\"www.example.org/192.0.2.10\",\"action\":\"drain\",\"reason\":\"\xff\xfe\"}",
		"twice":        `{"match":"one.example.org","match":"www.example.org/192.0.2.10","action":"drain","reason":"x"}`,
		"two values":   `{"match":"www.example.org/192.0.2.10","action":"drain","reason":"x"} {}`,
		"unknown key":  `{"match":"www.example.org/192.0.2.10","action":"drain","reason":"x","root":true}`,
		"NaN":          `{"match":NaN}`,
		"null":         `null`,
		"empty":        ``,
		"wrong type":   `{"match":["www.example.org"],"action":1,"reason":{}}`,
		"long pattern": `{"match":"` + strings.Repeat("*", 5000) + `","action":"drain","reason":"x"}`,
	} {
		if w := post(s, "/api/v1/overrides", body); w.Code < 400 || w.Code >= 500 || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %.200s", name, w.Code, w.Body)
		}
	}
	for path, code := range map[string]int{
		"/api/v1/nothing": 404, "/": 404, "/api/v1/services/..%2f..%2fetc": 422, "/api/v1/services/%00": 404,
		"/api/v1/services?bogus=1": 422, "/api/v1/changes?limit=-1": 422, "/api/v1/changes?after=x": 422,
		"/api/v1/explain?name=www.example.org&type=MX": 422, "/api/v1/explain?name=www.example.org&client=x": 422,
		"/api/v1/services?match=" + strings.Repeat("a", 5000): 414, "/api/v1/services?label=x": 422,
	} {
		if w := get(s, path); w.Code != code {
			t.Errorf("%.60s: %d %.200s, want %d", path, w.Code, w.Body, code)
		}
	}
	w := call(s, asUnix(httptest.NewRequest(http.MethodPut, "/api/v1/overrides", nil)))
	if w.Code != 405 || !strings.Contains(w.Header().Get("Allow"), "DELETE") {
		t.Errorf("PUT: %d %v", w.Code, w.Header())
	}
	if after := f.State().Index(); after != before {
		t.Errorf("hostile requests appended %d events", after-before)
	}
}

func TestPanicEndsOneRequest(t *testing.T) {
	o := options(t, night(t))
	o.Cluster = func() ClusterStatus { panic("boom") }
	s := server(t, o)
	if w := get(s, "/api/v1/cluster"); w.Code != 500 || strings.Contains(w.Body.String(), "boom") || s.Panics() != 1 {
		t.Errorf("%d %s, %d panics", w.Code, w.Body, s.Panics())
	}
	if w := get(s, "/livez"); w.Code != 200 {
		t.Error("the server is gone")
	}
}

func TestHealth(t *testing.T) {
	o := options(t, night(t))
	missing := errors.New("first round of probes: 3 of 5 done")
	o.Ready = func() error { return missing }
	s := server(t, o)
	for path, code := range map[string]int{"/livez": 200, "/health": 200, "/healthz": 200, "/-/healthy": 200, "/readyz": 503, "/-/ready": 503, "/startupz": 503} {
		if w := get(s, path); w.Code != code {
			t.Errorf("%s: %d, want %d", path, w.Code, code)
		}
	}
	if w := get(s, "/readyz"); !strings.Contains(w.Body.String(), "3 of 5") {
		t.Errorf("no reason: %s", w.Body)
	}
	if w := call(s, httptest.NewRequest("GET", "/readyz", nil)); strings.Contains(w.Body.String(), "3 of 5") {
		t.Errorf("details for everybody: %s", w.Body)
	}
	wrong := httptest.NewRequest("GET", "/readyz", nil)
	wrong.Header.Set("Authorization", "Bearer nobody-0123456789abcdef")
	if w := call(s, wrong); w.Code != 503 || strings.Contains(w.Body.String(), "3 of 5") {
		t.Errorf("a wrong token: %d %s", w.Code, w.Body)
	}
	missing = nil
	if get(s, "/readyz").Code != 200 {
		t.Error("not ready")
	}
	missing = errors.New("lost")
	if get(s, "/readyz").Code != 503 || get(s, "/startupz").Code != 200 {
		t.Error("startup does not stay, or readiness does")
	}
}

func TestOpenAPI(t *testing.T) {
	b, err := OpenAPI("v1")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || doc.Paths["/api/v1/overrides"]["post"] == nil || doc.Paths["/api/v1/events"]["get"] == nil {
		t.Errorf("version %s, paths %v", doc.OpenAPI, doc.Paths)
	}
	for _, m := range regexp.MustCompile(`"\$ref": "#/components/schemas/([^"]+)"`).FindAllStringSubmatch(string(b), -1) {
		if doc.Components.Schemas[m[1]] == nil {
			t.Errorf("schema %s is named and not there", m[1])
		}
	}
	if again, _ := OpenAPI("v1"); string(again) != string(b) {
		t.Error("two runs give two documents")
	}
}

// run starts a server and stops it when the test ends.
func run(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestEventStreamResumes(t *testing.T) {
	f := night(t)
	o := options(t, f)
	o.Listen, o.AnonymousRead = "127.0.0.1:0", true
	s := server(t, o)
	run(t, s)
	open := func(last, query string) (<-chan string, func()) {
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://"+s.Addr().String()+"/api/v1/events"+query, nil)
		r.Header.Set("Accept", "text/event-stream")
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		tr := &http.Transport{}
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		ids := make(chan string, 100)
		go func() {
			defer close(ids)
			lines := bufio.NewScanner(resp.Body)
			for lines.Scan() {
				if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
					ids <- id
				}
			}
		}()
		return ids, func() {
			cancel()
			_ = resp.Body.Close()
			for range ids {
			}
			tr.CloseIdleConnections()
		}
	}
	want := func(ids <-chan string, want ...string) {
		t.Helper()
		for _, w := range want {
			if got := <-ids; got != w {
				t.Fatalf("event %s, want %s", got, w)
			}
		}
	}
	ids, stop := open("", "?limit=2")
	want(ids, "2", "3")
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventTick})
	want(ids, "4")
	stop()
	f.must(t, rota.Event{At: t0.Add(4 * time.Second), Kind: rota.EventTick})
	ids, stop = open("3", "?limit=1")
	want(ids, "4", "5")
	stop()
	ids, stop = open("", "?after=4")
	want(ids, "5")
	stop()
	// The stream that is open when the server stops ends with it: Cleanup would hang otherwise.
	_, stop = open("5", "")
	t.Cleanup(stop)
	if l := decode[List[Record]](t, get(s, "/api/v1/events?after=3")); len(l.Items) != 2 || l.Items[1].Event.Index != 5 {
		t.Errorf("got %+v", l)
	}
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, SocketName)
	f := night(t)
	o := options(t, f)
	o.Socket = path
	// One that was left behind is replaced.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	_ = left.Close()
	s := server(t, o)
	run(t, s)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Fatalf("%v %v", info, err)
	}
	if err := server(t, o).Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "another rota answers") {
		t.Errorf("a second one listens: %v", err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Post("http://rota/api/v1/overrides", "application/json",
		strings.NewReader(`{"match":"www.example.org/192.0.2.10","action":"drain","reason":"x","author":"alice"}`))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	e := f.records[len(f.records)-1].Event
	if resp.StatusCode != 200 || e.Actor != fmt.Sprintf("unix:%d", os.Getuid()) || e.Overrides[0].Author != "alice" {
		t.Errorf("%d %s, event %+v", resp.StatusCode, b, e)
	}
	o.Socket = filepath.Join(dir, "file")
	if err := os.WriteFile(o.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server(t, o).Listen(t.Context()); err == nil {
		t.Error("a file was replaced by a socket")
	}
	o.Socket = filepath.Join(dir, strings.Repeat("x", 120))
	if err := server(t, o).Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long path: %v", err)
	}
	o.Socket, o.Listen = "", "127.0.0.1:0"
	one := server(t, o)
	run(t, one)
	o.Listen = one.Addr().String()
	if err := server(t, o).Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("an address in use: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	f := night(t)
	now := t0.Add(time.Minute)
	c := NewCollector(CollectorOptions{
		Source: f, Records: f.Records, Reports: func() []*rota.Report { return reports(now)[:2] }, Version: "v1", Now: func() time.Time { return now },
	})
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{verdict("192.0.2.12", rota.Down, "x")}})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	o := options(t, f)
	o.Registry = reg
	text := get(server(t, o), "/metrics").Body.String()
	for _, want := range []string{
		`rota_endpoint_verdict{endpoint="192.0.2.11",service="www.example.org",verdict="down"} 1`,
		`rota_endpoint_verdict{endpoint="192.0.2.11",service="www.example.org",verdict="up"} 0`,
		`rota_service_endpoints{policy="keep",service="www.example.org"} 4`,
		`rota_service_healthy_endpoints{policy="keep",service="www.example.org"} 2`,
		`rota_service_split_endpoints{service="www.example.org"} 1`,
		`rota_vantage_voting 2`, `rota_vantage_quorum 2`,
		`rota_vantage_last_report_timestamp_seconds{vantage="nyc"} 0`,
		`rota_overrides{action="drain"} 0`, `rota_state_index 4`, `rota_build_info{goversion=`,
		`rota_endpoint_transitions_total{endpoint="192.0.2.11",service="www.example.org"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if got := c.count(f.State()); len(got) > 5 {
		t.Errorf("counts %v", got)
	}
}

func TestTransitionsFollowAnswers(t *testing.T) {
	f := night(t)
	c := NewCollector(CollectorOptions{Source: f, Records: f.Records})
	id := rota.EndpointID{Service: "www.example.org.", Address: netip.MustParseAddr("192.0.2.10")}
	for i := range 3 {
		at := t0.Add(time.Duration(i+1) * time.Hour)
		o := rota.Override{Endpoint: id, Action: rota.ActionDrain, Author: "a", Reason: "r", Set: at, Expires: at.Add(time.Minute)}
		f.must(t, rota.Event{At: at, Kind: rota.EventOverride, Overrides: []rota.Override{o}})
		f.must(t, rota.Event{At: at.Add(time.Second), Kind: rota.EventLift, Lift: []rota.EndpointID{id}})
	}
	if got := c.count(f.State())[id]; got != 6 {
		t.Errorf("counted %d, want 6", got)
	}
	if got := c.count(f.State())[id]; got != 6 {
		t.Errorf("counted again: %d", got)
	}
	f.must(t, rota.Event{At: t0.Add(9 * time.Hour), Kind: rota.EventSpec, Spec: &rota.Spec{Vantages: vantages, Services: []rota.Service{service("one.example.org", "198.51.100.1")}}})
	if got := c.count(f.State()); len(got) != 0 {
		t.Errorf("counts of endpoints that left stay: %v", got)
	}
}

func FuzzStrictJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}],"c":"x"}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		if unmarshal(data, &v) == nil && !json.Valid(data) {
			t.Errorf("%q is taken and is no JSON", data)
		}
	})
}

// TestSlowCallers holds the connection of a caller that never ends its header, and of one that never reads, to the limits. Time is
// the bubble's, the connection a pipe.
func TestSlowCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := server(t, options(t, night(t)))
		srv := s.httpServer()
		client, conn := net.Pipe()
		l := &onePipe{conn: conn, closed: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- srv.Serve(l) }()
		begun := time.Now()
		if _, err := io.WriteString(client, "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, client) // ends when the server gives up
		if waited := time.Since(begun); waited != headerTimeout {
			t.Errorf("gave up after %v, want %v", waited, headerTimeout)
		}
		_ = srv.Close()
		<-done
		if srv.ReadTimeout != readTimeout || srv.WriteTimeout != writeTimeout || srv.IdleTimeout != idleTimeout || srv.MaxHeaderBytes != maxHeader {
			t.Error("a limit is not set")
		}
	})
}

// onePipe is a listener with one connection.
type onePipe struct {
	conn   net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *onePipe) Accept() (net.Conn, error) {
	if c := p.conn; c != nil {
		p.conn = nil
		return c, nil
	}
	<-p.closed
	return nil, net.ErrClosed
}

func (p *onePipe) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *onePipe) Addr() net.Addr { return &net.TCPAddr{} }

// writePair writes a self-signed certificate for 127.0.0.1 with a serial number.
func writePair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(serial, 0) // another time than the last pair's, however fast the test runs
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := errors.Join(os.WriteFile(file, pem.EncodeToMemory(block), 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLSReadsItsCertificateAgain(t *testing.T) {
	o := options(t, night(t))
	o.Listen, o.CertFile, o.KeyFile = "127.0.0.1:0", filepath.Join(t.TempDir(), "c.pem"), filepath.Join(t.TempDir(), "k.pem")
	if err := server(t, o).Listen(t.Context()); err == nil {
		t.Error("listens without its certificate")
	}
	writePair(t, o.CertFile, o.KeyFile, 1)
	s := server(t, o)
	run(t, s)
	for serial := int64(1); serial <= 2; serial++ {
		writePair(t, o.CertFile, o.KeyFile, serial)
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+s.Addr().String()+"/api/v1/services", nil)
		r.Header.Set("Authorization", "Bearer "+viewerToken)
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		tr.CloseIdleConnections()
		if got := resp.TLS.PeerCertificates[0].SerialNumber.Int64(); got != serial || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("certificate %d, status %d, %s; want %d", got, resp.StatusCode, resp.Proto, serial)
		}
	}
}

// Heads and certificates of probes are in an answer where they are asked for, and then for so many checks only.
func TestTracesOfChecks(t *testing.T) {
	o := options(t, night(t))
	o.Probes = func(rota.TargetID) (TargetProbes, bool) {
		return TargetProbes{Recent: []Probe{{
			Steps: []ProbeStep{{Name: "connect", Took: time.Second}}, Sent: "GET /", Received: "HTTP/1.1 200 OK", TLS: &ProbeTLS{Version: "TLS 1.3", Chain: []ProbeCertificate{}},
		}}}, true
	}
	s := server(t, o)
	for path, traced := range map[string]bool{
		"/api/v1/checks?match=www.example.org": false, "/api/v1/traces?match=www.example.org": true, "/api/v1/explain?name=www.example.org": false,
	} {
		body := get(s, path).Body.String()
		if !strings.Contains(body, `"name":"connect"`) {
			t.Errorf("%s: no phases in %s", path, body)
		}
		for _, part := range []string{`"sent":"GET /"`, `"received":"HTTP/1.1 200 OK"`, `"version":"TLS 1.3"`} {
			if strings.Contains(body, part) != traced {
				t.Errorf("%s: %s is there: %v, want %v", path, part, !traced, traced)
			}
		}
	}

	f := newFold()
	var many []string
	for i := range maxTraced + 1 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i))
	}
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{Vantages: vantages, Services: []rota.Service{service("many.example.org", many...)}}})
	o.Source, o.Append, o.Records = f, f.Append, f.Records
	s = server(t, o)
	if w := get(s, "/api/v1/traces"); w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), "match at most 100") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get(s, "/api/v1/checks"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get(s, "/api/v1/traces?match=many.example.org/192.0.2.1"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
