package publish

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeDeSEC is deSEC as its source tells: a PATCH of many RRsets is looked at whole, with what it deletes taken away first, and happens
// whole or not at all; no (subname, type) comes twice in it; lists come in pages with a cursor.
type fakeDeSEC struct {
	*apiFront
	t testing.TB

	mu     sync.Mutex // guards what follows
	books  map[[2]string]desecSet
	listed bool
}

type desecSet struct {
	Created string   `json:"created"`
	Domain  string   `json:"domain"`
	Subname string   `json:"subname"`
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	TTL     int      `json:"ttl"`
	Records []string `json:"records"`
	Touched string   `json:"touched"`
}

func newFakeDeSEC(t testing.TB) fakeAPI {
	f := &fakeDeSEC{t: t, books: map[[2]string]desecSet{}}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	f.edit("example.test.", apiForeign, nil)
	return f
}

func (f *fakeDeSEC) backend(t testing.TB) Backend {
	b, err := NewDeSEC(DeSECOptions{Token: f.secret(), Timeout: 2 * time.Second, client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeDeSEC) secret() string { return "hush-this-is-the-desec-token" }

func (f *fakeDeSEC) records(string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range f.books {
		for _, r := range s.Records {
			out = append(out, fmt.Sprintf("%s %d IN %s %s", s.Name, s.TTL, s.Type, r))
		}
	}
	slices.Sort(out)
	return out
}

func (f *fakeDeSEC) edit(_ string, add, remove []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, line := range slices.Concat(remove, add) {
		p := strings.SplitN(line, " ", 5)
		sub := strings.TrimSuffix(strings.TrimSuffix(p[0], "example.test."), ".")
		k := [2]string{sub, p[3]}
		s := f.books[k]
		if i < len(remove) {
			s.Records = slices.DeleteFunc(slices.Clone(s.Records), func(r string) bool { return r == p[4] })
		} else {
			ttl, err := strconv.Atoi(p[1])
			if err != nil {
				f.t.Fatal(err)
			}
			s = f.set(sub, p[3], ttl, append(slices.Clone(s.Records), p[4]))
		}
		f.books[k] = s
		if len(s.Records) == 0 {
			delete(f.books, k)
		}
	}
}

func (f *fakeDeSEC) set(sub, kind string, ttl int, records []string) desecSet {
	name := sub + ".example.test."
	if sub == "" {
		name = "example.test."
	}
	return desecSet{
		Created: "2026-01-01T00:00:00Z", Domain: "example.test", Subname: sub, Name: name, Type: kind, TTL: ttl, Records: records,
		Touched: "2026-01-01T00:00:00Z",
	}
}

func (f *fakeDeSEC) fail(k apiFault, n int) bool {
	switch k {
	case apiStale, apiPartial:
		return false // one database, and a PATCH is a transaction
	}
	return f.apiFront.fail(k, n)
}

func (f *fakeDeSEC) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("Authorization") != "Token hush-this-is-the-desec-token" {
		f.t.Errorf("a request without its token: %s", r.URL)
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/domains/":
		servePage(f, w, r, []map[string]any{{"name": "example.test", "minimum_ttl": 3600}, {"name": "other.test", "minimum_ttl": 60}})
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/domains/example.test/rrsets/":
		f.listed = true
		var all []desecSet
		for _, s := range f.books {
			all = append(all, s)
		}
		slices.SortFunc(all, func(a, b desecSet) int { return strings.Compare(a.Name+a.Type, b.Name+b.Type) })
		if f.playing(apiAlien) {
			all = append(all, f.set("x", "QUANTUM", 3600, []string{"|0>"}), f.set("y", "HTTPS", 3600, []string{"1 . alpn=h9"}))
		}
		if f.playing(apiEmpty) {
			all = nil
		}
		servePage(f, w, r, all)
	case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/domains/example.test/rrsets/":
		f.patch(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"detail":"Not found."}`)
	}
}

// servePage answers with one page of a list.
func servePage[T any](f *fakeDeSEC, w http.ResponseWriter, r *http.Request, all []T) {
	per := 4
	if len(all) > 100 {
		per = 500
	}
	if !r.URL.Query().Has("cursor") && len(all) > per {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"detail":"Pagination required. You can query up to %d items at a time (%d total). Please use the `+"`first`"+` page link (see Link header)."}`, per, len(all))
		return
	}
	from, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Query().Get("cursor"), ":c"))
	end := min(from+per, len(all))
	base := "https://desec.io" + r.URL.Path
	link := fmt.Sprintf(`<%s?cursor=>; rel="first"`, base)
	if f.playing(apiLoop) {
		link += fmt.Sprintf(`, <%s?cursor=%%3Ac%d>; rel="next"`, base, 4)
	} else if end < len(all) {
		link += fmt.Sprintf(`, <%s?cursor=%%3Ac%d>; rel="next"`, base, end)
	}
	w.Header().Set("Link", link)
	part := all[min(from, end):end]
	if part == nil {
		part = []T{}
	}
	json.NewEncoder(w).Encode(part)
}

func (f *fakeDeSEC) patch(w http.ResponseWriter, r *http.Request) {
	if !f.listed {
		f.t.Error("a write before a list")
	}
	var in []struct {
		Subname *string
		Type    string
		TTL     *int
		Records []string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"detail":"JSON parse error"}`)
		return
	}
	errs := make([]map[string][]string, len(in))
	bad := false
	say := func(i int, field, format string, args ...any) {
		errs[i][field] = append(errs[i][field], fmt.Sprintf(format, args...))
		bad = true
	}
	next := maps.Clone(f.books)
	seen := map[[2]string]int{}
	for i, x := range in {
		errs[i] = map[string][]string{}
		if x.Subname == nil {
			say(i, "subname", "This field is required.")
			continue
		}
		k := [2]string{*x.Subname, x.Type}
		if j, twice := seen[k]; twice {
			say(i, "non_field_errors", "Same subname and type as in position(s) %d, but must be unique.", j)
		}
		seen[k] = i
		if len(x.Records) == 0 {
			delete(next, k)
			continue
		}
		if x.TTL == nil {
			say(i, "ttl", "This field is required.")
			continue
		}
		if *x.TTL < 3600 {
			say(i, "ttl", "Ensure this value is greater than or equal to 3600.")
		}
		next[k] = f.set(*x.Subname, x.Type, *x.TTL, x.Records)
	}
	for i, x := range in {
		if x.Subname == nil || len(x.Records) == 0 {
			continue
		}
		for k := range next {
			if k[0] == *x.Subname && (k[1] == "CNAME") != (x.Type == "CNAME") {
				say(i, "non_field_errors", "RRset with conflicting type present: database (%s). (No other RRsets are allowed alongside CNAME.)", k[1])
			}
		}
	}
	if bad {
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(errs)
		return
	}
	f.books = next
	fmt.Fprint(w, `[]`)
}

func TestDeSEC(t *testing.T) { apiConformance(t, true, newFakeDeSEC) }
