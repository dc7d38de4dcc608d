package register

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

const (
	forwardZone = rota.Name("skynet.test.")
	reverse4    = rota.Name("37.13.in-addr.arpa.")
	reverse6    = rota.Name("8.b.d.0.1.0.0.2.ip6.arpa.")
)

func hiveary() *rota.RegisterTemplate {
	return &rota.RegisterTemplate{
		HostName: "{id}-{service}-{env}", ServiceName: "{service}.skynet.test", HostRecord: "{host}.skynet.test",
		Reverse: []rota.Reverse{{}}, Service: rota.Service{TTL: 7200},
	}
}

func fence(zone rota.Name) rota.Key { return rota.Key{Name: "_rota." + zone, Type: rota.TypeTXT} }

func job(f *fake, host string, addrs ...string) Job {
	j := Job{DNS: f, Template: hiveary(), Host: host, Fence: fence}
	for _, a := range addrs {
		j.Addresses = append(j.Addresses, netip.MustParseAddr(a))
	}
	return j
}

// host is what a registered host leaves in the DNS beside its service.
func host(name string, addrs ...string) []string {
	var out []string
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		t := rota.TypeA
		if a.Is6() {
			t = rota.TypeAAAA
		}
		out = append(out, rota.RRset{Name: rota.MustParseName(name + ".skynet.test"), Type: t, TTL: 7200, Data: []string{text}}.String(),
			rota.RRset{Name: rota.ReverseName(a), Type: rota.TypePTR, TTL: 7200, Data: []string{name + ".skynet.test."}}.String())
	}
	return out
}

func (f *fake) want(sets ...[]string) {
	f.t.Helper()
	all := slices.Concat(sets...)
	slices.Sort(all)
	if diff := cmp.Diff(all, f.dump()); diff != "" {
		f.t.Fatalf("the DNS is not as wanted (-want +got):\n%s", diff)
	}
}

func ok(t *testing.T) func(Result, error) Result {
	return func(r Result, err error) Result {
		t.Helper()
		if err != nil {
			t.Fatalf("%v (after %v)", err, r.Updates)
		}
		return r
	}
}

func TestLife(t *testing.T) {
	ctx := t.Context()
	f := newFake(t, forwardZone, reverse4, reverse6)
	f.set("mail.skynet.test 300 A 13.37.0.25")
	others := []string{"mail.skynet.test 300 A 13.37.0.25"}
	a, b := "cyberdyne-web-sfo-prod", "tyrell-web-sfo-prod"

	// The first host of a service makes it.
	r := ok(t)(job(f, a, "13.37.0.1").Register(ctx))
	f.want(others, host(a, "13.37.0.1"), []string{"web.skynet.test 7200 A 13.37.0.1"})
	if len(r.Updates) != 2 || r.Updates[0].Zone != forwardZone || r.Updates[1].Zone != reverse4 {
		t.Errorf("want the forward zone and then the reverse one, each in one update: %+v", r.Updates)
	}
	// The second one joins it.
	ok(t)(job(f, b, "13.37.0.2", "2001:db8::2").Register(ctx))
	web := []string{"web.skynet.test 7200 A 13.37.0.1 13.37.0.2", "web.skynet.test 7200 AAAA 2001:db8::2"}
	f.want(others, host(a, "13.37.0.1"), host(b, "13.37.0.2", "2001:db8::2"), web)
	// Again: nothing is written.
	before := f.serial[forwardZone]
	if r := ok(t)(job(f, b, "13.37.0.2", "2001:db8::2").Register(ctx)); len(r.Updates) > 0 || f.serial[forwardZone] != before {
		t.Errorf("the second run wrote %v", r.Updates)
	}
	// Without its IPv6 address, which may only be unknown now, that is left as it is.
	if r := ok(t)(job(f, b, "13.37.0.2").Register(ctx)); len(r.Updates) > 0 {
		t.Errorf("a family that was not found was written: %v", r.Updates)
	}
	// A new address takes the place of the old one, in the service too; the old one's pointer goes.
	ok(t)(job(f, a, "13.37.9.9").Register(ctx))
	f.want(others, host(a, "13.37.9.9"), host(b, "13.37.0.2", "2001:db8::2"),
		[]string{"web.skynet.test 7200 A 13.37.0.2 13.37.9.9", "web.skynet.test 7200 AAAA 2001:db8::2"})
	// Whole: what is not named goes.
	j := job(f, b, "13.37.0.2")
	j.Whole = true
	ok(t)(j.Register(ctx))
	f.want(others, host(a, "13.37.9.9"), host(b, "13.37.0.2"), []string{"web.skynet.test 7200 A 13.37.0.2 13.37.9.9"})
	// One leaves, known by its name alone; then the last one.
	ok(t)(job(f, a).Deregister(ctx))
	f.want(others, host(b, "13.37.0.2"), []string{"web.skynet.test 7200 A 13.37.0.2"})
	ok(t)(job(f, b, "13.37.0.2").Deregister(ctx))
	f.want(others)
	if r := ok(t)(job(f, b, "13.37.0.2").Deregister(ctx)); len(r.Updates) > 0 {
		t.Errorf("leaving twice wrote %v", r.Updates)
	}
}

func TestDryRun(t *testing.T) {
	f := newFake(t, forwardZone, reverse4)
	j := job(f, "cyberdyne-web-sfo", "13.37.0.1")
	j.DryRun = true
	r := ok(t)(j.Register(t.Context()))
	var got []string
	for _, u := range r.Updates {
		for _, c := range u.Changes {
			got = append(got, u.Zone.Short()+": "+c.String())
		}
	}
	want := []string{
		"skynet.test: cyberdyne-web-sfo.skynet.test A +13.37.0.1", "skynet.test: web.skynet.test A +13.37.0.1",
		"37.13.in-addr.arpa: 1.0.37.13.in-addr.arpa PTR +cyberdyne-web-sfo.skynet.test.",
	}
	if diff := cmp.Diff(want, got); diff != "" || len(f.dump()) > 0 {
		t.Errorf("the plan (-want +got):\n%s\nthe DNS: %v", diff, f.dump())
	}
}

// What others set for a service stays: its TTL, and their addresses.
func TestServiceOfOthers(t *testing.T) {
	f := newFake(t, forwardZone, reverse4)
	f.set("web.skynet.test 60 A 192.0.2.80")
	ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1").Register(t.Context()))
	f.want(host("cyberdyne-web-sfo", "13.37.0.1"), []string{"web.skynet.test 60 A 13.37.0.1 192.0.2.80"})
	ok(t)(job(f, "cyberdyne-web-sfo").Deregister(t.Context()))
	f.want([]string{"web.skynet.test 60 A 192.0.2.80"})
}

func TestRefusals(t *testing.T) {
	refused := errors.New("REFUSED")
	for _, c := range []struct {
		name string
		with func(*fake, *Job)
		bad  string
	}{
		{"host name", func(_ *fake, j *Job) { j.Host = "cyberdyne" }, "does not fit the pattern"},
		{"no address", func(_ *fake, j *Job) { j.Addresses = nil }, "no address"},
		{"loopback", func(_ *fake, j *Job) { j.Addresses[0] = netip.MustParseAddr("127.0.0.1") }, "reaches no host"},
		{"link-local", func(_ *fake, j *Job) { j.Addresses[0] = netip.MustParseAddr("fe80::1%eth0") }, "cannot be published"},
		{"no zone", func(f *fake, _ *Job) { f.zones = f.zones[1:] }, "holds no zone"},
		{"forward", func(f *fake, _ *Job) { f.refuse[forwardZone] = refused }, "zone skynet.test: REFUSED"},
		{"reverse", func(f *fake, _ *Job) { f.refuse[reverse4] = refused }, "zone 37.13.in-addr.arpa: REFUSED"},
		{"alias of the host", func(f *fake, _ *Job) { f.set("cyberdyne-web-sfo.skynet.test 60 CNAME mail.skynet.test.") }, "is a CNAME to mail"},
		{"alias of the service", func(f *fake, _ *Job) { f.set("web.skynet.test 60 CNAME mail.skynet.test.") }, "is a CNAME to mail"},
		{"kept by rota", func(f *fake, _ *Job) { f.set("_rota.skynet.test 60 TXT owner=eu") }, "is kept by rota"},
		{"reverse zone kept by rota", func(f *fake, _ *Job) { f.set("_rota.37.13.in-addr.arpa 60 TXT owner=eu") }, "is kept by rota"},
		{"agrees and does nothing", func(f *fake, _ *Job) { f.deaf[forwardZone], f.deaf[reverse4] = true, true }, "does not do it"},
		{"circle of pointers", func(f *fake, _ *Job) {
			f.set("1.0.37.13.in-addr.arpa 60 CNAME 1.0.37.13.in-addr.arpa.")
		}, "more than 4 CNAMEs"},
		{"reverse zone is not there", func(_ *fake, j *Job) {
			j.Template.Reverse = []rota.Reverse{{Zone: "0-25.0.37.13.in-addr.arpa."}}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, forwardZone, reverse4)
			j := job(f, "cyberdyne-web-sfo", "13.37.0.1")
			c.with(f, &j)
			before := f.dump()
			r, err := j.Register(t.Context())
			if c.bad == "" {
				ok(t)(r, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Fatalf("%v; want an error with %q", err, c.bad)
			}
			if diff := cmp.Diff(before, f.dump()); diff != "" {
				t.Errorf("something was written:\n%s", diff)
			}
		})
	}
}

// Beside a cluster that keeps other names of the zone, and only when that is said.
func TestBeside(t *testing.T) {
	f := newFake(t, forwardZone, reverse4)
	f.set("_rota.skynet.test 60 TXT owner=eu")
	j := job(f, "cyberdyne-web-sfo", "13.37.0.1")
	j.Beside = true
	ok(t)(j.Register(t.Context()))
}

// A reverse zone that refuses keeps nobody from leaving.
func TestLeavesAllTheSame(t *testing.T) {
	f := newFake(t, forwardZone, reverse4)
	ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1").Register(t.Context()))
	f.refuse[reverse4] = errors.New("REFUSED")
	if _, err := job(f, "cyberdyne-web-sfo", "13.37.0.1").Deregister(t.Context()); err == nil || !strings.Contains(err.Error(), "REFUSED") {
		t.Fatal(err)
	}
	f.want(host("cyberdyne-web-sfo", "13.37.0.1")[1:])
	delete(f.refuse, reverse4)
	ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1").Deregister(t.Context()))
	f.want()
}

// Half of it was done, as when the machine lost its power: the next run does the rest.
func TestRollsForward(t *testing.T) {
	f := newFake(t, forwardZone, reverse4, reverse6)
	ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1", "2001:db8::1").Register(t.Context()))
	steps := 0
	for ; ; steps++ {
		ctx, cancel := context.WithCancel(t.Context())
		f.between = func(rota.Name) error {
			if f.serial["cut."]++; f.serial["cut."] > steps {
				cancel()
			}
			return nil
		}
		f.serial["cut."] = 0
		_, err := job(f, "cyberdyne-web-sfo", "13.37.0.2", "2001:db8::2").Register(ctx)
		cancel()
		if err == nil {
			break
		}
		f.between = nil
		ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.2", "2001:db8::2").Register(t.Context()))
		f.want(host("cyberdyne-web-sfo", "13.37.0.2", "2001:db8::2"), []string{"web.skynet.test 7200 A 13.37.0.2", "web.skynet.test 7200 AAAA 2001:db8::2"})
		ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1", "2001:db8::1").Register(t.Context()))
	}
	if steps != 3 {
		t.Errorf("was cut after %d updates, want all of three zones' first", steps)
	}
}

func TestLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, forwardZone, reverse4)
		f.between = func(rota.Name) error { return fmt.Errorf("%w: no answer", ErrAgain) }
		ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1").Register(t.Context()))
		f.want(host("cyberdyne-web-sfo", "13.37.0.1"), []string{"web.skynet.test 7200 A 13.37.0.1"})
	})
}

func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, forwardZone, reverse4)
		n := 0
		f.between = func(rota.Name) error {
			n++
			f.set(fmt.Sprintf("web.skynet.test 60 A 192.0.2.%d", n%200))
			return nil
		}
		_, err := job(f, "cyberdyne-web-sfo", "13.37.0.1").Register(t.Context())
		if !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "given up after 30s") {
			t.Fatalf("after %d tries: %v", n, err)
		}
		if n < 10 || n > 200 {
			t.Errorf("%d tries in 30 seconds", n)
		}
	})
}

// A whole rack boots: every host ends up in the service, nobody's is lost.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, forwardZone, reverse4)
		var wg sync.WaitGroup
		const hosts = 40
		for i := range hosts {
			wg.Go(func() {
				j := job(f, fmt.Sprintf("h%d-web-sfo", i), fmt.Sprintf("13.37.1.%d", i))
				if _, err := j.Register(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := f.sets[rota.Key{Name: "web.skynet.test.", Type: rota.TypeA}]; len(got.Data) != hosts {
			t.Errorf("%d of %d are in the service", len(got.Data), hosts)
		}
	})
}

// Pointers in a part of a /24 (RFC 2317): found by the CNAME at the usual name, or given.
func TestClassless(t *testing.T) {
	for _, given := range []bool{false, true} {
		f := newFake(t, forwardZone, "2.0.192.in-addr.arpa.", "0-25.2.0.192.in-addr.arpa.")
		f.set("10.2.0.192.in-addr.arpa 60 CNAME 10.0-25.2.0.192.in-addr.arpa.")
		before := f.dump()
		j := job(f, "cyberdyne-web-sfo", "192.0.2.10")
		if given {
			f.zones = []rota.Name{forwardZone, "0-25.2.0.192.in-addr.arpa."}
			j.Template.Reverse = []rota.Reverse{{Zone: "0-25.2.0.192.in-addr.arpa."}}
		}
		ok(t)(j.Register(t.Context()))
		f.want(before, []string{
			"10.0-25.2.0.192.in-addr.arpa 7200 PTR cyberdyne-web-sfo.skynet.test.",
			"cyberdyne-web-sfo.skynet.test 7200 A 192.0.2.10", "web.skynet.test 7200 A 192.0.2.10",
		})
		ok(t)(j.Deregister(t.Context()))
		f.want(before)
	}
}

// Without a reverse zone on the server there is no pointer, and a word about it.
func TestNoReverseZone(t *testing.T) {
	f := newFake(t, forwardZone)
	r := ok(t)(job(f, "cyberdyne-web-sfo", "13.37.0.1").Register(t.Context()))
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "no pointer for 13.37.0.1") {
		t.Errorf("notes: %q", r.Notes)
	}
}

func TestAddresses(t *testing.T) {
	var in []netip.Addr
	for _, a := range []string{"127.0.0.1", "::1", "fe80::1", "fd00::1", "2001:db8::1", "192.0.2.1", "192.0.2.2"} {
		in = append(in, netip.MustParseAddr(a))
	}
	got := firstOfEach(in)
	if fmt.Sprint(got) != "[192.0.2.1 2001:db8::1]" {
		t.Errorf("of %v: %v", in, got)
	}
	if _, err := ByRoute([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}); err == nil || !strings.Contains(err.Error(), "--address") {
		t.Errorf("the way to this machine itself gives %v", err)
	}
	if _, err := ByInterface("no-such-interface"); err == nil {
		t.Error("an interface that is not there has addresses")
	}
}
