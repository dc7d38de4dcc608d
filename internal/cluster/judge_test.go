package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// bench is a node with Judge running in a synctest bubble.
type bench struct {
	*testing.T
	*Node
	seq  uint64
	said *notebook
}

// notebook is what a node logs.
type notebook struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (n *notebook) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(b)
}

func (n *notebook) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

func judged(t *testing.T, s *rota.Spec, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		said := &notebook{}
		n, err := Open(Options{Dir: dir, Node: "a", Log: slog.New(slog.NewTextHandler(said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		led(t, n)
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: s})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := n.Lead(ctx, func(ctx context.Context, _ uint64) error { return n.Judge(ctx) }); err != nil {
				t.Errorf("Lead: %v", err)
			}
		})
		f(&bench{T: t, Node: n, said: said})
		cancel()
		wg.Wait()
		mustClose(t, n)
	})
}

// says reports a status on the targets from a vantage; without targets, on all.
func (b *bench) says(vantage string, status rota.Status, targets ...rota.TargetID) {
	if len(targets) == 0 {
		for _, t := range b.State().Targets() {
			targets = append(targets, t.ID)
		}
	}
	b.seq++
	r := &rota.Report{Vantage: vantage, Seq: b.seq, At: time.Now()}
	for _, t := range b.State().Targets() {
		o := &rota.Opinion{Target: t.ID, Status: rota.Up, Class: rota.ClassOK}
		for _, id := range targets {
			if id == t.ID {
				o.Status = status
			}
		}
		r.Opinions = append(r.Opinions, o)
	}
	b.hear(r)
}

// settle lets everything that is due now happen.
func (b *bench) settle() {
	time.Sleep(2 * coalesce)
	synctest.Wait()
}

func (b *bench) want(target int, status rota.Status) {
	b.Helper()
	b.settle()
	if got := b.State().Verdict(b.State().Targets()[target].ID).Status; got != status {
		b.Errorf("target %d is %v, want %v", target, got, status)
	}
}

func TestVerdictsNeedAQuorum(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		first := b.State().Targets()[0].ID
		b.says("a", rota.Up)
		b.want(0, rota.Unknown)
		b.says("stranger", rota.Up)
		b.want(0, rota.Unknown)
		before := b.State().Index()
		b.says("b", rota.Up)
		b.want(0, rota.Up)
		if got := b.State().Index(); got != before+1 {
			b.Errorf("three verdicts took %d events", got-before)
		}
		b.says("a", rota.Down, first)
		b.want(0, rota.Up)
		b.says("c", rota.Down, first)
		b.want(0, rota.Down)
		b.want(1, rota.Up)
		rs := b.Records(0, 1)
		if len(rs) != 1 || len(rs[0].Event.Verdicts) != 1 || len(rs[0].Transitions) != 1 {
			b.Fatalf("last record %+v", rs)
		}
		if v := rs[0].Event.Verdicts[0]; v.Need != 2 || len(v.Votes) != 3 {
			b.Errorf("verdict without its votes: %+v", v)
		}
		b.says("a", rota.Up)
		b.want(0, rota.Up)
	})
}

// TestReportsAge lets reports go stale: the verdict stands, and a stale vantage that speaks again counts at once.
func TestReportsAge(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		first := b.State().Targets()[0].ID
		for _, v := range []string{"a", "b", "c"} {
			b.says(v, rota.Up)
		}
		b.want(0, rota.Up)
		before := b.State().Index()
		b.says("a", rota.Down, first)
		time.Sleep(rota.DefaultMaxAge + time.Second)
		b.want(0, rota.Up)
		if b.State().Index() != before {
			b.Error("silence became an event")
		}
		b.says("b", rota.Down, first) // a's voice has aged out
		b.want(0, rota.Up)
		b.says("a", rota.Down, first) // the same opinions as before, and fresh
		b.want(0, rota.Down)
	})
}

// TestAgeDecides has a quorum of any, in which two opposed votes cancel out until one of them ages out.
func TestAgeDecides(t *testing.T) {
	s := spec(1, 3)
	s.Quorum.Need = "any"
	judged(t, s, func(b *bench) {
		first := b.State().Targets()[0].ID
		b.says("a", rota.Up)
		b.want(0, rota.Up)
		time.Sleep(10 * time.Second)
		b.says("b", rota.Down, first)
		b.want(0, rota.Up)
		time.Sleep(rota.DefaultMaxAge - 5*time.Second) // now only b is fresh
		b.want(0, rota.Down)
	})
}

func TestSpecIsJudgedAnew(t *testing.T) {
	judged(t, spec(1, 1), func(b *bench) {
		for _, v := range []string{"a", "b"} {
			b.seq++
			r := &rota.Report{Vantage: v, Seq: b.seq, At: time.Now()}
			for _, t := range func() []rota.Target {
				s, err := new(rota.State).Apply(rota.Event{Index: 1, Kind: rota.EventSpec, Spec: spec(2, 1)})
				if err != nil {
					b.Fatal(err)
				}
				return s.Targets()
			}() {
				r.Opinions = append(r.Opinions, &rota.Opinion{Target: t.ID, Status: rota.Up})
			}
			b.hear(r)
		}
		b.want(0, rota.Up)
		mustAppend(b, b.Node, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 1)})
		b.want(0, rota.Up)
		b.want(1, rota.Up)
		wider := spec(2, 1)
		wider.Quorum.Need = "all"
		mustAppend(b, b.Node, rota.Event{Kind: rota.EventSpec, Spec: wider})
		b.want(1, rota.Up)
	})
}

// TestTicks waits for what only time brings: the end of an override, and of min_hold.
func TestTicks(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		for _, v := range []string{"a", "b", "c"} {
			b.says(v, rota.Up)
		}
		b.want(0, rota.Up)
		svc := b.State().Services()[0]
		id := rota.EndpointID{Service: svc.Name, Address: svc.Endpoints[0].Address}
		answer := func() int {
			b.Helper()
			return len(b.State().Selection(svc.Name).V4.Published())
		}
		now := time.Now()
		mustAppend(b, b.Node, rota.Event{Kind: rota.EventOverride, Overrides: []rota.Override{{
			Endpoint: id, Action: rota.ActionDrain, Author: "me", Set: now, Expires: now.Add(2 * time.Hour),
		}}})
		if answer() != 2 {
			b.Fatalf("%d addresses while one is drained", answer())
		}
		before := b.State().Index()
		time.Sleep(2*time.Hour - time.Second)
		b.settle()
		if b.State().Index() != before {
			b.Error("ticked although nothing was due")
		}
		if b.State().Override(id) == nil {
			b.Fatal("the override ended early")
		}
		time.Sleep(2 * time.Second)
		b.settle()
		if b.State().Override(id) != nil || answer() != 3 {
			b.Errorf("the override did not end: %d addresses", answer())
		}
		if got := b.State().Index(); got != before+1 {
			b.Errorf("%d events for one tick", got-before)
		}

		for _, v := range []string{"a", "b", "c"} {
			b.says(v, rota.Down, b.State().Targets()[0].ID)
		}
		b.want(0, rota.Down)
		for _, v := range []string{"a", "b", "c"} {
			b.says(v, rota.Up)
		}
		b.want(0, rota.Up)
		if answer() != 2 {
			b.Fatalf("back within min_hold: %d addresses", answer())
		}
		time.Sleep(svc.Safety.MinHold)
		b.settle()
		if answer() != 3 {
			b.Errorf("not back after min_hold: %d addresses", answer())
		}
	})
}

// TestNothingAtRest has three vantages report each ten seconds, for an hour in which nothing moves.
func TestNothingAtRest(t *testing.T) {
	judged(t, spec(10, 3), func(b *bench) {
		for _, v := range []string{"a", "b", "c"} {
			b.says(v, rota.Up)
		}
		b.want(0, rota.Up)
		before, state := b.Status().Last, b.State()
		for range 360 {
			for _, v := range []string{"a", "b", "c"} {
				b.says(v, rota.Up)
			}
			time.Sleep(10 * time.Second)
		}
		if now := b.Status().Last; now != before || b.State() != state {
			b.Errorf("the log grew from %d to %d", before, now)
		}
		time.Sleep(time.Hour) // and all of them fall silent
		if now := b.Status().Last; now != before {
			b.Errorf("the log grew from %d to %d in silence", before, now)
		}
	})
}

func TestLead(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{}
		n, err := open(Options{Dir: dir, Node: "a"}, func(s store) store { f.store = s; return f })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		type run struct {
			term uint64
			at   time.Time
		}
		var mu sync.Mutex
		var runs []run
		inside := 0
		begun := func(term uint64) int {
			mu.Lock()
			defer mu.Unlock()
			runs = append(runs, run{term, time.Now()})
			if inside++; inside > 1 {
				t.Error("two rounds at once")
			}
			if l := n.State().Lead(); l.Term != term || l.Node != "a" {
				t.Errorf("in term %d the state says %+v", term, l)
			}
			return len(runs)
		}
		ended := func() {
			mu.Lock()
			defer mu.Unlock()
			inside--
		}
		returned := make(chan error, 1)
		go func() {
			returned <- n.Lead(ctx, func(ctx context.Context, term uint64) error {
				defer ended()
				if k := begun(term); k <= 3 {
					return fmt.Errorf("failure %d", k)
				}
				<-ctx.Done()
				time.Sleep(time.Second) // Lead waits for this
				return ctx.Err()
			})
		}()
		time.Sleep(time.Minute)
		mu.Lock()
		if len(runs) != 4 || runs[0].term != runs[3].term {
			t.Fatalf("runs %+v", runs)
		}
		if a, b := runs[1].at.Sub(runs[0].at), runs[3].at.Sub(runs[2].at); a < shortestPause/2 || b < a {
			t.Errorf("pauses %v, then %v", a, b)
		}
		mu.Unlock()

		f.fail.Store(true)
		if _, err := n.Append(t.Context(), rota.Event{Kind: rota.EventTick}); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		mu.Lock()
		if inside != 0 {
			t.Error("still inside without leadership")
		}
		mu.Unlock()
		f.fail.Store(false)
		time.Sleep(time.Minute)
		mu.Lock()
		if len(runs) != 5 || runs[4].term <= runs[3].term || inside != 1 {
			t.Errorf("runs %+v, %d inside", runs, inside)
		}
		mu.Unlock()

		cancel()
		if err := <-returned; err != nil {
			t.Errorf("Lead: %v", err)
		}
		// A round that ended well is not begun again in its term; Close ends Lead and waits for what runs inside.
		calls, left := 0, false
		go func() { returned <- n.Lead(t.Context(), func(context.Context, uint64) error { calls++; return nil }) }()
		second := make(chan error, 1)
		go func() {
			second <- n.Lead(t.Context(), func(ctx context.Context, _ uint64) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				left = true
				return nil
			})
		}()
		time.Sleep(time.Minute)
		mustClose(t, n)
		if !left {
			t.Error("Close did not wait")
		}
		for _, c := range []chan error{returned, second} {
			if err := <-c; !errors.Is(err, ErrClosed) {
				t.Errorf("Lead after Close: %v", err)
			}
		}
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
	})
}

func TestHistoryBounds(t *testing.T) {
	h := &history{limit: 3}
	for i := range 10 {
		h.add(Record{Event: rota.Event{Index: uint64(i + 1)}}, 10)
	}
	h.add(Record{Event: rota.Event{Index: 4}}, 10) // again: nothing
	index := func(rs []Record) (out []uint64) {
		for _, r := range rs {
			out = append(out, r.Event.Index)
		}
		return out
	}
	for _, c := range []struct {
		after uint64
		limit int
		want  string
	}{{0, 0, "[8 9 10]"}, {8, 0, "[9 10]"}, {0, 2, "[9 10]"}, {10, 0, "[]"}, {99, 5, "[]"}} {
		if got := fmt.Sprint(index(h.after(c.after, c.limit))); got != c.want {
			t.Errorf("after %d, at most %d: %s, want %s", c.after, c.limit, got, c.want)
		}
	}
	h.add(Record{Event: rota.Event{Index: 11}}, 2*maxHistory)
	if got := fmt.Sprint(index(h.after(0, 0))); got != "[11]" {
		t.Errorf("after a huge one: %s", got)
	}
	h.add(Record{Event: rota.Event{Index: 12}}, 1)
	if got := fmt.Sprint(index(h.after(0, 0))); got != "[12]" || h.bytes > maxHistory {
		t.Errorf("after a small one: %s, %d bytes", got, h.bytes)
	}
}
