package publish

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeDigitalOcean is DigitalOcean's part for domains as its documentation describes it.
type fakeDigitalOcean struct {
	*apiFront
	*books
	token string
	page  int  // records on one page, whatever is asked for; 0: as is asked for
	grow  bool // a record is added between two pages
	loops bool // links.pages.next leads back
}

const digitalOceanSecret = "dop_v1_s3cret"

func newFakeDigitalOcean(t testing.TB, lines ...string) *fakeDigitalOcean {
	f := &fakeDigitalOcean{books: newBooks(t, "example.test.", lines...), token: digitalOceanSecret + t.Name()}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	return f
}

func (f *fakeDigitalOcean) backend(t testing.TB) Backend {
	b, err := NewDigitalOcean(DigitalOceanOptions{URL: "https://api.digitalocean.test/v2", Token: f.token, Client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	b.(*ledger).driver.(*digitalOcean).rest.pace.SetLimit(1e6)
	return b
}

func (f *fakeDigitalOcean) records(string) []string             { return f.books.records() }
func (f *fakeDigitalOcean) edit(_ string, add, remove []string) { f.books.edit(add, remove) }
func (f *fakeDigitalOcean) secret() string                      { return f.token }
func (f *fakeDigitalOcean) fail(fault apiFault, n int) bool {
	f.calm = f.calm && fault == apiFine
	return f.apiFront.fail(fault, n)
}

func (f *fakeDigitalOcean) say(w http.ResponseWriter, code int, out any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(out)
}

func (f *fakeDigitalOcean) refuse(w http.ResponseWriter, code int, id, message string) {
	f.say(w, code, map[string]any{"id": id, "message": message, "request_id": "9f1c"})
}

// wire writes a row as DigitalOcean does: targets without a trailing dot, @ for the apex, MX with its priority apart.
func (f *fakeDigitalOcean) wire(r bookRow) map[string]any {
	out := map[string]any{"id": r.id, "type": r.typ, "name": f.rel(r.name), "data": r.data, "ttl": r.ttl, "priority": nil}
	if out["name"] == "" {
		out["name"] = "@"
	}
	target := func(text string) string {
		if text == f.zone {
			return "@"
		}
		return strings.TrimSuffix(text, ".")
	}
	switch r.typ {
	case "CNAME", "NS":
		out["data"] = target(r.data)
	case "MX":
		pref, host, _ := strings.Cut(r.data, " ")
		out["priority"], _ = strconv.Atoi(pref)
		out["data"] = target(host)
	case "TXT":
		out["data"] = bare(r.data)
	}
	return out
}

func (f *fakeDigitalOcean) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+f.token {
		f.books.t.Errorf("%s %s without credentials", r.Method, r.URL)
	}
	body, _ := io.ReadAll(r.Body)
	var in struct {
		Type, Name, Data string
		TTL              int
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &in); err != nil {
			f.books.t.Errorf("%s: %v", body, err)
		}
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/domains")
	if !ok {
		f.books.t.Errorf("no such request: %s %s", r.Method, r.URL)
	}
	parts := strings.Split(path, "/")
	id := 0
	if len(parts) == 4 {
		id, _ = strconv.Atoi(parts[3])
	}
	switch {
	case len(parts) == 1:
		zones := []any{map[string]any{"name": "test", "ttl": 1800}, map[string]any{"name": "example.test", "ttl": 1800}}
		if f.playing(apiEmpty) {
			zones = []any{}
		}
		f.list(w, r, "domains", zones)
	case parts[1] != "example.test":
		f.refuse(w, 404, "not_found", "The resource you were accessing could not be found.")
	case len(parts) == 3 && r.Method == http.MethodGet:
		f.list(w, r, "domain_records", f.all())
	case len(parts) == 3 && r.Method == http.MethodPost:
		f.create(w, bookRow{name: f.abs(in.Name), ttl: in.TTL, typ: in.Type, data: in.Data})
	case r.Method == http.MethodPatch && in.TTL > 0 && in.Type != "":
		f.touch(w, id, func(i int) { f.rows[i].ttl = in.TTL })
	case r.Method == http.MethodDelete:
		f.touch(w, id, func(i int) { f.rows = slices.Delete(f.rows, i, i+1) })
	default:
		f.books.t.Errorf("no such request: %s %s %s", r.Method, r.URL, body)
	}
}

func (f *fakeDigitalOcean) all() []any {
	out := []any{}
	if f.playing(apiEmpty) {
		return out
	}
	for _, r := range f.listing(f.playing(apiStale)) {
		out = append(out, f.wire(r))
	}
	if f.playing(apiAlien) {
		out = append(out, map[string]any{"id": 1, "type": "SOA", "name": "@", "data": "1800", "ttl": 1800}, map[string]any{"id": 2, "type": "WALLET", "name": "@", "data": "x"},
			map[string]any{"id": 3, "type": "A", "name": "a..b", "data": "192.0.2.1"}, map[string]any{"id": 4, "type": "CAA", "name": "@", "data": "letsencrypt.org"})
	}
	return out
}

func (f *fakeDigitalOcean) list(w http.ResponseWriter, r *http.Request, key string, all []any) {
	per, _ := strconv.Atoi(r.URL.Query().Get("per_page"))
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	if per < 1 || per > 200 || page < 1 {
		f.books.t.Errorf("a list without pages: %s", r.URL)
		return
	}
	if f.page > 0 {
		per = f.page
	}
	total := len(all)
	if f.grow {
		total += page - 1
	}
	from := min((page-1)*per, len(all))
	out := map[string]any{key: all[from:min(from+per, len(all))], "meta": map[string]any{"total": total}, "links": map[string]any{}}
	next := 0
	if from+per < len(all) {
		next = page + 1
	}
	if f.playing(apiLoop) || f.loops {
		next = 2
	}
	if next > 0 {
		out["links"] = map[string]any{"pages": map[string]any{"next": fmt.Sprintf("https://evil.test/v2/domains?page=%d&per_page=%d", next, per)}}
	}
	f.say(w, 200, out)
}

func (f *fakeDigitalOcean) create(w http.ResponseWriter, r bookRow) {
	switch r.typ {
	case "TXT":
		r.data = quoted(r.data)
	case "CNAME":
		if !strings.HasSuffix(r.data, ".") {
			f.refuse(w, 422, "unprocessable_entity", "Data needs to end with a dot (.)")
			return
		}
	}
	var id int
	err := f.change(func() error {
		switch {
		case r.ttl < 30:
			return fmt.Errorf("Ttl must be greater than or equal to 30")
		case f.conflict(r) != nil:
			return fmt.Errorf("CNAME records cannot share a name with other records")
		case f.playing(apiPartial) && addressLike(r.typ):
			return fmt.Errorf("Something went wrong")
		}
		id = f.put(r)
		return nil
	})
	if err != nil {
		f.refuse(w, 422, "unprocessable_entity", err.Error())
		return
	}
	r.id = id
	f.say(w, 201, map[string]any{"domain_record": f.wire(r)})
}

func (f *fakeDigitalOcean) touch(w http.ResponseWriter, id int, do func(i int)) {
	err := f.change(func() error {
		i := f.find(id)
		if i < 0 {
			return fmt.Errorf("gone")
		}
		do(i)
		return nil
	})
	if err != nil {
		f.refuse(w, 404, "not_found", "The resource you were accessing could not be found.")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func TestDigitalOceanPages(t *testing.T) {
	var lines []string
	for i := range 450 {
		lines = append(lines, fmt.Sprintf("h%d.example.test. 60 IN A 192.0.2.1", i))
	}
	key := []rota.Key{{Name: "h449.example.test.", Type: rota.TypeA}}
	cases := []struct {
		name string
		set  func(*fakeDigitalOcean)
		want Code
	}{
		{"three pages", func(*fakeDigitalOcean) {}, ""},
		{"small pages", func(f *fakeDigitalOcean) { f.page = 7 }, ""},
		{"a circle", func(f *fakeDigitalOcean) { f.loops = true }, CodeMalformed},
		{"a list that changes meanwhile", func(f *fakeDigitalOcean) { f.grow = true }, CodeMoving},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeDigitalOcean(t, lines...)
			c.set(f)
			have, err := f.backend(t).Read(t.Context(), "example.test.", key)
			switch {
			case c.want == "" && (err != nil || len(have.Sets) != 1):
				t.Errorf("%v, %v", have.Sets, err)
			case c.want != "" && (err == nil || ReasonOf(err).Code != c.want):
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// DigitalOcean says in a header of its own when it wants the next request.
func TestDigitalOceanReset(t *testing.T) {
	for text, want := range map[string]time.Duration{
		fmt.Sprint(time.Now().Add(time.Minute).Unix()): time.Minute, "99999999999999": MaxAfter, "-5": 0, "soon": 0, "": 0,
	} {
		r := explainDigitalOcean(&restAnswer{status: 429, header: http.Header{"Ratelimit-Reset": {text}}, body: []byte(`{"id":"too_many_requests","message":"API Rate limit exceeded."}`)})
		if r == nil || r.Code != CodeRateLimited || !r.Transient || r.After > want || r.After < want-5*time.Second {
			t.Errorf("ratelimit-reset %q: %+v", text, r)
		}
	}
}

func TestDigitalOceanConformance(t *testing.T) {
	apiConformance(t, true, func(t testing.TB) fakeAPI { return newFakeDigitalOcean(t, apiForeign...) })
}
