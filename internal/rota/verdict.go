package rota

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Quorum says how many voices a verdict needs, of how many that are configured (never of those that happen to speak).
type Quorum struct {
	Need   string        `json:"need"`         // any | majority | all | a count | a share such as 60%; empty: majority
	Of     string        `json:"of,omitempty"` // nodes | sites (one voice a site); empty: nodes
	MaxAge time.Duration `json:"max_age_ns"`   // an older report is no vote; 0: DefaultMaxAge
}

// DefaultMaxAge is how long a report counts when the configuration does not say.
const DefaultMaxAge = 45 * time.Second

// ErrFewVoices says that a quorum asks for more voices than there are: no verdict can change.
var ErrFewVoices = errors.New("no verdict could ever change")

// Votes returns how many of n voices are needed. It fails when the rule cannot be read, and with ErrFewVoices, beside the count, when it
// asks for more voices than there are: nodes and agents may be on their way.
func (q Quorum) Votes(n int) (int, error) {
	if n == 0 {
		return 0, fmt.Errorf("quorum: no vantage is configured")
	}
	switch q.Need {
	case "", "majority":
		return n/2 + 1, nil
	case "any":
		return 1, nil
	case "all":
		return n, nil
	}
	if share, ok := strings.CutSuffix(q.Need, "%"); ok {
		p, err := strconv.ParseFloat(share, 64)
		if err != nil || !(p > 0 && p <= 100) {
			return 0, fmt.Errorf("quorum %q: want a share above 0%% and up to 100%%", q.Need)
		}
		return max(1, int(math.Ceil(float64(n)*p/100-1e-9))), nil
	}
	k, err := strconv.Atoi(q.Need)
	if err != nil || k < 1 {
		return 0, fmt.Errorf("quorum %q: want any, majority, all, a count or a share such as 60%%", q.Need)
	}
	if k > n {
		return k, fmt.Errorf("quorum %d is larger than the %d configured %s: %w", k, n, q.of(), ErrFewVoices)
	}
	return k, nil
}

func (q Quorum) of() string {
	if q.Of == "sites" {
		return "sites"
	}
	return "vantages"
}

// Vote is one vantage's part in a verdict. A silent, stale or abstaining vantage votes Unknown and Reason says which.
type Vote struct {
	Vantage string    `json:"vantage"`
	Site    string    `json:"site"`
	Status  Status    `json:"status"`
	Class   Class     `json:"class,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Weight  uint8     `json:"weight,omitempty"` // percent of its weight that the endpoint asks for; 0: nothing was said
}

// Verdict is what the quorum holds of one target.
type Verdict struct {
	Target TargetID  `json:"target"`
	Status Status    `json:"status"`
	Since  time.Time `json:"since,omitzero"`   // of the last change of Status
	Need   int       `json:"need"`             // votes needed when it was taken
	Votes  []Vote    `json:"votes"`            // as they stood then, sorted by vantage
	Weight uint8     `json:"weight,omitempty"` // percent of its weight that the endpoint asks for, 1 to 100; 0: nothing was said
}

// Tally counts the voices for a status: vantages, or sites when the quorum is of sites.
func (q Quorum) Tally(votes []Vote, s Status) int {
	if q.Of != "sites" {
		n := 0
		for _, v := range votes {
			if v.Status == s {
				n++
			}
		}
		return n
	}
	n := 0
	for _, held := range siteVotes(votes) {
		if held == s {
			n++
		}
	}
	return n
}

// Behind counts the voices behind a verdict: those for its status, and behind down also those that hold the target to drain.
func (q Quorum) Behind(votes []Vote, s Status) int {
	n := q.Tally(votes, s)
	if s == Down {
		n += q.Tally(votes, Draining)
	}
	return n
}

// siteVotes gives each site one voice: what more than half of its vantages hold; without such a majority, unknown. As in a verdict,
// those that hold a target to drain agree with those that hold it down.
func siteVotes(votes []Vote) map[string]Status {
	type count struct{ up, down, draining, all int }
	sites := map[string]count{}
	for _, v := range votes {
		c := sites[siteOf(v.Site, v.Vantage)]
		c.all++
		switch v.Status {
		case Up:
			c.up++
		case Down:
			c.down++
		case Draining:
			c.draining++
		}
		sites[siteOf(v.Site, v.Vantage)] = c
	}
	held := make(map[string]Status, len(sites))
	for site, c := range sites {
		switch {
		case 2*c.up > c.all:
			held[site] = Up
		case 2*c.draining > c.all:
			held[site] = Draining
		case 2*(c.down+c.draining) > c.all:
			held[site] = Down
		default:
			held[site] = Unknown
		}
	}
	return held
}

// siteOf is where a vantage stands: a place of its own when nobody said where.
func siteOf(site, vantage string) string { return cmp.Or(site, "\x00"+vantage) }

// voter is a configured vantage and what it says, while votes are counted.
type voter struct {
	Vantage
	opinions []*Opinion
	why      string // it has no vote
	next     int    // the place in opinions after the last one asked for
}

// voters returns who votes, sorted by name.
func (s *State) voters(reports []*Report, now time.Time) []voter {
	spec := &s.compiled().spec
	maxAge := cmp.Or(spec.Quorum.MaxAge, DefaultMaxAge)
	of := make(map[string]*Report, len(reports))
	for _, r := range reports {
		if r != nil && of[r.Vantage] == nil {
			of[r.Vantage] = r
		}
	}
	out := make([]voter, 0, len(spec.Vantages))
	for _, v := range spec.Vantages {
		w := voter{Vantage: v}
		switch r := of[v.Name]; {
		case r == nil:
			w.why = "silent"
		case now.Sub(r.At) > maxAge:
			w.why = "report is older than " + maxAge.String()
		case r.Abstain != "":
			w.why = "abstains: " + r.Abstain
		default:
			w.opinions = r.Opinions
		}
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b voter) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ballots returns who votes on what.
func (s *State) ballots(reports []*Report, now time.Time) *ballots {
	b := &ballots{vantages: s.voters(reports, now)}
	b.quorum, b.voices = s.compiled().spec.Quorum, s.compiled().spec.Quorum.Voices(s.compiled().spec.Vantages)
	agent := voter{Vantage: Vantage{Name: OwnAgent}, why: "nothing was said"}
	for _, r := range reports {
		if r != nil && r.Vantage == OwnAgent {
			agent.opinions, agent.why = r.Opinions, ""
		}
	}
	b.agent = []voter{agent}
	return b
}

// opinion returns the voter's opinion of a target, or nil. Asked for one after the other in order, each costs one comparison.
func (v *voter) opinion(id TargetID) *Opinion {
	if v.next >= len(v.opinions) || v.opinions[v.next].Target != id {
		i, ok := slices.BinarySearchFunc(v.opinions, id, func(o *Opinion, t TargetID) int { return cmp.Compare(o.Target, t) })
		v.next = i
		if !ok {
			return nil
		}
	}
	v.next++
	return v.opinions[v.next-1]
}

func (v *voter) vote(id TargetID) Vote {
	out := Vote{Vantage: v.Name, Site: v.Site, Reason: v.why}
	if v.why != "" {
		return out
	}
	o := v.opinion(id)
	if o == nil {
		if out.Reason = notProbed; v.Name == OwnAgent {
			out.Reason = "nothing was said"
		}
		return out
	}
	if o.Status <= Draining {
		out.Status = o.Status
	}
	out.Class, out.Reason, out.Since, out.Weight = o.Class, o.Reason, o.Since, o.Weight
	return out
}

// Voices returns how many voices the vantages have under this quorum.
func (q Quorum) Voices(vs []Vantage) int {
	if q.Of != "sites" {
		return len(vs)
	}
	sites := map[string]bool{}
	for _, v := range vs {
		sites[siteOf(v.Site, v.Name)] = true
	}
	return len(sites)
}

// decide returns the verdict the votes call for and whether it differs from the last one. A verdict changes only when a quorum
// holds the new value; when both values have one (a quorum of any), down does not win: the last verdict stands. Who holds the target to
// drain and who holds it down agree that it serves nobody: together they make it down, and enough of the former make it draining.
func (q Quorum) decide(last Verdict, votes []Vote, voices int, now time.Time) (Verdict, bool) {
	need, err := q.Votes(voices)
	if err != nil {
		return last, false
	}
	up, down := q.Tally(votes, Up) >= need, q.Behind(votes, Down) >= need
	next := last
	switch {
	case up && down:
		return last, false
	case up:
		next.Status, next.Weight = Up, q.weight(last.Weight, votes, need)
	case down && q.Tally(votes, Draining) >= need:
		next.Status = Draining
	case down:
		next.Status = Down
	}
	if next.Status == last.Status && next.Weight == last.Weight {
		return last, false
	}
	if next.Status != last.Status {
		next.Since = now
	}
	next.Need, next.Votes = need, votes
	return next, true
}

// weight is what the voices that hold a target up say of its weight: the lower median when a quorum says one, 0 when a quorum says none,
// and else what it was last.
func (q Quorum) weight(last uint8, votes []Vote, need int) uint8 {
	if last == 0 && !slices.ContainsFunc(votes, func(v Vote) bool { return v.Weight != 0 }) {
		return 0
	}
	said, silent := weightsSaid(votes)
	if q.Of == "sites" {
		sites := map[string][]Vote{}
		for _, v := range votes {
			site := siteOf(v.Site, v.Vantage)
			sites[site] = append(sites[site], v)
		}
		var heard []Vote
		for _, of := range sites {
			switch w, none := weightsSaid(of); {
			case 2*len(w) > len(of):
				heard = append(heard, Vote{Status: Up, Weight: w[(len(w)-1)/2]})
			case 2*none > len(of):
				heard = append(heard, Vote{Status: Up})
			}
		}
		said, silent = weightsSaid(heard)
	}
	switch {
	case len(said) >= need:
		return said[(len(said)-1)/2]
	case silent >= need:
		return 0
	}
	return last
}

// weightsSaid returns the weights that votes for up say, sorted, so that their lower median is in the middle, and how many say none.
func weightsSaid(votes []Vote) (said []uint8, silent int) {
	for _, v := range votes {
		switch {
		case v.Status != Up:
		case v.Weight == 0:
			silent++
		default:
			said = append(said, min(v.Weight, 100))
		}
	}
	slices.Sort(said)
	return said, silent
}
