package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/clock"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// When a vantage doubts itself, beside what rota.SelfDoubt says.
const (
	// doubtEvery is how often a vantage asks itself whether it can trust its eyes: more often than the first opinion could turn.
	doubtEvery = 500 * time.Millisecond
	// doubtLeast is how long it abstains at least, so that it does not come and go.
	doubtLeast = 5 * time.Second

	// stopLeast is how long a process must have been stopped, or its machine asleep, to make what it saw before an old story. Shorter ones
	// happen to every busy machine; what was being probed meanwhile is not held against the target in any case.
	stopLeast = 5 * time.Second
	// lapseLeast is the least stop in which another node can have been elected.
	lapseLeast = time.Second
	// stopMost bounds for how long a vantage abstains after a stop.
	stopMost = time.Minute

	// Of the targets that it has seen, a vantage that cannot look at so many any more, and at this share, by its own fault, abstains;
	// until the share is less than half of it.
	blindLeast = 3
	blindShare = 0.5

	// stepLeast is the least step of the wall clock that makes certificates look expired or not yet valid, and stepHold for how long a vantage
	// abstains then: long enough that a clock that is soon set right does no harm, and no longer, since the clock may be right now.
	stepLeast = time.Hour
	stepHold  = 5 * time.Minute
)

// cause is why a vantage abstains, for machines. It is the label of a metric.
type cause string

const (
	causeUplink     cause = "uplink"     // its uplink checks fail
	causeFall       cause = "fall"       // most of what it watches fell at once
	causeResource   cause = "resource"   // no descriptor, port or memory is left
	causePermission cause = "permission" // it may not probe any more
	causeUnroutable cause = "unroutable" // it has no route any more
	causeStopped    cause = "stopped"    // it did not run
	causeClock      cause = "clock"      // its wall clock leapt
)

// causes lists them all.
var causes = []cause{causeUplink, causeFall, causeResource, causePermission, causeUnroutable, causeStopped, causeClock}

// why is a cause, with the words for it. The zero value is no doubt.
type why struct {
	cause cause
	text  string
}

// doubter is a vantage's doubt of itself. Its methods may be called from any goroutine.
type doubter struct {
	// Immutable.
	clocks  func() clock.Seen // looks at them
	log     *slog.Logger
	targets func() []rota.Target // that it watches
	doubted broadcast            // fired when why it abstains changed

	mu     sync.Mutex // guards what follows
	now    why        // why it abstains
	since  time.Time  // now is that
	looked time.Time  // when it last looked at the clocks; zero: never

	stopped, stepped     why       // why it abstains for a while
	stoppedTo, steppedTo time.Time // until when
	seen                 clock.Seen
	stops, steps, lapses uint64
}

// lapsed counts how often the process did not run for so long that another node may have begun to lead. The last time shows at once.
func (d *doubter) lapsed() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.look(time.Now())
	return d.lapses
}

// why returns why the vantage abstains. A stop shows at once, whoever asks first after it.
func (d *doubter) why() why {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.look(now)
	if w := d.timed(now); w.cause != "" {
		return w
	}
	return d.now
}

// look finds out whether the process was stopped or the clock was set since it was last asked.
func (d *doubter) look(now time.Time) {
	was := d.looked
	d.looked = now
	d.seen = d.clocks()
	if s := d.seen.Step; s != 0 {
		d.steps++
		d.log.Warn("the wall clock was set", "by", s, "what_follows", clockWords(d.seen))
		if d.seen.Lost && s.Abs() >= stepLeast {
			d.steppedTo = now.Add(stepHold)
			d.stepped = why{causeClock, fmt.Sprintf("its wall clock was set by %v, so certificates may look expired that are not", s.Round(time.Second))}
		}
	}
	if !d.seen.Lost {
		d.steppedTo = time.Time{}
	}
	stop := d.seen.Slept
	if late := now.Sub(was) - doubtEvery; !was.IsZero() && late >= lapseLeast {
		stop += late
	}
	if stop > 0 {
		d.lapses++
	}
	if stop < stopLeast {
		return
	}
	d.stops++
	longest := time.Duration(0)
	for _, t := range d.targets() {
		longest = max(longest, t.Check.Interval+t.Check.Timeout)
	}
	again := min(longest, stopMost)
	d.log.Warn("this process was stopped, or its machine asleep: what it saw before counts no more", "for", stop.Round(time.Millisecond), "looking_again_takes", again)
	d.stoppedTo = now.Add(max(again, doubtLeast))
	d.stopped = why{causeStopped, fmt.Sprintf("it did not run for %v, and looks at everything again first", stop.Round(100*time.Millisecond))}
}

// timed returns why the vantage abstains for a while, if it does.
func (d *doubter) timed(now time.Time) why {
	switch {
	case now.Before(d.stoppedTo):
		return d.stopped
	case now.Before(d.steppedTo):
		return d.stepped
	}
	return why{}
}

// consider takes in what else there is to doubt, and tells whoever waits when that changes why the vantage abstains.
func (d *doubter) consider(other why) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.look(now)
	next := d.timed(now)
	if next.cause == "" {
		next = other
	}
	switch {
	case next == d.now, next.cause == "" && now.Sub(d.since) < doubtLeast:
		return
	case next.cause == "":
		d.log.Info("this node trusts its eyes again")
	default:
		d.log.Warn("this node abstains: its opinions do not count until that is over", "why", next.text)
	}
	d.now, d.since = next, now
	d.doubted.fire()
}

// blind says why a vantage that has lost its sight abstains, or nothing. What it said before it says as long as that goes on, since words
// that count would change with every probe.
func (d *doubter) blind(b probe.Blind) why {
	d.mu.Lock()
	last := d.now
	d.mu.Unlock()
	c := map[rota.Class]cause{
		rota.ClassResource: causeResource, rota.ClassPermission: causePermission, rota.ClassUnroutable: causeUnroutable,
	}[b.Class]
	share := float64(b.Lost) / math.Max(float64(b.Seen), 1)
	switch {
	case b.Lost > 0 && last.cause == c && share >= blindShare/2:
		return last
	case b.Lost < blindLeast || share < blindShare:
		return why{}
	}
	return why{c, fmt.Sprintf("%d of %d targets cannot be probed from here: %s", b.Lost, b.Seen, b.Why)}
}

// clockState is how the wall clock stands to the steady time.
type clockState struct {
	clock.Seen
	stops, steps uint64
}

func (d *doubter) state() clockState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return clockState{d.seen, d.stops, d.steps}
}

// clockWords says what follows from how the wall clock stands.
func clockWords(s clock.Seen) string {
	if !s.Lost {
		return "the time of decisions follows it, slowly"
	}
	return fmt.Sprintf("the wall clock is %v away from the time that decisions are made by, which does not follow it: set it right, "+
		"or restart rota when it is right now", s.Off.Round(time.Second))
}

// watchSelf lets this node doubt itself: by what it must see to be sure that it is not cut off, by what it sees and by what it cannot. An abstention
// shows in its report, and in the log when it begins and ends.
func (n *node) watchSelf(ctx context.Context) error {
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
			other := cutOff(given, uplink.Report())
			if other.cause == "" {
				other = n.doubt.blind(n.prober.Blind())
			}
			if other.cause == "" {
				other = n.fallen()
			}
			n.doubt.consider(other)
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
func cutOff(u *config.Uplink, r *rota.Report) why {
	if u == nil {
		return why{}
	}
	down := 0
	for _, o := range r.Opinions {
		if o.Status == rota.Down {
			down++
		}
	}
	if len(u.Checks)-down >= u.Need {
		return why{}
	}
	return why{causeUplink, fmt.Sprintf("cut off: %d of its %d uplink checks fail, and %d must succeed", down, len(u.Checks), u.Need)}
}

// fallen says why a vantage among others should not trust its eyes, or nothing.
func (n *node) fallen() why {
	st := n.raft.State()
	if n.prober.Fallen() < rota.DoubtLeast || len(st.Spec().Vantages) < 2 {
		return why{}
	}
	text := rota.SelfDoubt(n.prober.Sights(func(id rota.TargetID) bool {
		v := st.Verdict(id)
		return v.Status == rota.Down || v.Status == rota.Draining
	}), time.Now())
	if text == "" {
		return why{}
	}
	return why{causeFall, text}
}
