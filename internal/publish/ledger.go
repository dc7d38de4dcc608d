package publish

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// driver is one provider's API, as thin as the API is. Its methods answer whole or fail, with a *Reason where the cause is known,
// repeat nothing, and are safe for concurrent use.
type driver interface {
	// capabilities never change.
	capabilities() Capabilities
	// zones lists the zones that the credentials reach.
	zones(ctx context.Context) ([]rota.Name, error)
	// list returns the records of the names, of every type; those of other names do no harm.
	list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error)
	// commit makes b.Fence and b.Changes true. held is what list said of their names a moment ago: it was found to hold every Old.
	// With FenceServer it is one transaction that happens only if what it replaces is still there, otherwise the error is ErrMoved.
	// With FenceCompare the fence is first, and nothing else happens if that fails; an error after it has moved is in doubt.
	commit(ctx context.Context, b Batch, held []entry) error
}

// entry is one record of a provider.
type entry struct {
	Key    rota.Key
	TTL    uint32
	Data   string // in the canonical form of rota.RRset
	ID     string // by which the provider knows it; its own way where there is none
	AnyTTL bool   // the provider chooses the TTL
	Tag    string // what else the driver wants to know of it when it changes its name
	Locked string // why rota must not touch the name; empty: it may
}

// newEntry makes an entry of what an API says: names and data as text. What rota cannot read is locked, so that it is neither lost nor
// touched. Its key has type 0 when the type is none of the DNS's own. Data of types that rota never writes is left as it is: APIs
// shorten some of them.
func newEntry(name rota.Name, kind string, ttl uint32, text string) entry {
	t, ok := dns.StringToType[strings.ToUpper(kind)]
	if !ok {
		if n, err := rota.ParseType(kind); err == nil {
			t, ok = uint16(n), true
		}
	}
	e := entry{Key: rota.Key{Name: name, Type: rota.Type(t)}, TTL: ttl, Data: text}
	if !ok {
		e.Locked = fmt.Sprintf("is of the type %s, which is the provider's own", rota.CleanReason("%s", kind))
		return e
	}
	switch e.Key.Type {
	case rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT, rota.TypePTR, rota.TypeNS, rota.TypeMX, rota.TypeSRV, rota.Type(dns.TypeDNAME):
	default:
		return e
	}
	data, err := canonical(e.Key.Type, text)
	if err != nil {
		e.Locked = fmt.Sprintf("cannot be read: %v", err)
		return e
	}
	e.Data = data
	return e
}

// mnemonic is how APIs call a type.
func mnemonic(t rota.Type) string { return dns.Type(t).String() }

// ledger makes a Backend of a driver: it finds zones, compares before every write, does not believe a list that lags behind what was
// written or that has lost everything at once, and keeps CNAMEs from standing beside other data.
type ledger struct {
	driver
	settle time.Duration // how long a list may lag behind a write

	mu      sync.Mutex // guards what follows
	found   []rota.Name
	asked   time.Time // when zones was asked last
	refused *Reason   // of the last list of zones, when it will not pass by itself
	until   time.Time // refused is not asked for again
	written map[rota.Name]map[rota.Key]written
	blank   map[rota.Name]blank
}

// written is one RRset as it was and as it was made.
type written struct {
	old, new []string
	at       time.Time
}

// blank counts how often in a row a zone that had records listed none.
type blank struct {
	had   bool
	times int
}

// How long what a provider lists is taken for true.
const (
	zonesAge     = 10 * time.Minute // the list of zones
	zonesRetry   = 30 * time.Second // the list of zones, when a name is in none of them
	zonesRefused = 5 * time.Second  // that the list of zones is refused, which many names in a row ask for
	settleFor    = 30 * time.Second // the usual time in which a list catches up with a write
	zonesWithin  = time.Minute      // one list of all zones
	writeWithin  = time.Minute      // one Write in all
	readWithin   = 30 * time.Second // one Read in all, however often it looks
)

func newLedger(d driver, settle time.Duration) *ledger {
	return &ledger{driver: d, settle: settle, written: map[rota.Name]map[rota.Key]written{}, blank: map[rota.Name]blank{}}
}

// Capabilities are the driver's.
func (l *ledger) Capabilities() Capabilities { return l.capabilities() }

// Zones lists the zones of the account, as the provider says it now.
func (l *ledger) Zones(ctx context.Context) ([]rota.Name, error) {
	ctx, cancel := context.WithTimeout(ctx, zonesWithin)
	defer cancel()
	return l.zones(ctx)
}

// Zone returns the longest zone of the account that holds the name.
func (l *ledger) Zone(ctx context.Context, name rota.Name) (rota.Name, error) {
	l.mu.Lock()
	found, age, refused := l.found, time.Since(l.asked), l.refused
	if !time.Now().Before(l.until) {
		refused = nil
	}
	l.mu.Unlock()
	z, ok := rota.LongestZone(name, found)
	if ok && age < zonesAge {
		return z, nil
	}
	if ok || age >= zonesRetry {
		if refused != nil {
			return "", refused
		}
		fresh, err := l.Zones(ctx)
		if err != nil {
			if r := ReasonOf(err); !r.Transient {
				l.mu.Lock()
				l.refused, l.until = r, time.Now().Add(zonesRefused)
				l.mu.Unlock()
			}
			return "", err
		}
		l.mu.Lock()
		l.found, l.asked = fresh, time.Now()
		l.mu.Unlock()
		if z, ok = rota.LongestZone(name, fresh); ok {
			return z, nil
		}
		found = fresh
	}
	text := "no zone of this account holds it"
	if len(found) == 0 {
		text = "the account shows no zone at all"
	}
	return "", &Reason{
		Code: CodeNoZone, Name: name, Text: text, Advice: "create the zone there or check what the credentials may see; rota never creates zones",
	}
}

// Read lists the names of the keys. A list that shows what stood there before a recent write is asked for again.
func (l *ledger) Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	// The fence is always asked for: a list that is asked for names that have nothing says no more than that.
	names := withAncestors(zone, append(slices.Clone(keys), FenceKey(zone)))
	pause := 200 * time.Millisecond
	for {
		entries, err := l.list(ctx, zone, names)
		if err != nil {
			return Reading{}, err
		}
		if err := l.believable(zone, entries); err != nil {
			return Reading{}, err
		}
		lag, late := l.lags(zone, names, entries)
		if !late {
			return reading(zone, keys, entries), nil
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return Reading{}, lag
		case <-t.C:
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// withAncestors returns the names of the keys and those above them, below the apex of the zone, where a delegation would stand.
func withAncestors(zone rota.Name, keys []rota.Key) []rota.Name {
	var out []rota.Name
	seen := map[rota.Name]bool{}
	for _, k := range keys {
		for n := k.Name; n.In(zone) && !seen[n] && (n != zone || n == k.Name); n = n.Parent() {
			seen[n] = true
			out = append(out, n)
			if n == zone {
				break
			}
		}
	}
	return out
}

// believable refuses a zone that had records and lists none, until it has said so often enough.
func (l *ledger) believable(zone rota.Name, entries []entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.blank[zone]
	if len(entries) > 0 {
		l.blank[zone] = blank{had: true}
		return nil
	}
	if !b.had || b.times >= patience {
		return nil
	}
	b.times++
	l.blank[zone] = b
	return &Reason{
		Code: CodeMoving, Transient: true, Zone: zone, Text: "the API lists no record at all any more, which is not believed at once",
		Advice: "look whether the zone was emptied there",
	}
}

// lags reports whether the list of the names shows an RRset as it was before a recent write. Such an RRset is believed when the time to
// settle is over.
func (l *ledger) lags(zone rota.Name, names []rota.Name, entries []entry) (*Reason, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	recent := l.written[zone]
	if len(recent) == 0 {
		return nil, false
	}
	index := map[rota.Key][]string{}
	for _, e := range entries {
		index[e.Key] = append(index[e.Key], e.Data)
	}
	listed := map[rota.Name]bool{}
	for _, n := range names {
		listed[n] = true
	}
	for k, w := range recent {
		now := index[k]
		slices.Sort(now)
		switch age := time.Since(w.at); {
		case age > l.settle || slices.Equal(now, w.new):
			delete(recent, k)
		case listed[k.Name] && slices.Equal(now, w.old):
			return &Reason{
				Code: CodeMoving, Transient: true, Zone: zone,
				Text: fmt.Sprintf("the API still shows %s as it was before our write of %v ago", k, age.Round(time.Second)), Advice: "it catches up by itself",
			}, true
		}
	}
	return nil, false
}

func (l *ledger) remember(b Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	recent := l.written[b.Zone]
	if recent == nil {
		recent = map[rota.Key]written{}
		l.written[b.Zone] = recent
	}
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		recent[c.Key()] = written{old: c.Old.Data, new: c.New.Data, at: time.Now()}
	}
}

// reading makes RRsets of entries, and finds what stands in the way.
func reading(zone rota.Name, keys []rota.Key, entries []entry) Reading {
	out := Reading{Blocked: map[rota.Name]*Reason{}, AnyTTL: map[rota.Key]bool{}}
	sets := map[rota.Key]*rota.RRset{}
	wanted := map[rota.Name]bool{}
	for _, k := range keys {
		wanted[k.Name] = true
	}
	for _, e := range entries {
		n := e.Key.Name
		if n != zone && (e.Key.Type == rota.Type(dns.TypeNS) || e.Key.Type == rota.Type(dns.TypeDNAME)) {
			for w := range wanted {
				if w.In(n) && (w != n || e.Key.Type == rota.Type(dns.TypeNS)) {
					out.Blocked[w] = inTheWayOf(w, e)
				}
			}
		}
		if !wanted[n] {
			continue
		}
		if e.Locked != "" {
			what := fmt.Sprintf("its %s record", e.Key.Type)
			if e.Key.Type == 0 {
				what = "another record there"
			}
			out.Blocked[n] = &Reason{
				Code: CodeOther, Zone: zone, Name: n, Text: what + " " + e.Locked,
				Advice: "remove that record there, or take the service out of rota",
			}
		}
		s := sets[e.Key]
		if s == nil {
			s = &rota.RRset{Name: n, Type: e.Key.Type, TTL: e.TTL}
			sets[e.Key] = s
		}
		s.TTL = min(s.TTL, e.TTL)
		s.Data = append(s.Data, e.Data)
		if e.AnyTTL {
			out.AnyTTL[e.Key] = true
		}
	}
	for _, k := range keys {
		for _, at := range []rota.Key{k, {Name: k.Name, Type: rota.TypeCNAME}} {
			if s := sets[at]; s != nil {
				slices.Sort(s.Data)
				s.Data = slices.Compact(s.Data)
				out.Sets = append(out.Sets, *s)
				delete(sets, at)
			}
		}
	}
	return out
}

func inTheWayOf(n rota.Name, e entry) *Reason {
	if e.Key.Type == rota.Type(dns.TypeDNAME) {
		return redirected(n, e.Key.Name, e.Data, "")
	}
	return delegated(n, e.Key.Name, "")
}

// Write compares what the changes were planned on with what stands there, and has the driver make them true.
func (l *ledger) Write(ctx context.Context, b Batch) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	n := fitting(b.Changes, l.capabilities().Batch, eachIsOne)
	if p, ok := l.driver.(packer); ok {
		n = p.pack(b.Changes)
	}
	b.Changes = slices.Clone(b.Changes[:n])
	for i := range b.Changes {
		b.Changes[i].New.TTL = max(b.Changes[i].New.TTL, l.capabilities().MinTTL)
	}
	b.Fence.New.TTL = max(b.Fence.New.TTL, l.capabilities().MinTTL)
	keys := []rota.Key{b.Fence.Key()}
	for _, c := range b.Changes {
		if t := c.Key().Type; !l.capabilities().Takes(t) {
			return n, &Reason{
				Code: CodeUnsupported, Zone: b.Zone, Name: c.Key().Name, Text: fmt.Sprintf("records of the type %s cannot be written there", mnemonic(t)),
				Advice: "publish the service to a DNS that takes them",
			}
		}
		keys = append(keys, c.Key())
	}
	entries, err := l.list(ctx, b.Zone, withAncestors(b.Zone, keys))
	if err != nil {
		r := *ReasonOf(err)
		r.InDoubt = false // nothing was written yet
		return n, &r
	}
	if err := stands(b, entries); err != nil {
		return n, err
	}
	if ctx.Err() != nil {
		return n, &Reason{Code: CodeUnreachable, Transient: true, Zone: b.Zone, Text: "reading took too long, so nothing was written"}
	}
	if err := l.commit(ctx, b, entries); err != nil {
		return n, err
	}
	l.remember(b)
	return n, nil
}

// packer is a driver whose transactions are bounded by other things than the number of changes.
type packer interface {
	driver
	// pack returns how many leading changes make one transaction; those of one name are never parted, and the first name always counts.
	pack(changes []rota.Change) int
}

// eachIsOne is the size of a change where only their number is bounded.
func eachIsOne(rota.Change) int { return 1 }

// fitting returns how many leading changes have a size of at most limit in all, those of one name never parted; all when limit is 0.
// The first name fits whatever its size.
func fitting(changes []rota.Change, limit int, size func(rota.Change) int) int {
	if limit <= 0 {
		return len(changes)
	}
	n, used := 0, 0
	for names := range byName(changes) {
		for _, c := range names {
			used += size(c)
		}
		if n > 0 && used > limit {
			break
		}
		n += len(names)
	}
	return n
}

// stands compares the old side of every change with what is there.
func stands(b Batch, entries []entry) error {
	index := map[rota.Key][]string{}
	other := map[rota.Name]rota.Type{}
	for _, e := range entries {
		index[e.Key] = append(index[e.Key], e.Data)
	}
	goes := map[rota.Key]bool{}
	for _, c := range b.Changes {
		goes[c.Key()] = len(c.New.Data) == 0
	}
	for _, e := range entries {
		if t := e.Key.Type; t != rota.TypeCNAME && !goes[e.Key] {
			other[e.Key.Name] = t
		}
	}
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		now := index[c.Key()]
		slices.Sort(now)
		if !slices.Equal(slices.Compact(now), c.Old.Data) {
			return ErrMoved
		}
		if t, beside := other[c.Key().Name]; beside && c.Key().Type == rota.TypeCNAME && len(c.New.Data) > 0 {
			return &Reason{
				Code: CodeOther, Zone: b.Zone, Name: c.Key().Name, Text: fmt.Sprintf("a CNAME cannot stand beside the %s records there (RFC 1034 §3.6.2)", t),
				Advice: "remove those records, or choose another safety.on_all_down than fallback",
			}
		}
	}
	return nil
}

// editor changes one record at a time.
type editor interface {
	// list is driver's.
	list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error)
	// create adds a record; that it is there already is a success.
	create(ctx context.Context, zone rota.Name, e entry) error
	// retime gives a record another TTL.
	retime(ctx context.Context, zone rota.Name, e entry, ttl uint32) error
	// remove removes a record; that it is gone already is a success.
	remove(ctx context.Context, zone rota.Name, e entry) error
}

// stepwise makes a batch true record by record: the fence first, then name by name what is new before what goes, so that no name is
// ever without records; but a CNAME and the addresses of its name, which cannot stand together, the other way round (see flip). An error
// after the fence has moved is in doubt.
func stepwise(ctx context.Context, d editor, b Batch, held []entry) error {
	s := steps{ctx: ctx, d: d, zone: b.Zone, held: map[rota.Key][]entry{}}
	for _, e := range held {
		s.held[e.Key] = append(s.held[e.Key], e)
	}
	if err := s.fence(b.Fence); err != nil {
		return err
	}
	for changes := range byName(b.Changes) {
		if err := s.lookAgain(b.Fence); err != nil {
			return err
		}
		var err error
		if slices.ContainsFunc(changes, func(c rota.Change) bool { return c.Key().Type == rota.TypeCNAME }) {
			err = s.flip(b.Fence, changes)
		} else {
			err = each(changes, s.add, s.drop)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// each takes steps one after the other, each for all changes of a name. Its error is in doubt.
func each(changes []rota.Change, steps ...func(rota.Change) error) error {
	for _, step := range steps {
		for _, c := range changes {
			if err := step(c); err != nil {
				r := inDoubt(err)
				r.Name = c.Key().Name
				return r
			}
		}
	}
	return nil
}

// steps is one batch on its way.
type steps struct {
	ctx    context.Context
	d      editor
	zone   rota.Name
	held   map[rota.Key][]entry
	looked time.Time // when no fence but ours was there
}

// lookEvery bounds how long a writer goes on that was deposed between two of its steps.
const lookEvery = 5 * time.Second

// fence puts the new fence beside the old one and looks: whoever finds a third one there takes its own back and gives way, so that of
// two writers at most one goes on. Only then does the old one go.
func (s *steps) fence(c rota.Change) error {
	if err := s.add(c); err != nil {
		return err
	}
	third, mine, err := s.look(c)
	if err != nil {
		return inDoubt(err)
	}
	if !third {
		if err := s.drop(c); err != nil {
			return inDoubt(err)
		}
		return nil
	}
	for _, e := range mine {
		if err := s.d.remove(s.ctx, s.zone, e); err != nil {
			return inDoubt(err)
		}
	}
	return ErrMoved
}

// look reports whether there is a fence that is neither the one that c replaces nor the one it makes, and returns those it makes.
func (s *steps) look(c rota.Change) (third bool, mine []entry, _ error) {
	now, err := s.d.list(s.ctx, s.zone, []rota.Name{c.Key().Name})
	for _, e := range now {
		switch {
		case e.Key != c.Key():
		case slices.Contains(c.New.Data, e.Data):
			mine = append(mine, e)
		case !slices.Contains(c.Old.Data, e.Data):
			third = true
		}
	}
	s.looked = time.Now()
	return third, mine, err
}

// lookAgain makes sure now and then that nobody has taken the zone since the fence was ours.
func (s *steps) lookAgain(c rota.Change) error {
	if time.Since(s.looked) < lookEvery {
		return nil
	}
	third, _, err := s.look(c)
	if err == nil && third {
		err = &Reason{Code: CodeMoving, Transient: true, Zone: s.zone, Text: "another writer took the zone while records were written"}
	}
	if err != nil {
		return inDoubt(err)
	}
	return nil
}

// flipWithin bounds a flip, and what puts it right when it failed.
const flipWithin = 15 * time.Second

// flip puts a CNAME in the place of a name's addresses, or the reverse. Once begun it goes on when the batch's context ends, and what went is
// put back when what should come instead did not: a name without records waits for nobody.
func (s *steps) flip(fence rota.Change, changes []rota.Change) error {
	if s.ctx.Err() != nil {
		return inDoubt(s.ctx.Err())
	}
	now := *s
	var cancel context.CancelFunc
	now.ctx, cancel = context.WithTimeout(context.WithoutCancel(s.ctx), flipWithin)
	err := each(changes, now.drop, now.add)
	cancel()
	if err != nil {
		now.ctx, cancel = context.WithTimeout(context.WithoutCancel(s.ctx), flipWithin)
		defer cancel()
		now.restore(fence, changes)
	}
	return err
}

// restore puts back what a failed flip has taken, where the name is seen to be bare and the fence to be ours. The publisher looks again,
// whatever comes of it.
func (s *steps) restore(fence rota.Change, changes []rota.Change) {
	there, err := s.d.list(s.ctx, s.zone, []rota.Name{changes[0].Key().Name, fence.Key().Name})
	if err != nil {
		return
	}
	for _, e := range there {
		foreign := e.Key == fence.Key() && !slices.Contains(fence.New.Data, e.Data)
		if foreign || slices.ContainsFunc(changes, func(c rota.Change) bool { return c.Key() == e.Key }) {
			return
		}
	}
	for _, c := range changes {
		for _, e := range s.held[c.Key()] {
			if s.d.create(s.ctx, s.zone, e) != nil {
				return
			}
		}
	}
}

// inDoubt returns the reason of an error that came after something was written.
func inDoubt(err error) *Reason {
	r := *ReasonOf(err)
	r.InDoubt = true
	return &r
}

func (s *steps) add(c rota.Change) error {
	for _, data := range c.Added() {
		if err := s.d.create(s.ctx, s.zone, entry{Key: c.Key(), TTL: c.New.TTL, Data: data}); err != nil {
			return err
		}
	}
	return nil
}

func (s *steps) drop(c rota.Change) error {
	for _, e := range s.held[c.Key()] {
		switch {
		case !slices.Contains(c.New.Data, e.Data):
			if err := s.d.remove(s.ctx, s.zone, e); err != nil {
				return err
			}
		case e.TTL != c.New.TTL && !e.AnyTTL:
			if err := s.d.retime(s.ctx, s.zone, e, c.New.TTL); err != nil {
				return err
			}
		}
	}
	return nil
}

// inZone returns the name that a provider writes as text: relative to the zone, empty or @ at its apex, or whole with a trailing dot.
func inZone(zone rota.Name, text string) (rota.Name, error) {
	switch {
	case text == "" || text == "@":
		return zone, nil
	case strings.HasSuffix(text, "."):
		return rota.ParseName(text)
	case zone == ".":
		return rota.ParseName(text + ".")
	}
	return rota.ParseName(text + "." + zone.String())
}

// relative returns a name without its zone, empty at the apex.
func relative(zone, n rota.Name) string {
	return strings.TrimSuffix(strings.TrimSuffix(n.String(), strings.TrimPrefix(zone.String(), ".")), ".")
}

// canonical turns a provider's text of a record's data into the form of rota.RRset. Names in it are relative to nothing: without a
// trailing dot they are taken as whole.
func canonical(t rota.Type, text string) (string, error) {
	switch t {
	case rota.TypeCNAME, rota.TypePTR, rota.Type(dns.TypeNS), rota.Type(dns.TypeDNAME):
		n, err := rota.ParseName(text)
		return n.String(), err
	case rota.TypeTXT:
		if !strings.HasPrefix(strings.TrimSpace(text), `"`) {
			text = quoteTXT(text)
		}
	}
	rr, err := dns.NewRR(". 0 IN " + mnemonic(t) + " " + text)
	if err != nil || rr == nil {
		return "", fmt.Errorf("%q is not the data of a %s record", rota.CleanReason("%s", text), mnemonic(t))
	}
	return rdata(rr)
}

// quoteTXT writes a text as the character-strings of a TXT record (RFC 1035 §5.1), 255 octets each.
func quoteTXT(text string) string {
	var out []string
	for len(text) > 255 {
		out = append(out, escapeTXT(text[:255]))
		text = text[255:]
	}
	return strings.Join(append(out, escapeTXT(text)), " ")
}

func escapeTXT(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// plainTXT is the text of a TXT record's data without quotes and escapes, for providers that want it so.
func plainTXT(data string) (string, error) {
	rr, err := dns.NewRR(". 0 IN TXT " + data)
	if err != nil || rr == nil {
		return "", fmt.Errorf("%q is not the data of a TXT record", data)
	}
	var b strings.Builder
	for _, s := range rr.(*dns.TXT).Txt {
		for i := 0; i < len(s); i++ {
			if s[i] != '\\' {
				b.WriteByte(s[i])
				continue
			}
			if i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '9' {
				b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + (s[i+3] - '0'))
				i += 3
			} else if i+1 < len(s) {
				i++
				b.WriteByte(s[i])
			}
		}
	}
	return b.String(), nil
}
