package publish

import (
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// orders is what people ask of one zone now.
type orders struct {
	index    uint64               // of the newest one: it asks for a look
	released map[rota.Name]bool   // names of which a person lets go what a limit holds
	refresh  map[rota.Name]uint64 // names to be brought to what is wanted in two steps, by the newest order
	imports  []rota.Instructed
	release  *rota.Instructed // the zone is given up
}

// ordersOf reads the instructions in force, the newest last.
func ordersOf(all []rota.Instructed, now time.Time) orders {
	o := orders{released: map[rota.Name]bool{}, refresh: map[rota.Name]uint64{}}
	for i, x := range all {
		if x.Verb != rota.VerbRelease && !now.Before(x.Until) {
			continue
		}
		o.index = x.Index
		switch x.Verb {
		case rota.VerbApply:
			for _, n := range x.Names {
				o.released[n] = true
			}
		case rota.VerbRefresh:
			for _, n := range x.Names {
				o.refresh[n] = x.Index
			}
		case rota.VerbImport:
			o.imports = append(o.imports, x)
			o.release = nil
		case rota.VerbRelease:
			o.release, o.imports = &all[i], nil
		}
	}
	return o
}

// adopts reports whether a person gave us the RRsets of a name that no record says are ours, or that are the owner's who is named.
func (o orders) adopts(name rota.Name, c claim) bool {
	return slices.ContainsFunc(o.imports, func(x rota.Instructed) bool {
		return (len(x.Names) == 0 || slices.Contains(x.Names, name)) && (!c.foreign || c.labels.says(x.From))
	})
}

// after is o without the imports up to the one done: an import takes a zone over once, so that two installations that were both told to do
// not take it from each other.
func (o orders) after(done uint64) orders {
	o.imports = slices.DeleteFunc(slices.Clone(o.imports), func(x rota.Instructed) bool { return x.Index <= done })
	return o
}

// from lists the owners that a person told this installation to take the zone over from.
func (o orders) from() []string {
	var out []string
	for _, x := range o.imports {
		if x.From != "" {
			out = append(out, x.From)
		}
	}
	return out
}
