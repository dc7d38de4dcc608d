package rota

import (
	"fmt"
	"strings"
)

// Name is a domain name in canonical form: absolute, with a trailing dot, ASCII letters in lower case, every byte outside the
// printable ASCII range and every dot or backslash inside a label escaped as in zone files (RFC 1035 §5.1). Two names are the
// same name exactly when they are equal as strings. The zero value is no name; the root is ".".
type Name string

// Limits of RFC 1035 §2.3.4, in octets on the wire.
const (
	maxLabel = 63
	maxName  = 255
	maxText  = 4 * maxName // characters: every octet escaped as \DDD
)

// ParseName reads a domain name in presentation form and returns its canonical form. A missing trailing dot is added.
// It refuses an empty name, empty labels, labels over 63 octets, names over 255 octets and malformed escapes.
func ParseName(s string) (Name, error) {
	if s == "" {
		return "", fmt.Errorf("empty domain name")
	}
	if s == "." {
		return ".", nil
	}
	if len(s) > maxText {
		return "", fmt.Errorf("domain name %q… of %d characters takes more than %d octets", s[:maxLabel], len(s), maxName)
	}
	var b strings.Builder
	b.Grow(len(s) + 1)
	label, wire := 0, 1
	end := func() error {
		if label == 0 {
			return fmt.Errorf("domain name %q has an empty label", s)
		}
		if label > maxLabel {
			return fmt.Errorf("domain name %q has a label of %d octets, the limit is %d", s, label, maxLabel)
		}
		wire += label + 1
		label = 0
		b.WriteByte('.')
		return nil
	}
	ended := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		ended = false
		switch {
		case c == '.':
			if err := end(); err != nil {
				return "", err
			}
			ended = true
			continue
		case c == '\\':
			var err error
			if c, i, err = unescape(s, i); err != nil {
				return "", err
			}
		}
		writeOctet(&b, c)
		label++
	}
	if !ended {
		if err := end(); err != nil {
			return "", err
		}
	}
	if wire > maxName {
		return "", fmt.Errorf("domain name %q takes %d octets, the limit is %d", s, wire, maxName)
	}
	return Name(b.String()), nil
}

// MustParseName is ParseName for names known to be right; it panics on others.
func MustParseName(s string) Name {
	n, err := ParseName(s)
	if err != nil {
		panic(err)
	}
	return n
}

// unescape reads the escape at s[i] and returns its octet and the index of its last byte.
func unescape(s string, i int) (octet byte, last int, err error) {
	if i+1 >= len(s) {
		return 0, i, fmt.Errorf("domain name %q ends in a backslash", s)
	}
	if s[i+1] < '0' || s[i+1] > '9' {
		return s[i+1], i + 1, nil
	}
	if i+3 >= len(s) {
		return 0, i, fmt.Errorf("domain name %q has a short \\DDD escape", s)
	}
	v := 0
	for _, d := range []byte(s[i+1 : i+4]) {
		if d < '0' || d > '9' {
			return 0, i, fmt.Errorf("domain name %q has a malformed \\DDD escape", s)
		}
		v = v*10 + int(d-'0')
	}
	if v > 255 {
		return 0, i, fmt.Errorf("domain name %q has the escape \\%d, the limit is 255", s, v)
	}
	return byte(v), i + 3, nil
}

func writeOctet(b *strings.Builder, c byte) {
	switch {
	case 'A' <= c && c <= 'Z':
		b.WriteByte(c + 'a' - 'A')
	case strings.IndexByte(`.\"();@$`, c) >= 0:
		b.WriteByte('\\')
		b.WriteByte(c)
	case c <= ' ' || c >= 0x7f:
		fmt.Fprintf(b, "\\%03d", c)
	default:
		b.WriteByte(c)
	}
}

// String returns the name in presentation form with its trailing dot.
func (n Name) String() string { return string(n) }

// Short returns the name without its trailing dot, as people write it.
func (n Name) Short() string {
	if n == "." {
		return "."
	}
	return strings.TrimSuffix(string(n), ".")
}

// Parent returns the name without its first label; the root's parent is the root.
func (n Name) Parent() Name {
	for i := 0; i < len(n); i++ {
		switch n[i] {
		case '\\':
			i++ // the escaped byte, or the first of three digits, is not a separator
		case '.':
			if i+1 == len(n) {
				return "."
			}
			return n[i+1:]
		}
	}
	return "."
}

// Label returns the first label in presentation form; the root has none.
func (n Name) Label() string {
	if n == "." || n == "" {
		return ""
	}
	p := n.Parent()
	if p == "." {
		return strings.TrimSuffix(string(n), ".")
	}
	return string(n[:len(n)-len(p)-1])
}

// Labels returns the number of labels; the root has none.
func (n Name) Labels() int {
	c := 0
	for n != "." && n != "" {
		c++
		n = n.Parent()
	}
	return c
}

// In reports whether n is zone or below it, label by label.
func (n Name) In(zone Name) bool {
	if n == "" || zone == "" {
		return false
	}
	if zone == "." || n == zone {
		return true
	}
	for len(n) > len(zone) {
		if n = n.Parent(); n == zone {
			return true
		}
	}
	return false
}

// Wildcard returns the wildcard name directly below n.
func (n Name) Wildcard() Name {
	if n == "." {
		return "*."
	}
	return "*." + n
}

// LongestZone returns the most specific of zones that holds n, and false when none does.
func LongestZone(n Name, zones []Name) (Name, bool) {
	best, found := Name(""), false
	for _, z := range zones {
		if n.In(z) && (!found || z.Labels() > best.Labels()) {
			best, found = z, true
		}
	}
	return best, found
}
