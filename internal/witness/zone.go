package witness

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// zone watches one subject: one goroutine finds its servers, and one a server asks it. Servers share nothing but what was learnt, so a
// dead one holds up nobody.
type zone struct {
	w  *Witness
	id id

	moved chan struct{} // the subject's servers are to be found anew

	mu         sync.Mutex // guards what follows; never held while a question is under way
	subject    Subject
	expects    map[rota.Key]*Expect
	keys       []rota.Key // of expects, sorted
	servers    map[netip.AddrPort]*watched
	delegation Delegation
	lost       string // why no server was found; empty: some were
	follows    map[rota.Key]*follow
	waiting    []*follow // that not all servers show yet, in the order in which they are asked for
	conditions map[condition]*held
	findings   []Finding
	took       Histogram // from decisions to visible everywhere
}

// watched is one server of one zone and what it said last.
type watched struct {
	Server // never changes
	poke   chan struct{}
	hurry  chan struct{} // a change is to be seen
	round  uint64        // of questions, counted when its answers are in
	top    uint32        // the highest serial it showed
	known  bool          // top is set
	alone  bool          // in the last round nobody else was heard: its silence may be this machine's
	sight  map[Transport]*Sight
}

// Sight is what a server said last over one transport.
type Sight struct {
	At      time.Time // of the answer about the zone, or when it was given up; zero: not asked yet
	Trouble Trouble   // why there was none; empty: there was one
	Text    string    // of the trouble
	Rcode   int
	AA      bool
	Zone    bool   // it has the zone: an authoritative SOA
	Above   bool   // it has a zone above, in which this one is not
	Serial  uint32 // with Zone
	RTT     time.Duration
	NS      []string             // the zone's own, canonical; none: not asked
	Keys    []*dns.DNSKEY        // with Asked
	Asked   bool                 // for DNSKEY, and answered
	Sets    map[rota.Key]*Answer // of those asked for lately
}

// path is a way to a server.
type path struct {
	addr      netip.AddrPort
	transport Transport
}

// follow is what is known of one RRset that changed.
type follow struct {
	Change
	told    time.Time // on this machine's clock, when this witness heard of it
	asked   bool      // servers are asked for it; others of its event stand for it otherwise
	exact   bool      // the TTL is what changed, so it is looked at
	seen    map[path]time.Time
	cut     map[path]bool // its answer does not fit there: another transport shows it
	visible time.Time
	took    time.Duration
	unseen  []string
	leaving []*leaving
}

// leaving is a piece of data that left an RRset, or stays with another TTL.
type leaving struct {
	data   string
	ttl    uint32
	stays  bool // the data is still wanted; only its TTL changed
	asked  bool // nobody was seen to take it out; somebody asked whether it is gone
	absent map[path]time.Time
}

func newZone(w *Witness, s Subject) *zone {
	z := &zone{
		w: w, id: id{s.Publisher, s.Zone}, moved: make(chan struct{}, 1), servers: map[netip.AddrPort]*watched{},
		follows: map[rota.Key]*follow{}, conditions: map[condition]*held{}, took: newHistogram(),
	}
	z.set(s)
	return z
}

// set replaces the subject.
func (z *zone) set(s Subject) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if old := z.subject; old.Zone != "" && !(slices.Equal(old.Servers, s.Servers) && slices.Equal(old.Origins, s.Origins) && slices.Equal(old.Resolvers, s.Resolvers)) {
		select {
		case z.moved <- struct{}{}:
		default:
		}
	}
	z.subject = s
	z.expects = make(map[rota.Key]*Expect, len(s.Expects))
	for i := range s.Expects {
		z.expects[s.Expects[i].Key] = &s.Expects[i]
	}
	z.keys = slices.SortedFunc(maps.Keys(z.expects), compareKeys)
	for k, f := range z.follows {
		if e := z.expects[k]; e != nil {
			f.Expect.Known = e.Known
		}
	}
}

func compareKeys(a, b rota.Key) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
}

// follow begins to look for changes. Of many at once a sample stands for all; those that were explained come first.
func (z *zone) follow(changes []Change, now time.Time) {
	z.mu.Lock()
	defer z.mu.Unlock()
	first := make([]int, len(changes))
	for i := range first {
		first[i] = i
	}
	slices.SortStableFunc(first, func(a, b int) int { return cmp.Compare(explained(changes[b]), explained(changes[a])) })
	asked := map[int]bool{}
	for _, i := range first[:min(len(first), sample)] {
		asked[i] = true
	}
	for i, c := range changes {
		k := c.Expect.Key
		f := &follow{Change: c, told: now, asked: asked[i], seen: map[path]time.Time{}, cut: map[path]bool{}}
		f.exact = slices.Equal(c.Old.Data, c.Expect.Data) && c.Old.TTL != c.Expect.TTL
		if was := z.follows[k]; was != nil {
			f.leaving = was.still(c.Expect)
			f.Expect.Known = union(f.Expect.Known, was.Expect.Data, was.Old.Data)
		}
		f.Expect.Known = union(f.Expect.Known, c.Old.Data)
		for _, d := range c.Old.Data {
			stays := slices.Contains(c.Expect.Data, d)
			if i := slices.IndexFunc(f.leaving, func(l *leaving) bool { return l.data == d && !l.stays }); i >= 0 && !stays {
				f.leaving[i].ttl = max(f.leaving[i].ttl, c.Old.TTL)
				continue
			}
			if !stays || c.Old.TTL != c.Expect.TTL {
				f.leaving = append(f.leaving, &leaving{data: d, ttl: c.Old.TTL, stays: stays, absent: map[path]time.Time{}})
			}
		}
		z.follows[k] = f
		e := f.Expect
		if z.expects[k] == nil {
			i, _ := slices.BinarySearchFunc(z.keys, k, compareKeys)
			z.keys = slices.Insert(z.keys, i, k)
		}
		z.expects[k] = &e
	}
	z.prune(now)
	z.queue()
	for _, s := range z.servers {
		signal(s.hurry)
	}
}

func explained(c Change) int {
	if c.Why == "" {
		return 0
	}
	return 1
}

// still returns what of earlier departures is not back.
func (f *follow) still(e Expect) []*leaving {
	var out []*leaving
	for _, l := range f.leaving {
		if !slices.Contains(e.Data, l.data) || l.stays {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-maxLeaving):]
}

// maxLeaving bounds what is remembered to have left one RRset.
const maxLeaving = 64

func union(all ...[]string) []string {
	var out []string
	for _, s := range all {
		out = append(out, s...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// queue lists anew which changes are waited for.
func (z *zone) queue() {
	z.waiting = z.waiting[:0]
	for _, f := range z.follows {
		if f.asked && f.visible.IsZero() {
			z.waiting = append(z.waiting, f)
		}
	}
	slices.SortFunc(z.waiting, func(a, b *follow) int {
		return cmp.Or(cmp.Compare(explained(b.Change), explained(a.Change)), cmp.Compare(a.Event, b.Event), compareKeys(a.Expect.Key, b.Expect.Key))
	})
}

// prune forgets changes that everybody has seen and no cache holds, and the oldest when there are too many.
func (z *zone) prune(now time.Time) {
	must := z.must()
	for k, f := range z.follows {
		if end, proven := z.cached(f, must); !f.visible.IsZero() && proven && now.Sub(end) > remembered {
			delete(z.follows, k)
		}
	}
	if len(z.follows) <= maxFollowed {
		return
	}
	all := slices.SortedFunc(maps.Values(z.follows), func(a, b *follow) int {
		return cmp.Or(cmp.Compare(a.Event, b.Event), compareKeys(a.Expect.Key, b.Expect.Key))
	})
	for _, f := range all[:len(all)-maxFollowed] {
		delete(z.follows, f.Expect.Key)
	}
}

func (s *watched) wake() { signal(s.poke) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run watches until ctx ends.
func (z *zone) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[netip.AddrPort]context.CancelFunc{}
	defer func() {
		for _, cancel := range running {
			cancel()
		}
	}()
	again := locatePace
	for {
		z.mu.Lock()
		subject := z.subject
		z.mu.Unlock()
		servers, delegation, err := z.search(ctx, subject)
		if ctx.Err() != nil {
			return
		}
		wait := spread(subject.Every)
		if err != nil || len(delegation.Blind) > 0 && len(subject.Servers) == 0 {
			wait, again = min(spread(again), wait), min(again*2, subject.Every)
		} else {
			again = locatePace
		}
		for _, s := range z.found(servers, delegation, err) {
			if stop := running[s.Addr]; stop != nil {
				stop()
			}
			sctx, cancel := context.WithCancel(ctx)
			running[s.Addr] = cancel
			wg.Go(func() { z.watch(sctx, s) })
		}
		z.mu.Lock()
		for a, cancel := range running {
			if z.servers[a] == nil {
				cancel()
				delete(running, a)
			}
		}
		z.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-z.moved:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// search finds the servers. Of thousands of zones that must be searched for by delegation only some are at once: each question of the others
// would run out of time behind theirs.
func (z *zone) search(ctx context.Context, subject Subject) ([]Server, Delegation, error) {
	if len(subject.Servers) == 0 {
		select {
		case z.w.searches <- struct{}{}:
			defer func() { <-z.w.searches }()
		case <-ctx.Done():
			return nil, Delegation{}, ctx.Err()
		}
	}
	return z.w.locate(ctx, subject)
}

// locatePace is how soon servers that were not found are looked for again, doubled each time.
const locatePace = 5 * time.Second

func spread(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()*0.2-0.1)*float64(d))
}

// found takes in what a search found and returns the servers that are new. A search that failed takes nothing away.
func (z *zone) found(servers []Server, d Delegation, err error) []*watched {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err != nil {
		z.lost = ""
		if len(z.servers) == 0 {
			z.lost = rota.CleanReason("%v", err)
		}
		d.NS, d.Parent, d.Partial = z.delegation.NS, z.delegation.Parent, true
		z.delegation = d
		return nil
	}
	z.lost, z.delegation = "", d
	var fresh []*watched
	for _, s := range servers {
		if was := z.servers[s.Addr]; was != nil && was.Server == s {
			continue
		}
		x := &watched{Server: s, poke: make(chan struct{}, 1), hurry: make(chan struct{}, 1), sight: map[Transport]*Sight{UDP: {}, TCP: {}}}
		z.servers[s.Addr] = x
		fresh = append(fresh, x)
	}
	for a := range z.servers {
		if !d.Partial && !slices.ContainsFunc(servers, func(s Server) bool { return s.Addr == a }) {
			delete(z.servers, a)
		}
	}
	return fresh
}

// watch asks one server: at once and ever more slowly while something is awaited, and at the audit's pace otherwise.
func (z *zone) watch(ctx context.Context, s *watched) {
	pace := firstPace
	var audited time.Time
	turns, leave := z.w.queue(s.Addr)
	defer leave()
	for {
		every := z.every()
		mood, turn := z.mood(s), false
		if mood == waiting {
			select {
			case turns <- struct{}{}:
				turn = true
			default:
			}
		} else {
			select {
			case turns <- struct{}{}:
				turn = true
			case <-s.hurry:
				pace = firstPace
				continue
			case <-ctx.Done():
				return
			}
		}
		audit := turn && (time.Since(audited) >= every*9/10 || mood == doubtful)
		if audit {
			audited = time.Now()
		}
		z.look(ctx, s, audit)
		if turn {
			<-turns
		}
		if ctx.Err() != nil {
			return
		}
		wait := spread(every)
		switch z.mood(s) {
		case waiting:
			wait, pace = pace, min(pace*2, fastPace)
		case doubtful, troubled:
			wait, pace = fastPace, fastPace
		case patient:
			pace = min(max(pace, fastPace)*2, every)
			wait = spread(pace)
		case content:
			pace = firstPace
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-s.poke:
			pace = firstPace
		case <-s.hurry:
			pace = firstPace
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// mood says how soon a server is to be asked again.
type mood int

const (
	content  mood = iota // all is as it should be, or nothing is known yet
	patient              // something is not, for long
	troubled             // something is wrong
	doubtful             // something may be wrong: it is to be confirmed
	waiting              // a change is to be seen any moment
)

func (z *zone) mood(s *watched) mood {
	z.mu.Lock()
	defer z.mu.Unlock()
	now, within, out := time.Now(), z.subject.Within, content
	for _, f := range z.waiting {
		if f.at(s) {
			continue
		}
		out = max(out, patient)
		if now.Sub(f.told) < within {
			return waiting
		}
	}
	for c, h := range z.conditions {
		switch {
		case c.addr != s.Addr:
		case now.Sub(h.since) < confirm || s.round == h.round:
			out = max(out, doubtful)
		case now.Sub(h.since) < within:
			out = max(out, troubled)
		default:
			out = max(out, patient)
		}
	}
	return out
}

// at reports whether a server says what the change asked for, over every transport that it answers.
func (f *follow) at(s *watched) bool {
	some := false
	for t, sight := range s.sight {
		p := path{s.Addr, t}
		_, seen := f.seen[p]
		some = some || seen
		if !seen && !f.cut[p] && !sight.empty() {
			return false
		}
	}
	return some
}

// empty reports whether the server was asked and has nothing to say of the zone.
func (x *Sight) empty() bool { return !x.At.IsZero() && (x.Trouble != "" || !x.Zone) }

// look is one round at one server: the zone and what is awaited over UDP, and over TCP what UDP shows, or all when UDP says nothing.
func (z *zone) look(ctx context.Context, s *watched, audit bool) {
	begin := time.Now()
	z.rouse(s)
	z.over(ctx, UDP, s, audit)
	if audit || len(z.todo(s, TCP, false)) > 0 || z.doubted(s) {
		z.over(ctx, TCP, s, audit)
	}
	if ctx.Err() != nil {
		return
	}
	alone := !z.w.heardSince(s.Addr.Addr(), begin)
	z.mu.Lock()
	defer z.mu.Unlock()
	s.round++
	s.alone = alone
	z.judge(time.Now())
}

// rouse has the other servers asked while one that is silent is: when none of them is heard either, this machine may be cut off.
func (z *zone) rouse(s *watched) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if s.sight[UDP].Trouble != Silent {
		return
	}
	for _, o := range z.servers {
		if o.sight[UDP].Trouble != Silent {
			o.wake()
		}
	}
}

// doubted reports whether something is wrong with a server, which both transports are to confirm.
func (z *zone) doubted(s *watched) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	for c := range z.conditions {
		if c.addr == s.Addr {
			return true
		}
	}
	return s.sight[UDP].empty()
}

// over asks a server over one transport.
func (z *zone) over(ctx context.Context, t Transport, s *watched, audit bool) {
	keys := z.todo(s, t, audit)
	got := z.soa(ctx, t, s.Server)
	if audit && got.Zone {
		z.audit(ctx, t, s.Server, &got)
	}
	if ctx.Err() != nil {
		return
	}
	z.said(s, t, got, nil)
	if !got.Zone {
		return
	}
	// The first that is awaited stands for the others: as long as it is not there, neither are they.
	if len(keys) > 0 && !audit {
		if !z.sets(ctx, t, s, keys[:1], got.Serial) {
			return
		}
		keys = keys[1:]
	}
	z.sets(ctx, t, s, keys, got.Serial)
}

// todo lists what a server is asked for next: changes that it does not show, one round after the other first, and in an audit a part
// of all that is kept, the same at all servers.
func (z *zone) todo(s *watched, t Transport, audit bool) []rota.Key {
	z.mu.Lock()
	defer z.mu.Unlock()
	var out []rota.Key
	for _, f := range z.waiting {
		_, seen := f.seen[path{s.Addr, t}]
		_, shown := f.seen[path{s.Addr, UDP}]
		if cut := f.cut[path{s.Addr, UDP}]; !seen && (t == UDP && !cut || t == TCP && (shown || cut || s.sight[UDP].empty())) {
			out = append(out, f.Expect.Key)
		}
	}
	for c := range z.conditions {
		if c.addr == s.Addr && c.key.Name != "" && !slices.Contains(out, c.key) {
			out = append(out, c.key)
		}
	}
	if n := len(out); n > 1 {
		first := int(s.round % uint64(n))
		out = slices.Concat(out[first:], out[:first])
	}
	out = out[:min(len(out), sample)]
	if audit {
		for _, k := range z.part() {
			if !slices.Contains(out, k) && len(out) < 2*sample {
				out = append(out, k)
			}
		}
	}
	return out
}

// part is the part of what is kept that is audited in this period.
func (z *zone) part() []rota.Key {
	n := len(z.keys)
	if n <= sample {
		return z.keys
	}
	first := int(time.Now().UnixNano()/int64(z.subject.Every)*sample%int64(n)+int64(n)) % n
	return slices.Concat(z.keys[first:], z.keys[:first])[:sample]
}

// soa asks for the zone.
func (z *zone) soa(ctx context.Context, t Transport, s Server) Sight {
	answer, rtt, err := z.w.exchange(ctx, t, s.Addr, question(z.id.zone, dns.TypeSOA))
	out := Sight{At: time.Now(), RTT: rtt}
	if err != nil {
		out.Trouble, out.Text = troubleOf(err), rota.CleanReason("%v", err)
		return out
	}
	out.Rcode, out.AA = answer.Rcode, answer.Authoritative
	for _, rr := range answer.Answer {
		if soa, ok := rr.(*dns.SOA); ok && canonical(soa.Hdr.Name) == z.id.zone.String() {
			out.Serial, out.Zone = soa.Serial, out.AA && out.Rcode == dns.RcodeSuccess
		}
	}
	for _, rr := range answer.Ns {
		if soa, ok := rr.(*dns.SOA); ok && out.AA && !out.Zone && canonical(soa.Hdr.Name) != z.id.zone.String() {
			out.Above = true
		}
	}
	return out
}

// audit asks for what says how the zone is delegated and signed.
func (z *zone) audit(ctx context.Context, t Transport, s Server, into *Sight) {
	z.mu.Lock()
	signed := z.delegation.Signed
	z.mu.Unlock()
	if answer, _, err := z.w.exchange(ctx, t, s.Addr, question(z.id.zone, dns.TypeNS)); err == nil && answer.Authoritative {
		into.NS = nsOf(answer, z.id.zone)
	}
	if !signed || t != TCP {
		return
	}
	answer, _, err := z.w.exchange(ctx, t, s.Addr, question(z.id.zone, dns.TypeDNSKEY))
	if err != nil || !answer.Authoritative || answer.Rcode != dns.RcodeSuccess {
		return
	}
	into.Asked = true
	for _, rr := range answer.Answer {
		if k, ok := rr.(*dns.DNSKEY); ok && canonical(k.Hdr.Name) == z.id.zone.String() && len(into.Keys) < maxDS {
			into.Keys = append(into.Keys, k)
		}
	}
}

// asksAtOnce bounds the questions to one server that are under way together.
const asksAtOnce = 8

// sets asks for RRsets, takes in the answers and reports whether all are as expected.
func (z *zone) sets(ctx context.Context, t Transport, s *watched, keys []rota.Key, serial uint32) bool {
	right := make([]bool, len(keys))
	slots := make(chan struct{}, asksAtOnce)
	var wg sync.WaitGroup
	for i, k := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			a, trouble, text := z.rrset(ctx, t, s.Server, k)
			if ctx.Err() != nil {
				return
			}
			if trouble != "" {
				z.said(s, t, Sight{At: time.Now(), Trouble: trouble, Text: text}, nil)
				return
			}
			a.Serial = serial
			right[i] = z.said(s, t, Sight{}, map[rota.Key]*Answer{k: &a})
		})
	}
	wg.Wait()
	return !slices.Contains(right, false)
}

// rrset asks for one RRset.
func (z *zone) rrset(ctx context.Context, t Transport, s Server, k rota.Key) (Answer, Trouble, string) {
	answer, rtt, err := z.w.exchange(ctx, t, s.Addr, question(k.Name, uint16(k.Type)))
	if err != nil {
		return Answer{}, troubleOf(err), rota.CleanReason("%v", err)
	}
	a := read(answer, k)
	a.At, a.RTT = time.Now(), rtt
	return a, "", ""
}

// said takes in what a server said of the zone (sight, when it has a time) and of RRsets, and reports whether these are as expected.
func (z *zone) said(s *watched, t Transport, sight Sight, sets map[rota.Key]*Answer) bool {
	right, news := z.take(s, t, sight, sets)
	for _, v := range news {
		z.w.o.Visible(v)
	}
	return right
}

func (z *zone) every() time.Duration {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.subject.Every
}

func (z *zone) take(s *watched, t Transport, sight Sight, sets map[rota.Key]*Answer) (right bool, news []Visible) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.servers[s.Addr] != s {
		return true, nil
	}
	have := s.sight[t]
	if !sight.At.IsZero() {
		if sight.NS == nil {
			sight.NS = have.NS
		}
		if !sight.Asked {
			sight.Keys, sight.Asked = have.Keys, have.Asked
		}
		sight.Sets = have.Sets
		*have = sight
		if sight.Zone && (!s.known || newer(sight.Serial, s.top)) {
			s.top, s.known = sight.Serial, true
		}
	}
	right = true
	for k, a := range sets {
		if have.Sets == nil {
			have.Sets = map[rota.Key]*Answer{}
		}
		have.Sets[k] = a
		e := z.expects[k]
		if f := z.follows[k]; f != nil {
			f.saw(path{s.Addr, t}, *a)
		}
		right = right && (e == nil || a.Cut || e.right(*a))
	}
	z.tidy(have)
	return right, z.proven(time.Now())
}

// tidy forgets answers that are neither followed nor in the part that is audited.
func (z *zone) tidy(s *Sight) {
	if len(s.Sets) <= 4*sample {
		return
	}
	part := z.part()
	for k := range s.Sets {
		if f := z.follows[k]; (f == nil || !f.asked) && !slices.Contains(part, k) {
			delete(s.Sets, k)
		}
	}
	for k := range s.Sets {
		if len(s.Sets) > 4*sample {
			delete(s.Sets, k)
		}
	}
}

// saw takes in what one path says of a change.
func (f *follow) saw(p path, a Answer) {
	if f.cut[p] = a.Cut; a.Cut {
		return
	}
	if _, ok := f.seen[p]; f.Expect.right(a) && (!f.exact || a.TTL == f.Expect.TTL) {
		if !ok {
			f.seen[p] = a.At
		}
	} else if f.visible.IsZero() {
		delete(f.seen, p)
	}
	if a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return // it says nothing of what it holds
	}
	for _, l := range f.leaving {
		there := slices.Contains(a.Data, l.data)
		if l.stays {
			there = there && a.TTL == l.ttl
		}
		switch {
		case there:
			l.ttl = max(l.ttl, a.TTL)
			delete(l.absent, p)
		case l.absent[p].IsZero():
			l.absent[p] = a.At
		}
	}
}

// must lists the servers that the world is sent to; when there are none but origins, those.
func (z *zone) must() []*watched {
	var out []*watched
	for _, a := range slices.SortedFunc(maps.Keys(z.servers), netip.AddrPort.Compare) {
		if s := z.servers[a]; !s.Origin {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		out = slices.SortedFunc(maps.Values(z.servers), func(a, b *watched) int { return a.Addr.Compare(b.Addr) })
	}
	return out
}

// mute reports whether a server was asked and has nothing to say of the zone over any transport.
func (s *watched) mute() bool { return s.sight[UDP].empty() && s.sight[TCP].empty() }

// proven finds the changes that every server which answers has shown by now.
func (z *zone) proven(now time.Time) []Visible {
	var out []Visible
	must := z.must()
	for _, f := range z.waiting {
		unseen := z.unfound()
		some, all := false, true
		var last time.Time
		for _, s := range must {
			switch {
			case f.at(s):
				some = true
				for t := range s.sight {
					if at := f.seen[path{s.Addr, t}]; at.After(last) {
						last = at
					}
				}
			case s.mute():
				unseen = append(unseen, s.String())
			default:
				all = false
			}
		}
		if !some || !all {
			continue
		}
		f.visible, f.unseen = last, unseen
		f.took = max(0, f.At.Sub(f.Decided)) + max(0, last.Sub(f.told))
		z.took.observe(f.took)
		out = append(out, Visible{z.id.publisher, z.id.zone, f.Expect.Key, f.Event, f.took, unseen})
	}
	if len(out) > 0 {
		z.represent(now)
		z.queue()
		text, last := "visible everywhere", out[len(out)-1]
		if len(last.Unseen) > 0 {
			text = "visible wherever it could be seen"
		}
		z.w.o.Log.Info(text, "publisher", z.id.publisher, "zone", z.id.zone.Short(), "changes", len(out), "took", last.Took,
			"unseen", strings.Join(last.Unseen, ", "))
	}
	return out
}

// represent takes the changes of an event that nobody was asked for as visible once its sample is.
func (z *zone) represent(now time.Time) {
	open := map[uint64]bool{}
	for _, f := range z.follows {
		open[f.Event] = open[f.Event] || f.asked && f.visible.IsZero()
	}
	for _, f := range z.follows {
		if !f.asked && f.visible.IsZero() && !open[f.Event] {
			f.visible, f.took = now, max(0, f.At.Sub(f.Decided))+now.Sub(f.told)
		}
	}
}

// cached returns until when honest caches may hold any of what left, and whether that is proven: every server that must was seen
// without it.
func (z *zone) cached(f *follow, must []*watched) (end time.Time, proven bool) {
	proven = true
	for _, l := range f.leaving {
		at, open := z.gone(f, l, must)
		proven = proven && len(open) == 0
		if t := at.Add(time.Duration(l.ttl) * time.Second); t.After(end) {
			end = t
		}
	}
	return end, proven
}

// gone returns when the last server was first seen without the data, and the servers of which that cannot be said.
func (z *zone) gone(f *follow, l *leaving, must []*watched) (at time.Time, unseen []string) {
	for _, s := range must {
		some, open := false, false
		for t, x := range s.sight {
			p := path{s.Addr, t}
			when, ok := l.absent[p]
			some = some || ok
			open = open || !ok && !f.cut[p] && !x.empty()
			if when.After(at) {
				at = when
			}
		}
		if !some || open {
			unseen = append(unseen, s.String())
		}
	}
	more := z.unfound()
	if len(must) == 0 && len(more) == 0 {
		more = []string{notFound}
	}
	return at, append(unseen, more...)
}

// unfound lists the servers that the zone has, or may have, and nobody asks.
func (z *zone) unfound() []string {
	out := slices.Clone(z.subject.Others)
	if z.delegation.Partial {
		out = append(out, notFound)
	}
	return out
}

// notFound stands for servers that the zone has and nobody told of.
const notFound = "servers that were not found"

// newer compares serials (RFC 1982 §3.2).
func newer(a, b uint32) bool { return a != b && a-b < 1<<31 }
