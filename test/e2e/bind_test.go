package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

const (
	zoneName = "example.org"
	service  = "www.example.org"
)

// startBind starts a real BIND with one zone that takes signed updates.
func startBind(t *testing.T, records string) *peers.NameServer {
	t.Helper()
	return peers.Start(t, peers.BIND, peers.Config{Zones: []peers.Zone{{Name: zoneName + ".", Text: records}}})
}

// foreign returns all records of the zone that are none of rota's business: not the SOA, the fence and the addresses of the service.
func foreign(b *peers.NameServer) []string {
	return slices.DeleteFunc(b.Dump(zoneName+"."), func(rr string) bool {
		return strings.Contains(rr, " SOA ") || strings.HasPrefix(rr, "_rota.") || strings.HasPrefix(rr, service+". ") && strings.Contains(rr, " A ")
	})
}

// published is a node that keeps three endpoints true in BIND.
func published(b *peers.NameServer, port int, extra string) string {
	k := peers.DefaultKey()
	return fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
keys: {ddns: {algorithm: %s, name: %s., secret: %q}}
publish:
  bind: {type: rfc2136, servers: [%q], key: ddns}
services:
  www.example.org:
    ttl: 5s
    endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]
    check: {type: http, port: %d, path: /health, %s}
    safety: {min_hold: 0s%s}
    publish: bind
`, k.Algorithm, k.Name, k.Secret, b.Addr(), port, fast, extra)
}

// The main job against a BIND: an address leaves when its server dies and comes back with it; the rest of the zone stays as it is;
// a restart with one endpoint down never writes its address; SIGTERM leaves the DNS as it is.
func TestBind(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "mail IN MX 10 mx.example.net.\nwww IN TXT \"not rota's\"\nother 60 IN A 192.0.2.99\n")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.Addr(), service, dns.TypeA, three...))
	others := foreign(b)
	w := watch(t, b.Addr(), service, three...)

	servers[1].Kill()
	eventually(t, "the dead one has left", answers(b.Addr(), service, dns.TypeA, three[0], three[2]))
	if story := n.rota("explain", service); !strings.Contains(story, "refused") || !strings.Contains(story, "bind") {
		t.Errorf("explain tells neither why nor where:\n%s", story)
	}
	w.ban(three[1])
	n.kill()
	n.start()
	eventually(t, "the node is in step again", func() bool { return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "in-step") })
	w.ban("")
	servers[1].Restart()
	eventually(t, "it is back", answers(b.Addr(), service, dns.TypeA, three...))

	if got := foreign(b); !slices.Equal(got, others) {
		t.Errorf("foreign records changed:\n%s\nwere\n%s", strings.Join(got, "\n"), strings.Join(others, "\n"))
	}
	serial := b.Serial(zoneName + ".")
	n.stop()
	if got := b.Serial(zoneName + "."); got != serial {
		t.Errorf("stopping changed the zone: serial %d, was %d", got, serial)
	}
	if got, err := ask(b.Addr(), service, dns.TypeA); err != nil || !slices.Equal(got, three) {
		t.Errorf("after the stop: %v, %v", got, err)
	}
}

// dynlbd §1.7: both bad, exactly one remains; recovery adds again; what is not configured is untouched.
func TestBindLastRecordStays(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "")
	n := newNode(t, published(b, port, ", fail_open_below: 0%"))
	n.start()
	eventually(t, "all three are published", answers(b.Addr(), service, dns.TypeA, three...))
	watch(t, b.Addr(), service, three...)
	servers[0].Kill()
	eventually(t, "the first has left", answers(b.Addr(), service, dns.TypeA, three[1], three[2]))
	servers[1].Kill()
	eventually(t, "the second has left", answers(b.Addr(), service, dns.TypeA, three[2]))
	servers[2].Kill()
	eventually(t, "the third is seen down", func() bool { return strings.Contains(n.rota("explain", service), "PANIC") })
	if got, err := ask(b.Addr(), service, dns.TypeA); err != nil || !slices.Equal(got, three[2:]) {
		t.Errorf("the last record did not stay: %v, %v", got, err)
	}
	servers[0].Restart()
	eventually(t, "whoever is up is added", func() bool {
		got, err := ask(b.Addr(), service, dns.TypeA)
		return err == nil && slices.Contains(got, three[0])
	})
}

// A BIND that is away holds nothing up for ever: the newest state is written when it is back.
func TestBindAwayAndBack(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.Addr(), service, dns.TypeA, three...))
	b.Kill()
	servers[2].Kill()
	eventually(t, "the failure to publish is shown", func() bool { return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "failing") })
	b.Restart()
	eventually(t, "the newest state is written", answers(b.Addr(), service, dns.TypeA, three[0], three[1]))
}

// config/min-rfc2136.yaml works as it stands, but for the server's address, the key's path and the endpoints' port.
func TestMinimalRFC2136(t *testing.T) {
	text, err := os.ReadFile("../../config/min-rfc2136.yaml")
	if err != nil {
		t.Fatal(err)
	}
	port := peers.FreePort(t, three...)
	for _, a := range three[:2] {
		peers.StartNginx(t, a, port, `location /health { return 200; }`)
	}
	b := startBind(t, "")
	k, key := peers.DefaultKey(), filepath.Join(t.TempDir(), "tsig.key")
	if err := os.WriteFile(key, fmt.Appendf(nil, "key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer(
		"ns1.example.org/", b.Addr()+"/", "/etc/rota/tsig.key", key, "https://{}/", fmt.Sprintf("http://{}:%d/", port),
		"192.0.2.10", three[0], "192.0.2.11", three[1], `"2001:db8::10"`, `"::1"`,
	).Replace(string(text))
	n := newNode(t, "node: {name: e2e, data_dir: DATA}\napi: {listen: \"\"}\n"+conf)
	n.start()
	eventually(t, "both are published", answers(b.Addr(), service, dns.TypeA, three[0], three[1]))
}

// A node that comes back after a while writes nothing from memory: an endpoint that died meanwhile, and that somebody took out of the
// zone by hand, is not put back, although the state on disk holds it up.
func TestBindRestartWritesNothingFromMemory(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "")
	n := newNode(t, published(b, port, ""))
	n.start()
	eventually(t, "all three are published", answers(b.Addr(), service, dns.TypeA, three...))
	n.kill()
	servers[1].Kill()
	b.Update(zoneName+".", []string{service + ". 5 IN A " + three[1]}, nil)
	w := watch(t, b.Addr(), service, three...)
	w.ban(three[1])
	n.start()
	eventually(t, "the node is in step again", func() bool {
		return strings.Contains(strings.ToLower(n.rota("get", "publishers")), "in-step")
	})
	w.clean(t)
}
