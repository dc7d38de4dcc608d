package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// top is what the outermost map is called in messages.
const top = "the configuration"

// always refuses any value of a key that this version does not act on.
func always(*node) bool { return true }

// unless refuses values other than the given ones, which ask for what this version does anyway.
func unless(values ...string) func(*node) bool {
	return func(n *node) bool { return n.kind != isScalar || !slices.Contains(values, n.text) }
}

// filled refuses a list or map that holds something.
func filled(n *node) bool { return len(n.items)+len(n.keys) > 0 || n.kind == isScalar }

func word(ws ...string) scalar { return scalar{want: oneOf(ws), json: "string", words: ws} }

func parsed[T any](parse func(string) (T, error)) func(string) error {
	return func(s string) error { _, err := parse(s); return err }
}

func integer(from, to int64) scalar {
	lo, hi := float64(from), float64(to)
	return scalar{
		want: fmt.Sprintf("a whole number from %d to %d", from, to), json: "integer", from: &lo, to: &hi,
		parse: func(s string) error { _, err := parseInteger(s, from, to); return err },
	}
}

func duration(from, to time.Duration) scalar {
	return scalar{
		want: "a duration such as 10s", json: "string", pattern: durationForm.String(),
		parse: func(s string) error {
			d, err := parseDuration(s)
			if err == nil && (d < from || d > to) {
				err = fmt.Errorf("%s is out of range: want %s to %s", s, formatDuration(from), formatDuration(to))
			}
			return err
		},
	}
}

func lines(n int) func(string) error {
	return func(s string) error {
		if strings.ContainsAny(s, "\n\r") {
			return errors.New("want one line")
		}
		if len(s) > n {
			return fmt.Errorf("is longer than %d bytes", n)
		}
		return nil
	}
}

func filledLine(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	return lines(4096)(s)
}

// optional lets a key be written with an empty text.
func optional(s scalar) scalar {
	parse := s.parse
	s.parse = func(t string) error {
		if t == "" {
			return nil
		}
		return parse(t)
	}
	if s.pattern != "" {
		s.pattern = "^$|" + s.pattern
	}
	return s
}

var (
	text     = scalar{want: "a text", json: "string", parse: lines(4096)}
	long     = scalar{want: "a text", json: "string"}
	required = scalar{want: "a text", json: "string", parse: filledLine}
	pathname = scalar{want: "a path", json: "string", parse: filledLine}
	boolean  = scalar{want: "true or false", json: "boolean", words: []string{"true", "false"}}
	percent  = scalar{want: "a percentage such as 50%", json: "string", pattern: percentForm.String(), parse: parsed(parsePercent)}
	ttl      = scalar{
		want: "seconds, or a duration such as 30s", json: "string", pattern: durationForm.String() + "|^[0-9]+$", parse: parsed(parseTTL),
	}
	interval = duration(50*time.Millisecond, 7*day)
	span     = duration(0, maxDuration)
	regexpr  = scalar{want: "a regular expression", json: "string", parse: parseRegexp}
	domain   = scalar{want: "a domain name", json: "string", parse: parsed(parseName)}
	host     = scalar{want: "a host name", json: "string", parse: parsed(parseHost)}
	hostOrIP = scalar{want: "a host name or address", json: "string", parse: func(s string) error {
		_, err := parseServer(s, "1")
		return err
	}}
	checkHost = scalar{want: `a host name, an address, or "{}"`, json: "string", parse: func(s string) error {
		if s == itself {
			return nil
		}
		_, err := parseServer(s, "1")
		return err
	}}
	address = scalar{want: "an address", json: "string", parse: func(s string) error { _, _, err := parseAddress(s); return err }}
	listen  = scalar{want: "ADDRESS:PORT", json: "string", parse: parsed(parseListen)}
	server  = scalar{want: "HOST:PORT", json: "string", parse: func(s string) error { _, err := parseServer(s, "53"); return err }}
	peer    = scalar{want: "HOST:PORT", json: "string", parse: parsed(parsePeer)}
	webURL  = scalar{want: "a URL", json: "string", parse: parseURL}
	fall    = integer(1, 1000)
	texts   = list{of: required}
	labels  = dict{what: "label", keys: anyKey, of: scalar{want: "a text", parse: lines(1024)}}

	raftadmin   = scalar{want: "a loopback ADDRESS:PORT", json: "string", parse: parsed(parseRaftAdmin)}
	vantageName = scalar{want: "a name", json: "string", pattern: vantageForm.String(), parse: parseVantageName}
	clusterID   = scalar{want: "an id", json: "string", pattern: clusterIDForm.String(), parse: parseClusterID}
	site        = scalar{want: "a text", json: "string", parse: parseSite}
	uplinkCheck = scalar{want: "a URL such as icmp://192.0.2.1", json: "string", parse: parseUplink}
)

// Bounds of lists. A cluster hears at most 1024 vantages at once.
const (
	maxNodes  = 100
	maxAgents = 1000
	maxUplink = 100
)

// secretObject says where a secret is.
func secretObject() object {
	return object{name: "secret", fields: []field{
		{key: "file", doc: "Path of a file that holds the secret; relative to the configuration.", shape: pathname},
		{key: "env", doc: "Name of an environment variable that holds the secret.", shape: scalar{
			want: "the name of a variable", json: "string", pattern: variable.String(), parse: func(s string) error {
				if !variable.MatchString(s) {
					return fmt.Errorf("%q is no name of an environment variable", s)
				}
				return nil
			},
		}},
		{key: "credential", doc: "Name of a systemd credential (LoadCredential=).", shape: scalar{
			want: "the name of a credential", json: "string", parse: func(s string) error {
				if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00") {
					return fmt.Errorf("%q is no name of a credential", s)
				}
				return nil
			},
		}},
	}}
}

// secret is a value that only its place is shown of.
func secret() shape {
	return either{
		secretObject(),
		scalar{want: "{file: PATH}, {env: NAME} or {credential: NAME}", json: "string", secret: true, parse: func(s string) error {
			if s == "" {
				return errors.New("is empty: want {file: PATH}, {env: NAME} or {credential: NAME}")
			}
			return nil
		}},
	}
}

// elsewhere is a secret that never stands in the configuration itself: a check travels with the state.
func elsewhere() shape {
	return either{
		secretObject(),
		scalar{want: "{file: PATH}, {env: NAME} or {credential: NAME}", json: "string", secret: true, parse: func(string) error {
			return errors.New("a check says where a secret is, and never what it is: want {file: PATH}, {env: NAME} or {credential: NAME}")
		}},
	}
}

// material is a certificate or key in PEM: a path, or one of the forms of a secret.
func material() shape { return either{secretObject(), pathname} }

func certificate(more ...field) object {
	return object{fields: append([]field{
		{key: "cert", doc: "PEM file of the certificate chain.", shape: pathname},
		{key: "key", doc: "PEM file of the private key.", shape: pathname},
	}, more...)}
}

// timing are the keys that defaults, services and checks share.
func timing() []field {
	return []field{
		{key: "interval", doc: "Between probes. Default: 10s.", shape: interval},
		{
			key: "timeout", doc: "Of one probe, from the first packet to the last byte. Default: 3s, or the interval when that is less.",
			shape: duration(time.Millisecond, time.Hour),
		},
		{
			key: "fast_interval", doc: "Between probes while a change of mind is pending. Default: 1s, or the interval when that is less.",
			shape: interval,
		},
		{
			key: "slow_interval", doc: "Between probes of what has been down for ten minutes, or is disabled. Default: 30s, or the interval when that is more.",
			shape: interval,
		},
		{key: "fall", doc: "Failures that make a target down. Default: 3.", shape: fall},
		{key: "rise", doc: "Successes in a row that bring it back. Default: 2.", shape: fall},
		{key: "ok", doc: "Successes in a row that forget earlier failures. Default: as many as fall.", shape: fall},
	}
}

// Fields of the kinds of checks.
var (
	fieldPort = field{key: "port", doc: "Port to connect to.", shape: integer(1, 65535)}
	fieldRole = field{key: "role", doc: "required (default) or observe: reported, never decides.", shape: word("required", "observe")}
	fieldName = field{key: "server_name", doc: "SNI, and the name the certificate must carry.", shape: hostOrIP}
	fieldCA   = field{key: "verify", doc: "How the certificate is judged: strict (default), ca (whatever its name) or none.", shape: word("strict", "ca", "none")}
	fieldDays = field{key: "cert_days", doc: "Fewer days left than this is down.", shape: integer(0, 3650)}
	fieldBody = field{key: "max_body", doc: "Bytes read of an answer. Default: 65536, and 4 MiB of a node_exporter.", shape: integer(1, rota.LimitMaxBody)}
	fieldPath = field{
		key: "path", doc: "Path and query. Default: /, and /metrics of a node_exporter.",
		shape: scalar{want: "a path", json: "string", pattern: `^/|\$\{`, parse: parsePath},
	}
	fieldAuth = field{key: "auth", doc: "Who asks. The configuration says where the password or token is, and never what it is.", shape: object{name: "auth", fields: []field{
		{key: "user", doc: "Of Basic, with password.", shape: scalar{want: "a user name", json: "string", parse: parseUser}},
		{key: "password", doc: "Where it is.", shape: elsewhere()},
		{key: "bearer", doc: "Where the token is.", shape: elsewhere()},
	}}}
	fieldWatch  = field{key: "watch", doc: "true: a connection is held between probes, and its end is looked into at once.", shape: boolean}
	fieldSend   = field{key: "send", doc: "Bytes written after connecting.", shape: sent(4096)}
	fieldError  = field{key: "on_error", doc: "What an exporter, a command or an agent counts as that cannot say how the endpoint is. Default: unknown.", shape: word("unknown", "down")}
	fieldExpect = field{key: "expect", doc: "Regular expression (RE2) that what is read must match.", shape: regexpr}
)

func httpFields() []field {
	return []field{
		fieldPort, fieldPath,
		{
			key: "host", doc: "Host header, and SNI unless server_name says otherwise; {}: the endpoint's address. Default: the service's name.",
			shape: checkHost,
		},
		{key: "method", doc: "GET (default), HEAD, OPTIONS, POST, PUT or PATCH.", shape: word("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH")},
		{key: "data", doc: "Body of the request, with POST, PUT or PATCH. Its type is said under header.", shape: sent(rota.MaxData)},
		{key: "status", doc: "Accepted codes, ranges such as 200-299, classes such as 2xx. Default: 200-399.", shape: list{
			of: scalar{want: "a status", pattern: `^([1-5][0-9][0-9](-[1-5][0-9][0-9])?|[1-5]xx)$`, parse: parsed(parseStatus)}, single: true, least: 1,
		}},
		{key: "body", doc: "Regular expression (RE2) that the body must match.", shape: regexpr},
		{
			key: "header", doc: "Header fields to send.",
			shape: dict{what: "header", keys: anyKey, key: sentHeader, of: scalar{want: "a text", parse: lines(4096)}},
		},
		{
			key: "expect_header", doc: "Header fields of the answer: regular expressions (RE2); empty: present.",
			shape: dict{what: "header", keys: anyKey, key: headerName, of: regexpr},
		},
		{
			key: "json", doc: "Values that a JSON answer must have, by pointer (RFC 6901): what they equal, or a comparison such as \"< 90\".",
			shape: dict{what: "value", keys: anyKey, of: scalar{want: "a value", null: true}},
		},
		{key: "follow", doc: "Redirects: false (default) or same: to the same address and port.", shape: word("false", "same")},
		fieldBody, fieldAuth,
		{key: "http2", doc: "true: HTTP/2 and nothing less.", shape: boolean},
		{
			key: "drain_header", doc: "Header field of an answer by which an endpoint says that it is about to leave; \"-\": none. Default: Rota-Drain.",
			shape: scalar{want: "the name of a header field", json: "string", parse: headerName},
		},
		{key: "reuse", doc: "true: one connection serves many probes.", shape: boolean},
		fieldWatch,
	}
}

// sent is a text of at most so many bytes that is written to an endpoint.
func sent(limit int) scalar {
	return scalar{want: "a text", json: "string", parse: func(s string) error {
		if len(s) > limit {
			return fmt.Errorf("more than %d bytes are not sent", limit)
		}
		return nil
	}}
}

// parseUser refuses what no user name of Basic authentication can be (RFC 7617 §2).
func parseUser(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' }) {
		return fmt.Errorf("%q is no user name: want one without colons and control characters", short(s))
	}
	return filledLine(s)
}

func headerName(key string) error {
	if key == "" || strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}) {
		return fmt.Errorf("%q is no name of a header field", short(key))
	}
	return nil
}

func sentHeader(key string) error {
	if err := headerName(key); err != nil {
		return err
	}
	switch strings.ToLower(key) {
	case "host":
		return errors.New("the Host header is set by the key host")
	case "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect":
		return fmt.Errorf("header %s belongs to the connection and cannot be set", key)
	case "authorization":
		return errors.New("header Authorization would show a secret in the names of targets: write auth: {user: NAME, password: {file: PATH}} or auth: {bearer: {file: PATH}}")
	case "proxy-authorization", "cookie":
		return fmt.Errorf("header %s would show a secret in the names of targets: a check cannot send it", key)
	}
	return nil
}

func tlsFields() []field {
	return []field{
		fieldName, fieldCA, fieldDays,
		{key: "client_cert", doc: "Certificate chain to show, in PEM: a path or {file:}, {env:}, {credential:}.", shape: material()},
		{key: "client_key", doc: "Its private key, in PEM.", shape: material()},
		{key: "ca", doc: "Authorities that are trusted instead of the system's, in PEM.", shape: material()},
	}
}

// checkKinds are the kinds of checks: those of rota.Kinds.
func checkKinds() []variant {
	with := func(fs ...[]field) []field {
		return append(append(slices.Concat(fs...), fieldRole), timing()...)
	}
	return []variant{
		{word: "http", fields: with(httpFields())},
		{word: "https", fields: with(httpFields(), tlsFields())},
		{word: "tcp", fields: with([]field{fieldPort, fieldSend, fieldExpect, fieldBody, fieldWatch})},
		{word: "tls", fields: with([]field{fieldPort, fieldSend, fieldExpect, fieldBody}, tlsFields())},
		{word: "icmp", fields: with([]field{
			{key: "count", doc: "Echo requests a probe. Default: 1.", shape: integer(1, rota.MaxCount)},
			{
				key: "loss", doc: "A share of lost requests of this much or more is down. Default: only all lost is.",
				shape: percent,
			},
		})},
		{word: "node_exporter", fields: with([]field{
			fieldPort, fieldPath, fieldBody,
			{
				key: "rules", doc: "What the machine's numbers have to keep: names, or names with comparisons. Default: all, which is cpu, mem_free and load1.",
				shape: rules(),
			},
			fieldError,
			{key: "ping", doc: "false: the exporter is asked although the machine answers no ICMP. Default: true.", shape: boolean},
		})},
		{word: "dns", fields: with([]field{
			fieldPort,
			{key: "query", doc: "Name asked for.", shape: domain, must: true},
			{key: "query_type", doc: "Type of record asked for. Default: A.", shape: scalar{want: "a record type", json: "string", parse: parseQueryType}},
			{key: "rcode", doc: "Accepted answers. Default: NOERROR.", shape: list{of: word(rcodes()...), single: true, least: 1}},
			{key: "transport", doc: "udp (default) or tcp.", shape: word("udp", "tcp")},
			{key: "recurse", doc: "true: recursion is asked for.", shape: boolean},
			{key: "expect", doc: "Regular expression (RE2) that the records of the answer must match, one a line: type and data.", shape: regexpr},
		})},
		{word: "grpc", fields: with([]field{
			fieldPort,
			{key: "service", doc: "Asked of (grpc.health.v1). Default: the server as a whole.", shape: scalar{want: "the name of a service", json: "string", parse: parseGRPCService}},
			{key: "tls", doc: "true: over TLS.", shape: boolean},
			fieldAuth,
		}, tlsFields())},
		{word: "exec", fields: with([]field{
			{key: "command", doc: "Program and arguments; no shell reads them; {} is the endpoint's address.", shape: commandLine(), must: true},
			fieldError,
		})},
		{word: "agent-check", fields: with([]field{fieldPort, fieldSend, fieldError})},
		{word: "agent", fields: []field{
			{key: "max_age", doc: "What was said longer ago is unknown. Default: 45s.", shape: duration(time.Second, 7*day)},
			fieldRole,
		}},
	}
}

// rules are names with comparisons, or names alone; the reader judges them.
func rules() shape {
	return either{
		dict{what: "rule", keys: anyKey, of: scalar{want: "a rule such as \"< 90%\"", json: "string", parse: lines(200)}},
		list{of: scalar{want: "the name of a rule", json: "string", parse: lines(rota.MaxRuleName)}, single: true, least: 1, most: rota.MaxRules},
	}
}

// rcodes are the answers of a name server that a check may accept.
func rcodes() []string {
	return []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}
}

// parseQueryType refuses what a name server is not asked for in one short message.
func parseQueryType(s string) error {
	t, ok := dns.StringToType[s]
	switch {
	case !ok && dns.StringToType[strings.ToUpper(s)] != 0:
		return fmt.Errorf("%q: write %s", short(s), strings.ToUpper(s))
	case !ok:
		return fmt.Errorf("%q is no record type: want one such as A, AAAA, MX, SOA or TXT", short(s))
	case t == dns.TypeNone || t == dns.TypeOPT || t >= dns.TypeTKEY && t < dns.TypeANY:
		return fmt.Errorf("%s is not asked for by a check: want a type of record such as A or SOA", s)
	}
	return nil
}

// parseGRPCService refuses what no service of a protocol buffer is called.
func parseGRPCService(s string) error {
	if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/", r))
	}) {
		return fmt.Errorf("%q is no service: want a name such as shop.v1.Cart", short(s))
	}
	return nil
}

// useFields are the keys of {use: NAME, …}: every key of every kind; the kind that is used decides which of them it has.
func useFields() []field {
	fields := []field{{key: "use", doc: "Name of a check.", shape: required, must: true}}
	for _, k := range checkKinds() {
		for _, f := range k.fields {
			if !slices.ContainsFunc(fields, func(g field) bool { return g.key == f.key }) {
				f.must = false
				fields = append(fields, f)
			}
		}
	}
	return fields
}

// inlineCheck takes a check as services write it: a name, a URL, {use: NAME, …} or {type: KIND, …}.
type inlineCheck struct{ either }

// aCheck is the one inlineCheck.
var aCheck = inlineCheck{inlineShapes()}

func inlineShapes() either {
	return either{
		scalar{want: "the name of a check or a URL with {}", json: "string", parse: filledLine},
		object{name: "use", fields: useFields()},
		variants{name: "check", tag: "type", kind: "check", of: checkKinds()},
	}
}

func (s inlineCheck) check(x *examiner, n *node, what string) {
	all := s.either
	switch {
	case n.kind == isScalar:
		all[0].check(x, n, what)
	case n.kind == isMap && n.has("use") && n.has("type"):
		x.refuse(n, "", "%s has both use and type", what)
	case n.kind == isMap && n.has("use"):
		all[1].check(x, n, what)
	case n.kind == isMap && !n.has("type"):
		x.refuse(n, "", "%s has neither use nor type", what)
	case n.kind == isMap:
		all[2].check(x, n, what)
	default:
		x.wrongKind(either{all[0], all[2]}, n, what)
	}
}

// publishUse takes what a service is published by: a name, a URL, or a list of them.
var publishUse = list{of: scalar{want: "the name of a publisher or a URL", json: "string", parse: filledLine}, single: true, least: 1}

func safetyFields() []field {
	return []field{
		{
			key: "min_published", doc: "Fewer endpoints up than this: health is not believed. Default: 1.",
			shape: integer(1, 10000),
		},
		{
			key: "fail_open_below", doc: "A smaller share up than this, per address family: health is not believed. Default: 50%.",
			shape: percent,
		},
		{
			key: "on_all_down", doc: "What is answered then: keep (default), all, fallback or none.",
			shape: word("keep", "all", "fallback", "none"),
		},
		{key: "fallback", doc: "What on_all_down: fallback answers.", shape: object{fields: []field{{key: "cname", doc: "Name to point to.", shape: host, must: true}}}},
		{key: "max_change", doc: "What may leave a zone at once; the rest is held until a person says otherwise.", shape: object{fields: []field{
			{key: "records", doc: "Share of the records that rota keeps in the zone; 100%: no limit. Default: 30%.", shape: percent},
			{key: "per", doc: "In this time. Default: 10m.", shape: duration(time.Second, rota.MaxChangePer)},
			{key: "min_records", doc: "A zone of fewer records has no limit. Default: 10.", shape: integer(0, math.MaxInt32)},
		}}},
		{key: "max_sites", doc: "Health may take the endpoints of at most so many sites out at once. Default: 0, no limit.", shape: integer(0, 10000)},
		{key: "min_hold", doc: "An address that left stays away at least this long. Default: 30s.", shape: span},
	}
}

func endpoint() shape {
	return either{
		scalar{want: "an address or a URL", json: "string", parse: filledLine},
		object{name: "endpoint", fields: []field{
			{key: "address", doc: "The address. With a zone id it is probed and never published.", shape: address, must: true},
			{key: "monitor", doc: "Probed instead of the address.", shape: address},
			{key: "weight", doc: "Share of the answers in its tier. Default: 1.", shape: integer(0, 65535)},
			{key: "priority", doc: "Lower is preferred. Default: 1.", shape: integer(0, 65535)},
			{key: "site", doc: "Where it stands.", shape: required},
			{key: "place", doc: "Where in the world it stands.", shape: required, later: always},
			{key: "capacity", doc: "What it can bear.", shape: integer(0, math.MaxInt32), later: always},
			{key: "labels", doc: "For matching.", shape: labels},
			{key: "agent", doc: "Name of the token by which the endpoint says of itself how it is, with a check of type agent.", shape: required},
			{key: "check", doc: "One check, instead of the service's.", shape: aCheck},
			{key: "checks", doc: "Checks, instead of the service's.", shape: list{of: aCheck}},
		}},
	}
}

func service() shape {
	return object{name: "service", fields: append([]field{
		{key: "endpoints", doc: "Addresses that can answer.", shape: list{of: endpoint(), least: 1}, must: true},
		{key: "disabled", doc: "true: its records stay as they are, whatever its checks say, and these come at slow_interval.", shape: boolean},
		{key: "records", doc: "Further records kept in step.", later: filled, shape: object{fields: []field{
			{key: "https", shape: object{fields: []field{{key: "alpn", shape: texts}, {key: "priority", shape: integer(0, 65535)}}}},
			{key: "srv", shape: list{of: required, single: true}},
			{key: "ptr", shape: either{boolean, domain}},
			{key: "txt", shape: list{of: text, single: true}},
		}}},
	}, serviceFields()...)}
}

// serviceFields are what a service has beside its endpoints, whether it is configured or made of a template.
func serviceFields() []field {
	return append([]field{
		{key: "ttl", doc: "Of the records, in seconds or as a duration. Default: 30s.", shape: ttl},
		{key: "zone", doc: "Zone that holds the name. Default: found.", shape: domain},
		{key: "check", doc: "One check: a name, or a URL with {} for the address.", shape: aCheck},
		{key: "checks", doc: "Checks, in order.", shape: list{of: aCheck}},
		{key: "policy", doc: "How an answer is picked.", shape: object{name: "policy", fields: []field{
			{
				key: "pick", doc: "weighted (default when weights differ) or rotate.",
				shape: word("weighted", "sticky", "rotate"), later: unless("weighted", "rotate"),
			},
			{key: "answers", doc: "Most addresses in an answer, per family. Default: all.", shape: integer(1, 1000)},
			{
				key: "slow_start", doc: "An endpoint that comes back after it was down reaches its weight over so long a time, in ten steps. Default: 0s, at once.",
				shape: duration(0, day),
			},
			{
				key: "failback", doc: "auto (default): a better tier is taken as soon as it is up.",
				shape: word("auto", "manual"), later: unless("auto"),
			},
			{
				key: "place", doc: "Prefer what is near the client.",
				shape: word("nearest", "country", "subnet", "latency"), later: always,
			},
			{key: "stay", doc: "Prefer to fail inside.", shape: word("region", "country", "continent", "site"), later: always},
			{key: "best_of", doc: "The least loaded of so many.", shape: integer(1, 100), later: always},
		}}},
		{key: "safety", doc: "Bounds of what health may do.", shape: object{name: "safety", fields: safetyFields()}},
		{key: "publish", doc: "Publishers by name, or a URL such as rfc2136://SERVER/ZONE?key=NAME.", shape: publishUse},
		{key: "labels", doc: "For matching.", shape: labels},
	}, timing()...)
}

func zoneShape() shape {
	allow := func(fs ...field) shape { return list{of: object{fields: fs}} }
	return object{name: "zone", fields: []field{
		{key: "ns", doc: "Names of the zone's name servers.", shape: list{of: host, single: true, least: 1}},
		{key: "soa", doc: "Fields of the zone's SOA record.", shape: object{fields: []field{
			{key: "mname", doc: "Primary name server. Default: the first of ns.", shape: host},
			{
				key: "rname", doc: "Mailbox of who is responsible, as a name. Default: hostmaster under the zone.",
				shape: scalar{want: "a mailbox", json: "string", parse: parsed(parseMailbox)},
			},
			{key: "refresh", doc: "Default: 2h.", shape: ttl},
			{key: "retry", doc: "Default: 30m.", shape: ttl},
			{key: "expire", doc: "Default: 14d.", shape: ttl},
			{
				key: "minimum", doc: "How long \"no such name\" is kept. Default: 5s, or the smallest TTL of a service in the zone.",
				shape: ttl,
			},
			{key: "ttl", doc: "Default: the zone's.", shape: ttl},
		}}},
		{key: "ttl", doc: "Of the zone's own records and of static records that say nothing. Default: 1h.", shape: ttl},
		{key: "records", doc: "Static records in zone file form, or {file: PATH}.", shape: either{long, object{fields: []field{{key: "file", doc: "Zone file.", shape: pathname, must: true}}}}},
		{key: "dnssec", doc: "Signing.", later: filled, shape: object{fields: []field{
			{key: "algorithm", shape: word("ecdsap256sha256", "ecdsap384sha384", "ed25519", "rsasha256")}, {key: "nsec", shape: word("compact", "nsec", "nsec3")},
		}}},
		{key: "transfer", doc: "Zone transfers.", later: filled, shape: object{fields: []field{
			{key: "allow", shape: list{of: prefix, single: true}}, {key: "notify", shape: list{of: server, single: true}}, {key: "key", shape: required},
		}}},
		{key: "update", doc: "UPDATE messages taken.", later: filled, shape: object{fields: []field{
			{key: "allow", shape: allow(field{key: "key", shape: required, must: true}, field{key: "names", shape: list{of: required, single: true}}, field{key: "types", shape: list{of: required, single: true}})},
		}}},
	}}
}

// grammar is the format.
func grammar() object {
	withListen := func(fs ...field) object {
		return object{fields: append([]field{{key: "listen", shape: listen}, {key: "cert", shape: pathname}, {key: "key", shape: pathname}}, fs...)}
	}
	return object{fields: []field{
		{key: "$schema", doc: "For editors.", shape: text},
		{key: "version", doc: "Of the format: 1.", shape: integer(1, 1)},
		{
			key: "include", doc: "Patterns of files to merge in, relative to this file: maps merge, lists append, a scalar set twice is an error.",
			shape: list{of: required, single: true},
		},
		{key: "node", doc: "This process.", shape: object{fields: []field{
			{key: "name", doc: "Default: the host name.", shape: required},
			{key: "site", doc: "Where this vantage stands. Default: the name.", shape: required},
			{key: "data_dir", doc: "Default: $STATE_DIRECTORY, else rota-data.", shape: pathname},
		}}},
		{key: "log", doc: "What is logged, how and where.", shape: object{fields: []field{
			{key: "level", doc: "debug, info (default), warn or error.", shape: word("debug", "info", "warn", "error")},
			{
				key: "format", doc: "auto (default): journald under systemd, colour on a terminal, JSON elsewhere.",
				shape: word("auto", "terminal", "json", "journald"),
			},
			{key: "file", doc: "Default: standard error.", shape: pathname},
		}}},
		{key: "metrics", doc: "Metrics.", shape: object{fields: []field{
			{key: "prometheus", doc: "Metrics in the Prometheus text format.", shape: object{fields: []field{
				{
					key: "path", doc: "Default: /metrics.",
					shape: scalar{want: "a path", json: "string", pattern: `^/|\$\{`, parse: parsePath},
				},
			}}},
			{key: "statsd", doc: "Metrics to a StatsD server.", later: filled, shape: object{fields: []field{
				{key: "address", shape: server}, {key: "dialect", shape: word("dogstatsd", "plain")}, {key: "compat", shape: word("rrdnsd")},
			}}},
		}}},
		{key: "api", doc: "The HTTP API, the page and the metrics.", shape: object{fields: []field{
			{key: "listen", doc: "Default: 127.0.0.1:8080; empty: only the unix socket in data_dir.", shape: optional(listen)},
			{key: "tls", doc: "Certificate of the listener.", shape: certificate(field{key: "acme", doc: "Certificates by ACME.", later: always, shape: object{fields: []field{
				{key: "email", shape: required}, {key: "challenge", shape: word("dns-01", "http-01", "tls-alpn-01")},
			}}})},
			{key: "dashboard", doc: "The page.", shape: object{fields: []field{
				{
					key: "anonymous", doc: "read: whoever connects may look; none. Default: read on a loopback address, none elsewhere.",
					shape: word("none", "read"),
				},
			}}},
			{key: "tokens", doc: "Who may do what.", shape: list{of: object{fields: []field{
				{key: "name", shape: required, must: true},
				{key: "role", shape: word("agent", "viewer", "operator", "admin"), must: true},
				{key: "token", shape: secret(), must: true},
			}}}},
		}}},
		{key: "cluster", doc: "How nodes agree.", shape: object{fields: []field{
			{
				key: "election", doc: "singleton (default): this node alone; raft: several nodes, of which one leads.",
				shape: word(Singleton, Raft, "kubernetes"), later: unless(Singleton, Raft),
			},
			{key: "listen", doc: "Where raft, reports and agents come in, with TLS on both sides. Default: \":3648\".", shape: listen},
			{
				key: "advertise", doc: "Where other nodes reach this one. Default: the address of listen, or the machine's only global one.",
				shape: peer,
			},
			{key: "join", doc: "Addresses of other nodes.", shape: list{of: peer, single: true, most: maxNodes}},
			{key: "tls", doc: "Certificates of your own CA. Default: rota's own, in data_dir.", shape: certificate(field{
				key: "ca", doc: "PEM file of the CA that signed the certificates of all nodes and agents.", shape: pathname,
			})},
			{
				key: "nodes", doc: "Names of nodes in certificates of tls.",
				shape: list{of: vantageName, single: true, most: maxNodes},
			},
			{key: "id", doc: "Tells clusters of one CA apart, with tls. Default: rota.", shape: clusterID},
			{key: "raftadmin", doc: "Loopback address for raftadmin. Default: none.", shape: optional(raftadmin)},
			{key: "lease", later: filled, shape: object{fields: []field{{key: "namespace", shape: required}, {key: "name", shape: required}}}},
		}}},
		{key: "vantage", doc: "Whose word counts, and how much of it is needed.", shape: object{fields: []field{
			{
				key: "quorum", doc: "any, majority (default), all, a count or a share such as 60%; of all configured vantages.",
				shape: scalar{want: "any, majority, all, a count or a share such as 60%", parse: parseQuorum},
			},
			{key: "of", doc: "nodes (default) or sites: one vote a site.", shape: word("nodes", "sites")},
			{key: "nodes", doc: "Whether nodes have a voice. Default: true. false: agents only; nodes do not probe then.", shape: boolean},
			{key: "max_age", doc: "An older report is no vote. Default: 45s.", shape: duration(time.Second, day)},
			{key: "uplink", doc: "How this node finds out that it is cut off itself: then it abstains.", shape: object{fields: []field{
				{
					key: "checks", doc: "URLs such as icmp://192.0.2.1 or tcp://192.0.2.1:443, asked every second.",
					shape: list{of: uplinkCheck, single: true, least: 1, most: maxUplink}, must: true,
				},
				{key: "need", doc: "How many of them have to be up. Default: 1.", shape: integer(1, maxUplink)},
			}}},
			{key: "agents", doc: "Vantages that are no nodes.", shape: object{fields: []field{
				{
					key: "accept", doc: "Their names, as in their certificates.",
					shape: list{of: either{vantageName, object{name: "agent", fields: []field{
						{key: "name", doc: "As in its certificate.", shape: vantageName, must: true},
						{key: "site", doc: "Where it stands. Default: where it says, else its name.", shape: site},
					}}}, single: true, most: maxAgents},
				},
				{key: "healthagent", doc: "A listener for NectGmbH's healthagents as they are.", shape: object{fields: []field{
					{key: "listen", doc: "Where they report.", shape: listen, must: true},
					{key: "tls", doc: "TLS with certificates on both sides.", must: true, shape: certificate(field{
						key: "client_ca", doc: "PEM file of the CA that signed the agents' certificates.", shape: pathname,
					})},
				}}},
			}}},
		}}},
		{key: "dns", doc: "rota's own authoritative name server; leave out to have none.", shape: object{fields: []field{
			{key: "listen", doc: "Default: \":53\".", shape: list{of: listen, single: true, least: 1}},
			{key: "dot", later: filled, shape: withListen()},
			{key: "doh", later: filled, shape: withListen(field{key: "path", shape: scalar{want: "a path", json: "string", parse: parsePath}})},
			{key: "cookies", shape: boolean, later: unless("false")},
			{key: "ecs", shape: boolean, later: unless("false")},
			{key: "rrl", later: filled, shape: object{fields: []field{{key: "responses_per_second", shape: integer(1, math.MaxInt32)}, {key: "slip", shape: integer(0, 100)}}}},
			{key: "geoip", later: filled, shape: object{fields: []field{{key: "city", shape: pathname}, {key: "country", shape: pathname}, {key: "asn", shape: pathname}}}},
			{
				key: "zones", doc: "Zones rota answers for.",
				shape: dict{what: "zone", keys: domainNames, key: parsed(parseName), of: zoneShape()}, must: true,
			},
		}}},
		{key: "keys", doc: "TSIG keys.", shape: dict{what: "key", of: object{name: "key", fields: []field{
			{key: "name", doc: "Default: the key's name here.", shape: domain},
			{key: "algorithm", doc: "Default: hmac-sha256, or what the file says.", shape: word(algorithms()...)},
			{key: "secret", doc: "In base64, or a file with a whole key.", shape: secret()},
			{key: "file", doc: "A file with a BIND key block or a KEY line.", shape: pathname},
			{key: "allow_weak", doc: "Accept hmac-sha1 and hmac-md5.", shape: boolean},
		}}}},
		{
			key: "publish", doc: "Where records are kept true.",
			shape: dict{what: "publisher", key: publisherName, of: publisherShape()},
		},
		{key: "ownership", doc: "Which records are rota's.", shape: object{fields: []field{
			{
				key: "registry", doc: "none (default): fence and compare; txt: external-dns' TXT records beside each RRset, too.",
				shape: word(string(RegistryNone), string(RegistryTXT)),
			},
			{key: "owner", doc: "In the fence record and the registry. Default: the node's name; with raft the cluster's id.", shape: required},
			{
				key: "prefix", doc: "Before the names of the registry's records. Default: _rota.",
				shape: scalar{want: "a prefix such as _rota.", json: "string", parse: parsePrefix},
			},
		}}},
		{
			key: "safety", doc: "Bounds of what health may do; services may have their own.",
			shape: object{name: "safety", fields: safetyFields()},
		},
		{key: "checks", doc: "Named checks.", shape: dict{what: "check", key: checkName, of: either{
			variants{name: "check", tag: "type", kind: "check", of: checkKinds()},
			scalar{want: "a URL with {}", json: "string", parse: func(s string) error { _, err := parseCheckURL(s); return err }},
		}}},
		{key: "defaults", doc: "What services and checks have that say nothing.", shape: object{fields: append([]field{{key: "ttl", doc: "Default: 30s.", shape: ttl}}, timing()...)}},
		{
			key: "services", doc: "Domain names and the endpoints that can answer for them.",
			shape: dict{what: "service", keys: domainNames, key: parsed(parseHost), of: service()},
		},
		{
			key: "discover", doc: "Services and endpoints from elsewhere.",
			shape: list{of: variants{name: "discover", tag: "type", kind: "source", of: discoverTypes()}, most: maxDiscover},
		},
		{key: "maintenance", doc: "Planned absences.", later: filled, shape: list{of: object{fields: []field{
			{key: "match", shape: labels, must: true},
			{key: "from", shape: scalar{want: "a time such as 2026-12-01T01:00:00Z", json: "string", parse: parseTime}, must: true},
			{key: "for", shape: span, must: true},
			{key: "state", shape: word("drain", "maintenance")},
			{key: "reason", shape: text},
		}}}},
		{key: "notify", doc: "Who is told.", later: filled, shape: list{of: variants{name: "notify", tag: "type", kind: "receiver", of: []variant{
			{word: "webhook", fields: []field{{key: "url", shape: webURL, must: true}, {key: "on", shape: list{of: required, single: true}}, {key: "secret", shape: secret()}}},
		}}}},
	}}
}

func publisherName(s string) error {
	if s == rota.Embedded {
		return fmt.Errorf("publisher %q is rota's own name server and cannot be defined", s)
	}
	if s == "" || len(s) > 300 || strings.ContainsAny(s, " \t\n,{}\"'") || strings.Contains(s, "://") {
		return fmt.Errorf("%q is no name: want a word without spaces, quotes, commas and braces", short(s))
	}
	return nil
}

// checkName refuses names that read like URLs or would not fit into one word of a command.
func checkName(s string) error {
	if s == "" || len(s) > 100 || strings.ContainsAny(s, " \t\n/:,{}\"'") {
		return fmt.Errorf("%q is no name: want a word without spaces, quotes, slashes, colons, commas and braces", short(s))
	}
	return nil
}

func parseTime(s string) error {
	if _, err := time.Parse(time.RFC3339, s); err != nil {
		return fmt.Errorf("%q is no time: want one such as 2026-12-01T01:00:00Z", s)
	}
	return nil
}

func parseQuorum(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	// Votes judges the form; with no bound on the voices it cannot find a count too large.
	_, err := rota.Quorum{Need: s}.Votes(math.MaxInt32)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "quorum "))
	}
	return nil
}
