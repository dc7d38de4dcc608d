package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// ServerOptions wire what a node offers agents. All but Nodes and Log are needed.
type ServerOptions struct {
	// Identify returns the name in the caller's verified certificate, or why the caller is not an agent that may report.
	Identify func(r *http.Request) (name string, err error)
	Targets  func() []rota.Target   // all targets, sorted, the same slice until they change; nil: not known yet
	Changed  func() <-chan struct{} // closed when Targets or Lead may have changed; asked for before them
	Lead     func() string          // a word that changes with the leader; empty: none is known
	Nodes    func() []string        // host:port of the cluster's nodes, the first 64 of which agents are told; nil: they are not
	// Report takes an agent's packed report, or says why not; see RefusalOf. site is what the agent says of itself, and empty when it
	// says nothing; from is the address it came from. The body is the callee's.
	Report func(ctx context.Context, name, site, from string, body []byte) error
	Log    *slog.Logger // nil: silent
}

// Server is what a node offers agents: GET /v1/targets and POST /v1/report. What is in a report is not its business.
type Server struct {
	o     ServerOptions
	log   *slog.Logger
	said  saying
	table atomic.Pointer[table]

	reports, refused atomic.Uint64
}

// ServerStats are counts since the start.
type ServerStats struct {
	Reports uint64 // that were taken
	Refused uint64 // requests that were refused
}

// table is the targets as agents are told them. It is immutable.
type table struct {
	targets     []rota.Target
	fingerprint string
	pace        string
	whole       []byte // the targets in JSON
}

// NewServer returns the handler.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Identify == nil || o.Targets == nil || o.Changed == nil || o.Lead == nil || o.Report == nil {
		return nil, errors.New("agents: Identify, Targets, Changed, Lead and Report are needed")
	}
	if o.Nodes == nil {
		o.Nodes = func() []string { return nil }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, log: o.Log, said: saying{log: o.Log}}, nil
}

// Stats returns the counts.
func (s *Server) Stats() ServerStats { return ServerStats{s.reports.Load(), s.refused.Load()} }

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	name, bad := s.serve(w, r)
	if bad == nil {
		return
	}
	s.refused.Add(1)
	s.said.refused("agent refused", name, r.RemoteAddr, bad)
	bad.Answer(w)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) (name string, bad *Refusal) {
	name, err := s.o.Identify(r)
	if err == nil && name == "" {
		err = errors.New("no name")
	}
	if err != nil {
		return name, refuse(http.StatusForbidden, "%s", rota.CleanReason("%v", err))
	}
	method, do := "", (func(http.ResponseWriter, *http.Request, string) *Refusal)(nil)
	switch r.URL.Path {
	case TargetsPath:
		method, do = http.MethodGet, s.targets
	case ReportPath:
		method, do = http.MethodPost, s.report
	default:
		return name, refuse(http.StatusNotFound, "no such path: %s and %s are", TargetsPath, ReportPath)
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		return name, refuse(http.StatusMethodNotAllowed, "this path knows %s", method)
	}
	return name, do(w, r, name)
}

// now returns the table of the targets in force, or nil while they are not known.
func (s *Server) now() *table {
	ts := s.o.Targets()
	if ts == nil {
		return nil
	}
	old := s.table.Load()
	if old != nil && len(old.targets) == len(ts) && (len(ts) == 0 || &old.targets[0] == &ts[0]) {
		return old
	}
	whole, err := json.Marshal(ts)
	if err != nil {
		s.log.Error("targets cannot be written", "error", err)
		return nil
	}
	t := &table{targets: ts, fingerprint: rota.TableOf(ts).Fingerprint().String(), pace: pace(ts), whole: whole}
	s.table.Store(t)
	return t
}

// pace is a word for which of the targets are lazy; empty: none is.
func pace(ts []rota.Target) string {
	var lazy []rota.TargetID
	for _, t := range ts {
		if t.Lazy {
			lazy = append(lazy, t.ID)
		}
	}
	if lazy == nil {
		return ""
	}
	return rota.NewTable(lazy).Fingerprint().String()
}

// targets answers with the table, at once when the agent knows another one, else when something changes or its wait is over.
func (s *Server) targets(w http.ResponseWriter, r *http.Request, _ string) *Refusal {
	q := r.URL.Query()
	known, knownLead := q.Get("known"), q.Get("lead")
	paced := q.Has("pace") // an agent of an earlier version knows of none
	wait := time.Duration(0)
	if v := q.Get("wait"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return refuse(http.StatusBadRequest, "wait: want a number of seconds")
		}
		wait = min(time.Duration(min(n, 3600))*time.Second, waitForNews)
	}
	// The listener's own limits are for answers that do not wait.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + time.Minute))
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		changed := s.o.Changed()
		t, lead := s.now(), s.o.Lead()
		if t == nil {
			return refuse(http.StatusServiceUnavailable, "the targets are not known here yet; ask another node, or again")
		}
		news := t.fingerprint != known || paced && t.pace != q.Get("pace")
		if !news && lead == knownLead && wait > 0 {
			select {
			case <-r.Context().Done():
				return nil
			case <-changed:
				continue
			case <-over.C:
			}
		}
		nodes := s.o.Nodes()
		head, err := json.Marshal(tableBody{Fingerprint: t.fingerprint, Pace: t.pace, Lead: lead, Nodes: nodes[:min(len(nodes), maxNodes)]})
		if err != nil {
			return refuse(http.StatusInternalServerError, "%v", err)
		}
		w.Header().Set("Content-Type", "application/json")
		if !news {
			_, _ = w.Write(head)
			return nil
		}
		_, _ = w.Write(head[:len(head)-1])
		_, _ = io.WriteString(w, `,"targets":`)
		_, _ = w.Write(t.whole)
		_, _ = io.WriteString(w, "}")
		return nil
	}
}

// maxSite bounds a site's name, in bytes.
const maxSite = 64

func (s *Server) report(w http.ResponseWriter, r *http.Request, name string) *Refusal {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != ReportType {
		return refuse(http.StatusUnsupportedMediaType, "want Content-Type: %s", ReportType)
	}
	if e := r.Header.Get("Content-Encoding"); e != "" {
		return refuse(http.StatusUnsupportedMediaType, "want a body without Content-Encoding")
	}
	if len(r.Header.Values(VantageHeader))+len(r.Header.Values(AgeHeader)) > 0 {
		return refuse(http.StatusForbidden, "only nodes report for others")
	}
	site := r.Header.Get(SiteHeader)
	if len(site) > maxSite || rota.CleanReason("%s", site) != site {
		return refuse(http.StatusBadRequest, "%s: want at most %d printable characters", SiteHeader, maxSite)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rota.MaxPacked))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return refuse(http.StatusRequestEntityTooLarge, "a report has at most %d bytes", rota.MaxPacked)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "the report did not come whole")
	}
	if err := s.o.Report(r.Context(), name, site, r.RemoteAddr, body); err != nil {
		return RefusalOf(err)
	}
	s.reports.Add(1)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
