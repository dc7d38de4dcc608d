package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// binary is the command under test, built once, or an existing one that the environment variable ROTA_E2E_BINARY names.
var binary = os.Getenv("ROTA_E2E_BINARY")

func TestMain(m *testing.M) {
	// Tests of a cluster wait most of the time. The command line still decides when it says something.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(func() int {
		if binary != "" || os.Getenv(worldChild) != "" {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "rota-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "rota")
		out, err := exec.Command("go", "build", "-race", "-o", binary, "../../cmd/rota").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "building the command: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// patience bounds every wait of these tests. It says nothing about how fast rota is, only when to give up.
const patience = 60 * time.Second

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("gave up after %v waiting until %s", patience, what)
}

// node is a running rota.
type node struct {
	t      testing.TB
	name   string
	config string // path
	data   string // directory
	dns    string // host:port of its name server; empty: none
	place  *place // where it runs; nil: where the test runs
	log    *logBuffer
	*process
}

// logBuffer keeps what a process said.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newNode writes a configuration. DATA and DNS in it stand for the data directory and the name server's address.
func newNode(t testing.TB, config string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, config: filepath.Join(dir, "rota.yaml"), data: filepath.Join(dir, "data")}
	if strings.Contains(config, "DNS") {
		n.dns = fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
	}
	n.write(config)
	n.ends()
	return n
}

// write replaces the configuration.
func (n *node) write(config string) {
	n.t.Helper()
	text := strings.NewReplacer("DATA", n.data, "DNS", n.dns).Replace(config)
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// ends ends the node with the test.
func (n *node) ends() {
	n.t.Cleanup(func() {
		n.kill()
		if n.t.Failed() && n.log != nil {
			n.t.Logf("log of rota:\n%s", n.log)
		}
	})
}

// start runs the node and waits until it is ready; its answers begin at once.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	eventually(n.t, "rota is ready", func() bool {
		n.alive()
		return n.get("/readyz", nil) == nil
	})
}

// launch runs the node, with more flags.
func (n *node) launch(flags ...string) {
	n.t.Helper()
	if n.log == nil {
		n.log = &logBuffer{}
	}
	c := exec.Command(binary, append([]string{"run", "--config", n.config}, flags...)...)
	c.Stdout, c.Stderr = n.log, n.log
	n.process = launch(n.t, n.place, c)
}

// alive fails the test when the node has ended.
func (n *node) alive() {
	n.t.Helper()
	select {
	case <-n.done:
		n.t.Fatalf("rota ended at its start:\n%s", n.log)
	default:
	}
}

// kill is kill -9.
func (n *node) kill() {
	if n.process != nil {
		n.process.kill()
		n.process = nil
	}
}

// stop is SIGTERM, and waits for the end.
func (n *node) stop() *os.ProcessState {
	n.t.Helper()
	n.signal(n.t, syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Fatal("rota does not end on SIGTERM")
	}
	s := n.cmd.ProcessState
	n.process = nil
	return s
}

// get asks the API over the unix socket.
func (n *node) get(path string, into any) error {
	r, err := http.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return err
	}
	return n.roundTrip(apiLimit, r, into)
}

func (n *node) roundTrip(limit time.Duration, r *http.Request, into any) error {
	c := http.Client{
		Timeout: limit,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.data, "api.sock"))
			},
		},
	}
	resp, err := c.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return &statusError{resp.StatusCode, string(body)}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// apiLimit bounds one question to the API, unless said otherwise.
const apiLimit = 30 * time.Second

// statusError is a refusal of the API.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.status, e.body) }

// rota runs a client verb against the node and returns what it prints.
func (n *node) rota(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("rota %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (n *node) try(args ...string) (string, error) {
	c := exec.Command(binary, args...)
	c.Env = append(os.Environ(), "ROTA_ADDR=unix://"+filepath.Join(n.data, "api.sock"))
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	x := launch(n.t, n.place, c)
	<-x.done
	if !x.cmd.ProcessState.Success() {
		return out.String(), fmt.Errorf("%v", x.cmd.ProcessState)
	}
	return out.String(), nil
}

// ask returns the addresses that server gives for name, sorted; an error for anything but NOERROR.
func ask(server, name string, qtype uint16) ([]string, error) {
	return askFrom(nil, server, name, qtype)
}

// askFrom asks from a place.
func askFrom(p *place, server, name string, qtype uint16) ([]string, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	var in *dns.Msg
	var err error
	exchange := func() { in, _, err = (&dns.Client{Timeout: 2 * time.Second}).Exchange(m, server) }
	if p == nil {
		exchange()
	} else {
		p.within(exchange)
	}
	if err != nil {
		return nil, err
	}
	if in.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s", dns.RcodeToString[in.Rcode])
	}
	var out []string
	for _, rr := range in.Answer {
		switch a := rr.(type) {
		case *dns.A:
			out = append(out, a.A.String())
		case *dns.AAAA:
			out = append(out, a.AAAA.String())
		}
	}
	slices.Sort(out)
	return out, nil
}

// answers reports whether server gives exactly want.
func answers(server, name string, qtype uint16, want ...string) func() bool {
	want = slices.Sorted(slices.Values(want))
	return func() bool {
		got, err := ask(server, name, qtype)
		return err == nil && slices.Equal(got, want)
	}
}
