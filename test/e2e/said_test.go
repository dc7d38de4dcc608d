package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// as runs a client verb over TCP with a token.
func (n *node) as(t *testing.T, port int, token string, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ROTA_TOKEN_FILE", file)
	return n.try(append(args, "--addr", fmt.Sprintf("http://127.0.0.1:%d", port))...)
}

// P15, P16: hosts say themselves how they are, each by its own token; who falls silent changes nothing, and nobody speaks for another.
func TestOwnAgents(t *testing.T) {
	const web1, web2 = "web1-0123456789abcdef", "web2-0123456789abcdef"
	port := peers.FreePort(t)
	dir := t.TempDir()
	for name, token := range map[string]string{"web1": web1, "web2": web2} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t, fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api:
  listen: "127.0.0.1:%d"
  tokens: [{name: web1, role: agent, token: {file: %s/web1}}, {name: web2, role: agent, token: {file: %s/web2}}]
dns:
  listen: "DNS"
  zones: {lb.test: {ns: [ns1.lb.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
services:
  www.lb.test:
    ttl: 1s
    check: {type: agent, max_age: 3s}
    endpoints: [{address: 127.0.0.2, agent: web1}, {address: 127.0.0.3, agent: web2}, {address: 127.0.0.4, agent: web2}]
    safety: {min_hold: 0s}
`, port, dir, dir))
	n.start()
	says := func(token string, args ...string) string {
		t.Helper()
		out, err := n.as(t, port, token, append([]string{"report"}, args...)...)
		if err != nil {
			t.Fatalf("rota report %q: %v\n%s", args, err, out)
		}
		return out
	}
	says(web1, www, "up")
	says(web2, www, "up") // both of its own
	eventually(t, "all three are answered", answers(n.dns, www, dns.TypeA, three...))
	says(web2, www+"/"+three[2], "down", "--reason", "its disk is full")
	eventually(t, "who says that it is down has left", answers(n.dns, www, dns.TypeA, three[0], three[1]))
	if story := n.rota("explain", www); !strings.Contains(story, "said by token:web2: its disk is full") {
		t.Errorf("explain does not say who said so:\n%s", story)
	}
	eventually(t, "silence is seen", func() bool { return strings.Contains(n.rota("explain", www), "nothing was said for 3s") })
	if got, err := ask(n.dns, www, dns.TypeA); err != nil || strings.Join(got, " ") != three[0]+" "+three[1] {
		t.Errorf("silence changed the answer to %v, %v", got, err)
	}
	if out, err := n.as(t, port, web1, "report", www+"/"+three[1], "down"); err == nil || !strings.Contains(out, "not yours to say") {
		t.Errorf("an agent spoke for another's host: %v\n%s", err, out)
	}
	if !strings.Contains(n.log.String(), "refused what was said of an endpoint") || strings.Contains(n.log.String(), web1) {
		t.Error("that is not on record, or a token is")
	}
	says(web2, www+"/"+three[2], "up")
	eventually(t, "it is back", answers(n.dns, www, dns.TypeA, three...))
}
