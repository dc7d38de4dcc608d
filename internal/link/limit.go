package link

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

// source is what one caller's addresses have in common: an IPv4 address, or the /64 that one IPv6 host can move about in.
func source(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

// bounds of the port. Zero values are replaced by the defaults.
type bounds struct {
	shaking     int // handshakes under way
	shakingFrom int // from one source
	open        int // connections that are let in
	openFrom    int // from one source
	agents      int // of the open ones, those of agents: the rest is for nodes
	ofAgent     int // of one agent
	joining     int // of newcomers
	joiningFrom int
}

var defaultBounds = bounds{shaking: 256, shakingFrom: 32, open: 3072, openFrom: 256, agents: 2560, ofAgent: 16, joining: 32, joiningFrom: 4}

// gate counts connections, and keeps them under the bounds.
type gate struct {
	max bounds

	mu      sync.Mutex // guards what follows
	shaking list.List  // of *pass, the oldest first
	open    int
	joining int
	from    map[netip.Prefix]*[3]int // by phase
	agents  int                      // of the open ones
	of      map[string]int           // of these, by agent
}

// phase is how far a connection has come.
type phase int

const (
	shaking phase = iota
	open
	joining
)

// pass is the right of one connection to be there.
type pass struct {
	g     *gate
	conn  net.Conn
	from  netip.Prefix
	phase phase
	at    *list.Element // in shaking
	agent string        // whose it is, once it is open; empty: no agent's
	left  bool
}

func newGate(max bounds) *gate {
	return &gate{max: max, from: map[netip.Prefix]*[3]int{}, of: map[string]int{}}
}

// enter lets a new connection begin its handshake. When too many are at it, the oldest goes: an honest handshake takes milliseconds,
// so the oldest is the least likely to become one. It returns nil when this source has too many already.
func (g *gate) enter(c net.Conn) (p *pass, evicted bool) {
	p = &pass{g: g, conn: c, from: source(c.RemoteAddr())}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.from[p.from]
	if n == nil {
		n = new([3]int)
	}
	if n[shaking] >= g.max.shakingFrom || n[open] >= g.max.openFrom {
		return nil, false
	}
	if g.shaking.Len() >= g.max.shaking {
		old := g.shaking.Front().Value.(*pass)
		_ = old.conn.Close()
		g.remove(old)
		evicted = true
	}
	n[shaking]++
	g.from[p.from] = n
	p.at = g.shaking.PushBack(p)
	return p, evicted
}

// advance moves a connection from its handshake to the next phase, if there is room. agent is whose it is; empty: no agent's.
func (p *pass) advance(to phase, agent string) bool {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.left {
		return false
	}
	n := g.from[p.from]
	switch to {
	case open:
		if g.open >= g.max.open || n[open] >= g.max.openFrom {
			return false
		}
		if agent != "" {
			if g.agents >= g.max.agents || g.of[agent] >= g.max.ofAgent {
				return false
			}
			g.agents++
			g.of[agent]++
			p.agent = agent
		}
		g.open++
	case joining:
		if g.joining >= g.max.joining || n[joining] >= g.max.joiningFrom {
			return false
		}
		g.joining++
	}
	g.shaking.Remove(p.at)
	n[shaking]--
	n[to]++
	p.phase = to
	return true
}

// leave ends it. It may be called more than once.
func (p *pass) leave() {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.remove(p)
}

// remove takes a connection out of the counts. The caller holds mu.
func (g *gate) remove(p *pass) {
	if p.left {
		return
	}
	p.left = true
	n := g.from[p.from]
	n[p.phase]--
	switch p.phase {
	case shaking:
		g.shaking.Remove(p.at)
	case open:
		g.open--
		if p.agent != "" {
			g.agents--
			if g.of[p.agent]--; g.of[p.agent] == 0 {
				delete(g.of, p.agent)
			}
		}
	case joining:
		g.joining--
	}
	if *n == ([3]int{}) {
		delete(g.from, p.from)
	}
}

func (g *gate) counts() (inHandshake, isOpen int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shaking.Len(), g.open + g.joining
}

// rate is a token bucket for each source, and bounded itself: when it is full of sources, those that have been quiet longest go.
type rate struct {
	burst float64
	every time.Duration // until one more is allowed
	most  int           // sources

	mu    sync.Mutex // guards what follows
	spent map[netip.Prefix]*list.Element
	order list.List // of *bucket, the quietest first
}

type bucket struct {
	from  netip.Prefix
	spent float64
	at    time.Time
}

func newRate(burst int, every time.Duration, most int) *rate {
	return &rate{burst: float64(burst), every: every, most: most, spent: map[netip.Prefix]*list.Element{}}
}

// wait returns how long a source has to wait before its next attempt counts; zero when it need not.
func (r *rate) wait(from netip.Prefix, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.spent[from]
	if e == nil {
		return 0
	}
	over := r.level(e.Value.(*bucket), now) + 1 - r.burst
	if over <= 0 {
		return 0
	}
	return time.Duration(over * float64(r.every))
}

func (r *rate) level(b *bucket, now time.Time) float64 {
	return max(0, b.spent-now.Sub(b.at).Seconds()/r.every.Seconds())
}

// spend notes a failed attempt.
func (r *rate) spend(from netip.Prefix, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.spent[from]
	if e == nil {
		if r.order.Len() >= r.most {
			old := r.order.Front()
			delete(r.spent, old.Value.(*bucket).from)
			r.order.Remove(old)
		}
		e = r.order.PushBack(&bucket{from: from, at: now})
		r.spent[from] = e
	}
	b := e.Value.(*bucket)
	b.spent, b.at = min(r.level(b, now)+1, r.burst+1), now
	r.order.MoveToBack(e)
}
