package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// DynuOptions say how to reach one account of Dynu (API v2). Token must be set. They print without it.
type DynuOptions struct {
	URL    string            // empty: https://api.dynu.com/v2
	Token  string            // the API key
	Client http.RoundTripper // nil: plain HTTPS without a proxy
}

func (o DynuOptions) String() string { return "Dynu" }

// GoString hides the token from %#v.
func (o DynuOptions) GoString() string { return o.String() }

// dynu is the driver. Dynu changes one record a request; the addresses of the apex are fields of the zone, one for each family.
type dynu struct {
	rest *rest

	mu  sync.Mutex // guards what follows
	ids map[rota.Name]int64
}

// NewDynu returns a Backend for the zones of an account.
func NewDynu(o DynuOptions) (Backend, error) {
	if o.Token == "" {
		return nil, fmt.Errorf("dynu needs a token: an API key of the account")
	}
	r, err := newREST(restOptions{
		base:    cmp.Or(o.URL, "https://api.dynu.com/v2"),
		auth:    func(req *http.Request) { req.Header.Set("API-Key", o.Token) },
		secrets: []string{o.Token},
		rate:    5,
		burst:   5,
		account: o.Token,
		explain: explainDynu,
		client:  o.Client,
	})
	if err != nil {
		return nil, err
	}
	return newLedger(&dynu{rest: r, ids: map[rota.Name]int64{}}, settleFor), nil
}

func (d *dynu) capabilities() Capabilities {
	return Capabilities{
		Fence: FenceCompare, Batch: 25, MinTTL: 30, Types: []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT},
	}
}

// dynuStatus is in every answer. It is an error under HTTP 200 too.
type dynuStatus struct {
	StatusCode int            `json:"statusCode"`
	Type       string         `json:"type"`
	Message    string         `json:"message"`
	Exception  *dynuException `json:"exception"`
}

type dynuException struct {
	StatusCode int    `json:"statusCode"`
	Type       string `json:"type"`
	Message    string `json:"message"`
}

func (s dynuStatus) status() dynuException {
	if s.Exception != nil {
		return *s.Exception
	}
	return dynuException{s.StatusCode, s.Type, s.Message}
}

// Dynu's codes beside those of HTTP. Each has more than one meaning.
const (
	dynuInvalid = 501 // of a creation: it is there already; of a removal: it is gone already; or the request is wrong
	dynuQuota   = 503 // as many records as the account may have
)

// reason turns a status into one, nil when it says nothing.
func (e dynuException) reason() *Reason {
	if e.StatusCode == 0 || e.StatusCode/100 == 2 {
		return nil
	}
	r := &Reason{Text: strings.TrimSpace(fmt.Sprintf("Dynu says %d %s %s", e.StatusCode, e.Type, e.Message)), Advice: "see what the API says"}
	switch e.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		r.Code, r.Advice = CodeDenied, "check the API key"
	case http.StatusNotFound:
		r.Code, r.Advice = CodeNoZone, "check that the zone is in this account; rota never creates zones"
	case http.StatusTooManyRequests:
		r.Code, r.Transient, r.Advice = CodeRateLimited, true, "rota waits; see whether somebody else uses the same account"
	case dynuQuota:
		r.Code, r.Advice = CodeQuota, "Dynu says so to an account that holds as many records as it may: remove records or take a larger plan; the fence is a record too"
	case dynuInvalid:
		r.Code = CodeUnsupported
	default:
		if e.StatusCode >= 500 {
			r.Code, r.Transient, r.Advice = CodeServfail, true, "the trouble is on the API's side"
		} else {
			r.Code = CodeUnsupported
		}
	}
	return r
}

func explainDynu(a *restAnswer) *Reason {
	var s dynuStatus
	if json.Unmarshal(a.body, &s) != nil {
		return nil
	}
	return s.status().reason()
}

// dynuAnswer is any answer.
type dynuAnswer interface{ status() dynuException }

// call speaks to the API and looks at the status inside the answer.
func (d *dynu) call(ctx context.Context, method, path string, in any, out dynuAnswer) error {
	if err := d.rest.do(ctx, method, path, in, out); err != nil {
		return err
	}
	s := out.status()
	if s.StatusCode == 0 {
		return d.rest.malformed(method != http.MethodGet, "the answer has no status")
	}
	if r := s.reason(); r != nil {
		r.Server, r.Text = d.rest.server, d.rest.clean(r.Text)
		r.InDoubt = r.Transient && r.Code == CodeServfail && method != http.MethodGet
		return r
	}
	return nil
}

// dynuRecord is a record as it is listed.
type dynuRecord struct {
	ID      int64  `json:"id"`
	Node    string `json:"nodeName"`
	Type    string `json:"recordType"`
	TTL     uint32 `json:"ttl"`
	State   bool   `json:"state"` // false: it is not answered
	Content string `json:"content"`
	IPv4    string `json:"ipv4Address"`
	IPv6    string `json:"ipv6Address"`
	Host    string `json:"host"`
	Text    string `json:"textData"`
}

// data is the record's data: of a field of its type, or of the whole record that Dynu writes out as content.
func (r dynuRecord) data() string {
	switch strings.ToUpper(r.Type) {
	case "A":
		if r.IPv4 != "" {
			return r.IPv4
		}
	case "AAAA":
		if r.IPv6 != "" {
			return r.IPv6
		}
	case "CNAME":
		if r.Host != "" {
			return r.Host
		}
	case "TXT":
		if r.Text != "" {
			return r.Text
		}
	}
	rr, err := dns.NewRR(r.Content)
	if err != nil || rr == nil {
		return r.Content
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

// dynuDomain is a zone and, in it, the addresses of its apex.
type dynuDomain struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"`
	IPv4 string `json:"ipv4Address"`
	IPv6 string `json:"ipv6Address"`
	Has4 bool   `json:"ipv4"` // the address is answered
	Has6 bool   `json:"ipv6"`
}

func (d *dynu) domains(ctx context.Context) ([]dynuDomain, error) {
	var out struct {
		dynuStatus
		Domains *[]dynuDomain `json:"domains"`
	}
	if err := d.call(ctx, http.MethodGet, "/dns", nil, &out); err != nil {
		return nil, err
	}
	if out.Domains == nil {
		return nil, d.rest.malformed(false, "the answer has no list of domains")
	}
	return *out.Domains, nil
}

func (d *dynu) zones(ctx context.Context) ([]rota.Name, error) {
	list, err := d.domains(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[rota.Name]int64{}
	var out []rota.Name
	for _, z := range list {
		if n, err := rota.ParseName(z.Name); err == nil && z.ID != 0 {
			ids[n] = z.ID
			out = append(out, n)
		}
	}
	d.mu.Lock()
	d.ids = ids
	d.mu.Unlock()
	return out, nil
}

// path returns where a zone is.
func (d *dynu) path(ctx context.Context, zone rota.Name) (string, error) {
	d.mu.Lock()
	id := d.ids[zone]
	d.mu.Unlock()
	if id == 0 {
		if _, err := d.zones(ctx); err != nil {
			return "", err
		}
		d.mu.Lock()
		id = d.ids[zone]
		d.mu.Unlock()
	}
	if id == 0 {
		return "", &Reason{
			Code: CodeNoZone, Zone: zone, Server: d.rest.server, Text: "the account does not hold the zone",
			Advice: "check the zone and the API key; rota never creates zones",
		}
	}
	return "/dns/" + strconv.FormatInt(id, 10), nil
}

// forget has the zone looked up anew: its id is not what it was.
func (d *dynu) forget(zone rota.Name) {
	d.mu.Lock()
	delete(d.ids, zone)
	d.mu.Unlock()
}

// The entries of the apex addresses; other entries have the numbers of their records.
const (
	dynuIPv4 = "ipv4Address"
	dynuIPv6 = "ipv6Address"
)

// domain reads a zone.
func (d *dynu) domain(ctx context.Context, zone rota.Name) (dynuDomain, error) {
	var out struct {
		dynuStatus
		dynuDomain
	}
	path, err := d.path(ctx, zone)
	if err == nil {
		err = d.call(ctx, http.MethodGet, path, nil, &out)
	}
	if err != nil {
		return dynuDomain{}, err
	}
	if n, err := rota.ParseName(out.Name); err != nil || n != zone {
		d.forget(zone)
		return dynuDomain{}, d.rest.malformed(false, "the answer is about the zone %q", out.Name)
	}
	return out.dynuDomain, nil
}

func (d *dynu) list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error) {
	out, err := d.all(ctx, zone, slices.Contains(names, zone))
	return slices.DeleteFunc(out, func(e entry) bool { return strings.HasPrefix(e.ID, dynuOff) }), err
}

// dynuOff marks records that are switched off: nobody is answered them, so they are as good as absent, and not rota's to remove.
const dynuOff = "off "

// all lists every record, and with apex the addresses that are fields of the zone.
func (d *dynu) all(ctx context.Context, zone rota.Name, apex bool) ([]entry, error) {
	path, err := d.path(ctx, zone)
	if err != nil {
		return nil, err
	}
	var z dynuDomain
	if apex {
		if z, err = d.domain(ctx, zone); err != nil {
			return nil, err
		}
	}
	var answer struct {
		dynuStatus
		Records *[]dynuRecord `json:"dnsRecords"`
	}
	if err := d.call(ctx, http.MethodGet, path+"/record", nil, &answer); err != nil {
		if ReasonOf(err).Code == CodeNoZone {
			d.forget(zone)
		}
		return nil, err
	}
	if answer.Records == nil {
		return nil, d.rest.malformed(false, "the answer has no list of records")
	}
	var out []entry
	for _, r := range *answer.Records {
		name, err := inZone(zone, r.Node)
		if err != nil {
			continue // no name of ours
		}
		e := newEntry(name, r.Type, r.TTL, r.data())
		e.ID = strconv.FormatInt(r.ID, 10)
		if !r.State {
			e.ID = dynuOff + e.ID
		}
		out = append(out, e)
	}
	for _, a := range []struct {
		has           bool
		typ, text, id string
	}{{z.Has4, "A", z.IPv4, dynuIPv4}, {z.Has6, "AAAA", z.IPv6, dynuIPv6}} {
		if a.has && a.text != "" {
			e := newEntry(zone, a.typ, z.TTL, a.text)
			e.ID = a.id
			out = append(out, e)
		}
	}
	return out, nil
}

// commit refuses what the apex cannot hold before anything is written.
func (d *dynu) commit(ctx context.Context, b Batch, held []entry) error {
	for _, c := range b.Changes {
		k := c.Key()
		if k.Name != b.Zone {
			continue
		}
		text := ""
		switch {
		case k.Type == rota.TypeCNAME && len(c.New.Data) > 0:
			text = "the apex of a zone cannot be a CNAME (RFC 1034 §3.6.2)"
		case dynuApex(b.Zone, k) && len(c.New.Data) > 1:
			text = fmt.Sprintf("Dynu gives the apex of a zone one %s record, and %d are wanted", k.Type, len(c.New.Data))
		}
		if text != "" {
			return &Reason{
				Code: CodeUnsupported, Zone: b.Zone, Name: k.Name, Server: d.rest.server, Text: text,
				Advice: "give the service a name below the zone, or at the apex the policy failover with a limit of 1",
			}
		}
	}
	return stepwise(ctx, d, b, held)
}

func dynuApex(zone rota.Name, k rota.Key) bool {
	return k.Name == zone && (k.Type == rota.TypeA || k.Type == rota.TypeAAAA)
}

// create adds a record. Dynu answers 501 when it is there already, and also when it refuses it: which of the two is seen by reading.
func (d *dynu) create(ctx context.Context, zone rota.Name, e entry) error {
	if dynuApex(zone, e.Key) {
		return d.setApex(ctx, zone, e)
	}
	path, err := d.path(ctx, zone)
	if err != nil {
		return err
	}
	in := map[string]any{"nodeName": relative(zone, e.Key.Name), "recordType": mnemonic(e.Key.Type), "ttl": e.TTL, "state": true}
	switch e.Key.Type {
	case rota.TypeA:
		in["ipv4Address"] = e.Data
	case rota.TypeAAAA:
		in["ipv6Address"] = e.Data
	case rota.TypeCNAME:
		in["host"] = strings.TrimSuffix(e.Data, ".")
	case rota.TypeTXT:
		text, err := plainTXT(e.Data)
		if err != nil {
			return &Reason{Code: CodeUnsupported, Name: e.Key.Name, Text: err.Error()}
		}
		in["textData"] = text
	}
	err = d.call(ctx, http.MethodPost, path+"/record", in, &dynuStatus{})
	if err == nil || ReasonOf(err).Code != CodeUnsupported {
		return err
	}
	there, rerr := d.all(ctx, zone, false)
	if rerr != nil {
		return rerr
	}
	for _, o := range there {
		switch {
		case o.Key != e.Key || o.Data != e.Data:
		case !strings.HasPrefix(o.ID, dynuOff):
			return nil
		default:
			return &Reason{
				Code: CodeOther, Zone: zone, Name: e.Key.Name, Server: d.rest.server,
				Text: fmt.Sprintf("its %s record %s is there and switched off", e.Key.Type, e.Data), Advice: "remove that record at Dynu, or switch it on",
			}
		}
	}
	return err
}

// remove removes a record. Dynu answers 501 when it is gone already.
func (d *dynu) remove(ctx context.Context, zone rota.Name, e entry) error {
	if dynuApex(zone, e.Key) && (e.ID == dynuIPv4 || e.ID == dynuIPv6) {
		return d.dropApex(ctx, zone, e)
	}
	path, err := d.path(ctx, zone)
	if err != nil {
		return err
	}
	err = d.call(ctx, http.MethodDelete, path+"/record/"+e.ID, nil, &dynuStatus{})
	if err == nil || ReasonOf(err).Code != CodeUnsupported && ReasonOf(err).Code != CodeNoZone {
		return err
	}
	there, rerr := d.all(ctx, zone, false)
	if rerr != nil {
		return rerr
	}
	if slices.ContainsFunc(there, func(o entry) bool { return strings.TrimPrefix(o.ID, dynuOff) == e.ID }) {
		return err
	}
	return nil
}

// retime writes a record again as it is, with another TTL.
func (d *dynu) retime(ctx context.Context, zone rota.Name, e entry, ttl uint32) error {
	if dynuApex(zone, e.Key) && (e.ID == dynuIPv4 || e.ID == dynuIPv6) {
		e.TTL = ttl
		return d.setApex(ctx, zone, e)
	}
	path, err := d.path(ctx, zone)
	if err != nil {
		return err
	}
	path += "/record/" + e.ID
	now := dynuFields{}
	if err := d.call(ctx, http.MethodGet, path, nil, &now); err != nil {
		return err
	}
	now.set("ttl", ttl)
	return d.call(ctx, http.MethodPost, path, now.writable("nodeName", "recordType", "ttl", "state", "group", "ipv4Address", "ipv6Address", "host", "textData"), &dynuStatus{})
}

// setApex makes the address of e the apex', beside all else that the zone says of itself.
func (d *dynu) setApex(ctx context.Context, zone rota.Name, e entry) error {
	return d.changeApex(ctx, zone, e, func(now *dynuFields, address, has string) {
		now.set(address, e.Data)
		now.set(has, true)
		now.set("ttl", e.TTL)
	})
}

// dropApex leaves the apex without an address of the family of e, unless it has another by now.
func (d *dynu) dropApex(ctx context.Context, zone rota.Name, e entry) error {
	return d.changeApex(ctx, zone, e, func(now *dynuFields, address, has string) {
		if text, _ := now.values[address].(string); text != "" {
			if data, err := canonical(e.Key.Type, text); err == nil && data == e.Data {
				now.set(has, false)
			}
		}
	})
}

func (d *dynu) changeApex(ctx context.Context, zone rota.Name, e entry, change func(now *dynuFields, address, has string)) error {
	path, err := d.path(ctx, zone)
	if err != nil {
		return err
	}
	now := dynuFields{}
	if err := d.call(ctx, http.MethodGet, path, nil, &now); err != nil {
		return err
	}
	if e.Key.Type == rota.TypeA {
		change(&now, dynuIPv4, "ipv4")
	} else {
		change(&now, dynuIPv6, "ipv6")
	}
	if !now.changed {
		return nil
	}
	in := now.writable(
		"name", "group", "ipv4Address", "ipv6Address", "ttl", "ipv4", "ipv6", "ipv4WildcardAlias", "ipv6WildcardAlias", "allowZoneTransfer", "dnssec",
	)
	return d.call(ctx, http.MethodPost, path, in, &dynuStatus{})
}

// dynuFields are all that Dynu says of a record or a zone: what is written replaces the whole, so the rest is written as it was read.
type dynuFields struct {
	dynuStatus
	values  map[string]any
	changed bool
}

// UnmarshalJSON keeps every field.
func (f *dynuFields) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &f.values); err != nil {
		return err
	}
	return json.Unmarshal(b, &f.dynuStatus)
}

func (f *dynuFields) set(key string, value any) {
	f.values[key] = value
	f.changed = true
}

// writable returns those of the fields that are there.
func (f *dynuFields) writable(keys ...string) map[string]any {
	out := map[string]any{}
	for _, k := range keys {
		if v, ok := f.values[k]; ok && v != nil {
			out[k] = v
		}
	}
	return out
}
