package cluster

import (
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// Status is how the node and its raft are, at the moment of the call.
type Status struct {
	Cluster  string `json:"cluster"` // id, made once
	NodeID   string `json:"node_id"` // id, made once
	Node     string `json:"node"`    // name
	Raft     string `json:"raft"`    // leader | follower | candidate | shutdown
	Term     uint64 `json:"term"`
	Leader   string `json:"leader,omitempty"` // name of the leader; empty: none
	Leading  bool   `json:"leading"`          // this node leads and the state knows it
	Last     uint64 `json:"last_index"`       // of the raft log
	Commit   uint64 `json:"commit_index"`     // what a majority holds
	Applied  uint64 `json:"applied_index"`    // of the state's last event; entries that are no events lie between
	Snapshot uint64 `json:"snapshot_index"`   // of the last snapshot; 0: none

	LastContact time.Duration `json:"last_contact_ns"` // since the leader was heard of; 0 on the leader, -1 never
	Voters      int           `json:"voters"`
	Voter       bool          `json:"voter"`
	Removed     bool          `json:"removed,omitempty"` // the cluster goes on without this node
	Behind      uint64        `json:"behind"`            // entries that are known to be committed and are not in the state yet
	Since       time.Time     `json:"since,omitzero"`    // the state may be older than the cluster's since then; zero: it is current
	Healthy     bool          `json:"healthy"`           // the state is current, there is a leader and no trouble
	Trouble     []string      `json:"trouble,omitempty"` // what is wrong although the node serves
}

// Status returns how the node is.
func (n *Node) Status() Status {
	k := n.raft.Load()
	state := k.State()
	r, _ := n.round.load()
	s := Status{
		Cluster: n.id.Cluster, NodeID: n.id.Node, Node: n.name,
		Term: k.CurrentTerm(), Leading: r != nil,
		Last: k.LastIndex(), Commit: k.CommitIndex(), Applied: n.State().Index(),
		Trouble: n.trouble.list(),
	}
	switch state {
	case raft.Leader:
		s.Raft, s.Leader = "leader", n.name
	case raft.Candidate:
		s.Raft = "candidate"
	case raft.Follower:
		s.Raft = "follower"
	case raft.Shutdown:
		s.Raft = "shutdown"
	}
	found, known := false, 0
	// The index of the last snapshot is nowhere else to be had.
	s.Snapshot, _ = strconv.ParseUint(k.Stats()["last_snapshot_index"], 10, 64)
	for _, v := range k.GetConfiguration().Configuration().Servers {
		if v.Suffrage == raft.Voter {
			s.Voters++
		}
		if string(v.ID) == n.id.Node {
			s.Voter, found = v.Suffrage == raft.Voter, true
		}
		known++
	}
	s.Removed = known > 0 && !found || n.State().WasRemoved(n.id.Node)
	if state != raft.Leader {
		s.LastContact = -1
		if at := k.LastContact(); !at.IsZero() {
			s.LastContact = time.Since(at)
		}
	}
	if state != raft.Leader {
		if m, ok := n.Leader(); ok {
			s.Leader = m.Label()
		}
		n.staleness(&s, k)
	}
	s.Healthy = s.Leader != "" && s.Since.IsZero() && len(s.Trouble) == 0
	return s
}

// staleness says whether a node that does not lead knows that its state is the cluster's, and if not, since when.
func (n *Node) staleness(s *Status, k *raft.Raft) {
	if c := n.wire.committed(); c > k.AppliedIndex() {
		s.Behind = c - k.AppliedIndex()
	}
	at := k.LastContact()
	switch {
	case at.IsZero():
		s.Since = n.State().At() // nothing was heard since this process began
		if s.Since.IsZero() {
			s.Since = n.begun
		}
	case s.Leader == "" || s.Removed || s.LastContact > n.timing.Heartbeat:
		s.Since = at
	case s.Behind > maxTrailing || n.State().Index() == 0:
		s.Since = n.State().At()
		if s.Since.IsZero() {
			s.Since = n.begun
		}
	}
}
