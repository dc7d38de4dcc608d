package link

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// How long certificates live. A leaf is renewed at two thirds of its life, so that four months of nobody looking do no harm; every
// certificate begins a little before it is made, so that a clock that is behind does no harm either.
const (
	caLife    = 10 * 365 * 24 * time.Hour
	leafLife  = 365 * 24 * time.Hour
	backdated = time.Hour
	maxRoots  = 16 // trusted at once
)

// Files says where a process keeps its credentials.
type Files struct {
	CA    string // PEM of every root that is trusted; may hold several while one takes over from another
	CAKey string // the authority's key, on nodes that can issue; empty or absent elsewhere
	Cert  string // this process's certificate, with what leads from it to a root
	Key   string // its key
}

// FilesIn names the files in a directory of rota's own.
func FilesIn(dir string) Files {
	return Files{
		CA: filepath.Join(dir, "ca.crt"), CAKey: filepath.Join(dir, "ca.key"),
		Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key"),
	}
}

// CA is the authority of one cluster: ECDSA P-256, ten years. It signs nothing but identities of its cluster.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	bundle  []*x509.Certificate // every root to trust, cert among them
}

// NewCA makes the authority of a cluster.
func NewCA(cluster string) (*CA, error) {
	if !word(cluster, maxName) {
		return nil, fmt.Errorf("cluster id %q: 1 to %d letters, digits, hyphens", clip(cluster), maxName)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: authorityOf(cluster)},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cluster: cluster, cert: cert, key: key, bundle: []*x509.Certificate{cert}}, nil
}

func authorityOf(cluster string) string { return "rota cluster " + cluster }

// serial is 127 random bits, RFC 5280 section 4.1.2.2.
func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

// LoadCA reads an authority: its key, and the certificate of it among the trusted roots. It refuses a key that others may read.
func LoadCA(f Files) (*CA, error) {
	b, err := readKey(f.CAKey)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	roots, err := readFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	ca, err := parseCA(b, roots)
	if err != nil {
		return nil, fmt.Errorf("CA in %s and %s: %w", f.CAKey, f.CA, err)
	}
	return ca, nil
}

func parseCA(keyPEM, bundlePEM []byte) (*CA, error) {
	k, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T: rota's own CA has an ECDSA key", k)
	}
	bundle, err := parseRoots(bundlePEM)
	if err != nil {
		return nil, err
	}
	for _, c := range bundle {
		pub, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !ok || !pub.Equal(key.Public()) {
			continue
		}
		cluster := c.Subject.CommonName[min(len(authorityOf("")), len(c.Subject.CommonName)):]
		if authorityOf(cluster) != c.Subject.CommonName || !word(cluster, maxName) {
			return nil, fmt.Errorf("the certificate %q is not of a CA that rota made", clip(c.Subject.CommonName))
		}
		return &CA{cluster: cluster, cert: c, key: key, bundle: bundle}, nil
	}
	return nil, errors.New("none of the certificates is of this key")
}

// Save writes the authority's key with mode 0600, and every root that it trusts.
func (c *CA) Save(f Files) error {
	key, err := marshalKey(c.key)
	if err != nil {
		return err
	}
	// The roots first: a key whose certificate is not there could not be loaded.
	if err := writeFile(f.CA, c.Bundle(), 0o644); err != nil {
		return fmt.Errorf("CA certificate: %w", err)
	}
	if err := writeFile(f.CAKey, key, 0o600); err != nil {
		return fmt.Errorf("CA key: %w", err)
	}
	return nil
}

// Cluster returns the id of the cluster that the authority is of.
func (c *CA) Cluster() string { return c.cluster }

// Bundle returns the PEM of every root to trust, the one that signs first.
func (c *CA) Bundle() []byte {
	out := encodeCerts(c.cert)
	for _, r := range c.bundle {
		if !r.Equal(c.cert) {
			out = append(out, encodeCerts(r)...)
		}
	}
	return out
}

// Pin returns what a join token tells a newcomer to look for.
func (c *CA) Pin() Pin { return sha256.Sum256(c.cert.Raw) }

// Expires returns when the authority's own certificate ends. Roll in good time before.
func (c *CA) Expires() time.Time { return c.cert.NotAfter }

// Roll makes the authority that takes over from this one. Its bundle holds both. To change without a moment in which two members do
// not trust each other: give its Bundle to every member (Credentials.Trust), then issue every certificate anew, and then give
// Retire's Bundle to every member.
func (c *CA) Roll() (*CA, error) {
	next, err := NewCA(c.cluster)
	if err != nil {
		return nil, err
	}
	next.bundle = append(next.bundle, c.bundle...)
	if len(next.bundle) > maxRoots {
		return nil, fmt.Errorf("%d roots are trusted already: retire old ones first", len(c.bundle))
	}
	return next, nil
}

// Retire returns the same authority with no other root trusted beside it.
func (c *CA) Retire() *CA {
	return &CA{cluster: c.cluster, cert: c.cert, key: c.key, bundle: []*x509.Certificate{c.cert}}
}

// Grant is what an authority gives to one holder.
type Grant struct {
	Cert   []byte // PEM
	Bundle []byte // PEM of the roots to trust
}

// Sign makes a certificate for the key in a certificate request. Nothing else in the request counts: who it is for is the issuer's word.
func (c *CA) Sign(csr []byte, id Identity) (Grant, error) {
	if err := id.Check(); err != nil {
		return Grant{}, err
	}
	if id.Cluster != c.cluster {
		return Grant{}, fmt.Errorf("this CA is of cluster %s, not of %s", c.cluster, id.Cluster)
	}
	req, err := parseRequest(csr)
	if err != nil {
		return Grant{}, err
	}
	now := time.Now()
	if now.After(c.cert.NotAfter) {
		return Grant{}, fmt.Errorf("the CA ended on %s: make a new one", c.cert.NotAfter.Format(time.DateOnly))
	}
	end := now.Add(leafLife)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: id.Name},
		NotBefore:             now.Add(-backdated),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.uri()},
	}, c.cert, req.PublicKey, c.key)
	if err != nil {
		return Grant{}, err
	}
	return Grant{Cert: pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der}), Bundle: c.Bundle()}, nil
}

// Issue makes a key and a certificate for this process itself and writes them with the roots to trust.
func (c *CA) Issue(f Files, id Identity) error {
	key, csr, err := newRequest()
	if err != nil {
		return err
	}
	g, err := c.Sign(csr, id)
	if err != nil {
		return err
	}
	return save(f, key, g)
}

// save writes a new key and what was granted for it. The key is written beside the old one first: whenever this is cut short, the
// certificate's key is in one of the two files, and load finds it.
func save(f Files, key *ecdsa.PrivateKey, g Grant) error {
	b, err := marshalKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(f.CA, g.Bundle, 0o644); err != nil {
		return err
	}
	if err := writeFile(f.Key+nextKey, b, 0o600); err != nil {
		return err
	}
	if err := writeFile(f.Cert, g.Cert, 0o644); err != nil {
		return err
	}
	if err := os.Rename(f.Key+nextKey, f.Key); err != nil {
		return err
	}
	return syncDir(filepath.Dir(f.Key))
}

const nextKey = ".next"

// newRequest makes a key and a certificate request for it.
func newRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// parseRequest reads a certificate request and makes sure that its sender has the key, and that it is a fit one.
func parseRequest(der []byte) (*x509.CertificateRequest, error) {
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	switch k := req.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, errors.New("certificate request: its key is not of P-256, P-384 or Ed25519")
		}
	case ed25519.PublicKey:
	default: // RSA keys of a size that takes a second to verify included
		return nil, errors.New("certificate request: its key is not of P-256, P-384 or Ed25519")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return req, nil
}

// The types of PEM blocks.
const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

func marshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// parseKey reads the first private key of a PEM file.
func parseKey(b []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("no private key in it")
		}
		var key any
		var err error
		switch block.Type {
		case pemKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the key is encrypted: rota starts without anybody there; keep it unencrypted with mode 0600")
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			return k, nil
		case ed25519.PrivateKey:
			return k, nil
		case *rsa.PrivateKey:
			return k, nil
		}
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
}

// parseCerts reads every certificate of a PEM file, in order.
func parseCerts(b []byte, most int) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != pemCert {
			continue
		}
		if len(out) == most {
			return nil, fmt.Errorf("more than %d certificates", most)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}

// parseRoots reads the certificates of authorities, each once.
func parseRoots(b []byte) ([]*x509.Certificate, error) {
	certs, err := parseCerts(b, maxRoots)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("%q is not a certificate of an authority", clip(c.Subject.String()))
		}
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out, nil
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: pemCert, Bytes: c.Raw}) // a buffer takes everything
	}
	return b.Bytes()
}
