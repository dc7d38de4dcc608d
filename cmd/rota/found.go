package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
)

// joinTokenEnv is where a join token may stand instead of in an argument, which everybody on the machine can read.
const joinTokenEnv = "ROTA_JOIN_TOKEN"

// clusterConfig reads the configuration of a node that is of a cluster, or will be. Keys of name servers are not needed for that, and
// systemd hands them to the service alone.
// ownDirectory refuses --data-dir for a command that is the node itself and does not ask one.
func ownDirectory(c *cobra.Command) error {
	if f := c.Flag("data-dir"); f != nil && f.Changed {
		return usagef("--data-dir says which rota is asked; this command's own directory is node.data_dir in its configuration")
	}
	return nil
}

func (a *app) clusterConfig(c *cobra.Command) (*config.Config, error) {
	if err := ownDirectory(c); err != nil {
		return nil, err
	}
	cfg, err := config.Load(a.configPath(), config.Options{NoSecrets: true})
	if err != nil {
		return nil, err
	}
	if cfg.Cluster.Election != config.Raft {
		return nil, &coded{exitUsage, fmt.Errorf("%s: this node runs alone: write `cluster: {election: raft}` first", a.configPath())}
	}
	return cfg, nil
}

func (a *app) bootstrapCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "bootstrap",
		Short: "Begin a cluster with this node, and print a join token for the next",
		Long: `Makes this node the first of a cluster: an id, a small certificate authority and this node's certificate, in its data directory.
What the node decided while it ran alone stays. A node that is of a cluster already is left as it is. Standard output is a join
token for one more node; give it to ` + "`rota cluster join`" + ` there.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.clusterConfig(c)
			if err != nil {
				return err
			}
			begun, err := bootstrap(c.Context(), cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			id, err := cluster.ReadIdentity(cfg.Node.DataDir)
			if err != nil {
				return err
			}
			if !begun {
				fmt.Fprintf(a.err, "Node %s is of cluster %s already; there is nothing to do.\n"+
					"Start it with `rota run`; a join token for the next node: `rota cluster token`.\n", id.Name, id.Cluster)
				return nil
			}
			fmt.Fprintf(a.err, "Cluster %s begins with node %s.\n", id.Cluster, id.Name)
			if cfg.Cluster.CertFile != "" {
				fmt.Fprintf(a.err, "Start it with `rota run`. Other nodes need certificates of the same authority and `cluster.join`.\n")
				return nil
			}
			address, err := advertised(cfg.Cluster)
			if err != nil {
				return err
			}
			files := link.FilesIn(filepath.Join(cfg.Node.DataDir, linkDir))
			ca, err := link.LoadCA(files)
			if err != nil {
				return err
			}
			t, err := link.NewTokens(id.Cluster, tokenFile(cfg.Node.DataDir)).Issue(c.Context(), link.TokenRequest{
				Role: link.Node, Addresses: []string{address}, Pin: ca.Pin(), Note: "bootstrap",
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.err, "1. Start this node: `rota run` (others reach it at %s).\n"+
				"2. On the next node: `rota cluster join TOKEN`, then `rota run`. The token is good until %s, for one node; more: `rota cluster token`.\n",
				address, t.Expires.UTC().Format("2006-01-02 15:04:05Z"))
			fmt.Fprintln(a.out, t.Reveal())
			return nil
		},
	}
}

func tokenFile(dir string) *link.FileTokens {
	return &link.FileTokens{Path: filepath.Join(dir, linkDir, "tokens.json")}
}

// bootstrap makes a node the first of a cluster, and reports whether it did: with a cluster's data in place there is nothing to do.
func bootstrap(ctx context.Context, cfg *config.Config, log *slog.Logger) (bool, error) {
	dir, own := cfg.Node.DataDir, cfg.Cluster.CertFile == ""
	files := link.FilesIn(filepath.Join(dir, linkDir))
	id, err := cluster.ReadIdentity(dir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	case err == nil && !own:
		return false, nil
	case err == nil:
		if has, err := present(files.Cert); err != nil || has {
			return false, err
		}
	}
	address, aerr := advertised(cfg.Cluster)
	if aerr != nil {
		return false, aerr
	}
	for _, at := range cfg.Cluster.Join {
		if at == address {
			continue
		}
		of, found, err := clusterOf(ctx, cfg, at)
		if err != nil {
			return false, err
		}
		if found {
			how := "`rota cluster token` there, `rota cluster join TOKEN` here"
			if !own {
				how = "start it with `rota run` and without --bootstrap, and cluster.join leads it"
			}
			return false, fmt.Errorf("%s is a node of cluster %s already: a second cluster would fight it over the DNS. Let this node join that one: %s", at, of, how)
		}
	}
	if err != nil {
		if err := cluster.Begin(cluster.Options{Dir: dir, Node: cfg.Node.Name, Log: log, Network: &cluster.Network{
			Address: address, Site: cfg.Node.Site, Cluster: externalID(cfg),
		}}); err != nil {
			return false, err
		}
		if id, err = cluster.ReadIdentity(dir); err != nil {
			return false, err
		}
	}
	if !own {
		return true, nil
	}
	if err := os.MkdirAll(filepath.Dir(files.Cert), 0o700); err != nil {
		return false, err
	}
	ca, err := authority(files, id.Cluster)
	if err != nil {
		return false, err
	}
	return true, ca.Issue(files, link.Identity{Cluster: id.Cluster, Role: link.Node, ID: id.Node, Name: cfg.Node.Name})
}

// authority returns the CA of a cluster in its files, and makes it when there is none. One that is there has signed for other nodes, or was
// made before bootstrap was cut short; another in its place would be trusted by nobody.
func authority(files link.Files, cluster string) (*link.CA, error) {
	has, err := present(files.CAKey)
	if err != nil {
		return nil, err
	}
	if !has {
		ca, err := link.NewCA(cluster)
		if err != nil {
			return nil, err
		}
		return ca, ca.Save(files)
	}
	ca, err := link.LoadCA(files)
	if err == nil && ca.Cluster() != cluster {
		err = fmt.Errorf("%s is of the CA of cluster %s, but the data directory is of cluster %s: two data directories were mixed", files.CAKey, ca.Cluster(), cluster)
	}
	return ca, err
}

// externalID is the id of a cluster whose certificates are made elsewhere, where they cannot carry one; empty with rota's own.
func externalID(cfg *config.Config) string {
	if cfg.Cluster.CertFile == "" {
		return ""
	}
	return cfg.Cluster.ID
}

// clusterAt looks whether a node of a cluster answers at an address, and of which. It asks for nothing: the certificate that is shown to
// everybody who wants to join says it.
func clusterAt(ctx context.Context, address string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", false
	}
	defer c.Close()
	t := tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{link.ProtocolJoin},
		InsecureSkipVerify: true, // whoever it is, nothing is said or believed but that a node is there
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return "", false
	}
	if certs := t.ConnectionState().PeerCertificates; len(certs) > 0 {
		for _, u := range certs[0].URIs {
			if u.Scheme == "rota" {
				return u.Host, true
			}
		}
	}
	return "that is not named", true
}

// clusterOf looks whether a node of a cluster answers at an address, and of which. Where certificates are made elsewhere nobody joins by
// a token, so it is asked as a node asks a node; one that waits to be taken in is of no cluster yet.
func clusterOf(ctx context.Context, cfg *config.Config, address string) (of string, found bool, err error) {
	if cfg.Cluster.CertFile == "" {
		of, found = clusterAt(ctx, address)
		return of, found, nil
	}
	creds, err := link.LoadCredentials(link.CredentialOptions{
		Files:    link.Files{CA: cfg.Cluster.CAFile, Cert: cfg.Cluster.CertFile, Key: cfg.Cluster.KeyFile},
		External: &link.Mapping{Cluster: externalID(cfg), Nodes: cfg.Cluster.Nodes},
	})
	if err != nil {
		return "", false, err
	}
	d, err := link.NewDialer(link.DialerOptions{Credentials: creds})
	if err != nil {
		return "", false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer func() {
		cancel()
		err = errors.Join(err, d.Run(ctx)) // ends what stands
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+nodePath, nil)
	if err != nil {
		return "", false, err
	}
	resp, err := d.Client().Do(req)
	if no, refused := errors.AsType[*link.Refusal](err); refused {
		return externalID(cfg), no.Reason == link.NotAllowed || no.Reason == link.OwnID, nil
	}
	if err != nil {
		return "", false, nil // nobody is there
	}
	defer resp.Body.Close()
	var who description
	if resp.StatusCode == http.StatusOK {
		err = json.NewDecoder(io.LimitReader(resp.Body, maxPeerAnswer)).Decode(&who)
	}
	if resp.StatusCode != http.StatusOK || err != nil {
		return "", false, fmt.Errorf("a node answers at %s and does not say whether it is of a cluster (%s): begin a cluster when it does, or is gone", address, resp.Status)
	}
	return who.Status.Cluster, who.Status.Voters > 0, nil
}

func (a *app) joinCommand() *cobra.Command {
	nonvoter := false
	c := &cobra.Command{
		Use:   "join [TOKEN]",
		Short: "Let this node join a cluster",
		Long: `Gets this node a certificate of the cluster that made the token (` + "`rota cluster token`" + ` there), and the addresses of its nodes. Started
with ` + "`rota run`" + `, it asks to be taken in and has a vote once it has caught up. The token may also stand in the environment, as
` + joinTokenEnv + `, or in a file, as @FILE; an argument can be read by everybody on this machine while the command runs.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := a.clusterConfig(c)
			if err != nil {
				return err
			}
			text, err := a.joinToken(args)
			if err != nil {
				return err
			}
			id, joined, err := join(c.Context(), cfg, text, nonvoter)
			if err != nil {
				return err
			}
			if !joined {
				fmt.Fprintf(a.err, "Node %s is of cluster %s already; the token was not used. Start it with `rota run`. If it was removed from\n"+
					"the cluster: move its data directory %s away, and join again.\n", id.Name, id.Cluster, cfg.Node.DataDir)
				return nil
			}
			fmt.Fprintf(a.err, "Node %s may join cluster %s. Start it with `rota run`; `rota cluster status` shows it come in.\n", id.Name, id.Cluster)
			return nil
		},
	}
	c.Flags().BoolVar(&nonvoter, "nonvoter", false, "probe and answer without a vote, until `rota cluster promote`")
	return c
}

// overheard warns of a token that stands in the arguments of a process that goes on running.
func overheard(log *slog.Logger, token string) {
	if token != "" && !strings.HasPrefix(token, "@") {
		log.Warn("the join token stands in the arguments of this process, where everybody on this machine can read it: give it as @FILE, or as " + joinTokenEnv)
	}
}

// joinToken returns the token that was given, or @FILE.
func (a *app) joinToken(args []string) (string, error) {
	text := a.getenv(joinTokenEnv)
	if len(args) > 0 {
		text = args[0]
	}
	if text == "" {
		return "", usagef("no join token was given: `rota cluster token` on a node of the cluster prints one")
	}
	return text, nil
}

// join gets a node its credentials, and reports whether it did: with those of a cluster in place there is nothing to do.
func join(ctx context.Context, cfg *config.Config, text string, nonvoter bool) (id cluster.Identity, joined bool, err error) {
	dir := cfg.Node.DataDir
	if cfg.Cluster.CertFile != "" {
		return id, false, usagef("cluster.tls says that certificates are made elsewhere, so a token can give none: take cluster.tls out, or start the node with `rota run` and let cluster.join lead it")
	}
	files := link.FilesIn(filepath.Join(dir, linkDir))
	has, err := present(files.Cert)
	if err != nil {
		return id, false, err
	}
	id, err = cluster.ReadIdentity(dir)
	switch {
	case err == nil && has:
		return id, false, nil
	case err == nil:
		return id, false, fmt.Errorf("%s is the data directory of a node that ran without a cluster: what it decided would be lost by joining; "+
			"give this node an empty data directory, or begin the cluster with it (rota cluster bootstrap)", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return id, false, err
	case has: // joining was cut short after the token was used
		creds, err := link.LoadCredentials(link.CredentialOptions{Files: files})
		if err != nil {
			return id, false, err
		}
		me := creds.Identity()
		id = cluster.Identity{Cluster: me.Cluster, Node: me.ID, Name: cfg.Node.Name}
		return id, true, cluster.Join(dir, id)
	}
	token, err := readToken(text)
	if err != nil {
		return id, false, &coded{exitUsage, err}
	}
	if token.Role != link.Node {
		return id, false, usagef("this token is for an agent: use it with `rota agent`")
	}
	address, err := advertised(cfg.Cluster)
	if err != nil {
		return id, false, err
	}
	id = cluster.Identity{Cluster: token.Cluster, Node: cluster.NewID(), Name: cfg.Node.Name}
	got, err := link.Join(ctx, link.JoinOptions{Token: token, ID: id.Node, Name: id.Name, Address: address})
	if err != nil {
		return id, false, err
	}
	h := hosts{Addresses: token.Addresses, Nonvoter: nonvoter}
	for _, m := range got.Members {
		if !slices.Contains(h.Addresses, m.Address) {
			h.Addresses = append(h.Addresses, m.Address)
		}
	}
	if err := os.MkdirAll(filepath.Dir(files.Cert), 0o700); err != nil {
		return id, false, err
	}
	if err := writeHosts(filepath.Join(dir, linkDir, joinFile), h); err != nil {
		return id, false, err
	}
	if err := got.Save(files); err != nil {
		return id, false, err
	}
	return id, true, cluster.Join(dir, id)
}

func present(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func readHosts(path string) (hosts, error) {
	var h hosts
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return h, nil
	case err != nil:
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

func writeHosts(path string, h hosts) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = keep(path, bytes.NewReader(append(b, '\n')))
	return err
}

func (a *app) recoverCommand() *cobra.Command {
	yes := false
	c := &cobra.Command{
		Use:   "recover",
		Short: "Make this node the only one of its cluster, when a majority is gone for good",
		Long: `For the day on which so many nodes are lost for good that no majority can come back. This node, which must be stopped, goes on alone
with all it knows; start it then and let new nodes join. The lost ones must never run again with their data: together they might
still be a majority, and there would be two clusters. They join again with empty data directories. Refused when one of them answers
at the address that this node knows.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.clusterConfig(c)
			if err != nil {
				return err
			}
			id, err := cluster.ReadIdentity(cfg.Node.DataDir)
			if err != nil {
				return fmt.Errorf("there is no node to recover: %w", err)
			}
			if !yes {
				if err := a.confirm(fmt.Sprintf("Node %s will be the only one of cluster %s. The other nodes must never run again with their data.", id.Name, id.Cluster), id.Name); err != nil {
					return err
				}
				if err := a.confirm("Is it certain that no majority of the others can come back, and that none of them runs now?", "certain"); err != nil {
					return err
				}
			}
			address, err := advertised(cfg.Cluster)
			if err != nil {
				return err
			}
			b, err := cluster.Recover(cluster.Options{Dir: cfg.Node.DataDir, Node: cfg.Node.Name, Network: &cluster.Network{Address: address}},
				func(m cluster.Member) error {
					of, found, err := clusterOf(c.Context(), cfg, m.Address)
					if err == nil && found && of == id.Cluster {
						err = fmt.Errorf("%s runs, at %s: with others that are not seen from here it may be a majority, and there would be two clusters; "+
							"mend the way between the nodes, or stop it for good first", m.Label(), m.Address)
					}
					return err
				})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.err, "Node %s is alone in its cluster now, with all events up to %d of %s. Start it with `rota run`.\n",
				id.Name, b.Index, b.At.Format(time.RFC3339))
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Say what is in a saved state",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := cluster.Inspect(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "cluster    %s\nnode       %s\nindex      %d\nterm       %d\nat         %s\nserial     %d\nservices   %d\noverrides  %d\nnodes      %d\n",
				b.Cluster, b.Node, b.Index, cmp.Or(b.Term, 0), b.At.UTC().Format(time.RFC3339), b.Serial, b.Services, b.Overrides, b.Nodes)
			return nil
		},
	}
}
