package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

// asking is the flags of the verbs that ask something of publishers.
type asking struct {
	reason, publisher string
	dryRun, yes       bool
	wait              time.Duration
}

func (q *asking) flags(c *cobra.Command, dry string) {
	c.Flags().BoolVar(&q.dryRun, "dry-run", false, dry)
}

// patience is how long the verbs wait until the DNS says what is wanted, unless told otherwise.
const patience = time.Minute

// place reads PUBLISHER or PUBLISHER/ZONE. The name of a publisher that was written as an address has slashes of its own.
func (c *client) place(ctx context.Context, args []string) (url.Values, error) {
	q := url.Values{}
	if len(args) == 0 {
		return q, nil
	}
	if strings.Trim(args[0], "/") == "" {
		return nil, usagef("which publisher? %q names none; without it all are meant", args[0])
	}
	var l api.List[api.PublisherStatus]
	if err := c.get(ctx, "/api/v1/publishers", nil, &l); err != nil {
		return nil, err
	}
	publisher, zone := args[0], ""
	if !slices.ContainsFunc(l.Items, func(p api.PublisherStatus) bool { return p.Publisher == publisher }) {
		if i := strings.LastIndexByte(args[0], '/'); i >= 0 {
			publisher, zone = args[0][:i], args[0][i+1:]
		}
	}
	q.Set("publisher", publisher)
	if zone != "" {
		q.Set("zone", zone)
	}
	return q, nil
}

func (c *client) plans(ctx context.Context, q url.Values) ([]api.Plan, error) {
	var l api.List[api.Plan]
	err := c.get(ctx, "/api/v1/plan", q, &l)
	return l.Items, err
}

// instruct asks something of publishers.
func (c *client) instruct(ctx context.Context, in api.InstructionRequest) (api.InstructionReply, error) {
	in.Author = author()
	var out api.InstructionReply
	resp, err := c.request(ctx, http.MethodPost, "/api/v1/instructions", nil, in)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// settle looks at plans, ever less often, until there is nothing left to write, only what a person has to decide about stands in the way, or long
// enough.
func (c *client) settle(ctx context.Context, q url.Values, wait time.Duration) ([]api.Plan, error) {
	end := time.Now().Add(wait)
	for next := 250 * time.Millisecond; ; next = min(2*next, 4*time.Second) {
		plans, err := c.plans(ctx, q)
		if err != nil || settled(plans) || time.Now().Add(next).After(end) {
			return plans, err
		}
		if !slices.ContainsFunc(plans, func(p api.Plan) bool { return unsettled(p) && !stopped(p) }) {
			return plans, nil
		}
		if err := pause(ctx, next, nil); err != nil {
			return plans, err
		}
	}
}

func settled(plans []api.Plan) bool { return !slices.ContainsFunc(plans, unsettled) }

func unsettled(p api.Plan) bool { return len(p.Changes) > 0 || p.Error != "" }

// stopped reports whether a person keeps what a plan has to write from being written.
func stopped(p api.Plan) bool { return len(p.Changes) > 0 && codes(p, "frozen", "dry-run") }

// heldNames are the names of which a plan holds changes, sorted.
func heldNames(p api.Plan) []string {
	var out []string
	for _, h := range p.Held {
		out = append(out, h.Change.Key().Name.Short())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// outcome says how plans stand after they were to be written.
func (a *app) outcome(plans []api.Plan) error {
	var open, held, fine []string
	for _, p := range plans {
		where := placeOf(p)
		person := slices.IndexFunc(p.Reasons, func(r api.PlanReason) bool { return r.Code == "frozen" || r.Code == "dry-run" })
		switch {
		case person >= 0 && len(p.Changes) > 0:
			held = append(held, at(p, p.Reasons[person].Text))
		case p.Error != "":
			open = append(open, at(p, p.Error))
		case len(p.Changes) > 0:
			open = append(open, fmt.Sprintf("%s: %s not written yet", where, count(len(p.Changes), "change")))
		case codes(p, "released"):
			fine = append(fine, where+": released, so that nothing is written")
		case len(p.Held) > 0:
			held = append(held, fmt.Sprintf("%s: %s held: %s", where, count(len(p.Held), "change"), p.Held[0].Why))
		default:
			fine = append(fine, where+": in step")
		}
	}
	for _, line := range fine {
		if _, err := fmt.Fprintln(a.out, printable(line)); err != nil {
			return err
		}
	}
	switch {
	case len(open) > 0:
		return &coded{exitFailed, errors.New("not in step: " + strings.Join(append(open, held...), "\n"))}
	case len(held) > 0:
		return &coded{exitHeld, errors.New(strings.Join(held, "\n"))}
	}
	return nil
}

// namesAtOnce bounds the names of one request.
const namesAtOnce = 5000

func (a *app) applyCommand() *cobra.Command {
	var q asking
	var force bool
	var life string
	c := &cobra.Command{
		Use: "apply [PUBLISHER[/ZONE]]", Short: "Have publishers look now, and release what safety limits hold", Args: cobra.MaximumNArgs(1),
		Long: "Show what publishers would write, have them look now, and wait until the DNS says it. What a safety limit holds stays held, and the\n" +
			"command ends with 4; with --force exactly the names shown as held may be written for a while, however the state moves meanwhile.",
		Example: "  rota apply\n  rota apply bind/example.org --force --reason 'site ams is being moved'",
	}
	c.Flags().BoolVar(&force, "force", false, "release what is shown as held; needs --reason")
	c.Flags().StringVar(&q.reason, "reason", "", "why; required with --force")
	c.Flags().StringVar(&life, "for", "10m", "how long what is released may be written, at most 24h")
	c.Flags().DurationVar(&q.wait, "wait", patience, "how long to wait until the DNS says it")
	c.Flags().BoolVar(&q.yes, "yes", false, "do not ask")
	q.flags(c, "show what would be asked, and ask nothing")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if force && strings.TrimSpace(q.reason) == "" {
			return usagef("say why with --reason: others will ask")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		where, err := cl.place(cmd.Context(), args)
		if err != nil {
			return err
		}
		plans, err := cl.plans(cmd.Context(), where)
		if err != nil {
			return err
		}
		if err := writePlan(a.out, plans); err != nil {
			return err
		}
		var asks []api.InstructionRequest
		names := 0
		for _, p := range plans {
			held := heldNames(p)
			names += len(held)
			for part := range slices.Chunk(held, namesAtOnce) {
				asks = append(asks, api.InstructionRequest{
					Verb: string(rota.VerbApply), Publisher: p.Publisher, Zone: p.Zone.Short(), Names: part, For: life, Reason: q.reason,
				})
			}
		}
		switch {
		case force && len(asks) == 0:
			if _, err := fmt.Fprintln(a.out, "Nothing is held."); err != nil {
				return err
			}
			fallthrough
		case !force:
			asks = []api.InstructionRequest{{
				Verb: string(rota.VerbApply), Publisher: where.Get("publisher"), Zone: where.Get("zone"), Reason: cmp.Or(q.reason, "look now"),
			}}
		case !q.yes && !q.dryRun:
			if err := a.confirm(fmt.Sprintf("What is held of %s is released for %s.", count(names, "name"), life), "release"); err != nil {
				return err
			}
		}
		if q.dryRun {
			return a.dry(asks)
		}
		for _, in := range asks {
			if _, err := cl.instruct(cmd.Context(), in); err != nil {
				return err
			}
		}
		if plans, err = cl.settle(cmd.Context(), where, q.wait); err != nil {
			return err
		}
		return a.outcome(plans)
	}
	return c
}

// dry says what would be asked.
func (a *app) dry(asks []api.InstructionRequest) error {
	for _, in := range asks {
		of := strings.Trim(in.Publisher+"/"+in.Zone, "/")
		text := "would ask: " + in.Verb + " " + cmp.Or(of, "every publisher")
		for _, x := range []struct{ word, value string }{{"from", in.From}, {"to", in.To}, {"of", few(in.Names, " ")}} {
			if x.value != "" {
				text += " " + x.word + " " + x.value
			}
		}
		if _, err := fmt.Fprintln(a.out, printable(text)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) refreshCommand() *cobra.Command {
	var q asking
	c := &cobra.Command{
		Use: "refresh NAME", Short: "Make a name as wanted at once: add the live, then delete the rest", Args: cobra.ExactArgs(1),
		Long: "Have publishers look at a name at once and make it as wanted in two steps: first all that should be there is added, and when that is read\n" +
			"back the rest is deleted. Of a name that is as wanted nothing is written.",
	}
	c.Flags().StringVar(&q.reason, "reason", "", "why")
	c.Flags().StringVar(&q.publisher, "publisher", "", "only this one")
	q.flags(c, "show what would be asked, and ask nothing")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var d api.ServiceDetail
		if err := cl.get(cmd.Context(), "/api/v1/services/"+url.PathEscape(args[0]), nil, &d); err != nil {
			return err
		}
		in := api.InstructionRequest{
			Verb: string(rota.VerbRefresh), Publisher: q.publisher, Names: []string{d.Service.Service}, Reason: cmp.Or(q.reason, "refresh"),
		}
		if q.dryRun {
			return a.dry([]api.InstructionRequest{in})
		}
		done, err := cl.instruct(cmd.Context(), in)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "asked, event %d: %s is looked at at once; what should be there is added first, then the rest is deleted\n", done.Event, d.Service.Service)
		return err
	}
	return c
}

// planOf finds the plan of a zone, of the publisher that is named or of the only one that has it.
func (c *client) planOf(ctx context.Context, publisher, zone string) (api.Plan, error) {
	if zone == "" {
		return api.Plan{}, usagef("which zone? an empty name is none")
	}
	q := url.Values{"zone": {zone}}
	if publisher != "" {
		q.Set("publisher", publisher)
	}
	plans, err := c.plans(ctx, q)
	if err != nil {
		return api.Plan{}, err
	}
	plans = slices.DeleteFunc(plans, func(p api.Plan) bool { return p.Zone == "" })
	if len(plans) > 1 {
		var names []string
		for _, p := range plans {
			names = append(names, p.Publisher)
		}
		return api.Plan{}, usagef("%s is kept by several publishers: say which with --publisher, of %s", zone, strings.Join(names, ", "))
	}
	return plans[0], nil
}

// codes reports whether one of a plan's reasons has one of the codes.
func codes(p api.Plan, any ...string) bool {
	return slices.ContainsFunc(p.Reasons, func(r api.PlanReason) bool { return slices.Contains(any, r.Code) })
}

// whole shows all of a zone that somebody wants to take over or to give up, who has to say why.
func (a *app) whole(ctx context.Context, q asking, zone string) (*client, api.Plan, error) {
	if strings.TrimSpace(q.reason) == "" && !q.dryRun {
		return nil, api.Plan{}, usagef("say why with --reason: others will ask")
	}
	cl, err := a.client()
	if err != nil {
		return nil, api.Plan{}, err
	}
	p, err := cl.planOf(ctx, q.publisher, zone)
	if err != nil {
		return nil, api.Plan{}, err
	}
	return cl, p, a.showWhole(p)
}

// order asks of publishers what in says, after the question was answered. It returns nil in a dry run.
func (a *app) order(ctx context.Context, cl *client, q asking, in api.InstructionRequest, question string) (*api.InstructionReply, error) {
	if q.dryRun {
		return nil, a.dry([]api.InstructionRequest{in})
	}
	if !q.yes {
		if err := a.confirm(question, in.Verb); err != nil {
			return nil, err
		}
	}
	done, err := cl.instruct(ctx, in)
	return &done, err
}

func (a *app) importCommand() *cobra.Command {
	var q asking
	var from string
	c := &cobra.Command{
		Use: "import ZONE --reason TEXT", Short: "Take over a zone, or records in it, that stand there already", Args: cobra.ExactArgs(1),
		Long: "Show who owns a zone, what stands there and what would become of it, and take it over: from the owner named by --from, who must have\n" +
			"offered it or be the one whose fence record stands there; after `rota release`; and with a registry the records that nobody owns.",
	}
	c.Flags().StringVar(&from, "from", "", "the owner that it is taken from")
	c.Flags().StringVar(&q.publisher, "publisher", "", "which one, when several have the zone")
	c.Flags().StringVar(&q.reason, "reason", "", "why; required")
	c.Flags().DurationVar(&q.wait, "wait", patience, "how long to wait until it is done")
	c.Flags().BoolVar(&q.yes, "yes", false, "do not ask")
	q.flags(c, "show what would become of it, and ask nothing")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cl, p, err := a.whole(cmd.Context(), q, args[0])
		if err != nil {
			return err
		}
		if !codes(p, "conflict", "not-owned", "released") && p.Offer == "" {
			_, err := fmt.Fprintln(a.out, "Nothing is to be taken over.")
			return err
		}
		if codes(p, "conflict") && from == "" && p.Offer == "" {
			return &coded{exitHeld, errors.New("somebody else owns the zone: name the owner that it is taken from with --from")}
		}
		in := api.InstructionRequest{Verb: string(rota.VerbImport), Publisher: p.Publisher, Zone: p.Zone.Short(), From: from, Reason: q.reason}
		question := fmt.Sprintf("%s %s is taken over, and written as shown.", p.Publisher, p.Zone.Short())
		done, err := a.order(cmd.Context(), cl, q, in, question)
		if done == nil || err != nil {
			return err
		}
		plans, err := cl.settle(cmd.Context(), url.Values{"publisher": {p.Publisher}, "zone": {p.Zone.Short()}}, q.wait)
		if err != nil {
			return err
		}
		return a.outcome(plans)
	}
	return c
}

// showWhole shows all of a zone that a publisher has to do with: its owner, what stays and what changes, and why not.
func (a *app) showWhole(p api.Plan) error {
	if err := writePlan(a.out, []api.Plan{p}); err != nil {
		return err
	}
	var b strings.Builder
	switch {
	case p.Offer != "":
		fmt.Fprintf(&b, "The zone is owned by %q, who offers it to %q.\n", p.Owner, p.Offer)
	case p.Owner != "":
		fmt.Fprintf(&b, "The zone is owned by %q.\n", p.Owner)
	}
	for _, r := range p.Reasons {
		if r.Code != "released" { // the plan says that
			fmt.Fprintf(&b, "%s: %s\n", r.Code, r.Text)
		}
	}
	_, err := fmt.Fprint(a.out, printable(b.String()))
	return err
}

func (a *app) releaseCommand() *cobra.Command {
	var q asking
	var to string
	c := &cobra.Command{
		Use: "release ZONE --reason TEXT", Short: "Stop keeping a zone; its records stay", Args: cobra.ExactArgs(1),
		Long: "Stop keeping a zone, until `rota import`: its records stay as they are, and rota writes there no more. With --to it is offered to\n" +
			"another owner, who takes it by `rota import --from`; nobody else can meanwhile.",
	}
	c.Flags().StringVar(&to, "to", "", "the owner that it is offered to")
	c.Flags().StringVar(&q.publisher, "publisher", "", "which one, when several have the zone")
	c.Flags().StringVar(&q.reason, "reason", "", "why; required")
	c.Flags().BoolVar(&q.yes, "yes", false, "do not ask")
	q.flags(c, "show what would be given up, and ask nothing")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cl, p, err := a.whole(cmd.Context(), q, args[0])
		if err != nil {
			return err
		}
		if to != "" && p.Owner == "" {
			return fmt.Errorf("nobody owns %s, so that it cannot be offered: whoever comes first has it; `rota import` takes it back first", p.Zone.Short())
		}
		in := api.InstructionRequest{Verb: string(rota.VerbRelease), Publisher: p.Publisher, Zone: p.Zone.Short(), To: to, Reason: q.reason}
		question := fmt.Sprintf("%s %s is given up: its records stay as they stand there, also when endpoints die.", p.Publisher, p.Zone.Short())
		done, err := a.order(cmd.Context(), cl, q, in, question)
		if done == nil || err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "released, event %d; `rota import %s` takes it back\n", done.Event, p.Zone.Short())
		return err
	}
	return c
}

// recordsCommand shows what rota keeps in zones, or with drift what of it is not as it should be.
func (a *app) recordsCommand(drift bool) *cobra.Command {
	var output, publisher string
	var detailed bool
	c := &cobra.Command{
		Use: "records [ZONE]", Short: "Show the records that rota keeps, as they stand in the DNS", Args: cobra.MaximumNArgs(1),
		Long: "Ask the DNS for the records that rota keeps there. in-step: as wanted; pending: about to be written; HELD: a safety limit keeps it;\n" +
			"DRIFT: rota wrote what is wanted, and somebody changed it since.",
	}
	path := "/api/v1/records"
	if drift {
		path = "/api/v1/drift"
		c.Use, c.Short = "drift [ZONE]", "Show the records that are not as they should be"
		c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 3 when there are some")
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, wide, json or yaml")
	c.Flags().StringVar(&publisher, "publisher", "", "only this one's")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatWide, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		q := url.Values{}
		if len(args) > 0 {
			q.Set("zone", args[0])
		}
		if publisher != "" {
			q.Set("publisher", publisher)
		}
		b, err := cl.raw(cmd.Context(), path, q)
		if err != nil {
			return err
		}
		var l api.RecordList
		if err := json.Unmarshal(b, &l); err != nil {
			return err
		}
		switch {
		case f == formatJSON || f == formatYAML:
			err = writeValue(a.out, b, f)
		case len(l.Items) > 0 || !drift:
			err = recordTable(l.Items, a.now()).write(a.out, f == formatWide || drift, true)
		case len(l.Unread) == 0:
			_, err = fmt.Fprintln(a.out, "Every record that rota keeps is as it should be.")
		}
		switch {
		case err != nil:
			return err
		case len(l.Unread) > 0:
			var texts []string
			for _, u := range l.Unread {
				texts = append(texts, strings.TrimSuffix(u.Publisher+" "+u.Zone.Short(), " ")+": "+u.Error)
			}
			return &coded{exitFailed, errors.New(strings.Join(texts, "\n"))}
		case detailed && len(l.Items) > 0:
			return &coded{code: exitFound}
		}
		return nil
	}
	return c
}

func recordTable(items []api.RecordView, now time.Time) *table {
	t := &table{head: []string{"PUBLISHER", "ZONE", "NAME", "TYPE", "STATE", "TTL", "DATA", "WRITTEN", "WANTED", "WHY"}, wide: 8}
	for _, r := range items {
		want := ""
		if r.State != "in-step" {
			want = cmp.Or(few(r.Want, " "), "nothing")
		}
		t.add(r.Publisher, r.Zone.Short(), relative(r.Name, r.Zone), r.Type.String(), loud(r.State), fmt.Sprint(r.TTL),
			cmp.Or(few(r.Data, " "), "nothing"), age(r.Written, now), want, r.Why)
	}
	return t
}

func (a *app) freezeCommand() *cobra.Command {
	var reason string
	var here, dryRun bool
	c := &cobra.Command{
		Use: "freeze --reason TEXT", Short: "Stop everything automatic, also without a leader and without a network", Args: cobra.NoArgs,
		Long: "Stop everything automatic until `rota thaw`: neither verdicts nor time change an answer; what people say of endpoints (drain, force and\n" +
			"so on) and edits of the configuration still do.\n" +
			"The command first writes the file " + freezeFile + " into the data directory, which needs nobody: within a second this node publishes nothing,\n" +
			"and its name server's answers stand. Then it tells the cluster, and when that worked, the file has done its work and goes. It ends\n" +
			"with 0 when this node is frozen, by either. A node that is named by --addr=https://… writes its file itself.",
	}
	c.Flags().StringVar(&reason, "reason", "", "why; required")
	c.Flags().BoolVar(&here, "here", false, "only this node, and not the cluster")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be frozen, and freeze nothing")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.TrimSpace(reason) == "" && !dryRun {
			return usagef("say why with --reason: others will ask")
		}
		file, ferr := a.ownFile()
		if dryRun {
			return a.dryFreeze(file, here)
		}
		said := func(format string, args ...any) error {
			_, err := fmt.Fprintln(a.out, printable(fmt.Sprintf(format, args...)))
			return err
		}
		if ferr == nil {
			ferr = writeFreeze(filepath.Dir(file), ownFreeze{rota.Freeze{
				At: a.now().UTC().Round(0), Actor: cmp.Or(author(), "somebody"), Reason: rota.CleanReason("%s", strings.TrimSpace(reason)),
			}, here})
		}
		if ferr == nil {
			if err := said("this node: FROZEN by %s", file); err != nil {
				return err
			}
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		var out api.FreezeView
		if resp, e := cl.request(cmd.Context(), http.MethodPost, "/api/v1/freeze", nil, api.FreezeRequest{Reason: reason, Author: author(), Here: here}); e != nil {
			err = e
		} else {
			err = json.NewDecoder(resp.Body).Decode(&out)
			_ = resp.Body.Close()
		}
		switch {
		case err != nil && ferr == nil:
			// The node is frozen as soon as it looks, or when it starts; that is what is asked for most.
			return said("the cluster: NOT TOLD: %v", err)
		case err != nil:
			return fmt.Errorf("%w; nor could the command freeze this node by itself: %w", err, ferr)
		}
		if ferr != nil && out.Node != nil {
			if err := said("this node: FROZEN"); err != nil {
				return err
			}
		}
		switch {
		case out.Cluster != nil:
			return said("the cluster: FROZEN, event %d", out.Event)
		case here:
			return nil
		}
		return said("the cluster: NOT TOLD: %s\nFreeze it on other nodes, too, or again when there is a leader.", out.Trouble)
	}
	return c
}

// ownFile is where the file that freezes this machine's node is; an error, when a node elsewhere is meant or none is known here.
func (a *app) ownFile() (string, error) {
	var dir string
	var guess error
	if addr := cmp.Or(a.addr, a.getenv("ROTA_ADDR")); addr == "" {
		dir, guess = a.dataDirectory()
	} else if path, local := strings.CutPrefix(addr, "unix://"); local && filepath.Base(path) == api.SocketName {
		dir = filepath.Dir(path)
	} else {
		return "", errors.New("another node was named by --addr")
	}
	_, err := os.Stat(filepath.Join(dir, api.SocketName))
	if err != nil && guess != nil {
		return "", guess
	}
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, freezeFile), nil
}

func (a *app) dryFreeze(file string, here bool) error {
	var parts []string
	if file != "" {
		parts = append(parts, "this node by "+file)
	}
	if !here {
		parts = append(parts, "the cluster by an event")
	}
	_, err := fmt.Fprintln(a.out, printable("would freeze "+strings.Join(parts, ", and ")))
	return err
}

func (a *app) thawCommand() *cobra.Command {
	var reason string
	var here, dryRun bool
	c := &cobra.Command{
		Use: "thaw", Short: "End a freeze, of this node and of the cluster", Args: cobra.NoArgs,
		Long: "End a freeze, of this node and of the cluster: everything is decided anew, from what is known today.",
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().BoolVar(&here, "here", false, "only this node, and not the cluster")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what is frozen, and change nothing")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if dryRun {
			var out api.FreezeView
			if err := cl.get(cmd.Context(), "/api/v1/freeze", nil, &out); err != nil {
				return err
			}
			var b strings.Builder
			freezeLines(&b, &out)
			_, err := fmt.Fprint(a.out, printable(cmp.Or(b.String(), "Nothing is frozen.\n")))
			return err
		}
		q := url.Values{"author": {author()}}
		if reason != "" {
			q.Set("reason", reason)
		}
		if here {
			q.Set("here", "true")
		}
		resp, err := cl.request(cmd.Context(), http.MethodDelete, "/api/v1/freeze", q, nil)
		if err != nil {
			return a.thawAlone(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var out api.FreezeView
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			return err
		}
		switch {
		case out.Node != nil:
			return fmt.Errorf("this node is %s, still: %s", out.Node, out.Trouble)
		case out.Cluster != nil && !here:
			return &coded{exitNoLeader, fmt.Errorf("the cluster is %s, still: %s", out.Cluster, out.Trouble)}
		case out.Trouble != "":
			_, err = fmt.Fprintln(a.out, printable("this node: thawed\nthe cluster: NOT TOLD: "+out.Trouble))
			return err
		}
		_, err = fmt.Fprintln(a.out, "thawed")
		return err
	}
	return c
}

// thawAlone takes the file away where no node answers.
func (a *app) thawAlone(why error) error {
	var c *coded
	if errors.As(why, &c) { // it answered
		return why
	}
	file, err := a.ownFile()
	if err != nil {
		return why
	}
	if _, err := os.Stat(file); err != nil {
		return why
	}
	if err := removeFreeze(filepath.Dir(file)); err != nil {
		return errors.Join(why, err)
	}
	_, err = fmt.Fprintln(a.out, printable(fmt.Sprintf("this node: thawed, %s is gone\nthe cluster: NOT TOLD: %v", file, why)))
	return err
}

// freezeLines says loudly what is frozen.
func freezeLines(b *strings.Builder, f *api.FreezeView) {
	loudly := func(x *rota.Freeze) string { return strings.Replace(x.String(), "frozen", "FROZEN", 1) }
	if f.Cluster != nil {
		fmt.Fprintf(b, "%s\n  neither verdicts nor time change an answer; `rota thaw` ends that\n", loudly(f.Cluster))
	}
	if f.Node != nil {
		fmt.Fprintf(b, "this node alone: %s\n  it publishes nothing, and its name server's answers stand; `rota thaw` on it ends that\n", loudly(f.Node))
	}
}
