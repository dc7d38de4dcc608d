package rota

import "time"

// Dissent is how far the vantages contradict one another now: what a metric and a page show of it. Only claims count, up or down, of
// configured vantages whose reports are fresh and that do not abstain. That a target drains says, as down does, that it serves nobody.
type Dissent struct {
	Services []ServiceDissent `json:"services"` // every service that has checks, sorted by name
	Vantages []VantageDissent `json:"vantages"` // every configured vantage, sorted by name
}

// ServiceDissent is how far the vantages contradict one another on one service.
type ServiceDissent struct {
	Service Name `json:"service"`
	Targets int  `json:"targets"`
	Split   int  `json:"split"` // targets that one vantage holds up and another down
}

// Share returns the share of the targets on which the vantages are split, 0 to 1.
func (d ServiceDissent) Share() float64 { return share(d.Split, d.Targets) }

// VantageDissent is how far one vantage contradicts the others.
type VantageDissent struct {
	Vantage string `json:"vantage"`
	Site    string `json:"site"`
	Why     string `json:"why,omitempty"` // it has no vote now: silent, stale, abstaining
	Claims  int    `json:"claims"`        // targets that it and another claim something of
	Against int    `json:"against"`       // of these, those of which more than half of the others claim the opposite
}

// Share returns the share of its claims in which the vantage stands against the others, 0 to 1.
func (d VantageDissent) Share() float64 { return share(d.Against, d.Claims) }

// outlierShare and outlierLeast bound what is still ordinary: paths differ, and the end of a fault is seen here and there at different times.
const (
	outlierShare = 0.2
	outlierLeast = 3
)

// Outlier reports whether the vantage contradicts the others so often that it is more likely wrong than they are: in at least 3 targets
// and a fifth of its claims.
func (d VantageDissent) Outlier() bool { return d.Against >= outlierLeast && d.Share() >= outlierShare }

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// Dissent returns how far the reports contradict one another at a time by the receiver's clock.
func (s *State) Dissent(reports []*Report, now time.Time) Dissent {
	c := s.compiled()
	voters := s.voters(reports, now)
	held := make([]Status, len(voters))
	vantages := make([]VantageDissent, len(voters))
	for i, v := range voters {
		vantages[i] = VantageDissent{Vantage: v.Name, Site: v.Site, Why: v.why}
	}
	split := map[Name]*ServiceDissent{}
	for _, t := range c.targets {
		up, down := 0, 0
		for i := range voters {
			held[i] = Unknown
			if o := voters[i].opinion(t.ID); o != nil {
				if held[i] = o.Status; held[i] == Draining {
					held[i] = Down
				}
			}
			switch held[i] {
			case Up:
				up++
			case Down:
				down++
			}
		}
		for _, n := range c.uses[t.ID] {
			d := split[n]
			if d == nil {
				d = &ServiceDissent{Service: n}
				split[n] = d
			}
			d.Targets++
			if up > 0 && down > 0 {
				d.Split++
			}
		}
		if up+down < 2 {
			continue
		}
		for i, h := range held {
			against := 0
			switch h {
			case Up:
				against = down
			case Down:
				against = up
			default:
				continue
			}
			vantages[i].Claims++
			if 2*against > up+down-1 {
				vantages[i].Against++
			}
		}
	}
	out := Dissent{Vantages: vantages}
	for i := range c.all {
		if d := split[c.all[i].Name]; d != nil {
			out.Services = append(out.Services, *d)
		}
	}
	return out
}
