package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// hosts is a configuration with one template.
func hosts(lines string) string {
	return "dns: {zones: {lb.example.org: {ns: a.b}, 37.13.in-addr.arpa: {ns: a.b}}}\n" +
		"publish: {bind: {type: rfc2136, servers: a, key: k}, kept: {type: rfc2136, servers: a, key: k, zones: [hosts.example.org, 10.in-addr.arpa]}, do: {type: digitalocean, token: {file: t}}}\n" +
		"keys: {k: {file: tsig.key}}\ndiscover:\n  - type: register\n    " + strings.ReplaceAll(lines, "\n", "\n    ") + "\n"
}

// The block of config/full.yaml: what the real program of that kind does.
func TestRegister(t *testing.T) {
	c := parse(t, hosts(`host_name: "{id}-{service}-{env}"
service_name: "{service}.skynet.hiveary.com"
also: {host_record: "{host}.skynet.hiveary.com", ptr: 10.in-addr.arpa}
ttl: 2h
expire_after: never
publish: bind`), publisherFiles)
	want := rota.RegisterTemplate{
		Name: "register", HostName: "{id}-{service}-{env}", ServiceName: "{service}.skynet.hiveary.com", HostRecord: "{host}.skynet.hiveary.com",
		Service:  rota.Service{TTL: 7200, Safety: rota.DefaultSafety(), Publish: []string{"bind"}},
		Endpoint: rota.Endpoint{Weight: 1, Priority: 1}, HostPublish: []string{"bind"},
		Reverse: []rota.Reverse{{Zone: "10.in-addr.arpa.", Publish: []string{"bind"}}},
	}
	if d := cmp.Diff([]rota.RegisterTemplate{want}, c.Spec.Registers, addresses); d != "" {
		t.Error(d)
	}
	if len(c.Publishers) != 1 || c.Publishers[0].Name != "bind" || len(c.Idle) != 2 {
		t.Errorf("publishers %v, idle %v", c.Publishers, c.Idle)
	}
	if w := said(c.Warnings); strings.Contains(w, "no service is configured") || !strings.Contains(w, `discover "register": with a TTL of 2h`) {
		t.Errorf("warnings: %s", w)
	}
	if err := c.Spec.Validate(); err != nil {
		t.Error(err)
	}
	// The service's name is not known before there is one: in a check stands what the template says of it.
	c = parse(t, hosts("host_name: \"{service}\"\nservice_name: \"{service}.example.org\"\nchecks: [\"https://{}/\", {type: tls, port: 1}, {type: http, host: \"{}\"}]\npublish: bind"), publisherFiles)
	const name = "{service}.example.org"
	if k := c.Spec.Registers[0].Endpoint.Checks; k[0].Check.Host != name || k[1].Check.ServerName != name || k[2].Check.Host != "" {
		t.Errorf("%+v", k)
	}
}

func TestRegisterInOwnZones(t *testing.T) {
	c := parse(t, hosts(`name: web
host_name: "web{id}"
service_name: "www.LB.example.org"
also: {host_record: "{host}.hosts.example.org", publish: [kept, do], ptr: [37.13.in-addr.arpa, 10.in-addr.arpa, {zone: auto, publish: bind}]}
expire_after: 1h
networks: [192.0.2.0/24, "2001:db8::1"]
endpoint: {weight: 2, site: ams}
check: https://{}/health
interval: 7s`), publisherFiles)
	got := c.Spec.Registers[0]
	if got.Name != "web" || got.Service.Zone != "lb.example.org." || got.Service.Publish[0] != rota.Embedded || got.ExpireAfter != time.Hour {
		t.Errorf("%+v", got)
	}
	if d := cmp.Diff([]rota.Reverse{
		{Zone: "37.13.in-addr.arpa.", Publish: []string{rota.Embedded}}, {Zone: "10.in-addr.arpa.", Publish: []string{"kept", "do"}}, {Publish: []string{"bind"}},
	}, got.Reverse); d != "" {
		t.Error(d)
	}
	if len(got.Networks) != 2 || got.Networks[1] != netip.MustParsePrefix("2001:db8::1/128") || got.Endpoint.Weight != 2 || got.Endpoint.Site != "ams" {
		t.Errorf("%+v", got)
	}
	if k := got.Endpoint.Checks[0].Check; k.Host != "www.lb.example.org" || k.Timing.Interval != 7*time.Second || k.ServerName != "" {
		t.Errorf("%+v", k)
	}
}

func TestBadRegister(t *testing.T) {
	const pattern = "host_name: \"{id}-{service}\"\n"
	const right = pattern + "service_name: \"{service}.lb.example.org\""
	for in, want := range map[string]string{
		"publish: bind":           `5:5: discover (register) has no host_name`,
		pattern + "publish: bind": "neither service_name nor also: host_record",
		"host_name: \"{id}{service}\"\nservice_name: a.lb.example.org":                                            `6:16: discover (register): host_name: host name pattern "{id}{service}" has {id}{service} side by side`,
		"host_name: web\nservice_name: a.lb.example.org":                                                          "has no placeholder",
		"host_name: \"{nam}\"\nservice_name: a.lb.example.org":                                                    "has the placeholder {nam}",
		"host_name: \"{id\"\nservice_name: a.lb.example.org":                                                      "has a { without a }",
		"host_name: \"{id}_{env}\"\nservice_name: a.lb.example.org":                                               `has "_"`,
		pattern + "service_name: \"{env}.lb.example.org\"":                                                        `7:19: discover "register": name template "{env}.lb.example.org" has {env}, which the host name pattern does not find`,
		pattern + "service_name: \"{service.lb.example.org\"":                                                     "has a { without a }",
		pattern + "service_name: \"{service}..lb.example.org\"":                                                   "empty label",
		pattern + "service_name: \"{service}!.lb.example.org\"":                                                   `holds "!"`,
		pattern + "service_name: \"{service}.lb.bücher.example\"":                                                 "letters outside ASCII",
		pattern + "service_name: \"{service}.example.net\"":                                                       `names of service_name are in no zone under dns.zones`,
		pattern + "service_name: \"{service}.example.net\"\npublish: dns":                                         "cannot be answered by rota itself",
		pattern + "service_name: \"{service}.example.net\"\npublish: kept":                                        `no name of service_name is in a zone of publisher "kept" (10.in-addr.arpa, hosts.example.org)`,
		pattern + "service_name: \"{service}.example.net\"\npublish: bnid":                                        `unknown publisher "bnid" (did you mean "bind"?)`,
		pattern + "service_name: \"{service}.example.net\"\npublish: [bind, bind]":                                `names publisher "bind" twice`,
		pattern + "service_name: \"{service}.example.net\"\npublish: bind\nzone: example.com":                     "no name of service_name is in zone example.com",
		right + "\nalso: {ptr: auto}":                                                                             "also has no host_record",
		right + "\nalso: {host_record: \"{service}.lb.example.org\"}":                                             "a host's own name is that of its service",
		right + "\nalso: {host_record: \"{host}.example.net\"}":                                                   "names of host_record are in no zone under dns.zones",
		right + "\nalso: {host_record: \"{env}.lb.example.org\"}":                                                 "has {env}, which",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: example.org}":                              "example.org holds no pointers",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: 10.in-addr.arpa}":                          "nobody publishes pointers in 10.in-addr.arpa",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: auto}":                                     "nobody publishes pointers in zones of others",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: [37.13.in-addr.arpa, 37.13.IN-ADDR.arpa]}": "ptr 37.13.in-addr.arpa stands twice",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: {publish: bind}}":                          "has no zone",
		right + "\nalso: {host_record: \"{host}.lb.example.org\", ptr: {zone: auto, publish: x}}":                 `unknown publisher "x"`,
		right + "\nalso: {host: x}":                                                                               `unknown key "host"`,
		right + "\nexpire_after: 1s":                                                                              "want never, or 1m to 366d",
		right + "\nexpire_after: soon":                                                                            `"soon" is no duration`,
		right + "\nttl: -1":                                                                                       "out of range",
		right + "\nnetworks: [192.0.2.1/24]":                                                                      "write 192.0.2.0/24",
		right + "\nnetworks: []":                                                                                  "networks is empty",
		right + "\nendpoint: {weight: -1}":                                                                        "-1 is out of range",
		right + "\nendpoint: {address: a}":                                                                        `unknown key "address"`,
		right + "\nendpoints: [192.0.2.1]":                                                                        `unknown key "endpoints"`,
		right + "\ncheck: wbe":                                                                                    `unknown check "wbe"`,
		right + "\ncheck: tcp://{}":                                                                               "wants a port",
		right + "\ncheck: a\nchecks: [a]":                                                                         `discover "register" has both check and checks`,
		right + "\nsafety: {max_sites: x}":                                                                        `"x" is no whole number`,
		right + "\nname: 'a b'":                                                                                   `"a b" is no name`,
		right + "\nservice_nam: x":                                                                                `unknown key "service_nam" in discover (register)`,
		right + "\n- {type: register, name: register, host_name: \"{host}\", service_name: b.lb.example.org}":     `"register" stands twice`,
	} {
		in = strings.ReplaceAll(hosts(in), "\n    - {", "\n  - {")
		if got := said(problems(t, in, publisherFiles)); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
	got := said(problems(t, hosts("host_name: \"{x}\"\nservice_name: a b\nalso: {ptr: a}\nttl: 1.5\nnetworks: [a]\npublish: no"), publisherFiles))
	for _, want := range []string{"{x}", "contains a space", "a holds no pointers", `"1.5" is no TTL`, `"a" is no prefix`, `unknown publisher "no"`, "no host_record"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%swant %s", got, want)
		}
	}
}
