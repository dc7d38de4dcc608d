package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

func parsed(t *testing.T, format string, args ...any) *config.Config {
	t.Helper()
	c, err := config.Parse("rota.yaml", fmt.Appendf(nil, format, args...), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A start that cannot bind its sockets says so in a line, and leaves nothing behind: the next one works.
func TestStartThatFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	for _, c := range []struct{ name, api, dns, want string }{
		{"name server's port is taken", `""`, taken.Addr().String(), "in use"},
		{"name server's address is elsewhere", `""`, "203.0.113.9:5353", "cannot assign"},
		{"the API's port is taken", taken.Addr().String(), "127.0.0.1:0", "in use"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := parsed(t, "node: {name: a, data_dir: %q}\napi: {listen: %s}\ndns: {listen: %q, zones: {example.test: {ns: [ns.example.net]}}}\n"+
				"services: {www.example.test: {endpoints: [192.0.2.1]}}\n", dir, c.api, c.dns)
			n, err := newNode(cfg, slog.New(slog.DiscardHandler))
			if err == nil {
				n.raft.Close()
				t.Fatal("it started")
			}
			if text := err.Error(); !strings.Contains(text, c.want) || strings.Contains(text, "\n") {
				t.Errorf("got %q, want one line with %q", text, c.want)
			}
		})
	}
	left := filepath.Join(dir, "restore-123.tmp") // of a process that was killed
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := newNode(serviceOf(t, dir, 1), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("after the failures: %v", err)
	}
	n.raft.Close()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was being restored is left: %v", err)
	}
}

// A name that moves between the static records and the services by a reload is answered all the time, and the serial goes on growing.
func TestReloadMovesAName(t *testing.T) {
	dir := t.TempDir()
	const frame = "node: {name: a, data_dir: %q}\napi: {listen: \"\"}\ndns: {listen: \"127.0.0.1:0\", zones: {example.test: {ns: [ns.example.net], records: %q}}}\n" +
		"services: {other.example.test: {endpoints: [192.0.2.9]}%s}\n"
	static := parsed(t, frame, dir, "www 5 IN A 192.0.2.1", "")
	service := parsed(t, frame, dir, "", ", www.example.test: {ttl: 5s, endpoints: [192.0.2.1]}")
	n, err := newNode(static, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.raft.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.lead(ctx) })
	until(t, "the node leads", func() bool { return n.ready() == nil })
	wg.Go(func() { n.dns.Run(ctx) })
	asked := 0
	wg.Go(func() {
		server := n.dns.Addrs()[0].String()
		serial := uint32(0)
		for ctx.Err() == nil {
			in, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("www.example.test.", dns.TypeA), server)
			if err == nil {
				if asked++; in.Rcode != dns.RcodeSuccess || len(in.Answer) != 1 {
					t.Errorf("answered %s with %d records", dns.RcodeToString[in.Rcode], len(in.Answer))
				}
			}
			in, _, err = new(dns.Client).Exchange(new(dns.Msg).SetQuestion("example.test.", dns.TypeSOA), server)
			if err == nil && len(in.Answer) == 1 {
				now := in.Answer[0].(*dns.SOA).Serial
				if serial != 0 && int32(now-serial) < 0 {
					t.Errorf("the serial went from %d to %d", serial, now)
				}
				serial = now
			}
		}
	})
	before := n.raft.State().Serial()
	for i := range 20 {
		next := service
		if i%2 == 1 {
			next = static
		}
		n.load = func() (*config.Config, error) { return next, nil }
		if err := n.reload(t.Context(), "a test"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
	if asked == 0 {
		t.Error("nothing was asked")
	}
	if after := n.raft.State().Serial(); after-before < 20 {
		t.Errorf("the serial grew by %d in 20 reloads", after-before)
	}
}

// Nothing is said to publishers of a service until this process has seen its endpoints, or had the time to.
func TestEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := rota.Check{Name: "web", Kind: rota.KindTCP, Port: 80, Timing: rota.DefaultTiming()}
		name := rota.MustParseName("www.example.org")
		v := rota.Service{Name: name, TTL: 30, Safety: rota.DefaultSafety(), Endpoints: []rota.Endpoint{
			{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1, Checks: []rota.Use{{Check: check}}},
			{Address: netip.MustParseAddr("192.0.2.2"), Weight: 1, Checks: []rota.Use{{Check: check}}},
		}}
		spec := rota.Spec{Services: []rota.Service{v}, Vantages: []rota.Vantage{{Name: "a", Site: "a"}}}
		st, err := new(rota.State).Apply(rota.Event{Index: 1, At: time.Now(), Kind: rota.EventSpec, Spec: &spec})
		if err != nil {
			t.Fatal(err)
		}
		taken := func(second rota.Status) *rota.State {
			ts := st.Targets()
			next, err := st.Apply(rota.Event{Index: st.Index() + 1, At: time.Now(), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{
				{Target: ts[0].ID, Status: rota.Up}, {Target: ts[1].ID, Status: second},
			}})
			if err != nil {
				t.Fatal(err)
			}
			return next
		}
		report := func(second rota.Status) []*rota.Report {
			ts := st.Targets()
			return []*rota.Report{{Vantage: "a", Seq: 1, At: time.Now(), Opinions: []*rota.Opinion{
				{Target: ts[0].ID, Status: rota.Up}, {Target: ts[1].ID, Status: second},
			}}}
		}
		e := newEvidence(time.Now())
		remembered := taken(rota.Up)
		wake := e.look(remembered, report(rota.Unknown), time.Now())
		if !e.held(name) || wake == nil {
			t.Error("half an opinion is taken for evidence, or nobody looks again")
		}
		if e.look(remembered, report(rota.Down), time.Now()); !e.held(name) {
			t.Error("the state has not taken in yet that the second endpoint is down, and is believed")
		}
		if e.look(taken(rota.Down), report(rota.Down), time.Now()) != nil || e.held(name) {
			t.Error("both endpoints were heard of, and the service is still held")
		}

		late := newEvidence(time.Now())
		began := time.Now()
		<-late.look(st, nil, time.Now())
		if got := time.Since(began); got != v.Grace() {
			t.Errorf("looked again after %v, want the grace of %v", got, v.Grace())
		}
		if late.look(st, nil, time.Now()); late.held(name) {
			t.Error("a vantage that cannot see holds the service for ever")
		}
	})
}

// A configuration that cannot be ordered leaves the old one in force, its zones included, and is tried again.
func TestReloadThatCannotBeOrdered(t *testing.T) {
	dir := t.TempDir()
	const frame = "node: {name: a, data_dir: %q}\napi: {listen: \"\"}\ndns: {listen: \"127.0.0.1:0\", zones: {example.test: {ns: [ns.example.net], records: %q}}}\n" +
		"services: {%s.example.test: {endpoints: [192.0.2.9]}}\n"
	n, err := newNode(parsed(t, frame, dir, "mail 5 IN A 192.0.2.1", "www"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	led(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.dns.Run(ctx) }()
	if err := n.raft.Close(); err != nil {
		t.Fatal(err)
	}
	before := n.current.Load().cfg
	n.load = func() (*config.Config, error) { return parsed(t, frame, dir, "post 5 IN A 192.0.2.2", "api"), nil }
	err = n.reload(t.Context(), "a test")
	if err == nil || n.retry(err) == nil {
		t.Errorf("got %v, want an error after which it is tried again", err)
	}
	if n.current.Load().cfg != before {
		t.Error("the new configuration is in force")
	}
	for name, want := range map[string]int{"mail.example.test.": 1, "www.example.test.": 1, "post.example.test.": 0} {
		in, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), n.dns.Addrs()[0].String())
		if err != nil || len(in.Answer) != want {
			t.Errorf("%s: %d records, %v; want %d", name, len(in.Answer), err, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
