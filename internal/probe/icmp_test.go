package probe

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

func TestPingLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1"} {
		for _, count := range []int{1, 5} {
			tr := New(Options{}).Once(t.Context(), rota.NewTarget(netip.MustParseAddr(addr), rota.Check{
				Kind: rota.KindICMP, Count: count, Timing: rota.Timing{Timeout: 3 * time.Second},
			}))
			if tr.Observation.Class == rota.ClassPermission {
				t.Fatalf("%s: this test needs ping sockets or CAP_NET_RAW: %s", addr, tr.Observation.Reason)
			}
			if verdict(tr) != "up ok: reply" {
				t.Errorf("%s: %s; %q", addr, verdict(tr), tr.Received)
			}
		}
	}
}

func TestPingWithoutPermission(t *testing.T) {
	p := New(Options{})
	ping := newPinger(p.log)
	ping.open = func(bool) (*socket, error) { return nil, &net.OpError{Op: "listen", Err: syscall.EPERM} }
	defer ping.close()
	tr := p.observe(t.Context(), "x", netip.MustParseAddr("127.0.0.1"), newQuestion(rota.Check{Kind: rota.KindICMP}), nil, ping)
	if o := tr.Observation; o.Status != rota.Unknown || o.Class != rota.ClassPermission {
		t.Error(verdict(*tr))
	}
}

// request makes a request of s.
func request(s *socket, number uint64) []byte {
	b := make([]byte, echoSize)
	s.request(b, number)
	return b
}

// reply makes the answer to a request of s.
func reply(s *socket, number uint64, change func([]byte)) []byte {
	b := request(s, number)
	b[0] = echoReply4
	if s.six {
		b[0] = echoReply6
	}
	change(b)
	return b
}

// quote4 makes the ICMP error about a request of s to dst.
func quote4(s *socket, number uint64, dst netip.Addr, change func([]byte)) []byte {
	b := make([]byte, 28, 28+echoSize)
	b[0], b[1], b[8], b[17] = unreachable4, 1, 0x45, protocol4
	a := dst.As4()
	copy(b[24:], a[:])
	b = append(b, request(s, number)...)
	change(b)
	return b
}

// TestPingTakesOnlyItsOwn is P12.
func TestPingTakesOnlyItsOwn(t *testing.T) {
	addr, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	same := func([]byte) {}
	for _, c := range []struct {
		name string
		from netip.Addr
		make func(s *socket) []byte
		want bool
	}{
		{"reply", addr, func(s *socket) []byte { return reply(s, 7, same) }, true},
		{"spoofed source", other, func(s *socket) []byte { return reply(s, 7, same) }, false},
		{"wrong id", addr, func(s *socket) []byte { return reply(s, 7, func(b []byte) { b[4] ^= 1 }) }, false},
		{"wrong sequence", addr, func(s *socket) []byte { return reply(s, 7, func(b []byte) { b[7]++ }) }, false},
		{"wrong identity", addr, func(s *socket) []byte { return reply(s, 7, func(b []byte) { b[9] ^= 1 }) }, false},
		{"late", addr, func(s *socket) []byte { return reply(s, 6, same) }, false},
		{"number beyond", addr, func(s *socket) []byte { return reply(s, 7+1<<16, same) }, false},
		{"short", addr, func(s *socket) []byte { return reply(s, 7, same)[:20] }, false},
		{"request", addr, func(s *socket) []byte { return request(s, 7) }, false},
		{"unreachable", other, func(s *socket) []byte { return quote4(s, 7, addr, same) }, true},
		{"unreachable, short quote", other, func(s *socket) []byte { return quote4(s, 7, addr, same)[:36] }, true},
		{"unreachable, other flow", other, func(s *socket) []byte { return quote4(s, 7, other, same) }, false},
		{"unreachable, udp", other, func(s *socket) []byte { return quote4(s, 7, addr, func(b []byte) { b[17] = 17 }) }, false},
		{"unreachable, other id", other, func(s *socket) []byte { return quote4(s, 7, addr, func(b []byte) { b[33] ^= 1 }) }, false},
	} {
		s := &socket{raw: true, id: 0x1234, number: 7, waiting: map[uint64]waiting{}}
		s.identity[0] = 9
		got := make(chan result, 1)
		s.waiting[7] = waiting{addr: addr, answer: got}
		s.take(c.make(s), c.from, time.Now())
		s.take(c.make(s), c.from, time.Now()) // a duplicate is dropped: the channel has room for one
		if taken := len(got) == 1; taken != c.want {
			t.Errorf("%s: taken %v, want %v", c.name, taken, c.want)
		}
	}
}

func FuzzParseEcho(f *testing.F) {
	s := &socket{id: 1}
	f.Add(request(s, 1), false)
	f.Add(quote4(s, 1, netip.MustParseAddr("192.0.2.1"), func([]byte) {}), false)
	f.Add(make([]byte, 56), true)
	f.Fuzz(func(t *testing.T, b []byte, six bool) {
		e, ok := parseEcho(b, six)
		if ok && e.quoted && len(b) < echoSize {
			t.Error("an identity was read from nowhere")
		}
		if ok && e.failure == "" && e.seq != binary.BigEndian.Uint16(b[6:]) {
			t.Error("wrong sequence")
		}
	})
}

// What arrived before the deadline counts, and what arrived after it does not, whichever of them is looked at when.
func TestPingJudgesByArrival(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	for range 50 {
		s := &socket{raw: true, waiting: map[uint64]waiting{}}
		end := time.Now().Add(-time.Second) // the process was kept from looking until now
		ctx, cancel := context.WithDeadline(t.Context(), end)
		at := []time.Time{end.Add(-time.Millisecond), end.Add(time.Millisecond), end.Add(-time.Microsecond)}
		s.conn = answering{PacketConn: nil, sent: func() {
			s.take(reply(s, s.number, func([]byte) {}), addr, at[s.number-1])
		}}
		p := newPinger(slog.New(slog.DiscardHandler))
		p.socks[0] = s
		var f finding
		q := newQuestion(rota.Check{Kind: rota.KindICMP, Count: 1, Timing: rota.Timing{Timeout: time.Second}})
		for i, want := range []rota.Status{rota.Up, rota.Down, rota.Up} {
			f = probeICMP(ctx, &run{ping: p, addr: addr, q: q, trace: &Trace{}, parent: t.Context()})
			if f.status != want {
				t.Fatalf("answer %d: %+v, want %v", i, f, want)
			}
		}
		cancel()
	}
}

// answering is a connection over which every request is answered while it is sent.
type answering struct {
	net.PacketConn
	sent func()
}

func (a answering) WriteTo(b []byte, _ net.Addr) (int, error) {
	a.sent()
	return len(b), nil
}

func TestTimeoutOfNothing(t *testing.T) {
	check := rota.Check{Kind: rota.KindICMP, Count: rota.MaxCount, Timing: rota.Timing{Timeout: 1}}
	got := New(Options{}).Once(t.Context(), rota.NewTarget(netip.MustParseAddr("127.0.0.1"), check)).Observation
	if got.Status == rota.Up {
		t.Errorf("within a nanosecond: %+v", got)
	}
}
