// Package sim is for tests only. Network is a network in memory between the nodes of a cluster, with the faults that real ones have:
// cuts in one direction or both, delay, and messages that are lost on their way there or back. The tests of this package wire real
// cluster nodes, real publishers and a DNS that keeps its promises and nobody's secrets into one synctest bubble, and let one seed
// decide what goes wrong.
package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Network carries messages between addresses. Its methods may be called from any goroutine.
type Network struct {
	// Timeout is how long a caller waits for an answer. It must not change once messages flow.
	Timeout time.Duration

	mu    sync.Mutex // guards what follows
	ends  map[string]*Transport
	cut   map[[2]string]bool // from, to
	delay time.Duration      // at most, each way
	loss  float64            // of messages, each way
	rnd   *rand.Rand
}

// NewNetwork returns a network without faults. The seed decides which messages a lossy one loses.
func NewNetwork(seed uint64) *Network {
	return &Network{
		Timeout: time.Second, ends: map[string]*Transport{}, cut: map[[2]string]bool{}, rnd: rand.New(rand.NewPCG(seed, 1)),
	}
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

// Reach ends the cuts from and to an address.
func (n *Network) Reach(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.cut {
		if k[0] == addr || k[1] == addr {
			delete(n.cut, k)
		}
	}
}

// Weather sets the longest delay of a message and the share of messages that are lost.
func (n *Network) Weather(delay time.Duration, loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay, n.loss = delay, loss
}

// Heal ends all faults.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.delay, n.loss = 0, 0
}

// Errors of the network, as a caller sees them.
var (
	errSilence = errors.New("no answer")
	errRefused = errors.New("connection refused")
)

// leg carries one message. It waits as long as the message travels, or as long as the caller waits for a lost one.
func (n *Network) leg(from, to string, stop <-chan struct{}, deadline time.Time) error {
	n.mu.Lock()
	lost := n.cut[[2]string{from, to}] || n.loss > 0 && n.rnd.Float64() < n.loss
	var d time.Duration
	if n.delay > 0 {
		d = time.Duration(n.rnd.Int64N(int64(n.delay)))
	}
	n.mu.Unlock()
	if lost || time.Until(deadline) < d {
		d, lost = time.Until(deadline), true
	}
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-stop:
			return errSilence
		}
	}
	if lost {
		return fmt.Errorf("%s to %s: %w", from, to, errSilence)
	}
	return nil
}

// Call runs f as if it were a request that one address answers to another. With an error, f may have been run or not.
func (n *Network) Call(ctx context.Context, from, to string, f func(context.Context) error) error {
	deadline := time.Now().Add(n.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := n.leg(from, to, ctx.Done(), deadline); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := f(ctx); err != nil {
		return err
	}
	return n.leg(to, from, ctx.Done(), deadline)
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
	return call(t, to, a, nil, r)
}

// RequestVote is raft's call of that name.
func (t *Transport) RequestVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	return call(t, to, a, nil, r)
}

// RequestPreVote is raft's call of that name.
func (t *Transport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, a *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	return call(t, to, a, nil, r)
}

// TimeoutNow is raft's call of that name.
func (t *Transport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, a *raft.TimeoutNowRequest, r *raft.TimeoutNowResponse) error {
	return call(t, to, a, nil, r)
}

// InstallSnapshot is raft's call of that name.
func (t *Transport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, a *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return call(t, to, a, b, r)
}

func call[R any](t *Transport, to raft.ServerAddress, command any, data []byte, out *R) error {
	deadline := time.Now().Add(t.net.Timeout)
	if err := t.net.leg(t.addr, string(to), t.closed, deadline); err != nil {
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
	timer := time.NewTimer(time.Until(deadline))
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
			return errSilence
		case <-timer.C:
			return errSilence
		}
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return r.Error
		}
		if err := t.net.leg(string(to), t.addr, t.closed, deadline); err != nil {
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
		return errSilence
	case <-timer.C:
		return errSilence
	}
}

// fast returns who answers the command when it is a heartbeat.
func (t *Transport) fast(command any) func(raft.RPC) {
	a, ok := command.(*raft.AppendEntriesRequest)
	if !ok || a.Term == 0 || a.PrevLogEntry != 0 || a.PrevLogTerm != 0 || len(a.Entries) != 0 || a.LeaderCommitIndex != 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heartbeat
}
