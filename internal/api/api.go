package api

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rota-dns/rota/internal/rota"
)

// Source shows the newest state. Both methods may be called from anywhere at any time and never block. Changed returns a channel
// that is closed when the State that State returned after that call is no longer the newest: take the channel, then the state.
type Source interface {
	State() *rota.State
	Changed() <-chan struct{}
}

// Options are what a Server is made with. Source and Append are required; what is nil is shown as absent.
type Options struct {
	Source Source

	// Append orders an event and returns it, with its index, once it is applied. It wraps ErrNoLeader when nobody can order.
	Append func(ctx context.Context, e rota.Event) (rota.Event, error)

	// Records returns the newest events after an index, oldest first; with a limit above 0 at most that many of the newest. Indexes
	// have gaps. An event is among them before Source says that the state changed.
	Records func(after uint64, limit int) []Record

	Reports      func() []*rota.Report                       // what this node knows: the newest report of each vantage where it leads, else its own
	VantageStats func() []VantageStat                        // what this node counted of the vantages it heard
	Publishers   func() []PublisherStatus                    // sorted by name
	Plan         PlanFunc                                    // what publishers would write now; reads the DNS
	NameServer   func() NameServer                           // rota's own name server; nil when there is none
	Cluster      func() ClusterStatus                        // nil: this node is in no cluster
	Operator     Operator                                    // changes the cluster; nil: this node runs alone
	Probes       func(id rota.TargetID) (TargetProbes, bool) // what this node remembers of a target
	Config       func() []byte                               // the configuration in force as YAML, secrets hidden
	Reload       func(ctx context.Context) error             // reads the configuration again; the error is for people
	Ready        func() error                                // nil: ready; else what is missing, for people

	// Proof is what is seen from outside; nil: nothing is watched.
	Proof func() Proof
	// Propagation asks every server for a name, and proves gone, when set, gone. It wraps ErrUnseen.
	Propagation func(ctx context.Context, name rota.Name, gone string) ([]Propagation, error)

	// Say brings to the leader what is said of an endpoint; nil: nobody hears it. It wraps ErrNoLeader, ErrSaidBefore, ErrSaidOften, or what
	// rota.State.Said said.
	Say func(ctx context.Context, x rota.Saying) error

	Frozen func() *rota.Freeze                  // this node by itself; nil: it is not
	Freeze func(f rota.Freeze, here bool) error // freezes this node, with nobody's help; with here not for the cluster's sake
	Thaw   func(actor string) error             // ends that; nil error when it was not frozen

	Registry    prometheus.Gatherer // nil: no metrics
	MetricsPath string              // default /metrics

	Socket        string   // path of the unix socket; empty: none
	Listen        string   // host:port; empty: none
	CertFile      string   // PEM; with KeyFile: TLS. Read again when the file changes
	KeyFile       string   //
	Tokens        []Token  //
	AnonymousRead bool     // whoever connects over TCP may look
	AllowedHosts  []string // more names that a Host header may carry; addresses, localhost and the host's own name always may

	Node    string // this node's name
	Version string
	Log     *slog.Logger // default: none

	Now func() time.Time // default time.Now
}

// PlanFunc asks a publisher, or every one when it is not named, what it would write now.
type PlanFunc func(ctx context.Context, publisher string) ([]Plan, error)

// ErrNoLeader says that nobody can order an event now.
var ErrNoLeader = errors.New("no leader can order this now")

// Server is the API. Make one with New, then Listen, then Run.
type Server struct {
	o       Options
	log     *slog.Logger
	mux     *http.ServeMux
	access  map[string]Access // by mux pattern; a pattern without an entry is refused
	openapi []byte
	guard   guard

	started  atomic.Bool     // Ready was nil once
	panics   atomic.Uint64   // requests that panicked
	uploads  map[string]bool // mux patterns whose body is a snapshot
	dissents dissents

	planning chan struct{} // holds one token while a plan is made
	asking   chan struct{} // holds one token while servers are asked for a name
	costly   chan struct{} // holds one token while the cluster is verified, saved or restored
	streams  chan struct{} // one token an open event stream
	closing  chan struct{} // closed when Run begins to stop: streams end
	hosts    pace

	mu        sync.Mutex // guards what follows
	listeners []net.Listener
}

// New makes a server and refuses options that contradict each other.
func New(o Options) (*Server, error) {
	if o.Source == nil || o.Append == nil {
		return nil, errors.New("api: Source and Append are required")
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("api.tls: cert and key are both needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Say == nil {
		o.Say = func(context.Context, rota.Saying) error { return ErrNoLeader }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Records == nil {
		o.Records = func(uint64, int) []Record { return nil }
	}
	if o.Reports == nil {
		o.Reports = func() []*rota.Report { return nil }
	}
	if o.VantageStats == nil {
		o.VantageStats = func() []VantageStat { return nil }
	}
	if o.Publishers == nil {
		o.Publishers = func() []PublisherStatus { return nil }
	}
	if o.Probes == nil {
		o.Probes = func(rota.TargetID) (TargetProbes, bool) { return TargetProbes{}, false }
	}
	o.MetricsPath = cmp.Or(o.MetricsPath, "/metrics")
	g, err := newGuard(o)
	if err != nil {
		return nil, err
	}
	s := &Server{
		o: o, log: o.Log, mux: http.NewServeMux(), access: map[string]Access{}, guard: g,
		uploads: map[string]bool{}, planning: make(chan struct{}, 1), asking: make(chan struct{}, 1), costly: make(chan struct{}, 1), streams: make(chan struct{}, maxStreams), closing: make(chan struct{}),
	}
	a := s.newAPI()
	s.routes(a)
	if s.openapi, err = document(a); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenAPI returns the OpenAPI 3.1 document of the API, in JSON, of a given version of rota.
func OpenAPI(version string) ([]byte, error) {
	s, err := New(Options{
		Source: noSource{}, Version: version,
		Append: func(context.Context, rota.Event) (rota.Event, error) { return rota.Event{}, ErrNoLeader },
	})
	if err != nil {
		return nil, err
	}
	return s.openapi, nil
}

type noSource struct{}

func (noSource) State() *rota.State       { return &rota.State{} }
func (noSource) Changed() <-chan struct{} { return nil }

// Panics returns how many requests were ended by a panic since the start.
func (s *Server) Panics() uint64 { return s.panics.Load() }

// maxStreams bounds the event streams that are open at once.
const maxStreams = 128

// hostNames are the names this machine may be called by in a Host header, besides its addresses.
func hostNames(more []string) []string {
	names := append([]string{"localhost"}, more...)
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	return names
}

func problem(status int, format string, args ...any) error {
	return huma.NewError(status, rota.CleanReason(format, args...))
}
