package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
)

// registry gathers what this node counts. Everything is read from where it lives when it is asked for.
func (n *node) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		n.collector, rooms{n})
	return r
}

// rooms turns the counters of the rooms into metrics. Labels are what is configured and what rota itself names: nothing that came over
// a network becomes one.
type rooms struct{ n *node }

// Describe sends nothing: which series there are depends on the configuration.
func (r rooms) Describe(chan<- *prometheus.Desc) {}

// Collect sends what the rooms count now.
func (r rooms) Collect(out chan<- prometheus.Metric) {
	m := emitter{out}
	r.probes(m, r.n.prober.Stats())
	now := r.n.current.Load()
	for _, p := range now.publishers {
		publishers(m, p.Status())
	}
	if r.n.dns != nil {
		queries(m, r.n.dns.Stats())
	}
	seen(m, r.n.outside.Status(), r.n.disagreements())
	r.cluster(m)
	if r.n.net != nil {
		port(m, r.n.net.port.Stats(), r.n.net.creds.Expires())
	}
	ok := 1.0
	if now.failed != nil {
		ok = 0
	}
	m.gauge("rota_frozen", "1 while a person stopped everything automatic.", flag(r.n.frozen.Load() != nil), "scope", "node")
	m.gauge("rota_frozen", "1 while a person stopped everything automatic.", flag(r.n.raft.State().Frozen() != nil), "scope", "cluster")
	m.gauge("rota_config_last_reload_successful", "1 while the newest configuration is in force.", ok)
	m.gauge("rota_config_timestamp_seconds", "When the configuration in force was read.", seconds(now.since))
}

func (r rooms) probes(m emitter, s probe.Stats) {
	m.gauge("rota_probe_targets", "Targets that this node probes.", float64(s.Targets))
	m.gauge("rota_probe_in_flight", "Probes under way.", float64(s.InFlight))
	m.counter("rota_probe_stops_total", "Times this process was found to have been stopped or asleep.", s.Stops)
	for _, k := range s.Kinds {
		kind := string(k.Kind)
		for _, c := range k.Results {
			m.counter("rota_probe_total", "Probes that ended.", c.Count, "kind", kind, "result", c.Status.String(), "reason", string(c.Class))
		}
		m.counter("rota_probe_opinion_changes_total", "Opinions that changed, the first ones included.", k.Changes, "kind", kind)
		m.counter("rota_probe_forgiven_total", "Times that failures were forgiven and the opinion stayed: flapping that was damped.", k.Forgiven, "kind", kind)
		m.histogram("rota_probe_duration_seconds", "How long probes took.", k.Duration, "kind", kind)
		m.histogram("rota_probe_lateness_seconds", "Between the time a probe was due and its start.", k.Lateness, "kind", kind)
	}
}

func publishers(m emitter, s publish.Status) {
	for _, z := range s.Zones {
		labels := []string{"publisher", s.Publisher, "zone", z.Zone.Short()}
		m.counter("rota_publish_writes_total", "Transactions that a DNS took.", z.Writes, labels...)
		m.counter("rota_publish_changes_total", "RRsets changed and read back.", z.Changes, labels...)
		m.counter("rota_publish_repairs_total", "Writes that put right what somebody else had changed.", z.Repairs, labels...)
		m.gauge("rota_publish_consecutive_failures", "Rounds in a row that did not make the zone true; what a person or a safety limit holds is none.", float64(z.Failures), labels...)
		m.gauge("rota_publish_drift_records", "RRsets that are not as they should be.", float64(z.Drift), labels...)
		held := 0
		for _, h := range z.Held {
			held += len(h.Change.Removed())
		}
		m.gauge("rota_publish_held_records", "Records that a safety limit keeps in the zone.", float64(held), labels...)
		m.gauge("rota_publish_lag_seconds", "From the last decision to its read-back.", z.Lag.Seconds(), labels...)
		m.gauge("rota_reconcile_last_success_timestamp_seconds", "When the zone was last read and all of it was right.",
			seconds(z.LastSuccess), labels...)
	}
	m.gauge("rota_publish_lost_names", "Names whose zone cannot be found.", float64(len(s.Lost)), "publisher", s.Publisher)
}

func queries(m emitter, s nameserver.Stats) {
	for _, q := range s.Queries {
		m.counter("rota_dns_responses_total", "Answers of rota's own name server.", q.Count,
			"zone", q.Zone.Short(), "proto", string(q.Proto), "rcode", q.Rcode)
	}
	m.counter("rota_dns_malformed_total", "Packets that got no answer.", s.Malformed)
	m.counter("rota_dns_truncated_total", "Answers with TC set.", s.Truncated)
	m.counter("rota_dns_panics_total", "Queries that met a bug and got SERVFAIL.", s.Panics)
	m.gauge("rota_dns_tcp_connections", "TCP connections now.", float64(s.TCPOpen))
	m.counter("rota_dns_tcp_refused_total", "TCP connections closed to make room, or refused.", s.TCPClosed)
	buckets, count := map[float64]uint64{}, uint64(0)
	for _, l := range s.Latency {
		count = l.Count
		if l.Le > 0 {
			buckets[l.Le.Seconds()] = l.Count
		}
	}
	m.out <- prometheus.MustNewConstHistogram(
		prometheus.NewDesc("rota_dns_response_duration_seconds", "From packet read to packet written.", nil, nil),
		count, s.Took.Seconds(), buckets)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (r rooms) cluster(m emitter) {
	said, _ := r.n.said.Stats()
	for _, kind := range cluster.SaidRefusals {
		m.counter("rota_said_refused_total", "What was said of endpoints and refused, by kind.", said[kind], "result", kind)
	}
	s := r.n.raft.Status()
	m.gauge("rota_raft_is_leader", "1 while this node leads.", flag(s.Leading))
	m.gauge("rota_raft_term", "The term.", float64(s.Term))
	m.gauge("rota_raft_applied_index", "Index of the last event in the state.", float64(s.Applied))
	m.gauge("rota_raft_commit_index", "Index that a majority holds.", float64(s.Commit))
	m.gauge("rota_raft_voters", "Voters there are.", float64(s.Voters))
	healthy := 0
	for _, x := range r.n.raft.Members() {
		if x.Voter && (x.Self && (s.Leading || s.Leader != "") || s.Leading && x.LastContact >= 0 && x.LastContact < heardWithin) {
			healthy++
		}
	}
	if s.Leading || s.Voters <= 1 {
		m.gauge("rota_raft_healthy_voters", "Voters that are heard; only who leads knows.", float64(healthy))
	}
	m.gauge("rota_raft_has_leader", "1 while a node leads, as far as this one knows.", flag(s.Leader != ""))
	m.gauge("rota_raft_behind_entries", "Entries that are known to be ordered and are not in this node's state yet.", float64(s.Behind))
	stale := 0.0
	if !s.Since.IsZero() {
		stale = r.n.clock.Now().Sub(s.Since).Seconds()
	}
	m.gauge("rota_state_stale_seconds", "How long this node's state may have been older than the cluster's; 0: it is current.", stale)
	why := r.n.doubt.why().cause
	for _, c := range causes {
		m.gauge("rota_vantage_self_abstains", "1 while this node abstains, for this reason.", flag(c == why), "reason", string(c))
	}
	clocks := r.n.doubt.state()
	m.counter("rota_process_stops_total", "Times this process did not run for long, or its machine was asleep, and then looked at everything again.", clocks.stops)
	m.counter("rota_clock_steps_total", "Times the wall clock was set by a second or more.", clocks.steps)
	m.gauge("rota_clock_offset_seconds", "How far the wall clock is ahead of the time that decisions are made by.", clocks.Off.Seconds())
	m.gauge("rota_node_troubles", "What is wrong although the node serves.", float64(len(s.Trouble)))
}

// heardWithin is how lately a voter must have answered to count as heard.
const heardWithin = 5 * time.Second

// port counts who came to the cluster's port.
func port(m emitter, s link.Stats, expires time.Time) {
	m.counter("rota_port_accepted_total", "Connections to the cluster's port, whatever became of them.", s.Accepted)
	m.gauge("rota_port_connections", "Connections of peers that were let in.", float64(s.Open))
	for why, n := range s.Refused {
		m.counter("rota_port_refused_total", "Connections refused, in both directions.", n, "reason", string(why))
	}
	m.gauge("rota_certificate_expiry_timestamp_seconds", "When this node's certificate ends.", seconds(expires))
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// emitter sends metrics whose labels are given as name, value, name, value.
type emitter struct{ out chan<- prometheus.Metric }

func (m emitter) gauge(name, help string, v float64, labels ...string) {
	m.send(prometheus.GaugeValue, name, help, v, labels)
}

func (m emitter) counter(name, help string, v uint64, labels ...string) {
	m.send(prometheus.CounterValue, name, help, float64(v), labels)
}

func (m emitter) send(t prometheus.ValueType, name, help string, v float64, labels []string) {
	desc, values := describe(name, help, labels)
	m.out <- prometheus.MustNewConstMetric(desc, t, v, values...)
}

func (m emitter) histogram(name, help string, h probe.Histogram, labels ...string) {
	desc, values := describe(name, help, labels)
	buckets, count := map[float64]uint64{}, uint64(0)
	for i, n := range h.Counts {
		count += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = count
		}
	}
	m.out <- prometheus.MustNewConstHistogram(desc, count, h.Sum, buckets, values...)
}

func describe(name, help string, labels []string) (*prometheus.Desc, []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	return prometheus.NewDesc(name, help, names, nil), values
}
