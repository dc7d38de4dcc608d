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

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeDynu is Dynu as its documentation and its users describe it: 501 for nearly everything, the apex in the zone, switched-off records.
type fakeDynu struct {
	*apiFront
	*books
	token string
	quota int // records that the account may have; 0: any
}

const dynuSecret = "dynu-s3cret"

func newFakeDynu(t testing.TB, lines ...string) *fakeDynu {
	f := &fakeDynu{books: newBooks(t, "example.test.", lines...), token: dynuSecret + t.Name()}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	return f
}

func (f *fakeDynu) backend(t testing.TB) Backend {
	b, err := NewDynu(DynuOptions{URL: "https://api.dynu.test/v2", Token: f.token, Client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	b.(*ledger).driver.(*dynu).rest.pace.SetLimit(1e6)
	return b
}

func (f *fakeDynu) records(string) []string             { return f.books.records() }
func (f *fakeDynu) edit(_ string, add, remove []string) { f.books.edit(add, remove) }
func (f *fakeDynu) atApex() int                         { return 1 }
func (f *fakeDynu) secret() string                      { return f.token }
func (f *fakeDynu) fail(fault apiFault, n int) bool {
	if fault == apiLoop {
		return false // there are no pages
	}
	f.calm = f.calm && fault == apiFine
	return f.apiFront.fail(fault, n)
}

func (f *fakeDynu) say(w http.ResponseWriter, out map[string]any) {
	out["statusCode"] = 200
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(out)
}

func (f *fakeDynu) refuse(w http.ResponseWriter, code int, kind, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"statusCode": code, "type": kind, "message": message})
}

func (f *fakeDynu) wire(r bookRow) map[string]any {
	out := map[string]any{
		"id": r.id, "domainId": 77, "domainName": "example.test", "nodeName": f.rel(r.name), "hostname": strings.TrimSuffix(r.name, "."),
		"recordType": r.typ, "ttl": r.ttl, "state": !r.off, "group": r.note, "content": fmt.Sprintf("%s %d IN %s %s", r.name, r.ttl, r.typ, r.data),
	}
	switch r.typ {
	case "A":
		out["ipv4Address"] = r.data
	case "AAAA":
		out["ipv6Address"] = r.data
	case "CNAME":
		out["host"] = strings.TrimSuffix(r.data, ".")
	case "TXT":
		out["textData"] = bare(r.data)
	}
	return out
}

// apex returns the address in the zone's field of a type; it is kept as a row with the field's name as note.
func (f *fakeDynu) apex(field string) (bookRow, bool) {
	i := slices.IndexFunc(f.rows, func(r bookRow) bool { return r.note == field })
	if i < 0 {
		return bookRow{}, false
	}
	return f.rows[i], true
}

func (f *fakeDynu) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("API-Key") != f.token {
		f.books.t.Errorf("%s %s without credentials", r.Method, r.URL)
	}
	body, _ := io.ReadAll(r.Body)
	var in map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &in); err != nil {
			f.books.t.Errorf("%s: %v", body, err)
		}
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/dns"), "/")
	id := 0
	if len(parts) == 4 {
		id, _ = strconv.Atoi(parts[3])
	}
	switch {
	case len(parts) == 1 && r.Method == http.MethodGet:
		domains := []any{map[string]any{"id": 7, "name": "test"}, map[string]any{"id": 77, "name": "example.test"}}
		if f.playing(apiEmpty) {
			domains = []any{}
		}
		f.say(w, map[string]any{"domains": domains})
	case parts[1] != "77":
		f.refuse(w, 501, "Argument Exception", "Invalid.")
	case len(parts) == 2 && r.Method == http.MethodGet:
		f.domain(w)
	case len(parts) == 2 && r.Method == http.MethodPost:
		f.setDomain(w, in)
	case len(parts) == 3 && r.Method == http.MethodGet:
		f.list(w)
	case len(parts) == 3 && r.Method == http.MethodPost:
		f.create(w, in)
	case r.Method == http.MethodGet:
		f.one(w, id)
	case r.Method == http.MethodPost:
		f.update(w, id, in)
	case r.Method == http.MethodDelete:
		f.remove(w, id)
	default:
		f.books.t.Errorf("no such request: %s %s", r.Method, r.URL)
	}
}

func (f *fakeDynu) domain(w http.ResponseWriter) {
	f.mu()
	defer f.books.mu.Unlock()
	z := map[string]any{"id": 77, "name": "example.test", "ttl": 90, "group": "office", "dnssec": true, "ipv4WildcardAlias": false, "ipv4": false, "ipv6": false}
	for field, has := range map[string]string{"ipv4Address": "ipv4", "ipv6Address": "ipv6"} {
		if r, ok := f.apex(field); ok && !f.playing(apiEmpty) {
			z[field], z[has], z["ttl"] = r.data, true, r.ttl
		}
	}
	f.say(w, z)
}

// mu locks the books, whose lock is behind that of the front.
func (f *fakeDynu) mu() { f.books.mu.Lock() }

func (f *fakeDynu) setDomain(w http.ResponseWriter, in map[string]any) {
	if in["group"] != "office" || in["dnssec"] != true || in["name"] != "example.test" {
		f.books.t.Errorf("what others set of the zone is lost: %v", in)
	}
	f.change(func() error {
		for field, has := range map[string]string{"ipv4Address": "ipv4", "ipv6Address": "ipv6"} {
			f.rows = slices.DeleteFunc(f.rows, func(r bookRow) bool { return r.note == field })
			if in[has] == true && in[field] != nil && in[field] != "" {
				typ := map[string]string{"ipv4Address": "A", "ipv6Address": "AAAA"}[field]
				f.put(bookRow{name: f.zone, ttl: int(in["ttl"].(float64)), typ: typ, data: in[field].(string), note: field})
			}
		}
		return nil
	})
	f.say(w, map[string]any{})
}

func (f *fakeDynu) list(w http.ResponseWriter) {
	out := []any{}
	for _, r := range f.listing(f.playing(apiStale)) {
		if !strings.HasSuffix(r.note, "Address") && !f.playing(apiEmpty) {
			out = append(out, f.wire(r))
		}
	}
	if f.playing(apiAlien) {
		out = append(out, map[string]any{"id": 1, "nodeName": "", "recordType": "UF", "content": "example.test. 300 IN UF https://elsewhere.example", "state": true},
			map[string]any{"id": 2, "nodeName": "..", "recordType": "A", "ipv4Address": "192.0.2.1", "state": true})
	}
	f.say(w, map[string]any{"dnsRecords": out})
}

func (f *fakeDynu) read(in map[string]any) bookRow {
	text := func(k string) string { s, _ := in[k].(string); return s }
	r := bookRow{name: f.abs(text("nodeName")), typ: text("recordType"), off: in["state"] != true, note: text("group")}
	if ttl, ok := in["ttl"].(float64); ok {
		r.ttl = int(ttl)
	}
	switch r.typ {
	case "A":
		r.data = text("ipv4Address")
	case "AAAA":
		r.data = text("ipv6Address")
	case "CNAME":
		r.data = strings.ToLower(text("host")) + "."
	case "TXT":
		r.data = quoted(text("textData"))
	}
	return r
}

func (f *fakeDynu) create(w http.ResponseWriter, in map[string]any) {
	r := f.read(in)
	code := 501
	var id int
	err := f.change(func() error {
		same := func(o bookRow) bool { return o.name == r.name && o.typ == r.typ && o.data == r.data }
		switch {
		case r.data == "" || r.ttl < 30:
			return fmt.Errorf("Invalid")
		case slices.ContainsFunc(f.rows, same):
			return fmt.Errorf("Duplicate")
		case f.quota > 0 && len(f.rows) >= f.quota:
			code = 503
			return fmt.Errorf("Quota")
		case f.conflict(r) != nil:
			return f.conflict(r)
		case f.playing(apiPartial) && addressLike(r.typ):
			return fmt.Errorf("no more today")
		}
		id = f.put(r)
		return nil
	})
	if err != nil {
		f.refuse(w, code, "Argument Exception", err.Error())
		return
	}
	r.id = id
	f.say(w, f.wire(r))
}

func (f *fakeDynu) one(w http.ResponseWriter, id int) {
	f.mu()
	defer f.books.mu.Unlock()
	if i := f.find(id); i >= 0 {
		f.say(w, f.wire(f.rows[i]))
		return
	}
	f.refuse(w, 501, "Argument Exception", "Invalid.")
}

func (f *fakeDynu) update(w http.ResponseWriter, id int, in map[string]any) {
	r := f.read(in)
	err := f.change(func() error {
		i := f.find(id)
		if i < 0 || f.rows[i].name != r.name || f.rows[i].typ != r.typ {
			return fmt.Errorf("Invalid")
		}
		if r.note != f.rows[i].note {
			f.books.t.Errorf("the group of %s is lost", f.rows[i].line())
		}
		r.id = id
		f.rows[i] = r
		return nil
	})
	if err != nil {
		f.refuse(w, 501, "Argument Exception", err.Error())
		return
	}
	f.say(w, f.wire(r))
}

func (f *fakeDynu) remove(w http.ResponseWriter, id int) {
	err := f.change(func() error {
		i := f.find(id)
		if i < 0 {
			return fmt.Errorf("Invalid")
		}
		f.rows = slices.Delete(f.rows, i, i+1)
		return nil
	})
	if err != nil {
		f.refuse(w, 501, "Argument Exception", err.Error())
		return
	}
	f.say(w, map[string]any{})
}

func TestDynuApex(t *testing.T) {
	f := newFakeDynu(t)
	f.put(bookRow{name: "example.test.", ttl: 90, typ: "A", data: "192.0.2.1", note: "ipv4Address"})
	b := f.backend(t)
	if err := apiWrite(t, b, rr("example.test.", rota.TypeA, 60, "192.0.2.2"), rr("example.test.", rota.TypeAAAA, 60, "2001:db8::1")); err != nil {
		t.Fatal(err)
	}
	want := []string{"example.test. 60 IN A 192.0.2.2", "example.test. 60 IN AAAA 2001:db8::1"}
	if diff := cmp.Diff(want, linesOf(f.records(""), "example.test.")); diff != "" {
		t.Error(diff)
	}
	writes := f.writes()
	err := apiWrite(t, b, rr("example.test.", rota.TypeA, 60, "192.0.2.2", "192.0.2.3"))
	if r := ReasonOf(err); err == nil || r.Code != CodeUnsupported || r.InDoubt || !strings.Contains(r.Text, "one A record") {
		t.Errorf("two addresses at the apex: %v", err)
	}
	if f.writes() != writes {
		t.Error("something was written")
	}
	if err := apiWrite(t, b, rr("example.test.", rota.TypeA, 60)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[1:], linesOf(f.records(""), "example.test.")); diff != "" {
		t.Error(diff)
	}
}

// 501 has many meanings; reading tells them apart.
func TestDynu501(t *testing.T) {
	f := newFakeDynu(t, "www.example.test. 60 IN A 192.0.2.1")
	f.put(bookRow{name: "off.example.test.", ttl: 60, typ: "A", data: "192.0.2.5", off: true})
	b := f.backend(t)
	d := b.(*ledger).driver.(*dynu)
	have, err := b.Read(t.Context(), "example.test.", []rota.Key{{Name: "off.example.test.", Type: rota.TypeA}})
	if err != nil || len(have.Sets) > 0 {
		t.Errorf("a record that is switched off reads %v, %v", have.Sets, err)
	}
	e := entry{Key: rota.Key{Name: "www.example.test.", Type: rota.TypeA}, TTL: 60, Data: "192.0.2.1"}
	if err := d.create(t.Context(), "example.test.", e); err != nil {
		t.Errorf("a record that is there: %v", err)
	}
	e.ID = "4711"
	if err := d.remove(t.Context(), "example.test.", e); err != nil {
		t.Errorf("a record that is gone: %v", err)
	}
	e.TTL, e.Data = 1, "192.0.2.9"
	if err := d.create(t.Context(), "example.test.", e); err == nil || ReasonOf(err).Code != CodeUnsupported {
		t.Errorf("a record that is refused: %v", err)
	}
	e = entry{Key: rota.Key{Name: "off.example.test.", Type: rota.TypeA}, TTL: 60, Data: "192.0.2.5"}
	if err := d.create(t.Context(), "example.test.", e); err == nil || !strings.Contains(err.Error(), "switched off") {
		t.Errorf("a record that is switched off: %v", err)
	}
	f.quota = 2
	e.Data = "192.0.2.6"
	if err := d.create(t.Context(), "example.test.", e); err == nil || ReasonOf(err).Code != CodeQuota || ReasonOf(err).Transient {
		t.Errorf("a record too many: %v", err)
	}
}

// The group of a record, by which Dynu's own clients update it, survives another TTL.
func TestDynuKeepsGroups(t *testing.T) {
	f := newFakeDynu(t)
	f.put(bookRow{name: "www.example.test.", ttl: 60, typ: "A", data: "192.0.2.1", note: "office"})
	if err := apiWrite(t, f.backend(t), rr("www.example.test.", rota.TypeA, 120, "192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"www.example.test. 120 IN A 192.0.2.1"}, linesOf(f.records(""), "www.example.test.")); diff != "" {
		t.Error(diff)
	}
}

func TestDynuConformance(t *testing.T) {
	apiConformance(t, true, func(t testing.TB) fakeAPI { return newFakeDynu(t, apiForeign...) })
}
