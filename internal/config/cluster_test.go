package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// certPEM is a certificate that signed itself, and keyPEM its key.
var certPEM, keyPEM = selfSigned()

func selfSigned() (cert, key string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		panic(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		panic(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", secret)
}

// certificates are files beside rota.yaml.
var certificates = tree{
	"/etc/rota/node.crt": certPEM, "/etc/rota/node.key": keyPEM, "/etc/rota/node.key.open": keyPEM, "/etc/rota/ca.crt": certPEM,
	"/etc/rota/junk": "junk",
}

const (
	nodeTLS   = "tls: {cert: node.crt, key: node.key, ca: ca.crt}"
	agentsTLS = "tls: {cert: node.crt, key: node.key, client_ca: ca.crt}"
)

func TestCluster(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Cluster
		warn     string // in the warnings; empty: none beside that there are no services
	}{
		{"nothing", "{}", Cluster{Election: Singleton}, ""},
		{"singleton", "{election: singleton}", Cluster{Election: Singleton}, ""},
		{"singleton, nothing said", `{election: singleton, join: [], nodes: [], tls: {}, raftadmin: ""}`, Cluster{Election: Singleton}, ""},
		{"raft", "{election: raft}", Cluster{Election: Raft, Listen: ":3648"}, ""},
		{"raft, nothing said", `{election: raft, join: [], nodes: [], tls: {}, raftadmin: ""}`, Cluster{Election: Raft, Listen: ":3648"}, ""},
		{"listen everywhere without certificates", `{election: raft, listen: "0.0.0.0:1"}`, Cluster{Election: Raft, Listen: "0.0.0.0:1"}, ""},
		{"listen at any port", `{election: raft, listen: "127.0.0.1:0"}`, Cluster{Election: Raft, Listen: "127.0.0.1:0"}, "port 0 is another port at every start"},
		{
			"addresses", `{election: raft, advertise: "[2001:DB8::1]:3648", join: ["Fra1.example.org:3648", "[2001:db8:0::2]:3648"], raftadmin: "[::1]:3650"}`,
			Cluster{
				Election: Raft, Listen: ":3648", Advertise: "[2001:db8::1]:3648", Join: []string{"fra1.example.org:3648", "[2001:db8::2]:3648"},
				RaftAdmin: "[::1]:3650",
			},
			"",
		},
		{"one to join", `{election: raft, join: "10.0.0.2:1"}`, Cluster{Election: Raft, Listen: ":3648", Join: []string{"10.0.0.2:1"}}, ""},
		{
			"join itself", `{election: raft, advertise: "10.0.0.1:1", join: ["10.0.0.1:1", "10.0.0.2:1"]}`,
			Cluster{Election: Raft, Listen: ":3648", Advertise: "10.0.0.1:1", Join: []string{"10.0.0.2:1"}},
			"",
		},
		{
			"join where it listens", `{election: raft, listen: "10.0.0.1:1", join: ["10.0.0.1:1"]}`,
			Cluster{Election: Raft, Listen: "10.0.0.1:1"},
			"",
		},
		{
			"certificates", "{election: raft, " + nodeTLS + ", nodes: [b, a]}",
			Cluster{
				Election: Raft, Listen: ":3648", CertFile: "/etc/rota/node.crt", KeyFile: "/etc/rota/node.key", CAFile: "/etc/rota/ca.crt",
				Nodes: []string{"a", "b"}, ID: "rota",
			},
			"",
		},
		{
			"one of two clusters of a CA", "{election: raft, " + nodeTLS + ", id: blue-2}",
			Cluster{
				Election: Raft, Listen: ":3648", CertFile: "/etc/rota/node.crt", KeyFile: "/etc/rota/node.key", CAFile: "/etc/rota/ca.crt", ID: "blue-2",
			},
			"",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := parse(t, "cluster: "+c.in, certificates)
			if d := cmp.Diff(c.want, got.Cluster); d != "" {
				t.Error(d)
			}
			if w := said(got.Warnings); !strings.Contains(w, c.warn) || c.warn == "" && len(got.Warnings) != 1 {
				t.Errorf("warnings: %s", w)
			}
			if c.want.CertFile != "" && len(got.Files) != 4 {
				t.Errorf("not watched: %v", got.Files)
			}
		})
	}
}

func TestVantage(t *testing.T) {
	target := func(a string, c rota.Check) rota.Target {
		c.Timing = uplinkTiming
		return rota.NewTarget(netip.MustParseAddr(a), c)
	}
	pem := func(h Healthagent) *Healthagent {
		h.CertFile, h.KeyFile, h.ClientCAFile = "/etc/rota/node.crt", "/etc/rota/node.key", "/etc/rota/ca.crt"
		return &h
	}
	self := rota.Vantage{Name: "ams1", Site: "ams1"}
	for _, c := range []struct {
		name, in string
		want     Config
		warn     string
	}{
		{"nothing", "vantage: {}", Config{Spec: rota.Spec{Vantages: []rota.Vantage{self}}}, ""},
		{"agents, nothing said", "vantage: {agents: {accept: []}}", Config{Spec: rota.Spec{Vantages: []rota.Vantage{self}}}, ""},
		{
			"agents", "cluster: {election: raft}\nvantage: {quorum: 7, agents: {accept: [foo, {name: Bar_1.x, site: New York}, {name: 1-a}]}}",
			Config{
				Agents: []Agent{{Name: "1-a"}, {Name: "Bar_1.x", Site: "New York"}, {Name: "foo"}},
				Spec:   rota.Spec{Vantages: []rota.Vantage{{Name: "1-a", Agent: true}, {Name: "Bar_1.x", Site: "New York", Agent: true}, self, {Name: "foo", Agent: true}}},
			},
			"",
		},
		{
			"only agents vote", "cluster: {election: raft}\nvantage: {nodes: false, agents: {accept: foo}}",
			Config{Agents: []Agent{{Name: "foo"}}, Spec: rota.Spec{Vantages: []rota.Vantage{{Name: "foo", Agent: true}}}},
			"",
		},
		{
			"one agent, nowhere to report", "vantage: {quorum: 2, agents: {accept: foo}}",
			Config{Agents: []Agent{{Name: "foo"}}, Spec: rota.Spec{Vantages: []rota.Vantage{self, {Name: "foo", Agent: true}}}},
			"agents have nowhere to report",
		},
		{
			"healthagent", "vantage: {quorum: all, agents: {accept: [foo], healthagent: {listen: \":3443\", " + agentsTLS + "}}}",
			Config{
				Agents: []Agent{{Name: "foo"}}, Healthagent: pem(Healthagent{Listen: ":3443"}),
				Spec: rota.Spec{Vantages: []rota.Vantage{self, {Name: "foo", Agent: true}}},
			},
			"",
		},
		{
			"uplink", `vantage: {uplink: {checks: ["icmp://192.0.2.1", "tcp://[2001:db8::1]:53", "http://192.0.2.2", "https://192.0.2.3:8443/x", "dns://192.0.2.4/example.net"], need: 3}}`,
			Config{
				Uplink: &Uplink{Need: 3, Checks: []rota.Target{
					target("192.0.2.1", rota.Check{Name: "icmp://{}", Kind: rota.KindICMP, Count: 1}),
					target("2001:db8::1", rota.Check{Name: "tcp://{}:53", Kind: rota.KindTCP, Port: 53}),
					target("192.0.2.2", rota.Check{
						Name: "http://{}:80/", Kind: rota.KindHTTP, Port: 80, Path: "/", Method: "GET", Status: []rota.StatusRange{{From: 200, To: 399}},
						MaxBody: rota.DefaultMaxBody, DrainHeader: rota.DefaultDrainHeader,
					}),
					target("192.0.2.3", rota.Check{
						Name: "https://{}:8443/x", Kind: rota.KindHTTPS, Port: 8443, Path: "/x", Method: "GET", Status: []rota.StatusRange{{From: 200, To: 399}},
						MaxBody: rota.DefaultMaxBody, DrainHeader: rota.DefaultDrainHeader, Verify: rota.VerifyStrict,
					}),
					target("192.0.2.4", rota.Check{
						Name: "dns://{}:53/example.net.", Kind: rota.KindDNS, Port: 53, Query: "example.net.", QueryType: "A", RCode: "NOERROR", Transport: "udp",
					}),
				}},
				Spec: rota.Spec{Vantages: []rota.Vantage{self}},
			},
			"",
		},
		{
			"uplink to itself", "vantage: {uplink: {checks: icmp://127.0.0.1}}",
			Config{
				Uplink: &Uplink{Need: 1, Checks: []rota.Target{target("127.0.0.1", rota.Check{Name: "icmp://{}", Kind: rota.KindICMP, Count: 1})}},
				Spec:   rota.Spec{Vantages: []rota.Vantage{self}},
			},
			"uplink: 127.0.0.1 is a loopback address: it answers when this node is cut off, too",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := parse(t, c.in, certificates)
			for part, d := range map[string]string{
				"agents": cmp.Diff(c.want.Agents, got.Agents), "healthagent": cmp.Diff(c.want.Healthagent, got.Healthagent),
				"uplink": cmp.Diff(c.want.Uplink, got.Uplink, addresses), "vantages": cmp.Diff(c.want.Spec.Vantages, got.Spec.Vantages),
			} {
				if d != "" {
					t.Errorf("%s: %s", part, d)
				}
			}
			if w := said(got.Warnings); !strings.Contains(w, c.warn) || c.warn == "" && len(got.Warnings) != 1 {
				t.Errorf("warnings: %s", w)
			}
		})
	}
}

func TestBadCluster(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"{election: rafft}", `"rafft"`},
		{"{election: kubernetes, listen: ':1'}", "not supported yet: kubernetes"},
		{"{election: raft, lease: {name: x}}", "lease is not supported yet"},
		{"{listen: ':1'}", `listen needs election: raft; a node alone has nobody to talk to (write election: raft, or remove it)`},
		{"{advertise: 'a.b:1'}", "1:22: cluster: advertise needs election: raft"},
		{"{join: 'a.b:1'}", "join needs election: raft"},
		{"{election: singleton, join: ['a.b:1']}", "join needs election: raft"},
		{"{" + nodeTLS + "}", "tls needs election: raft"},
		{"{nodes: [a]}", "nodes needs election: raft"},
		{"{raftadmin: 'localhost:1'}", "raftadmin needs election: raft"},
		{"{election: raft, listen: 3648}", "nothing to listen on"},
		{"{election: raft, listen: 'ams1.example.org:3648'}", "no address of this machine"},
		{"{election: raft, advertise: 10.0.0.1}", "want HOST:PORT or [IPv6]:PORT"},
		{"{election: raft, advertise: '10.0.0.1:0'}", "port 0 is out of range"},
		{"{election: raft, advertise: '0.0.0.0:1'}", "no address that others can call"},
		{"{election: raft, advertise: '[::]:1'}", "no address that others can call"},
		{"{election: raft, advertise: ':1'}", "no address that others can call"},
		{"{election: raft, advertise: '*:1'}", "no address that others can call"},
		{"{election: raft, advertise: '2001:db8::1:3648'}", "want HOST:PORT or [IPv6]:PORT"},
		{"{election: raft, advertise: '2001:db8::1'}", "want HOST:PORT or [IPv6]:PORT"},
		{"{election: raft, advertise: '224.0.0.1:1'}", "no address that others can call"},
		{"{election: raft, join: [10.0.0.2]}", "want HOST:PORT or [IPv6]:PORT"},
		{"{election: raft, join: ['10.0.0.2:1', '10.0.0.2:1']}", "10.0.0.2:1 stands twice: first at line 1"},
		{"{election: raft, join: [" + strings.Repeat("'10.0.0.2:1',", 101) + "]}", "101 entries: want at most 100"},
		{"{election: raft, tls: {cert: node.crt}}", "cluster: tls wants cert, key and ca"},
		{"{election: raft, tls: {cert: node.crt, key: node.key}}", "cluster: tls wants cert, key and ca"},
		{"{election: raft, tls: {ca: ca.crt}}", "cluster: tls wants cert, key and ca"},
		{"{election: raft, tls: {cert: no.crt, key: no.key, ca: no.ca}}", "certificate /etc/rota/no.crt: no such file"},
		{"{election: raft, tls: {cert: no.crt, key: no.key, ca: no.ca}}", "private key /etc/rota/no.key: no such file"},
		{"{election: raft, tls: {cert: no.crt, key: no.key, ca: no.ca}}", "certificate of the CA /etc/rota/no.ca: no such file"},
		{"{election: raft, tls: {cert: node.crt, key: ca.crt, ca: ca.crt}}", "cannot be used"},
		{"{election: raft, tls: {cert: node.crt, key: node.key, ca: junk}}", "/etc/rota/junk holds no certificate in PEM"},
		{"{election: raft, tls: {cert: node.crt, key: node.key.open, ca: ca.crt}}", "mode 0644, so others than its owner may read or write it (chmod 600)"},
		{"{election: raft, tls: {cert: '', key: node.key, ca: ca.crt}}", "cert: is empty"},
		{"{election: raft, nodes: [a]}", "there is no cluster.tls"},
		{"{election: raft, tls: {}, nodes: [a]}", "there is no cluster.tls"},
		{"{election: raft, " + nodeTLS + ", nodes: [a, a]}", `"a" stands twice`},
		{"{election: raft, " + nodeTLS + ", nodes: [a b]}", `"a b" cannot be a name in a certificate`},
		{"{election: raft, raftadmin: ':1'}", "anyone who reaches it could take the cluster over: want 127.0.0.1:PORT"},
		{"{election: raft, raftadmin: '0.0.0.0:1'}", "could take the cluster over"},
		{"{election: raft, raftadmin: '10.0.0.1:1'}", "could take the cluster over"},
		{"{election: raft, raftadmin: '[2001:db8::1]:1'}", "could take the cluster over"},
		{"{election: raft}\nnode: {name: Bücher}", `2:14: node: name: "Bücher" cannot be a name in a certificate`},
		{"{election: raft}\nnode: {name: " + strings.Repeat("a", 65) + "}", "cannot be a name in a certificate"},
	} {
		t.Run(c.in, func(t *testing.T) {
			if ps := problems(t, "cluster: "+c.in, certificates); !strings.Contains(said(ps), c.want) {
				t.Errorf("got\n%swant %s", said(ps), c.want)
			}
		})
	}
}

func TestBadVantage(t *testing.T) {
	many := ""
	for i := range 1001 {
		many += fmt.Sprintf("a%d,", i)
	}
	for _, c := range []struct{ in, want string }{
		{"{quorum: 3, agents: {accept: [a]}}", "quorum 3 is larger than the 2 configured vantages"},
		{"{quorum: 3, of: sites, agents: {accept: [{name: a, site: x}, {name: b, site: x}]}}", "quorum 3 is larger than the 2 configured sites"},
		{"{nodes: false}", "nodes: false leaves nobody who votes"},
		{"{nodes: false, agents: {accept: []}}", "nodes: false leaves nobody who votes"},
		{"{agents: {accept: [a, a]}}", `agent "a" stands twice: first at line 1`},
		{"{agents: {accept: [a, {name: a, site: x}]}}", `agent "a" stands twice`},
		{"{agents: {accept: [ams1]}}", `agent "ams1" has the name of this node, and a name is one vantage (give one of them another name)`},
		{"{agents: {accept: [{site: x}]}}", "accept has no name"},
		{"{agents: {accept: ['']}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [a b]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [a/b]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [.a]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [-a]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [\"a\\u202eb\"]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [" + strings.Repeat("a", 65) + "]}}", "cannot be a name in a certificate"},
		{"{agents: {accept: [{name: a, site: ''}]}}", "cannot be a site"},
		{"{agents: {accept: [{name: a, site: " + strings.Repeat("a", 65) + "}]}}", "cannot be a site"},
		{"{agents: {accept: [{name: a, site: \"a\\u202eb\"}]}}", "cannot be a site"},
		{"{agents: {accept: [{name: a, place: b}]}}", `unknown key "place"`},
		{"{agents: {accept: [" + many + "]}}", "1001 entries: want at most 1000"},
		{"{agents: {accept: [a], healthagent: {}}}", "healthagent has no listen"},
		{"{agents: {accept: [a], healthagent: {}}}", "healthagent has no tls"},
		{"{agents: {accept: [a], healthagent: {listen: ':1', tls: {}}}}", "healthagent: tls wants cert, key and client_ca"},
		{"{agents: {accept: [a], healthagent: {listen: ':1', tls: {cert: node.crt, key: node.key}}}}", "healthagent: tls wants cert, key and client_ca"},
		{"{agents: {accept: [a], healthagent: {tls: {cert: node.crt, key: node.key, client_ca: no}}}}", "certificate of the CA /etc/rota/no: no such file"},
		{"{agents: {accept: [a], healthagent: {listen: x, " + agentsTLS + "}}}", "nothing to listen on"},
		{"{agents: {healthagent: {listen: ':1', " + agentsTLS + "}}}", "healthagent would let nobody in: accept names no agent"},
		{"{agents: {accept: [], healthagent: {listen: ':1', " + agentsTLS + "}}}", "healthagent would let nobody in"},
		{"{uplink: {}}", "uplink has no checks"},
		{"{uplink: {checks: []}}", "checks is empty"},
		{"{uplink: {checks: [192.0.2.1]}}", `"192.0.2.1": want a URL with an address, such as icmp://192.0.2.1`},
		{"{uplink: {checks: [ping]}}", "want a URL with an address"},
		{"{uplink: {checks: ['agent-check://192.0.2.1:1']}}", "a node finds out whether it is cut off by checks of type icmp, tcp"},
		{"{uplink: {checks: ['icmp://{}']}}", "want a URL with an address"},
		{"{uplink: {checks: [{use: ping}]}}", "checks is a map: want a URL such as icmp://192.0.2.1"},
		{"{uplink: {checks: ['icmp://gw.example.org']}}", "names are not looked up; write its address"},
		{"{uplink: {checks: ['icmp://192.0.2.1:1']}}", "icmp has no port"},
		{"{uplink: {checks: ['tcp://192.0.2.1']}}", "wants a port"},
		{"{uplink: {checks: ['pign://192.0.2.1']}}", `unknown scheme "pign"`},
		{"{uplink: {checks: ['http://a:b@192.0.2.1/']}}", "no user and password"},
		{"{uplink: {checks: ['icmp://0.0.0.0']}}", "vantage: uplink: 0.0.0.0 is the unspecified address"},
		{"{uplink: {checks: ['icmp://[::1']}}", "brackets do not match"},
		{"{uplink: {checks: ['icmp://192.0.2.1', 'icmp://192.0.2.1']}}", "icmp://192.0.2.1 stands twice"},
		{"{uplink: {checks: ['http://192.0.2.1', 'http://192.0.2.1:80/']}}", "http://192.0.2.1:80/ stands twice"},
		{"{uplink: {checks: ['icmp://192.0.2.1'], need: 0}}", "0 is out of range"},
		{"{uplink: {checks: ['icmp://192.0.2.1'], need: 2}}", "need 2 is above the 1 in checks: this node would always abstain"},
	} {
		t.Run(c.in[:min(len(c.in), 100)], func(t *testing.T) {
			if ps := problems(t, "vantage: "+c.in, certificates); !strings.Contains(said(ps), c.want) {
				t.Errorf("got\n%swant %s", said(ps), c.want)
			}
		})
	}
	ps := problems(t, "cluster: {election: raft, "+nodeTLS+", nodes: [a]}\nvantage: {agents: {accept: [a]}}", certificates)
	if !strings.Contains(said(ps), `agent "a" is a node, too, in cluster.nodes (keep one)`) {
		t.Error(said(ps))
	}
}

// TestOneMistakeInTheCluster: what follows from a mistake is not said beside it.
func TestOneMistakeInTheCluster(t *testing.T) {
	for _, in := range []string{
		"cluster: {election: rafft, listen: ':1', raftadmin: 'localhost:1'}",
		"cluster: {election: raft, tls: {cert: node.crt, key: node.key}, nodes: [a]}",
		"cluster: {election: raft, tls: [a], nodes: [a]}",
		"cluster: {election: rafft}\nvantage: {quorum: 3}",
		"vantage: {quorum: 3, agents: {accept: [a, {site: x}]}}",
		"vantage: {quorum: 3, agents: {accept: [a, b c]}}",
		"vantage: {quorum: 3, agents: {accept: [a, a]}}",
		"vantage: {quorum: 3, agents: [a, b]}",
		"vantage: {uplink: {checks: ['icmp://192.0.2.1', 'icmp://gw'], need: 2}}",
		"vantage: {agents: {accept: [a b], healthagent: {listen: ':1', " + agentsTLS + "}}}",
	} {
		if ps := problems(t, in, certificates); len(ps) != 1 {
			t.Errorf("%s: got\n%s", in, said(ps))
		}
	}
}
