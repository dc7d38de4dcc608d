package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
)

// linkDir is where a node keeps the credentials that rota made, under its data directory.
const linkDir = "link"

// network is what a node of many has besides: the port, and who it is there.
type network struct {
	// Set by newNetwork and fixed from then on.
	log     *slog.Logger
	cfg     config.Cluster
	dir     string // the data directory
	address string // where others reach this node
	site    string
	own     bool // the credentials are rota's own, and new ones can be made here
	files   link.Files
	creds   *link.Credentials
	tokens  *link.Tokens // nil: certificates are made elsewhere
	port    *link.Port

	node atomic.Pointer[cluster.Node] // nil until the data directory is open
	serv atomic.Pointer[http.Handler] // what peers are answered with; nil until the node is made
}

// newNetwork reads the credentials and binds the cluster's port.
func newNetwork(cfg *config.Config, log *slog.Logger) (*network, error) {
	w := &network{log: log.With("room", "link"), cfg: cfg.Cluster, dir: cfg.Node.DataDir, site: cfg.Node.Site, own: cfg.Cluster.CertFile == ""}
	var err error
	if w.address, err = advertised(cfg.Cluster); err != nil {
		return nil, err
	}
	if err := w.credentials(cfg); err != nil {
		return nil, err
	}
	o := link.Options{
		DialerOptions: link.DialerOptions{Credentials: w.creds, Members: w.members, Allowed: w.allowed, Log: w.log},
		Listen:        cfg.Cluster.Listen, Advertise: w.address, MaxBody: maxPacked,
		Peer: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if h := w.serv.Load(); h != nil {
				(*h).ServeHTTP(rw, r)
				return
			}
			http.Error(rw, "this node has not started yet", http.StatusServiceUnavailable)
		}),
	}
	if w.own {
		w.tokens = link.NewTokens(w.creds.Identity().Cluster, tokenFile(w.dir))
		joins := &link.JoinServer{
			Tokens: w.tokens, CA: func() (*link.CA, error) { return link.LoadCA(w.files) }, Members: w.members, Admit: w.admit, Log: w.log,
		}
		o.Join = joins.Handler()
	}
	if w.port, err = link.NewPort(o); err != nil {
		return nil, err
	}
	return w, w.port.Listen(context.Background())
}

// credentials loads who this node is.
func (w *network) credentials(cfg *config.Config) error {
	id, err := cluster.ReadIdentity(w.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	o := link.CredentialOptions{Log: w.log}
	if w.own {
		w.files = link.FilesIn(filepath.Join(w.dir, linkDir))
		if _, err := os.Stat(w.files.Cert); errors.Is(err, fs.ErrNotExist) {
			return &coded{exitUsage, fmt.Errorf("%s: this node has no certificate of a cluster yet. Begin a cluster with it: `rota cluster bootstrap`; "+
				"or let it join one: `rota cluster token` there, `rota cluster join TOKEN` here", filepath.Dir(w.files.Cert))}
		}
		o.Renew = func(_ context.Context, csr []byte) (link.Grant, error) {
			ca, err := link.LoadCA(w.files)
			if err != nil {
				return link.Grant{}, err
			}
			return ca.Sign(csr, w.creds.Identity())
		}
	} else {
		w.files = link.Files{CA: cfg.Cluster.CAFile, Cert: cfg.Cluster.CertFile, Key: cfg.Cluster.KeyFile}
		agents := make([]string, 0, len(cfg.Agents))
		for _, a := range cfg.Agents {
			agents = append(agents, a.Name)
		}
		o.External = &link.Mapping{Cluster: cmp.Or(id.Cluster, externalID(cfg)), Nodes: cfg.Cluster.Nodes, Agents: agents, Agent: w.isAgent, NodeID: w.idOf}
	}
	o.Files = w.files
	if w.creds, err = link.LoadCredentials(o); err != nil {
		return err
	}
	me := w.creds.Identity()
	switch {
	case me.Role != link.Node:
		return fmt.Errorf("%s is the certificate of %s: a node needs one of its own", w.files.Cert, me)
	case w.own && id.Node == "":
		return fmt.Errorf("%s has certificates, but no identity.json: joining was cut short; run `rota cluster join` again", w.dir)
	case w.own && me.ID != id.Node:
		return fmt.Errorf("%s is the certificate of node %s, but the data directory is that of node %s: two data directories were mixed", w.files.Cert, me.ID, id.Node)
	case w.own && me.Cluster != id.Cluster:
		return fmt.Errorf("%s is of cluster %s, but the data directory is of cluster %s: two data directories were mixed", w.files.Cert, me.Cluster, id.Cluster)
	}
	return nil
}

// options is the network as the cluster sees it.
func (w *network) options() *cluster.Network {
	return &cluster.Network{
		Address: w.address, Site: w.site, Cluster: w.creds.Identity().Cluster,
		Transport: cluster.Over(func() cluster.Streams { return link.Raft[cluster.Address](w.port) }),
		Forward:   w.forward,
	}
}

// run serves the port until ctx ends, and keeps the certificate fresh.
func (w *network) run(ctx context.Context) error {
	renewing, end := context.WithCancel(ctx)
	defer end()
	done := make(chan error, 1)
	go func() { done <- w.creds.Run(renewing) }()
	err := w.port.Run(ctx)
	end()
	return errors.Join(err, <-done)
}

// close lets go of a port that never ran.
func (w *network) close() error {
	ended, end := context.WithCancel(context.Background())
	end()
	return w.port.Run(ended)
}

// members are the nodes as the port needs them.
func (w *network) members() []link.Member {
	n := w.node.Load()
	if n == nil {
		return nil
	}
	ms := n.Members()
	out := make([]link.Member, 0, len(ms))
	for _, m := range ms {
		out = append(out, link.Member{ID: m.ID, Name: m.Name, Address: m.Address})
	}
	return out
}

// addresses are where agents find the nodes.
func (w *network) addresses() []string {
	var out []string
	for _, m := range w.members() {
		out = append(out, m.Address)
	}
	return out
}

// idOf returns the id of the node with a name.
func (w *network) idOf(name string) (string, bool) {
	ms := w.members()
	i := slices.IndexFunc(ms, func(m link.Member) bool { return m.Name == name })
	if i < 0 {
		return "", false
	}
	return ms[i].ID, true
}

// isAgent reports whether a name is that of an agent that is accepted now, by whichever node's file.
func (w *network) isAgent(name string) bool {
	n := w.node.Load()
	return n != nil && accepted(n.State(), name)
}

// allowed says why somebody with a good certificate is not let in.
func (w *network) allowed(id link.Identity) error {
	n := w.node.Load()
	if n == nil {
		return nil // nothing is served yet
	}
	st := n.State()
	switch id.Role {
	case link.Node:
		if id.ID != "" && st.WasRemoved(id.ID) {
			return fmt.Errorf("node %s was removed from the cluster: let it join again with an empty data directory", cmp.Or(id.Name, id.ID))
		}
	case link.Agent:
		if accepted(st, id.Name) {
			return nil
		}
		return fmt.Errorf("agent %s is not accepted: add it to vantage.agents.accept", id.Name)
	}
	return nil
}

// admit says why a newcomer with a good token cannot be let in.
func (w *network) admit(_ context.Context, who link.Newcomer) error {
	n := w.node.Load()
	if n == nil {
		return errors.New("this node has not started yet")
	}
	if who.Role == link.Agent {
		return w.allowed(who.Identity)
	}
	for _, m := range n.Members() {
		switch {
		case m.ID == who.ID:
			return nil // an answer that was lost
		case m.Name == who.Name:
			return fmt.Errorf("a node named %s is in the cluster: give this one another node.name, or remove that one (rota cluster remove %s)", m.Name, m.Name)
		case m.Address == who.Address:
			return fmt.Errorf("node %s is at %s: give this one another cluster.advertise, or remove that one (rota cluster remove %s)", m.Label(), m.Address, m.Label())
		}
	}
	if n.State().WasRemoved(who.ID) {
		return w.allowed(who.Identity)
	}
	return nil
}

// advertised returns where others reach this node: as configured, or where it listens, or at this machine's only address.
func advertised(c config.Cluster) (string, error) {
	if c.Advertise != "" {
		return c.Advertise, nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", fmt.Errorf("cluster.listen %q: it must be host:port", c.Listen)
	}
	if ip, err := netip.ParseAddr(host); err != nil && host != "" || err == nil && !ip.IsUnspecified() {
		return c.Listen, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("cluster.advertise is not set, and this machine's addresses cannot be listed: %w", err)
	}
	return onlyAddress(all, port)
}

// onlyAddress returns this machine's only address that others could reach, with a port; IPv4 before IPv6.
func onlyAddress(all []net.Addr, port string) (string, error) {
	var v4, v6 []string
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() || p.Addr().IsLoopback() {
			continue
		}
		at := net.JoinHostPort(p.Addr().String(), port)
		if p.Addr().Is4() {
			v4 = append(v4, at)
		} else {
			v6 = append(v6, at)
		}
	}
	switch found := append(v4, v6...); {
	case len(v4) == 1:
		return v4[0], nil
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return "", errors.New("this machine has no address that others could reach it at: set cluster.advertise")
	default:
		return "", fmt.Errorf("this machine has several addresses (%s): set cluster.advertise to the one that the other nodes reach", strings.Join(found, ", "))
	}
}
