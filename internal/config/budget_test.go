package config

import (
	"fmt"
	"strings"
	"testing"
)

// The budget of changes is held against the largest address and site of each publisher.
func TestBudgetIsBigEnough(t *testing.T) {
	const publishers = "publish: {p: {type: rfc2136, servers: [192.0.2.53]}, q: {type: rfc2136, servers: [192.0.2.54]}}\n"
	services := func(n int, endpoints string) string {
		var b strings.Builder
		b.WriteString("services:\n")
		for i := range n {
			fmt.Fprintf(&b, "  s%02d.example.org: {publish: p, endpoints: %s}\n", i, endpoints)
		}
		return b.String()
	}
	three := "[192.0.2.1, 192.0.2.2, 192.0.2.3]"
	two := "[{address: 192.0.2.1, site: ams}, {address: 192.0.2.2, site: ams}, {address: 192.0.2.3, site: fra}, {address: 192.0.2.4, site: fra}]"
	for _, c := range []struct {
		name, text, want string
	}{
		{"a third on one machine", services(12, three), `publisher "p": when 192.0.2.1 dies, 12 of 36 records should leave, and max_change lets 10 go: the others stay for 10m`},
		{"two sites", services(6, two), `publisher "p": when site ams dies, 12 of 24 records should leave, and max_change lets 7 go`},
		{"few records", services(3, three), ""},
		{"a larger budget", "safety: {max_change: {records: 34%}}\n" + services(12, three), ""},
		{"no limit", "safety: {max_change: {records: 100%}}\n" + services(12, three), ""},
		{"health is not believed then", "safety: {fail_open_below: 80%}\n" + services(12, three), ""},
		{"one service", services(1, "[192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, 192.0.2.5, 192.0.2.6, 192.0.2.7, 192.0.2.8, 192.0.2.9, 192.0.2.10]"), ""},
		{"the smallest budget counts", services(12, three) + "  z.example.org: {publish: p, endpoints: [192.0.2.9], safety: {max_change: {records: 10%}}}\n", "12 of 37 records should leave, and max_change lets 3 go"},
		{"another publisher", services(12, three) + "  z.example.org: {publish: q, endpoints: [192.0.2.9]}\n", `publisher "p"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := Parse("rota.yaml", []byte(publishers+c.text), Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range cfg.Warnings {
				if strings.Contains(w.Message, "max_change") {
					got = append(got, w.Message)
				}
			}
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("warnings %q, want %q", got, c.want)
			}
		})
	}
}
