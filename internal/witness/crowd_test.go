package witness

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// TestCrowd: thousands of zones at one server are looked at no faster than it may be asked, and a change in one of them is seen at once
// all the same.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const at = "192.0.2.53:53"
		w := newWorld(t)
		f := w.add(at, &fake{zone: testZone.String(), serial: 1, records: []string{"www.example.test. 300 IN A 192.0.2.1"}})
		was, is := set("www.example.test", 300, "192.0.2.1"), set("www.example.test", 300, "192.0.2.2")
		subjects := []Subject{{Publisher: "p", Zone: testZone, Servers: []string{at}, Expects: []Expect{expect(was)}}}
		for i := range 2000 { // which it does not have, so that they are looked at often
			subjects = append(subjects, Subject{Publisher: "p", Zone: rota.MustParseName(fmt.Sprintf("z%d.test", i)), Servers: []string{at}})
		}
		begun := time.Now()
		wit, visible, end := watchIn(t, w, subjects...)
		defer end()
		time.Sleep(time.Minute)
		w.change(func() { f.records, f.serial = []string{"www.example.test. 300 IN A 192.0.2.2"}, 2 })
		now := time.Now()
		wit.Follow([]Change{{Publisher: "p", Zone: testZone, Event: 1, Decided: now, At: now, Old: was, Expect: expect(is)}})
		time.Sleep(5 * time.Second)
		if got := visible(); len(got) != 1 || got[0].Took > 5*time.Second {
			t.Errorf("seen: %+v", got)
		}
		w.change(func() {
			if n, most := w.asked[netip.MustParseAddrPort(at)], perServer*(1+int(time.Since(begun).Seconds())); n > most {
				t.Errorf("asked %d times, want at most %d", n, most)
			}
		})
	})
}

// TestNotAsked: that there was no time to ask says nothing of a server.
func TestNotAsked(t *testing.T) {
	w := New(Options{Exchange: func(context.Context, string, netip.AddrPort, *dns.Msg) (*dns.Msg, error) { return new(dns.Msg), nil }})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	at := netip.MustParseAddrPort("192.0.2.53:53")
	var err error
	for range 10 * perServer {
		if _, _, err = w.exchange(ctx, UDP, at, question(testZone, dns.TypeSOA)); err != nil {
			break
		}
	}
	if err == nil || troubleOf(err) != Blind {
		t.Errorf("%v: %s", err, troubleOf(err))
	}
}

// TestSearches: the servers of thousands of zones are found one after the other, although a resolver may not be asked for all at once.
func TestSearches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const n = 1000
		resolver := map[string]func() *dns.Msg{
			"test. NS": func() *dns.Msg { return &dns.Msg{Answer: rrs([]string{"test. 300 IN NS ns.test."})} },
		}
		parent := map[string]func() *dns.Msg{}
		var subjects []Subject
		for i := range n {
			zone := fmt.Sprintf("z%d.test.", i)
			parent[zone+" NS"] = func() *dns.Msg { return &dns.Msg{Ns: rrs([]string{zone + " 300 IN NS ns1.example.test."})} }
			subjects = append(subjects, Subject{Publisher: "p", Zone: rota.MustParseName(zone), Resolvers: []string{"192.0.2.99:53"}})
		}
		w.add("192.0.2.1:53", &fake{zone: "test.", special: parent})
		w.add("192.0.2.51:53", &fake{zone: "z0.test."})
		w.add("192.0.2.99:53", &fake{zone: "example.test.", special: resolver, records: []string{"ns.test. 300 IN A 192.0.2.1", "ns1.example.test. 300 IN A 192.0.2.51"}})
		wit, _, end := watchIn(t, w, subjects...)
		defer end()
		time.Sleep(5 * time.Minute)
		found := 0
		for _, z := range wit.Status() {
			found += min(1, len(z.Servers))
		}
		if found < n {
			t.Errorf("the servers of %d zones were found, want %d", found, n)
		}
	})
}
