package probe

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

const nginxBinary = "/usr/sbin/nginx"

func writePair(t *testing.T, dir, name string, c tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: c.Certificate[0]},
		name + ".key": {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNginx probes a real nginx, one process, on loopback: well, 500, slow, expired, wrong name, stopped, killed.
func TestNginx(t *testing.T) {
	if _, err := os.Stat(nginxBinary); err != nil {
		t.Fatalf("this test needs %s: apt-get install nginx-light", nginxBinary)
	}
	dir, ca, now := t.TempDir(), newAuthority(t), time.Now()
	writePair(t, dir, "good", ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	writePair(t, dir, "old", ca.issue(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour)))
	plain, good, old := uint16(peers.FreePort(t)), uint16(peers.FreePort(t)), uint16(peers.FreePort(t))
	big := strings.Repeat("status: up\n", 1000)
	if err := os.WriteFile(filepath.Join(dir, "big"), []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := fmt.Sprintf(`daemon off; master_process off; pid nginx.pid; error_log error.log; %s
events {}
http {
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {
    listen 127.0.0.1:%d;
    root %s;
    location = /ok { return 200 "status: up\n"; }
    location = /500 { return 500; }
    location = /big { limit_rate_after 1k; limit_rate 100; }
  }
  server { listen 127.0.0.1:%d ssl; ssl_certificate good.crt; ssl_certificate_key good.key; return 200 "ok"; }
  server { listen 127.0.0.1:%d ssl; ssl_certificate old.crt; ssl_certificate_key old.key; return 200 "ok"; }
}
`, user, plain, dir, good, old)
	for name, text := range map[string]string{"nginx.conf": conf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(nginxBinary, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	at := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	for deadline := now.Add(patient); ; time.Sleep(10 * time.Millisecond) {
		if tr := ask(t, Options{}, at(plain), rota.Check{Kind: rota.KindTCP}); tr.Observation.Status == rota.Up {
			break
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Fatalf("nginx does not listen: %s", log)
		}
	}
	o := Options{Roots: ca.roots}
	http := func(path string) rota.Check { return rota.Check{Kind: rota.KindHTTP, Path: path} }
	short := rota.Timing{Timeout: hasty}
	named := func(name string) rota.Check { return rota.Check{Kind: rota.KindHTTPS, Host: name} }
	slow, stopped := http("/big"), http("/ok")
	slow.Timing, stopped.Timing = short, short
	body := http("/ok")
	body.Body = "^status: up$"
	expect(t, o, at(plain), body, `down body: body does not match "^status: up$"`) // no (?m): the newline is part of the body
	body.Body = `^status: up\n$`
	expect(t, o, at(plain), body, "up ok: status 200")
	expect(t, o, at(plain), http("/500"), "down status: status 500, want 200-399")
	expect(t, o, at(plain), http("/none"), "down status: status 404, want 200-399")
	expect(t, o, at(plain), slow, "down timeout: body: not done within 500ms")
	expect(t, o, at(good), named("www.example.org"), "up ok: status 200")
	expect(t, o, at(good), named("db.example.org"), "down certificate: certificate is for www.example.org, 127.0.0.1, not db.example.org")
	expect(t, o, at(old), named("www.example.org"), "down certificate: certificate expired "+now.Add(-24*time.Hour).UTC().Format(time.DateOnly))

	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	expect(t, o, at(plain), stopped, "down timeout: answer: not done within 500ms")
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	expect(t, o, at(plain), http("/ok"), "up ok: status 200")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	ended = true
	expect(t, o, at(plain), http("/ok"), "down refused: connect: refused")
}

// TestNginxHTTP2 asks a real nginx over HTTP/2, by TLS and in clear, with and without our certificate; then nginx renews its own (P9).
func TestNginxHTTP2(t *testing.T) {
	dir, ca, now := t.TempDir(), newAuthority(t), time.Now()
	writePair(t, dir, "good", ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	writePair(t, dir, "ours", ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	writePair(t, dir, "stranger", newAuthority(t).issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	write("big", strings.Repeat("status: up\n", 100_000))
	at := func() netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(peers.FreePort(t)))
	}
	secure, mutual, clear := at(), at(), at()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	write("nginx.conf", fmt.Sprintf(`daemon off; pid nginx.pid; error_log error.log; worker_processes 1; %s
events {}
http {
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  ssl_certificate good.crt; ssl_certificate_key good.key;
  map $http_authorization $who { "Bearer t0ken" 200; default 401; }
  server {
    listen %s ssl http2; root %s;
    location = /version { return 200 "$server_protocol $request_method $host"; }
    location = /private { if ($who = 401) { return 401; } return 200 "in"; }
    location = /drain { add_header Rota-Drain 1 always; return 503; }
    location = /json { return 200 '{"status": "ok", "load": 0.5}'; }
    location = /slow { limit_rate_after 1k; limit_rate 100; try_files /big =404; }
    location = /post { client_max_body_size 1k; proxy_pass http://127.0.0.1:1; }
  }
  server { listen %s ssl http2; ssl_client_certificate ca.crt; ssl_verify_client on; location / { return 200 "$ssl_client_verify $ssl_client_s_dn"; } }
  server { listen %s http2; location / { return 200 "$server_protocol"; } }
}
`, user, secure, dir, mutual, clear))
	cmd := child(t, secure, nginxBinary, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"))
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }) // the master takes its worker along
	o := Options{Roots: ca.roots, Secret: func(p rota.Place) ([]byte, error) {
		if p == "env:TOKEN" {
			return []byte("t0ken"), nil
		}
		return os.ReadFile(strings.TrimPrefix(string(p), "file:"))
	}}
	file := func(name string) rota.Place { return rota.Place("file:" + filepath.Join(dir, name)) }
	page := func(path string) rota.Check {
		return rota.Check{Kind: rota.KindHTTPS, HTTP2: true, Host: "www.example.org", Path: path}
	}
	version, head, json, private, stranger, slow, big, post := page("/version"), page("/version"), page("/json"), page("/private"), page("/private"), page("/slow"), page("/big"), page("/post")
	version.Body, head.Method = "^HTTP/2.0 GET www.example.org$", "HEAD"
	json.JSON = []rota.JSONRule{{Pointer: "/status", Want: `"ok"`}, {Pointer: "/load", Want: "< 1"}}
	private.Auth, private.Body = rota.Auth{Secret: "env:TOKEN"}, "^in$"
	slow.Timing, big.Body, big.MaxBody = rota.Timing{Timeout: hasty}, `(up\s+){100000}`, rota.LimitMaxBody
	big.Body = `up\n$`
	post.Method, post.Data = "POST", strings.Repeat("x", 2000)
	expect(t, o, secure, version, "up ok: status 200")
	expect(t, o, secure, head, "up ok: status 200")
	expect(t, o, secure, json, "up ok: status 200")
	expect(t, o, secure, private, "up ok: status 200")
	expect(t, o, secure, stranger, "down status: status 401, want 200-399")
	expect(t, o, secure, page("/drain"), "draining said: status 503 with Rota-Drain: 1")
	expect(t, o, secure, page("/none"), "down status: status 404, want 200-399")
	expect(t, o, secure, slow, "down timeout: body: not done within 500ms")
	expect(t, o, secure, post, "down status: status 413, want 200-399")
	if tr := expect(t, o, secure, big, "up ok: status 200"); tr.ReceivedSize != 1_100_000 {
		t.Errorf("%d bytes came", tr.ReceivedSize)
	}
	plain := rota.Check{Kind: rota.KindHTTP, HTTP2: true, Body: "^HTTP/2.0$"}
	expect(t, o, clear, plain, "up ok: status 200")

	for _, http2 := range []bool{true, false} {
		known := page("/")
		known.HTTP2, known.Body = http2, "^SUCCESS CN=www$"
		unknown := known
		expect(t, o, mutual, unknown, "down status: status 400, want 200-399")
		known.ClientCert, known.ClientKey, known.CA = file("ours.crt"), file("ours.key"), file("ca.crt")
		expect(t, Options{Secret: o.Secret}, mutual, known, "up ok: status 200")
		known.ClientCert, known.ClientKey = file("stranger.crt"), file("stranger.key")
		expect(t, o, mutual, known, "down status: status 400, want 200-399")
	}

	was := expect(t, o, secure, version, "up ok: status 200").TLS.Chain[0].NotAfter
	writePair(t, dir, "good", ca.issue(t, now.Add(-time.Hour), now.Add(2*time.Hour)))
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		if tr := expect(t, o, secure, version, "up ok: status 200"); !tr.TLS.Chain[0].NotAfter.Equal(was) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nginx does not renew its certificate")
		}
	}
}
