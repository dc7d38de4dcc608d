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
	step("[{b two  false}]", Event{Nodes: []Node{{ID: "b", Name: "two"}}})
	before := s
	step("[{a one x false} {b two  false}]", Event{Nodes: []Node{{ID: "a", Name: "one", Site: "x"}}})
	step("refused", Event{Nodes: []Node{{ID: "c", Name: "one"}}})
	step("refused", Event{Nodes: []Node{{ID: "c"}}})
	step("refused", Event{Nodes: []Node{{Name: "x"}}})
	step("[{a two x false} {b one  false}]", Event{Nodes: []Node{{ID: "a", Name: "two", Site: "x"}, {ID: "b", Name: "one"}}})
	step("[{a two x false}]", Event{Nodes: []Node{{ID: "b", Gone: true}, {ID: "nobody", Gone: true}}})
	if len(before.Nodes()) != 1 || before.Nodes()[0].Name != "two" {
		t.Error("an older state changed")
	}
	again, err := Restore(s.Snapshot())
	if err != nil || fmt.Sprint(again.Nodes()) != fmt.Sprint(s.Nodes()) {
		t.Errorf("restored %v, %v", again.Nodes(), err)
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
