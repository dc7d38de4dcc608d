package publish

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// A host that registers itself writes all it planned, or nothing.
func TestSwap(t *testing.T) {
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			x := newTarget(t, kind)
			b, ok := x.backend().(*RFC2136)
			if !ok {
				t.Fatal("no RFC 2136")
			}
			set := func(name string, typ rota.Type, data ...string) rota.RRset {
				return rota.RRset{Name: rota.MustParseName(name), Type: typ, TTL: 7200, Data: data}
			}
			add := func(s rota.RRset) rota.Change {
				return rota.Change{Old: rota.RRset{Name: s.Name, Type: s.Type}, New: s}
			}
			absent := []rota.RRset{{Name: "h.example.test.", Type: rota.TypeCNAME}, {Name: "_rota.example.test.", Type: rota.TypeTXT}}
			h, web := set("h.example.test", rota.TypeA, "192.0.2.1"), set("web.example.test", rota.TypeA, "192.0.2.1")
			swap := func(require []rota.RRset, changes ...rota.Change) error {
				return b.Swap(t.Context(), "example.test.", require, changes)
			}
			if err := swap(absent); err != nil {
				t.Fatalf("asked whether an update is taken: %v", err)
			}
			if err := swap(absent, add(h), add(web)); err != nil {
				t.Fatal(err)
			}
			if !x.holds("h.example.test.", dns.TypeA, "192.0.2.1")() || !x.holds("web.example.test.", dns.TypeA, "192.0.2.1")() {
				t.Fatalf("not written: %v", x.server.Dump("example.test."))
			}
			before := x.server.Dump("example.test.")
			many := set("many.example.test", rota.TypeTXT)
			for i := range 4000 {
				many.Data = append(many.Data, fmt.Sprintf("\"%040d\"", i))
			}
			r := func(err error) Code { return ReasonOf(err).Code }
			for name, err := range map[string]error{
				"it is there already":          swap(absent, add(web)),
				"one of two is there":          swap(nil, add(set("new.example.test", rota.TypeA, "192.0.2.9")), add(h)),
				"an RRset that must be absent": swap([]rota.RRset{{Name: "old.example.test.", Type: rota.TypeCNAME}}, add(set("new.example.test", rota.TypeA, "192.0.2.9"))),
				"an RRset that must be other":  swap([]rota.RRset{set("h.example.test", rota.TypeA, "192.0.2.7")}),
			} {
				if !errors.Is(err, ErrMoved) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := swap(nil, add(many)); r(err) != CodeTooLarge {
				t.Errorf("too much for a message: %v", err)
			}
			if err := b.Swap(t.Context(), "closed.test.", nil, []rota.Change{add(set("h.closed.test", rota.TypeA, "192.0.2.1"))}); err == nil || errors.Is(err, ErrMoved) {
				t.Errorf("a closed zone: %v", err)
			}
			if after := x.server.Dump("example.test."); !slices.Equal(before, after) {
				t.Errorf("refused updates changed the zone:\n%v\n%v", before, after)
			}
		})
	}
}

// What hosts claim may be written, and nothing else at their names.
func TestGuardClaims(t *testing.T) {
	w := newWorld(t)
	w.respec(func(s *rota.Spec) {
		s.Registers = []rota.RegisterTemplate{{
			Name: "vm", HostName: "{id}-{service}", ServiceName: "{service}.example.test", HostRecord: "{host}.example.test", HostZone: "example.test.",
			HostPublish: []string{testPublisher}, Reverse: []rota.Reverse{{Zone: "2.0.192.in-addr.arpa.", Publish: []string{testPublisher}}},
			Service: rota.Service{TTL: 60, Zone: "example.test.", Publish: []string{testPublisher}, Safety: rota.DefaultSafety()},
		}}
	})
	w.apply(rota.Event{Kind: rota.EventRegister, Registrations: []rota.Registration{{Template: "vm", Host: "a-web", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}}})
	d := desire{state: w.State()}
	for x := range d.state.Wants(testPublisher) {
		if x.Zone == "example.test." {
			d.wants = append(d.wants, x)
		}
	}
	plan := d.plan("example.test.", Reading{})
	if got := fmt.Sprint(plan.Changes); got != "[a-web.example.test A +192.0.2.7 web.example.test A +192.0.2.7]" || len(plan.Reasons) > 0 || plan.Changes[0].Why == "" {
		t.Errorf("%s %v, because of %q", got, plan.Reasons, plan.Changes[0].Why)
	}
	d.wants[0].Set.Data = []string{"192.0.2.66"}
	if plan := d.plan("example.test.", Reading{}); len(plan.Reasons) != 1 || plan.Reasons[0].Code != CodeGuard {
		t.Errorf("an address that nobody claims: %v %v", plan.Changes, plan.Reasons)
	}
}
