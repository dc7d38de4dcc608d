package witness

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Code sorts findings for machines.
type Code string

// The codes. They are stable: metrics, the API and tests use them.
const (
	CodeStuck       Code = "stuck-secondary"     // a server follows no more
	CodeLame        Code = "lame"                // a server that is named and does not answer for the zone
	CodeNoTCP       Code = "unreachable-tcp"     // UDP is answered and TCP is not
	CodeNoUDP       Code = "unreachable-udp"     // TCP is answered and UDP is not
	CodeForeign     Code = "foreign-data"        // somebody else writes
	CodeSplit       Code = "split-view"          // one serial, different data
	CodeDelegation  Code = "delegation-mismatch" // the parent names other servers than the zone does
	CodeWrongDS     Code = "wrong-ds"            // the parent vouches for keys that the zone does not have
	CodeMissingZone Code = "missing-zone"        // nobody has the zone
	CodeBack        Code = "serial-back"         // an older version of the zone is served again
)

// Codes lists all codes.
func Codes() []Code {
	return []Code{
		CodeStuck, CodeLame, CodeNoTCP, CodeNoUDP, CodeForeign, CodeSplit, CodeDelegation, CodeWrongDS, CodeMissingZone, CodeBack,
	}
}

// Finding is one thing that is wrong.
type Finding struct {
	Code      Code
	Publisher string
	Zone      rota.Name
	Server    string    // as Server.String; empty: the zone as a whole
	Transport Transport // empty: either
	Key       rota.Key  // the RRset it shows at; zero: none
	Since     time.Time // when it was first seen
	Text      string
	Advice    string
}

// condition names what may be wrong, so that it can be told since when.
type condition struct {
	code   Code
	addr   netip.AddrPort // zero: the zone as a whole
	key    rota.Key
	serial uint32 // a server that moves on is not stuck where it was
}

// remark is what is said of a condition.
type remark struct {
	transport    Transport
	text, advice string
	after        time.Duration // how long it must hold; in any case over two rounds and for confirm
	doubt        bool          // it may be this machine's own fault: it is looked at, and not told
}

// held is a condition that holds.
type held struct {
	remark
	since time.Time
	round uint64 // of its server, when it was first seen
	shown bool
}

// view is what is known of a zone at one moment.
type view struct {
	zone       rota.Name
	servers    []*watched // sorted by address
	delegation *Delegation
	expects    map[rota.Key]*Expect
	waiting    []*follow
	within     time.Duration
	found      map[condition]remark
}

// judge finds what is wrong now. z.mu is held.
func (z *zone) judge(now time.Time) {
	v := view{
		zone: z.id.zone, delegation: &z.delegation, expects: z.expects, waiting: z.waiting, within: z.subject.Within,
		servers: slices.SortedFunc(maps.Values(z.servers), func(a, b *watched) int { return a.Addr.Compare(b.Addr) }),
	}
	v.conditions()
	for c, r := range v.found {
		h := z.conditions[c]
		if h == nil {
			h = &held{since: now}
			if s := z.servers[c.addr]; s != nil {
				h.round = s.round
				s.wake() // it is to be confirmed, whoever brought it up
			}
			z.conditions[c] = h
		}
		h.remark = r
		s := z.servers[c.addr]
		h.shown = h.shown || s == nil || !r.doubt && s.round > h.round && now.Sub(h.since) >= max(confirm, r.after)
	}
	maps.DeleteFunc(z.conditions, func(c condition, _ *held) bool { _, ok := v.found[c]; return !ok })
	was := z.findings
	z.findings = nil
	for c, h := range z.conditions {
		if !h.shown {
			continue
		}
		f := Finding{
			Code: c.code, Publisher: z.id.publisher, Zone: z.id.zone, Transport: h.transport, Key: c.key, Since: h.since, Text: h.text, Advice: h.advice,
		}
		if s := z.servers[c.addr]; s != nil {
			f.Server = s.String()
		} else if c.key.Type == 0 {
			f.Server = c.key.Name.Short()
		}
		z.findings = append(z.findings, f)
	}
	slices.SortFunc(z.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Server, b.Server), compareKeys(a.Key, b.Key))
	})
	z.tell(was)
	if v.agreed() && z.accustomed(now) {
		for _, s := range z.servers {
			s.known = false
		}
	}
}

// accustomed reports whether nothing is wrong but that serials went back, and that for long: a zone that begins anew everywhere is
// taken as it is.
func (z *zone) accustomed(now time.Time) bool {
	for c, h := range z.conditions {
		if c.code != CodeBack || now.Sub(h.since) < z.subject.Every {
			return false
		}
	}
	return len(z.conditions) > 0
}

// tell logs what is new and what is over, once.
func (z *zone) tell(was []Finding) {
	same := func(f Finding) func(Finding) bool {
		return func(o Finding) bool {
			return o.Code == f.Code && o.Server == f.Server && o.Key == f.Key && o.Since.Equal(f.Since)
		}
	}
	for _, f := range z.findings {
		if !slices.ContainsFunc(was, same(f)) {
			z.w.o.Log.Warn("seen from outside", "publisher", f.Publisher, "zone", f.Zone.Short(), "code", string(f.Code), "server", f.Server,
				"finding", f.Text, "advice", f.Advice)
		}
	}
	for _, f := range was {
		if !slices.ContainsFunc(z.findings, same(f)) {
			z.w.o.Log.Info("no longer seen from outside", "publisher", f.Publisher, "zone", f.Zone.Short(), "code", string(f.Code), "server", f.Server)
		}
	}
}

// conditions finds everything that is wrong, by what was last seen.
func (v *view) conditions() {
	v.found = map[condition]remark{}
	for _, s := range v.servers {
		v.reach(s)
		v.serials(s)
	}
	v.data()
	v.missing()
	v.delegated()
	v.signed()
}

func (v *view) add(c condition, r remark) { v.found[c] = r }

// serial returns the version of the zone that a server has, as far as it said.
func (s *watched) serial() (uint32, bool) {
	for _, t := range []Transport{UDP, TCP} {
		if x := s.sight[t]; x.Zone {
			return x.Serial, true
		}
	}
	return 0, false
}

// newest returns the server with the highest serial and that serial; nil when no server said one.
func (v *view) newest() (best *watched, top uint32) {
	for _, s := range v.servers {
		if n, ok := s.serial(); ok && (best == nil || newer(n, top)) {
			best, top = s, n
		}
	}
	return best, top
}

// reach judges whether a server answers for the zone, over both transports. That this machine cannot ask says nothing of it.
func (v *view) reach(s *watched) {
	udp, tcp := s.sight[UDP], s.sight[TCP]
	if udp.At.IsZero() || tcp.At.IsZero() {
		return
	}
	here := condition{addr: s.Addr}
	is := func(code Code, r remark) {
		here.code = code
		v.add(here, r)
	}
	switch {
	case udp.Trouble == Blind && tcp.Trouble == Blind:
		return
	case udp.Trouble != "" && tcp.Trouble != "":
		is(CodeLame, remark{
			doubt:  s.alone && udp.Trouble != Closed && tcp.Trouble != Closed,
			text:   fmt.Sprintf("does not answer: UDP %s, TCP %s (%s)", udp.Trouble, tcp.Trouble, tcp.Text),
			advice: "start it, or let port 53 through; when it is gone for good, take it out of the NS records of the zone and of its parent",
		})
		return
	case tcp.Trouble != "" && tcp.Trouble != Blind:
		is(CodeNoTCP, remark{
			transport: TCP, text: fmt.Sprintf("answers over UDP and not over TCP: %s (%s)", tcp.Trouble, tcp.Text),
			advice: "let TCP port 53 through as well: long answers, zone transfers and resolvers under attack need it (RFC 7766)",
		})
	case udp.Trouble != "" && udp.Trouble != Blind:
		is(CodeNoUDP, remark{
			transport: UDP, text: fmt.Sprintf("answers over TCP and not over UDP: %s (%s)", udp.Trouble, udp.Text),
			advice: "let UDP port 53 through: resolvers ask over UDP first",
		})
	}
	for _, x := range []*Sight{udp, tcp} {
		switch {
		case x.Trouble != "" || x.Zone:
		case x.Above:
			is(CodeMissingZone, remark{
				text:   "has the zone above and not " + v.zone.Short() + ": it says that the zone does not exist",
				advice: "create the zone there, or take the server out of the NS records",
			})
		default:
			is(CodeLame, remark{
				text:   fmt.Sprintf("is named for the zone and does not answer for it: %s, %s", dns.RcodeToString[x.Rcode], authority(x.AA)),
				advice: "configure the zone there, see why it did not load or expired, or take the server out of the NS records",
			})
		}
	}
}

func authority(aa bool) string {
	if aa {
		return "authoritative and without an SOA record"
	}
	return "not authoritative"
}

// serials judges the version that a server has.
func (v *view) serials(s *watched) {
	n, ok := s.serial()
	if !ok {
		return
	}
	if s.known && newer(s.top, n) {
		v.add(condition{code: CodeBack, addr: s.Addr}, remark{
			text:   fmt.Sprintf("serial %d after %d: an older version of the zone is served", n, s.top),
			advice: "a backup was probably restored; raise the serial above the old one, for servers that transfer the zone wait for that",
		})
	}
	if best, top := v.newest(); newer(top, n) {
		v.add(condition{code: CodeStuck, addr: s.Addr, serial: n}, remark{
			after: v.within,
			text:  fmt.Sprintf("stays at serial %d while %s has %d", n, best, top),
			advice: "see its log for refused or failing transfers and whether NOTIFY reaches it; when the two are kept apart and count on their own, " +
				"name the servers of each publisher under proof",
		})
	}
}

// seenBy is one answer with where it came from.
type seenBy struct {
	*watched
	transport Transport
	*Answer
}

// data judges what servers say of the RRsets that are kept.
func (v *view) data() {
	byKey := map[rota.Key][]seenBy{}
	for _, s := range v.servers {
		for _, t := range []Transport{UDP, TCP} {
			if s.sight[t].Trouble != "" {
				continue
			}
			for k, a := range s.sight[t].Sets {
				if v.expects[k] != nil && !a.Cut {
					byKey[k] = append(byKey[k], seenBy{s, t, a})
				}
			}
		}
	}
	for k, all := range byKey {
		e := v.expects[k]
		slices.SortStableFunc(all, func(a, b seenBy) int { return a.Addr.Compare(b.Addr) })
		like := all[0]
		if i := slices.IndexFunc(all, func(x seenBy) bool { return e.right(*x.Answer) }); i >= 0 {
			like = all[i]
		}
		for _, x := range all {
			v.datum(k, e, x, like)
		}
	}
}

// datum judges one answer beside one that is right, or beside the first when none is.
func (v *view) datum(k rota.Key, e *Expect, x, like seenBy) {
	says := strings.Join(x.Data, " ")
	if says == "" {
		says = "nothing"
	}
	best, top := v.newest()
	switch {
	case x.Rcode != dns.RcodeSuccess && x.Rcode != dns.RcodeNameError:
		v.add(condition{code: CodeLame, addr: x.watched.Addr, key: k}, remark{
			transport: x.transport, text: fmt.Sprintf("answers %s for %s, though it has the zone", dns.RcodeToString[x.Rcode], k),
			advice: "see its log",
		})
	case !e.Some && x.Serial == like.Serial && !slices.Equal(x.Data, like.Data):
		v.add(condition{code: CodeSplit, addr: x.watched.Addr, key: k}, remark{
			transport: x.transport, after: v.within,
			text: rota.CleanReason("answers %s for %s over %s, and %s over %s answers %s, both at serial %d", says, k, x.transport, like.watched, like.transport,
				strings.Join(like.Data, " "), x.Serial),
			advice: "look for views, for an anycast or balanced address with unequal servers behind it, and for a zone that was edited without a new serial",
		})
	case e.right(*x.Answer), best != nil && newer(top, x.Serial):
	default:
		if f := e.foreign(*x.Answer); len(f) > 0 {
			v.add(condition{code: CodeForeign, addr: x.watched.Addr, key: k}, remark{
				transport: x.transport,
				text:      rota.CleanReason("answers %s for %s at serial %d, which rota neither wants nor wanted", strings.Join(f, " "), k, x.Serial),
				advice:    "find out who else writes the zone; rota puts right what its publisher reaches",
			})
			return
		}
		if slices.ContainsFunc(v.waiting, func(f *follow) bool { return f.Expect.Key == k }) {
			v.add(condition{code: CodeStuck, addr: x.watched.Addr, key: k}, remark{
				transport: x.transport, after: v.within,
				text:   rota.CleanReason("still answers %s for %s", says, k),
				advice: "see whether changes reach it: transfers, NOTIFY, or the provider's own propagation",
			})
		}
	}
}

// missing judges whether the zone is anywhere.
func (v *view) missing() {
	if v.delegation.Missing {
		v.add(condition{code: CodeMissingZone}, remark{
			text:   "the parent says that there is no " + v.zone.Short(),
			advice: "delegate the zone: nobody finds it as it is",
		})
		return
	}
	answered := false
	for _, s := range v.servers {
		if !s.mute() {
			return
		}
		answered = answered || s.sight[UDP].Trouble == "" || s.sight[TCP].Trouble == ""
	}
	if answered {
		v.add(condition{code: CodeMissingZone}, remark{
			text: "no server that answers has the zone", advice: "create the zone at the servers, or name the right ones",
		})
	}
}

// delegated compares the servers that the parent names with those that the zone names.
func (v *view) delegated() {
	for _, name := range v.delegation.Homeless {
		v.add(condition{code: CodeLame, key: rota.Key{Name: rota.Name(name)}}, remark{
			text:   rota.Name(name).Short() + " is named as a server of the zone and has no address",
			advice: "give it an address, or take it out of the NS records of the zone and of its parent",
		})
	}
	if len(v.delegation.NS) == 0 {
		return
	}
	_, top := v.newest()
	for _, s := range v.servers {
		if n, ok := s.serial(); !ok || s.Origin || n != top {
			continue
		}
		own := s.sight[UDP].NS
		if len(own) == 0 {
			own = s.sight[TCP].NS
		}
		if len(own) == 0 || slices.Equal(own, v.delegation.NS) {
			continue
		}
		v.add(condition{code: CodeDelegation}, remark{
			text:   rota.CleanReason("the parent names %s, the zone names %s", short(v.delegation.NS), short(own)),
			advice: "make both the same: change the delegation at the registrar, or the NS records in the zone",
		})
		return
	}
}

func short(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, rota.Name(n).Short())
	}
	return strings.Join(out, " ")
}

// signed judges whether a key of the zone is one that the parent vouches for.
func (v *view) signed() {
	if !v.delegation.Signed {
		return
	}
	for _, s := range v.servers {
		x := s.sight[TCP]
		if !x.Asked || s.Origin || x.Trouble != "" {
			continue
		}
		if !slices.ContainsFunc(v.delegation.DS, func(ds *dns.DS) bool { return matches(ds, x.Keys) }) {
			v.add(condition{code: CodeWrongDS, addr: s.Addr}, remark{
				text: fmt.Sprintf("the parent has DS records (key tags %s) and none of the %d keys of the zone there fits: resolvers that validate answer SERVFAIL",
					tags(v.delegation.DS), len(x.Keys)),
				advice: "put the DS record of the zone's key-signing key at the parent, or remove it there when the zone is no longer signed; caches forget a DS after its TTL",
			})
		}
	}
}

// matches reports whether a DS is that of one of the keys (RFC 4034 §5.1.4).
func matches(ds *dns.DS, keys []*dns.DNSKEY) bool {
	return slices.ContainsFunc(keys, func(k *dns.DNSKEY) bool {
		if k.KeyTag() != ds.KeyTag || k.Algorithm != ds.Algorithm {
			return false
		}
		own := k.ToDS(ds.DigestType)
		return own == nil || strings.EqualFold(own.Digest, ds.Digest) // nil: a digest that is not known here proves nothing
	})
}

func tags(all []*dns.DS) string {
	var out []string
	for _, ds := range all {
		out = append(out, fmt.Sprint(ds.KeyTag))
	}
	return strings.Join(out, " ")
}

// agreed reports whether all servers have one serial.
func (v *view) agreed() bool {
	best, top := v.newest()
	return best != nil && !slices.ContainsFunc(v.servers, func(s *watched) bool { n, ok := s.serial(); return !ok || n != top })
}
