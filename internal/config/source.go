package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Bounds of what is read.
const (
	maxConfig  = 16 << 20 // bytes of configuration, all included files together
	maxSecret  = 64 << 10 // bytes of one secret file
	maxZone    = 16 << 20 // bytes of one zone file
	maxInclude = 1000     // files
	maxDepth   = 100      // levels of nesting
	maxAliased = 500_000  // values that aliases bring
)

// filesystem is where files are read. read refuses what is not a regular file and more than limit bytes, and never blocks on
// a pipe; mode says who may read the file.
type filesystem interface {
	read(path string, limit int) (text []byte, mode fs.FileMode, err error)
	glob(pattern string) ([]string, error)
}

// Who may read a file, as bits of its mode.
const (
	forAll    fs.FileMode = 0o004 // everybody on the machine
	forOthers fs.FileMode = 0o077 // anybody beside its owner, or write it
)

// machine is the filesystem of the machine.
type machine struct{}

func (machine) read(path string, limit int) ([]byte, fs.FileMode, error) {
	// Without O_NONBLOCK, opening a named pipe waits for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, plainPathError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, plainPathError(err)
	}
	switch {
	case info.IsDir():
		return nil, 0, errors.New("is a directory; name a file, which may hold include: [DIRECTORY/*.yaml]")
	case !info.Mode().IsRegular():
		return nil, 0, fmt.Errorf("is no regular file (%s)", info.Mode().Type())
	case info.Size() > int64(limit):
		return nil, 0, tooLarge(limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, 0, plainPathError(err)
	}
	if len(text) > limit {
		return nil, 0, tooLarge(limit)
	}
	return text, info.Mode().Perm(), nil
}

func (machine) glob(pattern string) ([]string, error) { return filepath.Glob(pattern) }

func tooLarge(limit int) error {
	if limit < 1<<20 {
		return fmt.Errorf("is larger than %d KiB, the limit", limit>>10)
	}
	return fmt.Errorf("is larger than %d MiB, the limit", limit>>20)
}

// plainPathError drops operation and path, which the problem names already, and says what to do.
func plainPathError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file")
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not be read by this user (uid %d)", os.Getuid())
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// source is one file of configuration and its lines.
type source struct {
	name  string
	text  string
	lines []int // offsets at which lines start

	// Where position was asked for last: it is asked in order, and a file may be one line of megabytes.
	lastOffset, lastLine, lastColumn int
}

func newSource(name, text string) *source {
	s := &source{name: name, text: text, lines: []int{0}}
	for i := 0; i < len(text); i++ {
		if text[i] == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

// line returns line n, from 1, without its end; "" when there is none.
func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	from, to := s.lines[n-1], len(s.text)
	if n < len(s.lines) {
		to = s.lines[n] - 1
	}
	return strings.TrimSuffix(s.text[from:to], "\r")
}

// position returns line and column of a byte offset.
func (s *source) position(offset int) (line, column int) {
	offset = min(max(offset, 0), len(s.text))
	i, found := slices.BinarySearch(s.lines, offset)
	if !found {
		i--
	}
	from, column := s.lines[i], 1
	if s.lastLine == i+1 && s.lastOffset <= offset {
		from, column = s.lastOffset, s.lastColumn
	}
	column += utf8.RuneCountInString(s.text[from:offset])
	s.lastOffset, s.lastLine, s.lastColumn = offset, i+1, column
	return i + 1, column
}

// place is where something stands.
type place struct {
	src          *source
	line, column int
	width        int // characters; 0: as far as the quotes go
}

// maxLine bounds the lines that are shown, in bytes.
const maxLine = 4096

func (p place) String() string {
	if p.src == nil {
		return "?"
	}
	return fmt.Sprintf("%s:%d:%d", p.src.name, p.line, p.column)
}

// problem makes a Problem that shows the place.
func (p place) problem(message, hint string) Problem {
	q := Problem{Message: message, Hint: hint}
	if p.src != nil {
		q.File, q.Line, q.Column, q.Width = p.src.name, p.line, p.column, max(1, p.width)
		if line := p.src.line(p.line); len(line) <= maxLine {
			if p.width == 0 {
				q.Width = quotedWidth([]rune(line), p.column)
			}
			q.Source, q.caret = masked(line, p.column, mask)
		}
		if line := p.src.line(p.line - 1); len(line) <= maxLine {
			q.Before = mask(line)
		}
	}
	return q
}

// quotedWidth returns how many characters the quoted text at column takes on its line.
func quotedWidth(line []rune, column int) int {
	if column < 1 || column > len(line) {
		return 1
	}
	rest := line[column-1:]
	q := rest[0]
	if q != '"' && q != '\'' {
		return 1
	}
	for i := 1; i < len(rest); i++ {
		switch {
		case q == '"' && rest[i] == '\\':
			i++
		case rest[i] == q && q == '\'' && i+1 < len(rest) && rest[i+1] == q:
			i++
		case rest[i] == q:
			return i + 1
		}
	}
	return len(rest)
}

// loader reads files and gathers problems.
type loader struct {
	o        Options
	files    []string // in the order of reading
	sources  Sources
	budget   int // bytes of configuration left
	aliased  int // values that aliases may still bring
	included int
	stack    []string // files being read, for loops
	problems []Problem
	warnings []Problem
	said     map[Problem]bool
	hush     []string // parts of secrets that stand in the configuration
	more     int
}

func newLoader(o Options) *loader {
	return &loader{
		o: o.withDefaults(), budget: maxConfig, aliased: maxAliased, said: map[Problem]bool{},
		sources: Sources{digests: map[string][sha256.Size]byte{}, globs: map[string][]string{}},
	}
}

func (l *loader) problem(p Problem) {
	if l.said[p] {
		return
	}
	if len(l.problems) >= maxProblems {
		l.more++
		return
	}
	l.said[p] = true
	l.problems = append(l.problems, p)
}

func (l *loader) warning(p Problem) {
	if len(l.warnings) < maxProblems && !l.said[p] {
		l.said[p] = true
		l.warnings = append(l.warnings, p)
	}
}

// fail notes an error at a place.
func (l *loader) fail(at place, hint, format string, args ...any) {
	l.problem(at.problem(fmt.Sprintf(format, args...), hint))
}

// warn notes a warning at a place.
func (l *loader) warn(at place, hint, format string, args ...any) {
	l.warning(at.problem(fmt.Sprintf(format, args...), hint))
}

// failed returns all problems in the order of the files and lines, or nil.
func (l *loader) failed() error {
	if len(l.problems) == 0 {
		return nil
	}
	return &Errors{Problems: l.sorted(l.problems), More: l.more}
}

// sorted returns problems by file, in the order of reading, line and column.
func (l *loader) sorted(ps []Problem) []Problem {
	rank := make(map[string]int, len(l.files))
	for i, f := range l.files {
		if _, ok := rank[f]; !ok {
			rank[f] = i
		}
	}
	ps = slices.Clone(ps)
	for i := range ps {
		for _, part := range l.hush {
			hush := func(s string) string { return strings.ReplaceAll(s, part, hidden) }
			ps[i].Source, ps[i].caret = masked(ps[i].Source, ps[i].caret, hush)
			for _, t := range []*string{&ps[i].Before, &ps[i].Message, &ps[i].Hint} {
				*t = hush(*t)
			}
		}
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.File != b.File {
			if d := rank[a.File] - rank[b.File]; d != 0 {
				return d
			}
			return strings.Compare(a.File, b.File)
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return ps
}

// saw remembers what a file held.
func (l *loader) saw(path string, text []byte) {
	if !slices.Contains(l.files, path) {
		l.files = append(l.files, path)
	}
	l.sources.digests[path] = sha256.Sum256(text)
}

// read reads a file within limit.
func (l *loader) read(path string, limit int) ([]byte, error) {
	text, _, err := l.open(path, limit)
	return text, err
}

func (l *loader) open(path string, limit int) ([]byte, fs.FileMode, error) {
	text, mode, err := l.o.filesystem.read(path, limit)
	if err != nil {
		// The digest of an unreadable file is that of its error: Watch sees it come.
		l.saw(path, []byte("error: "+err.Error()))
		return nil, 0, err
	}
	l.saw(path, text)
	return text, mode, nil
}

// clean checks the bytes of a file and returns its text: UTF-8, without byte order mark and without characters that have no
// place in a configuration. The first fault is noted and ends the reading.
func (l *loader) clean(name string, text []byte) (*source, bool) {
	whole := func(format string, args ...any) (*source, bool) {
		l.problem(Problem{File: name, Message: fmt.Sprintf(format, args...)})
		return nil, false
	}
	if len(text) > l.budget {
		return whole("configuration of more than %d MiB in all files together is not read", maxConfig>>20)
	}
	l.budget -= len(text)
	s := string(text)
	if strings.HasPrefix(s, "\xff\xfe") || strings.HasPrefix(s, "\xfe\xff") {
		return whole("is UTF-16; save it as UTF-8")
	}
	s = strings.TrimPrefix(s, "\ufeff")
	src := newSource(name, s)
	for i, r := range s {
		bad := ""
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd"):
			bad = fmt.Sprintf("byte 0x%02x is not UTF-8", s[i])
		case r == 0:
			bad = "NUL byte"
		case r == '\r' && !strings.HasPrefix(s[i:], "\r\n"):
			bad = "carriage return without a line feed"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7f, r >= 0x80 && r < 0xa0:
			bad = fmt.Sprintf("control character U+%04X", r)
		case r == 0xfeff:
			bad = "byte order mark inside the text"
		}
		if bad != "" {
			line, column := src.position(i)
			l.fail(place{src, line, column, 1}, "is this a text file?", "%s", bad)
			return nil, false
		}
	}
	return src, true
}

// within resolves a path that stands in the file of src.
func within(src *source, path string) string {
	if filepath.IsAbs(path) || src == nil {
		return filepath.Clean(path)
	}
	return filepath.Join(filepath.Dir(src.name), path)
}
