package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files name a certificate, its key and the certificates of those who sign the other side's, all in PEM.
type Files struct{ Cert, Key, CA string }

// material is what was read of Files.
type material struct {
	cert tls.Certificate
	ca   *x509.CertPool
}

func (f Files) load() (*material, error) {
	var m material
	var err error
	if m.cert, err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	m.ca = x509.NewCertPool()
	if !m.ca.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", f.CA)
	}
	return &m, nil
}

// times are the modification times of the files.
func (f Files) times() (t [3]time.Time, err error) {
	for i, name := range []string{f.Cert, f.Key, f.CA} {
		info, err := os.Stat(name)
		if err != nil {
			return t, err
		}
		t[i] = info.ModTime()
	}
	return t, nil
}

// reloading reads files again when they change. What cannot be read leaves what was read before.
type reloading struct {
	files Files
	log   *slog.Logger

	mu   sync.Mutex // guards what follows
	now  *material
	read [3]time.Time
}

func newReloading(f Files, log *slog.Logger) (*reloading, error) {
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return nil, errors.New("name a certificate, its key and the CA of the other side: cert, key, ca")
	}
	r := &reloading{files: f, log: log}
	var err error
	if r.read, err = f.times(); err != nil {
		return nil, err
	}
	if r.now, err = f.load(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *reloading) get() *material {
	r.mu.Lock()
	defer r.mu.Unlock()
	times, err := r.files.times()
	if err != nil || times == r.read {
		return r.now // a file that is being replaced is there again soon
	}
	r.read = times
	next, err := r.files.load()
	if err != nil {
		r.log.Warn("certificates cannot be read again; those before stay in use", "error", err)
		return r.now
	}
	r.log.Info("certificates read again", "cert", r.files.Cert)
	r.now = next
	return r.now
}

// server is the configuration of a listener that lets in only callers with a certificate of the CA. There are no session tickets, so
// every connection shows its certificate anew.
func (r *reloading) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := r.get()
			return &tls.Config{
				MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{m.cert}, ClientCAs: m.ca,
				ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// ClientTLS returns the configuration with which HealthdClient speaks to a healthd: its own certificate, read again when the file
// changes, and the CA of healthd's, as it is now.
func ClientTLS(f Files, log *slog.Logger) (*tls.Config, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r, err := newReloading(f, log)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: r.now.ca,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &r.get().cert, nil },
	}, nil
}
