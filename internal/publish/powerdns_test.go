package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// realPowerDNS is a PowerDNS server behind a front that plays faults, holds and captures requests.
type realPowerDNS struct {
	*apiFront
	server *peers.NameServer
}

func newRealPowerDNS(t testing.TB) fakeAPI {
	var text strings.Builder
	for _, line := range apiForeign {
		text.WriteString(line + "\n")
	}
	s := peers.Start(t, peers.PowerDNS, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: text.String()}}})
	u, err := url.Parse(s.API())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	carrier := &http.Transport{}
	t.Cleanup(carrier.CloseIdleConnections)
	proxy.Transport = carrier
	return &realPowerDNS{
		apiFront: &apiFront{handler: proxy, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }},
		server:   s,
	}
}

func (p *realPowerDNS) backend(t testing.TB) Backend {
	b, err := NewPowerDNS(PowerDNSOptions{URL: p.server.API(), Key: peers.APIKey, Timeout: 500 * time.Millisecond, client: p.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *realPowerDNS) secret() string { return peers.APIKey }

func (p *realPowerDNS) records(zone string) []string {
	return slices.DeleteFunc(p.server.Dump(zone), func(rr string) bool {
		return strings.Contains(rr, " SOA ") || strings.Contains(rr, " ns1."+zone) || strings.HasPrefix(rr, "ns1."+zone)
	})
}

func (p *realPowerDNS) edit(zone string, add, remove []string) { p.server.Update(zone, remove, add) }

func (p *realPowerDNS) fail(f apiFault, n int) bool {
	switch f {
	case apiEmpty, apiLoop, apiStale, apiPartial, apiAlien:
		return false
	}
	return p.apiFront.fail(f, n)
}

func TestPowerDNSServer(t *testing.T) {
	t.Parallel()
	apiConformance(t, false, newRealPowerDNS)
}

// Of writers that all planned on the same fence and write in the same moment, the real server lets one pass.
func TestPowerDNSServerRace(t *testing.T) {
	b := newRealPowerDNS(t).backend(t)
	const zone = rota.Name("example.test.")
	now := rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}
	for round := range 10 {
		var g errgroup.Group
		var passed atomic.Int32
		for range 6 {
			g.Go(func() error {
				_, err := b.Write(t.Context(), Batch{Zone: zone, Fence: rota.Change{Old: now, New: Fence{}.take("test", 1).RRset(zone)}})
				if errors.Is(err, ErrMoved) {
					return nil
				}
				passed.Add(1)
				return err
			})
		}
		if err := g.Wait(); err != nil || passed.Load() != 1 {
			t.Fatalf("round %d: %d writers passed, %v", round, passed.Load(), err)
		}
		have, err := b.Read(t.Context(), zone, []rota.Key{FenceKey(zone)})
		if err != nil {
			t.Fatal(err)
		}
		now = find(have.Sets, FenceKey(zone))
	}
}

// fakePowerDNS is PowerDNS as its documentation and the real server tell: a PATCH takes its RRsets in their order, a CNAME is refused
// where other data is at that moment and the reverse, and then nothing of the PATCH happens.
type fakePowerDNS struct {
	*apiFront
	t testing.TB

	mu     sync.Mutex // guards what follows
	books  []pdnsSet
	listed bool
}

type pdnsSet struct {
	Name       string       `json:"name"`
	Type       string       `json:"type"`
	TTL        int          `json:"ttl"`
	ChangeType string       `json:"changetype,omitempty"`
	Records    []pdnsRecord `json:"records"`
	Comments   []string     `json:"comments"`
}

type pdnsRecord struct {
	Content  string `json:"content"`
	Disabled bool   `json:"disabled"`
}

func newFakePowerDNS(t testing.TB) fakeAPI {
	f := &fakePowerDNS{t: t}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	f.edit("example.test.", apiForeign, nil)
	return f
}

func (f *fakePowerDNS) backend(t testing.TB) Backend {
	b, err := NewPowerDNS(PowerDNSOptions{URL: "http://192.0.2.53:8081/", Key: f.secret(), Timeout: 2 * time.Second, client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakePowerDNS) secret() string { return "hush-this-is-the-pdns-key" }

func (f *fakePowerDNS) records(string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range f.books {
		for _, r := range s.Records {
			out = append(out, fmt.Sprintf("%s %d IN %s %s", s.Name, s.TTL, s.Type, r.Content))
		}
	}
	slices.Sort(out)
	return out
}

func (f *fakePowerDNS) at(books []pdnsSet, name, kind string) int {
	return slices.IndexFunc(books, func(s pdnsSet) bool { return s.Name == name && s.Type == kind })
}

func (f *fakePowerDNS) edit(_ string, add, remove []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, line := range slices.Concat(remove, add) {
		p := strings.SplitN(line, " ", 5)
		ttl, err := strconv.Atoi(p[1])
		if err != nil {
			f.t.Fatal(err)
		}
		at := f.at(f.books, p[0], p[3])
		if at < 0 {
			f.books = append(f.books, pdnsSet{Name: p[0], Type: p[3]})
			at = len(f.books) - 1
		}
		s := &f.books[at]
		s.TTL = ttl
		if i < len(remove) {
			s.Records = slices.DeleteFunc(s.Records, func(r pdnsRecord) bool { return r.Content == p[4] })
		} else {
			s.Records = append(s.Records, pdnsRecord{Content: p[4]})
		}
	}
	f.books = slices.DeleteFunc(f.books, func(s pdnsSet) bool { return len(s.Records) == 0 })
}

func (f *fakePowerDNS) fail(k apiFault, n int) bool {
	switch k {
	case apiStale, apiPartial, apiLoop:
		return false // one database, a PATCH is a transaction, and lists have no pages
	}
	return f.apiFront.fail(k, n)
}

func (f *fakePowerDNS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("X-API-Key") != f.secret() {
		f.t.Errorf("a request without its key: %s", r.URL)
	}
	const root = "/api/v1/servers/localhost/zones"
	switch {
	case r.Method == http.MethodGet && r.URL.Path == root:
		fmt.Fprint(w, `[{"id":"other.test.","name":"other.test.","kind":"Slave"},{"id":"example.test.","name":"example.test.","kind":"Native"}]`)
	case r.Method == http.MethodGet && r.URL.Path == root+"/other.test.":
		fmt.Fprint(w, `{"id":"other.test.","name":"other.test.","kind":"Slave","rrsets":[]}`)
	case r.Method == http.MethodGet && r.URL.Path == root+"/example.test.":
		f.listed = true
		sets := slices.Clone(f.books)
		if f.playing(apiAlien) {
			sets = append(sets, pdnsSet{Name: "x.example.test.", Type: "LUA", TTL: 60, Records: []pdnsRecord{{Content: `A "ifportup()"`}}},
				pdnsSet{Name: "y.example.test.", Type: "A", TTL: 60, Records: []pdnsRecord{{Content: "192.0.2.9", Disabled: true}}})
		}
		if f.playing(apiEmpty) {
			sets = []pdnsSet{}
		}
		json.NewEncoder(w).Encode(map[string]any{"id": "example.test.", "name": "example.test.", "kind": "Native", "rrsets": sets})
	case r.Method == http.MethodPatch && r.URL.Path == root+"/example.test.":
		f.patch(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "Not Found")
	}
}

func (f *fakePowerDNS) patch(w http.ResponseWriter, r *http.Request) {
	if !f.listed {
		f.t.Error("a write before a list")
	}
	var in struct {
		RRsets []pdnsSet `json:"rrsets"`
	}
	refuse := func(format string, args ...any) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		json.NewEncoder(w).Encode(map[string]string{"error": fmt.Sprintf(format, args...)})
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse("%v", err)
		return
	}
	next := slices.Clone(f.books)
	for _, s := range in.RRsets {
		if !strings.HasSuffix(s.Name, "example.test.") {
			refuse("RRset %s IN %s: Name is out of zone", s.Name, s.Type)
			return
		}
		at := f.at(next, s.Name, s.Type)
		switch s.ChangeType {
		case "DELETE":
			if at >= 0 {
				next = slices.Delete(next, at, at+1)
			}
		case "REPLACE":
			if slices.ContainsFunc(next, func(o pdnsSet) bool { return o.Name == s.Name && (o.Type == "CNAME") != (s.Type == "CNAME") }) {
				refuse("RRset %s IN %s: Conflicts with pre-existing RRset", s.Name, s.Type)
				return
			}
			s.ChangeType = ""
			if at >= 0 {
				next[at] = s
			} else {
				next = append(next, s)
			}
		default:
			refuse("Changetype not understood")
			return
		}
	}
	f.books = next
	w.WriteHeader(http.StatusNoContent)
}

func TestPowerDNS(t *testing.T) { apiConformance(t, true, newFakePowerDNS) }

func TestPowerDNSLocked(t *testing.T) {
	f := newFakePowerDNS(t).(*fakePowerDNS)
	f.apiFront.fail(apiAlien, -1)
	b := f.backend(t)
	keys := []rota.Key{{Name: "x.example.test.", Type: rota.TypeA}, {Name: "y.example.test.", Type: rota.TypeA}}
	got, err := b.Read(t.Context(), "example.test.", keys)
	if err != nil || got.Blocked["x.example.test."] == nil || got.Blocked["y.example.test."] == nil {
		t.Errorf("read %+v, %v", got, err)
	}
	if _, err := b.Read(t.Context(), "other.test.", keys); ReasonOf(err).Code != CodeNotAuth {
		t.Errorf("a secondary: %v", err)
	}
	if _, err := b.Read(t.Context(), "_odd/.test.", keys); ReasonOf(err).Code != CodeNoZone {
		t.Errorf("no such zone: %v", err)
	}
}

// Variants of zones, which the DNS has no name for, do not hide the others.
func TestPowerDNSZones(t *testing.T) {
	b, err := NewPowerDNS(PowerDNSOptions{URL: "http://127.0.0.1:8081", Key: "k", client: roundTrip(func(r *http.Request) (*http.Response, error) {
		return answer(r, 200, "application/json", `[{"name": "example.test..inside"}, {"name": "example.test."}]`), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	if z, err := b.Zone(t.Context(), www.Name); err != nil || z != "example.test." {
		t.Errorf("%s, %v", z, err)
	}
}

func TestPowerDNSID(t *testing.T) {
	for name, want := range map[string]string{".": "=2E", "example.org.": "example.org.", "_tcp.0/25.example.": "=5Ftcp.0=2F25.example."} {
		if got := powerDNSID(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
