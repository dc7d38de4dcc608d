package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// healthagent behaves as NectGmbH's does by the facts known of it, but that a second of it is a tick here: it asks the first upstream
// that works for its monitors, rebuilds all checks when the bytes differ, posts the whole array at the first result or change of any
// monitor, and else when it posted nothing for 30 ticks. Addresses are split at a colon, so it fails at IPv6.
type healthagent struct {
	name      string
	upstreams []string
	client    *http.Client
	tick      time.Duration

	mu       sync.Mutex
	monitors []string
	statuses []status
	checked  []bool
	rebuilds int
}

func (a *healthagent) request(method string, body []byte) ([]byte, error) {
	var errs []error
	for _, u := range a.upstreams {
		req, err := http.NewRequest(method, u, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Agent-Name", a.name)
		resp, err := a.client.Do(req)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode == 200 {
			return b, nil
		}
		errs = append(errs, fmt.Errorf("%s: %d %s", u, resp.StatusCode, b))
	}
	return nil, errors.Join(errs...)
}

func (a *healthagent) check(monitor string) status {
	proto, rest, _ := strings.Cut(monitor, "://")
	parts := strings.Split(rest, ":")
	port, err := strconv.Atoi(parts[len(parts)-1])
	if len(parts) != 2 || err != nil {
		panic("healthagent cannot parse " + monitor)
	}
	s := status{IP: parts[0], Port: port, Healthy: true, Message: "success"}
	switch proto {
	case "tcp":
		c, err := net.DialTimeout("tcp", rest, time.Second)
		if err != nil {
			s.Healthy, s.Message = false, err.Error()
		} else {
			_ = c.Close()
		}
	case "http":
		c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + rest + "/healthz")
		switch {
		case err != nil:
			s.Healthy, s.Message = false, err.Error()
		case resp.StatusCode < 200 || resp.StatusCode > 299:
			s.Healthy, s.Message = false, resp.Status
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	default:
		panic("healthagent does not know " + monitor)
	}
	return s
}

// run ends with ctx, or at once when the first GET fails.
func (a *healthagent) run(ctx context.Context) error {
	var hash uint64
	var checks sync.WaitGroup
	stop := func() {}
	defer func() { stop(); checks.Wait() }()
	changed := make(chan struct{}, 1)
	sync := func() error {
		body, err := a.request(http.MethodGet, nil)
		if err != nil {
			return err
		}
		h := fnv.New64a()
		_, _ = h.Write(body)
		if h.Sum64() == hash {
			return nil
		}
		hash = h.Sum64()
		var monitors []string
		if err := json.Unmarshal(body, &monitors); err != nil {
			return err
		}
		stop()
		checks.Wait()
		var cctx context.Context
		cctx, stop = context.WithCancel(ctx)
		a.mu.Lock()
		a.monitors, a.statuses, a.checked = monitors, make([]status, len(monitors)), make([]bool, len(monitors))
		a.rebuilds++
		a.mu.Unlock()
		for i, m := range monitors {
			checks.Go(func() {
				sleep(cctx, rand.N(a.tick))
				for cctx.Err() == nil {
					s := a.check(m)
					a.mu.Lock()
					s.DidChange = !a.checked[i] || a.statuses[i].Healthy != s.Healthy
					a.checked[i], a.statuses[i] = true, s
					a.mu.Unlock()
					if s.DidChange {
						select {
						case changed <- struct{}{}:
						default:
						}
					}
					sleep(cctx, a.tick+rand.N(a.tick/2))
				}
			})
		}
		return nil
	}
	if err := sync(); err != nil {
		return err
	}
	every, alive := time.NewTicker(30*a.tick), time.NewTicker(30*a.tick)
	defer every.Stop()
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
			_ = sync()
			continue
		case <-changed:
		case <-alive.C:
		}
		a.mu.Lock()
		body, _ := json.Marshal(a.statuses)
		a.mu.Unlock()
		_, _ = a.request(http.MethodPost, body)
		alive.Reset(30 * a.tick)
	}
}

// healthd behaves as NectGmbH's does by the facts known of it, with a map for etcd.
type healthd struct {
	mu       sync.Mutex
	monitors string // empty: etcd has none
	stored   map[string]struct {
		Status []status
		Time   int64
	}
	bodies []string
	gets   int
}

func (h *healthd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := r.Header.Get("X-Agent-Name")
	if name == "" {
		w.WriteHeader(400)
		return
	}
	cert := r.TLS.PeerCertificates[0]
	if cert.Subject.CommonName != name && !slices.Contains(cert.DNSNames, name) {
		w.WriteHeader(403)
		return
	}
	switch r.Method {
	case "GET":
		h.gets++
		if h.monitors == "" {
			w.WriteHeader(500)
			return
		}
		_, _ = io.WriteString(w, h.monitors)
	case "POST":
		if r.ContentLength <= 0 || r.ContentLength > 1000000 {
			w.WriteHeader(400)
			return
		}
		body, _ := io.ReadAll(r.Body)
		var ss []status
		if err := json.Unmarshal(body, &ss); err != nil {
			w.WriteHeader(400)
			return
		}
		if h.stored == nil {
			h.stored = map[string]struct {
				Status []status
				Time   int64
			}{}
		}
		h.bodies = append(h.bodies, string(body))
		h.stored[name] = struct {
			Status []status
			Time   int64
		}{ss, time.Now().Unix()}
	default:
		w.WriteHeader(400)
	}
}

// healthy counts, as dnslb does, the agents that report an address and port healthy.
func (h *healthd) healthy(ip string, port int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, s := range h.stored {
		for _, e := range s.Status {
			if e.IP == ip && e.Port == port && e.Healthy && time.Now().Unix()-s.Time <= 45 {
				n++
			}
		}
	}
	return n
}

// prober is a prober by hand.
type prober struct {
	mu      sync.Mutex
	targets []rota.Target
	sets    int
	report  *rota.Report
	changed chan struct{}
}

func newProber() *prober {
	return &prober{report: &rota.Report{}, changed: make(chan struct{})}
}

func (p *prober) Set(ts []rota.Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = ts
	p.sets++
}

func (p *prober) Report() *rota.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report
}

func (p *prober) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *prober) counts() (targets, sets int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.targets), p.sets
}

// hold makes the prober hold these of its targets, in their order: + up, - down, anything else unknown.
func (p *prober) hold(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &rota.Report{Seq: p.report.Seq + 1, Opinions: []*rota.Opinion{}}
	for i, tg := range sorted(p.targets...) {
		o := &rota.Opinion{Target: tg.ID}
		switch s[i] {
		case '+':
			o.Status = rota.Up
		case '-':
			o.Status, o.Reason = rota.Down, "refused"
		}
		r.Opinions = append(r.Opinions, o)
	}
	p.report = r
	close(p.changed)
	p.changed = make(chan struct{})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after 20 s: %s", what)
		}
	}
}

// Existing healthagents report to rota as they are.
func TestHealthagentsReport(t *testing.T) {
	var status atomic.Int32
	status.Store(200)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(404)
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer web.Close()
	at := web.Listener.Addr().String()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	httpT, tcpT, goneT := target(rota.KindHTTP, at), target(rota.KindTCP, at), target(rota.KindTCP, gone.Addr().String())
	d := newDesk(t, sorted(httpT, tcpT, goneT, target(rota.KindICMP, "127.0.0.1:0")))
	url := d.run(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	agents := map[string]*healthagent{}
	for _, n := range []string{"foo", "bar", "baz"} {
		a := &healthagent{name: n, upstreams: []string{"https://127.0.0.1:1/", url}, client: client(t, d.ca, d.ca.issue(t, n, time.Hour)), tick: 20 * time.Millisecond}
		agents[n] = a
		wg.Go(func() {
			if err := a.run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	all := func(id rota.TargetID, want rota.Status) func() bool {
		return func() bool {
			rs := d.Reports()
			return len(rs) == 3 && !slices.ContainsFunc(rs, func(r *rota.Report) bool { o := r.Opinion(id); return o == nil || o.Status != want })
		}
	}
	eventually(t, "http up", all(httpT.ID, rota.Up))
	eventually(t, "tcp up", all(tcpT.ID, rota.Up))
	eventually(t, "the closed port down", all(goneT.ID, rota.Down))
	status.Store(500)
	eventually(t, "http down at 500", all(httpT.ID, rota.Down))
	if !all(tcpT.ID, rota.Up)() {
		t.Error("a 500 took the port down as well")
	}
	seq := d.last("foo").Seq
	eventually(t, "keep-alives while nothing changes", func() bool { return d.last("foo").Seq >= seq+2 })
	// The same targets in another slice do not make agents rebuild.
	d.set(slices.Clone(d.targets))
	seq = d.last("foo").Seq
	eventually(t, "more keep-alives", func() bool { return d.last("foo").Seq >= seq+3 })
	agents["foo"].mu.Lock()
	defer agents["foo"].mu.Unlock()
	if agents["foo"].rebuilds != 1 {
		t.Errorf("the agent rebuilt its checks %d times", agents["foo"].rebuilds)
	}
}

// An agent that starts before the targets are known ends, as it does with healthd.
func TestHealthagentBeforeTargets(t *testing.T) {
	d := newDesk(t, nil)
	a := &healthagent{name: "foo", upstreams: []string{d.run(t)}, client: client(t, d.ca, d.ca.issue(t, "foo", time.Hour)), tick: time.Millisecond}
	if err := a.run(t.Context()); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("it got %v", err)
	}
}
