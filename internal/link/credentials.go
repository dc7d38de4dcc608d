package link

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// CredentialOptions says where credentials are and how they stay fresh.
type CredentialOptions struct {
	Files Files

	// External maps certificates of an authority outside rota. Nil: only rota:// names count.
	External *Mapping

	// Renew has a new certificate made, by the CA of this process or by RequestRenewal. Nil: somebody else replaces the files.
	Renew func(ctx context.Context, csr []byte) (Grant, error)

	Log *slog.Logger
}

// How often files are looked at, and the pauses after a renewal that failed.
const (
	lookEvery  = 5 * time.Second
	renewFirst = time.Minute
	renewMost  = time.Hour
	renewLimit = 30 * time.Second
	warnEvery  = 24 * time.Hour
)

// Credentials is what a process proves itself with and whom it trusts. It follows its files: replacing them needs no restart, and
// what cannot be used changes nothing.
type Credentials struct {
	o   CredentialOptions
	now atomic.Pointer[material]

	look time.Duration // lookEvery

	mu     sync.Mutex        // held while files are read or written
	seen   [sha256.Size]byte // of the files' content when they were last tried
	change chan struct{}     // closed when the credentials change; guarded by mu
}

// material is one immutable state of it.
type material struct {
	cert    tls.Certificate // leaf and intermediates
	full    tls.Certificate // the root too, for newcomers who know only its pin
	pool    *x509.CertPool
	root    *x509.Certificate // that cert leads to
	id      Identity
	mapping *Mapping
}

// LoadCredentials reads the files. Who this process is comes out of its certificate.
func LoadCredentials(o CredentialOptions) (*Credentials, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Credentials{o: o, look: lookEvery, change: make(chan struct{})}
	m, seen, err := c.load(nil)
	if err != nil {
		return nil, err
	}
	c.seen = seen
	c.now.Store(m)
	return c, nil
}

// Identity returns who this process is.
func (c *Credentials) Identity() Identity { return c.now.Load().id }

// Expires returns when the certificate ends.
func (c *Credentials) Expires() time.Time { return c.now.Load().cert.Leaf.NotAfter }

// RenewAt returns when the certificate is due for renewal.
func (c *Credentials) RenewAt() time.Time { return renewAt(c.now.Load().cert.Leaf) }

func renewAt(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// Pin returns what a join token tells a newcomer to look for: the root that this process's certificate leads to.
func (c *Credentials) Pin() Pin { return sha256.Sum256(c.now.Load().root.Raw) }

// load reads the files and tries whether they fit together. When they hold what was tried before, it returns no material and no error.
func (c *Credentials) load(tried *[sha256.Size]byte) (*material, [sha256.Size]byte, error) {
	f := c.o.Files
	cert, err1 := readFile(f.Cert)
	key, err2 := readKey(f.Key)
	ca, err3 := readFile(f.CA)
	seen := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %s%s%s %v %v %v", len(cert), len(key), len(ca), cert, key, ca, err1, err2, err3))
	if tried != nil && seen == *tried {
		return nil, seen, nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, seen, fmt.Errorf("TLS of the cluster: %w", err)
	}
	m, err := build(cert, key, ca, c.o.External)
	if errors.Is(err, errOtherKey) {
		// A renewal was cut short between its two files.
		next, e := readKey(f.Key + nextKey)
		if e == nil {
			if m2, e := build(cert, next, ca, c.o.External); e == nil {
				if e := errors.Join(os.Rename(f.Key+nextKey, f.Key), syncDir(filepath.Dir(f.Key))); e != nil {
					return nil, seen, fmt.Errorf("TLS of the cluster: %w", e)
				}
				return m2, [sha256.Size]byte{}, nil
			}
		}
	}
	if err != nil {
		return nil, seen, fmt.Errorf("TLS of the cluster: %s with %s and %s: %w", f.Cert, f.Key, f.CA, err)
	}
	return m, seen, nil
}

var errOtherKey = errors.New("the certificate is of another key")

func build(certPEM, keyPEM, caPEM []byte, mapping *Mapping) (*material, error) {
	certs, err := parseCerts(certPEM, maxChain)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, errOtherKey
	}
	roots, err := parseRoots(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	m := &material{pool: x509.NewCertPool(), mapping: mapping}
	for _, r := range roots {
		m.pool.AddCert(r)
	}
	// Both usages now, so that a certificate good for one of them does not fail at night when the other is needed.
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		id, chain, err := m.trace(certs, use, time.Now())
		if err != nil {
			return nil, err
		}
		m.id, m.root = id, chain[len(chain)-1]
	}
	m.cert = tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		if !c.Equal(m.root) {
			m.cert.Certificate = append(m.cert.Certificate, c.Raw)
		}
	}
	m.full = m.cert
	m.full.Certificate = append(m.cert.Certificate[:len(m.cert.Certificate):len(m.cert.Certificate)], m.root.Raw)
	return m, nil
}

// maxChain bounds the certificates of one side; the work to verify them grows with their number.
const maxChain = 6

// trace verifies a chain to one of the roots and reads who it is for.
func (m *material) trace(certs []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (Identity, []*x509.Certificate, error) {
	if len(certs) == 0 {
		return Identity{}, nil, &Refusal{NoCertificate, "no certificate"}
	}
	bad := func(format string, a ...any) (Identity, []*x509.Certificate, error) {
		return Identity{}, nil, &Refusal{BadCert, fmt.Sprintf("certificate of %q: ", clip(certs[0].Subject.CommonName)) + fmt.Sprintf(format, a...)}
	}
	if len(certs) > maxChain {
		return bad("a chain of %d, more than %d", len(certs), maxChain)
	}
	if certs[0].IsCA {
		return bad("it is an authority's, not a member's")
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{Roots: m.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
	switch invalid := (x509.CertificateInvalidError{}); {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return bad("valid from %s to %s, and here it is %s: renew it, or set the clock that is wrong",
			stamp(invalid.Cert.NotBefore), stamp(invalid.Cert.NotAfter), stamp(now))
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return bad("not of an authority that is trusted here: a member of another cluster, or a CA that has not been given to this one")
	case err != nil:
		return bad("%v", err)
	}
	id, err := identify(certs[0], m.mapping)
	if err != nil {
		return bad("%v", err)
	}
	return id, chains[0], nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// verify decides about the other side of a connection, and until when that holds.
func (m *material) verify(certs []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (Identity, time.Time, error) {
	id, chain, err := m.trace(certs, use, now)
	if err != nil {
		return Identity{}, time.Time{}, err
	}
	if id.Cluster != m.id.Cluster {
		return Identity{}, time.Time{}, &Refusal{OtherCluster, fmt.Sprintf("%s is of cluster %s, this is cluster %s", id, id.Cluster, m.id.Cluster)}
	}
	until := chain[0].NotAfter
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return id, until, nil
}

// Reload reads the files again if they changed. What cannot be used, or is of somebody else, changes nothing and is an error.
func (c *Credentials) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.reload(true)
	return err
}

// reload tries what the files hold; unless asked, only when it has not been tried yet. The caller holds mu.
func (c *Credentials) reload(again bool) (changed bool, err error) {
	tried := &c.seen
	if again {
		tried = nil
	}
	m, seen, err := c.load(tried)
	if err == nil && (m == nil || seen == c.seen) {
		return false, nil
	}
	c.seen = seen
	if err != nil {
		return false, err
	}
	if old := c.now.Load(); !old.id.same(m.id) {
		return false, fmt.Errorf("TLS of the cluster: %s is now of %s of cluster %s, and this process is %s of cluster %s: restart it if it is to be another",
			c.o.Files.Cert, m.id, m.id.Cluster, old.id, old.id.Cluster)
	}
	c.now.Store(m)
	close(c.change)
	c.change = make(chan struct{})
	return true, nil
}

// changed returns a channel that is closed when the credentials change.
func (c *Credentials) changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.change
}

// Trust replaces the roots that are trusted by those of a PEM bundle. It refuses a bundle that this process's own certificate, or its
// CA, does not fit: take the new roots in beside the old ones, have all certificates issued anew, and leave the old ones out then.
func (c *Credentials) Trust(bundle []byte) error {
	roots, err := parseRoots(bundle)
	if err != nil {
		return fmt.Errorf("CA bundle: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cert, err := readFile(c.o.Files.Cert)
	if err != nil {
		return err
	}
	key, err := readKey(c.o.Files.Key)
	if err != nil {
		return err
	}
	clean := encodeCerts(roots...)
	if _, err := build(cert, key, clean, c.o.External); err != nil {
		return fmt.Errorf("CA bundle does not fit this process's own certificate: %w", err)
	}
	if f := c.o.Files.CAKey; f != "" {
		if k, err := readKey(f); err == nil {
			if _, err := parseCA(k, clean); err != nil {
				return fmt.Errorf("CA bundle does not fit %s: %w", f, err)
			}
		}
	}
	if err := writeFile(c.o.Files.CA, clean, 0o644); err != nil {
		return err
	}
	_, err = c.reload(true)
	return err
}

// Renew makes a new key, has a certificate made for it, and takes both into use. Connections that stand go on.
func (c *Credentials) Renew(ctx context.Context) error {
	if c.o.Renew == nil {
		return errors.New("certificates of an authority outside rota are renewed there: replace the files, they are read again by themselves")
	}
	key, csr, err := newRequest()
	if err != nil {
		return err
	}
	g, err := c.o.Renew(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	if err := c.fits(key, g); err != nil {
		return fmt.Errorf("renew certificate: what came back: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := save(c.o.Files, key, g); err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	_, err = c.reload(true)
	return err
}

// fits makes sure of a grant before the files are touched.
func (c *Credentials) fits(key *ecdsa.PrivateKey, g Grant) error {
	k, err := marshalKey(key)
	if err != nil {
		return err
	}
	m, err := build(g.Cert, k, g.Bundle, c.o.External)
	if err != nil {
		return err
	}
	if old := c.Identity(); !old.same(m.id) {
		return fmt.Errorf("a certificate of %s, and this is %s", m.id, old)
	}
	return nil
}

// Run follows the files and renews the certificate when it is due. It returns nil when ctx ends.
func (c *Credentials) Run(ctx context.Context) error {
	look := time.NewTicker(c.look)
	defer look.Stop()
	var next, warned time.Time
	pause := renewFirst
	for {
		c.mu.Lock()
		changed, err := c.reload(false)
		c.mu.Unlock()
		switch {
		case err != nil:
			c.o.Log.Error("new TLS files of the cluster cannot be used; what was in force stays", "err", err)
		case changed:
			c.o.Log.Info("took new TLS files of the cluster into use", "certificate", c.Identity().String(), "until", stamp(c.Expires()))
		}
		now := time.Now()
		if due := c.RenewAt(); !now.Before(due) {
			if c.o.Renew != nil && !now.Before(next) {
				limited, cancel := context.WithTimeout(ctx, renewLimit)
				err := c.Renew(limited)
				cancel()
				if err == nil {
					c.o.Log.Info("renewed this process's certificate", "until", stamp(c.Expires()))
					pause, warned = renewFirst, time.Time{}
				} else if ctx.Err() == nil {
					c.o.Log.Warn("certificate not renewed; trying again", "until", stamp(c.Expires()), "again_in", pause, "err", err)
					next = now.Add(pause/2 + rand.N(pause))
					pause = min(2*pause, renewMost)
				}
			} else if c.o.Renew == nil && now.Sub(warned) >= warnEvery {
				warned = now
				c.o.Log.Warn("the cluster's certificate ends soon and nobody has replaced it", "file", c.o.Files.Cert, "until", stamp(c.Expires()))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}
