package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Network makes a node one of many. This package opens no socket: what travels does so through these functions.
type Network struct {
	// Address is where the others reach this node. It is what raft's configuration holds.
	Address string

	// Transport makes raft's transport, once it is known who the node is. Whoever speaks through it must have proven to be the node
	// that it says it is. The node closes the transport when it closes, if it has a Close method.
	Transport func(Identity) (raft.Transport, error)

	// Bootstrap begins a new cluster of this one node where the data directory is empty. With anything in it, it does nothing. Without
	// it an empty data directory waits until a leader takes the node in.
	Bootstrap bool

	// Cluster is the id of the cluster the node belongs to, for instance as its certificate says. Another one in the data directory
	// is refused. A node that begins without Bootstrap and without Join needs it.
	Cluster string

	// Site is where the node stands.
	Site string

	// Forward hands an event to the leader, whose side calls AppendHere. It returns ErrUnanswered, wrapped or not, when it cannot say
	// whether the leader took the event, and ErrNotLeader when that node does not lead; all other errors are the leader's last word.
	// Append tries again after those two, with the same event id, so that an event whose answer was lost counts once. Nil: Append
	// works on the leader only.
	Forward func(ctx context.Context, leader Member, e rota.Event) (rota.Event, error)

	// Fit asks a node whether it could do what a leader does, for instance reach the DNS; nil when it says that it can. It is asked for
	// fitWithin at most. Nil: every node is taken to be fit.
	Fit func(ctx context.Context, m Member) error

	Timing Timing
}

// Timing is raft's. The zero value suits nodes on several continents: a new leader is there in less than five seconds.
type Timing struct {
	Heartbeat time.Duration // a follower that heard nothing for this long, up to twice, stands for election; 0: 1.5 s
	Election  time.Duration // an election that took this long, up to twice, is begun anew; 0: Heartbeat
	Lease     time.Duration // a leader that did not hear a majority for this long stops leading; 0: 4/5 of Heartbeat
	Commit    time.Duration // followers learn what is committed at least this often, give or take as much; 0: 50 ms
}

// DefaultHeartbeat is the Heartbeat of a Timing that does not say. Five lost round trips of 300 ms fit in it.
const DefaultHeartbeat = 1500 * time.Millisecond

func (t Timing) orDefault() Timing {
	t.Heartbeat = cmp.Or(t.Heartbeat, DefaultHeartbeat)
	t.Election = max(cmp.Or(t.Election, t.Heartbeat), t.Heartbeat)
	t.Lease = min(cmp.Or(t.Lease, t.Heartbeat*4/5), t.Heartbeat)
	t.Commit = cmp.Or(t.Commit, 50*time.Millisecond)
	return t
}

// contact is what this node, as leader, last heard of another.
type contact struct {
	at   time.Time
	last uint64 // index of the other's last log entry
	term uint64 // in which it followed
	call uint64 // number of the newest call that it answered so
}

// guarded is the transport as raft sees it: it drops what would break raft or its promises, and remembers who answered.
//
// raft believes whoever speaks on its port, and panics over a configuration that it cannot decode. Who speaks is proven below, by the
// transport. But two processes with one node id, such as a copied disk, both have proof; they would hold two votes.
type guarded struct {
	raft.Transport
	node     *Node
	consumer chan raft.RPC
	closed   chan struct{}
	once     sync.Once

	mu     sync.Mutex // guards what follows
	heard  map[raft.ServerID]contact
	commit uint64 // the highest index that a leader said is committed
	calls  uint64 // that this node, as leader, has begun
}

var _ raft.WithPreVote = (*guarded)(nil)

func (n *Node) guardTransport(t raft.Transport) *guarded {
	return &guarded{
		Transport: t, node: n, consumer: make(chan raft.RPC), closed: make(chan struct{}), heard: map[raft.ServerID]contact{},
	}
}

// run moves what arrives to raft, until the node closes.
func (g *guarded) run() {
	for {
		select {
		case rpc := <-g.Transport.Consumer():
			if err := g.check(rpc); err != nil {
				rpc.Respond(nil, err)
				continue
			}
			select {
			case g.consumer <- rpc:
			case <-g.closed:
				return
			}
		case <-g.closed:
			return
		}
	}
}

func (g *guarded) Consumer() <-chan raft.RPC { return g.consumer }

func (g *guarded) SetHeartbeatHandler(f func(raft.RPC)) {
	g.Transport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if err := g.check(rpc); err != nil {
			rpc.Respond(nil, err)
			return
		}
		f(rpc)
	})
}

func (g *guarded) Close() error {
	var err error
	g.once.Do(func() {
		close(g.closed)
		if c, ok := g.Transport.(raft.WithClose); ok {
			err = c.Close()
		}
	})
	return err
}

// check refuses what raft must not see.
func (g *guarded) check(rpc raft.RPC) error {
	c, ok := rpc.Command.(raft.WithRPCHeader)
	if !ok {
		return fmt.Errorf("a message of type %T", rpc.Command)
	}
	h := c.GetRPCHeader()
	if err := g.node.oneOfEach(raft.ServerID(h.ID), g.DecodePeer(h.Addr)); err != nil {
		return err
	}
	switch c := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		for _, l := range c.Entries {
			if l == nil {
				return errors.New("an entry that is none")
			}
			if l.Type == raft.LogConfiguration {
				if err := readable(l.Data); err != nil {
					return err
				}
			}
		}
		g.mu.Lock()
		g.commit = max(g.commit, c.LeaderCommitIndex)
		g.mu.Unlock()
	case *raft.InstallSnapshotRequest:
		if c.SnapshotVersion < 1 {
			return errors.New("a snapshot of a version that rota never wrote")
		}
		return readable(c.Configuration)
	}
	return nil
}

// readable reports whether raft can decode a configuration; it panics when not.
func readable(b []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a configuration that cannot be read: %v", p)
		}
	}()
	raft.DecodeConfiguration(b)
	return nil
}

// oneOfEach refuses who bears the id of this node, or that of another at another address.
func (n *Node) oneOfEach(id raft.ServerID, at raft.ServerAddress) error {
	var err error
	switch known, ok := n.server(id); {
	case id == raft.ServerID(n.id.Node):
		err = fmt.Errorf("%w: %s has the id %s of this node; was its disk copied?", ErrTwins, at, id)
	case ok && known.Address != at:
		err = fmt.Errorf("%w: node %s is at %s, but %s says to be it; was its disk copied? if it moved, add it again with its new address",
			ErrTwins, id, known.Address, at)
	default:
		return nil
	}
	n.trouble.say(n.log, troubleTwin, errors.New(strings.TrimPrefix(err.Error(), ErrTwins.Error()+": ")))
	n.twin.Store(time.Now().UnixNano())
	return err
}

// server returns a server of raft's newest configuration.
func (n *Node) server(id raft.ServerID) (raft.Server, bool) {
	r := n.raft.Load()
	if r == nil {
		return raft.Server{}, false
	}
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.ID == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// begin numbers a call.
func (g *guarded) begin() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	return g.calls
}

// begun returns the number of the newest call.
func (g *guarded) begun() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls
}

func (g *guarded) answered(id raft.ServerID, last, term, call uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heard[id] = contact{time.Now(), last, term, max(call, g.heard[id].call)}
}

func (g *guarded) contact(id raft.ServerID) contact {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heard[id]
}

func (g *guarded) committed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.commit
}

func (g *guarded) AppendEntries(id raft.ServerID, to raft.ServerAddress, a *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	call := g.begin()
	err := g.Transport.AppendEntries(id, to, a, r)
	if err == nil && r.Term == a.Term {
		g.answered(id, r.LastLog, a.Term, call)
	}
	return err
}

func (g *guarded) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, a *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	call := g.begin()
	err := g.Transport.InstallSnapshot(id, to, a, r, data)
	if err == nil && r.Success {
		g.answered(id, a.LastLogIndex, a.Term, call)
	}
	return err
}

func (g *guarded) RequestPreVote(id raft.ServerID, to raft.ServerAddress, a *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	if t, ok := g.Transport.(raft.WithPreVote); ok {
		return t.RequestPreVote(id, to, a, r)
	}
	return errors.New("the transport knows no pre-vote")
}
