package rota

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Node is a node of the cluster as people know it. The order of events belongs to all nodes alike; who of them votes on it is the
// business of whoever orders.
type Node struct {
	ID   string `json:"id"` // made once
	Name string `json:"name"`
	Site string `json:"site,omitempty"`

	// In an event.
	Gone  bool `json:"gone,omitempty"`  // it left
	Unmet bool `json:"unmet,omitempty"` // with Gone: it was added and never answered, so it may be added again
}

// Removed is a node that left the cluster. What it holds as proof of who it is may be good for longer.
type Removed struct {
	ID   string    `json:"id"`
	Name string    `json:"name,omitempty"` // the last one; empty: it never said it
	At   time.Time `json:"at"`
}

// Bounds of what a State remembers of nodes that left. A node's certificate lives for a year.
const (
	MaxRemoved  = 1000 // who left last
	RemovedLife = 400 * 24 * time.Hour
)

// ErrRemoved says that a node was removed from the cluster.
var ErrRemoved = errors.New("this node was removed from the cluster: let it join again with an empty data directory, which makes it a new one")

// Nodes returns the nodes of the cluster, sorted by id. The slice must not be changed.
func (s *State) Nodes() []Node { return s.nodes }

// Removed returns the nodes that left, who left first first, for RemovedLife and at most MaxRemoved. The slice must not be changed.
func (s *State) Removed() []Removed { return s.removed }

// WasRemoved reports whether a node left the cluster. It never comes back under its id.
func (s *State) WasRemoved(id string) bool {
	return slices.ContainsFunc(s.removed, func(r Removed) bool { return r.ID == id })
}

// enrol takes in nodes, or their leaving. A name belongs to one node, and who left does not come back.
func (t *transaction) enrol(ms []Node) error {
	next := slices.Clone(t.nodes)
	for _, m := range ms {
		if m.ID == "" || m.Name == "" && !m.Gone {
			return errors.New("a node has no id or no name")
		}
		i, found := slices.BinarySearchFunc(next, m.ID, func(n Node, id string) int { return cmp.Compare(n.ID, id) })
		if m.Gone {
			if found {
				m.Name = next[i].Name
				next = slices.Delete(next, i, i+1)
			}
			if !m.Unmet {
				t.remember(Removed{m.ID, m.Name, t.now})
			}
			continue
		}
		if t.WasRemoved(m.ID) {
			return fmt.Errorf("node %s: %w", m.ID, ErrRemoved)
		}
		m.Unmet = false
		if found {
			next[i] = m
		} else {
			next = slices.Insert(next, i, m)
		}
	}
	names := map[string]string{}
	for _, m := range next {
		if other := names[m.Name]; other != "" {
			return fmt.Errorf("the nodes %s and %s would both be named %q: give one of them another name", other, m.ID, m.Name)
		}
		names[m.Name] = m.ID
	}
	for _, v := range t.compiled().spec.Vantages {
		if id := names[v.Name]; v.Agent && id != "" {
			return fmt.Errorf("the node %s would have the name of agent %q, and with it its vote: give one of them another name", id, v.Name)
		}
	}
	t.nodes = next
	spec := t.compiled().spec
	if seated := t.seat(spec); !slices.Equal(seated.Vantages, spec.Vantages) {
		return t.respec(seated)
	}
	return nil
}

// seat has the nodes of the cluster vote in a spec in which nodes vote: who made it, or keeps it as a backup, may know other nodes than
// there are, and would count a majority of those.
func (t *transaction) seat(s Spec) Spec {
	if len(t.nodes) == 0 {
		return s
	}
	var out []Vantage
	vote := false
	for _, v := range s.Vantages {
		switch {
		case !v.Agent:
			vote = true
		case !slices.ContainsFunc(t.nodes, func(n Node) bool { return n.Name == v.Name }):
			out = append(out, v)
		}
	}
	if vote {
		for _, n := range t.nodes {
			out = append(out, Vantage{Name: n.Name, Site: n.Site})
		}
	}
	slices.SortStableFunc(out, func(a, b Vantage) int { return cmp.Compare(a.Name, b.Name) })
	s.Vantages = out
	return s
}

// remember keeps that a node left, since when it was first said.
func (t *transaction) remember(r Removed) {
	if t.WasRemoved(r.ID) {
		return
	}
	i, _ := slices.BinarySearchFunc(t.removed, r, func(a, b Removed) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	next := slices.Insert(slices.Clone(t.removed), i, r)
	t.removed = next[max(0, len(next)-MaxRemoved):]
}

// forget drops the nodes that left too long ago to matter, the instructions whose time has passed and what was left behind too
// long ago.
func (t *transaction) forget() {
	for len(t.removed) > 0 && t.now.Sub(t.removed[0].At) > RemovedLife {
		t.removed = t.removed[1:]
	}
	over := func(x Instructed) bool { return x.over(t.now) }
	if slices.ContainsFunc(t.instructed, over) {
		t.instructed = slices.DeleteFunc(slices.Clone(t.instructed), over)
	}
	old := func(l Leftover) bool { return t.now.Sub(l.Since) > LeftoverLife }
	if slices.ContainsFunc(t.leftovers, old) {
		t.leftovers = slices.DeleteFunc(slices.Clone(t.leftovers), old)
	}
}
