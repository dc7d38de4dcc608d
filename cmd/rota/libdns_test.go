package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libdns/libdns"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// angry is a libdns provider that tells everybody its token.
type angry struct {
	Token string `json:"token"`
}

func (a *angry) GetRecords(context.Context, string) ([]libdns.Record, error) {
	return nil, errors.New("who gave me " + a.Token + "?")
}

func (a *angry) AppendRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, nil
}

func (a *angry) SetRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, nil
}

func (a *angry) DeleteRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, nil
}

func TestLibDNS(t *testing.T) {
	makers := map[string]libDNSMaker{"angry": func(settings []byte) (any, error) {
		a := &angry{}
		return a, json.Unmarshal(settings, a)
	}}
	using := func(provider, settings string, zones ...rota.Name) config.Publisher {
		file := filepath.Join(t.TempDir(), "settings.json")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse("rota.yaml", []byte(`publish: {p: {type: libdns, provider: `+provider+`, settings: {file: `+file+`}}}
services: {www.example.org: {endpoints: [192.0.2.1], check: "tcp://{}:80", publish: p}}`), config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := c.Publishers[0]
		p.Zones = zones
		return p
	}
	b, err := libDNSOf(using("angry", `{"token": "opensesame"}`, "example.org."), makers)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/backends.md")
	if row := "| `libdns` | " + promises(b.Capabilities()) + " |"; err != nil || !strings.Contains(string(page), row) {
		t.Errorf("the page of backends lacks %s: %v", row, err)
	}
	_, err = b.Read(t.Context(), "example.org.", []rota.Key{{Name: "www.example.org.", Type: rota.TypeA}})
	if err == nil || !strings.Contains(err.Error(), "who gave me ***?") {
		t.Errorf("a provider that fails: %v", err)
	}
	for _, c := range []struct {
		p    config.Publisher
		want string
	}{
		{using("other", `{}`), "angry is"},
		{using("angry", `{"token": 7}`), "not what it wants"},
		{using("angry", `{}`), "name them"},
	} {
		if _, err := libDNSOf(c.p, makers); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q in it", err, c.want)
		}
	}
	if _, err := libDNSOf(using("angry", `{}`), libDNSProviders()); err == nil || !strings.Contains(err.Error(), "none is") {
		t.Error(err)
	}
}
