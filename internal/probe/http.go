package probe

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of an HTTP answer.
const (
	maxHTTPHead  = 64 << 10 // bytes of all heads of one answer, informational ones included
	maxInterim   = 8        // informational answers (1xx) before the real one
	maxRedirects = 10
)

var (
	errHeadTooLarge = errors.New("head larger than 64 KiB")
	errInterim      = fmt.Errorf("more than %d informational answers", maxInterim)
)

// page is one request of an HTTP check: the check's own, or one that a redirect on the same endpoint led to.
type page struct {
	tls    bool
	method string
	host   string // Host header
	path   string // with query
	data   string // the request's body
	auth   string // Authorization; empty: none
	alien  bool   // of another scheme or name than the check's: its credentials stay behind
	own    bool   // the check's, and nothing in it depends on more than the address: its wording is kept
}

// prepareHTTP refuses what is no question of HTTP, and makes the rules on JSON ready.
func prepareHTTP(q *question) error {
	c := &q.check
	var errs []error
	if body, ok := methods[c.Method]; c.Method != "" && !ok {
		errs = append(errs, fmt.Errorf("method %q: want GET, HEAD, OPTIONS, POST, PUT or PATCH", c.Method))
	} else if c.Data != "" && !body {
		errs = append(errs, errors.New("data goes with POST, PUT or PATCH"))
	}
	if len(c.Data) > rota.MaxData {
		errs = append(errs, fmt.Errorf("data is longer than %d bytes", rota.MaxData))
	}
	if d := c.DrainHeader; d != "" && d != "-" && !token(d) {
		errs = append(errs, fmt.Errorf("drain_header %q is no name of a header field", d))
	}
	if c.HTTP2 && (c.Reuse || c.Watch) {
		errs = append(errs, errors.New("reuse and watch are for HTTP/1.1; leave out http2"))
	}
	errs = append(errs, authFault(c))
	if len(c.JSON) > rota.MaxJSONRules {
		errs = append(errs, fmt.Errorf("more than %d rules on JSON", rota.MaxJSONRules))
	}
	var rules []rota.ParsedJSONRule
	for _, r := range c.JSON {
		p, err := rota.ParseJSONRule(r)
		rules, errs = append(rules, p), append(errs, err)
	}
	if len(rules) > 0 && c.Method == http.MethodHead {
		errs = append(errs, errors.New("an answer to HEAD has no body that rules on JSON could hold for"))
	}
	q.ready = rules
	q.worded = c.Auth.Secret == "" && len(c.Path)+len(c.Host) < maxHead/2 && simple([]byte(c.Path)) &&
		!slices.ContainsFunc(c.Header, func(h rota.Header) bool { return strings.EqualFold(h.Name, "Host") })
	return errors.Join(errs...)
}

// authFault says why what a check has to say who asks cannot be said, or nil.
func authFault(c *rota.Check) error {
	twice := slices.ContainsFunc(c.Header, func(h rota.Header) bool { return strings.EqualFold(h.Name, "Authorization") })
	switch a := c.Auth; {
	case a == rota.Auth{}:
		return nil
	case a.Secret == "":
		return errors.New("auth names a user without a secret")
	case strings.Contains(a.User, ":") || !fieldValue(a.User):
		return fmt.Errorf("auth: user %q has a colon or a control character (RFC 7617 §2)", a.User)
	case twice:
		return errors.New("auth and a header Authorization: leave out one")
	}
	return nil
}

// probeHTTP asks one page, on a fresh connection unless the check has it otherwise, and judges the answer. It speaks HTTP/1.1 by itself over a connection it owns, so
// that one deadline and one byte limit hold for everything; net/http only parses.
func probeHTTP(ctx context.Context, r *run) finding {
	c := &r.q.check
	auth, bad := r.authorization()
	if bad != nil {
		return *bad
	}
	r.room = rooms.Get().(*room)
	defer func() { rooms.Put(r.room) }()
	p := page{tls: c.Kind == rota.KindHTTPS, method: c.Method, host: c.Host, path: c.Path, data: c.Data, auth: auth, own: r.q.worded}
	if p.method == "" {
		p.method = http.MethodGet
	}
	if p.path == "" {
		p.path = "/"
	}
	if p.host == "" {
		p.host = hostPort(r.addr, c.Port, p.tls)
	}
	for hops := 0; ; hops++ {
		f, next := r.fetch(ctx, p)
		if next == nil {
			return f
		}
		if hops == maxRedirects {
			return down(rota.ClassRedirect, "more than %d redirects", maxRedirects)
		}
		r.trace.begin("redirect")(next.path)
		p = *next
	}
}

// hostPort is the Host header of an endpoint without a name. A zone id is local to this machine and is not sent (RFC 6874 §1).
func hostPort(addr netip.Addr, port uint16, tls bool) string {
	b := make([]byte, 0, 64)
	if addr = addr.WithZone(""); port != defaultPort(tls) {
		return string(netip.AddrPortFrom(addr, port).AppendTo(b))
	}
	if addr.Is4() {
		return string(addr.AppendTo(b))
	}
	return string(append(addr.AppendTo(append(b, '[')), ']'))
}

func defaultPort(tls bool) uint16 {
	if tls {
		return 443
	}
	return 80
}

// fetch asks one page. It returns the page to ask next when the answer is a redirect that may be followed.
func (r *run) fetch(ctx context.Context, p page) (finding, *page) {
	if k, release := r.resume(ctx, p); k != nil {
		a := r.exchange(k.conn, p)
		// A server may close a connection that waits at any time (RFC 9112 §9.5), also while the request is on its way.
		again := a.err != nil && !a.begun && !timedOut(a.err) && ctx.Err() == nil
		f, next := finding{}, (*page)(nil)
		if !again {
			f, next = r.settle(ctx, p, a)
		}
		release()
		if again || next != nil || !a.whole || !r.keep(ctx, k, k.conn, k.link) {
			k.close()
		}
		if !again {
			return f, next
		}
		r.trace.begin("again")("the kept connection had ended")
	}
	raw, release, err := r.connect(ctx)
	if err != nil {
		return r.fault(ctx, "connect", err), nil
	}
	outlives := false
	defer func() {
		release()
		if !outlives {
			_ = raw.Close()
		}
	}()
	var c net.Conn = raw
	if p.tls {
		t, bad := r.handshake(ctx, raw)
		if bad != nil {
			return *bad, nil
		}
		c = t
	}
	exchange := r.exchange
	if r.q.check.HTTP2 {
		exchange = r.exchange2
	}
	a := exchange(c, p)
	f, next := r.settle(ctx, p, a)
	if a.whole && next == nil {
		release()
		outlives = r.keep(ctx, nil, c, raw)
	}
	return f, next
}

// settle notes and judges what came back.
func (r *run) settle(ctx context.Context, p page, a answer) (f finding, next *page) {
	r.trace.Received, r.trace.ReceivedSize = firstLines(r.conceal(a.head)), len(a.body)
	if r.seat != nil && r.q.size(a) > heavy {
		f, next = r.weighAside(ctx, p, a)
	} else {
		f, next = r.weigh(ctx, p, a)
	}
	return r.discreet(f, a), next
}

// size is how many bytes of an answer are looked through.
func (q *question) size(a answer) int {
	n := len(a.body)
	for _, h := range q.check.ExpectHeader {
		for _, v := range a.header.Values(h.Name) {
			n += len(v)
		}
	}
	return n
}

// weighAside is weigh for an answer that takes its time.
func (r *run) weighAside(ctx context.Context, p page, a answer) (f finding, next *page) {
	r.seat.aside(func() { f, next = r.weigh(ctx, p, a) })
	return f, next
}

// exchange asks p over HTTP/1.1.
func (r *run) exchange(c net.Conn, p page) answer {
	request, shown, note := r.words(p)
	r.trace.Sent = shown
	begun := time.Now()
	_, err := c.Write(request)
	sent := time.Now()
	r.trace.step("request", begun, sent, note)
	if err != nil && timedOut(err) {
		return answer{err: err, unsent: true}
	}
	var came time.Time
	a := readAnswer(c, p.method, r.q.maxBody, r.room, func() { came = time.Now() })
	r.answered(sent, came, a)
	return a
}

// timedOut reports whether a request could not be sent in time. For any other error there may be an answer: a server may answer and close
// before it has read the request, and what it said counts more than the broken pipe.
func timedOut(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// weigh judges what came back. It returns the page to ask next when that is a redirect that may be followed.
func (r *run) weigh(ctx context.Context, p page, a answer) (finding, *page) {
	if a.err != nil {
		return r.answerFault(ctx, a), nil
	}
	if f, leaves := r.q.leaves(a); leaves {
		return f, nil
	}
	if r.q.check.Follow && redirects(a.status) && a.value("Location") != "" {
		if r.repeats(a) {
			return down(rota.ClassRedirect, "redirect with the check's credential"), nil
		}
		return r.redirect(p, a)
	}
	return r.q.judge(a), nil
}

// leaves says what an endpoint announces that is about to leave: by a field of its answer, whatever its status.
func (q *question) leaves(a answer) (finding, bool) {
	name := cmp.Or(q.check.DrainHeader, rota.DefaultDrainHeader)
	if name == "-" {
		return finding{}, false
	}
	for _, v := range a.values(name) {
		switch strings.ToLower(v) {
		case "0", "false", "no":
		default:
			return draining("status %d with %s: %s", a.status, name, v), true
		}
	}
	return finding{}, false
}

// fields are those of the page's request, Host first. Accept-Encoding asks for no compression; an answer that is compressed all the same
// is judged as it came, never unpacked.
func (r *run) fields(p page) []rota.Header {
	fields := make([]rota.Header, 1, len(r.q.check.Header)+6)
	fields[0] = rota.Header{Name: "Host", Value: p.host}
	for _, d := range []rota.Header{
		{Name: "User-Agent", Value: r.p.userAgent},
		{Name: "Accept", Value: "*/*"},
		{Name: "Accept-Encoding", Value: "identity"},
	} {
		if !slices.ContainsFunc(r.q.check.Header, func(h rota.Header) bool { return strings.EqualFold(h.Name, d.Name) }) {
			fields = append(fields, d)
		}
	}
	for _, h := range r.q.check.Header {
		switch strings.ToLower(h.Name) {
		case "host":
			fields[0].Value = h.Value
			continue
		case "connection", "content-length", "transfer-encoding":
			continue // these are about this connection, not about the question
		}
		if p.alien && secret(h.Name) {
			continue
		}
		fields = append(fields, h)
	}
	if p.auth != "" {
		fields = append(fields, rota.Header{Name: "Authorization", Value: p.auth})
	}
	if hasBody(p.method) {
		fields = append(fields, rota.Header{Name: "Content-Length", Value: strconv.Itoa(len(p.data))})
	}
	return fields
}

// request is the page's request on the wire.
func (r *run) request(p page) []byte {
	b := make([]byte, 0, 512)
	add := func(words ...string) {
		for _, w := range words {
			b = append(b, w...)
		}
	}
	add(p.method, " ", p.path, " HTTP/1.1\r\n")
	for _, f := range r.fields(p) {
		add(f.Name, ": ", f.Value, "\r\n")
	}
	if !r.keeps() {
		add("Connection: close\r\n")
	}
	add("\r\n", p.data)
	return b
}

// methods are those of a check, and whether their requests have a body. A probe comes every few seconds and from many places: the
// others remove (DELETE), open tunnels (CONNECT) or repeat credentials (TRACE).
var methods = map[string]bool{
	http.MethodGet: false, http.MethodHead: false, http.MethodOptions: false,
	http.MethodPost: true, http.MethodPut: true, http.MethodPatch: true,
}

func hasBody(method string) bool { return methods[method] }

// answer is what came back, as far as it came.
type answer struct {
	status int
	header http.Header // nil: the fields are in the head, which is whole
	head   []byte      // raw, at most maxHead bytes of it
	body   []byte      // at most maxBody bytes
	begun  bool        // at least one byte came
	inBody bool        // the head was whole
	unsent bool        // the request was not sent whole
	whole  bool        // nothing more comes, and the connection stays open (RFC 9112 §9.3)
	err    error
}

// answered notes how an answer came to what was sent: its first byte, if it has one, and the rest.
func (r *run) answered(sent, came time.Time, a answer) {
	now := time.Now()
	if !a.begun {
		r.trace.step("first byte", sent, now, "none")
		came = now
	} else {
		r.trace.step("first byte", sent, came, "")
	}
	r.trace.step("body", came, now, strconv.Itoa(len(a.body))+" bytes")
}

// readers are used again: a probe needs one for a moment.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}

// readAnswer reads one final HTTP/1.x answer to a request of method from c; begun is called at the first byte. The answer is good until
// the room is used again.
func readAnswer(c io.Reader, method string, maxBody int, room *room, begun func()) answer {
	a, stream := plainAnswer(c, method, maxBody, room, begun)
	if stream == nil {
		return a
	}
	a, in := answerHead(stream, method, func() {})
	if in == nil {
		return a
	}
	defer func() {
		in.rest.Reset(nil)
		readers.Put(in.rest)
	}()
	body, err := io.ReadAll(io.LimitReader(in, int64(maxBody)))
	a.body = body
	if err != nil && len(body) < maxBody {
		a.err = err
	}
	a.whole = err == nil && len(body) < maxBody && in.lasts && in.rest.Buffered() == 0
	return a
}

// content is the body of an answer.
type content struct {
	io.Reader
	rest  *bufio.Reader // what came behind it
	lasts bool          // the target means to keep the connection
}

// answerHead reads heads until one is final and returns the body that follows it: nil when there is none to read, because of a.err or because
// the protocol was switched.
func answerHead(c io.Reader, method string, begun func()) (answer, *content) {
	var a answer
	in := &headReader{r: c, left: maxHTTPHead, keep: maxHead}
	br := readers.Get().(*bufio.Reader)
	br.Reset(in)
	fail := func(err error) (answer, *content) {
		a.head = in.kept
		switch {
		case in.exceeded:
			err = errHeadTooLarge
		case in.err != nil && in.err != io.EOF:
			err = in.err // the parser takes what came before it for a whole line
		}
		a.err = err
		return a, nil
	}
	if _, err := br.Peek(1); err != nil {
		return fail(err)
	}
	a.begun = true
	begun()
	request := &http.Request{Method: method}
	var response *http.Response
	for interim := 0; ; interim++ {
		var err error
		if response, err = http.ReadResponse(br, request); err != nil {
			return fail(err)
		}
		if response.ProtoMajor != 1 {
			return fail(fmt.Errorf("answer of protocol %s", escape([]byte(response.Proto), 20)))
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			break
		}
		if interim == maxInterim {
			return fail(errInterim)
		}
	}
	a.status, a.header, a.inBody, a.head = response.StatusCode, response.Header, true, in.kept
	in.unbound() // from here on the limit is of body bytes kept; framing is bounded by the parser and time by the deadline
	if a.status == http.StatusSwitchingProtocols {
		return a, nil
	}
	return a, &content{response.Body, br, !response.Close && response.ProtoAtLeast(1, 1)}
}

// headReader lets at most left bytes through until it is unbound, and keeps the first of them.
type headReader struct {
	r        io.Reader
	left     int
	keep     int
	kept     []byte
	exceeded bool
	free     bool
	err      error // the last
}

func (h *headReader) unbound() { h.free = true }

func (h *headReader) Read(b []byte) (int, error) {
	if h.free {
		return h.r.Read(b)
	}
	if h.left <= 0 {
		h.exceeded = true
		return 0, errHeadTooLarge
	}
	n, err := h.r.Read(b[:min(len(b), h.left)])
	h.err = err
	h.left -= n
	if room := h.keep - len(h.kept); room > 0 {
		h.kept = append(h.kept, b[:min(n, room)]...)
	}
	return n, err
}

// answerFault judges an answer that ended in an error.
func (r *run) answerFault(ctx context.Context, a answer) finding {
	switch {
	case a.unsent:
		return r.fault(ctx, "request", a.err)
	case errors.Is(a.err, errStreamReset):
		return down(rota.ClassReset, "answer: %v", a.err)
	case errors.Is(a.err, errHeadTooLarge), errors.Is(a.err, errInterim):
		return down(rota.ClassProtocol, "answer: %v", a.err)
	case !a.begun && errors.Is(a.err, io.EOF):
		return down(rota.ClassReset, "closed by the target before an answer")
	case a.inBody && (errors.Is(a.err, io.EOF) || errors.Is(a.err, io.ErrUnexpectedEOF)) && ctx.Err() == nil:
		return down(rota.ClassProtocol, "body: the target closed before its end")
	case a.inBody:
		return r.fault(ctx, "body", a.err)
	case a.begun && (errors.Is(a.err, io.EOF) || errors.Is(a.err, io.ErrUnexpectedEOF)) && ctx.Err() == nil:
		return down(rota.ClassProtocol, "answer: cut off in the head")
	}
	return r.fault(ctx, "answer", a.err)
}

// judge says whether a whole answer is the expected one: status first, then header fields, then the body.
func (q *question) judge(a answer) finding {
	ok := false
	for _, s := range q.status {
		ok = ok || (s.From <= a.status && a.status <= s.To)
	}
	if !ok {
		return down(rota.ClassStatus, "status %d, want %s", a.status, ranges(q.status))
	}
	for i, h := range q.check.ExpectHeader {
		values := a.values(h.Name)
		found := len(values) > 0 && q.expectHeader[i] == nil
		for _, v := range values {
			found = found || (q.expectHeader[i] != nil && q.expectHeader[i].MatchString(v))
		}
		switch {
		case found:
		case len(values) == 0:
			return down(rota.ClassHeader, "status %d without header %s", a.status, h.Name)
		default:
			return down(rota.ClassHeader, "header %s does not match %q", h.Name, h.Value)
		}
	}
	if q.body != nil && !q.body.Match(a.body) {
		return down(rota.ClassBody, "body does not match %q", q.check.Body)
	}
	if rules, _ := q.ready.([]rota.ParsedJSONRule); len(rules) > 0 {
		if err := rota.JudgeJSON(a.body, rules); err != nil {
			if len(a.body) == q.maxBody {
				return down(rota.ClassBody, "%v in its first %d bytes; more is read with max_body", err, q.maxBody)
			}
			return down(rota.ClassBody, "%v", err)
		}
	}
	return finding{status: rota.Up, class: rota.ClassOK, reason: q.said(a.status)}
}

// said is the reason of a success: the same string for all targets that answer with the same status, as most do.
func (q *question) said(status int) string {
	last := q.lastSaid.Load()
	if last == nil || last.status != status {
		last = &said{status, "status " + strconv.Itoa(status)}
		q.lastSaid.Store(last)
	}
	return last.text
}

// said is a status and its words.
type said struct {
	status int
	text   string
}

func ranges(rs []rota.StatusRange) string {
	words := make([]string, len(rs))
	for i, r := range rs {
		words[i] = r.String()
	}
	return strings.Join(words, ", ")
}

func redirects(status int) bool {
	switch status {
	case 301, 302, 303, 307, 308:
		return true
	}
	return false
}

// redirect says where a redirect leads: to a page of the same endpoint, or off it, which is never followed. Same means http or https but
// never down from https, the host that was asked (or the endpoint's address) and the endpoint's port; the connection is to the
// endpoint's address anyway.
func (r *run) redirect(from page, a answer) (finding, *page) {
	scheme := "http"
	if from.tls {
		scheme = "https"
	}
	base := &url.URL{Scheme: scheme, Host: from.host}
	if u, err := url.ParseRequestURI(from.path); err == nil {
		base.Path, base.RawQuery = u.Path, u.RawQuery
	}
	location := a.value("Location")
	to, err := base.Parse(location)
	if err != nil {
		return down(rota.ClassRedirect, "status %d with a malformed Location", a.status), nil
	}
	off := func(why string) (finding, *page) {
		return down(rota.ClassRedirect, "redirect off the endpoint (%s): %s", why, to.Redacted()), nil
	}
	if to.Scheme != "https" && (from.tls || to.Scheme != "http") {
		return off("scheme") // also from https to http: header fields of the check would go out in clear, to whoever is on the way
	}
	next := page{
		tls: to.Scheme == "https", method: from.method, host: from.host, path: to.RequestURI(), data: from.data, auth: from.auth,
		alien: from.alien,
	}
	if next.method != http.MethodHead && a.status < 307 {
		next.method, next.data = http.MethodGet, ""
	}
	if strings.EqualFold(to.Host, from.host) && to.Scheme == scheme {
		return finding{}, &next // as it was asked, whatever port its Host header claims
	}
	port := defaultPort(next.tls)
	if s := to.Port(); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return off("port")
		}
		port = uint16(n)
	}
	if port != r.q.check.Port {
		return off("port")
	}
	asked := from.host
	if h, _, err := net.SplitHostPort(asked); err == nil {
		asked = h
	}
	host := to.Hostname()
	same := strings.EqualFold(host, trimBrackets(asked))
	if !same {
		if addr, err := netip.ParseAddr(host); err != nil || addr.Unmap().WithZone("") != r.addr.WithZone("") {
			return off("host")
		}
	}
	if !same || next.tls != from.tls {
		next.alien, next.auth = true, ""
	}
	next.host = to.Host
	return finding{}, &next
}
