package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// command is what an operator, or a node that waits, wants of the cluster.
type command struct {
	Op      api.ClusterOp `json:"op"`
	ID      string        `json:"id,omitempty"`
	Name    string        `json:"name,omitempty"`
	Address string        `json:"address,omitempty"`
	Voter   bool          `json:"voter,omitempty"`
	Author  string        `json:"author,omitempty"`

	Previous uint64 `json:"previous,omitempty"` // refused when a later entry of the log changed the members; 0: that does not matter
}

// changed is what became of a command.
type changed struct {
	Member  cluster.Member `json:"member"`
	Index   uint64         `json:"index"`   // of the newest event by then
	Members uint64         `json:"members"` // index of the entry that changed the members last
}

const (
	changeWithin = 50 * time.Second // for a change of members: a new voter has to catch up first
	leaderWithin = 10 * time.Second // for a leader to be found: elections take less
)

// command does what an operator wants, here or on the leader.
func (n *node) command(ctx context.Context, c command) (changed, error) {
	if n.net == nil {
		return changed{}, cluster.ErrAlone
	}
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if c.Op == api.OpLeave {
		c.ID = n.raft.Status().NodeID
	}
	for begun := time.Now(); ; {
		changes := n.news.wait()
		leader, ok := n.raft.Leader()
		var out changed
		var err error
		switch {
		case !ok:
			err = cluster.ErrNoLeader
		case leader.Self:
			out, err = n.commandFor(ctx, link.Identity{}, c)
		default:
			err = n.net.call(ctx, leader.ID, http.MethodPost, commandPath, c, &out)
		}
		if !errors.Is(err, cluster.ErrNotLeader) && !errors.Is(err, cluster.ErrNoLeader) || time.Since(begun) > leaderWithin {
			return out, err
		}
		if e := pause(ctx, 300*time.Millisecond, changes); e != nil {
			return out, err
		}
	}
}

// commandFor does on the leader what an operator wants.
func (n *node) commandFor(ctx context.Context, from link.Identity, c command) (changed, error) {
	m, err := n.memberOf(ctx, c)
	if err != nil {
		return changed{}, err
	}
	if c.Previous != 0 {
		ctx = cluster.WithMembersIndex(ctx, c.Previous)
	}
	switch c.Op {
	case api.OpAdd:
		if c.Voter {
			err = n.raft.AddVoter(ctx, m)
		} else {
			err = n.raft.AddNonvoter(ctx, m)
		}
	case api.OpPromote:
		err = n.raft.Promote(ctx, m.ID)
	case api.OpDemote:
		err = n.raft.Demote(ctx, m.ID)
	case api.OpRemove, api.OpLeave:
		if m.Self && n.raft.Status().Voters > 1 {
			// Whoever leads next takes this node out, so that nobody has to notice its silence first.
			if err = n.raft.Spare(m.ID); err == nil {
				err = n.raft.Transfer(ctx, "")
			}
			if err == nil {
				return changed{}, cluster.ErrNotLeader
			}
			break
		}
		err = n.raft.Remove(ctx, m.ID)
	case api.OpTransfer:
		if !m.Self { // else it is as wanted
			err = n.raft.Transfer(ctx, m.ID)
		}
	default:
		err = fmt.Errorf("%q is not known to this node: upgrade it first", c.Op)
	}
	n.log.Info("cluster command", "op", c.Op, "node", m.Label(), "address", m.Address, "author", c.Author, "by", from.String(), "error", err)
	if err != nil {
		return changed{}, err
	}
	if from.ID != m.ID { // who leaves hears first that it may
		n.net.port.Recheck()
	}
	for _, x := range n.raft.Members() {
		if x.ID == m.ID {
			m = x
		}
	}
	return changed{m, n.raft.State().Index(), n.raft.MembersIndex()}, nil
}

// memberOf finds out whom a command is about. Who is to be added is asked who it is, so that a wrong address adds nobody.
func (n *node) memberOf(ctx context.Context, c command) (cluster.Member, error) {
	if c.Op == api.OpTransfer && c.ID == "" {
		return cluster.Member{}, nil
	}
	who := cmp.Or(c.ID, c.Name)
	for _, m := range n.raft.Members() {
		if who != "" && (m.ID == who || m.Name == who) {
			if c.Op == api.OpAdd && c.Address != "" {
				m.Address = c.Address
			}
			return m, nil
		}
	}
	if c.Op != api.OpAdd {
		return cluster.Member{}, fmt.Errorf("%w: %s", cluster.ErrNoMember, rota.CleanReason("%s", who))
	}
	var d description
	if err := n.net.call(ctx, c.Address, http.MethodGet, nodePath, nil, &d); err != nil {
		return cluster.Member{}, fmt.Errorf("%w: nobody at %s says who it is, so nothing was added: %v", cluster.ErrUnreachable, c.Address, err)
	}
	if who != "" && who != d.ID && who != d.Name {
		return cluster.Member{}, fmt.Errorf("%w: the node at %s is %s (%s), not %s", api.ErrConflict, c.Address, d.Name, d.ID, rota.CleanReason("%s", who))
	}
	return cluster.Member{ID: d.ID, Name: d.Name, Site: d.Site, Address: c.Address}, nil
}

// takeIn takes in a node that waits for it and has a certificate of this cluster. Any node may be asked.
func (n *node) takeIn(ctx context.Context, from link.Identity, c command) (changed, error) {
	if from.ID != "" && from.ID != c.ID || from.ID == "" && from.Name != c.Name {
		return changed{}, fmt.Errorf("%s asks for another node, %s", from, rota.CleanReason("%s", c.ID))
	}
	if from.ID == "" && slices.ContainsFunc(n.raft.Members(), func(m cluster.Member) bool { return m.ID == c.ID && m.Name != c.Name }) {
		return changed{}, fmt.Errorf("%s asks for another node, %s (%s)", from, rota.CleanReason("%s", c.Name), rota.CleanReason("%s", c.ID))
	}
	if c.ID == "" || c.Name == "" || c.Address == "" {
		return changed{}, errors.New("a node that asks to be taken in needs an id, a name and an address")
	}
	c.Op, c.Author = api.OpAdd, c.Name
	return n.command(ctx, c)
}

// askIn asks the nodes that are known to take this one in, until it is: with a vote, unless it is to have none. Who asked in vain may be in
// without one all the same, when the answer was lost or whoever led had no time to wait until this node had caught up. A node that is in
// when it starts asks for nothing: its vote may have been taken on purpose.
func (n *node) askIn(ctx context.Context) error {
	w := n.net
	inVain := false
	for wait := time.Second; ; wait = min(2*wait, 10*time.Second) {
		me, in := n.raft.Status(), len(n.raft.Members()) > 0
		if me.Removed || me.Voter || in && !inVain {
			n.waits.Store(nil)
			<-ctx.Done()
			return nil
		}
		h, err := w.hosts()
		if err != nil {
			return err
		}
		if in && h.Nonvoter {
			<-ctx.Done()
			return nil
		}
		var errs []error
		for _, at := range h.Addresses {
			err := w.call(ctx, at, http.MethodPost, joinPath, command{
				ID: me.NodeID, Name: me.Node, Address: w.address, Voter: !h.Nonvoter,
			}, nil)
			if err == nil {
				n.log.Info("the cluster took this node in", "by", at, "voter", !h.Nonvoter)
				errs = nil
				break
			}
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
		}
		inVain = len(errs) > 0
		switch {
		case len(h.Addresses) == 0:
			text := "this node is of no cluster yet, and nothing says whom to ask: add it on another node, with the address " + w.address + ", or set cluster.join"
			n.waits.Store(&text)
			if wait == time.Second {
				n.log.Info("this node waits until it is added to a cluster", "address", w.address)
			}
		case inVain:
			text := "no node of the cluster took this one in yet; it asks again: " + rota.CleanReason("%v", errors.Join(errs...))
			n.waits.Store(&text)
			n.log.Warn("no node of the cluster took this one in yet; it asks again", "in", wait, "error", errors.Join(errs...))
		}
		if err := pause(ctx, wait, nil); err != nil {
			return nil
		}
	}
}

// operator is what the API lets administrators do with the cluster.
type operator struct{ n *node }

var _ api.Operator = operator{}

// errorsOf turns the errors of the cluster into those that the API knows.
func errorsOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrNoMember):
		return fmt.Errorf("%w: %w", api.ErrNoSuch, err)
	case errors.Is(err, cluster.ErrMajority), errors.Is(err, cluster.ErrTwins), errors.Is(err, cluster.ErrForeign):
		return fmt.Errorf("%w: %w", api.ErrConflict, err)
	case errors.Is(err, cluster.ErrBehind), errors.Is(err, cluster.ErrUnreachable):
		return fmt.Errorf("%w: %w", api.ErrBusy, err)
	case errors.Is(err, cluster.ErrNotLeader), errors.Is(err, cluster.ErrNoLeader), errors.Is(err, cluster.ErrClosed):
		return fmt.Errorf("%w: %w", api.ErrNoLeader, err)
	case errors.Is(err, cluster.ErrUnanswered):
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err) // it may have happened
	}
	return err
}

// Token makes a join token. Its addresses are this node's: the records of tokens stay where they were made.
func (o operator) Token(ctx context.Context, r api.TokenRequest) (api.TokenReply, error) {
	w := o.n.net
	if w.tokens == nil {
		return api.TokenReply{}, fmt.Errorf("%w: this cluster's certificates are made elsewhere (cluster.tls), so there is nothing that a token could give", api.ErrConflict)
	}
	if o.n.raft.Status().Removed {
		return api.TokenReply{}, fmt.Errorf("%w: this node was removed, so whoever came with its token would be of no cluster: ask another node", api.ErrConflict)
	}
	role, name := link.Node, ""
	if r.Role == string(link.Agent) {
		role, name = link.Agent, r.Name
		if !o.n.isAgent(r.Name) {
			return api.TokenReply{}, fmt.Errorf("%w: agent %s is not accepted: add it to vantage.agents.accept first", api.ErrConflict, r.Name)
		}
	}
	t, err := w.tokens.Issue(ctx, link.TokenRequest{
		Role: role, Name: name, Life: r.Life, Uses: r.Uses, Addresses: []string{w.address}, Pin: w.creds.Pin(), Note: r.Author,
	})
	if err != nil {
		return api.TokenReply{}, err
	}
	next := "There: `rota cluster join TOKEN`, then `rota run`. Better than in an argument: in a file, as @FILE, or in " + joinTokenEnv + "."
	if role == link.Agent {
		next = "There: `rota agent --name " + r.Name + " --join @FILE`, with the token in FILE or in " + joinTokenEnv + "."
	}
	return api.TokenReply{Token: t.Reveal(), ID: t.ID, Expires: t.Expires, Notes: []string{next}}, nil
}

// Tokens lists the join tokens of this node.
func (o operator) Tokens(ctx context.Context) ([]api.TokenView, error) {
	if o.n.net.tokens == nil {
		return nil, nil
	}
	all, err := o.n.net.tokens.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.TokenView
	for _, t := range all {
		v := api.TokenView{
			ID: t.ID, Role: string(t.Role), Name: t.Name, Created: t.Created, Expires: t.Expires, Uses: t.Uses, Revoked: t.Revoked, Note: t.Note,
			Node: o.n.name, Used: []api.TokenUse{},
		}
		for _, u := range t.Used {
			v.Used = append(v.Used, api.TokenUse{By: u.By, At: u.At})
		}
		out = append(out, v)
	}
	return out, nil
}

// Revoke ends a join token.
func (o operator) Revoke(ctx context.Context, id, author string) error {
	if o.n.net.tokens == nil {
		return api.ErrNoSuch
	}
	if err := o.n.net.tokens.Revoke(ctx, id); err != nil {
		return fmt.Errorf("%w: %w", api.ErrNoSuch, err)
	}
	o.n.log.Info("join token revoked", "id", id, "author", author)
	return nil
}

// Save writes the state.
func (o operator) Save(_ context.Context, w io.Writer) error { return o.n.raft.Save(w) }

// restoreFiles are states that are being restored, in the data directory.
const restoreFiles = "restore-*.tmp"

// Restore puts the configuration and the overrides of a saved state in force.
func (o operator) Restore(ctx context.Context, r io.Reader, foreign bool, author string) (uint64, error) {
	f, err := os.CreateTemp(o.n.dir, restoreFiles)
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	e, err := o.n.raft.RestoreFrom(ctx, f.Name(), foreign, author)
	return e.Index, errorsOf(err)
}

// verifyWithin bounds how long a node is waited for.
const verifyWithin = 10 * time.Second

// ask has every member describe itself, at the same time.
func (n *node) ask(ctx context.Context) (members []cluster.Member, said []description, errs []error) {
	members = n.raft.Members()
	said, errs = make([]description, len(members)), make([]error, len(members))
	ctx, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			begun := time.Now()
			if m.Self {
				said[i], errs[i] = n.describe(ctx, link.Identity{}, struct{}{})
			} else {
				errs[i] = n.net.call(ctx, m.ID, http.MethodGet, nodePath, nil, &said[i])
			}
			said[i].Offset = said[i].Now.Sub(begun.Add(time.Since(begun) / 2))
		})
	}
	wg.Wait()
	return members, said, errs
}

// Change does what an administrator wants, here or on the leader.
func (o operator) Change(ctx context.Context, c api.ClusterChange) (api.ClusterChanged, error) {
	n := o.n
	done, err := n.command(ctx, command{
		Op: c.Op, ID: c.Node, Address: c.Address, Voter: c.Voter, Author: c.Author,
	})
	if err != nil {
		return api.ClusterChanged{}, errorsOf(err)
	}
	out := api.ClusterChanged{Op: c.Op, Node: done.Member.Label(), Members: n.membersView()}
	if c.Op == api.OpTransfer {
		_ = pause(ctx, electionPause, n.raft.LeaderChanged()) // the new leader is known here a moment later
	}
	if m, ok := n.raft.Leader(); ok {
		out.Leader = m.Label()
	}
	if c.Op == api.OpRemove || c.Op == api.OpLeave {
		out.Notes = []string{"It comes back only with an empty data directory. If it was lost to somebody else, replace the cluster's certificates, too."}
	}
	return out, nil
}

// electionPause is how long a transfer is given to show.
const electionPause = 2 * time.Second

func (n *node) membersView() []api.ClusterMember {
	out := []api.ClusterMember{}
	for _, m := range n.raft.Members() {
		if n.net == nil {
			m.Address = "" // nobody reaches a node alone
		}
		out = append(out, api.ClusterMember(m))
	}
	return out
}

// Clocks further apart than clockBound, and certificates that end sooner than expiryBound, are problems.
const (
	clockBound  = 2 * time.Second
	expiryBound = 30 * 24 * time.Hour
)

// Verify asks every member how it is and compares their states.
func (o operator) Verify(ctx context.Context) (api.ClusterVerification, error) {
	members, said, errs := o.n.ask(ctx)
	v := api.ClusterVerification{Problems: []string{}, Members: []api.MemberVerification{}}
	problem := func(format string, args ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, args...)) }
	digests := map[uint64]map[string][]string{} // by index and digest, who has it
	newest := uint64(0)
	for i := range members {
		if d := said[i]; errs[i] == nil {
			newest = max(newest, d.Status.Applied)
			if digests[d.Index] == nil {
				digests[d.Index] = map[string][]string{}
			}
			digests[d.Index][d.Digest] = append(digests[d.Index][d.Digest], members[i].Label())
		}
	}
	leaders := map[string]bool{}
	for i, m := range members {
		d := said[i]
		x := api.MemberVerification{ID: m.ID, Name: m.Name, Voter: m.Voter, Answers: errs[i] == nil}
		if errs[i] != nil {
			x.Error = errs[i].Error()
			problem("%s does not answer: %v", m.Label(), errs[i])
			v.Members = append(v.Members, x)
			continue
		}
		at := digests[d.Index]
		together := 0
		for _, who := range at {
			together += len(who)
		}
		x.Index, x.Behind, x.Expires, x.Version = d.Status.Applied, newest-d.Status.Applied, d.Expires, d.Version
		if !m.Self {
			x.Offset = d.Offset
		}
		if together > 1 {
			x.Compared, x.Same = d.Index, 2*len(at[d.Digest]) > together // what most hold is right
			if !x.Same {
				problem("%s holds another state than others at event %d: take it out and let it join anew with an empty data directory", m.Label(), d.Index)
			}
		}
		switch {
		case d.ID != m.ID:
			problem("who answers as %s is %s", m.Label(), d.ID)
		case d.Status.Removed:
			problem("%s believes that it was removed", m.Label())
		}
		if x.Offset.Abs() > clockBound {
			problem("the clock of %s is %v from this node's: set it by NTP", m.Label(), x.Offset.Round(time.Millisecond))
		}
		if left := time.Until(d.Expires); left < expiryBound {
			problem("the certificate of %s ends in %v", m.Label(), left.Round(time.Hour))
		}
		for _, t := range d.Status.Trouble {
			problem("%s: %s", m.Label(), t)
		}
		for _, t := range d.Failing {
			problem("%s", t)
		}
		if d.Status.Leading {
			leaders[m.Label()] = true
		}
		v.Members = append(v.Members, x)
	}
	switch len(leaders) {
	case 0:
		problem("no node that answers leads")
	case 1:
	default:
		problem("more than one node says that it leads: ask again, one of them is about to learn otherwise")
	}
	v.OK = len(v.Problems) == 0
	return v, nil
}

// joinFile keeps whom a node that joined may ask to be taken in.
const joinFile = "join.json"

// hosts is whom a node asks to be taken in, and how.
type hosts struct {
	Addresses []string `json:"addresses"`
	Nonvoter  bool     `json:"nonvoter,omitempty"`
}

// hosts returns the nodes that the join token led to, and those of cluster.join.
func (w *network) hosts() (hosts, error) {
	h, err := readHosts(filepath.Join(w.dir, linkDir, joinFile))
	if err != nil && len(w.cfg.Join) == 0 {
		return h, err
	}
	for _, at := range w.cfg.Join {
		if at != w.address && !slices.Contains(h.Addresses, at) {
			h.Addresses = append(h.Addresses, at)
		}
	}
	return h, nil
}
