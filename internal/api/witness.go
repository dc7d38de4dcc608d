package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/rota-dns/rota/internal/rota"
)

// Proof is what this node sees of the DNS from outside.
type Proof struct {
	Index         uint64         `json:"index"`
	At            time.Time      `json:"at"`
	Zones         []ProofZone    `json:"zones" nullable:"false"`
	Disagreements []Disagreement `json:"disagreements" nullable:"false" doc:"Publishers of one service whose DNS do not hold the same; only who leads knows."`
}

// ProofZone is one zone that one publisher keeps, as its servers answer.
type ProofZone struct {
	Publisher string         `json:"publisher" doc:"dns is rota's own name server."`
	Zone      string         `json:"zone"`
	Servers   []ProofServer  `json:"servers" nullable:"false"`
	Findings  []ProofFinding `json:"findings" nullable:"false"`
	Blind     []string       `json:"blind,omitempty" doc:"What cannot be seen from here, which is not said to be wrong."`
	Pending   int            `json:"pending" doc:"Changes that not every server shows yet."`
	Oldest    time.Time      `json:"oldest,omitzero" doc:"Since when the oldest of them is waited for."`
}

// ProofServer is one authoritative address.
type ProofServer struct {
	Server string        `json:"server" doc:"Name and address."`
	Origin bool          `json:"origin,omitempty" doc:"Where the publisher writes; the world is not sent there."`
	State  string        `json:"state" enum:"in-step,behind,lame,silent,blind,unasked" doc:"blind: this node cannot ask it."`
	Serial uint32        `json:"serial,omitempty"`
	Asked  time.Time     `json:"asked,omitzero"`
	RTT    time.Duration `json:"rtt_ns,omitempty"`
}

// ProofFinding is one thing that is wrong, as seen from outside.
type ProofFinding struct {
	Code      string    `json:"code" enum:"stuck-secondary,lame,unreachable-tcp,unreachable-udp,foreign-data,split-view,delegation-mismatch,wrong-ds,missing-zone,serial-back"`
	Server    string    `json:"server,omitempty" doc:"Absent: the zone as a whole."`
	Transport string    `json:"transport,omitempty"`
	Name      string    `json:"name,omitempty" doc:"With type: the records it shows at."`
	Type      string    `json:"type,omitempty"`
	Since     time.Time `json:"since"`
	Text      string    `json:"text"`
	Advice    string    `json:"advice"`
}

// Disagreement is publishers of one service whose DNS do not hold the same.
type Disagreement struct {
	Service    string    `json:"service"`
	Publishers []string  `json:"publishers" nullable:"false"`
	Since      time.Time `json:"since"`
	Text       string    `json:"text"`
}

// Propagation is what the world sees of one name, asked for just now.
type Propagation struct {
	Name       string         `json:"name"`
	Publisher  string         `json:"publisher"`
	Zone       string         `json:"zone"`
	At         time.Time      `json:"at"`
	Everywhere bool           `json:"everywhere" doc:"Every server says what is wanted, over every transport that it answers."`
	Want       []Wanted       `json:"want" nullable:"false"`
	Views      []ServerView   `json:"views" nullable:"false" doc:"A server and transport each, for each type."`
	Public     []ServerView   `json:"public,omitempty" doc:"What the resolvers that are configured say; the TTL is what remains."`
	Findings   []ProofFinding `json:"findings" nullable:"false"`
	Blind      []string       `json:"blind,omitempty"`
	Changes    []ChangeSeen   `json:"changes" nullable:"false"`
	Leaving    []LeavingData  `json:"leaving" nullable:"false" doc:"What left the name, and until when caches may hold it."`
}

// Wanted is what should be answered.
type Wanted struct {
	Type rota.Type `json:"type"`
	Data []string  `json:"data" nullable:"false"`
	TTL  uint32    `json:"ttl"`
	Some bool      `json:"some,omitempty" doc:"Any part of it is right."`
}

// ServerView is one answer.
type ServerView struct {
	Server    string        `json:"server"`
	Transport string        `json:"transport" enum:"udp,tcp"`
	Origin    bool          `json:"origin,omitempty"`
	Serial    uint32        `json:"serial,omitempty"`
	Type      rota.Type     `json:"type"`
	Data      []string      `json:"data" nullable:"false"`
	Alias     string        `json:"alias,omitempty" doc:"The CNAME that stands there instead."`
	TTL       uint32        `json:"ttl,omitempty"`
	Rcode     string        `json:"rcode,omitempty"`
	Cut       bool          `json:"truncated,omitempty"`
	RTT       time.Duration `json:"rtt_ns,omitempty"`
	Agrees    bool          `json:"agrees"`
	Trouble   string        `json:"trouble,omitempty" enum:"silent,closed,malformed,blind" doc:"Why there is no answer."`
	Text      string        `json:"text,omitempty"`
}

// ChangeSeen is how far one change came.
type ChangeSeen struct {
	Event   uint64        `json:"event"`
	Type    rota.Type     `json:"type"`
	Decided time.Time     `json:"decided"`
	First   []FirstSeen   `json:"first" nullable:"false" doc:"In order of time."`
	Visible time.Time     `json:"visible,omitzero" doc:"Everywhere; absent: not yet."`
	Took    time.Duration `json:"took_ns,omitempty" doc:"From the decision to visible everywhere."`
	Unseen  []string      `json:"unseen,omitempty" doc:"Servers that did not answer: they are no part of it."`
}

// FirstSeen is when one server was first seen to show a change.
type FirstSeen struct {
	Server    string        `json:"server"`
	Transport string        `json:"transport"`
	After     time.Duration `json:"after_ns" doc:"From the decision."`
}

// LeavingData is data that left a name.
type LeavingData struct {
	Type   rota.Type `json:"type"`
	Data   string    `json:"data"`
	TTL    uint32    `json:"ttl" doc:"The longest it was seen with."`
	Gone   time.Time `json:"gone,omitzero" doc:"When the last server was first seen without it."`
	Proven bool      `json:"proven" doc:"Every server was seen without it."`
	Until  time.Time `json:"until,omitzero" doc:"When no honest cache holds it any more; only when proven."`
	Unseen []string  `json:"unseen,omitempty" doc:"Servers that still answer it, or of which that cannot be said."`
}

type propagationInput struct {
	Name string `query:"name" required:"true" minLength:"1" maxLength:"300" doc:"Domain name of a service."`
	Gone string `query:"gone" maxLength:"60" doc:"An address to prove gone."`
}

// ErrUnseen says that nothing is known of a name from outside.
var ErrUnseen = errors.New("not seen from outside")

func (s *Server) witnessRoutes(a huma.API) {
	register(s, a, route{
		method: http.MethodGet, path: "/api/v1/proof", id: "get-proof", access: AccessRead, summary: "What the DNS is seen to say from outside",
	}, s.getProof)
	register(s, a, route{
		method: http.MethodGet, path: "/api/v1/propagation", id: "propagation", access: AccessKnown,
		summary: "What every server says of a name now, and until when caches may hold what left; asks them", errors: []int{404, 503},
	}, s.propagation)
}

func (s *Server) getProof(context.Context, *noInput) (*Proof, error) {
	if s.o.Proof == nil {
		return nil, problem(http.StatusNotFound, "nothing is watched from outside")
	}
	v := s.view()
	out := s.o.Proof()
	out.Index, out.At = v.Index(), v.At()
	return &out, nil
}

func (s *Server) propagation(ctx context.Context, in *propagationInput) (*List[Propagation], error) {
	v := s.view()
	svc, err := v.named(in.Name)
	if err != nil {
		return nil, err
	}
	gone := ""
	if in.Gone != "" {
		at, err := netip.ParseAddr(in.Gone)
		if err != nil {
			return nil, problem(http.StatusUnprocessableEntity, "gone %q: want an address", in.Gone)
		}
		gone = at.String()
	}
	if s.o.Propagation == nil {
		return nil, problem(http.StatusNotFound, "nothing is watched from outside")
	}
	select {
	case s.asking <- struct{}{}: // one at a time: each asks every server
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return nil, problem(http.StatusServiceUnavailable, "the servers are being asked for another name")
	}
	out, err := s.o.Propagation(ctx, svc.Name, gone)
	switch {
	case errors.Is(err, ErrUnseen):
		return nil, problem(http.StatusNotFound, "%v", err)
	case err != nil:
		return nil, problem(http.StatusServiceUnavailable, "%v", err)
	}
	return list(v, out), nil
}
