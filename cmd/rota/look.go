package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// writeValue writes the API's answer as it is, as JSON or YAML.
func writeValue(w io.Writer, b []byte, f format) error {
	if f == formatYAML {
		return writeYAML(w, json.RawMessage(b))
	}
	return writeJSON(w, json.RawMessage(b))
}

// overview is what `rota status` shows.
type overview struct {
	Cluster    *api.ClusterStatus            `json:"cluster,omitempty"`
	Services   api.List[api.ServiceView]     `json:"services"`
	Vantages   api.VantageList               `json:"vantages"`
	Publishers api.List[api.PublisherStatus] `json:"publishers"`
	Overrides  api.List[rota.Override]       `json:"overrides"`
	Proof      *api.Proof                    `json:"proof,omitempty"`
	Freeze     api.FreezeView                `json:"freeze"`
}

func (a *app) statusCommand() *cobra.Command {
	var output string
	var detailed bool
	c := &cobra.Command{
		Use: "status", Short: "Show how everything stands, worst first", Args: cobra.NoArgs,
		Long: "Show how everything stands, worst first. With --detailed-exitcode it ends with 3 when a service is not up.",
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 3 when something is down")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		o, err := cl.overview(cmd.Context())
		if err != nil {
			return err
		}
		switch f {
		case formatJSON:
			err = writeJSON(a.out, o)
		case formatYAML:
			err = writeYAML(a.out, o)
		default:
			err = o.write(a.out, a.now())
		}
		if err != nil {
			return err
		}
		bad := slices.ContainsFunc(o.Services.Items, func(s api.ServiceView) bool { return s.Status != "up" && s.Status != "disabled" })
		if detailed && bad {
			return &coded{code: exitFound}
		}
		return nil
	}
	return c
}

func (c *client) overview(ctx context.Context) (*overview, error) {
	var o overview
	for _, x := range []struct {
		path string
		into any
	}{{"services", &o.Services}, {"vantages", &o.Vantages}, {"publishers", &o.Publishers}, {"overrides", &o.Overrides}, {"freeze", &o.Freeze}} {
		if err := c.get(ctx, "/api/v1/"+x.path, nil, x.into); err != nil {
			return nil, err
		}
	}
	var cs api.ClusterStatus
	var p *apiProblem
	err := c.get(ctx, "/api/v1/cluster", nil, &cs)
	switch {
	case err == nil:
		o.Cluster = &cs
	case !errors.As(err, &p) || p.Status != 404:
		return nil, err
	}
	o.Proof, err = c.proof(ctx)
	return &o, err
}

// severity orders the states of services, worst first.
func severity(status string) int {
	return slices.Index([]string{"down", "panic", "empty", "degraded", "warmup", "disabled", "up"}, status)
}

func (o *overview) write(w io.Writer, now time.Time) error {
	var b strings.Builder
	freezeLines(&b, &o.Freeze)
	if c := o.Cluster; c != nil {
		leader := cmp.Or(c.Leader, "NONE")
		fmt.Fprintf(&b, "node %s, leader %s, term %d, event %d\n", c.Node, leader, c.Term, c.Applied)
		warnings(&b, c)
	}
	switch vs := o.Vantages; {
	case vs.Voting < 0 && vs.Ask == "":
		fmt.Fprintf(&b, "vantages: NO LEADER hears them, verdicts stay as they are\n")
	case vs.Voting < 0:
		fmt.Fprintf(&b, "vantages: the leader %s hears them; %d of %d voices needed\n", vs.Ask, vs.Need, vs.Voices)
	case vs.Voting < vs.Need:
		fmt.Fprintf(&b, "vantages: %d of %d voices heard, %d needed: NO QUORUM, verdicts stay as they are\n", vs.Voting, vs.Voices, vs.Need)
	default:
		fmt.Fprintf(&b, "vantages: %d of %d voices heard, %d needed\n", vs.Voting, vs.Voices, vs.Need)
	}
	if c := o.Cluster; c != nil && !c.Leading && len(o.Publishers.Items) > 0 {
		if c.Leader == "" {
			fmt.Fprintf(&b, "publishers: NO LEADER writes, the DNS stays as it is\n")
		} else {
			fmt.Fprintf(&b, "publishers: the leader %s writes, and says how that goes\n", c.Leader)
		}
	}
	for _, p := range o.Publishers.Items {
		for _, z := range p.Zones {
			if z.State == "standby" {
				continue
			}
			fmt.Fprintf(&b, "publisher %s: %s", p.Publisher, strings.TrimPrefix(z.Zone.Short()+" "+loud(z.State), " "))
			if z.Error != "" {
				fmt.Fprintf(&b, " (%s)", z.Error)
			}
			if n := len(z.Held); n > 0 && z.State != "held" { // which says so itself
				fmt.Fprintf(&b, ", %s held: see `rota plan`", count(n, "change"))
			}
			b.WriteByte('\n')
		}
	}
	seenOutside(&b, o.Proof, now)
	if n := len(o.Overrides.Items); n > 0 {
		fmt.Fprintf(&b, "%s under an override: see `rota get overrides`\n", count(n, "endpoint"))
	}
	if _, err := io.WriteString(w, printable(b.String())+"\n"); err != nil {
		return err
	}
	items := slices.Clone(o.Services.Items)
	slices.SortStableFunc(items, func(x, y api.ServiceView) int { return cmp.Compare(severity(x.Status), severity(y.Status)) })
	t := &table{head: []string{"SERVICE", "STATUS", "UP", "ANSWER", "CHANGED"}}
	for _, s := range items {
		t.add(s.Service, statusWords(s), fmt.Sprintf("%d/%d", s.Up, s.Endpoints), few(s.Answer, " "), age(s.Changed, now))
		for _, u := range s.Unprobed {
			t.note(u)
		}
		if len(s.Trials) > 0 {
			t.note("on trial, as no endpoint has passed it yet: " + strings.Join(s.Trials, ", "))
		}
		if s.Draining > 0 {
			t.note("draining by own announcement: " + count(s.Draining, "endpoint"))
		}
	}
	return t.write(w, true, true)
}

func (a *app) explainCommand() *cobra.Command {
	var output, typ, client string
	c := &cobra.Command{
		Use: "explain NAME [ADDRESS]", Short: "Tell why a name answers as it does", Args: cobra.RangeArgs(1, 2),
		Long: "Tell why a name answers as it does: the votes of the vantages, the quorum, what people said, the steps of the\n" +
			"selection, the answer, and what each publisher's DNS says. With ADDRESS only about that endpoint.",
		Example: "  rota explain www.example.org\n  rota explain www.example.org 192.0.2.11\n  rota explain www.example.org --type AAAA",
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.Flags().StringVar(&typ, "type", "", "A or AAAA (default: that of ADDRESS, else both that have endpoints)")
	c.Flags().StringVar(&client, "client", "", "address or prefix of who asks")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		var only netip.Addr
		if len(args) == 2 {
			if only, err = netip.ParseAddr(args[1]); err != nil {
				return usagef("ADDRESS %q: want an address such as 192.0.2.10", args[1])
			}
		}
		types := []string{"A", "AAAA"}
		switch {
		case typ != "":
			if types = []string{strings.ToUpper(typ)}; types[0] != "A" && types[0] != "AAAA" {
				return usagef("--type %q: want A or AAAA", typ)
			}
		case only.Is4():
			types = types[:1]
		case only.IsValid():
			types = types[1:]
		case f != formatTable:
			types = types[:1] // one document
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		told := false
		var last *api.Explained
		for _, t := range types {
			q := url.Values{"name": {args[0]}, "type": {t}}
			if client != "" {
				q.Set("client", client)
			}
			b, err := cl.raw(cmd.Context(), "/api/v1/explain", q)
			if err != nil {
				return err
			}
			if f != formatTable {
				return writeValue(a.out, b, f)
			}
			var x api.Explained
			if err := json.Unmarshal(b, &x); err != nil {
				return err
			}
			again := last != nil && last.Service == x.Service && last.Type == x.Type // a pointer, which has one type
			if typ == "" && (again || len(x.Endpoints)+len(x.Answer) == 0 && (told || t == "A" && len(types) > 1)) {
				continue
			}
			last = &x
			if only.IsValid() && !slices.ContainsFunc(x.Endpoints, func(e rota.EndpointExplanation) bool { return e.Address == only }) {
				return fmt.Errorf("%s has no endpoint %s; `rota get endpoints %s` lists them", args[0], only, args[0])
			}
			if told {
				if _, err := fmt.Fprintln(a.out); err != nil {
					return err
				}
			}
			told = true
			if _, err := io.WriteString(a.out, printable(story(x, only, a.now()))); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// story tells an explanation for a person at three in the morning: the answer first, then why, endpoint by endpoint, then where it
// can be seen.
func story(x api.Explained, only netip.Addr, now time.Time) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s %s answers %s (ttl %d)", x.Service.Short(), x.Type, cmp.Or(few(x.Answer, " "), "nothing"), x.TTL)
	line("  because %s", x.Summary)
	if x.Index > 0 {
		line("  changed %s, event %d%s", ago(x.Changed, now), x.Index, lastWhy(x.Transition, only))
	}
	if x.Remembered != "" {
		line("  votes of other vantages are those of when the verdicts were taken; what they hold now is %s", x.Remembered)
	}
	for _, e := range x.Endpoints {
		if only.IsValid() && e.Address != only {
			continue
		}
		place := "NOT in the answer"
		if e.InAnswer {
			place = "in the answer"
		}
		line("")
		line("%s  %s", e.Address, place)
		line("  why       %s", e.Why)
		for _, k := range e.Checks {
			role := ""
			if k.Observe {
				role = " (observed, decides nothing)"
			}
			title := k.Check + role + ": " + k.Asks
			if strings.Contains(k.Check, "{}") { // it has no name but its question
				title = k.Asks + role
			}
			line("  check     %s", title)
			for _, n := range x.Now {
				if n.Target == k.Target {
					votes(line, n, now)
				}
			}
			trial := ""
			if k.Trial {
				trial = "; on trial: no endpoint has passed it yet, so that down does not count"
			}
			asks := ""
			if k.Verdict.Weight != 0 {
				asks = fmt.Sprintf(", asks for %d %% of its weight", k.Verdict.Weight)
			}
			line("  verdict   %s%s%s, %d of %d needed to change it%s", loud(k.Verdict.Status.String()), since(k.Verdict.Since, now), asks, x.Need, x.Voices, trial)
		}
		if len(e.Checks) == 0 {
			line("  verdict   up: it has no check")
		}
		if o := e.Override; o != nil {
			line("  override  %s by %s until %s: %s", loud(string(o.Action)), o.Author, ends(*o), o.Reason)
		}
		if e.Step == rota.StepKept {
			line("  selected  kept to the end")
		} else {
			line("  selected  dropped at %s", strings.TrimSpace(fmt.Sprintf("%s (%s)", e.Step, e.Cause)))
		}
	}
	if !only.IsValid() {
		line("")
		for _, s := range x.Steps {
			kept := make([]string, len(s.Kept))
			for i, k := range s.Kept {
				kept[i] = k.String()
			}
			text := cmp.Or(few(kept, " "), "nobody")
			dropped := make([]string, len(s.Dropped))
			for i, d := range s.Dropped {
				dropped[i] = "without " + d.Address.String()
			}
			if len(dropped) > 0 {
				text += ", " + few(dropped, ", ")
			}
			line("step %-9s %s", s.Step, text)
		}
	}
	line("")
	for _, p := range x.Published {
		if x.Remembered != "" && p.Publisher != rota.Embedded {
			line("%s is read and written by who leads", p.Publisher)
			continue
		}
		text := fmt.Sprintf("%s says %s: %s", p.Publisher, cmp.Or(few(p.Records, " "), "nothing"), loud(p.State))
		if p.Publisher != rota.Embedded && !p.Read.IsZero() {
			text += ", read " + ago(p.Read, now)
		}
		if p.Error != "" {
			text += " (" + p.Error + ")"
		}
		line("%s", text)
	}
	if len(x.Published) == 0 {
		line("no publisher is configured: nobody is told")
	}
	return b.String()
}

func votes(line func(string, ...any), c api.CheckView, now time.Time) {
	for _, v := range c.Votes {
		text := loud(v.Status.String())
		if v.Weight != 0 {
			text += fmt.Sprintf(", asks for %d %%", v.Weight)
		}
		if v.Reason != "" && v.Status != rota.Up {
			text += ": " + v.Reason
		}
		line("  vote      %s %s%s", v.Vantage, text, since(v.Since, now))
	}
	if p := c.Probes; p != nil && !p.Streak.Last.At.IsZero() {
		o := p.Streak.Last
		successes := count(p.Streak.Successes, "success")
		if p.Streak.Successes != 1 {
			successes = fmt.Sprintf("%d successes", p.Streak.Successes)
		}
		lost, failed := lastFailure(p.Recent)
		detail := ""
		if failed && lost.At.Equal(o.At) {
			detail = withPhases(lost)
		}
		line("  probe     %s %s, took %s%s; %s counted, %s in a row", ago(o.At, now), found(o), cmp.Or(took(o.Took), "0ms"), detail,
			count(p.Streak.Failures, "failure"), successes)
		if failed && detail == "" {
			line("  failure   %s %s, took %s%s", ago(lost.At, now), found(lost.Observation), cmp.Or(took(lost.Took), "0ms"), withPhases(lost))
		}
	}
}

// found says what a probe found and why.
func found(o rota.Observation) string {
	text := loud(o.Status.String())
	if o.Reason != "" {
		text += ", " + o.Reason
	}
	return text
}

// lastFailure returns the newest probe that was not up.
func lastFailure(probes []api.Probe) (api.Probe, bool) {
	for _, p := range slices.Backward(probes) {
		if p.Status != rota.Up {
			return p, true
		}
	}
	return api.Probe{}, false
}

// withPhases adds where the time of a probe went.
func withPhases(p api.Probe) string {
	if len(p.Steps) == 0 {
		return ""
	}
	return " (" + phases(p.Steps) + ")"
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return age(t, now) + " ago"
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " for " + age(t, now)
}

// lastWhy says why the answer changed last; with an address, as far as it is about that.
func lastWhy(c *api.ChangeView, only netip.Addr) string {
	if c == nil {
		return ""
	}
	why := slices.Clone(c.Why)
	if only.IsValid() {
		why = slices.DeleteFunc(why, func(w string) bool { return !strings.HasPrefix(w, only.String()+" ") })
	}
	if len(why) == 0 {
		return ""
	}
	return ": " + few(why, "; ")
}

func (a *app) planCommand() *cobra.Command {
	var output string
	var detailed bool
	c := &cobra.Command{
		Use: "plan [PUBLISHER[/ZONE]]", Short: "Show what publishers would write now", Args: cobra.MaximumNArgs(1),
		Long: "Ask every publisher's DNS and show what rota would write to it now. With --detailed-exitcode it ends with 3 when there\n" +
			"is something to write; with 4 when a safety limit holds some of it. What keeps the rest from being written stands below the table.",
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 3 when there are changes")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		where, err := cl.place(cmd.Context(), args)
		if err != nil {
			return err
		}
		b, err := cl.raw(cmd.Context(), "/api/v1/plan", where)
		if err != nil {
			return err
		}
		var l api.List[api.Plan]
		if err := json.Unmarshal(b, &l); err != nil {
			return err
		}
		if f != formatTable {
			err = writeValue(a.out, b, f)
		} else {
			err = writePlan(a.out, l.Items)
		}
		if err != nil {
			return err
		}
		return planCode(l.Items, detailed)
	}
	return c
}

func planCode(plans []api.Plan, detailed bool) error {
	changes, held := 0, 0
	var failed []string
	for _, p := range plans {
		if p.Error != "" {
			failed = append(failed, at(p, p.Error))
		}
		changes += len(p.Changes)
		if !codes(p, "released") { // nobody waits for it
			held += len(p.Held)
		}
	}
	switch {
	case len(failed) > 0:
		return &coded{exitFailed, errors.New(strings.Join(failed, "\n"))}
	case held > 0:
		return &coded{code: exitHeld}
	case detailed && changes > 0:
		return &coded{code: exitFound}
	}
	return nil
}

func writePlan(w io.Writer, plans []api.Plan) error {
	t := &table{head: []string{"PUBLISHER", "ZONE", "NAME", "TYPE", "", "DATA", "WHY"}}
	add, remove, held, same := 0, 0, 0, 0
	var unread []string
	for _, p := range plans {
		if p.Error != "" && p.Owner == "" && len(p.Changes)+len(p.Held)+len(p.Unchanged) == 0 {
			unread = append(unread, placeOf(p))
		}
		zone := p.Zone.Short()
		row := func(k rota.Key, sign, data, why string) {
			t.add(p.Publisher, zone, relative(k.Name, p.Zone), k.Type.String(), sign, data, why)
		}
		one := func(c rota.Change, why string) {
			for _, d := range c.Removed() {
				row(c.Key(), "-", d, why)
			}
			for _, d := range c.Added() {
				row(c.Key(), "+", d, why)
			}
			if len(c.Removed())+len(c.Added()) == 0 {
				row(c.Key(), "~", fmt.Sprintf("ttl %d → %d", c.Old.TTL, c.New.TTL), why)
			}
		}
		for _, c := range p.Changes {
			why := c.Why
			if i := slices.IndexFunc(p.Forced, func(f api.Forced) bool { return f.Name == c.Key().Name }); i >= 0 {
				f := p.Forced[i]
				why = strings.TrimPrefix(fmt.Sprintf("%s; released by %s until %s: %s", why, f.Actor, f.Until.UTC().Format(time.TimeOnly+"Z"), f.Reason), "; ")
			}
			one(c, why)
			add, remove = add+len(c.Added()), remove+len(c.Removed())
		}
		for _, h := range p.Held {
			one(h.Change, "HELD: "+h.Why)
			held += len(h.Change.Removed()) + len(h.Change.Added())
		}
		for _, s := range p.Unchanged {
			for _, d := range s.Data {
				row(s.Key(), "=", d, fmt.Sprintf("ttl %d", s.TTL))
				same++
			}
		}
	}
	if len(t.rows) > 0 {
		if err := t.write(w, true, false); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%d to remove, %d to add, %d unchanged.", remove, add, same)
	if held > 0 {
		text = fmt.Sprintf("%d to remove, %d to add, %d HELD, %d unchanged.", remove, add, held, same)
	}
	switch {
	case len(plans) == 0:
		text = "Nobody has anything to write: no service is published, or all are warming up; `rota status` says which."
	case len(unread) == len(plans) && len(t.rows) == 0:
		text = "Nothing could be read, so that nobody knows what there is to write."
	case len(unread) > 0:
		text += " Not counted, as it could not be read: " + strings.Join(unread, ", ") + "."
	}
	for _, p := range plans {
		for _, r := range p.Reasons {
			if slices.Contains([]string{"frozen", "dry-run", "released", "conflict"}, r.Code) {
				text += "\n" + placeOf(p) + ": " + strings.ToUpper(r.Code) + ", so that nothing is written: " + strings.TrimPrefix(r.Text, zoneOf(p))
			}
		}
	}
	_, err := fmt.Fprintln(w, printable(text))
	return err
}

// at says a reason with the place it is about, once.
func at(p api.Plan, text string) string {
	return placeOf(p) + ": " + strings.TrimPrefix(text, zoneOf(p))
}

// zoneOf is how a reason names the zone that it is about.
func zoneOf(p api.Plan) string { return p.Zone.Short() + ": " }

// placeOf names the publisher of a plan, and its zone where that was found.
func placeOf(p api.Plan) string { return strings.TrimSuffix(p.Publisher+" "+p.Zone.Short(), " ") }

// relative writes a name without its zone, as zone files do.
func relative(n, zone rota.Name) string {
	if n == zone {
		return "@"
	}
	if zone != "" && zone != "." && n.In(zone) {
		return strings.TrimSuffix(strings.TrimSuffix(n.String(), zone.String()), ".")
	}
	return n.Short()
}

func (a *app) eventsCommand() *cobra.Command {
	var output string
	var follow bool
	var limit int
	c := &cobra.Command{
		Use: "events", Short: "Show what happened, and with -f what happens", Args: cobra.NoArgs,
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json (one event a line)")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	c.Flags().IntVar(&limit, "limit", 20, "begin with at most this many")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := parseFormat(output, formatTable, formatJSON)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		q := url.Values{"limit": {fmt.Sprint(limit)}}
		show := func(b []byte) error { return writeEvent(a.out, b, f) }
		if !follow {
			var l struct {
				Items []json.RawMessage `json:"items"`
			}
			if err := cl.get(cmd.Context(), "/api/v1/events", q, &l); err != nil {
				return err
			}
			for _, b := range l.Items {
				if err := show(b); err != nil {
					return err
				}
			}
			return nil
		}
		return followEvents(cmd.Context(), cl, q, show)
	}
	return c
}

// followEvents shows events until ctx ends; a stream that breaks is taken up where it broke.
func followEvents(ctx context.Context, cl *client, q url.Values, show func([]byte) error) error {
	last := ""
	for {
		err := cl.follow(ctx, q, last, func(id string, data []byte) error {
			last = id
			return show(data)
		})
		var broken *brokenStream
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (last == "" || !errors.As(err, &broken)):
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func writeEvent(w io.Writer, b []byte, f format) error {
	if f == formatJSON {
		_, err := fmt.Fprintf(w, "%s\n", b)
		return err
	}
	var r api.Record
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, printable(fmt.Sprintf("%s  %-6d  %-9s  %s  %s",
		r.Event.At.UTC().Format("2006-01-02T15:04:05Z"), r.Event.Index, r.Event.Kind, cmp.Or(r.Event.Actor, "–"), summary(r))))
	return err
}
