package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

const year = 365 * 24 * time.Hour

// elsewhen is a clock that stands apart from the bubble's.
type elsewhen struct{ off time.Duration }

func (e *elsewhen) now() time.Time { return time.Now().Add(e.off) }

// P21. Everything that is decided goes by the clock that the node was given and by no other: were any of it by the machine's wall clock, which is
// years away here, a report would be too old, an override over, or an event in another century.
func TestP21_DecisionsGoByOneClock(t *testing.T) {
	for name, off := range map[string]time.Duration{"25 years ahead": 25 * year, "50 years behind": -50 * year, "an hour ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				clock := &elsewhen{off}
				n, err := Open(Options{Dir: dir, Node: "a", Clock: clock.now})
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				led(t, n)
				mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 2)})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { _ = n.Lead(ctx, func(ctx context.Context, _ uint64) error { return n.Judge(ctx) }) }()
				time.Sleep(time.Second)
				status, seq, in := rota.Up, uint64(0), NewInbox(n, nil)
				report := func() {
					seq++
					for _, v := range n.State().Spec().Vantages {
						r := &rota.Report{Vantage: v.Name, Incarnation: 1, Seq: seq}
						for _, x := range n.State().Targets() {
							r.Opinions = append(r.Opinions, &rota.Opinion{Target: x.ID, Status: status})
						}
						if err := in.Take(v.Name, "", 0, n.State().Table().Pack(r)); err != nil {
							t.Error(err)
						}
					}
					time.Sleep(time.Second)
				}
				report()
				id := n.State().Targets()[0].ID
				verdict := n.State().Verdict(id)
				if verdict.Status != rota.Up || clock.now().Sub(verdict.Since) > time.Minute || clock.now().Sub(n.State().At()) > time.Minute {
					t.Errorf("%v since %v at %v, the clock shows %v", verdict.Status, verdict.Since, n.State().At(), clock.now())
				}
				e := drain(0, n.State())
				e.At = time.Time{}
				e.Overrides[0].Set, e.Overrides[0].Expires = n.Now(), n.Now().Add(time.Hour)
				mustAppend(t, n, e)
				time.Sleep(59 * time.Minute)
				if len(n.State().Overrides()) != 1 {
					t.Error("an override ended early")
				}
				time.Sleep(2 * time.Minute)
				if len(n.State().Overrides()) != 0 {
					t.Error("an override did not end")
				}
				// The reports are an hour old by now: they change nothing.
				if got := n.State().Verdict(id); got.Status != rota.Up || !got.Since.Equal(verdict.Since) {
					t.Errorf("%+v", got)
				}
				status = rota.Down
				report()
				if n.State().Verdict(id).Status != rota.Down {
					t.Error("fresh reports decide nothing")
				}
			})
		})
	}
}

// Whoever leads next, with whatever clock: time goes on from the newest event, an hour lasts an hour, and a small difference is made up for.
func TestP21_ClocksOfLeadersDiffer(t *testing.T) {
	for name, off := range map[string]time.Duration{"25 years": 25 * year, "a minute": time.Minute} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				first, err := Open(Options{Dir: dir, Node: "a", Clock: (&elsewhen{off}).now})
				if err != nil {
					t.Fatal(err)
				}
				led(t, first)
				mustAppend(t, first, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 2)})
				mustClose(t, first)
				n, err := Open(Options{Dir: dir, Node: "a"})
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				led(t, n)
				begin := n.Now()
				for range 120 {
					last := n.State().At()
					if e := mustAppend(t, n, rota.Event{Kind: rota.EventTick}); e.At.Before(last) {
						t.Fatalf("time went back by %v", last.Sub(e.At))
					}
					time.Sleep(30 * time.Second)
				}
				went, left := n.Now().Sub(begin), time.Until(n.Now())
				switch {
				case off > soon && (went != time.Hour || left < off-time.Hour):
					t.Errorf("an hour took %v, %v ahead", went, left)
				case off <= soon && (went < time.Hour*19/20 || left > time.Second):
					t.Errorf("an hour took %v, and it is still %v ahead", went, left)
				}
				// Nor does who hands an event on decide when it happened.
				now := n.Now()
				for _, off := range []time.Duration{year, -year} {
					if e := mustAppend(t, n, rota.Event{Kind: rota.EventTick, At: now.Add(off)}); e.At.Sub(now).Abs() > time.Hour {
						t.Errorf("an event said to be %v away happened %v away", off, e.At.Sub(now))
					}
				}
			})
		})
	}
}
