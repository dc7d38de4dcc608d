package main

import (
	"fmt"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/publish"
)

// backendOf makes the way to a publisher's DNS. It does not speak to it yet.
func backendOf(p config.Publisher) (publish.Backend, error) {
	switch {
	case p.RFC2136 != nil:
		o := publish.RFC2136Options{Servers: p.RFC2136.Servers, Zones: p.Zones, Stream: p.RFC2136.Transport == config.TransportTCP, PlainReads: p.RFC2136.PlainReads}
		for i, k := range p.RFC2136.Keys {
			if i == 0 {
				o.Key = keyOf(k)
			} else {
				o.OldKey = keyOf(k)
			}
		}
		return publish.NewRFC2136(o)
	}
	return nil, fmt.Errorf("type %s is not supported yet", p.Type)
}

// keyOf is a key as publishers sign with it. The configuration has refused weak algorithms that nobody asked for.
func keyOf(k config.Key) *publish.Key {
	return &publish.Key{Name: k.Name.String(), Algorithm: k.Algorithm, Secret: k.Secret.Reveal(), Weak: true}
}
