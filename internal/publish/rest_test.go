package publish

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const restSecret = "hush-this-is-the-token"

// restTo returns a rest that speaks to a handler without a network.
func restTo(t *testing.T, h http.HandlerFunc, change ...func(*restOptions)) (*rest, *apiFront) {
	f := &apiFront{handler: h, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }}
	o := restOptions{
		base: "https://api.example.test/v1/", client: f, secrets: []string{restSecret}, timeout: 2 * time.Second,
		auth: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+restSecret) },
	}
	for _, c := range change {
		c(&o)
	}
	r, err := newREST(o)
	if err != nil {
		t.Fatal(err)
	}
	return r, f
}

func TestRESTAnswers(t *testing.T) {
	cases := []struct {
		name      string
		status    int
		kind      string
		body      string
		code      Code // "": a success
		transient bool
		doubt     bool // of a request that changes something
	}{
		{"success", 200, "application/json", `{"a": "b"}`, "", false, false},
		{"empty", 200, "application/json", ``, CodeMalformed, true, true},
		{"cut", 200, "application/json", `{"a": "b`, CodeMalformed, true, true},
		{"a page", 200, "text/html; charset=utf-8", `<html>`, CodeMalformed, true, true},
		{"a page that says it is none", 200, "application/json", "\n <!DOCTYPE html>", CodeMalformed, true, true},
		{"another kind", 200, "application/json", `{"a": [1]}`, CodeMalformed, true, true},
		{"bad request", 400, "application/json", `{}`, CodeUnsupported, false, false},
		{"unauthorized", 401, "application/json", restSecret, CodeDenied, false, false},
		{"forbidden", 403, "text/html", `<html>`, CodeDenied, false, false},
		{"not found", 404, "text/plain", `no`, CodeNoZone, false, false},
		{"too many", 429, "application/json", `{}`, CodeRateLimited, true, false},
		{"error", 500, "application/json", `{}`, CodeServfail, true, true},
		{"gateway", 504, "text/html", `<html>`, CodeServfail, true, true},
		{"elsewhere", 301, "text/html", ``, CodeMalformed, true, true},
	}
	for _, c := range cases {
		for _, method := range []string{http.MethodGet, http.MethodPatch} {
			r, _ := restTo(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer "+restSecret || r.URL.Path != "/v1/x" {
					t.Errorf("%s: request %s with %v", c.name, r.URL, r.Header)
				}
				w.Header().Set("Content-Type", c.kind)
				w.Header().Set("Location", "https://elsewhere.example.test/")
				w.WriteHeader(c.status)
				w.Write([]byte(c.body))
			}, func(o *restOptions) {
				o.explain = func(a *restAnswer) *Reason { return &Reason{Text: "it said " + string(a.body)} }
			})
			var out struct{ A string }
			err := r.do(t.Context(), method, "/x", map[string]int{"n": 1}, &out)
			if c.code == "" {
				if err != nil || out.A != "b" {
					t.Errorf("%s: %v, %+v", c.name, err, out)
				}
				continue
			}
			why, ok := errors.AsType[*Reason](err)
			if !ok || why.Code != c.code || why.Transient != c.transient || why.InDoubt != (c.doubt && method == http.MethodPatch) {
				t.Errorf("%s, %s: %+v", c.name, method, err)
			}
			if err == nil || strings.Contains(err.Error(), restSecret) || why.Server != "api.example.test" || why.Advice == "" {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// endless is a body without an end.
type endless struct{ read *int }

func (e endless) Read(b []byte) (int, error) {
	if *e.read += len(b); *e.read > 4*maxAnswer {
		return 0, errors.New("it is read without end")
	}
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func (endless) Close() error { return nil }

// No answer is read without end, and a web page is never a success, not even where nothing is read from an answer.
func TestRESTBodies(t *testing.T) {
	read := 0
	r, err := newREST(restOptions{base: "https://api.example.test", client: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/page" {
			return answer(r, 200, "text/html", "<html>Welcome</html>"), nil
		}
		a := answer(r, 200, "application/json", "")
		a.Body, a.ContentLength = endless{&read}, -1
		return a, nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	if why := ReasonOf(r.do(t.Context(), http.MethodPatch, "/page", nil, nil)); why.Code != CodeMalformed || !why.InDoubt {
		t.Errorf("a page: %+v", why)
	}
	var out map[string]string
	if why := ReasonOf(r.get(t.Context(), "/endless", nil, &out)); why.Code != CodeMalformed || !strings.Contains(why.Text, "longer than") || read > 2*maxAnswer {
		t.Errorf("without end: %+v, %d bytes read", why, read)
	}
}

// The environment does not say by whom an API is reached.
func TestRESTNoProxy(t *testing.T) {
	r, err := newREST(restOptions{base: "https://api.example.test"})
	if err != nil {
		t.Fatal(err)
	}
	if r.o.client.(*http.Transport).Proxy != nil {
		t.Error("a proxy of the environment would be asked")
	}
}

// What was never sent is not in doubt.
func TestRESTUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r, err := newREST(restOptions{base: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	err = r.do(t.Context(), http.MethodPatch, "/x", nil, nil)
	if why := ReasonOf(err); why.Code != CodeUnreachable || why.InDoubt || strings.Contains(why.Text, "/x") {
		t.Errorf("nobody listens: %+v", why)
	}
	// The connection is closed in the middle of an answer.
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Write([]byte(`{"a": "b"`))
	}))
	defer s.Close()
	if r, err = newREST(restOptions{base: s.URL}); err != nil {
		t.Fatal(err)
	}
	defer r.http.CloseIdleConnections()
	var out map[string]string
	err = r.do(t.Context(), http.MethodPatch, "/x", nil, &out)
	if why := ReasonOf(err); why.Code != CodeUnreachable || !why.InDoubt {
		t.Errorf("a cut answer: %+v", why)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.get(ctx, "/x", nil, &out); ReasonOf(err).Code != CodeUnreachable {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRESTPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, f := restTo(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{}`)) })
		f.fail(api429, 1)
		err := r.get(t.Context(), "/x", nil, nil)
		if why := ReasonOf(err); why.Code != CodeRateLimited || why.After != MaxAfter {
			t.Errorf("429: %+v", why)
		}
		for range 10 {
			time.Sleep(20 * time.Second)
			if why := ReasonOf(r.get(t.Context(), "/x", nil, nil)); why.Code != CodeRateLimited || why.After <= 0 {
				t.Errorf("in the pause: %+v", why)
			}
		}
		if n := f.requests(); n != 1 {
			t.Errorf("%d requests within the pause", n)
		}
		time.Sleep(MaxAfter)
		if err := r.get(t.Context(), "/x", nil, nil); err != nil {
			t.Errorf("after the pause: %v", err)
		}
	})
}

// Of requests that were on their way at once, the one that names the longest pause is heeded.
func TestRESTPauseStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		q.ask(MaxAfter)
		q.ask(time.Second)
		time.Sleep(time.Minute)
		if why := q.reason("x"); why == nil || why.After != MaxAfter-time.Minute {
			t.Errorf("%+v", why)
		}
	})
}

func TestRESTPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, f := restTo(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{}`)) }, func(o *restOptions) { o.rate, o.burst = 2, 2 })
		start := time.Now()
		for range 8 {
			if err := r.get(t.Context(), "/x", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 3*time.Second || f.requests() != 8 {
			t.Errorf("8 requests took %v, want 3s", took)
		}
	})
}

func TestRESTRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": -1, "soon": -1, "-5": -1, "1.5": -1, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "86400": MaxAfter,
		"99999999999999999999999999": MaxAfter, "Thu, 01 Jan 2026 00:00:30 GMT": 30 * time.Second,
		"Thu, 01 Jan 2099 00:00:00 GMT": MaxAfter, "Thu, 01 Jan 1970 00:00:00 GMT": 0,
	} {
		got, ok := retryAfter(http.Header{"Retry-After": {text}}, now)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, ok, want)
		}
	}
}

func TestRESTPages(t *testing.T) {
	r, _ := restTo(t, nil)
	next := map[string]string{"": "a", "a": "b", "b": ""}
	var seen []string
	if err := r.pages(func(m string) (string, error) { seen = append(seen, m); return next[m], nil }); err != nil || len(seen) != 3 {
		t.Errorf("%v, %q", err, seen)
	}
	next["b"] = "a"
	n := 0
	if err := r.pages(func(m string) (string, error) { n++; return next[m], nil }); ReasonOf(err).Code != CodeMalformed || n != 3 {
		t.Errorf("a circle: %v after %d", err, n)
	}
	n = 0
	if err := r.pages(func(m string) (string, error) { n++; return m + "x", nil }); ReasonOf(err).Code != CodeMalformed || n != maxPages {
		t.Errorf("no end: %v after %d", err, n)
	}
	no := errors.New("no")
	if err := r.pages(func(string) (string, error) { return "", no }); !errors.Is(err, no) {
		t.Errorf("an error: %v", err)
	}
}

func TestRESTOptions(t *testing.T) {
	for _, base := range []string{"", "api.example.test", "ftp://api.example.test", "https://", "https://u:hush@api.example.test", "ftp://u:hush@api.example.test", "https://u:hush@[", "https://api.example.test/?key=hush", "https://api.example.test/#hush"} {
		if _, err := newREST(restOptions{base: base}); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", base, err)
		}
	}
	r, _ := restTo(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "a=b+c" {
			t.Errorf("the query is %q", r.URL.RawQuery)
		}
	})
	if err := r.get(t.Context(), "/x", url.Values{"a": {"b c"}}, nil); err != nil {
		t.Error(err)
	}
}

// What an API says about an error is anything at all.
func FuzzExplain(f *testing.F) {
	f.Add(422, []byte(`{"error": "RRset a. IN CNAME: Conflicts with pre-existing RRset"}`))
	f.Add(400, []byte(`[{}, {"non_field_errors": ["RRset with conflicting type present: database (TXT)."]}]`))
	f.Add(404, []byte(`{"success": false, "errors": [{"code": 81044, "message": "Record does not exist."}]}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := &restAnswer{status: status, body: body}
		for _, explain := range []func(*restAnswer) *Reason{explainPowerDNS, explainDeSEC, explainCloudflare} {
			if r := explain(a); r != nil && r.Text == "" {
				t.Errorf("%q is explained by nothing", body)
			}
		}
	})
}
