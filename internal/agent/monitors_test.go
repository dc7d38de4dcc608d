package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

func target(kind rota.Kind, at string, change ...func(*rota.Check)) rota.Target {
	a := netip.MustParseAddrPort(at)
	c := rota.Check{Name: "c", Kind: kind, Port: a.Port(), Timing: rota.DefaultTiming()}
	if kind == rota.KindHTTP {
		c.Path = "/healthz"
	}
	for _, f := range change {
		f(&c)
	}
	return rota.NewTarget(a.Addr(), c)
}

func sorted(ts ...rota.Target) []rota.Target {
	return slices.SortedFunc(slices.Values(ts), func(a, b rota.Target) int { return strings.Compare(string(a.ID), string(b.ID)) })
}

func TestMonitor(t *testing.T) {
	at := "10.0.0.1:80"
	with := func(f func(*rota.Check)) rota.Target { return target(rota.KindHTTP, at, f) }
	for _, c := range []struct {
		target rota.Target
		want   string // the monitor, or a part of why not
	}{
		{target(rota.KindHTTP, at), "http://10.0.0.1:80"},
		{target(rota.KindTCP, at), "tcp://10.0.0.1:80"},
		{with(func(c *rota.Check) { c.Method = "GET" }), "http://10.0.0.1:80"},
		{with(func(c *rota.Check) { c.Status = []rota.StatusRange{{From: 200, To: 299}} }), "http://10.0.0.1:80"},
		{with(func(c *rota.Check) { c.Status = []rota.StatusRange{{From: 200, To: 399}} }), "http://10.0.0.1:80"},
		{with(func(c *rota.Check) { c.Timing.Interval = time.Minute }), "http://10.0.0.1:80"},
		{with(func(c *rota.Check) { c.Path = "/" }), "/healthz only"},
		{with(func(c *rota.Check) { c.Path = "" }), "/healthz only"},
		{with(func(c *rota.Check) { c.Method = "HEAD" }), "GET only"},
		{with(func(c *rota.Check) { c.Host = "www" }), "host"},
		{with(func(c *rota.Check) { c.Header = []rota.Header{{Name: "a"}} }), "no headers"},
		{with(func(c *rota.Check) { c.Body = "ok" }), "status only"},
		{with(func(c *rota.Check) { c.ExpectHeader = []rota.Header{{Name: "a"}} }), "status only"},
		{with(func(c *rota.Check) { c.Follow = true }), "redirects"},
		{with(func(c *rota.Check) { c.Status = []rota.StatusRange{{From: 200, To: 200}} }), "200 to 299"},
		{target(rota.KindTCP, at, func(c *rota.Check) { c.Expect = "220" }), "only connect"},
		{target(rota.KindTCP, at, func(c *rota.Check) { c.Send = "x" }), "only connect"},
		{target(rota.KindHTTPS, at), "not https"},
		{target(rota.KindTLS, at), "not tls"},
		{target(rota.KindICMP, at), "not icmp"},
		{target(rota.KindTCP, "[2001:db8::1]:80"), "IPv4 only"},
		{target(rota.KindTCP, "10.0.0.1:0"), "port"},
	} {
		got, err := Monitor(c.target)
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s: %q, want %q", c.target.ID, got, c.want)
		}
	}
}

// A status names no protocol. What follows for http and for tcp on one port is never more than what was said.
func TestStatusesOfOnePort(t *testing.T) {
	const u, d, x = rota.Up, rota.Down, rota.Unknown
	for _, c := range []struct {
		asked     place
		says      string // + healthy, - not
		http, tcp rota.Status
	}{
		{place{http: true}, "", x, x},
		{place{http: true}, "+", u, x},
		{place{http: true}, "-", d, x},
		{place{tcp: true}, "+", x, u},
		{place{tcp: true}, "-", x, d},
		{place{tcp: true}, "+-", x, x},
		{place{http: true}, "+-", x, x},
		{place{true, true}, "++", u, u},
		{place{true, true}, "--", d, d},
		{place{true, true}, "+-", d, u},
		{place{true, true}, "+", x, u},
		{place{true, true}, "-", d, x},
		{place{}, "++--", x, x},
	} {
		var h heard
		for _, s := range c.says {
			h.add(status{Healthy: s == '+', Message: "m"})
		}
		for kind, want := range map[rota.Kind]rota.Status{rota.KindHTTP: c.http, rota.KindTCP: c.tcp} {
			if got, _, _ := h.about(c.asked, kind); got != want {
				t.Errorf("%+v says %q: %s is %v, want %v", c.asked, c.says, kind, got, want)
			}
		}
	}
}

func TestMessages(t *testing.T) {
	for text, want := range map[string]rota.Status{
		"dial tcp 10.0.0.1:80: connect: connection refused": rota.Down,
		"context deadline exceeded":                         rota.Down,
		"status 418":                                        rota.Down,
		"":                                                  rota.Down,
		"dial tcp 10.0.0.1:80: connect: network is unreachable": rota.Unknown,
		"socket: too many open files":                           rota.Unknown,
	} {
		h := heard{}
		h.add(status{Message: text})
		if got, _, _ := h.about(place{tcp: true}, rota.KindTCP); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}

func TestMonitorsList(t *testing.T) {
	ts := sorted(
		target(rota.KindTCP, "10.0.0.2:443"), target(rota.KindHTTP, "10.0.0.1:80"),
		target(rota.KindHTTP, "10.0.0.1:80", func(c *rota.Check) { c.Timing.Interval = time.Minute }), // the same question for an agent
		target(rota.KindICMP, "10.0.0.1:0"),
	)
	m := newMonitors(ts)
	if got := string(m.body); got != `["http://10.0.0.1:80","tcp://10.0.0.2:443"]` {
		t.Errorf("the list is %s", got)
	}
	if len(m.entries) != 4 || len(m.leftOut) != 1 || !strings.Contains(m.leftOut[0].Why, "not icmp") {
		t.Errorf("left out: %v of %d", m.leftOut, len(m.entries))
	}
	if got := string(newMonitors([]rota.Target{}).body); got != "[]" {
		t.Errorf("no targets are %s", got)
	}
	var many []rota.Target
	for i := range MaxMonitors + 10 {
		many = append(many, target(rota.KindTCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80).String()))
	}
	if m := newMonitors(many); len(m.leftOut) != 10 || len(m.places) != MaxMonitors {
		t.Errorf("of %d, %d are left out", len(many), len(m.leftOut))
	}
}
