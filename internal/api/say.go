package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/rota-dns/rota/internal/rota"
)

// Errors of Options.Say, beside ErrNoLeader and those of rota.State.Said.
var (
	ErrSaidBefore = errors.New("said before")
	ErrSaidOften  = errors.New("said too often")
)

// SayRequest says how an endpoint is where a check of type agent asks nobody.
type SayRequest struct {
	Service     string     `json:"service" minLength:"1" maxLength:"300"`
	Address     netip.Addr `json:"address,omitzero" doc:"The endpoint's; without it, all of the service that the caller's agent speaks for, or the only one with such a check."`
	Check       string     `json:"check,omitempty" maxLength:"300" doc:"Name of the check, when the endpoint has several of type agent."`
	Status      string     `json:"status" enum:"up,down,drain" doc:"drain: it is about to leave."`
	Reason      string     `json:"reason,omitempty" maxLength:"200"`
	Weight      uint8      `json:"weight,omitempty" maximum:"100" doc:"Percent of its weight that the endpoint asks for; 0: nothing is said."`
	Incarnation uint64     `json:"incarnation,omitempty" doc:"Another number at each start of the process that speaks, such as the time in nanoseconds."`
	Seq         uint64     `json:"seq,omitempty" doc:"Grows with each saying of an incarnation: an older one is refused. Neither: nothing is refused for its age."`
	Sent        time.Time  `json:"sent,omitzero" doc:"By the clock of who speaks; it decides nothing."`
}

// SayReply is what was taken.
type SayReply struct {
	Said []Said `json:"said" nullable:"false"`
}

// Said is one endpoint of which something was taken.
type Said struct {
	Service string        `json:"service"`
	Address netip.Addr    `json:"address"`
	Status  rota.Status   `json:"status" enum:"up,down,draining"`
	Target  rota.TargetID `json:"target"`
	Before  rota.Status   `json:"verdict_before" enum:"up,down,draining,unknown" doc:"The verdict, as this node knew it before."`
	Within  time.Duration `json:"within_ns" doc:"Say it again within this time, or it is not known any more."`
}

func (s *Server) sayRoutes(a huma.API) {
	register(s, a, route{
		http.MethodPost, "/api/v1/opinions", "say", AccessAgent, "Say how an endpoint is, where a check of type agent asks nobody", []int{403, 404, 409, 415, 422, 429, 503},
	}, s.say)
}

var sayable = map[string]rota.Status{"up": rota.Up, "down": rota.Down, "drain": rota.Draining}

func (s *Server) say(ctx context.Context, in *struct{ Body SayRequest }) (*SayReply, error) {
	c, req := callerOf(ctx), in.Body
	name, err := rota.ParseName(req.Service)
	if err != nil {
		return nil, problem(http.StatusNotFound, "%v", err)
	}
	x := rota.Saying{
		Service: name, Address: req.Address, Check: req.Check, Status: sayable[req.Status], Reason: rota.CleanReason("%s", strings.TrimSpace(req.Reason)),
		Weight: req.Weight, By: c.actor, Incarnation: req.Incarnation, Seq: req.Seq,
	}
	if c.role == RoleAgent {
		x.Agent = c.registrant().Host
	}
	st := s.o.Source.State()
	all, err := spokenFor(st, x)
	if err != nil {
		return nil, s.sayProblem(x, err)
	}
	out := &SayReply{Said: []Said{}}
	for _, x.Address = range all {
		t, err := st.Said(x)
		if err == nil {
			err = s.o.Say(ctx, x)
		}
		if err != nil {
			return nil, s.sayProblem(x, err)
		}
		out.Said = append(out.Said, Said{name.Short(), x.Address, x.Status, t.ID, st.Verdict(t.ID).Status, t.Check.MaxAge})
	}
	return out, nil
}

// spokenFor returns the addresses of the endpoints that a saying is about.
func spokenFor(st *rota.State, x rota.Saying) ([]netip.Addr, error) {
	if x.Address.IsValid() {
		return []netip.Addr{x.Address}, nil
	}
	v := st.Service(x.Service)
	if v == nil {
		return nil, fmt.Errorf("%w: there is no service %s", rota.ErrNoEndpoint, x.Service.Short())
	}
	var out []netip.Addr
	for _, e := range v.Endpoints {
		for _, u := range e.Checks {
			if u.Check.Kind == rota.KindAgent && (x.Agent == "" || x.Agent == e.Agent) {
				out = append(out, e.Address)
				break
			}
		}
	}
	switch {
	case len(out) == 0 && x.Agent != "":
		return nil, fmt.Errorf("%w: %s speaks for no endpoint of %s; the endpoints' `agent:` in the configuration says who does", rota.ErrNotYours, x.Agent, v.Name.Short())
	case len(out) == 0:
		return nil, fmt.Errorf("%w: no endpoint of %s has a check of type agent", rota.ErrNoSaying, v.Name.Short())
	case len(out) > 1 && x.Agent == "":
		return nil, fmt.Errorf("%w: %s has several endpoints with a check of type agent: name the address", rota.ErrNoSaying, v.Name.Short())
	}
	return out, nil
}

// sayProblem says why something that was said was not taken. Who spoke for what is not theirs stands in the log.
func (s *Server) sayProblem(x rota.Saying, err error) error {
	for _, k := range []struct {
		is     error
		status int
	}{
		{rota.ErrNoEndpoint, http.StatusNotFound}, {rota.ErrNoSaying, http.StatusUnprocessableEntity}, {rota.ErrNotYours, http.StatusForbidden},
		{ErrSaidBefore, http.StatusConflict}, {ErrSaidOften, http.StatusTooManyRequests},
	} {
		if !errors.Is(err, k.is) {
			continue
		}
		if k.status == http.StatusForbidden {
			s.log.Warn("refused what was said of an endpoint", "by", x.By, "service", x.Service.Short(), "address", x.Address.String(), "status", x.Status.String(), "why", err)
		}
		p := problem(k.status, "%v", err)
		if k.status == http.StatusTooManyRequests {
			return again(p)
		}
		return p
	}
	return s.appendProblem(err)
}
