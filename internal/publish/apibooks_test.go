package publish

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// bookRow is one record in the books of a provider, in the words of a zone file.
type bookRow struct {
	id   int
	name string // whole, in lower case
	ttl  int
	typ  string
	data string
	off  bool // kept and not answered
	note string
}

func (r bookRow) line() string { return fmt.Sprintf("%s %d IN %s %s", r.name, r.ttl, r.typ, r.data) }

// books are what a provider keeps of one zone. Providers' fakes turn them into the form of their API and back.
type books struct {
	t    testing.TB
	zone string

	mu      sync.Mutex // guards what follows
	rows    []bookRow
	before  []bookRow // what stood there before the last request that changed something
	next    int
	foreign []string // lines that nobody but edit may touch
	read    bool     // somebody has listed the zone
	calm    bool     // nobody has broken anything, so no name may be seen empty
	emptied map[string]bool
}

func newBooks(t testing.TB, zone string, lines ...string) *books {
	b := &books{t: t, zone: zone, next: 1000, calm: true, emptied: map[string]bool{}}
	for _, l := range lines {
		b.put(parseRow(t, l))
	}
	b.foreign = slices.Clone(lines)
	b.before = slices.Clone(b.rows)
	return b
}

func parseRow(t testing.TB, line string) bookRow {
	t.Helper()
	f := strings.SplitN(line, " ", 5)
	ttl, err := strconv.Atoi(f[1])
	if len(f) != 5 || f[2] != "IN" || err != nil {
		t.Fatalf("no record: %q", line)
	}
	return bookRow{name: f[0], ttl: ttl, typ: f[3], data: f[4]}
}

func (b *books) put(r bookRow) int {
	b.next++
	r.id = b.next
	b.rows = append(b.rows, r)
	return r.id
}

// records returns what is answered.
func (b *books) records() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, r := range b.rows {
		if !r.off && !slices.Contains(out, r.line()) {
			out = append(out, r.line())
		}
	}
	slices.Sort(out)
	return out
}

// edit changes the books as a person does.
func (b *books) edit(add, remove []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range remove {
		n := len(b.rows)
		b.rows = slices.DeleteFunc(b.rows, func(r bookRow) bool { return r.line() == l })
		if len(b.rows) == n {
			b.t.Errorf("to be removed by hand, and not there: %s", l)
		}
		b.foreign = slices.DeleteFunc(b.foreign, func(f string) bool { return f == l })
	}
	for _, l := range add {
		b.put(parseRow(b.t, l))
	}
	b.before = slices.Clone(b.rows)
	b.emptied = map[string]bool{}
}

// listing returns the rows for a list, and looks whether a name is empty that was not.
func (b *books) listing(stale bool) []bookRow {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read = true
	for name := range b.emptied {
		if b.calm && !slices.ContainsFunc(b.rows, func(r bookRow) bool { return r.name == name && addressLike(r.typ) }) {
			b.t.Errorf("%s was left without any address", name)
		}
	}
	b.emptied = map[string]bool{}
	if stale {
		return slices.Clone(b.before)
	}
	return slices.Clone(b.rows)
}

func addressLike(typ string) bool { return typ == "A" || typ == "AAAA" || typ == "CNAME" }

// change carries out one request that changes something, whole or not at all.
func (b *books) change(f func() error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.read {
		b.t.Errorf("the zone was written before it was listed")
	}
	was := slices.Clone(b.rows)
	if err := f(); err != nil {
		b.rows = was
		return err
	}
	b.before = was
	var lines []string
	for _, r := range b.rows {
		lines = append(lines, r.line())
	}
	for _, l := range b.foreign {
		if !slices.Contains(lines, l) {
			b.t.Errorf("a foreign record was touched: %s", l)
		}
	}
	for _, r := range was {
		same := func(o bookRow) bool { return o.name == r.name && o.typ == r.typ }
		if addressLike(r.typ) && !slices.ContainsFunc(b.rows, same) {
			b.emptied[r.name] = true
		}
	}
	return nil
}

// conflict returns what keeps a row from being added, as most providers see it.
func (b *books) conflict(r bookRow) error {
	for _, o := range b.rows {
		if o.name == r.name && (o.typ == "CNAME") != (r.typ == "CNAME") || o.name == r.name && r.typ == "CNAME" && o.typ == "CNAME" && o.data != r.data {
			return fmt.Errorf("CNAME and other data at %s", r.name)
		}
	}
	return nil
}

func (b *books) find(id int) int {
	return slices.IndexFunc(b.rows, func(r bookRow) bool { return r.id == id })
}

// rel and abs turn names between whole and relative to the zone; "" is the apex.
func (b *books) rel(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(name, b.zone), ".")
}

func (b *books) abs(name string) string {
	if name == "" || name == "@" {
		return b.zone
	}
	if strings.HasSuffix(name, ".") {
		return strings.ToLower(name)
	}
	return strings.ToLower(name) + "." + b.zone
}

// quoted writes a raw text as a zone file does, bare takes the quotes away.
func quoted(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

func bare(data string) string {
	data = strings.TrimSuffix(strings.TrimPrefix(data, `"`), `"`)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(data)
}
