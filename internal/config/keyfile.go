package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxKeyFile bounds what is read of a file with a TSIG key, in bytes.
const maxKeyFile = 64 << 10

// ReadKey reads a TSIG key from where ref says: file:PATH, or env:NAME with o.Env. What stands there is a BIND key block or a KEY line. No
// error repeats any of it. Keys of weak algorithms (RFC 8945 §6) are refused: they are for configurations that allow them.
func ReadKey(ref string, o Options) (Key, error) {
	var text string
	switch kind, at, _ := strings.Cut(ref, ":"); {
	case kind == "file" && at != "":
		f, err := os.Open(at)
		if err != nil {
			return Key{}, fmt.Errorf("key: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
		if err != nil {
			return Key{}, fmt.Errorf("key: %w", err)
		}
		text = string(b)
	case kind == "env" && at != "":
		var ok bool
		if text, ok = o.withDefaults().Env(at); !ok {
			return Key{}, fmt.Errorf("key: the environment has no %s", at)
		}
	default:
		return Key{}, errors.New("key: want file:PATH or env:NAME; a secret in an argument can be seen by everyone on the machine")
	}
	b := &builder{loader: newLoader(o), c: &Config{}}
	k, ok := b.key(place{}, Secret{value: text, from: ref}, keyText{}, keyRules{whole: true})
	if !ok {
		return Key{}, fmt.Errorf("key: %s", b.problems[0].Message)
	}
	return k, nil
}
