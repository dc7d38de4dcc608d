package rota

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var pool = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("fe80::1%eth0"),
}

// drawSpec makes a spec of up to three services. A plain one has nothing that the oracle below has no book for.
func drawSpec(t *rapid.T, plain bool) Spec {
	var s Spec
	for i := range 3 {
		v := Service{Name: MustParseName(fmt.Sprintf("s%d.example.org", i)), TTL: 30, Publish: []string{"bind"}, Safety: DefaultSafety()}
		v.Safety.MinHold = 0
		v.Safety.OnAllDown = rapid.SampledFrom([]OnAllDown{OnAllDownKeep, OnAllDownAll, OnAllDownNone}).Draw(t, "on all down")
		v.Safety.FailOpenBelow = rapid.SampledFrom([]float64{0, 0.34, 0.5, 1}).Draw(t, "fail open below")
		v.Safety.MinPublished = rapid.IntRange(1, 2).Draw(t, "min published")
		v.Disabled = rapid.IntRange(0, 5).Draw(t, "disabled") == 0
		check := asking(rapid.SampledFrom([]string{"", "", "/x"}).Draw(t, "path"))
		if !plain {
			if rapid.IntRange(0, 3).Draw(t, "fallback") == 0 {
				v.Safety.OnAllDown, v.Safety.Fallback = OnAllDownFallback, "sorry.example.net."
			}
			v.Safety.MinHold = rapid.SampledFrom([]time.Duration{0, 30 * time.Second}).Draw(t, "hold")
			v.Policy.Answers = rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "answers")
			v.TTL = rapid.SampledFrom([]uint32{30, 30, 60}).Draw(t, "ttl")
			v.Policy.SlowStart = rapid.SampledFrom([]time.Duration{0, 10 * time.Minute}).Draw(t, "slow start")
		}
		for _, a := range pool {
			if rapid.IntRange(0, 2).Draw(t, "out of the configuration") == 0 {
				continue
			}
			e := Endpoint{Address: a, Weight: 1, Checks: []Use{{Check: check}}}
			if !plain {
				if rapid.IntRange(0, 3).Draw(t, "another check") == 0 {
					e.Checks = append(e.Checks, Use{Check: asking("/y")})
				}
				e.Weight = rapid.SampledFrom([]uint32{0, 1, 1, 10}).Draw(t, "weight")
				e.Priority = rapid.SampledFrom([]uint16{0, 0, 1}).Draw(t, "priority")
			}
			v.Endpoints = append(v.Endpoints, e)
		}
		if rapid.IntRange(0, 9).Draw(t, "no such service") > 0 {
			s.Services = append(s.Services, v)
		}
	}
	if !plain && rapid.IntRange(0, 3).Draw(t, "nobody may register") > 0 {
		s.Registers = []RegisterTemplate{{
			Name: "vm", HostName: "{id}-{service}", ServiceName: "{service}.example.org",
			HostRecord:  rapid.SampledFrom([]string{"{host}.example.org", "{host}.example.org", "{id}.example.org"}).Draw(t, "host record"),
			ExpireAfter: rapid.SampledFrom([]time.Duration{0, 2 * time.Minute}).Draw(t, "lease"),
			Reverse:     []Reverse{{Publish: []string{"bind"}}}, HostPublish: []string{"bind"},
			Service:  Service{TTL: 60, Publish: []string{"bind"}, Safety: DefaultSafety()},
			Endpoint: Endpoint{Weight: 1, Checks: []Use{{Check: testCheck}}},
		}}
	}
	return s
}

// asking is the check of a path.
func asking(path string) Check {
	c := testCheck
	c.Path = path
	return c
}

// drawRegistration makes an event of a host that comes or goes.
func drawRegistration(t *rapid.T) Event {
	r := Registration{Template: "vm", Host: rapid.SampledFrom([]string{"a-s0", "b-s0", "a-new", "b-new", "new-s1"}).Draw(t, "host")}
	if rapid.IntRange(0, 2).Draw(t, "leaves") == 0 {
		return Event{Kind: EventDeregister, Registrations: []Registration{r}}
	}
	r.Addresses = rapid.SampledFrom([][]netip.Addr{pool[:1], pool[1:2], pool[3:5], pool[4:5], pool[6:7]}).Draw(t, "addresses")
	return Event{Kind: EventRegister, Actor: "a", Registrations: []Registration{r}}
}

// checkRegistered asks that no publisher is told two things of one RRset, that nothing claimed is left over, that a service of hosts goes
// only when they say so, and that no deadline has passed.
func checkRegistered(t *rapid.T, s, next *State, k EventKind) {
	var last *Want
	for w := range next.Wants("bind") {
		if last != nil && (w.Service < last.Service || w.Set.Key() == last.Set.Key()) {
			t.Fatalf("%+v is wanted after %+v", w, *last)
		}
		if c := next.Claim(w.Set.Key()); c != nil && (w.Drop != nil || !slices.Equal(w.Set.Data, c.Set.Data)) && next.Service(w.Service) == nil {
			t.Fatalf("%+v is wanted and %+v claimed", w, c)
		}
		last = &w
	}
	if k == EventDeregister || k == EventSpec || k == EventRestore {
		return
	}
	for _, v := range s.Services() {
		if len(v.Endpoints) > 0 && next.Service(v.Name) == nil && k != EventRegister {
			t.Fatalf("%s took the service %v away", k, v.Name)
		}
	}
}

// drawEvent makes an event that may follow s, without index and time.
func drawEvent(t *rapid.T, s *State, plain bool) Event {
	spec := drawSpec
	if len(s.Services()) == 0 {
		x := spec(t, plain)
		return Event{Kind: EventSpec, Spec: &x}
	}
	id := EndpointID{
		Service: s.Services()[rapid.IntRange(0, len(s.Services())-1).Draw(t, "service")].Name,
		Address: rapid.SampledFrom(pool).Draw(t, "address"),
	}
	most := 18
	if plain {
		most = 11
	}
	switch rapid.IntRange(0, most).Draw(t, "kind") {
	case 12:
		return Event{Kind: EventFreeze, Actor: "bob", Reason: "the probes are wrong"}
	case 13:
		return Event{Kind: EventThaw}
	case 14:
		return drawInstruction(t)
	case 15, 16, 17, 18:
		return drawRegistration(t)
	case 0:
		x := spec(t, plain)
		return Event{Kind: EventSpec, Spec: &x}
	case 1, 2:
		return Event{Kind: EventOverride, Overrides: []Override{{
			Endpoint: id, Author: "alice", Reason: "why not",
			Action: rapid.SampledFrom([]Action{ActionDrain, ActionMaintenance, ActionForceUp, ActionForceDown}).Draw(t, "action"),
		}}}
	case 3:
		return Event{Kind: EventLift, Lift: []EndpointID{id}}
	case 4:
		return Event{Kind: EventTick}
	}
	v := Verdict{Status: rapid.SampledFrom([]Status{Up, Up, Down, Draining, Unknown}).Draw(t, "status")}
	v.Target = NewTarget(id.Address, asking(rapid.SampledFrom([]string{"", "", "/x", "/y"}).Draw(t, "of path"))).ID
	v.Weight = rapid.SampledFrom([]uint8{0, 0, 5, 50, 100}).Draw(t, "weight of it")
	return Event{Kind: EventVerdicts, Verdicts: []Verdict{v}}
}

// drawInstruction makes an event that asks something of publishers, now and then what cannot be.
func drawInstruction(t *rapid.T) Event {
	x := Instruction{
		Verb:      rapid.SampledFrom([]Verb{VerbApply, VerbRefresh, VerbImport, VerbRelease}).Draw(t, "verb"),
		Publisher: rapid.SampledFrom([]string{"", "bind", "bind", "knot"}).Draw(t, "publisher"),
		Zone:      rapid.SampledFrom([]Name{"", "example.org.", "example.org.", "example.net."}).Draw(t, "zone"),
	}
	if x.Verb != VerbRelease {
		x.Names = rapid.SampledFrom([][]Name{nil, {"s1.example.org.", "s0.example.org."}}).Draw(t, "names")
	}
	return Event{Kind: EventInstruct, Actor: "bob", Reason: "asked for", Instruction: &x}
}

// checkFreeze asks that a freeze lets nothing but what a person says of the answers change them, and that asking publishers never does.
func checkFreeze(t *rapid.T, s, next *State, k EventKind) {
	if s.Frozen() == nil && next.At().Before(s.At()) {
		return // what waits is looked at again
	}
	if k != EventFreeze && k != EventInstruct && (s.Frozen() == nil || k == EventThaw || k.byPerson()) {
		return
	}
	for _, n := range names(s, next) {
		if s.Selection(n) != next.Selection(n) {
			t.Fatalf("%s changed the answer of %v, frozen before: %v", k, n, s.Frozen())
		}
	}
	if d := next.Deadline(); next.Frozen() != nil && !d.IsZero() && !slices.ContainsFunc(next.Instructed(), func(x Instructed) bool { return x.Until.Equal(d) }) {
		t.Fatalf("a frozen state waits for %v", d)
	}
}

// checkInstructed asks that no zone is both released and taken over, and that nothing is in force whose time has passed.
func checkInstructed(t *rapid.T, s *State) {
	released := map[string]bool{}
	for i, x := range s.Instructed() {
		zone := x.Publisher + "/" + x.Zone.String()
		if x.Verb == VerbRelease && released[zone] || x.Verb != VerbRelease && !s.At().Before(x.Until) || i > 0 && x.Index <= s.Instructed()[i-1].Index {
			t.Fatalf("%+v is in force", x)
		}
		if x.Verb == VerbImport && released[zone] {
			t.Fatalf("%s is released although it was taken over", zone)
		}
		released[zone] = released[zone] || x.Verb == VerbRelease
	}
}

// rendered is a service's answer in every way it can be asked for.
func rendered(s *State, n Name) string {
	sel := s.Selection(n)
	if sel == nil {
		return "none"
	}
	text := fmt.Sprint(s.Service(n).TTL)
	for _, p := range []*FamilyPick{&sel.V4, &sel.V6} {
		text += fmt.Sprint(p.Mode == ModeWarmup, p.Published())
		for _, a := range p.Serving() {
			text += fmt.Sprint(a, p.member(a).Counts(), ";")
		}
	}
	if sel.Fallback() {
		text += sel.Alias.String()
	}
	return text
}

func names(states ...*State) []Name {
	all := map[Name]bool{}
	for _, s := range states {
		for _, v := range s.Services() {
			all[v.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// TestInvariants sends random events through the fold and asks after each what must hold whatever the events are.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := &State{}, epoch
		var log [][]byte
		answered := map[Key]bool{} // families that were once published
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 20 * time.Second, 5 * time.Minute, -time.Minute}).Draw(t, "later"))
			e := drawEvent(t, s, false)
			e.Index, e.At = s.Index()+1, now
			for i := range e.Overrides {
				e.Overrides[i].Set, e.Overrides[i].Expires = now, now.Add(time.Minute)
			}
			raw, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", raw)
			log = append(log, raw)
			before := snapshotBytes(t, s)
			next, _ := s.Apply(e)
			if !bytes.Equal(before, snapshotBytes(t, s)) {
				t.Fatalf("Apply changed the state it was asked of")
			}
			checkSerial(t, s, next)
			checkTransitions(t, s, next)
			checkFreeze(t, s, next, e.Kind)
			checkInstructed(t, next)
			checkRegistered(t, s, next, e.Kind)
			for i := range next.Services() {
				checkAnswer(t, next, &next.Services()[i], answered)
			}
			forget(answered, next)
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				next = restored(t, next)
			}
			s = next
			checkUnknown(t, s, now)
		}
		replica := &State{}
		for _, raw := range log {
			var e Event
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			replica, _ = replica.Apply(e)
		}
		if got, want := snapshotBytes(t, replica), snapshotBytes(t, s); !bytes.Equal(got, want) {
			t.Fatalf("a replica that never restarted differs:\n got %s\nwant %s", got, want)
		}
	})
}

func restored(t *rapid.T, s *State) *State {
	var snap Snapshot
	if err := json.Unmarshal(snapshotBytes(t, s), &snap); err != nil {
		t.Fatal(err)
	}
	r, err := Restore(snap)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshotBytes(t, s), snapshotBytes(t, r)) || !r.Deadline().Equal(s.Deadline()) {
		t.Fatalf("a restored state differs")
	}
	return r
}

func checkSerial(t *rapid.T, s, next *State) {
	changed := false
	for _, n := range names(s, next) {
		changed = changed || rendered(s, n) != rendered(next, n)
	}
	changed = changed || fmt.Sprint(s.Claims()) != fmt.Sprint(next.Claims())
	if grown := int32(next.Serial()-s.Serial()) > 0; s.Serial() != 0 && grown != changed || s.Serial() != next.Serial() && !changed {
		t.Fatalf("serial %d → %d while an answer changed: %v", s.Serial(), next.Serial(), changed)
	}
}

func checkTransitions(t *rapid.T, s, next *State) {
	var want, got []Key
	for _, n := range names(s, next) {
		a, b := s.Selection(n), next.Selection(n)
		if a == nil {
			a = &Selection{}
		}
		if b == nil {
			b = &Selection{}
		}
		for _, typ := range []Type{TypeA, TypeAAAA} {
			p, q := a.Family(typ), b.Family(typ)
			if p.Mode != q.Mode || !slices.Equal(p.Serving(), q.Serving()) || !slices.Equal(p.Published(), q.Published()) {
				want = append(want, Key{n, typ})
			}
		}
	}
	for _, x := range Transitions(s, next) {
		got = append(got, Key{x.Service, x.Type})
		if !slices.Equal(x.Before, x.After) && len(x.Why) == 0 && x.Mode != ModeWithdrawn && x.Mode != ModeFallback && x.Was != ModeFallback {
			t.Fatalf("%v changed without a word: %+v", x.Service, x)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("transitions %v, want %v", got, want)
	}
}

// forget drops the books of families that left the configuration.
func forget(answered map[Key]bool, s *State) {
	for k := range answered {
		if sel := s.Selection(k.Name); sel == nil || sel.Family(k.Type).Mode == ModeWithdrawn {
			delete(answered, k)
		}
	}
}

func checkAnswer(t *rapid.T, s *State, v *Service, answered map[Key]bool) {
	sel := s.Selection(v.Name)
	told := map[Type]Want{}
	for w := range s.Wants("bind") {
		if w.Service == v.Name {
			told[w.Set.Type] = w
		}
	}
	for _, typ := range []Type{TypeA, TypeAAAA} {
		p := sel.Family(typ)
		var configured, out []netip.Addr
		said := 0 // endpoints that were taken out, also when that has expired and no tick came yet
		for _, e := range v.Endpoints {
			if e.Address.Zone() != "" || e.Address.Is4() != (typ == TypeA) {
				continue
			}
			configured = append(configured, e.Address)
			if o := s.Override(EndpointID{v.Name, e.Address}); o.out() {
				said++
				if s.Holds(o, s.At()) {
					out = append(out, e.Address)
				}
			}
		}
		for _, a := range p.Serving() {
			if !slices.Contains(configured, a) {
				t.Fatalf("%v answers %v, which is not configured", v.Name, a)
			}
			if slices.Contains(out, a) && said < len(configured) {
				t.Fatalf("%v answers %v, which is taken out, in place of another", v.Name, a)
			}
		}
		checkLiving(t, s, v, p)
		if limit := v.Policy.Answers; limit > 0 && p.Mode == ModeNormal && len(p.Published()) > limit {
			t.Fatalf("%v publishes %v, over its limit of %d", v.Name, p.Published(), limit)
		}
		w, mentioned := told[typ]
		key := Key{v.Name, typ}
		if len(configured) == 0 {
			if mentioned && w.Drop == nil {
				t.Fatalf("%v speaks of a family it has no endpoint of: %+v", key, w)
			}
			continue
		}
		if answered[key] && !mentioned {
			t.Fatalf("%v was published and is not mentioned any more (%v)", key, p.Mode)
		}
		answered[key] = answered[key] || mentioned
		_, cname := told[TypeCNAME]
		empty := mentioned && len(w.Set.Data) == 0 || len(p.Serving()) == 0
		if empty && v.Safety.OnAllDown != OnAllDownNone && !(cname && len(told[TypeCNAME].Set.Data) == 1) {
			t.Fatalf("%v is empty (%v)", key, p.Mode)
		}
		checkExplained(t, s, v.Name, typ, p)
	}
}

// checkLiving asks that no family answers with the dead alone while somebody lives whom no person took out.
func checkLiving(t *rapid.T, s *State, v *Service, p *FamilyPick) {
	if p.Mode != ModeNormal && !p.Mode.Panic() || p.Mode == ModeFallback || v.Disabled || s.Frozen() != nil {
		return
	}
	alive, dead := 0, 0
	for _, m := range p.Members {
		published := m.Step == StepKept
		switch {
		case published && m.counts() == Down:
			dead++
		case published:
			return
		case (m.Health == Up || m.Health == Draining) && s.Override(EndpointID{v.Name, m.Address}) == nil:
			alive++
		}
	}
	if alive > 0 && dead > 0 {
		t.Fatalf("%v answers with the dead alone (%v): %+v", v.Name, p.Mode, p.Members)
	}
}

func checkExplained(t *rapid.T, s *State, n Name, typ Type, p *FamilyPick) {
	x, ok := s.Explain(n, typ)
	if !ok || x.Summary == "" || !slices.Equal(x.Answer, texts(p.Serving())) {
		t.Fatalf("%v %v is explained as %+v", n, typ, x)
	}
	if summary, ok := s.Summary(n, typ); !ok || summary != x.Summary {
		t.Fatalf("%v %v is summed up as %q, explained as %q", n, typ, summary, x.Summary)
	}
	rest := len(x.Endpoints)
	for _, step := range x.Steps {
		if rest -= len(step.Dropped); rest != len(step.Kept) {
			t.Fatalf("step %v of %v keeps %v and drops %v of %d", step.Step, n, step.Kept, step.Dropped, rest)
		}
	}
	if rest != len(p.Published()) {
		t.Fatalf("the steps leave %d of %v", rest, p.Published())
	}
	for _, e := range x.Endpoints {
		if e.Why == "" {
			t.Fatalf("%v of %v is there without a reason: %+v", e.Address, n, e)
		}
		if why := s.Why(EndpointID{n, e.Address}); why != e.Why {
			t.Fatalf("%v of %v: %q, explained as %q", e.Address, n, why, e.Why)
		}
	}
}

// checkUnknown asks that verdicts of unknown change no answer.
func checkUnknown(t *rapid.T, s *State, now time.Time) {
	settled, err := s.Apply(Event{Index: s.Index() + 1, At: now, Kind: EventTick})
	if err != nil {
		t.Fatal(err)
	}
	e := Event{Index: settled.Index() + 1, At: now, Kind: EventVerdicts}
	for _, target := range s.Targets() {
		e.Verdicts = append(e.Verdicts, Verdict{Target: target.ID})
	}
	next, err := settled.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names(s) {
		if a, b := rendered(settled, n), rendered(next, n); a != b {
			t.Fatalf("unknown changed %v from %s to %s", n, a, b)
		}
	}
}

// book is what the oracle keeps of one family of a service.
type book struct {
	began  bool      // it has given an answer
	warm   time.Time // since when it warms up, if it does
	served []netip.Addr
	health map[netip.Addr]Status
	normal bool      // health decided the answer
	still  time.Time // since when the service is disabled
}

// TestOracle compares the answers with those of a second opinion, written from the rules in DESIGN.md: it knows no steps, no
// priorities, weights, holds, limits and fallbacks.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := &State{}, epoch
		books := map[Key]*book{}
		verdicts := map[TargetID]Status{}
		tried := map[Name]bool{} // services whose check is on trial
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 20 * time.Second}).Draw(t, "later"))
			e := drawEvent(t, s, true)
			e.Index, e.At = s.Index()+1, now
			for i := range e.Overrides {
				e.Overrides[i].Set, e.Overrides[i].Expires = now, now.Add(time.Minute)
			}
			was := s
			s, _ = s.Apply(e)
			if e.Spec != nil {
				for _, v := range e.Spec.Services {
					had := was.Service(v.Name)
					same := had != nil && len(had.Endpoints) > 0 && len(v.Endpoints) > 0 && had.Endpoints[0].Checks[0].Check.Path == v.Endpoints[0].Checks[0].Check.Path
					a, b := books[Key{v.Name, TypeA}], books[Key{v.Name, TypeAAAA}]
					decided := had != nil && (a.normal || b.normal)
					passed := slices.ContainsFunc(v.Endpoints, func(e Endpoint) bool { return verdicts[e.Target(e.Checks[0]).ID] == Up })
					tried[v.Name] = len(v.Endpoints) > 0 && (same && tried[v.Name] || !same && decided && !passed)
				}
			}
			if d := s.Deadline(); !d.IsZero() && !d.After(now) {
				s, _ = s.Apply(Event{Index: s.Index() + 1, At: now, Kind: EventTick})
			}
			for _, v := range e.Verdicts {
				if _, asked := s.Target(v.Target); asked {
					verdicts[v.Target] = v.Status
					for _, x := range s.Services() {
						if v.Status == Up && slices.ContainsFunc(x.Endpoints, func(e Endpoint) bool { return e.Target(e.Checks[0]).ID == v.Target }) {
							tried[x.Name] = false
						}
					}
				}
			}
			for id := range verdicts {
				if _, asked := s.Target(id); !asked {
					delete(verdicts, id)
				}
			}
			for k := range books {
				if s.Service(k.Name) == nil {
					delete(books, k)
				}
			}
			for i := range s.Services() {
				v := &s.Services()[i]
				for _, typ := range []Type{TypeA, TypeAAAA} {
					k := Key{v.Name, typ}
					if books[k] == nil {
						books[k] = &book{health: map[netip.Addr]Status{}}
					}
					believed := map[netip.Addr]Status{}
					for _, e := range v.Endpoints {
						believed[e.Address] = verdicts[e.Target(e.Checks[0]).ID]
						if v.Disabled || tried[v.Name] && believed[e.Address] == Down {
							believed[e.Address] = Unknown
						}
					}
					want := books[k].answer(s, v, typ, believed, now)
					got := s.Selection(v.Name).Family(typ)
					if !slices.Equal(got.Serving(), want) || (got.Mode == ModeWarmup) != !books[k].warm.IsZero() {
						t.Fatalf("%v answers %v (%v), want %v, warming up: %v", k, got.Serving(), got.Mode, want, !books[k].warm.IsZero())
					}
				}
			}
		}
	})
}

func (b *book) answer(s *State, v *Service, typ Type, verdicts map[netip.Addr]Status, now time.Time) []netip.Addr {
	var all, in, up, leave []netip.Addr
	known, anything := 0, false
	health := map[netip.Addr]Status{}
	for _, e := range v.Endpoints {
		a := e.Address
		if a.Zone() != "" || a.Is4() != (typ == TypeA) {
			continue
		}
		all = append(all, a)
		if health[a] = verdicts[a]; health[a] == Unknown {
			health[a] = b.health[a]
		}
		anything = anything || health[a] != Unknown
		o := s.Override(EndpointID{v.Name, a})
		switch held := o.At(now); {
		case held && o.Action != ActionForceUp:
			continue
		case held || health[a] == Up:
			up, known = append(up, a), known+1
		case health[a] == Down:
			known++
		case health[a] == Draining:
			leave = append(leave, a)
			continue
		}
		in = append(in, a)
	}
	switch {
	case !v.Disabled:
		b.still = time.Time{}
	case b.still.IsZero():
		b.still = now
	default:
		now = b.still
	}
	b.normal = false
	if len(all) == 0 {
		b.began, b.warm, b.served = false, time.Time{}, nil
		return nil
	}
	b.health = health
	last := func(of []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(of), func(a netip.Addr) bool { return !slices.Contains(b.served, a) })
	}
	b.served = b.pick(v, all, in, up, leave, known, anything, last, now)
	return b.served
}

func (b *book) pick(v *Service, all, in, up, leave []netip.Addr, known int, anything bool, last func([]netip.Addr) []netip.Addr, now time.Time) []netip.Addr {
	rule := v.Safety.OnAllDown
	if len(in) == 0 { // all taken out by hand, or leaving
		if !b.began && !anything && rule != OnAllDownNone {
			b.warmSince(now)
		} else {
			b.began, b.warm = true, time.Time{}
		}
		if len(leave) > 0 {
			all = leave
		}
		switch kept := last(all); {
		case rule == OnAllDownNone:
			return nil
		case len(kept) > 0:
			return kept
		}
		return all
	}
	if !b.began && known < len(in) {
		grace := 22 * time.Second // interval 10 s and three rounds of 3 s and 1 s
		if known+len(leave) == 0 || b.warm.IsZero() || now.Sub(b.warm) < grace {
			b.warmSince(now)
			return in
		}
	}
	b.began, b.warm = true, time.Time{}
	b.normal = true
	if known == 0 {
		return in
	}
	few := float64(len(up)) < v.Safety.FailOpenBelow*float64(known)-1e-9
	if len(up) > 0 && !few && (len(up) >= v.Safety.MinPublished || len(up) == known) {
		return up
	}
	b.normal = rule == OnAllDownNone && len(up) > 0
	alive := up
	if len(up) == 0 { // those that leave are at least alive
		alive = leave
		in = slices.DeleteFunc(all, func(a netip.Addr) bool { return !slices.Contains(in, a) && !slices.Contains(leave, a) })
	}
	switch kept := last(in); {
	case rule == OnAllDownNone:
		return up
	case rule == OnAllDownAll:
		return in
	case len(kept)+len(up) > 0:
		return slices.DeleteFunc(slices.Clone(in), func(a netip.Addr) bool { return !slices.Contains(kept, a) && !slices.Contains(alive, a) })
	}
	return in
}

func (b *book) warmSince(now time.Time) {
	if b.warm.IsZero() {
		b.warm = now
	}
}

// TestPmap compares the persistent map with Go's own, and keeps every earlier version to see that none changes.
func TestPmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			m    pmap[int, int]
			want map[int]int
		}
		versions := []version{{want: map[int]int{}}}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			last := versions[len(versions)-1]
			want, m := maps.Clone(last.want), last.m
			k := rapid.IntRange(0, 60).Draw(t, "key")
			if rapid.IntRange(0, 2).Draw(t, "without") == 0 {
				m = m.without(k)
				delete(want, k)
			} else {
				v := rapid.IntRange(0, 3).Draw(t, "value")
				m, want[k] = m.with(k, v), v
			}
			versions = append(versions, version{m, want})
		}
		for _, v := range versions {
			if got := maps.Collect(v.m.all()); !maps.Equal(got, v.want) || v.m.len() != len(v.want) {
				t.Fatalf("got %v, want %v", got, v.want)
			}
			for k := range 61 {
				got, ok := v.m.get(k)
				if want, had := v.want[k]; got != want || ok != had {
					t.Fatalf("get %d: got %d %v", k, got, ok)
				}
			}
		}
		a := versions[rapid.IntRange(0, len(versions)-1).Draw(t, "from")]
		b := versions[rapid.IntRange(0, len(versions)-1).Draw(t, "to")]
		seen := map[int]bool{}
		moved(a.m, b.m, func(k int) {
			if seen[k] {
				t.Fatalf("%d moved twice", k)
			}
			seen[k] = true
		})
		for k := range 61 {
			x, hadX := a.want[k]
			y, hadY := b.want[k]
			if (hadX != hadY || x != y) && !seen[k] {
				t.Fatalf("%d went from %d to %d unseen", k, x, y)
			}
			if !hadX && !hadY && seen[k] {
				t.Fatalf("%d moved but is in neither", k)
			}
		}
	})
}

// TestPmapCollisions forces equal hashes, which no honest hash of few keys gives.
func TestPmapCollisions(t *testing.T) {
	var m pmap[int, string]
	for k, word := range []string{"a", "b", "c"} {
		root, grew := m.root.with(&pentry[int, string]{hash: 42, key: k, val: word}, 0)
		if !grew {
			t.Fatal("did not grow")
		}
		m = pmap[int, string]{root, m.n + 1}
	}
	before := m
	if root, grew := m.root.with(&pentry[int, string]{hash: 42, key: 1, val: "B"}, 0); grew {
		t.Fatal("setting again grew")
	} else {
		m = pmap[int, string]{root, m.n}
	}
	root, had := m.root.without(42, 0, 0)
	if !had {
		t.Fatal("0 was not there")
	}
	m = pmap[int, string]{root, 2}
	if got, want := maps.Collect(m.all()), map[int]string{1: "B", 2: "c"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := maps.Collect(before.all()), map[int]string{0: "a", 1: "b", 2: "c"}; !maps.Equal(got, want) {
		t.Errorf("the map before changed to %v", got)
	}
}

// TestMovedReports compares Moved with a naive difference.
func TestMovedReports(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := &Report{Vantage: "a"}, &Report{Vantage: "a"}
		want := []TargetID{}
		if rapid.IntRange(0, 4).Draw(t, "abstain") == 0 {
			b.Abstain = "uplink lost"
		}
		for i := range 20 {
			id := TargetID(fmt.Sprintf("%02d", i))
			o := &Opinion{Target: id, Status: Up}
			kind := rapid.IntRange(0, 5).Draw(t, "what happened")
			if kind != 0 && kind != 1 {
				a.Opinions = append(a.Opinions, o)
			}
			switch kind {
			case 1, 2: // came, or other words for it
				b.Opinions = append(b.Opinions, &Opinion{Target: id, Status: Up, Reason: "new"})
			case 3: // an equal copy
				c := *o
				b.Opinions = append(b.Opinions, &c)
			case 4:
				b.Opinions = append(b.Opinions, o)
			}
			if kind == 1 || kind == 2 || kind == 5 || kind != 0 && b.Abstain != "" {
				want = append(want, id)
			}
		}
		if got := Moved(a, b); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
