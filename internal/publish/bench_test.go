package publish

import (
	"fmt"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// thousand is a zone of 1,000 services on two shared addresses: one verdict changes all of them.
func thousand(b *testing.B) *world {
	var services []rota.Service
	for i := range 1000 {
		services = append(services, service(fmt.Sprintf("s%04d.example.test", i), "192.0.2.1", "192.0.2.2"))
	}
	return newWorld(b, services...).up("192.0.2.1", "192.0.2.2")
}

// benchmarkChange measures from a verdict that changes 1,000 RRsets to their being written and read back.
func benchmarkChange(b *testing.B, backend Backend) {
	w := thousand(b)
	o := quick(w, backend)
	o.Record = nil
	p := run(b, o, 1)
	wait := func() {
		for end := time.Now().Add(time.Minute); !settled(p.Publisher, w.State().At()); time.Sleep(200 * time.Microsecond) {
			if time.Now().After(end) {
				b.Fatalf("never settled: %v", p.Status().Zones)
			}
		}
	}
	wait()
	b.ReportAllocs()
	up := true
	for b.Loop() {
		if up = !up; up {
			w.up("192.0.2.1")
		} else {
			w.down("192.0.2.1")
		}
		wait()
	}
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "RRsets/s")
}

func BenchmarkChange1000Memory(b *testing.B) { benchmarkChange(b, newFake(b)) }

func BenchmarkChange1000(b *testing.B) {
	for _, kind := range peers.Kinds() {
		b.Run(string(kind), func(b *testing.B) {
			x := newTarget(b, kind)
			benchmarkChange(b, x.backend(func(o *RFC2136Options) { o.Servers = []string{x.server.Addr()}; o.Timeout = 10 * time.Second }))
		})
	}
}

// BenchmarkPlan1000 is a look at 1,000 RRsets that are as they should be, without the reading.
func BenchmarkPlan1000(b *testing.B) {
	w := thousand(b)
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
