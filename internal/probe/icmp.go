package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/rota-dns/rota/internal/rota"
)

// Message types of ICMP (RFC 792) and ICMPv6 (RFC 4443) that matter to an echo.
const (
	echoRequest4, echoReply4   = 8, 0
	unreachable4, exceeded4    = 3, 11
	echoRequest6, echoReply6   = 128, 129
	unreachable6, tooBig6      = 1, 2
	exceeded6, parameterError6 = 3, 4
)

// Protocol numbers of ICMP and ICMPv6 in an IP header.
const (
	protocol4 = 1
	protocol6 = 58
)

// The payload of our echo requests: who sent it, then which it is. The sender's identity is random per socket, so that nobody who
// has not seen a request can answer it, and no other program's replies are taken for ours.
const (
	identitySize = 16
	payloadSize  = identitySize + 8
	echoSize     = 8 + payloadSize
)

// echo is an ICMP echo request or reply, or an ICMP error about one.
type echo struct {
	failure  string // in words, when this is an error message; else empty
	id, seq  uint16
	identity [identitySize]byte // all zero when an error message quotes too little
	number   uint64
	quoted   bool       // the identity and number are there
	dst      netip.Addr // of the quoted request, in an error message
}

// parseEcho reads an ICMP message, without its IP header, as a socket of that family gives it. It refuses everything that is not an
// echo reply, or an error message about an echo request.
func parseEcho(b []byte, six bool) (echo, bool) {
	if len(b) < 8 {
		return echo{}, false
	}
	typ, code := b[0], b[1]
	if !six {
		switch typ {
		case echoReply4:
			return parseEchoBody(b)
		case unreachable4, exceeded4:
			return parseQuoted4(b[8:], failure4(typ, code))
		}
		return echo{}, false
	}
	switch typ {
	case echoReply6:
		return parseEchoBody(b)
	case unreachable6, exceeded6, tooBig6, parameterError6:
		return parseQuoted6(b[8:], failure6(typ, code))
	}
	return echo{}, false
}

func parseEchoBody(b []byte) (echo, bool) {
	if len(b) < 8 {
		return echo{}, false
	}
	e := echo{id: binary.BigEndian.Uint16(b[4:]), seq: binary.BigEndian.Uint16(b[6:])}
	if len(b) >= echoSize {
		copy(e.identity[:], b[8:])
		e.number = binary.BigEndian.Uint64(b[8+identitySize:])
		e.quoted = true
	}
	return e, true
}

// parseQuoted4 reads the IPv4 packet an error message is about (RFC 792: header and at least 8 bytes).
func parseQuoted4(b []byte, failure string) (echo, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return echo{}, false
	}
	size := int(b[0]&15) * 4
	if size < 20 || len(b) < size+8 || b[9] != protocol4 || b[size] != echoRequest4 {
		return echo{}, false
	}
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return echo{}, false // a later fragment has no ICMP header
	}
	e, ok := parseEchoBody(b[size:])
	e.failure, e.dst = failure, netip.AddrFrom4([4]byte(b[16:20]))
	return e, ok
}

// parseQuoted6 does so for IPv6. Our requests carry no extension headers, so a quoted packet with one is not ours.
func parseQuoted6(b []byte, failure string) (echo, bool) {
	const header = 40
	if len(b) < header+8 || b[0]>>4 != 6 || b[6] != protocol6 || b[header] != echoRequest6 {
		return echo{}, false
	}
	e, ok := parseEchoBody(b[header:])
	e.failure, e.dst = failure, netip.AddrFrom16([16]byte(b[24:40]))
	return e, ok
}

func failure4(typ, code byte) string {
	if typ == exceeded4 {
		return "time to live exceeded on the way"
	}
	switch code {
	case 0, 6, 11:
		return "network unreachable"
	case 1, 7, 12:
		return "host unreachable"
	case 2:
		return "protocol unreachable"
	case 9, 10, 13:
		return "administratively prohibited"
	}
	return fmt.Sprintf("unreachable (code %d)", code)
}

func failure6(typ, code byte) string {
	switch typ {
	case exceeded6:
		return "hop limit exceeded on the way"
	case tooBig6:
		return "packet too big for the way"
	case parameterError6:
		return "parameter problem"
	}
	switch code {
	case 0:
		return "no route on the way"
	case 1:
		return "administratively prohibited"
	case 3:
		return "host unreachable"
	}
	return fmt.Sprintf("unreachable (code %d)", code)
}

// result is the answer to one echo request.
type result struct {
	at      time.Time
	failure string // in words, when an error message came
	err     error  // why the request was not sent
}

// waiting is one echo request without an answer.
type waiting struct {
	addr   netip.Addr
	answer chan<- result // with room for it
	seat   seat          // of who waits; nil: it has a goroutine
}

// end gives the answer to who waits.
func (w waiting) end(r result) {
	w.answer <- r
	if w.seat != nil {
		w.seat.wake()
	}
}

// outbox sends the requests of a socket and takes the answers, many at a time, in place of its connection.
type outbox interface {
	// queue sends a request soon. A failure is given to who waits for the answer. The caller holds the socket's mu.
	queue(number uint64, addr netip.Addr, seated bool)
	close()
}

// pinger holds the ICMP sockets: one a family, opened at the first echo request of it, shared by all targets.
type pinger struct {
	log   *slog.Logger
	open  func(six bool) (*socket, error)
	adopt func(*socket) (outbox, error) // makes the outbox of a new socket; nil: it is read by a goroutine

	mu     sync.Mutex // guards what follows
	socks  [2]*socket // IPv4, IPv6
	closed bool
	wg     sync.WaitGroup // one reader a socket; close waits for it
}

func newPinger(log *slog.Logger) *pinger { return &pinger{log: log, open: openSocket} }

// socket is one ICMP socket with the requests that wait for an answer on it.
type socket struct {
	conn     net.PacketConn // unless it has an outbox
	outbox   outbox
	six      bool
	raw      bool   // else a ping socket: the kernel chooses the id and checks it
	id       uint16 // of our requests on a raw socket
	identity [identitySize]byte

	mu      sync.Mutex // guards what follows
	number  uint64     // of the last request
	waiting map[uint64]waiting
}

// openSocket opens an unprivileged ping socket, or else a raw one.
func openSocket(six bool) (*socket, error) {
	s := &socket{six: six, waiting: map[uint64]waiting{}}
	if _, err := rand.Read(s.identity[:]); err != nil {
		return nil, err
	}
	s.id = binary.BigEndian.Uint16(s.identity[:]) | 1
	ping, raw, any4 := "udp4", "ip4:icmp", "0.0.0.0"
	if six {
		ping, raw, any4 = "udp6", "ip6:ipv6-icmp", "::"
	}
	conn, err := icmp.ListenPacket(ping, any4)
	if err != nil {
		first := err
		if conn, err = icmp.ListenPacket(raw, any4); err != nil {
			if refused(err) && !refused(first) && !unsupported(first) {
				return nil, first // such as no descriptor left: the permission was not the trouble
			}
			return nil, err
		}
		s.raw = true
		s.filter(conn)
	}
	s.conn = conn
	if c, ok := rawConn(conn); ok {
		_ = c.SetReadBuffer(4 << 20) // replies come in bursts; the kernel caps it at net.core.rmem_max
	}
	return s, nil
}

func refused(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
}

func unsupported(err error) bool {
	return errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// kernelConn is what the connections of package net offer beside net.PacketConn.
type kernelConn interface {
	syscall.Conn
	SetReadBuffer(int) error
}

func rawConn(c net.PacketConn) (kernelConn, bool) {
	if c, ok := c.(*icmp.PacketConn); ok {
		if p := c.IPv4PacketConn(); p != nil {
			k, ok := p.PacketConn.(kernelConn)
			return k, ok
		}
		if p := c.IPv6PacketConn(); p != nil {
			k, ok := p.PacketConn.(kernelConn)
			return k, ok
		}
	}
	return nil, false
}

// filter keeps the ICMP of everyone else away from a raw socket, where the system can.
func (s *socket) filter(c *icmp.PacketConn) {
	if s.six {
		var f ipv6.ICMPFilter
		f.SetAll(true)
		for _, t := range []ipv6.ICMPType{echoReply6, unreachable6, tooBig6, exceeded6, parameterError6} {
			f.Accept(t)
		}
		_ = c.IPv6PacketConn().SetICMPFilter(&f)
		return
	}
	var f ipv4.ICMPFilter
	f.SetAll(true)
	for _, t := range []ipv4.ICMPType{echoReply4, unreachable4, exceeded4} {
		f.Accept(t)
	}
	_ = c.IPv4PacketConn().SetICMPFilter(&f)
}

// socket returns the socket of a family, opening it and starting its reader when it is the first time.
func (p *pinger) socket(six bool) (*socket, error) {
	i := 0
	if six {
		i = 1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	if p.socks[i] != nil {
		return p.socks[i], nil
	}
	s, err := p.open(six)
	if err != nil {
		return nil, err
	}
	if p.adopt != nil {
		if s.outbox, err = p.adopt(s); err != nil {
			_ = s.conn.Close()
			return nil, err
		}
	} else {
		p.wg.Go(s.read)
	}
	p.socks[i] = s
	p.log.Debug("icmp socket open", "ipv6", six, "raw", s.raw)
	return s, nil
}

// close closes the sockets and waits for their readers.
func (p *pinger) close() {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.socks {
		switch {
		case s == nil:
		case s.outbox != nil:
			s.outbox.close()
		default:
			_ = s.conn.Close()
		}
	}
	p.socks = [2]*socket{}
	p.mu.Unlock()
	p.wg.Wait()
}

// read takes messages until the socket is closed. A socket that reports errors otherwise (a message too long, a device gone) is read
// on, a little later.
func (s *socket) read() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.take(buf[:n], source(from), time.Now())
	}
}

func source(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.IPAddr:
		ip, _ := netip.AddrFromSlice(a.IP)
		return ip.Unmap().WithZone(a.Zone)
	}
	return netip.Addr{}
}

// take gives a message to the request it answers. Everything must fit: our id, sequence, identity and number, and a reply must come
// from the address that was asked. What fits nothing (spoofed, late, twice, about others) is dropped.
func (s *socket) take(b []byte, from netip.Addr, at time.Time) {
	e, ok := parseEcho(b, s.six)
	if !ok || (s.raw && e.id != s.id) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number := e.number
	switch {
	case e.quoted:
		if e.identity != s.identity || uint16(number) != e.seq {
			return
		}
	case e.failure == "" || !s.raw:
		return
	default:
		// An error that quotes 8 bytes only (RFC 792) has id and sequence; take the newest request of that sequence.
		number = s.number - uint64(uint16(s.number)-e.seq)
	}
	w, ok := s.waiting[number]
	if !ok {
		return
	}
	if e.failure != "" {
		if e.dst != w.addr.WithZone("") {
			return
		}
	} else if from.WithZone("") != w.addr.WithZone("") || (w.addr.Zone() != "" && from.Zone() != "" && from.Zone() != w.addr.Zone()) {
		return
	}
	delete(s.waiting, number)
	w.end(result{at: at, failure: e.failure})
}

// send sends one echo request and returns its number; the answer, if one comes, goes to w, whose channel must have room. forget ends
// the wait.
func (s *socket) send(w waiting) (number uint64, err error) {
	s.mu.Lock()
	s.number++
	number = s.number
	s.waiting[number] = w
	if s.outbox != nil {
		s.outbox.queue(number, w.addr, w.seat != nil)
		s.mu.Unlock()
		return number, nil
	}
	s.mu.Unlock()
	b := make([]byte, echoSize)
	s.request(b, number)
	if _, err := s.conn.WriteTo(b, s.address(w.addr)); err != nil {
		s.forget(number)
		return 0, err
	}
	return number, nil
}

// forget ends the wait for the answer to a request.
func (s *socket) forget(number uint64) {
	s.mu.Lock()
	delete(s.waiting, number)
	s.mu.Unlock()
}

func (s *socket) address(addr netip.Addr) net.Addr {
	if s.raw {
		return &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	}
	return &net.UDPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
}

// request writes an echo request as it is on the wire into the first echoSize bytes of b. The kernel fills in the checksum of ICMPv6.
func (s *socket) request(b []byte, number uint64) {
	b[0], b[1], b[2], b[3] = echoRequest4, 0, 0, 0
	if s.six {
		b[0] = echoRequest6
	}
	binary.BigEndian.PutUint16(b[4:], s.id)
	binary.BigEndian.PutUint16(b[6:], uint16(number))
	copy(b[8:], s.identity[:])
	binary.BigEndian.PutUint64(b[8+identitySize:], number)
	if !s.six {
		binary.BigEndian.PutUint16(b[2:], checksum(b[:echoSize]))
	}
}

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// probeICMP sends Count echo requests and judges how many were answered. It ends as soon as all are.
func probeICMP(ctx context.Context, r *run) finding {
	return r.echo(ctx, r.q.check.Count, r.q.check.Count)
}

// echo sends count echo requests, spread over the first half of the timeout but at most a second apart, and ends as soon as enough of them
// are answered.
func (r *run) echo(ctx context.Context, count, enough int) finding {
	s, err := r.ping.socket(r.addr.Is6())
	if err != nil {
		return r.socketFault(ctx, err)
	}
	gap := max(min(time.Second, r.q.check.Timeout/time.Duration(2*count)), 1)
	var start [64]byte // of the log; more takes memory
	log := start[:0]
	note := func(what string, after time.Duration, rest string) {
		log = append(append(log, what...), " after "...)
		log = append(append(append(log, after.Round(time.Microsecond).String()...), rest...), '\n')
	}
	answers := make(chan result, count) // shared by all requests: each is answered at most once
	var numbers [rota.MaxCount]uint64
	sent, got, failed, failure := 0, 0, 0, ""
	defer func() {
		for _, n := range numbers[:sent] {
			s.forget(n)
		}
	}()
	done := r.trace.begin("echo")
	finish := func() {
		done(strconv.Itoa(sent) + " sent, " + strconv.Itoa(got) + " answered")
		r.trace.Received, r.trace.ReceivedSize = escape(log, maxHead), got*echoSize
	}
	begun := time.Now()
	deadline, bounded := ctx.Deadline()
	var unsent error
	take := func(a result) {
		switch {
		case a.err != nil:
			unsent = a.err
		case bounded && a.at.After(deadline): // it was there to be looked at, but too late
		case a.failure == "":
			got++
			log = strconv.AppendInt(append(log, "reply "...), int64(got), 10)
			note("", a.at.Sub(begun), "")
		default:
			failed++
			failure = a.failure
			note("error", a.at.Sub(begun), ": "+failure)
		}
	}
	for next := begun; got < enough && got+failed < count && unsent == nil; {
		if sent < count && (sent == 0 || !time.Now().Before(next)) {
			if numbers[sent], unsent = s.send(waiting{addr: r.addr, answer: answers, seat: r.seat}); unsent != nil {
				break
			}
			sent++
			next = next.Add(gap)
		}
		until := next
		if sent == count {
			until = deadline
		}
		if a, ok := r.await(ctx, answers, until); ok {
			take(a)
		} else if ctx.Err() != nil {
			for len(answers) > 0 { // what came in time counts, however busy this process was
				take(<-answers)
			}
			break
		}
	}
	finish()
	if unsent != nil {
		return r.fault(ctx, "echo", unsent)
	}
	if r.parent.Err() != nil {
		return unknown(rota.ClassCancelled, "cancelled")
	}
	lost := enough - got
	switch {
	case got == 0 && failure != "":
		return down(rota.ClassUnreachable, "echo: %s", failure)
	case got == 0:
		return down(rota.ClassTimeout, "echo: no reply within %v", r.q.check.Timeout)
	case r.q.check.Loss > 0 && float64(lost) >= r.q.check.Loss*float64(count) && lost > 0:
		return down(rota.ClassLoss, "lost %d of %d, want less than %g%%", lost, count, r.q.check.Loss*100)
	case lost > 0:
		return up("lost %d of %d", lost, count)
	}
	return up("reply")
}

// await returns the next answer, or none when the time has come, the context has ended or, on a seat, when it has to be asked again.
// Without a time it waits as long as the context does.
func (r *run) await(ctx context.Context, answers <-chan result, until time.Time) (result, bool) {
	if r.seat != nil {
		if len(answers) == 0 {
			r.seat.wait(until)
		}
		select {
		case a := <-answers:
			return a, true
		default:
			return result{}, false
		}
	}
	var at <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		at = timer.C
	}
	select {
	case a := <-answers:
		return a, true
	case <-at:
	case <-ctx.Done():
	}
	return result{}, false
}

// socketFault says what to do when there is no ICMP socket.
func (r *run) socketFault(ctx context.Context, err error) finding {
	if r.parent.Err() == nil && refused(err) {
		return unknown(rota.ClassPermission, "no permission for ICMP: set sysctl net.ipv4.ping_group_range to include this group, or give CAP_NET_RAW")
	}
	if errors.Is(err, net.ErrClosed) {
		return unknown(rota.ClassCancelled, "cancelled")
	}
	return r.fault(ctx, "icmp socket", err)
}
