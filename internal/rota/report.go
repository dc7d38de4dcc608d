package rota

import (
	"cmp"
	"slices"
	"time"
)

// Vantage is a place that probes: a node, or an agent.
type Vantage struct {
	Name string `json:"name"`
	Site string `json:"site"`
}

// Opinion is what one vantage holds of one target. It is immutable: a vantage whose opinion, class or reason changes makes a new
// one, so equal pointers mean that nothing moved.
type Opinion struct {
	Target TargetID  `json:"target"`
	Status Status    `json:"status"`
	Since  time.Time `json:"since,omitzero"`
	Class  Class     `json:"class,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// Report is all opinions of one vantage: whole, never a difference. Lose or repeat one and the next repairs it.
type Report struct {
	Vantage  string     `json:"vantage"`
	Seq      uint64     `json:"seq"` // grows by one a report, from 1
	At       time.Time  `json:"at"`  // when it was taken in, by the receiver's clock
	Abstain  string     `json:"abstain,omitempty"`
	Opinions []*Opinion `json:"opinions"` // sorted by Target, each once
}

// Opinion returns the report's opinion of a target, or nil.
func (r *Report) Opinion(t TargetID) *Opinion {
	i, ok := slices.BinarySearchFunc(r.Opinions, t, func(o *Opinion, t TargetID) int { return cmp.Compare(o.Target, t) })
	if !ok {
		return nil
	}
	return r.Opinions[i]
}

// Moved lists the targets about which b says something else than a does, sorted. The cost of an unmoved target is one
// comparison of pointers.
func Moved(a, b *Report) []TargetID {
	if a == nil {
		a = &Report{}
	}
	var moved []TargetID
	if a.Abstain != b.Abstain {
		for _, o := range b.Opinions {
			moved = append(moved, o.Target)
		}
		return moved
	}
	i, j := 0, 0
	for i < len(a.Opinions) || j < len(b.Opinions) {
		switch {
		case i == len(a.Opinions):
			moved = append(moved, b.Opinions[j].Target)
			j++
		case j == len(b.Opinions):
			moved = append(moved, a.Opinions[i].Target)
			i++
		case a.Opinions[i] == b.Opinions[j]:
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
				if *x != *y {
					moved = append(moved, x.Target)
				}
				i++
				j++
			}
		}
	}
	return moved
}
