package config

import (
	"strings"
	"testing"
)

func TestMaskedLinesStayReadable(t *testing.T) {
	for in, want := range map[string]string{
		`path: "/h?token=abc", headers: {a: b}`:       `path: "/h?token=***", headers: {a: b}`,
		`path: '/h?token=abc&x=1', host: a`:           `path: '/h?token=***&x=1', host: a`,
		`token: "it, has } \" all", role: x`:          `token: "***", role: x`,
		`{"token": "a", "secret": 'it''s', "x": "y"}`: `{"token": "***", "secret": '***', "x": "y"}`,
		`password: plain words, headers: {a: b}`:      `password: ***, headers: {a: b}`,
		`password: with,commas and more`:              `password: ***`,
		`secret: "never closed}}`:                     `secret: "***`,
		`token: {file: a.token}, role: x`:             `token: {file: a.token}, role: x`,
		`secret: ${HUSH}`:                             `secret: ${HUSH}`,
		`publish: "rfc2136://a/b?key=hush", ttl: 3s`:  `publish: "rfc2136://a/b?key=***", ttl: 3s`,
		`[a?key=file:/x, b?key=hush]`:                 `[a?key=file:/x, b?key=***]`,
		`check: "http://me:pw@{}/", ttl: 3s`:          `check: "http://***@{}/", ttl: 3s`,
		`header: {Authorization: Bearer abc}`:         `header: {Authorization: ***}`,
	} {
		if got := mask(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestCaretIsUnderWhatIsMeant(t *testing.T) {
	for _, in := range []string{
		"checks: {w: {type: http, path: \"/h?token=a-long-token\", headers: {a: b}}}",
		"keys: {k: {secret: a-long-secret-of-many-words, headers: x}}",
	} {
		p := problems(t, in)
		shown := strings.Split(p[len(p)-1].String(), "\n")
		from := strings.Index(shown[2], "^")
		if got := shown[1][from : from+strings.Count(shown[2], "^")]; got != "headers" {
			t.Errorf("marked is %q:\n%s", got, strings.Join(shown, "\n"))
		}
	}
}
