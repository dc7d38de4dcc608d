package probe

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a batch of messages.
const (
	batchSize   = 64
	batchPacket = 256 // bytes of a received message looked at: an error quotes two headers and our request
)

// batch is the outbox of an ICMP socket in a loop: requests are sent and answers taken many at a time, and the kernel says when an
// answer came, so that a delay of this process is not taken for one of the network.
type batch struct {
	l      *loop
	s      *socket
	fd     int
	number int32

	waiting []outgoing // guarded by the socket's mu

	// Owned by the loop's goroutine.
	sending []outgoing    // not yet taken by the kernel
	full    bool          // the kernel takes no more for now
	deaf    syscall.Errno // why answers cannot be taken; 0: they can
	out     [batchSize]message
	in      [batchSize]message
	outHead [batchSize]mmsghdr
	inHead  [batchSize]mmsghdr
}

// outgoing is a request to be sent.
type outgoing struct {
	number uint64
	addr   netip.Addr
	scope  uint32
}

// message is the room of one message.
type message struct {
	name    sockaddr
	vector  unix.Iovec
	control [64]byte
	data    [batchPacket]byte
}

// adopt takes over the descriptor of a socket.
func (l *loop) adopt(s *socket) (outbox, error) {
	k, ok := rawConn(s.conn)
	if !ok {
		return nil, errors.New("the ICMP socket has no descriptor")
	}
	c, err := k.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{l: l, s: s, fd: -1, number: -1}
	var dup error
	if err := c.Control(func(fd uintptr) { b.fd, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dup != nil {
		return nil, os.NewSyscallError("fcntl", dup)
	}
	_ = s.conn.Close()
	_ = setsockoptInt(b.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) // without it the time of reading counts
	for i := range batchSize {
		for _, x := range []struct {
			m    *message
			head *unix.Msghdr
			size int
		}{{&b.out[i], &b.outHead[i].Msghdr, echoSize}, {&b.in[i], &b.inHead[i].Msghdr, batchPacket}} {
			x.m.vector.Base = &x.m.data[0]
			x.m.vector.SetLen(x.size)
			x.head.Iov = &x.m.vector
			x.head.SetIovlen(1)
			x.head.Name = (*byte)(unsafe.Pointer(&x.m.name))
		}
	}
	l.order(order{call: b.attach})
	return b, nil
}

// attach puts the socket into the loop's epoll set. While that fails, no request is sent: nobody would hear the answer.
func (b *batch) attach() {
	n, err := b.l.watch(b.fd, b, unix.EPOLLIN|unix.EPOLLOUT)
	if err != nil {
		errors.As(err, &b.deaf)
		return
	}
	b.number, b.deaf = n, 0
}

func (b *batch) close() { closeDescriptor(b.fd) }

func (b *batch) queue(number uint64, addr netip.Addr, seated bool) {
	o := outgoing{number: number, addr: addr}
	if z := addr.Zone(); z != "" {
		if i, err := net.InterfaceByName(z); err == nil {
			o.scope = uint32(i.Index)
		}
	}
	b.waiting = append(b.waiting, o)
	if len(b.waiting) > 1 {
		return // the loop knows
	}
	if seated {
		b.l.echoes = append(b.l.echoes, b)
	} else {
		b.l.order(order{call: func() { b.l.echoes = append(b.l.echoes, b) }})
	}
}

// event is the loop's word that answers came, or that the kernel takes requests again.
func (b *batch) event(mask uint32) {
	if mask&unix.EPOLLOUT != 0 && b.full {
		b.full = false
		b.send()
	}
	if mask&^uint32(unix.EPOLLOUT) != 0 {
		b.receive()
	}
}

// send hands the kernel what is waiting.
func (b *batch) send() {
	b.s.mu.Lock()
	b.sending = append(b.sending, b.waiting...)
	b.waiting = b.waiting[:0]
	b.s.mu.Unlock()
	rest := b.sending
	if len(rest) > 0 && b.deaf != 0 {
		if b.attach(); b.deaf != 0 {
			for _, o := range rest {
				b.fail(o.number, b.deaf)
			}
			rest = nil
		}
	}
	for len(rest) > 0 && !b.full {
		n := min(len(rest), batchSize)
		for i, o := range rest[:n] {
			m := &b.out[i]
			b.outHead[i].Namelen = m.name.set(netip.AddrPortFrom(o.addr, 0))
			if o.scope != 0 {
				m.name.Scope_id = o.scope
			}
			b.s.request(m.data[:], o.number)
		}
		sent, errno := sendmmsg(b.fd, b.outHead[:n])
		switch errno {
		case 0:
			rest = rest[sent:]
		case unix.EINTR:
		case unix.EAGAIN:
			b.full = true // an event comes when there is room
		default: // of the first
			b.fail(rest[0].number, errno)
			rest = rest[1:]
		}
	}
	b.sending = append(b.sending[:0], rest...)
}

// fail tells who waits for an answer why its request was not sent.
func (b *batch) fail(number uint64, errno syscall.Errno) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if w, ok := b.s.waiting[number]; ok {
		delete(b.s.waiting, number)
		w.end(result{err: os.NewSyscallError("sendmmsg", errno)})
	}
}

// receive takes the answers that came.
func (b *batch) receive() {
	for rounds := 0; rounds < maxReads; rounds++ {
		for i := range b.inHead {
			h, m := &b.inHead[i], &b.in[i]
			h.Namelen = uint32(unsafe.Sizeof(m.name))
			h.Control = &m.control[0]
			h.SetControllen(len(m.control))
		}
		n, errno := recvmmsg(b.fd, b.inHead[:])
		if errno == unix.EAGAIN {
			return
		}
		if errno != 0 {
			continue // such as an error from afar, which the call has taken off the socket
		}
		now := time.Now()
		for i := range b.inHead[:n] {
			h, m := &b.inHead[i], &b.in[i]
			data := m.data[:min(int(h.size), len(m.data))]
			if b.s.raw && !b.s.six {
				if len(data) < 20 || len(data) < int(data[0]&15)*4 {
					continue
				}
				data = data[int(data[0]&15)*4:] // the IP header
			}
			b.s.take(data, m.name.get().Addr(), m.arrived(&h.Msghdr, now))
		}
		if n < batchSize {
			return
		}
	}
	b.l.order(order{call: b.receive}) // after the others' turn
}

// arrived is when the kernel took the message in, on this process' monotonic clock. The kernel's stamp is of the wall clock: one that
// does not lie in the last seconds is of another time.
func (m *message) arrived(h *unix.Msghdr, now time.Time) time.Time {
	c := (*unix.Cmsghdr)(unsafe.Pointer(&m.control[0]))
	if uint64(h.Controllen) < uint64(unix.CmsgLen(int(unsafe.Sizeof(unix.Timespec{})))) || c.Level != unix.SOL_SOCKET || c.Type != unix.SO_TIMESTAMPNS {
		return now
	}
	stamp := (*unix.Timespec)(unsafe.Pointer(&m.control[unix.CmsgLen(0)]))
	age := now.UnixNano() - stamp.Nano()
	if age < 0 || age > int64(10*time.Second) {
		return now
	}
	return now.Add(-time.Duration(age))
}
