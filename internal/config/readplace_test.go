package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

func TestReadPlace(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := write("secret", []byte(" s3cret\r\n"))
	blank, big := write("blank", []byte(" \n")), write("big", bytes.Repeat([]byte("s3cret"), 1<<18))
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Env: environment("TOKEN", "t0ken\n", "BLANK", " ", "CREDENTIALS_DIRECTORY", dir)}
	for p, want := range map[rota.Place]string{"file:" + rota.Place(secret): "s3cret", "env:TOKEN": "t0ken", "credential:secret": "s3cret"} {
		if got, err := ReadPlace(p, o); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", p, got, err, want)
		}
	}
	for p, want := range map[rota.Place]string{
		"":                              `"" is no place: want file:PATH, env:NAME or credential:NAME`,
		"file:":                         `"file:" is no place: want file:PATH, env:NAME or credential:NAME`,
		"https://x/":                    `"https://x/" is no place: want file:PATH, env:NAME or credential:NAME`,
		"file:secret":                   "file:secret is no absolute path",
		"file:/none/such":               "file /none/such: no such file",
		"file:" + rota.Place(dir):       "file " + dir + ": is a directory; name a file, which may hold include: [DIRECTORY/*.yaml]",
		"file:" + rota.Place(pipe):      "file " + pipe + ": is no regular file (p---------)",
		"file:" + rota.Place(blank):     "file " + blank + " is empty",
		"file:" + rota.Place(big):       "file " + big + ": is larger than 1 MiB, the limit",
		"env:NONE":                      "environment variable NONE is not set",
		"env:BLANK":                     "environment variable BLANK is empty",
		"credential:none":               "credential " + dir + "/none: no such file",
		"credential:../" + "etc/passwd": "credential:../etc/passwd is no name of a credential",
		"credential:..":                 "credential " + filepath.Dir(dir) + ": is a directory; name a file, which may hold include: [DIRECTORY/*.yaml]",
	} {
		got, err := ReadPlace(p, o)
		if err == nil || err.Error() != want || got != nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v; want %s", p, got, err, want)
		}
	}
	if _, err := ReadPlace("credential:x", Options{Env: environment()}); err == nil || err.Error() != `credential "x": systemd passed no credentials to this process` {
		t.Error(err)
	}
}
