package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

// resource is one thing that `rota get` shows.
type resource struct {
	name, path string
	match      bool                                          // takes MATCH and -l
	limit      bool                                          // takes --limit
	table      func(b []byte, now time.Time) (*table, error) // from the API's answer
	names      func(b []byte) ([]string, error)              // for -o name
}

// listOf makes a resource of a list: how an item becomes a row and a name.
func listOf[T any](name, path string, wide int, head []string, row func(x T, now time.Time) []string, id func(T) string) resource {
	read := func(b []byte) ([]T, error) {
		var l struct {
			Items []T `json:"items"`
		}
		err := json.Unmarshal(b, &l)
		return l.Items, err
	}
	return resource{
		name: name, path: path,
		table: func(b []byte, now time.Time) (*table, error) {
			items, err := read(b)
			t := &table{head: head, wide: wide}
			for _, x := range items {
				t.add(row(x, now)...)
			}
			return t, err
		},
		names: func(b []byte) ([]string, error) {
			items, err := read(b)
			out := make([]string, len(items))
			for i, x := range items {
				out[i] = id(x)
			}
			return out, err
		},
	}
}

func (r resource) matching() resource { r.match = true; return r }
func (r resource) limited() resource  { r.limit = true; return r }

func resources() []resource {
	return []resource{
		listOf("services", "/api/v1/services", 6,
			[]string{"SERVICE", "STATUS", "UP", "ANSWER", "TTL", "CHANGED", "MODE A", "MODE AAAA", "PUBLISH", "ZONE", "LABELS"},
			func(s api.ServiceView, now time.Time) []string {
				return []string{
					s.Service, statusWords(s), fmt.Sprintf("%d/%d", s.Up, s.Endpoints), few(s.Answer, " "), fmt.Sprint(s.TTL), age(s.Changed, now),
					s.ModeA.String(), s.ModeAAAA.String(), strings.Join(s.Publish, " "), s.Zone, labels(s.Labels),
				}
			}, func(s api.ServiceView) string { return s.Service }).matching(),
		listOf("endpoints", "/api/v1/endpoints", 9,
			[]string{"SERVICE", "ENDPOINT", "VERDICT", "VOTES", "SINCE", "STREAK", "LATENCY", "PUBLISHED", "STATE", "WEIGHT", "PRIORITY", "SITE", "STEP", "WHY"},
			endpointRow, func(e api.EndpointView) string { return e.Service + "/" + e.Endpoint.String() }).matching(),
		listOf("checks", "/api/v1/checks", 6,
			[]string{"ADDRESS", "CHECK", "KIND", "VERDICT", "SINCE", "LAST", "INTERVAL", "TIMEOUT", "SERVICES", "TARGET"},
			checkRow, func(c api.CheckView) string { return string(c.Target) }).matching(),
		listOf("vantages", "/api/v1/vantages", 8,
			[]string{
				"VANTAGE", "SITE", "STATE", "KIND", "REPORT", "CHECKS", "AGAINST", "REASON",
				"UP", "DOWN", "DRAINING", "UNKNOWN", "FAILING", "SEQ", "CLOCK", "BYTES", "REFUSED", "LAST REFUSAL", "FROM",
			}, vantageRow, func(v api.VantageView) string { return v.Vantage }),
		{name: "publishers", path: "/api/v1/publishers", table: publisherTable, names: publisherNames},
		listOf("zones", "/api/v1/zones", 5,
			[]string{"ZONE", "PUBLISHER", "STATE", "SERVICES", "WRITTEN", "SERIAL", "SERVERS", "ERROR"},
			func(z api.ZoneView, now time.Time) []string {
				serial := ""
				if z.Serial != 0 {
					serial = fmt.Sprint(z.Serial)
				}
				return []string{z.Zone, z.Publisher, loud(z.State), fmt.Sprint(z.Services), age(z.Written, now), serial, strings.Join(z.Servers, " "), z.Error}
			}, func(z api.ZoneView) string { return z.Zone }),
		listOf("events", "/api/v1/events", 5,
			[]string{"EVENT", "AGE", "KIND", "ACTOR", "WHAT", "TIME"},
			func(r api.Record, now time.Time) []string {
				return []string{
					fmt.Sprint(r.Event.Index), age(r.Event.At, now), string(r.Event.Kind), r.Event.Actor, summary(r), r.Event.At.UTC().Format(time.RFC3339),
				}
			}, func(r api.Record) string { return fmt.Sprint(r.Event.Index) }).limited(),
		listOf("changes", "/api/v1/changes", 7,
			[]string{"EVENT", "AGE", "WHAT", "NAME", "TYPE", "CHANGE", "WHY", "PUBLISHER", "ZONE", "MODE"},
			func(c api.ChangeView, now time.Time) []string {
				return []string{
					fmt.Sprint(c.Event), age(c.At, now), c.What, c.Service, c.Type.String(), moved(c), few(c.Why, "; "),
					c.Publisher, c.Zone, c.Mode.String(),
				}
			}, func(c api.ChangeView) string { return fmt.Sprint(c.Event) }).limited(),
		listOf("instructions", "/api/v1/instructions", 6,
			[]string{"EVENT", "AGE", "WHAT", "ACTOR", "UNTIL", "REASON"},
			func(x rota.Instructed, now time.Time) []string {
				until := "an import"
				if !x.Until.IsZero() {
					until = "in " + span(x.Until.Sub(now))
				}
				return []string{fmt.Sprint(x.Index), age(x.At, now), instructionWords(x.Instruction), x.Actor, until, x.Reason}
			}, func(x rota.Instructed) string { return fmt.Sprint(x.Index) }),
		listOf("overrides", "/api/v1/overrides", 6,
			[]string{"ENDPOINT", "ACTION", "AUTHOR", "SET", "EXPIRES", "REASON"},
			func(o rota.Override, now time.Time) []string {
				return []string{o.Endpoint.String(), loud(string(o.Action)), o.Author, age(o.Set, now), "in " + span(o.Expires.Sub(now)), o.Reason}
			}, func(o rota.Override) string { return o.Endpoint.String() }),
		listOf("registrations", "/api/v1/registrations", 6,
			[]string{"HOST", "ADDRESSES", "SERVICE", "SINCE", "RENEWED", "EXPIRES", "RECORD", "BLOCK", "ACTOR", "PROBLEM"},
			func(r rota.Registered, now time.Time) []string {
				expires := "never"
				if !r.Expires.IsZero() {
					expires = "in " + span(r.Expires.Sub(now))
				}
				return []string{
					r.Host, strings.Join(addressTexts(r.Addresses), " "), r.Service.Short(), age(r.At, now), age(r.Renewed, now), expires, r.Record.Short(), r.Template, r.Actor, r.Problem,
				}
			}, func(r rota.Registered) string { return r.Host }),
	}
}

// heldChanges is what `rota get changes --held` shows.
func heldChanges() resource {
	return listOf("changes", "/api/v1/records", 6,
		[]string{"PUBLISHER", "ZONE", "NAME", "TYPE", "HELD", "WHY"},
		func(r api.RecordView, _ time.Time) []string {
			return []string{r.Publisher, r.Zone.Short(), relative(r.Name, r.Zone), r.Type.String(), delta(r.Data, r.Want), r.Why}
		}, func(r api.RecordView) string { return r.Name.Short() + "/" + r.Type.String() })
}

func endpointRow(e api.EndpointView, now time.Time) []string {
	votes := ""
	if e.Votes.Of > 0 {
		votes = fmt.Sprintf("%d/%d", e.Votes.For, e.Votes.Of)
		if len(e.Votes.Against) > 0 {
			votes += " (" + strings.Join(e.Votes.Against, ", ") + ")"
		}
	}
	streak := ""
	switch {
	case e.Failures > 0:
		streak = fmt.Sprintf("down %d", e.Failures)
	case e.Verdict != rota.Up && e.Successes > 0:
		streak = fmt.Sprintf("up %d", e.Successes)
	}
	latency := took(e.Took)
	if e.Last != rota.Up && e.Last != rota.Draining {
		latency = string(e.Class)
	}
	published := make([]string, len(e.Published))
	for i, p := range e.Published {
		published[i] = p.Publisher
		if p.State != "in" {
			published[i] += " (" + p.State + ")"
		}
	}
	return []string{
		e.Service, e.Endpoint.String(), loud(e.Verdict.String()), votes, age(e.Since, now), streak, latency, strings.Join(published, " "), loud(e.State),
		weightWords(e), fmt.Sprint(e.Priority), e.Site, e.Step.String(), e.Why,
	}
}

// weightWords writes an endpoint's weight, and how much of it counts.
func weightWords(e api.EndpointView) string {
	if e.Share == 0 {
		return fmt.Sprint(e.Weight)
	}
	return fmt.Sprintf("%d (%d %%)", e.Weight, e.Share)
}

func checkRow(c api.CheckView, now time.Time) []string {
	last := ""
	if c.Probes != nil && !c.Probes.Streak.Last.At.IsZero() {
		o := c.Probes.Streak.Last
		last = took(o.Took)
		if o.Status != rota.Up {
			last = o.Reason
		}
		last += " " + age(o.At, now) + " ago"
	}
	return []string{
		c.Address.String(), c.Check, string(c.Kind), loud(c.Verdict.String()), age(c.Since, now), last, c.Interval.String(), c.Timeout.String(),
		strings.Join(c.Services, " "), string(c.Target),
	}
}

func vantageRow(v api.VantageView, now time.Time) []string {
	against, seq, clock, size := "", "", "", ""
	if v.Compared > 0 {
		against = fmt.Sprintf("%d/%d", v.Against, v.Compared)
	}
	if v.Outlier {
		against += " OUTLIER"
	}
	if v.Seq > 0 {
		seq = fmt.Sprint(v.Seq)
	}
	if v.Taken > 0 {
		clock, size = v.Offset.Round(time.Millisecond).String(), fmt.Sprint(v.Bytes)
	}
	var refused []string
	for _, kind := range slices.Sorted(maps.Keys(v.Refused)) {
		refused = append(refused, fmt.Sprintf("%s %d", kind, v.Refused[kind]))
	}
	reason := v.Reason
	if v.Noisy {
		reason = strings.TrimPrefix(fmt.Sprintf("%s; NOISY: %d of the targets that it holds up failed lately", reason, v.Failing), "; ")
	}
	if !v.Twice.IsZero() {
		reason = strings.TrimPrefix(reason+"; ", "; ") + "TWO PROCESSES report under this name, last " + age(v.Twice, now) + " ago"
	}
	return []string{
		v.Vantage, v.Site, loud(v.State), v.Kind, age(v.Report, now), fmt.Sprint(v.Checks), against, reason,
		fmt.Sprint(v.Up), fmt.Sprint(v.Down), fmt.Sprint(v.Draining), fmt.Sprint(v.Unknown), fmt.Sprint(v.Failing), seq, clock, size, strings.Join(refused, ", "), v.LastRefusal, v.From,
	}
}

type publisherList struct {
	Items []api.PublisherStatus `json:"items"`
}

func publisherTable(b []byte, now time.Time) (*table, error) {
	var l publisherList
	err := json.Unmarshal(b, &l)
	t := &table{head: []string{"PUBLISHER", "TYPE", "ZONE", "STATE", "READ", "WRITTEN", "DRIFT", "FAILURES", "EPOCH", "ERROR"}, wide: 8}
	for _, p := range l.Items {
		if len(p.Zones) == 0 {
			t.add(p.Publisher, p.Type, "", "unread", "", "", "", "", "", "")
		}
		for _, z := range p.Zones {
			t.add(p.Publisher, p.Type, z.Zone.Short(), loud(z.State), age(z.Read, now), age(z.Written, now), fmt.Sprint(z.Drift), fmt.Sprint(z.Failures),
				fmt.Sprint(z.Epoch), z.Error)
		}
	}
	return t, err
}

func publisherNames(b []byte) ([]string, error) {
	var l publisherList
	err := json.Unmarshal(b, &l)
	out := make([]string, len(l.Items))
	for i, p := range l.Items {
		out[i] = p.Publisher
	}
	return out, err
}

func labels(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// delta writes what a change took and gave.
func delta(before, after []string) string {
	c := rota.Change{Old: rota.RRset{Data: before}, New: rota.RRset{Data: after}}
	var gone, come []string
	for _, d := range c.Removed() {
		gone = append(gone, "-"+d)
	}
	for _, d := range c.Added() {
		come = append(come, "+"+d)
	}
	return strings.TrimSpace(few(gone, " ") + " " + few(come, " "))
}

// moved writes what a change did: to the answer, or else to how it is made.
func moved(c api.ChangeView) string {
	d := delta(c.Before, c.After)
	if d == "" && c.Was != c.Mode {
		return c.Was.String() + " → " + c.Mode.String()
	}
	return d
}

// summary says in one line what an event did.
func summary(r api.Record) string {
	e := r.Event
	var out []string
	switch e.Kind {
	case rota.EventSpec:
		if e.Spec != nil {
			out = append(out, "configuration of "+count(len(e.Spec.Services), "service"))
		}
	case rota.EventVantages:
		out = append(out, count(len(e.Vantages), "vantage"))
	case rota.EventNodes:
		for _, x := range e.Nodes {
			switch {
			case x.Gone:
				out = append(out, "node "+cmp.Or(x.Name, x.ID)+" is out")
			case x.Site != "" && x.Site != x.Name:
				out = append(out, "node "+x.Name+" in "+x.Site)
			default:
				out = append(out, "node "+x.Name)
			}
		}
	case rota.EventRestore:
		if e.Spec != nil {
			out = append(out, "restored the configuration of "+count(len(e.Spec.Services), "service")+" and "+count(len(e.Overrides), "override"))
		}
		if e.Frozen != nil {
			out = append(out, "FROZEN")
		}
	case rota.EventVerdicts:
		verdicts := make([]string, len(e.Verdicts))
		for i, v := range e.Verdicts {
			verdicts[i] = asked(v.Target) + " " + loud(v.Status.String())
		}
		out = append(out, few(verdicts, "; "))
	case rota.EventOverride:
		for _, o := range e.Overrides {
			out = append(out, loud(string(o.Action))+" "+o.Endpoint.String())
		}
	case rota.EventLift:
		for _, id := range e.Lift {
			out = append(out, "ready "+id.String())
		}
	case rota.EventFreeze:
		out = append(out, "FROZEN: neither verdicts nor time change an answer")
	case rota.EventThaw:
		out = append(out, "thawed")
	case rota.EventInstruct:
		if x := e.Instruction; x != nil {
			out = append(out, instructionWords(*x))
		}
	case rota.EventRegister, rota.EventDeregister:
		for _, x := range e.Registrations {
			what := "out: "
			if e.Kind == rota.EventRegister {
				what = "in: "
			}
			out = append(out, strings.TrimSpace(what+x.Host+" "+strings.Join(addressTexts(x.Addresses), " ")))
		}
	case rota.EventLead:
		if e.Lead != nil {
			out = append(out, fmt.Sprintf("%s leads, term %d", e.Lead.Node, e.Lead.Term))
		}
	case rota.EventPublished:
		if p := e.Published; p != nil {
			for _, c := range p.Changes {
				out = append(out, p.Publisher+" "+c.String())
			}
		}
	}
	for _, t := range r.Transitions {
		if d := delta(t.Before, t.After); d != "" {
			out = append(out, fmt.Sprintf("%s %s %s", t.Service.Short(), t.Type, d))
		}
		if t.Mode != t.Was && (t.Mode.Panic() || t.Was.Panic()) {
			out = append(out, fmt.Sprintf("%s %s %s → %s", t.Service.Short(), t.Type, t.Was, t.Mode))
		}
	}
	if r.Refused != "" {
		out = append(out, "REFUSED: "+r.Refused)
	}
	switch e.Kind {
	case rota.EventOverride, rota.EventLift, rota.EventVantages, rota.EventFreeze, rota.EventThaw, rota.EventInstruct:
		if e.Reason != "" {
			out = append(out, "("+e.Reason+")")
		}
	}
	return strings.Join(out, "; ")
}

// instructionWords says what is asked of publishers.
func instructionWords(x rota.Instruction) string {
	text := string(x.Verb) + " " + cmp.Or(x.Publisher, "every publisher")
	if x.Zone != "" {
		text += " " + x.Zone.Short()
	}
	if x.From != "" {
		text += " from " + x.From
	}
	if x.To != "" {
		text += " to " + x.To
	}
	names := make([]string, len(x.Names))
	for i, n := range x.Names {
		names[i] = n.Short()
	}
	if len(names) > 0 {
		text += ": " + few(names, " ")
	}
	return text
}

func (a *app) getCommand() *cobra.Command {
	all := resources()
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.name
	}
	get := &cobra.Command{
		Use:   "get " + strings.Join(names, "|"),
		Short: "Show things of one kind",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return usagef("get what? %s", strings.Join(names, ", "))
		},
	}
	for _, r := range all {
		get.AddCommand(a.getResource(r))
	}
	return get
}

func (a *app) getResource(r resource) *cobra.Command {
	var output string
	var noHeaders, watch, held bool
	var selector []string
	var limit int
	c := &cobra.Command{
		Use: r.name, Aliases: []string{strings.TrimSuffix(r.name, "s")}, Short: "Show " + r.name, Args: cobra.NoArgs,
		Example: "  rota get " + r.name + "\n  rota get " + r.name + " -o json",
	}
	if r.match {
		c.Use += " [MATCH]"
		c.Args = cobra.MaximumNArgs(1)
		c.Long = "Show " + r.name + ". MATCH is SERVICE, SERVICE/ADDRESS, ADDRESS, site:NAME or label:KEY=VALUE."
		c.Flags().StringArrayVarP(&selector, "selector", "l", nil, "only with the label KEY=VALUE; may be repeated")
	}
	if r.limit {
		c.Flags().IntVar(&limit, "limit", 50, "at most this many, the newest")
	}
	if r.name == "changes" {
		c.Flags().BoolVar(&held, "held", false, "those that a safety limit holds now, of what publishers should write; asks their DNS")
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, wide, json, yaml or name")
	c.Flags().BoolVar(&noHeaders, "no-headers", false, "leave out the line of headers")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show again whenever something happened")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatWide, formatJSON, formatYAML, formatName)
		if err != nil {
			return err
		}
		q := url.Values{}
		if len(args) == 1 {
			q.Set("match", args[0])
		}
		for _, s := range selector {
			if k, _, ok := strings.Cut(s, "="); !ok || k == "" {
				return usagef("-l %q: want KEY=VALUE", s)
			}
			q.Add("label", s)
		}
		what := r
		switch {
		case held:
			what = heldChanges()
			q.Set("state", "held")
		case r.limit:
			q.Set("limit", fmt.Sprint(limit))
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		show := func() error {
			b, err := cl.raw(cmd.Context(), what.path, q)
			if err != nil {
				return err
			}
			return a.writeResource(what, b, f, !noHeaders)
		}
		if err := show(); err != nil || !watch {
			return err
		}
		return a.watch(cmd.Context(), cl, show)
	}
	return c
}

func (a *app) writeResource(r resource, b []byte, f format, headers bool) error {
	w := a.out
	switch f {
	case formatJSON, formatYAML:
		return writeValue(w, b, f)
	case formatName:
		names, err := r.names(b)
		if err != nil {
			return err
		}
		for _, n := range names {
			if _, err := fmt.Fprintln(w, printable(n)); err != nil {
				return err
			}
		}
		return nil
	}
	t, err := r.table(b, a.now())
	if err != nil {
		return err
	}
	return t.write(w, f == formatWide, headers)
}

// watch calls show after every event until ctx ends.
func (a *app) watch(ctx context.Context, cl *client, show func() error) error {
	first := true
	err := cl.follow(ctx, url.Values{"limit": {"1"}}, "", func(string, []byte) error {
		if first { // the newest event is in what was shown already
			first = false
			return nil
		}
		if _, err := fmt.Fprintln(a.out); err != nil {
			return err
		}
		return show()
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
