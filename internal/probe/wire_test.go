package probe

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// serve answers each connection to a loopback port by f, and ends with the test.
func serve(t testing.TB, f func(net.Conn)) netip.AddrPort { return serveOn(t, "127.0.0.1:0", f) }

func serveOn(t testing.TB, on string, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", on)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// readHead reads a request's head.
func readHead(c net.Conn) string {
	br := bufio.NewReader(c)
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String()
		}
	}
}

// answers serves text to every request.
func answers(text string) func(net.Conn) {
	return func(c net.Conn) {
		readHead(c)
		_, _ = io.WriteString(c, text)
	}
}

// drip sends text whole, then more of it for ever, a little at a time.
func drip(text, more string) func(net.Conn) {
	return func(c net.Conn) {
		readHead(c)
		_, err := io.WriteString(c, text)
		for err == nil {
			time.Sleep(5 * time.Millisecond)
			_, err = io.WriteString(c, more)
		}
	}
}

// flood sends text, then more of it for ever, as fast as it is taken.
func flood(text, more string) func(net.Conn) {
	return func(c net.Conn) {
		readHead(c)
		_, err := io.WriteString(c, text)
		chunk := strings.Repeat(more, max(1, 64<<10/len(more)))
		for err == nil {
			_, err = io.WriteString(c, chunk)
		}
	}
}

func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func reset(c net.Conn) {
	readHead(c)
	_ = c.(*net.TCPConn).SetLinger(0)
}

const (
	patient = 20 * time.Second // for probes that must not meet their deadline, on any machine
	hasty   = 500 * time.Millisecond
)

// probeBy probes a target once: as Prober.Once does, unless bothWays says otherwise.
var probeBy = byGoroutine

func byGoroutine(t *testing.T, p *Prober, x rota.Target) Trace { return p.Once(t.Context(), x) }

// byEngine probes a target as the schedule does, where there is an engine for it.
func byEngine(t *testing.T, p *Prober, x rota.Target) Trace {
	t.Helper()
	ping := newPinger(p.log)
	defer ping.close()
	done := make(chan finished, 1)
	e, err := newEngine(p, ping, done)
	if err != nil {
		t.Fatal(err)
	}
	j := job{id: x.ID, addr: x.Address, q: newQuestion(x.Check)}
	if e == nil || !j.seated() {
		if e != nil {
			e.close()
		}
		return byGoroutine(t, p, x)
	}
	defer e.close()
	e.start(&entry{}, j)
	f := <-done
	return *f.trace
}

// bothWays runs a test with probes on a goroutine each and with probes in the engine: the findings are the same.
func bothWays(t *testing.T, f func(t *testing.T)) {
	t.Run("goroutine", f)
	probeBy = byEngine
	defer func() { probeBy = byGoroutine }()
	t.Run("engine", f)
}

func ask(t *testing.T, o Options, at netip.AddrPort, c rota.Check) Trace {
	t.Helper()
	c.Port = at.Port()
	if c.Timeout == 0 {
		c.Timeout = patient
	}
	begin := time.Now()
	tr := probeBy(t, New(o), rota.NewTarget(at.Addr(), c))
	if took := time.Since(begin); took > c.Timeout+5*time.Second {
		t.Errorf("the probe took %v with a timeout of %v", took, c.Timeout)
	}
	if len(tr.Sent) > maxHead+50 || len(tr.Received) > maxHead+50 || len(tr.Steps) > maxSteps {
		t.Errorf("trace is not bounded: %d, %d bytes, %d steps", len(tr.Sent), len(tr.Received), len(tr.Steps))
	}
	return tr
}

func verdict(tr Trace) string {
	o := tr.Observation
	return fmt.Sprintf("%v %s: %s", o.Status, o.Class, o.Reason)
}

// expect fails unless the observation is the one wanted; on a machine so starved that a deadline was overrun, the observation is
// "unknown resource" by design and the probe is repeated.
func expect(t *testing.T, o Options, at netip.AddrPort, c rota.Check, want string) Trace {
	t.Helper()
	for range 5 {
		tr := ask(t, o, at, c)
		if strings.Contains(tr.Observation.Reason, "held up") {
			continue
		}
		if got := verdict(tr); got != want {
			t.Errorf("got  %s\nwant %s\nsteps %+v\nreceived %q", got, want, tr.Steps, tr.Received)
		}
		return tr
	}
	t.Fatal("this machine is too busy to keep a deadline")
	return Trace{}
}

// TestHTTP is P4 (drips end at the total deadline) and P11 (bodies and heads without end), and what else a server may say.
func TestHTTP(t *testing.T) { bothWays(t, testHTTP) }

func testHTTP(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nX-Node: web1\r\nContent-Length: 11\r\n\r\nstatus: up\n"
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(bytes.Repeat([]byte("status: up\n"), 1<<20))
	_ = z.Close()
	late := func(phase string) string { return "down timeout: " + phase + ": not done within 500ms" }
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"ok", answers(ok), rota.Check{}, "up ok: status 200"},
		{"500", answers("HTTP/1.1 500 no\r\n\r\n"), rota.Check{}, "down status: status 500, want 200-399"},
		{"status set", answers("HTTP/1.1 204 none\r\n\r\n"), rota.Check{Status: []rota.StatusRange{{From: 200, To: 200}, {From: 301, To: 302}}}, "down status: status 204, want 200, 301-302"},
		{"redirect not followed", answers("HTTP/1.1 302 x\r\nLocation: http://192.0.2.1/\r\n\r\n"), rota.Check{}, "up ok: status 302"},
		{"body", answers(ok), rota.Check{Body: "status: (up|fine)"}, "up ok: status 200"},
		{"wrong body", answers(ok), rota.Check{Body: "^down"}, `down body: body does not match "^down"`},
		{"header", answers(ok), rota.Check{ExpectHeader: []rota.Header{{Name: "x-node", Value: "^web"}, {Name: "X-Node"}}}, "up ok: status 200"},
		{"no header", answers(ok), rota.Check{ExpectHeader: []rota.Header{{Name: "X-Pool"}}}, "down header: status 200 without header X-Pool"},
		{"wrong header", answers(ok), rota.Check{ExpectHeader: []rota.Header{{Name: "X-Node", Value: "^db"}}}, `down header: header X-Node does not match "^db"`},
		{"head", answers("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), rota.Check{Method: "HEAD"}, "up ok: status 200"},
		{"continue first", answers("HTTP/1.1 100 Continue\r\n\r\n" + ok), rota.Check{}, "up ok: status 200"},
		{"chunked", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), rota.Check{Body: "^abc$"}, "up ok: status 200"},
		{"http 1.0 to the end", answers("HTTP/1.0 200 OK\r\n\r\nabc"), rota.Check{Body: "^abc$"}, "up ok: status 200"},
		{"gzip is not unpacked", answers("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + zipped.String()), rota.Check{Body: "status: up"}, `down body: body does not match "status: up"`},
		{"body limit", answers("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 100) + "up"), rota.Check{Body: "up", MaxBody: 100}, `down body: body does not match "up"`},
		{"infinite body", flood("HTTP/1.1 200 OK\r\n\r\n", "x"), rota.Check{}, "up ok: status 200"},
		{"infinite chunks", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"), rota.Check{}, "up ok: status 200"},
		{"infinite header", flood("HTTP/1.1 200 OK\r\n", "X: y\r\n"), rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"infinite header line", flood("HTTP/1.1 200 OK\r\nX: ", "y"), rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"infinite status", flood("HTTP/1.1 200 ", "y"), rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"1xx flood", flood("", "HTTP/1.1 103 Early Hints\r\n\r\n"), rota.Check{}, "down protocol: answer: more than 8 informational answers"},
		{"lying length", answers("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc"), rota.Check{}, "down protocol: body: the target closed before its end"},
		{"two lengths", answers("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"), rota.Check{}, `down protocol: answer: http: message cannot contain multiple Content-Length headers; got ["3" "4"]`},
		{"cut off", answers("HTTP/1.1 200 OK\r\nX: "), rota.Check{}, "down protocol: answer: cut off in the head"},
		{"not http", answers("SSH-2.0-OpenSSH_9.2\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP response "SSH-2.0-OpenSSH_9.2"`},
		{"http/2", answers("HTTP/2.0 200 OK\r\n\r\n"), rota.Check{}, "down protocol: answer: answer of protocol HTTP/2.0"},
		{"closes", func(c net.Conn) { readHead(c) }, rota.Check{}, "down reset: closed by the target before an answer"},
		{"resets", reset, rota.Check{}, "down reset: answer: reset by the target"},
		{"half close", func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite(); silent(c) }, rota.Check{}, "down reset: closed by the target before an answer"},
		{"never answers", silent, rota.Check{Timing: rota.Timing{Timeout: hasty}}, late("answer")},
		{"drips status", drip("HTTP/1.1 2", "0"), rota.Check{Timing: rota.Timing{Timeout: hasty}}, late("answer")},
		{"drips header", drip("HTTP/1.1 200 OK\r\n", "X: y\r\n"), rota.Check{Timing: rota.Timing{Timeout: hasty}}, late("answer")},
		{"drips body", drip("HTTP/1.1 200 OK\r\n\r\n", "x"), rota.Check{Timing: rota.Timing{Timeout: hasty}}, late("body")},
		{"gzip that is not declared", answers("HTTP/1.1 200 OK\r\n\r\n" + zipped.String()), rota.Check{Body: "status: up"}, `down body: body does not match "status: up"`},
		{"a head in the body", answers("HTTP/1.1 500 no\r\nContent-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), rota.Check{}, "down status: status 500, want 200-399"},
		{"a second answer", answers("HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nRota-Drain: 1\r\n\r\n"), rota.Check{}, "down status: status 500, want 200-399"},
		{"length and chunks", answers("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"), rota.Check{Body: "^abcd$"}, "up ok: status 200"},
		{"equal lengths", answers("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"), rota.Check{Body: "^abc$"}, "up ok: status 200"},
		{"length -1", answers("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), rota.Check{}, `down protocol: answer: bad Content-Length "-1"`},
		{"length +3", answers("HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc"), rota.Check{}, `down protocol: answer: bad Content-Length "+3"`},
		{"length too large", answers("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"), rota.Check{}, `down protocol: answer: bad Content-Length "99999999999999999999"`},
		{"chunked twice", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), rota.Check{}, `down protocol: answer: too many transfer encodings: ["chunked" "chunked"]`},
		{"chunked, identity", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), rota.Check{}, `down protocol: answer: unsupported transfer encoding: "chunked, identity"`},
		{"gzip as transfer", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), rota.Check{}, `down protocol: answer: unsupported transfer encoding: "gzip, chunked"`},
		{"space before colon", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), rota.Check{Body: "^0\r\n"}, "up ok: status 200"},
		{"folded", answers("HTTP/1.1 200 OK\r\nX: a\r\n Rota-Drain: 1\r\n\r\n"), rota.Check{}, "up ok: status 200"},
		{"folded first", answers("HTTP/1.1 200 OK\r\n Rota-Drain: 1\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed MIME header initial line: " Rota-Drain: 1"`},
		{"bare CR", answers("HTTP/1.1 200 OK\r\nX: a\rRota-Drain: 1\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed MIME header line: "X: a\rRota-Drain: 1"`},
		{"NUL in a field", answers("HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed MIME header line: "X: a\x00b"`},
		{"LF alone", answers("HTTP/1.1 200 OK\nX-Node: a\n\nok"), rota.Check{Body: "^ok$"}, "up ok: status 200"},
		{"chunk of 0x3", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"), rota.Check{}, "down protocol: body: invalid byte in chunk length"},
		{"chunk of -1", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n"), rota.Check{}, "down protocol: body: invalid byte in chunk length"},
		{"chunk too large", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n"), rota.Check{}, "down protocol: body: http chunk length too large"},
		{"chunk that lies", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"), rota.Check{}, "down protocol: body: malformed chunked encoding"},
		{"chunks without end", answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), rota.Check{}, "down protocol: body: the target closed before its end"},
		{"infinite chunk extension", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;", "x"), rota.Check{}, "down protocol: body: header line too long"},
		{"chunk extensions", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 1000)+"\r\nx\r\n"), rota.Check{}, "down protocol: body: chunked encoding contains too much non-data"},
		{"infinite trailer", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n"), rota.Check{}, "down protocol: body: http: suspiciously long trailer after chunked body"},
		{"HTTP/0.9", answers("<html>up</html>\n"), rota.Check{}, `down protocol: answer: malformed HTTP response "<html>up</html>"`},
		{"HTTP/3", answers("HTTP/3.0 200 OK\r\n\r\n"), rota.Check{}, "down protocol: answer: answer of protocol HTTP/3.0"},
		{"lower case", answers("http/1.1 200 OK\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP version "http/1.1"`},
		{"ICY", answers("ICY 200 OK\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP version "ICY"`},
		{"status of two digits", answers("HTTP/1.1 20 OK\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP status code "20"`},
		{"status of four digits", answers("HTTP/1.1 2000 OK\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP status code "2000"`},
		{"status -20", answers("HTTP/1.1 -20 OK\r\n\r\n"), rota.Check{}, `down protocol: answer: malformed HTTP status code "-20"`},
		{"switching protocols", answers("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"), rota.Check{}, "down status: status 101, want 200-399"},
		{"bad pattern", silent, rota.Check{Body: "("}, "unknown : the check cannot be asked: body: error parsing regexp: missing closing ): `(`"},
		{"bad header", silent, rota.Check{Header: []rota.Header{{Name: "X", Value: "a\r\nEvil: b"}}}, `unknown : the check cannot be asked: header "X" is not a valid header field`},
		{"bad path", silent, rota.Check{Path: "/ HTTP/1.1\r\nX: y"}, `unknown : the check cannot be asked: path "/ HTTP/1.1\r\nX: y" has a space or control character; escape it as %20`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindHTTP
			tr := expect(t, Options{}, serve(t, c.server), c.check, c.want)
			if limit := max(c.check.MaxBody, rota.DefaultMaxBody); tr.ReceivedSize > limit {
				t.Errorf("%d bytes of the body were kept", tr.ReceivedSize)
			}
		})
	}
}

func TestHTTPRequest(t *testing.T) { bothWays(t, testHTTPRequest) }

func testHTTPRequest(t *testing.T) {
	heads := make(chan string, 1)
	at := serve(t, func(c net.Conn) {
		heads <- readHead(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nSet-Cookie: sid=s3cret\r\nX-Bad: \u009b31mred\r\n\r\n")
	})
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // would be refused
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	tr := expect(t, Options{UserAgent: "rota/test"}, at, rota.Check{
		Kind: rota.KindHTTP, Method: "POST", Host: "www.example.org", Path: "/health?deep=1",
		Header: []rota.Header{{Name: "Authorization", Value: "Bearer s3cret"}, {Name: "accept", Value: "text/plain"}},
	}, "up ok: status 200")
	want := "POST /health?deep=1 HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: rota/test\r\nAccept-Encoding: identity\r\n" +
		"Authorization: Bearer s3cret\r\naccept: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	if got := <-heads; got != want {
		t.Errorf("request is\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(tr.Sent+tr.Received, "s3cret") || strings.Contains(tr.Received, "\u009b") {
		t.Errorf("trace shows a secret or a control character: %q %q", tr.Sent, tr.Received)
	}
	var names []string
	for _, s := range tr.Steps {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "connect request first byte body" {
		t.Errorf("steps: %s", got)
	}
	expect(t, Options{}, at, rota.Check{Kind: rota.KindHTTP}, "up ok: status 200")
	if got := <-heads; !strings.Contains(got, fmt.Sprintf("\r\nHost: %v\r\n", at)) {
		t.Errorf("without a name, the request is %q", got)
	}
}

// TestHTTPRedirects is P10: a canary on other ports and addresses is never hit.
func TestHTTPRedirects(t *testing.T) { bothWays(t, testHTTPRedirects) }

func testHTTPRedirects(t *testing.T) {
	var canary atomic.Int32
	hit := func(c net.Conn) { canary.Add(1); answers("HTTP/1.1 200 OK\r\n\r\n")(c) }
	other := serve(t, hit)
	far := serveOn(t, "127.0.0.9:0", hit)
	var location atomic.Value
	at := serve(t, func(c net.Conn) {
		head := readHead(c)
		switch {
		case strings.HasPrefix(head, "GET /end"):
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		case strings.HasPrefix(head, "GET /loop"):
			_, _ = io.WriteString(c, "HTTP/1.1 302 x\r\nLocation: /loop\r\n\r\n")
		default:
			_, _ = fmt.Fprintf(c, "HTTP/1.1 302 x\r\nLocation: %s\r\n\r\n", location.Load())
		}
	})
	// On the target's own port, too, of other addresses.
	serveOn(t, fmt.Sprintf("127.0.0.9:%d", at.Port()), hit)
	serveOn(t, fmt.Sprintf("[::1]:%d", at.Port()), hit)
	check := rota.Check{Kind: rota.KindHTTP, Follow: true}
	for to, want := range map[string]string{
		fmt.Sprintf("http://[::1]:%d/admin", at.Port()):            fmt.Sprintf("down redirect: redirect off the endpoint (host): http://[::1]:%d/admin", at.Port()),
		fmt.Sprintf("http://localhost:%d/", at.Port()):             fmt.Sprintf("down redirect: redirect off the endpoint (host): http://localhost:%d/", at.Port()),
		fmt.Sprintf("http://169.254.169.254:%d/", at.Port()):       fmt.Sprintf("down redirect: redirect off the endpoint (host): http://169.254.169.254:%d/", at.Port()),
		fmt.Sprintf("http://%v@127.0.0.9:%d/", at, at.Port()):      fmt.Sprintf("down redirect: redirect off the endpoint (host): http://127.0.0.1:xxxxx@127.0.0.9:%d/", at.Port()),
		fmt.Sprintf("http://127.0.0.1%%2f:%d/", at.Port()):         "down redirect: status 302 with a malformed Location",
		fmt.Sprintf("http://2130706433:%d/", at.Port()):            fmt.Sprintf("down redirect: redirect off the endpoint (host): http://2130706433:%d/", at.Port()),
		fmt.Sprintf("http://[::ffff:127.0.0.1]:%d/end", at.Port()): "up ok: status 200",
		"javascript:alert(1)":                                      "down redirect: redirect off the endpoint (scheme): javascript:alert(1)",
		"/end":                                                     "up ok: status 200",
		"end?x=1#y":                                                "up ok: status 200",
		"//" + at.String() + "/end":                                "up ok: status 200",
		"http://" + at.String() + "/end":                           "up ok: status 200",
		"http://a:b@" + at.String() + "/end":                       "up ok: status 200",
		"/loop":                                                    "down redirect: more than 10 redirects",
		"http://" + other.String() + "/":                           "down redirect: redirect off the endpoint (port): http://" + other.String() + "/",
		"http://" + far.String() + "/":                             "down redirect: redirect off the endpoint (port): http://" + far.String() + "/",
		"https://" + other.String() + "/":                          "down redirect: redirect off the endpoint (port): https://" + other.String() + "/",
		"http://169.254.169.254/latest":                            "down redirect: redirect off the endpoint (port): http://169.254.169.254/latest",
		"http://u:pw@[::1]:22/":                                    "down redirect: redirect off the endpoint (port): http://u:xxxxx@[::1]:22/",
		"file:///etc/passwd":                                       "down redirect: redirect off the endpoint (scheme): file:///etc/passwd",
		"gopher://127.0.0.1/":                                      "down redirect: redirect off the endpoint (scheme): gopher://127.0.0.1/",
		"http:opaque":                                              "down redirect: redirect off the endpoint (port): http:opaque",
		"http://[::1":                                              "down redirect: status 302 with a malformed Location",
		fmt.Sprintf("http://x:%d/", at.Port()):                     fmt.Sprintf("down redirect: redirect off the endpoint (host): http://x:%d/", at.Port()),
		fmt.Sprintf("http://127.0.0.9:%d/", at.Port()):             fmt.Sprintf("down redirect: redirect off the endpoint (host): http://127.0.0.9:%d/", at.Port()),
	} {
		location.Store(to)
		expect(t, Options{}, at, check, want)
	}
	if n := canary.Load(); n != 0 {
		t.Errorf("the canary was hit %d times", n)
	}
}

func TestTCP(t *testing.T) { bothWays(t, testTCP) }

func testTCP(t *testing.T) {
	closed := serve(t, silent)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is surely free again
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	expect(t, Options{}, free, rota.Check{Kind: rota.KindTCP}, "down refused: connect: refused")
	expect(t, Options{}, free, rota.Check{Kind: rota.KindTLS}, "down refused: connect: refused")
	expect(t, Options{}, closed, rota.Check{Kind: rota.KindTCP}, "up ok: connected")
	expect(t, Options{}, netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), closed.Port()), rota.Check{Kind: rota.KindTCP}, "up ok: connected")
	banner := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text); silent(c) }
	}
	redis := func(c net.Conn) {
		b := make([]byte, 6)
		if _, err := io.ReadFull(c, b); err == nil && string(b) == "PING\r\n" {
			_, _ = io.WriteString(c, "+PO")
			time.Sleep(10 * time.Millisecond)
			_, _ = io.WriteString(c, "NG\r\n")
		}
		silent(c)
	}
	short := rota.Timing{Timeout: hasty}
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"banner", banner("220 mail ESMTP\r\n"), rota.Check{Expect: "^220 "}, "up ok: answer matches"},
		{"send and expect", redis, rota.Check{Send: "PING\r\n", Expect: `\+PONG`}, "up ok: answer matches"},
		{"send only", silent, rota.Check{Send: "x"}, "up ok: connected and sent"},
		{"wrong banner", banner("554 no\r\n"), rota.Check{Expect: "^220 ", Timing: short}, "down body: expect: the answer does not match"},
		{"silent", silent, rota.Check{Expect: "^220 ", Timing: short}, "down timeout: expect: not done within 500ms"},
		{"closes", func(net.Conn) {}, rota.Check{Expect: "^220 "}, "down reset: expect: closed by the target"},
		{"floods", flood("", "x"), rota.Check{Send: "\r\n", Expect: "y", MaxBody: 1 << 20}, "down body: expect: no match in the first 1048576 bytes"},
		{"drips", drip("", "x"), rota.Check{Send: "\r\n", Expect: "y", Timing: short}, "down body: expect: the answer does not match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindTCP
			expect(t, Options{}, serve(t, c.server), c.check, c.want)
		})
	}
}

// TestConnectOnlyResets sees that a mere connect ends in RST: neither end is left in TIME_WAIT.
func TestConnectOnlyResets(t *testing.T) { bothWays(t, testConnectOnlyResets) }

func testConnectOnlyResets(t *testing.T) {
	at := serve(t, silent)
	mine := map[string]bool{} // our local ports, as the table writes them; other processes have used the server's port before
	for range 20 {
		tr := expect(t, Options{}, at, rota.Check{Kind: rota.KindTCP}, "up ok: connected")
		local, _, _ := strings.Cut(tr.Steps[0].Note, " to ")
		mine[fmt.Sprintf(":%04X", netip.MustParseAddrPort(local).Port())] = true
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Skip("no /proc/net/tcp on this system")
	}
	port := fmt.Sprintf(":%04X", at.Port())
	for _, line := range strings.Split(string(table), "\n") {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "06" && (strings.HasSuffix(f[1], port) && mine[f[2][8:]] || strings.HasSuffix(f[2], port) && mine[f[1][8:]]) {
			t.Errorf("left in TIME_WAIT: %s", line)
		}
	}
}

func TestNeverProbed(t *testing.T) { bothWays(t, testNeverProbed) }

func testNeverProbed(t *testing.T) {
	for addr, want := range map[string]string{
		"0.0.0.0":                "unknown permission: 0.0.0.0 is no endpoint's address",
		"::":                     "unknown permission: :: is no endpoint's address",
		"224.0.0.1":              "unknown permission: 224.0.0.1 is a multicast or broadcast address; probe one host",
		"ff02::1%lo":             "unknown permission: ff02::1%lo is a multicast or broadcast address; probe one host",
		"255.255.255.255":        "unknown permission: 255.255.255.255 is a multicast or broadcast address; probe one host",
		"169.254.169.254":        "unknown permission: probing 169.254.169.254 is forbidden (169.254.169.254/32)",
		"::ffff:169.254.169.254": "unknown permission: probing 169.254.169.254 is forbidden (169.254.169.254/32)",
		"fd00:ec2::254":          "unknown permission: probing fd00:ec2::254 is forbidden (fd00:ec2::254/128)",
		"fe80::1%nosuchif0":      "unknown unroutable: connect: this machine has no interface nosuchif0",
		"fe80::1":                "unknown unroutable: connect: fe80::1 is link-local; name its interface, as in fe80::1%eth0",
	} {
		expect(t, Options{}, netip.AddrPortFrom(netip.MustParseAddr(addr), 80), rota.Check{Kind: rota.KindHTTP}, want)
	}
}

func TestFaultsOfOurOwn(t *testing.T) {
	q := newQuestion(rota.Check{Kind: rota.KindTCP, Port: 1})
	r := &run{p: New(Options{}), q: q, addr: netip.MustParseAddr("127.0.0.1"), parent: t.Context(), trace: &Trace{}}
	for errno, class := range map[syscall.Errno]rota.Class{
		syscall.EMFILE: rota.ClassResource, syscall.ENFILE: rota.ClassResource, syscall.ENOBUFS: rota.ClassResource,
		syscall.EADDRNOTAVAIL: rota.ClassResource, syscall.ENOSPC: rota.ClassResource, syscall.EACCES: rota.ClassPermission, syscall.EPERM: rota.ClassPermission,
		syscall.EAFNOSUPPORT: rota.ClassUnroutable, syscall.EINVAL: rota.ClassUnroutable,
	} {
		if f := r.fault(t.Context(), "connect", &net.OpError{Err: errno}); f.status != rota.Unknown || f.class != class {
			t.Errorf("%v: %+v", errno, f)
		}
	}
	// From afar, these are about the target: this machine has a route to it.
	for _, errno := range []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if f := r.fault(t.Context(), "connect", errno); f.status != rota.Down || f.class != rota.ClassUnreachable {
			t.Errorf("%v: %+v", errno, f)
		}
	}
	// So is this over IPv6, where nothing forbids us to connect: a firewall there answers that it is prohibited.
	six := &run{p: r.p, q: q, addr: netip.IPv6Loopback(), parent: t.Context(), trace: &Trace{}}
	if f := six.fault(t.Context(), "connect", syscall.EACCES); f.status != rota.Down || f.class != rota.ClassUnreachable {
		t.Errorf("prohibited from afar: %+v", f)
	}
	if f := r.fault(t.Context(), "connect", syscall.EHOSTUNREACH); !strings.Contains(f.reason, "host unreachable (a router said so") {
		t.Errorf("a host that is unreachable from afar: %q", f.reason)
	}
	// Ours, and in our words.
	_, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4bcast, Port: 9})
	for _, err := range []error{err, &net.OpError{Op: "dial", Net: "udp", Err: syscall.ENETUNREACH}} {
		if f := unroutable("connect", r.addr, err); strings.Contains(f.reason, "dial udp") || !strings.HasPrefix(f.reason, "connect: no route from here") {
			t.Errorf("no route of our own: %q", f.reason)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if tr := New(Options{}).Once(ctx, rota.NewTarget(netip.MustParseAddr("127.0.0.1"), rota.Check{Kind: rota.KindTCP, Port: 1})); verdict(tr) != "unknown cancelled: cancelled" {
		t.Error(verdict(tr))
	}
}

func TestCancelEndsProbe(t *testing.T) {
	at := serve(t, silent)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	tr := New(Options{}).Once(ctx, rota.NewTarget(at.Addr(), rota.Check{Kind: rota.KindHTTP, Port: at.Port(), Timing: rota.Timing{Timeout: time.Hour}}))
	if verdict(tr) != "unknown cancelled: cancelled" {
		t.Error(verdict(tr))
	}
}

// authority signs certificates for tests.
type authority struct {
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	roots *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-9000 * time.Hour), NotAfter: time.Now().Add(9000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, roots: x509.NewCertPool()}
	a.cert, _ = x509.ParseCertificate(der)
	a.roots.AddCert(a.cert)
	return a
}

// issue makes a certificate for www.example.org; a nil authority makes it self-signed.
func (a *authority) issue(t testing.TB, from, to time.Time) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "www"}, DNSNames: []string{"www.example.org"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	parent, signer := tmpl, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func tlsServer(conf *tls.Config, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		s := tls.Server(c, conf)
		if s.Handshake() == nil {
			then(s)
		}
		_ = s.Close()
	}
}

// TestTLS is P8.
func TestTLS(t *testing.T) { bothWays(t, testTLS) }

func testTLS(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	good := ca.issue(t, now.Add(-time.Hour), now.Add(30*24*time.Hour))
	old := ca.issue(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour))
	young := ca.issue(t, now.Add(24*time.Hour), now.Add(48*time.Hour))
	self := (*authority)(nil).issue(t, now.Add(-time.Hour), now.Add(time.Hour))
	day := func(d time.Duration) string { return now.Add(d).UTC().Format(time.DateOnly) }
	ok := answers("HTTP/1.1 200 OK\r\n\r\n")
	conf := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	wants := func(version uint16) *tls.Config {
		c := conf(good)
		c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, version
		return c
	}
	optional := conf(good)
	optional.ClientAuth = tls.RequestClientCert
	old10 := conf(good)
	old10.MinVersion, old10.MaxVersion = tls.VersionTLS10, tls.VersionTLS10
	const host = "www.example.org"
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
		tls    string // of the tls kind, when it differs
	}{
		{"good", tlsServer(conf(good), ok), rota.Check{Host: host}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"by address", tlsServer(conf(good), ok), rota.Check{}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"server name", tlsServer(conf(good), ok), rota.Check{Host: "other.example", ServerName: host}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"wrong name", tlsServer(conf(good), ok), rota.Check{Host: "db.example.org"}, "down certificate: certificate is for www.example.org, 127.0.0.1, not db.example.org", ""},
		{"wrong name, ca", tlsServer(conf(good), ok), rota.Check{Host: "db.example.org", Verify: rota.VerifyCA}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"expired", tlsServer(conf(old), ok), rota.Check{Host: host}, "down certificate: certificate expired " + day(-24*time.Hour), ""},
		{"expired, ca", tlsServer(conf(old), ok), rota.Check{Host: host, Verify: rota.VerifyCA}, "down certificate: certificate expired " + day(-24*time.Hour), ""},
		{"expired, none", tlsServer(conf(old), ok), rota.Check{Host: host, Verify: rota.VerifyNone}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"expired, none, days", tlsServer(conf(old), ok), rota.Check{Host: host, Verify: rota.VerifyNone, CertDays: 1}, "down certificate: certificate expired " + day(-24*time.Hour), ""},
		{"not yet", tlsServer(conf(young), ok), rota.Check{Host: host}, "down certificate: certificate not valid before " + day(24*time.Hour), ""},
		{"days left", tlsServer(conf(good), ok), rota.Check{Host: host, CertDays: 29}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"too few days", tlsServer(conf(good), ok), rota.Check{Host: host, CertDays: 60}, "down certificate: certificate expires " + day(30*24*time.Hour) + ", in 29 days, want at least 60", ""},
		{"self-signed", tlsServer(conf(self), ok), rota.Check{Host: host}, "down certificate: certificate is self-signed", ""},
		{"self-signed, none", tlsServer(conf(self), ok), rota.Check{Host: host, Verify: rota.VerifyNone}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
		{"TLS 1.0", tlsServer(old10, ok), rota.Check{Host: host}, "down tls: tls: the target offers neither TLS 1.2 nor 1.3", ""},
		{"stall", silent, rota.Check{Host: host, Timing: rota.Timing{Timeout: hasty}}, "down timeout: tls: not done within 500ms", ""},
		{"plain", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, rota.Check{Host: host}, "down tls: tls: the target does not speak TLS", ""},
		{"closes", func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }, rota.Check{Host: host}, "down tls: tls: closed during the handshake", ""},
		{"wants certificate, 1.2", tlsServer(wants(tls.VersionTLS12), ok), rota.Check{Host: host}, "down tls: tls: client certificate wanted", ""},
		{"wants certificate, 1.3", tlsServer(wants(tls.VersionTLS13), ok), rota.Check{Host: host}, "down tls: answer: client certificate wanted", "down tls: tls: client certificate wanted"},
		{"certificate optional", tlsServer(optional, ok), rota.Check{Host: host}, "up ok: status 200", "up ok: handshake, TLS 1.3"},
	} {
		for kind, want := range map[rota.Kind]string{rota.KindHTTPS: c.want, rota.KindTLS: c.tls} {
			if want == "" {
				want = c.want
			}
			t.Run(c.name+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				check := c.check
				check.Kind = kind
				expect(t, Options{Roots: ca.roots}, serve(t, c.server), check, want)
			})
		}
	}
}

// TestTheirCertificateIsRenewed is P9: a target that shows another certificate each time is as well as it was.
func TestTheirCertificateIsRenewed(t *testing.T) {
	for _, kind := range []rota.Kind{rota.KindHTTPS, rota.KindTLS} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t)
			var shown atomic.Int64
			conf := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				cert := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Duration(24+shown.Add(1))*time.Hour))
				return &cert, nil
			}}
			at := serve(t, tlsServer(conf, answers("HTTP/1.1 200 OK\r\n\r\n")))
			check := rota.Check{
				Kind: kind, Port: at.Port(), ServerName: "www.example.org",
				Timing: rota.Timing{Interval: 20 * time.Millisecond, Timeout: patient, Fall: 1, Rise: 1, OK: 1},
			}
			p := New(Options{Roots: ca.roots})
			p.Set([]rota.Target{rota.NewTarget(at.Addr(), check)})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = p.Run(ctx) })
			defer wg.Wait()
			defer cancel()
			wait := func(what string, ok func() bool) {
				for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("not %s: %+v", what, p.Report().Opinions)
					}
				}
			}
			wait("up", func() bool { o := p.Report().Opinions; return len(o) == 1 && o[0].Status == rota.Up })
			seq, from := p.Report().Seq, shown.Load()
			wait("probed again", func() bool { return shown.Load() > from+10 })
			if r := p.Report(); r.Seq != seq {
				t.Errorf("the report changed with the certificate: %+v", *r.Opinions[0])
			}
		})
	}
}

func TestTLSTalk(t *testing.T) { bothWays(t, testTLSTalk) }

func testTLSTalk(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	names := make(chan string, 1)
	conf := &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { names <- h.ServerName; return &cert, nil }}
	at := serve(t, tlsServer(conf, func(c net.Conn) { _, _ = io.WriteString(c, "* OK IMAP4 ready\r\n"); silent(c) }))
	tr := expect(t, Options{Roots: ca.roots}, at, rota.Check{Kind: rota.KindTLS, ServerName: "www.example.org", Expect: `^\* OK`}, "up ok: answer matches")
	if got := <-names; got != "www.example.org" {
		t.Errorf("SNI is %q", got)
	}
	if f := tr.TLS; f == nil || f.Version != "TLS 1.3" || len(f.Chain) != 1 || f.Chain[0].Names[0] != "www.example.org" {
		t.Errorf("facts: %+v", f)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "GET")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"), "GET")
	f.Add([]byte("HTTP/1.0 302 x\r\nLocation: //[::1]:1/\r\n\r\n"), "HEAD")
	f.Add([]byte("HTTP/1.1 200 OK\r\nRota-Drain: 0\r\nX: y\r\n\r\n{\"ok\":[1]}"), "GET")
	check := rota.Check{Kind: rota.KindHTTP, Port: 80, Follow: true, Body: "ok", ExpectHeader: []rota.Header{{Name: "X"}}, JSON: []rota.JSONRule{{Pointer: "/ok/0", Want: "< 2"}}}
	r := &run{q: newQuestion(check), addr: netip.MustParseAddr("192.0.2.1")}
	f.Fuzz(func(t *testing.T, b []byte, method string) {
		a := readAnswer(bytes.NewReader(b), method, 100, new(room), func() {})
		if len(a.body) > 100 || len(a.head) > maxHead {
			t.Errorf("%d bytes of body and %d of head", len(a.body), len(a.head))
		}
		if a.err != nil {
			return
		}
		if v, leaves := r.q.leaves(a); leaves && (v.status != rota.Draining || len(v.reason) > rota.MaxReason) {
			t.Errorf("leaves %+v", v)
		}
		if v := r.q.judge(a); v.status == rota.Unknown || len(v.reason) > rota.MaxReason {
			t.Errorf("judged %+v", v)
		}
		if _, next := r.redirect(page{method: "GET", host: "192.0.2.1", path: "/"}, a); next != nil {
			if strings.ContainsAny(next.path+next.host, "\r\n") {
				t.Errorf("a redirect smuggles a line: %+v", next)
			}
		}
	})
}

func TestRedirectNeverLeavesTLS(t *testing.T) {
	check := rota.Check{Kind: rota.KindHTTPS, Port: 443, Follow: true, Header: []rota.Header{{Name: "Authorization", Value: "Bearer x"}}}
	r := &run{q: newQuestion(check), addr: netip.MustParseAddr("192.0.2.1")}
	from := page{tls: true, method: "GET", host: "192.0.2.1", path: "/"}
	for location, want := range map[string]bool{
		"https://192.0.2.1/a": true, "/a": true, "//192.0.2.1/a": true,
		"http://192.0.2.1:443/a": false, "http://192.0.2.1/a": false,
	} {
		f, next := r.redirect(from, answer{status: 302, header: http.Header{"Location": {location}}})
		if (next != nil) != want || (next != nil && !next.tls) || (next == nil && f.class != rota.ClassRedirect) {
			t.Errorf("%s: %+v, next %+v", location, f, next)
		}
	}
}

// FuzzPlainAnswer compares what is read in place with what net/http says of the same bytes.
func FuzzPlainAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\nok"), "server")
	f.Add([]byte("HTTP/1.1 503\r\ncontent-length:2 \r\nrota-drain: 1\r\nRota-Drain:\t2\r\nconnection: Close\r\n\r\nokay"), "Rota-Drain")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokay"), "X")
	f.Add([]byte("HTTP/1.1 200 OK\r\nPragma: no-cache\r\nContent-Length: 0\r\n\r\n"), "Cache-Control")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokay"), "X")
	f.Add([]byte("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok"), "X")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "X")
	f.Add([]byte("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"), "X")
	f.Add([]byte("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), "connection")
	f.Add([]byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), "connection")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		const limit = 100
		got, rest := plainAnswer(bytes.NewReader(b), "GET", limit, new(room), func() {})
		if rest != nil {
			if all, err := io.ReadAll(rest); err != nil || !bytes.Equal(all, b) {
				t.Errorf("what came is lost: %q of %q, %v", all, b, err)
			}
			return
		}
		want, in := answerHead(bytes.NewReader(b), "GET", func() {})
		if len(b) == 0 && got.err == want.err {
			return
		}
		if want.err != nil {
			t.Fatalf("net/http refuses it: %v", want.err)
		}
		body, err := io.ReadAll(io.LimitReader(in, limit))
		whole := err == nil && in.lasts && in.rest.Buffered() == 0
		if got.status != want.status || !bytes.Equal(got.body, body) || got.whole != whole || err != nil {
			t.Errorf("status %d, body %q, whole %v; want %d, %q, %v, %v", got.status, got.body, got.whole, want.status, body, whole, err)
		}
		if !token(name) {
			return
		}
		for n := range want.header {
			if !slices.Equal(got.values(n), want.header.Values(n)) {
				t.Errorf("field %s: %q, want %q", n, got.values(n), want.header.Values(n))
			}
		}
		if got, want := got.values(name), want.header.Values(name); !slices.Equal(got, want) {
			t.Errorf("field %s: %q, want %q", name, got, want)
		}
	})
}
