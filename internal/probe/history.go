package probe

import (
	"slices"
	"sync"

	"github.com/rota-dns/rota/internal/rota"
)

// Traces kept of one target.
const (
	maxSuccesses = 3
	maxFailures  = 10
)

// record is one kept trace. Its trace is nil once it has been given up, by its target or by the ring.
type record struct {
	trace *Trace
	list  *[]*record // of its target
}

// forget gives the trace up.
func (r *record) forget() {
	if r.trace == nil {
		return
	}
	traces.Put(r.trace)
	r.trace = nil
	if *r.list = slices.DeleteFunc(*r.list, func(x *record) bool { return x == r }); len(*r.list) == 0 {
		*r.list = nil // with many targets most have none
	}
}

// traces are used again once history has given them up: nobody else has them then.
var traces = sync.Pool{New: func() any { return &Trace{Steps: make([]Step, 0, usualSteps)} }}

// ring holds the last records of all targets; the oldest gives way.
type ring struct {
	records []*record
	at      int
	size    int
}

// next returns a record to be used.
func (r *ring) next() *record {
	if len(r.records) < r.size {
		r.records = append(r.records, &record{})
		return r.records[len(r.records)-1]
	}
	x := r.records[r.at]
	x.forget()
	r.at = (r.at + 1) % r.size
	return x
}

// history keeps traces by target, bounded for each target and in all. Failures have a ring of their own: successes, which are many,
// never push them out.
type history struct {
	byTarget  map[rota.TargetID]*past
	successes ring
	failures  ring
}

// past is what is kept of one target, oldest first.
type past struct{ successes, failures []*record }

func newHistory(size int) history {
	return history{
		byTarget:  map[rota.TargetID]*past{},
		successes: ring{size: max(size/2, 1)}, failures: ring{size: max(size-size/2, 1)},
	}
}

// past returns that of a target, which is good until the target is dropped.
func (h *history) past(id rota.TargetID) *past {
	p := h.byTarget[id]
	if p == nil {
		p = &past{}
		h.byTarget[id] = p
	}
	return p
}

// add keeps a trace of the target whose past is p.
func (h *history) add(p *past, t *Trace) {
	list, all, limit := &p.successes, &h.successes, maxSuccesses
	if s := t.Observation.Status; s != rota.Up && s != rota.Draining {
		list, all, limit = &p.failures, &h.failures, maxFailures
	}
	if len(*list) == limit {
		(*list)[0].forget()
	}
	x := all.next()
	x.trace, x.list = t, list
	*list = append(*list, x)
}

func (h *history) drop(ids []rota.TargetID) {
	for _, id := range ids {
		if p := h.byTarget[id]; p != nil {
			for _, r := range slices.Concat(p.successes, p.failures) {
				r.forget()
			}
			delete(h.byTarget, id)
		}
	}
}

func (h *history) of(id rota.TargetID) []Trace {
	p := h.byTarget[id]
	if p == nil {
		return nil
	}
	var ts []Trace
	for _, r := range slices.Concat(p.successes, p.failures) {
		t := *r.trace
		t.Steps = slices.Clone(t.Steps) // the trace is used again
		ts = append(ts, t)
	}
	slices.SortStableFunc(ts, func(a, b Trace) int { return a.Started.Compare(b.Started) })
	return ts
}
