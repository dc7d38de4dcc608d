package rota

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Type is the type of a DNS record, by its number.
type Type uint16

// The types rota names.
const (
	TypeA     Type = 1
	TypeNS    Type = 2
	TypeCNAME Type = 5
	TypeSOA   Type = 6
	TypePTR   Type = 12
	TypeMX    Type = 15
	TypeTXT   Type = 16
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
)

var typeNames = map[Type]string{
	TypeA: "A", TypeNS: "NS", TypeCNAME: "CNAME", TypeSOA: "SOA", TypePTR: "PTR", TypeMX: "MX", TypeTXT: "TXT", TypeAAAA: "AAAA",
	TypeSRV: "SRV",
}

// String returns the mnemonic, or TYPEn (RFC 3597 §5).
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// MarshalText writes the mnemonic.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a mnemonic or TYPEn.
func (t *Type) UnmarshalText(b []byte) (err error) {
	*t, err = ParseType(string(b))
	return err
}

// ParseType reads a mnemonic that rota names, or TYPEn, in any case.
func ParseType(s string) (Type, error) {
	up := strings.ToUpper(s)
	for t, name := range typeNames {
		if name == up {
			return t, nil
		}
	}
	if num, ok := strings.CutPrefix(up, "TYPE"); ok {
		if n, err := strconv.ParseUint(num, 10, 16); err == nil {
			return Type(n), nil
		}
	}
	return 0, fmt.Errorf("unknown record type %q", s)
}

// Key names an RRset.
type Key struct {
	Name Name `json:"name"`
	Type Type `json:"type"`
}

func (k Key) String() string { return k.Name.Short() + " " + k.Type.String() }

// RRset is all records of one name and type. Data is the records' data in canonical presentation form (addresses as
// netip.Addr.String writes them, names as Name), sorted, each once. An RRset without data is an absent one.
type RRset struct {
	Name Name     `json:"name"`
	Type Type     `json:"type"`
	TTL  uint32   `json:"ttl"` // seconds
	Data []string `json:"data"`
}

// Key returns what names the RRset.
func (s RRset) Key() Key { return Key{s.Name, s.Type} }

// Equal reports whether both say the same, TTL included.
func (s RRset) Equal(o RRset) bool {
	return s.Key() == o.Key() && (len(s.Data) == 0 || s.TTL == o.TTL) && slices.Equal(s.Data, o.Data)
}

// String returns the records on one line.
func (s RRset) String() string {
	return fmt.Sprintf("%s %d %s %s", s.Name.Short(), s.TTL, s.Type, strings.Join(s.Data, " "))
}

// normal returns s with its data sorted and each once.
func (s RRset) normal() RRset {
	s.Data = slices.Clone(s.Data)
	slices.Sort(s.Data)
	s.Data = slices.Compact(s.Data)
	return s
}

// Change brings one RRset from what it is to what it should be. An absent side has no data.
type Change struct {
	Old RRset  `json:"old"`
	New RRset  `json:"new"`
	Why string `json:"why,omitempty"`
}

// Key returns the changed RRset's name and type.
func (c Change) Key() Key { return c.New.Key() }

// Added lists the data that the change brings, sorted.
func (c Change) Added() []string { return without(c.New.Data, c.Old.Data) }

// Removed lists the data that the change takes away, sorted.
func (c Change) Removed() []string { return without(c.Old.Data, c.New.Data) }

func without(a, b []string) []string {
	var out []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

// String returns the change in one line: the key, then each record with - or +, or the new TTL.
func (c Change) String() string {
	var b strings.Builder
	b.WriteString(c.Key().String())
	for _, d := range c.Removed() {
		b.WriteString(" -" + d)
	}
	for _, d := range c.Added() {
		b.WriteString(" +" + d)
	}
	if len(c.Old.Data) > 0 && len(c.New.Data) > 0 && c.Old.TTL != c.New.TTL {
		fmt.Fprintf(&b, " ttl %d→%d", c.Old.TTL, c.New.TTL)
	}
	return b.String()
}

// Diff returns the changes that bring have to want, sorted by name and type. It speaks only of the RRsets in want; a wanted RRset
// without data asks for its removal. What is in have and not in want is left alone. Each side names a key at most once.
func Diff(have, want []RRset) []Change {
	byKey := make(map[Key]RRset, len(have))
	for _, s := range have {
		byKey[s.Key()] = s.normal()
	}
	var changes []Change
	for _, w := range want {
		w = w.normal()
		h, ok := byKey[w.Key()]
		if !ok {
			h = RRset{Name: w.Name, Type: w.Type}
		}
		if !h.Equal(w) {
			changes = append(changes, Change{Old: h, New: w})
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Key().Name, b.Key().Name), cmp.Compare(a.Key().Type, b.Key().Type))
	})
	return changes
}
