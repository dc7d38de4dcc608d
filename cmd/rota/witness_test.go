package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
	"github.com/rota-dns/rota/internal/witness"
)

// words collects what a command writes while others read it.
type words struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// commanded runs a command line against a node and returns what it wrote and its exit code.
func commanded(ctx context.Context, n *node, out *words, args ...string) int {
	a := &app{out: out, err: out, getenv: func(string) string { return "" }, now: time.Now, version: "test"}
	return a.main(ctx, append([]string{"--data-dir", n.dir}, args...))
}

// keyFile writes the key that peers know.
func keyFile(t *testing.T) string {
	t.Helper()
	k := peers.DefaultKey()
	path := filepath.Join(t.TempDir(), "key")
	text := fmt.Sprintf("key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A drain is followed until it is proven: left the answer, left BIND, Knot and rota's own name server, left the caches.
func TestDrainIsProven(t *testing.T) {
	zone := peers.Zone{Name: "example.test."}
	bind, knot := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{zone}}), peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{zone}})
	n := running(t, parsed(t, `node: {name: a, data_dir: %q}
api: {listen: ""}
dns: {listen: "127.0.0.1:0", zones: {example.test: {ns: [ns.example.net]}}}
keys: {rota: {file: %q}}
publish:
  bind: {type: rfc2136, servers: [%q], key: rota, zone: example.test, proof: {servers: [%[3]q]}}
  knot: {type: rfc2136, servers: [%[4]q], key: rota, zone: example.test, proof: {servers: [%[4]q]}}
services: {www.example.test: {ttl: 2, endpoints: [192.0.2.1, 192.0.2.2], publish: [bind, knot, dns]}}
`, t.TempDir(), keyFile(t), bind.Addr(), knot.Addr()))
	everywhere := func() bool {
		ps, err := n.propagation(t.Context(), "www.example.test.", "")
		return err == nil && len(ps) == 3 && !slices.ContainsFunc(ps, func(p api.Propagation) bool { return !p.Everywhere })
	}
	eventually(t, "both endpoints are everywhere", everywhere)

	var out words
	begin := time.Now()
	if code := commanded(t.Context(), n, &out, "drain", "www.example.test/192.0.2.2", "--reason", "a test", "--wait", "--timeout", "1m"); code != 0 {
		t.Fatalf("exit %d:\n%s", code, out.String())
	}
	text := out.String()
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("drained after %v, before a cache that asked at the last moment forgot it", took)
	}
	i := strings.Index(text, "gone from every name server; caches may hold it until")
	if j := strings.Index(text, "www.example.test/192.0.2.2: DRAINED"); i < 0 || j < i {
		t.Errorf("the steps are:\n%s", text)
	}

	out = words{}
	if code := commanded(t.Context(), n, &out, "propagation", "www.example.test"); code != 0 {
		t.Fatalf("exit %d:\n%s", code, out.String())
	}
	for _, want := range []string{
		"by bind: everywhere as wanted", "by knot: everywhere as wanted", "by dns: everywhere as wanted", bind.Addr(), knot.Addr(),
		"visible everywhere", "no honest cache holds 192.0.2.2 since",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("propagation does not say %q:\n%s", want, out.String())
		}
	}
	counted := 0
	families, err := n.registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "rota_visible_seconds" {
			for _, m := range f.GetMetric() {
				if m.GetHistogram().GetSampleCount() > 0 {
					counted++
				}
			}
		}
	}
	if counted != 3 {
		t.Errorf("%d publishers have a time from decision to visible, want 3", counted)
	}
}

// An endpoint that is no endpoint any more while its drain is waited for is not called drained.
func TestDrainOfWhatVanishes(t *testing.T) {
	replies := []string{
		`{"items": [{"service": "a.example.org", "endpoint": "192.0.2.1", "in_answer": true}, {"service": "b.example.org", "endpoint": "192.0.2.1", "in_answer": true}]}`,
		`{"items": [{"service": "b.example.org", "endpoint": "192.0.2.1", "in_answer": true}]}`,
	}
	for _, from := range []int{0, 2} {
		i := from
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			reply := `{"items": []}`
			if i < len(replies) {
				reply = replies[i]
			}
			i++
			_, _ = w.Write([]byte(reply))
		}))
		defer srv.Close()
		a := &app{addr: srv.URL, getenv: func(string) string { return "" }}
		c, err := a.client()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.awaitDrained(t.Context(), "192.0.2.1", func(string) {}); err == nil || !strings.Contains(err.Error(), "no endpoint any more") {
			t.Errorf("from %d: %v", from, err)
		}
	}
}

// A drain whose server cannot be seen is not called proven, however long one waits; a dead publisher holds up no other.
func TestDrainIsNotProven(t *testing.T) {
	zone := peers.Zone{Name: "example.test."}
	bind, knot := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{zone}}), peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{zone}})
	n := running(t, parsed(t, `node: {name: a, data_dir: %q}
api: {listen: ""}
keys: {rota: {file: %q}}
publish:
  bind: {type: rfc2136, servers: [%q], key: rota, zone: example.test, proof: {servers: [%[3]q]}}
  knot: {type: rfc2136, servers: [%[4]q], key: rota, zone: example.test, proof: {servers: [%[4]q]}}
services: {www.example.test: {ttl: 1, endpoints: [192.0.2.1, 192.0.2.2], publish: [bind, knot]}}
`, t.TempDir(), keyFile(t), bind.Addr(), knot.Addr()))
	eventually(t, "both endpoints are everywhere", func() bool {
		ps, err := n.propagation(t.Context(), "www.example.test.", "")
		return err == nil && len(ps) == 2 && ps[0].Everywhere && ps[1].Everywhere
	})
	knot.Kill()
	var out words
	code := commanded(t.Context(), n, &out, "drain", "www.example.test/192.0.2.2", "--reason", "a test", "--wait", "--timeout", "8s")
	if code != exitFailed || strings.Contains(out.String(), "DRAINED") || !strings.Contains(out.String(), "not proven to be drained") {
		t.Fatalf("exit %d:\n%s", code, out.String())
	}
	ps, err := n.propagation(t.Context(), "www.example.test.", "192.0.2.2")
	if err != nil || !ps[0].Everywhere || !ps[0].Leaving[0].Proven {
		t.Errorf("BIND waited for Knot: %+v %v", ps, err)
	}
	e := witness.Equals{}
	if d := e.Look(holdings(n.raft.State(), n.current.Load()), time.Now(), 0); len(d) != 1 || d[0].Service != "www.example.test." {
		t.Errorf("the publishers agree: %+v", d)
	}
	knot.Restart()
	eventually(t, "both hold the same again", func() bool {
		return len(e.Look(holdings(n.raft.State(), n.current.Load()), time.Now(), 0)) == 0
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// A publisher that never read its zone takes no part in the comparison, and one that read it empty does.
func TestWasRead(t *testing.T) {
	s := publish.Status{Zones: []publish.ZoneStatus{{Zone: "example.test."}, {Zone: "a.example.test.", Records: []rota.RRset{}}}}
	for name, want := range map[rota.Name]bool{"www.example.test.": false, "www.a.example.test.": true, "www.example.net.": false} {
		if got := wasRead(s, name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What is wrong outside stands in the status, the worst that is known of each server with what to do.
func TestSeenOutside(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := &api.Proof{
		Zones: []api.ProofZone{{Zone: "example.test", Publisher: "bind", Pending: 2, Oldest: now.Add(-2 * time.Minute), Findings: []api.ProofFinding{
			{Code: "stuck-secondary", Server: "ns2 192.0.2.53:53", Since: now.Add(-time.Hour), Text: "stays at serial 1", Advice: "see its log"},
		}}},
		Disagreements: []api.Disagreement{{Service: "www.example.test", Since: now.Add(-time.Minute), Text: "a has x, b has y"}},
	}
	var b strings.Builder
	seenOutside(&b, p, now)
	want := "outside: example.test STUCK-SECONDARY: ns2 192.0.2.53:53 stays at serial 1, for 1h; see its log\n" +
		"outside: example.test by bind: 2 changes not visible everywhere for 2m: see `rota propagation NAME`\n" +
		"DISAGREE: www.example.test: a has x, b has y, for 60s\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	seenOutside(&b, nil, now)
}

// Everything of a propagation is told, also what is bad about it.
func TestWritePropagation(t *testing.T) {
	now := time.Date(2026, 1, 2, 13, 59, 8, 0, time.UTC)
	p := api.Propagation{
		Name: "www.example.test", Publisher: "bind", Zone: "example.test", At: now, Want: []api.Wanted{{Type: rota.TypeA, Data: []string{"192.0.2.2"}, TTL: 300}},
		Views: []api.ServerView{
			{Server: "ns1 192.0.2.51:53", Transport: "udp", Serial: 7, Type: rota.TypeA, Data: []string{"192.0.2.2"}, TTL: 300, Rcode: "NOERROR", RTT: 3 * time.Millisecond, Agrees: true},
			{Server: "ns2 192.0.2.52:53", Transport: "tcp", Type: rota.TypeA, Data: []string{}, Trouble: "silent", Text: "i/o timeout"},
		},
		Public:  []api.ServerView{{Server: "192.0.2.9:53", Transport: "udp", Type: rota.TypeA, Data: []string{"192.0.2.1"}, TTL: 17, Rcode: "NOERROR"}},
		Changes: []api.ChangeSeen{{Event: 12, Type: rota.TypeA, First: []api.FirstSeen{{Server: "ns1", Transport: "udp", After: 80 * time.Millisecond}}, Visible: now, Took: 312 * time.Millisecond}},
		Leaving: []api.LeavingData{
			{Data: "192.0.2.1", Proven: true, Until: now.Add(4*time.Minute + 12*time.Second)},
			{Data: "192.0.2.3", Unseen: []string{"ns2 192.0.2.52:53"}},
		},
	}
	var b bytes.Buffer
	if err := writePropagation(&b, p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"www.example.test in example.test by bind: NOT EVERYWHERE as wanted", "wanted  A 192.0.2.2 (ttl 300)", "SILENT: i/o timeout", "192.0.2.9:53 (resolver)", "17",
		"event 12, A: visible everywhere 312ms after the decision; first at ns1 over udp after 80ms",
		"caches may hold 192.0.2.1 until 14:03:20Z (in 4m12s)", "caches may hold 192.0.2.3: it is not proven that it left ns2 192.0.2.52:53",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not told:\n%s", want, b.String())
		}
	}
	// Nobody says otherwise, but not everybody was found.
	b.Reset()
	p.Views = p.Views[:1]
	if err := writePropagation(&b, p); err != nil || !strings.Contains(b.String(), "as wanted wherever it could be seen, but not every server was found") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}

// What is watched: the zones of every publisher that is to be proven and still keeps them, what hosts claim, and what this node itself
// answers.
func TestSubjects(t *testing.T) {
	cfg := parsed(t, `node: {name: a, data_dir: %q}
api: {listen: ""}
dns: {listen: "127.0.0.1:0", zones: {example.test: {ns: [ns.example.net]}}}
keys: {rota: {file: %q}}
publish:
  bind: {type: rfc2136, servers: ["127.0.0.1:1"], key: rota, zone: example.test, proof: {within: 30s}}
  dry: {type: rfc2136, servers: ["127.0.0.1:1"], key: rota, zone: example.test, dry_run: true}
  quiet: {type: rfc2136, servers: ["127.0.0.1:1"], key: rota, zone: example.test, proof: off}
services: {www.example.test: {endpoints: [192.0.2.1, 192.0.2.2], publish: [bind, dry, quiet, dns]}}
`, t.TempDir(), keyFile(t))
	n, err := newNode(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.raft.Close() })
	spec := cfg.Spec
	spec.Registers = []rota.RegisterTemplate{{
		Name: "vm", HostName: "{id}-{service}-{env}", ServiceName: "{service}.example.test", HostRecord: "{host}.example.test", HostZone: "example.test.",
		HostPublish: []string{"bind", rota.Embedded}, Service: rota.Service{TTL: 60, Publish: []string{"bind"}, Safety: rota.DefaultSafety()},
		Endpoint: rota.Endpoint{Weight: 1},
	}}
	st := &rota.State{}
	apply := func(e rota.Event) {
		t.Helper()
		e.Index, e.At = st.Index()+1, time.Unix(1e9+int64(st.Index()), 0)
		next, err := st.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		st = next
	}
	apply(rota.Event{Kind: rota.EventSpec, Spec: &spec})
	apply(rota.Event{Kind: rota.EventRegister, Registrations: []rota.Registration{{Template: "vm", Host: "x1-db-prod", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")}}}})
	f := &follower{n: n, last: map[published]rota.RRset{}, zones: map[string][]rota.Name{}, began: time.Now()}
	f.keeps("bind", "example.test.")
	shown := func() map[string]witness.Expect {
		out := map[string]witness.Expect{}
		for _, s := range f.subjects(st, n.current.Load()) {
			for _, e := range s.Expects {
				out[s.Publisher+" "+e.String()] = e
			}
			if s.Publisher == "bind" && (s.Within != 30*time.Second || !slices.Equal(s.Origins, []string{"127.0.0.1:1"})) {
				t.Errorf("subject: %+v", s)
			}
		}
		return out
	}
	got := shown()
	for _, key := range []string{"bind www.example.test A", "dns www.example.test A", "bind x1-db-prod.example.test A", "dns x1-db-prod.example.test A"} {
		e, ok := got[key]
		if service := strings.Contains(key, "www"); !ok || service != (len(e.Known) > 0) || e.Some != (key == "dns www.example.test A") {
			t.Errorf("%s: %+v of %v", key, e, slices.Sorted(maps.Keys(got)))
		}
	}
	for key := range got {
		if strings.HasPrefix(key, "dry") || strings.HasPrefix(key, "quiet") {
			t.Errorf("%s is watched", key)
		}
	}
	apply(rota.Event{Kind: rota.EventInstruct, Actor: "a person", Reason: "moves", Instruction: &rota.Instruction{Verb: rota.VerbRelease, Publisher: "bind", Zone: "example.test."}})
	if got := shown(); len(got) != 2 {
		t.Errorf("after the zone was given up %v are watched, want what this node answers", slices.Sorted(maps.Keys(got)))
	}
}
