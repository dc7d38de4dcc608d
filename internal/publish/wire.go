package publish

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// road is the way to one server: requests go out signed, and only answers that fit are taken.
type road struct {
	server  string // host:port
	key     *Key
	timeout time.Duration // of one exchange in all
	stream  bool          // never by datagram

	// A reused road keeps its socket for the next exchange and belongs to one goroutine.
	keep bool
	conn net.Conn
	buf  []byte
}

// udpSize is the largest message sent in a datagram, and the size offered for answers (DNS flag day 2020).
const udpSize = 1232

// maxDatagram is the longest datagram read; what was offered is less.
const maxDatagram = 4096

// resend is how long a datagram goes unanswered before it is sent again, doubled each time.
const resend = 800 * time.Millisecond

// linger is how long the true answer is awaited after one that is not to be believed: whoever forges answers must not be able to
// make a request fail at once.
const linger = 300 * time.Millisecond

// exchange sends m and returns the first answer that is to it, signed if m is. A *Reason says why there is none; with sent and no
// answer an UPDATE is in doubt.
func (r *road) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	wire, mac, err := r.sign(m)
	if err != nil {
		return nil, &Reason{Code: CodeInternal, Text: fmt.Sprintf("cannot make the message: %v", err)}
	}
	if len(wire) <= udpSize && !r.stream {
		answer, err := r.over(ctx, "udp", m, wire, mac)
		if err != nil || !answer.Truncated {
			return answer, err
		}
		if m.Opcode == dns.OpcodeUpdate {
			return answer, nil // what counts is the rcode, and it was carried out
		}
	}
	return r.over(ctx, "tcp", m, wire, mac)
}

func (r *road) sign(m *dns.Msg) (wire []byte, mac string, err error) {
	if r.key == nil {
		wire, err = m.Pack()
		return wire, "", err
	}
	signed := m.Copy()
	signed.SetTsig(r.key.name(), r.key.algorithm(), fudge, time.Now().Unix())
	return dns.TsigGenerateWithProvider(signed, r.key, "", false)
}

// fudge is the clock difference that is tolerated, in seconds (RFC 8945 §10).
const fudge = 300

// over exchanges one message over one transport.
func (r *road) over(ctx context.Context, network string, m *dns.Msg, wire []byte, mac string) (*dns.Msg, error) {
	var conn net.Conn
	if r.keep && network == "udp" {
		conn, r.conn = r.conn, nil
	}
	if conn == nil {
		var err error
		if conn, err = (&net.Dialer{}).DialContext(ctx, network, r.server); err != nil {
			return nil, r.unreachable(m, err, false)
		}
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	answer, err := r.converse(ctx, conn, m, wire, mac)
	if stop() && err == nil && r.keep && network == "udp" {
		r.conn = conn
	} else {
		conn.Close()
	}
	return answer, err
}

// reused returns a road to the same server that keeps its socket until close.
func (r *road) reused() *road {
	return &road{server: r.server, key: r.key, timeout: r.timeout, stream: r.stream, keep: true}
}

func (r *road) close() {
	if r.conn != nil {
		r.conn.Close()
	}
}

// converse sends wire over conn and waits for its answer. A connected UDP socket takes datagrams from the server's address only.
func (r *road) converse(ctx context.Context, conn net.Conn, m *dns.Msg, wire []byte, mac string) (*dns.Msg, error) {
	_, stream := conn.(*net.TCPConn)
	deadline, _ := ctx.Deadline()
	pause := resend
	again := time.Now().Add(pause)
	if err := send(conn, stream, wire); err != nil {
		return nil, r.unreachable(m, err, true)
	}
	var buf []byte
	if r.keep {
		buf = r.buf
	}
	if buf == nil {
		buf = make([]byte, maxDatagram)
	}
	if r.keep {
		r.buf = buf
	}
	var doubtful *Reason
	for {
		until := deadline
		if !stream && again.Before(until) {
			until = again
		}
		conn.SetReadDeadline(until)
		if ctx.Err() != nil {
			conn.SetReadDeadline(time.Unix(1, 0))
		}
		packet, err := receive(conn, stream, buf)
		if err == nil {
			answer, believe := r.judge(m, packet, mac)
			if believe == nil && answer != nil {
				return answer, nil
			}
			if believe != nil && doubtful == nil {
				doubtful = believe
				if soon := time.Now().Add(linger); soon.Before(deadline) {
					deadline = soon
				}
			}
			continue
		}
		if timeout(err) && ctx.Err() == nil && time.Now().Before(deadline) {
			pause *= 2
			again = time.Now().Add(pause)
			if err := send(conn, stream, wire); err != nil {
				return nil, r.unreachable(m, err, true)
			}
			continue
		}
		if doubtful != nil {
			return nil, doubtful
		}
		return nil, r.unreachable(m, err, true)
	}
}

func timeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func send(conn net.Conn, stream bool, wire []byte) error {
	if stream {
		framed := make([]byte, 2, 2+len(wire))
		binary.BigEndian.PutUint16(framed, uint16(len(wire)))
		wire = append(framed, wire...)
	}
	_, err := conn.Write(wire)
	return err
}

func receive(conn net.Conn, stream bool, buf []byte) ([]byte, error) {
	if !stream {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return nil, err
	}
	long := make([]byte, binary.BigEndian.Uint16(buf))
	_, err := io.ReadFull(conn, long)
	return long, err
}

// judge says whether a packet answers m. Neither answer nor reason: it is none of ours. A reason: it claims to be, and is not to be
// believed, although it may well say why the server refused.
func (r *road) judge(m *dns.Msg, packet []byte, mac string) (*dns.Msg, *Reason) {
	if len(packet) < 12 || binary.BigEndian.Uint16(packet) != m.Id || packet[2]&0x80 == 0 || int(packet[2]>>3&0xf) != m.Opcode {
		return nil, nil
	}
	answer := new(dns.Msg)
	if err := answer.Unpack(packet); err != nil {
		return nil, &Reason{
			Code: CodeMalformed, Transient: true, InDoubt: m.Opcode == dns.OpcodeUpdate, Server: r.server,
			Text: fmt.Sprintf("the answer cannot be read: %s", rota.CleanReason("%v", err)),
		}
	}
	// A server may leave the question out of an error (RFC 2136 §3.8 lets it copy or drop the sections).
	if len(answer.Question) > 1 || len(answer.Question) == 1 && !sameQuestion(answer.Question[0], m.Question[0]) {
		return nil, nil
	}
	if len(answer.Question) == 0 && answer.Rcode == dns.RcodeSuccess && m.Opcode != dns.OpcodeUpdate {
		return nil, nil
	}
	if r.key == nil {
		return answer, nil
	}
	tsig := answer.IsTsig()
	if tsig == nil {
		why := r.explain(m, answer.Rcode, 0)
		why.InDoubt = m.Opcode == dns.OpcodeUpdate
		if answer.Rcode == dns.RcodeSuccess {
			why = &Reason{
				Code: CodeForged, Transient: true, InDoubt: m.Opcode == dns.OpcodeUpdate, Server: r.server,
				Text:   "the answer to a signed request is not signed, so it is not believed",
				Advice: "the server may not know TSIG, or somebody forges answers",
			}
		}
		return nil, why
	}
	if tsig.Error != dns.RcodeSuccess || answer.Rcode == dns.RcodeNotAuth {
		// Such an answer is not signed, or not signed in time (RFC 8945 §5.3.2): it explains, and proves nothing.
		why := r.explain(m, answer.Rcode, tsig.Error)
		why.InDoubt = m.Opcode == dns.OpcodeUpdate
		if tsig.Error == dns.RcodeBadTime {
			why.Text += skew(tsig.OtherData)
		}
		return nil, why
	}
	if !strings.EqualFold(tsig.Hdr.Name, r.key.name()) || !strings.EqualFold(tsig.Algorithm, r.key.algorithm()) {
		return nil, r.forged(m, "is signed with another key")
	}
	// TsigVerifyWithProvider changes what it reads.
	if err := dns.TsigVerifyWithProvider(bytes.Clone(packet), r.key, mac, false); err != nil {
		if errors.Is(err, dns.ErrTime) {
			return nil, r.forged(m, "is signed at a time that is more than 5 minutes away")
		}
		return nil, r.forged(m, "has a wrong signature")
	}
	return answer, nil
}

func (r *road) forged(m *dns.Msg, what string) *Reason {
	return &Reason{
		Code: CodeForged, Transient: true, InDoubt: m.Opcode == dns.OpcodeUpdate, Server: r.server,
		Text: "the answer " + what + ", so it is not believed", Advice: "check the clocks, the key, and what lies between here and the server",
	}
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// skew reads the server's clock out of a BADTIME answer (RFC 8945 §5.2.3).
func skew(other string) string {
	var t uint64
	if n, err := fmt.Sscanf(other, "%x", &t); n != 1 || err != nil || len(other) != 12 {
		return ""
	}
	return fmt.Sprintf(", by its clock it is %s, by ours %s",
		time.Unix(int64(t), 0).UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
}

func (r *road) unreachable(m *dns.Msg, err error, sent bool) *Reason {
	text := rota.CleanReason("%v", err)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		text = rota.CleanReason("%s %s: %v", op.Net, op.Op, op.Err) // the ports would make each failure look new
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded) || timeout(err):
		text = fmt.Sprintf("no answer within %v", r.timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		text = "the server closed the connection without an answer"
	}
	return &Reason{
		Code: CodeUnreachable, Transient: true, InDoubt: sent && m.Opcode == dns.OpcodeUpdate, Server: r.server, Text: text,
		Advice: "check that the server runs and that UDP and TCP reach it",
	}
}

// explain gives the rcode of an answer, and the error of its TSIG, a name and an advice.
func (r *road) explain(m *dns.Msg, rcode int, tsig uint16) *Reason {
	what := "query"
	if m.Opcode == dns.OpcodeUpdate {
		what = "update"
	}
	out := &Reason{Server: r.server}
	switch tsig {
	case dns.RcodeBadSig:
		out.Code, out.Text = CodeBadSig, "BADSIG: the server knows the key by another secret"
		out.Advice = "compare the secret and the algorithm of the key on both sides"
		return out
	case dns.RcodeBadKey:
		out.Code, out.Text = CodeBadKey, "BADKEY: the server does not know the key, or not with this algorithm"
		out.Advice = "compare the key's name and algorithm on both sides"
		return out
	case dns.RcodeBadTime:
		out.Code, out.Text = CodeBadTime, "BADTIME: clock skew, the clocks here and on the server are more than 5 minutes apart"
		out.Advice = "set both clocks, by NTP"
		return out
	}
	switch rcode {
	case dns.RcodeRefused:
		out.Code, out.Text = CodeRefused, "REFUSED: the server does not allow this "+what
		out.Advice = "check the server's update policy and that it serves the zone"
		if r.key == nil {
			out.Advice += "; no key is configured"
		} else {
			out.Advice += "; PowerDNS says this for every fault of a key as well: name, secret, algorithm and clock"
		}
	case dns.RcodeNotAuth:
		out.Code, out.Text = CodeNotAuth, "NOTAUTH: the server is not the primary of the zone, or does not accept the key"
		out.Advice = "check that the zone exists there and that a key is configured on both sides"
	case dns.RcodeNotZone:
		out.Code, out.Text = CodeNotZone, "NOTZONE: a name lies outside the zone"
		out.Advice = "check the zone configured for the service"
	case dns.RcodeServerFailure:
		out.Code, out.Text, out.Transient = CodeServfail, "SERVFAIL: the server could not do it", true
		out.Advice = "see the server's log: a zone it cannot load or write to disk"
		if m.Opcode == dns.OpcodeUpdate {
			out.Advice += ", or an RRset over its limit (BIND: max-records-per-type, 100 records)"
		}
	case dns.RcodeFormatError:
		out.Code, out.Text = CodeFormerr, "FORMERR: the server could not read the "+what
		out.Advice = "see the server's log; the server may be too old for RFC 2136"
	case dns.RcodeNotImplemented:
		out.Code, out.Text = CodeNotimp, "NOTIMP: the server does not know dynamic updates"
		out.Advice = "turn dynamic updates on there (RFC 2136), or use another publisher"
	default:
		name := dns.RcodeToString[rcode]
		if name == "" {
			name = "rcode"
		}
		out.Code, out.Text = CodeRcode, fmt.Sprintf("%s (%d): the server did not take the %s", name, rcode, what)
		out.Advice = "see the server's log"
	}
	return out
}
