package publish

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/rota-dns/rota/internal/rota"
)

// Source is where a Publisher learns what the DNS should say.
type Source interface {
	// State returns the newest state.
	State() *rota.State
	// Changed returns a channel that is closed, or receives, after the state has changed since the call.
	Changed() <-chan struct{}
}

// Options is what a Publisher needs. Name, Backend, Source and Owner must be set.
type Options struct {
	Name    string // as services name it in their publish list
	Backend Backend
	Source  Source

	// Owner names the installation in fence records, the same on all its nodes; at most 128 bytes when URL-encoded. It is asked for each time.
	Owner func() string

	// Formerly, when set, gives names that the installation had before it was called Owner: a zone that one of them owns is taken over.
	Formerly func() []string

	// Record is told of every write once it was read back. Its error is logged; the DNS stays as it is.
	Record func(context.Context, rota.Published) error
	// Recent, when set, lists what Record was told of a zone in the last while, whoever led: at least of the last rota.MaxChangePer, oldest
	// first. Without it each leader begins with a budget of its own.
	Recent func(zone rota.Name) []Past
	// Confirm returns nil only after making sure that this node leads at this moment, in the term that Run was given. It is asked
	// before a fence is taken, and before a write when Lapses has moved since.
	Confirm func(ctx context.Context, term uint64) error
	// Lapses, when set, counts how often this process did not run for so long that another node may lead by now. It is asked before
	// every write.
	Lapses func() uint64
	// Hold, when set, names services of which nothing is to be said yet: their records stay as they are. It is asked whenever the
	// Source says that something changed.
	Hold func(rota.Name) bool
	// Frozen, when set, says why nothing may be written at this moment; empty: it may. It is asked before every write.
	Frozen func() string
	// Registry, when set, keeps a record of ownership for each RRset.
	Registry *Registry
	// Now, when set, is the time of the Source's events, by which instructions end and the budget of changes counts. Nil: time.Now.
	Now func() time.Time
	// DryRun is to write nothing, ever: the publisher reads, and shows what it would write.
	DryRun bool
	Log    *slog.Logger

	Audit      time.Duration // between looks at a DNS that is as it should be; 0: one minute
	MinGap     time.Duration // between writes to one zone; 0: one second
	MinBackoff time.Duration // before a failed round is tried again, doubled each time, ±50 %; 0: half a second
	MaxBackoff time.Duration // bounds that, and is the pace when trying again cannot help; 0: 30 seconds
}

// Publisher keeps the zones behind one backend true to the state. Its methods are safe for concurrent use.
type Publisher struct {
	o Options

	mu      sync.Mutex // guards what follows
	zoneOf  map[rota.Name]rota.Name
	zones   map[rota.Name]*zone
	lost    map[rota.Name]*Reason // names whose zone could not be found
	leading bool
	term    uint64
}

// New returns a publisher that does nothing until Run.
func New(o Options) *Publisher {
	o.Audit = cmp.Or(o.Audit, time.Minute)
	o.MinGap = cmp.Or(o.MinGap, time.Second)
	o.MinBackoff = cmp.Or(o.MinBackoff, 500*time.Millisecond)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 30*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Record == nil {
		o.Record = func(context.Context, rota.Published) error { return nil }
	}
	if o.Recent == nil {
		o.Recent = func(rota.Name) []Past { return nil }
	}
	if o.Frozen == nil {
		o.Frozen = func() string { return "" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Lapses == nil {
		o.Lapses = func() uint64 { return 0 }
	}
	if o.DryRun {
		o.Backend = dryRun{o.Backend}
	}
	if o.Confirm == nil {
		o.Confirm = func(ctx context.Context, _ uint64) error { return ctx.Err() }
	}
	return &Publisher{
		o: o, zoneOf: map[rota.Name]rota.Name{}, zones: map[rota.Name]*zone{}, lost: map[rota.Name]*Reason{},
	}
}

// Name returns the publisher's name.
func (p *Publisher) Name() string { return p.o.Name }

// Run makes the DNS true, and keeps it so, for as long as this node leads in the term. It returns nil when ctx ends, and an error
// for which errors.Is(err, ErrFenced) holds when another leader has taken a zone and Confirm does not say that this node leads in the term.
// Nothing is written after it returned. It must not run twice at once.
func (p *Publisher) Run(ctx context.Context, term uint64) error {
	if n := len(Fence{Owner: p.o.Owner()}.String()) - len(Fence{}.String()); n == 0 || n > maxOwner {
		return fmt.Errorf("publisher %s: the owner %q takes %d bytes, want 1 to %d", p.o.Name, p.o.Owner(), n, maxOwner)
	}
	p.mu.Lock()
	p.leading, p.term = true, term
	clear(p.zones)
	clear(p.lost)
	p.mu.Unlock()
	var wg sync.WaitGroup
	ctx, stop := context.WithCancelCause(ctx)
	defer func() {
		stop(nil)
		wg.Wait()
		p.mu.Lock()
		p.leading = false
		p.mu.Unlock()
	}()
	found := make(chan struct{}, 1)
	search := make(chan []rota.Name, 1)
	wg.Go(func() { p.finder(ctx, search, found) })
	for {
		changed := p.o.Source.Changed()
		st := p.o.Source.State()
		desires, lost := p.sort(st)
		for _, z := range p.reach(term, desires) {
			wg.Go(func() {
				if err := z.run(ctx); err != nil {
					stop(err)
				}
			})
		}
		select {
		case <-search: // newer names replace those not yet looked at
		default:
		}
		search <- lost
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); errors.Is(err, ErrFenced) {
				return fmt.Errorf("publisher %s: %w", p.o.Name, err)
			}
			return nil
		case <-changed:
		case <-found:
		}
	}
}

// sort distributes what should be true among the zones. Names whose zone is not known yet are returned.
func (p *Publisher) sort(st *rota.State) (map[rota.Name]desire, []rota.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[rota.Name]desire{}
	caps := p.o.Backend.Capabilities()
	var lost []rota.Name
	homeless, missing := map[rota.Name]bool{}, map[rota.Name]bool{} // without a configured zone, and without any
	for w := range st.Wants(p.o.Name) {
		if w.Zone == "" {
			homeless[w.Service] = true
		}
		if p.o.Hold != nil && p.o.Hold(w.Service) {
			continue
		}
		zone := w.Zone
		if zone == "" {
			zone = p.zoneOf[w.Service]
		}
		if zone == "" {
			if !missing[w.Service] {
				missing[w.Service] = true
				lost = append(lost, w.Service)
			}
			continue
		}
		w.Set.TTL = max(w.Set.TTL, caps.MinTTL)
		d := out[zone]
		d.state, d.caps = st, caps
		d.wants = append(d.wants, w)
		out[zone] = d
	}
	for _, x := range st.Instructed() {
		if _, ok := out[x.Zone]; !ok && x.Verb == rota.VerbRelease && x.Publisher == p.o.Name {
			out[x.Zone] = desire{state: st, caps: caps}
		}
	}
	for zone, d := range out {
		d.orders = ordersOf(st.Instructions(p.o.Name, zone), p.o.Now())
		d.registry = p.o.registry(zone)
		out[zone] = d
	}
	maps.DeleteFunc(p.lost, func(n rota.Name, _ *Reason) bool { return !missing[n] })
	maps.DeleteFunc(p.zoneOf, func(n, _ rota.Name) bool { return !homeless[n] })
	return out, lost
}

// reach hands every zone its newest desire and returns the zones that are new and must be run.
func (p *Publisher) reach(term uint64, desires map[rota.Name]desire) []*zone {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fresh []*zone
	for name, d := range desires {
		z := p.zones[name]
		if z == nil {
			z = newZone(p.o, name, term)
			p.zones[name] = z
			fresh = append(fresh, z)
		}
		z.want(d)
	}
	for name, z := range p.zones {
		if _, ok := desires[name]; !ok {
			z.want(desire{})
		}
	}
	return fresh
}

// finder finds the zones of names, so that a server that does not answer holds up no zone that is known.
func (p *Publisher) finder(ctx context.Context, search <-chan []rota.Name, found chan<- struct{}) {
	pace := newBackoff(p.o)
	var all []rota.Name
	var retry <-chan time.Time
	for {
		look := []rota.Name{}
		select {
		case <-ctx.Done():
			return
		case all = <-search:
			p.mu.Lock()
			for _, n := range all { // those that were not found before wait for their time
				if p.lost[n] == nil {
					look = append(look, n)
				}
			}
			p.mu.Unlock()
		case <-retry:
			look, retry = all, nil
		}
		got, wait := p.look(ctx, look, pace)
		if wait > 0 && retry == nil {
			retry = time.After(wait)
		}
		if got {
			select {
			case found <- struct{}{}:
			default:
			}
		}
	}
}

// look asks for the zones of names. It reports whether one was found and, when one was not, how long to wait before asking again.
func (p *Publisher) look(ctx context.Context, names []rota.Name, pace backoff.BackOff) (got bool, wait time.Duration) {
	for i, n := range names {
		z, err := p.o.Backend.Zone(ctx, n)
		if ctx.Err() != nil {
			return got, 0
		}
		if err == nil {
			p.mu.Lock()
			p.zoneOf[n] = z
			delete(p.lost, n)
			p.mu.Unlock()
			got = true
			pace.Reset()
			continue
		}
		r := ReasonOf(err)
		p.mu.Lock()
		if old := p.lost[n]; old == nil || !old.same(r) {
			p.o.Log.Warn("cannot find the zone of a name", "publisher", p.o.Name, "name", n.Short(), "reason", r.Error())
		}
		p.lost[n] = r
		if r.Transient {
			// The others would meet the same silence. They are asked with this one, when its time has come.
			for _, m := range names[i:] {
				p.lost[m] = r
			}
		}
		p.mu.Unlock()
		if r.Transient {
			return got, max(spread(pace.NextBackOff(), 0.5), after(r))
		}
		wait = max(wait, p.o.MaxBackoff, after(r))
	}
	return got, wait
}

// newBackoff returns the pauses before a failed round is tried again; they are to be spread.
func newBackoff(o Options) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: o.MinBackoff, Multiplier: 2, MaxInterval: o.MaxBackoff}
}

// spread draws from d ± a share of it. The randomness is crypto/rand's, which a test can seed.
func spread(d time.Duration, share float64) time.Duration {
	var b [8]byte
	rand.Read(b[:])                                                // never fails
	x := float64(binary.LittleEndian.Uint64(b[:])>>11) / (1 << 53) // 0 to 1
	return d + time.Duration((2*x-1)*share*float64(d))
}

// Plan reads the DNS and returns what Run would write now. It writes nothing and works on any node, leading or not.
// Its error is ctx's; what cannot be read is a reason in its zone's plan.
func (p *Publisher) Plan(ctx context.Context) (Plan, error) {
	st := p.o.Source.State()
	out := Plan{Publisher: p.o.Name, Zones: []ZonePlan{}}
	desires, lost := p.sort(st)
	homeless := ZonePlan{Changes: []rota.Change{}, Held: []HeldChange{}, Unchanged: []rota.RRset{}}
	for _, n := range lost {
		z, err := p.o.Backend.Zone(ctx, n)
		if err != nil {
			r := *ReasonOf(err)
			r.Name = n
			homeless.Reasons = append(homeless.Reasons, &r)
			if r.Transient {
				break
			}
			continue
		}
		p.mu.Lock()
		p.zoneOf[n] = z
		p.mu.Unlock()
	}
	if len(lost) > len(homeless.Reasons) {
		desires, _ = p.sort(st)
	}
	for _, name := range slices.Sorted(maps.Keys(desires)) {
		out.Zones = append(out.Zones, p.planZone(ctx, name, desires[name]))
	}
	if len(homeless.Reasons) > 0 {
		out.Zones = append(out.Zones, homeless)
	}
	return out, ctx.Err()
}

func (p *Publisher) planZone(ctx context.Context, name rota.Name, d desire) ZonePlan {
	nothing := func(r *Reason) ZonePlan {
		return ZonePlan{Zone: name, Changes: []rota.Change{}, Held: []HeldChange{}, Unchanged: []rota.RRset{}, Reasons: []*Reason{r}}
	}
	have, err := p.o.Backend.Read(ctx, name, append(d.reads(), FenceKey(name)))
	switch {
	case err != nil && d.orders.release != nil:
		return nothing(releasedBy(name, d.orders.release))
	case err != nil:
		return nothing(ReasonOf(err))
	}
	plan := d.decide(name, have, p.leavings(name), p.o.Now())
	f, r := d.holder(name, &p.o, have.Sets, 0)
	plan.Owner, plan.Offer = f.Owner, f.Offer
	switch {
	case d.orders.release != nil:
		r = releasedBy(name, d.orders.release)
		for _, c := range plan.Changes {
			plan.Held = append(plan.Held, HeldChange{c, r.Text})
		}
		plan.Changes = []rota.Change{}
		fallthrough
	case r != nil:
		plan.Reasons = append(plan.Reasons, r)
	}
	if stopped := p.o.stopped(name); stopped != nil && len(plan.Changes) > 0 {
		plan.Reasons = append(plan.Reasons, stopped)
	}
	return plan
}

// registry is the registry as the zone uses it.
func (o *Options) registry(zone rota.Name) registry {
	if o.Registry == nil {
		return registry{}
	}
	return registry{
		on: true, prefix: cmp.Or(o.Registry.Prefix, DefaultPrefix), zone: zone, owner: o.Owner(), formerly: o.formerly(),
		ttl: max(fenceTTL, o.Backend.Capabilities().MinTTL),
	}
}

// leavings is what left a zone lately: as the zone's loop knows it, or as it is on record.
func (p *Publisher) leavings(zone rota.Name) leavings {
	p.mu.Lock()
	z := p.zones[zone]
	if !p.leading {
		z = nil
	}
	p.mu.Unlock()
	if z != nil {
		z.mu.Lock()
		defer z.mu.Unlock()
		if z.left != nil {
			return maps.Clone(z.left)
		}
	}
	return leavingsOf(p.o.Name, zone, p.o.Recent(zone))
}

// formerly are the names that the installation had before.
func (o *Options) formerly() []string {
	if o.Formerly == nil {
		return nil
	}
	return o.Formerly()
}

// holder is heldBy, but for a zone that a person told this installation to take over.
// done is the newest such order that was carried out.
func (d desire) holder(zone rota.Name, o *Options, sets []rota.RRset, done uint64) (Fence, *Reason) {
	open := d.orders.after(done)
	f, r := heldBy(zone, o.Owner(), slices.Concat(o.formerly(), open.from()), sets)
	if r != nil && len(open.imports) > 0 && f.Offer == o.Owner() {
		return f, nil
	}
	return f, r
}

// heldBy reads the fence among the sets; the zero fence when there is none. The reason says that somebody else owns the zone.
func heldBy(zone rota.Name, owner string, formerly []string, sets []rota.RRset) (Fence, *Reason) {
	set := find(sets, FenceKey(zone))
	if len(set.Data) == 0 {
		return Fence{}, nil
	}
	f, err := parseFences(set, append(formerly[:len(formerly):len(formerly)], owner))
	switch {
	case err != nil:
		return Fence{}, &Reason{
			Code: CodeConflict, Zone: zone, Text: err.Error(), Advice: "nothing is written; remove that record if nobody needs it",
		}
	case f.Owner != owner && !slices.Contains(formerly, f.Owner) && f.Offer == owner:
		return f, &Reason{
			Code: CodeConflict, Zone: zone, Text: fmt.Sprintf("rota %q offers the zone to this installation", rota.CleanReason("%s", f.Owner)),
			Advice: "rota import takes it over",
		}
	case f.Owner != owner && !slices.Contains(formerly, f.Owner):
		return f, &Reason{
			Code: CodeConflict, Zone: zone, Text: fmt.Sprintf("the zone is written by rota %q, this is %q", rota.CleanReason("%s", f.Owner), owner),
			Advice: "stop one of the two; if this one is to keep the zone: rota import " + zone.Short() + " --from " + rota.CleanReason("%s", f.Owner),
		}
	}
	return f, nil
}

// Status is how a publisher stands.
type Status struct {
	Publisher    string       `json:"publisher"`
	Leading      bool         `json:"leading"` // it writes now; otherwise the rest is as of when it last did
	Term         uint64       `json:"term,omitempty"`
	DryRun       bool         `json:"dry_run,omitempty"` // it never writes
	Frozen       string       `json:"frozen,omitempty"`  // why it writes nothing at present
	Capabilities Capabilities `json:"capabilities"`
	Zones        []ZoneStatus `json:"zones"` // sorted
	Lost         []*Reason    `json:"lost"`  // names whose zone could not be found, sorted
}

// ZoneStatus is how one zone stands. Times are zero when there was none in this term.
type ZoneStatus struct {
	Zone        rota.Name     `json:"zone"`
	RRsets      int           `json:"rrsets"` // that rota keeps true there
	Fence       string        `json:"fence,omitempty"`
	LastTry     time.Time     `json:"last_try,omitzero"`
	LastSuccess time.Time     `json:"last_success,omitzero"` // the DNS was read and all of it is as it should be
	LastWrite   time.Time     `json:"last_write,omitzero"`
	Failures    int           `json:"failures"` // rounds in a row in which something was wrong
	Reasons     []*Reason     `json:"reasons"`  // of the last round; the first one concerns the zone if any does
	Records     []rota.RRset  `json:"records"`  // what the DNS said of the RRsets rota keeps when it was last asked, sorted; shared, not to be changed
	Held        []HeldChange  `json:"held"`     // what safety limits kept from being written in the last round; shared, not to be changed
	Drift       int           `json:"drift"`    // RRsets that were not as they should be when last read
	Repairs     uint64        `json:"repairs"`  // writes that nothing but the DNS called for: somebody else changed it
	Writes      uint64        `json:"writes"`
	Changes     uint64        `json:"changes"`
	Lag         time.Duration `json:"lag_ns"` // of the last write that a decision called for: from the decision to its read-back
}

// Status returns how the publisher stands.
func (p *Publisher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Status{
		Publisher: p.o.Name, Leading: p.leading, Term: p.term, DryRun: p.o.DryRun, Frozen: p.o.Frozen(),
		Capabilities: p.o.Backend.Capabilities(), Zones: []ZoneStatus{}, Lost: []*Reason{},
	}
	for _, n := range slices.Sorted(maps.Keys(p.zones)) {
		out.Zones = append(out.Zones, p.zones[n].Status())
	}
	for _, n := range slices.Sorted(maps.Keys(p.lost)) {
		r := *p.lost[n]
		r.Name = n
		out.Lost = append(out.Lost, &r)
	}
	return out
}
