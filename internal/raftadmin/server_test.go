package raftadmin

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/Jille/raftadmin/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

var listens = []struct {
	listen, want string
}{
	{"127.0.0.1:3650", "127.0.0.1:3650"},
	{"127.8.9.10:0", "127.8.9.10:0"},
	{"localhost:3650", "127.0.0.1:3650"},
	{"[::1]:3650", "[::1]:3650"},
	{"[::ffff:127.0.0.1]:3650", "127.0.0.1:3650"},
	{":3650", ""},
	{"0.0.0.0:3650", ""},
	{"[::]:3650", ""},
	{"10.0.0.1:3650", ""},
	{"[2001:db8::1]:3650", ""},
	{"[fe80::1%lo]:3650", ""},
	{"[::ffff:10.0.0.1]:3650", ""},
	{"example.org:3650", ""},
	{"localhost.example.org:3650", ""},
	{"127.0.0.1", ""},
	{"127.0.0.1:", ""},
	{"127.0.0.1:http", ""},
	{"127.0.0.1:65536", ""},
	{"2130706433:3650", ""},
	{"", ""},
}

func TestOnlyLoopback(t *testing.T) {
	for _, c := range listens {
		a, err := New(Options{Listen: c.listen, Node: newWorld("").node("1")})
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q is listened on", c.listen)
		case c.want == "" && !strings.Contains(err.Error(), "127.0.0.1:3650"):
			t.Errorf("%q: %v does not say what to do", c.listen, err)
		case c.want != "" && (err != nil || a.at.String() != c.want):
			t.Errorf("%q: %v", c.listen, err)
		}
	}
}

func FuzzLoopback(f *testing.F) {
	for _, c := range listens {
		f.Add(c.listen)
	}
	f.Fuzz(func(t *testing.T, listen string) {
		at, err := loopback(listen)
		if err != nil {
			return
		}
		if !at.Addr().IsLoopback() || at.Addr().Is4In6() {
			t.Errorf("%q: %v", listen, at)
		}
		if again, err := netip.ParseAddrPort(at.String()); err != nil || again != at {
			t.Errorf("%q: %v is not an address to bind", listen, at)
		}
	})
}

func TestListenTwice(t *testing.T) {
	first := run(t, newWorld("").node("1"))
	a, err := New(Options{Listen: first.address, Node: newWorld("").node("1")})
	if err != nil {
		t.Fatal(err)
	}
	if a.Addr() != nil {
		t.Error("has an address before it listens")
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "choose another port") {
		t.Error(err)
	}
}

// from is a listener whose callers are where the test says.
type from struct {
	callers []string
	closed  []string
}

type caller struct {
	net.Conn
	l  *from
	at string
}

func (c *caller) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.at)) }
func (c *caller) Close() error         { c.l.closed = append(c.l.closed, c.at); return nil }
func (*from) Close() error             { return nil }
func (*from) Addr() net.Addr           { return nil }

func (l *from) Accept() (net.Conn, error) {
	if len(l.callers) == 0 {
		return nil, net.ErrClosed
	}
	c := &caller{l: l, at: l.callers[0]}
	l.callers = l.callers[1:]
	return c, nil
}

func TestCallersFromElsewhere(t *testing.T) {
	l := &from{callers: []string{"10.0.0.1:5", "[2001:db8::1]:5", "127.0.0.1:5", "192.0.2.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"}}
	var in []string
	for {
		c, err := (&local{l}).Accept()
		if err != nil {
			break
		}
		in = append(in, c.(*caller).at)
	}
	if got := strings.Join(in, " "); got != "127.0.0.1:5 [::1]:5 [::ffff:127.0.0.1]:5" || len(l.closed) != 3 {
		t.Errorf("let in: %s; turned away: %s", got, l.closed)
	}
}

func dial(t *testing.T, target string, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(target, append(o, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestHealthFollowsTheLead(t *testing.T) {
	w := newWorld("", three()...)
	s := run(t, w.node("7b1e"))
	client := healthpb.NewHealthClient(dial(t, s.address))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "quis.RaftLeader"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		got, err := watch.Recv()
		if err != nil || got.Status != want {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
		checked, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "quis.RaftLeader"})
		if err != nil || checked.Status != want {
			t.Errorf("Check: %v, %v; want %v", checked, err, want)
		}
	}
	for _, leader := range []string{"", "7b1e", "90aa", "7b1e", ""} {
		w.lead(leader)
		if leader == "7b1e" {
			next(healthpb.HealthCheckResponse_SERVING)
		} else {
			next(healthpb.HealthCheckResponse_NOT_SERVING)
		}
	}
	if own, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || own.Status != healthpb.HealthCheckResponse_SERVING {
		t.Error(own, err)
	}
	_ = s.stop()
	if _, err := watch.Recv(); err == nil {
		t.Error("the watch outlives the server")
	}
}

// While the lead is on its way this node calls itself the leader, until another does; for as long as that may take.
func TestHandOver(t *testing.T) {
	for _, c := range []struct {
		name     string
		op       string
		elect    string // who is elected; "": nobody
		answered time.Duration
	}{
		{"to another", "transfer", "90aa", election + sayTime},
		{"and back", "transfer", "7b1e", election},
		{"to nobody", "transfer", "", handTime},
		{"by leaving", "remove", "90aa", election + sayTime},
		{"not at all", "stay", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("7b1e", three()...)
				n := w.node("7b1e")
				n.change = func(context.Context, Change) (uint64, error) {
					if c.op == "stay" {
						return 0, nil
					}
					w.lead("")
					if c.elect != "" {
						time.AfterFunc(election, func() { w.lead(c.elect) })
					}
					return 0, nil
				}
				s := &service{node: n, state: health.NewServer()}
				s.ops = newOperations(t.Context(), slog.New(slog.DiscardHandler), s.announce)
				ctx, cancel := context.WithCancel(t.Context())
				go s.follow(ctx)
				var f *pb.Future
				if c.op == "remove" {
					f, _ = s.RemoveServer(ctx, &pb.RemoveServerRequest{Id: "ams"})
				} else {
					f, _ = s.LeadershipTransfer(ctx, &pb.LeadershipTransferRequest{})
				}
				begun := time.Now()
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					_, _ = s.Await(ctx, f)
				}()
				serving := func(want bool) {
					t.Helper()
					r, err := s.state.Check(ctx, &healthpb.HealthCheckRequest{Service: leaderService})
					if err != nil || (r.Status == healthpb.HealthCheckResponse_SERVING) != want {
						t.Errorf("after %v: %v, %v", time.Since(begun), r, err)
					}
				}
				if c.answered > 0 {
					time.Sleep(c.answered - 1)
					synctest.Wait()
					serving(true)
				}
				<-answered
				if took := time.Since(begun); took != c.answered {
					t.Errorf("answered after %v, want %v", took, c.answered)
				}
				serving(n.leads())
				cancel()
				synctest.Wait()
			})
		})
	}
}

// A bug that one call meets is that call's only.
func TestOneBadCall(t *testing.T) {
	w := newWorld("7b1e", three()...)
	n := w.node("7b1e")
	var mu sync.Mutex // guards st
	st := func() Status { return Status{State: Leader} }
	n.status = func() Status {
		mu.Lock()
		f := st
		mu.Unlock()
		return f()
	}
	n.change = func(context.Context, Change) (uint64, error) { panic("bug") }
	s := run(t, n)
	client := pb.NewRaftAdminClient(dial(t, s.address))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := client.State(ctx, &pb.StateRequest{}); err != nil {
		t.Error(err)
	}
	set := func(f func() Status) {
		mu.Lock()
		defer mu.Unlock()
		st = f
	}
	set(func() Status { panic("bug") })
	if _, err := client.State(ctx, &pb.StateRequest{}); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	set(func() Status { return Status{State: "confused"} })
	if _, err := client.State(ctx, &pb.StateRequest{}); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	f, err := client.AddVoter(ctx, &pb.AddVoterRequest{Id: "x", Address: "h:1"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := client.Await(ctx, f); err != nil || r.Error != errPanic.Error() {
		t.Error(r, err)
	}
	if _, err := client.ApplyLog(ctx, &pb.ApplyLogRequest{Data: make([]byte, maxMessage)}); status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
	if _, err := client.AddVoter(ctx, &pb.AddVoterRequest{Id: strings.Repeat("x", maxWord+1), Address: "h:1"}); err != nil {
		t.Error(err)
	}
	set(func() Status { return Status{State: Follower} })
	if r, err := client.State(ctx, &pb.StateRequest{}); err != nil || r.State != pb.StateResponse_FOLLOWER {
		t.Error(r, err)
	}
}

// What speaks no HTTP/2, or says nothing, does not keep others out or the server up.
func TestSilentCallers(t *testing.T) {
	s := run(t, newWorld("").node("1"))
	for range maxConns - 1 {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\n\r\n"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := pb.NewRaftAdminClient(dial(t, s.address)).State(ctx, &pb.StateRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
}

// Stopping takes a bounded time, whatever the node's operations and the callers do.
func TestStopIsBounded(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(ctx context.Context, release <-chan struct{})
		want time.Duration
	}{
		{"the operation ends", func(context.Context, <-chan struct{}) { time.Sleep(time.Second) }, time.Second + lingerTime},
		{"the operation ends when told to", func(ctx context.Context, _ <-chan struct{}) { <-ctx.Done() }, stopTime + lingerTime},
		{"the operation never ends", func(_ context.Context, release <-chan struct{}) { <-release }, stopTime + cutTime + callTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("7b1e", three()...)
				n := w.node("7b1e")
				release := make(chan struct{})
				n.change = func(ctx context.Context, _ Change) (uint64, error) {
					c.do(ctx, release)
					return 1, ctx.Err()
				}
				a, err := New(Options{Listen: "127.0.0.1:0", Node: n})
				if err != nil {
					t.Fatal(err)
				}
				l := bufconn.Listen(1 << 20)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- a.serve(ctx, l) }()
				conn := dial(t, "passthrough:///x", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
				watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: leaderService})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := watch.Recv(); err != nil {
					t.Fatal(err)
				}
				f, err := pb.NewRaftAdminClient(conn).AddVoter(t.Context(), &pb.AddVoterRequest{Id: "x", Address: "h:1"})
				if err != nil {
					t.Fatal(err)
				}
				go func() { _, _ = pb.NewRaftAdminClient(conn).Await(t.Context(), f) }() // which nobody forgets
				synctest.Wait()
				begun := time.Now()
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if took := time.Since(begun); took != c.want {
					t.Errorf("took %v, want %v", took, c.want)
				}
				close(release)
				_ = conn.Close()
				synctest.Wait()
			})
		})
	}
}
