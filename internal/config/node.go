package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	"go.yaml.in/yaml/v4"
)

// shapeOf is what kind of value a node is.
type shapeOf uint8

const (
	isNull shapeOf = iota
	isScalar
	isList
	isMap
)

func (k shapeOf) String() string {
	return [...]string{"nothing", "a value", "a list", "a map"}[k]
}

// node is a value of the configuration with its place. Trees are built once and then only read, but for bad.
type node struct {
	at     place
	kind   shapeOf
	text   string  // of a scalar, as written, variables replaced
	quoted bool    // a scalar in quotes or a block
	block  bool    // a literal block: its text starts on the next line
	items  []*node // of a list
	keys   []entry // of a map, in order
	bad    bool    // a problem was noted for it or for something it is made of
}

// entry is one key of a map and its value.
type entry struct {
	key   string
	at    place
	value *node
}

// get returns the value of a key, or nil when there is none or it was found bad.
func (n *node) get(key string) *node {
	if n == nil || n.kind != isMap {
		return nil
	}
	for _, e := range n.keys {
		if e.key == key {
			if e.value.bad {
				return nil
			}
			return e.value
		}
	}
	return nil
}

// child returns the map under a key, though it may lack something, or nil when there is none.
func (n *node) child(key string) *node {
	if n == nil || n.kind != isMap {
		return nil
	}
	for _, e := range n.keys {
		if e.key == key && e.value.kind == isMap {
			return e.value
		}
	}
	return nil
}

// has reports whether a key is there, right or wrong.
func (n *node) has(key string) bool {
	return n != nil && n.kind == isMap && slices.ContainsFunc(n.keys, func(e entry) bool { return e.key == key })
}

// ignored reports whether a key is one that nobody reads.
func ignored(key string) bool { return strings.HasPrefix(key, "_") || strings.HasPrefix(key, "x-") }

// load turns the text of a file, and of all it includes, into a Config.
func (l *loader) load(name string, text []byte) (*Config, error) {
	root := l.file(name, text)
	if root == nil || root.kind != isMap {
		return nil, l.failed()
	}
	l.examine(root)
	c := l.build(root)
	if err := l.failed(); err != nil {
		return nil, err
	}
	c.Files, c.Sources, c.Warnings = slices.Clone(l.files), l.sources, l.sorted(l.warnings)
	return c, nil
}

// file reads one file's text and what it includes, merged. It returns nil after a problem that leaves nothing to look at.
func (l *loader) file(name string, text []byte) *node {
	src, ok := l.clean(name, text)
	if !ok {
		return nil
	}
	root := l.tree(src)
	if root == nil {
		return nil
	}
	if root.kind != isMap {
		l.fail(root.at, "", "a configuration is a map, such as services: {…}; this is %s", root.kind)
		return nil
	}
	l.stack = append(l.stack, filepath.Clean(name))
	defer func() { l.stack = l.stack[:len(l.stack)-1] }()
	inc := root.get("include")
	if inc == nil {
		return root
	}
	patterns := inc.items
	if inc.kind == isScalar {
		patterns = []*node{inc}
	}
	for _, p := range patterns {
		if p.kind == isScalar && p.text != "" {
			root = l.include(root, p)
		}
	}
	return root
}

// include merges the files that a pattern names into root.
func (l *loader) include(root, p *node) *node {
	pattern := within(p.at.src, p.text)
	paths, err := l.o.filesystem.glob(pattern)
	if err != nil {
		l.fail(p.at, "", "include %q: malformed pattern", p.text)
		return root
	}
	slices.Sort(paths)
	l.sources.globs[pattern] = slices.Clone(paths)
	if len(paths) == 0 && !strings.ContainsAny(p.text, `*?[`) {
		l.fail(p.at, "", "include %q: no such file", p.text)
	}
	for _, path := range paths {
		path = filepath.Clean(path)
		if slices.Contains(l.stack, path) {
			l.fail(p.at, "", "include %q: %s includes itself", p.text, path)
			continue
		}
		if slices.Contains(l.files, path) {
			l.fail(p.at, "", "include %q: %s is included twice", p.text, path)
			continue
		}
		if l.included++; l.included > maxInclude {
			if l.included == maxInclude+1 {
				l.fail(p.at, "", "more than %d files are included", maxInclude)
			}
			return root
		}
		text, err := l.read(path, maxConfig)
		if err != nil {
			l.fail(p.at, "", "include %s: %v", path, err)
			continue
		}
		if more := l.file(path, text); more != nil {
			root = l.merge(root, more, "")
		}
	}
	return root
}

// merge joins two trees: maps deep, lists one after the other; a scalar that both set is an error.
func (l *loader) merge(a, b *node, path string) *node {
	switch {
	case a.kind == isNull:
		return b
	case b.kind == isNull:
		return a
	case a.kind == isMap && b.kind == isMap:
		index := make(map[string]int, len(a.keys))
		for i, e := range a.keys {
			index[e.key] = i
		}
		out := *a
		out.keys = slices.Clone(a.keys)
		for _, e := range b.keys {
			i, ok := index[e.key]
			switch {
			case path == "" && e.key == "include": // done when its own file was read
			case ok:
				out.keys[i].value = l.merge(out.keys[i].value, e.value, path+"."+e.key)
			default:
				out.keys = append(out.keys, e)
			}
		}
		return &out
	case a.kind == isList && b.kind == isList:
		out := *a
		out.items = slices.Concat(a.items, b.items)
		return &out
	}
	name := strings.TrimPrefix(path, ".")
	if a.kind == b.kind {
		l.fail(b.at, "", "%s is set twice: first at %s", name, a.at)
	} else {
		l.fail(b.at, "", "%s is %s here and %s at %s", name, b.kind, a.kind, a.at)
	}
	a.bad = true
	return a
}

// tree parses the text of one file.
func (l *loader) tree(src *source) *node {
	switch strings.ToLower(filepath.Ext(src.name)) {
	case ".json", ".jsonc", ".hujson":
		return l.json(src, true)
	}
	// What begins like JSON may be YAML in flow style, too.
	s := strings.TrimSpace(src.text)
	commented := strings.HasPrefix(s, "//") || strings.HasPrefix(s, "/*")
	if commented || strings.HasPrefix(s, "{") {
		if n := l.json(src, commented); n != nil || commented {
			return n
		}
	}
	return l.yaml(src)
}

// json parses JSON with comments. Unless loud, a text that is none is no problem.
func (l *loader) json(src *source, loud bool) *node {
	if at := tooDeep(src.text); at >= 0 {
		if loud {
			line, column := src.position(at)
			l.fail(place{src, line, column, 1}, "", "more than %d levels of nesting", maxDepth)
		}
		return nil
	}
	v, err := hujson.Parse([]byte(src.text))
	if err != nil {
		if loud {
			p := Problem{File: src.name, Message: strings.TrimPrefix(err.Error(), "hujson: ")}
			if m := hujsonLine.FindStringSubmatch(p.Message); m != nil {
				var line, column int
				_, _ = fmt.Sscan(m[1], &line)
				_, _ = fmt.Sscan(m[2], &column)
				p = place{src, line, utf8.RuneCountInString(bytePrefix(src.line(line), column-1)) + 1, 1}.problem(m[3], "")
			}
			l.problem(p)
		}
		return nil
	}
	return l.jsonNode(src, v)
}

// hujsonLine takes line, column (in bytes) and message out of an error of hujson, which offers them only as text.
var hujsonLine = regexp.MustCompile(`^line (\d+), column (\d+): (.*)$`)

func bytePrefix(s string, n int) string { return s[:max(0, min(n, len(s)))] }

// tooDeep returns the offset at which brackets outside strings and comments nest too deep for parsers that recurse, or -1.
func tooDeep(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			for i++; i < len(s) && s[i] != '"' && s[i] != '\n'; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case '/':
			if strings.HasPrefix(s[i:], "//") {
				if n := strings.IndexByte(s[i:], '\n'); n >= 0 {
					i += n
				} else {
					i = len(s)
				}
			} else if strings.HasPrefix(s[i:], "/*") {
				if n := strings.Index(s[i+2:], "*/"); n >= 0 {
					i += n + 3
				} else {
					i = len(s)
				}
			}
		case '{', '[':
			if depth++; depth > maxDepth {
				return i
			}
		case '}', ']':
			depth--
		}
	}
	return -1
}

func (l *loader) jsonNode(src *source, v hujson.Value) *node {
	line, column := src.position(v.StartOffset)
	n := &node{at: place{src, line, column, 1}}
	switch x := v.Value.(type) {
	case *hujson.Object:
		n.kind = isMap
		for _, m := range x.Members {
			key := l.jsonNode(src, m.Name)
			n.keys = append(n.keys, entry{key.text, key.at, l.jsonNode(src, m.Value)})
		}
		l.unique(n)
	case *hujson.Array:
		n.kind = isList
		for _, e := range x.Elements {
			n.items = append(n.items, l.jsonNode(src, e))
		}
	case hujson.Literal:
		n.at.width = utf8.RuneCount(x)
		switch x.Kind() {
		case 'n':
			n.kind = isNull
		case '"':
			n.kind, n.text, n.quoted = isScalar, x.String(), true
			l.substitute(n)
		default:
			n.kind, n.text = isScalar, string(x)
		}
	}
	return n
}

// count takes one value from what aliases may bring.
func (l *loader) count(at place) bool {
	l.aliased--
	if l.aliased == -1 {
		l.fail(at, "", "aliases bring more than %d values", maxAliased)
	}
	return l.aliased >= 0
}

// unique notes keys that stand twice in one map and drops the later ones.
func (l *loader) unique(n *node) {
	first := make(map[string]place, len(n.keys))
	n.keys = slices.DeleteFunc(n.keys, func(e entry) bool {
		if at, twice := first[e.key]; twice {
			l.fail(e.at, "", "key %q stands twice in one map: first at line %d", e.key, at.line)
			return true
		}
		first[e.key] = e.at
		return false
	})
}

// yaml parses YAML.
func (l *loader) yaml(src *source) *node {
	var doc yaml.Node
	err := yaml.Load([]byte(src.text), &doc, yaml.WithPlugin(yamlLimits{}))
	if err != nil {
		if onlyComments(src.text) {
			l.problem(Problem{File: src.name, Message: "is empty; it needs at least services:"})
			return nil
		}
		l.yamlError(src, err)
		return nil
	}
	for doc.Kind == yaml.DocumentNode && len(doc.Content) > 0 {
		doc = *doc.Content[0]
	}
	n := l.yamlNode(src, &doc, nil)
	if n.kind == isNull {
		l.problem(Problem{File: src.name, Message: "is empty; it needs at least services:"})
		return nil
	}
	return n
}

// yamlLimits bounds the nesting while parsing; aliases are bounded when they are expanded.
type yamlLimits struct{}

// CheckDepth refuses nesting beyond maxDepth.
func (yamlLimits) CheckDepth(depth int, _ *yaml.DepthContext) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels of nesting", maxDepth)
	}
	return nil
}

// CheckAlias accepts every ratio: the loader counts expanded values itself.
func (yamlLimits) CheckAlias(_, _ int) error { return nil }

func onlyComments(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && line != "---" && line != "..." {
			return false
		}
	}
	return true
}

// yamlError notes what the parser found.
func (l *loader) yamlError(src *source, err error) {
	var all *yaml.LoadErrors
	if errors.As(err, &all) && len(all.Errors) > 0 {
		for _, e := range all.Errors {
			l.yamlProblem(src, e)
		}
		return
	}
	var one *yaml.LoadError
	if errors.As(err, &one) {
		l.yamlProblem(src, one)
		return
	}
	l.problem(Problem{File: src.name, Message: err.Error()})
}

func (l *loader) yamlProblem(src *source, e *yaml.LoadError) {
	at := place{src, e.Mark.Line, max(e.Mark.Column, 1), 1}
	message := e.Message
	if message == "" {
		message = e.Error()
	}
	message = strings.TrimPrefix(message, "yaml: ")
	hint := ""
	line := src.line(at.line)
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	switch {
	case at.line == 0:
		at.src = nil
	case strings.Contains(indent, "\t"):
		message, hint = "a tab indents this line", "YAML wants spaces"
		at.column, at.width = utf8.RuneCountInString(indent[:strings.IndexByte(indent, '\t')])+1, 1
	case e.ContextMark.Line > 0 && e.ContextMark.Line != at.line:
		message += fmt.Sprintf(", %s that starts at line %d", strings.TrimPrefix(e.ContextMsg, "while "), e.ContextMark.Line)
	case e.ContextMsg != "":
		message += ", " + e.ContextMsg
	}
	p := at.problem(message, hint)
	p.File = src.name
	l.problem(p)
}

// yamlNode turns a parsed value into a node; aliases become copies, merge keys are merged.
func (l *loader) yamlNode(src *source, y *yaml.Node, aliases []*yaml.Node) *node {
	n := &node{at: place{src, max(y.Line, 1), max(y.Column, 1), 1}}
	if len(aliases) > 0 && !l.count(n.at) {
		n.bad = true
		return n
	}
	switch y.Kind {
	case yaml.AliasNode:
		if y.Alias == nil || slices.Contains(aliases, y.Alias) || len(aliases) > maxDepth {
			l.fail(n.at, "", "alias *%s contains itself", y.Value)
			n.bad = true
			return n
		}
		m := *l.yamlNode(src, y.Alias, append(slices.Clip(aliases), y.Alias))
		return &m
	case yaml.MappingNode:
		n.kind = isMap
		var merged []entry
		for i := 0; i+1 < len(y.Content); i += 2 {
			k, v := y.Content[i], y.Content[i+1]
			at := place{src, k.Line, k.Column, 1}
			if k.Kind == yaml.AliasNode && k.Alias != nil {
				k = k.Alias
			}
			if k.Kind != yaml.ScalarNode {
				l.fail(at, "", "a key is a word, not %s", map[bool]string{true: "a map", false: "a list"}[k.Kind == yaml.MappingNode])
				continue
			}
			at.width = scalarWidth(k)
			value := l.yamlNode(src, v, aliases)
			if k.Tag == "!!merge" || k.Value == "<<" && k.Style == 0 {
				merged = append(merged, l.mergeKey(at, value)...)
				continue
			}
			n.keys = append(n.keys, entry{k.Value, at, value})
		}
		l.unique(n)
		for _, e := range merged {
			if !n.has(e.key) {
				n.keys = append(n.keys, e)
			}
		}
	case yaml.SequenceNode:
		n.kind = isList
		for _, c := range y.Content {
			n.items = append(n.items, l.yamlNode(src, c, aliases))
		}
	case yaml.ScalarNode:
		n.at.width = scalarWidth(y)
		n.quoted = y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
		n.block = y.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
		if y.Style&yaml.TaggedStyle != 0 {
			l.fail(n.at, "", "tag %s is not used here", y.Tag)
			n.bad = true
		}
		if y.Tag == "!!null" && !n.quoted {
			return n
		}
		n.kind, n.text = isScalar, y.Value
		l.substitute(n)
	}
	return n
}

// mergeKey returns the entries that << brings.
func (l *loader) mergeKey(at place, v *node) []entry {
	switch {
	case v.kind == isMap:
		return v.keys
	case v.kind == isList && !slices.ContainsFunc(v.items, func(n *node) bool { return n.kind != isMap }):
		var all []entry
		for _, m := range v.items {
			all = append(all, m.keys...)
		}
		return all
	}
	l.fail(at, "", "<< merges a map or a list of maps")
	return nil
}

// scalarWidth returns how many characters of the first line a scalar takes, or 0 for one in quotes.
func scalarWidth(y *yaml.Node) int {
	switch {
	case y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return 0
	case y.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return 1
	}
	return max(1, utf8.RuneCountInString(y.Value))
}

// substitute replaces ${NAME} by the variable's value; $${ stands for ${.
func (l *loader) substitute(n *node) {
	if !strings.Contains(n.text, "${") {
		return
	}
	var b strings.Builder
	for s := n.text; ; {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			break
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		end := strings.IndexByte(s[i:], '}')
		name := ""
		if end > 0 {
			name = s[i+2 : i+end]
		}
		if !variable.MatchString(name) {
			l.fail(n.at, "$${ stands for ${", "malformed variable: want ${NAME}")
			n.bad = true
			return
		}
		value, ok := l.o.Env(name)
		switch {
		case !ok:
			l.fail(n.at, "", "environment variable %s is not set", name)
			n.bad = true
		case !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' }):
			l.fail(n.at, "", "environment variable %s holds bytes that are no text", name)
			n.bad = true
		case len(value) > maxSecret:
			l.fail(n.at, "", "environment variable %s is larger than %d KiB", name, maxSecret>>10)
			n.bad = true
		}
		b.WriteString(value)
		s = s[i+end+1:]
	}
	n.text = b.String()
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
