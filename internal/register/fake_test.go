package register

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// fake is an authoritative server in memory. It counts what it carries out, and can refuse, lose answers, or be changed by somebody else.
type fake struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	zones   []rota.Name
	sets    map[rota.Key]rota.RRset
	serial  map[rota.Name]int
	refuse  map[rota.Name]error
	deaf    map[rota.Name]bool         // agrees and does nothing
	between func(zone rota.Name) error // called before each update; its error is the answer after the update was carried out
}

func newFake(t testing.TB, zones ...rota.Name) *fake {
	return &fake{
		t: t, zones: zones, sets: map[rota.Key]rota.RRset{}, serial: map[rota.Name]int{}, refuse: map[rota.Name]error{}, deaf: map[rota.Name]bool{},
	}
}

// set puts an RRset there, written as "NAME TTL TYPE DATA...".
func (f *fake) set(text string) {
	p := strings.Fields(text)
	t, err := rota.ParseType(p[2])
	if err != nil {
		f.t.Fatal(err)
	}
	s := rota.RRset{Name: rota.MustParseName(p[0]), Type: t, Data: slices.Sorted(slices.Values(p[3:]))}
	fmt.Sscan(p[1], &s.TTL)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets[s.Key()] = s
}

// dump returns all RRsets, sorted.
func (f *fake) dump() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range f.sets {
		out = append(out, s.String())
	}
	slices.Sort(out)
	return out
}

func (f *fake) Zone(_ context.Context, name rota.Name) (rota.Name, error) {
	if z, ok := rota.LongestZone(name, f.zones); ok {
		return z, nil
	}
	return "", ErrNoZone
}

func (f *fake) Read(ctx context.Context, zone rota.Name, keys []rota.Key) ([]rota.RRset, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var out []rota.RRset
	for _, k := range keys {
		if !k.Name.In(zone) {
			f.t.Errorf("%s asked in zone %s", k, zone)
		}
		for _, k := range []rota.Key{k, {Name: k.Name, Type: rota.TypeCNAME}} {
			if s, ok := f.sets[k]; ok && !slices.ContainsFunc(out, func(o rota.RRset) bool { return o.Key() == k }) {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

func (f *fake) Swap(ctx context.Context, zone rota.Name, require []rota.RRset, changes []rota.Change) error {
	if f.between != nil && len(changes) > 0 {
		if err := f.between(zone); err != nil {
			defer func() { f.between = nil }()
			if err := f.swap(ctx, zone, require, changes); err != nil {
				f.t.Errorf("what should have been done and lost its answer: %v", err)
			}
			return err
		}
	}
	return f.swap(ctx, zone, require, changes)
}

func (f *fake) swap(ctx context.Context, zone rota.Name, require []rota.RRset, changes []rota.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.refuse[zone]; err != nil {
		return err
	}
	for _, s := range require {
		if !slices.Equal(f.sets[s.Key()].Data, s.Data) {
			return ErrMoved
		}
	}
	for _, c := range changes {
		if !c.Key().Name.In(zone) {
			f.t.Errorf("%s written to zone %s", c, zone)
		}
		if !slices.Equal(f.sets[c.Key()].Data, c.Old.Data) {
			return ErrMoved
		}
	}
	if len(changes) == 0 || f.deaf[zone] {
		return nil
	}
	for _, c := range changes {
		if f.sets[c.Key()] = c.New; len(c.New.Data) == 0 {
			delete(f.sets, c.Key())
		}
		if f.sets[rota.Key{Name: c.Key().Name, Type: rota.TypeCNAME}].Data != nil && len(c.New.Data) > 0 {
			f.t.Errorf("%s written beside a CNAME", c)
		}
	}
	f.serial[zone]++
	return nil
}
