package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/rota-dns/rota/internal/rota"
)

// RegisterRequest is what a host says of itself.
type RegisterRequest struct {
	Host      string       `json:"host" minLength:"1" maxLength:"253" doc:"The host's name; what follows its first dot does not count." example:"cyberdyne-web-sfo-prod"`
	Addresses []netip.Addr `json:"addresses" minItems:"1" maxItems:"16" nullable:"false"`
	Whole     bool         `json:"whole,omitempty" doc:"The host has no other addresses. Without it a family that is not named stays as it was."`
	Template  string       `json:"template,omitempty" maxLength:"128" doc:"Name of the block to register by, when there are several."`
	DryRun    bool         `json:"dry_run,omitempty" doc:"Say what would come of it, and change nothing."`
}

// RegisterReply is what became of a registration.
type RegisterReply struct {
	rota.Registered
	Event uint64        `json:"event,omitempty" doc:"Index of the event; none when nothing was new, or in a dry run."`
	Renew time.Duration `json:"renew_ns,omitempty" doc:"How soon to say so again, so that it does not end; none: never."`
}

// DeregisterReply is what became of the end of a registration.
type DeregisterReply struct {
	rota.Registered
	Event     uint64          `json:"event,omitempty" doc:"Index of the event; none in a dry run."`
	Leftovers []rota.Leftover `json:"leftovers" nullable:"false" doc:"What publishers are to take out of the DNS now."`
}

type deregisterInput struct {
	Host     string `query:"host" required:"true" minLength:"1" maxLength:"253"`
	Template string `query:"template" maxLength:"128" doc:"Name of the block it registered by, when there are several."`
	DryRun   bool   `query:"dry_run" doc:"Say what would come of it, and change nothing."`
}

// Registrant is who registers a host.
type Registrant struct {
	Actor string // for the record
	Host  string // the only one it may speak of; empty: any
}

func (s *Server) registerRoutes(a huma.API) {
	register(s, a, route{method: http.MethodGet, path: "/api/v1/registrations", id: "list-registrations", access: AccessRead, summary: "Hosts that registered"}, s.listRegistrations)
	register(s, a, route{
		http.MethodPost, "/api/v1/registrations", "register", AccessAgent, "Put a host into the DNS, or say that it is still there", []int{403, 409, 415, 429, 503},
	}, func(ctx context.Context, in *struct{ Body RegisterRequest }) (*RegisterReply, error) {
		return s.Register(ctx, callerOf(ctx).registrant(), in.Body)
	})
	register(s, a, route{
		http.MethodDelete, "/api/v1/registrations", "deregister", AccessAgent, "Take a host out of the DNS", []int{403, 404, 409, 429, 503},
	}, func(ctx context.Context, in *deregisterInput) (*DeregisterReply, error) {
		return s.deregister(ctx, callerOf(ctx).registrant(), in)
	})
}

// registrant says of which host the caller may speak.
func (c caller) registrant() Registrant {
	r := Registrant{Actor: c.actor}
	if c.role == RoleAgent {
		_, name, _ := strings.Cut(c.actor, "token:")
		r.Host = cmp.Or(name, c.actor) // which is no host's name
	}
	return r
}

func (s *Server) listRegistrations(context.Context, *noInput) (*List[rota.Registered], error) {
	v := s.view()
	return list(v, v.Registrations()), nil
}

// claimant finds the host and the template that a request speaks of, and makes sure that it may.
func (s *Server) claimant(who Registrant, host, template string) (rota.Registration, error) {
	label, err := rota.HostLabel(host)
	if err != nil {
		return rota.Registration{}, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	if mine, _ := rota.HostLabel(who.Host); who.Host != "" && mine != label {
		return rota.Registration{}, problem(http.StatusForbidden, "%s may speak of host %s only, not of %s", who.Actor, who.Host, label)
	}
	t, err := rota.TemplateOf(s.o.Source.State().Spec().Registers, template)
	if err != nil {
		return rota.Registration{}, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	return rota.Registration{Template: t.Name, Host: label}, nil
}

// Register takes in what a host says of itself. Its errors are for an answer of the API; an event is ordered only when it is news.
func (s *Server) Register(ctx context.Context, who Registrant, req RegisterRequest) (*RegisterReply, error) {
	r, err := s.claimant(who, req.Host, req.Template)
	if err != nil {
		return nil, err
	}
	st, now := s.o.Source.State(), s.o.Now()
	r.Addresses = req.Addresses
	if was, ok := st.Registration(r.Template, r.Host); ok && !req.Whole {
		for _, a := range was.Addresses {
			if !hasFamily(req.Addresses, a) {
				r.Addresses = append(r.Addresses, a)
			}
		}
	}
	out := &RegisterReply{}
	if st.News(r, now) {
		if err := s.paced(who, req.DryRun); err != nil {
			return nil, err
		}
		e := rota.Event{At: now.UTC().Round(0), Kind: rota.EventRegister, Actor: who.Actor, Reason: "register " + r.Host, Registrations: []rota.Registration{r}}
		if st, out.Event, err = s.enact(ctx, e, req.DryRun); err != nil {
			return nil, err
		}
	}
	var known bool
	if out.Registered, known = st.Registration(r.Template, r.Host); !known {
		return nil, again(problem(http.StatusServiceUnavailable, "host %s was registered, and this node does not know it yet; say it again", r.Host))
	}
	if !out.Expires.IsZero() {
		out.Renew = max(out.Expires.Sub(now)/3, time.Second)
	}
	return out, nil
}

// A host that speaks for itself may change what is registered hostBurst times at once, and once every hostEvery for long: each change is
// an event that every node keeps and works on.
const (
	hostBurst = 10
	hostEvery = 6 * time.Second
)

// pace bounds how often hosts speak. It holds those that spoke lately.
type pace struct {
	mu   sync.Mutex           // guards what follows
	full map[string]time.Time // by host: when it may say hostBurst things at once again
}

// take takes one turn of a host, or says how long it is until there is one.
func (p *pace) take(host string, now time.Time) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.full, func(_ string, at time.Time) bool {
		return !at.After(now) || at.Sub(now) > hostBurst*hostEvery // the clock went back
	})
	full := now.Add(hostEvery)
	if at, ok := p.full[host]; ok {
		full = at.Add(hostEvery)
	}
	if wait := full.Sub(now) - hostBurst*hostEvery; wait > 0 {
		return wait
	}
	if p.full == nil {
		p.full = map[string]time.Time{}
	}
	p.full[host] = full
	return 0
}

// paced reports that a host which speaks for itself does so too often.
func (s *Server) paced(who Registrant, dry bool) error {
	if dry || who.Host == "" {
		return nil
	}
	wait := s.hosts.take(who.Host, s.o.Now())
	if wait == 0 {
		return nil
	}
	err := problem(http.StatusTooManyRequests, "%s changes what it says too often: want %d changes at once and one every %v after that", who.Actor, hostBurst, hostEvery)
	return huma.ErrorWithHeaders(err, http.Header{"Retry-After": {strconv.Itoa(int(wait/time.Second) + 1)}})
}

func hasFamily(all []netip.Addr, of netip.Addr) bool {
	for _, a := range all {
		if a.Is4() == of.Is4() {
			return true
		}
	}
	return false
}

// enact orders an event, or tries what would come of it. It returns the state after it, and the event's index.
func (s *Server) enact(ctx context.Context, e rota.Event, dry bool) (*rota.State, uint64, error) {
	if f := s.o.Source.State().Frozen(); f != nil {
		return nil, 0, problem(http.StatusConflict, "held: %v; hosts come and go again when it is thawed", f)
	}
	if dry {
		st := s.o.Source.State()
		if e.Index = st.Index() + 1; e.At.Before(st.At()) {
			e.At = st.At()
		}
		next, err := st.Apply(e)
		if err != nil {
			return nil, 0, problem(http.StatusUnprocessableEntity, "%v", errors.Unwrap(err))
		}
		return next, 0, nil
	}
	e, err := s.o.Append(ctx, e)
	if err != nil {
		return nil, 0, s.appendProblem(err)
	}
	return s.o.Source.State(), e.Index, nil
}

func (s *Server) deregister(ctx context.Context, who Registrant, in *deregisterInput) (*DeregisterReply, error) {
	r, err := s.claimant(who, in.Host, in.Template)
	if err != nil {
		return nil, err
	}
	was, ok := s.o.Source.State().Registration(r.Template, r.Host)
	if !ok {
		return nil, problem(http.StatusNotFound, "host %s has not registered by %q; `rota get registrations` lists those that have", r.Host, r.Template)
	}
	if err := s.paced(who, in.DryRun); err != nil {
		return nil, err
	}
	st, index, err := s.enact(ctx, rota.Event{
		At: s.o.Now().UTC().Round(0), Kind: rota.EventDeregister, Actor: who.Actor, Reason: "deregister " + r.Host, Registrations: []rota.Registration{r},
	}, in.DryRun)
	if err != nil {
		return nil, err
	}
	out := &DeregisterReply{Registered: was, Event: index, Leftovers: []rota.Leftover{}}
	for _, l := range st.Leftovers() {
		if l.Host == r.Host {
			out.Leftovers = append(out.Leftovers, l)
		}
	}
	return out, nil
}

// claimed returns what hosts claim at a name, by type.
func (v *view) claimed(name string) map[rota.Type]*rota.Claim {
	n, err := rota.ParseName(name)
	if err != nil {
		return nil
	}
	var out map[rota.Type]*rota.Claim
	for _, t := range []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypePTR} {
		if c := v.Claim(rota.Key{Name: n, Type: t}); c != nil {
			if out == nil {
				out = map[rota.Type]*rota.Claim{}
			}
			out[t] = c
		}
	}
	return out
}

// explainClaim explains a name that hosts claim: the type that is asked for, or a pointer, which nobody asks for by its type.
func (v *view) explainClaim(claims map[rota.Type]*rota.Claim, asked string) *Explained {
	t, _ := rota.ParseType(asked)
	c := claims[t]
	if c == nil {
		c = claims[rota.TypePTR]
	}
	var other *rota.Claim
	for _, other = range claims {
		break
	}
	x := rota.Explanation{Service: other.Set.Name, Type: t, Mode: rota.ModeAbsent, Summary: "no host that registered claims it"}
	svc := &rota.Service{Name: other.Set.Name}
	if c != nil {
		x, _ = v.Explain(c.Set.Name, c.Set.Type)
		svc.Publish, svc.Zone = c.Publish, c.Zone
	}
	out := v.explained(svc, x, nil)
	return &out
}
