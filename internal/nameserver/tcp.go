package nameserver

import (
	"bufio"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// accept takes TCP connections until the listener is closed, and waits for them to end.
func (s *Server) accept(ctx context.Context, l *net.TCPListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for wait := time.Duration(0); ; {
		c, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors or memory: whoever waits is taken when there is room again.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log.Warn("cannot accept a TCP connection", "listen", l.Addr().String(), "error", err, "again_in", wait)
			pause(ctx, wait)
			continue
		}
		wait = 0
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		conn, closed := s.conns.add(c, client(from.Addr()), s.opts.MaxTCP, s.opts.MaxClient)
		s.counters.tcpClosed.Add(uint64(closed))
		if conn == nil {
			c.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.remove(conn)
			defer c.Close()
			s.converse(ctx, conn, from)
		})
	}
}

// converse answers the queries of one connection in their order (RFC 7766) until the client ends, idles or stalls. Answers to queries
// that came together leave together.
func (s *Server) converse(ctx context.Context, conn *tcpConn, from netip.AddrPort) {
	r := bufio.NewReaderSize(conn, 4096)
	w := bufio.NewWriterSize(conn, 4096)
	var packet []byte
	for ctx.Err() == nil {
		if !whole(r) {
			if w.Flush() != nil {
				return
			}
		}
		idle := r.Buffered() == 0
		if idle {
			s.conns.await(conn, s.opts.IdleTimeout, true)
			if _, err := r.Peek(1); err != nil {
				return
			}
		}
		if idle || !whole(r) {
			s.conns.await(conn, s.opts.IOTimeout, false)
		}
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if cap(packet) < n {
			packet = make([]byte, n)
		}
		if _, err := io.ReadFull(r, packet[:n]); err != nil {
			return
		}
		reply := s.serve(packet[:n], from, false)
		if reply == nil {
			return // no client sends that
		}
		// A client that does not take its answers is given up at the first write that stalls.
		conn.SetWriteDeadline(time.Now().Add(s.opts.IOTimeout))
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		if _, err := w.Write(size[:]); err != nil {
			return
		}
		if _, err := w.Write(reply); err != nil {
			return
		}
	}
	w.Flush()
}

// whole reports whether r holds a whole query, which can be read without waiting.
func whole(r *bufio.Reader) bool {
	if r.Buffered() < 2 {
		return false
	}
	size, err := r.Peek(2)
	return err == nil && r.Buffered() >= 2+int(binary.BigEndian.Uint16(size))
}

// client is whom a connection counts for: an IPv4 address or an IPv6 /64.
func client(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// tcpConn is one open connection.
type tcpConn struct {
	*net.TCPConn
	client netip.Prefix
	turn   *list.Element // in connTable.idling, or nil
}

// connTable holds the open connections and keeps their number within bounds. The zero value is ready.
type connTable struct {
	mu      sync.Mutex
	conns   map[*tcpConn]bool
	clients map[netip.Prefix]int
	idling  list.List // of *tcpConn that wait for a query, the longest first
	closing bool
}

// add enters a connection, or returns nil when its client has too many or the table is full of busy ones. When the table is full, the
// connection that idled longest is closed to make room: whoever asks comes before whoever only holds on. closed counts who lost.
func (t *connTable) add(c *net.TCPConn, client netip.Prefix, most, mostClient int) (conn *tcpConn, closed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		t.conns, t.clients = map[*tcpConn]bool{}, map[netip.Prefix]int{}
	}
	if t.closing || t.clients[client] >= mostClient {
		return nil, 1
	}
	if len(t.conns) >= most {
		first := t.idling.Front()
		if first == nil {
			return nil, 1
		}
		old := first.Value.(*tcpConn)
		t.drop(old)
		old.Close()
		closed = 1
	}
	conn = &tcpConn{TCPConn: c, client: client}
	t.conns[conn] = true
	t.clients[client]++
	return conn, closed
}

func (t *connTable) remove(c *tcpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(c)
}

// drop forgets a connection. mu is held.
func (t *connTable) drop(c *tcpConn) {
	if !t.conns[c] {
		return
	}
	delete(t.conns, c)
	if t.clients[c.client]--; t.clients[c.client] == 0 {
		delete(t.clients, c.client)
	}
	if c.turn != nil {
		t.idling.Remove(c.turn)
		c.turn = nil
	}
}

// await bounds the next read of a connection, and notes whether it idles meanwhile. When the table is closing there is no next read.
func (t *connTable) await(c *tcpConn, d time.Duration, idle bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		d = 0
	}
	c.SetReadDeadline(time.Now().Add(d))
	switch {
	case !t.conns[c]:
	case idle && c.turn == nil:
		c.turn = t.idling.PushBack(c)
	case !idle && c.turn != nil:
		t.idling.Remove(c.turn)
		c.turn = nil
	}
}

func (t *connTable) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}

// closeAll ends the connections: whoever is being answered still gets that answer, nobody's next query is read.
func (t *connTable) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = true
	for c := range t.conns {
		c.SetReadDeadline(time.Now())
	}
}
