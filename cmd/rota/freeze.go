package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// A node can be frozen by a file in its data directory, with no leader, no network and no answer of its own: while the file is there, the
// node publishes nothing and its name server answers what it answered before. It is for the time until the cluster can be told: once its
// state is frozen, the file is taken away, so that what people say of endpoints is heard again.

// freezeFile freezes the node whose data directory it is in, whatever stands in it.
const freezeFile = "frozen"

// maxFreeze bounds what is read of it, in bytes.
const maxFreeze = 4 << 10

// freezeEvery is how often the file is looked for.
const freezeEvery = time.Second

// ownFreeze is what the file says.
type ownFreeze struct {
	rota.Freeze
	Here bool `json:"here,omitempty"` // it is this node that is meant: it stays when the cluster is frozen, too
}

// frozenHere is a node that is frozen by its file.
type frozenHere struct {
	ownFreeze
	answers *rota.State // what the name server answers from
}

// readFreeze reads the file of a data directory; nil: there is none. What cannot be read freezes all the same.
func readFreeze(dir string) *ownFreeze {
	path := filepath.Join(dir, freezeFile)
	unread := func(err error) *ownFreeze {
		f := rota.Freeze{Actor: "the file " + path, Reason: rota.CleanReason("it says nothing that can be read: %v", err)}
		if info, err := os.Lstat(path); err == nil {
			f.At = info.ModTime().UTC()
		}
		return &ownFreeze{f, true}
	}
	// What stands there freezes, also a link that leads nowhere; and only a file is opened, for a pipe would keep who opens it.
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return unread(err)
	}
	file, err := os.Open(path)
	if err != nil {
		return unread(err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxFreeze))
	if err != nil {
		return unread(err)
	}
	var f ownFreeze
	if err := json.Unmarshal(b, &f); err != nil {
		return unread(err)
	}
	f.Actor, f.Reason = rota.CleanReason("%s", f.Actor), rota.CleanReason("%s", f.Reason)
	return &f
}

// writeFreeze writes the file, whole or not at all. One that is there already stays.
func writeFreeze(dir string, f ownFreeze) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, freezeFile+"-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	// Whoever writes it, the node must be able to read it, and there is no secret in it.
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	err = os.Link(tmp.Name(), filepath.Join(dir, freezeFile))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// removeFreeze takes the file away; that there is none is no error.
func removeFreeze(dir string) error {
	err := os.Remove(filepath.Join(dir, freezeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lookFrozen makes the node as its file says.
func (n *node) lookFrozen() {
	n.freezing.Lock()
	defer n.freezing.Unlock()
	was, now := n.frozen.Load(), readFreeze(n.dir)
	st := n.raft.State()
	if now != nil && !now.Here && st.Frozen() != nil {
		if err := removeFreeze(n.dir); err != nil {
			n.log.Error("the cluster is frozen, and this node's own freeze cannot be ended", "file", filepath.Join(n.dir, freezeFile), "error", err)
		} else {
			now = nil
		}
	}
	switch {
	case now == nil && was != nil:
		n.frozen.Store(nil)
		n.log.Warn("this node is no longer frozen by itself", "cluster_frozen", st.Frozen() != nil)
	case now != nil && was == nil:
		n.frozen.Store(&frozenHere{*now, st})
		n.log.Warn("this node is FROZEN: it publishes nothing, and its name server's answers stand", "by", now.Actor, "since", now.At, "reason", now.Reason)
	case now != nil && was.ownFreeze != *now:
		n.frozen.Store(&frozenHere{*now, was.answers})
	default:
		return
	}
	n.news.fire() // publishers look again
}

// watchFrozen looks for the file until ctx ends.
func (n *node) watchFrozen(ctx context.Context) error {
	t := time.NewTicker(freezeEvery)
	defer t.Stop()
	for {
		changed := n.raft.Changed()
		n.lookFrozen()
		if n.frozen.Load() == nil {
			changed = nil // only the end of a freeze follows from the state
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-changed:
		}
	}
}

// answers is the state that the name server answers from. A freeze that met a node without any state pins nothing: to say that a name does
// not exist would be remembered.
func (n *node) answers() *rota.State {
	if f := n.frozen.Load(); f != nil && len(f.answers.Services()) > 0 {
		return f.answers
	}
	return n.raft.State()
}

// whyFrozen says why this node may publish nothing; empty: it may.
func (n *node) whyFrozen() string {
	if f := n.frozen.Load(); f != nil {
		return "this node is " + f.String()
	}
	return ""
}

// freezeSelf, thawSelf and ownFreeze are what the API does with this node by itself.
func (n *node) freezeSelf(f rota.Freeze, here bool) error {
	if err := writeFreeze(n.dir, ownFreeze{f, here}); err != nil {
		return fmt.Errorf("its file cannot be written: %w", err)
	}
	n.lookFrozen()
	return nil
}

func (n *node) thawSelf(actor string) error {
	if n.frozen.Load() != nil {
		n.log.Warn("thawed", "by", actor)
	}
	if err := removeFreeze(n.dir); err != nil {
		return fmt.Errorf("remove its file: %w", err)
	}
	n.lookFrozen()
	return nil
}

func (n *node) ownFreeze() *rota.Freeze {
	if f := n.frozen.Load(); f != nil {
		return &f.Freeze
	}
	return nil
}
