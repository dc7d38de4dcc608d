package config

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// loss is what the death of one address or one site takes out of what one publisher keeps.
type loss struct {
	what    string
	records int
}

// budgets warns of each publisher whose budget of changes is too small for the death of one of its addresses or sites: then some names keep
// the dead for a while. Zones are not known before the publisher has found them, so that all of its services are taken together.
func (b *builder) budgets() {
	for _, name := range slices.Sorted(maps.Keys(b.publishers)) {
		total, worst, m := lossOf(b.c.Spec.Services, name)
		if m.Share >= 1 || total < m.MinRecords {
			continue
		}
		allowed := max(1, int(math.Floor(m.Share*float64(total)+1e-9)))
		if worst.records <= allowed {
			continue
		}
		at := b.root.get("safety").get("max_change").placeOr(b.root.child("services").placeOr(b.root.at))
		b.warn(at, fmt.Sprintf("write safety: {max_change: {records: %d%%}}, or leave it and use rota apply --force when it happens",
			int(math.Ceil(100*float64(worst.records)/float64(total)))),
			"publisher %q: when %s dies, %d of %d records should leave, and max_change lets %d go: the others stay for %s",
			name, worst.what, worst.records, total, allowed, formatDuration(m.Per))
	}
}

// lossOf counts the records that a publisher keeps, finds the address or site whose death takes most of them out, and returns the smallest
// budget among its services. What a service would not let go, because too few would be left, does not count.
func lossOf(services []rota.Service, publisher string) (total int, worst loss, least rota.MaxChange) {
	least = rota.MaxChange{Share: 1, Per: time.Minute}
	addresses, sites := map[string]int{}, map[string]int{}
	for _, v := range services {
		if !slices.Contains(v.Publish, publisher) {
			continue
		}
		if v.Safety.MaxChange.Share < least.Share {
			least = v.Safety.MaxChange
		}
		for _, v4 := range []bool{true, false} {
			here, all := map[string]int{}, 0
			for _, e := range v.Endpoints {
				if e.Address.Zone() == "" && e.Address.Is4() == v4 {
					all++
					here[e.Site]++
				}
			}
			total += all
			leaves := func(n int) bool {
				left := all - n
				return left >= max(1, v.Safety.MinPublished) && float64(left) >= v.Safety.FailOpenBelow*float64(all)
			}
			for site, n := range here {
				if site != "" && leaves(n) {
					sites[site] += n
				}
			}
			for _, e := range v.Endpoints {
				if e.Address.Zone() == "" && e.Address.Is4() == v4 && leaves(1) {
					addresses[e.Address.String()]++
				}
			}
		}
	}
	for what, counts := range map[string]map[string]int{"": addresses, "site ": sites} {
		for name, n := range counts {
			l := loss{what + name, n}
			if cmp.Or(cmp.Compare(l.records, worst.records), cmp.Compare(worst.what, l.what)) > 0 {
				worst = l
			}
		}
	}
	return total, worst, least
}
