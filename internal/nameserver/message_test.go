package nameserver

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// wireFixture is a zone with something of every kind: services, big RRsets, delegations, aliases.
func wireFixture(t testing.TB) (*catalog, *rota.State) {
	t.Helper()
	var records strings.Builder
	records.WriteString("cut NS ns.cut\nns.cut A 192.0.2.1\nalias CNAME www\n*.wild TXT x\nout CNAME a.elsewhere.test.\n")
	for i := range 60 {
		fmt.Fprintf(&records, "big A 10.0.0.%d\n", i+1)
	}
	for i := range 40 {
		fmt.Fprintf(&records, "mx MX %d host%d\nhost%d A 10.0.1.%d\n", i, i, i, i+1)
	}
	for i := range 7 {
		fmt.Fprintf(&records, "many NS a-name-server-with-a-long-name-%02d.many\na-name-server-with-a-long-name-%02d.many AAAA 2001:db8::%x\n", i, i, i+1)
	}
	st := stateOf(t, []rota.Service{
		service("www.example.org", "192.0.2.10", "192.0.2.11", "2001:db8::1"), service("w.example.org", "192.0.2.1*3", "192.0.2.2*0"),
	})
	return catalogOf(t, st, Zone{
		Name: "example.org.", NS: []rota.Name{"ns1.example.org."}, Records: records.String(),
	}), st
}

func packed(t testing.TB, name string, qtype uint16, edit ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 0x1234
	for _, f := range edit {
		f(m)
	}
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func withEDNS(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, true) } }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	hexHead = "1234 0100 0001 0000 0000 "
	hexName = "03777777 07 6578616d706c65 036f7267 00 0001 0001 " // www.example.org A IN
	hexOPT  = "00 0029 04d0 00000000 0000 "
)

// TestRespondRcode: what each kind of packet gets, well formed or not.
func TestRespondRcode(t *testing.T) {
	c, st := wireFixture(t)
	var long strings.Builder // 255 octets and one more
	for range 4 {
		long.WriteString("3f" + strings.Repeat("61", 63))
	}
	tests := []struct {
		name   string
		packet string // hex
		want   string // rcode, or "dropped"
	}{
		{"plain", hexHead + "0000" + hexName, "NOERROR"},
		{"EDNS", hexHead + "0001" + hexName + hexOPT, "NOERROR"},
		{"EDNS size 0", hexHead + "0001" + hexName + "00 0029 0000 00000000 0000", "NOERROR"},
		{"EDNS version 1", hexHead + "0001" + hexName + "00 0029 04d0 00010000 0000", "BADVERS"},
		{"unknown option", hexHead + "0001" + hexName + "00 0029 04d0 00000000 0006 fffe 0002 0000", "NOERROR"},
		{"option length lies", hexHead + "0001" + hexName + "00 0029 04d0 00000000 0006 fffe 0003 0000", "FORMERR"},
		{"option header cut", hexHead + "0001" + hexName + "00 0029 04d0 00000000 0003 fffe 00", "FORMERR"},
		{"OPT twice", hexHead + "0002" + hexName + hexOPT + hexOPT, "FORMERR"},
		{"OPT not at the root", hexHead + "0001" + hexName + "0161 00 0029 04d0 00000000 0000", "FORMERR"},
		{"OPT by pointer", hexHead + "0001" + hexName + "c00c 0029 04d0 00000000 0000", "FORMERR"},
		{"empty", "", "dropped"},
		{"half a header", "1234 0100 0001 0000", "dropped"},
		{"an answer", "1234 8180 0001 0000 0000 0000" + hexName, "dropped"},
		{"no question", "1234 0100 0000 0000 0000 0000", "FORMERR"},
		{"two questions", "1234 0100 0002 0000 0000 0000" + hexName + hexName, "FORMERR"},
		{"65535 questions", "1234 0100 ffff 0000 0000 0000" + hexName, "FORMERR"},
		{"an answer section", "1234 0100 0001 0001 0000 0000" + hexName + "c00c 0001 0001 00000000 0004 01020304", "FORMERR"},
		{"an authority section", "1234 0100 0001 0000 0001 0000" + hexName + "c00c 0001 0001 00000000 0004 01020304", "FORMERR"},
		{"trailing junk", hexHead + "0000" + hexName + "00", "FORMERR"},
		{"record missing", hexHead + "0001" + hexName, "FORMERR"},
		{"name cut", hexHead + "0000 03 7777", "FORMERR"},
		{"pointer to itself", hexHead + "0000 c00c 0001 0001", "FORMERR"},
		{"pointer forward", hexHead + "0000 c010 0001 0001 00", "FORMERR"},
		{"label type 0x40", hexHead + "0000 41 61 00 0001 0001", "FORMERR"},
		{"label type 0x80", hexHead + "0000 81 61 00 0001 0001", "FORMERR"},
		{"name of 257 octets", hexHead + "0000" + long.String() + "00 0001 0001", "FORMERR"},
		{"127 labels", hexHead + "0000" + strings.Repeat("0161", 127) + "00 0001 0001", "REFUSED"},
		{"128 labels", hexHead + "0000" + strings.Repeat("0161", 128) + "00 0001 0001", "FORMERR"},
		{"root", hexHead + "0000 00 0002 0001", "REFUSED"},
		{"CHAOS version.bind", hexHead + "0000 0776657273696f6e 0462696e64 00 0010 0003", "REFUSED"},
		{"class ANY", hexHead + "0000 03777777 07 6578616d706c65 036f7267 00 0001 00ff", "REFUSED"},
		{"class 0", hexHead + "0000 03777777 07 6578616d706c65 036f7267 00 0001 0000", "REFUSED"},
		{"type 0", hexHead + "0000 03777777 07 6578616d706c65 036f7267 00 0000 0001", "FORMERR"},
		{"AXFR", hexHead + "0000 07 6578616d706c65 036f7267 00 00fc 0001", "REFUSED"},
		{
			"IXFR with its SOA", "1234 0000 0001 0000 0001 0000 07 6578616d706c65 036f7267 00 00fb 0001" +
				"c00c 0006 0001 00000000 0016 00 00 00000001 00000001 00000001 00000001 00000001", "REFUSED",
		},
		{"NOTIFY", "1234 2000 0001 0000 0000 0000" + hexName, "REFUSED"},
		{"UPDATE that deletes all", "1234 2800 0001 0000 0001 0000 07 6578616d706c65 036f7267 00 0006 0001 c00c 00ff 00ff 00000000 0000", "REFUSED"},
		{"STATUS", "1234 1000 0001 0000 0000 0000" + hexName, "NOTIMP"},
		{"opcode 15", "1234 7800 0001 0000 0000 0000" + hexName, "NOTIMP"},
		{
			"TSIG of an unknown key", hexHead + "0001" + hexName + "036b6579 00 00fa 00ff 00000000 001d 0b686d61632d736861323536 00" +
				"000000000001 012c 0000 1234 0000 0000", "NOTAUTH",
		},
		{
			"TSIG not last", hexHead + "0002" + hexName + "036b6579 00 00fa 00ff 00000000 001d 0b686d61632d736861323536 00" +
				"000000000001 012c 0000 1234 0000 0000" + hexOPT, "FORMERR",
		},
		{"TSIG empty", hexHead + "0001" + hexName + "036b6579 00 00fa 00ff 00000000 0000", "FORMERR"},
		{
			"TSIG with other data cut", hexHead + "0001" + hexName + "036b6579 00 00fa 00ff 00000000 001d 0b686d61632d736861323536 00" +
				"000000000001 012c 0000 1234 0000 0001", "FORMERR",
		},
		{"TSIG malformed", hexHead + "0001" + hexName + "036b6579 00 00fa 00ff 00000000 0002 0b68", "FORMERR"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := unhex(t, tt.packet)
			got := "dropped"
			if reply, _ := respond(c, st, p, true, first); reply != nil {
				m := checkReply(t, p, reply, ednsSize)
				got = dns.RcodeToString[m.Rcode]
				if m.Rcode == dns.RcodeBadVers {
					got = "BADVERS"
				}
				if m.Authoritative != (got == "NOERROR") {
					t.Errorf("AA is %v with %s", m.Authoritative, got)
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestRespondTruncatedPackets: a packet that is cut anywhere is dropped or FORMERR.
func TestRespondTruncatedPackets(t *testing.T) {
	c, st := wireFixture(t)
	p := packed(t, "www.example.org.", dns.TypeA, withEDNS(4096))
	for n := range p {
		reply, _ := respond(c, st, p[:n], true, first)
		if n < headerSize {
			if reply != nil {
				t.Errorf("%d octets were answered", n)
			}
			continue
		}
		if m := checkReply(t, p[:n], reply, ednsSize); m.Rcode != dns.RcodeFormatError {
			t.Errorf("%d octets: %s, want FORMERR", n, dns.RcodeToString[m.Rcode])
		}
	}
}

// checkReply holds for every answer to every packet: it can be read, it is an answer, to this packet, within the size.
func checkReply(t testing.TB, packet, reply []byte, size int) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("answer cannot be read: %v\npacket %x\nanswer %x", err, packet, reply)
	}
	switch {
	case len(reply) > size:
		t.Errorf("answer of %d octets, at most %d fit", len(reply), size)
	case m.Id != binary.BigEndian.Uint16(packet):
		t.Errorf("id %x, asked with %x", m.Id, packet[:2])
	case !m.Response || m.RecursionAvailable || m.AuthenticatedData || m.Zero:
		t.Errorf("flags of the header are wrong: %v", m.MsgHdr)
	case m.RecursionDesired != (packet[2]&1 != 0):
		t.Errorf("RD is not as it was asked")
	case m.Opcode != int(packet[2]>>3&0xf):
		t.Errorf("opcode %d is not as it was asked", m.Opcode)
	}
	if len(m.Question) > 0 {
		// The question stands where it stood, octet by octet, its case too.
		end, ok := skipName(packet, headerSize, false)
		if !ok || !bytes.Equal(packet[headerSize:end+4], reply[headerSize:end+4]) {
			t.Errorf("question is not as it was asked\npacket %x\nanswer %x", packet, reply)
		}
	} else if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
		t.Errorf("%s without a question", dns.RcodeToString[m.Rcode])
	}
	return m
}

func TestRespondSizes(t *testing.T) {
	c, st := wireFixture(t)
	tests := []struct {
		name  string
		qtype uint16
		edns  uint16 // 0: none
		tcp   bool
		size  int
		tc    bool
		want  string // records in answer, authority, additional
	}{
		{"big.example.org.", dns.TypeA, 0, false, 512, true, "0/0/0"},
		{"big.example.org.", dns.TypeA, 100, false, 512, true, "0/0/0"},
		{"big.example.org.", dns.TypeA, 1232, false, 1232, false, "60/0/0"},
		{"mx.example.org.", dns.TypeMX, 0, false, 512, true, "0/0/0"},
		{"mx.example.org.", dns.TypeMX, 65535, false, 1232, false, "40/0/*"}, // the helpful part is left out without TC
		{"mx.example.org.", dns.TypeMX, 0, true, 65535, false, "40/0/40"},
		{"x.many.example.org.", dns.TypeA, 0, false, 512, true, "0/7/*"}, // RFC 9471: glue that does not fit sets TC
		{"x.many.example.org.", dns.TypeA, 0, true, 65535, false, "0/7/7"},
		{"www.example.org.", dns.TypeA, 512, false, 512, false, "2/0/0"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %d tcp=%v", tt.name, tt.edns, tt.tcp), func(t *testing.T) {
			p := packed(t, tt.name, tt.qtype, func(m *dns.Msg) {
				if tt.edns > 0 {
					m.SetEdns0(tt.edns, true)
				}
			})
			reply, what := respond(c, st, p, !tt.tcp, first)
			m := checkReply(t, p, reply, tt.size)
			extra := len(m.Extra)
			opt := m.IsEdns0()
			if (opt != nil) != (tt.edns > 0) {
				t.Errorf("OPT in the answer is %v", opt)
			}
			if opt != nil {
				extra--
				if opt.UDPSize() != 1232 || !opt.Do() || opt.Version() != 0 {
					t.Errorf("OPT %v", opt)
				}
			}
			if got := fmt.Sprintf("%d/%d/%d", len(m.Answer), len(m.Ns), extra); m.Truncated != tt.tc || what.truncated != tt.tc || !sections(got, tt.want) {
				t.Errorf("got %s tc=%v in %d octets, want %s tc=%v", got, m.Truncated, len(reply), tt.want, tt.tc)
			}
		})
	}
}

// sections compares counts; a star stands for at least one: how much of what is only helpful fits is not fixed.
func sections(got, want string) bool {
	g, w := strings.Split(got, "/"), strings.Split(want, "/")
	return slices.EqualFunc(g, w, func(g, w string) bool { return g == w || (w == "*" && g != "0") })
}

// TestRespondNames: case, the longest names and odd octets come back as they were asked.
func TestRespondNames(t *testing.T) {
	label := strings.Repeat("L", 63)
	longest := label + "." + label + "." + label + "." + strings.Repeat("l", 49) + ".example.org."
	st := stateOf(t, []rota.Service{
		service(longest, "192.0.2.1"), service("_sip._udp.example.org", "192.0.2.1"), service(`a\.b.example.org`, "192.0.2.1"),
		service(`\000\255.example.org`, "192.0.2.1"), service("a.*.b.example.org", "192.0.2.1"), service("-a-.example.org", "192.0.2.1"),
	})
	c := catalogOf(t, st, Zone{Name: "example.org.", NS: []rota.Name{"ns.example.org."}})
	for _, name := range []string{
		longest, strings.ToUpper(longest), "_SIP._uDp.ExAmPlE.oRg.", `A\.b.example.ORG.`, `\000\255.example.org.`, "a.*.b.example.org.",
		"-a-.example.org.",
	} {
		p := packed(t, name, dns.TypeA)
		reply, _ := respond(c, st, p, true, first)
		m := checkReply(t, p, reply, 512)
		if len(m.Answer) != 1 || m.Answer[0].Header().Name != m.Question[0].Name {
			t.Errorf("%s: answered %v", name, m)
		}
	}
}

// TestRespondIsSmall: what strangers can aim at others is no bigger than it must be (FAULTS S6).
func TestRespondIsSmall(t *testing.T) {
	c, st := wireFixture(t)
	for _, q := range []struct {
		name  string
		qtype uint16
	}{
		{"www.example.org.", dns.TypeANY},
		{"mx.example.org.", dns.TypeANY},
		{"elsewhere.test.", dns.TypeANY},
		{"example.org.", dns.TypeAXFR},
		{"example.org.", dns.TypeDNSKEY},
		{".", dns.TypeNS},
	} {
		p := packed(t, q.name, q.qtype, withEDNS(4096))
		reply, _ := respond(c, st, p, true, first)
		if len(reply) > 4*len(p) {
			t.Errorf("%s %s: %d octets for %d", q.name, dns.Type(q.qtype), len(reply), len(p))
		}
	}
}

func FuzzServe(f *testing.F) {
	c, st := wireFixture(f)
	s, err := New(Options{Zones: []Zone{c.views["example.org."].source}, State: func() *rota.State { return st }, Draw: first})
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"www.example.org.", "wWw.eXample.org.", "big.example.org.", "mx.example.org.", "x.many.example.org.", "x.wild.example.org.", "."} {
		for _, t := range []uint16{dns.TypeA, dns.TypeMX, dns.TypeANY, dns.TypeSOA, dns.TypeAXFR, 65280} {
			f.Add(packed(f, name, t), true)
			f.Add(packed(f, name, t, withEDNS(700)), false)
		}
	}
	f.Add(packed(f, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 1) }), true)
	from := netip.MustParseAddrPort("192.0.2.1:1234")
	f.Fuzz(func(t *testing.T, p []byte, udp bool) {
		if len(p) > maxSize {
			return
		}
		in := slices.Clone(p)
		reply := s.serve(p, from, udp)
		if !bytes.Equal(in, p) {
			t.Error("the packet was changed")
		}
		if s.counters.panics.Load() > 0 {
			t.Fatalf("panic at %x", p)
		}
		if reply == nil {
			if len(p) >= headerSize && p[2]&bitQR == 0 {
				t.Errorf("no answer to %x", p)
			}
			return
		}
		size := maxSize
		if udp {
			size = ednsSize
			if h, err := readHeader(p); err == nil {
				if q, err := readQuery(p, h); err == nil && q.edns == nil {
					size = plainSize
				}
			}
		}
		checkReply(t, p, reply, size)
	})
}
