package config

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// hidden is what every way of printing a Secret shows.
const hidden = "***"

// Secret is a value that no log, error, answer, metric or dump may show. Every way of printing or encoding it gives "***";
// only Reveal gives the value.
type Secret struct {
	value string
	from  string // where it came from, such as file:/etc/rota/tsig.key; empty when it stands in the configuration
}

// NewSecret hides value.
func NewSecret(value string) Secret { return Secret{value: value} }

// Reveal returns the value. Call it where the value is used, and keep the result in no structure.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

// Source says where the value came from: file:PATH, env:NAME, credential:NAME, or "" when it stood in the configuration.
func (s Secret) Source() string { return s.from }

// String returns "***".
func (s Secret) String() string { return hidden }

// GoString returns "***".
func (s Secret) GoString() string { return hidden }

// Format writes "***" for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue returns "***".
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText returns "***".
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON returns "***" as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// MarshalYAML returns "***".
func (s Secret) MarshalYAML() (any, error) { return hidden, nil }

// ReadPlace returns what is at a place on this machine now, without the space round it: at most 1 MiB. It never waits for a writer. An
// error says what is wrong with the place, and nothing of what is there. Whether this machine may read it at all, Config.Places says.
func ReadPlace(p rota.Place, o Options) ([]byte, error) {
	o = o.withDefaults()
	form, name, _ := strings.Cut(string(p), ":")
	path := name
	switch form {
	case "file":
		if !filepath.IsAbs(name) {
			return nil, fmt.Errorf("%q is no absolute path", short(name))
		}
	case "env":
		v, ok := o.Env(name)
		if v = strings.TrimSpace(v); v == "" {
			return nil, fmt.Errorf("environment variable %s is %s", short(name), map[bool]string{true: "empty", false: "not set"}[ok])
		}
		return []byte(v), nil
	case "credential":
		dir, ok := o.Env("CREDENTIALS_DIRECTORY")
		if !ok {
			return nil, fmt.Errorf("credential %q: systemd passed no credentials to this process: LoadCredential= in the unit, or use a file", short(name))
		}
		if err := parseCredential(name); err != nil {
			return nil, err
		}
		path = filepath.Join(dir, name)
	default:
		return nil, fmt.Errorf("%q is no place: want file:PATH, env:NAME or credential:NAME", short(string(p)))
	}
	text, _, err := o.filesystem.read(path, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if text = bytes.TrimSpace(text); len(text) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return text, nil
}

// parseCredential refuses what is no name of a systemd credential, and would lead out of their directory.
func parseCredential(s string) error {
	if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00") {
		return fmt.Errorf("%q is no name of a credential", short(s))
	}
	return nil
}
