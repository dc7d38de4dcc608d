package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

const (
	reverse6 = "8.b.d.0.1.0.0.2.ip6.arpa."
	pointer6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0." + reverse6
)

// registry is a real name server with hiveary's zones.
type registry struct {
	*peers.NameServer
	t     *testing.T
	key   string
	road  *peers.Road
	zones []string
	first []string // what was there at the beginning
}

func newRegistry(t *testing.T, kind peers.Kind) *registry {
	x := &registry{t: t, zones: []string{"skynet.test.", "37.13.in-addr.arpa.", reverse6, "2.0.192.in-addr.arpa.", "0-25.2.0.192.in-addr.arpa."}}
	var zones []peers.Zone
	for _, z := range x.zones {
		zone := peers.Zone{Name: z}
		switch z {
		case "skynet.test.":
			zone.Text = "mail 300 IN A 198.51.100.25\nalias 300 IN CNAME mail\n*.wild 300 IN A 198.51.100.80"
		case "2.0.192.in-addr.arpa.":
			zone.Text = "10 300 IN CNAME 10.0-25\n0-25 300 IN NS ns1"
		}
		zones = append(zones, zone)
	}
	zones = append(zones, peers.Zone{Name: "closed.test.", Closed: true})
	x.NameServer = peers.Start(t, kind, peers.Config{Zones: zones})
	x.road = peers.NewRoad(t, x.Addr())
	k := peers.DefaultKey()
	x.key = filepath.Join(t.TempDir(), "ddns.key")
	text := fmt.Sprintf("key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, k.Secret)
	if err := os.WriteFile(x.key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	x.first = x.all()
	return x
}

// all returns what is in the zones but for their serials.
func (x *registry) all() []string {
	x.t.Helper()
	var out []string
	for _, z := range x.zones {
		for _, rr := range x.Dump(z) {
			if !strings.Contains(rr, " SOA ") {
				out = append(out, rr)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (x *registry) serials() string {
	x.t.Helper()
	var out []uint32
	for _, z := range x.zones {
		out = append(out, x.Serial(z))
	}
	return fmt.Sprint(out)
}

// rota runs a verb against the server, over the road.
func (x *registry) rota(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, getenv: func(string) string { return "" }, version: "v1.2.3", now: time.Now}
	if !slices.Contains(args, "--key") {
		args = append(args, "--key", "file:"+x.key)
	}
	if !slices.Contains(args, "--zone") {
		args = append(args, "--zone", "skynet.test")
	}
	code = a.main(x.t.Context(), append(args, "--server", x.road.Addr()))
	return code, o.String(), e.String()
}

// does runs a verb that must succeed.
func (x *registry) does(args ...string) string {
	x.t.Helper()
	code, out, errs := x.rota(args...)
	if code != exitOK {
		x.t.Fatalf("rota %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// adds compares what is in the zones with what was there at first and what should have come.
func (x *registry) adds(want ...string) {
	x.t.Helper()
	want = append(want, x.first...)
	slices.Sort(want)
	if diff := cmp.Diff(want, x.all()); diff != "" {
		x.t.Fatalf("the zones are not as wanted (-want +got):\n%s", diff)
	}
}

const (
	cyberdyne = "cyberdyne-web-sfo-prod"
	tyrell    = "tyrell-web-sfo-prod"
)

func a(name, addr string) string {
	t := "A"
	if strings.Contains(addr, ":") {
		t = "AAAA"
	}
	return fmt.Sprintf("%s.skynet.test. 7200 IN %s %s", name, t, addr)
}

func ptr(at, name string) string { return fmt.Sprintf("%s 7200 IN PTR %s.skynet.test.", at, name) }

// What hiveary's machines do, and what they should have done, against real name servers.
func TestRegisterDirect(t *testing.T) {
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			x := newRegistry(t, kind)
			x.does("register", "--name", cyberdyne, "--address", "13.37.0.1", "--dry-run")
			x.adds()
			// The first host of a service, then the second one.
			x.does("register", "--name", cyberdyne, "--address", "13.37.0.1")
			x.adds(a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne))
			x.does("register", "--name", strings.ToUpper(tyrell)+".internal", "--address", "13.37.0.2", "--address", "2001:db8::2")
			both := []string{
				a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne),
				a(tyrell, "13.37.0.2"), a("web", "13.37.0.2"), ptr("2.0.37.13.in-addr.arpa.", tyrell),
				a(tyrell, "2001:db8::2"), a("web", "2001:db8::2"), ptr(pointer6, tyrell),
			}
			x.adds(both...)
			// Again: not one update.
			serials := x.serials()
			if out := x.does("register", "--name", tyrell, "--address", "13.37.0.2", "--address", "2001:db8::2"); !strings.Contains(out, "all is so already") {
				t.Errorf("the second time it said %q", out)
			}
			x.adds(both...)
			if now := x.serials(); now != serials {
				t.Errorf("registering again moved the serials from %s to %s", serials, now)
			}
			// The service answers in an order that changes, on a server that does that.
			if kind == peers.BIND {
				firsts := map[string]bool{}
				for range 50 {
					answer, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("web.skynet.test.", dns.TypeA), x.Addr())
					if err != nil || len(answer.Answer) != 2 {
						t.Fatalf("%v %v", answer, err)
					}
					firsts[answer.Answer[0].(*dns.A).A.String()] = true
				}
				if len(firsts) != 2 {
					t.Errorf("of 50 answers all begin with %v", firsts)
				}
			}
			// Another address: the old one is gone from everywhere.
			x.does("register", "--name", cyberdyne, "--address", "13.37.9.9")
			x.adds(append(both[3:], a(cyberdyne, "13.37.9.9"), a("web", "13.37.9.9"), ptr("9.9.37.13.in-addr.arpa.", cyberdyne))...)
			// A part of a /24, whose pointers are elsewhere.
			x.does("register", "--name", cyberdyne, "--address", "192.0.2.10")
			x.adds(append(both[3:], a(cyberdyne, "192.0.2.10"), a("web", "192.0.2.10"), ptr("10.0-25.2.0.192.in-addr.arpa.", cyberdyne))...)
			// One leaves, and the other.
			x.does("deregister", "--name", cyberdyne)
			x.adds(both[3:]...)
			x.does("deregister", "--name", tyrell)
			x.adds()
			serials = x.serials()
			x.does("deregister", "--name", tyrell)
			if now := x.serials(); now != serials {
				t.Errorf("leaving again moved the serials from %s to %s", serials, now)
			}
			// The zone of the pointers is given, and it is on no other server.
			x.does("register", "--name", cyberdyne, "--address", "192.0.2.10", "--ptr", "0-25.2.0.192.in-addr.arpa", "--service-name", "off")
			x.adds(a(cyberdyne, "192.0.2.10"), ptr("10.0-25.2.0.192.in-addr.arpa.", cyberdyne))
			x.does("deregister", "--name", cyberdyne)
			x.adds()
		})
	}
}

// Every refusal ends with a reason and an exit code, and nothing half done.
func TestRegisterRefused(t *testing.T) {
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			x := newRegistry(t, kind)
			bad := filepath.Join(t.TempDir(), "bad.key")
			text := "key rota { algorithm hmac-sha256; secret \"d3Jvbmcgc2VjcmV0\"; };\n"
			if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			x.Update("skynet.test.", nil, []string{"web2.skynet.test. 60 IN CNAME mail.skynet.test."})
			x.first = x.all()
			for _, c := range []struct {
				want string
				code int
				args []string
			}{
				{"does not fit the pattern {id}-{service}-{env}", exitFailed, []string{"--name", "cyberdyne"}},
				{"is no host name", exitFailed, []string{"--name", "web_1-a-b"}},
				{"", exitFailed, []string{"--key", "file:" + bad}},
				{"REFUSED|NOTAUTH|BADKEY", exitFailed, []string{"--zone", "closed.test", "--ptr", "off"}},
				{"does not hold the zone", exitFailed, []string{"--zone", "nowhere.test", "--ptr", "off"}},
				{"does not hold the zone", exitFailed, []string{"--ptr", "99.10.in-addr.arpa", "--address", "10.99.0.1"}},
				{"is a CNAME to mail.skynet.test", exitFailed, []string{"--name", "a-web2-b"}},
				{"reaches no host from elsewhere", exitUsage, []string{"--address", "127.0.0.1"}},
				{"cannot be published", exitUsage, []string{"--address", "fe80::1%eth0"}},
				{"want auto, off, or a zone", exitUsage, []string{"--ptr", "example.org"}},
				{"file:PATH or env:NAME", exitFailed, []string{"--key", "c2VjcmV0"}},
			} {
				args := append([]string{"register"}, c.args...)
				if !slices.Contains(args, "--name") {
					args = append(args, "--name", cyberdyne)
				}
				if !slices.Contains(args, "--address") {
					args = append(args, "--address", "13.37.0.1")
				}
				code, out, errs := x.rota(args...)
				found := slices.ContainsFunc(strings.Split(c.want, "|"), func(s string) bool { return strings.Contains(errs, s) })
				if code != c.code || !found || errs == "" {
					t.Errorf("%q: exit code %d, want %d and %q\n%s%s", c.args, code, c.code, c.want, out, errs)
				}
				if strings.Contains(errs, "d3Jvbmcg") || strings.Contains(errs, peers.DefaultKey().Secret) {
					t.Errorf("%q shows a secret: %s", c.args, errs)
				}
				x.adds()
			}
			// A rota cluster keeps the zone: nothing is written, unless it is said that it keeps other names.
			x.Update("skynet.test.", nil, []string{`_rota.skynet.test. 60 IN TXT "owner=eu epoch=3 seq=9 by=00"`})
			x.first = x.all()
			code, _, errs := x.rota("register", "--name", cyberdyne, "--address", "13.37.0.1")
			if code != exitFailed || !strings.Contains(errs, "is kept by rota") || !strings.Contains(errs, "--beside") {
				t.Errorf("in a cluster's zone: exit code %d: %s", code, errs)
			}
			x.adds()
			x.does("register", "--name", cyberdyne, "--address", "13.37.0.1", "--beside")
			x.adds(a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne))
		})
	}
}

// home is a node that hosts register with, and its API's command line.
type home struct {
	t   *testing.T
	n   *node
	dir string
}

func newHome(t *testing.T, format string, args ...any) *home {
	h := &home{t: t, dir: t.TempDir()}
	cfg := parsed(t, "node: {name: a, data_dir: %q}\napi: {listen: \"\"}\n"+format, append([]any{h.dir}, args...)...)
	n, err := newNode(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h.n = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until(t, "the node leads", func() bool { return n.leading.Load() > 0 && len(n.raft.State().Spec().Registers) > 0 })
	return h
}

func (h *home) rota(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, getenv: func(string) string { return "" }, version: "v1.2.3", now: time.Now}
	code = a.main(h.t.Context(), append(args, "--data-dir", h.dir))
	return code, o.String(), e.String()
}

func (h *home) does(args ...string) string {
	h.t.Helper()
	code, out, errs := h.rota(args...)
	if code != exitOK {
		h.t.Fatalf("rota %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// answers are what rota's own name server says, sorted.
func (h *home) answers(name string, t uint16) []string {
	h.t.Helper()
	in, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion(name, t), h.n.dns.Addrs()[0].String())
	if err != nil {
		h.t.Fatal(err)
	}
	if len(in.Answer) == 0 {
		return []string{dns.RcodeToString[in.Rcode]}
	}
	var out []string
	for _, rr := range in.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	return out
}

func (h *home) says(name string, t uint16, want ...string) {
	h.t.Helper()
	if got := h.answers(name, t); !slices.Equal(got, want) {
		h.t.Errorf("%s %s: %q, want %q", name, dns.TypeToString[t], got, want)
	}
}

const hiveary = `discover:
  - type: register
    host_name: "{id}-{service}-{env}"
    service_name: "{service}.skynet.test"
    ttl: 2h
    also: {host_record: "{host}.skynet.test", ptr: [37.13.in-addr.arpa, 8.b.d.0.1.0.0.2.ip6.arpa]}
%s`

// What hiveary's machines do, with rota's own name server.
func TestRegisterEmbedded(t *testing.T) {
	h := newHome(t, `dns: {listen: "127.0.0.1:0", zones: {skynet.test: {ns: [ns.example.net]}, 37.13.in-addr.arpa: {ns: [ns.example.net]}, 8.b.d.0.1.0.0.2.ip6.arpa: {ns: [ns.example.net]}}}
`+hiveary, "")
	h.says("web.skynet.test.", dns.TypeA, "NXDOMAIN")
	if out := h.does("register", "--name", cyberdyne, "--address", "13.37.0.1", "--dry-run"); !strings.Contains(out, "would be registered") {
		t.Error(out)
	}
	h.says("web.skynet.test.", dns.TypeA, "NXDOMAIN")
	h.does("register", "--name", cyberdyne, "--address", "13.37.0.1")
	h.says("web.skynet.test.", dns.TypeA, "13.37.0.1")
	h.does("register", "--name", tyrell, "--address", "13.37.0.2", "--address", "2001:db8::2")
	h.says("web.skynet.test.", dns.TypeA, "13.37.0.1", "13.37.0.2")
	h.says("WEB.skynet.test.", dns.TypeAAAA, "2001:db8::2")
	h.says(cyberdyne+".skynet.test.", dns.TypeA, "13.37.0.1")
	h.says(cyberdyne+".skynet.test.", dns.TypeAAAA, "NOERROR")
	h.says(tyrell+".skynet.test.", dns.TypeAAAA, "2001:db8::2")
	h.says("1.0.37.13.in-addr.arpa.", dns.TypePTR, cyberdyne+".skynet.test.")
	h.says(pointer6, dns.TypePTR, tyrell+".skynet.test.")
	h.says("0.37.13.in-addr.arpa.", dns.TypePTR, "NOERROR") // there is something below
	h.says("3.0.37.13.in-addr.arpa.", dns.TypePTR, "NXDOMAIN")
	firsts := map[string]bool{}
	for range 50 {
		in, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("web.skynet.test.", dns.TypeA), h.n.dns.Addrs()[0].String())
		if err != nil || len(in.Answer) != 2 {
			t.Fatalf("%v %v", in, err)
		}
		firsts[in.Answer[0].(*dns.A).A.String()] = true
	}
	if len(firsts) != 2 {
		t.Errorf("of 50 answers all begin with %v", firsts)
	}
	// Again: no event, and the serial stays.
	index, serial := h.n.raft.State().Index(), h.n.raft.State().Serial()
	if out := h.does("register", "--name", tyrell, "--address", "13.37.0.2", "--address", "2001:db8::2"); !strings.Contains(out, "nothing is new") {
		t.Errorf("the second time it said %q", out)
	}
	if st := h.n.raft.State(); st.Index() != index || st.Serial() != serial {
		t.Errorf("registering again made event %d of %d, serial %d of %d", st.Index(), index, st.Serial(), serial)
	}
	if out := h.does("get", "registrations"); !strings.Contains(out, cyberdyne) || !strings.Contains(out, "never") {
		t.Error(out)
	}
	if out := h.does("explain", "1.0.37.13.in-addr.arpa"); strings.Count(out, "answers "+cyberdyne+".skynet.test.") != 1 || !strings.Contains(out, "registered by "+cyberdyne) {
		t.Error(out)
	}
	if out := h.does("explain", cyberdyne+".skynet.test"); !strings.Contains(out, "A answers 13.37.0.1 (ttl 7200)") || strings.Contains(out, "AAAA") {
		t.Error(out)
	}
	h.does("register", "--name", cyberdyne, "--address", "13.37.9.9")
	h.says("web.skynet.test.", dns.TypeA, "13.37.0.2", "13.37.9.9")
	h.says("1.0.37.13.in-addr.arpa.", dns.TypePTR, "NXDOMAIN")
	h.says("9.9.37.13.in-addr.arpa.", dns.TypePTR, cyberdyne+".skynet.test.")
	h.does("drain", "label:host="+cyberdyne, "--reason", "it is repaired")
	h.says("web.skynet.test.", dns.TypeA, "13.37.0.2")
	h.does("ready", "label:host="+cyberdyne)
	h.does("deregister", "--name", cyberdyne)
	h.says("web.skynet.test.", dns.TypeA, "13.37.0.2")
	h.says(cyberdyne+".skynet.test.", dns.TypeA, "NXDOMAIN")
	h.does("deregister", "--name", tyrell)
	h.says("web.skynet.test.", dns.TypeA, "NXDOMAIN")
	for want, args := range map[string][]string{
		"does not fit the pattern":   {"register", "--name", "cyberdyne", "--address", "13.37.0.1"},
		"has not registered":         {"deregister", "--name", "a-web-b"},
		"no block \"vms\"":           {"register", "--discover", "vms", "--name", cyberdyne, "--address", "13.37.0.1"},
		"reaches no host":            {"register", "--name", cyberdyne, "--address", "127.0.0.1"},
		"--zone is for --server":     {"register", "--zone", "skynet.test"},
		"are for --server and --dir": {"register", "--beside"},
	} {
		code, out, errs := h.rota(args...)
		if code == exitOK || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d, want an error with %q\n%s%s", args, code, want, out, errs)
		}
	}
	h.does("freeze", "--reason", "audit")
	if code, _, errs := h.rota("register", "--name", cyberdyne, "--address", "13.37.0.1"); code != exitHeld || !strings.Contains(errs, "frozen by") {
		t.Errorf("in a freeze: exit code %d: %s", code, errs)
	}
}

// The same through a cluster that publishes to a real name server: what comes is written and what leaves is taken out.
func TestRegisterPublished(t *testing.T) {
	for _, kind := range peers.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			x := newRegistry(t, kind)
			h := newHome(t, "keys: {ddns: {file: %q}}\npublish: {bind: {type: rfc2136, servers: [%q], key: ddns}}\n"+hiveary, x.key, x.Addr(), "    publish: bind\n")
			settled := func(want ...string) {
				t.Helper()
				want = append(want, x.first...)
				slices.Sort(want)
				var got []string
				end := time.Now().Add(20 * time.Second)
				for {
					got = slices.DeleteFunc(x.all(), func(s string) bool { return strings.HasPrefix(s, "_rota.") })
					if slices.Equal(got, want) {
						return
					}
					if time.Now().After(end) {
						t.Fatalf("the zones are not as wanted (-want +got):\n%s\n%+v", cmp.Diff(want, got), h.n.publisherStatus())
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
			h.does("register", "--name", cyberdyne, "--address", "13.37.0.1")
			h.does("register", "--name", tyrell, "--address", "13.37.0.2", "--address", "2001:db8::2")
			both := []string{
				a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne),
				a(tyrell, "13.37.0.2"), a("web", "13.37.0.2"), ptr("2.0.37.13.in-addr.arpa.", tyrell),
				a(tyrell, "2001:db8::2"), a("web", "2001:db8::2"), ptr(pointer6, tyrell),
			}
			settled(both...)
			h.does("register", "--name", cyberdyne, "--address", "13.37.9.9")
			settled(append(both[3:], a(cyberdyne, "13.37.9.9"), a("web", "13.37.9.9"), ptr("9.9.37.13.in-addr.arpa.", cyberdyne))...)
			until(t, "nothing is left over", func() bool { return len(h.n.raft.State().Leftovers()) == 0 })
			// Whoever writes the zone by itself, beside the cluster, is told to go through it.
			if code, _, errs := x.rota("register", "--name", "x-web-y", "--address", "13.37.0.7"); code != exitFailed || !strings.Contains(errs, "is kept by rota") {
				t.Errorf("exit code %d: %s", code, errs)
			}
			out := h.does("deregister", "--name", cyberdyne)
			if !strings.Contains(out, "bind takes out "+cyberdyne+".skynet.test A 13.37.9.9") {
				t.Error(out)
			}
			settled(both[3:]...)
			h.does("deregister", "--name", tyrell)
			settled()
			until(t, "nothing is left over", func() bool { return len(h.n.raft.State().Leftovers()) == 0 })
		})
	}
}

// By a block of the configuration, straight to its publisher's server.
func TestRegisterByConfiguration(t *testing.T) {
	x := newRegistry(t, peers.BIND)
	path := filepath.Join(t.TempDir(), "rota.yaml")
	text := fmt.Sprintf("keys: {ddns: {file: %q}}\npublish: {bind: {type: rfc2136, servers: [%q], key: ddns}}\n"+hiveary, x.key, x.Addr(), "    publish: bind\n")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	does := func(args ...string) {
		t.Helper()
		var o, e bytes.Buffer
		a := &app{out: &o, err: &e, getenv: func(string) string { return "" }, version: "v1.2.3", now: time.Now}
		if code := a.main(t.Context(), append(args, "--direct", "--config", path)); code != exitOK {
			t.Fatalf("rota %q: exit code %d\n%s%s", args, code, o.String(), e.String())
		}
	}
	does("register", "--name", cyberdyne, "--address", "13.37.0.1")
	x.adds(a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne))
	does("deregister", "--name", cyberdyne)
	x.adds()
}

// An answer that is lost on its way is found out: the update was carried out, and is not made again.
func TestRegisterLostAnswer(t *testing.T) {
	x := newRegistry(t, peers.BIND)
	var answers atomic.Int32
	x.road.Set(func(p peers.Packet) [][]byte {
		if p.Update() && !p.Query {
			if answers.Add(1) == 3 { // after those to the two questions whether the zones take updates
				return nil
			}
		}
		return peers.Pass(p)
	})
	out := x.does("register", "--name", cyberdyne, "--address", "13.37.0.1")
	if n := answers.Load(); n < 4 {
		t.Fatalf("of %d answers to updates none was lost: %s", n, out)
	}
	x.adds(a(cyberdyne, "13.37.0.1"), a("web", "13.37.0.1"), ptr("1.0.37.13.in-addr.arpa.", cyberdyne))
	if n := x.Serial("skynet.test."); n != 2 {
		t.Errorf("the serial is %d: the update was made more than once", n)
	}
}
