// Package peers starts real servers for tests: BIND, Knot and PowerDNS as name servers, nginx as an endpoint, HAProxy as one that asks
// agents, and a faulty road to put before them. Each server runs in the foreground on free loopback ports or in a network of its own,
// with its configuration and data under the test's own temporary directory, and is ended by its process id. A server that is not
// installed fails the test with the Debian package's name.
// Only tests import this package.
package peers

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Kind is a kind of name server.
type Kind string

// The name servers.
const (
	BIND     Kind = "bind"
	Knot     Kind = "knot"
	PowerDNS Kind = "powerdns"
)

// Kinds lists the name servers.
func Kinds() []Kind { return []Kind{BIND, Knot, PowerDNS} }

// Key is a TSIG key that a server knows.
type Key struct {
	Name      string // without a trailing dot
	Algorithm string // as in hmac-sha256
	Secret    string // base64
}

// DefaultKey is known to every server whose configuration names no other.
func DefaultKey() Key {
	return Key{Name: "rota", Algorithm: "hmac-sha256", Secret: "c2VjcmV0IG9mIHRoZSByb3RhIHRlc3RzIDAxMjM0NTY="}
}

// Zone is a zone that a server holds.
type Zone struct {
	Name   string // with a trailing dot
	Text   string // zone file text without SOA and NS, which are added; $ORIGIN is the zone
	Closed bool   // nobody may update it

	Primary string   // host:port the zone is transferred from, instead of Text; empty: this server is the primary. BIND and Knot
	Notify  []string // host:port of servers that are told of changes. BIND and Knot
	Signed  bool     // the server signs it, with keys of its own making. Knot
}

// Place is where a server runs. The zero Place is loopback, on a free port.
type Place struct {
	Address string       // IPv4 address to listen on, at port 53; empty: 127.0.0.1
	Within  func(func()) // calls its argument on a thread of another network, where processes and sockets begin; nil: here
}

func (p Place) within(f func()) {
	if p.Within == nil {
		f()
		return
	}
	p.Within(f)
}

// Config says what a name server holds.
type Config struct {
	Zones []Zone
	Keys  []Key // may update every zone that is not closed; empty: DefaultKey
	At    Place
	Port  int // to listen on; 0: 53 at an address of the Place, else a free one
}

// NameServer is a running name server.
type NameServer struct {
	Kind Kind

	t    testing.TB
	c    Config
	dir  string
	host string
	port int
	api  int // port of PowerDNS's HTTP API
	run  *process
}

// APIKey is the key of a PowerDNS's HTTP API.
const APIKey = "key-of-the-rota-tests"

// API returns the URL of a PowerDNS's HTTP API, without a path.
func (s *NameServer) API() string { return fmt.Sprintf("http://%s:%d", s.host, s.api) }

// Start starts a name server and waits until it answers. It ends with the test.
func Start(t testing.TB, kind Kind, c Config) *NameServer {
	t.Helper()
	if len(c.Keys) == 0 {
		c.Keys = []Key{DefaultKey()}
	}
	s := &NameServer{Kind: kind, t: t, c: c, dir: t.TempDir(), host: c.At.Address, port: 53}
	if s.host == "" {
		s.host, s.port = "127.0.0.1", 0
	}
	if c.Port != 0 {
		s.port = c.Port
	} else if s.port == 0 {
		s.port = FreePort(t)
	}
	s.api = FreePort(t)
	s.configure()
	s.Restart()
	return s
}

// Addr returns the server's address and port, for UDP and TCP.
func (s *NameServer) Addr() string { return net.JoinHostPort(s.host, strconv.Itoa(s.port)) }

// Kill ends the server at once (SIGKILL) and waits for it.
func (s *NameServer) Kill() {
	s.t.Helper()
	s.run.kill()
}

// Signal sends a signal to the server, such as SIGSTOP.
func (s *NameServer) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.run.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("%s: %v", s.Kind, err)
	}
}

// Restart starts the server again on the same port with its data, and waits until it answers.
func (s *NameServer) Restart() {
	s.t.Helper()
	if s.run != nil {
		s.run.kill()
	}
	switch s.Kind {
	case BIND:
		s.run = start(s.t, s.c.At, "named", "bind9", s.dir, "-g", "-c", s.path("named.conf"))
	case Knot:
		s.run = start(s.t, s.c.At, "knotd", "knot", s.dir, "-c", s.path("knot.conf"))
	case PowerDNS:
		s.run = start(s.t, s.c.At, "pdns_server", "pdns-server", s.dir, "--config-dir="+s.dir)
	}
	s.run.await(func() error {
		for _, z := range s.c.Zones {
			m := new(dns.Msg)
			m.SetQuestion(z.Name, dns.TypeSOA)
			answer, err := s.ask(&dns.Client{Timeout: 300 * time.Millisecond}, m)
			if err != nil {
				return err
			}
			if !answer.Authoritative || len(answer.Answer) == 0 {
				return fmt.Errorf("%s is not served yet: %v", z.Name, answer)
			}
		}
		return nil
	})
}

// SetZone replaces all of a zone, as a restored backup does: the server is ended, given the zone anew and started.
func (s *NameServer) SetZone(z Zone) {
	s.t.Helper()
	s.run.kill()
	i := slices.IndexFunc(s.c.Zones, func(o Zone) bool { return o.Name == z.Name })
	if i < 0 {
		s.c.Zones = append(s.c.Zones, z)
	} else {
		s.c.Zones[i] = z
	}
	old := s.dir
	s.dir = s.t.TempDir()
	s.configure()
	os.RemoveAll(old)
	s.Restart()
}

// SetKeys replaces the keys that may update, as an operator does who rolls them: the server is ended and started with the same zones.
func (s *NameServer) SetKeys(keys ...Key) {
	s.t.Helper()
	s.run.kill()
	old := s.c.Keys
	s.c.Keys = keys
	switch s.Kind {
	case BIND:
		s.configureBIND()
	case Knot:
		s.configureKnot()
	case PowerDNS:
		for _, k := range old {
			s.pdnsutil("delete-tsig-key", k.Name)
		}
		s.pdnsKeys()
	}
	s.Restart()
}

// askLimit is how long a running server may take to answer a test on a busy machine.
const askLimit = 20 * time.Second

// Dump returns every record of a zone as text, sorted, by a zone transfer. The SOA comes once.
func (s *NameServer) Dump(zone string) []string {
	s.t.Helper()
	m := new(dns.Msg)
	m.SetAxfr(zone)
	var envelopes chan *dns.Envelope
	var err error
	s.c.At.within(func() {
		envelopes, err = (&dns.Transfer{DialTimeout: askLimit, ReadTimeout: askLimit}).In(m, s.Addr())
	})
	if err != nil {
		s.t.Fatalf("%s: transfer of %s: %v", s.Kind, zone, err)
	}
	var out []string
	for e := range envelopes {
		if e.Error != nil {
			s.t.Fatalf("%s: transfer of %s: %v", s.Kind, zone, e.Error)
		}
		for _, rr := range e.RR {
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Serial returns the zone's serial.
func (s *NameServer) Serial(zone string) uint32 {
	s.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(zone, dns.TypeSOA)
	answer, err := s.ask(&dns.Client{Net: "tcp", Timeout: askLimit}, m)
	if err != nil || len(answer.Answer) == 0 {
		s.t.Fatalf("%s: SOA of %s: %v %v", s.Kind, zone, answer, err)
	}
	return answer.Answer[0].(*dns.SOA).Serial
}

// Update changes a zone as somebody else with the key would: records in remove go (RFC 2136 §2.5.4), or whole RRsets of theirs when
// they are of class ANY, and records in add come.
func (s *NameServer) Update(zone string, remove, add []string) {
	s.t.Helper()
	m := new(dns.Msg)
	m.SetUpdate(zone)
	m.Remove(s.records(remove))
	m.Insert(s.records(add))
	k := s.c.Keys[0]
	m.SetTsig(k.Name+".", dns.CanonicalName(k.Algorithm), 300, time.Now().Unix())
	c := &dns.Client{Net: "tcp", TsigSecret: map[string]string{k.Name + ".": k.Secret}}
	answer, err := s.ask(c, m)
	if err != nil || answer.Rcode != dns.RcodeSuccess {
		s.t.Fatalf("%s: update of %s by hand: %v %v", s.Kind, zone, answer, err)
	}
}

func (s *NameServer) records(texts []string) []dns.RR {
	s.t.Helper()
	var out []dns.RR
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			s.t.Fatalf("record %q: %v", text, err)
		}
		out = append(out, rr)
	}
	return out
}

// Lookup returns the data that the server answers for a name and type, sorted.
func (s *NameServer) Lookup(name string, t uint16) []string {
	s.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, t)
	answer, err := s.ask(&dns.Client{Net: "tcp", Timeout: askLimit}, m)
	if err != nil {
		s.t.Fatalf("%s: %s: %v", s.Kind, name, err)
	}
	var out []string
	for _, rr := range answer.Answer {
		if rr.Header().Rrtype == t {
			out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	slices.Sort(out)
	return out
}

// ask asks the server from where it runs.
func (s *NameServer) ask(c *dns.Client, m *dns.Msg) (answer *dns.Msg, err error) {
	s.c.At.within(func() { answer, _, err = c.Exchange(m, s.Addr()) })
	return answer, err
}

func (s *NameServer) path(name string) string { return filepath.Join(s.dir, name) }

func (s *NameServer) write(name, format string, args ...any) {
	s.t.Helper()
	writeFile(s.t, s.path(name), fmt.Sprintf(format, args...))
}

func (z Zone) file() string { return strings.TrimSuffix(z.Name, ".") + ".zone" }

func (s *NameServer) configure() {
	s.t.Helper()
	for _, z := range s.c.Zones {
		if z.Primary != "" {
			continue
		}
		s.write(z.file(), "$ORIGIN %s\n$TTL 300\n@ 300 IN SOA ns1 hostmaster 1 3600 600 86400 30\n@ 300 IN NS ns1\nns1 300 IN A 127.0.0.1\n%s\n",
			z.Name, z.Text)
	}
	switch s.Kind {
	case BIND:
		s.configureBIND()
	case Knot:
		s.configureKnot()
	case PowerDNS:
		s.configurePowerDNS()
	default:
		s.t.Fatalf("unknown kind of name server %q", s.Kind)
	}
}

func (s *NameServer) configureBIND() {
	var b strings.Builder
	fmt.Fprintf(&b, `options {
	directory %q; pid-file none; session-keyfile "session.key"; managed-keys-directory %q;
	listen-on port %d { %s; }; listen-on-v6 { none; };
	recursion no; allow-transfer { any; }; notify no; dnssec-validation no; minimal-responses no;
};
controls {};
`, s.dir, s.dir, s.port, s.host)
	var keys strings.Builder
	for _, k := range s.c.Keys {
		fmt.Fprintf(&b, "key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret)
		fmt.Fprintf(&keys, "key %q; ", k.Name)
	}
	for _, z := range s.c.Zones {
		update := keys.String()
		if z.Closed {
			update = "none; "
		}
		if z.Primary != "" {
			host, port := s.hostPort(z.Primary)
			fmt.Fprintf(&b, "zone %q { type secondary; file %q; primaries { %s port %s; }; };\n", z.Name, z.file(), host, port)
			continue
		}
		notify := ""
		if len(z.Notify) > 0 {
			notify = "notify explicit; notify-delay 0; also-notify { "
			for _, at := range z.Notify {
				host, port := s.hostPort(at)
				notify += host + " port " + port + "; "
			}
			notify += "}; "
		}
		fmt.Fprintf(&b, "zone %q { type primary; file %q; %sallow-update { %s}; };\n", z.Name, z.file(), notify, update)
	}
	s.write("named.conf", "%s", b.String())
}

func (s *NameServer) configureKnot() {
	var b strings.Builder
	fmt.Fprintf(&b, "server:\n  rundir: %q\n  listen: %s@%d\ndatabase:\n  storage: %q\nlog:\n  - target: stderr\n    any: info\nkey:\n",
		s.dir, s.host, s.port, s.dir)
	var ids []string
	for _, k := range s.c.Keys {
		fmt.Fprintf(&b, "  - id: %s.\n    algorithm: %s\n    secret: %s\n", k.Name, k.Algorithm, k.Secret)
		ids = append(ids, k.Name+".")
	}
	fmt.Fprintf(&b, "acl:\n  - id: update\n    key: [%s]\n    action: [update, transfer]\n", strings.Join(ids, ", "))
	b.WriteString("  - id: transfer\n    address: 0.0.0.0/0\n    action: [transfer]\n  - id: notify\n    address: 0.0.0.0/0\n    action: [notify]\n")
	remotes, zones := "", ""
	remote := func(at string) string {
		host, port := s.hostPort(at)
		id := fmt.Sprintf("remote%d", strings.Count(remotes, "id:"))
		remotes += fmt.Sprintf("  - id: %s\n    address: %s@%s\n", id, host, port)
		return id
	}
	for _, z := range s.c.Zones {
		acl := "[update, transfer]"
		if z.Closed {
			acl = "[transfer]"
		}
		if z.Primary != "" {
			zones += fmt.Sprintf("  - domain: %s\n    storage: %q\n    file: %q\n    acl: [notify, transfer]\n    master: %s\n",
				z.Name, s.dir, z.file(), remote(z.Primary))
			continue
		}
		zones += fmt.Sprintf("  - domain: %s\n    storage: %q\n    file: %q\n    acl: %s\n    serial-policy: increment\n", z.Name, s.dir, z.file(), acl)
		if z.Signed {
			zones += "    dnssec-signing: on\n"
		}
		var ids []string
		for _, at := range z.Notify {
			ids = append(ids, remote(at))
		}
		if len(ids) > 0 {
			zones += fmt.Sprintf("    notify: [%s]\n", strings.Join(ids, ", "))
		}
	}
	if remotes != "" {
		b.WriteString("remote:\n" + remotes)
	}
	b.WriteString("zone:\n" + zones)
	s.write("knot.conf", "%s", b.String())
}

func (s *NameServer) hostPort(at string) (host, port string) {
	s.t.Helper()
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		s.t.Fatalf("%s: %v", s.Kind, err)
	}
	return host, port
}

func (s *NameServer) configurePowerDNS() {
	s.write("pdns.conf", `launch=lmdb
lmdb-filename=%s
local-address=%s
local-port=%d
socket-dir=%s
daemon=no
guardian=no
dnsupdate=yes
allow-dnsupdate-from=0.0.0.0/0
allow-axfr-ips=0.0.0.0/0
disable-axfr=no
loglevel=4
version-string=anonymous
webserver=yes
webserver-address=%s
webserver-port=%d
webserver-allow-from=0.0.0.0/0
api=yes
api-key=%s
`, s.path("db"), s.host, s.port, s.dir, s.host, s.api, APIKey)
	s.pdnsutil("import-tsig-key", "nobody", "hmac-sha256", "bm9ib2R5IGhhcyB0aGlzIGtleQ==") // without a key to ask for, updates are open
	for _, z := range s.c.Zones {
		name := strings.TrimSuffix(z.Name, ".")
		s.pdnsutil("load-zone", name, s.path(z.file()))
		if z.Closed {
			s.pdnsutil("set-meta", name, "TSIG-ALLOW-DNSUPDATE", "nobody")
		}
	}
	s.pdnsKeys()
}

// pdnsKeys lets the keys update and transfer the zones of PowerDNS that are not closed.
func (s *NameServer) pdnsKeys() {
	s.t.Helper()
	var names []string
	for _, k := range s.c.Keys {
		s.pdnsutil("import-tsig-key", k.Name, k.Algorithm, k.Secret)
		names = append(names, k.Name)
	}
	for _, z := range s.c.Zones {
		if z.Closed {
			continue
		}
		name := strings.TrimSuffix(z.Name, ".")
		s.pdnsutil(append([]string{"set-meta", name, "TSIG-ALLOW-DNSUPDATE"}, names...)...)
		s.pdnsutil(append([]string{"set-meta", name, "TSIG-ALLOW-AXFR"}, names...)...)
		s.pdnsutil("set-meta", name, "SOA-EDIT-DNSUPDATE", "INCREASE")
	}
}

func (s *NameServer) pdnsutil(args ...string) {
	s.t.Helper()
	cmd := exec.Command(lookPath(s.t, "pdnsutil", "pdns-server"), append([]string{"--config-dir=" + s.dir}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("pdnsutil %v: %v\n%s", args, err, out)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// FreePort returns a port that is free now for UDP and TCP on 127.0.0.1 and on the other addresses. It lies below the ports that the
// kernel gives to outgoing connections: one of those could be taken while a server that uses it is down for a moment.
func FreePort(t testing.TB, also ...string) int {
	t.Helper()
	for range 200 {
		port := 10000 + rand.IntN(20000)
		if !slices.ContainsFunc(append([]string{"127.0.0.1"}, also...), func(a string) bool { return !free(a, port) }) {
			return port
		}
	}
	t.Fatal("no loopback port is free for UDP and TCP")
	return 0
}

func free(address string, port int) bool {
	at := net.JoinHostPort(address, strconv.Itoa(port))
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	u.Close()
	return true
}
