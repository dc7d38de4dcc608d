package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

func (h *healthd) serve(t *testing.T, ca *authority) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "healthd", time.Hour)}, ClientCAs: newPool(ca), ClientAuth: tls.RequireAndVerifyClientCert}
	srv.Config.ErrorLog = quiet
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

// rota's agent feeds healthds as a healthagent would, over TLS with its own files.
func TestFeedHealthd(t *testing.T) {
	ca := newAuthority(t, "agents")
	files := filesIn(t.TempDir())
	write(t, files, ca.issue(t, "edge", time.Hour), ca)
	cfg, err := ClientTLS(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	t.Cleanup(tr.CloseIdleConnections)
	empty := &healthd{} // has no monitors yet, so the next one is asked
	full := &healthd{monitors: `["http://10.0.0.1:80","tcp://10.0.0.1:80","none://10.0.0.2:1","tcp://[2001:db8::1]:53","https://10.0.0.1:443","tcp://host:1","tcp://10.0.0.1:80"]`}
	p := newProber()
	var all []Upstream
	a := Agent{Name: "edge", Prober: p, Upstreams: func() []Upstream { return all }}
	for _, h := range []*healthd{empty, full} {
		all = append(all, &HealthdClient{Client: &http.Client{Transport: tr}, URL: h.serve(t, ca), Name: "edge"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	eventually(t, "targets", func() bool { n, _ := p.counts(); return n == 3 })
	p.hold("-+-") // http://10.0.0.1, tcp://10.0.0.1, tcp://[2001:db8::1]
	want := `[{"IP":"10.0.0.1","Port":80,"Healthy":false,"Message":"refused","DidChange":false},` +
		`{"IP":"10.0.0.1","Port":80,"Healthy":true,"Message":"success","DidChange":true},` +
		`{"IP":"10.0.0.2","Port":1,"Healthy":true,"Message":"success","DidChange":%v},` +
		`{"IP":"2001:db8::1","Port":53,"Healthy":false,"Message":"refused","DidChange":false},` +
		`{"IP":"","Port":0,"Healthy":false,"Message":"","DidChange":false},{"IP":"","Port":0,"Healthy":false,"Message":"","DidChange":false},` +
		`{"IP":"10.0.0.1","Port":80,"Healthy":true,"Message":"success","DidChange":true}]`
	eventually(t, "statuses", func() bool {
		full.mu.Lock()
		defer full.mu.Unlock()
		return slices.Contains(full.bodies, fmt.Sprintf(want, false)) || slices.Contains(full.bodies, fmt.Sprintf(want, true))
	})
	if n := full.healthy("10.0.0.2", 1); n != 1 {
		t.Errorf("%d agents hold the monitor without a check healthy", n)
	}
	// The certificate is read again: one for another name is refused, and that is said.
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c := all[1].(*HealthdClient)
	wrong := &HealthdClient{Client: c.Client, URL: c.URL, Name: "other"}
	if _, err := wrong.Targets(t.Context(), Table{}); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("another name than in the certificate: %v", err)
	}
}

// roundTrip serves a client by a function, so that a bubble has no sockets.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(code int, body string) *http.Response {
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}}
}

func TestHealthdClientPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards what follows
		var gets, posts []time.Time
		var last []status
		var list atomic.Pointer[string]
		set := func(s string) { list.Store(&s) }
		set(`["tcp://10.0.0.1:80"]`)
		c := &HealthdClient{URL: "https://h", Name: "edge", Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("X-Agent-Name") != "edge" {
				t.Error("a request without the name")
			}
			mu.Lock()
			defer mu.Unlock()
			if r.Method == "GET" {
				gets = append(gets, time.Now())
				return answer(200, *list.Load()), nil
			}
			var got []status
			b, _ := io.ReadAll(r.Body)
			if int64(len(b)) != r.ContentLength || json.Unmarshal(b, &got) != nil {
				t.Errorf("a body of %d with length %d", len(b), r.ContentLength)
			}
			posts, last = append(posts, time.Now()), got
			return answer(200, ""), nil
		})}}
		p := newProber()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Agent{Name: "edge", Prober: p, Upstreams: func() []Upstream { return []Upstream{c} }}.Run(ctx)
		}()
		wait(5 * time.Minute)
		mu.Lock()
		if len(gets) < 10 || len(gets) > 12 {
			t.Errorf("asked %d times in five minutes", len(gets))
		}
		for i := range posts[1:] {
			if gap := posts[i+1].Sub(posts[i]); gap > ReportEvery {
				t.Errorf("silent for %v", gap)
			}
		}
		mu.Unlock()
		for i, want := range []bool{true, false} {
			if i == 0 {
				p.hold("+")
				wait(reportGap)
			} else {
				wait(ReportEvery)
			}
			mu.Lock()
			if len(last) != 1 || !last[0].Healthy || last[0].DidChange != want {
				t.Errorf("post %d: %+v", i, last)
			}
			mu.Unlock()
		}
		set(`["tcp://10.0.0.1:80","tcp://10.0.0.2:80"]`)
		wait(SyncEvery + time.Second)
		if n, sets := p.counts(); n != 2 || sets != 2 {
			t.Errorf("%d targets, set %d times", n, sets)
		}
		for _, bad := range []string{"", "null", "<html>", `["tcp://10.0.0.1:80"`, `{"a":1}`, `[1]`} {
			set(bad)
			wait(SyncEvery + time.Second)
			if n, _ := p.counts(); n != 2 {
				t.Errorf("%q left the prober with %d targets", bad, n)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What healthd would refuse for its size is sent without messages, or not at all.
func TestHealthdClientSize(t *testing.T) {
	for n, want := range map[int]bool{8_000: true, 20_000: false} {
		var words []string
		r := &rota.Report{Vantage: "edge", Seq: 1}
		for i := range n {
			words = append(words, fmt.Sprintf("tcp://10.%d.%d.1:80", i/256, i%256))
		}
		list, _ := json.Marshal(words)
		var sent []byte
		c := &HealthdClient{URL: "https://h", Name: "edge", Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Method == "GET" {
				return answer(200, string(list)), nil
			}
			sent, _ = io.ReadAll(r.Body)
			return answer(200, ""), nil
		})}}
		table, err := c.Targets(t.Context(), Table{})
		if err != nil {
			t.Fatal(err)
		}
		for _, tg := range sorted(table.Targets...) {
			r.Opinions = append(r.Opinions, &rota.Opinion{Target: tg.ID, Status: rota.Down, Reason: strings.Repeat("x", 200)})
		}
		err = c.Report(t.Context(), nil, r)
		if (err == nil) != want || len(sent) > maxPost || want && len(sent) == 0 {
			t.Errorf("%d monitors: %v, %d bytes", n, err, len(sent))
		}
	}
}

// Both sides of this package speak to each other: HealthdClient to Healthd.
func TestClientAgainstHealthd(t *testing.T) {
	d := newDesk(t, sorted(target(rota.KindHTTP, "10.0.0.1:80"), target(rota.KindTCP, "10.0.0.1:80"), target(rota.KindTCP, "10.0.0.2:80")))
	c := &HealthdClient{Client: client(t, d.ca, d.ca.issue(t, "foo", time.Hour)), URL: d.run(t), Name: "foo"}
	table, err := c.Targets(t.Context(), Table{})
	if err != nil || len(table.Targets) != 3 {
		t.Fatalf("%+v, %v", table, err)
	}
	p := newProber()
	p.Set(table.Targets)
	p.hold("-+ ")
	if err := c.Report(t.Context(), nil, p.Report()); err != nil {
		t.Fatal(err)
	}
	if got := statusesOf(d.last("foo")); got != "down up unknown" {
		t.Errorf("the report is %s", got)
	}
}

func FuzzHealthagentBody(f *testing.F) {
	f.Add([]byte(`[{"IP":"10.0.0.1","Port":80,"Healthy":true,"Message":"success","DidChange":true}]`))
	f.Add([]byte(`[{"IP":"","Port":0},{"IP":"::1","Port":-1},{}]`))
	f.Add([]byte(`[null]`))
	f.Add([]byte(`[{"ip":"10.0.0.1","PORT":80,"Message":"\u001b[31m"}]`))
	m := newMonitors(sorted(target(rota.KindHTTP, "10.0.0.1:80"), target(rota.KindTCP, "10.0.0.1:80"), target(rota.KindICMP, "10.0.0.1:0")))
	f.Fuzz(func(t *testing.T, b []byte) {
		said, n, err := readStatuses(b, m.places)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("[")) || n < 0 || len(said) > len(m.places) {
			t.Errorf("%q gave %v, %d", b, said, n)
		}
		check(t, &rota.Report{Vantage: "v", Seq: 1, Opinions: m.opine(m, said, nil, time.Now())}, 3)
	})
}

// check holds a report to what every report has to be, whoever it is from.
func check(t *testing.T, r *rota.Report, targets int) {
	t.Helper()
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
	if len(r.Opinions) > targets || rota.CleanReason("%s", r.Abstain) != r.Abstain {
		t.Errorf("%+v", r)
	}
	for _, o := range r.Opinions {
		if rota.CleanReason("%s", o.Reason) != o.Reason || rota.CleanReason("%s", string(o.Class)) != string(o.Class) || o.Since.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v", o)
		}
	}
}
