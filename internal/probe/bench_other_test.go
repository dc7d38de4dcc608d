//go:build !linux

package probe

import (
	"net"
	"testing"
	"time"
)

func pin(*testing.B) {}

// cpu is the time that has passed: other systems count otherwise.
func cpu(*testing.B) time.Duration { return time.Duration(time.Now().UnixNano()) }

func resident(*testing.B) uint64 { return 0 }

func serveFast(net.Listener) bool { return false }
