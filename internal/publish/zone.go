package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

	mu      sync.Mutex // guards the mailbox and what is shown
	desired desire
	status  ZoneStatus

	// What follows is owned by run.
	fence   Fence
	held    bool      // fence is ours, as far as is known
	doubt   bool      // a message of ours may still arrive: the fence must move before anything is believed to stay
	behind  int       // reads in a row that showed less than was written
	fenced  int       // times in a row that another took the fence
	late    time.Time // when the fence was taken from another writer, or a request of our own was left in doubt
	last    desire    // that the DNS was seen to say
	born    time.Time
	pending []pending              // written and not yet read back, or in doubt
	refused map[rota.Name]*refusal // names the server does not take
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
		o: o, name: name, term: term, poke: make(chan struct{}, 1), refused: map[rota.Name]*refusal{}, born: time.Now(),
		status: ZoneStatus{Zone: name, Reasons: []*Reason{}},
	}
}

// want leaves the newest desire for the loop: it replaces one that was not looked at yet.
func (z *zone) want(d desire) {
	z.mu.Lock()
	z.desired = d
	z.mu.Unlock()
	select {
	case z.poke <- struct{}{}:
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
	pace := newBackoff(z.o)
	for {
		select { // what is taken now is the newest
		case <-z.poke:
		default:
		}
		z.mu.Lock()
		d := z.desired
		z.mu.Unlock()
		var whole *Reason
		wait := time.Duration(-1) // nothing to keep true: until poked
		if len(d.wants) > 0 {
			var err error
			var names []*Reason
			if whole, names, err = z.round(ctx, d); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return err
			}
			wait = spread(z.audit(), 0.1)
			switch reasons := z.note(d, whole, names); {
			case slices.ContainsFunc(reasons, func(r *Reason) bool { return r.Transient }):
				wait = spread(pace.NextBackOff(), 0.5)
			case len(reasons) > 0:
				wait = spread(z.o.MaxBackoff, 0.1)
			default:
				pace.Reset()
			}
		} else {
			z.rest()
		}
		if !z.sleep(ctx, wait, whole != nil) {
			return nil
		}
	}
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
	z.status.RRsets, z.status.Drift, z.status.Failures, z.status.Reasons = 0, 0, 0, []*Reason{}
}

// sleep waits until it is time for the next round, and returns false when ctx ends. While the zone as a whole fails a newer desire
// does not shorten the wait: the newest is written when its time comes, not each as it comes.
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
		if !slices.ContainsFunc(was, func(o *Reason) bool { return *o == *r }) {
			z.o.Log.Warn("the DNS is not as it should be", "publisher", z.o.Name, "zone", z.name.Short(), "code", string(r.Code), "reason", r.Error())
		}
	}
	if len(reasons) > 0 {
		z.status.Failures++
		return reasons
	}
	if len(was) > 0 {
		z.o.Log.Info("the DNS is as it should be again", "publisher", z.o.Name, "zone", z.name.Short(), "failures", z.status.Failures)
	}
	z.status.Reasons = []*Reason{}
	z.status.Failures, z.status.LastSuccess = 0, z.status.LastTry
	z.last = d
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
	if !z.held {
		if whole, err := z.take(ctx); whole != nil || err != nil {
			return whole, nil, err
		}
	}
	have, err := z.o.Backend.Read(ctx, z.name, append(d.keys(), FenceKey(z.name)))
	if err != nil {
		return z.because(err), nil, nil
	}
	if whole := z.still(have.Sets); whole != nil {
		return whole, nil, nil
	}
	z.saw(nil, d.keys(), have.Sets)
	z.settle(ctx, d, have.Sets, have.Blocked)
	plan := d.plan(z.name, have)
	z.mu.Lock()
	z.status.Drift = len(plan.Changes)
	z.mu.Unlock()
	todo, names := z.admit(plan)
	if z.doubt {
		// Once the fence has moved on, what is still on its way arrives in vain.
		if whole, err := z.advance(ctx); whole != nil || err != nil {
			return whole, names, err
		}
	}
	if len(todo) == 0 {
		return nil, names, nil
	}
	whole, bad, err := z.write(ctx, todo, start)
	names = append(names, bad...)
	if err != nil || len(z.pending) == 0 {
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
	z.saw(before, keys[1:], back.Sets)
	return whole, append(names, z.settle(ctx, d, back.Sets, nil)...), nil
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

// take makes the fence ours, once a term: from whoever of the same owner holds it, under a former name of it too, or anew.
func (z *zone) take(ctx context.Context) (*Reason, error) {
	have, err := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)})
	if err != nil {
		return z.because(err), nil
	}
	old, conflict := heldBy(z.name, z.o.Owner(), z.o.formerly(), have.Sets)
	if conflict != nil {
		return conflict, nil
	}
	if err := z.o.Confirm(ctx, z.term); err != nil {
		r := &Reason{Code: CodeFenced, Zone: z.name, Text: "the fence is not taken: this node cannot confirm that it leads in its term"}
		return nil, fmt.Errorf("%w: %w", r, err)
	}
	mine := old.take(z.o.Owner(), z.term)
	_, err = z.o.Backend.Write(ctx, Batch{
		Zone: z.name, Fence: rota.Change{Old: find(have.Sets, FenceKey(z.name)), New: mine.RRset(z.name)},
	})
	if err == nil || errors.Is(err, ErrMoved) || ReasonOf(err).InDoubt {
		// A lost answer and a lost race look alike: what stands there now decides.
		have, rerr := z.o.Backend.Read(ctx, z.name, []rota.Key{FenceKey(z.name)})
		if rerr != nil {
			return z.because(rerr), nil
		}
		now, conflict := heldBy(z.name, z.o.Owner(), z.o.formerly(), have.Sets)
		switch {
		case conflict != nil:
			return conflict, nil
		case now.same(mine):
			z.fence, z.held, z.doubt = now, true, false
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
	now, conflict := heldBy(z.name, z.o.Owner(), nil, sets)
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
func (z *zone) admit(plan ZonePlan) (todo []rota.Change, names []*Reason) {
	names = plan.Reasons
	for changes := range byName(plan.Changes) {
		n := changes[0].Key().Name
		if r := z.refused[n]; r != nil {
			if r.changes == fmt.Sprint(changes) && time.Now().Before(r.until) {
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
	return func(yield func([]rota.Change) bool) {
		for len(changes) > 0 {
			n := 1
			for n < len(changes) && changes[n].Key().Name == changes[0].Key().Name {
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
func halve(changes []rota.Change) (a, b []rota.Change) {
	for names := range byName(changes) {
		if len(a) > 0 && len(a)+len(names) > (len(changes)+1)/2 {
			break
		}
		a = changes[:len(a)+len(names)]
	}
	return a, changes[len(a):]
}

// searchLimit bounds the messages that a round spends on finding the names which the server refuses.
const searchLimit = 40

// write writes the changes in as few transactions as the backend needs. When the server refuses a transaction and yet lets the fence
// move, single names are at fault: they are found by halving, so that the others are written.
func (z *zone) write(ctx context.Context, changes []rota.Change, start time.Time) (whole *Reason, names []*Reason, err error) {
	todo := [][]rota.Change{changes}
	budget, searching := searchLimit, false
	for len(todo) > 0 {
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
		a, b := halve(part)
		if len(b) == 0 {
			r.Name = part[0].Key().Name
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
	n, err := z.o.Backend.Write(ctx, Batch{
		Zone: z.name, Fence: rota.Change{Old: z.fence.RRset(z.name), New: next.RRset(z.name)}, Changes: changes,
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
	for _, c := range changes {
		z.pending = slices.DeleteFunc(z.pending, func(p pending) bool { return p.change.Key() == c.Key() })
		z.pending = append(z.pending, pending{change: c, start: start, epoch: z.fence.Epoch, doubt: doubt})
	}
}

// settle compares what was written with what the DNS says, and records what holds. What the server agreed to and did not do is a
// reason; what was in doubt and did not happen is forgotten, the plan has it again.
func (z *zone) settle(ctx context.Context, d desire, sets []rota.RRset, blocked map[rota.Name]*Reason) (names []*Reason) {
	if len(z.pending) == 0 {
		return nil
	}
	index := make(map[rota.Key]rota.RRset, len(sets))
	for _, s := range sets {
		index[s.Key()] = s
	}
	out := rota.Published{Publisher: z.o.Name, Zone: z.name}
	start := time.Now()
	var open []pending
	for _, p := range z.pending {
		c := p.change
		now, ok := index[c.Key()]
		if !ok {
			now = rota.RRset{Name: c.Key().Name, Type: c.Key().Type}
		}
		if now.Equal(c.New) && blocked[c.Key().Name] == nil {
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
			Code: CodeNotApplied, Zone: z.name, Name: c.Key().Name,
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
	before, now := z.last.byKey(), d.byKey()
	var decided time.Time
	edited := true
	for _, c := range out.Changes {
		was, known := before[c.Key()]
		if is := now[c.Key()]; known && was.Set.Equal(is.Set) && slices.Equal(was.Drop, is.Drop) {
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
		z.status.Lag = time.Since(decided)
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
