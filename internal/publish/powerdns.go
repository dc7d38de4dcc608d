package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// PowerDNSOptions say how a PowerDNS Authoritative Server's HTTP API is reached. URL and Key must be set.
type PowerDNSOptions struct {
	URL     string        // of the server, as in http://127.0.0.1:8081
	Key     string        // the server's api-key
	Server  string        // its id; empty: localhost
	Timeout time.Duration // of one request; 0: 15 seconds

	client http.RoundTripper
}

func (o PowerDNSOptions) String() string { return "PowerDNS" }

// GoString hides the key from %#v.
func (o PowerDNSOptions) GoString() string { return o.String() }

// NewPowerDNS returns a Backend that writes through PowerDNS's HTTP API. One PATCH is one transaction, and gates make it happen at most
// once; the server needs the api, and a storage backend that has transactions. It fails when the options cannot work.
func NewPowerDNS(o PowerDNSOptions) (Backend, error) {
	if o.Key == "" {
		return nil, errors.New("the PowerDNS API needs a token: the api-key of the server")
	}
	base := strings.TrimSuffix(strings.TrimSuffix(o.URL, "/"), "/api/v1")
	r, err := newREST(restOptions{
		base: base, secrets: []string{o.Key}, timeout: o.Timeout, client: o.client, explain: explainPowerDNS,
		auth: func(r *http.Request) { r.Header.Set("X-API-Key", o.Key) },
	})
	if err != nil {
		return nil, err
	}
	d := &powerDNS{rest: r, root: "/api/v1/servers/" + powerDNSID(cmp.Or(o.Server, "localhost")) + "/zones"}
	return newLedger(d, 0), nil
}

// powerDNS is a driver. It keeps nothing.
type powerDNS struct {
	rest *rest
	root string // path of the zones
}

// powerDNSZone is a zone as the API shows it: without rrsets in the list of zones.
type powerDNSZone struct {
	ID     string          `json:"id"`
	Name   string          `json:"name"`
	Kind   string          `json:"kind"`
	RRsets []powerDNSRRset `json:"rrsets"`
}

type powerDNSRRset struct {
	Name       string           `json:"name"`
	Type       string           `json:"type"`
	ChangeType string           `json:"changetype,omitempty"` // of a PATCH
	TTL        uint32           `json:"ttl,omitempty"`
	Records    []powerDNSRecord `json:"records,omitempty"`
}

type powerDNSRecord struct {
	Content  string `json:"content"`
	Disabled bool   `json:"disabled"`
}

// capabilities: an UPDATE of a thousand RRsets stays far below webserver-max-bodysize, which is 2 MB unless it is set.
func (*powerDNS) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true, Batch: 1000}
}

func (d *powerDNS) zones(ctx context.Context) ([]rota.Name, error) {
	var list []powerDNSZone
	if err := d.rest.get(ctx, d.root, map[string][]string{"dnssec": {"false"}}, &list); err != nil {
		return nil, err
	}
	if list == nil {
		return nil, d.rest.malformed(false, "the answer has no list of zones")
	}
	var out []rota.Name
	for _, z := range list {
		if z.Name == "" {
			return nil, d.rest.malformed(false, "a zone without a name")
		}
		if n, err := rota.ParseName(z.Name); err == nil { // a variant of a zone, example.org..inside, is none of the DNS's
			out = append(out, n)
		}
	}
	return out, nil
}

func (d *powerDNS) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	var z powerDNSZone
	if err := d.rest.get(ctx, d.root+"/"+powerDNSID(zone.String()), nil, &z); err != nil {
		return nil, err
	}
	if n, err := rota.ParseName(z.Name); err != nil || n != zone {
		return nil, d.rest.malformed(false, "asked for %s, the answer is about another zone", zone.Short())
	}
	if z.RRsets == nil {
		return nil, d.rest.malformed(false, "the answer has no list of records")
	}
	switch strings.ToLower(z.Kind) {
	case "slave", "secondary", "consumer":
		return nil, &Reason{
			Code: CodeNotAuth, Zone: zone, Server: d.rest.server, Text: "the zone is a secondary there, so records cannot be written",
			Advice: "publish to the zone's primary",
		}
	}
	var out []entry
	for _, s := range z.RRsets {
		n, err := rota.ParseName(s.Name)
		if err != nil {
			return nil, d.rest.malformed(false, "a record without a name: %v", err)
		}
		for _, r := range s.Records {
			e := newEntry(n, s.Type, s.TTL, r.Content)
			if r.Disabled {
				e.Locked = "is disabled, and writing beside it would delete it"
			}
			out = append(out, e)
		}
	}
	return out, nil
}

func (d *powerDNS) commit(ctx context.Context, b Batch, held []entry) error {
	var patch powerDNSZonePatch
	for _, c := range conditional(b, held) {
		s := powerDNSRRset{Name: c.Key().Name.String(), Type: mnemonic(c.Key().Type), ChangeType: "DELETE"}
		if len(c.New.Data) > 0 {
			s.ChangeType, s.TTL = "REPLACE", c.New.TTL
		}
		for _, data := range c.New.Data {
			s.Records = append(s.Records, powerDNSRecord{Content: data})
		}
		patch.RRsets = append(patch.RRsets, s)
	}
	err := d.rest.do(ctx, http.MethodPatch, d.root+"/"+powerDNSID(b.Zone.String()), patch, nil)
	return movedBy(err)
}

// powerDNSZonePatch is the body of a PATCH. The server takes the RRsets in their order.
type powerDNSZonePatch struct {
	RRsets []powerDNSRRset `json:"rrsets"`
}

// conditional returns the fence, the gates and the changes of a batch in the order in which they can be made: what goes first.
func conditional(b Batch, held []entry) []rota.Change {
	all := append([]rota.Change{b.Fence}, gateChanges(b.Zone, held)...)
	all = append(all, b.Changes...)
	var goes, comes []rota.Change
	for _, c := range all {
		if len(c.New.Data) == 0 {
			goes = append(goes, c)
		} else {
			comes = append(comes, c)
		}
	}
	return append(goes, comes...)
}

// errExclusive marks that a CNAME would have stood beside other data: what the changes were planned on is no longer there.
const errExclusive Code = "exclusive"

// movedBy turns such a refusal into ErrMoved.
func movedBy(err error) error {
	if r, ok := errors.AsType[*Reason](err); ok && r.Code == errExclusive {
		return fmt.Errorf("%w: %s", ErrMoved, r.Text)
	}
	return err
}

// powerDNSID writes a name as the API has it in paths.
func powerDNSID(name string) string {
	if name == "." {
		return "=2E"
	}
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

func explainPowerDNS(a *restAnswer) *Reason {
	var body struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(a.body, &body) != nil || body.Error == "" {
		return nil
	}
	r := &Reason{Text: "the server says: " + body.Error}
	low := strings.ToLower(body.Error)
	switch {
	case a.status == http.StatusUnprocessableEntity && strings.Contains(low, "conflicts with"):
		r.Code = errExclusive
	case strings.Contains(low, "could not find domain"):
		r.Code = CodeNoZone
	case strings.Contains(low, "is out of zone"):
		r.Code = CodeNotZone
	case a.status == http.StatusRequestEntityTooLarge:
		r.Code = CodeTooLarge
	}
	return r
}
