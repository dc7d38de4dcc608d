package nameserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// portTries bounds the search for a port that is free for both UDP and TCP when port 0 asks for any.
const portTries = 16

// Listen binds every address for UDP and TCP. It binds all or none; its error says what to do.
func (s *Server) Listen() error {
	for _, l := range s.opts.Listen {
		if err := s.bind(l); err != nil {
			s.close()
			s.udp, s.tcp = nil, nil
			return err
		}
	}
	return nil
}

// Addrs lists the addresses that are listened on, each for UDP and TCP.
func (s *Server) Addrs() []netip.AddrPort {
	out := make([]netip.AddrPort, len(s.tcp))
	for i, l := range s.tcp {
		a := l.Addr().(*net.TCPAddr).AddrPort()
		out[i] = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return out
}

// bind listens on one configured address, or on both families when it has no host.
func (s *Server) bind(listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("dns: listen on %q: %w; write it as 192.0.2.53:53, [2001:db8::53]:53 or :53", listen, err)
	}
	num, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("dns: listen on %q: port %q is not a number from 0 to 65535", listen, port)
	}
	if host != "" {
		a, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("dns: listen on %q: %q is not an IP address; a name server needs a fixed one", listen, host)
		}
		_, err = s.bindPair(netip.AddrPortFrom(a.Unmap(), uint16(num)))
		return err
	}
	used, err := s.bindPair(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(num)))
	if err != nil {
		return err
	}
	_, err = s.bindPair(netip.AddrPortFrom(netip.IPv6Unspecified(), used))
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		s.log.Info("this machine has no IPv6, so DNS is answered over IPv4 only", "listen", listen)
		return nil
	}
	return err
}

// bindPair binds one address for UDP and TCP on the same port, and returns the port.
func (s *Server) bindPair(a netip.AddrPort) (uint16, error) {
	udp, tcp := "udp6", "tcp6"
	if a.Addr().Is4() {
		udp, tcp = "udp4", "tcp4"
	}
	var err error
	for range portTries {
		var u *net.UDPConn
		if u, err = net.ListenUDP(udp, net.UDPAddrFromAddrPort(a)); err != nil {
			return 0, listenError(a, "udp", err)
		}
		port := u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		var l *net.TCPListener
		if l, err = net.ListenTCP(tcp, net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr(), port))); err == nil {
			sock, err := newUDPSocket(u, a.Addr())
			if err != nil {
				u.Close()
				l.Close()
				return 0, listenError(a, "udp", err)
			}
			s.udp = append(s.udp, sock)
			s.tcp = append(s.tcp, l)
			return port, nil
		}
		u.Close()
		if a.Port() != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return 0, listenError(a, "tcp", err)
}

// listenError says what to do about a socket that cannot be bound.
func listenError(a netip.AddrPort, proto string, err error) error {
	var hint string
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "another program has it (systemd-resolved, dnsmasq and other name servers are usual); " +
			"see `ss -lnptu`, stop it, or set dns.listen to an address or port that is free"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		hint = "ports below 1024 need CAP_NET_BIND_SERVICE: set AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, " +
			"or run `setcap cap_net_bind_service=+ep` on the rota binary, or set dns.listen to a port above 1023"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine has no such address; set dns.listen to one of its own (see `ip address`), or to :" + strconv.Itoa(int(a.Port()))
	default:
		return fmt.Errorf("dns: listen on %s/%s: %w", a, proto, err)
	}
	return fmt.Errorf("dns: listen on %s/%s: %w: %s", a, proto, cause(err), hint)
}

// cause is the system's error without the words that repeat the address.
func cause(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}
