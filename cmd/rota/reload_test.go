package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

func TestWhatNeedsARestart(t *testing.T) {
	base := config.Config{
		Cluster:     config.Cluster{Election: config.Raft, Listen: ":3648", CertFile: "crt", KeyFile: "key", CAFile: "ca"},
		Agents:      []config.Agent{{Name: "a"}},
		Healthagent: &config.Healthagent{Listen: ":3443", CertFile: "crt", KeyFile: "key", ClientCAFile: "ca"},
	}
	for want, change := range map[string]func(*config.Config){
		"cluster.election changed from raft to singleton:":                      func(c *config.Config) { c.Cluster.Election = config.Singleton },
		"cluster.listen changed from :3648 to :1:":                              func(c *config.Config) { c.Cluster.Listen = ":1" },
		"cluster.advertise changed from nothing to a:1:":                        func(c *config.Config) { c.Cluster.Advertise = "a:1" },
		"cluster.join changed from nothing to [b:1]:":                           func(c *config.Config) { c.Cluster.Join = []string{"b:1"} },
		"cluster.tls changed from [crt key ca] to [crt key other]:":             func(c *config.Config) { c.Cluster.CAFile = "other" },
		"cluster.tls changed from [crt key ca] to [other key ca]:":              func(c *config.Config) { c.Cluster.CertFile = "other" },
		"cluster.tls changed from [crt key ca] to nothing:":                     func(c *config.Config) { c.Cluster.CertFile, c.Cluster.KeyFile, c.Cluster.CAFile = "", "", "" },
		"cluster.nodes changed from nothing to [b]:":                            func(c *config.Config) { c.Cluster.Nodes = []string{"b"} },
		"cluster.raftadmin changed from nothing to 127.0.0.1:1:":                func(c *config.Config) { c.Cluster.RaftAdmin = "127.0.0.1:1" },
		"vantage.agents.healthagent changed: restart rota for that, or take it": func(c *config.Config) { c.Healthagent = nil },
		"vantage.agents.healthagent changed: restart":                           func(c *config.Config) { c.Healthagent = &config.Healthagent{Listen: ":1"} },
		"api changed: restart":                                                  func(c *config.Config) { c.API.Listen = ":1" },
		"": func(c *config.Config) {
			same := *c.Healthagent
			c.Healthagent = &same
			c.Agents = []config.Agent{{Name: "b", Site: "x"}}
			c.Uplink = &config.Uplink{Checks: []rota.Target{rota.NewTarget(netip.MustParseAddr("192.0.2.1"), rota.Check{Kind: rota.KindICMP})}, Need: 1}
			c.Spec.Vantages = []rota.Vantage{{Name: "b"}}
		},
	} {
		next := base
		change(&next)
		got := ""
		if err := needsRestart(&base, &next); err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, want) || want == "" && got != "" || strings.Contains(got, "\n") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestNamesFitIntoCertificates: what the configuration takes as the name of an agent or of a node, certificates take, and nothing else.
func TestNamesFitIntoCertificates(t *testing.T) {
	o := config.Options{HostName: "host", Env: func(string) (string, bool) { return "", false }}
	for _, name := range []string{
		"a", "A.b_c-9", "_", "9", strings.Repeat("a", 64), "", strings.Repeat("a", 65), ".a", "-a", "a.", "a-", "a b", "a/b", "a:b", "ä", "a\u202eb", "a\tb", "a*",
	} {
		fits := link.Identity{Cluster: "c", Role: link.Agent, ID: name, Name: name}.Check() == nil
		for _, text := range []string{
			`{"vantage": {"agents": {"accept": ["` + name + `"]}}}`,
			`{"cluster": {"election": "raft"}, "node": {"name": "` + name + `"}}`,
		} {
			if _, err := config.Parse("rota.yaml", []byte(text), o); (err == nil) != fits {
				t.Errorf("%s: certificates take it: %v, the configuration says: %v", text, fits, err)
			}
		}
	}
}
