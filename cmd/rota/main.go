// Command rota keeps DNS true to who is on duty. `rota run` is the service; the other verbs ask a rota that runs, through its API,
// or work on files. This package only wires: flags to values, values to the rooms under internal/, answers to text.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// Exit codes. Scripts depend on them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitFound    = 3 // --detailed-exitcode: plan found changes, status found something down
	exitHeld     = 4 // a safety limit held it
	exitNoLeader = 5 // no leader or no quorum
	exitDenied   = 6 // not allowed
)

// coded is an error with the exit code it ends the command with. Without text it is silent: the answer was printed already.
type coded struct {
	code int
	err  error
}

func (c *coded) Error() string {
	if c.err == nil {
		return ""
	}
	return c.err.Error()
}

func (c *coded) Unwrap() error { return c.err }

func usagef(format string, args ...any) error { return &coded{exitUsage, fmt.Errorf(format, args...)} }

// app is what the verbs share.
type app struct {
	out, err io.Writer
	getenv   func(string) string
	now      func() time.Time
	version  string

	config  string // --config
	addr    string // --addr
	dataDir string // --data-dir

	in   io.Reader // where a person answers questions; nil: nobody can be asked
	once onceFunc  // runs one probe; nil: this build cannot
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{out: os.Stdout, err: os.Stderr, getenv: os.Getenv, now: time.Now, version: version(), once: probeOnce}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		a.in = os.Stdin
	}
	os.Exit(a.main(ctx, os.Args[1:]))
}

// main runs one command line and returns its exit code.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitFailed
	var c *coded
	switch {
	case errors.As(err, &c):
		code = c.code
	case ctx.Err() != nil:
		return exitFailed
	}
	var wrong *config.Errors
	switch text := printable(err.Error()); {
	case text == "":
	case errors.As(err, &wrong): // begins with the file's name, as editors expect it
		_, _ = fmt.Fprintln(a.err, text)
	default:
		_, _ = fmt.Fprintln(a.err, "rota: "+text)
	}
	return code
}

// root makes the command tree anew, so that nothing is left over from an earlier command line.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "rota",
		Short: "Keep DNS true to who is on duty",
		Long: "rota checks endpoints, takes one verdict by majority, and makes the DNS say it:\n" +
			"in the name server you already have, or by answering itself.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w; see `%s --help`", err, c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.config, "config", "c", "", "configuration file (default /etc/rota/rota.yaml, else rota.yaml)")
	f.StringVar(&a.addr, "addr", "", "API of a running rota: unix:///PATH, http://HOST:PORT or https://HOST:PORT (env ROTA_ADDR);\n"+
		"its token is in the environment, as ROTA_TOKEN, or in the file that ROTA_TOKEN_FILE names")
	f.StringVar(&a.dataDir, "data-dir", "", "data directory of the rota to ask (default as configured)")
	for _, c := range a.commands() {
		root.AddCommand(c)
	}
	usageArgs(root)
	return root
}

// usageArgs makes wrong arguments an error of usage, and points at the help.
func usageArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				if len(args) > 0 && c.HasSubCommands() {
					err = fmt.Errorf("unknown command %q%s", args[0], suggestions(c, args[0]))
				}
				return usagef("%w; see `%s --help`", err, c.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageArgs(sub)
	}
}

func suggestions(c *cobra.Command, arg string) string {
	if c.SuggestionsMinimumDistance == 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if near := c.SuggestionsFor(arg); len(near) > 0 {
		return " (did you mean " + strings.Join(near, " or ") + "?)"
	}
	return ""
}

// commands lists the verbs.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.statusCommand(), a.getCommand(), a.explainCommand(), a.eventsCommand(),
		a.planCommand(), a.applyCommand(), a.recordsCommand(false), a.recordsCommand(true),
		a.importCommand(), a.releaseCommand(), a.refreshCommand(), a.freezeCommand(), a.thawCommand(),
		a.propagationCommand(), a.drainCommand(),
		a.overrideCommand("maint", "Take endpoints out while they are worked on", rota.ActionMaintenance),
		a.forceCommand(), a.readyCommand(), a.reportCommand(), a.registerCommand(), a.deregisterCommand(),
		a.runCommand(), a.agentCommand(), a.demoCommand(), a.clusterCommand(),
		a.checkCommand(), a.digCommand(), a.reloadCommand(), a.versionCommand(), a.openapiCommand(),
		a.validateCommand(), a.providerCommand(), a.configCommand(), a.fmtCommand(), a.schemaCommand(),
	}
}
