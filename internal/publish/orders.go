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
	refresh  map[rota.Name]uint64 // names to be written again, by the newest order
	imports  []rota.Instruction
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
			o.imports = append(o.imports, x.Instruction)
			o.release = nil
		case rota.VerbRelease:
			o.release, o.imports = &all[i], nil
		}
	}
	return o
}

// adopts reports whether a person gave us the RRsets of a name that no record says are ours, or that are the owner's who is named.
func (o orders) adopts(name rota.Name, c claim) bool {
	return slices.ContainsFunc(o.imports, func(x rota.Instruction) bool {
		return (len(x.Names) == 0 || slices.Contains(x.Names, name)) && (!c.foreign || c.labels.says(x.From))
	})
}

// takes reports whether a person told owner to take over a zone that another holds: it was offered to owner, or the person named who
// holds it.
func (o orders) takes(f Fence, owner string) bool {
	return slices.ContainsFunc(o.imports, func(x rota.Instruction) bool {
		return f.Owner != "" && (f.Offer == owner || f.Owner == x.From)
	})
}
