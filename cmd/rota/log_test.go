package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// token is a secret that redacts itself, as those of the configuration do.
type token string

func (token) LogValue() slog.Value { return slog.StringValue("[redacted]") }

type jotted struct {
	message  string
	priority journal.Priority
	vars     map[string]string
}

// loggers runs a test over every format. The function gets a logger and what was written so far, all fields of the journal
// included.
func loggers(t *testing.T, test func(t *testing.T, log *slog.Logger, written func() string)) {
	for _, format := range []string{"terminal", "json"} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			log, out, err := newLogger(slog.LevelDebug, format, "", &b)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			test(t, log, b.String)
		})
	}
	t.Run("file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rota.log")
		log, out, err := newLogger(slog.LevelDebug, "", path, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		test(t, log, func() string { return read(t, path) })
	})
	t.Run("colour", func(t *testing.T) {
		terminal, shown := pty(t)
		t.Setenv("NO_COLOR", "")
		t.Setenv("TERM", "xterm")
		log, out, err := newLogger(slog.LevelDebug, "", "", terminal)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		test(t, log, func() string {
			// tint's own colours are not what was logged.
			return colours.Replace(shown())
		})
	})
	t.Run("journald", func(t *testing.T) {
		h, sent := fakeJournal(nil)
		test(t, slog.New(cleanHandler{h}), func() string {
			var b strings.Builder
			for _, j := range *sent {
				fmt.Fprintln(&b, j.message)
				for k, v := range j.vars {
					fmt.Fprintf(&b, "%s=%s\n", k, v)
				}
			}
			return b.String()
		})
	})
}

var colours = strings.NewReplacer("\x1b[0m", "", "\x1b[2m", "", "\x1b[22m", "", "\x1b[92m", "", "\x1b[93m", "", "\x1b[91m", "",
	"\x1b[2;91m", "", "\x1b[91;22m", "", "\r\n", "\n")

func fakeJournal(fail error) (*journalHandler, *[]jotted) {
	var sent []jotted
	var b bytes.Buffer
	h := &journalHandler{level: slog.LevelDebug, fallback: slog.NewJSONHandler(&b, nil)}
	h.send = func(message string, p journal.Priority, vars map[string]string) error {
		sent = append(sent, jotted{message, p, vars})
		return fail
	}
	return h, &sent
}

// pty opens a terminal and returns its application side and what was shown on it.
func pty(t *testing.T) (*os.File, func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return slave, func() string {
		buf := make([]byte, 64<<10)
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What comes from the other side (a certificate's name, a banner, a status line) cannot begin a line, move a cursor or turn text
// round, wherever in a record it stands.
func TestLogInjection(t *testing.T) {
	const evil = "x\nlevel=ERROR msg=\"forged\"\r\x1b[2Ja\x07\x00\x7f\u009b31m\u2028\u202egnp\u2066\xff\\x1b[2J\\end"
	loggers(t, func(t *testing.T, log *slog.Logger, written func() string) {
		log.With("with", evil).WithGroup("group").Warn(evil,
			"string", evil,
			evil, "key",
			"error", errors.New(evil),
			"list", []string{evil},
			"map", map[string]string{evil: evil},
			"text", netip.MustParseAddr("fe80::1").WithZone(evil),
			slog.Group("inner", "a", evil),
		)
		text := written()
		if !strings.Contains(text, "end") {
			t.Fatalf("nothing was written: %q", text)
		}
		for i, r := range text {
			if r != '\n' && (unicode.IsControl(r) || r == '\u2028' || r == '\u202e' || r == '\u2066') || r == unicode.ReplacementChar {
				t.Errorf("%q at %d of %q", r, i, text)
			}
		}
		if strings.Contains(text, "\nlevel=") || strings.Count(text, "\n") > 1 && !strings.Contains(text, "SYSLOG_IDENTIFIER") {
			t.Errorf("more than one line: %q", text)
		}
	})
}

func TestLogSecretsStayHidden(t *testing.T) {
	const secret = token("c2VjcmV0")
	loggers(t, func(t *testing.T, log *slog.Logger, written func() string) {
		log.With("with", secret).WithGroup("group").Error("sent", "key", secret, slog.Group("inner", "key", secret))
		text := written()
		if strings.Contains(text, string(secret)) {
			t.Errorf("the secret is in %q", text)
		}
		if n := strings.Count(text, "[redacted]"); n < 3 {
			t.Errorf("%d redactions, want at least 3, in %q", n, text)
		}
	})
}

func TestLogJSONKeepsShapes(t *testing.T) {
	var b bytes.Buffer
	log, out, err := newLogger(slog.LevelInfo, "auto", "", &b)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log.Debug("not shown")
	log.Info("changed", "took", 3*time.Second, "n", 7, "ok", true, "list", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, "nil", nil,
		"address", netip.MustParseAddr("192.0.2.2"), "broken", (*netip.Prefix)(nil))
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v in %q", err, b.String())
	}
	delete(got, "time")
	broken, _ := got["broken"].(string)
	if !strings.HasPrefix(broken, "!PANIC") {
		t.Errorf("a nil pointer with a text form: %q", broken)
	}
	delete(got, "broken")
	want := map[string]any{
		"level": "INFO", "msg": "changed", "took": "3s", "n": 7.0, "ok": true, "list": []any{"192.0.2.1"}, "nil": nil, "address": "192.0.2.2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLogJournal(t *testing.T) {
	h, sent := fakeJournal(nil)
	log := slog.New(cleanHandler{h})
	log.With("service", "www.example.org").WithGroup("dns").Error("not published", "rcode", "REFUSED", "tries", 3,
		"_PID", "1", "message", "x", slog.Group("zone", "name", "example.org"), "why", "wrong key")
	want := []jotted{{
		message: `not published service=www.example.org dns_rcode=REFUSED dns_tries=3 dns__pid=1 dns_message=x dns_zone_name=example.org ` +
			`dns_why="wrong key"`,
		priority: journal.PriErr,
		vars: map[string]string{
			"SYSLOG_IDENTIFIER": "rota", "ROTA_SERVICE": "www.example.org", "ROTA_DNS_RCODE": "REFUSED", "ROTA_DNS_TRIES": "3",
			"ROTA_DNS__PID": "1", "ROTA_DNS_MESSAGE": "x", "ROTA_DNS_ZONE_NAME": "example.org", "ROTA_DNS_WHY": "wrong key",
		},
	}}
	if d := cmp.Diff(want, *sent, cmp.AllowUnexported(jotted{})); d != "" {
		t.Error(d)
	}

	for level, want := range map[slog.Level]journal.Priority{
		slog.LevelDebug: journal.PriDebug, slog.LevelInfo: journal.PriInfo, slog.LevelWarn: journal.PriWarning, slog.LevelError: journal.PriErr,
	} {
		if got := priority(level); got != want {
			t.Errorf("%v has priority %v, want %v", level, got, want)
		}
	}
	if got := fieldName(strings.Repeat("é", 200)); len(got) != 64 {
		t.Errorf("a field name of %d bytes", len(got))
	}
}

// A journal that does not answer loses no line.
func TestLogJournalFallsBack(t *testing.T) {
	var b bytes.Buffer
	h, _ := fakeJournal(errors.New("no such socket"))
	h.fallback = slog.NewJSONHandler(&b, nil)
	slog.New(cleanHandler{h}).With("a", 1).WithGroup("g").Info("kept", "b", 2)
	if !strings.Contains(b.String(), `"msg":"kept","a":1,"g":{"b":2}`) {
		t.Errorf("the fallback got %q", b.String())
	}
}

func TestLogFormats(t *testing.T) {
	terminal, _ := pty(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := stat.Sys().(*syscall.Stat_t)
	stream := fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
	for _, c := range []struct {
		name, file, stream, want string
		w                        io.Writer
	}{
		{name: "a terminal", w: terminal, want: "terminal"},
		{name: "a terminal and a file", w: terminal, file: "rota.log", want: "json"},
		{name: "a pipe", w: io.Discard, want: "json"},
		{name: "a file", w: file, want: "json"},
		{name: "the journal's stream", w: file, stream: stream, want: "journald"},
		{name: "the journal's stream is elsewhere", w: file, stream: "1:1", want: "json"},
		{name: "a terminal below a unit", w: terminal, stream: stream, want: "terminal"},
	} {
		t.Setenv("JOURNAL_STREAM", c.stream)
		if got := autoFormat(c.file, c.w); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if _, _, err := newLogger(slog.LevelInfo, "xml", "", io.Discard); err == nil || !strings.Contains(err.Error(), "want auto") {
		t.Errorf("format xml: %v", err)
	}
}

func TestLogColour(t *testing.T) {
	for _, c := range []struct {
		noColor, term string
		want          bool
	}{
		{"", "xterm", true},
		{"1", "xterm", false},
		{"", "dumb", false},
	} {
		terminal, shown := pty(t)
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		log, out, err := newLogger(slog.LevelInfo, "auto", "", terminal)
		if err != nil {
			t.Fatal(err)
		}
		log.Error("down", "service", "www")
		out.Close()
		if text := shown(); strings.Contains(text, "\x1b[") != c.want || !strings.Contains(text, "down") {
			t.Errorf("NO_COLOR=%s TERM=%s: %q", c.noColor, c.term, text)
		}
	}
}

func TestLogFileIsReopened(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rota.log")
	var stderr bytes.Buffer
	log, out, err := newLogger(slog.LevelInfo, "", path, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	log.Info("two")
	if err := out.Reopen(); err != nil {
		t.Fatal(err)
	}
	log.Info("three")
	old, now := read(t, path+".1"), read(t, path)
	if strings.Count(old, "\n") != 2 || !strings.Contains(old, "two") || strings.Count(now, "\n") != 1 || !strings.Contains(now, "three") {
		t.Errorf("moved %q, new %q", old, now)
	}

	// When the file cannot be opened again the log goes on in the open one.
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir + ".moved") })
	if err := out.Reopen(); err == nil || !strings.Contains(err.Error(), "log.file") {
		t.Errorf("reopening without the directory: %v", err)
	}
	log.Info("four")
	if text := read(t, filepath.Join(dir+".moved", "rota.log")); !strings.Contains(text, "four") {
		t.Errorf("the open file has %q", text)
	}

	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	log.Info("five")
	if !strings.Contains(stderr.String(), "five") {
		t.Errorf("after Close the writer has %q", stderr.String())
	}
	if err := out.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if _, _, err := newLogger(slog.LevelInfo, "", filepath.Join(dir, "no", "rota.log"), io.Discard); err == nil {
		t.Error("a log file in a directory that is not there was accepted")
	}
}

// A full disk loses no line: it goes to the writer.
func TestLogDiskFull(t *testing.T) {
	var stderr bytes.Buffer
	log, out, err := newLogger(slog.LevelInfo, "", "/dev/full", &stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log.Info("kept")
	if !strings.Contains(stderr.String(), `"msg":"kept"`) {
		t.Errorf("the writer has %q", stderr.String())
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("a\nb\x1b[0m\xff\u202e\ufffd")
	f.Fuzz(func(t *testing.T, s string) {
		p := logSafe(s)
		if strings.ContainsFunc(p, unsafeInLog) {
			t.Errorf("%q became %q", s, p)
		}
		if strings.Contains(p, `\x1b`) {
			t.Errorf("%q became %q, which tint would turn into an escape character", s, p)
		}
		if logSafe(p) != p {
			t.Errorf("%q is not stable", p)
		}
	})
}
