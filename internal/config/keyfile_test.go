package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file:" + path
	}
	const secret = "c2VjcmV0IG9mIGEgdGVzdA=="
	block := `key "ddns." { algorithm hmac-sha512; secret "` + secret + `"; };`
	o := Options{Env: func(name string) (string, bool) { return block, name == "KEY" }}
	for _, ref := range []string{file("good", block), "env:KEY"} {
		k, err := ReadKey(ref, o)
		if err != nil || k.Name != "ddns." || k.Algorithm != "hmac-sha512." || k.Secret.Reveal() != secret {
			t.Errorf("%s: %v %v", ref, k, err)
		}
	}
	for ref, want := range map[string]string{
		secret:                        "want file:PATH or env:NAME",
		"file:" + dir + "/none":       "no such file",
		"env:OTHER":                   "has no OTHER",
		file("text", secret):          "neither a BIND key block nor a KEY line",
		file("two", block+"\n"+block): "several keys",
		file("weak", strings.Replace(block, "sha512", "md5", 1)): "weak",
		file("bad", strings.Replace(block, "c2V", "***", 1)):     "base64",
	} {
		_, err := ReadKey(ref, o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v; want an error with %q", strings.ReplaceAll(ref, secret, "SECRET"), err, want)
		}
	}
}
