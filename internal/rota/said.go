package rota

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// OwnAgent stands in reports and votes for whoever speaks for endpoints where KindAgent is asked. No vantage can have the name.
const OwnAgent = "(agent)"

// Saying is what somebody says of an endpoint where KindAgent is asked.
type Saying struct {
	Service Name       `json:"service"`
	Address netip.Addr `json:"address"`
	Check   string     `json:"check,omitempty"` // name of the check; empty: the only one of KindAgent
	Status  Status     `json:"status"`          // Up, Down or Draining
	Reason  string     `json:"reason,omitempty"`
	Weight  uint8      `json:"weight,omitempty"` // percent of its weight that the endpoint asks for, 1 to 100; 0: nothing is said

	// Agent is the name by which Endpoint.Agent knows who speaks. Empty: an operator, who may speak for any endpoint.
	Agent string `json:"agent,omitempty"`
	By    string `json:"by"` // who speaks, for people

	Incarnation uint64 `json:"incarnation,omitempty"` // of the process that speaks; 0 with Seq 0: it does not count what it says
	Seq         uint64 `json:"seq,omitempty"`         // grows with each saying of an incarnation
}

// Errors of State.Said.
var (
	ErrNoEndpoint = errors.New("no such endpoint")
	ErrNoSaying   = errors.New("nobody is heard on that endpoint")
	ErrNotYours   = errors.New("not yours to say")
)

// Said returns the target that a saying is about. It returns ErrNoEndpoint, ErrNoSaying when the endpoint has no such check, and
// ErrNotYours when the agent may not speak for it, wrapped with what to do.
func (s *State) Said(x Saying) (Target, error) {
	v := s.Service(x.Service)
	if v == nil {
		return Target{}, fmt.Errorf("%w: there is no service %s", ErrNoEndpoint, x.Service.Short())
	}
	e := v.endpoint(x.Address)
	if e == nil {
		return Target{}, fmt.Errorf("%w: service %s has no endpoint %v", ErrNoEndpoint, v.Name.Short(), x.Address)
	}
	var found []Target
	var names []string
	for _, u := range e.Checks {
		if u.Check.Kind != KindAgent {
			continue
		}
		names = append(names, u.Check.Name)
		if x.Check == "" || x.Check == u.Check.Name {
			found = append(found, e.Target(u))
		}
	}
	switch {
	case len(names) == 0:
		return Target{}, fmt.Errorf("%w: endpoint %v of %s has no check of type agent", ErrNoSaying, e.Address, v.Name.Short())
	case len(found) == 0:
		return Target{}, fmt.Errorf("%w: endpoint %v of %s has no check %q of type agent, it has %s", ErrNoSaying, e.Address, v.Name.Short(), CleanReason("%s", x.Check), strings.Join(names, ", "))
	case len(found) > 1:
		return Target{}, fmt.Errorf("%w: endpoint %v of %s has several checks of type agent, say which: %s", ErrNoSaying, e.Address, v.Name.Short(), strings.Join(names, ", "))
	}
	if x.Agent == "" {
		return found[0], nil
	}
	if e.Agent != x.Agent {
		return Target{}, fmt.Errorf("%w: %s does not speak for endpoint %v of %s; its `agent:` in the configuration says who does", ErrNotYours, x.Agent, e.Address, v.Name.Short())
	}
	// Another service may ask the same of the same address.
	for _, n := range s.compiled().uses[found[0].ID] {
		for _, other := range s.Service(n).Endpoints {
			asked := func(u Use) bool { return u.Check.Kind == KindAgent && other.Target(u).ID == found[0].ID }
			if other.Agent != x.Agent && slices.ContainsFunc(other.Checks, asked) {
				return Target{}, fmt.Errorf("%w: %v is an endpoint of %s too, and %s speaks for it there", ErrNotYours, other.Address, n.Short(), cmp.Or(other.Agent, "no agent"))
			}
		}
	}
	return found[0], nil
}

// said reports whether nobody asks a target: who speaks for it says how it is.
func (id TargetID) said() bool { return strings.HasPrefix(string(id), string(KindAgent)+"://") }

// byAgent is the quorum for targets that nobody asks: the one who speaks for the endpoint is enough.
var byAgent = Quorum{Need: "any"}

// Ballot returns the quorum that decides about a target, and how many voices there are.
func (s *State) Ballot(id TargetID) (q Quorum, voices int) {
	if id.said() {
		return byAgent, 1
	}
	spec := &s.compiled().spec
	return spec.Quorum, spec.Quorum.Voices(spec.Vantages)
}

// ballots are who votes: the vantages, and whoever speaks for endpoints on the targets that nobody asks.
type ballots struct {
	quorum   Quorum
	voices   int
	vantages []voter
	agent    []voter // one
	votes    []Vote  // room for those of one target
}

// take returns the votes on a target, which stay as they are until the next call, and what decides about it.
func (b *ballots) take(id TargetID) (votes []Vote, q Quorum, voices int) {
	who, q, voices := b.vantages, b.quorum, b.voices
	if id.said() {
		who, q, voices = b.agent, byAgent, 1
	}
	b.votes = b.votes[:0]
	for i := range who {
		b.votes = append(b.votes, who[i].vote(id))
	}
	return b.votes, q, voices
}
