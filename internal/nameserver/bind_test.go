package nameserver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/tools/txtar"

	"github.com/rota-dns/rota/internal/rota"
)

const namedPath = "/usr/sbin/named"

// startBIND serves the zones by BIND on loopback and returns its address.
func startBIND(t *testing.T, zones []Zone) string {
	t.Helper()
	if _, err := os.Stat(namedPath); err != nil {
		t.Fatalf("%s is missing; install the Debian package bind9 (apt-get install --no-install-recommends bind9)", namedPath)
	}
	dir := t.TempDir()
	probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := probe.LocalAddr().(*net.UDPAddr).Port
	probe.Close()
	var conf strings.Builder
	fmt.Fprintf(&conf, `options {
	directory %q; pid-file none; session-keyfile "%s/session.key"; listen-on port %d { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; minimal-responses no-auth; dnssec-validation no; allow-transfer { none; }; rrset-order { order fixed; };
	empty-zones-enable no; zero-no-soa-ttl no; check-names master ignore; querylog no;
};
controls { };
`, dir, dir, port)
	for i, z := range zones {
		file := filepath.Join(dir, fmt.Sprintf("zone%d", i))
		if err := os.WriteFile(file, []byte(z.Records), 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&conf, "zone %q { type primary; file %q; check-integrity no; };\n", z.Name, file)
	}
	file := filepath.Join(dir, "named.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(namedPath, "-g", "-n", "1", "-c", file)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	c := dns.Client{Timeout: time.Second}
	m := new(dns.Msg).SetQuestion(zones[0].Name.String(), dns.TypeSOA)
	for deadline := time.Now().Add(30 * time.Second); ; {
		if r, _, err := c.Exchange(m, addr); err == nil && r.Authoritative {
			return addr
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("named did not answer:\n%s", log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestAgainstBIND asks BIND and rota the same questions about the same static zones. What the RFCs fix must be equal: rcode, AA, the
// answer, the authority section, and the glue of referrals. ANY differs by choice (RFC 8482).
func TestAgainstBIND(t *testing.T) {
	a, err := txtar.ParseFile("testdata/lookup/static.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var zones []Zone
	for _, f := range a.Files {
		if name, ok := strings.CutPrefix(f.Name, "zone "); ok {
			zones = append(zones, Zone{Name: rota.MustParseName(name), Records: string(f.Data)})
		}
	}
	bind := startBIND(t, zones)
	st := &rota.State{}
	c := catalogOf(t, st, zones...)

	// Names are made of the labels of the zones, of unknown ones and of every owner with labels put before it.
	var owners, labels []string
	for _, z := range c.zones.zones {
		for n := range z.nodes {
			owners = append(owners, n.String())
			labels = append(labels, n.Label())
		}
	}
	labels = append(labels, "nope", "*", "_x", strings.Repeat("l", 63), `a\.b`, `\000`, `\255`, "XyZ")
	slices.Sort(owners)
	slices.Sort(labels)
	labels = slices.DeleteFunc(slices.Compact(labels), func(l string) bool { return l == "" })
	types := []uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCNAME, dns.TypeDS, dns.TypePTR,
		dns.TypeCAA, 65280, 65281,
	}
	seed := uint64(3)
	rng := rand.New(rand.NewPCG(seed, seed))
	type key struct {
		name string
		t    uint16
	}
	questions := map[key]bool{}
	for _, n := range owners {
		for _, qt := range types {
			questions[key{n, qt}] = true
		}
	}
	for len(questions) < 5000 {
		n := owners[rng.IntN(len(owners))]
		for range 1 + rng.IntN(3) {
			n = labels[rng.IntN(len(labels))] + "." + n
		}
		if rng.IntN(4) == 0 {
			n = mixCase(n, rng)
		}
		if _, err := rota.ParseName(n); err == nil {
			questions[key{n, types[rng.IntN(len(types))]}] = true
		}
	}
	conn, err := dns.DialTimeout("udp", bind, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bad, open := 0, 0
	for q := range questions {
		m := new(dns.Msg).SetQuestion(q.name, q.t)
		m.RecursionDesired = false
		m.SetEdns0(ednsSize, false)
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		want := exchange(t, conn, m)
		if openQuestion(want) {
			open++
			continue
		}
		reply, _ := respond(c, st, packet, true, first)
		got := new(dns.Msg)
		if err := got.Unpack(reply); err != nil {
			t.Fatalf("%s %s: %v", q.name, dns.Type(q.t), err)
		}
		if g, w := comparable(got), comparable(want); g != w {
			t.Errorf("%s %s\nrota %s\nBIND %s", q.name, dns.Type(q.t), g, w)
			if bad++; bad > 10 {
				t.FailNow()
			}
		}
	}
	t.Logf("%d questions compared, %d left open by the RFCs, seed %d", len(questions)-open, open, seed)
	if open > len(questions)/10 {
		t.Errorf("%d of %d questions could not be compared", open, len(questions))
	}
}

// openQuestion reports whether the RFCs let two servers differ here: BIND 9.18 answers SERVFAIL to a loop of aliases, and does not
// follow an alias from one of its zones into another.
func openQuestion(m *dns.Msg) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		cname, ok := rr.(*dns.CNAME)
		return ok && (m.Rcode == dns.RcodeServerFailure || hostName(cname.Target).In("other.test.") != hostName(cname.Hdr.Name).In("other.test."))
	})
}

// exchange asks until an answer comes: UDP may lose one.
func exchange(t *testing.T, conn *dns.Conn, m *dns.Msg) *dns.Msg {
	t.Helper()
	for range 5 {
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			r, err := conn.ReadMsg()
			if err != nil {
				break
			}
			if r.Id == m.Id {
				return r
			}
		}
	}
	t.Fatalf("no answer to %v", m.Question)
	return nil
}

func mixCase(s string, rng *rand.Rand) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && rng.IntN(2) == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// comparable writes down what two servers of one zone must agree on.
func comparable(m *dns.Msg) string {
	section := func(rrs []dns.RR) string {
		var low []dns.RR // the owner's case is the server's own affair
		for _, rr := range rrs {
			low = append(low, withOwner(rr, hostName(rr.Header().Name).String()))
		}
		l := lines(low)
		slices.Sort(l)
		return strings.Join(l, "\n    ")
	}
	out := fmt.Sprintf("%s aa=%v tc=%v\n  answer\n    %s\n  authority\n    %s", dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated,
		section(m.Answer), section(m.Ns))
	if !m.Authoritative && len(m.Ns) > 0 {
		// The addresses of name servers inside the delegated zone are needed (RFC 9471); others are a courtesy.
		cut := hostName(m.Ns[0].Header().Name)
		out += "\n  glue\n    " + section(slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return !hostName(rr.Header().Name).In(cut) }))
	}
	return out
}
