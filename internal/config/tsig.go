package config

import (
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// algorithmNames maps what people write to the names of RFC 8945 §6.
var algorithmNames = map[string]string{
	"hmac-md5": "hmac-md5.sig-alg.reg.int.", "hmac-sha1": "hmac-sha1.", "hmac-sha224": "hmac-sha224.",
	"hmac-sha256": "hmac-sha256.", "hmac-sha384": "hmac-sha384.", "hmac-sha512": "hmac-sha512.",
}

// keyAlgorithms maps the algorithm numbers of KEY records that hold TSIG keys, as BIND's tools number them.
var keyAlgorithms = map[string]string{
	"157": "hmac-md5", "161": "hmac-sha1", "162": "hmac-sha224", "163": "hmac-sha256", "164": "hmac-sha384", "165": "hmac-sha512",
}

func algorithms() []string { return slices.Sorted(maps.Keys(algorithmNames)) }

var (
	keyBlock = regexp.MustCompile(`(?is)\bkey\s+"?([^\s"{;]+)"?\s*\{([^}]*)\}`)
	keyField = regexp.MustCompile(`(?i)\b(algorithm|secret)\s+"?([^\s";]+)"?\s*;`)
	keyLine  = regexp.MustCompile(`(?im)^\s*(\S+)\s+(?:\d+\s+)?(?:IN\s+)?KEY\s+\d+\s+\d+\s+(\d+)\s+([A-Za-z0-9+/= ]+)$`)
	comments = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*|(?m)^\s*#[^\n]*`)
)

// keyText is what a key file says.
type keyText struct{ name, algorithm, secret string }

// parseKeyText reads a BIND key block or a KEY line. It returns false when text is neither, and an error without the text when it
// is one that cannot be used.
func parseKeyText(text string) (keyText, bool, error) {
	if m := keyLine.FindAllStringSubmatch(text, 2); len(m) == 1 {
		k := keyText{m[0][1], keyAlgorithms[m[0][2]], strings.ReplaceAll(m[0][3], " ", "")}
		if k.algorithm == "" {
			return k, true, fmt.Errorf("holds a KEY of algorithm %s, which is none of TSIG", m[0][2])
		}
		return k, true, nil
	}
	// base64 may hold "//": comments are cut only when the text as it stands is not one key.
	blocks := keyBlock.FindAllStringSubmatch(text, 2)
	if len(blocks) != 1 {
		blocks = keyBlock.FindAllStringSubmatch(comments.ReplaceAllString(text, ""), 2)
	}
	switch len(blocks) {
	case 0:
		return keyText{}, false, nil
	case 2:
		return keyText{}, true, fmt.Errorf("holds several keys; give each a file of its own")
	}
	k := keyText{name: blocks[0][1]}
	for _, f := range keyField.FindAllStringSubmatch(blocks[0][2], -1) {
		switch strings.ToLower(f[1]) {
		case "algorithm":
			k.algorithm = strings.ToLower(strings.TrimSuffix(f[2], "."))
		case "secret":
			k.secret = f[2]
		}
	}
	if k.algorithm == "hmac-md5.sig-alg.reg.int" {
		k.algorithm = "hmac-md5"
	}
	switch {
	case k.secret == "":
		return k, true, fmt.Errorf("holds a key block without secret")
	case algorithmNames[k.algorithm] == "":
		return k, true, fmt.Errorf("holds a key of algorithm %q: want %s", short(k.algorithm), oneOf(algorithms()))
	}
	return k, true, nil
}

// keys reads the TSIG keys.
func (b *builder) keys() {
	b.c.Keys = map[string]Key{}
	for _, e := range words.entries(b.root.get("keys")) {
		n := e.value
		if n.kind != isMap {
			continue
		}
		file, secret := n.get("file"), n.get("secret")
		var s Secret
		var ok bool
		switch {
		case n.has("file") == n.has("secret"):
			b.fail(e.at, "", "key %q wants either secret or file", e.key)
		case file != nil:
			s, ok = b.secretFrom(file.at, "file", file.text)
		default:
			s, ok = b.secret(secret)
		}
		weak, _ := parseBool(textOr(n.get("allow_weak"), "false"))
		want := keyText{name: textOr(n.get("name"), ""), algorithm: textOr(n.get("algorithm"), "")}
		if k, ok := b.key(e.at, s, want, keyRules{fallback: e.key, whole: file != nil, weak: weak, unread: !ok}); ok {
			b.c.Keys[e.key] = k
		}
	}
}

// keyRules say how a key is put together.
type keyRules struct {
	fallback string // its name when nothing else gives one
	whole    bool   // the text has to be a whole key, with name and algorithm
	weak     bool   // hmac-sha1 and hmac-md5 may be used
	unread   bool   // there is no text, as was said before: the rest is judged without it
}

// key makes a TSIG key of a secret's text, which may be base64 or a whole key, and of what the configuration says beside it. It
// returns false after a problem, and has noted all there are.
func (b *builder) key(at place, s Secret, want keyText, r keyRules) (Key, bool) {
	k := keyText{secret: s.value}
	source := sourceName(s)
	unread, ok := b.o.NoSecrets || r.unread, !r.unread
	fail := func(hint, format string, args ...any) {
		ok = false
		b.fail(at, hint, format, args...)
	}
	if !unread {
		got, is, err := parseKeyText(s.value)
		switch {
		case err != nil:
			fail("", "%s %v", source, err)
			unread = true
		case is:
			k = got
		case r.whole:
			fail("want: key NAME { algorithm hmac-sha256; secret \"…\"; };", "%s is neither a BIND key block nor a KEY line", source)
			unread = true
		}
	}
	if want.algorithm != "" && k.algorithm != "" && want.algorithm != k.algorithm {
		fail("", "%s is a key of algorithm %s, and the configuration says %s", source, k.algorithm, want.algorithm)
	}
	algorithm := want.algorithm
	for _, a := range []string{k.algorithm, "hmac-sha256"} {
		if algorithm == "" {
			algorithm = a
		}
	}
	name := want.name
	for _, n := range []string{k.name, r.fallback} {
		if name == "" {
			name = n
		}
	}
	if name == "" && unread {
		name = "unread" // the key's own file names it
	}
	parsed, err := parseName(name)
	if err != nil {
		fail("write name: NAME", "key: %v", err)
		parsed = "unnamed."
	}
	if k.name != "" && want.name != "" {
		if inFile, err := parseName(k.name); err == nil && inFile != parsed {
			fail("", "%s is key %s, and the configuration says %s", source, inFile.Short(), parsed.Short())
		}
	}
	if !unread {
		raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(k.secret), ""))
		if err != nil || len(raw) == 0 {
			fail("", "the secret of key %q is not base64", parsed.Short())
		}
	}
	if algorithm == "hmac-sha1" || algorithm == "hmac-md5" {
		if !r.weak {
			fail("use hmac-sha256, or write allow_weak: true", "key %q is of the weak algorithm %s", parsed.Short(), algorithm)
		} else {
			b.warn(at, "use hmac-sha256", "key %q is of the weak algorithm %s", parsed.Short(), algorithm)
		}
	}
	if !ok {
		return Key{}, false
	}
	return Key{Name: parsed, Algorithm: algorithmNames[algorithm], Secret: Secret{value: strings.Join(strings.Fields(k.secret), ""), from: s.from}}, true
}

// sourceName says where a secret came from, for messages.
func sourceName(s Secret) string {
	if s.from == "" {
		return "the secret"
	}
	return s.from
}

// algorithm is the short form of the key's algorithm.
func (k Key) algorithm() string {
	for _, short := range algorithms() {
		if algorithmNames[short] == k.Algorithm {
			return short
		}
	}
	return strings.TrimSuffix(k.Algorithm, ".")
}

// parseMailbox reads the mailbox of an SOA record: a name, or an address with @.
func parseMailbox(s string) (rota.Name, error) {
	if local, rest, ok := strings.Cut(s, "@"); ok {
		if strings.Contains(rest, "@") || local == "" {
			return "", fmt.Errorf("%q is no mailbox", s)
		}
		s = strings.ReplaceAll(strings.ReplaceAll(local, `\`, `\\`), ".", `\.`) + "." + rest
	}
	return parseName(s)
}
