package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

func TestExec(t *testing.T) {
	ended := func(code int, stdout string) func(context.Context, ExecCommand) (ExecResult, error) {
		return func(context.Context, ExecCommand) (ExecResult, error) {
			return ExecResult{Started: true, Code: code, Stdout: []byte(stdout)}, nil
		}
	}
	failed := func(r ExecResult, err error) func(context.Context, ExecCommand) (ExecResult, error) {
		return func(context.Context, ExecCommand) (ExecResult, error) { return r, err }
	}
	timing := rota.Timing{Timeout: 3 * time.Second}
	late := fmt.Errorf("/bin/x was ended: %w", context.DeadlineExceeded)
	for _, c := range []struct {
		name  string
		exec  func(context.Context, ExecCommand) (ExecResult, error)
		check rota.Check
		want  string
	}{
		{"ok", ended(0, "LOAD OK - 0.1 | load1=0.1;5;10\nmore\n"), rota.Check{}, "up ok: exit 0: LOAD OK - 0.1"},
		{"ok and silent", ended(0, ""), rota.Check{}, "up ok: exit 0"},
		{"warning", ended(1, "\n\nLOAD WARNING\r\n"), rota.Check{}, "up ok: exit 1: LOAD WARNING"},
		{"critical", ended(2, "DISK \x1b[31mCRITICAL\xff | /=3%"), rota.Check{}, "down exit: exit 2: DISK ?[31mCRITICAL\ufffd"},
		{"unknown", ended(3, "no such host"), rota.Check{}, "unknown exporter: exit 3: no such host"},
		{"unknown is down", ended(3, ""), rota.Check{OnError: rota.Down}, "down exit: exit 3"},
		{"only numbers", ended(0, "| a=1"), rota.Check{}, "up ok: exit 0"},
		{"not found by env", ended(127, ""), rota.Check{}, "unknown exporter: exit 127; want 0, 1, 2 or 3"},
		{"not executable", ended(126, "x: not found"), rota.Check{}, "unknown exporter: exit 126: x: not found; want 0, 1, 2 or 3"},
		{"stderr", failed(ExecResult{Started: true, Code: 2, Stderr: []byte("Traceback\nline 2\n")}, nil), rota.Check{}, "down exit: exit 2: Traceback"},
		{"killed", failed(ExecResult{Started: true, Code: -1}, errors.New("/bin/x: signal: segmentation fault")), rota.Check{}, "unknown exporter: command: /bin/x: signal: segmentation fault"},
		{"late", failed(ExecResult{Started: true, Code: -1, Stdout: []byte("waiting\n"), Took: 3 * time.Second}, late), rota.Check{Timing: timing}, "down timeout: command: not done within 3s: waiting"},
		{"late because it began late", failed(ExecResult{Started: true, Code: -1, Took: time.Second}, late), rota.Check{Timing: timing}, "unknown resource: command: it had to wait for others, and had 1s of its 3s"},
		{"never began", failed(ExecResult{Code: -1}, late), rota.Check{Timing: timing}, "unknown resource: command: not started within 3s: too many others are running"},
		{"refused", failed(ExecResult{Code: -1}, errors.New("/bin/x is not run here: name it")), rota.Check{OnError: rota.Down}, "unknown permission: command: /bin/x is not run here: name it"},
		{"none", nil, rota.Check{}, "unknown permission: command: none is run here"},
		{"relative", ended(0, ""), rota.Check{Command: []string{"./x"}}, "unknown : the check cannot be asked: command: name the program by its absolute path, or without a slash"},
		{"no program", ended(0, ""), rota.Check{Command: []string{""}}, "unknown : the check cannot be asked: command: it names no program"},
		{"NUL", ended(0, ""), rota.Check{Command: []string{"/x", "\x00"}}, "unknown : the check cannot be asked: command: a word has a NUL byte"},
		{"too long", ended(0, ""), rota.Check{Command: []string{"/x", strings.Repeat("y", maxCommand)}}, "unknown : the check cannot be asked: command: more than 64 words or 8192 bytes"},
		{"too many", ended(0, ""), rota.Check{Command: slices.Repeat([]string{"/x"}, maxWords+1)}, "unknown : the check cannot be asked: command: more than 64 words or 8192 bytes"},
		{"a bug", func(context.Context, ExecCommand) (ExecResult, error) { panic("oops") }, rota.Check{}, "unknown resource: the probe met a bug in rota: oops"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindExec
			if c.check.Command == nil {
				c.check.Command = []string{"/bin/x"}
			}
			tr := New(Options{Exec: c.exec}).Once(t.Context(), rota.NewTarget(netip.MustParseAddr("192.0.2.1"), c.check))
			if got := verdict(tr); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// What a command is told: the address in its arguments, never in its program, and in its environment.
func TestExecCommand(t *testing.T) {
	var got ExecCommand
	var by time.Time
	exec := func(ctx context.Context, c ExecCommand) (ExecResult, error) {
		got = c
		by, _ = ctx.Deadline()
		return ExecResult{Started: true}, nil
	}
	check := rota.Check{Kind: rota.KindExec, Command: []string{"/opt/{}/check", "-H", "{}", "--url=http://[{}]/{}"}, Timing: rota.Timing{Timeout: 2500 * time.Millisecond}}
	for addr, family := range map[string]string{"2001:db8::1": "6", "192.0.2.1": "4"} {
		begin := time.Now()
		New(Options{Exec: exec}).Once(t.Context(), rota.NewTarget(netip.MustParseAddr(addr), check))
		if want := []string{"/opt/{}/check", "-H", addr, "--url=http://[" + addr + "]/" + addr}; !slices.Equal(got.Argv, want) {
			t.Errorf("argv %q, want %q", got.Argv, want)
		}
		if want := []string{"ROTA_ADDRESS=" + addr, "ROTA_FAMILY=" + family, "ROTA_TIMEOUT=2.5"}; !slices.Equal(got.Env, want) {
			t.Errorf("environment %q, want %q", got.Env, want)
		}
		if !slices.Equal(got.Check, check.Command) || got.Limit != check.Timeout || by.Before(begin) {
			t.Errorf("command %+v until %v", got, by)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := New(Options{Exec: func(context.Context, ExecCommand) (ExecResult, error) {
		cancel()
		return ExecResult{Started: true, Code: -1}, fmt.Errorf("ended: %w", context.Canceled)
	}})
	if tr := p.Once(ctx, rota.NewTarget(netip.MustParseAddr("192.0.2.1"), check)); verdict(tr) != "unknown cancelled: cancelled" {
		t.Error(verdict(tr))
	}
}
