package link

import (
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// BenchmarkHandshake is one whole connection: TCP, TLS 1.3 with certificates on both sides, greeting; both ends on this machine.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b, "ourcluster")
	_, c := w.node("a"), w.node("c")
	b.ReportAllocs()
	for b.Loop() {
		conn, err := c.port.Dial(b.Context(), ProtocolPeer, "a")
		if err != nil {
			b.Fatal(err)
		}
		conn.cut()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

// BenchmarkRequest is a small request over a pooled connection.
func BenchmarkRequest(b *testing.B) {
	w := newWorld(b, "ourcluster")
	w.node("a", func(o *Options) {
		o.Peer = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	})
	c := w.node("c")
	b.ReportAllocs()
	for b.Loop() {
		resp, err := c.port.Client().Post("https://a/", "", strings.NewReader("report"))
		if err != nil {
			b.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

// BenchmarkVerify is the part of a handshake that is rota's own: the chain, the identity, the cluster.
func BenchmarkVerify(b *testing.B) {
	w := newWorld(b, "ourcluster")
	p := w.credentials(w.identity(Node, "a"))
	m := p.creds.now.Load()
	certs := must(parseCerts(must(readFile(p.files.Cert))(b), 1))(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := m.verify(certs, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
