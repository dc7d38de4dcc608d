package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// part is a piece of the running program: run blocks until its context is cancelled, and returns nil then.
type part struct {
	name string
	run  func(context.Context) error
}

// runParts starts the parts in order and runs until ctx is cancelled or one of them ends. Then it stops them one after the other,
// the last started first, each waited for before the next: whoever acts on the world stops before whoever it relies on.
func runParts(ctx context.Context, log *slog.Logger, parts []part) error {
	type ended struct {
		name string
		err  error
	}
	type running struct {
		name   string
		cancel context.CancelFunc
		done   chan struct{}
	}
	first := make(chan ended, len(parts)) // room for every part, so that none blocks on its way out
	var started []running
	for _, p := range parts {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{p.name, cancel, make(chan struct{})}
		started = append(started, r)
		go func() {
			defer close(r.done)
			first <- ended{p.name, p.run(pctx)}
		}()
	}
	var errs []error
	note := func(e ended) {
		if e.err != nil && !errors.Is(e.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", e.name, e.err))
		}
	}
	select {
	case <-ctx.Done():
	case e := <-first:
		note(e)
		if len(errs) == 0 {
			errs = append(errs, fmt.Errorf("%s ended although nobody asked it to", e.name))
		}
	}
	for _, r := range slices.Backward(started) {
		log.Debug("stopping", "part", r.name)
		r.cancel()
		<-r.done
	}
	for len(first) > 0 {
		note(<-first)
	}
	return errors.Join(errs...)
}
