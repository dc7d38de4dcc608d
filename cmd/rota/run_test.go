package main

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/config"
)

// serving is a node that answers for a service of this many endpoints, and does not run yet.
func serving(t *testing.T, count int) *node {
	t.Helper()
	n, err := newNode(serviceOf(t, t.TempDir(), count), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.raft.Close() })
	return n
}

func serviceOf(t *testing.T, dir string, count int) *config.Config {
	t.Helper()
	text := fmt.Sprintf(`node: {name: a, data_dir: %q}
api: {listen: ""}
dns: {listen: "127.0.0.1:0", zones: {example.test: {ns: [ns.example.net]}}}
services: {www.example.test: {endpoints: [`, dir)
	for i := range count {
		text += fmt.Sprintf("192.0.2.%d,", i+1)
	}
	c, err := config.Parse("rota.yaml", []byte(text+"]}}\n"), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// endpointsOf counts the endpoints in the state.
func endpointsOf(n *node) int {
	count := 0
	for _, s := range n.raft.State().Services() {
		count += len(s.Endpoints)
	}
	return count
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// led has the node lead with its configuration in force.
func led(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.lead(ctx) }()
	until(t, "the configuration is in the state", func() bool { return endpointsOf(n) == len(n.current.Load().cfg.Spec.Services[0].Endpoints) })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A reload whose asker hangs up is done whole or not at all.
func TestReloadOutlivesItsAsker(t *testing.T) {
	n := serving(t, 2)
	led(t, n)
	next := serviceOf(t, n.current.Load().cfg.Node.DataDir, 3)
	n.load = func() (*config.Config, error) { return next, nil }
	err := n.reload(impatient{t.Context()}, "a test")
	time.Sleep(200 * time.Millisecond) // what was begun has the time to end
	if inForce := len(n.current.Load().cfg.Spec.Services[0].Endpoints); inForce != endpointsOf(n) {
		t.Errorf("the configuration in force has %d endpoints, the state %d (%v)", inForce, endpointsOf(n), err)
	}
}

// impatient is over as soon as anyone waits for it.
type impatient struct{ context.Context }

func (impatient) Done() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// A term that begins in the middle of a reload does not take its event back.
func TestTermBeginsDuringReload(t *testing.T) {
	n := serving(t, 2)
	led(t, n)
	next := serviceOf(t, n.current.Load().cfg.Node.DataDir, 3)
	n.reloading.Lock() // as reload does
	if err := n.respec(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.lead(ctx) }()
	time.Sleep(200 * time.Millisecond) // what must not happen has the time to
	if got := endpointsOf(n); got != 3 {
		t.Errorf("%d endpoints while the reload is under way, want its 3", got)
	}
	old := n.current.Load()
	n.current.Store(&inForce{cfg: next, publishers: old.publishers, since: old.since, replaced: old.replaced})
	n.reloading.Unlock()
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := endpointsOf(n); got != 3 {
		t.Errorf("%d endpoints after the reload, want 3", got)
	}
}
