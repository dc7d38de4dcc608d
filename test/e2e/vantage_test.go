package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// several is long enough for several rounds of checks and a change of mind: what has not changed by then stays.
const several = 6 * time.Second

// stays lets a while pass in which every name server must answer want and nothing else.
func (c *cluster) stays(want ...string) {
	c.t.Helper()
	c.hold(want...)
	time.Sleep(several) // the watchers judge what is answered meanwhile
	c.hold()
}

// votes returns what the vantages of the leader hold of an endpoint: vantage to status.
func (c *cluster) votes(e *endpoint) map[string]string {
	var list struct {
		Items []struct {
			Address string
			Votes   []struct{ Vantage, Status string }
		}
	}
	if err := c.leader().get("/api/v1/checks", &list); err != nil {
		return nil
	}
	out := map[string]string{}
	for _, x := range list.Items {
		if x.Address == e.addr {
			for _, v := range x.Votes {
				out[v.Vantage] = v.Status
			}
		}
	}
	return out
}

// seenDown waits until vantages hold an endpoint down.
func (c *cluster) seenDown(e *endpoint, by ...string) {
	c.t.Helper()
	eventually(c.t, e.name+" is seen down by "+strings.Join(by, ", "), func() bool {
		votes := c.votes(e)
		return !slices.ContainsFunc(by, func(v string) bool { return votes[v] != "down" })
	})
}

// What one place sees is no verdict; what most places see is. rrdnsd's first scenario is the second step: left is unreachable from two
// of three nodes and right from one.
func TestVantages(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: []string{"ams", "fra", "nyc"}, endpoints: 3, bind: true})
	n, e := c.nodes, c.endpoints
	left, right := e[0], e[1]

	// V1: one of three sees it down, and it is shown.
	c.cut(n[0].place, left.place)
	c.seenDown(left, "n1")
	c.stays(c.all...)

	// S1, V2: two of three do.
	c.cut(n[1].place, left.place)
	c.cut(n[2].place, right.place)
	c.until("left is unreachable from two of three", c.without(left))
	c.seenDown(right, "n3")
	story := c.leader().rota("explain", www)
	if !strings.Contains(story, "2 of 3") || !strings.Contains(story, "not done within") {
		t.Errorf("explain does not say that two of three time out:\n%s", story)
	}
	c.stays(c.without(left)...)
	c.heal()
	c.until("all is well again", c.all)

	// V3: one is cut off from everything. It changes nothing and answers on, and the others decide by the majority of all three.
	alone := c.others(c.leader())[0]
	rest := c.others(alone)
	c.isolate(alone.place)
	c.hold(c.all...)
	eventually(t, "the one that is cut off is no voter any more", func() bool {
		v := c.vantages(rest...)[alone.name]
		return v == "stale" || v == "silent"
	})
	c.hold()
	c.byNode[alone].hold(c.all...)
	e[2].kill()
	var theirs []*watcher
	for _, x := range rest {
		theirs = append(theirs, c.byNode[x])
	}
	c.until("the others decide", c.without(e[2]), append(theirs, c.watcherOfBind())...)
	if s, err := alone.standing(); err != nil || s.Since.IsZero() || s.Healthy {
		t.Errorf("the one that is cut off does not say since when it knows nothing new: %+v, %v", s, err)
	}
	c.byNode[alone].hold()
	c.heal()
	c.until("the one that was cut off follows", c.without(e[2]))

	// V8: all restart with an endpoint dead. None answers it from memory before it was seen up again.
	for _, w := range c.watchers {
		w.ban(e[2].addr)
	}
	for _, x := range n {
		c.kill(x)
	}
	for _, x := range n {
		c.restart(x)
	}
	c.healthy(n...)
	c.stays(c.without(e[2])...)
	for _, w := range c.watchers {
		w.ban("")
	}
	e[2].start()
	c.until("the endpoint is back", c.all)

	c.until("all is well in the end", c.all)
	c.same()
}

// V6: all nodes lose the network of the endpoints at once. That is more likely the network's fault than theirs.
func TestNetworkLost(t *testing.T) {
	for name, uplink := range map[string]bool{"with-uplink-checks": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true, uplink: uplink})
			var ways []way
			for _, n := range c.nodes {
				for _, e := range c.endpoints {
					ways = append(ways, both(n.place, e.place)...)
				}
				if uplink {
					ways = append(ways, both(n.place, c.uplink.place)...)
				}
			}
			if uplink {
				c.hold(c.all...) // they know that it is they who are cut off
			}
			c.set(func(f fault) fault { f.cut = true; return f }, ways...)
			disbelieved := func() bool {
				story := c.leader().rota("explain", www)
				return strings.Contains(story, "PANIC") || uplink && strings.Contains(story, "abstain")
			}
			eventually(t, "the loss of all is seen and not believed", disbelieved)
			if !uplink {
				time.Sleep(several) // what fell before the rest leaves, everywhere; from then on nothing changes
				for _, w := range c.watchers {
					w.hold(w.newest()...)
				}
			}
			time.Sleep(several) // the watchers judge
			c.hold()
			c.heal()
			eventually(t, "they are believed again", func() bool { return !disbelieved() })
			c.until("all is well in the end", c.all)
			c.same()
		})
	}
}

// vantages returns the state of each vantage as the leader, of those given, sees it.
func (c *cluster) vantages(among ...*node) map[string]string {
	var list struct {
		Items []struct{ Vantage, State string }
	}
	if err := c.leader(among...).get("/api/v1/vantages", &list); err != nil {
		return nil
	}
	out := map[string]string{}
	for _, v := range list.Items {
		out[v.Vantage] = v.State
	}
	return out
}

// V4, V10: who has a voice, and when half of the voices is not enough.
func TestVoices(t *testing.T) {
	for _, x := range []struct {
		name  string
		of    string
		sites []string
		blind []int // nodes that do not reach the endpoint and change nothing
		more  int   // one more that does not, and with it a majority
	}{
		{"two-of-four-nodes", "nodes", []string{"a", "b", "c", "d"}, []int{0, 1}, 2},
		{"three-nodes-of-one-site", "sites", []string{"a", "a", "a", "b", "c"}, []int{0, 1, 2}, 3},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, shape{sites: x.sites, of: x.of, endpoints: 2})
			e := c.endpoints[0]
			var names []string
			for _, i := range x.blind {
				c.cut(c.nodes[i].place, e.place)
				names = append(names, c.nodes[i].name)
			}
			c.seenDown(e, names...)
			c.stays(c.all...)
			c.cut(c.nodes[x.more].place, e.place)
			c.until("a majority does not reach it", c.without(e))
			c.heal()
			c.until("all is well again", c.all)
		})
	}
}

// An override is said on any node, holds on all, and outlives the leader.
func TestOverrideEverywhere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: []string{"ams", "fra", "nyc"}, endpoints: 2})
	e := c.endpoints[1]
	follower := c.others(c.leader())[0]
	if err := follower.override(e, "drain", "rack move"); err != nil {
		t.Fatal(err)
	}
	c.until("it has left everywhere", c.without(e))
	old := c.leader()
	c.hold(c.without(e)...)
	c.kill(old)
	c.leader(c.others(old)...)
	c.restart(old)
	c.healthy(c.nodes...)
	c.hold()
	if err := old.lift(e); err != nil {
		t.Fatal(err)
	}
	c.until("it is back everywhere", c.all)
}
