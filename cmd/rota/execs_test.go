package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// plugin writes a script as a plugin of Nagios is one, and returns its path.
func plugin(t *testing.T, dir, name, script string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	syscall.ForkLock.RLock() // a child of another test would keep the file open for writing, and it could not be run (ETXTBSY)
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func anything(argv []string) (string, error) { return argv[0], nil }

// execOnce probes once by a command, with an address to look at.
func execOnce(t *testing.T, exec func(context.Context, probe.ExecCommand) (probe.ExecResult, error), timeout time.Duration, argv ...string) probe.Trace {
	t.Helper()
	check := rota.Check{Kind: rota.KindExec, Command: argv, Timing: rota.Timing{Timeout: timeout}}
	return probe.New(probe.Options{Exec: exec}).Once(t.Context(), rota.NewTarget(netip.MustParseAddr("192.0.2.7"), check))
}

func said(tr probe.Trace) string {
	o := tr.Observation
	return fmt.Sprintf("%v %s: %s", o.Status, o.Class, o.Reason)
}

func TestExecChecks(t *testing.T) {
	dir := t.TempDir()
	exec := execs(anything)
	const patient, hasty = 30 * time.Second, 400 * time.Millisecond
	for _, c := range []struct {
		name, script string
		args         []string
		timeout      time.Duration
		want         string
	}{
		{"ok", `echo "PING OK - $2 is alive|rta=0.1ms"`, []string{"-H", "{}"}, patient, "up ok: exit 0: PING OK - 192.0.2.7 is alive"},
		{"warning", "echo slow; exit 1", nil, patient, "up ok: exit 1: slow"},
		{"critical", "echo gone; exit 2", nil, patient, "down exit: exit 2: gone"},
		{"unknown", "echo what; exit 3", nil, patient, "unknown exporter: exit 3: what"},
		{"no such command", "exec /no/such/thing", nil, patient, "unknown exporter: exit 127: "},
		{"environment", `echo "$(env | sort | tr '\n' ' ')"`, nil, patient, "up ok: exit 0: LANG=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PWD=/ ROTA_ADDRESS=192.0.2.7 ROTA_FAMILY=4 ROTA_TIMEOUT=30"},
		{"no shell", `echo "$#: $1"`, []string{"$(id); {} *"}, patient, "up ok: exit 0: 1: $(id); 192.0.2.7 *"},
		{"no input", `read x; echo "[$x]"; exit 2`, nil, patient, "down exit: exit 2: []"},
		{"a signal", "kill -9 $$", nil, patient, "unknown exporter: command: "},
		{"late", "echo waiting; sleep 1000", nil, hasty, "down timeout: command: not done within 400ms: waiting"},
		{"late and deaf", "trap '' TERM; echo deaf; while :; do sleep 0.05; done", nil, hasty, "down timeout: command: not done within 400ms: deaf"},
		{"a gigabyte", "head -c 1073741824 /dev/zero; exit 2", nil, patient, "down exit: exit 2: " + strings.Repeat("?", rota.MaxReason-len("exit 2: "))},
		{"a gigabyte of errors", "head -c 1073741824 /dev/zero >&2; echo x; exit 2", nil, patient, "down exit: exit 2: x"},
		{"for ever", "yes", nil, hasty, "down timeout: command: not done within 400ms: y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := plugin(t, dir, strings.ReplaceAll(c.name, " ", "-"), c.script)
			var tr probe.Trace
			for range 10 { // a machine that is too busy to keep a limit says so
				if tr = execOnce(t, exec, c.timeout, append([]string{path}, c.args...)...); tr.Observation.Class != rota.ClassResource {
					break
				}
			}
			if got := said(tr); got != c.want && !(strings.HasSuffix(c.want, ": ") && strings.HasPrefix(got, c.want)) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if n := len(tr.Received); n > 3<<10 {
				t.Errorf("%d bytes were kept", n)
			}
		})
	}
	if tr := execOnce(t, exec, patient, filepath.Join(dir, "none")); tr.Observation.Class != rota.ClassPermission || !strings.Contains(tr.Observation.Reason, "check the path") {
		t.Error(said(tr))
	}
}

// What a command leaves behind ends with it: its children, and theirs.
func TestExecLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	fork := `sh -c 'trap "" TERM HUP; echo $$ >>` + pids + `; sleep 1000; sleep 1000' &
sh -c 'sh -c "echo \$\$ >>` + pids + `; sleep 1000; sleep 1000" & echo $$ >>` + pids + `; wait' &
while [ "$(wc -l <` + pids + `)" -lt 3 ]; do sleep 0.01; done
`
	exec := execs(anything)
	for name, end := range map[string]string{"by itself": "exit 0", "at its limit": "wait"} {
		if err := os.WriteFile(pids, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		tr := execOnce(t, exec, 2*time.Second, plugin(t, dir, "fork", fork+end))
		if s := tr.Observation.Status; s == rota.Unknown && tr.Observation.Class != rota.ClassResource {
			t.Errorf("%s: %s", name, said(tr))
		}
		b, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(b)) {
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				if _, state, _ := strings.Cut(string(stat), ") "); err != nil || strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: process %s is still there", name, pid)
				}
			}
		}
	}
}

// More commands than may run at once: none of those that wait counts against its endpoint.
func TestExecWaits(t *testing.T) {
	path := plugin(t, t.TempDir(), "slow", "sleep 1000")
	exec := execs(anything)
	ctx, cancel := context.WithCancel(t.Context())
	var held sync.WaitGroup
	for range execsAtOnce {
		started := make(chan struct{})
		held.Go(func() {
			close(started)
			_, _ = exec(ctx, probe.ExecCommand{Check: []string{path}, Argv: []string{path}, Limit: time.Minute})
		})
		<-started
	}
	// Some of them may not have begun yet when the first of these does.
	for deadline := time.Now().Add(20 * time.Second); ; {
		tr := execOnce(t, exec, 300*time.Millisecond, path)
		if said(tr) == "unknown resource: command: not started within 300ms: too many others are running" {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("a command is never kept waiting: %s", said(tr))
			break
		}
	}
	cancel()
	held.Wait()
}

func TestOwnCommands(t *testing.T) {
	cfg := &config.Config{Commands: [][]string{{"/bin/check", "-H", "{}"}, {"sh", "{}"}}}
	find := ownCommands(func() *config.Config { return cfg })
	if path, err := find([]string{"/bin/check", "-H", "{}"}); err != nil || path != "/bin/check" {
		t.Error(path, err)
	}
	if path, err := find([]string{"sh", "{}"}); err != nil || !filepath.IsAbs(path) || filepath.Base(path) != "sh" {
		t.Error(path, err)
	}
	for _, argv := range [][]string{{"/bin/check"}, {"/bin/check", "-H", "{}", "-x"}, {"/bin/check", "-H {}"}, {"/bin/other", "-H", "{}"}, {"/bin/check", "-H", "192.0.2.1"}, {"sh", "-c"}} {
		if _, err := find(argv); err == nil || !strings.Contains(err.Error(), "into this node's own file") {
			t.Errorf("%q: %v", argv, err)
		}
	}
	cfg = &config.Config{Commands: [][]string{{"/bin/other"}, {"no-such-program"}}}
	if _, err := find([]string{"/bin/check", "-H", "{}"}); err == nil {
		t.Error("a new configuration is not heeded")
	}
	if _, err := find([]string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "install it") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestExecDir(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "checks")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	good := plugin(t, dir, "good", "exit 0")
	elsewhere := plugin(t, top, "elsewhere", "exit 0")
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	open := plugin(t, dir, "open", "exit 0")
	sticky := plugin(t, dir, "sticky", "exit 0")
	for path, mode := range map[string]os.FileMode{open: 0o775, sticky: 0o777 | os.ModeSticky} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	d := execDir(dir)
	if path, err := d.find([]string{"good"}); err != nil || path != good {
		t.Error(path, err)
	}
	for path, want := range map[string]string{
		good: "", "../elsewhere": "does not lie in", elsewhere: "does not lie in", plugin(t, below, "deep", ""): "does not lie in", dir + "/../elsewhere": "does not lie in",
		dir + "/.": "no directory or program", below: "no directory or program", link: "symbolic links are not followed", open: "chmod go-w", sticky: "chmod go-w", dir + "/none": "no such file",
	} {
		_, err := d.find([]string{path})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := execDir("").find([]string{good}); err == nil || !strings.Contains(err.Error(), "--exec-dir") {
		t.Errorf("without a directory: %v", err)
	}
	linked := filepath.Join(top, "linked")
	if err := os.Symlink(dir, linked); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"checks", dir + "/", "/", linked, good, dir + "/none"} {
		if execDir(bad).check() == nil {
			t.Errorf("%s is taken for a directory of programs", bad)
		}
	}
	if err := os.Chmod(dir, 0o1777); err != nil || syscall.Chmod(dir, 0o1777) != nil {
		t.Fatal(err)
	}
	if _, err := d.find([]string{good}); err == nil {
		t.Error("a directory that all may write is trusted")
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(top, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := d.find([]string{good}); err == nil {
		t.Error("a directory that can be moved away is trusted")
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(top, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(good, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := d.find([]string{good}); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("another's program: %v", err)
		}
	}
}
