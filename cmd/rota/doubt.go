package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// doubtEvery is how often a vantage asks itself whether it can trust its eyes: more often than the first opinion could turn.
const doubtEvery = 500 * time.Millisecond

// doubt is why this vantage abstains, if it does.
type doubt struct {
	mu     sync.Mutex // guards reason
	reason string
}

func (d *doubt) why() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reason
}

// set notes a reason and reports whether it is another one.
func (d *doubt) set(reason string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reason == reason {
		return false
	}
	d.reason = reason
	return true
}

// watchUplink probes what this node must see to be sure that it is not cut off itself, and doubts what it sees otherwise. An abstention
// shows in its report, and in the log when it begins and ends.
func (n *node) watchUplink(ctx context.Context) error {
	uplink := probe.New(probe.Options{Vantage: n.name, Log: n.log.With("room", "uplink")})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_ = uplink.Run(ctx) // ends with ctx and says so
		return nil
	})
	g.Go(func() error {
		tick := time.NewTicker(doubtEvery)
		defer tick.Stop()
		var given *config.Uplink
		for {
			if now := n.current.Load().cfg.Uplink; now != given {
				given = now
				uplink.Set(uplinkTargets(now))
			}
			why := cutOff(given, uplink.Report())
			if why == "" {
				why = n.selfDoubt()
			}
			if n.doubt.set(why) {
				if why != "" {
					n.log.Warn("this node abstains: its opinions do not count until that is over", "why", why)
				} else {
					n.log.Info("this node trusts its eyes again")
				}
				n.doubted.fire()
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return g.Wait()
}

func uplinkTargets(u *config.Uplink) []rota.Target {
	if u == nil {
		return nil
	}
	return u.Checks
}

// cutOff says why a node counts as cut off, or nothing: so many of its uplink checks are down that fewer than it needs can be up.
func cutOff(u *config.Uplink, r *rota.Report) string {
	if u == nil {
		return ""
	}
	down := 0
	for _, o := range r.Opinions {
		if o.Status == rota.Down {
			down++
		}
	}
	if len(u.Checks)-down >= u.Need {
		return ""
	}
	return fmt.Sprintf("cut off: %d of its %d uplink checks fail, and %d must succeed", down, len(u.Checks), u.Need)
}

// selfDoubt says why a vantage among others should not trust its eyes, or nothing.
func (n *node) selfDoubt() string {
	st := n.raft.State()
	if n.prober.Fallen() < rota.DoubtLeast || len(st.Spec().Vantages) < 2 {
		return ""
	}
	return rota.SelfDoubt(n.prober.Sights(func(id rota.TargetID) bool {
		v := st.Verdict(id)
		return v.Status == rota.Down || v.Status == rota.Draining
	}), time.Now())
}
