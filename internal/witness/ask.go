package witness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// Exchange sends one question to a server over "udp" or "tcp" and returns the first answer that is to it. It returns when ctx ends.
type Exchange func(ctx context.Context, network string, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error)

// Transport is how a question travels.
type Transport string

// The transports.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
)

const (
	askTimeout  = 3 * time.Second        // of one question in all
	resend      = 700 * time.Millisecond // a datagram without an answer is sent again, with twice the patience each time
	udpSize     = 1232                   // offered for answers (DNS flag day 2020)
	maxDatagram = 4096                   // read, whatever was offered
)

// question makes a question with a random id, for a server that is to answer from what it has.
func question(name rota.Name, t uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name.String(), t)
	m.RecursionDesired = false
	m.SetEdns0(udpSize, false)
	return m
}

// overNetwork is the Exchange of the real world. Each question has a socket, and so a port, of its own.
func overNetwork(ctx context.Context, network string, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn, UDPSize: maxDatagram}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	pause := resend
	for {
		if err := c.WriteMsg(m); err != nil {
			return nil, err
		}
		if network == string(UDP) {
			conn.SetReadDeadline(time.Now().Add(pause))
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			pause *= 2
		}
		answer, err := await(c, network, m)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() && network == string(UDP) && ctx.Err() == nil {
			continue
		}
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		return answer, err
	}
}

// await reads until an answer to m comes. A datagram that is none is passed over, for the true one may follow it.
func await(c *dns.Conn, network string, m *dns.Msg) (*dns.Msg, error) {
	for {
		packet, err := c.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		answer, err := fits(m, packet)
		if err == nil {
			return answer, nil
		}
		if network == string(TCP) {
			return nil, err
		}
	}
}

// errNoAnswer says that a message is not an answer to what was asked.
var errNoAnswer = errors.New("what came back is not an answer to the question")

// fits reads a packet as the answer to m: same id, same question, well formed.
func fits(m *dns.Msg, packet []byte) (*dns.Msg, error) {
	if len(packet) < 12 || binary.BigEndian.Uint16(packet) != m.Id || packet[2]&0x80 == 0 || int(packet[2]>>3&0xf) != m.Opcode {
		return nil, errNoAnswer
	}
	answer := new(dns.Msg)
	if err := answer.Unpack(packet); err != nil {
		return nil, fmt.Errorf("the answer cannot be read: %w", err)
	}
	if len(answer.Question) == 0 && answer.Rcode != dns.RcodeSuccess {
		return answer, nil // an error may leave the question out
	}
	if len(answer.Question) != 1 || answer.Question[0].Qtype != m.Question[0].Qtype || answer.Question[0].Qclass != m.Question[0].Qclass ||
		!strings.EqualFold(answer.Question[0].Name, m.Question[0].Name) {
		return nil, errNoAnswer
	}
	return answer, nil
}

// errNotAsked says that a question was not sent, because too many others were to be sent before it.
var errNotAsked = errors.New("not asked in time")

// exchange asks one question within the limits of this witness. The time is when the answer came.
func (w *Witness) exchange(ctx context.Context, t Transport, server netip.AddrPort, m *dns.Msg) (answer *dns.Msg, rtt time.Duration, err error) {
	if err := w.limit(server).Wait(ctx); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%w: %w", errNotAsked, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	start := time.Now()
	answer, err = w.o.Exchange(ctx, string(t), server, m)
	if err == nil {
		w.answered(server.Addr(), time.Now())
	}
	return answer, time.Since(start), err
}

func (w *Witness) limit(server netip.AddrPort) *rate.Limiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.limits[server]
	if l == nil {
		l = rate.NewLimiter(perServer, perServer)
		w.limits[server] = l
	}
	return l
}

// Trouble says why there is no answer.
type Trouble string

// The troubles.
const (
	Silent    Trouble = "silent"    // no answer in time
	Closed    Trouble = "closed"    // the connection was refused or cut
	Malformed Trouble = "malformed" // an answer that the protocol does not allow
	Blind     Trouble = "blind"     // this machine cannot ask, which says nothing of the server
)

// troubleOf sorts an error of an exchange.
func troubleOf(err error) Trouble {
	for _, e := range []error{
		syscall.ENETUNREACH, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, syscall.EACCES, syscall.EPERM, syscall.EMFILE, syscall.ENFILE,
		syscall.EINVAL, context.Canceled, errNotAsked,
	} {
		if errors.Is(err, e) {
			return Blind
		}
	}
	ne, network := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded), network && ne.Timeout(), errors.Is(err, syscall.EHOSTUNREACH):
		return Silent
	case errors.Is(err, errNoAnswer), !network && !errors.Is(err, net.ErrClosed) && isUnpack(err):
		return Malformed
	}
	return Closed
}

func isUnpack(err error) bool {
	_, ok := errors.AsType[*dns.Error](err)
	return ok
}

// Answer is what a server says of one RRset.
type Answer struct {
	At     time.Time // when it came
	Data   []string  // sorted, canonical
	TTL    uint32
	Alias  string // the CNAME that stands there instead
	Rcode  int
	Cut    bool   // truncated: what it holds is not known
	Serial uint32 // that the server had just before
	RTT    time.Duration
}

// maxData bounds the records of one RRset that are read.
const maxData = 1024

// read returns what an authoritative answer says of a key. Records of other names and types are not looked at, so chains of aliases
// lead nowhere.
func read(answer *dns.Msg, k rota.Key) Answer {
	out := Answer{Rcode: answer.Rcode, Cut: answer.Truncated}
	for _, rr := range answer.Answer {
		h := rr.Header()
		if owner, err := rota.ParseName(h.Name); err != nil || owner != k.Name || h.Class != dns.ClassINET || len(out.Data) >= maxData {
			continue
		}
		switch {
		case h.Rrtype == uint16(k.Type):
			out.Data = append(out.Data, rdata(rr))
			out.TTL = h.Ttl
		case h.Rrtype == dns.TypeCNAME:
			out.Alias = rdata(rr)
		}
	}
	slices.Sort(out.Data)
	out.Data = slices.Compact(out.Data)
	return out
}

// rdata writes a record's data as rota.RRset does. A name that cannot be read stays as it came: it equals nothing that is wanted.
func rdata(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.A:
		return address(rr.A.To4()).String()
	case *dns.AAAA:
		return address(rr.AAAA.To16()).String()
	case *dns.CNAME:
		return canonical(rr.Target)
	case *dns.NS:
		return canonical(rr.Ns)
	case *dns.PTR:
		return canonical(rr.Ptr)
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

// address reads an address of a record; the zero Addr when there is none.
func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func canonical(name string) string {
	n, err := rota.ParseName(name)
	if err != nil {
		return name
	}
	return n.String()
}

// right reports whether an answer is what is expected; nothing can be said of one that was cut.
func (e *Expect) right(a Answer) bool {
	if a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return false
	}
	switch {
	case len(e.Data) == 0 && len(e.Drop) > 0:
		return !slices.ContainsFunc(e.Drop, func(d string) bool { return slices.Contains(a.Data, d) })
	case e.Some && len(e.Data) > 0:
		return len(a.Data) > 0 && !slices.ContainsFunc(a.Data, func(d string) bool { return !slices.Contains(e.Data, d) })
	}
	return slices.Equal(a.Data, e.Data)
}

// foreign lists what an answer holds that is neither wanted nor known.
func (e *Expect) foreign(a Answer) []string {
	if len(e.Data) == 0 && len(e.Drop) > 0 {
		return nil // the rest of that RRset is not rota's
	}
	var out []string
	for _, d := range a.Data {
		if !slices.Contains(e.Data, d) && !slices.Contains(e.Known, d) && !slices.Contains(e.Drop, d) {
			out = append(out, d)
		}
	}
	return out
}
