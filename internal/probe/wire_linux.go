package probe

import (
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a TCP connection of a task. Its methods are called in the task's coroutine; what would block suspends the task.
type wire struct {
	l       *loop
	t       *task // whose it is; nil between two probes
	kept    *kept // it may outlive a probe
	hung    bool  // the other side has said goodbye
	empty   bool  // all that came has been read: nothing more before the next event
	fd      int   // -1: closed
	number  int32
	watched bool
	near    netip.AddrPort // our end, once connected
	remote  netip.AddrPort
	until   int64 // deadline since the loop's base
	writes  int
	reads   int // since the task last waited
}

// maxReads is how much one probe reads or writes in a row before others have their turn.
const maxReads = 32

func (t *task) dial(to netip.AddrPort, holdAck bool) (net.Conn, error) {
	w := &wire{l: t.l, t: t, remote: to, until: never}
	var errno syscall.Errno
	if w.fd, errno = tcpSocket(to.Addr().Is6()); errno != 0 {
		return nil, os.NewSyscallError("socket", errno)
	}
	if holdAck {
		_ = setsockoptInt(w.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	if err := w.connect(); err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

func (w *wire) connect() error {
	errno := connect(w.fd, w.remote)
	for errno == unix.EINPROGRESS || errno == unix.EALREADY || errno == unix.EINTR {
		if err := w.await(); err != nil {
			return err
		}
		errno = connect(w.fd, w.remote) // says how the first one went
	}
	if errno != 0 && errno != unix.EISCONN {
		return os.NewSyscallError("connect", errno)
	}
	// On a port of this machine that nobody listens on, the kernel may have chosen the same one for our end (RFC 9293 §3.5,
	// simultaneous open): then the socket has found itself.
	if w.near = sockname(w.fd); w.near == w.remote {
		return os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	return nil
}

// await suspends the task until something happens to the socket. It returns an error at the deadline or when nobody wants the probe.
func (w *wire) await() error {
	if err := w.watch(); err != nil {
		return err
	}
	w.reads = 0
	w.t.park(w.until)
	return w.expired()
}

func (w *wire) expired() error {
	if t := w.t; t.dropped.Load() || w.l.now >= min(w.until, t.end) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (w *wire) watch() error {
	if w.watched {
		return nil
	}
	n, err := w.l.watch(w.fd, w, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP)
	if err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	w.number, w.watched, w.empty = n, true, true // what is there already is an event
	return nil
}

// event is the loop's word that something happened to the socket.
func (w *wire) event(mask uint32) {
	w.hung = w.hung || mask&goodbye != 0
	if mask != unix.EPOLLOUT {
		w.empty = false
	}
	if w.t != nil {
		w.t.wake()
	}
	if w.kept != nil {
		w.kept.event(mask)
	}
}

// goodbye is what epoll says of a connection that the other side, or the network, has ended.
const goodbye = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

// event looks at what happened to a kept connection.
func (k *kept) event(mask uint32) {
	switch {
	case mask&goodbye != 0:
		k.ended()
	case mask&unix.EPOLLIN != 0: // also news of what the last probe has read
		k.listen()
	}
}

// held is the loop's watch over a kept connection of Go's own.
type held struct {
	k      *kept
	number int32
}

func (h *held) event(mask uint32) { h.k.event(mask) }

func (t *task) take(c net.Conn) { c.(*wire).t = t }

func (t *task) leave(c net.Conn) { c.(*wire).t = nil }

// keep makes the wire one that may outlive its probe.
func (w *wire) keep(k *kept) error {
	if err := w.watch(); err != nil {
		return err
	}
	w.kept = k
	k.quiet = func() bool { return w.empty || quiet(w.fd) }
	k.over.Store(w.hung)
	return nil
}

// turn lets others have theirs when this probe was busy for long.
func (w *wire) turn() error {
	if w.reads++; w.reads < maxReads {
		return nil
	}
	w.reads = 0
	w.t.others()
	return w.expired()
}

// Read reads what has come, or waits for it.
func (w *wire) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := w.turn(); err != nil {
		return 0, err
	}
	for {
		if w.empty {
			if err := w.await(); err != nil {
				return 0, err
			}
			if w.empty {
				continue // woken for something else
			}
		}
		n, errno := read(w.fd, b)
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			w.empty = w.watched && !w.hung && n < len(b) // epoll(7): with an edge, a short read has emptied the socket
			return n, nil
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			w.empty = true
		default:
			return 0, os.NewSyscallError("read", errno)
		}
	}
}

// Write writes all of b, or returns why not.
func (w *wire) Write(b []byte) (int, error) {
	if w.writes++; w.writes == 2 {
		_ = setsockoptInt(w.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // the first has nothing to wait for
	}
	done := 0
	for done < len(b) {
		if err := w.turn(); err != nil {
			return done, err
		}
		n, errno := write(w.fd, b[done:])
		switch {
		case errno == 0:
			done += n
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			if err := w.await(); err != nil {
				return done, err
			}
		default:
			return done, os.NewSyscallError("write", errno)
		}
	}
	return done, nil
}

// Close closes the connection; a second time does nothing.
func (w *wire) Close() error {
	if w.fd < 0 {
		return nil
	}
	if w.watched {
		w.l.unwatch(w.number)
	}
	closeDescriptor(w.fd)
	w.fd, w.watched = -1, false
	return nil
}

// CloseWrite says goodbye and goes on reading.
func (w *wire) CloseWrite() error {
	return os.NewSyscallError("shutdown", unix.Shutdown(w.fd, unix.SHUT_WR))
}

// SetLinger is that of net.TCPConn: with 0 seconds Close resets the connection.
func (w *wire) SetLinger(seconds int) error {
	if errno := setLinger(w.fd, seconds); errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

func (w *wire) ends() string {
	b := make([]byte, 0, 96)
	b = w.near.AppendTo(b)
	b = append(b, " to "...)
	return string(w.remote.AppendTo(b))
}

// LocalAddr is our end of the connection.
func (w *wire) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(w.near) }

// RemoteAddr is the target's end.
func (w *wire) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(w.remote) }

// SetDeadline bounds reads and writes beside the probe's own deadline. The zero time is no bound.
func (w *wire) SetDeadline(at time.Time) error {
	w.until = never
	if !at.IsZero() {
		w.until = int64(at.Sub(w.l.base))
	}
	return nil
}

// SetReadDeadline is SetDeadline: a probe does one thing at a time.
func (w *wire) SetReadDeadline(at time.Time) error { return w.SetDeadline(at) }

// SetWriteDeadline is SetDeadline.
func (w *wire) SetWriteDeadline(at time.Time) error { return w.SetDeadline(at) }
