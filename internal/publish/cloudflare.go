package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// CloudflareOptions say how Cloudflare's API is reached. Token must be set.
type CloudflareOptions struct {
	Token   string        // an API token that may read zones and edit DNS
	Proxied Proxied       // of addresses and CNAMEs; empty: ProxiedKeep
	Batch   int           // records in one transaction; 0: 200, which every plan allows
	MinTTL  uint32        // seconds; 0: 60, which every plan allows
	URL     string        // of the API; empty: https://api.cloudflare.com/client/v4
	Timeout time.Duration // of one request; 0: 15 seconds

	client http.RoundTripper
}

func (o CloudflareOptions) String() string { return "Cloudflare" }

// GoString hides the token from %#v.
func (o CloudflareOptions) GoString() string { return o.String() }

// Proxied says whether Cloudflare answers with its own addresses and passes the traffic on.
type Proxied string

// The ways to be proxied.
const (
	ProxiedKeep Proxied = "keep" // new records are as their siblings are; without any they are not
	ProxiedOn   Proxied = "on"   // new records are
	ProxiedOff  Proxied = "off"  // new records are not
)

// NewCloudflare returns a Backend that writes to Cloudflare. A batch is one transaction there; it deletes the fence record that was
// listed by its id, which nobody can do twice. It fails when the options cannot work.
func NewCloudflare(o CloudflareOptions) (Backend, error) {
	o.Proxied = cmp.Or(o.Proxied, ProxiedKeep)
	switch {
	case o.Token == "":
		return nil, errors.New("a token is needed: one of Cloudflare's that may read zones and edit DNS")
	case !slices.Contains([]Proxied{ProxiedKeep, ProxiedOn, ProxiedOff}, o.Proxied):
		return nil, fmt.Errorf("proxied is %q; want keep, on or off", o.Proxied)
	case o.Batch < 0 || o.Batch > 3500:
		return nil, fmt.Errorf("a batch of %d records is more than the 3500 that Cloudflare takes", o.Batch)
	}
	r, err := newREST(restOptions{
		base: cmp.Or(o.URL, "https://api.cloudflare.com/client/v4"), secrets: []string{o.Token}, timeout: o.Timeout, client: o.client,
		rate: 4, burst: 20, explain: explainCloudflare, // 1,200 requests in five minutes are allowed
		auth: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+o.Token) },
	})
	if err != nil {
		return nil, err
	}
	d := &cloudflare{
		rest: r, proxied: o.Proxied, batch: cmp.Or(o.Batch, 200), minTTL: cmp.Or(o.MinTTL, 60), ids: map[rota.Name][]string{},
	}
	return newLedger(d, cloudflareSettle), nil
}

// cloudflareSettle is how long a list may lag behind a batch.
const cloudflareSettle = 5 * time.Second

// cloudflare is a driver.
type cloudflare struct {
	rest    *rest
	proxied Proxied
	batch   int
	minTTL  uint32

	mu  sync.Mutex             // guards what follows
	ids map[rota.Name][]string // more than one when the token shows several zones of a name
}

// cloudflareAnswer is what every answer is wrapped in.
type cloudflareAnswer[T any] struct {
	Success *bool             `json:"success"`
	Errors  []cloudflareError `json:"errors"`
	Result  T                 `json:"result"`
	Info    struct {
		Page  int `json:"page"`
		Pages int `json:"total_pages"`
	} `json:"result_info"`
}

type cloudflareError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type cloudflareZone struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

// cloudflareActive is the status of a zone that the world asks Cloudflare for. Of several zones of a name at most one has it.
const cloudflareActive = "active"

// cloudflareRecord is a record. Fields of a PATCH that are not there stay as they are.
type cloudflareRecord struct {
	ID       string `json:"id,omitempty"`
	Name     string `json:"name,omitempty"`
	Type     string `json:"type,omitempty"`
	Content  string `json:"content,omitempty"`
	TTL      uint32 `json:"ttl,omitempty"`
	Proxied  *bool  `json:"proxied,omitempty"`
	Priority *int   `json:"priority,omitempty"`
}

// cloudflareBatch is carried out in this order, whatever the order of its fields.
type cloudflareBatch struct {
	Deletes []cloudflareRecord `json:"deletes,omitempty"`
	Patches []cloudflareRecord `json:"patches,omitempty"`
	Posts   []cloudflareRecord `json:"posts,omitempty"`
}

// cloudflareAuto is the TTL that says that Cloudflare chooses it. Proxied records have no other.
const cloudflareAuto = 1

func (d *cloudflare) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true, MinTTL: d.minTTL, Types: []rota.Type{
		rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT, rota.TypePTR,
	}}
}

// pack counts the records that a change touches. Two are the fence's, or the anchor's and one the fence's.
func (d *cloudflare) pack(changes []rota.Change) int {
	return fitting(changes, d.batch-3, func(c rota.Change) int { return max(len(c.Old.Data), len(c.Removed())+len(c.New.Data)) })
}

// cloudflareList reads all pages of a list.
func cloudflareList[T any](ctx context.Context, r *rest, path string, query url.Values) ([]T, error) {
	var all []T
	err := r.pages(func(mark string) (string, error) {
		query.Set("page", cmp.Or(mark, "1"))
		var a cloudflareAnswer[[]T]
		if err := r.get(ctx, path, query, &a); err != nil {
			return "", err
		}
		if a.Success == nil || !*a.Success {
			return "", cloudflareUnsuccessful(r, a.Errors, false)
		}
		if a.Result == nil {
			return "", r.malformed(false, "the answer has no list")
		}
		if want := cmp.Or(mark, "1"); want != strconv.Itoa(a.Info.Page) {
			return "", r.malformed(false, "asked for page %s of a list and got page %d", want, a.Info.Page)
		}
		all = append(all, a.Result...)
		if a.Info.Page >= a.Info.Pages {
			return "", nil
		}
		return strconv.Itoa(a.Info.Page + 1), nil
	})
	return all, err
}

// cloudflareUnsuccessful is the reason of an answer that says HTTP 200 and yet not success.
func cloudflareUnsuccessful(r *rest, errs []cloudflareError, doubt bool) error {
	if len(errs) == 0 {
		return r.malformed(doubt, "the answer does not say that it is a success")
	}
	return r.malformed(doubt, "the answer is an error in the form of a success: %d %s", errs[0].Code, errs[0].Message)
}

func (d *cloudflare) zones(ctx context.Context) ([]rota.Name, error) {
	list, err := cloudflareList[cloudflareZone](ctx, d.rest, "/zones", url.Values{"per_page": {"50"}})
	if err != nil {
		return nil, err
	}
	ids := map[rota.Name][]string{}
	active := map[rota.Name]bool{}
	var out []rota.Name
	for _, z := range list {
		n, err := rota.ParseName(z.Name)
		if err != nil || z.ID == "" {
			return nil, d.rest.malformed(false, "a zone without a name or an id")
		}
		if len(ids[n]) == 0 {
			out = append(out, n)
		}
		switch {
		case active[n]:
			continue
		case z.Status == cloudflareActive:
			ids[n] = []string{z.ID}
		default:
			ids[n] = append(ids[n], z.ID)
		}
		active[n] = z.Status == cloudflareActive
	}
	d.mu.Lock()
	d.ids = ids
	d.mu.Unlock()
	return out, nil
}

// path returns where the records of a zone are.
func (d *cloudflare) path(ctx context.Context, zone rota.Name) (string, error) {
	for _, fresh := range []bool{false, true} {
		if fresh {
			if _, err := d.zones(ctx); err != nil {
				return "", err
			}
		}
		d.mu.Lock()
		ids := d.ids[zone]
		d.mu.Unlock()
		switch {
		case len(ids) == 1:
			return "/zones/" + url.PathEscape(ids[0]) + "/dns_records", nil
		case len(ids) > 1 && fresh:
			return "", &Reason{
				Code: CodeNoZone, Zone: zone, Server: d.rest.server, Text: "the token shows several zones of this name, of which none is active",
				Advice: "let the token see the one that is meant",
			}
		}
	}
	return "", &Reason{
		Code: CodeNoZone, Zone: zone, Server: d.rest.server, Text: "the token shows no such zone",
		Advice: "create the zone there, or let the token see it; rota never creates zones",
	}
}

func (d *cloudflare) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	records, err := d.records(ctx, zone)
	if err != nil {
		return nil, err
	}
	out := make([]entry, 0, len(records))
	seen := map[string]bool{} // a record may be on two pages when others are added meanwhile
	for _, r := range records {
		if seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		n, err := rota.ParseName(r.Name)
		if err != nil || r.ID == "" || r.Type == "" {
			return nil, d.rest.malformed(false, "a record without a name, a type or an id")
		}
		text := r.Content
		if r.Priority != nil && (r.Type == "MX" || r.Type == "SRV" || r.Type == "URI") {
			text = strconv.Itoa(*r.Priority) + " " + text
		}
		e := newEntry(n, r.Type, r.TTL, text)
		e.ID, e.AnyTTL = r.ID, r.TTL == cloudflareAuto
		if r.Proxied != nil && *r.Proxied {
			e.AnyTTL = true
			e.Tag = cloudflareProxied
		}
		out = append(out, e)
	}
	return out, nil
}

// cloudflareProxied tags an entry whose record is proxied.
const cloudflareProxied = "proxied"

func (d *cloudflare) records(ctx context.Context, zone rota.Name) ([]cloudflareRecord, error) {
	path, err := d.path(ctx, zone)
	if err != nil {
		return nil, err
	}
	return cloudflareList[cloudflareRecord](ctx, d.rest, path, url.Values{"per_page": {"5000"}})
}

func (d *cloudflare) commit(ctx context.Context, b Batch, held []entry) error {
	path, err := d.path(ctx, b.Zone)
	if err != nil {
		return err
	}
	index := map[rota.Key][]entry{}
	proxied := map[rota.Name]bool{}
	for _, e := range held {
		index[e.Key] = append(index[e.Key], e)
		if e.Tag == cloudflareProxied {
			proxied[e.Key.Name] = true
		}
	}
	var batch cloudflareBatch
	if len(b.Fence.Old.Data) == 0 {
		d.anchor(&batch, b.Zone, index)
	}
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		k := c.Key()
		for _, e := range index[k] {
			switch {
			case !slices.Contains(c.New.Data, e.Data):
				batch.Deletes = append(batch.Deletes, cloudflareRecord{ID: e.ID})
			case !e.AnyTTL && e.TTL != max(c.New.TTL, d.minTTL):
				batch.Patches = append(batch.Patches, cloudflareRecord{ID: e.ID, TTL: max(c.New.TTL, d.minTTL)})
			}
		}
		for _, data := range c.Added() {
			batch.Posts = append(batch.Posts, d.record(k, c.New.TTL, data, proxied[k.Name]))
		}
	}
	var a cloudflareAnswer[json.RawMessage]
	err = d.rest.do(ctx, http.MethodPost, path+"/batch", batch, &a)
	if r, ok := errors.AsType[*Reason](err); ok && r.Code == codeGone {
		return fmt.Errorf("%w: %s", ErrMoved, r.Text)
	}
	if err == nil && (a.Success == nil || !*a.Success) {
		return cloudflareUnsuccessful(d.rest, a.Errors, true)
	}
	return err
}

// anchor makes a batch that finds no fence record to delete happen once all the same: it puts a record there that nobody can put there
// twice, or replaces the one that stands there.
func (d *cloudflare) anchor(batch *cloudflareBatch, zone rota.Name, index map[rota.Key][]entry) {
	k := rota.Key{Name: gateName(zone, 0), Type: rota.TypeTXT}
	for _, e := range index[k] {
		batch.Deletes = append(batch.Deletes, cloudflareRecord{ID: e.ID})
	}
	batch.Posts = append(batch.Posts, d.record(k, d.minTTL, `"-"`, false))
}

// record makes a record that is not there yet. siblings says that others of its name are proxied.
func (d *cloudflare) record(k rota.Key, ttl uint32, data string, siblings bool) cloudflareRecord {
	r := cloudflareRecord{
		Name: strings.TrimSuffix(k.Name.String(), "."), Type: mnemonic(k.Type), TTL: max(ttl, d.minTTL), Content: data,
	}
	switch k.Type {
	case rota.TypeCNAME, rota.TypePTR:
		r.Content = strings.TrimSuffix(data, ".")
	case rota.TypeTXT:
		return r
	}
	on := d.proxied == ProxiedOn || d.proxied == ProxiedKeep && siblings
	if on = on && k.Type != rota.TypePTR; on {
		r.TTL = cloudflareAuto
	}
	r.Proxied = &on
	return r
}

// codeGone marks that a record that was listed is not there any more, or that one is there which was not listed.
const codeGone Code = "gone"

func explainCloudflare(a *restAnswer) *Reason {
	var body cloudflareAnswer[json.RawMessage]
	if json.Unmarshal(a.body, &body) != nil || len(body.Errors) == 0 {
		return nil
	}
	e := body.Errors[0]
	r := &Reason{Text: fmt.Sprintf("Cloudflare says: %s (%d)", e.Message, e.Code)}
	switch e.Code {
	case 81044, 81057, 81058:
		r.Code = codeGone
	case 81053, 81054, 81056:
		r.Code, r.Advice = CodeOther, "remove the other records of the name, or take the service out of rota"
	case 10000, 9103, 9106, 9107, 9109, 6003, 6111:
		r.Code, r.Advice = CodeDenied, "check the token: it needs Zone Read and DNS Edit for the zone"
	case 7000, 7003, 1001:
		r.Code, r.Advice = CodeNoZone, "check that the zone is in this account; rota never creates zones"
	case 971, 10429:
		r.Code, r.Transient = CodeRateLimited, true
	case 81045:
		r.Code, r.Advice = CodeQuota, "the zone has as many records as its plan allows"
	case 9021, 9022:
		r.Code, r.Advice = CodeUnsupported, "set min_ttl of the publisher to what the zone's plan allows"
	}
	return r
}
