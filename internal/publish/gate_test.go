package publish

import (
	"fmt"
	"maps"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// gateBooks is a zone that refuses a CNAME beside other data, whole, as the servers do that gates are for.
type gateBooks map[rota.Key]rota.RRset

func (z gateBooks) entries() []entry {
	var out []entry
	for k, s := range z {
		for _, d := range s.Data {
			out = append(out, entry{Key: k, TTL: s.TTL, Data: d})
		}
	}
	return out
}

// apply carries a request out, or refuses it.
func (z gateBooks) apply(changes []rota.Change) error {
	next := maps.Clone(z)
	asked := map[string]bool{}
	for _, c := range changes {
		if asked[c.Key().String()] {
			return fmt.Errorf("%s comes twice", c.Key())
		}
		asked[c.Key().String()] = true
		delete(next, c.Key())
		if len(c.New.Data) > 0 {
			next[c.Key()] = c.New
		}
	}
	for k := range next {
		if _, both := next[rota.Key{Name: k.Name, Type: rota.TypeCNAME}]; both && k.Type != rota.TypeCNAME {
			return fmt.Errorf("%s stands beside a CNAME", k)
		}
	}
	clear(z)
	maps.Copy(z, next)
	return nil
}

// A request passes on the state that it was planned on, and never after others have passed, be it one or many.
func TestGatesRefuseWhatIsLate(t *testing.T) {
	const zone = rota.Name("example.test.")
	for between := range 12 {
		for range 10 {
			z := gateBooks{}
			for range between % 3 {
				if err := z.apply(gateChanges(zone, z.entries())); err != nil {
					t.Fatal(err)
				}
			}
			late := gateChanges(zone, z.entries())
			for range between {
				if err := z.apply(gateChanges(zone, z.entries())); err != nil {
					t.Fatalf("a request planned on what is there: %v", err)
				}
			}
			switch err := z.apply(late); {
			case between == 0 && err != nil:
				t.Fatalf("nothing was in between: %v", err)
			case between > 0 && err == nil:
				t.Fatalf("a request passed after %d others", between)
			}
		}
	}
}

// However often the zone is written, the gates are as many as before, and a gate that somebody removed comes back.
func TestGatesDoNotGrow(t *testing.T) {
	const zone = rota.Name("example.test.")
	z := gateBooks{}
	for i := range 200 {
		if i%50 == 49 {
			for k := range z {
				delete(z, k)
				break
			}
		}
		if err := z.apply(gateChanges(zone, z.entries())); err != nil {
			t.Fatal(err)
		}
		if len(z) != gates {
			t.Fatalf("%d records after %d writes, want %d", len(z), i+1, gates)
		}
	}
	names := map[rota.Name]bool{}
	for k := range z {
		names[k.Name] = true
		if !k.Name.In(FenceKey(zone).Name) {
			t.Errorf("%s is not below the fence", k.Name)
		}
	}
	if len(names) != gates || !names[gateName(zone, gates-1)] {
		t.Errorf("the names are %v", names)
	}
}
