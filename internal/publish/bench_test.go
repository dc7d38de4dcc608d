package publish

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// many is a zone of many services on two shared addresses: one verdict changes all of them.
func many(b *testing.B, n int) *world {
	var services []rota.Service
	for i := range n {
		services = append(services, service(fmt.Sprintf("s%05d.example.test", i), "192.0.2.1", "192.0.2.2"))
	}
	return newWorld(b, services...).up("192.0.2.1", "192.0.2.2")
}

// benchmarkChange measures from a verdict that changes n RRsets to their being written and read back.
func benchmarkChange(b *testing.B, n int, backend Backend) {
	w := many(b, n)
	o := quick(w, backend)
	o.Record = nil
	p := run(b, o, 1)
	wait := func() {
		for end := time.Now().Add(time.Minute); !settled(p.Publisher, w.State().At()); time.Sleep(200 * time.Microsecond) {
			if time.Now().After(end) {
				b.Fatalf("never settled: %v", p.Status().Zones[0].Reasons)
			}
		}
	}
	wait()
	b.ReportAllocs()
	peak := memory(b)
	up := true
	for b.Loop() {
		if up = !up; up {
			w.up("192.0.2.1")
		} else {
			w.down("192.0.2.1")
		}
		wait()
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "RRsets/s")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/change")
	b.ReportMetric(float64(peak())/(1<<20), "MiB-above-rest")
}

// memory measures from now on how much more memory the process holds than it does now.
func memory(b *testing.B) (peak func() uint64) {
	runtime.GC()
	rest := resident()
	var most atomic.Uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b.Context().Err() == nil {
			most.Store(max(most.Load(), resident()))
			time.Sleep(2 * time.Millisecond)
		}
	}()
	b.Cleanup(func() { <-done })
	return func() uint64 { return max(most.Load(), rest) - rest }
}

// resident is the memory that the runtime has from the operating system.
func resident() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64() - s[2].Value.Uint64()
}

func BenchmarkChange1000Memory(b *testing.B) { benchmarkChange(b, 1000, newFake(b)) }

func benchmarkServers(b *testing.B, n int) {
	for _, kind := range peers.Kinds() {
		b.Run(string(kind), func(b *testing.B) {
			x := newTarget(b, kind)
			benchmarkChange(b, n, x.backend(func(o *RFC2136Options) { o.Servers = []string{x.server.Addr()}; o.Timeout = 10 * time.Second }))
		})
	}
}

// BenchmarkOnWire is from a verdict to the UPDATE that it causes, at the server's door.
func BenchmarkOnWire(b *testing.B) {
	for _, kind := range peers.Kinds() {
		b.Run(string(kind), func(b *testing.B) {
			x := newTarget(b, kind)
			w := newWorld(b, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
			p := run(b, quick(w, x.backend()), 1)
			arrived := make(chan time.Time, 1)
			x.road.Set(func(p peers.Packet) [][]byte {
				if p.Query && p.Update() {
					select {
					case arrived <- time.Now():
					default:
					}
				}
				return [][]byte{p.Wire}
			})
			var total time.Duration
			up := true
			for b.Loop() {
				eventually(b, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
				time.Sleep(2 * time.Millisecond) // quick's gap between writes
				select {
				case <-arrived:
				default:
				}
				start := time.Now()
				if up = !up; up {
					w.up("192.0.2.1")
				} else {
					w.down("192.0.2.1")
				}
				total += (<-arrived).Sub(start)
			}
			b.ReportMetric(float64(total.Microseconds())/float64(b.N)/1000, "ms/verdict")
		})
	}
}

func BenchmarkChange1000(b *testing.B) { benchmarkServers(b, 1000) }

// BenchmarkChange10000 is a site that dies: PERFORMANCE.md wants it in BIND and Knot, read back, within two seconds.
func BenchmarkChange10000(b *testing.B) { benchmarkServers(b, 10_000) }

// BenchmarkPlan1000 is a look at 1,000 RRsets that are as they should be, without the reading.
func BenchmarkPlan1000(b *testing.B) {
	w := many(b, 1000)
	st := w.State()
	d := desire{state: st}
	var have Reading
	for x := range st.Wants(testPublisher) {
		d.wants = append(d.wants, x)
		have.Sets = append(have.Sets, x.Set)
	}
	b.ReportAllocs()
	for b.Loop() {
		if p := d.plan("example.test.", have); len(p.Changes) > 0 {
			b.Fatal(p.Changes[0])
		}
	}
}
