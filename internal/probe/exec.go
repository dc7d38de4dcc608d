package probe

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of a command: words, and bytes of all of them.
const (
	maxWords   = 64
	maxCommand = 8 << 10
)

func prepareExec(q *question) error {
	words, size := q.check.Command, 0
	for _, w := range words {
		size += len(w)
	}
	switch {
	case len(words) == 0 || words[0] == "":
		return errors.New("command: it names no program")
	case strings.Contains(words[0], "/") && !filepath.IsAbs(words[0]):
		return errors.New("command: name the program by its absolute path, or without a slash")
	case len(words) > maxWords || size > maxCommand:
		return fmt.Errorf("command: more than %d words or %d bytes", maxWords, maxCommand)
	case slices.ContainsFunc(words, func(w string) bool { return strings.ContainsRune(w, 0) }):
		return errors.New("command: a word has a NUL byte")
	}
	return nil
}

// The exit codes of a Nagios plugin.
const (
	execOK = iota
	execWarning
	execCritical
	execUnknown
)

// probeExec runs a command and reads its exit code as Nagios does. A command that cannot say how the endpoint is says nothing about it;
// one that needs longer than the check allows is waiting for the endpoint.
func probeExec(ctx context.Context, r *run) finding {
	c := &r.q.check
	if r.p.exec == nil {
		return lacking("command: none is run here")
	}
	addr := r.addr.String()
	argv := slices.Clone(c.Command)
	for i := range argv[1:] {
		argv[i+1] = strings.ReplaceAll(argv[i+1], "{}", addr)
	}
	family := "4"
	if r.addr.Is6() {
		family = "6"
	}
	r.trace.Sent = escape([]byte(strings.Join(argv, " ")), maxHead)
	done := r.trace.begin("command")
	result, err := r.p.exec(ctx, ExecCommand{
		Check: c.Command, Argv: argv, Limit: c.Timeout,
		// Not the check's name: checks of other names that ask the same share this probe.
		Env: []string{"ROTA_ADDRESS=" + addr, "ROTA_FAMILY=" + family, "ROTA_TIMEOUT=" + strconv.FormatFloat(c.Timeout.Seconds(), 'f', -1, 64)},
	})
	r.trace.Received = escape(slices.Concat(result.Stdout, result.Stderr), maxHead)
	r.trace.ReceivedSize = len(result.Stdout) + len(result.Stderr)
	switch {
	case !result.Started:
		done("not started")
	case result.Code < 0:
		done("killed")
	default:
		done("exit " + strconv.Itoa(result.Code))
	}
	late := errors.Is(err, context.DeadlineExceeded)
	switch {
	case r.parent.Err() != nil:
		return unknown(rota.ClassCancelled, "cancelled")
	case !result.Started && late:
		return unknown(rota.ClassResource, "command: not started within %v: too many others are running", c.Timeout)
	case !result.Started && err != nil:
		return lacking("command: %v", err)
	case late && result.Took < c.Timeout*9/10:
		return unknown(rota.ClassResource, "command: it had to wait for others, and had %v of its %v", result.Took, c.Timeout)
	case late:
		return down(rota.ClassTimeout, "command: not done within %v%s", c.Timeout, execText(result))
	case err != nil:
		return r.unclear(down(rota.ClassExit, "command: %v", err))
	}
	text := fmt.Sprintf("exit %d%s", result.Code, execText(result))
	switch result.Code {
	case execOK, execWarning:
		return up("%s", text)
	case execCritical:
		return down(rota.ClassExit, "%s", text)
	case execUnknown:
		return r.unclear(down(rota.ClassExit, "%s", text))
	}
	return r.unclear(down(rota.ClassExit, "%s; want 0, 1, 2 or 3", text))
}

// execText is what a command says in its first line, without what it measured, which stands behind a bar; what it says on stderr when it says
// nothing else.
func execText(result ExecResult) string {
	for _, out := range [][]byte{result.Stdout, result.Stderr} {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		line, _, _ = strings.Cut(line, "|")
		if line = strings.TrimSpace(line); line != "" {
			return ": " + line
		}
	}
	return ""
}
