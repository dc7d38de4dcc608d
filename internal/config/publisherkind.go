package config

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of what publishers are given. A service on a zone's road has a handful of servers; more are a mistake.
const (
	maxServers = 16
	maxKeys    = 2
	maxZones   = 10000
	maxCommand = 64
	minSigning = 16 // bytes of a secret that signs
)

// Defaults of publishers.
const (
	bindLimit     = 100 // BIND's default of max-records-per-type: it refuses an UPDATE that would make an RRset larger
	route53Limit  = 400 // values of one RRset
	otherLimit    = 1000
	defaultMinGap = time.Second
	nearby        = time.Minute     // between looks at a DNS that is one's own
	faraway       = 5 * time.Minute // between looks at one that counts what it is asked
	askTimeout    = 10 * time.Second
)

// publisherKind is what is known of one type of publishers.
type publisherKind struct {
	word   string
	fields []field
	read   func(*publisherReader) // nil: not supported yet

	minTTL     uint32        // seconds; less is published as this
	maxRecords int           // default of max_records; 0: otherLimit
	readEvery  time.Duration // default of read_every; 0: nearby
	minGap     time.Duration // default of min_gap; 0: defaultMinGap
	aliases    bool          // takes a CNAME at the zone's own name, and answers it with addresses
	unseen     bool          // no name server shows what it keeps, so that there is nothing to prove
}

func publisherKinds() []publisherKind {
	servers := field{
		key: "servers", doc: "Primary name servers, tried in order; port 53 unless given.",
		shape: list{of: server, single: true, least: 1, most: maxServers}, must: true,
	}
	keys := []field{
		{key: "key", doc: "Name of a TSIG key under keys.", shape: required},
		{
			key: "keys", doc: "Instead of key: the new one and the old, for as long as the servers change; the old signs where the new is not known.",
			shape: list{of: required, single: true, least: 1, most: maxKeys},
		},
		{key: "plain_reads", doc: "Leave queries unsigned, where the server's view for the key differs from everybody's. Default: false.", shape: boolean},
	}
	zones := []field{
		{
			key: "zones", doc: "auto (default): found by asking; or names, and then there are no others.",
			shape: list{of: scalar{want: "auto or a domain name", json: "string", parse: parsed(parseName)}, single: true, least: 1, most: maxZones},
		},
	}
	zone := append([]field{{
		key: "zone", doc: "The same as zones, for one.",
		shape: scalar{want: "auto or a domain name", json: "string", parse: parsed(parseName)},
	}}, zones...)
	token := field{key: "token", doc: "API token.", shape: secret(), must: true}
	address := func(def string) []field {
		f := field{key: "url", doc: "Of the API. Default: " + def + ".", shape: webURL}
		if def == "" {
			f.doc, f.must = "Where it listens.", true
		}
		return []field{f, {key: "insecure", doc: "Plain HTTP to another machine is meant. Default: false.", shape: boolean}}
	}
	timeout := field{key: "timeout", doc: "For all of one request or run. Default: 10s.", shape: duration(time.Second, time.Minute)}
	nsupdate := slices.Concat([]field{
		{key: "command", doc: "Path of the program, or its name. Default: the type.", shape: either{scalar{want: "a path", json: "string", parse: program}, commandLine()}},
		servers, timeout,
	}, keys, zone)

	return []publisherKind{
		{word: "rfc2136", read: (*publisherReader).rfc2136, maxRecords: bindLimit, fields: slices.Concat([]field{
			servers,
			{key: "transport", doc: "auto (default): UDP, and TCP for what does not fit; udp; tcp.", shape: word("auto", "udp", "tcp")},
			{key: "zone_transfer", doc: "auto (default): many names are read by AXFR where the server allows it; off.", shape: word("auto", "off")},
		}, keys, zone)},
		{word: "nsupdate", read: (*publisherReader).nsupdate, maxRecords: bindLimit, fields: nsupdate},
		{word: "knsupdate", read: (*publisherReader).nsupdate, maxRecords: bindLimit, fields: nsupdate},
		{word: "powerdns", read: (*publisherReader).powerdns, fields: slices.Concat(address(""), []field{
			token,
			{key: "server_id", doc: "Default: localhost.", shape: required},
		}, zones)},
		{word: "autodns", read: (*publisherReader).autodns, readEvery: faraway, minTTL: 1, fields: slices.Concat(address(autodnsURL), []field{
			{key: "user", doc: "Name of the user.", shape: either{secretObject(), required}, must: true},
			{key: "password", doc: "Of the user.", shape: secret(), must: true},
			{key: "context", doc: "4 (default): live; resellers have a number of their own.", shape: integer(0, math.MaxInt32)},
		}, zones)},
		{word: "dynu", read: (*publisherReader).dynu, readEvery: faraway, minTTL: 30, fields: slices.Concat(address(dynuURL), []field{token}, zones)},
		{word: "digitalocean", read: (*publisherReader).digitalOcean, readEvery: faraway, minTTL: 30, fields: slices.Concat(address(digitalOceanURL), []field{token}, zones)},
		{word: "cloudflare", read: (*publisherReader).cloudflare, readEvery: faraway, minTTL: 60, aliases: true, fields: slices.Concat(address(cloudflareURL), []field{
			token,
			{key: "min_ttl", doc: "The least TTL of the zones' plan. Default: 1m.", shape: ttl},
			{key: "proxied", doc: "Whether new records are: keep (default): as others of their name; on; off.", shape: word("keep", "on", "off")},
		}, zones)},
		{word: "route53", read: (*publisherReader).route53, readEvery: faraway, maxRecords: route53Limit, fields: slices.Concat(address("that of the region"), []field{
			{key: "role", doc: "ARN of a role to take on.", shape: scalar{want: "the ARN of a role", json: "string", pattern: roleForm.String(), parse: parseRole}},
			{key: "region", doc: "Signed for. Default: the environment's, else us-east-1.", shape: scalar{want: "a region", json: "string", pattern: regionForm.String(), parse: parseRegion}},
			{key: "profile", doc: "Of the shared configuration files. Default: the environment's credentials.", shape: required},
			{key: "access_key", doc: "Id of an access key, instead of the environment's or a profile's.", shape: either{secretObject(), required}},
			{key: "secret_key", doc: "The secret of access_key.", shape: secret()},
			{key: "zone_id", doc: "Of the only hosted zone to be written. Default: found by name.", shape: scalar{want: "the id of a hosted zone", json: "string", pattern: zoneIDForm.String(), parse: parseZoneID}},
			{key: "private", doc: "Of zones that exist both public and private, the private one is meant. Default: false.", shape: boolean},
			{key: "wait", doc: "insync (default): a change is done when all of Route 53's servers have it; none.", shape: word("insync", "none")},
		}, zones)},
		{word: "desec", read: (*publisherReader).desec, readEvery: faraway, minGap: 5 * time.Second, minTTL: 3600, fields: slices.Concat(address(desecURL), []field{
			token,
			{key: "min_ttl", doc: "The least TTL that the account's domains may have. Default: 1h.", shape: ttl},
		}, zones)},
		{word: "webhook", read: (*publisherReader).webhook, fields: slices.Concat(address("")[:1], []field{
			{key: "secret", doc: "Signs what is sent; at least 16 bytes.", shape: secret(), must: true},
			{key: "signed", doc: "Replies without a signature are not believed. Default: false.", shape: boolean},
			timeout,
		}, zones)},
		{word: "exec", read: (*publisherReader).exec, fields: slices.Concat([]field{
			{key: "command", doc: "Program and arguments; no shell reads them.", shape: commandLine(), must: true},
			{key: "mode", doc: "json (default): what to do is on its standard input; simple: run once for each record, told by the environment.", shape: word("json", "simple")},
			timeout,
			{key: "servers", doc: "Name servers that are asked what the DNS says, with mode simple.", shape: list{of: server, single: true, least: 1, most: maxServers}},
		}, zones)},
		{word: "external-dns-webhook", read: (*publisherReader).externalDNS, fields: slices.Concat(address(""), []field{timeout}, zones)},
		{word: "libdns", read: (*publisherReader).libDNS, readEvery: faraway, fields: slices.Concat([]field{
			{key: "provider", doc: "Name of a provider that is compiled in.", shape: required, must: true},
			{key: "settings", doc: "For the provider, as JSON.", shape: secret(), must: true},
			{key: "min_ttl", doc: "The least TTL that the provider takes. Default: any.", shape: ttl},
		}, zones)},
		{word: "zonefile", read: (*publisherReader).zoneFile, fields: []field{
			{key: "path", doc: "Of the zone file.", shape: pathname, must: true},
			{key: "zone", doc: "The zone it holds. Default: the one of its SOA record.", shape: domain},
			{key: "reload", doc: "Program and arguments that make the name server read the file again.", shape: commandLine()},
			timeout,
		}},
		{word: "kubernetes-service"},
		{word: "mock", read: (*publisherReader).mock, unseen: true, fields: []field{
			{key: "zones", doc: "File with a list of zones to begin with.", shape: pathname, must: true},
		}},
		{word: "mockjson", read: (*publisherReader).mock, unseen: true, fields: []field{
			{key: "zones", doc: "File with a list of zones to begin with.", shape: pathname, must: true},
			{key: "state", doc: "File that what was written is kept in.", shape: pathname, must: true},
		}},
	}
}

// Where the APIs are.
const (
	autodnsURL      = "https://api.autodns.com/v1"
	dynuURL         = "https://api.dynu.com/v2"
	digitalOceanURL = "https://api.digitalocean.com/v2"
	cloudflareURL   = "https://api.cloudflare.com/client/v4"
	desecURL        = "https://desec.io/api/v1"
)

// allPublishers are the keys that every publisher has.
func allPublishers() []field {
	return []field{
		{key: "dry_run", doc: "Nothing is written; what would be is shown. Default: false.", shape: boolean},
		{key: "min_gap", doc: "Between two writes to one zone. Default: 1s; 5s for deSEC, which takes 15 in a minute.", shape: duration(10*time.Millisecond, time.Hour)},
		{key: "read_every", doc: "How often a zone that is as it should be is looked at. Default: 1m; 5m for providers' APIs.", shape: duration(time.Second, day)},
		{key: "max_records", doc: "Records of one type a name may have. Default: 100 for DNS UPDATE, which is BIND's max-records-per-type; 400 for Route 53; else 1000.", shape: integer(1, 4000)},
		{key: "proof", doc: "How it is proven from outside that what was written is answered; off: not at all.", shape: either{word("off"), object{name: "proof", fields: []field{
			{
				key: "servers", doc: "auto (default): all addresses of all name servers of the zone; or these, port 53 unless given.",
				shape: list{of: scalar{want: "auto or HOST:PORT", json: "string", parse: func(s string) error {
					if s == "auto" {
						return nil
					}
					_, err := parseServer(s, "53")
					return err
				}}, single: true, least: 1, most: maxServers},
			},
			{
				key: "resolvers", doc: "Asked where the name servers are. Default: the machine's.",
				shape: list{of: server, single: true, most: maxServers},
			},
			{key: "within", doc: "After this it is an alarm. Default: 2m.", shape: duration(time.Second, day)},
			{key: "every", doc: "How often a zone in which nothing changes is looked at. Default: 5m.", shape: duration(10*time.Second, day)},
		}}}},
	}
}

// kindOfPublisher returns what is known of a type of publishers.
func kindOfPublisher(word string) publisherKind {
	kinds := publisherKinds()
	if i := slices.IndexFunc(kinds, func(k publisherKind) bool { return k.word == word }); i >= 0 {
		return kinds[i]
	}
	return publisherKind{}
}

// publisherShape is what stands under publish.
func publisherShape() variants {
	v := variants{name: "publisher", tag: "type", kind: "publisher", common: allPublishers()}
	for _, k := range publisherKinds() {
		v.of = append(v.of, variant{word: k.word, fields: k.fields})
	}
	return v
}

// commandLine is a program and its arguments.
func commandLine() shape {
	return list{of: scalar{want: "a text", json: "string", parse: func(s string) error {
		if strings.ContainsRune(s, 0) {
			return errors.New("holds a NUL byte")
		}
		return lines(4096)(s)
	}}, least: 1, most: maxCommand}
}

// program checks what stands in the first place of a command: a relative path would depend on where rota was started.
func program(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case !path.IsAbs(s) && strings.Contains(s, "/"):
		return fmt.Errorf("%q is a relative path: want an absolute one, or a name without slashes", short(s))
	case strings.ContainsAny(s, " \t"):
		return fmt.Errorf("%q holds a space, and no shell reads it: write a list, [PROGRAM, ARGUMENT]", short(s))
	}
	return lines(4096)(s)
}

var (
	roleForm   = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}$`)
	zoneIDForm = regexp.MustCompile(`^Z[A-Z0-9]{1,31}$`)
	regionForm = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]+$`)
)

func parseRole(s string) error {
	if !roleForm.MatchString(s) {
		return fmt.Errorf("%q is no role: want arn:aws:iam::ACCOUNT:role/NAME", short(s))
	}
	return nil
}

func parseZoneID(s string) error {
	if !zoneIDForm.MatchString(s) {
		return fmt.Errorf("%q is no id of a hosted zone: want one such as Z0123456789ABCDEFGHIJ", short(s))
	}
	return nil
}

func parseRegion(s string) error {
	if !regionForm.MatchString(s) {
		return fmt.Errorf("%q is no region: want one such as eu-central-1", short(s))
	}
	return nil
}
