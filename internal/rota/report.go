package rota

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Vantage is a place that probes: a node, or an agent.
type Vantage struct {
	Name string `json:"name"`
	Site string `json:"site"`

	Agent bool `json:"agent,omitempty"` // it is no node: accepted by name, without a vote on the order of events
	Said  bool `json:"said,omitempty"`  // its site is what it says of itself: nobody configured one
}

// Opinion is what one vantage holds of one target. It is immutable: a vantage whose opinion, class or reason changes makes a new
// one, so equal pointers mean that nothing moved.
type Opinion struct {
	Target TargetID  `json:"target"`
	Status Status    `json:"status"`
	Since  time.Time `json:"since,omitzero"`
	Class  Class     `json:"class,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Weight uint8     `json:"weight,omitempty"` // percent of its weight that the endpoint asks for, 1 to 100; 0: nothing was said
}

// weightStep is how coarse a weight in an opinion is, in percent: measures tremble, and each change of a verdict is an event.
const weightStep = 5

// RoundWeight rounds a weight in percent to steps of 5, and stays at the one of the last opinion while the weight is less than a step away
// from it: on the edge between two it would go to and fro. 0 says nothing and stays 0; what is above 100 is 100.
func RoundWeight(last, weight uint8) uint8 {
	if weight == 0 {
		return 0
	}
	weight = min(weight, 100)
	if d := int(weight) - int(last); last != 0 && -weightStep < d && d < weightStep {
		return last
	}
	return max((weight+weightStep/2)/weightStep*weightStep, weightStep)
}

// Report is all opinions of one vantage: whole, never a difference. Lose or repeat one and the next repairs it.
type Report struct {
	Vantage     string     `json:"vantage"`
	Incarnation uint64     `json:"incarnation,omitempty"` // of the vantage's process: when it began, by its clock, in Unix nanoseconds; 0: not said
	Seq         uint64     `json:"seq"`                   // grows with each report of an incarnation, from 1
	Sent        time.Time  `json:"sent,omitzero"`         // by the vantage's clock, which decides nothing
	At          time.Time  `json:"at"`                    // when it was taken in, by the receiver's clock
	Abstain     string     `json:"abstain,omitempty"`
	Opinions    []*Opinion `json:"opinions"` // sorted by Target, each once
}

// Opinion returns the report's opinion of a target, or nil.
func (r *Report) Opinion(t TargetID) *Opinion {
	i, ok := slices.BinarySearchFunc(r.Opinions, t, func(o *Opinion, t TargetID) int { return cmp.Compare(o.Target, t) })
	if !ok {
		return nil
	}
	return r.Opinions[i]
}

// Validate reports what makes a report from elsewhere unfit to be judged: no vantage, an opinion that is missing, without a target,
// out of order or given twice.
func (r *Report) Validate() error {
	if r.Vantage == "" {
		return errors.New("report names no vantage")
	}
	last := TargetID("")
	for i, o := range r.Opinions {
		if o == nil || o.Target <= last {
			return fmt.Errorf("report of %s: opinion %d is missing, without a target, out of order or given twice", r.Vantage, i)
		}
		last = o.Target
	}
	return nil
}

// Moved lists the targets about which b says something else than a does, sorted. The cost of an unmoved target is one
// comparison of pointers.
func Moved(a, b *Report) []TargetID {
	if a == nil {
		a = &Report{}
	}
	if b == nil {
		b = &Report{}
	}
	all := a.Abstain != b.Abstain // then every opinion begins or ceases to count
	i, j := 0, 0
	if n := len(a.Opinions); !all && n > 0 && n == len(b.Opinions) && &a.Opinions[0] == &b.Opinions[0] {
		return nil // the very same list
	}
	if !all {
		n := min(len(a.Opinions), len(b.Opinions))
		x, y := a.Opinions[:n], b.Opinions[:n]
		for i < len(x) && i < len(y) && x[i] == y[i] {
			i++
		}
		j = i
	}
	var moved []TargetID
	for i < len(a.Opinions) || j < len(b.Opinions) {
		switch {
		case i == len(a.Opinions):
			moved = append(moved, b.Opinions[j].Target)
			j++
		case j == len(b.Opinions):
			moved = append(moved, a.Opinions[i].Target)
			i++
		case !all && a.Opinions[i] == b.Opinions[j]:
			i++
			j++
		default:
			x, y := a.Opinions[i], b.Opinions[j]
			switch c := cmp.Compare(x.Target, y.Target); {
			case c < 0:
				moved = append(moved, x.Target)
				i++
			case c > 0:
				moved = append(moved, y.Target)
				j++
			default:
				if all || *x != *y {
					moved = append(moved, x.Target)
				}
				i++
				j++
			}
		}
	}
	return moved
}
