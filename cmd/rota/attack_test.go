package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// oneOfMany is the configuration of a node on a port that was free, with agents that are accepted.
func oneOfMany(t *testing.T, name string) *config.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return parsed(t, `node: {name: %s, data_dir: %q}
api: {listen: ""}
cluster: {election: raft, listen: %q}
vantage: {agents: {accept: [far, near]}}
dns: {listen: "127.0.0.1:0", zones: {example.test: {ns: [ns.example.net]}}}
services: {www.example.test: {endpoints: [192.0.2.1, 192.0.2.2]}}
`, name, t.TempDir(), l.Addr())
}

// begun runs the first node of a cluster, which leads.
func begun(t *testing.T) *node {
	t.Helper()
	cfg := oneOfMany(t, "a")
	if made, err := bootstrap(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil || !made {
		t.Fatal(made, err)
	}
	n := running(t, cfg)
	until(t, "it leads, and knows itself and the agents", func() bool {
		st := n.raft.State()
		return n.leading.Load() != 0 && len(st.Nodes()) == 1 && len(st.Spec().Vantages) == 3
	})
	return n
}

// running runs a node until the test ends.
func running(t *testing.T, cfg *config.Config) *node {
	t.Helper()
	n, err := newNode(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

// joining has a node join with a token, not yet run.
func joining(t *testing.T, first *node, name string) *config.Config {
	t.Helper()
	token, err := operator{first}.Token(t.Context(), api.TokenRequest{Role: "node"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := oneOfMany(t, name)
	if _, joined, err := join(t.Context(), cfg, token.Token, false); err != nil || !joined {
		t.Fatal(joined, err)
	}
	return cfg
}

// A node that asked for its vote in vain, and was taken in without one, goes on to ask.
func TestVoteAfterAllThat(t *testing.T) {
	a := begun(t)
	cfg := joining(t, a, "b")
	path := filepath.Join(cfg.Node.DataDir, linkDir, joinFile)
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeHosts(path, hosts{Addresses: []string{"127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 100)
	b, err := newNode(cfg, slog.New(slog.NewTextHandler(told(said), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for line := range said {
		if strings.Contains(line, "no node of the cluster took this one in yet") {
			break
		}
	}
	me := b.raft.Status()
	if err := a.raft.AddNonvoter(t.Context(), cluster.Member{ID: me.NodeID, Name: "b", Address: b.net.address}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is in", func() bool { return len(b.raft.Members()) == 2 })
	if b.raft.Status().Voter {
		t.Fatal("it has its vote already")
	}
	if err := os.WriteFile(path, right, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "it has its vote", func() bool { return b.raft.Status().Voter })
}

// told is a log that tells each line, as long as somebody takes them.
type told chan<- string

func (l told) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

// What another node forwards about nodes is about itself: it can neither send another away nor rename it.
func TestNodesSpeakForThemselves(t *testing.T) {
	a := begun(t)
	me := a.raft.State().Nodes()[0]
	other := link.Identity{Cluster: a.raft.Status().Cluster, Role: link.Node, ID: "other", Name: "b"}
	outside := link.Identity{Role: link.Node, Name: "c"} // of certificates that carry no ids
	for _, c := range []struct {
		from link.Identity
		n    rota.Node
		ok   bool
	}{
		{other, rota.Node{ID: me.ID, Gone: true}, false},
		{other, rota.Node{ID: me.ID, Name: "x"}, false},
		{other, rota.Node{ID: "other", Gone: true, Unmet: true}, false},
		{outside, rota.Node{ID: me.ID, Name: "x"}, false},
		{other, rota.Node{ID: "other", Name: "b"}, true},
		{outside, rota.Node{ID: "third", Name: "c"}, true},
	} {
		_, err := a.appendFor(t.Context(), c.from, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{c.n}})
		if (err == nil) != c.ok {
			t.Errorf("%v of %+v: %v", c.from, c.n, err)
		}
	}
	if st := a.raft.State(); st.WasRemoved(me.ID) || !slices.Contains(st.Nodes(), me) {
		t.Error(st.Nodes(), st.Removed())
	}
}

// An agent that was let in reports for agents alone: under the name of a node it has no say, whoever took it to be what.
func TestAgentWithTheNameOfANode(t *testing.T) {
	a := begun(t)
	packed := a.raft.State().Table().Pack(&rota.Report{Vantage: "a", Incarnation: 1, Seq: 1})
	for name, want := range map[string]bool{"a": false, "nobody": false, "far": true} {
		b := slices.Clone(packed)
		if name == "far" {
			b = a.raft.State().Table().Pack(&rota.Report{Vantage: "far", Incarnation: 1, Seq: 1})
		}
		r := httptest.NewRequest("POST", agent.ReportPath, strings.NewReader(string(b)))
		r.Header.Set("Content-Type", agent.ReportType)
		r = r.WithContext(link.WithPeer(r.Context(), link.Identity{Role: link.Agent, ID: name, Name: name}))
		rw := httptest.NewRecorder()
		(*a.net.serv.Load()).ServeHTTP(rw, r)
		if ok := rw.Code == 204; ok != want {
			t.Errorf("%s: %d %s", name, rw.Code, rw.Body)
		}
	}
	if _, err := a.command(t.Context(), command{Op: api.OpAdd, Address: "127.0.0.1:1", ID: "x"}); err == nil {
		t.Error("who does not answer was added")
	}
	err := a.raft.AddNonvoter(t.Context(), cluster.Member{ID: "x", Name: "far", Address: "127.0.0.1:1"})
	if err == nil || len(a.raft.Members()) != 1 {
		t.Errorf("a node with an agent's name: %v, %v", err, a.raft.Members())
	}
}

// Agents that wait for news sleep while others report; a change of the state wakes them.
func TestAgentsSleepWhileOthersReport(t *testing.T) {
	a := begun(t)
	for seq := uint64(1); ; seq++ {
		st, told := a.raft.State(), a.ledOrChanged()
		heard := a.raft.ReportsChanged()
		r := &rota.Report{Vantage: "far", Incarnation: 1, Seq: seq}
		if err := a.inbox.Take("far", "", 0, st.Table().Pack(r)); err != nil {
			t.Fatal(err)
		}
		<-heard
		news := a.news.wait()
		a.doubt.doubted.fire() // feed looks again
		<-news
		select {
		case <-told:
			if a.raft.State() == st && seq > 10 {
				t.Fatal("a report woke them")
			}
			continue // by what was decided meanwhile
		default:
		}
		if _, err := a.raft.Append(t.Context(), rota.Event{Kind: rota.EventTick}); err != nil {
			t.Fatal(err)
		}
		<-told
		return
	}
}

// Bootstrap that is run again, because it was cut short or its certificate was lost, goes on with the authority that is there.
func TestBootstrapKeepsTheAuthority(t *testing.T) {
	cfg := oneOfMany(t, "a")
	quiet := slog.New(slog.DiscardHandler)
	again := func() link.Pin {
		t.Helper()
		if made, err := bootstrap(t.Context(), cfg, quiet); err != nil || !made {
			t.Fatal(made, err)
		}
		files := link.FilesIn(filepath.Join(cfg.Node.DataDir, linkDir))
		ca, err := link.LoadCA(files)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := link.LoadCredentials(link.CredentialOptions{Files: files}); err != nil {
			t.Fatal(err)
		}
		return ca.Pin()
	}
	pin := again()
	files := link.FilesIn(filepath.Join(cfg.Node.DataDir, linkDir))
	for _, lost := range [][]string{{files.Cert}, {files.Cert, files.Key}} {
		for _, path := range lost {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if again() != pin {
			t.Errorf("without %v: another authority", lost)
		}
	}
	if err := errors.Join(os.Remove(files.Cert), os.Remove(files.CAKey)); err != nil { // as if cut short between the authority's two files
		t.Fatal(err)
	}
	again()
	other, err := link.NewCA("another")
	if err == nil {
		err = errors.Join(other.Save(files), os.Remove(files.Cert))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bootstrap(t.Context(), cfg, quiet); err == nil || !strings.Contains(err.Error(), "mixed") {
		t.Errorf("with the authority of another cluster: %v", err)
	}
}

// A join token for an agent lets in the one that it names, which the list shows.
func TestTokenIsForOneAgent(t *testing.T) {
	a := begun(t)
	o := operator{a}
	if _, err := o.Token(t.Context(), api.TokenRequest{Role: "agent", Name: "stranger"}); !errors.Is(err, api.ErrConflict) {
		t.Errorf("a token for nobody: %v", err)
	}
	made, err := o.Token(t.Context(), api.TokenRequest{Role: "agent", Name: "far", Author: "me"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := o.Tokens(t.Context())
	if err != nil || len(list) != 1 || fmt.Sprint(list[0].ID, list[0].Name, list[0].Note) != fmt.Sprint(made.ID, "far", "me") {
		t.Errorf("%+v, %v", list, err)
	}
	token, err := link.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	refused := &link.JoinError{}
	if _, err := link.Join(t.Context(), link.JoinOptions{Token: token, Name: "near"}); !errors.As(err, &refused) || refused.Reason != link.JoinRefused {
		t.Errorf("another agent: %v", err)
	}
	if _, err := link.Join(t.Context(), link.JoinOptions{Token: token, Name: "far"}); err != nil {
		t.Error(err)
	}
}
