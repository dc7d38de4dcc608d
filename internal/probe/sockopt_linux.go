package probe

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// holdAck makes the kernel hold back the bare ACK of the handshake, so that it rides on the request or,
// for a mere connect, is replaced by the RST: three packets a probe. It is an optimisation; a kernel that refuses it loses nothing.
func holdAck(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	})
}
