package rota

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// instructed applies what a person asks of publishers and returns the next state.
func instructed(t *testing.T, s *State, at time.Time, x Instruction) *State {
	t.Helper()
	next, err := s.Apply(Event{Index: s.Index() + 1, At: at, Kind: EventInstruct, Actor: "alice", Reason: "asked for", Instruction: &x})
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func verbs(xs []Instructed) string {
	var out []string
	for _, x := range xs {
		out = append(out, string(x.Verb))
	}
	return strings.Join(out, " ")
}

// TestInstructions: who is meant, what supersedes what, and when each is over.
func TestInstructions(t *testing.T) {
	s, at := &State{}, epoch
	give := func(x Instruction) {
		t.Helper()
		s = instructed(t, s, at, x)
	}
	expect := func(publisher string, zone Name, want string) {
		t.Helper()
		if got := verbs(s.Instructions(publisher, zone)); got != want {
			t.Errorf("%s/%s: %q, want %q", publisher, zone, got, want)
		}
	}
	give(Instruction{Verb: VerbApply})
	give(Instruction{Verb: VerbRefresh, Publisher: "bind", Names: []Name{"www.example.org.", "a.example.org.", "a.example.org."}, Until: at.Add(time.Hour)})
	give(Instruction{Verb: VerbApply, Publisher: "bind", Zone: "example.org."})
	expect("bind", "example.org.", "apply refresh apply")
	expect("bind", "example.net.", "apply refresh")
	expect("knot", "example.org.", "apply")
	if got := s.Instructions("bind", "example.net.")[1]; fmt.Sprint(got.Names) != "[a.example.org. www.example.org.]" || got.Actor != "alice" || got.Index != 2 || !got.At.Equal(at) {
		t.Errorf("%+v", got)
	}
	if d := s.Deadline(); !d.Equal(at.Add(DefaultInstruction)) {
		t.Errorf("deadline %v", d)
	}

	give(Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.org.", To: "others"}) // in place of the apply of the same zone
	expect("bind", "example.org.", "apply refresh release")
	give(Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.org."})
	expect("bind", "example.org.", "apply refresh release")
	before := s
	at = at.Add(DefaultInstruction)
	next, err := s.Apply(Event{Index: s.Index() + 1, At: at, Kind: EventTick})
	if err != nil {
		t.Fatal(err)
	}
	s = next
	expect("bind", "example.org.", "refresh release")
	if verbs(before.Instructed()) != "apply refresh release" {
		t.Error("an older state changed")
	}
	at = at.Add(100 * 24 * time.Hour)
	give(Instruction{Verb: VerbApply, Publisher: "bind", Zone: "example.org."})
	expect("bind", "example.org.", "release apply")
	give(Instruction{Verb: VerbImport, Publisher: "bind", Zone: "example.net.", From: "others"})
	expect("bind", "example.org.", "release apply")
	give(Instruction{Verb: VerbImport, Publisher: "bind", Zone: "example.org.", From: "others"})
	expect("bind", "example.org.", "apply import")

	raw, err := json.Marshal(s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	var snap Snapshot
	if err := json.Unmarshal(raw, &snap); err != nil {
		t.Fatal(err)
	}
	again, err := Restore(snap)
	if err != nil || verbs(again.Instructed()) != verbs(s.Instructed()) || !again.Deadline().Equal(s.Deadline()) {
		t.Errorf("restored %s, %v", verbs(again.Instructed()), err)
	}
}

func TestRefusedInstructions(t *testing.T) {
	zone := Instruction{Publisher: "bind", Zone: "example.org."}
	of := func(v Verb, more func(*Instruction)) *Instruction {
		x := zone
		x.Verb = v
		more(&x)
		return &x
	}
	for want, x := range map[string]*Instruction{
		"holds no instruction":         nil,
		"unknown verb":                 of("explode", func(*Instruction) {}),
		"name the publisher":           of(VerbImport, func(x *Instruction) { x.Publisher = "" }),
		"and the zone":                 of(VerbRelease, func(x *Instruction) { x.Zone = "" }),
		"at least one name":            of(VerbRefresh, func(*Instruction) {}),
		"until an import":              of(VerbRelease, func(x *Instruction) { x.Until = epoch.Add(time.Hour) }),
		"of the whole zone":            of(VerbRelease, func(x *Instruction) { x.Names = []Name{"a."} }),
		"only import does":             of(VerbApply, func(x *Instruction) { x.From = "others" }),
		"only release does":            of(VerbImport, func(x *Instruction) { x.To = "others" }),
		"in parts":                     of(VerbApply, func(x *Instruction) { x.Names = manyNames(MaxInstructionNames + 1) }),
		"in force for 24h0m1s":         of(VerbApply, func(x *Instruction) { x.Until = epoch.Add(MaxInstruction + time.Second) }),
		"in force for 0s":              of(VerbApply, func(x *Instruction) { x.Until = epoch }),
		"is no publisher and no owner": of(VerbApply, func(x *Instruction) { x.Publisher = "b\x1bd" }),
		"want at most 128 bytes":       of(VerbRelease, func(x *Instruction) { x.To = strings.Repeat("x", 129) }),
		"not in canonical form, which": of(VerbApply, func(x *Instruction) { x.Zone = "Example.org." }),
		"empty label":                  of(VerbApply, func(x *Instruction) { x.Names = []Name{"a..b."} }),
	} {
		next, err := new(State).Apply(Event{Index: 1, At: epoch, Kind: EventInstruct, Instruction: x})
		if err == nil || !strings.Contains(err.Error(), want) || len(next.Instructed()) > 0 {
			t.Errorf("%+v: %v, want %q", x, err, want)
		}
	}
}

func manyNames(n int) []Name {
	out := make([]Name, n)
	for i := range out {
		out[i] = Name(fmt.Sprintf("n%d.example.org.", i))
	}
	return out
}

// TestInstructionsAreBounded: the oldest allowances give way, by count and by names; releases never do, and the one too many is refused.
func TestInstructionsAreBounded(t *testing.T) {
	s := instructed(t, &State{}, epoch, Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.org."})
	for range 7 {
		s = instructed(t, s, epoch, Instruction{Verb: VerbApply, Names: manyNames(MaxInstructionNames)})
	}
	if got := verbs(s.Instructed()); got != "release apply apply apply apply apply" || s.Instructed()[5].Index != 8 {
		t.Errorf("in force: %s", got)
	}
	for i := range MaxInstructed - 1 {
		s = instructed(t, s, epoch, Instruction{Verb: VerbRelease, Publisher: "bind", Zone: Name(fmt.Sprintf("z%d.", i))})
	}
	if n := len(s.Instructed()); n != MaxInstructed || s.Instructed()[0].Zone != "example.org." || strings.Contains(verbs(s.Instructed()), "apply") {
		t.Errorf("%d in force", n)
	}
	for _, v := range []Instruction{{Verb: VerbRelease, Publisher: "bind", Zone: "one.more."}, {Verb: VerbApply}} {
		next, err := s.Apply(Event{Index: s.Index() + 1, At: epoch, Kind: EventInstruct, Instruction: &v})
		if err == nil || len(next.Instructed()) != MaxInstructed {
			t.Errorf("%s beside 1000 releases: %v", v.Verb, err)
		}
	}
	s = instructed(t, s, epoch, Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.org.", To: "others"}) // said again
	s = instructed(t, s, epoch, Instruction{Verb: VerbImport, Publisher: "bind", Zone: "z0."})
	if n := len(s.Instructed()); n != MaxInstructed {
		t.Errorf("%d in force", n)
	}
}

// TestRestoreKeepsFromWriting: a backup that was made in a freeze freezes, and what was released then stays released, but for what somebody
// said since; no backup thaws, and no allowance comes back.
func TestRestoreKeepsFromWriting(t *testing.T) {
	old := []Instructed{
		{Instruction: Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.org."}, Actor: "alice", Reason: "moved", At: epoch},
		{Instruction: Instruction{Verb: VerbRelease, Publisher: "bind", Zone: "example.net."}, Actor: "alice", Reason: "moved", At: epoch},
		{Instruction: Instruction{Verb: VerbApply, Until: epoch.Add(time.Hour)}},
	}
	s := instructed(t, &State{}, epoch, Instruction{Verb: VerbImport, Publisher: "bind", Zone: "example.net."})
	restore := func(s *State, e Event) *State {
		t.Helper()
		e.Index, e.At, e.Kind, e.Spec = s.Index()+1, epoch.Add(time.Minute), EventRestore, &Spec{}
		next, err := s.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	s = restore(s, Event{Instructed: old})
	if got := verbs(s.Instructions("bind", "example.org.")); got != "release" || s.Instructed()[1].Reason != "moved" || s.Instructed()[1].Index != 2 {
		t.Errorf("released: %s, %+v", got, s.Instructed())
	}
	if got := verbs(s.Instructions("bind", "example.net.")); got != "import" {
		t.Errorf("what was taken over since: %s", got)
	}
	if s.Frozen() != nil {
		t.Error("frozen by a backup that was not")
	}
	s = restore(s, Event{Frozen: &Freeze{At: epoch, Actor: "bob", Reason: "why not"}})
	if f := s.Frozen(); f == nil || f.String() != "frozen by bob since 2026-01-01 00:01:00Z: why not" {
		t.Errorf("frozen: %v", f)
	}
	if s = restore(s, Event{}); s.Frozen() == nil {
		t.Error("thawed by a backup")
	}
}

// TestMaxChange: a spec from before there was a budget has the default one, and one that cannot be is refused.
func TestMaxChange(t *testing.T) {
	spec := func(m MaxChange, sites int) *Spec {
		return &Spec{Services: []Service{{Name: "www.example.org.", Safety: Safety{FailOpenBelow: 0.5, MaxChange: m, MaxSites: sites}}}}
	}
	s, err := new(State).Apply(Event{Index: 1, At: epoch, Kind: EventSpec, Spec: spec(MaxChange{}, 0)})
	if err != nil || s.Service("www.example.org.").Safety.MaxChange != DefaultMaxChange() {
		t.Errorf("%+v, %v", s.Service("www.example.org.").Safety, err)
	}
	for _, c := range []struct {
		of    MaxChange
		sites int
		ok    bool
	}{
		{MaxChange{Share: 1, Per: time.Second}, 1, true},
		{MaxChange{Share: 0, Per: MaxChangePer, MinRecords: 1}, 0, true},
		{MaxChange{Share: 1.1, Per: time.Second}, 0, false},
		{MaxChange{Share: -0.1, Per: time.Second}, 0, false},
		{MaxChange{Share: 0.5}, 0, false},
		{MaxChange{Share: 0.5, Per: MaxChangePer + 1}, 0, false},
		{MaxChange{Share: 0.5, Per: time.Second, MinRecords: -1}, 0, false},
		{DefaultMaxChange(), -1, false},
	} {
		if err := spec(c.of, c.sites).Validate(); (err == nil) != c.ok {
			t.Errorf("%+v, %d sites: %v", c.of, c.sites, err)
		}
	}
}

// TestFreezeSurvives: a restored state is frozen, with the verdicts of then and of today.
func TestFreezeSurvives(t *testing.T) {
	w := &world{t: t, now: epoch, state: &State{}}
	for _, line := range []string{"service www 192.0.2.1 192.0.2.2", "load", "verdict 192.0.2.1 up", "verdict 192.0.2.2 up", "freeze why", "verdict 192.0.2.2 down"} {
		if err := w.do(line); err != nil {
			t.Fatal(err)
		}
	}
	snap := w.state.Snapshot()
	if len(snap.Pinned) != 2 || len(snap.Verdicts) != 2 || !slices.ContainsFunc(snap.Verdicts, func(v Verdict) bool { return v.Status == Down }) ||
		slices.ContainsFunc(snap.Pinned, func(v Verdict) bool { return v.Status != Up }) {
		t.Errorf("%+v", snap)
	}
	w.replay()
}
