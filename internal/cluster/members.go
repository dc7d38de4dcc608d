package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Member is a node of the cluster.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"` // empty until the node or whoever added it said it
	Site    string `json:"site,omitempty"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Self    bool   `json:"self"`
	Leader  bool   `json:"leader"`

	// Only the leader knows these of the others; it knows all of itself.
	LastContact time.Duration `json:"last_contact_ns"` // since it answered; -1: unknown or never
	Trailing    uint64        `json:"trailing"`        // entries of the log that it does not hold yet
}

// Label returns the name, or the id of a node whose name is not known.
func (m Member) Label() string { return cmp.Or(m.Name, m.ID) }

// Members returns the nodes of the cluster as this node knows them, sorted by name.
func (n *Node) Members() []Member {
	r := n.raft.Load()
	_, leader := r.LeaderWithID()
	leads := r.State() == raft.Leader
	last := r.LastIndex()
	var out []Member
	for _, s := range r.GetConfiguration().Configuration().Servers {
		m := n.member(s)
		m.Leader = s.ID == leader
		m.LastContact = -1
		switch {
		case m.Self:
			m.LastContact = 0
		case leads:
			if c := n.wire.contact(s.ID); !c.at.IsZero() {
				m.LastContact = time.Since(c.at)
				m.Trailing = last - min(last, c.last)
			} else {
				m.Trailing = last
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (n *Node) member(s raft.Server) Member {
	m := Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter, Self: string(s.ID) == n.id.Node}
	nodes := n.State().Nodes()
	if i, ok := slices.BinarySearchFunc(nodes, m.ID, func(x rota.Node, id string) int { return cmp.Compare(x.ID, id) }); ok {
		m.Name, m.Site = nodes[i].Name, nodes[i].Site
	}
	if m.Self {
		m.Name, m.Site = n.name, n.net.Site
	}
	return m
}

// Leader returns who leads as far as this node knows, which may be itself; false when it knows of none.
func (n *Node) Leader() (Member, bool) {
	address, id := n.raft.Load().LeaderWithID()
	if id == "" {
		return Member{}, false
	}
	s, ok := n.server(id)
	if !ok {
		s = raft.Server{ID: id, Address: address, Suffrage: raft.Voter}
	}
	m := n.member(s)
	m.Leader, m.LastContact = true, -1
	return m, true
}

// LeaderChanged returns a channel that is closed when another node leads than the one that Leader returned after this call, or none.
func (n *Node) LeaderChanged() <-chan struct{} {
	_, changed := n.leader.load()
	return changed
}

// Errors of a change of members.
var (
	ErrNoMember    = errors.New("no such node in the cluster")
	ErrUnreachable = errors.New("the node does not answer")
	ErrBehind      = errors.New("the node is still catching up")
	ErrMajority    = errors.New("no majority of the voters would be left that answers")
)

// alive reports whether a node answered lately; this node does.
func (n *Node) alive(id raft.ServerID) bool {
	return id == raft.ServerID(n.id.Node) || time.Since(n.wire.contact(id).at) < 2*n.timing.Heartbeat
}

// survives refuses a set of voters of which no majority answers: the change could never be committed, nor anything after it.
func (n *Node) survives(voters []raft.ServerID) error {
	up := 0
	for _, id := range voters {
		if n.alive(id) {
			up++
		}
	}
	if up < len(voters)/2+1 {
		return fmt.Errorf("%w: of the voters that there would be, %d of %d answer", ErrMajority, up, len(voters))
	}
	return nil
}

// spare refuses to go on without the vote of a node when too few voters would be left.
func (n *Node) spare(servers []raft.Server, s raft.Server) error {
	if s.Suffrage != raft.Voter {
		return nil
	}
	left := voters(servers, "", string(s.ID))
	if len(left) == 0 {
		return fmt.Errorf("%w: %s is the only voter", ErrMajority, n.member(s).Label())
	}
	return n.survives(left)
}

// Spare reports, on the leader, whether the cluster could go on without a node: ErrNoMember, or ErrMajority when too few voters would be
// left that answer.
func (n *Node) Spare(id string) error {
	servers := n.raft.Load().GetConfiguration().Configuration().Servers
	s, err := find(servers, id)
	if err != nil {
		return err
	}
	return n.spare(servers, s)
}

// change makes one change of the configuration, as the leader. One at a time: what f looks at is what the change is made on.
func (n *Node) change(ctx context.Context, f func(r *raft.Raft, servers []raft.Server) (raft.IndexFuture, error)) error {
	if n.alone {
		return ErrAlone
	}
	if !n.appends.enter() {
		return ErrClosed
	}
	select {
	case n.changing <- struct{}{}:
	case <-ctx.Done():
		n.appends.leave()
		return ctx.Err()
	}
	over := func() {
		<-n.changing
		n.appends.leave()
	}
	r := n.raft.Load()
	if r.State() != raft.Leader {
		over()
		return ErrNotLeader
	}
	future, err := f(r, r.GetConfiguration().Configuration().Servers)
	if future == nil || err != nil {
		over()
		return err
	}
	done := make(chan error, 1)
	go func() { // ends when raft answers, which Close waits for
		defer over()
		done <- future.Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return raftError(err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("not confirmed yet: %w", ctx.Err())
	}
}

// ErrAlone says that a node without a Network was asked for what takes others.
var ErrAlone = errors.New("this node runs alone, without a cluster port: write cluster: {election: raft} in the configuration")

func find(servers []raft.Server, id string) (raft.Server, error) {
	for _, s := range servers {
		if string(s.ID) == id {
			return s, nil
		}
	}
	return raft.Server{}, fmt.Errorf("%w: %s", ErrNoMember, id)
}

func voters(servers []raft.Server, with, without string) (out []raft.ServerID) {
	for _, s := range servers {
		if s.Suffrage == raft.Voter && string(s.ID) != without && string(s.ID) != with {
			out = append(out, s.ID)
		}
	}
	if with != "" {
		out = append(out, raft.ServerID(with))
	}
	return out
}

// AddNonvoter takes a node in: it is sent everything, answers, probes and reports, and has no vote. m.ID and m.Address are needed,
// m.Name and m.Site are what people will know it by. For a member that is there already its address becomes m.Address. Leader only, as
// are all changes of members; others return ErrNotLeader. A node that was removed is refused with rota.ErrRemoved.
func (n *Node) AddNonvoter(ctx context.Context, m Member) error {
	if m.ID == "" || m.Address == "" {
		return errors.New("a node needs an id and an address")
	}
	err := n.change(ctx, func(r *raft.Raft, servers []raft.Server) (raft.IndexFuture, error) {
		if n.State().WasRemoved(m.ID) {
			return nil, rota.ErrRemoved
		}
		suffrage := raft.Nonvoter
		for _, s := range servers {
			switch {
			case string(s.ID) == m.ID && string(s.Address) == m.Address:
				return nil, nil
			case string(s.ID) == m.ID && n.alive(s.ID):
				return nil, fmt.Errorf("%w: node %s answers at %s; it cannot be at %s as well", ErrTwins, m.ID, s.Address, m.Address)
			case string(s.ID) == m.ID:
				suffrage = s.Suffrage
			case string(s.Address) == m.Address:
				return nil, fmt.Errorf("the address %s is that of node %s: remove that one first, or give this one another", m.Address, n.member(s).Label())
			}
		}
		for _, x := range n.State().Nodes() {
			if x.Name == m.Name && x.ID != m.ID {
				return nil, fmt.Errorf("the name %q is that of node %s: give this one another", m.Name, x.ID)
			}
		}
		for _, v := range n.State().Spec().Vantages {
			if v.Agent && v.Name == m.Name {
				return nil, fmt.Errorf("the name %q is that of an agent: give the node another", m.Name)
			}
		}
		if suffrage == raft.Voter {
			return r.AddVoter(raft.ServerID(m.ID), raft.ServerAddress(m.Address), previous(ctx), enqueue), nil
		}
		return r.AddNonvoter(raft.ServerID(m.ID), raft.ServerAddress(m.Address), previous(ctx), enqueue), nil
	})
	if err != nil {
		return fmt.Errorf("add %s: %w", m.Label(), err)
	}
	if m.Name == "" {
		return nil
	}
	_, err = n.AppendHere(ctx, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: m.ID, Name: m.Name, Site: m.Site}}})
	return err
}

// AddVoter takes a node in, waits until it answers and has caught up, and gives it a vote. A node that does not answer until ctx ends
// is taken out again, so that a typing error cannot cost the majority.
func (n *Node) AddVoter(ctx context.Context, m Member) error {
	s, err := find(n.raft.Load().GetConfiguration().Configuration().Servers, m.ID)
	fresh := err != nil
	if err := n.AddNonvoter(ctx, m); err != nil {
		return err
	}
	if fresh || string(s.Address) != m.Address {
		ctx = WithMembersIndex(ctx, 0) // it was looked at; its own doing is no obstacle
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := n.Promote(context.WithoutCancel(ctx), m.ID)
		if err == nil || !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrBehind) {
			return err
		}
		select {
		case <-tick.C:
			continue
		case <-n.closing:
			return ErrClosed
		case <-ctx.Done():
		}
		if fresh && errors.Is(err, ErrUnreachable) {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), enqueue)
			defer cancel()
			return errors.Join(fmt.Errorf("%w at %s: it was not added", err, m.Address), n.undo(undo, m.ID))
		}
		return err
	}
}

// undo takes out a node that was added and never answered. It counts as one that was never there, which has to be said before it is
// missing among the servers.
func (n *Node) undo(ctx context.Context, id string) error {
	_, err := n.AppendHere(ctx, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: id, Gone: true, Unmet: true}}})
	if err != nil {
		return err
	}
	return n.takeOut(ctx, id)
}

// maxTrailing is how far behind a node may be that is given a vote: it would be needed for a majority before it can help with one.
const maxTrailing = 256

// Promote gives a node a vote. It must answer and have caught up.
func (n *Node) Promote(ctx context.Context, id string) error {
	return n.change(ctx, func(r *raft.Raft, servers []raft.Server) (raft.IndexFuture, error) {
		s, err := find(servers, id)
		if err != nil || s.Suffrage == raft.Voter {
			return nil, err
		}
		if !n.alive(s.ID) {
			return nil, fmt.Errorf("%w: %s", ErrUnreachable, n.member(s).Label())
		}
		last := r.LastIndex()
		if behind := last - min(last, n.wire.contact(s.ID).last); behind > maxTrailing {
			return nil, fmt.Errorf("%w: %s lacks %d entries of the log", ErrBehind, n.member(s).Label(), behind)
		}
		return r.AddVoter(s.ID, s.Address, previous(ctx), enqueue), nil
	})
}

// Demote takes a node's vote. It goes on as a nonvoter. ErrMajority when too few voters would be left that answer.
func (n *Node) Demote(ctx context.Context, id string) error {
	return n.change(ctx, func(r *raft.Raft, servers []raft.Server) (raft.IndexFuture, error) {
		s, err := find(servers, id)
		if err != nil || s.Suffrage != raft.Voter {
			return nil, err
		}
		if err := n.spare(servers, s); err != nil {
			return nil, err
		}
		return r.DemoteVoter(s.ID, previous(ctx), enqueue), nil
	})
}

// Remove takes a node out of the cluster for good: the state remembers it (rota.State.WasRemoved), and it comes back only with an empty
// data directory, as another one. ErrMajority when too few voters would be left that answer. Its certificate is not this package's
// business.
func (n *Node) Remove(ctx context.Context, id string) error {
	if err := n.takeOut(ctx, id); err != nil {
		return err
	}
	if id == n.id.Node {
		return nil // who leads next sees it
	}
	// Its name is free at once. Who leads next does it when this node cannot.
	_, err := n.AppendHere(ctx, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: id, Gone: true}}})
	if errors.Is(err, ErrNotLeader) {
		err = nil
	}
	return err
}

// takeOut takes a node out of raft's configuration.
func (n *Node) takeOut(ctx context.Context, id string) error {
	err := n.change(ctx, func(r *raft.Raft, servers []raft.Server) (raft.IndexFuture, error) {
		s, err := find(servers, id)
		if err != nil {
			return nil, err
		}
		if err := n.spare(servers, s); err != nil {
			return nil, err
		}
		return r.RemoveServer(s.ID, previous(ctx), enqueue), nil
	})
	if err != nil {
		who := Member{ID: id}
		if s, ok := n.server(raft.ServerID(id)); ok {
			who = n.member(s)
		}
		return fmt.Errorf("remove %s: %w", who.Label(), err)
	}
	return nil
}

// Leave takes this node, which must lead, out of the cluster; another one leads afterwards. Any other node leaves by being removed on
// the leader.
func (n *Node) Leave(ctx context.Context) error { return n.Remove(ctx, n.id.Node) }

// Transfer hands leadership to a node, or to any that is fit when id is empty, and returns when this node no longer leads.
func (n *Node) Transfer(ctx context.Context, id string) error {
	if n.alone {
		return ErrAlone
	}
	if !n.appends.enter() {
		return ErrClosed
	}
	defer n.appends.leave()
	return n.transfer(ctx, id)
}

func (n *Node) transfer(ctx context.Context, id string) error {
	r := n.raft.Load()
	if r.State() != raft.Leader {
		return ErrNotLeader
	}
	servers := r.GetConfiguration().Configuration().Servers
	if len(voters(servers, "", n.id.Node)) == 0 {
		return fmt.Errorf("transfer: %w: no other node has a vote", ErrNoMember)
	}
	var f raft.Future
	if id == "" {
		f = r.LeadershipTransfer()
	} else {
		s, err := find(servers, id)
		switch {
		case err != nil:
			return fmt.Errorf("transfer: %w", err)
		case s.Suffrage != raft.Voter:
			return fmt.Errorf("transfer: %s has no vote: promote it first", n.member(s).Label())
		case !n.alive(s.ID):
			return fmt.Errorf("transfer: %w: %s", ErrUnreachable, n.member(s).Label())
		}
		f = r.LeadershipTransferToServer(s.ID, s.Address)
	}
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // raft answers within twice its election timeout
	select {
	case err := <-done:
		if err != nil && r.State() == raft.Leader {
			return fmt.Errorf("transfer: %w", raftError(err))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("transfer: not confirmed yet: %w", ctx.Err())
	}
}

var errNotIn = errors.New("not yet, or no longer, one of the cluster")

// tendEvery is how often a node looks whether the cluster knows it as it is.
const tendEvery = 10 * time.Second

// tend keeps true what the cluster knows of this node, and as leader takes out of the state who left.
func (n *Node) tend(ctx context.Context) {
	var pause waiting
	defer pause.stop()
	for {
		err := n.tendOnce(ctx)
		wait := tendEvery
		switch {
		case err == nil:
			n.trouble.over(n.log, troubleMember)
		case errors.Is(err, errNotIn) && n.Status().Removed:
			n.trouble.say(n.log, troubleMember, errors.New("the cluster goes on without this node, which was removed: it answers with what it knew; to let it join again, give it an empty data directory"))
		case errors.Is(err, errNotIn), errors.Is(err, ErrNoLeader), errors.Is(err, ErrNotLeader), errors.Is(err, ErrUnanswered), errors.Is(err, ErrClosed), ctx.Err() != nil:
			wait = time.Second
		default:
			n.trouble.say(n.log, troubleMember, err)
		}
		if at := n.twin.Load(); at != 0 && time.Since(time.Unix(0, at)) > time.Minute {
			n.twin.Store(0)
			n.trouble.over(n.log, troubleTwin)
		}
		_, changed := n.round.load()
		select {
		case <-changed:
		case <-pause.until(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) tendOnce(ctx context.Context) error {
	st := n.State() // before the servers, so that none of them is newer
	servers := n.raft.Load().GetConfiguration().Configuration().Servers
	me, err := find(servers, n.id.Node)
	if err != nil {
		return errNotIn
	}
	round, _ := n.round.load()
	if round == nil && n.raft.Load().State() == raft.Leader {
		return ErrNotLeader // a term begins with its EventLead
	}
	if me.Address != n.address() {
		if round == nil {
			return fmt.Errorf("the cluster knows this node at %s, but it is at %s: add it again with its new address", me.Address, n.address())
		}
		err := n.change(ctx, func(r *raft.Raft, _ []raft.Server) (raft.IndexFuture, error) {
			return r.AddVoter(me.ID, n.address(), 0, enqueue), nil
		})
		if err != nil {
			return err
		}
	}
	if want := (rota.Node{ID: n.id.Node, Name: n.name, Site: n.net.Site}); !slices.Contains(st.Nodes(), want) {
		if _, err := n.Append(ctx, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{want}}); err != nil {
			return err
		}
	}
	if round == nil {
		return nil
	}
	var gone []rota.Node
	for _, x := range st.Nodes() {
		if _, err := find(servers, x.ID); err != nil {
			gone = append(gone, rota.Node{ID: x.ID, Gone: true})
		}
	}
	if len(gone) == 0 {
		return nil
	}
	_, err = n.AppendHere(ctx, rota.Event{Kind: rota.EventNodes, Nodes: gone})
	return err
}
