package rota

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fleet is a state that hosts register in.
type fleet struct {
	t testing.TB
	*State
	now time.Time
}

func hosts(change ...func(*Spec)) Spec {
	s := Spec{Registers: []RegisterTemplate{{
		Name: "vm", HostName: "{id}-{service}-{env}", ServiceName: "{service}.sky.test", HostRecord: "{host}.sky.test",
		Reverse: []Reverse{{Zone: "37.13.in-addr.arpa.", Publish: []string{Embedded}}, {Publish: []string{"bind"}}},
		Service: Service{TTL: 7200, Publish: []string{"bind"}, Safety: DefaultSafety()}, HostPublish: []string{"bind"}, HostZone: "sky.test.",
		Endpoint: Endpoint{Weight: 1, Labels: map[string]string{"from": "vm"}},
	}}}
	for _, f := range change {
		f(&s)
	}
	return s
}

func newFleet(t testing.TB, s Spec) *fleet {
	f := &fleet{t: t, State: &State{}, now: epoch}
	f.must(Event{Kind: EventSpec, Spec: &s})
	return f
}

func (f *fleet) do(e Event) error {
	f.now = f.now.Add(time.Second)
	e.Index, e.At = f.Index()+1, f.now
	next, err := f.Apply(e)
	f.State = next
	return err
}

func (f *fleet) must(e Event) {
	f.t.Helper()
	if err := f.do(e); err != nil {
		f.t.Fatal(err)
	}
}

func reg(host string, addrs ...string) Event {
	r := Registration{Template: "vm", Host: host}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return Event{Kind: EventRegister, Actor: host, Registrations: []Registration{r}}
}

func dereg(host string) Event {
	return Event{Kind: EventDeregister, Registrations: []Registration{{Template: "vm", Host: host}}}
}

// wants are what a publisher is told, in words.
func (f *fleet) wants(publisher string, want ...string) {
	f.t.Helper()
	var got []string
	for w := range f.Wants(publisher) {
		text := w.Set.Key().String() + " " + strings.Join(w.Set.Data, " ")
		if w.Drop != nil {
			text = w.Set.Key().String() + " drop " + strings.Join(w.Drop, " ")
		}
		got = append(got, strings.TrimSpace(text))
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		f.t.Fatalf("%s is told (-want +got):\n%s", publisher, diff)
	}
}

func TestRegistrations(t *testing.T) {
	f := newFleet(t, hosts())
	f.must(reg("a-web-sfo", "13.37.0.1", "2001:db8::1"))
	const pointer6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa PTR"
	a := []string{"a-web-sfo.sky.test A 13.37.0.1", "a-web-sfo.sky.test AAAA 2001:db8::1", pointer6 + " a-web-sfo.sky.test."}
	f.wants("bind", append(a, "web.sky.test A 13.37.0.1", "web.sky.test AAAA 2001:db8::1")...)
	f.wants(Embedded, "1.0.37.13.in-addr.arpa PTR a-web-sfo.sky.test.")
	f.must(reg("b-web-sfo", "13.37.0.2"))
	f.wants("bind", append(a, "web.sky.test A 13.37.0.1 13.37.0.2", "web.sky.test AAAA 2001:db8::1", "b-web-sfo.sky.test A 13.37.0.2")...)
	// Another address: the records of the old one are left in DNS, until a publisher says that they are gone.
	f.must(reg("a-web-sfo", "10.0.0.1"))
	f.wants("bind", "a-web-sfo.sky.test A 10.0.0.1", "a-web-sfo.sky.test AAAA drop 2001:db8::1", "1.0.0.10.in-addr.arpa PTR a-web-sfo.sky.test.",
		pointer6+" drop a-web-sfo.sky.test.", "web.sky.test A 10.0.0.1 13.37.0.2", "web.sky.test AAAA drop 2001:db8::1", "b-web-sfo.sky.test A 13.37.0.2")
	gone := RRset{Name: ReverseName(netip.MustParseAddr("2001:db8::1")), Type: TypePTR}
	had := gone
	had.Data = []string{"a-web-sfo.sky.test."}
	f.must(Event{Kind: EventPublished, Published: &Published{Publisher: "bind", Changes: []Change{
		{Old: had, New: gone}, {Old: RRset{Name: "a-web-sfo.sky.test.", Type: TypeAAAA, Data: []string{"2001:db8::1"}}, New: RRset{Name: "a-web-sfo.sky.test.", Type: TypeAAAA}},
	}}})
	f.wants("bind", "a-web-sfo.sky.test A 10.0.0.1", "1.0.0.10.in-addr.arpa PTR a-web-sfo.sky.test.",
		"web.sky.test A 10.0.0.1 13.37.0.2", "web.sky.test AAAA drop 2001:db8::1", "b-web-sfo.sky.test A 13.37.0.2")
	// The last host of a service takes it along.
	f.must(dereg("a-web-sfo"))
	f.must(dereg("b-web-sfo"))
	f.wants("bind", "a-web-sfo.sky.test A drop 10.0.0.1", "1.0.0.10.in-addr.arpa PTR drop a-web-sfo.sky.test.",
		"web.sky.test A drop 13.37.0.2", "b-web-sfo.sky.test A drop 13.37.0.2")
	if len(f.Services()) > 0 || len(f.Registrations()) > 0 {
		t.Errorf("left: %v %v", f.Services(), f.Registrations())
	}
	// What comes back is not taken out.
	f.must(reg("b-web-sfo", "13.37.0.2"))
	f.wants("bind", "a-web-sfo.sky.test A drop 10.0.0.1", "1.0.0.10.in-addr.arpa PTR drop a-web-sfo.sky.test.",
		"web.sky.test A 13.37.0.2", "b-web-sfo.sky.test A 13.37.0.2")
	// After a week nobody waits for what may never have been there.
	f.now = f.now.Add(LeftoverLife)
	f.must(Event{Kind: EventTick})
	f.wants("bind", "web.sky.test A 13.37.0.2", "b-web-sfo.sky.test A 13.37.0.2")
	if x, ok := f.Explain("b-web-sfo.sky.test.", TypeA); !ok || !strings.Contains(x.Summary, "registered by b-web-sfo since") || x.Answer[0] != "13.37.0.2" {
		t.Errorf("explained as %+v", x)
	}
	if got, err := f.Match("label:host=b-web-sfo"); err != nil || len(got) != 1 {
		t.Errorf("its endpoint by its label: %v %v", got, err)
	}
}

// Checks of a template ask by the name of the service that it makes.
func TestChecksOfRegisteredHosts(t *testing.T) {
	f := newFleet(t, hosts(func(s *Spec) {
		e := &s.Registers[0].Endpoint
		for _, host := range []string{"{service}.sky.test", "other.test", ""} {
			e.Checks = append(e.Checks, Use{Check: Check{Kind: KindHTTPS, Port: 443, Host: host, ServerName: host, Timing: DefaultTiming()}})
		}
	}))
	f.must(reg("a-web-sfo", "13.37.0.1"))
	f.must(reg("b-db-sfo", "13.37.0.2"))
	for name, want := range map[Name]string{"web.sky.test.": "web.sky.test", "db.sky.test.": "db.sky.test"} {
		for i, host := range []string{want, "other.test", ""} {
			if c := f.Service(name).Endpoints[0].Checks[i].Check; c.Host != host || c.ServerName != host {
				t.Errorf("%s, check %d asks for %q and %q, want %q", name, i, c.Host, c.ServerName, host)
			}
		}
	}
}

// A host joins a configured service, whose own endpoints and word on publishers stand.
func TestRegisterToConfigured(t *testing.T) {
	web := Service{Name: "web.sky.test.", TTL: 30, Publish: []string{"knot"}, Safety: DefaultSafety(), Endpoints: []Endpoint{{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1}}}
	f := newFleet(t, hosts(func(s *Spec) {
		s.Services = []Service{web}
		s.Registers[0].Endpoint.Checks = []Use{{Check: Check{Name: "web", Kind: KindHTTPS, Port: 443, Host: "{service}.sky.test", Timing: DefaultTiming()}, Observe: true}}
	}))
	f.must(reg("a-web-sfo", "10.0.0.1"))
	if ts := f.Targets(); len(ts) != 1 || ts[0].Check.Host != "web.sky.test" {
		t.Errorf("it is checked by %+v", ts)
	}
	f.must(reg("b-web-sfo", "192.0.2.1"))
	f.wants("knot", "web.sky.test A 10.0.0.1 192.0.2.1")
	if n := len(f.Spec().Services[0].Endpoints); n != 1 {
		t.Errorf("the configuration has %d endpoints now", n)
	}
	f.must(dereg("b-web-sfo"))
	f.must(dereg("a-web-sfo"))
	f.wants("knot", "web.sky.test A 192.0.2.1")
}

func TestRegistrationsRefused(t *testing.T) {
	many := reg("a-web-sfo")
	for i := range MaxAddresses + 1 {
		many.Registrations[0].Addresses = append(many.Registrations[0].Addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	other := reg("a-web-sfo", "10.0.0.1")
	other.Registrations[0].Template = "other"
	for _, c := range []struct {
		spec Spec
		e    Event
		want string
	}{
		{hosts(), reg("web", "10.0.0.1"), "does not fit the pattern"},
		{hosts(), reg("A-web-sfo", "10.0.0.1"), "in lower case"},
		{hosts(), reg("a-web-sfo.example", "10.0.0.1"), "in lower case"},
		{hosts(), reg("", "10.0.0.1"), "no host name"},
		{hosts(), reg("a-web-sfo"), "0 addresses"},
		{hosts(), many, "17 addresses"},
		{hosts(), other, `no block "other"`},
		{hosts(), reg("a-web-sfo", "127.0.0.1"), "reaches no host"},
		{hosts(), reg("a-web-sfo", "fe80::1%eth0"), "cannot be published"},
		{hosts(), Event{Kind: EventRegister}, "names no host"},
		{hosts(), dereg("a-web-sfo"), "no host a-web-sfo has registered"},
		{hosts(func(s *Spec) { s.Registers[0].Networks = []netip.Prefix{netip.MustParsePrefix("13.37.0.0/16")} }), reg("a-web-sfo", "10.0.0.1"), "in none of the networks"},
		{hosts(func(s *Spec) { s.Registers[0].HostRecord = "host.sky.test" }), reg("b-web-sfo", "10.0.0.2"), "host.sky.test is the record of host a-www-sfo"},
		{hosts(func(s *Spec) { s.Registers[0].HostRecord = "{id}.sky.test" }), reg("www-web-sfo", "10.0.0.2"), "www.sky.test is the service of other hosts"},
		{hosts(func(s *Spec) {
			s.Registers[0].HostRecord = "{id}.sky.test"
			s.Services = []Service{{Name: "mail.sky.test.", Safety: DefaultSafety()}}
		}), reg("mail-web-sfo", "10.0.0.2"), "mail.sky.test is a service"},
	} {
		f := newFleet(t, c.spec)
		_ = f.do(reg("a-www-sfo", "13.37.0.1"))
		before := f.Registrations()
		if err := f.do(c.e); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want an error with %q", err, c.want)
		}
		if diff := cmp.Diff(before, f.Registrations(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: the refused event left:\n%s", c.want, diff)
		}
	}
	// In a freeze nobody comes or goes.
	f := newFleet(t, hosts())
	f.must(reg("a-web-sfo", "10.0.0.1"))
	f.must(Event{Kind: EventFreeze, Actor: "bob", Reason: "audit"})
	for _, e := range []Event{reg("b-web-sfo", "10.0.0.2"), dereg("a-web-sfo")} {
		if err := f.do(e); !errors.Is(err, ErrFrozen) {
			t.Errorf("in a freeze: %v", err)
		}
	}
}

func TestLeases(t *testing.T) {
	lease := func(s *Spec) { s.Registers[0].ExpireAfter = time.Hour }
	f := newFleet(t, hosts(lease))
	f.must(reg("a-web-sfo", "10.0.0.1"))
	f.must(reg("b-web-sfo", "10.0.0.2"))
	a := reg("a-web-sfo", "10.0.0.1").Registrations[0]
	if f.News(a, f.now.Add(19*time.Minute)) || !f.News(a, f.now.Add(21*time.Minute)) || !f.News(reg("a-web-sfo", "10.0.0.3").Registrations[0], f.now) {
		t.Error("a renewal is news at another time than after a third of the lease, or another address is none")
	}
	f.now = f.now.Add(30 * time.Minute)
	f.must(reg("a-web-sfo", "10.0.0.1"))
	x, _ := f.Registration("vm", "a-web-sfo")
	if want := f.now.Add(time.Hour); !x.Expires.Equal(want) || x.At.Equal(x.Renewed) {
		t.Errorf("renewed until %v, want %v; since %v", x.Expires, want, x.At)
	}
	b, _ := f.Registration("vm", "b-web-sfo")
	if !f.Deadline().Equal(b.Expires) {
		t.Errorf("the next tick is due at %v, want %v", f.Deadline(), b.Expires)
	}
	f.now = b.Expires
	f.must(Event{Kind: EventTick})
	f.wants("bind", "a-web-sfo.sky.test A 10.0.0.1", "b-web-sfo.sky.test A drop 10.0.0.2", "web.sky.test A 10.0.0.1",
		"1.0.0.10.in-addr.arpa PTR a-web-sfo.sky.test.", "2.0.0.10.in-addr.arpa PTR drop b-web-sfo.sky.test.")
	// The last one of a service stays, however late it is, and no tick is due for it.
	f.now = f.now.Add(24 * time.Hour)
	f.must(Event{Kind: EventTick})
	if _, ok := f.Registration("vm", "a-web-sfo"); !ok || !f.Deadline().IsZero() {
		t.Errorf("the last host of the service is gone, or is waited for at %v", f.Deadline())
	}
	// Until another one comes.
	f.must(reg("c-web-sfo", "10.0.0.3"))
	if _, ok := f.Registration("vm", "a-web-sfo"); ok {
		t.Error("a host whose lease ended yesterday is there beside a new one")
	}
	// Nobody could renew anything while nobody led: leases begin anew.
	f.must(reg("d-web-sfo", "10.0.0.4"))
	f.now = f.now.Add(2 * time.Hour)
	f.must(Event{Kind: EventLead, Lead: &Lead{Node: "n", Term: 1}})
	f.must(Event{Kind: EventTick})
	if got := f.Registrations(); len(got) != 2 || !got[0].Expires.After(f.now) {
		t.Errorf("after two hours without a leader there are %+v", got)
	}
	// So it is after a freeze.
	f.must(Event{Kind: EventFreeze})
	f.now = f.now.Add(2 * time.Hour)
	f.must(Event{Kind: EventTick})
	f.must(Event{Kind: EventThaw})
	if got := f.Registrations(); len(got) != 2 || !got[0].Expires.After(f.now) {
		t.Errorf("after a freeze of two hours there are %+v", got)
	}
}

// TestRegistrationsAreBounded: neither hosts nor what they leave behind grow without end.
func TestRegistrationsAreBounded(t *testing.T) {
	f := newFleet(t, hosts())
	in, out := Event{Kind: EventRegister}, Event{Kind: EventDeregister}
	for i := range MaxRegistered {
		r := reg(fmt.Sprintf("h%05d-web-sfo", i), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()).Registrations[0]
		in.Registrations = append(in.Registrations, r)
		out.Registrations = append(out.Registrations, Registration{Template: r.Template, Host: r.Host})
	}
	f.must(in)
	if err := f.do(reg("one-more-sfo", "10.0.0.1")); err == nil || !strings.Contains(err.Error(), "as many as can") {
		t.Errorf("one host more: %v", err)
	}
	f.must(in) // renewed
	f.must(out)
	if n := len(f.Leftovers()); n != MaxLeftovers {
		t.Errorf("%d leftovers, want %d", n, MaxLeftovers)
	}
}

// TestSilenceOfAll: when nobody renewed anything for as long as a lease, because the API could not be reached or the clock was put
// forward, the first one that is heard again takes nobody out.
func TestSilenceOfAll(t *testing.T) {
	f := newFleet(t, hosts(func(s *Spec) { s.Registers[0].ExpireAfter = time.Hour }))
	f.must(reg("a-web-sfo", "10.0.0.1"))
	f.must(reg("b-web-sfo", "10.0.0.2"))
	f.must(reg("c-web-sfo", "10.0.0.3"))
	f.now = f.now.Add(2 * time.Hour)
	f.must(Event{Kind: EventTick})
	f.must(reg("a-web-sfo", "10.0.0.1"))
	if n := len(f.Registrations()); n != 3 {
		t.Fatalf("%d hosts are left after the first renewal", n)
	}
	f.now = f.now.Add(30 * time.Minute)
	f.must(reg("b-web-sfo", "10.0.0.2"))
	f.now = f.now.Add(31 * time.Minute)
	f.must(Event{Kind: EventTick})
	if got := f.Registrations(); len(got) != 1 || got[0].Host != "b-web-sfo" {
		t.Errorf("who is silent while others are heard is still there: %+v", got)
	}
}

// An edit of the configuration takes nothing out of a foreign DNS, and what was taken back comes back.
func TestTemplateGoesAndComes(t *testing.T) {
	f := newFleet(t, hosts())
	f.must(reg("a-web-sfo", "10.0.0.1"))
	with, without := hosts(), hosts(func(s *Spec) { s.Registers = nil })
	f.must(Event{Kind: EventSpec, Spec: &without})
	f.wants("bind")
	if r := f.Registrations(); len(r) != 1 || !strings.Contains(r[0].Problem, `no block "vm"`) {
		t.Errorf("registered: %+v", r)
	}
	f.must(Event{Kind: EventSpec, Spec: &with})
	f.wants("bind", "a-web-sfo.sky.test A 10.0.0.1", "web.sky.test A 10.0.0.1", "1.0.0.10.in-addr.arpa PTR a-web-sfo.sky.test.")
	// A name that a configured service takes is its own from then on.
	taken := hosts(func(s *Spec) {
		s.Services = []Service{{Name: "a-web-sfo.sky.test.", TTL: 30, Publish: []string{"bind"}, Safety: DefaultSafety(), Endpoints: []Endpoint{{Address: netip.MustParseAddr("192.0.2.9"), Weight: 1}}}}
	})
	f.must(Event{Kind: EventSpec, Spec: &taken})
	f.wants("bind", "a-web-sfo.sky.test A 192.0.2.9")
}

func TestRegistrationsSurvive(t *testing.T) {
	f := newFleet(t, hosts(func(s *Spec) { s.Registers[0].ExpireAfter = time.Hour }))
	f.must(Event{Kind: EventLead, Lead: &Lead{Node: "n", Term: 1}})
	f.must(reg("a-web-sfo", "10.0.0.1"))
	f.must(reg("b-web-sfo", "10.0.0.2"))
	f.must(dereg("b-web-sfo"))
	raw, err := json.Marshal(f.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	var snap Snapshot
	if err := json.Unmarshal(raw, &snap); err != nil {
		t.Fatal(err)
	}
	again, err := Restore(snap)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(again.Claims(), again.Registrations(), again.Leftovers()) != fmt.Sprint(f.Claims(), f.Registrations(), f.Leftovers()) || !again.Deadline().Equal(f.Deadline()) {
		t.Errorf("restored: %v %v %v", again.Claims(), again.Registrations(), again.Leftovers())
	}
	// A backup of the day before knows a host that today's state does not.
	spec := f.Spec()
	backup := Event{Kind: EventRestore, Spec: &spec, Registrations: f.Snapshot().Registrations}
	g := newFleet(t, hosts(func(s *Spec) { s.Registers[0].ExpireAfter = time.Hour }))
	g.must(reg("c-web-sfo", "10.0.0.3"))
	g.now = g.now.Add(30 * time.Hour)
	g.must(backup)
	g.wants("bind", "a-web-sfo.sky.test A 10.0.0.1", "c-web-sfo.sky.test A 10.0.0.3", "web.sky.test A 10.0.0.1 10.0.0.3",
		"1.0.0.10.in-addr.arpa PTR a-web-sfo.sky.test.", "3.0.0.10.in-addr.arpa PTR c-web-sfo.sky.test.")
}

func TestTemplatesThatCannotBe(t *testing.T) {
	for want, change := range map[string]func(*RegisterTemplate){
		"want a name":               func(r *RegisterTemplate) { r.Name = "" },
		"no placeholder":            func(r *RegisterTemplate) { r.HostName = "web" },
		"does not find":             func(r *RegisterTemplate) { r.HostName = "{id}" },
		"empty label":               func(r *RegisterTemplate) { r.ServiceName = "{service}..test" },
		"neither a service nor":     func(r *RegisterTemplate) { r.ServiceName, r.HostRecord, r.Reverse = "", "", nil },
		"give it a host_record":     func(r *RegisterTemplate) { r.HostRecord = "" },
		"not under in-addr.arpa":    func(r *RegisterTemplate) { r.Reverse = []Reverse{{Zone: "example.org."}} },
		"want 1m0s to":              func(r *RegisterTemplate) { r.ExpireAfter = time.Second },
		"fail_open_below":           func(r *RegisterTemplate) { r.Service.Safety.FailOpenBelow = 2 },
		"names a service or an end": func(r *RegisterTemplate) { r.Endpoint.Address = netip.MustParseAddr("192.0.2.1") },
	} {
		s := hosts()
		change(&s.Registers[0])
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want an error with %q", err, want)
		}
	}
	twice := hosts()
	twice.Registers = append(twice.Registers, twice.Registers[0])
	if twice.Validate() == nil {
		t.Error("two blocks of one name")
	}
}

func BenchmarkRegister(b *testing.B) {
	s := hosts()
	for i := range 1000 {
		v := Service{Name: MustParseName(fmt.Sprintf("s%d.example.org", i)), TTL: 30, Publish: []string{"bind"}, Safety: DefaultSafety()}
		for j := range 10 {
			v.Endpoints = append(v.Endpoints, Endpoint{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(j)}), Weight: 1, Checks: []Use{{Check: testCheck}}})
		}
		s.Services = append(s.Services, v)
	}
	f := newFleet(b, s)
	host := func(i int) Event {
		return reg(fmt.Sprintf("h%d-web%d-sfo", i, i%100), fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255))
	}
	var all Event
	for i := range 5000 {
		all.Registrations = append(all.Registrations, host(i).Registrations...)
	}
	all.Kind = EventRegister
	f.must(all)
	for i := 0; b.Loop(); i++ {
		f.must(host(5000 + i%1000))
	}
}
