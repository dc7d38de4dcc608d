package cluster

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// store is what raft needs of a disk: its log, its term and vote.
type store interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// disk is a store that says when it fails, and that does not let raft fall over it: raft panics when it cannot save its term, and a
// full disk would take the answers of this node away with it.
type disk struct {
	store
	log     *slog.Logger
	trouble *trouble
	closing <-chan struct{}
}

// openDisk opens the log file.
func (n *Node) openDisk(through func(store) store) (d *disk, err error) {
	err = n.guard(n.known, func() error {
		b, err := raftboltdb.New(raftboltdb.Options{
			Path: filepath.Join(n.dir, logFile),
			// The map type keeps a freelist of any length cheap; the timeout is for a foreign process that holds the file. The freelist
			// stays synced: without it bbolt walks the file in a goroutine of its own, where a damaged page cannot be caught.
			BoltOptions: &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType},
		})
		if errors.Is(err, bolterrors.ErrTimeout) {
			return errors.New("another process holds it")
		}
		if err != nil {
			return err
		}
		d = &disk{through(b), n.log, &n.trouble, n.closing}
		return nil
	})
	return d, err
}

func (d *disk) StoreLogs(logs []*raft.Log) error { return d.wrote(d.store.StoreLogs(logs)) }
func (d *disk) StoreLog(l *raft.Log) error       { return d.wrote(d.store.StoreLog(l)) }

func (d *disk) wrote(err error) error {
	if err != nil {
		d.trouble.say(d.log, troubleLog, err)
	} else {
		d.trouble.over(d.log, troubleLog)
	}
	return err
}

func (d *disk) Set(k, v []byte) error { return d.patiently(func() error { return d.store.Set(k, v) }) }

func (d *disk) SetUint64(k []byte, v uint64) error {
	return d.patiently(func() error { return d.store.SetUint64(k, v) })
}

// patiently tries until it is done. When the node closes before that, raft's goroutine ends here: it must not go on as if its term
// were saved.
func (d *disk) patiently(f func() error) error {
	pause := 100 * time.Millisecond
	for {
		err := f()
		if d.wrote(err) == nil {
			return nil
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		case <-d.closing:
			runtime.Goexit()
		}
	}
}

// The troubles a node can be in and go on serving.
const (
	troubleLog      = "the event log cannot be written, so nothing new can be decided"
	troubleState    = "the state file cannot be written, so a restart takes longer"
	troubleTwin     = "two nodes bear one id, so only one of them is heard"
	troubleMember   = "the cluster does not know this node as it is"
	troubleSnapshot = "no snapshot can be taken, so the event log grows"
	troubleUnfit    = "this node leads and cannot do what a leader does, nor can another"
)

// trouble remembers what is wrong, and logs when it begins, when its cause changes and when it is over.
type trouble struct {
	mu  sync.Mutex       // guards now
	now map[string]error // by what is wrong
}

func (t *trouble) say(log *slog.Logger, what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.now[what]; old != nil && old.Error() == err.Error() {
		return
	}
	if t.now == nil {
		t.now = map[string]error{}
	}
	t.now[what] = err
	log.Error(what, "err", err)
}

// said reports whether something is wrong already.
func (t *trouble) said(what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now[what] != nil
}

func (t *trouble) over(log *slog.Logger, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now[what] != nil {
		delete(t.now, what)
		log.Info("over: " + what)
	}
}

// list returns what is wrong, sorted, in words.
func (t *trouble) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, what := range slices.Sorted(maps.Keys(t.now)) {
		out = append(out, what+": "+t.now[what].Error())
	}
	return out
}
