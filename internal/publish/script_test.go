package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// answers is a script that says the same to every request of an action.
func answers(t testing.TB, say func(q scriptRequest) (Output, error)) Backend {
	t.Helper()
	b, err := NewExec(ExecOptions{Name: "p", Command: []string{"/bin/script", "arg"}, Run: func(_ context.Context, c Command) (Output, error) {
		var q scriptRequest
		if err := json.Unmarshal(c.Stdin, &q); err != nil {
			t.Errorf("request %s: %v", c.Stdin, err)
		}
		return say(q)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func says(stdout string, code int) (Output, error) {
	return Output{Started: true, Code: code, Stdout: []byte(stdout), Stderr: []byte("first line\nlast line\n")}, nil
}

// documented returns the JSON of docs/scripts.md that has a field.
func documented(t *testing.T, field string) (out []map[string]any) {
	t.Helper()
	page, err := os.ReadFile("../../docs/scripts.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(page), "```") {
		text, ok := strings.CutPrefix(part, "json\n")
		if i%2 == 0 || !ok {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Errorf("docs/scripts.md: %v in %s", err, text)
		}
		if m[field] != nil {
			out = append(out, m)
		}
	}
	return out
}

// What a script is asked, to the letter: docs/scripts.md shows the same.
func TestExecProtocol(t *testing.T) {
	var seen []Command
	b, err := NewExec(ExecOptions{Name: "script", Command: []string{"/bin/script", "arg"}, Timeout: 5 * time.Second, Run: func(_ context.Context, c Command) (Output, error) {
		seen = append(seen, c)
		for _, e := range c.Env {
			switch e {
			case "ROTA_ACTION=zones":
				return says(`{"zones": ["Example.TEST", "other.test."], "comment": "passed over"}`, 0)
			case "ROTA_ACTION=read":
				return says(`{"rrsets": [{"name": "www.example.test", "type": "a", "ttl": 30, "data": ["192.0.2.1"]},
					{"name": "www.example.test.", "type": "TYPE65280", "ttl": 5, "data": ["\\# 1 00"]}, {"name": "x.other.test.", "type": "A", "ttl": 5, "data": ["192.0.2.9"]}]}`, 0)
			}
		}
		return says("", 0)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if zone, err := b.Zone(t.Context(), "www.example.test."); zone != "example.test." || err != nil {
		t.Errorf("zone %q, %v", zone, err)
	}
	www := address("www.example.test.", 30, []string{"192.0.2.1"}, []string{"192.0.2.1", "192.0.2.2"})
	www.Why = "192.0.2.2 is up"
	if n, err := b.Write(t.Context(), firstBatch(www)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := b.Write(t.Context(), firstBatch(www)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	ids := make([]string, len(seen))
	var requests []string
	for i, c := range seen {
		if fmt.Sprint(c.Argv) != "[/bin/script arg]" || c.Timeout != 5*time.Second || c.Env[0] != "ROTA_VERSION=1" || c.Env[1] != "ROTA_PUBLISHER=script" {
			t.Errorf("runs %+v", c)
		}
		var q scriptRequest
		if err := json.Unmarshal(c.Stdin, &q); err != nil {
			t.Error(err)
		}
		ids[i] = q.ID
		requests = append(requests, strings.Replace(string(c.Stdin), q.ID, "ID", 1))
	}
	want := []string{
		`{"version":1,"id":"ID","action":"zones","publisher":"script"}`,
		`{"version":1,"id":"ID","action":"read","publisher":"script","zone":"example.test.","names":["_rota.example.test.","www.example.test."]}`,
		`{"version":1,"id":"ID","action":"write","publisher":"script","zone":"example.test.","fence":{"old":{"name":"_rota.example.test.","type":"TXT","ttl":0,"data":[]},` +
			`"new":{"name":"_rota.example.test.","type":"TXT","ttl":60,"data":["\"owner=test epoch=1 seq=0 by=00\""]}},` +
			`"changes":[{"old":{"name":"www.example.test.","type":"A","ttl":30,"data":["192.0.2.1"]},` +
			`"new":{"name":"www.example.test.","type":"A","ttl":30,"data":["192.0.2.1","192.0.2.2"]},"why":"192.0.2.2 is up"}]}`,
	}
	if diff := cmp.Diff(append(want, want[1:]...), requests); diff != "" {
		t.Error(diff)
	}
	shown := documented(t, "action")
	for i, text := range want {
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		if i >= len(shown) {
			t.Fatal("docs/scripts.md does not show every request")
		}
		m["id"] = shown[i]["id"]
		if diff := cmp.Diff(m, shown[i]); diff != "" {
			t.Errorf("docs/scripts.md:\n%s", diff)
		}
	}
	if len(ids) != 5 || ids[2] != ids[4] || ids[1] == ids[3] || ids[2] == "" {
		t.Errorf("ids %q: a write has the same each time, the others never", ids)
	}
}

// Whatever a script does wrong is a reason, nothing is taken for an empty zone, and only a write is in doubt.
func TestExecFails(t *testing.T) {
	const nothing = `{"rrsets": []}`
	www := address("www.example.test.", 30, nil, []string{"192.0.2.1"})
	for _, c := range []struct {
		name, read, write string
		code              int // exit code of the action in question
		err               error
		cut               bool
		want              Code
		doubt             bool
		text              string
	}{
		{name: "an empty reply", read: "", want: CodeMalformed},
		{name: "no list", read: "{}", want: CodeMalformed, text: "no list"},
		{name: "an array", read: "[]", want: CodeMalformed},
		{name: "half a reply", read: `{"rrsets": [`, want: CodeMalformed},
		{name: "two replies", read: nothing + nothing, want: CodeMalformed},
		{name: "HTML", read: "<html>", want: CodeMalformed},
		{name: "more than is kept", read: nothing, cut: true, want: CodeMalformed, text: "longer"},
		{name: "a bad name", read: `{"rrsets": [{"name": "a..b", "type": "A", "data": []}]}`, want: CodeMalformed},
		{name: "a bad type", read: `{"rrsets": [{"name": "a.b", "type": "WHAT", "data": []}]}`, want: CodeMalformed},
		{name: "a bad TTL", read: `{"rrsets": [{"name": "a.b", "type": "A", "ttl": 4294967295, "data": []}]}`, want: CodeMalformed},
		{name: "bad data", read: `{"rrsets": [{"name": "a.example.test", "type": "A", "ttl": 5, "data": ["nonsense"]}]}`, want: CodeMalformed},
		{name: "exits 1", read: nothing, code: 1, want: CodeScript, text: "exit code 1 and said: last line"},
		{name: "is not there", err: errors.New("cannot start"), want: CodeScript},
		{name: "takes too long", err: fmt.Errorf("x: %w", context.DeadlineExceeded), want: CodeUnreachable},
		{name: "says why", read: `{"error": {"code": "denied", "text": "bad\u001b[31m password", "advice": "change it"}}`, code: 7, want: CodeDenied, text: "bad?[31m password; change it"},
		{name: "says why and exits 0", read: `{"error": {"text": "no"}}`, want: CodeScript},
		{name: "asks for a year", read: `{"error": {"code": "rate-limited", "transient": true, "after": 1e300}}`, want: CodeRateLimited},

		{name: "write exits 1", write: "", code: 1, want: CodeScript, doubt: true},
		{name: "write replies junk", write: "done!", want: CodeMalformed, doubt: true},
		{name: "write says no", write: `{"error": {"code": "quota", "text": "10 records are enough", "name": "www.example.test"}}`, code: 1, want: CodeQuota, doubt: true},
		{name: "write did nothing", write: `{"error": {"code": "quota", "untouched": true}}`, code: 1, want: CodeQuota},
		{name: "write says a code of rota's own", write: `{"error": {"code": "guard", "untouched": true}}`, code: 1, want: CodeScript},
		{name: "write is moved", write: `{"error": {"code": "moved"}}`, code: 1, want: "moved"},
		{name: "write is done", write: `{}`},
		{name: "write is done in silence", write: " \n"},
	} {
		about := scriptWrite
		if c.read != "" || c.err != nil || c.write == "" && c.code == 0 {
			about = scriptRead
		}
		if strings.HasPrefix(c.name, "write") {
			about = scriptWrite
		}
		b := answers(t, func(q scriptRequest) (Output, error) {
			switch {
			case q.Action != about && q.Action == scriptRead:
				return says(nothing, 0)
			case q.Action != about:
				t.Errorf("%s: a %s follows", c.name, q.Action)
			case c.err != nil:
				return Output{Started: errors.Is(c.err, context.DeadlineExceeded), Code: -1}, c.err
			}
			out, err := says(c.read+c.write, c.code)
			out.Cut = c.cut
			return out, err
		})
		_, err := b.Write(t.Context(), firstBatch(www))
		switch r := ReasonOf(err); {
		case c.want == "":
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case c.want == "moved":
			if err != ErrMoved {
				t.Errorf("%s: %v, want ErrMoved", c.name, err)
			}
		case err == nil || r.Code != c.want || r.InDoubt != c.doubt || r.After > MaxAfter || r.Text == "" || !strings.Contains(r.Error(), c.text):
			t.Errorf("%s: %v, %+v, want %s, in doubt %v", c.name, err, r, c.want, c.doubt)
		}
	}
	for _, zones := range []string{"{}", `{"zones": ["a..b"]}`} {
		b := answers(t, func(scriptRequest) (Output, error) { return says(zones, 0) })
		if _, err := b.Zone(t.Context(), "www.example.test."); ReasonOf(err).Code != CodeMalformed {
			t.Errorf("zones %s: %v", zones, err)
		}
	}
	for _, o := range []ExecOptions{
		{Command: []string{"script"}, Run: commands},
		{Run: commands},
		{Command: []string{"/script"}},
		{Command: []string{"/script"}, Run: commands, Timeout: time.Hour},
		{Command: []string{"/script"}, Run: commands, Simple: &RFC2136Options{}},
	} {
		if _, err := NewExec(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

// FuzzScriptReply: a reply from the other side never brings down more than its request.
func FuzzScriptReply(f *testing.F) {
	for _, s := range []string{
		`{"rrsets": [{"name": "www.example.test.", "type": "TXT", "ttl": 5, "data": ["\"a\" b"]}]}`, `{"zones": ["a", 1]}`,
		`{"error": {"code": "moved", "after": -1, "name": "\u0000"}}`, `{"rrsets": null}`, "[]", `{"rrsets": [{"type": "SOA", "data": ["x"]}]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b := answers(t, func(scriptRequest) (Output, error) { return says(text, 0) })
		b.Zone(t.Context(), "www.example.test.")
		have, err := b.Read(t.Context(), "example.test.", []rota.Key{{Name: "www.example.test.", Type: rota.TypeTXT}})
		for _, s := range have.Sets {
			if err == nil && (!s.Name.In("example.test.") || len(s.Data) == 0 || !slices.IsSorted(s.Data)) {
				t.Fatalf("%q gives %v", text, s)
			}
		}
		if r := ReasonOf(err); err != nil && (r.After > MaxAfter || r.After < 0 || strings.ContainsAny(r.Error(), "\x00\x1b\n")) {
			t.Fatalf("%q gives %+v", text, r)
		}
	})
}

// Whatever a webhook's other side does wrong is a reason, and its signature is the first thing that is looked at.
func TestWebhookFails(t *testing.T) {
	h := &webhook{secret: []byte(webhookSecret)}
	type reply struct {
		status int
		header http.Header
		body   string
	}
	signed := func(at time.Time, secret, body string) http.Header {
		k := &webhook{secret: []byte(secret)}
		return http.Header{webhookSignature: {k.sign(at, []byte(body))}}
	}
	const nothing = `{"rrsets": []}`
	for _, c := range []struct {
		name   string
		signed bool
		say    func(id string) reply
		want   Code
		text   string
	}{
		{"nothing", false, func(string) reply { return reply{200, nil, ""} }, CodeMalformed, ""},
		{"a web page", false, func(string) reply { return reply{200, nil, "<html>"} }, CodeMalformed, "web page"},
		{"half a reply", false, func(string) reply { return reply{200, nil, `{"rrsets": [`} }, CodeMalformed, ""},
		{"another shape", false, func(string) reply { return reply{200, nil, `{"rrsets": {}}`} }, CodeMalformed, ""},
		{"a redirect", false, func(string) reply { return reply{302, http.Header{"Location": {"/else"}}, ""} }, CodeMalformed, "redirects"},
		{"404", false, func(string) reply { return reply{404, nil, "no"} }, CodeNoZone, ""},
		{"500", false, func(string) reply { return reply{500, nil, "no"} }, CodeServfail, ""},
		{"500 that says why", false, func(string) reply {
			return reply{500, nil, `{"error": {"code": "quota", "text": "full, ` + webhookSecret + `"}}`}
		}, CodeQuota, "full, ***"},
		{"200 that says no", false, func(string) reply {
			return reply{200, nil, `{"error": {"code": "denied", "text": "` + webhookSecret + `"}}`}
		}, CodeDenied, "***"},
		{"429 for a year", false, func(string) reply { return reply{429, http.Header{"Retry-After": {"31536000"}}, "{}"} }, CodeRateLimited, ""},
		{"no signature", true, func(string) reply { return reply{200, nil, nothing} }, CodeForged, "has no signature"},
		{"a wrong signature", false, func(id string) reply {
			body := `{"id": "` + id + `", "rrsets": []}`
			return reply{200, signed(time.Now(), "another secret of 16", body), body}
		}, CodeForged, "wrong signature"},
		{"an old signature", false, func(id string) reply {
			body := `{"id": "` + id + `", "rrsets": []}`
			return reply{200, signed(time.Now().Add(-time.Hour), webhookSecret, body), body}
		}, CodeForged, "5 minutes"},
		{"a signed reply to another request", false, func(string) reply {
			body := `{"id": "x", "rrsets": []}`
			return reply{200, signed(time.Now(), webhookSecret, body), body}
		}, CodeForged, "another request"},
		{"a changed reply", false, func(id string) reply {
			body := `{"id": "` + id + `", "rrsets": []}`
			return reply{200, signed(time.Now(), webhookSecret, body), strings.Replace(body, "[]", "[ ]", 1)}
		}, CodeForged, "wrong signature"},
		{"nonsense for a signature", false, func(id string) reply {
			return reply{200, http.Header{webhookSignature: {"t=,v1=zz,,="}}, nothing}
		}, CodeForged, "wrong signature"},
		{"a signed refusal", true, func(id string) reply {
			body := `{"id": "` + id + `", "error": {"code": "unsupported", "text": "no"}}`
			return reply{422, signed(time.Now(), webhookSecret, body), body}
		}, CodeUnsupported, "no"},
		{"all well", true, func(id string) reply {
			body := `{"id": "` + id + `", "rrsets": []}`
			return reply{200, http.Header{webhookSignature: {"t=1," + h.sign(time.Now(), []byte(body)) + ",v1=00"}}, body}
		}, "", ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r := c.say(req.Header.Get(webhookDelivery))
			for k, v := range r.header {
				w.Header()[k] = v
			}
			w.WriteHeader(r.status)
			w.Write([]byte(r.body))
		}))
		b, err := NewWebhook(WebhookOptions{Name: "p", URL: server.URL, Secret: webhookSecret, Signed: c.signed, Client: server.Client().Transport})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Read(t.Context(), "example.test.", []rota.Key{{Name: "www.example.test.", Type: rota.TypeA}})
		server.Close()
		r := ReasonOf(err)
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || r.Code != c.want || r.InDoubt || r.After > MaxAfter || r.Server == "" || !strings.Contains(r.Text, c.text) || strings.Contains(r.Error(), webhookSecret) {
			t.Errorf("%s: %v %+v, want %s", c.name, err, r, c.want)
		}
	}
	for _, o := range []WebhookOptions{
		{URL: "http://hooks.example.org/dns", Secret: webhookSecret},
		{URL: "ftp://127.0.0.1/", Secret: webhookSecret},
		{URL: "", Secret: webhookSecret},
		{URL: "https://user:pass@hooks.example.org/", Secret: webhookSecret},
		{URL: "https://hooks.example.org/", Secret: "short"},
	} {
		if _, err := NewWebhook(o); err == nil || strings.Contains(err.Error(), "pass") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A write whose answer is lost on the way is in doubt, and the same write has the same id.
func TestWebhookDoubt(t *testing.T) {
	var mu sync.Mutex // guards ids
	var ids []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var q scriptRequest
		json.NewDecoder(req.Body).Decode(&q)
		if q.Action == scriptRead {
			w.Write([]byte(`{"rrsets": []}`))
			return
		}
		mu.Lock()
		ids = append(ids, req.Header.Get(webhookDelivery))
		mu.Unlock()
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	b, err := NewWebhook(WebhookOptions{URL: server.URL, Secret: webhookSecret, Client: server.Client().Transport})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.Write(t.Context(), firstBatch(address("www.example.test.", 30, nil, []string{"192.0.2.1"}))); !ReasonOf(err).InDoubt {
			t.Errorf("a lost answer: %v", err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) != 2 || ids[0] != ids[1] || ids[0] == "" {
		t.Errorf("ids %q", ids)
	}
}
