package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// leadWord says who leads, in a word that is another one when another node does, or the same one again; empty: nobody, as far as is
// known here.
func (n *node) leadWord() string {
	if term := n.leading.Load(); term != 0 {
		return "here:" + strconv.FormatUint(term, 10)
	}
	if m, ok := n.raft.Leader(); ok && !m.Self {
		return m.ID
	}
	return ""
}

// ledOrChanged returns a channel that is closed when the state or the leader may have changed.
func (n *node) ledOrChanged() <-chan struct{} { return n.told.wait() }

// report brings what this vantage holds to whoever leads.
func (n *node) report(ctx context.Context) error {
	o := &cluster.Outbox{
		Vantage: n.name, Report: n.opinions, ReportChanged: n.opined.wait,
		Table: func() *rota.Table { return n.raft.State().Table() }, TableChanged: n.raft.Changed,
		Leader: n.reportTo, LeaderChanged: n.news.wait,
		Send: func(ctx context.Context, b []byte) error {
			if n.leading.Load() != 0 {
				return n.inbox.Take(n.name, "this node", 0, b)
			}
			return n.sendReport(ctx, "", "", 0, b)
		},
		Log: n.log.With("room", "vantage"),
	}
	return o.Run(ctx)
}

// reportTo says who leads, as leadWord does; nobody while this node is not among those who vote: it has just come, or was removed.
func (n *node) reportTo() string {
	if !n.votes(n.raft.State()) {
		return ""
	}
	return n.leadWord()
}

// votes reports whether this node is among those who vote.
func (n *node) votes(st *rota.State) bool {
	return slices.ContainsFunc(st.Spec().Vantages, func(v rota.Vantage) bool { return v.Name == n.name && !v.Agent })
}

// heard are the reports that this node knows: where it leads, all; elsewhere its own.
func (n *node) heard() []*rota.Report {
	if n.leading.Load() != 0 {
		return n.raft.Reports()
	}
	r := n.opinions()
	r.At = n.clock.Now()
	return []*rota.Report{r}
}

// opinions is what this node's vantage holds, with why it abstains if it does.
func (n *node) opinions() *rota.Report {
	r := *n.prober.Report()
	r.Vantage = n.name
	r.Abstain = n.doubt.why().text
	return &r
}

// sendReport brings a packed report to the leader: this node's own, or one of an agent that it speaks for.
func (n *node) sendReport(ctx context.Context, vantage, site string, age time.Duration, b []byte) error {
	leader, ok := n.raft.Leader()
	switch {
	case n.net == nil || !ok:
		return cluster.ErrNoLeader
	case leader.Self:
		return cluster.ErrNotLeader // not yet, or no longer
	}
	h := http.Header{}
	if vantage != "" {
		h.Set(agent.VantageHeader, vantage)
		h.Set(agent.AgeHeader, agent.FormatAge(age))
		h.Set(agent.SiteHeader, site)
	}
	return agent.PostReport(ctx, n.net.port.Client(), "https://"+leader.ID, h, b)
}

// reports is what takes reports over the port: those of nodes here, those of agents through theirs.
func (n *node) reports(agents http.Handler) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		who, ok := link.PeerOf(r.Context())
		if !ok || who.Role != link.Node {
			agents.ServeHTTP(rw, r)
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, rota.MaxPacked))
		if err != nil {
			err = &agent.Refusal{Status: http.StatusRequestEntityTooLarge, Text: fmt.Sprintf("a report has at most %d bytes, and comes whole", rota.MaxPacked)}
		} else {
			err = n.takeFromNode(who, r, b)
		}
		if err != nil {
			agent.RefusalOf(err).Answer(rw)
			return
		}
		rw.WriteHeader(http.StatusNoContent)
	}
}

// takeFromNode takes a report that another node sends: its own, or one of an agent that it speaks for.
func (n *node) takeFromNode(who link.Identity, r *http.Request, b []byte) error {
	vantage := r.Header.Get(agent.VantageHeader)
	name, ok := n.nameOf(who)
	if !ok {
		return refusalOf(fmt.Errorf("%s is not one of the cluster yet: %w", who, cluster.ErrVantage))
	}
	if vantage == "" {
		if err := n.inbox.Take(name, r.RemoteAddr, 0, b); err != nil {
			return refusalOf(err)
		}
		return nil
	}
	if !n.isAgent(vantage) {
		return refusalOf(fmt.Errorf("%s speaks for %s, which is no agent: %w", who, rota.CleanReason("%s", vantage), cluster.ErrVantage))
	}
	age, err := agent.ParseAge(r.Header.Get(agent.AgeHeader))
	if err != nil {
		return &agent.Refusal{Status: http.StatusBadRequest, Text: err.Error()}
	}
	if err := n.inbox.Take(vantage, r.RemoteAddr+" by "+who.Name, age, b); err != nil {
		return refusalOf(err)
	}
	n.sites.said(vantage, r.Header.Get(agent.SiteHeader))
	return nil
}

// takeReport takes a report that an agent sends here, or hands it on to the leader.
func (n *node) takeReport(ctx context.Context, name, site, from string, b []byte) error {
	if n.leading.Load() != 0 {
		if !n.isAgent(name) { // it was let in under a name that is a node's by now, or nobody's
			return refusalOf(fmt.Errorf("%s is no agent that is accepted: %w", name, cluster.ErrVantage))
		}
		if err := n.inbox.Take(name, from, 0, b); err != nil {
			return refusalOf(err)
		}
		n.sites.said(name, site)
		return nil
	}
	if err := n.sendReport(ctx, name, site, 0, b); err != nil {
		return refusalOf(err)
	}
	return nil
}

// refusalOf says to the sender of a report what to do after an Inbox has refused it, or a node could not hand it on. The leader's word
// to a node that handed it on stays as it is.
func refusalOf(err error) *agent.Refusal {
	r := *agent.RefusalOf(err)
	for _, k := range []struct {
		err    error
		status int
		word   string
	}{
		{cluster.ErrVantage, http.StatusForbidden, ""},
		{cluster.ErrName, http.StatusForbidden, ""},
		{cluster.ErrReplay, http.StatusConflict, agent.RefusedReplay},
		{cluster.ErrAged, http.StatusConflict, agent.RefusedReplay},
		{cluster.ErrTwice, http.StatusConflict, agent.RefusedTwice},
		{rota.ErrTable, http.StatusConflict, agent.RefusedTable},
		{cluster.ErrRate, http.StatusTooManyRequests, ""},
		{rota.ErrReport, http.StatusBadRequest, ""},
		{cluster.ErrNotLeader, http.StatusMisdirectedRequest, ""},
	} {
		if errors.Is(err, k.err) {
			r.Status, r.Word = k.status, k.word
			break
		}
	}
	return &r
}

// nameOf returns the name of a node that asks, as the cluster knows it.
func (n *node) nameOf(who link.Identity) (string, bool) {
	for _, x := range n.raft.State().Nodes() {
		if x.ID == who.ID && who.ID != "" || who.ID == "" && x.Name == who.Name {
			return x.Name, true
		}
	}
	return "", false
}

// isAgent reports whether a name is that of an agent that is accepted.
func (n *node) isAgent(name string) bool {
	return accepted(n.raft.State(), name)
}

func accepted(st *rota.State, agent string) bool {
	return slices.ContainsFunc(st.Spec().Vantages, func(v rota.Vantage) bool { return v.Agent && v.Name == agent })
}

// vantagesOf returns who votes: the nodes of the cluster and the agents that are accepted, sorted by name. A node alone is the one that
// the file names.
func (n *node) vantagesOf(st *rota.State, cfg *config.Config) []rota.Vantage {
	var nodes, out []rota.Vantage
	for _, x := range st.Nodes() {
		nodes = append(nodes, rota.Vantage{Name: x.Name, Site: x.Site})
	}
	if len(nodes) == 0 {
		nodes = append(nodes, rota.Vantage{Name: cfg.Node.Name, Site: cfg.Node.Site})
	}
	if cfg.NodesVote {
		out = slices.Clone(nodes)
	}
	for _, a := range cfg.Agents {
		if slices.ContainsFunc(nodes, func(v rota.Vantage) bool { return v.Name == a.Name }) {
			continue // whoever bears a node's name would have its vote
		}
		v := rota.Vantage{Name: a.Name, Site: a.Site, Agent: true}
		if v.Site == "" {
			v.Site, v.Said = n.siteOf(st, a.Name), true
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b rota.Vantage) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// siteOf returns where an agent says that it stands; until it is heard, what it said last.
func (n *node) siteOf(st *rota.State, name string) string {
	if site := n.sites.of(name); site != "" {
		return site
	}
	for _, v := range st.Spec().Vantages {
		if v.Said && v.Name == name {
			return v.Site
		}
	}
	return name
}

// vantagesEvery bounds how often who votes is put right: an agent that says another site with each report is no flood of events, each of
// which has every service decided anew. That nodes come and go is in the state without this.
const vantagesEvery = 5 * time.Second

// keepVantages keeps who votes true to who is in the cluster and which agents are accepted. It runs where this node leads.
func (n *node) keepVantages(ctx context.Context) error {
	for {
		changed := n.news.wait()
		st := n.raft.State()
		spec := st.Spec()
		want := n.vantagesWanted(st)
		if len(spec.Services)+len(spec.Vantages) > 0 && len(want) > 0 && !slices.Equal(spec.Vantages, want) {
			if _, err := n.raft.AppendHere(ctx, rota.Event{
				Kind: rota.EventVantages, Actor: n.name, Reason: "who votes: " + voters(want), Vantages: want,
			}); err != nil {
				return err
			}
		}
		if err := pause(ctx, vantagesEvery, nil); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// vantagesWanted is vantagesOf by what the state knows: agents stand in it by name, with the site that was configured if one was, and nodes
// if they vote. No file of this node matters: it need not be the one in force.
func (n *node) vantagesWanted(st *rota.State) []rota.Vantage {
	cfg := *n.current.Load().cfg
	cfg.Agents, cfg.NodesVote = nil, false
	for _, v := range st.Spec().Vantages {
		switch {
		case v.Agent && v.Said:
			cfg.Agents = append(cfg.Agents, config.Agent{Name: v.Name})
		case v.Agent:
			cfg.Agents = append(cfg.Agents, config.Agent{Name: v.Name, Site: v.Site})
		default:
			cfg.NodesVote = true
		}
	}
	return n.vantagesOf(st, &cfg)
}

// maxVoters bounds how many names stand in the reason of an event.
const maxVoters = 20

func voters(vs []rota.Vantage) string {
	names := make([]string, 0, len(vs))
	for _, v := range vs {
		names = append(names, v.Name)
	}
	if more := len(names) - maxVoters; more > 0 {
		names = append(names[:maxVoters], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// healthagents hands the reports of NectGmbH's agents on, each once.
func (n *node) healthagents(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.healthd.Run(ctx) })
	g.Go(func() error {
		return n.relay.Run(ctx, func(ctx context.Context, vantage string, age time.Duration, r *rota.Report) error {
			b := n.raft.State().Table().Pack(r)
			if n.leading.Load() != 0 {
				return n.inbox.Take(vantage, "healthagent", age, b)
			}
			return n.sendReport(ctx, vantage, "", age, b)
		})
	})
	return g.Wait()
}

// maxSite bounds a site's name, in bytes, as the configuration does.
const maxSite = 64

// sites is where agents say that they stand. Only agents that are accepted get to say so, which bounds it.
type sites struct {
	mu sync.Mutex // guards by
	by map[string]string
}

func (s *sites) said(agent, site string) {
	if site == "" || len(site) > maxSite || rota.CleanReason("%s", site) != site {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]string{}
	}
	s.by[agent] = site
}

func (s *sites) of(agent string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[agent]
}

// openHealthd makes what serves NectGmbH's healthagents, if any are configured.
func (n *node) openHealthd(cfg *config.Config) error {
	h := cfg.Healthagent
	if h == nil {
		return nil
	}
	accept := func() []string {
		var names []string
		for _, v := range n.raft.State().Spec().Vantages {
			if v.Agent {
				names = append(names, v.Name)
			}
		}
		return names
	}
	var err error
	if n.relay, err = agent.NewRelay(agent.RelayOptions{
		Accept: accept, LeaderChanged: n.raft.LeaderChanged, Log: n.log.With("room", "healthagent"),
	}); err != nil {
		return err
	}
	n.healthd, err = agent.NewHealthd(agent.HealthdOptions{
		Listen: h.Listen, TLS: agent.Files{Cert: h.CertFile, Key: h.KeyFile, CA: h.ClientCAFile},
		Accept: accept,
		Nodes: func() []string {
			names := []string{n.name}
			for _, x := range n.raft.State().Nodes() {
				names = append(names, x.Name)
			}
			return names
		},
		Targets: func() []rota.Target { return n.raft.State().Targets() },
		Report:  n.relay.Offer,
		Log:     n.log.With("room", "healthagent"),
	})
	if err != nil {
		return err
	}
	return n.healthd.Listen(context.Background())
}
