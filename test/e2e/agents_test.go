package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scouts is a configuration of nodes and of rota's own agents, who vote by sites.
func scouts(maxAge time.Duration, accept string, endpoints []string) string {
	return fmt.Sprintf(`
node: {name: "${NAME}", site: "${SITE}", data_dir: "${DATA}"}
api: {listen: ""}
cluster: {election: raft, listen: "${HOST}%s"}
vantage: {of: sites, max_age: %s, agents: {accept: [%s]}}
dns:
  listen: "${HOST}%s"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
services:
  www.lb.test: {ttl: 1s, endpoints: [%s], check: %s, safety: {min_hold: 0s}}
`, clusterPort, maxAge, accept, dnsPort, strings.Join(endpoints, ", "), watchful)
}

// scout is a `rota agent`.
type scout struct {
	*job
	t    *testing.T
	data string
	args []string // the same at every start
}

// newScout has a node make a token for an agent and starts it.
func newScout(t *testing.T, by *instance, name, site string) *scout {
	t.Helper()
	s := &scout{t: t, data: t.TempDir()}
	token, err := by.try("cluster", "token", "--agent", name)
	if err != nil {
		t.Fatal(token)
	}
	file := filepath.Join(s.data, "token")
	if err := os.WriteFile(file, []byte(strings.Fields(token)[0]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"agent", "--name", name, "--site", site, "--data-dir", filepath.Join(s.data, "data"), "--join", "@" + file}
	s.start(&logBuffer{})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of agent %s:\n%s", name, s.log)
		}
	})
	return s
}

func (s *scout) start(log *logBuffer) { s.job = begin(s.t, log, nil, s.args...) }

// says waits until the agent has logged a text.
func (s *scout) says(text string) {
	s.t.Helper()
	eventually(s.t, "the agent says "+text, func() bool { return strings.Contains(s.log.String(), text) })
}

// write replaces the configuration of all that share it.
func write(t *testing.T, i *instance, config string) {
	t.Helper()
	if err := os.WriteFile(i.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// held waits until a verdict and the votes for it are so.
func held(t *testing.T, by *instance, endpoint, want string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("of %s it held %s", endpoint, last)
		}
	}()
	eventually(t, endpoint+" is "+want, func() bool {
		verdict, votes := by.votes(endpoint)
		last = verdict + ": " + votes
		return last == want
	})
}

// welcomed reports whether a node's port lets somebody with a certificate speak a protocol: it answers the name of the cluster with
// itself, after a zero.
func welcomed(t *testing.T, to *instance, protocol, cluster string, cert tls.Certificate) bool {
	t.Helper()
	c, err := (&tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{protocol}, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
	}}).DialContext(t.Context(), "tcp", to.host+clusterPort)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(append([]byte{byte(len(cluster))}, cluster...)); err != nil {
		return false
	}
	var head [3]byte
	_, err = io.ReadFull(c, head[:])
	return err == nil && head[0] == 0
}

// rota's own agents at one node: they come in by tokens, stand where they say, vote by sites, and may do nothing else; who is no longer
// accepted is out at the reload.
func TestScouts(t *testing.T) {
	t.Parallel()
	duties, e := onDuty(t, 2)
	one := instances(t, scouts(12*time.Second, "ams1, ams2, fra1", e), "home")[0]
	one.env = append(one.env, "SITE=home")
	one.flags = []string{"--bootstrap"}
	one.up()
	ams1, ams2, fra1 := newScout(t, one, "ams1", "ams"), newScout(t, one, "ams2", "ams"), newScout(t, one, "fra1", "fra")
	for name, site := range map[string]string{"ams1": "ams", "ams2": "ams", "fra1": "fra"} {
		eventually(t, name+" votes for "+site, func() bool {
			v := one.vantages()[name]
			return v.State == "voting" && v.Site == site && v.Kind == "agent" && v.Checks == 2
		})
	}
	for _, x := range e {
		held(t, one, x, "up: ams1=up ams2=up fra1=up home=up")
	}
	answering(t, "both", []*instance{one}, www, e...)
	w := watch(t, one.dns, www, e...)

	// Who is not accepted is told so: no token is made for it, and another's token does not let it in.
	if out, err := one.try("cluster", "token", "--agent", "stranger"); err == nil || !strings.Contains(out, "vantage.agents.accept") {
		t.Errorf("a token for an agent that is not accepted: %v %s", err, out)
	}
	out, err := one.try("cluster", "token", "--agent", "fra1")
	if err != nil {
		t.Fatal(out)
	}
	stranger := begin(t, &logBuffer{}, []string{"ROTA_JOIN_TOKEN=" + strings.Fields(out)[0]}, "agent", "--name", "stranger", "--data-dir", t.TempDir())
	if code := stranger.wait(t); code == 0 || !strings.Contains(stranger.log.String(), "the join token is for agent fra1, and for no other") {
		t.Errorf("an agent that is not accepted ended with %d:\n%s", code, stranger.log)
	}

	// An agent's certificate is good for an agent's words only; the node's shows that the door is not shut for all.
	dir := filepath.Join(ams1.data, "data", "link")
	agents := certificate(t, filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	cluster := one.members().Cluster
	if !welcomed(t, one, "rota-peer/1", cluster, agents) {
		t.Error("an agent's certificate does not let it speak as an agent")
	}
	mark := one.mark()
	if welcomed(t, one, "rota-raft/1", cluster, agents) {
		t.Error("an agent's certificate lets it speak raft")
	}
	eventually(t, "the node says whom it refused", func() bool { return one.says(mark, "only a node may be at this end of rota-raft/1") })

	// Two agents die. Of three sites one has a voice then: what it sees changes nothing.
	fra1.crash()
	ams2.crash()
	eventually(t, "the dead are silent", func() bool {
		v := one.vantages()
		return v["ams2"].State == "stale" && v["fra1"].State == "stale"
	})
	duties[0].on.Store(false)
	held(t, one, duties[0].address, "up: ams1=down ams2=unknown fra1=unknown home=down")
	answering(t, "one site of three decides nothing", []*instance{one}, www, e...)
	// One comes back by the same command line, and its site has a voice again.
	ams2.start(ams2.log)
	ams2.says("the join token is not used")
	held(t, one, duties[0].address, "down: ams1=down ams2=down fra1=unknown home=down")
	answering(t, "two sites of three", []*instance{one}, www, duties[1].address)

	write(t, one, scouts(12*time.Second, "ams1, fra1", e))
	if out, err := one.try("reload"); err != nil {
		t.Fatal(out)
	}
	begun := time.Now()
	ams2.says("agent ams2 is not accepted")
	t.Logf("an agent that was accepted is told %v after the reload that it is no longer", time.Since(begun).Round(time.Millisecond))
	if v, votes := one.vantages(), "down: ams1=down fra1=unknown home=down"; len(v) != 3 || v["ams2"].Vantage != "" {
		t.Errorf("the vantages are %v", v)
	} else {
		held(t, one, duties[0].address, votes)
	}
	w.clean(t)
	ams1.signal(t, syscall.SIGTERM)
	if code := ams1.wait(t); code != 0 {
		t.Errorf("an agent ended with %d on SIGTERM:\n%s", code, ams1.log)
	}
}

// rota's own agents at three nodes: the one that they report to dies, and they go on with the next, whoever leads.
func TestScoutsOfThreeNodes(t *testing.T) {
	t.Parallel()
	duties, e := onDuty(t, 3)
	all := instances(t, scouts(45*time.Second, "scout-ams, scout-fra, scout-gru", e), "n1", "n2", "n3")
	for n, site := range []string{"ams", "fra", "nyc"} {
		all[n].env = append(all[n].env, "SITE="+site)
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
	var agents []*scout
	for n, site := range []string{"ams", "fra", "gru"} {
		agents = append(agents, newScout(t, all[n], "scout-"+site, site)) // each node gives its own tokens
	}
	for _, x := range e {
		eventually(t, "all see "+x, func() bool {
			verdict, votes := leads(t, all...).votes(x)
			return verdict == "up" && votes == "n1=up n2=up n3=up scout-ams=up scout-fra=up scout-gru=up"
		})
	}
	answering(t, "all", all, www, e...)

	// to is the node that an agent reports to, as the leader knows it.
	to := func(leader *instance, name string) string {
		from := leader.vantages()[name].From
		if _, by, ok := strings.Cut(from, " by "); ok {
			return by
		}
		return leader.name
	}
	leader := leads(t, all...)
	var dead *instance
	for _, i := range all {
		if i.name == to(leader, "scout-gru") {
			dead = i
		}
	}
	if dead == nil {
		t.Fatalf("scout-gru reports to nobody that is known: %+v", leader.vantages()["scout-gru"])
	}
	var left []*instance
	for _, i := range all {
		if i != dead {
			left = append(left, i)
			watch(t, i.dns, www, e...)
		}
	}
	dead.job.crash()
	duties[2].on.Store(false)
	answering(t, "the agents and two nodes see one endpoint die", left, www, slices.DeleteFunc(slices.Clone(e), func(x string) bool { return x == duties[2].address })...)
	leader = leads(t, left...)
	for _, name := range []string{"scout-ams", "scout-fra", "scout-gru"} {
		eventually(t, name+" reports to another", func() bool {
			v := leader.vantages()[name]
			return v.State == "voting" && to(leader, name) != dead.name
		})
	}
	dead.up()
	duties[2].on.Store(true)
	answering(t, "all are back", all, www, e...)
	for _, s := range agents {
		s.signal(t, syscall.SIGTERM)
		if code := s.wait(t); code != 0 {
			t.Errorf("an agent ended with %d on SIGTERM:\n%s", code, s.log)
		}
	}
}
