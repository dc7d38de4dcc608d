package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

// proof reads what is seen from outside; nil: nothing is watched.
func (c *client) proof(ctx context.Context) (*api.Proof, error) {
	var out api.Proof
	err := c.get(ctx, "/api/v1/proof", nil, &out)
	if p, ok := errors.AsType[*apiProblem](err); ok && p.Status == http.StatusNotFound {
		return nil, nil
	}
	return &out, err
}

// seenOutside tells what is wrong as seen from outside, for `rota status`.
func seenOutside(b *strings.Builder, p *api.Proof, now time.Time) {
	if p == nil {
		return
	}
	for _, z := range p.Zones {
		for _, f := range worst(z.Findings) {
			fmt.Fprintf(b, "outside: %s %s\n", z.Zone, findingLine(f, now))
		}
		if z.Pending > 0 && now.Sub(z.Oldest) > time.Minute {
			fmt.Fprintf(b, "outside: %s by %s: %s not visible everywhere for %s: see `rota propagation NAME`\n", z.Zone, z.Publisher,
				count(z.Pending, "change"), age(z.Oldest, now))
		}
	}
	for _, d := range p.Disagreements {
		fmt.Fprintf(b, "DISAGREE: %s: %s, for %s\n", d.Service, d.Text, age(d.Since, now))
	}
}

func findingLine(f api.ProofFinding, now time.Time) string {
	where := ""
	if f.Server != "" {
		where = f.Server + " "
	}
	return fmt.Sprintf("%s: %s%s, for %s; %s", strings.ToUpper(f.Code), where, f.Text, age(f.Since, now), f.Advice)
}

// watchPace is between two looks of --watch and --wait.
const watchPace = 2 * time.Second

func (a *app) propagationCommand() *cobra.Command {
	var output string
	var watch bool
	c := &cobra.Command{
		Use: "propagation NAME", Short: "Ask every name server for a name, and tell until when caches hold what left", Args: cobra.ExactArgs(1),
		Long: "Ask every authoritative server of a service's zone for it now, over UDP and TCP, and the resolvers that are configured under proof:\n" +
			"who says what is wanted and who does not, what is wrong with which server, when a change was first seen where, and until when\n" +
			"caches may hold what left. With --watch again and again until it is interrupted. See docs/propagation.md.",
		Example: "  rota propagation www.example.org\n  rota propagation www.example.org --watch",
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "again and again")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		q := url.Values{"name": {args[0]}}
		for {
			if f != formatTable {
				b, err := cl.raw(cmd.Context(), "/api/v1/propagation", q)
				if err == nil {
					err = writeValue(a.out, b, f)
				}
				if err != nil {
					return err
				}
			} else {
				var l api.List[api.Propagation]
				if err := cl.get(cmd.Context(), "/api/v1/propagation", q, &l); err != nil {
					return err
				}
				for _, p := range l.Items {
					if err := writePropagation(a.out, p); err != nil {
						return err
					}
				}
			}
			if !watch {
				return nil
			}
			if pause(cmd.Context(), watchPace, nil) != nil {
				return nil
			}
		}
	}
	return c
}

// writePropagation tells what the world sees of a name. Times are told by the clock of the node that asked.
func writePropagation(w io.Writer, p api.Propagation) error {
	verdict := "NOT EVERYWHERE as wanted"
	switch {
	case p.Everywhere:
		verdict = "everywhere as wanted"
	case len(p.Views) > 0 && !slices.ContainsFunc(p.Views, func(v api.ServerView) bool { return !v.Agrees }):
		verdict = "as wanted wherever it could be seen, but not every server was found: name them under proof: servers"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s by %s: %s\n", p.Name, p.Zone, p.Publisher, verdict)
	for _, x := range p.Want {
		word := cmp.Or(strings.Join(x.Data, " "), "nothing of rota's")
		if x.Some {
			word = "some of " + word
		}
		fmt.Fprintf(&b, "  wanted  %s %s (ttl %d)\n", x.Type, word, x.TTL)
	}
	if _, err := io.WriteString(w, printable(b.String())); err != nil {
		return err
	}
	t := &table{head: []string{"SERVER", "VIA", "TYPE", "SERIAL", "ANSWER", "TTL", "RTT", "AGREES"}}
	for _, v := range p.Views {
		serial := ""
		if v.Serial != 0 {
			serial = fmt.Sprint(v.Serial)
		}
		server := v.Server
		if v.Origin {
			server += " (origin)"
		}
		t.add(server, v.Transport, v.Type.String(), serial, answerOf(v), ttlOf(v), took(v.RTT), yes(v.Agrees))
	}
	for _, v := range p.Public {
		t.add(v.Server+" (resolver)", v.Transport, v.Type.String(), "", answerOf(v), ttlOf(v), took(v.RTT), yes(v.Agrees))
	}
	if err := t.write(w, true, true); err != nil {
		return err
	}
	b.Reset()
	for _, f := range worst(p.Findings) {
		fmt.Fprintf(&b, "%s\n", findingLine(f, p.At))
	}
	for _, text := range p.Blind {
		fmt.Fprintf(&b, "cannot be seen: %s\n", text)
	}
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s\n", changeLine(c))
	}
	for _, l := range p.Leaving {
		fmt.Fprintf(&b, "%s\n", leavingLine(l, p.At))
	}
	_, err := io.WriteString(w, printable(b.String())+"\n")
	return err
}

func answerOf(v api.ServerView) string {
	switch {
	case v.Trouble != "":
		return strings.ToUpper(v.Trouble) + ": " + v.Text
	case v.Cut:
		return "truncated"
	case v.Alias != "":
		return "CNAME " + strings.TrimSuffix(v.Alias, ".")
	case len(v.Data) == 0 && v.Rcode == "NOERROR":
		return "nothing"
	case len(v.Data) == 0:
		return v.Rcode
	}
	return few(v.Data, " ")
}

func ttlOf(v api.ServerView) string {
	if len(v.Data) == 0 {
		return ""
	}
	return fmt.Sprint(v.TTL)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

func changeLine(c api.ChangeSeen) string {
	text := fmt.Sprintf("event %d, %s: not visible everywhere yet", c.Event, c.Type)
	if !c.Visible.IsZero() {
		text = fmt.Sprintf("event %d, %s: visible everywhere %s after the decision", c.Event, c.Type, took(c.Took))
	}
	if n := len(c.First); n > 0 {
		text += fmt.Sprintf("; first at %s over %s after %s", c.First[0].Server, c.First[0].Transport, took(c.First[0].After))
		if n > 1 {
			text += fmt.Sprintf(", last at %s over %s after %s", c.First[n-1].Server, c.First[n-1].Transport, took(c.First[n-1].After))
		}
	}
	if len(c.Unseen) > 0 {
		text += "; without " + few(c.Unseen, ", ")
	}
	return text
}

func leavingLine(l api.LeavingData, now time.Time) string {
	switch {
	case !l.Proven:
		return fmt.Sprintf("caches may hold %s: it is not proven that it left %s", l.Data, few(l.Unseen, ", "))
	case l.Until.After(now):
		return fmt.Sprintf("caches may hold %s until %s (in %s)", l.Data, l.Until.UTC().Format("15:04:05Z"), span(l.Until.Sub(now)))
	}
	return fmt.Sprintf("no honest cache holds %s since %s", l.Data, l.Until.UTC().Format("15:04:05Z"))
}

func (a *app) drainCommand() *cobra.Command {
	c := a.overrideCommand("drain", "Send no new clients to endpoints", rota.ActionDrain)
	var wait bool
	var timeout time.Duration
	c.Flags().BoolVar(&wait, "wait", false, "until it is proven that no server answers them any more and no honest cache holds them")
	c.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: give up after this (default never)")
	c.Long += "\nWith --wait every step is told: left the answer, left every name server, left the caches. Drained is only said when\n" +
		"all three are proven; what a resolver does that ignores TTLs nobody can."
	set := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if f := cmd.Flags().Lookup("output").Value.String(); wait && f != string(formatTable) {
			return usagef("--wait tells its steps as they come: leave out -o, and see `rota propagation NAME -o json`")
		}
		if timeout != 0 && !wait {
			return usagef("--timeout goes with --wait")
		}
		if err := set(cmd, args); err != nil || !wait {
			return err
		}
		ctx := cmd.Context()
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		err = cl.awaitDrained(ctx, args[0], func(line string) { _, _ = io.WriteString(a.out, printable(line)+"\n") })
		if ctx.Err() != nil && cmd.Context().Err() == nil {
			return fmt.Errorf("not proven to be drained within %v; the drain holds on", timeout)
		}
		return err
	}
	return c
}

// awaitDrained follows the endpoints that match until all are drained, and tells each step once.
func (c *client) awaitDrained(ctx context.Context, match string, tell func(string)) error {
	last := map[string]string{}
	for {
		var endpoints api.List[api.EndpointView]
		if err := c.get(ctx, "/api/v1/endpoints", url.Values{"match": {match}}, &endpoints); err != nil {
			return err
		}
		all, left := true, maps.Clone(last)
		for _, e := range endpoints.Items {
			who := e.Service + "/" + e.Endpoint.String()
			delete(left, who)
			if last[who] == stepDrained {
				continue
			}
			step, detail, err := c.drained(ctx, e)
			if err != nil {
				return err
			}
			if step != last[who] {
				tell(who + ": " + step + detail)
				last[who] = step
			}
			all = all && step == stepDrained
		}
		maps.DeleteFunc(left, func(_, step string) bool { return step == stepDrained })
		switch {
		case len(left) > 0: // nobody looks for it any more
			return fmt.Errorf("not proven to be drained: %s is no endpoint any more", few(slices.Sorted(maps.Keys(left)), ", "))
		case len(last) == 0:
			return fmt.Errorf("not proven to be drained: %s is no endpoint any more", match)
		case all:
			return nil
		}
		if err := pause(ctx, watchPace, nil); err != nil {
			return err
		}
	}
}

const stepDrained = "DRAINED"

// drained tells how far an endpoint is on its way out. The step is what is told once; the detail goes with it.
func (c *client) drained(ctx context.Context, e api.EndpointView) (step, detail string, err error) {
	if e.InAnswer {
		return "still answered: " + e.Why, "", nil
	}
	var svc api.ServiceDetail
	if err := c.get(ctx, "/api/v1/services/"+url.PathEscape(e.Service), nil, &svc); err != nil {
		return "", "", err
	}
	var seen api.List[api.Propagation]
	err = c.get(ctx, "/api/v1/propagation", url.Values{"name": {e.Service}, "gone": {e.Endpoint.String()}}, &seen)
	if p, ok := errors.AsType[*apiProblem](err); ok && p.Status == http.StatusNotFound {
		return "out of the answer; " + p.Detail, "", nil
	} else if err != nil {
		return "", "", err
	}
	for _, name := range svc.Service.Publish {
		if !slices.ContainsFunc(seen.Items, func(p api.Propagation) bool { return p.Publisher == name }) {
			return fmt.Sprintf("out of the answer; publisher %s is not proven from outside (proof: off, or its zone is not known yet)", name), "", nil
		}
	}
	var until, now time.Time
	for _, p := range seen.Items {
		i := slices.IndexFunc(p.Leaving, func(l api.LeavingData) bool { return l.Data == e.Endpoint.String() })
		if i < 0 {
			return fmt.Sprintf("out of the answer; %s has not taken it out yet", p.Publisher), "", nil
		}
		l := p.Leaving[i]
		if !l.Proven {
			return "out of the answer; not proven gone from " + few(l.Unseen, ", "), "", nil
		}
		if now = p.At; l.Until.After(until) {
			until = l.Until
		}
	}
	if until.After(now) {
		return "gone from every name server; caches may hold it until " + until.UTC().Format("15:04:05Z"), " (in " + span(until.Sub(now)) + ")", nil
	}
	return stepDrained, ": no name server answers it, and no honest cache holds it since " + until.UTC().Format("15:04:05Z"), nil
}
