package probe

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"pgregory.net/rapid"
)

// picks reads a page with the reader under test: the values of the wanted metrics by series, in the form NAME{a="b"}.
func picks(page []byte, wanted ...string) (map[string][]float64, error) {
	got := map[string][]float64{}
	var ss []series
	for _, name := range wanted {
		ss = append(ss, series{name, func(_ *reading, labels []label, v float64) {
			var words []string
			for _, l := range labels {
				words = append(words, fmt.Sprintf("%s=%q", l.name, l.value))
			}
			slices.Sort(words)
			key := name + "{" + strings.Join(words, ",") + "}"
			got[key] = append(got[key], v)
		}})
	}
	n, err := newSelector(ss).read(bytes.NewReader(page), 1<<20, nil)
	if err == nil && n != len(page) {
		err = fmt.Errorf("%d bytes of %d", n, len(page))
	}
	return got, err
}

// oracle reads it with Prometheus' own parser.
func oracle(page []byte, wanted ...string) (map[string][]float64, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return nil, err
	}
	got := map[string][]float64{}
	for _, name := range wanted {
		for _, m := range families[name].GetMetric() {
			var words []string
			for _, l := range m.GetLabel() {
				words = append(words, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			slices.Sort(words)
			key := name + "{" + strings.Join(words, ",") + "}"
			v := m.GetUntyped().GetValue() + m.GetGauge().GetValue() + m.GetCounter().GetValue()
			got[key] = append(got[key], v)
		}
	}
	return got, nil
}

var sameNumbers = cmp.Comparer(func(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) })

var wantedNames = []string{"node_cpu_seconds_total", "node_load1", "node_memory_MemTotal_bytes", "node_network_speed_bytes", "up"}

// For random pages Prometheus' own parser finds the same numbers.
func TestPageLikePrometheus(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blank := func(least string) string {
			return least + rapid.SampledFrom([]string{"", "", "", " ", "\t", "  \t"}).Draw(t, "blank")
		}
		wanted := rapid.SampledFrom([][]string{wantedNames, wantedNames[:4]}).Draw(t, "wanted")
		var b strings.Builder
		families := append(slices.Clone(wantedNames), "node_load15", "node_load", "node_cpu_seconds_total_x", "go_goroutines", "x", "node_cpu:sum")
		for i := range families {
			k := rapid.IntRange(i, len(families)-1).Draw(t, "order")
			families[i], families[k] = families[k], families[i]
		}
		for _, name := range families {
			if rapid.Bool().Draw(t, "described") {
				fmt.Fprintf(&b, "# HELP %s what node_load1 1 is\\n\n# TYPE %s %s\n", name, name, rapid.SampledFrom([]string{"gauge", "counter", "untyped"}).Draw(t, "type"))
			}
			for n := range rapid.IntRange(0, 4).Draw(t, "series") {
				b.WriteString(blank("") + name)
				if rapid.IntRange(0, 3).Draw(t, "labels") > 0 {
					labels := []string{fmt.Sprintf("n=\"%d\"", n)}
					for _, l := range []string{"a", "cpu", "_x9"}[:rapid.IntRange(0, 3).Draw(t, "more")] {
						value := rapid.StringMatching(`([a-z/ {},=#é]|\\\\|\\"|\\n){0,6}`).Draw(t, "value")
						labels = append(labels, l+blank("")+"="+blank("")+`"`+value+`"`)
					}
					if rapid.Bool().Draw(t, "turned") {
						slices.Reverse(labels)
					}
					b.WriteString(blank("") + "{" + blank("") + strings.Join(labels, blank("")+","+blank("")))
					if rapid.Bool().Draw(t, "comma") {
						b.WriteString(",")
					}
					b.WriteString(blank("") + "}")
				} else if n > 0 {
					b.WriteString(fmt.Sprintf("{n=\"%d\"}", n))
				}
				b.WriteString(blank(" "))
				switch v := rapid.Float64().Draw(t, "number"); rapid.IntRange(0, 5).Draw(t, "form") {
				case 0:
					b.WriteString(rapid.SampledFrom([]string{"NaN", "+Inf", "-Inf", "Inf", "0", "-0", "12", ".5", "5.", "1e9", "3.831959552e+09"}).Draw(t, "value"))
				case 1:
					fmt.Fprintf(&b, "%e", v)
				default:
					fmt.Fprintf(&b, "%g", v)
				}
				if rapid.IntRange(0, 4).Draw(t, "stamped") == 0 {
					fmt.Fprintf(&b, "%s%d", blank(" "), rapid.Int64().Draw(t, "stamp"))
				}
				b.WriteString("\n")
			}
			b.WriteString(rapid.SampledFrom([]string{"", "", "\n", "# a comment\n", "  \t\n", " # another\n"}).Draw(t, "between"))
		}
		page := []byte(b.String())
		got, err := picks(page, wanted...)
		want, err2 := oracle(page, wanted...)
		if err != nil || err2 != nil {
			t.Fatalf("page %q: %v; prometheus: %v", page, err, err2)
		}
		if d := cmp.Diff(want, got, sameNumbers); d != "" {
			t.Fatalf("page %q:\n%s", page, d)
		}
	})
}

// A page of a real machine, as a whole and cut at every byte.
func TestPageReal(t *testing.T) {
	page := realPage(t)
	want, err := oracle(page, wantedNames...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := picks(page, wantedNames...)
	if err != nil || cmp.Diff(want, got) != "" || len(got) < 10 {
		t.Fatalf("%v, %s", err, cmp.Diff(want, got))
	}
	for n := len(page) - 1; n > 0; n -= 97 {
		got, err := picks(page[:n], wantedNames[:4]...)
		if (err == nil) != (page[n-1] == '\n') {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
		for key, v := range got { // never a number that was cut
			if !slices.Equal(v, want[key]) {
				t.Errorf("cut after %d bytes: %s is %v, want %v", n, key, v, want[key])
			}
		}
	}
}

func realPage(t testing.TB) []byte {
	t.Helper()
	page, err := os.ReadFile("testdata/node_exporter.txt")
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// Whatever comes, the reader ends, keeps its bounds, and what it takes is what Prometheus takes.
func FuzzPage(f *testing.F) {
	f.Add([]byte("node_load1 0.5\n"))
	f.Add([]byte("# HELP x y\nnode_cpu_seconds_total{cpu=\"0\",mode=\"id\\\"le\",} 1e9 17\n"))
	f.Add([]byte(" up { a = \"b\" } NaN\n{\"up\"} 1\n"))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, page []byte) {
		got, err := picks(page, wantedNames...)
		if err != nil {
			return
		}
		want, err := oracle(page, wantedNames...)
		if err != nil {
			return // what is wrong in lines that nobody wants is not looked for
		}
		for key := range maps.Keys(got) {
			if d := cmp.Diff(want[key], got[key], sameNumbers); d != "" {
				t.Errorf("%s: %s", key, d)
			}
		}
	})
}

func BenchmarkPage(b *testing.B) {
	page := realPage(b)
	e := prepared(b, exporterCheck(rules("cpu", "< 90%", "mem_free", "> 5%", "load1", "<= cores")))
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	in := bytes.NewReader(nil)
	for b.Loop() {
		in.Reset(page)
		if _, err := e.selector.read(in, 1<<20, e.reading()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProbeExporter(b *testing.B) {
	oneByOne(b, serve(b, answers(okHead+string(realPage(b)))), exporterCheck(rules("mem_free", "> 0%", "load1", "< 1000")))
}
