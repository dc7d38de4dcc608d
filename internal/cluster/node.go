package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// Options says what a node needs to start.
type Options struct {
	Dir     string       // the data directory; made with mode 0700 when there is none
	Node    string       // the node's name, as people and events know it; it may change
	Log     *slog.Logger // nil: silent
	History int          // events kept for Records at most; 0: DefaultHistory

	// Clock is the time by which events happen and reports age. It should be steady, with a monotonic reading. Nil: time.Now.
	Clock func() time.Time

	// Network makes the node one of many. Nil: it is alone, with no port open.
	Network *Network
}

// DefaultHistory is how many events Records can look back at when Options do not say.
const DefaultHistory = 1000

// Errors of a Node.
var (
	ErrNotLeader = errors.New("this node does not lead")
	ErrClosed    = errors.New("this node is closed")

	// ErrNoLeader says that no node leads as far as this one knows: nothing new can be decided, and everything decided goes on.
	ErrNoLeader = errors.New("no node leads: fewer than a majority of the voters reach each other, or an election is under way")
	// ErrUnanswered says that another node, such as the leader, was asked and did not answer: it may have done what it was asked or not.
	ErrUnanswered = errors.New("no answer")
	// ErrForeign says that something belongs to another cluster.
	ErrForeign = errors.New("of another cluster")
	// ErrTwins says that two nodes bear one id.
	ErrTwins = errors.New("two nodes bear one id")
)

// view is the state and the place in raft's log that it comes from.
type view struct {
	state *rota.State
	term  uint64 // raft's, of the entry at state.Index()
}

// Node is one node of the cluster. All methods may be called at any time from any goroutine, also after Close.
type Node struct {
	// Immutable after Open.
	dir      string
	name     string
	log      *slog.Logger
	id       identity
	alone    bool     // without a network
	net      *Network // empty when alone
	clock    func() time.Time
	timing   Timing
	begun    time.Time
	wire     *guarded
	raft     atomic.Pointer[raft.Raft]
	disk     *disk
	mark     mark
	history  *history
	unlock   func() error
	stop     context.CancelFunc // ends the node's own goroutines
	own      sync.WaitGroup     // those goroutines
	carrying sync.WaitGroup     // the one that hands messages to raft
	rounds   gate               // who runs inside Lead
	appends  gate               // who waits for raft
	closing  chan struct{}      // closed when Close begins
	arrival  chan struct{}      // closed when Arrived says so
	known    *saved             // what the state files hold; nil after Open
	sole     bool               // the log says that no other node votes
	life     context.Context    // ends when Close begins
	end      context.CancelFunc // ends life
	once     sync.Once          // guards Close
	err      error              // what Close returned

	// Owned by the apply goroutine (before raft runs: by Open), shown to all.
	view latest[view]
	grew atomic.Int64 // bytes of events applied since the last snapshot was asked for
	fed  atomic.Int64 // events applied since then

	membersAt atomic.Uint64 // index of the entry that last changed the members; raft tells it to its state machine only

	// Owned by watch, shown to all.
	round latest[*round]

	// Owned by followLeader, shown to all: the id of who leads, or empty.
	leader latest[string]

	// Guarded by reportsMu for writing, shown to all.
	reportsMu sync.Mutex
	reports   latest[[]*rota.Report]

	// Owned by keep (after it ended: by Close).
	savedIndex uint64 // of the state in the state file
	keepOld    bool   // the state file is good and becomes the previous one
	waiting    bool   // the identity says that the node waits to be taken in

	// How far the time of events is ahead of the node's clock.
	time struct {
		mu    sync.Mutex // guards what follows
		asked time.Time  // the clock, when it was last asked for
		ahead time.Duration
	}

	// What Lead remembers of being unfit.
	unfit struct {
		mu   sync.Mutex // guards what follows
		from string     // who led before this node
		last time.Time
		stay time.Duration
	}

	recovering bool // Recover has raft begin anew with this node alone

	changing  chan struct{} // held by who changes the members
	digesting chan struct{} // held by who makes a digest
	digested  digest        // guarded by digesting
	twin      atomic.Int64  // when another with an id that was taken was last seen, in Unix nanoseconds; 0: not lately
	trouble   trouble
}

// Open makes or opens a data directory and starts the node. When it returns, State is the whole last state: nothing was asked of any
// network, and no election took place. It refuses a directory that another process holds, that everyone may write, that a newer
// version wrote, or whose log is damaged; it never starts empty where there was something.
func Open(o Options) (*Node, error) {
	return open(o, func(s store) store { return s })
}

// open is Open with a hand on the store below raft, where tests let the disk fail.
func open(o Options, through func(store) store) (_ *Node, err error) {
	n := newNode(o)
	defer func() {
		if err != nil {
			n.end()
		}
	}()
	if !n.alone && (n.net.Address == "" || n.net.Transport == nil) {
		return nil, errors.New("the node is one of many, but has no address: set cluster.advertise in the configuration")
	}
	if o.Node == "" {
		return nil, errors.New("the node has no name: set node.name in the configuration")
	}
	if n.unlock, err = openDir(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if n.disk != nil {
				_ = n.disk.Close()
			}
			_ = n.mark.f.Close() // os.ErrInvalid when it was not opened
			_ = n.unlock()
		}
	}()
	base, err := n.load()
	if err != nil {
		return nil, err
	}
	n.known = base.saved
	if err := n.identify(base); err != nil {
		return nil, err
	}
	if n.disk, err = n.openDisk(through); err != nil {
		return nil, err
	}
	if n.mark, err = openMark(n.dir); err != nil {
		return nil, err
	}
	cut, _ := filepath.Glob(filepath.Join(n.dir, raftDir, "snapshots", "*.tmp")) // by kills while they were written; raft leaves them
	for _, dir := range cut {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("snapshots: %w", err)
		}
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(n.dir, raftDir), 2, newRaftLog(n.log))
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	if err := n.begin(snaps, base.saved); err != nil {
		return nil, err
	}
	if err := n.replay(snaps, base.saved); err != nil {
		return nil, err
	}
	n.known = nil
	if err := n.start(snaps); err != nil {
		return nil, err
	}
	return n, nil
}

func newNode(o Options) *Node {
	n := &Node{
		dir: o.Dir, name: o.Node, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), clock: o.Clock,
		history: &history{limit: cmp.Or(max(o.History, 0), DefaultHistory)},
		closing: make(chan struct{}), arrival: make(chan struct{}), changing: make(chan struct{}, 1), digesting: make(chan struct{}, 1), begun: time.Now(),
		alone: o.Network == nil, net: cmp.Or(o.Network, &Network{}),
	}
	if n.clock == nil {
		n.clock = time.Now
	}
	n.life, n.end = context.WithCancel(context.Background())
	n.timing = n.net.Timing.orDefault()
	if n.alone {
		n.timing = Timing{Heartbeat: heartbeat, Election: heartbeat, Lease: lease}.orDefault()
	}
	return n
}

// Timing of a raft of one. Nobody else's heartbeat is waited for, so the first election takes place at once (see start); these
// bound how soon it is tried again after a disk failed, and how often an idle leader looks at its own lease.
const (
	heartbeat = time.Second
	lease     = time.Second
	enqueue   = 5 * time.Second // an Append waits this long for raft's attention
)

// forwardWhole is how long a leader that is handed a whole configuration may take: it is large, and travels far.
const forwardWhole = 30 * time.Second

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.id.Node)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = n.timing.Heartbeat, n.timing.Election, n.timing.Lease
	if n.sole {
		c.HeartbeatTimeout, c.ElectionTimeout = 2*n.timing.Heartbeat, 2*n.timing.Election // see start
	}
	c.CommitTimeout = n.timing.Commit
	c.ShutdownOnRemove = false // a node that was removed still answers
	c.MaxAppendEntries = 256
	c.SnapshotThreshold, c.SnapshotInterval = math.MaxUint64, 24*time.Hour // keep asks for them, by count and by bytes
	c.TrailingLogs = uint64(n.history.limit)
	c.NoSnapshotRestoreOnStart = true // replay did it, and more
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLog(n.log)
	return c
}

func (n *Node) address() raft.ServerAddress {
	return raft.ServerAddress(cmp.Or(n.net.Address, n.id.Node))
}

func (n *Node) start(snaps raft.SnapshotStore) error {
	var transport raft.Transport
	if n.alone {
		_, transport = raft.NewInmemTransport(n.address())
	} else {
		var err error
		if transport, err = n.net.Transport(n.identity()); err != nil {
			return fmt.Errorf("cluster transport: %w", err)
		}
	}
	n.wire = n.guardTransport(transport)
	n.round.store(nil)
	n.leader.store("")
	n.reports.store(nil)
	c := n.raftConfig()
	r, err := raft.NewRaft(c, (*machine)(n), n.disk, n.disk, snaps, n.wire)
	if err != nil {
		return errors.Join(fmt.Errorf("raft: %w", err), n.wire.Close())
	}
	n.raft.Store(r)
	if n.sole {
		// A shorter heartbeat makes a follower look at once whether it hears a leader; who votes alone never does, and stands for election.
		reload := r.ReloadableConfig()
		reload.HeartbeatTimeout, reload.ElectionTimeout = n.timing.Heartbeat, n.timing.Election
		if err := r.ReloadConfig(reload); err != nil {
			return errors.Join(err, r.Shutdown().Error())
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.own.Go(func() { n.watch(ctx) })
	n.own.Go(func() { n.keep(ctx) })
	seen := make(chan raft.Observation, 1)
	r.RegisterObserver(raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	n.own.Go(func() { n.followLeader(ctx, seen) })
	if n.waiting {
		n.own.Go(func() { n.arrive(ctx) })
	} else {
		close(n.arrival)
	}
	if n.alone {
		return nil
	}
	n.own.Go(func() { n.tend(ctx) })
	n.carrying.Go(n.wire.run)
	return nil
}

// State returns the newest state; it is never nil. What it shows is durable here and ordered.
func (n *Node) State() *rota.State {
	v, _ := n.view.load()
	return v.state
}

// Changed returns a channel that is closed when the state that State returned after this call is no longer the newest. So: take the
// channel, then the state, act, wait.
func (n *Node) Changed() <-chan struct{} {
	_, changed := n.view.load()
	return changed
}

// Arrived returns a channel that is closed as soon as State is one that the cluster was in while this node ran, or before it was last
// stopped: at once, but for a node that was taken in without a state. That one is fed the history of the cluster first, and what it holds
// meanwhile was true once and is not any more.
func (n *Node) Arrived() <-chan struct{} { return n.arrival }

// Records returns the newest events after an index and what came of each, oldest first; with a limit above 0 at most that many of
// the newest. How far it looks back is bounded by Options.History and by bytes, and survives a restart. Nothing in it may be changed.
func (n *Node) Records(after uint64, limit int) []Record { return n.history.after(after, limit) }

// Append orders an event, wherever the leader is, and returns it with its index once it is durable on a majority and applied by the
// leader; this node's own state may not hold it yet. A zero At becomes now, an empty Actor this node's name. The error is what
// State.Apply said when it did not take the event; ErrTooLarge for an event above MaxEvent; ErrNoLeader when no leader was found within
// the time an election takes; ErrClosed; or the leader's disk's. What was asked of a leader that did not answer, or that ceased to
// lead meanwhile, is asked again under the same event id, which counts once. When that was in vain (ErrUnanswered, ErrNotLeader), after
// an error of a disk, and after an error of ctx, the event may have been ordered or not: look at the state before trying again.
func (n *Node) Append(ctx context.Context, e rota.Event) (rota.Event, error) {
	if n.net.Forward == nil {
		return n.AppendHere(ctx, e)
	}
	if e.ID == "" {
		e.ID = newID()
	}
	e = n.complete(e)
	patience := 2 * (n.timing.Heartbeat + n.timing.Election)
	begun := time.Now()
	var again waiting
	defer again.stop()
	pause := shortestPause
	for {
		out, err := n.appendOnce(ctx, e)
		switch {
		case err == nil, ctx.Err() != nil, time.Since(begun) >= patience:
			return out, err
		case errors.Is(err, ErrNotLeader), errors.Is(err, ErrNoLeader), errors.Is(err, ErrUnanswered):
		default:
			return out, err
		}
		_, elected := n.leader.load()
		select {
		case <-again.until(jitter(pause)):
			pause = min(2*pause, time.Second)
		case <-elected:
		case <-n.closing:
			return e, errors.Join(ErrClosed, err)
		case <-ctx.Done():
			return e, errors.Join(ctx.Err(), err)
		}
	}
}

func (n *Node) appendOnce(ctx context.Context, e rota.Event) (rota.Event, error) {
	if n.raft.Load().State() == raft.Leader {
		return n.AppendHere(ctx, e)
	}
	leader, ok := n.Leader()
	if !ok || leader.Self {
		return e, fmt.Errorf("append %s: %w", e.Kind, ErrNoLeader)
	}
	if !n.appends.enter() {
		return e, ErrClosed
	}
	defer n.appends.leave()
	wait := enqueue
	if e.Spec != nil {
		wait = forwardWhole
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer context.AfterFunc(n.life, cancel)()
	return n.net.Forward(ctx, leader, e)
}

// catchUp is how slowly a node whose clock is behind the newest event lets its own clock have the say again: by a second in twenty. More
// than soon is not caught up with, so that what lasts an hour lasts an hour.
const (
	catchUp = 20
	soon    = 5 * time.Minute
)

// Now returns the time at which an event would happen. It goes on with the node's clock, and is never before the newest event: nodes have
// clocks of their own, and one that leads after another neither takes time back nor lets it stand still.
func (n *Node) Now() time.Time {
	n.time.mu.Lock()
	defer n.time.mu.Unlock()
	t := &n.time
	now := n.clock()
	if t.ahead > 0 && t.ahead <= soon {
		t.ahead = max(0, t.ahead-now.Sub(t.asked)/catchUp)
	}
	t.asked = now
	now = now.Add(t.ahead)
	if d := n.State().At().Sub(now.Round(0)); d > 0 {
		t.ahead += d
		now = now.Add(d)
	}
	return now
}

// complete fills in what whoever made the event left to the node.
func (n *Node) complete(e rota.Event) rota.Event {
	if e.At.IsZero() {
		e.At = n.Now()
	}
	e.At = e.At.UTC().Round(0)
	if e.Actor == "" {
		e.Actor = n.name
	}
	return e
}

// AppendHere is Append on the leader: what came from another node, and what only the leader may say, is never forwarded. It returns
// ErrNotLeader when this node does not lead. An event of a kind that this version does not know is refused before it is ordered. One
// whose id was applied before is not applied again: that is no error, and the event is returned with its index.
func (n *Node) AppendHere(ctx context.Context, e rota.Event) (rota.Event, error) {
	e = n.complete(e)
	if now := n.Now().UTC().Round(0); e.At.After(now) {
		e.At = now // made by a node or a client whose clock is ahead
	} else if at := n.State().At(); e.At.Before(at) {
		e.At = at
	}
	if !e.Kind.Known() {
		return e, fmt.Errorf("event %q: of a kind this version does not know; upgrade this node before using what wrote it", e.Kind)
	}
	if at, ok := n.State().Seen(e.ID); ok && n.raft.Load().State() == raft.Leader {
		e.Index = at
		return e, nil
	}
	frame, _, err := encodeEvent(e)
	if err != nil {
		return e, err
	}
	if err := ctx.Err(); err != nil {
		return e, err
	}
	if !n.appends.enter() {
		return e, ErrClosed
	}
	wait := enqueue
	if d, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(d)), time.Millisecond)
	}
	type outcome struct {
		applied applied
		err     error
	}
	done := make(chan outcome, 1)
	go func() { // ends when raft answers, which Close waits for
		defer n.appends.leave()
		f := n.raft.Load().Apply(frame, wait)
		if err := f.Error(); err != nil {
			done <- outcome{err: err}
			return
		}
		done <- outcome{applied: f.Response().(applied)}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return e, fmt.Errorf("append %s: %w", e.Kind, raftError(o.err))
		}
		if errors.Is(o.applied.err, rota.ErrDuplicate) {
			if at, ok := n.State().Seen(e.ID); ok {
				o.applied.event.Index = at
			}
			return o.applied.event, nil
		}
		return o.applied.event, o.applied.err
	case <-ctx.Done():
		return e, fmt.Errorf("append %s: not confirmed yet: %w", e.Kind, ctx.Err())
	}
}

// raftError says in this package's words what raft said.
func raftError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("the disk keeps raft busy: %w", err)
	}
	return err
}

// Confirm returns nil when this node still leads in a term, as a majority of the voters says after having been asked now; ErrNotLeader or
// ErrClosed when not. Leading again in a later term is not leading in this one: what began in it may rest on what another leader has
// changed since.
func (n *Node) Confirm(ctx context.Context, term uint64) error {
	select {
	case <-n.closing:
		return ErrClosed
	default:
	}
	asked := n.wire.begun()
	for {
		if err := n.leads(term); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- n.raft.Load().VerifyLeader().Error() }() // raft forgets to answer when it is shut down right now: Close must not wait for it
		select {
		case err := <-done:
			if err != nil {
				return raftError(err)
			}
			// raft also counts answers to what was asked before: another may lead by the time they arrive.
			if n.followed(term, asked) {
				return n.leads(term) // terms only grow: it was this one when the majority was asked
			}
		case <-n.closing:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// followed reports whether a majority of the voters followed this node in a term when they were asked after a call.
func (n *Node) followed(term, call uint64) bool {
	all, follow := 0, 0
	for _, s := range n.raft.Load().GetConfiguration().Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		all++
		if c := n.wire.contact(s.ID); s.ID == raft.ServerID(n.id.Node) || c.term == term && c.call > call {
			follow++
		}
	}
	return follow >= all/2+1
}

// leads returns ErrNotLeader unless raft, for all this node knows, leads in the term.
func (n *Node) leads(term uint64) error {
	r := n.raft.Load()
	switch now := r.CurrentTerm(); {
	case r.State() != raft.Leader:
		return ErrNotLeader
	case now != term:
		return fmt.Errorf("%w in term %d any more: it is term %d", ErrNotLeader, term, now)
	}
	return nil
}

// Close stops the node: first what runs inside Lead, then what waits in Append, then raft, then the state file is brought up to date.
// It returns when every goroutine of the node has ended. It must not be called from inside Lead. Later calls return what the first did.
func (n *Node) Close() error {
	n.once.Do(func() {
		close(n.closing)
		n.end()
		n.stop()
		n.rounds.close()
		n.handOff()
		n.appends.close()
		down := n.raft.Load().Shutdown() // before keep is waited for: it may wait for raft, and raft for a disk that fails
		n.own.Wait()
		err := down.Error() // closes the transport
		n.carrying.Wait()
		n.err = errors.Join(err, n.wire.Close(), n.save(), n.disk.Close(), n.mark.f.Close(), n.unlock())
	})
	return n.err
}

// handOff asks another node to lead before this one stops, so that nobody has to wait for its silence. It is bounded: raft gives up
// after an election's time.
func (n *Node) handOff() {
	if n.alone || n.raft.Load().State() != raft.Leader {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*n.timing.Election+time.Second)
	defer cancel()
	if err := n.transfer(ctx, ""); err != nil && !errors.Is(err, ErrNoMember) {
		n.log.Warn("no other node was found to lead", "err", err)
	}
}

// keepEvery is the least time between two writes of the state file.
const keepEvery = time.Second

// keepShare bounds what writing large states may cost: after a write that took t, none begins for keepShare times t. The log holds
// what the state file does not yet.
const keepShare = 10

// keep brings the state file up to date after changes, and has raft take snapshots.
func (n *Node) keep(ctx context.Context) {
	var pause waiting
	defer pause.stop()
	for {
		changed := n.Changed()
		if n.State().Index() == n.savedIndex {
			var arrival chan struct{}
			if n.waiting {
				arrival = n.arrival
			}
			select {
			case <-changed:
				continue
			case <-arrival:
			case <-ctx.Done():
				return
			}
		}
		begun := time.Now()
		rest := keepEvery
		err := n.save()
		if err == nil {
			err = n.arrived()
		}
		if err != nil {
			rest = 10 * keepEvery
		}
		n.compact()
		select {
		case <-pause.until(max(rest, keepShare*time.Since(begun))):
		case <-ctx.Done():
			return
		}
	}
}

// save writes the state file when it is behind.
func (n *Node) save() error {
	v, _ := n.view.load()
	if v.state.Index() == n.savedIndex {
		return nil
	}
	s := n.saved(v)
	if err := saveState(n.dir, s, n.keepOld); err != nil {
		err = fmt.Errorf("the state file cannot be written: %w", err)
		n.trouble.say(n.log, troubleState, err)
		return err
	}
	n.trouble.over(n.log, troubleState)
	n.savedIndex, n.keepOld = v.state.Index(), true
	return nil
}

func (n *Node) saved(v view) *saved {
	return &saved{
		header: header{Cluster: n.id.Cluster, Node: n.id.Node, Index: v.state.Index(), Term: v.term},
		state:  v.state, notes: n.history.notes(v.state.Index()),
	}
}

// A snapshot is taken when the log grew by this much since the last one.
const (
	snapshotEvents = 8192
	snapshotBytes  = 64 << 20
)

// compact has raft take a snapshot when the log has grown enough, and leaves in the log what Records looks back at.
func (n *Node) compact() {
	if n.fed.Load() < snapshotEvents && n.grew.Load() < snapshotBytes {
		return
	}
	c := n.raft.Load().ReloadableConfig()
	c.TrailingLogs = uint64(n.history.len())
	err := n.raft.Load().ReloadConfig(c)
	if err == nil {
		err = n.raft.Load().Snapshot().Error()
	}
	switch {
	case err == nil:
		n.trouble.over(n.log, troubleSnapshot)
		n.fed.Store(0)
		n.grew.Store(0)
	case errors.Is(err, raft.ErrNothingNewToSnapshot), errors.Is(err, raft.ErrRaftShutdown):
	default:
		n.trouble.say(n.log, troubleSnapshot, fmt.Errorf("no snapshot could be taken: %w", err))
	}
}

// machine is the Node as raft sees it: a state machine.
type machine Node

// applied is what the state machine answers.
type applied struct {
	event rota.Event
	err   error
}

// Apply folds one entry of the log into the state.
func (m *machine) Apply(l *raft.Log) any {
	n := (*Node)(m)
	v, _ := n.view.load()
	if l.Index <= v.state.Index() {
		return applied{err: rota.ErrStale} // replay was here before raft
	}
	e, size, err := decodeEvent(l.Data)
	if err != nil {
		err = fmt.Errorf("entry %d of the log: %w", l.Index, err)
		n.log.Error("an event could not be read and changes nothing", "index", l.Index, "err", err)
		e = rota.Event{At: v.state.At(), Reason: err.Error()}
	}
	e.Index = l.Index
	next, refused := fold(v.state, e)
	r := Record{Event: e}
	if refused != nil {
		r.Refused = refused.Error()
	} else {
		r.Transitions = rota.Transitions(v.state, next)
	}
	n.history.add(r, size)
	n.mark.set(l.Index, l.Term)
	n.view.store(view{next, l.Term})
	n.fed.Add(1)
	n.grew.Add(int64(len(l.Data)))
	return applied{e, errors.Join(err, refused)}
}

// StoreConfiguration notes where in the log the members changed.
func (m *machine) StoreConfiguration(index uint64, _ raft.Configuration) {
	n := (*Node)(m)
	n.membersAt.Store(index)
}

// fold is State.Apply. A panic in it is a bug of ours that would come back at every start, for ever; so it refuses the event instead,
// on every node alike.
func fold(s *rota.State, e rota.Event) (next *rota.State, err error) {
	defer func() {
		if p := recover(); p != nil {
			next, _ = s.Apply(rota.Event{Index: e.Index, At: e.At}) // of no kind: refused, with its place taken
			err = fmt.Errorf("event %d (%s) cannot be applied, which is a bug in rota: %v", e.Index, e.Kind, p)
		}
	}()
	return s.Apply(e)
}

// Snapshot takes hold of the state; Persist writes it.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	n := (*Node)(m)
	v, _ := n.view.load()
	if n.recovering { // once, with all that the log held
		n.recovering = false
		v.state = v.state.Recovered()
		n.view.store(v)
	}
	return (*snapshot)(n.saved(v)), nil
}

// Restore takes the state of a snapshot that another node sent.
func (m *machine) Restore(r io.ReadCloser) error {
	n := (*Node)(m)
	s, err := readSaved(r)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if s.header.Cluster != n.id.Cluster {
		return fmt.Errorf("snapshot: %w: %s; this node is of %s", ErrForeign, s.header.Cluster, n.id.Cluster)
	}
	n.view.store(view{s.state, s.header.Term})
	return nil
}

type snapshot saved

func (s *snapshot) Persist(sink raft.SnapshotSink) error { return (*saved)(s).write(sink) }
func (s *snapshot) Release()                             {}
