package sim

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// server is a DNS server with one zone. It keeps RFC 2136's promises, and holds every write against rota's.
type server struct {
	w       *world
	pending sync.WaitGroup // messages that were held up

	mu    sync.Mutex // guards what follows
	rnd   *rand.Rand
	zone  map[rota.Key]rota.RRset
	term  uint64 // the highest whose writer has written
	given bool   // the zone is released
	back  bool   // a person has begun to take it back
	holds int    // of the next writes: they arrive late, and their senders hear nothing
	loses int    // of the next answers to writes
	dark  time.Time
}

func newServer(w *world) *server {
	return &server{w: w, rnd: rand.New(rand.NewPCG(w.seed, 3)), zone: map[rota.Key]rota.RRset{}}
}

// end is one node's way to the server.
type end struct {
	w    *world
	from string
}

func (e *end) Zone(context.Context, rota.Name) (rota.Name, error) { return zoneName, nil }

func silence(write bool) error {
	return &publish.Reason{Code: publish.CodeUnreachable, Transient: true, InDoubt: write, Text: "no answer"}
}

func (e *end) Read(ctx context.Context, _ rota.Name, keys []rota.Key) (out publish.Reading, err error) {
	d := e.w.dns
	err = e.w.net.Call(ctx, e.from, "dns", func(context.Context) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if time.Now().Before(d.dark) {
			return errSilence
		}
		for _, k := range keys {
			if s, ok := d.zone[k]; ok {
				s.Data = slices.Clone(s.Data)
				out.Sets = append(out.Sets, s)
			}
		}
		return nil
	})
	if err != nil {
		return publish.Reading{}, silence(false)
	}
	return out, nil
}

// Capabilities are those of a server that decides on every message.
func (e *end) Capabilities() publish.Capabilities {
	return publish.Capabilities{Fence: publish.FenceServer, Atomic: true}
}

func (e *end) Write(ctx context.Context, b publish.Batch) (int, error) {
	d := e.w.dns
	term, _ := ctx.Value(termKey{}).(uint64)
	var moved bool
	err := e.w.net.Call(ctx, e.from, "dns", func(context.Context) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case time.Now().Before(d.dark):
			return errSilence
		case d.holds > 0:
			d.holds--
			late := time.Duration(1+d.rnd.IntN(40)) * time.Second
			d.pending.Go(func() {
				time.Sleep(late)
				d.mu.Lock()
				defer d.mu.Unlock()
				_ = d.apply(e.from, term, b)
			})
			return errSilence
		}
		err := d.apply(e.from, term, b)
		if d.loses > 0 {
			d.loses--
			return errSilence
		}
		moved = errors.Is(err, publish.ErrMoved)
		return err
	})
	switch {
	case moved:
		return len(b.Changes), publish.ErrMoved
	case err != nil:
		return len(b.Changes), silence(true)
	}
	return len(b.Changes), nil
}

// apply carries out a write, or refuses it as a whole, and says what it broke. d.mu is held.
func (d *server) apply(from string, term uint64, b publish.Batch) error {
	changes := append([]rota.Change{b.Fence}, b.Changes...)
	if d.w.flaw != noFence {
		for _, c := range changes {
			if !slices.Equal(d.zone[c.Key()].Data, c.Old.Data) {
				d.w.tell("%s is refused in term %d: %v", from, term, changes)
				return publish.ErrMoved
			}
		}
	}
	was, _ := publish.ParseFence(d.zone[publish.FenceKey(zoneName)])
	is, err := publish.ParseFence(b.Fence.New)
	gives := len(b.Fence.New.Data) == 0 && len(b.Changes) == 0
	if err != nil && !gives {
		d.w.violated("%s wrote a fence that cannot be read: %v", from, err)
	}
	if d.given && !d.back {
		d.w.violated("%s wrote in term %d to a zone that was released: %v", from, term, changes)
	}
	d.given = gives || is.Offer != ""
	if is.Epoch < was.Epoch && !gives {
		d.w.violated("%s took the fence back from epoch %d to %d", from, was.Epoch, is.Epoch)
	}
	if term < d.term {
		d.w.violated("%s wrote as leader of term %d after the leader of term %d had: %v", from, term, d.term, b.Changes)
	}
	d.term = max(d.term, term)
	d.w.tell("%s writes in term %d: %v", from, term, changes)
	for _, c := range changes {
		if len(c.New.Data) == 0 {
			delete(d.zone, c.Key())
		} else {
			d.zone[c.Key()] = c.New
		}
		if c.Key() == publish.FenceKey(zoneName) {
			continue
		}
		if len(c.New.Data) == 0 {
			d.w.violated("%s emptied %v", from, c.Key())
		}
		for _, x := range c.New.Data {
			if !configured(c.New.Name, x) {
				d.w.violated("%s published %s at %s", from, x, c.New.Name)
			}
		}
	}
	return nil
}

func configured(n rota.Name, address string) bool {
	for _, v := range spec(1, sound).Services {
		if v.Name == n {
			return slices.ContainsFunc(v.Endpoints, func(e rota.Endpoint) bool { return e.Address.String() == address })
		}
	}
	return false
}

// few bounds how many vantages may lie or be silent at once.
func (w *world) few() int { return (len(w.nodes) - 1) / 2 }

// happen makes a step happen.
func (w *world) happen(x step) {
	m := w.nodes[x.node]
	var side, rest, all []string
	for _, n := range w.nodes {
		all = append(all, n.name)
		if slices.Contains(x.side, n.i) {
			side = append(side, n.name)
		} else {
			rest = append(rest, n.name)
		}
	}
	leader := func() *cluster.Node {
		for _, n := range w.nodes {
			if k := n.up(); k != nil && k.Status().Leading {
				return k
			}
		}
		return nil
	}
	switch x.kind {
	case "split": // both sides may still reach the DNS
		w.net.Split(side, rest)
	case "oneway":
		w.net.Cut(address(x.link[0]), address(x.link[1]))
	case "isolate":
		w.net.Split([]string{m.name}, append(all, "dns"))
	case "weather":
		w.net.Weather(time.Duration(x.x*float64(300*time.Millisecond)), 0.1*x.x)
	case "crash":
		w.net.Split([]string{m.name}, append(all, "dns"))
		m.close(true)
	case "restart":
		m.close(false)
		m.open(false)
	case "bounce":
		m.close(true)
		m.open(false)
	case "pause": // a machine stands still, often the leader's while it is about to write
		if l := leader(); l != nil && x.x < 0.6 {
			m = w.nodes[slices.IndexFunc(w.nodes, func(m *member) bool { return m.up() == l })]
		}
		w.turn(x.n)
		time.Sleep(time.Duration(x.n) * time.Millisecond / 2)
		w.net.Pause(m.name, time.Second+time.Duration(x.x*float64(25*time.Second)))
	case "deaf": // the DNS does what it is asked, and is not heard
		w.net.Cut("dns", m.name)
		w.turn(x.n)
	case "dumb": // the DNS is not reached by one node, and by all others
		w.net.Cut(m.name, "dns")
		w.turn(x.n)
	case "stall": // a write is under way, and its sender hears of nobody until it is over
		w.dns.set(func(d *server) { d.holds++ })
		w.net.Split([]string{m.name}, append(all, "dns"))
		w.turn(x.n)
	case "hold":
		w.dns.set(func(d *server) { d.holds += 1 + x.n%3 })
		w.turn(x.n)
	case "lose":
		w.dns.set(func(d *server) { d.loses += 1 + x.n%3 })
		w.turn(x.n)
	case "dark":
		w.dns.set(func(d *server) { d.dark = time.Now().Add(time.Duration(x.x * float64(20*time.Second))) })
		w.turn(x.n)
	case "truth":
		w.turn(x.n)
	case "lie":
		for i := range w.few() {
			w.nodes[(x.node+i)%len(w.nodes)].eyes.tell(true)
		}
		w.look()
	case "silent":
		w.net.Split([]string{m.name}, all)
	case "word":
		w.say(m, x)
	case "freeze":
		w.order(m, rota.Event{Kind: rota.EventFreeze})
		w.turn(x.n)
	case "release":
		to := "" // one word a night: another would have it taken and given up anew
		if w.seed%3 == 0 {
			to = "others"
		}
		w.order(m, rota.Event{Kind: rota.EventInstruct, Instruction: &rota.Instruction{
			Verb: rota.VerbRelease, Publisher: "world", Zone: zoneName, To: to,
		}})
		w.turn(x.n)
	case "orphan": // a leader that nobody hears writes what only it holds, and falls
		l := leader()
		if l == nil {
			return
		}
		m = w.nodes[slices.IndexFunc(w.nodes, func(m *member) bool { return m.up() == l })]
		w.net.Split([]string{m.name}, append(all, "dns"))
		v := spec(1, sound).Services[x.n%services]
		now := time.Now()
		ctx, cancel := context.WithTimeout(w.t.Context(), 100*time.Millisecond)
		_, err := l.AppendHere(ctx, rota.Event{Kind: rota.EventOverride, Reason: "orphan", Overrides: []rota.Override{{
			Endpoint: rota.EndpointID{Service: v.Name, Address: v.Endpoints[0].Address}, Action: rota.ActionDrain,
			Author: "nobody", Set: now, Expires: now.Add(time.Hour),
		}}})
		cancel()
		if err == nil {
			w.violated("%s acknowledged what no other node holds", m.name)
		}
		m.close(true)
		if x.x < 0.7 {
			m.open(false) // and it is still cut off
		}
	case "transfer":
		w.transfer(leader(), "")
	case "again": // who led leads again, and has not noticed that it did not
		was := leader()
		if was == nil {
			return
		}
		from := was.Status()
		w.net.Cut(from.Node, "dns")
		w.transfer(was, "")
		w.turn(x.n)
		time.Sleep(time.Second + time.Duration(x.x*float64(2*time.Second)))
		w.transfer(leader(), from.NodeID)
		w.net.Mend(from.Node, "dns")
		w.turn(x.n + 1)
	}
}

func (w *world) transfer(from *cluster.Node, to string) {
	if from == nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	_ = from.Transfer(ctx, to)
}

func (e *eyes) tell(lies bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lies = lies
}

func (d *server) set(f func(*server)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// turn makes an endpoint die, say that it drains, or come back.
func (w *world) turn(n int) {
	w.mu.Lock()
	var ids []rota.TargetID
	for id := range w.truth {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	many := 1
	if n%7 == 0 {
		many = 3
	}
	for i := range many {
		id := ids[(n+i)%len(ids)]
		switch {
		case w.truth[id] != rota.Up:
			w.truth[id] = rota.Up
		case n%3 == 1:
			w.truth[id] = rota.Draining
		default:
			w.truth[id] = rota.Down
		}
	}
	w.mu.Unlock()
	w.look()
}

// say is an operator's word at a node. What is acknowledged must hold for ever.
func (w *world) say(m *member, x step) {
	n := m.up()
	if n == nil {
		return
	}
	w.mu.Lock()
	w.words++
	if x.x < 0.5 {
		w.mute = 1 + x.n%2
	}
	reason := "word " + string(rune('A'+w.words/26)) + string(rune('a'+w.words%26))
	w.mu.Unlock()
	v := spec(1, sound).Services[x.n%services]
	now := time.Now()
	ctx, cancel := context.WithTimeout(w.t.Context(), 8*time.Second)
	defer cancel()
	e, err := n.Append(ctx, rota.Event{Kind: rota.EventOverride, Reason: reason, Overrides: []rota.Override{{
		Endpoint: rota.EndpointID{Service: v.Name, Address: v.Endpoints[x.n%endpoints].Address}, Action: rota.ActionMaintenance,
		Author: "night", Reason: reason, Set: now, Expires: now.Add(20 * time.Second),
	}}})
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.acked[reason] = e.Index
	case w.flaw == forgets && e.Reason == reason:
		w.acked[reason] = 0
	}
}

// order is what an operator asks at a node, for as long as no calm has come.
func (w *world) order(m *member, e rota.Event) {
	n := m.up()
	if n == nil {
		return
	}
	w.mu.Lock()
	w.kept = true
	w.mu.Unlock()
	w.dns.set(func(d *server) { d.back = false })
	e.Actor, e.Reason = "night", "asked for"
	ctx, cancel := context.WithTimeout(w.t.Context(), 8*time.Second)
	defer cancel()
	_, _ = n.Append(ctx, e)
}

// takeBack thaws and takes the zone back, until that is heard.
func (w *world) takeBack() {
	w.mu.Lock()
	kept := w.kept
	w.kept = false
	w.mu.Unlock()
	if !kept {
		return
	}
	for _, e := range []rota.Event{
		{Kind: rota.EventThaw},
		{Kind: rota.EventInstruct, Instruction: &rota.Instruction{Verb: rota.VerbImport, Publisher: "world", Zone: zoneName}},
	} {
		w.dns.set(func(d *server) { d.back = e.Kind == rota.EventInstruct })
		e.Actor, e.Reason = "night", "it is calm"
		for try := 0; ; try++ {
			ctx, cancel := context.WithTimeout(w.t.Context(), 8*time.Second)
			_, err := w.nodes[try%len(w.nodes)].up().Append(ctx, e)
			cancel()
			if err == nil {
				break
			}
			if try > 20 {
				w.violated("nobody hears that %s: %v", e.Kind, err)
				return
			}
			time.Sleep(time.Second)
		}
	}
}

// settle ends all faults and waits: then there is a leader, all hold the same, the verdicts are the truth, and the DNS says so.
func (w *world) settle() {
	w.net.Heal()
	for _, m := range w.nodes {
		if m.up() == nil {
			m.open(false)
		}
		m.eyes.tell(w.flaw == oneDecides && m.i == 1)
	}
	w.mu.Lock()
	w.mute = 0
	w.mu.Unlock()
	w.dns.set(func(d *server) { d.dark, d.holds, d.loses = time.Time{}, 0, 0 })
	w.look()
	w.takeBack()
	time.Sleep(calm)

	var leader *cluster.Node
	for _, m := range w.nodes {
		n := m.up()
		if n == nil {
			return // it was said why
		}
		if s := n.Status(); s.Leading {
			leader = n
		} else if !s.Healthy {
			w.violated("after the calm %s says %+v", m.name, s)
		}
	}
	if leader == nil {
		w.violated("nobody leads after the calm")
		return
	}
	st := leader.State()
	_, sum, err := leader.Digest(w.t.Context(), 0)
	if err != nil {
		w.violated("no digest: %v", err)
	}
	w.tell("%s leads at event %d, %s", leader.Status().Node, st.Index(), sum)
	for _, r := range leader.Records(0, 0) {
		b, err := json.Marshal(r)
		if err != nil {
			w.violated("%v", err)
		}
		w.tell("%s", b)
	}
	for _, m := range w.nodes {
		if s := m.up().State(); s.Index() != st.Index() {
			w.violated("%s is at event %d, the leader at %d", m.name, s.Index(), st.Index())
		} else if d := cmp.Diff(st.Snapshot(), s.Snapshot(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			w.violated("%s holds another state at event %d:\n%s", m.name, s.Index(), d)
		}
	}
	w.mu.Lock()
	for id, want := range w.truth {
		got := st.Verdict(id)
		if got.Status != want {
			defer w.violated("the verdict on %s is %v, the truth is %v", id, got.Status, want)
		}
		if want == rota.Up && got.Weight != asks(id) {
			defer w.violated("%s asks for %d %% of its weight and gets %d", id, asks(id), got.Weight)
		}
	}
	counted := map[string][]uint64{}
	for _, r := range leader.Records(0, 0) {
		if r.Refused == "" && strings.HasPrefix(r.Event.Reason, "word ") {
			counted[r.Event.Reason] = append(counted[r.Event.Reason], r.Event.Index)
		}
	}
	for word, at := range counted {
		if len(at) > 1 {
			defer w.violated("%s counts as events %v", word, at)
		}
	}
	for word, index := range w.acked {
		if at := counted[word]; len(at) == 0 || index != 0 && !slices.Contains(at, index) {
			defer w.violated("%s was acknowledged as event %d and is %v", word, index, at)
		}
	}
	w.mu.Unlock()
	w.dns.mu.Lock()
	defer w.dns.mu.Unlock()
	for want := range st.Wants("world") {
		have := w.dns.zone[want.Set.Key()]
		if len(want.Drop) == 0 && !slices.Equal(have.Data, want.Set.Data) {
			defer w.violated("the DNS says %v of %s, want %v", have.Data, want.Set.Name, want.Set.Data)
		}
	}
}
