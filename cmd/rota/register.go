package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/register"
	"github.com/rota-dns/rota/internal/rota"
)

// registerFlags are those of `rota register` and `rota deregister`.
type registerFlags struct {
	name, pattern, serviceName, hostRecord, zone string
	discover, device, key, output                string
	servers, addresses, ptr                      []string
	ttl, patience                                time.Duration
	direct, dryRun, beside, plainReads           bool
}

const registerLong = `The host's name says what it is: the pattern {id}-{service}-{env} finds in cyberdyne-web-sfo-prod the service web. Its own record,
cyberdyne-web-sfo-prod.ZONE, has its addresses, its service, web.ZONE, has them among those of others, and each address points back.

Through a rota that runs, by the block of its configuration with ` + "`type: register`" + `; or straight to an authoritative name server with
--server, or with --direct to that of the block's publisher. Straight: what the server says is read from it and not from a resolver, the
forward and the reverse zone are changed each as a whole, and only if they are still as they were read; run again, nothing is written.`

func (a *app) registerCommand() *cobra.Command {
	return a.registering("register", "Put this host into the DNS", registerLong, true,
		"  rota register --server ns.example.org --key file:/etc/rota/ddns.key --zone skynet.example.org\n"+
			"  rota register --server 192.0.2.53 --zone example.org --host-name '{service}{id}' --ptr 37.13.in-addr.arpa --dry-run")
}

func (a *app) deregisterCommand() *cobra.Command {
	return a.registering("deregister", "Take this host, or another one, out of the DNS",
		"Takes out what `rota register` put in: the host's own record, its addresses from its service, and the pointers back.\n"+
			"With --name for another host, whose addresses are those of its record.", false,
		"  rota deregister --server ns.example.org --key file:/etc/rota/ddns.key --zone skynet.example.org\n"+
			"  rota deregister --server ns.example.org --key file:/etc/rota/ddns.key --zone skynet.example.org --name cyberdyne-web-sfo-prod")
}

// registering is the verb that puts a host in, or the one that takes it out.
func (a *app) registering(use, short, long string, in bool, example string) *cobra.Command {
	var o registerFlags
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.NoArgs}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "the host's name (default this machine's); what follows its first dot does not count")
	f.StringArrayVar(&o.addresses, "address", nil, "an address of the host, which has no others; may be given again\n(default those on the way to the server)")
	f.StringVar(&o.device, "interface", "", "take the addresses of this interface: the first of each family, and the host has no others")
	f.StringVar(&o.discover, "discover", "", "name of the block with `type: register`, when there are several")
	f.BoolVar(&o.direct, "direct", false, "write to the name server of the block's publisher, without a rota that runs")
	f.StringArrayVar(&o.servers, "server", nil, "write to this authoritative name server, HOST or HOST:PORT; may be given again for its equals")
	f.StringVar(&o.key, "key", "", "with --server: TSIG key, file:PATH or env:NAME: a BIND key block or a KEY line")
	f.StringVar(&o.zone, "zone", "", "with --server: the forward zone")
	f.StringVar(&o.pattern, "host-name", "{id}-{service}-{env}", "with --server: pattern of the host's name")
	f.StringVar(&o.serviceName, "service-name", "", "with --server: template of the service's name, or off (default {service}.ZONE)")
	f.StringVar(&o.hostRecord, "host-record", "", "with --server: template of the host's own name, or off (default {host}.ZONE)")
	f.StringArrayVar(&o.ptr, "ptr", []string{"auto"}, "with --server: reverse zone, RFC 2317 ones too; may be given again; auto: those that the server\nholds; off: none")
	f.DurationVar(&o.ttl, "ttl", 2*time.Hour, "with --server: TTL of what is made; a service that is there keeps its own")
	f.DurationVar(&o.patience, "patience", register.DefaultPatience, "with --server or --direct: how long to go on while others write too or nobody answers")
	f.BoolVar(&o.beside, "beside", false, "with --server or --direct: also in a zone that a rota cluster keeps, which has other names there")
	f.BoolVar(&o.plainReads, "plain-reads", false, "with --server: do not sign queries")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would change, and change nothing")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		form, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		if err := o.check(cmd); err != nil {
			return err
		}
		if len(o.servers) == 0 && !o.direct {
			return a.throughCluster(cmd.Context(), form, &o, in)
		}
		out, err := a.direct(cmd.Context(), &o, in)
		if len(out.Updates) > 0 || err == nil {
			if werr := a.showRegistered(form, out, &o, err); werr != nil {
				return werr
			}
		}
		return err
	}
	return c
}

// check says what is wrong with the flags.
func (o *registerFlags) check(c *cobra.Command) error {
	given := func(names ...string) string {
		for _, n := range names {
			if c.Flags().Changed(n) {
				return n
			}
		}
		return ""
	}
	switch {
	case len(o.servers) == 0 && given("key", "zone", "host-name", "service-name", "host-record", "ptr", "ttl", "plain-reads") != "":
		return usagef("--%s is for --server: by a block of the configuration it stands there", given("key", "zone", "host-name", "service-name", "host-record", "ptr", "ttl", "plain-reads"))
	case len(o.servers) > 0 && (o.direct || o.discover != ""):
		return usagef("--server stands for all that a block of the configuration says: leave out --direct and --discover")
	case len(o.servers) == 0 && !o.direct && (o.beside || given("patience") != ""):
		return usagef("--beside and --patience are for --server and --direct")
	case o.ttl < 0 || o.ttl >= 1<<31*time.Second || o.ttl%time.Second != 0:
		return usagef("--ttl %v: want whole seconds, less than 2^31", o.ttl)
	case o.patience <= 0:
		return usagef("--patience %v: want more than nothing", o.patience)
	}
	return nil
}

// host returns the name of the host that is meant, and whether it is this machine.
func (o *registerFlags) host() (name string, own bool, err error) {
	name, err = os.Hostname()
	if o.name == "" {
		if err != nil {
			return "", false, fmt.Errorf("this machine does not know its name: give it with --name: %w", err)
		}
		return name, true, nil
	}
	mine, err := rota.HostLabel(name)
	given, _ := rota.HostLabel(o.name)
	return o.name, err == nil && given == mine, nil
}

// showRegistered shows what was, or would be, written.
func (a *app) showRegistered(f format, r register.Result, o *registerFlags, failed error) error {
	return a.show(f, r, func(b *strings.Builder) {
		for _, u := range r.Updates {
			for _, c := range u.Changes {
				fmt.Fprintf(b, "%s: %s\n", u.Zone.Short(), c)
			}
		}
		switch n := changesIn(r); {
		case o.dryRun:
			fmt.Fprintf(b, "%s would change; nothing was written\n", records(n))
		case failed == nil && n == 0:
			fmt.Fprintf(b, "%s: all is so already\n", r.Host)
		case failed == nil:
			fmt.Fprintf(b, "%s: done, and read back\n", r.Host)
		}
		for _, n := range r.Notes {
			fmt.Fprintln(b, "note: "+n)
		}
	})
}

func changesIn(r register.Result) int {
	n := 0
	for _, u := range r.Updates {
		n += len(u.Changes)
	}
	return n
}

func records(n int) string {
	if n == 1 {
		return "1 RRset"
	}
	return fmt.Sprintf("%d RRsets", n)
}

// throughCluster registers a host with a rota that runs, or takes it out.
func (a *app) throughCluster(ctx context.Context, f format, o *registerFlags, in bool) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	host, _, err := o.host()
	if err != nil {
		return err
	}
	if !in {
		return a.deregisterHost(ctx, cl, f, host, o)
	}
	req := api.RegisterRequest{Host: host, Template: o.discover, DryRun: o.dryRun}
	if req.Addresses, req.Whole, err = o.own(ctx, cl.servers()); err != nil {
		return err
	}
	resp, err := cl.request(ctx, http.MethodPost, "/api/v1/registrations", nil, req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var reply api.RegisterReply
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return err
	}
	return a.show(f, reply, func(b *strings.Builder) {
		names := slices.DeleteFunc([]string{reply.Service.Short(), reply.Record.Short()}, func(s string) bool { return s == "" })
		what := "is registered"
		switch {
		case o.dryRun:
			what = "would be registered"
		case reply.Event == 0:
			what = "was registered before, and nothing is new"
		}
		fmt.Fprintf(b, "%s %s: %s for %s\n", reply.Host, what, strings.Join(addressTexts(reply.Addresses), " "), strings.Join(names, " and "))
		if reply.Renew > 0 {
			fmt.Fprintf(b, "until %s, unless it says so again; `rota agent --register` does that\n", reply.Expires.UTC().Format(time.DateTime+"Z"))
		}
	})
}

func (a *app) deregisterHost(ctx context.Context, cl *client, f format, host string, o *registerFlags) error {
	q := url.Values{"host": {host}}
	if o.discover != "" {
		q.Set("template", o.discover)
	}
	if o.dryRun {
		q.Set("dry_run", "true")
	}
	resp, err := cl.request(ctx, http.MethodDelete, "/api/v1/registrations", q, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var reply api.DeregisterReply
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return err
	}
	return a.show(f, reply, func(b *strings.Builder) {
		what := "is deregistered"
		if o.dryRun {
			what = "would be deregistered"
		}
		fmt.Fprintf(b, "%s %s\n", reply.Host, what)
		for _, l := range reply.Leftovers {
			fmt.Fprintf(b, "%s takes out %s %s\n", l.Publisher, l.Key, strings.Join(l.Data, " "))
		}
	})
}

// show prints a reply in the form that is wanted.
func (a *app) show(f format, reply any, words func(*strings.Builder)) error {
	switch f {
	case formatJSON:
		return writeJSON(a.out, reply)
	case formatYAML:
		return writeYAML(a.out, reply)
	}
	var b strings.Builder
	words(&b)
	_, err := fmt.Fprint(a.out, printable(b.String()))
	return err
}
