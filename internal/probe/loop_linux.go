package probe

import (
	"context"
	"errors"
	"iter"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loop is the engine of Linux: one goroutine, one epoll descriptor and non-blocking sockets. A probe in flight is a coroutine, resumed
// when its socket is ready, its time has come or nobody wants it any more; deadlines are numbers in a slice, so that no probe has a
// timer. While nothing happens the loop waits in Go's own poller, of which its epoll descriptor is one descriptor among others.
type loop struct {
	// Immutable.
	p     *Prober
	ping  *pinger
	done  chan<- finished
	base  time.Time
	epoll int
	file  *os.File // the same descriptor, as Go's poller has it
	conn  syscall.RawConn
	look  func(uintptr) bool // asks epoll; true when something happened
	wg    sync.WaitGroup     // the loop's goroutine, and those of aside

	mu      sync.Mutex // guards what follows
	inbox   []order
	parked  bool  // the loop waits in Go's poller
	armed   int64 // when it will wake by itself; in the past: not set
	closing bool

	// Owned by the loop's goroutine.
	now      int64 // as of this round, since base
	events   [256]unix.EpollEvent
	happened int // of events, in the last look
	orders   []order
	watched  []watched // by the number that epoll gives back
	unused   []int32   // numbers of watched that are free
	tasks    []*task   // by number
	due      []int64   // when tasks want to be resumed at the latest, by number
	soonest  int64     // no task is due earlier
	idle     []*task
	ready    []*task // to be resumed, in this round if it has not begun with that
	turn     []*task // being resumed
	ending   bool    // closing, as of this round
	flying   int
	busiest  [2]int     // most in flight at once, in this while and the one before
	turns    int64      // when this while ends
	ended    []finished // not yet handed to the scheduler
	echoes   []*batch   // with requests to send
}

// watched is one place for a descriptor in the loop's epoll set. Its turn changes when it is given up, so that an event that was about
// its last owner is told from one of the next.
type watched struct {
	who  watcher
	turn int32
}

// watcher is told what happened to its descriptor.
type watcher interface{ event(mask uint32) }

// order is what another goroutine wants of the loop: to start the job of an entry, to cancel it (a job without a question), or to call
// a function.
type order struct {
	e    *entry
	job  job
	call func()
}

const (
	never   = math.MaxInt64
	minIdle = 64               // coroutines that may always be kept for the next probes
	recent  = 10 * time.Second // else no more than were in use at once in this while or the one before
)

func newEngine(p *Prober, ping *pinger, done chan<- finished) (engine, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	l := &loop{p: p, ping: ping, done: done, base: time.Now(), epoll: fd, soonest: never, inbox: make([]order, 0, 64)}
	l.look = func(uintptr) bool {
		l.happened = epollWait(l.epoll, l.events[:])
		return l.happened != 0
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or Go's poller would not take it
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l.file = os.NewFile(uintptr(fd), "epoll")
	if err := l.file.SetReadDeadline(time.Time{}); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	if l.conn, err = l.file.SyscallConn(); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	ping.adopt = l.adopt
	l.wg.Go(l.run)
	return l, nil
}

func (l *loop) start(e *entry, j job) { l.order(order{e: e, job: j}) }

func (l *loop) cancel(e *entry) { l.order(order{e: e}) }

func (l *loop) close() {
	l.mu.Lock()
	l.closing = true
	l.ring()
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *loop) hold(k *kept) error {
	if w, ok := k.link.(*wire); ok {
		return w.keep(k)
	}
	c, ok := k.link.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	h := &held{k: k, number: -1}
	k.quiet = func() (yes bool) {
		err := raw.Control(func(fd uintptr) { yes = quiet(int(fd)) })
		return err == nil && yes
	}
	k.unwatch = func() {
		l.order(order{call: func() {
			if h.number >= 0 {
				l.unwatch(h.number)
				h.number = -1
			}
		}})
	}
	l.order(order{call: func() {
		var failed error
		err := raw.Control(func(fd uintptr) { // which it keeps from being closed meanwhile
			h.number, failed = l.watch(int(fd), h, unix.EPOLLIN|unix.EPOLLRDHUP)
		})
		if err != nil || failed != nil {
			k.over.Store(true)
		}
	}})
	return nil
}

func (l *loop) release(k *kept) {
	l.order(order{call: func() {
		if k.state.CompareAndSwap(keptIdle, keptUsed) {
			k.close()
		}
	}})
}

// order leaves an order for the loop. It never waits for it.
func (l *loop) order(o order) {
	l.mu.Lock()
	l.inbox = append(l.inbox, o)
	l.ring()
	l.mu.Unlock()
}

// ring wakes the loop. The caller holds mu.
func (l *loop) ring() {
	if l.parked {
		l.parked, l.armed = false, 0
		_ = l.file.SetReadDeadline(time.Unix(1, 0))
	}
}

func (l *loop) since() int64 { return int64(time.Since(l.base)) }

func (l *loop) run() {
	defer l.end()
	for {
		l.now = l.since()
		worked := l.obey()
		if l.happened == 0 { // else it was what ended the last wait
			l.look(0)
		}
		for _, ev := range l.events[:l.happened] {
			worked = true
			if w := &l.watched[ev.Fd]; w.who != nil && w.turn == ev.Pad {
				w.who.event(ev.Events)
			}
		}
		l.happened = 0
		if l.now >= l.soonest {
			l.expire()
		}
		if len(l.ready) > 0 {
			worked = true
			l.goOn()
		}
		for _, b := range l.echoes {
			worked = true
			b.send()
		}
		clear(l.echoes)
		l.echoes = l.echoes[:0]
		for _, f := range l.ended {
			l.done <- f // there is room for every probe in flight
		}
		clear(l.ended)
		l.ended = l.ended[:0]
		switch {
		case worked:
			runtime.Gosched() // with one processor the scheduler has its turn
		case !l.park():
			return
		}
	}
}

// end gives up what the loop holds, once no probe is in flight.
func (l *loop) end() {
	for _, t := range l.idle {
		t.stop()
	}
	_ = l.file.Close()
}

// obey carries out the orders and reports whether there were any.
func (l *loop) obey() bool {
	l.mu.Lock()
	l.orders, l.inbox = l.inbox, l.orders[:0]
	l.ending = l.closing
	l.mu.Unlock()
	for _, o := range l.orders {
		switch {
		case o.call != nil:
			o.call()
		case o.job.q != nil:
			l.begin(o.e, o.job)
		default:
			if t, ok := o.e.seat.(*task); ok {
				t.drop()
			}
		}
	}
	some := len(l.orders) > 0
	clear(l.orders)
	if l.ending {
		for _, t := range l.tasks {
			t.drop()
		}
	}
	return some
}

// begin gives a job to a task that is idle, or a new one.
func (l *loop) begin(e *entry, j job) {
	var t *task
	if n := len(l.idle); n > 0 {
		t, l.idle = l.idle[n-1], l.idle[:n-1]
	} else {
		t = l.newTask()
	}
	l.flying++
	if l.now >= l.turns {
		l.turns = l.now + int64(recent)
		l.busiest = [2]int{0, l.busiest[0]}
	}
	l.busiest[0] = max(l.busiest[0], l.flying)
	t.e, t.job = e, j
	t.dropped.Store(false)
	e.seat = t
	t.wake()
}

// goOn resumes the tasks that are ready; those that become ready meanwhile have their turn in the next round.
func (l *loop) goOn() {
	l.ready, l.turn = l.turn[:0], l.ready
	for _, t := range l.turn {
		t.ready = false
		if t.e != nil {
			l.resume(t)
		}
	}
	clear(l.turn)
}

// resume lets a task go on until it waits again or its probe has ended.
func (l *loop) resume(t *task) {
	l.due[t.number] = never
	t.next()
	if t.trace == nil {
		return
	}
	l.ended = append(l.ended, finished{t.e, t.trace})
	t.e.seat = nil
	t.e, t.job, t.trace = nil, job{}, nil
	l.flying--
	if len(l.idle) < minIdle || len(l.tasks) <= max(l.busiest[0], l.busiest[1]) {
		l.idle = append(l.idle, t)
		return
	}
	t.stop()
	n := len(l.tasks) - 1
	last := l.tasks[n] // takes its number
	last.number = t.number
	l.tasks[t.number], l.due[t.number] = last, l.due[n]
	l.tasks[n] = nil
	l.tasks, l.due = l.tasks[:n], l.due[:n]
}

// expire resumes the tasks whose time has come.
func (l *loop) expire() {
	l.soonest = never
	for i, at := range l.due {
		if at <= l.now {
			l.tasks[i].wake()
		} else if at < l.soonest {
			l.soonest = at
		}
	}
}

// park waits until something happens. It returns false when the loop is to end and no probe is in flight.
func (l *loop) park() bool {
	l.mu.Lock()
	if l.ending && l.flying == 0 {
		l.mu.Unlock()
		return false
	}
	if len(l.inbox) > 0 || l.closing != l.ending {
		l.mu.Unlock()
		return true
	}
	if l.armed <= l.now || l.armed > l.soonest {
		l.armed = l.soonest
		at := time.Time{}
		if l.armed != never {
			at = l.base.Add(time.Duration(l.armed))
		}
		_ = l.file.SetReadDeadline(at)
	}
	l.parked = true
	l.mu.Unlock()
	err := l.conn.Read(l.look)
	l.mu.Lock()
	l.parked = false
	if err != nil { // the time has come, or somebody rang
		l.armed, l.happened = 0, 0
	}
	l.mu.Unlock()
	return true
}

// watch puts a descriptor into the epoll set, edge triggered, and returns its number.
func (l *loop) watch(fd int, who watcher, events uint32) (int32, error) {
	var i int32
	if n := len(l.unused); n > 0 {
		i, l.unused = l.unused[n-1], l.unused[:n-1]
	} else {
		i = int32(len(l.watched))
		l.watched = append(l.watched, watched{})
	}
	w := &l.watched[i]
	w.who = who
	ev := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: i, Pad: w.turn}
	if errno := epollAdd(l.epoll, fd, &ev); errno != 0 {
		l.unwatch(i)
		return -1, errno
	}
	return i, nil
}

// unwatch gives up a number; closing the descriptor takes it out of the set.
func (l *loop) unwatch(i int32) {
	w := &l.watched[i]
	w.who = nil
	w.turn++
	l.unused = append(l.unused, i)
}

// task is a coroutine and the probe that it runs now. It is owned by the loop's goroutine, of which the coroutine is a part.
type task struct {
	l      *loop
	number int
	next   func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool

	e       *entry // nil: idle
	job     job
	trace   *Trace // set when the probe has ended
	ready   bool
	end     int64       // the probe's deadline, since the loop's base
	ends    span        // the context until then
	lives   span        // its parent
	dropped atomic.Bool // others ask for it through the contexts
}

func (l *loop) newTask() *task {
	t := &task{l: l, number: len(l.tasks)}
	t.ends.t, t.lives.t = t, t
	t.next, t.stop = iter.Pull(t.probes)
	l.tasks = append(l.tasks, t)
	l.due = append(l.due, never)
	return t
}

// probes runs one probe after another.
func (t *task) probes(yield func(struct{}) bool) {
	t.yield = yield
	for {
		t.end = never
		t.trace = t.l.p.observeIn(&t.lives, t.job, t.l.ping, t)
		t.ends.over()
		t.lives.over()
		if !yield(struct{}{}) {
			return
		}
	}
}

// drop ends the task's probe, if it has one: nobody wants it any more.
func (t *task) drop() {
	if t.e != nil && !t.dropped.Swap(true) {
		t.ends.over()
		t.lives.over()
		t.wake()
	}
}

func (t *task) wake() {
	if !t.ready {
		t.ready = true
		t.l.ready = append(t.l.ready, t)
	}
}

func (t *task) span(limit time.Duration) context.Context {
	t.ends.end = time.Now().Add(limit)
	t.end = int64(t.ends.end.Sub(t.l.base))
	return &t.ends
}

func (t *task) wait(until time.Time) { t.park(int64(until.Sub(t.l.base))) }

// park waits until the loop resumes the task, at the latest at the time given or at the probe's deadline.
func (t *task) park(until int64) {
	if t.dropped.Load() {
		return
	}
	at := min(until, t.end)
	t.l.due[t.number] = at
	t.l.soonest = min(t.l.soonest, at)
	t.yield(struct{}{})
}

// others gives the other tasks a turn.
func (t *task) others() {
	t.wake()
	t.yield(struct{}{})
}

func (t *task) aside(f func()) {
	over := false
	var bug any
	t.l.wg.Go(func() {
		defer t.l.order(order{call: func() {
			over = true
			t.wake()
		}})
		defer func() { bug = recover() }()
		f()
	})
	for !over {
		t.yield(struct{}{})
	}
	if bug != nil {
		panic(bug)
	}
}

// span is a context that no timer ends: who waits in the loop is resumed when its time has come. Only who asks for its channel pays
// for one.
type span struct {
	t   *task
	end time.Time // zero: it has no deadline

	mu    sync.Mutex // guards what follows
	done  chan struct{}
	timer *time.Timer
}

// Deadline is that of the probe.
func (s *span) Deadline() (time.Time, bool) { return s.end, !s.end.IsZero() }

// Err says why the context has ended, or nil.
func (s *span) Err() error {
	switch {
	case s.t.dropped.Load():
		return context.Canceled
	case !s.end.IsZero() && !time.Now().Before(s.end):
		return context.DeadlineExceeded
	}
	return nil
}

// Value is always nil.
func (s *span) Value(any) any { return nil }

// Done is for what leaves the loop.
func (s *span) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		switch {
		case s.Err() != nil:
			close(s.done)
		case !s.end.IsZero():
			done := s.done
			s.timer = time.AfterFunc(time.Until(s.end), func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.done == done {
					s.close()
				}
			})
		}
	}
	return s.done
}

// over closes the channel, if anybody asked for it, and forgets it.
func (s *span) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != nil {
		s.close()
		s.done, s.timer = nil, nil
	}
}

// close closes the channel unless it is closed. The caller holds mu.
func (s *span) close() {
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	if s.timer != nil {
		s.timer.Stop()
	}
}
