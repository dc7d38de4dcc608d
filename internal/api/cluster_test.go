package api

import (
	"bufio"
	"bytes"
	"context"
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
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rota-dns/rota/internal/rota"
)

// crew is an Operator that remembers what it was told and answers what it is given.
type crew struct {
	err     error
	changes []ClusterChange
	tokens  []TokenRequest
	kept    []TokenView
	revoked string
	saved   string // what Save writes before it fails
	taken   string // what Restore read
	foreign bool
}

func (c *crew) Change(_ context.Context, x ClusterChange) (ClusterChanged, error) {
	c.changes = append(c.changes, x)
	return ClusterChanged{Op: x.Op, Node: x.Node, Leader: "ams1"}, c.err
}

func (c *crew) Token(_ context.Context, r TokenRequest) (TokenReply, error) {
	c.tokens = append(c.tokens, r)
	return TokenReply{Token: "rota-join-secret", ID: "abc", Expires: t0.Add(time.Hour)}, c.err
}

func (c *crew) Tokens(context.Context) ([]TokenView, error) { return c.kept, c.err }

func (c *crew) Revoke(_ context.Context, id, _ string) error {
	c.revoked = id
	return c.err
}

func (c *crew) Verify(context.Context) (ClusterVerification, error) {
	return ClusterVerification{Problems: []string{"fra1 does not answer"}, Members: []MemberVerification{{Name: "fra1"}}}, c.err
}

func (c *crew) Save(_ context.Context, w io.Writer) error {
	_, _ = io.WriteString(w, c.saved)
	return c.err
}

func (c *crew) Restore(_ context.Context, r io.Reader, foreign bool, _ string) (uint64, error) {
	b, err := io.ReadAll(r)
	c.taken, c.foreign = string(b), foreign
	return 12, errors.Join(err, c.err)
}

func send(s *Server, method, path, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return call(s, asUnix(r))
}

func TestClusterChanges(t *testing.T) {
	var log bytes.Buffer
	c := &crew{}
	o := options(t, night(t))
	o.Operator, o.Log = c, slog.New(slog.NewTextHandler(&log, nil))
	s := server(t, o)
	const base = "/api/v1/cluster/"
	for _, x := range []struct {
		method, path, body string
		want               ClusterChange
	}{
		{
			"POST", "members", `{"node":"fra1","address":"192.0.2.7:7400","author":"alice"}`,
			ClusterChange{Op: OpAdd, Node: "fra1", Address: "192.0.2.7:7400", Voter: true, Author: "alice"},
		},
		{
			"POST", "members", `{"node":"0f3c","address":"192.0.2.7:7400","nonvoter":true}`,
			ClusterChange{Op: OpAdd, Node: "0f3c", Address: "192.0.2.7:7400", Author: "unix:1000"},
		},
		{"POST", "members/fra1/promote?author=bob", "", ClusterChange{Op: OpPromote, Node: "fra1", Author: "bob"}},
		{"POST", "members/fra1/demote", "", ClusterChange{Op: OpDemote, Node: "fra1", Author: "unix:1000"}},
		{"DELETE", "members/fra1", "", ClusterChange{Op: OpRemove, Node: "fra1", Author: "unix:1000"}},
		{"POST", "transfer?to=fra1", "", ClusterChange{Op: OpTransfer, Node: "fra1", Author: "unix:1000"}},
		{"POST", "transfer", "", ClusterChange{Op: OpTransfer, Author: "unix:1000"}},
		{"POST", "leave", "", ClusterChange{Op: OpLeave, Author: "unix:1000"}},
	} {
		log.Reset()
		r := decode[ClusterChanged](t, send(s, x.method, base+x.path, "application/json", x.body))
		if r.Op != x.want.Op || r.Members == nil {
			t.Errorf("%s: %+v", x.path, r)
		}
		if diff := cmp.Diff(x.want, c.changes[len(c.changes)-1]); diff != "" {
			t.Errorf("%s: %s", x.path, diff)
		}
		if want := fmt.Sprintf("what=%s author=%s actor=unix:1000", x.want.Op, x.want.Author); !strings.Contains(log.String(), want) {
			t.Errorf("%s: the log has no %s: %s", x.path, want, &log)
		}
	}
	for _, bad := range []string{`{"address":"x:1"}`, `{"node":"fra1"}`, `{"node":"","address":"x:1"}`, `{"node":"a","address":"` + strings.Repeat("x", 400) + `"}`} {
		if w := post(s, base+"members", bad); w.Code != 422 {
			t.Errorf("%.60s: %d", bad, w.Code)
		}
	}
	token := httptest.NewRequest("POST", base+"leave?author=mallory", nil)
	token.Header.Set("Authorization", "Bearer "+adminToken)
	if w := call(s, token); w.Code != 200 || c.changes[len(c.changes)-1].Author != "root" {
		t.Errorf("a claimed author over TCP: %d %+v", w.Code, c.changes[len(c.changes)-1])
	}
}

// What an Operator says becomes the right status, with its reason, and what passes by itself says when to try again.
func TestOperatorProblems(t *testing.T) {
	c := &crew{}
	o := options(t, night(t))
	o.Operator = c
	s := server(t, o)
	for _, x := range []struct {
		err   error
		code  int
		want  string
		again bool
	}{
		{fmt.Errorf("%w: 1 of 3 voters reach each other", ErrNoLeader), 503, "1 of 3 voters reach each other; nothing was changed", true},
		{fmt.Errorf("%w: a change is under way", ErrBusy), 503, "a change is under way", true},
		{fmt.Errorf("remove: %w", context.DeadlineExceeded), 503, "it may still be done", true},
		{fmt.Errorf("%w: fra9", ErrNoSuch), 404, "fra9", false},
		{fmt.Errorf("%w: no majority would be left", ErrConflict), 409, "no majority would be left", false},
		{errors.New("an address has a port\x1b[2J"), 422, "an address has a port?[2J", false},
		{errors.New(strings.Repeat("ü", 5000)), 422, "…", false},
	} {
		c.err = x.err
		for _, p := range []string{"POST leave", "GET tokens", "DELETE tokens/x", "GET verify", "GET snapshot", "POST snapshot"} {
			method, path, _ := strings.Cut(p, " ")
			body := ""
			if p == "POST snapshot" {
				body = "x"
			}
			w := send(s, method, "/api/v1/cluster/"+path, octets, body)
			if w.Code != x.code || !strings.Contains(w.Body.String(), x.want) || w.Header().Get("Content-Type") != "application/problem+json" ||
				w.Body.Len() > 3*maxDetail || (w.Header().Get("Retry-After") != "") != x.again {
				t.Errorf("%s: %.100v gives %d %v %.300s", p, x.err, w.Code, w.Header(), w.Body)
			}
		}
	}
	o.Operator = nil
	s = server(t, o)
	for _, p := range []string{"POST leave", "POST transfer", "GET tokens", "GET verify", "GET snapshot", "POST snapshot", "DELETE members/x"} {
		method, path, _ := strings.Cut(p, " ")
		if w := send(s, method, "/api/v1/cluster/"+path, "", ""); w.Code != 501 || !strings.Contains(w.Body.String(), "this node runs alone") {
			t.Errorf("%s alone: %d %s", p, w.Code, w.Body)
		}
	}
}

func TestTokens(t *testing.T) {
	var log bytes.Buffer
	c := &crew{}
	o := options(t, night(t))
	o.Operator, o.Log = c, slog.New(slog.NewTextHandler(&log, nil))
	s := server(t, o)
	const path = "/api/v1/cluster/tokens"
	r := decode[TokenReply](t, post(s, path, `{"role":"agent","name":"berlin","for":"2d","uses":3,"author":"alice"}`))
	if got := c.tokens[0]; r.Token != "rota-join-secret" || got.Life != 48*time.Hour || got.Uses != 3 || got.Author != "alice" || got.Name != "berlin" {
		t.Errorf("%+v made of %+v", r, got)
	}
	if strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "id=abc") {
		t.Errorf("the log: %s", &log)
	}
	for _, bad := range []string{`{"role":"agent"}`, `{"role":"king"}`, `{"role":"node","for":"-1h"}`, `{"role":"node","uses":1001}`, `{}`} {
		if w := post(s, path, bad); w.Code != 422 {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
	used := []TokenUse{{By: "node fra1", At: t0}}
	c.kept = []TokenView{
		{ID: "a", Uses: 1, Expires: t0.Add(time.Hour)},
		{ID: "b", Uses: 1, Used: used, Expires: t0.Add(time.Hour)},
		{ID: "c", Uses: 2, Used: used, Expires: t0},
		{ID: "d", Uses: 1, Expires: t0.Add(time.Hour), Revoked: true},
	}
	var states []string
	for _, k := range decode[List[TokenView]](t, get(s, path)).Items {
		states = append(states, k.State)
	}
	if !slices.Equal(states, []string{"open", "used", "expired", "revoked"}) {
		t.Errorf("states %v", states)
	}
	if w := send(s, "DELETE", path+"/abc", "", ""); w.Code != 200 || c.revoked != "abc" {
		t.Errorf("revoked %q: %d", c.revoked, w.Code)
	}
}

func TestSnapshots(t *testing.T) {
	c := &crew{saved: "state of three"}
	o := options(t, night(t))
	o.Operator = c
	s := server(t, o)
	const path = "/api/v1/cluster/snapshot"
	if w := get(s, path); w.Code != 200 || w.Body.String() != c.saved || w.Header().Get("Content-Type") != octets {
		t.Errorf("saved %d %v %q", w.Code, w.Header(), w.Body)
	}
	if w := send(s, "POST", path+"?foreign=true", octets, c.saved); decode[RestoreReply](t, w).Event != 12 || c.taken != c.saved || !c.foreign {
		t.Errorf("restored %q, foreign %v", c.taken, c.foreign)
	}
	// A snapshot is larger than what anything else may send.
	large := strings.Repeat("x", 3<<20)
	if w := send(s, "POST", path, octets, large); w.Code != 200 || len(c.taken) != len(large) {
		t.Errorf("%d bytes of %d: %d %s", len(c.taken), len(large), w.Code, w.Body)
	}
	c.taken = ""
	for _, ct := range []string{"application/json", "text/plain", "multipart/form-data"} {
		if w := send(s, "POST", path, ct, "x"); w.Code != 415 || c.taken != "" {
			t.Errorf("%s: %d", ct, w.Code)
		}
	}
	r := httptest.NewRequest("POST", path, strings.NewReader("x"))
	r.Header.Set("Content-Type", octets)
	r.ContentLength = maxSnapshot + 1
	if w := call(s, asUnix(r)); w.Code != 413 || c.taken != "" {
		t.Errorf("too large: %d", w.Code)
	}
	if w := operatorProblem(&http.MaxBytesError{Limit: maxSnapshot}); !strings.Contains(w.Error(), "at most") {
		t.Errorf("too large in the end: %v", w)
	}
	// What fails in the middle must not look whole.
	c.err = errors.New("disk")
	func() {
		defer func() {
			if p := recover(); p != http.ErrAbortHandler {
				t.Errorf("the answer ended with %v", p)
			}
		}()
		get(s, path)
	}()
	c.err = nil
	// One at a time; afterwards there is room again.
	s.costly <- struct{}{}
	for _, p := range []string{"GET snapshot", "POST snapshot", "GET verify"} {
		method, at, _ := strings.Cut(p, " ")
		if w := send(s, method, "/api/v1/cluster/"+at, "", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s while another runs: %d", p, w.Code)
		}
	}
	<-s.costly
	if b, err := OpenAPI("v1"); err != nil || strings.Count(string(b), `"`+octets+`": {`) != 2 {
		t.Errorf("the document does not say that a snapshot is octets: %v", err)
	}
	if v := decode[ClusterVerification](t, get(s, "/api/v1/cluster/verify")); v.OK || len(v.Problems) != 1 || len(v.Members) != 1 {
		t.Errorf("verified %+v", v)
	}
}

// A node whose state may be old says so with everything that is read, and health probes do not ask.
func TestStateSince(t *testing.T) {
	o := options(t, night(t))
	since := time.Time{}
	o.Cluster = func() ClusterStatus { return ClusterStatus{Node: "ams", Leader: "fra", Since: since} }
	s := server(t, o)
	if got := get(s, "/api/v1/services").Header().Get("Rota-State-Since"); got != "" {
		t.Errorf("current, and says %s", got)
	}
	since = t0
	for _, p := range []string{"services", "cluster", "events", "config"} {
		if got := get(s, "/api/v1/"+p).Header().Get("Rota-State-Since"); got != "Sat, 21 Nov 2026 02:14:00 GMT" {
			t.Errorf("%s says %q", p, got)
		}
	}
	o.Cluster = func() ClusterStatus { panic("asked") }
	if w := get(server(t, o), "/livez"); w.Code != 200 {
		t.Errorf("livez: %d", w.Code)
	}
}

// follower makes the options those of a node that does not lead: it has its own report alone.
func follower(o Options, leader string) Options {
	at := o.Now()
	o.Node = "ams"
	o.Reports = func() []*rota.Report { return reports(at)[:1] }
	o.Cluster = func() ClusterStatus { return ClusterStatus{Node: "ams", Leader: leader} }
	return o
}

// A node that does not lead shows nobody as silent whom it cannot hear.
func TestFollowerKnowsWhatItDoesNotHear(t *testing.T) {
	o := options(t, night(t))
	s := server(t, follower(o, "fra1"))
	v := decode[VantageList](t, get(s, "/api/v1/vantages"))
	if v.Voting != -1 || v.Ask != "fra1" || v.Need != 2 {
		t.Errorf("got %+v", v)
	}
	if own := v.Items[0]; own.State != "voting" || own.Kind != "node" || own.Checks != 5 || own.Report.IsZero() {
		t.Errorf("its own: %+v", own)
	}
	if fra := v.Items[1]; fra.State != "unknown" || fra.Reason != "unknown here; ask the leader fra1" || !fra.Report.IsZero() || fra.Checks != 5 || fra.Down != 1 {
		t.Errorf("another: %+v", fra)
	}
	e := decode[List[EndpointView]](t, get(s, "/api/v1/endpoints?match=www.example.org/192.0.2.11"))
	if want := (VotesView{For: 3, Need: 2, Of: 3}); !cmp.Equal(e.Items[0].Votes, want) {
		t.Errorf("votes %+v, want those of the verdict: %+v", e.Items[0].Votes, want)
	}
	// Without a leader nobody is asked; without a verdict nothing is claimed.
	f := newFold()
	f.must(t, rota.Event{At: t0, Kind: rota.EventSpec, Spec: &rota.Spec{Vantages: vantages, Services: []rota.Service{service("www.example.org", "192.0.2.10")}}})
	o.Source, o.Append = f, f.Append
	s = server(t, follower(o, ""))
	c := decode[List[CheckView]](t, get(s, "/api/v1/checks"))
	if votes := c.Items[0].Votes; votes[0].Status != rota.Up || votes[1].Status != rota.Unknown || votes[1].Reason != "unknown here, and there is no leader to ask" {
		t.Errorf("votes %+v", votes)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(CollectorOptions{
		Source: f, Node: "ams", Reports: func() []*rota.Report { return reports(t0)[:1] }, Now: func() time.Time { return t0 },
		Cluster: func() ClusterStatus { return ClusterStatus{Node: "ams", Leader: "fra1"} },
	}))
	o.Registry = reg
	text := get(server(t, o), "/metrics").Body.String()
	for _, never := range []string{`vantage="fra"`, "rota_vantage_voting", "rota_service_split_endpoints", "rota_vantage_outlier"} {
		if strings.Contains(text, never) {
			t.Errorf("a follower's metrics say %s", never)
		}
	}
	if !strings.Contains(text, `rota_vantage_report_age_seconds{vantage="ams"} 0`) {
		t.Errorf("its own age is missing in\n%s", text)
	}
}

func TestVantageDetails(t *testing.T) {
	f := night(t)
	o := options(t, f)
	o.Node = "ams"
	stats := []VantageStat{
		{Vantage: "fra", From: "192.0.2.9:1234", Offset: 120 * time.Millisecond, Taken: 42, LastBytes: 900, Refused: map[string]uint64{"rate": 3}, Refusal: "too \x1bmany"},
		{Vantage: "mallory", From: "203.0.113.1:1", Taken: 9},
	}
	o.VantageStats = func() []VantageStat { return stats }
	voters := slices.Clone(vantages)
	voters[1].Agent = true
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventVantages, Vantages: voters})
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventNodes, Nodes: []rota.Node{{ID: "1", Name: "ams"}, {ID: "2", Name: "nyc"}}})
	rs := reports(o.Now())
	rs[2].Abstain = rota.Doubtful
	o.Reports = func() []*rota.Report { return rs }
	v := decode[VantageList](t, get(server(t, o), "/api/v1/vantages"))
	fra := v.Items[1]
	want := VantageView{
		Vantage: "fra", Site: "fra", Kind: "agent", State: "voting", Report: fra.Report, Seq: 7, Checks: 5, Up: 5,
		Compared: 5, Against: 1, From: "192.0.2.9:1234", Offset: 120 * time.Millisecond, Bytes: 900, Taken: 42,
		Refused: map[string]uint64{"rate": 3}, LastRefusal: "too ?many",
	}
	if diff := cmp.Diff(want, fra); diff != "" {
		t.Error(diff)
	}
	if nyc := v.Items[2]; nyc.State != "abstaining" || nyc.Reason != rota.Doubtful || nyc.Kind != "node" || v.Voting != 2 {
		t.Errorf("got %+v of %d", nyc, v.Voting)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(CollectorOptions{
		Source: f, Node: "ams", Reports: o.Reports, VantageStats: o.VantageStats, Now: o.Now, Cluster: o.Cluster,
	}))
	o.Registry = reg
	text := get(server(t, o), "/metrics").Body.String()
	for _, want := range []string{
		`rota_vantage_dissent_targets{vantage="fra"} 1`, `rota_vantage_outlier{vantage="fra"} 0`,
		`rota_vantage_abstains{vantage="nyc"} 1`, `rota_vantage_report_age_seconds{vantage="fra"} 0`,
		`rota_vantage_reports_total{result="taken",vantage="fra"} 42`, `rota_vantage_reports_total{result="rate",vantage="fra"} 3`,
		`rota_vantage_clock_offset_seconds{vantage="fra"} 0.12`, `rota_vantage_report_bytes{vantage="fra"} 900`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "mallory") {
		t.Error("a vantage that nobody configured is a label")
	}
}

// The comparison of everything with everything is done once, until something moves.
func TestDissentIsRemembered(t *testing.T) {
	f := night(t)
	at := t0.Add(time.Minute)
	rs := reports(at)
	var d dissents
	look := func(now time.Time) rota.Dissent {
		return d.of(&view{State: f.State(), now: now, reports: rs, heard: true})
	}
	first := look(at)
	if first.Vantages[1].Against != 1 {
		t.Fatalf("got %+v", first)
	}
	again := func(what string, now time.Time, want bool) {
		t.Helper()
		before := &d.last.Vantages[0]
		got := look(now)
		if diff := cmp.Diff(f.State().Dissent(rs, now), got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
		if fresh := &d.last.Vantages[0] != before; fresh != want {
			t.Errorf("%s: computed anew %v, want %v", what, fresh, want)
		}
	}
	again("nothing happened", at.Add(time.Second), false)
	f.must(t, rota.Event{At: at, Kind: rota.EventTick})
	again("a tick", at.Add(2*time.Second), false)
	copied := *rs[0]
	copied.Opinions = slices.Clone(copied.Opinions)
	rs[0] = &copied
	again("a new report with the same opinions", at.Add(3*time.Second), false)
	changed := *rs[1]
	changed.Opinions = slices.Clone(changed.Opinions)
	changed.Opinions[0] = &rota.Opinion{Target: changed.Opinions[0].Target, Status: rota.Down}
	rs[1] = &changed
	again("an opinion", at.Add(4*time.Second), true)
	abstains := *rs[2]
	abstains.Abstain = rota.Doubtful
	rs[2] = &abstains
	again("an abstention", at.Add(5*time.Second), true)
	again("reports that grew old", at.Add(time.Hour), true)
	f.must(t, rota.Event{At: at.Add(time.Minute), Kind: rota.EventSpec, Spec: &rota.Spec{Vantages: vantages, Services: []rota.Service{service("one.example.org", "198.51.100.1")}}})
	again("a configuration", at.Add(time.Hour), true)
}

// BenchmarkDissent is what the comparison adds to a scrape at 100,000 targets and 5 vantages, and the whole scrape, without a series an endpoint.
func BenchmarkDissent(b *testing.B) {
	f := newFold()
	spec := &rota.Spec{}
	rs := make([]*rota.Report, 5)
	for i := range rs {
		name := fmt.Sprintf("v%d", i)
		spec.Vantages = append(spec.Vantages, rota.Vantage{Name: name, Site: name})
		rs[i] = &rota.Report{Vantage: name, Seq: 1, At: t0}
	}
	for i := range 1000 {
		svc := service(fmt.Sprintf("s%d.example.org", i))
		for j := range 100 {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)})
			svc.Endpoints = append(svc.Endpoints, rota.Endpoint{Address: a, Weight: 1, Checks: []rota.Use{{Check: check()}}})
		}
		spec.Services = append(spec.Services, svc)
	}
	if _, err := f.Append(b.Context(), rota.Event{At: t0, Kind: rota.EventSpec, Spec: spec}); err != nil {
		b.Fatal(err)
	}
	for _, t := range f.State().Targets() {
		for _, r := range rs {
			r.Opinions = append(r.Opinions, &rota.Opinion{Target: t.ID, Status: rota.Up})
		}
	}
	v := &view{State: f.State(), now: t0, reports: rs, heard: true}
	b.Run("moved", func(b *testing.B) {
		for b.Loop() {
			new(dissents).of(v)
		}
	})
	copies := make([]*rota.Report, len(rs))
	for i, r := range rs {
		c := *r
		c.Opinions = slices.Clone(r.Opinions)
		copies[i] = &c
	}
	var d dissents
	b.Run("repeated", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			v.reports = rs
			if i%2 == 1 {
				v.reports = copies
			}
			d.of(v)
		}
	})
	b.Run("same", func(b *testing.B) {
		v.reports = rs
		for b.Loop() {
			d.of(v)
		}
	})
	c := NewCollector(CollectorOptions{Source: f, NoEndpoints: true, Reports: func() []*rota.Report { return rs }, Now: func() time.Time { return t0 }})
	b.Run("scrape", func(b *testing.B) {
		for b.Loop() {
			out := make(chan prometheus.Metric, 100)
			go func() {
				c.Collect(out)
				close(out)
			}()
			for range out {
			}
		}
	})
}

// A snapshot may take as long as it needs, as long as it moves: the bound on a request's time is for what is small. Who stalls is cut off.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crew{}
		o := options(t, night(t))
		o.Operator = c
		s := server(t, o)
		srv := s.httpServer()
		client, conn := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- srv.Serve(&onePipe{conn: conn, closed: make(chan struct{})}) }()
		answers := bufio.NewReader(client)
		upload := func(pause time.Duration) (int, error) {
			text := fmt.Sprintf("POST /api/v1/cluster/snapshot HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: 10\r\n\r\n",
				adminToken, octets)
			_, err := io.WriteString(client, text)
			for i := 0; i < 10 && err == nil; i++ {
				time.Sleep(pause)
				_, err = io.WriteString(client, "x")
			}
			if err != nil {
				return 0, err
			}
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				return 0, err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode, err
		}
		if code, err := upload(transferWrite - time.Second); code != 200 || c.taken != "xxxxxxxxxx" {
			t.Errorf("slow: %d %v, read %q", code, err, c.taken)
		}
		go func() { _, _ = io.Copy(io.Discard, answers) }() // who stalls may be told before the end
		if _, err := upload(transferWrite + time.Second); err == nil {
			t.Error("a stalled upload was waited for")
		}
		_ = client.Close()
		_ = srv.Close()
		<-done
	})
}

// waits is an Operator whose work does not end by itself.
type waits struct{ crew }

func (w *waits) Change(ctx context.Context, _ ClusterChange) (ClusterChanged, error) {
	<-ctx.Done()
	return ClusterChanged{}, ctx.Err()
}

func (w *waits) Restore(ctx context.Context, r io.Reader, _ bool, _ string) (uint64, error) {
	_, _ = io.Copy(io.Discard, r)
	<-ctx.Done()
	return 0, ctx.Err()
}

// What does not end is answered in time, and as what may still be done.
func TestOperationsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t, night(t))
		o.Operator = &waits{}
		s := server(t, o)
		for _, path := range []string{"leave", "snapshot"} {
			begun := time.Now()
			w := send(s, "POST", "/api/v1/cluster/"+path, octets, map[string]string{"snapshot": "x"}[path])
			if took := time.Since(begun); w.Code != 503 || took != operate || !strings.Contains(w.Body.String(), "it may still be done") {
				t.Errorf("%s: %d after %v: %s", path, w.Code, took, w.Body)
			}
		}
	})
}
