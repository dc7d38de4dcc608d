package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// reloadEvery is how often the configuration's files are looked at for a change of content.
const reloadEvery = 5 * time.Second

// reportEvery is how often this vantage reports although nothing changed.
const reportEvery = 10 * time.Second

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run a node: check, decide, publish and answer",
		Long: `Reads the configuration, serves the last state from the data directory at once, and keeps the DNS true until it is told to
stop. SIGHUP reloads the configuration, all of it or nothing; so does a change of its content. SIGTERM and SIGINT stop in
order and leave the DNS as it is.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runNode(c.Context(), a.configPath(), a.err) },
	}
}

func runNode(ctx context.Context, path string, stderr io.Writer) error {
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
	raft      *cluster.Node
	prober    *probe.Prober
	dns       *nameserver.Server // nil: answers no queries
	api       *api.Server
	collector *api.Collector
	load      func() (*config.Config, error) // reads the configuration again; nil: it cannot change
	reopen    func() error                   // opens the log file again after a rotation; nil: nothing to open

	// Replaced as a whole by a reload, read by anyone.
	current atomic.Pointer[inForce]

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
func newNode(cfg *config.Config, log *slog.Logger) (n *node, err error) {
	n = &node{log: log}
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "where", fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column), "warning", w.Message)
	}
	if n.raft, err = cluster.Open(cluster.Options{Dir: cfg.Node.DataDir, Node: cfg.Node.Name, Log: log.With("room", "cluster")}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.raft.Close())
		}
	}()
	n.prober = probe.New(probe.Options{Vantage: cfg.Node.Name, Log: log.With("room", "probe")})
	if cfg.DNS != nil {
		if n.dns, err = nameserver.New(nameserver.Options{
			Listen: cfg.DNS.Listen, Zones: zonesOf(cfg.DNS, time.Now()), State: n.raft.State, Log: log.With("room", "nameserver"),
		}); err != nil {
			return nil, err
		}
		if err = n.dns.Listen(); err != nil {
			return nil, err
		}
	}
	publishers, err := n.publishersOf(cfg)
	if err != nil {
		return nil, err
	}
	n.current.Store(&inForce{cfg: cfg, publishers: publishers, since: time.Now(), replaced: make(chan struct{})})
	n.collector = api.NewCollector(api.CollectorOptions{Source: n.raft, Records: n.records, Reports: n.raft.Reports, Version: version()})
	options, err := n.apiOptions(cfg)
	if err != nil {
		return nil, err
	}
	if n.api, err = api.New(options); err != nil {
		return nil, err
	}
	return n, n.api.Listen(context.Background())
}

// run runs the node until ctx is cancelled. It stops backwards: first nobody writes, then nobody probes, and the name server answers
// to the last.
func (n *node) run(ctx context.Context) error {
	var parts []part
	if n.dns != nil {
		parts = append(parts, part{"name server", n.answer})
	}
	parts = append(parts,
		part{"api", n.api.Run},
		part{"metrics", n.collector.Run},
		part{"narrator", n.narrate},
		part{"prober", n.prober.Run},
		part{"vantage", n.feed},
		part{"leader", n.lead},
		part{"reload", n.watch},
		part{"systemd", n.notify},
	)
	cfg := n.current.Load().cfg
	n.log.Info("rota starts", "version", version(), "node", cfg.Node.Name, "data_dir", cfg.Node.DataDir,
		"services", len(cfg.Spec.Services), "state_index", n.raft.State().Index())
	err := runParts(ctx, n.log, parts)
	err = errors.Join(err, n.raft.Close())
	n.log.Info("rota stopped; the DNS stays as it is")
	return err
}

// answer serves queries. A node that starts for the first time has no state until it leads; what is asked meanwhile waits in the
// sockets for that moment, because to say that a configured name does not exist would be remembered by resolvers.
func (n *node) answer(ctx context.Context) error {
	for ctx.Err() == nil && len(n.current.Load().cfg.Spec.Services) > 0 {
		changed := n.raft.Changed()
		if len(n.raft.State().Services()) > 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return n.dns.Run(ctx)
}

// feed tells the prober what to probe and the cluster what this vantage holds.
func (n *node) feed(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	var probed []rota.Target
	for {
		changed, news := n.raft.Changed(), n.prober.Changed()
		if ts := n.raft.State().Targets(); !sameSlice(ts, probed) {
			n.prober.Set(ts)
			probed = ts
		}
		n.raft.Report(n.prober.Report())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-news:
		case <-tick.C:
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
		if err := n.restate(ctx); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return n.raft.Judge(ctx) })
		g.Go(func() error { return n.publish(ctx, term) })
		return g.Wait()
	})
}

// restate makes the configuration in force an event at the begin of a term. It waits for a reload under way, whose event it would
// take back otherwise.
func (n *node) restate(ctx context.Context) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	return n.respec(ctx, n.current.Load().cfg)
}

// respec makes the configuration an event, unless it is in force already.
func (n *node) respec(ctx context.Context, cfg *config.Config) error {
	same, err := sameSpec(n.raft.State().Spec(), cfg.Spec)
	if err != nil || same {
		return err
	}
	_, err = n.raft.Append(ctx, rota.Event{Kind: rota.EventSpec, Actor: cfg.Node.Name, Reason: "configuration", Spec: &cfg.Spec})
	return err
}

func sameSpec(a, b rota.Spec) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return string(x) == string(y), err
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
			g.Go(func() error { return p.Run(gctx, term) })
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

// watch reloads on SIGHUP and when the content of the configuration changes.
func (n *node) watch(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	edited := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	if n.load != nil {
		g.Go(func() error {
			sources := func() config.Sources { return n.current.Load().cfg.Sources }
			return config.Watch(ctx, reloadEvery, sources, func() {
				select {
				case edited <- struct{}{}:
				default: // a reload is due already
				}
			})
		})
	}
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
				if n.reopen != nil {
					if err := n.reopen(); err != nil {
						n.log.Error("the log file cannot be opened again; the old one stays in use", "error", err)
					}
				}
				n.reload(ctx, "SIGHUP")
			case <-edited:
				n.reload(ctx, "the file changed")
			}
		}
	})
	return g.Wait()
}

// reload puts the configuration as it is written now in force, all of it or nothing, and returns why it could not.
func (n *node) reload(ctx context.Context, why string) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	sdNotify(daemon.SdNotifyReloading + "\n" + monotonicUsec())
	defer sdNotify(daemon.SdNotifyReady)
	err := n.tryReload(ctx)
	now := n.current.Load()
	if err != nil {
		failed := *now
		failed.failed = err
		n.current.Store(&failed)
		n.log.Error("reload refused; the configuration in force stays", "because", why, "error", err)
		return err
	}
	n.log.Info("configuration in force", "because", why, "services", len(now.cfg.Spec.Services))
	return nil
}

// tryReload does everything that can fail before it touches anything that runs; the event comes last but one, since it can be refused,
// and what it replaces is put back then.
func (n *node) tryReload(ctx context.Context) error {
	if n.load == nil {
		return errors.New("this configuration has no file to read again")
	}
	next, err := n.load()
	if err != nil {
		return err
	}
	old := n.current.Load()
	if err := needsRestart(old.cfg, next); err != nil {
		return err
	}
	publishers, err := n.publishersOf(next)
	if err != nil {
		return err
	}
	since := time.Now()
	if n.dns != nil {
		if err := n.dns.SetZones(zonesOf(next.DNS, since)); err != nil {
			return err
		}
	}
	// Who asked may go away meanwhile, but the event is ordered or not: without its answer half of the configuration could be in force.
	if err := n.respec(context.WithoutCancel(ctx), next); err != nil {
		if n.dns != nil {
			err = errors.Join(err, n.dns.SetZones(zonesOf(old.cfg.DNS, since)))
		}
		return err
	}
	for _, w := range next.Warnings {
		n.log.Warn("configuration", "where", fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column), "warning", w.Message)
	}
	n.current.Store(&inForce{cfg: next, publishers: publishers, since: since, replaced: make(chan struct{})})
	close(old.replaced)
	return nil
}

// needsRestart names every setting that differs and cannot change while the node runs.
func needsRestart(old, next *config.Config) error {
	var errs []error
	fixed := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			errs = append(errs, fmt.Errorf("%s changed from %v to %v: restart rota for that, or take it back; nothing was changed", key, a, b))
		}
	}
	listen := func(c *config.Config) []string {
		if c.DNS == nil {
			return nil
		}
		return c.DNS.Listen
	}
	fixed("node", old.Node, next.Node)
	fixed("log", old.Log, next.Log)
	fixed("metrics", old.Metrics, next.Metrics)
	fixed("cluster", old.Cluster, next.Cluster)
	fixed("dns.listen", listen(old), listen(next))
	if !reflect.DeepEqual(old.API, next.API) {
		errs = append(errs, errors.New("api changed: restart rota for that, or take it back; nothing was changed"))
	}
	return errors.Join(errs...)
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
	sdNotify(daemon.SdNotifyReady)
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		<-ctx.Done()
	} else {
		t := time.NewTicker(every / 2)
		defer t.Stop()
		for ctx.Err() == nil {
			if n.raft.State() != nil {
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
