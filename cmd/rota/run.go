package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/clock"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/raftadmin"
	"github.com/rota-dns/rota/internal/rota"
	"github.com/rota-dns/rota/internal/witness"
)

// reloadEvery is how often the configuration's files are looked at for a change of content.
const reloadEvery = 5 * time.Second

func (a *app) runCommand() *cobra.Command {
	begin, token := false, ""
	c := &cobra.Command{
		Use:   "run",
		Short: "Run a node: check, decide, publish and answer",
		Long: `Reads the configuration, serves the last state from the data directory at once, and keeps the DNS true until it is told to
stop. SIGHUP reloads the configuration, all of it or nothing; so does a change of its content. SIGTERM and SIGINT stop in
order and leave the DNS as it is.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := ownDirectory(c); err != nil {
				return err
			}
			return runNode(c.Context(), a.configPath(), a.err, func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
				return a.enter(ctx, cfg, log, begin, token)
			})
		},
	}
	c.Flags().BoolVar(&begin, "bootstrap", false, "begin a cluster with this node if it is of none yet, as `rota cluster bootstrap` does;\nleft on for ever it does no harm")
	c.Flags().StringVar(&token, "join", "", "join a cluster with this token, or @FILE, if this node is of none yet, as `rota cluster join` does;\nleft on for ever it does no harm")
	return c
}

// enter makes the node one of a cluster, if it is of none yet and somebody said how.
func (a *app) enter(ctx context.Context, cfg *config.Config, log *slog.Logger, begin bool, token string) error {
	if !begin && token == "" && (a.getenv(joinTokenEnv) == "" || cfg.Cluster.Election != config.Raft) {
		return nil
	}
	if cfg.Cluster.Election != config.Raft {
		return usagef("--bootstrap and --join are for a node with `cluster: {election: raft}` in its configuration")
	}
	if begin {
		if token != "" {
			return usagef("--bootstrap begins a cluster and --join joins one: give one of them")
		}
		begun, err := bootstrap(ctx, cfg, log)
		if err == nil && !begun {
			log.Info("bootstrap was asked for, but this node is of a cluster already; there is nothing to do")
		}
		return err
	}
	var args []string
	if token != "" {
		args = []string{token}
	}
	overheard(log, token)
	text, err := a.joinToken(args)
	if err != nil {
		return err
	}
	id, joined, err := join(ctx, cfg, text, false)
	if err == nil {
		log.Info("join was asked for", "cluster", id.Cluster, "joined_now", joined)
	}
	return err
}

func runNode(ctx context.Context, path string, stderr io.Writer, enter func(context.Context, *config.Config, *slog.Logger) error) error {
	cfg, err := config.Load(path, config.Options{})
	if err != nil {
		if _, missing := os.Stat(path); errors.Is(missing, fs.ErrNotExist) {
			return fmt.Errorf("%s: there is no such file: write one (three lines are enough, see the README), name another with --config, "+
				"or see it work first with `rota demo`", path)
		}
		return err
	}
	log, logs, err := newLogger(cfg.Log.Level, string(cfg.Log.Format), cfg.Log.File, stderr)
	if err != nil {
		return err
	}
	defer logs.Close()
	if err := enter(ctx, cfg, log); err != nil {
		return err
	}
	n, err := newNode(cfg, log)
	if err != nil {
		return err
	}
	n.load = func() (*config.Config, error) { return config.Load(path, config.Options{}) }
	n.reopen = logs.Reopen
	return n.run(ctx)
}

// node is one running node: the rooms and how they are wired.
type node struct {
	// Set by newNode and fixed from then on.
	log       *slog.Logger
	name      string           // of the node
	dir       string           // its data directory
	net       *network         // nil: alone
	healthd   *agent.Healthd   // nil: no healthagents
	relay     *agent.Relay     // with healthd
	admin     *raftadmin.Admin // nil: off
	quit      func()           // stops the process in order
	clock     *clock.Clock     // the time of decisions
	doubt     *doubter         // why this vantage abstains
	raft      *cluster.Node
	inbox     *cluster.Inbox
	said      *cluster.Said
	prober    *probe.Prober
	dns       *nameserver.Server // nil: answers no queries
	outside   *fromOutside
	api       *api.Server
	collector *api.Collector
	load      func() (*config.Config, error) // reads the configuration again; nil: it cannot change
	reopen    func() error                   // opens the log file again after a rotation; nil: nothing to open

	// Replaced as a whole by a reload, read by anyone.
	current atomic.Pointer[inForce]

	seen     *evidence              // what this process has seen for itself
	news     broadcast              // fired when the state, who leads or what was seen may have changed
	told     broadcast              // fired when the state or who leads may have changed: agents wait for it, and there may be many
	opined   broadcast              // fired when this vantage's report may have changed
	waits    atomic.Pointer[string] // why a node that is of no cluster yet was not taken in; nil: it is, or nobody was asked
	sites    sites                  // where agents say that they stand
	differed atomic.Pointer[difference]
	able     atomic.Pointer[able] // who is fit to lead instead
	leading  atomic.Uint64        // the term in which this node leads; 0: it does not
	freezing sync.Mutex           // held while the file that freezes this node is looked at
	frozen   atomic.Pointer[frozenHere]

	reloading sync.Mutex // held while a configuration is made an event: by each reload for its length, by a new term
}

// inForce is a configuration and what was made of it.
type inForce struct {
	cfg        *config.Config
	publishers []*publish.Publisher
	failed     error         // why the newest file is not in force; nil: it is
	since      time.Time     // of cfg
	replaced   chan struct{} // closed when another configuration is in force
}

// newNode does everything that can fail before anything runs: it opens the data directory, with the last state served from there, and
// binds the sockets.
func newNode(cfg *config.Config, log *slog.Logger) (*node, error) {
	if err := cfg.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	logWarnings(log, cfg)
	n := &node{
		log: log, name: cfg.Node.Name, dir: cfg.Node.DataDir,
		clock: clock.New(),
	}
	n.seen = newEvidence(n.clock.Now())
	own := func() *config.Config { return n.current.Load().cfg }
	n.prober = probe.New(probe.Options{Vantage: n.name, Log: log.With("room", "probe"), Secret: ownPlaces(own), Exec: execs(ownCommands(own))})
	n.doubt = &doubter{clocks: n.clock.Look, log: log.With("room", "vantage"), targets: func() []rota.Target { return n.raft.State().Targets() }}
	o := cluster.Options{Dir: n.dir, Node: n.name, Log: log.With("room", "cluster"), Clock: n.clock.Now}
	var err error
	if cfg.Cluster.Election == config.Raft {
		if n.net, err = newNetwork(cfg, log); err != nil {
			return nil, err
		}
		o.Network = n.net.options()
		o.Network.Fit = n.fit
	}
	if n.raft, err = cluster.Open(o); err != nil {
		return nil, errors.Join(err, n.unbind())
	}
	n.lookFrozen()
	if err := errors.Join(n.sweep(), n.open(cfg)); err != nil {
		return nil, errors.Join(err, n.raft.Close(), n.unbind())
	}
	return n, nil
}

// sweep removes what a kill in the middle of a restore or a freeze left in the data directory; the former may be large.
func (n *node) sweep() error {
	files, err := os.ReadDir(n.dir)
	for _, f := range files {
		for _, pattern := range []string{restoreFiles, freezeFile + "-*.tmp"} {
			if left, _ := filepath.Match(pattern, f.Name()); left {
				err = errors.Join(err, os.Remove(filepath.Join(n.dir, f.Name())))
			}
		}
	}
	return err
}

// unbind lets go of sockets that were bound by a node that does not run.
func (n *node) unbind() error {
	ended, end := context.WithCancel(context.Background())
	end()
	var err error
	if n.dns != nil {
		err = n.dns.Run(ended)
	}
	if n.net != nil {
		err = errors.Join(err, n.net.close())
	}
	if n.healthd != nil {
		err = errors.Join(err, n.healthd.Run(ended))
	}
	if n.admin != nil {
		err = errors.Join(err, n.admin.Run(ended))
	}
	return err
}

// open makes what a configuration asks for, and binds its sockets.
func (n *node) open(cfg *config.Config) error {
	if cfg.DNS != nil {
		dns, err := nameserver.New(nameserver.Options{
			Listen: cfg.DNS.Listen, Zones: zonesOf(cfg.DNS), State: n.answers, Log: n.log.With("room", "nameserver"),
		})
		if err != nil {
			return err
		}
		if err := dns.Listen(); err != nil {
			return err
		}
		n.dns = dns
	}
	publishers, err := n.publishersOf(cfg)
	if err != nil {
		return err
	}
	n.current.Store(&inForce{cfg: cfg, publishers: publishers, since: time.Now(), replaced: make(chan struct{})})
	n.inbox, n.said = cluster.NewInbox(n.raft, nil), cluster.NewSaid(n.raft)
	if n.net != nil {
		n.net.node.Store(n.raft)
		if err := n.serve(); err != nil {
			return err
		}
	}
	if err := errors.Join(n.openHealthd(cfg), n.openRaftadmin(cfg.Cluster.RaftAdmin)); err != nil {
		return err
	}
	n.outside = &fromOutside{Witness: witness.New(witness.Options{Log: n.log.With("room", "witness")})}
	n.collector = api.NewCollector(api.CollectorOptions{Source: n.raft, Records: n.records, Reports: n.heard, Cluster: n.clusterStatus, VantageStats: n.vantageStats, Node: n.name, Version: version(), Now: n.raft.Now})
	options, err := n.apiOptions(cfg)
	if err != nil {
		return err
	}
	if n.api, err = api.New(options); err != nil {
		return err
	}
	return n.api.Listen(context.Background())
}

func logWarnings(log *slog.Logger, cfg *config.Config) {
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "where", fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column), "warning", w.Message)
	}
}

// run runs the node until ctx is cancelled. It stops backwards: first nobody writes, then nobody probes, and the name server answers
// to the last.
func (n *node) run(ctx context.Context) error {
	var parts []part
	if n.dns != nil {
		parts = append(parts, part{"name server", n.answer})
	}
	if n.net != nil {
		// raft hands its leadership over through the port, so it ends first.
		parts = append(parts, part{"cluster port", n.net.run}, part{"raft", n.hold}, part{"newcomer", n.askIn})
	}
	parts = append(parts,
		part{"freeze", n.watchFrozen},
		part{"api", n.api.Run},
		part{"metrics", n.collector.Run},
		part{"narrator", n.narrate},
		part{"prober", n.prober.Run},
		part{"vantage", n.feed},
		part{"doubt", n.watchSelf},
		part{"reports", n.report},
	)
	parts = append(parts, part{"witness", n.outside.Run}, part{"outside", n.watchOutside})
	if n.net != nil {
		parts = append(parts, part{"configuration", n.speak})
	}
	if n.healthd != nil {
		parts = append(parts, part{"healthagents", n.healthagents})
	}
	parts = append(parts,
		part{"leader", n.lead},
		part{"reload", n.watch},
		part{"systemd", n.notify},
	)
	if n.admin != nil {
		parts = append(parts, part{"raftadmin", n.admin.Run})
	}
	ctx, n.quit = context.WithCancel(ctx)
	defer n.quit()
	cfg := n.current.Load().cfg
	n.log.Info("rota starts", "version", version(), "node", cfg.Node.Name, "data_dir", cfg.Node.DataDir,
		"services", len(cfg.Spec.Services), "state_index", n.raft.State().Index())
	err := runParts(ctx, n.log, parts)
	err = errors.Join(err, n.raft.Close())
	n.log.Info("rota stopped; the DNS stays as it is")
	return err
}

// hold keeps raft until ctx ends.
func (n *node) hold(ctx context.Context) error {
	<-ctx.Done()
	return n.raft.Close()
}

// firstWait bounds how long queries wait in the sockets for a configured name that the state on disk does not know yet.
const firstWait = time.Second

// answer serves queries. To say that a configured name does not exist would be remembered by resolvers. So a node that starts for the
// first time lets queries wait in the sockets until it has a state, and one that starts with new names does so for a moment; but what
// the last state knows is not kept waiting for a leader that may not come. A node that a cluster has just taken in waits until it has
// caught up: what it goes through until then was true once.
func (n *node) answer(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-n.raft.Arrived():
	}
	enough := time.NewTimer(firstWait)
	defer enough.Stop()
	late := false
	for ctx.Err() == nil {
		changed := n.raft.Changed()
		st := n.raft.State()
		if n.knowsAll(st) || late && len(st.Services()) > 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-enough.C:
			late = true
		}
	}
	return n.dns.Run(ctx)
}

// knowsAll reports whether the state has every service that is configured.
func (n *node) knowsAll(st *rota.State) bool {
	for _, v := range n.current.Load().cfg.Spec.Services {
		if st.Service(v.Name) == nil {
			return false
		}
	}
	return true
}

// feed tells the prober what to probe, and the publishers that there is news.
func (n *node) feed(ctx context.Context) error {
	var probed []rota.Target
	var told *rota.State
	lead := ""
	for {
		changed, heard, opined, doubted, led := n.raft.Changed(), n.raft.ReportsChanged(), n.prober.Changed(), n.doubt.doubted.wait(), n.raft.LeaderChanged()
		st := n.raft.State()
		ts := st.Targets()
		if !n.votes(st) {
			ts = nil
		}
		if !sameSlice(ts, probed) {
			n.prober.Set(ts)
			probed = ts
		}
		if word := n.leadWord(); st != told || word != lead {
			told, lead = st, word
			n.told.fire()
		}
		n.opined.fire()
		wake := n.seen.look(st, n.raft.Reports(), n.clock.Now())
		n.news.fire()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-heard:
		case <-opined:
		case <-doubted:
		case <-led:
		case <-wake:
		}
	}
}

// sameSlice reports whether both are the very same slice: an immutable list that is shared when it did not change.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// lead runs what only a leader does.
func (n *node) lead(ctx context.Context) error {
	return n.raft.Lead(ctx, func(ctx context.Context, term uint64) error {
		n.leading.Store(term)
		n.news.fire()
		n.told.fire()
		defer func() {
			n.leading.Store(0)
			n.news.fire()
			n.told.fire()
		}()
		if err := n.restate(ctx); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return n.raft.Judge(ctx) })
		g.Go(func() error { n.said.Run(ctx); return nil })
		g.Go(func() error { return n.publish(ctx, term) })
		g.Go(func() error { return n.keepVantages(ctx) })
		g.Go(func() error { return n.watchFitness(ctx) })
		return g.Wait()
	})
}

// restate makes the configuration in force an event at the begin of a term, where no other node's file could matter or none ever
// spoke. It waits for a reload under way, whose event it would take back otherwise.
func (n *node) restate(ctx context.Context) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	if !n.alone() && len(n.raft.State().Spec().Services) > 0 {
		return nil
	}
	cfg := n.current.Load().cfg
	if err := n.respec(ctx, cfg); err != nil {
		return err
	}
	n.spoke(cfg)
	return nil
}

// errReplaced ends the publishers of a configuration that is no longer in force.
var errReplaced = errors.New("another configuration is in force")

// publish runs the publishers in force, and others when a reload puts them in force.
func (n *node) publish(ctx context.Context, term uint64) error {
	for {
		now := n.current.Load()
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			select {
			case <-gctx.Done():
				return nil
			case <-now.replaced:
				return errReplaced
			}
		})
		for _, p := range now.publishers {
			g.Go(func() error { return n.keep(gctx, p, term) })
		}
		err := g.Wait()
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errReplaced) {
			return err
		}
	}
}

// keep runs one publisher. Its trouble is its own: only a lost fence, which says that somebody else may lead, ends the round for all.
func (n *node) keep(ctx context.Context, p *publish.Publisher, term uint64) error {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := p.Run(ctx, term)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, publish.ErrFenced) {
			return err
		}
		n.log.Error("a publisher ended and is started again", "publisher", p.Name(), "again_in", wait, "error", err)
		if err := pause(ctx, wait, nil); err != nil {
			return nil
		}
	}
}

// narrate logs every change of an answer, with why.
func (n *node) narrate(ctx context.Context) error {
	seen := n.raft.State().Index()
	for {
		changed := n.raft.Changed()
		for _, r := range n.raft.Records(seen, 0) {
			seen = r.Event.Index
			for _, t := range r.Transitions {
				level := slog.LevelInfo
				if t.Mode.Panic() {
					level = slog.LevelWarn
				}
				n.log.Log(ctx, level, "answer", "service", t.Service.Short(), "type", t.Type.String(), "before", t.Before,
					"after", t.After, "mode", t.Mode.String(), "why", t.Why, "event", seen)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// settled reports whether a service's answer is decided by verdicts.
func (n *node) settled(name rota.Name) bool {
	sel := n.raft.State().Selection(name)
	return sel != nil && sel.V4.Mode != rota.ModeWarmup && sel.V6.Mode != rota.ModeWarmup
}

// ready says why this node should not be sent clients yet, or nil.
func (n *node) ready() error {
	select {
	case <-n.raft.Arrived():
	default:
		return errors.New("the cluster's state is not whole here yet")
	}
	st := n.raft.State()
	if len(st.Services()) == 0 && len(n.current.Load().cfg.Spec.Services) > 0 {
		return errors.New("no state yet")
	}
	for i := range st.Services() {
		if st.Selection(st.Services()[i].Name) == nil {
			return fmt.Errorf("service %s has no answer yet", st.Services()[i].Name.Short())
		}
	}
	return nil
}

// socket is the path of the API's unix socket.
func (n *node) socket() string {
	return filepath.Join(n.current.Load().cfg.Node.DataDir, api.SocketName)
}

// notify tells systemd that the node is ready, and that it is alive as long as its state can be read.
func (n *node) notify(ctx context.Context) error {
	n.awaitReady(ctx)
	return tellSystemd(ctx, func() bool { return n.raft.State() != nil })
}

// tellSystemd says that the process is ready, again and again that it is alive, and at the end that it stops.
func tellSystemd(ctx context.Context, alive func() bool) error {
	sdNotify(daemon.SdNotifyReady)
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		<-ctx.Done()
	} else {
		t := time.NewTicker(every / 2)
		defer t.Stop()
		for ctx.Err() == nil {
			if alive() {
				sdNotify(daemon.SdNotifyWatchdog)
			}
			select {
			case <-ctx.Done():
			case <-t.C:
			}
		}
	}
	sdNotify(daemon.SdNotifyStopping)
	return nil
}

// awaitReady waits until the node has an answer for every service, or long enough: what it knows by then it serves.
func (n *node) awaitReady(ctx context.Context) {
	enough := time.NewTimer(20 * time.Second)
	defer enough.Stop()
	arrived := n.raft.Arrived()
	for {
		changed := n.raft.Changed()
		if n.ready() == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-enough.C:
			return
		case <-arrived:
			arrived = nil
		case <-changed:
		}
	}
}

// sdNotify speaks to systemd when it started us; without it nobody listens, and that is fine.
func sdNotify(state string) { _, _ = daemon.SdNotify(false, state) }

// monotonicUsec is what Type=notify-reload wants beside RELOADING=1.
func monotonicUsec() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return ""
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000)
}
