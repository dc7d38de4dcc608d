package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

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

// A reload that is refused leaves everything as it was, and says so.
func TestReloadRefused(t *testing.T) {
	n := serving(t, 2)
	led(t, n)
	before := n.current.Load()
	dir := before.cfg.Node.DataDir
	moved := serviceOf(t, dir, 3)
	moved.Node.DataDir += "-elsewhere"
	for _, c := range []struct {
		name string
		load func() (*config.Config, error)
		want string
	}{
		{"no file", nil, "no file to read again"},
		{"unreadable", func() (*config.Config, error) { return nil, errors.New("line 3 is no good") }, "line 3"},
		{"other data directory", func() (*config.Config, error) { return moved, nil }, "restart rota for that"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.load = c.load
			err := n.reload(t.Context(), "a test")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			now := n.current.Load()
			if now.cfg != before.cfg || endpointsOf(n) != 2 {
				t.Error("the configuration was replaced")
			}
			if now.failed == nil {
				t.Error("nobody is told that the newest configuration is not in force")
			}
			select {
			case <-now.replaced:
				t.Error("the publishers were told to stop")
			default:
			}
		})
	}
	n.load = func() (*config.Config, error) { return serviceOf(t, dir, 3), nil }
	if err := n.reload(t.Context(), "a test"); err != nil {
		t.Fatal(err)
	}
	if now := n.current.Load(); now.failed != nil || endpointsOf(n) != 3 {
		t.Errorf("after a good reload: %v, %d endpoints", now.failed, endpointsOf(n))
	}
	select {
	case <-before.replaced:
	default:
		t.Error("the publishers of the old configuration were not told to stop")
	}
}

// Nobody is told that a configured name does not exist, however early the question.
func TestFirstStartHoldsQueries(t *testing.T) {
	n := serving(t, 2)
	if n.ready() == nil {
		t.Error("ready without a state")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.answer(ctx) }()
	answer := make(chan *dns.Msg, 1)
	go func() {
		q := new(dns.Msg).SetQuestion("www.example.test.", dns.TypeA)
		in, _, _ := (&dns.Client{Timeout: 10 * time.Second}).Exchange(q, n.dns.Addrs()[0].String())
		answer <- in
	}()
	select {
	case in := <-answer:
		t.Errorf("answered without a state: %v", in)
	case <-time.After(200 * time.Millisecond):
		led(t, n)
		if in := <-answer; in == nil || len(in.Answer) != 2 {
			t.Errorf("got %v, want both endpoints", in)
		}
	}
	if err := n.ready(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
