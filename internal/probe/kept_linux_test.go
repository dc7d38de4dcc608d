package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// keeper serves pages over connections that stay open: as many on each as limit says, 0 for ever; then it closes without a word.
type keeper struct {
	conns, asked atomic.Int64
	limit        int
	before       bool // it closes when the request after the last has come, not at once
}

func (k *keeper) serve(c net.Conn) {
	k.conns.Add(1)
	in := bufio.NewReader(c)
	for n := 1; ; n++ {
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
		}
		if k.before && n > k.limit {
			return
		}
		k.asked.Add(1)
		if _, err := io.WriteString(c, page200); err != nil || (!k.before && n == k.limit) {
			return
		}
	}
}

// running runs a prober of one check at several addresses until the test ends.
func running(t *testing.T, o Options, at netip.AddrPort, n int, c rota.Check) (*Prober, []rota.Target) {
	t.Helper()
	c.Port = at.Port()
	if c.Timeout == 0 {
		c.Timeout = patient
	}
	c.Fall, c.Rise, c.OK = 3, 1, 1
	var ts []rota.Target
	for i := range n {
		ts = append(ts, rota.NewTarget(netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i + 1)}), c))
	}
	p := New(o)
	p.Set(ts)
	runProber(t, p)
	return p, ts
}

// runProber runs p until the test ends.
func runProber(t *testing.T, p *Prober) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// until polls for a condition, as long as any machine may take.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 40 s: %s", what)
		}
	}
}

func count(p *Prober, s rota.Status) (n int) {
	for _, k := range p.Stats().Kinds {
		for _, r := range k.Results {
			if r.Status == s {
				n += int(r.Count)
			}
		}
	}
	return n
}

// opinion is what p holds of a target; unknown while it has no report of it.
func opinion(p *Prober, t rota.Target) rota.Status {
	if o := p.Report().Opinion(t.ID); o != nil {
		return o.Status
	}
	return rota.Unknown
}

var quick = rota.Timing{Interval: 5 * time.Millisecond, FastInterval: 5 * time.Millisecond}

func TestReuse(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, c := range []struct {
		name     string
		limit    int
		before   bool
		mostEach int64 // connections for 10 answers
	}{
		{"for ever", 0, false, 1},
		{"closed after each answer", 1, false, 1000},
		{"closed at the next request", 1, true, 1000},
		{"closed after three", 3, false, 1000},
	} {
		for _, kind := range []rota.Kind{rota.KindHTTP, rota.KindHTTPS} {
			t.Run(c.name+"/"+string(kind), func(t *testing.T) {
				k := &keeper{limit: c.limit, before: c.before}
				f := k.serve
				if kind == rota.KindHTTPS {
					f = tlsServer(conf, k.serve)
				}
				at := serve(t, f)
				p, _ := running(t, Options{Roots: ca.roots}, at, 1, rota.Check{Kind: kind, Timing: quick, Reuse: true, Host: "www.example.org"})
				until(t, "ten answers", func() bool { return count(p, rota.Up) >= 10 })
				if n := k.conns.Load(); n > c.mostEach {
					t.Errorf("%d connections for %d requests", n, k.asked.Load())
				}
				if n := count(p, rota.Down); n != 0 {
					t.Errorf("%d probes failed: a server may close a connection that waits", n)
				}
			})
		}
	}
}

// A failure that only a fresh connection can tell from a closed one counts once the fresh one fails.
func TestReuseOfTheDead(t *testing.T) {
	k := &keeper{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.Map
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Go(func() { defer c.Close(); k.serve(c) })
		}
	})
	p, ts := running(t, Options{}, netip.MustParseAddrPort(l.Addr().String()), 1, rota.Check{Kind: rota.KindHTTP, Timing: quick, Reuse: true})
	until(t, "up", func() bool { return opinion(p, ts[0]) == rota.Up })
	l.Close()
	conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
	wg.Wait()
	until(t, "down", func() bool { return opinion(p, ts[0]) == rota.Down })
	if o := p.Report().Opinion(ts[0].ID); o.Class != rota.ClassRefused {
		t.Errorf("%+v", o)
	}
}

// The end of a watched connection is looked into at once: the interval is an hour, and one failure is enough.
func TestWatch(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, kind := range []rota.Kind{rota.KindTCP, rota.KindHTTP, rota.KindHTTPS} {
		t.Run(string(kind), func(t *testing.T) {
			k := &keeper{}
			f := k.serve
			if kind == rota.KindHTTPS {
				f = tlsServer(conf, k.serve)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var conns []net.Conn
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					mu.Lock()
					conns = append(conns, c)
					mu.Unlock()
					wg.Go(func() { defer c.Close(); f(c) })
				}
			})
			slow := rota.Timing{Interval: time.Hour, FastInterval: time.Second}
			p, ts := running(t, Options{Roots: ca.roots}, netip.MustParseAddrPort(l.Addr().String()), 1, rota.Check{Kind: kind, Timing: slow, Watch: true, Host: "www.example.org"})
			until(t, "up", func() bool { return opinion(p, ts[0]) == rota.Up })
			l.Close()
			end := func() {
				mu.Lock()
				for _, c := range conns {
					c.Close()
				}
				mu.Unlock()
			}
			end()
			until(t, "down", func() bool { return opinion(p, ts[0]) == rota.Down })
			wg.Wait()
			if n := count(p, rota.Down); n != 1 {
				t.Errorf("%d failures until it was down, want one", n)
			}
			if h := p.History(ts[0].ID); !h[len(h)-1].Observation.Sure {
				t.Error("the probe that confirmed is not sure")
			}
		})
	}
}

// A server that closes idle connections is neither down nor stormed: one probe in a fast interval beside the schedule.
func TestWatchOfWhoCloses(t *testing.T) {
	var mu sync.Mutex
	var conns []net.Conn
	k := &keeper{}
	at := serve(t, func(c net.Conn) {
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		k.serve(c)
	})
	const fast = 400 * time.Millisecond
	begin := time.Now()
	p, ts := running(t, Options{}, at, 1, rota.Check{Kind: rota.KindHTTP, Timing: rota.Timing{Interval: time.Hour, FastInterval: fast}, Watch: true})
	for n := 1; n <= 5; n++ {
		until(t, "another probe", func() bool { return count(p, rota.Up) >= n })
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
	}
	if took := time.Since(begin); took < 3*fast {
		t.Errorf("five probes in %v, with a fast interval of %v", took, fast)
	}
	if opinion(p, ts[0]) != rota.Up || count(p, rota.Down) != 0 {
		t.Error("it flapped")
	}
}

func TestKeptAreBounded(t *testing.T) {
	k := &keeper{}
	p := New(Options{})
	p.keepable = 3
	at := serveOn(t, "0.0.0.0:0", k.serve)
	var ts []rota.Target
	for i := range 10 {
		ts = append(ts, rota.NewTarget(netip.AddrFrom4([4]byte{127, 0, 2, byte(i + 1)}), rota.Check{Kind: rota.KindHTTP, Port: at.Port(), Timing: quick, Reuse: true}))
	}
	p.Set(ts)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	until(t, "a hundred answers", func() bool {
		if n := p.keeping.Load(); n > 4 { // one more while it finds out
			t.Fatalf("%d connections are kept, want 3", n)
		}
		return count(p, rota.Up) >= 100
	})
	if p.keeping.Load() == 0 || count(p, rota.Down) != 0 {
		t.Errorf("%d kept, %d failed", p.keeping.Load(), count(p, rota.Down))
	}
	p.Set(ts[:1])
	until(t, "those of dropped targets are closed", func() bool { return p.keeping.Load() <= 1 })
	cancel()
	wg.Wait()
	if n := p.keeping.Load(); n != 0 {
		t.Errorf("%d connections are open after Run", n)
	}
}

// sockets lists the sockets and epoll descriptors of this process.
func sockets(t *testing.T) map[string]bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for _, f := range fds {
		to, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err == nil && (strings.HasPrefix(to, "socket:") || strings.Contains(to, "eventpoll")) {
			set[f.Name()+" "+to] = true
		}
	}
	return set
}

// Everything that Run opened is closed when it returns: sockets of probes in flight, kept ones, those of ICMP, the loop's own.
func TestDescriptorsReturn(t *testing.T) {
	listen, err := net.Listen("tcp", "127.0.0.1:0") // Go's own poller is there from now on
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Close()
	before := sockets(t)
	t.Run("run", func(t *testing.T) { // its servers end with it
		k := &keeper{}
		at := serveOn(t, "0.0.0.0:0", k.serve)
		dark := serveOn(t, "0.0.0.0:0", silent)
		p := New(Options{})
		var ts []rota.Target
		never := rota.Timing{Timeout: time.Hour, FastInterval: time.Millisecond}
		for i := range 20 {
			for _, c := range []rota.Check{
				{Kind: rota.KindHTTP, Port: at.Port(), Timing: quick, Reuse: true, Watch: true},
				{Kind: rota.KindHTTP, Port: at.Port(), Timing: quick},
				{Kind: rota.KindHTTP, Port: dark.Port(), Timing: never},
				{Kind: rota.KindTCP, Port: at.Port(), Timing: quick, Watch: true},
				{Kind: rota.KindICMP, Timing: quick},
				{Kind: rota.KindTLS, Port: dark.Port(), Timing: never},
			} {
				ts = append(ts, rota.NewTarget(netip.AddrFrom4([4]byte{127, 0, 3, byte(i + 1)}), c))
			}
		}
		p.Set(ts)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.Run(ctx) })
		until(t, "400 answers, and 40 in the dark", func() bool { return count(p, rota.Up) > 400 && p.Stats().InFlight >= 40 })
		cancel()
		wg.Wait()
	})
	for fd := range sockets(t) {
		if !before[fd] {
			t.Errorf("%s is open after Run", fd)
		}
	}
}

// What a target says before it is asked is no answer to what it is asked next, however it lies in the buffers.
func TestAnswersBeforeAsked(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
	const early = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
	for _, kind := range []rota.Kind{rota.KindHTTP, rota.KindHTTPS} {
		for _, size := range []int{100, 4 << 10, 8 << 10, 16 << 10, 100 << 10} { // of the first answer, whole
			t.Run(fmt.Sprintf("%s/%d", kind, size), func(t *testing.T) {
				head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %06d\r\n\r\n", 0)
				answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %06d\r\n\r\n", size-len(head)) + strings.Repeat("x", size-len(head)) + early
				f := func(c net.Conn) {
					readHead(c)
					_, _ = io.WriteString(c, answer)
					_, _ = io.Copy(io.Discard, c)
				}
				if kind == rota.KindHTTPS {
					f = tlsServer(conf, f)
				}
				p, _ := running(t, Options{Roots: ca.roots}, serve(t, f), 1, rota.Check{Kind: kind, Timing: quick, Reuse: true, Host: "www.example.org"})
				until(t, "ten answers", func() bool { return count(p, rota.Up)+count(p, rota.Down) >= 10 })
				if n := count(p, rota.Down); n != 0 {
					t.Errorf("%d probes took what was said before they asked", n)
				}
			})
		}
	}
}

// Who greets whoever comes, as SSH does, has not gone by that.
func TestWatchOfWhoGreets(t *testing.T) {
	greeted := make(chan struct{}, 1000)
	at := serve(t, func(c net.Conn) {
		time.Sleep(10 * time.Millisecond) // the probe has ended
		_, _ = io.WriteString(c, "SSH-2.0-greeter\r\n")
		greeted <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	})
	p, ts := running(t, Options{}, at, 1, rota.Check{Kind: rota.KindTCP, Timing: rota.Timing{Interval: time.Hour, FastInterval: 10 * time.Millisecond}, Watch: true})
	until(t, "up", func() bool { return opinion(p, ts[0]) == rota.Up })
	<-greeted
	time.Sleep(500 * time.Millisecond)
	if n := count(p, rota.Up); n != 1 {
		t.Errorf("%d probes in an interval of an hour", n)
	}
}
