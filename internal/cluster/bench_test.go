package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// BenchmarkAppend measures durable events a second, from one caller and from many, whose events share an fsync.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			n := mustOpen(b, b.TempDir())
			led(b, n)
			mustAppend(b, n, rota.Event{Kind: rota.EventSpec, Spec: spec(100, 2)})
			work := make(chan rota.Event)
			done := make(chan error, callers)
			b.ResetTimer()
			for range callers {
				go func() {
					var first error
					for e := range work {
						if _, err := n.Append(context.Background(), e); err != nil && first == nil {
							first = err
						}
					}
					done <- first
				}()
			}
			for i := range b.N {
				work <- drain(i, n.State())
			}
			close(work)
			for range callers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			mustClose(b, n)
		})
	}
}

// BenchmarkLarge measures 100,000 services of one endpoint, with a verdict each: the event that brings them, and opening the directory
// with the state file and with the log alone.
func BenchmarkLarge(b *testing.B) {
	dir := b.TempDir()
	n := mustOpen(b, dir)
	led(b, n)
	s := spec(100_000, 1)
	b.Run("append-spec", func(b *testing.B) {
		for range b.N {
			mustAppend(b, n, rota.Event{Kind: rota.EventSpec, Spec: s})
		}
	})
	var vs []rota.Verdict
	for _, t := range n.State().Targets() {
		vs = append(vs, rota.Verdict{Target: t.ID, Status: rota.Up, Need: 2, Votes: []rota.Vote{
			{Vantage: "a", Site: "x", Status: rota.Up, Class: rota.ClassOK},
			{Vantage: "b", Site: "y", Status: rota.Up, Class: rota.ClassOK},
			{Vantage: "c", Site: "z", Reason: "silent"},
		}})
	}
	mustAppend(b, n, rota.Event{Kind: rota.EventVerdicts, Verdicts: vs})
	mustClose(b, n)
	if i, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
		b.Logf("state file %d MiB", i.Size()>>20)
	}
	if i, err := os.Stat(filepath.Join(dir, logFile)); err == nil {
		b.Logf("log file %d MiB", i.Size()>>20)
	}
	b.Run("open", func(b *testing.B) {
		for range b.N {
			n := mustOpen(b, dir)
			b.StopTimer()
			mustClose(b, n)
			b.StartTimer()
		}
	})
	b.Run("digest", func(b *testing.B) {
		n := mustOpen(b, dir)
		led(b, n)
		b.ResetTimer()
		for range b.N {
			n.digested = digest{}
			if _, _, err := n.Digest(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		mustClose(b, n)
	})
	b.Run("save", func(b *testing.B) {
		n := mustOpen(b, dir)
		led(b, n)
		v, _ := n.view.load()
		b.ResetTimer()
		for range b.N {
			if err := saveState(b.TempDir(), n.saved(v), false); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		mustClose(b, n)
	})
}

// BenchmarkReports measures one round of reports of five vantages: what one weighs, what it costs a vantage to pack it, and the leader to
// take all five and to judge what moved; for targets of which none, one in a hundred, or all changed since the round before.
func BenchmarkReports(b *testing.B) {
	vantages := []rota.Vantage{{Name: "a", Site: "a"}, {Name: "b", Site: "b"}, {Name: "c", Site: "c"}, {Name: "d", Site: "d"}, {Name: "e", Site: "e"}}
	for _, count := range []int{1_000, 100_000} {
		n := mustOpen(b, b.TempDir())
		led(b, n)
		s := spec(count/10, 10)
		s.Vantages = vantages
		mustAppend(b, n, rota.Event{Kind: rota.EventSpec, Spec: s})
		st := n.State()
		table := st.Table()
		// round makes what each vantage holds when one target in every so many is down; 0: none is.
		round := func(every int) []*rota.Opinion {
			var out []*rota.Opinion
			for i, id := range table.Targets() {
				o := &rota.Opinion{Target: id, Status: rota.Up, Class: rota.ClassOK}
				if every > 0 && i%every == 0 {
					o = &rota.Opinion{Target: id, Status: rota.Down, Class: rota.ClassTimeout, Reason: "no answer within 3s", Since: time.Now()}
				}
				out = append(out, o)
			}
			return out
		}
		up := round(0)
		for _, c := range []struct {
			name string
			next []*rota.Opinion
			want int // targets that moved
		}{{"unchanged", up, 0}, {"one-in-100", round(100), count / 100}, {"all", round(1), count}} {
			rounds := [][]*rota.Opinion{up, c.next}
			in := NewInbox(n, nil)
			seq := uint64(0)
			pack := func(v string) []byte {
				return table.Pack(&rota.Report{Vantage: v, Incarnation: 1, Seq: seq, Sent: time.Now(), Opinions: rounds[seq%2]})
			}
			packs := make([][]byte, len(vantages))
			next := func() {
				seq++
				for i, v := range vantages {
					packs[i] = pack(v.Name)
				}
			}
			take := func() {
				for i, v := range vantages {
					if x := in.senders[v.Name]; x != nil {
						x.tokens = inboxBurst // a round is ten seconds
					}
					if err := in.Take(v.Name, "here", 0, packs[i]); err != nil {
						b.Fatal(err)
					}
				}
			}
			name := fmt.Sprintf("%d/%s/", count, c.name)
			b.Run(name+"pack", func(b *testing.B) {
				b.ReportAllocs()
				size := 0
				seq = 1
				for b.Loop() {
					size = len(pack("a"))
				}
				b.ReportMetric(float64(size), "B/report")
			})
			b.Run(name+"take5", func(b *testing.B) {
				in = NewInbox(n, nil)
				next()
				take()
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					next()
					b.StartTimer()
					take()
				}
			})
			b.Run(name+"judge", func(b *testing.B) {
				in = NewInbox(n, nil)
				j := &judge{node: n}
				next()
				take()
				j.moved(st, n.Reports(), time.Now())
				j.state = st
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					next()
					take()
					reports := n.Reports()
					b.StartTimer()
					targets, _ := j.moved(st, reports, time.Now())
					if len(targets) != c.want {
						b.Fatalf("%d moved, want %d", len(targets), c.want)
					}
					st.Judge(targets, reports, time.Now())
				}
			})
		}
		mustClose(b, n)
	}
}
