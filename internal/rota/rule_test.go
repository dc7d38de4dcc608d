package rota

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		name, want string
		canonical  Rule
		bad        string
	}{
		{"cpu", "< 90%", Rule{"cpu", "< 90%"}, ""},
		{" cpu ", "  <=90 % ", Rule{"cpu", "<= 90%"}, ""},
		{"mem_free", ">5%", Rule{"mem_free", "> 5%"}, ""},
		{"mem_free(MemAvailable)", ">= 5.5%", Rule{"mem_free", ">= 5.5%"}, ""},
		{"mem_free(MemFree)", "> 500MiB", Rule{"mem_free(MemFree)", "> 500MiB"}, ""},
		{"load1", "<= cores", Rule{"load1", "<= cores"}, ""},
		{"load1", "< 1.50 cores", Rule{"load1", "< 1.5 cores"}, ""},
		{"load1", "< 1 cores", Rule{"load1", "< cores"}, ""},
		{"load1", "< 12", Rule{"load1", "< 12"}, ""},
		{"net(eth0)", "< 80%", Rule{"net(eth0)", "< 80%"}, ""},
		{"net(br-0.100)", "<= 80%", Rule{"net(br-0.100)", "<= 80%"}, ""},
		{"node_filefd_allocated", "< 1e5", Rule{"node_filefd_allocated", "< 100000"}, ""},
		{"node_load5", "<= 2 cores", Rule{"node_load5", "<= 2 cores"}, ""},
		{"job:errors:rate5m{}", "== 0", Rule{"job:errors:rate5m{}", "== 0"}, ""},
		{"job_x:rate5m { }", "!= -0", Rule{"job_x:rate5m", "!= 0"}, ""},
		{"cpu{}", "> -1.5", Rule{"cpu{}", "> -1.5"}, ""},
		{"mem_avail{}", "> 1GB", Rule{"mem_avail{}", "> 1GB"}, ""},
		{
			`node_filesystem_avail_bytes{ mountpoint="/" , fstype != "tmpfs", mountpoint="/",}`, ">= 1GiB",
			Rule{`node_filesystem_avail_bytes{fstype!="tmpfs",mountpoint="/"}`, ">= 1GiB"},
			"",
		},
		{`a_b{x="\"\\\n}, ä"}`, "< 1", Rule{`a_b{x="\"\\\n}, ä"}`, "< 1"}, ""},

		{"", "< 1", Rule{}, "want cpu, mem_free"},
		{"mem", "> 5%", Rule{}, "write mem{}"},
		{"load", "< 5", Rule{}, "write load{}"},
		{"all", "< 5", Rule{}, "write all{}"},
		{"mem_fre", "> 5%", Rule{}, "write mem_fre{}"},
		{"net.eth0", "< 80%", Rule{}, "net(INTERFACE)"},
		{"net", "< 80%", Rule{}, "write net{}"},
		{"net()", "< 80%", Rule{}, "as in net(eth0)"},
		{"net(eth0", "< 80%", Rule{}, "as in net(eth0)"},
		{"net(eth 0)", "< 80%", Rule{}, "as in net(eth0)"},
		{"net(" + strings.Repeat("x", 65) + ")", "< 80%", Rule{}, "as in net(eth0)"},
		{"mem_free(Cached)", "> 5%", Rule{}, "mem_free(MemFree)"},
		{"1a_b", "< 1", Rule{}, "want cpu"},
		{"a_b{x=~\"y\"}", "< 1", Rule{}, "no patterns"},
		{"a_b{x>\"y\"}", "< 1", Rule{}, "want labels"},
		{"a_b{x=y}", "< 1", Rule{}, "double quotes"},
		{`a_b{x="y}`, "< 1", Rule{}, "double quotes"},
		{`a_b{x="\t"}`, "< 1", Rule{}, "double quotes"},
		{`a_b{x="y\`, "< 1", Rule{}, "double quotes"},
		{`a_b{x="y"`, "< 1", Rule{}, "want , or }"},
		{`a_b{x="y"} 1`, "< 1", Rule{}, "want , or }"},
		{`a_b{`, "< 1", Rule{}, "want labels"},
		{`a_b{a:b="y"}`, "< 1", Rule{}, "want labels"},
		{"a_b{" + strings.Repeat(`x="y",`, 17) + "}", "< 1", Rule{}, "more than 16"},
		{"a_" + strings.Repeat("b", 511), "< 1", Rule{}, "the limit is 512"},
		{`a_b{x="` + strings.Repeat("\n", 300) + `"}`, "< 1", Rule{}, "more than 512"},
		{"a_b{x=\"\xff\"}", "< 1", Rule{}, "UTF-8"},

		{"cpu", "90%", Rule{}, "as in < 90%"},
		{"cpu", "< 90", Rule{}, "as in < 90%"},
		{"cpu", "> 90%", Rule{}, "want <= or <"},
		{"cpu", "< cores", Rule{}, "as in < 90%"},
		{"cpu", "< 101%", Rule{}, "between 0 and 100"},
		{"cpu", "< -1%", Rule{}, "between 0 and 100"},
		{"cpu", "< NaN%", Rule{}, "as in < 90%"},
		{"cpu", "< Inf%", Rule{}, "as in < 90%"},
		{"cpu", "", Rule{}, "as in < 90%"},
		{"cpu", "<", Rule{}, "as in < 90%"},
		{"cpu", "< 9 0%", Rule{}, "as in < 90%"},
		{"cpu", "< 90%%", Rule{}, "as in < 90%"},
		{"cpu", "< " + strings.Repeat("9", 64) + "%", Rule{}, "the limit is 64"},
		{"mem_free", "< 5%", Rule{}, "want >= or >"},
		{"mem_free", "> 5", Rule{}, "a percentage or a size"},
		{"mem_free", "> -5MB", Rule{}, "out of range"},
		{"mem_free", "> 5 mb", Rule{}, "a percentage or a size"},
		{"load1", "<= 5%", Rule{}, "a number or cores"},
		{"load1", "< -1", Rule{}, "out of range"},
		{"load1", "<= cores cores", Rule{}, "a number or cores"},
		{"a_b", "< 90%", Rule{}, "of what would this be a percentage"},
		{"a_b", "=~ 90", Rule{}, "== or !="},
		{"a_b", "< 0x10", Rule{}, "a number, a size"},
		{"a_b", "< 1e309", Rule{}, "a number, a size"},
		{"a_b", "< 1e300TiB", Rule{}, "out of range"},
		{"a_b", "< 1_000", Rule{}, "a number, a size"},
	} {
		p, err := ParseRule(Rule{c.name, c.want})
		switch {
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%.60q %.40q: %+v, %v; want an error with %q", c.name, c.want, p, err, c.bad)
		case c.bad == "" && err != nil:
			t.Errorf("%q %q: %v", c.name, c.want, err)
		case c.bad == "" && p.Rule() != c.canonical:
			t.Errorf("%q %q: %q, want %q", c.name, c.want, p.Rule(), c.canonical)
		}
	}
}

// The limit itself still holds for the named measures, as in dynlbd: 90 stays, 91 goes.
func TestRuleBoundaries(t *testing.T) {
	for _, c := range []struct {
		rule  Rule
		value float64
		cores int
		holds bool
		show  string
	}{
		{Rule{"cpu", "< 90%"}, 90, 4, true, "cpu 90 %, want < 90 %"},
		{Rule{"cpu", "< 90%"}, 90.4, 4, true, "cpu 90 %, want < 90 %"},
		{Rule{"cpu", "< 90%"}, 91, 4, false, "cpu 91 %, want < 90 %"},
		{Rule{"cpu", "<= 90%"}, 90, 4, true, "cpu 90 %, want <= 90 %"},
		{Rule{"cpu", "<= 90%"}, 90.6, 4, false, "cpu 91 %, want <= 90 %"},
		{Rule{"mem_free", "> 5%"}, 5, 4, true, "mem_free 5.0 %, want > 5 %"},
		{Rule{"mem_free", "> 5%"}, 4.9, 4, false, "mem_free 4.9 %, want > 5 %"},
		{Rule{"mem_free", "> 5%"}, 4.999, 4, false, "mem_free 4.9 %, want > 5 %"},
		{Rule{"mem_free(MemFree)", ">= 1MiB"}, 1 << 20, 4, true, "mem_free(MemFree) 1MiB, want >= 1MiB"},
		{Rule{"mem_free", "> 1MiB"}, 1<<20 - 1, 4, false, "mem_free 0.999999MiB, want > 1MiB"},
		{Rule{"load1", "<= cores"}, 4, 4, true, "load1 4, want <= cores (4)"},
		{Rule{"load1", "< cores"}, 4, 4, true, "load1 4, want < cores (4)"},
		{Rule{"load1", "<= cores"}, 4.01, 4, false, "load1 4.01, want <= cores (4)"},
		{Rule{"load1", "<= 1.5 cores"}, 6, 4, true, "load1 6, want <= 1.5 cores (4)"},
		{Rule{"load1", "<= 1.5 cores"}, 6.1, 4, false, "load1 6.1, want <= 1.5 cores (4)"},
		{Rule{"load1", "< 2"}, 2, 4, true, "load1 2, want < 2"},
		{Rule{"load1", "< 2"}, 12, 4, false, "load1 12, want < 2"},
		{Rule{"net(eth0)", "< 80%"}, 80, 4, true, "net(eth0) 80 %, want < 80 %"},
		{Rule{"net(eth0)", "< 80%"}, 81, 4, false, "net(eth0) 81 %, want < 80 %"},
		{Rule{"a_b", "< 1"}, 1, 4, false, "a_b 1, want < 1"},
		{Rule{"a_b", "<= 1"}, 1, 4, true, "a_b 1, want <= 1"},
		{Rule{"a_b", "> 1"}, 1, 4, false, "a_b 1, want > 1"},
		{Rule{"a_b", ">= 1"}, 1, 4, true, "a_b 1, want >= 1"},
		{Rule{"a_b", "== 1"}, 1, 4, true, "a_b 1, want == 1"},
		{Rule{"a_b", "== 1"}, 0.5, 4, false, "a_b 0.5, want == 1"},
		{Rule{"a_b", "!= 1"}, 1, 4, false, "a_b 1, want != 1"},
		{Rule{"a_b", "!= 1"}, 2, 4, true, "a_b 2, want != 1"},
		{Rule{"a_b", "!= 1"}, math.NaN(), 4, false, "a_b NaN, want != 1"},
		{Rule{"a_b", "< 2 cores"}, 8, 4, false, "a_b 8, want < 2 cores (4)"},
		{Rule{"a_b", "> 1kB"}, 1001, 4, true, "a_b 1.001kB, want > 1kB"},
	} {
		p, err := ParseRule(c.rule)
		if err != nil {
			t.Fatal(err)
		}
		if p.Holds(c.value, c.cores) != c.holds {
			t.Errorf("%v of %g holds: %v", c.rule, c.value, !c.holds)
		}
		if got := p.Show(c.value, c.cores); got != c.show {
			t.Errorf("%v of %g shows %q, want %q", c.rule, c.value, got, c.show)
		}
		if p.NeedsCores() != strings.Contains(c.rule.Want, "cores") {
			t.Errorf("%v needs cores: %v", c.rule, p.NeedsCores())
		}
	}
}

func TestRuleFits(t *testing.T) {
	p, err := ParseRule(Rule{`a_b{device="eth0",kind!="tmpfs",none=""}`, "< 1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		labels map[string]string
		fits   bool
	}{
		{map[string]string{"device": "eth0"}, true},
		{map[string]string{"device": "eth0", "kind": "ext4", "more": "x"}, true},
		{map[string]string{"device": "eth0", "kind": "tmpfs"}, false},
		{map[string]string{"device": "eth1"}, false},
		{map[string]string{"kind": "ext4"}, false},
		{map[string]string{"device": "eth0", "none": "x"}, false},
	} {
		if p.Fits(func(name string) string { return c.labels[name] }) != c.fits {
			t.Errorf("%v fits: %v", c.labels, !c.fits)
		}
	}
}

func TestDefaultRules(t *testing.T) {
	for name, want := range map[string][]Rule{
		"all":                        {{"cpu", "< 90%"}, {"mem_free", "> 5%"}, {"load1", "<= cores"}},
		"cpu":                        {{"cpu", "< 90%"}},
		"mem_free":                   {{"mem_free", "> 5%"}},
		"mem_free(MemFree)":          {{"mem_free(MemFree)", "> 5%"}},
		"load1":                      {{"load1", "<= cores"}},
		"net(eth0)":                  {{"net(eth0)", "< 80%"}},
		"mem":                        nil,
		"node_filefd_allocated":      nil,
		`node_x{a="b"}`:              nil,
		strings.Repeat("a_b", 1<<10): nil,
	} {
		got, err := DefaultRules(name)
		if (err != nil) != (want == nil) || cmp.Diff(want, got) != "" {
			t.Errorf("%.40q: %v, %v", name, got, err)
		}
		for _, r := range got {
			if p, err := ParseRule(r); err != nil || p.Rule() != r {
				t.Errorf("%v is not canonical: %v, %v", r, p.Rule(), err)
			}
		}
	}
}

// The canonical form is read as what it was made of, and is short.
func FuzzParseRule(f *testing.F) {
	for _, r := range []Rule{
		{"cpu", "< 90%"},
		{"mem_free(MemFree)", "> 500MiB"},
		{"load1", "<= 1.5 cores"},
		{"net(eth0)", "< 80%"},
		{`a_b{x="\"\\\n",y!="z"}`, "!= -1e-7"},
	} {
		f.Add(r.Name, r.Want)
	}
	f.Fuzz(func(t *testing.T, name, want string) {
		p, err := ParseRule(Rule{name, want})
		if err != nil {
			if len(err.Error()) > 8*MaxRuleName+1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		r := p.Rule()
		again, err := ParseRule(r)
		if err != nil {
			t.Fatalf("%q %q became %q, which is refused: %v", name, want, r, err)
		}
		if d := cmp.Diff(p, again); d != "" || again.Rule() != r {
			t.Errorf("%q %q became %q, which is read otherwise: %s", name, want, r, d)
		}
		p.Holds(1, 4)
		p.Show(math.Inf(1), 4)
	})
}
