package probe

import (
	"net/netip"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// sight is what was last seen of a target. Guarded by the prober's mu.
type sight struct {
	id   rota.TargetID
	addr netip.Addr
	up   time.Time // of the last success, or that it was said to drain
	down time.Time // of the first failure after it; only of a target that was up
}

// see takes in an observation and returns by how many more targets have fallen: -1, 0 or 1. What the prober could not see is nothing.
func (s *sight) see(o rota.Observation) int {
	switch {
	case o.Status == rota.Up, o.Status == rota.Draining: // who says that it is about to leave was seen
		n := 0
		if !s.down.IsZero() {
			n = -1
		}
		s.up, s.down = o.At, time.Time{}
		return n
	case o.Status == rota.Down && s.down.IsZero() && !s.up.IsZero():
		s.down = o.At
		return 1
	}
	return 0
}

// Fallen returns how many targets were seen up and have failed since.
func (p *Prober) Fallen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fell
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
