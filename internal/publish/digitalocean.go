package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// DigitalOceanOptions say how to reach one account of DigitalOcean (API v2). Token must be set. They print without it.
type DigitalOceanOptions struct {
	URL    string            // empty: https://api.digitalocean.com/v2
	Token  string            // with the scope to read and write domains
	Client http.RoundTripper // nil: plain HTTPS without a proxy
}

func (o DigitalOceanOptions) String() string { return "DigitalOcean" }

// GoString hides the token from %#v.
func (o DigitalOceanOptions) GoString() string { return o.String() }

// digitalOcean is the driver. DigitalOcean changes one record a request.
type digitalOcean struct{ rest *rest }

// NewDigitalOcean returns a Backend for the zones of an account.
func NewDigitalOcean(o DigitalOceanOptions) (Backend, error) {
	if o.Token == "" {
		return nil, fmt.Errorf("DigitalOcean needs a token that may read and write domains")
	}
	r, err := newREST(restOptions{
		base:    cmp.Or(o.URL, "https://api.digitalocean.com/v2"),
		auth:    func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+o.Token) },
		secrets: []string{o.Token},
		rate:    4, // 250 a minute
		burst:   20,
		account: o.Token,
		explain: explainDigitalOcean,
		client:  o.Client,
	})
	if err != nil {
		return nil, err
	}
	return newLedger(&digitalOcean{rest: r}, settleFor), nil
}

func (d *digitalOcean) capabilities() Capabilities {
	return Capabilities{
		Fence: FenceCompare, Batch: 25, MinTTL: 30, Types: []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT},
	}
}

func explainDigitalOcean(a *restAnswer) *Reason {
	var said struct {
		ID      string `json:"id"`
		Message string `json:"message"`
	}
	r := &Reason{}
	if json.Unmarshal(a.body, &said) == nil && said.Message != "" {
		r.Text = strings.TrimSpace(fmt.Sprintf("DigitalOcean says %q (%s, HTTP %d)", said.Message, said.ID, a.status))
	}
	if a.status == http.StatusTooManyRequests {
		r.Code, r.Transient = CodeRateLimited, true
		r.Text = cmp.Or(r.Text, "DigitalOcean takes 250 requests a minute and 5,000 an hour, and says that it has had them")
		if at, err := strconv.ParseInt(a.header.Get("ratelimit-reset"), 10, 64); err == nil {
			r.After = min(max(time.Until(time.Unix(at, 0)), 0), MaxAfter)
		}
	}
	if r.Text == "" {
		return nil
	}
	return r
}

// digitalOceanPage is how many zones or records are asked for at once, which is the most that can be.
const digitalOceanPage = 200

// digitalOceanList is what every page says of the list.
type digitalOceanList struct {
	Links struct {
		Pages struct {
			Next string `json:"next"`
		} `json:"pages"`
	} `json:"links"`
	Meta struct {
		Total *int `json:"total"`
	} `json:"meta"`
}

// pages reads a list whole. each reads one page, and says how many elements it has and what it says of the list. A list that changes
// while its pages are read may hide an element, so that it is read anew.
func (d *digitalOcean) pages(each func(query url.Values) (int, digitalOceanList, error)) error {
	sum, total := 0, -1
	err := d.rest.pages(func(mark string) (string, error) {
		n, list, err := each(url.Values{"per_page": {strconv.Itoa(digitalOceanPage)}, "page": {cmp.Or(mark, "1")}})
		if err != nil {
			return "", err
		}
		sum += n
		if list.Meta.Total != nil {
			total = *list.Meta.Total
		}
		if list.Links.Pages.Next == "" {
			return "", nil
		}
		// Only the number is taken: where the link leads is not for the API to say.
		next, err := url.Parse(list.Links.Pages.Next)
		if err != nil || next.Query().Get("page") == "" || next.Query().Get("page") == "1" {
			return "", d.rest.malformed(false, "the next page of a list has no number: %q", list.Links.Pages.Next)
		}
		return next.Query().Get("page"), nil
	})
	if err == nil && total >= 0 && sum != total {
		return &Reason{
			Code: CodeMoving, Transient: true, Server: d.rest.server, Text: fmt.Sprintf("a list of %d has %d elements: it changed while it was read", total, sum),
			Advice: "it is read again",
		}
	}
	return err
}

func (d *digitalOcean) zones(ctx context.Context) ([]rota.Name, error) {
	var out []rota.Name
	err := d.pages(func(query url.Values) (int, digitalOceanList, error) {
		var page struct {
			digitalOceanList
			Domains *[]struct {
				Name string `json:"name"`
			} `json:"domains"`
		}
		if err := d.rest.get(ctx, "/domains", query, &page); err != nil {
			return 0, page.digitalOceanList, err
		}
		if page.Domains == nil {
			return 0, page.digitalOceanList, d.rest.malformed(false, "the answer has no list of domains")
		}
		for _, z := range *page.Domains {
			if n, err := rota.ParseName(z.Name); err == nil {
				out = append(out, n)
			}
		}
		return len(*page.Domains), page.digitalOceanList, nil
	})
	return out, err
}

func digitalOceanPath(zone rota.Name) string {
	return "/domains/" + url.PathEscape(zone.Short()) + "/records"
}

func (d *digitalOcean) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	var out []entry
	err := d.pages(func(query url.Values) (int, digitalOceanList, error) {
		var page struct {
			digitalOceanList
			Records *[]struct {
				ID       int64  `json:"id"`
				Type     string `json:"type"`
				Name     string `json:"name"` // relative, @ at the apex
				Data     string `json:"data"`
				TTL      uint32 `json:"ttl"`
				Priority uint16 `json:"priority"`
				Weight   uint16 `json:"weight"`
				Port     uint16 `json:"port"`
			} `json:"domain_records"`
		}
		if err := d.rest.get(ctx, digitalOceanPath(zone), query, &page); err != nil {
			return 0, page.digitalOceanList, err
		}
		if page.Records == nil {
			return 0, page.digitalOceanList, d.rest.malformed(false, "the answer has no list of records")
		}
		for _, r := range *page.Records {
			name, err := inZone(zone, r.Name)
			if err != nil {
				continue // no name of ours
			}
			if r.Data == "@" && !strings.EqualFold(r.Type, "TXT") {
				r.Data = zone.String()
			}
			switch strings.ToUpper(r.Type) {
			case "MX":
				r.Data = fmt.Sprintf("%d %s", r.Priority, r.Data)
			case "SRV":
				r.Data = fmt.Sprintf("%d %d %d %s", r.Priority, r.Weight, r.Port, r.Data)
			}
			e := newEntry(name, r.Type, r.TTL, r.Data)
			e.ID = strconv.FormatInt(r.ID, 10)
			out = append(out, e)
		}
		return len(*page.Records), page.digitalOceanList, nil
	})
	return out, err
}

func (d *digitalOcean) commit(ctx context.Context, b Batch, held []entry) error {
	return stepwise(ctx, d, b, held)
}

func (d *digitalOcean) create(ctx context.Context, zone rota.Name, e entry) error {
	in := struct {
		Type string `json:"type"`
		Name string `json:"name"`
		Data string `json:"data"`
		TTL  uint32 `json:"ttl"`
	}{mnemonic(e.Key.Type), cmp.Or(relative(zone, e.Key.Name), "@"), e.Data, e.TTL}
	if e.Key.Type == rota.TypeTXT {
		text, err := plainTXT(e.Data)
		if err != nil {
			return &Reason{Code: CodeUnsupported, Name: e.Key.Name, Text: err.Error()}
		}
		in.Data = text
	}
	var made struct {
		Record struct {
			ID int64 `json:"id"`
		} `json:"domain_record"`
	}
	if err := d.rest.do(ctx, http.MethodPost, digitalOceanPath(zone), in, &made); err != nil {
		return err
	}
	if made.Record.ID == 0 {
		return d.rest.malformed(true, "the answer to a new record does not have one")
	}
	return nil
}

func (d *digitalOcean) retime(ctx context.Context, zone rota.Name, e entry, ttl uint32) error {
	return d.rest.do(ctx, http.MethodPatch, digitalOceanPath(zone)+"/"+e.ID, map[string]any{"type": mnemonic(e.Key.Type), "ttl": ttl}, nil)
}

// remove removes a record by its number. Not found is what is wanted.
func (d *digitalOcean) remove(ctx context.Context, zone rota.Name, e entry) error {
	err := d.rest.do(ctx, http.MethodDelete, digitalOceanPath(zone)+"/"+e.ID, nil, nil)
	if err != nil && ReasonOf(err).Code == CodeNoZone {
		return nil
	}
	return err
}
