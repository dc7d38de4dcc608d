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
	Healthy     bool          `json:"healthy"`           // there is a leader and no trouble
	Trouble     []string      `json:"trouble,omitempty"` // what is wrong although the node serves
}

// Status returns how the node is.
func (n *Node) Status() Status {
	state := n.raft.State()
	r, _ := n.round.load()
	s := Status{
		Cluster: n.id.Cluster, NodeID: n.id.Node, Node: n.name,
		Term: n.raft.CurrentTerm(), Leading: r != nil,
		Last: n.raft.LastIndex(), Commit: n.raft.CommitIndex(), Applied: n.State().Index(),
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
	// The index of the last snapshot is nowhere else to be had.
	s.Snapshot, _ = strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64)
	for _, v := range n.raft.GetConfiguration().Configuration().Servers {
		if v.Suffrage == raft.Voter {
			s.Voters++
		}
	}
	if state != raft.Leader {
		s.LastContact = -1
		if at := n.raft.LastContact(); !at.IsZero() {
			s.LastContact = time.Since(at)
		}
	}
	s.Healthy = s.Leader != "" && len(s.Trouble) == 0
	return s
}
