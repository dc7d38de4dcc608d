package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// target is a real server that a Backend under test writes to, and the faulty road between them.
type target struct {
	t       testing.TB
	server  *peers.NameServer
	road    *peers.Road
	backend func(...func(*RFC2136Options)) Backend
}

const foreign = `; what others keep in the zone
@    300 IN MX 10 mail
@    300 IN TXT "v=spf1 -all"
mail 300 IN A 198.51.100.25
old  300 IN CNAME mail
odd  300 IN CNAME mail
www  300 IN TXT "beside our addresses"
sub  300 IN NS ns.sub
ns.sub 300 IN A 198.51.100.53
*.wild 300 IN A 198.51.100.80
`

func newTarget(t testing.TB, kind peers.Kind) *target {
	s := peers.Start(t, kind, peers.Config{Zones: []peers.Zone{
		{Name: "example.test.", Text: foreign}, {Name: "closed.test.", Closed: true},
	}})
	x := &target{t: t, server: s, road: peers.NewRoad(t, s.Addr())}
	x.backend = func(change ...func(*RFC2136Options)) Backend {
		k := peers.DefaultKey()
		o := RFC2136Options{
			Servers: []string{x.road.Addr()}, Key: &Key{Name: k.Name, Algorithm: k.Algorithm, Secret: k.Secret}, Timeout: 2 * time.Second,
		}
		for _, f := range change {
			f(&o)
		}
		b, err := NewRFC2136(o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return x
}

func (x *target) holds(name string, t uint16, want ...string) func() bool {
	slices.Sort(want)
	return func() bool { return slices.Equal(x.server.Lookup(name, t), want) }
}

// others returns what is in the zone and none of rota's business.
func (x *target) others(ours ...string) []string {
	return slices.DeleteFunc(x.server.Dump("example.test."), func(rr string) bool {
		if strings.Contains(rr, " SOA ") || strings.HasPrefix(rr, "_rota.") {
			return true
		}
		return slices.ContainsFunc(ours, func(o string) bool { return strings.HasPrefix(rr, o) })
	})
}

// fence returns the fence that stands in the zone.
func (x *target) fence() Fence {
	x.t.Helper()
	data := x.server.Lookup("_rota.example.test.", dns.TypeTXT)
	f, err := ParseFence(rota.RRset{Name: "_rota.example.test.", Data: data})
	if err != nil {
		x.t.Fatal(err)
	}
	return f
}

// TestConformance is what every publisher must do against every server.
func TestConformance(t *testing.T) {
	t.Parallel()
	scenarios := []struct {
		name string
		run  func(*testing.T, *target)
	}{
		{"U16 removal, return, TTL, AAAA, fallback", lifecycle},
		{"U6 wrong keys", wrongKeys},
		{"U5 refused", refused},
		{"U1 moved", moved},
		{"U11 zone missing", zoneMissing},
		{"U4 server down and back", downAndBack},
		{"U3 lost answer", lostAnswer},
		{"U9 hand edit", handEdit},
		{"U1 stale writer", staleWriter},
		{"U2 replay", replay},
		{"U1 late message of our own", lateMessage},
		{"U13 other owner", otherOwner},
		{"former name of the owner", formerName},
		{"U15 150 addresses", tooMany},
		{"U14 names in the way", inTheWay},
		{"U7 answers from the road", badAnswers},
		{"U14 wildcard", wildcard},
		{"U15 many messages", manyMessages},
		{"many names", manyNames},
		{"dry run", dryRunOnWire},
		{"ownership", ownership},
		{"U8 spoilt updates", spoiltUpdates},
		{"U10 restored backup", restoredBackup},
		{"U11 emptied zone", emptiedZone},
		{"U12 two targets", twoTargets},
		{"U17 rolled keys", rolledKeys},
		{"U20 killed after a write", killedAfterWrite},
		{"U22 flood", flood},
	}
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			for _, s := range scenarios {
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.run(t, newTarget(t, kind))
				})
			}
		})
	}
}

func lifecycle(t *testing.T, x *target) {
	before := x.others("www.example.test. 30 IN A", "www.example.test. 60 IN A")
	w := newWorld(t, service("WWW.Example.TEST", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
	p := run(t, quick(w, x.backend()), 7)
	time.Sleep(50 * time.Millisecond)
	if got := x.server.Lookup("www.example.test.", dns.TypeA); len(got) > 0 {
		t.Fatalf("written before there were verdicts: %v", got)
	}
	w.up("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
	eventually(t, "all addresses", func() bool {
		return x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2")() &&
			x.holds("www.example.test.", dns.TypeAAAA, "2001:db8::1", "2001:db8::2")()
	})
	if f := x.fence(); f.Owner != "test" || f.Epoch != 7 {
		t.Errorf("fence is %v", f)
	}
	w.down("192.0.2.1", "2001:db8::2")
	eventually(t, "removal", func() bool {
		return x.holds("wWw.example.test.", dns.TypeA, "192.0.2.2")() && x.holds("www.example.test.", dns.TypeAAAA, "2001:db8::1")()
	})
	w.up("192.0.2.1")
	eventually(t, "return", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
	w.respec(func(s *rota.Spec) { s.Services[0].TTL = 60 })
	eventually(t, "TTL", func() bool {
		return slices.Contains(x.server.Dump("example.test."), "www.example.test. 60 IN A 192.0.2.2") &&
			slices.Contains(x.server.Dump("example.test."), "www.example.test. 60 IN AAAA 2001:db8::1")
	})
	w.down("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
	eventually(t, "settled", func() bool { return w.recorded() != nil && settled(p.Publisher, w.State().At()) })
	if got := x.server.Lookup("www.example.test.", dns.TypeA); len(got) == 0 {
		t.Error("the name was emptied")
	}
	if diff := cmp.Diff(before, x.others("www.example.test. 60 IN A", "www.example.test. 30 IN A")); diff != "" {
		t.Errorf("foreign records changed:\n%s", diff)
	}

	// The fallback, at a name that has nothing beside it.
	app := service("app.example.test", "192.0.2.1", "2001:db8::1")
	app.Safety.OnAllDown, app.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w.respec(func(s *rota.Spec) { s.Services = append(s.Services, app) })
	w.up("192.0.2.1", "2001:db8::1")
	eventually(t, "app", x.holds("app.example.test.", dns.TypeAAAA, "2001:db8::1"))
	w.down("192.0.2.1", "2001:db8::1")
	eventually(t, "fallback", x.holds("app.example.test.", dns.TypeCNAME, "sorry.example.test."))
	w.up("192.0.2.1", "2001:db8::1")
	eventually(t, "back from the fallback", func() bool {
		return x.holds("app.example.test.", dns.TypeA, "192.0.2.1")() && x.holds("app.example.test.", dns.TypeCNAME)()
	})

	// Nothing is written while nothing changes.
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	serial := x.server.Serial("example.test.")
	for range 5 {
		w.apply(rota.Event{Kind: rota.EventTick})
	}
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if now := x.server.Serial("example.test."); now != serial {
		t.Errorf("the serial went from %d to %d while nothing changed", serial, now)
	}
	for _, e := range w.recorded() {
		if e.Publisher != testPublisher || e.Zone != "example.test." || e.Epoch != 7 || e.Took <= 0 || e.Changes[0].Why == "" {
			t.Errorf("event %+v", e)
		}
	}
}

func wrongKeys(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
	good := peers.DefaultKey()
	cases := []struct {
		name string
		key  Key
		road peers.Rule
		want map[peers.Kind][]Code
	}{
		{name: "name", key: Key{Name: "nobody", Secret: good.Secret}, want: map[peers.Kind][]Code{
			peers.BIND: {CodeBadKey}, peers.Knot: {CodeBadKey}, peers.PowerDNS: {CodeRefused, CodeNotAuth, CodeBadKey, CodeForged},
		}},
		{name: "secret", key: Key{Name: good.Name, Secret: "d3Jvbmc="}, want: map[peers.Kind][]Code{
			peers.BIND: {CodeBadSig}, peers.Knot: {CodeBadSig}, peers.PowerDNS: {CodeRefused, CodeNotAuth, CodeBadSig, CodeForged},
		}},
		{name: "algorithm", key: Key{Name: good.Name, Secret: good.Secret, Algorithm: "hmac-sha512"}, want: map[peers.Kind][]Code{
			peers.BIND: {CodeBadKey}, peers.Knot: {CodeBadKey, CodeBadSig}, peers.PowerDNS: {CodeRefused, CodeNotAuth, CodeBadKey, CodeForged},
		}},
	}
	serial := x.server.Serial("example.test.")
	for _, c := range cases {
		p := run(t, quick(w, x.backend(func(o *RFC2136Options) { o.Key = &c.key })), 1)
		eventually(t, c.name, func() bool { return reasonCode(p.Publisher) != "" })
		if got := reasonCode(p.Publisher); !slices.Contains(c.want[x.server.Kind], got) {
			t.Errorf("wrong %s is %s, want one of %v: %v", c.name, got, c.want[x.server.Kind], p.Status().Zones[0].Reasons[0])
		}
		p.stop()
	}
	// The clock: a signature of an hour ago, made by a signer that believes it is now.
	m := new(dns.Msg)
	m.SetUpdate("example.test.")
	key := Key{Name: good.Name, Secret: good.Secret}
	r := &road{server: x.server.Addr(), key: &key, timeout: 2 * time.Second}
	signed := m.Copy()
	signed.SetTsig(key.name(), key.algorithm(), fudge, time.Now().Add(-time.Hour).Unix())
	wire, mac, err := dns.TsigGenerateWithProvider(signed, &key, "", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = r.over(ctx, "tcp", m, wire, mac)
	switch got := ReasonOf(err); {
	case x.server.Kind == peers.PowerDNS:
		if got.Code != CodeRefused && got.Code != CodeBadTime {
			t.Errorf("a wrong clock is %v", err)
		}
	case got.Code != CodeBadTime || !strings.Contains(got.Error(), "clock skew"):
		t.Errorf("a wrong clock is %v", err)
	}
	if now := x.server.Serial("example.test."); now != serial {
		t.Errorf("something was written: serial %d, was %d", now, serial)
	}
}

// moved writes what was planned on something else than the zone holds.
func moved(t *testing.T, x *target) {
	b := x.backend()
	fence := Fence{Owner: "test", Epoch: 1, By: "00"}
	none := rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}
	mail := rota.RRset{Name: "mail.example.test.", Type: rota.TypeA, TTL: 300, Data: []string{"198.51.100.25"}}
	other, absent := mail, mail
	other.Data, absent.Data = []string{"192.0.2.1"}, nil
	two := mail
	two.Data = []string{"192.0.2.1", "198.51.100.25"}
	before := x.server.Dump("example.test.")
	for name, c := range map[string]rota.Change{
		"other data": {Old: other, New: two}, "more data": {Old: two, New: other}, "none": {Old: absent, New: other},
	} {
		n, err := b.Write(t.Context(), Batch{
			Zone: "example.test.", Fence: rota.Change{Old: none, New: fence.RRset("example.test.")}, Changes: []rota.Change{c},
		})
		if n != 1 || !errors.Is(err, ErrMoved) {
			t.Errorf("planned on %s: %d, %v, want ErrMoved", name, n, err)
		}
	}
	if diff := cmp.Diff(before, x.server.Dump("example.test.")); diff != "" {
		t.Errorf("the zone changed:\n%s", diff)
	}
}

func refused(t *testing.T, x *target) {
	closed := service("www.closed.test", "192.0.2.1")
	closed.Zone = ""
	w := newWorld(t, closed, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
	// Another zone goes on.
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "the open zone", x.holds("www.example.test.", dns.TypeA, "192.0.2.1"))
	// Knot does not even answer a signed query for the zone's SOA when the zone's ACL does not list the key.
	var r *Reason
	eventually(t, "a reason for the closed zone", func() bool {
		s := p.Status()
		if len(s.Lost) > 0 {
			r = s.Lost[0]
		} else if len(s.Zones) == 2 && len(s.Zones[0].Reasons) > 0 {
			r = s.Zones[0].Reasons[0]
		}
		return r != nil
	})
	if r.Code != CodeRefused && r.Code != CodeNotAuth && r.Code != CodeBadKey || r.Advice == "" {
		t.Errorf("the closed zone says %s: %v", r.Code, r)
	}
	p.stop()
	q := run(t, quick(newWorld(t, service("new.example.test", "192.0.2.1")).up("192.0.2.1"),
		x.backend(func(o *RFC2136Options) { o.Key = nil })), 2)
	eventually(t, "a reason for unsigned updates", func() bool { return reasonCode(q.Publisher) != "" })
	if got := reasonCode(q.Publisher); got != CodeRefused && got != CodeNotAuth {
		t.Errorf("unsigned is %s", got)
	}
}

func zoneMissing(t *testing.T, x *target) {
	gone, lost := service("www.gone.test", "192.0.2.1"), service("www.lost.test", "192.0.2.1")
	gone.Zone, lost.Zone = "gone.test.", ""
	w := newWorld(t, gone, lost, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "the zone that is there", x.holds("www.example.test.", dns.TypeA, "192.0.2.1"))
	eventually(t, "reasons", func() bool {
		s := p.Status()
		return len(s.Lost) == 1 && len(s.Zones) == 2 && len(s.Zones[1].Reasons) == 1
	})
	s := p.Status()
	if s.Lost[0].Code != CodeNoZone || s.Zones[1].Reasons[0].Code != CodeNoZone {
		t.Errorf("reasons are %v and %v", s.Lost[0], s.Zones[1].Reasons[0])
	}
	plan, err := p.Plan(t.Context())
	if err != nil || len(plan.Zones) != 3 || len(plan.Zones[0].Unchanged) != 1 || len(plan.Zones[1].Reasons) != 1 {
		t.Errorf("plan %+v, %v", plan, err)
	}
}

func downAndBack(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2", "192.0.2.3")).up("192.0.2.1", "192.0.2.2", "192.0.2.3")
	p := run(t, quick(w, x.backend(func(o *RFC2136Options) { o.Stream = true })), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) && len(w.recorded()) == 1 })
	seq := x.fence().Seq
	x.server.Kill()
	for range 10 {
		w.down("192.0.2.1").up("192.0.2.1")
	}
	w.down("192.0.2.3")
	failed := func(n int) func() bool { return func() bool { return p.Status().Zones[0].Failures >= n } }
	eventually(t, "failures", failed(2))
	w.down("192.0.2.2").up("192.0.2.3")
	eventually(t, "failures of the newest state", failed(p.Status().Zones[0].Failures+2))
	x.server.Restart()
	eventually(t, "the newest state", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.3"))
	eventually(t, "settled", func() bool { return reasonCode(p.Publisher) == "" && len(w.recorded()) == 2 })
	if got := w.recorded(); len(got) != 2 {
		t.Errorf("writes: %v, want the first and one after", got)
	}
	if now := x.fence().Seq; now > seq+2 {
		t.Errorf("%d messages were carried out, want one, or two when one was in doubt", now-seq)
	}
}

func lostAnswer(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	serial := x.server.Serial("example.test.")
	var lost atomic.Int32
	x.road.Set(func(p peers.Packet) [][]byte {
		if !p.Query && p.Update() {
			lost.Add(1)
			return nil
		}
		return [][]byte{p.Wire}
	})
	w.down("192.0.2.2")
	eventually(t, "the change", x.holds("www.example.test.", dns.TypeA, "192.0.2.1"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if lost.Load() == 0 {
		t.Error("no answer was lost")
	}
	if got := p.Status().Zones[0]; got.Failures != 0 || len(got.Reasons) != 0 || len(w.recorded()) != 2 {
		t.Errorf("status %+v, %d events", got, len(w.recorded()))
	}
	if now := x.server.Serial("example.test."); now != serial+1 {
		t.Errorf("the serial went from %d to %d, want one step", serial, now)
	}
}

func handEdit(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(w, x.backend())
	o.Audit = 100 * time.Millisecond
	p := run(t, o, 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	before := x.others()
	x.server.Update("example.test.", []string{"www.example.test. 30 IN A 192.0.2.1"}, []string{
		"www.example.test. 30 IN A 203.0.113.66", "mine.example.test. 30 IN A 203.0.113.66",
	})
	eventually(t, "repair", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
	want := append(slices.Clone(before), "mine.example.test. 30 IN A 203.0.113.66")
	slices.Sort(want)
	if diff := cmp.Diff(want, x.others()); diff != "" {
		t.Errorf("the rest of the zone:\n%s", diff)
	}
	eventually(t, "the repair is counted", func() bool { return p.Status().Zones[0].Repairs == 1 })
	// Last week's backup: old records, no fence.
	x.server.SetZone(peers.Zone{Name: "example.test.", Text: "www 30 IN A 203.0.113.7"})
	eventually(t, "repair after a restore", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
}

// tap keeps the updates that pass the road, and may hold them back.
type tap struct {
	mu   sync.Mutex // guards what follows
	all  [][]byte
	held [][]byte
}

func (c *tap) rule(hold bool) peers.Rule {
	return func(p peers.Packet) [][]byte {
		if !p.Query || !p.Update() {
			return [][]byte{p.Wire}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if hold {
			c.held = append(c.held, bytes.Clone(p.Wire))
			return nil
		}
		if again := func(w []byte) bool { return bytes.Equal(w, p.Wire) }; !slices.ContainsFunc(c.all, again) { // a datagram sent twice is one message
			c.all = append(c.all, bytes.Clone(p.Wire))
		}
		return [][]byte{p.Wire}
	}
}

func (c *tap) count() (all, held int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all), len(c.held)
}

// messages returns those that passed and those that are held.
func (c *tap) messages() (all, held [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all), slices.Clone(c.held)
}

// staleWriter is the race of DynamoDB of October 2025: leader A's message is held on the way, B leads and writes, then it arrives.
func staleWriter(t *testing.T, x *target) {
	a := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2", "192.0.2.3")).up("192.0.2.1", "192.0.2.2", "192.0.2.3")
	o := quick(a, x.backend())
	o.Confirm = func(context.Context, uint64) error {
		if a.State().Lead().Node == "b" {
			return errors.New("b leads")
		}
		return nil
	}
	pa := run(t, o, 5)
	eventually(t, "A's write", func() bool { return settled(pa.Publisher, a.State().At()) })
	var held tap
	x.road.Set(held.rule(true))
	a.down("192.0.2.1")
	eventually(t, "A's update is held", func() bool { _, n := held.count(); return n > 0 })
	a.apply(rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: "b", Term: 6}})

	// B comes to the same conclusion as the DNS already says: it has nothing to write but the fence.
	b := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2", "192.0.2.3")).up("192.0.2.1", "192.0.2.2", "192.0.2.3")
	direct := func(o *RFC2136Options) { o.Servers = []string{x.server.Addr()} }
	pb := run(t, quick(b, x.backend(direct)), 6)
	eventually(t, "B's round", func() bool { return settled(pb.Publisher, b.State().At()) })
	_, late := held.messages()
	for _, wire := range late {
		if rcode := x.road.Send(wire); rcode != dns.RcodeNXRrset {
			t.Errorf("A's update arrived late and was answered %s, want NXRRSET", dns.RcodeToString[rcode])
		}
	}
	if got := x.server.Lookup("www.example.test.", dns.TypeA); len(got) != 3 {
		t.Errorf("www is %v after A's late update", got)
	}
	// Its updates stay held: one that was confirmed before B led, and is on its way again, must not take the zone back for it.
	eventually(t, "A ends", func() bool {
		select {
		case <-pa.done:
			return true
		default:
			return false
		}
	})
	if !errors.Is(pa.err, ErrFenced) {
		t.Errorf("A ends with %v, want ErrFenced", pa.err)
	}
	if f := x.fence(); f.Epoch != 6 {
		t.Errorf("fence is %v", f)
	}
}

// replay sends every update again after the DNS has gone full circle, so that the old values are back.
func replay(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	var captured tap
	x.road.Set(captured.rule(false))
	w.down("192.0.2.1")
	eventually(t, "removal", x.holds("www.example.test.", dns.TypeA, "192.0.2.2"))
	w.up("192.0.2.1")
	eventually(t, "return", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	zone := x.server.Dump("example.test.")
	if n, _ := captured.count(); n < 2 {
		t.Fatalf("captured %d updates", n)
	}
	sent, _ := captured.messages()
	for _, wire := range sent {
		if rcode := x.road.Send(wire); rcode != dns.RcodeNXRrset {
			t.Errorf("a replayed update was answered %s, want NXRRSET", dns.RcodeToString[rcode])
		}
	}
	if diff := cmp.Diff(zone, x.server.Dump("example.test.")); diff != "" {
		t.Errorf("the replay changed the zone:\n%s", diff)
	}
}

// lateMessage holds an update, lets the decision be taken back, and then lets the update arrive.
func lateMessage(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	var held tap
	x.road.Set(held.rule(true))
	w.down("192.0.2.1")
	eventually(t, "an update is held", func() bool { _, n := held.count(); return n > 0 })
	w.up("192.0.2.1")
	x.road.Set(peers.Pass)
	both := x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2")
	// The message may have been sent again and be done by now: then the next round takes it back.
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) && both() })
	_, late := held.messages()
	for _, wire := range late {
		if rcode := x.road.Send(wire); rcode != dns.RcodeNXRrset {
			t.Errorf("a late update was answered %s, want NXRRSET", dns.RcodeToString[rcode])
		}
	}
	if !both() {
		t.Errorf("www is %v", x.server.Lookup("www.example.test.", dns.TypeA))
	}
}

func otherOwner(t *testing.T, x *target) {
	a := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
	pa := run(t, quick(a, x.backend()), 1)
	eventually(t, "A's write", func() bool { return settled(pa.Publisher, a.State().At()) })
	zone := x.server.Dump("example.test.")
	b := newWorld(t, service("www.example.test", "198.51.100.1")).up("198.51.100.1")
	o := quick(b, x.backend())
	o.Owner = named("somebody else")
	pb := run(t, o, 9)
	eventually(t, "a conflict", func() bool { return reasonCode(pb.Publisher) == CodeConflict })
	if r := pb.Status().Zones[0].Reasons[0]; !strings.Contains(r.Text, `"test"`) || !strings.Contains(r.Advice, "rota import example.test --from test") {
		t.Errorf("the conflict says %v", r)
	}
	if diff := cmp.Diff(zone, x.server.Dump("example.test.")); diff != "" {
		t.Errorf("the zone changed:\n%s", diff)
	}
}

func formerName(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	alone := run(t, quick(w, x.backend()), 1)
	eventually(t, "the write of a node alone", func() bool { return settled(alone.Publisher, w.State().At()) })
	grown := quick(w, x.backend())
	grown.Owner, grown.Formerly = named("cluster"), func() []string { return []string{"other", "test"} }
	now := run(t, grown, 2)
	eventually(t, "the cluster's fence", func() bool { return x.fence().Owner == "cluster" })
	w.down("192.0.2.1")
	eventually(t, "the cluster's write", func() bool {
		return settled(now.Publisher, w.State().At()) && x.holds("www.example.test.", dns.TypeA, "192.0.2.2")()
	})
	eventually(t, "a conflict for who is still called as before", func() bool { return reasonCode(alone.Publisher) == CodeConflict })
}

func tooMany(t *testing.T, x *target) {
	var addrs []string
	for i := range 150 {
		addrs = append(addrs, fmt.Sprintf("192.0.2.%d", i+1))
	}
	w := newWorld(t, service("aaa.example.test", "192.0.2.1"), service("big.example.test", addrs...), service("www.example.test", "192.0.2.1"))
	w.up(addrs...)
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "the names beside it", func() bool {
		return x.holds("aaa.example.test.", dns.TypeA, "192.0.2.1")() && x.holds("www.example.test.", dns.TypeA, "192.0.2.1")()
	})
	if x.server.Kind != peers.BIND {
		eventually(t, "150 addresses", x.holds("big.example.test.", dns.TypeA, addrs...))
		return
	}
	eventually(t, "a reason", func() bool { return reasonCode(p.Publisher) == CodeServfail })
	if r := p.Status().Zones[0].Reasons[0]; r.Name != "big.example.test." || !strings.Contains(r.Error(), "max-records-per-type") {
		t.Errorf("the reason is %v", r)
	}
}

func inTheWay(t *testing.T, x *target) {
	www := service("www.example.test", "192.0.2.3")
	www.Safety.OnAllDown, www.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w := newWorld(t, service("odd.example.test", "192.0.2.1"), service("host.sub.example.test", "192.0.2.1"), www)
	w.up("192.0.2.1", "192.0.2.3")
	before := x.others("www.example.test. 30 IN A")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "the name that is free", x.holds("www.example.test.", dns.TypeA, "192.0.2.3"))
	codes := func() map[rota.Name]Code {
		out := map[rota.Name]Code{}
		for _, r := range p.Status().Zones[0].Reasons {
			out[r.Name] = r.Code
		}
		return out
	}
	want := map[rota.Name]Code{"odd.example.test.": CodeCNAME, "host.sub.example.test.": CodeDelegated}
	eventually(t, "reasons", func() bool { return cmp.Equal(codes(), want) })
	w.down("192.0.2.3") // its fallback cannot stand beside the TXT at www
	want["www.example.test."] = CodeOther
	eventually(t, "a reason for the fallback", func() bool { return cmp.Equal(codes(), want) })
	if !x.holds("www.example.test.", dns.TypeA, "192.0.2.3")() {
		t.Errorf("www is %v", x.server.Lookup("www.example.test.", dns.TypeA))
	}
	if diff := cmp.Diff(before, x.others("www.example.test. 30 IN A")); diff != "" {
		t.Errorf("foreign records changed:\n%s", diff)
	}
}

// badAnswers lets the road forge, spoil and cut the answers to reads and updates; the true one is taken, or none.
func badAnswers(t *testing.T, x *target) {
	forge := func(change func(*dns.Msg)) peers.Rule {
		return func(p peers.Packet) [][]byte {
			m := new(dns.Msg)
			if p.Query || m.Unpack(p.Wire) != nil {
				return [][]byte{p.Wire}
			}
			change(m)
			wire, err := m.Pack()
			if err != nil {
				return [][]byte{p.Wire}
			}
			return [][]byte{wire, p.Wire}
		}
	}
	only := func(rule peers.Rule) peers.Rule {
		return func(p peers.Packet) [][]byte { return rule(p)[:1] }
	}
	flip := func(p peers.Packet) [][]byte {
		if p.Query {
			return [][]byte{p.Wire}
		}
		w := bytes.Clone(p.Wire)
		w[len(w)-8] ^= 1 // in the MAC: what follows is original id, error and other length
		return [][]byte{w}
	}
	cases := []struct {
		name string
		rule peers.Rule
		code Code // "": the true answer is found
	}{
		{"wrong id first", forge(func(m *dns.Msg) { m.Id++ }), ""},
		{"wrong question first", forge(func(m *dns.Msg) { m.Question[0].Name = "other.test." }), ""},
		{"forged success first", forge(func(m *dns.Msg) { m.Extra, m.Rcode = nil, dns.RcodeSuccess }), ""},
		{"forged refusal first", forge(func(m *dns.Msg) { m.Extra, m.Rcode = nil, dns.RcodeRefused }), ""},
		{"unsigned only", only(forge(func(m *dns.Msg) { m.Extra = nil })), CodeForged},
		{"unsigned refusal only", only(forge(func(m *dns.Msg) { m.Extra, m.Rcode = nil, dns.RcodeRefused })), CodeNoZone},
		{"a bit of the MAC", flip, CodeForged},
		{"junk", func(p peers.Packet) [][]byte {
			if p.Query {
				return [][]byte{p.Wire}
			}
			return [][]byte{append(bytes.Clone(p.Wire[:4]), 0, 1, 255, 255, 255, 255, 255, 255, 192, 12)}
		}, CodeMalformed},
		{"dropped", func(p peers.Packet) [][]byte {
			if p.Query {
				return [][]byte{p.Wire}
			}
			return nil
		}, CodeUnreachable},
	}
	patient, brief := x.backend(), x.backend(func(o *RFC2136Options) { o.Timeout = 300 * time.Millisecond })
	key := []rota.Key{{Name: "mail.example.test.", Type: rota.TypeA}}
	for _, c := range cases {
		x.road.Set(c.rule)
		b := patient
		if c.code == CodeUnreachable {
			b = brief
		}
		got, err := b.Read(t.Context(), "example.test.", key)
		switch {
		case c.code == "" && (err != nil || len(got.Sets) != 1 || got.Sets[0].Data[0] != "198.51.100.25"):
			t.Errorf("%s: read gives %+v, %v", c.name, got, err)
		case c.code != "" && (err == nil || ReasonOf(err).Code != c.code):
			t.Errorf("%s: read gives %+v, %v, want %s", c.name, got, err, c.code)
		}
		if c.code != "" {
			_, err := b.Write(t.Context(), Batch{Zone: "example.test.", Fence: rota.Change{
				Old: rota.RRset{Name: "nothing.example.test.", Type: rota.TypeTXT, Data: []string{`"x"`}},
				New: rota.RRset{Name: "nothing.example.test.", Type: rota.TypeTXT, TTL: 1, Data: []string{`"x"`}},
			}})
			if r := ReasonOf(err); !r.InDoubt || errors.Is(err, ErrMoved) {
				t.Errorf("%s: write gives %v, want it to be in doubt", c.name, err)
			}
		}
	}
	// TC: the answer comes over TCP.
	var streams atomic.Int32
	x.road.Set(func(p peers.Packet) [][]byte {
		if p.TCP {
			streams.Add(1)
		}
		return [][]byte{p.Wire}
	})
	long := strings.Repeat(strings.Repeat("x", 250)+`" "`, 8)
	x.server.Update("example.test.", nil, []string{`long.example.test. 30 IN TXT "` + long + `"`})
	got, err := patient.Read(t.Context(), "example.test.", []rota.Key{{Name: "long.example.test.", Type: rota.TypeTXT}})
	if err != nil || len(got.Sets) != 1 || len(got.Sets[0].Data[0]) < 2000 || streams.Load() == 0 {
		t.Errorf("a long answer: %v %v, %d over TCP", got, err, streams.Load())
	}
}

func wildcard(t *testing.T, x *target) {
	w := newWorld(t, service("a.wild.example.test", "198.51.100.80"), service("b.wild.example.test", "192.0.2.1"))
	w.up("198.51.100.80", "192.0.2.1")
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "names below a wildcard", func() bool {
		zone := x.server.Dump("example.test.")
		return slices.Contains(zone, "a.wild.example.test. 30 IN A 198.51.100.80") &&
			slices.Contains(zone, "b.wild.example.test. 30 IN A 192.0.2.1") && slices.Contains(zone, "*.wild.example.test. 300 IN A 198.51.100.80")
	})
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
}

// manyMessages needs more than one UPDATE: each is fenced by the one before.
func manyMessages(t *testing.T, x *target) {
	var services []rota.Service
	var addrs []string
	for i := range 40 {
		a := fmt.Sprintf("192.0.2.%d", i+1)
		addrs = append(addrs, a)
	}
	for i := range 60 {
		services = append(services, service(fmt.Sprintf("s%03d.%s.example.test", i, strings.Repeat("x", 60)), addrs...))
	}
	w := newWorld(t, services...).up(addrs...)
	p := run(t, quick(w, x.backend()), 1)
	eventually(t, "all written", func() bool { return settled(p.Publisher, w.State().At()) })
	if s := p.Status().Zones[0]; s.Writes < 2 || s.Changes != 60 {
		t.Errorf("%d writes, %d changes", s.Writes, s.Changes)
	}
	if got := x.server.Lookup(string(services[59].Name), dns.TypeA); len(got) != 40 {
		t.Errorf("the last one has %d addresses", len(got))
	}
	if w := x.fence().String(); len(w) > 250 {
		t.Errorf("the fence takes %d bytes", len(w))
	}
}
