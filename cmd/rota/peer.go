package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
)

// maxPeerAnswer bounds what is read of a peer's answer, in bytes.
const maxPeerAnswer = 80 << 20

// A failure is why a peer did not do what it was asked. Its kind brings errors that matter over the wire as what they were.
type failure struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// failures are the errors that keep their identity between nodes.
var failures = map[string]error{
	"not-leader":  cluster.ErrNotLeader,
	"no-leader":   cluster.ErrNoLeader,
	"closed":      cluster.ErrClosed,
	"unanswered":  cluster.ErrUnanswered,
	"no-member":   cluster.ErrNoMember,
	"majority":    cluster.ErrMajority,
	"unreachable": cluster.ErrUnreachable,
	"behind":      cluster.ErrBehind,
	"twins":       cluster.ErrTwins,
	"foreign":     cluster.ErrForeign,
	"too-large":   cluster.ErrTooLarge,
	"conflict":    api.ErrConflict,
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
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+to+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.port.Client().Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", cluster.ErrUnanswered, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", cluster.ErrUnanswered, err)
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
		return fmt.Errorf("%w: %s said %s", cluster.ErrUnanswered, to, resp.Status)
	}
	return &remoteError{rota.CleanReason("%s", f.Text), failures[f.Kind]}
}

// forward hands an event to the leader.
func (w *network) forward(ctx context.Context, leader cluster.Member, e rota.Event) (rota.Event, error) {
	var out rota.Event
	err := w.call(ctx, leader.ID, http.MethodPost, appendPath, e, &out)
	return out, err
}

// answer writes what a peer asked for, or why not.
func answer(rw http.ResponseWriter, out any, err error) {
	rw.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(rw).Encode(out)
		return
	}
	f := failure{Kind: "refused", Text: err.Error()}
	for kind, is := range failures {
		if errors.Is(err, is) {
			f.Kind = kind
			break
		}
	}
	status := http.StatusUnprocessableEntity
	if f.Kind == "not-leader" {
		status = http.StatusMisdirectedRequest
	}
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(f)
}

// peerAsked makes a handler of a function that takes JSON from another node.
func peerAsked[In, Out any](do func(ctx context.Context, from link.Identity, in In) (Out, error)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		from, ok := link.PeerOf(r.Context())
		if !ok || from.Role != link.Node {
			http.Error(rw, "only nodes may ask this", http.StatusForbidden)
			return
		}
		var in In
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				http.Error(rw, "the request is not understood: another version of rota?", http.StatusBadRequest)
				return
			}
		}
		out, err := do(r.Context(), from, in)
		answer(rw, out, err)
	}
}

// ofMember lets only nodes ask that are in the cluster: one that waits to be taken in has a good certificate, too.
func ofMember[In, Out any](n *node, do func(context.Context, link.Identity, In) (Out, error)) func(context.Context, link.Identity, In) (Out, error) {
	return func(ctx context.Context, from link.Identity, in In) (Out, error) {
		if !n.hasMember(from) {
			var none Out
			return none, fmt.Errorf("%w: %s, as far as this node knows", cluster.ErrNoMember, from)
		}
		return do(ctx, from, in)
	}
}

// hasMember reports whether a node is one of the cluster.
func (n *node) hasMember(who link.Identity) bool {
	return slices.ContainsFunc(n.raft.Members(), func(m cluster.Member) bool {
		return who.ID != "" && m.ID == who.ID || who.ID == "" && who.Name != "" && m.Name == who.Name
	})
}

// serve answers peers from now on.
func (n *node) serve() error {
	agents, err := agent.NewServer(agent.ServerOptions{
		Identify: identify, Targets: func() []rota.Target { return n.raft.State().Targets() },
		Changed: n.ledOrChanged, Lead: n.leadWord, Nodes: n.net.addresses, Report: n.takeReport, Log: n.log.With("room", "agent"),
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(agent.TargetsPath, agents)
	mux.Handle(agent.ReportPath, n.reports(agents))
	mux.HandleFunc("POST "+appendPath, peerAsked(ofMember(n, n.appendFor)))
	mux.HandleFunc("POST "+commandPath, peerAsked(ofMember(n, n.commandFor)))
	mux.HandleFunc("POST "+joinPath, peerAsked(n.takeIn))
	mux.HandleFunc("GET "+nodePath, peerAsked(n.describe))
	mux.HandleFunc("GET "+fitPath, peerAsked(ofMember(n, n.fitFor)))
	if n.net.own {
		mux.Handle("POST "+renewPath, link.RenewHandler(func() (*link.CA, error) { return link.LoadCA(n.net.files) }, n.net.log))
	}
	var h http.Handler = mux
	n.net.serv.Store(&h)
	return nil
}

// identify names the agent that asks.
func identify(r *http.Request) (string, error) {
	who, ok := link.PeerOf(r.Context())
	if !ok || who.Role != link.Agent {
		return "", errors.New("this is for agents")
	}
	return who.Name, nil
}

// appendFor orders an event that another node forwards. What only a leader may say is never forwarded.
func (n *node) appendFor(ctx context.Context, from link.Identity, e rota.Event) (rota.Event, error) {
	switch e.Kind {
	case rota.EventVerdicts, rota.EventTick, rota.EventLead, rota.EventPublished:
		return e, fmt.Errorf("%s may not forward %s: only who leads says that", from, e.Kind)
	}
	return n.raft.AppendHere(ctx, e)
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
	Offset  time.Duration  `json:"-"` // of its clock, as whoever asked saw it
}

// describe says who and how this node is.
func (n *node) describe(ctx context.Context, _ link.Identity, _ struct{}) (description, error) {
	id := n.net.creds.Identity()
	st := n.raft.Status()
	d := description{
		ID: st.NodeID, Name: st.Node, Site: n.net.site, Version: version(), Now: time.Now(), Expires: n.net.creds.Expires(), Status: st,
	}
	d.ID = cmp.Or(d.ID, id.ID)
	var err error
	d.Index, d.Digest, err = n.raft.Digest(ctx, 0)
	return d, err
}
