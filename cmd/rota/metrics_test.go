package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v4"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/nameserver"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
	"github.com/rota-dns/rota/internal/witness"
)

// busy emits what a node of a cluster has that probes, publishes and answers.
type busy struct{ n *node }

func (busy) Describe(chan<- *prometheus.Desc) {}

func (b busy) Collect(out chan<- prometheus.Metric) {
	m := emitter{out}
	rooms(b).probes(m, probe.Stats{Kinds: []probe.KindStats{{Kind: rota.KindTCP, Results: []probe.ResultCount{{Class: rota.ClassOK}}}}})
	publishers(m, publish.Status{Publisher: "bind", Zones: []publish.ZoneStatus{{Zone: "example.org."}}})
	queries(m, nameserver.Stats{Queries: []nameserver.QueryCount{{Zone: "example.org.", Proto: "udp", Rcode: "NOERROR"}}})
	seen(m, []witness.ZoneStatus{{Publisher: "bind", Zone: "example.org.", Visible: witness.Histogram{Counts: []uint64{0}}}}, []witness.Disagreement{{Service: "www.example.org."}})
	port(m, link.Stats{Refused: map[link.Reason]uint64{link.NotTLS: 1}}, time.Now())
}

// hearing is the collector of a leader that hears the reports of another vantage.
func hearing() *api.Collector {
	f, reports := night()
	return api.NewCollector(api.CollectorOptions{
		Source: f, Reports: func() []*rota.Report { return reports }, Version: "v1", Node: "ams",
		VantageStats: func() []api.VantageStat { return []api.VantageStat{{Vantage: "fra", From: "192.0.2.2:1", Taken: 1}} },
	})
}

// metricsOf returns the names of the metrics a registry gives, with their labels.
func metricsOf(t *testing.T, r *prometheus.Registry) map[string]string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		out[f.GetName()] = strings.Join(labels, ", ")
	}
	return out
}

// Every metric is on the page of the API, with its labels, and the page has no other; alerts are about metrics that exist.
func TestMetricsAreOnThePage(t *testing.T) {
	n := serving(t, 2)
	led(t, n)
	there := metricsOf(t, n.registry())
	more := prometheus.NewRegistry()
	more.MustRegister(busy{n}, hearing())
	for name, labels := range metricsOf(t, more) {
		there[name] = labels
	}
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(rota_\\w+)` \\| (.*?) *\\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		written[m[1]] = m[2]
		if labels, ok := there[m[1]]; !ok {
			t.Errorf("docs/api.md has %s, which /metrics has not", m[1])
		} else if labels != m[2] {
			t.Errorf("docs/api.md gives %s the labels %q, /metrics %q", m[1], m[2], labels)
		}
	}
	for name := range there {
		if _, ok := written[name]; strings.HasPrefix(name, "rota_") && !ok {
			t.Errorf("docs/api.md says nothing of %s", name)
		}
	}
	for _, a := range alerts(t) {
		for _, name := range regexp.MustCompile(`rota_\w+`).FindAllString(a.Expr, -1) {
			if _, ok := there[name]; !ok {
				t.Errorf("%s is about %s, which /metrics has not", a.Alert, name)
			}
		}
	}
}

type alert struct {
	Alert, Expr, For string
	Labels           map[string]string
	Annotations      map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	b, err := os.ReadFile("../../config/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct{ Rules []alert }
	}
	if err := yaml.Unmarshal(b, &rules); err != nil {
		t.Fatal(err)
	}
	var out []alert
	for _, g := range rules.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) == 0 {
		t.Fatal("config/alerts.yaml has no rule")
	}
	return out
}

// Every alert says what it is about and how bad that is.
func TestAlertsAreComplete(t *testing.T) {
	var names []string
	for _, a := range alerts(t) {
		if a.For != "" {
			if _, err := time.ParseDuration(a.For); err != nil {
				t.Errorf("%s: for: %v", a.Alert, err)
			}
		}
		if a.Annotations["summary"] == "" || !slices.Contains([]string{"critical", "warning", "info"}, a.Labels["severity"]) {
			t.Errorf("%s: severity %q, summary %q", a.Alert, a.Labels["severity"], a.Annotations["summary"])
		}
		if slices.Contains(names, a.Alert) {
			t.Errorf("%s stands twice", a.Alert)
		}
		names = append(names, a.Alert)
	}
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(string(page), fmt.Sprintf("`%s`", name)) {
			t.Errorf("docs/api.md says nothing of the alert %s", name)
		}
	}
}
