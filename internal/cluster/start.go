package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// found is what the state files hold.
type found struct {
	saved *saved // nil: no usable one
	bad   error  // why those before it, or all, cannot be used
}

// load reads the state file, or the one before.
func (n *Node) load() (f found, err error) {
	var bad []error
	for _, name := range []string{stateFile, previousFile} {
		path := filepath.Join(n.dir, name)
		s, err := loadState(path)
		if err == nil {
			f.saved = s
			n.keepOld = name == stateFile
			break
		}
		if newer := (*newerError)(nil); errors.As(err, &newer) {
			return f, err
		}
		if !errors.Is(err, os.ErrNotExist) {
			bad = append(bad, fmt.Errorf("%s cannot be used: %w", path, err))
		}
	}
	f.bad = errors.Join(bad...)
	if f.bad != nil {
		n.log.Warn("a state file is damaged; going on from the copy before and the raft log", "err", f.bad)
	}
	return f, nil
}

// identify reads or makes the identity, and clears away a raft log whose beginning was cut short.
func (n *Node) identify(f found) error {
	raftPath := filepath.Join(n.dir, raftDir)
	hasRaft, err := exists(raftPath)
	if err != nil {
		return err
	}
	n.id, err = readIdentity(n.dir)
	switch {
	case errors.Is(err, os.ErrNotExist) && hasRaft:
		return fmt.Errorf("%s is missing, but there is a raft log: put it back from a backup, or move %s aside: rota then goes on from %s "+
			"under a new node id", filepath.Join(n.dir, identityFile), raftPath, filepath.Join(n.dir, stateFile))
	case errors.Is(err, os.ErrNotExist) && !n.alone && !n.net.Bootstrap && f.saved == nil && f.bad == nil:
		if n.net.Cluster == "" {
			return fmt.Errorf("%s is empty, and nothing says which cluster this node belongs to: begin a cluster with it (rota cluster bootstrap), "+
				"or let it join one (rota cluster join)", n.dir)
		}
		n.id = identity{Format: identityFormat, Cluster: n.net.Cluster, Node: newID(), Name: n.name, Begun: true, Waiting: true}
		if err := writeIdentity(n.dir, n.id); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	case errors.Is(err, os.ErrNotExist):
		if f.saved == nil && f.bad != nil {
			return fmt.Errorf("%w; there is no raft log to go on from: restore the data directory from a backup, or give an empty one to start anew", f.bad)
		}
		n.id = identity{Format: identityFormat, Cluster: cmp.Or(n.net.Cluster, newID()), Node: newID(), Name: n.name}
		if f.saved != nil {
			n.id.Cluster = f.saved.header.Cluster
		}
	case err != nil:
		return err
	case n.net.Bootstrap:
		n.log.Info("bootstrap was asked for, but this node has begun already; there is nothing to do", "cluster", n.id.Cluster)
	}
	if n.net.Cluster != "" && n.net.Cluster != n.id.Cluster {
		return fmt.Errorf("the data directory %s is %w: %s, but this node should be of %s; give it another data directory, or the certificate of its own cluster",
			n.dir, ErrForeign, n.id.Cluster, n.net.Cluster)
	}
	if f.saved != nil && f.saved.header.Cluster != n.id.Cluster {
		return fmt.Errorf("the state files in %s are of cluster %s, its %s is of cluster %s: two data directories were mixed; restore one of them",
			n.dir, f.saved.header.Cluster, identityFile, n.id.Cluster)
	}
	if n.id.Name != n.name {
		n.log.Warn("the node has a new name", "was", n.id.Name, "is", n.name)
		n.id.Name = n.name
		if n.id.Begun {
			if err := writeIdentity(n.dir, n.id); err != nil {
				return fmt.Errorf("identity: %w", err)
			}
		}
	}
	n.waiting = n.id.Waiting
	if n.id.Waiting && !hasRaft && f.saved == nil {
		if err := os.Mkdir(raftPath, 0o700); err != nil {
			return err
		}
		return syncDir(n.dir)
	}
	if n.id.Begun && !hasRaft {
		if f.saved != nil && others(f.saved.state, n.id.Node) {
			return fmt.Errorf("%s is gone, and with it what this node promised the others of its cluster: remove this node on another one "+
				"(rota cluster remove %s) and let it join again with an empty data directory; is it the last one, rota cluster recover begins a new log from %s",
				raftPath, n.id.Node, filepath.Join(n.dir, stateFile))
		}
		if f.saved == nil {
			return errors.Join(f.bad, fmt.Errorf("%s and the state files are gone: restore the data directory from a backup, or remove %s to start anew",
				raftPath, filepath.Join(n.dir, identityFile)))
		}
		n.id.Begun = false
	}
	if n.id.Begun {
		return nil
	}
	if err := writeIdentity(n.dir, n.id); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	// Nothing was ever acknowledged out of a log whose beginning was not completed.
	if err := os.RemoveAll(raftPath); err != nil {
		return err
	}
	if err := os.Mkdir(raftPath, 0o700); err != nil {
		return err
	}
	return syncDir(n.dir)
}

// begin makes this node's raft of one, empty or out of the state file when the operator moved the raft log aside. With a log in place
// it does nothing.
func (n *Node) begin(snaps raft.SnapshotStore, base *saved) error {
	return n.guard(base, func() error {
		has, err := raft.HasExistingState(n.disk.store, n.disk.store, snaps)
		if err != nil {
			return err
		}
		if n.id.Begun {
			last, err := n.disk.LastIndex()
			if err == nil && last == 0 {
				var taken []*raft.SnapshotMeta
				if taken, err = snaps.List(); n.id.Waiting && base == nil || len(taken) > 0 {
					return err // never fed, or fed with a snapshot only
				}
			}
			if err != nil || !has || last == 0 {
				return errors.Join(errors.New("it holds no entry, but it did"), err)
			}
			return nil
		}
		alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(n.id.Node), Address: n.address()}}}
		_, transport := raft.NewInmemTransport(n.address())
		if base == nil || base.header.Index == 0 {
			err = raft.BootstrapCluster(n.raftConfig(), n.disk.store, n.disk.store, snaps, transport, alone)
		} else {
			err = n.seed(snaps, base, alone)
		}
		if err != nil {
			return err
		}
		n.id.Begun = true
		return writeIdentity(n.dir, n.id)
	})
}

// seed begins a log with a snapshot that is the state file.
func (n *Node) seed(snaps raft.SnapshotStore, base *saved, alone raft.Configuration) error {
	_, transport := raft.NewInmemTransport(n.address())
	n.log.Warn("the raft log is gone; beginning a new one from the state file", "index", base.header.Index, "at", base.state.At())
	// A log always holds an entry, so that an emptied file is told from a new one.
	term, next := max(base.header.Term, 1), base.header.Index+1
	sink, err := snaps.Create(raft.SnapshotVersionMax, next-1, term, alone, 1, transport)
	if err != nil {
		return err
	}
	if err := base.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	if err := n.disk.store.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	return n.disk.store.StoreLog(&raft.Log{Index: next, Term: term, Type: raft.LogNoop})
}

// guard runs what reads the log file. bbolt trusts its pages: a damaged one makes it panic, a cut-off file makes the memory map fault.
func (n *Node) guard(base *saved, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
		newer, members := (*newerError)(nil), (*membersError)(nil)
		if err != nil && !errors.As(err, &newer) && !errors.As(err, &members) {
			err = n.brokenLog(base, err)
		}
	}()
	return f()
}

func (n *Node) brokenLog(base *saved, err error) error {
	path, aside := filepath.Join(n.dir, logFile), filepath.Join(n.dir, raftDir)
	if base == nil {
		return fmt.Errorf("%s cannot be used: %w; restore the data directory from a backup", path, err)
	}
	if others(base.state, n.id.Node) {
		return fmt.Errorf("%s cannot be used: %w; remove this node on another one (rota cluster remove %s) and let it join again with an empty data directory",
			path, err, n.id.Node)
	}
	return fmt.Errorf("%s cannot be used: %w; put %s back from a copy that is not older, or move it aside: rota then goes on from the state file, "+
		"which holds all events up to %d of %s", path, err, aside, base.header.Index, base.state.At().Format("2006-01-02 15:04:05 MST"))
}

// replay makes the state out of the newest stored one and what the log holds after it, as far as that is known to be committed. When the
// log ends with a configuration in which only this node votes, everything in it is: what the majority of one holds, no one can undo.
// Otherwise only what was stored as state, and what the mark says was applied, is known to be; the rest comes from the leader.
func (n *Node) replay(snaps raft.SnapshotStore, base *saved) error {
	s := base
	if s == nil {
		s = &saved{state: &rota.State{}}
	}
	if n.keepOld {
		n.savedIndex = s.state.Index() // a damaged or missing file is written anew in any case
	}
	s, snapshot, err := n.newest(snaps, s)
	if err != nil {
		return err
	}
	covered := max(s.state.Index(), s.covers)
	snapshotted := snapshot.Index
	servers := snapshot.Configuration.Servers
	n.membersAt.Store(snapshot.ConfigurationIndex)
	notes := make(map[uint64]note, len(s.notes))
	for _, x := range s.notes {
		notes[x.Index] = x
	}
	v := view{s.state, s.header.Term}
	err = n.guard(base, func() error {
		first, err := n.disk.FirstIndex()
		if err != nil {
			return err
		}
		last, err := n.disk.LastIndex()
		if err != nil {
			return err
		}
		if max(last, snapshotted) < s.state.Index() {
			return fmt.Errorf("it ends at entry %d, but the state file knows event %d: it is an older copy", last, s.state.Index())
		}
		if first > covered+1 {
			return fmt.Errorf("it begins at entry %d, but the newest stored state ends at %d", first, covered)
		}
		applied, err := n.mark.read(n.disk)
		if err != nil {
			return err
		}
		since, settled, err := n.lookBack(first, last, covered, &servers)
		if err != nil {
			return err
		}
		n.sole = soleVoter(servers, n.id.Node)
		if n.alone && len(servers) > 0 && !(n.sole && len(servers) == 1) {
			return &membersError{len(servers)}
		}
		for i := settled; i <= last; i++ {
			var l raft.Log
			if err := n.entry(i, &l); err != nil {
				return err
			}
			if l.Type != raft.LogCommand {
				continue
			}
			if i > snapshotted {
				n.fed.Add(1)
				n.grew.Add(int64(len(l.Data)))
			}
			if i <= s.state.Index() && i < since {
				continue
			}
			if i > max(s.state.Index(), applied) && !n.sole {
				break // whatever raft says is committed it will feed
			}
			e, size, err := decodeEvent(l.Data)
			if err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
			e.Index = i
			r := Record{Event: e}
			if i <= s.state.Index() {
				r.Transitions, r.Refused = notes[i].Transitions, notes[i].Refused
			} else {
				next, refused := fold(v.state, e)
				if refused != nil {
					r.Refused = refused.Error()
				} else {
					r.Transitions = rota.Transitions(v.state, next)
				}
				v = view{next, l.Term}
			}
			n.history.add(r, size)
		}
		return nil
	})
	n.view.store(v)
	return err
}

// entry reads one entry of the log.
func (n *Node) entry(i uint64, l *raft.Log) error {
	if err := n.disk.GetLog(i, l); err != nil {
		return fmt.Errorf("entry %d: %w", i, err)
	}
	if l.Index != i {
		return fmt.Errorf("entry %d says that it is %d", i, l.Index)
	}
	return nil
}

// lookBack returns the first event of the log that the history has room for (older ones need not be decoded), where the log begins
// without a gap, and the newest configuration in servers. A gap is where a snapshot of another node was taken in.
func (n *Node) lookBack(first, last, covered uint64, servers *[]raft.Server) (since, settled uint64, err error) {
	settled = last + 1
	count, size, known, full := 0, 0, false, false
	since = settled
	for i := last; i >= max(first, 1); i-- {
		var l raft.Log
		if err := n.entry(i, &l); errors.Is(err, raft.ErrLogNotFound) && i <= covered && !n.alone {
			break
		} else if err != nil {
			return 0, 0, err
		}
		settled = i
		switch l.Type {
		case raft.LogConfiguration:
			if !known {
				*servers, known = raft.DecodeConfiguration(l.Data).Servers, true
			}
		case raft.LogCommand:
			if full {
				continue
			}
			k, err := checkFrame(l.Data)
			if err != nil {
				return 0, 0, fmt.Errorf("entry %d: %w", i, err)
			}
			count, size = count+1, size+k
			full = count > n.history.limit || count > 1 && size > maxHistory
		}
		if !full {
			since = i
		}
	}
	return since, settled, nil
}

// soleVoter reports whether a node is the only one that votes.
func soleVoter(servers []raft.Server, id string) bool {
	vs := voters(servers, "", "")
	return len(vs) == 1 && vs[0] == raft.ServerID(id)
}

// others reports whether a state knows of other nodes.
func others(s *rota.State, id string) bool {
	return slices.ContainsFunc(s.Nodes(), func(x rota.Node) bool { return x.ID != id })
}

// membersError says that a node that should be alone is one of many.
type membersError struct{ servers int }

func (e *membersError) Error() string {
	return fmt.Sprintf("the log is of a cluster of %d nodes: write cluster: {election: raft} in the configuration, or take this node out of the cluster "+
		"with rota cluster recover when it is the last one", e.servers)
}

// newest returns the newest stored state, and what is known of the newest snapshot.
func (n *Node) newest(snaps raft.SnapshotStore, s *saved) (newest *saved, snapshot raft.SnapshotMeta, err error) {
	metas, err := snaps.List()
	if err != nil {
		return nil, snapshot, fmt.Errorf("snapshots: %w", err)
	}
	for i, m := range metas {
		if i == 0 {
			snapshot = *m
		}
		if m.Index <= s.state.Index() {
			break
		}
		t, err := openSnapshot(snaps, m.ID, s.state.Index())
		if newer := (*newerError)(nil); errors.As(err, &newer) {
			return nil, snapshot, &newerError{filepath.Join(n.dir, raftDir, "snapshots", m.ID)}
		}
		if err != nil {
			n.log.Warn("a snapshot is damaged and not used", "file", filepath.Join(n.dir, raftDir, "snapshots", m.ID), "err", err)
			continue
		}
		if t.state != nil {
			s = t
		}
		s.covers = m.Index
		return s, snapshot, nil
	}
	return s, snapshot, nil
}

// openSnapshot reads a snapshot; one that knows no event after known is left without its state.
func openSnapshot(snaps raft.SnapshotStore, id string, known uint64) (*saved, error) {
	for _, whole := range []bool{false, true} {
		_, r, err := snaps.Open(id)
		if err != nil {
			return nil, err
		}
		if whole {
			s, err := readSaved(bufio.NewReaderSize(r, 64<<10))
			return s, errors.Join(err, r.Close())
		}
		var h header
		err = json.NewDecoder(r).Decode(&h)
		_ = r.Close()
		if err == nil && h.Format == stateFormat && h.Index <= known {
			return &saved{header: h}, nil
		}
	}
	panic("unreachable")
}

// identity returns who the node is.
func (n *Node) identity() Identity { return Identity{n.id.Cluster, n.id.Node, n.id.Name} }

// arriveEvery is how often a node that was taken in looks whether it holds all that is committed, beside each change of its state: the
// last of it may be no event.
const arriveEvery = 50 * time.Millisecond

// arrive closes arrival once the node has caught up for the first time.
func (n *Node) arrive(ctx context.Context) {
	var pause waiting
	defer pause.stop()
	for {
		changed := n.Changed()
		if n.caughtUp() {
			close(n.arrival)
			return
		}
		select {
		case <-changed:
		case <-pause.until(arriveEvery):
		case <-ctx.Done():
			return
		}
	}
}

// caughtUp reports whether the state holds every event that a leader has said is committed, or this node leads. Until a leader has spoken
// it does not.
func (n *Node) caughtUp() bool {
	if r, _ := n.round.load(); r != nil {
		return true
	}
	i := n.raft.Load().AppliedIndex() // raft's word, which runs ahead of the state
	if c := n.wire.committed(); c == 0 || i < c {
		return false
	}
	for ; i > n.State().Index(); i-- {
		var l raft.Log
		switch err := n.disk.GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
			return true // it is in a snapshot, which the state was made of
		case err != nil || l.Type == raft.LogCommand:
			return false
		}
	}
	return true
}

// arrived notes, once the node has caught up and its state is in the file, that it no longer waits: from now on an empty log is a lost
// one, and what is on disk is served at the next start.
func (n *Node) arrived() error {
	if !n.waiting {
		return nil
	}
	select {
	case <-n.arrival:
	default:
		return nil
	}
	id := n.id
	id.Waiting = false
	if err := writeIdentity(n.dir, id); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	n.waiting = false
	return nil
}
