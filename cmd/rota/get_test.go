package main

import (
	"testing"

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
