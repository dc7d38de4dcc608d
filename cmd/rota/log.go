package main

import (
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"
)

// newLogger makes the logger of a process. The format is one of
//
//	auto      journald when w is the journal's stream, terminal when w is a terminal, json otherwise and in a file
//	terminal  one line for people, in colour when w is a terminal and NO_COLOR is not set
//	json      one JSON object a line
//	journald  the journal's own protocol; json on w when the journal's socket is not there
//
// An empty format is auto. When file is not empty the log is appended to it, and w gets only what the file does not take.
// In every format control characters are written as escapes, so that nothing that was logged can begin a line or move a
// cursor. The returned output must be closed; its Reopen follows a file that was moved away.
func newLogger(level slog.Level, format, file string, w io.Writer) (*slog.Logger, *logOutput, error) {
	out := &logOutput{w: w, path: file}
	if file != "" {
		if err := out.Reopen(); err != nil {
			return nil, nil, err
		}
	}
	if format == "" || format == "auto" {
		format = autoFormat(file, w)
	}
	var h slog.Handler
	switch format {
	case "terminal":
		h = tint.NewTextHandler(out, &tint.Options{Level: level, TimeFormat: "2006-01-02T15:04:05.000Z07:00", NoColor: !colour(file, w)})
	case "json":
		h = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})
	case "journald":
		h = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})
		if journal.Enabled() {
			h = &journalHandler{level: level, send: journal.Send, fallback: h}
		}
	default:
		out.Close()
		return nil, nil, fmt.Errorf("log format %q: want auto, terminal, json or journald", format)
	}
	return slog.New(cleanHandler{h}), out, nil
}

func autoFormat(file string, w io.Writer) string {
	switch {
	case file != "":
		return "json"
	case isJournal(w):
		return "journald"
	case isTerminal(w):
		return "terminal"
	}
	return "json"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// colour follows no-color.org: NO_COLOR counts when it is set to anything.
func colour(file string, w io.Writer) bool {
	return file == "" && isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isJournal reports whether w is the stream that systemd connected to the journal: $JOURNAL_STREAM holds its device and inode
// (systemd.exec(5)). The variable alone is not enough, since children inherit it whose stderr goes elsewhere.
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &stat); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// logOutput is where log lines go: a file that can be reopened, or a writer.
type logOutput struct {
	w    io.Writer
	path string // empty: w

	mu   sync.Mutex // guards what follows
	file *os.File
}

// Write appends a line. What the file does not take (a full disk) goes to the writer instead.
func (o *logOutput) Write(line []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		if n, err := o.file.Write(line); err == nil {
			return n, nil
		}
	}
	return o.w.Write(line)
}

// Reopen opens the file again by its name, for log rotation. When that fails the open file is kept and the error says so.
// Without a file it does nothing.
func (o *logOutput) Reopen() error {
	if o.path == "" {
		return nil
	}
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("log: %w; check log.file and the permissions of its directory", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		o.file.Close()
	}
	o.file = f
	return nil
}

// Close closes the file. Lines that come later go to the writer.
func (o *logOutput) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	o.file = nil
	return err
}

// cleanHandler makes every record printable before the next handler sees it.
type cleanHandler struct{ next slog.Handler }

func (h cleanHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h cleanHandler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, logSafe(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(cleanAttr(a))
		return true
	})
	return h.next.Handle(ctx, clean)
}

func (h cleanHandler) WithAttrs(as []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(as))
	for i, a := range as {
		clean[i] = cleanAttr(a)
	}
	return cleanHandler{h.next.WithAttrs(clean)}
}

func (h cleanHandler) WithGroup(name string) slog.Handler {
	return cleanHandler{h.next.WithGroup(logSafe(name))}
}

func cleanAttr(a slog.Attr) slog.Attr {
	v := a.Value.Resolve() // a value that redacts itself does so here, before any handler can look inside
	switch v.Kind() {
	case slog.KindString:
		v = slog.StringValue(logSafe(v.String()))
	case slog.KindGroup:
		group := make([]slog.Attr, len(v.Group()))
		for i, m := range v.Group() {
			group[i] = cleanAttr(m)
		}
		v = slog.GroupValue(group...)
	case slog.KindDuration: // with its unit in every format; JSON would have bare nanoseconds
		v = slog.StringValue(v.Duration().String())
	case slog.KindAny:
		v = slog.AnyValue(cleanAny(v.Any()))
	}
	return slog.Attr{Key: logSafe(a.Key), Value: v}
}

// cleanAny makes a value of any type printable: errors and what has a text form become that text, everything else becomes what
// it would be in JSON.
func cleanAny(v any) (clean any) {
	defer func() {
		if p := recover(); p != nil { // a nil pointer behind an interface; a log line must not end the process
			clean = logSafe(fmt.Sprintf("!PANIC: %v", p))
		}
	}()
	switch v := v.(type) {
	case nil:
		return nil
	case error:
		return logSafe(v.Error())
	case encoding.TextMarshaler:
		if text, err := v.MarshalText(); err == nil {
			return logSafe(string(text))
		}
	case fmt.Stringer:
		return logSafe(v.String())
	}
	text, err := json.Marshal(v)
	if err != nil {
		return logSafe(fmt.Sprintf("%T: %v", v, err))
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return logSafe(string(text))
	}
	return cleanTree(tree)
}

func cleanTree(v any) any {
	switch v := v.(type) {
	case string:
		return logSafe(v)
	case []any:
		for i := range v {
			v[i] = cleanTree(v[i])
		}
	case map[string]any:
		clean := make(map[string]any, len(v))
		for k, m := range v {
			clean[logSafe(k)] = cleanTree(m)
		}
		return clean
	}
	return v
}

// logSafe writes control characters, invalid UTF-8, line separators and what reverses the direction of text as escapes.
func logSafe(s string) string {
	// In colour tint turns the four characters \x1b of a quoted value into a real escape character, so they may not stand for one.
	s = strings.ReplaceAll(s, `\x1b`, `\u001b`)
	if !strings.ContainsFunc(s, unsafeInLog) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\uFFFD' && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == 0x1b:
			b.WriteString(`\u001b`)
		case unsafeInLog(r):
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unsafeInLog(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 ||
		r == '\uFFFD'
}

// journalHandler sends records to the journal with a field for each attribute: ROTA_ and the attribute's name in capitals, groups
// joined by _. `journalctl ROTA_SERVICE=www.example.org` finds by them.
type journalHandler struct {
	level    slog.Level
	send     func(message string, priority journal.Priority, vars map[string]string) error
	fallback slog.Handler // what the journal does not take
	prefix   string       // of the groups
	fields   []field
}

type field struct{ name, value string }

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	fields := slices.Clone(h.fields)
	r.Attrs(func(a slog.Attr) bool {
		fields = appendFields(fields, h.prefix, a)
		return true
	})
	vars := make(map[string]string, len(fields)+1)
	vars["SYSLOG_IDENTIFIER"] = "rota"
	var line strings.Builder
	line.WriteString(r.Message)
	for _, f := range fields {
		vars[f.name] = f.value
		fmt.Fprintf(&line, " %s=%s", strings.ToLower(strings.TrimPrefix(f.name, fieldPrefix)), quoted(f.value))
	}
	if err := h.send(line.String(), priority(r.Level), vars); err != nil {
		return h.fallback.Handle(ctx, r)
	}
	return nil
}

func (h *journalHandler) WithAttrs(as []slog.Attr) slog.Handler {
	next := *h
	next.fields = slices.Clone(h.fields)
	for _, a := range as {
		next.fields = appendFields(next.fields, h.prefix, a)
	}
	next.fallback = h.fallback.WithAttrs(as)
	return &next
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix = h.prefix + name + "_"
	next.fallback = h.fallback.WithGroup(name)
	return &next
}

// fieldPrefix keeps rota's fields apart from those that systemd knows: no attribute can pose as one of them.
const fieldPrefix = "ROTA_"

func appendFields(fields []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindGroup:
		if a.Key != "" {
			prefix += a.Key + "_"
		}
		for _, m := range v.Group() {
			fields = appendFields(fields, prefix, m)
		}
		return fields
	case slog.KindTime:
		return append(fields, field{fieldName(prefix + a.Key), v.Time().UTC().Format(time.RFC3339Nano)})
	case slog.KindAny:
		if s, ok := v.Any().(string); ok {
			return append(fields, field{fieldName(prefix + a.Key), s})
		}
		if text, err := json.Marshal(v.Any()); err == nil {
			return append(fields, field{fieldName(prefix + a.Key), string(text)})
		}
	}
	if a.Key == "" {
		return fields
	}
	return append(fields, field{fieldName(prefix + a.Key), v.String()})
}

// fieldName makes a name that the journal takes: capitals, digits and underscores, at most 64 of them.
func fieldName(s string) string {
	name := fieldPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
	return name[:min(len(name), 64)]
}

// quoted puts quotes round a value that would otherwise read as more than one word.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " =\"") {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
