package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// measured is what was measured a few times.
type measured []time.Duration

func (m measured) report(b *testing.B) {
	slices.Sort(m)
	b.ReportMetric(m[len(m)/2].Seconds(), "s/median")
	b.ReportMetric(m[len(m)-1].Seconds(), "s/max")
	b.ReportMetric(0, "ns/op")
}

// probed begins a cluster whose nodes probe one target, which the caller kills and revives.
func probed(b *testing.B, size int) (f *fleet, set func(up bool), is func(m *member, s rota.Status) bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	at := l.Addr().String()
	b.Cleanup(func() { _ = l.Close() })
	set = func(up bool) {
		if !up {
			_ = l.Close()
			return
		}
		if l, err = net.Listen("tcp", at); err != nil {
			b.Fatal(err)
		}
	}
	f = newFleet(b, size, func(int) string {
		return fmt.Sprintf("defaults: {interval: 1s, timeout: 500ms, fall: 2, rise: 2}\nservices: {www.example.test: {endpoints: [127.0.0.1, 192.0.2.9], check: \"tcp://{}:%d\"}}\n",
			l.Addr().(*net.TCPAddr).Port)
	})
	is = func(m *member, s rota.Status) bool {
		for _, t := range m.raft.State().Targets() {
			if t.Address.IsLoopback() {
				return m.raft.State().Verdict(t.ID).Status == s
			}
		}
		return false
	}
	f.await("the target is up", func() bool { return is(f.members[0], rota.Up) })
	return f, set, is
}

// BenchmarkEndpointDeath measures how long after an endpoint's death the leader's state says so, with an interval of a second and two
// failures, and what is ordered while nothing changes.
func BenchmarkEndpointDeath(b *testing.B) {
	for _, size := range []int{1, 3, 5} {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) {
			f, set, is := probed(b, size)
			var took measured
			for range 5 {
				time.Sleep(2 * time.Second) // out of the last change's fast interval
				begun := time.Now()
				set(false)
				f.await("it is down", func() bool { return is(f.leader(), rota.Down) })
				took = append(took, time.Since(begun))
				set(true)
				f.await("it is up", func() bool { return is(f.leader(), rota.Up) })
			}
			before := f.leader().raft.Status()
			time.Sleep(15 * time.Second)
			after := f.leader().raft.Status()
			b.ReportMetric(float64(after.Applied-before.Applied), "events/15s-at-rest")
			b.ReportMetric(float64(after.Last-before.Last), "entries/15s-at-rest")
			took.report(b)
		})
	}
}

// startLoose starts the node with a port that cut ends at once, so that all others lose it, without a word of raft.
func (m *member) startLoose(b *testing.B) {
	n, err := newNode(m.config(), quiet)
	if err != nil {
		b.Fatal(err)
	}
	m.node = n
	ctx, cancel := context.WithCancel(context.Background())
	port, cut := context.WithCancel(context.Background())
	m.cut = cut
	var before, after sync.WaitGroup
	after.Go(func() { _ = n.net.run(port) })
	for _, run := range []func(context.Context) error{
		n.answer, n.api.Run, n.askIn, n.speak, n.prober.Run, n.feed, n.watchSelf, n.report, n.lead,
	} {
		before.Go(func() { _ = run(ctx) })
	}
	m.stop = func() {
		cancel()
		before.Wait()
		_ = n.raft.Close()
		cut()
		after.Wait()
	}
}

// BenchmarkLeaderLoss measures how long after the leader fell silent a follower's event is ordered.
func BenchmarkLeaderLoss(b *testing.B) {
	for _, size := range []int{3, 5} {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) {
			f, _, _ := probed(b, size)
			var took measured
			for _, m := range f.members {
				m.end()
				m.startLoose(b)
			}
			for i := range 5 {
				leader, other := f.leader(), f.follower()
				e := drainOf(9)
				if i%2 == 1 {
					e = rota.Event{Kind: rota.EventLift, At: time.Now(), Lift: []rota.EndpointID{e.Overrides[0].Endpoint}}
				}
				begun := time.Now()
				leader.cut()
				for {
					if _, err := other.raft.Append(b.Context(), e); err == nil {
						break
					}
				}
				took = append(took, time.Since(begun))
				leader.end()
				leader.startLoose(b)
				f.leader()
			}
			took.report(b)
		})
	}
}
