package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/clock"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// maxTokenFile bounds what is read of a file with a join token, in bytes.
const maxTokenFile = 16 << 10

// agentFlags are those of `rota agent`.
type agentFlags struct {
	dataDir, name, site, join string
	upstreams, healthds       []string
	files                     agent.Files
	cluster                   string
	logLevel, logFormat       string
	logFile                   string
	secrets                   string // a directory

	execDir execDir // of programs for exec checks

	register bool
	host     registerFlags // of its registration: addresses, device and discover
}

func (a *app) agentCommand() *cobra.Command {
	var o agentFlags
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run an agent: check what the nodes say, and report to them",
		Long: `Fetches from a node what is to be checked, checks it from here, and reports: a vantage that has no vote in raft, answers no
queries and writes to no DNS. When its node is gone it turns to the next.

The first start needs a join token, which ` + "`rota cluster token --agent NAME`" + ` makes on a node. It is best given in a file
(--join @FILE) or in the environment (ROTA_JOIN_TOKEN), since the arguments of a process can be seen by everyone on the machine.
The agent then has a certificate of its own in the data directory, which it keeps up to date, and needs no token any more.

With --register it also keeps this host in the DNS, as ` + "`rota register`" + ` puts it there once.

What checks send to endpoints as a password, a token or a certificate is read here only from files in --secrets, and from variables
and systemd credentials named ROTA_SECRET_…; a check that names anything else is unknown from here.

Checks of type exec run no program unless --exec-dir names a directory: then those that lie in it. It and they have to belong to root or
to the user whom the agent runs as, and nobody else may write there.

With --healthd it works for an existing healthd of NectGmbH instead, as their healthagent does.`,
		Example: `  rota agent --site ams --join @/run/credentials/rota-agent/token
  rota agent --healthd https://10.0.0.1 --cert agent.crt --key agent.key --ca healthd-ca.crt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.agent(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.dataDir, "data-dir", "", "where the certificate and the nodes' addresses are kept (default $STATE_DIRECTORY, else rota-agent-data)")
	f.StringVar(&o.name, "name", "", "name of this vantage (default as in its certificate, at first the host's name)")
	f.StringVar(&o.site, "site", "", "where it stands, for quorums by sites (default as configured on the nodes)")
	f.StringVar(&o.join, "join", "", "join token, or @FILE with it; better than as an argument (env ROTA_JOIN_TOKEN, @FILE there too)")
	f.StringArrayVar(&o.upstreams, "upstream", nil, "cluster port of a node, HOST:PORT; may be given again (default those the cluster has)")
	f.StringVar(&o.files.Cert, "cert", "", "certificate that was made elsewhere")
	f.StringVar(&o.files.Key, "key", "", "its key")
	f.StringVar(&o.files.CA, "ca", "", "who signs the other side's certificates")
	f.StringVar(&o.cluster, "cluster", "", "id of the cluster, for certificates without a rota:// name")
	f.StringArrayVar(&o.healthds, "healthd", nil, "URL of a healthd to work for; may be given again")
	f.StringVar(&o.secrets, "secrets", "", "directory of the secrets and certificates that checks name (auth, client_cert, ca); read as the nodes name them")
	f.StringVar((*string)(&o.execDir), "exec-dir", "", "run the programs of this directory for exec checks, with the arguments that the nodes say (default none)")
	f.BoolVar(&o.register, "register", false, "register this host, which has the agent's name, and keep it registered (discover: type: register on the nodes)")
	f.StringArrayVar(&o.host.addresses, "address", nil, "with --register: an address of the host; may be given again (default those on the way to the nodes)")
	f.StringVar(&o.host.device, "interface", "", "with --register: take the addresses of this interface")
	f.StringVar(&o.host.discover, "discover", "", "with --register: name of the block with `type: register`, when there are several")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "auto", "auto, terminal, json or journald")
	f.StringVar(&o.logFile, "log-file", "", "log to this file; SIGHUP opens it again")
	return c
}

// check says what is wrong with the flags.
func (o agentFlags) check() error {
	external := o.files.Cert != "" || o.files.Key != "" || o.files.CA != ""
	switch {
	case external && (o.files.Cert == "" || o.files.Key == "" || o.files.CA == ""):
		return usagef("--cert, --key and --ca go together")
	case len(o.healthds) > 0 && !external:
		return usagef("--healthd wants --cert, --key and --ca: healthd knows its agents by certificates that were made elsewhere")
	case len(o.healthds) > 0 && (len(o.upstreams) > 0 || o.join != "" || o.site != "" || o.cluster != ""):
		return usagef("--healthd is for an agent that works for healthd alone: leave out --upstream, --join, --site and --cluster")
	case len(o.healthds) == 0 && external && o.join != "":
		return usagef("--join has certificates made, and --cert names one that is there: leave out one of them")
	case len(o.healthds) == 0 && external && len(o.upstreams) == 0:
		return usagef("with --cert say which nodes to work for: --upstream HOST:PORT")
	case !o.register && (len(o.host.addresses) > 0 || o.host.device != "" || o.host.discover != ""):
		return usagef("--address, --interface and --discover are for --register")
	case o.secrets != "" && !filepath.IsAbs(o.secrets):
		return usagef("--secrets %q: want an absolute path, as checks have", o.secrets)
	case o.register && len(o.healthds) > 0:
		return usagef("--register is for rota's nodes: healthd takes no registrations")
	case o.cluster != "" && !external:
		return usagef("--cluster is for --cert: a join token says which cluster it is for")
	case len(o.site) > 64 || rota.CleanReason("%s", o.site) != o.site:
		return usagef("--site: want at most 64 printable characters")
	}
	if o.execDir != "" {
		if err := o.execDir.check(); err != nil {
			return usagef("--exec-dir: %v", err)
		}
	}
	for _, u := range o.upstreams {
		if !hostPort(u) {
			return usagef("--upstream %q: want HOST:PORT, such as 10.0.0.1:3648", u)
		}
	}
	for _, h := range o.healthds {
		if u, err := url.Parse(h); err != nil || u.Scheme != "https" || u.Host == "" {
			return usagef("--healthd %q: want a URL such as https://10.0.0.1", h)
		}
	}
	return nil
}

// hostPort reports whether s is a host and a port that can be called.
func hostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && bad == nil && n > 0 && host != "" && !strings.ContainsAny(host, "/@?# ")
}

// agent runs an agent until ctx ends.
func (a *app) agent(ctx context.Context, o agentFlags) error {
	if err := o.check(); err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return usagef("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	log, logs, err := newLogger(level, o.logFormat, o.logFile, a.err)
	if err != nil {
		return err
	}
	defer logs.Close()
	var w *agentWork
	if len(o.healthds) > 0 {
		w, err = feeding(o, log)
	} else {
		w, err = a.joined(ctx, o, log)
	}
	if err != nil {
		return err
	}
	prober := probe.New(probe.Options{
		Vantage: w.name, Log: log.With("room", "probe"), Secret: agentPlaces(o.secrets), Exec: execs(o.execDir.find),
	})
	ready := make(chan struct{})
	doubts := newDoubtingProber(prober, log.With("room", "vantage"), sync.OnceFunc(func() { close(ready) }))
	works := agent.Agent{Name: w.name, Prober: doubts, Upstreams: w.upstreams, Log: log.With("room", "agent")}
	parts := append(w.parts,
		part{"log", func(ctx context.Context) error { return reopening(ctx, log, logs) }},
		part{"prober", prober.Run},
		part{"doubt", doubts.run},
		part{"agent", works.Run},
		part{"systemd", func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return nil
			case <-ready:
			}
			return tellSystemd(ctx, func() bool { return true })
		}},
	)
	log.Info("agent starts", "version", version(), "name", w.name, "site", o.site, "upstreams", fmt.Sprint(w.upstreams()))
	err = runParts(ctx, log, parts)
	log.Info("agent stopped")
	return err
}

// agentWork is for whom an agent works, and what runs beside it for that.
type agentWork struct {
	name      string
	upstreams func() []agent.Upstream
	parts     []part
}

// doubtingProber is an agent's prober, which says in its reports why they do not count when the agent cannot trust its eyes.
type doubtingProber struct {
	*probe.Prober
	doubt   *doubter
	first   func() // called when there are targets for the first time
	watched atomic.Pointer[[]rota.Target]
	changed broadcast // fired when the report may have changed
}

func newDoubtingProber(p *probe.Prober, log *slog.Logger, first func()) *doubtingProber {
	d := &doubtingProber{Prober: p, first: first}
	d.doubt = &doubter{clocks: clock.New().Look, log: log, targets: func() []rota.Target {
		if ts := d.watched.Load(); ts != nil {
			return *ts
		}
		return nil
	}}
	return d
}

func (d *doubtingProber) Set(ts []rota.Target) {
	d.watched.Store(&ts)
	d.Prober.Set(ts)
	d.first()
}

func (d *doubtingProber) Report() *rota.Report {
	r := *d.Prober.Report()
	r.Abstain = d.doubt.why().text
	return &r
}

func (d *doubtingProber) Changed() <-chan struct{} { return d.changed.wait() }

// run lets the agent doubt itself, by what it cannot see and by its clocks, until ctx ends.
func (d *doubtingProber) run(ctx context.Context) error {
	tick := time.NewTicker(doubtEvery)
	defer tick.Stop()
	for {
		opined, doubted := d.Prober.Changed(), d.doubt.doubted.wait()
		d.doubt.consider(d.doubt.blind(d.Blind()))
		d.changed.fire()
	quiet:
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				d.doubt.consider(d.doubt.blind(d.Blind()))
			case <-opined:
				break quiet
			case <-doubted:
				break quiet
			}
		}
	}
}

// reopening follows a log file that was moved away.
func reopening(ctx context.Context, log *slog.Logger, logs *logOutput) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if err := logs.Reopen(); err != nil {
				log.Error("the log file cannot be opened again; the old one stays in use", "error", err)
			}
		}
	}
}

// feeding has an agent work for healthds.
func feeding(o agentFlags, log *slog.Logger) (*agentWork, error) {
	tls, err := agent.ClientTLS(o.files, log)
	if err != nil {
		return nil, err
	}
	cert, err := tls.GetClientCertificate(nil)
	if err != nil {
		return nil, err
	}
	name, err := nameOr(cmp.Or(o.name, cert.Leaf.Subject.CommonName))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: tls, DisableCompression: true, IdleConnTimeout: 90 * time.Second}
	var all []agent.Upstream
	for _, u := range o.healthds {
		all = append(all, &agent.HealthdClient{Client: &http.Client{Transport: transport}, URL: u, Name: name, Log: log.With("room", "agent")})
	}
	return &agentWork{
		name: name, upstreams: func() []agent.Upstream { return all },
		parts: []part{{"connections", func(ctx context.Context) error {
			<-ctx.Done()
			transport.CloseIdleConnections()
			return nil
		}}},
	}, nil
}

// nameOr is a name, or the host's.
func nameOr(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("this machine does not know its name: give the agent one with --name: %w", err)
	}
	return host, nil
}

// joined has an agent work for a cluster's nodes. Without certificates, it joins first.
func (a *app) joined(ctx context.Context, o agentFlags, log *slog.Logger) (*agentWork, error) {
	nodes := &agentNodes{fixed: len(o.upstreams) > 0, log: log}
	nodes.replace(o.upstreams)
	files := link.Files{Cert: o.files.Cert, Key: o.files.Key, CA: o.files.CA}
	anew := "have a new certificate made"
	if o.files.Cert == "" {
		dir := cmp.Or(o.dataDir, strings.Split(a.getenv("STATE_DIRECTORY"), ":")[0], "rota-agent-data")
		nodes.path = filepath.Join(dir, "upstreams.json")
		files = link.FilesIn(filepath.Join(dir, "link"))
		anew = fmt.Sprintf("remove %s and start the agent with a new join token", filepath.Dir(files.Cert))
		if err := a.joinFirst(ctx, o, files, nodes, log); err != nil {
			return nil, err
		}
	}
	var client http.Client // made below of the credentials that it renews
	var mapping *link.Mapping
	renew := func(ctx context.Context, csr []byte) (link.Grant, error) { return nodes.renew(ctx, &client, csr) }
	if o.files.Cert != "" {
		renew = nil
		if o.cluster != "" {
			mapping = &link.Mapping{Cluster: o.cluster}
		}
	}
	creds, err := link.LoadCredentials(link.CredentialOptions{Files: files, External: mapping, Renew: renew, Log: log.With("room", "link")})
	if err != nil {
		return nil, fmt.Errorf("%w; if that cannot be set right, %s", err, anew)
	}
	me := creds.Identity()
	switch {
	case me.Role != link.Agent:
		return nil, fmt.Errorf("the certificate is that of %s, which cannot run as an agent: %s", me, anew)
	case o.name != "" && o.name != me.Name:
		return nil, fmt.Errorf("the certificate is that of agent %s, and --name says %s: leave out --name, or %s", me.Name, o.name, anew)
	}
	dialer, err := link.NewDialer(link.DialerOptions{Credentials: creds, Log: log.With("room", "link")})
	if err != nil {
		return nil, err
	}
	client = *dialer.Client()
	client.Transport = advising{client.Transport, "ask on a node why (`rota cluster status`); if it was removed and is to come back, " + anew}
	nodes.upstream = func(address string) agent.Upstream {
		return &agent.HTTPUpstream{Client: &client, Base: "https://" + address, Site: o.site, Nodes: nodes.learn}
	}
	if err := nodes.load(); err != nil {
		return nil, err
	}
	w := &agentWork{name: me.Name, upstreams: nodes.upstreams, parts: []part{{"certificate", creds.Run}, {"connections", dialer.Run}}}
	if o.register {
		if _, err := rota.HostLabel(me.Name); err != nil {
			return nil, fmt.Errorf("the host is registered by the agent's name: %w", err)
		}
		says := &announcer{log: log.With("room", "register"), client: &client, nodes: nodes.known, host: me.Name, flags: o.host}
		w.parts = append(w.parts, part{"register", says.run})
	}
	return w, nil
}

// joinFirst joins the cluster of the token unless that has been done before.
func (a *app) joinFirst(ctx context.Context, o agentFlags, files link.Files, nodes *agentNodes, log *slog.Logger) error {
	overheard(log, o.join)
	text := cmp.Or(o.join, a.getenv(joinTokenEnv))
	if _, err := os.Stat(files.Cert); !errors.Is(err, fs.ErrNotExist) {
		if err == nil && text != "" {
			log.Info("this agent has joined before: the join token is not used", "certificate", files.Cert)
		}
		return err
	}
	if text == "" {
		return usagef("no certificate in %s: make a join token on a node with `rota cluster token --agent NAME`, and start the agent with "+
			"--join @FILE or the environment variable ROTA_JOIN_TOKEN", filepath.Dir(files.Cert))
	}
	token, err := readToken(text)
	if err != nil {
		return err
	}
	if token.Role != link.Agent {
		return errors.New("the join token is for a node; for an agent make one with `rota cluster token --agent NAME`")
	}
	name, err := nameOr(o.name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(files.Cert), 0o700); err != nil {
		return err
	}
	joined, err := link.Join(ctx, link.JoinOptions{Token: token, Name: name, Log: log.With("room", "link")})
	if err != nil {
		return err
	}
	if !nodes.fixed {
		var members []string
		for _, m := range joined.Members {
			members = append(members, m.Address)
		}
		if len(members) == 0 {
			members = token.Addresses
		}
		if err := nodes.save(members); err != nil {
			return fmt.Errorf("the agent was let in, and the nodes' addresses cannot be kept: %w", err)
		}
	}
	if err := joined.Save(files); err != nil {
		return fmt.Errorf("the agent was let in, and its certificate cannot be kept: %w", err)
	}
	log.Info("joined", "cluster", joined.Identity.Cluster, "as", joined.Identity.String(), "until", joined.Expires.UTC().Format(time.DateOnly))
	return nil
}

// readToken reads a join token, or the file that @FILE names. No error repeats it.
func readToken(text string) (link.Token, error) {
	if path, ok := strings.CutPrefix(text, "@"); ok {
		f, err := os.Open(path)
		if err != nil {
			return link.Token{}, fmt.Errorf("join token: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
		if err != nil {
			return link.Token{}, fmt.Errorf("join token: %w", err)
		}
		text = string(b)
	}
	return link.ParseToken(text)
}

// agentNodes are the nodes an agent can work for. Which they are it hears from each that it works for, and keeps for the next start.
type agentNodes struct {
	fixed    bool   // they were given by hand
	path     string // of the file; empty: there is none
	upstream func(address string) agent.Upstream
	log      *slog.Logger

	mu        sync.Mutex // guards what follows
	addresses []string
	all       []agent.Upstream
}

// replace puts other addresses in place.
func (n *agentNodes) replace(addresses []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses, n.all = addresses, nil
}

// load reads the file unless the nodes were given by hand.
func (n *agentNodes) load() error {
	if n.fixed {
		return nil
	}
	b, err := os.ReadFile(n.path)
	var addresses []string
	if err == nil {
		err = json.Unmarshal(b, &addresses)
	}
	if err == nil && (len(addresses) == 0 || !allHostPorts(addresses)) {
		err = errors.New("want a list of HOST:PORT")
	}
	if err != nil {
		return fmt.Errorf("the nodes' addresses are not known: %s: %w; give them with --upstream HOST:PORT", n.path, err)
	}
	n.replace(addresses)
	return nil
}

func allHostPorts(all []string) bool {
	return !slices.ContainsFunc(all, func(s string) bool { return !hostPort(s) })
}

func (n *agentNodes) save(addresses []string) error {
	b, err := json.Marshal(addresses)
	if err != nil {
		return err
	}
	_, err = keep(n.path, bytes.NewReader(append(b, '\n')))
	return err
}

// learn takes in where a node says that the nodes are. Their order is nobody's business.
func (n *agentNodes) learn(addresses []string) {
	sorted := slices.Compact(slices.Sorted(slices.Values(addresses)))
	n.mu.Lock()
	same := slices.Equal(sorted, slices.Sorted(slices.Values(n.addresses)))
	n.mu.Unlock()
	if n.fixed || same {
		return
	}
	if !allHostPorts(sorted) {
		n.log.Debug("a node tells addresses that cannot be called", "nodes", sorted)
		return
	}
	n.replace(sorted)
	n.log.Info("the cluster's nodes are others now", "nodes", sorted)
	if err := n.save(sorted); err != nil {
		n.log.Error("the nodes' addresses cannot be kept for the next start", "error", err)
	}
}

// upstreams are the nodes to work for: in the order that they were given by hand, else beginning with any, so that not all agents begin
// with the same.
func (n *agentNodes) upstreams() []agent.Upstream {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all == nil {
		for _, a := range n.addresses {
			n.all = append(n.all, n.upstream(a))
		}
		if !n.fixed && len(n.all) > 0 {
			first := rand.IntN(len(n.all))
			n.all = slices.Concat(n.all[first:], n.all[:first])
		}
	}
	return n.all
}

// known are the addresses of the nodes.
func (n *agentNodes) known() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addresses
}

// renew has the first node that can sign do so.
func (n *agentNodes) renew(ctx context.Context, c *http.Client, csr []byte) (link.Grant, error) {
	var errs []error
	for _, a := range n.known() {
		g, err := link.RequestRenewal(ctx, c, "https://"+a+renewPath, csr)
		if err == nil {
			return g, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", a, err))
	}
	return link.Grant{}, errors.Join(errs...)
}

// advising says what to do when a node does not let the agent in.
type advising struct {
	http.RoundTripper
	advice string
}

func (t advising) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if no, ok := errors.AsType[*link.Refusal](err); ok && no.Reason == link.NotAllowed {
		err = fmt.Errorf("%w; %s", err, t.advice)
	}
	return resp, err
}
