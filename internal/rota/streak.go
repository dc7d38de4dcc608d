package rota

import "time"

// Streak is what one vantage remembers of one target between probes: its opinion and how far it is from changing it.
// Failures count cumulatively: a success between two of them does not forgive the first, only OK successes in a row do.
// So a target that loses every third probe goes down, and one that flaps stays as it is until it has made up its mind. What the
// endpoint says of itself needs no second proof: that it drains, or that it is down for sure, acts at once. Coming back never does.
// An opinion lasts as long as its evidence: for StaleAfter, or three intervals if that is longer.
type Streak struct {
	Status    Status      `json:"status"`
	Since     time.Time   `json:"since,omitzero"` // of the last change of Status
	Failures  int         `json:"failures"`       // cumulative, since they were last forgiven; at most Fall
	Successes int         `json:"successes"`      // in a row; at most the larger of Rise and OK
	Last      Observation `json:"last"`
	Seen      time.Time   `json:"seen,omitzero"` // the last observation that was not unknown
}

// StaleAfter is how long an opinion lasts without an observation that says something: a target of which nothing is known any more is
// unknown, not what it was.
const StaleAfter = 45 * time.Second

// Observe returns the streak after one more observation. An unknown observation is remembered as the last one and counts for
// nothing else, but that opinions end with their evidence.
func (s Streak) Observe(o Observation, t Timing) Streak {
	interval := t.Interval
	if s.Slow() {
		interval = max(interval, t.SlowInterval)
	}
	s.Last = o
	if o.Status != Unknown {
		s.Seen = o.At
	}
	switch o.Status {
	case Unknown:
		if s.Status != Unknown && o.At.Sub(s.Seen) > max(StaleAfter, 3*interval) {
			s.Status, s.Since, s.Failures, s.Successes = Unknown, o.At, 0, 0
		}
	case Up:
		s.Successes = min(s.Successes+1, max(t.Rise, t.OK))
		if s.Successes >= t.OK {
			s.Failures = 0
		}
		if s.Status != Up && s.Successes >= t.Rise {
			s.Status, s.Since, s.Failures = Up, o.At, 0
		}
	case Down:
		s.Successes = 0
		s.Failures = min(s.Failures+1, t.Fall)
		if o.Sure {
			s.Failures = t.Fall
		}
		if s.Status != Down && s.Failures >= t.Fall {
			s.Status, s.Since = Down, o.At
		}
	case Draining:
		s.Successes = 0
		if s.Status != Draining {
			s.Status, s.Since, s.Failures = Draining, o.At, 0
		}
	}
	return s
}

// Pending reports whether a change of opinion is under way, so that the next probe is due after the fast interval. Observations
// that are unknown bring no change nearer: a target that cannot be probed from here is not probed faster for it.
func (s Streak) Pending(t Timing) bool {
	switch s.Status {
	case Up:
		return s.Failures > 0 && s.Successes < t.OK
	case Down, Draining: // one that drains is expected to fail: that is no news to hurry for
		return s.Successes > 0
	}
	return s.Failures > 0 || s.Successes > 0 || s.Last.At.IsZero()
}

// Slow reports whether the target has been down for SlowAfter without a success, so that the next probe is due after the slow interval.
// It compares times of observations, so that a clock that was put forward makes nothing slow where they have monotonic readings.
func (s Streak) Slow() bool {
	return s.Status == Down && s.Successes == 0 && s.Last.At.Sub(s.Since) >= SlowAfter
}
