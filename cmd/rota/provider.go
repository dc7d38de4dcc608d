package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/publish"
	"github.com/rota-dns/rota/internal/rota"
)

// askWithin bounds all that a command asks of a DNS.
const askWithin = 2 * time.Minute

func (a *app) providerCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "provider", Short: "Try a publisher's DNS and its credentials, and write nothing", Args: cobra.NoArgs,
		Long: "Speak to the DNS of a publisher of the configuration, from here and without a rota that runs. Nothing is written.",
		RunE: func(*cobra.Command, []string) error { return usagef("provider what? check, zones or records") },
	}
	c.AddCommand(
		a.providerVerb("check PUBLISHER", "Find the zones of a publisher's services, read them, and say who owns them", a.providerCheck, "check-creds"),
		a.providerVerb("zones PUBLISHER", "List the zones that a publisher reaches", a.providerZones),
		a.providerVerb("records PUBLISHER", "Show what a publisher's DNS says of the names it is to keep", a.providerRecords),
	)
	return c
}

// providerVerb is a verb about one publisher.
func (a *app) providerVerb(use, short string, do func(context.Context, *provider, format) error, aliases ...string) *cobra.Command {
	var output string
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), Aliases: aliases}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		p, err := a.provider(args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), askWithin)
		defer cancel()
		return do(ctx, p, f)
	}
	return c
}

// provider is a publisher's DNS, and what it is to keep there.
type provider struct {
	config.Publisher
	backend publish.Backend
	names   []rota.Name // of services, sorted
}

// provider reads the configuration and makes the way to a publisher's DNS.
func (a *app) provider(name string) (*provider, error) {
	cfg, err := config.Load(a.configPath(), config.Options{})
	if err != nil {
		return nil, err
	}
	var known []string
	for _, p := range slices.Concat(cfg.Publishers, cfg.Idle) {
		known = append(known, p.Name)
		if p.Name != name {
			continue
		}
		backend, err := backendOf(toLook(p))
		if err != nil {
			return nil, fmt.Errorf("publish.%s: %w", name, err)
		}
		out := &provider{Publisher: p, backend: backend}
		for _, v := range cfg.Spec.Services {
			if slices.Contains(v.Publish, name) {
				out.names = append(out.names, v.Name)
			}
		}
		return out, nil
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("no publisher %q: the configuration has none", name)
	}
	return nil, fmt.Errorf("no publisher %q: the configuration has %s", name, strings.Join(known, ", "))
}

// providerZone is what is known of a zone.
type providerZone struct {
	Zone  rota.Name   `json:"zone,omitempty"` // empty: the zone of the names was not found
	Names []rota.Name `json:"names"`          // that are to be kept in it
	Owner string      `json:"owner,omitempty"`
	Epoch uint64      `json:"epoch,omitempty"`
	Error string      `json:"error,omitempty"`

	sets []rota.RRset
}

// zones finds the zones that a publisher reaches and those of its names, which are asked for one by one.
func (p *provider) zones(ctx context.Context) ([]*providerZone, error) {
	found := map[rota.Name]*providerZone{}
	in := func(zone rota.Name) *providerZone {
		if found[zone] == nil {
			found[zone] = &providerZone{Zone: zone, Names: []rota.Name{}}
		}
		return found[zone]
	}
	if l, ok := p.backend.(interface {
		Zones(context.Context) ([]rota.Name, error)
	}); ok {
		zones, err := l.Zones(ctx)
		if err != nil {
			return nil, err
		}
		for _, z := range zones {
			in(z)
		}
	}
	for _, name := range p.names {
		zone, err := p.backend.Zone(ctx, name)
		z := in(zone)
		if z.Names = append(z.Names, name); err != nil {
			z.Error = err.Error()
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the DNS did not say where all names are within %v: %w", askWithin, ctx.Err())
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("publisher %s has no service and cannot list its zones: name some with zones: [NAME]", p.Name)
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *providerZone) int { return cmp.Compare(a.Zone, b.Zone) }), nil
}

// read reads what a zone says of the names, and who owns it.
func (p *provider) read(ctx context.Context, z *providerZone) {
	if z.Zone == "" {
		return
	}
	fence := publish.FenceKey(z.Zone)
	keys := []rota.Key{fence}
	for _, n := range z.Names {
		for _, t := range []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME} {
			keys = append(keys, rota.Key{Name: n, Type: t})
		}
	}
	have, err := p.backend.Read(ctx, z.Zone, keys)
	if err != nil {
		z.Error = err.Error()
		return
	}
	for _, n := range slices.Sorted(maps.Keys(have.Blocked)) {
		z.Error = have.Blocked[n].Error()
	}
	z.sets = have.Sets
	for _, s := range have.Sets {
		if s.Key() != fence {
			continue
		}
		f, err := publish.ParseFence(s)
		if err != nil {
			z.Error = err.Error()
		}
		z.Owner, z.Epoch = f.Owner, f.Epoch
	}
}

func (a *app) providerZones(ctx context.Context, p *provider, f format) error {
	zones, err := p.zones(ctx)
	if err != nil {
		return err
	}
	if f != formatTable {
		return a.writeProvider(f, zones)
	}
	t := &table{head: []string{"ZONE", "NAMES", "PROBLEM"}}
	for _, z := range zones {
		t.add(z.Zone.Short(), strconv.Itoa(len(z.Names)), z.Error)
	}
	if err := t.write(a.out, false, true); err != nil {
		return err
	}
	if slices.ContainsFunc(zones, func(z *providerZone) bool { return z.Error != "" }) {
		return errors.New("not every name's zone was found")
	}
	return nil
}

func (a *app) providerCheck(ctx context.Context, p *provider, f format) error {
	zones, err := p.zones(ctx)
	if err != nil {
		return err
	}
	failed := 0
	for _, z := range zones {
		if p.read(ctx, z); z.Error != "" {
			failed++
		}
	}
	c := p.backend.Capabilities()
	if f != formatTable {
		err = a.writeProvider(f, struct {
			Publisher    string               `json:"publisher"`
			Type         string               `json:"type"`
			Capabilities publish.Capabilities `json:"capabilities"`
			Zones        []*providerZone      `json:"zones"`
		}{p.Name, p.Type, c, zones})
	} else {
		t := &table{head: []string{"ZONE", "READ", "NAMES", "OWNER", "EPOCH", "PROBLEM"}}
		for _, z := range zones {
			read, epoch := "yes", ""
			if z.Error != "" {
				read = "NO"
			}
			if z.Epoch > 0 {
				epoch = strconv.FormatUint(z.Epoch, 10)
			}
			t.add(z.Zone.Short(), read, strconv.Itoa(len(z.Names)), z.Owner, epoch, z.Error)
		}
		if _, err = fmt.Fprintf(a.out, "%s (%s): %s\n", printable(p.Name), p.Type, promises(c)); err == nil {
			err = t.write(a.out, false, true)
		}
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %s cannot be used", failed, count(len(zones), "zone"))
	}
	return err
}

func (a *app) providerRecords(ctx context.Context, p *provider, f format) error {
	zones, err := p.zones(ctx)
	if err != nil {
		return err
	}
	type record struct {
		Zone rota.Name `json:"zone"`
		rota.RRset
	}
	records := []record{}
	var failed []string
	for _, z := range zones {
		if p.read(ctx, z); z.Error != "" {
			failed = append(failed, strings.TrimPrefix(z.Zone.Short()+": "+z.Error, ": "))
		}
		for _, s := range z.sets {
			records = append(records, record{z.Zone, s})
		}
	}
	if f != formatTable {
		err = a.writeProvider(f, records)
	} else {
		t := &table{head: []string{"ZONE", "NAME", "TYPE", "TTL", "DATA"}}
		for _, r := range records {
			for _, d := range r.Data {
				t.add(r.Zone.Short(), relative(r.Name, r.Zone), r.Type.String(), strconv.FormatUint(uint64(r.TTL), 10), d)
			}
		}
		err = t.write(a.out, false, true)
	}
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("not all was read: %s", strings.Join(failed, "; "))
	}
	return err
}

func (a *app) writeProvider(f format, v any) error {
	if f == formatYAML {
		return writeYAML(a.out, v)
	}
	return writeJSON(a.out, v)
}
