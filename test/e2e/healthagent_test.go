package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// healthagent speaks as NectGmbH's does: HTTPS with a certificate on both sides, its name in a header, GET for what to check and POST for
// the statuses of all of it. What it says is what a test wants it to say.
type healthagent struct {
	name   string
	url    string
	client *http.Client

	mu   sync.Mutex // guards what follows
	says []byte     // nil: nothing
}

// newHealthagent makes an agent with a certificate of the CA for its name. It sends its statuses over and over, as keep-alives are sent.
func newHealthagent(t *testing.T, ca *authority, name, url string) *healthagent {
	t.Helper()
	cert, key := ca.issue(t, name, "")
	h := &healthagent{name: name, url: url, client: httpsClient(t, ca, certificate(t, cert, key))}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			h.mu.Lock()
			b := h.says
			h.mu.Unlock()
			if b != nil {
				_, _, _ = h.do(ctx, http.MethodPost, b, name) // the next one may do
			}
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return h
}

func httpsClient(t *testing.T, ca *authority, certs ...tls.Certificate) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool(), Certificates: certs}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// do sends one request under a name; empty: without one.
func (h *healthagent) do(ctx context.Context, method string, body []byte, name string) (status int, text string, err error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.url, r)
	if err != nil {
		return 0, "", err
	}
	if name != "" {
		req.Header.Set("X-Agent-Name", name)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// monitors asks for what to check.
func (h *healthagent) monitors(t *testing.T) string {
	t.Helper()
	status, text, err := h.do(t.Context(), http.MethodGet, nil, h.name)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s asks for its monitors: %d %s %v", h.name, status, text, err)
	}
	return text
}

// status is one element of what a healthagent posts, under the names that Go gives it.
type status struct {
	IP        string
	Port      int
	Healthy   bool
	Message   string
	DidChange bool
}

// say has the agent hold the endpoints marked + up and those marked - down, and leave out the others.
func (h *healthagent) say(t *testing.T, opinions string, endpoints ...string) {
	t.Helper()
	all := []status{}
	for i, c := range opinions {
		switch c {
		case '+':
			all = append(all, status{IP: endpoints[i], Port: dutyPort, Healthy: true, Message: "success", DidChange: true})
		case '-':
			all = append(all, status{IP: endpoints[i], Port: dutyPort, Message: "Get: connection refused", DidChange: true})
		case '0': // not checked yet: a zero value
			all = append(all, status{})
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.says = b
}

// hush has the agent say nothing any more.
func (h *healthagent) hush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.says = nil
}

const (
	lb1 = "lb1.lb.test"
	lb2 = "lb2.lb.test"
)

// healthagents is a configuration in which three of NectGmbH's agents vote and nobody else does, as with dnslb.
func healthagents(ca *authority, maxAge time.Duration, e []string) string {
	return fmt.Sprintf(`
node: {name: "${NAME}", data_dir: "${DATA}"}
api: {listen: ""}
vantage:
  nodes: false
  max_age: %s
  agents:
    accept: [agent-1, agent-2, agent-3]
    healthagent: {listen: "${HOST}%s", tls: {cert: "%s/${NAME}.crt", key: "%s/${NAME}.key", client_ca: %q}}
dns:
  listen: "${HOST}%s"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
defaults: {ttl: 1s}
safety: {min_hold: 0s}
services:
  lb1.lb.test: {endpoints: [%s, %s], check: {type: http, port: %d, path: /healthz, host: "{}", status: [2xx]}}
  lb2.lb.test: {endpoints: [%s, %s], check: "tcp://{}:%d"}
`, maxAge, agentPort, ca.dir, ca.dir, ca.ca(), dnsPort, e[0], e[1], dutyPort, e[2], e[3], dutyPort)
}

// What NectGmbH's own tests say of three agents: the list they are given, who is up by how many of them, and what an old or incomplete
// report counts.
func TestHealthagents(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "our agents' CA")
	var e []string // nobody is there: only what the agents say counts
	for range 4 {
		e = append(e, loopback(t))
	}
	slices.Sort(e) // as text, like the monitors
	one := instances(t, healthagents(ca, 4*time.Second, e), "dnslb")[0]
	ca.issue(t, one.name, one.host)
	one.up()
	var all []*healthagent
	for n := range 3 {
		all = append(all, newHealthagent(t, ca, fmt.Sprintf("agent-%d", n+1), "https://"+one.host+agentPort+"/"))
	}
	want := fmt.Sprintf(`["http://%s:8080","http://%s:8080","tcp://%s:8080","tcp://%s:8080"]`, e[0], e[1], e[2], e[3])
	for _, h := range all {
		if got := h.monitors(t); got != want {
			t.Errorf("the monitors of %s are %s, want %s", h.name, got, want)
		}
	}
	answers := func(what string, lb string, addresses ...string) {
		t.Helper()
		answering(t, what, []*instance{one}, lb, addresses...)
	}
	verdict := func(endpoint, want string) {
		t.Helper()
		got, votes := "", ""
		eventually(t, endpoint+" is "+want, func() bool {
			got, votes = one.votes(endpoint)
			return got+": "+votes == want
		})
	}
	for _, h := range all {
		h.say(t, "++++", e...)
	}
	for _, x := range e {
		verdict(x, "up: agent-1=up agent-2=up agent-3=up")
	}
	answers("all that three agents hold up", lb1, e[0], e[1])
	answers("all that three agents hold up", lb2, e[2], e[3])
	watchers := []*watcher{watch(t, one.dns, lb1, e[0], e[1]), watch(t, one.dns, lb2, e[2], e[3])}

	// The first is up by one of three, the second by two, and of the second service nobody is: it keeps its last answer.
	all[0].say(t, "++--", e...)
	all[1].say(t, "-+--", e...)
	all[2].say(t, "----", e...)
	verdict(e[0], "down: agent-1=up agent-2=down agent-3=down")
	verdict(e[1], "up: agent-1=up agent-2=up agent-3=down")
	verdict(e[2], "down: agent-1=down agent-2=down agent-3=down")
	verdict(e[3], "down: agent-1=down agent-2=down agent-3=down")
	answers("who is up by two of three", lb1, e[1])
	answers("the last answer, for nobody is up", lb2, e[2], e[3])
	if story := one.rota("explain", lb2); !strings.Contains(story, "PANIC") {
		t.Errorf("explain does not say that health is not believed:\n%s", story)
	}
	all[1].say(t, "++--", e...)
	verdict(e[0], "up: agent-1=up agent-2=up agent-3=down")
	answers("both, by two of three each", lb1, e[0], e[1])

	// A status too few, or one that says nothing yet, is no vote.
	for _, h := range all {
		h.say(t, "++++", e...)
	}
	verdict(e[3], "up: agent-1=up agent-2=up agent-3=up")
	all[0].hush()
	all[1].say(t, "0 +-", e...)
	all[2].say(t, "--+-", e...)
	eventually(t, "the first agent's report is old", func() bool { return one.vantages()["agent-1"].State == "stale" })
	verdict(e[0], "up: agent-1=unknown agent-2=unknown agent-3=down")
	verdict(e[1], "up: agent-1=unknown agent-2=unknown agent-3=down")
	verdict(e[2], "up: agent-1=unknown agent-2=up agent-3=up")
	verdict(e[3], "down: agent-1=unknown agent-2=down agent-3=down")
	answers("what it was, for one of three decides nothing", lb1, e[0], e[1])
	answers("what two of three say", lb2, e[2])

	// Nobody else has a word, and nobody changes the list.
	second := all[1]
	big := bytes.Repeat([]byte(" "), 1_000_001)
	for _, x := range []struct {
		what, method, name string
		body               []byte
		want               int
	}{
		{"without a name", http.MethodGet, "", nil, 400},
		{"another's name", http.MethodPost, "agent-1", []byte("[]"), 403},
		{"another's name in a GET", http.MethodGet, "agent-1", nil, 403},
		{"another method", http.MethodPut, second.name, []byte("[]"), 400},
		{"no body", http.MethodPost, second.name, nil, 400},
		{"no array", http.MethodPost, second.name, []byte(`{"IP":""}`), 400},
		{"too much", http.MethodPost, second.name, big, 400},
	} {
		got, text, err := second.do(t.Context(), x.method, x.body, x.name)
		if err != nil || got != x.want || strings.TrimSpace(text) == "" {
			t.Errorf("%s: %d %q %v, want %d with a word", x.what, got, text, err, x.want)
		}
	}
	for _, name := range []string{"monitors", "dnslb"} {
		h := newHealthagent(t, ca, name, second.url)
		if got, text, err := h.do(t.Context(), http.MethodPost, []byte("[]"), name); err != nil || got != 403 {
			t.Errorf("an agent called %s: %d %q %v", name, got, text, err)
		}
	}
	h := newHealthagent(t, newAuthority(t, "another CA"), second.name, second.url)
	h.client.Transport.(*http.Transport).TLSClientConfig.RootCAs = ca.pool()
	if got, text, err := h.do(t.Context(), http.MethodGet, nil, second.name); err == nil {
		t.Errorf("a certificate of another CA: %d %q", got, text)
	}
	h.client = httpsClient(t, ca)
	if got, text, err := h.do(t.Context(), http.MethodGet, nil, second.name); err == nil {
		t.Errorf("no certificate: %d %q", got, text)
	}
	for _, w := range watchers {
		w.clean(t)
	}

	// The list is the same after a restart, and so are the answers; the verdicts go on when the agents have asked again.
	one.down()
	one.up()
	answers("after a restart", lb1, e[0], e[1])
	answers("after a restart", lb2, e[2])
	for _, h := range all {
		if got := h.monitors(t); got != want {
			t.Errorf("after a restart the monitors of %s are %s", h.name, got)
		}
		h.say(t, "+-++", e...)
	}
	answers("what they say", lb1, e[0])
	answers("what they say", lb2, e[2], e[3])
}

// The example of NectGmbH's text: three instances that elect a leader, one list for all of them, three agents. Here the instances make
// their certificates themselves and the agents are rota's, working as healthagents do; whichever instance is gone, the others go on, and
// each command line is for the first start, for every other and for growing.
func TestThreeInstances(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "our agents' CA")
	duties, e := onDuty(t, 4)
	byAddress := map[string]*duty{}
	for _, d := range duties {
		byAddress[d.address] = d
	}
	config := healthagents(ca, 45*time.Second, e) + "cluster: {election: raft, listen: \"${HOST}" + clusterPort + "\", raftadmin: \"${HOST}" + adminPort + "\"}\n"
	all := instances(t, config, "identifier_1", "identifier_2", "identifier_3")
	var args, admins []string
	for _, i := range all {
		ca.issue(t, i.name, i.host)
		args = append(args, "--healthd", "https://"+i.host+agentPort)
		admins = append(admins, i.host+adminPort)
	}
	all[0].flags = []string{"--bootstrap"}
	all[0].up()
	for _, i := range all[1:] {
		token, err := all[0].try("cluster", "token")
		if err != nil {
			t.Fatal(token)
		}
		i.flags = []string{"--join", strings.Fields(token)[0]}
		i.up()
	}
	eventually(t, "there are three voters", func() bool {
		m := all[0].members().Members
		return len(m) == 3 && m[0].Voter && m[1].Voter && m[2].Voter
	})
	var agents []*job
	for n := range 3 {
		name := fmt.Sprintf("agent-%d", n+1)
		cert, key := ca.issue(t, name, "")
		turned := append(append([]string{}, args[2*n:]...), args[:2*n]...) // each has another instance as its first
		agents = append(agents, begin(t, &logBuffer{}, nil, append([]string{"agent", "--cert", cert, "--key", key, "--ca", ca.ca()}, turned...)...))
	}
	t.Cleanup(func() {
		for n, a := range agents {
			if t.Failed() {
				t.Logf("log of agent-%d:\n%s", n+1, a.log)
			}
		}
	})
	everyone := func(want string, among ...*instance) {
		t.Helper()
		for _, x := range e {
			if (want == "up") != byAddress[x].on.Load() {
				continue
			}
			eventually(t, x+" is "+want+" by all agents", func() bool {
				got, votes := leads(t, among...).votes(x)
				return got == want && votes == fmt.Sprintf("agent-1=%s agent-2=%s agent-3=%s", want, want, want)
			})
		}
	}
	everyone("up", all...)
	answering(t, "everybody", all, lb1, e[0], e[1])
	answering(t, "everybody", all, lb2, e[2], e[3])
	if story := all[0].rota("get", "vantages"); strings.Contains(story, "identifier_") {
		t.Errorf("nodes vote:\n%s", story)
	}
	var watchers []*watcher
	for _, i := range all {
		watchers = append(watchers, watch(t, i.dns, lb1, e[0], e[1]))
	}

	byAddress[e[0]].on.Store(false)
	answering(t, "one endpoint is gone", all, lb1, e[1])
	out, ok := raftadmin(t, "--leader", "multi:///"+strings.Join(admins, ","), "leadership_transfer")
	if !ok || strings.Contains(out, "error:") {
		t.Errorf("leadership_transfer: %s", out)
	}
	byAddress[e[0]].on.Store(true)
	answering(t, "it is back, whoever leads", all, lb1, e[0], e[1])

	// The leader dies, and with it the instance that one of the agents works for.
	dead := leads(t, all...)
	var left []*instance
	for n, i := range all {
		if i == dead {
			watchers[n].clean(t)
		} else {
			left = append(left, i)
		}
	}
	dead.job.crash()
	leads(t, left...)
	byAddress[e[1]].on.Store(false)
	answering(t, "one endpoint is gone while an instance is", left, lb1, e[0])
	everyone("up", left...)
	dead.up()
	answering(t, "the dead one is back", all, lb1, e[0])
	byAddress[e[1]].on.Store(true)
	answering(t, "everybody is back", all, lb1, e[0], e[1])
	for n, a := range agents {
		a.signal(t, syscall.SIGTERM)
		if code := a.wait(t); code != 0 {
			t.Errorf("agent-%d ended with %d:\n%s", n+1, code, a.log)
		}
	}
}
