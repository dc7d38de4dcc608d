//go:build !linux

package api

import (
	"errors"
	"net"
)

// peerUID is known on Linux only.
func peerUID(*net.UnixConn) (int, error) { return 0, errors.ErrUnsupported }
