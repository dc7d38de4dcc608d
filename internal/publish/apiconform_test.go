package publish

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAPI is a provider with books of its own, which a test may look into, edit, break and hold. It holds the zone example.test. with
// the records of apiForeign, and checks at every request what must always hold: credentials are right, a zone is listed before it is
// written, what is foreign is not touched, and no RRset whose name was served is ever gone between two requests.
type fakeAPI interface {
	// backend makes a Backend that speaks to it; each call another one, as another process would.
	backend(t testing.TB) Backend
	// records returns what the provider's name servers would answer, sorted: "NAME TTL TYPE DATA", names absolute and in lower case,
	// TXT in quotes.
	records(zone string) []string
	// edit changes the books as a person on the provider's page does: lines are those of records.
	edit(zone string, add, remove []string)
	// fail breaks the next n requests, or all until apiFine when n is below 0. It returns false when this API cannot fail so.
	fail(f apiFault, n int) bool
	// hold keeps the next request that would change something from arriving.
	hold() *heldRequest
	// replay sends all requests again that changed something since the last call, oldest first, and says how many there were.
	replay() int
	// writes counts the requests that would change something and arrived; requests counts all that were sent.
	writes() int
	requests() int
	// secret is what must never be shown.
	secret() string
}

// apiForeign is what others keep in example.test.
var apiForeign = []string{
	`*.wild.example.test. 3600 IN A 198.51.100.80`,
	`example.test. 3600 IN MX 10 mail.example.test.`,
	`example.test. 3600 IN TXT "v=spf1 -all"`,
	`mail.example.test. 3600 IN A 198.51.100.25`,
	`ns.sub.example.test. 3600 IN A 198.51.100.53`,
	`odd.example.test. 3600 IN CNAME mail.example.test.`,
	`old.example.test. 3600 IN CNAME mail.example.test.`,
	`sub.example.test. 3600 IN NS ns.sub.example.test.`,
	`www.example.test. 3600 IN TXT "beside our addresses"`,
}

// apiFault is what an API does instead of what it should.
type apiFault string

// The faults. Those below the line are the provider's own to play; the front plays the others for every HTTP API.
const (
	apiFine      apiFault = ""
	apiLost      apiFault = "carried out, the answer is lost"
	apiDropped   apiFault = "the connection ends, nothing is carried out"
	apiSilent    apiFault = "no answer, nothing is carried out"
	apiHTML      apiFault = "HTTP 200 with a web page"
	apiTruncated apiFault = "carried out, the JSON is cut"
	apiJunk      apiFault = "HTTP 200 with JSON of another kind"
	api401       apiFault = "HTTP 401"
	api403       apiFault = "HTTP 403"
	api404       apiFault = "HTTP 404"
	api422       apiFault = "HTTP 422"
	api429       apiFault = "HTTP 429 with Retry-After 86400"
	api500       apiFault = "HTTP 500, nothing is carried out"
	api502       apiFault = "HTTP 502 with a web page, carried out"
	apiRedirect  apiFault = "HTTP 302 to elsewhere"

	apiEmpty   apiFault = "lists are empty"
	apiLoop    apiFault = "pages lead in a circle"
	apiStale   apiFault = "lists show what was before the last write"
	apiPartial apiFault = "half of a change is carried out, and an error"
	apiAlien   apiFault = "lists hold records of unknown types"
)

// heldRequest is a request on its way.
type heldRequest struct {
	caught  chan struct{} // closed when it is there
	arrived chan int      // the HTTP status with which it was answered in the end; its sender is long gone
	release chan struct{}
}

// arrive lets the request arrive and returns how it was answered.
func (h *heldRequest) arrive() int {
	close(h.release)
	return <-h.arrived
}

// apiFront stands before the handler of a provider: it plays faults, holds and captures requests. It is the RoundTripper that a
// backend speaks through, without a network, so that it also works in virtual time.
type apiFront struct {
	handler http.Handler
	changes func(r *http.Request, body []byte) bool // whether a request would change something

	mu     sync.Mutex // guards what follows
	fault  apiFault
	left   int
	holds  *heldRequest
	taken  []captured
	nwrite int
	nall   int
	times  []time.Time
}

// captured is a request that changed something.
type captured struct {
	r    *http.Request
	body []byte
}

func (f *apiFront) fail(fault apiFault, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.left = fault, n
	return true
}

// playing returns the fault that a provider has to play by itself, if it is one of those.
func (f *apiFront) playing(fault apiFault) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault == fault && f.left != 0
}

func (f *apiFront) hold() *heldRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds = &heldRequest{caught: make(chan struct{}), arrived: make(chan int, 1), release: make(chan struct{})}
	return f.holds
}

func (f *apiFront) replay() int {
	f.mu.Lock()
	taken := f.taken
	f.taken = nil
	f.mu.Unlock()
	for _, c := range taken {
		f.serve(c.r, c.body)
	}
	return len(taken)
}

func (f *apiFront) writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nwrite
}

func (f *apiFront) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nall
}

// serve has the handler answer a request.
func (f *apiFront) serve(r *http.Request, body []byte) *http.Response {
	r = r.Clone(context.Background())
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.RequestURI = r.URL.RequestURI()
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w.Result()
}

// RoundTrip carries a request to the handler, or does worse.
func (f *apiFront) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body.Close()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	writes := f.changes(r, body)
	f.mu.Lock()
	f.nall++
	f.times = append(f.times, time.Now())
	fault := f.fault
	if f.left == 0 {
		fault = apiFine
	} else if f.left > 0 && !slices.Contains([]apiFault{apiEmpty, apiLoop, apiStale, apiPartial, apiAlien}, fault) {
		f.left--
	}
	var held *heldRequest
	if writes {
		f.nwrite++
		held, f.holds = f.holds, nil
		if held == nil && fault == apiFine {
			f.taken = append(f.taken, captured{r.Clone(context.Background()), body})
		}
	}
	f.mu.Unlock()
	if held != nil {
		close(held.caught)
		go func() {
			<-held.release
			held.arrived <- f.serve(r, body).StatusCode
		}()
		fault = apiSilent
	}
	switch fault {
	case apiLost:
		f.serve(r, body)
		return nil, io.ErrUnexpectedEOF
	case apiDropped:
		return nil, errors.New("connection reset by peer")
	case apiSilent:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case apiHTML:
		return answer(r, 200, "text/html", "<html><body>Welcome to our hotel</body></html>"), nil
	case apiTruncated:
		a := f.serve(r, body)
		text, _ := io.ReadAll(a.Body)
		if len(text) < 2 {
			return nil, io.ErrUnexpectedEOF
		}
		return answer(r, a.StatusCode, a.Header.Get("Content-Type"), string(text[:len(text)/2])), nil
	case apiJunk:
		return answer(r, 200, "application/json", `{"hello": ["world", 1, null]}`), nil
	case api401, api403, api404, api422, api500:
		code := map[apiFault]int{api401: 401, api403: 403, api404: 404, api422: 422, api500: 500}[fault]
		return answer(r, code, "application/json", `{"message": "no"}`), nil
	case api429:
		a := answer(r, 429, "application/json", `{"message": "slow down"}`)
		a.Header.Set("Retry-After", "86400")
		return a, nil
	case api502:
		f.serve(r, body)
		return answer(r, 502, "text/html", "<html>Bad Gateway</html>"), nil
	case apiRedirect:
		a := answer(r, 302, "text/plain", "")
		a.Header.Set("Location", "http://192.0.2.1/")
		return a, nil
	}
	a := f.serve(r, body)
	a.Request = r
	return a, nil
}

func answer(r *http.Request, code int, kind, body string) *http.Response {
	return &http.Response{
		Status: http.StatusText(code), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}
