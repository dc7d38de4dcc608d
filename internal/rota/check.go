package rota

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind names what a check does; internal/probe holds one function a kind.
type Kind string

// The kinds of checks this version probes.
const (
	KindHTTP  Kind = "http"
	KindHTTPS Kind = "https"
	KindTCP   Kind = "tcp"
	KindTLS   Kind = "tls"
	KindICMP  Kind = "icmp"

	KindNodeExporter Kind = "node_exporter" // a machine's own numbers, from its Prometheus node_exporter
	KindDNS          Kind = "dns"           // a name server's answer
	KindGRPC         Kind = "grpc"          // grpc.health.v1
	KindExec         Kind = "exec"          // a command's exit code
	KindAgentCheck   Kind = "agent-check"   // HAProxy's agent-check
	KindAgent        Kind = "agent"         // nobody asks: the endpoint, or who watches it, says how it is
)

// Kinds lists the kinds in the order documents name them.
func Kinds() []Kind {
	return []Kind{
		KindHTTP, KindHTTPS, KindTCP, KindTLS, KindICMP,
		KindNodeExporter, KindDNS, KindGRPC, KindExec, KindAgentCheck, KindAgent,
	}
}

// Verify says how the certificate of an endpoint is judged.
type Verify string

// The ways to judge a certificate.
const (
	VerifyStrict Verify = "strict" // trusted by the system's roots and valid for the host name
	VerifyCA     Verify = "ca"     // trusted, whatever its name
	VerifyNone   Verify = "none"   // not judged, but for CertDays
)

// Timing is how often and how patiently a check asks, and how many answers change a mind.
type Timing struct {
	Interval     time.Duration `json:"interval_ns"`      // between probes while nothing is pending
	FastInterval time.Duration `json:"fast_interval_ns"` // between probes while a change of mind is pending
	SlowInterval time.Duration `json:"slow_interval_ns"` // between probes of what has been down for SlowAfter, or is disabled; 0: DefaultTiming's; never shorter than Interval
	Timeout      time.Duration `json:"timeout_ns"`       // total, from the first packet to the last byte
	Fall         int           `json:"fall"`             // failures that make a target down; at least 1
	Rise         int           `json:"rise"`             // successes in a row that bring it up; at least 1
	OK           int           `json:"ok"`               // successes in a row that forget earlier failures; at least 1
}

// SlowAfter is how long a target has been down when it is probed at SlowInterval only.
const SlowAfter = 10 * time.Minute

// DefaultTiming is what a check has that says nothing.
func DefaultTiming() Timing {
	return Timing{
		Interval: 10 * time.Second, FastInterval: time.Second, SlowInterval: 30 * time.Second, Timeout: 3 * time.Second,
		Fall: 3, Rise: 2, OK: 3,
	}
}

// StatusRange is an inclusive range of HTTP status codes.
type StatusRange struct {
	From int `json:"from"`
	To   int `json:"to"`
}

func (r StatusRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(r.From)
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// Header is one header field of an HTTP request or of what is expected in the answer.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"` // in expectations a regular expression (RE2); empty means present
}

// Place says where a secret or a certificate is found on the machine that needs it: file:PATH, env:NAME or credential:NAME (of systemd).
// A check holds places and never what is there. A machine reads only places that its own configuration names.
type Place string

// Auth is how an HTTP request or a gRPC call says who asks. The zero value says nothing.
type Auth struct {
	User   string `json:"user,omitempty"` // with Secret the password: Basic (RFC 7617); without a user: Bearer (RFC 6750)
	Secret Place  `json:"secret,omitempty"`
}

// JSONRule is what a value in a JSON answer has to be.
type JSONRule struct {
	Pointer string `json:"pointer"` // of the value (RFC 6901); empty: the whole document
	Want    string `json:"want"`    // a JSON value that it must equal, or a comparison of numbers such as "< 90"
}

// Rule is what a number of a machine has to keep: see ParseRule.
type Rule struct {
	Name string `json:"name"` // cpu, mem_free, load1, net(IFACE), or a metric with its labels
	Want string `json:"want"` // such as "< 90%"
}

// DefaultDrainHeader is the field of an HTTP answer by which an endpoint says that it is about to leave.
const DefaultDrainHeader = "Rota-Drain"

// Check says what to ask of an endpoint. Which fields count depends on Kind; the others are zero.
type Check struct {
	Name string `json:"name"` // as configured; not part of the question
	Kind Kind   `json:"kind"`
	Port uint16 `json:"port,omitempty"` // all kinds but icmp, exec and agent
	Timing

	// http, https
	Method       string        `json:"method,omitempty"` // empty: GET
	Path         string        `json:"path,omitempty"`   // with query; empty: /
	Host         string        `json:"host,omitempty"`   // Host header and, when ServerName is empty, SNI; empty: the address
	Header       []Header      `json:"header,omitempty"` // sent
	Status       []StatusRange `json:"status,omitempty"` // empty: 200-399
	ExpectHeader []Header      `json:"expect_header,omitempty"`
	Body         string        `json:"body,omitempty"`     // regular expression (RE2) that the first MaxBody bytes must match
	Follow       bool          `json:"follow,omitempty"`   // follow redirects to the same address and port, never elsewhere
	MaxBody      int           `json:"max_body,omitempty"` // bytes read of an answer; 0: DefaultMaxBody

	Data        string     `json:"data,omitempty"`         // sent as the request's body, at most MaxData bytes
	JSON        []JSONRule `json:"json,omitempty"`         // all have to hold
	Auth        Auth       `json:"auth,omitzero"`          // grpc too
	HTTP2       bool       `json:"http2,omitempty"`        // by ALPN, and on http by prior knowledge (RFC 9113 §3.3); never a version lower
	DrainHeader string     `json:"drain_header,omitempty"` // empty: DefaultDrainHeader; "-": none
	Reuse       bool       `json:"reuse,omitempty"`        // one connection serves many probes
	Watch       bool       `json:"watch,omitempty"`        // tcp too: a connection is held between probes, and its end is looked into at once

	// https, tls, grpc
	ServerName string `json:"server_name,omitempty"` // SNI and the name the certificate must carry; empty: Host
	Verify     Verify `json:"verify,omitempty"`      // empty: strict
	CertDays   int    `json:"cert_days,omitempty"`   // fewer days left than this is down
	ClientCert Place  `json:"client_cert,omitempty"` // PEM: chain
	ClientKey  Place  `json:"client_key,omitempty"`  // PEM: private key
	CA         Place  `json:"ca,omitempty"`          // PEM: authorities that are trusted instead of the system's

	// node_exporter, with Path and MaxBody
	Rules   []Rule `json:"rules,omitempty"`    // all have to hold
	OnError Status `json:"on_error,omitempty"` // what a broken exporter counts as: Unknown or Down
	NoPing  bool   `json:"no_ping,omitempty"`  // the exporter is asked although the machine does not answer ICMP

	// dns, with Expect for the records as text, one a line
	Query     string `json:"query,omitempty"`      // name asked for, with its last dot
	QueryType string `json:"query_type,omitempty"` // empty: A
	RCode     string `json:"rcode,omitempty"`      // accepted; empty: NOERROR
	Transport string `json:"transport,omitempty"`  // udp or tcp; empty: udp
	Recurse   bool   `json:"recurse,omitempty"`    // RD is set

	// grpc
	Service string `json:"service,omitempty"` // asked of; empty: the server as a whole
	TLS     bool   `json:"tls,omitempty"`

	// exec
	Command []string `json:"command,omitempty"` // no shell; run only where the machine's own configuration has the same

	// agent
	MaxAge time.Duration `json:"max_age_ns,omitempty"` // what was said longer ago is unknown; 0: DefaultMaxAge

	// tcp, tls
	Send   string `json:"send,omitempty"`   // bytes written after connecting
	Expect string `json:"expect,omitempty"` // regular expression (RE2) that the first MaxBody bytes read must match

	// icmp
	Count int     `json:"count,omitempty"` // echo requests a probe, 1 to MaxCount; 0: 1
	Loss  float64 `json:"loss,omitempty"`  // a share of lost requests of this much or more is down, 0 to 1; 0: only all lost is down
}

// Bounds of a check.
const (
	DefaultMaxBody = 64 << 10 // bytes of an answer read when the check says nothing
	LimitMaxBody   = 4 << 20  // the most a check may ask for
	MaxCount       = 20       // echo requests a probe
	MaxData        = 4 << 10  // bytes of a request's body
)

// Key is the question without the address: checks with equal keys ask the same thing in the same way, and services whose
// targets have equal keys and addresses share one probe. It is readable and leaves out what is at its default.
func (c Check) Key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s://{}", c.Kind)
	if c.Port != 0 {
		fmt.Fprintf(&b, ":%d", c.Port)
	}
	b.WriteString(c.path())
	sep := byte('#')
	add := func(key, value string) {
		b.WriteByte(sep)
		sep = '&'
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(strconv.Quote(value))
	}
	text := func(key, value string) {
		if value != "" {
			add(key, value)
		}
	}
	number := func(key string, value int) {
		if value != 0 {
			add(key, strconv.Itoa(value))
		}
	}
	if c.Method != "GET" {
		text("method", c.Method)
	}
	text("host", c.Host)
	for _, h := range c.Header {
		add("header", h.key())
	}
	if !slices.Equal(c.Status, []StatusRange{{200, 399}}) {
		for _, r := range c.Status {
			add("status", r.String())
		}
	}
	for _, h := range c.ExpectHeader {
		add("expect_header", h.key())
	}
	text("body", c.Body)
	if c.Follow {
		add("follow", "true")
	}
	if c.MaxBody != DefaultMaxBody {
		number("max_body", c.MaxBody)
	}
	if c.ServerName != c.Host {
		text("server_name", c.ServerName)
	}
	if c.Verify != VerifyStrict {
		text("verify", string(c.Verify))
	}
	number("cert_days", c.CertDays)
	text("send", c.Send)
	text("expect", c.Expect)
	text("data", c.Data)
	for _, r := range c.JSON {
		add("json", r.Pointer+" "+r.Want)
	}
	text("user", c.Auth.User)
	text("secret", string(c.Auth.Secret))
	flag := func(key string, set bool) {
		if set {
			add(key, "true")
		}
	}
	flag("http2", c.HTTP2)
	if c.DrainHeader != DefaultDrainHeader {
		text("drain_header", c.DrainHeader)
	}
	flag("reuse", c.Reuse)
	flag("watch", c.Watch)
	text("client_cert", string(c.ClientCert))
	text("client_key", string(c.ClientKey))
	text("ca", string(c.CA))
	for _, r := range c.Rules {
		add("rule", r.Name+" "+r.Want)
	}
	if c.OnError != Unknown {
		add("on_error", c.OnError.String())
	}
	flag("no_ping", c.NoPing)
	text("query", c.Query)
	if c.QueryType != "A" {
		text("query_type", c.QueryType)
	}
	if c.RCode != "NOERROR" {
		text("rcode", c.RCode)
	}
	if c.Transport != "udp" {
		text("transport", c.Transport)
	}
	flag("recurse", c.Recurse)
	text("service", c.Service)
	flag("tls", c.TLS)
	for _, w := range c.Command {
		add("command", w)
	}
	if c.MaxAge != DefaultMaxAge && c.MaxAge != 0 {
		add("max_age", c.MaxAge.String())
	}
	if c.Count != 1 {
		number("count", c.Count)
	}
	if c.Loss != 0 {
		add("loss", strconv.FormatFloat(c.Loss, 'g', -1, 64))
	}
	t, d := c.Timing, DefaultTiming()
	for _, x := range []struct {
		key        string
		value, def time.Duration
	}{{"interval", t.Interval, d.Interval}, {"fast_interval", t.FastInterval, d.FastInterval}, {"slow_interval", cmp.Or(t.SlowInterval, d.SlowInterval), d.SlowInterval}, {"timeout", t.Timeout, d.Timeout}} {
		if x.value != x.def {
			add(x.key, x.value.String())
		}
	}
	for _, x := range []struct {
		key        string
		value, def int
	}{{"fall", t.Fall, d.Fall}, {"rise", t.Rise, d.Rise}, {"ok", t.OK, d.OK}} {
		if x.value != x.def {
			add(x.key, strconv.Itoa(x.value))
		}
	}
	return b.String()
}

// path is the Path as it stands in a key: / when an HTTP check says nothing, and quoted when it holds what would end it there.
func (c Check) path() string {
	switch {
	case c.Path == "" && (c.Kind == KindHTTP || c.Kind == KindHTTPS):
		return "/"
	case strings.Contains(c.Path, "#") || strings.HasPrefix(c.Path, "\"") || strings.HasPrefix(c.Path, ":"):
		return strconv.Quote(c.Path)
	}
	return c.Path
}

// key is the header as it stands in a key. A name with a colon, which no header has, cannot pass for another header.
func (h Header) key() string { return strings.ReplaceAll(h.Name, ":", "::") + ": " + h.Value }

// maxDescribed bounds what Describe shows of a command, in bytes.
const maxDescribed = 80

// Describe says in one line what the check asks, for people.
func (c Check) Describe() string {
	if len(c.Command) > 0 {
		s := string(c.Kind) + " " + strings.Join(c.Command, " ")
		if len(s) > maxDescribed {
			s = strings.ToValidUTF8(s[:maxDescribed], "") + "…"
		}
		return s
	}
	s := string(c.Kind) + "://{}"
	if c.Port != 0 {
		s += ":" + strconv.Itoa(int(c.Port))
	}
	s += c.Path
	for _, asked := range []string{c.Query, c.Service} {
		if asked != "" {
			s += "/" + asked
		}
	}
	if c.QueryType != "" && c.QueryType != "A" {
		s += " " + c.QueryType
	}
	if c.Host != "" {
		s += " host " + c.Host
	}
	return s
}

// TargetID names a target: its question and its address. It is the same in every process and after every restart.
type TargetID string

// Target is an address and a check: one thing to probe. Services that ask the same question of the same address share it.
type Target struct {
	ID      TargetID   `json:"id"`
	Address netip.Addr `json:"address"` // may carry a zone id
	Check   Check      `json:"check"`
	Lazy    bool       `json:"lazy,omitempty"` // nothing depends on it now: it is probed at SlowInterval
}

// NewTarget makes the target that asks c of addr.
func NewTarget(addr netip.Addr, c Check) Target { return newTarget(addr, c, c.Key()) }

// newTarget is NewTarget for a check whose key is known.
func newTarget(addr netip.Addr, c Check, key string) Target {
	a := addr.String()
	if addr.Is6() {
		a = "[" + a + "]"
	}
	return Target{ID: TargetID(strings.Replace(key, "{}", a, 1)), Address: addr, Check: c}
}

// sortTargets sorts by id and drops repetitions.
func sortTargets(ts []Target) []Target {
	slices.SortFunc(ts, func(a, b Target) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Check.Name, b.Check.Name)) })
	return slices.CompactFunc(ts, func(a, b Target) bool { return a.ID == b.ID })
}
