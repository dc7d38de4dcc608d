package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// slept returns how long the machine has been asleep since it booted: the boot clock counts that, the monotonic one does not.
func slept() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}
