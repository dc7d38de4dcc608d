package witness

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

const (
	ns1 = "192.0.2.51:53"
	ns2 = "192.0.2.52:53"
	ns6 = "[2001:db8::53]:53"
)

// pair is a zone with two servers that say the same.
func pair(w *world, records ...string) (a, b *fake) {
	a = w.add(ns1, &fake{zone: testZone.String(), serial: 1, records: records})
	b = w.add(ns2, &fake{zone: testZone.String(), serial: 1, records: records})
	return a, b
}

func subject(expects ...Expect) Subject {
	return Subject{Publisher: "bind", Zone: testZone, Servers: []string{ns1, ns2}, Expects: expects}
}

// moved is the change that takes 192.0.2.2 out of www.
func moved(event uint64, now time.Time) Change {
	return Change{
		Publisher: "bind", Zone: testZone, Event: event, Decided: now.Add(-200 * time.Millisecond), At: now,
		Expect: expect(set("www.example.test", 30, "192.0.2.1"), "192.0.2.1", "192.0.2.2"), Old: set("www.example.test", 300, "192.0.2.1", "192.0.2.2"), Why: "down",
	}
}

func before() []string {
	return []string{"www.example.test. 300 IN A 192.0.2.1", "www.example.test. 300 IN A 192.0.2.2"}
}

func after() []string { return []string{"www.example.test. 30 IN A 192.0.2.1"} }

// A change is visible when the last server shows it, and no sooner; caches are empty one old TTL after that.
func TestVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		wit, visible, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := codes(wit); len(got) > 0 {
			t.Fatalf("all is well, and findings are %q", got)
		}
		asked := w.asked[netip.MustParseAddrPort(ns2)]

		start := time.Now()
		w.change(func() { a.records, a.serial = after(), 2 })
		wit.Follow([]Change{moved(7, start)})
		time.Sleep(2900 * time.Millisecond)
		synctest.Wait()
		if got := visible(); len(got) > 0 {
			t.Fatalf("visible although one server does not show it: %+v", got)
		}
		if got := w.asked[netip.MustParseAddrPort(ns2)] - asked; got < 5 || got > 30 {
			t.Errorf("the server that does not show the change was asked %d times in 2.9 s", got)
		}
		w.change(func() { b.records, b.serial = after(), 2 })
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		got := visible()
		if len(got) != 1 || got[0].Event != 7 || len(got[0].Unseen) > 0 || got[0].Took < 3100*time.Millisecond || got[0].Took > 4200*time.Millisecond {
			t.Fatalf("visible: %+v", got)
		}
		h := wit.Status()[0].Visible
		if h.Sum != got[0].Took.Seconds() {
			t.Errorf("the histogram's sum is %v, want %v", h.Sum, got[0].Took.Seconds())
		}

		ps, err := wit.Ask(t.Context(), "www.example.test.", "")
		if err != nil || len(ps) != 1 || !ps[0].Everywhere || len(ps[0].Views) != 4 {
			t.Fatalf("asked: %+v %v", ps, err)
		}
		first := ps[0].Changes[0].First
		if len(first) != 4 || !strings.HasPrefix(first[0].Server, "192.0.2.51") || first[0].After < 200*time.Millisecond || first[0].After > 300*time.Millisecond || first[3].After != got[0].Took {
			t.Errorf("first seen: %+v", first)
		}
		l := ps[0].Leaving
		if len(l) != 1 || l[0].Data != "192.0.2.2" || !l[0].Proven || l[0].Gone.Sub(start) < 2900*time.Millisecond || l[0].Until.Sub(l[0].Gone) != 300*time.Second {
			t.Errorf("leaving: %+v", l)
		}
	})
}

// A dead server holds up nothing that is said of the others, and nothing is claimed of it.
func TestDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		b.dead = true
		wit, visible, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		time.Sleep(time.Minute)
		w.change(func() { a.records, a.serial = after(), 2 })
		wit.Follow([]Change{moved(7, time.Now())})
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := visible(); len(got) != 1 || !slices.Equal(got[0].Unseen, []string{ns2}) || got[0].Took > 300*time.Millisecond {
			t.Fatalf("visible: %+v", got)
		}
		if got := codes(wit); !slices.Equal(got, []string{"lame " + ns2}) {
			t.Errorf("findings are %q", got)
		}
		ps, err := wit.Ask(t.Context(), "www.example.test.", "")
		if err != nil || ps[0].Everywhere {
			t.Fatalf("everywhere, with a server that nobody saw: %v", err)
		}
		if l := ps[0].Leaving; len(l) != 1 || l[0].Proven || !slices.Equal(l[0].Unseen, []string{ns2}) || !l[0].Until.IsZero() {
			t.Errorf("leaving: %+v", l)
		}
		w.change(func() { b.dead, b.records, b.serial = false, after(), 2 })
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if got := codes(wit); len(got) > 0 {
			t.Errorf("the server is back, and findings are %q", got)
		}
	})
}

// What does not fit in a datagram is proven over TCP.
func TestTruncated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		a.cut, b.cut = true, true
		wit, visible, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		time.Sleep(time.Minute)
		wit.Follow([]Change{moved(7, time.Now())})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := visible(); len(got) > 0 {
			t.Fatalf("visible before it is there: %+v", got)
		}
		w.change(func() { a.records, b.records, a.serial, b.serial = after(), after(), 2, 2 })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := visible(); len(got) != 1 {
			t.Fatalf("visible: %+v", got)
		}
		ps, err := wit.Ask(t.Context(), "www.example.test.", "")
		if err != nil || !ps[0].Everywhere || !ps[0].Leaving[0].Proven {
			t.Errorf("asked: %+v %v", ps, err)
		}
	})
}

// Ten thousand changes at once are no storm: a sample of them is asked for, at a bounded rate.
func TestManyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10000
		w := newWorld(t)
		a, b := pair(w)
		var expects []Expect
		var changes []Change
		var records []string
		now := time.Now().Add(time.Minute)
		for i := range n {
			name := fmt.Sprintf("n%d.example.test", i)
			expects = append(expects, expect(set(name, 30, "192.0.2.2")))
			c := Change{Publisher: "bind", Zone: testZone, Event: 9, Decided: now, At: now, Expect: expect(set(name, 30, "192.0.2.1")), Old: set(name, 30, "192.0.2.2")}
			if i == n-1 {
				c.Why = "this one was explained"
			}
			changes = append(changes, c)
			records = append(records, name+". 30 IN A 192.0.2.1")
		}
		for _, f := range []*fake{a, b} {
			f.records = records[:0]
		}
		wit, visible, end := watchIn(t, w, subject(expects...))
		defer end()
		time.Sleep(time.Minute)
		w.change(func() { clear(w.asked); w.most = 0 })
		wit.Follow(changes)
		w.change(func() { a.records, b.records = records[n-sample:], records[n-sample:] }) // the fake is slow with all of them
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.most > inFlight {
			t.Errorf("%d questions were under way at once", w.most)
		}
		for at, asked := range w.asked {
			if asked > 400 { // two a round until it shows them
				t.Errorf("%s was asked %d times in a minute", at, asked)
			}
		}
		got := visible()
		if len(got) == 0 || got[0].Key.Name != "n9999.example.test." {
			t.Fatalf("the change that was explained was not proven first: %d", len(got))
		}
		w.change(func() {
			for i := range sample {
				a.records = append(a.records, records[i])
			}
			b.records = a.records
		})
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got := visible(); len(got) != sample {
			t.Errorf("%d changes were proven, want the %d that stand for all", len(got), sample)
		}
		if got := wit.Status()[0].Pending; got != 0 {
			t.Errorf("%d changes are waited for", got)
		}
	})
}

// Every kind of trouble has its code, is told of the server that has it, and ends when it ends.
func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(w *world, a, b *fake) // what goes wrong
		want []string
		text string
	}{
		{"stuck", func(_ *world, a, _ *fake) { a.serial = 5 }, []string{"stuck-secondary " + ns2}, "stays at serial 1"},
		{"refused", func(_ *world, _, b *fake) { b.rcode = dns.RcodeRefused }, []string{"lame " + ns2}, "REFUSED"},
		{"not authoritative", func(_ *world, _, b *fake) { b.notAA = true }, []string{"lame " + ns2}, "not authoritative"},
		{"no answer", func(_ *world, _, b *fake) { b.dead = true }, []string{"lame " + ns2}, "does not answer"},
		{"no TCP", func(_ *world, _, b *fake) { b.noTCP = true }, []string{"unreachable-tcp " + ns2}, "not over TCP"},
		{"foreign", func(_ *world, a, b *fake) {
			for _, f := range []*fake{a, b} {
				f.records, f.serial = append(before(), "www.example.test. 30 IN A 203.0.113.9"), 2
			}
		}, []string{"foreign-data " + ns1, "foreign-data " + ns2}, "203.0.113.9"},
		{"split", func(_ *world, _, b *fake) { b.records = after() }, []string{"split-view " + ns2}, "both at serial 1"},
		{"split by transport", func(_ *world, _, b *fake) {
			b.over = map[Transport]func([]string) []string{TCP: func([]string) []string { return after() }}
		}, []string{"split-view " + ns2}, "over tcp"},
		{"back", func(_ *world, a, b *fake) { a.serial, b.serial = 0xffffffff, 0xffffffff }, []string{"serial-back " + ns1, "serial-back " + ns2}, "older version"},
		{"zone above only", func(_ *world, _, b *fake) { b.zone, b.records = "test.", nil }, []string{"missing-zone " + ns2}, "has the zone above"},
		{"zone nowhere", func(_ *world, a, b *fake) { a.rcode, b.rcode = dns.RcodeRefused, dns.RcodeRefused }, []string{"lame " + ns1, "lame " + ns2, "missing-zone"}, "no server that answers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := pair(w, before()...)
				s := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"), "192.0.2.1", "192.0.2.2"))
				wit, _, end := watchIn(t, w, s)
				defer end()
				time.Sleep(time.Minute)
				good := [2]fake{*a, *b}
				w.change(func() { c.set(w, a, b) })
				time.Sleep(DefaultEvery + DefaultWithin + time.Minute)
				synctest.Wait()
				if got := codes(wit); !slices.Equal(got, c.want) {
					t.Fatalf("findings are %q, want %q", got, c.want)
				}
				text := ""
				for _, f := range wit.Status()[0].Findings {
					if f.Advice == "" || f.Since.IsZero() || f.Zone != testZone || f.Publisher != "bind" {
						t.Errorf("finding: %+v", f)
					}
					text += f.Text
				}
				if !strings.Contains(text, c.text) {
					t.Errorf("findings say %q, want %q", text, c.text)
				}
				w.change(func() { *a, *b = good[0], good[1] })
				time.Sleep(2*DefaultEvery + time.Minute)
				synctest.Wait()
				if got := codes(wit); len(got) > 0 {
					t.Errorf("it is over, and findings are %q", got)
				}
			})
		})
	}
}

// What passes within its time is not told: a server that follows late, one that refuses for a moment.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		wit, _, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		quiet := func(d time.Duration) {
			t.Helper()
			for range int(d / time.Second) {
				time.Sleep(time.Second)
				if got := codes(wit); len(got) > 0 {
					t.Fatalf("findings are %q", got)
				}
			}
		}
		quiet(time.Minute)
		w.change(func() { a.records, a.serial = after(), 2 })
		wit.Follow([]Change{moved(7, time.Now())})
		quiet(DefaultWithin - 10*time.Second)
		w.change(func() { b.records, b.serial = after(), 2 })
		quiet(time.Minute)
		w.change(func() { b.rcode = dns.RcodeRefused })
		wit.Follow([]Change{moved(8, time.Now())}) // everybody is asked now
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			if got := codes(wit); len(got) > 0 {
				t.Fatalf("findings are %q", got)
			}
		}
		w.change(func() { b.rcode = 0 })
		quiet(time.Minute)
	})
}

// Only what answers the question is an answer.
func TestFits(t *testing.T) {
	m := question("www.example.test.", dns.TypeA)
	for _, c := range []struct {
		name   string
		change func(a *dns.Msg)
		ok     bool
	}{
		{"the answer", func(*dns.Msg) {}, true},
		{"the name in another case", func(a *dns.Msg) { a.Question[0].Name = "WWW.example.TEST." }, true},
		{"an error without the question", func(a *dns.Msg) { a.Question, a.Rcode = nil, dns.RcodeServerFailure }, true},
		{"no question", func(a *dns.Msg) { a.Question = nil }, false},
		{"another id", func(a *dns.Msg) { a.Id++ }, false},
		{"a question", func(a *dns.Msg) { a.Response = false }, false},
		{"another opcode", func(a *dns.Msg) { a.Opcode = dns.OpcodeNotify }, false},
		{"another name", func(a *dns.Msg) { a.Question[0].Name = "w.example.test." }, false},
		{"another type", func(a *dns.Msg) { a.Question[0].Qtype = dns.TypeAAAA }, false},
		{"another class", func(a *dns.Msg) { a.Question[0].Qclass = dns.ClassCHAOS }, false},
	} {
		a := new(dns.Msg)
		a.SetReply(m)
		a.Question = slices.Clone(m.Question)
		c.change(a)
		wire, err := a.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fits(m, wire); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What cannot be seen from here is not called wrong: no route, or a family of addresses over which nobody answers.
func TestBlind(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(w *world)
	}{
		{"no route", func(w *world) { w.networks["6"] = syscall.ENETUNREACH }},
		{"black hole", func(w *world) { w.servers[netip.MustParseAddrPort(ns6)].dead = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				pair(w, before()...)
				w.add(ns6, &fake{zone: testZone.String(), serial: 1, records: before()})
				c.set(w)
				s := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2")))
				s.Servers = append(s.Servers, ns6)
				wit, _, end := watchIn(t, w, s)
				defer end()
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				if got := codes(wit); len(got) > 0 {
					t.Errorf("findings are %q", got)
				}
				if z := wit.Status()[0]; len(z.Blind) != 1 || !strings.Contains(z.Blind[0], ns6) {
					t.Errorf("blind: %q", z.Blind)
				}
			})
		})
	}
}

// A node that is cut off for an hour calls no server lame, neither then nor when it is back.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		wit, _, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		time.Sleep(time.Minute)
		w.change(func() { a.dead, b.dead = true, true })
		for range 3600 {
			time.Sleep(time.Second)
			if got := codes(wit); len(got) > 0 {
				t.Fatalf("cut off, and findings are %q", got)
			}
		}
		if z := wit.Status()[0]; len(z.Blind) != 2 {
			t.Errorf("blind: %q", z.Blind)
		}
		w.change(func() { a.dead, b.dead = false, false })
		for range 900 {
			time.Sleep(time.Second)
			if got := codes(wit); len(got) > 0 {
				t.Fatalf("back, and findings are %q", got)
			}
		}
		if z := wit.Status()[0]; len(z.Blind) > 0 {
			t.Errorf("blind: %q", z.Blind)
		}
	})
}

// What an address that was never followed left behind counts from when it is proven gone, with the TTL that it may have had.
func TestAskGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, b := pair(w, after()...)
		wit, _, end := watchIn(t, w, subject(expect(set("www.example.test", 60, "192.0.2.1"), "192.0.2.1", "192.0.2.2")))
		defer end()
		time.Sleep(time.Minute)
		w.change(func() { b.records = before() })
		ps, err := wit.Ask(t.Context(), "www.example.test.", "192.0.2.2")
		if err != nil || len(ps[0].Leaving) != 1 || ps[0].Leaving[0].Proven || !slices.Equal(ps[0].Leaving[0].Unseen, []string{ns2}) {
			t.Fatalf("one server still says it: %+v %v", ps, err)
		}
		w.change(func() {
			b.records = after()
			b.over = map[Transport]func([]string) []string{TCP: func([]string) []string { return before() }}
		})
		if ps, err = wit.Ask(t.Context(), "www.example.test.", "192.0.2.2"); err != nil || ps[0].Leaving[0].Proven {
			t.Fatalf("one server still says it over TCP: %+v %v", ps[0].Leaving, err)
		}
		w.change(func() { b.over = nil })
		now := time.Now()
		ps, err = wit.Ask(t.Context(), "www.example.test.", "192.0.2.2")
		l := ps[0].Leaving[0]
		if err != nil || !l.Proven || l.TTL != 300 || l.Until.Sub(now) < 300*time.Second || l.Until.Sub(now) > 301*time.Second {
			t.Fatalf("gone everywhere: %+v %v", l, err)
		}
		w.change(func() { b.records = before() })
		if ps, err = wit.Ask(t.Context(), "www.example.test.", "192.0.2.2"); err != nil || ps[0].Leaving[0].Proven {
			t.Fatalf("it is back: %+v %v", ps[0].Leaving, err)
		}
		if _, err = wit.Ask(t.Context(), "other.example.test.", ""); err == nil {
			t.Error("a name that is not kept has a propagation")
		}
	})
}

// Of servers that cannot be asked from here nothing is proven.
func TestOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pair(w, after()...)
		s := subject(expect(set("www.example.test", 30, "192.0.2.1")))
		s.Others = []string{"the name server of node b"}
		wit, visible, end := watchIn(t, w, s)
		defer end()
		time.Sleep(time.Minute)
		wit.Follow([]Change{moved(7, time.Now())})
		time.Sleep(time.Second)
		synctest.Wait()
		if got := visible(); len(got) != 1 || !slices.Equal(got[0].Unseen, s.Others) {
			t.Errorf("visible: %+v", got)
		}
		ps, err := wit.Ask(t.Context(), "www.example.test.", "192.0.2.2")
		if err != nil || ps[0].Everywhere || ps[0].Leaving[0].Proven || !slices.Equal(ps[0].Leaving[0].Unseen, s.Others) || len(ps[0].Blind) != 1 {
			t.Errorf("asked: %+v %v", ps, err)
		}
		if z := wit.Status()[0]; len(z.Blind)+len(z.Findings) > 0 {
			t.Errorf("it is an alarm: %+v", z)
		}
	})
}

// Whoever asks for one thing after the other whether it is gone fills no memory, and what truly left stays known.
func TestAskIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pair(w, after()...)
		wit, _, end := watchIn(t, w, subject(expect(set("www.example.test", 30, "192.0.2.1"))))
		defer end()
		wit.Follow([]Change{moved(7, time.Now())})
		var ps []Propagation
		for i := range 3 * maxLeaving {
			var err error
			if ps, err = wit.Ask(t.Context(), "www.example.test.", fmt.Sprintf("198.51.100.%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		all := ps[0].Leaving
		if n := len(all); n > maxLeaving || all[0].Data != "192.0.2.2" || all[n-1].Data != fmt.Sprintf("198.51.100.%d", 3*maxLeaving-1) {
			t.Errorf("%d are remembered, from %s to %s", n, all[0].Data, all[n-1].Data)
		}
	})
}

// A TTL that was lowered before something left counts with the longer one, for caches that took it then.
func TestLoweredTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := pair(w, before()...)
		wit, visible, end := watchIn(t, w, subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2"))))
		defer end()
		time.Sleep(time.Minute)
		low := set("www.example.test", 30, "192.0.2.1", "192.0.2.2")
		step := func(event uint64, records []string, c Change) {
			c.Publisher, c.Zone, c.Event, c.Decided, c.At = "bind", testZone, event, time.Now(), time.Now()
			already := len(visible())
			wit.Follow([]Change{c})
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if len(visible()) > already {
				t.Errorf("event %d is visible before it is there", event)
			}
			w.change(func() { a.records, b.records, a.serial, b.serial = records, records, uint32(event), uint32(event) })
			time.Sleep(3 * time.Second)
			synctest.Wait()
		}
		lowered := time.Now().Add(3 * time.Second)
		step(2, []string{"www.example.test. 30 IN A 192.0.2.1", "www.example.test. 30 IN A 192.0.2.2"}, Change{Expect: expect(low), Old: set("www.example.test", 300, low.Data...)})
		time.Sleep(time.Minute)
		step(3, after(), Change{Expect: expect(set("www.example.test", 30, "192.0.2.1")), Old: low})
		if got := visible(); len(got) != 2 {
			t.Fatalf("visible: %+v", got)
		}
		ps, err := wit.Ask(t.Context(), "www.example.test.", "192.0.2.2")
		if err != nil || len(ps[0].Leaving) != 1 {
			t.Fatalf("%+v %v", ps, err)
		}
		if l := ps[0].Leaving[0]; !l.Proven || l.Until.Sub(lowered) < 300*time.Second || l.Until.Sub(lowered) > 302*time.Second {
			t.Errorf("caches hold %s until %v after the TTL was lowered from 300 s", l.Data, l.Until.Sub(lowered))
		}
	})
}

// Servers are found from the parent's delegation and the zone's own records; what the two disagree about is named.
func TestDelegation(t *testing.T) {
	key := &dns.DNSKEY{Hdr: dns.RR_Header{Name: testZone.String(), Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 300}, Flags: 257, Protocol: 3, Algorithm: dns.ED25519}
	if _, err := key.Generate(256); err != nil {
		t.Fatal(err)
	}
	wrong := key.ToDS(dns.SHA256)
	wrong.Digest = strings.Repeat("0", 64)
	for _, c := range []struct {
		name  string
		own   []string // NS of the zone itself
		same  bool     // the parent's server has the zone too
		ds    *dns.DS
		keys  []string
		want  []string
		count int // servers
	}{
		{name: "as it should be", own: []string{"ns1", "ns2"}, count: 2},
		{name: "parent and zone at one server", own: []string{"ns1", "ns2"}, same: true, count: 2},
		{name: "signed", own: []string{"ns1", "ns2"}, ds: key.ToDS(dns.SHA256), keys: []string{key.String()}, count: 2},
		{name: "another server in the zone", own: []string{"ns1", "ns3"}, want: []string{"delegation-mismatch", "lame ns3.example.test 192.0.2.53:53"}, count: 3},
		{name: "a server without an address", own: []string{"ns1", "ns2", "ns4"}, want: []string{"delegation-mismatch", "lame ns4.example.test"}, count: 2},
		{name: "wrong DS", own: []string{"ns1", "ns2"}, ds: wrong, keys: []string{key.String()}, want: []string{"wrong-ds ns1.example.test " + ns1, "wrong-ds ns2.example.test " + ns2}, count: 2},
		{name: "DS and no key", own: []string{"ns1", "ns2"}, ds: key.ToDS(dns.SHA256), want: []string{"wrong-ds ns1.example.test " + ns1, "wrong-ds ns2.example.test " + ns2}, count: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				records := append(before(), "ns1.example.test. 300 IN A 192.0.2.51", "ns2.example.test. 300 IN A 192.0.2.52", "ns3.example.test. 300 IN A 192.0.2.53")
				for _, n := range c.own {
					records = append(records, "example.test. 300 IN NS "+n+".example.test.")
				}
				records = append(records, c.keys...)
				pair(w, records...)
				referral := func() *dns.Msg {
					if c.same {
						m := &dns.Msg{Answer: rrs([]string{"example.test. 300 IN NS ns1.example.test.", "example.test. 300 IN NS ns2.example.test."})}
						m.Authoritative = true
						return m
					}
					return &dns.Msg{
						Ns: rrs([]string{"example.test. 300 IN NS ns1.example.test.", "example.test. 300 IN NS ns2.example.test."}),
						Extra: rrs([]string{
							"ns1.example.test. 300 IN A 192.0.2.51", "evil.test. 300 IN A 203.0.113.66", "ns3.example.test. 300 IN A 203.0.113.66",
						}),
					}
				}
				w.add("192.0.2.1:53", &fake{zone: "test.", serial: 1, special: map[string]func() *dns.Msg{
					"example.test. NS": referral,
					"example.test. DS": func() *dns.Msg {
						m := &dns.Msg{}
						m.Authoritative = true
						if c.ds != nil {
							m.Answer = []dns.RR{c.ds}
						}
						return m
					},
				}})
				w.add("192.0.2.99:53", &fake{zone: "example.test.", records: append(records, "ns.test. 300 IN A 192.0.2.1"), special: map[string]func() *dns.Msg{
					"test. NS": func() *dns.Msg { return &dns.Msg{Answer: rrs([]string{"test. 300 IN NS ns.test."})} },
				}})
				s := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2")))
				s.Servers, s.Resolvers = nil, []string{"192.0.2.99:53"}
				wit, _, end := watchIn(t, w, s)
				defer end()
				time.Sleep(time.Minute)
				synctest.Wait()
				z := wit.Status()[0]
				if len(z.Servers) != c.count || len(z.Blind) > 0 {
					t.Fatalf("servers: %+v, blind: %q", z.Servers, z.Blind)
				}
				if got := codes(wit); !slices.Equal(got, c.want) {
					t.Errorf("findings are %q, want %q; blind: %q", got, c.want, z.Blind)
				}
				ps, err := wit.Ask(t.Context(), "www.example.test.", "192.0.2.9")
				if err != nil || ps[0].Leaving[0].Proven != (c.count == 2) {
					t.Errorf("asked: %+v %v", ps[0].Leaving, err)
				}
			})
		})
	}
}

// A zone that only this network knows is not said to be missing; one that nobody knows is.
func TestPrivateZone(t *testing.T) {
	for _, known := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			pair(w, append(before(), "example.test. 300 IN NS ns1.example.test.", "example.test. 300 IN NS ns2.example.test.")...)
			denied := func() *dns.Msg {
				m := &dns.Msg{}
				m.Authoritative, m.Rcode = true, dns.RcodeNameError
				return m
			}
			w.add("192.0.2.1:53", &fake{zone: "test.", serial: 1, special: map[string]func() *dns.Msg{"example.test. NS": denied}})
			resolver := w.add("192.0.2.99:53", &fake{
				zone: "example.test.", special: map[string]func() *dns.Msg{
					"test. NS": func() *dns.Msg { return &dns.Msg{Answer: rrs([]string{"test. 300 IN NS ns.test."})} },
				},
				records: []string{
					"ns.test. 300 IN A 192.0.2.1", "example.test. 300 IN NS ns1.example.test.", "example.test. 300 IN NS ns2.example.test.",
					"ns1.example.test. 300 IN A 192.0.2.51", "ns2.example.test. 300 IN A 192.0.2.52",
				},
			})
			if !known {
				resolver.records = resolver.records[:1]
			}
			s := subject(expect(set("www.example.test", 300, "192.0.2.1", "192.0.2.2")))
			s.Servers, s.Origins, s.Resolvers = nil, []string{ns1}, []string{"192.0.2.99:53"}
			wit, _, end := watchIn(t, w, s)
			defer end()
			time.Sleep(time.Minute)
			synctest.Wait()
			z, servers, want := wit.Status()[0], 1, []string{"missing-zone"}
			if known {
				servers, want = 2, nil
			}
			if got := codes(wit); len(z.Servers) != servers || !slices.Equal(got, want) || known && len(z.Blind) != 1 {
				t.Errorf("known %v: findings %q, servers %+v, blind: %q", known, got, z.Servers, z.Blind)
			}
		})
	}
}

// When the zone's servers cannot be found, where the publisher writes is asked all the same, and is no proof for the others.
func TestPartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pair(w, after()...)
		s := subject(expect(set("www.example.test", 30, "192.0.2.1")))
		s.Servers, s.Origins = nil, []string{ns1}
		wit, visible, end := watchIn(t, w, s)
		defer end()
		time.Sleep(time.Minute)
		wit.Follow([]Change{moved(7, time.Now())})
		time.Sleep(time.Second)
		synctest.Wait()
		if got := visible(); len(got) != 1 || !slices.Equal(got[0].Unseen, []string{notFound}) {
			t.Errorf("visible: %+v", got)
		}
		ps, err := wit.Ask(t.Context(), "www.example.test.", "192.0.2.2")
		if err != nil || ps[0].Everywhere || ps[0].Leaving[0].Proven || len(ps[0].Blind) == 0 || len(ps[0].Findings) > 0 {
			t.Errorf("asked: %+v %v", ps, err)
		}
	})
}

// Publishers of one service that hold different things are told of after a patience, and one that was never read takes no part.
func TestEquals(t *testing.T) {
	a := Holding{Service: "www.example.test.", Publisher: "bind", Sets: []rota.RRset{set("www.example.test", 30, "192.0.2.1")}}
	b := a
	b.Publisher, b.Sets = "cloud", []rota.RRset{set("www.example.test", 300, "192.0.2.1")}
	var e Equals
	now := time.Unix(1e9, 0)
	if got := e.Look([]Holding{a, b}, now, 0); len(got) > 0 {
		t.Errorf("only the TTL differs, and they disagree: %+v", got)
	}
	b.Sets = []rota.RRset{set("www.example.test", 30, "192.0.2.1", "192.0.2.2")}
	if got := e.Look([]Holding{a, b}, now, time.Minute); len(got) > 0 {
		t.Errorf("before the patience ends: %+v", got)
	}
	got := e.Look([]Holding{b, a}, now.Add(time.Minute), time.Minute)
	if len(got) != 1 || !got[0].Since.Equal(now) || !slices.Equal(got[0].Publishers, []string{"bind", "cloud"}) ||
		got[0].Text != "bind has www.example.test A 192.0.2.1, cloud has www.example.test A 192.0.2.1, www.example.test A 192.0.2.2" {
		t.Errorf("disagreement: %+v", got)
	}
	b.Unread = true
	if got := e.Look([]Holding{a, b}, now.Add(2*time.Minute), 0); len(got) > 0 {
		t.Errorf("one was never read: %+v", got)
	}
}

// FuzzFits: whatever comes, it is an answer to the question or an error, and reading it is bounded.
func FuzzFits(f *testing.F) {
	m := question("www.example.test.", dns.TypeA)
	m.Id = 7
	a := new(dns.Msg)
	a.SetReply(m)
	a.Answer = rrs(before())
	wire, err := a.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add([]byte{0, 7, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, packet []byte) {
		answer, err := fits(m, packet)
		if err != nil {
			return
		}
		if answer.Id != 7 || !answer.Response {
			t.Fatalf("took %v", answer)
		}
		if got := read(answer, rota.Key{Name: "www.example.test.", Type: rota.TypeA}); len(got.Data) > maxData {
			t.Fatalf("%d records", len(got.Data))
		}
	})
}
