package probe

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// material is what a check brings to its handshakes: who this side is and whom it trusts. Targets that ask the same thing share it, and
// it is made anew when what stands at its places has changed.
type material struct {
	cert, key, ca []byte           // as read
	certificate   *tls.Certificate // nil: none
	roots         *x509.CertPool   // nil: the prober's
}

// material returns what the check's places hold now. What cannot be used is this machine's own failure.
func (r *run) material() (*material, *finding) {
	c := &r.q.check
	if c.ClientCert == "" && c.CA == "" {
		return &material{}, nil
	}
	keyAt := c.ClientKey
	if keyAt == "" {
		keyAt = c.ClientCert // one file may hold both
	}
	var m material
	for _, x := range []struct {
		name string
		at   rota.Place
		into *[]byte
	}{{"client_cert", c.ClientCert, &m.cert}, {"client_key", keyAt, &m.key}, {"ca", c.CA, &m.ca}} {
		if x.at == "" {
			continue
		}
		b, err := r.p.secret(x.at)
		if err != nil {
			f := lacking("%s: %v", x.name, err)
			return nil, &f
		}
		*x.into = b
	}
	made := r.q.material.Load()
	if made == nil || !bytes.Equal(made.cert, m.cert) || !bytes.Equal(made.key, m.key) || !bytes.Equal(made.ca, m.ca) {
		if f := m.parse(c, keyAt); f != nil {
			return nil, f
		}
		made = &m
		r.q.material.Store(made)
	}
	if f := made.expired(c.ClientCert, time.Now()); f != nil {
		return nil, f
	}
	return made, nil
}

// parse makes the certificate and the authorities of what was read.
func (m *material) parse(c *rota.Check, keyAt rota.Place) *finding {
	refuse := func(format string, args ...any) *finding {
		f := lacking(format, args...)
		return &f
	}
	if c.ClientCert != "" {
		pair, err := tls.X509KeyPair(m.cert, m.key)
		if err != nil {
			return refuse("client_cert %s with client_key %s: %s", c.ClientCert, keyAt, strings.TrimPrefix(err.Error(), "tls: "))
		}
		m.certificate = &pair
	}
	if c.CA != "" {
		m.roots = x509.NewCertPool()
		if !m.roots.AppendCertsFromPEM(m.ca) {
			return refuse("ca %s holds no certificate in PEM", c.CA)
		}
	}
	return nil
}

// expired says that our own certificate is not valid now, or nil.
func (m *material) expired(at rota.Place, now time.Time) *finding {
	if m.certificate == nil {
		return nil
	}
	leaf := m.certificate.Leaf
	var f finding
	switch {
	case now.After(leaf.NotAfter):
		f = lacking("client_cert %s expired %s; renew it", at, leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		f = lacking("client_cert %s is not valid before %s", at, leaf.NotBefore.UTC().Format(time.DateOnly))
	default:
		return nil
	}
	return &f
}
