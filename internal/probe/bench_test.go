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
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// A benchmark's targets are another process: this test binary, told so by its environment.
const targetProcess = "ROTA_PROBE_TARGET"

// target starts the process and returns its port; plain says what it speaks.
func target(b *testing.B, speaks string) uint16 {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	argv := []string{self}
	if taskset, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		argv = []string{taskset, "-c", fmt.Sprint(runtime.NumCPU() - 1), self}
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), targetProcess+"="+speaks, "GOMAXPROCS=1")
	c.Stderr = os.Stderr
	stdin, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close() // it ends with its input
		_ = c.Wait()
	})
	var port uint16
	if _, err := fmt.Fscan(stdout, &port); err != nil {
		b.Fatal(err)
	}
	return port
}

// beTarget is the other process: it serves until its input ends.
func beTarget(speaks string) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	var conf *tls.Config
	if speaks == "https" {
		cert := (*authority)(nil).issue(&testing.B{}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		conf = &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}
	}
	go func() {
		if conf == nil && serveFast(l) {
			return
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if conf != nil {
					c = tls.Server(c, conf)
				}
				in := bufio.NewReader(c)
				for {
					closes := false
					for {
						line, err := in.ReadString('\n')
						if err != nil {
							return
						}
						if line == "\r\n" {
							break
						}
						closes = closes || strings.HasPrefix(line, "Connection: close")
					}
					if _, err := io.WriteString(c, page200); err != nil || closes {
						return
					}
				}
			}()
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

const page200 = "HTTP/1.1 200 OK\r\nServer: target\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

// throughput probes 2,000 addresses as fast as one core allows, with 128 probes in flight.
func throughput(b *testing.B, c rota.Check) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	pin(b)
	c.Timing = rota.Timing{Interval: 10 * time.Millisecond, FastInterval: 10 * time.Millisecond, Timeout: 5 * time.Second, Fall: 3, Rise: 1, OK: 1}
	ts := make([]rota.Target, 2_000)
	for i := range ts {
		ts[i] = rota.NewTarget(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), c)
	}
	p := New(Options{Concurrency: 128})
	p.Set(ts)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	results := func() (all, up int) {
		for _, k := range p.Stats().Kinds {
			for _, r := range k.Results {
				all += int(r.Count)
				if r.Status == rota.Up {
					up += int(r.Count)
				}
			}
		}
		return all, up
	}
	reach := func(n int) {
		for {
			if all, _ := results(); all >= n {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	reach(2 * len(ts)) // everyone, and connections that are kept
	b.ReportAllocs()
	b.ResetTimer()
	before, beforeUp := results()
	busy := cpu(b)
	reach(before + b.N)
	after, afterUp := results()
	busy = cpu(b) - busy
	b.StopTimer()
	b.ReportMetric(float64(after-before)/busy.Seconds(), "probes/cpu-s") // what a core that nobody else uses would do
	b.ReportMetric(float64(after-before)/b.Elapsed().Seconds(), "probes/s")
	cancel()
	wg.Wait()
	if lost := after - before - (afterUp - beforeUp); lost > (after-before)/100 {
		b.Errorf("%d of %d probes failed: %+v", lost, after-before, p.Stats().Kinds[0].Results)
	}
}

func BenchmarkHTTP(b *testing.B) {
	throughput(b, rota.Check{Kind: rota.KindHTTP, Port: target(b, "http")})
}

func BenchmarkHTTPKept(b *testing.B) {
	throughput(b, rota.Check{Kind: rota.KindHTTP, Port: target(b, "http"), Reuse: true})
}

func BenchmarkHTTPS(b *testing.B) {
	throughput(b, rota.Check{Kind: rota.KindHTTPS, Port: target(b, "https"), Verify: rota.VerifyNone})
}

func BenchmarkHTTPSKept(b *testing.B) {
	throughput(b, rota.Check{Kind: rota.KindHTTPS, Port: target(b, "https"), Verify: rota.VerifyNone, Reuse: true})
}

func BenchmarkTCP(b *testing.B) {
	throughput(b, rota.Check{Kind: rota.KindTCP, Port: target(b, "http")})
}

func BenchmarkICMP(b *testing.B) { throughput(b, rota.Check{Kind: rota.KindICMP}) }

// BenchmarkHundredThousand probes 100,000 addresses every ten seconds for as long as b.N probes take, and reports what that costs: cores,
// resident memory a target, and how late a probe starts.
func BenchmarkHundredThousand(b *testing.B) {
	const n = 100_000
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	port := target(b, "http")
	var first, last uint64
	first = resident(b)
	ts := make([]rota.Target, n)
	check := rota.Check{Kind: rota.KindTCP, Port: port, Timing: rota.DefaultTiming()}
	check.Rise = 1
	for i := range ts {
		ts[i] = rota.NewTarget(netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)}), check)
	}
	p := New(Options{})
	p.Set(ts)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	probes := func() (all int) {
		for _, k := range p.Stats().Kinds {
			for _, r := range k.Results {
				all += int(r.Count)
			}
		}
		return all
	}
	for probes() < 2*n { // the first round, which is faster, and one on the grid
		time.Sleep(100 * time.Millisecond)
	}
	late := p.Stats().Kinds[0].Lateness
	b.ResetTimer()
	begun, busy := probes(), cpu(b)
	for probes() < begun+b.N {
		time.Sleep(100 * time.Millisecond)
	}
	took, busy := b.Elapsed(), cpu(b)-busy
	last = resident(b)
	now := p.Stats().Kinds[0].Lateness
	b.StopTimer()
	all, bound := uint64(0), 0.0
	for i := range now.Counts {
		all += now.Counts[i] - late.Counts[i]
	}
	for i, sum := 0, uint64(0); i < len(now.Bounds) && sum*100 < all*99; i++ {
		sum += now.Counts[i] - late.Counts[i]
		bound = now.Bounds[i]
	}
	b.ReportMetric(busy.Seconds()/took.Seconds(), "cores")
	b.ReportMetric(float64(probes()-begun)/took.Seconds(), "probes/s")
	b.ReportMetric(float64(last-first)/n, "B/target")
	b.ReportMetric(bound*1000, "ms-late-p99")
	cancel()
	wg.Wait()
}

// BenchmarkIdleTarget reports the memory of a target that waits for its next probe, its report included.
func BenchmarkIdleTarget(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				used := func() uint64 {
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return m.HeapAlloc
				}
				ts := targets(n)
				before := used()
				p := New(Options{})
				p.Set(ts)
				s := newScheduler(p, nil)
				s.apply()
				s.publish()
				b.ReportMetric(float64(used()-before)/float64(n), "B/target")
				runtime.KeepAlive(s)
				runtime.KeepAlive(ts)
			}
		})
	}
}

// oneByOne asks one target again and again, beside any schedule.
func oneByOne(b *testing.B, at netip.AddrPort, c rota.Check) {
	b.Helper()
	c.Port = at.Port()
	p := New(Options{})
	b.ReportAllocs()
	for b.Loop() {
		if t := p.Once(b.Context(), rota.NewTarget(at.Addr(), c)); t.Observation.Status != rota.Up {
			b.Fatal(t.Observation.Reason)
		}
	}
}

func BenchmarkProbeDNS(b *testing.B) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4<<10)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			buf[2] |= 0x80
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	b.Cleanup(func() { c.Close(); <-done })
	oneByOne(b, netip.MustParseAddrPort(c.LocalAddr().String()), rota.Check{Kind: rota.KindDNS, Query: "www.example.org."})
}

func BenchmarkProbeAgentCheck(b *testing.B) {
	oneByOne(b, serve(b, func(c net.Conn) { _, _ = io.WriteString(c, "up 75%\n") }), rota.Check{Kind: rota.KindAgentCheck})
}

func BenchmarkProbeGRPC(b *testing.B) {
	oneByOne(b, serve(b, serving), rota.Check{Kind: rota.KindGRPC})
}
