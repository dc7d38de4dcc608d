package nameserver

import (
	"log/slog"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// catalog is all that lookup reads besides the State: the zones with the services and the claims of hosts that lie in them. It is made
// anew when the zones, the services or the claims change, never for a verdict, and is immutable.
type catalog struct {
	zones    *Zones
	views    map[rota.Name]*view
	services []rota.Service // of the State it was made for; they tell whether a State has the same ones
	claims   []rota.Claim   // likewise
}

// view is one zone with its services.
type view struct {
	*zone
	services map[rota.Name]bool  // names that exist because of a service; false for an empty non-terminal
	claims   map[rota.Name]*node // what hosts that registered claim
	minimum  uint32              // SOA minimum: at most the smallest TTL of a service, so that absence is not remembered longer
	floor    uint32              // the SOA serial is not below this
	counts   *zoneCounts
}

// newCatalog indexes the services of st that rota answers for itself.
func newCatalog(zones *Zones, st *rota.State) *catalog {
	c := &catalog{zones: zones, services: st.Services(), claims: st.Claims(), views: make(map[rota.Name]*view, len(zones.zones))}
	for n, z := range zones.zones {
		c.views[n] = &view{zone: z, services: map[rota.Name]bool{}, claims: map[rota.Name]*node{}, minimum: z.soa.Minttl, floor: z.soa.Serial}
	}
	for i := range c.services {
		s := &c.services[i]
		if !slices.Contains(s.Publish, rota.Embedded) {
			continue
		}
		v := c.view(s.Name)
		if v == nil {
			continue
		}
		v.minimum = min(v.minimum, s.TTL)
		v.bear(s.Name, true)
	}
	for i := range c.claims {
		if x := &c.claims[i]; slices.Contains(x.Publish, rota.Embedded) {
			if v := c.view(x.Set.Name); v != nil {
				v.claim(x.Set)
			}
		}
	}
	return c
}

// bear makes a name exist, and those between it and the apex.
func (v *view) bear(n rota.Name, service bool) {
	v.services[n] = v.services[n] || service
	for n != v.name {
		n = n.Parent()
		if _, known := v.services[n]; known || v.nodes[n] != nil {
			break
		}
		v.services[n] = false
	}
}

// claim adds an RRset of hosts that registered.
func (v *view) claim(s rota.RRset) {
	v.minimum = min(v.minimum, s.TTL)
	v.bear(s.Name, false)
	set := rrset{}
	for _, d := range s.Data {
		if s.Type == rota.TypePTR {
			hdr := dns.RR_Header{Name: s.Name.String(), Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: s.TTL}
			set.rrs = append(set.rrs, &dns.PTR{Hdr: hdr, Ptr: d})
		} else if a, err := netip.ParseAddr(d); err == nil {
			set.rrs = append(set.rrs, address(s.Name, s.TTL, a))
		}
	}
	if v.claims[s.Name] == nil {
		v.claims[s.Name] = &node{}
	}
	v.claims[s.Name].sets = append(v.claims[s.Name].sets, set)
}

// current reports whether the catalog is right for st.
func (c *catalog) current(st *rota.State) bool {
	return same(st.Services(), c.services) && same(st.Claims(), c.claims)
}

// same reports whether both are the very same list.
func same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// view returns the most specific zone that holds n, or nil.
func (c *catalog) view(n rota.Name) *view {
	if z := c.zones.find(n); z != nil {
		return c.views[z.name]
	}
	return nil
}

// warn logs the services whose configuration keeps rota from answering them as they stand.
func (c *catalog) warn(log *slog.Logger) {
	for _, v := range c.views {
		for n, real := range v.services {
			if !real {
				continue
			}
			if cut := v.cut(n); cut != "" {
				log.Warn("service lies at or below a delegation and is not answered", "service", n.Short(), "delegation", cut.Short())
			}
			if d := v.nodes[n]; d != nil {
				for _, s := range d.sets {
					if t := s.rrs[0].Header().Rrtype; occluded(t) {
						log.Warn("static records give way to the service of the same name", "service", n.Short(), "type", rota.Type(t).String())
					}
				}
			}
		}
	}
}

// occluded reports whether static records of type t give way where a service has the name.
func occluded(t uint16) bool {
	switch rota.Type(t) {
	case rota.TypeA, rota.TypeAAAA, rota.TypeCNAME:
		return true
	}
	return false
}

// exists reports whether the zone has the name, with data or as an empty non-terminal.
func (v *view) exists(n rota.Name) bool {
	if v.nodes[n] != nil {
		return true
	}
	_, ok := v.services[n]
	return ok
}

// cut returns the highest delegation at or above n, or no name.
func (v *view) cut(n rota.Name) rota.Name {
	var top rota.Name
	for ; n != v.name; n = n.Parent() {
		if d := v.nodes[n]; d != nil && d.cut {
			top = n
		}
	}
	return top
}
