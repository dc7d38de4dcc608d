package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What every instance of these tests listens on, each at a loopback address of its own.
const (
	clusterPort = ":3648"
	adminPort   = ":3649"
	agentPort   = ":3443"
	dnsPort     = ":5300"
)

var addresses atomic.Int64

// loopback returns a loopback address that no other test uses, so that ports need not be looked for.
func loopback(t *testing.T) string {
	t.Helper()
	pid, n := os.Getpid(), addresses.Add(1)
	if n > 254 {
		t.Fatal("more loopback addresses than there is room for")
	}
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&127, pid&255, n)
}

// job is a process that a test started.
type job struct {
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when it has ended
}

// begin starts the command under test and ends it with the test.
func begin(t *testing.T, log *logBuffer, env []string, args ...string) *job {
	t.Helper()
	j := &job{cmd: exec.Command(binary, args...), log: log, done: make(chan struct{})}
	j.cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...) // or each would take a second to end
	j.cmd.Stdout, j.cmd.Stderr = log, log
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = j.cmd.Wait() // the test looks at the state and the log
		close(j.done)
	}()
	t.Cleanup(j.crash)
	return j
}

// crash is kill -9.
func (j *job) crash() {
	_ = j.cmd.Process.Kill()
	<-j.done
}

// signal sends a signal.
func (j *job) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := j.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit code when the process has ended by itself.
func (j *job) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-j.done:
		return j.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("%s does not end:\n%s", strings.Join(j.cmd.Args, " "), j.log)
		return 0
	}
}

// instance is one rota of several that one configuration describes.
type instance struct {
	*node
	*job
	t          *testing.T
	name, host string
	env, flags []string // of its command line, the same at every start
}

// instances are the rotas of a configuration. NAME, HOST and DATA in its variables are an instance's own.
func instances(t *testing.T, config string, names ...string) []*instance {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "rota.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var all []*instance
	for _, name := range names {
		i := &instance{t: t, name: name, host: loopback(t)}
		i.node = &node{t: t, config: path, data: filepath.Join(dir, name), dns: i.host + dnsPort, log: &logBuffer{}}
		i.env = []string{"NAME=" + name, "HOST=" + i.host, "DATA=" + i.data}
		all = append(all, i)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, i.node.log)
			}
		})
	}
	return all
}

// begin starts the instance with its own command line and does not wait.
func (i *instance) begin() {
	i.t.Helper()
	i.job = begin(i.t, i.node.log, i.env, append([]string{"run", "--config", i.config}, i.flags...)...)
}

// up starts the instance and waits until it is ready.
func (i *instance) up() {
	i.t.Helper()
	i.begin()
	i.ready()
}

// ready waits until the instance is.
func (i *instance) ready() {
	i.t.Helper()
	eventually(i.t, i.name+" is ready", func() bool {
		select {
		case <-i.job.done:
			i.t.Fatalf("%s ended at its start:\n%s", i.name, i.node.log)
		default:
		}
		return i.get("/readyz", nil) == nil
	})
}

// down is SIGTERM, and a fault unless it ends in order.
func (i *instance) down() {
	i.t.Helper()
	i.job.signal(i.t, syscall.SIGTERM)
	if code := i.job.wait(i.t); code != 0 {
		i.t.Errorf("%s ended with %d on SIGTERM", i.name, code)
	}
}

// says reports whether the instance has logged a text since the mark, which is how much it had logged then.
func (i *instance) says(mark int, text string) bool {
	return strings.Contains(i.node.log.String()[mark:], text)
}

func (i *instance) mark() int { return len(i.node.log.String()) }

// answering waits until all of them answer exactly want.
func answering(t *testing.T, what string, all []*instance, name string, want ...string) {
	t.Helper()
	for _, i := range all {
		eventually(t, i.name+" answers: "+what, answers(i.dns, name, dns.TypeA, want...))
	}
}

// members are the cluster as an instance knows it.
type members struct {
	Leader  string `json:"leader"`
	Cluster string `json:"cluster"`
	Removed bool   `json:"removed"`
	Members []struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		Voter   bool   `json:"voter"`
	} `json:"members"`
}

func (i *instance) members() members {
	var m members
	_ = i.get("/api/v1/cluster", &m) // who is down knows nobody
	return m
}

// leads returns the instance that leads, as all that are asked agree.
func leads(t *testing.T, all ...*instance) *instance {
	t.Helper()
	var leader *instance
	eventually(t, "one leads", func() bool {
		said := map[string]bool{}
		for _, i := range all {
			said[i.members().Leader] = true
		}
		for name := range said {
			n := slices.IndexFunc(all, func(i *instance) bool { return i.name == name })
			if len(said) == 1 && n >= 0 {
				leader = all[n]
			}
		}
		return leader != nil
	})
	return leader
}

// vantage is what an instance says of one.
type vantage struct {
	Vantage     string `json:"vantage"`
	Site        string `json:"site"`
	Kind        string `json:"kind"`
	State       string `json:"state"`
	Checks      int    `json:"checks"`
	From        string `json:"from"`
	LastRefusal string `json:"last_refusal"`
}

func (i *instance) vantages() map[string]vantage {
	var list struct {
		Items []vantage `json:"items"`
	}
	_ = i.get("/api/v1/vantages", &list)
	out := map[string]vantage{}
	for _, v := range list.Items {
		out[v.Vantage] = v
	}
	return out
}

// votes returns the verdict on an address and what each vantage holds of it, as vantage=status in order of names.
func (i *instance) votes(address string) (verdict, votes string) {
	var list struct {
		Items []struct {
			Address string `json:"address"`
			Verdict string `json:"verdict"`
			Votes   []struct {
				Vantage string `json:"vantage"`
				Status  string `json:"status"`
			} `json:"votes"`
		} `json:"items"`
	}
	_ = i.get("/api/v1/checks", &list)
	for _, c := range list.Items {
		if c.Address != address {
			continue
		}
		var all []string
		for _, v := range c.Votes {
			all = append(all, v.Vantage+"="+v.Status)
		}
		return c.Verdict, strings.Join(all, " ")
	}
	return "", ""
}

// duty is an endpoint: it answers 200 to GET /healthz while it is on duty.
type duty struct {
	address string
	on      atomic.Bool
}

const dutyPort = 8080

// onDuty starts endpoints.
func onDuty(t *testing.T, n int) (all []*duty, sorted []string) {
	t.Helper()
	for range n {
		d := &duty{address: loopback(t)}
		d.on.Store(true)
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", d.address, dutyPort))
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !d.on.Load() || r.URL.Path != "/healthz" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(l) })
		t.Cleanup(func() {
			_ = s.Close()
			wg.Wait()
		})
		all = append(all, d)
		sorted = append(sorted, d.address)
	}
	slices.Sort(sorted)
	return all, sorted
}

// watchful is a check that finds a change within two seconds and gives a slow machine time to answer.
var watchful = fmt.Sprintf("{type: http, port: %d, path: /healthz, interval: 1s, timeout: 900ms, fast_interval: 200ms, fall: 2, rise: 1, ok: 2}", dutyPort)

// authority is a CA of one's own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

// newAuthority makes a CA; its certificate is the file ca.pem.
func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	a.cert, a.key = a.sign(t, c, filepath.Join(a.dir, "ca"))
	if err := os.Rename(filepath.Join(a.dir, "ca.crt"), a.ca()); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) ca() string { return filepath.Join(a.dir, "ca.pem") }

// issue makes NAME.crt and NAME.key for a name, good for servers at an address and clients; without an address, AGENT-NAME for clients.
func (a *authority) issue(t *testing.T, name, address string) (cert, key string) {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(address); ip != nil {
		c.IPAddresses = []net.IP{ip}
	}
	path := filepath.Join(a.dir, name)
	if address == "" {
		path = filepath.Join(a.dir, "agent-"+name)
	}
	a.sign(t, c, path)
	return path + ".crt", path + ".key"
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, path string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{path + ".crt": {Type: "CERTIFICATE", Bytes: der}, path + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// pool is the CA as what others are measured by.
func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// certificate reads what issue wrote.
func certificate(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stockRaftadmin is NectGmbH's operators' command, as pinned in tools/go.mod. Go builds it when it is not in its cache.
var stockRaftadmin = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=tools/go.mod", "-n", "raftadmin")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go tool raftadmin: %w\n%s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

var spaces = regexp.MustCompile(`[ \t\n]+`)

// raftadmin runs the stock command and returns what it prints, in one line with single spaces, and whether it exits with 0.
func raftadmin(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	path, err := stockRaftadmin()
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
		t.Fatalf("raftadmin %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return spaces.ReplaceAllString(string(out), " "), err == nil
}
