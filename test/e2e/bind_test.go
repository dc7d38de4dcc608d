package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

const (
	zoneName = "example.org"
	service  = "www.example.org"
)

var tsigSecret = base64.StdEncoding.EncodeToString([]byte("an end-to-end test's own secret."))

// bind is a real BIND with one zone that takes signed updates.
type bind struct {
	t    *testing.T
	dir  string
	addr string // host:port
	cmd  *exec.Cmd
}

func newBind(t *testing.T, records string) *bind {
	t.Helper()
	if _, err := exec.LookPath("/usr/sbin/named"); err != nil {
		t.Fatal("these tests need BIND: install the Debian package bind9")
	}
	b := &bind{t: t, dir: t.TempDir(), addr: fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))}
	_, port, _ := strings.Cut(b.addr, ":")
	conf := fmt.Sprintf(`options {
  directory %[1]q; pid-file none; session-keyfile none; managed-keys-directory %[1]q; listen-on port %[2]s { 127.0.0.1; };
  listen-on-v6 { none; }; recursion no; dnssec-validation no; notify no; allow-transfer { 127.0.0.1; };
};
controls {};
key "ddns" { algorithm hmac-sha256; secret %[3]q; };
zone %[4]q { type primary; file "zone.db"; allow-update { key ddns; }; };
`, b.dir, port, tsigSecret, zoneName)
	zone := "$TTL 300\n@ IN SOA ns1 hostmaster 1 3600 600 86400 5\n@ IN NS ns1\nns1 IN A 127.0.0.1\n" + records
	for name, text := range map[string]string{"named.conf": conf, "zone.db": zone} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.start()
	t.Cleanup(b.kill)
	return b
}

func (b *bind) start() {
	b.t.Helper()
	b.cmd = exec.Command("/usr/sbin/named", "-g", "-c", filepath.Join(b.dir, "named.conf"), "-n", "1")
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(b.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "BIND answers", func() bool {
		m := new(dns.Msg).SetQuestion(dns.Fqdn(zoneName), dns.TypeSOA)
		in, err := dns.Exchange(m, b.addr)
		return err == nil && in.Rcode == dns.RcodeSuccess
	})
}

func (b *bind) kill() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// records returns the whole zone by transfer, sorted, less what rota may write: the SOA, the fence, and the names given.
func (b *bind) records(less ...string) []string {
	b.t.Helper()
	m := new(dns.Msg).SetAxfr(dns.Fqdn(zoneName))
	ch, err := new(dns.Transfer).In(m, b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for e := range ch {
		if e.Error != nil {
			b.t.Fatal(e.Error)
		}
		for _, rr := range e.RR {
			name := rr.Header().Name
			if rr.Header().Rrtype != dns.TypeSOA && name != "_rota."+zoneName+"." && !slices.Contains(less, name) {
				out = append(out, rr.String())
			}
		}
	}
	slices.Sort(out)
	return out
}

func (b *bind) serial() uint32 {
	b.t.Helper()
	in, err := dns.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(zoneName), dns.TypeSOA), b.addr)
	if err != nil || len(in.Answer) == 0 {
		b.t.Fatal(in, err)
	}
	return in.Answer[0].(*dns.SOA).Serial
}

// remove takes one address out by hand.
func (b *bind) remove(name, address string) {
	b.t.Helper()
	host, port, _ := strings.Cut(b.addr, ":")
	c := exec.Command("nsupdate")
	c.Stdin = strings.NewReader(fmt.Sprintf("server %s %s\nzone %s\nkey hmac-sha256:ddns %s\nupdate delete %s. A %s\nsend\n",
		host, port, zoneName, tsigSecret, name, address))
	if out, err := c.CombinedOutput(); err != nil {
		b.t.Fatalf("nsupdate: %v\n%s", err, out)
	}
}

// published is a node that keeps three endpoints true in BIND.
func published(b *bind, port int, extra string) string {
	return fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
keys: {ddns: {algorithm: hmac-sha256, name: ddns., secret: %q}}
publish:
  bind: {type: rfc2136, servers: [%q], key: ddns}
services:
  www.example.org:
    ttl: 5s
    endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]
    check: {type: http, port: %d, path: /health, %s}
    safety: {min_hold: 0s%s}
    publish: bind
`, tsigSecret, b.addr, port, fast, extra)
}

// The main job against a BIND: an address leaves when its server dies and comes back with it; the rest of the zone stays as it is;
// a restart with one endpoint down never writes its address; SIGTERM leaves the DNS as it is.
func TestBind(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := newBind(t, "mail IN MX 10 mx.example.net.\nwww IN TXT \"not rota's\"\nother 60 IN A 192.0.2.99\n")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.addr, service, dns.TypeA, three...))
	foreign := b.records(service + ".")
	w := watch(t, b.addr, service, three...)

	servers[1].kill()
	eventually(t, "the dead one has left", answers(b.addr, service, dns.TypeA, three[0], three[2]))
	if story := n.rota("explain", service); !strings.Contains(story, "refused") || !strings.Contains(story, "bind") {
		t.Errorf("explain tells neither why nor where:\n%s", story)
	}
	w.ban(three[1])
	n.kill()
	n.start()
	eventually(t, "the node is in step again", func() bool { return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "in-step") })
	w.ban("")
	servers[1].start("/usr/sbin/nginx", port)
	eventually(t, "it is back", answers(b.addr, service, dns.TypeA, three...))

	if got := b.records(service + "."); !slices.Equal(got, foreign) {
		t.Errorf("foreign records changed:\n%s\nwere\n%s", strings.Join(got, "\n"), strings.Join(foreign, "\n"))
	}
	serial := b.serial()
	n.stop()
	if got := b.serial(); got != serial {
		t.Errorf("stopping changed the zone: serial %d, was %d", got, serial)
	}
	if got, err := ask(b.addr, service, dns.TypeA); err != nil || !slices.Equal(got, three) {
		t.Errorf("after the stop: %v, %v", got, err)
	}
}

// dynlbd §1.7: both bad, exactly one remains; recovery adds again; what is not configured is untouched.
func TestBindLastRecordStays(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := newBind(t, "")
	n := newNode(t, published(b, port, ", fail_open_below: 0%"))
	n.start()
	eventually(t, "all three are published", answers(b.addr, service, dns.TypeA, three...))
	watch(t, b.addr, service, three...)
	servers[0].kill()
	eventually(t, "the first has left", answers(b.addr, service, dns.TypeA, three[1], three[2]))
	servers[1].kill()
	eventually(t, "the second has left", answers(b.addr, service, dns.TypeA, three[2]))
	servers[2].kill()
	eventually(t, "the third is seen down", func() bool { return strings.Contains(n.rota("explain", service), "PANIC") })
	if got, err := ask(b.addr, service, dns.TypeA); err != nil || !slices.Equal(got, three[2:]) {
		t.Errorf("the last record did not stay: %v, %v", got, err)
	}
	servers[0].start("/usr/sbin/nginx", port)
	eventually(t, "whoever is up is added", func() bool {
		got, err := ask(b.addr, service, dns.TypeA)
		return err == nil && slices.Contains(got, three[0])
	})
}

// A BIND that is away holds nothing up for ever: the newest state is written when it is back.
func TestBindAwayAndBack(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := newBind(t, "")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.addr, service, dns.TypeA, three...))
	b.kill()
	servers[2].kill()
	eventually(t, "the failure to publish is shown", func() bool { return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "failing") })
	b.start()
	eventually(t, "the newest state is written", answers(b.addr, service, dns.TypeA, three[0], three[1]))
}

// config/min-rfc2136.yaml works as it stands, but for the server's address, the key's path and the endpoints' port.
func TestMinimalRFC2136(t *testing.T) {
	text, err := os.ReadFile("../../config/min-rfc2136.yaml")
	if err != nil {
		t.Fatal(err)
	}
	port := peers.FreePort(t, three...)
	for _, a := range three[:2] {
		newNginx(t, a, port, `location /health { return 200; }`)
	}
	b := newBind(t, "")
	key := filepath.Join(t.TempDir(), "tsig.key")
	if err := os.WriteFile(key, fmt.Appendf(nil, "key \"ddns\" { algorithm hmac-sha256; secret %q; };\n", tsigSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer(
		"ns1.example.org/", b.addr+"/", "/etc/rota/tsig.key", key, "https://{}/", fmt.Sprintf("http://{}:%d/", port),
		"192.0.2.10", three[0], "192.0.2.11", three[1], `"2001:db8::10"`, `"::1"`,
	).Replace(string(text))
	n := newNode(t, "node: {name: e2e, data_dir: DATA}\napi: {listen: \"\"}\n"+conf)
	n.start()
	eventually(t, "both are published", answers(b.addr, service, dns.TypeA, three[0], three[1]))
}

// A node that comes back after a while writes nothing from memory: an endpoint that died meanwhile, and that somebody took out of the
// zone by hand, is not put back, although the state on disk holds it up.
func TestBindRestartWritesNothingFromMemory(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := newBind(t, "")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.addr, service, dns.TypeA, three...))
	n.kill()
	servers[1].kill()
	b.remove(service, three[1])
	w := watch(t, b.addr, service, three...)
	w.ban(three[1])
	n.start()
	eventually(t, "the node is in step again", func() bool {
		return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "in-step")
	})
	w.clean(t)
}
