package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFormat(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"line ends, mark, blanks": {"\ufeffa: 1  \r\n\r\n\r\n\r\nb: 2\t\r\n\r\n", "a: 1\n\nb: 2\n"},
		"deep": {
			"a:\n    b:\n        - x\n        # of y\n        - y: 1\n          z: 2 # why\n# end\n",
			"a:\n  b:\n    - x\n    # of y\n    - y: 1\n      z: 2 # why\n# end\n",
		},
		"list at its key": {"a:\n- x\n- y\nb: 1\n", "a:\n  - x\n  - y\nb: 1\n"},
		"block text":      {"a:\n    t: |\n        x\n\n\n          y  \n    u: 1\n", "a:\n  t: |\n      x\n\n\n        y  \n  u: 1\n"},
		"flow goes on":    {"a:\n    b: [1,\n        2]\n", "a:\n  b: [1,\n      2]\n"},
		"quoted goes on":  {"a:\n    b: \"x\n\n      y\"\n    c: 1\n", "a:\n  b: \"x\n\n    y\"\n  c: 1\n"},
		"spaces": {
			"a: [192.0.2.1,   192.0.2.2 ,\"x ,  y\"]   # why,  then\nb:   { c: 1,d:   [ ] , e: it's  so, f: 'x' }\ng:    |\n  x,   y\nh: a,   b\ni:   # none\nj: [ # of j\n  1 ,2\n]\n",
			"a: [192.0.2.1, 192.0.2.2, \"x ,  y\"]   # why,  then\nb: {c: 1, d: [], e: it's  so, f: 'x'}\ng: |\n  x,   y\nh: a,   b\ni:   # none\nj: [ # of j\n  1, 2\n]\n",
		},
		"json": {`{"a":1, // one` + "\n" + `"b":[1,2]}`, "{\n\t\"a\": 1, // one\n\t\"b\": [1, 2],\n}\n"},
	} {
		got, err := Format("tab.yaml", []byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(c.want, string(got)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	for _, name := range []string{"full.yaml", "min-embedded.yaml", "min-rfc2136.yaml"} {
		in := example(t, name)
		got, err := Format("tab.yaml", []byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(in, string(got)); d != "" {
			t.Errorf("%s is not laid out: %s", name, d)
		}
	}
	if _, err := Format("tab.yaml", []byte("a:\n\tb: [")); err == nil || !strings.HasPrefix(err.Error(), "tab.yaml:2:1: ") {
		t.Errorf("what is no YAML: %v", err)
	}
}

func FuzzFormat(f *testing.F) {
	for _, s := range []string{
		example(f, "full.yaml"), rich, "a:\n    - b: 1\n      c: |\n         x\n", "a: \"x\n  y\"\n", "- a\n-  - b\n   - c\n", "? a\n: b\n", "{a: 1,\n  b: 2}",
		"a:\n- - x\n  - y\n# c\n", "a: >-\n  x\n   y\n\n#c", "{\"a\": 1 /* x */}", "a: 'it''s\n  b'\n", "a: &x\n    b: 1\nc: *x\n", "a:\n    x\n    y\n", "a:   {b:  [1,2 ,3], c:   \"x,  y\", ? d }\n", "- [a  ,\n  b, # c\n  'x\n  y' ]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		once, err := Format("tab.yaml", in)
		if err != nil {
			return
		}
		twice, err := Format("tab.yaml", once)
		if err != nil {
			t.Fatalf("%v\n%q\n%q", err, in, once)
		}
		if string(once) != string(twice) {
			t.Fatalf("not settled:\n%q\n%q\n%q", in, once, twice)
		}
	})
}
