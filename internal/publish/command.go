package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Command is a program to run on this machine, without a shell.
type Command struct {
	Argv    []string      // the program's absolute path, and its arguments; never a secret
	Env     []string      // NAME=value, beside an otherwise clean environment
	Stdin   []byte        // what it may read
	Keep    int           // bytes of stdout that are wanted at most; 0: 64 KiB
	Timeout time.Duration // in all
}

// Output is what became of a command.
type Output struct {
	Started bool          // false: nothing of it happened
	Code    int           // its exit code; -1: it did not end by itself
	Stdout  []byte        // bounded
	Stderr  []byte        // bounded
	Cut     bool          // there was more of either
	Took    time.Duration // from start to end
}

// Run runs a command to its end, within its time limit and some seconds. An exit code other than 0 is no error: there is one when the
// command was not started, and when it did not end by itself.
type Run func(context.Context, Command) (Output, error)

// commandTimeout is the time limit of a command whose options name none.
const commandTimeout = 10 * time.Second

// failedCommand says why a command did not do what it should. It is in doubt when it had begun and was to change something.
func failedCommand(c Command, out Output, err error, changes bool) *Reason {
	r := &Reason{Code: CodeScript, Transient: true, InDoubt: changes && out.Started}
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		r.Code, r.Text = CodeUnreachable, rota.CleanReason("%v", err)
	case err != nil:
		r.Text = rota.CleanReason("%v", err)
	default:
		r.Text = fmt.Sprintf("%s ended with exit code %d", c.Argv[0], out.Code)
	}
	if said := lastLine(out.Stderr); said != "" {
		r.Text += " and said: " + rota.CleanReason("%s", said)
	}
	r.Advice = "run it by hand as the user that rota runs as; docs/scripts.md says how it is called"
	return r
}

// lastLine returns what a program said last, which is where most say why they failed.
func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// checkCommand checks what an operator configured as a command.
func checkCommand(kind string, argv []string, timeout time.Duration, run Run) (time.Duration, error) {
	switch {
	case len(argv) == 0 || !strings.HasPrefix(argv[0], "/"):
		return 0, fmt.Errorf("%s: command %q: name the program by its absolute path", kind, strings.Join(argv, " "))
	case run == nil:
		return 0, fmt.Errorf("%s: there is nothing to run commands with", kind)
	case timeout < 0 || timeout > time.Minute:
		return 0, fmt.Errorf("%s: a time limit of %v, want at most a minute", kind, timeout)
	}
	return cmp.Or(timeout, commandTimeout), nil
}
