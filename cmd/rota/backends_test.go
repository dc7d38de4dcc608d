package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// noExample are types of publishers without an example here: a libdns provider has to be compiled in first, and the other has no backend yet.
var noExample = []string{"libdns", "kubernetes-service"}

// publisherTypes are the types that the format has, from its schema.
func publisherTypes(t *testing.T) []string {
	t.Helper()
	var schema struct {
		Defs struct {
			Publisher struct {
				AnyOf []struct {
					Properties struct {
						Type struct{ Const string }
					}
				}
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal(config.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range schema.Defs.Publisher.AnyOf {
		if !slices.Contains(noExample, p.Properties.Type.Const) {
			out = append(out, p.Properties.Type.Const)
		}
	}
	return out
}

var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// Every type of publishers has an example on the page, a backend is made of it, and the table says what that promises.
func TestBackendsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/backends.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"tsig.key": "key k { algorithm hmac-sha256; secret \"bm90IGEgc2VjcmV0LCBvbmx5IGFuIGV4YW1wbGUgISE=\"; };", "provider.token": "0123456789abcdef",
		"zones.yaml": "[{Name: example.org}]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	for i, m := range yamlBlock.FindAllStringSubmatch(string(page), -1) {
		path := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(m[1], "/etc/rota/", dir+"/")), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(cfg.Warnings) > 0 {
			t.Errorf("an example with warnings: %v\n%s", cfg.Warnings, m[1])
		}
		for _, p := range cfg.Publishers {
			b, err := backendOf(p)
			if err != nil {
				t.Errorf("%s: %v", p.Type, err)
				continue
			}
			c := b.Capabilities()
			if c.MinTTL != p.MinTTL {
				t.Errorf("%s: the configuration warns below a TTL of %d, and the backend publishes at least %d", p.Type, p.MinTTL, c.MinTTL)
			}
			row := fmt.Sprintf("| `%s` | %s |", p.Type, promises(c))
			if p.Exec != nil && p.Exec.Mode == config.ExecSimple {
				row = fmt.Sprintf("| `%s`, `mode: simple` | %s |", p.Type, promises(c))
			}
			if seen[p.Type] == "" {
				seen[p.Type] = row
			}
			if !strings.Contains(string(page), "\n"+row+"\n") {
				t.Errorf("the table lacks\n%s", row)
			}
			if len(p.Zones) > 0 && p.RFC2136 == nil && p.NSUpdate == nil { // these ask the DNS for others
				for name, want := range map[rota.Name]bool{"www." + p.Zones[0]: true, "www.example.net.": false} {
					if z, err := b.Zone(t.Context(), name); (err == nil && z == p.Zones[0]) != want {
						t.Errorf("%s: zone of %s: %v, %v", p.Type, name, z, err)
					}
				}
			}
		}
	}
	for _, typ := range publisherTypes(t) {
		if seen[typ] == "" {
			t.Errorf("no example of type %s", typ)
		}
	}
}

// As many commands of one publisher hang as may run at once: those of another one run.
func TestCommandsOfOthers(t *testing.T) {
	dir := t.TempDir()
	begun := filepath.Join(dir, "begun")
	of := func(script string) publish.Backend {
		t.Helper()
		b, err := backendOf(config.Publisher{
			Name: "script", Type: "exec", Zones: []rota.Name{"example.test."},
			Exec: &config.Exec{Command: []string{"/bin/sh", "-c", script}, Timeout: time.Minute},
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hangs, works := of("echo x >>"+begun+"; exec sleep 1000"), of(`echo '{"rrsets": []}'`)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	for range commandsAtOnce {
		readers.Go(func() { hangs.Read(ctx, "example.test.", nil) })
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if lines, _ := os.ReadFile(begun); len(lines) == 2*commandsAtOnce {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d of %d commands have begun", len(lines)/2, commandsAtOnce)
		}
	}
	soon, stop := context.WithTimeout(t.Context(), 15*time.Second)
	defer stop()
	if _, err := works.Read(soon, "example.test.", nil); err != nil {
		t.Error(err)
	}
}

func TestPrograms(t *testing.T) {
	sh, err := commandOf([]string{"sh", "-c", "true"})
	if err != nil || !filepath.IsAbs(sh[0]) || !slices.Equal(sh[1:], []string{"-c", "true"}) {
		t.Errorf("%v, %v", sh, err)
	}
	if same, err := commandOf([]string{"/no/such", "x"}); err != nil || same[0] != "/no/such" {
		t.Errorf("%v, %v", same, err)
	}
	if none, err := commandOf(nil); err != nil || len(none) > 0 {
		t.Errorf("%v, %v", none, err)
	}
	if _, err := commandOf([]string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "there is no program no-such-program in /usr/local/sbin") {
		t.Errorf("%v", err)
	}
}

func TestPromises(t *testing.T) {
	got := promises(publish.Capabilities{Fence: publish.FenceCompare, Batch: 1, MinTTL: 60, Types: []rota.Type{rota.TypeA, rota.TypeTXT}})
	want := "rota compares before it writes, and puts right what a stale writer did; additions happen before removals; at most 1 change in a write; no TTL below 60s; only A, TXT"
	if got != want {
		t.Errorf("%s", got)
	}
}
