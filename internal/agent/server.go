package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// ServerOptions wire what a node offers agents. Identify, Targets, Changed and Report are needed.
type ServerOptions struct {
	// Identify returns the name in the caller's verified certificate, or why the caller is not an agent that may report.
	Identify func(r *http.Request) (name string, err error)
	Targets  func() []rota.Target   // all targets, sorted, the same slice until they change; nil: not known yet
	Changed  func() <-chan struct{} // closed when Targets or Lead may have changed; asked for before them
	Lead     func() string          // a word that changes with the leader; nil: never
	// Report takes an agent's report, or says why it could not be handed on; then the agent tries another node. site is what the
	// agent says of itself, and empty when it says nothing. One agent's reports come one after the other.
	Report func(ctx context.Context, site string, r *rota.Report) error
	Log    *slog.Logger // nil: silent
}

// Server is what a node offers agents: GET /v1/targets and POST /v1/report.
//
// A report is whole and replaces the one before. Opinions of targets that are not in force here are refused one by one and counted,
// because agent and node may be some changes apart; so are those in excess. Times that agents give are not believed to be in the
// future, and decide nothing.
type Server struct {
	o     ServerOptions
	log   *slog.Logger
	table atomic.Pointer[table]

	mu     sync.Mutex // guards what follows
	agents map[string]*agentLast
	stats  ServerStats
}

// agentLast is what was last taken of one agent. Its lock is held while a report is taken in.
type agentLast struct {
	mu     sync.Mutex
	report *rota.Report
}

// ServerStats are counts since the start.
type ServerStats struct {
	Reports   uint64 // that were taken
	Refused   uint64 // requests that were refused
	Strangers uint64 // opinions of targets that are not in force
}

// table is the targets as agents are told them. It is immutable.
type table struct {
	targets     []rota.Target
	fingerprint string
	whole       []byte // the targets in JSON
}

// limit bounds a report on the targets, in bytes: nobody has more to say of each than its name, a reason and a little beside.
func (t *table) limit() int64 {
	return min(maxReport, int64(64<<10+2*len(t.whole)+2048*len(t.targets)))
}

// NewServer returns the handler.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Identify == nil || o.Targets == nil || o.Changed == nil || o.Report == nil {
		return nil, errors.New("agents: Identify, Targets, Changed and Report are needed")
	}
	if o.Lead == nil {
		o.Lead = func() string { return "" }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, log: o.Log, agents: map[string]*agentLast{}}, nil
}

// Stats returns the counts.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *Server) count(f func(*ServerStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	name, bad := s.serve(w, r)
	if bad == nil {
		return
	}
	s.count(func(s *ServerStats) { s.Refused++ })
	s.log.Info("agent refused", "agent", rota.CleanReason("%s", name), "from", r.RemoteAddr, "status", bad.status, "why", bad.text)
	if r.Method == http.MethodPost {
		w.Header().Set("Connection", "close") // what is left of a body is nobody's next request
	}
	http.Error(w, bad.text, bad.status)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) (name string, bad *refusal) {
	name, err := s.o.Identify(r)
	if err == nil && name == "" {
		err = errors.New("no name")
	}
	if err != nil {
		return name, refuse(http.StatusForbidden, "%s", rota.CleanReason("%v", err))
	}
	method, do := "", (func(http.ResponseWriter, *http.Request, string) *refusal)(nil)
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
	sum := sha256.Sum256(whole)
	t := &table{targets: ts, fingerprint: hex.EncodeToString(sum[:16]), whole: whole}
	s.table.Store(t)
	return t
}

// targets answers with the table, at once when the agent knows another one, else when something changes or its wait is over.
func (s *Server) targets(w http.ResponseWriter, r *http.Request, _ string) *refusal {
	q := r.URL.Query()
	known, knownLead := q.Get("known"), q.Get("lead")
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
		news := t.fingerprint != known
		if !news && lead == knownLead && wait > 0 {
			select {
			case <-r.Context().Done():
				return nil
			case <-changed:
				continue
			case <-over.C:
			}
		}
		head, err := json.Marshal(tableBody{Fingerprint: t.fingerprint, Lead: lead})
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

func (s *Server) report(w http.ResponseWriter, r *http.Request, name string) *refusal {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "want Content-Type: application/json")
	}
	if e := r.Header.Get("Content-Encoding"); e != "" {
		return refuse(http.StatusUnsupportedMediaType, "want a body without Content-Encoding")
	}
	site := r.Header.Get(SiteHeader)
	if len(site) > maxSite || rota.CleanReason("%s", site) != site {
		return refuse(http.StatusBadRequest, "%s: want at most %d printable characters", SiteHeader, maxSite)
	}
	t := s.now()
	if t == nil {
		return refuse(http.StatusServiceUnavailable, "the targets are not known here yet; try another node")
	}
	a, bad := s.agent(name)
	if bad != nil {
		return bad
	}
	a.mu.Lock()
	last := a.report
	a.mu.Unlock()
	now := time.Now()
	next, strangers, err := readReport(http.MaxBytesReader(w, r.Body, t.limit()), t.targets, last, now)
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return refuse(http.StatusRequestEntityTooLarge, "a report on %d targets has at most %d bytes", len(t.targets), t.limit())
		}
		return refuse(http.StatusBadRequest, "the body is not a report: %s", rota.CleanReason("%v", err))
	}
	if next.Vantage != name {
		return refuse(http.StatusForbidden, "the report names another vantage than the certificate")
	}
	if strangers > 0 {
		s.count(func(s *ServerStats) { s.Strangers += uint64(strangers) })
		s.log.Debug("agent reports on targets that are not in force here", "agent", name, "opinions", strangers)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.report != nil && next.Seq > 1 && next.Seq <= a.report.Seq {
		return refuse(http.StatusConflict, "report %d of %s was taken before this one, which is %d", a.report.Seq, name, next.Seq)
	}
	if err := s.o.Report(r.Context(), site, next); err != nil {
		return refuse(http.StatusServiceUnavailable, "%s", rota.CleanReason("%v", err))
	}
	a.report = next
	s.count(func(s *ServerStats) { s.Reports++ })
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// agent returns what is known of an agent. Identify has let it in, so the names are those that the operator gave certificates.
func (s *Server) agent(name string) (*agentLast, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[name]
	if a == nil {
		if len(s.agents) >= maxNames {
			return nil, refuse(http.StatusServiceUnavailable, "%d agents report already; no more are heard", maxNames)
		}
		a = &agentLast{}
		s.agents[name] = a
	}
	return a, nil
}

// readReport reads a report as it comes in, so that its size in memory is bounded by the targets and not by its sender. Fields that
// are not known are skipped, and opinions that say what they said before are the very same.
func readReport(body io.Reader, ts []rota.Target, last *rota.Report, now time.Time) (r *rota.Report, strangers int, err error) {
	d := json.NewDecoder(body)
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, 0, cmp.Or(err, errors.New("it does not begin with {"))
	}
	fields := map[string]json.RawMessage{}
	var opinions []*rota.Opinion
	seen := false
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, 0, err
		}
		key, _ := k.(string)
		if key == "opinions" {
			if seen {
				return nil, 0, errors.New("opinions stand twice")
			}
			seen = true
			if opinions, strangers, err = readOpinions(d, ts, last, now); err != nil {
				return nil, 0, err
			}
			continue
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, 0, err
		}
		if _, twice := fields[key]; twice || len(fields) >= 64 || len(key)+len(v) > maxRefusal {
			return nil, 0, errors.New("a field stands twice, is too long, or there are too many")
		}
		fields[key] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, 0, errors.New("more follows the report")
	}
	if !seen {
		return nil, 0, errors.New("it holds no opinions")
	}
	head, err := json.Marshal(fields)
	if err != nil {
		return nil, 0, err
	}
	r = &rota.Report{}
	if err := json.Unmarshal(head, r); err != nil {
		return nil, 0, err
	}
	if r.Seq == 0 {
		return nil, 0, errors.New("its number is 0; reports are numbered from 1")
	}
	r.At, r.Abstain, r.Opinions = now, rota.CleanReason("%s", r.Abstain), opinions
	return r, strangers, r.Validate()
}

// readOpinions reads the array of opinions, which is sorted by target. It gives up on one that holds many more than there are targets.
func readOpinions(d *json.Decoder, ts []rota.Target, last *rota.Report, now time.Time) (out []*rota.Opinion, strangers int, err error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, 0, cmp.Or(err, errors.New("opinions: want an array"))
	}
	out = []*rota.Opinion{}
	limit := 2*len(ts) + 1000
	before := rota.TargetID("")
	var lasts []*rota.Opinion
	if last != nil {
		lasts = last.Opinions
	}
	for n := 0; d.More(); n++ {
		if n == limit {
			return nil, 0, fmt.Errorf("opinions: more than %d, and there are %d targets", limit, len(ts))
		}
		var o *rota.Opinion
		if err := d.Decode(&o); err != nil {
			return nil, 0, err
		}
		if o == nil || o.Target <= before {
			return nil, 0, fmt.Errorf("opinions: number %d is missing, without a target, out of order or given twice", n)
		}
		before = o.Target
		for len(ts) > 0 && ts[0].ID < o.Target {
			ts = ts[1:]
		}
		if len(ts) == 0 || ts[0].ID != o.Target {
			strangers++
			continue
		}
		o.Target = ts[0].ID // ours; the copy that came in is not kept
		o.Reason = rota.CleanReason("%s", o.Reason)
		if len(o.Class) > 32 || rota.CleanReason("%s", string(o.Class)) != string(o.Class) {
			o.Class = rota.ClassNone
		}
		future := o.Since.After(now)
		if future {
			o.Since = now
		}
		if !o.Since.IsZero() {
			o.Since = o.Since.Round(0).UTC()
		}
		for len(lasts) > 0 && lasts[0].Target < o.Target {
			lasts = lasts[1:]
		}
		if len(lasts) > 0 && lasts[0].Target == o.Target {
			if was := lasts[0]; future && was.Status == o.Status {
				o.Since = was.Since // not a new moment with each report
			}
			if *lasts[0] == *o {
				o = lasts[0]
			}
		}
		out = append(out, o)
	}
	_, err = d.Token()
	return slices.Clip(out), strangers, err
}
