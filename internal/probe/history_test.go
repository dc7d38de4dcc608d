package probe

import (
	"fmt"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// A trace that history has given up serves another probe; who asked for it earlier must not see that.
func TestHistoryShowsCopies(t *testing.T) {
	h := newHistory(4)
	first := &Trace{Target: "a", Steps: []Step{{Name: "connect"}}, Observation: rota.Observation{Status: rota.Up}}
	h.add(h.past("a"), first)
	shown := h.of("a")
	first.Steps[0].Name = "another probe's"
	if got := shown[0].Steps[0].Name; got != "connect" {
		t.Errorf("a step that was shown has become %q", got)
	}
}

// With many targets most have no trace, and nothing is left of those that they had.
func TestHistoryForgetsWhole(t *testing.T) {
	h := newHistory(20)
	for i := range 1000 {
		id := rota.TargetID(fmt.Sprint(i % 100))
		h.add(h.past(id), &Trace{Target: id, Observation: rota.Observation{Status: rota.Up}})
	}
	kept := 0
	for id, p := range h.byTarget {
		if n := len(p.successes); n != len(h.of(id)) || n == 0 && p.successes != nil {
			t.Errorf("target %s: %d records, %d traces", id, n, len(h.of(id)))
		}
		kept += len(p.successes)
	}
	if kept != 10 || len(h.successes.records) != 10 {
		t.Errorf("%d traces in %d records, want 10 in 10", kept, len(h.successes.records))
	}
}
