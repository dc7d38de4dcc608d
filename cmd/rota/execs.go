package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// execs runs the commands of exec checks that allowed has nothing against.
func execs(allowed func([]string) error) func(context.Context, probe.ExecCommand) (probe.ExecResult, error) {
	r := process.New(execsAtOnce, execGrace)
	return func(ctx context.Context, c probe.ExecCommand) (probe.ExecResult, error) {
		if err := allowed(c.Check); err != nil {
			return probe.ExecResult{Code: -1}, err
		}
		out, err := r.Run(ctx, process.Command{Argv: c.Argv, Env: c.Env, Keep: execKeep, Timeout: c.Limit})
		return probe.ExecResult{
			Started: out.Started, Code: out.Code, Stdout: out.Stdout, Stderr: out.Stderr[:min(len(out.Stderr), execKeep)], Took: out.Took,
		}, err
	}
}

// named allows the commands of the exec checks in a node's own file, word for word: what comes to it by the cluster may be another's.
type named struct {
	cfg func() *config.Config // the one in force

	mu    sync.Mutex // guards what follows
	of    *config.Config
	argvs map[string]bool // by their words, with NUL between them
}

func (n *named) allowed(argv []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cfg := n.cfg(); cfg != n.of {
		n.of, n.argvs = cfg, map[string]bool{}
		for _, s := range cfg.Spec.Services {
			for _, e := range s.Endpoints {
				for _, u := range e.Checks {
					if len(u.Check.Command) > 0 {
						n.argvs[strings.Join(u.Check.Command, "\x00")] = true
					}
				}
			}
		}
	}
	if !n.argvs[strings.Join(argv, "\x00")] {
		return fmt.Errorf("%s is not run here: no check of this node's own file has this command with these words", argv[0])
	}
	return nil
}

// execDir is a directory whose programs an agent runs for exec checks, with whatever arguments the nodes say. Empty: it runs none.
type execDir string

// allowed says why a command is not run. Nobody but root and the agent's own user may have a say in what the program is: neither it, nor the
// directory, nor one above may be another's or be written by others, and a symbolic link is not followed.
func (d execDir) allowed(argv []string) error {
	if d == "" {
		return fmt.Errorf("%s is not run here: start the agent with --exec-dir and the directory of the programs that it may run", argv[0])
	}
	if filepath.Dir(argv[0]) != string(d) {
		return fmt.Errorf("%s is not run here: it does not lie in %s (--exec-dir)", argv[0], string(d))
	}
	if err := d.check(); err != nil {
		return err
	}
	return ours(argv[0], 0)
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
