package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/agent"
	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// What nodes ask of each other over rota-peer/1, beside what agents ask (agent.TargetsPath, agent.ReportPath).
const (
	appendPath  = "/v1/append"  // POST an event: orders it, on the leader
	commandPath = "/v1/cluster" // POST a command: what an operator wants of the cluster, on the leader
	joinPath    = "/v1/join"    // POST a command: a node that waits asks to be taken in, of any node
	nodePath    = "/v1/node"    // GET: who and how the node is
	fitPath     = "/v1/fit"     // GET: whether the node reaches the DNS
	renewPath   = "/v1/renew"   // POST a certificate request: a new certificate

	sayPath      = "/v1/say"      // POST a rota.Saying: what is said of an endpoint, on the leader
	registerPath = "/v1/register" // POST an api.RegisterRequest: an agent's host is there
)

// maxPeerAnswer bounds what is read of a peer's answer, in bytes.
const maxPeerAnswer = 1 << 20

// A failure is why a peer did not do what it was asked. Its kind brings errors that matter over the wire as what they were.
type failure struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// failures are the errors that keep their identity between nodes, those that say most first.
var failures = []struct {
	kind string
	is   error
}{
	{"unreachable", cluster.ErrUnreachable},
	{"no-member", cluster.ErrNoMember},
	{"majority", cluster.ErrMajority},
	{"behind", cluster.ErrBehind},
	{"twins", cluster.ErrTwins},
	{"foreign", cluster.ErrForeign},
	{"too-large", cluster.ErrTooLarge},
	{"conflict", api.ErrConflict},
	{"said-before", api.ErrSaidBefore},
	{"said-often", api.ErrSaidOften},
	{"no-endpoint", rota.ErrNoEndpoint},
	{"no-saying", rota.ErrNoSaying},
	{"not-yours", rota.ErrNotYours},
	{"not-leader", cluster.ErrNotLeader},
	{"no-leader", cluster.ErrNoLeader},
	{"closed", cluster.ErrClosed},
	{"unanswered", cluster.ErrUnanswered},
}

// kindOf returns the kind of an error.
func kindOf(err error) string {
	for _, f := range failures {
		if errors.Is(err, f.is) {
			return f.kind
		}
	}
	return "refused"
}

// errorOf returns the error of a kind; nil of one that says nothing more.
func errorOf(kind string) error {
	for _, f := range failures {
		if f.kind == kind {
			return f.is
		}
	}
	return nil
}

// remoteError is what a peer said, with the error it stands for.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// call asks a member something and waits for the answer. An error of the connection, after which nobody knows whether the peer did it,
// is cluster.ErrUnanswered.
func (w *network) call(ctx context.Context, to, method, path string, in, out any) error {
	var body io.Reader
	encoding := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		b, encoding = packed(b)
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+to+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := w.port.Client().Do(req)
	if err != nil {
		return unanswered(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerAnswer+1))
	switch {
	case err != nil:
		return unanswered(err)
	case len(b) > maxPeerAnswer:
		return fmt.Errorf("%s %s: the answer of %s has more than %d bytes", method, path, to, maxPeerAnswer)
	case resp.StatusCode == http.StatusOK:
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(b, out); err != nil {
			return fmt.Errorf("%s %s: the answer of %s is not understood, it may be of another version: %w", method, path, to, err)
		}
		return nil
	}
	f := failure{}
	if json.Unmarshal(b, &f) != nil || f.Text == "" {
		return unanswered(fmt.Errorf("%s said %s", to, resp.Status))
	}
	return &remoteError{rota.CleanReason("%s", f.Text), errorOf(f.Kind)}
}

// unanswered is an error after which nobody knows whether the peer did what it was asked. The URL in it says nothing to people.
func unanswered(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &remoteError{err.Error(), cluster.ErrUnanswered}
}

// ordered is what became of a forwarded event.
type ordered struct {
	Index uint64 `json:"index"`
}

// forward hands an event to the leader.
func (w *network) forward(ctx context.Context, leader cluster.Member, e rota.Event) (rota.Event, error) {
	var out ordered
	err := w.call(ctx, leader.ID, http.MethodPost, appendPath, e, &out)
	e.Index = out.Index
	if errors.Is(err, cluster.ErrUnanswered) {
		err = fmt.Errorf("%w: %s: %v", cluster.ErrUnanswered, leader.Label(), err)
	}
	return e, err
}

// answer writes what a peer asked for, or why not.
func answer(rw http.ResponseWriter, status int, out any, err error) {
	rw.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(rw).Encode(out)
		return
	}
	f := failure{Kind: kindOf(err), Text: err.Error()}
	if f.Kind == "not-leader" {
		status = http.StatusMisdirectedRequest
	}
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(f)
}

// Bounds of what peers send, in bytes.
const (
	maxForwarded = 256 << 20 // of an event: the configuration of a million endpoints
	maxPacked    = 64 << 20  // of it as it travels
	maxAsked     = 64 << 10  // of everything else
	packAbove    = 4 << 10   // what is larger travels packed
)

// peerAsked makes a handler of a function that takes JSON of at most limit bytes from another node. What this version does not know in
// it is refused: a part that was left out could be the one that mattered.
func peerAsked[In, Out any](limit int64, do func(ctx context.Context, from link.Identity, in In) (Out, error)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		from, ok := link.PeerOf(r.Context())
		if !ok || from.Role != link.Node {
			answer(rw, http.StatusForbidden, nil, errors.New("only nodes may ask this"))
			return
		}
		var in In
		if r.Method != http.MethodGet {
			if status, err := readAsked(rw, r, limit, &in); err != nil {
				answer(rw, status, nil, err)
				return
			}
		}
		out, err := do(r.Context(), from, in)
		answer(rw, http.StatusUnprocessableEntity, out, err)
	}
}

// isMember reports whether a node is one of the cluster: by its id, or by its name where certificates carry no ids.
func (n *node) isMember(who link.Identity) bool {
	return slices.ContainsFunc(n.raft.Members(), func(m cluster.Member) bool {
		return who.ID != "" && m.ID == who.ID || who.ID == "" && who.Name != "" && m.Name == who.Name
	})
}

// readAsked reads the body of a request, and returns with an error which status it is.
func readAsked(rw http.ResponseWriter, r *http.Request, limit int64, in any) (int, error) {
	var body io.Reader = http.MaxBytesReader(rw, r.Body, min(limit, maxPacked))
	switch e := r.Header.Get("Content-Encoding"); e {
	case "":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return http.StatusBadRequest, fmt.Errorf("the request cannot be unpacked: %w", err)
		}
		body = http.MaxBytesReader(rw, io.NopCloser(z), limit)
	default:
		return http.StatusUnsupportedMediaType, errors.New("the request is packed in a way that this version does not know")
	}
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(in)
	if err == nil {
		if _, more := d.Token(); more == nil {
			err = errors.New("something follows it")
		} else if !errors.Is(more, io.EOF) {
			err = more
		}
	}
	switch _, large := errors.AsType[*http.MaxBytesError](err); {
	case err == nil:
		return 0, nil
	case large:
		return http.StatusRequestEntityTooLarge, fmt.Errorf("%w: a request of more than %d bytes", cluster.ErrTooLarge, limit)
	}
	return http.StatusBadRequest, fmt.Errorf("the request is not understood, upgrade this node before what sent it: %w", err)
}

// packed returns a body as it travels, and its Content-Encoding.
func packed(b []byte) ([]byte, string) {
	if len(b) <= packAbove {
		return b, ""
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b) // a buffer takes everything
	_ = z.Close()
	return out.Bytes(), "gzip"
}

// membersOnly makes sure that who asks is one of the cluster, not only of a good certificate, before anything that it sends is read: who
// waits to be taken in decides nothing.
func (n *node) membersOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		if from, ok := link.PeerOf(r.Context()); ok && from.Role == link.Node && !n.isMember(from) {
			answer(rw, http.StatusForbidden, nil, fmt.Errorf("%s is not one of the cluster yet", from))
			return
		}
		h(rw, r)
	}
}

// serve answers peers from now on.
func (n *node) serve() error {
	agents, err := agent.NewServer(agent.ServerOptions{
		Identify: identify, Targets: n.given,
		Changed: n.ledOrChanged, Lead: n.leadWord, Nodes: n.net.addresses, Report: n.takeReport, Log: n.log.With("room", "agent"),
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(agent.TargetsPath, agents)
	mux.Handle(agent.ReportPath, n.reports(agents))
	mux.HandleFunc("POST "+appendPath, n.membersOnly(peerAsked(maxForwarded, n.appendFor)))
	mux.HandleFunc("POST "+commandPath, n.membersOnly(peerAsked(maxAsked, n.commandFor)))
	mux.HandleFunc("POST "+registerPath, n.registerFor)
	mux.HandleFunc("POST "+sayPath, n.membersOnly(peerAsked(maxAsked, n.sayFor)))
	mux.HandleFunc("POST "+joinPath, peerAsked(maxAsked, n.takeIn))
	mux.HandleFunc("GET "+nodePath, peerAsked(maxAsked, n.describe))
	mux.HandleFunc("GET "+fitPath, n.membersOnly(peerAsked(maxAsked, n.fitFor)))
	if n.net.own {
		mux.Handle("POST "+renewPath, link.RenewHandler(func() (*link.CA, error) { return link.LoadCA(n.net.files) }, n.net.log))
	}
	var h http.Handler = mux
	n.net.serv.Store(&h)
	return nil
}

// given returns the targets for agents: none where nothing is checked, and nil while there is no configuration.
func (n *node) given() []rota.Target {
	st := n.raft.State()
	if ts := st.Targets(); len(ts) > 0 || len(st.Services()) == 0 {
		return ts
	}
	return []rota.Target{}
}

// identify names the agent that asks.
func identify(r *http.Request) (string, error) {
	who, ok := link.PeerOf(r.Context())
	if !ok || who.Role != link.Agent {
		return "", errors.New("this is for agents")
	}
	return who.Name, nil
}

// appendFor orders an event that another node forwards. What only a leader may say is never forwarded, and of nodes each speaks for
// itself alone: who leaves is said by who leads.
func (n *node) appendFor(ctx context.Context, from link.Identity, e rota.Event) (ordered, error) {
	switch e.Kind {
	case rota.EventVerdicts, rota.EventTick, rota.EventLead, rota.EventPublished, rota.EventVantages:
		return ordered{}, fmt.Errorf("%s may not forward %s: only who leads says that", from, e.Kind)
	case rota.EventNodes:
		if slices.ContainsFunc(e.Nodes, func(x rota.Node) bool {
			return x.Gone || from.ID != "" && x.ID != from.ID || from.ID == "" && x.Name != from.Name
		}) {
			return ordered{}, fmt.Errorf("%s may not forward what becomes of other nodes", from)
		}
	}
	e, err := n.raft.AppendHere(ctx, e)
	return ordered{e.Index}, err
}

// description is what a node says of itself to others.
type description struct {
	ID      string         `json:"id"`
	Name    string         `json:"name"`
	Site    string         `json:"site"`
	Version string         `json:"version"`
	Now     time.Time      `json:"now"`
	Expires time.Time      `json:"expires"` // its certificate
	Index   uint64         `json:"index"`   // of the state that Digest is of
	Digest  string         `json:"digest"`
	Status  cluster.Status `json:"status"`
	Failing []string       `json:"failing,omitempty"` // publishers, while it leads
	Offset  time.Duration  `json:"-"`                 // of its clock, as whoever asked saw it
}

// describe says who and how this node is.
func (n *node) describe(ctx context.Context, _ link.Identity, _ struct{}) (description, error) {
	id := n.net.creds.Identity()
	st := n.raft.Status()
	st.Trouble = n.trouble(st)
	if f := n.ownFreeze(); f != nil {
		st.Trouble = append(st.Trouble, "FROZEN: it publishes nothing, and its name server's answers stand, "+f.String()+"; `rota thaw` on it ends that")
	}
	d := description{
		ID: st.NodeID, Name: st.Node, Site: n.net.site, Version: version(), Now: time.Now(), Expires: n.net.creds.Expires(), Status: st,
	}
	if st.Leading {
		d.Failing = n.failing()
	}
	d.ID = cmp.Or(d.ID, id.ID)
	var err error
	d.Index, d.Digest, err = n.raft.Digest(ctx, 0)
	return d, err
}
