package main

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// TestNodePlaces: a node sends a secret that its own file names in a check, as it is now, and no other, whoever asks for it.
func TestNodePlaces(t *testing.T) {
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Authorization") }))
	defer server.Close()
	at := netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("token", "one\n")
	other := write("other", "private\n")
	file := write("rota.yaml", `
node: {name: a}
dns: {listen: ["127.0.0.1:0"], zones: {example.org: {ns: [ns1.example.net]}}}
services:
  www.example.org:
    endpoints: ["`+at.Addr().String()+`"]
    check: {type: http, port: `+strings.TrimPrefix(at.String(), at.Addr().String()+":")+`, auth: {bearer: {file: token}}}
`)
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	place := ownPlaces(func() *config.Config { return cfg })
	check := cfg.Spec.Services[0].Endpoints[0].Checks[0].Check
	once := func(c rota.Check) rota.Observation {
		return probe.New(probe.Options{Secret: place}).Once(t.Context(), rota.NewTarget(at.Addr(), c)).Observation
	}
	for _, want := range []string{"one", "two"} {
		write("token", want+"\n")
		if o := once(check); o.Status != rota.Up {
			t.Fatal(o)
		}
		if sent := <-got; sent != "Bearer "+want {
			t.Errorf("sent %q, want %q", sent, want)
		}
	}
	for _, p := range []rota.Place{rota.Place("file:" + other), "env:PATH", "credential:x", "file:" + rota.Place(dir) + "/../" + rota.Place(filepath.Base(dir)) + "/token"} {
		check.Auth.Secret = p
		o := once(check)
		if o.Status != rota.Unknown || o.Class != rota.ClassPermission || !strings.Contains(o.Reason, "write that check into this node's file") {
			t.Errorf("%s: %v", p, o)
		}
	}
	if len(got) > 0 {
		t.Errorf("sent %q", <-got)
	}
}

func TestAgentPlaces(t *testing.T) {
	dir, private := t.TempDir(), filepath.Join(t.TempDir(), "private")
	for path, text := range map[string]string{
		private: "private", filepath.Join(dir, "token"): "t0ken\n", filepath.Join(dir, "ROTA_SECRET_Y"): "cr3d\n", filepath.Join(dir, "join-token"): "private",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// As Kubernetes lays out a secret, and as somebody may lay out a trap.
	for link, to := range map[string]string{"linked": "token", "out": private, "up": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("ROTA_SECRET_X", "v4lue")
	t.Setenv("ROTA_JOIN_TOKEN", "private")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for _, c := range []struct {
		dir   string
		place rota.Place
		want  string // or a part of the error
	}{
		{dir, rota.Place("file:" + dir + "/token"), "t0ken"},
		{dir, rota.Place("file:" + dir + "/linked"), "t0ken"},
		{dir, "env:ROTA_SECRET_X", "v4lue"},
		{"", "env:ROTA_SECRET_X", "v4lue"},
		{dir, "credential:ROTA_SECRET_Y", "cr3d"},
		{dir, "credential:join-token", "begin with ROTA_SECRET_"},
		{dir, "credential:ROTA_SECRET_/../join-token", "no name of a credential"},
		{dir, rota.Place("file:" + dir + "/none"), "no such file"},
		{dir, rota.Place("file:" + dir + "/out"), "reads files in " + dir + " only (--secrets)"},
		{dir, rota.Place("file:" + dir + "/up/x"), "only (--secrets)"},
		{dir, rota.Place("file:" + dir + "/../x"), "only (--secrets)"},
		{dir, rota.Place("file:" + private), "only (--secrets)"},
		{dir, rota.Place("file:" + dir + "x/token"), "only (--secrets)"},
		{dir, "file:token", "only (--secrets)"},
		{"", rota.Place("file:" + dir + "/token"), "start with --secrets DIR"},
		{dir, "env:ROTA_JOIN_TOKEN", "begin with ROTA_SECRET_"},
		{dir, "env:PATH", "begin with ROTA_SECRET_"},
		{dir, "credential:../x", "begin with ROTA_SECRET_"},
		{dir, "", "is no place"},
	} {
		b, err := agentPlaces(c.dir)(c.place)
		text := string(b)
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.want) || (err == nil) != (text == c.want) || strings.Contains(text, "private"+"\n") || text == "private" {
			t.Errorf("%s with --secrets %q: %s, want %s", c.place, c.dir, text, c.want)
		}
	}
}
