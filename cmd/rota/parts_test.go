package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Parts stop one after the other, the last started first, and each is waited for.
func TestRunPartsStopsBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		slow := func(name string, d time.Duration) part {
			return part{name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(d)
				order = append(order, name)
				return nil
			}}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := runParts(ctx, slog.New(slog.DiscardHandler), []part{slow("a", 0), slow("b", time.Minute), slow("c", time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(order, " "); got != "c b a" {
			t.Errorf("stopped in the order %q, want c b a", got)
		}
	})
}

// A part that fails ends the others, and its error is named.
func TestRunPartsEndsWithTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := false
		err := runParts(t.Context(), slog.New(slog.DiscardHandler), []part{
			{"rest", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return ctx.Err() }},
			{"broken", func(context.Context) error { return errors.New("no socket") }},
		})
		if err == nil || err.Error() != "broken: no socket" {
			t.Errorf("got %v", err)
		}
		if !stopped {
			t.Error("the other part was left running")
		}
	})
}
