package config

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// spaced returns text with the usual blanks after colons and commas and inside brackets. Whether it still says the same, the caller
// has to find out: what looks like a bracket's end may be a part of a word.
func spaced(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	var doc yaml.Node
	if err := yaml.Load([]byte(text), &doc, yaml.WithPlugin(yamlLimits{})); err != nil {
		return text
	}
	lines := strings.Split(text, "\n")
	s := &spacer{cuts: make([][]cut, len(lines))}
	for _, line := range lines {
		s.lines = append(s.lines, []rune(line))
	}
	s.walk(&doc, false)
	for i, cuts := range s.cuts {
		if len(cuts) == 0 {
			continue
		}
		slices.SortStableFunc(cuts, func(a, b cut) int { return cmp.Compare(a.from, b.from) })
		var out []rune
		done := 0
		for _, c := range cuts {
			if c.from < done {
				continue
			}
			out = append(append(out, s.lines[i][done:c.from]...), []rune(c.with)...)
			done = c.to
		}
		lines[i] = string(append(out, s.lines[i][done:]...))
	}
	return strings.Join(lines, "\n")
}

// spacer gathers blanks to be replaced.
type spacer struct {
	lines [][]rune
	cuts  [][]cut // by line
}

// cut is a range of a line, from before to, and what takes its place.
type cut struct {
	from, to int
	with     string
}

func (s *spacer) walk(n *yaml.Node, inside bool) {
	flow := n.Style&yaml.FlowStyle != 0 && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode)
	if flow && !inside {
		s.flow(n.Line-1, n.Column-1)
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 {
			s.colon(c.Line-1, c.Column-1)
		}
		s.walk(c, inside || flow)
	}
}

// colon leaves one blank between a colon and the value that begins at a place.
func (s *spacer) colon(line, column int) {
	if line < 0 || line >= len(s.lines) || column >= len(s.lines[line]) {
		return
	}
	from := column
	for from > 0 && s.lines[line][from-1] == ' ' {
		from--
	}
	if from > 0 && s.lines[line][from-1] == ':' && column-from > 1 && s.lines[line][column] != '#' {
		s.cuts[line] = append(s.cuts[line], cut{from, column, " "})
	}
}

// flow puts the blanks right between the bracket that opens at a place and its end.
func (s *spacer) flow(line, column int) {
	depth, quote, last := 0, rune(0), rune(0) // last is the last character that is no blank
	for ; line >= 0 && line < len(s.lines); line, column = line+1, 0 {
		rs := s.lines[line]
		for i := column; i < len(rs); i++ {
			c := rs[i]
			switch {
			case quote == '"' && c == '\\':
				i++
				continue
			case quote == '\'' && c == quote && i+1 < len(rs) && rs[i+1] == quote:
				i++
				continue
			case quote != 0:
				if c == quote {
					quote, last = 0, c
				}
				continue
			case c == ' ' || c == '\t':
				continue
			case c == '#' && (i == 0 || rs[i-1] == ' ' || rs[i-1] == '\t'):
				i = len(rs)
				continue
			case (c == '"' || c == '\'') && strings.ContainsRune("[{,:?", last):
				quote = c
				continue
			case c == '[' || c == '{':
				depth++
				s.after(line, i+1, "")
			case c == ',':
				s.before(line, i)
				s.after(line, i+1, " ")
			case c == ']' || c == '}':
				s.before(line, i)
				depth--
			}
			if last = c; depth == 0 {
				return
			}
		}
	}
}

// before takes away the blanks before a column, but for those that indent the line.
func (s *spacer) before(line, column int) {
	rs, from := s.lines[line], column
	for from > 0 && rs[from-1] == ' ' {
		from--
	}
	if from > 0 && from < column {
		s.cuts[line] = append(s.cuts[line], cut{from, column, ""})
	}
}

// after puts the wanted blanks at a column, but before the end of a bracket or line and before a comment.
func (s *spacer) after(line, column int, want string) {
	rs, to := s.lines[line], column
	for to < len(rs) && rs[to] == ' ' {
		to++
	}
	if to == len(rs) || strings.ContainsRune("#]},\t", rs[to]) || string(rs[column:to]) == want {
		return
	}
	s.cuts[line] = append(s.cuts[line], cut{column, to, want})
}
