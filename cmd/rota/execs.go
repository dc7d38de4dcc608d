package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/process"
)

// Commands of exec checks: so many run at once, what does not end when asked to is killed after so long, and so much is kept of what
// each says on stdout and on stderr.
const (
	execsAtOnce = 32
	execGrace   = 100 * time.Millisecond
	execKeep    = 4 << 10
)

// execs runs the commands of exec checks that find has nothing against; it returns the path of the program.
func execs(find func(argv []string) (string, error)) func(context.Context, probe.ExecCommand) (probe.ExecResult, error) {
	r := process.New(execsAtOnce, execGrace)
	return func(ctx context.Context, c probe.ExecCommand) (probe.ExecResult, error) {
		program, err := find(c.Check)
		if err != nil {
			return probe.ExecResult{Code: -1}, err
		}
		argv := append([]string{program}, c.Argv[1:]...)
		out, err := r.Run(ctx, process.Command{Argv: argv, Env: c.Env, Keep: execKeep, Timeout: c.Limit})
		return probe.ExecResult{
			Started: out.Started, Code: out.Code, Stdout: out.Stdout, Stderr: out.Stderr[:min(len(out.Stderr), execKeep)], Took: out.Took,
		}, err
	}
}

// ownCommands finds the commands of the checks in a node's own file, word for word: what comes to it by the cluster may be another's.
func ownCommands(cfg func() *config.Config) func([]string) (string, error) {
	return func(argv []string) (string, error) {
		if !slices.ContainsFunc(cfg().Commands, func(own []string) bool { return slices.Equal(own, argv) }) {
			return "", fmt.Errorf("%s is not run here: write a check with this command, word for word, into this node's own file", argv[0])
		}
		found, err := commandOf(argv)
		if err != nil {
			return "", err
		}
		return found[0], nil
	}
}

// execDir is a directory whose programs an agent runs for exec checks, with whatever arguments the nodes say. Empty: it runs none.
type execDir string

// find returns the path of a program of the directory, or says why it is not run. Nobody but root and the agent's own user may have a say in
// what the program is: neither it, nor the directory, nor one above may be another's or be written by others, and a symbolic link is not
// followed.
func (d execDir) find(argv []string) (string, error) {
	if d == "" {
		return "", fmt.Errorf("%s is not run here: start the agent with --exec-dir and the directory of the programs that it may run", argv[0])
	}
	path := argv[0]
	if !filepath.IsAbs(path) {
		path = filepath.Join(string(d), path)
	}
	if filepath.Dir(path) != string(d) {
		return "", fmt.Errorf("%s is not run here: it does not lie in %s (--exec-dir)", argv[0], string(d))
	}
	if err := d.check(); err != nil {
		return "", err
	}
	return path, ours(path, 0)
}

// check says what is wrong with the directory.
func (d execDir) check() error {
	if !filepath.IsAbs(string(d)) || filepath.Clean(string(d)) != string(d) || d == "/" {
		return fmt.Errorf("%s: want the whole path of a directory, such as /etc/rota/checks", string(d))
	}
	if err := ours(string(d), fs.ModeDir); err != nil {
		return err
	}
	for above := filepath.Dir(string(d)); ; above = filepath.Dir(above) {
		// Who may write into a directory with the sticky bit, such as /tmp, can take away only what is his own.
		if err := ours(above, fs.ModeDir|fs.ModeSticky); err != nil {
			return err
		}
		if above == "/" {
			return nil
		}
	}
}

// ours says why a file is not trusted: it is not of the type of mode, belongs to another user, or may be written by others, except where it
// has the sticky bit and mode has it too.
func ours(path string, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	switch is := info.Mode(); {
	case is.Type() != mode.Type():
		return fmt.Errorf("%s is no directory or program (%v), and symbolic links are not followed", path, is)
	case uid != 0 && uid != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d: only root or the user who runs this may own it", path, uid)
	case is&0o022 != 0 && is&mode&fs.ModeSticky == 0:
		return fmt.Errorf("%s may be written by others (%v): chmod go-w %s", path, is, path)
	}
	return nil
}
