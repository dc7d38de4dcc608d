package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Backup is what a saved state is.
type Backup struct {
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"` // id of who wrote it
	Index     uint64    `json:"index"`
	Term      uint64    `json:"term"`
	At        time.Time `json:"at"` // of the last event in it
	Serial    uint32    `json:"serial"`
	Services  int       `json:"services"`
	Overrides int       `json:"overrides"`
	Nodes     int       `json:"nodes"`
}

// Save writes the newest state of this node, in the form of the state file.
func (n *Node) Save(w io.Writer) error {
	v, _ := n.view.load()
	return n.saved(v).write(w)
}

// Inspect reads a file that Save wrote, or a state file, whole, and says what is in it.
func Inspect(path string) (Backup, error) {
	s, err := loadState(path)
	if err != nil {
		return Backup{}, fmt.Errorf("%s: %w", path, err)
	}
	return s.backup(), nil
}

func (s *saved) backup() Backup {
	return Backup{
		Cluster: s.header.Cluster, Node: s.header.Node, Index: s.header.Index, Term: s.header.Term, At: s.state.At(),
		Serial: s.state.Serial(), Services: len(s.state.Services()), Overrides: len(s.state.Overrides()), Nodes: len(s.state.Nodes()),
	}
}

// RestoreFrom makes the configuration and the overrides of the cluster those of a file that Save wrote, as one event: verdicts stay what
// is measured now, and serials and terms go on growing. Overrides that have expired are left out; nodes that the file knows as removed are, beside those that are
// known now. A freeze in the file freezes, the zones that were released then stay released, and hosts that
// had registered then are taken in beside those of today. A file of another cluster is refused
// with ErrForeign, unless foreign says that it is meant.
func (n *Node) RestoreFrom(ctx context.Context, path string, foreign bool, actor string) (rota.Event, error) {
	s, err := loadState(path)
	if err != nil {
		return rota.Event{}, fmt.Errorf("%s: %w", path, err)
	}
	if s.header.Cluster != n.id.Cluster && !foreign {
		return rota.Event{}, fmt.Errorf("%s is %w: %s; this is %s", path, ErrForeign, s.header.Cluster, n.id.Cluster)
	}
	spec := s.state.Spec()
	e := rota.Event{
		Kind: rota.EventRestore, At: n.Now(), Actor: actor, Spec: &spec,
		Reason: fmt.Sprintf("restored from event %d of %s", s.header.Index, s.state.At().Format(time.RFC3339)),
	}
	if s.header.Cluster == n.id.Cluster {
		e.Removed = s.state.Removed()
	}
	e.Frozen, e.Instructed = s.state.Frozen(), s.state.Instructed()
	for _, r := range s.state.Registrations() {
		e.Registrations = append(e.Registrations, r.Registration)
	}
	for _, o := range s.state.Overrides() {
		if o.At(e.At) {
			e.Overrides = append(e.Overrides, o)
		}
	}
	return n.Append(ctx, e)
}

// Recover makes the node of a data directory, which must not be running, the only one of its cluster, with all it holds: for the day on
// which a majority of the voters is gone for good. Events that were under way count as ordered. The other nodes must never come back:
// together they might still be a majority, and there would be two clusters. They join again with empty data directories. Each other node
// that the log names is handed to gone, unless that is nil; its error is Recover's. Recover does nothing to the directory when it fails.
func Recover(o Options, gone func(Member) error) (Backup, error) {
	address := o.Node
	if o.Network != nil {
		address = o.Network.Address
	}
	n := newNode(o)
	defer n.end()
	if address == "" {
		return Backup{}, errors.New("recover: the node has no name or no address")
	}
	var err error
	if n.unlock, err = openDir(o.Dir); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	defer n.unlock()
	base, err := n.load()
	if err != nil {
		return Backup{}, err
	}
	if n.id, err = readIdentity(o.Dir); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	if has, err := exists(filepath.Join(o.Dir, raftDir)); err != nil || !has {
		return n.recoverState(base, err)
	}
	if n.disk, err = n.openDisk(func(s store) store { return s }); err != nil {
		return Backup{}, err
	}
	defer n.disk.Close()
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(n.dir, raftDir), 2, newRaftLog(n.log))
	if err != nil {
		return Backup{}, fmt.Errorf("recover: snapshots: %w", err)
	}
	s := base.saved
	if s == nil {
		s = &saved{state: &rota.State{}}
	}
	v := view{s.state, s.header.Term}
	n.view.store(v)
	var others []raft.Server
	err = n.guard(base.saved, func() (err error) {
		others, err = n.recorded(snaps)
		return err
	})
	if err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	for _, s := range others {
		if gone == nil {
			break
		}
		if err := gone(n.member(s)); err != nil {
			return Backup{}, fmt.Errorf("recover: %w", err)
		}
	}
	err = n.guard(base.saved, func() error {
		_, transport := raft.NewInmemTransport(raft.ServerAddress(address))
		alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(n.id.Node), Address: raft.ServerAddress(address)}}}
		c := n.raftConfig()
		c.NoSnapshotRestoreOnStart = false
		n.recovering = true
		return raft.RecoverCluster(c, (*machine)(n), n.disk.store, n.disk.store, snaps, transport, alone)
	})
	if err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	v, _ = n.view.load()
	if err := saveState(n.dir, n.saved(v), n.keepOld); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	// The log is empty now, and is told from a lost one by the entry that every log holds.
	last, err := snaps.List()
	if err != nil || len(last) == 0 {
		return Backup{}, errors.Join(errors.New("recover: no snapshot was made"), err)
	}
	if err := n.disk.store.StoreLog(&raft.Log{Index: last[0].Index + 1, Term: last[0].Term, Type: raft.LogNoop}); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	return n.saved(v).backup(), nil
}

// recorded returns the other nodes of the newest configuration that is in the log, or in a snapshot.
func (n *Node) recorded(snaps raft.SnapshotStore) ([]raft.Server, error) {
	all, err := snaps.List()
	if err != nil {
		return nil, err
	}
	var servers []raft.Server
	if len(all) > 0 {
		servers = all[0].Configuration.Servers
	}
	first, err := n.disk.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := n.disk.LastIndex()
	if err != nil {
		return nil, err
	}
	for i := last; i >= max(first, 1); i-- {
		var l raft.Log
		if err := n.entry(i, &l); errors.Is(err, raft.ErrLogNotFound) {
			break
		} else if err != nil {
			return nil, err
		}
		if l.Type == raft.LogConfiguration {
			servers = raft.DecodeConfiguration(l.Data).Servers
			break
		}
	}
	return slices.DeleteFunc(servers, func(s raft.Server) bool { return string(s.ID) == n.id.Node }), nil
}

// recoverState lets a node whose log is gone go on from its state file: the next start begins a new log with it.
func (n *Node) recoverState(base found, err error) (Backup, error) {
	if err == nil && base.saved == nil {
		err = errors.Join(errors.New("there is neither a raft log nor a state file to go on from"), base.bad)
	}
	if err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	base.saved.state = base.saved.state.Recovered()
	if err := saveState(n.dir, base.saved, n.keepOld); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	id := n.id
	id.Begun, id.Waiting = false, false
	if err := writeIdentity(n.dir, id); err != nil {
		return Backup{}, fmt.Errorf("recover: %w", err)
	}
	return base.saved.backup(), nil
}
