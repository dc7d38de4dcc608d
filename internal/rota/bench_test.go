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
	spec := Spec{Vantages: []Vantage{{Name: "a", Site: "ams"}, {Name: "b", Site: "fra"}, {Name: "c", Site: "lon"}}}
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

// A report for the wire. PERFORMANCE.md: at most 64 KiB at 100,000 targets when nothing is unusual.
func BenchmarkPack(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		for _, unusual := range []int{0, 100} { // one in so many targets is down, for a reason of its own
			b.Run(fmt.Sprintf("%d/unusual=%v", n, unusual > 0), func(b *testing.B) {
				table := testTable(n)
				r := upReport(table)
				for i := 0; unusual > 0 && i < n; i += unusual {
					r.Opinions[i] = &Opinion{Target: table.ids[i], Status: Down, Class: ClassTimeout, Reason: fmt.Sprint("no answer in ", i), Since: epoch}
				}
				var packed []byte
				b.ReportAllocs()
				for b.Loop() {
					packed = table.Pack(r)
				}
				b.ReportMetric(float64(len(packed)), "B/report")
			})
		}
	}
}

// What five vantages' reports cost the leader: all of them anew; with one opinion moved; and as they were, for which PERFORMANCE.md
// allows 100 µs a report at 100,000 targets. What moved is looked for as well.
func BenchmarkUnpack5(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		table := testTable(n)
		r := upReport(table)
		whole := table.Pack(r)
		moved := *r
		moved.Opinions = append([]*Opinion(nil), r.Opinions...)
		moved.Opinions[n/2] = &Opinion{Target: table.ids[n/2], Status: Down, Class: ClassTimeout, Reason: "no answer", Since: epoch}
		other := table.Pack(&moved)
		for _, c := range []struct {
			name  string
			packs [2][]byte
			fresh bool
			want  int
		}{{"anew", [2][]byte{whole, whole}, true, n}, {"one-moved", [2][]byte{other, whole}, false, 1}, {"unchanged", [2][]byte{whole, whole}, false, 0}} {
			b.Run(fmt.Sprintf("%d/%s", n, c.name), func(b *testing.B) {
				var us [5]Unpacker
				for i := range us {
					if _, err := us[i].Unpack(table, whole, epoch); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportAllocs()
				k := 0
				for b.Loop() {
					for i := range us {
						if c.fresh {
							us[i] = Unpacker{}
						}
						last := us[i].Last()
						r, err := us[i].Unpack(table, c.packs[k%2], epoch)
						if err != nil || len(Moved(last, r)) != c.want {
							b.Fatal(err, len(Moved(last, r)))
						}
					}
					k++
				}
			})
		}
	}
}

// Votes of five vantages on every target, none of which change a verdict; and how far they contradict one another.
func BenchmarkJudgeAll5(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		s, reports := votingState(b, n)
		b.Run(fmt.Sprintf("%d/judge", n), func(b *testing.B) {
			for b.Loop() {
				if vs := s.Judge(s.Table().Targets(), reports, epoch); len(vs) != 0 {
					b.Fatal(len(vs))
				}
			}
		})
		b.Run(fmt.Sprintf("%d/dissent", n), func(b *testing.B) {
			for b.Loop() {
				s.Dissent(reports, epoch)
			}
		})
	}
}

// What the opinions of five vantages hold in memory: when all is up, and when one in a hundred is down.
func BenchmarkOpinionBytes5(b *testing.B) {
	const n = 100_000
	table := testTable(n)
	r := upReport(table)
	up := table.Pack(r)
	for i := 0; i < n; i += 100 {
		r.Opinions[i] = &Opinion{Target: table.ids[i], Status: Down, Class: ClassTimeout, Reason: "no answer", Since: epoch}
	}
	some := table.Pack(r)
	for _, c := range []struct {
		name string
		b    []byte
	}{{"up", up}, {"some-down", some}} {
		b.Run(c.name, func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				var us [5]Unpacker
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range us {
					if _, err := us[i].Unpack(table, c.b, epoch); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(us)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1024, "KiB")
		})
	}
}
