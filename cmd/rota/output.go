package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

// format is how an answer is written.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
	formatName  format = "name"
)

func parseFormat(s string, allowed ...format) (format, error) {
	if slices.Contains(allowed, format(s)) {
		return format(s), nil
	}
	words := make([]string, len(allowed))
	for i, f := range allowed {
		words[i] = string(f)
	}
	return "", usagef("-o %q: want %s", s, strings.Join(words, ", "))
}

// table is rows under headers; columns from wide on are shown by -o wide only.
type table struct {
	head []string
	wide int // number of columns without -o wide; 0: all
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// note adds a line of text below the last row.
func (t *table) note(text string) { t.rows = append(t.rows, []string{text}) }

// write writes the table aligned, without trailing blanks. An empty table says so.
func (t *table) write(w io.Writer, wide, headers bool) error {
	n := len(t.head)
	if t.wide > 0 && !wide {
		n = t.wide
	}
	rows := make([][]string, 0, len(t.rows)+1)
	if headers {
		rows = append(rows, t.head[:n])
	}
	for _, r := range t.rows {
		if len(r) == 1 && n > 1 {
			rows = append(rows, []string{"  " + printable(r[0])})
			continue
		}
		cells := make([]string, n)
		for i := range cells {
			if cells[i] = printable(r[i]); cells[i] == "" {
				cells[i] = "–"
			}
		}
		rows = append(rows, cells)
	}
	width := make([]int, n)
	for _, r := range rows {
		for i, c := range r {
			if len(r) == 1 && n > 1 {
				break // a note
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			line.WriteString(strings.Repeat(" ", max(0, width[i]-utf8.RuneCountInString(c))+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable makes text from elsewhere safe for a terminal: control characters, and characters that turn the direction of writing,
// are shown as escapes; line breaks stay.
func printable(s string) string {
	bad := func(r rune) bool {
		return r != '\n' && (r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 ||
			r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069)
	}
	if utf8.ValidString(s) && !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && s[i] != "\ufffd"[0]:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case bad(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case bad(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// writeJSON writes an answer of the API, indented; field names and order are the API's.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// writeYAML writes the same values as writeJSON does, as YAML.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var n yaml.Node // a node keeps the order of the fields; JSON is YAML
	if err := yaml.Unmarshal(b, &n); err != nil {
		return err
	}
	block(&n)
	out, err := yaml.Marshal(&n)
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// block writes maps and lists over lines instead of in brackets, and drops quotes that JSON needed and YAML does not.
func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.Style = 0
	}
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style |= yaml.FlowStyle
	}
	for _, c := range n.Content {
		block(c)
	}
}

// age writes how long ago something was, in two units at most; never: nothing.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(now.Sub(t))
}

func span(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%s", int(d.Minutes()), nonzero(int(d.Seconds())%60, "s"))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%s", int(d.Hours()), nonzero(int(d.Minutes())%60, "m"))
	}
	return fmt.Sprintf("%dd%s", int(d.Hours())/24, nonzero(int(d.Hours())%24, "h"))
}

func nonzero(n int, unit string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d%s", n, unit)
}

// ends writes when an override ends, to the second when it is short.
func ends(o rota.Override) string {
	layout := "2006-01-02 15:04Z"
	if o.Expires.Sub(o.Set) < time.Hour {
		layout = "2006-01-02 15:04:05Z"
	}
	return o.Expires.UTC().Format(layout)
}

// few joins the first of a list that is too long for a line, and says how many there are.
func few(list []string, sep string) string {
	const most, shown = 4, 2
	if len(list) <= most {
		return strings.Join(list, sep)
	}
	return strings.Join(list[:shown], sep) + sep + fmt.Sprintf("… (%d)", len(list))
}

// asked writes what a target's check asks, for people: its id without the timing and the conditions.
func asked(id rota.TargetID) string {
	question, rest, _ := strings.Cut(string(id), "#")
	before := map[string]string{"query": "/", "service": "/", "query_type": " ", "host": " host ", "command": " "}
	parts := map[string]string{}
	for rest != "" {
		key, after, _ := strings.Cut(rest, "=")
		quoted, err := strconv.QuotedPrefix(after)
		if err != nil {
			break
		}
		if value, err := strconv.Unquote(quoted); err == nil && before[key] != "" {
			parts[key] += before[key] + value
		}
		rest = strings.TrimPrefix(after[len(quoted):], "&")
	}
	return question + parts["query"] + parts["service"] + parts["query_type"] + parts["host"] + parts["command"]
}

// titled writes an address with the name of a check; the name of a check that has none is its question.
func titled(address netip.Addr, check string) string {
	a := address.String()
	if !strings.Contains(check, "{}") {
		return a + " " + check
	}
	if address.Is6() {
		a = "[" + a + "]"
	}
	return strings.Replace(check, "{}", a, 1)
}

// statusWords writes the status of a service, and how it is answered when health is not believed.
func statusWords(s api.ServiceView) string {
	text := loud(s.Status)
	var modes []string
	for _, m := range []rota.Mode{s.ModeA, s.ModeAAAA} {
		if word := strings.TrimPrefix(m.String(), "panic-"); m.Panic() && !slices.Contains(modes, word) {
			modes = append(modes, word)
		}
	}
	if len(modes) == 0 {
		return text
	}
	if s.Status != "panic" {
		text += ", PANIC"
	}
	return text + " (" + strings.Join(modes, ", ") + ")"
}

// took writes a duration of a probe as people read it.
func took(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}

// loud writes a status so that the bad one stands out without colour.
func loud(s string) string {
	switch s {
	case "down", "panic", "drain", "failing", "held", "empty", "frozen", "released", "drift", "draining", "disabled":
		return strings.ToUpper(s)
	case "maintenance":
		return "MAINT"
	case "force-down":
		return "FORCED DOWN"
	case "force-up":
		return "FORCED UP"
	}
	return s
}
