package rota_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// A service with two endpoints is configured, judged and asked why it answers as it does.
func Example() {
	web := rota.Check{Name: "web", Kind: rota.KindHTTPS, Port: 443, Path: "/health", Timing: rota.DefaultTiming()}
	service := rota.Service{Name: rota.MustParseName("www.example.org"), TTL: 30, Safety: rota.DefaultSafety(), Publish: []string{"bind"}}
	for _, a := range []string{"192.0.2.10", "192.0.2.11"} {
		service.Endpoints = append(service.Endpoints, rota.Endpoint{
			Address: netip.MustParseAddr(a), Weight: 1, Checks: []rota.Use{{Check: web}},
		})
	}
	vantages := []rota.Vantage{{Name: "ams1", Site: "ams"}, {Name: "fra1", Site: "fra"}, {Name: "lon1", Site: "lon"}}

	state, now := &rota.State{}, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	apply := func(e rota.Event) {
		e.Index, e.At = state.Index()+1, now
		next, err := state.Apply(e)
		if err != nil {
			fmt.Println(err)
		}
		for _, t := range rota.Transitions(state, next) {
			fmt.Println(t.Service.Short(), t.Type, t.Before, "→", t.After)
		}
		state = next
	}
	apply(rota.Event{Kind: rota.EventSpec, Spec: &rota.Spec{Services: []rota.Service{service}, Vantages: vantages}})

	up := func(e rota.Endpoint) rota.Status { return rota.Up }
	firstDown := func(e rota.Endpoint) rota.Status {
		if e.Address == netip.MustParseAddr("192.0.2.10") {
			return rota.Down
		}
		return rota.Up
	}
	for _, sees := range []func(rota.Endpoint) rota.Status{up, firstDown} {
		// Two of three vantages report; the third is silent, which is a vote for nothing.
		var reports []*rota.Report
		var asked []rota.TargetID
		for _, v := range vantages[:2] {
			r := &rota.Report{Vantage: v.Name, Seq: 1, At: now}
			for _, e := range service.Endpoints {
				id := e.Target(e.Checks[0]).ID
				r.Opinions = append(r.Opinions, &rota.Opinion{Target: id, Status: sees(e), Reason: "no answer in 3s"})
				asked = append(asked, id)
			}
			reports = append(reports, r)
		}
		apply(rota.Event{Kind: rota.EventVerdicts, Verdicts: state.Judge(asked, reports, now)})
		now = now.Add(time.Minute)
	}

	for want := range state.Wants("bind") {
		fmt.Println(want.Set)
	}
	x, _ := state.Explain(service.Name, rota.TypeA)
	fmt.Println(x.Summary)
	for _, e := range x.Endpoints {
		fmt.Println(e.Address, e.Why)
	}
	// Output:
	// www.example.org A [] → [192.0.2.10 192.0.2.11]
	// www.example.org A [192.0.2.10 192.0.2.11] → [192.0.2.10 192.0.2.11]
	// www.example.org A [192.0.2.10 192.0.2.11] → [192.0.2.11]
	// www.example.org 30 A 192.0.2.11
	// 1 of 2 up
	// 192.0.2.10 down by 2 of 3 (web: no answer in 3s)
	// 192.0.2.11 up by 2 of 3 (web)
}

// One success does not forgive two failures: a target that loses every third probe goes down.
func ExampleStreak() {
	timing := rota.Timing{Fall: 3, Rise: 2, OK: 3}
	var s rota.Streak
	for _, status := range []rota.Status{rota.Up, rota.Up, rota.Down, rota.Up, rota.Down, rota.Up, rota.Down} {
		s = s.Observe(rota.Observation{Status: status}, timing)
		fmt.Println(status, "→", s.Status)
	}
	// Output:
	// up → unknown
	// up → up
	// down → up
	// up → up
	// down → up
	// up → up
	// down → down
}
