package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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

// binary is the command under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
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
func eventually(t *testing.T, what string, ok func() bool) {
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
	t      *testing.T
	config string // path
	data   string // directory
	dns    string // host:port of its name server; empty: none
	cmd    *exec.Cmd
	log    *logBuffer
	done   chan struct{}
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
func newNode(t *testing.T, config string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, config: filepath.Join(dir, "rota.yaml"), data: filepath.Join(dir, "data")}
	if strings.Contains(config, "DNS") {
		n.dns = fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
	}
	n.write(config)
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Logf("log of rota:\n%s", n.log)
		}
	})
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

// start runs the node; its answers begin at once.
func (n *node) start() {
	n.t.Helper()
	if n.log == nil {
		n.log = &logBuffer{}
	}
	n.cmd = exec.Command(binary, "run", "--config", n.config)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.done = make(chan struct{})
	go func(c *exec.Cmd, done chan struct{}) {
		_ = c.Wait() // the test looks at the state and the log
		close(done)
	}(n.cmd, n.done)
	eventually(n.t, "rota is ready", func() bool {
		select {
		case <-n.done:
			n.t.Fatalf("rota ended at its start:\n%s", n.log)
		default:
		}
		return n.get("/readyz", nil) == nil
	})
}

// kill is kill -9.
func (n *node) kill() {
	if n.cmd != nil && n.cmd.Process != nil {
		_ = n.cmd.Process.Kill()
		<-n.done
		n.cmd = nil
	}
}

// stop is SIGTERM, and waits for the end.
func (n *node) stop() *os.ProcessState {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Fatal("rota does not end on SIGTERM")
	}
	s := n.cmd.ProcessState
	n.cmd = nil
	return s
}

// get asks the API over the unix socket.
func (n *node) get(path string, into any) error {
	c := http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.data, "api.sock"))
			},
		},
	}
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

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
	out, err := c.CombinedOutput()
	return string(out), err
}

// ask returns the addresses that server gives for name, sorted; an error for anything but NOERROR.
func ask(server, name string, qtype uint16) ([]string, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	in, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(m, server)
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
	return func() bool {
		got, err := ask(server, name, qtype)
		return err == nil && slices.Equal(got, want)
	}
}

// watcher asks a name server all the time and notes what must never be seen.
type watcher struct {
	server, name string
	allowed      []string

	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex // guards what follows
	asked  int
	wrong  []string
	banned string
}

// watch asks server for the addresses of name until the test ends. allowed are the only addresses that may be seen. Only an answer can
// be wrong: silence while a server is down is not.
func watch(t *testing.T, server, name string, allowed ...string) *watcher {
	w := &watcher{server: server, name: name, allowed: allowed, stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	t.Cleanup(func() { w.clean(t) })
	return w
}

func (w *watcher) run() {
	defer close(w.done)
	var serial uint32
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		m := new(dns.Msg).SetQuestion(dns.Fqdn(w.name), dns.TypeA)
		in, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(m, w.server)
		if err != nil {
			continue
		}
		w.judge(in)
		m = new(dns.Msg).SetQuestion(dns.Fqdn(w.name), dns.TypeSOA)
		if in, _, err = (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(m, w.server); err != nil {
			continue
		}
		for _, rr := range slices.Concat(in.Answer, in.Ns) {
			if soa, ok := rr.(*dns.SOA); ok {
				if serial != 0 && int32(soa.Serial-serial) < 0 {
					w.note(fmt.Sprintf("the serial went back from %d to %d", serial, soa.Serial))
				}
				serial = soa.Serial
			}
		}
	}
}

func (w *watcher) judge(in *dns.Msg) {
	w.mu.Lock()
	w.asked++
	banned := w.banned
	w.mu.Unlock()
	if in.Rcode != dns.RcodeSuccess || len(in.Answer) == 0 {
		w.note(fmt.Sprintf("rcode %s with %d answers", dns.RcodeToString[in.Rcode], len(in.Answer)))
	}
	for _, rr := range in.Answer {
		a, ok := rr.(*dns.A)
		switch {
		case !ok:
			w.note("a record that is no address: " + rr.String())
		case netip.MustParseAddr(a.A.String()).String() == banned:
			w.note(banned + " was answered, and it is known to be dead")
		case !slices.Contains(w.allowed, a.A.String()):
			w.note(a.A.String() + " was answered and is not configured")
		}
	}
}

// ban makes one more address wrong from now on; empty lifts the ban.
func (w *watcher) ban(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.banned = address
}

func (w *watcher) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) < 20 {
		w.wrong = append(w.wrong, time.Now().Format("15:04:05.000 ")+what)
	}
}

// clean ends the watch and fails the test when anything was wrong, or nothing was seen.
func (w *watcher) clean(t *testing.T) {
	t.Helper()
	select {
	case <-w.stop:
		return
	default:
	}
	close(w.stop)
	<-w.done
	if w.asked == 0 {
		t.Errorf("the watcher at %s never got an answer", w.server)
	}
	for _, x := range w.wrong {
		t.Errorf("%s at %s: %s", w.name, w.server, x)
	}
}
