package config

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"

	"github.com/tailscale/hujson"
	"go.yaml.in/yaml/v4"
)

// Format returns text in the one layout: line feeds, no byte order mark, no blanks at line ends, two spaces a level, one blank line
// at most between others; one blank after a key's colon and after a comma of a list or map in brackets, none inside the brackets.
// Comments, quotes, flow and block style, and the order of keys stay. It refuses what cannot be parsed, with errors that call the
// text by name, and Format of its result changes nothing. JSON is laid out as hujson does.
func Format(name string, text []byte) ([]byte, error) {
	l := newLoader(Options{Env: func(string) (string, bool) { return "", true }, HostName: "-", filesystem: nowhere{}})
	src, ok := l.clean(name, text)
	if !ok {
		return nil, l.failed()
	}
	if s := strings.TrimSpace(src.text); strings.HasPrefix(s, "{") || strings.HasPrefix(s, "//") || strings.HasPrefix(s, "/*") {
		if tooDeep(src.text) < 0 {
			if out, err := hujson.Format([]byte(src.text)); err == nil {
				// A second pass settles what the first moved.
				return hujson.Format(out)
			}
		}
	}
	before := l.parsed(src)
	if before == nil {
		return nil, l.failed()
	}
	out := src.text
	for range 4 {
		if next := spaced(out); next != out {
			if after := newLoader(l.o).parsed(newSource(src.name, next)); after != nil && sameTree(before, after) {
				out = next
			}
		}
		next := layout(out)
		if next == out {
			return []byte(out), nil
		}
		// A layout that would change what the text says is not used: then only the ends of lines are set right.
		if after := l.parsed(newSource(src.name, next)); after == nil || !sameTree(before, after) {
			break
		}
		out = next
	}
	if layout(out) == out {
		return []byte(out), nil
	}
	plain := strings.ReplaceAll(src.text, "\r\n", "\n")
	if after := l.parsed(newSource(src.name, plain)); after == nil || !sameTree(before, after) {
		return []byte(src.text), nil
	}
	return []byte(plain), nil
}

// nowhere is a filesystem without files.
type nowhere struct{}

func (nowhere) read(string, int) ([]byte, fs.FileMode, error) {
	return nil, 0, errors.New("no such file")
}
func (nowhere) glob(string) ([]string, error) { return nil, nil }

// parsed returns the document of a text, or nil after a problem.
func (l *loader) parsed(src *source) *yaml.Node {
	var doc yaml.Node
	if err := yaml.Load([]byte(src.text), &doc, yaml.WithPlugin(yamlLimits{})); err != nil {
		l.yamlError(src, err)
		return nil
	}
	return &doc
}

// sameTree reports whether two documents say the same.
func sameTree(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Value != b.Value || a.Tag != b.Tag || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !sameTree(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

// layout moves lines to where their depth wants them.
func layout(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	var doc yaml.Node
	if err := yaml.Load([]byte(text), &doc, yaml.WithPlugin(yamlLimits{})); err != nil {
		return text
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	f := &formatter{lines: lines, indent: make([]int, len(lines)+2), fixed: make([]bool, len(lines)+2)}
	for i := range f.indent {
		f.indent[i] = -1
	}
	f.walk(&doc, 0)
	return f.write()
}

// formatter knows, for lines that begin a value, how far they should be indented.
type formatter struct {
	lines  []string // from 0
	indent []int    // by line from 1: wanted indentation; -1: moves with the line above
	fixed  []bool   // by line from 1: inside a text of several lines, whose blanks are its own
}

// first notes that a line begins with the value at column, and how far that should be indented.
func (f *formatter) first(line, column, want int) {
	if line < 1 || line > len(f.lines) {
		return
	}
	s := []rune(f.lines[line-1])
	if column-1 <= len(s) && strings.TrimLeft(string(s[:column-1]), " ") == "" && f.indent[line] < 0 {
		f.indent[line] = want
	}
}

func (f *formatter) walk(n *yaml.Node, depth int) {
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			f.walk(c, depth)
		}
	case yaml.MappingNode:
		if n.Style&yaml.FlowStyle != 0 {
			f.flow(n)
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			f.first(k.Line, k.Column, depth)
			f.walk(v, depth+2)
		}
	case yaml.SequenceNode:
		if n.Style&yaml.FlowStyle != 0 {
			f.flow(n)
			return
		}
		for _, c := range n.Content {
			// The dash stands before the element, on its line or, when the element is long, above it.
			if dash := f.dash(c.Line, c.Column); dash > 0 {
				f.first(c.Line, dash, depth)
			}
			f.walk(c, depth+2)
		}
	case yaml.ScalarNode:
		f.text(n)
	}
}

// dash returns the column of the dash that begins the element at column, or 0.
func (f *formatter) dash(line, column int) int {
	if line < 1 || line > len(f.lines) {
		return 0
	}
	s := []rune(f.lines[line-1])
	i := min(column-1, len(s)) - 1
	for i >= 0 && s[i] == ' ' {
		i--
	}
	if i >= 0 && s[i] == '-' {
		return i + 1
	}
	return 0
}

// flow marks texts of several lines inside [] and {}.
func (f *formatter) flow(n *yaml.Node) {
	for _, c := range n.Content {
		if c.Kind == yaml.ScalarNode {
			f.text(c)
		} else {
			f.flow(c)
		}
	}
}

// text marks the lines that a text of several lines covers.
func (f *formatter) text(n *yaml.Node) {
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		base := -1
		for i := n.Line; i < len(f.lines); i++ {
			s := f.lines[i]
			if strings.TrimSpace(s) == "" {
				f.fixed[i+1] = true
				continue
			}
			indent := len(s) - len(strings.TrimLeft(s, " "))
			if base < 0 {
				base = indent
				if above := f.lines[n.Line-1]; indent <= len(above)-len(strings.TrimLeft(above, " -")) {
					return
				}
			}
			if indent < base {
				return
			}
			f.fixed[i+1] = true
		}
	}
	if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && n.Line >= 1 && n.Line <= len(f.lines) {
		s := []rune(strings.Join(f.lines[n.Line-1:], "\n"))
		i := n.Column - 1
		if i < 0 || i >= len(s) || s[i] != '"' && s[i] != '\'' {
			return
		}
		line, quote := n.Line, s[i]
		for i++; i < len(s); i++ {
			switch {
			case s[i] == '\n':
				line++
				f.fixed[line] = true
			case s[i] == '\\' && quote == '"':
				i++
				if i < len(s) && s[i] == '\n' {
					line++
					f.fixed[line] = true
				}
			case s[i] == quote && quote == '\'' && i+1 < len(s) && s[i+1] == quote:
				i++
			case s[i] == quote:
				return
			}
		}
	}
}

// write puts the lines together.
func (f *formatter) write() string {
	var out bytes.Buffer
	shift, blank := 0, 0
	for i, line := range f.lines {
		n := i + 1
		if f.fixed[n] {
			s := line
			if strings.TrimSpace(line) != "" {
				s = moved(line, shift)
			}
			for ; blank > 0; blank-- {
				out.WriteByte('\n')
			}
			out.WriteString(s)
			out.WriteByte('\n')
			continue
		}
		body := strings.TrimLeft(line, " ")
		trimmed := strings.TrimRight(body, " \t")
		if trimmed == "" {
			blank = min(blank+1, 1)
			continue
		}
		have := len(line) - len(body)
		switch {
		case strings.HasPrefix(trimmed, "#"):
			have = max(0, have+f.comment(i))
		case f.indent[n] >= 0:
			shift = f.indent[n] - have
			have = f.indent[n]
		default:
			have = max(0, have+shift)
		}
		if out.Len() > 0 && blank > 0 {
			out.WriteByte('\n')
		}
		blank = 0
		out.WriteString(strings.Repeat(" ", have) + trimmed + "\n")
	}
	return out.String()
}

// comment returns how far a line of comment moves: as the next line that it stands as deep as, else as the next line with content.
func (f *formatter) comment(i int) int {
	have := len(f.lines[i]) - len(strings.TrimLeft(f.lines[i], " "))
	for j := i + 1; j < len(f.lines); j++ {
		s := strings.TrimLeft(f.lines[j], " ")
		if strings.TrimSpace(s) == "" || strings.HasPrefix(s, "#") || f.indent[j+1] < 0 {
			continue
		}
		at := len(f.lines[j]) - len(s)
		if at == have {
			return f.indent[j+1] - at
		}
		return 0
	}
	return 0
}

// moved shifts a line of a text of several lines with the line it belongs to.
func moved(line string, shift int) string {
	if shift >= 0 {
		return strings.Repeat(" ", shift) + line
	}
	for ; shift < 0 && strings.HasPrefix(line, " "); shift++ {
		line = line[1:]
	}
	return line
}
