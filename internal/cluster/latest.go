package cluster

import (
	"sync"
	"sync/atomic"
	"time"
)

// latest holds the newest of a series of values and tells who waits when it is replaced. Any number of goroutines may load;
// stores must come from one goroutine at a time.
type latest[T any] struct{ cell atomic.Pointer[cell[T]] }

type cell[T any] struct {
	value    T
	replaced chan struct{}
}

func (l *latest[T]) store(v T) {
	if old := l.cell.Swap(&cell[T]{v, make(chan struct{})}); old != nil {
		close(old.replaced)
	}
}

// load returns the newest value and a channel that is closed when it is no longer that.
func (l *latest[T]) load() (T, <-chan struct{}) {
	c := l.cell.Load()
	return c.value, c.replaced
}

// gate counts who is inside, and lets nobody in once it is shut.
type gate struct {
	mu   sync.Mutex // guards shut and, with it, that no one enters after the wait began
	shut bool
	in   sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.in.Add(1)
	return true
}

func (g *gate) leave() { g.in.Done() }

func (g *gate) close() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.in.Wait()
}

// waiting is a timer that can be armed anew any number of times; its zero value never fires.
type waiting struct{ timer *time.Timer }

// until returns a channel that delivers once d has passed.
func (w *waiting) until(d time.Duration) <-chan time.Time {
	if w.timer == nil {
		w.timer = time.NewTimer(d)
	} else {
		w.timer.Reset(d)
	}
	return w.timer.C
}

func (w *waiting) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}
