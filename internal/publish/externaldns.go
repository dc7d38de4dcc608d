package publish

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// ExternalDNSOptions say where a webhook provider of external-dns is. URL must be set.
type ExternalDNSOptions struct {
	URL     string            // such as http://127.0.0.1:8888
	Zones   []rota.Name       // empty: the domains that the provider names when it is asked
	Timeout time.Duration     // of one request; 0: 15 seconds
	Client  http.RoundTripper // nil: plain HTTP(S) without a proxy
}

// externalDNS is the driver: the client of external-dns' webhook protocol. It changes whole RRsets, and has no condition on what it
// replaces.
type externalDNS struct {
	rest   *rest
	served []rota.Name

	mu     sync.Mutex // guards what follows
	forced map[rota.Key]uint32
}

// externalDNSMedia is the protocol's media type, with its version.
const externalDNSMedia = "application/external.dns.webhook+json;version=1"

// NewExternalDNS returns a Backend that writes through a webhook provider of external-dns.
func NewExternalDNS(o ExternalDNSOptions) (Backend, error) {
	r, err := newREST(restOptions{base: o.URL, media: externalDNSMedia, timeout: o.Timeout, client: o.Client})
	if err != nil {
		return nil, err
	}
	return newLedger(&externalDNS{rest: r, served: o.Zones, forced: map[rota.Key]uint32{}}, settleFor), nil
}

func (x *externalDNS) capabilities() Capabilities {
	return Capabilities{Fence: FenceCompare, Batch: 500, Types: []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT}}
}

// externalDNSEndpoint is an RRset in the protocol.
type externalDNSEndpoint struct {
	Name       string            `json:"dnsName"`
	Targets    []string          `json:"targets"`
	Type       string            `json:"recordType"`
	Identifier string            `json:"setIdentifier,omitempty"`
	TTL        int64             `json:"recordTTL,omitempty"` // absent: the provider's
	Labels     map[string]string `json:"labels,omitempty"`
	Specific   []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"providerSpecific,omitempty"`
}

func (e *externalDNSEndpoint) key() (rota.Key, error) {
	n, err := rota.ParseName(e.Name)
	return rota.Key{Name: n, Type: newEntry(n, e.Type, 0, "").Key.Type}, err
}

// zones asks who is there, as the protocol begins, and what it serves.
func (x *externalDNS) zones(ctx context.Context) ([]rota.Name, error) {
	var filter struct {
		Include []string `json:"include"`
	}
	if err := x.rest.get(ctx, "/", nil, &filter); err != nil {
		return nil, err
	}
	if len(x.served) > 0 {
		return x.served, nil
	}
	var out []rota.Name
	for _, text := range filter.Include {
		// A leading dot means names below only, which is no zone.
		if n, err := rota.ParseName(text); err == nil && !strings.HasPrefix(text, ".") {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return nil, &Reason{
			Code: CodeNoZone, Server: x.rest.server, Text: "the provider does not say which zones it serves", Advice: "name them in the configuration of the publisher",
		}
	}
	return out, nil
}

func (x *externalDNS) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	var answer *[]json.RawMessage
	if err := x.rest.get(ctx, "/records", nil, &answer); err != nil {
		return nil, err
	}
	if answer == nil {
		return nil, nil // a list without elements, as Go writes one
	}
	var out []entry
	for _, raw := range *answer {
		var e externalDNSEndpoint
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, x.rest.malformed(false, "a record cannot be read: %v", err)
		}
		k, err := e.key()
		if err != nil || !k.Name.In(zone) {
			continue // no name of ours
		}
		locked := ""
		switch {
		case e.Identifier != "":
			locked = rota.CleanReason("is one of several that share the name (set identifier %s)", e.Identifier)
		case k.Type == rota.TypeCNAME && len(e.Targets) > 1:
			locked = "has several targets"
		}
		for _, p := range e.Specific {
			if p.Name == "alias" && p.Value == "true" {
				locked = "is an alias of the provider's own kind"
			}
		}
		x.mu.Lock()
		forced, ok := x.forced[k]
		x.mu.Unlock()
		for _, target := range e.Targets {
			r := newEntry(k.Name, e.Type, uint32(min(max(e.TTL, 0), 1<<31-1)), target)
			r.ID = string(raw)
			r.AnyTTL = e.TTL == 0 || ok && r.TTL == forced
			if locked != "" {
				r.Locked = locked
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// externalDNSChanges is what is applied: an update has the same place in both of its lists.
type externalDNSChanges struct {
	Create []json.RawMessage `json:"create,omitempty"`
	Old    []json.RawMessage `json:"updateOld,omitempty"`
	New    []json.RawMessage `json:"updateNew,omitempty"`
	Delete []json.RawMessage `json:"delete,omitempty"`
}

// commit applies the fence, looks whether it stands there and nothing else, and applies the rest.
func (x *externalDNS) commit(ctx context.Context, b Batch, held []entry) error {
	fence, err := x.changes(ctx, []rota.Change{b.Fence}, held)
	if err != nil {
		return err
	}
	rest, err := x.changes(ctx, b.Changes, held)
	if err != nil {
		return err
	}
	if err := x.rest.do(ctx, http.MethodPost, "/records", fence, nil); err != nil {
		return err
	}
	now, err := x.list(ctx, b.Zone, []rota.Name{b.Fence.Key().Name})
	if err != nil {
		return inDoubt(err)
	}
	var stands []string
	for _, e := range now {
		if e.Key == b.Fence.Key() {
			stands = append(stands, e.Data)
		}
	}
	switch {
	case slices.Equal(stands, b.Fence.New.Data):
	case slices.Equal(slices.Sorted(slices.Values(stands)), b.Fence.Old.Data):
		return &Reason{
			Code: CodeMoving, Transient: true, InDoubt: true, Zone: b.Zone, Server: x.rest.server, Text: "the provider does not show our fence record yet",
			Advice: "it catches up by itself",
		}
	default:
		return ErrMoved
	}
	if len(b.Changes) == 0 {
		return nil
	}
	if err := x.rest.do(ctx, http.MethodPost, "/records", rest, nil); err != nil {
		return inDoubt(err)
	}
	return nil
}

// changes writes changes in the protocol's way, after the provider was asked what it would make of what is new.
func (x *externalDNS) changes(ctx context.Context, changes []rota.Change, held []entry) (externalDNSChanges, error) {
	var out externalDNSChanges
	var wanted []externalDNSEndpoint
	at := map[rota.Key]int{} // of a key in wanted
	for _, c := range changes {
		if len(c.New.Data) > 0 {
			e, err := x.endpoint(c, externalDNSOld(c.Key(), held))
			if err != nil {
				return out, err
			}
			at[c.Key()] = len(wanted)
			wanted = append(wanted, e)
		}
	}
	adjusted, err := x.adjust(ctx, wanted)
	if err != nil {
		return out, err
	}
	for _, c := range changes {
		old := externalDNSOld(c.Key(), held)
		i, ok := at[c.Key()]
		switch {
		case !ok:
			out.Delete = append(out.Delete, old...)
		case len(old) == 0:
			out.Create = append(out.Create, adjusted[i])
		default:
			out.Old, out.New = append(out.Old, old[0]), append(out.New, adjusted[i])
			out.Delete = append(out.Delete, old[1:]...)
		}
	}
	return out, nil
}

// externalDNSOld returns the endpoints of a key, as they were listed.
func externalDNSOld(k rota.Key, held []entry) []json.RawMessage {
	var out []json.RawMessage
	for _, e := range held {
		if e.Key == k && !slices.ContainsFunc(out, func(o json.RawMessage) bool { return string(o) == e.ID }) {
			out = append(out, json.RawMessage(e.ID))
		}
	}
	return out
}

// endpoint is what a change makes of an RRset: labels and properties that others gave it stay.
func (x *externalDNS) endpoint(c rota.Change, old []json.RawMessage) (e externalDNSEndpoint, _ error) {
	if len(old) > 0 {
		if err := json.Unmarshal(old[0], &e); err != nil {
			return e, x.rest.malformed(false, "a record cannot be read: %v", err)
		}
	}
	e.Name, e.Type, e.TTL, e.Targets = c.Key().Name.Short(), mnemonic(c.Key().Type), int64(c.New.TTL), nil
	for _, data := range c.New.Data {
		if e.Type == "CNAME" {
			data = strings.TrimSuffix(data, ".")
		}
		e.Targets = append(e.Targets, data)
	}
	return e, nil
}

// adjust asks the provider what it would make of endpoints, and returns that in the same order. It may set a TTL and properties of its
// own, but not leave an endpoint out or change its data.
func (x *externalDNS) adjust(ctx context.Context, wanted []externalDNSEndpoint) ([]json.RawMessage, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	var answer []json.RawMessage
	if err := x.rest.do(ctx, http.MethodPost, "/adjustendpoints", wanted, &answer); err != nil {
		r := *ReasonOf(err)
		r.InDoubt = false // a question
		return nil, &r
	}
	out := make([]json.RawMessage, len(wanted))
	for _, raw := range answer {
		var e externalDNSEndpoint
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, x.rest.malformed(false, "an adjusted record cannot be read: %v", err)
		}
		k, err := e.key()
		i := slices.IndexFunc(wanted, func(w externalDNSEndpoint) bool {
			mine, _ := w.key()
			return mine == k && externalDNSSame(k, w.Targets, e.Targets)
		})
		if err != nil || i < 0 {
			continue
		}
		out[i] = raw
		x.mu.Lock()
		if e.TTL != wanted[i].TTL && e.TTL > 0 && e.TTL < 1<<31 {
			x.forced[k] = uint32(e.TTL)
		} else {
			delete(x.forced, k)
		}
		x.mu.Unlock()
	}
	for i, raw := range out {
		if raw != nil {
			continue
		}
		name, _ := rota.ParseName(wanted[i].Name)
		return nil, &Reason{
			Code: CodeUnsupported, Name: name, Server: x.rest.server,
			Text:   rota.CleanReason("the provider does not take %s records %s", wanted[i].Type, strings.Join(wanted[i].Targets, " ")),
			Advice: "see what the provider supports",
		}
	}
	return out, nil
}

// externalDNSSame reports whether both lists are the same data.
func externalDNSSame(k rota.Key, a, b []string) bool {
	set := func(texts []string) []string {
		var out []string
		for _, text := range texts {
			out = append(out, newEntry(k.Name, mnemonic(k.Type), 0, text).Data)
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(set(a), set(b))
}
