package publish

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/miekg/dns"
	"go.yaml.in/yaml/v4"

	"github.com/rota-dns/rota/internal/rota"
)

// MockOptions says what a mock holds at the start, and where it shows what it holds.
type MockOptions struct {
	Zones string // path of a YAML file: a list of zones, each with Name, SOA and Records
	State string // path of the JSON file that shows the zones and counts the writes; empty: none
}

// Mock is a Backend in memory, to try a configuration out and to test with. It begins anew from its file at every start.
type Mock struct {
	*ledger
	state string

	mu      sync.Mutex // guards what follows
	held    []mockZone
	counter int
}

// mockZone is a zone as the files hold it.
type mockZone struct {
	Name    string
	SOA     mockSOA
	Records []mockRecord
}

// mockSOA is a zone's start of authority. Writes leave it alone.
type mockSOA struct {
	MName, RName                        string
	Serial, Refresh, Retry, Expire, TTL uint32
}

// mockRecord is one record.
type mockRecord struct {
	Class      string
	Name       string // relative to the zone; empty: the zone itself
	TTL        uint32
	Type       string
	Value      string
	Preference uint16 // of an MX record
}

// maxZoneFile bounds files of zones, in bytes.
const maxZoneFile = 64 << 20

// NewMock reads the zones and writes the state file.
func NewMock(o MockOptions) (*Mock, error) {
	text, err := readBounded(o.Zones)
	if err != nil {
		return nil, fmt.Errorf("mock: zones: %w", err)
	}
	zones, err := parseMockZones(text)
	if err != nil {
		return nil, fmt.Errorf("mock: zones: %s: %w", o.Zones, err)
	}
	m := &Mock{state: o.State, held: zones}
	m.ledger = newLedger((*mockDriver)(m), 0)
	return m, m.save()
}

// readBounded reads a file of at most maxZoneFile bytes. What is no file, such as a pipe, is not waited for.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, cmp.Or(err, fmt.Errorf("%s is no regular file", path))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxZoneFile+1))
	if err == nil && len(b) > maxZoneFile {
		err = fmt.Errorf("%s is larger than %d MiB", path, maxZoneFile>>20)
	}
	return b, err
}

// parseMockZones reads the list of zones. Keys may be written in any case; unknown ones are errors.
func parseMockZones(text []byte) ([]mockZone, error) {
	var tree any
	if err := yaml.Load(text, &tree, yaml.WithUniqueKeys()); err != nil {
		return nil, err
	}
	plain, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("want a list of zones: %w", err)
	}
	var zones []mockZone
	d := json.NewDecoder(bytes.NewReader(plain))
	d.DisallowUnknownFields()
	if err := d.Decode(&zones); err != nil {
		return nil, fmt.Errorf("want a list of zones with Name, SOA and Records: %w", err)
	}
	seen := map[rota.Name]bool{}
	for _, z := range zones {
		n, err := rota.ParseName(z.Name)
		if err != nil {
			return nil, fmt.Errorf("zone: %w", err)
		}
		if seen[n] {
			return nil, fmt.Errorf("zone %s is there twice", n.Short())
		}
		seen[n] = true
		for _, r := range z.Records {
			if _, err := r.entry(n); err != nil {
				return nil, fmt.Errorf("zone %s: %w", n.Short(), err)
			}
		}
	}
	return zones, nil
}

// entry is the record in the form of rota.RRset.
func (r mockRecord) entry(zone rota.Name) (entry, error) {
	name := zone
	if r.Name != "" && r.Name != "@" {
		var err error
		if name, err = rota.ParseName(strings.TrimSuffix(r.Name, ".") + "." + strings.TrimPrefix(string(zone), ".")); err != nil {
			return entry{}, err
		}
	}
	t, ok := dns.StringToType[strings.ToUpper(r.Type)]
	if !ok {
		return entry{}, fmt.Errorf("%s: unknown record type %q", name.Short(), r.Type)
	}
	text := r.Value
	if t == dns.TypeMX {
		text = strconv.Itoa(int(r.Preference)) + " " + dns.Fqdn(text)
	}
	data, err := canonical(rota.Type(t), text)
	if err != nil {
		return entry{}, fmt.Errorf("%s: %w", name.Short(), err)
	}
	return entry{Key: rota.Key{Name: name, Type: rota.Type(t)}, TTL: r.TTL, Data: data}, nil
}

// mockRecordOf is the reverse of entry.
func mockRecordOf(zone rota.Name, k rota.Key, ttl uint32, data string) (mockRecord, error) {
	r := mockRecord{Class: "IN", Type: dns.Type(k.Type).String(), TTL: ttl, Value: data}
	if k.Name != zone {
		r.Name = strings.TrimSuffix(strings.TrimSuffix(string(k.Name), string(zone)), ".")
	}
	switch k.Type {
	case rota.TypeTXT:
		var err error
		r.Value, err = plainTXT(data)
		return r, err
	case rota.TypeMX:
		preference, value, _ := strings.Cut(data, " ")
		n, err := strconv.ParseUint(preference, 10, 16)
		r.Preference, r.Value = uint16(n), value
		return r, err
	}
	return r, nil
}

// Counter returns how many writes there were, the refused ones included.
func (m *Mock) Counter() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counter
}

// Write counts, and shows the outcome in the state file.
func (m *Mock) Write(ctx context.Context, b Batch) (int, error) {
	n, err := m.ledger.Write(ctx, b)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counter++
	if serr := m.save(); serr != nil && err == nil {
		err = &Reason{
			Code: CodeServfail, Transient: true, InDoubt: true, Text: rota.CleanReason("the state file cannot be written: %v", serr),
			Advice: "check publish.….state: the directory has to be there and to be writable",
		}
	}
	return n, err
}

// save writes the state file whole, or not at all. The caller holds mu, or is the only one yet.
func (m *Mock) save() error {
	if m.state == "" {
		return nil
	}
	text, err := json.MarshalIndent(struct {
		State   []mockZone
		Counter int
	}{m.held, m.counter}, "", "  ")
	if err != nil {
		return err
	}
	next := m.state + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(next, m.state)
}

// mockDriver is Mock as the ledger sees it.
type mockDriver Mock

func (m *mockDriver) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true}
}

func (m *mockDriver) zones(context.Context) ([]rota.Name, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []rota.Name
	for _, z := range m.held {
		out = append(out, rota.MustParseName(z.Name)) // parseMockZones has
	}
	return out, nil
}

// at returns the index of a zone. The caller holds mu.
func (m *mockDriver) at(zone rota.Name) (int, error) {
	i := slices.IndexFunc(m.held, func(z mockZone) bool { return rota.MustParseName(z.Name) == zone })
	if i < 0 {
		return 0, &Reason{Code: CodeNoZone, Zone: zone, Text: "the mock does not hold the zone", Advice: "add it to publish.….zones"}
	}
	return i, nil
}

func (m *mockDriver) list(_ context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.at(zone)
	if err != nil {
		return nil, err
	}
	return m.held[i].entries(zone), nil
}

func (z mockZone) entries(zone rota.Name) []entry {
	var out []entry
	for _, r := range z.Records {
		if e, err := r.entry(zone); err == nil && (r.Class == "" || strings.EqualFold(r.Class, "IN")) {
			out = append(out, e)
		}
	}
	return out
}

// commit keeps the order of the records: what stays stays where it is, what comes is at the end.
func (m *mockDriver) commit(_ context.Context, b Batch, _ []entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.at(b.Zone)
	if err != nil {
		return err
	}
	if err := stands(b, m.held[i].entries(b.Zone)); err != nil {
		return err
	}
	records := slices.Clone(m.held[i].Records)
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		missing := slices.Clone(c.New.Data)
		stays := records[:0]
		for _, r := range records {
			e, err := r.entry(b.Zone)
			if err == nil && e.Key == c.Key() {
				at := slices.Index(missing, e.Data)
				if at < 0 {
					continue
				}
				missing = slices.Delete(missing, at, at+1)
				r.TTL = c.New.TTL
			}
			stays = append(stays, r)
		}
		records = stays
		for _, data := range missing {
			r, err := mockRecordOf(b.Zone, c.Key(), c.New.TTL, data)
			if err != nil {
				return &Reason{Code: CodeUnsupported, Zone: b.Zone, Name: c.Key().Name, Text: rota.CleanReason("%v", err), Advice: "see the data of the record"}
			}
			records = append(records, r)
		}
	}
	m.held[i].Records = records
	return nil
}
