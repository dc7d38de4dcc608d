package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// An agent registers the host it runs on under its certificate's name, and no other.
func TestAgentRegisters(t *testing.T) {
	f := newFleet(t, 1, func(int) string {
		return `vantage: {agents: {accept: [cyberdyne-web-sfo, plain]}}
services: {www.example.test: {endpoints: [192.0.2.1]}}
discover:
  - {type: register, host_name: "{id}-{service}-{env}", service_name: "{service}.example.test", also: {host_record: "{host}.example.test"}, expire_after: 1h}
`
	})
	m := f.members[0]
	token := func(name string) string {
		x, err := operator{m.node}.Token(t.Context(), api.TokenRequest{Role: "agent", Name: name, Author: "test"})
		if err != nil {
			t.Fatal(err)
		}
		return x.Token
	}
	log, _, stop := runAgentVerb(t, map[string]string{"ROTA_JOIN_TOKEN": token("cyberdyne-web-sfo")}, "--name", "cyberdyne-web-sfo", "--data-dir", t.TempDir(),
		"--register", "--address", "13.37.0.1")
	f.await("the agent's host is registered: "+log.String(), func() bool {
		r, ok := m.raft.State().Registration("register", "cyberdyne-web-sfo")
		return ok && r.Actor == "agent:cyberdyne-web-sfo" && r.Service == "web.example.test." && !r.Expires.IsZero()
	})
	if got := m.raft.State().Service("web.example.test."); got == nil || got.Endpoints[0].Address != netip.MustParseAddr("13.37.0.1") {
		t.Errorf("its service: %+v", got)
	}
	stop()
	if _, ok := m.raft.State().Registration("register", "cyberdyne-web-sfo"); !ok {
		t.Error("an agent that stops takes its host out")
	}
	// Another agent may not speak of that host.
	files := issued(t, m, link.Agent, "plain", "plain")
	code, text := rawCall(t, files, m, http.MethodPost, registerPath, http.Header{"Content-Type": {"application/json"}},
		[]byte(`{"host": "cyberdyne-web-sfo", "addresses": ["192.0.2.66"]}`))
	if code == http.StatusOK || !bytes.Contains([]byte(text), []byte("may speak of host plain only")) {
		t.Errorf("another agent: %d %s", code, text)
	}
	node := issued(t, m, link.Node, "other", "other")
	if code, text := rawCall(t, node, m, http.MethodPost, registerPath, nil, []byte(`{"host": "a-b-c", "addresses": ["192.0.2.66"]}`)); code == http.StatusOK {
		t.Errorf("a node registers a host: %d %s", code, text)
	}
}

// nodeOf answers as a node whose leases last an hour.
type nodeOf struct {
	start time.Time
	fails int      // requests that fail first
	said  []string // when and what
}

func (n *nodeOf) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var req api.RegisterRequest
	if err := json.Unmarshal(b, &req); err != nil {
		return nil, err
	}
	n.said = append(n.said, fmt.Sprintf("%v %v", time.Since(n.start), req.Addresses))
	reply := func(status int, v any) (*http.Response, error) {
		b, err := json.Marshal(v)
		return &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(b)), Request: r}, err
	}
	if n.fails--; n.fails >= 0 {
		return reply(http.StatusUnprocessableEntity, failure{"no-leader", "no leader"})
	}
	return reply(http.StatusOK, api.RegisterReply{Registered: rota.Registered{Expires: time.Now().Add(time.Hour)}, Renew: 20 * time.Minute})
}

func TestAnnouncer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &nodeOf{start: time.Now(), fails: 2}
		a := &announcer{
			log: quiet, client: &http.Client{Transport: n}, nodes: func() []string { return []string{"192.0.2.1:3648"} }, host: "a-web-b",
			flags: registerFlags{addresses: []string{"13.37.0.1"}},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.run(ctx) }()
		time.Sleep(45 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"0s [13.37.0.1]", "2s [13.37.0.1]", "6s [13.37.0.1]", "20m6s [13.37.0.1]", "40m6s [13.37.0.1]"}
		if !slices.Equal(n.said, want) {
			t.Errorf("said %q, want %q", n.said, want)
		}
	})
}
