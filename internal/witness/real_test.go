package witness

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// begun starts a witness of the real network.
func begun(t *testing.T, o Options, s Subject) *Witness {
	t.Helper()
	w := New(o)
	w.Set([]Subject{s})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// patience is how long anything may take on a busy machine.
const patience = 60 * time.Second

func until(t *testing.T, what string, ok func() bool, w *Witness) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s; status: %+v", patience, what, w.Status())
		}
	}
}

// primaryAndSecondary are a BIND and a Knot that follows it over a road.
func primaryAndSecondary(t *testing.T) (p, s *peers.NameServer, road *peers.Road) {
	t.Helper()
	port := peers.FreePort(t)
	told := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p = peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{
		Name: "example.test.", Text: "www 300 IN A 192.0.2.1\nwww 300 IN A 192.0.2.2", Notify: []string{told},
	}}})
	road = peers.NewRoad(t, p.Addr())
	s = peers.Start(t, peers.Knot, peers.Config{Port: port, Zones: []peers.Zone{{Name: "example.test.", Primary: road.Addr()}}})
	return p, s, road
}

func takeOut(p *peers.NameServer, w *Witness, event uint64, ttl uint32) {
	p.Update("example.test.", []string{"www.example.test. " + strconv.Itoa(int(ttl)) + " IN A 192.0.2.2"}, nil)
	c := moved(event, time.Now())
	c.Decided = c.At
	c.Expect.TTL = ttl
	w.Follow([]Change{c})
}

// A secondary that does not follow is named, with the serial it stays at; the primary is proven all the same, and caches are not
// called empty before the secondary has followed.
func TestStuckSecondaryReal(t *testing.T) {
	t.Parallel()
	p, s, road := primaryAndSecondary(t)
	var visible atomic.Pointer[Visible]
	sub := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2")))
	sub.Servers, sub.Origins, sub.Within, sub.Every = []string{s.Addr()}, []string{p.Addr()}, 3*time.Second, 5*time.Second
	w := begun(t, Options{Visible: func(v Visible) { visible.Store(&v) }}, sub)
	until(t, "both are in step", func() bool {
		z := w.Status()[0]
		return len(z.Servers) == 2 && z.Servers[0].State == "in-step" && z.Servers[1].State == "in-step"
	}, w)

	road.Set(func(peers.Packet) [][]byte { return nil })
	takeOut(p, w, 7, 300)
	until(t, "the secondary is found stuck", func() bool {
		return slices.Equal(codes(w), []string{"stuck-secondary " + s.Addr(), "stuck-secondary " + s.Addr()}) || slices.Equal(codes(w), []string{"stuck-secondary " + s.Addr()})
	}, w)
	if visible.Load() != nil {
		t.Errorf("visible to the world, which asks the secondary: %+v", visible.Load())
	}
	ps, err := w.Ask(t.Context(), "www.example.test.", "")
	if err != nil || ps[0].Leaving[0].Proven || !slices.Equal(ps[0].Leaving[0].Unseen, []string{s.Addr()}) {
		t.Errorf("leaving: %+v %v", ps, err)
	}

	road.Set(peers.Pass)
	p.Update("example.test.", nil, []string{"other.example.test. 300 IN A 192.0.2.9"}) // the primary tells of it
	until(t, "the secondary follows", func() bool { return visible.Load() != nil && len(codes(w)) == 0 }, w)
	ps, err = w.Ask(t.Context(), "www.example.test.", "")
	l := ps[0].Leaving[0]
	if err != nil || !ps[0].Everywhere || !l.Proven || l.Until.Sub(l.Gone) != 300*time.Second {
		t.Errorf("leaving: %+v %v", ps, err)
	}
	if took := ps[0].Changes[0].Took; took < 3*time.Second || took != visible.Load().Took {
		t.Errorf("took %v", took)
	}
}

// A change that everybody follows is visible within a moment, from decision to the last server and transport.
func TestVisibleReal(t *testing.T) {
	t.Parallel()
	p, s, _ := primaryAndSecondary(t)
	var visible atomic.Pointer[Visible]
	sub := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2")))
	sub.Servers = []string{s.Addr(), p.Addr()}
	w := begun(t, Options{Visible: func(v Visible) { visible.Store(&v) }}, sub)
	until(t, "both are in step", func() bool {
		z := w.Status()[0]
		return len(z.Servers) == 2 && z.Servers[0].State == "in-step" && z.Servers[1].State == "in-step"
	}, w)
	takeOut(p, w, 7, 300)
	until(t, "the change is visible", func() bool { return visible.Load() != nil }, w)
	if v := visible.Load(); len(v.Unseen) > 0 || v.Took <= 0 || v.Took > patience {
		t.Errorf("visible: %+v", v)
	}
	t.Logf("visible on BIND and Knot after %v", visible.Load().Took)
}

// A server that was stopped, one that refuses the zone, and one whose TCP does not come through are told apart.
func TestServersInTroubleReal(t *testing.T) {
	t.Parallel()
	zone := peers.Zone{Name: "example.test.", Text: "www 300 IN A 192.0.2.1"}
	good := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{zone}})
	stopped := peers.Start(t, peers.PowerDNS, peers.Config{Zones: []peers.Zone{zone}})
	lame := peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{{Name: "another.test.", Text: "www 300 IN A 192.0.2.1"}}})
	road := peers.NewRoad(t, good.Addr())
	road.Set(func(p peers.Packet) [][]byte {
		if p.TCP {
			return nil
		}
		return [][]byte{p.Wire}
	})
	stopped.Signal(syscall.SIGSTOP)
	defer stopped.Signal(syscall.SIGCONT)
	sub := subject(expect(set("www.example.test", 300, "192.0.2.1")))
	sub.Servers, sub.Within, sub.Every = []string{good.Addr(), stopped.Addr(), lame.Addr(), road.Addr()}, 3*time.Second, 5*time.Second
	w := begun(t, Options{}, sub)
	want := []string{"lame " + lame.Addr(), "lame " + stopped.Addr(), "unreachable-tcp " + road.Addr()}
	slices.Sort(want)
	until(t, strings.Join(want, ", "), func() bool {
		got := codes(w)
		slices.Sort(got)
		return slices.Equal(got, want)
	}, w)
	stopped.Signal(syscall.SIGCONT)
	road.Set(peers.Pass)
	until(t, "only the lame one is left", func() bool { return slices.Equal(codes(w), []string{"lame " + lame.Addr()}) }, w)
}

// Two servers with one serial and different data, and a zone that was restored from a backup.
func TestSplitAndRestoredReal(t *testing.T) {
	t.Parallel()
	a := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: "www 300 IN A 192.0.2.1"}}})
	b := peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: "www 300 IN A 192.0.2.2"}}})
	sub := subject(expect(set("www.example.test", 300, "192.0.2.1"), "192.0.2.1", "192.0.2.2"))
	sub.Servers, sub.Within, sub.Every = []string{a.Addr(), b.Addr()}, 3*time.Second, 5*time.Second
	w := begun(t, Options{}, sub)
	until(t, "the split view is found", func() bool { return slices.Equal(codes(w), []string{"split-view " + b.Addr()}) }, w)

	a.Update("example.test.", nil, []string{"x.example.test. 300 IN A 192.0.2.9"})
	until(t, "its new serial is seen", func() bool {
		return slices.ContainsFunc(w.Status()[0].Servers, func(s ServerStatus) bool { return s.Addr.String() == a.Addr() && s.Serial == a.Serial("example.test.") })
	}, w)
	a.SetZone(peers.Zone{Name: "example.test.", Text: "www 300 IN A 192.0.2.1"})
	until(t, "the restored zone is found", func() bool { return slices.Contains(codes(w), "serial-back "+a.Addr()) }, w)
}

// From the parent down: delegation, DS and addresses on real servers; a DS of another key is found, and so is a server that only the zone
// names.
func TestDelegationReal(t *testing.T) {
	t.Parallel()
	port := peers.FreePort(t, "127.0.0.22", "127.0.0.23")
	zone := peers.Zone{Name: "example.test.", Text: "ns1 300 IN A 127.0.0.22\nwww 300 IN A 192.0.2.1", Signed: true}
	child := peers.Start(t, peers.Knot, peers.Config{At: peers.Place{Address: "127.0.0.22"}, Port: port, Zones: []peers.Zone{zone}})
	var keys []*dns.DNSKEY
	m := new(dns.Msg)
	m.SetQuestion("example.test.", dns.TypeDNSKEY)
	for deadline := time.Now().Add(patience); len(keys) == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		answer, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, child.Addr())
		if err != nil {
			continue
		}
		for _, rr := range answer.Answer {
			if k, ok := rr.(*dns.DNSKEY); ok && k.Flags == 257 {
				keys = append(keys, k)
			}
		}
	}
	if len(keys) == 0 {
		t.Fatal("the zone is not signed")
	}
	ds := keys[0].ToDS(dns.SHA256)
	parentOf := func(ds *dns.DS) peers.Zone {
		return peers.Zone{Name: "test.", Text: "@ 300 IN NS ns\nns 300 IN A 127.0.0.1\nexample 300 IN NS ns1.example\nns1.example 300 IN A 127.0.0.22\n" +
			strings.Replace(ds.String(), "example.test.", "example", 1)}
	}
	wrong := *ds
	wrong.Digest = strings.Repeat("AB", 32)
	parent := peers.Start(t, peers.BIND, peers.Config{Port: port, Zones: []peers.Zone{parentOf(&wrong)}})

	sub := subject(expect(set("www.example.test", 300, "192.0.2.1")))
	sub.Servers, sub.Resolvers, sub.Within, sub.Every = nil, []string{parent.Addr()}, 3*time.Second, 5*time.Second
	w := begun(t, Options{Port: uint16(port)}, sub)
	until(t, "the wrong DS is found", func() bool { return slices.Equal(codes(w), []string{"wrong-ds ns1.example.test " + child.Addr()}) }, w)
	parent.SetZone(parentOf(ds))
	until(t, "the DS is right", func() bool { return len(codes(w)) == 0 }, w)
	child.Update("example.test.", nil, []string{"example.test. 300 IN NS ns2.example.test.", "ns2.example.test. 300 IN A 127.0.0.23"})
	until(t, "the two do not name the same servers", func() bool { return slices.Contains(codes(w), "delegation-mismatch") }, w)
}

// Over the real network too only the true answer is taken, whatever comes before it.
func TestForgedReal(t *testing.T) {
	t.Parallel()
	s := peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: "www 300 IN A 192.0.2.1"}}})
	road := peers.NewRoad(t, s.Addr())
	road.Set(func(p peers.Packet) [][]byte {
		if p.Query {
			return [][]byte{p.Wire}
		}
		id, name := slices.Clone(p.Wire), slices.Clone(p.Wire)
		id[0] ^= 1
		name[13] ^= 1
		if p.TCP {
			return [][]byte{id}
		}
		return [][]byte{id, name, p.Wire[:7], {0xc0, 12}, p.Wire}
	})
	at := netip.MustParseAddrPort(road.Addr())
	for _, c := range []struct {
		network string
		ok      bool
	}{{"udp", true}, {"tcp", false}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		answer, err := overNetwork(ctx, c.network, at, question("www.example.test.", dns.TypeA))
		cancel()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v %v", c.network, answer, err)
		}
		if c.ok && !slices.Equal(read(answer, rota.Key{Name: "www.example.test.", Type: rota.TypeA}).Data, []string{"192.0.2.1"}) {
			t.Errorf("%s: %v", c.network, answer)
		}
	}
}
