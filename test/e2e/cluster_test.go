package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// shape says what a cluster is made of.
type shape struct {
	sites     []string // of the nodes, one each
	of        string   // vantage.of; empty: nodes
	endpoints int
	bind      bool   // a BIND is kept true, too
	road      bool   // there is a road that can hold messages before the BIND
	cluster   string // more keys of the cluster section, beginning with a comma
	uplink    bool   // every node has a check that tells it whether it is cut off itself
	check     string // of the endpoints; empty: http
	pace      string // of the check: keys of a configuration; empty: quick
	hold      string // safety.min_hold; empty: none
}

// cluster is nodes of rota that are one, each at a place of its own, with the endpoints they check, the BIND they keep true, and a
// watcher at every name server.
type cluster struct {
	*world

	shape     shape
	nodes     []*node
	endpoints []*endpoint
	all       []string // addresses of the endpoints
	uplink    *endpoint
	bind      *peers.NameServer
	bindAt    *place
	road      *peers.Road
	roadAt    *place
	watchers  []*watcher
	byNode    map[*node]*watcher
}

// standing is how a node says that it and its cluster stand.
type standing struct {
	Cluster  string
	NodeID   string `json:"node_id"`
	Node     string
	Raft     string
	Term     uint64
	Leader   string
	Leading  bool
	Last     uint64 `json:"last_index"`
	Applied  uint64 `json:"applied_index"`
	Snapshot uint64 `json:"snapshot_index"`
	Voters   int
	Voter    bool
	Removed  bool
	Since    time.Time
	Healthy  bool
	Trouble  []string
}

// newCluster makes the world of a cluster, with its configuration files. Nothing of rota runs yet.
func newCluster(t testing.TB, s shape) *cluster {
	t.Helper()
	c := &cluster{world: newWorld(t), shape: s, byNode: map[*node]*watcher{}}
	for i := range s.endpoints {
		e := c.endpoint(fmt.Sprintf("e%d", i+1))
		c.endpoints, c.all = append(c.endpoints, e), append(c.all, e.addr)
	}
	slices.Sort(c.all)
	if s.uplink {
		c.uplink = c.endpoint("up1")
	}
	if s.bind {
		c.bindAt = c.place("dns1")
		c.bind = peers.Start(t, peers.BIND, peers.Config{
			Zones: []peers.Zone{{Name: zoneName + ".", Text: "mail IN MX 10 mx.example.net.\nother 60 IN A 192.0.2.99\n"}}, At: c.bindAt.at(),
		})
		if s.road {
			c.roadAt = c.place("road1")
			c.road = peers.NewRoadAt(t, c.roadAt.at(), c.bind.Addr())
		}
	}
	for i, site := range s.sites {
		c.add(fmt.Sprintf("n%d", i+1), site)
	}
	return c
}

// add makes one more node, with a configuration file, that is of no cluster yet.
func (c *cluster) add(name, site string) *node {
	c.t.Helper()
	p := c.place(name)
	dir := c.t.TempDir()
	n := &node{
		t: c.t, name: name, config: filepath.Join(dir, "rota.yaml"), data: filepath.Join(dir, "data"),
		dns: p.addr + ":53", place: p,
	}
	n.write(c.configOf(n, site))
	n.ends()
	c.nodes = append(c.nodes, n)
	return n
}

func (c *cluster) configOf(n *node, site string) string {
	pace := cmp.Or(c.shape.pace, "interval: 1s, timeout: 1s, fast_interval: 250ms, fall: 2, rise: 2, ok: 2")
	check := cmp.Or(c.shape.check, "http://{}:80/")
	addresses, uplink := strings.Join(c.all, ", "), ""
	if c.uplink != nil {
		pace = "interval: 1s, timeout: 1s, fast_interval: 500ms, fall: 3, rise: 2, ok: 2" // later than a node finds out that it is cut off
		uplink = fmt.Sprintf(", uplink: {checks: [\"tcp://%s:80\"]}", c.uplink.addr)
	}
	text := fmt.Sprintf(`
node: {name: %s, site: %s, data_dir: "DATA"}
api: {listen: ""}
cluster: {election: raft, listen: "%s:3648", advertise: "%[3]s:3648"%s}
vantage: {of: %s, max_age: 15s%s}
dns:
  listen: "DNS"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
defaults: {ttl: 1s, %s}
safety: {min_hold: %s}
services:
  %s: {endpoints: [%s], check: %q}
`, n.name, site, n.place.addr, c.shape.cluster, cmp.Or(c.shape.of, "nodes"), uplink, pace, cmp.Or(c.shape.hold, "0s"), www, addresses, check)
	if c.bind != nil {
		k, server := peers.DefaultKey(), c.bind.Addr()
		if c.road != nil {
			server = c.road.Addr()
		}
		text += fmt.Sprintf("  %s: {endpoints: [%s], check: %q, publish: bind}\n", service, addresses, check)
		text += fmt.Sprintf("publish: {bind: {type: rfc2136, servers: [%q], key: ddns}}\nkeys: {ddns: {algorithm: %s, name: %s., secret: %q}}\n",
			server, k.Algorithm, k.Name, k.Secret)
	}
	return text
}

// startCluster makes a cluster and starts it as an operator does: bootstrap on the first node, join on the others. It waits until all
// name servers answer all endpoints, and watches them from then on.
func startCluster(t testing.TB, s shape) *cluster {
	t.Helper()
	c := newCluster(t, s)
	c.bootstrap()
	for _, n := range c.nodes[1:] {
		c.join(n)
	}
	c.settle()
	c.watch()
	return c
}

// bootstrap begins the cluster with the first node.
func (c *cluster) bootstrap() {
	c.t.Helper()
	c.nodes[0].rota("cluster", "bootstrap", "-c", c.nodes[0].config)
	c.nodes[0].start()
}

// token returns a join token, made by a node of the cluster.
func (c *cluster) token(by *node) string {
	c.t.Helper()
	var out struct{ Token string }
	if err := by.do(http.MethodPost, "/api/v1/cluster/tokens", map[string]any{"role": "node"}, &out); err != nil {
		c.t.Fatalf("a token: %v", err)
	}
	return out.Token
}

// join lets a node join the cluster of the first one, and waits until it has a vote.
func (c *cluster) join(n *node) {
	c.t.Helper()
	n.rota("cluster", "join", c.token(c.nodes[0]), "-c", n.config)
	n.launch()
	eventually(c.t, n.name+" has a vote", func() bool {
		n.alive()
		s, err := n.standing()
		return err == nil && s.Voter && s.Healthy
	})
}

// settle waits until every name server answers all endpoints, by verdicts.
func (c *cluster) settle() {
	c.t.Helper()
	for _, n := range c.nodes {
		eventually(c.t, n.name+" answers all endpoints", func() bool {
			got, err := askFrom(c.eye, n.dns, www, dns.TypeA)
			return err == nil && slices.Equal(got, c.all) && settled(n)
		})
	}
	if c.bind != nil {
		eventually(c.t, "BIND answers all endpoints", func() bool {
			got, err := askFrom(c.eye, c.bind.Addr(), service, dns.TypeA)
			return err == nil && slices.Equal(got, c.all)
		})
	}
}

// watch begins to watch every name server that is not watched.
func (c *cluster) watch() {
	c.t.Helper()
	for _, n := range c.nodes {
		if c.byNode[n] == nil {
			c.byNode[n] = watchFrom(c.t, c.eye, n.dns, www, c.all...)
			c.watchers = append(c.watchers, c.byNode[n])
		}
	}
	if c.bind != nil && !slices.ContainsFunc(c.watchers, func(w *watcher) bool { return w.name == service }) {
		c.watchers = append(c.watchers, watchFrom(c.t, c.eye, c.bind.Addr(), service, c.all...))
	}
}

// kill is kill -9 of a node, whose name server may be silent from now on.
func (c *cluster) kill(n *node) {
	c.byNode[n].excuse(true)
	n.kill()
}

// restart starts a node that was killed.
func (c *cluster) restart(n *node) {
	c.t.Helper()
	n.launch()
	c.answersAgain(n)
}

// answersAgain waits until a node that was launched answers, and expects it to go on.
func (c *cluster) answersAgain(n *node) {
	c.t.Helper()
	eventually(c.t, n.name+" answers", func() bool {
		n.alive()
		got, err := askFrom(c.eye, n.dns, www, dns.TypeA)
		return err == nil && len(got) > 0
	})
	c.byNode[n].excuse(false)
}

// watcherOfBind is the watcher at the BIND.
func (c *cluster) watcherOfBind() *watcher {
	return c.watchers[slices.IndexFunc(c.watchers, func(w *watcher) bool { return w.name == service })]
}

// until waits until name servers answer exactly want; all that are not excused, when none is named.
func (c *cluster) until(what string, want []string, ws ...*watcher) {
	c.t.Helper()
	for _, w := range c.chosen(ws) {
		eventually(c.t, fmt.Sprintf("%s: %s answers %v", what, w.server, want), func() bool { return w.answering(want...) })
	}
}

// hold makes every other answer than want wrong, everywhere, until it is called without addresses.
func (c *cluster) hold(want ...string) {
	for _, w := range c.watchers {
		w.hold(want...)
	}
}

func (c *cluster) chosen(ws []*watcher) []*watcher {
	if len(ws) > 0 {
		return ws
	}
	var out []*watcher
	for _, w := range c.watchers {
		w.mu.Lock()
		if !w.excused {
			out = append(out, w)
		}
		w.mu.Unlock()
	}
	return out
}

// without returns all addresses but those of endpoints.
func (c *cluster) without(es ...*endpoint) []string {
	return slices.DeleteFunc(slices.Clone(c.all), func(a string) bool {
		return slices.ContainsFunc(es, func(e *endpoint) bool { return e.addr == a })
	})
}

// leader waits for the node that leads, of those given, or of all that run.
func (c *cluster) leader(among ...*node) *node {
	c.t.Helper()
	if len(among) == 0 {
		among = c.nodes
	}
	var found *node
	eventually(c.t, "somebody leads", func() bool {
		for _, n := range among {
			if n.process == nil {
				continue
			}
			if s, err := n.standing(); err == nil && s.Leading {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// others returns the nodes that are none of those given.
func (c *cluster) others(but ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return slices.Contains(but, n) })
}

// healthy waits until nodes know a leader, are up to date and know of as many nodes as there are.
func (c *cluster) healthy(nodes ...*node) {
	c.t.Helper()
	for _, n := range nodes {
		eventually(c.t, n.name+" is in step", func() bool {
			s, err := n.standing()
			return err == nil && s.Leader != "" && s.Since.IsZero() && s.Voters == len(c.nodes)
		})
	}
}

// same asks until all nodes hold the same state.
func (c *cluster) same() {
	c.t.Helper()
	var v struct {
		OK       bool
		Problems []string
		Members  []struct {
			Name    string
			Answers bool
			Same    bool
		}
	}
	last := ""
	defer func() {
		if c.t.Failed() {
			c.t.Logf("last verification: %s", last)
		}
	}()
	eventually(c.t, "all nodes hold the same state", func() bool {
		v.Members = nil
		if err := c.leader().get("/api/v1/cluster/verify", &v); err != nil {
			last = err.Error()
			return false
		}
		last = fmt.Sprintf("%+v", v)
		for _, m := range v.Members {
			if !m.Answers || !m.Same {
				return false
			}
		}
		return len(v.Members) == len(c.nodes)
	})
}

// standing asks a node how it stands.
func (n *node) standing() (standing, error) {
	var s standing
	err := n.get("/api/v1/cluster", &s)
	return s, err
}

// do asks the API over the unix socket. A refusal is a *statusError.
func (n *node) do(method, path string, body, into any) error {
	return n.doWithin(apiLimit, method, path, body, into)
}

func (n *node) doWithin(limit time.Duration, method, path string, body, into any) error {
	var b io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		b = bytes.NewReader(text)
	}
	r, err := http.NewRequest(method, "http://localhost"+path, b)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	return n.roundTrip(limit, r, into)
}

// override says on a node that an endpoint is under an action, and reports whether that was taken.
func (n *node) override(e *endpoint, action, reason string) error {
	return n.overrideWithin(apiLimit, e, action, reason)
}

func (n *node) overrideWithin(limit time.Duration, e *endpoint, action, reason string) error {
	return n.doWithin(limit, http.MethodPost, "/api/v1/overrides", map[string]any{
		"match": e.addr, "action": action, "for": "1h", "reason": reason, "force": true,
	}, nil)
}

// lift takes it back.
func (n *node) lift(e *endpoint) error {
	return n.do(http.MethodDelete, "/api/v1/overrides?match="+e.addr, nil, nil)
}

// override is what was said of an endpoint.
type override struct {
	Endpoint struct{ Service, Address string }
	Action   string
	Reason   string
}

// event is one of a node's history.
type event struct {
	Event struct {
		Index     uint64
		Kind      string
		Actor     string
		Overrides []override
		Published *struct{ Publisher string }
		Verdicts  []struct {
			Target string
			Status string
			Votes  []struct{ Vantage, Status string }
		}
	}
	Refused string
}

// events lists what was ordered after an index, oldest first.
func (n *node) events(after uint64) ([]event, error) {
	var list struct{ Items []event }
	err := n.get(fmt.Sprintf("/api/v1/events?limit=10000&after=%d", after), &list)
	return list.Items, err
}

// writer says one override after the other, each with a number as its reason, and notes which were taken. It is a client that writes
// while things go wrong.
type writer struct {
	c     *cluster
	e     *endpoint
	stop  chan struct{}
	done  chan struct{}
	began uint64 // index of the newest event before the first write

	mu    sync.Mutex // guards what follows
	tried int
	taken []string
	last  error
}

// write begins to write, to any node that there is now. What it says changes no answer: the endpoint is up, and forced up.
func (c *cluster) write(e *endpoint) *writer {
	c.t.Helper()
	s, err := c.leader().standing()
	if err != nil {
		c.t.Fatal(err)
	}
	w := &writer{c: c, e: e, stop: make(chan struct{}), done: make(chan struct{}), began: s.Applied}
	nodes := slices.Clone(c.nodes)
	go func() {
		defer close(w.done)
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			reason := fmt.Sprintf("write %d", i)
			err := nodes[i%len(nodes)].overrideWithin(writeLimit, e, "force-up", reason)
			w.mu.Lock()
			w.tried++
			if w.last = err; err == nil {
				w.taken = append(w.taken, reason)
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// writeLimit is how long a writer waits for an answer. It does not know then what became of the write, and goes on with the next.
const writeLimit = time.Second

// count returns how many writes were taken.
func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.taken)
}

// progress waits until more writes are taken.
func (w *writer) progress(what string) {
	w.c.t.Helper()
	before := w.count()
	eventually(w.c.t, what, func() bool { return w.count() > before+3 })
}

// check ends the writing and says whether every node's history has every write that was taken, once and in the order in which they were
// made: one writer that waits for each answer leaves no other history.
func (w *writer) check() {
	w.c.t.Helper()
	close(w.stop)
	<-w.done
	w.c.t.Logf("%d of %d writes were taken", len(w.taken), w.tried)
	if len(w.taken) == 0 {
		w.c.t.Errorf("no write was taken: %v", w.last)
	}
	for _, n := range w.c.nodes {
		missing := []string{}
		eventually(w.c.t, n.name+" has all that was written", func() bool {
			all, err := n.events(w.began)
			if err != nil {
				return false
			}
			seen := map[string]bool{}
			var order []string
			for _, e := range all {
				if len(e.Event.Overrides) == 0 || e.Refused != "" {
					continue
				}
				reason := e.Event.Overrides[0].Reason // one for each service of the endpoint
				if seen[reason] = true; slices.Contains(w.taken, reason) {
					order = append(order, reason)
				}
			}
			missing = slices.DeleteFunc(slices.Clone(w.taken), func(x string) bool { return seen[x] })
			if len(missing) > 0 {
				return false
			}
			if !slices.Equal(order, w.taken) {
				w.c.t.Errorf("%s: writes are in another order, or more than once: %v, and these were taken: %v", n.name, order, w.taken)
			}
			return true
		})
		if len(missing) > 0 {
			w.c.t.Errorf("%s lost %v", n.name, missing)
		}
	}
}
