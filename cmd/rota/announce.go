package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/link"
	"github.com/rota-dns/rota/internal/rota"
)

// registerFor takes in what an agent says of its host, which has the agent's name.
func (n *node) registerFor(rw http.ResponseWriter, r *http.Request) {
	from, ok := link.PeerOf(r.Context())
	if !ok || from.Role != link.Agent || !n.isAgent(from.Name) {
		answer(rw, http.StatusForbidden, nil, errors.New("only agents that are accepted (vantage.agents.accept) register their hosts here"))
		return
	}
	var req api.RegisterRequest
	if status, err := readAsked(rw, r, maxAsked, &req); err != nil {
		answer(rw, status, nil, err)
		return
	}
	out, err := n.api.Register(r.Context(), api.Registrant{Actor: "agent:" + from.Name, Host: from.Name}, req)
	answer(rw, http.StatusUnprocessableEntity, out, err)
}

// announcer keeps an agent's host registered.
type announcer struct {
	log    *slog.Logger
	client *http.Client
	nodes  func() []string // cluster ports
	host   string
	flags  registerFlags // addresses, device and discover count
	every  time.Duration // how often its addresses are looked at; 0: announceEvery
}

// announceEvery is how often an agent looks whether its host has other addresses.
const announceEvery = time.Minute

// run says that the host is there whenever its addresses are others, and as often as the lease wants it. Who cannot say it now tries again:
// checks go on meanwhile.
func (a *announcer) run(ctx context.Context) error {
	every := a.every
	if every == 0 {
		every = announceEvery
	}
	var last []netip.Addr
	var due time.Time
	failures := 0
	for {
		wait := every
		all, whole, err := a.flags.own(ctx, a.nodes())
		if err == nil && (!slices.Equal(all, last) || !due.IsZero() && !time.Now().Before(due)) {
			var reply api.RegisterReply
			if reply, err = a.say(ctx, api.RegisterRequest{Host: a.host, Addresses: all, Whole: whole, Template: a.flags.discover}); err == nil {
				last, due = all, time.Time{}
				if reply.Renew > 0 {
					due = time.Now().Add(reply.Renew)
				}
				if reply.Event != 0 {
					a.log.Info("registered", "host", reply.Host, "service", reply.Service.Short(), "addresses", fmt.Sprint(reply.Addresses), "expires", reply.Expires)
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			failures++
			wait = min(every, time.Second<<min(failures, 6))
			a.log.Warn("this host could not be registered; it is tried again", "host", a.host, "again_in", wait, "error", err)
		} else {
			failures = 0
		}
		if !due.IsZero() {
			wait = max(min(wait, time.Until(due)), time.Millisecond)
		}
		if pause(ctx, wait, nil) != nil {
			return nil
		}
	}
}

// say tells the first node that takes it.
func (a *announcer) say(ctx context.Context, req api.RegisterRequest) (out api.RegisterReply, err error) {
	b, err := json.Marshal(req)
	if err != nil {
		return out, err
	}
	var errs []error
	for _, at := range a.nodes() {
		if out, err = a.tell(ctx, at, b); err == nil {
			return out, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", at, err))
	}
	if len(errs) == 0 {
		return out, errors.New("no node is known")
	}
	return out, errors.Join(errs...)
}

// announceWithin bounds how long one node is waited for.
const announceWithin = 20 * time.Second

func (a *announcer) tell(ctx context.Context, at string, body []byte) (out api.RegisterReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, announceWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+at+registerPath, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return out, unanswered(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerAnswer))
	if err != nil {
		return out, err
	}
	if resp.StatusCode == http.StatusOK {
		return out, json.Unmarshal(b, &out)
	}
	var f failure
	if json.Unmarshal(b, &f) != nil || f.Text == "" {
		return out, fmt.Errorf("it said %s", resp.Status)
	}
	return out, errors.New(rota.CleanReason("%s", f.Text))
}
