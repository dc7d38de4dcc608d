package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// host is a machine of a test: what its node_exporter shows is set by the test.
type host struct {
	t      *testing.T
	on     string // host:port
	server *http.Server

	mu         sync.Mutex // guards what follows
	begun      time.Time
	busy, load float64 // share of time; load average
	free       float64 // share of memory
	asked      int
}

// startHost starts the exporter of a quiet machine with two cores. It ends with the test.
func startHost(t *testing.T, address string, port int) *host {
	t.Helper()
	h := &host{t: t, on: net.JoinHostPort(address, fmt.Sprint(port)), begun: time.Now()}
	h.set(0.1, 0.5, 0.5)
	h.revive()
	t.Cleanup(h.die)
	return h
}

func (h *host) set(busy, free, load float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy, h.free, h.load = busy, free, load
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	d := time.Since(h.begun).Seconds()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for core := range 2 {
		fmt.Fprintf(w, "node_cpu_seconds_total{cpu=\"%d\",mode=\"idle\"} %f\n", core, 1e4+d*(1-h.busy))
		fmt.Fprintf(w, "node_cpu_seconds_total{cpu=\"%d\",mode=\"user\"} %f\n", core, 1e4+d*h.busy)
	}
	fmt.Fprintf(w, "node_load1 %g\nnode_memory_MemAvailable_bytes %e\nnode_memory_MemTotal_bytes 8e+09\n", h.load, 8e9*h.free)
}

// die ends the exporter; the machine lives on.
func (h *host) die() { _ = h.server.Close() }

// revive starts the exporter again.
func (h *host) revive() {
	h.t.Helper()
	l, err := net.Listen("tcp", h.on)
	if err != nil {
		h.t.Fatal(err)
	}
	h.server = &http.Server{Handler: h, ReadHeaderTimeout: patience}
	go func() { _ = h.server.Serve(l) }() // it ends with die
}

// dynlbd as it is configured and used (§1.7): an overloaded host leaves and comes back; an exporter that dies changes nothing; when all are
// overloaded in the peak nobody is shed below the floor (V14); a host with a ping alone is never asked for its numbers.
func TestNodeExporter(t *testing.T) {
	const login, mail, lonely = "login.example.org", "mail.example.org", "127.0.0.5"
	port := peers.FreePort(t, append(three, lonely)...)
	var hosts []*host
	for _, a := range three {
		hosts = append(hosts, startHost(t, a, port))
	}
	pinged := startHost(t, lonely, port)
	real := peers.StartNodeExporter(t, "127.0.0.1", peers.FreePort(t))
	b := startBind(t, "")
	k := peers.DefaultKey()
	_, realPort, err := net.SplitHostPort(real.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
keys: {ddns: {algorithm: %s, name: %s., secret: %q}}
publish:
  bind: {type: rfc2136, servers: [%q], key: ddns}
defaults: {ttl: 5s, interval: 1s, timeout: 900ms, fast_interval: 300ms, fall: 2, rise: 2, ok: 2}
safety: {min_hold: 0s}
checks:
  ping: {type: icmp}
  node: {type: node_exporter, port: %d, rules: [all]}
  idle: {type: node_exporter, port: %s, rules: {cpu: "<= 100%%", load1: "<= 1000 cores", 'node_filesystem_avail_bytes{mountpoint="/"}': "> 1kB"}}
services:
  login.example.org:
    endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]
    checks: [ping, node]
    publish: bind
  mail.example.org:
    endpoints: [127.0.0.5, {address: 127.0.0.1, checks: [ping, idle]}]
    check: ping
    publish: bind
`, k.Algorithm, k.Name, k.Secret, b.Addr(), port, realPort))
	n.start()
	eventually(t, "all three are published", answers(b.Addr(), login, dns.TypeA, three...))
	eventually(t, "a ping alone, and a real exporter, will do", answers(b.Addr(), mail, dns.TypeA, "127.0.0.1", lonely))
	watch(t, b.Addr(), login, three...)

	hosts[1].set(0.1, 0.5, 2.1)
	eventually(t, "the overloaded one has left", answers(b.Addr(), login, dns.TypeA, three[0], three[2]))
	if story := n.rota("explain", login); !strings.Contains(story, "load1 2.1, want <= cores (2)") {
		t.Errorf("explain does not tell what is too much:\n%s", story)
	}
	hosts[1].set(0.1, 0.5, 2)
	eventually(t, "what equals the limit is back", answers(b.Addr(), login, dns.TypeA, three...))
	hosts[2].set(1, 0.5, 0.5)
	eventually(t, "the busy one has left", answers(b.Addr(), login, dns.TypeA, three[0], three[1]))

	serial := b.Serial(zoneName + ".")
	hosts[0].die()
	hosts[2].die()
	eventually(t, "both dead exporters are seen", func() bool {
		return strings.Count(n.rota("get", "checks", "--output", "json"), "exporter: connect: refused") >= 2
	})
	if got := b.Serial(zoneName + "."); got != serial {
		t.Errorf("dead exporters changed the zone: serial %d, was %d", got, serial)
	}
	hosts[0].revive()
	hosts[2].set(0.1, 0.5, 0.5)
	hosts[2].revive()
	eventually(t, "the quiet one is back", answers(b.Addr(), login, dns.TypeA, three...))

	for _, h := range hosts {
		h.set(0.1, 0.04, 0.5)
	}
	eventually(t, "all are seen short of memory", func() bool {
		story := n.rota("explain", login)
		return strings.Contains(story, "PANIC") && strings.Count(story, "mem_free 4.0 %, want > 5 %") >= 3
	})
	if got, err := ask(b.Addr(), login, dns.TypeA); err != nil || len(got) < 2 {
		t.Errorf("the peak shed all but %v (%v)", got, err)
	}
	for _, h := range hosts {
		h.set(0.1, 0.05, 0.5)
	}
	eventually(t, "all are back after the peak", answers(b.Addr(), login, dns.TypeA, three...))

	pinged.mu.Lock()
	defer pinged.mu.Unlock()
	if pinged.asked != 0 {
		t.Errorf("a host with a ping alone was asked %d times for its numbers", pinged.asked)
	}
}
