package publish

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// HeldChange is what a safety limit keeps from being written until a person says so.
type HeldChange struct {
	Change rota.Change `json:"change"` // from what is let through to what is wanted
	Why    string      `json:"why"`
}

// Past is what a publisher wrote, and when.
type Past struct {
	At time.Time
	rota.Published
}

// record is one record of an RRset.
type record struct {
	key  rota.Key
	data string
}

// leavings says when records left the DNS. One that came back is among them until it is seen there.
type leavings map[record]time.Time

// counts reports whether records of a type are counted: CNAMEs come in place of addresses and make room for them, texts are no answers.
func counts(t rota.Type) bool { return t != rota.TypeCNAME && t != rota.TypeTXT }

// note takes in what a change made at a time takes out, or may take out. What it adds is seen when it is there.
func (l leavings) note(c rota.Change, at time.Time) {
	if !counts(c.Key().Type) {
		return
	}
	for _, d := range c.Removed() {
		l[record{c.Key(), d}] = at
	}
}

// leavingsOf remembers what a publisher took out of a zone, whoever led then. past is in order.
func leavingsOf(publisher string, zone rota.Name, past []Past) leavings {
	l := leavings{}
	for _, p := range past {
		if p.Publisher != publisher || p.Zone != zone {
			continue
		}
		for _, c := range p.Changes {
			l.note(c, p.At)
		}
	}
	return l
}

// forget drops what is too old to count, and what the DNS holds again.
func (l leavings) forget(have index, now time.Time) {
	for r, at := range l {
		if now.Sub(at) > rota.MaxChangePer || have.holds(r) {
			delete(l, r)
		}
	}
}

// index finds RRsets by their key.
type index map[rota.Key]rota.RRset

func indexOf(sets []rota.RRset) index {
	out := make(index, len(sets))
	for _, s := range sets {
		out[s.Key()] = s
	}
	return out
}

func (x index) holds(r record) bool { return slices.Contains(x[r.key].Data, r.data) }

// limit holds back what may not leave the zone now: additions are never held. It is pure.
//
// Three rules bound what automation and edits of the configuration take out; what a person took out by an override of the endpoint, or
// released by an apply, goes: safety.min_published of the family, safety.max_sites, and safety.max_change, where each record goes by the
// numbers of its own service and all of the zone count. A record that is held stays beside what is new, so that what is published is
// never less than what is wanted. What a CNAME replaces stays whole or goes whole.
func (d desire) limit(p ZonePlan, have Reading, left leavings, now time.Time) ZonePlan {
	p.Held = []HeldChange{}
	l := limiter{desire: d, have: indexOf(have.Sets), left: left, now: now, budgets: map[rota.MaxChange]*budget{}}
	if !slices.ContainsFunc(p.Changes, func(c rota.Change) bool { return len(c.Removed()) > 0 }) {
		return p
	}
	for _, w := range d.wants {
		if counts(w.Set.Type) {
			l.total += len(spoken(w, l.have[w.Set.Key()]))
		}
	}
	var units [][]rota.Change
	for changes := range byName(p.Changes) {
		units = append(units, changes)
	}
	l.rankSites(units)
	slices.SortStableFunc(units, func(a, b []rota.Change) int { return cmp.Compare(l.class(a), l.class(b)) })
	p.Changes = []rota.Change{}
	for _, u := range units {
		l.unit(u, &p)
	}
	byKey := func(a, b rota.Key) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type)) }
	slices.SortFunc(p.Changes, func(a, b rota.Change) int { return byKey(a.Key(), b.Key()) })
	slices.SortFunc(p.Held, func(a, b HeldChange) int { return byKey(a.Change.Key(), b.Change.Key()) })
	if r := l.reason(p.Held); r != nil {
		p.Reasons = append(p.Reasons, r)
	}
	return p
}

// spoken are the records of an RRset that a want speaks of.
func spoken(w rota.Want, s rota.RRset) []string {
	if len(w.Drop) == 0 {
		return s.Data
	}
	var out []string
	for _, x := range s.Data {
		if slices.Contains(w.Drop, x) {
			out = append(out, x)
		}
	}
	return out
}

// limiter is one look at a plan.
type limiter struct {
	desire
	have    index
	left    leavings
	now     time.Time
	total   int // records of ours that the DNS holds
	spent   int // that this plan takes out
	budgets map[rota.MaxChange]*budget
	sites   map[string]int // rank of the sites that automation takes out, those that are out already at -1
}

// budget is what one MaxChange lets out of the zone.
type budget struct {
	out   int // records that left in its time and have not come back, but for those that a person took out
	base  int // records that the DNS held in its time
	allow int // records that may be out; -1: any number

	next time.Time // when the first of those that are out ceases to count; zero when none is
}

// budget counts for one MaxChange.
func (l *limiter) budget(m rota.MaxChange) *budget {
	if b := l.budgets[m]; b != nil {
		return b
	}
	b := &budget{base: l.total, allow: -1}
	for r, at := range l.left {
		if l.now.Sub(at) >= m.Per || l.have.holds(r) {
			continue
		}
		b.base++
		if !l.byPerson(r) {
			b.out++
			if next := at.Add(m.Per); b.next.IsZero() || next.Before(b.next) {
				b.next = next
			}
		}
	}
	if m.Share < 1 && b.base >= m.MinRecords {
		b.allow = int(math.Floor(m.Share*float64(b.base) + 1e-9))
		if m.Share > 0 {
			b.allow = max(b.allow, 1) // a limit slows down; only a share of nothing stops
		}
	}
	l.budgets[m] = b
	return b
}

// class orders names: those that a person released come first, since they go in any case, then those with living records left.
func (l *limiter) class(changes []rota.Change) int {
	if l.orders.released[changes[0].Key().Name] {
		return -1
	}
	for _, c := range changes {
		for _, x := range c.New.Data {
			if m := l.member(record{c.Key(), x}); m != nil && m.Health == rota.Up {
				return 0
			}
		}
	}
	return 1
}

// member is the endpoint behind a record, as it was decided upon; nil when there is none.
func (l *limiter) member(r record) *rota.Member {
	sel := l.state.Selection(r.key.Name)
	a, err := netip.ParseAddr(r.data)
	if sel == nil || err != nil {
		return nil
	}
	members := sel.Family(r.key.Type).Members
	for i := range members {
		if members[i].Address == a {
			return &members[i]
		}
	}
	return nil
}

// byPerson reports whether a person took the endpoint out by an override.
func (l *limiter) byPerson(r record) bool {
	m := l.member(r)
	if m == nil {
		return false
	}
	switch m.Cause {
	case rota.CauseDrained, rota.CauseMaintenance, rota.CauseForcedDown:
		return true
	}
	return false
}

// byHealth reports whether health took the endpoint out.
func byHealth(m *rota.Member) bool {
	if m == nil || m.Serves() {
		return false
	}
	switch m.Cause {
	case rota.CauseDown, rota.CauseAnnounced, rota.CauseHeld, rota.CauseNotLastGood, rota.CauseTierLost:
		return true
	}
	return false
}

// site is where the endpoint behind a record stands.
func (l *limiter) site(r record) string {
	a, err := netip.ParseAddr(r.data)
	if v := l.state.Service(r.key.Name); v != nil && err == nil {
		for _, e := range v.Endpoints {
			if e.Address == a {
				return e.Site
			}
		}
	}
	return ""
}

// rankSites finds the sites of which health has taken records out already, and in which order others follow: most records first.
func (l *limiter) rankSites(units [][]rota.Change) {
	l.sites = map[string]int{}
	if !slices.ContainsFunc(l.wants, func(w rota.Want) bool { return l.safety(w.Service).MaxSites > 0 }) {
		return
	}
	for _, w := range l.wants {
		sel := l.state.Selection(w.Service)
		if sel == nil || w.Set.Type != rota.TypeA && w.Set.Type != rota.TypeAAAA {
			continue // of a host that registered, or no address
		}
		for i := range sel.Family(w.Set.Type).Members {
			m := &sel.Family(w.Set.Type).Members[i]
			if r := (record{w.Set.Key(), m.Address.String()}); byHealth(m) && !l.have.holds(r) {
				l.sites[l.site(r)] = -1
			}
		}
	}
	next := map[string]int{}
	for _, changes := range units {
		for _, c := range changes {
			for _, x := range c.Removed() {
				if r := (record{c.Key(), x}); byHealth(l.member(r)) {
					next[l.site(r)]++
				}
			}
		}
	}
	rank := len(l.sites)
	order := make([]string, 0, len(next))
	for s := range next {
		if _, out := l.sites[s]; !out {
			order = append(order, s)
		}
	}
	slices.SortFunc(order, func(a, b string) int { return cmp.Or(cmp.Compare(next[b], next[a]), cmp.Compare(a, b)) })
	for _, s := range order {
		l.sites[s] = rank
		rank++
	}
}

// safety is the service's own; of a name without a service, which a host registered, the default.
func (l *limiter) safety(name rota.Name) rota.Safety {
	if v := l.state.Service(name); v != nil {
		return v.Safety
	}
	return rota.DefaultSafety()
}

// unit lets the changes of one name through, as far as they may be.
func (l *limiter) unit(changes []rota.Change, p *ZonePlan) {
	name := changes[0].Key().Name
	released := l.orders.released[name]
	takeover := slices.ContainsFunc(changes, func(c rota.Change) bool { return c.Key().Type == rota.TypeCNAME && len(c.New.Data) > 0 })
	if takeover && !released {
		if why := l.takeover(changes); why != "" {
			for _, c := range changes {
				p.Held = append(p.Held, HeldChange{c, why})
			}
			return
		}
	}
	for _, c := range changes {
		keep, why := []string(nil), ""
		switch {
		case !counts(c.Key().Type):
		case released || takeover:
			l.spent += l.counted(c)
		default:
			keep, why = l.keep(c)
		}
		if len(keep) > 0 {
			wanted := c
			c.New.Data = slices.Sorted(slices.Values(slices.Concat(c.New.Data, keep)))
			if len(wanted.New.Data) == 0 {
				c.New.TTL = c.Old.TTL
			}
			wanted.Old = c.New
			p.Held = append(p.Held, HeldChange{wanted, why})
		}
		if !c.Old.Equal(c.New) {
			p.Changes = append(p.Changes, c)
		}
	}
}

// counted is how many records leave but for those that a person took out.
func (l *limiter) counted(c rota.Change) (n int) {
	for _, x := range c.Removed() {
		if !l.byPerson(record{c.Key(), x}) {
			n++
		}
	}
	return n
}

// takeover says why a CNAME may not take a name over now, or "".
func (l *limiter) takeover(changes []rota.Change) string {
	s := l.safety(changes[0].Key().Name)
	n := 0
	for _, c := range changes {
		if c.Key().Type == rota.TypeCNAME {
			continue
		}
		n += l.counted(c)
		for _, x := range c.Removed() {
			if !l.siteMay(record{c.Key(), x}, s) {
				return l.whySites(s)
			}
		}
	}
	if n > 0 && !l.fits(l.budget(s.MaxChange), n) {
		return l.whyBudget(s.MaxChange)
	}
	return ""
}

// fits reports whether so many more may leave.
func (l *limiter) fits(b *budget, more int) bool { return b.allow < 0 || b.out+l.spent+more <= b.allow }

// siteMay reports whether the limit of sites lets the record go.
func (l *limiter) siteMay(r record, s rota.Safety) bool {
	return s.MaxSites <= 0 || !byHealth(l.member(r)) || l.sites[l.site(r)] < s.MaxSites
}

// keep returns the records of a change that must not leave now, and why. The dead go first.
func (l *limiter) keep(c rota.Change) (keep []string, why string) {
	s := l.safety(c.Key().Name)
	leaving := c.Removed()
	slices.SortStableFunc(leaving, func(a, b string) int {
		return cmp.Compare(l.life(record{c.Key(), a}), l.life(record{c.Key(), b}))
	})
	spare := len(leaving) // endpoints that may leave without falling below min_published
	if stay := len(c.New.Data); stay > 0 {
		spare = stay - l.least(c.Key())
		for _, x := range leaving {
			if r := (record{c.Key(), x}); l.member(r) != nil && !l.byPerson(r) {
				spare++
			}
		}
	}
	var whys []string
	held := func(x, because string) {
		keep = append(keep, x)
		if !slices.Contains(whys, because) {
			whys = append(whys, because)
		}
	}
	b := l.budget(s.MaxChange)
	for _, x := range leaving {
		r := record{c.Key(), x}
		configured := l.member(r) != nil
		switch {
		case l.byPerson(r):
		case configured && spare <= 0:
			held(x, fmt.Sprintf("min_published is %d, and only %d would be left; rota apply --force releases it", s.MinPublished, len(c.New.Data)))
		case !l.siteMay(r, s):
			held(x, l.whySites(s))
		case !l.fits(b, 1):
			held(x, l.whyBudget(s.MaxChange))
		default:
			l.spent++
			if configured {
				spare--
			}
		}
	}
	return keep, strings.Join(whys, "; ")
}

// life orders records by how little is lost with them.
func (l *limiter) life(r record) int {
	switch m := l.member(r); {
	case m == nil:
		return 1
	case m.Health == rota.Down:
		return 0
	case m.Health == rota.Draining:
		return 1
	}
	return 2
}

// least is how many addresses of a family automation must leave: min_published, as far as the configuration has so many in every tier
// that no person took out, and policy answers with so many.
func (l *limiter) least(k rota.Key) int {
	v := l.state.Service(k.Name)
	if v == nil {
		return 0
	}
	least := v.Safety.MinPublished
	if v.Policy.Answers > 0 {
		least = min(least, v.Policy.Answers)
	}
	type tier struct{ all, weighty int }
	tiers := map[uint16]tier{}
	for _, e := range v.Endpoints {
		a := e.Address
		if a.Zone() != "" || a.Is4() != (k.Type == rota.TypeA) || l.out(v.Name, a) {
			continue
		}
		t := tiers[e.Priority]
		t.all++
		if e.Weight > 0 {
			t.weighty++
		}
		tiers[e.Priority] = t
	}
	for _, t := range tiers {
		if t.weighty > 0 {
			t.all = t.weighty
		}
		least = min(least, t.all)
	}
	if len(tiers) == 0 {
		return 0
	}
	return least
}

// out reports whether a person took the endpoint out.
func (l *limiter) out(name rota.Name, a netip.Addr) bool {
	o := l.state.Override(rota.EndpointID{Service: name, Address: a})
	return l.state.Holds(o, l.state.At()) && o.Action != rota.ActionForceUp
}

func (l *limiter) whyBudget(m rota.MaxChange) string {
	b := l.budget(m)
	until := ""
	if !b.next.IsZero() && b.allow > 0 {
		until = fmt.Sprintf("more may leave from %s on, ", b.next.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%d of %d records already left in the last %s, allowed %.4g %%: %d; %srota apply --force releases it",
		b.out+l.spent, b.base, brief(m.Per), m.Share*100, b.allow, until)
}

func (l *limiter) whySites(s rota.Safety) string {
	var out []string
	for site, rank := range l.sites {
		if rank < s.MaxSites {
			out = append(out, cmp.Or(site, "without a name"))
		}
	}
	slices.Sort(out)
	return fmt.Sprintf("health may take out endpoints of %d sites at once and takes out those of %s; rota apply --force releases it",
		s.MaxSites, strings.Join(out, ", "))
}

// brief is a duration without the units that are zero.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// reason says in one for all what is held.
func (l *limiter) reason(held []HeldChange) *Reason {
	if len(held) == 0 {
		return nil
	}
	records := 0
	var names []rota.Name
	for _, h := range held {
		records += len(h.Change.Removed())
		if n := h.Change.Key().Name; len(names) == 0 || names[len(names)-1] != n {
			names = append(names, n)
		}
	}
	r := &Reason{Code: CodeHeld, Advice: "see rota plan for what is held"}
	if len(names) == 1 {
		r.Name = names[0]
		r.Text = fmt.Sprintf("%d records are held: %s", records, held[0].Why)
	} else {
		r.Text = fmt.Sprintf("%d records of %d names are held, the first %s: %s", records, len(names), names[0].Short(), held[0].Why)
	}
	return r
}
