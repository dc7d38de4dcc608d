package config

import (
	"fmt"
	"log/slog"
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
