package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// publisherURL makes a publisher of rfc2136://SERVER[:PORT][,SERVER…]/[ZONE][?key=KEY&transport=TRANSPORT], where KEY is file:PATH,
// env:NAME, credential:NAME or the name of a key.
func (b *builder) publisherURL(n *node) *publisher {
	scheme, rest, _ := strings.Cut(n.text, "://")
	if scheme != "rfc2136" {
		hint := didYouMean(scheme, []string{"rfc2136"})
		if k := kindOfPublisher(scheme); k.read != nil {
			hint = fmt.Sprintf("define one under publish: {NAME: {type: %s, …}} and write its name here", k.word)
		}
		b.fail(n.at, hint, "publish URL: %q is none of the schemes: want rfc2136://SERVER/ZONE?key=…", short(scheme))
		return nil
	}
	rest, query, _ := strings.Cut(rest, "?")
	servers, zone, _ := strings.Cut(rest, "/")
	if strings.Contains(servers, "@") {
		b.fail(n.at, "write ?key=file:PATH", "publish URL: a name server takes no user and password")
		return nil
	}
	k := kindOfPublisher("rfc2136")
	r := &RFC2136{Transport: TransportAuto}
	p := &publisher{url: n.text, kind: k, Publisher: Publisher{
		Type: k.word, RFC2136: r, MinGap: defaultMinGap, ReadEvery: nearby, MaxRecords: k.maxRecords, Proof: DefaultProof(),
	}}
	ok := true
	refuse := func(hint, format string, args ...any) {
		ok = false
		b.fail(n.at, hint, "publish URL: "+format, args...)
	}
	for s := range strings.SplitSeq(servers, ",") {
		server, err := parseServer(s, "53")
		if err != nil {
			refuse("", "%v", err)
			continue
		}
		r.Servers = append(r.Servers, server)
	}
	if zone = strings.TrimSuffix(zone, "/"); zone != "" && zone != "auto" {
		z, err := parseName(zone)
		if err != nil {
			refuse("", "%v", err)
		}
		p.Zones = []rota.Name{z}
	}
	p.Name = urlName(p.Publisher)
	key, algorithm, name, weak := "", "", "", false
	if query != "" {
		for part := range strings.SplitSeq(query, "&") {
			k, v, _ := strings.Cut(part, "=")
			value, err := url.PathUnescape(v)
			if err != nil {
				refuse("", "%s is malformed", k)
				continue
			}
			switch k {
			case "key":
				key = value
			case "algorithm":
				if algorithm = value; algorithmNames[value] == "" {
					refuse(didYouMean(value, algorithms()), "algorithm %q: want %s", short(value), oneOf(algorithms()))
				}
			case "name":
				name = value
			case "allow_weak":
				if weak, err = parseBool(value); err != nil {
					refuse("", "allow_weak: %v", err)
				}
			case "max_records":
				v, err := parseInteger(value, 1, 4000)
				if err != nil {
					refuse("", "max_records: %v", err)
				}
				p.MaxRecords = int(v)
			case "transport":
				r.Transport = Transport(value)
				if !slices.Contains([]Transport{TransportAuto, TransportUDP, TransportTCP}, r.Transport) {
					refuse(didYouMean(value, []string{"auto", "udp", "tcp"}), "transport %q: want auto, udp or tcp", short(value))
				}
			default:
				refuse(didYouMean(k, []string{"key", "algorithm", "name", "transport", "allow_weak", "max_records"}), "unknown parameter %q", short(k))
			}
		}
	}
	for _, known := range b.publishers {
		if known.url == n.text {
			return known
		}
	}
	if key != "" {
		signs, read := b.urlKey(n.at, key, keyText{name: name, algorithm: algorithm}, weak)
		ok = ok && read
		if read {
			r.Keys = []Key{*signs}
		}
	}
	if !ok {
		return nil
	}
	if key == "" {
		b.warn(n.at, "add ?key=file:PATH", "publisher %s sends its updates unsigned", p.Name)
	}
	for i, plain := 2, p.Name; b.publishers[p.Name] != nil || b.defined[p.Name].value != nil; i++ {
		p.Name = fmt.Sprintf("%s#%d", plain, i)
	}
	b.publishers[p.Name] = p
	return p
}

// urlName names a publisher that was written as a URL: its first server, without the port when that is 53, and its zone.
func urlName(p Publisher) string {
	name := ""
	if len(p.RFC2136.Servers) > 0 {
		name = strings.TrimSuffix(p.RFC2136.Servers[0], ":53")
	}
	if len(p.Zones) > 0 {
		name += "/" + p.Zones[0].Short()
	}
	return name
}

// urlKey reads the key of a publish URL. What is no form of a reference is not repeated: it may be the secret itself.
func (b *builder) urlKey(at place, key string, want keyText, weak bool) (*Key, bool) {
	form, name, isForm := strings.Cut(key, ":")
	if isForm && slices.Contains([]string{"file", "env", "credential"}, form) && name != "" {
		s, ok := b.secretFrom(at, form, name)
		k, ok := b.key(at, s, want, keyRules{whole: want.name == "" && form == "file", weak: weak, unread: !ok})
		return &k, ok
	}
	if k, ok := b.c.Keys[key]; ok {
		return &k, true
	}
	var known []string
	for _, e := range words.entries(b.root.get("keys")) {
		if e.key == key {
			return nil, false
		}
		known = append(known, e.key)
	}
	hint := didYouMean(key, known)
	b.fail(at, hint, "publish URL: key= wants file:PATH, env:NAME, credential:NAME or the name of a key under keys")
	return nil, false
}
