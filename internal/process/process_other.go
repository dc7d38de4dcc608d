//go:build !linux

package process

import (
	"os/exec"
	"syscall"
)

// keepDescriptors leaves what this process inherited as it is.
func keepDescriptors() {}

// attributes give a command a group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// finish waits for the end of a command, and then calls settle, which ends the rest of the group.
func finish(cmd *exec.Cmd, settle func()) error {
	err := cmd.Wait()
	settle()
	return err
}
