package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// SocketName is the file name of the unix socket in a data directory.
const SocketName = "api.sock"

// Bounds of connections.
const (
	maxConns      = 512 // open at once, a listener
	maxPerClient  = 64  // of these from one address
	headerTimeout = 5 * time.Second
	readTimeout   = 15 * time.Second
	writeTimeout  = 30 * time.Second // of one answer; an event stream renews it with each event
	idleTimeout   = 60 * time.Second
	stopTimeout   = 5 * time.Second
	socketMode    = 0o660
	maxSocketPath = 107 // bytes that fit into sun_path, unix(7)
)

// Listen binds the unix socket and the TCP address. A socket that nobody answers on is replaced; one that somebody answers on is an
// error. After an error nothing is bound.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners) > 0 {
		return errors.New("api: listens already")
	}
	if err := s.listen(ctx); err != nil {
		for _, l := range s.listeners {
			_ = l.Close()
		}
		s.listeners = nil
		return err
	}
	return nil
}

func (s *Server) listen(ctx context.Context) error {
	if s.o.Socket != "" {
		l, err := listenUnix(ctx, s.o.Socket)
		if err != nil {
			return fmt.Errorf("api socket %s: %w", s.o.Socket, err)
		}
		s.listeners = append(s.listeners, limit(l, maxConns))
	}
	if s.o.Listen == "" {
		return nil
	}
	var certs *certificate
	if s.o.CertFile != "" {
		certs = &certificate{certFile: s.o.CertFile, keyFile: s.o.KeyFile, log: s.log}
		if _, err := certs.get(nil); err != nil {
			return fmt.Errorf("api.tls: %w", err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.o.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("api.listen %s: address in use: another program, or another rota, has it; choose another port", s.o.Listen)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("api.listen %s: not allowed: choose a port of 1024 or above, or give rota CAP_NET_BIND_SERVICE", s.o.Listen)
	case err != nil:
		return fmt.Errorf("api.listen: %w", err)
	}
	l = limit(l, maxConns)
	if certs != nil {
		l = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get, NextProtos: []string{"h2", "http/1.1"}})
	}
	s.listeners = append(s.listeners, l)
	return nil
}

// Addr returns the TCP address the server listens on, or nil.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			return a
		}
	}
	return nil
}

// Run serves until ctx ends, then lets requests that are under way finish for up to 5 seconds and returns nil. It listens first when
// Listen was not called. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	bound := len(s.listeners) > 0
	s.mu.Unlock()
	if !bound {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	srv := s.httpServer()
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		s.log.Info("api listens", "address", l.Addr().String())
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("api on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		close(s.closing)
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			_ = srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// httpServer sets the limits of every connection. They hold for every path, health and metrics too: a listener without them can be
// held open for ever.
func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler:           s.Handler(),
		ConnContext:       keepPeer,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// limited is a listener with a bound on the connections that are open at once: beyond it, callers wait in the kernel's queue. One
// client's share is bounded too, so that it cannot keep everybody else waiting: what it opens beyond that is closed.
type limited struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex // guards clients
	clients map[netip.Addr]int
}

func limit(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, room: make(chan struct{}, n), closed: make(chan struct{}), clients: map[netip.Addr]int{}}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		select {
		case l.room <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.room
			return nil, err
		}
		if leave, ok := l.enter(c.RemoteAddr()); ok {
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { leave(); <-l.room })}, nil
		}
		_ = c.Close() // nothing was said on it
		<-l.room
	}
}

// enter counts a connection of a client, or refuses it. Callers on the unix socket have no address and share the listener's bound.
func (l *limited) enter(from net.Addr) (leave func(), ok bool) {
	tcp, ok := from.(*net.TCPAddr)
	if !ok {
		return func() {}, true
	}
	client := tcp.AddrPort().Addr().Unmap().WithZone("")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients[client] >= maxPerClient {
		return nil, false
	}
	l.clients[client]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.clients[client]--; l.clients[client] == 0 {
			delete(l.clients, client)
		}
	}, true
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
	once sync.Once
}

func (l *unixListener) Close() error {
	l.once.Do(func() { _ = os.Remove(l.path) })
	return l.UnixListener.Close()
}

// Addr names the socket by the path that callers use.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// listenUnix binds a unix socket. It is bound inside a directory that only this user may enter and then moved into place, so that
// there is no moment at which it has other permissions than it should.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if err := vacant(ctx, path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(private) }()
	bound := filepath.Join(private, "s")
	if len(bound) > maxSocketPath || len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path is too long for a socket (%d bytes, at most %d): choose a shorter node.data_dir", max(len(bound), len(path)), maxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: bound, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(bound, socketMode), os.Rename(bound, path)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path}, nil
}

// vacant makes sure that nobody answers at path and that what is there, if anything, is a socket that was left behind.
func vacant(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("something else than a socket is there; move it away, or choose another node.data_dir")
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return errors.New("another rota answers there; stop it first, or give this one a data directory of its own")
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil // left behind; the rename replaces it
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("somebody holds it without answering; stop that process first")
	}
	return err
}

// certificate is a key pair that is read again when its file changes.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu   sync.Mutex // guards what follows
	pair *tls.Certificate
	read [2]time.Time // modification times of what was read
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [2]time.Time
	for i, f := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(f)
		if err != nil {
			if c.pair != nil {
				return c.pair, nil
			}
			return nil, err
		}
		now[i] = info.ModTime()
	}
	if c.pair != nil && now == c.read {
		return c.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		if c.pair == nil {
			return nil, err
		}
		c.log.Warn("api certificate cannot be read again; the old one stays", "cert", c.certFile, "err", err)
		c.read = now
		return c.pair, nil
	}
	c.pair, c.read = &pair, now
	return c.pair, nil
}
