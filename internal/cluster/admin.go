package cluster

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
)

// MembersIndex returns the index of the log's entry that last changed the members, as far as this node knows; 0: it does not know.
func (n *Node) MembersIndex() uint64 { return n.membersAt.Load() }

type previousKey struct{}

// WithMembersIndex returns a context with which a change of members is refused when an entry after index has changed them, so that
// nobody undoes what somebody else has just done.
func WithMembersIndex(ctx context.Context, index uint64) context.Context {
	return context.WithValue(ctx, previousKey{}, index)
}

// previous returns the index of WithMembersIndex; 0: it does not matter.
func previous(ctx context.Context) uint64 {
	index, _ := ctx.Value(previousKey{}).(uint64)
	return index
}

// Barrier returns once everything that was ordered before it is in this node's state, which must lead, and the index up to which it is.
func (n *Node) Barrier(ctx context.Context) (uint64, error) {
	err := n.wait(ctx, func(r *raft.Raft) raft.Future { return r.Barrier(enqueue) })
	return n.raft.Load().AppliedIndex(), err
}

// Compact writes the state as a snapshot and lets the log begin there, as the node does by itself from time to time.
func (n *Node) Compact(ctx context.Context) error {
	err := n.wait(ctx, func(r *raft.Raft) raft.Future { return r.Snapshot() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// Stats returns raft's own figures, for people.
func (n *Node) Stats() map[string]string { return n.raft.Load().Stats() }

func (n *Node) wait(ctx context.Context, ask func(*raft.Raft) raft.Future) error {
	if !n.appends.enter() {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() { // ends when raft answers, which Close waits for
		defer n.appends.leave()
		done <- ask(n.raft.Load()).Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return raftError(err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
