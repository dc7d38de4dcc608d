package publish

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// signer signs a message as one of a transfer, over those before it that have no signature.
type signer struct{ spliced }

func (s signer) Generate(msg []byte, t *dns.TSIG) ([]byte, error) {
	return s.Key.Generate(slices.Concat(msg[:s.at], s.with, msg[s.at:]), t)
}

// part is one message of a transfer.
type part struct {
	records  []string
	unsigned bool
	spoil    func([]byte) []byte
	alter    func(*dns.Msg)
}

// transferring answers one request with a transfer, and closes.
func transferring(t *testing.T, k *Key, parts []part) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var size [2]byte
		wire, err := receive(c, true, size[:])
		q := new(dns.Msg)
		if err != nil || q.Unpack(wire) != nil {
			return
		}
		mac, begun := q.IsTsig().MAC, false
		var unsaid []byte
		for _, p := range parts {
			m := new(dns.Msg)
			m.SetReply(q)
			for _, text := range p.records {
				rr, err := dns.NewRR(text)
				if err != nil {
					t.Error(err)
					return
				}
				m.Answer = append(m.Answer, rr)
			}
			if p.alter != nil {
				p.alter(m)
			}
			var out []byte
			if p.unsigned {
				out, err = m.Pack()
			} else {
				m.SetTsig(k.name(), k.algorithm(), fudge, time.Now().Unix())
				out, mac, err = dns.TsigGenerateWithProvider(m, signer{spliced{k, 2 + len(mac)/2, unsaid}}, mac, begun)
				begun, unsaid = true, nil
			}
			if err != nil {
				t.Error(err)
				return
			}
			if p.unsigned {
				unsaid = append(unsaid, out...)
			}
			if p.spoil != nil {
				out = p.spoil(out)
			}
			if send(c, true, out) != nil {
				return
			}
		}
	}()
	return l.Addr().String()
}

// TestTransfer is what may be believed of a transfer: all of it or nothing.
func TestTransfer(t *testing.T) {
	const soa, other = "example.test. 60 IN SOA ns. h. 7 1 1 1 1", "example.test. 60 IN SOA ns. h. 8 1 1 1 1"
	a := func(i int) string { return fmt.Sprintf("s%d.example.test. 30 IN A 192.0.2.%d", i, i) }
	plain := func(records ...string) part { return part{records: records, unsigned: true} }
	signed := func(records ...string) part { return part{records: records} }
	long := []part{signed(soa)}
	for range transferUnsaid + 1 {
		long = append(long, plain(a(1)))
	}
	flip := func(w []byte) []byte { return bytes.Replace(w, []byte{192, 0, 2, 1}, []byte{192, 0, 2, 9}, 1) }
	k := &Key{Name: "rota", Secret: "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="}
	cases := []struct {
		name  string
		parts []part
		want  int // RRsets; -1: it is not believed
		text  string
	}{
		{"one message", []part{signed(soa, a(1), a(2), soa)}, 2, ""},
		{"each signed", []part{signed(soa), signed(a(1)), signed(a(2)), signed(a(3)), signed(soa)}, 3, ""},
		{"signed first and last", []part{signed(soa), plain(a(1)), plain(a(2)), plain(a(3)), signed(a(4), soa)}, 4, ""},
		{"signed now and then", []part{signed(soa), plain(a(1)), signed(a(2)), plain(a(3)), plain(a(4)), signed(soa)}, 4, ""},
		{"99 without a signature", append(slices.Clone(long[:transferUnsaid+1]), signed(soa)), 1, ""},
		{"100 without a signature", append(slices.Clone(long), signed(soa)), -1, "not signed where it must be"},
		{"the last is not signed", []part{signed(soa), signed(a(1)), plain(soa)}, -1, "not signed where it must be"},
		{"the first is not signed", []part{plain(soa), signed(a(1), soa)}, -1, "not signed where it must be"},
		{"an unsigned one was changed", []part{signed(soa), {records: []string{a(1)}, unsigned: true, spoil: flip}, signed(soa)}, -1, "wrong signature"},
		{"a signed one was changed", []part{signed(soa), {records: []string{a(1)}, spoil: flip}, signed(soa)}, -1, ""},
		{"cut", []part{signed(soa), signed(a(1))}, -1, "closed the connection"},
		{"refused", []part{{alter: func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }}}, -1, "REFUSED"},
		{"refused half way", []part{signed(soa, a(1)), {alter: func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }}}, -1, "SERVFAIL"},
		{"no records", []part{signed(soa), signed(), signed(soa)}, -1, "without records"},
		{"no SOA first", []part{signed(a(1), soa, soa)}, -1, "begin with the zone's SOA"},
		{"another serial in the end", []part{signed(soa, a(1), other)}, -1, "another serial"},
		{"records behind the end", []part{signed(soa, soa, a(1))}, -1, "behind the last"},
		{"names of another zone", []part{signed(soa, "www.example.org. 30 IN A 192.0.2.1", soa)}, -1, "not of the zone"},
		{"another id", []part{{records: []string{soa, soa}, alter: func(m *dns.Msg) { m.Id++ }}}, -1, "no answer to the request"},
		{"another question", []part{{records: []string{soa, soa}, alter: func(m *dns.Msg) { m.Question[0].Name = "example.org." }}}, -1, "no answer to the request"},
		{"not an answer", []part{{records: []string{soa, soa}, alter: func(m *dns.Msg) { m.Response = false }}}, -1, "no answer to the request"},
		{"junk", []part{{records: []string{soa, soa}, spoil: func([]byte) []byte { return []byte{1, 2, 3} }}}, -1, "cannot be read"},
		{"too much", append([]part{signed(soa)}, slices.Repeat([]part{signed(slices.Repeat([]string{a(1)}, 60)...)}, 4)...), -1, "much larger"},
	}
	var keys []rota.Key
	for i := range 10 {
		keys = append(keys, rota.Key{Name: rota.Name(fmt.Sprintf("s%d.example.test.", i)), Type: rota.TypeA})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := &road{server: transferring(t, k, c.parts), key: k, timeout: 10 * time.Second}
			got, err := r.transfer(t.Context(), "example.test.", keys)
			if (err != nil) != (c.want < 0) || err == nil && len(got.Sets) != c.want {
				t.Errorf("%v, %v, want %d RRsets", got, err, c.want)
			}
			if err != nil && (!strings.Contains(err.Error(), c.text) || len(got.Sets) > 0) {
				t.Errorf("%v, %v, want nothing and an error of %q", got, err, c.text)
			}
			if c.name == "too much" && !errors.Is(err, errCostly) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A zone is worth a transfer when many of its names were asked for before, and never when that is not wanted.
func TestTransferWorth(t *testing.T) {
	var keys []rota.Key
	for i := range transferFrom {
		keys = append(keys, rota.Key{Name: rota.Name(fmt.Sprintf("s%d.example.test.", i)), Type: rota.TypeA})
	}
	for off, want := range map[bool]int{false: transferFrom, true: 0} {
		b, err := NewRFC2136(RFC2136Options{Servers: []string{"192.0.2.53"}, NoTransfer: off})
		if err != nil {
			t.Fatal(err)
		}
		for round, want := range []int{0, want} {
			whole, single := b.whole.worth("example.test.", keys)
			if len(whole) != want || len(whole)+len(single) != len(keys) {
				t.Errorf("off %v, round %d: %d of %d by a transfer, want %d", off, round, len(whole), len(keys), want)
			}
			b.whole.saw(keys, nil)
		}
	}
}

// What stands above a name in the zone is in its way.
func TestTransferBlocked(t *testing.T) {
	in := intake{zone: "example.test.", most: 100, sets: map[rota.Key]*rota.RRset{}, cuts: map[rota.Name]dns.RR{}}
	var keys []rota.Key
	for _, n := range []rota.Name{"example.test.", "www.example.test.", "a.sub.example.test.", "sub.example.test.", "d.example.test.", "x.y.d.example.test.", "www.other.test."} {
		keys = append(keys, rota.Key{Name: n, Type: rota.TypeA})
		in.want(keys[len(keys)-1])
	}
	var rrs []dns.RR
	for _, text := range []string{
		"example.test. 60 IN SOA ns. h. 7 1 1 1 1", "example.test. 60 IN NS ns.", "sub.example.test. 60 IN NS ns.sub.example.test.",
		"d.example.test. 60 IN DNAME other.", "d.example.test. 60 IN A 192.0.2.1", "www.example.test. 9 IN A 192.0.2.2", "www.example.test. 5 IN A 192.0.2.1",
		"example.test. 60 IN SOA ns. h. 7 1 1 1 1",
	} {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	if err := in.take(rrs); err != nil || !in.done {
		t.Fatal(err, in.done)
	}
	got := in.reading("server", keys)
	for n, code := range map[rota.Name]Code{"a.sub.example.test.": CodeDelegated, "sub.example.test.": CodeDelegated, "x.y.d.example.test.": CodeDNAME} {
		if r := got.Blocked[n]; r == nil || r.Code != code {
			t.Errorf("%s: %v, want %s", n, r, code)
		}
	}
	if text := fmt.Sprint(got.Sets); len(got.Blocked) != 3 || text != "[www.example.test 5 A 192.0.2.1 192.0.2.2 d.example.test 60 A 192.0.2.1]" {
		t.Errorf("%s, %v", text, got.Blocked)
	}
}

// manyNames reads a large plan by a transfer; when it is spoilt the names are asked one by one, and nothing is written.
func manyNames(t *testing.T, x *target) {
	var services []rota.Service
	for i := range transferFrom + 20 {
		services = append(services, service(fmt.Sprintf("s%04d.example.test", i), "192.0.2.1", "192.0.2.2"))
	}
	services = append(services, service("a.sub.example.test", "192.0.2.1")) // below a delegation
	b := x.backend(func(o *RFC2136Options) { o.Timeout = 10 * time.Second }).(*RFC2136)
	w := newWorld(t, services...).up("192.0.2.1", "192.0.2.2")
	run(t, quick(w, b), 1)
	holds := func(want ...string) func() bool {
		return func() bool {
			return x.holds("s0000.example.test.", dns.TypeA, want...)() && x.holds(fmt.Sprintf("s%04d.example.test.", transferFrom+19), dns.TypeA, want...)()
		}
	}
	refused := func() bool {
		b.whole.mu.Lock()
		defer b.whole.mu.Unlock()
		return len(b.whole.not) > 0
	}
	eventually(t, "all", holds("192.0.2.1", "192.0.2.2"))
	w.down("192.0.2.1")
	eventually(t, "one less", holds("192.0.2.2"))
	if refused() {
		t.Error("no transfer worked")
	}
	before := x.others()
	x.road.Set(func(p peers.Packet) [][]byte {
		if !p.Query && p.TCP && len(p.Wire) > 2000 {
			return [][]byte{p.Wire[:len(p.Wire)/2]}
		}
		return [][]byte{p.Wire}
	})
	w.apply(rota.Event{Kind: rota.EventTick})
	eventually(t, "the transfer fails", refused)
	w.up("192.0.2.1")
	eventually(t, "both again", holds("192.0.2.1", "192.0.2.2"))
	w.down("192.0.2.1")
	eventually(t, "one less again", holds("192.0.2.2"))
	eventually(t, "all as before", func() bool { return slices.Equal(before, x.others()) })
}

// Whatever a message of a transfer holds, it is taken or refused.
func FuzzTransfer(f *testing.F) {
	m := new(dns.Msg)
	for _, text := range []string{"example.test. 60 IN SOA ns. h. 7 1 1 1 1", "www.example.test. 5 IN A 192.0.2.1", "x.example.test. 5 IN DNAME y.", "example.test. 60 IN SOA ns. h. 7 1 1 1 1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	wire, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	k := rota.Key{Name: "www.example.test.", Type: rota.TypeA}
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		in := intake{zone: "example.test.", most: 50, sets: map[rota.Key]*rota.RRset{}, cuts: map[rota.Name]dns.RR{}}
		in.want(k)
		if err := in.take(m.Answer); err == nil && in.done && len(m.Answer) < 2 {
			t.Errorf("a transfer of %d records is whole", len(m.Answer))
		}
		for _, s := range in.reading("", []rota.Key{k}).Sets {
			if s.Key() != k || len(s.Data) == 0 {
				t.Errorf("it says %v", s)
			}
		}
	})
}
