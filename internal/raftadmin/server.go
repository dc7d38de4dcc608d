package raftadmin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	pb "github.com/Jille/raftadmin/proto"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// leaderService is the health service that raftadmin --leader asks for.
const leaderService = "quis.RaftLeader"

// Bounds of connections and of stopping.
const (
	maxConns   = 32               // open at once; more wait in the kernel's queue
	maxStreams = 32               // calls under way at once, a connection
	maxMessage = 64 << 10         // bytes that a caller sends in a message
	maxHeader  = 16 << 10         // bytes of a call's metadata
	handshake  = 2 * time.Second  // to begin to speak HTTP/2
	idleTime   = 2 * time.Minute  // until a connection without a call is closed
	connTime   = 15 * time.Minute // until a connection is closed when its calls have ended; clients open another
	pingAfter  = 30 * time.Second // of silence
	pingTime   = 10 * time.Second // to answer that
	stopTime   = 5 * time.Second  // for operations to end and be heard of
	cutTime    = 3 * time.Second  // for operations that were told to end; above lingerTime
	callTime   = time.Second      // for calls to end
)

// Options say what the server is for. Listen and Node are needed.
type Options struct {
	Listen string // ADDRESS:PORT, where the address is a loopback address or localhost, which means 127.0.0.1; port 0: any
	Node   Node
	Log    *slog.Logger // of operations; nil: silent
}

// Admin serves raftadmin.
type Admin struct {
	at   netip.AddrPort
	node Node
	log  *slog.Logger

	mu       sync.Mutex // guards what follows
	listener net.Listener
}

// New returns a server, or says why it may not listen there: the address has to be a loopback address.
func New(o Options) (*Admin, error) {
	at, err := loopback(o.Listen)
	if err != nil {
		return nil, err
	}
	if o.Node == nil {
		return nil, errors.New("raftadmin: Node is needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Admin{at: at, node: o.Node, log: o.Log}, nil
}

// loopback reads an address to listen on and refuses one that other machines could reach.
func loopback(listen string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("cluster.raftadmin %q: want ADDRESS:PORT, as in 127.0.0.1:3650", listen)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil || !at.Addr().Unmap().IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("cluster.raftadmin %q: raftadmin has neither encryption nor passwords, so it is for this machine only: "+
			"want a loopback address and a port, as in 127.0.0.1:3650; from elsewhere use ssh, or rota cluster", listen)
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// Listen binds the address. Run does it when Listen was not called.
func (a *Admin) Listen(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener != nil {
		return errors.New("raftadmin: listens already")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", a.at.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cluster.raftadmin %s: address in use: another program, or another rota, has it; choose another port", a.at)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cluster.raftadmin %s: not allowed: choose a port of 1024 or above, or give rota CAP_NET_BIND_SERVICE", a.at)
	case err != nil:
		return fmt.Errorf("cluster.raftadmin: %w", err)
	}
	a.listener = l
	return nil
}

// Addr returns the address that is listened on, or nil.
func (a *Admin) Addr() net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener == nil {
		return nil
	}
	return a.listener.Addr()
}

// Run serves until ctx ends. Then nothing new begins, operations that are under way have 5 seconds, and within 11 Run returns nil. An
// Admin runs once.
func (a *Admin) Run(ctx context.Context) error {
	if a.Addr() == nil {
		if err := a.Listen(ctx); err != nil {
			return err
		}
	}
	a.mu.Lock()
	l := a.listener
	a.mu.Unlock()
	a.log.Info("raftadmin listens", "address", l.Addr().String())
	return a.serve(ctx, &local{netutil.LimitListener(l, maxConns)})
}

func (a *Admin) serve(ctx context.Context, l net.Listener) error {
	work, cut := context.WithCancel(context.WithoutCancel(ctx)) // of operations
	defer cut()
	streams, hangUp := context.WithCancel(work)
	defer hangUp()
	admin := &service{node: a.node, state: health.NewServer()}
	ops := newOperations(work, a.log, admin.announce)
	admin.ops = ops
	admin.announce()

	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeader), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshake), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleTime, MaxConnectionAge: connTime, MaxConnectionAgeGrace: awaitTime + handshake,
			Time: pingAfter, Timeout: pingTime,
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
			defer a.recover(info.FullMethod, &err)
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer a.recover(info.FullMethod, &err)
			ctx, cancel := context.WithCancel(s.Context())
			defer cancel()
			defer context.AfterFunc(streams, cancel)()
			return next(srv, &endedStream{s, ctx})
		}),
	)
	pb.RegisterRaftAdminServer(srv, admin)
	healthpb.RegisterHealthServer(srv, admin.state)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("raftadmin on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		admin.follow(streams)
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ops.close()
		if !ops.settle(stopTime) {
			cut()
			if !ops.settle(cutTime) {
				a.log.Warn("raftadmin: an operation does not end; it is left to itself")
			}
		}
		hangUp()
		defer time.AfterFunc(callTime, srv.Stop).Stop()
		srv.GracefulStop()
		return nil
	})
	return g.Wait()
}

// recover ends the one call that panicked.
func (a *Admin) recover(method string, err *error) {
	if p := recover(); p != nil {
		a.log.Error("raftadmin: a call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, errPanic.Error())
	}
}

// endedStream is a stream that ends earlier than its caller wants: the health service would watch for as long as somebody listens.
type endedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context ends when the server stops.
func (s *endedStream) Context() context.Context { return s.ctx }

// local is a listener that turns callers from other machines away. A loopback address alone does not keep them out of a machine that
// forwards to it, as Linux does with route_localnet.
type local struct{ net.Listener }

// Accept returns the next connection from this machine.
func (l *local) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from, ok := c.RemoteAddr().(*net.TCPAddr); ok && from.AddrPort().Addr().Unmap().IsLoopback() {
			return c, nil
		}
		_ = c.Close()
	}
}
