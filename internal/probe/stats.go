package probe

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Stats is what a prober counts, for metrics. Its size is bounded by the kinds and classes there are, not by targets.
type Stats struct {
	Targets  int         // being probed
	InFlight int         // probes under way
	Stops    uint64      // times this process was found to have been stopped or asleep
	Kinds    []KindStats // sorted by kind; only those that were probed
}

// KindStats counts the probes of one kind.
type KindStats struct {
	Kind     rota.Kind
	InFlight int
	Results  []ResultCount // sorted by status, then class
	Duration Histogram     // of probes, in seconds
	Lateness Histogram     // between the time a probe was due and its start, in seconds
	Changes  uint64        // opinions that changed, the first ones included
	Forgiven uint64        // times that failures of a target were forgiven and its opinion stayed: flapping that was damped
}

// ResultCount counts the probes that ended in one way.
type ResultCount struct {
	Status rota.Status
	Class  rota.Class
	Count  uint64
}

// Histogram counts values by upper bound.
type Histogram struct {
	Bounds []float64 // upper bounds, inclusive, ascending; shared, not to be changed
	Counts []uint64  // of values up to the bound and above the one before; one more than Bounds, the last without bound
	Sum    float64
}

func (h *Histogram) add(v float64) {
	i, _ := slices.BinarySearch(h.Bounds, v)
	h.Counts[i]++
	h.Sum += v
}

func newHistogram(bounds []float64) Histogram {
	return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
}

type resultKey struct {
	status rota.Status
	class  rota.Class
}

type kindTally struct {
	flying             int
	changes, forgiven  uint64
	results            map[resultKey]*uint64
	last               resultKey // most are as the one before
	count              *uint64   // its count
	duration, lateness Histogram
}

// tally is the counting side of Stats.
type tally struct {
	targets            int
	stops              uint64
	kinds              map[rota.Kind]*kindTally
	last               rota.Kind // most are of the kind of the one before
	tally              *kindTally
	durations, lateral []float64
}

func newTally() tally {
	return tally{
		kinds:     map[rota.Kind]*kindTally{},
		durations: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		lateral:   []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 5},
	}
}

func (t *tally) kind(k rota.Kind) *kindTally {
	if t.tally != nil && t.last == k {
		return t.tally
	}
	c := t.kinds[k]
	if c == nil {
		c = &kindTally{results: map[resultKey]*uint64{}, duration: newHistogram(t.durations), lateness: newHistogram(t.lateral)}
		t.kinds[k] = c
	}
	t.last, t.tally = k, c
	return c
}

// result returns the count of probes that ended so.
func (c *kindTally) result(k resultKey) *uint64 {
	if c.count != nil && c.last == k {
		return c.count
	}
	n := c.results[k]
	if n == nil {
		n = new(uint64)
		c.results[k] = n
	}
	c.last, c.count = k, n
	return n
}

func (t *tally) started(k rota.Kind, late time.Duration) {
	c := t.kind(k)
	c.flying++
	c.lateness.add(late.Seconds())
}

func (t *tally) ended(k rota.Kind, o rota.Observation) {
	c := t.kind(k)
	c.flying--
	*c.result(resultKey{o.Status, o.Class})++
	c.duration.add(o.Took.Seconds())
}

func (t *tally) snapshot() Stats {
	s := Stats{Targets: t.targets, Stops: t.stops}
	for _, k := range slices.Sorted(maps.Keys(t.kinds)) {
		c := t.kinds[k]
		ks := KindStats{Kind: k, InFlight: c.flying, Duration: c.duration, Lateness: c.lateness, Changes: c.changes, Forgiven: c.forgiven}
		ks.Duration.Counts, ks.Lateness.Counts = slices.Clone(c.duration.Counts), slices.Clone(c.lateness.Counts)
		for r, n := range c.results {
			ks.Results = append(ks.Results, ResultCount{r.status, r.class, *n})
		}
		slices.SortFunc(ks.Results, func(a, b ResultCount) int {
			return cmp.Or(cmp.Compare(a.Status, b.Status), cmp.Compare(a.Class, b.Class))
		})
		s.InFlight += c.flying
		s.Kinds = append(s.Kinds, ks)
	}
	return s
}
