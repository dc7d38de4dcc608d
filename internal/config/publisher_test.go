package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// using puts a publisher into a configuration with one service that it publishes.
func using(publisher string, more ...string) string {
	return "publish: {p: {" + publisher + "}}\nservices: {www.example.org: {ttl: 1h, endpoints: [192.0.2.1], check: \"http://{}/\", publish: p}}\n" + strings.Join(more, "\n")
}

var publisherFiles = tree{"/etc/rota/t": "opensesame", "/etc/rota/base": secret64, "/etc/rota/json": `{"token": "opensesame"}`, "/etc/rota/tsig.key": bindKey}

const twoKeys = "keys: {old: {file: tsig.key}, new: {secret: {file: base}}}"

func TestPublishersHaveDefaults(t *testing.T) {
	token := Secret{value: "opensesame", from: "file:/etc/rota/t"}
	for in, want := range map[string]Publisher{
		"type: rfc2136, servers: 192.0.2.53, key: old": {RFC2136: &RFC2136{
			Servers: []string{"192.0.2.53:53"}, Transport: TransportAuto,
			Keys: []Key{{"ddns.", "hmac-sha512.", Secret{secret64, "file:/etc/rota/tsig.key"}}},
		}, MaxRecords: 100, ReadEvery: time.Minute},
		"type: nsupdate, servers: a.b, key: old": {NSUpdate: &NSUpdate{
			Command: []string{"nsupdate"}, Servers: []string{"a.b:53"}, Timeout: 10 * time.Second,
			Keys: []Key{{"ddns.", "hmac-sha512.", Secret{secret64, "file:/etc/rota/tsig.key"}}},
		}, MaxRecords: 100, ReadEvery: time.Minute},
		"type: powerdns, url: \"http://127.0.0.1:8081/\", token: {file: t}": {PowerDNS: &PowerDNS{URL: "http://127.0.0.1:8081", Token: token, ServerID: "localhost"}, ReadEvery: time.Minute},
		"type: autodns, user: me, password: {file: t}": {AutoDNS: &AutoDNS{
			URL: "https://api.autodns.com/v1", User: Secret{value: "me"}, Password: token, Context: 4,
		}, MinTTL: 1},
		"type: dynu, token: {file: t}":         {Dynu: &Dynu{URL: "https://api.dynu.com/v2", Token: token}, MinTTL: 30},
		"type: digitalocean, token: {file: t}": {DigitalOcean: &DigitalOcean{URL: "https://api.digitalocean.com/v2", Token: token}, MinTTL: 30},
		"type: cloudflare, token: {file: t}":   {Cloudflare: &Cloudflare{URL: "https://api.cloudflare.com/client/v4", Token: token, Proxied: ProxiedKeep}, MinTTL: 60},
		"type: cloudflare, proxied: on, token: {file: t}": {
			Cloudflare: &Cloudflare{URL: "https://api.cloudflare.com/client/v4", Token: token, Proxied: ProxiedOn}, MinTTL: 60, Proof: Proof{Off: true},
		},
		"type: route53":                 {Route53: &Route53{Wait: true}, MaxRecords: 400},
		"type: desec, token: {file: t}": {DeSEC: &DeSEC{URL: "https://desec.io/api/v1", Token: token}, MinGap: 5 * time.Second, MinTTL: 3600},
		"type: webhook, url: \"https://a.b/c\", secret: {file: base}": {Webhook: &Webhook{
			URL: "https://a.b/c", Secret: Secret{secret64, "file:/etc/rota/base"}, Timeout: 10 * time.Second,
		}, ReadEvery: time.Minute},
		"type: exec, command: [update]": {Exec: &Exec{
			Command: []string{"update"}, Mode: ExecJSON, Timeout: 10 * time.Second,
		}, ReadEvery: time.Minute},
		"type: external-dns-webhook, url: \"http://[::1]:8888\"":         {ExternalDNS: &ExternalDNS{URL: "http://[::1]:8888", Timeout: 10 * time.Second}, ReadEvery: time.Minute},
		"type: libdns, provider: x, settings: {file: json}, min_ttl: 60": {LibDNS: &LibDNS{Provider: "x", Settings: Secret{`{"token": "opensesame"}`, "file:/etc/rota/json"}}, MinTTL: 60},
		"type: zonefile, path: a.zone":                                   {ZoneFile: &ZoneFile{Path: "/etc/rota/a.zone", Timeout: 10 * time.Second}, ReadEvery: time.Minute},
		"type: mock, zones: z":                                           {Mock: &Mock{Zones: "/etc/rota/z"}, ReadEvery: time.Minute, Proof: Proof{Off: true}},
		"type: mockjson, zones: z, state: s":                             {Mock: &Mock{"/etc/rota/z", "/etc/rota/s"}, ReadEvery: time.Minute, Proof: Proof{Off: true}},
	} {
		c := parse(t, using(in, twoKeys), publisherFiles)
		want.Name, want.MinGap = "p", cmp.Or(want.MinGap, time.Second)
		want.Type, _, _ = strings.Cut(strings.TrimPrefix(in, "type: "), ",")
		if want.MaxRecords == 0 {
			want.MaxRecords = 1000
		}
		if want.ReadEvery == 0 {
			want.ReadEvery = 5 * time.Minute
		}
		if !want.Proof.Off {
			want.Proof = Proof{Within: 2 * time.Minute, Every: 5 * time.Minute}
		}
		if d := gocmp.Diff([]Publisher{want}, c.Publishers, secrets); d != "" {
			t.Errorf("%s: %s", in, d)
		}
		if len(c.Warnings) > 0 {
			t.Errorf("%s: %s", in, said(c.Warnings))
		}
	}
}

func TestKeysOfAPublisherForAChange(t *testing.T) {
	c := parse(t, using("type: rfc2136, servers: a, keys: [new, old]", twoKeys), publisherFiles)
	var names []rota.Name
	for _, k := range c.Publishers[0].RFC2136.Keys {
		names = append(names, k.Name)
	}
	if !slices.Equal(names, []rota.Name{"new.", "ddns."}) {
		t.Errorf("keys %v, want the new one first", names)
	}
}

func TestPublisherThatNothingUses(t *testing.T) {
	c := parse(t, "publish: {b: {type: dynu, token: {file: t}}, a: {type: rfc2136, servers: a}}\n"+with("endpoints: [192.0.2.1]\ncheck: http://{}/"), publisherFiles)
	if len(c.Publishers) != 0 || len(c.Idle) != 2 || c.Idle[0].Name != "a" || c.Idle[1].Dynu.Token.Reveal() != "opensesame" || len(c.Warnings) != 0 {
		t.Errorf("%+v %+v %s", c.Publishers, c.Idle, said(c.Warnings))
	}
}

func TestBadPublishers(t *testing.T) {
	for in, want := range map[string]string{
		"servers: a":                                                         `1:14: publisher "p" has no type: want rfc2136,`,
		"type: rfc2316":                                                      `1:21: publisher "p": type "rfc2316": want rfc2136`,
		"type: kubernetes-service":                                           `type kubernetes-service is not supported yet`,
		"type: rfc2136":                                                      `1:14: publisher "p" (rfc2136) has no servers`,
		"type: rfc2136, servers: []":                                         "servers is empty",
		"type: rfc2136, servers: [a, \"a:53\"]":                              `server a:53 stands twice`,
		"type: rfc2136, servers: a, key: old, keys: [new]":                   "both key and keys",
		"type: rfc2136, servers: a, keys: [new, nwe]":                        `unknown key "nwe" (did you mean "new"?)`,
		"type: rfc2136, servers: a, keys: [new, new]":                        `key "new" stands twice`,
		"type: rfc2136, servers: a, keys: [new, old, new]":                   "has 3 entries: want at most 2",
		"type: rfc2136, servers: a, transport: tls":                          `"tls": want auto, udp or tcp`,
		"type: rfc2136, servers: a, zone_transfer: on":                       `zone_transfer "on": want auto or off`,
		"type: rfc2136, servers: a, plain_reads: yes":                        "want true or false",
		"type: rfc2136, servers: a, zone: example.org, zones: [example.org]": "both zone and zones",
		"type: rfc2136, servers: a, zones: [example.org, Example.org.]":      "zone example.org stands twice",
		"type: rfc2136, servers: a, zones: [example.org, auto]":              "auto stands alone",
		"type: rfc2136, servers: a, zones: []":                               "zones is empty",
		"type: rfc2136, servers: a, zones: [a..b]":                           "empty label",
		"type: rfc2136, servers: a, zone: example.net":                       `service "www.example.org" is not in zone example.net of publisher "p"`,
		"type: rfc2136, servers: a, zones: [example.net, example.com]":       `is in none of the zones of publisher "p" (example.com, example.net)`,
		"type: rfc2136, servers: a, max_records: 0":                          "0 is out of range",
		"type: rfc2136, servers: a, dry_run: maybe":                          `"maybe": want true or false`,
		"type: rfc2136, servers: a, min_gap: 0s":                             "0s is out of range",
		"type: rfc2136, servers: a, min_gap: 2h":                             "2h is out of range",
		"type: rfc2136, servers: a, min_gap: 5":                              `"5" has no unit`,
		"type: rfc2136, servers: a, read_every: 1ms":                         "1ms is out of range",
		"type: rfc2136, servers: a, proof: on":                               `proof "on": want off`,
		"type: rfc2136, servers: a, proof: {server: a}":                      `unknown key "server" in publisher "p" (rfc2136): proof (did you mean "servers"?)`,
		"type: rfc2136, servers: a, proof: {servers: [a, auto]}":             "auto stands alone",
		"type: rfc2136, servers: a, proof: {servers: [a, \"a:53\"]}":         "proof: server a:53 stands twice",
		"type: rfc2136, servers: a, proof: {resolvers: [1.2.3]}":             "want four parts",
		"type: rfc2136, servers: a, proof: {within: 1ms}":                    "1ms is out of range",
		"type: rfc2136, servers: a, proof: {every: 1s}":                      "1s is out of range",
		"type: rfc2136, servers: a, token: {file: t}":                        `unknown key "token" in publisher "p" (rfc2136)`,
		"type: nsupdate, servers: a, command: bin/nsupdate":                  `"bin/nsupdate" is a relative path`,
		"type: nsupdate, servers: a, command: [./nsupdate]":                  `"./nsupdate" is a relative path`,
		"type: nsupdate, servers: a, command: nsupdate -v":                   "no shell reads it",
		"type: nsupdate, servers: a, timeout: 1h":                            "1h is out of range",
		"type: powerdns, token: {file: t}":                                   `publisher "p" (powerdns) has no url`,
		"type: powerdns, url: \"http://127.0.0.1\"":                          "has no token",
		"type: powerdns, url: localhost, token: {file: t}":                   "want an absolute URL",
		"type: powerdns, url: \"ftp://a/\", token: {file: t}":                "want an absolute URL",
		"type: powerdns, url: \"http://192.0.2.1\", token: {file: t}":        "use https, or write insecure: true",
		"type: powerdns, url: \"http://a:99999\", token: {file: t}":          "99999 is out of range",
		"type: powerdns, url: \"https://a/?b=c\", token: {file: t}":          "url has a query",
		"type: powerdns, url: \"https://a/#b\", token: {file: t}":            "has a fragment",
		"type: powerdns, url: \"https://me:hush@a/\", token: {file: t}":      "URL with user and password is not taken",
		"type: powerdns, url: [a], token: {file: t}":                         "url is a list: want a URL",
		"type: autodns, user: me":                                            "has no password",
		"type: autodns, password: {file: t}":                                 "has no user",
		"type: autodns, user: me, password: {file: no}":                      "no: no such file",
		"type: autodns, user: me, password: {file: t}, context: -1":          "-1 is out of range",
		"type: dynu":                                                               "has no token",
		"type: dynu, token: {env: NONE}":                                           "environment variable NONE is not set",
		"type: dynu, token: {file: tsig.key}":                                      `publisher "p": the token has several lines (the token alone, in one line)`,
		"type: dynu, token: ''":                                                    "is empty: want {file: PATH}",
		"type: cloudflare, token: {file: t}, proxied: true":                        `proxied "true": want keep, on or off`,
		"type: cloudflare, token: [a]":                                             "token is a list: want",
		"type: route53, role: admin":                                               `"admin" is no role`,
		"type: route53, region: Frankfurt":                                         `"Frankfurt" is no region`,
		"type: route53, zone_id: example.org":                                      `"example.org" is no id of a hosted zone`,
		"type: route53, private: maybe":                                            `private "maybe": want true or false`,
		"type: route53, wait: forever":                                             "want insync or none",
		"type: route53, access_key: a":                                             "belong together",
		"type: route53, access_key: a, secret_key: {file: t}, profile: x":          "both profile and access_key",
		"type: webhook, url: \"https://a/\"":                                       "has no secret",
		"type: mock":                                                               `publisher "p" (mock) has no zones`,
		"type: webhook, url: \"https://a/\", secret: {file: t}":                    "1:57: publisher \"p\": the secret that signs has 10 bytes: want at least 16",
		"type: webhook, url: \"https://a/\", secret: {file: base}, signed: 1":      `signed "1": want true or false`,
		"type: webhook, url: \"http://192.0.2.1/\", secret: {file: base}":          "could be anybody's",
		"type: webhook, url: \"https://a/\", secret: {file: base}, insecure: true": `unknown key "insecure"`,
		"type: webhook, secret: {file: t}":                                         "has no url",
		"type: exec":                                                               "has no command",
		"type: exec, command: update":                                              "command is a value: want a list",
		"type: exec, command: []":                                                  "command is empty",
		"type: exec, command: [a/b]":                                               `"a/b" is a relative path`,
		"type: exec, command: ['']":                                                "command: is empty",
		"type: exec, command: [a], mode: smple":                                    `did you mean "simple"?`,
		"type: exec, command: [a], mode: simple":                                   "write servers: [ADDRESS]",
		"type: exec, command: [a], servers: a":                                     "remove it, or write mode: simple",
		"type: zonefile":                                                           "has no path",
		"type: zonefile, path: a, zone: example.net":                               "is not in zone example.net",
		"type: zonefile, path: a, reload: [b/c]":                                   "reload: \"b/c\" is a relative path",
		"type: mockjson, zones: a":                                                 "has no state",
		"type: mockjson, state: a, zones: z, proof: {within: 1m}":                  "there is nothing to prove",
		"type: mock, zones: z, state: a":                                           `unknown key "state"`,
	} {
		got := said(problems(t, using(in, twoKeys), publisherFiles))
		if !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
		// What is wrong is wrong whether a service uses it or not.
		ofService := slices.ContainsFunc([]string{"zone example.net", "in none of", "not supported"}, func(s string) bool { return strings.Contains(want, s) })
		if ofService {
			continue
		}
		idle := strings.Replace(using(in, twoKeys), "publish: p}", "publish: \"rfc2136://192.0.2.53\"}", 1)
		if got := said(problems(t, idle, publisherFiles)); !strings.Contains(got, want) {
			t.Errorf("%s, unused: got\n%swant %s", in, got, want)
		}
	}
}

func TestPublishersSayWhatTheyChange(t *testing.T) {
	for in, want := range map[string]string{
		"type: rfc2136, servers: a":                                                    `publisher "p" sends its updates unsigned (add key: NAME`,
		"type: digitalocean, token: {file: t}":                                         `service "www.example.org" will be published with TTL 30s by publisher "p": digitalocean takes no less (write ttl: 30s)`,
		"type: desec, token: {file: t}":                                                "with TTL 1h by",
		"type: powerdns, url: \"http://192.0.2.1\", insecure: true, token: {file: t}":  "crosses the network in the clear",
		"type: powerdns, url: \"https://192.0.2.1\", insecure: true, token: {file: t}": "insecure says nothing",
		"type: dynu, token: opensesame":                                                "a secret stands in the configuration itself",
	} {
		c := parse(t, strings.Replace(using(in), "ttl: 1h", "ttl: 5s", 1), publisherFiles)
		if got := said(c.Warnings); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
}

func TestFallbackAtTheApexOfAProvidersZone(t *testing.T) {
	text := func(publisher, service string) string {
		return "publish: {p: {" + publisher + "}}\nservices: {example.org: {endpoints: [192.0.2.1], " + service + "publish: p, safety: {on_all_down: fallback, fallback: {cname: sorry.example.net}}}}"
	}
	for _, in := range []string{
		text("type: route53, zones: example.org", ""), text("type: rfc2136, servers: a, zone: example.org", ""), text("type: dynu, token: {file: t}", "zone: example.org, "),
	} {
		if got := said(problems(t, in, publisherFiles)); !strings.Contains(got, "can be no CNAME (fallback)") {
			t.Errorf("%s: got\n%s", in, got)
		}
	}
	parse(t, text("type: cloudflare, token: {file: t}, zones: example.org", ""), publisherFiles)
	parse(t, text("type: route53, zones: org", ""), publisherFiles)
}

func TestTooManyRecordsForAPublisher(t *testing.T) {
	var addresses []string
	for i := range 1001 {
		addresses = append(addresses, fmt.Sprintf("10.0.%d.%d", i/200, i%200+1))
	}
	for in, want := range map[string]string{
		"type: rfc2136, servers: a":                          "has 1001 A records and publisher \"p\" takes 100: BIND refuses",
		"type: dynu, token: {file: t}":                       "takes 1000 (max_records)",
		"type: route53":                                      "takes 400 (max_records)",
		"type: mockjson, zones: a, state: b, max_records: 7": "takes 7 (max_records)",
	} {
		got := said(problems(t, strings.Replace(using(in), "192.0.2.1", strings.Join(addresses, ", "), 1), publisherFiles))
		if !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
}

func TestEveryErrorOfPublishersAtOnce(t *testing.T) {
	got := said(problems(t, `publish:
  a: {type: rfc2136, servers: [1.2.3], key: nokey, min_gap: 5, zones: [a..b], proof: {within: 0s}}
  b: {type: cloudflare, token: {file: none}, proxid: keep, dry_run: 1}
  c: {type: exec, command: [a/b], mode: x, timeout: 1}
  d: {type: powerdns, url: "http://192.0.2.1/?x", token: {env: NONE}}
  e: {typ: rfc2136, min_gap: 7}
services:
  www.example.org: {endpoints: [192.0.2.1], publish: [a, b, f]}
ownership: {registry: dns, owner: '', prefix: A.}
`))
	for _, want := range []string{
		"2:32: publisher \"a\" (rfc2136): servers: 1.2.3 is no IPv4 address", `2:45: unknown key "nokey"`, `min_gap: "5" has no unit`, "empty label", "0s is out of range",
		"none: no such file", `did you mean "proxied"?`, `dry_run "1": want true or false`, `"a/b" is a relative path`, `mode "x"`, `timeout: "1" has no unit`,
		"use https, or write insecure: true", "url has a query", "NONE is not set", `publisher "e" has no type`, `did you mean "type" by "typ"?`, `min_gap: "7" has no unit`,
		`unknown publisher "f"`, `registry "dns": want none or txt`, "ownership: owner: is empty", `"A." is no prefix`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%swant %s", got, want)
		}
	}
}

func TestSecretsOfPublishersAreNotRepeated(t *testing.T) {
	const hush = "hush-hush-hush"
	for _, in := range []string{
		"type: dynu, tokn: " + hush, "type: dynu, token: [" + hush + "]", "type: powerdns, url: \"https://me:" + hush + "@a/\", token: {file: t}",
		"type: autodns, user: a, password: " + hush + ", x: y", "type: webhook, secret: " + hush + ", url: a", "type: route53, secret_key: " + hush,
		"type: cloudflare, token: " + hush + ", proxied: " + hush, "type: cloudflare, token: {plain: " + hush + "}",
		"type: libdns, provider: a, settings: {api_token: " + hush + "}", "type: libdns, provider: a, settings: {more: [{b: " + hush + "}]}",
	} {
		_, err := Parse("/etc/rota/rota.yaml", []byte(using(in)), options(publisherFiles))
		if err == nil {
			t.Errorf("%s: accepted", in)
			continue
		}
		all, _ := errors.AsType[*Errors](err)
		j, _ := json.Marshal(all)
		if strings.Contains(err.Error()+string(j), hush) {
			t.Errorf("%s: repeated:\n%v", in, err)
		}
	}
	c := parse(t, using("type: autodns, user: me, password: "+hush), publisherFiles)
	if out := fmt.Sprintf("%+v %#v %s %s", c, c.Publishers[0].AutoDNS, c.Effective(), said(c.Warnings)); strings.Contains(out, hush) {
		t.Errorf("shown: %s", out)
	}
}

func TestOwnership(t *testing.T) {
	rest := "\nnode: {name: \"a b\"}\n" + with("endpoints: [192.0.2.1]")
	if o := parse(t, "ownership: {registry: txt, owner: prod-eu, prefix: extdns-}"+rest).Ownership; o != (Ownership{"prod-eu", RegistryTXT, "extdns-"}) {
		t.Errorf("%+v", o)
	}
	if o := parse(t, "log: {}"+rest).Ownership; o != (Ownership{"a b", RegistryNone, "_rota."}) {
		t.Errorf("%+v", o)
	}
	long := strings.Repeat("a", 60) + ".example.org"
	if got := said(problems(t, strings.ReplaceAll(using("type: route53", "ownership: {registry: txt, owner: me}"), "www.example.org", long))); !strings.Contains(got, "2:12: service \""+long+"\": the registry's record") {
		t.Error(got)
	}
	for in, want := range map[string]string{
		"{registry: txt}":               `2:14: ownership: "a b" cannot be the owner in a registry's TXT record`,
		"{registry: txt, owner: 'a,b'}": `"a,b" cannot be the owner`,
		"{registry: txtt}":              `did you mean "txt"?`,
		"{prefix: rota}":                `"rota" is no prefix`,
		"{prefix: ''}":                  `"" is no prefix`,
		"{prefix: 'a..'}":               `"a.." is no prefix`,
		"{prefix: 'Rota.'}":             `"Rota." is no prefix`,
		"{registry: txt, owner: me, prefix: " + strings.Repeat("a", 12) + "-}": "",
		"{owner: " + strings.Repeat("a", 129) + "}":                            "want at most 128",
	} {
		if want == "" {
			parse(t, "ownership: "+in+rest)
			continue
		}
		if got := said(problems(t, "ownership: "+in+rest)); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%swant %s", in, got, want)
		}
	}
}
