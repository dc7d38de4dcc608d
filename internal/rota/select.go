package rota

import (
	"cmp"
	"hash/fnv"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// Step is a step of the selection pipeline. Every endpoint is either kept to the end or dropped by exactly one step.
type Step uint8

// The steps, in their fixed order. StepPlace has no rule in this version; it keeps everyone.
const (
	StepKept     Step = iota // in the answer
	StepEligible             // may it serve at all
	StepPanic                // is health believed
	StepPlace                // near the client
	StepTier                 // the best priority that can serve
	StepWeight               // has a share
	StepLimit                // within the number of answers; the name server still rotates it in
)

var stepNames = [...]string{"kept", "eligible", "panic", "place", "priority", "weight", "limit"}

func (s Step) String() string { return enumName(stepNames[:], int(s)) }

// MarshalText writes the step in words.
func (s Step) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a step in words.
func (s *Step) UnmarshalText(b []byte) error {
	i, err := enumValue(stepNames[:], string(b))
	*s = Step(i)
	return err
}

// Cause says why a step dropped an endpoint, or why an endpoint that looks as if it should be dropped was kept.
type Cause uint8

// The causes.
const (
	CauseNone        Cause = iota
	CauseDown              // its verdict is down
	CauseDrained           // an override
	CauseMaintenance       // an override
	CauseForcedDown        // an override
	CauseWaiting           // no verdict yet, and others can serve
	CauseHeld              // up again, but out for less than min_hold
	CauseUnpublished       // a zone id: means nothing elsewhere
	CauseNotLastGood       // health is not believed, and it was not in the last good answer
	CauseLowerTier         // a better priority serves
	CauseNoWeight          // weight 0 while others have some
	CauseOverLimit         // policy.answers
	CauseFallback          // the fallback answers instead
	CauseRemoved           // no longer configured
	CauseDisbelieved       // kept though down: health is not believed
	CauseUnproven          // kept without a verdict
	CauseHoldIgnored       // kept though held: nobody else can serve
	CauseForcedUp          // kept by an override
	CauseTierLost          // too few of its priority are up, and another priority can serve
	CauseAnnounced         // it says itself that it drains
	CauseTrial             // kept though a check says down: nobody has passed that check yet
)

var causeNames = [...]string{
	"", "down", "drained", "maintenance", "forced-down", "waiting", "held", "unpublished", "not-last-good", "lower-tier",
	"no-weight", "over-limit", "fallback", "removed", "disbelieved", "unproven", "hold-ignored", "forced-up",
	"tier-lost", "announced", "on-trial",
}

func (c Cause) String() string { return enumName(causeNames[:], int(c)) }

// MarshalText writes the cause in words.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a cause in words.
func (c *Cause) UnmarshalText(b []byte) error {
	i, err := enumValue(causeNames[:], string(b))
	*c = Cause(i)
	return err
}

// Mode says how one address family of a service came to its answer.
type Mode uint8

// The modes. A publisher is told nothing of a family in ModeAbsent or ModeWarmup: what the DNS has is left as it is.
const (
	ModeAbsent    Mode = iota // no endpoint of this family can be published
	ModeWarmup                // too few verdicts yet
	ModeNormal                // health decides
	ModeKeep                  // panic: the last good answer, and whoever is up, or drains when nobody is
	ModeAll                   // panic: everyone
	ModeFallback              // panic: the service's CNAME
	ModeNone                  // panic: nothing, as the operator chose
	ModeWithdrawn             // the last endpoint of this family was taken out of the configuration
)

var modeNames = [...]string{"absent", "warmup", "normal", "panic-keep", "panic-all", "panic-fallback", "panic-none", "withdrawn"}

func (m Mode) String() string { return enumName(modeNames[:], int(m)) }

// Panic reports whether health is not believed.
func (m Mode) Panic() bool { return m >= ModeKeep && m <= ModeNone }

// MarshalText writes the mode in words.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a mode in words.
func (m *Mode) UnmarshalText(b []byte) error {
	i, err := enumValue(modeNames[:], string(b))
	*m = Mode(i)
	return err
}

// Member is one endpoint's part in a pick.
type Member struct {
	Address  netip.Addr `json:"address"`
	Health   Status     `json:"health"` // the worst of its required checks, whatever people say; what was last known when that is unknown now
	Step     Step       `json:"step"`   // that dropped it, or StepKept
	Cause    Cause      `json:"cause,omitempty"`
	Weight   uint32     `json:"weight"` // as configured
	Priority uint16     `json:"priority"`
	Left     time.Time  `json:"left,omitzero"`   // when health took it out of the answer
	Asks     uint8      `json:"asks,omitempty"`  // percent of its weight that it asks for itself, 1 to 99; 0: all of it
	Back     time.Time  `json:"back,omitzero"`   // when it came back into the answer, while its slow start lasts
	Share    uint8      `json:"share,omitempty"` // percent of its weight that counts now, 1 to 99; 0: all of it
}

// Counts is the weight that counts now, in hundredths.
func (m Member) Counts() uint64 { return uint64(m.Weight) * percent(m.Share) }

// percent reads a percentage in which 0 is all of it.
func percent(p uint8) uint64 {
	if p == 0 {
		return 100
	}
	return uint64(p)
}

// Serves reports whether the member may be in an answer: it is kept, or only over the limit of one answer.
func (m Member) Serves() bool { return m.Step == StepKept || m.Step == StepLimit }

// counts is the health that the pipeline goes by.
func (m *Member) counts() Status {
	if m.Cause == CauseForcedUp {
		return Up
	}
	return m.Health
}

// FamilyPick is the outcome of the pipeline for one address family of a service.
type FamilyPick struct {
	Mode    Mode      `json:"mode"`
	Since   time.Time `json:"since,omitzero"` // of the mode
	Members []Member  `json:"members,omitempty"`
}

// Published lists the addresses that other name servers are told, sorted.
func (p *FamilyPick) Published() []netip.Addr {
	return p.addresses(func(m Member) bool { return m.Step == StepKept })
}

// Serving lists the addresses that rota's own name server takes its answers from, sorted.
func (p *FamilyPick) Serving() []netip.Addr { return p.addresses(Member.Serves) }

func (p *FamilyPick) addresses(want func(Member) bool) []netip.Addr {
	var out []netip.Addr
	for _, m := range p.Members {
		if want(m) {
			out = append(out, m.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// near is member for an address that is probably the i-th: the order of the configuration seldom changes.
func (p *FamilyPick) near(i int, a netip.Addr) *Member {
	if i < len(p.Members) && p.Members[i].Address == a {
		return &p.Members[i]
	}
	return p.member(a)
}

func (p *FamilyPick) member(a netip.Addr) *Member {
	for i := range p.Members {
		if p.Members[i].Address == a {
			return &p.Members[i]
		}
	}
	return nil
}

// Selection is a service's answer and how it was picked. It is immutable.
type Selection struct {
	Service Name       `json:"service"`
	At      time.Time  `json:"at"`    // of the event that last changed the answer
	Index   uint64     `json:"index"` // of that event
	V4      FamilyPick `json:"v4"`
	V6      FamilyPick `json:"v6"`
	Hidden  []Member   `json:"hidden,omitempty"` // endpoints that cannot be published
	Next    time.Time  `json:"next,omitzero"`    // when to look again although nothing else happens
	Alias   Name       `json:"alias,omitempty"`  // the fallback that answers, or answered last and may still be in other name servers
	Pinned  time.Time  `json:"pinned,omitzero"`  // while the service is disabled: since when, and the time that it is there
}

// Family returns the pick for a record type, A or AAAA.
func (s *Selection) Family(t Type) *FamilyPick {
	if t == TypeAAAA {
		return &s.V6
	}
	return &s.V4
}

// Fallback reports whether the service's CNAME answers in place of addresses.
func (s *Selection) Fallback() bool { return s.V4.Mode == ModeFallback || s.V6.Mode == ModeFallback }

// sameAnswer reports whether both give the same answers, to publishers and from the name server.
func (s *Selection) sameAnswer(o *Selection) bool {
	if o == nil || s.Fallback() != o.Fallback() || s.Fallback() && s.Alias != o.Alias {
		return false
	}
	return s.V4.sameAnswer(&o.V4) && s.V6.sameAnswer(&o.V6)
}

func (p *FamilyPick) sameAnswer(o *FamilyPick) bool {
	if (p.Mode == ModeWarmup) != (o.Mode == ModeWarmup) {
		return false
	}
	same := func(x, y *Member) bool {
		return x.Serves() == y.Serves() && (x.Step == StepKept) == (y.Step == StepKept) && (!x.Serves() || x.Counts() == y.Counts())
	}
	nobody := &Member{Step: StepEligible}
	for i := range p.Members {
		x, y := &p.Members[i], nobody
		if m := o.near(i, x.Address); m != nil {
			y = m
		}
		if !same(x, y) {
			return false
		}
	}
	for i := range o.Members {
		y := &o.Members[i]
		if y.Serves() && p.near(i, y.Address) == nil {
			return false
		}
	}
	return true
}

// standing is what the pipeline knows of an endpoint when it starts.
type standing struct {
	endpoint *Endpoint
	health   Status
	weight   uint8     // percent that the endpoint asks for; 0: all
	trial    bool      // a check says down and is on trial, so that it does not count
	override *Override // nil unless it holds now
}

// choose runs the pipeline for a service. prev is its last selection, or nil; stand has one entry an endpoint, in order.
func choose(v *Service, stand []standing, prev *Selection, now time.Time, index uint64) *Selection {
	next := &Selection{Service: v.Name, At: now, Index: index}
	if prev == nil {
		prev = &Selection{}
	}
	if v.Disabled {
		if now = prev.Pinned; now.IsZero() {
			now = next.At
		}
		next.Pinned = now
	}
	f4 := &family{service: v, prev: &prev.V4, now: now}
	f6 := &family{service: v, prev: &prev.V6, now: now}
	for _, s := range stand {
		switch a := s.endpoint.Address; {
		case a.Zone() != "":
			h := Member{
				Address: a, Health: s.health, Step: StepEligible, Cause: CauseUnpublished,
				Weight: s.endpoint.Weight, Priority: s.endpoint.Priority,
			}
			if i := slices.IndexFunc(prev.Hidden, func(m Member) bool { return m.Address == a }); i >= 0 && h.Health == Unknown {
				h.Health = prev.Hidden[i].Health
			}
			next.Hidden = append(next.Hidden, h)
		case a.Is4():
			f4.add(s, len(stand))
		default:
			f6.add(s, len(stand))
		}
	}
	hope := f4.hope() + f6.hope()
	next.V4 = f4.run(hope)
	next.V6 = f6.run(hope)
	next.Alias = prev.Alias
	if next.Fallback() {
		next.Alias = v.Safety.Fallback
		// A CNAME stands alone (RFC 1034 §3.6.2): the other family gives way.
		next.V4.giveWay(&prev.V4, now)
		next.V6.giveWay(&prev.V6, now)
	}
	for _, t := range []time.Time{f4.next, f6.next} {
		if !t.IsZero() && (next.Next.IsZero() || t.Before(next.Next)) {
			next.Next = t
		}
	}
	if v.Disabled {
		next.Next = time.Time{} // for it no time comes
	}
	return next
}

// giveWay takes the family out of the answer because the fallback answers.
func (p *FamilyPick) giveWay(prev *FamilyPick, now time.Time) {
	if p.Mode == ModeAbsent || p.Mode == ModeWithdrawn || p.Mode == ModeFallback {
		return
	}
	p.Mode, p.Since = ModeFallback, now
	if prev.Mode == ModeFallback {
		p.Since = prev.Since
	}
	for i := range p.Members {
		if p.Members[i].Serves() {
			p.Members[i].Step, p.Members[i].Cause = StepPanic, CauseFallback
		}
	}
}

// family is one run of the pipeline over the endpoints of one address family.
type family struct {
	service  *Service
	prev     *FamilyPick
	now      time.Time
	members  []Member
	operator []bool // the member is out because a person said so
	up, down int    // endpoints whose health is known and that no person took out
	unknown  int
	draining int // that no person took out
	next     time.Time
}

// add takes in one endpoint of at most this many.
func (f *family) add(s standing, most int) {
	if f.members == nil {
		f.members = make([]Member, 0, most)
		f.operator = make([]bool, 0, most)
	}
	m := Member{Address: s.endpoint.Address, Health: s.health, Weight: s.endpoint.Weight, Priority: s.endpoint.Priority}
	if s.weight < 100 {
		m.Asks = s.weight
	}
	if old := f.prev.near(len(f.members), m.Address); old != nil {
		m.Left = old.Left
		if m.Health == Unknown {
			m.Health, m.Asks = old.Health, old.Asks
		}
	}
	if s.trial {
		m.Cause = CauseTrial
	}
	out := s.override.out()
	switch {
	case out:
		m.Step, m.Cause = StepEligible, s.override.cause()
	case s.override != nil:
		m.Cause = s.override.cause()
		f.up++
	case m.Health == Up:
		f.up++
	case m.Health == Down:
		f.down++
	case m.Health == Draining:
		m.Step, m.Cause = StepEligible, CauseAnnounced
		f.draining++
	default:
		f.unknown++
	}
	f.members = append(f.members, m)
	f.operator = append(f.operator, out)
}

// cause says what the override does in a selection.
func (o *Override) cause() Cause {
	switch o.Action {
	case ActionDrain:
		return CauseDrained
	case ActionMaintenance:
		return CauseMaintenance
	case ActionForceUp:
		return CauseForcedUp
	}
	return CauseForcedDown
}

// hope counts the endpoints for whose sake no fallback answers: those that are up and, while nothing at all is known of the family,
// those of which nothing is known.
func (f *family) hope() int {
	if f.up+f.down == 0 {
		return f.unknown
	}
	return f.up
}

// run decides the family. hope counts the endpoints of both families that speak against a fallback.
func (f *family) run(hope int) FamilyPick {
	p := FamilyPick{Mode: f.decide(hope), Since: f.now, Members: f.members}
	if p.Mode == f.prev.Mode && !f.prev.Since.IsZero() {
		p.Since = f.prev.Since
	}
	for i := range p.Members {
		m := &p.Members[i]
		old := f.prev.near(i, m.Address)
		switch {
		case m.Serves():
			m.Left = time.Time{}
		case (m.Cause == CauseDown || m.Cause == CauseAnnounced) && old != nil && old.Serves() && f.prev.Mode != ModeWarmup:
			m.Left = f.now
		}
	}
	return p
}

// decide fills in who is dropped by which step and returns the mode.
func (f *family) decide(hope int) Mode {
	if len(f.members) == 0 {
		return f.withdraw()
	}
	if f.up+f.down+f.unknown == 0 {
		mode := f.allTakenOut(hope)
		if f.fresh() && mode.Panic() && mode != ModeNone && !f.known() {
			return ModeWarmup
		}
		return mode
	}
	if f.warming() {
		f.disbelieve()
		return ModeWarmup
	}
	if f.up+f.down > 0 {
		tier, trusted := f.trustedTier()
		// With nobody down there is nothing to disbelieve, however many endpoints the operator left.
		if !trusted || f.down > 0 && f.up < f.service.Safety.MinPublished {
			return f.panic(hope)
		}
		f.eligible()
		f.tier(tier)
	} else {
		// Nothing is known of anyone who may serve: the best tier answers unproven.
		f.each(func(m *Member) { m.Cause = CauseUnproven })
		f.tier(f.bestTier())
	}
	f.weigh()
	f.ease(true)
	f.limit()
	return ModeNormal
}

// each visits the members that are still in.
func (f *family) each(visit func(*Member)) {
	for i := range f.members {
		if f.members[i].Step == StepKept {
			visit(&f.members[i])
		}
	}
}

func (f *family) withdraw() Mode {
	if f.prev.Mode == ModeAbsent {
		return ModeAbsent
	}
	f.members = slices.Clone(f.prev.Members)
	for i := range f.members {
		f.members[i].Step, f.members[i].Cause = StepEligible, CauseRemoved
	}
	return ModeWithdrawn
}

// allTakenOut answers when a person took out every endpoint but those that say that they drain, which then serve on. The name is not
// emptied unless the operator chose none.
func (f *family) allTakenOut(hope int) Mode {
	switch f.service.Safety.OnAllDown {
	case OnAllDownNone:
		return ModeNone
	case OnAllDownFallback:
		if f.prev.Mode == ModeFallback && hope == 0 {
			return ModeFallback // the last answer
		}
	}
	// A person's word weighs more than an endpoint's own.
	candidate := func(i int) bool { return f.draining == 0 || !f.operator[i] }
	kept := false
	for i := range f.members {
		if !candidate(i) {
			continue
		}
		if old := f.prev.member(f.members[i].Address); old != nil && old.Serves() {
			f.members[i].Step = StepKept
			kept = true
		}
	}
	if kept {
		return ModeKeep
	}
	for i := range f.members {
		if candidate(i) {
			f.members[i].Step = StepKept
		}
	}
	return ModeAll
}

// fresh reports whether the family has given no answer yet.
func (f *family) fresh() bool {
	return f.prev.Mode == ModeAbsent || f.prev.Mode == ModeWarmup || f.prev.Mode == ModeWithdrawn
}

// known reports whether anything is known of any endpoint.
func (f *family) known() bool {
	return slices.ContainsFunc(f.members, func(m Member) bool { return m.Health != Unknown })
}

// warming reports whether too little is known to speak, and notes when to look again.
func (f *family) warming() bool {
	if !f.fresh() || f.unknown == 0 {
		return false
	}
	if f.up+f.down+f.draining == 0 {
		return true
	}
	since := f.now
	if f.prev.Mode == ModeWarmup {
		since = f.prev.Since
	}
	end := since.Add(f.service.Grace())
	if f.now.Before(since) || !f.now.Before(end) { // a clock that went back does not lengthen the wait
		return false
	}
	f.wake(end)
	return true
}

// Grace is how long a service that knows of some endpoints waits for its slowest check to judge the others.
func (v *Service) Grace() time.Duration {
	grace := time.Duration(0)
	for _, e := range v.Endpoints {
		for _, u := range e.Checks {
			if u.Observe {
				continue
			}
			t := u.Check.Timing
			rounds := time.Duration(max(t.Fall, t.Rise))
			grace = max(grace, t.Interval+rounds*(t.Timeout+t.FastInterval))
		}
	}
	return grace
}

func (f *family) wake(t time.Time) {
	if f.next.IsZero() || t.Before(f.next) {
		f.next = t
	}
}

// trustedTier returns the priority that serves, and whether there is one: the best of which enough endpoints are up and not held,
// else the best of which enough are up.
func (f *family) trustedTier() (uint16, bool) {
	type count struct{ up, free, down int }
	tiers := map[uint16]count{}
	for i := range f.members {
		if f.operator[i] {
			continue
		}
		m := &f.members[i]
		c := tiers[m.Priority]
		switch m.counts() {
		case Up:
			c.up++
			if !f.held(m) {
				c.free++
			}
		case Down:
			c.down++
		}
		tiers[m.Priority] = c
	}
	type choice struct {
		found, free bool
		priority    uint16
	}
	var best choice
	for p, c := range tiers {
		// The conversion keeps the product from being fused with the subtraction, which would round differently on some machines.
		need := float64(f.service.Safety.FailOpenBelow*float64(c.up+c.down)) - 1e-9
		if c.up == 0 || float64(c.up) < need {
			continue
		}
		x := choice{found: true, free: c.free > 0, priority: p}
		if !best.found || x.free && !best.free || x.free == best.free && x.priority < best.priority {
			best = x
		}
	}
	return best.priority, best.found
}

// bestTier returns the best priority among those still in, preferring one with an endpoint that is not held.
func (f *family) bestTier() uint16 {
	best, free := uint16(math.MaxUint16), false
	f.each(func(m *Member) {
		switch ok := !f.held(m); {
		case ok && !free:
			best, free = m.Priority, true
		case ok == free:
			best = min(best, m.Priority)
		}
	})
	return best
}

// eligible drops who is down, who waits for a first verdict, and who came back too soon.
func (f *family) eligible() {
	f.each(func(m *Member) {
		switch m.counts() {
		case Down:
			m.Step, m.Cause = StepEligible, CauseDown
		case Unknown:
			m.Step, m.Cause = StepEligible, CauseWaiting
		}
	})
}

// tier keeps one priority. Endpoints that came back too soon are held, unless nobody else can serve.
func (f *family) tier(best uint16) {
	f.each(func(m *Member) {
		switch {
		case m.Priority > best:
			m.Step, m.Cause = StepTier, CauseLowerTier
		case m.Priority < best && f.held(m):
			f.hold(m)
		case m.Priority < best:
			m.Step, m.Cause = StepTier, CauseTierLost
		}
	})
	free := 0
	f.each(func(m *Member) {
		if !f.held(m) {
			free++
		}
	})
	f.each(func(m *Member) {
		switch {
		case !f.held(m):
		case free == 0:
			m.Cause = CauseHoldIgnored
		default:
			f.hold(m)
		}
	})
}

// held reports whether the member left too short a time ago. One that left in what is now the future, by a clock that has been put
// back since, is not held.
func (f *family) held(m *Member) bool {
	return m.Cause != CauseForcedUp && !m.Left.IsZero() && !f.now.Before(m.Left) && f.now.Before(m.Left.Add(f.service.Safety.MinHold))
}

func (f *family) hold(m *Member) {
	m.Step, m.Cause = StepEligible, CauseHeld
	f.wake(m.Left.Add(f.service.Safety.MinHold))
}

// panic answers when health is not believed.
func (f *family) panic(hope int) Mode {
	safety := f.service.Safety
	switch {
	case safety.OnAllDown == OnAllDownFallback && hope == 0:
		f.each(func(m *Member) { m.Step, m.Cause = StepPanic, CauseFallback })
		return ModeFallback
	case safety.OnAllDown == OnAllDownNone:
		f.eligible()
		if f.up == 0 {
			return ModeNone
		}
		f.tier(f.bestTier())
		f.weigh()
		f.ease(true)
		f.limit()
		return ModeNormal
	}
	f.recall()
	mode := ModeAll
	if safety.OnAllDown != OnAllDownAll && f.anyLastGood() {
		mode = ModeKeep
	}
	f.each(func(m *Member) {
		lives := m.counts() == Up || m.counts() == Draining
		if mode == ModeKeep && !lives && !f.lastGood(m) {
			m.Step, m.Cause = StepPanic, CauseNotLastGood
		}
	})
	f.disbelieve()
	// A weight of 0 counts in a panic too, unless all that have a weight are down.
	proven := false
	f.each(func(m *Member) { proven = proven || m.Weight > 0 && m.counts() == Up })
	if proven {
		f.weigh()
	}
	f.ease(false)
	f.limit()
	return mode
}

// recall takes back in who says that it drains when nobody is up: it still lives, and those that are down do not.
func (f *family) recall() {
	if f.up > 0 {
		return
	}
	for i := range f.members {
		if m := &f.members[i]; m.Cause == CauseAnnounced {
			m.Step = StepKept
		}
	}
}

// disbelieve marks those still in that are kept although they are not known to be up.
func (f *family) disbelieve() {
	f.each(func(m *Member) {
		switch m.counts() {
		case Down:
			m.Cause = CauseDisbelieved
		case Unknown:
			m.Cause = CauseUnproven
		}
	})
}

func (f *family) lastGood(m *Member) bool {
	old := f.prev.member(m.Address)
	return old != nil && old.Serves()
}

func (f *family) anyLastGood() bool {
	found := false
	f.each(func(m *Member) { found = found || m.counts() == Up || f.lastGood(m) })
	return found
}

// weigh drops endpoints of weight 0 while others have some.
func (f *family) weigh() {
	some := false
	f.each(func(m *Member) { some = some || m.Weight > 0 })
	if !some {
		return
	}
	f.each(func(m *Member) {
		if m.Weight == 0 {
			m.Step, m.Cause = StepWeight, CauseNoWeight
		}
	})
}

// ease works out how much of their weight counts of those still in: what they ask for themselves and, while health is believed, of those
// that came back after health took them out, what slow start gives them. Who came back while it was not believed starts as well.
func (f *family) ease(believed bool) {
	length := f.service.Policy.SlowStart
	for i := range f.members {
		m := &f.members[i]
		if m.Step != StepKept {
			continue
		}
		if old := f.prev.near(i, m.Address); old != nil && length > 0 {
			switch {
			case old.Serves():
				m.Back = old.Back
			case m.Left.IsZero():
			case old.Cause == CauseDown, old.Cause == CauseAnnounced, old.Cause == CauseHeld, old.Cause == CauseNotLastGood:
				m.Back = f.now
			}
		}
		slow := uint64(100)
		if !m.Back.IsZero() {
			slow = f.started(m, length/10)
		}
		if all := percent(m.Asks) * slow / 100; believed && all < 100 {
			m.Share = uint8(max(all, 1))
		}
	}
}

// started returns the percentage that the slow start of a member has reached, in steps that each last so long. By a clock that was put
// back since it began, it is over.
func (f *family) started(m *Member, step time.Duration) uint64 {
	steps := f.now.Sub(m.Back)/step + 1
	if f.now.Before(m.Back) || steps >= 10 {
		m.Back = time.Time{}
		return 100
	}
	f.wake(m.Back.Add(steps * step))
	return 10 * uint64(steps)
}

// limit keeps as many as the policy allows: those that weighted rendezvous hashing prefers, so that the choice moves as little
// as possible when endpoints come and go. Where health is not believed, those that are seen to live come first: few answers must not be
// dead ones alone.
func (f *family) limit() {
	n := f.service.Policy.Answers
	if n <= 0 {
		return
	}
	type scored struct {
		m            *Member
		life         int
		cost, weight uint64
	}
	var in []scored
	f.each(func(m *Member) {
		life := slices.Index([]Status{Draining, Up}, m.counts())
		in = append(in, scored{m, life, cost(f.service.Name, m), uint64(max(m.Weight, 1)) * percent(m.Share)})
	})
	if len(in) <= n {
		return
	}
	slices.SortFunc(in, func(a, b scored) int {
		// Cost a weight, compared without dividing.
		xHigh, x := bits.Mul64(a.cost, b.weight)
		yHigh, y := bits.Mul64(b.cost, a.weight)
		return cmp.Or(cmp.Compare(b.life, a.life), cmp.Compare(xHigh, yHigh), cmp.Compare(x, y), a.m.Address.Compare(b.m.Address))
	})
	for _, s := range in[n:] {
		s.m.Step, s.m.Cause = StepLimit, CauseOverLimit
	}
}

// cost is the exponential variate of weighted rendezvous hashing for an endpoint of a service: the lowest cost a weight wins. It is
// -log2 of a hash taken as a fraction of 1, times 2^26, in integers: floating point rounds differently from machine to machine, and
// replicas must agree. It is at most 2^32.
func cost(v Name, m *Member) uint64 {
	h := fnv.New64a()
	h.Write([]byte(v))
	a := m.Address.As16()
	h.Write(a[:])
	x := h.Sum64() // FNV's high bits move little; mix before use
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return 64<<costBits - log2(max(x, 1))
}

const costBits = 26

// log2 returns the logarithm of x, at least 1, to base 2, times 2^costBits, rounded down.
func log2(x uint64) uint64 {
	whole := bits.Len64(x) - 1
	m := x << (63 - whole) // the mantissa in [1, 2), as a fraction of 2^63
	l := uint64(whole)
	for range costBits {
		hi, _ := bits.Mul64(m, m) // in [1, 4), as a fraction of 2^62
		l <<= 1
		if hi>>63 == 1 {
			l |= 1
			m = hi
		} else {
			m = hi << 1
		}
	}
	return l
}
