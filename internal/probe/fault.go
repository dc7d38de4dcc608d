package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// finding is what a probe found, without the time it took.
type finding struct {
	status rota.Status
	class  rota.Class
	reason string
	sure   bool  // rota.Observation.Sure
	weight uint8 // rota.Observation.Weight
	lacks  bool  // of Unknown: what this one check needs here is missing
}

func up(format string, args ...any) finding {
	return finding{status: rota.Up, class: rota.ClassOK, reason: rota.CleanReason(format, args...)}
}

func down(class rota.Class, format string, args ...any) finding {
	return finding{status: rota.Down, class: class, reason: rota.CleanReason(format, args...)}
}

// draining is what an endpoint says that is about to leave.
func draining(format string, args ...any) finding {
	return finding{status: rota.Draining, class: rota.ClassSaid, reason: rota.CleanReason(format, args...), sure: true}
}

// unknown is the prober's own failure: it says nothing about the target.
func unknown(class rota.Class, format string, args ...any) finding {
	return finding{status: rota.Unknown, class: class, reason: rota.CleanReason(format, args...)}
}

// lacking is that what a check needs on this machine is missing: its secret, its certificate, its command. That is a fault of this check,
// so the prober has no reason to doubt what it sees by others.
func lacking(format string, args ...any) finding {
	f := unknown(rota.ClassPermission, format, args...)
	f.lacks = true
	return f
}

// unclear is what a failure means of whoever speaks for the target, such as an agent or a command: nothing, unless the check says down.
func (r *run) unclear(f finding) finding {
	if f.status == rota.Down && r.q.check.OnError != rota.Down {
		return unknown(rota.ClassExporter, "%s", f.reason)
	}
	return f
}

// fault is the one place where an error (for us) becomes a finding (for the operator). During says which phase failed, such as
// "connect". Errors that this machine made are unknown; those that the target or the way to it made are down.
func (r *run) fault(ctx context.Context, during string, err error) finding {
	if r.parent.Err() != nil {
		return unknown(rota.ClassCancelled, "cancelled")
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.ECONNREFUSED:
			return down(rota.ClassRefused, "%s: refused", during)
		case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED:
			return down(rota.ClassReset, "%s: reset by the target", during)
		case syscall.ETIMEDOUT:
			return down(rota.ClassTimeout, "%s: timed out", during)
		case syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EPROTO:
			if local := localRoute(r.addr); local != nil {
				return unroutable(during, r.addr, local)
			}
			return down(rota.ClassUnreachable, "%s: %s", during, unreachable(errno))
		case syscall.EACCES, syscall.EPERM:
			if errno == syscall.EACCES && r.addr.Is6() && r.q.check.Port != 0 && !forbidden(netip.AddrPortFrom(r.addr, r.q.check.Port)) {
				return down(rota.ClassUnreachable, "%s: prohibited (the target's firewall or a router said so)", during)
			}
			return unknown(rota.ClassPermission, "%s: not permitted here; a local firewall rule or route forbids it", during)
		case syscall.EMFILE, syscall.ENFILE:
			return unknown(rota.ClassResource, "%s: no descriptor left here; raise LimitNOFILE or lower the concurrency", during)
		case syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
			return unknown(rota.ClassResource, "%s: no local address or port left", during)
		case syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN, syscall.ENOSPC: // the last of epoll: fs.epoll.max_user_watches
			return unknown(rota.ClassResource, "%s: no memory left here (%s)", during, errno.Error())
		case syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT, syscall.EINVAL, syscall.ENODEV, syscall.ENXIO:
			return unroutable(during, r.addr, errno)
		}
	}
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return down(rota.ClassTimeout, "%s: not done within %v", during, r.q.check.Timeout)
	}
	if f, ok := r.tlsFault(during, err); ok {
		return f
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return down(rota.ClassReset, "%s: closed by the target", during)
	}
	return down(rota.ClassProtocol, "%s: %s", during, strings.TrimPrefix(err.Error(), "net/http: "))
}

func unroutable(during string, addr netip.Addr, err error) finding {
	if addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" {
		return unknown(rota.ClassUnroutable, "%s: %v is link-local; name its interface, as in %v%%eth0", during, addr, addr)
	}
	if addr.Zone() != "" {
		if _, e := net.InterfaceByName(addr.Zone()); e != nil {
			return unknown(rota.ClassUnroutable, "%s: this machine has no interface %s", during, addr.Zone())
		}
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EAFNOSUPPORT) && addr.Is6():
		return unknown(rota.ClassUnroutable, "%s: no route from here (this machine has no IPv6)", during)
	case errors.As(err, &errno) && errno != syscall.ENETUNREACH && errno != syscall.EHOSTUNREACH:
		return unknown(rota.ClassUnroutable, "%s: no route from here (%s)", during, errno.Error())
	}
	return unknown(rota.ClassUnroutable, "%s: no route from here", during)
}

// unreachable says who found that there is no way to a target although this machine has a route to it.
func unreachable(errno syscall.Errno) string {
	switch errno {
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return "host unreachable (a router said so, or the neighbour is silent)"
	case syscall.ENETUNREACH, syscall.ENETDOWN:
		return "network unreachable (a router said so)"
	}
	return errno.Error()
}

// localRoute says why this machine has no way to addr, or nil when it has one. Connecting a datagram socket looks up the route and
// sends nothing, which tells "no route here" from the same error number brought by an ICMP message from afar.
func localRoute(addr netip.Addr) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9)))
	if err != nil {
		return err
	}
	return c.Close()
}

// forbidden reports whether this machine itself does not let us connect. Over IPv6 the same error number is what an ICMP message says that
// comes from afar (RFC 4443 §3.1, codes 1, 5 and 6), as firewalls send it by default; but only what is forbidden here fails before
// anything is sent. The connection is given up at once.
func forbidden(to netip.AddrPort) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := net.Dialer{Control: func(string, string, syscall.RawConn) error {
		cancel()
		return nil
	}}
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return errors.Is(err, syscall.EACCES)
	}
	_ = c.Close()
	return false
}

// Alerts of RFC 8446 §6 that deserve their own words.
const (
	alertHandshakeFailure   = 40
	alertBadCertificate     = 42 // and those up to 48 are about our certificate, but for the next
	alertIllegalParameter   = 47
	alertUnknownAuthority   = 48
	alertProtocolVersion    = 70
	alertUnrecognizedName   = 112
	alertCertificateMissing = 116
	alertNoProtocol         = 120
)

// tlsFault translates what crypto/tls and crypto/x509 say.
func (r *run) tlsFault(during string, err error) (finding, bool) {
	if f, ok := certificateFault(err); ok {
		return f, true
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		return down(rota.ClassTLS, "%s: the target does not speak TLS", during), true
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		// The alert's type is not exported, but it is the octet of RFC 8446 §6.
		code := uint64(0)
		if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
			code = v.Uint()
		}
		text := strings.TrimPrefix(op.Err.Error(), "tls: ")
		switch {
		case r.sentCert && (code == alertHandshakeFailure || alertBadCertificate <= code && code <= alertUnknownAuthority && code != alertIllegalParameter):
			return down(rota.ClassTLS, "%s: the target does not take our client certificate (%s)", during, text), true
		case code == alertCertificateMissing, r.wantsCert && (code == alertBadCertificate || code == alertHandshakeFailure):
			return down(rota.ClassTLS, "%s: client certificate wanted", during), true
		case code == alertProtocolVersion:
			return down(rota.ClassTLS, "%s: the target offers neither TLS 1.2 nor 1.3", during), true
		case code == alertNoProtocol:
			return down(rota.ClassTLS, "%s: the target does not offer %s", during, r.protocol()), true
		case code == alertUnrecognizedName:
			return down(rota.ClassTLS, "%s: the target does not know the server name %s", during, r.serverName()), true
		}
		return down(rota.ClassTLS, "%s: alert %d (%s)", during, code, text), true
	}
	if during == "tls" {
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return down(rota.ClassTLS, "tls: closed during the handshake"), true
		}
		return down(rota.ClassTLS, "tls: %s", strings.TrimPrefix(err.Error(), "tls: ")), true
	}
	return finding{}, false
}

func certificateFault(err error) (finding, bool) {
	const day = time.DateOnly
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	var roots x509.SystemRootsError
	switch {
	case errors.As(err, &roots):
		return unknown(rota.ClassResource, "certificate: this machine has no trusted roots; install ca-certificates"), true
	case errors.As(err, &invalid):
		c := invalid.Cert
		if invalid.Reason == x509.Expired && c != nil {
			if time.Now().Before(c.NotBefore) {
				return down(rota.ClassCertificate, "certificate not valid before %s", c.NotBefore.UTC().Format(day)), true
			}
			return down(rota.ClassCertificate, "certificate expired %s", c.NotAfter.UTC().Format(day)), true
		}
		return down(rota.ClassCertificate, "certificate invalid: %s", strings.TrimPrefix(err.Error(), "x509: ")), true
	case errors.As(err, &host):
		return down(rota.ClassCertificate, "certificate is for %s, not %s", certificateNames(host.Certificate), host.Host), true
	case errors.As(err, &authority):
		if c := authority.Cert; c != nil && string(c.RawIssuer) == string(c.RawSubject) {
			return down(rota.ClassCertificate, "certificate is self-signed"), true
		}
		return down(rota.ClassCertificate, "certificate is signed by an unknown authority"), true
	}
	var constraint x509.ConstraintViolationError
	if errors.As(err, &constraint) {
		return down(rota.ClassCertificate, "certificate: %s", strings.TrimPrefix(err.Error(), "x509: ")), true
	}
	return finding{}, false
}

func certificateNames(c *x509.Certificate) string {
	names := factNames(c)
	switch {
	case len(names) == 0:
		return "no name"
	case len(names) > 3:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}
