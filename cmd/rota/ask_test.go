package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// asking publishers: bind has something to write and something that is held, and does as it is told; another installation owns what
// r53 should keep.
func withPublishers(o *api.Options, f *fold, dir string) {
	www, one := rota.MustParseName("www.example.org"), rota.MustParseName("one.example.org")
	a := func(n rota.Name, data ...string) rota.RRset {
		return rota.RRset{Name: n, Type: rota.TypeA, TTL: 30, Data: data}
	}
	verbs := func(publisher string, zone rota.Name) map[rota.Verb]rota.Instructed {
		out := map[rota.Verb]rota.Instructed{}
		for _, x := range f.State().Instructions(publisher, zone) {
			if x.Verb == rota.VerbApply && len(x.Names) > 0 {
				out["force"] = x
				continue
			}
			out[x.Verb] = x
		}
		return out
	}
	o.Plan = func(_ context.Context, publisher string) ([]api.Plan, error) {
		bind := api.Plan{Publisher: "bind", Zone: "example.org.", Owner: "us"}
		told := verbs("bind", "example.org.")
		gone := a(www, "192.0.2.10", "192.0.2.12")
		if _, ok := told[rota.VerbApply]; ok {
			bind.Unchanged = append(bind.Unchanged, gone)
		} else {
			bind.Changes = append(bind.Changes, rota.Change{Old: a(www, "192.0.2.10", "192.0.2.11", "192.0.2.12"), New: gone, Why: "down by 2 of 3"})
		}
		if x, ok := told["force"]; ok && slices.Contains(x.Names, one) {
			bind.Unchanged = []rota.RRset{a(one, "198.51.100.1"), gone}
			bind.Changes = nil
		} else {
			bind.Held = append(bind.Held, api.HeldChange{
				Change: rota.Change{Old: a(one, "198.51.100.1", "198.51.100.2"), New: a(one, "198.51.100.1")}, Why: "3 of 12 records already left in the last 10m",
			})
		}
		if x, ok := told[rota.VerbRelease]; ok {
			bind.Reasons = append(bind.Reasons, api.PlanReason{Code: "released", Text: "released by " + x.Actor})
			if bind.Offer = x.To; x.To == "" {
				bind.Owner = ""
			}
		}
		r53 := api.Plan{Publisher: "r53", Zone: "example.net.", Owner: "them", Changes: []rota.Change{{New: a("www.example.net.", "192.0.2.10")}}}
		if x, ok := verbs("r53", "example.net.")[rota.VerbImport]; ok && x.From == "them" {
			r53.Owner, r53.Changes, r53.Unchanged = "us", nil, []rota.RRset{a("www.example.net.", "192.0.2.10")}
		} else {
			r53.Error = `the zone is written by rota "them"`
			r53.Reasons = []api.PlanReason{{Code: "conflict", Text: r53.Error}}
		}
		if publisher == "cf" { // offered, after somebody had asked for it
			cf := api.Plan{Publisher: "cf", Zone: "example.edu.", Owner: "them", Offer: "us", Changes: []rota.Change{{New: a("www.example.edu.", "192.0.2.10")}}}
			if _, ok := verbs("cf", "example.edu.")[rota.VerbImport]; ok {
				cf.Owner, cf.Offer, cf.Changes = "us", "", nil
			}
			return []api.Plan{cf}, nil
		}
		return slices.DeleteFunc([]api.Plan{bind, r53}, func(p api.Plan) bool { return publisher != "" && p.Publisher != publisher }), nil
	}
	o.Publishers = func() []api.PublisherStatus {
		bind := api.PublishedZone{Zone: "example.org.", State: "held", Error: "1 record is held", Held: []api.HeldChange{{Why: "x"}}}
		return []api.PublisherStatus{
			{Publisher: "bind", Zones: []api.PublishedZone{bind}},
			{Publisher: "r53", Zones: []api.PublishedZone{{Zone: "example.net.", State: "failing"}}},
			{Publisher: "cf", Zones: []api.PublishedZone{{Zone: "example.edu.", State: "failing"}}},
		}
	}
	o.Frozen = func() *rota.Freeze {
		if own := readFreeze(dir); own != nil {
			return &own.Freeze
		}
		return nil
	}
	o.Freeze = func(x rota.Freeze, here bool) error { return writeFreeze(dir, ownFreeze{x, here}) }
	o.Thaw = func(string) error { return removeFreeze(dir) }
}

// TestNoWriteInADryRun: what only looks, and what would act and is told not to, sends nothing but questions.
func TestNoWriteInADryRun(t *testing.T) {
	o, f := nightOptions()
	dir := t.TempDir()
	withPublishers(&o, f, dir)
	token, err := api.NewToken("root", api.RoleAdmin, "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	o.Tokens = []api.Token{token}
	s, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var sent []string
	h := s.Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		sent = append(sent, r.Method+" "+r.URL.Path)
		mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	before := f.State().Index()
	var out bytes.Buffer
	a := &app{out: &out, err: &out, now: time.Now, getenv: func(k string) string { return map[string]string{"ROTA_TOKEN": "0123456789abcdef"}[k] }}
	lines := map[string]int{
		"plan": 1, "plan bind": 4, "plan bind/example.org -o json": 4, "drift": 1, "drift --publisher bind --detailed-exitcode": 3,
		"records": 1, "records example.org": 0, "get changes --held": 0, "get instructions": 0,
		"apply --dry-run": 0, "apply bind --force --reason x --dry-run": 0, "apply bind --force --reason x --yes --dry-run": 0,
		"import example.net --from them --dry-run": 0, "import example.net --from them --reason x --yes --dry-run": 0,
		"release example.org --dry-run": 0, "release example.org --reason x --yes --to them --dry-run": 0,
		"refresh www.example.org --dry-run": 0, "freeze --dry-run": 0, "freeze --reason x --dry-run": 0, "thaw --dry-run": 0,
	}
	for _, c := range a.root().Commands() {
		here := func(line string) bool {
			return strings.HasPrefix(line, c.Name()+" ") && strings.Contains(line, "--dry-run")
		}
		elsewhere := slices.Contains([]string{"register", "deregister"}, c.Name()) // TestRegisterDirect: they speak to the DNS themselves
		if c.Flags().Lookup("dry-run") != nil && !elsewhere && !slices.ContainsFunc(slices.Collect(maps.Keys(lines)), here) {
			t.Errorf("rota %s --dry-run is not tried here", c.Name())
		}
	}
	for line, want := range lines {
		out.Reset()
		mu.Lock()
		sent = nil
		mu.Unlock()
		if code := a.main(t.Context(), append(strings.Fields(line), "--addr="+srv.URL)); code != want {
			t.Errorf("%s: exit code %d, want %d\n%s", line, code, want, &out)
		}
		for _, x := range sent {
			if !strings.HasPrefix(x, "GET ") {
				t.Errorf("%s sends %s", line, x)
			}
		}
		if len(sent) == 0 && !strings.HasPrefix(line, "freeze") {
			t.Errorf("%s asks nothing:\n%s", line, &out)
		}
	}
	if f.State().Index() != before || readFreeze(dir) != nil {
		t.Error("something happened")
	}
}

// TestPlace: a publisher that was written as an address has slashes in its name.
func TestPlace(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"items": [{"publisher": "bind"}, {"publisher": "192.0.2.1/example.org"}]}`))
	}))
	defer srv.Close()
	a := &app{addr: srv.URL, getenv: func(string) string { return "" }}
	c, err := a.client()
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{
		"": "", "bind": "publisher=bind", "bind/example.org": "publisher=bind&zone=example.org", "192.0.2.1/example.org": "publisher=192.0.2.1%2Fexample.org",
		"192.0.2.1/example.org/example.net": "publisher=192.0.2.1%2Fexample.org&zone=example.net", "bnid": "publisher=bnid",
	} {
		if q, err := c.place(t.Context(), slices.DeleteFunc([]string{arg}, func(s string) bool { return s == "" })); err != nil || q.Encode() != want {
			t.Errorf("%q: %s, %v, want %s", arg, q.Encode(), err, want)
		}
	}
}

// TestFreezeFile: what is written is read, the first stays, and what cannot be read freezes.
func TestFreezeFile(t *testing.T) {
	dir := t.TempDir()
	if readFreeze(dir) != nil || removeFreeze(dir) != nil {
		t.Error("frozen by nothing")
	}
	first := ownFreeze{rota.Freeze{At: t0, Actor: "alice", Reason: "the probes are wrong"}, true}
	for _, f := range []ownFreeze{first, {rota.Freeze{At: t0, Actor: "bob", Reason: "me too"}, false}} {
		if err := writeFreeze(dir, f); err != nil {
			t.Fatal(err)
		}
	}
	if got := readFreeze(dir); got == nil || *got != first {
		t.Errorf("read %+v", got)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("files %v, %v", files, err)
	}
	if info, err := os.Stat(filepath.Join(dir, freezeFile)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for name, text := range map[string]string{"empty": "", "words": "stop it\n", "huge": strings.Repeat(" ", maxFreeze) + "{}", "another kind": "[]"} {
		if err := os.WriteFile(filepath.Join(dir, freezeFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := readFreeze(dir); got == nil || !got.Here || !strings.Contains(got.Reason, "nothing that can be read") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, make := range map[string]func(string) error{
		"a link to nowhere": func(at string) error { return os.Symlink(filepath.Join(dir, "nowhere"), at) },
		"a link to itself":  func(at string) error { return os.Symlink(at, at) },
		"a pipe":            func(at string) error { return syscall.Mkfifo(at, 0o600) },
		"a directory":       func(at string) error { return os.Mkdir(at, 0o700) },
	} {
		if err := errors.Join(removeFreeze(dir), make(filepath.Join(dir, freezeFile)), writeFreeze(dir, first)); err != nil {
			t.Fatal(err)
		}
		if got := readFreeze(dir); got == nil || !got.Here || got.At.IsZero() || !strings.Contains(got.Reason, "nothing that can be read") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if err := removeFreeze(dir); err != nil || readFreeze(dir) != nil {
		t.Errorf("still frozen: %v", err)
	}
	if err := writeFreeze(filepath.Join(dir, "nowhere"), first); err == nil {
		t.Error("written where there is no directory")
	}
}

// TestFrozenNode: the file freezes a node that runs and one that starts; the end of a freeze by the cluster's is found, too.
func TestFrozenNode(t *testing.T) {
	n := serving(t, 3)
	led(t, n)
	query := func() int {
		q := new(dns.Msg)
		q.SetQuestion("www.example.test.", dns.TypeA)
		r, _, err := new(dns.Client).Exchange(q, n.dns.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Answer)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.dns.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := n.watchFrozen(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	drain := func(i int) {
		t.Helper()
		now := time.Now()
		e := n.raft.State().Services()[0].Endpoints[i]
		id := rota.EndpointID{Service: n.raft.State().Services()[0].Name, Address: e.Address}
		if _, err := n.raft.Append(t.Context(), rota.Event{Kind: rota.EventOverride, Overrides: []rota.Override{{
			Endpoint: id, Action: rota.ActionDrain, Author: "x", Reason: "x", Set: now, Expires: now.Add(time.Hour),
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(); got != 3 || n.whyFrozen() != "" {
		t.Fatalf("%d answers before anything", got)
	}
	if err := os.WriteFile(filepath.Join(n.dir, freezeFile), []byte("stop"), 0o644); err != nil {
		t.Fatal(err)
	}
	until(t, "the node is frozen", func() bool { return n.whyFrozen() != "" })
	drain(0)
	if got := query(); got != 3 {
		t.Errorf("%d answers although frozen", got)
	}
	if err := n.thawSelf("alice"); err != nil {
		t.Fatal(err)
	}
	if got := query(); got != 2 || n.ownFreeze() != nil {
		t.Errorf("%d answers after the thaw", got)
	}
	// Once the cluster is frozen, the file has done its work, unless this node alone was meant.
	for _, here := range []bool{false, true} {
		if err := n.freezeSelf(rota.Freeze{At: time.Now(), Actor: "alice", Reason: "why not"}, here); err != nil {
			t.Fatal(err)
		}
		if _, err := n.raft.Append(t.Context(), rota.Event{Kind: rota.EventFreeze, Actor: "alice", Reason: "why not"}); err != nil {
			t.Fatal(err)
		}
		n.lookFrozen()
		if still := n.ownFreeze() != nil; still != here || (readFreeze(n.dir) != nil) != here {
			t.Errorf("here %v: frozen by itself %v", here, still)
		}
	}
	drain(1)
	if got := query(); got != 2 {
		t.Errorf("%d answers of a node that is meant to stand", got)
	}
	if f := n.ownFreeze(); f.At.IsZero() || f.Actor != "alice" {
		t.Errorf("frozen: %v", f)
	}
	if v := publishedZone(publish.Status{Leading: true}, publish.ZoneStatus{Reasons: []*publish.Reason{
		{Code: publish.CodeFrozen, Text: n.whyFrozen()}, {Code: publish.CodeUnreachable, Text: "no way there"},
	}}); v.State != "failing" || v.Error != "no way there" {
		t.Errorf("what fails is hidden by a freeze: %+v", v)
	}
	cancel()
	wg.Wait()
	if err := errors.Join(n.api.Run(ctx), n.raft.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := newNode(n.current.Load().cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer again.raft.Close()
	if again.ownFreeze() == nil || again.raft.State().Frozen() == nil || again.answers() != again.frozen.Load().answers {
		t.Error("thawed by a restart")
	}
}

// TestFreezeWithoutANode: the command freezes a data directory that no node runs in, and thaws it.
func TestFreezeWithoutANode(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	a := &app{out: &out, err: &out, now: time.Now, getenv: func(string) string { return "" }}
	rota := func(args ...string) int {
		out.Reset()
		return a.main(t.Context(), append(args, "--data-dir="+dir))
	}
	if code := rota("freeze", "--reason", "the network is gone"); code != exitOK || !strings.Contains(out.String(), "this node: FROZEN by "+filepath.Join(dir, freezeFile)) ||
		!strings.Contains(out.String(), "the cluster: NOT TOLD: no rota runs") {
		t.Errorf("%d: %s", code, &out)
	}
	if f := readFreeze(dir); f == nil || f.Reason != "the network is gone" || f.Actor == "" || f.Here {
		t.Errorf("%+v", f)
	}
	if code := rota("thaw"); code != exitOK || readFreeze(dir) != nil || !strings.Contains(out.String(), "this node: thawed") {
		t.Errorf("%d: %s", code, &out)
	}
	if code := rota("thaw"); code != exitFailed {
		t.Errorf("nothing to thaw: %d: %s", code, &out)
	}
	dir = filepath.Join(dir, "nowhere")
	if code := rota("freeze", "--reason", "x"); code != exitFailed || !strings.Contains(out.String(), "nor could the command") {
		t.Errorf("%d: %s", code, &out)
	}
	if code := rota("freeze"); code != exitUsage {
		t.Errorf("without a reason: %d", code)
	}
}

// TestStatusIsLoud: what is frozen stands first.
func TestStatusIsLoud(t *testing.T) {
	var o overview
	if err := json.Unmarshal([]byte(`{"freeze": {"node": {"actor": "a", "reason": "r"}, "cluster": {"actor": "b", "reason": "q"}}}`), &o); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := o.write(&b, t0); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(b.String(), "\n"); !strings.HasPrefix(lines[0], "FROZEN by b since") || !strings.HasPrefix(lines[2], "this node alone: FROZEN by a since") {
		t.Errorf("%s", b.String())
	}
}
