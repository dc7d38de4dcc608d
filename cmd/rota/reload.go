package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/rota"
)

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
		var again <-chan time.Time
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
				again = n.retry(n.reload(ctx, "SIGHUP"))
			case <-edited:
				again = n.retry(n.reload(ctx, "the file changed"))
			case <-again:
				again = n.retry(n.reload(ctx, "the last try could not be ordered"))
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
		logProblems(n.log, "reload refused; the configuration in force stays", err, "because", why)
		return err
	}
	n.log.Info("configuration in force", "because", why, "services", len(now.cfg.Spec.Services))
	return nil
}

// errPassing says that a configuration is right and could not be put in force now.
var errPassing = errors.New("the configuration could not be ordered now and is tried again")

// retry returns when to try again after a reload, or nil when trying again would not help.
func (n *node) retry(err error) <-chan time.Time {
	if errors.Is(err, errPassing) {
		return time.After(reloadEvery)
	}
	return nil
}

// tryReload does everything that can fail before it touches anything that runs; the event comes last, since it can be refused, and
// what it replaces is put back then. While the event is on its way the name server knows the static records of both configurations: a
// name that moves between them and the services is never gone.
func (n *node) tryReload(ctx context.Context) error {
	if n.load == nil {
		return errors.New("this configuration has no file to read again")
	}
	next, err := n.load()
	if err != nil {
		return err
	}
	old := n.current.Load()
	if err := errors.Join(needsRestart(old.cfg, next), next.Spec.Validate(), n.namesakes(next)); err != nil {
		return err
	}
	publishers, err := n.publishersOf(next)
	if err != nil {
		return err
	}
	if n.dns != nil {
		if _, err := nameserver.Compile(zonesOf(next.DNS)); err != nil {
			return err
		}
		if n.dns.SetZones(zonesOf(bothOf(old.cfg.DNS, next.DNS))) != nil {
			// They do not go together; then the change is as short as it can be.
			if err := n.dns.SetZones(zonesOf(next.DNS)); err != nil {
				return err
			}
		}
	}
	// Who asked may go away meanwhile, but the event is ordered or not: without its answer half of the configuration could be in force.
	if !n.speaks(next) {
		if text := n.differs(); text != "" {
			n.log.Warn("the file was read again, and was not edited since", "trouble", text)
		}
	} else if err := n.respec(context.WithoutCancel(ctx), next); err != nil {
		if n.dns != nil {
			err = errors.Join(err, n.dns.SetZones(zonesOf(old.cfg.DNS)))
		}
		return fmt.Errorf("%w: %w", errPassing, err)
	}
	if n.dns != nil {
		err = n.dns.SetZones(zonesOf(next.DNS)) // compiled above; it cannot fail
	}
	logWarnings(n.log, next)
	n.spoke(next)
	n.current.Store(&inForce{cfg: next, publishers: publishers, since: time.Now(), replaced: make(chan struct{})})
	close(old.replaced)
	return err
}

// namesakes refuses agents that are named like nodes: a name is one vantage.
func (n *node) namesakes(next *config.Config) error {
	var errs []error
	for _, x := range n.raft.State().Nodes() {
		if slices.ContainsFunc(next.Agents, func(a config.Agent) bool { return a.Name == x.Name }) {
			errs = append(errs, fmt.Errorf("vantage.agents.accept: agent %q has the name of a node of the cluster: give one of them another", x.Name))
		}
	}
	return errors.Join(errs...)
}

// respec makes the configuration an event, unless it is in force already.
func (n *node) respec(ctx context.Context, cfg *config.Config) error {
	spec, old := n.specOf(cfg), n.raft.State().Spec()
	same, err := sameSpec(old, spec)
	if err != nil || same {
		return err
	}
	if _, err := n.raft.Append(ctx, rota.Event{Kind: rota.EventSpec, Actor: cfg.Node.Name, Reason: "configuration", Spec: &spec}); err != nil {
		return err
	}
	n.mentionRemoved(old, spec)
	return nil
}

// mentionRemoved says which records are nobody's business any more: what is not mentioned is not touched, in either direction.
func (n *node) mentionRemoved(old, now rota.Spec) {
	for _, v := range old.Services {
		elsewhere := slices.DeleteFunc(slices.Clone(v.Publish), func(p string) bool { return p == rota.Embedded })
		if len(elsewhere) == 0 || slices.ContainsFunc(now.Services, func(w rota.Service) bool { return w.Name == v.Name }) {
			continue
		}
		n.log.Warn("a service left the configuration; its records stay where they were published: remove them there if they should go",
			"service", v.Name.Short(), "publishers", elsewhere)
	}
}

func sameSpec(a, b rota.Spec) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return string(x) == string(y), err
}

// needsRestart names every setting that differs and cannot change while the node runs.
func needsRestart(old, next *config.Config) error {
	var errs []error
	shown := func(v any) string {
		if s := fmt.Sprint(v); strings.Trim(s, "[ ]") != "" {
			return s
		}
		return "nothing"
	}
	fixed := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			errs = append(errs, fmt.Errorf("%s changed from %s to %s: restart rota for that, or take it back; nothing was changed", key, shown(a), shown(b)))
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
	a, b := old.Cluster, next.Cluster
	fixed("cluster.election", a.Election, b.Election)
	fixed("cluster.listen", a.Listen, b.Listen)
	fixed("cluster.advertise", a.Advertise, b.Advertise)
	fixed("cluster.join", a.Join, b.Join)
	fixed("cluster.tls", []string{a.CertFile, a.KeyFile, a.CAFile}, []string{b.CertFile, b.KeyFile, b.CAFile})
	fixed("cluster.nodes", a.Nodes, b.Nodes)
	fixed("cluster.raftadmin", a.RaftAdmin, b.RaftAdmin)
	fixed("dns.listen", listen(old), listen(next))
	unshown := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			errs = append(errs, fmt.Errorf("%s changed: restart rota for that, or take it back; nothing was changed", key))
		}
	}
	unshown("api", old.API, next.API)
	unshown("vantage.agents.healthagent", old.Healthagent, next.Healthagent)
	return errors.Join(errs...)
}
