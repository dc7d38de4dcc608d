package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rota-dns/rota/internal/rota"
)

// body is an answer whose header is the usual one.
type body[T any] struct{ Body T }

// newAPI makes the huma API on the server's mux, without any page or path of its own.
func (s *Server) newAPI() huma.API {
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(true) // a browser that sniffs after all finds no markup
			return enc.Encode(v)
		},
		Unmarshal: unmarshal,
	}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "rota", Version: s.o.Version,
				Description: "DNS kept true to who is on duty. Over the unix socket the file's permissions decide who may call; over TCP a bearer token does. " +
					"Every answer carries Rota-State-Index and Rota-State-Time: the last event in the state it was read from. " +
					"Rota-State-Since says since when that state may be older than the cluster's; without it the state is current.",
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
	return humago.New(s.mux, config)
}

// document renders the OpenAPI document, once: huma's own route would render it while serving.
func document(a huma.API) ([]byte, error) { return json.MarshalIndent(a.OpenAPI(), "", "  ") }

// route is what an operation is besides its handler.
type route struct {
	method, path string
	id           string
	access       Access
	summary      string
	errors       []int
}

func (s *Server) operation(r route) huma.Operation {
	s.access[r.method+" "+r.path] = r.access
	op := huma.Operation{
		OperationID: r.id, Method: r.method, Path: r.path, Summary: r.summary, Errors: r.errors, MaxBodyBytes: maxBody,
		Description: "Access: " + r.access.String() + ".",
	}
	if r.access > AccessRead {
		op.Security = []map[string][]string{{"token": {}}}
	}
	return op
}

// String says who has the access.
func (a Access) String() string {
	return [...]string{"nobody", "everybody", "anonymous where allowed, else viewer", "viewer", "operator", "admin", "agent, or operator"}[min(int(a), 6)]
}

func register[I, O any](s *Server, a huma.API, r route, h func(context.Context, *I) (*O, error)) {
	huma.Register(a, s.operation(r), func(ctx context.Context, in *I) (*body[*O], error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, err
		}
		return &body[*O]{out}, nil
	})
}

// plain adds a route that is no huma operation.
func (s *Server) plain(pattern string, access Access, h http.HandlerFunc) {
	s.access[pattern] = access
	s.mux.HandleFunc(pattern, h)
}

type (
	noInput   struct{}
	nameInput struct {
		Name string `path:"name" maxLength:"300" doc:"Domain name."`
	}
	filterInput struct {
		Match string   `query:"match" maxLength:"300" doc:"SERVICE, SERVICE/ADDRESS, ADDRESS, site:NAME or label:KEY=VALUE."`
		Label []string `query:"label,explode" maxItems:"20" doc:"KEY=VALUE; all must hold."`
	}
	limitInput struct {
		After uint64 `query:"after" doc:"Only what happened after the event with this index."`
		Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"200" doc:"At most this many, the newest."`
	}
	explainInput struct {
		Name   string `query:"name" required:"true" minLength:"1" maxLength:"300" doc:"Domain name of a service."`
		Type   string `query:"type" default:"A" enum:"A,AAAA,a,aaaa"`
		Client string `query:"client" maxLength:"60" doc:"Address or prefix of who asks."`
	}
	liftInput struct {
		Match  string `query:"match" required:"true" minLength:"1" maxLength:"300"`
		Reason string `query:"reason" maxLength:"200"`
		Author string `query:"author" maxLength:"64"`
	}
)

func (s *Server) routes(a huma.API) {
	get := func(path, id string, access Access, summary string) route {
		return route{method: http.MethodGet, path: "/api/v1/" + path, id: id, access: access, summary: summary}
	}
	register(s, a, get("services", "list-services", AccessRead, "Services and what they answer"), s.listServices)
	register(s, a, get("services/{name}", "get-service", AccessRead, "One service with its endpoints"), s.getService)
	register(s, a, get("endpoints", "list-endpoints", AccessRead, "Endpoints, their verdicts and where they are published"), s.listEndpoints)
	register(s, a, get("checks", "list-checks", AccessRead, "Targets: who is asked what, and what each vantage holds"), s.listChecks)
	register(s, a, get("traces", "list-traces", AccessKnown, "Targets with whole traces of this node's last probes: heads sent and received, certificates. At most 100"), s.listTraces)
	register(s, a, get("vantages", "list-vantages", AccessRead, "Who votes"), s.listVantages)
	register(s, a, get("zones", "list-zones", AccessRead, "Zones and who keeps them"), s.listZones)
	register(s, a, get("publishers", "list-publishers", AccessRead, "Publishers and how their DNS stands"), s.listPublishers)
	register(s, a, get("changes", "list-changes", AccessRead, "Changes of answers and of DNS, oldest first"), s.listChanges)
	register(s, a, get("overrides", "list-overrides", AccessRead, "What people said"), s.listOverrides)
	register(s, a, get("cluster", "get-cluster", AccessRead, "This node and the cluster"), s.getCluster)
	register(s, a, get("nameserver", "get-nameserver", AccessRead, "rota's own name server"), s.getNameServer)
	register(s, a, get("explain", "explain", AccessRead, "Why a name answers as it does"), s.explain)
	register(s, a, get("freeze", "get-freeze", AccessRead, "Whether everything automatic is stopped, and by whom"), s.getFreeze)
	register(s, a, get("instructions", "list-instructions", AccessRead, "What people ask of publishers"), s.listInstructions)
	register(s, a, get("plan", "plan", AccessKnown, "What publishers would write now; asks their DNS"), s.plan)
	register(s, a, get("records", "list-records", AccessKnown, "The records that rota keeps, as they stand; asks their DNS"), s.records)
	register(s, a, get("drift", "list-drift", AccessKnown, "The records that are not as they should be; asks their DNS"), s.drift)
	huma.Register(a, s.operation(get("config", "get-config", AccessKnown, "The configuration in force, as YAML, secrets hidden")), s.getConfig)
	s.registerEvents(a)

	register(s, a, route{
		http.MethodPost, "/api/v1/overrides", "set-override", AccessOperator,
		"Drain, maintain or force endpoints",
		[]int{403, 404, 409, 415, 503},
	}, s.setOverride)
	register(s, a, route{
		http.MethodDelete, "/api/v1/overrides", "lift-override", AccessOperator,
		"Take overrides back",
		[]int{403, 404, 503},
	}, s.liftOverride)
	register(s, a, route{
		http.MethodPost, "/api/v1/instructions", "instruct", AccessOperator,
		"Ask something of publishers",
		[]int{403, 404, 415, 503},
	}, s.instruct)
	register(s, a, route{
		http.MethodPost, "/api/v1/freeze", "freeze", AccessOperator,
		"Stop everything automatic: this node at once, then the cluster",
		[]int{403, 415, 503},
	}, s.freeze)
	register(s, a, route{
		http.MethodDelete, "/api/v1/freeze", "thaw", AccessOperator,
		"Let it go on",
		[]int{403},
	}, s.thaw)
	register(s, a, route{
		http.MethodPost, "/api/v1/reload", "reload", AccessAdmin,
		"Read the configuration again; a bad one changes nothing",
		[]int{403, 422},
	}, s.reload)

	s.registerRoutes(a)
	s.sayRoutes(a)
	s.witnessRoutes(a)
	s.clusterRoutes(a)

	s.plain("GET /openapi.json", AccessPublic, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(s.openapi)
	})
	for _, p := range []string{"/livez", "/health", "/healthz", "/-/healthy"} {
		s.plain("GET "+p, AccessPublic, s.livez)
	}
	for _, p := range []string{"/readyz", "/-/ready"} {
		s.plain("GET "+p, AccessPublic, s.readyz)
	}
	s.plain("GET /startupz", AccessPublic, s.startupz)
	if s.o.Registry != nil {
		h := promhttp.HandlerFor(s.o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: readTimeout})
		s.plain("GET "+s.o.MetricsPath, AccessRead, h.ServeHTTP)
	}
}

// livez says that the process answers; it looks at nothing, so that trouble elsewhere restarts nobody.
func (s *Server) livez(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") }

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	err := s.ready()
	switch {
	case err == nil:
		say(w, http.StatusOK, "ok")
	case AccessRead.Allows(callerOf(r.Context()).role):
		say(w, http.StatusServiceUnavailable, "not ready: "+rota.CleanReason("%s", err.Error()))
	default:
		say(w, http.StatusServiceUnavailable, "not ready")
	}
}

// startupz is readyz until it was ready once, and then stays.
func (s *Server) startupz(w http.ResponseWriter, r *http.Request) {
	if s.started.Load() {
		say(w, http.StatusOK, "ok")
		return
	}
	s.readyz(w, r)
}

func (s *Server) ready() error {
	if s.o.Ready != nil {
		if err := s.o.Ready(); err != nil {
			return err
		}
	}
	s.started.Store(true)
	return nil
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}

func (s *Server) listServices(_ context.Context, in *filterInput) (*List[ServiceView], error) {
	v := s.view()
	keep, err := v.filter(in)
	if err != nil {
		return nil, err
	}
	var out []ServiceView
	services := v.Services()
	for i := range services {
		svc := &services[i]
		if slices.ContainsFunc(svc.Endpoints, func(e rota.Endpoint) bool { return keep(svc, &e) }) || len(svc.Endpoints) == 0 && in.all() {
			out = append(out, v.service(svc))
		}
	}
	return list(v, out), nil
}

func (in *filterInput) all() bool { return in.Match == "" && len(in.Label) == 0 }

// filter returns what a request wants to see.
func (v *view) filter(in *filterInput) (func(*rota.Service, *rota.Endpoint) bool, error) {
	var wanted map[rota.EndpointID]bool
	if in.Match != "" {
		ids, err := v.Match(in.Match)
		if err != nil {
			return nil, v.noMatch(in.Match, err)
		}
		wanted = make(map[rota.EndpointID]bool, len(ids))
		for _, id := range ids {
			wanted[id] = true
		}
	}
	labels := make([][2]string, len(in.Label))
	for i, l := range in.Label {
		k, value, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, problem(http.StatusUnprocessableEntity, "label %q: want KEY=VALUE", l)
		}
		labels[i] = [2]string{k, value}
	}
	return func(svc *rota.Service, e *rota.Endpoint) bool {
		if wanted != nil && !wanted[rota.EndpointID{Service: svc.Name, Address: e.Address}] {
			return false
		}
		for _, l := range labels {
			got, ok := e.Labels[l[0]]
			if !ok {
				got, ok = svc.Labels[l[0]]
			}
			if !ok || got != l[1] {
				return false
			}
		}
		return true
	}, nil
}

// noMatch is the problem of a pattern that names nothing.
func (v *view) noMatch(pattern string, err error) error {
	name, _, _ := strings.Cut(pattern, "/")
	if near := v.nearest(strings.ToLower(strings.TrimSuffix(name, "."))); near != "" && near != name {
		return problem(http.StatusNotFound, "%v (did you mean %s?)", err, near)
	}
	return problem(http.StatusNotFound, "%v", err)
}

// named finds a service.
func (v *view) named(s string) (*rota.Service, error) {
	n, err := rota.ParseName(s)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	svc := v.Service(n)
	if svc == nil {
		return nil, v.noMatch(s, fmt.Errorf("no service %s; `rota get services` lists them", n.Short()))
	}
	return svc, nil
}

func (s *Server) getService(_ context.Context, in *nameInput) (*ServiceDetail, error) {
	v := s.view()
	svc, err := v.named(in.Name)
	if err != nil {
		return nil, err
	}
	out := &ServiceDetail{Index: v.Index(), At: v.At(), Service: v.service(svc), Members: []EndpointView{}}
	for i := range svc.Endpoints {
		out.Members = append(out.Members, v.endpoint(svc, &svc.Endpoints[i]))
	}
	v.why(svc, out.Members)
	return out, nil
}

func (s *Server) listEndpoints(_ context.Context, in *filterInput) (*List[EndpointView], error) {
	v := s.view()
	keep, err := v.filter(in)
	if err != nil {
		return nil, err
	}
	return list(v, v.endpoints(keep)), nil
}

func (s *Server) listChecks(_ context.Context, in *filterInput) (*List[CheckView], error) {
	return s.checks(in, false)
}

// maxTraced bounds the checks whose whole traces are in one answer: each may have a dozen of some kilobytes.
const maxTraced = 100

func (s *Server) listTraces(_ context.Context, in *filterInput) (*List[CheckView], error) {
	return s.checks(in, true)
}

// checks shows the targets that are wanted, with or without whole traces of their probes.
func (s *Server) checks(in *filterInput, traces bool) (*List[CheckView], error) {
	v := s.view()
	v.traces = traces
	keep, err := v.filter(in)
	if err != nil {
		return nil, err
	}
	wanted := map[rota.TargetID]bool{}
	services := v.Services()
	for i := range services {
		for j := range services[i].Endpoints {
			e := &services[i].Endpoints[j]
			if !keep(&services[i], e) {
				continue
			}
			for _, u := range e.Checks {
				wanted[e.Target(u).ID] = true
			}
		}
	}
	if traces && len(wanted) > maxTraced {
		return nil, problem(http.StatusUnprocessableEntity, "traces of %d checks are too many for one answer: match at most %d", len(wanted), maxTraced)
	}
	var out []CheckView
	uses := v.uses()
	for _, t := range v.Targets() {
		if wanted[t.ID] {
			out = append(out, v.check(t, uses[t.ID]))
		}
	}
	return list(v, out), nil
}

func (s *Server) listVantages(context.Context, *noInput) (*VantageList, error) {
	v := s.view()
	out := v.vantages(s.o.VantageStats(), &s.dissents)
	v.remember(out.Items)
	return &out, nil
}

func (s *Server) nameServer() *NameServer {
	if s.o.NameServer == nil {
		return nil
	}
	ns := s.o.NameServer()
	return &ns
}

func (s *Server) listZones(context.Context, *noInput) (*List[ZoneView], error) {
	v := s.view()
	return list(v, v.zones(s.nameServer())), nil
}

func (s *Server) getNameServer(context.Context, *noInput) (*NameServer, error) {
	ns := s.nameServer()
	if ns == nil {
		return nil, problem(http.StatusNotFound, "rota answers no queries itself: dns is not configured")
	}
	return ns, nil
}

func (s *Server) listPublishers(context.Context, *noInput) (*List[PublisherStatus], error) {
	v := s.view()
	out := slices.Clone(v.publishers)
	for i := range out {
		zones := make([]PublishedZone, len(out[i].Zones))
		for j, z := range out[i].Zones {
			z.Error = rota.CleanText(z.Error)
			if z.Records == nil {
				z.Records = []rota.RRset{}
			}
			zones[j] = z
		}
		out[i].Zones = zones
	}
	return list(v, out), nil
}

func (s *Server) listChanges(_ context.Context, in *limitInput) (*List[ChangeView], error) {
	v := s.view()
	out := changes(s.o.Records(in.After, 0))
	return list(v, out[max(0, len(out)-in.Limit):]), nil
}

func (s *Server) listOverrides(context.Context, *noInput) (*List[rota.Override], error) {
	v := s.view()
	out := slices.DeleteFunc(v.Overrides(), func(o rota.Override) bool { return !v.Holds(&o, v.now) })
	return list(v, out), nil
}

func (s *Server) getCluster(context.Context, *noInput) (*ClusterStatus, error) {
	if s.o.Cluster == nil {
		return nil, problem(http.StatusNotFound, "this node is in no cluster")
	}
	out := s.o.Cluster()
	out.Members = orNone(out.Members)
	return &out, nil
}

func (s *Server) explain(_ context.Context, in *explainInput) (*Explained, error) {
	v := s.view()
	svc, err := v.named(in.Name)
	if claimed := v.claimed(in.Name); err != nil && claimed != nil {
		return v.explainClaim(claimed, in.Type), nil
	}
	if err != nil {
		return nil, err
	}
	if in.Client != "" {
		_, e1 := netip.ParseAddr(in.Client)
		_, e2 := netip.ParsePrefix(in.Client)
		if e1 != nil && e2 != nil {
			return nil, problem(http.StatusUnprocessableEntity, "client %q: want an address or a prefix such as 203.0.113.0/24", in.Client)
		}
	}
	t, err := rota.ParseType(in.Type)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	x, ok := v.Explain(svc.Name, t)
	if !ok {
		return nil, problem(http.StatusNotFound, "service %s has no answer yet", svc.Name.Short())
	}
	out := v.explained(svc, x, s.o.Records(0, 0))
	out.Client = in.Client
	return &out, nil
}

type configOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (s *Server) getConfig(context.Context, *noInput) (*configOutput, error) {
	if s.o.Config == nil {
		return nil, problem(http.StatusNotFound, "rota runs without a configuration file")
	}
	return &configOutput{"application/yaml", s.o.Config()}, nil
}

// Day is the longest unit of a duration in a request.
const day = 24 * time.Hour

// parseLife reads how long an override lasts.
func parseLife(s string) (time.Duration, error) {
	if s == "" {
		return rota.DefaultOverride, nil
	}
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		if n, err = strconv.ParseUint(days, 10, 16); err == nil {
			d = time.Duration(n) * day
		}
	}
	if err != nil || d <= 0 || d > rota.MaxOverride {
		return 0, problem(http.StatusUnprocessableEntity, "for %q: want a duration such as 90s, 2h or 3d, above 0 and at most 366d", s)
	}
	return d, nil
}

func (s *Server) setOverride(ctx context.Context, in *struct{ Body OverrideRequest }) (*OverrideReply, error) {
	req, c, v := in.Body, callerOf(ctx), s.view()
	action, err := rota.ParseAction(req.Action)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	life, err := parseLife(req.For)
	if err != nil {
		return nil, err
	}
	reason := rota.CleanReason("%s", strings.TrimSpace(req.Reason))
	if reason == "" {
		return nil, problem(http.StatusUnprocessableEntity, "say why: an override needs a reason")
	}
	ids, err := v.Match(req.Match)
	if err != nil {
		return nil, v.noMatch(req.Match, err)
	}
	now := v.now.UTC().Round(0)
	overrides := make([]rota.Override, len(ids))
	for i, id := range ids {
		overrides[i] = rota.Override{
			Endpoint: id, Action: action, Author: c.author(req.Author), Reason: reason, Set: now, Expires: now.Add(life),
		}
	}
	if action != rota.ActionForceUp && !req.Force {
		if held := v.emptied(overrides, now); held != "" {
			return nil, huma.NewError(http.StatusConflict, "held: "+held) // whole, however many services it names
		}
	}
	e, err := s.o.Append(ctx, rota.Event{
		At: now, Kind: rota.EventOverride, Actor: c.actor, Reason: reason, Overrides: overrides,
	})
	if err != nil {
		return nil, s.appendProblem(err)
	}
	out := &OverrideReply{Event: e.Index, Set: overrides, Answers: s.touched(ids)}
	if action != rota.ActionForceUp {
		out.StillAnswered = s.view().serving(ids)
	}
	return out, nil
}

// emptied says of which services an address family would have nobody left, and what doing it anyway would do; empty: of none.
func (v *view) emptied(overrides []rota.Override, now time.Time) string {
	var what []string
	kept, none := false, false
	for _, family := range []string{"IPv4", "IPv6"} {
		of := slices.DeleteFunc(slices.Clone(overrides), func(o rota.Override) bool { return o.Endpoint.Address.Is4() != (family == "IPv4") })
		for _, n := range v.Emptied(of, now) {
			what = append(what, fmt.Sprintf("no %s address of %s would be left", family, n.Short()))
			if v.Service(n).Safety.OnAllDown == rota.OnAllDownNone {
				none = true
			} else {
				kept = true
			}
		}
	}
	const most = 4
	if n := len(what) - most; n > 0 {
		what = append(what[:most], fmt.Sprintf("and so on, %d more", n))
	}
	switch {
	case len(what) == 0:
		return ""
	case kept && none:
		what = append(what, "with --force they are marked, and the last answer is kept until another endpoint serves, or emptied where on_all_down is none")
	case none:
		what = append(what, "with --force the answer is emptied, since on_all_down is none")
	case len(overrides) == 1:
		what = append(what, "with --force it is marked, and the last answer is kept until another endpoint serves")
	default:
		what = append(what, "with --force they are marked, and the last answer is kept until another endpoint serves")
	}
	return strings.Join(what, "; ")
}

// serving lists those of some endpoints that are answered, override or not.
func (v *view) serving(ids []rota.EndpointID) []rota.EndpointID {
	return slices.DeleteFunc(slices.Clone(ids), func(id rota.EndpointID) bool {
		sel := v.Selection(id.Service)
		return sel == nil || !slices.ContainsFunc(members(sel), func(m rota.Member) bool { return m.Address == id.Address && m.Serves() })
	})
}

func (s *Server) liftOverride(ctx context.Context, in *liftInput) (*OverrideReply, error) {
	c, v := callerOf(ctx), s.view()
	ids, err := v.Match(in.Match)
	if err != nil {
		return nil, v.noMatch(in.Match, err)
	}
	ids = slices.DeleteFunc(ids, func(id rota.EndpointID) bool { return v.Override(id) == nil })
	if len(ids) == 0 {
		return nil, problem(http.StatusNotFound, "%q is under no override; `rota get overrides` lists them", in.Match)
	}
	reason := rota.CleanReason("%s", strings.TrimSpace(in.Reason))
	if a := c.author(in.Author); reason == "" {
		reason = "lifted by " + a
	}
	e, err := s.o.Append(ctx, rota.Event{
		At: v.now.UTC().Round(0), Kind: rota.EventLift, Actor: c.actor, Reason: reason, Lift: ids,
	})
	if err != nil {
		return nil, s.appendProblem(err)
	}
	return &OverrideReply{Event: e.Index, Lifted: ids, Answers: s.touched(ids)}, nil
}

// touched shows the services of some endpoints as they stand now.
func (s *Server) touched(ids []rota.EndpointID) []ServiceView {
	v, out := s.view(), []ServiceView{}
	for i, id := range ids {
		if i > 0 && ids[i-1].Service == id.Service {
			continue
		}
		if svc := v.Service(id.Service); svc != nil {
			out = append(out, v.service(svc))
		}
	}
	return out
}

// appendProblem says why an event was not ordered.
func (s *Server) appendProblem(err error) error {
	switch {
	case errors.Is(err, ErrNoLeader):
		return again(problem(http.StatusServiceUnavailable, "no leader: %v; nothing was changed, try again", err))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return problem(http.StatusServiceUnavailable, "no leader confirmed this in time; it may still be done: look with `rota events` before trying again")
	}
	return problem(http.StatusUnprocessableEntity, "%v", err)
}

// ReloadReply says that the configuration was read again.
type ReloadReply struct {
	Index uint64 `json:"index" doc:"Index of the state afterwards."`
}

func (s *Server) reload(ctx context.Context, _ *noInput) (*ReloadReply, error) {
	if s.o.Reload == nil {
		return nil, problem(http.StatusNotFound, "rota runs without a configuration file")
	}
	if err := s.o.Reload(ctx); err != nil {
		// The text of a configuration's errors has lines and carets: it is kept as it is, but for control characters.
		return nil, huma.NewError(http.StatusUnprocessableEntity, printable(err.Error()))
	}
	return &ReloadReply{s.o.Source.State().Index()}, nil
}

// printable keeps line breaks and replaces other control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0)) {
			return '?'
		}
		return r
	}, s)
}
