package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// store is where a backend under test keeps its records, looked at and edited behind its back.
type store struct {
	backend func() Backend             // another writer each time
	records func() []string            // all but the SOA, as "www.example.test. 30 IN A 192.0.2.1", sorted
	edit    func(remove, add []string) // by hand
	before  []string                   // what is there that is not ours
}

// foreignRecords are in every store; others keep them.
var foreignRecords = []string{
	`example.test. 300 IN TXT "v=spf1 -all"`, "example.test. 300 IN MX 10 mail.example.test.", "mail.example.test. 300 IN A 198.51.100.25",
	"old.example.test. 300 IN CNAME mail.example.test.", "sub.example.test. 300 IN NS ns.elsewhere.test.",
	`www.example.test. 300 IN TXT "beside our addresses"`,
}

// flat writes a record on one line with single spaces, in canonical form.
func flat(t testing.TB, text string) string {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil || rr == nil {
		t.Fatalf("record %q: %v", text, err)
	}
	data, err := rdata(rr)
	if err != nil {
		t.Fatal(err)
	}
	h := rr.Header()
	return fmt.Sprintf("%s %d IN %s %s", strings.ToLower(h.Name), h.Ttl, dns.Type(h.Rrtype), data)
}

func (s *store) has(want ...string) func() bool {
	slices.Sort(want)
	return func() bool {
		now := slices.DeleteFunc(s.records(), func(r string) bool {
			return strings.HasPrefix(r, "_rota.") || slices.Contains(s.before, r)
		})
		return slices.Equal(now, want)
	}
}

func (s *store) fence(t testing.TB) Fence {
	t.Helper()
	set := rota.RRset{Name: "_rota.example.test."}
	for _, r := range s.records() {
		if data, ok := strings.CutPrefix(r, "_rota.example.test. 60 IN TXT "); ok {
			set.Data = append(set.Data, data)
		}
	}
	f, err := ParseFence(set)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestLocalConformance is what the backends must do that end on this machine or in a script.
func TestLocalConformance(t *testing.T) {
	t.Parallel()
	stores := map[string]func(*testing.T) *store{
		"exec": execStore, "exec simple": simpleStore, "webhook": webhookStore, "zonefile": zoneFileStore, "mock": mockStore,
	}
	scenarios := map[string]func(*testing.T, *store){
		"removal, return, TTL, AAAA, fallback": localLife, "moved": localMoved, "hand edit": localEdit, "stale writer": localStale,
		"lost answer": localLost, "other owner": localOther, "late message": localLate,
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for what, scenario := range scenarios {
				t.Run(what, func(t *testing.T) {
					t.Parallel()
					s := open(t)
					s.before = s.records()
					t.Cleanup(func() {
						if t.Failed() {
							t.Logf("the store holds %q", s.records())
						}
					})
					for _, r := range foreignRecords {
						if !slices.Contains(s.before, r) {
							t.Fatalf("the store does not begin with %q: %q", r, s.before)
						}
					}
					scenario(t, s)
					for _, r := range s.before {
						if !slices.Contains(s.records(), r) {
							t.Errorf("lost %q", r)
						}
					}
				})
			}
		})
	}
}

// local is run, and says why when the test fails.
func local(t *testing.T, o Options, term uint64) *running {
	t.Helper()
	r := run(t, o, term)
	t.Cleanup(func() {
		for _, z := range r.Status().Zones {
			for _, why := range z.Reasons {
				t.Logf("term %d: %s: %v", term, why.Code, why)
			}
		}
	})
	return r
}

func localLife(t *testing.T, s *store) {
	w := newWorld(t, service("WWW.Example.TEST", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
	w.up("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
	p := local(t, quick(w, s.backend()), 7)
	const a, aaaa = "www.example.test. 30 IN A ", "www.example.test. 30 IN AAAA "
	eventually(t, "all addresses", s.has(a+"192.0.2.1", a+"192.0.2.2", aaaa+"2001:db8::1", aaaa+"2001:db8::2"))
	if f := s.fence(t); f.Owner != "test" || f.Epoch != 7 {
		t.Errorf("fence is %v", f)
	}
	w.down("192.0.2.1", "2001:db8::2")
	eventually(t, "removal", s.has(a+"192.0.2.2", aaaa+"2001:db8::1"))
	w.up("192.0.2.1")
	eventually(t, "return", s.has(a+"192.0.2.1", a+"192.0.2.2", aaaa+"2001:db8::1"))
	w.respec(func(s *rota.Spec) { s.Services[0].TTL = 60 })
	const la, laaaa = "www.example.test. 60 IN A ", "www.example.test. 60 IN AAAA "
	eventually(t, "TTL", s.has(la+"192.0.2.1", la+"192.0.2.2", laaaa+"2001:db8::1"))
	w.down("192.0.2.1", "192.0.2.2", "2001:db8::1")
	app := service("app.example.test", "192.0.2.3", "2001:db8::3")
	app.Safety.OnAllDown, app.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w.respec(func(s *rota.Spec) { s.Services = append(s.Services[:1:1], app) })
	w.up("192.0.2.3", "2001:db8::3")
	www := slices.DeleteFunc(s.records(), func(r string) bool { return !strings.HasPrefix(r, la) && !strings.HasPrefix(r, laaaa) })
	if len(www) == 0 {
		t.Error("the name was emptied")
	}
	eventually(t, "app", s.has(slices.Concat(www, []string{"app.example.test. 30 IN A 192.0.2.3", "app.example.test. 30 IN AAAA 2001:db8::3"})...))
	w.down("192.0.2.3", "2001:db8::3")
	eventually(t, "fallback", s.has(slices.Concat(www, []string{"app.example.test. 30 IN CNAME sorry.example.test."})...))
	w.up("192.0.2.3", "2001:db8::3")
	eventually(t, "back", s.has(slices.Concat(www, []string{"app.example.test. 30 IN A 192.0.2.3", "app.example.test. 30 IN AAAA 2001:db8::3"})...))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	before := s.fence(t)
	for range 3 {
		w.apply(rota.Event{Kind: rota.EventTick})
	}
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if now := s.fence(t); now != before {
		t.Errorf("the fence went from %v to %v while nothing changed", before, now)
	}
}

// localMoved writes what was planned on something else than the store holds.
func localMoved(t *testing.T, s *store) {
	b := s.backend()
	none := rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}
	fence := rota.Change{Old: none, New: Fence{Owner: "test", Epoch: 1, By: "00"}.RRset("example.test.")}
	mail := rota.RRset{Name: "mail.example.test.", Type: rota.TypeA, TTL: 300, Data: []string{"198.51.100.25"}}
	other, absent := mail, mail
	other.Data, absent.Data = []string{"192.0.2.1"}, nil
	for name, c := range map[string]rota.Change{"other data": {Old: other, New: mail}, "none": {Old: absent, New: other}} {
		n, err := b.Write(t.Context(), Batch{Zone: "example.test.", Fence: fence, Changes: []rota.Change{c}})
		if n != 1 || err != ErrMoved {
			t.Errorf("planned on %s: %d, %v, want ErrMoved", name, n, err)
		}
	}
	cname := rota.Change{
		Old: rota.RRset{Name: "mail.example.test.", Type: rota.TypeCNAME},
		New: rota.RRset{Name: "mail.example.test.", Type: rota.TypeCNAME, TTL: 30, Data: []string{"x.example.test."}},
	}
	if _, err := b.Write(t.Context(), Batch{Zone: "example.test.", Fence: fence, Changes: []rota.Change{cname}}); err == nil || ReasonOf(err).Code != CodeOther {
		t.Errorf("a CNAME beside an address is %v", err)
	}
	if diff := cmp.Diff(s.before, s.records()); diff != "" {
		t.Errorf("the store changed:\n%s", diff)
	}
}

func localEdit(t *testing.T, s *store) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(w, s.backend())
	o.Audit = 50 * time.Millisecond
	p := local(t, o, 1)
	const a = "www.example.test. 30 IN A "
	eventually(t, "first write", s.has(a+"192.0.2.1", a+"192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	s.edit([]string{a + "192.0.2.1"}, []string{a + "203.0.113.66", "mine.example.test. 30 IN A 203.0.113.66"})
	eventually(t, "repair", s.has(a+"192.0.2.1", a+"192.0.2.2", "mine.example.test. 30 IN A 203.0.113.66"))
	eventually(t, "the repair is counted", func() bool { return p.Status().Zones[0].Repairs >= 1 })
}

// localStale has a second leader take the zone: the first one stops and writes no more.
func localStale(t *testing.T, s *store) {
	old := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(old, s.backend())
	var leads sync.Map
	o.Confirm = func(context.Context, uint64) error {
		if _, gone := leads.Load("gone"); gone {
			return fmt.Errorf("another node leads")
		}
		return nil
	}
	const a = "www.example.test. 30 IN A "
	p := local(t, o, 1)
	eventually(t, "first write", s.has(a+"192.0.2.1", a+"192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, old.State().At()) })
	leads.Store("gone", true)
	now := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2").down("192.0.2.2")
	q := local(t, quick(now, s.backend()), 2)
	eventually(t, "the second leader", s.has(a+"192.0.2.1"))
	eventually(t, "settled", func() bool { return settled(q.Publisher, now.State().At()) })
	fence := s.fence(t)
	old.down("192.0.2.1")
	<-p.done
	if p.err == nil || !strings.Contains(p.err.Error(), "lead") {
		t.Errorf("the first leader ended with %v", p.err)
	}
	if f := s.fence(t); f != fence || !s.has(a+"192.0.2.1")() {
		t.Errorf("the deposed leader wrote: %v, %v", f, s.records())
	}
}

// deaf is a backend whose next answers to writes are lost, or whose next writes come late.
type deaf struct {
	Backend
	mu   sync.Mutex // guards what follows
	lose int
	late int
	held []Batch
}

func (d *deaf) Write(ctx context.Context, b Batch) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late > 0 && len(b.Changes) > 0 {
		d.late--
		d.held = append(d.held, b)
		return len(b.Changes), silence(true)
	}
	n, err := d.Backend.Write(ctx, b)
	if d.lose > 0 && err == nil && len(b.Changes) > 0 {
		d.lose--
		return n, silence(true)
	}
	return n, err
}

func localLost(t *testing.T, s *store) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	d := &deaf{Backend: s.backend(), lose: 1}
	p := local(t, quick(w, d), 1)
	const a = "www.example.test. 30 IN A "
	eventually(t, "the change", s.has(a+"192.0.2.1", a+"192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if f := s.fence(t); f.Seq != 1 || len(w.recorded()) != 1 {
		t.Errorf("fence %v, %d events: written more than once", f, len(w.recorded()))
	}
}

// localLate lets a write arrive when the decision was taken back: it is refused, for the fence has moved on.
func localLate(t *testing.T, s *store) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	d := &deaf{Backend: s.backend()}
	p := local(t, quick(w, d), 1)
	const a = "www.example.test. 30 IN A "
	eventually(t, "first write", s.has(a+"192.0.2.1", a+"192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	d.mu.Lock()
	d.late = 1
	d.mu.Unlock()
	w.down("192.0.2.2")
	eventually(t, "the second try", s.has(a+"192.0.2.1"))
	w.up("192.0.2.2")
	eventually(t, "back", s.has(a+"192.0.2.1", a+"192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if len(held) != 1 {
		t.Fatalf("%d writes were held", len(held))
	}
	if _, err := s.backend().Write(t.Context(), held[0]); err != ErrMoved {
		t.Errorf("a late write is %v, want ErrMoved", err)
	}
	if !s.has(a+"192.0.2.1", a+"192.0.2.2")() {
		t.Errorf("a late write was carried out: %v", s.records())
	}
}

func localOther(t *testing.T, s *store) {
	s.edit(nil, []string{`_rota.example.test. 60 IN TXT "owner=somebody epoch=3 seq=4 by=00"`})
	w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
	p := local(t, quick(w, s.backend()), 9)
	eventually(t, "the conflict", func() bool { return reasonCode(p.Publisher) == CodeConflict })
	if f := s.fence(t); f.Owner != "somebody" || !s.has()() {
		t.Errorf("the zone of another owner was written: %v", s.records())
	}
}

// example returns the absolute path of an example of the documents.
func example(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../docs/examples/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// jsonZone is the file of docs/examples/publish-json, and what the webhook's server under test holds.
type jsonZone struct {
	Zones  []string      `json:"zones"`
	RRsets []scriptRRset `json:"rrsets"`
}

func newJSONZone(t testing.TB) jsonZone {
	z := jsonZone{Zones: []string{"example.test.", "other.test."}, RRsets: []scriptRRset{}}
	z.change(t, nil, foreignRecords)
	return z
}

func (z *jsonZone) records() []string {
	out := []string{}
	for _, s := range z.RRsets {
		for _, d := range s.Data {
			out = append(out, fmt.Sprintf("%s %d IN %s %s", s.Name, s.TTL, s.Type, d))
		}
	}
	slices.Sort(out)
	return out
}

func (z *jsonZone) change(t testing.TB, remove, add []string) {
	t.Helper()
	part := func(text string) (scriptRRset, string) {
		f := strings.SplitN(flat(t, text), " ", 5)
		var ttl uint32
		fmt.Sscan(f[1], &ttl)
		return scriptRRset{Name: f[0], Type: f[3], TTL: ttl}, f[4]
	}
	at := func(s scriptRRset) *scriptRRset {
		for i := range z.RRsets {
			if z.RRsets[i].Name == s.Name && z.RRsets[i].Type == s.Type {
				return &z.RRsets[i]
			}
		}
		z.RRsets = append(z.RRsets, s)
		return &z.RRsets[len(z.RRsets)-1]
	}
	for _, r := range remove {
		s, data := part(r)
		set := at(s)
		set.Data = slices.DeleteFunc(slices.Clone(set.Data), func(d string) bool { return d == data })
	}
	for _, r := range add {
		s, data := part(r)
		set := at(s)
		set.Data = append(slices.Clone(set.Data), data)
	}
	z.RRsets = slices.DeleteFunc(z.RRsets, func(s scriptRRset) bool { return len(s.Data) == 0 })
}

func execStore(t *testing.T) *store {
	program(t, "jq", "jq")
	file := filepath.Join(t.TempDir(), "zone.json")
	load := func() (z jsonZone) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &z); err != nil {
			t.Fatal(err)
		}
		return z
	}
	save := func(z jsonZone) {
		text, err := json.Marshal(z)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".hand", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".hand", file); err != nil {
			t.Fatal(err)
		}
	}
	save(newJSONZone(t))
	return &store{
		backend: func() Backend {
			b, err := NewExec(ExecOptions{Name: "script", Command: []string{example(t, "publish-json"), file}, Run: commands})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		records: func() []string { z := load(); return z.records() },
		edit: func(remove, add []string) {
			lock, err := os.Create(file + ".lock")
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			z := load()
			z.change(t, remove, add)
			save(z)
		},
	}
}

func simpleStore(t *testing.T) *store {
	text := ""
	for _, r := range foreignRecords {
		text += r + "\n"
	}
	s := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: text}}})
	k := peers.DefaultKey()
	keyfile := filepath.Join(t.TempDir(), "ddns.key")
	if err := os.WriteFile(keyfile, fmt.Appendf(nil, "key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(s.Addr(), ":")
	return &store{
		backend: func() Backend {
			b, err := NewExec(ExecOptions{
				Name: "script", Command: []string{example(t, "publish-simple"), host, port, keyfile}, Run: commands,
				Simple: &RFC2136Options{Servers: []string{s.Addr()}, Timeout: 2 * time.Second},
			})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		records: func() []string {
			return slices.DeleteFunc(s.Dump("example.test."), func(r string) bool { return strings.Contains(r, " SOA ") })
		},
		edit: func(remove, add []string) { s.Update("example.test.", remove, add) },
	}
}

// receiver is a faithful other side of the webhook: it checks signatures, compares before it writes and does no write twice.
type receiver struct {
	t      testing.TB
	secret string
	signs  bool

	mu   sync.Mutex // guards what follows
	zone jsonZone
	done map[string]bool
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &webhook{secret: []byte(r.secret)}
	var q scriptRequest
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	if err := h.verify(req.Header.Get("Rota-Signature"), body, time.Now()); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	if err := json.Unmarshal(body, &q); err != nil || q.Version != 1 || q.ID == "" || q.ID != req.Header.Get("Rota-Delivery") || req.Method != http.MethodPost {
		r.t.Errorf("request %s: %v", body, err)
	}
	reply := scriptReply{ID: q.ID}
	status := http.StatusOK
	switch q.Action {
	case "zones":
		reply.Zones = &r.zone.Zones
	case "read":
		sets := []scriptRRset{}
		for _, s := range r.zone.RRsets {
			if slices.Contains(q.Names, rota.Name(s.Name)) {
				sets = append(sets, s)
			}
		}
		reply.RRsets = &sets
	case "write":
		changes := append([]scriptChange{*q.Fence}, q.Changes...)
		for _, c := range changes {
			now := []string{}
			for _, s := range r.zone.RRsets {
				if s.Name == c.Old.Name && s.Type == c.Old.Type {
					now = append(now, s.Data...)
				}
			}
			slices.Sort(now)
			if !slices.Equal(now, c.Old.Data) {
				reply.Error, status = &scriptError{Code: "moved", Text: "moved", Untouched: true}, http.StatusConflict
			}
		}
		if reply.Error == nil && !r.done[q.ID] {
			r.done[q.ID] = true
			for _, c := range changes {
				r.zone.RRsets = slices.DeleteFunc(r.zone.RRsets, func(s scriptRRset) bool { return s.Name == c.New.Name && s.Type == c.New.Type })
				if len(c.New.Data) > 0 {
					r.zone.RRsets = append(r.zone.RRsets, c.New)
				}
			}
		}
	}
	text, err := json.Marshal(reply)
	if err != nil {
		r.t.Error(err)
	}
	if r.signs {
		w.Header().Set("Rota-Signature", h.sign(time.Now(), text))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(text)
}

const webhookSecret = "0123456789abcdef0123456789abcdef"

func webhookStore(t *testing.T) *store {
	r := &receiver{t: t, secret: webhookSecret, signs: true, zone: newJSONZone(t), done: map[string]bool{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return &store{
		backend: func() Backend {
			b, err := NewWebhook(WebhookOptions{Name: "hook", URL: server.URL + "/dns", Secret: webhookSecret, Signed: true, Client: server.Client().Transport})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		records: func() []string {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.zone.records()
		},
		edit: func(remove, add []string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.zone.change(t, remove, add)
		},
	}
}

// zoneHead begins the zone files of tests, in the ways people write them.
const zoneHead = `$ORIGIN example.test.
$TTL 300 ; five minutes
@	IN SOA ns1 hostmaster (
		2026010100 ; serial: raised by hand
		3600 600 86400 30 )
	IN NS ns1
ns1	IN A 127.0.0.1
`

func zoneFileStore(t *testing.T) *store {
	text := zoneHead
	for _, r := range foreignRecords {
		text += r + "\n"
	}
	path := filepath.Join(t.TempDir(), "example.test.zone")
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	load := func() []string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		z, err := parseZone(b, "")
		if err != nil {
			t.Fatal(err)
		}
		out := []string{}
		for _, l := range z.lines {
			for _, rr := range l.records {
				if rr.Header().Rrtype != dns.TypeSOA {
					out = append(out, flat(t, rr.String()))
				}
			}
		}
		slices.Sort(out)
		return out
	}
	reload := filepath.Join(filepath.Dir(path), "reloaded")
	return &store{
		backend: func() Backend {
			b, err := NewZoneFile(ZoneFileOptions{Path: path, Reload: []string{"/usr/bin/touch", reload}, Run: commands})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		records: load,
		edit: func(remove, add []string) {
			z := &ZoneFile{o: ZoneFileOptions{Path: path}}
			err := z.locked(t.Context(), func() error {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				lines := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool {
					return slices.Contains(remove, strings.ReplaceAll(l, "\t", " "))
				})
				hand := path + ".hand"
				text := strings.Join(append(lines, add...), "\n") + "\n"
				return errors.Join(os.WriteFile(hand, []byte(text), 0o644), os.Chtimes(hand, old, old), os.Rename(hand, path))
			})
			if err != nil {
				t.Fatal(err)
			}
		},
	}
}

const mockZones = `
- Name: example.test
  SOA: {MName: ns1.example.test, RName: hostmaster.example.test, Serial: 7, Refresh: 3600, Retry: 600, Expire: 86400, TTL: 30}
  Records:
    - {Class: IN, Name: "", TTL: 300, Type: TXT, Value: "v=spf1 -all"}
    - {Class: IN, Name: "", TTL: 300, Type: MX, Value: mail.example.test, Preference: 10}
    - {Class: IN, Name: mail, TTL: 300, Type: A, Value: 198.51.100.25}
    - {Class: IN, Name: old, TTL: 300, Type: CNAME, Value: mail.example.test}
    - {Class: IN, Name: sub, TTL: 300, Type: NS, Value: ns.elsewhere.test}
    - {Class: IN, Name: www, TTL: 300, Type: TXT, Value: beside our addresses}
- Name: schnitzel.org
  SOA: {MName: ns1, RName: root, Serial: 1, Refresh: 1, Retry: 1, Expire: 1, TTL: 1}
  Records:
    - {Class: IN, Name: first, TTL: 60, Type: A, Value: 192.0.2.77}
    - {Class: IN, Name: last, TTL: 60, Type: A, Value: 192.0.2.78}
`

func newMock(t testing.TB) (m *Mock, state string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "zones.yaml"), []byte(mockZones), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewMock(MockOptions{Zones: filepath.Join(dir, "zones.yaml"), State: filepath.Join(dir, "state.json")})
	if err != nil {
		t.Fatal(err)
	}
	return m, filepath.Join(dir, "state.json")
}

func mockStore(t *testing.T) *store {
	m, _ := newMock(t)
	return &store{
		backend: func() Backend { return m },
		records: func() []string {
			m.mu.Lock()
			defer m.mu.Unlock()
			out := []string{}
			for _, e := range m.held[0].entries("example.test.") {
				out = append(out, fmt.Sprintf("%s %d IN %s %s", e.Key.Name, e.TTL, e.Key.Type, e.Data))
			}
			slices.Sort(out)
			return out
		},
		edit: func(remove, add []string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			z := &m.held[0]
			z.Records = slices.DeleteFunc(slices.Clone(z.Records), func(r mockRecord) bool {
				e, _ := r.entry("example.test.")
				return slices.Contains(remove, fmt.Sprintf("%s %d IN %s %s", e.Key.Name, e.TTL, e.Key.Type, e.Data))
			})
			for _, text := range add {
				rr, _ := dns.NewRR(text)
				k, _ := keyOf(rr)
				data, _ := rdata(rr)
				r, err := mockRecordOf("example.test.", k, rr.Header().Ttl, data)
				if err != nil {
					t.Error(err)
				}
				z.Records = append(z.Records, r)
			}
		},
	}
}
