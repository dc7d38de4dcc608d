package rota

import (
	"time"
)

// EventKind says what an event brings.
type EventKind string

// The kinds of events. A kind of a later version is refused by Apply and changes nothing.
const (
	EventSpec      EventKind = "spec"      // the configuration, whole
	EventVerdicts  EventKind = "verdicts"  // verdicts that changed
	EventOverride  EventKind = "override"  // a person spoke
	EventLift      EventKind = "lift"      // a person took it back
	EventTick      EventKind = "tick"      // time passed: overrides expire, holds end
	EventLead      EventKind = "lead"      // a node began to lead
	EventPublished EventKind = "published" // a publisher changed a DNS
	EventVantages  EventKind = "vantages"  // who votes, whole; the rest of the configuration stays
	EventNodes     EventKind = "nodes"     // nodes came, left or changed their name
	EventRestore   EventKind = "restore"   // configuration and overrides become, whole, those of a backup
	EventFreeze    EventKind = "freeze"    // a person stopped everything automatic
	EventThaw      EventKind = "thaw"      // a person let it go on
	EventInstruct  EventKind = "instruct"  // a person asks something of publishers

	EventRegister   EventKind = "register"   // hosts announced themselves, or said that they are still there
	EventDeregister EventKind = "deregister" // hosts left
)

// Known reports whether this version knows the kind.
func (k EventKind) Known() bool {
	switch k {
	case EventSpec, EventVerdicts, EventOverride, EventLift, EventTick, EventLead, EventPublished, EventVantages, EventNodes, EventRestore,
		EventFreeze, EventThaw, EventInstruct, EventRegister, EventDeregister:
		return true
	}
	return false
}

// Event is the only thing that changes the State. It carries its own time: applying it again gives the same State.
type Event struct {
	Index     uint64       `json:"index"`        // its place in the order; set by whoever orders
	ID        string       `json:"id,omitempty"` // who made it gave it this, so that it counts once however often it is sent
	At        time.Time    `json:"at"`
	Kind      EventKind    `json:"kind"`
	Actor     string       `json:"actor,omitempty"`  // who: a node, a person
	Reason    string       `json:"reason,omitempty"` // why, for people
	Spec      *Spec        `json:"spec,omitempty"`
	Verdicts  []Verdict    `json:"verdicts,omitempty"`
	Overrides []Override   `json:"overrides,omitempty"`
	Lift      []EndpointID `json:"lift,omitempty"`
	Lead      *Lead        `json:"lead,omitempty"`
	Published *Published   `json:"published,omitempty"`
	Vantages  []Vantage    `json:"vantages,omitempty"`
	Nodes     []Node       `json:"nodes,omitempty"`
	Removed   []Removed    `json:"removed,omitempty"` // that a backup knows of

	Registrations []Registration `json:"registrations,omitempty"` // of register and deregister, and those that a backup knows of

	Instruction *Instruction `json:"instruction,omitempty"`
	Frozen      *Freeze      `json:"frozen,omitempty"`     // that a backup was made in
	Instructed  []Instructed `json:"instructed,omitempty"` // releases that a backup knows of
}

// Lead says who leads and since which term. Terms only grow.
type Lead struct {
	Node string `json:"node"`
	Term uint64 `json:"term"`
}

// Published is what a publisher did to one zone in one write, read back afterwards.
type Published struct {
	Publisher string        `json:"publisher"`
	Zone      Name          `json:"zone"`
	Epoch     uint64        `json:"epoch"` // the fence it was written under
	Changes   []Change      `json:"changes"`
	Took      time.Duration `json:"took_ns"` // from the start of the round to the read-back
}

// Transition is a change of a service's answer between two states, with the words for it.
type Transition struct {
	Service Name     `json:"service"`
	Type    Type     `json:"type"`
	Before  []string `json:"before"` // addresses served before, sorted
	After   []string `json:"after"`
	Mode    Mode     `json:"mode"` // after
	Was     Mode     `json:"was"`  // before
	Why     []string `json:"why"`  // one sentence an endpoint that came or went, or whose keeping is news
}
