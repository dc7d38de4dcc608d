package rota

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Table is the targets that a vantage was given, sorted, and their fingerprint. Both sides know it, so a packed report names a target
// by its place. It is immutable.
type Table struct {
	ids   []TargetID
	mark  Fingerprint
	plain []Opinion // of each target: up, and nothing else to say; all reports share them
}

// Fingerprint tells whether two tables hold the same targets. Nobody can make another table with the same one.
type Fingerprint [16]byte

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText writes it in hexadecimal digits.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(f[:], b[:min(len(b), 2*len(f))]); err != nil || n != len(f) || len(b) != 2*len(f) {
		return fmt.Errorf("fingerprint %q: want %d hexadecimal digits", b, 2*len(f))
	}
	return nil
}

// NewTable makes the table of these targets; their order and repetitions do not matter.
func NewTable(ids []TargetID) *Table {
	if !slices.IsSorted(ids) {
		ids = slices.Sorted(slices.Values(ids))
	}
	t := &Table{ids: slices.Compact(slices.Clone(ids))}
	t.plain = make([]Opinion, len(t.ids))
	h := sha256.New()
	var buf []byte
	for i, id := range t.ids {
		t.plain[i] = Opinion{Target: id, Status: Up, Class: ClassOK}
		buf = append(binary.AppendUvarint(buf[:0], uint64(len(id))), id...)
		h.Write(buf)
	}
	copy(t.mark[:], h.Sum(nil))
	return t
}

// TableOf makes the table of these targets.
func TableOf(ts []Target) *Table {
	ids := make([]TargetID, len(ts))
	for i, t := range ts {
		ids[i] = t.ID
	}
	return NewTable(ids)
}

// Fingerprint returns the table's fingerprint.
func (t *Table) Fingerprint() Fingerprint { return t.mark }

// Targets returns the table's targets, sorted. The slice must not be changed.
func (t *Table) Targets() []TargetID { return t.ids }

// holds reports whether the table holds these targets, which are sorted and each once.
func (t *Table) holds(ts []Target) bool {
	return slices.EqualFunc(t.ids, ts, func(id TargetID, t Target) bool { return id == t.ID })
}
