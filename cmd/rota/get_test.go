package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

// Every kind of event says what it did.
func TestSummary(t *testing.T) {
	for _, c := range []struct {
		event rota.Event
		want  string
	}{
		{rota.Event{Kind: rota.EventSpec, Spec: &rota.Spec{Services: make([]rota.Service, 2)}}, "configuration of 2 services"},
		{rota.Event{Kind: rota.EventVantages, Vantages: make([]rota.Vantage, 3), Reason: "who votes: a, b, c"}, "3 vantages; (who votes: a, b, c)"},
		{rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: "1", Name: "a", Site: "ams"}, {ID: "2", Name: "b", Site: "b"}}}, "node a in ams; node b"},
		{rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: "1", Gone: true}}}, "node 1 is out"},
		{rota.Event{Kind: rota.EventRestore, Spec: &rota.Spec{Services: make([]rota.Service, 1)}}, "restored the configuration of 1 service and 0 overrides"},
		{rota.Event{Kind: rota.EventLead, Lead: &rota.Lead{Node: "a", Term: 7}}, "a leads, term 7"},
	} {
		if got := summary(api.Record{Event: c.event}); got != c.want {
			t.Errorf("%s: got %q, want %q", c.event.Kind, got, c.want)
		}
	}
}

// A table says which vantage is noisy, who says that it drains, and how much of a weight counts.
func TestRowsOfWhatIsSaid(t *testing.T) {
	now := time.Now()
	noisy := strings.Join(vantageRow(api.VantageView{Vantage: "fra", State: "voting", Up: 9, Failing: 4, Noisy: true}, now), "|")
	if !strings.Contains(noisy, "|NOISY: 4 of the targets that it holds up failed lately|") {
		t.Error(noisy)
	}
	drains := strings.Join(endpointRow(api.EndpointView{Verdict: rota.Draining, Last: rota.Draining, Took: 12 * time.Millisecond, Weight: 3, Share: 10}, now), "|")
	if !strings.Contains(drains, "|DRAINING|") || !strings.Contains(drains, "|3 (10 %)|") || !strings.Contains(drains, "|12ms|") {
		t.Error(drains)
	}
	if w := statusWords(api.ServiceView{Status: "disabled"}); w != "DISABLED" {
		t.Error(w)
	}
}
