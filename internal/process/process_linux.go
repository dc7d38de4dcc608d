package process

import (
	"math"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// keepDescriptors marks what this process inherited: the runtime does that only for what it opens.
func keepDescriptors() { unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) }

// attributes give a command a group of its own, and let it end when rota does, whatever ends rota.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// finish waits for the end of a command. It calls settle, which ends the rest of the group, before the command is reaped: until then
// the group's number cannot be another one's.
func finish(cmd *exec.Cmd, settle func()) error {
	for unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	settle()
	return cmd.Wait()
}
