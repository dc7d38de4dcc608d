package rota

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// HostPattern takes the name of a host apart. It is text in which {id}, {service} and {env} stand for parts of the name, each at most
// once and never side by side; or {host} alone, which takes any name and nothing of it apart. A part reaches to the first occurrence of
// the text that follows its placeholder, the last one as far as it can; none is empty. So {id}-{service}-{env} finds in
// cyberdyne-web-sfo-prod the id cyberdyne, the service web and the env sfo-prod.
type HostPattern struct {
	text  string
	parts []piece
}

// piece is text as it stands, or a placeholder by its name.
type piece struct {
	text        string
	placeholder bool
}

// HostParts is what a pattern finds in the name of a host; what it does not ask for is empty.
type HostParts struct {
	Host    string // the whole name, in lower case
	ID      string
	Service string
	Env     string
}

// maxPattern bounds patterns and templates, in bytes.
const maxPattern = 512

// pieces takes a pattern or a template apart.
func pieces(s string) ([]piece, error) {
	if len(s) > maxPattern {
		return nil, fmt.Errorf("takes %d bytes, want at most %d", len(s), maxPattern)
	}
	var out []piece
	for s != "" {
		text, rest, open := strings.Cut(s, "{")
		if strings.Contains(text, "}") {
			return nil, errors.New("has a } without a {")
		}
		if text != "" {
			out = append(out, piece{text: text})
		}
		if !open {
			break
		}
		name, after, closed := strings.Cut(rest, "}")
		switch {
		case !closed:
			return nil, errors.New("has a { without a }")
		case name != "host" && name != "id" && name != "service" && name != "env":
			return nil, fmt.Errorf("has the placeholder {%s}: want {id}, {service}, {env} or {host}", CleanReason("%s", name))
		}
		out = append(out, piece{name, true})
		s = after
	}
	return out, nil
}

// ParseHostPattern reads a pattern of host names.
func ParseHostPattern(s string) (HostPattern, error) {
	bad := func(format string, args ...any) (HostPattern, error) {
		return HostPattern{}, fmt.Errorf("host name pattern %q %w", s, fmt.Errorf(format, args...))
	}
	parts, err := pieces(strings.ToLower(s))
	if err != nil {
		return bad("%w", err)
	}
	seen := map[string]bool{}
	for i, p := range parts {
		switch {
		case !p.placeholder && strings.Trim(p.text, hostLetters) != "":
			return bad("has %q: want letters, digits and hyphens between the placeholders", strings.Trim(p.text, hostLetters))
		case !p.placeholder:
		case p.text == "host" && len(parts) > 1:
			return bad("has {host} beside other things: it stands for the whole name")
		case seen[p.text]:
			return bad("has {%s} twice", p.text)
		case i > 0 && parts[i-1].placeholder:
			return bad("has {%s}{%s} side by side: nothing says where one ends", parts[i-1].text, p.text)
		default:
			seen[p.text] = true
		}
	}
	if !slices.ContainsFunc(parts, func(p piece) bool { return p.placeholder }) {
		return bad("has no placeholder: want one of {id}, {service}, {env}, or {host} for any name")
	}
	return HostPattern{s, parts}, nil
}

// String returns the pattern as it was written.
func (p HostPattern) String() string { return p.text }

// hostLetters is what host names are made of (RFC 952, RFC 1123 §2.1).
const hostLetters = "abcdefghijklmnopqrstuvwxyz0123456789-"

// HostLabel returns the first label of a machine's name in lower case, which is what it registers as. It refuses what is no host name.
func HostLabel(name string) (string, error) {
	host, _, _ := strings.Cut(strings.ToLower(name), ".")
	switch {
	case host == "" || len(host) > maxLabel:
		return "", fmt.Errorf("%q is no host name: want 1 to %d letters, digits and hyphens before the first dot", CleanReason("%s", name), maxLabel)
	case strings.Trim(host, hostLetters) != "" || host[0] == '-' || host[len(host)-1] == '-':
		return "", fmt.Errorf("%q is no host name: want letters, digits and hyphens, and no hyphen at either end", CleanReason("%s", host))
	}
	return host, nil
}

// Match takes a host name apart; what stands after its first dot is not looked at.
func (p HostPattern) Match(name string) (HostParts, error) {
	host, err := HostLabel(name)
	if err != nil {
		return HostParts{}, err
	}
	bad := func(format string, args ...any) (HostParts, error) {
		return HostParts{}, fmt.Errorf("host name %q does not fit the pattern %s: %s", host, p.text, fmt.Sprintf(format, args...))
	}
	out := HostParts{Host: host}
	rest := host
	for i, part := range p.parts {
		if !part.placeholder {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, part.text); !ok {
				return bad("it does not begin with %q", part.text) // later texts were found before they were cut
			}
			continue
		}
		value := rest
		switch {
		case i+1 == len(p.parts):
		case i+2 == len(p.parts):
			var ok bool
			if value, ok = strings.CutSuffix(rest, p.parts[i+1].text); !ok {
				return bad("it does not end in %q", p.parts[i+1].text)
			}
		default:
			at := strings.Index(rest, p.parts[i+1].text)
			if at < 0 {
				return bad("there is no %q after its {%s}", p.parts[i+1].text, part.text)
			}
			value = rest[:at]
		}
		if value == "" {
			return bad("its {%s} is empty", part.text)
		}
		rest = rest[len(value):]
		switch part.text {
		case "id":
			out.ID = value
		case "service":
			out.Service = value
		case "env":
			out.Env = value
		}
	}
	if rest != "" {
		return bad("nothing stands for %q at its end", rest)
	}
	return out, nil
}

// offers reports whether the pattern fills a placeholder.
func (p HostPattern) offers(placeholder string) bool {
	return placeholder == "host" || slices.Contains(p.parts, piece{placeholder, true})
}

// fill makes a name of a template.
func fill(template string, h HostParts) (Name, error) {
	parts, err := pieces(template)
	if err != nil {
		return "", fmt.Errorf("name template %q %w", template, err)
	}
	values := map[string]string{"host": h.Host, "id": h.ID, "service": h.Service, "env": h.Env}
	var b strings.Builder
	for _, p := range parts {
		if !p.placeholder {
			b.WriteString(p.text)
			continue
		}
		if values[p.text] == "" {
			return "", fmt.Errorf("name template %q has {%s}, which the host name pattern does not find", template, p.text)
		}
		b.WriteString(values[p.text])
	}
	n, err := ParseName(b.String())
	if err != nil {
		return "", fmt.Errorf("name template %q: %w", template, err)
	}
	return n, nil
}

// ReverseName returns the name under in-addr.arpa (RFC 1035 §3.5) or ip6.arpa (RFC 3596 §2.5) at which an address points back.
func ReverseName(a netip.Addr) Name {
	var b strings.Builder
	if a = a.Unmap(); a.Is4() {
		for _, octet := range slices.Backward(a.AsSlice()) {
			b.WriteString(strconv.Itoa(int(octet)) + ".")
		}
		return Name(b.String() + "in-addr.arpa.")
	}
	for _, octet := range slices.Backward(a.AsSlice()) {
		fmt.Fprintf(&b, "%x.%x.", octet&15, octet>>4)
	}
	return Name(b.String() + "ip6.arpa.")
}

// Owner returns the name of an address's pointer, and false when the zone is not for the address. In a zone for a part of a /24
// (RFC 2317), such as 0/25.2.0.192.in-addr.arpa, 0-25.… or 0-127.…, it is the one that the provider's CNAME leads to.
func (r Reverse) Owner(a netip.Addr) (Name, bool) {
	name := ReverseName(a)
	if r.Zone == "" || name.In(r.Zone) {
		return name, true
	}
	if a = a.Unmap(); !a.Is4() || r.Zone.Parent() != name.Parent() {
		return "", false
	}
	first, last, ok := part24(r.Zone.Label())
	host := int(a.As4()[3])
	if !ok || host < first || host > last {
		return "", false
	}
	return Name(strconv.Itoa(host)+".") + r.Zone, true
}

// part24 reads the label of a zone for a part of a /24: FIRST/BITS, FIRST-BITS or FIRST-LAST. The last two look alike: what is a block
// from FIRST to LAST is read so.
func part24(label string) (first, last int, ok bool) {
	slash := strings.Contains(label, "/")
	a, b, both := strings.Cut(strings.Replace(label, "/", "-", 1), "-")
	first, err1 := strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	block := func(size int) bool { return size > 0 && size&(size-1) == 0 && first%size == 0 }
	if !both || err1 != nil || err2 != nil || first < 0 || first > 255 {
		return 0, 0, false
	}
	if !slash && last <= 255 && block(last-first+1) {
		return first, last, true
	}
	if bits := last; bits >= 25 && bits <= 32 && block(1<<(32-bits)) {
		return first, first + 1<<(32-bits) - 1, true
	}
	return 0, 0, false
}

// Pointer returns the entry of the longest zone that an address points back in, and the name of its pointer.
func (t *RegisterTemplate) Pointer(a netip.Addr) (Reverse, Name, bool) {
	var best Reverse
	var owner Name
	found := false
	for _, r := range t.Reverse {
		if n, ok := r.Owner(a); ok && (!found || r.Zone.Labels() > best.Zone.Labels()) {
			best, owner, found = r, n, true
		}
	}
	return best, owner, found
}

// Names returns what the template says of a host, by its name: the parts of it, and the names of its service and of its own record,
// which are empty where the template has none.
func (t *RegisterTemplate) Names(host string) (h HostParts, service, record Name, err error) {
	p, err := ParseHostPattern(t.HostName)
	if err != nil {
		return h, "", "", err
	}
	if h, err = p.Match(host); err != nil {
		return h, "", "", err
	}
	if t.ServiceName != "" {
		if service, err = fill(t.ServiceName, h); err != nil {
			return h, "", "", err
		}
	}
	if t.HostRecord != "" {
		if record, err = fill(t.HostRecord, h); err != nil {
			return h, "", "", err
		}
	}
	if service != "" && service == record {
		return h, "", "", fmt.Errorf("host %s would have the name of its service, %s, for its own record", h.Host, record.Short())
	}
	return h, service, record, nil
}
