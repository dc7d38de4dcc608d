package nameserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// udpSocket is one bound UDP socket. On a wildcard address it notes which of the machine's addresses a query came to, so that the
// answer leaves from there: a resolver drops one that comes from elsewhere.
type udpSocket struct {
	conn *net.UDPConn
	any4 bool
	any6 bool
}

func newUDPSocket(c *net.UDPConn, a netip.Addr) (*udpSocket, error) {
	u := &udpSocket{conn: c, any4: a.Is4() && a.IsUnspecified(), any6: a.Is6() && a.IsUnspecified()}
	switch {
	case u.any4:
		return u, ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	case u.any6:
		return u, ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	}
	return u, nil
}

// serve answers packets until the socket is closed.
func (u *udpSocket) serve(ctx context.Context, s *Server) error {
	buf, oob := make([]byte, maxSize), make([]byte, 128)
	for wait := time.Duration(0); ; {
		n, no, _, from, err := u.conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// A fault of the machine, such as no memory, must not end the service: whoever asks is answered when it is over.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log.Warn("cannot read from a UDP socket", "listen", u.conn.LocalAddr().String(), "error", err, "again_in", wait)
			pause(ctx, wait)
			continue
		}
		wait = 0
		if reply := s.serve(buf[:n], from, true); reply != nil {
			// Nobody can be told of an answer that cannot be sent; the client asks again.
			_, _, _ = u.conn.WriteMsgUDPAddrPort(reply, u.source(oob[:no]), from)
		}
	}
}

// source returns the control message that makes an answer leave from the address its query came to.
func (u *udpSocket) source(oob []byte) []byte {
	switch {
	case u.any4:
		var m ipv4.ControlMessage
		if m.Parse(oob) == nil && m.Dst != nil {
			return (&ipv4.ControlMessage{Src: m.Dst}).Marshal()
		}
	case u.any6:
		var m ipv6.ControlMessage
		if m.Parse(oob) == nil && m.Dst != nil {
			out := ipv6.ControlMessage{Src: m.Dst}
			if m.Dst.IsLinkLocalUnicast() {
				out.IfIndex = m.IfIndex
			}
			return out.Marshal()
		}
	}
	return nil
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
