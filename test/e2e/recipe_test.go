package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// recipe is the configuration of NectGmbH's three instances: certificates of an authority of one's own, and the admin port that their
// operators' raftadmin speaks to.
func recipe(ca *authority, endpoints []string) string {
	return fmt.Sprintf(`
node: {name: "${NAME}", data_dir: "${DATA}"}
api: {listen: ""}
cluster:
  election: raft
  listen: "${HOST}%s"
  tls: {ca: %q, cert: "%s/${NAME}.crt", key: "%s/${NAME}.key"}
  nodes: [identifier_1, identifier_2, identifier_3]
  raftadmin: "${HOST}%s"
dns:
  listen: "${HOST}%s"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
services:
  www.lb.test: {ttl: 1s, endpoints: [%s], check: %s, safety: {min_hold: 0s}}
`, clusterPort, ca.ca(), ca.dir, ca.dir, adminPort, dnsPort, strings.Join(endpoints, ", "), watchful)
}

// voters writes a configuration of raft as raftadmin does.
func voters(all ...*instance) string {
	var b strings.Builder
	for _, i := range all {
		fmt.Fprintf(&b, ` servers: { id: %q address: %q }`, i.name, i.host+clusterPort)
	}
	return b.String()
}

var indexOf = regexp.MustCompile(`index: (\d+)`)

// The recipe of NectGmbH's dnslb for a cluster of three (identifier_1 to identifier_3), with the raftadmin that its users have, and
// every command of it: seeds of old clusters go on as they are. Whoever is in answers its own DNS all the time.
func TestRecipe(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "our own CA")
	_, endpoints := onDuty(t, 3)
	all := instances(t, recipe(ca, endpoints), "identifier_1", "identifier_2", "identifier_3")
	one, two, three := all[0], all[1], all[2]
	for _, i := range all {
		ca.issue(t, i.name, i.host)
		if err := os.Mkdir(i.data, 0o700); err != nil { // as the recipe has it: the directory is made by hand
			t.Fatal(err)
		}
	}
	ask := func(i *instance, args ...string) string {
		t.Helper()
		out, ok := raftadmin(t, append([]string{i.host + adminPort}, args...)...)
		if !ok {
			t.Errorf("raftadmin %q at %s: %s", args, i.name, out)
		}
		return out
	}
	// leader asks whoever leads among them.
	leader := func(among []*instance, args ...string) string {
		t.Helper()
		var hosts []string
		for _, i := range among {
			hosts = append(hosts, i.host+adminPort)
		}
		out, ok := raftadmin(t, append([]string{"--leader", "multi:///" + strings.Join(hosts, ",")}, args...)...)
		if !ok || strings.Contains(out, "error:") {
			t.Errorf("raftadmin --leader %q: %s", args, out)
		}
		return out
	}
	holds := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("raftadmin says %s\nwant %s", out, w)
			}
		}
	}

	one.flags = []string{"--bootstrap"}
	one.up()
	answering(t, "alone", all[:1], www, endpoints...)
	watchers := []*watcher{watch(t, one.dns, www, endpoints...)}
	two.begin()
	three.begin()
	for _, i := range all[1:] {
		eventually(t, i.name+" waits", func() bool { return i.says(0, "waits until it is added") })
	}
	holds(ask(two, "state"), "Response: ")
	holds(ask(one, "get_configuration"), "Response:"+voters(one))

	holds(ask(one, "add_voter", two.name, two.host+clusterPort, "0"), "Invoking AddVoter", "Invoking Await", "Response: index: ")
	two.ready()
	answering(t, "with two", all[:2], www, endpoints...)
	watchers = append(watchers, watch(t, two.dns, www, endpoints...))
	holds(leader(all[:2], "add_voter", three.name, three.host+clusterPort, "0"), "Response: index: ")
	three.ready()
	answering(t, "with three", all, www, endpoints...)
	watchers = append(watchers, watch(t, three.dns, www, endpoints...))
	everyone := "Response:" + voters(all...)
	for _, i := range all {
		eventually(t, i.name+" knows everyone", func() bool { return strings.Contains(ask(i, "get_configuration"), everyone) })
	}

	// Who leads, and that it changes hands.
	holds(leader(all, "leader"), fmt.Sprintf("address: %q", leads(t, all...).host+clusterPort))
	old := leads(t, all...)
	leader(all, "leadership_transfer")
	eventually(t, "another leads", func() bool { return leads(t, all...) != old })
	if leads(t, all...) != three {
		leader(all, "leadership_transfer_to_server", three.name, three.host+clusterPort)
	}
	eventually(t, "identifier_3 leads", func() bool { return leads(t, all...) == three })
	holds(leader(all, "leader"), fmt.Sprintf("address: %q", three.host+clusterPort))
	leader(all, "verify_leader")
	holds(ask(one, "verify_leader"), `error: "`)
	holds(ask(three, "state"), "state: LEADER")
	if out := ask(one, "state"); !strings.HasSuffix(out, "Response: ") { // FOLLOWER is 0, which raftadmin prints as nothing
		t.Errorf("state of a follower: %s", out)
	}
	holds(ask(three, "stats"), `key: "state" value: "Leader"`, `key: "num_peers" value: "2"`)
	holds(ask(one, "stats"), `key: "state" value: "Follower"`)

	// The log and what is kept of it.
	leader(all, "barrier")
	index := func(i *instance, command string) int {
		t.Helper()
		m := indexOf.FindStringSubmatch(ask(i, command))
		if m == nil {
			t.Fatalf("%s at %s gives no index", command, i.name)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if applied, last := index(three, "applied_index"), index(three, "last_index"); applied < 4 || last < applied {
		t.Errorf("applied %d, last %d", applied, last)
	}
	if out := ask(one, "last_contact"); !strings.Contains(out, "unix_nano: "+strconv.FormatInt(time.Now().Unix(), 10)[:6]) {
		t.Errorf("last_contact of a follower: %s", out)
	}
	for _, i := range all {
		if out := ask(i, "snapshot"); strings.Contains(out, "error") {
			t.Errorf("snapshot at %s: %s", i.name, out)
		}
	}
	if out, ok := raftadmin(t, one.host+adminPort, "apply_log", "DATA", "EXTENSIONS"); ok || !strings.Contains(out, "only rota writes") {
		t.Errorf("apply_log: %v, %s", ok, out)
	}
	holds(ask(one, "add_voter", "identifier_9", "nowhere", "0"), "want HOST:PORT")
	holds(ask(one, "add_voter", "identifier_9", loopback(t)+clusterPort, "0"), "nobody at")
	holds(ask(one, "remove_server", "identifier_9", "0"), "error:")

	// Votes are taken and given.
	leader(all, "demote_voter", one.name, "0")
	demoted := fmt.Sprintf("servers: { suffrage: NONVOTER id: %q", one.name)
	holds(leader(all, "get_configuration"), demoted)
	leader(all, "add_nonvoter", one.name, one.host+clusterPort, "0")
	holds(leader(all, "get_configuration"), demoted)
	holds(ask(three, "add_voter", one.name, one.host+clusterPort, "1"), "error:")
	leader(all, "add_voter", one.name, one.host+clusterPort, "0")
	holds(leader(all, "get_configuration"), everyone)

	// The same command lines again: the flag that was left on does nothing, and says so.
	for n, i := range all {
		watchers[n].clean(t)
		mark := i.mark()
		i.down()
		i.up()
		if i == one && !i.says(mark, "is of a cluster already; there is nothing to do") {
			t.Errorf("--bootstrap with a cluster's data says nothing:\n%s", i.node.log.String()[mark:])
		}
		answering(t, "after a restart of "+i.name, all, www, endpoints...)
		leads(t, all...)
	}
	holds(leader(all, "get_configuration"), everyone)

	// A second bootstrap, on the second: nothing, and a word. It never makes two clusters.
	mark := two.mark()
	two.down()
	two.flags = []string{"--bootstrap"}
	two.up()
	if !two.says(mark, "is of a cluster already; there is nothing to do") {
		t.Errorf("a second bootstrap says nothing:\n%s", two.node.log.String()[mark:])
	}
	leads(t, all...)
	holds(leader(all, "get_configuration"), everyone)
	for _, i := range all {
		eventually(t, i.name+" knows everyone", func() bool { return strings.Contains(ask(i, "get_configuration"), everyone) })
	}

	// Who is taken out knows it and answers on; the command that ends a process ends it in order.
	answering(t, "before the end", all, www, endpoints...)
	watchers = nil
	for _, i := range all {
		watchers = append(watchers, watch(t, i.dns, www, endpoints...))
	}
	if leads(t, all...) == three {
		leader(all, "leadership_transfer_to_server", one.name, one.host+clusterPort)
	}
	leader(all[:2], "remove_server", three.name, "0")
	eventually(t, "identifier_3 knows that it is out", func() bool { return three.members().Removed })
	holds(leader(all[:2], "get_configuration"), "Response:"+voters(one, two))
	answering(t, "after one was taken out", all, www, endpoints...)
	for _, w := range watchers {
		w.clean(t)
	}
	ask(two, "shutdown")
	if code := two.job.wait(t); code != 0 {
		t.Errorf("shutdown ended with %d:\n%s", code, two.node.log)
	}
	answering(t, "with the other one down", []*instance{one, three}, www, endpoints...)
	two.up()
	leads(t, one, two)
	answering(t, "at the end", all, www, endpoints...)
}

// A node that lost its disk and is started with --bootstrap, though its configuration leads to the cluster, begins no second one.
func TestRecipeSecondBootstrap(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "our own CA")
	_, endpoints := onDuty(t, 2)
	peer := loopback(t)
	config := strings.Replace(recipe(ca, endpoints), "  election: raft\n", "  election: raft\n  join: [\""+peer+clusterPort+"\"]\n", 1)
	all := instances(t, config, "identifier_1", "identifier_2")
	one, two := all[0], all[1]
	one.host = peer
	one.dns = peer + dnsPort
	one.env = append(one.env, "HOST="+peer)
	for _, i := range all {
		ca.issue(t, i.name, i.host)
		i.flags = []string{"--bootstrap"}
	}
	one.up()
	two.begin()
	if code := two.job.wait(t); code == 0 || !two.says(0, "already: a second cluster would fight it over the DNS") {
		t.Errorf("a second bootstrap ended with %d:\n%s", code, two.node.log)
	}
	if _, err := os.Stat(filepath.Join(two.data, "identity.json")); err == nil {
		t.Error("it has an identity of a cluster of its own now")
	}
	two.flags = nil
	two.up()
	if m := two.members(); len(m.Members) != 2 || leads(t, all...) != one {
		t.Errorf("started plainly, it is not taken in: %+v", m)
	}
	answering(t, "both", all, www, endpoints...)
}
