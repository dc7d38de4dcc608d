package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// fleet is a cluster of nodes in this process, which meet over their real ports on loopback.
type fleet struct {
	t       testing.TB
	members []*member
	more    func(i int) string // of each node's configuration, beside who and where it is
}

// member is one node of a fleet, across its restarts.
type member struct {
	*node
	fleet *fleet
	index int
	dir   string
	port  int
	stop  func() // nil: it does not run
	cut   func() // ends its port, where a benchmark started it so
}

var quiet = slog.New(slog.DiscardHandler)

// newFleet begins a cluster of this many nodes and waits until all of them vote.
func newFleet(t testing.TB, size int, more func(i int) string) *fleet {
	t.Helper()
	f := &fleet{t: t, more: more}
	for range size {
		f.grow()
	}
	f.await("all nodes vote", func() bool { return len(f.members[0].raft.State().Spec().Vantages) >= size })
	return f
}

// add makes a node that does not run yet.
func (f *fleet) add() *member {
	dir, err := os.MkdirTemp("", "rota") // short: the path of a unix socket has an end
	if err != nil {
		f.t.Fatal(err)
	}
	m := &member{fleet: f, index: len(f.members), dir: dir, port: peers.FreePort(f.t)}
	f.t.Cleanup(func() {
		m.end()
		_ = os.RemoveAll(dir)
	})
	f.members = append(f.members, m)
	return m
}

// grow adds a node, the first by bootstrap, the others by a token.
func (f *fleet) grow() *member {
	f.t.Helper()
	m := f.add()
	if m.index == 0 {
		if begun, err := bootstrap(f.t.Context(), m.config(), quiet); err != nil || !begun {
			f.t.Fatal(begun, err)
		}
	} else {
		token, err := operator{f.members[0].node}.Token(f.t.Context(), api.TokenRequest{Role: "node", Author: "test"})
		if err != nil {
			f.t.Fatal(err)
		}
		if _, joined, err := join(f.t.Context(), m.config(), token.Token, false); err != nil || !joined {
			f.t.Fatal(joined, err)
		}
	}
	m.start()
	f.await(m.name+" has a vote", func() bool { return m.raft.Status().Voter && len(m.raft.State().Services()) > 0 })
	return m
}

func (m *member) config() *config.Config {
	m.fleet.t.Helper()
	text := fmt.Sprintf("node: {name: n%d, site: s%d, data_dir: %q}\napi: {listen: \"\"}\n%s", m.index, m.index, m.dir, m.fleet.more(m.index))
	if !strings.Contains(text, "cluster:") {
		text += fmt.Sprintf("\ncluster: {election: raft, listen: \"127.0.0.1:%d\"}\n", m.port)
	}
	if !strings.Contains(text, "publish: {") {
		text += "\ndns: {listen: \"127.0.0.1:0\", zones: {example.test: {ns: [ns.example.net]}}}\n"
	}
	c, err := config.Parse("rota.yaml", []byte(text), config.Options{})
	if err != nil {
		m.fleet.t.Fatal(err)
	}
	return c
}

func (m *member) start() {
	m.fleet.t.Helper()
	n, err := newNode(m.config(), quiet)
	if err != nil {
		m.fleet.t.Fatal(err)
	}
	n.load = func() (*config.Config, error) { return m.config(), nil }
	m.node = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	m.stop = func() {
		cancel()
		if err := <-done; err != nil {
			m.fleet.t.Error(err)
		}
	}
}

func (m *member) end() {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

// await waits for what takes elections and probes.
func (f *fleet) await(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("in vain: %s", what)
		}
	}
}

// leader waits for a node that leads, and whom the others follow.
func (f *fleet) leader() *member {
	f.t.Helper()
	var leader *member
	f.await("all follow one leader", func() bool {
		leader = nil
		for _, m := range f.members {
			if m.stop != nil && m.leading.Load() != 0 {
				leader = m
			}
		}
		return leader != nil && !slices.ContainsFunc(f.members, func(m *member) bool {
			l, ok := cluster.Member{}, true
			if m.stop != nil {
				l, ok = m.raft.Leader()
			}
			return m.stop != nil && (!ok || l.Name != leader.name)
		})
	})
	return leader
}

// follower returns a node that runs and does not lead.
func (f *fleet) follower() *member {
	leader := f.leader()
	i := slices.IndexFunc(f.members, func(m *member) bool { return m.stop != nil && m != leader })
	return f.members[i]
}

func vantagesIn(n *node) string {
	var out []string
	for _, v := range n.raft.State().Spec().Vantages {
		s := v.Name + "@" + v.Site
		if v.Agent {
			s += "!"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

const oneService = "services: {www.example.test: {endpoints: [192.0.2.1, 192.0.2.2]}}\n"

// rawCall calls a node over its port as whoever has these credentials.
func rawCall(t *testing.T, files link.Files, m *member, method, path string, header http.Header, body []byte) (int, string) {
	t.Helper()
	creds, err := link.LoadCredentials(link.CredentialOptions{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	d, err := link.NewDialer(link.DialerOptions{Credentials: creds})
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	defer func() { _ = d.Run(ended) }()
	req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("https://127.0.0.1:%d%s", m.port, path), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := d.Client().Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// issued makes credentials with the CA of a node.
func issued(t *testing.T, m *member, role link.Role, id, name string) link.Files {
	t.Helper()
	ca, err := link.LoadCA(m.net.files)
	if err != nil {
		t.Fatal(err)
	}
	files := link.FilesIn(t.TempDir())
	if err := ca.Issue(files, link.Identity{Cluster: m.net.creds.Identity().Cluster, Role: role, ID: id, Name: name}); err != nil {
		t.Fatal(err)
	}
	return files
}

// drainOf is an override of an endpoint of oneService.
func drainOf(i int) rota.Event {
	now := time.Now()
	return rota.Event{Kind: rota.EventOverride, At: now, Actor: "me", Overrides: []rota.Override{{
		Endpoint: rota.EndpointID{Service: rota.MustParseName("www.example.test"), Address: netip.MustParseAddr(fmt.Sprint("192.0.2.", i))},
		Action:   rota.ActionDrain, Author: "me", Reason: "a test", Set: now, Expires: now.Add(time.Hour),
	}}}
}

// TestThreeNodes takes one cluster through its days. The parts build on each other.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	var files sync.Mutex // guards services, which nodes read again by themselves
	services := []string{oneService, oneService, oneService}
	writes := func(i int, text string) {
		files.Lock()
		defer files.Unlock()
		services = append(services, "")[:max(len(services), i+1)]
		services[i] = text
	}
	wrote := func(i int) string {
		files.Lock()
		defer files.Unlock()
		return services[i]
	}
	f := newFleet(t, 3, func(i int) string {
		return "vantage: {agents: {accept: [berlin, {name: rome, site: south}]}}\n" + wrote(i)
	})
	step := func(name string, do func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, do) {
			t.FailNow()
		}
	}

	step("who votes", func(*testing.T) {
		f.await("everyone's state knows who votes", func() bool {
			for _, m := range f.members {
				if vantagesIn(m.node) != "berlin@berlin! n0@s0 n1@s1 n2@s2 rome@south!" {
					return false
				}
			}
			return true
		})
		for _, m := range f.members {
			if m.isAgent("n1") || !m.isAgent("berlin") {
				t.Error("an agent with the name of a node has a vote")
			}
		}
		f.await("reports of all nodes are heard by the leader", func() bool { return len(f.leader().raft.Reports()) == 3 })
	})

	step("an agent says where it is", func(t *testing.T) {
		leader := f.leader()
		creds := issued(t, leader, link.Agent, "berlin", "berlin")
		r := rota.Report{Vantage: "berlin", Incarnation: 7}
		for i, m := range f.members { // whom it reports to does not matter
			r.Seq = uint64(i + 1)
			code, text := rawCall(t, creds, m, http.MethodPost, "/v1/report", http.Header{
				"Content-Type": {"application/octet-stream"}, "Rota-Site": {fmt.Sprint("site", i)},
			}, m.raft.State().Table().Pack(&r))
			if code != http.StatusNoContent {
				t.Fatal(code, text)
			}
			f.await("its site counts", func() bool { return strings.HasPrefix(vantagesIn(m.node), fmt.Sprintf("berlin@site%d! ", i)) })
		}
		if spec := leader.raft.State().Spec(); spec.Vantages[4].Site != "south" || spec.Vantages[4].Said || !spec.Vantages[0].Said {
			t.Errorf("%+v", spec.Vantages)
		}
	})

	step("paths for nodes", func(t *testing.T) {
		leader := f.leader()
		agent, stranger := issued(t, leader, link.Agent, "berlin", "berlin"), issued(t, leader, link.Node, "stranger", "stranger")
		unknown := issued(t, leader, link.Agent, "paris", "paris")
		before := leader.raft.Status()
		for _, c := range []struct {
			files        link.Files
			method, path string
			body         string
			want         int
			text         string
		}{
			{agent, "POST", appendPath, "{}", 403, "only nodes"},
			{agent, "POST", commandPath, `{"op":"remove","id":"n1"}`, 403, "only nodes"},
			{agent, "POST", joinPath, `{"id":"berlin","name":"berlin","address":"127.0.0.1:1"}`, 403, "only nodes"},
			{agent, "GET", nodePath, "", 403, "only nodes"},
			{agent, "GET", fitPath, "", 403, "only nodes"},
			{agent, "POST", fitPath, "", 405, ""},
			{agent, "GET", "/v1/targets", "", 200, "targets"},
			{stranger, "POST", appendPath, `{"kind":"lift"}`, 403, "not one of the cluster"},
			{stranger, "POST", commandPath, `{"op":"remove","id":"n1"}`, 403, "not one of the cluster"},
			{stranger, "GET", fitPath, "", 403, "not one of the cluster"},
			{stranger, "POST", "/v1/report", "x", 403, "not one of the cluster"},
			{stranger, "POST", joinPath, `{"id":"n9","name":"n9","address":"127.0.0.1:1"}`, 422, "asks for another"},
			{stranger, "POST", joinPath, `{"id":"stranger"}`, 422, "needs an id, a name and an address"},
			{stranger, "POST", joinPath, strings.Repeat(" ", maxAsked) + "{}", 413, "more than"},
			{stranger, "POST", joinPath, `{"id":"stranger","sudo":true}`, 400, "not understood"},
			{stranger, "POST", joinPath, `{} {}`, 400, "not understood"},
			{stranger, "GET", nodePath, "", 200, "digest"},
			{unknown, "GET", "/v1/targets", "", 0, "vantage.agents.accept"},
		} {
			code, text := rawCall(t, c.files, leader, c.method, c.path, nil, []byte(c.body))
			if code != c.want || !strings.Contains(text, c.text) {
				t.Errorf("%s %s %.80s: %d %s, want %d %s", c.method, c.path, c.body, code, text, c.want, c.text)
			}
		}
		// A node that waits may not speak for agents either.
		code, text := rawCall(t, stranger, leader, "POST", "/v1/report", http.Header{"Rota-Vantage": {"berlin"}}, []byte("x"))
		if code != 403 || !strings.Contains(text, "not one of the cluster") {
			t.Error(code, text)
		}
		if after := leader.raft.Status(); after.Term == before.Term && after.Applied != before.Applied {
			t.Errorf("index %d after %d", after.Applied, before.Applied)
		}
	})

	step("forwarded events", func(t *testing.T) {
		m, leader := f.follower(), f.leader()
		e, err := m.raft.Append(t.Context(), drainOf(1))
		if err != nil || e.Index == 0 {
			t.Fatal(e.Index, err)
		}
		f.await("the override is there", func() bool { return m.raft.State().Override(e.Overrides[0].Endpoint) != nil })
		// The answer was lost: the same event comes again, once more after another event.
		to, _ := m.raft.Leader()
		twice := drainOf(2)
		twice.ID = "once"
		first, err := m.net.forward(t.Context(), to, twice)
		if err != nil {
			t.Fatal(err)
		}
		last, term := leader.raft.State().Index(), leader.raft.Status().Term
		still := func() bool { return leader.raft.State().Index() == last || leader.raft.Status().Term != term }
		again, err := m.net.forward(t.Context(), to, twice)
		if err != nil || again.Index != first.Index || !still() {
			t.Errorf("counted twice: %d, then %d, %v", first.Index, again.Index, err)
		}
		for _, k := range []rota.EventKind{rota.EventVerdicts, rota.EventTick, rota.EventLead, rota.EventPublished, rota.EventVantages, "nonsense"} {
			if _, err := m.net.forward(t.Context(), to, rota.Event{Kind: k, At: time.Now()}); err == nil || errors.Is(err, cluster.ErrUnanswered) {
				t.Errorf("%s: %v", k, err)
			}
		}
		if !still() {
			t.Errorf("what was refused is event %d", leader.raft.State().Index())
		}
		// What this version does not know is refused before it is ordered.
		err = m.net.call(t.Context(), to.ID, http.MethodPost, appendPath, map[string]any{"kind": "lift", "at": time.Now(), "unless": "monday"}, nil)
		if err == nil || !strings.Contains(err.Error(), "upgrade this node") {
			t.Error(err)
		}
		if _, err := leader.net.forward(t.Context(), cluster.Member{ID: m.raft.Status().NodeID}, drainOf(1)); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("a follower orders: %v", err)
		}
		if _, err := m.net.forward(t.Context(), cluster.Member{ID: "127.0.0.1:1"}, drainOf(1)); !errors.Is(err, cluster.ErrUnanswered) {
			t.Errorf("nobody answers: %v", err)
		}
	})

	step("a large event", func(t *testing.T) {
		m := f.follower()
		var spec rota.Spec
		base := m.raft.State().Spec()
		spec.Quorum, spec.Vantages = base.Quorum, base.Vantages
		for i := range 3 { // 3 MiB, more than is sent as it is
			v := base.Services[0]
			v.Name = rota.MustParseName(fmt.Sprintf("s%02d.example.test", i))
			v.Labels = map[string]string{"note": strings.Repeat("y", 1<<20)}
			spec.Services = append(spec.Services, v)
		}
		for _, s := range []*rota.Spec{&spec, &base} {
			f.await("it is ordered", func() bool { // by the leader of then: packing it may cost a busy machine an election
				_, err := m.raft.Append(t.Context(), rota.Event{Kind: rota.EventSpec, Spec: s})
				if err != nil && !errors.Is(err, cluster.ErrNotLeader) && !errors.Is(err, cluster.ErrNoLeader) && !errors.Is(err, cluster.ErrUnanswered) {
					t.Fatal(err)
				}
				return err == nil
			})
		}
		f.await("all is as before", func() bool {
			return !slices.ContainsFunc(f.members, func(m *member) bool { return len(m.raft.State().Services()) != 1 })
		})
	})

	step("commands from any node", func(t *testing.T) {
		leader := f.leader()
		for _, m := range f.members {
			o := operator{m.node}
			victim := f.members[(leader.index+1)%3].name
			for _, op := range []api.ClusterOp{api.OpDemote, api.OpPromote} {
				var done api.ClusterChanged
				var err error
				f.await("it is done", func() bool { // a new leader has to hear of a node first
					done, err = o.Change(t.Context(), api.ClusterChange{Op: op, Node: victim, Author: "me"})
					return !errors.Is(err, api.ErrBusy) && !errors.Is(err, api.ErrNoLeader)
				})
				if err != nil || done.Node != victim || done.Leader == "" {
					t.Fatalf("%s of %s by %s: %+v, %v", op, victim, m.name, done, err)
				}
			}
			if _, err := o.Change(t.Context(), api.ClusterChange{Op: api.OpPromote, Node: "nobody"}); !errors.Is(err, api.ErrNoSuch) {
				t.Errorf("%s: %v", m.name, err)
			}
			// A wrong address adds nobody, and it is known that it did not.
			_, err := o.Change(t.Context(), api.ClusterChange{Op: api.OpAdd, Address: "127.0.0.1:1", Voter: true})
			if !errors.Is(err, api.ErrBusy) || errors.Is(err, context.DeadlineExceeded) || len(m.raft.Members()) != 3 {
				t.Errorf("%s: %v", m.name, err)
			}
			_, err = o.Change(t.Context(), api.ClusterChange{Op: api.OpAdd, Node: "stranger", Address: f.members[(leader.index+1)%3].net.address})
			if !errors.Is(err, api.ErrConflict) {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	})

	step("verify", func(t *testing.T) {
		var v api.ClusterVerification
		f.await("all are well and the same", func() bool {
			var err error
			v, err = operator{f.follower().node}.Verify(t.Context())
			return err == nil && v.OK && !slices.ContainsFunc(v.Members, func(m api.MemberVerification) bool { return !m.Same })
		})
		for _, m := range v.Members {
			if !m.Answers || m.Compared == 0 || m.Version == "" || m.Offset.Abs() > clockBound || time.Until(m.Expires) < 300*24*time.Hour {
				t.Errorf("%+v", m)
			}
		}
	})

	// files is what the nodes decide by.
	endpoints := func() (out []int) {
		for _, m := range f.members {
			if m.stop != nil {
				out = append(out, endpointsOf(m.node))
			}
		}
		return out
	}
	agreed := func(count int) {
		t.Helper()
		f.await(fmt.Sprintf("%d endpoints everywhere", count), func() bool {
			return !slices.ContainsFunc(endpoints(), func(n int) bool { return n != count })
		})
	}
	of := func(count int) string {
		var list []string
		for i := range count {
			list = append(list, fmt.Sprintf("192.0.2.%d", i+1))
		}
		return fmt.Sprintf("services: {www.example.test: {endpoints: [%s]}}\n", strings.Join(list, ", "))
	}

	step("a file speaks when it is read again", func(t *testing.T) {
		m, leader := f.follower(), f.leader()
		writes(m.index, of(3))
		if err := m.reload(t.Context(), "a test"); err != nil {
			t.Fatal(err)
		}
		agreed(3)
		// One that reads the same file again has nothing to say.
		for _, other := range f.members {
			if err := other.reload(t.Context(), "a test"); err != nil {
				t.Fatal(err)
			}
		}
		agreed(3)
		if m.differs() != "" || !strings.Contains(leader.differs(), "differs") {
			t.Errorf("%q, %q", m.differs(), leader.differs())
		}
		if vs := vantagesIn(leader.node); vs != "berlin@site2! n0@s0 n1@s1 n2@s2 rome@south!" {
			t.Error(vs)
		}
		// Whoever leads, no older file comes back.
		for range 2 {
			was := f.leader()
			if _, err := (operator{was.node}).Change(t.Context(), api.ClusterChange{Op: api.OpTransfer}); err != nil {
				t.Fatal(err)
			}
			f.await("another leads", func() bool { return f.leader() != was })
			agreed(3)
		}
		if vs := vantagesIn(f.leader().node); vs != "berlin@site2! n0@s0 n1@s1 n2@s2 rome@south!" {
			t.Error(vs)
		}
	})

	step("a file speaks when it was edited while the node was down", func(t *testing.T) {
		m := f.follower()
		i := slices.IndexFunc(f.members, func(x *member) bool { return wrote(x.index) == oneService && x != f.leader() })
		if i >= 0 {
			m = f.members[i]
		}
		m.end()
		m.start() // with its older file, as it was
		f.await("it follows", func() bool { _, ok := m.raft.Leader(); return ok })
		agreed(3)
		m.end()
		writes(m.index, of(4))
		m.start()
		agreed(4)
		if had, err := m.spoken(); err != nil || had == (fingerprint{}) {
			t.Error(had, err)
		}
	})

	step("a torn note speaks for nobody", func(t *testing.T) {
		m := f.follower()
		m.end()
		writes(m.index, of(1))
		if err := os.WriteFile(filepath.Join(m.dir, spokenFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m.start()
		f.await("the note is whole again", func() bool { _, err := m.spoken(); return err == nil })
		agreed(4)
	})

	step("a newcomer's file does not speak", func(t *testing.T) {
		writes(len(f.members), of(2))
		m := f.grow()
		agreed(4)
		f.await("it votes", func() bool { return strings.Contains(vantagesIn(f.leader().node), "n3@s3") })
		if m.differs() == "" {
			t.Error("it does not say that its file is another one")
		}
	})

	step("who was removed stays out", func(t *testing.T) {
		gone, leader := f.members[3], f.leader()
		if gone == leader {
			if _, err := (operator{gone.node}).Change(t.Context(), api.ClusterChange{Op: api.OpTransfer}); err != nil {
				t.Fatal(err)
			}
			f.await("another leads", func() bool { return f.leader() != gone })
			leader = f.leader()
		}
		who := gone.net.creds.Identity()
		if err := leader.net.allowed(who); err != nil {
			t.Error(err)
		}
		if _, err := (operator{f.members[1].node}).Change(t.Context(), api.ClusterChange{Op: api.OpRemove, Node: "n3"}); err != nil {
			t.Fatal(err)
		}
		f.await("everybody knows, and its vote is gone", func() bool {
			return !slices.ContainsFunc(f.members[:3], func(m *member) bool {
				return m.net.allowed(who) == nil || strings.Contains(vantagesIn(m.node), "n3")
			})
		})
		if code, text := rawCall(t, gone.net.files, leader, "GET", nodePath, nil, nil); code != 0 || !strings.Contains(text, "was removed") {
			t.Error(code, text)
		}
		newcomer := func(role link.Role, id, name, at string) error {
			return leader.net.admit(t.Context(), link.Newcomer{
				Identity: link.Identity{Cluster: who.Cluster, Role: role, ID: id, Name: name}, Address: at,
			})
		}
		n1 := f.members[1]
		for _, c := range []struct {
			err  error
			want string // empty: may come in
		}{
			{newcomer(link.Node, who.ID, "n3", "127.0.0.1:1"), "was removed"},
			{newcomer(link.Node, "new", "n3", "127.0.0.1:1"), ""},
			{newcomer(link.Node, "new", "n1", "127.0.0.1:1"), "a node named n1 is in the cluster"},
			{newcomer(link.Node, "new", "other", n1.net.address), "is at " + n1.net.address},
			{newcomer(link.Node, n1.raft.Status().NodeID, "n1", n1.net.address), ""},
			{newcomer(link.Agent, "berlin", "berlin", ""), ""},
			{newcomer(link.Agent, "n1", "n1", ""), "not accepted"},
			{newcomer(link.Agent, "paris", "paris", ""), "not accepted"},
			{leader.net.allowed(link.Identity{Role: link.Node, ID: "waits", Name: "waits"}), ""},
			{leader.net.allowed(link.Identity{Role: link.Agent, ID: "paris", Name: "paris"}), "not accepted"},
			{leader.net.allowed(link.Identity{Role: link.Agent, ID: "rome", Name: "rome"}), ""},
		} {
			if (c.err == nil) != (c.want == "") || c.err != nil && !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("%v, want %q", c.err, c.want)
			}
		}
		gone.end()
		gone.fleet.members = gone.fleet.members[:3]
	})

	step("verify finds who is silent", func(t *testing.T) {
		leader := f.leader()
		for _, m := range f.members {
			if m != leader {
				m.end()
				break
			}
		}
		v, err := operator{leader.node}.Verify(t.Context())
		if err != nil || v.OK || !slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, "does not answer") }) {
			t.Errorf("%+v, %v", v, err)
		}
		// Their files mattered once.
		if leader.alone() {
			t.Error("it counts as alone")
		}
	})
}

// A node alone in its cluster, and what it remembers of its file.
func TestOneNode(t *testing.T) {
	t.Parallel()
	text := oneService
	f := newFleet(t, 1, func(int) string { return text })
	m := f.members[0]
	if !m.alone() {
		t.Error("it is not alone")
	}
	until(t, "its file is noted", func() bool { _, err := m.spoken(); return err == nil })
	same, err := m.edited(m.config())
	if err != nil || same {
		t.Errorf("edited: %v, %v", same, err)
	}
	text += "# a remark\n"
	if e, err := m.edited(m.config()); err != nil || e {
		t.Errorf("a remark is an edit: %v, %v", e, err)
	}
	text = "services: {www.example.test: {endpoints: [192.0.2.1]}}\n"
	if e, err := m.edited(m.config()); err != nil || !e {
		t.Errorf("an edit is none: %v, %v", e, err)
	}
	// Another version reads another meaning out of the same files.
	cfg := *m.current.Load().cfg
	cfg.Spec.Static = "other"
	if e, err := m.edited(&cfg); err != nil || e {
		t.Errorf("an upgrade is an edit: %v, %v", e, err)
	}
	m.end()
	m.start()
	f.await("its file is in force", func() bool { return endpointsOf(m.node) == 1 })
	// Nobody can note anything: that stops nothing.
	until(t, "the note's place is taken", func() bool {
		path := filepath.Join(m.dir, spokenFile)
		_ = os.Remove(path)
		return os.Mkdir(path, 0o700) == nil
	})
	text = oneService
	if err := m.reload(t.Context(), "a test"); err != nil || endpointsOf(m.node) != 2 {
		t.Errorf("%d endpoints, %v", endpointsOf(m.node), err)
	}
	m.end()
	m.start()
	f.await("it leads", func() bool { return m.leading.Load() != 0 })
	// The only voter neither leaves nor is removed.
	for _, op := range []api.ClusterOp{api.OpLeave, api.OpRemove, api.OpDemote} {
		if _, err := (operator{m.node}).Change(t.Context(), api.ClusterChange{Op: op, Node: "n0"}); !errors.Is(err, api.ErrConflict) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if m.raft.State().WasRemoved(m.raft.Status().NodeID) {
		t.Error("it counts as removed")
	}
	v, err := operator{m.node}.Verify(t.Context())
	if err != nil || !v.OK || v.Members[0].Same {
		t.Errorf("%+v, %v", v, err)
	}
}

// A vantage that is cut off says so with its reports, its opinions do not count meanwhile, and that ends.
func TestAbstention(t *testing.T) {
	t.Parallel()
	beacon := func(at string) net.Listener {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	up := beacon("127.0.0.1:0")
	target := beacon("127.0.0.1:0")
	defer func() { _ = target.Close() }()
	f := newFleet(t, 1, func(int) string {
		return fmt.Sprintf("vantage: {quorum: any, uplink: {checks: [\"tcp://%s\"]}}\ndefaults: {interval: 1s, timeout: 500ms, fall: 1, rise: 1}\n"+
			"services: {www.example.test: {endpoints: [127.0.0.1], check: \"tcp://{}:%d\"}}\n", up.Addr(), target.Addr().(*net.TCPAddr).Port)
	})
	m := f.members[0]
	id := m.raft.State().Targets()[0].ID
	is := func(s rota.Status) func() bool { return func() bool { return m.raft.State().Verdict(id).Status == s } }
	heard := func() string {
		for _, r := range m.raft.Reports() {
			return r.Abstain
		}
		return "silent"
	}
	f.await("the target is up", is(rota.Up))
	_ = up.Close()
	f.await("it abstains", func() bool { return strings.HasPrefix(heard(), "cut off: 1 of its 1 uplink checks fail") })
	_ = target.Close()
	f.await("it sees the target down", func() bool { o := m.opinions().Opinion(id); return o != nil && o.Status == rota.Down })
	f.await("it has said so", func() bool {
		for _, r := range m.raft.Reports() {
			return r.Abstain != "" && r.Opinion(id).Status == rota.Down
		}
		return false
	})
	index := m.raft.State().Index()
	if !is(rota.Up)() {
		t.Error("an opinion of who abstains counts")
	}
	up = beacon(up.Addr().String())
	defer func() { _ = up.Close() }()
	f.await("it trusts its eyes again, and counts", func() bool { return heard() == "" && is(rota.Down)() })
	if m.raft.State().Index() == index {
		t.Error("no event says so")
	}
}

// A node with a certificate asks until it is taken in, though whom it asks comes later, and then no more.
func TestAskIn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, func(int) string { return oneService })
	first := f.members[0]
	token, err := operator{first.node}.Token(t.Context(), api.TokenRequest{Role: "node"})
	if err != nil {
		t.Fatal(err)
	}
	m := f.add()
	if _, joined, err := join(t.Context(), m.config(), token.Token, true); err != nil || !joined {
		t.Fatal(joined, err)
	}
	first.end()
	m.start()
	if _, err := (operator{m.node}).Restore(t.Context(), strings.NewReader("nonsense"), false, "me"); err == nil {
		t.Error("nonsense was restored")
	}
	first.start()
	f.await("it is taken in", func() bool { return len(m.raft.Members()) == 2 })
	for _, x := range m.raft.Members() {
		if x.Name == "n1" && x.Voter {
			t.Error("it should not have got a vote")
		}
	}
	f.await("it probes", func() bool { return strings.Contains(vantagesIn(first.node), "n1@s1") && m.votes(m.raft.State()) })
	if _, joined, err := join(t.Context(), m.config(), token.Token, true); err != nil || joined {
		t.Errorf("joined again: %v, %v", joined, err)
	}
	if begun, err := bootstrap(t.Context(), m.config(), quiet); err != nil || begun {
		t.Errorf("it began a cluster: %v, %v", begun, err)
	}
}

// A node that was stopped while it was being fed the history of its cluster answers nobody before it has heard the rest; what it has was
// true once.
func TestNewcomerHoldsQueries(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, func(int) string { return oneService })
	first, m := f.members[0], f.members[1]
	m.end()
	first.end()
	path := filepath.Join(m.dir, "identity.json")
	var id map[string]any
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		t.Fatal(err)
	}
	id["waiting"] = true
	if b, err = json.Marshal(id); err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.start()
	asks := func(patience time.Duration) error {
		q := new(dns.Msg).SetQuestion("www.example.test.", dns.TypeA)
		in, _, err := (&dns.Client{Timeout: patience}).ExchangeContext(t.Context(), q, m.dns.Addrs()[0].String())
		if err == nil && len(in.Answer) == 0 {
			t.Errorf("answered %v", in)
		}
		return err
	}
	if len(m.raft.State().Services()) == 0 || m.ready() == nil {
		t.Errorf("%d services, ready: %v", len(m.raft.State().Services()), m.ready())
	}
	if asks(firstWait+time.Second) == nil {
		t.Error("it answers from a state that was true once")
	}
	first.start()
	f.await("it is ready", func() bool { return m.ready() == nil })
	if err := asks(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// Beginning and joining, cut short anywhere, are begun again.
func TestCutShort(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, func(int) string { return oneService })
	first := f.members[0]
	issue := func() string {
		token, err := operator{first.node}.Token(t.Context(), api.TokenRequest{Role: "node"})
		if err != nil {
			t.Fatal(err)
		}
		return token.Token
	}
	t.Run("join", func(t *testing.T) {
		m := f.add()
		if _, _, err := join(t.Context(), m.config(), issue(), false); err != nil {
			t.Fatal(err)
		}
		before, err := cluster.ReadIdentity(m.dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(m.dir, "identity.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := newNode(m.config(), quiet); err == nil || !strings.Contains(err.Error(), "rota cluster join") {
			t.Errorf("credentials without identity: %v", err)
		}
		id, joined, err := join(t.Context(), m.config(), "the token was used", false)
		if err != nil || !joined || id != before {
			t.Errorf("%+v, %v, %v, want %+v", id, joined, err, before)
		}
	})
	t.Run("bootstrap", func(t *testing.T) {
		m := f.add()
		if _, err := newNode(m.config(), quiet); err == nil || !strings.Contains(err.Error(), "rota cluster bootstrap") {
			t.Errorf("nothing at all: %v", err)
		}
		if begun, err := bootstrap(t.Context(), m.config(), quiet); err != nil || !begun {
			t.Fatal(begun, err)
		}
		before, _ := cluster.ReadIdentity(m.dir)
		files := link.FilesIn(filepath.Join(m.dir, linkDir))
		for _, gone := range [][]string{nil, {files.Cert}, {files.Cert, files.Key, files.CA, files.CAKey}} {
			for _, path := range gone {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			begun, err := bootstrap(t.Context(), m.config(), quiet)
			if err != nil || begun != (gone != nil) {
				t.Fatalf("without %v: %v, %v", gone, begun, err)
			}
			w, err := newNetwork(m.config(), quiet)
			if err != nil {
				t.Fatalf("without %v: %v", gone, err)
			}
			if me := w.creds.Identity(); me.ID != before.Node || me.Cluster != before.Cluster {
				t.Errorf("%+v, want %+v", me, before)
			}
			if err := w.close(); err != nil {
				t.Error(err)
			}
		}
		if _, _, err := join(t.Context(), m.config(), issue(), false); err != nil {
			t.Errorf("a node of a cluster is left as it is: %v", err)
		}
		if err := os.Remove(files.Cert); err != nil {
			t.Fatal(err)
		}
		if _, _, err := join(t.Context(), m.config(), issue(), false); err == nil || !strings.Contains(err.Error(), "empty data directory") {
			t.Errorf("what it decided would be lost: %v", err)
		}
	})
	t.Run("a second cluster", func(t *testing.T) {
		f.more = func(i int) string {
			if i == 0 {
				return oneService
			}
			return oneService + fmt.Sprintf("cluster: {election: raft, listen: \"127.0.0.1:%d\", join: [\"127.0.0.1:1\", %q]}\n", f.members[i].port, first.net.address)
		}
		m := f.add()
		_, err := bootstrap(t.Context(), m.config(), quiet)
		if err == nil || !strings.Contains(err.Error(), first.net.creds.Identity().Cluster) {
			t.Errorf("a second cluster began: %v", err)
		}
		if _, err := cluster.ReadIdentity(m.dir); err == nil {
			t.Error("something was left behind")
		}
		first.end()
		if begun, err := bootstrap(t.Context(), m.config(), quiet); err != nil || !begun {
			t.Errorf("nobody is there: %v, %v", begun, err)
		}
	})
}

// outside makes an authority that is none of rota's, and certificates of nodes with these names.
func outside(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name string, kind string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	var rootKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		x := root
		if i == 0 {
			rootKey = key
		} else {
			x = &x509.Certificate{
				SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{"rota-node"}}, DNSNames: []string{name},
				NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			}
		}
		der, err := x509.CreateCertificate(rand.Reader, x, root, &key.PublicKey, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", "CERTIFICATE", der)
		write(name+".key", "PRIVATE KEY", secret)
	}
	return dir
}

// With certificates from elsewhere nodes are known by name: two begin one cluster, whatever flags they are started with.
func TestOutsideCertificates(t *testing.T) {
	t.Parallel()
	dir := outside(t, "n0", "n1")
	var f *fleet
	f = &fleet{t: t, more: func(i int) string {
		tls := fmt.Sprintf("{cert: %q, key: %q, ca: %q}", filepath.Join(dir, fmt.Sprintf("n%d.crt", i)), filepath.Join(dir, fmt.Sprintf("n%d.key", i)), filepath.Join(dir, "ca.crt"))
		return oneService + fmt.Sprintf("cluster: {election: raft, listen: \"127.0.0.1:%d\", nodes: [n0, n1], tls: %s, join: [\"127.0.0.1:%d\", \"127.0.0.1:%d\"]}\n",
			f.members[i].port, tls, f.members[0].port, f.members[1].port)
	}}
	a, b := f.add(), f.add()
	b.start() // waits
	if begun, err := bootstrap(t.Context(), a.config(), quiet); err != nil || !begun {
		t.Fatalf("a node that waits is taken for a cluster: %v, %v", begun, err)
	}
	a.start()
	f.await("both vote", func() bool { return b.raft.Status().Voter && vantagesIn(a.node) == "n0@s0 n1@s1" })
	for _, m := range f.members {
		if begun, err := bootstrap(t.Context(), m.config(), quiet); err != nil || begun {
			t.Errorf("it is one of a cluster: %v, %v", begun, err)
		}
	}
	b.end()
	if err := os.RemoveAll(b.dir); err != nil { // and somebody begins anew with it
		t.Fatal(err)
	}
	if begun, err := bootstrap(t.Context(), b.config(), quiet); err == nil || begun || !strings.Contains(err.Error(), "is a node of cluster") {
		t.Errorf("a second cluster began: %v, %v", begun, err)
	}
	// Nobody is taken in for another.
	waits := link.Identity{Role: link.Node, Name: "n1"}
	me := a.raft.Status().NodeID
	for _, c := range []command{{ID: me, Name: "n0", Address: "127.0.0.1:1"}, {ID: me, Name: "n1", Address: "127.0.0.1:1"}, {ID: "new", Name: "n0", Address: "127.0.0.1:1"}} {
		if _, err := a.takeIn(t.Context(), waits, c); err == nil || !strings.Contains(err.Error(), "asks for another") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A leader that reaches less of the DNS than another hands over; one that reaches as much or as little as all others stays, undisturbed.
func TestFitness(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		unreachable, lost []string
		want              bool
	}{
		{nil, []string{"a"}, true},
		{[]string{"a"}, []string{"a"}, false},
		{[]string{"b"}, []string{"a"}, false},           // one for another
		{[]string{"b"}, []string{"a", "b"}, true},       // b is dead for all
		{[]string{"a", "c"}, []string{"a", "b"}, false}, // it lacks what is reached from here
	} {
		if got := better(c.unreachable, c.lost); got != c.want {
			t.Errorf("%v is better than %v: %v", c.unreachable, c.lost, got)
		}
	}
	dns := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{Name: "example.test."}}})
	key := filepath.Join(t.TempDir(), "key")
	k := peers.DefaultKey()
	text := fmt.Sprintf("key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret)
	if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := []string{dns.Addr(), dns.Addr(), dns.Addr()}
	f := newFleet(t, 3, func(i int) string {
		publisher := func(name, at string) string {
			return fmt.Sprintf("%s: {type: rfc2136, servers: [%q], key: rota, zone: example.test}", name, at)
		}
		return fmt.Sprintf("keys: {rota: {file: %q}}\npublish: {%s, %s}\nservices: {www.example.test: {endpoints: [192.0.2.1], publish: [one]}, w2.example.test: {endpoints: [192.0.2.1], publish: [dead]}}\n",
			key, publisher("one", server[i]), publisher("dead", "127.0.0.1:1"))
	})
	leader := f.leader()
	f.await("only one DNS is out of reach", func() bool { return slices.Equal(leader.unreachable(), []string{"dead"}) })
	term := leader.leading.Load()
	said, err := f.follower().fitFor(t.Context(), link.Identity{}, struct{}{})
	if err != nil || !slices.Equal(said.Unreachable, []string{"dead"}) {
		t.Errorf("%+v, %v", said, err)
	}
	if ms := leader.fitter(t.Context(), []string{"dead"}); len(ms) != 0 {
		t.Errorf("%v reach what nobody reaches", ms)
	}
	if ms := leader.fitter(t.Context(), []string{"dead", "one"}); len(ms) != 2 {
		t.Errorf("%v reach more", ms)
	}
	server[leader.index] = "127.0.0.1:2"
	if err := leader.reload(t.Context(), "a test"); err != nil {
		t.Fatal(err)
	}
	f.await("another leads", func() bool { return f.leader() != leader })
	next := f.leader()
	if slices.Contains(next.unreachable(), "one") || leader.raft.MayHandOver() {
		t.Error("it was for nothing, or may happen again at once")
	}
	if next.leading.Load() <= term {
		t.Error("no other term")
	}
}

func TestAdvertised(t *testing.T) {
	for _, c := range []struct{ listen, advertise, want, err string }{
		{"127.0.0.1:3648", "", "127.0.0.1:3648", ""},
		{"[::1]:3648", "", "[::1]:3648", ""},
		{"ns1.example.org:3648", "", "ns1.example.org:3648", ""},
		{":3648", "192.0.2.1:1", "192.0.2.1:1", ""},
		{"nonsense", "", "", "host:port"},
	} {
		got, err := advertised(config.Cluster{Listen: c.listen, Advertise: c.advertise})
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	for _, c := range []struct{ machine, want, err string }{
		{"127.0.0.1/8 ::1/128", "", "no address"},
		{"", "", "no address"},
		{"127.0.0.1/8 192.0.2.1/24 fe80::1/64", "192.0.2.1:7", ""},
		{"192.0.2.1/24 2001:db8::1/64 2001:db8::2/64", "192.0.2.1:7", ""},
		{"2001:db8::1/64", "[2001:db8::1]:7", ""},
		{"192.0.2.1/24 198.51.100.1/24", "", "several addresses (192.0.2.1:7, 198.51.100.1:7)"},
		{"2001:db8::2/64 2001:db8::1/64", "", "several addresses"},
		{"169.254.1.1/16", "", "no address"},
	} {
		var all []net.Addr
		for _, a := range strings.Fields(c.machine) {
			ip, n, err := net.ParseCIDR(a)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		got, err := onlyAddress(all, "7")
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// What a peer said means the same here, whatever else an error wraps, and every time.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind string
		api  error
	}{
		{fmt.Errorf("%w: %w", cluster.ErrUnreachable, cluster.ErrUnanswered), "unreachable", api.ErrBusy},
		{fmt.Errorf("%w: %w", cluster.ErrMajority, cluster.ErrNotLeader), "majority", api.ErrConflict},
		{cluster.ErrNoMember, "no-member", api.ErrNoSuch},
		{cluster.ErrNotLeader, "not-leader", api.ErrNoLeader},
		{cluster.ErrNoLeader, "no-leader", api.ErrNoLeader},
		{cluster.ErrUnanswered, "unanswered", context.DeadlineExceeded},
		{api.ErrConflict, "conflict", api.ErrConflict},
		{io.EOF, "refused", io.EOF},
	} {
		for range 20 {
			if got := kindOf(c.err); got != c.kind {
				t.Fatalf("%v is %s, want %s", c.err, got, c.kind)
			}
		}
		there := &remoteError{c.err.Error(), errorOf(c.kind)}
		if c.kind != "refused" && (!errors.Is(there, c.api) && !errors.Is(errorsOf(there), c.api)) || !errors.Is(errorsOf(c.err), c.api) {
			t.Errorf("%v: %v, %v, want %v", c.err, errorsOf(c.err), errorsOf(there), c.api)
		}
	}
	if errorsOf(nil) != nil || cmp.Or(kindOf(nil), "refused") != "refused" {
		t.Error("no error is one")
	}
}
