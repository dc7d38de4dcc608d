package cluster

import (
	"cmp"
	"slices"
	"sync"

	"github.com/rota-dns/rota/internal/rota"
)

// Record is an event and what came of it.
type Record struct {
	Event       rota.Event        `json:"event"`
	Transitions []rota.Transition `json:"transitions,omitempty"` // answers that it changed
	Refused     string            `json:"refused,omitempty"`     // why State.Apply did not take it, when it did not
}

// note is what a record holds beyond its event, which the log holds.
type note struct {
	Index       uint64            `json:"index"`
	Transitions []rota.Transition `json:"transitions,omitempty"`
	Refused     string            `json:"refused,omitempty"`
}

// maxHistory bounds the newest events that are kept for reading, in bytes of their JSON. The newest is kept whatever its size.
const maxHistory = 32 << 20

// history is the newest records, oldest first.
type history struct {
	limit int

	mu      sync.RWMutex // guards what follows
	records []Record
	sizes   []int // of each record, in bytes
	bytes   int   // their sum
}

func (h *history) add(r Record, size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.records); n > 0 && r.Event.Index <= h.records[n-1].Event.Index {
		return
	}
	for _, t := range r.Transitions {
		size += 64
		for _, s := range [][]string{t.Before, t.After, t.Why} {
			for _, x := range s {
				size += len(x) + 16
			}
		}
	}
	h.records, h.sizes, h.bytes = append(h.records, r), append(h.sizes, size), h.bytes+size
	drop := 0
	for len(h.records)-drop > 1 && (len(h.records)-drop > h.limit || h.bytes > maxHistory) {
		h.bytes -= h.sizes[drop]
		h.records[drop] = Record{} // its array lives on until the next growth
		drop++
	}
	h.records, h.sizes = h.records[drop:], h.sizes[drop:]
}

func (h *history) after(index uint64, limit int) []Record {
	h.mu.RLock()
	defer h.mu.RUnlock()
	i, found := slices.BinarySearchFunc(h.records, index, func(r Record, x uint64) int { return cmp.Compare(r.Event.Index, x) })
	if found {
		i++
	}
	rs := h.records[i:]
	if limit > 0 && len(rs) > limit {
		rs = rs[len(rs)-limit:]
	}
	return slices.Clone(rs)
}

func (h *history) len() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.records)
}

// notes returns what the log does not hold, up to an index.
func (h *history) notes(upTo uint64) []note {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []note
	for _, r := range h.records {
		if r.Event.Index <= upTo && (len(r.Transitions) > 0 || r.Refused != "") {
			out = append(out, note{r.Event.Index, r.Transitions, r.Refused})
		}
	}
	return out
}
