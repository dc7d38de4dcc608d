package rota

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
)

// Explanation says why a name answers as it does: the chain from votes to records, made from the values the decision used.
type Explanation struct {
	Service   Name                  `json:"service"`
	Type      Type                  `json:"type"` // A or AAAA
	Answer    []string              `json:"answer"`
	TTL       uint32                `json:"ttl"`
	Mode      Mode                  `json:"mode"`
	Since     time.Time             `json:"since,omitzero"` // of the mode
	Changed   time.Time             `json:"changed,omitzero"`
	Index     uint64                `json:"index"` // of the event that last changed the answer
	Epoch     uint64                `json:"epoch"`
	Summary   string                `json:"summary"`           // one sentence
	Frozen    *Freeze               `json:"frozen,omitempty"`  // it stands because of this
	Disabled  time.Time             `json:"disabled,omitzero"` // it stands because the service is disabled since then
	Endpoints []EndpointExplanation `json:"endpoints"`
	Steps     []StepExplanation     `json:"steps"`
}

// EndpointExplanation says why one endpoint is in the answer or not.
type EndpointExplanation struct {
	Address  netip.Addr         `json:"address"`
	InAnswer bool               `json:"in_answer"`
	Health   Status             `json:"health"`
	Step     Step               `json:"step"`
	Cause    Cause              `json:"cause,omitempty"`
	Why      string             `json:"why"`
	Weight   uint32             `json:"weight"`          // as configured
	Share    uint8              `json:"share,omitempty"` // percent of it that counts now, 1 to 99; absent: all of it
	Override *Override          `json:"override,omitempty"`
	Checks   []CheckExplanation `json:"checks"`
}

// CheckExplanation is one check of an endpoint with its verdict.
type CheckExplanation struct {
	Check   string   `json:"check"`
	Target  TargetID `json:"target"`
	Asks    string   `json:"asks"` // of which address, for people
	Observe bool     `json:"observe,omitempty"`
	Trial   bool     `json:"trial,omitempty"` // no endpoint has passed it yet, so that it counts for nothing when it says down
	Verdict Verdict  `json:"verdict"`
}

// StepExplanation is one step of the pipeline: who went on and who did not.
type StepExplanation struct {
	Step    Step         `json:"step"`
	Kept    []netip.Addr `json:"kept"`
	Dropped []Dropped    `json:"dropped,omitempty"`
	Note    string       `json:"note,omitempty"`
}

// Dropped is an endpoint that a step took out, and why.
type Dropped struct {
	Address netip.Addr `json:"address"`
	Why     string     `json:"why"`
}

// Explain explains the answer of a service for type A or AAAA, or what hosts that registered claim at a name, and false when there is
// neither.
func (s *State) Explain(n Name, t Type) (Explanation, bool) {
	v, sel := s.Service(n), s.Selection(n)
	if v == nil || sel == nil || t != TypeA && t != TypeAAAA {
		return s.explainClaim(n, t)
	}
	p := sel.Family(t)
	x := Explanation{
		Service: n, Type: t, TTL: v.TTL, Mode: p.Mode, Since: p.Since, Changed: sel.At, Index: sel.Index, Epoch: s.lead.Term,
		Answer: texts(p.Serving()), Summary: s.frozenSummary(v, p), Frozen: s.freeze, Disabled: sel.Pinned,
	}
	members := slices.Clone(p.Members)
	if t == TypeAAAA {
		members = append(members, sel.Hidden...) // only IPv6 addresses have zone ids
	}
	for _, m := range members {
		x.Endpoints = append(x.Endpoints, s.explainMember(v, m))
	}
	x.Steps = s.explainSteps(v, p, members)
	return x, true
}

// Summary is the summary of Explain alone, which costs little.
func (s *State) Summary(n Name, t Type) (string, bool) {
	v, sel := s.Service(n), s.Selection(n)
	if v == nil || sel == nil || t != TypeA && t != TypeAAAA {
		c := s.Claim(Key{n, t})
		if c == nil {
			return "", false
		}
		return c.why(), true
	}
	return s.frozenSummary(v, sel.Family(t)), true
}

// Why is what Explain says of one endpoint, which costs little; "" when the service has no such endpoint.
func (s *State) Why(e EndpointID) string {
	v, sel := s.Service(e.Service), s.Selection(e.Service)
	if v == nil || sel == nil {
		return ""
	}
	for _, members := range [][]Member{sel.V4.Members, sel.V6.Members, sel.Hidden} {
		for _, m := range members {
			if m.Address == e.Address {
				return s.frozenWhy(v, m)
			}
		}
	}
	return ""
}

func (s *State) explainMember(v *Service, m Member) EndpointExplanation {
	x := EndpointExplanation{
		Address: m.Address, InAnswer: m.Serves(), Health: m.Health, Step: m.Step, Cause: m.Cause, Why: s.frozenWhy(v, m), Weight: m.Weight, Share: m.Share,
		Override: s.Override(EndpointID{v.Name, m.Address}),
	}
	if e := v.endpoint(m.Address); e != nil {
		for _, u := range e.Checks {
			t := e.Target(u)
			x.Checks = append(x.Checks, CheckExplanation{
				Check: u.Check.Name, Target: t.ID, Asks: asks(t), Observe: u.Observe, Verdict: s.Verdict(t.ID), Trial: !u.Observe && s.OnTrial(v.Name, u.Check),
			})
		}
	}
	return x
}

// frozenSummary is summary, and that a freeze, or that the service is disabled, is why it stands, and which checks are on trial.
func (s *State) frozenSummary(v *Service, p *FamilyPick) string {
	text := s.summary(v, p) + s.tried(v)
	if sel := s.Selection(v.Name); sel != nil && !sel.Pinned.IsZero() {
		text = fmt.Sprintf("disabled since %s: neither verdicts nor time change the answer; %s", sel.Pinned.UTC().Format(time.DateTime+"Z"), text)
	}
	if s.freeze != nil {
		return s.freeze.String() + "; " + text
	}
	return text
}

// tried says which checks of a service are on trial.
func (s *State) tried(v *Service) string {
	var names []string
	for _, e := range v.Endpoints {
		for _, u := range e.Checks {
			if !u.Observe && !slices.Contains(names, u.Check.Name) && s.OnTrial(v.Name, u.Check) {
				names = append(names, u.Check.Name)
			}
		}
		if len(s.Trials(v.Name)) == len(names) {
			break
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; on trial, as no endpoint has passed it yet: " + strings.Join(names, ", ")
}

// frozenWhy is why, and what a freeze, or that the service is disabled, keeps from counting of an endpoint.
func (s *State) frozenWhy(v *Service, m Member) string {
	switch e := v.endpoint(m.Address); {
	case e == nil:
	case s.freeze != nil:
		return s.why(v, m) + s.meanwhile(e, m, "; %v meanwhile, which the freeze keeps from counting")
	case v.Disabled:
		return s.why(v, m) + s.meanwhile(e, m, "; %v meanwhile, which does not count while the service is disabled")
	}
	return s.why(v, m)
}

// meanwhile says what the checks of an endpoint have come to say while that does not count.
func (s *State) meanwhile(e *Endpoint, m Member, format string) string {
	worst := Up
	for _, u := range e.Checks {
		switch v := s.Verdict(e.Target(u).ID).Status; {
		case u.Observe || worst == Down:
		case v != Up:
			worst = v
		}
	}
	if worst == Unknown || worst == m.Health {
		return ""
	}
	return fmt.Sprintf(format, worst)
}

// asks says what a target is asked, for people.
func asks(t Target) string {
	a := t.Address.String()
	if t.Address.Is6() {
		a = "[" + a + "]"
	}
	return strings.Replace(t.Check.Describe(), "{}", a, 1)
}

func (v *Service) endpoint(a netip.Addr) *Endpoint {
	for i := range v.Endpoints {
		if v.Endpoints[i].Address == a {
			return &v.Endpoints[i]
		}
	}
	return nil
}

func (s *State) explainSteps(v *Service, p *FamilyPick, in []Member) []StepExplanation {
	var steps []StepExplanation
	for step := StepEligible; step <= StepLimit; step++ {
		x := StepExplanation{Step: step, Kept: []netip.Addr{}}
		rest := in[:0:0]
		for _, m := range in {
			if m.Step == step {
				x.Dropped = append(x.Dropped, Dropped{m.Address, s.why(v, m)})
				continue
			}
			rest = append(rest, m)
			x.Kept = append(x.Kept, m.Address)
		}
		in = rest
		if step == StepPanic && p.Mode.Panic() {
			x.Note = s.summary(v, p)
		}
		steps = append(steps, x)
	}
	return steps
}

// summary says in one sentence how the family came to its answer.
func (s *State) summary(v *Service, p *FamilyPick) string {
	up, down, draining := 0, 0, 0
	for _, m := range p.Members {
		switch {
		case m.Cause == CauseDrained || m.Cause == CauseMaintenance || m.Cause == CauseForcedDown:
		case m.counts() == Up:
			up++
		case m.counts() == Down:
			down++
		case m.counts() == Draining:
			draining++
		}
	}
	count := fmt.Sprintf("%d of %d up", up, up+down)
	out := "every endpoint is taken out by hand"
	if draining > 0 {
		count += fmt.Sprintf(", %d draining", draining)
		if out = "every endpoint says that it drains"; draining < len(p.Members) {
			out += " or is taken out by hand"
		}
	}
	switch p.Mode {
	case ModeAbsent:
		return "no endpoint of this family can be published"
	case ModeWarmup:
		return "warming up: not every endpoint has a verdict yet; rota's own name server answers all, other name servers are left as they are"
	case ModeWithdrawn:
		return "the last endpoint of this family left the configuration"
	case ModeKeep:
		if up+down == 0 {
			return "PANIC: " + out + "; the last good answer is kept"
		}
		return fmt.Sprintf("PANIC: %s, %s; health is not believed and the last good answer is kept", count, floor(v.Safety))
	case ModeAll:
		if up+down == 0 {
			if draining > 0 {
				return "PANIC: " + out + " and none that drains was in the last good answer; those that drain are answered"
			}
			return "PANIC: " + out + " and there is no last good answer; all are answered"
		}
		return fmt.Sprintf("PANIC: %s, %s; health is not believed and every endpoint is answered", count, floor(v.Safety))
	case ModeFallback:
		return fmt.Sprintf("PANIC: no endpoint is up; the fallback %s answers", v.Safety.Fallback.Short())
	case ModeNone:
		return "PANIC: no endpoint may serve and on_all_down is none; the answer is empty"
	}
	return count
}

func floor(s Safety) string {
	if s.MinPublished > 1 {
		return fmt.Sprintf("below %.0f %% or %d endpoints", s.FailOpenBelow*100, s.MinPublished)
	}
	return fmt.Sprintf("below %.0f %%", s.FailOpenBelow*100)
}

// why says in one sentence why a member is where it is, and how much of its weight counts.
func (s *State) why(v *Service, m Member) string {
	text := s.cause(v, m)
	if m.Share == 0 || !m.Serves() {
		return text
	}
	var whys []string
	if m.Asks != 0 {
		whys = append(whys, fmt.Sprintf("it asks for %d %%", m.Asks))
	}
	if !m.Back.IsZero() {
		whys = append(whys, fmt.Sprintf("slow start until %s", m.Back.Add(v.Policy.SlowStart/10*9).UTC().Format(time.TimeOnly+"Z")))
	}
	return fmt.Sprintf("%s; %d %% of its weight counts (%s)", text, m.Share, strings.Join(whys, ", "))
}

// cause puts a member's cause into words.
func (s *State) cause(v *Service, m Member) string {
	switch m.Cause {
	case CauseNone:
		if e := v.endpoint(m.Address); e != nil && len(e.Checks) == 0 {
			return "up: it has no check"
		}
		return s.evidence(v, m, "up")
	case CauseDown:
		return s.evidence(v, m, "down")
	case CauseAnnounced:
		text := s.evidence(v, m, "draining: it says so itself")
		if m.Serves() {
			text += "; kept because nobody else can serve"
		}
		return text
	case CauseTrial:
		return s.evidence(v, m, "kept") + s.trial(v, m)
	case CauseDrained, CauseMaintenance, CauseForcedDown, CauseForcedUp:
		o := s.Override(EndpointID{v.Name, m.Address})
		if o == nil {
			return m.Cause.String()
		}
		text := fmt.Sprintf("%s by %s until %s: %s", m.Cause, o.Author, o.Expires.UTC().Format(time.DateTime+"Z"), o.Reason)
		if m.Health != Unknown {
			text += "; its checks say " + m.Health.String()
		}
		return text
	case CauseWaiting:
		return "has no verdict yet" + s.missing(v, m) + s.trial(v, m)
	case CauseUnproven:
		return "kept without a verdict: nothing is known against it" + s.missing(v, m) + s.trial(v, m)
	case CauseHeld:
		return fmt.Sprintf("up again, held until %s (min_hold %v)", m.Left.Add(v.Safety.MinHold).UTC().Format(time.TimeOnly+"Z"), v.Safety.MinHold)
	case CauseHoldIgnored:
		return "up again; min_hold is waived because nobody else can serve"
	case CauseUnpublished:
		return "probed but never published: an address with a zone id means nothing to clients"
	case CauseNotLastGood:
		return s.evidence(v, m, m.Health.String()) + "; it was not in the last good answer"
	case CauseLowerTier:
		return fmt.Sprintf("priority %d stands by while a better one serves", m.Priority)
	case CauseTierLost:
		return fmt.Sprintf("too few of priority %d can serve, and another one does", m.Priority)
	case CauseNoWeight:
		return "weight 0 while others have some"
	case CauseOverLimit:
		return fmt.Sprintf("over the limit of %d answers; rota's own name server rotates it in", v.Policy.Answers)
	case CauseFallback:
		return s.evidence(v, m, m.Health.String()) + "; the fallback answers instead"
	case CauseRemoved:
		return "no longer configured"
	case CauseDisbelieved:
		return s.evidence(v, m, "down") + ", but health is not believed"
	}
	return m.Cause.String()
}

// evidence names the verdicts that made a health, with the voices for it.
func (s *State) evidence(v *Service, m Member, word string) string {
	e := v.endpoint(m.Address)
	if e == nil {
		return word
	}
	for _, u := range e.Checks {
		verdict := s.ruling(e.Target(u).ID)
		if u.Observe || verdict.Status != m.Health || m.Health == Unknown {
			continue
		}
		q := s.Spec().Quorum
		text := fmt.Sprintf("%s by %d of %d (%s", word, q.Behind(verdict.Votes, verdict.Status), q.Voices(voters(verdict.Votes)), u.Check.Name)
		if reasons := agreeing(verdict); reasons != "" {
			text += ": " + reasons
		}
		return text + ")"
	}
	return word
}

func voters(votes []Vote) []Vantage {
	out := make([]Vantage, len(votes))
	for i, v := range votes {
		out[i] = Vantage{Name: v.Vantage, Site: v.Site}
	}
	return out
}

// agreeing lists the distinct reasons of the votes that made a verdict of down or draining.
func agreeing(v Verdict) string {
	if v.Status != Down && v.Status != Draining {
		return ""
	}
	var reasons []string
	for _, vote := range v.Votes {
		if (vote.Status == v.Status || vote.Status == Draining) && vote.Reason != "" && !slices.Contains(reasons, vote.Reason) {
			reasons = append(reasons, vote.Reason)
		}
	}
	return strings.Join(reasons, "; ")
}

// trial names the check that says down and is on trial.
func (s *State) trial(v *Service, m Member) string {
	if e := v.endpoint(m.Address); e != nil {
		for _, u := range e.Checks {
			if !u.Observe && s.ruling(e.Target(u).ID).Status == Down && s.OnTrial(v.Name, u.Check) {
				return fmt.Sprintf("; %s says down, but is on trial: no endpoint has passed this check yet", u.Check.Name)
			}
		}
	}
	return ""
}

// missing names the check without a verdict.
func (s *State) missing(v *Service, m Member) string {
	if e := v.endpoint(m.Address); e != nil {
		for _, u := range e.Checks {
			if !u.Observe && s.ruling(e.Target(u).ID).Status == Unknown {
				return " (" + u.Check.Name + ")"
			}
		}
	}
	return ""
}

// whyMoved says why each endpoint that differs between two picks came or went.
func (s *State) whyMoved(n Name, p, q *FamilyPick) []string {
	v := s.Service(n)
	if v == nil {
		return []string{"the service is no longer configured"}
	}
	var out []string
	if q.Mode != p.Mode && (q.Mode.Panic() || p.Mode.Panic()) {
		out = append(out, s.summary(v, q))
	}
	for _, m := range q.Members {
		old := p.member(m.Address)
		if old == nil {
			old = &Member{Step: StepEligible}
		}
		if old.Serves() != m.Serves() || (old.Step == StepKept) != (m.Step == StepKept) {
			out = append(out, m.Address.String()+" "+s.why(v, m))
		}
	}
	for _, m := range p.Members {
		if m.Serves() && q.member(m.Address) == nil {
			out = append(out, m.Address.String()+" no longer configured")
		}
	}
	return out
}

// Match returns the endpoints that a pattern names, sorted: a service (www.example.org), one endpoint of it
// (www.example.org/192.0.2.10), an address in any service (192.0.2.10), site:NAME, or label:KEY=VALUE of an endpoint or its service.
// Service names may hold the wildcards of path.Match, * within one pattern spanning dots. It fails when the pattern cannot be read or
// names nothing.
func (s *State) Match(pattern string) ([]EndpointID, error) {
	accept, err := matcher(pattern)
	if err != nil {
		return nil, err
	}
	var out []EndpointID
	for i := range s.Services() {
		v := &s.Services()[i]
		for j := range v.Endpoints {
			if accept(v, &v.Endpoints[j]) {
				out = append(out, EndpointID{v.Name, v.Endpoints[j].Address})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q names no endpoint; `rota get endpoints` lists them", pattern)
	}
	slices.SortFunc(out, compareEndpoints)
	return out, nil
}

func matcher(pattern string) (func(*Service, *Endpoint) bool, error) {
	if site, ok := strings.CutPrefix(pattern, "site:"); ok {
		return func(_ *Service, e *Endpoint) bool { return e.Site == site }, nil
	}
	if label, ok := strings.CutPrefix(pattern, "label:"); ok {
		k, want, ok := strings.Cut(label, "=")
		if !ok {
			return nil, fmt.Errorf("pattern %q: want label:KEY=VALUE", pattern)
		}
		return func(v *Service, e *Endpoint) bool {
			if got, ok := e.Labels[k]; ok {
				return got == want
			}
			got, ok := v.Labels[k]
			return ok && got == want
		}, nil
	}
	if a, err := netip.ParseAddr(pattern); err == nil {
		return func(_ *Service, e *Endpoint) bool { return e.Address == a }, nil
	}
	service, address, one := strings.Cut(pattern, "/")
	var a netip.Addr
	if one {
		var err error
		if a, err = netip.ParseAddr(address); err != nil {
			return nil, fmt.Errorf("pattern %q: %q is not an address", pattern, address)
		}
	}
	glob := strings.ToLower(strings.TrimSuffix(service, "."))
	if _, err := path.Match(glob, ""); err != nil || glob == "" {
		return nil, fmt.Errorf("pattern %q: want SERVICE, SERVICE/ADDRESS, ADDRESS, site:NAME or label:KEY=VALUE", pattern)
	}
	return func(v *Service, e *Endpoint) bool {
		ok, _ := path.Match(glob, v.Name.Short())
		return ok && (!one || e.Address == a)
	}, nil
}

// Emptied lists the services of which an address family would have every endpoint taken out by hand if the overrides were set at now,
// sorted. The name then keeps its last answer, or none when on_all_down is none: either is seldom what the operator wants.
func (s *State) Emptied(overrides []Override, now time.Time) []Name {
	set := map[EndpointID]Override{}
	for _, o := range overrides {
		set[o.Endpoint] = o
	}
	var out []Name
	for _, o := range overrides {
		v, of := s.Service(o.Endpoint.Service), o.Endpoint.Address
		if v == nil || v.endpoint(of) == nil || of.Zone() != "" || slices.Contains(out, v.Name) {
			continue
		}
		left := slices.ContainsFunc(v.Endpoints, func(e Endpoint) bool {
			if e.Address.Zone() != "" || e.Address.Is4() != of.Is4() {
				return false
			}
			id := EndpointID{v.Name, e.Address}
			if n, ok := set[id]; ok {
				return !n.out()
			}
			o := s.Override(id)
			return !s.Holds(o, now) || !o.out()
		})
		if !left {
			out = append(out, v.Name)
		}
	}
	slices.Sort(out)
	return out
}
