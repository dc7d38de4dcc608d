package e2e

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkFailover measures, for clusters of several sizes, how long after an endpoint's death (it refuses connections; interval 1 s, fall 2,
// fast interval 250 ms) the BIND and the nodes' name servers answer without it, and how long after the leader's death a write is taken.
// The time of an operation is that of everything, coming back included, and means nothing.
func BenchmarkFailover(b *testing.B) {
	for _, sites := range [][]string{{"a"}, {"a", "b", "c"}, {"a", "b", "c", "d", "e"}} {
		b.Run(fmt.Sprintf("nodes=%d", len(sites)), func(b *testing.B) {
			c := startCluster(b, shape{sites: sites, endpoints: 3, bind: true})
			var bind, embedded, lead time.Duration
			for i := range b.N {
				e := c.endpoints[i%len(c.endpoints)]
				left := c.without(e)
				died := time.Now()
				e.kill()
				c.until("the dead endpoint has left", left)
				for _, w := range c.watchers {
					took := w.since(died, left...).Sub(died)
					if w == c.watcherOfBind() {
						bind += took
					} else {
						embedded += took / time.Duration(len(c.nodes))
					}
				}
				e.start()
				c.until("it is back", c.all)
				if len(c.nodes) == 1 {
					continue
				}
				old := c.leader()
				rest := c.others(old)
				died = time.Now()
				c.kill(old)
				eventually(b, "a write is taken", func() bool {
					return rest[0].override(c.endpoints[0], "force-up", "measured") == nil
				})
				lead += time.Since(died)
				c.restart(old)
				c.healthy(c.nodes...)
				if err := c.leader().lift(c.endpoints[0]); err != nil {
					b.Fatal(err)
				}
			}
			n := float64(b.N)
			b.ReportMetric(bind.Seconds()/n, "s-to-BIND")
			b.ReportMetric(embedded.Seconds()/n, "s-to-own-DNS")
			b.ReportMetric(lead.Seconds()/n, "s-to-write-without-leader")
		})
	}
}

// Nothing is written to raft's log while nothing changes.
func TestNothingHappens(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true})
	time.Sleep(several) // the last of what the start brought
	before, err := c.leader().standing()
	if err != nil {
		t.Fatal(err)
	}
	c.hold(c.all...)
	time.Sleep(20 * time.Second)
	c.hold()
	after, err := c.leader().standing()
	if err != nil || after.Last != before.Last || after.Term != before.Term {
		t.Errorf("nothing happened, and the log grew from %d to %d (term %d, was %d): %v", before.Last, after.Last, after.Term, before.Term, err)
		all, err := c.leader().events(before.Applied)
		t.Logf("%+v %v", all, err)
	}
}
