package raftadmin

import (
	"context"
	"time"
)

// Server is a member of the cluster.
type Server struct {
	ID      string // raft's, never empty and unlike all others
	Name    string // what people call it; may be empty, or the name of another too
	Address string // where it is reached by the others, HOST:PORT
	Voter   bool
}

// State is what a node is in raft.
type State string

// The states.
const (
	Follower  State = "follower"
	Candidate State = "candidate"
	Leader    State = "leader"
	Shutdown  State = "shutdown"
)

// Status is how a node's raft is at the moment of the call.
type Status struct {
	State       State
	Term        uint64
	Applied     uint64            // index of the log's last entry that was applied
	Last        uint64            // index of the log's last entry
	Commit      uint64            // index of the last entry that a majority holds
	LastContact time.Time         // when the leader was last heard of; zero: never, or this node leads
	Stats       map[string]string // shown as they are; they add to what is above, or say it in raft's own words
}

// Op is a way to change the cluster.
type Op string

// The ways. The words are those of the log.
const (
	AddVoter    Op = "add-voter"    // or give a member a vote
	AddNonvoter Op = "add-nonvoter" // or tell where a member is now
	Demote      Op = "demote"
	Remove      Op = "remove"
	Transfer    Op = "transfer" // of the lead
)

// Change is a change of the cluster that an operator asks for.
type Change struct {
	Op Op
	// ID is a Server's ID for Demote, Remove and Transfer; empty for a Transfer to whoever is fittest. For AddVoter and AddNonvoter it
	// is what the operator gave, a name or an id that may not be a member's yet. At most 255 bytes without spaces.
	ID string
	// Address is where the node is, HOST:PORT, for AddVoter and AddNonvoter. For a Transfer it is where the operator believes ID to
	// be, and may be empty.
	Address string
	// PreviousIndex refuses the change when the members were changed by a later entry of the log than this; 0: they may have been.
	PreviousIndex uint64
}

// Node is this process's part in the cluster. Its methods are called from many goroutines at once. Those without a context return at
// once; those with one return soon after it ends, and their errors are shown to the operator.
type Node interface {
	Servers() []Server        // the members, as this node knows them, in the order to show
	Leader() (Server, bool)   // who leads, as far as this node knows
	Status() Status           // how this node is
	Changed() <-chan struct{} // closed when who leads may have changed; asked for before Status and Leader
	// Change returns the index of the log's entry that made the change, or 0 when none did.
	Change(ctx context.Context, c Change) (index uint64, err error)
	// Barrier returns when all that was in the log when it was called is applied, with its own index. Leader only.
	Barrier(ctx context.Context) (index uint64, err error)
	// VerifyLeader returns nil when a majority agrees that this node leads.
	VerifyLeader(ctx context.Context) error
	// Snapshot writes the state to disk and lets the log begin there.
	Snapshot(ctx context.Context) error
	// Shutdown begins to stop the process in order, which ends Run's context, and does not wait for it. It may be called again.
	Shutdown()
}
