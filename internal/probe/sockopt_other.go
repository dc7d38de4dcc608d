//go:build !linux

package probe

import "syscall"

// holdAck has nothing to set on this system.
func holdAck(_, _ string, _ syscall.RawConn) error { return nil }
