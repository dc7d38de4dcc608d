package e2e

import (
	"strings"
	"testing"
)

// A freeze stops everything automatic in the whole cluster, outlives its leader, and lets people act; a node that hears nobody freezes
// itself.
func TestFreeze(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3, bind: true})
	e := c.endpoints
	old := c.leader()
	rest := c.others(old)
	if out := rest[0].rota("freeze", "--reason", "the probes are wrong"); !strings.Contains(out, "this node: FROZEN") || !strings.Contains(out, "the cluster: FROZEN, event") {
		t.Errorf("rota freeze says\n%s", out)
	}
	c.hold(c.all...)
	e[0].kill()
	eventually(t, "its death is known", func() bool {
		return strings.Contains(old.rota("explain", service), "down meanwhile, which the freeze keeps from counting")
	})
	c.kill(old)
	now := c.leader(rest...)
	if out := now.rota("status"); !strings.HasPrefix(out, "FROZEN by ") {
		t.Errorf("the next leader is not frozen:\n%s", out)
	}
	c.restart(old)
	c.healthy(c.nodes...)
	c.hold()
	if err := now.override(e[1], "drain", "by hand"); err != nil {
		t.Fatal(err)
	}
	c.until("a person is heard, by the verdicts as they were", c.without(e[1]))
	old.rota("thaw")
	c.until("it goes on", c.without(e[0], e[1]))
	if err := now.lift(e[1]); err != nil {
		t.Fatal(err)
	}
	e[0].start()
	c.until("all is well after the freeze", c.all)

	// Nobody leads here, and nobody can be told.
	lonely := c.others(c.leader())[0]
	c.isolate(lonely.place)
	eventually(t, "it knows that it is alone", func() bool { s, err := lonely.standing(); return err == nil && s.Leader == "" })
	out := lonely.rota("freeze", "--reason", "nobody is there")
	if !strings.Contains(out, "this node: FROZEN") || !strings.Contains(out, "the cluster: NOT TOLD: no leader") {
		t.Errorf("rota freeze says\n%s", out)
	}
	c.byNode[lonely].hold(c.all...)
	c.heal()
	c.healthy(c.nodes...)
	e[2].kill()
	c.until("the others go on", c.without(e[2]), c.watchersOf(true, c.others(lonely)...)...)
	if out := lonely.rota("status"); !strings.HasPrefix(out, "this node alone: FROZEN by ") {
		t.Errorf("it does not say so:\n%s", out)
	}
	if out, _ := c.leader().try("cluster", "verify"); !strings.Contains(out, "FROZEN: it publishes nothing") {
		t.Errorf("nobody else is told:\n%s", out)
	}
	c.byNode[lonely].hold()
	lonely.rota("thaw", "--here")
	c.until("it follows", c.without(e[2]))
	c.same()
}
