package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// shape describes what a value may be. One tree of shapes is the format: the loader holds values against it, and the JSON
// Schema is written from it.
type shape interface {
	// check notes what is wrong with n and marks it bad. what names n in messages.
	check(x *examiner, n *node, what string)
}

// field is one key of an object.
type field struct {
	key   string
	doc   string // one line for the schema
	shape shape
	must  bool             // the key has to be there
	later func(*node) bool // reports whether the value asks for what this version does not do; nil: never
}

// object is a map with known keys.
type object struct {
	name   string // for the schema's definitions; empty: written in place
	fields []field
}

// variants is an object whose keys depend on the word under tag.
type variants struct {
	name string
	tag  string
	kind string // what the word names, in messages
	of   []variant

	common []field // of every variant
}

// variant is one of variants.
type variant struct {
	word   string
	fields []field
	later  bool // this version does nothing of it
}

// dict is a map whose keys are names that the operator chose.
type dict struct {
	what string                 // names a value in messages, before the key
	keys keyRule                // which keys are read
	key  func(key string) error // refuses a key; nil: none
	of   shape                  // of a value
}

// keyRule says which keys of a dict are read.
type keyRule uint8

const (
	words       keyRule = iota // all but those that begin with _ or x-
	domainNames                // the same, but x-ray.example.org is a name and not ignored: it has a dot
	anyKey                     // all
)

// entries returns the keys of a dict that are read.
func (r keyRule) entries(n *node) []entry {
	if n == nil || n.kind != isMap {
		return nil
	}
	var out []entry
	for _, e := range n.keys {
		if r == anyKey || !ignored(e.key) || r == domainNames && strings.Contains(e.key, ".") {
			out = append(out, e)
		}
	}
	return out
}

// list is a list; single says that a lone element may stand without brackets.
type list struct {
	of     shape
	single bool
	least  int
	most   int // 0: as many as a file holds
}

// scalar is a value that is no list and no map.
type scalar struct {
	want    string // in messages: want …
	parse   func(string) error
	json    string // JSON type: string, integer, number or boolean
	pattern string // for strings in the schema
	words   []string
	secret  bool // the text is never shown
	null    bool // there may be none
	from    *float64
	to      *float64
}

// either takes a value by its kind: the first shape that accepts the kind judges it.
type either []shape

// accepts reports whether a shape takes a kind of value at all.
func accepts(s shape, k shapeOf) bool {
	switch s := s.(type) {
	case object, variants, dict:
		return k == isMap
	case list:
		return k == isList || s.single && accepts(s.of, k)
	case scalar:
		return k == isScalar || s.null && k == isNull
	case inlineCheck:
		return accepts(s.either, k)
	case either:
		return slices.ContainsFunc(s, func(s shape) bool { return accepts(s, k) })
	}
	return false
}

// wants says what kinds of value a shape takes.
func wants(s shape) string {
	switch s := s.(type) {
	case object, variants, dict:
		return "a map"
	case list:
		if s.single {
			return wants(s.of) + " or a list"
		}
		return "a list"
	case scalar:
		return s.want
	case inlineCheck:
		return wants(s.either)
	case either:
		var ws []string
		for _, s := range s {
			if w := wants(s); !slices.Contains(ws, w) {
				ws = append(ws, w)
			}
		}
		return strings.Join(ws, " or ")
	}
	return ""
}

// examiner holds a tree against the format.
type examiner struct {
	l     *loader
	quiet int // inside something that was refused as not supported yet
}

// refuse notes that n is wrong.
func (x *examiner) refuse(n *node, hint, format string, args ...any) {
	n.bad = true
	x.l.fail(n.at, hint, format, args...)
}

func (x *examiner) wrongKind(s shape, n *node, what string) {
	if n.bad {
		return
	}
	if n.kind == isNull {
		x.refuse(n, "remove the key or give it one", "%s has no value", what)
		return
	}
	x.refuse(n, "", "%s is %s: want %s", what, n.kind, wants(s))
}

func (e either) check(x *examiner, n *node, what string) {
	for _, s := range e {
		if accepts(s, n.kind) {
			if o, isMap := s.(object); isMap && isSecret(e) {
				x.hushBut(o, n)
			}
			s.check(x, n, what)
			return
		}
	}
	if isSecret(e) {
		x.hush(n)
	}
	x.wrongKind(e, n, what)
}

// isSecret reports whether a shape takes text that is never shown.
func isSecret(s shape) bool {
	switch s := s.(type) {
	case scalar:
		return s.secret
	case either:
		return slices.ContainsFunc(s, isSecret)
	}
	return false
}

// hush keeps every text in n out of what is shown.
func (x *examiner) hush(n *node) {
	for _, part := range strings.Fields(n.text) {
		if len(part) > 3 {
			x.l.hush = append(x.l.hush, part)
		}
	}
	for _, item := range n.items {
		x.hush(item)
	}
	for _, e := range n.keys {
		x.hush(e.value)
	}
}

// hushBut keeps every text in n out of what is shown but for those under keys of o: what stands under another may be the secret itself.
func (x *examiner) hushBut(o object, n *node) {
	for _, e := range n.keys {
		if !slices.ContainsFunc(o.fields, func(f field) bool { return f.key == e.key }) {
			x.hush(e.value)
		}
	}
}

func (s scalar) check(x *examiner, n *node, what string) {
	if s.null && n.kind == isNull {
		return
	}
	if n.kind != isScalar {
		x.wrongKind(s, n, what)
		return
	}
	if s.secret || strings.Contains(n.text, "-----BEGIN ") { // a key that stands where its path belongs
		x.hush(n)
	}
	if n.bad {
		return
	}
	if s.words != nil && !slices.Contains(s.words, n.text) {
		hint := didYouMean(n.text, s.words)
		if hint == "" && s.json == "boolean" {
			hint = "write true or false"
		}
		x.refuse(n, hint, "%s %q: want %s", what, short(n.text), oneOf(s.words))
		return
	}
	if s.parse != nil {
		if err := s.parse(n.text); err != nil {
			x.refuse(n, "", "%s: %v", what, err)
		}
	}
}

// short bounds what of a value is repeated in a message.
func short(s string) string {
	if utf8.RuneCountInString(s) <= 60 {
		return s
	}
	return string([]rune(s)[:60]) + "…"
}

func oneOf(words []string) string {
	switch len(words) {
	case 1:
		return words[0]
	case 0:
		return "nothing"
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func (s list) check(x *examiner, n *node, what string) {
	if n.kind != isList {
		if s.single && accepts(s.of, n.kind) {
			s.of.check(x, n, what)
			return
		}
		x.wrongKind(s, n, what)
		return
	}
	if len(n.items) < s.least {
		x.refuse(n, "", "%s is empty: want at least %d", what, s.least)
	}
	if s.most > 0 && len(n.items) > s.most {
		x.refuse(n, "", "%s has %d entries: want at most %d", what, len(n.items), s.most)
	}
	for _, item := range n.items {
		s.of.check(x, item, what)
	}
}

func (s dict) check(x *examiner, n *node, what string) {
	if n.kind != isMap {
		x.wrongKind(s, n, what)
		return
	}
	for _, e := range s.keys.entries(n) {
		s.of.check(x, e.value, fmt.Sprintf("%s %q", s.what, short(e.key)))
		if s.key != nil {
			if err := s.key(e.key); err != nil {
				e.value.bad = true
				x.l.fail(e.at, "", "%v", err)
			}
		}
	}
}

func (s object) check(x *examiner, n *node, what string) {
	if n.kind != isMap {
		x.wrongKind(s, n, what)
		return
	}
	checkFields(x, n, s.fields, what)
}

func checkFields(x *examiner, n *node, fields []field, what string) {
	for _, e := range n.keys {
		if ignored(e.key) {
			continue
		}
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == e.key })
		if i < 0 {
			keys := make([]string, 0, len(fields))
			for _, f := range fields {
				if !n.has(f.key) {
					keys = append(keys, f.key)
				}
			}
			x.l.fail(e.at, didYouMean(e.key, keys), "unknown key %q in %s", short(e.key), what)
			if j := slices.IndexFunc(fields, func(f field) bool { return f.key == closest(e.key, keys) }); j >= 0 && isSecret(fields[j].shape) {
				x.hush(e.value)
			}
			continue
		}
		f := fields[i]
		name := e.key
		if what != "" && what != top {
			name = what + ": " + e.key
		}
		refused := f.later != nil && x.quiet == 0 && !e.value.bad && f.later(e.value)
		if refused {
			x.quiet++
		}
		f.shape.check(x, e.value, name)
		if refused {
			x.quiet--
			if !e.value.bad {
				x.l.fail(e.at, "", "%s is not supported yet%s", name, asWritten(e.value))
				e.value.bad = true
			}
		}
	}
	for _, f := range fields {
		if f.must && !n.has(f.key) {
			n.bad = true
			x.l.fail(n.at, "", "%s has no %s", what, f.key)
		}
	}
}

// asWritten shows a short value after what is said of its key.
func asWritten(n *node) string {
	if n.kind == isScalar && n.text != "" {
		return ": " + short(n.text)
	}
	return ""
}

func (s variants) words() []string {
	var ws []string
	for _, v := range s.of {
		ws = append(ws, v.word)
	}
	return ws
}

func (s variants) check(x *examiner, n *node, what string) {
	if n.kind != isMap {
		x.wrongKind(s, n, what)
		return
	}
	tag := n.get(s.tag)
	if tag == nil {
		if !n.has(s.tag) {
			n.bad = true
			hint := ""
			for _, e := range n.keys {
				if closest(e.key, []string{s.tag}) != "" && !s.takes(e.key) {
					hint = fmt.Sprintf("did you mean %q by %q?", s.tag, short(e.key))
				}
			}
			x.l.fail(n.at, hint, "%s has no %s: want %s", what, s.tag, oneOf(s.words()))
		}
		s.known(x, n, what)
		return
	}
	scalar{want: "a word", words: s.words()}.check(x, tag, what+": "+s.tag)
	if tag.bad {
		n.bad = true
		s.known(x, n, what)
		return
	}
	i := slices.IndexFunc(s.of, func(v variant) bool { return v.word == tag.text })
	fields := slices.Concat([]field{{key: s.tag, shape: scalar{want: "a word"}}}, s.of[i].fields, s.common)
	what = fmt.Sprintf("%s (%s)", what, tag.text)
	if s.of[i].later {
		x.quiet++
		defer func() {
			if x.quiet--; x.quiet == 0 && !n.bad {
				x.l.fail(tag.at, "", "%s is not supported yet", what)
				n.bad = true
			}
		}()
	}
	checkFields(x, n, fields, what)
}

// takes reports whether some variant has a key.
func (s variants) takes(key string) bool {
	return slices.ContainsFunc(append(slices.Clone(s.of), variant{fields: s.common}), func(v variant) bool {
		return slices.ContainsFunc(v.fields, func(f field) bool { return f.key == key })
	})
}

// known judges those keys of a map without a valid tag that mean the same whatever the tag would be.
func (s variants) known(x *examiner, n *node, what string) {
	for _, e := range n.keys {
		var shapes []shape
		for _, v := range append(slices.Clone(s.of), variant{fields: s.common}) {
			for _, f := range v.fields {
				if f.key == e.key {
					shapes = append(shapes, f.shape)
				}
			}
		}
		// A key that several kinds of checks have is the same in all of them.
		if len(shapes) == 1 || len(shapes) > 1 && s.kind == "check" {
			shapes[0].check(x, e.value, what+": "+e.key)
		}
	}
}
