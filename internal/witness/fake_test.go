package witness

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// world is a network of name servers that live in memory. Everything may be changed while it is asked.
type world struct {
	t  *testing.T
	mu sync.Mutex // guards what follows

	servers  map[netip.AddrPort]*fake
	flying   int
	most     int // questions under way at once
	asked    map[netip.AddrPort]int
	networks map[string]error // by "4" and "6": why this machine cannot ask
}

// fake is one name server.
type fake struct {
	zone    string
	serial  uint32
	records []string // without SOA, which every zone has
	rtt     time.Duration
	dead    bool                                  // nothing comes back
	noTCP   bool                                  //
	rcode   int                                   // for every question
	cut     bool                                  // what does not fit over UDP
	notAA   bool                                  //
	special map[string]func() *dns.Msg            // by "name TYPE"
	over    map[Transport]func([]string) []string // changes what is answered over a transport
}

func newWorld(t *testing.T) *world {
	return &world{t: t, servers: map[netip.AddrPort]*fake{}, asked: map[netip.AddrPort]int{}, networks: map[string]error{}}
}

func (w *world) add(addr string, f *fake) *fake {
	if f.rtt == 0 {
		f.rtt = 5 * time.Millisecond
	}
	w.servers[netip.MustParseAddrPort(addr)] = f
	return f
}

// change changes servers while others ask.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) exchange(ctx context.Context, network string, at netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	w.mu.Lock()
	w.flying++
	w.most = max(w.most, w.flying)
	w.asked[at]++
	f := w.servers[at]
	version := "6"
	if at.Addr().Is4() {
		version = "4"
	}
	err := w.networks[version]
	dead := f == nil || f.dead
	var rtt time.Duration
	if f != nil {
		rtt = f.rtt
	}
	w.mu.Unlock()
	defer w.change(func() { w.flying-- })
	if err != nil {
		return nil, err
	}
	if dead {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(rtt / 2):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	if f.noTCP && network == "tcp" {
		w.mu.Unlock()
		return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	}
	answer := f.answer(Transport(network), m)
	w.mu.Unlock()
	time.Sleep(rtt / 2)
	wire, err := answer.Pack()
	if err != nil {
		w.t.Errorf("the fake's answer: %v", err)
		return nil, err
	}
	return fits(m, wire)
}

func (f *fake) answer(t Transport, m *dns.Msg) *dns.Msg {
	q := m.Question[0]
	if make := f.special[strings.ToLower(q.Name)+" "+dns.TypeToString[q.Qtype]]; make != nil {
		a := make()
		a.Id, a.Response, a.Question = m.Id, true, m.Question
		return a
	}
	a := new(dns.Msg)
	a.SetReply(m)
	if a.Rcode = f.rcode; a.Rcode != 0 {
		return a
	}
	a.Authoritative = !f.notAA
	soa := rr(fmt.Sprintf("%s 300 IN SOA ns1.%[1]s host.%[1]s %d 3600 600 86400 30", f.zone, f.serial))
	exists := false
	texts := f.records
	if change := f.over[t]; change != nil {
		texts = change(slices.Clone(texts))
	}
	for _, r := range append([]dns.RR{soa}, rrs(texts)...) {
		if !strings.EqualFold(r.Header().Name, q.Name) {
			continue
		}
		exists = true
		if r.Header().Rrtype == q.Qtype {
			a.Answer = append(a.Answer, r)
		}
	}
	if f.cut && t == UDP && q.Qtype != dns.TypeSOA {
		a.Answer, a.Truncated = nil, true
		return a
	}
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{soa}
		if !exists {
			a.Rcode = dns.RcodeNameError
		}
	}
	return a
}

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return r
}

func rrs(texts []string) []dns.RR {
	var out []dns.RR
	for _, t := range texts {
		out = append(out, rr(t))
	}
	return out
}

const testZone = rota.Name("example.test.")

func set(name string, ttl uint32, data ...string) rota.RRset {
	return rota.RRset{Name: rota.MustParseName(name), Type: rota.TypeA, TTL: ttl, Data: data}
}

func expect(s rota.RRset, known ...string) Expect {
	return Expect{Key: s.Key(), TTL: s.TTL, Data: s.Data, Known: known}
}

// watchIn starts a witness in the world; the returned function ends it.
func watchIn(t *testing.T, w *world, subjects ...Subject) (wit *Witness, visible func() []Visible, end func()) {
	t.Helper()
	var mu sync.Mutex
	var all []Visible
	wit = New(Options{
		Exchange: w.exchange, System: func() []string { return nil },
		Visible: func(v Visible) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, v)
		},
	})
	wit.Set(subjects)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := wit.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return wit, func() []Visible {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}, func() {
			cancel()
			<-done
		}
}

// codes lists the findings of the first zone as "code server", sorted.
func codes(wit *Witness) []string {
	var out []string
	for _, z := range wit.Status() {
		for _, f := range z.Findings {
			out = append(out, strings.TrimSpace(string(f.Code)+" "+f.Server))
		}
	}
	return out
}
