package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// When many names are read, the whole zone comes in one transfer (AXFR, RFC 5936).
const (
	transferFrom    = 200              // keys; fewer are asked one by one
	transferShare   = 20               // most records that a zone may have for each key that is wanted from it
	transferRest    = 10 * time.Minute // after one that the server refused, that failed or that was not worth its cost
	transferWithin  = 30 * time.Second // in all
	transferAsked   = time.Hour        // how long it counts that a name was asked for by itself
	transferUnsaid  = 99               // messages in a row without a signature (RFC 8945 §5.3.1)
	transferRecords = 5_000_000        // in all
)

// transfers says of which zones a transfer is worth trying, and of which names it tells enough: what stands in the way of a name may not
// be in the zone, such as a deeper zone of the same server, so that each name is asked for by itself from time to time.
type transfers struct {
	off bool // never

	mu    sync.Mutex              // guards what follows
	not   map[rota.Name]time.Time // zones, and until when not
	asked map[rota.Key]time.Time  // when a key was asked for by itself
}

// worth parts the keys of a zone in those to take from a transfer and those to ask for one by one.
func (t *transfers) worth(zone rota.Name, keys []rota.Key) (whole, single []rota.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.off || len(keys) < transferFrom || time.Now().Before(t.not[zone]) {
		return nil, keys
	}
	maps.DeleteFunc(t.asked, func(_ rota.Key, at time.Time) bool { return time.Since(at) > transferAsked })
	for _, k := range keys {
		if _, ok := t.asked[k]; ok {
			whole = append(whole, k)
		} else {
			single = append(single, k)
		}
	}
	if len(whole) < transferFrom {
		return nil, keys
	}
	return whole, single
}

// rest gives transfers of a zone up for a while.
func (t *transfers) rest(zone rota.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.not == nil {
		t.not = map[rota.Name]time.Time{}
	}
	t.not[zone] = time.Now().Add(transferRest)
}

// saw notes that keys were asked for one by one, with nothing in the way of those names.
func (t *transfers) saw(keys []rota.Key, blocked map[rota.Name]*Reason) {
	if t.off || len(keys) < transferFrom {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked == nil {
		t.asked = map[rota.Key]time.Time{}
	}
	for _, k := range keys {
		if blocked[k.Name] == nil {
			t.asked[k] = time.Now()
		}
	}
}

// errCostly says that a zone is too large for what is wanted from it.
var errCostly = errors.New("the zone is much larger than what is wanted from it")

// transfer reads the keys out of a transfer of the zone. It is whole or it is an error: when it is cut, refused, or not signed to its last
// message, nothing of it counts.
func (r *road) transfer(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, transferWithin)
	defer cancel()
	m := new(dns.Msg)
	m.SetAxfr(zone.String())
	wire, mac, err := r.sign(m)
	if err != nil {
		return Reading{}, &Reason{Code: CodeInternal, Text: fmt.Sprintf("cannot make the message: %v", err)}
	}
	conn, err := (&net.Dialer{Timeout: r.timeout}).DialContext(ctx, "tcp", r.server)
	if err != nil {
		return Reading{}, r.unreachable(m, err, false)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	conn.SetDeadline(time.Now().Add(r.timeout))
	if err := send(conn, true, wire); err != nil {
		return Reading{}, r.unreachable(m, err, true)
	}
	in := intake{zone: zone, most: min(transferRecords, transferShare*len(keys)), sets: make(map[rota.Key]*rota.RRset, 2*len(keys)), cuts: map[rota.Name]dns.RR{}}
	for _, k := range keys {
		in.want(k)
		in.want(rota.Key{Name: k.Name, Type: rota.TypeCNAME})
	}
	signed := chain{road: r, mac: mac}
	var size [2]byte
	for !in.done {
		conn.SetReadDeadline(time.Now().Add(r.timeout))
		if ctx.Err() != nil {
			conn.SetReadDeadline(time.Unix(1, 0))
		}
		packet, err := receive(conn, true, size[:])
		if err != nil {
			return Reading{}, r.unreachable(m, err, true)
		}
		answer := new(dns.Msg)
		if err := answer.Unpack(packet); err != nil {
			return Reading{}, r.garbled(zone, rota.CleanReason("%v", err))
		}
		if answer.Id != m.Id || !answer.Response || answer.Opcode != dns.OpcodeQuery || answer.Truncated ||
			len(answer.Question) > 1 || len(answer.Question) == 1 && !sameQuestion(answer.Question[0], m.Question[0]) {
			return Reading{}, r.garbled(zone, "it is no answer to the request")
		}
		if answer.Rcode != dns.RcodeSuccess {
			return Reading{}, r.explain(m, answer.Rcode, 0)
		}
		if err := in.take(answer.Answer); err != nil {
			if errors.Is(err, errCostly) {
				return Reading{}, err
			}
			return Reading{}, r.garbled(zone, rota.CleanReason("%v", err))
		}
		if err := signed.next(m, answer, packet, in.done); err != nil {
			return Reading{}, err
		}
	}
	return in.reading(r.server, keys), nil
}

func (r *road) garbled(zone rota.Name, text string) *Reason {
	return &Reason{Code: CodeMalformed, Transient: true, Zone: zone, Server: r.server, Text: "a transfer cannot be read: " + text}
}

// chain verifies the signatures of a transfer: each holds for all messages since the one before (RFC 8945 §5.3.1).
type chain struct {
	road   *road
	mac    string // of the request, then of the last signed message
	begun  bool
	unsaid []byte // messages since then
	count  int
}

// next takes in one message. The first and the last are signed.
func (c *chain) next(m, answer *dns.Msg, packet []byte, last bool) error {
	if c.road.key == nil {
		return nil
	}
	tsig := answer.IsTsig()
	if tsig == nil {
		if !c.begun || last || c.count == transferUnsaid {
			return c.road.forged(m, "is not signed where it must be")
		}
		c.count++
		c.unsaid = append(c.unsaid, packet...)
		return nil
	}
	if dns.CanonicalName(tsig.Hdr.Name) != c.road.key.name() || dns.CanonicalName(tsig.Algorithm) != c.road.key.algorithm() {
		return c.road.forged(m, "is signed with another key")
	}
	between := spliced{Key: c.road.key, at: 2 + len(c.mac)/2, with: c.unsaid}
	// TsigVerifyWithProvider changes what it reads.
	if err := dns.TsigVerifyWithProvider(bytes.Clone(packet), between, c.mac, c.begun); err != nil {
		return c.road.forged(m, "has a wrong signature")
	}
	c.mac, c.begun, c.count, c.unsaid = tsig.MAC, true, 0, c.unsaid[:0]
	return nil
}

// spliced verifies a signature over a message and those before it that have none.
type spliced struct {
	*Key
	at   int // behind the MAC that what is signed begins with
	with []byte
}

// Verify compares the MAC, for the DNS library.
func (s spliced) Verify(msg []byte, t *dns.TSIG) error {
	if len(msg) < s.at {
		return dns.ErrSig
	}
	return s.Key.Verify(slices.Concat(msg[:s.at], s.with, msg[s.at:]), t)
}

// intake keeps of a transfer what is wanted.
type intake struct {
	zone rota.Name
	most int                      // records
	sets map[rota.Key]*rota.RRset // of each key that is wanted; nil: not seen yet
	cuts map[rota.Name]dns.RR     // delegations and DNAMEs

	serial uint32
	count  int
	done   bool
}

func (in *intake) want(k rota.Key) { in.sets[k] = nil }

// take takes in the records of one message. The zone's SOA is the first and the last of all.
func (in *intake) take(rrs []dns.RR) error {
	if len(rrs) == 0 {
		return errors.New("a message without records")
	}
	for _, rr := range rrs {
		if in.done {
			return errors.New("records behind the last one")
		}
		h := rr.Header()
		owner, err := rota.ParseName(h.Name)
		if err != nil {
			return err
		}
		soa, _ := rr.(*dns.SOA)
		switch {
		case h.Class != dns.ClassINET || !owner.In(in.zone):
			return fmt.Errorf("%s is not of the zone", owner.Short())
		case in.count == 0 && (soa == nil || owner != in.zone):
			return errors.New("it does not begin with the zone's SOA")
		case in.count == 0:
			in.serial = soa.Serial
		case soa != nil && owner == in.zone:
			if soa.Serial != in.serial {
				return errors.New("it ends with another serial than it began with")
			}
			in.done = true
		}
		if in.count++; in.count > in.most {
			return errCostly
		}
		if owner != in.zone && (h.Rrtype == dns.TypeNS || h.Rrtype == dns.TypeDNAME) {
			in.cuts[owner] = rr
		}
		k := rota.Key{Name: owner, Type: rota.Type(h.Rrtype)}
		s, wanted := in.sets[k]
		if !wanted {
			continue
		}
		data, err := rdata(rr)
		if err != nil {
			return err
		}
		if s == nil {
			s = &rota.RRset{Name: k.Name, Type: k.Type}
			in.sets[k] = s
		}
		if len(s.Data) == 0 || h.Ttl < s.TTL {
			s.TTL = h.Ttl
		}
		s.Data = append(s.Data, data)
	}
	return nil
}

// reading is what the transfer says of the keys.
func (in *intake) reading(server string, keys []rota.Key) Reading {
	out := Reading{Sets: make([]rota.RRset, 0, len(keys)), Blocked: map[rota.Name]*Reason{}}
	for _, k := range keys {
		for n := k.Name; n != in.zone && n.In(in.zone); n = n.Parent() {
			switch rr := in.cuts[n].(type) {
			case *dns.NS:
				out.Blocked[k.Name] = delegated(k.Name, n, server)
			case *dns.DNAME:
				if n != k.Name {
					out.Blocked[k.Name] = redirected(k.Name, n, rr.Target, server)
				}
			}
		}
		for _, at := range []rota.Key{k, {Name: k.Name, Type: rota.TypeCNAME}} {
			if s := in.sets[at]; s != nil && out.Blocked[k.Name] == nil {
				slices.Sort(s.Data)
				s.Data = slices.Compact(s.Data)
				out.Sets = append(out.Sets, *s)
				delete(in.sets, at)
			}
		}
	}
	return out
}
