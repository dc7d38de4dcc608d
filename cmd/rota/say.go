package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/cluster"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// sayWithin is how long a leader is looked for that hears what is said: elections take less.
const sayWithin = 5 * time.Second

// say brings what is said of an endpoint to whoever leads. While nobody does, it is tried again for a while.
func (n *node) say(ctx context.Context, x rota.Saying) error {
	ctx, cancel := context.WithTimeout(ctx, sayWithin)
	defer cancel()
	for unsure := false; ; {
		changes := n.news.wait()
		leader, ok := n.raft.Leader()
		var err error
		switch {
		case !ok:
			err = cluster.ErrNoLeader
		case leader.Self:
			_, err = n.sayFor(ctx, link.Identity{}, x)
		default:
			err = n.net.call(ctx, leader.ID, http.MethodPost, sayPath, x, nil)
		}
		lost := errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, cluster.ErrNoLeader) || errors.Is(err, cluster.ErrUnanswered)
		switch {
		case unsure && errors.Is(err, api.ErrSaidBefore):
			return nil // it was taken, and the answer was lost
		case !lost:
			return err
		}
		unsure = unsure || errors.Is(err, cluster.ErrUnanswered)
		if pause(ctx, 300*time.Millisecond, changes) != nil {
			return fmt.Errorf("%w: %w", api.ErrNoLeader, err)
		}
	}
}

// sayFor takes in, on the leader, what is said of an endpoint.
func (n *node) sayFor(_ context.Context, _ link.Identity, x rota.Saying) (struct{}, error) {
	_, err := n.said.Take(x)
	switch {
	case errors.Is(err, cluster.ErrSaidBefore), errors.Is(err, cluster.ErrSaidTwice):
		err = fmt.Errorf("%w: %w", api.ErrSaidBefore, err)
	case errors.Is(err, cluster.ErrSaidOften):
		err = fmt.Errorf("%w: %w", api.ErrSaidOften, err)
	}
	return struct{}{}, err
}

const reportLong = `Say how an endpoint is, where its service has a check of type agent: nobody asks such an endpoint, so it says so itself, or whoever
watches it. What was said counts at once, and until the check's max_age has passed; silence after that is unknown and changes nothing.

On the endpoint's own host give it a token of role agent (ROTA_TOKEN_FILE), whose name is the endpoint's ` + "`agent:`" + ` in the configuration;
then SERVICE alone stands for all of its endpoints that this agent speaks for. An operator may speak for any endpoint.

Run it from a timer more often than max_age, or leave it running with --every.`

// reportFlags are those of `rota report`.
type reportFlags struct {
	check, reason, output string
	weight                uint8
	every                 time.Duration
}

func (a *app) reportCommand() *cobra.Command {
	var o reportFlags
	c := &cobra.Command{
		Use: "report SERVICE[/ADDRESS] up|down|drain", Short: "Say how an endpoint is that nobody asks", Long: reportLong, Args: cobra.ExactArgs(2),
		Example: "  rota report www.example.org up --addr https://ns1.example.org:8053 --every 15s\n" +
			"  rota report www.example.org/192.0.2.10 drain --reason 'leaves for an update'",
	}
	f := c.Flags()
	f.StringVar(&o.check, "check", "", "name of the check, when the endpoint has several of type agent")
	f.StringVar(&o.reason, "reason", "", "why, for people")
	f.Uint8Var(&o.weight, "weight", 0, "percent of its weight that the endpoint asks for, 1 to 100 (default: nothing is said of it)")
	f.DurationVar(&o.every, "every", 0, "go on saying it, this often, until stopped")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		form, err := parseFormat(o.output, formatTable, formatJSON, formatYAML)
		if err != nil {
			return err
		}
		req, err := o.request(args)
		if err != nil {
			return err
		}
		return a.report(cmd.Context(), form, req, o.every)
	}
	return c
}

// request is what the arguments say.
func (o *reportFlags) request(args []string) (api.SayRequest, error) {
	req := api.SayRequest{Service: args[0], Check: o.check, Status: args[1], Reason: o.reason, Weight: o.weight}
	switch req.Status {
	case "up", "down", "drain":
	default:
		return req, usagef("%q: want up, down or drain", req.Status)
	}
	if service, address, ok := strings.Cut(args[0], "/"); ok {
		a, err := netip.ParseAddr(address)
		if err != nil {
			return req, usagef("%q: want SERVICE or SERVICE/ADDRESS", args[0])
		}
		req.Service, req.Address = service, a
	}
	switch {
	case o.weight > 100:
		return req, usagef("--weight %d: want 1 to 100", o.weight)
	case o.weight > 0 && req.Status != "up":
		return req, usagef("--weight is for an endpoint that is up")
	case o.every < 0 || o.every > 0 && o.every < time.Second:
		return req, usagef("--every %v: want at least 1s", o.every)
	case len(o.reason) > rota.MaxReason:
		return req, usagef("--reason has %d bytes: want at most %d", len(o.reason), rota.MaxReason)
	}
	return req, nil
}

// report says it once, or again and again until it is stopped; what fails on the way is shown and tried again.
func (a *app) report(ctx context.Context, f format, req api.SayRequest, every time.Duration) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	req.Incarnation = uint64(a.now().UnixNano())
	for first := true; ; first = false {
		req.Seq++
		req.Sent = a.now().UTC()
		reply, err := cl.say(ctx, req)
		switch {
		case every == 0 && err != nil:
			return err
		case ctx.Err() != nil:
			return nil
		case err != nil:
			fmt.Fprintln(a.err, printable(fmt.Sprintf("rota: not taken, said again in %v: %v", every, err)))
		case first:
			if err := a.writeSaid(f, reply); err != nil {
				return err
			}
		}
		if every == 0 || pause(ctx, every, nil) != nil {
			return nil
		}
	}
}

func (c *client) say(ctx context.Context, req api.SayRequest) (api.SayReply, error) {
	var out api.SayReply
	resp, err := c.request(ctx, http.MethodPost, "/api/v1/opinions", nil, req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

func (a *app) writeSaid(f format, r api.SayReply) error {
	if done, err := a.structured(f, r); done {
		return err
	}
	var b strings.Builder
	for _, s := range r.Said {
		fmt.Fprintf(&b, "%s/%v is %s for %v", s.Service, s.Address, loud(s.Status.String()), s.Within)
		if s.Before != s.Status {
			fmt.Fprintf(&b, "; it was %s", s.Before)
		}
		b.WriteByte('\n')
	}
	_, err := fmt.Fprint(a.out, printable(b.String()))
	return err
}
