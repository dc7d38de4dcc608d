// Package sim is for tests only. Network is a network in memory between the nodes of a cluster, with the faults that real ones have:
// cuts in one direction or both, delay, messages that are lost on their way there or back, and machines that stand still. The tests of this package wire real
// cluster nodes, real publishers and a DNS that keeps its promises and nobody's secrets into one synctest bubble, and let one seed
// decide what goes wrong.
package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Network carries messages between addresses. Its methods may be called from any goroutine.
//
// Every message travels for a while that the seed decides: so hardly ever do two things happen at one instant, and what happens depends
// on the seed rather than on which goroutine runs first.
type Network struct {
	// Timeout is how long a caller waits for an answer. It must not change once messages flow.
	Timeout time.Duration
	seed    uint64

	// Now is called, with a number that the seed has for this moment and link, whenever a message arrives or is given up. It must not
	// change once messages flow. Nil: nobody is.
	Now func(uint64)

	mu     sync.Mutex // guards what follows
	ends   map[string]*Transport
	cut    map[[2]string]bool   // from, to
	paused map[string]time.Time // until when an address does nothing
	delay  time.Duration        // at most, each way, beside that of a good network
	loss   float64              // of messages, each way
}

// goodDelay is what a message takes at most on a network without faults, each way.
const goodDelay = time.Millisecond

// NewNetwork returns a network without faults. The seed decides how long messages travel, and which a lossy network loses.
func NewNetwork(seed uint64) *Network {
	return &Network{
		Timeout: time.Second, seed: seed, ends: map[string]*Transport{}, cut: map[[2]string]bool{}, paused: map[string]time.Time{},
	}
}

// draw returns what decides about a message of a kind that leaves now on a link. It depends on nothing but these and the seed: what
// went before it, and in which order, does not matter.
func (n *Network) draw(from, to, kind string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %q %d", from, to, kind, time.Now().UnixNano())
	return rand.New(rand.NewPCG(n.seed, h.Sum64()))
}

// Cut stops what goes from one address to another, and lets the other direction pass.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = true
}

// Split stops everything between two groups of addresses.
func (n *Network) Split(a, b []string) {
	for _, x := range a {
		for _, y := range b {
			n.Cut(x, y)
			n.Cut(y, x)
		}
	}
}

// Mend lets pass again what goes from one address to another.
func (n *Network) Mend(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, [2]string{from, to})
}

// Weather sets the longest delay of a message and the share of messages that are lost.
func (n *Network) Weather(delay time.Duration, loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay, n.loss = delay, loss
}

// Pause stops an address for a while, as when its machine stands still: what it has decided to send leaves afterwards, what reaches it
// meanwhile waits, and its own patience does not run out.
func (n *Network) Pause(addr string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[addr] = time.Now().Add(d)
}

// Heal ends all faults. What was under way under one still suffers it.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.paused)
	n.delay, n.loss = 0, 0
}

// Errors of the network, as a caller sees them.
var (
	errSilence = errors.New("no answer")
	errRefused = errors.New("connection refused")
)

// call is a request and its answer, while they travel.
type call struct {
	net      *Network
	from, to string
	kind     string
	stop     <-chan struct{}
	deadline time.Time // of the caller's patience
}

// newCall is a call that begins now. Those that begin at one instant do not lose patience at one instant.
func (n *Network) newCall(from, to, kind string, stop <-chan struct{}) *call {
	patience := n.Timeout + time.Duration(n.draw(from, to, kind).Int64N(int64(goodDelay)))
	return &call{n, from, to, kind, stop, time.Now().Add(patience)}
}

// there carries the request, back the answer. Each waits as long as the message travels, or as long as the caller waits for a lost one.
func (c *call) there() error { return c.leg(c.from, c.to) }
func (c *call) back() error  { return c.leg(c.to, c.from) }

func (c *call) leg(from, to string) error {
	if err := c.sleep(c.pause(from)); err != nil {
		return err
	}
	n := c.net
	r := n.draw(from, to, c.kind)
	n.mu.Lock()
	d, storm, luck := 1+time.Duration(r.Int64N(int64(goodDelay))), r.Float64(), r.Float64()
	d += time.Duration(storm * float64(n.delay))
	lost := n.cut[[2]string{from, to}] || luck < n.loss
	n.mu.Unlock()
	if !lost && time.Until(c.deadline) >= d {
		if err := c.sleep(d); err != nil {
			return err
		}
		d = c.pause(to)
	}
	if lost || time.Until(c.deadline) < d {
		if err := c.sleep(time.Until(c.deadline)); err != nil {
			return err
		}
		return fmt.Errorf("%s to %s: %w", from, to, errSilence)
	}
	return c.sleep(d)
}

// pause returns how long an address still stands still. The caller's patience stands still with it.
func (c *call) pause(addr string) time.Duration {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	d := max(0, time.Until(c.net.paused[addr]))
	if addr == c.from {
		c.deadline = c.deadline.Add(d)
	}
	return d
}

func (c *call) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		c.now()
		return nil
	case <-c.stop:
		return c.ended()
	}
}

// now tells of this moment whoever wants to know.
func (c *call) now() {
	if c.net.Now != nil {
		c.net.Now(c.net.draw(c.from, c.to, c.kind).Uint64())
	}
}

// ended returns what a caller sees whose end was closed. Calls that are ended at one instant do not return at one instant.
func (c *call) ended() error {
	time.Sleep(1 + time.Duration(c.net.draw(c.from, c.to, c.kind).Int64N(int64(goodDelay))))
	c.now()
	return errSilence
}

// Call runs f as if it were a request that one address answers to another. With an error, f may have been run or not.
func (n *Network) Call(ctx context.Context, from, to string, f func(context.Context) error) error {
	c := n.newCall(from, to, "call", ctx.Done())
	if d, ok := ctx.Deadline(); ok && d.Before(c.deadline) {
		c.deadline = d
	}
	if err := c.there(); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, c.deadline)
	defer cancel()
	if err := f(ctx); err != nil {
		return err
	}
	return c.back()
}

// Transport is one node's end of the network, as raft wants it.
type Transport struct {
	net       *Network
	addr      string
	consumer  chan raft.RPC
	closed    chan struct{}
	once      sync.Once
	mu        sync.Mutex // guards heartbeat
	heartbeat func(raft.RPC)
}

var _ interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
} = (*Transport)(nil)

// Transport returns a new end at an address. It replaces the one that was there before.
func (n *Network) Transport(addr string) *Transport {
	t := &Transport{net: n, addr: addr, consumer: make(chan raft.RPC), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[addr] = t
	return t
}

// Close ends the end and every call on it.
func (t *Transport) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// Consumer returns what arrives.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr returns the end's address.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.addr) }

// EncodePeer writes an address.
func (t *Transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer reads an address.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler sets who answers heartbeats past the queue.
func (t *Transport) SetHeartbeatHandler(f func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heartbeat = f
}

// AppendEntriesPipeline says that this network has none.
func (t *Transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries is raft's call of that name.
func (t *Transport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, a *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	return ask(t, to, a, nil, r)
}

// RequestVote is raft's call of that name.
func (t *Transport) RequestVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	return ask(t, to, a, nil, r)
}

// RequestPreVote is raft's call of that name.
func (t *Transport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	return ask(t, to, a, nil, r)
}

// TimeoutNow is raft's call of that name.
func (t *Transport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, a *raft.TimeoutNowRequest, r *raft.TimeoutNowResponse) error {
	return ask(t, to, a, nil, r)
}

// InstallSnapshot is raft's call of that name.
func (t *Transport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, a *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return ask(t, to, a, b, r)
}

func ask[R any](t *Transport, to raft.ServerAddress, command any, data []byte, out *R) error {
	kind := fmt.Sprintf("%T", command)
	if heartbeat(command) {
		kind = "heartbeat"
	}
	c := t.net.newCall(t.addr, string(to), kind, t.closed)
	if err := c.there(); err != nil {
		return err
	}
	t.net.mu.Lock()
	peer := t.net.ends[string(to)]
	t.net.mu.Unlock()
	if peer == nil {
		return errRefused
	}
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, RespChan: answer}
	if data != nil {
		rpc.Reader = bytes.NewReader(data)
	}
	timer := time.NewTimer(time.Until(c.deadline))
	defer timer.Stop()
	if f := peer.fast(command); f != nil {
		select {
		case <-peer.closed:
			return errRefused
		default:
			go f(rpc) // ends when raft has answered; raft answers heartbeats at once
		}
	} else {
		select {
		case peer.consumer <- rpc:
		case <-peer.closed:
			return errRefused
		case <-t.closed:
			return c.ended()
		case <-timer.C:
			return errSilence
		}
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return r.Error
		}
		if err := c.back(); err != nil {
			return err
		}
		v, ok := r.Response.(*R)
		if !ok {
			return fmt.Errorf("an answer of type %T", r.Response)
		}
		*out = *v
		return nil
	case <-peer.closed:
		return errRefused
	case <-t.closed:
		return c.ended()
	case <-timer.C:
		return errSilence
	}
}

// fast returns who answers the command past the queue, when it is a heartbeat.
func (t *Transport) fast(command any) func(raft.RPC) {
	if !heartbeat(command) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heartbeat
}

// heartbeat reports whether raft takes a command for one.
func heartbeat(command any) bool {
	a, ok := command.(*raft.AppendEntriesRequest)
	return ok && a.Term != 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}
