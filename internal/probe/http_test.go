package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/rota-dns/rota/internal/rota"
)

// places is an Options.Secret that reads from a map.
func places(of map[rota.Place]string) func(rota.Place) ([]byte, error) {
	return func(at rota.Place) ([]byte, error) {
		if text, ok := of[at]; ok {
			return []byte(text), nil
		}
		return nil, errors.New("this machine's own configuration does not name it")
	}
}

// requests answers each request with text and sends what it read.
func requests(text string) (func(net.Conn), <-chan string) {
	seen := make(chan string, 100)
	return func(c net.Conn) {
		head := readHead(c)
		seen <- head
		_, _ = io.WriteString(c, text)
	}, seen
}

func TestHTTPJSON(t *testing.T) {
	page := func(body string) func(net.Conn) { return answers("HTTP/1.1 200 OK\r\n\r\n" + body) }
	rule := func(pointer, want string) rota.Check {
		return rota.Check{JSON: []rota.JSONRule{{Pointer: pointer, Want: want}}}
	}
	two := rule("/status", `"ok"`)
	two.JSON = append(two.JSON, rota.JSONRule{Pointer: "/load", Want: "< 90"})
	short := rule("/status", `"ok"`)
	short.MaxBody = 10
	head := rule("", "1")
	head.Method = "HEAD"
	many := rota.Check{JSON: make([]rota.JSONRule, 17)}
	for i := range many.JSON {
		many.JSON[i].Want = "1"
	}
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"holds", page(`{"status":"ok","load":89.9}`), two, "up ok: status 200"},
		{"first fails", page(`{"status":"bad","load":89}`), two, `down body: JSON /status is "bad", want "ok"`},
		{"second fails", page(`{"status":"ok","load":90}`), two, "down body: JSON /load is 90, want < 90"},
		{"not there", page(`{"load":90}`), two, "down body: JSON /status is not there"},
		{"twice", page(`{"status":"bad","status":"ok"}`), rule("/status", `"ok"`), "down body: JSON /status stands there twice"},
		{"no JSON", page(`<html>ok</html>`), two, "down body: body is not JSON"},
		{"empty", page(``), two, "down body: body is not JSON"},
		{"cut", page(`{"status":"ok"}`), short, "down body: body is not JSON in its first 10 bytes; more is read with max_body"},
		{"deep", page(strings.Repeat("[", 60_000)), two, "down body: body is not JSON"},
		{"another status", answers("HTTP/1.1 503 no\r\n\r\n{}"), two, "down status: status 503, want 200-399"},
		{"bad pointer", silent, rule("status", "1"), `unknown : the check cannot be asked: JSON pointer "status": begin with /, as in /status/db (RFC 6901)`},
		{"HEAD", silent, head, "unknown : the check cannot be asked: an answer to HEAD has no body that rules on JSON could hold for"},
		{"too many", silent, many, "unknown : the check cannot be asked: more than 16 rules on JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindHTTP
			expect(t, Options{}, serve(t, c.server), c.check, c.want)
		})
	}
}

func TestHTTPMethodsAndData(t *testing.T) {
	bodies := make(chan string, 1)
	at := serve(t, func(c net.Conn) {
		b := make([]byte, 8<<10)
		n := 0
		for {
			m, err := c.Read(b[n:])
			n += m
			head, body, ok := strings.Cut(string(b[:n]), "\r\n\r\n")
			var length int
			if _, rest, found := strings.Cut(head, "Content-Length: "); found {
				_, _ = fmt.Sscan(rest, &length)
			}
			if err != nil || ok && len(body) >= length {
				bodies <- head[:strings.IndexByte(head, '\r')] + fmt.Sprintf(" %v %d:", strings.Contains(head, "Content-Length"), length) + body
				break
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	for _, c := range []struct{ method, data, sent string }{
		{"", "", "GET / HTTP/1.1 false 0:"},
		{"HEAD", "", "HEAD / HTTP/1.1 false 0:"},
		{"OPTIONS", "", "OPTIONS / HTTP/1.1 false 0:"},
		{"POST", `{"deep":true}`, `POST / HTTP/1.1 true 13:{"deep":true}`},
		{"PUT", "a\r\n\r\nGET / HTTP/1.1\r\n\r\n", "PUT / HTTP/1.1 true 23:a\r\n\r\nGET / HTTP/1.1\r\n\r\n"},
		{"PATCH", "", "PATCH / HTTP/1.1 true 0:"},
	} {
		expect(t, Options{}, at, rota.Check{Kind: rota.KindHTTP, Method: c.method, Data: c.data}, "up ok: status 200")
		if got := <-bodies; got != c.sent {
			t.Errorf("%s: sent %q, want %q", c.method, got, c.sent)
		}
	}
	for _, c := range []struct{ method, data, why string }{
		{"DELETE", "", `method "DELETE": want GET, HEAD, OPTIONS, POST, PUT or PATCH`},
		{"TRACE", "", `method "TRACE": want GET, HEAD, OPTIONS, POST, PUT or PATCH`},
		{"CONNECT", "", `method "CONNECT": want GET, HEAD, OPTIONS, POST, PUT or PATCH`},
		{"get", "", `method "get": want GET, HEAD, OPTIONS, POST, PUT or PATCH`},
		{"GET / HTTP/1.1\r\nX: y", "", `method "GET / HTTP/1.1\r\nX: y": want GET, HEAD, OPTIONS, POST, PUT or PATCH`},
		{"GET", "x", "data goes with POST, PUT or PATCH"},
		{"", "x", "data goes with POST, PUT or PATCH"},
		{"POST", strings.Repeat("x", rota.MaxData+1), "data is longer than 4096 bytes"},
	} {
		expect(t, Options{}, at, rota.Check{Kind: rota.KindHTTP, Method: c.method, Data: c.data}, "unknown : the check cannot be asked: "+c.why)
	}
}

// TestHTTPDrains: who says that it leaves is draining at once, whatever else it says.
func TestHTTPDrains(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		check        rota.Check
		want         string
	}{
		{"503", "HTTP/1.1 503 no\r\nRota-Drain: 1\r\n\r\n", rota.Check{}, "draining said: status 503 with Rota-Drain: 1"},
		{"200", "HTTP/1.1 200 OK\r\nrota-drain: rolling update\r\n\r\n", rota.Check{}, "draining said: status 200 with Rota-Drain: rolling update"},
		{"no value", "HTTP/1.1 200 OK\r\nRota-Drain:\r\n\r\n", rota.Check{}, "draining said: status 200 with Rota-Drain: "},
		{"0", "HTTP/1.1 200 OK\r\nRota-Drain: 0\r\n\r\n", rota.Check{}, "up ok: status 200"},
		{"False", "HTTP/1.1 200 OK\r\nRota-Drain: False\r\n\r\n", rota.Check{}, "up ok: status 200"},
		{"no", "HTTP/1.1 503 no\r\nRota-Drain: no\r\n\r\n", rota.Check{}, "down status: status 503, want 200-399"},
		{"both", "HTTP/1.1 200 OK\r\nRota-Drain: 0\r\nRota-Drain: yes\r\n\r\n", rota.Check{}, "draining said: status 200 with Rota-Drain: yes"},
		{"another field", "HTTP/1.1 503 no\r\nX-Leaves: true\r\n\r\n", rota.Check{DrainHeader: "x-leaves"}, "draining said: status 503 with x-leaves: true"},
		{"not the default then", "HTTP/1.1 200 OK\r\nRota-Drain: 1\r\n\r\n", rota.Check{DrainHeader: "X-Leaves"}, "up ok: status 200"},
		{"none", "HTTP/1.1 200 OK\r\nRota-Drain: 1\r\n-: 1\r\n\r\n", rota.Check{DrainHeader: "-"}, "up ok: status 200"},
		{"before a redirect", "HTTP/1.1 302 x\r\nRota-Drain: 1\r\nLocation: /\r\n\r\n", rota.Check{Follow: true}, "draining said: status 302 with Rota-Drain: 1"},
		{"before the body", "HTTP/1.1 200 OK\r\nRota-Drain: 1\r\n\r\nno", rota.Check{Body: "yes"}, "draining said: status 200 with Rota-Drain: 1"},
		{"in a cut answer", "HTTP/1.1 200 OK\r\nRota-Drain: 1\r\nContent-Length: 9\r\n\r\nno", rota.Check{}, "down protocol: body: the target closed before its end"},
		{"in a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Rota-Drain\r\n\r\n0\r\nRota-Drain: 1\r\n\r\n", rota.Check{}, "up ok: status 200"},
		{"bad name", "", rota.Check{DrainHeader: "a b"}, `unknown : the check cannot be asked: drain_header "a b" is no name of a header field`},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.check.Kind = rota.KindHTTP
			tr := expect(t, Options{}, serve(t, answers(c.answer)), c.check, c.want)
			if o := tr.Observation; o.Sure != (o.Status == rota.Draining) {
				t.Errorf("sure is %v", o.Sure)
			}
		})
	}
}

func TestHTTPAuth(t *testing.T) {
	server, seen := requests("HTTP/1.1 200 OK\r\n\r\n")
	at := serve(t, server)
	o := Options{Secret: places(map[rota.Place]string{
		"file:/p": "s3cret: pass", "env:T": "abc.DEF-_~+/09==", "file:/nl": "a\nb", "file:/empty": "", "file:/long": strings.Repeat("x", 4097),
	})}
	for _, c := range []struct {
		auth rota.Auth
		want string // in the request
	}{
		{rota.Auth{User: "ops", Secret: "file:/p"}, "Authorization: Basic b3BzOnMzY3JldDogcGFzcw==\r\n"},
		{rota.Auth{Secret: "env:T"}, "Authorization: Bearer abc.DEF-_~+/09==\r\n"},
	} {
		tr := expect(t, o, at, rota.Check{Kind: rota.KindHTTP, Auth: c.auth}, "up ok: status 200")
		if got := <-seen; !strings.Contains(got, c.want) {
			t.Errorf("%+v: request %q", c.auth, got)
		}
		if !strings.Contains(tr.Sent, "Authorization: ***") {
			t.Errorf("the trace does not say that credentials were sent: %q", tr.Sent)
		}
	}
	for _, c := range []struct {
		auth   rota.Auth
		reason string
	}{
		{rota.Auth{Secret: "file:/other"}, "permission: auth: this machine's own configuration does not name it"},
		{rota.Auth{User: "ops", Secret: "file:/nl"}, "permission: auth: secret file:/nl has a control character; a password or a token is one line"},
		{rota.Auth{User: "ops", Secret: "file:/empty"}, "permission: auth: secret file:/empty is empty"},
		{rota.Auth{User: "ops", Secret: "file:/long"}, "permission: auth: secret file:/long is longer than 4096 bytes"},
		{rota.Auth{Secret: "file:/p"}, "permission: auth: secret file:/p is no bearer token, which has letters, digits and -._~+/ only, and = at its end; for a password name its user"},
		{rota.Auth{User: "ops"}, ": the check cannot be asked: auth names a user without a secret"},
		{rota.Auth{User: "o:ps", Secret: "file:/p"}, `: the check cannot be asked: auth: user "o:ps" has a colon or a control character (RFC 7617 §2)`},
		{rota.Auth{User: "o\nps", Secret: "file:/p"}, `: the check cannot be asked: auth: user "o\nps" has a colon or a control character (RFC 7617 §2)`},
	} {
		expect(t, o, at, rota.Check{Kind: rota.KindHTTP, Auth: c.auth}, "unknown "+c.reason)
	}
	if tr := expect(t, Options{}, at, rota.Check{Kind: rota.KindHTTP, Auth: rota.Auth{Secret: "env:T"}}, "unknown permission: auth: no secrets are read here"); !tr.lacks {
		t.Error("a missing secret passes for a failure of the prober's")
	}
	expect(t, o, at, rota.Check{Kind: rota.KindHTTP, Auth: rota.Auth{Secret: "env:T"}, Header: []rota.Header{{Name: "authorization", Value: "x"}}},
		"unknown : the check cannot be asked: auth and a header Authorization: leave out one")
	if len(seen) > 0 {
		t.Errorf("asked all the same: %q", <-seen)
	}
}

// TestCredentialsAreNotShown has targets that give the credential back in every place of an answer, and looks for it in everything that
// leaves the probe.
func TestCredentialsAreNotShown(t *testing.T) {
	const password, token, user = "pw-0123456789-pw", "tok-0123456789-tok", "ops"
	for name, auth := range map[string]rota.Auth{"basic": {User: user, Secret: "file:/pw"}, "bearer": {Secret: "file:/token"}} {
		// What the target got is what it gives back: the credential, as it came and decoded.
		for place, answer := range map[string]string{
			"status line": "HTTP/1.1 200 %[1]s %[2]s\r\n\r\n",
			"junk":        "%[1]s %[2]s\r\n\r\n",
			"header":      "HTTP/1.1 200 OK\r\nX-Echo: %[1]s\r\nX-Too: %[2]s\r\n\r\n",
			"header cut":  "HTTP/1.1 200 OK\r\nX-Echo: " + strings.Repeat("x", maxHead-40) + "%[2]s\r\n\r\n",
			"bad header":  "HTTP/1.1 200 OK\r\n%[1]s %[2]s\r\n\r\n",
			"lengths":     "HTTP/1.1 200 OK\r\nContent-Length: %[2]s\r\n\r\n",
			"encoding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: %[2]s\r\n\r\n",
			"drain":       "HTTP/1.1 200 OK\r\nRota-Drain: %[1]s\r\n\r\n",
			"location":    "HTTP/1.1 302 OK\r\nLocation: /?%[2]s\r\n\r\n",
			"elsewhere":   "HTTP/1.1 302 OK\r\nLocation: http://192.0.2.1/?%[2]s\r\n\r\n",
			"cut there":   "HTTP/1.1 302 OK\r\nLocation: http://192.0.2.1/?" + strings.Repeat("x", rota.MaxReason-70) + "%[2]s\r\n\r\n",
			"json":        "HTTP/1.1 200 OK\r\n\r\n{\"a\":\"%[2]s\"}",
			"json cut":    "HTTP/1.1 200 OK\r\n\r\n{\"a\":\"" + strings.Repeat("x", 50) + "%[2]s\"}",
			"text":        "HTTP/1.1 200 OK\r\n\r\n%[1]s %[2]s",
			"chunk":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%[2]s\r\n",
		} {
			t.Run(name+"/"+place, func(t *testing.T) {
				t.Parallel()
				at := serve(t, func(c net.Conn) {
					head := readHead(c)
					_, sent, _ := strings.Cut(head, "Authorization: ")
					sent, _, _ = strings.Cut(sent, "\r\n")
					plain := token
					if auth.User != "" {
						plain = password
					}
					if !strings.Contains(sent, " ") {
						t.Errorf("no credential came: %q", head)
					}
					_, _ = fmt.Fprintf(c, answer, sent, plain)
				})
				var log strings.Builder
				p := New(Options{
					Log:    slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
					Secret: places(map[rota.Place]string{"file:/pw": password, "file:/token": token}),
				})
				target := rota.NewTarget(at.Addr(), rota.Check{
					Kind: rota.KindHTTP, Port: at.Port(), Timing: rota.Timing{Timeout: patient}, Auth: auth, Follow: true,
					JSON: []rota.JSONRule{{Pointer: "/a", Want: "1"}},
				})
				tr := p.Once(t.Context(), target)
				shown, err := json.Marshal(tr)
				if err != nil {
					t.Fatal(err)
				}
				all := fmt.Sprintf("%s %+v %#v %s %v", shown, tr, tr, log.String(), target)
				for _, secret := range []string{password, token, "b3BzOnB3LTAxMjM0NTY3ODktcHc=", password[:6], token[:7]} {
					if strings.Contains(all, secret) {
						t.Errorf("%q is shown: %s", secret, all)
					}
				}
			})
		}
	}
}

// TestCredentialsStayAtHome: a redirect takes them along to the same name, port and scheme, and to nothing else.
func TestCredentialsStayAtHome(t *testing.T) {
	var location string
	seen := make(chan string, 2)
	at := serve(t, func(c net.Conn) {
		head := readHead(c)
		if strings.HasPrefix(head, "GET /end") {
			seen <- head
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			return
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 307 x\r\nLocation: %s\r\n\r\n", location)
	})
	o := Options{Secret: places(map[rota.Place]string{"file:/token": "t0ken"})}
	for to, goes := range map[string]bool{
		"/end":                  true,
		"//www.example.org/end": true,
		fmt.Sprintf("http://WWW.example.org:%d/end", at.Port()): true,
		"http://" + at.String() + "/end":                        false, // the same machine, but perhaps another site on it
	} {
		location = to
		expect(t, o, at, rota.Check{
			Kind: rota.KindHTTP, Host: "www.example.org", Follow: true, Auth: rota.Auth{Secret: "file:/token"},
			Header: []rota.Header{{Name: "X-Api-Key", Value: "k3y"}, {Name: "X-Probe", Value: "1"}},
		}, "up ok: status 200")
		head := <-seen
		if strings.Contains(head, "t0ken") != goes || strings.Contains(head, "k3y") != goes || !strings.Contains(head, "X-Probe: 1") {
			t.Errorf("%s: credentials go along: %q", to, head)
		}
	}
}

// TestRedirectedData: 307 and 308 repeat the question whole, the others ask for another page (RFC 9110 §15.4).
func TestRedirectedData(t *testing.T) {
	r := &run{q: newQuestion(rota.Check{Kind: rota.KindHTTP, Port: 80, Method: "POST", Data: "x", Follow: true}), addr: netip.MustParseAddr("192.0.2.1")}
	for status, want := range map[int]page{301: {method: "GET"}, 302: {method: "GET"}, 303: {method: "GET"}, 307: {method: "POST", data: "x"}, 308: {method: "POST", data: "x"}} {
		want.host, want.path = "192.0.2.1", "/a"
		_, next := r.redirect(page{method: "POST", host: "192.0.2.1", path: "/", data: "x"}, answer{status: status, header: map[string][]string{"Location": {"/a"}}})
		if next == nil || *next != want {
			t.Errorf("%d: %+v, want %+v", status, next, want)
		}
	}
}

// TestSecretsAreReadAgain: a secret that is replaced is used within a second, and a thousand targets do not read it a thousand times.
func TestSecretsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		reads, value := 0, "old"
		s := newSecrets(func(rota.Place) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			if value == "" {
				return nil, errors.New("no such file")
			}
			return []byte(value), nil
		})
		got := func() string {
			b, err := s.get("file:/x")
			if err != nil {
				return err.Error()
			}
			return string(b)
		}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if got() != "old" {
					t.Error("another value")
				}
			})
		}
		wg.Wait()
		if reads != 1 {
			t.Errorf("read %d times", reads)
		}
		for _, v := range []string{"new", "", "back"} {
			value = v
			time.Sleep(secretAge)
			want := v
			if v == "" {
				want = "no such file"
			}
			if g := got(); g != want {
				t.Errorf("got %s, want %s", g, want)
			}
		}
		for i := range 3 * maxSecrets {
			_, _ = s.get(rota.Place(fmt.Sprintf("file:/%d", i)))
		}
		if len(s.kept) > maxSecrets {
			t.Errorf("%d places are remembered", len(s.kept))
		}
	})
}

// TestFiftyHostileAtOnce is P11: fifty servers that send without end, all at the same time, get the right verdict in bounded memory, and
// their connections are closed.
func TestFiftyHostileAtOnce(t *testing.T) {
	const most = 64 << 20 // bytes that the heap may grow, garbage included
	zeros := strings.Repeat("\x00", 32<<10)
	head := func(w *http2.Framer) {
		_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "200", "content-encoding", "gzip"), EndHeaders: true})
	}
	hostile := []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"body", flood("HTTP/1.1 200 OK\r\n\r\n", zeros), rota.Check{}, "up ok: status 200"},
		{"gzip", flood("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", zeros), rota.Check{Body: "up"}, `down body: body does not match "up"`},
		{"lying length", flood("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", zeros), rota.Check{JSON: []rota.JSONRule{{Want: "1"}}}, "down body: body is not JSON in its first 65536 bytes; more is read with max_body"},
		{"chunks", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "7fff\r\n"+zeros[:0x7fff]+"\r\n"), rota.Check{}, "up ok: status 200"},
		{"one chunk", flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n", zeros), rota.Check{}, "up ok: status 200"},
		{"header", flood("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("y", 32<<10)), rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"headers", flood("HTTP/1.1 200 OK\r\n", "X: y\r\n"), rota.Check{}, "down protocol: answer: head larger than 64 KiB"},
		{"1xx", flood("", "HTTP/1.1 103 Early Hints\r\n\r\n"), rota.Check{}, "down protocol: answer: more than 8 informational answers"},
		{"HTTP/2 body", frames(func(w *http2.Framer, _ io.Writer) bool {
			for head(w); w.WriteData(1, false, []byte(zeros[:16<<10])) == nil; {
			}
			return true
		}), rota.Check{HTTP2: true}, "up ok: status 200"},
		{"HTTP/2 head", frames(func(w *http2.Framer, _ io.Writer) bool {
			_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: packed(":status", "200")})
			for w.WriteContinuation(1, false, packed("x", strings.Repeat("y", 15<<10))) == nil {
			}
			return true
		}), rota.Check{HTTP2: true}, "down protocol: answer: head larger than 64 KiB"},
	}
	const each = 5
	var arrived, open sync.WaitGroup
	arrived.Add(each * len(hostile))
	p := New(Options{})
	type result struct{ name, got, want string }
	results := make(chan result)
	heap := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	runtime.GC()
	before, peak := heap(), uint64(0)
	for _, h := range hostile {
		at := serve(t, func(c net.Conn) {
			open.Add(1)
			defer open.Done()
			arrived.Done()
			arrived.Wait() // all begin together
			h.server(c)
		})
		h.check.Kind, h.check.Port, h.check.Timeout = rota.KindHTTP, at.Port(), patient
		for range each {
			go func() {
				results <- result{h.name, verdict(p.Once(t.Context(), rota.NewTarget(at.Addr(), h.check))), h.want}
			}()
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for left := each * len(hostile); left > 0; {
		select {
		case r := <-results:
			left--
			if r.got != r.want {
				t.Errorf("%s: got %s, want %s", r.name, r.got, r.want)
			}
		case <-tick.C:
			peak = max(peak, heap())
		}
	}
	if peak > before+most {
		t.Errorf("the heap grew by %d MiB", (peak-before)>>20)
	}
	open.Wait() // the servers see that their connections are closed
}

// asideSeat counts what leaves the loop.
type asideSeat struct {
	seat
	times int
}

func (s *asideSeat) aside(f func()) {
	s.times++
	f()
}

// Patterns look through a large answer elsewhere than in the loop, whichever part of it is large.
func TestLargeAnswersLeaveTheLoop(t *testing.T) {
	large := strings.Repeat("x", heavy+1)
	for name, c := range map[string]struct {
		answer answer
		times  int
	}{
		"small":  {answer{status: 200, header: http.Header{"X-Word": {"x"}}, body: []byte("x")}, 0},
		"body":   {answer{status: 200, header: http.Header{"X-Word": {"x"}}, body: []byte(large)}, 1},
		"header": {answer{status: 200, header: http.Header{"X-Word": {"y", large}}, body: []byte("x")}, 1},
		"other":  {answer{status: 200, header: http.Header{"X-Word": {"x"}, "X-Other": {large}}, body: []byte("x")}, 0},
	} {
		q := newQuestion(rota.Check{Kind: rota.KindHTTP, Port: 80, Body: "x$", ExpectHeader: []rota.Header{{Name: "X-Word", Value: "^x+$"}}})
		s := &asideSeat{}
		r := &run{p: New(Options{}), q: q, parent: t.Context(), trace: &Trace{}, seat: s}
		if f, _ := r.settle(t.Context(), page{}, c.answer); f.status != rota.Up || s.times != c.times {
			t.Errorf("%s: %+v, left the loop %d times, want %d", name, f, s.times, c.times)
		}
	}
}
