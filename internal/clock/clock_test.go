package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

// machine is a wall clock that can be set and put to sleep, over the bubble's time.
type machine struct {
	*Clock
	off, asleep time.Duration
}

func newMachine(wrong time.Duration) *machine {
	m := &machine{off: wrong}
	start := time.Now()
	m.Clock = begin(start.Add(wrong), func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Add(m.off).Round(0), now.Sub(start)
	}, func() time.Duration { return m.asleep })
	return m
}

// run lets time pass while somebody looks every half second, and wants Now to go on evenly meanwhile.
func (m *machine) run(t *testing.T, d time.Duration) (last Seen) {
	t.Helper()
	const tick = 500 * time.Millisecond
	for range int(d / tick) {
		before := m.Now()
		time.Sleep(tick)
		if seen := m.Look(); seen.Step != 0 || seen.Slept != 0 {
			t.Errorf("looking saw %+v", seen)
		} else {
			last = seen
		}
		if went := m.Now().Sub(before); went < tick-tick/Pace || went > tick+tick/Pace {
			t.Fatalf("%v passed, and the steady time went on by %v", tick, went)
		}
	}
	return last
}

func TestClock(t *testing.T) {
	const day, year = 24 * time.Hour, 365 * 24 * time.Hour
	for _, c := range []struct {
		name  string
		step  time.Duration
		after time.Duration // that much later
		off   time.Duration // the wall clock is ahead by this
		lost  bool
	}{
		{"still", 0, time.Hour, 0, false},
		{"a leap second", -time.Second, time.Minute, 0, false},
		{"a correction", 3 * time.Second, 59 * time.Second, 3*time.Second - 59*time.Second/Pace, false},
		{"a correction, in the end", 3 * time.Second, 61 * time.Second, 0, false},
		{"back by minutes", -4 * time.Minute, 40 * time.Minute, -2 * time.Minute, false},
		{"an hour", time.Hour, day, time.Hour, true},
		{"25 years", 25 * year, day, 25 * year, true},
		{"back by 50 years", -50 * year, day, -50 * year, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(30 * year) // 2030: the bubble's time begins in 2000
				m.run(t, time.Minute)
				before := m.Now()
				m.off += c.step
				seen := m.Look()
				if want := c.step; seen.Step != want || seen.Off != want || seen.Lost != c.lost || seen.Slept != 0 {
					t.Errorf("after the step: %+v", seen)
				}
				if now := m.Now(); !now.Equal(before) || now.Round(0) != before.Round(0) {
					t.Errorf("the step itself moves the steady time by %v", now.Sub(before))
				}
				seen = m.run(t, c.after)
				if d := seen.Off - c.off; d < -time.Millisecond || d > time.Millisecond || seen.Lost != c.lost {
					t.Errorf("%v later: %+v, want off by %v", c.after, seen, c.off)
				}
				m.off -= c.step
				if seen := m.Look(); seen.Step != -c.step || seen.Lost {
					t.Errorf("set right again: %+v", seen)
				}
			})
		})
	}
}

// A machine that slept has lost time that really passed; that is no step of its clock.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(30 * 365 * 24 * time.Hour)
		before := m.Now()
		m.asleep += 8 * time.Hour
		m.off += 8 * time.Hour
		if seen := m.Look(); seen != (Seen{Slept: 8 * time.Hour}) {
			t.Errorf("after the sleep: %+v", seen)
		}
		if d := m.Now().Sub(before); d != 8*time.Hour {
			t.Errorf("the steady time went on by %v", d)
		}
	})
}

// A wall clock that was never set is followed once it is, and only then.
func TestUnset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const years = 50 * 365 * 24 * time.Hour
		m := newMachine(-20 * 365 * 24 * time.Hour)
		m.run(t, time.Minute)
		m.off += years
		if seen := m.Look(); seen.Step != years || seen.Off != 0 || seen.Lost {
			t.Errorf("set for the first time: %+v", seen)
		}
		m.off += time.Hour
		if seen := m.Look(); seen.Off != time.Hour || !seen.Lost {
			t.Errorf("set again: %+v", seen)
		}
	})
}

// The machine's own clocks can be read, and agree.
func TestNew(t *testing.T) {
	c := New()
	if seen := c.Look(); seen.Lost || seen.Step != 0 || seen.Slept != 0 {
		t.Errorf("a look at once: %+v", seen)
	}
	if d := time.Until(c.Now()); d < -time.Minute || d > time.Minute {
		t.Errorf("the steady time begins %v away from the wall clock", d)
	}
}
