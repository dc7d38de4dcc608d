package publish

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// DefaultPrefix begins the names of registry records.
const DefaultPrefix = "_rota."

// Registry has a TXT record beside each RRset say whose it is, in the way of external-dns: an RRset that stands without one of ours is
// not touched, until it is imported. The record of type T and name N is at Prefix + "t-" + N.
type Registry struct {
	Prefix string // empty: DefaultPrefix
}

// registry is the Registry as one zone uses it.
type registry struct {
	on       bool
	prefix   string
	zone     rota.Name
	owner    string
	formerly []string
	ttl      uint32
}

// apexLabel stands for the name of the zone itself, which has no label of its own to put a type before.
const apexLabel = "_apex"

// key names the registry record of an RRset. It fails when the name would be too long.
func (g registry) key(k rota.Key) (rota.Key, error) {
	host := string(k.Name)
	if k.Name == g.zone {
		host = apexLabel + "." + strings.TrimPrefix(host, ".")
	}
	n, err := rota.ParseName(g.prefix + strings.ToLower(k.Type.String()) + "-" + host)
	return rota.Key{Name: n, Type: rota.TypeTXT}, err
}

// subject is the name that a change is about: of a registry record that of the RRset it speaks of.
func (g registry) subject(k rota.Key) rota.Name {
	if rest, ok := strings.CutPrefix(string(k.Name), g.prefix); ok && g.on && k.Type == rota.TypeTXT {
		if _, host, ok := strings.Cut(rest, "-"); ok {
			if apex, ok := strings.CutPrefix(host, apexLabel+"."); ok && rota.Name(cmp.Or(apex, ".")) == g.zone {
				return g.zone
			}
			return rota.Name(host)
		}
	}
	return k.Name
}

// bySubject yields the changes of one name, its registry records included, after the other.
func (g registry) bySubject(changes []rota.Change) func(func([]rota.Change) bool) {
	return parted(changes, func(c rota.Change) rota.Name { return g.subject(c.Key()) })
}

// Heritage marks registry records: external-dns' and those made like them.
const heritage = "heritage=external-dns"

// labels are what a registry record says. A record that says nothing of the kind has none.
type labels map[string]string

// The labels that rota writes; others are kept.
const (
	labelOwner    = "external-dns/owner"
	labelResource = "external-dns/resource"
)

// labelsOf reads the record of a registry. ok is false when something else stands there.
func labelsOf(set rota.RRset) (l labels, ok bool) {
	if len(set.Data) != 1 {
		return nil, false
	}
	text, err := plainTXT(set.Data[0])
	if err != nil {
		return nil, false
	}
	l = labels{}
	for i, field := range strings.Split(text, ",") {
		key, value, found := strings.Cut(field, "=")
		switch {
		case i == 0 && field != heritage, !found:
			return nil, false
		case i > 0:
			l[key] = value
		}
	}
	return l, true
}

// text is the labels as a record's data.
func (l labels) text() string {
	out := []string{heritage}
	for _, k := range slices.Sorted(maps.Keys(l)) {
		out = append(out, k+"="+l[k])
	}
	return quoteTXT(strings.Join(out, ","))
}

// says reports whether the labels name the owner.
func (l labels) says(owner string) bool {
	return owner != "" && (l[labelOwner] == url.QueryEscape(owner) || l[labelOwner] == owner)
}

// claim is what the registry says of one RRset.
type claim struct {
	key     rota.Key   // of the record
	set     rota.RRset // that stands there
	labels  labels
	ours    bool // it is ours, or a person gave it to us
	foreign bool // somebody else's record stands there
}

// claim looks an RRset up.
func (d desire) claim(k rota.Key, have index) (claim, error) {
	key, err := d.registry.key(k)
	if err != nil {
		return claim{}, err
	}
	c := claim{key: key, set: have[key]}
	if c.set.Name == "" {
		c.set = rota.RRset{Name: key.Name, Type: key.Type}
	}
	var readable bool
	c.labels, readable = labelsOf(c.set)
	c.ours = readable && (c.labels.says(d.registry.owner) || slices.ContainsFunc(d.registry.formerly, c.labels.says))
	c.foreign = len(c.set.Data) > 0 && !c.ours
	switch {
	case c.ours:
	case !c.foreign && len(have[k].Data) == 0: // nobody's: whoever comes first
		c.ours = true
	case d.orders.adopts(k.Name, c):
		c.ours, c.foreign = true, false
	}
	return c, nil
}

// says reports whether the record has this text already, however its strings are parted and written.
func (c claim) says(data []string) bool {
	if len(c.set.Data) != 1 || len(data) != 1 {
		return false
	}
	now, err := plainTXT(c.set.Data[0])
	next, nerr := plainTXT(data[0])
	return err == nil && nerr == nil && now == next
}

// holder says who has an RRset that is not ours.
func (c claim) holder() string {
	switch owner := c.labels[labelOwner]; {
	case owner != "":
		return fmt.Sprintf("%s says that it belongs to %q", c.key, rota.CleanReason("%s", owner))
	case c.foreign:
		return fmt.Sprintf("%s says something else than who owns it", c.key)
	}
	return fmt.Sprintf("no registry record says that it is rota's (%s)", c.key)
}

// unowned finds the wants of a name that the registry does not let rota touch. Where a CNAME is to take the name over, one is enough to
// leave all alone. What has nothing to do there needs no reason.
func (d desire) unowned(wants []rota.Want, have index) (kept []rota.Want, reason *Reason) {
	if !d.registry.on {
		return wants, nil
	}
	takeover := false
	for _, w := range wants {
		takeover = takeover || w.Set.Type == rota.TypeCNAME && len(w.Set.Data) > 0
		c, err := d.claim(w.Set.Key(), have)
		if err != nil {
			return nil, &Reason{
				Code: CodeUnsupported, Name: w.Service, Text: rota.CleanReason("the registry has no name for it: %v", err),
				Advice: "shorten the name or ownership.prefix, or keep no registry",
			}
		}
		switch {
		case c.ours:
			kept = append(kept, w)
		case reason == nil && (len(w.Set.Data) > 0 || len(spoken(w, have[w.Set.Key()])) > 0):
			reason = &Reason{
				Code: CodeNotOwned, Name: w.Service, Text: fmt.Sprintf("%s is not touched: %s", w.Set.Key(), c.holder()),
				Advice: "rota import takes it over, when nobody else keeps it any more",
			}
		}
	}
	if takeover && reason != nil {
		kept = nil
	}
	return kept, reason
}

// register adds to a plan what the registry has to say of it: a record before the RRset that it speaks of, and gone after it. Records
// that were changed by hand are put right; labels that rota does not know stay.
func (d desire) register(p ZonePlan, have Reading) ZonePlan {
	if !d.registry.on {
		return p
	}
	index := indexOf(have.Sets)
	planned := map[rota.Name][]rota.Change{}
	for changes := range byName(p.Changes) {
		planned[changes[0].Key().Name] = changes
	}
	p.Changes = []rota.Change{}
	for wants := range byService(d.wants) {
		name := wants[0].Service
		changes := planned[name]
		var before, behind []rota.Change
		for _, w := range wants {
			c, err := d.claim(w.Set.Key(), index)
			if err != nil || !c.ours || have.Blocked[name] != nil || !d.caps.Takes(w.Set.Type) {
				continue
			}
			then := index[w.Set.Key()].Data
			if i := slices.IndexFunc(changes, func(x rota.Change) bool { return x.Key() == w.Set.Key() }); i >= 0 {
				then = changes[i].New.Data
			}
			next := rota.RRset{Name: c.key.Name, Type: c.key.Type, TTL: d.registry.ttl}
			if len(spoken(w, rota.RRset{Data: then})) > 0 {
				if c.labels == nil {
					c.labels = labels{}
				}
				c.labels[labelOwner] = url.QueryEscape(d.registry.owner)
				c.labels[labelResource] = "rota/" + name.Short()
				next.Data = []string{c.labels.text()}
			}
			switch change := (rota.Change{Old: c.set, New: next, Why: "the registry says whose " + w.Set.Key().String() + " is"}); {
			case c.says(next.Data), len(c.set.Data)+len(next.Data) == 0:
			case len(next.Data) > 0:
				before = append(before, change)
			default:
				behind = append(behind, change)
			}
		}
		p.Changes = slices.Concat(p.Changes, before, changes, behind)
	}
	return p
}

// strike lists the changes that take back all that the registry says of ours in the zone.
func (d desire) strike(have Reading) []rota.Change {
	var out []rota.Change
	index := indexOf(have.Sets)
	for _, w := range d.wants {
		c, err := d.claim(w.Set.Key(), index)
		if err == nil && len(c.set.Data) > 0 && c.labels.says(d.registry.owner) {
			out = append(out, rota.Change{
				Old: c.set, New: rota.RRset{Name: c.key.Name, Type: c.key.Type}, Why: "the zone is released",
			})
		}
	}
	return out
}
