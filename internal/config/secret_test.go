package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

func TestSecretIsNeverShown(t *testing.T) {
	type holder struct {
		S Secret
		P *Secret
	}
	s := Secret{value: "hush", from: "file:/x"}
	h := holder{s, &s}
	var shown []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, h))
	}
	j, _ := json.Marshal(h)
	y, _ := yaml.Dump(h)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "h", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "h", h)
	shown = append(shown, string(j), string(y), log.String(), s.String(), s.GoString())
	for _, text := range shown {
		if strings.Contains(text, "hush") || strings.Contains(text, fmt.Sprintf("%x", "hush")) {
			t.Errorf("shown in %q", text)
		}
	}
	if s.Reveal() != "hush" {
		t.Error("Reveal")
	}
}

func TestSecretsComeFrom(t *testing.T) {
	text := `
api: {tokens: [{name: a, role: viewer, token: {file: a.token}}, {name: b, role: operator, token: {env: B}}, {name: c, role: admin, token: {credential: c}}]}
keys:
  whole: {file: k.key}
  line: {file: k.private}
  base: {algorithm: hmac-sha384, name: dnskey., secret: {file: base}}
  cred: {secret: {credential: tsig}}
  weak: {algorithm: hmac-sha1, allow_weak: true, secret: {file: base}}
`
	files := tree{
		"/etc/rota/a.token": "A\n", "/run/credentials/c": " C ", "/etc/rota/k.key": bindKey, "/run/credentials/tsig": bindKey, "/etc/rota/base": secret64 + "\n",
		"/etc/rota/k.private": "upd.example. IN KEY 512 3 163 " + secret64 + "\n",
	}
	o := options(files)
	o.Env = environment("B", "BB", "CREDENTIALS_DIRECTORY", "/run/credentials")
	c, err := Parse("/etc/rota/rota.yaml", []byte(text), o)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"A", "BB", "C"} {
		if got := c.API.Tokens[i].Token.Reveal(); got != want {
			t.Errorf("token %d: %q", i, got)
		}
	}
	for name, want := range map[string]string{
		"whole": "ddns. hmac-sha512.", "line": "upd.example. hmac-sha256.", "base": "dnskey. hmac-sha384.", "cred": "ddns. hmac-sha512.", "weak": "weak. hmac-sha1.",
	} {
		k := c.Keys[name]
		if got := string(k.Name) + " " + k.Algorithm; got != want || k.Secret.Reveal() != secret64 {
			t.Errorf("%s: %s", name, got)
		}
	}
	if w := said(c.Warnings); !strings.Contains(w, "weak algorithm hmac-sha1") || len(c.Warnings) != 2 {
		t.Errorf("warnings: %s", w) // no service is configured, too
	}
	out := fmt.Sprintf("%+v %#v %s", c, c, c.Effective())
	if j, err := json.Marshal(c); err != nil || strings.Contains(string(j)+out, secret64) || strings.Contains(out, "BB") {
		t.Errorf("a secret is shown: %v %s", err, out)
	}
}

func TestBadSecretsAreNotRepeated(t *testing.T) {
	const hush = "hush-hush-hush"
	for name, text := range map[string]string{
		"not base64":     "keys: {k: {secret: " + hush + "}}",
		"in a URL":       with("endpoints: [192.0.2.1]\npublish: \"rfc2136://a/example.org?key=" + hush + "\""),
		"beside a typo":  "keys:\n  k:\n    secret: '" + hush + "'\n    algoritm: x\n",
		"unclosed":       "keys: {k: {secret: \"" + hush + "}}",
		"token list":     "api: {tokens: [{nam: x, token: " + hush + "}]}",
		"json":           `{"keys": {"k": {"secret": "` + hush + `"}}}`,
		"user in a URL":  with("endpoints: [192.0.2.1]\ncheck: \"http://me:" + hush + "@{}/\""),
		"file":           "keys: {k: {file: bad}}",
		"file of base64": "keys: {k: {secret: {file: bad}}}",
		"folded":         "keys:\n  k:\n    secret: >-\n      " + hush + "\n    x: 1\n",
	} {
		o := options(tree{"/etc/rota/bad": hush})
		_, err := Parse("/etc/rota/rota.yaml", []byte(text), o)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		all, _ := errors.AsType[*Errors](err)
		j, _ := json.Marshal(all)
		if strings.Contains(err.Error()+string(j), hush) {
			t.Errorf("%s: repeated:\n%v", name, err)
		}
	}
}

func TestBadSecrets(t *testing.T) {
	for in, want := range map[string]string{
		"{file: none}":       "no such file",
		"{env: NONE}":        "NONE is not set",
		"{credential: none}": "no such file",
		"{file: empty}":      "is empty",
		"{file: a, env: B}":  "one of",
		"{}":                 "one of",
		"{fil: a}":           `did you mean "file"?`,
		"{credential: ../a}": "no name of a credential",
		"{file: huge}":       "larger than 64 KiB",
		"{file: two}":        "several keys",
		"{file: odd}":        "algorithm",
		"{file: nosecret}":   "without secret",
	} {
		files := tree{
			"/etc/rota/empty": "\n", "/etc/rota/huge": strings.Repeat("x", maxSecret+1), "/etc/rota/two": bindKey + bindKey,
			"/etc/rota/odd": "key a { algorithm rot13; secret \"aa==\"; };", "/etc/rota/nosecret": "key a { algorithm hmac-sha256; };",
		}
		if ps := problems(t, "keys: {k: {secret: "+in+"}}", files); !strings.Contains(said(ps), want) {
			t.Errorf("%s: got\n%swant %s", in, said(ps), want)
		}
	}
	if ps := problems(t, "keys: {k: {algorithm: hmac-md5, secret: {file: b}}}", tree{"/etc/rota/b": secret64}); !strings.Contains(said(ps), "weak algorithm") {
		t.Error(said(ps))
	}
	c := parse(t, "keys: {k: {secret: {file: b.open}}}", tree{"/etc/rota/b.open": secret64})
	if !strings.Contains(said(c.Warnings), "can be read by everybody") {
		t.Error(said(c.Warnings))
	}
}

func TestNoSecretsReadsNone(t *testing.T) {
	o := options(nil)
	o.Env, o.NoSecrets = environment(), true
	if _, err := Parse("/etc/rota/rota.yaml", []byte(example(t, "min-rfc2136.yaml")), o); err != nil {
		t.Error(err)
	}
	_, err := Parse("/etc/rota/rota.yaml", []byte(example(t, "full.yaml")), o)
	all, _ := errors.AsType[*Errors](err)
	for _, p := range all.Problems {
		if !strings.Contains(p.Message, "not supported yet") {
			t.Error(p)
		}
	}
}
