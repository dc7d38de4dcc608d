package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second // of tests, with a machine that is slow

// must makes a test end on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// until waits for something to become true.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// world is a cluster with its authority.
type world struct {
	t  testing.TB
	ca *CA

	mu      sync.Mutex
	members []Member
	banned  map[string]error // by id
}

func newWorld(t testing.TB, cluster string) *world {
	return &world{t: t, ca: must(NewCA(cluster))(t), banned: map[string]error{}}
}

func (w *world) Members() []Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.members)
}

func (w *world) Allowed(i Identity) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.banned[i.ID]
}

func (w *world) ban(id string, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.banned[id] = why
}

func (w *world) identity(role Role, name string) Identity {
	i := Identity{Cluster: w.ca.cluster, Role: role, ID: name, Name: name}
	if role == Node {
		i.ID = "id-" + name
	}
	return i
}

// process is one holder of credentials.
type process struct {
	id    Identity
	files Files
	creds *Credentials
	port  *Port
	addr  string
	stop  func()
}

// credentials issues for somebody, out of the world's CA.
func (w *world) credentials(id Identity) *process {
	p := &process{id: id, files: FilesIn(w.t.TempDir()), stop: func() {}}
	if err := w.ca.Issue(p.files, id); err != nil {
		w.t.Fatal(err)
	}
	p.creds = must(LoadCredentials(CredentialOptions{Files: p.files, Renew: func(_ context.Context, csr []byte) (Grant, error) {
		w.mu.Lock()
		ca := w.ca
		w.mu.Unlock()
		return ca.Sign(csr, id)
	}}))(w.t)
	return p
}

// node starts a member.
func (w *world) node(name string, change ...func(*Options)) *process {
	p := w.credentials(w.identity(Node, name))
	w.run(p, change...)
	w.mu.Lock()
	w.members = append(w.members, Member{ID: p.id.ID, Name: name, Address: p.addr})
	w.mu.Unlock()
	return p
}

func (w *world) options(p *process) Options {
	return Options{
		DialerOptions: DialerOptions{Credentials: p.creds, Members: w.Members, Allowed: w.Allowed},
		Listen:        "127.0.0.1:0",
		Peer: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			who, _ := PeerOf(r.Context())
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(rw, p.id.String()+" hears "+who.String())
		}),
	}
}

func (w *world) run(p *process, change ...func(*Options)) {
	o := w.options(p)
	for _, c := range change {
		c(&o)
	}
	p.port = must(NewPort(o))(w.t)
	if err := p.port.Listen(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	p.addr = p.port.Addr().String()
	p.stop = background(w.t, p.port.Run)
}

// background runs something until the test ends, or stop is called.
func background(t testing.TB, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("it does not stop")
		}
	})
	t.Cleanup(stop)
	return stop
}

// dialer starts the calling half of a process without a port.
func (w *world) dialer(p *process, change ...func(*DialerOptions)) *Dialer {
	o := DialerOptions{Credentials: p.creds, Members: w.Members}
	for _, c := range change {
		c(&o)
	}
	d := must(NewDialer(o))(w.t)
	p.stop = background(w.t, d.Run)
	return d
}

// forge makes a certificate by a CA's own key that Sign would not make.
func (c *CA) forge(t testing.TB, id Identity, change func(*x509.Certificate)) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	x := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: id.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{id.uri()},
	}
	if change != nil {
		change(x)
	}
	der := must(x509.CreateCertificate(rand.Reader, x, c.cert, key.Public(), c.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// poke does a caller's part with none of a caller's scruples, and returns what the port said, as far as it let itself be talked to.
func poke(addr string, conf *tls.Config, cluster string, then []byte) (said []byte, welcomed bool, err error) {
	conf.InsecureSkipVerify = true
	raw, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, false, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, conf)
	if err := c.Handshake(); err != nil {
		return nil, false, err
	}
	_, _ = c.Write(append(append([]byte{byte(len(cluster))}, cluster...), then...))
	var head [3]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, false, err
	}
	said = make([]byte, int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(c, said)
	return said, head[0] == welcome, err
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
