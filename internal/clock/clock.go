package clock

import (
	"sync"
	"time"
)

// How the steady time stands to the wall clock.
const (
	// Within is how far the wall clock may be away and is still followed. What is further off is no correction but another time.
	Within = 5 * time.Minute
	// Pace is how slowly it is followed: by a second in twenty, as much as the intervals of probes vary anyway.
	Pace = 20
	// Leap is the least change of the wall clock, beside its own pace, that counts as a step.
	Leap = time.Second
	// unset is the year before which a wall clock cannot have been set: machines without a battery begin in 1970 or with their firmware's
	// date. Its first step forward is followed, since what came before was no time.
	unset = 2025
)

// Clock is a steady clock. Its methods may be called from any goroutine.
type Clock struct {
	// Immutable.
	base  time.Time                         // wall and monotonic, at the start
	read  func() (time.Time, time.Duration) // the wall clock, without a monotonic reading, and the time since base
	slept func() time.Duration              // how long the machine has been asleep since it booted

	mu     sync.Mutex    // guards what follows; held while the clock is read, so that no Now is before another
	unset  bool          // the wall clock showed no time at the start
	asleep time.Duration // what slept said last
	ahead  time.Duration // of the wall clock before base and the time since, at the last look

	// How the steady time is ahead of base and the time since: by offset, and until a time since base a twentieth more or less of what
	// has passed.
	offset      time.Duration
	from, until time.Duration
	back        bool // less
}

// New returns a clock that begins now.
func New() *Clock {
	base := time.Now()
	return begin(base, func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(base)
	}, slept)
}

func begin(base time.Time, read func() (time.Time, time.Duration), slept func() time.Duration) *Clock {
	return &Clock{base: base, read: read, slept: slept, unset: base.Year() < unset, asleep: slept()}
}

// Now returns the steady time, with a monotonic reading that goes with it: two of them compare as steady time whatever the wall clock does.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, since := c.read()
	return c.base.Add(since + c.lead(since))
}

// lead returns how far the steady time is ahead of base and the time since.
func (c *Clock) lead(since time.Duration) time.Duration {
	d := max(min(since, c.until)-c.from, 0) / Pace
	if c.back {
		d = -d
	}
	return c.offset + d
}

// Seen is what a look at the wall clock showed.
type Seen struct {
	Step  time.Duration // by how much the wall clock was set since the last look; 0: it was not
	Slept time.Duration // how long the machine was asleep since the last look, or 0; the steady time has gone on by it
	Off   time.Duration // how far the wall clock is ahead of the steady time
	Lost  bool          // that is more than Within: the wall clock is not followed
}

// Look compares the wall clock with the steady time and sets how that follows it. It is to be called again and again, a second apart or so.
func (c *Clock) Look() Seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, since := c.read()
	asleep := c.slept()
	var out Seen
	if d := asleep - c.asleep; d >= Leap {
		out.Slept = d
	}
	ahead := wall.Sub(c.base.Round(0).Add(since))
	if d := ahead - c.ahead - out.Slept; d >= Leap || d <= -Leap {
		out.Step = d
	}
	c.offset, c.from, c.until = c.lead(since)+out.Slept, since, since
	if c.unset && out.Step > 0 {
		c.unset = false
		c.offset += out.Step
	}
	c.ahead, c.asleep = ahead, asleep
	out.Off = ahead - c.offset
	if out.Lost = out.Off > Within || out.Off < -Within; !out.Lost {
		c.back = out.Off < 0
		c.until += max(out.Off, -out.Off) * Pace
	}
	return out
}
