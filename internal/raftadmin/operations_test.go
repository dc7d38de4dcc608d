package raftadmin

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func newTestOperations(ctx context.Context) *operations {
	return newOperations(ctx, slog.New(slog.DiscardHandler), func() {})
}

func start(t *testing.T, o *operations, do func(ctx context.Context) (uint64, error)) string {
	t.Helper()
	token, err := o.start(task{what: "test", do: do})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func seven(context.Context) (uint64, error) { return 7, nil }

// Nobody waits for ever: an operation is told to end, and Await answers even if it does not.
func TestAwaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		begun := time.Now()
		obeys := start(t, o, func(ctx context.Context) (uint64, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		release := make(chan struct{})
		ignores := start(t, o, func(context.Context) (uint64, error) {
			<-release
			return 5, nil
		})
		_, text, err := o.await(t.Context(), obeys)
		if took := time.Since(begun); took != operationTime || !strings.HasPrefix(text, "not finished within 25s") || err != nil {
			t.Errorf("after %v: %q, %v", took, text, err)
		}
		begun = time.Now()
		_, text, err = o.await(t.Context(), ignores)
		if took := time.Since(begun); took != awaitTime || !strings.HasPrefix(text, "not finished within 30s") || err != nil {
			t.Errorf("after %v: %q, %v", took, text, err)
		}
		// It may be awaited again, and by a caller who gives up.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := o.await(ctx, ignores); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		close(release)
		if index, text, err := o.await(t.Context(), ignores); index != 5 || text != "" || err != nil {
			t.Error(index, text, err)
		}
	})
}

func TestOperationsEndAtTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := newTestOperations(ctx)
		token := start(t, o, func(ctx context.Context) (uint64, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		cancel()
		if _, text, _ := o.await(t.Context(), token); !strings.HasPrefix(text, "this rota stopped meanwhile") {
			t.Error(text)
		}
	})
}

func TestOperationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		token := start(t, o, seven)
		synctest.Wait()
		time.Sleep(keepTime - 1)
		if index, _, err := o.await(t.Context(), token); index != 7 || err != nil {
			t.Error(index, err)
		}
		time.Sleep(time.Nanosecond)
		if _, _, err := o.await(t.Context(), token); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
		token = start(t, o, seven)
		o.forget(token)
		o.forget(token)
		if _, _, err := o.await(t.Context(), token); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// Callers who never forget cost a bounded room, and keep nobody out.
func TestOperationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		var tokens []string
		for range 3 * maxKept {
			tokens = append(tokens, start(t, o, seven))
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		if len(o.kept) != maxKept {
			t.Errorf("%d are kept", len(o.kept))
		}
		for i, token := range tokens {
			_, _, err := o.await(t.Context(), token)
			if kept := i >= 2*maxKept; kept != (err == nil) {
				t.Errorf("operation %d: %v", i, err)
			}
		}
		release := make(chan struct{})
		for range maxRunning {
			o.forget(start(t, o, func(context.Context) (uint64, error) { // forgotten ones are under way all the same
				<-release
				return 0, nil
			}))
		}
		if _, err := o.start(task{do: seven}); status.Code(err) != codes.ResourceExhausted {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		start(t, o, seven)
		time.Sleep(keepTime)
		start(t, o, seven)
		synctest.Wait()
		if len(o.kept) != 1 {
			t.Errorf("%d are kept", len(o.kept))
		}
		o.close()
		if _, err := o.start(task{do: seven}); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	})
}

func TestSettle(t *testing.T) {
	for _, c := range []struct {
		name string
		do   time.Duration // that the operation takes
		hear time.Duration // after which its caller forgets it; 0: never
		want time.Duration
		ok   bool
	}{
		{"over and forgotten", 0, time.Nanosecond, time.Nanosecond, true},
		{"over, its caller is gone", 0, 0, lingerTime, true},
		{"under way and forgotten", time.Second, time.Nanosecond, time.Second, true},
		{"under way, then heard of", time.Second, 2 * time.Second, 2 * time.Second, true},
		{"under way, its caller is gone", time.Second, 0, time.Second + lingerTime, true},
		{"under way for long", 20 * time.Second, 0, stopTime, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newTestOperations(t.Context())
				begun := time.Now()
				token := start(t, o, func(context.Context) (uint64, error) {
					time.Sleep(c.do)
					return 0, nil
				})
				if c.hear > 0 {
					time.AfterFunc(c.hear, func() { o.forget(token) })
				}
				o.close()
				if ok := o.settle(stopTime); ok != c.ok || time.Since(begun) != c.want {
					t.Errorf("%v after %v, want %v after %v", ok, time.Since(begun), c.ok, c.want)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// What moves the lead begins when it is awaited, and what ends the process when its answer was heard; or some time later.
func TestOrderOfMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		said := 0
		o.announce = func() { said++ }
		begun := time.Now()
		var began, stopped time.Duration
		mover := task{what: "transfer", moves: true, do: func(context.Context) (uint64, error) {
			began = time.Since(begun)
			if !o.moved() {
				t.Error("this node does not call itself the leader any more")
			}
			return 0, nil
		}}
		token, _ := o.start(mover)
		time.Sleep(moveTime / 2)
		_, _, _ = o.await(t.Context(), token)
		if began != moveTime/2 || o.moved() || said != 1 {
			t.Error(began, o.moved(), said)
		}
		begun = time.Now()
		_, _ = o.start(mover)
		time.Sleep(time.Minute)
		synctest.Wait()
		if began != moveTime {
			t.Error(began)
		}

		synctest.Wait()
		begun = time.Now()
		stopper := task{what: "shutdown", do: seven, last: func() { stopped = time.Since(begun) }}
		token, _ = o.start(stopper)
		_, _, _ = o.await(t.Context(), token)
		time.Sleep(moveTime / 4)
		o.forget(token)
		synctest.Wait()
		if stopped != moveTime/4 {
			t.Error(stopped)
		}
		begun = time.Now()
		_, _ = o.start(stopper)
		time.Sleep(time.Minute)
		synctest.Wait()
		if stopped != moveTime {
			t.Error(stopped)
		}
	})
}

func TestOperationThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		token, _ := o.start(task{do: func(context.Context) (uint64, error) { panic("bug") }, last: func() { panic("another") }})
		if _, text, err := o.await(t.Context(), token); text != errPanic.Error() || err != nil {
			t.Error(text, err)
		}
		o.forget(token)
		o.close()
		if !o.settle(time.Hour) {
			t.Error("it counts as under way")
		}
	})
}

// An error is text from anywhere: a message that is not UTF-8, or too large, would never arrive.
func TestErrorsFitIntoAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOperations(t.Context())
		token := start(t, o, func(context.Context) (uint64, error) {
			return 0, errors.New("\xff" + strings.Repeat("ä", maxError))
		})
		_, text, err := o.await(t.Context(), token)
		if err != nil || !utf8.ValidString(text) || len(text) > maxError+20 {
			t.Error(len(text), err)
		}
	})
}
