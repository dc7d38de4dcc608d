package publish

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Plan is what a publisher would write now.
type Plan struct {
	Publisher string     `json:"publisher"`
	Zones     []ZonePlan `json:"zones"` // sorted; names whose zone cannot be found are in a ZonePlan without a zone
}

// ZonePlan is what a publisher would write to one zone now.
type ZonePlan struct {
	Zone      rota.Name     `json:"zone,omitempty"`
	Changes   []rota.Change `json:"changes"`         // sorted by name and type; a registry's records around what they speak of
	Held      []HeldChange  `json:"held"`            // what safety limits keep from being written, sorted likewise
	Unchanged []rota.RRset  `json:"unchanged"`       // that are as they should be
	Reasons   []*Reason     `json:"reasons"`         // why the zone, or single names in it, cannot be made true
	Owner     string        `json:"owner,omitempty"` // whose the zone is, by its fence record; empty: nobody's, or it could not be read
	Offer     string        `json:"offer,omitempty"` // to whom the owner offers it
}

// desire is what one zone should become, and the state that says so.
type desire struct {
	state    *rota.State
	wants    []rota.Want // sorted by service, fitted to caps
	caps     Capabilities
	orders   orders
	registry registry
}

// decide is the plan that may be written now. It is pure.
func (d desire) decide(zone rota.Name, have Reading, left leavings, now time.Time) ZonePlan {
	return d.register(d.limit(d.plan(zone, have), have, left, now), have)
}

// drift counts the RRsets that are not as they should be.
func (p ZonePlan) drift() int {
	keys := make(map[rota.Key]bool, len(p.Changes)+len(p.Held))
	for _, c := range p.Changes {
		keys[c.Key()] = true
	}
	for _, h := range p.Held {
		keys[h.Change.Key()] = true
	}
	return len(keys)
}

// reads lists what must be read before a plan, but for the fence.
func (d desire) reads() []rota.Key {
	out := d.keys()
	if d.registry.on {
		for _, k := range out[:len(out):len(out)] {
			if key, err := d.registry.key(k); err == nil {
				out = append(out, key)
			}
		}
	}
	return out
}

// keys lists what is kept true.
func (d desire) keys() []rota.Key {
	out := make([]rota.Key, 0, len(d.wants))
	for _, w := range d.wants {
		if d.caps.Takes(w.Set.Type) {
			out = append(out, w.Set.Key())
		}
	}
	return out
}

// want finds what is wanted of a key.
func (d desire) want(k rota.Key) (rota.Want, bool) {
	i, _ := slices.BinarySearchFunc(d.wants, k.Name, func(w rota.Want, n rota.Name) int { return cmp.Compare(w.Service, n) })
	for ; i < len(d.wants) && d.wants[i].Service == k.Name; i++ {
		if d.wants[i].Set.Key() == k {
			return d.wants[i], true
		}
	}
	return rota.Want{}, false
}

// plan compares what the DNS says with what it should say. It is pure.
func (d desire) plan(zone rota.Name, have Reading) ZonePlan {
	p := ZonePlan{Zone: zone, Changes: []rota.Change{}, Held: []HeldChange{}, Unchanged: []rota.RRset{}, Reasons: []*Reason{}}
	index := indexOf(have.Sets)
	var sets, held []rota.RRset
	permitted := permission{data: map[string]bool{}, empty: map[rota.Type]bool{}}
	for wants := range byService(d.wants) {
		name := wants[0].Service
		if r := have.Blocked[name]; r != nil {
			p.Reasons = append(p.Reasons, r)
			continue
		}
		if r := d.untaken(wants); r != nil {
			p.Reasons = append(p.Reasons, r)
			continue
		}
		wants, r := d.unowned(wants, index)
		if r != nil {
			p.Reasons = append(p.Reasons, r)
		}
		sets, held = sets[:0], held[:0]
		for _, w := range wants {
			s := index[w.Set.Key()]
			if have.AnyTTL[w.Set.Key()] {
				s.TTL = w.Set.TTL
			}
			if s.Name == "" {
				s = rota.RRset{Name: w.Set.Name, Type: w.Set.Type}
			}
			held = append(held, s)
			if len(w.Drop) > 0 {
				w.Set = dropped(s, w.Drop)
			}
			sets = append(sets, w.Set)
		}
		if r := strayCNAME(name, index, sets); r != nil {
			p.Reasons = append(p.Reasons, r)
			continue
		}
		changes := rota.Diff(held, sets)
		for i := range changes {
			changes[i].Why = why(d.state, name, changes[i])
		}
		if len(changes) > 0 {
			d.permit(permitted, name, wants, sets)
			if r := guard(changes, permitted); r != nil {
				p.Reasons = append(p.Reasons, r)
				continue
			}
		}
		p.Changes = append(p.Changes, changes...)
		for i := range sets {
			if len(sets[i].Data) > 0 && !slices.ContainsFunc(changes, func(c rota.Change) bool { return c.Key() == sets[i].Key() }) {
				p.Unchanged = append(p.Unchanged, sets[i])
			}
		}
	}
	return p
}

// untaken finds a record that should be written and that the DNS has no type for.
func (d desire) untaken(wants []rota.Want) *Reason {
	for _, w := range wants {
		if len(w.Set.Data) > 0 && !d.caps.Takes(w.Set.Type) {
			return &Reason{
				Code: CodeUnsupported, Name: w.Service, Text: fmt.Sprintf("this DNS does not take %s records", w.Set.Type),
				Advice: "leave out what needs them, or publish the service elsewhere",
			}
		}
	}
	return nil
}

// byService yields the wants of one name after the other.
func byService(wants []rota.Want) func(func([]rota.Want) bool) {
	return func(yield func([]rota.Want) bool) {
		for len(wants) > 0 {
			n := 1
			for n < len(wants) && wants[n].Service == wants[0].Service {
				n++
			}
			if !yield(wants[:n:n]) {
				return
			}
			wants = wants[n:]
		}
	}
}

// dropped returns s without the records that are to go.
func dropped(s rota.RRset, drop []string) rota.RRset {
	s.Data = slices.DeleteFunc(slices.Clone(s.Data), func(d string) bool { return slices.Contains(drop, d) })
	return s
}

// strayCNAME finds a CNAME at a name that should have addresses and whose CNAME this plan does not replace: servers agree to the
// addresses and silently leave them out (RFC 2136 §3.4.2.2).
func strayCNAME(name rota.Name, index index, sets []rota.RRset) *Reason {
	c := index[rota.Key{Name: name, Type: rota.TypeCNAME}]
	for _, s := range sets {
		if s.Type == rota.TypeCNAME {
			c = s
		}
	}
	if len(c.Data) == 0 || !hasAddresses(sets) {
		return nil
	}
	return &Reason{
		Code: CodeCNAME, Name: name, Text: fmt.Sprintf("is a CNAME to %s, which rota did not write", strings.Join(c.Data, " ")),
		Advice: "remove the CNAME by hand, or take the service out of rota",
	}
}

func hasAddresses(sets []rota.RRset) bool {
	return slices.ContainsFunc(sets, func(s rota.RRset) bool { return s.Type != rota.TypeCNAME && len(s.Data) > 0 })
}

// permission is what the guard may let through for one name: data that may be added, and types that may be left without any.
type permission struct {
	data  map[string]bool
	empty map[rota.Type]bool
}

// permit makes p say what the configuration allows for a name, whatever was decided: the configured addresses, the fallback, what hosts that
// registered claim, and to be empty where the operator chose so or took the last endpoint of the family out.
func (d desire) permit(p permission, name rota.Name, wants []rota.Want, sets []rota.RRset) {
	clear(p.data)
	clear(p.empty)
	if v := d.state.Service(name); v != nil {
		for _, e := range v.Endpoints {
			if e.Address.Zone() == "" {
				p.data[e.Address.String()] = true
			}
		}
		if v.Safety.Fallback != "" {
			p.data[v.Safety.Fallback.String()] = true
		}
		sel := d.state.Selection(name)
		for _, t := range []rota.Type{rota.TypeA, rota.TypeAAAA} {
			p.empty[t] = sel != nil && sel.Family(t).Mode == rota.ModeNone && v.Safety.OnAllDown == rota.OnAllDownNone
		}
	}
	for i, w := range wants {
		if c := d.state.Claim(w.Set.Key()); c != nil {
			for _, data := range c.Set.Data {
				p.data[data] = true
			}
		}
		if len(w.Drop) == 0 {
			continue
		}
		if w.Set.Type == rota.TypeCNAME {
			// The fallback may go when addresses answer instead, or when the name has none left to answer with.
			p.empty[w.Set.Type] = hasAddresses(sets) || !d.configured(name) || p.empty[rota.TypeA] || p.empty[rota.TypeAAAA]
			continue
		}
		p.empty[sets[i].Type] = !d.configuredFamily(name, sets[i].Type)
	}
}

// configured reports whether the name has an endpoint that can be published.
func (d desire) configured(name rota.Name) bool {
	return d.configuredFamily(name, rota.TypeA) || d.configuredFamily(name, rota.TypeAAAA)
}

func (d desire) configuredFamily(name rota.Name, t rota.Type) bool {
	v := d.state.Service(name)
	return v != nil && (t == rota.TypeA || t == rota.TypeAAAA) && slices.ContainsFunc(v.Endpoints, func(e rota.Endpoint) bool {
		return e.Address.Zone() == "" && e.Address.Is4() == (t == rota.TypeA)
	})
}

// guard is the last look at the changes of one name before they may be written. It does not trust what decided them: no type is left
// without data unless that is permitted or a CNAME takes the name over in the same transaction; no data is added that is not
// permitted; a CNAME does not stand beside other data.
func guard(changes []rota.Change, p permission) *Reason {
	refuse := func(c rota.Change, format string, args ...any) *Reason {
		return &Reason{
			Code: CodeGuard, Name: c.Key().Name, Text: fmt.Sprintf(format, args...) + ", so nothing is written",
			Advice: "this is a fault in rota: please report it with the output of rota explain",
		}
	}
	takeover := slices.ContainsFunc(changes, func(c rota.Change) bool {
		return c.Key().Type == rota.TypeCNAME && len(c.New.Data) == 1
	})
	for _, c := range changes {
		k := c.Key()
		if len(c.New.Data) == 0 && len(c.Old.Data) > 0 && !p.empty[k.Type] && !(takeover && k.Type != rota.TypeCNAME) {
			return refuse(c, "the plan would leave %s without records", k)
		}
		if takeover && k.Type != rota.TypeCNAME && len(c.New.Data) > 0 {
			return refuse(c, "the plan would put a CNAME beside %s", k)
		}
		for _, d := range c.Added() {
			if !p.data[d] {
				return refuse(c, "the plan would add %s to %s, which is not configured", d, k)
			}
			a, err := netip.ParseAddr(d)
			if k.Type == rota.TypeA && (err != nil || !a.Is4()) || k.Type == rota.TypeAAAA && (err != nil || !a.Is6() || a.Zone() != "") {
				return refuse(c, "the plan would add %s to %s, which it does not fit", d, k)
			}
		}
	}
	return nil
}

// whyLimit bounds how many records a change tells the story of; the summary speaks for the rest.
const whyLimit = 3

// why says in one line where a change comes from, from the values that decided.
func why(st *rota.State, name rota.Name, c rota.Change) string {
	t := c.Key().Type
	if t == rota.TypeCNAME {
		t = rota.TypeA
	}
	summary, ok := st.Summary(name, t)
	switch {
	case st.Claim(c.Key()) != nil:
		return summary
	case !ok:
		for _, l := range st.Leftovers() {
			if l.Key == c.Key() {
				return "of host " + l.Host + ", which left or has other addresses now"
			}
		}
		return ""
	}
	mode := rota.ModeNormal
	if sel := st.Selection(name); sel != nil {
		mode = sel.Family(t).Mode
		if mode == rota.ModeAbsent && c.Key().Type == rota.TypeCNAME {
			mode = sel.V6.Mode
			summary, _ = st.Summary(name, rota.TypeAAAA)
		}
	}
	moved := slices.Concat(c.Removed(), c.Added())
	var parts []string
	for _, d := range moved[:min(len(moved), whyLimit)] {
		if text := whyRecord(st, name, c, d); text != "" {
			parts = append(parts, d+" "+text)
		}
	}
	if len(moved) == 0 {
		parts = append(parts, fmt.Sprintf("ttl is configured as %d", c.New.TTL))
	}
	if len(moved) > whyLimit || len(parts) == 0 || mode.Panic() {
		parts = append(parts, summary)
	}
	return strings.Join(parts, "; ")
}

func whyRecord(st *rota.State, name rota.Name, c rota.Change, data string) string {
	if a, err := netip.ParseAddr(data); err == nil {
		if text := st.Why(rota.EndpointID{Service: name, Address: a}); text != "" {
			return text
		}
	}
	if c.Key().Type == rota.TypeCNAME {
		return ""
	}
	return "is not an endpoint of the service"
}
