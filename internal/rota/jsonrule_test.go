package rota

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

func judgeJSON(t *testing.T, doc, pointer, want string) string {
	t.Helper()
	r, err := ParseJSONRule(JSONRule{Pointer: pointer, Want: want})
	if err != nil {
		return "rule: " + err.Error()
	}
	if err := JudgeJSON([]byte(doc), []ParsedJSONRule{r}); err != nil {
		return err.Error()
	}
	return "ok"
}

func TestJSONRules(t *testing.T) {
	const doc = ` {"status":"ok", "load": 89.9, "n":12345678901234567890, "":1, "a/b":{"c~d":[10, {"x":null}, true]}, "\u0064b":"\u006fk",
		"twice":1, "twice":2, "text":"7", "deep":{"b":[1,2],"a":1.0}, "e":1e3, "tiny":1e-400, "vast":-1e999999999999999999999} `
	for _, c := range []struct{ pointer, want, is string }{
		{"/status", `"ok"`, "ok"},
		{"/status", `"up"`, `JSON /status is "ok", want "up"`},
		{"/none", `1`, "JSON /none is not there"},
		{"/status/0", `1`, "JSON /status/0 is not there"},
		{"/", `1`, "ok"},
		{"/a~1b/c~0d/0", `1e1`, "ok"},
		{"/a~1b/c~0d/1/x", `null`, "ok"},
		{"/a~1b/c~0d/2", `true`, "ok"},
		{"/a~1b/c~0d/2", `false`, "JSON /a~1b/c~0d/2 is true, want false"},
		{"/a~1b/c~0d/3", `1`, "JSON /a~1b/c~0d/3 is not there"},
		{"/a~1b/c~0d/-", `1`, "JSON /a~1b/c~0d/- is not there"},
		{"/a~1b/c~0d/00", `10`, "JSON /a~1b/c~0d/00 is not there"},
		{"/a~1b/c~0d/+0", `10`, "JSON /a~1b/c~0d/+0 is not there"},
		{"/a~1b/c~0d/99999999999999999999", `10`, "JSON /a~1b/c~0d/99999999999999999999 is not there"},
		{"/db", `"\u006f\u006B"`, "ok"},
		{"/twice", `2`, "JSON /twice stands there twice"},
		{"/load", "< 90", "ok"},
		{"/load", "<89.9", "JSON /load is 89.9, want < 89.9"},
		{"/load", "<= 8.99e1", "ok"},
		{"/load", ">= 8990E-2", "ok"},
		{"/load", "!= 89.90", "JSON /load is 89.9, want != 89.90"},
		{"/load", "== 89.90", "ok"},
		{"/text", "< 90", `JSON /text is "7", want a number < 90`},
		{"/n", "12345678901234567890", "ok"},
		{"/n", "12345678901234567891", "JSON /n is 12345678901234567890, want 12345678901234567891"},
		{"/n", "> 12345678901234567889.9", "ok"},
		{"/tiny", "> 0", "ok"},
		{"/vast", "< -1e308", "ok"},
		{"/e", "1000", "ok"},
		{"/deep", `{"a":1,"b":[1,2.0]}`, "ok"},
		{"/deep", `{"a":1,"b":[1]}`, `JSON /deep is {"b":[1,2],"a":1.0}, want {"a":1,"b":[1]}`},
		{"/deep", `{"a":1,"b":[1,2,3]}`, `JSON /deep is {"b":[1,2],"a":1.0}, want {"a":1,"b":[1,2,3]}`},
		{"/deep", `{"a":1}`, `JSON /deep is {"b":[1,2],"a":1.0}, want {"a":1}`},
		{"/deep", `{"a":1,"c":1}`, `JSON /deep is {"b":[1,2],"a":1.0}, want {"a":1,"c":1}`},
		{"/deep", `[]`, `JSON /deep is {"b":[1,2],"a":1.0}, want []`},
		{"", `{}`, "JSON document is " + cite([]byte(strings.TrimSpace(doc))) + ", want {}"},

		{"status", `1`, `rule: JSON pointer "status": begin with /, as in /status/db (RFC 6901)`},
		{"/a~b", `1`, `rule: JSON pointer "/a~b": write ~ as ~0, and / within a key as ~1 (RFC 6901 §3)`},
		{"/a~", `1`, `rule: JSON pointer "/a~": write ~ as ~0, and / within a key as ~1 (RFC 6901 §3)`},
		{strings.Repeat("/x", 33), `1`, `rule: JSON pointer "` + strings.Repeat("/x", 33) + `" has more than 32 steps`},
		{strings.Repeat("/x", 600), `1`, `rule: JSON pointer is longer than 1024 bytes`},
		{"/x", `"` + strings.Repeat("x", 1024), `rule: value wanted at "/x" is longer than 1024 bytes`},
		{"/x", `ok`, `rule: "ok" at "/x" is neither a JSON value (text stands in quotes) nor a comparison such as "< 90"`},
		{"/x", ``, `rule: "" at "/x" is neither a JSON value (text stands in quotes) nor a comparison such as "< 90"`},
		{"/x", `< x`, `rule: "< x" at "/x": want a number after <, as in "< 90"`},
		{"/x", `<= "9"`, `rule: "<= \"9\"" at "/x": want a number after <=, as in "<= 90"`},
	} {
		if got := judgeJSON(t, doc, c.pointer, c.want); got != c.is {
			t.Errorf("%s %s:\ngot  %s\nwant %s", c.pointer, c.want, got, c.is)
		}
	}
	for doc, want := range map[string]string{
		"":                         "body is not JSON",
		"<html>":                   "body is not JSON",
		"{\"a\":1} {\"a\":1}":      "body is not JSON",
		"{\"a\":1,}":               "body is not JSON",
		"{\"a\":NaN}":              "body is not JSON",
		"\ufeff{\"a\":1}":          "body is not JSON",
		"{\"a\":\"\xff\"}":         "body is not JSON: it is not UTF-8",
		"{\"a\":1":                 "body is not JSON",
		"{\"b\":{\"a\":1}}":        "JSON /a is not there",
		"[1]":                      "JSON /a is not there",
		"7":                        "JSON /a is not there",
		"{}":                       "JSON /a is not there",
		"[]":                       "JSON /a is not there",
		"{\"a\":[\"]\",\"\\\"\"]}": `JSON /a is ["]","\""], want 1`,
		strings.Repeat("[", 1<<20): "body is not JSON",
		"{\"b\":" + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + ",\"a\":1}": "ok",
		"{\"a\":" + strings.Repeat("9", 100) + "}":                                      "JSON /a is " + strings.Repeat("9", 60) + "…, want 1",
	} {
		if got := judgeJSON(t, doc, "/a", "1"); got != want {
			t.Errorf("%.40q: got %s, want %s", doc, got, want)
		}
	}
	if got := judgeJSON(t, `{"a":{"x":`+strings.Repeat(" ", maxCompared)+`1}}`, "/a", `{"x":1}`); got != "JSON /a is larger than 64 KiB, too large to compare" {
		t.Error(got)
	}
	if got := judgeJSON(t, `{"a":{"x":1,"x":1}}`, "/a", `{"x":1,"y":1}`); got != `JSON /a has a key twice: "x"` {
		t.Error(got)
	}
}

// FuzzJSONRule compares with encoding/json and math/big, where those can tell.
func FuzzJSONRule(f *testing.F) {
	f.Add(`{"a":[1,{"b":"c"}]}`, "/a/1/b", `"c"`)
	f.Add(`{"a":-1.50e3,"~":1}`, "/a", "<= -1500")
	f.Add(`{"a":{"x":[1,2],"y":{}}}`, "/a", `{"y":{},"x":[1,2.0]}`)
	f.Add(`["\ud800", "\u0000"]`, "/0", `"\ufffd"`)
	f.Fuzz(func(t *testing.T, doc, pointer, want string) {
		r, err := ParseJSONRule(JSONRule{Pointer: pointer, Want: want})
		if err != nil {
			return
		}
		err = JudgeJSON([]byte(doc), []ParsedJSONRule{r})
		if !json.Valid([]byte(doc)) && err == nil {
			t.Fatalf("%q is not JSON", doc)
		}
		if err != nil {
			return
		}
		// What holds is there for encoding/json, too. It takes the last of keys that stand twice, which no rule meets.
		var v any
		d := json.NewDecoder(strings.NewReader(doc))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		for _, token := range r.path {
			switch x := v.(type) {
			case map[string]any:
				v = x[token]
			case []any:
				var n int
				if err := json.Unmarshal([]byte(token), &n); err != nil {
					t.Fatal(err)
				}
				v = x[n]
			}
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if number, ok := v.(json.Number); ok && len(number) < 40 && len(r.want) < 40 && !strings.ContainsAny(string(number)+string(r.want), "eE") {
			a, _ := new(big.Rat).SetString(string(number))
			b, _ := new(big.Rat).SetString(string(r.want))
			if c := a.Cmp(b); c != parseDecimal([]byte(number)).cmp(parseDecimal(r.want)) || r.compare == "" && c != 0 {
				t.Fatalf("%s %s %s does not hold", number, r.compare, r.want)
			}
			return
		}
		if r.compare == "" {
			if same, err := equal(text, r.want); !same || err != nil {
				t.Fatalf("%s is not %s: %v", text, r.want, err)
			}
		}
	})
}
