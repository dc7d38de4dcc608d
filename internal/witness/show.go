package witness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// ZoneStatus is how one subject stands.
type ZoneStatus struct {
	Publisher string
	Zone      rota.Name
	Servers   []ServerStatus // sorted by address
	Findings  []Finding
	Blind     []string // what cannot be seen from here, for people
	Pending   int      // changes that not every server shows yet
	Oldest    time.Time
	Visible   Histogram // from the decision to visible everywhere
}

// ServerStatus is how one server stands.
type ServerStatus struct {
	Server
	State  string // one of States
	Serial uint32
	Known  bool // Serial was seen
	Asked  time.Time
	RTT    time.Duration
}

// States lists how a server may stand.
func States() []string { return []string{"in-step", "behind", "lame", "silent", "blind", "unasked"} }

func (z *zone) show() ZoneStatus {
	z.mu.Lock()
	defer z.mu.Unlock()
	out := ZoneStatus{
		Publisher: z.id.publisher, Zone: z.id.zone, Findings: slices.Clone(z.findings), Blind: slices.Clone(z.delegation.Blind),
		Pending: len(z.waiting), Visible: Histogram{z.took.Bounds, slices.Clone(z.took.Counts), z.took.Sum},
	}
	for _, f := range z.waiting {
		if out.Oldest.IsZero() || f.told.Before(out.Oldest) {
			out.Oldest = f.told
		}
	}
	if z.lost != "" {
		out.Blind = append(out.Blind, z.lost)
	}
	v := view{servers: slices.SortedFunc(maps.Values(z.servers), func(a, b *watched) int { return a.Addr.Compare(b.Addr) })}
	_, top := v.newest()
	for _, s := range v.servers {
		x := ServerStatus{Server: s.Server, State: "unasked", Asked: s.sight[UDP].At, RTT: s.sight[UDP].RTT}
		x.Serial, x.Known = s.serial()
		udp, tcp := s.sight[UDP], s.sight[TCP]
		quiet := func(x *Sight) bool { return x.Trouble == Silent || x.Trouble == Blind }
		switch {
		case udp.At.IsZero():
		case quiet(udp) && quiet(tcp) && (s.alone || udp.Trouble == Blind && tcp.Trouble == Blind) && !z.told(s):
			x.State = "blind"
			out.Blind = append(out.Blind, fmt.Sprintf("nobody answers over %s here: whether %s does cannot be seen", reaches[reach(s.Addr.Addr())], s))
		case udp.Trouble != "" && tcp.Trouble != "":
			x.State = "silent"
		case !x.Known:
			x.State = "lame"
		case x.Serial != top:
			x.State = "behind"
		default:
			x.State = "in-step"
		}
		out.Servers = append(out.Servers, x)
	}
	return out
}

// told reports whether a server was found not to answer while others did.
func (z *zone) told(s *watched) bool {
	h := z.conditions[condition{code: CodeLame, addr: s.Addr}]
	return h != nil && h.shown
}

// Propagation is what the world sees of one name in one zone, asked for just now, and what caches may hold.
type Propagation struct {
	Name       rota.Name
	Publisher  string
	Zone       rota.Name
	At         time.Time
	Want       []Expect // of the name
	Views      []View   // sorted by server and transport
	Public     []View   // of the resolvers that are configured; their TTL is what remains
	Findings   []Finding
	Blind      []string
	Changes    []Seen
	Leaving    []Leaving
	Everywhere bool // every server was seen to say what is wanted, over every transport that it answers, just now
}

// View is what one server says of one RRset over one transport.
type View struct {
	Server    Server
	Transport Transport
	Serial    uint32
	Known     bool // Serial was seen
	Key       rota.Key
	Answer    Answer
	Agrees    bool
	Trouble   Trouble // empty: there is an answer
	Text      string
}

// Seen is how far one change of the name came.
type Seen struct {
	Key     rota.Key
	Event   uint64
	Decided time.Time
	First   []First       // in order of time
	Visible time.Time     // zero: not everywhere yet
	Took    time.Duration // from the decision, with Visible
	Unseen  []string      // servers that did not answer
}

// First is when a server was first seen to say what a change asked for.
type First struct {
	Server    string
	Transport Transport
	After     time.Duration // from the decision
}

// Leaving is data that left the name.
type Leaving struct {
	Key    rota.Key
	Data   string
	TTL    uint32    // seconds, the longest it was seen with
	Gone   time.Time // when the last server was first seen without it; zero: no server was yet
	Until  time.Time // when the last honest cache has forgotten it; only with Proven
	Proven bool      // every server was seen without it
	Unseen []string  // servers that still answer it, or of which that cannot be said
}

// ErrUnwatched says that no subject holds a name.
var ErrUnwatched = errors.New("no zone that is watched holds the name")

// Ask asks every server for a name now, over UDP and TCP, and the public resolvers that are configured. With gone, an address or other
// data, it proves that this is not answered any more: what was there before nobody looked counts as gone from now on, so that the time
// caches need is never too short. The error is ErrUnwatched or ctx's.
func (w *Witness) Ask(ctx context.Context, name rota.Name, gone string) ([]Propagation, error) {
	var out []Propagation
	for _, z := range w.watched() {
		if keys := z.keysOf(name); len(keys) > 0 {
			out = append(out, z.ask(ctx, name, keys, gone))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: %w", name.Short(), ErrUnwatched)
	}
	return out, ctx.Err()
}

// keysOf lists the RRsets of a name that are kept.
func (z *zone) keysOf(name rota.Name) []rota.Key {
	z.mu.Lock()
	defer z.mu.Unlock()
	i, _ := slices.BinarySearchFunc(z.keys, rota.Key{Name: name}, compareKeys)
	var out []rota.Key
	for ; i < len(z.keys) && z.keys[i].Name == name; i++ {
		out = append(out, z.keys[i])
	}
	return out
}

// adopt has changes of the keys followed exactly, and data that is to be proven gone.
func (z *zone) adopt(keys []rota.Key, gone string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	now := time.Now()
	for _, k := range keys {
		f := z.follows[k]
		e := z.expects[k]
		if f == nil && gone != "" && e != nil {
			f = &follow{Change: Change{Publisher: z.id.publisher, Zone: z.id.zone, Expect: *e}, told: now, visible: now, seen: map[path]time.Time{}, cut: map[path]bool{}}
			z.follows[k] = f
		}
		if f == nil {
			continue
		}
		f.asked = true
		known := slices.ContainsFunc(f.leaving, func(l *leaving) bool { return l.data == gone && !l.stays })
		if gone == "" || known || !fitsType(k.Type, gone) || slices.Contains(f.Expect.Data, gone) {
			continue
		}
		if len(f.leaving) >= maxLeaving { // what somebody only asked for makes room
			i := slices.IndexFunc(f.leaving, func(l *leaving) bool { return l.asked })
			if i < 0 {
				continue
			}
			f.leaving = slices.Delete(f.leaving, i, i+1)
		}
		f.leaving = append(f.leaving, &leaving{data: gone, ttl: f.Expect.TTL, asked: true, absent: map[path]time.Time{}})
	}
}

// fitsType reports whether data could be of a type: an address is of one family.
func fitsType(t rota.Type, data string) bool {
	a, err := netip.ParseAddr(data)
	switch t {
	case rota.TypeA:
		return err == nil && a.Is4()
	case rota.TypeAAAA:
		return err == nil && a.Is6()
	}
	return err != nil
}

func (z *zone) ask(ctx context.Context, name rota.Name, keys []rota.Key, gone string) Propagation {
	z.adopt(keys, gone)
	z.mu.Lock()
	out := Propagation{Name: name, Publisher: z.id.publisher, Zone: z.id.zone, At: time.Now()}
	resolvers := z.subject.Resolvers
	servers := slices.SortedFunc(maps.Values(z.servers), func(a, b *watched) int { return a.Addr.Compare(b.Addr) })
	for _, k := range keys {
		if e := z.expects[k]; e != nil {
			out.Want = append(out.Want, *e)
		}
	}
	z.mu.Unlock()
	var wg sync.WaitGroup
	views := make([][]View, 2*len(servers))
	for i, s := range servers {
		for j, t := range []Transport{UDP, TCP} {
			wg.Go(func() { views[2*i+j] = z.views(ctx, s, t, keys) })
		}
	}
	public := make([][]View, len(resolvers))
	for i, r := range resolvers {
		if at, err := netip.ParseAddrPort(r); err == nil {
			wg.Go(func() { public[i] = z.public(ctx, at, keys) })
		}
	}
	wg.Wait()
	out.Views, out.Public = slices.Concat(views...), slices.Concat(public...)
	status := z.show()
	out.Findings, out.Blind = status.Findings, status.Blind
	z.mu.Lock()
	defer z.mu.Unlock()
	out.Everywhere = len(out.Views) > 0 && len(z.unfound()) == 0
	for _, o := range z.subject.Others {
		out.Blind = append(out.Blind, o+" is not asked by this node: ask there")
	}
	for _, v := range out.Views {
		s := z.servers[v.Server.Addr]
		if s == nil || v.Server.Origin && slices.ContainsFunc(z.must(), func(m *watched) bool { return !m.Origin }) {
			continue
		}
		out.Everywhere = out.Everywhere && (v.Agrees || v.Answer.Cut || v.Trouble != "" && !s.mute())
	}
	for _, k := range keys {
		if f := z.follows[k]; f != nil {
			z.tale(f, &out)
		}
	}
	return out
}

// tale tells how far a change came and what it left behind. z.mu is held.
func (z *zone) tale(f *follow, out *Propagation) {
	if f.Event > 0 {
		s := Seen{Key: f.Expect.Key, Event: f.Event, Decided: f.Decided, Visible: f.visible, Took: f.took, Unseen: f.unseen}
		for p, at := range f.seen {
			if x := z.servers[p.addr]; x != nil {
				s.First = append(s.First, First{x.String(), p.transport, max(0, f.At.Sub(f.Decided)) + max(0, at.Sub(f.told))})
			}
		}
		slices.SortFunc(s.First, func(a, b First) int { return int(a.After - b.After) })
		out.Changes = append(out.Changes, s)
	}
	must := z.must()
	for _, l := range f.leaving {
		if l.stays {
			continue // it counts with what leaves later
		}
		x := Leaving{Key: f.Expect.Key, Data: l.data, TTL: l.ttl}
		x.Gone, x.Unseen = z.gone(f, l, must)
		x.Proven = len(x.Unseen) == 0
		if x.Proven {
			x.Until = x.Gone.Add(time.Duration(l.ttl) * time.Second)
			for _, o := range f.leaving { // the same data may be remembered from when it had a longer TTL
				if at, open := z.gone(f, o, must); o.data == l.data && len(open) == 0 {
					if end := at.Add(time.Duration(o.ttl) * time.Second); end.After(x.Until) {
						x.Until = end
					}
				}
			}
		}
		out.Leaving = append(out.Leaving, x)
	}
}

// views asks one server over one transport for the zone and the keys.
func (z *zone) views(ctx context.Context, s *watched, t Transport, keys []rota.Key) []View {
	got := z.soa(ctx, t, s.Server)
	if ctx.Err() == nil {
		z.said(s, t, got, nil)
	}
	var out []View
	for _, k := range keys {
		v := View{Server: s.Server, Transport: t, Serial: got.Serial, Known: got.Zone, Key: k, Trouble: got.Trouble, Text: got.Text}
		if got.Trouble == "" {
			v.Answer, v.Trouble, v.Text = z.rrset(ctx, t, s.Server, k)
			v.Answer.Serial = got.Serial
			if v.Trouble == "" && got.Zone && ctx.Err() == nil {
				a := v.Answer
				v.Agrees = z.said(s, t, Sight{}, map[rota.Key]*Answer{k: &a}) && !a.Cut
			}
		}
		out = append(out, v)
	}
	return out
}

// public asks a public resolver.
func (z *zone) public(ctx context.Context, at netip.AddrPort, keys []rota.Key) []View {
	var out []View
	for _, k := range keys {
		m := question(k.Name, uint16(k.Type))
		m.RecursionDesired = true
		v := View{Server: Server{Addr: at}, Transport: UDP, Key: k}
		answer, rtt, err := z.w.exchange(ctx, UDP, at, m)
		if err != nil {
			v.Trouble, v.Text = troubleOf(err), rota.CleanReason("%v", err)
			out = append(out, v)
			continue
		}
		v.Answer = read(answer, k)
		v.Answer.At, v.Answer.RTT = time.Now(), rtt
		z.mu.Lock()
		if e := z.expects[k]; e != nil {
			v.Agrees = e.right(v.Answer)
		}
		z.mu.Unlock()
		if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
			v.Agrees = false
		}
		out = append(out, v)
	}
	return out
}
