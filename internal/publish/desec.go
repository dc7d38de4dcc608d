package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// DeSECOptions say how deSEC's API is reached. Token must be set.
type DeSECOptions struct {
	Token   string        // of the account
	URL     string        // of the API; empty: https://desec.io/api/v1
	MinTTL  uint32        // seconds, the least that the account's domains may have; 0: 3600, as new accounts have it
	Timeout time.Duration // of one request; 0: 15 seconds

	client http.RoundTripper
}

func (o DeSECOptions) String() string { return "deSEC" }

// GoString hides the token from %#v.
func (o DeSECOptions) GoString() string { return o.String() }

// deSECMinTTL is what new accounts have.
const deSECMinTTL = 3600

// NewDeSEC returns a Backend that writes to deSEC. One PATCH of many RRsets is one transaction there, and gates make it happen at most
// once. The account's limits of writes are small (15 a minute and 300 a day for each domain): raise min_gap. It fails when the options
// cannot work.
func NewDeSEC(o DeSECOptions) (Backend, error) {
	if o.Token == "" {
		return nil, errors.New("deSEC needs a token")
	}
	r, err := newREST(restOptions{
		base: cmp.Or(o.URL, "https://desec.io/api/v1"), secrets: []string{o.Token}, timeout: o.Timeout, client: o.client,
		rate: 5, burst: 10, explain: explainDeSEC,
		auth: func(r *http.Request) { r.Header.Set("Authorization", "Token "+o.Token) },
	})
	if err != nil {
		return nil, err
	}
	return newLedger(&deSEC{rest: r, minTTL: cmp.Or(o.MinTTL, deSECMinTTL)}, 0), nil
}

// deSEC is a driver. It keeps nothing.
type deSEC struct {
	rest   *rest
	minTTL uint32
}

type deSECDomain struct {
	Name string `json:"name"`
}

type deSECRRset struct {
	Subname string   `json:"subname"` // relative to the domain; empty: its apex
	Type    string   `json:"type"`
	TTL     uint32   `json:"ttl,omitempty"`
	Records []string `json:"records"` // none: the RRset goes
}

// deSECPage is one page of a list, and where the next one is.
type deSECPage[T any] struct {
	items []T
	link  string
}

// UnmarshalJSON reads the items; the rest of a page is in its header.
func (p *deSECPage[T]) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &p.items) }

func (p *deSECPage[T]) head(h http.Header) { p.link = h.Get("Link") }

// next returns the cursor of the next page, as the Link header has it (RFC 8288 §3).
func (p *deSECPage[T]) next() string {
	for link := range strings.SplitSeq(p.link, ",") {
		target, params, _ := strings.Cut(link, ";")
		if !strings.Contains(params, `rel="next"`) {
			continue
		}
		u, err := url.Parse(strings.Trim(strings.TrimSpace(target), "<>"))
		if err != nil {
			continue
		}
		return u.Query().Get("cursor")
	}
	return ""
}

// deSECList reads all pages of a list.
func deSECList[T any](ctx context.Context, r *rest, path string) ([]T, error) {
	var all []T
	err := r.pages(func(mark string) (string, error) {
		var p deSECPage[T]
		if err := r.get(ctx, path, url.Values{"cursor": {mark}}, &p); err != nil {
			return "", err
		}
		if p.items == nil {
			return "", r.malformed(false, "the answer is no list")
		}
		all = append(all, p.items...)
		return p.next(), nil
	})
	return all, err
}

func (d *deSEC) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true, Batch: 500, MinTTL: d.minTTL}
}

func (d *deSEC) zones(ctx context.Context) ([]rota.Name, error) {
	domains, err := deSECList[deSECDomain](ctx, d.rest, "/domains/")
	if err != nil {
		return nil, err
	}
	var out []rota.Name
	for _, z := range domains {
		n, err := rota.ParseName(z.Name)
		if err != nil {
			return nil, d.rest.malformed(false, "a domain without a name: %v", err)
		}
		out = append(out, n)
	}
	return out, nil
}

func (d *deSEC) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	sets, err := deSECList[deSECRRset](ctx, d.rest, deSECPath(zone))
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, s := range sets {
		n := zone
		if s.Subname != "" {
			if n, err = rota.ParseName(s.Subname + "." + zone.String()); err != nil {
				return nil, d.rest.malformed(false, "a record without a name: %v", err)
			}
		}
		if s.Type == "" {
			return nil, d.rest.malformed(false, "a record without a type")
		}
		for _, data := range s.Records {
			out = append(out, newEntry(n, s.Type, s.TTL, data))
		}
	}
	return out, nil
}

func (d *deSEC) commit(ctx context.Context, b Batch, held []entry) error {
	var sets []deSECRRset
	for _, c := range conditional(b, held) {
		s := deSECRRset{Subname: relative(b.Zone, c.Key().Name), Type: mnemonic(c.Key().Type), Records: []string{}}
		if len(c.New.Data) > 0 {
			s.TTL, s.Records = max(c.New.TTL, d.minTTL), c.New.Data
		}
		sets = append(sets, s)
	}
	return movedBy(d.rest.do(ctx, http.MethodPatch, deSECPath(b.Zone), sets, nil))
}

func deSECPath(zone rota.Name) string {
	return "/domains/" + url.PathEscape(strings.TrimSuffix(zone.String(), ".")) + "/rrsets/"
}

// deSECSaid bounds how many of an API's sentences are shown.
const deSECSaid = 3

func explainDeSEC(a *restAnswer) *Reason {
	said := deSECSentences(a.body)
	if len(said) == 0 {
		return nil
	}
	r := &Reason{Text: "deSEC says: " + strings.Join(said[:min(len(said), deSECSaid)], " ")}
	if a.status != http.StatusBadRequest {
		return r
	}
	all := strings.Join(said, " ")
	switch {
	case strings.Contains(all, "conflicting type present"):
		r.Code = errExclusive
	case strings.Contains(all, "greater than or equal to"):
		r.Code, r.Advice = CodeUnsupported, "set min_ttl of the publisher to what deSEC allows the domain"
	}
	return r
}

// deSECSentences collects every text of an error: deSEC answers with one object, or with one for each RRset of the request.
func deSECSentences(body []byte) []string {
	var any any
	if json.Unmarshal(body, &any) != nil {
		return nil
	}
	var out []string
	collect(any, &out)
	return out
}

func collect(v any, out *[]string) {
	switch v := v.(type) {
	case string:
		*out = append(*out, v)
	case []any:
		for _, x := range v {
			collect(x, out)
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			collect(v[k], out)
		}
	}
}
