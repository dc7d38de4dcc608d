//go:build !linux

package probe

import "syscall"

// socketOptions has nothing to set on this system.
func socketOptions(_, _ string, _ syscall.RawConn) error { return nil }
