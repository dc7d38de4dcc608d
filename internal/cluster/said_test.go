package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// speaking runs f with a leader whose endpoints' own agents say how they are, and which judges.
func speaking(t *testing.T, f func(t *testing.T, n *Node, k *Said)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n, err := Open(Options{Dir: dir, Node: "a"})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		led(t, n)
		sp := spec(2, 3)
		for i := range sp.Services {
			for j := range sp.Services[i].Endpoints {
				e := &sp.Services[i].Endpoints[j]
				e.Agent = fmt.Sprintf("host%d", j)
				e.Checks = []rota.Use{{Check: rota.Check{Name: "own", Kind: rota.KindAgent, MaxAge: 30 * time.Second, Timing: rota.DefaultTiming()}}}
			}
		}
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: sp})
		k := NewSaid(n)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = n.Lead(ctx, func(ctx context.Context, _ uint64) error {
				wg.Go(func() { k.Run(ctx) })
				return n.Judge(ctx)
			})
		})
		f(t, n, k)
		cancel()
		wg.Wait()
		for _, r := range n.Reports() {
			if len(k.of) > 0 || len(r.Opinions) > 0 {
				t.Errorf("who leads no more remembers %d words, and shows %d opinions", len(k.of), len(r.Opinions))
			}
		}
	})
}

// spoken is what the agent of an endpoint of the first service says.
func spoken(n *Node, endpoint int, s rota.Status) rota.Saying {
	v := n.State().Services()[0]
	name := fmt.Sprintf("host%d", endpoint)
	return rota.Saying{Service: v.Name, Address: v.Endpoints[endpoint].Address, Status: s, Agent: name, By: "token:" + name}
}

// P15. What an endpoint's agent says decides at once; its silence is unknown after its lease, by the leader's clock, and changes nothing.
func TestP15_SilenceChangesNothing(t *testing.T) {
	speaking(t, func(t *testing.T, n *Node, k *Said) {
		is := func(endpoint int, verdict, vote rota.Status, reason string) {
			t.Helper()
			time.Sleep(2 * time.Second)
			id := n.State().Services()[0].Endpoints[endpoint].Target(n.State().Services()[0].Endpoints[endpoint].Checks[0]).ID
			if !strings.HasPrefix(string(id), "agent://") {
				t.Fatalf("the target is %s", id)
			}
			v, votes := n.State().Verdict(id), n.State().Votes(id, n.Reports(), n.clock())
			if v.Status != verdict || len(votes) != 1 || votes[0].Vantage != rota.OwnAgent || votes[0].Status != vote || !strings.Contains(votes[0].Reason, reason) {
				t.Errorf("endpoint %d: verdict %v, votes %+v; want %v, %v, %q", endpoint, v.Status, votes, verdict, vote, reason)
			}
			if v.Status != rota.Unknown && (v.Need != 1 || len(v.Votes) != 1) {
				t.Errorf("the verdict rests on %d of %+v", v.Need, v.Votes)
			}
		}
		say := func(x rota.Saying) {
			t.Helper()
			if _, err := k.Take(x); err != nil {
				t.Error(err)
			}
		}
		is(0, rota.Unknown, rota.Unknown, "nothing was said")
		x := spoken(n, 0, rota.Up)
		x.Reason, x.Weight = "fine", 52
		say(x)
		say(spoken(n, 1, rota.Down))
		say(spoken(n, 2, rota.Draining))
		is(0, rota.Up, rota.Up, "said by token:host0: fine")
		is(1, rota.Down, rota.Down, "said by token:host1")
		is(2, rota.Draining, rota.Draining, "said by token:host2")
		id := n.State().Targets()[0].ID
		if w := n.State().Verdict(id).Weight; w != 50 {
			t.Errorf("its weight is %d %%", w)
		}
		index := n.State().Index()
		for i := range 10 { // on the edge between two steps it does not go to and fro
			x.Weight = uint8(52 + i%2)
			say(x)
			time.Sleep(2 * time.Second)
		}
		if got := n.State().Index(); got != index {
			t.Errorf("a trembling weight makes %d events", got-index)
		}
		time.Sleep(30 * time.Second)
		is(0, rota.Up, rota.Unknown, "nothing was said for 30s; it was up, said by token:host0: fine")
		is(1, rota.Down, rota.Unknown, "nothing was said for 30s")
		index = n.State().Index()
		time.Sleep(24 * time.Hour)
		if n.State().Index() != index {
			t.Error("silence changes something")
		}
		x.Status = rota.Down
		say(x)
		is(0, rota.Down, rota.Down, "said by token:host0: fine")
		// What many say at once is shown at once.
		k.mu.Lock()
		shown := k.seq
		k.mu.Unlock()
		for i := range 8 {
			x := spoken(n, i%3, []rota.Status{rota.Draining, rota.Up}[i/3%2])
			say(x)
		}
		time.Sleep(2 * time.Second)
		k.mu.Lock()
		if got := k.seq - shown; got != 1 {
			t.Errorf("8 sayings are shown %d times", got)
		}
		k.mu.Unlock()
		// What is asked no more is forgotten.
		sp := n.State().Spec()
		sp.Services = sp.Services[1:]
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: &sp})
		time.Sleep(2 * time.Second)
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, r := range n.Reports() {
			if len(r.Opinions) != 0 || len(k.of) != 0 {
				t.Errorf("%d opinions of what is gone, %d words", len(r.Opinions), len(k.of))
			}
		}
	})
}

// P15. A number that is not new is refused, and two that speak under one name by turns are found out.
func TestP15_ReplaysAndTwoSpeakers(t *testing.T) {
	speaking(t, func(t *testing.T, n *Node, k *Said) {
		for i, c := range []struct {
			after       time.Duration
			incarnation uint64
			seq         uint64
			want        error
		}{
			{0, 7, 1, nil},
			{0, 7, 3, nil},
			{0, 7, 3, ErrSaidBefore},
			{0, 7, 2, ErrSaidBefore},
			{time.Hour, 7, 1, ErrSaidBefore},
			{0, 7, 4, nil},
			{0, 5, 1, nil}, // another process; that its clock is behind does not matter
			{0, 7, 5, ErrSaidBefore},
			{straggle + time.Second, 7, 6, ErrSaidTwice},
			{0, 5, 2, nil},
			{0, 0, 0, nil}, // who does not count cannot be replayed in order either
		} {
			time.Sleep(c.after)
			x := spoken(n, 0, rota.Up)
			x.Incarnation, x.Seq = c.incarnation, c.seq
			if _, err := k.Take(x); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%d: %v, want %v", i, err, c.want)
			}
		}
		refused, trouble := k.Stats()
		if refused["before"] != 4 || refused["twice"] != 1 || !strings.Contains(trouble, "two processes say as token:host0 how agent://10.0.0.0") {
			t.Errorf("%v, %q", refused, trouble)
		}
		time.Sleep(shownFor)
		if _, trouble := k.Stats(); trouble != "" {
			t.Errorf("still %q", trouble)
		}
		// One speaker's numbers are not another's, and how many are remembered is bounded.
		for i := range 3 * saidBy {
			time.Sleep(2 * time.Second)
			x := spoken(n, 0, rota.Up)
			x.Agent, x.By, x.Incarnation, x.Seq = "", fmt.Sprint("person", i), 1, 1
			if _, err := k.Take(x); err != nil {
				t.Error(err)
			}
		}
		k.mu.Lock()
		for _, w := range k.of {
			if len(w.speakers) > saidBy {
				t.Errorf("%d speakers are remembered", len(w.speakers))
			}
		}
		k.mu.Unlock()
		err := error(nil)
		for range saidBurst + 1 {
			_, err = k.Take(spoken(n, 0, rota.Up))
		}
		if !errors.Is(err, ErrSaidOften) {
			t.Errorf("a flood: %v", err)
		}
	})
}

// P16. An agent speaks for the endpoints that name it, and for no other.
func TestP16_NotYours(t *testing.T) {
	speaking(t, func(t *testing.T, n *Node, k *Said) {
		v := n.State().Services()[0]
		for name, c := range map[string]struct {
			change func(*rota.Saying)
			want   error
		}{
			"its own":             {func(*rota.Saying) {}, nil},
			"another's":           {func(x *rota.Saying) { x.Agent = "host1" }, rota.ErrNotYours},
			"nobody's":            {func(x *rota.Saying) { x.Agent = "mallory" }, rota.ErrNotYours},
			"an operator":         {func(x *rota.Saying) { x.Agent = "" }, nil},
			"no such service":     {func(x *rota.Saying) { x.Service = "else.example.org." }, rota.ErrNoEndpoint},
			"another's address":   {func(x *rota.Saying) { x.Address = v.Endpoints[1].Address }, rota.ErrNotYours},
			"no such endpoint":    {func(x *rota.Saying) { x.Address = v.Endpoints[0].Address.Next().Next().Next() }, rota.ErrNoEndpoint},
			"the check by name":   {func(x *rota.Saying) { x.Check = "own" }, nil},
			"no such check":       {func(x *rota.Saying) { x.Check = "other" }, rota.ErrNoSaying},
			"another's operator":  {func(x *rota.Saying) { x.Agent, x.Address = "", v.Endpoints[1].Address }, nil},
			"by another's number": {func(x *rota.Saying) { x.By = "token:host1" }, nil},
		} {
			x := spoken(n, 0, rota.Up)
			c.change(&x)
			_, err := k.Take(x)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || c.want == rota.ErrNotYours && !strings.Contains(err.Error(), "does not speak for endpoint") {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		// Another service asks the same of the same address, and hears another agent there.
		sp := n.State().Spec()
		sp.Services[1].Endpoints[0] = sp.Services[0].Endpoints[0]
		sp.Services[1].Endpoints[0].Agent = "host9"
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: &sp})
		if _, err := k.Take(spoken(n, 0, rota.Up)); !errors.Is(err, rota.ErrNotYours) || !strings.Contains(err.Error(), "host9 speaks for it there") {
			t.Errorf("what it says would count for another's service: %v", err)
		}
	})
}
