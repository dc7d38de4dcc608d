package nameserver

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/rota-dns/rota/internal/rota"
)

// TestNeverEmpty: whatever befell a service, a type that has a configured endpoint is answered, unless the operator chose none; and
// only configured addresses are.
func TestNeverEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		apex := rapid.Bool().Draw(t, "apex")
		name := "www.example.org"
		if apex {
			name = "example.org"
		}
		s := service(name)
		for i := range rapid.IntRange(0, 5).Draw(t, "v4") {
			s.Endpoints = append(s.Endpoints, endpointOf(t, fmt.Sprintf("192.0.2.%d", i+1)))
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "v6") {
			s.Endpoints = append(s.Endpoints, endpointOf(t, fmt.Sprintf("2001:db8::%d", i+1)))
		}
		if rapid.Bool().Draw(t, "link local") {
			s.Endpoints = append(s.Endpoints, endpointOf(t, "fe80::1%eth0"))
		}
		s.Policy.Answers = rapid.IntRange(0, 4).Draw(t, "answers")
		s.Policy.Pick = rapid.SampledFrom([]rota.Pick{"", rota.PickRotate, rota.PickWeighted}).Draw(t, "pick")
		s.Safety.OnAllDown = rapid.SampledFrom([]rota.OnAllDown{
			rota.OnAllDownKeep, rota.OnAllDownAll, rota.OnAllDownFallback, rota.OnAllDownNone,
		}).Draw(t, "on all down")
		s.Safety.FailOpenBelow = rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(t, "fail open below")
		if s.Safety.OnAllDown == rota.OnAllDownFallback {
			s.Safety.Fallback = "sorry.example.net."
		}
		st, err := new(rota.State).Apply(rota.Event{Index: 1, At: epoch, Kind: rota.EventSpec, Spec: &rota.Spec{Services: []rota.Service{s}}})
		if err != nil {
			t.Fatal(err)
		}
		zones, err := Compile([]Zone{{Name: "example.org.", NS: []rota.Name{"ns.example.net."}}})
		if err != nil {
			t.Fatal(err)
		}
		c := newCatalog(zones, st)
		rnd := seeded(rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(0, 8).Draw(t, "events") {
			checkNeverEmpty(t, c, st, s, apex, rnd)
			if st, err = st.Apply(anyEvent(t, st, s)); err != nil {
				t.Fatal(err)
			}
		}
		checkNeverEmpty(t, c, st, s, apex, rnd)
	})
}

func endpointOf(t *rapid.T, addr string) rota.Endpoint {
	e := service("x", addr).Endpoints[0]
	e.Weight = rapid.SampledFrom([]uint32{1, 0, 5}).Draw(t, "weight")
	e.Priority = uint16(rapid.IntRange(0, 1).Draw(t, "priority"))
	return e
}

func anyEvent(t *rapid.T, st *rota.State, s rota.Service) rota.Event {
	at := st.At().Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second)
	e := rota.Event{Index: st.Index() + 1, At: at, Kind: rota.EventVerdicts}
	if len(s.Endpoints) > 0 && rapid.Bool().Draw(t, "override") {
		e.Kind = rota.EventOverride
		e.Overrides = []rota.Override{{
			Endpoint: rota.EndpointID{Service: s.Name, Address: rapid.SampledFrom(s.Endpoints).Draw(t, "endpoint").Address},
			Action: rapid.SampledFrom([]rota.Action{
				rota.ActionDrain, rota.ActionMaintenance, rota.ActionForceUp, rota.ActionForceDown,
			}).Draw(t, "action"),
			Author: "test", Set: at, Expires: at.Add(time.Hour),
		}}
		return e
	}
	for _, target := range st.Targets() {
		e.Verdicts = append(e.Verdicts, rota.Verdict{
			Target: target.ID, Status: rapid.SampledFrom([]rota.Status{rota.Up, rota.Down}).Draw(t, "status"), Since: at,
		})
	}
	return e
}

func checkNeverEmpty(t *rapid.T, c *catalog, st *rota.State, s rota.Service, apex bool, rnd draw) {
	for qtype, want := range map[string]func(netip.Addr) bool{"A": netip.Addr.Is4, "AAAA": netip.Addr.Is6} {
		configured := map[string]bool{}
		for _, e := range s.Endpoints {
			if want(e.Address) && e.Address.Zone() == "" {
				configured[e.Address.String()] = true
			}
		}
		a := ask(c, st, s.Name.String(), qtype, rnd)
		mode := st.Selection(s.Name).Family(map[string]rota.Type{"A": rota.TypeA, "AAAA": rota.TypeAAAA}[qtype]).Mode
		if a.rcode != dns.RcodeSuccess || !a.aa {
			t.Fatalf("%s: rcode %d, aa %v", qtype, a.rcode, a.aa)
		}
		if len(a.answer) == 0 && len(configured) > 0 && mode != rota.ModeNone {
			t.Fatalf("%s: empty in mode %s, endpoints %v", qtype, mode, configured)
		}
		if (len(a.answer) == 0) != (len(a.authority) == 1) {
			t.Fatalf("%s: answer %v with authority %v", qtype, a.answer, a.authority)
		}
		if n := s.Policy.Answers; n > 0 && len(a.answer) > n {
			t.Fatalf("%s: %d addresses, the policy allows %d", qtype, len(a.answer), n)
		}
		seen := map[string]bool{}
		for _, rr := range a.answer {
			var addr string
			switch d := rr.(type) {
			case *dns.CNAME:
				if apex || len(a.answer) > 1 || !st.Selection(s.Name).Fallback() {
					t.Fatalf("%s: alias in %v", qtype, a.answer)
				}
				continue
			case *dns.A:
				addr = d.A.String()
			case *dns.AAAA:
				addr = d.AAAA.String()
			}
			if !configured[addr] || seen[addr] {
				t.Fatalf("%s: answers %s of %v", qtype, addr, configured)
			}
			seen[addr] = true
		}
	}
}

// TestNoSelection: a service that the state holds no selection of answers with all that can be published.
func TestNoSelection(t *testing.T) {
	s := service("www.example.org", "192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1%eth0")
	for _, tt := range []struct {
		t    rota.Type
		want int
	}{{rota.TypeA, 2}, {rota.TypeAAAA, 1}} {
		if got := pick(candidates(&s, nil, tt.t, false), s.Policy, first); len(got) != tt.want {
			t.Errorf("%s: %v", tt.t, got)
		}
	}
}
