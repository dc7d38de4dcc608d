package raftadmin

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// binary is the stock command, as pinned in tools/go.mod. Go builds it when it is not in its cache.
var binary = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=tools/go.mod", "-n", "raftadmin")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.New("go tool raftadmin: " + err.Error() + "\n" + stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
})

var (
	stamp = regexp.MustCompile(`(?m)^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d `)
	token = regexp.MustCompile(`operation_token:\s*"[A-Z2-7]{26}"`)
	space = regexp.MustCompile(`[ \t]+`)
)

// stock runs the command and returns what it prints, without time stamps, with TOKEN for the tokens, and whether it exits with 0. The
// text form of a message has as many spaces as the build pleases, on purpose.
func stock(t *testing.T, args ...string) (output string, ok bool) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		t.Fatalf("raftadmin %q: %v\n%s", args, err, out)
	}
	s := stamp.ReplaceAllString(string(out), "")
	s = token.ReplaceAllString(s, "TOKEN")
	return strings.TrimSpace(space.ReplaceAllString(s, " ")), err == nil
}

func three() []Server {
	return []Server{
		{ID: "7b1e", Name: "ams", Address: "10.0.0.1:7946", Voter: true},
		{ID: "90aa", Name: "fra", Address: "10.0.0.2:7946", Voter: true},
		{ID: "c3d4", Name: "nyc", Address: "10.0.0.3:7946"},
	}
}

// future is what the stock command prints of an operation.
func future(invoked, awaited string) string {
	return "Invoking " + invoked + "\nResponse: TOKEN\nInvoking Await(TOKEN\n)\nResponse: " + awaited
}

// Every command of the stock raftadmin, one after the other on one cluster of which this node leads.
func TestEveryCommand(t *testing.T) {
	w := newWorld("7b1e", three()...)
	n := w.node("7b1e")
	s := run(t, n)
	type step struct {
		args  string
		want  string
		calls string
		fails bool
	}
	steps := []step{
		{args: "get_configuration", want: `Invoking GetConfiguration()
Response: servers: {
 id: "ams"
 address: "10.0.0.1:7946"
}
servers: {
 id: "fra"
 address: "10.0.0.2:7946"
}
servers: {
 suffrage: NONVOTER
 id: "nyc"
 address: "10.0.0.3:7946"
}`},
		{args: "add_voter sfo 10.0.0.4:7946 0", want: future("AddVoter(id: \"sfo\"\naddress: \"10.0.0.4:7946\"\n)", "index: 41"), calls: "add-voter sfo"},
		{args: "add_nonvoter tyo 10.0.0.5:7946 41", want: future("AddNonvoter(id: \"tyo\"\naddress: \"10.0.0.5:7946\"\nprevious_index: 41\n)", "index: 42"), calls: "add-nonvoter tyo"},
		{args: "add_voter gru 10.0.0.6:7946 41", want: future("AddVoter(id: \"gru\"\naddress: \"10.0.0.6:7946\"\nprevious_index: 41\n)", `error: "configuration changed since"`), calls: "add-voter gru"},
		{args: "add_voter gru nowhere 0", want: future("AddVoter(id: \"gru\"\naddress: \"nowhere\"\n)", `error: "ADDRESS \"nowhere\": want HOST:PORT, the cluster port of the node"`)},
		{args: "demote_voter fra 0", want: future("DemoteVoter(id: \"fra\"\n)", "index: 43"), calls: "demote 90aa"},
		{args: "remove_server c3d4 0", want: future("RemoveServer(id: \"c3d4\"\n)", "index: 44"), calls: "remove c3d4"},
		{args: "remove_server nyc 0", want: future("RemoveServer(id: \"nyc\"\n)", `error: "no node of this cluster is called \"nyc\"; its nodes are: ams, fra, sfo, tyo"`)},
		{args: "applied_index", want: "Invoking AppliedIndex()\nResponse: index: 41"},
		{args: "last_index", want: "Invoking LastIndex()\nResponse: index: 43"},
		{args: "last_contact", want: "Invoking LastContact()\nResponse:"},
		{args: "leader", want: "Invoking Leader()\nResponse: address: \"10.0.0.1:7946\""},
		{args: "state", want: "Invoking State()\nResponse: state: LEADER"},
		{args: "stats", want: `Invoking Stats()
Response: stats: {
 key: "applied_index"
 value: "41"
}
stats: {
 key: "commit_index"
 value: "42"
}
stats: {
 key: "last_log_index"
 value: "43"
}
stats: {
 key: "num_peers"
 value: "2"
}
stats: {
 key: "state"
 value: "Leader"
}
stats: {
 key: "term"
 value: "7"
}`},
		{args: "barrier", want: future("Barrier()", "index: 99"), calls: "barrier"},
		{args: "verify_leader", want: future("VerifyLeader()", ""), calls: "verify"},
		{args: "snapshot", want: future("Snapshot()", ""), calls: "snapshot"},
		{args: "apply_log DATA EXTENSIONS", want: "Invoking ApplyLog(data: \"DATA\"\nextensions: \"EXTENSIONS\"\n)\n" +
			"rpc error: code = Unimplemented desc = rota's log holds decisions, which only rota writes; tell rota what to do by its own commands: rota --help lists them", fails: true},
		{args: "await NONE", want: "Invoking Await(operation_token: \"NONE\"\n)\n" +
			`rpc error: code = NotFound desc = no operation has the token "NONE": it was forgotten, it ended more than 5m0s ago, or another node has it`, fails: true},
		{args: "forget NONE", want: "Invoking Forget(operation_token: \"NONE\"\n)\nResponse:"},
		{args: "leadership_transfer_to_server fra 10.0.0.2:7946", want: future("LeadershipTransferToServer(id: \"fra\"\naddress: \"10.0.0.2:7946\"\n)", ""), calls: "transfer 90aa"},
		{args: "leader", want: "Invoking Leader()\nResponse: address: \"10.0.0.2:7946\""},
		{args: "state", want: "Invoking State()\nResponse:"},
		{args: "last_contact", want: "Invoking LastContact()\nResponse: unix_nano: 1795234567000000089"},
		{args: "leadership_transfer", want: future("LeadershipTransfer()", `error: "node is not the leader"`), calls: "transfer "},
		{args: "Barrier", want: future("Barrier()", `error: "node is not the leader"`), calls: "barrier"},
		{args: "verify_leader", want: future("VerifyLeader()", `error: "node is not the leader"`), calls: "verify"},
		{args: "shutdown", want: future("Shutdown()", ""), calls: "shutdown"},
	}
	for _, step := range steps {
		got, ok := stock(t, append([]string{s.address}, strings.Fields(step.args)...)...)
		if got != strings.TrimSpace(step.want) {
			t.Errorf("raftadmin %s printed\n%s\nwant\n%s", step.args, got, step.want)
		}
		if ok == step.fails {
			t.Errorf("raftadmin %s: success is %v", step.args, ok)
		}
		called := ""
		if len(n.calls) > 0 {
			called = <-n.calls
		}
		if called != step.calls || len(n.calls) > 0 {
			t.Errorf("raftadmin %s asked the node for %q, want %q, and for %d more", step.args, called, step.calls, len(n.calls))
		}
	}
	// The list above is complete when the command's own is.
	usage, _ := stock(t)
	_, list, _ := strings.Cut(usage, "Commands: ")
	commands := strings.Split(list, ", ")
	for _, c := range commands {
		if !slices.ContainsFunc(steps, func(s step) bool { return strings.Fields(s.args)[0] == c }) {
			t.Errorf("no step for the command %q", c)
		}
	}
	if len(commands) != 20 {
		t.Errorf("the stock command has %d commands: %s", len(commands), list)
	}
}

// The recipe of NectGmbH's dnslb: each command goes to whoever leads, before and after the lead changes hands.
func TestLeaderIsFound(t *testing.T) {
	w := newWorld("1", Server{ID: "1", Name: "identifier_1", Address: "localhost:3648", Voter: true})
	nodes := []*fake{w.node("1"), w.node("id-of-identifier_2"), w.node("id-of-identifier_3")}
	var addresses []string
	var servers []running
	for _, n := range nodes {
		s := run(t, n)
		servers, addresses = append(servers, s), append(addresses, s.address)
	}
	leader := func(args ...string) string {
		t.Helper()
		out, ok := stock(t, append([]string{"--leader", "multi:///" + strings.Join(addresses, ",")}, args...)...)
		if !ok || strings.Contains(out, "error") {
			t.Errorf("raftadmin --leader %q: %s", args, out)
		}
		return out
	}
	asked := func(n *fake, want string) {
		t.Helper()
		for _, o := range nodes {
			switch {
			case o != n && len(o.calls) > 0:
				t.Errorf("%s was asked for %q", o.id, <-o.calls)
			case o == n && len(o.calls) == 0:
				t.Errorf("%s was not asked", o.id)
			case o == n:
				if got := <-o.calls; got != want {
					t.Errorf("%s was asked for %q, want %q", o.id, got, want)
				}
			}
		}
	}
	if out, _ := stock(t, addresses[0], "add_voter", "identifier_2", "localhost:3650", "0"); !strings.Contains(out, "index: 41") {
		t.Error(out)
	}
	asked(nodes[0], "add-voter identifier_2")
	leader("add_voter", "identifier_3", "localhost:3652", "0")
	asked(nodes[0], "add-voter identifier_3")
	leader("leadership_transfer")
	asked(nodes[0], "transfer ")
	leader("barrier")
	asked(nodes[1], "barrier")
	leader("leadership_transfer_to_server", "identifier_3", "localhost:3652")
	asked(nodes[1], "transfer id-of-identifier_3")
	if out := leader("leader"); !strings.Contains(out, `address: "localhost:3652"`) {
		t.Error(out)
	}
	leader("verify_leader")
	asked(nodes[2], "verify")
	if out := leader("get_configuration"); !strings.Contains(out, "identifier_1") || !strings.Contains(out, "identifier_3") {
		t.Error(out)
	}

	// Without a leader the command waits, and goes on as soon as there is one.
	w.lead("")
	for _, s := range servers {
		s.forgetCallers()
	}
	go func() {
		for _, s := range servers {
			<-s.callers
		}
		w.lead("1")
	}()
	leader("barrier")
	asked(nodes[0], "barrier")
}

// A shutdown that ends the process lets raftadmin await and forget it first.
func TestShutdownIsHeardOf(t *testing.T) {
	w := newWorld("7b1e", three()...)
	n := w.node("7b1e")
	stopping := make(chan struct{})
	n.shutdown = sync.OnceFunc(func() { close(stopping) })
	s := run(t, n)
	go func() {
		<-stopping
		_ = s.stop()
	}()
	out, ok := stock(t, s.address, "shutdown")
	if want := strings.TrimSpace(future("Shutdown()", "")); out != want || !ok {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
	<-s.ended
}
