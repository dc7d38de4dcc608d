package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/config"
)

func (a *app) validateCommand() *cobra.Command {
	var strict, noSecrets bool
	c := &cobra.Command{
		Use: "validate [FILE]", Short: "Find every error of a configuration", Args: cobra.MaximumNArgs(1),
		Long: "Read a configuration as `rota run` would and show every error with its line, all at once, and what each publisher's DNS\n" +
			"can promise. Nothing is started, and nobody is asked.",
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings too")
	c.Flags().BoolVar(&noSecrets, "no-secrets", false, "do not read secrets: for a file of another machine")
	c.RunE = func(_ *cobra.Command, args []string) error {
		path := a.configPath()
		if len(args) == 1 {
			path = args[0]
		}
		cfg, err := config.Load(path, config.Options{NoSecrets: noSecrets})
		if err != nil {
			return err
		}
		for _, w := range cfg.Warnings {
			if _, err := fmt.Fprintln(a.err, printable("warning: "+w.Error())); err != nil {
				return err
			}
		}
		if strict && len(cfg.Warnings) > 0 {
			return fmt.Errorf("%s has %s", path, count(len(cfg.Warnings), "warning"))
		}
		var kept []string
		for _, p := range cfg.Publishers {
			backend, err := backendOf(toLook(p))
			switch {
			case err == nil:
				dry := ""
				if p.DryRun {
					dry = ", dry run"
				}
				kept = append(kept, fmt.Sprintf("publisher %s (%s%s): %s\n", p.Name, p.Type, dry, promises(backend.Capabilities())))
			case !noSecrets: // on another machine more than secrets may be missing
				return fmt.Errorf("%s: publish.%s: %w", path, p.Name, err)
			}
		}
		endpoints := 0
		for _, s := range cfg.Spec.Services {
			endpoints += len(s.Endpoints)
		}
		_, err = fmt.Fprintf(a.out, "%s is fine: %s, %s\n%s", printable(path), count(len(cfg.Spec.Services), "service"), count(endpoints, "endpoint"),
			printable(strings.Join(kept, "")))
		return err
	}
	return c
}

// logProblems logs why a configuration cannot be used: a record for each problem with its place, or one record for an error of
// another kind. Lines of the configuration are not logged.
func logProblems(log *slog.Logger, message string, err error, args ...any) {
	wrong, ok := errors.AsType[*config.Errors](err)
	if !ok {
		log.Error(message, append(args[:len(args):len(args)], "error", err)...)
		return
	}
	for _, p := range wrong.Problems {
		about := append(args[:len(args):len(args)], "file", p.File)
		if p.Line > 0 {
			about = append(about, "line", p.Line, "column", p.Column)
		}
		about = append(about, "message", p.Message)
		if p.Hint != "" {
			about = append(about, "hint", p.Hint)
		}
		log.Error(message, about...)
	}
	if wrong.More > 0 {
		log.Error(message, append(args[:len(args):len(args)], "more", wrong.More)...)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config show", Short: "Show the configuration", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("config what? `rota config show --effective`") },
	}
	var effective, running bool
	show := &cobra.Command{
		Use: "show [FILE]", Short: "Show the configuration, as written or with all that it means", Args: cobra.MaximumNArgs(1),
		Long: "Show the configuration file. With --effective every shorthand is expanded and every default written out, secrets hidden;\n" +
			"with --running it is that of the running rota.",
	}
	show.Flags().BoolVar(&effective, "effective", false, "expand shorthands and defaults; hide secrets")
	show.Flags().BoolVar(&running, "running", false, "ask the running rota")
	show.RunE = func(cmd *cobra.Command, args []string) error {
		if running {
			if len(args) > 0 {
				return usagef("--running takes no FILE")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			b, err := cl.raw(cmd.Context(), "/api/v1/config", nil)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, printable(string(b)))
			return err
		}
		path := a.configPath()
		if len(args) == 1 {
			path = args[0]
		}
		if !effective {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			_, err = a.out.Write(b)
			return err
		}
		cfg, err := config.Load(path, config.Options{NoSecrets: true})
		if err != nil {
			return err
		}
		_, err = a.out.Write(cfg.Effective())
		return err
	}
	c.AddCommand(show)
	return c
}

func (a *app) fmtCommand() *cobra.Command {
	var diff, write bool
	c := &cobra.Command{
		Use: "fmt [FILE]", Short: "Lay out a configuration in the usual way", Args: cobra.MaximumNArgs(1),
		Long: "Print a configuration in the usual layout: two spaces a level, one after a colon or comma, none inside brackets. Comments,\n" +
			"quotes, line breaks and the order of keys are kept. --write puts it in place of the file; --diff shows what would\n" +
			"change and ends with 1 when something would.",
	}
	c.Flags().BoolVar(&diff, "diff", false, "show the lines that would change")
	c.Flags().BoolVarP(&write, "write", "w", false, "write the file")
	c.MarkFlagsMutuallyExclusive("diff", "write")
	c.RunE = func(_ *cobra.Command, args []string) error {
		path := a.configPath()
		if len(args) == 1 {
			path = args[0]
		}
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text, err := config.Format(path, old)
		if err != nil {
			return err
		}
		switch {
		case diff:
			d := lineDiff(string(old), string(text))
			if d == "" {
				return nil
			}
			if _, err := io.WriteString(a.out, printable("--- "+path+"\n+++ "+path+" (formatted)\n"+d)); err != nil {
				return err
			}
			return &coded{code: exitFailed}
		case write:
			if bytes.Equal(old, text) {
				return nil
			}
			return replaceFile(path, text)
		}
		_, err = a.out.Write(text)
		return err
	}
	return c
}

// replaceFile writes a file whole or not at all, with the permissions it had. A link stays a link: what it names is replaced.
func replaceFile(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".rota-fmt-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // nothing is left of it after the rename
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(info.Mode().Perm()), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lineDiff lists the lines that only one of two texts has, in order, by their longest common subsequence.
func lineDiff(a, b string) string {
	x, y := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	pre := 0
	for pre < len(x) && pre < len(y) && x[pre] == y[pre] {
		pre++
	}
	x, y = x[pre:], y[pre:]
	for len(x) > 0 && len(y) > 0 && x[len(x)-1] == y[len(y)-1] {
		x, y = x[:len(x)-1], y[:len(y)-1]
	}
	var out strings.Builder
	put := func(sign, line string) {
		if line != "" {
			out.WriteString(sign + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	if len(x)*len(y) > 4<<20 { // too long to compare line by line
		for _, l := range x {
			put("-", l)
		}
		for _, l := range y {
			put("+", l)
		}
		return out.String()
	}
	lcs := make([][]int, len(x)+1)
	for i := range lcs {
		lcs[i] = make([]int, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				lcs[i][j] = lcs[i+1][j+1] + 1
			} else {
				lcs[i][j] = max(lcs[i+1][j], lcs[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && lcs[i+1][j] >= lcs[i][j+1]:
			put("-", x[i])
			i++
		default:
			put("+", y[j])
			j++
		}
	}
	return out.String()
}

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration", Args: cobra.NoArgs,
		Long: "Print the JSON Schema of the configuration, for editors: # yaml-language-server: $schema=rota.schema.json",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(config.Schema()))
			return err
		},
	}
}
