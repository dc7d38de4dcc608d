package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// lineAgent says a line to whoever connects, as an agent of HAProxy does.
type lineAgent struct {
	line  atomic.Value
	asked atomic.Int64
}

func (a *lineAgent) listen(t *testing.T, at string) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, a.line.Load().(string)+"\n")
			c.Close()
			a.asked.Add(1)
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

// TestAgentOfHAProxyLeaves has two endpoints behind a real HAProxy each say to it and to us, by one agent, that they leave and come back. With
// as many failures as a check asks for here, nobody would leave within this test without having said so.
func TestAgentOfHAProxyLeaves(t *testing.T) {
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	web, port := peers.FreePort(t, addrs...), 0
	for port == 0 || port == web {
		port = peers.FreePort(t, addrs...)
	}
	agents := make([]lineAgent, len(addrs))
	var conf strings.Builder
	for i, addr := range addrs {
		agents[i].line.Store("up ready 100%")
		agents[i].listen(t, net.JoinHostPort(addr, strconv.Itoa(port)))
		fmt.Fprintf(&conf, "listen l%d\n\tmode http\n\tbind %s:%d\n\thttp-request return status 200\n\tserver s %s:%d agent-check agent-inter 100ms agent-port %d\n", i, addr, web, addr, web, port)
	}
	h := peers.StartHAProxy(t, conf.String())
	cfg := parsed(t, `
node: {name: a, data_dir: %q}
api: {listen: ""}
dns: {listen: "127.0.0.1:0", zones: {example.test: {ns: [ns.example.net]}}}
checks:
  web: {type: http, port: %d, interval: 1s, fast_interval: 1s, timeout: 1s, fall: 100, rise: 1}
  agent: {type: agent-check, port: %d, interval: 1s, fast_interval: 1s, timeout: 1s, fall: 100, rise: 1}
services:
  www.example.test: {ttl: 5s, endpoints: [127.0.0.2, 127.0.0.3], checks: [web, agent], safety: {min_hold: 0s}}
`, t.TempDir(), web, port)
	n, err := newNode(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	answer := func() string {
		in, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("www.example.test.", dns.TypeA), n.dns.Addrs()[0].String())
		if err != nil {
			return err.Error()
		}
		var as []string
		for _, rr := range in.Answer {
			as = append(as, rr.(*dns.A).A.String())
		}
		slices.Sort(as)
		return strings.Join(as, " ")
	}
	held := func() string { // by HAProxy: operational and administrative state of each
		var states []string
		for line := range strings.SplitSeq(h.Ask("show servers state"), "\n") {
			if f := strings.Fields(line); len(f) > 7 && f[3] == "s" {
				states = append(states, f[5]+"/"+f[6])
			}
		}
		return strings.Join(states, " ")
	}
	last := ""
	for i, step := range []struct {
		agent        int
		says         string
		answer, held string
	}{
		{0, "up ready 100%", "127.0.0.2 127.0.0.3", "2/0 2/0"},
		{0, "drain", "127.0.0.3", "2/8 2/0"},
		{1, "drain", "127.0.0.3", "2/8 2/8"}, // all drain: the last answer stays
		{0, "ready", "127.0.0.2", "2/0 2/8"},
		{1, "ready", "127.0.0.2 127.0.0.3", "2/0 2/0"},
		{1, "down # disk is full", "127.0.0.2", "2/0 0/0"},
		{1, "75%", "127.0.0.2", "2/0 0/0"}, // a weight brings nobody back
		{1, "up", "127.0.0.2 127.0.0.3", "2/0 2/0"},
		{0, "maint", "127.0.0.3", "0/1 2/0"},
		{0, "ready up", "127.0.0.2 127.0.0.3", "2/0 2/0"},
	} {
		a := &agents[step.agent]
		a.line.Store(step.says)
		if i > 0 && step.answer == last { // nothing is meant to change: give it the time in which it would
			from := a.asked.Load()
			until(t, "HAProxy and rota ask", func() bool { return a.asked.Load() >= from+25 })
		}
		last = step.answer
		got := ""
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if got = answer() + ", " + held(); got == step.answer+", "+step.held {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("step %d, %s says %q: %s; want %s, %s", i, addrs[step.agent], step.says, got, step.answer, step.held)
			}
		}
	}
}
