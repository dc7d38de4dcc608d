package config

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

func zoneOf(records string) string {
	return "dns:\n  zones:\n    example.org:\n      ns: [ns.example.net]\n      records: |\n        " + strings.ReplaceAll(records, "\n", "\n        ") +
		"\nservices: {www.example.org: {endpoints: [192.0.2.1]}}\n"
}

func TestStaticRecords(t *testing.T) {
	c := parse(t, zoneOf("$TTL 1h\n@ IN MX 10 Mail.Example.ORG. ; comment ( \" here\nmail A 192.0.2.5\n     A 192.0.2.4\n     60 AAAA 2001:DB8:0::1\n"+
		"$ORIGIN sub\nx TXT \"a;b\" (\n  \"c (\" )\n@ CNAME mail.example.org.\n* CAA 0 issue \"ca.example.net\"\n"))
	want := []rota.RRset{
		{Name: "*.sub.example.org.", Type: 257, TTL: 3600, Data: []string{`0 issue "ca.example.net"`}},
		{Name: "example.org.", Type: rota.TypeMX, TTL: 3600, Data: []string{"10 mail.example.org."}},
		{Name: "mail.example.org.", Type: rota.TypeA, TTL: 3600, Data: []string{"192.0.2.4", "192.0.2.5"}},
		{Name: "mail.example.org.", Type: rota.TypeAAAA, TTL: 60, Data: []string{"2001:db8::1"}},
		{Name: "sub.example.org.", Type: rota.TypeCNAME, TTL: 3600, Data: []string{"mail.example.org."}},
		{Name: "x.sub.example.org.", Type: rota.TypeTXT, TTL: 3600, Data: []string{`"a;b" "c ("`}},
	}
	if d := cmp.Diff(want, c.DNS.Zones[0].Records); d != "" {
		t.Error(d)
	}
}

func TestBadStaticRecords(t *testing.T) {
	for in, want := range map[string]string{
		"a A 1.2.3\nb A 192.0.2.1\nc MX mail": "8:9: zone example.org",
		"a CNAME b\na A 192.0.2.1":            "7:9: zone example.org: a.example.org has a CNAME (line 6) and so no other data",
		"a CNAME b\na CNAME c":                "several CNAMEs",
		"@ CNAME b":                           "can be no CNAME",
		"a.example.net. A 192.0.2.1":          "a.example.net is outside the zone",
		"www A 192.0.2.9":                     `service "www.example.org" collides with a static A record`,
		"www CNAME x":                         `service "www.example.org" collides with a static CNAME record`,
		"$INCLUDE /etc/shadow":                "$INCLUDE is not supported",
		"$GENERATE 1-99999999 a$ A 192.0.2.1": "$GENERATE is not supported",
		"a TXT (\n\"x\"":                      "never closed",
		"a TXT \"x":                           "never closed",
		"a CH TXT x":                          "class CH is not served",
		"a DNSKEY 256 3 8 AAAA":               "rota does not sign",
		"a 2147483648 A 192.0.2.1":            "out of range",
		"$TTL never\n":                        "no TTL",
		"a SOA a b 1 2 3 4 5":                 "SOA of another name",
		"@ NS other":                          "stands in the records and under ns",
	} {
		ps := problems(t, zoneOf(in))
		if !strings.Contains(said(ps), want) {
			t.Errorf("%q: got\n%swant %s", in, said(ps), want)
		}
	}
	ps := problems(t, strings.Replace(zoneOf("www NS ns.other.net."), "www.example.org:", "a.www.example.org:", 1))
	if !strings.Contains(said(ps), "delegates to others") {
		t.Error(said(ps))
	}
}

func TestLimitOfBIND(t *testing.T) {
	var addrs []string
	for i := 1; i <= 101; i++ {
		addrs = append(addrs, "192.0.2."+strconv.Itoa(i))
	}
	text := "publish: {b: {type: rfc2136, servers: a%}}\nservices: {www.example.org: {publish: b, endpoints: [" + strings.Join(addrs, ", ") + "]}}"
	ps := problems(t, strings.Replace(text, "%", "", 1))
	if len(ps) != 1 || !strings.Contains(said(ps), "101 A records") || !strings.Contains(said(ps), "max-records-per-type") {
		t.Error(said(ps))
	}
	parse(t, strings.Replace(text, "%", ", max_records: 101", 1))
	parse(t, "dns: {zones: {example.org: {ns: [a.b]}}}\n"+strings.Replace(strings.Replace(text, "%", "", 1), "publish: b, ", "", 1))
}

func TestSOAMinimumFollowsTheSmallestTTL(t *testing.T) {
	for ttl, want := range map[string]uint32{"30s": 5, "3s": 3, "0": 0} {
		c := parse(t, "dns: {zones: {example.org: {ns: [a.b]}}}\nservices: {a.example.org: {endpoints: [192.0.2.1], ttl: "+ttl+"}, b.example.org: {endpoints: [192.0.2.1], ttl: 1h}}")
		if got := c.DNS.Zones[0].Minimum; got != want {
			t.Errorf("%s: %d", ttl, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	for in, want := range map[string]string{
		"endpoints: [\"fe80::1%eth0\"]":                           "is probed and never published",
		"endpoints: [127.0.0.2]":                                  "loopback",
		"endpoints: [169.254.1.1]":                                "link-local",
		"endpoints: [\"fe80::1\"]":                                "write fe80::1%INTERFACE",
		"endpoints: [192.0.2.1]\nttl: 0":                          "TTL 0",
		"endpoints: [192.0.2.1]\nttl: 7d":                         "with a TTL of 7d clients keep a dead address",
		"endpoints: [192.0.2.1]":                                  "has no check",
		"endpoints: [192.0.2.1]\ncheck: tcp://{}:1\ninterval: 1d": "an interval of 1d",
		"endpoints: [192.0.2.1]\nsafety: {min_published: 2}":      "health is never believed",
		"endpoints: [192.0.2.1]\npublish: rfc2136://a":            "unsigned",
		"endpoints: [127.0.0.2, \"::1\", \"tcp://127.0.0.3:80\"]": "127.0.0.2 and 2 more are loopback addresses",
	} {
		c := parse(t, with(in))
		if !strings.Contains(said(c.Warnings), want) || c.Warnings[0].Line == 0 {
			t.Errorf("%s: got\n%swant %s", in, said(c.Warnings), want)
		}
	}
}

func TestOneWarningOfLoopback(t *testing.T) {
	c := parse(t, with("check: tcp://{}:80\nendpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]"))
	if len(c.Warnings) != 1 {
		t.Error(said(c.Warnings))
	}
}

func TestNothingToDo(t *testing.T) {
	for in, at := range map[string]int{"services: {}": 11, "node: {name: a}": 1} {
		c := parse(t, in)
		if len(c.Warnings) != 1 || !strings.Contains(said(c.Warnings), "there is nothing to do") || c.Warnings[0].Column != at {
			t.Errorf("%s: %s", in, said(c.Warnings))
		}
	}
}

func TestZoneIDInURL(t *testing.T) {
	for _, in := range []string{"fe80::1%eth0", "fe80::1%25eth0"} {
		c := parse(t, with("endpoints: [\"http://["+in+"]:80/x\"]"))
		if got := c.Spec.Services[0].Endpoints[0].Address.String(); got != "fe80::1%eth0" {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestOwnerFitsIntoTheFence(t *testing.T) {
	fits, long := strings.Repeat("ä", 21)+"xx", strings.Repeat("ä", 21)+"xxx" // six bytes each, URL-encoded
	published := "\nservices: {a.example.org: {endpoints: [192.0.2.1], publish: \"rfc2136://a\"}}"
	parse(t, "ownership: {owner: "+fits+"}"+published)
	if ps := problems(t, "ownership: {owner: "+long+"}"); len(ps) != 1 || !strings.Contains(said(ps), "1:20: ownership: owner takes 129 bytes") {
		t.Error(said(ps))
	}
	if ps := problems(t, "node: {name: "+long+"}"+published); len(ps) != 1 || !strings.Contains(said(ps), "1:14: node: name is the owner, too, and takes 129 bytes") {
		t.Error(said(ps))
	}
	parse(t, "node: {name: "+long+"}") // nobody is told who owns what
	parse(t, "node: {name: "+long+"}\nownership: {owner: a}"+published)
}

// The name of a node would be another one after a change of leader.
func TestOwnerOfMany(t *testing.T) {
	const alone, many = "node: {name: a}\n", "node: {name: a}\ncluster: {election: raft}\n"
	for in, want := range map[string]string{alone: "a", many: "", many + "ownership: {owner: web}": "web", alone + "ownership: {owner: web}": "web"} {
		if got := parse(t, in).Ownership.Owner; got != want {
			t.Errorf("%s: owner %q, want %q", in, got, want)
		}
	}
}
