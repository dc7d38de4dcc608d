package api

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rota-dns/rota/internal/rota"
)

// CollectorOptions are what a Collector reads. Source is required.
type CollectorOptions struct {
	Source       Source
	Records      func(after uint64, limit int) []Record // as in Options
	Reports      func() []*rota.Report                  // as in Options
	Cluster      func() ClusterStatus                   // as in Options
	VantageStats func() []VantageStat                   // as in Options
	Node         string                                 // this node's name
	Version      string
	NoEndpoints  bool             // leave out the metrics that have a series an endpoint
	Now          func() time.Time // default time.Now
}

// Collector turns the state into metrics when it is asked (rota_state_*, rota_service_*, rota_endpoint_*, rota_vantage_*,
// rota_overrides, rota_build_info). Its series are those of configured services, endpoints and vantages: nothing that came over a
// network becomes a label. Only rota_endpoint_transitions_total is counted along the way; Run keeps that up between scrapes.
type Collector struct {
	o CollectorOptions

	mu    sync.Mutex // guards what follows
	after uint64     // index of the last event that was counted
	moves map[rota.EndpointID]uint64

	dissents dissents
}

// NewCollector makes a collector that counts transitions from now on.
func NewCollector(o CollectorOptions) *Collector {
	if o.Records == nil {
		o.Records = func(uint64, int) []Record { return nil }
	}
	if o.Reports == nil {
		o.Reports = func() []*rota.Report { return nil }
	}
	if o.VantageStats == nil {
		o.VantageStats = func() []VantageStat { return nil }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Collector{o: o, after: o.Source.State().Index(), moves: map[rota.EndpointID]uint64{}}
}

// Run follows the events until ctx ends and returns nil. Without it, transitions that history forgets between two scrapes are not
// counted.
func (c *Collector) Run(ctx context.Context) error {
	for {
		changed := c.o.Source.Changed()
		c.count(c.o.Source.State())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// count adds what happened since the last time and returns the counters of configured endpoints; those of others are dropped.
func (c *Collector) count(s *rota.State) map[rota.EndpointID]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	respecified := false
	for _, r := range c.o.Records(c.after, 0) {
		c.after = r.Event.Index
		respecified = respecified || r.Event.Kind == rota.EventSpec || r.Event.Kind == rota.EventRestore
		for _, t := range r.Transitions {
			for _, a := range symmetric(t.Before, t.After) {
				if addr, err := netip.ParseAddr(a); err == nil {
					c.moves[rota.EndpointID{Service: t.Service, Address: addr}]++
				}
			}
		}
	}
	if respecified {
		for id := range c.moves {
			if svc := s.Service(id.Service); svc == nil || !configured(svc, id.Address) {
				delete(c.moves, id)
			}
		}
	}
	out := make(map[rota.EndpointID]uint64, len(c.moves))
	for id, n := range c.moves {
		out[id] = n
	}
	return out
}

// symmetric lists what only one of two sorted lists has.
func symmetric(a, b []string) []string {
	var out []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			out = append(out, x)
		}
	}
	return out
}

// Describe makes the collector an unchecked one: its series follow the configuration.
func (c *Collector) Describe(chan<- *prometheus.Desc) {}

// Collect computes all metrics from one state.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.o.Source.State()
	v := &view{State: s, now: c.o.Now(), reports: c.o.Reports(), node: c.o.Node}
	v.hear(c.o.Cluster)
	emit := func(name, help string, kind prometheus.ValueType, value float64, labels ...string) {
		var keys, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			keys, values = append(keys, labels[i]), append(values, labels[i+1])
		}
		m, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help, keys, nil), kind, value, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(prometheus.NewDesc(name, help, keys, nil), err)
		}
		out <- m
	}
	gauge := func(name, help string, value float64, labels ...string) {
		emit(name, help, prometheus.GaugeValue, value, labels...)
	}

	gauge("rota_build_info", "The build of this process.", 1, "version", c.o.Version, "goversion", runtime.Version())
	gauge("rota_state_index", "Index of the last event in the state.", float64(s.Index()))
	if !s.At().IsZero() {
		gauge("rota_state_timestamp_seconds", "Time of the last event in the state.", seconds(s.At()))
	}
	byAction := map[rota.Action]int{rota.ActionDrain: 0, rota.ActionMaintenance: 0, rota.ActionForceUp: 0, rota.ActionForceDown: 0}
	for _, o := range s.Overrides() {
		if s.Holds(&o, v.now) {
			byAction[o.Action]++
		}
	}
	for a, n := range byAction {
		gauge("rota_overrides", "Endpoints under an override.", float64(n), "action", string(a))
	}

	vs := v.vantages(c.o.VantageStats(), &c.dissents)
	if v.heard {
		gauge("rota_vantage_voting", "Voices that can be heard now.", float64(vs.Voting))
	}
	gauge("rota_vantage_quorum", "Voices that a change of verdict needs.", float64(vs.Need))
	for _, x := range vs.Items {
		c.vantage(v, x, emit)
	}

	services := s.Services()
	disputed := map[rota.Name]bool{}
	if v.heard {
		for _, d := range c.dissents.of(v).Services {
			disputed[d.Service] = d.Split > 0
		}
	}
	for i := range services {
		c.service(v, &services[i], disputed[services[i].Name], gauge)
	}
	if c.o.NoEndpoints {
		return
	}
	moves := c.count(s)
	for i := range services {
		for _, e := range services[i].Endpoints {
			id := rota.EndpointID{Service: services[i].Name, Address: e.Address}
			emit("rota_endpoint_transitions_total", "How often the endpoint came into the answer or left it.", prometheus.CounterValue,
				float64(moves[id]), "service", id.Service.Short(), "endpoint", e.Address.String())
		}
	}
}

// vantage emits what is known of a vantage. Of what is not heard here nothing is said, so that nobody takes silence for a fault.
func (c *Collector) vantage(v *view, x VantageView, emit func(string, string, prometheus.ValueType, float64, ...string)) {
	if x.State == "unknown" {
		return
	}
	gauge := func(name, help string, value float64) {
		emit(name, help, prometheus.GaugeValue, value, "vantage", x.Vantage)
	}
	at := 0.0
	if !x.Report.IsZero() {
		at = seconds(x.Report)
		gauge("rota_vantage_report_age_seconds", "Since its last report was taken in; absent while there was none.", v.now.Sub(x.Report).Seconds())
	}
	gauge("rota_vantage_last_report_timestamp_seconds", "When the vantage was last heard; 0: never.", at)
	gauge("rota_vantage_abstains", "1 while it does not trust its own eyes and has no vote.", one(x.State == "abstaining"))
	if !v.heard {
		return
	}
	gauge("rota_vantage_failing_targets", "Targets that it holds up and that failed and are not forgiven yet.", float64(x.Failing))
	gauge("rota_vantage_dissent_targets", "Targets of which more than half of the others claim the opposite.", float64(x.Against))
	gauge("rota_vantage_outlier", "1 while it contradicts the others so often that it is more likely wrong than they are.", one(x.Outlier))
	if x.From == "" && len(x.Refused) == 0 {
		return // it is this node, whose reports need no way here, or was never heard
	}
	gauge("rota_vantage_clock_offset_seconds", "How far its clock is behind this node's, with the way here.", x.Offset.Seconds())
	gauge("rota_vantage_report_bytes", "Size of its last report.", float64(x.Bytes))
	const reports, help = "rota_vantage_reports_total", "Reports that arrived, by what became of them."
	emit(reports, help, prometheus.CounterValue, float64(x.Taken), "vantage", x.Vantage, "result", "taken")
	for kind, n := range x.Refused {
		emit(reports, help, prometheus.CounterValue, float64(n), "vantage", x.Vantage, "result", kind)
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// service emits what is known of a service. disputed: vantages contradict one another on one of its targets, at least.
func (c *Collector) service(v *view, svc *rota.Service, disputed bool, gauge func(string, string, float64, ...string)) {
	sel := v.Selection(svc.Name)
	if sel == nil {
		return
	}
	name := svc.Name.Short()
	all, healthy, draining, published, split := 0, 0, 0, 0, 0
	for _, m := range members(sel) {
		if !configured(svc, m.Address) {
			continue
		}
		all++
		if m.Health == rota.Up {
			healthy++
		}
		if m.Health == rota.Draining {
			draining++
		}
		if m.Step == rota.StepKept {
			published++
		}
		if c.o.NoEndpoints {
			continue
		}
		for _, s := range []rota.Status{rota.Up, rota.Down, rota.Draining, rota.Unknown} {
			gauge("rota_endpoint_verdict", "1 for the verdict that the quorum holds of the endpoint.", one(m.Health == s),
				"service", name, "endpoint", m.Address.String(), "verdict", s.String())
		}
		gauge("rota_endpoint_share", "Share of its weight that counts, 0 to 1.", float64(m.Counts())/float64(max(uint64(m.Weight)*100, 1)),
			"service", name, "endpoint", m.Address.String())
	}
	for i := range svc.Endpoints {
		if disputed && v.split(&svc.Endpoints[i]) {
			split++
		}
	}
	// The first two carry the same labels, so that one can be divided by the other.
	policy := string(svc.Safety.OnAllDown)
	gauge("rota_service_endpoints", "Endpoints that are configured.", float64(all), "service", name, "policy", policy)
	gauge("rota_service_healthy_endpoints", "Endpoints whose verdict is up.", float64(healthy), "service", name, "policy", policy)
	gauge("rota_service_draining_endpoints", "Endpoints that say themselves that they drain.", float64(draining), "service", name)
	gauge("rota_service_checks_on_trial", "Checks that no endpoint has passed since they are new.", float64(len(v.Trials(svc.Name))), "service", name)
	gauge("rota_service_disabled", "1 while neither verdicts nor time change its answer.", one(svc.Disabled), "service", name)
	gauge("rota_service_published_endpoints", "Endpoints that publishers are told.", float64(published), "service", name)
	if v.heard {
		gauge("rota_service_split_endpoints", "Endpoints on which vantages disagree, some up and some down.", float64(split), "service", name)
	}
	gauge("rota_service_panic", "1 while health is not believed.", one(sel.V4.Mode.Panic() || sel.V6.Mode.Panic()), "service", name)
}

// split reports whether some vantages hold an endpoint up and others down, of the same check.
func (v *view) split(e *rota.Endpoint) bool {
	for _, u := range e.Checks {
		if u.Observe {
			continue
		}
		up, down := false, false
		for _, vote := range v.Votes(e.Target(u).ID, v.reports, v.now) {
			up, down = up || vote.Status == rota.Up, down || vote.Status == rota.Down || vote.Status == rota.Draining
		}
		if up && down {
			return true
		}
	}
	return false
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
