package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
	"github.com/rota-dns/rota/internal/witness"
)

// fromOutside is what this node sees of the DNS from outside.
type fromOutside struct {
	*witness.Witness
	equals witness.Equals
	differ atomic.Pointer[[]witness.Disagreement]
}

// The paces of what is told to the witness beside changes, which it is told at once.
const (
	retellEvery   = 5 * time.Second  // what is expected, when the state changed
	compareEvery  = 15 * time.Second // what several publishers of one service hold
	equalPatience = time.Minute      // after which they disagree
)

// watchOutside tells the witness what should be seen, and compares what publishers hold, until ctx ends.
func (n *node) watchOutside(ctx context.Context) error {
	f := &follower{n: n, last: map[published]rota.RRset{}, zones: map[string][]rota.Name{}, began: time.Now()}
	index := uint64(0)
	for _, r := range n.raft.Records(0, 0) {
		index = r.Event.Index
		f.changes(r.Event, nil) // of before this process: nobody saw how long they took
	}
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	var told *rota.State
	var in *inForce
	var at time.Time
	for {
		changed, now := n.raft.Changed(), n.current.Load()
		st := n.raft.State()
		var later <-chan time.Time
		switch wait := retellEvery - time.Since(at); {
		case now.cfg != cfgOf(in) || told == nil || wait <= 0 && st != told || !sameSlice(st.Services(), told.Services()):
			n.outside.Set(f.subjects(st, now))
			told, in, at = st, now, time.Now()
		case st != told:
			later = time.After(wait)
		}
		var fresh []witness.Change
		for _, r := range n.raft.Records(index, 0) {
			index = r.Event.Index
			fresh = append(fresh, f.changes(r.Event, r.Transitions)...)
		}
		if f.news { // a zone of which nothing was known
			n.outside.Set(f.subjects(st, now))
			f.news = false
		}
		n.outside.Follow(fresh)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-now.replaced:
		case <-later:
		case <-compare.C:
			n.compare()
		}
	}
}

func cfgOf(in *inForce) *config.Config {
	if in == nil {
		return nil
	}
	return in.cfg
}

// published names an RRset in one publisher's DNS.
type published struct {
	publisher string
	key       rota.Key
}

// follower turns events into what the witness follows.
type follower struct {
	n     *node
	last  map[published]rota.RRset // as last published
	zones map[string][]rota.Name   // that a publisher was seen to keep
	news  bool                     // zones grew
	began time.Time
}

// subjects lists what is to be watched: the zones of all publishers that are to be proven, and those rota answers for itself.
func (f *follower) subjects(st *rota.State, now *inForce) []witness.Subject {
	var out []witness.Subject
	for _, p := range now.publishers {
		for _, z := range p.Status().Zones {
			f.keeps(p.Name(), z.Zone)
		}
	}
	f.news = false
	for _, p := range now.cfg.Publishers {
		if p.Proof.Off || p.DryRun {
			continue
		}
		byZone := map[rota.Name][]witness.Expect{}
		for w := range st.Wants(p.Name) {
			zone, ok := w.Zone, w.Zone != ""
			if !ok {
				zone, ok = rota.LongestZone(w.Service, f.zones[p.Name])
			}
			if ok {
				byZone[zone] = append(byZone[zone], witness.Expect{
					Key: w.Set.Key(), TTL: w.Set.TTL, Data: w.Set.Data, Drop: w.Drop,
					Known: slices.Concat(known(st.Service(w.Service)), f.last[published{p.Name, w.Set.Key()}].Data),
				})
			}
		}
		for _, zone := range slices.Sorted(maps.Keys(byZone)) {
			if givenUp(st, p.Name, zone) {
				continue
			}
			out = append(out, witness.Subject{
				Publisher: p.Name, Zone: zone, Servers: p.Proof.Servers, Origins: origins(p), Resolvers: p.Proof.Resolvers,
				Within: p.Proof.Within, Every: p.Proof.Every, Expects: byZone[zone],
			})
		}
	}
	maps.DeleteFunc(f.last, func(p published, _ rota.RRset) bool { return st.Service(p.key.Name) == nil && st.Claim(p.key) == nil })
	return append(out, f.embedded(st, now.cfg)...)
}

// givenUp reports whether a person released a zone: whoever writes it then is nobody's business here.
func givenUp(st *rota.State, publisher string, zone rota.Name) bool {
	out := false
	for _, x := range st.Instructions(publisher, zone) {
		switch x.Verb {
		case rota.VerbRelease:
			out = true
		case rota.VerbImport:
			out = false
		}
	}
	return out
}

// keeps notes that a publisher keeps a zone.
func (f *follower) keeps(publisher string, zone rota.Name) {
	if !slices.Contains(f.zones[publisher], zone) {
		f.zones[publisher] = append(f.zones[publisher], zone)
		f.news = true
	}
}

// origins are where a publisher writes by DNS.
func origins(p config.Publisher) []string {
	switch {
	case p.RFC2136 != nil:
		return p.RFC2136.Servers
	case p.NSUpdate != nil:
		return p.NSUpdate.Servers
	}
	return nil
}

// known lists what a service may rightly have been answered with: all its endpoints, and the fallback.
func known(v *rota.Service) []string {
	if v == nil {
		return nil
	}
	var out []string
	for _, e := range v.Endpoints {
		out = append(out, e.Address.String())
	}
	if v.Safety.Fallback != "" {
		out = append(out, v.Safety.Fallback.String())
	}
	return out
}

// embedded lists the zones that this node's own name server answers for, as it answers.
func (f *follower) embedded(st *rota.State, cfg *config.Config) []witness.Subject {
	if f.n.dns == nil {
		return nil
	}
	var servers []string
	for _, a := range f.n.dns.Addrs() {
		if a.Addr().IsUnspecified() {
			loopback := netip.IPv6Loopback()
			if a.Addr().Is4() {
				loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			a = netip.AddrPortFrom(loopback, a.Port())
		}
		servers = append(servers, a.String())
	}
	byZone := map[rota.Name][]witness.Expect{}
	for _, z := range cfg.DNS.Zones {
		byZone[z.Name] = nil
	}
	for w := range st.Wants(rota.Embedded) {
		v, sel := st.Service(w.Service), st.Selection(w.Service)
		zone, ok := embeddedZone(cfg, w.Set.Name)
		e := witness.Expect{Key: w.Set.Key(), TTL: w.Set.TTL, Data: w.Set.Data, Drop: w.Drop, Known: known(v)}
		switch {
		case !ok:
			continue
		case v == nil: // what a host claims, which is answered as it is
		case sel.Fallback() || w.Set.Type == rota.TypeCNAME:
			continue // an alias stands for the addresses
		default:
			e.Data = nil
			for _, a := range sel.Family(w.Set.Type).Serving() {
				e.Data = append(e.Data, a.String())
			}
			slices.Sort(e.Data)
			e.Some = len(e.Data) > 0
		}
		byZone[zone] = append(byZone[zone], e)
	}
	var others []string
	for _, x := range st.Nodes() {
		if x.Name != cfg.Node.Name {
			others = append(others, "the name server of node "+x.Name)
		}
	}
	proof := config.DefaultProof()
	var out []witness.Subject
	for _, zone := range slices.Sorted(maps.Keys(byZone)) {
		out = append(out, witness.Subject{
			Publisher: rota.Embedded, Zone: zone, Servers: servers, Others: others, Within: proof.Within, Every: proof.Every, Expects: byZone[zone],
		})
	}
	return out
}

func embeddedZone(cfg *config.Config, name rota.Name) (rota.Name, bool) {
	var zones []rota.Name
	for _, z := range cfg.DNS.Zones {
		zones = append(zones, z.Name)
	}
	return rota.LongestZone(name, zones)
}

// changes returns what an event brought that is to be seen: what a publisher changed and read back, and what this node's own name
// server answers from now on.
func (f *follower) changes(e rota.Event, moved []rota.Transition) []witness.Change {
	st, cfg := f.n.raft.State(), f.n.current.Load().cfg
	var out []witness.Change
	if p := e.Published; p != nil {
		f.keeps(p.Publisher, p.Zone)
		for _, c := range p.Changes {
			at := published{p.Publisher, c.Key()}
			was, seen := f.last[at]
			f.last[at] = c.New
			x := witness.Change{
				Publisher: p.Publisher, Zone: p.Zone, Event: e.Index, Decided: e.At.Add(-p.Took), At: e.At, Old: c.Old, Why: c.Why,
				Expect: witness.Expect{Key: c.Key(), TTL: c.New.TTL, Data: c.New.Data, Known: known(st.Service(c.Key().Name))},
			}
			if len(c.New.Data) == 0 {
				x.Expect.Drop = c.Removed()
			}
			var decided time.Time
			if sel := st.Selection(c.Key().Name); sel != nil {
				decided = sel.At
			} else if claim := st.Claim(c.Key()); claim != nil {
				decided = claim.At
			}
			// What was published before already was changed by somebody else: nobody decided anything.
			if repair := seen && was.Equal(c.New); !repair && decided.After(f.began) && decided.Before(e.At) {
				x.Decided = decided
			}
			out = append(out, x)
		}
	}
	if f.n.dns == nil {
		return out
	}
	for _, t := range moved {
		v := st.Service(t.Service)
		if v == nil || !slices.Contains(v.Publish, rota.Embedded) || slices.Equal(t.Before, t.After) || st.Selection(t.Service).Fallback() {
			continue
		}
		zone, ok := embeddedZone(cfg, v.Name)
		if !ok {
			continue
		}
		x := witness.Change{
			Publisher: rota.Embedded, Zone: zone, Event: e.Index, Decided: e.At, At: e.At, Old: rota.RRset{Name: t.Service, Type: t.Type, TTL: v.TTL, Data: t.Before},
			Expect: witness.Expect{Key: rota.Key{Name: t.Service, Type: t.Type}, TTL: v.TTL, Data: t.After, Some: len(t.After) > 0, Known: known(v)},
		}
		if len(t.Why) > 0 {
			x.Why = t.Why[0]
		}
		out = append(out, x)
	}
	return out
}

// compare looks whether the publishers of each service hold the same, while this node leads: only then they read.
func (n *node) compare() {
	var found []witness.Disagreement
	if n.leading.Load() != 0 {
		found = n.outside.equals.Look(holdings(n.raft.State(), n.current.Load()), time.Now(), equalPatience)
	}
	was := n.disagreements()
	n.outside.differ.Store(&found)
	for _, d := range found {
		if !slices.ContainsFunc(was, func(o witness.Disagreement) bool { return o.Service == d.Service && o.Text == d.Text }) {
			n.log.Warn("the publishers of a service do not hold the same", "service", d.Service.Short(), "since", d.Since, "what", d.Text)
		}
	}
	for _, o := range was {
		if !slices.ContainsFunc(found, func(d witness.Disagreement) bool { return o.Service == d.Service }) {
			n.log.Info("the publishers of a service hold the same again", "service", o.Service.Short())
		}
	}
}

func (n *node) disagreements() []witness.Disagreement {
	if d := n.outside.differ.Load(); d != nil {
		return *d
	}
	return nil
}

// holdings is what each publisher of a service that has several was last seen to hold.
func holdings(st *rota.State, now *inForce) []witness.Holding {
	var out []witness.Holding
	status := map[string]publish.Status{}
	sets := map[string]map[rota.Name][]rota.RRset{}
	for i := range st.Services() {
		v := &st.Services()[i]
		var several []string
		for _, name := range v.Publish {
			if name != rota.Embedded {
				several = append(several, name)
			}
		}
		if len(several) < 2 {
			continue
		}
		if len(status) == 0 {
			for _, p := range now.publishers {
				s := p.Status()
				status[p.Name()], sets[p.Name()] = s, map[rota.Name][]rota.RRset{}
				for _, z := range s.Zones {
					for _, r := range z.Records {
						sets[p.Name()][r.Name] = append(sets[p.Name()][r.Name], r)
					}
				}
			}
		}
		for _, name := range several {
			out = append(out, witness.Holding{Service: v.Name, Publisher: name, Sets: sets[name][v.Name], Unread: !wasRead(status[name], v.Name)})
		}
	}
	return out
}

// wasRead reports whether the zone of a name was read in this term.
func wasRead(s publish.Status, name rota.Name) bool {
	var zones []rota.Name
	for _, z := range s.Zones {
		zones = append(zones, z.Zone)
	}
	zone, ok := rota.LongestZone(name, zones)
	return ok && slices.ContainsFunc(s.Zones, func(z publish.ZoneStatus) bool { return z.Zone == zone && z.Records != nil })
}

// proof shows what is seen from outside.
func (n *node) proof() api.Proof {
	out := api.Proof{Zones: []api.ProofZone{}, Disagreements: []api.Disagreement{}}
	for _, z := range n.outside.Status() {
		view := api.ProofZone{
			Publisher: z.Publisher, Zone: z.Zone.Short(), Servers: []api.ProofServer{}, Findings: findingsOf(z.Findings), Blind: z.Blind, Pending: z.Pending,
			Oldest: z.Oldest,
		}
		for _, s := range z.Servers {
			view.Servers = append(view.Servers, api.ProofServer{
				Server: s.Server.String(), Origin: s.Origin, State: s.State, Serial: s.Serial, Asked: s.Asked, RTT: s.RTT,
			})
		}
		out.Zones = append(out.Zones, view)
	}
	for _, d := range n.disagreements() {
		out.Disagreements = append(out.Disagreements, api.Disagreement{Service: d.Service.Short(), Publishers: d.Publishers, Since: d.Since, Text: d.Text})
	}
	return out
}

func findingsOf(all []witness.Finding) []api.ProofFinding {
	out := []api.ProofFinding{}
	for _, f := range all {
		x := api.ProofFinding{Code: string(f.Code), Server: f.Server, Transport: string(f.Transport), Since: f.Since, Text: f.Text, Advice: f.Advice}
		if f.Key.Type != 0 {
			x.Name, x.Type = f.Key.Name.Short(), f.Key.Type.String()
		}
		out = append(out, x)
	}
	return out
}

// propagation asks every server for a name now.
func (n *node) propagation(ctx context.Context, name rota.Name, gone string) ([]api.Propagation, error) {
	all, err := n.outside.Ask(ctx, name, gone)
	if errors.Is(err, witness.ErrUnwatched) {
		return nil, fmt.Errorf("%w: %w (no publisher with a proof keeps it, or its zone is not known yet)", api.ErrUnseen, err)
	}
	var out []api.Propagation
	for _, p := range all {
		x := api.Propagation{
			Name: p.Name.Short(), Publisher: p.Publisher, Zone: p.Zone.Short(), At: p.At, Everywhere: p.Everywhere, Findings: findingsOf(p.Findings), Blind: p.Blind,
			Want: []api.Wanted{}, Views: viewsOf(p.Views), Changes: []api.ChangeSeen{}, Leaving: []api.LeavingData{},
		}
		if len(p.Public) > 0 {
			x.Public = viewsOf(p.Public)
		}
		for _, e := range p.Want {
			x.Want = append(x.Want, api.Wanted{Type: e.Type, Data: orNone(e.Data), TTL: e.TTL, Some: e.Some})
		}
		for _, c := range p.Changes {
			y := api.ChangeSeen{Event: c.Event, Type: c.Key.Type, Decided: c.Decided, First: []api.FirstSeen{}, Visible: c.Visible, Took: c.Took, Unseen: c.Unseen}
			for _, f := range c.First {
				y.First = append(y.First, api.FirstSeen{Server: f.Server, Transport: string(f.Transport), After: f.After})
			}
			x.Changes = append(x.Changes, y)
		}
		for _, l := range p.Leaving {
			x.Leaving = append(x.Leaving, api.LeavingData{
				Type: l.Key.Type, Data: l.Data, TTL: l.TTL, Gone: l.Gone, Proven: l.Proven, Until: l.Until, Unseen: l.Unseen,
			})
		}
		out = append(out, x)
	}
	return out, err
}

func viewsOf(all []witness.View) []api.ServerView {
	out := []api.ServerView{}
	for _, v := range all {
		x := api.ServerView{
			Server: v.Server.String(), Transport: string(v.Transport), Origin: v.Server.Origin, Serial: v.Serial, Type: v.Key.Type, Data: []string{}, Alias: v.Answer.Alias,
			TTL: v.Answer.TTL, Cut: v.Answer.Cut, RTT: v.Answer.RTT, Agrees: v.Agrees, Trouble: string(v.Trouble), Text: v.Text,
		}
		for _, d := range v.Answer.Data {
			x.Data = append(x.Data, rota.CleanReason("%s", d))
		}
		if v.Trouble == "" {
			x.Rcode = dns.RcodeToString[v.Answer.Rcode]
		}
		out = append(out, x)
	}
	return out
}

func orNone(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// seen counts what is seen from outside.
func seen(m emitter, zones []witness.ZoneStatus, differ []witness.Disagreement) {
	for _, z := range zones {
		labels := []string{"publisher", z.Publisher, "zone", z.Zone.Short()}
		m.histogram("rota_visible_seconds", "From the decision until every server showed the change.", probe.Histogram(z.Visible), labels...)
		m.gauge("rota_proof_pending_changes", "Changes that not every server shows yet.", float64(z.Pending), labels...)
		oldest := 0.0
		if !z.Oldest.IsZero() {
			oldest = time.Since(z.Oldest).Seconds()
		}
		m.gauge("rota_proof_oldest_pending_seconds", "For how long the oldest of them is waited for.", oldest, labels...)
		m.gauge("rota_proof_blind", "1 while something of the zone cannot be seen from here.", min(1, float64(len(z.Blind))), labels...)
		states, codes := map[string]int{}, map[witness.Code]int{}
		for _, s := range z.Servers {
			states[s.State]++
		}
		for _, f := range z.Findings {
			codes[f.Code]++
		}
		for _, s := range witness.States() {
			m.gauge("rota_proof_servers", "Authoritative addresses by how they answer.", float64(states[s]), append(labels, "state", s)...)
		}
		for _, c := range witness.Codes() {
			m.gauge("rota_proof_findings", "What is wrong, as seen from outside.", float64(codes[c]), append(labels, "code", string(c))...)
		}
	}
	for _, d := range differ {
		m.gauge("rota_publishers_disagree", "1 for a service whose publishers do not hold the same.", 1, "service", d.Service.Short())
	}
}

// worst sorts findings so that what holds longest comes first.
func worst(all []api.ProofFinding) []api.ProofFinding {
	return slices.SortedStableFunc(slices.Values(all), func(a, b api.ProofFinding) int { return cmp.Compare(a.Since.UnixNano(), b.Since.UnixNano()) })
}
