package register

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/rota-dns/rota/internal/rota"
)

// ByRoute returns the addresses that this machine has on its way to the servers: for each family that one of them has, the local address
// that packets to it would carry, as far as others can reach it. Nothing is sent. It fails when there is none.
func ByRoute(servers []netip.AddrPort) ([]netip.Addr, error) {
	var out []netip.Addr
	var errs []error
	for _, s := range servers {
		if slices.ContainsFunc(out, func(a netip.Addr) bool { return a.Is4() == s.Addr().Unmap().Is4() }) {
			continue
		}
		a, err := towards(s)
		if err == nil {
			err = rota.Publishable(a)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("on the way to %v: %w", s, err))
			continue
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, errors.Join(append(errs, errors.New("no address of this machine was found: give one with --address or --interface"))...)
	}
	return out, nil
}

// towards returns the local address of a socket that is connected to s.
func towards(s netip.AddrPort) (netip.Addr, error) {
	conn, err := net.Dial("udp", s.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, errors.New("its socket has no address")
	}
	return local.AddrPort().Addr().Unmap().WithZone(""), nil
}

// ByInterface returns the first address of each family that an interface has and others can reach; of IPv6, one that is not local to a
// site (RFC 4193) before one that is. It fails when there is none.
func ByInterface(name string) ([]netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	all, err := i.Addrs()
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	var found []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			found = append(found, p.Addr().Unmap())
		}
	}
	if found = firstOfEach(found); len(found) == 0 {
		return nil, fmt.Errorf("interface %q has no address that others can reach", name)
	}
	return found, nil
}

func firstOfEach(all []netip.Addr) []netip.Addr {
	var v4, v6 netip.Addr
	for _, a := range all {
		switch {
		case rota.Publishable(a) != nil:
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6() && (!v6.IsValid() || v6.IsPrivate() && !a.IsPrivate()):
			v6 = a
		}
	}
	return slices.DeleteFunc([]netip.Addr{v4, v6}, func(a netip.Addr) bool { return !a.IsValid() })
}
