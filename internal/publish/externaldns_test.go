package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeWebhook is a webhook provider of external-dns as the protocol's reference server with its provider in memory: it creates only
// what is not there, and updates and deletes only what is. It speaks of RRsets, and all that goes wrong is 500.
type fakeWebhook struct {
	*apiFront
	*books
	filter map[string]any
	least  int // TTL that the provider sets as least when it adjusts
	media  string
}

func newFakeWebhook(t testing.TB, lines ...string) *fakeWebhook {
	f := &fakeWebhook{
		books: newBooks(t, "example.test.", lines...), filter: map[string]any{"include": []string{"test", "example.test", ".below.test"}}, media: externalDNSMedia,
	}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method == http.MethodPost && r.URL.Path == "/records" }}
	return f
}

func (f *fakeWebhook) backend(t testing.TB) Backend {
	b, err := NewExternalDNS(ExternalDNSOptions{URL: "http://webhook.test:8888", Client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeWebhook) records(string) []string             { return f.books.records() }
func (f *fakeWebhook) edit(_ string, add, remove []string) { f.books.edit(add, remove) }
func (f *fakeWebhook) secret() string                      { return "there is none" }
func (f *fakeWebhook) fail(fault apiFault, n int) bool {
	if slices.Contains([]apiFault{apiLoop}, fault) {
		return false // there are no pages
	}
	f.calm = f.calm && fault == apiFine
	return f.apiFront.fail(fault, n)
}

type webhookEndpoint struct {
	DNSName          string              `json:"dnsName,omitempty"`
	Targets          []string            `json:"targets,omitempty"`
	RecordType       string              `json:"recordType,omitempty"`
	SetIdentifier    string              `json:"setIdentifier,omitempty"`
	RecordTTL        int                 `json:"recordTTL,omitempty"`
	Labels           map[string]string   `json:"labels,omitempty"`
	ProviderSpecific []map[string]string `json:"providerSpecific,omitempty"`
}

// endpoints gathers the rows into RRsets.
func (f *fakeWebhook) endpoints(rows []bookRow) []webhookEndpoint {
	var out []webhookEndpoint
	for _, r := range rows {
		name := strings.TrimSuffix(r.name, ".")
		data := r.data
		if r.typ == "CNAME" || r.typ == "NS" {
			data = strings.TrimSuffix(data, ".")
		}
		i := slices.IndexFunc(out, func(e webhookEndpoint) bool { return e.DNSName == name && e.RecordType == r.typ })
		if i < 0 {
			i = len(out)
			out = append(out, webhookEndpoint{DNSName: name, RecordType: r.typ, RecordTTL: r.ttl, SetIdentifier: r.note, Labels: map[string]string{"of": name}})
		}
		out[i].Targets = append(out[i].Targets, data)
	}
	return out
}

func (f *fakeWebhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") != externalDNSMedia || r.Method == http.MethodPost && r.Header.Get("Content-Type") != externalDNSMedia {
		f.books.t.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
	}
	body, _ := io.ReadAll(r.Body)
	say := func(out any) {
		w.Header().Set("Content-Type", f.media)
		w.Header().Set("Vary", "Content-Type")
		json.NewEncoder(w).Encode(out)
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /":
		say(f.filter)
	case "GET /records":
		list := f.endpoints(f.listing(f.playing(apiStale)))
		if f.playing(apiEmpty) {
			list = nil
		}
		if f.playing(apiAlien) {
			list = append(list, webhookEndpoint{DNSName: "example.test", RecordType: "SITE", Targets: []string{"elsewhere.example"}},
				webhookEndpoint{DNSName: "a..b", RecordType: "A", Targets: []string{"x"}}, webhookEndpoint{DNSName: "x.example.test", RecordType: "A"})
		}
		say(list)
	case "POST /adjustendpoints":
		var in []webhookEndpoint
		if err := json.Unmarshal(body, &in); err != nil {
			f.books.t.Errorf("%s: %v", body, err)
		}
		for i := range in {
			in[i].RecordTTL = max(in[i].RecordTTL, f.least)
		}
		slices.Reverse(in)
		say(slices.DeleteFunc(in, func(e webhookEndpoint) bool { return strings.HasPrefix(e.DNSName, "never") }))
	case "POST /records":
		f.apply(w, body)
	default:
		f.books.t.Errorf("no such request: %s %s", r.Method, r.URL)
	}
}

func (f *fakeWebhook) apply(w http.ResponseWriter, body []byte) {
	var in struct{ Create, UpdateOld, UpdateNew, Delete []webhookEndpoint }
	if err := json.Unmarshal(body, &in); err != nil || len(in.UpdateOld) != len(in.UpdateNew) {
		f.books.t.Errorf("%s: %v", body, err)
	}
	err := f.change(func() error {
		is := func(e webhookEndpoint) func(bookRow) bool {
			return func(r bookRow) bool {
				return r.name == e.DNSName+"." && r.typ == e.RecordType && r.note == e.SetIdentifier
			}
		}
		for _, e := range slices.Concat(in.UpdateOld, in.Delete) {
			if !slices.ContainsFunc(f.rows, is(e)) {
				return fmt.Errorf("record not found: %s", e.DNSName)
			}
		}
		for _, e := range in.UpdateNew {
			if e.Labels["of"] != e.DNSName {
				f.books.t.Errorf("the labels of %s are lost: %v", e.DNSName, e.Labels)
			}
		}
		for _, e := range in.Delete {
			f.rows = slices.DeleteFunc(f.rows, is(e))
		}
		if f.playing(apiPartial) && len(in.Delete) > 0 {
			return nil
		}
		for _, e := range in.UpdateOld {
			f.rows = slices.DeleteFunc(f.rows, is(e))
		}
		for _, e := range slices.Concat(in.Create, in.UpdateNew) {
			if slices.ContainsFunc(f.rows, is(e)) {
				return fmt.Errorf("record already exists: %s", e.DNSName)
			}
			for _, target := range e.Targets {
				r := bookRow{name: e.DNSName + ".", ttl: e.RecordTTL, typ: e.RecordType, data: target, note: e.SetIdentifier}
				if r.typ == "CNAME" {
					r.data += "."
				}
				if err := f.conflict(r); err != nil {
					return err
				}
				f.put(r)
			}
		}
		return nil
	})
	if err != nil || f.playing(apiPartial) {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func TestExternalDNSZones(t *testing.T) {
	f := newFakeWebhook(t)
	b := f.backend(t)
	if z, err := b.Zone(t.Context(), "a.example.test."); err != nil || z != "example.test." {
		t.Errorf("%s, %v", z, err)
	}
	if _, err := b.Zone(t.Context(), "a.example.org."); err == nil || ReasonOf(err).Code != CodeNoZone {
		t.Errorf("a foreign name: %v", err)
	}
	f.filter = map[string]any{"regexInclude": "test$"}
	if _, err := f.backend(t).Zone(t.Context(), "a.example.test."); err == nil || !strings.Contains(err.Error(), "name them") {
		t.Errorf("a filter that names no zone: %v", err)
	}
	b, err := NewExternalDNS(ExternalDNSOptions{URL: "http://webhook.test:8888", Zones: []rota.Name{"example.test."}, Client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	if z, err := b.Zone(t.Context(), "a.example.test."); err != nil || z != "example.test." {
		t.Errorf("%s, %v", z, err)
	}
	for _, media := range []string{"application/json", "application/external.dns.webhook+json;version=2", ""} {
		f.media = media
		if _, err := f.backend(t).Zone(t.Context(), "a.example.test."); err == nil || ReasonOf(err).Code != CodeMalformed {
			t.Errorf("a provider that says %q: %v", media, err)
		}
	}
	f.media = "application/external.dns.webhook+json; version=1"
	if _, err := f.backend(t).Read(t.Context(), "example.test.", nil); err != nil {
		t.Errorf("a space in the media type: %v", err)
	}
}

func TestExternalDNSLocks(t *testing.T) {
	f := newFakeWebhook(t)
	for _, r := range []bookRow{
		{name: "geo.example.test.", ttl: 60, typ: "A", data: "192.0.2.1", note: "europe"},
		{name: "two.example.test.", ttl: 60, typ: "CNAME", data: "a.example."},
		{name: "two.example.test.", ttl: 60, typ: "CNAME", data: "b.example."},
		{name: "free.example.test.", ttl: 0, typ: "A", data: "192.0.2.1"},
	} {
		f.put(r)
	}
	var keys []rota.Key
	for _, n := range []rota.Name{"geo.example.test.", "two.example.test.", "free.example.test."} {
		keys = append(keys, rota.Key{Name: n, Type: rota.TypeA})
	}
	have, err := f.backend(t).Read(t.Context(), "example.test.", keys)
	if err != nil || have.Blocked["geo.example.test."] == nil || have.Blocked["two.example.test."] == nil || have.Blocked["free.example.test."] != nil {
		t.Errorf("%v, %v", have.Blocked, err)
	}
	if !have.AnyTTL[keys[2]] {
		t.Errorf("a TTL that the provider chooses counts")
	}
}

// What the provider makes of our records is asked before: another TTL is borne, another answer is not.
func TestExternalDNSAdjust(t *testing.T) {
	f := newFakeWebhook(t, `www.example.test. 300 IN A 192.0.2.1`)
	f.foreign, f.least = nil, 300
	b := f.backend(t)
	set := rr("www.example.test.", rota.TypeA, 30, "192.0.2.1", "192.0.2.2")
	if err := apiWrite(t, b, set, rr("cname.example.test.", rota.TypeCNAME, 30, "www.example.test.")); err != nil {
		t.Fatal(err)
	}
	want := []string{"www.example.test. 300 IN A 192.0.2.1", "www.example.test. 300 IN A 192.0.2.2"}
	if diff := cmp.Diff(want, linesOf(f.records(""), "www.example.test.")); diff != "" {
		t.Error(diff)
	}
	if got := linesOf(f.records(""), "cname.example.test."); !slices.Equal(got, []string{"cname.example.test. 300 IN CNAME www.example.test."}) {
		t.Errorf("%q", got)
	}
	have, err := b.Read(t.Context(), "example.test.", []rota.Key{set.Key()})
	if err != nil || !have.AnyTTL[set.Key()] {
		t.Errorf("the provider's TTL is not borne: %+v, %v", have, err)
	}
	writes := f.writes()
	err = apiWrite(t, b, rr("never.example.test.", rota.TypeA, 30, "192.0.2.1"))
	if err == nil || ReasonOf(err).Code != CodeUnsupported || ReasonOf(err).InDoubt || f.writes() != writes {
		t.Errorf("a record that the provider leaves out: %v", err)
	}
	if err := apiWrite(t, b, rr("www.example.test.", rota.TypeA, 30), rr("cname.example.test.", rota.TypeCNAME, 30)); err != nil {
		t.Fatal(err)
	}
	if got := f.records(""); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

// The fence is looked at before anything else is written: whoever finds another one there, or the old one, goes no further.
func TestExternalDNSFence(t *testing.T) {
	zone := rota.Name("example.test.")
	first := Fence{Owner: "test", Epoch: 1, By: "00"}
	for name, tt := range map[string]struct {
		shows Fence // after the fence was written
		moved bool
		posts int
	}{
		"ours":        {first.Next(), false, 2},
		"the old one": {first, false, 1},
		"another":     {first.take("test", 7), true, 1},
	} {
		posts := 0
		b, err := NewExternalDNS(ExternalDNSOptions{URL: "http://127.0.0.1:8888", Client: roundTrip(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.URL.Path == "/adjustendpoints":
				text, err := io.ReadAll(r.Body)
				return answer(r, 200, externalDNSMedia, string(text)), err
			case r.Method == http.MethodPost:
				posts++
				return answer(r, 204, "", ""), nil
			}
			fence := first
			if posts > 0 {
				fence = tt.shows
			}
			list, err := json.Marshal([]externalDNSEndpoint{{Name: "_rota.example.test", Type: "TXT", TTL: 60, Targets: fence.RRset(zone).Data}})
			return answer(r, 200, externalDNSMedia, string(list)), err
		})})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Write(t.Context(), Batch{
			Zone: zone, Fence: rota.Change{Old: first.RRset(zone), New: first.Next().RRset(zone)}, Changes: []rota.Change{{Old: at(www), New: at(www, "192.0.2.1")}},
		})
		if errors.Is(err, ErrMoved) != tt.moved || posts != tt.posts || (err == nil) != (tt.posts == 2) {
			t.Errorf("%s: %v after %d requests", name, err, posts)
		}
	}
}

func TestExternalDNSConformance(t *testing.T) {
	apiConformance(t, true, func(t testing.TB) fakeAPI { return newFakeWebhook(t, apiForeign...) })
}
