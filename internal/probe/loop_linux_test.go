package probe

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rota-dns/rota/internal/rota"
)

// A probe in flight ends when its target goes, and does not wait for its deadline.
func TestEngineCancels(t *testing.T) {
	at := serveOn(t, "0.0.0.0:0", silent)
	p, ts := running(t, Options{}, at, 20, rota.Check{Kind: rota.KindHTTP, Timing: rota.Timing{Interval: time.Hour, FastInterval: time.Millisecond, Timeout: time.Hour}})
	until(t, "all are in flight", func() bool { return p.Stats().InFlight == len(ts) })
	p.Set(ts[:1])
	until(t, "one is left", func() bool { return p.Stats().InFlight == 1 })
	if n := count(p, rota.Down); n != 0 {
		t.Errorf("%d cancelled probes count as failures", n)
	}
}

// TestEngineDark is P2 and P17: whoever does not answer holds a socket until his deadline, no more than there are, and the others are
// probed as before.
func TestEngineDark(t *testing.T) {
	dark, live := serveOn(t, "0.0.0.0:0", silent), serveOn(t, "0.0.0.0:0", answers(page200))
	p := New(Options{Concurrency: 60})
	var ts []rota.Target
	check := func(kind rota.Kind, at netip.AddrPort, net byte, n int, timing rota.Timing) {
		for i := range n {
			ts = append(ts, rota.NewTarget(netip.AddrFrom4([4]byte{127, 0, net, byte(i + 1)}), rota.Check{Kind: kind, Port: at.Port(), Timing: timing}))
		}
	}
	check(rota.KindHTTP, dark, 4, 50, rota.Timing{Interval: time.Hour, FastInterval: time.Millisecond, Timeout: time.Hour})
	check(rota.KindHTTP, live, 5, 20, rota.Timing{Interval: 5 * time.Millisecond, FastInterval: 5 * time.Millisecond, Timeout: patient})
	p.Set(ts)
	runProber(t, p)
	until(t, "the dark hold their sockets", func() bool { return p.Stats().InFlight >= 50 })
	before := count(p, rota.Up)
	until(t, "200 more answers", func() bool {
		if n := p.Stats().InFlight; n > 60 {
			t.Fatalf("%d probes in flight, want 60 at most", n)
		}
		return count(p, rota.Up) >= before+200
	})
	if n := count(p, rota.Down); n != 0 {
		t.Errorf("%d probes failed", n)
	}
}

// An hour's deadline beside one of an instant: each ends at its own.
func TestEngineDeadlines(t *testing.T) {
	at := serve(t, silent)
	short := rota.Timing{Interval: 10 * time.Millisecond, FastInterval: 10 * time.Millisecond, Timeout: 50 * time.Millisecond}
	ts := []rota.Target{
		rota.NewTarget(netip.MustParseAddr("127.0.0.1"), rota.Check{Kind: rota.KindHTTP, Port: at.Port(), Timing: rota.Timing{Interval: time.Hour, FastInterval: time.Millisecond, Timeout: time.Hour}}),
		rota.NewTarget(netip.MustParseAddr("127.0.0.1"), rota.Check{Kind: rota.KindHTTP, Port: at.Port(), Timing: short}),
	}
	p := New(Options{})
	p.Set(ts)
	runProber(t, p)
	until(t, "three timeouts", func() bool { return count(p, rota.Down)+count(p, rota.Unknown) >= 3 })
	for _, tr := range p.History(ts[1].ID) {
		if o := tr.Observation; o.Took < 50*time.Millisecond || (o.Class != rota.ClassTimeout && o.Class != rota.ClassResource) {
			t.Errorf("%s after %v", verdict(tr), o.Took)
		}
	}
	if len(p.History(ts[0].ID)) != 0 {
		t.Error("the patient one has ended")
	}
}

// TestPoor is P19: without descriptors, ours or the kernel's, nothing is down. The process with few of them is this test in another.
func TestPoor(t *testing.T) {
	const asked = "ROTA_PROBE_POOR"
	if at := os.Getenv(asked); at != "" {
		poor(t, netip.MustParseAddrPort(at))
		return
	}
	at := serveOn(t, "0.0.0.0:0", silent)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "-test.run=^TestPoor$", "-test.v")
	c.Env = append(os.Environ(), asked+"="+at.String())
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func poor(t *testing.T, at netip.AddrPort) {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	p := New(Options{Concurrency: 500})
	var ts []rota.Target
	for i := range 200 {
		for _, kind := range []rota.Kind{rota.KindHTTP, rota.KindTLS} { // in the engine, and on a goroutine
			ts = append(ts, rota.NewTarget(netip.AddrFrom4([4]byte{127, 0, 6, byte(i + 1)}), rota.Check{
				Kind: kind, Port: at.Port(), Timing: rota.Timing{Interval: time.Second, FastInterval: 100 * time.Millisecond, Timeout: time.Hour, Fall: 1, Rise: 1, OK: 1},
			}))
		}
	}
	p.Set(ts)
	runProber(t, p)
	until(t, "1000 probes without a socket", func() bool { return count(p, rota.Unknown) >= 1000 })
	if n := count(p, rota.Down); n != 0 {
		t.Errorf("%d probes blame the target: %+v", n, p.Stats().Kinds)
	}
	for _, o := range p.Report().Opinions {
		if o.Status == rota.Down {
			t.Fatalf("%s is down: %s", o.Target, o.Reason)
		}
	}
}

// What the system calls say is what Go's own say: the same error for the same failure.
func TestWireFaults(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	for _, c := range []struct {
		at   netip.AddrPort
		want string
	}{
		{free, "down refused: connect: refused"},
		{netip.AddrPortFrom(netip.MustParseAddr("fe80::1"), 80), "unknown unroutable: connect: fe80::1 is link-local; name its interface, as in fe80::1%eth0"},
	} {
		for _, by := range []func(*testing.T, *Prober, rota.Target) Trace{byGoroutine, byEngine} {
			tr := by(t, New(Options{}), rota.NewTarget(c.at.Addr(), rota.Check{Kind: rota.KindTCP, Port: c.at.Port(), Timing: rota.Timing{Timeout: patient}}))
			if got := verdict(tr); got != c.want {
				t.Errorf("%v: %s, want %s", c.at, got, c.want)
			}
		}
	}
}

// An ICMP socket that the loop cannot listen on sends nothing: targets would fall silent by our own doing.
func TestEchoThatNobodyHears(t *testing.T) {
	p := New(Options{})
	e, err := newEngine(p, newPinger(p.log), make(chan finished, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	null, err := os.Open(os.DevNull) // which epoll does not take
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	l, s := e.(*loop), &socket{waiting: map[uint64]waiting{}}
	b := &batch{l: l, s: s, fd: int(null.Fd()), number: -1}
	s.outbox = b
	l.order(order{call: b.attach})
	answers := make(chan result, 2)
	for range 2 {
		if _, err := s.send(waiting{addr: netip.MustParseAddr("127.0.0.1"), answer: answers}); err != nil {
			t.Fatal(err)
		}
		if a := <-answers; !errors.Is(a.err, syscall.EPERM) {
			t.Errorf("%+v, want the error of epoll", a)
		}
	}
}
