// Package raftadmin lets the stock raftadmin command (github.com/Jille/raftadmin) look after a cluster of rota: the gRPC service
// RaftAdmin with all its methods, and the gRPC health service in which quis.RaftLeader says whether this node leads, so that
// raftadmin --leader multi:///A,B,C finds the one that does. What the cluster is and how it changes is passed in as a Node.
//
// raftadmin speaks plaintext and proves nothing of who calls: whoever may open a connection on this machine may change the cluster.
// The Server therefore binds loopback addresses only and turns away callers from elsewhere, whatever the machine forwards.
//
// Three things differ from a server that wraps raft itself. A node's id is shown as the name of the node, as long as that tells the
// nodes apart, because rota's own ids are random; both are accepted. ApplyLog is refused: rota's log holds decisions that rota makes.
// And no answer keeps a caller waiting for ever, because raftadmin sets no deadline: operations are given 25 seconds, and Await
// answers after 30 at the latest.
package raftadmin
