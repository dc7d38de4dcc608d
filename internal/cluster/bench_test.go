package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

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
