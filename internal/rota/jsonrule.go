package rota

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of rules on JSON.
const (
	MaxJSONRules = 16      // of one check
	MaxJSONWant  = 1 << 10 // bytes of Want
	MaxPointer   = 1 << 10 // bytes of a pointer
	maxTokens    = 32      // steps of a pointer
	maxCompared  = 64 << 10
	maxCited     = 60 // bytes of a value in a reason
)

// ParsedJSONRule is a JSONRule made ready to judge documents.
type ParsedJSONRule struct {
	rule     JSONRule
	path     []string // keys and indexes, unescaped
	compare  string   // one of comparisons; empty: the value has to equal want
	want     []byte   // a JSON value
	wantsNum decimal  // want, of a comparison
}

// comparisons of numbers, the longer ones first.
var comparisons = []string{"<=", ">=", "==", "!=", "<", ">"}

// ParseJSONRule makes r ready. An error says what is allowed.
func ParseJSONRule(r JSONRule) (ParsedJSONRule, error) {
	p := ParsedJSONRule{rule: r}
	if len(r.Pointer) > MaxPointer {
		return p, fmt.Errorf("JSON pointer is longer than %d bytes", MaxPointer)
	}
	if len(r.Want) > MaxJSONWant {
		return p, fmt.Errorf("value wanted at %q is longer than %d bytes", r.Pointer, MaxJSONWant)
	}
	if r.Pointer != "" {
		rest, ok := strings.CutPrefix(r.Pointer, "/")
		if !ok {
			return p, fmt.Errorf("JSON pointer %q: begin with /, as in /status/db (RFC 6901)", r.Pointer)
		}
		for token := range strings.SplitSeq(rest, "/") {
			if p.path = append(p.path, pointerEscapes.Replace(token)); len(p.path) > maxTokens {
				return p, fmt.Errorf("JSON pointer %q has more than %d steps", r.Pointer, maxTokens)
			}
			if bad := strings.ReplaceAll(strings.ReplaceAll(token, "~0", ""), "~1", ""); strings.Contains(bad, "~") {
				return p, fmt.Errorf("JSON pointer %q: write ~ as ~0, and / within a key as ~1 (RFC 6901 §3)", r.Pointer)
			}
		}
	}
	want := strings.TrimSpace(r.Want)
	for _, op := range comparisons {
		if number, ok := strings.CutPrefix(want, op); ok {
			p.compare, p.want = op, []byte(strings.TrimSpace(number))
			if !json.Valid(p.want) || !isNumber(p.want) {
				return p, fmt.Errorf("%q at %q: want a number after %s, as in \"%s 90\"", r.Want, r.Pointer, op, op)
			}
			p.wantsNum = parseDecimal(p.want)
			return p, nil
		}
	}
	if p.want = []byte(want); !utf8.ValidString(want) || !json.Valid(p.want) {
		return p, fmt.Errorf("%q at %q is neither a JSON value (text stands in quotes) nor a comparison such as \"< 90\"", r.Want, r.Pointer)
	}
	return p, nil
}

// pointerEscapes undoes the escapes of RFC 6901 §4: ~01 is ~1 and not /.
var pointerEscapes = strings.NewReplacer("~1", "/", "~0", "~")

// JudgeJSON returns nil when doc is one JSON document for which all rules hold, else what is wrong. It takes time in proportion to doc for
// each step of each rule, and memory for none. A key that stands twice in an object is refused where a rule meets it: programs do not
// agree on which one counts (RFC 8259 §4).
func JudgeJSON(doc []byte, rules []ParsedJSONRule) error {
	if !utf8.Valid(doc) {
		return errors.New("body is not JSON: it is not UTF-8")
	}
	if !json.Valid(doc) {
		return errors.New("body is not JSON")
	}
	for _, r := range rules {
		if err := r.judge(doc); err != nil {
			return err
		}
	}
	return nil
}

// judge returns nil when r holds for doc, which is valid.
func (r ParsedJSONRule) judge(doc []byte) error {
	name := r.rule.Pointer
	if name == "" {
		name = "document"
	}
	value := doc[space(doc, 0):]
	value = value[:skip(value, 0)]
	for _, token := range r.path {
		inner, err := step(value, token)
		if err != nil {
			return fmt.Errorf("JSON %s %w", name, err)
		}
		value = inner
	}
	switch {
	case r.compare == "":
		if same, err := equal(value, r.want); err != nil {
			return fmt.Errorf("JSON %s %w", name, err)
		} else if !same {
			return fmt.Errorf("JSON %s is %s, want %s", name, cite(value), cite(r.want))
		}
	case !isNumber(value):
		return fmt.Errorf("JSON %s is %s, want a number %s %s", name, cite(value), r.compare, r.want)
	case !parseDecimal(value).is(r.compare, r.wantsNum):
		return fmt.Errorf("JSON %s is %s, want %s %s", name, cite(value), r.compare, r.want)
	}
	return nil
}

// cite is the beginning of a value, for people.
func cite(value []byte) string {
	if len(value) <= maxCited {
		return string(value)
	}
	return strings.ToValidUTF8(string(value[:maxCited]), "") + "…"
}

var (
	errNotThere = errors.New("is not there")
	errTwice    = errors.New("stands there twice")
)

// The functions below walk over valid JSON, where brackets and quotes are enough to know where a value ends.

// space returns the first place from i on that is neither blank nor a separator.
func space(doc []byte, i int) int {
	for i < len(doc) && strings.IndexByte(" \t\r\n,:", doc[i]) >= 0 {
		i++
	}
	return i
}

// skip returns the end of the value that begins at i.
func skip(doc []byte, i int) int {
	for depth := 0; i < len(doc); {
		switch doc[i] {
		case '"':
			for i++; i < len(doc) && doc[i] != '"'; i++ {
				if doc[i] == '\\' {
					i++
				}
			}
			i++
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\r', '\n', ',', ':':
			i++
			continue
		default:
			for i < len(doc) && strings.IndexByte(" \t\r\n,:{}[]\"", doc[i]) < 0 {
				i++
			}
		}
		if depth <= 0 {
			return min(i, len(doc))
		}
	}
	return len(doc)
}

// step returns the value within another that a token of a pointer names.
func step(value []byte, token string) ([]byte, error) {
	switch value[0] {
	case '{':
		return member(value, token)
	case '[':
		n, err := strconv.Atoi(token)
		if err != nil || strconv.Itoa(n) != token {
			return nil, errNotThere // RFC 6901 §4: digits without leading zeros
		}
		for v := range elements(value) {
			if n == 0 {
				return v, nil
			}
			n--
		}
	}
	return nil, errNotThere
}

// elements yields the values of an array, or of an object the keys and values in turn.
func elements(value []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for i := space(value, 1); i < len(value)-1; {
			end := skip(value, i)
			if !yield(value[i:end]) {
				return
			}
			i = space(value, end)
		}
	}
}

// member returns the value of a key in an object.
func member(object []byte, key string) ([]byte, error) {
	var found []byte
	isKey, mine := true, false
	for v := range elements(object) {
		switch {
		case isKey:
			mine = sameString(v, key)
		case mine && found != nil:
			return nil, errTwice
		case mine:
			found = v
		}
		isKey = !isKey
	}
	if found == nil {
		return nil, errNotThere
	}
	return found, nil
}

// sameString reports whether a JSON string means s.
func sameString(quoted []byte, s string) bool {
	if inner := quoted[1 : len(quoted)-1]; !slices.Contains(inner, '\\') {
		return string(inner) == s
	}
	var text string
	return json.Unmarshal(quoted, &text) == nil && text == s
}

func isNumber(value []byte) bool {
	return len(value) > 0 && (value[0] == '-' || '0' <= value[0] && value[0] <= '9')
}

// equal reports whether two values mean the same: numbers by their worth, objects whatever their order.
func equal(value, want []byte) (bool, error) {
	switch w := want[0]; {
	case isNumber(want):
		return isNumber(value) && parseDecimal(value).cmp(parseDecimal(want)) == 0, nil
	case value[0] != w:
		return false, nil
	case w == '"':
		var text string
		return json.Unmarshal(want, &text) == nil && sameString(value, text), nil
	case w != '{' && w != '[':
		return slices.Equal(value, want), nil
	case len(value) > maxCompared:
		return false, fmt.Errorf("is larger than %d KiB, too large to compare", maxCompared>>10)
	case w == '[':
		return equalArrays(value, want)
	}
	return equalObjects(value, want)
}

func equalArrays(value, want []byte) (bool, error) {
	var wants [][]byte
	for w := range elements(want) {
		wants = append(wants, w)
	}
	n := 0
	for v := range elements(value) {
		if n == len(wants) {
			return false, nil
		}
		if same, err := equal(v, wants[n]); !same {
			return false, err
		}
		n++
	}
	return n == len(wants), nil
}

func equalObjects(value, want []byte) (bool, error) {
	count := func(object []byte) (n int) {
		for range elements(object) {
			n++
		}
		return n
	}
	if count(value) != count(want) {
		return false, nil
	}
	var key string
	isKey := true
	for w := range elements(want) {
		if isKey {
			if json.Unmarshal(w, &key) != nil {
				return false, nil
			}
		} else {
			v, err := member(value, key)
			switch {
			case errors.Is(err, errNotThere):
				return false, nil
			case err != nil:
				return false, fmt.Errorf("has a key twice: %q", key)
			}
			if same, err := equal(v, w); !same {
				return false, err
			}
		}
		isKey = !isKey
	}
	return true, nil
}

// decimal is a number of JSON, exactly: 0.digits times ten to the power of exponent. No number is ever written out, so that 1e999999999
// costs nothing.
type decimal struct {
	negative bool
	digits   string // without zeros at either end; empty: zero
	exponent int64
}

// maxExponent stands for every exponent beyond it.
const maxExponent = 1 << 50

// parseDecimal reads a valid number.
func parseDecimal(number []byte) decimal {
	text, negative := strings.CutPrefix(string(number), "-")
	mantissa, power := text, int64(0)
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		mantissa = text[:i]
		n, _ := strconv.ParseInt(text[i+1:], 10, 64) // out of range it is the most there is
		power = min(max(n, -maxExponent), maxExponent)
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	d := decimal{
		negative: negative, digits: strings.TrimRight(digits, "0"),
		exponent: power + int64(len(whole)) - int64(len(whole)+len(fraction)-len(digits)),
	}
	if d.digits == "" {
		return decimal{}
	}
	return d
}

// cmp is -1, 0 or 1 when d is less than, the same as or more than o.
func (d decimal) cmp(o decimal) int {
	sign := func(x decimal) int {
		switch {
		case x.digits == "":
			return 0
		case x.negative:
			return -1
		}
		return 1
	}
	s, t := sign(d), sign(o)
	switch {
	case s != t:
		if s < t {
			return -1
		}
		return 1
	case s == 0:
		return 0
	case d.exponent < o.exponent:
		return -s
	case d.exponent > o.exponent:
		return s
	}
	return s * strings.Compare(d.digits, o.digits)
}

// is reports whether a comparison holds between d and o.
func (d decimal) is(comparison string, o decimal) bool {
	c := d.cmp(o)
	switch comparison {
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	case ">=":
		return c >= 0
	case "!=":
		return c != 0
	}
	return c == 0
}
