// Package witness proves from outside what a DNS says. It finds every authoritative address of a zone, asks each over UDP and TCP
// after every change until all agree with what is wanted, and from time to time afterwards. From the answers it says how long a
// decision took to be visible everywhere, until when honest caches may hold what is gone, and what is wrong with which server: each
// with a stable code, the server's name and since when. What cannot be seen from here is never said to be wrong.
//
// It changes nothing and decides nothing. See DESIGN.md beside this file for the proofs and their limits.
package witness

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// Subject is one zone that one publisher keeps, and how it is proven.
type Subject struct {
	Publisher string
	Zone      rota.Name

	// Servers are asked, each host:port; a host that is a name is asked at every address it has. Empty: every authoritative address of
	// the zone, found from the delegation and the zone's own NS records.
	Servers []string
	// Origins are where the publisher writes, host:port. They are asked too; what is visible to the world does not depend on them when
	// there are others.
	Origins []string
	// Resolvers find the servers, and are public resolvers whose view is shown on demand, each host:port. Empty: the machine's find
	// them, and none is shown.
	Resolvers []string
	// Others are servers that answer for the zone as well and cannot be asked by this machine, in words: nothing is proven of them.
	Others []string

	Within  time.Duration // a server that follows later than this is stuck; 0: DefaultWithin
	Every   time.Duration // between looks when nothing changes, spread by a tenth; 0: DefaultEvery
	Expects []Expect      // each key once
}

// The paces of a subject that sets none.
const (
	DefaultWithin = 2 * time.Minute
	DefaultEvery  = 5 * time.Minute
)

// Expect is what servers should say of one RRset.
type Expect struct {
	rota.Key
	TTL  uint32   // seconds
	Data []string // sorted, in the canonical form of rota.RRset; none: absent
	Drop []string // with no Data: only these should be absent, and what else is there is not rota's
	Some bool     // any part of Data is a right answer, as rota's own name server gives
	// Known are data that may rightly have been there: the addresses of all configured endpoints. What is neither wanted nor known
	// came from another writer.
	Known []string
}

// Change is one RRset that was changed.
type Change struct {
	Publisher string
	Zone      rota.Name
	Event     uint64    // that tells of it
	Decided   time.Time // when it was decided, by the clock of who orders events
	At        time.Time // of the event that tells of it, by the same clock
	Expect    Expect
	Old       rota.RRset
	Why       string // the changes that were explained are followed first
}

// Visible says that every server says what a change asked for.
type Visible struct {
	Publisher string
	Zone      rota.Name
	Key       rota.Key
	Event     uint64
	Took      time.Duration // from the decision
	Unseen    []string      // servers that did not answer: they are not part of the proof
}

// Options are what a Witness is made with. The zero value works.
type Options struct {
	Exchange Exchange        // nil: the network
	System   func() []string // the machine's resolvers, host:port; nil: those of /etc/resolv.conf
	Port     uint16          // that servers found by delegation are asked at; 0: 53
	Visible  func(Visible)   // is told of each change once; it must not block
	Log      *slog.Logger
}

// Limits of what is kept and sent.
const (
	maxServers  = 64              // addresses of one zone
	maxFollowed = 10000           // RRsets of one zone whose changes are remembered
	sample      = 20              // RRsets of one zone that are asked for in one round
	inFlight    = 256             // questions under way
	searching   = 32              // zones whose servers are searched for together
	perServer   = 50              // questions a second to one address
	atOnce      = 16              // zones that are looked at at one address together, but for those with a change to be seen
	remembered  = 1 * time.Hour   // for how long a change is remembered once caches are empty
	confirm     = 2 * time.Second // how long a finding must hold, over two rounds at least
	firstPace   = 10 * time.Millisecond
	fastPace    = 1 * time.Second
)

// Witness watches subjects. Its methods are safe for concurrent use.
type Witness struct {
	o        Options
	slots    chan struct{}
	searches chan struct{}
	moved    chan struct{} // the subjects changed

	mu     sync.Mutex // guards what follows
	zones  map[id]*zone
	limits map[netip.AddrPort]*rate.Limiter
	turns  map[netip.AddrPort]*turns
	heard  [4]time.Time // when any server last answered, by reach
}

// id names a subject.
type id struct {
	publisher string
	zone      rota.Name
}

// New returns a witness that asks nothing until Run.
func New(o Options) *Witness {
	if o.Exchange == nil {
		o.Exchange = overNetwork
	}
	if o.System == nil {
		o.System = systemResolvers
	}
	o.Port = cmp.Or(o.Port, 53)
	if o.Visible == nil {
		o.Visible = func(Visible) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Witness{
		o: o, slots: make(chan struct{}, inFlight), searches: make(chan struct{}, searching), moved: make(chan struct{}, 1), zones: map[id]*zone{},
		limits: map[netip.AddrPort]*rate.Limiter{}, turns: map[netip.AddrPort]*turns{},
	}
}

// Set says, whole, what is to be watched. The witness keeps what it was given.
func (w *Witness) Set(subjects []Subject) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := map[id]bool{}
	for _, s := range subjects {
		s.Within, s.Every = cmp.Or(s.Within, DefaultWithin), cmp.Or(s.Every, DefaultEvery)
		k := id{s.Publisher, s.Zone}
		wanted[k] = true
		if z := w.zones[k]; z != nil {
			z.set(s)
			continue
		}
		w.zones[k] = newZone(w, s)
	}
	maps.DeleteFunc(w.zones, func(k id, _ *zone) bool { return !wanted[k] })
	select {
	case w.moved <- struct{}{}:
	default:
	}
}

// Follow has changes looked for until every server shows them. Changes of zones that are not watched are left out.
func (w *Witness) Follow(changes []Change) {
	byZone := map[id][]Change{}
	for _, c := range changes {
		k := id{c.Publisher, c.Zone}
		byZone[k] = append(byZone[k], c)
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, cs := range byZone {
		if z := w.zones[k]; z != nil {
			z.follow(cs, now)
		}
	}
}

// Run watches until ctx ends, and returns nil then.
func (w *Witness) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[*zone]context.CancelFunc{}
	defer func() {
		for _, cancel := range running {
			cancel()
		}
	}()
	for {
		w.mu.Lock()
		for _, z := range w.zones {
			if running[z] == nil {
				zctx, cancel := context.WithCancel(ctx)
				running[z] = cancel
				wg.Go(func() { z.run(zctx) })
			}
		}
		for z, cancel := range running {
			if w.zones[z.id] != z {
				cancel()
				delete(running, z)
			}
		}
		w.forget()
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-w.moved:
		}
	}
}

// forget drops the limits of servers that were not asked lately: theirs are full again. w.mu is held.
func (w *Witness) forget() {
	for a, l := range w.limits {
		if l.Tokens() >= perServer {
			delete(w.limits, a)
		}
	}
}

// turns are those of one address: as many zones as it has room for are looked at there together. So a queue for it stays short, and what
// is urgent need not wait behind thousands of audits.
type turns struct {
	taken chan struct{}
	users int
}

// queue joins those who look at an address; leave must be called once.
func (w *Witness) queue(at netip.AddrPort) (taken chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.turns[at]
	if t == nil {
		t = &turns{taken: make(chan struct{}, atOnce)}
		w.turns[at] = t
	}
	t.users++
	return t.taken, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(w.turns, at)
		}
	}
}

// Status says how every subject stands, sorted by zone and publisher.
func (w *Witness) Status() []ZoneStatus {
	var out []ZoneStatus
	for _, z := range w.watched() {
		out = append(out, z.show())
	}
	return out
}

func (w *Witness) watched() []*zone {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*zone
	for _, z := range w.zones {
		out = append(out, z)
	}
	slices.SortFunc(out, func(a, b *zone) int {
		return cmp.Or(cmp.Compare(a.id.zone, b.id.zone), cmp.Compare(a.id.publisher, b.id.publisher))
	})
	return out
}

// Histogram counts how long decisions took to be visible.
type Histogram struct {
	Bounds []float64 // seconds, upper
	Counts []uint64  // one more than Bounds
	Sum    float64   // seconds
}

func newHistogram() Histogram {
	bounds := []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
}

func (h *Histogram) observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.Bounds, d.Seconds())
	h.Counts[i]++
	h.Sum += d.Seconds()
}

// answered notes that a server answered: what is like it can be reached from here.
func (w *Witness) answered(a netip.Addr, at time.Time) {
	if a.IsLoopback() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard[reach(a)] = at
}

// heardSince reports whether any server like this one has answered since a time: then its silence is its own. Loopback needs no network.
func (w *Witness) heardSince(a netip.Addr, since time.Time) bool {
	if a.IsLoopback() {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.heard[reach(a)].Before(since)
}

// reach sorts addresses by what they are reached over.
func reach(a netip.Addr) int {
	a = a.Unmap()
	out := 0
	if a.Is6() {
		out = 1
	}
	if a.IsPrivate() || a.IsLinkLocalUnicast() {
		out += 2
	}
	return out
}

// reaches names the values of reach.
var reaches = [4]string{"IPv4", "IPv6", "private IPv4", "private IPv6"}
