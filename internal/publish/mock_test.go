package publish

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// mockState is the state file, read as anybody would.
type mockState struct {
	State   []mockZone
	Counter int
}

func readState(t testing.TB, path string) (s mockState) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// without returns a zone's records that are not of these names.
func (z mockZone) without(names ...string) []mockRecord {
	return slices.DeleteFunc(slices.Clone(z.Records), func(r mockRecord) bool { return slices.Contains(names, r.Name) })
}

// The life of a zone under a load balancer, as its state file tells it.
func TestMockJSON(t *testing.T) {
	m, path := newMock(t)
	begin := readState(t, path)
	if begin.Counter != 0 || len(begin.State) != 2 || begin.State[1].Records[0].Value != "192.0.2.77" {
		t.Fatalf("at the start: %+v", begin)
	}
	w := newWorld(t)
	o := quick(w, m)
	o.Audit = 50 * time.Millisecond
	p := run(t, o, 1)
	w.apply(rota.Event{Kind: rota.EventTick})
	if now := readState(t, path); now.Counter != 0 || !cmp.Equal(now, begin) {
		t.Errorf("with nothing to publish: %+v", now)
	}

	lb := service("zwiebel.schnitzel.org", "50.0.0.1", "75.0.0.1")
	lb.Zone, lb.TTL = "", 60
	w.respec(func(s *rota.Spec) { s.Services = []rota.Service{lb} })
	w.up("50.0.0.1", "75.0.0.1")
	zwiebel := func() (out []mockRecord) {
		for _, r := range readState(t, path).State[1].Records {
			if r.Name == "zwiebel" {
				out = append(out, r)
			}
		}
		return out
	}
	both := []mockRecord{
		{Class: "IN", Name: "zwiebel", TTL: 60, Type: "A", Value: "50.0.0.1"}, {Class: "IN", Name: "zwiebel", TTL: 60, Type: "A", Value: "75.0.0.1"},
	}
	eventually(t, "two records in order", func() bool { return cmp.Equal(zwiebel(), both) })
	w.down("75.0.0.1")
	eventually(t, "one record", func() bool { return cmp.Equal(zwiebel(), both[:1]) })
	w.up("75.0.0.1")
	eventually(t, "two records", func() bool { return cmp.Equal(zwiebel(), both) })

	// Somebody wipes the zone.
	m.mu.Lock()
	m.held[1].Records = slices.DeleteFunc(slices.Clone(m.held[1].Records), func(r mockRecord) bool { return r.Name == "zwiebel" || r.Name == "_rota" })
	if err := m.save(); err != nil {
		t.Error(err)
	}
	m.mu.Unlock()
	eventually(t, "back after a wipe", func() bool { return cmp.Equal(zwiebel(), both) })
	eventually(t, "settled", func() bool {
		return settled(p.Publisher, w.State().At()) && reasonCode(p.Publisher) == "" && m.Counter() == 6
	})

	// Foreign zones, foreign records with their order, and every SOA are as they were.
	now := readState(t, path)
	if diff := cmp.Diff(begin.State[0], now.State[0]); diff != "" {
		t.Errorf("the foreign zone changed:\n%s", diff)
	}
	if diff := cmp.Diff(begin.State[1].Records, now.State[1].without("zwiebel", "_rota")); diff != "" {
		t.Errorf("foreign records changed:\n%s", diff)
	}
	if now.State[1].SOA != begin.State[1].SOA {
		t.Errorf("the SOA changed: %+v", now.State[1].SOA)
	}
	if now.Counter != m.Counter() {
		t.Errorf("%d writes are counted in the file, %d in all", now.Counter, m.Counter())
	}
	count := m.Counter()
	for range 3 {
		w.apply(rota.Event{Kind: rota.EventTick})
	}
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if m.Counter() != count {
		t.Errorf("%d needless writes", m.Counter()-count)
	}
	// A write that fails counts too.
	p.stop()
	if _, err := m.Write(t.Context(), Batch{Zone: "schnitzel.org.", Fence: rota.Change{
		Old: Fence{Owner: "x"}.RRset("schnitzel.org."), New: Fence{Owner: "x", Seq: 1}.RRset("schnitzel.org."),
	}}); err != ErrMoved || readState(t, path).Counter != count+1 {
		t.Errorf("a write that fails: %v, counter %d", err, readState(t, path).Counter)
	}
}

func TestMockZones(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"lower case":     {"- {name: a.test, records: [{name: www, ttl: 5, type: a, value: 192.0.2.1}]}", ""},
		"empty list":     {"[]", ""},
		"not a list":     {"zones: 3", "list of zones"},
		"unknown key":    {"- {Name: a.test, Zone: b}", "unknown field"},
		"twice":          {"- {Name: a.test}\n- {Name: A.test.}", "twice"},
		"key twice":      {"- {Name: a.test, Name: b.test}", "already"},
		"bad name":       {"- {Name: a..test}", "empty label"},
		"bad record":     {"- {Name: a.test, Records: [{Name: www, Type: A, Value: nonsense}]}", "not the data"},
		"bad type":       {"- {Name: a.test, Records: [{Name: www, Type: NOPE, Value: x}]}", "unknown record type"},
		"bad owner":      {"- {Name: a.test, Records: [{Name: w..w, Type: A, Value: 192.0.2.1}]}", "empty label"},
		"number as text": {"- {Name: a.test, Records: [{Name: www, Type: A, TTL: soon, Value: 192.0.2.1}]}", "string"},
		"not YAML":       {"\t{", "go-yaml"},
	} {
		_, err := parseMockZones([]byte(c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	dir := t.TempDir()
	if _, err := NewMock(MockOptions{Zones: filepath.Join(dir, "none.yaml")}); err == nil {
		t.Error("a file that is not there is accepted")
	}
	zones := filepath.Join(dir, "zones.yaml")
	if err := os.WriteFile(zones, []byte(mockZones), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewMock(MockOptions{Zones: zones, State: filepath.Join(dir, "none", "state.json")}); err == nil {
		t.Error("a state file that cannot be written is accepted")
	}
	if m, err := NewMock(MockOptions{Zones: zones}); err != nil {
		t.Error(err)
	} else if _, err := m.Zone(t.Context(), "www.elsewhere.test."); ReasonOf(err).Code != CodeNoZone {
		t.Errorf("a zone that is not there is %v", err)
	}
}
