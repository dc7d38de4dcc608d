package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/process"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// backendOf makes the way to a publisher's DNS. It does not speak to it yet.
func backendOf(p config.Publisher) (publish.Backend, error) {
	switch {
	case p.RFC2136 != nil:
		o := updatesTo(p.RFC2136.Servers, p.RFC2136.Keys, p.RFC2136.PlainReads, p.Zones)
		o.Stream, o.NoTransfer = p.RFC2136.Transport == config.TransportTCP, p.RFC2136.NoTransfer
		return publish.NewRFC2136(o)
	case p.NSUpdate != nil:
		command, err := commandOf(p.NSUpdate.Command)
		if err != nil {
			return nil, err
		}
		return publish.NewNSUpdate(publish.NSUpdateOptions{
			Command: command, Timeout: p.NSUpdate.Timeout, Run: commandRunner(),
			Servers: updatesTo(p.NSUpdate.Servers, p.NSUpdate.Keys, p.NSUpdate.PlainReads, p.Zones),
		})
	}
	b, err := providerOf(p)
	if err == nil && len(p.Zones) > 0 {
		b = keeping{b, p.Zones}
	}
	return b, err
}

// inSyncWithin is how long a write to Route 53 waits for all of its servers; usually they need less.
const inSyncWithin = 45 * time.Second

// providerOf makes the way to those that find their zones by a list.
func providerOf(p config.Publisher) (publish.Backend, error) {
	switch {
	case p.PowerDNS != nil:
		return publish.NewPowerDNS(publish.PowerDNSOptions{URL: p.PowerDNS.URL, Key: p.PowerDNS.Token.Reveal(), Server: p.PowerDNS.ServerID})
	case p.Route53 != nil:
		a := p.Route53
		o := publish.Route53Options{
			AccessKey: a.AccessKey.Reveal(), SecretKey: a.SecretKey.Reveal(), Profile: a.Profile, Role: a.Role, Zone: a.ZoneID, Private: a.Private,
			Region: a.Region, Endpoint: a.URL,
		}
		if a.Wait {
			o.Wait = inSyncWithin
		}
		return publish.NewRoute53(o)
	case p.Cloudflare != nil:
		return publish.NewCloudflare(publish.CloudflareOptions{
			URL: p.Cloudflare.URL, Token: p.Cloudflare.Token.Reveal(), Proxied: publish.Proxied(p.Cloudflare.Proxied), MinTTL: p.MinTTL,
		})
	case p.DeSEC != nil:
		return publish.NewDeSEC(publish.DeSECOptions{URL: p.DeSEC.URL, Token: p.DeSEC.Token.Reveal(), MinTTL: p.MinTTL})
	case p.AutoDNS != nil:
		a := p.AutoDNS
		return publish.NewAutoDNS(publish.AutoDNSOptions{URL: a.URL, User: a.User.Reveal(), Password: a.Password.Reveal(), Context: a.Context})
	case p.Dynu != nil:
		return publish.NewDynu(publish.DynuOptions{URL: p.Dynu.URL, Token: p.Dynu.Token.Reveal()})
	case p.DigitalOcean != nil:
		return publish.NewDigitalOcean(publish.DigitalOceanOptions{URL: p.DigitalOcean.URL, Token: p.DigitalOcean.Token.Reveal()})
	case p.ExternalDNS != nil:
		return publish.NewExternalDNS(publish.ExternalDNSOptions{URL: p.ExternalDNS.URL, Zones: p.Zones, Timeout: p.ExternalDNS.Timeout})
	case p.Webhook != nil:
		h := p.Webhook
		return publish.NewWebhook(publish.WebhookOptions{
			Name: p.Name, URL: h.URL, Secret: h.Secret.Reveal(), Signed: h.Signed, Zones: p.Zones, Timeout: h.Timeout,
		})
	case p.Exec != nil:
		command, err := commandOf(p.Exec.Command)
		if err != nil {
			return nil, err
		}
		o := publish.ExecOptions{Name: p.Name, Command: command, Zones: p.Zones, Timeout: p.Exec.Timeout, Run: commandRunner()}
		if p.Exec.Mode == config.ExecSimple {
			o.Simple = &publish.RFC2136Options{Servers: p.Exec.Servers}
		}
		return publish.NewExec(o)
	case p.ZoneFile != nil:
		reload, err := commandOf(p.ZoneFile.Reload)
		if err != nil {
			return nil, err
		}
		path, err := filepath.Abs(p.ZoneFile.Path)
		if err != nil {
			return nil, err
		}
		o := publish.ZoneFileOptions{Path: path, Reload: reload, Timeout: p.ZoneFile.Timeout, Run: commandRunner()}
		if len(p.Zones) > 0 {
			o.Zone = p.Zones[0]
		}
		return publish.NewZoneFile(o)
	case p.LibDNS != nil:
		return libDNSOf(p, libDNSProviders())
	case p.Mock != nil:
		return publish.NewMock(publish.MockOptions{Zones: p.Mock.Zones, State: p.Mock.State})
	}
	return nil, fmt.Errorf("there is no backend of type %s", p.Type)
}

// toLook returns a publisher to look with only: a mock starts anew each time that it is made, and writes that down.
func toLook(p config.Publisher) config.Publisher {
	if p.Mock != nil {
		p.Mock = &config.Mock{Zones: p.Mock.Zones}
	}
	return p
}

// updatesTo says how name servers are spoken to that take updates.
func updatesTo(servers []string, keys []config.Key, plainReads bool, zones []rota.Name) publish.RFC2136Options {
	o := publish.RFC2136Options{Servers: servers, Zones: zones, PlainReads: plainReads}
	for i, k := range keys {
		// The configuration has refused weak algorithms that nobody asked for.
		key := &publish.Key{Name: k.Name.String(), Algorithm: k.Algorithm, Secret: k.Secret.Reveal(), Weak: true}
		if i == 0 {
			o.Key = key
		} else {
			o.OldKey = key
		}
	}
	return o
}

// Commands of a publisher: so many run at once, and what does not end when asked to is killed after so long.
const (
	commandsAtOnce = 8
	commandGrace   = 2 * time.Second
)

// commandRunner runs the commands of one publisher: those of another one that hang do not hold them up.
func commandRunner() publish.Run {
	r := process.New(commandsAtOnce, commandGrace)
	return func(ctx context.Context, c publish.Command) (publish.Output, error) {
		out, err := r.Run(ctx, process.Command(c))
		return publish.Output(out), err
	}
}

// programs are the directories in which a program is looked for that is named without one: those that commands find in their PATH.
var programs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// commandOf returns a command with its program's path.
func commandOf(argv []string) ([]string, error) {
	if len(argv) == 0 || filepath.IsAbs(argv[0]) {
		return argv, nil
	}
	for _, dir := range programs {
		path := filepath.Join(dir, argv[0])
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return append([]string{path}, argv[1:]...), nil
		}
	}
	return nil, fmt.Errorf("there is no program %s in %s: install it, or write its path", argv[0], strings.Join(programs, ", "))
}

// keeping is a backend that keeps certain zones and no others.
type keeping struct {
	publish.Backend
	zones []rota.Name
}

// Zone returns the longest of the zones that holds the name.
func (k keeping) Zone(_ context.Context, name rota.Name) (rota.Name, error) {
	z, ok := rota.LongestZone(name, k.zones)
	if !ok {
		return "", &publish.Reason{Code: publish.CodeNoZone, Name: name, Text: "is in none of the zones that the publisher keeps", Advice: "add its zone to the publisher's zones, or leave zones out"}
	}
	return z, nil
}

// Zones returns the zones.
func (k keeping) Zones(context.Context) ([]rota.Name, error) { return k.zones, nil }

// promises says in words what a DNS can do.
func promises(c publish.Capabilities) string {
	var out []string
	switch c.Fence {
	case publish.FenceServer:
		out = append(out, "the DNS itself refuses a stale writer")
	case publish.FenceCompare:
		out = append(out, "rota compares before it writes, and puts right what a stale writer did")
	}
	if c.Atomic {
		out = append(out, "a write happens whole or not at all")
	} else {
		out = append(out, "additions happen before removals")
	}
	if c.Batch > 0 {
		out = append(out, fmt.Sprintf("at most %s in a write", count(c.Batch, "change")))
	}
	if c.MinTTL > 0 {
		out = append(out, fmt.Sprintf("no TTL below %ds", c.MinTTL))
	}
	if c.Types != nil {
		var types []string
		for _, t := range c.Types {
			types = append(types, dns.Type(t).String())
		}
		out = append(out, "only "+strings.Join(types, ", "))
	}
	return strings.Join(out, "; ")
}
