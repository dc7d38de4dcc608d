package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/raftadmin"
)

// administered is the node as the raftadmin command sees it.
type administered struct{ n *node }

var _ raftadmin.Node = administered{}

func serverOf(m cluster.Member) raftadmin.Server {
	return raftadmin.Server{ID: m.ID, Name: m.Name, Address: m.Address, Voter: m.Voter}
}

func (a administered) Servers() []raftadmin.Server {
	var out []raftadmin.Server
	for _, m := range a.n.raft.Members() {
		out = append(out, serverOf(m))
	}
	return out
}

func (a administered) Leader() (raftadmin.Server, bool) {
	m, ok := a.n.raft.Leader()
	return serverOf(m), ok
}

func (a administered) Status() raftadmin.Status {
	s := a.n.raft.Status()
	out := raftadmin.Status{
		State: raftadmin.State(s.Raft), Term: s.Term, Applied: s.Applied, Last: s.Last, Commit: s.Commit, Stats: a.n.raft.Stats(),
	}
	if s.LastContact > 0 {
		out.LastContact = time.Now().Add(-s.LastContact)
	}
	return out
}

func (a administered) Changed() <-chan struct{} { return a.n.news.wait() }

func (a administered) Change(ctx context.Context, c raftadmin.Change) (uint64, error) {
	do := command{ID: c.ID, Address: c.Address, Previous: c.PreviousIndex, Author: "raftadmin"}
	switch c.Op {
	case raftadmin.AddVoter:
		do.Op, do.Voter = api.OpAdd, true
	case raftadmin.AddNonvoter:
		do.Op = api.OpAdd
	case raftadmin.Demote:
		do.Op = api.OpDemote
	case raftadmin.Remove:
		do.Op = api.OpRemove
	case raftadmin.Transfer:
		do.Op = api.OpTransfer
	default:
		return 0, fmt.Errorf("%s: %w", c.Op, errors.ErrUnsupported)
	}
	done, err := a.n.command(ctx, do)
	return done.Members, err
}

func (a administered) Barrier(ctx context.Context) (uint64, error) { return a.n.raft.Barrier(ctx) }

func (a administered) VerifyLeader(ctx context.Context) error {
	return a.n.raft.Confirm(ctx, a.n.raft.Status().Term)
}

func (a administered) Snapshot(ctx context.Context) error { return a.n.raft.Compact(ctx) }

func (a administered) Shutdown() { a.n.quit() }

// openRaftadmin makes the listener for the raftadmin command, if it is configured.
func (n *node) openRaftadmin(listen string) error {
	if listen == "" {
		return nil
	}
	var err error
	n.admin, err = raftadmin.New(raftadmin.Options{Listen: listen, Node: administered{n}, Log: n.log.With("room", "raftadmin")})
	if err != nil {
		return err
	}
	return n.admin.Listen(context.Background())
}
