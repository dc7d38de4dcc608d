package register

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// DNS is an authoritative server. Each method has a deadline of its own.
type DNS interface {
	// Zone returns the zone that holds a name, or ErrNoZone when the server has none for it.
	Zone(ctx context.Context, name rota.Name) (rota.Name, error)

	// Read returns what the server says of the keys, and a CNAME that stands at one of their names. All or nothing.
	Read(ctx context.Context, zone rota.Name, keys []rota.Key) ([]rota.RRset, error)

	// Swap makes the changes true, all or none, only if every Old and every RRset of require (absent ones have no data) is what the
	// zone holds; otherwise the error is ErrMoved. Without changes it finds out whether an update would be taken.
	Swap(ctx context.Context, zone rota.Name, require []rota.RRset, changes []rota.Change) error
}

// Errors of a DNS that say what to do next.
var (
	ErrNoZone = errors.New("the server holds no zone for it")
	ErrMoved  = errors.New("somebody else changes the same records at the same time")
	ErrAgain  = errors.New("this may pass") // no answer, or one that does not say whether it was done
)

// Job is what to write of one host. Template, Host and DNS must be set.
type Job struct {
	DNS      DNS
	Template *rota.RegisterTemplate // its TTLs are in Service.TTL; publishers and leases do not count here
	Host     string                 // the host's name
	// Addresses of the host. Without Whole the families they lack are not touched; with it the host has no others.
	Addresses []netip.Addr
	Whole     bool

	// Fence names the RRset that stands in a zone which a rota cluster keeps. Such a zone is not written unless Beside says that the
	// cluster keeps other names there.
	Fence  func(zone rota.Name) rota.Key
	Beside bool

	DryRun   bool          // plan, and write nothing
	Patience time.Duration // how long to go on while the DNS moves or does not answer; 0: DefaultPatience
}

// DefaultPatience is how long a job goes on while the DNS moves or does not answer.
const DefaultPatience = 30 * time.Second

// Update is what was, or with DryRun would be, written to one zone in one transaction.
type Update struct {
	Zone    rota.Name     `json:"zone"`
	Changes []rota.Change `json:"changes"`
}

// Result is what became of a job.
type Result struct {
	Host      string       `json:"host"`              // its first label, in lower case
	Record    rota.Name    `json:"record,omitempty"`  // its own
	Service   rota.Name    `json:"service,omitempty"` // that it belongs to
	Addresses []netip.Addr `json:"addresses"`
	Updates   []Update     `json:"updates"` // in the order they were made; none when all was so already
	Notes     []string     `json:"notes"`   // what was left out, and why
}

// Register makes the DNS say that the host is there: its own record has these addresses and no others, its service has them among those
// of others and lost those that the host's record had before, and each points back to the host's record. A service that is not there yet
// is made; one that is there keeps its TTL. The forward zone is written before the reverse zones, each in one transaction; pointers of
// addresses that the host no longer has go before that, since its record is the only one to know them. What is so already is not written.
// On an error the same call goes on where this one ended.
func (j Job) Register(ctx context.Context) (Result, error) { return j.run(ctx, true) }

// Deregister takes the host out: its own record, the addresses that this had, and Addresses, from its service, and their pointers.
func (j Job) Deregister(ctx context.Context) (Result, error) { return j.run(ctx, false) }

// work is a job under way.
type work struct {
	Job
	in     bool // it registers
	result Result
}

func (j Job) run(ctx context.Context, in bool) (Result, error) {
	w := &work{Job: j, in: in}
	parts, service, record, err := j.Template.Names(j.Host)
	if err != nil {
		return Result{}, err
	}
	if service == "" && record == "" {
		return Result{}, errors.New("the host would have neither a service nor a record of its own: say which")
	}
	w.result = Result{Host: parts.Host, Record: record, Service: service, Addresses: slices.Clone(j.Addresses), Updates: []Update{}, Notes: []string{}}
	slices.SortFunc(w.result.Addresses, netip.Addr.Compare)
	w.result.Addresses = slices.Compact(w.result.Addresses)
	for _, a := range w.result.Addresses {
		if err := rota.Publishable(a); err != nil {
			return Result{}, err
		}
	}
	if in && len(w.result.Addresses) == 0 {
		return Result{}, errors.New("no address to register")
	}
	if j.Patience == 0 {
		j.Patience = DefaultPatience
	}
	deadline := time.Now().Add(j.Patience)
	pause := 25 * time.Millisecond
	for agreed := 0; ; {
		err := w.round(ctx)
		switch {
		case err == errWritten:
			if agreed++; agreed == rereads {
				return w.result, errors.New("the server agrees to the update and does not do it: look for other records of these names, or a policy of the server")
			}
			continue
		case !errors.Is(err, ErrMoved) && !errors.Is(err, ErrAgain):
			return w.result, err
		case time.Now().Add(pause).After(deadline):
			return w.result, fmt.Errorf("given up after %v: %w", j.Patience, err)
		}
		select {
		case <-ctx.Done():
			return w.result, errors.Join(ctx.Err(), err)
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, time.Second)
	}
}

// rereads is how often a server may agree to an update before it is believed that it does not do it.
const rereads = 4

// errWritten says that a round wrote everything it had planned.
var errWritten = errors.New("written, and not yet read back")

// round is read → plan → write, once. It returns nil when there was nothing to write.
func (w *work) round(ctx context.Context) error {
	p := &plan{work: w, zones: map[rota.Name]*update{}}
	w.result.Notes = []string{}
	if err := p.make(ctx); err != nil {
		return err
	}
	steps := p.steps()
	if w.DryRun {
		w.result.Updates = []Update{}
		for _, s := range steps {
			w.result.Updates = append(w.result.Updates, Update{s.zone, s.changes})
		}
		return nil
	}
	if len(steps) == 0 {
		return nil
	}
	if w.in && len(steps) > 1 {
		// Better to hear of a refusal before the first zone is written than after. What leaves, leaves where it can.
		for _, s := range steps {
			if err := w.DNS.Swap(ctx, s.zone, s.olds(), nil); err != nil {
				return fmt.Errorf("zone %s: %w", s.zone.Short(), err)
			}
		}
	}
	var failed, final []error
	for _, s := range steps {
		err := w.DNS.Swap(ctx, s.zone, s.require, s.changes)
		if err == nil {
			w.result.Updates = append(w.result.Updates, Update{s.zone, s.changes})
			continue
		}
		err = fmt.Errorf("zone %s: %w", s.zone.Short(), err)
		failed = append(failed, err)
		if !errors.Is(err, ErrMoved) && !errors.Is(err, ErrAgain) {
			final = append(final, err)
		}
		if s.forward {
			break
		}
	}
	switch {
	case len(final) > 0:
		return errors.Join(final...)
	case len(failed) > 0:
		return errors.Join(failed...)
	}
	return errWritten
}

// update is what one zone should become.
type update struct {
	zone    rota.Name
	require []rota.RRset
	changes []rota.Change
	forward bool // it holds the host or its service
	drops   bool // it takes pointers of former addresses out
}

// olds is all that the update depends on.
func (u *update) olds() []rota.RRset {
	out := slices.Clone(u.require)
	for _, c := range u.changes {
		out = append(out, c.Old)
	}
	return out
}

// plan is what a host's names need, zone by zone, in the order they were met.
type plan struct {
	*work
	zones map[rota.Name]*update
	order []*update
}

// zone returns the part of the plan for a zone; the first time it is looked whether the zone may be written.
func (p *plan) zone(ctx context.Context, name rota.Name) (*update, error) {
	if u := p.zones[name]; u != nil {
		return u, nil
	}
	u := &update{zone: name}
	if !p.Beside {
		fence := p.Fence(name)
		sets, err := p.DNS.Read(ctx, name, []rota.Key{fence})
		if err != nil {
			return nil, fmt.Errorf("zone %s: %w", name.Short(), err)
		}
		if s := find(sets, fence); len(s.Data) > 0 {
			return nil, &Kept{Zone: name, Mark: s}
		}
		u.require = append(u.require, rota.RRset{Name: fence.Name, Type: fence.Type})
	}
	p.zones[name] = u
	p.order = append(p.order, u)
	return u, nil
}

// Kept says that a rota cluster keeps a zone.
type Kept struct {
	Zone rota.Name
	Mark rota.RRset // that says so
}

func (k *Kept) Error() string {
	return fmt.Sprintf("zone %s is kept by rota, as its record %s says (%s): nothing is written", k.Zone.Short(), k.Mark.Key(),
		rota.CleanReason("%s", strings.Join(k.Mark.Data, " ")))
}

// steps are the zones with something to write, in the order they are written.
func (p *plan) steps() []*update {
	out := slices.DeleteFunc(p.order, func(u *update) bool { return len(u.changes) == 0 })
	rank := func(u *update) int {
		switch {
		case u.drops && !u.forward:
			return 0
		case u.forward:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(out, func(a, b *update) int { return rank(a) - rank(b) })
	return out
}

// make reads and plans.
func (p *plan) make(ctx context.Context) error {
	t, own := p.Template, p.result.Addresses
	former := map[rota.Type][]netip.Addr{} // of the host's own record
	if p.result.Record != "" {
		u, sets, err := p.forward(ctx, p.result.Record, t.HostZone)
		if err != nil {
			return err
		}
		for _, k := range families {
			have := find(sets, rota.Key{Name: p.result.Record, Type: k})
			former[k] = addresses(have)
			switch mine := ofFamily(own, k); {
			case !p.in:
				u.become(have, nil, 0)
			case len(mine) > 0 || p.Whole:
				u.become(have, texts(mine), t.Service.TTL)
			}
		}
	}
	gone := map[rota.Type][]netip.Addr{}
	for _, k := range families {
		mine := ofFamily(own, k)
		switch {
		case !p.in:
			gone[k] = union(former[k], mine)
		case len(mine) > 0 || p.Whole:
			gone[k] = minus(former[k], mine)
		}
	}
	if p.result.Service != "" {
		u, sets, err := p.forward(ctx, p.result.Service, t.Service.Zone)
		if err != nil {
			return err
		}
		for _, k := range families {
			have := find(sets, rota.Key{Name: p.result.Service, Type: k})
			ttl := have.TTL
			if len(have.Data) == 0 {
				ttl = t.Service.TTL
			}
			want := minus(addresses(have), gone[k])
			if p.in {
				want = union(want, ofFamily(own, k))
			}
			u.become(have, texts(want), ttl)
		}
	}
	if p.result.Record == "" {
		return nil
	}
	for _, k := range families {
		for _, a := range gone[k] {
			if err := p.pointer(ctx, a, false); err != nil {
				return err
			}
		}
	}
	if p.in {
		for _, a := range own {
			if err := p.pointer(ctx, a, true); err != nil {
				return err
			}
		}
	}
	return nil
}

var families = []rota.Type{rota.TypeA, rota.TypeAAAA}

// forward reads the addresses of a name that is the host's or its service's.
func (p *plan) forward(ctx context.Context, name, zone rota.Name) (*update, []rota.RRset, error) {
	if zone == "" {
		var err error
		if zone, err = p.DNS.Zone(ctx, name); err != nil {
			return nil, nil, fmt.Errorf("zone of %s: %w", name.Short(), err)
		}
	}
	if !name.In(zone) {
		return nil, nil, fmt.Errorf("%s is not in the zone %s", name.Short(), zone.Short())
	}
	u, err := p.zone(ctx, zone)
	if err != nil {
		return nil, nil, err
	}
	u.forward = true
	sets, err := p.DNS.Read(ctx, zone, []rota.Key{{Name: name, Type: rota.TypeA}, {Name: name, Type: rota.TypeAAAA}})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name.Short(), err)
	}
	if c := find(sets, rota.Key{Name: name, Type: rota.TypeCNAME}); len(c.Data) > 0 {
		return nil, nil, fmt.Errorf("%s is a CNAME to %s: nothing is written; remove it, or choose another name", name.Short(),
			rota.CleanReason("%s", strings.Join(c.Data, " ")))
	}
	u.alone(name)
	return u, sets, nil
}

// alone has the update depend on there being no CNAME at a name: servers agree to records beside one, and leave them out.
func (u *update) alone(name rota.Name) {
	u.require = append(u.require, rota.RRset{Name: name, Type: rota.TypeCNAME})
}

// become notes what one RRset should become, if it is not so.
func (u *update) become(have rota.RRset, data []string, ttl uint32) {
	want := rota.RRset{Name: have.Name, Type: have.Type, TTL: ttl, Data: data}
	u.changes = append(u.changes, rota.Diff([]rota.RRset{have}, []rota.RRset{want})...)
}

// maxAlias bounds how many CNAMEs a pointer is followed through (RFC 2317 wants one).
const maxAlias = 4

// pointer notes that an address should point to the host's record, or should no longer.
func (p *plan) pointer(ctx context.Context, a netip.Addr, wanted bool) error {
	r, name, ok := p.Template.Pointer(a)
	if !ok {
		if len(p.Template.Reverse) > 0 && wanted {
			p.result.Notes = append(p.result.Notes, fmt.Sprintf("no pointer for %s: none of the reverse zones is for it", a))
		}
		return nil
	}
	zone := r.Zone
	for range maxAlias {
		if zone == "" {
			var err error
			if zone, err = p.DNS.Zone(ctx, name); errors.Is(err, ErrNoZone) && r.Zone == "" {
				p.result.Notes = append(p.result.Notes, fmt.Sprintf("no pointer for %s: the server holds no zone for %s", a, name.Short()))
				return nil
			} else if err != nil {
				return fmt.Errorf("zone of %s: %w", name.Short(), err)
			}
		}
		sets, err := p.DNS.Read(ctx, zone, []rota.Key{{Name: name, Type: rota.TypePTR}})
		if err != nil {
			return fmt.Errorf("%s: %w", name.Short(), err)
		}
		if c := find(sets, rota.Key{Name: name, Type: rota.TypeCNAME}); len(c.Data) > 0 {
			if name, err = rota.ParseName(c.Data[0]); err != nil {
				return err
			}
			zone = ""
			continue
		}
		u, err := p.zone(ctx, zone)
		if err != nil {
			return err
		}
		have := find(sets, rota.Key{Name: name, Type: rota.TypePTR})
		if wanted {
			u.alone(name)
			u.become(have, []string{p.result.Record.String()}, p.Template.Service.TTL)
			return nil
		}
		if left := minus(have.Data, []string{p.result.Record.String()}); len(left) < len(have.Data) {
			u.drops = true
			u.become(have, left, have.TTL)
		}
		return nil
	}
	return fmt.Errorf("the pointer of %s leads through more than %d CNAMEs", a, maxAlias)
}

// find returns the RRset of a key, absent when it is not among the sets.
func find(sets []rota.RRset, k rota.Key) rota.RRset {
	for _, s := range sets {
		if s.Key() == k {
			return s
		}
	}
	return rota.RRset{Name: k.Name, Type: k.Type}
}

func addresses(s rota.RRset) []netip.Addr {
	var out []netip.Addr
	for _, d := range s.Data {
		if a, err := netip.ParseAddr(d); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func ofFamily(all []netip.Addr, t rota.Type) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return a.Is4() != (t == rota.TypeA) })
}

func texts(all []netip.Addr) []string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return out
}

func minus[T comparable](a, b []T) []T {
	return slices.DeleteFunc(slices.Clone(a), func(x T) bool { return slices.Contains(b, x) })
}

func union[T comparable](a, b []T) []T { return append(minus(a, b), b...) }
