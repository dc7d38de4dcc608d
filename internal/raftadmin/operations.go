package raftadmin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Bounds of operations.
const (
	maxRunning    = 16               // under way at once
	maxKept       = 64               // under way, or over and not forgotten; above maxRunning
	operationTime = 25 * time.Second // that an operation is given
	awaitTime     = 30 * time.Second // after which Await answers; above operationTime, so that the operation's own words are heard
	moveTime      = time.Second      // that is waited for somebody to await or to forget an operation
	lingerTime    = 2 * time.Second  // after an operation's end, for its caller to hear of it
	keepTime      = 5 * time.Minute  // after its end until an operation is forgotten
	maxError      = 4 << 10          // bytes of an operation's error
)

// task is what an operation does.
type task struct {
	what  string // for the log, as is about
	about []any
	do    func(ctx context.Context) (index uint64, err error)
	// moves says that do may take the lead from this node, and returns when another has it. raftadmin --leader looks for the leader at
	// every call: it would ask the new one, which does not know the token, or for the time being find none and give up. So do begins
	// when it is awaited, because a call that is under way is answered, and until do has returned this node calls itself the leader.
	moves bool
	last  func() // done when the operation was forgotten, or some time later; may be nil
}

// operation is a task that was asked for. It runs whether somebody awaits it or not.
type operation struct {
	task
	awaited, forgotten signal
	done               chan struct{} // closed when what follows is set
	index              uint64
	err                error
	ended              time.Time // guarded by operations.mu; zero: it is under way
}

// signal is something that happens once.
type signal struct {
	c    chan struct{}
	once sync.Once
}

func (s *signal) give() { s.once.Do(func() { close(s.c) }) }

// within returns when the signal was given, after moveTime, or when ctx ends.
func (s *signal) within(ctx context.Context) {
	t := time.NewTimer(moveTime)
	defer t.Stop()
	select {
	case <-s.c:
	case <-t.C:
	case <-ctx.Done():
	}
}

// operations are the ones that have a token.
type operations struct {
	ctx      context.Context // of all that is under way
	log      *slog.Logger
	announce func() // tells whether this node leads; moving may have changed

	mu      sync.Mutex // guards what follows
	kept    map[string]*operation
	running int           // including those that were forgotten meanwhile
	moving  int           // of these, whose do has not returned and may take the lead from this node
	changed chan struct{} // closed when an operation ended or was forgotten
	closed  bool
}

func newOperations(ctx context.Context, log *slog.Logger, announce func()) *operations {
	return &operations{ctx: ctx, log: log, announce: announce, kept: map[string]*operation{}, changed: make(chan struct{})}
}

// start begins a task and returns the token to await it by.
func (o *operations) start(t task) (token string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return "", status.Error(codes.Unavailable, "this rota stops")
	case o.running >= maxRunning:
		return "", status.Errorf(codes.ResourceExhausted, "%d operations are under way; wait until one of them has ended", o.running)
	}
	o.sweep()
	token = rand.Text()
	op := &operation{task: t, awaited: signal{c: make(chan struct{})}, forgotten: signal{c: make(chan struct{})}, done: make(chan struct{})}
	o.kept[token] = op
	o.running++
	if op.moves {
		o.moving++
	}
	go o.run(op) // ends soon after ctx, for which settle waits
	return token, nil
}

// sweep forgets what ended long ago and, when there is no room for one more, what ended first.
func (o *operations) sweep() {
	var oldest string
	for token, op := range o.kept {
		switch {
		case op.ended.IsZero():
		case time.Since(op.ended) >= keepTime:
			delete(o.kept, token)
		case oldest == "" || op.ended.Before(o.kept[oldest].ended):
			oldest = token
		}
	}
	if len(o.kept) >= maxKept {
		delete(o.kept, oldest)
	}
}

func (o *operations) run(op *operation) {
	log := o.log.With("operation", op.what).With(op.about...)
	if op.moves {
		op.awaited.within(o.ctx)
	}
	ctx, cancel := context.WithTimeout(o.ctx, operationTime)
	defer cancel()
	begun := time.Now()
	index, err := protect(ctx, log, op.do)
	switch {
	case err == nil:
		log.Info("raftadmin: done", "index", index, "took", time.Since(begun))
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("not finished within %v, and it may still take effect: %w", operationTime, err)
	case errors.Is(err, context.Canceled):
		err = fmt.Errorf("this rota stopped meanwhile, and it may still take effect: %w", err)
	}
	if err != nil {
		log.Warn("raftadmin: not done", "err", err, "took", time.Since(begun))
	}
	op.index, op.err = index, err
	o.mu.Lock()
	op.ended = time.Now()
	if op.moves {
		o.moving--
	}
	o.mu.Unlock()
	o.announce()
	close(op.done)
	if op.last != nil {
		op.forgotten.within(o.ctx)
		_, _ = protect(ctx, log, func(context.Context) (uint64, error) { op.last(); return 0, nil })
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running--
	o.change()
}

// change wakes settle. The lock is held.
func (o *operations) change() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// protect makes an error of a panic, so that one bad request does not end the process.
func protect(ctx context.Context, log *slog.Logger, f func(ctx context.Context) (uint64, error)) (index uint64, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("raftadmin: an operation panicked", "panic", p, "stack", string(debug.Stack()))
			index, err = 0, errPanic
		}
	}()
	return f(ctx)
}

var errPanic = errors.New("rota failed at this; its log says where")

// await returns how an operation ended. The text is the operation's error, err that of awaiting it.
func (o *operations) await(ctx context.Context, token string) (index uint64, text string, err error) {
	o.mu.Lock()
	op, ok := o.kept[token]
	if ok && !op.ended.IsZero() && time.Since(op.ended) >= keepTime {
		delete(o.kept, token)
		ok = false
	}
	o.mu.Unlock()
	if !ok {
		return 0, "", status.Errorf(codes.NotFound, "no operation has the token %q: it was forgotten, it ended more than %v ago, or another node has it", token, keepTime)
	}
	op.awaited.give()
	t := time.NewTimer(awaitTime)
	defer t.Stop()
	select {
	case <-op.done:
		if op.err != nil {
			return 0, clean(op.err.Error()), nil
		}
		return op.index, "", nil
	case <-t.C:
		return 0, fmt.Sprintf("not finished within %v, and it may still take effect", awaitTime), nil
	case <-ctx.Done():
		return 0, "", status.FromContextError(ctx.Err()).Err()
	}
}

// clean makes text fit for a message: short, and UTF-8.
func clean(s string) string {
	if len(s) > maxError {
		s = s[:maxError] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// forget drops a token. The operation goes on.
func (o *operations) forget(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op, ok := o.kept[token]; ok {
		op.forgotten.give()
		delete(o.kept, token)
		o.change()
	}
}

// moved reports whether the lead may be on its way from this node.
func (o *operations) moved() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.moving > 0
}

// close lets no operation begin.
func (o *operations) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

// settle returns true when no operation is under way and all that ended were forgotten or have been over for lingerTime, so that
// whoever asked had the time to hear of it; or false when that takes longer than most. It comes after close.
func (o *operations) settle(most time.Duration) bool {
	late := time.After(most)
	for {
		o.mu.Lock()
		running, changed, left := o.running, o.changed, time.Duration(0)
		for _, op := range o.kept {
			if !op.ended.IsZero() {
				left = max(left, lingerTime-time.Since(op.ended))
			}
		}
		o.mu.Unlock()
		var over <-chan time.Time // nil while one is under way: then its end is waited for
		if running == 0 {
			if left <= 0 {
				return true
			}
			over = time.After(left)
		}
		select {
		case <-over:
		case <-changed:
		case <-late:
			return false
		}
	}
}
