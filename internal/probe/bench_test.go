package probe

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

func benchmark(b *testing.B, at netip.AddrPort, c rota.Check) {
	c.Port = at.Port()
	p := New(Options{})
	ping := newPinger(p.log)
	defer ping.close()
	q := newQuestion(c)
	var failed atomic.Int64
	b.SetParallelism(64)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if t := p.observe(b.Context(), "x", at.Addr(), q, nil, ping); t.Observation.Status != rota.Up {
				failed.Add(1)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "probes/s")
	if n := failed.Load(); n > int64(b.N/100) {
		b.Errorf("%d of %d probes failed", n, b.N)
	}
}

func BenchmarkProbeHTTP(b *testing.B) {
	benchmark(b, serve(b, func(c net.Conn) {
		readHead(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	}), rota.Check{Kind: rota.KindHTTP})
}

func BenchmarkProbeTCP(b *testing.B) { benchmark(b, serve(b, silent), rota.Check{Kind: rota.KindTCP}) }

func BenchmarkProbeICMP(b *testing.B) {
	benchmark(b, netip.MustParseAddrPort("127.0.0.1:1"), rota.Check{Kind: rota.KindICMP})
}

// BenchmarkIdleTarget reports the memory of a target that waits for its next probe, its report included.
func BenchmarkIdleTarget(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
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
	benchmark(b, netip.MustParseAddrPort(c.LocalAddr().String()), rota.Check{Kind: rota.KindDNS, Query: "www.example.org."})
}

func BenchmarkProbeAgentCheck(b *testing.B) {
	benchmark(b, serve(b, func(c net.Conn) { _, _ = io.WriteString(c, "up 75%\n") }), rota.Check{Kind: rota.KindAgentCheck})
}

func BenchmarkProbeGRPC(b *testing.B) {
	benchmark(b, serve(b, serving), rota.Check{Kind: rota.KindGRPC})
}
