package rota

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseName(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 63)+".", 3)
	for _, tt := range []struct{ in, want string }{
		{".", "."},
		{"www.example.org", "www.example.org."},
		{"WWW.Example.ORG.", "www.example.org."},
		{"*.example.org", "*.example.org."},
		{"_dns._udp.a-.-b", "_dns._udp.a-.-b."},
		{`a\.b.org`, `a\.b.org.`},
		{`a\046b.org`, `a\.b.org.`},
		{`\065.org`, "a.org."},
		{`a b.org`, `a\032b.org.`},
		{`\000.org`, `\000.org.`},
		{`ü.org`, `\195\188.org.`},
		{`a\\b.org`, `a\\b.org.`},
		{`x\.`, `x\..`},
		{strings.Repeat("a", 63) + ".org", strings.Repeat("a", 63) + ".org."},
		{long + strings.Repeat("b", 61), long + strings.Repeat("b", 61) + "."}, // 255 octets
		{"", ""},
		{"..", ""},
		{".org", ""},
		{"a..b", ""},
		{`a\`, ""},
		{`a\1`, ""},
		{`a\12`, ""},
		{`a\1x2`, ""},
		{`a\256`, ""},
		{strings.Repeat("a", 64) + ".org", ""},
		{long + strings.Repeat("b", 62), ""}, // 256 octets
		{strings.Repeat("a.", 1<<20), ""},
	} {
		got, err := ParseName(tt.in)
		if string(got) != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("ParseName(%.80q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("an error of %d bytes for a name of %d", len(err.Error()), len(tt.in))
		}
	}
}

func TestNameParts(t *testing.T) {
	for _, tt := range []struct {
		name          Name
		short, label  string
		parent, below Name
		labels        int
	}{
		{".", ".", "", ".", "*.", 0},
		{"org.", "org", "org", ".", "*.org.", 1},
		{"www.example.org.", "www.example.org", "www", "example.org.", "*.www.example.org.", 3},
		{`a\.b.org.`, `a\.b.org`, `a\.b`, "org.", `*.a\.b.org.`, 2},
		{`a\\.org.`, `a\\.org`, `a\\`, "org.", `*.a\\.org.`, 2},
	} {
		n := tt.name
		got := fmt.Sprint(n.Short(), " ", n.Label(), " ", n.Parent(), " ", n.Wildcard(), " ", n.Labels())
		if want := fmt.Sprint(tt.short, " ", tt.label, " ", tt.parent, " ", tt.below, " ", tt.labels); got != want {
			t.Errorf("%s: got %s, want %s", n, got, want)
		}
	}
}

func TestNameIn(t *testing.T) {
	for _, tt := range []struct {
		name, zone Name
		want       bool
	}{
		{"www.example.org.", "example.org.", true},
		{"example.org.", "example.org.", true},
		{"evilexample.org.", "example.org.", false},
		{`evil\.example.org.`, "example.org.", false},
		{"org.", "example.org.", false},
		{"www.example.org.", ".", true},
		{".", ".", true},
		{".", "org.", false},
		{"www.example.org.", "", false}, // once an endless loop
		{"", "", false},
		{"", ".", false},
	} {
		if got := tt.name.In(tt.zone); got != tt.want {
			t.Errorf("%q in %q: %v, want %v", tt.name, tt.zone, got, tt.want)
		}
	}
	zones := []Name{"org.", "lb.example.org.", "example.org.", "b.example.org."}
	for name, want := range map[Name]Name{
		"a.lb.example.org.": "lb.example.org.", "www.example.org.": "example.org.", "xlb.example.org.": "example.org.", "net.": "", "org.": "org.",
	} {
		if got, ok := LongestZone(name, zones); got != want || ok != (want != "") {
			t.Errorf("zone of %s: %q %v, want %q", name, got, ok, want)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{".", "www.example.org", `a\.b\\\000.org.`, "ü.org", `\065`, "*.x", "a..b", `\2`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if again, err := ParseName(n.String()); err != nil || again != n {
			t.Fatalf("%q is %q, and that is %q (%v)", s, n, again, err)
		}
		if again, err := ParseName(n.Short()); err != nil || again != n {
			t.Fatalf("%q is %q in short %q, and that is %q (%v)", s, n, n.Short(), again, err)
		}
		if !n.In(n) || !n.In(".") || !n.In(n.Parent()) || n.Labels() > 127 {
			t.Fatalf("%q is not where it is", n)
		}
	})
}

func TestType(t *testing.T) {
	for text, want := range map[string]Type{"A": TypeA, "aaaa": TypeAAAA, "TYPE257": 257, "type1": TypeA, "CAA": 0, "TYPE65536": 0, "TYPE-1": 0, "": 0} {
		if got, err := ParseType(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for n := range 70 {
		if got, err := ParseType(Type(n).String()); err != nil || got != Type(n) {
			t.Errorf("%v does not come back: %v", Type(n), err)
		}
	}
}

func TestDiff(t *testing.T) {
	set := func(name string, ttl uint32, data ...string) RRset {
		return RRset{Name: MustParseName(name), Type: TypeA, TTL: ttl, Data: data}
	}
	for name, tt := range map[string]struct {
		have, want []RRset
		changes    []string
	}{
		"equal":           {[]RRset{set("www", 30, "2", "1")}, []RRset{set("www", 30, "1", "2", "2")}, nil},
		"moved":           {[]RRset{set("www", 30, "1", "2")}, []RRset{set("www", 30, "2", "3")}, []string{"www A -1 +3"}},
		"new":             {nil, []RRset{set("www", 30, "1")}, []string{"www A +1"}},
		"removed":         {[]RRset{set("www", 30, "1")}, []RRset{set("www", 30)}, []string{"www A -1"}},
		"absent as asked": {nil, []RRset{set("www", 30)}, nil},
		"ttl":             {[]RRset{set("www", 30, "1")}, []RRset{set("www", 60, "1")}, []string{"www A ttl 30→60"}},
		"foreign":         {[]RRset{set("mail", 30, "9")}, []RRset{set("www", 30, "1")}, []string{"www A +1"}},
		"sorted":          {nil, []RRset{set("b", 1, "1"), set("a", 1, "1")}, []string{"a A +1", "b A +1"}},
	} {
		var got []string
		for _, c := range Diff(tt.have, tt.want) {
			got = append(got, c.String())
		}
		if d := cmp.Diff(tt.changes, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestQuorumVotes(t *testing.T) {
	for _, tt := range []struct {
		need string
		want []int // of 1, 2, 3, 4, 5; 0: refused
	}{
		{"", []int{1, 2, 2, 3, 3}},
		{"majority", []int{1, 2, 2, 3, 3}},
		{"any", []int{1, 1, 1, 1, 1}},
		{"all", []int{1, 2, 3, 4, 5}},
		{"1", []int{1, 1, 1, 1, 1}},
		{"60%", []int{1, 2, 2, 3, 3}},
		{"100%", []int{1, 2, 3, 4, 5}},
		{"1%", []int{1, 1, 1, 1, 1}},
		{"66.7%", []int{1, 2, 3, 3, 4}},
		{"0", make([]int, 5)},
		{"-1", make([]int, 5)},
		{"0%", make([]int, 5)},
		{"101%", make([]int, 5)},
		{"NaN%", make([]int, 5)},
		{"most", make([]int, 5)},
	} {
		for i, want := range tt.want {
			got, err := Quorum{Need: tt.need}.Votes(i + 1)
			if got != want || (err == nil) != (want != 0) {
				t.Errorf("%q of %d: got %d, %v; want %d", tt.need, i+1, got, err, want)
			}
		}
	}
	if got, err := (Quorum{Need: "2"}).Votes(1); got != 2 || !errors.Is(err, ErrFewVoices) {
		t.Errorf("2 of 1: got %d, %v", got, err)
	}
	if _, err := (Quorum{}).Votes(0); err == nil {
		t.Error("a quorum of nobody")
	}
}

func TestQuorumDecides(t *testing.T) {
	votes := func(s string) []Vote { // "ams:up", "ams:up/50"
		var out []Vote
		for i, f := range strings.Fields(s) {
			site, status, _ := strings.Cut(f, ":")
			word, weight := sayingOf(status)
			out = append(out, Vote{Vantage: fmt.Sprint(i), Site: site, Status: word, Weight: weight})
		}
		return out
	}
	for _, tt := range []struct {
		q           Quorum
		last, votes string
		want        string // with the weight, if there is one
	}{
		{Quorum{}, "up", "a:draining b:draining c:up", "draining"},
		{Quorum{}, "up", "a:draining b:down c:up", "down"}, // both say that it serves nobody, too few that it said so
		{Quorum{}, "up", "a:draining b:up c:unknown", "up"},
		{Quorum{}, "down", "a:draining b:draining c:down", "draining"},
		{Quorum{}, "draining", "a:draining b:down c:unknown", "down"},
		{Quorum{}, "draining", "a:up b:up c:draining", "up"},
		{Quorum{Need: "any"}, "up", "a:draining b:up", "up"},
		{Quorum{Need: "any"}, "up", "a:draining b:down", "draining"},
		{Quorum{Of: "sites"}, "up", "a:draining a:down b:down c:up", "down"},
		{Quorum{Of: "sites"}, "up", "a:draining a:draining a:up b:draining c:up", "draining"},
		{Quorum{Of: "sites"}, "up", "a:draining a:up b:draining c:up", "up"},

		{Quorum{}, "up", "a:up/50 b:up/60 c:up/70", "up/60"},
		{Quorum{}, "up", "a:up/50 b:up/60 c:up", "up/50"},
		{Quorum{}, "up", "a:up/50 b:up c:unknown", "up"},             // one voice
		{Quorum{}, "up/30", "a:up/50 b:up c:unknown", "up/30"},       // neither for a weight nor for none
		{Quorum{}, "up/30", "a:up b:up c:up/30", "up"},               // a quorum says none
		{Quorum{}, "up/30", "a:up/90 b:down/90 c:up", "up/30"},       // who holds it down has no say
		{Quorum{}, "up/30", "a:up/30 b:up/30 c:up/30", "up/30"},      // nothing moved
		{Quorum{}, "unknown", "a:up/40 b:up/40 c:unknown", "up/40"},  // with the first verdict
		{Quorum{}, "up/30", "a:down b:down c:up/50", "down/30"},      // what it asks for is asked again when it is up
		{Quorum{}, "up", "a:up/200 b:up/255 c:up/200", "up/100"},     // more than all of it is all of it
		{Quorum{Need: "any"}, "up", "a:up/50 b:up/60 c:up", "up/50"}, // a quorum for a weight and for none: a weight was asked for
		{Quorum{Of: "sites"}, "up", "a:up/10 a:up/10 a:up/10 b:up/80 c:up/90", "up/80"},
		{Quorum{Of: "sites"}, "up", "a:up/10 a:up/30 a:up b:up/80 c:up", "up/10"},
		{Quorum{Of: "sites"}, "up", "a:up/10 a:up b:up/80 c:up", "up"}, // a is of two minds

		{Quorum{}, "up", "a:down b:down c:up", "down"},
		{Quorum{}, "up", "a:down b:unknown c:unknown", "up"},
		{Quorum{}, "up", "a:down b:up", "up"},
		{Quorum{}, "unknown", "a:down b:unknown", "unknown"},
		{Quorum{}, "down", "a:unknown b:unknown c:unknown", "down"},
		{Quorum{Need: "any"}, "up", "a:down b:up c:up", "up"}, // both have a quorum: nobody wins
		{Quorum{Need: "any"}, "up", "a:down b:unknown", "down"},
		{Quorum{Of: "sites"}, "up", "a:down a:down a:down b:up c:up", "up"},
		{Quorum{Of: "sites"}, "up", "a:down a:up b:down c:up", "up"}, // a is of two minds
		{Quorum{Of: "sites"}, "up", "a:down a:down b:down c:up", "down"},
	} {
		vs := votes(tt.votes)
		var vantages []Vantage
		for _, v := range vs {
			vantages = append(vantages, Vantage{Name: v.Vantage, Site: v.Site})
		}
		var last Verdict
		last.Status, last.Weight = sayingOf(tt.last)
		got, changed := tt.q.decide(last, vs, tt.q.Voices(vantages), epoch)
		text := got.Status.String()
		if got.Weight != 0 {
			text += fmt.Sprint("/", got.Weight)
		}
		if text != tt.want || changed != (tt.want != tt.last) {
			t.Errorf("%+v: %s then %s: got %s %v, want %s", tt.q, tt.last, tt.votes, text, changed, tt.want)
		}
		if changed && (got.Since.Equal(epoch) != (got.Status != last.Status) || len(got.Votes) != len(vs)) {
			t.Errorf("%s: the verdict forgets its evidence: %+v", tt.votes, got)
		}
	}
}

// opinions plays a streak string such as "u u d ?", where D is down for sure and l says that it leaves, and returns the opinion after each observation.
func opinions(s string, timing Timing) (string, Streak) {
	var x Streak
	var out []string
	for i, c := range strings.Fields(s) {
		status := map[string]Status{"u": Up, "d": Down, "D": Down, "l": Draining, "?": Unknown}[c]
		x = x.Observe(Observation{Status: status, Sure: c == "D", At: epoch.Add(time.Duration(i) * time.Second)}, timing)
		out = append(out, map[Status]string{Up: "u", Down: "d", Draining: "l", Unknown: "?"}[x.Status])
	}
	return strings.Join(out, " "), x
}

func TestStreak(t *testing.T) {
	gdnsd := Timing{Fall: 3, Rise: 2, OK: 3}
	for _, tt := range []struct {
		name     string
		timing   Timing
		in, want string
		pending  bool
	}{
		{"rise", gdnsd, "u u", "? u", false},
		{"rise is in a row", gdnsd, "u d u u", "? ? ? u", false},
		{"fall", gdnsd, "u u d d d", "? u u u d", false},
		{"fall from nothing", gdnsd, "d d d", "? ? d", false},
		{"failures add up", gdnsd, "u u d u d u d", "? u u u u u d", false},
		{"every third lost goes down", gdnsd, "u u d u u d u u d", "? u u u u u u u d", false},
		{"forgiven after ok in a row", gdnsd, "u u d d u u u d d", "? u u u u u u u u", true},
		{"forgiven, nothing pending", gdnsd, "u u d u u u", "? u u u u u", false},
		{"unknown is no evidence", gdnsd, "u u d ? ? d ? d", "? u u u u u u d", false},
		{"unknown breaks no row", gdnsd, "u ? u", "? ? u", false},
		{"unknown alone decides nothing and hurries nothing", gdnsd, "? ? ?", "? ? ?", false},
		{"flapping while down stays down", Timing{Fall: 1, Rise: 3, OK: 3}, "d u u d u u d u u u", "d d d d d d d d d u", false},
		{"pending return", gdnsd, "d d d u", "? ? d d", true},
		{"first success is half way", gdnsd, "u", "?", true},
		{"one and one", Timing{Fall: 1, Rise: 1, OK: 1}, "u d u", "u d u", false},
		{"for sure acts at once", gdnsd, "u u D", "? u d", false},
		{"for sure from nothing", gdnsd, "D", "d", false},
		{"back as ever", gdnsd, "u u D u u", "? u d d u", false},
		{"draining acts at once", gdnsd, "u u l", "? u l", false},
		{"draining from nothing", gdnsd, "l", "l", false},
		{"draining from down", gdnsd, "d d d l", "? ? d l", false},
		{"draining ends by rise", gdnsd, "u u l u u", "? u l l u", false},
		{"rise from draining is in a row", gdnsd, "u u l u l u", "? u l l l l", true},
		{"draining dies by fall", gdnsd, "u u d l d d d", "? u u l l l d", false},
		{"a failure while draining hurries nobody", gdnsd, "u u l d", "? u l l", false},
		{"draining dies for sure", gdnsd, "u u l D", "? u l d", false},
		{"draining says more of no failure", gdnsd, "u u l d l d l d", "? u l l l l l d", false},
		{"unknown while draining", gdnsd, "u u l ? ?", "? u l l l", false},
	} {
		got, s := opinions(tt.in, tt.timing)
		if got != tt.want || s.Pending(tt.timing) != tt.pending {
			t.Errorf("%s: %s: got %s, want %s; pending %v, want %v", tt.name, tt.in, got, tt.want, s.Pending(tt.timing), tt.pending)
		}
	}
	for _, tt := range []struct {
		in       string
		interval time.Duration
		silent   time.Duration // between the last that says something and the first that does not
		want     Status
	}{
		{"u u", 10 * time.Second, StaleAfter, Up},
		{"u u", 10 * time.Second, StaleAfter + 1, Unknown},
		{"d d d", 10 * time.Second, StaleAfter + 1, Unknown},
		{"u u l", 10 * time.Second, StaleAfter + 1, Unknown},
		{"u u", time.Minute, 3 * time.Minute, Up},
		{"u u", time.Minute, 3*time.Minute + 1, Unknown},
	} {
		_, s := opinions(tt.in, gdnsd)
		timing := gdnsd
		timing.Interval = tt.interval
		s = s.Observe(Observation{At: s.Seen.Add(tt.silent)}, timing)
		if s.Status != tt.want || s.Status == Unknown && (s.Pending(timing) || s.Since != s.Last.At) {
			t.Errorf("%s, then nothing for %v: %+v, want %v", tt.in, tt.silent, s, tt.want)
		}
		if s = s.Observe(Observation{Status: Up, At: s.Last.At}, timing); s.Status != tt.want {
			t.Errorf("%s, then nothing for %v: one success made it %v", tt.in, tt.silent, s.Status)
		}
	}
	// What is asked rarely lasts longer.
	_, s := opinions("d", Timing{Fall: 1, Rise: 1, OK: 1})
	slow := Timing{Fall: 1, Rise: 1, OK: 1, Interval: time.Second, SlowInterval: time.Minute}
	s = s.Observe(Observation{Status: Down, At: epoch.Add(SlowAfter)}, slow)
	if s = s.Observe(Observation{At: s.Seen.Add(3 * time.Minute)}, slow); s.Status != Down {
		t.Errorf("long dead, then nothing for three slow intervals: %v", s.Status)
	}
	if s = s.Observe(Observation{At: s.Seen.Add(3*time.Minute + 1)}, slow); s.Status != Unknown {
		t.Errorf("long dead, then nothing for more than three slow intervals: %v", s.Status)
	}
	if !(Streak{}).Pending(gdnsd) {
		t.Error("a target that was never probed is not waited for")
	}
	for _, tt := range []struct {
		in, last string // last is after SlowAfter
		slow     bool
	}{{"u u d d d", "d", true}, {"u u d d d", "u", false}, {"u u d d d", "d ?", true}, {"u u D", "d", true}, {"u u l", "l", false}, {"u u", "u", false}, {"d", "?", false}} {
		_, s := opinions(tt.in, gdnsd)
		if s.Slow() {
			t.Errorf("%s: slow at once", tt.in)
		}
		for _, last := range strings.Fields(tt.last) {
			s = s.Observe(Observation{Status: map[string]Status{"u": Up, "d": Down, "l": Draining}[last], At: epoch.Add(SlowAfter + time.Minute)}, gdnsd)
		}
		if s.Slow() != tt.slow {
			t.Errorf("%s, long after %s: slow %v, want %v", tt.in, tt.last, s.Slow(), tt.slow)
		}
	}
	if _, s := opinions("u u d d d d", gdnsd); !s.Since.Equal(epoch.Add(4*time.Second)) || s.Failures != 3 {
		t.Errorf("got %+v", s)
	}
}

func TestCheckKey(t *testing.T) {
	base := Check{Kind: KindHTTPS, Port: 443, Timing: DefaultTiming()}
	if named := (Check{Name: "other", Kind: KindHTTPS, Port: 443, Timing: DefaultTiming()}); named.Key() != base.Key() {
		t.Errorf("the name is not part of the question: %s", named.Key())
	}
	said := base
	said.Path, said.Method, said.Verify, said.MaxBody, said.Count = "/", "GET", VerifyStrict, DefaultMaxBody, 1
	said.Status = []StatusRange{{200, 399}}
	if said.Key() != base.Key() {
		t.Errorf("a default that is said asks another question: %s, %s", said.Key(), base.Key())
	}
	keys := map[string]string{base.Key(): "base"}
	vary(t, reflect.TypeFor[Check](), nil, func(path []int, name string, value reflect.Value) {
		if name == "Name" {
			return
		}
		c := base
		reflect.ValueOf(&c).Elem().FieldByIndex(path).Set(value)
		if other, taken := keys[c.Key()]; taken {
			t.Errorf("a check that differs in %s has the key of %s: %s", name, other, c.Key())
		}
		keys[c.Key()] = name
	})
	forged := base
	forged.Path = `/#method="HEAD"`
	head := base
	head.Method = "HEAD"
	if forged.Key() == head.Key() {
		t.Errorf("a path passes for a method: %s", forged.Key())
	}
}

// vary calls visit with another value for each field of a struct, those of embedded structs included.
func vary(t *testing.T, typ reflect.Type, path []int, visit func([]int, string, reflect.Value)) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := append(slices.Clone(path), i)
		v := reflect.New(f.Type).Elem()
		switch f.Type.Kind() {
		case reflect.Struct:
			vary(t, f.Type, at, visit)
			continue
		case reflect.String:
			v.SetString("other-" + f.Name)
		case reflect.Int, reflect.Int64:
			v.SetInt(7)
		case reflect.Uint8, reflect.Uint16:
			v.SetUint(2)
		case reflect.Float64:
			v.SetFloat(0.25)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Slice:
			v = reflect.MakeSlice(f.Type, 1, 1)
			e := v.Index(0)
			if e.Kind() == reflect.Struct {
				e = e.Field(0)
			}
			e.Set(reflect.ValueOf(map[reflect.Kind]any{reflect.Int: 7, reflect.String: "x"}[e.Kind()]))
		default:
			t.Fatalf("field %s: a %s, which this test cannot vary", f.Name, f.Type)
		}
		visit(at, f.Name, v)
	}
}

func TestTargetID(t *testing.T) {
	c := Check{Kind: KindHTTP, Port: 8778, Path: "/{}", Timing: DefaultTiming()}
	for address, want := range map[string]TargetID{
		"192.0.2.1":    "http://192.0.2.1:8778/{}",
		"2001:db8::1":  "http://[2001:db8::1]:8778/{}",
		"fe80::1%eth0": "http://[fe80::1%eth0]:8778/{}",
	} {
		if got := NewTarget(netip.MustParseAddr(address), c).ID; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestEnums(t *testing.T) {
	type word interface {
		fmt.Stringer
		encoding.TextMarshaler
	}
	check := func(v word, back encoding.TextUnmarshaler) {
		text, err := v.MarshalText()
		if err != nil || string(text) != v.String() {
			t.Errorf("%v is written %q: %v", v, text, err)
		}
		if err := back.UnmarshalText(text); err != nil || reflect.ValueOf(back).Elem().Interface() != v {
			t.Errorf("%v comes back as %v: %v", v, back, err)
		}
	}
	for i := range stepNames {
		check(Step(i), new(Step))
	}
	for i := range causeNames {
		check(Cause(i), new(Cause))
	}
	for i := range modeNames {
		check(Mode(i), new(Mode))
		if Mode(i).Panic() != strings.HasPrefix(Mode(i).String(), "panic-") {
			t.Errorf("%v: panic %v", Mode(i), Mode(i).Panic())
		}
	}
	for _, s := range []Status{Unknown, Up, Down} {
		check(s, new(Status))
	}
	if causeNames[CauseTierLost] != "tier-lost" || stepNames[StepLimit] != "limit" || modeNames[ModeWithdrawn] != "withdrawn" {
		t.Error("names and values have come apart")
	}
	if Mode(99).String() != "#99" || new(Mode).UnmarshalText([]byte("dance")) == nil {
		t.Error("a word of no version is taken")
	}
	for _, a := range []Action{ActionDrain, ActionMaintenance, ActionForceUp, ActionForceDown} {
		if got, err := ParseAction(string(a)); got != a || err != nil {
			t.Errorf("%s: %v %v", a, got, err)
		}
	}
	if _, err := ParseAction("dance"); err == nil {
		t.Error("an unknown action is taken")
	}
}

func TestCleanReason(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"100%":                   "100%",
		"a\x1b[31mb\r\nc\x7f":    "a?[31mb??c?",
		"a\u202eb\u2066c\u200fd": "a?b?c?d",
		"\xff":                   "\ufffd",
		"é世":                     "é世",
	} {
		if got := CleanReason(in, nil...); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := CleanReason("%d of %s", 3, "x\n"); got != "3 of x?" {
		t.Errorf("got %q", got)
	}
	if got := CleanText("a\x1b" + strings.Repeat("世", 1000)); len(got) > MaxText || len(got) < MaxText-3 || !strings.HasPrefix(got, "a?世") {
		t.Errorf("%d bytes: %.10s", len(got), got)
	}
	if got := CleanReason("%s", strings.Repeat("世", 1000)); len(got) > MaxReason || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestMatch(t *testing.T) {
	endpoint := func(a, site string, labels map[string]string) Endpoint {
		return Endpoint{Address: netip.MustParseAddr(a), Site: site, Labels: labels}
	}
	spec := Spec{Services: []Service{
		{Name: "www.example.org.", Labels: map[string]string{"team": "shop"}, Endpoints: []Endpoint{
			endpoint("192.0.2.10", "ams", nil), endpoint("192.0.2.11", "fra", map[string]string{"team": "lab"}),
		}},
		{Name: "api.example.org.", Endpoints: []Endpoint{endpoint("192.0.2.10", "ams", nil), endpoint("2001:db8::1", "", nil)}},
	}}
	s, err := (&State{}).Apply(Event{Index: 1, At: epoch, Kind: EventSpec, Spec: &spec})
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]string{
		"www.example.org":            "[www.example.org/192.0.2.10 www.example.org/192.0.2.11]",
		"WWW.example.org.":           "[www.example.org/192.0.2.10 www.example.org/192.0.2.11]",
		"www.example.org/192.0.2.11": "[www.example.org/192.0.2.11]",
		"192.0.2.10":                 "[api.example.org/192.0.2.10 www.example.org/192.0.2.10]",
		"2001:db8:0::1":              "[api.example.org/2001:db8::1]",
		"site:ams":                   "[api.example.org/192.0.2.10 www.example.org/192.0.2.10]",
		"label:team=shop":            "[www.example.org/192.0.2.10]", // the endpoint's own label wins
		"label:team=lab":             "[www.example.org/192.0.2.11]",
		"*.org":                      "[api.example.org/192.0.2.10 api.example.org/2001:db8::1 www.example.org/192.0.2.10 www.example.org/192.0.2.11]",
		"*/192.0.2.11":               "[www.example.org/192.0.2.11]",
		"nobody":                     "", "": "", "/192.0.2.10": "", "www.example.org/x": "", "[": "", "label:team": "", "site:nowhere": "", "192.0.2.99": "",
	} {
		got, err := s.Match(pattern)
		if err == nil && fmt.Sprint(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %v, %v; want %s", pattern, got, err, want)
		}
	}
}

func TestReportValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		report Report
		ok     bool
	}{
		"fine":         {Report{Vantage: "a", Opinions: []*Opinion{{Target: "x"}, {Target: "y"}}}, true},
		"empty":        {Report{Vantage: "a"}, true},
		"nobody's":     {Report{}, false},
		"missing":      {Report{Vantage: "a", Opinions: []*Opinion{nil}}, false},
		"out of order": {Report{Vantage: "a", Opinions: []*Opinion{{Target: "y"}, {Target: "x"}}}, false},
		"twice":        {Report{Vantage: "a", Opinions: []*Opinion{{Target: "x"}, {Target: "x"}}}, false},
	} {
		if err := tt.report.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSerial follows the serial through clocks that stand, go back, pass the year 2038 and wrap.
func TestSerial(t *testing.T) {
	year := func(y int) int64 { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC).Unix() }
	for _, tt := range []struct {
		from uint32
		at   int64
		want uint32
	}{
		{0, year(2026), uint32(year(2026))},
		{0, year(2040), uint32(year(2040))}, // above 2^31, yet not before nothing
		{uint32(year(2026)), year(2026), uint32(year(2026)) + 1},
		{uint32(year(2026)), year(1976), uint32(year(2026)) + 1},
		{uint32(year(2026)), year(2051), uint32(year(2051))},
		{uint32(year(2026)), year(1), uint32(year(2026)) + 1},
		{1<<32 - 1, year(2026), 1767225600},
		{1<<32 - 1, year(2105), 1},
	} {
		s := &transaction{State: State{serial: tt.from}, now: time.Unix(tt.at, 0)}
		s.advance()
		s.advance() // once an event
		if s.serial != tt.want || tt.from != 0 && int32(s.serial-tt.from) <= 0 {
			t.Errorf("from %d at %v: got %d, want %d", tt.from, s.now.UTC(), s.serial, tt.want)
		}
	}
}

// TestLimitSpreadsByWeight asks many services for one of three endpoints and counts.
func TestLimitSpreadsByWeight(t *testing.T) {
	count := map[string]int{}
	for i := range 6000 {
		v := &Service{Name: MustParseName(fmt.Sprintf("s%d.example.org", i)), Policy: Policy{Answers: 1}}
		var stand []standing
		for j, w := range []uint32{1, 2, 3} {
			e := &Endpoint{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(j)}), Weight: w}
			stand = append(stand, standing{endpoint: e, health: Up})
		}
		count[choose(v, stand, nil, epoch, 1).V4.Published()[0].String()]++
	}
	for a, want := range map[string]int{"192.0.2.0": 1000, "192.0.2.1": 2000, "192.0.2.2": 3000} {
		if got := count[a]; got < want*9/10 || got > want*11/10 {
			t.Errorf("%s was picked %d times, want about %d", a, got, want)
		}
	}
}

// TestExplainWords asks for the sentence of every cause and mode.
func TestExplainWords(t *testing.T) {
	v := &Service{Name: "www.example.org.", Safety: DefaultSafety(), Policy: Policy{Answers: 2}}
	v.Safety.Fallback = "sorry.example.net."
	s := &State{}
	for c := range Cause(len(causeNames)) {
		why := s.why(v, Member{Cause: c, Health: Up, Left: epoch})
		if why == "" || strings.Contains(why, "%!") || strings.HasPrefix(why, "#") {
			t.Errorf("cause %v says %q", c, why)
		}
	}
	for m := range Mode(len(modeNames)) {
		text := s.summary(v, &FamilyPick{Mode: m, Members: []Member{{Health: Up}, {Health: Down}}})
		if text == "" || strings.Contains(text, "%!") || strings.HasPrefix(text, "PANIC") != m.Panic() {
			t.Errorf("mode %v says %q", m, text)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	s, err := (&State{}).Apply(Event{Index: 5, At: epoch, Kind: EventSpec, Spec: &Spec{}})
	if err != nil {
		t.Fatal(err)
	}
	if same, err := s.Apply(Event{Index: 5, At: epoch, Kind: EventTick}); err == nil || same != s {
		t.Errorf("an event of old: %v", err)
	}
	for _, e := range []Event{{Kind: "of a later version"}, {Kind: EventSpec}, {Kind: EventLead}} {
		e.Index, e.At = 6, epoch.Add(time.Hour)
		next, err := s.Apply(e)
		if err == nil || next.Index() != 6 {
			t.Errorf("%s: index %d, %v", e.Kind, next.Index(), err)
		}
		want := s.Snapshot()
		want.Index = 6
		if d := cmp.Diff(want, next.Snapshot(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s changed more than the index:\n%s", e.Kind, d)
		}
	}
}

func TestOverrideBounds(t *testing.T) {
	v := Service{Name: "www.example.org.", TTL: 30, Safety: DefaultSafety(), Endpoints: []Endpoint{{Address: netip.MustParseAddr("192.0.2.1")}}}
	s, err := (&State{}).Apply(Event{Index: 1, At: epoch, Kind: EventSpec, Spec: &Spec{Services: []Service{v}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		address      string
		action       Action
		set, expires time.Time
		ok           bool
	}{
		{"a day", "192.0.2.1", ActionDrain, epoch, epoch.Add(DefaultOverride), true},
		{"the longest", "192.0.2.1", ActionDrain, epoch, epoch.Add(MaxOverride), true},
		{"too long", "192.0.2.1", ActionDrain, epoch, epoch.Add(MaxOverride + 1), false},
		{"short, but in far years", "192.0.2.1", ActionDrain, epoch.Add(2 * MaxOverride), epoch.Add(2*MaxOverride + time.Hour), false},
		{"nothing", "192.0.2.1", ActionDrain, epoch, epoch, false},
		{"no action", "192.0.2.1", "", epoch, epoch.Add(time.Hour), false},
		{"no endpoint", "192.0.2.2", ActionDrain, epoch, epoch.Add(time.Hour), false},
	} {
		id := EndpointID{v.Name, netip.MustParseAddr(c.address)}
		o := Override{Endpoint: id, Action: c.action, Set: c.set, Expires: c.expires}
		next, err := s.Apply(Event{Index: 2, At: epoch, Kind: EventOverride, Overrides: []Override{o}})
		if ok := err == nil; ok != c.ok || ok != (next.Override(id) != nil) {
			t.Errorf("%s: %v, override %v", c.name, err, next.Override(id))
		}
	}
}

// With a quorum of any, both words can have one: then the last verdict stands.
func TestQuorumOfBoth(t *testing.T) {
	votes := []Vote{{Vantage: "a", Status: Up}, {Vantage: "b", Status: Down}}
	for _, last := range []Status{Unknown, Up, Down} {
		if v, changed := (Quorum{Need: "any"}).decide(Verdict{Status: last}, votes, 2, epoch); changed {
			t.Errorf("%v became %v", last, v.Status)
		}
	}
}

// FuzzApplyJSON applies an arbitrary event to a living state: it may be refused, and must not do more than that.
func FuzzApplyJSON(f *testing.F) {
	w := &world{t: nil, now: epoch, state: &State{}}
	for _, line := range []string{
		"service www 192.0.2.1 192.0.2.2 2001:db8::1 fe80::1%eth0 on_all_down fallback fallback sorry", "vantages a b", "load",
		"verdict 192.0.2.1 up", "verdict 192.0.2.2 down", "drain www/192.0.2.1 1h why", "freeze why", "verdict 192.0.2.1 down", "thaw",
	} {
		if err := w.do(line); err != nil {
			f.Fatal(err)
		}
	}
	for _, e := range w.log {
		raw, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"kind":"spec","spec":{"services":[{"name":"","endpoints":[{}]}]}}`))
	f.Add([]byte(`{"kind":"instruct","instruction":{"verb":"apply","names":["b.","a.","a."],"until":"2026-01-01T01:00:00Z"}}`))
	f.Add([]byte(`{"kind":"restore","spec":{},"frozen":{},"instructed":[{"verb":"release","publisher":"p","zone":"."}]}`))
	f.Add([]byte(`{"kind":"spec","at":"9999-01-01T00:00:00Z","spec":{"services":[{"name":"a.","endpoints":[{"address":"::1%x"}]}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var e Event
		if json.Unmarshal(raw, &e) != nil {
			return
		}
		e.Index = w.state.Index() + 1
		before := snapshotBytes(t, w.state)
		next, err := w.state.Apply(e)
		if !bytes.Equal(before, snapshotBytes(t, w.state)) {
			t.Fatal("the state before changed")
		}
		if err != nil {
			return
		}
		for _, v := range next.Services() {
			next.Explain(v.Name, TypeA)
			next.Explain(v.Name, TypeAAAA)
		}
		for range next.Wants("bind") {
		}
		Transitions(w.state, next)
		next.Deadline()
		if _, err := Restore(next.Snapshot()); err != nil {
			t.Fatal(err)
		}
	})
}

// A change of what is answered beside the services moves the serial, once; the same configuration again does not.
func TestSerialFollowsStaticRecords(t *testing.T) {
	spec := func(static string) *Spec {
		return &Spec{Static: static, Services: []Service{{
			Name: "www.example.org.", TTL: 30, Safety: DefaultSafety(), Endpoints: []Endpoint{{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1}},
		}}}
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	st := &State{}
	var serials []uint32
	for i, static := range []string{"a", "a", "b", "b", "a"} {
		next, err := st.Apply(Event{Index: uint64(i + 1), At: at, Kind: EventSpec, Spec: spec(static)})
		if err != nil {
			t.Fatal(err)
		}
		st = next
		serials = append(serials, st.Serial())
	}
	first := serials[0]
	if want := []uint32{first, first, first + 1, first + 1, first + 2}; !slices.Equal(serials, want) {
		t.Errorf("serials %v, want %v", serials, want)
	}
}

// A service is heard of when a quorum has an opinion of each target that decides, and the state agrees with it.
func TestHeard(t *testing.T) {
	check, shadow := Check{Name: "c", Kind: KindTCP, Port: 80, Timing: DefaultTiming()}, Check{Name: "o", Kind: KindTCP, Port: 81, Timing: DefaultTiming()}
	addr := netip.MustParseAddr("192.0.2.1")
	id := NewTarget(addr, check).ID
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	st, err := new(State).Apply(Event{Index: 1, At: at, Kind: EventSpec, Spec: &Spec{
		Vantages: []Vantage{{Name: "a", Site: "a"}, {Name: "b", Site: "b"}, {Name: "c", Site: "c"}},
		Services: []Service{{Name: "www.example.org.", Safety: DefaultSafety(), Endpoints: []Endpoint{
			{Address: addr, Weight: 1, Checks: []Use{{Check: check}, {Check: shadow, Observe: true}}},
		}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	up, err := st.Apply(Event{Index: 2, At: at, Kind: EventVerdicts, Verdicts: []Verdict{{Target: id, Status: Up, Since: at, Need: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	report := func(vantage string, s Status, age time.Duration) *Report {
		return &Report{Vantage: vantage, Seq: 1, At: at.Add(-age), Opinions: []*Opinion{{Target: id, Status: s}}}
	}
	for _, c := range []struct {
		name    string
		st      *State
		reports []*Report
		want    bool
	}{
		{"silence", up, nil, false},
		{"one of three", up, []*Report{report("a", Up, 0)}, false},
		{"two of three", up, []*Report{report("a", Up, 0), report("b", Up, 0)}, true},
		{"two that differ: an opinion each, no verdict to take in", up, []*Report{report("a", Up, 0), report("b", Down, 0)}, true},
		{"one of two is stale", up, []*Report{report("a", Up, 0), report("b", Up, time.Hour)}, false},
		{"one of two knows nothing", up, []*Report{report("a", Up, 0), report("b", Unknown, 0)}, false},
		{"the state has not taken it in", up, []*Report{report("a", Down, 0), report("b", Down, 0)}, false},
		{"nor the first verdict", st, []*Report{report("a", Up, 0), report("b", Up, 0)}, false},
	} {
		if got := c.st.Heard("www.example.org.", c.reports, at); got != c.want {
			t.Errorf("%s: heard %v, want %v", c.name, got, c.want)
		}
	}
	if up.Heard("other.example.org.", nil, at) {
		t.Error("a service that is not configured is heard of")
	}
}
