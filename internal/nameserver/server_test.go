package nameserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

func exampleZone() Zone { return Zone{Name: "example.org.", NS: []rota.Name{"ns1.example.org."}} }

func fixed(st *rota.State) func() *rota.State { return func() *rota.State { return st } }

// TestServe: the same question over UDP and TCP, IPv4 and IPv6, on addresses with and without a host.
func TestServe(t *testing.T) {
	st := stateOf(t, []rota.Service{service("www.example.org", "192.0.2.10")})
	s, _ := start(t, Options{Listen: []string{":0", "127.0.0.1:0", "[::1]:0"}, Zones: []Zone{exampleZone()}, State: fixed(st), Draw: first})
	if len(s.Addrs()) != 4 {
		t.Fatalf("listens on %v, want 4 addresses", s.Addrs())
	}
	for _, a := range s.Addrs() {
		to := a
		switch {
		case a.Addr() == netip.IPv4Unspecified():
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), a.Port()) // the answer must come from there
		case a.Addr() == netip.IPv6Unspecified():
			to = netip.AddrPortFrom(netip.IPv6Loopback(), a.Port())
		}
		for _, network := range []string{"udp", "tcp"} {
			c := dns.Client{Net: network, Timeout: 5 * time.Second}
			r, _, err := c.Exchange(new(dns.Msg).SetQuestion("wWw.example.org.", dns.TypeA), to.String())
			if err != nil {
				t.Fatalf("%s %s: %v", network, to, err)
			}
			diff(t, network+" "+to.String(), lines(r.Answer), []string{"wWw.example.org. 30 IN A 192.0.2.10"})
		}
	}
}

// TestVerdictIsVisibleAtOnce: the first query after a change of state sees it.
func TestVerdictIsVisibleAtOnce(t *testing.T) {
	up := stateOf(t, []rota.Service{service("www.example.org", "192.0.2.10", "192.0.2.11", "192.0.2.12")})
	var now atomic.Pointer[rota.State]
	now.Store(up)
	_, addr := start(t, Options{Zones: []Zone{exampleZone()}, State: now.Load, Draw: first})
	for _, tt := range []struct {
		st   *rota.State
		want int
	}{{up, 3}, {judge(t, up, "192.0.2.11"), 2}, {up, 3}} {
		now.Store(tt.st)
		if r := exchangeUDP(t, addr, "www.example.org."); len(r.Answer) != tt.want {
			t.Errorf("%d addresses, want %d", len(r.Answer), tt.want)
		}
	}
}

// TestServicesChange: the first query after a change of the configured services sees the new ones, and no longer the old.
func TestServicesChange(t *testing.T) {
	st := stateOf(t, []rota.Service{service("old.example.org", "192.0.2.10")})
	s, err := New(Options{Zones: []Zone{exampleZone()}, State: func() *rota.State { return st }})
	if err != nil {
		t.Fatal(err)
	}
	rcode := func(name string) string {
		p := packed(t, name, dns.TypeA)
		return dns.RcodeToString[checkReply(t, p, s.serve(p, netip.MustParseAddrPort("192.0.2.1:1"), true), 512).Rcode]
	}
	diff(t, "before", []string{rcode("old.example.org."), rcode("new.example.org.")}, []string{"NOERROR", "NXDOMAIN"})
	st = stateOf(t, []rota.Service{service("new.example.org", "192.0.2.10")})
	diff(t, "after", []string{rcode("old.example.org."), rcode("new.example.org.")}, []string{"NXDOMAIN", "NOERROR"})
}

func exchangeUDP(t testing.TB, addr, name string) *dns.Msg {
	t.Helper()
	c := dns.Client{Timeout: 5 * time.Second}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), addr)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestStorm: while states and zones change as fast as they can, each answer is wholly one version: the addresses agree with each
// other, with the TTL and with the additional section.
func TestStorm(t *testing.T) {
	// Version v has its own addresses, TTL and, by the other writer, its own TXT and MX.
	var versions []*rota.State
	for v := range 4 {
		name := fmt.Sprintf("10.0.%d.", v)
		s := service("www.example.org", name+"1", name+"2", name+"3")
		s.TTL = uint32(100 + v)
		extra := service(fmt.Sprintf("only%d.example.org", v), "192.0.2.1") // the names that exist change too
		versions = append(versions, stateOf(t, []rota.Service{s, extra}))
	}
	var now atomic.Pointer[rota.State]
	now.Store(versions[0])
	zone := func(v int) Zone {
		z := exampleZone()
		z.Records = fmt.Sprintf("$TTL %d\nmx MX %d www\nmx MX %d mail%d\nmail%d A 10.9.9.%d\n", 200+v, v, v, v, v, v)
		return z
	}
	s, err := New(Options{Zones: []Zone{zone(0)}, State: now.Load})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				now.Store(versions[i%len(versions)])
			}
		}
	})
	writers.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				if err := s.SetZones([]Zone{zone(i % 5)}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	from := netip.MustParseAddrPort("192.0.2.1:1234")
	for range 2 {
		readers.Go(func() {
			for i := range 3000 {
				name, qtype := "www.example.org.", dns.TypeA
				if i%2 == 1 {
					name, qtype = "mx.example.org.", dns.TypeMX
				}
				m := new(dns.Msg)
				if err := m.Unpack(s.serve(packed(t, name, qtype), from, true)); err != nil {
					t.Error(err)
					return
				}
				if bad := torn(m); bad != "" {
					t.Errorf("%s:\n%v", bad, m)
					return
				}
			}
		})
	}
	readers.Wait()
	close(done)
	writers.Wait()
}

// torn says what in an answer of TestStorm is not of one version.
func torn(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
		return "no answer"
	}
	zone, state := -1, -1
	same := func(seen *int, v int) bool {
		if *seen < 0 {
			*seen = v
		}
		return *seen == v
	}
	addresses := 0
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		h := rr.Header()
		ok := true
		switch d := rr.(type) {
		case *dns.MX:
			ok = same(&zone, int(d.Preference)) && same(&zone, int(h.Ttl)-200)
		case *dns.A:
			if h.Name == "www.example.org." {
				ok = same(&state, int(d.A[2])) && same(&state, int(h.Ttl)-100)
				addresses++
			} else {
				ok = same(&zone, int(d.A[3])) && same(&zone, int(h.Ttl)-200)
			}
		}
		if !ok {
			return "versions mixed"
		}
	}
	if addresses != 3 {
		return "addresses are missing"
	}
	return ""
}

// TestSetZones: all or nothing; serials only grow, and grow with a change.
func TestSetZones(t *testing.T) {
	st := stateOf(t, []rota.Service{service("www.example.org", "192.0.2.10")})
	s, err := New(Options{Zones: []Zone{exampleZone()}, State: fixed(st)})
	if err != nil {
		t.Fatal(err)
	}
	soa := func() uint32 {
		c, st := s.load()
		return ask(c, st, "example.org", "SOA", first).answer[0].(*dns.SOA).Serial
	}
	before := soa()
	if err := s.SetZones([]Zone{{Name: "other.test.", NS: []rota.Name{"ns."}}, {Name: "bad.test."}}); err == nil {
		t.Fatal("a zone without name server was taken")
	}
	diff(t, "zones after an error", s.catalog.Load().zones.Names(), []rota.Name{"example.org."})
	if err := s.SetZones([]Zone{exampleZone()}); err != nil {
		t.Fatal(err)
	}
	if got := soa(); got != before {
		t.Errorf("serial %d after nothing changed, was %d", got, before)
	}
	changed := exampleZone()
	changed.Records = "x TXT y\n"
	for _, z := range []Zone{changed, exampleZone(), changed} {
		if err := s.SetZones([]Zone{z}); err != nil {
			t.Fatal(err)
		}
		got := soa()
		if int32(got-before) <= 0 {
			t.Errorf("serial %d after a change, was %d", got, before)
		}
		before = got
	}
}

// TestPanic: a bug in one query is one SERVFAIL, counted and logged.
func TestPanic(t *testing.T) {
	var log bytes.Buffer
	bug := false
	s, err := New(Options{Zones: []Zone{exampleZone()}, Log: slog.New(slog.NewTextHandler(&log, nil)), State: func() *rota.State {
		if bug {
			panic("a bug")
		}
		return &rota.State{}
	}})
	if err != nil {
		t.Fatal(err)
	}
	bug = true
	p := packed(t, "www.example.org.", dns.TypeA)
	m := checkReply(t, p, s.serve(p, netip.MustParseAddrPort("192.0.2.1:1"), true), 512)
	if m.Rcode != dns.RcodeServerFailure || s.Stats().Panics != 1 || !strings.Contains(log.String(), "a bug") {
		t.Errorf("rcode %d, stats %+v, log %s", m.Rcode, s.Stats(), log.String())
	}
}

func TestStats(t *testing.T) {
	st := stateOf(t, []rota.Service{service("www.example.org", "192.0.2.10")})
	s, err := New(Options{Zones: []Zone{exampleZone()}, State: fixed(st)})
	if err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddrPort("192.0.2.1:1234")
	send := func(p []byte, udp bool) { s.serve(p, from, udp) }
	send(packed(t, "www.example.org.", dns.TypeA), true)
	send(packed(t, "www.example.org.", dns.TypeA), true)
	send(packed(t, "www.example.org.", dns.TypeA), false)
	send(packed(t, "no.example.org.", dns.TypeA), true)
	send(packed(t, "elsewhere.test.", dns.TypeA), true)
	send([]byte("junk"), true)
	if s.serve(packed(t, "www.example.org.", dns.TypeA), netip.MustParseAddrPort("192.0.2.1:0"), true) != nil {
		t.Error("port 0 was answered")
	}
	got := s.Stats()
	diff(t, "queries", got.Queries, []QueryCount{
		{"", UDP, "REFUSED", 1}, {"example.org.", TCP, "NOERROR", 1}, {"example.org.", UDP, "NOERROR", 2}, {"example.org.", UDP, "NXDOMAIN", 1},
	})
	if got.Malformed != 1 || got.PortZero != 1 || got.Latency[len(got.Latency)-1].Count != 5 {
		t.Errorf("%+v", got)
	}
	if err := s.SetZones([]Zone{exampleZone()}); err != nil {
		t.Fatal(err)
	}
	diff(t, "queries after a reload", s.Stats().Queries, got.Queries)
}

func TestListenErrors(t *testing.T) {
	busy, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	busyTCP, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busyTCP.Close()
	for _, tt := range []struct{ listen, want string }{
		{busy.LocalAddr().String(), "/udp: address already in use: another program has it"},
		{busyTCP.Addr().String(), "/tcp: address already in use: another program has it"},
		{"192.0.2.1:5353", "this machine has no such address"},
		{"localhost:53", `"localhost" is not an IP address`},
		{"127.0.0.1", "write it as 192.0.2.53:53"},
		{"127.0.0.1:domain", `port "domain" is not a number`},
		{"127.0.0.1:65536", `port "65536" is not a number`},
	} {
		s, err := New(Options{Listen: []string{"127.0.0.1:0", tt.listen}, State: fixed(&rota.State{})})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Listen(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want …%s…", tt.listen, err, tt.want)
		}
		if len(s.Addrs()) != 0 {
			t.Errorf("%s: still listens on %v", tt.listen, s.Addrs())
		}
	}
	err = listenError(netip.MustParseAddrPort("0.0.0.0:53"), "udp", &net.OpError{Err: os.NewSyscallError("bind", syscall.EACCES)})
	if !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") || !errors.Is(err, syscall.EACCES) {
		t.Error(err)
	}
}

func TestRunStops(t *testing.T) {
	s, err := New(Options{Listen: []string{"127.0.0.1:0"}, Zones: []Zone{exampleZone()}, State: fixed(&rota.State{}), IdleTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	conn := dialTCP(t, s.Addrs()[0].String()) // idles
	ask1(t, conn)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("connection after the end: %v", err)
	}
}

func dialTCP(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func frame(p []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...) }

func readFrame(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, p)
	return p, err
}

// ask1 has one conversation over a connection and fails without an answer.
func ask1(t testing.TB, c *net.TCPConn) {
	t.Helper()
	p := packed(t, "example.org.", dns.TypeSOA)
	if _, err := c.Write(frame(p)); err != nil {
		t.Fatal(err)
	}
	reply, err := readFrame(c)
	if err != nil {
		t.Fatal(err)
	}
	checkReply(t, p, reply, maxSize)
}

// TestTCPPipeline: thousands of queries at once, answered in their order, then half close.
func TestTCPPipeline(t *testing.T) {
	_, addr := start(t, Options{Zones: []Zone{exampleZone()}, State: fixed(&rota.State{})})
	c := dialTCP(t, addr)
	const n = 10000
	go func() {
		var out bytes.Buffer
		for i := range n {
			p := packed(t, "example.org.", dns.TypeSOA)
			binary.BigEndian.PutUint16(p, uint16(i))
			out.Write(frame(p))
		}
		c.Write(out.Bytes())
		c.CloseWrite()
	}()
	for i := range n {
		p, err := readFrame(c)
		if err != nil {
			t.Fatalf("after %d answers: %v", i, err)
		}
		if id := binary.BigEndian.Uint16(p); id != uint16(i) {
			t.Fatalf("answer %d has id %d", i, id)
		}
	}
	if _, err := readFrame(c); err != io.EOF {
		t.Errorf("after the last answer: %v", err)
	}
}

// TestTCPSlow: a query that comes octet by octet, split anywhere, is answered; one that does not come in time ends the connection,
// like a client that never reads, one that says nothing and one that sends junk.
func TestTCPSlow(t *testing.T) {
	s, addr := start(t, Options{
		Zones: []Zone{exampleZone()}, State: fixed(&rota.State{}), IdleTimeout: 300 * time.Millisecond, IOTimeout: 300 * time.Millisecond,
	})
	c := dialTCP(t, addr)
	c.SetNoDelay(true)
	for _, b := range frame(packed(t, "example.org.", dns.TypeSOA)) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readFrame(c); err != nil {
		t.Fatal(err)
	}
	ended := func(what string, send []byte) {
		t.Helper()
		c := dialTCP(t, addr)
		c.Write(send)
		if p, err := readFrame(c); err == nil {
			t.Errorf("%s: answered %x", what, p)
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the connection stays open", what)
		}
	}
	ended("nothing", nil)
	ended("half a length", []byte{0})
	ended("half a query", frame(packed(t, "example.org.", dns.TypeSOA))[:9])
	ended("length of 0", []byte{0, 0})
	ended("junk", []byte("GET / HTTP/1.1\r\n\r\n"))
	ended("an answer", frame([]byte{0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}))

	deaf := dialTCP(t, addr)
	deaf.SetReadBuffer(4096)
	p := frame(packed(t, "example.org.", dns.TypeSOA))
	for err := error(nil); err == nil; { // ends when the server gives up
		_, err = deaf.Write(bytes.Repeat(p, 1000))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a client that never reads is never given up")
		}
	}
	waitFor(t, "no connection is left", func() bool { return s.conns.open() <= 1 })
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain: " + what)
		}
	}
}

// TestTCPLimits: one client has no more than its share, and who asks comes before who only holds on.
func TestTCPLimits(t *testing.T) {
	s, addr := start(t, Options{
		Listen: []string{"0.0.0.0:0"}, Zones: []Zone{exampleZone()}, State: fixed(&rota.State{}), MaxTCP: 4, MaxClient: 2, IdleTimeout: time.Hour,
	})
	_, port, _ := net.SplitHostPort(addr)
	dial := func(from string) *net.TCPConn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c.(*net.TCPConn)
	}
	gone := func(c *net.TCPConn) bool {
		_, err := c.Read(make([]byte, 1))
		ne, ok := err.(net.Error)
		return err != nil && !(ok && ne.Timeout())
	}
	a1, a2 := dial("127.0.0.1"), dial("127.0.0.1")
	ask1(t, a1)
	ask1(t, a2)
	if a3 := dial("127.0.0.1"); !gone(a3) {
		t.Error("one client has three connections, the limit is two")
	}
	b1, b2 := dial("127.0.0.2"), dial("127.0.0.2")
	ask1(t, b1)
	ask1(t, b2)
	ask1(t, a1) // now a2 idles longest
	waitFor(t, "all idle again", func() bool {
		s.conns.mu.Lock()
		defer s.conns.mu.Unlock()
		return s.conns.idling.Len() == 4
	})
	c1 := dial("127.0.0.3")
	ask1(t, c1)
	if !gone(a2) {
		t.Error("the connection that idled longest was not closed for a new client")
	}
	ask1(t, a1)
	ask1(t, b1)
	if st := s.Stats(); st.TCPOpen != 4 || st.TCPClosed != 2 {
		t.Errorf("stats %+v", st)
	}
}
