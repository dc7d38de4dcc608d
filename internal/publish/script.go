package publish

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// The protocol that scripts and webhooks speak (docs/scripts.md): one request, one reply, both JSON objects. Fields that a side does
// not know are passed over, so that later versions can add some.

// scriptRequest asks for one thing.
type scriptRequest struct {
	Version   int            `json:"version"`
	ID        string         `json:"id"`
	Action    string         `json:"action"`
	Publisher string         `json:"publisher"`
	Zone      rota.Name      `json:"zone,omitempty"`
	Names     []rota.Name    `json:"names,omitzero"`
	Fence     *scriptChange  `json:"fence,omitempty"`
	Changes   []scriptChange `json:"changes,omitzero"`
}

// The actions.
const (
	scriptZones = "zones" // which zones there are
	scriptRead  = "read"  // every record of some names
	scriptWrite = "write" // the fence and the changes, if every old RRset is what there is
)

// scriptVersion is the protocol's.
const scriptVersion = 1

// scriptChange brings one RRset from what it is to what it should be.
type scriptChange struct {
	Old scriptRRset `json:"old"`
	New scriptRRset `json:"new"`
	Why string      `json:"why,omitempty"`
}

// scriptRRset is an RRset; one without data is absent.
type scriptRRset struct {
	Name string   `json:"name"`
	Type string   `json:"type"`
	TTL  uint32   `json:"ttl"`
	Data []string `json:"data"`
}

// scriptReply answers a request.
type scriptReply struct {
	ID     string         `json:"id"` // of the request; a signed reply must have it
	Zones  *[]string      `json:"zones"`
	RRsets *[]scriptRRset `json:"rrsets"`
	Error  *scriptError   `json:"error"`
}

// scriptError says why a request was not done.
type scriptError struct {
	Code      Code    `json:"code"`
	Text      string  `json:"text"`
	Advice    string  `json:"advice"`
	Name      string  `json:"name"`
	Transient bool    `json:"transient"`
	After     float64 `json:"after"`     // seconds
	Untouched bool    `json:"untouched"` // nothing of the write was done, and nothing will be
}

// codeMoved is how the other side says ErrMoved.
const codeMoved Code = "moved"

// scriptCodes may come from the other side; others are CodeScript.
var scriptCodes = map[Code]bool{
	codeMoved: true, CodeUnreachable: true, CodeRefused: true, CodeServfail: true, CodeNoZone: true, CodeDenied: true, CodeRateLimited: true,
	CodeUnsupported: true, CodeQuota: true, CodeOther: true, CodeScript: true,
}

// reason is what the operator is told. With changes the request was a write.
func (e *scriptError) reason(changes bool) *Reason {
	r := &Reason{
		Code: e.Code, Text: rota.CleanReason("%s", e.Text), Advice: rota.CleanReason("%s", e.Advice), Transient: e.Transient,
		InDoubt: changes && !e.Untouched && e.Code != codeMoved,
	}
	if !scriptCodes[r.Code] {
		r.Code = CodeScript
	}
	if r.Text == "" {
		r.Text = "it failed and does not say why"
	}
	if n, err := rota.ParseName(e.Name); err == nil {
		r.Name = n
	}
	if e.After > 0 {
		r.After = min(time.Duration(min(e.After, MaxAfter.Seconds())*float64(time.Second)), MaxAfter)
	}
	return r
}

// script is a driver over the protocol.
type script struct {
	publisher string
	fixed     []rota.Name // zones that need not be asked for
	// ask exchanges one request. body is the request as JSON. Its error is a *Reason; codeMoved stands for ErrMoved.
	ask func(ctx context.Context, q scriptRequest, body []byte) (scriptReply, error)
}

// scriptBatch bounds one write: scripts hold it whole in memory.
const scriptBatch = 500

func (s *script) capabilities() Capabilities {
	return Capabilities{Fence: FenceCompare, Batch: scriptBatch}
}

// exchange completes a request and sends it. The id of a write follows from what it says: whoever has done it once knows it again.
func (s *script) exchange(ctx context.Context, q scriptRequest) (scriptReply, error) {
	q.Version, q.Publisher = scriptVersion, s.publisher
	if q.Action == scriptWrite {
		content, err := json.Marshal(q)
		if err != nil {
			return scriptReply{}, &Reason{Code: CodeInternal, Text: err.Error()}
		}
		sum := sha256.Sum256(content)
		q.ID = hex.EncodeToString(sum[:16])
	} else {
		q.ID = rand.Text()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return scriptReply{}, &Reason{Code: CodeInternal, Text: err.Error()}
	}
	reply, err := s.ask(ctx, q, body)
	if err != nil {
		return reply, err
	}
	if reply.Error != nil {
		return reply, reply.Error.reason(q.Action == scriptWrite)
	}
	return reply, nil
}

func (s *script) zones(ctx context.Context) ([]rota.Name, error) {
	if len(s.fixed) > 0 {
		return s.fixed, nil
	}
	reply, err := s.exchange(ctx, scriptRequest{Action: scriptZones})
	if err != nil {
		return nil, err
	}
	if reply.Zones == nil {
		return nil, malformedReply("the reply to zones has no list of zones")
	}
	var out []rota.Name
	for _, z := range *reply.Zones {
		n, err := rota.ParseName(z)
		if err != nil {
			return nil, malformedReply("the reply to zones: %v", err)
		}
		out = append(out, n)
	}
	return out, nil
}

func (s *script) list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error) {
	reply, err := s.exchange(ctx, scriptRequest{Action: scriptRead, Zone: zone, Names: names})
	if err != nil {
		return nil, err
	}
	if reply.RRsets == nil {
		return nil, malformedReply("the reply to read has no list of rrsets; one that is empty says that there are none")
	}
	var out []entry
	for _, set := range *reply.RRsets {
		k, err := set.key()
		if err != nil {
			return nil, malformedReply("the reply to read: %v", err)
		}
		if !k.Name.In(zone) || k.Type == rota.TypeSOA {
			continue
		}
		for _, text := range set.Data {
			data, err := canonical(k.Type, text)
			if err != nil {
				return nil, malformedReply("the reply to read: %s: %v", k, err)
			}
			out = append(out, entry{Key: k, TTL: set.TTL, Data: data})
		}
	}
	return out, nil
}

func (s *script) commit(ctx context.Context, b Batch, _ []entry) error {
	q := scriptRequest{Action: scriptWrite, Zone: b.Zone, Fence: new(scriptChange), Changes: make([]scriptChange, len(b.Changes))}
	*q.Fence = toScript(b.Fence)
	for i, c := range b.Changes {
		q.Changes[i] = toScript(c)
	}
	_, err := s.exchange(ctx, q)
	if r, ok := errors.AsType[*Reason](err); ok && r.Code == codeMoved {
		return ErrMoved
	}
	return err
}

func toScript(c rota.Change) scriptChange {
	set := func(s rota.RRset) scriptRRset {
		return scriptRRset{Name: s.Name.String(), Type: dns.Type(s.Type).String(), TTL: s.TTL, Data: append([]string{}, s.Data...)}
	}
	return scriptChange{Old: set(c.Old), New: set(c.New), Why: c.Why}
}

func (s scriptRRset) key() (rota.Key, error) {
	n, err := rota.ParseName(s.Name)
	if err != nil {
		return rota.Key{}, err
	}
	t, known := dns.StringToType[strings.ToUpper(s.Type)]
	if !known {
		other, err := rota.ParseType(s.Type)
		if err != nil {
			return rota.Key{}, fmt.Errorf("%s: %w", n.Short(), err)
		}
		t = uint16(other)
	}
	if s.TTL > 1<<31-1 { // RFC 2181 §8
		return rota.Key{}, fmt.Errorf("%s: a TTL of %d", n.Short(), s.TTL)
	}
	return rota.Key{Name: n, Type: rota.Type(t)}, nil
}

func malformedReply(format string, args ...any) *Reason {
	return &Reason{
		Code: CodeMalformed, Transient: true, Text: rota.CleanReason(format, args...), Advice: "see docs/scripts.md for what a reply looks like",
	}
}

// readReply reads a reply: one JSON object, and nothing behind it.
func readReply(body []byte) (scriptReply, error) {
	var reply scriptReply
	if !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return reply, errors.New("it is not a JSON object")
	}
	err := json.Unmarshal(body, &reply)
	return reply, err
}
