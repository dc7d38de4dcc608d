package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// The rooms do not know each other. What follows turns the values of one into those of the next.

// zonesOf returns the zones the name server is authoritative for.
func zonesOf(d *config.DNS) []nameserver.Zone {
	if d == nil {
		return nil
	}
	out := make([]nameserver.Zone, 0, len(d.Zones))
	for _, z := range d.Zones {
		var text strings.Builder
		for _, s := range z.Records {
			for _, data := range s.Data {
				fmt.Fprintf(&text, "%s %d IN %s %s\n", s.Name, s.TTL, s.Type, data)
			}
		}
		out = append(out, nameserver.Zone{
			Name: z.Name, NS: z.NS, MName: z.MName, RName: z.RName, Refresh: z.Refresh, Retry: z.Retry, Expire: z.Expire,
			Minimum: z.Minimum, TTL: z.TTL, Records: text.String(), File: "zone " + z.Name.Short(),
		})
	}
	return out
}

// bothOf returns next with the static names that only old has.
func bothOf(old, next *config.DNS) *config.DNS {
	if old == nil || next == nil {
		return next
	}
	both := *next
	both.Zones = slices.Clone(next.Zones)
	for _, was := range old.Zones {
		i := slices.IndexFunc(both.Zones, func(z config.Zone) bool { return z.Name == was.Name })
		if i < 0 {
			both.Zones = append(both.Zones, was)
			continue
		}
		now := both.Zones[i].Records
		both.Zones[i].Records = slices.Clone(now)
		for _, r := range was.Records {
			if !slices.ContainsFunc(now, func(x rota.RRset) bool { return x.Name == r.Name }) {
				both.Zones[i].Records = append(both.Zones[i].Records, r)
			}
		}
	}
	return &both
}

// specOf returns what decisions depend on, with a fingerprint of what is answered beside it.
func specOf(cfg *config.Config) rota.Spec {
	spec := cfg.Spec
	if cfg.DNS == nil {
		return spec
	}
	sum := sha256.New()
	for _, z := range zonesOf(cfg.DNS) {
		fmt.Fprintf(sum, "%+v\n", z)
	}
	spec.Static = hex.EncodeToString(sum.Sum(nil)[:16])
	return spec
}

// owner is who owns what is published, the same on all nodes: as configured, or the cluster, alone the node; with how often it was
// recovered, so that the nodes that were given up then cannot take a zone back should they run again after all.
func (n *node) owner(cfg *config.Config) string {
	return ownerAfter(n.ownerBefore(cfg), n.raft.State().Recoveries())
}

func (n *node) ownerBefore(cfg *config.Config) string {
	return cmp.Or(cfg.Ownership.Owner, n.raft.Status().Cluster)
}

func ownerAfter(owner string, recoveries uint64) string {
	if recoveries == 0 {
		return owner
	}
	return fmt.Sprintf("%s.r%d", owner, recoveries)
}

// formerly are the owners from whom zones are taken over: the same before it was recovered, and, where nobody named one, the names of
// nodes, by which a node that ran alone before it had company owned its zones.
func (n *node) formerly(cfg *config.Config) []string {
	st := n.raft.State()
	var names []string
	for i := range st.Recoveries() {
		names = append(names, ownerAfter(n.ownerBefore(cfg), i))
	}
	if cfg.Ownership.Owner == "" {
		for _, x := range st.Nodes() {
			names = append(names, x.Name)
		}
	}
	return names
}

// publishersOf makes the publishers of a configuration, sorted by name. None of them does anything yet.
func (n *node) publishersOf(cfg *config.Config) ([]*publish.Publisher, error) {
	var out []*publish.Publisher
	var errs []error
	for _, p := range cfg.Publishers {
		backend, err := backendOf(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("publish.%s: %w", p.Name, err))
			continue
		}
		out = append(out, publish.New(publish.Options{
			Name: p.Name, Backend: backend, Source: source{n}, Hold: n.held,
			DryRun: p.DryRun, MinGap: p.MinGap, Audit: p.ReadEvery, Registry: registryOf(cfg.Ownership),
			Owner: func() string { return n.owner(cfg) }, Formerly: func() []string { return n.formerly(cfg) },
			Record: func(ctx context.Context, done rota.Published) error {
				_, err := n.raft.AppendHere(ctx, rota.Event{Kind: rota.EventPublished, Actor: cfg.Node.Name, Published: &done})
				return err
			},
			Recent:  func(zone rota.Name) []publish.Past { return n.lately(p.Name, zone) },
			Confirm: n.raft.Confirm, Lapses: n.doubt.lapsed, Now: n.raft.Now, Frozen: n.whyFrozen,
			Log: n.log.With("room", "publish"),
		}))
	}
	return out, errors.Join(errs...)
}

// lately is what a publisher wrote to a zone in the time that the budget of changes may count over, oldest first, whoever led.
func (n *node) lately(publisher string, zone rota.Name) []publish.Past {
	var out []publish.Past
	since := n.raft.Now().Add(-rota.MaxChangePer)
	for _, r := range n.raft.Records(0, 0) {
		if p := r.Event.Published; p != nil && p.Publisher == publisher && p.Zone == zone && r.Event.At.After(since) && r.Refused == "" {
			out = append(out, publish.Past{At: r.Event.At, Published: *p})
		}
	}
	return out
}

// registryOf is the registry of ownership that a configuration asks for; nil: none.
func registryOf(o config.Ownership) *publish.Registry {
	if o.Registry != config.RegistryTXT {
		return nil
	}
	return &publish.Registry{Prefix: o.Prefix}
}

// appliedWithin bounds how long an event that the leader ordered is waited for here: the state then shows what was asked for.
const appliedWithin = 5 * time.Second

// awaitApplied waits until the event with an index is in this node's state, or long enough.
func (n *node) awaitApplied(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, appliedWithin)
	defer cancel()
	for {
		changed := n.raft.Changed()
		if n.raft.State().Index() >= index {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// apiOptions shows the node to the API.
func (n *node) apiOptions(cfg *config.Config) (api.Options, error) {
	o := api.Options{
		Source: n.raft,
		Append: func(ctx context.Context, e rota.Event) (rota.Event, error) {
			e, err := n.raft.Append(ctx, e)
			if err == nil {
				n.awaitApplied(ctx, e.Index)
			}
			return e, errorsOf(err)
		},
		Records:       n.records,
		Reports:       n.heard,
		Now:           n.raft.Now,
		Say:           n.say,
		VantageStats:  n.vantageStats,
		Publishers:    n.publisherStatus,
		Plan:          n.plan,
		Proof:         n.proof,
		Propagation:   n.propagation,
		Cluster:       n.clusterStatus,
		Probes:        n.probes,
		Config:        func() []byte { return n.current.Load().cfg.Effective() },
		Reload:        func(ctx context.Context) error { return n.reload(ctx, "asked over the API") },
		Ready:         n.ready,
		Frozen:        n.ownFreeze,
		Freeze:        n.freezeSelf,
		Thaw:          n.thawSelf,
		Registry:      n.registry(),
		MetricsPath:   cfg.Metrics.Path,
		Socket:        n.socket(),
		Listen:        cfg.API.Listen,
		CertFile:      cfg.API.CertFile,
		KeyFile:       cfg.API.KeyFile,
		AnonymousRead: cfg.API.AnonymousRead,
		Node:          cfg.Node.Name,
		Version:       version(),
		Log:           n.log.With("room", "api"),
	}
	var errs []error
	for _, t := range cfg.API.Tokens {
		role, err := api.ParseRole(string(t.Role))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		token, err := api.NewToken(t.Name, role, t.Token.Reveal())
		errs = append(errs, err)
		o.Tokens = append(o.Tokens, token)
	}
	if n.net != nil {
		o.Operator = operator{n}
	}
	if n.dns != nil {
		o.NameServer = func() api.NameServer {
			ns := api.NameServer{}
			for _, at := range n.dns.Addrs() {
				ns.Addresses = append(ns.Addresses, at.String())
			}
			for _, z := range n.current.Load().cfg.DNS.Zones {
				ns.Zones = append(ns.Zones, z.Name)
			}
			return ns
		}
	}
	return o, errors.Join(errs...)
}

func (n *node) records(after uint64, limit int) []api.Record {
	var out []api.Record
	for _, r := range n.raft.Records(after, limit) {
		out = append(out, api.Record{Event: r.Event, Transitions: r.Transitions, Refused: r.Refused})
	}
	return out
}

func (n *node) publisherStatus() []api.PublisherStatus {
	now := n.current.Load()
	var out []api.PublisherStatus
	for _, p := range now.publishers {
		s := p.Status()
		view := api.PublisherStatus{Publisher: s.Publisher, Type: publisherType(now.cfg, s.Publisher), Zones: []api.PublishedZone{}}
		for _, z := range s.Zones {
			view.Zones = append(view.Zones, publishedZone(s, z))
		}
		for _, r := range s.Lost {
			view.Zones = append(view.Zones, api.PublishedZone{State: "failing", Error: r.Error()})
		}
		out = append(out, view)
	}
	return out
}

func publisherType(cfg *config.Config, name string) string {
	i := slices.IndexFunc(cfg.Publishers, func(p config.Publisher) bool { return p.Name == name })
	if i < 0 {
		return ""
	}
	return cfg.Publishers[i].Type
}

func publishedZone(s publish.Status, z publish.ZoneStatus) api.PublishedZone {
	view := api.PublishedZone{
		Zone: z.Zone, Failures: z.Failures, Drift: z.Drift, Epoch: s.Term, Read: z.LastSuccess, Written: z.LastWrite, Took: z.Lag,
		Records: z.Records,
	}
	view.Held = heldOf(z.Held)
	state, why := "", (*publish.Reason)(nil)
	for _, r := range z.Reasons {
		if s := standstill(r); state == "" || s == "failing" && state != s {
			state, why = s, r
		}
	}
	switch {
	case !s.Leading:
		view.State = "standby"
	case state != "":
		view.State, view.Error = state, why.Error()
	case z.LastTry.IsZero():
		view.State = "unread"
	case z.Drift > 0:
		view.State = "pending"
	default:
		view.State = "in-step"
	}
	return view
}

// standstill says how a reason is shown: what a person decided is no failure.
func standstill(r *publish.Reason) string {
	switch r.Code {
	case publish.CodeHeld, publish.CodeFrozen, publish.CodeDryRun, publish.CodeReleased:
		return string(r.Code)
	}
	return "failing"
}

func heldOf(held []publish.HeldChange) []api.HeldChange {
	out := make([]api.HeldChange, len(held))
	for i, h := range held {
		out[i] = api.HeldChange{Why: h.Why, Change: h.Change}
	}
	return out
}

// plan asks every publisher, or one, what it would write now: all at the same time, so that none waits for another's DNS.
func (n *node) plan(ctx context.Context, publisher string) ([]api.Plan, error) {
	var asked []*publish.Publisher
	for _, p := range n.current.Load().publishers {
		if publisher == "" || p.Name() == publisher {
			asked = append(asked, p)
		}
	}
	plans := make([]publish.Plan, len(asked))
	g, ctx := errgroup.WithContext(ctx)
	for i, p := range asked {
		g.Go(func() (err error) {
			plans[i], err = p.Plan(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []api.Plan
	for _, plan := range plans {
		for _, z := range plan.Zones {
			view := api.Plan{Publisher: plan.Publisher, Zone: z.Zone, Changes: z.Changes, Unchanged: z.Unchanged, Held: heldOf(z.Held), Owner: z.Owner, Offer: z.Offer}
			var failing []string
			for _, r := range z.Reasons {
				view.Reasons = append(view.Reasons, api.PlanReason{Code: string(r.Code), Name: r.Name, Text: r.Error(), Transient: r.Transient})
				if standstill(r) == "failing" {
					failing = append(failing, r.Error())
				}
			}
			view.Error = strings.Join(failing, "; ")
			out = append(out, view)
		}
	}
	slices.SortFunc(out, func(x, y api.Plan) int {
		return cmp.Or(cmp.Compare(x.Publisher, y.Publisher), cmp.Compare(x.Zone, y.Zone))
	})
	return out, nil
}

func (n *node) clusterStatus() api.ClusterStatus {
	s := n.raft.Status()
	trouble := n.trouble(s)
	if w := n.doubt.why(); w.cause != "" {
		trouble = append(trouble, "this node abstains, so its opinions do not count: "+w.text)
	}
	return api.ClusterStatus{
		Cluster: s.Cluster, NodeID: s.NodeID, Node: s.Node, Raft: s.Raft, Term: s.Term, Leader: s.Leader, Leading: s.Leading,
		Last: s.Last, Commit: s.Commit, Applied: s.Applied, Snapshot: s.Snapshot,
		LastContact: s.LastContact, Voters: s.Voters, Voter: s.Voter, Removed: s.Removed, Behind: s.Behind, Since: s.Since,
		Healthy: s.Healthy, Trouble: trouble, Members: n.membersView(),
	}
}

// trouble is what is wrong although the node serves.
func (n *node) trouble(s cluster.Status) []string {
	out := slices.Clone(s.Trouble)
	if n.net != nil {
		if text := n.differs(); text != "" {
			out = append(out, text)
		}
	}
	if text := n.waits.Load(); text != nil {
		out = append(out, *text)
	}
	if _, text := n.said.Stats(); text != "" {
		out = append(out, text)
	}
	if c := n.doubt.state(); c.Lost {
		out = append(out, clockWords(c.Seen))
	}
	if err := n.current.Load().failed; err != nil {
		out = append(out, "the newest configuration file is not in force, and with it this node would not start: "+rota.CleanReason("%v", err))
	}
	return out
}

// failing are the publishers that cannot make a zone true, while this node leads.
func (n *node) failing() []string {
	var out []string
	for _, p := range n.publisherStatus() {
		for _, z := range p.Zones {
			if z.State == "failing" {
				out = append(out, fmt.Sprintf("publisher %s, zone %s: %s", p.Publisher, cmp.Or(z.Zone.Short(), "?"), z.Error))
			}
		}
	}
	return out
}

// vantageStats is what this node counted of the vantages that it heard.
func (n *node) vantageStats() []api.VantageStat {
	stats, _ := n.inbox.Stats()
	var out []api.VantageStat
	for _, s := range stats {
		out = append(out, api.VantageStat{
			Vantage: s.Vantage, From: s.From, Offset: s.Offset, Taken: s.Taken, LastBytes: s.LastBytes, Refused: s.Refused,
			Refusal: s.Refusal, Twice: s.Twice,
		})
	}
	return out
}

// probes shows what this node remembers of a target.
func (n *node) probes(id rota.TargetID) (api.TargetProbes, bool) {
	traces := n.prober.History(id)
	if len(traces) == 0 {
		return api.TargetProbes{}, false
	}
	out := api.TargetProbes{Streak: traces[len(traces)-1].Streak}
	for _, t := range traces {
		out.Recent = append(out.Recent, probeOf(t))
	}
	return out, true
}

func probeOf(t probe.Trace) api.Probe {
	out := api.Probe{
		Observation: t.Observation, Started: t.Started, Steps: make([]api.ProbeStep, len(t.Steps)), Sent: t.Sent, Received: t.Received,
		ReceivedSize: t.ReceivedSize,
	}
	for i, s := range t.Steps {
		out.Steps[i] = api.ProbeStep(s)
	}
	if f := t.TLS; f != nil {
		out.TLS = &api.ProbeTLS{
			Version: f.Version, Cipher: f.Cipher, ServerName: f.ServerName, ClientCertificate: f.ClientCertificate, Chain: make([]api.ProbeCertificate, len(f.Chain)),
		}
		for i, c := range f.Chain {
			out.TLS.Chain[i] = api.ProbeCertificate(c)
			if c.Names == nil {
				out.TLS.Chain[i].Names = []string{}
			}
		}
	}
	return out
}
