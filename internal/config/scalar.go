package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/rota-dns/rota/internal/rota"
)

var (
	durationForm = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h|d))+$`)
	durationPart = regexp.MustCompile(`([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)`)
	integerForm  = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
)

// maxDuration bounds every duration: ten years are longer than anything here waits.
const maxDuration = 3650 * day

// parseDuration reads 500ms, 5s, 1m30s, 2h, 1d.
func parseDuration(s string) (time.Duration, error) {
	if !durationForm.MatchString(s) {
		if _, err := strconv.ParseFloat(s, 64); err == nil && !strings.HasPrefix(s, "-") {
			return 0, fmt.Errorf("%q has no unit: write %ss, or ms, m, h, d", s, s)
		}
		return 0, fmt.Errorf("%q is no duration: want a number and a unit, such as 500ms, 5s, 1m, 2h, 1d", s)
	}
	total := 0.0
	for _, m := range durationPart.FindAllStringSubmatch(s, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration", s)
		}
		unit := map[string]time.Duration{
			"ns": 1, "us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond,
			"s": time.Second, "m": time.Minute, "h": time.Hour, "d": day,
		}[m[2]]
		total += v * float64(unit)
	}
	if total > float64(maxDuration) {
		return 0, fmt.Errorf("%s is longer than ten years", s)
	}
	return time.Duration(math.Round(total)), nil
}

// formatDuration writes what parseDuration reads, in whole units where it can.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "us"}, {1, "ns"}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// parseInteger reads a decimal integer and nothing that only looks like one.
func parseInteger(s string, from, to int64) (int64, error) {
	if !integerForm.MatchString(s) {
		digits := strings.TrimLeft(s, "0")
		switch {
		case s != "" && strings.Trim(s, "0123456789") == "":
			return 0, fmt.Errorf("%s has a leading zero, which some read as octal: write %s", s, max(digits, "0"))
		case s == "":
			return 0, errors.New("want a whole number, there is nothing")
		}
		return 0, fmt.Errorf("%q is no whole number: want decimal digits", s)
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < from || v > to {
		return 0, fmt.Errorf("%s is out of range: want %d to %d", s, from, to)
	}
	return v, nil
}

// maxTTL is the largest TTL (RFC 2181 §8).
const maxTTL = math.MaxInt32

// parseTTL reads a duration of whole seconds, or seconds as a bare number, as zone files have them.
func parseTTL(s string) (uint32, error) {
	if integerForm.MatchString(s) {
		v, err := parseInteger(s, 0, maxTTL)
		return uint32(v), err
	}
	d, err := parseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is no TTL: want seconds such as 30, or a duration such as 30s", s)
	case d%time.Second != 0:
		return 0, fmt.Errorf("%s is no TTL: a TTL is in whole seconds", s)
	case d/time.Second > maxTTL:
		return 0, fmt.Errorf("%s is out of range: a TTL is 0 to %d seconds", s, maxTTL)
	}
	return uint32(d / time.Second), nil
}

var percentForm = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?%$`)

// parsePercent reads 0% to 100% and returns the share.
func parsePercent(s string) (float64, error) {
	if !percentForm.MatchString(s) {
		if _, err := strconv.ParseFloat(s, 64); err == nil {
			return 0, fmt.Errorf("%s has no percent sign: write it as 50%%", s)
		}
		return 0, fmt.Errorf("%q is no share: want a percentage such as 50%%", s)
	}
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(v >= 0 && v <= 100) {
		return 0, fmt.Errorf("%s is out of range: want 0%% to 100%%", s)
	}
	return v / 100, nil
}

// formatPercent writes what parsePercent reads.
func formatPercent(v float64) string {
	return strconv.FormatFloat(math.Round(v*1e8)/1e6, 'f', -1, 64) + "%"
}

// parseBool reads true and false only: yes, no, on and off mean different things to different readers of YAML.
func parseBool(s string) (bool, error) {
	switch s {
	case "true", "True", "TRUE":
		return true, nil
	case "false", "False", "FALSE":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// names reads U-labels and checks A-labels (RFC 5891, UTS 46); underscores and stars pass.
func names() *idna.Profile {
	return idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.CheckJoiners(true),
		idna.ValidateLabels(true), idna.StrictDomainName(false), idna.VerifyDNSLength(false), idna.CheckHyphens(false))
}

// parseName reads a domain name; U-labels become A-labels, and A-labels that decode to nothing are refused.
func parseName(s string) (rota.Name, error) {
	if strings.ContainsAny(s, " \t\n\r") && !strings.Contains(s, `\`) {
		return "", fmt.Errorf("domain name %q contains a space", s)
	}
	ascii := true
	for i := 0; i < len(s); i++ {
		ascii = ascii && s[i] < 0x80
	}
	if !ascii && strings.Contains(s, `\`) {
		return "", fmt.Errorf("domain name %q mixes escapes with letters outside ASCII", s)
	}
	if !ascii || strings.Contains(strings.ToLower(s), "xn--") {
		a, err := names().ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("domain name %q is no valid internationalised name: %s", s, strings.TrimPrefix(err.Error(), "idna: "))
		}
		for label := range strings.SplitSeq(a, ".") {
			if strings.HasPrefix(label, "xn--") {
				if u, err := names().ToUnicode(label); err != nil || u == label {
					return "", fmt.Errorf("domain name %q: label %q is no valid A-label", s, label)
				}
			}
		}
		s = a
	}
	return rota.ParseName(s)
}

// parseHost reads a domain name that hosts may have: letters, digits, hyphens and underscores, and * as a whole first label.
func parseHost(s string) (rota.Name, error) {
	n, err := parseName(s)
	if err != nil {
		return "", err
	}
	if n == "." {
		return "", errors.New("the root is no name for a host")
	}
	for i, rest := 0, n; rest != "."; i, rest = i+1, rest.Parent() {
		label := rest.Label()
		if label == "*" && i == 0 {
			continue
		}
		if j := strings.IndexFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}); j >= 0 {
			return "", fmt.Errorf("domain name %q: label %q holds %q, hosts have letters, digits, - and _", s, label, label[j:j+1])
		}
		if strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return "", fmt.Errorf("domain name %q: label %q begins or ends with a hyphen", s, label)
		}
	}
	return n, nil
}

// parseAddress reads one address that can be an endpoint. doubt says what is odd about an address that is allowed.
func parseAddress(s string) (a netip.Addr, doubt string, err error) {
	a, err = netip.ParseAddr(s)
	if err != nil {
		return a, "", addressError(s)
	}
	b4 := a.As16()
	switch {
	case a.Is4In6():
		return a, "", fmt.Errorf("%s is an IPv4 address in IPv6 clothes: write %s", s, a.Unmap())
	case strings.HasPrefix(a.Zone(), "25"):
		return a, "", fmt.Errorf("%s: the %% before a zone is not encoded here: write %%%s", s, a.Zone()[2:])
	case a.Zone() != "" && !a.IsLinkLocalUnicast():
		return a, "", fmt.Errorf("%s: only link-local addresses (fe80::/10) have a zone", s)
	case a.IsUnspecified() || a.Is4() && b4[12] == 0:
		return a, "", fmt.Errorf("%s is the unspecified address: no endpoint can have it", s)
	case a.IsMulticast():
		return a, "", fmt.Errorf("%s is a multicast address: no endpoint can have it", s)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, "", fmt.Errorf("%s is the broadcast address: no endpoint can have it", s)
	case a.Zone() != "":
		return a, fmt.Sprintf("%s has a zone: it is probed and never published", a), nil
	case a.IsLoopback():
		return a, "is a loopback address", nil
	case a.IsLinkLocalUnicast() && a.Is6():
		return a, fmt.Sprintf("%s is link-local and has no zone: write %s%%INTERFACE", a, a), nil
	case a.IsLinkLocalUnicast():
		return a, fmt.Sprintf("%s is link-local: others cannot reach it", a), nil
	case a.Is4() && b4[12] >= 240:
		return a, fmt.Sprintf("%s is in a reserved range", a), nil
	}
	return a, "", nil
}

// addressError says why s is no address.
func addressError(s string) error {
	if p, err := netip.ParsePrefix(s); err == nil {
		return fmt.Errorf("%s is a network: want one address, such as %s", s, p.Addr())
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return fmt.Errorf("%s has a port: write the address %s here and the port in the check", s, ap.Addr())
	}
	parts := strings.Split(s, ".")
	digits := strings.Trim(s, "0123456789.") == "" && s != ""
	switch {
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		return fmt.Errorf("%s: an address stands here without brackets", s)
	case digits && len(parts) == 4:
		for _, p := range parts {
			if len(p) > 1 && p[0] == '0' {
				return fmt.Errorf("%s has a leading zero, which some read as octal: write it without", s)
			}
		}
		return fmt.Errorf("%s is no IPv4 address: each part is 0 to 255", s)
	case digits:
		return fmt.Errorf("%s is no IPv4 address: want four parts", s)
	case strings.HasSuffix(s, "%"):
		return fmt.Errorf("%s: the zone after %% is empty", s)
	case strings.Contains(s, ":"):
		return fmt.Errorf("%q is no IPv6 address", s)
	case s == "":
		return errors.New("want an address, there is nothing")
	}
	return fmt.Errorf("%q is no address: endpoints are IPv4 or IPv6 addresses", s)
}

// parseListen reads host:port to listen on; no host is every address, port 0 any free port.
func parseListen(s string) (string, error) {
	host, port, err := splitHostPort(s)
	if err != nil || port == "" {
		return "", fmt.Errorf("%q is nothing to listen on: want ADDRESS:PORT, [IPv6]:PORT or :PORT", s)
	}
	if _, err := parseInteger(port, 0, 65535); err != nil {
		return "", fmt.Errorf("%q: port %w", s, err)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return "", fmt.Errorf("%q: %q is no address of this machine: want an address, localhost or nothing before the port", s, host)
		}
	}
	return joinHostPort(host, port), nil
}

// parseServer reads host or host:port of a server to speak to; the port is def when there is none.
func parseServer(s, def string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return joinHostPort(a.String(), def), nil
	}
	host, port, err := splitHostPort(s)
	if err != nil || host == "" {
		return "", fmt.Errorf("%q is no server: want HOST, HOST:PORT or [IPv6]:PORT", s)
	}
	if port == "" {
		port = def
	}
	if _, err := parseInteger(port, 1, 65535); err != nil {
		return "", fmt.Errorf("%q: port %w", s, err)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return joinHostPort(a.String(), port), nil
	}
	if strings.Trim(host, "0123456789.") == "" {
		return "", addressError(host)
	}
	n, err := parseHost(host)
	if err != nil {
		return "", err
	}
	return joinHostPort(n.Short(), port), nil
}

// parsePeer reads host:port of another process, which has to be one that can be called from elsewhere: no wildcard, no port 0.
func parsePeer(s string) (string, error) {
	host, port, err := splitHostPort(s)
	if err != nil || port == "" {
		return "", fmt.Errorf("%q: want HOST:PORT or [IPv6]:PORT, such as 10.0.0.1:3648", s)
	}
	if a, err := netip.ParseAddr(host); host == "" || strings.HasPrefix(host, "*") || err == nil && (a.IsUnspecified() || a.IsMulticast()) {
		return "", fmt.Errorf("%q is no address that others can call: want HOST:PORT, such as 10.0.0.1:3648", s)
	}
	return parseServer(s, "")
}

// parseRaftAdmin reads host:port to listen on that nobody reaches from another machine.
func parseRaftAdmin(s string) (string, error) {
	out, err := parseListen(s)
	if err == nil && !isLoopback(out) {
		err = fmt.Errorf("%s can be reached from other machines, and anyone who reaches it could take the cluster over: "+
			"want 127.0.0.1:PORT, [::1]:PORT or localhost:PORT", s)
	}
	return out, err
}

// vantageForm is what certificates and the cluster's port take as a name.
var vantageForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

func parseVantageName(s string) error {
	if !vantageForm.MatchString(s) {
		return fmt.Errorf("%q cannot be a name in a certificate: want 1 to 64 letters, digits, and . _ -, beginning with none of . and -", short(s))
	}
	return nil
}

// clusterIDForm is what certificates and the cluster's port take as the id of a cluster.
var clusterIDForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func parseClusterID(s string) error {
	if !clusterIDForm.MatchString(s) {
		return fmt.Errorf("%q cannot be the id of a cluster: want 1 to 64 lower-case letters, digits and hyphens, beginning with no hyphen", short(s))
	}
	return nil
}

// parseSite reads where a vantage stands, as agents may say it themselves.
func parseSite(s string) error {
	if s == "" || len(s) > 64 || rota.CleanReason("%s", s) != s {
		return fmt.Errorf("%q cannot be a site: want 1 to 64 bytes that can be printed", short(s))
	}
	return nil
}

// parseUplink checks a URL that is address and check in one, but for its address.
func parseUplink(s string) error {
	if !strings.Contains(s, "://") || strings.Contains(s, "{}") {
		return fmt.Errorf("%q: want a URL with an address, such as icmp://192.0.2.1 or tcp://192.0.2.1:443", short(s))
	}
	c, err := parseCheckURL(endpointTemplate(s))
	switch c.Kind {
	case rota.KindHTTP, rota.KindHTTPS, rota.KindTCP, rota.KindTLS, rota.KindICMP, rota.KindDNS:
		return err
	}
	return cmp.Or(err, fmt.Errorf("%q: a node finds out whether it is cut off by checks of type icmp, tcp, tls, http, https or dns", short(s)))
}

func splitHostPort(s string) (host, port string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(rest, "]")
		if !ok || port != "" && port[0] != ':' {
			return "", "", errors.New("brackets do not match")
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() {
			return "", "", fmt.Errorf("%q is no IPv6 address", host)
		}
		return host, strings.TrimPrefix(port, ":"), nil
	}
	host, port, _ = strings.Cut(s, ":")
	if strings.Contains(port, ":") {
		return "", "", errors.New("an IPv6 address wants brackets before a port")
	}
	return host, port, nil
}

func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]:" + port
	}
	return host + ":" + port
}

// parseStatus reads a status code, a range such as 200-299, or a class such as 2xx.
func parseStatus(s string) (rota.StatusRange, error) {
	if len(s) == 3 && strings.HasSuffix(s, "xx") && s[0] >= '1' && s[0] <= '5' {
		from := int(s[0]-'0') * 100
		return rota.StatusRange{From: from, To: from + 99}, nil
	}
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	from, err1 := parseInteger(a, 100, 599)
	to, err2 := parseInteger(b, 100, 599)
	if err1 != nil || err2 != nil || from > to {
		return rota.StatusRange{}, fmt.Errorf("%q is no HTTP status: want 100 to 599, or a range such as 200-299", s)
	}
	return rota.StatusRange{From: int(from), To: int(to)}, nil
}

// parseRegexp checks a regular expression (RE2) and bounds its size.
func parseRegexp(s string) error {
	if len(s) > 4096 {
		return errors.New("a regular expression of more than 4096 bytes is not read")
	}
	if _, err := regexp.Compile(s); err != nil {
		return fmt.Errorf("malformed regular expression: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return nil
}

// parsePath checks the path and query of an HTTP request.
func parsePath(s string) error {
	u, err := url.ParseRequestURI(s)
	switch {
	case !strings.HasPrefix(s, "/"):
		return fmt.Errorf("path %q does not begin with /", s)
	case err != nil || u.Host != "" || strings.ContainsAny(s, " \t\r\n"):
		return fmt.Errorf("path %q cannot be asked for: encode what is no part of a path", s)
	case strings.Contains(s, "#"):
		return fmt.Errorf("path %q has a fragment, which is never sent", s)
	}
	return nil
}

// parseURL checks an absolute http or https URL. Its errors do not repeat it: it may hold a secret.
func parseURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsAny(s, " \t\r\n"):
		return errors.New("want an absolute URL such as https://host/path")
	case u.User != nil:
		return errors.New("a URL with user and password is not taken: a secret has a key of its own")
	case u.Fragment != "":
		return errors.New("the URL has a fragment, which is never sent")
	}
	if _, err := parseServer(u.Host, "443"); err != nil {
		return err
	}
	return nil
}
