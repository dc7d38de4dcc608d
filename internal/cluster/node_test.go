package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/rota-dns/rota/internal/rota"
)

// spec returns n services of endpoints addresses each, checked over TCP and judged by three vantages.
func spec(n, endpoints int) *rota.Spec {
	s := &rota.Spec{Vantages: []rota.Vantage{{Name: "a", Site: "x"}, {Name: "b", Site: "y"}, {Name: "c", Site: "z"}}}
	check := rota.Check{Name: "tcp", Kind: rota.KindTCP, Port: 443, Timing: rota.DefaultTiming()}
	for i := range n {
		v := rota.Service{
			Name: rota.MustParseName(fmt.Sprintf("s%06d.example.org", i)), TTL: 30, Publish: []string{rota.Embedded},
			Safety: rota.DefaultSafety(),
		}
		for j := range endpoints {
			k := i*endpoints + j
			v.Endpoints = append(v.Endpoints, rota.Endpoint{
				Address: netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}), Weight: 1,
				Checks: []rota.Use{{Check: check}},
			})
		}
		s.Services = append(s.Services, v)
	}
	return s
}

func mustOpen(t testing.TB, dir string) *Node {
	t.Helper()
	n, err := Open(Options{Dir: dir, Node: "a"})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return n
}

func mustClose(t testing.TB, n *Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// led waits until the node leads.
func led(t testing.TB, n *Node) {
	t.Helper()
	for {
		r, changed := n.round.load()
		if r != nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Fatal("no leader")
		}
	}
}

func mustAppend(t testing.TB, n *Node, e rota.Event) rota.Event {
	t.Helper()
	got, err := n.Append(context.Background(), e)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return got
}

// drain returns an event that changes the state for good.
func drain(i int, s *rota.State) rota.Event {
	at := s.At().Add(time.Duration(i))
	v := s.Services()[i%len(s.Services())]
	return rota.Event{Kind: rota.EventOverride, At: at, Overrides: []rota.Override{{
		Endpoint: rota.EndpointID{Service: v.Name, Address: v.Endpoints[0].Address},
		Action:   rota.ActionDrain, Author: "me", Reason: fmt.Sprint("number ", i), Set: at, Expires: at.Add(24 * time.Hour),
	}}}
}

// same compares two states as they would be stored.
func same(t testing.TB, want, got *rota.State) {
	t.Helper()
	if d := cmp.Diff(want.Snapshot(), got.Snapshot(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Fatalf("the state differs (-want +got):\n%s", d)
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	n := mustOpen(t, dir)
	if n.State().Index() != 0 {
		t.Fatalf("a new node is at index %d", n.State().Index())
	}
	led(t, n)
	id := n.Status().Cluster
	mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
	for i := range 5 {
		mustAppend(t, n, drain(i, n.State()))
	}
	if _, err := n.Append(t.Context(), rota.Event{Kind: "nonsense"}); err == nil || !strings.Contains(err.Error(), "kind") {
		t.Fatalf("an event of no kind: %v", err)
	}
	want, records := n.State(), n.Records(0, 0)
	mustClose(t, n)
	for _, lost := range []string{"", stateFile, stateFile + " " + previousFile} {
		for _, f := range strings.Fields(lost) {
			if err := os.Remove(filepath.Join(dir, f)); err != nil {
				t.Fatal(err)
			}
		}
		n = mustOpen(t, dir) // no election has been waited for
		got := n.State()
		if got.Index() < want.Index() {
			t.Fatalf("without %q: index %d, want at least %d", lost, got.Index(), want.Index())
		}
		old := n.Records(0, 0)
		if len(old) < len(records) {
			t.Fatalf("without %q: %d records, want %d", lost, len(old), len(records))
		}
		if d := cmp.Diff(records, old[:len(records)], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Fatalf("without %q: records differ (-want +got):\n%s", lost, d)
		}
		led(t, n)
		if n.Status().Cluster != id {
			t.Fatal("the cluster id changed")
		}
		mustClose(t, n)
	}
	// A closed node and the one that opens its directory show the very same state.
	n = mustOpen(t, dir)
	led(t, n)
	want = n.State()
	mustClose(t, n)
	same(t, want, n.State())
	s, err := loadState(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	same(t, want, s.state)
}

func TestLeaderSoon(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		n := mustOpen(t, dir)
		led(t, n)
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("leading after %v", took)
		}
		if s := n.Status(); !s.Healthy || !s.Leading || s.Raft != "leader" || s.Voters != 1 || s.LastContact != 0 || s.Leader != "a" {
			t.Errorf("status %+v", s)
		}
		if err := n.Confirm(t.Context(), n.Status().Term); err != nil {
			t.Errorf("Confirm: %v", err)
		}
		mustClose(t, n)
		if err := n.Confirm(t.Context(), n.Status().Term); !errors.Is(err, ErrClosed) {
			t.Errorf("Confirm after Close: %v", err)
		}
		if _, err := n.Append(t.Context(), rota.Event{Kind: rota.EventTick}); !errors.Is(err, ErrClosed) {
			t.Errorf("Append after Close: %v", err)
		}
		if n.State() == nil || n.Status().Raft != "shutdown" {
			t.Error("a closed node does not answer")
		}
	})
}
