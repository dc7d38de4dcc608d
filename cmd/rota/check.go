package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// onceFunc runs one probe of a target. The configuration says which secrets it may read and which commands it may run; nil: none.
type onceFunc func(ctx context.Context, cfg *config.Config, t rota.Target) api.Probe

// probeOnce runs one probe of a target, here and now.
func probeOnce(ctx context.Context, cfg *config.Config, t rota.Target) api.Probe {
	var o probe.Options
	if cfg != nil {
		own := func() *config.Config { return cfg }
		o.Secret, o.Exec = ownPlaces(own), execs(ownCommands(own))
	}
	return probeOf(probe.New(o).Once(ctx, t))
}

// checked is a target and its probes, as `rota check` shows them.
type checked struct {
	Target  rota.TargetID `json:"target"`
	Check   string        `json:"check"`
	Kind    rota.Kind     `json:"kind"`
	Address netip.Addr    `json:"address"`
	Probes  []api.Probe   `json:"probes"`         // newest last
	Note    string        `json:"note,omitempty"` // why there is none
}

func (a *app) checkCommand() *cobra.Command {
	var last bool
	var output string
	c := &cobra.Command{
		Use: "check URL|SERVICE[/ADDRESS] [CHECK]", Short: "Probe once and show the whole log", Args: cobra.RangeArgs(1, 2),
		Long: `Probe once, from here, and show every phase with its time, what was sent and what came back.

A URL is one that a check can be: http, https, tcp, tls, icmp, dns, grpc, grpcs, node_exporter or agent-check. An IPv6 address in it
stands in brackets, and a certificate has to be for the name or address in it. rota probes addresses and looks no name up for it; a
name in a URL is looked up here before the probe, and each of its addresses is probed.

A SERVICE is probed as the configuration of this machine says, with CHECK by that check only; secrets are read and commands run as this
user. Nobody asks where a check is of type agent.

With --last it shows what the running rota remembers of its own probes of a SERVICE instead: the last that were up and, kept longer,
the last that were not.

It ends with 1 when an outcome is not up.`,
		Example: "  rota check https://192.0.2.10/health\n  rota check tcp://192.0.2.10:443\n  rota check icmp://[2001:db8::10]\n  rota check dns://192.0.2.53/www.example.org\n" +
			"  rota check www.example.org/192.0.2.10 web\n  rota check www.example.org/192.0.2.10 --last",
	}
	c.Flags().BoolVar(&last, "last", false, "show the running rota's last probes instead")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		name := ""
		if len(args) > 1 {
			name = args[1]
		}
		if last && strings.Contains(args[0], "://") {
			return usagef("%q: with --last it is SERVICE[/ADDRESS] or ADDRESS: what the running rota probes", args[0])
		}
		if last {
			return a.lastProbes(cmd.Context(), args[0], name, f)
		}
		if a.once == nil {
			return errors.New("this build cannot probe")
		}
		cfg, targets, err := a.targets(args[0])
		if err != nil {
			return err
		}
		if targets, err = named(targets, args[0], name, func(t rota.Target) string { return t.Check.Name }); err != nil {
			return err
		}
		return a.checkNow(cmd.Context(), cfg, targets, f)
	}
	return c
}

// named returns those of some checks that have a name; all without one.
func named[T any](all []T, of, name string, nameOf func(T) string) ([]T, error) {
	if name == "" {
		return all, nil
	}
	var out []T
	var known []string
	for _, x := range all {
		if nameOf(x) == name {
			out = append(out, x)
		}
		known = append(known, nameOf(x))
	}
	if len(out) == 0 {
		slices.Sort(known)
		return nil, usagef("%s has no check %q; it has %s", of, name, few(slices.Compact(known), ", "))
	}
	return out, nil
}

// checkNow probes targets one after another and shows each as it ends.
func (a *app) checkNow(ctx context.Context, cfg *config.Config, targets []rota.Target, f format) error {
	up, asked := true, false
	var all []checked
	for _, t := range targets {
		c := checked{Target: t.ID, Check: t.Check.Name, Kind: t.Check.Kind, Address: t.Address, Probes: []api.Probe{}}
		if t.Check.Kind == rota.KindAgent {
			c.Note = "nobody asks: the endpoint says how it is; rota explain shows what it said last"
		} else {
			p := a.once(ctx, cfg, t)
			c.Probes = append(c.Probes, p)
			up, asked = up && p.Status == rota.Up, true
		}
		if f == formatTable {
			var b strings.Builder
			c.write(&b, "", func(p api.Probe) { writeProbe(&b, "  ", p); b.WriteString(outcome(p.Observation) + "\n") })
			if _, err := fmt.Fprint(a.out, printable(b.String())); err != nil {
				return err
			}
		}
		all = append(all, c)
	}
	if err := a.writeChecked(all, f); err != nil {
		return err
	}
	if !up || !asked {
		return &coded{code: exitFailed}
	}
	return nil
}

// lastProbes shows what the running rota remembers.
func (a *app) lastProbes(ctx context.Context, match, name string, f format) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	b, err := cl.raw(ctx, "/api/v1/traces", url.Values{"match": {match}})
	if err != nil {
		return err
	}
	var l api.List[api.CheckView]
	if err := json.Unmarshal(b, &l); err != nil {
		return err
	}
	views, err := named(l.Items, match, name, func(c api.CheckView) string { return c.Check })
	if err != nil {
		return err
	}
	var out strings.Builder
	var all []checked
	for _, v := range views {
		c := checked{Target: v.Target, Check: v.Check, Kind: v.Kind, Address: v.Address, Probes: []api.Probe{}}
		switch {
		case v.Probes != nil:
			c.Probes = v.Probes.Recent
		case v.Kind == rota.KindAgent:
			c.Note = "nobody asks: the endpoint says how it is; rota explain shows what it said last"
		default:
			c.Note = "this node does not probe it"
		}
		c.write(&out, "  ", func(p api.Probe) {
			out.WriteString(p.At.UTC().Format("  2006-01-02T15:04:05Z ") + outcome(p.Observation) + "\n")
			writeProbe(&out, "    ", p)
		})
		all = append(all, c)
	}
	if f == formatTable {
		_, err = fmt.Fprint(a.out, printable(out.String()))
		return err
	}
	return a.writeChecked(all, f)
}

func (a *app) writeChecked(all []checked, f format) error {
	switch f {
	case formatJSON:
		return writeJSON(a.out, all)
	case formatYAML:
		return writeYAML(a.out, all)
	}
	return nil
}

// write writes the title, then each probe as show does, or the note.
func (c checked) write(b *strings.Builder, indent string, show func(api.Probe)) {
	b.WriteString(titled(c.Address, c.Check) + "\n")
	if c.Note != "" {
		b.WriteString(indent + c.Note + "\n")
	}
	for _, p := range c.Probes {
		show(p)
	}
}

// writeProbe tells all of a probe but its outcome: its phases, the handshake, the heads.
func writeProbe(b *strings.Builder, indent string, p api.Probe) {
	width := 0
	for _, s := range p.Steps {
		width = max(width, utf8.RuneCountInString(s.Name))
	}
	for _, s := range p.Steps {
		line := fmt.Sprintf("%-*s  %6s at %6s  %s", width, s.Name, cmp.Or(took(s.Took), "0ms"), cmp.Or(took(s.At), "0ms"), s.Note)
		b.WriteString(indent + strings.TrimRight(line, " ") + "\n")
	}
	if f := p.TLS; f != nil {
		fmt.Fprintf(b, "%s%s %s", indent, f.Version, f.Cipher)
		if f.ServerName != "" {
			b.WriteString(", server name " + f.ServerName)
		}
		if f.ClientCertificate {
			b.WriteString(", wants a client's certificate")
		}
		b.WriteByte('\n')
		for _, c := range f.Chain {
			b.WriteString(indent + "certificate " + c.Subject)
			if len(c.Names) > 0 {
				b.WriteString(" for " + strings.Join(c.Names, " "))
			}
			fmt.Fprintf(b, ", by %s, valid %s to %s\n", c.Issuer, c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly))
		}
	}
	for _, head := range []struct{ mark, text string }{{"> ", p.Sent}, {"< ", p.Received}} {
		for line := range strings.Lines(head.text) {
			b.WriteString(indent + strings.TrimRight(head.mark+line, " \r\n") + "\n")
		}
	}
	if p.ReceivedSize > 0 {
		fmt.Fprintf(b, "%s%d bytes read\n", indent, p.ReceivedSize)
	}
}

// phases tells in one line how long each phase of a probe took.
func phases(steps []api.ProbeStep) string {
	const most = 8
	var out []string
	for _, s := range steps[:min(len(steps), most)] {
		out = append(out, s.Name+" "+cmp.Or(took(s.Took), "0ms"))
	}
	if len(steps) > most {
		out = append(out, fmt.Sprintf("… (%d)", len(steps)))
	}
	return strings.Join(out, ", ")
}

// outcome says an observation in one line.
func outcome(o rota.Observation) string {
	s := loud(o.Status.String())
	if o.Reason != "" {
		s += ": " + o.Reason
	}
	if o.Weight != 0 {
		s += fmt.Sprintf(", weight %d %%", o.Weight)
	}
	if t := took(o.Took); t != "" {
		s += " (" + t + ")"
	}
	return s
}
