package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/rota-dns/rota/internal/rota"
)

// agentHeader carries the name of a healthagent on every request.
const agentHeader = "X-Agent-Name"

// Bounds of Healthd. Those of time and of the body are healthd's own.
const (
	maxPost     = 1_000_000 // bytes of a body
	ioTimeout   = 10 * time.Second
	idleTimeout = 2 * time.Minute
	maxHeader   = 32 << 10
	maxConns    = 256
	stopTimeout = 5 * time.Second
	maxNames    = 1024 // agents that can be accepted
)

// HealthdOptions say who may report and what is done with it. Accept, Targets and Report are needed, TLS and Listen only by Listen.
// The functions are called by many goroutines and must return at once.
type HealthdOptions struct {
	Listen  string               // address of the listener, such as :3443
	TLS     Files                // server certificate and key, and the CA of the agents
	Accept  func() []string      // names of healthagents that may report, as in their certificates
	Nodes   func() []string      // names of nodes: no agent may bear one, even if it is accepted; nil: none
	Targets func() []rota.Target // all targets, the same slice until they change; nil: not known yet
	Report  func(r *rota.Report) // takes an agent's report, each once; one agent's reports come one after the other
	Log     *slog.Logger         // nil: silent
}

// Healthd serves NectGmbH's healthagents as healthd does: GET gives the monitors, POST takes the statuses, on any path, over TLS with
// a client certificate that carries the agent's name.
//
// A POST is an agent's whole word: it replaces what the agent said before, and a target it leaves out, or has not checked yet, is
// unknown from then on. Nothing else is a report: GETs, refused bodies and silence leave the last one as it is, with the time it came
// in by this machine's clock, and whoever judges lets it age. Statuses are read in the light of the list that this process gave the
// agent last; one of an address and port that is not in it is refused and counted, and so is all that an agent says before it has
// asked for the list, since a status does not tell what was asked.
//
// A healthagent does not number what it says, and turns to another node and back as it likes. So each POST is an incarnation of its
// own, by the time it came in: reports that came in at different nodes overtake each other as they should, as far as the nodes'
// clocks agree.
type Healthd struct {
	// Immutable.
	o     HealthdOptions
	log   *slog.Logger
	said  saying
	files *reloading // nil until Listen

	table atomic.Pointer[monitors]

	mu       sync.Mutex // guards what follows
	agents   map[string]*reporter
	stats    HealthdStats
	listener net.Listener
}

// reporter is what is known of one healthagent. Its lock is held while a POST is taken in, so that one agent costs one body at a time.
type reporter struct {
	mu     sync.Mutex
	given  *monitors // nil: it has not asked yet
	report atomic.Pointer[rota.Report]
	warned bool
}

// HealthdStats are counts since the start.
type HealthdStats struct {
	Reports   uint64 // POSTs that were taken
	Lists     uint64 // GETs that were answered
	Refused   uint64 // requests that were refused
	Strangers uint64 // statuses of an address and port that the agent was not given
}

// NewHealthd returns a Healthd. It serves as a handler at once; for a listener of its own, call Listen and Run.
func NewHealthd(o HealthdOptions) (*Healthd, error) {
	if o.Accept == nil || o.Targets == nil || o.Report == nil {
		return nil, errors.New("healthd: Accept, Targets and Report are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Nodes == nil {
		o.Nodes = func() []string { return nil }
	}
	return &Healthd{o: o, log: o.Log, said: saying{log: o.Log}, agents: map[string]*reporter{}}, nil
}

// Listen reads the certificates and binds the address. It comes before Run.
func (h *Healthd) Listen(ctx context.Context) error {
	const key = "vantage.agents.healthagent"
	files, err := newReloading(h.o.TLS, h.log)
	if err != nil {
		return fmt.Errorf("%s.tls: %w", key, err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", h.o.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s.listen %s: address in use: another program, or another rota, has it; choose another port", key, h.o.Listen)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s.listen %s: not allowed: choose a port of 1024 or above, or give rota CAP_NET_BIND_SERVICE", key, h.o.Listen)
	case err != nil:
		return fmt.Errorf("%s.listen: %w", key, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listener != nil {
		return errors.Join(fmt.Errorf("%s: listens already", key), l.Close())
	}
	h.files = files
	h.listener = tls.NewListener(netutil.LimitListener(l, maxConns), files.server())
	return nil
}

// Addr returns the address that Listen bound, or nil.
func (h *Healthd) Addr() net.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listener == nil {
		return nil
	}
	return h.listener.Addr()
}

// Run serves what Listen bound until ctx ends, then lets the requests in flight end. It owns every goroutine.
func (h *Healthd) Run(ctx context.Context) error {
	h.mu.Lock()
	l := h.listener
	h.mu.Unlock()
	if l == nil {
		return errors.New("healthd: Listen comes before Run")
	}
	srv := &http.Server{
		Handler:     h,
		ReadTimeout: ioTimeout, ReadHeaderTimeout: ioTimeout, WriteTimeout: ioTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("healthd: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			_ = srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// Reports returns the last report of each accepted agent, sorted by name, with the time it came in. A new leader is told these; a
// leader that has them already must not take them for newer ones.
func (h *Healthd) Reports() []*rota.Report {
	accepted := h.o.Accept()
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*rota.Report
	for name, a := range h.agents {
		if r := a.report.Load(); r != nil && slices.Contains(accepted, name) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *rota.Report) int { return cmp.Compare(a.Vantage, b.Vantage) })
	return out
}

// Stats returns the counts.
func (h *Healthd) Stats() HealthdStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats
}

// LeftOut lists the targets that no healthagent is asked about, with why, sorted.
func (h *Healthd) LeftOut() []LeftOut {
	m := h.monitors()
	if m == nil {
		return nil
	}
	return slices.Clone(m.leftOut)
}

// monitors returns the table of the targets as they are now, or nil while they are not known.
func (h *Healthd) monitors() *monitors {
	ts := h.o.Targets()
	if ts == nil {
		return nil
	}
	old := h.table.Load()
	if old.madeOf(ts) {
		return old
	}
	m := newMonitors(ts)
	if old != nil && old.same(m) {
		m = &monitors{targets: ts, entries: old.entries, places: old.places, body: old.body, leftOut: old.leftOut}
	} else if len(m.leftOut) > 0 {
		h.log.Warn("healthagents are not asked about every target", "targets", len(m.entries), "left_out", len(m.leftOut),
			"first", m.leftOut[0].Target, "why", m.leftOut[0].Why)
	}
	h.table.Store(m)
	return m
}

// same reports whether both tables hold the same targets.
func (m *monitors) same(o *monitors) bool {
	return slices.EqualFunc(m.entries, o.entries, func(a, b entry) bool { return a.id == b.id && *a.mute == *b.mute })
}

// ServeHTTP serves one request.
func (h *Healthd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name, err := h.identify(r)
	if err == nil {
		switch r.Method {
		case http.MethodGet:
			err = h.get(w, name)
		case http.MethodPost:
			err = h.post(w, r, name)
		default:
			err = refuse(http.StatusBadRequest, "method not allowed here: GET or POST")
		}
	}
	if err == nil {
		return
	}
	h.count(func(s *HealthdStats) { s.Refused++ })
	h.said.refused("healthagent refused", name, r.RemoteAddr, err)
	err.Answer(w)
}

func (h *Healthd) count(f func(*HealthdStats)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.stats)
}

// identify returns the agent's name: what the header says, if the certificate says so too and the configuration accepts it. The name
// in an error has been cleaned for the log.
func (h *Healthd) identify(r *http.Request) (string, *Refusal) {
	names := r.Header.Values(agentHeader)
	if len(names) != 1 || names[0] == "" {
		return "", refuse(http.StatusBadRequest, "want one header %s", agentHeader)
	}
	name := names[0]
	clean := rota.CleanReason("%s", name)
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return clean, refuse(http.StatusForbidden, "no verified client certificate")
	}
	cert := r.TLS.PeerCertificates[0]
	if err := h.verify(r.TLS.PeerCertificates); err != nil {
		return clean, refuse(http.StatusForbidden, "the certificate is no longer good: %v", err)
	}
	switch {
	case cert.Subject.CommonName != name && !slices.Contains(cert.DNSNames, name):
		return clean, refuse(http.StatusForbidden, "the certificate does not carry this name, neither as common name nor as DNS name")
	case slices.Contains(h.o.Nodes(), name):
		return clean, refuse(http.StatusForbidden, "this is the name of a node; give the agent another one")
	case !slices.Contains(h.o.Accept(), name):
		return clean, refuse(http.StatusForbidden, "this name is not accepted; add it to vantage.agents.accept")
	}
	return name, nil
}

// verify looks at a certificate again: a connection can outlive it, and the CA that signed it.
func (h *Healthd) verify(certs []*x509.Certificate) error {
	now := time.Now()
	if now.After(certs[0].NotAfter) {
		return errors.New("it has expired")
	}
	h.mu.Lock()
	files := h.files
	h.mu.Unlock()
	if files == nil {
		return nil
	}
	more := x509.NewCertPool()
	for _, c := range certs[1:] {
		more.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: files.get().ca, Intermediates: more, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// agent returns what is known of an accepted agent.
func (h *Healthd) agent(name string) (*reporter, *Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.agents[name]; a != nil {
		return a, nil
	}
	if len(h.agents) >= maxNames {
		accepted := h.o.Accept()
		for n := range h.agents {
			if !slices.Contains(accepted, n) {
				delete(h.agents, n)
			}
		}
		if len(h.agents) >= maxNames {
			return nil, refuse(http.StatusInternalServerError, "%d agents report already; no more are heard", maxNames)
		}
	}
	a := &reporter{}
	h.agents[name] = a
	return a, nil
}

// get gives the list. An agent that is given another list rebuilds its checks, so the same targets are the same bytes.
func (h *Healthd) get(w http.ResponseWriter, name string) *Refusal {
	m := h.monitors()
	if m == nil {
		return refuse(http.StatusInternalServerError, "the targets are not known yet; ask again")
	}
	a, bad := h.agent(name)
	if bad != nil {
		return bad
	}
	a.mu.Lock()
	if a.given == nil {
		h.log.Info("healthagent asks for its monitors", "agent", name, "bytes", len(m.body))
	}
	a.given = m
	a.mu.Unlock()
	h.count(func(s *HealthdStats) { s.Lists++ })
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
	_, _ = w.Write(m.body)
	return nil
}

func (h *Healthd) post(w http.ResponseWriter, r *http.Request, name string) *Refusal {
	if r.ContentLength <= 0 || r.ContentLength > maxPost {
		return refuse(http.StatusBadRequest, "want a Content-Length of 1 to %d", maxPost)
	}
	var body bytes.Buffer // grows as the body comes in: a slow one holds no more than it has sent
	if _, err := io.CopyN(&body, r.Body, r.ContentLength); err != nil {
		return refuse(http.StatusBadRequest, "the body ends early")
	}
	m := h.monitors()
	if m == nil {
		return refuse(http.StatusInternalServerError, "the targets are not known yet")
	}
	a, bad := h.agent(name)
	if bad != nil {
		return bad
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.given == nil {
		return refuse(http.StatusInternalServerError, "ask for the monitors first: this process does not know what was checked")
	}
	said, strangers, err := readStatuses(body.Bytes(), a.given.places)
	if err != nil {
		return refuse(http.StatusBadRequest, "the body is not an array of statuses: %s", rota.CleanReason("%v", err))
	}
	h.count(func(s *HealthdStats) { s.Reports++; s.Strangers += uint64(strangers) })
	if strangers > 0 != a.warned {
		a.warned = strangers > 0
		if a.warned {
			h.log.Warn("healthagent reports what it was not asked; that is refused", "agent", name, "statuses", strangers)
		}
	}
	last := a.report.Load()
	now := time.Now()
	report := &rota.Report{
		Vantage: name, Incarnation: uint64(now.UnixNano()), Seq: 1, Sent: now, At: now, Opinions: m.opine(a.given, said, last, now.Round(0).UTC()),
	}
	if last != nil {
		report.Incarnation, report.Seq = max(report.Incarnation, last.Incarnation+1), last.Seq+1
	}
	a.report.Store(report)
	h.o.Report(report)
	return nil
}

// readStatuses reads the body of a POST, one status at a time, and sorts them by place. Statuses of other places are counted only.
func readStatuses(body []byte, places map[netip.AddrPort]place) (said map[netip.AddrPort]*heard, strangers int, err error) {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, 0, cmp.Or(err, errors.New("it does not begin with ["))
	}
	said = make(map[netip.AddrPort]*heard, len(places))
	for d.More() {
		var s *status
		if err := d.Decode(&s); err != nil {
			return nil, 0, err
		}
		if s == nil {
			return nil, 0, errors.New("null is no status")
		}
		if s.IP == "" {
			continue // not checked yet
		}
		addr, err := netip.ParseAddr(s.IP)
		if err != nil || s.Port < 1 || s.Port > 65535 {
			strangers++
			continue
		}
		at := netip.AddrPortFrom(addr, uint16(s.Port))
		if _, ok := places[at]; !ok {
			strangers++
			continue
		}
		s.Message = strings.ToValidUTF8(s.Message[:min(len(s.Message), 4*rota.MaxReason)], "?")
		if said[at] == nil {
			said[at] = &heard{}
		}
		said[at].add(*s)
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, 0, errors.New("more follows the array")
	}
	return said, strangers, nil
}
