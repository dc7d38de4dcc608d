package rota

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// State is the fold of all events. It is immutable: Apply returns the next one, which shares all that did not change.
// The zero value is the state before the first event.
type State struct {
	index  uint64
	at     time.Time
	lead   Lead
	serial uint32

	nodes   []Node    // sorted by id
	removed []Removed // those that left, who left first first
	seen    []Seen    // events with an id, oldest first

	recoveries uint64

	spec       *compiled
	verdicts   pmap[TargetID, *Verdict]
	overrides  pmap[EndpointID, *Override]
	selections pmap[Name, *Selection]
	waiting    pmap[Name, time.Time] // services to look at again, and when
	trials     pmap[Name, []string]  // keys of checks that no endpoint of the service has passed yet, sorted; never none
	targets    []Target              // sorted by id; the very slice of spec while no target is lazy
	lazy       []int                 // places in targets of those that are, ascending

	freeze     *Freeze                  // nil: none
	pinned     pmap[TargetID, *Verdict] // the verdicts as of the freeze
	instructed []Instructed             // in force, oldest first

	hosts     []*registered // sorted by template and host
	claims    []Claim       // what they claim, sorted by name and type
	leftovers []Leftover    // sorted by name, type and publisher
	revived   time.Time     // no lease runs from before: until then nobody could be heard
}

var noSpec = &compiled{}

func (s *State) compiled() *compiled {
	if s.spec == nil {
		return noSpec
	}
	return s.spec
}

// Recoveries returns how often one node was made to go on alone with this state, because the others were believed gone for good. It
// tells the cluster that began so from the one before, whose nodes may come back after all.
func (s *State) Recoveries() uint64 { return s.recoveries }

// Recovered returns the state with which one node goes on alone.
func (s *State) Recovered() *State {
	t := *s
	t.recoveries++
	return &t
}

// Index returns the place of the last event that was applied.
func (s *State) Index() uint64 { return s.index }

// At returns the time of the last event that was applied.
func (s *State) At() time.Time { return s.at }

// Lead returns the last node that began to lead, and its term.
func (s *State) Lead() Lead { return s.lead }

// Serial returns the zone serial (RFC 1982): it grows whenever any service's answer changes, and follows the clock when the clock is
// ahead.
func (s *State) Serial() uint32 { return s.serial }

// Spec returns the configuration in force, without the hosts that registered. Its slices must not be changed.
func (s *State) Spec() Spec { return s.compiled().spec }

// Seen is an event that was applied and has an id.
type Seen struct {
	ID    string `json:"id"`
	Index uint64 `json:"index"`
}

// Bounds of what a State remembers of event ids.
const (
	MaxSeen    = 256 // newest events with an id
	MaxEventID = 64  // bytes
)

// Seen returns the index of the event with an id, if it is among the newest MaxSeen that have one.
func (s *State) Seen(id string) (index uint64, ok bool) {
	for i := len(s.seen) - 1; i >= 0 && id != ""; i-- {
		if s.seen[i].ID == id {
			return s.seen[i].Index, true
		}
	}
	return 0, false
}

// Services returns the services in force, those of hosts that registered too, sorted by name. The slice must not be changed.
func (s *State) Services() []Service { return s.compiled().all }

// Service returns a service by name, or nil.
func (s *State) Service(n Name) *Service { return s.compiled().services[n] }

// Targets returns all targets in force, sorted by id. The slice must not be changed.
// It is the same slice until the configuration changes, or whether something depends on a target (Target.Lazy).
func (s *State) Targets() []Target { return s.targets }

// Target returns a target by id, and false when it is not in force.
func (s *State) Target(id TargetID) (Target, bool) {
	ts := s.Targets()
	i, ok := slices.BinarySearchFunc(ts, id, func(t Target, id TargetID) int { return cmp.Compare(t.ID, id) })
	if !ok {
		return Target{}, false
	}
	return ts[i], true
}

// Verdict returns the verdict on a target; without one it is Unknown and has no votes.
func (s *State) Verdict(t TargetID) Verdict {
	if v, ok := s.verdicts.get(t); ok {
		return *v
	}
	return Verdict{Target: t}
}

// ruling is the verdict on a target that decisions are made of.
func (s *State) ruling(t TargetID) Verdict {
	if v, ok := s.believed().get(t); ok {
		return *v
	}
	return Verdict{Target: t}
}

// Selection returns a service's answer and how it was picked, or nil when there is no such service.
func (s *State) Selection(n Name) *Selection {
	sel, _ := s.selections.get(n)
	return sel
}

// Override returns the override of an endpoint, or nil. It may have expired since the last event; see Override.At.
func (s *State) Override(e EndpointID) *Override {
	o, _ := s.overrides.get(e)
	return o
}

// Overrides returns all overrides, sorted by endpoint.
func (s *State) Overrides() []Override {
	var out []Override
	for _, o := range s.overrides.all() {
		out = append(out, *o)
	}
	slices.SortFunc(out, func(a, b Override) int { return compareEndpoints(a.Endpoint, b.Endpoint) })
	return out
}

func compareEndpoints(a, b EndpointID) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address))
}

// Deadline returns when a tick is due although nothing else happens, or the zero time. In a freeze no time comes for answers.
func (s *State) Deadline() time.Time {
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, x := range s.instructed {
		if x.Verb != VerbRelease {
			sooner(x.Until)
		}
	}
	if s.freeze != nil {
		return next
	}
	for _, t := range s.waiting.all() {
		sooner(t)
	}
	for _, o := range s.overrides.all() {
		sooner(o.Expires)
	}
	for _, h := range s.hosts {
		if end := s.Expires(&h.Registration); end.After(s.at) {
			sooner(end)
		}
	}
	return next
}

// ErrStale says that an event's index is not above the state's.
var ErrStale = errors.New("event is not newer than the state")

// ErrDuplicate says that an event with the same id was applied before.
var ErrDuplicate = errors.New("event was applied before")

// Apply returns the state after e. An event that cannot be applied gives an error, and then the next state differs only in its
// index, so that every replica goes on alike. s stays as it is.
func (s *State) Apply(e Event) (*State, error) {
	if e.Index <= s.index && s.index != 0 {
		return s, fmt.Errorf("%w: index %d after %d", ErrStale, e.Index, s.index)
	}
	next := *s
	next.index, next.at = e.Index, e.At.Round(0).UTC() // without the zone and the monotonic reading that only one process has
	t := &transaction{State: next, now: next.at, before: s.compiled()}
	t.forget()
	if err := t.apply(e); err != nil {
		refused := *s
		refused.index = e.Index
		return &refused, fmt.Errorf("event %d (%s): %w", e.Index, e.Kind, err)
	}
	if t.now.Before(s.at) {
		// The clock went back: what waits for a time that is now far away, and what a person said until then, is looked at again.
		for n := range t.waiting.all() {
			t.touch(n)
		}
		for id := range t.overrides.all() {
			t.touch(id.Service)
		}
	}
	if s.freeze == nil || t.freeze == nil || e.Kind.byPerson() {
		t.decide()
	}
	if t.spec != s.spec || t.overrides != s.overrides {
		t.rest(t.spec != s.spec)
	}
	return &t.State, nil
}

// transaction is the next state while it is being made, and the services that must be decided anew.
type transaction struct {
	State
	now      time.Time
	before   *compiled
	dirty    map[Name]bool
	advanced bool
}

func (t *transaction) touch(n Name) {
	if t.dirty == nil {
		t.dirty = map[Name]bool{}
	}
	t.dirty[n] = true
}

func (t *transaction) apply(e Event) error {
	if at, ok := t.Seen(e.ID); ok {
		return fmt.Errorf("%w, as event %d", ErrDuplicate, at)
	}
	if e.ID != "" {
		if len(e.ID) > MaxEventID {
			return fmt.Errorf("its id takes %d bytes, want at most %d", len(e.ID), MaxEventID)
		}
		kept := t.seen[max(0, len(t.seen)-MaxSeen+1):]
		t.seen = append(kept[:len(kept):len(kept)], Seen{e.ID, e.Index})
	}
	switch e.Kind {
	case EventSpec:
		if e.Spec == nil {
			return errors.New("holds no spec")
		}
		return t.respec(t.seat(*e.Spec))
	case EventVerdicts:
		for _, v := range e.Verdicts {
			t.judge(v)
		}
	case EventOverride:
		for _, o := range e.Overrides {
			if err := t.override(o); err != nil {
				return err
			}
		}
	case EventLift:
		for _, id := range e.Lift {
			t.overrides = t.overrides.without(id)
			t.touch(id.Service)
		}
	case EventTick:
		t.tick()
	case EventLead:
		switch {
		case e.Lead == nil:
			return errors.New("names no leader")
		case e.Lead.Term < t.lead.Term || e.Lead.Term == t.lead.Term && t.lead.Node != "" && e.Lead.Node != t.lead.Node:
			return fmt.Errorf("%s leads in term %d, which is not after %s in term %d", e.Lead.Node, e.Lead.Term, t.lead.Node, t.lead.Term)
		}
		t.lead, t.revived = *e.Lead, t.now
	case EventPublished:
		t.published(e.Published)
	case EventVantages:
		if len(e.Vantages) == 0 {
			return errors.New("names nobody who votes")
		}
		spec := t.compiled().spec
		spec.Vantages = e.Vantages
		return t.respec(spec)
	case EventNodes:
		return t.enrol(e.Nodes)
	case EventRestore:
		return t.restore(e)
	case EventFreeze:
		t.stop(e.Actor, e.Reason)
	case EventThaw:
		t.thaw()
	case EventInstruct:
		return t.instruct(e)
	case EventRegister:
		return t.register(e)
	case EventDeregister:
		return t.deregister(e)
	default:
		return errors.New("of a kind this version does not know; upgrade before using what wrote it")
	}
	return nil
}

// restore takes configuration and overrides from a backup. What is measured (verdicts) and what only grows (serial, terms) stays.
func (t *transaction) restore(e Event) error {
	if e.Spec == nil {
		return errors.New("holds no spec")
	}
	if err := t.recall(e); err != nil {
		return err
	}
	if err := t.respec(t.seat(*e.Spec)); err != nil {
		return err
	}
	t.overrides = pmap[EndpointID, *Override]{}
	if err := t.remind(e.Registrations); err != nil {
		return err
	}
	for _, o := range e.Overrides {
		if err := t.override(o); err != nil {
			return err
		}
	}
	for _, r := range e.Removed {
		if !slices.ContainsFunc(t.nodes, func(n Node) bool { return n.ID == r.ID }) {
			t.remember(r)
		}
	}
	return nil
}

func (t *transaction) respec(s Spec) error {
	hosts := placed(s, t.hosts)
	c, err := compile(s, hosts)
	if err != nil {
		return err
	}
	if t.compiled().spec.Static != s.Static {
		t.advance()
	}
	t.try(c)
	t.adopt(c, hosts)
	for n := range c.services {
		t.touch(n)
	}
	return nil
}

// adopt puts a compiled spec and the hosts in it in force. What it decides about is for the caller to touch.
func (t *transaction) adopt(c *compiled, hosts []*registered) {
	c.tabulate(t.before)
	t.spec = c
	t.claim(hosts)
	var gone []TargetID
	for id := range t.verdicts.all() {
		if len(c.uses[id]) == 0 {
			gone = append(gone, id)
		}
	}
	for id := range t.pinned.all() {
		if len(c.uses[id]) == 0 {
			gone = append(gone, id)
		}
	}
	for _, id := range gone {
		t.verdicts, t.pinned = t.verdicts.without(id), t.pinned.without(id)
	}
	var left []Name
	for n := range t.selections.all() {
		if c.services[n] == nil {
			left = append(left, n)
		}
	}
	for _, n := range left {
		t.selections = t.selections.without(n)
		t.waiting = t.waiting.without(n)
		t.trials = t.trials.without(n)
		t.advance()
	}
}

func (t *transaction) judge(v Verdict) {
	names := t.compiled().uses[v.Target]
	if len(names) == 0 {
		return // its service left the configuration meanwhile
	}
	t.verdicts = t.verdicts.with(v.Target, &v)
	if v.Status == Up && t.trials.len() > 0 {
		t.passed(v.Target, names)
	}
	for _, n := range names {
		t.touch(n)
	}
}

func (t *transaction) override(o Override) error {
	if err := t.checkOverride(o); err != nil {
		return err
	}
	t.overrides = t.overrides.with(o.Endpoint, &o)
	t.touch(o.Endpoint.Service)
	return nil
}

func (s *State) checkOverride(o Override) error {
	v := s.Service(o.Endpoint.Service)
	if v == nil || !slices.ContainsFunc(v.Endpoints, func(e Endpoint) bool { return e.Address == o.Endpoint.Address }) {
		return fmt.Errorf("no endpoint %s", o.Endpoint)
	}
	if _, err := ParseAction(string(o.Action)); err != nil {
		return err
	}
	if left := o.Expires.Sub(s.at); left > MaxOverride {
		return fmt.Errorf("override of %s would last %v more, want at most %v", o.Endpoint, left, MaxOverride)
	}
	if life := o.Expires.Sub(o.Set); life <= 0 || life > MaxOverride {
		return fmt.Errorf("override of %s would last %v, want more than nothing and at most %v", o.Endpoint, life, MaxOverride)
	}
	return nil
}

func (t *transaction) tick() {
	if t.freeze != nil {
		return
	}
	var expired []EndpointID
	for id, o := range t.overrides.all() {
		if !o.At(t.now) {
			expired = append(expired, id)
		}
	}
	for _, id := range expired {
		t.overrides = t.overrides.without(id)
		t.touch(id.Service)
	}
	t.expire()
	for n, at := range t.waiting.all() {
		if !at.After(t.now) {
			t.touch(n)
		}
	}
}

// decide runs the pipeline of every touched service. Equal outcomes keep the old selection, so that readers that compare pointers see
// only what moved.
func (t *transaction) decide() {
	for n := range t.dirty {
		v := t.Service(n)
		if v == nil {
			continue
		}
		prev := t.Selection(n)
		clock := t.now
		if t.freeze != nil {
			clock = t.freeze.At
		}
		next := choose(v, t.standings(v), prev, clock, t.index)
		next.At = t.now
		if was := t.before.services[n]; next.sameAnswer(prev) && was != nil && was.TTL == v.TTL {
			next.At, next.Index = prev.At, prev.Index
			if next.equal(prev) {
				continue
			}
		} else {
			t.advance()
		}
		t.selections = t.selections.with(n, next)
		if next.Next.IsZero() {
			t.waiting = t.waiting.without(n)
		} else {
			t.waiting = t.waiting.with(n, next.Next)
		}
	}
}

func (s *Selection) equal(o *Selection) bool {
	family := func(a, b *FamilyPick) bool {
		return a.Mode == b.Mode && a.Since.Equal(b.Since) && slices.Equal(a.Members, b.Members)
	}
	return family(&s.V4, &o.V4) && family(&s.V6, &o.V6) && slices.Equal(s.Hidden, o.Hidden) && s.Next.Equal(o.Next) && s.Alias == o.Alias && s.Pinned.Equal(o.Pinned)
}

// advance moves the serial on, once an event.
func (t *transaction) advance() {
	if t.advanced {
		return
	}
	t.advanced = true
	clock := uint32(t.now.Unix())
	switch {
	case t.now.Unix() > 0 && (t.serial == 0 || int32(clock-t.serial) > 0):
		t.serial = clock
	default:
		t.serial++
	}
	if t.serial == 0 {
		t.serial = 1 // 0 is the serial of no zone yet
	}
}

func (s *State) standings(v *Service) []standing {
	out := make([]standing, len(v.Endpoints))
	asked := s.compiled().asked[v.Name]
	trial, _ := s.trials.get(v.Name)
	for i := range v.Endpoints {
		e := &v.Endpoints[i]
		out[i].endpoint = e
		if !v.Disabled { // else what was last known stands
			s.health(&out[i], asked[i], trial)
		}
		if s.overrides.len() == 0 {
			continue
		}
		if o := s.Override(EndpointID{v.Name, e.Address}); s.Holds(o, s.at) {
			out[i].override = o
		}
	}
	return out
}

// health fills in the worst of an endpoint's required checks, which ask these targets, and the least weight that it asks for; without
// any check it is up. A check on trial, whose key is among these, says nothing when it says down.
func (s *State) health(out *standing, asked []TargetID, trial []string) {
	out.health = Up
	verdicts := s.believed()
	for _, id := range asked {
		v, ok := verdicts.get(id)
		switch {
		case ok && v.Status == Up:
			if v.Weight != 0 && v.Weight < uint8(percent(out.weight)) {
				out.weight = v.Weight
			}
		case ok && v.Status == Draining:
			if out.health != Down {
				out.health = Draining
			}
		case ok && v.Status == Down && (len(trial) == 0 || !s.isAmong(id, trial)):
			out.health = Down
		default:
			out.trial = out.trial || ok && v.Status == Down
			if out.health == Up {
				out.health = Unknown
			}
		}
	}
}

// Want is what a publisher should make true of one RRset. When Drop is set, only these records are to be taken out of whatever is
// there; otherwise the RRset is to be as it says, absent when it has no data.
type Want struct {
	Service Name // or, without one, the name of the RRset
	Zone    Name // as configured; empty: to be found
	Set     RRset
	Drop    []string
}

// Wants yields what a publisher should make true, sorted by service. What is not mentioned is not to be touched: services that are
// still warming up, and families that never had an endpoint.
func (s *State) Wants(publisher string) iter.Seq[Want] {
	return func(yield func(Want) bool) {
		more := s.claimed(publisher)
		for i := range s.Services() {
			v := &s.Services()[i]
			if !slices.Contains(v.Publish, publisher) {
				continue
			}
			for len(more) > 0 && more[0].Service < v.Name {
				if !yield(more[0]) {
					return
				}
				more = more[1:]
			}
			for _, w := range s.wants(v) {
				if !yield(w) {
					return
				}
			}
		}
		for _, w := range more {
			if !yield(w) {
				return
			}
		}
	}
}

func (s *State) wants(v *Service) []Want {
	sel := s.Selection(v.Name)
	if sel == nil {
		return nil
	}
	var out []Want
	want := func(t Type, data, drop []string) {
		out = append(out, Want{Service: v.Name, Zone: v.Zone, Set: RRset{v.Name, t, v.TTL, data}, Drop: drop})
	}
	for _, t := range []Type{TypeA, TypeAAAA} {
		p := sel.Family(t)
		switch p.Mode {
		case ModeAbsent, ModeWarmup:
		case ModeWithdrawn:
			var drop []string
			for _, m := range p.Members {
				drop = append(drop, m.Address.String())
			}
			slices.Sort(drop)
			if len(drop) > 0 {
				want(t, nil, drop)
			}
		default:
			want(t, texts(p.Published()), nil)
		}
	}
	if sel.Fallback() {
		want(TypeCNAME, []string{sel.Alias.String()}, nil)
		return out
	}
	var drop []string
	for _, alias := range []Name{v.Safety.Fallback, sel.Alias} {
		if alias != "" && !slices.Contains(drop, alias.String()) {
			drop = append(drop, alias.String())
		}
	}
	if len(out) > 0 && len(drop) > 0 {
		slices.Sort(drop)
		want(TypeCNAME, nil, drop)
	}
	return out
}

func texts(as []netip.Addr) []string {
	out := make([]string, len(as))
	for i, a := range as {
		out[i] = a.String()
	}
	slices.Sort(out)
	return out
}

// Judge returns the verdicts that the reports change in status or weight, of the given targets. reports holds at most one report a vantage; those of
// vantages that are not configured are not heard. now is the receiver's clock. Its cost is least when targets are sorted.
func (s *State) Judge(targets []TargetID, reports []*Report, now time.Time) []Verdict {
	c := s.compiled()
	b := s.ballots(reports, now)
	var changed []Verdict
	for _, id := range targets {
		if len(c.uses[id]) == 0 {
			continue
		}
		votes, q, voices := b.take(id)
		if v, ok := q.decide(s.Verdict(id), votes, voices, now); ok {
			v.Votes = slices.Clone(votes)
			changed = append(changed, v)
		}
	}
	return changed
}

// Votes returns what each configured vantage holds of a target, sorted by vantage; of one that nobody asks, what OwnAgent says.
func (s *State) Votes(id TargetID, reports []*Report, now time.Time) []Vote {
	votes, _, _ := s.ballots(reports, now).take(id)
	return votes
}

// Heard reports whether enough vantages hold an opinion at now, whatever it is, of every target that decides about a service, and the state
// has taken in what they call for: what it says of the service then rests on what is seen, and not only on what was remembered.
func (s *State) Heard(n Name, reports []*Report, now time.Time) bool {
	v := s.Service(n)
	if v == nil {
		return false
	}
	b := s.ballots(reports, now)
	for i := range v.Endpoints {
		e := &v.Endpoints[i]
		for _, u := range e.Checks {
			if u.Observe {
				continue
			}
			id := e.Target(u).ID
			votes, q, voices := b.take(id)
			need, err := q.Votes(voices)
			if err != nil || q.Tally(votes, Up)+q.Behind(votes, Down) < need {
				return false
			}
			if _, behind := q.decide(s.Verdict(id), votes, voices, now); behind {
				return false
			}
		}
	}
	return true
}

// Table returns the targets in force as a table, in which packed reports name them.
func (s *State) Table() *Table {
	if t := s.compiled().table; t != nil {
		return t
	}
	return noTable
}

var noTable = NewTable(nil)

// Snapshot is a State as plain values, sorted: what is stored and compared.
type Snapshot struct {
	Index      uint64      `json:"index"`
	At         time.Time   `json:"at"`
	Lead       Lead        `json:"lead"`
	Serial     uint32      `json:"serial"`
	Spec       Spec        `json:"spec"`
	Verdicts   []Verdict   `json:"verdicts"`
	Overrides  []Override  `json:"overrides"`
	Selections []Selection `json:"selections"`
	Nodes      []Node      `json:"nodes,omitempty"`
	Removed    []Removed   `json:"removed,omitempty"`
	Seen       []Seen      `json:"seen,omitempty"`
	Recoveries uint64      `json:"recoveries,omitempty"`

	Frozen     *Freeze      `json:"frozen,omitempty"`
	Pinned     []Verdict    `json:"pinned,omitempty"` // the verdicts as of the freeze
	Instructed []Instructed `json:"instructed,omitempty"`

	Trials        []Trial        `json:"trials,omitempty"`
	Registrations []Registration `json:"registrations,omitempty"`
	Leftovers     []Leftover     `json:"leftovers,omitempty"`
	Revived       time.Time      `json:"revived,omitzero"` // since when somebody has led without a break that leases had to outlast
}

// Trial is the checks of a service that no endpoint of it has passed yet.
type Trial struct {
	Service Name     `json:"service"`
	Keys    []string `json:"keys"` // Check.Key, sorted
}

// Snapshot returns the state as plain values.
func (s *State) Snapshot() Snapshot {
	out := Snapshot{Index: s.index, At: s.at, Lead: s.lead, Serial: s.serial, Spec: s.Spec(), Overrides: s.Overrides()}
	out.Nodes, out.Removed, out.Seen, out.Recoveries = s.nodes, s.removed, s.seen, s.recoveries
	out.Frozen, out.Instructed = s.freeze, s.instructed
	out.Leftovers, out.Revived = s.leftovers, s.revived
	for _, h := range s.hosts {
		out.Registrations = append(out.Registrations, h.Registration)
	}
	for n, keys := range s.trials.all() {
		out.Trials = append(out.Trials, Trial{n, keys})
	}
	slices.SortFunc(out.Trials, func(a, b Trial) int { return cmp.Compare(a.Service, b.Service) })
	out.Verdicts, out.Pinned = sortVerdicts(s.verdicts), sortVerdicts(s.pinned)
	for _, sel := range s.selections.all() {
		out.Selections = append(out.Selections, *sel)
	}
	slices.SortFunc(out.Selections, func(a, b Selection) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

func sortVerdicts(of pmap[TargetID, *Verdict]) []Verdict {
	var out []Verdict
	for _, v := range of.all() {
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b Verdict) int { return cmp.Compare(a.Target, b.Target) })
	return out
}

// Restore returns the state a snapshot was taken of. It fails when the snapshot contradicts itself.
func Restore(snap Snapshot) (*State, error) {
	hosts := placed(snap.Spec, recalled(snap.Registrations))
	c, err := compile(snap.Spec, hosts)
	if err != nil {
		return nil, fmt.Errorf("snapshot at index %d: %w", snap.Index, err)
	}
	c.tabulate(noSpec)
	s := &State{index: snap.Index, at: snap.At, lead: snap.Lead, serial: snap.Serial, spec: c}
	s.nodes, s.removed, s.seen, s.recoveries = snap.Nodes, snap.Removed, snap.Seen, snap.Recoveries
	s.freeze, s.instructed = snap.Frozen, snap.Instructed
	s.hosts, s.claims, s.leftovers, s.revived = hosts, claimsOf(hosts), snap.Leftovers, snap.Revived
	for _, v := range snap.Verdicts {
		s.verdicts = s.verdicts.with(v.Target, &v)
	}
	for _, v := range snap.Pinned {
		s.pinned = s.pinned.with(v.Target, &v)
	}
	for _, o := range snap.Overrides {
		s.overrides = s.overrides.with(o.Endpoint, &o)
	}
	for _, sel := range snap.Selections {
		if c.services[sel.Service] == nil {
			return nil, fmt.Errorf("snapshot at index %d: answer of %s, which is not configured", snap.Index, sel.Service.Short())
		}
		s.selections = s.selections.with(sel.Service, &sel)
		if !sel.Next.IsZero() {
			s.waiting = s.waiting.with(sel.Service, sel.Next)
		}
	}
	for _, x := range snap.Trials {
		if c.services[x.Service] != nil && len(x.Keys) > 0 {
			s.trials = s.trials.with(x.Service, x.Keys)
		}
	}
	t := &transaction{State: *s}
	t.rest(true)
	return &t.State, nil
}

// Transitions lists what differs between the answers of two states, sorted by service and type: other addresses serve, others are
// published, or the mode is another. Its cost grows with what moved.
func Transitions(prev, next *State) []Transition {
	var out []Transition
	moved(prev.selections, next.selections, func(n Name) {
		a, b := prev.Selection(n), next.Selection(n)
		if a == nil {
			a = &Selection{}
		}
		if b == nil {
			b = &Selection{}
		}
		for _, t := range []Type{TypeA, TypeAAAA} {
			p, q := a.Family(t), b.Family(t)
			before, after := texts(p.Serving()), texts(q.Serving())
			if slices.Equal(before, after) && slices.Equal(p.Published(), q.Published()) && p.Mode == q.Mode {
				continue
			}
			out = append(out, Transition{
				Service: n, Type: t, Before: before, After: after, Was: p.Mode, Mode: q.Mode, Why: next.whyMoved(n, p, q),
			})
		}
	})
	slices.SortFunc(out, func(a, b Transition) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Type, b.Type))
	})
	return out
}
