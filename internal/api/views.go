package api

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// view is what one request reads: one state, one set of reports and of publishers, one time.
type view struct {
	*rota.State
	now        time.Time
	reports    []*rota.Report
	publishers []PublisherStatus
	probes     func(rota.TargetID) (TargetProbes, bool)
	node       string // name of this one
	traces     bool   // whole traces of probes are shown

	heard  bool   // reports of all vantages arrive here
	leader string // where they arrive, if not; empty: there is no leader
}

func (s *Server) view() *view {
	v := &view{
		State: s.o.Source.State(), now: s.o.Now(), reports: s.o.Reports(), publishers: s.o.Publishers(), probes: s.o.Probes, node: s.o.Node,
	}
	v.hear(s.o.Cluster)
	return v
}

// hear finds out whether this node is the one that hears all vantages: the leader, or one that is alone.
func (v *view) hear(cluster func() ClusterStatus) {
	if cluster == nil {
		v.heard = true
		return
	}
	c := cluster()
	v.heard = c.Leading
	if c.Leader != c.Node {
		v.leader = c.Leader
	}
}

// unheard says where to ask for what this node does not hear.
func (v *view) unheard() string {
	if v.leader == "" {
		return "unknown here, and there is no leader to ask"
	}
	return "unknown here; ask the leader " + v.leader
}

// votes returns what each vantage holds of a target. A node that does not lead has its own report alone: what the others hold is then
// what they held when the verdict was taken.
func (v *view) votes(id rota.TargetID) []rota.Vote {
	out := v.Votes(id, v.reports, v.now)
	if v.heard {
		return out
	}
	then := v.Verdict(id).Votes
	for i := range out {
		if out[i].Vantage == v.node {
			continue
		}
		if j := slices.IndexFunc(then, func(x rota.Vote) bool { return x.Vantage == out[i].Vantage }); j >= 0 {
			out[i] = then[j]
			continue
		}
		out[i] = rota.Vote{Vantage: out[i].Vantage, Site: out[i].Site, Reason: v.unheard()}
	}
	return out
}

func list[T any](v *view, items []T) *List[T] {
	if items == nil {
		items = []T{}
	}
	return &List[T]{Index: v.Index(), At: v.At(), Items: items}
}

func words[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, x := range in {
		out[i] = x.String()
	}
	return out
}

// members returns all endpoints' parts in a service's selection.
func members(sel *rota.Selection) []rota.Member {
	return slices.Concat(sel.V4.Members, sel.V6.Members, sel.Hidden)
}

func (v *view) service(svc *rota.Service) ServiceView {
	out := ServiceView{
		Service: svc.Name.Short(), Status: "empty", TTL: svc.TTL, OnAllDown: svc.Safety.OnAllDown, Zone: shortOr(svc.Zone),
		Publish: slices.Clone(svc.Publish), Labels: svc.Labels, Answer: []string{},
	}
	if out.Publish == nil {
		out.Publish = []string{}
	}
	sel := v.Selection(svc.Name)
	if sel == nil {
		return out
	}
	out.ModeA, out.ModeAAAA, out.Changed, out.Event = sel.V4.Mode, sel.V6.Mode, sel.At, sel.Index
	for _, m := range members(sel) {
		if !configured(svc, m.Address) {
			continue
		}
		out.Endpoints++
		switch m.Health {
		case rota.Up:
			out.Up++
		case rota.Down:
			out.Down++
		case rota.Draining:
			out.Draining++
		default:
			out.Unknown++
		}
		if v.Override(rota.EndpointID{Service: svc.Name, Address: m.Address}).At(v.now) {
			out.Held++
		}
	}
	out.Answer = append(words(sel.V4.Serving()), words(sel.V6.Serving())...)
	if sel.Fallback() {
		out.Answer = []string{svc.Safety.Fallback.Short()}
	}
	out.Status, out.Disabled, out.Trials = status(out, sel), sel.Pinned, v.trials(svc)
	out.Unprobed = v.unprobedIn(svc)
	return out
}

// trials names the checks of a service that no endpoint has passed yet.
func (v *view) trials(svc *rota.Service) []string {
	if len(v.Trials(svc.Name)) == 0 {
		return nil
	}
	var out []string
	for _, e := range svc.Endpoints {
		for _, u := range e.Checks {
			if !u.Observe && !slices.Contains(out, u.Check.Name) && v.OnTrial(svc.Name, u.Check) {
				out = append(out, u.Check.Name)
			}
		}
	}
	return out
}

func configured(svc *rota.Service, a netip.Addr) bool {
	return slices.ContainsFunc(svc.Endpoints, func(e rota.Endpoint) bool { return e.Address == a })
}

// status puts a service into one word, the worst that holds.
func status(s ServiceView, sel *rota.Selection) string {
	is := func(m rota.Mode) bool { return sel.V4.Mode == m || sel.V6.Mode == m }
	switch {
	case s.Endpoints == 0:
		return "empty"
	case !sel.Pinned.IsZero():
		return "disabled"
	case s.Up == 0 && s.Down > 0:
		return "down"
	case sel.V4.Mode.Panic() || sel.V6.Mode.Panic():
		return "panic"
	case is(rota.ModeWarmup):
		return "warmup"
	case s.Up < s.Endpoints || s.Held > 0:
		return "degraded"
	}
	return "up"
}

func shortOr(n rota.Name) string {
	if n == "" {
		return ""
	}
	return n.Short()
}

// endpoint shows one endpoint of a service.
func (v *view) endpoint(svc *rota.Service, e *rota.Endpoint) EndpointView {
	id := rota.EndpointID{Service: svc.Name, Address: e.Address}
	out := EndpointView{
		Service: svc.Name.Short(), Endpoint: e.Address, State: "ready", Weight: e.Weight, Priority: e.Priority, Site: e.Site,
		Labels: e.Labels, Published: []PublishedIn{}, Verdict: rota.Up,
	}
	if o := v.Override(id); v.Holds(o, v.now) {
		out.Override, out.State = o, string(o.Action)
	}
	v.health(e, &out)
	out.Unprobed = v.unprobed(e)
	sel := v.Selection(svc.Name)
	if sel == nil {
		return out
	}
	t := rota.TypeA
	if !e.Address.Is4() {
		t = rota.TypeAAAA
	}
	for _, m := range members(sel) {
		if m.Address == e.Address {
			out.Step, out.Cause, out.InAnswer, out.Share = m.Step, m.Cause, m.Serves(), m.Share
			out.Published = v.published(svc, t, m, sel)
		}
	}
	return out
}

// health fills in the verdict of the check that decides: the first that is worst.
func (v *view) health(e *rota.Endpoint, out *EndpointView) {
	var worst *rota.Verdict
	for _, u := range e.Checks {
		if u.Observe {
			continue
		}
		d := v.Verdict(e.Target(u).ID)
		if worst == nil || badness(d.Status) > badness(worst.Status) {
			worst = &d
		}
	}
	if worst == nil {
		return
	}
	out.Verdict, out.Since = worst.Status, worst.Since
	votes := v.votes(worst.Target)
	var q rota.Quorum
	q, out.Votes.Of = v.Ballot(worst.Target)
	out.Votes.For = q.Behind(votes, worst.Status)
	out.Votes.Need, _ = q.Votes(out.Votes.Of)
	for _, vote := range votes {
		if vote.Status != worst.Status && (worst.Status != rota.Down || vote.Status != rota.Draining) {
			what := vote.Status.String()
			if vote.Status == rota.Unknown {
				what = vote.Reason
			}
			out.Votes.Against = append(out.Votes.Against, vote.Vantage+" "+what)
		}
	}
	if p, ok := v.probes(worst.Target); ok {
		out.Failures, out.Successes = p.Streak.Failures, p.Streak.Successes
		out.Last, out.Class, out.Took = p.Streak.Last.Status, p.Streak.Last.Class, p.Streak.Last.Took
	}
}

// unprobed says why a vantage that has no opinion of an endpoint cannot probe it; empty when each can, or none has tried.
func (v *view) unprobed(e *rota.Endpoint) string {
	for _, u := range e.Checks {
		if u.Observe {
			continue
		}
		for _, vote := range v.votes(e.Target(u).ID) {
			if vote.Status != rota.Unknown || !ownFailure(vote.Class) {
				continue
			}
			who := vote.Vantage
			if who == v.node {
				who = "this node"
			}
			return rota.CleanReason("%s cannot probe it: %s", who, vote.Reason)
		}
	}
	return ""
}

// ownFailure reports whether a class says that the prober failed, and nothing of the target.
func ownFailure(c rota.Class) bool {
	switch c {
	case rota.ClassPermission, rota.ClassResource, rota.ClassUnroutable, rota.ClassCancelled:
		return true
	}
	return false
}

// withCause adds to the reason of an endpoint's place why it cannot be probed.
func withCause(why, unprobed string) string {
	why = rota.CleanReason("%s", why)
	if unprobed != "" {
		why += "; " + unprobed
	}
	return why
}

// unprobedIn lists the endpoints of a service that cannot be probed, those with the same reason together.
func (v *view) unprobedIn(svc *rota.Service) []string {
	var reasons, out []string
	of := map[string][]string{}
	for i := range svc.Endpoints {
		e := &svc.Endpoints[i]
		if r := v.unprobed(e); r != "" {
			if of[r] == nil {
				reasons = append(reasons, r)
			}
			of[r] = append(of[r], e.Address.String())
		}
	}
	for _, r := range reasons {
		who := of[r][0]
		if n := len(of[r]); n > 1 {
			who += fmt.Sprintf(" and %d more", n-1)
		}
		out = append(out, who+": "+r)
	}
	return out
}

func badness(s rota.Status) int {
	return [...]int{rota.Up: 0, rota.Unknown: 1, rota.Draining: 2, rota.Down: 3}[s]
}

// published says how each publisher's DNS stands to a member.
func (v *view) published(svc *rota.Service, t rota.Type, m rota.Member, sel *rota.Selection) []PublishedIn {
	out := []PublishedIn{}
	family := sel.Family(t)
	quiet := family.Mode == rota.ModeWarmup || family.Mode == rota.ModeAbsent
	for _, name := range svc.Publish {
		if name == rota.Embedded {
			if m.Serves() {
				out = append(out, PublishedIn{name, "in"})
			}
			continue
		}
		wanted := m.Step == rota.StepKept && !quiet
		z := v.zoneOf(name, svc)
		switch {
		case z == nil || z.Read.IsZero():
			if wanted {
				out = append(out, PublishedIn{name, "unread"})
			}
		default:
			there := z.holds(rota.Key{Name: svc.Name, Type: t}, m.Address.String())
			held := slices.ContainsFunc(z.Held, func(h HeldChange) bool {
				return h.Change.Key() == rota.Key{Name: svc.Name, Type: t}
			})
			switch {
			case held && wanted != there:
				out = append(out, PublishedIn{name, "held"})
			case there && (wanted || quiet):
				out = append(out, PublishedIn{name, "in"})
			case there:
				out = append(out, PublishedIn{name, "leaving"})
			case wanted:
				out = append(out, PublishedIn{name, "pending"})
			}
		}
	}
	return out
}

// zoneOf returns the zone in which a publisher keeps a service, or nil when it has not found it yet.
func (v *view) zoneOf(publisher string, svc *rota.Service) *PublishedZone {
	for i := range v.publishers {
		if v.publishers[i].Publisher != publisher {
			continue
		}
		var best *PublishedZone
		for j := range v.publishers[i].Zones {
			z := &v.publishers[i].Zones[j]
			if z.Zone != "" && svc.Name.In(z.Zone) && (best == nil || z.Zone.Labels() > best.Zone.Labels()) {
				best = z
			}
		}
		return best
	}
	return nil
}

func (z *PublishedZone) holds(k rota.Key, data string) bool {
	return slices.ContainsFunc(z.Records, func(s rota.RRset) bool { return s.Key() == k && slices.Contains(s.Data, data) })
}

// why fills in the reasons, which cost an explanation a family.
func (v *view) why(svc *rota.Service, es []EndpointView) {
	for _, t := range []rota.Type{rota.TypeA, rota.TypeAAAA} {
		x, ok := v.Explain(svc.Name, t)
		if !ok {
			return
		}
		for _, e := range x.Endpoints {
			for i := range es {
				if es[i].Endpoint == e.Address {
					es[i].Why = withCause(e.Why, es[i].Unprobed)
				}
			}
		}
	}
}

// endpoints lists endpoints that keep accepts.
func (v *view) endpoints(keep func(*rota.Service, *rota.Endpoint) bool) []EndpointView {
	var out []EndpointView
	services := v.Services()
	for i := range services {
		svc, from := &services[i], len(out)
		for j := range svc.Endpoints {
			if keep(svc, &svc.Endpoints[j]) {
				out = append(out, v.endpoint(svc, &svc.Endpoints[j]))
			}
		}
		if len(out) > from {
			v.why(svc, out[from:])
		}
	}
	return out
}

// check shows a target.
func (v *view) check(t rota.Target, services []string) CheckView {
	d := v.Verdict(t.ID)
	out := CheckView{
		Target: t.ID, Check: t.Check.Name, Kind: t.Check.Kind, Address: t.Address, Services: services,
		Interval: t.Check.Interval, Timeout: t.Check.Timeout, Verdict: d.Status, Since: d.Since,
		Votes: v.votes(t.ID), Lazy: t.Lazy,
	}
	for i := range out.Votes {
		out.Votes[i].Reason = rota.CleanReason("%s", out.Votes[i].Reason)
	}
	if p, ok := v.probes(t.ID); ok {
		out.Probes = &TargetProbes{Streak: p.Streak, Recent: v.shown(p.Recent)}
	}
	return out
}

// shown is probes without their heads and certificates, unless these are wanted: they are most of what there is of a probe.
func (v *view) shown(probes []Probe) []Probe {
	out := slices.Clone(probes)
	for i := range out {
		if out[i].Steps == nil {
			out[i].Steps = []ProbeStep{}
		}
		if !v.traces {
			out[i].Sent, out[i].Received, out[i].TLS = "", "", nil
		}
	}
	if out == nil {
		return []Probe{}
	}
	return out
}

// uses tells which services ask each target, and under which name of a check.
func (v *view) uses() map[rota.TargetID][]string {
	out := map[rota.TargetID][]string{}
	services := v.Services()
	for i := range services {
		for j := range services[i].Endpoints {
			e := &services[i].Endpoints[j]
			for _, u := range e.Checks {
				id, name := e.Target(u).ID, services[i].Name.Short()
				if !slices.Contains(out[id], name) {
					out[id] = append(out[id], name)
				}
			}
		}
	}
	return out
}

// vantages shows who may vote and who does.
func (v *view) vantages(stats []VantageStat, d *dissents) VantageList {
	spec := v.Spec()
	out := VantageList{
		Index: v.Index(), At: v.At(), Of: cmp.Or(spec.Quorum.Of, "nodes"), Voices: spec.Quorum.Voices(spec.Vantages), Items: []VantageView{},
	}
	out.Need, _ = spec.Quorum.Votes(out.Voices)
	maxAge := cmp.Or(spec.Quorum.MaxAge, rota.DefaultMaxAge)
	var voting []rota.Vote
	for _, c := range spec.Vantages {
		x := VantageView{Vantage: c.Name, Site: c.Site, Kind: v.kind(c.Name), State: "silent", Reason: "no report was heard"}
		if !v.heard && c.Name != v.node {
			x.State, x.Reason = "unknown", v.unheard()
		}
		vote := rota.Vote{Vantage: c.Name, Site: c.Site}
		if i := slices.IndexFunc(v.reports, func(r *rota.Report) bool { return r != nil && r.Vantage == c.Name }); i >= 0 {
			r := v.reports[i]
			x.Report, x.Seq, x.Checks, x.State, x.Reason = r.At, r.Seq, len(r.Opinions), "voting", ""
			for _, o := range r.Opinions {
				x.count(o.Status)
				if o.Status == rota.Up && o.Class != rota.ClassOK && o.Class != rota.ClassNone {
					x.Failing++
				}
			}
			x.Noisy = x.Failing >= noisyLeast && float64(x.Failing) >= noisyShare*float64(x.Up)
			switch {
			case v.now.Sub(r.At) > maxAge:
				x.State, x.Reason = "stale", "its report is older than "+maxAge.String()
			case r.Abstain != "":
				x.State, x.Reason = "abstaining", rota.CleanReason("%s", r.Abstain)
			default:
				vote.Status = rota.Up
			}
		}
		voting = append(voting, vote)
		if i := slices.IndexFunc(stats, func(s VantageStat) bool { return s.Vantage == c.Name }); i >= 0 && v.heard {
			s := stats[i]
			x.From, x.Offset, x.Bytes, x.Taken, x.Refused, x.Twice = s.From, s.Offset, s.LastBytes, s.Taken, s.Refused, s.Twice
			x.LastRefusal = rota.CleanReason("%s", s.Refusal)
		}
		out.Items = append(out.Items, x)
	}
	slices.SortFunc(out.Items, func(a, b VantageView) int { return cmp.Compare(a.Vantage, b.Vantage) })
	if !v.heard {
		out.Voting, out.Ask = -1, v.leader
		return out
	}
	out.Voting = spec.Quorum.Tally(voting, rota.Up)
	for _, x := range d.of(v).Vantages {
		if i := slices.IndexFunc(out.Items, func(i VantageView) bool { return i.Vantage == x.Vantage }); i >= 0 {
			out.Items[i].Compared, out.Items[i].Against, out.Items[i].Outlier = x.Claims, x.Against, x.Outlier()
		}
	}
	return out
}

// Failures that change no opinion come everywhere now and then. A vantage that has them with so many of its targets at once has a bad way
// to them, whatever they are.
const (
	noisyLeast = 3
	noisyShare = 0.2
)

func (x *VantageView) count(s rota.Status) {
	switch s {
	case rota.Up:
		x.Up++
	case rota.Down:
		x.Down++
	case rota.Draining:
		x.Draining++
	default:
		x.Unknown++
	}
}

// kind says whether a vantage is a node of the cluster or an agent.
func (v *view) kind(vantage string) string {
	if vantage == v.node || slices.ContainsFunc(v.Nodes(), func(n rota.Node) bool { return n.Name == vantage }) {
		return "node"
	}
	return "agent"
}

// remember fills in, for vantages that are not heard here, what they held when verdicts were taken.
func (v *view) remember(items []VantageView) {
	if v.heard {
		return
	}
	at := map[string]int{}
	for i := range items {
		if items[i].Report.IsZero() {
			at[items[i].Vantage] = i
		}
	}
	for _, t := range v.Targets() {
		for _, vote := range v.Verdict(t.ID).Votes {
			if i, ok := at[vote.Vantage]; ok {
				items[i].Checks++
				items[i].count(vote.Status)
			}
		}
	}
}

// dissents is how far the vantages contradict one another, computed anew only when something moved: it compares everything with
// everything.
type dissents struct {
	mu       sync.Mutex // guards what follows
	services []rota.Service
	vantages []rota.Vantage
	voices   []voice
	last     rota.Dissent
}

// voice is what the dissent depends on of one report. It does not change.
type voice struct {
	vantage, abstain string
	stale            bool
	opinions         []*rota.Opinion
}

func (d *dissents) of(v *view) rota.Dissent {
	spec := v.Spec()
	maxAge := cmp.Or(spec.Quorum.MaxAge, rota.DefaultMaxAge)
	var voices []voice
	for _, r := range v.reports {
		if r != nil {
			voices = append(voices, voice{r.Vantage, r.Abstain, v.now.Sub(r.At) > maxAge, r.Opinions})
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !same(d.services, spec.Services) || !same(d.vantages, spec.Vantages) || !slices.EqualFunc(d.voices, voices, voice.equal) {
		d.last = v.Dissent(v.reports, v.now)
	}
	d.services, d.vantages, d.voices = spec.Services, spec.Vantages, voices
	return d.last
}

func (a voice) equal(b voice) bool {
	return a.vantage == b.vantage && a.abstain == b.abstain && a.stale == b.stale && (same(a.opinions, b.opinions) || slices.Equal(a.opinions, b.opinions))
}

// same reports whether two slices that nobody changes are one.
func same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// zones lists zones and who keeps them: rota's own name server, and each publisher.
func (v *view) zones(ns *NameServer) []ZoneView {
	var out []ZoneView
	if ns != nil {
		for _, z := range ns.Zones {
			n := 0
			for _, s := range v.Services() {
				if s.Zone == z && slices.Contains(s.Publish, rota.Embedded) {
					n++
				}
			}
			out = append(out, ZoneView{
				Zone: z.Short(), Publisher: rota.Embedded, Services: n, Serial: v.Serial(), Servers: ns.Addresses, State: "serving",
			})
		}
	}
	for _, p := range v.publishers {
		for _, z := range p.Zones {
			n := 0
			for i := range v.Services() {
				s := &v.Services()[i]
				if best := v.zoneOf(p.Publisher, s); slices.Contains(s.Publish, p.Publisher) && best != nil && best.Zone == z.Zone {
					n++
				}
			}
			out = append(out, ZoneView{
				Zone: shortOr(z.Zone), Publisher: p.Publisher, Services: n, State: z.State, Written: z.Written,
				Error: rota.CleanText(z.Error),
			})
		}
	}
	slices.SortFunc(out, func(a, b ZoneView) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Publisher, b.Publisher))
	})
	return out
}

// changes turns records into changes of answers and of DNS, oldest first.
func changes(records []Record) []ChangeView {
	out := []ChangeView{}
	for _, r := range records {
		for _, t := range r.Transitions {
			out = append(out, ChangeView{
				Event: r.Event.Index, At: r.Event.At, What: "answer", Service: t.Service.Short(), Type: t.Type,
				Before: orEmpty(t.Before), After: orEmpty(t.After), Mode: t.Mode, Was: t.Was, Why: orEmpty(t.Why),
			})
		}
		if p := r.Event.Published; p != nil {
			for _, c := range p.Changes {
				x := ChangeView{
					Event: r.Event.Index, At: r.Event.At, What: "published", Service: c.Key().Name.Short(), Type: c.Key().Type,
					Publisher: p.Publisher, Zone: shortOr(p.Zone), Before: orEmpty(c.Old.Data), After: orEmpty(c.New.Data), Why: []string{},
				}
				if c.Why != "" {
					x.Why = append(x.Why, c.Why)
				}
				out = append(out, x)
			}
		}
	}
	return out
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// explained joins an explanation with what vantages and publishers say now.
func (v *view) explained(svc *rota.Service, x rota.Explanation, records []Record) Explained {
	if x.Answer == nil {
		x.Answer = []string{}
	}
	if x.Endpoints == nil {
		x.Endpoints = []rota.EndpointExplanation{}
	}
	for i := range x.Endpoints {
		cause := ""
		if j := slices.IndexFunc(svc.Endpoints, func(e rota.Endpoint) bool { return e.Address == x.Endpoints[i].Address }); j >= 0 {
			cause = v.unprobed(&svc.Endpoints[j])
		}
		x.Endpoints[i].Why = withCause(x.Endpoints[i].Why, cause)
		if x.Endpoints[i].Checks == nil {
			x.Endpoints[i].Checks = []rota.CheckExplanation{}
		}
	}
	if sel := v.Selection(svc.Name); sel != nil && sel.Fallback() {
		x.Answer = []string{"CNAME " + svc.Safety.Fallback.Short()}
	}
	if x.Steps == nil {
		x.Steps = []rota.StepExplanation{}
	}
	out := Explained{Explanation: x, State: v.Index(), At: v.At(), Now: []CheckView{}, Published: []PublisherAnswer{}}
	spec := v.Spec()
	out.Voices = spec.Quorum.Voices(spec.Vantages)
	out.Need, _ = spec.Quorum.Votes(out.Voices)
	if !v.heard {
		out.Remembered = v.unheard()
	}
	uses := v.uses()
	for _, e := range x.Endpoints {
		for _, c := range e.Checks {
			seen := slices.ContainsFunc(out.Now, func(k CheckView) bool { return k.Target == c.Target })
			if t, ok := v.Target(c.Target); ok && !seen {
				out.Now = append(out.Now, v.check(t, uses[t.ID]))
			}
		}
	}
	for _, name := range svc.Publish {
		out.Published = append(out.Published, v.publisherAnswer(name, svc, x))
	}
	for _, c := range changes(records) {
		if c.What == "answer" && c.Service == svc.Name.Short() && c.Type == x.Type {
			out.Transition = &c
		}
	}
	return out
}

func (v *view) publisherAnswer(name string, svc *rota.Service, x rota.Explanation) PublisherAnswer {
	if name == rota.Embedded {
		return PublisherAnswer{Publisher: name, Zone: shortOr(svc.Zone), State: "in-step", Records: x.Answer, Read: v.now}
	}
	z := v.zoneOf(name, svc)
	if z == nil {
		return PublisherAnswer{Publisher: name, State: "unread", Records: []string{}}
	}
	out := PublisherAnswer{
		Publisher: name, Zone: shortOr(z.Zone), State: z.State, Records: []string{}, Read: z.Read, Error: rota.CleanReason("%s", z.Error),
	}
	for _, s := range z.Records {
		if s.Name == svc.Name && (s.Type == x.Type || s.Type == rota.TypeCNAME) {
			for _, d := range s.Data {
				if s.Type == rota.TypeCNAME {
					d = "CNAME " + strings.TrimSuffix(d, ".")
				}
				out.Records = append(out.Records, d)
			}
		}
	}
	return out
}

// nearest returns the service whose name is most like a name that is none, or "".
func (v *view) nearest(s string) string {
	best, least := "", len(s)/2+1
	for _, svc := range v.Services() {
		if d := distance(svc.Name.Short(), s); d < least {
			best, least = svc.Name.Short(), d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or replace to turn one text into the other.
func distance(a, b string) int {
	if len(a) > 255 || len(b) > 255 {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
