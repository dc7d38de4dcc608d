package publish

import (
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// orders is what people ask of one zone now.
type orders struct {
	index    uint64             // of the newest one that asks for a look
	released map[rota.Name]bool // names of which a person lets go what a limit holds
}

// ordersOf reads the instructions in force.
func ordersOf(all []rota.Instructed, now time.Time) orders {
	o := orders{released: map[rota.Name]bool{}}
	for _, x := range all {
		if x.Verb != rota.VerbRelease && !now.Before(x.Until) {
			continue
		}
		switch x.Verb {
		case rota.VerbApply:
			o.index = x.Index
			for _, n := range x.Names {
				o.released[n] = true
			}
		}
	}
	return o
}
