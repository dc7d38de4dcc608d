package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// P16. An agent's token speaks for the endpoints that name it, an operator for any; who speaks for another's is refused, and that is on record.
func TestP16_Say(t *testing.T) {
	f := night(t)
	spec := f.State().Spec()
	own := rota.Use{Check: rota.Check{Name: "own", Kind: rota.KindAgent, MaxAge: 30 * time.Second, Timing: rota.DefaultTiming()}}
	v := rota.Service{Name: "said.example.org.", TTL: 30, Safety: rota.DefaultSafety(), Publish: []string{rota.Embedded}}
	for i, agent := range []string{"web1", "web1", "web2", ""} {
		v.Endpoints = append(v.Endpoints, rota.Endpoint{
			Address: netip.MustParseAddr(fmt.Sprint("198.51.100.", i+1)), Weight: 1, Agent: agent, Checks: []rota.Use{own},
		})
	}
	spec.Services = append(spec.Services, v)
	f.must(t, rota.Event{At: t0.Add(3 * time.Second), Kind: rota.EventSpec, Spec: &spec})
	o := options(t, f)
	k, err := NewToken("web1", RoleAgent, agentToken)
	if err != nil {
		t.Fatal(err)
	}
	o.Tokens = append(o.Tokens, k)
	var heard []string
	answer := error(nil)
	o.Say = func(_ context.Context, x rota.Saying) error {
		heard = append(heard, fmt.Sprintf("%v %v %s by %s/%s %d %d.%d", x.Address, x.Status, x.Reason, x.By, x.Agent, x.Weight, x.Incarnation, x.Seq))
		return answer
	}
	var log strings.Builder
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := server(t, o)
	say := func(body, token string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/api/v1/opinions", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		heard = nil
		return call(s, r)
	}
	const service = `{"service": "said.example.org", `
	for name, c := range map[string]struct {
		body, token string
		answer      error
		code        int
		heard       string
	}{
		"its own":                    {service + `"address": "198.51.100.1", "status": "up", "reason": "fine", "weight": 40, "incarnation": 7, "seq": 2, "sent": "1970-01-01T00:00:00Z"}`, agentToken, nil, 200, "[198.51.100.1 up fine by token:web1/web1 40 7.2]"},
		"all of its own":             {service + `"status": "drain"}`, agentToken, nil, 200, "[198.51.100.1 draining  by token:web1/web1 0 0.0 198.51.100.2 draining  by token:web1/web1 0 0.0]"},
		"another's":                  {service + `"address": "198.51.100.3", "status": "down"}`, agentToken, nil, 403, "[]"},
		"nobody's":                   {service + `"address": "198.51.100.4", "status": "down"}`, agentToken, nil, 403, "[]"},
		"an operator's word":         {service + `"address": "198.51.100.4", "status": "down"}`, operatorToken, nil, 200, "[198.51.100.4 down  by token:ops/ 0 0.0]"},
		"an operator, of which":      {service + `"status": "down"}`, operatorToken, nil, 422, "[]"},
		"a viewer":                   {service + `"status": "down"}`, viewerToken, nil, 403, "[]"},
		"nobody":                     {service + `"status": "down"}`, "", nil, 401, "[]"},
		"no such service":            {`{"service": "else.example.org", "status": "up"}`, agentToken, nil, 404, "[]"},
		"no such endpoint":           {service + `"address": "198.51.100.9", "status": "up"}`, agentToken, nil, 404, "[]"},
		"no such status":             {service + `"status": "unknown"}`, agentToken, nil, 422, "[]"},
		"too heavy":                  {service + `"status": "up", "weight": 101}`, agentToken, nil, 422, "[]"},
		"what is asked":              {`{"service": "www.example.org", "address": "192.0.2.10", "status": "up"}`, operatorToken, nil, 422, "[]"},
		"said before":                {service + `"address": "198.51.100.1", "status": "up"}`, agentToken, fmt.Errorf("%w: number 2 after 3", ErrSaidBefore), 409, "[198.51.100.1 up  by token:web1/web1 0 0.0]"},
		"said too often":             {service + `"address": "198.51.100.1", "status": "up"}`, agentToken, ErrSaidOften, 429, "[198.51.100.1 up  by token:web1/web1 0 0.0]"},
		"nobody leads":               {service + `"address": "198.51.100.1", "status": "up"}`, agentToken, ErrNoLeader, 503, "[198.51.100.1 up  by token:web1/web1 0 0.0]"},
		"what this version lacks":    {service + `"status": "up", "mood": "good"}`, agentToken, nil, 422, "[]"},
		"a reason without an end":    {service + `"status": "up", "reason": "` + strings.Repeat("x", 201) + `"}`, agentToken, nil, 422, "[]"},
		"the leader knows it better": {service + `"address": "198.51.100.1", "status": "up"}`, agentToken, fmt.Errorf("%w: not here", rota.ErrNotYours), 403, "[198.51.100.1 up  by token:web1/web1 0 0.0]"},
	} {
		log.Reset()
		answer = c.answer
		w := say(c.body, c.token)
		if w.Code != c.code || fmt.Sprint(heard) != c.heard {
			t.Errorf("%s: %d %s, heard %v; want %d, %v", name, w.Code, w.Body, heard, c.code, c.heard)
		}
		if refused := strings.Contains(log.String(), "refused what was said of an endpoint"); refused != (c.code == 403 && c.token == agentToken) {
			t.Errorf("%s: on record: %q", name, log.String())
		}
		if c.code == 503 && w.Header().Get("Retry-After") == "" || c.code == 429 && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: it does not say when to try again", name)
		}
		if c.code == 200 && !strings.Contains(w.Body.String(), `"within_ns":30000000000`) {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
}
