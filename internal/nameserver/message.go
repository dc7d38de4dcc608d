package nameserver

import (
	"encoding/binary"
	"errors"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

const (
	headerSize = 12
	plainSize  = 512  // octets of a UDP answer to a client without EDNS (RFC 1035 §4.2.1)
	ednsSize   = 1232 // octets of a UDP answer at most: no fragments on any path (RFC 9715)
	maxSize    = 65535
)

// Bits of the third and fourth octet of a message.
const (
	bitQR     = 0x80
	bitRD     = 0x01
	opcodeBit = 3
)

// query is a packet that was understood.
type query struct {
	header header
	asked  string
	qtype  uint16
	qclass uint16
	edns   *edns     // nil: the client speaks none
	tsig   *dns.TSIG // nil: not signed
}

type header struct {
	id     uint16
	opcode int
	rd     bool
	counts [4]uint16
}

type edns struct {
	size    int // octets of UDP the client takes
	version uint8
	do      bool
}

// errDrop says that a packet gets no answer; errForm that it gets FORMERR.
var (
	errDrop = errors.New("not a query")
	errForm = errors.New("malformed")
)

// readHeader reads what every packet must have. Answers and fragments of a header are dropped: replying to them would make loops.
func readHeader(p []byte) (header, error) {
	if len(p) < headerSize || p[2]&bitQR != 0 {
		return header{}, errDrop
	}
	h := header{id: binary.BigEndian.Uint16(p), opcode: int(p[2]>>opcodeBit) & 0xf, rd: p[2]&bitRD != 0}
	for i := range h.counts {
		h.counts[i] = binary.BigEndian.Uint16(p[4+2*i:])
	}
	return h, nil
}

// readQuery reads the rest of a packet of opcode QUERY. It is strict: one question, no pointer in its name, no answers, an authority
// section only for IXFR (RFC 1995 §3), at most one OPT at the root (RFC 6891 §6.1.1), a TSIG only at the end (RFC 8945 §5.1), and
// nothing behind the last record. With errForm, what was understood so far is still good.
func readQuery(p []byte, h header) (query, error) {
	q := query{header: h}
	if h.counts[0] != 1 {
		return q, errForm
	}
	off, ok := skipName(p, headerSize, false)
	if !ok || off+4 > len(p) {
		return q, errForm
	}
	asked, _, err := dns.UnpackDomainName(p[:off], headerSize)
	if err != nil {
		return q, errForm
	}
	q.asked = asked
	q.qtype, q.qclass = binary.BigEndian.Uint16(p[off:]), binary.BigEndian.Uint16(p[off+2:])
	off += 4
	if h.counts[1] != 0 || (h.counts[2] != 0 && q.qtype != dns.TypeIXFR) {
		return q, errForm
	}
	for range h.counts[2] {
		if off, _, ok = skipRecord(p, off); !ok {
			return q, errForm
		}
	}
	for i := range h.counts[3] {
		start := off
		var r rawRecord
		if off, r, ok = skipRecord(p, off); !ok {
			return q, errForm
		}
		switch r.rtype {
		case dns.TypeOPT:
			if q.edns != nil || p[start] != 0 || !optionsFit(r.data) {
				return q, errForm
			}
			q.edns = &edns{size: int(r.class), version: uint8(r.ttl >> 16), do: r.ttl&0x8000 != 0}
		case dns.TypeTSIG:
			rr, _, err := dns.UnpackRR(p, start)
			sig, isSig := rr.(*dns.TSIG)
			if err != nil || !isSig || !signatureFits(r.data) || i != h.counts[3]-1 || r.class != dns.ClassANY || r.ttl != 0 {
				return q, errForm
			}
			q.tsig = sig
		}
	}
	if off != len(p) {
		return q, errForm
	}
	return q, nil
}

// rawRecord is a record whose data has not been looked at.
type rawRecord struct {
	rtype, class uint16
	ttl          uint32
	data         []byte
}

func skipRecord(p []byte, off int) (next int, r rawRecord, ok bool) {
	off, ok = skipName(p, off, true)
	if !ok || off+10 > len(p) {
		return off, r, false
	}
	r.rtype, r.class = binary.BigEndian.Uint16(p[off:]), binary.BigEndian.Uint16(p[off+2:])
	r.ttl = binary.BigEndian.Uint32(p[off+4:])
	size := int(binary.BigEndian.Uint16(p[off+8:]))
	off += 10
	if off+size > len(p) {
		return off, r, false
	}
	r.data = p[off : off+size]
	return off + size, r, true
}

// skipName returns where the name at off ends. A pointer ends a name; it is not followed.
func skipName(p []byte, off int, pointers bool) (next int, ok bool) {
	for start := off; off < len(p); {
		c := int(p[off])
		switch {
		case c == 0:
			return off + 1, off+1-start <= 255
		case c < 64:
			off += 1 + c
		case c >= 0xc0 && pointers && off+2 <= len(p):
			return off + 2, true
		default:
			return off, false
		}
	}
	return off, false
}

// optionsFit reports whether the options of an OPT record fill its data exactly.
func optionsFit(d []byte) bool {
	for len(d) > 0 {
		if len(d) < 4 {
			return false
		}
		size := 4 + int(binary.BigEndian.Uint16(d[2:]))
		if size > len(d) {
			return false
		}
		d = d[size:]
	}
	return true
}

// signatureFits reports whether the fields of a TSIG record fill its data exactly (RFC 8945 §4.2); the library takes less.
func signatureFits(d []byte) bool {
	off, ok := skipName(d, 0, false)
	off += 8 // time signed, fudge
	for _, fixed := range []int{0, 4} {
		// A length and that many octets: the MAC, then, behind original id and error, the other data.
		off += fixed
		if !ok || off+2 > len(d) {
			return false
		}
		off += 2 + int(binary.BigEndian.Uint16(d[off:]))
	}
	return off == len(d)
}

// respond makes the answer to a packet; nil means none. udp bounds its size by what the client says, TCP by 65,535 octets.
func respond(c *catalog, st *rota.State, packet []byte, udp bool, rnd draw) (reply []byte, what outcome) {
	h, err := readHeader(packet)
	if err != nil {
		return nil, outcome{drop: dropMalformed}
	}
	m := &dns.Msg{}
	m.Id, m.Response, m.Opcode, m.RecursionDesired = h.id, true, h.opcode, h.rd
	switch h.opcode {
	case dns.OpcodeQuery:
	case dns.OpcodeUpdate, dns.OpcodeNotify:
		m.Rcode = dns.RcodeRefused
		reply, what = bare(m)
		what.notable = dns.OpcodeToString[h.opcode]
		return reply, what
	default:
		m.Rcode = dns.RcodeNotImplemented
		return bare(m)
	}
	q, err := readQuery(packet, h)
	if q.asked != "" {
		m.Question = []dns.Question{{Name: q.asked, Qtype: q.qtype, Qclass: q.qclass}}
	}
	size := maxSize
	if udp {
		size = plainSize
	}
	if q.edns != nil {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(ednsSize)
		opt.SetDo(q.edns.do)
		m.Extra = append(m.Extra, opt)
		if udp {
			size = max(plainSize, min(q.edns.size, ednsSize))
		}
	}
	switch {
	case err != nil:
		m.Rcode = dns.RcodeFormatError
		return bare(m)
	case q.edns != nil && q.edns.version != 0:
		m.Rcode = dns.RcodeBadVers
		return bare(m)
	case q.tsig != nil:
		// No key is known here: RFC 8945 §5.2.1.
		m.Rcode = dns.RcodeNotAuth
		hdr := dns.RR_Header{Name: q.tsig.Hdr.Name, Rrtype: dns.TypeTSIG, Class: dns.ClassANY}
		m.Extra = append(m.Extra, &dns.TSIG{
			Hdr: hdr, Algorithm: q.tsig.Algorithm, TimeSigned: q.tsig.TimeSigned, Fudge: q.tsig.Fudge,
			OrigId: h.id, Error: dns.RcodeBadKey,
		})
		return bare(m)
	case q.qtype == dns.TypeOPT, q.qtype == 0, q.qtype == dns.TypeTKEY, q.qtype == dns.TypeTSIG:
		m.Rcode = dns.RcodeFormatError
		return bare(m)
	case q.qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return bare(m)
	case q.qtype == dns.TypeAXFR, q.qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
		reply, what = bare(m)
		what.notable = dns.TypeToString[q.qtype] + " of " + q.asked
		return reply, what
	}
	name, err := rota.ParseName(q.asked)
	if err != nil {
		m.Rcode = dns.RcodeFormatError
		return bare(m)
	}
	a := lookup(c, st, question{asked: q.asked, name: name, qtype: q.qtype}, rnd)
	m.Rcode, m.Authoritative = a.rcode, a.aa
	m.Answer, m.Ns = a.answer, a.authority
	m.Extra = append(a.additional, m.Extra...)
	what = outcome{view: a.zone}
	reply, what.truncated = fit(m, size, a.glue)
	what.rcode = m.Rcode
	return reply, what
}

// bare packs an answer that holds no data.
func bare(m *dns.Msg) ([]byte, outcome) {
	p, err := m.Pack()
	if err != nil {
		// A name or signature that was read cannot be written: say as much as always fits.
		m = &dns.Msg{MsgHdr: m.MsgHdr}
		m.Rcode = dns.RcodeServerFailure
		p, _ = m.Pack()
	}
	return p, outcome{rcode: m.Rcode}
}

// fit packs m into size octets. What is only helpful goes first; when that is not enough, whole RRsets go from the end and TC is set
// (RFC 2181 §9), also when the addresses of a delegation's own name servers go (RFC 9471).
func fit(m *dns.Msg, size int, glue bool) (packet []byte, truncated bool) {
	m.Compress = true
	for {
		p, err := m.Pack()
		if err == nil && len(p) <= size {
			return p, m.Truncated
		}
		opt := m.IsEdns0()
		extra := m.Extra
		if opt != nil {
			extra = extra[:len(extra)-1]
		}
		switch {
		case len(extra) > 0:
			m.Truncated = m.Truncated || glue
			extra = withoutLast(extra)
		case len(m.Ns) > 0:
			m.Truncated = true
			m.Ns = withoutLast(m.Ns)
		case len(m.Answer) > 0:
			m.Truncated = true
			m.Answer = withoutLast(m.Answer)
		default:
			m.Rcode = dns.RcodeServerFailure
			p, _ := bare(m)
			return p, m.Truncated
		}
		m.Extra = extra
		if opt != nil {
			m.Extra = append(m.Extra, opt)
		}
	}
}

// withoutLast drops the last RRset of a section.
func withoutLast(rrs []dns.RR) []dns.RR {
	last := rrs[len(rrs)-1].Header()
	i := len(rrs) - 1
	for i > 0 && rrs[i-1].Header().Rrtype == last.Rrtype && rrs[i-1].Header().Name == last.Name {
		i--
	}
	return rrs[:i:i]
}
