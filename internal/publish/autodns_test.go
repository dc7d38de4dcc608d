package publish

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeAutoDNS is AutoDNS as its documentation and its users describe it.
type fakeAutoDNS struct {
	*apiFront
	*books
	www   bool // wwwInclude
	loops bool // the list of zones begins again and again
}

const autoDNSSecret = "autodns-s3cret"

func newFakeAutoDNS(t testing.TB, lines ...string) *fakeAutoDNS {
	f := &fakeAutoDNS{books: newBooks(t, "example.test.", lines...)}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool {
		return r.Method != http.MethodGet && !strings.HasSuffix(r.URL.Path, "/_search")
	}}
	return f
}

func (f *fakeAutoDNS) backend(t testing.TB) Backend {
	b, err := NewAutoDNS(AutoDNSOptions{URL: "https://api.autodns.test/v1", User: t.Name(), Password: autoDNSSecret, Rate: 1e6, Client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeAutoDNS) records(string) []string             { return f.books.records() }
func (f *fakeAutoDNS) edit(_ string, add, remove []string) { f.books.edit(add, remove) }
func (f *fakeAutoDNS) secret() string                      { return autoDNSSecret }
func (f *fakeAutoDNS) fail(fault apiFault, n int) bool {
	if fault == apiPartial || fault == apiLoop {
		return false // an update is whole; only the list of zones has pages, see TestAutoDNSPages
	}
	f.calm = f.calm && fault == apiFine
	return f.apiFront.fail(fault, n)
}

func (f *fakeAutoDNS) say(w http.ResponseWriter, code int, status, text, message string, data ...any) {
	out := map[string]any{
		"stid": "20261121-app1-1", "status": map[string]string{"code": "S0205", "text": text, "type": status}, "data": data,
	}
	if message != "" {
		out["messages"] = []any{map[string]any{"text": text, "code": message, "status": "ERROR"}}
	}
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(out)
}

// wire writes a row as AutoDNS does: names in data relative to the zone where they can be, MX with its preference apart.
func (f *fakeAutoDNS) wire(r bookRow) map[string]any {
	out := map[string]any{"name": f.rel(r.name), "type": r.typ, "value": r.data}
	if r.ttl != 86400 {
		out["ttl"] = r.ttl
	}
	switch r.typ {
	case "TXT":
		out["value"] = bare(r.data)
	case "CNAME", "NS":
		out["value"] = f.short(r.data)
	case "MX":
		pref, target, _ := strings.Cut(r.data, " ")
		var n int
		fmt.Sscan(pref, &n)
		out["value"], out["pref"] = f.short(target), n
	}
	return out
}

func (f *fakeAutoDNS) short(target string) string {
	if s, ok := strings.CutSuffix(target, "."+f.zone); ok {
		return s
	}
	return target
}

// row reads a record of a request.
func (f *fakeAutoDNS) row(v struct {
	Name, Type, Value string
	TTL, Pref         int
},
) bookRow {
	r := bookRow{name: f.abs(v.Name), ttl: v.TTL, typ: v.Type, data: v.Value}
	if r.ttl == 0 {
		r.ttl = 86400
	}
	switch v.Type {
	case "TXT":
		r.data = quoted(v.Value)
	case "CNAME", "NS":
		r.data = f.abs(v.Value)
	case "MX":
		r.data = fmt.Sprintf("%d %s", v.Pref, f.abs(v.Value))
	}
	return r
}

func (f *fakeAutoDNS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if !ok || user == "" || password != autoDNSSecret || r.Header.Get("X-Domainrobot-Context") != "4" {
		f.books.t.Errorf("%s %s without credentials", r.Method, r.URL)
	}
	body, _ := io.ReadAll(r.Body)
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/zone/")
	if !ok {
		f.books.t.Errorf("a request for %s", r.URL)
	}
	switch zone, rest, _ := strings.Cut(path, "/"); {
	case zone == "_search":
		f.search(w, body)
	case zone != "example.test":
		f.say(w, 404, "ERROR", "Zone nicht gefunden", "EF00404")
	case r.Method == http.MethodGet && rest == "a.ns14.net":
		f.info(w)
	case r.Method == http.MethodPost && rest == "_stream":
		f.update(w, body, "adds", "rems")
	case r.Method == http.MethodPatch && rest == "a.ns14.net":
		f.update(w, body, "resourceRecordsAdd", "resourceRecordsRem")
	default:
		f.books.t.Errorf("no such request: %s %s", r.Method, r.URL)
		w.WriteHeader(500)
	}
}

func (f *fakeAutoDNS) search(w http.ResponseWriter, body []byte) {
	var in struct {
		Filters []struct{ Key, Value, Operator string }
		View    struct{ Limit, Offset int }
	}
	if err := json.Unmarshal(body, &in); err != nil || in.View.Limit == 0 {
		f.books.t.Errorf("a search of %s: %v", body, err)
	}
	zones := []any{map[string]any{"origin": "test", "virtualNameServer": "a.ns14.net"}, map[string]any{"origin": "example.test", "virtualNameServer": "a.ns14.net"}}
	if len(in.Filters) > 0 {
		zones = slices.DeleteFunc(zones, func(z any) bool { return z.(map[string]any)["origin"] != in.Filters[0].Value })
	}
	switch {
	case f.playing(apiEmpty):
		zones = nil
	case f.loops:
		for i := len(zones); i < in.View.Limit; i++ {
			zones = append(zones, map[string]any{"origin": fmt.Sprintf("z%d.test", i), "virtualNameServer": "a.ns14.net"})
		}
	default:
		zones = zones[min(in.View.Offset, len(zones)):]
	}
	f.say(w, 200, "SUCCESS", "", "", zones...)
}

func (f *fakeAutoDNS) info(w http.ResponseWriter) {
	rows := f.listing(f.playing(apiStale))
	if f.playing(apiEmpty) {
		rows = nil
	}
	z := map[string]any{
		"origin": "example.test", "virtualNameServer": "a.ns14.net", "soa": map[string]any{"ttl": 86400}, "wwwInclude": f.www, "grants": nil,
		"nameServers": []any{map[string]any{"name": "a.ns14.net"}},
	}
	var records []any
	for _, r := range rows {
		if r.note == "main" {
			z["main"] = map[string]any{"address": r.data, "ttl": r.ttl}
		} else {
			records = append(records, f.wire(r))
		}
	}
	if f.playing(apiAlien) {
		records = append(records, map[string]any{"name": "", "type": "ALIAS", "value": "elsewhere.example"},
			map[string]any{"name": "a..b", "type": "A", "value": "192.0.2.1"}, map[string]any{"name": "x", "type": "A", "value": "no address"})
	}
	z["resourceRecords"] = records
	f.say(w, 200, "SUCCESS", "", "", z)
}

func (f *fakeAutoDNS) update(w http.ResponseWriter, body []byte, addsKey, remsKey string) {
	var in map[string]json.RawMessage
	type record = struct {
		Name, Type, Value string
		TTL, Pref         int
	}
	var adds, rems []record
	err := json.Unmarshal(body, &in)
	if err == nil {
		err = json.Unmarshal(in[addsKey], &adds)
	}
	if err == nil {
		err = json.Unmarshal(in[remsKey], &rems)
	}
	if err != nil || string(in[addsKey]) == "null" || string(in[remsKey]) == "null" {
		f.books.t.Errorf("an update with null or nonsense: %s", body)
		f.say(w, 500, "ERROR", "Interner Fehler", "EF00500")
		return
	}
	code := ""
	err = f.change(func() error {
		for _, v := range rems {
			r := f.row(v)
			i := slices.IndexFunc(f.rows, func(o bookRow) bool { return o.line() == r.line() && o.note != "main" })
			if i < 0 {
				code = "EF02021"
				return fmt.Errorf("der Eintrag existiert nicht: %s", r.line())
			}
			f.rows = slices.Delete(f.rows, i, i+1)
		}
		if raw, ok := in["main"]; ok {
			if string(in["wwwInclude"]) != "false" {
				f.books.t.Errorf("a PATCH that makes a www: %s", body)
			}
			var m struct {
				Address string
				TTL     int
			}
			json.Unmarshal(raw, &m)
			f.rows = slices.DeleteFunc(f.rows, func(o bookRow) bool { return o.note == "main" })
			if m.Address != "" {
				f.put(bookRow{name: f.zone, ttl: m.TTL, typ: "A", data: m.Address, note: "main"})
			}
		}
		for _, v := range adds {
			r := f.row(v)
			if slices.ContainsFunc(f.rows, func(o bookRow) bool { return o.name == r.name && o.typ == r.typ && o.data == r.data }) {
				code = "EF02022"
				return fmt.Errorf("der Zusatzeintrag wurde doppelt eingetragen: %s", r.line())
			}
			if err := f.conflict(r); err != nil {
				code = "EF02099"
				return err
			}
			f.put(r)
		}
		return nil
	})
	if err != nil {
		f.say(w, 400, "ERROR", err.Error(), code)
		return
	}
	f.say(w, 200, "SUCCESS", "Die Zone wurde aktualisiert", "")
}

func rr(name string, t rota.Type, ttl uint32, data ...string) rota.RRset {
	slices.Sort(data)
	return rota.RRset{Name: rota.Name(name), Type: t, TTL: ttl, Data: data}
}

// apiWrite writes changes with a fence of its own, after reading what the zone holds.
func apiWrite(t testing.TB, b Backend, want ...rota.RRset) error {
	t.Helper()
	keys := []rota.Key{FenceKey("example.test.")}
	for _, s := range want {
		keys = append(keys, s.Key())
	}
	have, err := b.Read(t.Context(), "example.test.", keys)
	if err != nil {
		return err
	}
	old := find(have.Sets, keys[0])
	fence := Fence{Owner: "test"}
	if len(old.Data) > 0 {
		if fence, err = ParseFence(old); err != nil {
			t.Fatal(err)
		}
	}
	batch := Batch{Zone: "example.test.", Fence: rota.Change{Old: old, New: fence.take("test", 1).RRset("example.test.")}}
	for _, s := range want {
		batch.Changes = append(batch.Changes, rota.Change{Old: find(have.Sets, s.Key()), New: s})
	}
	_, err = b.Write(t.Context(), batch)
	return err
}

// linesOf returns the lines of a name.
func linesOf(lines []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, name+" ") })
}

func TestAutoDNSApex(t *testing.T) {
	const apex = rota.Name("example.test.")
	cases := []struct {
		name string
		main string
		rows []string
		want rota.RRset
		then []string
		left string // in main
	}{
		{
			"several beside the main address", "192.0.2.1", nil, rr("example.test.", rota.TypeA, 300, "192.0.2.1", "192.0.2.2"),
			[]string{"example.test. 300 IN A 192.0.2.1", "example.test. 300 IN A 192.0.2.2"},
			"192.0.2.1",
		},
		{
			"the main address goes and its heir is new", "192.0.2.1",
			[]string{"example.test. 300 IN A 192.0.2.2"},
			rr("example.test.", rota.TypeA, 300, "192.0.2.2", "192.0.2.3"),
			[]string{"example.test. 300 IN A 192.0.2.2", "example.test. 300 IN A 192.0.2.3"},
			"192.0.2.3",
		},
		{
			"the main address goes and others stay", "192.0.2.1",
			[]string{"example.test. 300 IN A 192.0.2.2"},
			rr("example.test.", rota.TypeA, 300, "192.0.2.2"),
			[]string{"example.test. 300 IN A 192.0.2.2"},
			"",
		},
		{
			"the TTL of the main address", "192.0.2.1", nil, rr("example.test.", rota.TypeA, 60, "192.0.2.1"),
			[]string{"example.test. 60 IN A 192.0.2.1"},
			"192.0.2.1",
		},
		{"no main address", "", nil, rr("example.test.", rota.TypeA, 60, "192.0.2.1"), []string{"example.test. 60 IN A 192.0.2.1"}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeAutoDNS(t)
			f.edit("", c.rows, nil)
			if c.main != "" {
				f.put(bookRow{name: "example.test.", ttl: 300, typ: "A", data: c.main, note: "main"})
			}
			if err := apiWrite(t, f.backend(t), c.want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.then, linesOf(f.records(""), "example.test.")); diff != "" {
				t.Error(diff)
			}
			left := ""
			for _, r := range f.rows {
				if r.note == "main" {
					left = r.data
				}
			}
			if left != c.left {
				t.Errorf("the main address is %q, want %q", left, c.left)
			}
			have, err := f.backend(t).Read(t.Context(), apex, []rota.Key{c.want.Key()})
			if err != nil || len(have.Sets) != 1 || !have.Sets[0].Equal(c.want) {
				t.Errorf("it reads %v, %v", have.Sets, err)
			}
		})
	}
}

// A www that AutoDNS makes of the main address is seen, said and left alone, and so is the address it is made of.
func TestAutoDNSWWWInclude(t *testing.T) {
	f := newFakeAutoDNS(t)
	f.www = true
	f.put(bookRow{name: "example.test.", ttl: 300, typ: "A", data: "192.0.2.1", note: "main"})
	have, err := f.backend(t).Read(t.Context(), "example.test.", []rota.Key{{Name: "www.example.test.", Type: rota.TypeA}, {Name: "example.test.", Type: rota.TypeA}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []rota.Name{"www.example.test.", "example.test."} {
		if r := have.Blocked[n]; r == nil || !strings.Contains(r.Error(), "wwwInclude") {
			t.Errorf("%s: %v", n, r)
		}
	}
}

// An update that does not fit the zone any more is refused by AutoDNS as a whole, and that is no failure.
func TestAutoDNSMoved(t *testing.T) {
	f := newFakeAutoDNS(t, "www.example.test. 60 IN A 192.0.2.1")
	b := f.backend(t)
	late := f.hold()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-late.caught
		cancel()
	}()
	_, err := b.Write(ctx, Batch{
		Zone: "example.test.", Fence: rota.Change{Old: rr("_rota.example.test.", rota.TypeTXT, 0), New: Fence{Owner: "test", Epoch: 1, By: "old"}.RRset("example.test.")},
		Changes: []rota.Change{{Old: rr("www.example.test.", rota.TypeA, 60, "192.0.2.1"), New: rr("www.example.test.", rota.TypeA, 60, "192.0.2.9")}},
	})
	if err == nil || !ReasonOf(err).InDoubt {
		t.Fatalf("a request that nobody answered: %v", err)
	}
	f.foreign = nil
	if err := apiWrite(t, f.backend(t), rr("www.example.test.", rota.TypeA, 60, "192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if code := late.arrive(); code < 400 {
		t.Errorf("the late request was answered with %d", code)
	}
	if got := linesOf(f.records(""), "www.example.test."); !slices.Equal(got, []string{"www.example.test. 60 IN A 192.0.2.2"}) {
		t.Errorf("the late request left %v", got)
	}
}

// All who use one account wait in one line, three requests a second.
func TestAutoDNSPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAutoDNS(t)
		var backends [2]Backend
		for i := range backends {
			b, err := NewAutoDNS(AutoDNSOptions{User: t.Name(), Password: autoDNSSecret, Client: f.apiFront})
			if err != nil {
				t.Fatal(err)
			}
			backends[i] = b
		}
		start := time.Now()
		done := make(chan error, 20)
		for i := range cap(done) {
			go func() {
				_, err := backends[i%2].(*ledger).driver.zones(t.Context())
				done <- err
			}()
		}
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(start); took < 19*time.Second/3 || took > 7*time.Second {
			t.Errorf("20 requests took %v", took)
		}
	})
}

// Who waited for a turn has the whole time of a request all the same.
func TestAPITurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAutoDNS(t)
		slow := &apiFront{changes: f.changes, handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			f.ServeHTTP(w, r)
		})}
		b, err := NewAutoDNS(AutoDNSOptions{User: t.Name(), Password: autoDNSSecret, Rate: 0.1, Client: slow})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 3)
		for range cap(done) {
			go func() {
				_, err := b.(*ledger).driver.zones(t.Context())
				done <- err
			}()
		}
		var bad []error
		for range cap(done) {
			if err := <-done; err != nil {
				bad = append(bad, err)
			}
		}
		if len(bad) != 1 || ReasonOf(bad[0]).Code != CodeRateLimited {
			t.Errorf("of three, the third cannot wait: %v", bad)
		}
	})
}

func TestSecretsOfAPIsAreHidden(t *testing.T) {
	for _, o := range []any{
		AutoDNSOptions{User: "u", Password: "s3cret"},
		DynuOptions{Token: "s3cret"},
		DigitalOceanOptions{Token: "s3cret"},
		CloudflareOptions{Token: "s3cret"},
		PowerDNSOptions{URL: "https://u:s3cret@127.0.0.1", Key: "s3cret"},
		DeSECOptions{Token: "s3cret"},
		Route53Options{AccessKey: "s3cret", SecretKey: "s3cret"},
		WebhookOptions{Name: "x", Secret: "s3cret"},
		&WebhookOptions{Name: "x", Secret: "s3cret"},
		RFC2136Options{Key: &Key{Name: "k", Secret: "s3cret"}, OldKey: &Key{Name: "k", Secret: "s3cret"}},
		NSUpdateOptions{Servers: RFC2136Options{Key: &Key{Name: "k", Secret: "s3cret"}}},
		LibDNSOptions{Name: "x", Provider: struct{ Token string }{"s3cret"}, Secrets: []string{"s3cret"}},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if got := fmt.Sprintf(verb, o); strings.Contains(got, "s3cret") {
				t.Errorf("%T as %s: %s", o, verb, got)
			}
		}
	}
}

func TestAutoDNSConformance(t *testing.T) {
	apiConformance(t, true, func(t testing.TB) fakeAPI { return newFakeAutoDNS(t, apiForeign...) })
}

func TestAutoDNSPages(t *testing.T) {
	f := newFakeAutoDNS(t)
	f.loops = true
	if _, err := f.backend(t).Zone(t.Context(), "www.example.test."); err == nil || ReasonOf(err).Code != CodeMalformed {
		t.Errorf("a list of zones without end: %v", err)
	}
}
