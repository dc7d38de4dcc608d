package publish

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// fault is what a fake does to the next write.
type fault int

const (
	fine       fault = iota
	failed           // no answer, not done
	doneLost         // done, and no answer
	late             // no answer, and done when released
	refusing         // a definite no
	lying            // agreed, and not done
	unreadable       // done, and the next read fails
)

// fake is a Backend in memory that checks the promises at every write.
type fake struct {
	t  testing.TB
	mu sync.Mutex // guards what follows

	zone    map[rota.Key]rota.RRset
	faults  []fault // of the next writes
	dark    bool    // nothing is answered
	poison  rota.Name
	blind   int // reads that fail
	delayed []Batch
	reads   int
	writes  []Batch // that were carried out and changed more than the fence
	tries   []time.Time
	capture []Batch
	allowed func(rota.Change) error
	limit   int // changes in one transaction; 0: any
	caps    Capabilities
	anyTTL  uint32  // that this DNS gives every RRset; 0: what was asked for
	patient *Reason // said to every write
}

func newFake(t testing.TB, sets ...rota.RRset) *fake {
	f := &fake{t: t, zone: map[rota.Key]rota.RRset{}, caps: Capabilities{Fence: FenceServer, Atomic: true}}
	for _, s := range sets {
		f.zone[s.Key()] = s
	}
	return f
}

func (f *fake) Zone(_ context.Context, n rota.Name) (rota.Name, error) {
	if !n.In("example.test.") {
		return "", &Reason{Code: CodeNoZone, Name: n, Text: "no such zone"}
	}
	return "example.test.", nil
}

func (f *fake) Capabilities() Capabilities { return f.caps }

func silence(write bool) error {
	return &Reason{Code: CodeUnreachable, Transient: true, InDoubt: write, Text: "no answer"}
}

func (f *fake) Read(ctx context.Context, _ rota.Name, keys []rota.Key) (Reading, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if f.dark || f.blind > 0 {
		f.blind = max(0, f.blind-1)
		return Reading{}, silence(false)
	}
	out := Reading{AnyTTL: map[rota.Key]bool{}}
	for _, k := range keys {
		if s, ok := f.zone[k]; ok {
			s.Data = slices.Clone(s.Data)
			if f.anyTTL > 0 {
				s.TTL = f.anyTTL
				out.AnyTTL[k] = true
			}
			out.Sets = append(out.Sets, s)
		}
	}
	return out, ctx.Err()
}

func (f *fake) Write(_ context.Context, b Batch) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries = append(f.tries, time.Now())
	if f.patient != nil {
		return 0, f.patient
	}
	n := len(b.Changes)
	if f.limit > 0 && n > f.limit {
		n = f.limit
		for n < len(b.Changes) && b.Changes[n].Key().Name == b.Changes[n-1].Key().Name {
			n++
		}
	}
	b.Changes = b.Changes[:n]
	f.check(b)
	if f.dark {
		return n, silence(true)
	}
	if f.poison != "" && slices.ContainsFunc(b.Changes, func(c rota.Change) bool { return c.Key().Name == f.poison }) {
		return n, &Reason{Code: CodeServfail, Transient: true, Text: "SERVFAIL"}
	}
	next := fine
	if len(f.faults) > 0 {
		next, f.faults = f.faults[0], f.faults[1:]
	}
	switch next {
	case failed:
		return n, silence(true)
	case late:
		f.delayed = append(f.delayed, b)
		return n, silence(true)
	case refusing:
		return n, &Reason{Code: CodeRefused, Text: "REFUSED"}
	}
	if next == lying {
		b.Changes = nil
	}
	err := f.apply(b)
	if err == nil {
		f.capture = append(f.capture, b)
	}
	if next == doneLost {
		return n, silence(true)
	}
	if next == unreadable {
		f.blind = 1
	}
	return n, err
}

// check holds every message against the contract and the promises, whatever becomes of it.
func (f *fake) check(b Batch) {
	given := len(b.Fence.New.Data) == 0 && len(b.Fence.Old.Data) == 1 && len(b.Changes) == 0 // the zone is given up
	if b.Fence.Key() != FenceKey(b.Zone) || len(b.Fence.New.Data) != 1 && !given || slices.Equal(b.Fence.Old.Data, b.Fence.New.Data) {
		f.t.Errorf("a write without a fence that moves: %+v", b.Fence)
	}
	seen := map[rota.Key]bool{}
	if n := f.caps.Batch; n > 0 && len(b.Changes) > n && b.Changes[0].Key().Name != b.Changes[len(b.Changes)-1].Key().Name {
		f.t.Errorf("%d changes in one write, want at most %d", len(b.Changes), n)
	}
	for i, c := range b.Changes {
		if c.Old.Key() != c.New.Key() || seen[c.Key()] {
			f.t.Errorf("change %d is of two keys or comes twice: %v", i, c)
		}
		seen[c.Key()] = true
		if len(c.New.Data) > 0 && (!f.caps.Takes(c.Key().Type) || c.New.TTL < f.caps.MinTTL) {
			f.t.Errorf("a record that this DNS does not take: %v", c)
		}
		if f.allowed != nil {
			if err := f.allowed(c); err != nil {
				f.t.Error(err)
			}
		}
	}
}

func (f *fake) apply(b Batch) error {
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		if !slices.Equal(f.zone[c.Key()].Data, c.Old.Data) {
			return ErrMoved
		}
	}
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		if len(c.New.Data) == 0 {
			delete(f.zone, c.Key())
		} else {
			f.zone[c.Key()] = c.New
		}
	}
	if len(b.Changes) > 0 {
		f.writes = append(f.writes, b)
	}
	return nil
}

// release lets what is held arrive.
func (f *fake) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.delayed {
		f.apply(b)
	}
	f.delayed = nil
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) data(name string, t rota.Type) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.zone[rota.Key{Name: rota.Name(name), Type: t}].Data
}

func (f *fake) written() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.writes)
}

// dump returns the zone without the fence.
func (f *fake) dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range slices.Collect(maps.Values(f.zone)) {
		if s.Name != "_rota.example.test." {
			out = append(out, s.String())
		}
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}
