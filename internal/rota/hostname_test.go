package rota

import (
	"net/netip"
	"strings"
	"testing"
)

func TestHostPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          HostParts
		bad           string
	}{
		{"{id}-{service}-{env}", "cyberdyne-web-sfo-prod", HostParts{"cyberdyne-web-sfo-prod", "cyberdyne", "web", "sfo-prod"}, ""},
		{"{id}-{service}-{env}", "Cyberdyne-WEB-sfo.internal.example.org", HostParts{"cyberdyne-web-sfo", "cyberdyne", "web", "sfo"}, ""},
		{"{id}-{service}-{env}", "cyberdyne-web", HostParts{}, `there is no "-" after its {service}`},
		{"{id}-{service}-{env}", "cyberdyne", HostParts{}, `there is no "-" after its {id}`},
		{"{id}-{service}-{env}", "a--b-c", HostParts{}, "its {service} is empty"},
		{"{id}-{service}-{env}", "a-b-", HostParts{}, "no hyphen at either end"},
		{"{service}{id}", "", HostParts{}, "side by side"},
		{"{service}-{id}.example", "", HostParts{}, "letters, digits and hyphens"},
		{"srv-{service}-{id}", "srv-web-7", HostParts{Host: "srv-web-7", ID: "7", Service: "web"}, ""},
		{"srv-{service}-{id}", "web-7", HostParts{}, `does not begin with "srv-"`},
		{"{service}-x", "web-x", HostParts{Host: "web-x", Service: "web"}, ""},
		{"{service}-x", "web-x-x", HostParts{Host: "web-x-x", Service: "web-x"}, ""},
		{"{service}-x", "web-y", HostParts{}, `does not end in "-x"`},
		{"{host}", "any-thing", HostParts{Host: "any-thing"}, ""},
		{"{host}-{id}", "", HostParts{}, "whole name"},
		{"{id}-{id}", "", HostParts{}, "twice"},
		{"{role}", "", HostParts{}, "want {id}"},
		{"web", "", HostParts{}, "no placeholder"},
		{"", "", HostParts{}, "no placeholder"},
		{"{id", "", HostParts{}, "without a }"},
		{"id}", "", HostParts{}, "without a {"},
		{"{service}", "web_1", HostParts{}, "letters, digits and hyphens"},
		{"{service}", "", HostParts{}, "no host name"},
		{"{service}", strings.Repeat("a", 64), HostParts{}, "no host name"},
	} {
		p, err := ParseHostPattern(c.pattern)
		var got HostParts
		if err == nil {
			got, err = p.Match(c.host)
		}
		switch {
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%s of %q: %+v, %v; want an error with %q", c.pattern, c.host, got, err, c.bad)
		case c.bad == "" && (err != nil || got != c.want):
			t.Errorf("%s of %q: %+v, %v; want %+v", c.pattern, c.host, got, err, c.want)
		}
	}
}

func TestRegisterNames(t *testing.T) {
	for _, c := range []struct {
		template        RegisterTemplate
		host            string
		service, record Name
		bad             string
	}{
		{
			RegisterTemplate{HostName: "{id}-{service}-{env}", ServiceName: "{service}.skynet.hiveary.com", HostRecord: "{host}.skynet.hiveary.com"},
			"cyberdyne-web-sfo-prod", "web.skynet.hiveary.com.", "cyberdyne-web-sfo-prod.skynet.hiveary.com.", "",
		},
		{RegisterTemplate{HostName: "{service}-{id}", ServiceName: "{service}.{env}.example.org"}, "web-1", "", "", "{env}, which the host name pattern does not find"},
		{RegisterTemplate{HostName: "{host}", HostRecord: "{host}.example.org"}, "web-1", "", "web-1.example.org.", ""},
		{RegisterTemplate{HostName: "{service}", ServiceName: "{service}.example.org", HostRecord: "{host}.example.org"}, "web", "", "", "name of its service"},
		{RegisterTemplate{HostName: "{service}", ServiceName: "{service}..example.org"}, "web", "", "", "empty label"},
	} {
		_, service, record, err := c.template.Names(c.host)
		switch {
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%+v of %s: %v; want an error with %q", c.template, c.host, err, c.bad)
		case c.bad == "" && (err != nil || service != c.service || record != c.record):
			t.Errorf("%+v of %s: %s %s %v", c.template, c.host, service, record, err)
		}
	}
}

func TestReverse(t *testing.T) {
	for _, c := range []struct {
		zone Name
		addr string
		want Name
	}{
		{"", "192.0.2.10", "10.2.0.192.in-addr.arpa."},
		{"", "2001:db8::1", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."},
		{"37.13.in-addr.arpa.", "13.37.4.2", "2.4.37.13.in-addr.arpa."},
		{"37.13.in-addr.arpa.", "13.38.4.2", ""},
		{"37.13.in-addr.arpa.", "2001:db8::1", ""},
		{"8.b.d.0.1.0.0.2.ip6.arpa.", "2001:db8::1", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."},
		{"0-25.2.0.192.in-addr.arpa.", "192.0.2.10", "10.0-25.2.0.192.in-addr.arpa."},
		{"0-25.2.0.192.in-addr.arpa.", "192.0.2.127", "127.0-25.2.0.192.in-addr.arpa."},
		{"0-25.2.0.192.in-addr.arpa.", "192.0.2.128", ""},
		{"0/25.2.0.192.in-addr.arpa.", "192.0.2.10", "10.0/25.2.0.192.in-addr.arpa."},
		{"64-26.2.0.192.in-addr.arpa.", "192.0.2.70", "70.64-26.2.0.192.in-addr.arpa."},
		{"64-26.2.0.192.in-addr.arpa.", "192.0.2.60", ""},
		{"0-31.2.0.192.in-addr.arpa.", "192.0.2.31", "31.0-31.2.0.192.in-addr.arpa."},
		{"0/31.2.0.192.in-addr.arpa.", "192.0.2.31", ""},
		{"128-255.2.0.192.in-addr.arpa.", "192.0.2.200", "200.128-255.2.0.192.in-addr.arpa."},
		{"0-25.3.0.192.in-addr.arpa.", "192.0.2.10", ""},
		{"dsl.2.0.192.in-addr.arpa.", "192.0.2.10", ""},
	} {
		got, ok := Reverse{Zone: c.zone}.Owner(netip.MustParseAddr(c.addr))
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s in %q: %q %v, want %q", c.addr, c.zone, got, ok, c.want)
		}
	}
	r := RegisterTemplate{Reverse: []Reverse{{Zone: "192.in-addr.arpa."}, {Zone: "0-25.2.0.192.in-addr.arpa."}, {}}}
	for addr, want := range map[string]Name{"192.0.2.3": "3.0-25.2.0.192.in-addr.arpa.", "192.0.2.200": "200.2.0.192.in-addr.arpa.", "::1": ReverseName(netip.MustParseAddr("::1"))} {
		if _, got, _ := r.Pointer(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s points back at %s, want %s", addr, got, want)
		}
	}
}

func FuzzHostPattern(f *testing.F) {
	f.Add("{id}-{service}-{env}", "cyberdyne-web-sfo-prod")
	f.Add("srv{id}x{service}", "srv1xx2")
	f.Add("{host}", "a")
	f.Fuzz(func(t *testing.T, pattern, host string) {
		p, err := ParseHostPattern(pattern)
		if err != nil {
			return
		}
		parts, err := p.Match(host)
		if err != nil {
			return
		}
		values := map[string]string{"id": parts.ID, "service": parts.Service, "env": parts.Env, "host": parts.Host}
		again := ""
		for _, piece := range p.parts {
			text := piece.text
			if piece.placeholder {
				if text = values[piece.text]; text == "" {
					t.Fatalf("%q of %q leaves {%s} empty", pattern, host, piece.text)
				}
			}
			again += text
		}
		if again != parts.Host {
			t.Fatalf("%q of %q gives %+v, which makes %q", pattern, host, parts, again)
		}
		n, err := fill("{host}.example.org", parts)
		if err != nil || n.Label() != parts.Host {
			t.Fatalf("%q becomes %q: %v", parts.Host, n, err)
		}
	})
}
