package publish

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/rota-dns/rota/internal/rota"
)

// Some APIs carry out all of a request or nothing, and yet let it name no condition. One condition they all have: where a CNAME is
// there must be nothing else (RFC 1034 §3.6.2), and a request that breaks it is refused whole. The gates make a compare-and-swap of
// it. Each of the names g00._rota.ZONE … holds a CNAME or a TXT record, which is one bit. Every request turns a few of them, chosen at
// random, and sets all others to what it was planned on. A request that arrives after another one has passed finds gates that the
// other has turned and it has not: it would put a CNAME beside a TXT record, or the reverse, and is refused.
//
// It needs no clock and no record that grows. It lets a late request pass in one case only: when all that was turned since is among
// what it turns itself, which is one in ten million after one request in between, and about as rare after any number of them.

// The gates of one zone.
const (
	gates  = 32
	turned = 8 // by one request
)

// gateName names a gate of a zone.
func gateName(zone rota.Name, i int) rota.Name {
	return rota.Name(fmt.Sprintf("g%02d.", i)) + FenceKey(zone).Name
}

// gateChanges are what a request adds to the changes of a batch: what is known of the gates and what becomes of them. A gate that is
// not turned has a change that says the same on both sides. A gate that is not there counts as a CNAME.
func gateChanges(zone rota.Name, held []entry) []rota.Change {
	shut := map[rota.Name]bool{}
	there := map[rota.Key]bool{}
	for _, e := range held {
		there[e.Key] = true
		if e.Key.Type == rota.TypeTXT {
			shut[e.Key.Name] = true
		}
	}
	turn := rand.Perm(gates)[:turned]
	var out []rota.Change
	for i := range gates {
		n := gateName(zone, i)
		open := rota.RRset{Name: n, Type: rota.TypeCNAME, TTL: fenceTTL, Data: []string{FenceKey(zone).Name.String()}}
		closed := rota.RRset{Name: n, Type: rota.TypeTXT, TTL: fenceTTL, Data: []string{`"-"`}}
		now, then := open, closed
		if shut[n] {
			now, then = closed, open
		}
		if !slices.Contains(turn, i) {
			out = append(out, rota.Change{Old: now, New: now})
			continue
		}
		if there[now.Key()] {
			out = append(out, rota.Change{Old: now, New: rota.RRset{Name: n, Type: now.Type}})
		}
		out = append(out, rota.Change{Old: rota.RRset{Name: n, Type: then.Type}, New: then})
	}
	return out
}
