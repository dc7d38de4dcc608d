package api

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rota-dns/rota/internal/rota"
)

// What endpoints say of themselves, what is on trial and what stands still is shown in every view and in metrics.
func TestSaidIsShown(t *testing.T) {
	f := night(t)
	spec := f.State().Spec()
	spec.Services = slices.Clone(spec.Services)
	for i := range spec.Services {
		if v := &spec.Services[i]; v.Name.Short() == "www.example.org" {
			v.Policy.SlowStart = 10 * time.Minute
		}
	}
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventSpec, Spec: &spec})
	half := verdict("192.0.2.12", rota.Up, "")
	half.Weight = 50
	f.must(t, rota.Event{At: t0.Add(4 * time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{
		verdict("192.0.2.10", rota.Draining, "Rota-Drain: 1"), half,
	}})
	f.must(t, rota.Event{At: t0.Add(40 * time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{verdict("192.0.2.11", rota.Up, "")}})
	next := f.State().Spec()
	next.Services = slices.Clone(next.Services)
	one := service("one.example.org", "198.51.100.1")
	one.Endpoints[0].Checks[0].Check.Path = "/new"
	one.Endpoints[0].Checks[0].Check.Name = "new"
	still := service("still.example.org", "198.51.100.1")
	still.Disabled = true
	next.Services = []rota.Service{next.Services[1], one, still}
	f.must(t, rota.Event{At: t0.Add(41 * time.Second), Kind: rota.EventSpec, Spec: &next})
	o := options(t, f)
	s := server(t, o)
	byName := map[string]ServiceView{}
	for _, v := range decode[List[ServiceView]](t, get(s, "/api/v1/services")).Items {
		byName[v.Service] = v
	}
	if v := byName["www.example.org"]; v.Draining != 1 || v.Status != "degraded" || len(v.Answer) != 3 {
		t.Errorf("%+v", v)
	}
	if v := byName["one.example.org"]; !slices.Equal(v.Trials, []string{"new"}) {
		t.Errorf("%+v", v)
	}
	if v := byName["still.example.org"]; v.Status != "disabled" || !v.Disabled.Equal(t0.Add(41*time.Second)) {
		t.Errorf("%+v", v)
	}
	es := decode[List[EndpointView]](t, get(s, "/api/v1/endpoints?match=www.example.org")).Items
	if e := es[0]; e.Verdict != rota.Draining || e.InAnswer || e.Cause != rota.CauseAnnounced || !strings.Contains(e.Why, "it says so itself") {
		t.Errorf("%+v", e)
	}
	if e := es[1]; e.Share != 10 || !strings.Contains(e.Why, "slow start until 02:23:40Z") {
		t.Errorf("%+v", e)
	}
	if e := es[2]; e.Share != 50 || e.Weight != 1 || !strings.Contains(e.Why, "it asks for 50 %") {
		t.Errorf("%+v", e)
	}
	x := decode[Explained](t, get(s, "/api/v1/explain?name=one.example.org&type=A"))
	if !x.Endpoints[0].Checks[0].Trial || !strings.Contains(x.Summary, "on trial") {
		t.Errorf("%+v", x)
	}
	f.must(t, rota.Event{At: t0.Add(42 * time.Second), Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{
		{Target: f.State().Service("one.example.org.").Endpoints[0].Target(f.State().Service("one.example.org.").Endpoints[0].Checks[0]).ID, Status: rota.Down},
	}})
	for _, e := range decode[List[EndpointView]](t, get(s, "/api/v1/endpoints")).Items {
		if want := e.Service == "one.example.org"; e.Trial != want || want && (e.Verdict != rota.Down || !e.InAnswer) {
			t.Errorf("%+v", e)
		}
	}
	lazy := 0
	for _, c := range decode[List[CheckView]](t, get(s, "/api/v1/checks")).Items {
		if c.Lazy {
			lazy++
		}
	}
	if lazy != 1 {
		t.Errorf("%d checks are lazy, want that of the disabled service", lazy)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(CollectorOptions{Source: f, Node: "ams", Reports: o.Reports, Now: o.Now, Cluster: o.Cluster}))
	o.Registry = reg
	text := get(server(t, o), "/metrics").Body.String()
	for _, want := range []string{
		`rota_service_draining_endpoints{service="www.example.org"} 1`, `rota_service_checks_on_trial{service="one.example.org"} 1`,
		`rota_service_disabled{service="still.example.org"} 1`, `rota_service_disabled{service="one.example.org"} 0`,
		`rota_endpoint_share{endpoint="192.0.2.12",service="www.example.org"} 0.5`, `rota_endpoint_share{endpoint="192.0.2.10",service="www.example.org"} 1`,
		`rota_endpoint_verdict{endpoint="192.0.2.10",service="www.example.org",verdict="draining"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// P6: a vantage with a bad way has failures everywhere that change no opinion. It shows as noisy, before and beside any dissent.
func TestP6_NoisyVantageShows(t *testing.T) {
	f := night(t)
	o := options(t, f)
	rs := reports(o.Now())
	for _, i := range []int{1, 2} { // fra has failures of three targets, nyc of two
		for j := range 4 - i {
			op := *rs[i].Opinions[j*2]
			if i == 1 && j == 2 {
				op = *rs[i].Opinions[1]
			}
			op.Status, op.Class, op.Reason = rota.Up, rota.ClassTimeout, "no answer in 3 s"
			k := slices.IndexFunc(rs[i].Opinions, func(x *rota.Opinion) bool { return x.Target == op.Target })
			rs[i].Opinions[k] = &op
		}
	}
	o.Reports = func() []*rota.Report { return rs }
	v := decode[VantageList](t, get(server(t, o), "/api/v1/vantages"))
	for i, want := range []struct {
		failing int
		noisy   bool
	}{{0, false}, {3, true}, {2, false}} {
		if x := v.Items[i]; x.Failing != want.failing || x.Noisy != want.noisy || x.Outlier {
			t.Errorf("%s: %d failing, noisy %v, want %+v", x.Vantage, x.Failing, x.Noisy, want)
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(CollectorOptions{Source: f, Node: "ams", Reports: o.Reports, Now: o.Now, Cluster: o.Cluster}))
	o.Registry = reg
	if text := get(server(t, o), "/metrics").Body.String(); !strings.Contains(text, `rota_vantage_failing_targets{vantage="fra"} 3`) {
		t.Errorf("no metric of it in\n%s", text)
	}
}
