package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// alone is the shape of one node by itself.
func alone(s shape) shape {
	s.sites = []string{"here"}
	return s
}

// absences returns when an address left the answers and when it came back; a last one that has not come back is left out.
func (w *watcher) absences(address string) (out [][2]time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left time.Time
	for _, s := range w.answers {
		switch in := slices.Contains(s.addresses, address); {
		case !in && left.IsZero():
			left = s.at
		case in && !left.IsZero():
			out = append(out, [2]time.Time{left, s.at})
			left = time.Time{}
		}
	}
	return out
}

// quiet fails the test when a verdict changed after an index of the history.
func (c *cluster) quiet(after uint64, when string) {
	c.t.Helper()
	all, err := c.leader().events(after)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range all {
		if len(e.Event.Verdicts) > 0 {
			c.t.Errorf("%s, and a verdict changed: %+v", when, e.Event.Verdicts)
		}
	}
}

// applied is the index of the newest event.
func (c *cluster) applied() uint64 {
	c.t.Helper()
	s, err := c.leader().standing()
	if err != nil {
		c.t.Fatal(err)
	}
	return s.Applied
}

// P2: an endpoint whose host is dark leaves by timeout, nobody else is doubted meanwhile, and it comes back.
func TestDark(t *testing.T) {
	t.Parallel()
	c := startCluster(t, alone(shape{endpoints: 3, bind: true}))
	e := c.endpoints[1]
	for range 2 {
		c.cut(c.nodes[0].place, e.place)
		c.until("the dark one has left", c.without(e))
		if story := c.nodes[0].rota("explain", www); !strings.Contains(story, "not done within") {
			t.Errorf("explain does not say that it timed out:\n%s", story)
		}
		c.stays(c.without(e)...)
		c.heal()
		c.until("it is back", c.all)
	}
}

// P5: an endpoint that comes and goes each 1 to 5 s leaves the DNS at most once per hold-down, by rota's own name server and by BIND;
// one that fails now and then never leaves, and the log says that this was damped.
func TestFlapping(t *testing.T) {
	t.Parallel()
	// An absence without the hold would be as long as the endpoint is down at most, and the rise: 7 s.
	const hold, short = 15 * time.Second, 10 * time.Second
	c := startCluster(t, alone(shape{endpoints: 3, bind: true, hold: hold.String()}))
	flaps, ails := c.endpoints[0], c.endpoints[1]
	ails.sick.Store(7)
	random := rand.New(rand.NewPCG(5, 5))
	some := func() time.Duration { return time.Second + time.Duration(random.Int64N(int64(4*time.Second))) }
	held := false
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		flaps.kill()
		time.Sleep(some())
		flaps.start()
		time.Sleep(some())
		held = held || strings.Contains(c.nodes[0].rota("explain", www), "held until")
	}
	for _, w := range c.watchers {
		gone := w.absences(flaps.addr)
		if len(gone) == 0 {
			t.Errorf("%s: it never left and came back", w.server)
		}
		for i, a := range gone {
			if out := a[1].Sub(a[0]); out < short {
				t.Errorf("%s: it was out for %v only, the hold-down is %v", w.server, out, hold)
			}
			if i > 0 && a[0].Sub(gone[i-1][0]) < short {
				t.Errorf("%s: it left twice within %v, the hold-down is %v", w.server, a[0].Sub(gone[i-1][0]), hold)
			}
		}
		if n := len(w.absences(ails.addr)); n > 0 {
			t.Errorf("%s: one that fails now and then left %d times", w.server, n)
		}
	}
	if !held {
		t.Error("explain never said that it is held")
	}
	eventually(t, "the log says what was damped", func() bool { return strings.Contains(c.nodes[0].log.String(), "flapping damped") })
}

// P6: 30 % of the packets of one of three vantages are lost, both ways, to the endpoints and to the other nodes. It holds endpoints
// down, which shows, and no verdict changes.
func TestLoss(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 4, pace: "interval: 500ms, timeout: 500ms, fast_interval: 250ms, fall: 2, rise: 2, ok: 2"})
	noisy := c.others(c.leader())[0]
	before := c.applied()
	c.hold(c.all...)
	c.set(func(f fault) fault { f.loss = 30; return f }, c.around(noisy.place)...)
	shown := func() bool {
		var list struct {
			Items []struct {
				Vantage string
				Outlier bool
			}
		}
		if err := c.leader().get("/api/v1/vantages", &list); err != nil {
			return false
		}
		for _, v := range list.Items {
			if v.Outlier && v.Vantage != noisy.name {
				t.Errorf("%s is said to be noisy", v.Vantage)
			}
			if v.Vantage == noisy.name && v.Outlier {
				return true
			}
		}
		return false
	}
	eventually(t, noisy.name+" shows as noisy", shown)
	time.Sleep(30 * time.Second) // some hundred probes
	c.quiet(before, "one of three lost 30 %")
	c.heal()
	c.until("all is well in the end", c.all)
	eventually(t, noisy.name+" is heard again", func() bool { return !shown() })
	c.quiet(before, "it can see again")
	c.hold()
}

// P6, DESIGN §4: to a vantage alone, an endpoint that loses 30 % is not well, although two of three probes succeed: failures count
// cumulatively. Default thresholds.
func TestLossIsSeen(t *testing.T) {
	t.Parallel()
	c := startCluster(t, alone(shape{endpoints: 3, check: "icmp://{}", pace: "interval: 500ms, timeout: 400ms, fast_interval: 250ms"}))
	e := c.endpoints[2]
	c.set(func(f fault) fault { f.loss = 30; return f }, way{c.nodes[0].place, e.place})
	c.until("the loss is seen", c.without(e))
	c.heal()
	c.until("it is back", c.all)
}

// P7: latency below the timeout is no failure, latency above it is, and where it is now this and now that the DNS does not flap.
func TestLatency(t *testing.T) {
	t.Parallel()
	const hold, short = 15 * time.Second, 10 * time.Second
	c := startCluster(t, alone(shape{
		endpoints: 3, check: "icmp://{}", hold: hold.String(), pace: "interval: 3s, timeout: 3s, fast_interval: 1s, fall: 2, rise: 2, ok: 2",
	}))
	e := c.endpoints[0]
	slow := func(delay, vary time.Duration) {
		c.set(func(f fault) fault { f.delay, f.vary = delay, vary; return f }, way{e.place, c.nodes[0].place})
	}
	slow(2*time.Second, 0)
	c.hold(c.all...)
	time.Sleep(4 * several)
	c.hold()
	slow(3*time.Second, 60*time.Millisecond)
	begin := time.Now()
	time.Sleep(4 * several)
	slow(3300*time.Millisecond, 0)
	time.Sleep(2 * hold) // what was in time before may still bring it back once
	c.until("it is too slow", c.without(e))
	c.stays(c.without(e)...)
	c.heal()
	c.until("it is quick again", c.all)
	for _, w := range c.watchers {
		last := time.Time{}
		for _, a := range w.absences(e.addr) {
			if a[0].Before(begin) || a[1].Sub(a[0]) < short || !last.IsZero() && a[0].Sub(last) < short {
				t.Errorf("%s: it was away from %v to %v; the hold-down is %v", w.server, a[0], a[1], hold)
			}
			last = a[0]
		}
	}
}

// P17, V5: 5,000 targets go dark at once. The sockets stay bounded, no name loses its answer, and all is well when they are back.
func TestAllDarkAtOnce(t *testing.T) {
	t.Parallel()
	const services, each = 1250, 4
	w := newWorld(t)
	farm := w.place("farm")
	// All of 10.80.0.0/16 is at the farm.
	farm.run(t, "route add local 10.80.0.0/16 dev lo\n", "ip", "-batch", "-")
	w.router.run(t, fmt.Sprintf("route add 10.80.0.0/16 via %s\n", farm.addr), "ip", "-batch", "-")
	server := &endpoint{place: &place{network: farm.network, name: "farm", addr: "0.0.0.0"}, t: t}
	server.start()
	t.Cleanup(server.kill)
	address := func(i int) string { return fmt.Sprintf("10.80.%d.%d", i/250, i%250+1) }
	var text strings.Builder
	fmt.Fprintf(&text, `
node: {name: n1, site: here, data_dir: "DATA"}
api: {listen: ""}
dns:
  listen: "DNS"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
defaults: {ttl: 1s, interval: 10s, timeout: 2s, fast_interval: 2s, fall: 2, rise: 2, ok: 2}
safety: {min_hold: 0s}
services:
`)
	var first []string
	for s := range services {
		var list []string
		for i := range each {
			list = append(list, address(s*each+i))
		}
		if s == 0 {
			first = list
		}
		fmt.Fprintf(&text, "  s%d.lb.test: {endpoints: [%s], check: \"tcp://{}:80\"}\n", s, strings.Join(list, ", "))
	}
	const watched = "s0.lb.test"
	p := w.place("n1")
	dir := t.TempDir()
	n := &node{t: t, name: "n1", config: filepath.Join(dir, "rota.yaml"), data: filepath.Join(dir, "data"), dns: p.addr + ":53", place: p}
	n.write(text.String())
	n.ends()
	n.start()
	believed := func() bool { return !strings.Contains(n.rota("explain", watched), "PANIC") }
	eventually(t, "all are answered", func() bool {
		got, err := askFrom(w.eye, n.dns, watched, dns.TypeA)
		return err == nil && slices.Equal(got, first)
	})
	watchFrom(t, w.eye, n.dns, watched, first...) // what fell before the rest leaves; the name is never empty
	most := 0
	sockets := func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
		most = max(most, len(fds))
		return err == nil
	}
	for range 3 {
		eventually(t, "all are up", func() bool { return sockets() && up(n, watched) == each })
		farm.run(t, "table ip dark { chain in { type filter hook input priority 0; tcp dport 80 drop; }; }", "nft", "-f", "-")
		eventually(t, "it is seen and not believed", func() bool { return sockets() && !believed() })
		farm.run(t, "delete table ip dark", "nft", "-f", "-")
		eventually(t, "they are believed again", func() bool { return sockets() && believed() })
	}
	// At most DefaultConcurrency probes are in flight; what else the process holds open does not depend on the targets.
	if most > 4096+100 {
		t.Errorf("%d descriptors were open at once", most)
	}
}

// up returns how many endpoints of a service are up.
func up(n *node, service string) int {
	var v struct {
		Service struct{ Up int }
	}
	_ = n.get("/api/v1/services/"+service, &v) // the count stays 0
	return v.Service.Up
}

// P19: no descriptor is left. Nothing can be probed, which is said and changes nothing, and is over when there are descriptors again.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	c := startCluster(t, alone(shape{endpoints: 4}))
	n := c.nodes[0]
	before := c.applied()
	pid := n.cmd.Process.Pid
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &had); err != nil {
		t.Fatal(err)
	}
	c.hold(c.all...)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that it abstains", func() bool { return strings.Contains(n.log.String(), "abstains") })
	time.Sleep(several)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &had, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it sees again", func() bool { return strings.Contains(n.log.String(), "trusts its eyes again") })
	c.quiet(before, "no descriptor was left")
	c.hold()
	c.endpoints[1].kill()
	c.until("what dies from then on leaves", c.without(c.endpoints[1]))
}

// P20: the process is stopped for longer than every timeout, with probes under way: answers take half of a timeout and are lost
// meanwhile, and one failure is enough for a verdict. Nothing changes when it goes on.
func TestPaused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, alone(shape{endpoints: 3, bind: true, pace: "interval: 4s, timeout: 4s, fast_interval: 2s, fall: 1, rise: 1, ok: 1"}))
	n := c.nodes[0]
	var ways []way
	for _, e := range c.endpoints {
		ways = append(ways, both(n.place, e.place)...)
	}
	c.set(func(f fault) fault { f.delay = 500 * time.Millisecond; return f }, ways...)
	lost := func(cut bool) { c.set(func(f fault) fault { f.cut = cut; return f }, ways...) }
	for round := range 3 {
		before := c.applied()
		c.byNode[n].excuse(true)
		c.hold(c.all...)
		n.signal(t, syscall.SIGSTOP)
		lost(true)
		time.Sleep(8 * time.Second)
		lost(false)
		n.signal(t, syscall.SIGCONT)
		c.answersAgain(n)
		time.Sleep(several)
		c.quiet(before, "it was stopped")
		c.hold()
		eventually(t, "it says so", func() bool { return strings.Count(n.log.String(), "was stopped") > round })
	}
	c.endpoints[1].kill()
	c.until("what dies from then on leaves", c.without(c.endpoints[1]))
}
