package rota

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// grownState is a state of n endpoints, ten a service, each with one check and a verdict of three votes.
func grownState(tb testing.TB, n int) (*State, []TargetID) {
	tb.Helper()
	const each = 10
	spec := Spec{Vantages: []Vantage{{"a", "ams"}, {"b", "fra"}, {"c", "lon"}}}
	for i := range n / each {
		v := Service{Name: MustParseName(fmt.Sprintf("s%06d.example.org", i)), TTL: 30, Publish: []string{"bind"}, Safety: DefaultSafety()}
		for j := range each {
			k := i*each + j
			a := netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)})
			v.Endpoints = append(v.Endpoints, Endpoint{Address: a, Weight: 1, Checks: []Use{{Check: testCheck}}})
		}
		spec.Services = append(spec.Services, v)
	}
	s, err := (&State{}).Apply(Event{Index: 1, At: epoch, Kind: EventSpec, Spec: &spec})
	if err != nil {
		tb.Fatal(err)
	}
	e := Event{Index: 2, At: epoch.Add(time.Minute), Kind: EventVerdicts}
	var ids []TargetID
	for _, t := range s.Targets() {
		ids = append(ids, t.ID)
		e.Verdicts = append(e.Verdicts, testVerdict(t.ID, Up, e.At))
	}
	if s, err = s.Apply(e); err != nil {
		tb.Fatal(err)
	}
	return s, ids
}

func testVerdict(id TargetID, status Status, at time.Time) Verdict {
	return Verdict{Target: id, Status: status, Since: at, Need: 2, Votes: []Vote{
		{Vantage: "a", Site: "ams", Status: status}, {Vantage: "b", Site: "fra", Status: status}, {Vantage: "c", Site: "lon", Status: status},
	}}
}

// One verdict changes the answer of one service. PERFORMANCE.md: at most 20 µs and 8 KiB at 100,000 endpoints.
func BenchmarkApplyVerdict(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, ids := grownState(b, n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				status := Down
				if i/len(ids)%2 == 1 {
					status = Up
				}
				at := epoch.Add(time.Duration(i)*time.Second + time.Hour)
				next, err := s.Apply(Event{
					Index: s.Index() + 1, At: at, Kind: EventVerdicts, Verdicts: []Verdict{testVerdict(ids[i*7919%len(ids)], status, at)},
				})
				if err != nil {
					b.Fatal(err)
				}
				s = next
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// PERFORMANCE.md: at most 1 ms.
func BenchmarkExplain(b *testing.B) {
	s, _ := grownState(b, 100_000)
	n := s.Services()[5000].Name
	b.ReportAllocs()
	for b.Loop() {
		if x, ok := s.Explain(n, TypeA); !ok || len(x.Endpoints) != 10 {
			b.Fatal("not explained")
		}
	}
}

// A new report of 100,000 opinions, all as before. PERFORMANCE.md: at most 100 µs.
func BenchmarkMovedUnchanged100k(b *testing.B) {
	last := &Report{Vantage: "a"}
	for i := range 100_000 {
		last.Opinions = append(last.Opinions, &Opinion{Target: TargetID(fmt.Sprintf("%06d", i)), Status: Up})
	}
	next := &Report{Vantage: "a", Opinions: append([]*Opinion(nil), last.Opinions...)}
	b.ReportAllocs()
	for b.Loop() {
		if len(Moved(last, next)) != 0 {
			b.Fatal("moved")
		}
	}
}

// What a State holds in memory, configuration and verdicts included.
func BenchmarkStateBytes(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				s, _ := grownState(b, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(s)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/endpoint")
		})
	}
}
