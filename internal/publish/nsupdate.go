package publish

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// NSUpdateOptions says which program sends the updates, and to whom.
type NSUpdateOptions struct {
	Command []string       // nsupdate or knsupdate by its absolute path, and arguments that go before rota's; no keys
	Servers RFC2136Options // read by rota itself; written by the program, over TCP, to the server that answers
	Timeout time.Duration  // of one run in all; 0: 10 seconds, at most a minute
	Run     Run
}

// NSUpdate is a Backend that reads by DNS and writes by BIND's nsupdate or Knot's knsupdate: for whoever has to send updates by these,
// such as through a wrapper that holds the credentials. Everything, the key and the fence included, is in the script on the program's
// standard input.
type NSUpdate struct {
	o    NSUpdateOptions
	read *RFC2136
}

// NewNSUpdate checks the options. It does not reach out.
func NewNSUpdate(o NSUpdateOptions) (*NSUpdate, error) {
	var err error
	if o.Timeout, err = checkCommand("nsupdate", o.Command, o.Timeout, o.Run); err != nil {
		return nil, err
	}
	read, err := NewRFC2136(o.Servers)
	if err != nil {
		return nil, fmt.Errorf("nsupdate: %w", err)
	}
	return &NSUpdate{o: o, read: read}, nil
}

// Capabilities are those of RFC 2136: the server itself decides on every message, whole.
func (b *NSUpdate) Capabilities() Capabilities { return b.read.Capabilities() }

// Zone is RFC2136's.
func (b *NSUpdate) Zone(ctx context.Context, name rota.Name) (rota.Name, error) {
	return b.read.Zone(ctx, name)
}

// Read is RFC2136's.
func (b *NSUpdate) Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	return b.read.Read(ctx, zone, keys)
}

// Write runs the program once, for one message.
func (b *NSUpdate) Write(ctx context.Context, batch Batch) (int, error) {
	m, n, err := update(batch)
	if err != nil {
		return n, err
	}
	if err := b.read.alone(ctx, batch.Zone, batch.Changes[:n]); err != nil {
		return n, err
	}
	road := b.read.writes[b.read.current.Load()]
	script, err := updateScript(m, road)
	if err != nil {
		return n, &Reason{Code: CodeUnsupported, Zone: batch.Zone, Text: rota.CleanReason("%v", err), Advice: "take the service out of this publisher"}
	}
	// Both programs know these: TCP, no second try, and a limit of their own below ours.
	limit := strconv.Itoa(max(1, int(b.o.Timeout/time.Second)-1))
	c := Command{
		Argv: append(b.o.Command[:len(b.o.Command):len(b.o.Command)], "-v", "-r", "0", "-t", limit), Stdin: script, Timeout: b.o.Timeout,
	}
	out, err := b.o.Run(ctx, c)
	if road.key != nil { // a program may show a line of its script
		out.Stderr = bytes.ReplaceAll(out.Stderr, []byte(oneLine(road.key.Secret)), []byte("***"))
	}
	return n, b.outcome(m, road, c, out, err)
}

// oneLine returns base64 without the line breaks that it may have (RFC 4648 §3.1 leaves them to each format).
func oneLine(secret string) string { return strings.NewReplacer("\r", "", "\n", "").Replace(secret) }

// updateScript writes a message as both programs read it. It ends in send: without, they do nothing and call it a success.
func updateScript(m *dns.Msg, r *road) ([]byte, error) {
	host, port, err := net.SplitHostPort(r.server)
	if err != nil {
		return nil, err
	}
	var s bytes.Buffer
	line := func(words ...string) {
		text := strings.Join(words, " ")
		if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
			err = fmt.Errorf("what follows %q cannot be written in a script", words[0]) // it may be the key
		}
		s.WriteString(text + "\n")
	}
	line("server", host, port)
	line("zone", m.Question[0].Name)
	if r.key != nil {
		line("key", strings.TrimSuffix(cmp.Or(r.key.Algorithm, "hmac-sha256"), ".")+":"+r.key.name(), oneLine(r.key.Secret))
	}
	data := func(rr dns.RR) string { return strings.TrimPrefix(rr.String(), rr.Header().String()) }
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class == dns.ClassNONE {
			line("prereq nxrrset", h.Name, dns.Type(h.Rrtype).String())
		} else {
			line("prereq yxrrset", h.Name, dns.Type(h.Rrtype).String(), data(rr))
		}
	}
	for _, rr := range m.Ns {
		h := rr.Header()
		if h.Class == dns.ClassANY {
			line("update delete", h.Name, dns.Type(h.Rrtype).String())
		} else {
			line("update add", h.Name, strconv.FormatUint(uint64(h.Ttl), 10), dns.Type(h.Rrtype).String(), data(rr))
		}
	}
	line("send")
	return s.Bytes(), err
}

var (
	// updateFailed finds the rcode, and the one of the signature, in what either program says.
	updateFailed = regexp.MustCompile(`update failed[^A-Z]*([A-Z]+)(?:\(([A-Z]+)\))?`)
	// updateUnverified is knsupdate's word for an answer whose signature it does not believe; the answer follows on stdout.
	updateUnverified = regexp.MustCompile(`reply verification`)
	updateStatus     = regexp.MustCompile(`status: ([A-Z]+)`)
	updateUnanswered = regexp.MustCompile(`(?i)Communication with .* failed|can't connect|time(d )?out`)
)

// outcome makes of exit code and words what the server said.
func (b *NSUpdate) outcome(m *dns.Msg, r *road, c Command, out Output, err error) error {
	failed := updateFailed.FindSubmatch(out.Stderr)
	unverified := updateUnverified.Match(out.Stderr)
	if err == nil && out.Code == 0 && failed == nil && !unverified {
		return nil
	}
	why := failedCommand(c, out, err, true)
	why.Server = r.server
	if err != nil {
		return why
	}
	number := func(found [][]byte, i int) int {
		if i < len(found) {
			if n, ok := dns.StringToRcode[string(found[i])]; ok {
				return n
			}
		}
		return dns.RcodeSuccess
	}
	rcode, tsig := number(failed, 1), number(failed, 2)
	if unverified {
		if rcode = number(updateStatus.FindSubmatch(out.Stdout), 1); rcode == dns.RcodeSuccess {
			return r.forged(m, "is not signed as it should be")
		}
		if rcode >= dns.RcodeBadSig {
			rcode, tsig = dns.RcodeNotAuth, rcode
		}
	}
	switch {
	case rcode == dns.RcodeNXRrset, rcode == dns.RcodeYXRrset, rcode == dns.RcodeNameError, rcode == dns.RcodeYXDomain:
		if !unverified {
			return ErrMoved
		}
	case rcode == dns.RcodeSuccess && updateUnanswered.Match(out.Stderr):
		return r.unreachable(m, errors.New(lastLine(out.Stderr)), true)
	case rcode == dns.RcodeSuccess:
		return why
	}
	why = r.explain(m, rcode, uint16(tsig))
	why.InDoubt = unverified || rcode == dns.RcodeNotAuth // such an answer may be unsigned
	return why
}
