package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeCloudflare is Cloudflare as its API reference and its users tell: records with ids, names without a trailing dot, batches in one
// transaction and in the order deletes, patches, posts.
type fakeCloudflare struct {
	*apiFront
	t testing.TB

	mu     sync.Mutex // guards what follows
	books  map[string]cfRecord
	stale  map[string]cfRecord // before the last batch
	last   int                 // id
	listed bool
}

// cfRecord is a record with everything that must survive a change of its TTL.
type cfRecord struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Content  string   `json:"content"`
	TTL      int      `json:"ttl"`
	Proxied  bool     `json:"proxied"`
	Priority *int     `json:"priority,omitempty"`
	Comment  *string  `json:"comment"`
	Tags     []string `json:"tags"`
	Settings struct{} `json:"settings"`
	Meta     struct{} `json:"meta"`
}

func newFakeCloudflare(t testing.TB) fakeAPI {
	f := &fakeCloudflare{t: t, books: map[string]cfRecord{}}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	f.edit("example.test.", apiForeign, nil)
	return f
}

func (f *fakeCloudflare) backend(t testing.TB) Backend {
	b, err := NewCloudflare(CloudflareOptions{Token: f.secret(), Timeout: 2 * time.Second, client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeCloudflare) secret() string { return "hush-this-is-the-cf-token" }

// line is a record as a name server says it.
func (r cfRecord) line() string {
	content := r.Content
	switch r.Type {
	case "CNAME", "NS", "PTR":
		content += "."
	case "MX":
		content = strconv.Itoa(*r.Priority) + " " + content + "."
	}
	return fmt.Sprintf("%s. %d IN %s %s", r.Name, r.TTL, r.Type, content)
}

func (f *fakeCloudflare) records(string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.books {
		out = append(out, r.line())
	}
	slices.Sort(out)
	return out
}

func (f *fakeCloudflare) edit(_ string, add, remove []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.books, func(_ string, r cfRecord) bool { return slices.Contains(remove, r.line()) })
	for _, line := range add {
		p := strings.SplitN(line, " ", 5)
		ttl, err := strconv.Atoi(p[1])
		if err != nil {
			f.t.Fatal(err)
		}
		r := cfRecord{Name: strings.TrimSuffix(p[0], "."), TTL: ttl, Type: p[3], Content: p[4]}
		switch r.Type {
		case "CNAME", "NS", "PTR":
			r.Content = strings.TrimSuffix(r.Content, ".")
		case "MX":
			ten := 10
			r.Priority, r.Content = &ten, strings.TrimSuffix(strings.TrimPrefix(r.Content, "10 "), ".")
		}
		f.put(f.books, r)
	}
}

func (f *fakeCloudflare) put(books map[string]cfRecord, r cfRecord) string {
	f.last++
	r.ID = fmt.Sprintf("%032x", f.last)
	books[r.ID] = r
	return r.ID
}

func (f *fakeCloudflare) fail(k apiFault, n int) bool {
	if k == apiPartial {
		return false // a batch is a transaction
	}
	return f.apiFront.fail(k, n)
}

func (f *fakeCloudflare) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("Authorization") != "Bearer hush-this-is-the-cf-token" {
		f.t.Errorf("a request without its token: %s", r.URL)
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/client/v4/zones":
		f.list(w, r, []any{
			map[string]string{"id": "00f0", "name": "other.test"}, map[string]string{"id": "0123", "name": "example.test"},
		})
	case r.Method == http.MethodGet && r.URL.Path == "/client/v4/zones/0123/dns_records":
		f.listed = true
		books := f.books
		if f.playing(apiStale) && f.stale != nil {
			books = f.stale
			f.stale = nil // once: then it has caught up
		}
		var all []any
		for _, id := range slices.Sorted(maps.Keys(books)) {
			all = append(all, books[id])
		}
		if f.playing(apiAlien) {
			all = append(all, map[string]any{"id": "ff", "name": "x.example.test", "type": "OPENPGPKEY", "content": "!", "ttl": 300, "data": map[string]int{"a": 1}},
				map[string]any{"id": "fe", "name": "y.example.test", "type": "QUANTUM", "content": "|0>", "ttl": 300})
		}
		if f.playing(apiEmpty) {
			all = nil
		}
		f.list(w, r, all)
	case r.Method == http.MethodPost && r.URL.Path == "/client/v4/zones/0123/dns_records/batch":
		f.batch(w, r)
	default:
		f.refuse(w, 404, 7003, "Could not route to "+r.URL.Path+", perhaps your object identifier is invalid?")
	}
}

func (f *fakeCloudflare) list(w http.ResponseWriter, r *http.Request, all []any) {
	page, per := 1, 5
	if len(all) > 100 {
		per = 5000
	}
	if p := r.URL.Query().Get("page"); p != "" && !f.playing(apiLoop) {
		page, _ = strconv.Atoi(p)
	}
	pages := (len(all) + per - 1) / per
	from := min((page-1)*per, len(all))
	part := all[from:min(from+per, len(all))]
	if part == nil {
		part = []any{}
	}
	json.NewEncoder(w).Encode(map[string]any{
		"success": true, "errors": []any{}, "messages": []any{}, "result": part,
		"result_info": map[string]int{"page": page, "per_page": per, "count": len(part), "total_count": len(all), "total_pages": pages},
	})
}

func (f *fakeCloudflare) refuse(w http.ResponseWriter, status, code int, message string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{
		"success": false, "errors": []any{map[string]any{"code": code, "message": message}}, "messages": []any{}, "result": nil,
	})
}

func (f *fakeCloudflare) batch(w http.ResponseWriter, r *http.Request) {
	if !f.listed {
		f.t.Error("a write before a list")
	}
	var in struct {
		Deletes []struct{ ID string }
		Patches []struct {
			ID  string
			TTL int
		}
		Posts []cfRecord
	}
	d := json.NewDecoder(r.Body)
	if err := d.Decode(&in); err != nil {
		f.refuse(w, 400, 9207, "Request body is invalid.")
		return
	}
	next := maps.Clone(f.books)
	if n := len(in.Deletes) + len(in.Patches) + len(in.Posts); n > 200 {
		f.refuse(w, 400, 9300, fmt.Sprintf("%d records in a batch", n))
		return
	}
	for _, x := range in.Deletes {
		if _, ok := next[x.ID]; !ok {
			f.refuse(w, 404, 81044, "Record does not exist.")
			return
		}
		delete(next, x.ID)
	}
	for _, x := range in.Patches {
		rec, ok := next[x.ID]
		if !ok {
			f.refuse(w, 404, 81044, "Record does not exist.")
			return
		}
		rec.TTL = x.TTL
		next[x.ID] = rec
	}
	for _, x := range in.Posts {
		if x.TTL != 1 && x.TTL < 60 {
			f.refuse(w, 400, 9021, "TTL must be between 60 and 86400 seconds, or 1 for Automatic.")
			return
		}
		if x.Proxied && x.TTL != 1 {
			f.t.Errorf("a proxied record with a TTL: %+v", x)
		}
		for _, y := range next {
			if x.Name != y.Name {
				continue
			}
			switch {
			case x.Type == y.Type && x.Content == y.Content:
				f.refuse(w, 400, 81058, "An identical record already exists.")
				return
			case x.Type == "CNAME" && (y.Type == "A" || y.Type == "AAAA" || y.Type == "CNAME"):
				f.refuse(w, 400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
				return
			case y.Type == "CNAME" && (x.Type == "A" || x.Type == "AAAA"):
				f.refuse(w, 400, 81054, "A CNAME record with that host already exists.")
				return
			}
		}
		f.put(next, x)
	}
	f.stale, f.books = f.books, next
	json.NewEncoder(w).Encode(map[string]any{"success": true, "errors": []any{}, "messages": []any{}, "result": map[string]any{}})
}

func TestCloudflare(t *testing.T) { apiConformance(t, true, newFakeCloudflare) }

// What is proxied stays so, its siblings become so, and what people noted beside a record survives a change of its TTL.
func TestCloudflareKeeps(t *testing.T) {
	f := newFakeCloudflare(t).(*fakeCloudflare)
	note := "bought by marketing"
	f.put(f.books, cfRecord{Name: "app.example.test", Type: "A", Content: "192.0.2.1", TTL: 1, Proxied: true})
	id := f.put(f.books, cfRecord{Name: "low.example.test", Type: "A", Content: "192.0.2.1", TTL: 300, Comment: &note, Tags: []string{"team:web"}})
	zone := rota.Name("example.test.")
	b := f.backend(t)
	app, low := rota.Key{Name: "app.example.test.", Type: rota.TypeA}, rota.Key{Name: "low.example.test.", Type: rota.TypeA}
	got, err := b.Read(t.Context(), zone, []rota.Key{app, low})
	if err != nil || !got.AnyTTL[app] || got.AnyTTL[low] {
		t.Fatalf("read %+v, %v", got, err)
	}
	change := func(k rota.Key, ttl uint32, data ...string) rota.Change {
		old := find(got.Sets, k)
		return rota.Change{Old: old, New: rota.RRset{Name: k.Name, Type: k.Type, TTL: ttl, Data: data}}
	}
	fence := Fence{}.take("test", 1)
	none := rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}
	if _, err := b.Write(t.Context(), Batch{Zone: zone, Fence: rota.Change{Old: none, New: fence.RRset(zone)}, Changes: []rota.Change{
		change(app, 300, "192.0.2.1", "192.0.2.2"), change(low, 600, "192.0.2.1"),
	}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.books {
		if r.Name == "app.example.test" && (!r.Proxied || r.TTL != 1) {
			t.Errorf("a sibling of a proxied record: %+v", r)
		}
	}
	if r := f.books[id]; r.TTL != 600 || r.Comment == nil || *r.Comment != note || len(r.Tags) != 1 {
		t.Errorf("after a change of its TTL the record is %+v", r)
	}
	// Two that take a zone without a fence: the later one's request names no record that the first one deleted.
	late := Fence{}.take("test", 1)
	if _, err := b.Write(t.Context(), Batch{Zone: zone, Fence: rota.Change{Old: none, New: late.RRset(zone)}}); !errors.Is(err, ErrMoved) {
		t.Errorf("a second take says %v", err)
	}
}

// Of zones of one name, in several accounts, the active one is meant.
func TestCloudflareZones(t *testing.T) {
	for zones, want := range map[string]string{
		`{"id": "a", "name": "example.test", "status": "pending"}`:                                                                          "/zones/a/dns_records",
		`{"id": "a", "name": "example.test", "status": "moved"}, {"id": "b", "name": "example.test", "status": "active"}`:                   "/zones/b/dns_records",
		`{"id": "b", "name": "example.test", "status": "active"}, {"id": "a", "name": "example.test", "status": "pending"}`:                 "/zones/b/dns_records",
		`{"id": "a", "name": "example.test", "status": "pending"}, {"id": "b", "name": "example.test", "status": "pending"}`:                "",
		`{"id": "a", "name": "example.test"}, {"id": "b", "name": "example.test"}, {"id": "c", "name": "example.test", "status": "active"}`: "/zones/c/dns_records",
	} {
		b, err := NewCloudflare(CloudflareOptions{Token: "t", client: roundTrip(func(r *http.Request) (*http.Response, error) {
			return answer(r, 200, "application/json", `{"success": true, "result": [`+zones+`], "result_info": {"page": 1, "total_pages": 1}}`), nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		d := b.(*ledger).driver.(*cloudflare)
		found, err := d.zones(t.Context())
		if err != nil || len(found) != 1 {
			t.Errorf("%s: %v, %v", zones, found, err)
		}
		if path, err := d.path(t.Context(), "example.test."); path != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", zones, path, err, want)
		}
	}
}

// A transaction holds no more records than a plan allows, those of the fence among them.
func TestCloudflarePack(t *testing.T) {
	d := &cloudflare{batch: 200}
	for _, c := range []struct{ names, old, comes, want int }{
		{1000, 0, 1, 197}, {1000, 1, 1, 98}, {1000, 3, 0, 65}, {1, 0, 500, 1}, {0, 0, 0, 0},
	} {
		var changes []rota.Change
		for i := range c.names {
			k := rota.Key{Name: rota.Name(fmt.Sprintf("s%d.example.test.", i)), Type: rota.TypeA}
			list := func(net, n int) (out []string) {
				for j := range n {
					out = append(out, fmt.Sprintf("192.0.%d.%d", net, j))
				}
				return out
			}
			changes = append(changes, rota.Change{Old: at(k, list(2, c.old)...), New: at(k, list(3, c.comes)...)})
		}
		if got := d.pack(changes); got != c.want {
			t.Errorf("%d names, %d records each before and %d after: %d fit, want %d", c.names, c.old, c.comes, got, c.want)
		}
	}
}

func TestCloudflareOptions(t *testing.T) {
	for _, o := range []CloudflareOptions{
		{}, {Token: "x", Proxied: "maybe"}, {Token: "x", Batch: 4000}, {Token: "x", URL: "ftp://api"}, {Token: "x", URL: "https://user:pw@api"},
	} {
		if _, err := NewCloudflare(o); err == nil || strings.Contains(err.Error(), "pw") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
