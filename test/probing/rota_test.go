package probing

import (
	"context"
	"crypto/x509"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"

	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// job is what rota's process is told to do: check the first Targets addresses. The zero job asks only how it is.
type job struct {
	Targets int
	Check   rota.Check
	Roots   string // PEM
}

// progress is how rota's process is.
type progress struct {
	Up, Down, Unknown uint64 // probes that ended so
	Reason            string // of an opinion that is not up; empty: all are up
	InFlight          int
	Lateness          probe.Histogram // of the check's kind
	Goroutines        int
	Descriptors       int
	Live              uint64 // bytes of the heap that the last collection found in use
	Stops             uint64
}

// address is the nth address of the targets.
func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + n/62500), byte(n / 250 % 250), byte(1 + n%250)})
}

// runRota is a process with rota's prober in it and nothing else.
func runRota() {
	var p *probe.Prober
	answerer(func(j job) progress {
		if j.Targets > 0 {
			p = start(j)
		}
		if p == nil {
			return progress{}
		}
		return look(p)
	})
}

func start(j job) *probe.Prober {
	o := probe.Options{Vantage: "bench"}
	if j.Roots != "" {
		o.Roots = x509.NewCertPool()
		o.Roots.AppendCertsFromPEM([]byte(j.Roots))
	}
	p := probe.New(o)
	ts := make([]rota.Target, j.Targets)
	for i := range ts {
		ts[i] = rota.NewTarget(address(i), j.Check)
	}
	p.Set(ts)
	go func() { _ = p.Run(context.Background()) }() // ends with the process
	return p
}

func look(p *probe.Prober) progress {
	s := p.Stats()
	out := progress{InFlight: s.InFlight, Stops: s.Stops, Goroutines: runtime.NumGoroutine()}
	for _, k := range s.Kinds {
		out.Lateness = k.Lateness
		for _, r := range k.Results {
			switch r.Status {
			case rota.Up:
				out.Up += r.Count
			case rota.Down:
				out.Down += r.Count
			default:
				out.Unknown += r.Count
			}
		}
	}
	for _, o := range p.Report().Opinions {
		if o.Status != rota.Up {
			out.Reason = o.Reason
			break
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		out.Descriptors = len(fds)
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	out.Live = live[0].Value.Uint64()
	return out
}
