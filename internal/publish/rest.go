package publish

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// restOptions say how an API over HTTP is spoken to. base must be set.
type restOptions struct {
	base    string              // URL that paths are added to
	auth    func(*http.Request) // adds credentials
	secrets []string            // never shown, wherever an API repeats them
	rate    rate.Limit          // requests a second; 0: no limit
	burst   int                 // requests at once under rate; 0: one
	account string              // whoever speaks to the same server for the same account stands in one line with this one; empty: nobody does
	media   string              // media type that is asked for, sent and demanded of answers; empty: JSON, and answers may say what they like
	timeout time.Duration       // of one request in all; 0: 15 seconds
	explain func(*restAnswer) *Reason
	believe func(*http.Request, *restAnswer) *Reason // looks at every answer before anything else does; nil: all are believed
	client  http.RoundTripper                        // nil: plain HTTP(S) without a proxy
}

// restAnswer is an answer, for explain and believe.
type restAnswer struct {
	status int
	header http.Header
	body   []byte // at most maxAnswer
}

// rest speaks JSON to one API. It repeats nothing, follows no redirect and lets one Retry-After quiet everybody.
type rest struct {
	o      restOptions
	http   *http.Client
	server string // host of base, for reasons
	*line
}

// line is where the requests of one account wait for their turn.
type line struct {
	pace  *rate.Limiter
	quiet quiet
}

// turn waits until a request may be made, at most as long as a request may take. What waits has not been sent, and has its whole time yet.
func (l *line) turn(ctx context.Context, timeout time.Duration, server string) *Reason {
	if why := l.quiet.reason(server); why != nil {
		return why
	}
	if l.pace == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := l.pace.Wait(ctx); err != nil {
		return &Reason{
			Code: CodeRateLimited, Transient: true, Server: server, Text: "too many requests wait for their turn",
			Advice: "rota waits; raise min_gap if this goes on",
		}
	}
	return l.quiet.reason(server)
}

// quiet is a pause that an API asked for. Its zero value is none.
type quiet struct{ until atomic.Int64 } // unix nanoseconds

// ask begins a pause. One that was asked for until later stays.
func (q *quiet) ask(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	for was := q.until.Load(); was < until && !q.until.CompareAndSwap(was, until); was = q.until.Load() {
	}
}

// reason says how long the pause still is; nil: it is over.
func (q *quiet) reason(server string) *Reason {
	wait := time.Until(time.Unix(0, q.until.Load()))
	if wait <= 0 {
		return nil
	}
	return &Reason{
		Code: CodeRateLimited, Transient: true, After: min(wait, MaxAfter), Server: server,
		Text:   "the API asked for a pause until " + time.Unix(0, q.until.Load()).UTC().Format(time.TimeOnly) + " UTC",
		Advice: "rota waits; see whether somebody else uses the same account",
	}
}

// lines are the lines of accounts that are named, by server and account.
var lines sync.Map

// maxAnswer bounds an answer of an API, in bytes: a zone of 100,000 records fits.
const maxAnswer = 64 << 20

func newREST(o restOptions) (*rest, error) {
	u, err := url.Parse(o.base)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("the URL of the API is none: want https://HOST/PATH") // it may hold credentials
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the URL of the API at %s holds more than scheme, host and path; credentials have keys of their own", u.Host)
	}
	o.base = strings.TrimSuffix(o.base, "/")
	o.timeout = cmp.Or(o.timeout, 15*time.Second)
	if o.client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.Proxy = nil // what is written where is the configuration's word alone
		t.MaxResponseHeaderBytes = 64 << 10
		o.client = t
	}
	r := &rest{o: o, server: u.Host, http: &http.Client{
		Transport:     o.client,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	r.line = &line{}
	if o.rate > 0 {
		r.pace = rate.NewLimiter(o.rate, max(o.burst, 1))
	}
	if o.account != "" {
		shared, _ := lines.LoadOrStore(u.Host+" "+o.account, r.line)
		r.line = shared.(*line)
	}
	return r, nil
}

// get asks for a resource. path begins with a slash and is escaped; query may be nil.
func (r *rest) get(ctx context.Context, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return r.do(ctx, http.MethodGet, path, nil, out)
}

// do sends in as JSON, unless it is nil, and reads the JSON of a 2xx answer into out, unless that is nil. Its error is a *Reason. Of a
// method other than GET it is in doubt whenever the request may have been carried out.
func (r *rest) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return &Reason{Code: CodeInternal, Server: r.server, Text: fmt.Sprintf("cannot write the request: %v", err)}
		}
	}
	req, err := http.NewRequest(method, r.o.base+path, bytes.NewReader(body))
	if err != nil {
		return &Reason{Code: CodeInternal, Server: r.server, Text: r.clean(err.Error())}
	}
	if in != nil {
		req.Header.Set("Content-Type", cmp.Or(r.o.media, "application/json"))
	}
	return r.send(ctx, req, method != http.MethodGet, out)
}

// headed wants to see the header of the answer it is read from.
type headed interface {
	head(http.Header)
}

// send sends a request, whose path is below base. changes says that it is one that changes something.
func (r *rest) send(ctx context.Context, req *http.Request, changes bool, out any) error {
	if why := r.turn(ctx, r.o.timeout, r.server); why != nil {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req = req.WithContext(ctx)
	req.Header.Set("Accept", cmp.Or(r.o.media, "application/json"))
	req.Header.Set("User-Agent", "rota")
	if r.o.auth != nil {
		r.o.auth(req)
	}
	answer, err := r.http.Do(req)
	if err != nil {
		return r.unreachable(err, changes && sent.Load())
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return r.unreachable(err, changes)
	case len(body) > maxAnswer:
		return r.malformed(changes, "the answer is longer than %d MiB", maxAnswer>>20)
	}
	if r.o.believe != nil {
		if why := r.o.believe(req, &restAnswer{answer.StatusCode, answer.Header, body}); why != nil {
			why.Server, why.InDoubt = r.server, changes
			return why
		}
	}
	switch {
	case answer.StatusCode >= 300 && answer.StatusCode < 400:
		return r.malformed(changes, "the API redirects elsewhere (HTTP %d)", answer.StatusCode)
	case answer.StatusCode < 200 || answer.StatusCode >= 300:
		return r.refused(&restAnswer{answer.StatusCode, answer.Header, body}, changes)
	}
	if page(answer.Header, body) {
		return r.malformed(changes, "the answer is a web page, not the API's")
	}
	if out == nil {
		return nil
	}
	if h, ok := out.(headed); ok {
		h.head(answer.Header)
	}
	if kind := answer.Header.Get("Content-Type"); r.o.media != "" && !sameMedia(kind, r.o.media) {
		return r.malformed(changes, "the answer is %q, not %s", kind, r.o.media)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return r.malformed(changes, "the answer is not the JSON that is expected: %v", err)
	}
	return nil
}

// page reports whether an answer is HTML, as captive portals and tired proxies give.
func page(h http.Header, body []byte) bool {
	kind, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return kind == "text/html" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
}

// sameMedia compares media types with their parameters.
func sameMedia(a, b string) bool {
	kindA, paramsA, errA := mime.ParseMediaType(a)
	kindB, paramsB, errB := mime.ParseMediaType(b)
	return errA == nil && errB == nil && kindA == kindB && maps.Equal(paramsA, paramsB)
}

func (r *rest) malformed(doubt bool, format string, args ...any) *Reason {
	return &Reason{
		Code: CodeMalformed, Transient: true, InDoubt: doubt, Server: r.server, Text: r.clean(fmt.Sprintf(format, args...)),
		Advice: "check the URL of the API, and what lies between here and there",
	}
}

func (r *rest) unreachable(err error, doubt bool) *Reason {
	text := err.Error()
	if u, ok := errors.AsType[*url.Error](err); ok {
		text = u.Err.Error() // without the URL
	}
	if errors.Is(err, context.DeadlineExceeded) || timeout(err) {
		text = fmt.Sprintf("no whole answer within %v", r.o.timeout)
	}
	out := &Reason{
		Code: CodeUnreachable, Transient: true, InDoubt: doubt, Server: r.server, Text: r.clean(text), Advice: "check that the API can be reached from here",
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		out.Advice = "check the name in the URL and this host's resolver"
	}
	return out
}

// refused gives an HTTP status a code, a text and an advice. What the API says in words is added by explain.
func (r *rest) refused(a *restAnswer, changes bool) *Reason {
	out := &Reason{Server: r.server, Text: fmt.Sprintf("HTTP %d %s", a.status, http.StatusText(a.status))}
	switch {
	case a.status == http.StatusUnauthorized:
		out.Code, out.Advice = CodeDenied, "check the credentials: the API does not know them"
	case a.status == http.StatusForbidden:
		out.Code, out.Advice = CodeDenied, "check what the credentials may do: reading and writing DNS records of the zone is needed"
	case a.status == http.StatusNotFound:
		out.Code, out.Advice = CodeNoZone, "check that the zone is in this account; rota never creates zones"
	case a.status == http.StatusTooManyRequests:
		out.Code, out.Transient, out.Advice = CodeRateLimited, true, "rota waits; see whether somebody else uses the same account"
	case a.status >= 500:
		out.Code, out.Transient, out.InDoubt, out.Advice = CodeServfail, true, changes, "the trouble is on the API's side"
	default:
		out.Code, out.Advice = CodeUnsupported, "see what the API says"
	}
	if r.o.explain != nil {
		if why := r.o.explain(a); why != nil {
			why.Server = r.server
			why.Advice = cmp.Or(why.Advice, out.Advice)
			if why.Code == "" {
				why.Code, why.Transient, why.InDoubt = out.Code, out.Transient, out.InDoubt
			}
			out = why
		}
	}
	if after, ok := retryAfter(a.header, time.Now()); ok && out.Transient {
		out.After = after
	}
	if out.Code == CodeRateLimited {
		out.After = max(out.After, time.Second)
		r.quiet.ask(out.After)
	}
	out.Text = r.clean(out.Text)
	return out
}

// retryAfter reads when an API wants the next request (RFC 9110 §10.2.3), at most MaxAfter from now whatever it says.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(n, uint64(MaxAfter/time.Second))) * time.Second, true
	} else if errors.Is(err, strconv.ErrRange) {
		return MaxAfter, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), MaxAfter), true
	}
	return 0, false
}

// clean makes what came from outside fit for people, without secrets.
func (r *rest) clean(text string) string {
	for _, s := range r.o.secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return rota.CleanReason("%s", text)
}

// maxPages bounds how many pages one list has.
const maxPages = 2000

// pages calls each with the mark of a page, the empty one first, until it returns an empty mark. A list that comes by the same mark
// twice, or that does not end, is an error: what was not read whole is unknown.
func (r *rest) pages(each func(mark string) (next string, err error)) error {
	seen := map[string]bool{}
	mark := ""
	for range maxPages {
		next, err := each(mark)
		if err != nil || next == "" {
			return err
		}
		if seen[next] || next == mark {
			return r.malformed(false, "the pages of a list lead in a circle")
		}
		seen[next], mark = true, next
	}
	return r.malformed(false, "a list has more than %d pages", maxPages)
}
