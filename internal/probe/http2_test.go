package probe

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/rota-dns/rota/internal/rota"
)

// web runs net/http's own server on loopback: by TLS when conf is set, else in clear, with HTTP/2 and perhaps HTTP/1.1.
func web(t *testing.T, conf *tls.Config, both bool, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, TLSConfig: conf, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(both)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conf != nil {
			_ = s.ServeTLS(l, "", "")
		} else {
			_ = s.Serve(l)
		}
	}()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

// TestHTTP2 asks net/http's own server, by TLS and in clear; nginx is asked in TestNginxHTTP2.
func TestHTTP2(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) }) // after the servers have ended
	ca := newAuthority(t)
	conf := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))}}
	seen := make(chan string, 1)
	handler := func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		select {
		case seen <- fmt.Sprintf("%s %s %s host=%s length=%d auth=%q x=%q agent=%q body=%s", q.Proto, q.Method, q.RequestURI, q.Host, q.ContentLength,
			q.Header.Get("Authorization"), q.Header.Get("X-Probe"), q.UserAgent(), b):
		default:
		}
		switch q.URL.Path {
		case "/503":
			w.Header().Set("Rota-Drain", "1")
			w.WriteHeader(503)
		case "/500":
			w.WriteHeader(500)
		case "/hints":
			w.WriteHeader(103)
			w.Header().Set("Trailer", "X-End")
			_, _ = io.WriteString(w, "hello")
			w.Header().Set("X-End", "1")
		case "/to":
			http.Redirect(w, q, "/json", http.StatusFound)
		case "/json":
			_, _ = io.WriteString(w, `{"status":"ok"}`)
		case "/big":
			for range 40 {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 64<<10))
			}
		case "/endless":
			for q.Context().Err() == nil {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 64<<10))
			}
		case "/never":
			<-q.Context().Done()
		default:
			w.Header().Set("X-Node", "web1")
			w.Header().Set("Set-Cookie", "sid=s3cret")
			_, _ = io.WriteString(w, "status: up\n")
		}
	}
	o := Options{Roots: ca.roots, UserAgent: "rota/test", Secret: places(map[rota.Place]string{"file:/t": "s3cret"})}
	for kind, at := range map[rota.Kind]netip.AddrPort{rota.KindHTTPS: web(t, conf, true, handler), rota.KindHTTP: web(t, nil, false, handler)} {
		for _, c := range []struct {
			path  string
			check rota.Check
			want  string
		}{
			{"/", rota.Check{Body: "^status: up\n$", ExpectHeader: []rota.Header{{Name: "X-Node", Value: "^web1$"}}}, "up ok: status 200"},
			{"/", rota.Check{Method: "HEAD"}, "up ok: status 200"},
			{"/503", rota.Check{}, "draining said: status 503 with Rota-Drain: 1"},
			{"/500", rota.Check{}, "down status: status 500, want 200-399"},
			{"/hints", rota.Check{Body: "^hello$"}, "up ok: status 200"},
			{"/to", rota.Check{}, "up ok: status 302"},
			{"/to", rota.Check{Follow: true, JSON: []rota.JSONRule{{Pointer: "/status", Want: `"ok"`}}}, "up ok: status 200"},
			{"/big", rota.Check{Body: "y"}, `down body: body does not match "y"`},
			{"/big", rota.Check{MaxBody: rota.LimitMaxBody}, "up ok: status 200"},
			{"/endless", rota.Check{}, "up ok: status 200"},
			{"/never", rota.Check{Timing: rota.Timing{Timeout: hasty}}, "down timeout: answer: not done within 500ms"},
		} {
			c.check.Kind, c.check.Path, c.check.HTTP2 = kind, c.path, true
			if kind == rota.KindHTTPS {
				c.check.Host = "www.example.org"
			}
			tr := expect(t, o, at, c.check, c.want)
			if c.path == "/big" && c.check.MaxBody == rota.LimitMaxBody && tr.ReceivedSize != 40*64<<10 {
				t.Errorf("%d bytes of the body came", tr.ReceivedSize)
			}
		}
		for range cap(seen) {
			select {
			case <-seen:
			default:
			}
		}
		tr := expect(t, o, at, rota.Check{
			Kind: kind, HTTP2: true, Method: "POST", Host: "www.example.org", Path: "/a?b=1", Data: "da\r\nta", Auth: rota.Auth{Secret: "file:/t"},
			Header: []rota.Header{{Name: "X-Probe", Value: "1"}, {Name: "Upgrade", Value: "h2c"}, {Name: "Big", Value: strings.Repeat("v", 40<<10)}},
		}, "up ok: status 200")
		if got, want := <-seen, `HTTP/2.0 POST /a?b=1 host=www.example.org length=6 auth="Bearer s3cret" x="1" agent="rota/test" body=da`+"\r\nta"; got != want {
			t.Errorf("%s: the server saw\n%s\nwant\n%s", kind, got, want)
		}
		if s := tr.Sent + tr.Received; strings.Contains(s, "s3cret") || !strings.HasPrefix(tr.Sent, "POST /a?b=1 HTTP/2\nHost: www.example.org\n") || !strings.HasPrefix(tr.Received, "HTTP/2 200\n") || !strings.Contains(tr.Received, "x-node: web1") {
			t.Errorf("%s: sent %.200q, received %q", kind, tr.Sent, tr.Received)
		}
		var names []string
		for _, s := range tr.Steps {
			names = append(names, s.Name)
		}
		if got := strings.TrimPrefix(strings.Replace(strings.Join(names, " "), "tls ", "", 1), ""); got != "connect request first byte body" {
			t.Errorf("steps: %s", got)
		}
	}
}

// TestHTTP2NeverLower: an older version is no answer to a question of HTTP/2.
func TestHTTP2NeverLower(t *testing.T) {
	ca := newAuthority(t)
	conf := func(protocols ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))}, NextProtos: protocols}
	}
	ok := answers("HTTP/1.1 200 OK\r\n\r\n")
	o := Options{Roots: ca.roots}
	const none = "down tls: tls: the target does not offer h2"
	expect(t, o, serve(t, tlsServer(conf("http/1.1"), ok)), rota.Check{Kind: rota.KindHTTPS, HTTP2: true}, none)
	expect(t, o, serve(t, tlsServer(conf(), ok)), rota.Check{Kind: rota.KindHTTPS, HTTP2: true}, none)
	expect(t, o, serve(t, tlsServer(conf("smtp"), ok)), rota.Check{Kind: rota.KindHTTPS}, "down tls: tls: the target does not offer http/1.1")
	for name, f := range map[string]func(net.Conn){
		"HTTP/1.1":  ok,
		"long page": answers("HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 1<<20)),
		"ssh":       answers("SSH-2.0-OpenSSH_9.2\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, o, serve(t, f), rota.Check{Kind: rota.KindHTTP, HTTP2: true}, "down protocol: answer: the target does not speak HTTP/2")
		})
	}
	noSettings := func(c net.Conn) {
		w := http2.NewFramer(c, nil)
		_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "200"), EndHeaders: true, EndStream: true})
		silent(c)
	}
	expect(t, o, serve(t, noSettings), rota.Check{Kind: rota.KindHTTP, HTTP2: true}, "down protocol: answer: the target does not speak HTTP/2")
	expect(t, o, serve(t, ok), rota.Check{Kind: rota.KindHTTP, HTTP2: true, Reuse: true}, "unknown : the check cannot be asked: reuse and watch are for HTTP/1.1; leave out http2")
}

// packed is a block of fields in HPACK.
func packed(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// frames serves a connection of HTTP/2 by a script: settings first, then what f writes. What the probe says is not answered. The server
// stays until the probe leaves, but for its last word, which ends with f when it says so by returning true.
func frames(f func(w *http2.Framer, raw io.Writer) (last bool)) func(net.Conn) {
	return func(c net.Conn) {
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			silent(c)
		}()
		w := http2.NewFramer(c, nil)
		w.AllowIllegalWrites = true
		_ = w.WriteSettings()
		if f(w, c) {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		<-gone
	}
}

// TestHTTP2Hostile is P4 and P11 for HTTP/2: what a server may send beside or instead of an answer.
func TestHTTP2Hostile(t *testing.T) {
	head := func(w *http2.Framer, end bool, fields ...string) {
		_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(append([]string{":status", "200"}, fields...)...), EndHeaders: true, EndStream: end})
	}
	ever := func(write func() error) {
		for write() == nil {
		}
	}
	slowly := func(write func() error) {
		for write() == nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
	short := rota.Timing{Timeout: hasty}
	for _, c := range []struct {
		name   string
		script func(w *http2.Framer, raw io.Writer)
		check  rota.Check
		want   string
	}{
		{"well", func(w *http2.Framer, _ io.Writer) { head(w, false); _ = w.WriteData(1, true, []byte("ok")) }, rota.Check{Body: "^ok$"}, "up ok: status 200"},
		{"no body", func(w *http2.Framer, _ io.Writer) { head(w, true) }, rota.Check{}, "up ok: status 200"},
		{"padded", func(w *http2.Framer, _ io.Writer) {
			head(w, false)
			_ = w.WriteDataPadded(1, true, []byte("ok"), make([]byte, 200))
		}, rota.Check{Body: "^ok$"}, "up ok: status 200"},
		{"closing after it", func(w *http2.Framer, _ io.Writer) { _ = w.WriteGoAway(1, 0, nil); head(w, true) }, rota.Check{}, "up ok: status 200"},
		{"only settings", func(*http2.Framer, io.Writer) {}, rota.Check{}, "down protocol: answer: cut off in the head"},
		{"silent", func(*http2.Framer, io.Writer) {}, rota.Check{Timing: short}, "down timeout: answer: not done within 500ms"},
		{"settings flood", func(w *http2.Framer, _ io.Writer) { ever(func() error { return w.WriteSettings() }) }, rota.Check{}, "down protocol: answer: more than 256 frames that bring nothing"},
		{"ping flood", func(w *http2.Framer, _ io.Writer) { ever(func() error { return w.WritePing(false, [8]byte{}) }) }, rota.Check{}, "down protocol: answer: more than 256 frames that bring nothing"},
		{"window flood", func(w *http2.Framer, _ io.Writer) { ever(func() error { return w.WriteWindowUpdate(1, 1) }) }, rota.Check{}, "down protocol: answer: more than 256 frames that bring nothing"},
		{"unknown flood", func(w *http2.Framer, _ io.Writer) { ever(func() error { return w.WriteRawFrame(0xfe, 0, 0, nil) }) }, rota.Check{}, "down protocol: answer: more than 256 frames that bring nothing"},
		{"large unknown frames", func(w *http2.Framer, _ io.Writer) {
			ever(func() error { return w.WriteRawFrame(0xfe, 0, 0, make([]byte, 16<<10)) })
		}, rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"empty data flood", func(w *http2.Framer, _ io.Writer) {
			head(w, false)
			ever(func() error { return w.WriteData(1, false, nil) })
		}, rota.Check{}, "down protocol: body: more than 256 frames that bring nothing"},
		{"padding flood", func(w *http2.Framer, _ io.Writer) {
			head(w, false)
			ever(func() error { return w.WriteDataPadded(1, false, nil, make([]byte, 255)) })
		}, rota.Check{}, "down protocol: body: more than 256 frames that bring nothing"},
		{"continuation flood", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "200")})
			ever(func() error { return w.WriteContinuation(1, false, packed("x", "y")) })
		}, rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"empty continuation flood", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "200")})
			ever(func() error { return w.WriteContinuation(1, false, nil) })
		}, rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"HPACK bomb", func(w *http2.Framer, _ io.Writer) {
			// One entry of 4,000 bytes in the table, and a byte for each further use of it.
			block := append(packed(":status", "200", "x", strings.Repeat("y", 4000)), bytes.Repeat([]byte{0xbe}, 1000)...)
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"HPACK junk", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: HTTP/2: connection error: COMPRESSION_ERROR"},
		{"1xx flood", func(w *http2.Framer, _ io.Writer) {
			ever(func() error {
				return w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "103"), EndHeaders: true})
			})
		}, rota.Check{}, "down protocol: answer: more than 8 informational answers"},
		{"rapid reset", func(w *http2.Framer, _ io.Writer) {
			ever(func() error { return w.WriteRSTStream(1, http2.ErrCodeCancel) })
		}, rota.Check{}, "down reset: answer: stream ended by the target (CANCEL)"},
		{"refused", func(w *http2.Framer, _ io.Writer) { _ = w.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, rota.Check{}, "down reset: answer: stream ended by the target (REFUSED_STREAM)"},
		{"reset in the body", func(w *http2.Framer, _ io.Writer) { head(w, false); _ = w.WriteRSTStream(1, http2.ErrCodeInternal) }, rota.Check{}, "down reset: answer: stream ended by the target (INTERNAL_ERROR)"},
		{"goes away", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("\x1b[31mno"))
		}, rota.Check{}, "down reset: answer: stream ended by the target (GOAWAY, ENHANCE_YOUR_CALM)"},
		{"pushes", func(w *http2.Framer, _ io.Writer) {
			_ = w.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: packed(":path", "/"), EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: HTTP/2: frames of a stream that nobody asked for"},
		{"another stream", func(w *http2.Framer, _ io.Writer) { _ = w.WriteData(3, true, []byte("ok")) }, rota.Check{}, "down protocol: answer: HTTP/2: frames of a stream that nobody asked for"},
		{"data first", func(w *http2.Framer, _ io.Writer) { _ = w.WriteData(1, true, []byte("ok")) }, rota.Check{}, "down protocol: answer: HTTP/2: data before the head"},
		{"two heads", func(w *http2.Framer, _ io.Writer) { head(w, false); head(w, false) }, rota.Check{}, "down protocol: body: HTTP/2: a second head that is no trailer"},
		{"no status", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed("x", "y"), EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: HTTP/2: an answer without a valid :status"},
		{"a request", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":method", "GET", ":path", "/"), EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: HTTP/2: an answer without a valid :status"},
		{"switching protocols", func(w *http2.Framer, _ io.Writer) {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "101"), EndHeaders: true})
		}, rota.Check{}, "down protocol: answer: HTTP/2: an answer without a valid :status"},
		{"a line in a field", func(w *http2.Framer, _ io.Writer) { head(w, true, "x", "a\r\nRota-Drain: 1") }, rota.Check{}, `down protocol: answer: HTTP/2: invalid header field value for "x"`},
		{"upper case", func(w *http2.Framer, _ io.Writer) { head(w, true, "X", "y") }, rota.Check{}, `down protocol: answer: HTTP/2: invalid header field name "X"`},
		{"too short", func(w *http2.Framer, _ io.Writer) {
			head(w, false, "content-length", "9")
			_ = w.WriteData(1, true, []byte("ok"))
		}, rota.Check{}, "down protocol: body: HTTP/2: 2 bytes where content-length says 9"},
		{"too long", func(w *http2.Framer, _ io.Writer) {
			head(w, false, "content-length", "1")
			_ = w.WriteData(1, true, []byte("ok"))
		}, rota.Check{}, "down protocol: body: HTTP/2: 2 bytes where content-length says 1"},
		{"nothing", func(w *http2.Framer, _ io.Writer) { head(w, true, "content-length", "1") }, rota.Check{}, "down protocol: body: HTTP/2: 0 bytes where content-length says 1"},
		{"two lengths", func(w *http2.Framer, _ io.Writer) { head(w, true, "content-length", "0", "content-length", "1") }, rota.Check{}, "down protocol: answer: HTTP/2: malformed content-length"},
		{"length -1", func(w *http2.Framer, _ io.Writer) { head(w, true, "content-length", "-1") }, rota.Check{}, "down protocol: answer: HTTP/2: malformed content-length"},
		{"cut", func(w *http2.Framer, _ io.Writer) { head(w, false); _ = w.WriteData(1, false, []byte("ok")) }, rota.Check{}, "down protocol: body: the target closed before its end"},
		{"huge frame", func(w *http2.Framer, raw io.Writer) { _, _ = raw.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) }, rota.Check{}, "down protocol: answer: HTTP/2: frame too large"},
		{"endless body", func(w *http2.Framer, _ io.Writer) {
			head(w, false)
			ever(func() error { return w.WriteData(1, false, make([]byte, 10_000)) })
		}, rota.Check{}, "up ok: status 200"},
		{"drips settings", func(w *http2.Framer, _ io.Writer) { slowly(func() error { return w.WriteSettings() }) }, rota.Check{Timing: short}, "down timeout: answer: not done within 500ms"},
		{"drips a head", func(w *http2.Framer, raw io.Writer) {
			_, _ = raw.Write([]byte{0, 0x40, 0, 1, 4, 0, 0, 0, 1})
			slowly(func() error { _, err := raw.Write([]byte{0}); return err })
		}, rota.Check{Timing: short}, "down timeout: answer: not done within 500ms"},
		{"drips a body", func(w *http2.Framer, _ io.Writer) {
			head(w, false)
			slowly(func() error { return w.WriteData(1, false, []byte("x")) })
		}, rota.Check{Timing: short}, "down timeout: body: not done within 500ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind, c.check.HTTP2 = rota.KindHTTP, true
			last := c.name == "only settings" || c.name == "cut"
			at := serve(t, frames(func(w *http2.Framer, raw io.Writer) bool { c.script(w, raw); return last }))
			tr := expect(t, Options{}, at, c.check, c.want)
			if tr.ReceivedSize > rota.DefaultMaxBody {
				t.Errorf("%d bytes of the body were kept", tr.ReceivedSize)
			}
		})
	}
}
