package probe

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// dnsServer answers datagrams to a loopback port by f, and connections by stream if there is one.
func dnsServer(t *testing.T, f func(asked []byte, from net.Addr, reply func([]byte)), stream func(net.Conn)) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(peers.FreePort(t)))
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			f(buf[:n], from, func(b []byte) { _, _ = c.WriteTo(b, from) })
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
	if stream != nil {
		serveOn(t, at.String(), stream)
	}
	return at
}

// replyTo packs the answer to a query, with records as text; change may change it before that.
func replyTo(t *testing.T, asked []byte, change func(*dns.Msg), records ...string) []byte {
	q, m := new(dns.Msg), new(dns.Msg)
	if err := q.Unpack(asked); err != nil {
		t.Errorf("query %x: %v", asked, err)
		return nil
	}
	m.SetReply(q)
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Error(err)
			continue
		}
		m.Answer = append(m.Answer, rr)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

func readFrame(c net.Conn) []byte {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, _ = io.ReadFull(c, b)
	return b
}

func frame(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func TestDNS(t *testing.T) {
	const www = "www.example.org."
	records := []string{www + " 30 IN A 192.0.2.2", www + " 30 IN A 192.0.2.1"}
	truncate := func(m *dns.Msg) { m.Truncated, m.Answer = true, nil }
	rcode := func(n int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = n } }
	short := rota.Timing{Timeout: hasty}
	type reply = func([]byte)
	good := func(q []byte, _ net.Addr, r reply) { r(replyTo(t, q, nil, records...)) }
	with := func(change func(*dns.Msg), records ...string) func([]byte, net.Addr, reply) {
		return func(q []byte, _ net.Addr, r reply) { r(replyTo(t, q, change, records...)) }
	}
	bad := func(change func([]byte) []byte) func([]byte, net.Addr, reply) {
		return func(q []byte, _ net.Addr, r reply) { r(change(replyTo(t, q, nil, records...))) }
	}
	stream := func(f func(net.Conn, []byte)) func(net.Conn) {
		return func(c net.Conn) { f(c, readFrame(c)) }
	}
	cut := with(truncate)
	whole := stream(func(c net.Conn, q []byte) { _, _ = c.Write(frame(replyTo(t, q, nil, records...))) })
	ignored := func(why string) string {
		return "down protocol: answer: none that fits within 500ms; 1 ignored, the last " + why
	}
	for _, c := range []struct {
		name   string
		server func([]byte, net.Addr, reply)
		stream func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"good", good, nil, rota.Check{}, "up ok: answered NOERROR, 2 records"},
		{"no data", with(nil), nil, rota.Check{}, "up ok: answered NOERROR, 0 records"},
		{"no data where some is expected", with(nil), nil, rota.Check{Expect: "^A "}, `down dns: answered NOERROR, and its 0 records do not match "^A "`},
		{"records", good, nil, rota.Check{Expect: `^A 192\.0\.2\.1\nA 192\.0\.2\.2\n$`}, "up ok: answered NOERROR, 2 records"},
		{"other records", good, nil, rota.Check{Expect: `192\.0\.2\.3`}, `down dns: answered NOERROR, and its 2 records do not match "192\\.0\\.2\\.3"`},
		{"text", with(nil, www+` 30 IN TXT "a\"b" "c"`), nil, rota.Check{QueryType: "txt", Expect: `^TXT "a\\"b" "c"\n`}, "up ok: answered NOERROR, 1 records"},
		{"unknown type", with(nil, www+` 30 IN TYPE65280 \# 2 abcd`), nil, rota.Check{QueryType: "TYPE65280", Expect: `^TYPE65280 \\# 2 abcd\n$`}, "up ok: answered NOERROR, 1 records"},
		{"SERVFAIL", with(rcode(dns.RcodeServerFailure)), nil, rota.Check{}, "down dns: answered SERVFAIL, want NOERROR"},
		{"REFUSED", with(rcode(dns.RcodeRefused)), nil, rota.Check{RCode: "noerror, REFUSED"}, "up ok: answered REFUSED, 0 records"},
		{"NXDOMAIN", with(rcode(dns.RcodeNameError)), nil, rota.Check{RCode: "NOERROR,REFUSED"}, "down dns: answered NXDOMAIN, want NOERROR or REFUSED"},
		{"unknown code", with(rcode(14)), nil, rota.Check{}, "down dns: answered RCODE14, want NOERROR"},
		{"other case", with(func(m *dns.Msg) { m.Question[0].Name = "WwW.eXample.ORG." }, records...), nil, rota.Check{}, "up ok: answered NOERROR, 2 records"},
		{"silent", func([]byte, net.Addr, reply) {}, nil, rota.Check{Timing: short}, "down timeout: answer: not done within 500ms"},
		{"other id", bad(func(b []byte) []byte { b[1]++; return b }), nil, rota.Check{Timing: short}, ignored("has another id")},
		{"other name", with(func(m *dns.Msg) { m.Question[0].Name = "db.example.org." }), nil, rota.Check{Timing: short}, ignored("answers another question, with NOERROR")},
		{"other type", with(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), nil, rota.Check{Timing: short}, ignored("answers another question, with NOERROR")},
		{"other class", with(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), nil, rota.Check{Timing: short}, ignored("answers another question, with NOERROR")},
		{"no question", with(func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeFormatError }), nil, rota.Check{Timing: short}, ignored("answers another question, with FORMERR")},
		{"two questions", with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), nil, rota.Check{Timing: short}, ignored("answers another question, with NOERROR")},
		{"echo", func(q []byte, _ net.Addr, r reply) { r(q) }, nil, rota.Check{Timing: short}, ignored("is no answer to a query")},
		{"notify", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), nil, rota.Check{Timing: short}, ignored("is no answer to a query")},
		{"header only", bad(func(b []byte) []byte { return b[:12] }), nil, rota.Check{Timing: short}, ignored("answers another question, with NOERROR")},
		{"short", bad(func(b []byte) []byte { return b[:11] }), nil, rota.Check{Timing: short}, ignored("has 11 bytes")},
		{"empty", bad(func([]byte) []byte { return nil }), nil, rota.Check{Timing: short}, ignored("has 0 bytes")},
		{"cut in a record", bad(func(b []byte) []byte { return b[:len(b)-1] }), nil, rota.Check{Timing: short}, ignored("is malformed")},
		{"pointer loop", func(q []byte, _ net.Addr, r reply) {
			b := replyTo(t, q, nil)
			at := byte(len(b))
			b[7] = 1
			r(append(b, 0xc0, at+2, 0xc0, at, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1))
		}, nil, rota.Check{Timing: short}, ignored("is malformed")},
		{"name that points at itself", bad(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), nil, rota.Check{Timing: short}, ignored("is malformed")},
		{"giant", bad(func(b []byte) []byte { return append(b, make([]byte, 60<<10)...) }), nil, rota.Check{}, "up ok: answered NOERROR, 2 records"},
		{"misfits first", func(q []byte, _ net.Addr, r reply) {
			for i := range 2000 {
				b := replyTo(t, q, rcode(dns.RcodeServerFailure))
				b[i%2]++
				if i%50 == 0 {
					r(b)
				}
			}
			r(replyTo(t, q, nil, records...))
		}, nil, rota.Check{}, "up ok: answered NOERROR, 2 records"},
		{"from elsewhere", func(q []byte, from net.Addr, _ reply) {
			for _, local := range []string{"127.0.0.1:0", "127.0.0.9:0"} {
				c, err := net.ListenPacket("udp", local)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.WriteTo(replyTo(t, q, nil, records...), from)
				c.Close()
			}
		}, nil, rota.Check{Timing: short}, "down timeout: answer: not done within 500ms"},
		{"truncated", cut, whole, rota.Check{Expect: `192\.0\.2\.2`}, "up ok: answered NOERROR, 2 records"},
		{"truncated, no tcp", cut, nil, rota.Check{}, "down refused: connect: refused"},
		{"tcp", func([]byte, net.Addr, reply) { t.Error("asked by udp") }, whole, rota.Check{Transport: "tcp"}, "up ok: answered NOERROR, 2 records"},
		{"tcp closes", good, stream(func(net.Conn, []byte) {}), rota.Check{Transport: "tcp"}, "down reset: answer: closed by the target"},
		{"tcp cut off", good, stream(func(c net.Conn, q []byte) { _, _ = c.Write(frame(replyTo(t, q, nil, records...))[:20]) }), rota.Check{Transport: "tcp"}, "down reset: answer: closed by the target"},
		{"tcp truncated", good, stream(func(c net.Conn, q []byte) { _, _ = c.Write(frame(replyTo(t, q, truncate))) }), rota.Check{Transport: "tcp"}, "down protocol: answer: cut off (TC) although it came by TCP"},
		{"tcp, other id", good, stream(func(c net.Conn, q []byte) { q[0]++; _, _ = c.Write(frame(replyTo(t, q, nil))) }), rota.Check{Transport: "tcp"}, "down protocol: answer: it has another id"},
		{"tcp, nothing", good, stream(func(c net.Conn, _ []byte) { _, _ = c.Write(frame(nil)) }), rota.Check{Transport: "tcp"}, "down protocol: answer: it has 0 bytes"},
		{"tcp, not dns", good, answers("HTTP/1.1 400 Bad Request\r\n\r\n"), rota.Check{Transport: "tcp", Timing: short}, "down timeout: answer: not done within 500ms"},
		{"tcp silent", good, silent, rota.Check{Transport: "tcp", Timing: short}, "down timeout: answer: not done within 500ms"},
		{"tcp drips", good, stream(func(c net.Conn, q []byte) {
			for _, b := range frame(replyTo(t, q, nil, records...)) {
				time.Sleep(10 * time.Millisecond)
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
		}), rota.Check{Transport: "tcp", Timing: short}, "down timeout: answer: not done within 500ms"},
		{"tcp, many", good, stream(func(c net.Conn, q []byte) {
			// 4,000 records whose names are pointers to the longest there is: 64 KiB that are megabytes when written out.
			m := replyTo(t, q, nil)[:len(q)-11] // without the OPT
			long := len(m)
			for range 3 {
				m = append(append(m, 63), strings.Repeat("\x01", 63)...)
			}
			m = append(m, 0)
			start := len(m)
			m = append(m[:long], append([]byte{0, 0, 99, 0, 1, 0, 0, 0, 0, 0, byte(start - long)}, m[long:]...)...) // a root name, then the long one as its data
			for range 4000 {
				m = append(m, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 2, 0xc0|byte((long+11)>>8), byte(long+11))
			}
			binary.BigEndian.PutUint16(m[6:], 4001)
			binary.BigEndian.PutUint16(m[10:], 0)
			_, _ = c.Write(frame(m))
		}), rota.Check{Transport: "tcp", Expect: "no such thing"}, `down dns: answered NOERROR, and its 4001 records do not match "no such thing"`},
		{"no name", good, nil, rota.Check{Query: "-"}, `unknown : the check cannot be asked: query "" is not a domain name`},
		{"bad name", good, nil, rota.Check{Query: "a..b."}, `unknown : the check cannot be asked: query "a..b." is not a domain name`},
		{"bad type", good, nil, rota.Check{QueryType: "AAAAA"}, `unknown : the check cannot be asked: query_type "AAAAA" is not known; want such as A, SOA or TYPE65280`},
		{"bad number", good, nil, rota.Check{QueryType: "TYPE65536"}, `unknown : the check cannot be asked: query_type "TYPE65536" is not known; want such as A, SOA or TYPE65280`},
		{"no type", good, nil, rota.Check{QueryType: "TYPE0"}, `unknown : the check cannot be asked: query_type TYPE0 is no type of records that one answer has`},
		{"transfer", good, nil, rota.Check{QueryType: "AXFR"}, `unknown : the check cannot be asked: query_type AXFR is no type of records that one answer has`},
		{"bad code", good, nil, rota.Check{RCode: "OK"}, `unknown : the check cannot be asked: rcode "OK" is not known; want such as NOERROR or NXDOMAIN`},
		{"bad transport", good, nil, rota.Check{Transport: "doh"}, `unknown : the check cannot be asked: transport "doh": want udp or tcp`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindDNS
			switch c.check.Query {
			case "":
				c.check.Query = www
			case "-":
				c.check.Query = ""
			}
			tr := expect(t, Options{}, dnsServer(t, c.server, c.stream), c.check, c.want)
			if tr.ReceivedSize > 64<<10 {
				t.Errorf("%d bytes were kept", tr.ReceivedSize)
			}
		})
	}
}

// What is asked: one question, EDNS of 1232 bytes, an id and a port that nobody guesses.
func TestDNSQuery(t *testing.T) {
	var mu sync.Mutex
	ids, ports := map[uint16]bool{}, map[string]bool{}
	at := dnsServer(t, func(b []byte, from net.Addr, reply func([]byte)) {
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Error(err)
		}
		mu.Lock()
		ids[m.Id], ports[from.String()] = true, true
		mu.Unlock()
		opt := m.IsEdns0()
		if len(m.Question) != 1 || !m.RecursionDesired || opt == nil || opt.UDPSize() != 1232 || m.Question[0] != (dns.Question{Name: "example.org.", Qtype: dns.TypeSOA, Qclass: dns.ClassINET}) {
			t.Errorf("query %v", m)
		}
		reply(replyTo(t, b, nil, "example.org. 30 IN SOA ns. host. 7 1 1 1 1"))
	}, nil)
	const times = 20
	for range times {
		tr := expect(t, Options{}, at, rota.Check{Kind: rota.KindDNS, Query: "example.org", QueryType: "SOA", Recurse: true, Expect: `^SOA ns\. host\. 7 `}, "up ok: answered NOERROR, 1 records")
		if tr.Sent != "example.org. IN SOA rd" || tr.Received != "NOERROR\nSOA ns. host. 7 1 1 1 1\n" || len(tr.Steps) != 2 {
			t.Errorf("trace %q %q %+v", tr.Sent, tr.Received, tr.Steps)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < times-2 || len(ports) < times-2 { // one pair of equals is seen in some hundred runs, three never
		t.Errorf("%d ids and %d ports in %d queries", len(ids), len(ports), times)
	}
}

func TestDNSIsDark(t *testing.T) {
	free := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(peers.FreePort(t)))
	check := rota.Check{Kind: rota.KindDNS, Query: "example.org."}
	expect(t, Options{}, free, check, "down refused: answer: refused")
	expect(t, Options{}, netip.MustParseAddrPort("[fe80::1]:53"), check, "unknown unroutable: query: fe80::1 is link-local; name its interface, as in fe80::1%eth0")
	expect(t, Options{}, netip.MustParseAddrPort("169.254.169.254:53"), check, "unknown permission: probing 169.254.169.254 is forbidden (169.254.169.254/32)")
}

// TestDNSPeers asks real name servers.
func TestDNSPeers(t *testing.T) {
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var many strings.Builder
			for i := range 100 {
				fmt.Fprintf(&many, "many 300 IN TXT \"%s %d\"\n", strings.Repeat("x", 100), i)
			}
			s := peers.Start(t, kind, peers.Config{Zones: []peers.Zone{{Name: "example.org.", Text: "www 300 IN A 192.0.2.1\nalias 300 IN CNAME www\n" + many.String()}}})
			host, port, _ := net.SplitHostPort(s.Addr())
			n, _ := strconv.ParseUint(port, 10, 16)
			at := netip.AddrPortFrom(netip.MustParseAddr(host), uint16(n))
			dns := func(name string, change ...func(*rota.Check)) rota.Check {
				c := rota.Check{Kind: rota.KindDNS, Query: name}
				for _, f := range change {
					f(&c)
				}
				return c
			}
			expect(t, Options{}, at, dns("www.example.org."), "up ok: answered NOERROR, 1 records")
			expect(t, Options{}, at, dns("www.example.org.", func(c *rota.Check) { c.Transport = "tcp" }), "up ok: answered NOERROR, 1 records")
			expect(t, Options{}, at, dns("www.example.org.", func(c *rota.Check) { c.QueryType = "AAAA" }), "up ok: answered NOERROR, 0 records")
			expect(t, Options{}, at, dns("alias.example.org.", func(c *rota.Check) { c.Expect = `^A 192\.0\.2\.1\nCNAME www\.example\.org\.\n$` }), "up ok: answered NOERROR, 2 records")
			expect(t, Options{}, at, dns("example.org.", func(c *rota.Check) { c.QueryType, c.Expect = "SOA", ` 3600 600 86400 30\n$` }), "up ok: answered NOERROR, 1 records")
			expect(t, Options{}, at, dns("no.example.org."), "down dns: answered NXDOMAIN, want NOERROR")
			expect(t, Options{}, at, dns("elsewhere.example.", func(c *rota.Check) { c.RCode = "REFUSED" }), "up ok: answered REFUSED, 0 records")
			tr := expect(t, Options{}, at, dns("many.example.org.", func(c *rota.Check) { c.QueryType, c.Expect = "TXT", " 99\"\n" }), "up ok: answered NOERROR, 100 records")
			if len(tr.Steps) < 3 || tr.Steps[2].Name != "truncated" {
				t.Errorf("a large answer came without TCP: %+v", tr.Steps)
			}
			s.Signal(syscall.SIGSTOP) // which takes a moment until it has reached every thread
			stopped := dns("www.example.org.", func(c *rota.Check) { c.Timeout = hasty })
			for deadline := time.Now().Add(patient); verdict(ask(t, Options{}, at, stopped)) != "down timeout: answer: not done within 500ms"; {
				if time.Now().After(deadline) {
					t.Fatal("a name server that is stopped is not seen as that")
				}
			}
			s.Signal(syscall.SIGCONT)
			expect(t, Options{}, at, dns("www.example.org."), "up ok: answered NOERROR, 1 records")
			s.Kill()
			expect(t, Options{}, at, dns("www.example.org."), "down refused: answer: refused")
		})
	}
}

func FuzzDNSAnswer(f *testing.F) {
	q := newQuestion(rota.Check{Kind: rota.KindDNS, Port: 53, Query: "www.example.org.", Expect: "192"})
	ready := q.ready.(*dnsQuery)
	sent := ready.wire
	m := new(dns.Msg)
	_ = m.Unpack(sent)
	m.Response = true
	for _, text := range []string{"www.example.org. 30 IN A 192.0.2.1", "www.example.org. 30 IN TXT \"a\"", "www.example.org. 1 IN HTTPS 1 . alpn=h2", `www.example.org. 1 IN TYPE65280 \# 1 00`} {
		rr, _ := dns.NewRR(text)
		m.Answer = append(m.Answer, rr)
		b, _ := m.Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ready.read(sent, b)
		if err != nil {
			return
		}
		r := &run{q: q, trace: &Trace{}}
		if v := r.judgeDNS(ready, m); v.status == rota.Unknown || len(r.trace.Received) > maxHead+50 {
			t.Errorf("%+v, %d bytes", v, len(r.trace.Received))
		}
		if text := dnsRecords(m.Answer, 100); len(text) > 100 {
			t.Errorf("%d bytes of text", len(text))
		}
	})
}
