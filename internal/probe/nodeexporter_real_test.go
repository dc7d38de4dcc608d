package probe

import (
	"bufio"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// ownIdle is the idle time of each core of this machine, in seconds, as the kernel says it.
func ownIdle(t *testing.T) []float64 {
	t.Helper()
	f, err := os.Open("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var idle []float64
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text())
		if len(words) > 4 && strings.HasPrefix(words[0], "cpu") && words[0] != "cpu" {
			ticks, err := strconv.ParseFloat(words[4], 64)
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, ticks/100)
		}
	}
	return idle
}

// A real node_exporter: its numbers are those of this machine; stopped, killed and back.
func TestNodeExporter(t *testing.T) { bothWays(t, testNodeExporter) }

func testNodeExporter(t *testing.T) {
	n := peers.StartNodeExporter(t, "127.0.0.1", peers.FreePort(t))
	at := netip.MustParseAddrPort(n.Addr())
	o := Options{}
	lax := rules("cpu", "<= 100%", "mem_free", "> 0%", "load1", "< 10000 cores")
	check := exporterCheck(append(lax, rules(`node_filesystem_avail_bytes{mountpoint="/"}`, "> 1kB", "node_filesystem_files", ">= 0", "go_goroutines", "< 1e5")...))
	check.NoPing = false
	tr := expect(t, o, at, check, "up ok: all 6 rules hold")
	if !strings.Contains(tr.Received, "version=0.0.4") || tr.ReceivedSize < 10_000 {
		t.Errorf("received %d bytes, %q", tr.ReceivedSize, tr.Received)
	}
	expect(t, o, at, exporterCheck(rules(`node_filesystem_size_bytes{mountpoint="/"}`, "> 1000TiB", "mem_free", "> 0%")),
		"down threshold: "+expectedShow(t, n, `node_filesystem_size_bytes{mountpoint="/"}`, "> 1000TiB"))
	expect(t, o, at, exporterCheck(rules("net(nosuch0)", "< 80%")), "unknown exporter: exporter: net(nosuch0): node_network_receive_bytes_total is missing")
	expect(t, o, at, exporterCheck(rules("node_nosuch", "< 1")), "unknown exporter: exporter: node_nosuch: the page has no such series")
	index := exporterCheck(lax)
	index.Path = "/"
	expect(t, o, at, index, "unknown exporter: exporter: page is of type text/html; charset=utf-8, want text/plain")

	// Busy as the kernel says it is. What happens between its reading and the exporter's is not the same, so there are some tries.
	e, best := prepared(t, exporterCheck(rules("cpu", "< 90%"))), math.Inf(1)
	for range 10 {
		before := ownIdle(t)
		a := scrapeOnce(t, at, e)
		time.Sleep(time.Second) // real counters move in real time
		after := ownIdle(t)
		b := scrapeOnce(t, at, e)
		got, err := b.busy(&a.sample, b.since(&a.sample))
		if err != nil {
			t.Logf("once more: %v", err)
			continue
		}
		want, elapsed := 0.0, b.at.Sub(a.at).Seconds()
		for i := range before {
			want += max(0, 100-100*(after[i]-before[i])/elapsed) / float64(len(before))
		}
		if b.cores != len(before) {
			t.Fatalf("%d cores, the kernel has %d", b.cores, len(before))
		}
		if best = min(best, math.Abs(got-want)); best < 5 {
			break
		}
	}
	if best >= 5 {
		t.Errorf("busy is %.1f points off what the kernel says", best)
	}

	hung := exporterCheck(rules("load1", "< 10000"))
	hung.Timeout = hasty
	n.Signal(syscall.SIGSTOP)
	for begun := time.Now(); ask(t, o, at, hung).Observation.Status == rota.Up; { // all its threads stop a little later
		if time.Since(begun) > patient {
			t.Fatal("it answers although it was stopped")
		}
	}
	expect(t, o, at, hung, "unknown exporter: exporter: answer: not done within 500ms")
	n.Signal(syscall.SIGCONT)
	hung.Timeout = patient
	expect(t, o, at, hung, "up ok: the rule holds")
	n.Kill()
	expect(t, o, at, hung, "unknown exporter: exporter: connect: refused")
	n.Restart()
	expect(t, o, at, hung, "up ok: the rule holds")
}

// expectedShow is what a violated rule says of the exporter's present number.
func expectedShow(t *testing.T, n *peers.NodeExporter, name, want string) string {
	t.Helper()
	p, err := rota.ParseRule(rota.Rule{Name: name, Want: want})
	if err != nil {
		t.Fatal(err)
	}
	page, err := n.Page()
	if err != nil {
		t.Fatal(err)
	}
	values, err := oracle([]byte(page), p.Of)
	if err != nil {
		t.Fatal(err)
	}
	for series, v := range values {
		if strings.Contains(series, `mountpoint="/"`) {
			return p.Show(v[0], 0)
		}
	}
	t.Fatalf("no %s on the page", name)
	return ""
}

func scrapeOnce(t *testing.T, at netip.AddrPort, e *exporter) *reading {
	t.Helper()
	c := exporterCheck(rules("cpu", "< 90%"))
	c.Port, c.Timeout = at.Port(), patient
	r := &run{p: New(Options{}), q: newQuestion(c), addr: at.Addr(), parent: t.Context(), trace: &Trace{Started: time.Now()}}
	got, bad := r.scrape(t.Context(), e)
	if bad != nil {
		t.Fatal(bad.reason)
	}
	return got
}

// Over IPv6, and to a link-local address with its zone, as dynlbd's configuration has it.
func TestExporterOverIPv6(t *testing.T) {
	hosts := []netip.Addr{netip.IPv6Loopback()}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				hosts = append(hosts, p.Addr().WithZone(i.Name))
			}
		}
	}
	if len(hosts) == 1 {
		t.Log("no interface has a link-local address: ::1 alone is tried")
	}
	for _, host := range hosts {
		f := newFakeOn(t, netip.AddrPortFrom(host, 0).String(), movingPage(0.5))
		c := exporterCheck(rules("load1", "<= cores"))
		c.NoPing = false
		tr := expect(t, Options{}, netip.AddrPortFrom(host, f.at.Port()), c, "up ok: the rule holds")
		if strings.Contains(tr.Sent, "%") {
			t.Errorf("the zone, which is local, was sent: %q", tr.Sent)
		}
	}
}
