package process

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell runs a script by /bin/sh, which is here a program like any other.
func shell(script string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", script}, Timeout: 30 * time.Second}
}

// short is a time limit that a command in a test is meant to break.
const short = 300 * time.Millisecond

func TestRun(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\nexit 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	limited := func(c Command) Command {
		c.Timeout = short
		return c
	}
	with := func(c Command, stdin []byte, env ...string) Command {
		c.Stdin, c.Env = stdin, env
		return c
	}
	large := bytes.Repeat([]byte("x"), 4<<20)
	for _, c := range []struct {
		name    string
		command Command
		code    int
		stdout  string // exact; "…": not looked at
		stderr  string
		err     string // part of it; "": none
		idle    bool   // not started
	}{
		{name: "succeeds", command: shell("echo out; echo err >&2"), stdout: "out\n", stderr: "err\n"},
		{name: "exits 1", command: shell("echo no >&2; exit 1"), code: 1, stderr: "no\n"},
		{name: "hangs", command: limited(shell("echo begun; exec sleep 1000")), code: -1, stdout: "begun\n", err: "did not end within 300ms"},
		{name: "ignores SIGTERM", command: limited(shell("trap '' TERM; while :; do sleep 0.05; done")), code: -1, err: "did not end"},
		{name: "ends well at SIGTERM", command: limited(shell("trap 'echo tidy; exit 0' TERM; while :; do sleep 0.05 2>&-; done 2>&-")), code: -1, stdout: "tidy\n", err: "did not end"},
		{name: "killed", command: shell("kill -KILL $$"), code: -1, err: "killed"},
		{name: "reads stdin", command: with(shell("cat"), []byte("hello")), stdout: "hello"},
		{name: "reads much", command: with(shell("wc -c"), large), stdout: "4194304\n"},
		{name: "does not read stdin", command: with(shell("echo done"), large), stdout: "done\n"},
		{name: "closes stdin and goes on", command: with(shell("exec <&-; sleep 0.1; echo done"), large), stdout: "done\n"},
		{name: "environment", command: with(Command{Argv: []string{"/usr/bin/env"}}, nil, "ROTA_NAME=a b"), stdout: strings.Join(environment, "\n") + "\nROTA_NAME=a b\n"},
		{name: "directory", command: Command{Argv: []string{"/bin/pwd"}}, stdout: "/\n"},
		{name: "descriptors", command: Command{Argv: []string{"/bin/ls", "/proc/self/fd"}}, stdout: "0\n1\n2\n3\n"}, // the last is ls's own
		{name: "no shell", command: Command{Argv: []string{"/bin/echo", "$(id)", "; exit 3", "*"}}, stdout: "$(id) ; exit 3 *\n"},
		{name: "not executable", command: Command{Argv: []string{plain}}, code: -1, err: "chmod +x", idle: true},
		{name: "not there", command: Command{Argv: []string{"/nowhere/at/all"}}, code: -1, err: "check the path", idle: true},
		{name: "a directory", command: Command{Argv: []string{"/"}}, code: -1, err: "cannot start", idle: true},
		{name: "relative", command: Command{Argv: []string{"sh"}}, code: -1, err: "absolute path", idle: true},
		{name: "nothing", command: Command{}, code: -1, err: "absolute path", idle: true},
		{name: "NUL", command: Command{Argv: []string{"/bin/echo", "a\x00b"}}, code: -1, err: "NUL", idle: true},
		{name: "NUL in a variable", command: with(shell("true"), nil, "A=\x00"), code: -1, err: "NUL", idle: true},
		{name: "too much input", command: with(shell("true"), make([]byte, MaxStdin+1)), code: -1, err: "limit", idle: true},
		{name: "too much output", command: Command{Argv: []string{"/bin/true"}, Keep: MaxKeep + 1}, code: -1, err: "to keep", idle: true},
		{name: "too long", command: Command{Argv: []string{"/bin/true"}, Timeout: time.Hour}, code: -1, err: "at most 10m", idle: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			out, err := New(1, 100*time.Millisecond).Run(t.Context(), c.command)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if errors.Is(err, context.DeadlineExceeded) != strings.Contains(c.err, "did not end") {
				t.Errorf("error %v", err)
			}
			if out.Code != c.code || string(out.Stdout) != c.stdout || string(out.Stderr) != c.stderr || out.Cut || out.Started == c.idle {
				t.Errorf("output %+v\nstdout %q, stderr %q", out, out.Stdout, out.Stderr)
			}
		})
	}
}

// alive reports whether a process is there and not only its remains.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d is still there", pid)
		}
	}
}

func number(t *testing.T, out Output) int {
	t.Helper()
	line, _, _ := strings.Cut(string(out.Stdout), "\n")
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatalf("no process id in %q: %v", out.Stdout, err)
	}
	return n
}

// What a command leaves behind in its group ends with it, whether it ends by itself or is ended.
func TestForks(t *testing.T) {
	for name, c := range map[string]Command{
		"left behind":    shell("sleep 1000 & echo $!"),
		"ended together": {Argv: []string{"/bin/sh", "-c", "trap '' TERM; sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & echo $!; wait; wait"}, Timeout: short},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := New(1, 50*time.Millisecond).Run(t.Context(), c)
			if (err != nil) != (c.Timeout == short) {
				t.Errorf("error %v", err)
			}
			gone(t, number(t, out))
		})
	}
}

// A process that left the group cannot be ended, and does not hold up its caller by keeping the pipes.
func TestOwnSession(t *testing.T) {
	t.Parallel()
	out, err := New(1, 50*time.Millisecond).Run(t.Context(), shell("setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.3; exit 0"))
	if err != nil || !out.Cut {
		t.Errorf("%+v, %v", out, err)
	}
	pid := number(t, out)
	syscall.Kill(pid, syscall.SIGKILL)
	gone(t, pid)
}

func TestOneGigabyte(t *testing.T) {
	t.Parallel()
	c := Command{Argv: []string{"/usr/bin/head", "-c", "1G", "/dev/zero"}, Timeout: time.Minute}
	out, err := New(1, time.Second).Run(t.Context(), c)
	if err != nil || len(out.Stdout) != DefaultKeep || !out.Cut || cap(out.Stdout) > 4*DefaultKeep {
		t.Errorf("kept %d of %d bytes, cut %v: %v", len(out.Stdout), cap(out.Stdout), out.Cut, err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	fifo := filepath.Join(t.TempDir(), "begun")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		os.ReadFile(fifo) // returns when the command has begun
		cancel()
	}()
	out, err := New(1, time.Second).Run(ctx, shell(": >"+fifo+"; exec sleep 1000"))
	if !out.Started || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err := New(1, time.Second).Run(ctx, shell("exit 0")); out.Started || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %+v, %v", out, err)
	}
}

func TestParallel(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "go on")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(1, time.Second)
	first := make(chan error, 1)
	go func() {
		_, err := r.Run(context.Background(), Command{Argv: []string{"/bin/cat", fifo}, Timeout: time.Minute})
		first <- err
	}()
	for len(r.turns) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if out, err := r.Run(ctx, shell("exit 0")); out.Started || err == nil || !strings.Contains(err.Error(), "1 other") {
		t.Errorf("%+v, %v", out, err)
	}
	if err := os.WriteFile(fifo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if out, err := r.Run(t.Context(), shell("exit 0")); !out.Started || err != nil {
		t.Errorf("with a turn: %+v, %v", out, err)
	}
}
