package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// probeTLS makes a handshake, judges the certificate and, when the check says so, sends and expects.
func probeTLS(ctx context.Context, r *run) finding {
	raw, stop, err := r.dial(ctx)
	if err != nil {
		return r.fault(ctx, "connect", err)
	}
	defer stop()
	c, bad := r.handshake(ctx, raw)
	if bad != nil {
		return *bad
	}
	if r.q.check.Send != "" || r.q.expect != nil {
		return r.talk(ctx, c)
	}
	if r.wantsCert {
		if f := r.clientCertificate(ctx, c); f != nil {
			return *f
		}
	}
	return up("handshake, %s", r.trace.TLS.Version)
}

// clientCertificate finds out whether the certificate that the server asked for is required. With TLS 1.3 the handshake ends here
// before the server has judged ours, or our lack of one; we say goodbye and read its last word (RFC 8446 §4.4.2.4): the alert, or its own
// goodbye. Silence until the deadline is no alert.
func (r *run) clientCertificate(ctx context.Context, c *tls.Conn) *finding {
	_ = c.CloseWrite()
	_, err := io.CopyN(io.Discard, c, int64(r.q.maxBody))
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		f := r.fault(ctx, "tls", err)
		return &f
	}
	return nil
}

// handshake makes TLS of raw and judges the certificate before a byte is sent.
func (r *run) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, *finding) {
	own, bad := r.material()
	if bad != nil {
		return nil, bad
	}
	done := r.trace.begin("tls")
	conf := &tls.Config{
		// The chain is judged below, after the handshake: the trace shows what the server sent even when it is not trusted,
		// and each fault gets its own reason. Nothing is sent before that.
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS12,
		// No post-quantum share: a probe has no secret that must outlive the day, and it costs a third of the handshakes.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			r.wantsCert = true
			if own.certificate != nil {
				r.sentCert = true
				return own.certificate, nil
			}
			return &tls.Certificate{}, nil
		},
	}
	name := r.serverName()
	if _, err := netip.ParseAddr(name); err != nil {
		conf.ServerName = name // RFC 6066 §3: an address is not sent
	}
	if p := r.protocol(); p != "" {
		conf.NextProtos = []string{p}
	}
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		done("failed")
		f := r.fault(ctx, "tls", err)
		return nil, &f
	}
	state := c.ConnectionState()
	r.trace.TLS = tlsFacts(&state, conf.ServerName, r.wantsCert)
	done(r.trace.TLS.Version + " " + r.trace.TLS.Cipher)
	if f := r.judgeChain(state.PeerCertificates, name, cmp.Or(own.roots, r.p.roots), time.Now()); f != nil {
		return nil, f
	}
	if p := r.protocol(); p == "h2" && state.NegotiatedProtocol != p { // RFC 9113 §3.2: by ALPN, never guessed
		f := down(rota.ClassTLS, "tls: the target does not offer %s", p)
		return nil, &f
	}
	return c, nil
}

// protocol is what is to be spoken after the handshake (RFC 7301); empty: the target need not say.
func (r *run) protocol() string {
	switch c := &r.q.check; {
	case c.Kind == rota.KindGRPC, c.HTTP2:
		return "h2"
	case c.Kind == rota.KindHTTPS:
		return "http/1.1"
	}
	return ""
}

// serverName is the name the certificate must carry: ServerName, else Host without its port, else the address.
func (r *run) serverName() string {
	c := &r.q.check
	if c.ServerName != "" {
		return c.ServerName
	}
	if c.Host == "" {
		return r.addr.WithZone("").String()
	}
	if h, _, err := net.SplitHostPort(c.Host); err == nil {
		return h
	}
	if a, err := netip.ParseAddr(trimBrackets(c.Host)); err == nil {
		return a.WithZone("").String()
	}
	return c.Host
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

// judgeChain returns what is wrong with the certificates, or nil. Nil roots are the system's.
func (r *run) judgeChain(chain []*x509.Certificate, name string, roots *x509.CertPool, now time.Time) *finding {
	if len(chain) == 0 {
		f := down(rota.ClassTLS, "tls: the target sent no certificate")
		return &f
	}
	leaf := chain[0]
	if v := r.q.check.Verify; v != rota.VerifyNone {
		opt := x509.VerifyOptions{Roots: roots, CurrentTime: now, Intermediates: x509.NewCertPool()}
		for _, c := range chain[1:min(len(chain), 2*maxChain)] {
			opt.Intermediates.AddCert(c)
		}
		if v != rota.VerifyCA {
			opt.DNSName = name
		}
		if _, err := leaf.Verify(opt); err != nil {
			f, ok := certificateFault(err)
			if !ok {
				f = down(rota.ClassCertificate, "certificate: %v", err)
			}
			return &f
		}
	}
	if days := r.q.check.CertDays; days > 0 && leaf.NotAfter.Sub(now) < time.Duration(days)*24*time.Hour {
		left, end := leaf.NotAfter.Sub(now), leaf.NotAfter.UTC().Format(time.DateOnly)
		f := down(rota.ClassCertificate, "certificate expires %s, in %d days, want at least %d", end, int(left.Hours()/24), days)
		if left <= 0 {
			f = down(rota.ClassCertificate, "certificate expired %s", end)
		}
		return &f
	}
	return nil
}

func tlsFacts(s *tls.ConnectionState, sni string, asked bool) *TLSFacts {
	f := &TLSFacts{
		Version: tls.VersionName(s.Version), Cipher: tls.CipherSuiteName(s.CipherSuite), ServerName: sni, ClientCertificate: asked,
	}
	for _, c := range s.PeerCertificates[:min(len(s.PeerCertificates), maxChain)] {
		names := factNames(c)
		f.Chain = append(f.Chain, CertificateFact{
			Subject: escape([]byte(c.Subject.String()), maxFact), Issuer: escape([]byte(c.Issuer.String()), maxFact),
			Names: names[:min(len(names), maxNames)], NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		})
	}
	return f
}

// factNames lists the names a certificate is for, escaped and bounded each.
func factNames(c *x509.Certificate) []string {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, escape([]byte(n), maxFact))
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
