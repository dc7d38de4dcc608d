package rota

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Freeze says that a person stopped everything automatic: from then on neither verdicts nor time change an answer, until a person thaws.
type Freeze struct {
	At     time.Time `json:"at"`
	Actor  string    `json:"actor"`  // at most MaxReason bytes
	Reason string    `json:"reason"` // at most MaxReason bytes
}

// String says who froze, since when and why.
func (f Freeze) String() string {
	return fmt.Sprintf("frozen by %s since %s: %s", f.Actor, f.At.UTC().Format(time.DateTime+"Z"), f.Reason)
}

// Frozen returns the freeze that is in force, or nil. It must not be changed.
func (s *State) Frozen() *Freeze { return s.freeze }

// believed is the verdicts that decisions are made of.
func (s *State) believed() pmap[TargetID, *Verdict] {
	if s.freeze != nil {
		return s.pinned
	}
	return s.verdicts
}

// Holds reports whether an override of this state holds at now: until it expires, and in a freeze until the thaw.
func (s *State) Holds(o *Override, now time.Time) bool {
	return o != nil && s.freeze != nil || o.At(now)
}

// stop freezes, unless somebody did before: the first freeze stands.
func (t *transaction) stop(actor, reason string) {
	if t.freeze != nil {
		return
	}
	var over []EndpointID
	for id, o := range t.overrides.all() {
		if !o.At(t.now) && !t.shows(o) {
			over = append(over, id)
		}
	}
	for _, id := range over {
		t.overrides = t.overrides.without(id)
	}
	t.freeze, t.pinned = &Freeze{t.now, CleanReason("%s", actor), CleanReason("%s", reason)}, t.verdicts
}

// shows reports whether an override is what the answer rests on: one that expired holds on in a freeze only if it is.
func (s *State) shows(o *Override) bool {
	sel := s.Selection(o.Endpoint.Service)
	if sel == nil {
		return false
	}
	p := &sel.V6
	if o.Endpoint.Address.Is4() {
		p = &sel.V4
	}
	m := p.member(o.Endpoint.Address)
	return m != nil && m.Cause == o.cause()
}

// thaw decides everything anew, from today's verdicts and the time that has come.
func (t *transaction) thaw() {
	if t.freeze == nil {
		return
	}
	t.freeze, t.pinned, t.revived = nil, pmap[TargetID, *Verdict]{}, t.now
	t.tick()
	for n, v := range t.compiled().services {
		t.touch(n)
		if keys := t.Trials(n); len(keys) > 0 { // who passed meanwhile
			t.onTrial(n, slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return t.proven(v, key) }))
		}
	}
}

// byPerson reports whether events of this kind are what a person said of the answers, so that a freeze does not stand in their way.
func (k EventKind) byPerson() bool {
	switch k {
	case EventSpec, EventOverride, EventLift, EventRestore:
		return true
	}
	return false
}

// Verb says what a person asks of publishers.
type Verb string

// The verbs.
const (
	VerbApply   Verb = "apply"   // look now; with Names: what is held of them may be written until Until
	VerbRefresh Verb = "refresh" // bring the RRsets of Names to what is wanted in two steps: add what should be there, then delete the rest
	VerbImport  Verb = "import"  // take the zone over, from From if it has an owner; with a registry the existing RRsets of Names too; without Names: of all
	VerbRelease Verb = "release" // stop keeping the zone; with To: offer it to that owner
)

// ParseVerb reads a verb in words.
func ParseVerb(s string) (Verb, error) {
	switch v := Verb(s); v {
	case VerbApply, VerbRefresh, VerbImport, VerbRelease:
		return v, nil
	}
	return "", fmt.Errorf("unknown verb %q: want apply, refresh, import or release", s)
}

// Instruction is what a person asks of the publishers of a zone. It is part of the state, so that it reaches who leads and survives it.
type Instruction struct {
	Verb      Verb      `json:"verb"`
	Publisher string    `json:"publisher,omitempty"` // empty, of apply and refresh: every one
	Zone      Name      `json:"zone,omitempty"`      // empty, of apply and refresh: every one
	Names     []Name    `json:"names,omitempty"`     // at most MaxInstructionNames
	From      string    `json:"from,omitempty"`      // of import: the owner that is taken over from
	To        string    `json:"to,omitempty"`        // of release: the owner that it is offered to
	Until     time.Time `json:"until,omitzero"`      // zero: DefaultInstruction after the event; a release has none
}

// Instructed is an instruction in force, and who gave it.
type Instructed struct {
	Instruction
	Index  uint64    `json:"index"` // of its event
	At     time.Time `json:"at"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
}

// Bounds of instructions.
const (
	DefaultInstruction  = 10 * time.Minute
	MaxInstruction      = 24 * time.Hour // the longest that one but a release is in force
	MaxInstructionNames = 20_000         // of one instruction
	MaxInstructed       = 1000           // in force; the oldest that are no releases go first
	MaxInstructedNames  = 100_000        // of all in force; the oldest that are no releases go first
	maxParty            = 128            // bytes of a publisher's or an owner's name
)

// Instructions returns the instructions in force for a publisher and a zone, the newest last: those that name both, and those that leave
// one or both open. A release is in force until an import of the same publisher and zone.
func (s *State) Instructions(publisher string, zone Name) []Instructed {
	var out []Instructed
	for _, x := range s.instructed {
		if (x.Publisher == "" || x.Publisher == publisher) && (x.Zone == "" || x.Zone == zone) {
			out = append(out, x)
		}
	}
	return out
}

// Instructed returns all instructions in force, the newest last. The slice must not be changed.
func (s *State) Instructed() []Instructed { return s.instructed }

// instruct takes an instruction in, in place of those it supersedes.
func (t *transaction) instruct(e Event) error {
	if e.Instruction == nil {
		return errors.New("holds no instruction")
	}
	x := Instructed{*e.Instruction, t.index, t.now, CleanReason("%s", e.Actor), CleanReason("%s", e.Reason)}
	if x.Until.IsZero() && x.Verb != VerbRelease {
		x.Until = t.now.Add(DefaultInstruction)
	}
	return t.keep(x)
}

func (t *transaction) keep(x Instructed) error {
	x.Until = x.Until.Round(0).UTC()
	x.Names = slices.Compact(slices.Sorted(slices.Values(x.Names)))
	if err := x.check(t.now); err != nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(t.instructed), x.supersedes)
	names := len(x.Names)
	for _, o := range kept {
		names += len(o.Names)
	}
	for len(kept) >= MaxInstructed || names > MaxInstructedNames {
		i := slices.IndexFunc(kept, func(o Instructed) bool { return o.Verb != VerbRelease })
		if i < 0 {
			return fmt.Errorf("%d zones are released, and no more can be remembered: import those that nobody asks for any more", len(kept))
		}
		names -= len(kept[i].Names)
		kept = slices.Delete(kept, i, i+1)
	}
	t.instructed = append(kept, x)
	return nil
}

// supersedes reports whether o means nothing any more beside x, which is newer.
func (x Instructed) supersedes(o Instructed) bool {
	same := x.Publisher == o.Publisher && x.Zone == o.Zone
	return same && (x.Verb == VerbRelease || x.Verb == VerbImport && o.Verb == VerbRelease)
}

// over reports whether the instruction's time has passed.
func (x Instructed) over(now time.Time) bool { return x.Verb != VerbRelease && !now.Before(x.Until) }

// check reports what is wrong with an instruction that is given now.
func (x Instruction) check(now time.Time) error {
	if _, err := ParseVerb(string(x.Verb)); err != nil {
		return err
	}
	whole := x.Verb == VerbImport || x.Verb == VerbRelease
	switch {
	case whole && (x.Publisher == "" || x.Zone == ""):
		return fmt.Errorf("%s: name the publisher and the zone", x.Verb)
	case x.Verb == VerbRefresh && len(x.Names) == 0:
		return errors.New("refresh: name at least one name")
	case x.Verb == VerbRelease && (len(x.Names) > 0 || !x.Until.IsZero()):
		return errors.New("release: it is of the whole zone, until an import")
	case x.From != "" && x.Verb != VerbImport:
		return fmt.Errorf("%s takes nothing over from %q: only import does", x.Verb, x.From)
	case x.To != "" && x.Verb != VerbRelease:
		return fmt.Errorf("%s offers nothing to %q: only release does", x.Verb, x.To)
	case len(x.Names) > MaxInstructionNames:
		return fmt.Errorf("%s: %d names, want at most %d: ask for them in parts", x.Verb, len(x.Names), MaxInstructionNames)
	}
	if left := x.Until.Sub(now); x.Verb != VerbRelease && (left <= 0 || left > MaxInstruction) {
		return fmt.Errorf("%s would be in force for %v, want more than nothing and at most %v", x.Verb, left, MaxInstruction)
	}
	for _, party := range []string{x.Publisher, x.From, x.To} {
		if len(party) > maxParty || CleanReason("%s", party) != party {
			return fmt.Errorf("%s: %q is no publisher and no owner: want at most %d bytes, without control characters", x.Verb, CleanReason("%s", party), maxParty)
		}
	}
	names := x.Names
	if x.Zone != "" {
		names = append(names[:len(names):len(names)], x.Zone)
	}
	for _, n := range names {
		switch c, err := ParseName(string(n)); {
		case err != nil:
			return fmt.Errorf("%s: %w", x.Verb, err)
		case c != n:
			return fmt.Errorf("%s: the name %s is not in canonical form, which is %s", x.Verb, n.Short(), c)
		}
	}
	return nil
}

// recall takes from a backup what keeps rota from writing: its freeze and its releases. What is said of a zone today stands.
func (t *transaction) recall(e Event) error {
	if f := e.Frozen; f != nil {
		t.stop(f.Actor, f.Reason)
	}
	for _, x := range e.Instructed {
		spoken := slices.ContainsFunc(t.instructed, func(o Instructed) bool {
			return o.Publisher == x.Publisher && o.Zone == x.Zone && (o.Verb == VerbImport || o.Verb == VerbRelease)
		})
		if x.Verb != VerbRelease || spoken {
			continue
		}
		x.Index, x.At = t.index, x.At.Round(0).UTC()
		x.Actor, x.Reason = CleanReason("%s", x.Actor), CleanReason("%s", x.Reason)
		if err := t.keep(x); err != nil {
			return err
		}
	}
	return nil
}
