package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
)

const clusterPath = "/api/v1/cluster"

func (a *app) clusterCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "cluster", Short: "Look after a cluster of rotas", Args: cobra.NoArgs,
		Long: "Look after a cluster of rotas. Any node takes these and hands them to whom they concern.",
		RunE: func(*cobra.Command, []string) error { return usagef("cluster what? `rota cluster --help` lists it") },
	}
	c.AddCommand(
		a.bootstrapCommand(), a.joinCommand(), a.recoverCommand(),
		a.clusterStatusCommand(), a.tokenCommand(), a.tokensCommand(), a.addCommand(),
		a.memberCommand(api.OpPromote, "promote NODE", "Give a node a vote",
			"Give a node a vote. It must answer and have caught up."),
		a.memberCommand(api.OpDemote, "demote NODE", "Take a node's vote",
			"Take a node's vote. It goes on: it probes, answers queries and is sent everything.\nRefused when no majority of the voters would be left that answers."),
		a.memberCommand(api.OpRemove, "remove NODE", "Take a node out of the cluster, for good",
			"Take a node out of the cluster. It comes back only with an empty data directory, as a new node.\nRefused when no majority of the voters would be left that answers."),
		a.memberCommand(api.OpTransfer, "transfer [NODE]", "Hand over leadership",
			"Hand over leadership to NODE, or to any node that is fit."),
		a.memberCommand(api.OpLeave, "leave", "Take the node that is asked out of the cluster, for good",
			"Take the node that is asked out of the cluster: the one on this machine, or that of --addr. It comes back only with an\n"+
				"empty data directory, as a new node."),
		a.verifyCommand(), a.snapshotCommand(),
	)
	return c
}

// ask sends a request without a body, or with one in JSON, and reads the answer into out.
func (a *app) ask(cmd *cobra.Command, method, path string, q url.Values, in, out any) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	resp, err := cl.request(cmd.Context(), method, clusterPath+path, q, in)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(out); err != nil {
		return fmt.Errorf("%s%s answers what this version of the command cannot read: %w", cl.where, clusterPath+path, err)
	}
	return nil
}

// outputFlag adds -o to a verb and returns what reads it.
func outputFlag(c *cobra.Command, allowed ...format) func() (format, error) {
	output := c.Flags().StringP("output", "o", string(formatTable), "table, json or yaml")
	words := make([]string, len(allowed))
	for i, f := range allowed {
		words[i] = string(f)
	}
	if n := len(words); n > 1 {
		c.Flags().Lookup("output").Usage = strings.Join(words[:n-1], ", ") + " or " + words[n-1]
	}
	return func() (format, error) { return parseFormat(*output, allowed...) }
}

// structured writes a value as JSON or YAML and reports whether the format is one of the two.
func (a *app) structured(f format, v any) (bool, error) {
	switch f {
	case formatJSON:
		return true, writeJSON(a.out, v)
	case formatYAML:
		return true, writeYAML(a.out, v)
	}
	return false, nil
}

func (a *app) clusterStatusCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show the nodes of the cluster and who leads", Args: cobra.NoArgs,
		Long: "Show the nodes of the cluster and who leads, as the node that is asked knows it. Only the leader knows when the others\n" +
			"were last heard and how far they trail. It ends with 5 when there is no leader.",
	}
	output := outputFlag(c, formatTable, formatWide, formatJSON, formatYAML)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := output()
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		cl.stale = nil // it is in the answer
		b, err := cl.raw(cmd.Context(), clusterPath, nil)
		if err != nil {
			return err
		}
		var s api.ClusterStatus
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		done, err := a.structured(f, json.RawMessage(b))
		if !done {
			err = a.writeCluster(&s, f == formatWide)
		}
		if err == nil && s.Leader == "" {
			err = &coded{code: exitNoLeader}
		}
		return err
	}
	return c
}

func (a *app) writeCluster(s *api.ClusterStatus, wide bool) error {
	var b strings.Builder
	if s.Cluster != "" {
		fmt.Fprintf(&b, "cluster %s, ", s.Cluster)
	}
	fmt.Fprintf(&b, "leader %s, term %d, event %d\n", cmp.Or(s.Leader, "NONE"), s.Term, s.Applied)
	fmt.Fprintf(&b, "asked: %s, %s\n", s.Node, s.Raft)
	if !s.Since.IsZero() {
		fmt.Fprintf(&b, "STALE: %s\n", staleWords(s.Since, a.now()))
	}
	warnings(&b, s)
	if _, err := io.WriteString(a.out, printable(b.String())); err != nil || len(s.Members) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(a.out); err != nil {
		return err
	}
	return memberTable(s.Members).write(a.out, wide, true)
}

// warnings writes what is wrong with a node.
func warnings(b *strings.Builder, s *api.ClusterStatus) {
	if s.Removed {
		b.WriteString("REMOVED: the cluster goes on without this node\n")
	}
	if s.Behind > 0 {
		fmt.Fprintf(b, "BEHIND: %d entries are ordered and not in this node's state yet\n", s.Behind)
	}
	for _, t := range s.Trouble {
		fmt.Fprintf(b, "TROUBLE: %s\n", t)
	}
}

func memberTable(members []api.ClusterMember) *table {
	t := &table{head: []string{"NODE", "SITE", "ADDRESS", "ROLE", "CONTACT", "TRAILING", "ID"}, wide: 6}
	for _, m := range members {
		contact, trailing := "", ""
		switch {
		case m.Self:
			contact = "asked"
		case m.LastContact >= 0:
			contact = took(max(m.LastContact, 1))
		}
		if m.LastContact >= 0 {
			trailing = fmt.Sprint(m.Trailing)
		}
		t.add(cmp.Or(m.Name, m.ID), m.Site, m.Address, memberRole(m), contact, trailing, m.ID)
	}
	return t
}

func memberRole(m api.ClusterMember) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Voter:
		return "voter"
	}
	return "nonvoter"
}

// changed shows what became of a change of the members.
func (a *app) changed(f format, r api.ClusterChanged) error {
	if done, err := a.structured(f, r); done {
		return err
	}
	var b strings.Builder
	switch r.Op {
	case api.OpAdd:
		role := "member" // of which this node has not heard yet
		for _, m := range r.Members {
			if m.Name == r.Node || m.ID == r.Node {
				role = memberRole(m)
			}
		}
		fmt.Fprintf(&b, "%s is in the cluster, as %s\n", r.Node, role)
	case api.OpPromote:
		fmt.Fprintf(&b, "%s has a vote\n", r.Node)
	case api.OpDemote:
		fmt.Fprintf(&b, "%s has no vote\n", r.Node)
	case api.OpRemove, api.OpLeave:
		fmt.Fprintf(&b, "%s is out of the cluster\n", cmp.Or(r.Node, "the node"))
	case api.OpTransfer:
		if r.Leader == "" {
			b.WriteString("leadership was handed over; `rota cluster status` shows who leads when that is settled\n")
		} else {
			fmt.Fprintf(&b, "%s leads\n", r.Leader)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(&b, n)
	}
	_, err := io.WriteString(a.out, printable(b.String()))
	return err
}

func (a *app) addCommand() *cobra.Command {
	var req api.MemberRequest
	c := &cobra.Command{
		Use: "add NAME|ID ADDRESS", Short: "Take a node in that waits", Args: cobra.ExactArgs(2),
		Long: "Take a node in that waits, or say that a member has another address. ADDRESS is host:port, where the others reach it.\n" +
			"It says itself what it is called and where it stands. It gets its vote when it answers and has caught up.",
		Example: "  rota cluster add fra1 fra1.example.org:3648\n  rota cluster add fra1 192.0.2.7:3648 --nonvoter",
	}
	c.Flags().BoolVar(&req.Nonvoter, "nonvoter", false, "without a vote: it is sent everything, probes and answers")
	output := outputFlag(c, formatTable, formatJSON, formatYAML)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := output()
		if err != nil {
			return err
		}
		req.Node, req.Address, req.Author = args[0], args[1], author()
		var r api.ClusterChanged
		if err := a.ask(cmd, http.MethodPost, "/members", nil, req, &r); err != nil {
			return err
		}
		return a.changed(f, r)
	}
	return c
}

// memberCommand is a verb about a node that needs no more than its name.
func (a *app) memberCommand(op api.ClusterOp, use, short, long string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1)}
	switch op {
	case api.OpTransfer:
		c.Args = cobra.MaximumNArgs(1)
	case api.OpLeave:
		c.Args = cobra.NoArgs
	}
	output := outputFlag(c, formatTable, formatJSON, formatYAML)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := output()
		if err != nil {
			return err
		}
		method, path, q := http.MethodPost, "/"+string(op), url.Values{"author": {author()}}
		switch {
		case op == api.OpTransfer && len(args) == 1:
			q.Set("to", args[0])
		case op == api.OpRemove:
			method, path = http.MethodDelete, "/members/"+url.PathEscape(args[0])
		case op == api.OpPromote, op == api.OpDemote:
			path = "/members/" + url.PathEscape(args[0]) + path
		}
		var r api.ClusterChanged
		if err := a.ask(cmd, method, path, q, nil, &r); err != nil {
			return err
		}
		return a.changed(f, r)
	}
	return c
}

func (a *app) tokenCommand() *cobra.Command {
	req := api.TokenRequest{Role: "node"}
	c := &cobra.Command{
		Use: "token", Short: "Make a token that lets a newcomer in", Args: cobra.NoArgs,
		Long: "Make a token that lets a newcomer in: a node, or with --agent an agent. It is shown this once, on the standard output;\n" +
			"whoever has it may come in, so that it belongs into a pipe or a file that nobody else reads.",
		Example: "  rota cluster token\n  rota cluster token --agent berlin --for 30m\n  rota cluster token revoke 4kq2v7",
	}
	c.Flags().StringVar(&req.Name, "agent", "", "for the agent of this name, instead of for a node")
	c.Flags().StringVar(&req.For, "for", "", "how long it lets somebody in, such as 30m or 2d (default 1h)")
	c.Flags().IntVar(&req.Uses, "uses", 1, "how many may come with it")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("agent") {
			req.Role = "agent"
		}
		if req.Role == "agent" && req.Name == "" {
			return usagef("--agent: name the agent")
		}
		if req.Uses < 1 {
			return usagef("--uses %d: want 1 or more", req.Uses)
		}
		req.Author = author()
		var r api.TokenReply
		if err := a.ask(cmd, http.MethodPost, "/tokens", nil, req, &r); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.out, printable(r.Token)); err != nil {
			return err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "token %s lets %s in until %s\n", r.ID, newcomers(req), r.Expires.UTC().Format("2006-01-02 15:04:05Z"))
		for _, n := range r.Notes {
			fmt.Fprintln(&b, n)
		}
		_, err := io.WriteString(a.err, printable(b.String()))
		return err
	}
	c.AddCommand(a.revokeCommand())
	return c
}

func newcomers(r api.TokenRequest) string {
	switch {
	case r.Role == "agent" && r.Uses == 1:
		return "the agent " + r.Name
	case r.Role == "agent":
		return fmt.Sprintf("the agent %s %d times", r.Name, r.Uses)
	case r.Uses == 1:
		return "one node"
	}
	return fmt.Sprintf("%d nodes", r.Uses)
}

func (a *app) revokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "End a token", Args: cobra.ExactArgs(1),
		Long: "End a token. Who came in with it stays; `rota cluster remove` takes a node out.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var r api.RevokeReply
			if err := a.ask(cmd, http.MethodDelete, "/tokens/"+url.PathEscape(args[0]), url.Values{"author": {author()}}, nil, &r); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "token %s lets nobody in\n", printable(r.ID))
			return err
		},
	}
}

func (a *app) tokensCommand() *cobra.Command {
	c := &cobra.Command{Use: "tokens", Short: "Show the tokens that are kept", Args: cobra.NoArgs}
	output := outputFlag(c, formatTable, formatWide, formatJSON, formatYAML, formatName)
	r := listOf("tokens", clusterPath+"/tokens", 6,
		[]string{"TOKEN", "ROLE", "NAME", "STATE", "EXPIRES", "USED", "CREATED", "BY", "NODE", "NOTE"},
		func(t api.TokenView, now time.Time) []string {
			by := make([]string, len(t.Used))
			for i, u := range t.Used {
				by[i] = u.By
			}
			expires := "in " + span(t.Expires.Sub(now))
			if !now.Before(t.Expires) {
				expires = age(t.Expires, now) + " ago"
			}
			return []string{
				t.ID, t.Role, t.Name, t.State, expires, fmt.Sprintf("%d/%d", len(t.Used), t.Uses),
				age(t.Created, now), few(by, ", "), t.Node, t.Note,
			}
		}, func(t api.TokenView) string { return t.ID })
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := output()
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		b, err := cl.raw(cmd.Context(), r.path, nil)
		if err != nil {
			return err
		}
		return a.writeResource(r, b, f, true)
	}
	return c
}

func (a *app) verifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "verify", Short: "Ask every node how it is", Args: cobra.NoArgs,
		Long: "Ask every node how it is: whether it answers, has caught up, holds the same state as the others, how its clock stands\n" +
			"and how long its certificate lasts. It ends with 1 when there is a problem.",
	}
	output := outputFlag(c, formatTable, formatJSON, formatYAML)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := output()
		if err != nil {
			return err
		}
		var v api.ClusterVerification
		if err := a.ask(cmd, http.MethodGet, "/verify", nil, nil, &v); err != nil {
			return err
		}
		done, err := a.structured(f, v)
		if !done {
			err = a.writeVerification(v)
		}
		if err == nil && !v.OK {
			err = &coded{code: exitFailed}
		}
		return err
	}
	return c
}

func (a *app) writeVerification(v api.ClusterVerification) error {
	t := &table{head: []string{"NODE", "ROLE", "ANSWERS", "BEHIND", "STATE", "CLOCK", "CERTIFICATE", "VERSION"}}
	for _, m := range v.Members {
		role := "nonvoter"
		if m.Voter {
			role = "voter"
		}
		if !m.Answers {
			t.add(cmp.Or(m.Name, m.ID), role, "NO", "", "", "", "", "")
			t.note(cmp.Or(m.Error, "it does not answer"))
			continue
		}
		state, certificate := "", ""
		switch {
		case m.Compared == 0:
		case m.Same:
			state = fmt.Sprintf("same at %d", m.Compared)
		default:
			state = fmt.Sprintf("DIFFERS at %d", m.Compared)
		}
		if !m.Expires.IsZero() {
			certificate = "until " + m.Expires.UTC().Format("2006-01-02 15:04Z")
		}
		t.add(cmp.Or(m.Name, m.ID), role, "yes", fmt.Sprint(m.Behind), state, m.Offset.Round(time.Millisecond).String(), certificate, m.Version)
	}
	if err := t.write(a.out, true, true); err != nil {
		return err
	}
	var b strings.Builder
	for _, p := range v.Problems {
		fmt.Fprintf(&b, "PROBLEM: %s\n", p)
	}
	if v.OK {
		b.WriteString("no problem\n")
	}
	_, err := io.WriteString(a.out, printable(b.String()))
	return err
}

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot save|restore", Short: "Keep the state in a file, and take it from one", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usagef("snapshot what? `rota cluster snapshot save FILE` or `rota cluster snapshot restore FILE`")
		},
	}
	c.AddCommand(a.saveCommand(), a.inspectCommand(), a.restoreCommand())
	return c
}

func (a *app) saveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "save FILE|-", Short: "Write the state of the node that is asked to a file", Args: cobra.ExactArgs(1),
		Long: "Write the state of the node that is asked to a file, or to the standard output: what decisions depend on of the\n" +
			"configuration, the overrides, the verdicts and the nodes' names.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			resp, err := cl.request(cmd.Context(), http.MethodGet, clusterPath+"/snapshot", nil, nil)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			if args[0] == "-" {
				if _, err := io.Copy(a.out, resp.Body); err != nil {
					return fmt.Errorf("%s: the snapshot broke off: %w", cl.where, err)
				}
				return nil
			}
			n, err := keep(args[0], resp.Body)
			if err != nil {
				return fmt.Errorf("%s was not written: %w", args[0], err)
			}
			_, err = fmt.Fprintf(a.out, "saved to %s, %d bytes\n", printable(args[0]), n)
			return err
		},
	}
}

// keep writes all there is to read to a file that only its owner may read. The file is whole, or as it was.
func keep(path string, from io.Reader) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return 0, err
	}
	n, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return n, nil
}

func (a *app) restoreCommand() *cobra.Command {
	var foreign, yes bool
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make configuration and overrides of the cluster those of a snapshot", Args: cobra.ExactArgs(1),
		Long: "Make configuration and overrides of the cluster those of a snapshot, as one event. Verdicts stay what is measured now,\n" +
			"serials and terms go on growing, and overrides that have expired are left out. On a terminal it asks first.",
	}
	c.Flags().BoolVar(&foreign, "foreign", false, "the snapshot is of another cluster, and that is meant")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return fmt.Errorf("%s is no snapshot: want a file that `rota cluster snapshot save` wrote", args[0])
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		if !yes {
			question := fmt.Sprintf("This replaces configuration and overrides of the cluster that %s belongs to by those of %s.", cl.where, args[0])
			if err := a.confirm(question, "restore"); err != nil {
				return err
			}
		}
		q := url.Values{"author": {author()}}
		if foreign {
			q.Set("foreign", "true")
		}
		resp, err := cl.send(cmd.Context(), http.MethodPost, clusterPath+"/snapshot", q, f, info.Size(), "Content-Type", "application/octet-stream")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		var r api.RestoreReply
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "restored, as event %d\n", r.Event)
		return err
	}
	return c
}

// confirm asks a person for a word and fails unless it is given; where nobody can be asked, it fails.
func (a *app) confirm(question, word string) error {
	if a.in == nil {
		return usagef("%s Nobody can be asked here: give --yes if it is meant", question)
	}
	if _, err := fmt.Fprint(a.err, printable(fmt.Sprintf("%s\nType %s to go on: ", question, word))); err != nil {
		return err
	}
	said := ""
	// Fscanln reads no further than the line, so that more can be asked; it fails on more than a word.
	if _, err := fmt.Fscanln(io.LimitReader(a.in, 1000), &said); err != nil || said != word {
		return fmt.Errorf("nothing was changed: %q is not %q", said, word)
	}
	return nil
}
