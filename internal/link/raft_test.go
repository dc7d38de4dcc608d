package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

var _ raft.StreamLayer = (*Stream[raft.ServerAddress])(nil)

// tally is a state machine that keeps what it was told.
type tally struct {
	mu  sync.Mutex
	all []string
}

func (l *tally) Apply(e *raft.Log) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(e.Data))
	return nil
}

func (l *tally) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

func (l *tally) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none here") }
func (l *tally) Restore(io.ReadCloser) error         { return errors.New("none here") }

// voter is a member with a real raft over its port.
type voter struct {
	*process
	raft *raft.Raft
	fsm  *tally
}

// voters starts three nodes, and lets the first begin with all of them.
func voters(t *testing.T, w *world) []*voter {
	var out []*voter
	var conf raft.Configuration
	for _, name := range []string{"a", "b", "c"} {
		p := w.node(name)
		trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: Raft[raft.ServerAddress](p.port), MaxPool: 3, Timeout: 5 * time.Second, Logger: hclog.NewNullLogger(),
		})
		c := raft.DefaultConfig()
		c.LocalID = raft.ServerID(p.id.ID)
		c.Logger = hclog.NewNullLogger()
		v := &voter{process: p, fsm: &tally{}}
		store := raft.NewInmemStore()
		v.raft = must(raft.NewRaft(c, v.fsm, store, store, raft.NewInmemSnapshotStore(), trans))(t)
		t.Cleanup(func() {
			if err := v.raft.Shutdown().Error(); err != nil {
				t.Error(err)
			}
			_ = trans.Close()
		})
		conf.Servers = append(conf.Servers, raft.Server{ID: c.LocalID, Address: raft.ServerAddress(p.addr)})
		out = append(out, v)
	}
	if err := out[0].raft.BootstrapCluster(conf).Error(); err != nil {
		t.Fatal(err)
	}
	return out
}

func leader(t *testing.T, vs []*voter) *voter {
	var l *voter
	until(t, "a leader", func() bool {
		for _, v := range vs {
			if v.raft.State() == raft.Leader && v.raft.VerifyLeader().Error() == nil {
				l = v
				return true
			}
		}
		return false
	})
	return l
}

// say has the leader order something and waits until all have it.
func say(t *testing.T, vs []*voter, what string) {
	t.Helper()
	until(t, "ordered: "+what, func() bool { return leader(t, vs).raft.Apply([]byte(what), patience).Error() == nil })
	n := leader(t, vs).fsm.Len()
	for _, v := range vs {
		until(t, what+" at "+v.id.Name, func() bool { return v.fsm.Len() >= n })
	}
}

func terms(vs []*voter) (out []uint64) {
	for _, v := range vs {
		out = append(out, v.raft.CurrentTerm())
	}
	return out
}

// L13: three nodes elect and replicate over the port, and no outsider moves their term.
func TestRaftOverThePort(t *testing.T) {
	w := newWorld(t, "ourcluster")
	banned(w)
	vs := voters(t, w)
	say(t, vs, "one")
	before := fmt.Sprint(terms(vs))
	for _, o := range outsiders(w) {
		for _, v := range vs {
			if o.reason == OwnID && v.id.Name != "a" {
				continue // b and c know a, though not from here: that is what the id is for
			}
			if o.try(t, v.addr) {
				t.Errorf("%s was let in by %s", o.name, v.id.Name)
			}
		}
	}
	say(t, vs, "two")
	if after := fmt.Sprint(terms(vs)); after != before {
		t.Errorf("terms %s, before the outsiders %s", after, before)
	}
	for _, v := range vs {
		if v.fsm.Len() != 2 {
			t.Errorf("%s holds %d entries", v.id.Name, v.fsm.Len())
		}
	}
}

// L17: certificates are replaced node by node, then the CA, while the cluster goes on; the term shows that no leader was lost.
func TestRotationAndRolloverKeepQuorum(t *testing.T) {
	w := newWorld(t, "ourcluster")
	vs := voters(t, w)
	say(t, vs, "begin")
	first := leader(t, vs)
	term := first.raft.CurrentTerm()
	all := func(step string, f func(*voter) error) {
		t.Helper()
		for _, v := range vs {
			if err := f(v); err != nil {
				t.Fatalf("%s at %s: %v", step, v.id.Name, err)
			}
			for _, o := range vs {
				o.port.Recheck() // what stands must still be good
			}
			say(t, vs, step+" at "+v.id.Name)
			// New connections must do as well as those that stand.
			for _, o := range vs {
				if o != v {
					c := must(o.port.Dial(t.Context(), ProtocolPeer, v.id.ID))(t)
					_ = c.Close()
				}
			}
		}
	}
	all("renewed", func(v *voter) error { return v.creds.Renew(context.Background()) })

	old := w.ca
	next := must(old.Roll())(t)
	all("both CAs trusted", func(v *voter) error { return v.creds.Trust(next.Bundle()) })
	w.mu.Lock()
	w.ca = next
	w.mu.Unlock()
	all("issued by the new CA", func(v *voter) error { return v.creds.Renew(context.Background()) })
	all("the old CA retired", func(v *voter) error { return v.creds.Trust(next.Retire().Bundle()) })

	if now := leader(t, vs); now != first || now.raft.CurrentTerm() != term {
		t.Errorf("leader %s in term %d; it was %s in %d", now.id.Name, now.raft.CurrentTerm(), first.id.Name, term)
	}
	// Connections that were made with the old CA's certificates were ended and made again.
	before := vs[0].port.Stats().Refused[BadCert]
	stale := old.forge(t, w.identity(Node, "late"), nil)
	if _, in, _ := poke(vs[0].addr, &tls.Config{Certificates: []tls.Certificate{stale}, NextProtos: []string{ProtocolPeer}}, "ourcluster", nil); in {
		t.Error("a certificate of the retired CA was let in")
	}
	until(t, "refused for its certificate", func() bool { return vs[0].port.Stats().Refused[BadCert] > before })
}

// A node that is removed hears nothing any more and cannot disturb.
func TestRemovedVoterIsOut(t *testing.T) {
	w := newWorld(t, "ourcluster")
	vs := voters(t, w)
	say(t, vs, "begin")
	l := leader(t, vs)
	var gone *voter
	var rest []*voter
	for _, v := range vs {
		if v != l && gone == nil {
			gone = v
		} else {
			rest = append(rest, v)
		}
	}
	if err := l.raft.RemoveServer(raft.ServerID(gone.id.ID), 0, patience).Error(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	for i, m := range w.members {
		if m.ID == gone.id.ID {
			w.members = append(w.members[:i:i], w.members[i+1:]...)
			break
		}
	}
	w.mu.Unlock()
	w.ban(gone.id.ID, errors.New("was removed"))
	for _, v := range rest {
		v.port.Recheck()
	}
	term := l.raft.CurrentTerm()
	for _, v := range rest {
		if _, err := gone.port.Dial(t.Context(), ProtocolRaft, v.addr); err == nil {
			t.Errorf("%s still takes the removed node's calls", v.id.Name)
		}
	}
	say(t, rest, "without it")
	if now := l.raft.CurrentTerm(); now != term {
		t.Errorf("term %d, was %d", now, term)
	}
}
