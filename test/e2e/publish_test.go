package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// sites is how many services have one endpoint in each of two sites.
const sites = 12

// twoSites is a node whose services stand in two sites and are kept true by the publishers of the text.
func twoSites(port int, publishers string, names string) string {
	k := peers.DefaultKey()
	var b strings.Builder
	fmt.Fprintf(&b, `
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
keys: {ddns: {algorithm: %s, name: %s., secret: %q}}
publish:
%s
checks: {web: {type: http, port: %d, path: /health, %s}}
services:
`, k.Algorithm, k.Name, k.Secret, publishers, port, fast)
	for i := range sites {
		fmt.Fprintf(&b, "  s%02d.example.org: {ttl: 5s, checks: [web], publish: %s, safety: {min_hold: 0s}, endpoints: [{address: 127.0.0.2, site: ams}, {address: 127.0.0.3, site: fra}]}\n",
			i, names)
	}
	return b.String()
}

// left counts the records of an address in the zone, and fails when a service has lost the one that stays.
func left(t *testing.T, s *peers.NameServer, address, stays string) (n int) {
	t.Helper()
	zone := s.Dump(zoneName + ".")
	for i := range sites {
		name := fmt.Sprintf("s%02d.example.org. 5 IN A ", i)
		if !slices.Contains(zone, name+stays) {
			t.Fatalf("%s has lost %s:\n%s", name, stays, strings.Join(zone, "\n"))
		}
		if slices.Contains(zone, name+address) {
			n++
		}
	}
	return n
}

// code returns the exit code of a command that failed, from what try says.
func code(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// A site dies, and with it half of the records. So many leave as the budget allows, in two DNS alike; the rest is held, shown with its
// reason, and leaves when a person says so.
func TestSiteDiesWithinTheBudget(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	bind := startBind(t, "")
	knot := peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{{Name: zoneName + "."}}})
	n := newNode(t, twoSites(port, fmt.Sprintf("  bind: {type: rfc2136, servers: [%q], key: ddns, proof: {servers: [%q]}}\n  knot: {type: rfc2136, servers: [%q], key: ddns, proof: {servers: [%q]}}",
		bind.Addr(), bind.Addr(), knot.Addr(), knot.Addr()), "[bind, knot]"))
	n.start()
	both := []*peers.NameServer{bind, knot}
	for _, s := range both {
		eventually(t, "all is published", func() bool {
			return len(slices.DeleteFunc(s.Dump(zoneName+"."), func(rr string) bool { return !strings.Contains(rr, " 5 IN A ") })) == 2*sites
		})
	}
	w := watch(t, bind.Addr(), "s00.example.org", three[:2]...)

	servers[0].Kill()
	const allowed = 7 // 30 % of 24
	for _, s := range both {
		eventually(t, "as many left as may", func() bool { return left(t, s, three[0], three[1]) == sites-allowed })
	}
	eventually(t, "it is said", func() bool {
		out, _ := n.try("status")
		return strings.Contains(out, "held") && strings.Contains(out, "apply --force")
	})
	if out, err := n.try("apply", "--yes"); code(err) != "exit status 4" || !strings.Contains(out, "30 %") {
		t.Errorf("apply ends with %s, want 4:\n%s", code(err), out)
	}
	if out := n.rota("get", "changes", "--held"); !strings.Contains(out, three[0]) {
		t.Errorf("what is held does not name %s:\n%s", three[0], out)
	}
	if out, err := n.try("apply", "--force", "--yes"); err == nil {
		t.Errorf("a release without a reason is taken:\n%s", out)
	}
	// A change of leader, here a restart, does not fill the budget again.
	n.kill()
	n.start()
	eventually(t, "it is held again", func() bool {
		out, _ := n.try("get", "changes", "--held")
		return strings.Contains(out, three[0])
	})
	for _, s := range both {
		if now := left(t, s, three[0], three[1]); now != sites-allowed {
			t.Errorf("after a restart %d of %s are left, want %d", now, three[0], sites-allowed)
		}
	}
	n.rota("apply", "--force", "--yes", "--reason", "the site is gone for good")
	for _, s := range both {
		eventually(t, "the rest leaves", func() bool { return left(t, s, three[0], three[1]) == 0 })
	}
	if out := n.rota("events"); !strings.Contains(out, "gone for good") {
		t.Errorf("who released it and why is not kept:\n%s", out)
	}
	servers[0].Restart()
	for _, s := range both {
		eventually(t, "it is back, at once", func() bool { return left(t, s, three[0], three[1]) == sites })
	}
	w.clean(t)
}

// Of two DNS one is dead: the other one follows the state, it is said that they disagree, and the dead one catches up.
func TestOneOfTwoIsDead(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	bind := startBind(t, "")
	knot := peers.Start(t, peers.Knot, peers.Config{Zones: []peers.Zone{{Name: zoneName + "."}}})
	k := peers.DefaultKey()
	config := strings.NewReplacer("publish: bind", "publish: [bind, knot]", "  bind: {", fmt.Sprintf("  knot: {type: rfc2136, servers: [%q], key: ddns, proof: off}\n  bind: {proof: off, ", knot.Addr())).
		Replace(published(bind, port, ""))
	if k.Name == "" || !strings.Contains(config, "knot: {") {
		t.Fatal(config)
	}
	n := newNode(t, config)
	n.start()
	for _, s := range []*peers.NameServer{bind, knot} {
		eventually(t, "all three", answers(s.Addr(), service, dns.TypeA, three...))
	}
	bind.Kill()
	servers[2].Kill()
	eventually(t, "the one that lives", answers(knot.Addr(), service, dns.TypeA, three[0], three[1]))
	eventually(t, "the dead one is named", func() bool {
		out, _ := n.try("get", "publishers")
		out = strings.ToLower(out)
		return strings.Contains(out, "failing") && strings.Contains(out, "in-step")
	})
	bind.Restart()
	eventually(t, "the dead one catches up", answers(bind.Addr(), service, dns.TypeA, three[0], three[1]))
}

// The break-glass: with a freeze nothing automatic happens, through restarts, and with a file alone where no rota runs.
func TestFreezeByHand(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "")
	n := newNode(t, strings.Replace(published(b, port, ""), "publish: bind", "publish: [bind, dns]", 1)+"dns: {listen: [DNS], zones: {example.org: {ns: [ns1.example.net]}}}\n")
	n.start()
	eventually(t, "all three", answers(b.Addr(), service, dns.TypeA, three...))
	eventually(t, "all three by itself", answers(n.dns, service, dns.TypeA, three...))
	n.rota("freeze", "--reason", "we do not trust what it sees")
	servers[1].Kill()
	down := func() bool { return strings.Contains(n.rota("get", "endpoints"), "down") }
	eventually(t, "it is seen down", down)
	still := func(when string) {
		t.Helper()
		serial := b.Serial(zoneName + ".")
		n.rota("get", "publishers")
		for _, at := range []string{b.Addr(), n.dns} {
			if got, err := ask(at, service, dns.TypeA); err != nil || !slices.Equal(got, three) {
				t.Errorf("%s: %v, %v", when, got, err)
			}
		}
		if now := b.Serial(zoneName + "."); now != serial {
			t.Errorf("%s: the serial went from %d to %d", when, serial, now)
		}
		if out, _ := n.try("status"); !strings.Contains(strings.ToLower(out), "frozen") || !strings.Contains(out, "do not trust") {
			t.Errorf("%s: status does not say so:\n%s", when, out)
		}
	}
	still("frozen")
	n.kill()
	n.start()
	eventually(t, "it is seen down again", down)
	still("frozen, after a restart")
	n.rota("thaw")
	for _, at := range []string{b.Addr(), n.dns} {
		eventually(t, "it leaves", answers(at, service, dns.TypeA, three[0], three[2]))
	}

	// Where nothing runs, the file alone does it.
	n.stop()
	c := launchCommand(t, n, "freeze", "--here", "--reason", "we do not trust what it sees")
	if !strings.Contains(c, "frozen") {
		t.Errorf("freeze without a rota says\n%s", c)
	}
	servers[1].Restart()
	servers[2].Kill()
	n.start()
	eventually(t, "it is seen down", down)
	eventually(t, "the node says that it is frozen", func() bool {
		out, _ := n.try("status")
		return strings.Contains(strings.ToLower(out), "frozen")
	})
	if got, err := ask(b.Addr(), service, dns.TypeA); err != nil || !slices.Equal(got, []string{three[0], three[2]}) {
		t.Errorf("frozen by the file: %v, %v", got, err)
	}
	n.rota("thaw")
	eventually(t, "it follows the state", answers(b.Addr(), service, dns.TypeA, three[0], three[1]))
}

// launchCommand runs a command of rota on the machine of a node, which may not run.
func launchCommand(t *testing.T, n *node, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, append(args, "--config", n.config, "--data-dir", n.data)...).CombinedOutput()
	if err != nil {
		t.Fatalf("rota %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// A dry run looks, shows what it would write, and no message of it asks the DNS for a change: neither while it runs nor by any verb.
func TestDryRun(t *testing.T) {
	port := peers.FreePort(t, three...)
	startThree(t, port)
	b := startBind(t, "")
	road := peers.NewRoad(t, b.Addr())
	var updates, queries atomic.Int32
	road.Set(func(p peers.Packet) [][]byte {
		if p.Query && p.Update() {
			updates.Add(1)
		}
		queries.Add(1)
		return [][]byte{p.Wire}
	})
	zone := b.Dump(zoneName + ".")
	n := newNode(t, strings.NewReplacer(b.Addr(), road.Addr(), "key: ddns}", "key: ddns, dry_run: true, proof: off}").Replace(published(b, port, "")))
	n.start()
	eventually(t, "it says what it would write", func() bool {
		out, _ := n.try("plan")
		return strings.Contains(out, three[0]) && strings.Contains(out, three[2])
	})
	for _, args := range [][]string{
		{"status"},
		{"drift"},
		{"records"},
		{"apply", "--yes", "--wait", "1s"},
		{"refresh", service, "--reason", "x"},
		{"get", "publishers"},
		{"release", zoneName, "--reason", "x", "--dry-run"},
		{"import", zoneName, "--reason", "x", "--dry-run"},
		{"import", zoneName, "--reason", "x", "--yes", "--wait", "1s"},
	} {
		out, _ := n.try(args...)
		if out == "" {
			t.Errorf("rota %v says nothing", args)
		}
	}
	if n := updates.Load(); n != 0 || queries.Load() == 0 {
		t.Errorf("%d updates were sent in a dry run, and %d messages in all", n, queries.Load())
	}
	if now := b.Dump(zoneName + "."); !slices.Equal(now, zone) {
		t.Errorf("the zone changed:\n%s", strings.Join(now, "\n"))
	}
}

// A zone goes from one installation to another in two steps. Nobody takes what is not offered, the answer never changes, and at no time
// two of them write.
func TestZoneChangesHands(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "")
	config := func(owner string) string { return published(b, port, "") + "ownership: {owner: " + owner + "}\n" }
	east := newNode(t, config("east"))
	east.start()
	eventually(t, "all three", answers(b.Addr(), service, dns.TypeA, three...))
	w := watch(t, b.Addr(), service, three...)
	west := newNode(t, config("west"))
	west.launch()
	eventually(t, "west says whose it is", func() bool {
		out, _ := west.try("status")
		return strings.Contains(out, `"east"`)
	})
	if out, err := west.try("import", zoneName, "--from", "north", "--reason", "mine", "--yes", "--wait", "2s"); err == nil {
		t.Errorf("west took the zone from somebody who has it not:\n%s", out)
	}
	east.rota("release", zoneName, "--to", "west", "--reason", "west takes over", "--yes")
	out := west.rota("import", zoneName, "--from", "east", "--reason", "as agreed with east", "--yes")
	if !strings.Contains(out, "east") {
		t.Errorf("import does not show whose it was:\n%s", out)
	}
	eventually(t, "the fence is west's", func() bool {
		return strings.Contains(strings.Join(b.Dump(zoneName+"."), "\n"), "owner=west ")
	})
	servers[1].Kill()
	eventually(t, "west keeps it true", answers(b.Addr(), service, dns.TypeA, three[0], three[2]))
	if out, _ := east.try("status"); !strings.Contains(out, "west") && !strings.Contains(out, "released") {
		t.Errorf("east does not say that it gave the zone up:\n%s", out)
	}
	east.kill()
	east.start()
	servers[1].Restart()
	eventually(t, "west still keeps it true", answers(b.Addr(), service, dns.TypeA, three...))
	if zone := strings.Join(b.Dump(zoneName+"."), "\n"); !strings.Contains(zone, "owner=west ") {
		t.Errorf("the fence is not west's after a restart of east:\n%s", zone)
	}
	w.clean(t)
}

// With a registry what stands there belongs to whoever says so in the DNS, in the words of external-dns: foreign records stay, and one's
// own are adopted by an import.
func TestRegistry(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	b := startBind(t, "www 5 IN A 127.0.0.9\ntheirs 5 IN A 127.0.0.9\n"+
		`_rota.a-theirs IN TXT "heritage=external-dns,external-dns/owner=somebody,external-dns/resource=service/default/nginx"`+"\n")
	config := published(b, port, "") + "  theirs.example.org: {endpoints: [127.0.0.2], check: \"tcp://{}:" + fmt.Sprint(port) + "\", publish: bind}\nownership: {registry: txt, owner: east}\n"
	n := newNode(t, config)
	n.launch()
	eventually(t, "it says what is not its own", func() bool {
		out, _ := n.try("status")
		return strings.Contains(out, "somebody") && strings.Contains(out, "rota import")
	})
	if got, _ := ask(b.Addr(), service, dns.TypeA); !slices.Equal(got, []string{"127.0.0.9"}) {
		t.Errorf("www is %v before the import", got)
	}
	n.try("import", zoneName, "--reason", "they are ours", "--yes", "--wait", "5s") // ends with an error for what is somebody's
	eventually(t, "www is ours", answers(b.Addr(), service, dns.TypeA, three...))
	zone := strings.Join(b.Dump(zoneName+"."), "\n")
	if !strings.Contains(zone, `_rota.a-www.example.org. 60 IN TXT "heritage=external-dns,external-dns/owner=east,external-dns/resource=rota/www.example.org"`) {
		t.Errorf("the record of ownership is missing:\n%s", zone)
	}
	if !strings.Contains(zone, "theirs.example.org. 5 IN A 127.0.0.9") {
		t.Errorf("somebody else's record was touched:\n%s", zone)
	}
	servers[0].Kill()
	eventually(t, "it follows the state", answers(b.Addr(), service, dns.TypeA, three[1], three[2]))
}

// A zone file is kept beside what others keep in it, and the reload command is run.
func TestZoneFile(t *testing.T) {
	port := peers.FreePort(t, three...)
	servers := startThree(t, port)
	dir := t.TempDir()
	path, reloaded := dir+"/example.org.zone", dir+"/reloaded"
	head := "$ORIGIN example.org.\n$TTL 300\n@ IN SOA ns1 hostmaster 2026112101 3600 600 86400 30\n@ IN NS ns1\nns1 IN A 127.0.0.1\nmail IN MX 10 mx.example.net. ; theirs\n"
	if err := os.WriteFile(path, []byte(head), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, fmt.Sprintf(`
node: {name: e2e, site: here, data_dir: DATA}
api: {listen: ""}
publish:
  file: {type: zonefile, path: %q, zone: example.org, reload: [/usr/bin/touch, %q], proof: off}
services:
  www.example.org: {ttl: 5s, endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4], check: {type: http, port: %d, path: /health, %s}, safety: {min_hold: 0s}, publish: file}
`, path, reloaded, port, fast))
	n.start()
	holds := func(want ...string) func() bool {
		return func() bool {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range three {
				if bytes.Contains(text, []byte(a)) != slices.Contains(want, a) {
					return false
				}
			}
			return bytes.Contains(text, []byte("mail IN MX 10 mx.example.net. ; theirs\n"))
		}
	}
	eventually(t, "all three", holds(three...))
	eventually(t, "a reload", func() bool { _, err := os.Stat(reloaded); return err == nil })
	servers[2].Kill()
	eventually(t, "one leaves", holds(three[0], three[1]))
}
