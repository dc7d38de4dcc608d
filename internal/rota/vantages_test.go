package rota

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// inEachWay is a state with a service in each way a service can be in, seen by these vantages.
func inEachWay(t *testing.T, vantages ...string) *State {
	t.Helper()
	check := Check{Name: "tcp", Kind: KindTCP, Port: 443, Timing: DefaultTiming()}
	spec := &Spec{Vantages: named(vantages...)}
	for i, name := range []string{"fine", "hurt", "panic", "warm", "drained"} {
		v := Service{Name: MustParseName(name + ".example.org"), TTL: 30, Safety: DefaultSafety(), Publish: []string{"x"}}
		for j := range 4 {
			v.Endpoints = append(v.Endpoints, Endpoint{
				Address: netip.AddrFrom4([4]byte{192, 0, byte(i), byte(j)}), Weight: 1, Checks: []Use{{Check: check}},
			})
		}
		spec.Services = append(spec.Services, v)
	}
	s := &State{}
	apply := func(after time.Duration, e Event) {
		t.Helper()
		e.Index, e.At = s.Index()+1, epoch.Add(after)
		next, err := s.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	verdicts := func(after time.Duration, service, ups int) {
		var vs []Verdict
		for j, e := range spec.Services[service].Endpoints {
			v := Verdict{Target: e.Target(e.Checks[0]).ID, Status: Up, Since: epoch.Add(after), Need: 2}
			if j >= ups {
				v.Status = Down
			}
			vs = append(vs, v)
		}
		apply(after, Event{Kind: EventVerdicts, Verdicts: vs})
	}
	apply(0, Event{Kind: EventSpec, Spec: spec})
	for i, service := range []string{"fine", "hurt", "panic", "warm", "drained"} {
		if service != "warm" {
			verdicts(time.Second, i, 4)
		}
	}
	verdicts(time.Minute, 1, 3)
	verdicts(time.Minute, 2, 0)
	o := Override{Endpoint: EndpointID{spec.Services[4].Name, spec.Services[4].Endpoints[0].Address}, Action: ActionDrain, Set: epoch, Expires: epoch.Add(time.Hour)}
	apply(time.Minute+time.Second, Event{Kind: EventOverride, Overrides: []Override{o}})
	return s
}

func named(vantages ...string) (out []Vantage) {
	for _, v := range vantages {
		out = append(out, Vantage{Name: v, Site: "site-" + v})
	}
	return out
}

// TestVantagesComeAndGo: another set of vantages touches no verdict, no answer, no warm-up and no hold, and moves no serial.
func TestVantagesComeAndGo(t *testing.T) {
	s := inEachWay(t, "a", "b", "c")
	before := s
	for i, set := range [][]Vantage{
		named("a", "b", "c", "d"), named("a", "b"), named("x", "y", "z"), {{Name: "a", Site: "elsewhere"}}, nil, named("a", "b", "c"),
	} {
		spec := s.Spec()
		spec.Vantages = set
		next, err := s.Apply(Event{Index: s.Index() + 1, At: epoch.Add(time.Minute + time.Duration(2+i)*time.Second), Kind: EventSpec, Spec: &spec})
		if err != nil {
			t.Fatal(err)
		}
		s = next
		for _, v := range s.Services() {
			if s.Selection(v.Name) != before.Selection(v.Name) {
				t.Errorf("%s was decided anew with %v:\n%+v\n%+v", v.Name, set, before.Selection(v.Name), s.Selection(v.Name))
			}
		}
		for _, x := range s.Targets() {
			if a, b := before.Verdict(x.ID), s.Verdict(x.ID); fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("the verdict on %s was %+v and is %+v", x.ID, a, b)
			}
		}
		if s.Serial() != before.Serial() || !s.Deadline().Equal(before.Deadline()) || s.Table() != before.Table() || len(Transitions(before, s)) != 0 {
			t.Errorf("with %v: serial %d, deadline %v, same table %v, transitions %v", set, s.Serial(), s.Deadline(), s.Table() == before.Table(), Transitions(before, s))
		}
	}
	a, b := before.Snapshot(), s.Snapshot()
	a.Index, a.At = b.Index, b.At
	x, err := Restore(a)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshotBytes(t, x), snapshotBytes(t, s)) {
		t.Error("something else than the vantages is another")
	}
}

// TestMajorityFollowsVantages: how many are needed is of those that are configured, from the event on that says so; what they do not
// call for stays as it was.
func TestMajorityFollowsVantages(t *testing.T) {
	s := inEachWay(t, "a", "b", "c")
	id := s.Service("fine.example.org.").Endpoints[0]
	target := id.Target(id.Checks[0]).ID
	now := epoch.Add(2 * time.Minute)
	hold := map[string]Status{}
	judge := func() string {
		var reports []*Report
		for _, v := range []string{"a", "b", "c", "d", "e"} {
			if status, ok := hold[v]; ok {
				reports = append(reports, &Report{Vantage: v, Seq: 1, At: now, Opinions: []*Opinion{{Target: target, Status: status}}})
			}
		}
		vs := s.Judge([]TargetID{target}, reports, now)
		if len(vs) == 0 {
			return "stays " + s.Verdict(target).Status.String()
		}
		next, err := s.Apply(Event{Index: s.Index() + 1, At: now, Kind: EventVerdicts, Verdicts: vs})
		if err != nil {
			t.Fatal(err)
		}
		s = next
		return fmt.Sprintf("becomes %v by %d", vs[0].Status, vs[0].Need)
	}
	for _, step := range []struct {
		vantages []Vantage
		says     map[string]Status
		want     string
	}{
		{named("a", "b", "c"), map[string]Status{"a": Up, "b": Up, "c": Down}, "stays up"},
		{named("a", "b", "c", "d"), nil, "stays up"},                          // the new one is silent: V3
		{named("a", "b", "c", "d"), map[string]Status{"d": Down}, "stays up"}, // two against two: V4
		{named("b", "c", "d"), nil, "becomes down by 2"},                      // the same voices are a majority now
		{named("a", "b", "c", "d", "e"), nil, "stays down"},                   // a's voice is back: two against two
		{named("a", "b", "c", "d", "e"), map[string]Status{"e": Up}, "becomes up by 3"},
		{named("a", "b", "c", "d", "e"), map[string]Status{"a": Down}, "becomes down by 3"},
		{named("e", "f", "g"), nil, "stays down"}, // one voice of three
		{named("e"), nil, "becomes up by 1"},
		{nil, map[string]Status{"e": Down}, "stays up"}, // nobody votes
		{named("x", "y"), nil, "stays up"},              // strangers are not heard
	} {
		spec := s.Spec()
		spec.Vantages = step.vantages
		next, err := s.Apply(Event{Index: s.Index() + 1, At: now, Kind: EventSpec, Spec: &spec})
		if err != nil {
			t.Fatal(err)
		}
		s = next
		for v, status := range step.says {
			hold[v] = status
		}
		if got := judge(); got != step.want {
			t.Errorf("%v with %v: %s, want %s", step.vantages, hold, got, step.want)
		}
	}
}

// Who votes changes alone: a configuration that was ordered meanwhile stays.
func TestVantagesEvent(t *testing.T) {
	s := inEachWay(t, "a", "b", "c")
	before := s
	apply := func(vs ...Vantage) error {
		next, err := s.Apply(Event{Index: s.Index() + 1, At: s.At(), Kind: EventVantages, Vantages: vs})
		s = next
		return err
	}
	if err := apply(Vantage{Name: "a", Site: "x"}, Vantage{Name: "d", Site: "y", Agent: true, Said: true}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Spec().Vantages); got != "[{a x false false} {d y true true}]" {
		t.Error(got)
	}
	if len(s.Services()) != len(before.Services()) || len(before.Spec().Vantages) != 3 || s.Serial() != before.Serial() {
		t.Error("something else changed")
	}
	again, err := Restore(s.Snapshot())
	if err != nil || fmt.Sprint(again.Spec().Vantages) != fmt.Sprint(s.Spec().Vantages) {
		t.Error(again.Spec().Vantages, err)
	}
	for _, bad := range [][]Vantage{nil, {{Name: "a"}, {Name: "a"}}, {{}}} {
		if err := apply(bad...); err == nil || len(s.Spec().Vantages) != 2 {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
