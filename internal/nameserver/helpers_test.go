package nameserver

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/rota-dns/rota/internal/rota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Unix(1_700_000_000, 0).UTC()

// service makes a service of addresses; "192.0.2.1*3" has weight 3. Every endpoint has one check.
func service(name string, addrs ...string) rota.Service {
	s := rota.Service{
		Name: rota.MustParseName(name), TTL: 30, Publish: []string{rota.Embedded}, Safety: rota.DefaultSafety(),
	}
	s.Safety.MinHold = 0
	for _, a := range addrs {
		weight := uint32(1)
		if text, w, ok := strings.Cut(a, "*"); ok {
			a, weight = text, uint32(w[0]-'0')
		}
		s.Endpoints = append(s.Endpoints, rota.Endpoint{
			Address: netip.MustParseAddr(a), Weight: weight,
			Checks: []rota.Use{{Check: rota.Check{Kind: rota.KindTCP, Port: 443, Timing: rota.DefaultTiming()}}},
		})
	}
	return s
}

// stateOf is the state after services were configured and everyone was found up, but for those listed as down.
func stateOf(t testing.TB, services []rota.Service, down ...string) *rota.State {
	t.Helper()
	st := apply(t, &rota.State{}, rota.Event{Index: 1, At: epoch, Kind: rota.EventSpec, Spec: &rota.Spec{Services: services}})
	return judge(t, st, down...)
}

func apply(t testing.TB, st *rota.State, e rota.Event) *rota.State {
	t.Helper()
	next, err := st.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// judge is the state one second on, with the listed addresses down and all others up.
func judge(t testing.TB, st *rota.State, down ...string) *rota.State {
	t.Helper()
	at := st.At().Add(time.Second)
	e := rota.Event{Index: st.Index() + 1, At: at, Kind: rota.EventVerdicts}
	for _, target := range st.Targets() {
		v := rota.Verdict{Target: target.ID, Status: rota.Up, Since: at}
		if slices.Contains(down, target.Address.String()) {
			v.Status = rota.Down
		}
		e.Verdicts = append(e.Verdicts, v)
	}
	return apply(t, st, e)
}

func catalogOf(t testing.TB, st *rota.State, zones ...Zone) *catalog {
	t.Helper()
	z, err := Compile(zones)
	if err != nil {
		t.Fatal(err)
	}
	c := newCatalog(z, st)
	for _, v := range c.views {
		v.counts = new(zoneCounts)
	}
	return c
}

// first is chance that always draws 0: lists come as they are configured.
func first(uint64) uint64 { return 0 }

func seeded(seed uint64) draw { return rand.New(rand.NewPCG(seed, 1)).Uint64N }

// ask is lookup for people.
func ask(c *catalog, st *rota.State, name, qtype string, rnd draw) answer {
	n, err := rota.ParseName(name)
	if err != nil {
		panic(err)
	}
	t, ok := dns.StringToType[qtype]
	if !ok {
		u, err := rota.ParseType(qtype)
		if err != nil {
			panic(err)
		}
		t = uint16(u)
	}
	return lookup(c, st, question{asked: dns.Fqdn(name), name: n, qtype: t}, rnd)
}

// lines writes records one a line with single spaces.
func lines(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return out
}

func diff(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// start runs a server on loopback and returns it with its address; it ends with the test.
func start(t testing.TB, o Options) (*Server, string) {
	t.Helper()
	if o.Listen == nil {
		o.Listen = []string{"127.0.0.1:0"}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, s.Addrs()[0].String()
}
