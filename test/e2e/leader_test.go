package e2e

import (
	"errors"
	"flag"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
)

var threeSites = []string{"ams", "fra", "nyc"}

// refused reports whether an error is the API's 503 that says that nobody can order anything now.
func refused(err error) bool {
	var s *statusError
	return errors.As(err, &s) && s.status == http.StatusServiceUnavailable && strings.Contains(s.body, "leader")
}

// watchersOf are the watchers at nodes, and at the BIND when there is one and with says so.
func (c *cluster) watchersOf(with bool, nodes ...*node) []*watcher {
	var out []*watcher
	for _, n := range nodes {
		out = append(out, c.byNode[n])
	}
	if with && c.bind != nil {
		out = append(out, c.watcherOfBind())
	}
	return out
}

// A leader that dies or is cut off: somebody else leads, and no name server says anything wrong.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true})
	e := c.endpoints

	// L1: kill -9.
	old := c.leader()
	rest := c.others(old)
	c.kill(old)
	begin := time.Now()
	eventually(t, "a write is taken after the leader died", func() bool { return rest[0].override(e[1], "force-up", "first") == nil })
	t.Logf("leader killed: the first write was taken after %v", time.Since(begin).Round(time.Millisecond))
	e[2].kill()
	c.until("the new leader decides and writes", c.without(e[2]))
	c.restart(old)
	c.healthy(c.nodes...)
	e[2].start()
	c.until("all is well after the leader's death", c.all)

	// L2: cut off, both ways. What it serves stays; it takes nothing; the others go on.
	old = c.leader()
	rest = c.others(old)
	c.byNode[old].hold(c.all...)
	c.isolate(old.place)
	now := c.leader(rest...)
	e[0].kill()
	c.until("the others go on without it", c.without(e[0]), c.watchersOf(true, rest...)...)
	if err := old.override(e[1], "drain", "from the dead"); !refused(err) {
		t.Errorf("a leader that is cut off took an override, or did not say that there is no leader: %v", err)
	}
	if s, err := old.standing(); err != nil || s.Leading || s.Since.IsZero() {
		t.Errorf("the leader that was cut off still leads, or does not say since when it is behind: %+v, %v", s, err)
	}
	c.byNode[old].hold()
	c.heal()
	c.healthy(c.nodes...)
	c.until("the one that was cut off follows", c.without(e[0]))
	if s, err := now.standing(); err != nil || !s.Leading {
		t.Errorf("the return of the old leader cost the new one its lead: %+v, %v", s, err)
	}
	e[0].start()
	c.until("all is well after the cut", c.all)

	c.same()
}

// A node that hears nobody, and nodes that are restarted one after the other, cost no write that was taken.
func TestWritesGoOn(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 2, bind: true})
	e := c.endpoints

	// L3: a node hears nobody and is heard. There is no endless election, and writing goes on.
	deaf := c.others(c.leader())[0]
	before, err := c.leader().standing()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range c.others(deaf) {
		c.oneWay(o.place, deaf.place)
	}
	w := c.write(e[1])
	for range 3 {
		w.progress("writes are taken while a node is deaf")
		time.Sleep(time.Second) // for elections, if there were any
	}
	after, err := c.leader().standing()
	if err != nil || after.Term > before.Term+1 {
		t.Errorf("a deaf node cost terms: %d, was %d (%v)", after.Term, before.Term, err)
	}
	c.heal()
	c.healthy(c.nodes...)
	w.check()

	// A leader that is stopped in order hands over first, and all nodes are restarted one after the other while somebody writes (L12).
	w = c.write(e[1])
	for _, n := range c.nodes {
		c.byNode[n].excuse(true)
		if s := n.stop(); !s.Success() {
			t.Errorf("SIGTERM: %v", s)
		}
		w.progress("writes are taken while " + n.name + " is away")
		c.restart(n)
		c.healthy(c.nodes...)
	}
	w.check()
	c.stays(c.all...)
	c.same()
}

// L4: without a majority nothing is decided and nothing written; every node answers on, and says so.
func TestMajorityLost(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true})
	e := c.endpoints
	last := c.others(c.leader())[0]
	gone := c.others(last)
	for _, n := range gone {
		c.kill(n)
	}
	serial := c.bind.Serial(zoneName + ".")
	c.hold(c.all...)
	e[0].kill()
	eventually(t, "an operator is told that there is no leader", func() bool { return refused(last.override(e[1], "drain", "alone")) })
	s, err := last.standing()
	if err != nil || s.Healthy || s.Since.IsZero() || s.Leader != "" {
		t.Errorf("the last node does not say that it is alone, and since when: %+v, %v", s, err)
	}
	time.Sleep(several) // the watchers judge what is answered meanwhile
	if now := c.bind.Serial(zoneName + "."); now != serial {
		t.Errorf("the BIND was written to without a majority: serial %d, was %d", now, serial)
	}
	c.hold()
	for _, n := range gone {
		c.restart(n)
	}
	c.healthy(c.nodes...)
	c.until("what happened meanwhile is decided", c.without(e[0]))
	e[0].start()
	c.until("all is well again", c.all)
	c.same()
}

// L5: partitions come and go while somebody writes. What was taken is kept, in order, everywhere.
func TestPartitions(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 2, bind: true})
	w := c.write(c.endpoints[1])
	for round := range 10 {
		n := c.nodes[round%3]
		if round%2 == 0 {
			n = c.leader()
		}
		c.isolate(n.place)
		w.progress("writes are taken while " + n.name + " is cut off")
		c.heal()
		w.progress("writes are taken while " + n.name + " comes back")
	}
	c.healthy(c.nodes...)
	w.check()
	c.same()
	c.until("all is well in the end", c.all)
}

// rrdnsd's second scenario: a node is dead, and of the two that live the leader cannot reach the DNS. The other one takes the lead.
func TestLeaderCannotReachDNS(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 2, bind: true})
	old := c.leader()
	rest := c.others(old)
	c.kill(rest[0])
	c.cut(old.place, c.bindAt)
	c.endpoints[0].kill()
	c.until("the third writes it", c.without(c.endpoints[0]))
	if s, err := rest[1].standing(); err != nil || !s.Leading {
		t.Errorf("the DNS is right, but not by the node that reaches it: %+v, %v", s, err)
	}
	c.heal()
	c.restart(rest[0])
	c.healthy(c.nodes...)
	c.endpoints[0].start()
	c.until("all is well again", c.all)
}

// L6: a leader is stopped for a while with a write on its way. Somebody else leads and writes; then the held write arrives, and the old
// leader goes on where it was. The DNS itself refuses what is stale.
func TestStaleWriter(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true, road: true})
	e := c.endpoints
	old := c.leader()
	held := make(chan []byte, 1)
	c.road.Set(func(p peers.Packet) [][]byte {
		if p.Query && p.Update() {
			select {
			case held <- p.Wire:
				return nil
			default:
			}
		}
		return peers.Pass(p)
	})
	e[0].kill()
	var late []byte
	select {
	case late = <-held:
	case <-time.After(patience):
		t.Fatal("no update was sent")
	}
	c.byNode[old].excuse(true)
	old.signal(t, syscall.SIGSTOP)
	rest := c.others(old)
	c.leader(rest...)
	e[0].start()
	e[1].kill()
	want := c.without(e[1])
	c.until("the new leader writes", want, c.watchersOf(true, rest...)...)
	for _, w := range c.watchersOf(true, rest...) {
		w.hold(want...)
	}
	if rcode := c.road.Send(late); rcode == 0 {
		t.Error("the BIND took the update of the deposed leader")
	}
	old.signal(t, syscall.SIGCONT)
	c.byNode[old].excuse(false)
	c.healthy(c.nodes...)
	c.until("the old leader follows", want)
	c.stays(want...)
	e[1].start()
	c.until("all is well again", c.all)
	c.same()
}

// wan is how long the leader has to stay over a slow way. The rule is ten minutes; the default is what there is time for each time.
var wan = flag.Duration("wan", 40*time.Second, "how long TestSlowAndLossy goes on")

// L14: a slow and lossy way between all nodes costs no leader.
func TestSlowAndLossy(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 2, bind: true})
	for i, a := range c.nodes {
		for _, b := range c.nodes[i+1:] {
			c.worsen(a.place, b.place, 150*time.Millisecond, 5) // each way: 300 ms there and back
		}
	}
	c.leader()
	time.Sleep(several) // what was under way may still cost a term
	before, err := c.leader().standing()
	if err != nil {
		t.Fatal(err)
	}
	w := c.write(c.endpoints[1])
	c.hold(c.all...)
	for end := time.Now().Add(*wan); time.Now().Before(end); {
		w.progress("writes are taken over a slow way")
	}
	c.hold()
	after, err := c.leader().standing()
	if err != nil || after.Term != before.Term || after.Leader != before.Leader {
		t.Errorf("in %v the leader changed from %s (term %d) to %s (term %d): %v", *wan, before.Leader, before.Term, after.Leader, after.Term, err)
	}
	c.endpoints[0].kill()
	c.until("verdicts are taken over a slow way", c.without(c.endpoints[0]))
	c.heal()
	c.healthy(c.nodes...)
	w.check()
	c.same()
}
