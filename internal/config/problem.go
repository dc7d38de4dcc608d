package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Problem is one thing wrong with a configuration, or one thing that looks wrong.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`   // from 1; 0: the file as a whole
	Column  int    `json:"column,omitempty"` // from 1, in characters
	Width   int    `json:"width,omitempty"`  // characters to underline
	Before  string `json:"before,omitempty"` // the line above, secrets hidden
	Source  string `json:"source,omitempty"` // the line, secrets hidden
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do, such as: did you mean "ttl"?
	caret   int    // column in Source, where what is hidden before it is shorter or longer; 0: Column
}

// Error returns file:line:column, the message and the hint on one line.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, max(p.Column, 1))
	}
	b.WriteString(": " + p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return printable(b.String())
}

// String returns Error, then the line with the one above it and a caret under what is meant.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Error())
	b.WriteByte('\n')
	if p.Source == "" {
		return b.String()
	}
	source, column, width := clip(p.Source, max(cmp.Or(p.caret, p.Column), 1), max(p.Width, 1))
	if p.Line > 1 && strings.TrimSpace(p.Before) != "" {
		before, _, _ := clip(p.Before, 1, 1)
		fmt.Fprintf(&b, "%5d | %s\n", p.Line-1, printable(before))
	}
	fmt.Fprintf(&b, "%5d | %s\n", p.Line, printable(source))
	fmt.Fprintf(&b, "      | %s%s\n", strings.Repeat(" ", column-1), strings.Repeat("^", width))
	return b.String()
}

// maxShown bounds how much of a line is shown, in characters.
const maxShown = 160

// clip cuts a long line so that what stands at column is seen.
func clip(line string, column, width int) (string, int, int) {
	rs := []rune(line)
	column = min(column, len(rs)+1)
	if len(rs) > maxShown {
		from := max(0, min(column-1-maxShown/2, len(rs)-maxShown))
		rs = rs[from:min(len(rs), from+maxShown)]
		column -= from
	}
	return string(rs), column, max(1, min(width, len(rs)-column+1))
}

// printable keeps what a terminal shows as one character: control and direction characters become '?'.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ', r == 0x7f, r >= 0x80 && r < 0xa0, r == 0x2028, r == 0x2029, r >= 0x200b && r <= 0x200f,
			r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff, r == utf8.RuneError:
			return '?'
		}
		return r
	}, s)
}

// Errors are all the errors of a configuration, in the order of the files and lines.
type Errors struct {
	Problems []Problem
	More     int // further ones that are not listed
}

// Error prints every problem as Problem.String does, and their number.
func (e *Errors) Error() string {
	var b strings.Builder
	for _, p := range e.Problems {
		b.WriteString(p.String())
	}
	n := len(e.Problems) + e.More
	if e.More > 0 {
		fmt.Fprintf(&b, "… and %d more\n", e.More)
	}
	if n == 1 {
		b.WriteString("1 error")
	} else {
		fmt.Fprintf(&b, "%d errors", n)
	}
	return b.String()
}

// maxProblems bounds how many problems are listed.
const maxProblems = 200

// maskedKey is a key whose value may be a secret, up to the value.
const maskedKey = `(?i)(["']?\b(?:secret|token|password|passwd|authorization|cookie)["']?\s*`

// masks find what may be a secret in a line that is shown. Quotes round it stay, so that the line can still be read.
var masks = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(maskedKey + `:\s*")(?:[^"\\]|\\.)*\\?("?)`), "${1}" + hidden + "${2}"},
	{regexp.MustCompile(maskedKey + `:\s*')(?:[^']|'')*('?)`), "${1}" + hidden + "${2}"},
	// key: value, but not key: {file: …} or an anchor, alias or variable
	{regexp.MustCompile(maskedKey + `:\s*)[^\s{\[&*|>$"'](?:[^,}]|,\S)*`), "${1}" + hidden},
	// key=value, in a URL and elsewhere
	{regexp.MustCompile(maskedKey + `=\s*)[^\s"'&,}][^"'&,}]*`), "${1}" + hidden},
	// user:password@ in a URL
	{regexp.MustCompile(`(://)[^/\s"'@]+@`), "${1}" + hidden + "@"},
}

var (
	keyInURL  = regexp.MustCompile(`([?&]key=)([^\s"',}\]&]+)`)
	reference = regexp.MustCompile(`^[?&]key=(?:file|env|credential):`)
)

// mask hides what may be a secret.
func mask(line string) string {
	for _, m := range masks {
		line = m.re.ReplaceAllString(line, m.with)
	}
	// What follows key= in a URL, but for the forms that only name a secret.
	return keyInURL.ReplaceAllStringFunc(line, func(s string) string {
		if reference.MatchString(s) {
			return s
		}
		return s[:len("?key=")] + hidden
	})
}

// masked returns a line with its secrets hidden, and where column is in it.
func masked(line string, column int, hide func(string) string) (string, int) {
	out := hide(line)
	if rs := []rune(line); column > 1 && column <= len(rs)+1 {
		if before := hide(string(rs[:column-1])); strings.HasPrefix(out, before) {
			return out, utf8.RuneCountInString(before) + 1
		}
	}
	return out, column
}

// closest returns the word that was probably meant, or "".
func closest(word string, words []string) string {
	best, distance := "", 1+max(1, utf8.RuneCountInString(word)/3)
	for _, w := range slices.Sorted(slices.Values(words)) {
		if d := editDistance(strings.ToLower(word), strings.ToLower(w), distance); d < distance {
			best, distance = w, d
		}
	}
	return best
}

// didYouMean is the hint that names the closest word, or "".
func didYouMean(word string, words []string) string {
	if w := closest(word, words); w != "" {
		return fmt.Sprintf("did you mean %q?", w)
	}
	return ""
}

// editDistance counts insertions, deletions, replacements and swaps of neighbours; it gives up at limit.
func editDistance(a, b string, limit int) int {
	x, y := []rune(a), []rune(b)
	if d := len(x) - len(y); d >= limit || -d >= limit {
		return limit
	}
	var before, prev []int
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(x); i++ {
		before, prev = prev, row
		row = make([]int, len(y)+1)
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(y)]
}
