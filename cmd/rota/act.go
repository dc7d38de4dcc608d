package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

const matchHelp = "MATCH is SERVICE, SERVICE/ADDRESS, ADDRESS, site:NAME or label:KEY=VALUE; * stands for any text in a service's name."

// author is who types, for the record.
func author() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

// overrideCommand is a verb that sets an override.
func (a *app) overrideCommand(verb, short string, action rota.Action) *cobra.Command {
	req := api.OverrideRequest{Action: string(action)}
	var output string
	c := &cobra.Command{
		Use: verb + " MATCH --reason TEXT", Short: short, Args: cobra.ExactArgs(1),
		Long: short + ", until it expires or `rota ready` takes it back. It outlives restarts.\n" + matchHelp +
			"\nIt is held when a service would have no IPv4 or no IPv6 address left. With --force they are marked all the same,\n" +
			"and the last answer is kept until another endpoint serves, unless on_all_down is none.",
	}
	c.Flags().StringVar(&req.For, "for", "", "how long, such as 30m, 2h or 3d (default 24h)")
	c.Flags().StringVar(&req.Reason, "reason", "", "why; required")
	c.Flags().BoolVar(&req.Force, "force", false, "even if a service then has no address left; the last answer is kept")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		if strings.TrimSpace(req.Reason) == "" {
			return usagef("say why with --reason: others will ask")
		}
		req.Match, req.Author = args[0], author()
		return a.act(cmd, f, http.MethodPost, nil, req)
	}
	return c
}

func (a *app) forceCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "force up|down MATCH --reason TEXT", Short: "Say that endpoints are up or down, whatever the checks say", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usagef("force what? `rota force up MATCH` or `rota force down MATCH`")
		},
	}
	c.AddCommand(
		a.overrideCommand("up", "Answer with endpoints whatever the checks say", rota.ActionForceUp),
		a.overrideCommand("down", "Do not answer with endpoints whatever the checks say", rota.ActionForceDown),
	)
	return c
}

func (a *app) readyCommand() *cobra.Command {
	var reason, output string
	c := &cobra.Command{
		Use: "ready MATCH", Short: "Take overrides back", Args: cobra.ExactArgs(1),
		Long: "Take back what drain, maint and force said: the checks decide again.\n" + matchHelp,
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		q := url.Values{"match": {args[0]}, "author": {author()}}
		if reason != "" {
			q.Set("reason", reason)
		}
		return a.act(cmd, f, http.MethodDelete, q, nil)
	}
	return c
}

// act sends an override or its end and shows what came of it.
func (a *app) act(cmd *cobra.Command, f format, method string, q url.Values, in any) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	resp, err := cl.request(cmd.Context(), method, "/api/v1/overrides", q, in)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var reply api.OverrideReply
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return err
	}
	switch f {
	case formatJSON:
		return writeJSON(a.out, reply)
	case formatYAML:
		return writeYAML(a.out, reply)
	}
	var b strings.Builder
	for _, o := range reply.Set {
		fmt.Fprintf(&b, "%s is %s until %s\n", o.Endpoint, loud(string(o.Action)), ends(o))
	}
	for _, id := range reply.Lifted {
		fmt.Fprintf(&b, "%s is ready: the checks decide\n", id)
	}
	for _, s := range reply.Answers {
		fmt.Fprintf(&b, "%s answers %s\n", s.Service, cmp.Or(few(s.Answer, " "), "nothing"))
	}
	for i, rest := 0, reply.StillAnswered; i < len(rest); {
		service, addrs := rest[i].Service, []string{}
		for ; i < len(rest) && rest[i].Service == service; i++ {
			addrs = append(addrs, rest[i].Address.String())
		}
		fmt.Fprintf(&b, "STILL ANSWERED: %s (nobody else can serve %s; on_all_down: none would empty the name)\n", few(addrs, " "), service.Short())
	}
	_, err = fmt.Fprint(a.out, printable(b.String()))
	return err
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Have a running rota read its configuration again", Args: cobra.NoArgs,
		Long: "Have a running rota read its configuration again. A configuration with errors changes nothing; the errors are shown.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			resp, err := cl.request(cmd.Context(), http.MethodPost, "/api/v1/reload", nil, nil)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			_, err = fmt.Fprintln(a.out, "reloaded")
			return err
		},
	}
}
