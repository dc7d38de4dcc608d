package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/rota-dns/rota/internal/rota"
)

// grpcServer runs a gRPC server; register gives it its services.
func grpcServer(t *testing.T, register func(*grpc.Server), o ...grpc.ServerOption) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(o...)
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func healthOf(states map[string]grpc_health_v1.HealthCheckResponse_ServingStatus) func(*grpc.Server) {
	h := health.NewServer()
	for name, state := range states {
		h.SetServingStatus(name, state)
	}
	return func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, h) }
}

// hanging is a health service that answers when the caller has gone.
type hanging struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (hanging) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestGRPC(t *testing.T) {
	states := map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"": grpc_health_v1.HealthCheckResponse_SERVING, "shop.Cart": grpc_health_v1.HealthCheckResponse_SERVING,
		"shop.Stock": grpc_health_v1.HealthCheckResponse_NOT_SERVING, "new": grpc_health_v1.HealthCheckResponse_UNKNOWN, "later": 7,
	}
	at := grpcServer(t, healthOf(states))
	check := func(service string) rota.Check { return rota.Check{Kind: rota.KindGRPC, Service: service} }
	tr := expect(t, Options{}, at, check(""), "up ok: the server is SERVING")
	if len(tr.Steps) != 2 || !strings.Contains(tr.Received, "grpc-status: 0\n") || !strings.Contains(tr.Received, "\n00000000020801\n") {
		t.Errorf("steps %+v, received %q", tr.Steps, tr.Received)
	}
	expect(t, Options{}, at, check("shop.Cart"), `up ok: service "shop.Cart" is SERVING`)
	expect(t, Options{}, at, check("shop.Stock"), `down said: service "shop.Stock" is NOT_SERVING`)
	expect(t, Options{}, at, check("new"), `down said: service "new" is UNKNOWN`)
	expect(t, Options{}, at, check("later"), `down said: service "later" is in state 7`)
	expect(t, Options{}, at, check("none"), `down said: service "none" is not known to the server; ask for one that it registers, or leave service out`)
	expect(t, Options{}, grpcServer(t, func(*grpc.Server) {}), check(""), "down protocol: the server does not implement grpc.health.v1.Health: unknown service grpc.health.v1.Health")
	hung := check("")
	hung.Timing = rota.Timing{Timeout: hasty}
	expect(t, Options{}, grpcServer(t, func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, hanging{}) }), hung, "down timeout: call: not done within 500ms")
	long := check(strings.Repeat("x", maxService+1))
	expect(t, Options{}, at, long, "unknown : the check cannot be asked: service: want at most 255 bytes of text")
}

func TestGRPCOverTLS(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	const token = "t0p-s3cret"
	asked := make(chan string, 10)
	secured := func(cert tls.Certificate) netip.AddrPort {
		return grpcServer(t, healthOf(map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{"": grpc_health_v1.HealthCheckResponse_SERVING}),
			grpc.Creds(credentials.NewServerTLSFromCert(&cert)),
			grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				asked <- strings.Join(md.Get(":authority"), " ")
				if a := md.Get("authorization"); len(a) == 1 && a[0] != "Bearer "+token {
					return nil, status.Error(codes.Unauthenticated, "not "+a[0]+", 100% sure")
				}
				return next(ctx, req)
			}))
	}
	good := secured(ca.issue(t, now.Add(-time.Hour), now.Add(30*24*time.Hour)))
	old := secured(ca.issue(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour)))
	check := rota.Check{Kind: rota.KindGRPC, TLS: true, ServerName: "www.example.org"}
	o := Options{Roots: ca.roots}
	tr := expect(t, o, good, check, "up ok: the server is SERVING")
	if tr.TLS == nil || len(tr.Steps) != 3 {
		t.Errorf("trace %+v", tr)
	}
	if a := <-asked; a != "www.example.org" {
		t.Errorf("authority %q", a)
	}
	expect(t, o, old, check, "down certificate: certificate expired "+now.Add(-24*time.Hour).UTC().Format(time.DateOnly))
	other, days, plain := check, check, check
	other.ServerName, days.CertDays, plain.TLS = "db.example.org", 60, false
	expect(t, o, good, other, "down certificate: certificate is for www.example.org, 127.0.0.1, not db.example.org")
	expect(t, o, good, days, "down certificate: certificate expires "+now.Add(30*24*time.Hour).UTC().Format(time.DateOnly)+", in 29 days, want at least 60")
	if got := verdict(ask(t, o, good, plain)); !strings.HasPrefix(got, "down ") {
		t.Errorf("plain to TLS: %s", got)
	}
	web := tls.Config{Certificates: []tls.Certificate{ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour))}}
	expect(t, o, serve(t, tlsServer(&web, silent)), check, "down tls: tls: the target does not offer h2")
	strict := web.Clone()
	strict.NextProtos = []string{"http/1.1"}
	expect(t, o, serve(t, tlsServer(strict, silent)), check, "down tls: tls: the target does not offer h2")

	auth := check
	auth.Auth.Secret = "file:/token"
	expect(t, o, good, auth, "unknown permission: auth: no secrets are read here")
	for _, c := range []struct{ user, secret, want string }{
		{"", token, "up ok: the server is SERVING"},
		{"", "wrong", "down status: the server refuses the call (grpc-status 16); see auth of the check: not Bearer ***, 100% sure"},
		{"probe", "wrong", "down status: the server refuses the call (grpc-status 16); see auth of the check: not Basic ***, 100% sure"},
		{"", "", "unknown permission: auth: secret file:/token is empty"},
		{"", "!", "unknown permission: auth: not named here"},
	} {
		o.Secret = func(at rota.Place) ([]byte, error) {
			if at != "file:/token" || c.secret == "!" {
				return nil, errors.New("not named here")
			}
			return []byte(c.secret), nil
		}
		auth.Auth.User = c.user
		tr := expect(t, o, good, auth, c.want)
		if shown := tr.Sent + tr.Received + tr.Observation.Reason + string(tr.Target); c.secret != "" && c.secret != "!" && strings.Contains(shown, c.secret) {
			t.Errorf("the trace shows the secret: %q", shown)
		}
	}
	web.NextProtos = []string{"h2"}
	o.Secret = func(rota.Place) ([]byte, error) { return []byte(token), nil }
	auth.Auth.User = ""
	for _, said := range [][]string{
		{":status", "200", "content-type", "text/" + token},
		{":status", "200", "content-type", "application/grpc", "grpc-status", token},
	} {
		leaky := serve(t, tlsServer(&web, h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(said...), EndHeaders: true, EndStream: true})
		})))
		if tr := ask(t, o, leaky, auth); strings.Contains(tr.Received+tr.Observation.Reason, token) || !strings.Contains(tr.Observation.Reason, "***") {
			t.Errorf("a server that repeats the secret: %q", tr.Observation.Reason)
		}
	}
	auth.TLS = false
	expect(t, o, good, auth, "unknown : the check cannot be asked: auth: a gRPC server is told who asks over TLS only; set tls: true")
	auth.TLS, auth.Auth = true, rota.Auth{User: "u"}
	expect(t, o, good, auth, "unknown : the check cannot be asked: auth names a user without a secret")
}

// h2 serves the frames that f writes after a whole request has come.
func h2(f func(*http2.Framer, func(...string) []byte)) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := http2.NewFramer(c, c)
		for ended := false; !ended; {
			frame, err := fr.ReadFrame()
			if err != nil {
				return
			}
			d, ok := frame.(*http2.DataFrame)
			ended = ok && d.StreamEnded()
		}
		var buf bytes.Buffer
		enc := hpack.NewEncoder(&buf)
		f(fr, func(fields ...string) []byte {
			buf.Reset()
			for i := 0; i < len(fields); i += 2 {
				_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			return bytes.Clone(buf.Bytes())
		})
		silent(c)
	}
}

// serving answers a call with SERVING.
func serving(c net.Conn) {
	h2(func(f *http2.Framer, block func(...string) []byte) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "200", "content-type", "application/grpc"), EndHeaders: true})
		_ = f.WriteData(1, false, []byte{0, 0, 0, 0, 2, 8, 1})
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("grpc-status", "0"), EndHeaders: true, EndStream: true})
	})(c)
}

func TestGRPCHostile(t *testing.T) {
	short := rota.Timing{Timeout: hasty}
	headers := func(f *http2.Framer, block []byte, end bool) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: end})
	}
	ok := []string{":status", "200", "content-type", "application/grpc"}
	message := func(b ...byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	}
	// answer is a whole one around a message.
	answer := func(m []byte) func(net.Conn) {
		return h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteSettings()
			headers(f, block(ok...), false)
			_ = f.WriteData(1, false, m)
			headers(f, block("grpc-status", "0"), true)
		})
	}
	trailers := func(fields ...string) func(net.Conn) {
		return h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteSettings()
			headers(f, block(fields...), true)
		})
	}
	endless := func(write func(*http2.Framer) error) func(net.Conn) {
		return h2(func(f *http2.Framer, _ func(...string) []byte) {
			for write(f) == nil {
			}
		})
	}
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"serving", answer(message(8, 1)), rota.Check{}, "up ok: the server is SERVING"},
		{"a field of a later version", answer(message(0x12, 1, 'x', 8, 1, 0x1d, 1, 2, 3, 4)), rota.Check{}, "up ok: the server is SERVING"},
		{"nothing said", answer(message()), rota.Check{}, "down said: the server is UNKNOWN"},
		{"no message", answer(nil), rota.Check{}, "down protocol: call: the answer is not one whole message"},
		{"cut message", answer(message(8, 1)[:6]), rota.Check{}, "down protocol: call: the answer is not one whole message"},
		{"two messages", answer(append(message(8, 1), message(8, 2)...)), rota.Check{}, "down protocol: call: the answer is not one whole message"},
		{"compressed", answer([]byte{1, 0, 0, 0, 1, 8}), rota.Check{}, "down protocol: call: the answer is compressed, which nobody asked for"},
		{"malformed", answer(message(8)), rota.Check{}, "down protocol: call: the message is malformed"},
		{"malformed tag", answer(message(0xff)), rota.Check{}, "down protocol: call: the message is malformed"},
		{"huge number", answer(message(8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)), rota.Check{}, "down said: the server is in state 18446744073709551615"},
		{"no status", trailers(ok...), rota.Check{}, "down protocol: call: the answer ends without grpc-status"},
		{"status without message", trailers(append(ok, "grpc-status", "0")...), rota.Check{}, "down protocol: call: the answer is not one whole message"},
		{"unavailable", trailers(append(ok, "grpc-status", "14", "grpc-message", "out%20of\x20it%0a%zz")...), rota.Check{}, "down status: grpc-status 14: out%20of it%0a%zz"},
		{"words escaped", trailers(append(ok, "grpc-status", "14", "grpc-message", "in%20parts%1b[2J")...), rota.Check{}, "down status: grpc-status 14: in parts?[2J"},
		{"a web server", trailers(":status", "404", "content-type", "text/html"), rota.Check{}, "down status: call: HTTP status 404, want 200 of a gRPC server"},
		{"a web page", trailers(":status", "200", "content-type", "text/html"), rota.Check{}, `down protocol: call: the answer is no gRPC (content-type "text/html")`},
		{"going away", h2(func(f *http2.Framer, _ func(...string) []byte) {
			_ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil)
		}), rota.Check{}, "down protocol: call: the target is going away (ENHANCE_YOUR_CALM)"},
		{"going away after this", h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteGoAway(1, http2.ErrCodeNo, nil)
			headers(f, block(ok...), false)
			_ = f.WriteData(1, false, message(8, 1))
			headers(f, block("grpc-status", "0"), true)
		}), rota.Check{}, "up ok: the server is SERVING"},
		{"reset", h2(func(f *http2.Framer, _ func(...string) []byte) { _ = f.WriteRSTStream(1, http2.ErrCodeRefusedStream) }), rota.Check{}, "down protocol: call: the target gave the call up (REFUSED_STREAM)"},
		{"push", h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: block(":status", "200"), EndHeaders: true})
		}), rota.Check{}, "down protocol: call: a push that nobody asked for"},
		{"other streams", h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block(":status", "200"), EndHeaders: true, EndStream: true})
			_ = f.WriteData(3, true, message(8, 2))
			_ = f.WriteRSTStream(3, http2.ErrCodeCancel)
			headers(f, block(ok...), false)
			_ = f.WriteData(1, false, message(8, 1))
			headers(f, block("grpc-status", "0"), true)
		}), rota.Check{}, "up ok: the server is SERVING"},
		{"flood of pings", endless(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"flood of settings", endless(func(f *http2.Framer) error { return f.WriteSettings() }), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"flood of resets", endless(func(f *http2.Framer) error { return f.WriteRSTStream(3, http2.ErrCodeCancel) }), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"flood of data", h2(func(f *http2.Framer, block func(...string) []byte) {
			headers(f, block(ok...), false)
			for f.WriteData(1, false, make([]byte, 1<<10)) == nil {
			}
		}), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"flood of continuations", h2(func(f *http2.Framer, block func(...string) []byte) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(ok...)})
			for f.WriteContinuation(1, false, nil) == nil {
			}
		}), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"bomb of fields", h2(func(f *http2.Framer, block func(...string) []byte) {
			first := block(":status", "200", "x", strings.Repeat("y", 3000))
			headers(f, append(first, bytes.Repeat([]byte{0xbe}, 8<<10)...), true) // 8,192 times the field that is in the table by now
		}), rota.Check{}, "down protocol: call: no end within 65536 bytes"},
		{"giant frame", func(c net.Conn) {
			_, _ = c.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
			silent(c)
		}, rota.Check{}, "down protocol: call: http2: frame too large"},
		{"junk", says(strings.Repeat("\x00\x00\x04\x00\x00\x00\x00\x00\x00abcd", 10)), rota.Check{}, "down protocol: call: connection error: PROTOCOL_ERROR"},
		{"HTTP/1", answers("HTTP/1.1 400 Bad Request\r\n\r\n"), rota.Check{}, "down protocol: call: the target speaks HTTP/1, not HTTP/2"},
		{"closes", func(net.Conn) {}, rota.Check{}, "down reset: "},
		{"silent", silent, rota.Check{Timing: short}, "down timeout: call: not done within 500ms"},
		{"silent after its head", h2(func(f *http2.Framer, block func(...string) []byte) { headers(f, block(ok...), false) }), rota.Check{Timing: short}, "down timeout: call: not done within 500ms"},
		{"drips", func(c net.Conn) {
			for i := 0; ; i++ {
				if _, err := c.Write([]byte{"\x00\x00\x08\x06\x00\x00\x00\x00\x00 a ping "[i%17]}); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}, rota.Check{Timing: short}, "down timeout: call: not done within 500ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindGRPC
			at := serve(t, c.server)
			if c.name == "closes" {
				if got := verdict(ask(t, Options{}, at, withPort(c.check, at))); !strings.HasPrefix(got, c.want) {
					t.Error(got)
				}
				return
			}
			expect(t, Options{}, at, c.check, c.want)
		})
	}
}

func withPort(c rota.Check, at netip.AddrPort) rota.Check {
	c.Port = at.Port()
	return c
}

func FuzzGRPCAnswer(f *testing.F) {
	var whole bytes.Buffer
	fr := http2.NewFramer(&whole, nil)
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range [][2]string{{":status", "200"}, {"content-type", "application/grpc"}, {"grpc-status", "0"}, {"grpc-message", "a%20b"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true})
	_ = fr.WritePing(false, [8]byte{})
	_ = fr.WriteData(1, true, []byte{0, 0, 0, 0, 2, 8, 1})
	f.Add(whole.Bytes())
	r := &run{q: newQuestion(rota.Check{Kind: rota.KindGRPC, Port: 1})}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &recorded{in: bytes.NewReader(b)}
		a, err := call(c, []byte("request"))
		if a.size > maxCall || len(a.message) > maxCall || c.out > maxCall*2 {
			t.Errorf("%d bytes read, %d of message, %d written", a.size, len(a.message), c.out)
		}
		if err != nil {
			return
		}
		if v := r.judgeCall(a); v.status == rota.Unknown || len(v.reason) > rota.MaxReason {
			t.Errorf("%+v", v)
		}
	})
}

// recorded is a connection whose other side has said all that it will.
type recorded struct {
	net.Conn
	in  io.Reader
	out int
}

func (c *recorded) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c *recorded) Write(b []byte) (int, error) {
	c.out += len(b)
	return len(b), nil
}
