// Package process runs commands that the operator configured: a program by its absolute path and its arguments, never a shell. A
// command has a process group of its own, a time limit, a bounded output and an environment that holds only what it was given. What
// the words mean that go in and come out is its callers' business.
package process

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a program to run.
type Command struct {
	Argv    []string      // the program's absolute path, and its arguments
	Env     []string      // NAME=value; beside these there are PATH and LANG only
	Stdin   []byte        // what it may read; it need not
	Keep    int           // bytes kept of stdout; 0: DefaultKeep, at most MaxKeep
	Timeout time.Duration // in all; 0: DefaultTimeout
}

// Output is what became of a command.
type Output struct {
	Started bool          // false: nothing of it happened
	Code    int           // its exit code; -1: it did not end by itself
	Stdout  []byte        // its first bytes, as many as are kept
	Stderr  []byte        // the first DefaultKeep bytes
	Cut     bool          // it said more than is kept, or something that it left behind kept its output open
	Took    time.Duration // from start to end
}

const (
	// DefaultTimeout is the time limit of a command that names none.
	DefaultTimeout = 10 * time.Second
	// MaxTimeout bounds Command.Timeout.
	MaxTimeout = 10 * time.Minute
	// DefaultKeep is how many bytes are kept of stderr, and of stdout when no number is named. The rest is read and dropped.
	DefaultKeep = 64 << 10
	// MaxKeep bounds Command.Keep.
	MaxKeep = 16 << 20
	// MaxStdin bounds Command.Stdin, in bytes.
	MaxStdin = 16 << 20
)

// environment is what every command finds beside what it is given.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}

// linger is how long output is awaited that something else than the command keeps open, and how long after SIGKILL the end is.
const linger = time.Second

// Runner runs commands, some at once.
type Runner struct {
	turns chan struct{}
	grace time.Duration
}

// New returns a runner of at most so many commands at once. A command that is asked to end (SIGTERM) and does not within grace is
// killed with all of its group. Descriptors that this process itself was started with are not handed on, where the system can see to
// that (Linux 5.11).
func New(parallel int, grace time.Duration) *Runner {
	keepDescriptors()
	return &Runner{turns: make(chan struct{}, parallel), grace: grace}
}

// Run runs a command to its end, and returns at the latest when its time limit, the grace and two seconds have passed, the wait for
// its turn apart, which ends with ctx. When ctx ends the command is ended as at its time limit. An exit code other than 0 is no
// error: there is one when the command was not started, and when it did not end by itself; context.DeadlineExceeded when it was ended
// at its time limit.
//
// Processes that the command leaves in its group end with it. One that made itself a session of its own lives on.
func (r *Runner) Run(ctx context.Context, c Command) (Output, error) {
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	if err := c.validate(); err != nil {
		return Output{Code: -1}, err
	}
	if err := ctx.Err(); err != nil {
		return Output{Code: -1}, fmt.Errorf("%s was not started: %w", c.Argv[0], err)
	}
	select {
	case r.turns <- struct{}{}:
	case <-ctx.Done():
		return Output{Code: -1}, fmt.Errorf("%s was not started, %d other commands are running: %w", c.Argv[0], cap(r.turns), ctx.Err())
	}
	type result struct {
		out Output
		err error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, tooLong(c.Timeout))
	defer cancel()
	go func() {
		defer func() { <-r.turns }()
		// The kernel ends the command when the thread that started it ends (Pdeathsig), so it keeps its thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		out, err := run(ctx, c, r.grace)
		done <- result{out, err}
	}()
	select {
	case x := <-done:
		return x.out, x.err
	case <-ctx.Done():
	}
	last := time.NewTimer(r.grace + 2*linger)
	defer last.Stop()
	select {
	case x := <-done:
		return x.out, x.err
	case <-last.C: // a process in an uninterruptible wait, such as on a dead disk
		return Output{Started: true, Code: -1}, fmt.Errorf("%s was killed and has not ended: %w", c.Argv[0], context.Cause(ctx))
	}
}

// tooLong is the end of a time limit.
type tooLong time.Duration

func (t tooLong) Error() string { return fmt.Sprintf("it did not end within %v", time.Duration(t)) }

func (t tooLong) Is(target error) bool { return target == context.DeadlineExceeded }

func (c Command) validate() error {
	if len(c.Argv) == 0 || !filepath.IsAbs(c.Argv[0]) {
		return fmt.Errorf("command %q: name the program by its absolute path", strings.Join(c.Argv, " "))
	}
	for _, s := range append(c.Env[:len(c.Env):len(c.Env)], c.Argv...) {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("command %s: an argument or variable has a NUL byte", c.Argv[0])
		}
	}
	switch {
	case len(c.Stdin) > MaxStdin:
		return fmt.Errorf("command %s: %d bytes of input, the limit is %d", c.Argv[0], len(c.Stdin), MaxStdin)
	case c.Keep < 0 || c.Keep > MaxKeep:
		return fmt.Errorf("command %s: %d bytes of output to keep, want at most %d", c.Argv[0], c.Keep, MaxKeep)
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return fmt.Errorf("command %s: a time limit of %v, want at most %v", c.Argv[0], c.Timeout, MaxTimeout)
	}
	return nil
}

// run runs c until it ends or ctx does.
func run(ctx context.Context, c Command, grace time.Duration) (Output, error) {
	out := Output{Code: -1}
	stdout, stderr := capped{limit: cmp.Or(c.Keep, DefaultKeep)}, capped{limit: DefaultKeep}
	cmd := &exec.Cmd{
		Path: c.Argv[0], Args: c.Argv, Env: append(environment[:len(environment):len(environment)], c.Env...), Dir: "/",
		Stdin: bytes.NewReader(c.Stdin), Stdout: &stdout, Stderr: &stderr, SysProcAttr: attributes(), WaitDelay: linger,
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return out, fmt.Errorf("cannot start %s: %w", c.Argv[0], advised(err))
	}
	group := -cmd.Process.Pid
	exited, settled := make(chan struct{}), make(chan struct{})
	signalled := false
	go func() {
		defer close(settled)
		select {
		case <-exited:
			return
		case <-ctx.Done():
		}
		signalled = true
		syscall.Kill(group, syscall.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-exited:
		case <-t.C:
			syscall.Kill(group, syscall.SIGKILL)
		}
	}()
	err := finish(cmd, func() {
		close(exited)
		<-settled
		syscall.Kill(group, syscall.SIGKILL)
	})
	out.Started, out.Took = true, time.Since(start)
	out.Stdout, out.Stderr = stdout.kept.Bytes(), stderr.kept.Bytes()
	out.Cut = stdout.cut || stderr.cut || errors.Is(err, exec.ErrWaitDelay)
	if signalled {
		return out, fmt.Errorf("%s was ended: %w", c.Argv[0], context.Cause(ctx))
	}
	if out.Code = cmd.ProcessState.ExitCode(); out.Code < 0 {
		return out, fmt.Errorf("%s: %v", c.Argv[0], cmd.ProcessState) // says which signal
	}
	return out, nil
}

// advised adds what to do about a program that cannot be started.
func advised(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w; check the path, and the interpreter that its first line names", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w; make it executable (chmod +x) for the user that rota runs as", err)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("%w; a script begins with a line such as #!/bin/sh", err)
	}
	return err
}

// capped keeps the first bytes and takes all.
type capped struct {
	limit int
	kept  bytes.Buffer
	cut   bool
}

// Write never fails: a command that says too much is not blocked by it.
func (c *capped) Write(p []byte) (int, error) {
	room := c.limit - c.kept.Len()
	c.kept.Write(p[:min(room, len(p))])
	c.cut = c.cut || len(p) > room
	return len(p), nil
}
