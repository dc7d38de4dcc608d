package rota

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestNodes(t *testing.T) {
	s := &State{}
	step := func(want string, e Event) {
		t.Helper()
		e.Index, e.Kind = s.Index()+1, EventNodes
		next, err := s.Apply(e)
		if (err != nil) != (want == "refused") {
			t.Fatalf("%+v: %v", e, err)
		}
		s = next
		if want != "refused" && fmt.Sprint(s.Nodes()) != want {
			t.Fatalf("nodes %v, want %s", s.Nodes(), want)
		}
	}
	step("[{b two  false false}]", Event{Nodes: []Node{{ID: "b", Name: "two"}}})
	before := s
	step("[{a one x false false} {b two  false false}]", Event{Nodes: []Node{{ID: "a", Name: "one", Site: "x"}}})
	step("refused", Event{Nodes: []Node{{ID: "c", Name: "one"}}})
	step("refused", Event{Nodes: []Node{{ID: "c"}}})
	step("refused", Event{Nodes: []Node{{Name: "x"}}})
	step("[{a two x false false} {b one  false false}]", Event{Nodes: []Node{{ID: "a", Name: "two", Site: "x"}, {ID: "b", Name: "one"}}})
	step("[{a two x false false}]", Event{Nodes: []Node{{ID: "b", Gone: true}, {ID: "nobody", Gone: true}}})
	if len(before.Nodes()) != 1 || before.Nodes()[0].Name != "two" {
		t.Error("an older state changed")
	}
	again, err := Restore(s.Snapshot())
	if err != nil || fmt.Sprint(again.Nodes()) != fmt.Sprint(s.Nodes()) {
		t.Errorf("restored %v, %v", again.Nodes(), err)
	}
}

// TestRemovedNodes: who left is known by that, and does not come back under its id; but who was never met may.
func TestRemovedNodes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := &State{}
	apply := func(nodes ...Node) error {
		next, err := s.Apply(Event{Index: s.Index() + 1, At: now, Kind: EventNodes, Nodes: nodes})
		s = next
		return err
	}
	known := func() string {
		var out []string
		for _, r := range s.Removed() {
			out = append(out, r.ID+"="+r.Name)
		}
		return fmt.Sprint(out)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(apply(Node{ID: "a", Name: "one"}, Node{ID: "b", Name: "two"}, Node{ID: "c", Name: "three"}))
	must(apply(Node{ID: "b", Gone: true}, Node{ID: "unheard", Gone: true}))
	before := s
	now = now.Add(time.Hour)
	must(apply(Node{ID: "b", Gone: true}, Node{ID: "c", Gone: true, Unmet: true}))
	if got := known(); got != "[b=two unheard=]" || !s.Removed()[0].At.Equal(now.Add(-time.Hour)) || !s.WasRemoved("b") || s.WasRemoved("a") {
		t.Errorf("removed %s", got)
	}
	for _, id := range []string{"b", "unheard"} {
		if err := apply(Node{ID: id, Name: "again"}); !errors.Is(err, ErrRemoved) {
			t.Errorf("%s is back: %v", id, err)
		}
	}
	must(apply(Node{ID: "c", Name: "three"}))
	must(apply(Node{ID: "d", Name: "two"})) // its name is free
	again, err := Restore(s.Snapshot())
	if err != nil || !again.WasRemoved("b") {
		t.Errorf("forgotten by a restart: %v", err)
	}
	// They are forgotten when no certificate of theirs can be good any more, and the oldest when there are too many.
	now = now.Add(RemovedLife - 30*time.Minute)
	must(apply(Node{ID: "d", Gone: true}))
	if got := known(); got != "[d=two]" {
		t.Errorf("after 400 days: %s", got)
	}
	for i := range MaxRemoved {
		now = now.Add(time.Second)
		must(apply(Node{ID: fmt.Sprint("x", i), Gone: true}))
	}
	if n := len(s.Removed()); n != MaxRemoved || s.WasRemoved("d") || !s.WasRemoved("x0") {
		t.Errorf("%d remembered", n)
	}
	if len(before.Removed()) != 2 || before.Removed()[0].ID != "b" {
		t.Error("an older state changed")
	}
}

// TestRemovedNodesOfABackup: what a backup knows of nodes that left is added to what is known; nothing is forgotten, and no node of
// today is meant.
func TestRemovedNodesOfABackup(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := &State{}
	for i, e := range []Event{
		{Kind: EventNodes, Nodes: []Node{{ID: "a", Name: "one"}, {ID: "b", Name: "two"}}},
		{Kind: EventNodes, Nodes: []Node{{ID: "b", Gone: true}}},
		{Kind: EventRestore, Spec: &Spec{}, Removed: []Removed{{"a", "one", now}, {"b", "two", now}, {"c", "three", now.Add(-time.Hour)}}},
	} {
		e.Index, e.At = uint64(i+1), now
		next, err := s.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	if got := fmt.Sprint(s.WasRemoved("a"), s.WasRemoved("b"), s.WasRemoved("c"), " ", len(s.Removed()), " ", s.Removed()[0].ID); got != "false true true 2 c" {
		t.Error(got)
	}
}

// TestNodesVote: whoever makes a spec, or kept it as a backup, the nodes that vote in it are those of the cluster; agents stay as they
// are said, but for one that has a node's name, and no node takes the name of one.
func TestNodesVote(t *testing.T) {
	s := &State{}
	apply := func(e Event) error {
		e.Index = s.Index() + 1
		next, err := s.Apply(e)
		s = next
		return err
	}
	voters := func() string {
		var out []string
		for _, v := range s.Spec().Vantages {
			out = append(out, v.Name+"@"+v.Site)
		}
		return fmt.Sprint(out)
	}
	spec := func(vs ...Vantage) *Spec { return &Spec{Vantages: vs} }
	agent := Vantage{Name: "far", Site: "z", Agent: true}
	for _, step := range []struct {
		e    Event
		want string
	}{
		{Event{Kind: EventSpec, Spec: spec(Vantage{Name: "alone"}, agent)}, "[alone@ far@z]"}, // no nodes are known: as it is said
		{Event{Kind: EventNodes, Nodes: []Node{{ID: "1", Name: "a", Site: "x"}, {ID: "2", Name: "c"}, {ID: "3", Name: "b"}}}, "[a@x b@ c@ far@z]"},
		{Event{Kind: EventSpec, Spec: spec(Vantage{Name: "b"}, agent)}, "[a@x b@ c@ far@z]"},
		{Event{Kind: EventNodes, Nodes: []Node{{ID: "1", Gone: true}, {ID: "3", Name: "d"}}}, "[c@ d@ far@z]"},
		{Event{Kind: EventNodes, Nodes: []Node{{ID: "1", Gone: true}, {ID: "3", Name: "b"}, {ID: "5", Name: "a", Site: "x"}}}, "[a@x b@ c@ far@z]"},
		{Event{Kind: EventSpec, Spec: spec(agent)}, "[far@z]"}, // nodes do not vote
		{Event{Kind: EventRestore, Spec: spec(Vantage{Name: "gone"}, Vantage{Name: "c", Agent: true}, agent)}, "[a@x b@ c@ far@z]"},
	} {
		if err := apply(step.e); err != nil || voters() != step.want {
			t.Fatalf("%s %v: %s, %v; want %s", step.e.Kind, step.e.Spec, voters(), err, step.want)
		}
	}
	if err := apply(Event{Kind: EventNodes, Nodes: []Node{{ID: "4", Name: "far"}}}); err == nil || len(s.Nodes()) != 3 {
		t.Errorf("a node got the name of an agent: %v, %v", s.Nodes(), err)
	}
}

func TestEventIDs(t *testing.T) {
	s := &State{}
	apply := func(id string) error {
		next, err := s.Apply(Event{Index: s.Index() + 1, ID: id, Kind: EventTick})
		s = next
		return err
	}
	for i := range MaxSeen + 1 {
		if err := apply(fmt.Sprint("id", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := apply("id7"); !errors.Is(err, ErrDuplicate) {
		t.Errorf("the same id again: %v", err)
	}
	if at, ok := s.Seen("id7"); !ok || at != 8 {
		t.Errorf("id7 was event %d, %v", at, ok)
	}
	if err := apply("id0"); err != nil {
		t.Errorf("the oldest is remembered beyond the limit: %v", err)
	}
	if len(s.Snapshot().Seen) != MaxSeen {
		t.Errorf("%d ids remembered", len(s.Snapshot().Seen))
	}
	if err := apply(string(make([]byte, MaxEventID+1))); err == nil {
		t.Error("an id of any length")
	}
	for range 2 {
		if err := apply(""); err != nil {
			t.Errorf("events without an id: %v", err)
		}
	}
	again, err := Restore(s.Snapshot())
	if _, ok := again.Seen("id9"); err != nil || !ok {
		t.Errorf("forgotten by a restart: %v", err)
	}
	if EventKind("nonsense").Known() || !EventRestore.Known() {
		t.Error("known kinds")
	}
}

func TestRestoreEvent(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(i uint64, e Event) Event { e.Index, e.At = i, now; return e }
	name := MustParseName("www.example.org")
	spec := func(as ...string) *Spec {
		v := Service{Name: name, TTL: 30, Safety: DefaultSafety()}
		for _, a := range as {
			v.Endpoints = append(v.Endpoints, Endpoint{Address: netip.MustParseAddr(a), Weight: 1})
		}
		return &Spec{Services: []Service{v}}
	}
	o := Override{Endpoint: EndpointID{name, netip.MustParseAddr("192.0.2.1")}, Action: ActionDrain, Set: now, Expires: now.Add(time.Hour)}
	s := &State{}
	for _, e := range []Event{
		at(1, Event{Kind: EventSpec, Spec: spec("192.0.2.1", "192.0.2.2")}),
		at(2, Event{Kind: EventOverride, Overrides: []Override{o}}),
	} {
		var err error
		if s, err = s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	backup, serial := s.Snapshot(), s.Serial()
	s, err := s.Apply(at(3, Event{Kind: EventSpec, Spec: spec("192.0.2.9")}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(at(4, Event{Kind: EventRestore})); err == nil {
		t.Error("a restore of nothing")
	}
	if s, err = s.Apply(at(4, Event{Kind: EventRestore, Spec: &backup.Spec, Overrides: backup.Overrides})); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(texts(s.Selection(name).V4.Published())); got != "[192.0.2.2]" || s.Override(o.Endpoint) == nil {
		t.Errorf("after the restore: %s, override %v", got, s.Override(o.Endpoint))
	}
	if int32(s.Serial()-serial) < 2 {
		t.Errorf("serial %d after %d: it must grow with every change", s.Serial(), serial)
	}
}
