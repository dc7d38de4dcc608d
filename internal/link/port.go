package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options says what a port serves, and to whom.
type Options struct {
	DialerOptions

	Listen    string // host:port
	Advertise string // host:port that others reach it at; the bound address when empty

	Peer http.Handler // rota-peer/1; PeerOf says who asks
	Join http.Handler // rota-join/1; nil: nobody can join here

	// MaxBody bounds the body of one request to Peer; 32 MiB when zero.
	MaxBody int64

	max bounds // the defaults when zero
}

// Bounds of what the port takes.
const (
	handshakeLimit = 5 * time.Second
	defaultBody    = 32 << 20
	peerHeader     = 5 * time.Second
	peerRead       = 60 * time.Second
	peerWrite      = 60 * time.Second
	peerIdle       = 2 * time.Minute
	joinTime       = 15 * time.Second
	stopTimeout    = 3 * time.Second
	acceptPause    = 100 * time.Millisecond // when no descriptor is free
)

// Port is the one door of a node: raft, reports and forwarded events of peers, and newcomers.
type Port struct {
	*Dialer
	o        Options
	gate     *gate
	accepted atomic.Uint64
	raft     atomic.Pointer[queue] // nil: raft does not run
	peer     *queue
	join     *queue

	listen sync.Mutex // guards what follows
	socket net.Listener
	ran    bool
}

// CheckListen says why an address cannot be listened on for the cluster as configured, or nil: without TLS, others could say anything
// in anybody's name, so only this machine may reach it then. key is what it is called in the configuration.
func CheckListen(key, address string, withTLS bool) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s %q: it must be host:port", key, clip(address))
	}
	if withTLS || host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s %q can be reached from other machines, and there is no TLS: whoever reaches it could take the cluster over; "+
		"run `rota cluster bootstrap` or `rota cluster join`, which make certificates, give cluster.tls, or listen on 127.0.0.1", key, clip(address))
}

// NewPort makes a port that does nothing yet.
func NewPort(o Options) (*Port, error) {
	if err := CheckListen("cluster.listen", o.Listen, o.Credentials != nil); err != nil {
		return nil, err
	}
	d, err := NewDialer(o.DialerOptions)
	if err != nil {
		return nil, err
	}
	if me := o.Credentials.Identity(); me.Role != Node {
		return nil, fmt.Errorf("cluster.listen: this process's certificate is of %s, and only nodes listen", me)
	}
	if o.Advertise != "" {
		if err := checkAddress(o.Advertise); err != nil {
			return nil, fmt.Errorf("cluster.advertise: %w", err)
		}
	}
	if o.MaxBody == 0 {
		o.MaxBody = defaultBody
	}
	if o.max == (bounds{}) {
		o.max = defaultBounds
	}
	o.DialerOptions = d.o // with its defaults
	return &Port{Dialer: d, o: o, gate: newGate(o.max), peer: newQueue(), join: newQueue()}, nil
}

// Listen binds the address. Run does it when it has not been done.
func (p *Port) Listen(ctx context.Context) error {
	p.listen.Lock()
	defer p.listen.Unlock()
	if p.socket != nil {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.o.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cluster.listen %s: address in use: another program, or another rota, has it; choose another port", p.o.Listen)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cluster.listen %s: not allowed: choose a port of 1024 or above, or give rota CAP_NET_BIND_SERVICE", p.o.Listen)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cluster.listen %s: no interface of this machine has that address; others reach it by cluster.advertise", p.o.Listen)
	case err != nil:
		return fmt.Errorf("cluster.listen: %w", err)
	}
	p.socket = l
	return nil
}

// Addr returns where others reach the port. It is nil before Listen unless Options.Advertise is set.
func (p *Port) Addr() net.Addr {
	if p.o.Advertise != "" {
		return address(p.o.Advertise)
	}
	p.listen.Lock()
	defer p.listen.Unlock()
	if p.socket == nil {
		return nil
	}
	return p.socket.Addr()
}

// address is a host and port that need not be an IP address of this machine.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// Run listens and serves until ctx ends; then it ends every connection and returns nil. A port runs once. raft should have been shut
// down before, so that it can still hand its leadership over.
func (p *Port) Run(ctx context.Context) error {
	if err := p.Listen(ctx); err != nil {
		return err
	}
	p.listen.Lock()
	l, again := p.socket, p.ran
	p.ran = true
	p.listen.Unlock()
	if again {
		return errors.New("cluster port: it runs already, or has run")
	}
	p.o.Log.Info("cluster port listens", "address", l.Addr().String(), "as", p.o.Credentials.Identity().String())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	servers := []*http.Server{
		{
			Handler:           http.MaxBytesHandler(orNotFound(p.o.Peer), p.o.MaxBody),
			ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return WithPeer(ctx, c.(*Conn).Peer) },
			ReadHeaderTimeout: peerHeader, ReadTimeout: peerRead, WriteTimeout: peerWrite, IdleTimeout: peerIdle,
			MaxHeaderBytes: 32 << 10,
		},
		{
			Handler:           http.MaxBytesHandler(orNotFound(p.o.Join), maxJoinRequest+1),
			ReadHeaderTimeout: peerHeader, ReadTimeout: joinTime, WriteTimeout: joinTime, IdleTimeout: peerHeader,
			MaxHeaderBytes: 8 << 10,
		},
	}
	servers[1].SetKeepAlivesEnabled(false)
	var wg sync.WaitGroup
	failed := make(chan error, 3)
	for i, q := range []*queue{p.peer, p.join} {
		s := servers[i]
		s.ErrorLog = slog.NewLogLogger(p.o.Log.Handler(), slog.LevelDebug)
		wg.Go(func() {
			if err := s.Serve(q); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("cluster port: %w", err)
			}
		})
	}
	wg.Go(func() { p.watch(ctx) })
	wg.Go(func() {
		if err := p.accept(ctx, l); err != nil {
			failed <- fmt.Errorf("cluster port: %w", err)
		}
	})
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	_ = l.Close()
	stop, end := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer end()
	for _, s := range servers {
		if e := s.Shutdown(stop); e != nil {
			_ = s.Close()
		}
	}
	p.peer.close()
	p.join.close()
	if q := p.raft.Swap(nil); q != nil {
		q.close()
	}
	p.Dialer.close()
	wg.Wait()
	return err
}

func orNotFound(h http.Handler) http.Handler {
	if h == nil {
		return http.NotFoundHandler()
	}
	return h
}

// accept takes connections until the listener is closed, and waits for those that are in their handshake.
func (p *Port) accept(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		raw, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			p.refused.refuse(Busy, slog.LevelError, "the cluster port cannot take connections", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		p.accepted.Add(1)
		pass, evicted := p.gate.enter(raw)
		if evicted {
			p.refused.refuse(Busy, slog.LevelWarn, "too many handshakes at once on the cluster port; the oldest was ended", "bound", p.o.max.shaking)
		}
		if pass == nil {
			_ = raw.Close()
			p.refused.refuse(Busy, slog.LevelWarn, "too many connections from one address on the cluster port", "from", raw.RemoteAddr().String())
			continue
		}
		wg.Go(func() {
			if err := p.take(ctx, raw, pass); err != nil {
				pass.leave()
				_ = raw.Close()
				if ctx.Err() == nil {
					p.refused.refuse(classify(err), slog.LevelWarn, "refused a connection on the cluster port", "from", raw.RemoteAddr().String(), "err", err)
				}
			}
		})
	}
}

// classify finds the reason of what went wrong before anybody was let in.
func classify(err error) Reason {
	switch h := (tls.RecordHeaderError{}); {
	case errors.As(err, new(*Refusal)):
		return reasonOf(err, BadHandshake)
	case errors.As(err, &h) && h.Conn != nil:
		return NotTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Slow
	}
	return BadHandshake
}

// take does the callee's part: TLS, who calls, whether they may, and gives the connection to who serves the protocol.
func (p *Port) take(ctx context.Context, raw net.Conn, pass *pass) (err error) {
	_ = raw.SetDeadline(time.Now().Add(handshakeLimit))
	m := p.o.Credentials.now.Load()
	c := &Conn{use: x509.ExtKeyUsageClientAuth, by: m}
	c.leave = func() {
		p.forget(c)
		pass.leave()
	}
	t := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
				return nil, &Refusal{OldTLS, "the caller does not offer TLS 1.3"}
			}
			return p.config(c, m, hello.SupportedProtos)
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	c.Conn = t
	if !p.keep(c) { // under watch before it is let in: whoever is removed from now on is found
		return net.ErrClosed
	}
	defer func() {
		if err != nil {
			c.leave()
		}
	}()
	if got := t.ConnectionState().NegotiatedProtocol; got != c.Protocol {
		return &Refusal{WrongProtocol, fmt.Sprintf("negotiated %q", got)}
	}
	if c.Protocol == ProtocolJoin {
		if !pass.advance(joining, "") {
			return &Refusal{Busy, "too many newcomers at once"}
		}
		return p.hand(c, p.join)
	}
	if c.Peer.Role == "" {
		return &Refusal{NoCertificate, "the caller showed no certificate"}
	}
	var n [1]byte
	if _, err := io.ReadFull(t, n[:]); err != nil {
		return err
	}
	cluster := make([]byte, n[0])
	if _, err := io.ReadFull(t, cluster); err != nil {
		return err
	}
	raft := p.raft.Load()
	switch {
	case string(cluster) != m.id.Cluster:
		err = &Refusal{OtherCluster, fmt.Sprintf("%s calls for cluster %s, this is cluster %s", c.Peer, plain(string(cluster)), m.id.Cluster)}
	case c.Protocol == ProtocolRaft && raft == nil:
		err = &Refusal{NotServed, "raft does not run here now"}
	default:
		if err = p.authorise(c); err == nil && !pass.advance(open, agentOf(c.Peer)) {
			err = &Refusal{Busy, "too many connections"}
		}
	}
	if err != nil {
		// Who it is has been made sure of, so it may know why.
		text := err.Error()
		text = text[:min(len(text), maxGreeting)]
		_, _ = t.Write(append([]byte{goAway, byte(len(text) >> 8), byte(len(text))}, text...))
		_ = t.Close()
		return fmt.Errorf("%s on %s: %w", c.Peer, c.Protocol, err)
	}
	id := m.id.Cluster
	if _, err := t.Write(append([]byte{welcome, 0, byte(len(id))}, id...)); err != nil {
		return err
	}
	if c.Protocol == ProtocolRaft {
		return p.hand(c, raft)
	}
	return p.hand(c, p.peer)
}

// agentOf returns the name of an agent; empty: it is none.
func agentOf(i Identity) string {
	if i.Role != Agent {
		return ""
	}
	return i.Name
}

// hand gives a connection to those who serve it, within what is left of its time.
func (p *Port) hand(c *Conn, q *queue) error {
	_ = c.SetDeadline(time.Time{})
	if !q.put(c, handshakeLimit) {
		return &Refusal{NotServed, c.Protocol + " is not served now"}
	}
	return nil
}

// config is the TLS of one connection, by what the caller wants to speak.
func (p *Port) config(c *Conn, m *material, offered []string) (*tls.Config, error) {
	if len(offered) != 1 {
		return nil, &Refusal{WrongProtocol, fmt.Sprintf("the caller offers %d protocols by ALPN, not one", len(offered))}
	}
	c.Protocol = offered[0]
	conf := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{c.Protocol},
		SessionTicketsDisabled: true, // who calls is made sure of every time
	}
	switch {
	case c.Protocol == ProtocolJoin && p.o.Join == nil:
		return nil, &Refusal{NotServed, "nobody can join here: this cluster's certificates come from outside rota"}
	case c.Protocol == ProtocolJoin:
		conf.Certificates = []tls.Certificate{m.full}
	case c.Protocol == ProtocolRaft, c.Protocol == ProtocolPeer:
		conf.Certificates = []tls.Certificate{m.cert}
		conf.ClientAuth = tls.RequestClientCert // asked for here; VerifyConnection refuses when there is none
		conf.VerifyConnection = func(cs tls.ConnectionState) (err error) {
			c.certs = cs.PeerCertificates
			c.Peer, c.until, err = m.verify(cs.PeerCertificates, c.use, time.Now())
			return err
		}
	default:
		return nil, &Refusal{WrongProtocol, fmt.Sprintf("the caller wants to speak %q", clip(c.Protocol))}
	}
	return conf, nil
}

// Stats is what the port has seen.
type Stats struct {
	Accepted  uint64            // connections, whatever became of them
	Handshake int               // under way
	Open      int               // let in
	Refused   map[Reason]uint64 // in both directions, by reason
}

// Stats returns it as of now.
func (p *Port) Stats() Stats {
	s := Stats{Accepted: p.accepted.Load(), Refused: p.refused.counts()}
	s.Handshake, s.Open = p.gate.counts()
	return s
}

// queue is a listener whose connections come from the port.
type queue struct {
	conns  chan *Conn
	closed chan struct{}
	once   sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan *Conn), closed: make(chan struct{})} }

func (q *queue) put(c *Conn, within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
	case <-t.C:
	}
	return false
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) close() { q.once.Do(func() { close(q.closed) }) }

func (q *queue) Close() error {
	q.close()
	return nil
}

func (q *queue) Addr() net.Addr { return address("cluster port") }

// Stream is raft's stream layer over a port: Stream[raft.ServerAddress] is a raft.StreamLayer.
type Stream[Address ~string] struct {
	p *Port
	q *queue
}

// Raft opens a port for raft's connections; before that, and after the stream is closed, they are refused. There is one stream at a
// time: a new one closes the one before.
func Raft[Address ~string](p *Port) *Stream[Address] {
	s := &Stream[Address]{p, newQueue()}
	if old := p.raft.Swap(s.q); old != nil {
		old.close()
	}
	return s
}

// Accept waits for the next connection of another node's raft.
func (s *Stream[Address]) Accept() (net.Conn, error) { return s.q.Accept() }

// Close refuses raft's connections from now on. The port stays open for the rest.
func (s *Stream[Address]) Close() error {
	s.p.raft.CompareAndSwap(s.q, nil)
	return s.q.Close()
}

// Addr returns where others reach this node.
func (s *Stream[Address]) Addr() net.Addr { return s.p.Addr() }

// Dial calls another node's raft.
func (s *Stream[Address]) Dial(to Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.p.Dialer.Dial(ctx, ProtocolRaft, string(to))
	if err != nil {
		return nil, err // not c: a nil *Conn in an interface is not nil
	}
	return c, nil
}
