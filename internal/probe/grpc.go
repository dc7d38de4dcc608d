package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of a call, in bytes: the service's name that is sent, and all that is read.
const (
	maxService = 255
	maxCall    = 64 << 10
)

func prepareGRPC(q *question) error {
	c := &q.check
	switch err := authFault(c); {
	case err != nil:
		return err
	case len(c.Service) > maxService || !utf8.ValidString(c.Service):
		return fmt.Errorf("service: want at most %d bytes of text", maxService)
	case c.Auth.Secret != "" && !c.TLS:
		return errors.New("auth: a gRPC server is told who asks over TLS only; set tls: true")
	}
	return nil
}

// probeGRPC calls grpc.health.v1.Health/Check once, on a connection of its own. The call is made frame by frame on that connection, by this
// goroutine alone: a client of a library would bring some of its own for every probe.
func probeGRPC(ctx context.Context, r *run) finding {
	c := &r.q.check
	auth, bad := r.authorization()
	if bad != nil {
		return *bad
	}
	raw, stop, err := r.dial(ctx)
	if err != nil {
		return r.fault(ctx, "connect", err)
	}
	defer stop()
	conn := raw
	if c.TLS {
		t, bad := r.handshake(ctx, raw)
		if bad != nil {
			return *bad
		}
		conn = t
	}
	r.trace.Sent = escape([]byte(healthMethod+" service "+strconv.Quote(c.Service)), maxHead)
	done := r.trace.begin("call")
	a, err := call(conn, r.healthCall(auth))
	for name, value := range a.fields {
		a.fields[name] = string(r.conceal([]byte(value)))
	}
	r.trace.Received, r.trace.ReceivedSize = escape([]byte(a.String()), maxHead), a.size
	if err != nil {
		done("failed")
		return r.fault(ctx, "call", err)
	}
	done(fmt.Sprintf("%d bytes", a.size))
	return r.judgeCall(a)
}

const healthMethod = "/grpc.health.v1.Health/Check"

// healthCall is a whole call of Health/Check as a client sends it (RFC 9113 §3.4, and gRPC's PROTOCOL-HTTP2.md). It names no timeout: at
// ours the connection ends, and the call with it.
func (r *run) healthCall(auth string) []byte {
	c := &r.q.check
	scheme := "http"
	if c.TLS {
		scheme = "https"
	}
	fields := [][2]string{
		{":method", "POST"},
		{":scheme", scheme},
		{":path", healthMethod},
		{":authority", cmp.Or(c.Host, c.ServerName, hostPort(r.addr, c.Port, c.TLS))},
		{"content-type", "application/grpc"},
		{"user-agent", r.p.userAgent},
		{"te", "trailers"},
	}
	if auth != "" {
		fields = append(fields, [2]string{"authorization", auth})
	}
	var head, out bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range fields {
		// A buffer takes all; what is secret stays out of tables (RFC 7541 §7.1.3).
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: f[0] == "authorization"})
	}
	var request []byte
	if c.Service != "" {
		request = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), c.Service)
	}
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxCall})
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true})
	_ = f.WriteData(1, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...))
	return out.Bytes()
}

// grpcReply is what came back of a call: the fields of its head and of its end, and the message between them.
type grpcReply struct {
	fields  map[string]string // the last of each name
	message []byte
	size    int // bytes read
}

// String is the reply for a trace.
func (a grpcReply) String() string {
	var b strings.Builder
	for _, name := range []string{":status", "content-type", "server", "grpc-status", "grpc-message"} {
		if v, ok := a.fields[name]; ok {
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	if len(a.message) > 0 {
		fmt.Fprintf(&b, "%x\n", a.message)
	}
	return b.String()
}

var (
	errNoGRPC   = errors.New("the target speaks HTTP/1, not HTTP/2")
	errCallLong = fmt.Errorf("no end within %d bytes", maxCall)
)

// call sends a request and reads frames until its stream ends.
func call(c net.Conn, request []byte) (a grpcReply, err error) {
	in := &io.LimitedReader{R: c, N: maxCall}
	br := bufio.NewReaderSize(in, 4<<10)
	defer func() {
		a.size = int(maxCall - in.N)
		if err != nil && in.N <= 0 {
			err = errCallLong
		}
	}()
	if _, err := c.Write(request); err != nil {
		return a, err
	}
	if b, err := br.Peek(5); err != nil {
		return a, err
	} else if string(b) == "HTTP/" {
		return a, errNoGRPC
	}
	f := http2.NewFramer(c, br)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil) // the size that holds until another is agreed
	f.MaxHeaderListSize = maxCall
	f.SetMaxReadFrameSize(16 << 10) // likewise
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return a, err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = f.WritePing(true, frame.Data)
			}
		case *http2.GoAwayFrame:
			if frame.LastStreamID < 1 {
				err = fmt.Errorf("the target is going away (%v)", frame.ErrCode)
			}
		case *http2.PushPromiseFrame:
			err = errors.New("a push that nobody asked for")
		case *http2.RSTStreamFrame:
			if frame.StreamID == 1 {
				err = fmt.Errorf("the target gave the call up (%v)", frame.ErrCode)
			}
		case *http2.MetaHeadersFrame:
			if frame.StreamID != 1 {
				break
			}
			if a.fields == nil {
				a.fields = map[string]string{}
			}
			for _, h := range frame.Fields {
				if plain, err := url.PathUnescape(h.Value); err == nil && h.Name == "grpc-message" {
					h.Value = plain
				}
				a.fields[h.Name] = h.Value
			}
			if frame.Truncated {
				return a, errCallLong
			}
			if frame.StreamEnded() {
				return a, nil
			}
		case *http2.DataFrame:
			if frame.StreamID != 1 {
				break
			}
			a.message = append(a.message, frame.Data()...)
			if frame.StreamEnded() {
				return a, nil
			}
		}
		if err != nil {
			return a, err
		}
	}
}

// The status codes of gRPC that deserve words of their own, and the states of a service (grpc/health/v1/health.proto).
const (
	grpcOK               = "0"
	grpcNotFound         = "5"
	grpcPermissionDenied = "7"
	grpcUnimplemented    = "12"
	grpcUnauthenticated  = "16"

	healthServing = 1
)

// healthStates are the names of what a service may be.
var healthStates = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// judgeCall says what a reply means. Only SERVING is up.
func (r *run) judgeCall(a grpcReply) finding {
	what := "the server"
	if service := r.q.check.Service; service != "" {
		what = "service " + strconv.Quote(service)
	}
	status, said := a.fields["grpc-status"]
	message := a.fields["grpc-message"]
	if message != "" {
		message = ": " + message
	}
	switch {
	case a.fields[":status"] != "200":
		return down(rota.ClassStatus, "call: HTTP status %s, want 200 of a gRPC server", a.fields[":status"])
	case !strings.HasPrefix(a.fields["content-type"], "application/grpc"):
		return down(rota.ClassProtocol, "call: the answer is no gRPC (content-type %q)", a.fields["content-type"])
	case !said:
		return down(rota.ClassProtocol, "call: the answer ends without grpc-status")
	case status == grpcNotFound:
		return down(rota.ClassSaid, "%s is not known to the server; ask for one that it registers, or leave service out", what)
	case status == grpcUnimplemented:
		return down(rota.ClassProtocol, "the server does not implement grpc.health.v1.Health%s", message)
	case status == grpcUnauthenticated, status == grpcPermissionDenied:
		return down(rota.ClassStatus, "the server refuses the call (grpc-status %s); see auth of the check%s", status, message)
	case status != grpcOK:
		return down(rota.ClassStatus, "grpc-status %s%s", status, message)
	}
	state, err := healthState(a.message)
	switch {
	case err != nil:
		return down(rota.ClassProtocol, "call: %v", err)
	case state == healthServing:
		return up("%s is SERVING", what)
	case state < uint64(len(healthStates)):
		return down(rota.ClassSaid, "%s is %s", what, healthStates[state])
	}
	return down(rota.ClassSaid, "%s is in state %d", what, state)
}

// healthState reads the one message of an answer: its length, and a HealthCheckResponse.
func healthState(b []byte) (uint64, error) {
	const prefix = 5
	if len(b) < prefix || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-prefix) {
		return 0, errors.New("the answer is not one whole message")
	}
	if b[0] != 0 {
		return 0, errors.New("the answer is compressed, which nobody asked for")
	}
	state := uint64(0)
	for b = b[prefix:]; len(b) > 0; {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, errors.New("the message is malformed")
		}
		b = b[n:]
		if field == 1 && kind == protowire.VarintType {
			state, n = protowire.ConsumeVarint(b)
		} else {
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return 0, errors.New("the message is malformed")
		}
		b = b[n:]
	}
	return state, nil
}
