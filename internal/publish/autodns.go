package publish

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// AutoDNSOptions say how to reach one account of AutoDNS (InterNetX, Domainrobot JSON API). User and Password must be set. They print
// without the password.
type AutoDNSOptions struct {
	URL      string // empty: https://api.autodns.com/v1
	User     string
	Password string
	Context  int               // of the account, X-Domainrobot-Context; 0: 4, AutoDNS itself
	Rate     float64           // requests a second of all who use the account in this process; 0: 3, which is what the API takes
	Client   http.RoundTripper // nil: plain HTTPS without a proxy
}

func (o AutoDNSOptions) String() string { return fmt.Sprintf("AutoDNS user %s", o.User) }

// GoString hides the password from %#v.
func (o AutoDNSOptions) GoString() string { return o.String() }

// autoDNS is the driver. A batch is one request: the additions and removals of records, the fence's among them, are one update of the
// zone, which AutoDNS makes whole or not at all.
type autoDNS struct {
	rest *rest

	mu  sync.Mutex // guards what follows
	vns map[rota.Name]string
}

// NewAutoDNS returns a Backend for the zones of an account.
func NewAutoDNS(o AutoDNSOptions) (Backend, error) {
	if o.User == "" || o.Password == "" {
		return nil, fmt.Errorf("AutoDNS needs a user and a password")
	}
	o.Context = cmp.Or(o.Context, 4)
	r, err := newREST(restOptions{
		base: cmp.Or(o.URL, "https://api.autodns.com/v1"),
		auth: func(req *http.Request) {
			req.SetBasicAuth(o.User, o.Password)
			req.Header.Set("X-Domainrobot-Context", strconv.Itoa(o.Context))
		},
		secrets: []string{o.Password, base64.StdEncoding.EncodeToString([]byte(o.User + ":" + o.Password))},
		rate:    rate.Limit(cmp.Or(o.Rate, 3)),
		account: fmt.Sprintf("%s %d", o.User, o.Context),
		explain: explainAutoDNS,
		client:  o.Client,
	})
	if err != nil {
		return nil, err
	}
	return newLedger(&autoDNS{rest: r, vns: map[rota.Name]string{}}, settleFor), nil
}

func (a *autoDNS) capabilities() Capabilities {
	return Capabilities{
		Fence: FenceCompare, Atomic: true, MinTTL: 1, // no TTL means the default of the zone
		Types: []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeMX, rota.TypePTR, rota.TypeTXT},
	}
}

// autoDNSAnswer is what wraps every answer.
type autoDNSAnswer struct {
	Status struct {
		Type string `json:"type"` // SUCCESS, NOTIFY, NOTICE, ERROR
		Code string `json:"code"`
		Text string `json:"text"`
	} `json:"status"`
	Messages []struct {
		Text string `json:"text"`
		Code string `json:"code"`
	} `json:"messages"`
	Data []autoDNSZone `json:"data"`
}

type autoDNSZone struct {
	Origin string `json:"origin"`
	VNS    string `json:"virtualNameServer"`
	SOA    struct {
		TTL uint32 `json:"ttl"`
	} `json:"soa"`
	Main    autoDNSMain     `json:"main"`
	WWW     bool            `json:"wwwInclude"`
	Records []autoDNSRecord `json:"resourceRecords"`
}

// autoDNSMain is the apex's A record, when there is one. It is not among the records.
type autoDNSMain struct {
	Address string `json:"address"`
	TTL     uint32 `json:"ttl,omitempty"` // absent: the zone's
}

type autoDNSRecord struct {
	Name  string `json:"name"` // empty at the apex
	TTL   uint32 `json:"ttl,omitempty"`
	Type  string `json:"type"`
	Value string `json:"value"`
	Pref  int    `json:"pref,omitempty"`
}

// AutoDNS' codes of an update that does not fit the zone: a record that is added is there already, one that is removed is not.
const (
	autoDNSDouble = "EF02022"
	autoDNSAbsent = "EF02021"
)

// said returns the API's own words.
func (a *autoDNSAnswer) said() string {
	var parts []string
	for _, m := range a.Messages {
		parts = append(parts, strings.TrimSpace(m.Text+" "+m.Code))
	}
	if a.Status.Text != "" || len(parts) == 0 {
		parts = append(parts, strings.TrimSpace(a.Status.Text+" "+a.Status.Code))
	}
	return strings.TrimSpace(strings.Join(parts, "; "))
}

func (a *autoDNSAnswer) has(code string) bool {
	for _, m := range a.Messages {
		if m.Code == code {
			return true
		}
	}
	return false
}

// moved is the code of a Reason that means ErrMoved, inside this file.
const autoDNSMoved Code = "autodns-moved"

func explainAutoDNS(answer *restAnswer) *Reason {
	var a autoDNSAnswer
	if json.Unmarshal(answer.body, &a) != nil || a.said() == "" {
		return nil
	}
	r := &Reason{Text: fmt.Sprintf("AutoDNS says %q (HTTP %d)", a.said(), answer.status)}
	if a.has(autoDNSDouble) || a.has(autoDNSAbsent) {
		r.Code = autoDNSMoved
	}
	return r
}

// call speaks to the API and looks at the status inside the answer, which may be an error under HTTP 200.
func (a *autoDNS) call(ctx context.Context, method, path string, in any) ([]autoDNSZone, error) {
	var out autoDNSAnswer
	err := a.rest.do(ctx, method, path, in, &out)
	changes := method != http.MethodGet && !strings.HasSuffix(path, "/_search")
	switch {
	case err != nil:
		if r := ReasonOf(err); r.Code == autoDNSMoved {
			return nil, ErrMoved
		} else if !changes {
			r.InDoubt = false
		}
		return nil, err
	case out.Status.Type == "ERROR":
		if out.has(autoDNSDouble) || out.has(autoDNSAbsent) {
			return nil, ErrMoved
		}
		return nil, &Reason{
			Code: CodeRefused, Server: a.rest.server, Text: a.rest.clean(fmt.Sprintf("AutoDNS says %q", out.said())), Advice: "see what the API says",
		}
	case out.Status.Type == "":
		return nil, a.rest.malformed(changes, "the answer has no status")
	}
	return out.Data, nil
}

// autoDNSPage is how many zones are asked for at once.
const autoDNSPage = 1000

// search asks which zones there are, of one name or all.
func (a *autoDNS) search(ctx context.Context, origin string) ([]autoDNSZone, error) {
	type filter struct {
		Key      string `json:"key"`
		Value    string `json:"value"`
		Operator string `json:"operator"`
	}
	type view struct {
		Limit  int `json:"limit"`
		Offset int `json:"offset"`
	}
	in := struct {
		Filters []filter `json:"filters"`
		View    view     `json:"view"`
	}{Filters: []filter{}, View: view{Limit: autoDNSPage}}
	if origin != "" {
		in.Filters = append(in.Filters, filter{"name", origin, "EQUAL"})
	}
	var out []autoDNSZone
	seen := map[string]bool{}
	err := a.rest.pages(func(mark string) (string, error) {
		in.View.Offset = len(out)
		page, err := a.call(ctx, http.MethodPost, "/zone/_search", in)
		if err != nil {
			return "", err
		}
		for _, z := range page {
			id := z.Origin + " " + z.VNS
			if seen[id] {
				return "", a.rest.malformed(false, "the pages of the list of zones repeat themselves")
			}
			seen[id] = true
		}
		out = append(out, page...)
		if len(page) < autoDNSPage {
			return "", nil
		}
		return strconv.Itoa(len(out)), nil
	})
	return out, err
}

func (a *autoDNS) zones(ctx context.Context) ([]rota.Name, error) {
	list, err := a.search(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []rota.Name
	for _, z := range list {
		if n, err := rota.ParseName(z.Origin); err == nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// server returns the name server by which AutoDNS knows a zone.
func (a *autoDNS) server(ctx context.Context, zone rota.Name) (string, error) {
	a.mu.Lock()
	vns := a.vns[zone]
	a.mu.Unlock()
	if vns != "" {
		return vns, nil
	}
	list, err := a.search(ctx, zone.Short())
	if err != nil {
		return "", err
	}
	for _, z := range list {
		n, err := rota.ParseName(z.Origin)
		switch {
		case err != nil || n != zone || z.VNS == "":
		case vns != "":
			return "", &Reason{
				Code: CodeNoZone, Zone: zone, Server: a.rest.server,
				Text:   rota.CleanReason("the account holds the zone twice, at %s and %s", vns, z.VNS),
				Advice: "give rota a user that sees one of them",
			}
		default:
			vns = z.VNS
		}
	}
	if vns == "" {
		return "", &Reason{
			Code: CodeNoZone, Zone: zone, Server: a.rest.server, Text: "the account does not hold the zone",
			Advice: "check the zone, the user and the context; rota never creates zones",
		}
	}
	a.mu.Lock()
	a.vns[zone] = vns
	a.mu.Unlock()
	return vns, nil
}

// mainID marks the entry of the main address.
const mainID = "main"

func (a *autoDNS) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	vns, err := a.server(ctx, zone)
	if err != nil {
		return nil, err
	}
	data, err := a.call(ctx, http.MethodGet, "/zone/"+url.PathEscape(zone.Short())+"/"+url.PathEscape(vns), nil)
	if err != nil {
		if ReasonOf(err).Code == CodeNoZone {
			a.mu.Lock()
			delete(a.vns, zone)
			a.mu.Unlock()
		}
		return nil, err
	}
	if len(data) != 1 {
		return nil, a.rest.malformed(false, "the answer holds %d zones, not one", len(data))
	}
	z := data[0]
	if n, err := rota.ParseName(z.Origin); err != nil || n != zone {
		return nil, a.rest.malformed(false, "the answer is about the zone %q", z.Origin)
	}
	var out []entry
	for _, r := range z.Records {
		name, err := inZone(zone, r.Name)
		if err != nil {
			continue // no name of ours
		}
		e := newEntry(name, r.Type, cmp.Or(r.TTL, z.SOA.TTL), autoDNSText(zone, r))
		verbatim, err := json.Marshal(r)
		if err != nil {
			return nil, a.rest.malformed(false, "a record cannot be kept: %v", err)
		}
		e.ID = string(verbatim)
		out = append(out, e)
	}
	if z.Main.Address != "" {
		e := newEntry(zone, "A", cmp.Or(z.Main.TTL, z.SOA.TTL), z.Main.Address)
		e.ID = mainID
		if z.WWW {
			e.Locked = "is the zone's main address, which wwwInclude gives to www as well; to keep it, switch wwwInclude off there and make www a record of its own"
			www := e
			www.Key.Name = "www." + zone
			www.Locked = "is made of the zone's main address by wwwInclude; to keep it, switch wwwInclude off there and make www a record of its own"
			out = append(out, www)
		}
		out = append(out, e)
	}
	return out, nil
}

// autoDNSText writes the data of a record out: names in it are relative to the zone, the preference stands apart.
func autoDNSText(zone rota.Name, r autoDNSRecord) string {
	switch strings.ToUpper(r.Type) {
	case "CNAME", "NS", "PTR", "DNAME", "MX":
		target, err := inZone(zone, r.Value)
		if err != nil {
			return r.Value // which locks the name
		}
		if strings.EqualFold(r.Type, "MX") {
			return fmt.Sprintf("%d %s", r.Pref, target)
		}
		return target.String()
	case "SRV":
		if len(strings.Fields(r.Value)) == 3 {
			return fmt.Sprintf("%d %s", r.Pref, r.Value)
		}
	}
	return r.Value
}

// native turns data in the form of rota.RRset into a record of the API.
func autoDNSNative(zone rota.Name, k rota.Key, ttl uint32, data string) (autoDNSRecord, error) {
	r := autoDNSRecord{Name: relative(zone, k.Name), TTL: ttl, Type: mnemonic(k.Type), Value: data}
	switch k.Type {
	case rota.TypeTXT:
		text, err := plainTXT(data)
		if err != nil {
			return r, err
		}
		r.Value = text
	case rota.TypeMX:
		pref, target, _ := strings.Cut(data, " ")
		n, err := strconv.ParseUint(pref, 10, 16)
		if err != nil {
			return r, fmt.Errorf("%q is not the data of an MX record", data)
		}
		r.Pref, r.Value = int(n), target
	}
	return r, nil
}

// commit makes one request of the batch: by _stream, which asks for records only, or by PATCH where the main address is to change.
func (a *autoDNS) commit(ctx context.Context, b Batch, held []entry) error {
	plan := autoDNSPlan{zone: b.Zone, held: map[rota.Key][]entry{}, adds: []autoDNSRecord{}, rems: []autoDNSRecord{}}
	for _, e := range held {
		plan.held[e.Key] = append(plan.held[e.Key], e)
	}
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		if err := plan.change(c); err != nil {
			return &Reason{Code: CodeUnsupported, Zone: b.Zone, Name: c.Key().Name, Text: rota.CleanReason("%v", err)}
		}
	}
	zone := "/zone/" + url.PathEscape(b.Zone.Short())
	if plan.main == nil {
		_, err := a.call(ctx, http.MethodPost, zone+"/_stream", struct {
			Adds []autoDNSRecord `json:"adds"`
			Rems []autoDNSRecord `json:"rems"`
		}{plan.adds, plan.rems})
		return err
	}
	vns, err := a.server(ctx, b.Zone)
	if err != nil {
		return err
	}
	_, err = a.call(ctx, http.MethodPatch, zone+"/"+url.PathEscape(vns), struct {
		Origin string          `json:"origin"`
		Main   autoDNSMain     `json:"main"`
		WWW    bool            `json:"wwwInclude"`
		Adds   []autoDNSRecord `json:"resourceRecordsAdd"`
		Rems   []autoDNSRecord `json:"resourceRecordsRem"`
	}{b.Zone.Short(), *plan.main, false, plan.adds, plan.rems})
	return err
}

// autoDNSPlan gathers what a batch adds and removes. Its lists are never nil: null is no list to the API.
type autoDNSPlan struct {
	zone       rota.Name
	held       map[rota.Key][]entry
	adds, rems []autoDNSRecord
	main       *autoDNSMain // what the main address becomes; nil: it stays
}

func (p *autoDNSPlan) change(c rota.Change) error {
	adds := c.Added()
	vacant := false // the main address goes
	for _, e := range p.held[c.Key()] {
		stays := slices.Contains(c.New.Data, e.Data)
		if stays && e.TTL == c.New.TTL {
			continue
		}
		if e.ID == mainID {
			if stays {
				p.main = &autoDNSMain{Address: e.Data, TTL: c.New.TTL}
			} else {
				vacant = true
			}
			continue
		}
		var r autoDNSRecord
		if err := json.Unmarshal([]byte(e.ID), &r); err != nil {
			return err
		}
		p.rems = append(p.rems, r)
		if stays && !slices.Contains(adds, e.Data) {
			adds = append(adds, e.Data)
		}
	}
	if vacant {
		p.main = &autoDNSMain{}
		if len(adds) > 0 { // the place is taken by what comes, so that it is never vacant while the apex has an address
			p.main = &autoDNSMain{Address: adds[0], TTL: c.New.TTL}
			adds = adds[1:]
		}
	}
	for _, data := range adds {
		r, err := autoDNSNative(p.zone, c.Key(), c.New.TTL, data)
		if err != nil {
			return err
		}
		p.adds = append(p.adds, r)
	}
	return nil
}
