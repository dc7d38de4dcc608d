package probe

import (
	"net/netip"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// sight is what was last seen of a target. Guarded by the prober's mu.
type sight struct {
	id    rota.TargetID
	addr  netip.Addr
	up    time.Time // of the last success, or that it was said to drain
	down  time.Time // of the first failure after it; only of a target that was up
	seen  bool      // it was seen up, down or draining
	blind uint8     // why the prober cannot see it any more: an index of blindness, or 0
}

// blindness lists the ways in which a prober itself fails, as far as they take its sight of what it has seen before.
var blindness = [...]rota.Class{rota.ClassNone, rota.ClassResource, rota.ClassPermission, rota.ClassUnroutable}

func blindFor(c rota.Class) uint8 {
	for i, x := range blindness[1:] {
		if x == c {
			return uint8(i + 1)
		}
	}
	return 0
}

// eyes count sights.
type eyes struct {
	fell  int                 // how many failed since they were last up
	seen  int                 // how many were seen at all
	blind [len(blindness)]int // how many of these cannot be seen any more
	why   string              // of the newest of them
}

// add counts a sight, or takes it out again with -1.
func (e *eyes) add(s *sight, n int) {
	if !s.down.IsZero() {
		e.fell += n
	}
	if s.seen {
		e.seen += n
	}
	if s.blind != 0 {
		e.blind[s.blind] += n
	}
}

// see takes in an observation. What the prober could not see is nothing, but that it cannot.
func (e *eyes) see(s *sight, o rota.Observation) {
	e.add(s, -1)
	switch o.Status {
	case rota.Up, rota.Draining: // who says that it is about to leave was seen
		s.up, s.down = o.At, time.Time{}
	case rota.Down:
		if s.down.IsZero() && !s.up.IsZero() {
			s.down = o.At
		}
	}
	switch why := blindFor(o.Class); {
	case o.Status != rota.Unknown:
		s.seen, s.blind = true, 0
	case why != 0 && s.seen:
		s.blind, e.why = why, o.Reason
	case o.Class != rota.ClassCancelled:
		s.blind = 0 // it was reached
	}
	e.add(s, 1)
}

// Fallen returns how many targets were seen up and have failed since.
func (p *Prober) Fallen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eyes.fell
}

// Blind is how far a prober has lost its sight through failures of its own machine. What it has never seen does not count: that may be
// out of its reach by nature.
type Blind struct {
	Seen  int        // targets that it has seen
	Lost  int        // of these, it cannot see any more
	Class rota.Class // the most common cause of that: ClassResource, ClassPermission or ClassUnroutable
	Why   string     // reason of the newest observation that ended so
}

// Blind returns how far the prober has lost its sight.
func (p *Prober) Blind() Blind {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, most := Blind{Seen: p.eyes.seen, Why: p.eyes.why}, 0
	for i, n := range p.eyes.blind {
		out.Lost += n
		if n > most {
			most, out.Class = n, blindness[i]
		}
	}
	return out
}

// Sights returns what was last seen of each target, for rota.SelfDoubt. shared says whether others see a target down as well.
func (p *Prober) Sights(shared func(rota.TargetID) bool) []rota.Sight {
	p.mu.Lock()
	sights := p.sights
	out := make([]rota.Sight, len(sights))
	for i, s := range sights {
		out[i] = rota.Sight{Address: s.addr, Up: s.up, Down: s.down}
	}
	p.mu.Unlock()
	for i, s := range sights { // the ids never change
		if !out[i].Down.IsZero() {
			out[i].Shared = shared(s.id)
		}
	}
	return out
}
