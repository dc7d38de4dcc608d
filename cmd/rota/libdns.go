package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/publish"
)

// libDNSMaker makes a provider of the libdns project from its settings, which are JSON.
type libDNSMaker func(settings []byte) (any, error)

// libDNSOf makes the way to the DNS of a libdns provider, of those that are compiled in.
func libDNSOf(p config.Publisher, makers map[string]libDNSMaker) (publish.Backend, error) {
	maker := makers[p.LibDNS.Provider]
	if maker == nil {
		has := "none"
		if len(makers) > 0 {
			has = strings.Join(slices.Sorted(maps.Keys(makers)), ", ")
		}
		return nil, fmt.Errorf("the libdns provider %s is not compiled in (%s is): docs/libdns.md says how one is", p.LibDNS.Provider, has)
	}
	settings := []byte(p.LibDNS.Settings.Reveal())
	provider, err := maker(settings)
	if err != nil {
		return nil, fmt.Errorf("the settings of the libdns provider %s are not what it wants", p.LibDNS.Provider) // err may quote them
	}
	return publish.NewLibDNS(publish.LibDNSOptions{
		Name: p.LibDNS.Provider, Provider: provider, Zones: p.Zones, MinTTL: p.MinTTL, Secrets: texts(settings),
	})
}

// texts returns the texts in a JSON document that may be secrets, which is all but short ones.
func texts(doc []byte) []string {
	var v any
	if json.Unmarshal(doc, &v) != nil {
		return []string{string(doc)}
	}
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			if len(v) >= 6 {
				out = append(out, v)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(v[k])
			}
		}
	}
	walk(v)
	return out
}
