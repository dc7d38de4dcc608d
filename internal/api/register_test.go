package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

const agentToken = "agent-0123456789abcdef"

// hosts is a server by which hosts may register; the agent's token is named after web1.
func hosts(t *testing.T) (*fold, *Server, *time.Time, func(method, path, body, token string) *httptest.ResponseRecorder) {
	t.Helper()
	f := night(t)
	spec := f.State().Spec()
	template := rota.RegisterTemplate{
		Name: "hosts", HostName: "{host}", ServiceName: "all.example.org", HostRecord: "{host}.example.org", ExpireAfter: time.Hour,
		HostPublish: []string{"cf"}, Service: rota.Service{TTL: 30, Safety: rota.DefaultSafety(), Publish: []string{"cf"}},
	}
	spec.Registers = []rota.RegisterTemplate{template}
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventSpec, Spec: &spec})
	o := options(t, f)
	now := t0.Add(time.Minute)
	o.Now = func() time.Time { return now }
	k, err := NewToken("web1", RoleAgent, agentToken)
	if err != nil {
		t.Fatal(err)
	}
	o.Tokens = append(o.Tokens, k)
	s := server(t, o)
	return f, s, &now, func(method, path, body, token string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return call(s, r)
	}
}

// TestAgentsSpeakForThemselves: a token of the role agent registers the host that it is named after, and does nothing else.
func TestAgentsSpeakForThemselves(t *testing.T) {
	f, s, _, ask := hosts(t)
	register := func(host string) string {
		return fmt.Sprintf(`{"host": %q, "addresses": ["192.0.2.77"]}`, host)
	}
	const path = "/api/v1/registrations"
	for _, c := range []struct {
		method, path, body, token string
		code                      int
	}{
		{"POST", path, register("web1"), "", 401},
		{"POST", path, register("web1"), viewerToken, 403},
		{"POST", path, register("web2"), agentToken, 403},
		{"POST", path, register("web1.web2"), agentToken, 200},
		{"POST", path, register("WEB1.example.org"), agentToken, 200},
		{"POST", path, register("web2"), operatorToken, 200},
		{"DELETE", path + "?host=web2", "", agentToken, 403},
		{"DELETE", path + "?host=web2&dry_run=true", "", agentToken, 403},
		{"DELETE", path + "?host=web1&dry_run=true", "", agentToken, 200},
		{"POST", path, `{"host": "web1", "addresses": ["192.0.2.78"], "dry_run": true}`, agentToken, 200},
		{"POST", path, `{"host": "web1", "addresses": ["127.0.0.1"]}`, agentToken, 422},
		{"POST", path, `{"host": "web1", "addresses": ["::ffff:192.0.2.1"]}`, agentToken, 422},
		{"POST", path, `{"host": "web1", "addresses": ["fe80::1%eth0"]}`, agentToken, 422},
		{"POST", path, `{"host": "web1", "addresses": []}`, agentToken, 422},
		{"POST", path, `{"host": "web1", "addresses": ["192.0.2.1"], "template": "other"}`, agentToken, 422},
	} {
		if w := ask(c.method, c.path, c.body, c.token); w.Code != c.code {
			t.Errorf("%s %s %s by %.5s: %d %s, want %d", c.method, c.path, c.body, c.token, w.Code, w.Body, c.code)
		}
	}
	if r, ok := f.State().Registration("hosts", "web1"); !ok || fmt.Sprint(r.Addresses) != "[192.0.2.77]" || r.Actor != "token:web1" {
		t.Errorf("registered: %+v", r)
	}
	for pattern, access := range s.access {
		method, path, _ := strings.Cut(pattern, " ")
		if access == AccessPublic || access == AccessAgent {
			continue
		}
		if w := ask(method, strings.NewReplacer("{name}", "www.example.org", "{node}", "a", "{id}", "a").Replace(path), "", agentToken); w.Code != http.StatusForbidden {
			t.Errorf("an agent's token gets %d from %s", w.Code, pattern)
		}
	}
	if who := (caller{role: RoleAgent, actor: "token:"}).registrant(); who.Host == "" {
		t.Error("a token without a name may speak of every host")
	}
}

// TestHostsArePaced: a host that changes its mind all the time is slowed down, others and renewals are not.
func TestHostsArePaced(t *testing.T) {
	f, _, now, ask := hosts(t)
	say := func(i int, token string) *httptest.ResponseRecorder {
		return ask("POST", "/api/v1/registrations", fmt.Sprintf(`{"host": "web1", "addresses": ["192.0.2.%d"]}`, 100+i%100), token)
	}
	for i := range hostBurst {
		if w := say(i, agentToken); w.Code != 200 {
			t.Fatalf("change %d: %d %s", i, w.Code, w.Body)
		}
	}
	before := f.State().Index()
	for i := range 5 {
		if w := say(50+i, agentToken); w.Code != 429 || w.Header().Get("Retry-After") == "" {
			t.Fatalf("too many changes: %d %s %v", w.Code, w.Body, w.Header())
		}
	}
	if w := ask("DELETE", "/api/v1/registrations?host=web1", "", agentToken); w.Code != 429 {
		t.Errorf("deregistered: %d", w.Code)
	}
	if w := say(hostBurst-1, agentToken); w.Code != 200 || f.State().Index() != before {
		t.Errorf("nothing new: %d %s", w.Code, w.Body)
	}
	if w := say(1, operatorToken); w.Code != 200 {
		t.Errorf("an operator: %d %s", w.Code, w.Body)
	}
	*now = now.Add(hostEvery)
	if a, b := say(2, agentToken).Code, say(3, agentToken).Code; a != 200 || b != 429 {
		t.Errorf("after a while: %d, %d", a, b)
	}
	*now = now.Add(-time.Hour)
	if w := say(4, agentToken); w.Code != 200 {
		t.Errorf("after the clock went back: %d %s", w.Code, w.Body)
	}
	var p pace
	for i := range 1000 {
		p.take(fmt.Sprint(i), now.Add(time.Duration(i)*hostEvery))
	}
	if len(p.full) > 2 {
		t.Errorf("%d hosts are remembered", len(p.full))
	}
}
