package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// kind is how checks of one kind are asked.
type kind struct {
	// probe works until its context ends and returns what it found; it starts no goroutine that outlives it and reads no more than the
	// check allows.
	probe func(context.Context, *run) finding
	// prepare makes ready what all probes of a check share, and puts it into question.ready. It may be nil.
	prepare  func(*question) error
	portless bool
	// seated: it waits for nothing but by its seat, its context's deadline or the connection that run.dial gave it, and computes little
	// between two waits, so that it needs no goroutine.
	seated bool
}

// kinds holds the kinds that are probed.
var kinds = map[rota.Kind]kind{
	rota.KindHTTP:  {probe: probeHTTP, prepare: prepareHTTP, seated: true},
	rota.KindHTTPS: {probe: probeHTTP, prepare: prepareHTTP},
	rota.KindTCP:   {probe: probeTCP, seated: true},
	rota.KindTLS:   {probe: probeTLS},
	rota.KindICMP:  {probe: probeICMP, portless: true, seated: true},

	rota.KindNodeExporter: {probe: probeExporter, prepare: prepareExporter, seated: true},
	rota.KindDNS:          {probe: probeDNS, prepare: prepareDNS},
	rota.KindGRPC:         {probe: probeGRPC, prepare: prepareGRPC},
	rota.KindExec:         {probe: probeExec, prepare: prepareExec, portless: true},
	rota.KindAgentCheck:   {probe: probeAgentCheck, seated: true},
}

// question is a check made ready to be asked; targets that ask the same thing share it.
type question struct {
	key          string // rota.Check.Key
	check        rota.Check
	status       []rota.StatusRange
	body         *regexp.Regexp
	expect       *regexp.Regexp
	expectHeader []*regexp.Regexp // beside check.ExpectHeader; nil: presence is enough
	maxBody      int
	ready        any   // what the kind prepared
	unusable     error // why it can never be asked
	worded       bool  // its HTTP request is the same for all addresses, but for the host
	wordings     wordings
	lastSaid     atomic.Pointer[said]

	material atomic.Pointer[material] // of handshakes, as last read
}

// newQuestion compiles c. What the configuration should have refused becomes question.unusable, and then every probe is unknown
// with that reason.
func newQuestion(c rota.Check) *question {
	d := rota.DefaultTiming()
	if c.Interval <= 0 {
		c.Interval = d.Interval
	}
	if c.FastInterval <= 0 || c.FastInterval > c.Interval {
		c.FastInterval = min(d.FastInterval, c.Interval)
	}
	if c.SlowInterval <= 0 {
		c.SlowInterval = d.SlowInterval
	}
	c.SlowInterval = max(c.SlowInterval, c.Interval)
	if c.Timeout <= 0 {
		c.Timeout = d.Timeout
	}
	c.Fall, c.Rise, c.OK = max(c.Fall, 1), max(c.Rise, 1), max(c.OK, 1)
	c.Count = min(max(c.Count, 1), rota.MaxCount)
	q := &question{check: c, status: c.Status, maxBody: c.MaxBody}
	if len(q.status) == 0 {
		q.status = []rota.StatusRange{{From: 200, To: 399}}
	}
	if q.maxBody <= 0 {
		q.maxBody = rota.DefaultMaxBody
	}
	q.maxBody = min(q.maxBody, rota.LimitMaxBody)
	var errs []error
	compile := func(field, pattern string) *regexp.Regexp {
		if pattern == "" {
			return nil
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return re
	}
	q.body = compile("body", c.Body)
	q.expect = compile("expect", c.Expect)
	for _, h := range c.ExpectHeader {
		q.expectHeader = append(q.expectHeader, compile("expect_header "+h.Name, h.Value))
	}
	for _, h := range c.Header {
		if !token(h.Name) || !fieldValue(h.Value) {
			errs = append(errs, fmt.Errorf("header %q is not a valid header field", h.Name))
		}
	}
	switch k := kinds[c.Kind]; {
	case k.probe == nil:
		errs = append(errs, fmt.Errorf("unknown kind %q", c.Kind))
	case !k.portless && c.Port == 0:
		errs = append(errs, fmt.Errorf("no port"))
	case k.prepare != nil:
		if err := k.prepare(q); err != nil {
			errs = append(errs, err)
		}
	}
	if c.ClientKey != "" && c.ClientCert == "" {
		errs = append(errs, errors.New("client_key without client_cert"))
	}
	if strings.ContainsFunc(c.Host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/@\?#`, r) }) {
		errs = append(errs, fmt.Errorf("host %q is not valid", c.Host))
	}
	for _, b := range []byte(c.Path) {
		if b <= ' ' || b == 0x7f {
			errs = append(errs, fmt.Errorf("path %q has a space or control character; escape it as %%20", c.Path))
			break
		}
	}
	q.unusable = errors.Join(errs...)
	return q
}

// token reports whether s is a token of RFC 9110 §5.6.2, as methods and field names are.
func token(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// fieldValue reports whether s may be the value of a header field (RFC 9110 §5.5): in particular that it cannot begin another.
func fieldValue(s string) bool {
	for _, c := range []byte(s) {
		if (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// run is one probe under way.
type run struct {
	p         *Prober
	q         *question
	addr      netip.Addr
	parent    context.Context // ends when the probe is no longer wanted; the probe's own context ends at the deadline too
	ping      *pinger
	seat      seat // where the probe runs; nil: it has a goroutine
	confirms  bool // the watched connection has ended, and this probe sees whether the target has
	trace     *Trace
	memory    *memory // of the target, for this probe alone; nil beside the schedule
	wantsCert bool    // the server asked for a client certificate
	sentCert  bool    // and got one

	room       *room    // of the answer, while an HTTP probe runs
	credential []string // what the check says who asks with, in the forms that must not be shown
}

// memory is what a target's probe leaves for the next one. At most one probe of a target is in flight, and it alone touches it.
type memory struct {
	sample any   // of kinds that compare two samples
	kept   *kept // a connection that is still open

	engine engine // holds what is kept; nil: nothing is
	broke  func() // says that a watched connection has ended
}

// observe runs one probe of q at addr on the caller's goroutine, whole: the deadline, the judgement of an overrun, the trace.
func (p *Prober) observe(parent context.Context, id rota.TargetID, addr netip.Addr, q *question, m *memory, ping *pinger) *Trace {
	return p.observeIn(parent, job{id, addr, q, m}, ping, nil)
}

// observeIn does so on a seat.
func (p *Prober) observeIn(parent context.Context, j job, ping *pinger, seat seat) *Trace {
	q := j.q
	t := traces.Get().(*Trace)
	*t = Trace{Target: j.id, Kind: q.check.Kind, Address: j.addr, Port: q.check.Port, Started: time.Now(), Steps: t.Steps[:0]}
	r := &run{p: p, q: q, addr: dialable(j.addr), parent: parent, ping: ping, seat: seat, trace: t, memory: j.memory}
	var f finding
	switch err := p.forbidden(r.addr); {
	case parent.Err() != nil:
		f = unknown(rota.ClassCancelled, "cancelled")
	case q.unusable != nil:
		f = unknown(rota.ClassNone, "the check cannot be asked: %v", q.unusable)
	case err != nil:
		f = unknown(rota.ClassPermission, "%v", err)
	case seat != nil:
		f = r.ask(seat.span(q.check.Timeout))
	default:
		ctx, cancel := context.WithTimeout(parent, q.check.Timeout)
		f = r.ask(ctx)
		cancel()
	}
	f.sure = f.sure || f.status == rota.Down && r.confirms
	end := time.Now()
	took := end.Sub(t.Started)
	if f.status == rota.Down && took > q.check.Timeout+overrun {
		f = unknown(rota.ClassResource, "this process was held up: a probe limited to %v took %v", q.check.Timeout, took.Round(100*time.Millisecond))
	}
	t.Observation = rota.Observation{
		Status: f.status, Class: f.class, Reason: f.reason, Sure: f.sure, Weight: f.weight, At: end, Took: took,
	}
	t.lacks = f.lacks
	return t
}

// ask runs the check. A bug that one target's answer brings out is this vantage's own failure, and no reason to stop serving the others.
func (r *run) ask(ctx context.Context) (f finding) {
	defer func() {
		if p := recover(); p != nil {
			r.p.log.Error("a probe met a bug", "target", r.trace.Target, "panic", p, "stack", string(debug.Stack()))
			f = unknown(rota.ClassResource, "the probe met a bug in rota: %v", p)
		}
	}()
	return kinds[r.q.check.Kind].probe(ctx, r)
}

// overrun is how long after its deadline a failed probe may end and still count. A later end means that this process was stopped or
// starved, so the failure says nothing about the target.
const overrun = 500 * time.Millisecond

// dialable is addr as the kernel wants it: IPv4 in its own family (RFC 4291 §2.5.5.2 forms are the same host).
func dialable(addr netip.Addr) netip.Addr { return addr.Unmap() }

// forbidden says why addr is never probed, or nil.
func (p *Prober) forbidden(addr netip.Addr) error {
	switch {
	case !addr.IsValid():
		return errors.New("the target has no address")
	case addr.IsUnspecified():
		return fmt.Errorf("%v is no endpoint's address", addr)
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is a multicast or broadcast address; probe one host", addr)
	}
	for _, f := range p.forbid {
		if f.Contains(addr.WithZone("")) {
			return fmt.Errorf("probing %v is forbidden (%v)", addr, f)
		}
	}
	return nil
}

// dial connects to the literal address of the target, never to a name and never by a proxy, and puts the total deadline on the
// connection. The stop function must be called when done; it closes the connection.
func (r *run) dial(ctx context.Context) (net.Conn, func(), error) {
	c, release, err := r.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c, func() { release(); _ = c.Close() }, nil
}

// connect is dial for a connection that may outlive the probe: release takes the deadline off it, and does not close it.
func (r *run) connect(ctx context.Context) (c net.Conn, release func(), err error) {
	done := r.trace.begin("connect")
	hold := !r.q.listens() // who waits for the target's first word would wait for the ACK
	to := netip.AddrPortFrom(r.addr, r.q.check.Port)
	if r.seat != nil {
		c, err = r.seat.dial(to, hold)
	} else {
		d := net.Dialer{KeepAlive: -1}
		if hold {
			d.Control = holdAck
		}
		c, err = d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	}
	if err != nil {
		done("failed")
		return nil, nil, err
	}
	done(ends(c))
	return c, r.bind(ctx, c), nil
}

// bind puts the probe's deadline and its end on a connection.
func (r *run) bind(ctx context.Context, c net.Conn) (release func()) {
	if r.seat != nil {
		r.seat.take(c)
		return func() {}
	}
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// ends is both ends of a connection, for a trace.
func ends(c net.Conn) string {
	if w, ok := c.(interface{ ends() string }); ok {
		return w.ends()
	}
	return c.LocalAddr().String() + " to " + c.RemoteAddr().String()
}

// listens reports whether the target speaks first.
func (q *question) listens() bool {
	switch q.check.Kind {
	case rota.KindTCP:
		return q.expect != nil && q.check.Send == ""
	case rota.KindAgentCheck:
		return q.check.Send == ""
	}
	return false
}

// probeTCP connects and, when the check says so, sends and expects. A mere connect ends in RST, so that it leaves no TIME_WAIT
// behind at either end.
func probeTCP(ctx context.Context, r *run) finding {
	r.resume(ctx, page{}) // what was watched gives way to what is asked now
	c, release, err := r.connect(ctx)
	if err != nil {
		return r.fault(ctx, "connect", err)
	}
	f := up("connected")
	mere := r.q.check.Send == "" && r.q.expect == nil
	if !mere {
		f = r.talk(ctx, c)
	}
	release()
	if f.status == rota.Up && r.q.check.Watch && r.keep(ctx, nil, c, c) {
		return f
	}
	if c, ok := c.(interface{ SetLinger(int) error }); ok && mere {
		_ = c.SetLinger(0)
	}
	_ = c.Close()
	return f
}

// talk writes Send and reads until Expect matches, the target closes, MaxBody bytes have come or the deadline has passed.
func (r *run) talk(ctx context.Context, c net.Conn) finding {
	if s := r.q.check.Send; s != "" {
		done := r.trace.begin("send")
		r.trace.Sent = escape([]byte(s), maxHead)
		if _, err := c.Write([]byte(s)); err != nil {
			done("failed")
			return r.fault(ctx, "send", err)
		}
		done("")
	}
	if r.q.expect == nil {
		return up("connected and sent")
	}
	done := r.trace.begin("expect")
	m := matcher{re: r.q.expect, limit: r.q.maxBody, aside: r.aside}
	err := m.read(c)
	r.trace.Received, r.trace.ReceivedSize = escape(m.got, maxHead), len(m.got)
	done(fmt.Sprintf("%d bytes", len(m.got)))
	switch {
	case m.found:
		return up("answer matches")
	case err == nil:
		return down(rota.ClassBody, "expect: no match in the first %d bytes", len(m.got))
	case len(m.got) == 0:
		return r.fault(ctx, "expect", err)
	}
	if f := r.fault(ctx, "expect", err); f.status == rota.Unknown || f.class == rota.ClassTLS {
		return f
	}
	return down(rota.ClassBody, "expect: the answer does not match")
}

// matcher reads a stream until a pattern matches. Every arrival is tried while that is cheap; a target that drips bytes to make the
// matching quadratic is tried only when its answer has grown by a quarter, and once more at the end.
type matcher struct {
	re    *regexp.Regexp
	limit int
	aside func(n int, f func())
	got   []byte
	found bool
	spent int // bytes matched against so far
	tried int // len(got) at the last try
}

func (m *matcher) try(last bool) bool {
	n := len(m.got)
	if !last && m.spent > 1<<20 && n < m.tried+m.tried/4 {
		return false
	}
	m.spent += n
	m.tried = n
	m.aside(n, func() { m.found = m.re.Match(m.got) })
	return m.found
}

// read returns nil when the pattern matched or the limit was reached, else the error that ended the stream.
func (m *matcher) read(c net.Conn) error {
	buf := make([]byte, min(m.limit, 4<<10))
	for {
		n, err := c.Read(buf[:min(len(buf), m.limit-len(m.got))])
		m.got = append(m.got, buf[:n]...)
		full := len(m.got) >= m.limit
		if (n > 0 || err != nil) && m.try(err != nil || full) {
			return nil
		}
		if err != nil {
			return err
		}
		if full {
			return nil
		}
	}
}

// firstLines returns the head of an HTTP message for a trace.
func firstLines(b []byte) string {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		b = b[:i]
	}
	return maskHead(escape(b, maxHead))
}
