package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// raftBytes look like raft's RPCs: a type byte, and MessagePack that claims a term of 2^40.
var raftBytes = append([]byte{0}, "\x86\xa9RPCHeader\x81\xafProtocolVersion\x03\xa4Term\xcf\x00\x00\x01\x00\x00\x00\x00\x00\xa6Leader\xc4\x03you"...)

// outsider is somebody who wants in and must not get in, with the reason for which the port must refuse.
type outsider struct {
	name   string
	reason Reason
	try    func(t *testing.T, addr string) (welcomed bool)
}

func knock(alpn []string, cert func(*testing.T) tls.Certificate, cluster string) func(*testing.T, string) bool {
	return func(t *testing.T, addr string) bool {
		conf := &tls.Config{NextProtos: alpn}
		if cert != nil {
			conf.Certificates = []tls.Certificate{cert(t)}
		}
		_, in, _ := poke(addr, conf, cluster, raftBytes)
		return in
	}
}

func plaintext(b []byte) func(*testing.T, string) bool {
	return func(t *testing.T, addr string) bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write(b)
		got, _ := io.ReadAll(c)
		return len(got) > 0 && got[0] != 21 // a TLS alert at most
	}
}

// outsiders of a world. FAULTS.md L13.
func outsiders(w *world) []outsider {
	other := must(NewCA("othercluster"))(w.t)
	twin := must(NewCA(w.ca.cluster))(w.t) // has all the names right
	raft, peer := []string{ProtocolRaft}, []string{ProtocolPeer}
	node, agent := w.identity(Node, "intruder"), w.identity(Agent, "watcher")
	made := func(ca *CA, id Identity, change func(*x509.Certificate)) func(*testing.T) tls.Certificate {
		return func(t *testing.T) tls.Certificate { return ca.forge(t, id, change) }
	}
	good := made(w.ca, node, nil)
	me := w.ca.cluster
	foreign := node
	foreign.Cluster = "othercluster"
	return []outsider{
		{"raft's bytes without TLS", NotTLS, plaintext(raftBytes)},
		{"plain HTTP", NotTLS, plaintext([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))},
		{"zeros", NotTLS, plaintext(make([]byte, 4096))},
		{"garbage in a TLS record", BadHandshake, plaintext(append([]byte{22, 3, 1, 0, 200, 1, 0, 0, 196}, bytes.Repeat([]byte{0xa5}, 196)...))},
		{"no certificate, for raft", NoCertificate, knock(raft, nil, me)},
		{"no certificate, for peers", NoCertificate, knock(peer, nil, me)},
		{"another CA", BadCert, knock(raft, made(other, foreign, nil), me)},
		{"another CA that calls itself like ours", BadCert, knock(raft, made(twin, node, nil), me)},
		{"expired", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) {
			x.NotBefore, x.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
		}), me)},
		{"not yet valid", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.NotBefore = time.Now().Add(30 * time.Minute) }), me)},
		{"for mail only", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), me)},
		{"for servers only", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), me)},
		{"no identity in it", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.URIs = nil }), me)},
		{"two identities", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.URIs = append(x.URIs, agent.uri()) }), me)},
		{"an authority's own", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) { x.IsCA, x.KeyUsage = true, x509.KeyUsageCertSign }), me)},
		{"an identity with a path in it", BadCert, knock(raft, made(w.ca, node, func(x *x509.Certificate) {
			x.URIs = []*url.URL{{Scheme: scheme, Host: me, Path: "/node/../agent/x"}}
		}), me)},
		{"another cluster, by our CA", OtherCluster, knock(raft, made(w.ca, foreign, nil), me)},
		{"our certificate, meant for another cluster", OtherCluster, knock(raft, good, "othercluster")},
		{"an agent's, on raft", WrongRole, knock(raft, made(w.ca, agent, nil), me)},
		{"an agent that calls itself as a node is called", WrongRole, knock(raft, made(w.ca, w.identity(Agent, "id-a"), nil), me)},
		{"a removed node", NotAllowed, knock(raft, made(w.ca, w.identity(Node, "removed"), nil), me)},
		{"a removed node, for peers", NotAllowed, knock(peer, made(w.ca, w.identity(Node, "removed"), nil), me)},
		{"an agent that is not accepted", NotAllowed, knock(peer, made(w.ca, w.identity(Agent, "stranger"), nil), me)},
		{"this node's own identity", OwnID, knock(raft, made(w.ca, w.identity(Node, "a"), nil), me)},
		{"no protocol", WrongProtocol, knock(nil, good, me)},
		{"an unknown protocol", WrongProtocol, knock([]string{"h2"}, good, me)},
		{"two protocols", WrongProtocol, knock([]string{ProtocolJoin, ProtocolRaft}, good, me)},
		{"a newcomer where none can join", NotServed, knock([]string{ProtocolJoin}, nil, me)},
		{"TLS 1.2 that wants to renegotiate", OldTLS, func(t *testing.T, addr string) bool {
			_, in, err := poke(addr, &tls.Config{
				NextProtos: raft, MaxVersion: tls.VersionTLS12,
				Renegotiation: tls.RenegotiateFreelyAsClient, Certificates: []tls.Certificate{good(t)},
			}, me, nil)
			return in || err == nil
		}},
		{"a hello that is cut off", BadHandshake, func(t *testing.T, addr string) bool {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3})
			_ = c.Close()
			return false
		}},
	}
}

func banned(w *world) {
	w.ban("id-removed", errors.New("node removed was removed from the cluster"))
	w.ban("stranger", errors.New("agent stranger is not accepted here"))
}

func TestOutsiderGetsNothing(t *testing.T) {
	w := newWorld(t, "ourcluster")
	banned(w)
	a := w.node("a")
	stream := Raft[string](a.port)
	got := make(chan string, 100)
	background(t, func(context.Context) error {
		for {
			c, err := stream.Accept()
			if err != nil {
				return nil
			}
			got <- c.(*Conn).Peer.String()
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = stream.Close() })
	for _, o := range outsiders(w) {
		t.Run(o.name, func(t *testing.T) {
			before := a.port.Stats().Refused[o.reason]
			if o.try(t, a.addr) {
				t.Fatal("was let in")
			}
			until(t, fmt.Sprintf("refused as %s: %v", o.reason, a.port.Stats().Refused), func() bool {
				return a.port.Stats().Refused[o.reason] > before
			})
		})
	}
	select {
	case who := <-got:
		t.Errorf("raft was handed %s", who)
	default:
	}
	until(t, "no connection is left", func() bool { s := a.port.Stats(); return s.Open == 0 && s.Handshake == 0 })

	// And the port still works for whom it is for.
	b := w.node("b")
	c, err := b.port.Dial(t.Context(), ProtocolRaft, "b"+"ogus")
	if err == nil {
		_ = c.Close()
		t.Fatal("called nobody")
	}
	c = must(Raft[string](b.port).Dial(a.addr, patience))(t).(*Conn)
	_ = c.Close()
	if who := <-got; who != "node b (id-b)" {
		t.Errorf("raft was handed %s", who)
	}
}

// Whoever is refused though it was made sure of learns why; whoever was not learns nothing.
func TestRefusedPeerIsToldWhy(t *testing.T) {
	w := newWorld(t, "ourcluster")
	banned(w)
	w.node("a")
	removed := w.credentials(w.identity(Node, "removed"))
	_, err := w.dialer(removed).Dial(t.Context(), ProtocolPeer, "a")
	if err == nil || !strings.Contains(err.Error(), "removed from the cluster") {
		t.Errorf("told: %v", err)
	}
	other := newWorld(t, "othercluster")
	stranger := other.credentials(other.identity(Node, "x"))
	_, err = other.dialer(stranger).Dial(t.Context(), ProtocolPeer, w.Members()[0].Address)
	if r := (*Refusal)(nil); !errors.As(err, &r) || r.Reason != BadCert {
		t.Errorf("a caller that trusts another CA: %v", err)
	}
}

// The caller makes sure of who answers, before it says anything.
func TestCallerMakesSureOfWhoAnswers(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a, b := w.node("a"), w.node("b")
	answer := func(cert tls.Certificate) string {
		l := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{cert}, NextProtos: []string{ProtocolPeer, ProtocolRaft}, ClientAuth: tls.RequestClientCert,
		}))(t)
		background(t, func(ctx context.Context) error {
			defer context.AfterFunc(ctx, func() { _ = l.Close() })()
			for {
				c, err := l.Accept()
				if err != nil {
					return nil
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				if n, _ := c.Read(make([]byte, 64)); n > 0 {
					t.Errorf("the caller said %d bytes", n)
				}
				_ = c.Close()
			}
		})
		return l.Addr().String()
	}
	other := must(NewCA("othercluster"))(t)
	for _, c := range []struct {
		name   string
		reason Reason
		cert   tls.Certificate
	}{
		{"another CA", BadCert, other.forge(t, Identity{"othercluster", Node, "id-x", "x"}, nil)},
		{"an agent in a node's place", WrongRole, w.ca.forge(t, w.identity(Agent, "id-b"), nil)},
		{"another cluster", OtherCluster, w.ca.forge(t, Identity{"othercluster", Node, "id-x", "x"}, nil)},
		{"expired", BadCert, w.ca.forge(t, b.id, func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Second) })},
		{"for clients only", BadCert, w.ca.forge(t, b.id, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		{"this node's own id", OwnID, w.ca.forge(t, a.id, nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := a.port.Dial(t.Context(), ProtocolPeer, answer(c.cert))
			if r := (*Refusal)(nil); !errors.As(err, &r) || r.Reason != c.reason {
				t.Errorf("got %v, want a refusal for %s", err, c.reason)
			}
		})
	}
	t.Run("another member at a member's address", func(t *testing.T) {
		w.mu.Lock()
		w.members = []Member{{ID: "id-c", Name: "c", Address: b.addr}}
		w.mu.Unlock()
		for _, to := range []string{"c", "id-c", b.addr} {
			_, err := a.port.Dial(t.Context(), ProtocolRaft, to)
			if r := (*Refusal)(nil); !errors.As(err, &r) || r.Reason != Unexpected {
				t.Errorf("%s: %v", to, err)
			}
		}
	})
	t.Run("does not speak TLS", func(t *testing.T) {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		background(t, func(ctx context.Context) error {
			defer context.AfterFunc(ctx, func() { _ = l.Close() })()
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			_, _ = c.Write([]byte("220 mail.example.org ESMTP\r\n"))
			_, _ = io.Copy(io.Discard, c)
			return c.Close()
		})
		if _, err := a.port.Dial(t.Context(), ProtocolPeer, l.Addr().String()); err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
			t.Errorf("got %v", err)
		}
	})
}

// Half handshakes are ended in time, and however many there are, others get in.
func TestSlowHandshakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ourcluster")
	a := w.node("a", func(o *Options) {
		o.max = defaultBounds
		o.max.shaking, o.max.shakingFrom = 8, 1000
	})
	b := w.node("b")
	var held []net.Conn
	for range 40 {
		c := must(net.Dial("tcp", a.addr))(t)
		defer c.Close()
		_, _ = c.Write([]byte{22, 3, 1}) // and no more
		held = append(held, c)
	}
	until(t, "all taken", func() bool { return a.port.Stats().Accepted >= 40 })
	if s := a.port.Stats(); s.Handshake > 8 {
		t.Errorf("%d handshakes at once, the bound is 8", s.Handshake)
	}
	c := must(b.port.Dial(t.Context(), ProtocolPeer, "a"))(t)
	_ = c.Close()
	for _, h := range held {
		_ = h.SetReadDeadline(time.Now().Add(patience))
		if _, err := h.Read(make([]byte, 1)); errors.Is(err, net.ErrClosed) || err == nil {
			t.Errorf("a half handshake was answered: %v", err)
		}
	}
	s := a.port.Stats()
	if s.Refused[Slow] == 0 || s.Refused[Busy] == 0 {
		t.Errorf("refused %v: none as slow, or none as too many", s.Refused)
	}
}

// One address cannot have all the places, and one that says hello byte by byte does not get more time.
func TestBoundsOfOneAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ourcluster")
	a := w.node("a", func(o *Options) {
		o.max = defaultBounds
		o.max.shakingFrom, o.max.openFrom = 4, 3
	})
	for range 12 {
		c := must(net.Dial("tcp", a.addr))(t)
		defer c.Close()
	}
	until(t, "eight refused", func() bool { return a.port.Stats().Refused[Busy] == 8 })
	until(t, "those in handshake ended", func() bool { return a.port.Stats().Handshake == 0 })
	b := w.node("b")
	for i := range 5 {
		c, err := b.port.Dial(t.Context(), ProtocolPeer, "a")
		if (err == nil) != (i < 3) {
			t.Errorf("connection %d: %v", i+1, err)
		}
		if err == nil {
			defer c.Close()
		}
	}
}

// One agent cannot have all the places, and all agents leave some for nodes.
func TestBoundsOfAgents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ourcluster")
	a := w.node("a", func(o *Options) {
		o.max = defaultBounds
		o.max.agents, o.max.ofAgent = 5, 3
	})
	dial := func(d *Dialer, open int) (last *Conn) {
		t.Helper()
		for i := range open + 2 {
			c, err := d.Dial(t.Context(), ProtocolPeer, "a")
			if (err == nil) != (i < open) {
				t.Errorf("connection %d: %v", i+1, err)
			}
			if err == nil {
				last = c
				t.Cleanup(func() { _ = c.Close() })
			}
		}
		return last
	}
	one, two := w.dialer(w.credentials(w.identity(Agent, "one"))), w.dialer(w.credentials(w.identity(Agent, "two")))
	last := dial(one, 3)
	dial(two, 2)
	c := must(w.node("b").port.Dial(t.Context(), ProtocolPeer, "a"))(t)
	_ = c.Close()
	_ = last.Close()
	until(t, "a place is free", func() bool { return a.port.Stats().Open == 4 })
	dial(two, 1)
}

// The log of an attack is short.
func TestAttackDoesNotFillTheLog(t *testing.T) {
	w := newWorld(t, "ourcluster")
	var log syncBuffer
	a := w.node("a", func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 200 {
		plaintext([]byte("GET / HTTP/1.1\r\n\r\n"))(t, a.addr)
	}
	until(t, "all refused", func() bool { return a.port.Stats().Refused[NotTLS] == 200 })
	if n := strings.Count(log.String(), "\n"); n > 10 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Somebody who is removed while connected is out, in both directions.
func TestStandingConnectionsAreRechecked(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a, b := w.node("a"), w.node("b")
	ab, ba := must(a.port.Dial(t.Context(), ProtocolPeer, "b"))(t), must(b.port.Dial(t.Context(), ProtocolPeer, "a"))(t)
	defer ab.Close()
	defer ba.Close()
	until(t, "both stand", func() bool { return a.port.Stats().Open == 1 && b.port.Stats().Open == 1 })
	a.port.Recheck()
	if a.port.Stats().Open != 1 {
		t.Fatal("a good connection was ended")
	}
	w.ban("id-b", errors.New("removed"))
	a.port.Recheck()
	if a.port.Stats().Open != 0 || a.port.Stats().Refused[NotAllowed] != 2 {
		t.Errorf("%+v", a.port.Stats())
	}
	for _, c := range []*Conn{ab, ba} {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
			t.Error("still open")
		}
	}
}

func TestCheckListen(t *testing.T) {
	for _, c := range []struct {
		address string
		tls, ok bool
	}{
		{"127.0.0.1:3648", false, true},
		{"[::1]:3648", false, true},
		{"[::ffff:127.0.0.1]:3648", false, true},
		{"localhost:3648", false, true},
		{":3648", false, false},
		{"0.0.0.0:3648", false, false},
		{"10.0.0.1:3648", false, false},
		{"rota1.example.org:3648", false, false},
		{":3648", true, true},
		{"3648", true, false},
	} {
		if err := CheckListen("cluster.listen", c.address, c.tls); (err == nil) != c.ok {
			t.Errorf("%s, TLS %v: %v", c.address, c.tls, err)
		}
	}
	if _, err := NewPort(Options{Listen: ":3648"}); err == nil || !strings.Contains(err.Error(), "cluster.listen") {
		t.Errorf("a port without TLS: %v", err)
	}
}

func TestPeersTalk(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a, b := w.node("a"), w.node("b")
	agent := w.credentials(w.identity(Agent, "watcher"))
	d := w.dialer(agent)
	for _, c := range []struct {
		from *Dialer
		url  string
		want string
	}{
		{b.port.Dialer, "https://id-a/x", "node a (id-a) hears node b (id-b)"},
		{a.port.Dialer, "https://b/x", "node b (id-b) hears node a (id-a)"},
		{d, "https://id-b/x", "node b (id-b) hears agent watcher"},
		{d, "https://" + a.addr + "/x", "node a (id-a) hears agent watcher"},
	} {
		for range 3 {
			resp := must(c.from.Client().Post(c.url, "text/plain", strings.NewReader("report")))(t)
			b := must(io.ReadAll(resp.Body))(t)
			_ = resp.Body.Close()
			if string(b) != c.want {
				t.Errorf("%s: %q, want %q", c.url, b, c.want)
			}
		}
	}
	if n := a.port.Stats().Accepted; n != 2 {
		t.Errorf("a took %d connections, want 2: the client pools them", n)
	}
	if _, err := d.Dial(t.Context(), ProtocolRaft, "a"); err == nil {
		t.Error("an agent called raft")
	}
	if _, err := d.Client().Get("http://id-a/x"); err == nil {
		t.Error("called in clear")
	}
	if _, err := NewPort(w.options(agent)); err == nil {
		t.Error("an agent listens")
	}
}

// A body beyond the bound is cut, whoever sends it.
func TestBodyIsBounded(t *testing.T) {
	w := newWorld(t, "ourcluster")
	w.node("a", func(o *Options) {
		o.MaxBody = 1000
		o.Peer = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				rw.WriteHeader(http.StatusRequestEntityTooLarge)
			}
			_, _ = fmt.Fprint(rw, n)
		})
	})
	b := w.node("b")
	for size, want := range map[int]int{1000: 200, 1001: 413} {
		resp := must(b.port.Client().Post("https://a/", "", bytes.NewReader(make([]byte, size))))(t)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d bytes: %s", size, resp.Status)
		}
	}
}
