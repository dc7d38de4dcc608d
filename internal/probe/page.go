package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
)

// Bounds of an exporter's page; its bytes are bounded by the check.
const (
	maxLine   = 16 << 10 // bytes of one line
	maxLabels = 64       // of one series
)

// label is a label of a series; its bytes are good until the next line.
type label struct{ name, value []byte }

// series is a metric that is wanted of a page, and what to do with each of its series.
type series struct {
	name string
	take func(r *reading, labels []label, value float64)
}

// selector finds the wanted series among the many of a page.
type selector struct {
	series []series
	starts []uint64 // of the names' first eight bytes, so that other lines are passed over quickly; empty: a name is shorter
}

func newSelector(wanted []series) *selector {
	s := &selector{series: wanted}
	for _, w := range wanted {
		if len(w.name) < 8 {
			s.starts = nil
			return s
		}
		if start := binary.LittleEndian.Uint64([]byte(w.name)); !slices.Contains(s.starts, start) {
			s.starts = append(s.starts, start)
		}
	}
	return s
}

// passes reports whether a line is of none of the wanted metrics, as far as that is seen at a glance.
func (s *selector) passes(line []byte) bool {
	if len(line) < 8 {
		return len(s.starts) > 0
	}
	start := binary.LittleEndian.Uint64(line)
	for _, w := range s.starts {
		if w == start {
			return false
		}
	}
	return len(s.starts) > 0
}

var lineBuffers = sync.Pool{New: func() any { return new([maxLine]byte) }}

// errPage is what is wrong with a page itself, other than how it came here.
type errPage struct{ error }

func pageFault(format string, args ...any) error { return errPage{fmt.Errorf(format, args...)} }

// read takes a page in Prometheus' text format (version 0.0.4) as it comes, line by line, and gives the wanted series to r. It reads at most
// limit bytes and returns how many there were. Errors are errPage or those of in.
func (s *selector) read(in io.Reader, limit int, r *reading) (int, error) {
	buf := lineBuffers.Get().(*[maxLine]byte)
	defer lineBuffers.Put(buf)
	var labels []label
	size, number, have := 0, 0, 0
	for {
		n, err := in.Read(buf[have:])
		size += n
		if size > limit {
			return size, pageFault("larger than %d bytes", limit)
		}
		rest := buf[:have+n]
		for {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				break
			}
			number++
			line := rest[:end]
			rest = rest[end+1:]
			if end == 0 || line[0] == '#' || nameBytes[line[0]] && s.passes(line) {
				continue
			}
			var bad error
			if labels, bad = s.line(line, labels, r); bad != nil {
				return size, pageFault("line %d: %w", number, bad)
			}
		}
		have = copy(buf[:], rest)
		switch {
		case errors.Is(err, io.EOF) && have > 0:
			return size, pageFault("cut off in line %d", number+1)
		case errors.Is(err, io.EOF):
			return size, nil
		case err != nil:
			return size, err
		case have == len(buf):
			return size, pageFault("line %d is longer than %d bytes", number+1, maxLine)
		}
	}
}

// line takes one line. Labels is room for those of the series.
func (s *selector) line(b []byte, labels []label, r *reading) ([]label, error) {
	b = blanks(b)
	switch {
	case len(b) == 0 || b[0] == '#':
		return labels, nil
	case !nameBytes[b[0]]: // {"NAME",…} too, which version 0.0.4 does not have
		return labels, fmt.Errorf("%.40q is no metric; is this an exporter's page?", b)
	}
	var value float64
	parsed := false
	for i := range s.series {
		w := &s.series[i]
		if len(b) <= len(w.name) || string(b[:len(w.name)]) != w.name || nameBytes[b[len(w.name)]] {
			continue
		}
		if !parsed {
			var err error
			if labels, value, err = parseSeries(b[len(w.name):], labels[:0]); err != nil {
				return labels, fmt.Errorf("%s: %w", w.name, err)
			}
			parsed = true
		}
		w.take(r, labels, value)
	}
	return labels, nil
}

// nameBytes are those of the names of metrics.
var nameBytes = func() (is [256]bool) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:") {
		is[c] = true
	}
	return is
}()

func blanks(b []byte) []byte { return bytes.TrimLeft(b, " \t") }

var (
	errLabels = errors.New("malformed labels")
	errMany   = fmt.Errorf("more than %d labels", maxLabels)
)

// parseSeries reads what follows a metric's name: labels, a value and perhaps a timestamp.
func parseSeries(b []byte, labels []label) ([]label, float64, error) {
	b = blanks(b)
	if len(b) > 0 && b[0] == '{' {
		b = blanks(b[1:])
		for {
			if len(b) > 0 && b[0] == '}' {
				b = b[1:]
				break
			}
			var l label
			var ok bool
			if l, b, ok = parseLabel(b); !ok {
				return labels, 0, errLabels
			}
			if slices.ContainsFunc(labels, func(o label) bool { return bytes.Equal(o.name, l.name) }) {
				return labels, 0, errLabels
			}
			if labels = append(labels, l); len(labels) > maxLabels {
				return labels, 0, errMany
			}
			b = blanks(b)
			if len(b) > 0 && b[0] == ',' {
				b = blanks(b[1:])
			} else if len(b) == 0 || b[0] != '}' {
				return labels, 0, errLabels
			}
		}
		b = blanks(b)
	}
	end := bytes.IndexAny(b, " \t")
	if end < 0 {
		end = len(b)
	}
	text := b[:end]
	value, err := strconv.ParseFloat(string(text), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || bytes.ContainsAny(text, "pPxX_") {
		return labels, 0, fmt.Errorf("value %.40q is no number", text)
	}
	if stamp := bytes.TrimRight(blanks(b[end:]), " \t"); len(stamp) > 0 {
		if _, err := strconv.ParseInt(string(stamp), 10, 64); err != nil {
			return labels, 0, fmt.Errorf("timestamp %.40q is no number of milliseconds", stamp)
		}
	}
	return labels, value, nil
}

// parseLabel reads one label and returns what follows it.
func parseLabel(b []byte) (l label, rest []byte, ok bool) {
	end := 0
	for end < len(b) && nameBytes[b[end]] && b[end] != ':' {
		end++
	}
	l.name, b = b[:end], blanks(b[end:])
	if end == 0 || l.name[0] <= '9' || len(b) == 0 || b[0] != '=' {
		return l, nil, false
	}
	b = blanks(b[1:])
	if len(b) == 0 || b[0] != '"' {
		return l, nil, false
	}
	b = b[1:]
	end = bytes.IndexAny(b, `"\`)
	if end >= 0 && b[end] == '"' {
		l.value = b[:end]
		return l, b[end+1:], true
	}
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case c == '"':
			return l, b[i+1:], true
		case c == '\\':
			if i++; i == len(b) {
				return l, nil, false
			}
			switch c = b[i]; c {
			case 'n':
				c = '\n'
			case '\\', '"':
			default:
				return l, nil, false
			}
		}
		l.value = append(l.value, c)
	}
	return l, nil, false
}
