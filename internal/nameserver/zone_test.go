package nameserver

import (
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

func TestCompileErrors(t *testing.T) {
	ns := []rota.Name{"ns1.example.net."}
	tests := []struct {
		name    string
		records string
		want    []string // each a whole line of the error, or none
	}{
		{"fine", "www A 192.0.2.1\n", nil},
		{"no newline at the end", "www A 192.0.2.1", nil},
		{"CRLF", "www A 192.0.2.1\r\nwww2 A 192.0.2.1\r\n", nil},
		{"comments and parentheses", "; c\n\n@ SOA ns1 root (1 ; serial\n 2 3\n 4 5 )\nwww A 192.0.2.1\n", nil},
		{"syntax", "www A 192.0.2.1\nbad A 192.0.2.999\n", []string{`z.db:11: bad A A: "192.0.2.999"`}},
		{"out of zone", "\nwww.example.com. A 192.0.2.1\n", []string{"z.db:11: www.example.com A: the name is outside zone example.org"}},
		{"looks like in the zone", "www.evilexample.org. A 192.0.2.1\n", []string{"z.db:10: www.evilexample.org A: the name is outside zone example.org"}},
		{"CNAME beside others", "www A 192.0.2.1\nwww CNAME x\n", []string{
			"z.db:11: www.example.org CNAME: a CNAME stands alone (RFC 1034 §3.6.2), and this name has other records",
		}},
		{"two CNAMEs", "www CNAME y\nwww CNAME x\n", []string{"z.db:11: www.example.org CNAME: a name has one CNAME, the first is at z.db:10"}},
		{"CNAME at the apex", "@ CNAME x\n", []string{
			"z.db:10: example.org CNAME: a CNAME cannot stand at the apex of a zone, beside SOA and NS",
		}},
		{"duplicate", "www A 192.0.2.1\nWWW 5 A 192.0.2.1\n", []string{"z.db:11: www.example.org A: duplicate of z.db:10"}},
		{"class", "www CH A 192.0.2.1\n", []string{"z.db:10: www.example.org A: class CH, rota serves IN only"}},
		{"SOA elsewhere", "www SOA a b 1 2 3 4 5\n", []string{"z.db:10: www.example.org SOA: a SOA record stands at the apex of its zone only"}},
		{"two SOAs", "@ SOA a b 1 2 3 4 5\n@ SOA a b 2 2 3 4 5\n", []string{
			"z.db:11: example.org SOA: a zone has one SOA record, the first is at z.db:10",
		}},
		{"TTL", "www 2147483648 A 192.0.2.1\n", []string{"z.db:10: www.example.org A: TTL 2147483648 is above the limit of 2147483647 (RFC 2181 §8)"}},
		{"DNAME", "www DNAME x\n", []string{
			"z.db:10: www.example.org DNAME: DNAME is not supported; write the names below it, or a wildcard CNAME",
		}},
		{"signed", "www RRSIG A 13 3 60 20300101000000 20200101000000 1 example.org. AAAA\n", []string{
			"z.db:10: www.example.org RRSIG: the zone is signed, and rota does not serve signed zones; give it the unsigned records",
		}},
		{"below a delegation", "cut NS ns.example.net.\nx.cut TXT y\n", []string{
			"z.db:11: x.cut.example.org TXT: lies below the delegation of cut.example.org and would never be answered",
		}},
		{"at a delegation", "cut NS ns.example.net.\ncut MX 1 y\n", []string{
			"z.db:11: cut.example.org MX: stands at a delegation and would never be answered",
		}},
		{"glue", "cut NS ns.cut\nns.cut A 192.0.2.1\n", nil},
		{"no glue", "cut NS ns.cut\n", []string{
			"z.db:10: cut.example.org NS: ns.cut.example.org lies in the delegated zone and has no address here; add its A or AAAA record",
		}},
		{"NS to an alias", "cut NS al\nal CNAME x\n", []string{
			"z.db:10: cut.example.org NS: al.example.org is an alias, and NS must name a host itself (RFC 2181 §10.3)",
		}},
		{"wildcard NS", "*.x NS ns.example.net.\n", []string{"z.db:10: *.x.example.org NS: NS at a wildcard has no meaning (RFC 4592 §4.2)"}},
		{"other name servers", "@ NS ns9.example.net.\n", []string{
			"z.db:10: example.org NS: the zone's ns setting names other servers; keep one of the two",
		}},
		{"the same name servers", "@ NS NS1.example.net.\n", nil},
		{"NUL", "www A 192.0.2.1\n\x00", []string{"zone example.org: the records hold a NUL byte, so they are not zone file text"}},
		{"include", "$INCLUDE /etc/passwd\n", []string{`z.db:10: $INCLUDE directive not allowed: "/etc/passwd"`}},
		{"all at once", "www CH A 192.0.2.1\nx.test. A 192.0.2.1\n", []string{
			"z.db:10: www.example.org A: class CH, rota serves IN only", "z.db:11: x.test A: the name is outside zone example.org",
		}},
		{"too big", "$GENERATE 1-1500 huge TXT $-" + strings.Repeat("x", 60) + "\n", []string{
			"z.db:10: huge.example.org TXT: the RRset takes 139893 octets, the limit is 60000",
		}},
		{"any type", "x TYPE65280 \\# 1 00\n_25._tcp TLSA 3 1 1 00\n", nil},
		{"meta type", "x TYPE250 \\# 1 00\n", []string{"z.db:10: x.example.org TSIG: records of this type cannot be in a zone (RFC 6895 §3.1)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile([]Zone{{Name: "example.org.", NS: ns, Records: tt.records, File: "z.db", Line: 10}})
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			diff(t, "errors", got, tt.want)
		})
	}
}

func TestCompileZoneErrors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		zones []Zone
		want  string
	}{
		{"twice", []Zone{{Name: "a.", NS: []rota.Name{"ns."}}, {Name: "a.", NS: []rota.Name{"ns."}}}, "zone a is configured twice"},
		{"no name server", []Zone{{Name: "a."}}, "zone a: no name server: set ns, or add an NS record at the apex"},
		{"no name", []Zone{{}}, "zone without a name"},
		{"not canonical", []Zone{{Name: "A"}}, "zone A: not a domain name in canonical form"},
	} {
		_, err := Compile(tt.zones)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestSynthesizedAuthority: SOA and NS of a zone that says next to nothing, and of one that says all.
func TestSynthesizedAuthority(t *testing.T) {
	st := &rota.State{}
	for _, tt := range []struct {
		zone Zone
		want []string
	}{
		{Zone{Name: "a.test.", NS: []rota.Name{"ns1.b.test.", "ns2.b.test."}}, []string{
			"a.test. 3600 IN SOA ns1.b.test. hostmaster.a.test. 1 3600 600 1209600 5",
			"a.test. 3600 IN NS ns1.b.test.", "a.test. 3600 IN NS ns2.b.test.",
		}},
		{Zone{
			Name: "a.test.", NS: []rota.Name{"ns1.b.test."}, MName: "m.test.", RName: "r.test.", Refresh: 1, Retry: 2, Expire: 3, Minimum: 4,
			TTL: 60, Serial: 77,
		}, []string{"a.test. 60 IN SOA m.test. r.test. 77 1 2 3 4", "a.test. 60 IN NS ns1.b.test."}},
		{Zone{Name: "a.test.", Minimum: 9, Records: "$TTL 7\n@ SOA x y 5 6 7 8 9\n@ NS n\n"}, []string{
			"a.test. 7 IN SOA x.a.test. y.a.test. 5 6 7 8 9", "a.test. 7 IN NS n.a.test.",
		}},
		{Zone{Name: ".", NS: []rota.Name{"a.root."}}, []string{". 3600 IN SOA a.root. hostmaster. 1 3600 600 1209600 5", ". 3600 IN NS a.root."}},
	} {
		c := catalogOf(t, st, tt.zone)
		got := lines(append(ask(c, st, tt.zone.Name.String(), "SOA", first).answer, ask(c, st, tt.zone.Name.String(), "NS", first).answer...))
		diff(t, "apex", got, tt.want)
	}
}

// TestNegativeTTL: resolvers remember absence no longer than a service's own TTL, nor than the SOA record itself (RFC 2308 §3, §5).
func TestNegativeTTL(t *testing.T) {
	for _, tt := range []struct {
		soaTTL, minimum, serviceTTL uint32
		wantTTL, wantMinimum        uint32
	}{
		{3600, 300, 600, 300, 300},
		{3600, 300, 20, 20, 20},
		{10, 300, 600, 10, 300},
		{3600, 300, 0, 0, 0},
	} {
		s := service("www.a.test", "192.0.2.1")
		s.TTL = tt.serviceTTL
		foreign := service("www.b.test", "192.0.2.1")
		foreign.TTL = 1
		st := stateOf(t, []rota.Service{s, foreign})
		c := catalogOf(t, st, Zone{Name: "a.test.", NS: []rota.Name{"ns.b.test."}, TTL: tt.soaTTL, Minimum: tt.minimum}, Zone{
			Name: "b.test.", NS: []rota.Name{"ns.b.test."},
		})
		for _, name := range []string{"nothing.a.test", "www.a.test"} {
			soa := ask(c, st, name, "TXT", first).authority[0].(*dns.SOA)
			if soa.Hdr.Ttl != tt.wantTTL || soa.Minttl != tt.wantMinimum {
				t.Errorf("%+v: %s has SOA with TTL %d, minimum %d", tt, name, soa.Hdr.Ttl, soa.Minttl)
			}
		}
	}
}

// TestZonesTogether: a zone below another one makes the names between them exist, and RRsets of uneven TTL take the smallest.
func TestZonesTogether(t *testing.T) {
	ns := []rota.Name{"ns.test."}
	st := &rota.State{}
	c := catalogOf(t, st, Zone{Name: "a.test.", NS: ns, Records: "x 60 A 192.0.2.1\nx 30 A 192.0.2.2\n"}, Zone{Name: "c.b.a.test.", NS: ns})
	for name, want := range map[string]int{"b.a.test": dns.RcodeSuccess, "z.b.a.test": dns.RcodeNameError, "d.c.b.a.test": dns.RcodeNameError} {
		if got := ask(c, st, name, "A", first).rcode; got != want {
			t.Errorf("%s: %s", name, dns.RcodeToString[got])
		}
	}
	diff(t, "uneven TTL", lines(ask(c, st, "x.a.test", "A", first).answer), []string{"x.a.test. 30 IN A 192.0.2.1", "x.a.test. 30 IN A 192.0.2.2"})
	if z := ask(c, st, "c.b.a.test", "DS", first); len(z.authority) != 1 || z.authority[0].Header().Name != "a.test." {
		t.Errorf("DS of a zone below is answered by %v", z.authority)
	}
}

func TestSerial(t *testing.T) {
	for _, tt := range []struct{ floor, state, want uint32 }{
		{0, 0, 1},
		{0, 7, 7},
		{7, 0, 7},
		{7, 8, 8},
		{8, 7, 8},
		{4294967295, 0, 4294967295},
		{4294967295, 1, 1}, // RFC 1982: 1 comes after
		{1, 4294967295, 1},
		{0, 4294967295, 4294967295},
	} {
		if got := serial(tt.floor, tt.state); got != tt.want {
			t.Errorf("serial(%d, %d) = %d, want %d", tt.floor, tt.state, got, tt.want)
		}
	}
}

// FuzzCompile: no zone text breaks the reader, and what it accepts can be answered.
func FuzzCompile(f *testing.F) {
	f.Add("www A 192.0.2.1\n")
	f.Add("$ORIGIN x.\n$TTL 1h\n@ SOA ( a b 1 2 3 4 5 )\n")
	f.Add("$GENERATE 1-3 h$ A 192.0.2.$\n* CNAME x\n")
	f.Add("a\\.b\\000 TXT \"\\\"\" ; c\n\tMX 1 .\n")
	st := &rota.State{}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Count(text, "$GENERATE") > 1 {
			return // takes long, and is the operator's own
		}
		z, err := Compile([]Zone{{Name: "a.test.", NS: []rota.Name{"ns.test."}, Records: text}})
		if err != nil {
			return
		}
		c := newCatalog(z, st)
		for n, d := range z.zones["a.test."].nodes {
			for _, s := range d.sets {
				h := s.rrs[0].Header()
				p, err := new(dns.Msg).SetQuestion(n.String(), h.Rrtype).Pack()
				if err != nil {
					t.Fatalf("%s: %v", n, err)
				}
				if reply, _ := respond(c, st, p, false, first); reply == nil {
					t.Errorf("%s %s is not answered", n, dns.Type(h.Rrtype))
				} else {
					checkReply(t, p, reply, maxSize)
				}
			}
		}
	})
}
