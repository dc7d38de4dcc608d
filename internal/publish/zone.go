package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// zone keeps one zone true.
type zone struct {
	o    Options
	name rota.Name
	term uint64
	poke chan struct{} // a newer desire is there
	look chan struct{} // a person asked for a look

	mu      sync.Mutex // guards the mailbox and what is shown
	desired desire
	asked   uint64 // the newest instruction that was looked at
	status  ZoneStatus
	left    leavings // what left the DNS lately; nil before the loop began

	// What follows is owned by run.
	fence   Fence
	held    bool      // fence is ours, as far as is known
	doubt   bool      // a message of ours may still arrive: the fence must move before anything is believed to stay
	behind  int       // reads in a row that showed less than was written
	fenced  int       // times in a row that another took the fence
	late    time.Time // when the fence was taken from another writer, or a request of our own was left in doubt
	last    desire    // that the DNS was seen to say; its wants alone
	born    time.Time
	pending []pending              // written and not yet read back, or in doubt
	refused map[rota.Name]*refusal // names the server does not take
	renewed uint64                 // the newest refresh whose additions were made
	lapses  uint64                 // what Lapses said when leadership was last confirmed
	// imported is the newest order when the zone was last taken.
	imported uint64
}

// pending is a change whose effect has not been seen yet.
type pending struct {
	change rota.Change
	start  time.Time
	epoch  uint64
	doubt  bool // nobody said that it happened
}

// refusal keeps one name that the server refuses from holding up the others.
type refusal struct {
	reason  *Reason
	changes string
	until   time.Time
}

func newZone(o Options, name rota.Name, term uint64) *zone {
	return &zone{
		o: o, name: name, term: term, poke: make(chan struct{}, 1), look: make(chan struct{}, 1), refused: map[rota.Name]*refusal{}, born: o.Now(),
		status: ZoneStatus{Zone: name, Reasons: []*Reason{}, Held: []HeldChange{}},
	}
}

// want leaves the newest desire for the loop: it replaces one that was not looked at yet.
func (z *zone) want(d desire) {
	z.mu.Lock()
	z.desired = d
	asked := d.orders.index > z.asked
	z.asked = max(z.asked, d.orders.index)
	z.mu.Unlock()
	signal := z.poke
	if asked {
		signal = z.look
	}
	select {
	case signal <- struct{}{}:
	default:
	}
}

// Status returns how the zone stands.
func (z *zone) Status() ZoneStatus {
	z.mu.Lock()
	defer z.mu.Unlock()
	s := z.status
	s.Reasons = slices.Clone(s.Reasons)
	return s
}

// run makes the zone true until ctx ends. Its error is for leadership: ErrFenced.
func (z *zone) run(ctx context.Context) error {
	past := leavingsOf(z.o.Name, z.name, z.o.Recent(z.name))
	z.mu.Lock()
	z.left = past
	z.mu.Unlock()
	pace := newBackoff(z.o)
	var failed time.Time
	for {
		select { // what is taken now is the newest
		case <-z.poke:
		case <-z.look:
		default:
		}
		z.mu.Lock()
		d := z.desired
		z.mu.Unlock()
		failing := false
		wait := time.Duration(-1) // nothing to keep true: until poked
		if len(d.wants) > 0 || d.orders.release != nil {
			start := time.Now()
			whole, names, err := z.round(ctx, d)
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, errNewer):
				continue
			case err != nil:
				return err
			}
			wait = spread(z.audit(), 0.1)
			reasons := z.note(d, whole, names)
			switch {
			case slices.ContainsFunc(reasons, func(r *Reason) bool { return r.Transient }):
				wait = spread(pace.NextBackOff(), 0.5)
				failed = time.Now()
			case len(reasons) > 0:
				wait = spread(z.o.MaxBackoff, 0.1)
			case z.wrote(start) || time.Since(failed) > z.o.MaxBackoff:
				// That there was nothing to write does not show that the DNS takes writes again.
				pace.Reset()
			}
			failing = whole != nil && !whole.ours() || after(reasons...) > 0
			wait = max(wait, after(reasons...))
		} else {
			z.rest()
		}
		if !z.sleep(ctx, wait, failing) {
			return nil
		}
	}
}

// errNewer says that a round gave way to a newer desire before it had written all.
var errNewer = errors.New("something else is wanted now")

// freshEvery is how long one desire is written before a newer one is looked at: with a DNS that takes an hour for a thousand changes, the
// newest must not wait for the hour.
const freshEvery = 30 * time.Second

// newer reports whether something else than d is wanted by now.
func (z *zone) newer(d desire) bool {
	z.mu.Lock()
	now := z.desired
	z.mu.Unlock()
	return now.state != d.state && (now.orders.index != d.orders.index || !slices.EqualFunc(now.wants, d.wants, func(a, b rota.Want) bool {
		return a.Set.Equal(b.Set) && slices.Equal(a.Drop, b.Drop)
	}))
}

// wrote reports whether the DNS has agreed to a write since start.
func (z *zone) wrote(start time.Time) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return !z.status.LastWrite.Before(start)
}

// lateLook is how often a zone is looked at in which a late request may still arrive.
const lateLook = 15 * time.Second

// audit returns the time between two looks. Where writers alone keep the fence, what one sent before it was deposed is carried out when
// it arrives, and so is a request that was given up: until that can no longer be, the zone is looked at more often, so that it is soon
// put right.
func (z *zone) audit() time.Duration {
	if z.o.Backend.Capabilities().Fence == FenceCompare && time.Since(z.late) < 2*writeWithin {
		return min(z.o.Audit, lateLook)
	}
	return z.o.Audit
}

// rest clears what is shown of a zone in which nothing is to be kept true any more.
func (z *zone) rest() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.status.RRsets, z.status.Drift, z.status.Failures = 0, 0, 0
	z.status.Reasons, z.status.Held = []*Reason{}, []HeldChange{}
}

// sleep waits until it is time for the next round, and returns false when ctx ends. While the zone as a whole fails, or the DNS asks
// for patience, a newer desire does not shorten the wait, only a person does: the newest is written when its time comes, not each as it
// comes.
func (z *zone) sleep(ctx context.Context, wait time.Duration, failing bool) bool {
	var due <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	poke := z.poke
	if failing {
		poke = nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-due:
		return true
	case <-z.look:
	case <-poke:
	}
	z.mu.Lock()
	gap := z.o.MinGap - time.Since(z.status.LastWrite)
	z.mu.Unlock()
	if gap <= 0 {
		return true
	}
	t := time.NewTimer(gap)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// note keeps the outcome of a round for those who ask, and returns all its reasons. What is new is logged, once.
func (z *zone) note(d desire, whole *Reason, names []*Reason) []*Reason {
	reasons := names
	if whole != nil {
		reasons = slices.Concat([]*Reason{whole}, names)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	was := z.status.Reasons
	z.status.LastTry = time.Now()
	z.status.RRsets = len(d.wants)
	z.status.Fence = ""
	if z.held {
		z.status.Fence = z.fence.String()
	}
	z.status.Reasons = reasons
	for _, r := range reasons {
		if !slices.ContainsFunc(was, r.same) {
			z.o.Log.Warn("the DNS is not as it should be", "publisher", z.o.Name, "zone", z.name.Short(), "code", string(r.Code), "reason", r.Error())
		}
	}
	if len(reasons) > 0 {
		if z.status.Failures++; !slices.ContainsFunc(reasons, func(r *Reason) bool { return !r.ours() }) {
			z.status.Failures = 0
		}
		return reasons
	}
	if len(was) > 0 {
		z.o.Log.Info("the DNS is as it should be again", "publisher", z.o.Name, "zone", z.name.Short(), "failures", z.status.Failures)
	}
	z.status.Reasons = []*Reason{}
	z.status.Failures, z.status.LastSuccess = 0, z.status.LastTry
	z.last = desire{wants: d.wants}
	return nil
}

// replans is how often a round starts over at once because somebody else changed what it had read.
const replans = 3

// round brings the zone to d once. whole says why the zone could not be done, names why single names could not; err ends leadership.
func (z *zone) round(ctx context.Context, d desire) (whole *Reason, names []*Reason, err error) {
	for range replans {
		whole, names, err = z.attempt(ctx, d)
		if errors.Is(err, ErrMoved) {
			continue
		}
		if whole != nil && whole.Code == CodeFenced {
			// Taking the fence anew asks first whether this node leads.
			if z.fenced++; z.fenced < replans {
				continue
			}
			return whole, names, nil
		}
		z.fenced = 0
		return whole, names, err
	}
	return &Reason{
		Code: CodeMoving, Transient: true, Zone: z.name, Text: "records change between reading and writing them",
		Advice: "find out who else writes the names rota keeps",
	}, nil, nil
}

// attempt is desired → plan → write → read back.
func (z *zone) attempt(ctx context.Context, d desire) (*Reason, []*Reason, error) {
	start := time.Now()
	if d.orders.release != nil {
		return z.release(ctx, d)
	}
	stopped := z.stopped()
	if stopped == nil && !z.held {
		if whole, err := z.take(ctx, d); whole != nil || err != nil {
			return whole, nil, err
		}
	}
	have, err := z.o.Backend.Read(ctx, z.name, append(d.reads(), FenceKey(z.name)))
	if err != nil {
		return z.because(err), nil, nil
	}
	if z.held {
		if whole := z.still(have.Sets); whole != nil {
			if _, conflict := d.holder(z.name, &z.o, have.Sets, z.imported); whole.Code == CodeConflict && conflict == nil {
				return nil, nil, ErrMoved // lost unseen, and a person says to take it
			}
			return whole, nil, nil
		}
	}
	z.saw(nil, d.keys(), have.Sets)
	z.settle(ctx, d, have)
	plan := z.plan(d, have)
	if stopped != nil {
		if _, conflict := d.holder(z.name, &z.o, have.Sets, z.imported); conflict != nil {
			return conflict, plan.Reasons, nil
		}
		return stopped.would(plan.Changes), plan.Reasons, nil
	}
	todo, names := z.admit(plan, d.registry)
	if z.doubt {
		// Once the fence has moved on, what is still on its way arrives in vain.
		if whole, err := z.advance(ctx); whole != nil || err != nil {
			return whole, names, err
		}
	}
	if add, newest := d.renew(todo, z.renewed); newest > 0 {
		whole, bad, err := z.carry(ctx, d, add, start)
		if whole != nil || err != nil || len(bad) > 0 {
			return whole, append(names, bad...), err
		}
		z.renewed = newest
		if len(add) > 0 {
			return nil, nil, ErrMoved // what goes is planned on what was read back
		}
	}
	whole, bad, err := z.carry(ctx, d, todo, start)
	return whole, append(names, bad...), err
}

// renew lists what is to come of the names that a person wants refreshed since the order done, and the newest such order. Nothing
// goes of them until that stands; where a CNAME comes or goes, all goes at once.
func (d desire) renew(todo []rota.Change, done uint64) (add []rota.Change, newest uint64) {
	for _, index := range d.orders.refresh {
		if index > done {
			newest = max(newest, index)
		}
	}
	if newest == 0 {
		return nil, 0
	}
	for changes := range d.registry.bySubject(todo) {
		alias := slices.ContainsFunc(changes, func(c rota.Change) bool { return c.Key().Type == rota.TypeCNAME })
		if alias || d.orders.refresh[d.registry.subject(changes[0].Key())] <= done {
			continue
		}
		for _, c := range changes {
			if d.registry.subject(c.Key()) == c.Key().Name { // a registry's record is one, which is replaced
				c.New.Data = slices.Compact(slices.Sorted(slices.Values(slices.Concat(c.Old.Data, c.New.Data))))
			}
			if len(c.New.Data) > 0 && !c.New.Equal(c.Old) {
				add = append(add, c)
			}
		}
	}
	return add, newest
}

// carry writes changes and reads them back.
func (z *zone) carry(ctx context.Context, d desire, changes []rota.Change, start time.Time) (whole *Reason, names []*Reason, err error) {
	if len(changes) == 0 {
		return nil, nil, nil
	}
	z.pending = slices.Grow(z.pending, len(changes))
	whole, names, err = z.write(ctx, d, changes, start)
	cut := errors.Is(err, errNewer)
	if err != nil && !cut || len(z.pending) == 0 {
		return whole, names, err
	}
	keys := []rota.Key{FenceKey(z.name)}
	for _, p := range z.pending {
		keys = append(keys, p.change.Key())
	}
	back, err := z.o.Backend.Read(ctx, z.name, keys)
	if err != nil {
		if whole == nil {
			whole = z.because(err)
		}
		return whole, names, nil
	}
	if fenced := z.still(back.Sets); fenced != nil {
		return fenced, names, nil
	}
	z.mu.Lock()
	before := z.status.Records
	z.mu.Unlock()
	z.saw(before, slices.DeleteFunc(keys, func(k rota.Key) bool { return k == FenceKey(z.name) || d.registry.subject(k) != k.Name }), back.Sets)
	names = append(names, z.settle(ctx, d, back)...)
	if cut {
		return nil, nil, errNewer
	}
	return whole, names, nil
}

// releasedBy says who gave the zone up.
func releasedBy(zone rota.Name, x *rota.Instructed) *Reason {
	r := &Reason{
		Code: CodeReleased, Zone: zone, Text: fmt.Sprintf("%s released the zone at %s: %s", x.Actor, x.At.UTC().Format(time.RFC3339), x.Reason),
		Advice: "rota import takes it back",
	}
	if x.To != "" {
		r.Text += fmt.Sprintf("; it is offered to %q", x.To)
	}
	return r
}

// release gives the zone up, once: its fence says to whom it is offered, or goes, after what the registry says of ours. From then on
// nothing is written.
func (z *zone) release(ctx context.Context, d desire) (*Reason, []*Reason, error) {
	done := releasedBy(z.name, d.orders.release)
	to := d.orders.release.To
	have, err := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)}) // that is all there is to see once it is done
	if err != nil {
		return z.because(err), nil, nil
	}
	f, conflict := heldBy(z.name, z.o.Owner(), z.o.formerly(), have.Sets)
	if conflict != nil || f.Owner == "" || to != "" && f.Offer == to && f.Owner == z.o.Owner() {
		z.held, z.pending, z.doubt = false, nil, false
		return done, nil, nil
	}
	if stopped := z.stopped(); stopped != nil {
		stopped.Text += ": would release the zone"
		return stopped, nil, nil
	}
	if !z.held {
		if whole, err := z.take(ctx, d); whole != nil || err != nil {
			return whole, nil, err
		}
	}
	if have, err = z.o.Backend.Read(ctx, z.name, append(d.reads(), FenceKey(z.name))); err != nil {
		return z.because(err), nil, nil
	}
	if whole := z.still(have.Sets); whole != nil {
		return whole, nil, nil
	}
	z.settle(ctx, d, have)
	next := z.fence.Next()
	next.Offer = to
	last := rota.Change{Old: z.record(z.fence), New: z.record(next)}
	if to == "" {
		if whole, names, err := z.carry(ctx, d, d.strike(have), time.Now()); whole != nil || err != nil || len(names) > 0 {
			return whole, names, err
		}
		last = rota.Change{Old: z.record(z.fence), New: rota.RRset{Name: FenceKey(z.name).Name, Type: rota.TypeTXT}}
	}
	_, err = z.send(ctx, Batch{Zone: z.name, Fence: last})
	z.held = false
	if err != nil && !errors.Is(err, ErrMoved) && !ReasonOf(err).InDoubt {
		return z.because(err), nil, nil
	}
	z.o.Log.Info("released the zone", "publisher", z.o.Name, "zone", z.name.Short(), "to", to, "actor", d.orders.release.Actor)
	return nil, nil, ErrMoved // what stands there now decides
}

// plan is what is to be written now, and keeps for those who ask what is not as it should be.
func (z *zone) plan(d desire, have Reading) ZonePlan {
	now := z.o.Now()
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.pending) == 0 && len(z.left) > 0 {
		z.left.forget(indexOf(have.Sets), now)
	}
	plan := d.decide(z.name, have, z.left, now)
	z.status.Drift, z.status.Held = plan.drift(), plan.Held
	return plan
}

// saw keeps what the DNS said of keys, for those who ask, beside what it said of others before.
func (z *zone) saw(before []rota.RRset, keys []rota.Key, sets []rota.RRset) {
	asked := make(map[rota.Key]bool, len(keys))
	for _, k := range keys {
		asked[k] = true
	}
	now := make([]rota.RRset, 0, len(before)+len(keys))
	for _, s := range before {
		if !asked[s.Key()] {
			now = append(now, s)
		}
	}
	for _, s := range sets {
		if asked[s.Key()] && len(s.Data) > 0 {
			now = append(now, s)
		}
	}
	slices.SortFunc(now, func(a, b rota.RRset) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
	})
	z.mu.Lock()
	z.status.Records = now
	z.mu.Unlock()
}

// because returns the reason behind an error of the backend, with the zone it concerns.
func (z *zone) because(err error) *Reason {
	r := *ReasonOf(err)
	r.Zone = z.name
	return &r
}

// take makes the fence ours, once a term: from whoever of the same owner holds it, under a former name of it too, from another owner if a
// person said so, or anew.
func (z *zone) take(ctx context.Context, d desire) (*Reason, error) {
	have, err := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)})
	if err != nil {
		return z.because(err), nil
	}
	old, conflict := d.holder(z.name, &z.o, have.Sets, z.imported)
	if conflict != nil {
		return conflict, nil
	}
	lapses := z.o.Lapses()
	if err := z.o.Confirm(ctx, z.term); err != nil {
		r := &Reason{Code: CodeFenced, Zone: z.name, Text: "the fence is not taken: this node cannot confirm that it leads in its term"}
		return nil, fmt.Errorf("%w: %w", r, err)
	}
	z.lapses = lapses
	mine := old.take(z.o.Owner(), z.term)
	_, err = z.send(ctx, Batch{
		Zone: z.name, Fence: rota.Change{Old: find(have.Sets, FenceKey(z.name)), New: z.record(mine)},
	})
	if err == nil || errors.Is(err, ErrMoved) || ReasonOf(err).InDoubt {
		// A lost answer and a lost race look alike: what stands there now decides.
		have, rerr := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)})
		if rerr != nil {
			return z.because(rerr), nil
		}
		now, conflict := d.holder(z.name, &z.o, have.Sets, z.imported)
		switch {
		case conflict != nil:
			return conflict, nil
		case now.same(mine):
			z.fence, z.held, z.doubt = now, true, false
			if len(find(have.Sets, FenceKey(z.name)).Data) == 1 {
				z.imported = d.orders.index
			}
			if old.Owner != "" {
				z.late = time.Now()
			}
			z.o.Log.Info("took the zone", "publisher", z.o.Name, "zone", z.name.Short(), "fence", now.String())
			return nil, nil
		case err == nil:
			return &Reason{
				Code: CodeNotApplied, Zone: z.name, Text: "the server agreed to the fence record and does not hold it",
				Advice: "check that the server asked is the primary, and that its policy lets the key change " + FenceKey(z.name).String(),
			}, nil
		case errors.Is(err, ErrMoved):
			return nil, ErrMoved
		}
	}
	return z.because(err), nil
}

// still looks whether the fence is ours, and follows a write of our own that arrived late.
func (z *zone) still(sets []rota.RRset) *Reason {
	now, conflict := heldBy(z.name, z.o.Owner(), z.o.formerly(), sets)
	switch {
	case conflict != nil:
		z.held = false
		return conflict
	case !now.same(z.fence) || len(find(sets, FenceKey(z.name)).Data) > 1:
		z.held = false
		text := "somebody removed the fence record"
		if now.same(z.fence) {
			text = "an older fence record stands beside this writer's"
		} else if now.Owner != "" {
			text = fmt.Sprintf("the zone is at epoch %d, this writer's is %d", now.Epoch, z.fence.Epoch)
		}
		return &Reason{Code: CodeFenced, Transient: true, Zone: z.name, Text: text}
	case now.Seq < z.fence.Seq && z.behind < patience:
		// A server that lags shows an older fence of ours for a while, and believing it would make good writes look undone. One that
		// was restored from a backup goes on showing it, and is then taken as it is.
		z.behind++
		return &Reason{
			Code: CodeMoving, Transient: true, Zone: z.name,
			Text:   fmt.Sprintf("the server still shows write %d of this writer, which has made %d", now.Seq, z.fence.Seq),
			Advice: "ask the primary only, or wait for the other servers to follow it",
		}
	}
	z.behind = 0
	z.fence = now
	return nil
}

// patience is how many reads in a row may show a state older than what was written before it is believed.
const patience = 3

// admit leaves out the names that the server refused lately and whose changes are the same.
func (z *zone) admit(plan ZonePlan, g registry) (todo []rota.Change, names []*Reason) {
	if len(z.refused) == 0 {
		return plan.Changes, plan.Reasons
	}
	names, todo = plan.Reasons, make([]rota.Change, 0, len(plan.Changes))
	maps.DeleteFunc(z.refused, func(_ rota.Name, r *refusal) bool { return !time.Now().Before(r.until) })
	for changes := range g.bySubject(plan.Changes) {
		n := g.subject(changes[0].Key())
		if r := z.refused[n]; r != nil {
			if r.changes == fmt.Sprint(changes) {
				names = append(names, r.reason)
				continue
			}
			delete(z.refused, n)
		}
		todo = append(todo, changes...)
	}
	return todo, names
}

// byName yields the changes of one name after the other.
func byName(changes []rota.Change) func(func([]rota.Change) bool) {
	return parted(changes, func(c rota.Change) rota.Name { return c.Key().Name })
}

// parted yields neighbours of the same name together.
func parted(changes []rota.Change, name func(rota.Change) rota.Name) func(func([]rota.Change) bool) {
	return func(yield func([]rota.Change) bool) {
		for len(changes) > 0 {
			n := 1
			for n < len(changes) && name(changes[n]) == name(changes[0]) {
				n++
			}
			if !yield(changes[:n:n]) {
				return
			}
			changes = changes[n:]
		}
	}
}

// halve parts changes between names, as evenly as that allows; the second half is empty when there is one name only.
func (g registry) halve(changes []rota.Change) (a, b []rota.Change) {
	for names := range g.bySubject(changes) {
		if len(a) > 0 && len(a)+len(names) > (len(changes)+1)/2 {
			break
		}
		a = changes[:len(a)+len(names)]
	}
	return a, changes[len(a):]
}

// portions parts changes between names so that none has more than limit, but for a name that has more; 0: no limit.
func (g registry) portions(changes []rota.Change, limit int) [][]rota.Change {
	if limit <= 0 {
		return [][]rota.Change{changes}
	}
	var out [][]rota.Change
	n := 0
	for names := range g.bySubject(changes) {
		if n > 0 && n+len(names) > limit {
			out = append(out, changes[:n:n])
			changes, n = changes[n:], 0
		}
		n += len(names)
	}
	return append(out, changes)
}

// searchLimit bounds the messages that a round spends on finding the names which the server refuses.
const searchLimit = 40

// write writes the changes in as few transactions as the backend needs; when something else is wanted meanwhile it stops between two of
// them with errNewer. When the server refuses a transaction and yet lets the fence
// move, single names are at fault: they are found by halving, so that the others are written.
func (z *zone) write(ctx context.Context, d desire, changes []rota.Change, start time.Time) (whole *Reason, names []*Reason, err error) {
	g := d.registry
	todo := g.portions(changes, z.o.Backend.Capabilities().Batch)
	budget, searching := searchLimit, false
	fresh := time.Now()
	for len(todo) > 0 {
		if time.Since(fresh) >= freshEvery {
			if z.newer(d) {
				return nil, nil, errNewer
			}
			fresh = time.Now()
		}
		part := todo[0]
		todo = todo[1:]
		n, err := z.transact(ctx, part, start)
		switch {
		case err == nil:
			if n < len(part) {
				todo = slices.Insert(todo, 0, part[n:])
			}
			continue
		case errors.Is(err, ErrMoved):
			return nil, names, err
		case errors.Is(err, ErrFenced):
			return ReasonOf(err), names, nil
		}
		r := z.because(err)
		if r.InDoubt || !r.single() {
			return r, names, nil
		}
		if !searching {
			searching = true
			if whole, err := z.advance(ctx); err != nil || whole != nil {
				if whole != nil {
					whole = r // the first one speaks of what matters
				}
				return whole, names, err
			}
		}
		a, b := g.halve(part)
		if len(b) == 0 {
			r.Name = g.subject(part[0].Key())
			names = append(names, r)
			z.refuse(part, r)
			continue
		}
		if budget--; budget <= 0 {
			return r, names, nil
		}
		todo = slices.Insert(todo, 0, a, b)
	}
	return nil, names, nil
}

// single reports whether the reason may concern single names rather than the zone.
func (r *Reason) single() bool {
	switch r.Code {
	case CodeServfail, CodeRefused, CodeFormerr, CodeRcode, CodeTooLarge, CodeOther, CodeNotZone, CodeUnsupported, CodeQuota, CodeScript:
		return true
	}
	return false
}

func (z *zone) refuse(changes []rota.Change, r *Reason) {
	z.refused[r.Name] = &refusal{reason: r, changes: fmt.Sprint(changes), until: time.Now().Add(z.o.MaxBackoff / 2)}
}

// advance moves the fence and nothing else: what was sent before can no longer happen.
func (z *zone) advance(ctx context.Context) (*Reason, error) {
	_, err := z.transact(ctx, nil, time.Now())
	switch {
	case err == nil:
		z.doubt = false
		return nil, nil
	case errors.Is(err, ErrMoved):
		return nil, err
	}
	return z.because(err), nil
}

// transact makes one transaction and finds out what became of it. Its error is ErrMoved when somebody changed an RRset, ErrFenced
// when somebody took the fence, or a *Reason; one in doubt leaves z.doubt set.
func (z *zone) transact(ctx context.Context, changes []rota.Change, start time.Time) (int, error) {
	next := z.fence.Next()
	n, err := z.send(ctx, Batch{
		Zone: z.name, Fence: rota.Change{Old: z.record(z.fence), New: z.record(next)}, Changes: changes,
	})
	if err == nil {
		z.done(changes[:n], next, start)
		return n, nil
	}
	moved := errors.Is(err, ErrMoved)
	if !moved && !ReasonOf(err).InDoubt {
		return n, err
	}
	// Refused as moved, or no answer: both may hide a success of which the answer was lost. The fence knows.
	have, rerr := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)})
	if rerr != nil {
		z.hold(changes[:n], start)
		r := *ReasonOf(rerr)
		r.InDoubt = true // whatever stands in the way of reading, it is not the server's answer to the write
		return n, &r
	}
	was := z.fence
	if fenced := z.still(have.Sets); fenced != nil {
		return n, fenced
	}
	switch {
	case z.fence.Seq == next.Seq && err != nil && !moved && !z.o.Backend.Capabilities().Atomic:
		// The fence moved, and then something failed: what was written by then is seen when it is read back.
		z.remember(changes[:n], start, true)
		z.late = time.Now()
		r := *ReasonOf(err)
		r.InDoubt = false
		return n, &r
	case z.fence.Seq == next.Seq:
		z.done(changes[:n], next, start)
		return n, nil
	case moved || z.fence.Seq != was.Seq:
		return n, ErrMoved
	}
	z.hold(changes[:n], start)
	return n, err
}

// record returns the fence as it stands in this zone.
func (z *zone) record(f Fence) rota.RRset {
	s := f.RRset(z.name)
	s.TTL = max(s.TTL, z.o.Backend.Capabilities().MinTTL)
	return s
}

// done keeps what was written until it is seen.
func (z *zone) done(changes []rota.Change, next Fence, start time.Time) {
	z.fence = next
	z.remember(changes, start, false)
	if len(changes) == 0 {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.status.LastWrite = time.Now()
	z.status.Writes++
}

// hold keeps what may have been written.
func (z *zone) hold(changes []rota.Change, start time.Time) {
	z.doubt, z.late = true, time.Now()
	z.remember(changes, start, true)
}

func (z *zone) remember(changes []rota.Change, start time.Time, doubt bool) {
	again := make(map[rota.Key]bool, len(changes))
	z.mu.Lock()
	for _, c := range changes {
		z.left.note(c, z.o.Now())
		again[c.Key()] = true
	}
	z.mu.Unlock()
	z.pending = slices.DeleteFunc(z.pending, func(p pending) bool { return again[p.change.Key()] })
	for _, c := range changes {
		z.pending = append(z.pending, pending{change: c, start: start, epoch: z.fence.Epoch, doubt: doubt})
	}
}

// settle compares what was written with what the DNS says, and records what holds. What the server agreed to and did not do is a
// reason; what was in doubt and did not happen is forgotten, the plan has it again.
func (z *zone) settle(ctx context.Context, d desire, have Reading) (names []*Reason) {
	if len(z.pending) == 0 {
		return nil
	}
	index := indexOf(have.Sets)
	out := rota.Published{Publisher: z.o.Name, Zone: z.name, Changes: make([]rota.Change, 0, len(z.pending))}
	start := time.Now()
	var open []pending
	for _, p := range z.pending {
		c := p.change
		now, ok := index[c.Key()]
		if !ok {
			now = rota.RRset{Name: c.Key().Name, Type: c.Key().Type}
		}
		if have.AnyTTL[c.Key()] {
			now.TTL = c.New.TTL
		}
		if now.Equal(c.New) && have.Blocked[c.Key().Name] == nil {
			out.Changes = append(out.Changes, c)
			out.Epoch = p.epoch
			start = minTime(start, p.start)
			continue
		}
		if p.doubt {
			if z.doubt {
				open = append(open, p)
			}
			continue
		}
		r := &Reason{
			Code: CodeNotApplied, Zone: z.name, Name: d.registry.subject(c.Key()),
			Text:   fmt.Sprintf("the server agreed to the change and now holds %q as %s", now.Data, c.Key().Type),
			Advice: "look for other records of the name, for a policy of the server, or for somebody else who writes it",
		}
		names = append(names, r)
		z.refuse([]rota.Change{c}, r)
	}
	z.pending = open
	if len(out.Changes) == 0 {
		return names
	}
	out.Took = time.Since(start)
	z.recorded(d, out)
	if err := z.o.Record(ctx, out); err != nil {
		z.o.Log.Warn("the DNS was changed and the event could not be recorded", "publisher", z.o.Name, "zone", z.name.Short(),
			"changes", fmt.Sprint(out.Changes), "err", err)
	}
	return names
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// recorded counts a write that was read back. Its lag is measured from the newest decision in it that this zone's loop has lived to
// see. When the same was wanted already at the last success, somebody else had changed the DNS.
func (z *zone) recorded(d desire, out rota.Published) {
	var decided time.Time
	edited := true
	for _, c := range out.Changes {
		if d.registry.subject(c.Key()) != c.Key().Name {
			edited = edited && len(c.Old.Data) > 0 && len(c.New.Data) > 0
			continue
		}
		was, known := z.last.want(c.Key())
		if is, _ := d.want(c.Key()); known && was.Set.Equal(is.Set) && slices.Equal(was.Drop, is.Drop) {
			continue
		}
		edited = false
		if sel := d.state.Selection(c.Key().Name); sel != nil && sel.At.After(decided) {
			decided = sel.At
		}
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.status.Changes += uint64(len(out.Changes))
	z.status.Drift = max(0, z.status.Drift-len(out.Changes))
	if edited {
		z.status.Repairs++
	}
	if decided.After(z.born) {
		z.status.Lag = z.o.Now().Sub(decided)
	}
	if edited {
		z.o.Log.Warn("somebody else changed records that rota keeps; they are put right", "publisher", z.o.Name, "zone", z.name.Short(),
			"repairs", z.status.Repairs)
	}
	for _, c := range out.Changes {
		z.o.Log.Info("changed the DNS", "publisher", z.o.Name, "zone", z.name.Short(), "change", c.String(), "why", c.Why,
			"epoch", out.Epoch, "took", out.Took)
	}
}
