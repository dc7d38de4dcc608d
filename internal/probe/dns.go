package probe

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// What a query says that it can take in a datagram (RFC 6891 §6.2.3), and what is read of one.
const (
	dnsPayload  = 1232
	dnsDatagram = 4 << 10
)

// dnsQuery is what the probes of a dns check share.
type dnsQuery struct {
	wire   []byte // the message, with id 0
	asked  dns.Question
	rcodes []string // accepted
}

// prepareDNS reads the query of a check.
func prepareDNS(q *question) error {
	c := &q.check
	name := dns.Fqdn(c.Query)
	if _, ok := dns.IsDomainName(name); !ok || c.Query == "" {
		return fmt.Errorf("query %q is not a domain name", c.Query)
	}
	t, err := dnsType(cmp.Or(c.QueryType, "A"))
	if err != nil {
		return err
	}
	var rcodes []string
	for word := range strings.SplitSeq(cmp.Or(c.RCode, "NOERROR"), ",") {
		word = strings.ToUpper(strings.TrimSpace(word))
		if _, ok := dns.StringToRcode[word]; !ok {
			return fmt.Errorf("rcode %q is not known; want such as NOERROR or NXDOMAIN", word)
		}
		rcodes = append(rcodes, word)
	}
	if c.Transport != "" && c.Transport != "udp" && c.Transport != "tcp" {
		return fmt.Errorf("transport %q: want udp or tcp", c.Transport)
	}
	m := new(dns.Msg)
	m.SetQuestion(name, t)
	m.Id, m.RecursionDesired = 0, c.Recurse
	m.SetEdns0(dnsPayload, false)
	wire, err := m.Pack()
	if err != nil {
		return fmt.Errorf("query %q: %w", c.Query, err)
	}
	q.ready = &dnsQuery{wire: wire, asked: m.Question[0], rcodes: rcodes}
	return nil
}

// dnsType reads a type that one message answers: by its name, or as TYPE65280 (RFC 3597 §5).
func dnsType(word string) (uint16, error) {
	word = strings.ToUpper(word)
	t, ok := dns.StringToType[word]
	if digits, generic := strings.CutPrefix(word, "TYPE"); generic && !ok {
		n, err := strconv.ParseUint(digits, 10, 16)
		t, ok = uint16(n), err == nil
	}
	switch {
	case !ok:
		return 0, fmt.Errorf("query_type %q is not known; want such as A, SOA or TYPE65280", word)
	case slices.Contains([]uint16{0, dns.TypeOPT, dns.TypeTKEY, dns.TypeTSIG, dns.TypeIXFR, dns.TypeAXFR, dns.TypeMAILA, dns.TypeMAILB}, t):
		return 0, fmt.Errorf("query_type %s is no type of records that one answer has", word)
	}
	return t, nil
}

// probeDNS asks the endpoint itself, never a resolver: in a datagram, and by TCP when the check says so or the answer does not fit.
func probeDNS(ctx context.Context, r *run) finding {
	c, q := &r.q.check, r.q.ready.(*dnsQuery)
	r.trace.Sent = dnsText(q.asked, c.Recurse)
	if c.Transport != "tcp" {
		m, f := r.askDatagram(ctx, q)
		if m == nil {
			return f
		}
		if !m.Truncated {
			return r.judgeDNS(q, m)
		}
		r.trace.begin("truncated")("again by tcp")
	}
	m, f := r.askStream(ctx, q)
	if m == nil {
		return f
	}
	return r.judgeDNS(q, m)
}

func dnsText(q dns.Question, recurse bool) string {
	s := q.Name + " " + dns.Class(q.Qclass).String() + " " + dns.Type(q.Qtype).String()
	if recurse {
		s += " rd"
	}
	return escape([]byte(s), maxHead)
}

// message is the query with an id of its own.
func (q *dnsQuery) message() []byte {
	m := slices.Clone(q.wire)
	_, _ = rand.Read(m[:2]) // it never fails
	return m
}

// read returns the answer that a message is, or says why it is not the answer to what was sent.
func (q *dnsQuery) read(sent, got []byte) (*dns.Msg, error) {
	const head = 12
	switch {
	case len(got) < head:
		return nil, fmt.Errorf("has %d bytes", len(got))
	case got[0] != sent[0] || got[1] != sent[1]:
		return nil, errors.New("has another id")
	}
	m := new(dns.Msg)
	if err := m.Unpack(got); err != nil {
		return nil, errors.New("is malformed")
	}
	switch {
	case !m.Response || m.Opcode != dns.OpcodeQuery:
		return nil, errors.New("is no answer to a query")
	case len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.asked.Name) || m.Question[0].Qtype != q.asked.Qtype || m.Question[0].Qclass != q.asked.Qclass:
		return nil, fmt.Errorf("answers another question, with %s", dnsRcode(m))
	}
	return m, nil
}

func dnsRcode(m *dns.Msg) string {
	if s, ok := dns.RcodeToString[m.Rcode]; ok {
		return s
	}
	return "RCODE" + strconv.Itoa(m.Rcode)
}

// askDatagram asks once and waits until the deadline for the answer that fits: what does not may come from somebody who guesses.
func (r *run) askDatagram(ctx context.Context, q *dnsQuery) (*dns.Msg, finding) {
	done := r.trace.begin("query")
	// A connected socket has a random port of its own, and takes nothing from another address.
	d := net.Dialer{}
	c, err := d.DialUDP(ctx, "udp", netip.AddrPort{}, netip.AddrPortFrom(r.addr, r.q.check.Port))
	if err != nil {
		done("failed")
		return nil, r.fault(ctx, "query", err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	sent := q.message()
	if _, err := c.Write(sent); err != nil {
		done("failed")
		return nil, r.fault(ctx, "query", err)
	}
	done(c.LocalAddr().String() + " to " + c.RemoteAddr().String())
	done = r.trace.begin("answer")
	ignored, last := 0, error(nil)
	buf := make([]byte, dnsDatagram)
	for {
		n, err := c.Read(buf)
		if err != nil {
			done(fmt.Sprintf("none, %d ignored", ignored))
			f := r.fault(ctx, "answer", err)
			if f.class == rota.ClassTimeout && ignored > 0 {
				f = down(rota.ClassProtocol, "answer: none that fits within %v; %d ignored, the last %v", r.q.check.Timeout, ignored, last)
			}
			return nil, f
		}
		m, err := q.read(sent, buf[:n])
		if err == nil {
			r.trace.ReceivedSize = n
			done(fmt.Sprintf("%d bytes, %d ignored", n, ignored))
			return m, finding{}
		}
		ignored, last = ignored+1, err
	}
}

// askStream asks by TCP (RFC 7766 §8). Nobody else can answer there, so what does not fit is the endpoint's fault.
func (r *run) askStream(ctx context.Context, q *dnsQuery) (*dns.Msg, finding) {
	c, stop, err := r.dial(ctx)
	if err != nil {
		return nil, r.fault(ctx, "connect", err)
	}
	defer stop()
	done := r.trace.begin("query")
	sent := q.message()
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(sent))), sent...)); err != nil {
		done("failed")
		return nil, r.fault(ctx, "query", err)
	}
	done("tcp")
	done = r.trace.begin("answer")
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		done("none")
		return nil, r.fault(ctx, "answer", err)
	}
	got := make([]byte, binary.BigEndian.Uint16(size[:]))
	n, err := io.ReadFull(c, got)
	r.trace.ReceivedSize = n
	done(fmt.Sprintf("%d of %d bytes", n, len(got)))
	if err != nil {
		return nil, r.fault(ctx, "answer", err)
	}
	m, err := q.read(sent, got)
	switch {
	case err != nil:
		return nil, down(rota.ClassProtocol, "answer: it %v", err)
	case m.Truncated:
		return nil, down(rota.ClassProtocol, "answer: cut off (TC) although it came by TCP")
	}
	return m, finding{}
}

// judgeDNS says whether an answer is the expected one: its code first, then its records.
func (r *run) judgeDNS(q *dnsQuery, m *dns.Msg) finding {
	rcode, text := dnsRcode(m), dnsRecords(m.Answer, r.q.maxBody)
	r.trace.Received = escape([]byte(rcode+"\n"+text), maxHead)
	if !slices.Contains(q.rcodes, rcode) {
		return down(rota.ClassDNS, "answered %s, want %s", rcode, strings.Join(q.rcodes, " or "))
	}
	if r.q.expect != nil && !r.q.expect.MatchString(text) {
		return down(rota.ClassDNS, "answered %s, and its %d records do not match %q", rcode, len(m.Answer), r.q.check.Expect)
	}
	return up("answered %s, %d records", rcode, len(m.Answer))
}

// dnsRecords writes records one a line, type and data, sorted: servers change their order from answer to answer. Whole lines of at most
// limit bytes are kept.
func dnsRecords(rrs []dns.RR, limit int) string {
	var lines []string
	for _, rr := range rrs {
		data := strings.TrimPrefix(rr.String(), rr.Header().String())
		if u, ok := rr.(*dns.RFC3597); ok {
			data = fmt.Sprintf(`\# %d %s`, len(u.Rdata)/2, u.Rdata)
		}
		line := dns.Type(rr.Header().Rrtype).String() + " " + data + "\n"
		if limit -= len(line); limit < 0 {
			break
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
