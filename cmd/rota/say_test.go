package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

const ownAgents = "vantage: {agents: {accept: [web1]}}\nservices: {www.example.test: {check: {type: agent, max_age: 1h}, endpoints: [{address: 192.0.2.1, agent: web1}, {address: 192.0.2.2, agent: web2}, {address: 192.0.2.3, agent: web2}]}}\n"

// cli runs a verb against a member of a fleet.
func (m *member) cli(args ...string) (code int, out, errs string) {
	m.fleet.t.Helper()
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, getenv: func(string) string { return "" }, version: "v1.2.3", now: time.Now}
	code = a.main(m.fleet.t.Context(), append(args, "--data-dir", m.dir))
	return code, o.String(), e.String()
}

// What is said to any node counts at once; another leader knows nothing of it until it is said again, and changes nothing meanwhile.
func TestReport(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, func(int) string { return ownAgents })
	does := func(m *member, args ...string) string {
		t.Helper()
		code, out, errs := m.cli(args...)
		if code != exitOK {
			t.Fatalf("rota %q: exit code %d\n%s%s", args, code, out, errs)
		}
		return out
	}
	verdicts := func() string {
		var out []string
		for _, x := range f.members[0].raft.State().Targets() {
			if f.members[0].stop != nil {
				out = append(out, f.members[0].raft.State().Verdict(x.ID).Status.String())
			}
		}
		return strings.Join(out, " ")
	}
	for i, m := range f.members {
		if out := does(m, "report", fmt.Sprintf("www.example.test/192.0.2.%d", i+1), "up", "--weight", "40"); !strings.Contains(out, "is up for 1h0m0s; it was unknown") {
			t.Errorf("n%d says %q", i, out)
		}
	}
	f.await("all are up", func() bool { return verdicts() == "up up up" })
	does(f.follower(), "report", "www.example.test/192.0.2.2", "drain", "--reason", "an update")
	f.await("one drains", func() bool { return verdicts() == "up draining up" })
	if out := does(f.leader(), "explain", "www.example.test"); !strings.Contains(out, "an update") || !strings.Contains(out, rota.OwnAgent) {
		t.Errorf("explain does not say who said it:\n%s", out)
	}
	// Nodes hand on what was said to them, and agents may not speak so.
	leader := f.leader()
	agent := issued(t, leader, link.Agent, "web1", "web1")
	if code, text := rawCall(t, agent, leader, http.MethodPost, sayPath, http.Header{"Content-Type": {"application/json"}}, []byte(`{}`)); code != http.StatusForbidden {
		t.Errorf("an agent speaks as a node: %d %s", code, text)
	}
	index := leader.raft.State().Index()
	if err := leader.raft.Transfer(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	f.await("another leads", func() bool { return f.leader() != leader })
	next := f.leader()
	f.await("it has not heard anything", func() bool {
		for _, v := range next.raft.State().Votes(next.raft.State().Targets()[0].ID, next.raft.Reports(), next.raft.Now()) {
			if v.Status != rota.Unknown || v.Vantage != rota.OwnAgent {
				return false
			}
		}
		return true
	})
	for _, r := range next.raft.Records(index, 0) {
		if len(r.Event.Verdicts) > 0 {
			t.Errorf("silence after the change of leader changed %+v", r.Event.Verdicts)
		}
	}
	does(f.follower(), "report", "www.example.test/192.0.2.2", "up")
	f.await("it is said again", func() bool { return verdicts() == "up up up" })
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"www.example.test", "up"}, exitFailed, "name the address"},
		{[]string{"www.example.test/192.0.2.9", "up"}, exitFailed, "no endpoint 192.0.2.9"},
		{[]string{"else.example.test", "up"}, exitFailed, "no service else"},
		{[]string{"www.example.test/web", "up"}, exitUsage, "SERVICE/ADDRESS"},
		{[]string{"www.example.test", "fine"}, exitUsage, "want up, down or drain"},
		{[]string{"www.example.test", "down", "--weight", "3"}, exitUsage, "for an endpoint that is up"},
		{[]string{"www.example.test", "up", "--weight", "101"}, exitUsage, "want 1 to 100"},
		{[]string{"www.example.test", "up", "--weight", "0"}, exitUsage, "want 1 to 100"},
		{[]string{"www.example.test", "up", "--every", "10ms"}, exitUsage, "at least 1s"},
		{[]string{"www.example.test/192.0.2.1", "up", "--check", "x"}, exitFailed, `no check "x"`},
	} {
		if code, out, errs := next.cli(append([]string{"report"}, c.args...)...); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("rota report %q: %d %s%s, want %d %q", c.args, code, out, errs, c.code, c.want)
		}
	}
}

// Who speaks too seldom is told so.
func TestReportTooSeldom(t *testing.T) {
	r := api.SayReply{Said: []api.Said{{Service: "a", Within: 45 * time.Second}, {Service: "b", Within: time.Minute}}}
	for every, want := range map[time.Duration]int{0: 0, 15 * time.Second: 0, 45 * time.Second: 1, time.Hour: 2} {
		if got := tooSeldom(r, every); len(got) != want {
			t.Errorf("every %v: %q", every, got)
		}
	}
}
