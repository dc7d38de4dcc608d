package publish

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Key signs messages (RFC 8945). It prints without its secret.
type Key struct {
	Name      string // a domain name
	Algorithm string // hmac-sha256, hmac-sha384, hmac-sha512; hmac-sha1 and hmac-md5 with Weak; empty: hmac-sha256
	Secret    string // base64
	Weak      bool   // accept hmac-sha1 and hmac-md5, which must not be used for new keys (RFC 8945 §6)
}

func (k Key) String() string {
	return "key " + k.Name + " (" + cmp.Or(k.Algorithm, "hmac-sha256") + ")"
}

// GoString hides the secret from %#v.
func (k Key) GoString() string { return k.String() }

// MarshalText hides the secret from encoders.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func (k *Key) name() string { return dns.CanonicalName(k.Name) }

func (k *Key) algorithm() string {
	a := dns.CanonicalName(cmp.Or(k.Algorithm, "hmac-sha256"))
	if a == "hmac-md5." {
		return hmacMD5
	}
	return a
}

// hmacMD5 is the full name of the algorithm (RFC 8945 §6); the DNS library no longer computes it.
const hmacMD5 = "hmac-md5.sig-alg.reg.int."

// Generate computes the MAC of a message, for the DNS library.
func (k *Key) Generate(msg []byte, _ *dns.TSIG) ([]byte, error) {
	secret, err := base64.StdEncoding.DecodeString(k.Secret)
	if err != nil {
		return nil, dns.ErrSecret
	}
	var h func() hash.Hash
	switch k.algorithm() {
	case dns.HmacSHA256:
		h = sha256.New
	case dns.HmacSHA384:
		h = sha512.New384
	case dns.HmacSHA512:
		h = sha512.New
	case dns.HmacSHA1:
		h = sha1.New
	case hmacMD5:
		h = md5.New
	default:
		return nil, dns.ErrKeyAlg
	}
	mac := hmac.New(h, secret)
	mac.Write(msg)
	return mac.Sum(nil), nil
}

// Verify compares the MAC of a message, in full length: truncated ones are not accepted.
func (k *Key) Verify(msg []byte, t *dns.TSIG) error {
	want, err := k.Generate(msg, t)
	if err != nil {
		return err
	}
	got, err := hex.DecodeString(t.MAC)
	if err != nil || !hmac.Equal(want, got) {
		return dns.ErrSig
	}
	return nil
}

func (k *Key) validate() error {
	if _, err := rota.ParseName(k.Name); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	switch k.algorithm() {
	case dns.HmacSHA256, dns.HmacSHA384, dns.HmacSHA512:
	case dns.HmacSHA1, hmacMD5:
		if !k.Weak {
			return fmt.Errorf("key %s: %s is weak; make a key with hmac-sha256, or say that weak algorithms are wanted", k.Name, k.Algorithm)
		}
	default:
		return fmt.Errorf("key %s: unknown algorithm %q, want hmac-sha256, hmac-sha384 or hmac-sha512", k.Name, k.Algorithm)
	}
	if b, err := base64.StdEncoding.DecodeString(k.Secret); err != nil || len(b) == 0 {
		return fmt.Errorf("key %s: the secret is not base64", k.Name) // the error would show parts of it
	}
	return nil
}

// RFC2136Options says which servers to update and how.
type RFC2136Options struct {
	Servers []string      // host, host:port or [address]:port; the first one is asked while it answers
	Zones   []rota.Name   // that the servers are known to hold; names outside are looked up by SOA
	Key     *Key          // nil: messages are not signed
	OldKey  *Key          // used while a server does not know Key yet, for a roll-over without a gap; nil: none
	Timeout time.Duration // of one exchange with one server; 0: 3 seconds
	// Stream sends everything over TCP. Otherwise what fits a datagram goes by UDP, and answers that do not fit are asked for by TCP.
	Stream bool
	// PlainReads leaves queries unsigned, for servers whose view or policy for the key differs from everybody's.
	PlainReads bool
	// NoTransfer never reads a whole zone by AXFR, however many of its names are wanted.
	NoTransfer bool
}

// RFC2136 is a Backend that speaks DNS UPDATE (RFC 2136) to authoritative servers, signed by TSIG.
type RFC2136 struct {
	o       RFC2136Options
	writes  []*road
	reads   []*road
	current atomic.Int64 // road that brought an answer last
	since   atomic.Int64 // unix nanoseconds of when current left the first one
	whole   transfers
	total   func(keys int) time.Duration // that one Read may take
}

// serverRest is how long a server that did not answer is passed over.
const serverRest = 15 * time.Second

// NewRFC2136 checks the options. It does not reach out.
func NewRFC2136(o RFC2136Options) (*RFC2136, error) {
	o.Timeout = cmp.Or(o.Timeout, 3*time.Second)
	if len(o.Servers) == 0 {
		return nil, errors.New("rfc2136: no server is configured")
	}
	keys := []*Key{o.Key}
	if o.OldKey != nil {
		if o.Key == nil {
			return nil, errors.New("rfc2136: an old key without a new one: messages are never sent unsigned because a key is not known")
		}
		keys = append(keys, o.OldKey)
	}
	for _, k := range keys {
		if k == nil {
			continue
		}
		if err := k.validate(); err != nil {
			return nil, fmt.Errorf("rfc2136: %w", err)
		}
	}
	b := &RFC2136{o: o, whole: transfers{off: o.NoTransfer}, total: readTime}
	for _, s := range o.Servers {
		addr, err := serverAddress(s)
		if err != nil {
			return nil, fmt.Errorf("rfc2136: %w", err)
		}
		for _, k := range keys {
			b.writes = append(b.writes, &road{server: addr, key: k, timeout: o.Timeout, stream: o.Stream})
			read := &road{server: addr, key: k, timeout: o.Timeout, stream: o.Stream}
			if o.PlainReads {
				read.key = nil
			}
			b.reads = append(b.reads, read)
		}
	}
	return b, nil
}

// serverAddress adds the port when there is none.
func serverAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), "53"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("server %q: port %q is not a number from 1 to 65535", s, port)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if _, nerr := rota.ParseName(host); nerr != nil || strings.Contains(host, ":") {
			return "", fmt.Errorf("server %q: want an address or a host name, with or without a port", s)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// ask exchanges a message with the current server, and with the next ones while there is trouble on the way to it. While a key is
// rolled, a server that does not know the one is asked with the other.
func (b *RFC2136) ask(ctx context.Context, roads []*road, m *dns.Msg) (*dns.Msg, *road, error) {
	first := b.first()
	var last error
	for i := range roads {
		at := (first + i) % len(roads)
		answer, err := roads[at].exchange(ctx, m)
		if err == nil {
			if int64(at) != b.current.Swap(int64(at)) {
				b.since.Store(time.Now().UnixNano())
			}
			return answer, roads[at], nil
		}
		if r := ReasonOf(err); last == nil || r.InDoubt {
			last = err
		}
		if ctx.Err() != nil || !ReasonOf(err).Transient && !b.otherKey(err) {
			break
		}
	}
	return nil, nil, last
}

// first is the road to begin with.
func (b *RFC2136) first() int {
	at := int(b.current.Load())
	if time.Since(time.Unix(0, b.since.Load())) > serverRest {
		return 0
	}
	return at
}

// otherKey reports whether an error may be because the server does not know the key, and there is another one.
func (b *RFC2136) otherKey(err error) bool {
	if b.o.OldKey == nil {
		return false
	}
	switch ReasonOf(err).Code {
	case CodeBadKey, CodeBadSig, CodeNotAuth, CodeRefused: // PowerDNS refuses whatever is wrong with a key
		return true
	}
	return false
}

// Capabilities says that the server itself decides on every message, whole.
func (b *RFC2136) Capabilities() Capabilities { return Capabilities{Fence: FenceServer, Atomic: true} }

func query(name rota.Name, t rota.Type) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name.String(), uint16(t))
	m.RecursionDesired = false
	m.SetEdns0(udpSize, false)
	return m
}

// Zone returns the longest of the configured zones that holds the name, or asks for the SOA above it.
func (b *RFC2136) Zone(ctx context.Context, name rota.Name) (rota.Name, error) {
	if z, ok := rota.LongestZone(name, b.o.Zones); ok {
		return z, nil
	}
	none := &Reason{
		Code: CodeNoZone, Name: name, Text: "the server has no zone for it",
		Advice: "configure the zone, or a server that holds it",
	}
	answer, road, err := b.ask(ctx, b.reads, query(name, rota.TypeSOA))
	if err != nil {
		if r := ReasonOf(err); r.Code == CodeRefused {
			none.Server = r.Server // Knot does not sign that it has no such zone
			return "", none
		}
		return "", err
	}
	none.Server = road.server
	switch answer.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeRefused, dns.RcodeNotAuth:
		return "", none
	default:
		r := road.explain(answer, answer.Rcode, 0)
		r.Name = name
		return "", r
	}
	if !answer.Authoritative {
		return "", none
	}
	for _, rr := range slices.Concat(answer.Answer, answer.Ns) {
		if owner, err := rota.ParseName(rr.Header().Name); err == nil && owner == name && name != "." && rr.Header().Rrtype == dns.TypeCNAME {
			return b.Zone(ctx, name.Parent()) // the SOA is that of where it leads; it is no apex itself (RFC 1034 §3.6.2)
		}
		if soa, ok := rr.(*dns.SOA); ok {
			if zone, err := rota.ParseName(soa.Hdr.Name); err == nil && name.In(zone) {
				return zone, nil
			}
		}
	}
	return "", none
}

// readers is how many queries are under way at once.
const readers = 16

// readTime bounds one Read in all: a server that answers each question just in time must not keep a zone from its newest state for hours.
func readTime(keys int) time.Duration { return readWithin + time.Duration(keys)*20*time.Millisecond }

// Read asks for each key by itself: no transfer has to be allowed, and its cost grows with what rota keeps, not with the zone. Where a
// transfer is allowed and costs less it is one message for all.
func (b *RFC2136) Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	total := b.total(len(keys))
	end := time.Now().Add(total)
	bounded, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	out, err := b.readAll(bounded, zone, keys)
	if err != nil && ctx.Err() == nil && !time.Now().Before(end) {
		return Reading{}, &Reason{
			Code: CodeUnreachable, Transient: true, Zone: zone, Text: fmt.Sprintf("%d RRsets could not be read within %v", len(keys), total),
			Advice: "the server or the way to it is slow: allow transfers of the zone, or ask a server that is nearer",
		}
	}
	return out, err
}

func (b *RFC2136) readAll(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	whole, single := b.whole.worth(zone, keys)
	if len(whole) > 0 {
		out, err := b.reads[b.first()].transfer(ctx, zone, whole)
		switch {
		case ctx.Err() != nil:
			return Reading{}, context.Cause(ctx)
		case err != nil:
			b.whole.rest(zone)
			single = keys
		case len(single) == 0:
			return out, nil
		default:
			rest, err := b.readEach(ctx, zone, single)
			if err != nil {
				return Reading{}, err
			}
			b.whole.saw(single, rest.Blocked)
			maps.Copy(out.Blocked, rest.Blocked)
			out.Sets = append(out.Sets, rest.Sets...)
			return out, nil
		}
	}
	out, err := b.readEach(ctx, zone, single)
	if err == nil {
		b.whole.saw(single, out.Blocked)
	}
	return out, err
}

// readEach asks for each key by itself.
func (b *RFC2136) readEach(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	whole := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type finding struct {
		sets    []rota.RRset
		blocked *Reason
	}
	found := make([]finding, len(keys))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(readers, len(keys)) {
		wg.Go(func() {
			roads := make([]*road, len(b.reads))
			for i, r := range b.reads {
				roads[i] = r.reused()
				defer roads[i].close()
			}
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(keys) {
					return
				}
				answer, road, err := b.ask(ctx, roads, query(keys[i].Name, keys[i].Type))
				if err == nil {
					found[i].sets, found[i].blocked, err = road.read(answer, zone, keys[i])
				}
				if err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return Reading{}, b.missing(whole, zone, err)
	}
	out := Reading{Blocked: map[rota.Name]*Reason{}}
	seen := map[rota.Key]bool{}
	for i, f := range found {
		if f.blocked != nil {
			out.Blocked[keys[i].Name] = f.blocked
		}
		for _, s := range f.sets {
			if !seen[s.Key()] {
				seen[s.Key()] = true
				out.Sets = append(out.Sets, s)
			}
		}
	}
	return out, b.wildcards(ctx, zone, &out)
}

// missing finds out whether the zone is the trouble: then the reason says so.
func (b *RFC2136) missing(ctx context.Context, zone rota.Name, err error) error {
	r := ReasonOf(err)
	if r.Code != CodeRefused && r.Code != CodeLame && r.Code != CodeNotAuth && r.Code != CodeServfail {
		return err
	}
	answer, _, qerr := b.ask(ctx, b.reads, query(zone, rota.TypeSOA))
	says := "an unsigned refusal"
	switch {
	case qerr != nil && ReasonOf(qerr).Code != CodeRefused, qerr == nil && answer.Rcode == dns.RcodeSuccess && answer.Authoritative:
		return err
	case qerr == nil:
		says = dns.RcodeToString[answer.Rcode]
	}
	return &Reason{
		Code: CodeNoZone, Zone: zone, Server: r.Server,
		Text:   fmt.Sprintf("the server does not hold the zone, or not for this key (%s when asked for its SOA)", says),
		Advice: "create the zone there, or configure the server that holds it; rota never creates zones",
	}
}

// read takes the RRset out of an answer that was accepted. Records of other names are not looked at.
func (r *road) read(answer *dns.Msg, zone rota.Name, k rota.Key) ([]rota.RRset, *Reason, error) {
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		why := r.explain(answer, answer.Rcode, 0)
		why.Zone = zone
		return nil, nil, why
	}
	for _, rr := range slices.Concat(answer.Answer, answer.Ns) {
		owner, err := rota.ParseName(rr.Header().Name)
		if err != nil || !k.Name.In(owner) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.DNAME:
			return nil, redirected(k.Name, owner, rr.Target, r.server), nil
		case *dns.NS:
			if owner != zone && owner.In(zone) && !answer.Authoritative {
				return nil, delegated(k.Name, owner, r.server), nil
			}
		case *dns.SOA:
			if owner != zone && owner.In(zone) {
				return nil, &Reason{
					Code: CodeDelegated, Name: k.Name, Server: r.server, Text: fmt.Sprintf("it is in the zone %s of the same server", owner.Short()),
					Advice: "configure that zone for the service",
				}, nil
			}
		}
	}
	if !answer.Authoritative {
		return nil, nil, &Reason{
			Code: CodeLame, Zone: zone, Server: r.server, Text: "the server is not authoritative for the zone",
			Advice: "configure a primary server of the zone, not a resolver",
		}
	}
	sets := map[rota.Type]*rota.RRset{}
	for _, rr := range answer.Answer {
		h := rr.Header()
		t := rota.Type(h.Rrtype)
		owner, err := rota.ParseName(h.Name)
		if err != nil || owner != k.Name || h.Class != dns.ClassINET || t != k.Type && t != rota.TypeCNAME {
			continue
		}
		s := sets[t]
		if s == nil {
			s = &rota.RRset{Name: k.Name, Type: t, TTL: h.Ttl}
			sets[t] = s
		}
		data, err := rdata(rr)
		if err != nil {
			return nil, nil, &Reason{
				Code: CodeMalformed, Zone: zone, Name: k.Name, Server: r.server, Text: rota.CleanReason("%v", err), Transient: true,
			}
		}
		s.TTL = min(s.TTL, h.Ttl)
		s.Data = append(s.Data, data)
	}
	var out []rota.RRset
	for _, t := range []rota.Type{k.Type, rota.TypeCNAME} {
		if s := sets[t]; s != nil {
			slices.Sort(s.Data)
			s.Data = slices.Compact(s.Data)
			out = append(out, *s)
			delete(sets, t)
		}
	}
	return out, nil, nil
}

// redirected says that a DNAME above a name is in its way.
func redirected(name, at rota.Name, target, server string) *Reason {
	return &Reason{
		Code: CodeDNAME, Name: name, Server: server,
		Text:   fmt.Sprintf("a DNAME at %s redirects it to %s", at.Short(), rota.CleanReason("%s", target)),
		Advice: "remove the DNAME, or take the service out of rota",
	}
}

// delegated says that a name is in another zone.
func delegated(name, at rota.Name, server string) *Reason {
	return &Reason{
		Code: CodeDelegated, Name: name, Server: server, Text: fmt.Sprintf("%s is delegated to other name servers", at.Short()),
		Advice: "publish it to the servers of that zone, or remove the delegation",
	}
}

// rdata returns a record's data in the canonical form of rota.RRset.
func rdata(rr dns.RR) (string, error) {
	switch rr := rr.(type) {
	case *dns.A:
		if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
			return a.String(), nil
		}
		return "", fmt.Errorf("an A record without an address")
	case *dns.AAAA:
		if a, ok := netip.AddrFromSlice(rr.AAAA.To16()); ok {
			return a.String(), nil
		}
		return "", fmt.Errorf("an AAAA record without an address")
	case *dns.CNAME:
		n, err := rota.ParseName(rr.Target)
		return n.String(), err
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String()), nil
}

// wildcards takes out of a reading what a wildcard answered: there is no RRset to change at those names (RFC 4592 §2.2). A name whose
// data equals the wildcard's is settled by the server itself, with an UPDATE that only asks.
func (b *RFC2136) wildcards(ctx context.Context, zone rota.Name, have *Reading) error {
	type at struct {
		name rota.Name
		typ  rota.Type
	}
	stars := map[at]rota.RRset{}
	star := func(name rota.Name, t rota.Type) (rota.RRset, error) {
		k := at{name, t}
		if s, ok := stars[k]; ok {
			return s, nil
		}
		answer, road, err := b.ask(ctx, b.reads, query(name, t))
		if err != nil {
			return rota.RRset{}, err
		}
		s := rota.RRset{}
		if sets, blocked, err := road.read(answer, zone, rota.Key{Name: name, Type: t}); err == nil && blocked == nil && len(sets) > 0 {
			s = sets[0]
		}
		stars[k] = s
		return s, nil
	}
	var err error
	have.Sets = slices.DeleteFunc(have.Sets, func(s rota.RRset) bool {
		for p := s.Name.Parent(); err == nil && s.Name != zone && p.In(zone); p = p.Parent() {
			var w rota.RRset
			if w, err = star(p.Wildcard(), s.Type); err == nil && w.Name != s.Name && w.Type == s.Type && slices.Equal(w.Data, s.Data) {
				var own bool
				own, err = b.exists(ctx, zone, s.Key())
				return err == nil && !own
			}
			if p == zone {
				break
			}
		}
		return false
	})
	return err
}

// exists asks whether an RRset is there by itself, by an UPDATE with a prerequisite and nothing to do (RFC 2136 §2.4.1).
func (b *RFC2136) exists(ctx context.Context, zone rota.Name, k rota.Key) (bool, error) {
	m := new(dns.Msg)
	m.SetUpdate(zone.String())
	m.RRsetUsed([]dns.RR{&dns.ANY{Hdr: header(k, 0)}})
	answer, road, err := b.ask(ctx, b.writes, m)
	if err != nil {
		return false, err
	}
	switch answer.Rcode {
	case dns.RcodeSuccess:
		return true, nil
	case dns.RcodeNXRrset:
		return false, nil
	}
	return false, road.explain(m, answer.Rcode, 0)
}

func header(k rota.Key, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: k.Name.String(), Rrtype: uint16(k.Type), Class: dns.ClassINET, Ttl: ttl}
}

// records turns an RRset into records.
func records(s rota.RRset) ([]dns.RR, error) {
	out := make([]dns.RR, 0, len(s.Data))
	h := header(s.Key(), s.TTL)
	for _, d := range s.Data {
		switch s.Type {
		case rota.TypeA, rota.TypeAAAA:
			a, err := netip.ParseAddr(d)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Key(), err)
			}
			if s.Type == rota.TypeA {
				out = append(out, &dns.A{Hdr: h, A: a.AsSlice()})
			} else {
				out = append(out, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
			}
		case rota.TypeCNAME:
			n, err := rota.ParseName(d)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Key(), err)
			}
			out = append(out, &dns.CNAME{Hdr: h, Target: n.String()})
		default:
			rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", s.Name, s.TTL, s.Type, d))
			if err != nil || rr == nil {
				return nil, fmt.Errorf("%s: %q is not the data of a record: %w", s.Key(), d, err)
			}
			out = append(out, rr)
		}
	}
	return out, nil
}

// prerequisite makes what has a server carry out an UPDATE only while the RRset is this, TTL aside (RFC 2136 §2.4.2 and §2.4.3).
func prerequisite(s rota.RRset) ([]dns.RR, error) {
	if len(s.Data) == 0 {
		return []dns.RR{&dns.ANY{Hdr: classHeader(s.Key(), dns.ClassNONE)}}, nil
	}
	out, err := records(s)
	for _, rr := range out {
		rr.Header().Ttl = 0
	}
	return out, err
}

// classHeader is the header of a record that stands for a whole RRset.
func classHeader(k rota.Key, class uint16) dns.RR_Header {
	return dns.RR_Header{Name: k.Name.String(), Rrtype: uint16(k.Type), Class: class}
}

// maxUpdate bounds an UPDATE, in octets before compression; what a message can hold (RFC 1035 §4.2.2) less room for the signature.
const maxUpdate = dns.MaxMsgSize - 1024

// Write sends one UPDATE.
func (b *RFC2136) Write(ctx context.Context, batch Batch) (int, error) {
	m, n, err := update(batch)
	if err != nil {
		return 0, err
	}
	if err := b.alone(ctx, batch.Zone, batch.Changes[:n]); err != nil {
		return n, err
	}
	answer, road, err := b.ask(ctx, b.writes, m)
	if err != nil {
		return n, err
	}
	switch answer.Rcode {
	case dns.RcodeSuccess:
		return n, nil
	case dns.RcodeNXRrset, dns.RcodeYXRrset, dns.RcodeNameError, dns.RcodeYXDomain:
		return n, ErrMoved
	}
	return n, road.explain(m, answer.Rcode, 0)
}

// update makes the message for as many leading changes as fit: first what must be there, then all that goes, then all that comes
// (RFC 2136 §3.4.2 works in that order, so that a CNAME never meets what it replaces). An RRset that stays in part is removed and
// added whole: Knot keeps the old TTL of records that it already has.
func update(batch Batch) (*dns.Msg, int, error) {
	m := new(dns.Msg)
	m.SetUpdate(batch.Zone.String())
	m.Compress = true
	var require, remove, add []dns.RR
	size := 12 + len(batch.Zone) + 6
	include := func(c rota.Change) error {
		must, err := prerequisite(c.Old)
		if err != nil {
			return err
		}
		fresh, err := records(c.New)
		if err != nil {
			return err
		}
		require = append(require, must...)
		if len(c.Old.Data) > 0 {
			remove = append(remove, &dns.ANY{Hdr: classHeader(c.Key(), dns.ClassANY)})
		}
		add = append(add, fresh...)
		return nil
	}
	if batch.Fence.Key().Name != "" {
		if err := include(batch.Fence); err != nil {
			return nil, 0, &Reason{Code: CodeInternal, Zone: batch.Zone, Text: err.Error()}
		}
	}
	measure := func() int {
		total := size
		for _, rrs := range [][]dns.RR{require, remove, add} {
			for _, rr := range rrs {
				total += dns.Len(rr)
			}
		}
		return total
	}
	used, n := measure(), 0
	for changes := range byName(batch.Changes) {
		r, d, a := len(require), len(remove), len(add)
		for _, c := range changes {
			if err := include(c); err != nil {
				return nil, 0, &Reason{Code: CodeInternal, Zone: batch.Zone, Name: c.Key().Name, Text: rota.CleanReason("%v", err)}
			}
		}
		for _, rrs := range [][]dns.RR{require[r:], remove[d:], add[a:]} {
			for _, rr := range rrs {
				used += dns.Len(rr)
			}
		}
		if used > maxUpdate {
			if n == 0 {
				return nil, len(changes), &Reason{
					Code: CodeTooLarge, Zone: batch.Zone, Name: changes[0].Key().Name,
					Text:   "its records do not fit in one UPDATE, and they are only ever changed together",
					Advice: "give the service fewer endpoints, or limit policy.answers",
				}
			}
			require, remove, add = require[:r], remove[:d], add[:a]
			break
		}
		n += len(changes)
	}
	m.Answer = require
	m.Ns = append(remove, add...)
	return m, n, nil
}

// alone makes sure that every new CNAME would stand alone once the changes are made: servers agree to a CNAME beside other data and
// leave it out (RFC 2136 §3.4.2.2), and what it should have replaced would be gone.
func (b *RFC2136) alone(ctx context.Context, zone rota.Name, changes []rota.Change) error {
	for _, c := range changes {
		if c.Key().Type == rota.TypeCNAME && len(c.New.Data) > 0 && len(c.Old.Data) == 0 {
			if err := b.aloneAt(ctx, zone, c.Key().Name, changes); err != nil {
				return err
			}
		}
	}
	return nil
}

// aloneAt looks for what else a name holds and keeps. ANY over TCP shows everything on BIND, Knot and PowerDNS; for servers that
// answer it in part (RFC 8482) the usual types are asked one by one.
func (b *RFC2136) aloneAt(ctx context.Context, zone, name rota.Name, changes []rota.Change) error {
	reason := func(t rota.Type) error {
		return &Reason{
			Code: CodeOther, Zone: zone, Name: name, Text: fmt.Sprintf("a CNAME cannot stand beside the %s records there (RFC 1034 §3.6.2)", t),
			Advice: "remove those records, or choose another safety.on_all_down than fallback",
		}
	}
	if name == zone {
		return reason(rota.TypeSOA)
	}
	const typeHTTPS, typeCAA = rota.Type(dns.TypeHTTPS), rota.Type(dns.TypeCAA)
	types := []rota.Type{
		rota.Type(dns.TypeANY), rota.TypeTXT, rota.TypeMX, rota.TypeSRV, rota.TypePTR, rota.TypeA, rota.TypeAAAA, typeHTTPS, typeCAA,
	}
	for _, t := range types {
		q := query(name, t)
		answer, _, err := b.askTCP(ctx, q, t == rota.Type(dns.TypeANY))
		if err != nil {
			return err
		}
		for _, rr := range answer.Answer {
			owner, err := rota.ParseName(rr.Header().Name)
			if err != nil || owner != name {
				continue
			}
			at := rota.Type(rr.Header().Rrtype)
			switch uint16(at) {
			case dns.TypeRRSIG, dns.TypeNSEC, dns.TypeCNAME, dns.TypeHINFO:
				continue // what a CNAME may stand beside, and the stand-in of RFC 8482
			}
			goes := slices.ContainsFunc(changes, func(c rota.Change) bool {
				return c.Key() == rota.Key{Name: name, Type: at} && len(c.New.Data) == 0
			})
			if !goes {
				return reason(at)
			}
		}
	}
	return nil
}

// askTCP is ask for a query, over TCP only when tcp is set.
func (b *RFC2136) askTCP(ctx context.Context, m *dns.Msg, tcp bool) (*dns.Msg, *road, error) {
	if !tcp {
		return b.ask(ctx, b.reads, m)
	}
	roads := make([]*road, len(b.reads))
	for i, r := range b.reads {
		c := *r
		c.stream = true
		roads[i] = &c
	}
	return b.ask(ctx, roads, m)
}
