package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeAPI is a provider with books of its own, which a test may look into, edit, break and hold. It holds the zone example.test. with
// the records of apiForeign, and checks at every request what must always hold: credentials are right, a zone is listed before it is
// written, what is foreign is not touched, and no RRset whose name was served is ever gone between two requests.
type fakeAPI interface {
	// backend makes a Backend that speaks to it; each call another one, as another process would.
	backend(t testing.TB) Backend
	// records returns what the provider's name servers would answer, sorted: "NAME TTL IN TYPE DATA", names absolute and in lower case,
	// TXT in quotes.
	records(zone string) []string
	// edit changes the books as a person on the provider's page does: lines are those of records.
	edit(zone string, add, remove []string)
	// fail breaks the next n requests, or all until apiFine when n is below 0. It returns false when this API cannot fail so.
	fail(f apiFault, n int) bool
	// hold keeps the next request that would change something from arriving.
	hold() *heldRequest
	// replay sends all requests again that changed something since the last call, oldest first and without the newest, which would only
	// say what is, and says how many there were.
	replay() int
	// writes counts the requests that would change something and arrived; requests counts all that were sent.
	writes() int
	requests() int
	// secret is what must never be shown. A fake may also have front() *apiFront, which has each request looked at, and atApex() int,
	// how many addresses of a family the apex can have.
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
	apiLost      apiFault = "carried out, the answer is lost" // of requests that change something
	apiDropped   apiFault = "the connection ends, nothing is carried out"
	apiSilent    apiFault = "no answer, nothing is carried out"
	apiHTML      apiFault = "HTTP 200 with a web page"
	apiTruncated apiFault = "carried out, the JSON is cut in two"
	apiJunk      apiFault = "HTTP 200 with JSON of another kind"
	api401       apiFault = "HTTP 401"
	api403       apiFault = "HTTP 403"
	api404       apiFault = "HTTP 404"
	api422       apiFault = "HTTP 422"
	api429       apiFault = "HTTP 429 with Retry-After 86400"
	api500       apiFault = "HTTP 500, nothing is carried out"
	api502       apiFault = "HTTP 502 with a web page, carried out" // of requests that change something
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
	release chan struct{} // closed when it may arrive
}

// arrive lets the request arrive and returns how it was answered.
func (h *heldRequest) arrive() int {
	close(h.release)
	return <-h.arrived // at once: nobody else is asked
}

// apiFront stands before the handler of a provider: it plays faults, holds and captures requests. It is the RoundTripper that a
// backend speaks through, without a network, so that it also works in virtual time.
type apiFront struct {
	handler http.Handler
	changes func(r *http.Request, body []byte) bool // whether a request would change something
	after   func()                                  // looks at the books when a request may have changed them; nil: nobody does

	mu     sync.Mutex // guards what follows
	fault  apiFault
	left   int
	holds  *heldRequest
	taken  []captured
	nwrite int
	nall   int
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
	for i, c := range taken {
		if i < len(taken)-1 {
			f.serve(c.r, c.body)
		}
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
	if f.after != nil && f.changes(r, body) {
		f.after()
	}
	return w.Result()
}

func (f *apiFront) front() *apiFront { return f }

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
	fault := f.fault
	if f.left == 0 || !writes && (fault == apiLost || fault == api502) {
		fault = apiFine
	} else if f.left > 0 && !slices.Contains([]apiFault{apiEmpty, apiLoop, apiStale, apiPartial, apiAlien}, fault) {
		f.left--
	}
	var held *heldRequest
	if writes {
		f.nwrite++
		held, f.holds = f.holds, nil
		if held == nil {
			f.taken = append(f.taken, captured{r.Clone(context.Background()), body})
		}
	}
	f.mu.Unlock()
	if held != nil {
		close(held.caught)
		go func() {
			select {
			case <-held.release:
				held.arrived <- f.serve(r, body).StatusCode
			case <-time.After(10 * time.Minute): // the test has failed and left it
			}
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

// answer makes an answer of the front's own.
func answer(r *http.Request, code int, kind, body string) *http.Response {
	return &http.Response{
		Status: http.StatusText(code), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

// apiConformance is what every Backend of a provider's API must do. The fakes live in virtual time; real servers cannot.
func apiConformance(t *testing.T, virtual bool, start func(testing.TB) fakeAPI) {
	scenarios := []struct {
		name string
		run  func(*testing.T, *apiTarget)
	}{
		{"lifecycle", apiLifecycle},
		{"a Write held", apiWriteHeld},
		{"a request held", apiRequestHeld},
		{"replay", apiReplay},
		{"late request of our own", apiLateRequest},
		{"done, and the answer lost", apiAnswerLost},
		{"hand edit", apiHandEdit},
		{"other owner", apiOtherOwner},
		{"given up", apiGivenUp},
		{"names in the way", apiInTheWay},
		{"types and TTLs", apiTypesAndTTLs},
		{"1,000 names", apiManyNames},
		{"trouble", apiTrouble},
		{"a pause asked for", apiPause},
		{"plans only", apiPlanOnly},
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			if !virtual {
				t.Parallel()
				s.run(t, newAPITarget(t, start))
				return
			}
			synctest.Test(t, func(t *testing.T) { s.run(t, newAPITarget(t, start)) })
		})
	}
}

// apiTarget is an API under test and what is logged meanwhile.
type apiTarget struct {
	fakeAPI
	atomic bool
	t      testing.TB

	mu     sync.Mutex // guards what follows
	log    bytes.Buffer
	served map[string]bool // names that had an address or a CNAME of ours
}

func newAPITarget(t testing.TB, start func(testing.TB) fakeAPI) *apiTarget {
	x := &apiTarget{fakeAPI: start(t), t: t, served: map[string]bool{}}
	x.atomic = x.backend(t).Capabilities().Atomic
	if f, ok := x.fakeAPI.(interface{ front() *apiFront }); ok {
		f.front().after = x.look
	}
	t.Cleanup(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if t.Failed() {
			t.Logf("log:\n%s", x.log.String())
		}
		if s := x.secret(); s == "" || strings.Contains(x.log.String(), s) {
			t.Errorf("a secret was logged")
		}
	})
	return x
}

// Write takes the log.
func (x *apiTarget) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.log.Write(b)
}

// look holds the books against what must always be so: foreign records are as they were, and a name that was served still is.
func (x *apiTarget) look() {
	now := x.records("example.test.")
	x.mu.Lock()
	defer x.mu.Unlock()
	has := map[string]bool{}
	for _, line := range now {
		f := strings.SplitN(line, " ", 5)
		if f[3] == "A" || f[3] == "AAAA" || f[3] == "CNAME" {
			has[f[0]] = true
		}
	}
	for n := range x.served {
		// Record by record, a name is bare for a moment between its addresses and its CNAME.
		if !has[n] && x.atomic {
			x.t.Errorf("%s was left without records between two requests", n)
		}
	}
	for n := range has {
		if !strings.HasSuffix(n, "_rota.example.test.") {
			x.served[n] = true
		}
	}
	for _, line := range apiForeign {
		if !slices.Contains(now, line) {
			x.t.Errorf("a foreign record is gone: %s", line)
		}
	}
}

// within waits for what should happen soon.
func within(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatalf("never came true: %s", what)
	}
}

// options are those of a publisher that logs to x. Its pace is the usual one in virtual time, and a fast one with real servers.
func (x *apiTarget) options(w *world) Options {
	o := quick(w, x.backend(x.t))
	o.Log = slog.New(slog.NewTextHandler(x, nil))
	return o
}

// data lists the data of one RRset in the books, sorted.
func (x *apiTarget) data(name, kind string) []string {
	var out []string
	for _, line := range x.records("example.test.") {
		if f := strings.SplitN(line, " ", 5); f[0] == name && f[3] == kind {
			out = append(out, f[4])
		}
	}
	slices.Sort(out)
	return out
}

func (x *apiTarget) holds(name, kind string, want ...string) func() bool {
	slices.Sort(want)
	return func() bool { return slices.Equal(x.data(name, kind), want) }
}

// ours are the records beside apiForeign, without rota's own of the fence.
func (x *apiTarget) ours() []string {
	return slices.DeleteFunc(x.records("example.test."), func(line string) bool {
		name, _, _ := strings.Cut(line, " ")
		return slices.Contains(apiForeign, line) || strings.HasSuffix(name, "_rota.example.test.")
	})
}

func (x *apiTarget) server() bool { return x.backend(x.t).Capabilities().Fence == FenceServer }

// apiService is a service with a TTL that every provider takes.
func apiService(name string, addrs ...string) rota.Service {
	v := service(name, addrs...)
	v.TTL = 3600
	return v
}

func apiLifecycle(t *testing.T, x *apiTarget) {
	www := apiService("www.example.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	w := newWorld(t, www)
	p := run(t, x.options(w), 7)
	w.up("192.0.2.1", "192.0.2.2", "2001:db8::1")
	eventually(t, "all addresses", func() bool {
		return x.holds("www.example.test.", "A", "192.0.2.1", "192.0.2.2")() && x.holds("www.example.test.", "AAAA", "2001:db8::1")()
	})
	w.down("192.0.2.1")
	eventually(t, "removal", x.holds("www.example.test.", "A", "192.0.2.2"))
	w.up("192.0.2.1")
	eventually(t, "return", x.holds("www.example.test.", "A", "192.0.2.1", "192.0.2.2"))
	w.respec(func(s *rota.Spec) { s.Services[0].TTL = 7200 })
	eventually(t, "TTL", func() bool {
		return slices.Contains(x.ours(), "www.example.test. 7200 IN A 192.0.2.2") &&
			slices.Contains(x.ours(), "www.example.test. 7200 IN AAAA 2001:db8::1")
	})
	apexes := []string{"192.0.2.1", "192.0.2.2"}
	if f, ok := x.fakeAPI.(interface{ atApex() int }); ok {
		apexes = apexes[:f.atApex()]
	}
	apex := apiService("example.test", apexes...)
	app := apiService("app.example.test", "192.0.2.1", "2001:db8::1")
	app.Safety.OnAllDown, app.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w.respec(func(s *rota.Spec) { s.Services = append(s.Services, app, apex) })
	w.up("192.0.2.1", "2001:db8::1")
	eventually(t, "the apex", x.holds("example.test.", "A", apexes...))
	eventually(t, "app", x.holds("app.example.test.", "AAAA", "2001:db8::1"))
	w.down("192.0.2.1", "2001:db8::1")
	eventually(t, "fallback", x.holds("app.example.test.", "CNAME", "sorry.example.test."))
	w.up("192.0.2.1", "2001:db8::1")
	eventually(t, "back from the fallback", func() bool {
		return x.holds("app.example.test.", "A", "192.0.2.1")() && x.holds("app.example.test.", "CNAME")()
	})

	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) && reasonCode(p.Publisher) == "" })
	writes := x.writes()
	for range 5 {
		w.apply(rota.Event{Kind: rota.EventTick})
	}
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if now := x.writes(); now != writes {
		t.Errorf("%d requests changed something while nothing changed", now-writes)
	}
}

// apiWriteHeld has one Backend write what it planned before another took the zone.
func apiWriteHeld(t *testing.T, x *apiTarget) {
	zone := rota.Name("example.test.")
	a, b := x.backend(t), x.backend(t)
	none := rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}
	first := Fence{}.take("test", 1)
	write := func(by Backend, old, new rota.RRset, changes ...rota.Change) error {
		_, err := by.Write(t.Context(), Batch{Zone: zone, Fence: rota.Change{Old: old, New: new}, Changes: changes})
		return err
	}
	if err := write(a, none, first.RRset(zone)); err != nil {
		t.Fatal(err)
	}
	second := first.take("test", 2)
	if err := write(b, first.RRset(zone), second.RRset(zone)); err != nil {
		t.Fatal(err)
	}
	before := x.records("example.test.")
	www := rota.RRset{Name: "new.example.test.", Type: rota.TypeA}
	with := www
	with.TTL, with.Data = 3600, []string{"192.0.2.1"}
	writes := x.writes()
	if err := write(a, first.RRset(zone), first.Next().RRset(zone), rota.Change{Old: www, New: with}); !errors.Is(err, ErrMoved) {
		t.Errorf("the Write of a deposed leader says %v, want ErrMoved", err)
	}
	if err := write(a, second.RRset(zone), second.Next().RRset(zone), rota.Change{Old: with, New: www}); !errors.Is(err, ErrMoved) {
		t.Errorf("a Write planned on records that are not there says %v, want ErrMoved", err)
	}
	if diff := cmp.Diff(before, x.records("example.test.")); diff != "" || x.writes() != writes {
		t.Errorf("%d requests changed something:\n%s", x.writes()-writes, diff)
	}
}

// apiRequestHeld is the race of DynamoDB of October 2025: leader A's request is held on its way, B leads and writes, then it arrives.
func apiRequestHeld(t *testing.T, x *apiTarget) {
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	a := newWorld(t, apiService("app.example.test", addrs...)).up(addrs...)
	o := x.options(a)
	o.Confirm = func(context.Context, uint64) error {
		if a.State().Lead().Node == "b" {
			return errors.New("b leads")
		}
		return nil
	}
	pa := run(t, o, 5)
	eventually(t, "A's write", func() bool {
		return settled(pa.Publisher, a.State().At()) && x.holds("app.example.test.", "A", addrs...)()
	})
	held := x.hold()
	a.down("192.0.2.1")
	within(t, "the request is held", held.caught)
	b := newWorld(t, apiService("app.example.test", addrs...)).up(addrs...)
	ob := x.options(b)
	ob.Audit = time.Second
	pb := run(t, ob, 6)
	a.apply(rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: "b", Term: 6}})
	eventually(t, "B's round", func() bool { return settled(pb.Publisher, b.State().At()) && reasonCode(pb.Publisher) == "" })
	within(t, "A's end", pa.done)
	if !errors.Is(pa.err, ErrFenced) {
		t.Errorf("A ends with %v, want ErrFenced", pa.err)
	}
	before := x.ours()
	status := held.arrive()
	if x.server() {
		if diff := cmp.Diff(before, x.ours()); status < 300 || diff != "" {
			t.Errorf("A's request arrived late and was answered %d:\n%s", status, diff)
		}
	}
	b.down("192.0.2.2")
	eventually(t, "B's state", func() bool {
		return settled(pb.Publisher, b.State().At()) && x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.3")()
	})
}

// apiGivenUp has a person release the zone: the fence goes, and what was served stays.
func apiGivenUp(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1")).up("192.0.2.1")
	p := run(t, x.options(w), 1)
	eventually(t, "the write", func() bool { return settled(p.Publisher, w.State().At()) && len(x.data("app.example.test.", "A")) == 1 })
	w.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test."})
	eventually(t, "the end of it", func() bool { return reasonCode(p.Publisher) == CodeReleased && x.holds("_rota.example.test.", "TXT")() })
	w.down("192.0.2.1")
	time.Sleep(time.Second)
	if !x.holds("app.example.test.", "A", "192.0.2.1")() {
		t.Errorf("app is %v", x.data("app.example.test.", "A"))
	}
}

// apiReplay sends every request again after the DNS has gone full circle, so that the old values are back.
func apiReplay(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := x.options(w)
	o.Audit = time.Second
	p := run(t, o, 1)
	eventually(t, "first write", x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2"))
	w.down("192.0.2.1")
	eventually(t, "removal", x.holds("app.example.test.", "A", "192.0.2.2"))
	w.up("192.0.2.1")
	eventually(t, "return", x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	before := x.records("example.test.")
	if n := x.replay(); n < 3 {
		t.Fatalf("%d requests were captured", n)
	}
	if x.server() {
		if diff := cmp.Diff(before, x.records("example.test.")); diff != "" {
			t.Errorf("the replay changed the zone:\n%s", diff)
		}
	}
	at := time.Now()
	eventually(t, "the state after a replay", func() bool {
		return settled(p.Publisher, at) && x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2")()
	})
}

// apiLateRequest holds a request, lets the decision be taken back, and then lets the request arrive.
func apiLateRequest(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := x.options(w)
	o.Audit = time.Second
	p := run(t, o, 1)
	eventually(t, "first write", func() bool {
		return settled(p.Publisher, w.State().At()) && x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2")()
	})
	held := x.hold()
	w.down("192.0.2.1")
	within(t, "the request is held", held.caught)
	w.up("192.0.2.1")
	at := time.Now()
	eventually(t, "settled", func() bool { return settled(p.Publisher, at) && reasonCode(p.Publisher) == "" })
	status := held.arrive()
	if x.server() && (status < 300 || !x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2")()) {
		t.Errorf("a late request was answered %d, and app is %v", status, x.data("app.example.test.", "A"))
	}
	eventually(t, "the state", x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2"))
}

func apiAnswerLost(t *testing.T, x *apiTarget) {
	for _, f := range []apiFault{apiLost, api502} {
		w := newWorld(t, apiService("app.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		p := run(t, x.options(w), 1)
		eventually(t, "first write", func() bool {
			return settled(p.Publisher, w.State().At()) && x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2")()
		})
		if !x.fail(f, 1) {
			t.Fatalf("the fake cannot play %q", f)
		}
		w.down("192.0.2.2")
		eventually(t, "the change", x.holds("app.example.test.", "A", "192.0.2.1"))
		at := time.Now()
		w.apply(rota.Event{Kind: rota.EventTick})
		eventually(t, "settled", func() bool { return settled(p.Publisher, at) && reasonCode(p.Publisher) == "" })
		x.fail(apiFine, 0)
		p.stop()
	}
}

func apiHandEdit(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := x.options(w)
	o.Audit = time.Second
	p := run(t, o, 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) && len(x.data("app.example.test.", "A")) == 2 })
	time.Sleep(time.Second)
	x.edit("example.test.", []string{"app.example.test. 3600 IN A 203.0.113.66", "mine.example.test. 3600 IN A 203.0.113.66"},
		[]string{"app.example.test. 3600 IN A 192.0.2.1"})
	eventually(t, "repair", x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.2"))
	if !x.holds("mine.example.test.", "A", "203.0.113.66")() {
		t.Error("a record that a person added at another name is gone")
	}
	eventually(t, "the repair is counted", func() bool { return p.Status().Zones[0].Repairs == 1 })
}

func apiOtherOwner(t *testing.T, x *apiTarget) {
	a := newWorld(t, apiService("app.example.test", "192.0.2.1")).up("192.0.2.1")
	pa := run(t, x.options(a), 1)
	eventually(t, "A's write", func() bool {
		return settled(pa.Publisher, a.State().At()) && len(x.data("app.example.test.", "A")) == 1
	})
	before, writes := x.records("example.test."), x.writes()
	b := newWorld(t, apiService("app.example.test", "198.51.100.1")).up("198.51.100.1")
	o := x.options(b)
	o.Owner = named("somebody else")
	pb := run(t, o, 9)
	eventually(t, "a conflict", func() bool { return reasonCode(pb.Publisher) == CodeConflict })
	if diff := cmp.Diff(before, x.records("example.test.")); diff != "" || x.writes() != writes {
		t.Errorf("the zone changed:\n%s", diff)
	}
}

func apiInTheWay(t *testing.T, x *apiTarget) {
	www := apiService("www.example.test", "192.0.2.3")
	www.Safety.OnAllDown, www.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w := newWorld(t, apiService("odd.example.test", "192.0.2.1"), apiService("host.sub.example.test", "192.0.2.1"), www,
		apiService("*.wild.example.test", "198.51.100.80"), apiService("a.wild.example.test", "192.0.2.1"))
	w.up("192.0.2.1", "192.0.2.3", "198.51.100.80")
	p := run(t, x.options(w), 1)
	eventually(t, "the names that are free", func() bool {
		return x.holds("www.example.test.", "A", "192.0.2.3")() && x.holds("a.wild.example.test.", "A", "192.0.2.1")()
	})
	codes := func() map[rota.Name]Code {
		out := map[rota.Name]Code{}
		for _, r := range p.Status().Zones[0].Reasons {
			out[r.Name] = r.Code
		}
		return out
	}
	want := map[rota.Name]Code{"odd.example.test.": CodeCNAME, "host.sub.example.test.": CodeDelegated}
	eventually(t, "reasons", func() bool { return cmp.Equal(codes(), want) })
	w.down("192.0.2.3") // its fallback cannot stand beside the TXT at www
	want["www.example.test."] = CodeOther
	eventually(t, "a reason for the fallback", func() bool { return cmp.Equal(codes(), want) })
	if !x.holds("www.example.test.", "A", "192.0.2.3")() {
		t.Errorf("www is %v", x.data("www.example.test.", "A"))
	}
}

// apiTypesAndTTLs writes what a provider does not take, past the plan that would not ask for it.
func apiTypesAndTTLs(t *testing.T, x *apiTarget) {
	zone := rota.Name("example.test.")
	b := x.backend(t)
	none := rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}
	f := Fence{}.take("test", 1)
	low := rota.RRset{Name: "low.example.test.", Type: rota.TypeA, TTL: 1, Data: []string{"192.0.2.1"}}
	absent := rota.RRset{Name: low.Name, Type: low.Type}
	if _, err := b.Write(t.Context(), Batch{
		Zone: zone, Fence: rota.Change{Old: none, New: f.RRset(zone)}, Changes: []rota.Change{{Old: absent, New: low}},
	}); err != nil {
		t.Fatalf("a TTL of one second: %v", err)
	}
	if !x.holds("low.example.test.", "A", "192.0.2.1")() {
		t.Errorf("low is %v", x.data("low.example.test.", "A"))
	}
	caps := b.Capabilities()
	for _, line := range x.ours() {
		if s := strings.Fields(line); s[1] != fmt.Sprint(max(1, caps.MinTTL)) {
			t.Errorf("%s, want the TTL 1 or the least that is taken, %d", line, caps.MinTTL)
		}
	}
	odd := rota.Type(99)
	if caps.Takes(odd) {
		return
	}
	spf := rota.RRset{Name: "odd-type.example.test.", Type: odd, TTL: 3600, Data: []string{`"x"`}}
	writes := x.writes()
	_, err := b.Write(t.Context(), Batch{
		Zone: zone, Fence: rota.Change{Old: f.RRset(zone), New: f.Next().RRset(zone)},
		Changes: []rota.Change{{Old: rota.RRset{Name: spf.Name, Type: spf.Type}, New: spf}},
	})
	if r := ReasonOf(err); err == nil || r.Code != CodeUnsupported || r.InDoubt || x.writes() != writes {
		t.Errorf("a type that is not taken: %v", err)
	}
}

func apiManyNames(t *testing.T, x *apiTarget) {
	const names = 1000
	caps := x.backend(t).Capabilities()
	if !caps.Atomic {
		t.Skip("record by record takes a request for each")
	}
	var services []rota.Service
	for i := range names {
		services = append(services, apiService(fmt.Sprintf("s%04d.example.test", i), "192.0.2.1"))
	}
	w := newWorld(t, services...).up("192.0.2.1")
	p := run(t, x.options(w), 1)
	eventually(t, "all written", func() bool { return settled(p.Publisher, w.State().At()) && len(x.ours()) == names })
	if n := x.requests(); n > 60 {
		t.Errorf("%d requests for %d names", n, names)
	}
}

// apiTrouble has the API answer badly for some time while verdicts change: each kind of trouble has a reason that says what it is,
// nothing is deleted, requests do not multiply, and at the end the newest state is written.
func apiTrouble(t *testing.T, x *apiTarget) {
	want := map[apiFault][]Code{
		apiDropped: {CodeUnreachable}, apiSilent: {CodeUnreachable}, apiHTML: {CodeMalformed}, apiTruncated: {CodeMalformed},
		apiJunk: {CodeMalformed}, api401: {CodeDenied}, api403: {CodeDenied}, api404: {CodeNoZone}, api422: {CodeUnsupported},
		api500: {CodeServfail}, api502: nil, apiRedirect: {CodeMalformed}, apiLoop: {CodeMalformed},
		apiEmpty: {CodeMoving}, apiPartial: nil, apiStale: nil, apiAlien: nil,
	}
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	w := newWorld(t, apiService("app.example.test", addrs...)).up(addrs...)
	p := run(t, x.options(w), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) && len(x.data("app.example.test.", "A")) == 3 })
	for _, f := range []apiFault{
		apiDropped, apiSilent, apiHTML, apiTruncated, apiJunk, api401, api403, api404, api422, api500, api502, apiRedirect, apiLoop, apiEmpty,
		apiPartial, apiStale, apiAlien,
	} {
		if !x.fail(f, -1) {
			continue
		}
		before := x.requests()
		w.down("192.0.2.3")
		if codes := want[f]; codes != nil {
			eventually(t, "a reason for: "+string(f), func() bool { return reasonCode(p.Publisher) != "" })
			if got := reasonCode(p.Publisher); !slices.Contains(codes, got) {
				t.Errorf("%s: the reason is %s, want one of %v: %v", f, got, codes, p.Status().Zones[0].Reasons)
			}
		}
		for range 10 {
			w.down("192.0.2.1").up("192.0.2.1")
			time.Sleep(30 * time.Millisecond)
		}
		if n := x.requests() - before; n > 100 {
			t.Errorf("%s: %d requests within 10 changes", f, n)
		}
		for _, z := range p.Status().Zones {
			for _, r := range z.Reasons {
				if strings.Contains(r.Error(), x.secret()) {
					t.Errorf("%s: a reason shows a secret", f)
				}
			}
		}
		w.down("192.0.2.2").up("192.0.2.3")
		x.fail(apiFine, 0)
		eventually(t, "the newest state after: "+string(f), func() bool {
			return x.holds("app.example.test.", "A", "192.0.2.1", "192.0.2.3")() && reasonCode(p.Publisher) == ""
		})
		w.up("192.0.2.2")
		eventually(t, "all addresses after: "+string(f), func() bool {
			return x.holds("app.example.test.", "A", addrs...)() && settled(p.Publisher, w.State().At())
		})
	}
}

// apiPause has the API ask for a day without requests, for ten minutes.
func apiPause(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, x.options(w), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) && len(x.data("app.example.test.", "A")) == 2 })
	if !x.fail(api429, -1) {
		return
	}
	before := x.requests()
	w.down("192.0.2.1")
	eventually(t, "a reason", func() bool { return reasonCode(p.Publisher) == CodeRateLimited })
	if r := p.Status().Zones[0].Reasons[0]; r.After <= 0 || r.After > MaxAfter || !r.Transient {
		t.Errorf("the reason is %+v", r)
	}
	if !apiVirtual(t) {
		return
	}
	time.Sleep(10 * time.Minute)
	if n := x.requests() - before; n > 4 {
		t.Errorf("%d requests within ten minutes", n)
	}
	x.fail(apiFine, 0)
	for range 60 {
		time.Sleep(10 * time.Second)
	}
	if !x.holds("app.example.test.", "A", "192.0.2.2")() || reasonCode(p.Publisher) != "" {
		t.Errorf("after the pause app is %v, %s", x.data("app.example.test.", "A"), reasonCode(p.Publisher))
	}
}

// apiVirtual reports whether the test lives in virtual time, which begins in the year 2000.
func apiVirtual(testing.TB) bool { return time.Now().Year() < 2020 }

// apiPlanOnly lets a publisher run dry, and asks for its plan: neither may write.
func apiPlanOnly(t *testing.T, x *apiTarget) {
	w := newWorld(t, apiService("app.example.test", "192.0.2.1")).up("192.0.2.1")
	o := x.options(w)
	o.DryRun = true
	p := run(t, o, 1)
	eventually(t, "rounds", func() bool { return len(p.Status().Zones) == 1 && !p.Status().Zones[0].LastTry.IsZero() })
	w.down("192.0.2.1").up("192.0.2.1")
	time.Sleep(300 * time.Millisecond)
	plan, err := p.Plan(t.Context())
	if err != nil || len(plan.Zones) != 1 || len(plan.Zones[0].Changes) != 1 {
		t.Errorf("plan %+v, %v", plan, err)
	}
	if x.writes() != 0 {
		t.Errorf("%d requests would have changed something", x.writes())
	}
}
