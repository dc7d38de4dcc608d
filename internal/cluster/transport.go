package cluster

import (
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Address is where a node is reached, as raft knows it.
type Address = raft.ServerAddress

// Streams make raft's connections and take those of others.
type Streams = raft.StreamLayer

// Transport is what raft's messages go through.
type Transport = raft.Transport

// Bounds of raft's connections.
const (
	pooled     = 3                // kept open to each node
	streamTime = 10 * time.Second // for a message and its answer; for a snapshot, longer with its size
)

// Over makes raft's transport of streams, for Network.Transport.
func Over(open func() Streams) func(Identity) (Transport, error) {
	return func(Identity) (Transport, error) {
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: open(), MaxPool: pooled, Timeout: streamTime, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
		}), nil
	}
}

// Begin makes an empty data directory that of the first node of a new cluster, as Network.Bootstrap does at the first start. With anything
// in it, it does nothing.
func Begin(o Options) error {
	if o.Network == nil {
		return errors.New("a cluster needs a Network to begin with")
	}
	net := *o.Network
	net.Bootstrap = true
	net.Transport = func(Identity) (Transport, error) {
		_, t := raft.NewInmemTransport(raft.ServerAddress(net.Address))
		return t, nil
	}
	o.Network = &net
	n, err := Open(o)
	if err != nil {
		return err
	}
	return n.Close()
}
