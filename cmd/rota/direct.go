package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/register"
	"github.com/rota-dns/rota/internal/rota"
)

// ownDNS is what a host that registers itself needs of an authoritative server.
type ownDNS struct{ *publish.RFC2136 }

var _ register.DNS = ownDNS{}

// Zone returns the zone that holds a name.
func (d ownDNS) Zone(ctx context.Context, name rota.Name) (rota.Name, error) {
	zone, err := d.RFC2136.Zone(ctx, name)
	if err != nil && publish.ReasonOf(err).Code == publish.CodeNoZone {
		return "", fmt.Errorf("%w: %w", register.ErrNoZone, err)
	}
	return zone, again(err)
}

// Read returns what the server says of the keys.
func (d ownDNS) Read(ctx context.Context, zone rota.Name, keys []rota.Key) ([]rota.RRset, error) {
	have, err := d.RFC2136.Read(ctx, zone, keys)
	if err != nil {
		return nil, again(err)
	}
	for _, k := range keys {
		if r := have.Blocked[k.Name]; r != nil {
			return nil, r
		}
	}
	return have.Sets, nil
}

// Swap makes changes true if all is as it was read.
func (d ownDNS) Swap(ctx context.Context, zone rota.Name, require []rota.RRset, changes []rota.Change) error {
	err := d.RFC2136.Swap(ctx, zone, require, changes)
	if errors.Is(err, publish.ErrMoved) {
		return register.ErrMoved
	}
	return again(err)
}

// again marks an error that may pass.
func again(err error) error {
	if err == nil {
		return nil
	}
	if r := publish.ReasonOf(err); r.Transient || r.InDoubt {
		return fmt.Errorf("%w: %w", register.ErrAgain, err)
	}
	return err
}

// directTarget is what a host is registered by, without a rota that runs.
type directTarget struct {
	template rota.RegisterTemplate
	servers  []string
	backend  *publish.RFC2136
}

// directTarget makes it of the flags, or of a block of the configuration.
func (o *registerFlags) target(a *app) (directTarget, error) {
	if len(o.servers) == 0 {
		return o.configured(a)
	}
	t := rota.RegisterTemplate{Name: "flags", HostName: o.pattern, Service: rota.Service{TTL: uint32(o.ttl / time.Second)}}
	var zones []rota.Name
	if o.zone != "" {
		zone, err := rota.ParseName(o.zone)
		if err != nil {
			return directTarget{}, usagef("--zone: %w", err)
		}
		zones = append(zones, zone)
	}
	template := func(flag, given, usual string) (string, error) {
		switch {
		case given == "off":
			return "", nil
		case given != "":
			return given, nil
		case o.zone == "":
			return "", usagef("say which names with --zone ZONE, which stands for --%s %s.ZONE, or with --%s", flag, usual, flag)
		}
		return usual + "." + o.zone, nil
	}
	var err error
	if t.ServiceName, err = template("service-name", o.serviceName, "{service}"); err != nil {
		return directTarget{}, err
	}
	if t.HostRecord, err = template("host-record", o.hostRecord, "{host}"); err != nil {
		return directTarget{}, err
	}
	if t.Reverse, err = reversesOf(o.ptr); err != nil {
		return directTarget{}, err
	}
	out := directTarget{template: t, servers: o.servers}
	options := publish.RFC2136Options{Servers: o.servers, Zones: zones, Stream: true, PlainReads: o.plainReads}
	if o.key != "" {
		k, err := config.ReadKey(o.key, config.Options{})
		if err != nil {
			return directTarget{}, err
		}
		options.Key = &publish.Key{Name: k.Name.String(), Algorithm: k.Algorithm, Secret: k.Secret.Reveal()}
	}
	out.backend, err = publish.NewRFC2136(options)
	return out, err
}

// reversesOf reads --ptr.
func reversesOf(ptr []string) ([]rota.Reverse, error) {
	var out []rota.Reverse
	for _, text := range ptr {
		switch text {
		case "off":
			if len(ptr) > 1 {
				return nil, usagef("--ptr off goes with no other --ptr")
			}
			return nil, nil
		case "auto":
			out = append(out, rota.Reverse{})
		default:
			zone, err := rota.ParseName(text)
			if err != nil || !zone.In("in-addr.arpa.") && !zone.In("ip6.arpa.") {
				return nil, usagef("--ptr %q: want auto, off, or a zone under in-addr.arpa or ip6.arpa", text)
			}
			out = append(out, rota.Reverse{Zone: zone})
		}
	}
	return out, nil
}

// configured takes the block of the configuration that is meant, and the name servers of its publisher.
func (o *registerFlags) configured(a *app) (directTarget, error) {
	cfg, err := config.Load(a.configPath(), config.Options{})
	if err != nil {
		return directTarget{}, err
	}
	t, err := rota.TemplateOf(cfg.Spec.Registers, o.discover)
	if err != nil {
		return directTarget{}, err
	}
	publishers := slices.Concat(t.Service.Publish, t.HostPublish)
	for _, r := range t.Reverse {
		publishers = append(publishers, r.Publish...)
	}
	slices.Sort(publishers)
	if publishers = slices.Compact(publishers); len(publishers) != 1 {
		return directTarget{}, fmt.Errorf("the block %q has the publishers %s: to register without a cluster it needs one, of type rfc2136", t.Name,
			cmp.Or(strings.Join(publishers, ", "), "of nobody"))
	}
	for _, p := range cfg.Publishers {
		if p.Name != publishers[0] || p.RFC2136 == nil {
			continue
		}
		b, err := backendOf(p)
		if err != nil {
			return directTarget{}, err
		}
		backend, ok := b.(*publish.RFC2136)
		if !ok {
			return directTarget{}, fmt.Errorf("publisher %s is not reached by DNS UPDATE alone", p.Name)
		}
		return directTarget{template: *t, servers: p.RFC2136.Servers, backend: backend}, nil
	}
	return directTarget{}, fmt.Errorf("publisher %s is not of type rfc2136: register through a rota that runs instead, without --direct", publishers[0])
}

// direct registers a host with the authoritative servers themselves, or takes it out.
func (a *app) direct(ctx context.Context, o *registerFlags, in bool) (register.Result, error) {
	target, err := o.target(a)
	if err != nil {
		return register.Result{}, err
	}
	host, own, err := o.host()
	if err != nil {
		return register.Result{}, err
	}
	if _, _, _, err := target.template.Names(host); err != nil {
		return register.Result{}, err
	}
	j := register.Job{
		DNS: ownDNS{target.backend}, Template: &target.template, Host: host, Fence: publish.FenceKey, Beside: o.beside, DryRun: o.dryRun,
		Patience: o.patience,
	}
	// Who takes another host out does not know its addresses, but by its record.
	if in || own || len(o.addresses) > 0 || o.device != "" {
		if j.Addresses, j.Whole, err = o.own(ctx, target.servers); err != nil && in {
			return register.Result{}, err
		}
	}
	act := j.Deregister
	if in {
		act = j.Register
	}
	out, err := act(ctx)
	var kept *register.Kept
	switch {
	case errors.As(err, &kept):
		err = fmt.Errorf("%w; register through that cluster, without --server and --direct, or say with --beside that it keeps other names than these", err)
	case err != nil && !in && len(out.Addresses) > 0 && len(out.Updates) > 0:
		err = fmt.Errorf("%w; what is left goes when this is repeated with --address %s", err, strings.Join(addressTexts(out.Addresses), " --address "))
	}
	return out, err
}

// own returns the addresses of this machine, and whether it has no others.
func (o *registerFlags) own(ctx context.Context, servers []string) (all []netip.Addr, whole bool, err error) {
	for _, text := range o.addresses {
		a, err := netip.ParseAddr(text)
		if err == nil {
			err = rota.Publishable(a)
		}
		if err != nil {
			return nil, false, usagef("--address: %w", err)
		}
		all = append(all, a)
	}
	if o.device != "" {
		found, err := register.ByInterface(o.device)
		if err != nil {
			return nil, false, err
		}
		all = append(all, found...)
	}
	if len(all) > 0 {
		return all, true, nil
	}
	var to []netip.AddrPort
	for _, s := range servers {
		found, err := addressesOf(ctx, s)
		if err != nil {
			return nil, false, err
		}
		to = append(to, found...)
	}
	all, err = register.ByRoute(to)
	return all, false, err
}

// addressesOf returns the addresses of a server, given as host, host:port or [address]:port.
func addressesOf(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		host = strings.Trim(server, "[]")
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", server, err)
	}
	var out []netip.AddrPort
	for _, a := range all {
		out = append(out, netip.AddrPortFrom(a.Unmap(), 53))
	}
	return out, nil
}
