package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// station is a cluster as an agent sees it: nodes with a port each, which share one leader's table and one list of tokens.
type station struct {
	ca     *link.CA
	tokens *link.Tokens
	posts  []*post

	mu      sync.Mutex // guards what follows
	targets []rota.Target
	changed chan struct{}
	banned  error
	heard   map[string][]*rota.Report // by agent
	sites   map[string]string
	stale   int // reports refused for their targets
	unpack  map[string]*rota.Unpacker
}

// post is one node of it.
type post struct {
	addr string
	stop func()
	heard,
	renewals atomic.Int64
}

func newStation(t *testing.T, targets ...rota.Target) *station {
	t.Helper()
	ca, err := link.NewCA("c1")
	if err != nil {
		t.Fatal(err)
	}
	return &station{
		ca: ca, tokens: link.NewTokens("c1", &link.FileTokens{Path: filepath.Join(t.TempDir(), "tokens.json")}),
		targets: targets, changed: make(chan struct{}), heard: map[string][]*rota.Report{}, sites: map[string]string{}, unpack: map[string]*rota.Unpacker{},
	}
}

// node starts a node.
func (s *station) node(t *testing.T) *post {
	t.Helper()
	p := &post{}
	name := fmt.Sprintf("n%d", len(s.posts)+1)
	files := link.FilesIn(t.TempDir())
	if err := s.ca.Issue(files, link.Identity{Cluster: "c1", Role: link.Node, ID: name, Name: name}); err != nil {
		t.Fatal(err)
	}
	creds, err := link.LoadCredentials(link.CredentialOptions{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	reports, err := agent.NewServer(agent.ServerOptions{
		Identify: func(r *http.Request) (string, error) {
			who, ok := link.PeerOf(r.Context())
			if !ok || who.Role != link.Agent {
				return who.Name, errors.New("agents only")
			}
			return who.Name, nil
		},
		Targets: func() []rota.Target { s.mu.Lock(); defer s.mu.Unlock(); return s.targets },
		Changed: func() <-chan struct{} { s.mu.Lock(); defer s.mu.Unlock(); return s.changed },
		Lead:    func() string { return "n1/1" },
		Nodes:   s.addresses,
		Report: func(_ context.Context, name, site, _ string, body []byte) error {
			p.heard.Add(1)
			return s.take(name, site, body)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	join := &link.JoinServer{Tokens: s.tokens, CA: func() (*link.CA, error) { return s.ca, nil }, Members: func() []link.Member {
		var out []link.Member
		for i, a := range s.addresses() {
			out = append(out, link.Member{ID: fmt.Sprintf("n%d", i+1), Address: a})
		}
		return out
	}}
	renew := link.RenewHandler(func() (*link.CA, error) { return s.ca, nil }, quiet)
	mux := http.NewServeMux()
	mux.Handle(agent.TargetsPath, reports)
	mux.Handle(agent.ReportPath, reports)
	mux.Handle(renewPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.renewals.Add(1); renew.ServeHTTP(w, r) }))
	port, err := link.NewPort(link.Options{
		DialerOptions: link.DialerOptions{Credentials: creds, Log: quiet, Allowed: func(link.Identity) error { s.mu.Lock(); defer s.mu.Unlock(); return s.banned }},
		Listen:        "127.0.0.1:0", Peer: mux, Join: join.Handler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := port.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.addr = port.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- port.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts = append(s.posts, p)
	return p
}

func (s *station) addresses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, p := range s.posts {
		out = append(out, p.addr)
	}
	return out
}

// take is what the leader does with a report.
func (s *station) take(name, site string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unpack[name] == nil {
		s.unpack[name] = &rota.Unpacker{}
	}
	r, err := s.unpack[name].Unpack(rota.TableOf(s.targets), body, time.Now())
	if err != nil {
		s.stale++
		return refusalOf(err)
	}
	if r.Vantage != name {
		return refusalOf(cluster.ErrName)
	}
	s.heard[name], s.sites[name] = append(s.heard[name], r), site
	return nil
}

// last returns what an agent said last of all targets, and how often it spoke.
func (s *station) last(name string) (statuses string, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs := s.heard[name]
	if len(rs) == 0 {
		return "", 0
	}
	var out []string
	for _, o := range rs[len(rs)-1].Opinions {
		out = append(out, o.Status.String())
	}
	return strings.Join(out, " "), len(rs)
}

// set changes the targets without a word to those who wait.
func (s *station) set(ts ...rota.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets = ts
}

func (s *station) token(t *testing.T, role link.Role) link.Token {
	t.Helper()
	k, err := s.tokens.Issue(t.Context(), link.TokenRequest{Role: role, Addresses: s.addresses(), Pin: s.ca.Pin()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// noted is a writer that many may use.
type noted struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *noted) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(b)
}

func (n *noted) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

// runAgentVerb runs `rota agent` until stop is called, which returns its exit code.
func runAgentVerb(t *testing.T, env map[string]string, args ...string) (log *noted, ended <-chan struct{}, stop func() int) {
	t.Helper()
	log = &noted{}
	a := &app{out: log, err: log, getenv: func(k string) string { return env[k] }, now: time.Now, version: "v1"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	code := 0
	go func() {
		defer close(done)
		code = a.main(ctx, append([]string{"agent"}, args...))
	}()
	stop = func() int { cancel(); <-done; return code }
	t.Cleanup(func() { stop() })
	return log, done, stop
}

// web is an endpoint to be probed twice a second.
func web(t *testing.T) (ok *atomic.Bool, target rota.Target) {
	t.Helper()
	ok = &atomic.Bool{}
	ok.Store(true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ok.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(srv.Close)
	return ok, often(netip.MustParseAddrPort(srv.Listener.Addr().String()))
}

func often(at netip.AddrPort) rota.Target {
	return rota.NewTarget(at.Addr(), rota.Check{Name: "web", Kind: rota.KindHTTP, Port: at.Port(), Path: "/", Timing: rota.Timing{
		Interval: 500 * time.Millisecond, FastInterval: 100 * time.Millisecond, Timeout: 5 * time.Second, Fall: 1, Rise: 1, OK: 1,
	}})
}

func TestAgentJoinsAndReports(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	ok, target := web(t)
	s := newStation(t, target)
	first := s.node(t)
	token := s.token(t, link.Agent)
	dir := filepath.Join(t.TempDir(), "agent")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Reveal()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	says := func(want string) func() bool {
		return func() bool { got, _ := s.last("edge"); return got == want }
	}
	log, _, stop := runAgentVerb(t, map[string]string{"STATE_DIRECTORY": dir + ":/other"}, "--name", "edge", "--site", "ams", "--join", "@"+file)
	until(t, "up", says("up"))
	second := s.node(t)
	ok.Store(false)
	until(t, "down", says("down"))
	if s.sites["edge"] != "ams" {
		t.Errorf("the site is %q", s.sites["edge"])
	}
	// Other targets that nobody was told of: the leader refuses the report, and the next one fits.
	next := []rota.Target{target, often(netip.MustParseAddrPort("127.0.0.1:9"))}
	slices.SortFunc(next, func(a, b rota.Target) int { return strings.Compare(string(a.ID), string(b.ID)) })
	s.set(next...)
	ok.Store(true)
	until(t, "both targets", func() bool {
		got, _ := s.last("edge")
		return strings.Contains(got, "up") && strings.Contains(got, "down")
	})
	s.mu.Lock()
	if s.stale == 0 || s.stale > 3 {
		t.Errorf("%d reports spoke of other targets", s.stale)
	}
	s.mu.Unlock()
	// Another agent with the same token, another cluster, another name.
	for _, c := range []struct {
		want string
		env  map[string]string
		args []string
	}{
		{"has been used", map[string]string{"ROTA_JOIN_TOKEN": token.Reveal()}, []string{"--data-dir", t.TempDir(), "--name", "other"}},
		{"is for a node", map[string]string{"ROTA_JOIN_TOKEN": s.token(t, link.Node).Reveal()}, []string{"--data-dir", t.TempDir()}},
		{"--name says other: leave out --name, or remove " + filepath.Join(dir, "link"), nil, []string{"--data-dir", dir, "--name", "other"}},
		{"no certificate in", nil, []string{"--data-dir", t.TempDir()}},
	} {
		log, ended, stop := runAgentVerb(t, c.env, c.args...)
		<-ended
		if code := stop(); code == exitOK || !strings.Contains(log.String(), c.want) {
			t.Errorf("%d: %s, want %q", code, log, c.want)
		}
	}
	// Its node dies: the next is worked for, which the agent knows of from the nodes alone.
	if second.heard.Load() != 0 {
		t.Error("the second node heard something before")
	}
	first.stop()
	ok.Store(false)
	until(t, "a report at the second node", func() bool { return second.heard.Load() > 0 && says("down down")() })
	if code := stop(); code != exitOK {
		t.Errorf("it ended with %d: %s", code, log)
	}
	if strings.Contains(log.String(), token.Reveal()) {
		t.Error("the token is in the log")
	}
	var kept []string
	if b, err := os.ReadFile(filepath.Join(dir, "upstreams.json")); err != nil || json.Unmarshal(b, &kept) != nil || len(kept) != 2 {
		t.Errorf("kept %q, %v", b, err)
	}
	// A later start needs no token, and one that is given again is not used.
	_, had := s.last("edge")
	log, _, stop = runAgentVerb(t, map[string]string{"ROTA_JOIN_TOKEN": "rota1.spent"}, "--data-dir", dir)
	until(t, "reports after the restart", func() bool { _, n := s.last("edge"); return n > had })
	if !strings.Contains(log.String(), "the join token is not used") {
		t.Errorf("not a word of the token: %s", log)
	}
	stop()
	second.stop()
}

// A certificate is renewed at a node; an agent that is not let in any more says what to do and goes on trying.
func TestAgentRenewsAndIsRemoved(t *testing.T) {
	_, target := web(t)
	s := newStation(t, target)
	n := s.node(t)
	dir := t.TempDir()
	log, _, _ := runAgentVerb(t, map[string]string{"ROTA_JOIN_TOKEN": s.token(t, link.Agent).Reveal()}, "--data-dir", dir, "--name", "edge", "--log-format", "json")
	until(t, "reports", func() bool { _, count := s.last("edge"); return count > 0 })
	nodes := &agentNodes{addresses: []string{"127.0.0.1:1", n.addr}}
	creds, err := link.LoadCredentials(link.CredentialOptions{Files: link.FilesIn(filepath.Join(dir, "link"))})
	if err != nil {
		t.Fatal(err)
	}
	d, err := link.NewDialer(link.DialerOptions{Credentials: creds})
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := link.LoadCredentials(link.CredentialOptions{Files: link.FilesIn(filepath.Join(dir, "link")), Renew: func(ctx context.Context, csr []byte) (link.Grant, error) {
		return nodes.renew(ctx, d.Client(), csr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := renewed.Renew(t.Context()); err != nil || n.renewals.Load() != 1 {
		t.Errorf("%d renewals, %v", n.renewals.Load(), err)
	}
	d.Client().CloseIdleConnections()
	s.mu.Lock()
	s.banned = errors.New("agent edge was removed")
	s.mu.Unlock()
	n.stop() // ends what stands
	again := s.node(t)
	if err := os.WriteFile(filepath.Join(dir, "upstreams.json"), []byte(`["`+again.addr+`"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	log, _, stop := runAgentVerb(t, nil, "--data-dir", dir)
	until(t, "a word on what to do", func() bool {
		return strings.Contains(log.String(), "agent edge was removed") && strings.Contains(log.String(), "remove "+filepath.Join(dir, "link")+" and start the agent with a new join token")
	})
	if code := stop(); code != exitOK {
		t.Errorf("it ended with %d: %s", code, log)
	}
}

// Whoever answers without the CA of the token hears nothing; certificates of another CA are of no use.
func TestAgentWrongCA(t *testing.T) {
	s, other := newStation(t), newStation(t)
	s.node(t)
	other.node(t)
	wrong, err := s.tokens.Issue(t.Context(), link.TokenRequest{Role: link.Agent, Addresses: other.addresses(), Pin: s.ca.Pin()})
	if err != nil {
		t.Fatal(err)
	}
	log, ended, _ := runAgentVerb(t, map[string]string{"ROTA_JOIN_TOKEN": wrong.Reveal()}, "--data-dir", t.TempDir(), "--name", "edge")
	<-ended
	if !strings.Contains(log.String(), "has not the CA that the join token names") {
		t.Errorf("it said %s", log)
	}
	f := link.FilesIn(t.TempDir())
	if err := s.ca.Issue(f, link.Identity{Cluster: "c1", Role: link.Agent, ID: "edge", Name: "edge"}); err != nil {
		t.Fatal(err)
	}
	log, _, stop := runAgentVerb(t, nil, "--cert", f.Cert, "--key", f.Key, "--ca", f.CA, "--upstream", other.addresses()[0])
	until(t, "why the node is not trusted", func() bool { return strings.Contains(log.String(), "not of an authority that is trusted here") })
	if code := stop(); code != exitOK {
		t.Errorf("it ended with %d", code)
	}
	// With a node's certificate nobody is an agent.
	if err := s.ca.Issue(f, link.Identity{Cluster: "c1", Role: link.Node, ID: "n9", Name: "n9"}); err != nil {
		t.Fatal(err)
	}
	log, ended, _ = runAgentVerb(t, nil, "--cert", f.Cert, "--key", f.Key, "--ca", f.CA, "--upstream", s.addresses()[0])
	<-ended
	if !strings.Contains(log.String(), "cannot run as an agent") {
		t.Errorf("it said %s", log)
	}
}

func TestAgentNodes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "upstreams.json")
	for text, want := range map[string]string{"": "unexpected end", "{}": "cannot unmarshal", "[]": "want a list", `["a"]`: "want a list", `["a:1"]`: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := (&agentNodes{path: path}).load()
		if (err == nil) != (want == "") || err != nil && !(strings.Contains(err.Error(), want) && strings.Contains(err.Error(), "--upstream")) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.WriteFile(path, []byte(`["a:1"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &agentNodes{path: path, log: slog.New(slog.DiscardHandler), upstream: func(a string) agent.Upstream { return &agent.HTTPUpstream{Base: a} }}
	if err := n.load(); err != nil {
		t.Fatal(err)
	}
	n.learn([]string{"c:1", "b:1", "c:1"})
	n.learn([]string{"b:1", "/:1"}) // cannot be called
	if got := fmt.Sprint(n.upstreams()); got != "[b:1 c:1]" && got != "[c:1 b:1]" {
		t.Errorf("it knows %s", got)
	}
	before := &n.upstreams()[0]
	n.learn([]string{"c:1", "b:1"})
	if before != &n.upstreams()[0] {
		t.Error("the same nodes in another order are others")
	}
	if b, _ := os.ReadFile(path); string(b) != "[\"b:1\",\"c:1\"]\n" {
		t.Errorf("kept %s", b)
	}
	byHand := &agentNodes{path: path, fixed: true}
	byHand.learn([]string{"d:1"})
	if byHand.addresses != nil {
		t.Error("nodes given by hand were replaced")
	}
}

func TestRefusalOf(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		word   string
	}{
		{cluster.ErrNotLeader, 421, ""},
		{cluster.ErrNoLeader, 503, ""},
		{fmt.Errorf("report of edge: %w", rota.ErrTable), 409, agent.RefusedTable},
		{cluster.ErrReplay, 409, agent.RefusedReplay},
		{cluster.ErrTwice, 409, agent.RefusedTwice},
		{cluster.ErrRate, 429, ""},
		{cluster.ErrVantage, 403, ""},
		{cluster.ErrName, 403, ""},
		{rota.ErrReport, 400, ""},
		{fmt.Errorf("leader: %w", &agent.Refusal{Status: 409, Word: agent.RefusedTwice, Text: "x"}), 409, agent.RefusedTwice},
		{&agent.Refusal{Status: 421, Text: "x"}, 421, ""},
	} {
		if r := refusalOf(c.err); r.Status != c.status || r.Word != c.word || r.Text == "" {
			t.Errorf("%v is %+v", c.err, r)
		}
	}
}

// With --healthd the agent does a healthagent's work, and tells systemd how it goes.
func TestAgentFeedsHealthd(t *testing.T) {
	_, target := web(t)
	cert, files := selfSigned(t, "edge")
	var posted atomic.Pointer[string]
	healthd := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.TLS.PeerCertificates[0].Subject.CommonName != r.Header.Get("X-Agent-Name"):
			w.WriteHeader(http.StatusForbidden)
		case r.Method == http.MethodGet:
			fmt.Fprintf(w, `["tcp://%s"]`, netip.AddrPortFrom(target.Address, target.Check.Port))
		default:
			b, _ := io.ReadAll(r.Body)
			s := string(b)
			posted.Store(&s)
		}
	}))
	healthd.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
	healthd.StartTLS()
	defer healthd.Close()
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	log, _, stop := runAgentVerb(t, nil, "--healthd", healthd.URL, "--cert", files[0], "--key", files[1], "--ca", files[0])
	until(t, "a status", func() bool { s := posted.Load(); return s != nil && strings.Contains(*s, `"Healthy":true`) })
	if code := stop(); code != exitOK {
		t.Errorf("it ended with %d: %s", code, log)
	}
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		b := make([]byte, 100)
		_ = systemd.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := systemd.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("systemd heard %q, want %s: %v", b[:n], want, err)
		}
	}
}

// selfSigned makes a certificate that is its own authority, and writes it and its key.
func selfSigned(t *testing.T, name string) (tls.Certificate, [2]string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, x, x, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := [2]string{filepath.Join(dir, "a.crt"), filepath.Join(dir, "a.key")}
	for i, b := range []*pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(files[i], pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, files
}

// Agents do not all begin with the same node, unless somebody says with which.
func TestAgentsBeginAnywhere(t *testing.T) {
	given := []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"}
	first := map[string]int{}
	for i := range 300 {
		n := &agentNodes{fixed: i%3 == 0, upstream: func(a string) agent.Upstream { return &agent.HTTPUpstream{Base: a} }}
		n.replace(given)
		all := n.upstreams()
		var got []string
		for _, u := range all {
			got = append(got, u.String())
		}
		if n.fixed && !slices.Equal(got, given) || !slices.Equal(slices.Sorted(slices.Values(got)), given) {
			t.Fatal(got)
		}
		if !n.fixed {
			first[got[0]]++
		}
	}
	if len(first) != len(given) {
		t.Errorf("they begin with %v", first)
	}
}
