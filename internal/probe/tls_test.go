package probe

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
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

// pemOf is a certificate and its key as files have them.
func pemOf(t testing.TB, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// issueFor is issue for a key of any kind.
func (a *authority) issueFor(t testing.TB, key crypto.Signer, from, to time.Time) tls.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(from.UnixNano()), Subject: pkix.Name{CommonName: "www"}, DNSNames: []string{"www.example.org"},
		NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestClientCertificate(t *testing.T) {
	ca, foreign, now := newAuthority(t), newAuthority(t), time.Now()
	caPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	foreignPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.cert.Raw}))
	cert, key := pemOf(t, ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	otherCert, otherKey := pemOf(t, foreign.issue(t, now.Add(-time.Hour), now.Add(time.Hour)))
	oldCert, oldKey := pemOf(t, ca.issue(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour)))
	youngCert, youngKey := pemOf(t, ca.issue(t, now.Add(24*time.Hour), now.Add(48*time.Hour)))
	secret := places(map[rota.Place]string{
		"file:/ca": caPEM, "file:/foreign": foreignPEM, "file:/c": cert, "file:/k": key, "file:/both": key + cert, "file:/oc": otherCert, "file:/ok": otherKey,
		"file:/old": oldCert + oldKey, "file:/young": youngCert + youngKey, "file:/junk": "s3cret junk",
	})
	server := func(version uint16) netip.AddrPort {
		return serve(t, tlsServer(&tls.Config{
			Certificates: []tls.Certificate{ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour))}, ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs: ca.roots, MaxVersion: version,
		}, answers("HTTP/1.1 200 OK\r\n\r\n")))
	}
	day := func(d time.Duration) string { return now.Add(d).UTC().Format(time.DateOnly) }
	at13, at12 := server(tls.VersionTLS13), server(tls.VersionTLS12)
	for _, c := range []struct {
		name          string
		cert, key, ca rota.Place
		want          string // of the tls kind
	}{
		{"accepted", "file:/c", "file:/k", "file:/ca", "up ok: handshake, TLS 1.3"},
		{"one file", "file:/both", "", "file:/ca", "up ok: handshake, TLS 1.3"},
		{"none", "", "", "file:/ca", "down tls: tls: client certificate wanted"},
		{"of another authority", "file:/oc", "file:/ok", "file:/ca", "down tls: tls: the target does not take our client certificate (unknown certificate authority)"},
		{"target of another authority", "file:/c", "file:/k", "file:/foreign", "down certificate: certificate is signed by an unknown authority"},
		{"the system's authorities", "file:/c", "file:/k", "", "down certificate: certificate is signed by an unknown authority"},
		{"not matching", "file:/c", "file:/ok", "file:/ca", "unknown permission: client_cert file:/c with client_key file:/ok: private key does not match public key"},
		{"no key", "file:/c", "", "file:/ca", "unknown permission: client_cert file:/c with client_key file:/c: found a certificate rather than a key in the PEM for the private key"},
		{"junk", "file:/junk", "file:/k", "file:/ca", "unknown permission: client_cert file:/junk with client_key file:/k: failed to find any PEM data in certificate input"},
		{"junk key", "file:/c", "file:/junk", "file:/ca", "unknown permission: client_cert file:/c with client_key file:/junk: failed to find any PEM data in key input"},
		{"junk ca", "file:/c", "file:/k", "file:/junk", "unknown permission: ca file:/junk holds no certificate in PEM"},
		{"missing", "file:/none", "file:/k", "file:/ca", "unknown permission: client_cert: this machine's own configuration does not name it"},
		{"missing key", "file:/c", "file:/none", "file:/ca", "unknown permission: client_key: this machine's own configuration does not name it"},
		{"missing ca", "file:/c", "file:/k", "file:/none", "unknown permission: ca: this machine's own configuration does not name it"},
		{"expired", "file:/old", "", "file:/ca", "unknown permission: client_cert file:/old expired " + day(-24*time.Hour) + "; renew it"},
		{"not yet", "file:/young", "", "file:/ca", "unknown permission: client_cert file:/young is not valid before " + day(24*time.Hour)},
		{"key alone", "", "file:/k", "", "unknown : the check cannot be asked: client_key without client_cert"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := rota.Check{Host: "www.example.org", ClientCert: c.cert, ClientKey: c.key, CA: c.ca}
			for kind, want := range map[rota.Kind]string{
				rota.KindTLS: c.want,
				rota.KindHTTPS: strings.NewReplacer("handshake, TLS 1.3", "status 200",
					"tls: client certificate wanted", "answer: client certificate wanted", "tls: the target does not", "answer: the target does not").Replace(c.want),
			} {
				check.Kind = kind
				want = strings.Replace(want, "down answer", "down tls", 1)
				tr := expect(t, Options{Secret: secret}, at13, check, want)
				if own := strings.HasPrefix(c.want, "unknown permission"); tr.lacks != own {
					t.Errorf("its own material is missing: %v, want %v", tr.lacks, own)
				}
				if strings.Contains(fmt.Sprintf("%+v", tr), "s3cret") {
					t.Errorf("what is in a file is shown: %+v", tr)
				}
				expect(t, Options{Secret: secret}, at12, check, strings.NewReplacer("TLS 1.3", "TLS 1.2", "answer: ", "tls: ").Replace(want))
			}
		})
	}
}

// TestCAReplacesTheOthers: authorities that a check names are trusted instead of the prober's, not beside them.
func TestCAReplacesTheOthers(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	at := serve(t, tlsServer(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))}}, silent))
	o := Options{Roots: ca.roots, Secret: places(map[rota.Place]string{"file:/ca": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.cert.Raw}))})}
	check := rota.Check{Kind: rota.KindTLS, ServerName: "www.example.org"}
	expect(t, o, at, check, "up ok: handshake, TLS 1.3")
	check.CA = "file:/ca"
	expect(t, o, at, check, "down certificate: certificate is signed by an unknown authority")
}

// TestOurCertificateIsRenewed is P9 on our side: what is written into the files is used from the next probe, and until both files fit each
// other nothing is claimed.
func TestOurCertificateIsRenewed(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	serials := make(chan string, 1)
	conf := &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, now.Add(-time.Hour), now.Add(time.Hour))}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.roots,
	}
	at := serve(t, tlsServer(conf, func(c net.Conn) {
		serials <- c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}))
	key1, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key2, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	one, two := ca.issueFor(t, key1, now.Add(-2*time.Hour), now.Add(time.Hour)), ca.issueFor(t, key2, now.Add(-time.Hour), now.Add(time.Hour))
	files := map[rota.Place]string{}
	p := New(Options{Roots: ca.roots})
	p.secret = func(at rota.Place) ([]byte, error) { return []byte(files[at]), nil } // without the second for which a value is kept
	q := newQuestion(rota.Check{Kind: rota.KindTLS, Port: at.Port(), ServerName: "www.example.org", ClientCert: "file:/c", ClientKey: "file:/k", Timing: rota.Timing{Timeout: patient}})
	files["file:/c"], files["file:/k"] = pemOf(t, one)
	probe := func() (string, *material) {
		return verdict(*p.observe(t.Context(), "x", at.Addr(), q, nil, nil)), q.material.Load()
	}
	const up = "up ok: handshake, TLS 1.3"
	got, first := probe()
	if got != up {
		t.Fatal(got)
	}
	serial := <-serials
	if got, again := probe(); got != up || again != first {
		t.Fatalf("%s; the same files were parsed twice: %v", got, again != first)
	}
	if same := <-serials; same != serial {
		t.Error("another certificate from the same files")
	}
	cert, key := pemOf(t, two)
	files["file:/c"] = cert
	if got, _ := probe(); got != "unknown permission: client_cert file:/c with client_key file:/k: private key does not match public key" {
		t.Error(got)
	}
	files["file:/k"] = key
	if got, _ := probe(); got != up {
		t.Fatal(got)
	}
	if renewed := <-serials; renewed == serial {
		t.Error("the old certificate is used after it was renewed")
	}
}

// child starts a program, ends it with the test by its process id, and waits until its port takes connections.
func child(t *testing.T, at netip.AddrPort, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("this test needs %s: %v", argv[0], err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = c.Close()
			return cmd
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("%v does not listen: %s", argv, said.String())
		}
	}
}

// TestOpenSSL is P8 against `openssl s_server`, a TLS that is not Go's.
func TestOpenSSL(t *testing.T) {
	ca, now, dir := newAuthority(t), time.Now(), t.TempDir()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from, to := now.Add(-time.Hour), now.Add(10*24*time.Hour)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]tls.Certificate{
		"ecdsa": ca.issueFor(t, ecKey, from, to), "rsa": ca.issueFor(t, rsaKey, from, to), "ed25519": ca.issueFor(t, edKey, from, to),
		"old": ca.issueFor(t, ecKey, now.Add(-48*time.Hour), now.Add(-24*time.Hour)), "self": (*authority)(nil).issue(t, from, to),
	} {
		cert, key := pemOf(t, c)
		write(name+".crt", cert)
		write(name+".key", key)
	}
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	server := func(t *testing.T, cert string, args ...string) (netip.AddrPort, *exec.Cmd) {
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(peers.FreePort(t)))
		argv := append([]string{"openssl", "s_server", "-accept", at.String(), "-www", "-quiet", "-cert", filepath.Join(dir, cert+".crt"), "-key", filepath.Join(dir, cert+".key")}, args...)
		return at, child(t, at, argv...)
	}
	secret := func(p rota.Place) ([]byte, error) {
		name, ok := strings.CutPrefix(string(p), "file:/")
		if !ok {
			return nil, errors.New("no such place")
		}
		return os.ReadFile(filepath.Join(dir, name))
	}
	own := rota.Check{ClientCert: "file:/rsa.crt", ClientKey: "file:/rsa.key"}
	const ok, wanted = "up ok: status 200", "down tls: tls: client certificate wanted"
	day := func(t time.Time) string { return t.UTC().Format(time.DateOnly) }
	for _, c := range []struct {
		name  string
		cert  string
		args  []string
		check rota.Check
		want  string // of https
		tls   string // of tls; empty: the same, but for what up says
	}{
		{"ecdsa", "ecdsa", nil, rota.Check{}, ok, ""},
		{"rsa", "rsa", nil, rota.Check{}, ok, ""},
		{"ed25519", "ed25519", nil, rota.Check{}, ok, ""},
		{"TLS 1.2 only", "rsa", []string{"-tls1_2"}, rota.Check{}, ok, ""},
		{"TLS 1.1 only", "rsa", []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, rota.Check{}, "down tls: tls: the target offers neither TLS 1.2 nor 1.3", ""},
		{"TLS 1.0 only", "rsa", []string{"-tls1", "-cipher", "ALL:@SECLEVEL=0"}, rota.Check{}, "down tls: tls: the target offers neither TLS 1.2 nor 1.3", ""},
		{"expired", "old", nil, rota.Check{}, "down certificate: certificate expired " + day(now.Add(-24*time.Hour)), ""},
		{"expired, none", "old", nil, rota.Check{Verify: rota.VerifyNone}, ok, ""},
		{"wrong name", "ecdsa", nil, rota.Check{Host: "db.example.org"}, "down certificate: certificate is for www.example.org, not db.example.org", ""},
		{"wrong name, ca", "ecdsa", nil, rota.Check{Host: "db.example.org", Verify: rota.VerifyCA}, ok, ""},
		{"self-signed", "self", nil, rota.Check{}, "down certificate: certificate is self-signed", ""},
		{"self-signed, ca", "self", nil, rota.Check{Verify: rota.VerifyCA}, "down certificate: certificate is self-signed", ""},
		{"about to expire", "ecdsa", nil, rota.Check{CertDays: 11}, "down certificate: certificate expires " + day(to) + ", in 9 days, want at least 11", ""},
		{"not yet about to", "ecdsa", nil, rota.Check{CertDays: 9}, ok, ""},
		{"SNI required, another", "ecdsa", []string{"-servername", "db.example.org", "-servername_fatal", "-cert2", "ecdsa.crt", "-key2", "ecdsa.key"}, rota.Check{}, "down tls: tls: the target does not know the server name www.example.org", ""},
		{"SNI missing", "old", []string{"-servername", "www.example.org", "-cert2", "ecdsa.crt", "-key2", "ecdsa.key"}, rota.Check{Host: "127.0.0.1"}, "down certificate: certificate expired " + day(now.Add(-24*time.Hour)), ""},
		{"SNI sent", "old", []string{"-servername", "www.example.org", "-cert2", "ecdsa.crt", "-key2", "ecdsa.key"}, rota.Check{}, ok, ""},
		{"client certificate asked for", "ecdsa", []string{"-verify", "1", "-CAfile", "ca.crt"}, rota.Check{}, ok, ""},
		{"client certificate required", "ecdsa", []string{"-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt"}, rota.Check{}, "down tls: answer: client certificate wanted", wanted},
		{"client certificate required, 1.2", "ecdsa", []string{"-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt", "-tls1_2"}, rota.Check{}, wanted, ""},
		{"client certificate given", "ecdsa", []string{"-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt"}, own, ok, ""},
		{"client certificate given, 1.2", "ecdsa", []string{"-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt", "-tls1_2"}, own, ok, ""},
		{"client certificate of another", "ecdsa", []string{"-Verify", "1", "-verify_return_error", "-CAfile", "self.crt", "-tls1_2"}, own, "down tls: tls: the target does not take our client certificate (unknown certificate authority)", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, a := range c.args {
				if strings.HasSuffix(a, ".crt") || strings.HasSuffix(a, ".key") {
					c.args[i] = filepath.Join(dir, a)
				}
			}
			at, _ := server(t, c.cert, c.args...)
			c.check.Host = strings.TrimSpace(c.check.Host)
			if c.check.Host == "" {
				c.check.Host = "www.example.org"
			}
			o := Options{Roots: ca.roots, Secret: secret}
			c.check.Kind = rota.KindHTTPS
			expect(t, o, at, c.check, c.want)
			c.check.Kind = rota.KindTLS
			want := c.want
			if c.tls != "" {
				want = c.tls
			}
			if tr := ask(t, o, at, c.check); want != ok && verdict(tr) != want || want == ok && tr.Observation.Status != rota.Up {
				t.Errorf("tls: %s, want %s", verdict(tr), want)
			}
		})
	}
	t.Run("stall", func(t *testing.T) {
		at, cmd := server(t, "ecdsa")
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []rota.Kind{rota.KindHTTPS, rota.KindTLS} {
			expect(t, Options{Roots: ca.roots}, at, rota.Check{Kind: kind, Host: "www.example.org", Timing: rota.Timing{Timeout: hasty}}, "down timeout: tls: not done within 500ms")
		}
	})
}
