package cluster

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The files of a data directory.
const (
	lockFile     = "lock"
	identityFile = "identity.json"
	stateFile    = "state.json"
	previousFile = "state.json.prev"
	raftDir      = "raft"
	logFile      = "raft/raft.db"
	markFile     = "raft/applied"
)

// openDir makes the data directory if need be and takes its lock.
func openDir(dir string) (unlock func() error, err error) {
	if dir == "" {
		return nil, errors.New("no data directory is configured")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("data directory %s may be written by everyone (mode %04o), so anyone could forge the state: chmod 700 %s",
			dir, info.Mode().Perm(), dir)
	}
	return lock(filepath.Join(dir, lockFile))
}

// lock takes the lock that a process holds while it lives. The kernel lets go of it however the process ends.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		who := "in another process"
		b, _ := io.ReadAll(io.LimitReader(f, 32)) // the pid is a courtesy
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			who = fmt.Sprintf("as pid %d", pid)
		}
		return nil, fmt.Errorf("%w %s, with the data directory %s: stop it, or give this one another data directory",
			ErrRunning, who, filepath.Dir(path))
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f.Close, nil
}

// ErrRunning says that a living process holds the data directory.
var ErrRunning = errors.New("rota is already running")

// identity says whose directory it is. Both ids are made once and stay; the name may change.
type identity struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`              // raft's id of this node
	Name    string `json:"name"`              // as configured
	Begun   bool   `json:"begun"`             // the raft log has been begun: one without entries is a lost one
	Waiting bool   `json:"waiting,omitempty"` // begun and still empty: the node waits to be taken in by a leader
}

// Identity says whose data directory it is: ids are made once and stay, the name may change.
type Identity struct {
	Cluster string // id of the cluster
	Node    string // id of the node
	Name    string
}

// NewID returns a new id for a node or a cluster.
func NewID() string { return newID() }

// ReadIdentity returns whose data directory it is; an error for which errors.Is(err, fs.ErrNotExist) holds when it is nobody's yet.
func ReadIdentity(dir string) (Identity, error) {
	id, err := readIdentity(dir)
	return Identity{id.Cluster, id.Node, id.Name}, err
}

// Join makes an empty data directory that of a node which waits to be taken in by the leader of a cluster. It refuses one with
// anything in it.
func Join(dir string, id Identity) error {
	if id.Cluster == "" || id.Node == "" || id.Name == "" {
		return errors.New("join: the id of the cluster, the id of the node or its name is missing")
	}
	unlock, err := openDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	for _, f := range []string{identityFile, stateFile, previousFile, raftDir} {
		if has, err := exists(filepath.Join(dir, f)); err != nil || has {
			return errors.Join(err, fmt.Errorf("join: %s belongs to a node already: give the new node an empty data directory", dir))
		}
	}
	return writeIdentity(dir, identity{Format: identityFormat, Cluster: id.Cluster, Node: id.Node, Name: id.Name, Begun: true, Waiting: true})
}

const identityFormat = 1

func newID() string { return strings.ToLower(rand.Text()) }

func readIdentity(dir string) (id identity, err error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return id, damaged(path, err)
	}
	if id.Format > identityFormat {
		return id, &newerError{path}
	}
	if id.Cluster == "" || id.Node == "" {
		return id, damaged(path, errors.New("no id in it"))
	}
	return id, nil
}

func damaged(path string, err error) error {
	dir := filepath.Dir(path)
	return fmt.Errorf("%s is damaged: %w; put it back from a backup, or remove it and move %s aside: "+
		"rota then goes on from %s under a new node id", path, err, filepath.Join(dir, raftDir), filepath.Join(dir, stateFile))
}

func writeIdentity(dir string, id identity) error {
	return replaceFile(filepath.Join(dir, identityFile), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(id)
	})
}

// replaceFile puts a file in place whole or not at all, whatever happens in between: written beside, synced, renamed, and the
// directory synced.
func replaceFile(path string, write func(io.Writer) error) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
