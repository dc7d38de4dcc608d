package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

const www = "www.lb.test"

// fast makes verdicts quick enough for a test without making them depend on the machine: a probe has long to answer.
const fast = "interval: 300ms, timeout: 250ms, fast_interval: 100ms, fall: 2, rise: 2, ok: 2"

// embedded is a node that answers for three endpoints by itself.
func embedded(port int, extra string) string {
	return fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
dns:
  listen: "DNS"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
services:
  www.lb.test:
    ttl: 1s
    endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]
    check: {type: http, port: %d, path: /health, %s}
    safety: {min_hold: 0s%s}
`, port, fast, extra)
}

var three = []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}

func startThree(t *testing.T, port int) []*peers.Nginx {
	var out []*peers.Nginx
	for _, a := range three {
		out = append(out, peers.StartNginx(t, a, port, `location / { return 200 "on duty"; }`))
	}
	return out
}

// rrdnsd §5.7: an endpoint dies and its address goes; it returns and the address comes back. Killed, hung and broken alike.
func TestEmbeddedFailureLeavesAndReturns(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	eventually(t, "all three are answered", answers(n.dns, www, dns.TypeA, three...))
	watch(t, n.dns, www, three...)

	servers[1].Kill()
	eventually(t, "the killed one has left", answers(n.dns, www, dns.TypeA, three[0], three[2]))
	if story := n.rota("explain", www); !strings.Contains(story, "127.0.0.3") || !strings.Contains(story, "refused") {
		t.Errorf("explain does not say that 127.0.0.3 refused:\n%s", story)
	}
	servers[1].Restart()
	eventually(t, "it is back", answers(n.dns, www, dns.TypeA, three...))

	servers[2].Signal(syscall.SIGSTOP)
	eventually(t, "the hung one has left", answers(n.dns, www, dns.TypeA, three[0], three[1]))
	servers[2].Signal(syscall.SIGCONT)
	eventually(t, "it is back", answers(n.dns, www, dns.TypeA, three...))
}

// rrdnsd §5.7: all endpoints die; the records stay.
func TestEmbeddedNeverEmpty(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	eventually(t, "all three are answered", func() bool { return settled(n) && answers(n.dns, www, dns.TypeA, three...)() })
	w := watch(t, n.dns, www, three...)
	for _, s := range servers {
		s.Kill()
	}
	eventually(t, "the failure is seen as panic", func() bool {
		return strings.Contains(n.rota("explain", www), "PANIC")
	})
	w.clean(t)
}

func settled(n *node) bool {
	var v struct {
		Service struct {
			Status string `json:"status"`
		} `json:"service"`
	}
	return n.get("/api/v1/services/"+www, &v) == nil && v.Service.Status != "warmup"
}

// A node that is killed during a change and started again with one of three endpoints down never answers the dead address.
func TestEmbeddedKillNine(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	eventually(t, "all three are answered", func() bool { return settled(n) && answers(n.dns, www, dns.TypeA, three...)() })
	w := watch(t, n.dns, www, three...)
	for round := range 5 {
		servers[1].Kill()
		eventually(t, "the dead one has left", answers(n.dns, www, dns.TypeA, three[0], three[2]))
		w.ban(three[1])
		n.kill() // the verdict is milliseconds old
		n.start()
		time.Sleep(time.Duration(round) * 100 * time.Millisecond) // the watcher is what judges; this only varies the moment
		n.kill()
		n.start()
		eventually(t, "the living are answered", answers(n.dns, www, dns.TypeA, three[0], three[2]))
		w.ban("")
		servers[1].Restart()
		eventually(t, "it is back", answers(n.dns, www, dns.TypeA, three...))
	}
}

// An override takes effect at once, survives a restart, is shown beside the real verdict, and ends by `ready`.
func TestEmbeddedOverride(t *testing.T) {
	port := peers.FreePort(t, three...)
	startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	eventually(t, "all three are answered", func() bool { return settled(n) && answers(n.dns, www, dns.TypeA, three...)() })
	watch(t, n.dns, www, three...)

	n.rota("drain", www+"/127.0.0.4", "--for", "1h", "--reason", "rack move")
	eventually(t, "the drained one has left", answers(n.dns, www, dns.TypeA, three[0], three[1]))
	if out := n.rota("get", "endpoints", www); !strings.Contains(out, "DRAIN") {
		t.Errorf("get endpoints does not show the drain:\n%s", out)
	}
	n.stop()
	n.start()
	eventually(t, "it stays out after a restart", answers(n.dns, www, dns.TypeA, three[0], three[1]))
	if out, err := n.try("drain", www, "--reason", "all of it"); err == nil {
		t.Errorf("draining every endpoint was taken without --force:\n%s", out)
	}
	n.rota("ready", www+"/127.0.0.4")
	eventually(t, "it is back", answers(n.dns, www, dns.TypeA, three...))
}

// A bad file at reload changes nothing and is reported; a good one is taken whole.
func TestEmbeddedReload(t *testing.T) {
	port := peers.FreePort(t, three...)
	startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	eventually(t, "all three are answered", func() bool { return settled(n) && answers(n.dns, www, dns.TypeA, three...)() })
	watch(t, n.dns, www, three...)

	n.write(strings.Replace(embedded(port, ""), "ttl: 1s", "tll: 1s", 1))
	if out, err := n.try("reload"); err == nil || !strings.Contains(out, "tll") {
		t.Errorf("reload of a broken file: %v\n%s", err, out)
	}
	if got, err := ask(n.dns, www, dns.TypeA); err != nil || len(got) != 3 {
		t.Errorf("after a refused reload: %v, %v", got, err)
	}
	n.write(strings.Replace(embedded(port, ""), "127.0.0.2, ", "", 1))
	n.signal(t, syscall.SIGHUP)
	eventually(t, "the removed endpoint has left", answers(n.dns, www, dns.TypeA, three[1], three[2]))
}

// SIGTERM ends the node in order, with exit code 0.
func TestEmbeddedStop(t *testing.T) {
	port := peers.FreePort(t, three...)
	startThree(t, port)
	n := newNode(t, embedded(port, ""))
	n.start()
	if s := n.stop(); !s.Success() {
		t.Errorf("SIGTERM: %v\n%s", s, n.log)
	}
}

// config/min-embedded.yaml works as it stands: on port 53, in a network of its own.
func TestMinimalEmbedded(t *testing.T) {
	file, err := filepath.Abs("../../config/min-embedded.yaml")
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`
set -e
ip link set lo up
cd %q
%q run --config %q &
rota=$!
trap 'kill -KILL $rota' EXIT
for i in $(seq 300); do
  answer=$(dig +short +timeout=1 +tries=1 @127.0.0.1 www.lb.example.org A 2>/dev/null | sort | tr '\n' ' ')
  [ "$answer" = "192.0.2.10 192.0.2.11 " ] && break
  sleep 0.1
done
echo "ANSWER $answer"
dig +short +timeout=1 @127.0.0.1 lb.example.org NS | sort | tr '\n' ' '
kill -TERM $rota
wait $rota
echo "EXIT $?"
trap - EXIT
`, t.TempDir(), binary, file)
	out, err := exec.Command("unshare", "--net", "bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"ANSWER 192.0.2.10 192.0.2.11", "ns1.example.org. ns2.example.org.", "EXIT 0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

// The demo tells its story and ends by itself.
func TestDemo(t *testing.T) {
	t.Parallel()
	c := exec.Command(binary, "demo", "--for", "30s")
	c.Env = append(os.Environ(), "NO_COLOR=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"dig @127.0.0.1", "KILL", "it has left the answer", "refused", "START", "it is back"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}
