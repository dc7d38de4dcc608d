package raftadmin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to happen; it says nothing about how long that takes.
const patience = 2 * time.Minute

// election is how long nobody leads when the lead is transferred.
const election = 30 * time.Millisecond

var heard = time.Unix(1795234567, 89)

// world is a cluster that exists only as a list.
type world struct {
	mu      sync.Mutex // guards what follows
	servers []Server
	leader  string // id; "": none
	changed chan struct{}
	index   uint64
}

func newWorld(leader string, servers ...Server) *world {
	return &world{servers: servers, leader: leader, changed: make(chan struct{}), index: 40}
}

// lead makes the server with the id leader; "" for none.
func (w *world) lead(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leader = id
	close(w.changed)
	w.changed = make(chan struct{})
}

// fake is one node of a world.
type fake struct {
	*world
	id string

	calls    chan string // what was asked of it that changes something
	change   func(ctx context.Context, c Change) (uint64, error)
	status   func() Status
	shutdown func()
}

func (w *world) node(id string) *fake { return &fake{world: w, id: id, calls: make(chan string, 100)} }

var errNotLeader = errors.New("node is not the leader")

func (f *fake) Servers() []Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.servers)
}

func (f *fake) Leader() (Server, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.servers, func(s Server) bool { return s.ID == f.leader })
	if i < 0 {
		return Server{}, false
	}
	return f.servers[i], true
}

func (f *fake) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fake) leads() bool {
	l, ok := f.Leader()
	return ok && l.ID == f.id
}

func (f *fake) Status() Status {
	if f.status != nil {
		return f.status()
	}
	s := Status{State: Follower, Term: 7, Applied: 41, Last: 43, Commit: 42, LastContact: heard, Stats: map[string]string{"num_peers": "2"}}
	if f.leads() {
		s.State, s.LastContact = Leader, time.Time{}
	}
	return s
}

func (f *fake) Change(ctx context.Context, c Change) (uint64, error) {
	f.calls <- string(c.Op) + " " + c.ID
	if f.change != nil {
		return f.change(ctx, c)
	}
	if !f.leads() {
		return 0, errNotLeader
	}
	if c.Op == Transfer {
		servers := f.Servers()
		i := slices.IndexFunc(servers, func(s Server) bool { return s.ID != f.id && (c.ID == "" || s.ID == c.ID) })
		if i < 0 {
			return 0, errors.New("no such voter")
		}
		f.lead("") // as in raft: this node steps down, and for a moment nobody leads
		time.AfterFunc(election, func() { f.lead(servers[i].ID) })
		return 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.PreviousIndex != 0 && c.PreviousIndex != f.index {
		return 0, errors.New("configuration changed since")
	}
	i := slices.IndexFunc(f.servers, func(s Server) bool { return s.ID == c.ID })
	switch c.Op {
	case AddVoter, AddNonvoter:
		f.servers = append(f.servers, Server{ID: "id-of-" + c.ID, Name: c.ID, Address: c.Address, Voter: c.Op == AddVoter})
	case Demote:
		f.servers[i].Voter = false
	case Remove:
		f.servers = slices.Delete(f.servers, i, i+1)
	}
	f.index++
	return f.index, nil
}

func (f *fake) Barrier(context.Context) (uint64, error) {
	f.calls <- "barrier"
	if !f.leads() {
		return 0, errNotLeader
	}
	return 99, nil
}

func (f *fake) VerifyLeader(context.Context) error {
	f.calls <- "verify"
	if !f.leads() {
		return errNotLeader
	}
	return nil
}

func (f *fake) Snapshot(context.Context) error {
	f.calls <- "snapshot"
	return nil
}

func (f *fake) Shutdown() {
	f.calls <- "shutdown"
	if f.shutdown != nil {
		f.shutdown()
	}
}

// running is a server that runs, until the test ends or stop is called, which returns what Run did.
type running struct {
	address string
	stop    func() error
	ended   <-chan struct{}
	callers chan struct{} // one for each connection that came
}

func (r running) forgetCallers() {
	for len(r.callers) > 0 {
		<-r.callers
	}
}

// counted is a listener that tells of each connection.
type counted struct {
	net.Listener
	callers chan struct{}
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.callers <- struct{}{}
	}
	return c, err
}

func run(t *testing.T, n Node) running {
	t.Helper()
	a, err := New(Options{Listen: "127.0.0.1:0", Node: n, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	callers := make(chan struct{}, 1000)
	a.listener = &counted{a.listener, callers}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var result error
	go func() {
		defer close(ended)
		result = a.Run(ctx)
	}()
	stop := func() error {
		cancel()
		<-ended
		return result
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return running{a.Addr().(*net.TCPAddr).String(), stop, ended, callers}
}
