package publish

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

// fakeRoute53 is Route 53 as its API reference and its users tell: sets of records in the order of their labels from the right, octal
// escapes, change batches that happen whole or not at all.
type fakeRoute53 struct {
	*apiFront
	t testing.TB

	mu      sync.Mutex // guards what follows
	sets    map[string]r53Set
	listed  bool
	changes int
	asked   int       // for a change
	pending int       // times that a change is not everywhere yet
	trouble [3]string // HTTP status, code and message that every request is answered with; empty: none
	pause   string    // Retry-After of trouble
}

type r53Set struct {
	Name    string     `xml:"Name"`
	Type    string     `xml:"Type"`
	SetID   string     `xml:"SetIdentifier,omitempty"`
	Weight  string     `xml:"Weight,omitempty"`
	TTL     string     `xml:"TTL,omitempty"`
	Values  []r53Value `xml:"ResourceRecords>ResourceRecord,omitempty"`
	AliasTo *r53Alias  `xml:"AliasTarget"`
}

type r53Alias struct {
	DNSName string
}

type r53Value struct {
	Value string
}

func byValue(a, b r53Value) int { return strings.Compare(a.Value, b.Value) }

func (s r53Set) key() string { return s.Name + " " + s.Type }

func newFakeRoute53(t testing.TB) fakeAPI {
	f := &fakeRoute53{t: t, sets: map[string]r53Set{}}
	f.apiFront = &apiFront{handler: f, changes: func(r *http.Request, _ []byte) bool { return r.Method == http.MethodPost }}
	f.edit("example.test.", append([]string{
		"example.test. 172800 IN NS ns-1.awsdns-00.com.", "example.test. 900 IN SOA ns-1.awsdns-00.com. awsdns-hostmaster.amazon.com. 1 7200 900 1209600 86400",
	}, apiForeign...), nil)
	return f
}

func (f *fakeRoute53) backend(t testing.TB) Backend {
	b, err := NewRoute53(Route53Options{AccessKey: "AKIAROTA", SecretKey: f.secret(), Region: "us-east-1", Timeout: 2 * time.Second, client: f.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeRoute53) secret() string { return "hush-this-is-the-aws-secret" }

func (f *fakeRoute53) records(string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range f.sets {
		if s.Type == "SOA" || s.Type == "NS" && s.Name == "example.test." {
			continue
		}
		for _, v := range s.Values {
			out = append(out, fmt.Sprintf("%s %s IN %s %s", strings.ReplaceAll(s.Name, `\052`, "*"), s.TTL, s.Type, v.Value))
		}
	}
	slices.Sort(out)
	return out
}

func (f *fakeRoute53) edit(_ string, add, remove []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range remove {
		p := strings.SplitN(line, " ", 5)
		k := strings.ReplaceAll(p[0], "*", `\052`) + " " + p[3]
		s := f.sets[k]
		s.Values = slices.DeleteFunc(slices.Clone(s.Values), func(v r53Value) bool { return v.Value == p[4] })
		f.sets[k] = s
		if len(s.Values) == 0 {
			delete(f.sets, k)
		}
	}
	for _, line := range add {
		p := strings.SplitN(line, " ", 5)
		s := r53Set{Name: strings.ReplaceAll(p[0], "*", `\052`), Type: p[3]}
		s.Values = append(slices.Clone(f.sets[s.key()].Values), r53Value{p[4]})
		s.TTL = p[1]
		f.sets[s.key()] = s
	}
}

func (f *fakeRoute53) fail(k apiFault, n int) bool {
	switch k {
	case apiStale, apiPartial:
		return false // lists hold what is pending, and a batch is a transaction
	case apiLoop:
		return false // a list of one name ends at the next one; see TestRoute53Locked
	}
	return f.apiFront.fail(k, n)
}

func (f *fakeRoute53) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIAROTA/") {
		f.t.Errorf("a request without a signature: %s", r.URL)
	}
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/2013-04-01"), "/")
	switch {
	case f.trouble[0] != "":
		status, _ := strconv.Atoi(f.trouble[0])
		if f.pause != "" {
			w.Header().Set("Retry-After", f.pause)
		}
		f.refuse(w, status, f.trouble[1], f.trouble[2])
	case r.Method == http.MethodGet && path == "/hostedzone":
		f.answer(w, `<ListHostedZonesResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><HostedZones>`+
			`<HostedZone><Id>/hostedzone/Z1</Id><Name>example.test.</Name><CallerReference>a</CallerReference><Config><PrivateZone>false</PrivateZone></Config></HostedZone>`+
			`<HostedZone><Id>/hostedzone/Z2</Id><Name>example.test.</Name><CallerReference>b</CallerReference><Config><PrivateZone>true</PrivateZone></Config></HostedZone>`+
			`<HostedZone><Id>/hostedzone/Z3</Id><Name>twin.test.</Name><CallerReference>c</CallerReference></HostedZone>`+
			`<HostedZone><Id>/hostedzone/Z4</Id><Name>twin.test.</Name><CallerReference>d</CallerReference></HostedZone>`+
			`</HostedZones><IsTruncated>false</IsTruncated><MaxItems>100</MaxItems></ListHostedZonesResponse>`)
	case r.Method == http.MethodGet && path == "/hostedzone/Z1/rrset":
		f.list(w, r)
	case r.Method == http.MethodPost && path == "/hostedzone/Z1/rrset":
		f.change(w, r)
	case r.Method == http.MethodGet && strings.HasPrefix(path, "/change/C"):
		f.asked++
		status := "INSYNC"
		if f.asked <= f.pending {
			status = "PENDING"
		}
		f.answer(w, `<GetChangeResponse><ChangeInfo><Id>/change/C1</Id><Status>`+status+`</Status><SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo></GetChangeResponse>`)
	default:
		f.refuse(w, 404, "NoSuchHostedZone", "No hosted zone found with ID: "+path)
	}
}

func (f *fakeRoute53) answer(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/xml")
	io.WriteString(w, `<?xml version="1.0"?>`+"\n"+body)
}

func (f *fakeRoute53) refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><Error><Type>Sender</Type><Code>%s</Code><Message>`, code)
	xml.EscapeText(w, []byte(message))
	io.WriteString(w, `</Message></Error><RequestId>r</RequestId></ErrorResponse>`)
}

// reversed is the order of a list: by labels from the right.
func reversed(name string) string {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	slices.Reverse(labels)
	return strings.Join(labels, "\x00")
}

func (f *fakeRoute53) list(w http.ResponseWriter, r *http.Request) {
	f.listed = true
	var sets []r53Set
	if !f.playing(apiEmpty) {
		for _, s := range f.sets {
			sets = append(sets, s)
		}
	}
	if f.playing(apiAlien) {
		sets = append(sets, r53Set{Name: "alias.example.test.", Type: "A", AliasTo: &r53Alias{"lb.amazonaws.com."}},
			r53Set{Name: "odd.type.example.test.", Type: "NAPTR", TTL: "60", Values: []r53Value{{`10 100 "s" "SIP+D2U" "" _sip._udp.example.test.`}}},
			r53Set{Name: "new.example.test.", Type: "QUANTUM", TTL: "60", Values: []r53Value{{"|0> + |1>"}}},
			r53Set{Name: "w.example.test.", Type: "A", SetID: "blue", Weight: "1", TTL: "60", Values: []r53Value{{"198.51.100.1"}}})
	}
	slices.SortFunc(sets, func(a, b r53Set) int {
		return strings.Compare(reversed(a.Name)+" "+a.Type, reversed(b.Name)+" "+b.Type)
	})
	name, kind := r.URL.Query().Get("name"), r.URL.Query().Get("type")
	from := 0
	if name != "" {
		name = strings.ReplaceAll(name, "*", `\052`)
		for from < len(sets) && reversed(sets[from].Name)+" "+sets[from].Type < reversed(name)+" "+kind {
			from++
		}
	}
	page := 4
	if len(sets) > 100 {
		page = 300
	}
	end := min(from+page, len(sets))
	var b strings.Builder
	b.WriteString(`<ListResourceRecordSetsResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><ResourceRecordSets>`)
	for _, s := range sets[from:end] {
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"ResourceRecordSet"`
			r53Set
		}{r53Set: s})
		if err != nil {
			f.t.Error(err)
		}
		b.Write(text)
	}
	b.WriteString(`</ResourceRecordSets>`)
	if end < len(sets) || f.playing(apiLoop) {
		next := sets[0]
		if !f.playing(apiLoop) {
			next = sets[end]
		}
		fmt.Fprintf(&b, `<IsTruncated>true</IsTruncated><NextRecordName>%s</NextRecordName><NextRecordType>%s</NextRecordType>`, next.Name, next.Type)
	} else {
		b.WriteString(`<IsTruncated>false</IsTruncated>`)
	}
	fmt.Fprintf(&b, `<MaxItems>%d</MaxItems></ListResourceRecordSetsResponse>`, page)
	f.answer(w, b.String())
}

func (f *fakeRoute53) change(w http.ResponseWriter, r *http.Request) {
	if !f.listed {
		f.t.Error("a write before a list")
	}
	var in struct {
		Changes []struct {
			Action string
			Set    r53Set `xml:"ResourceRecordSet"`
		} `xml:"ChangeBatch>Changes>Change"`
	}
	if err := xml.NewDecoder(r.Body).Decode(&in); err != nil {
		f.refuse(w, 400, "InvalidInput", err.Error())
		return
	}
	var messages []string
	say := func(format string, args ...any) { messages = append(messages, fmt.Sprintf(format, args...)) }
	next := map[string]r53Set{}
	for k, s := range f.sets {
		next[k] = s
	}
	records, chars := 0, 0
	for _, c := range in.Changes {
		s := c.Set
		s.Name = strings.ReplaceAll(strings.ToLower(s.Name), "*", `\052`)
		slices.SortFunc(s.Values, byValue)
		for _, v := range s.Values {
			records++
			chars += len(v.Value)
		}
		old, there := next[s.key()]
		slices.SortFunc(old.Values, byValue)
		what := fmt.Sprintf("[name='%s', type='%s']", s.Name, s.Type)
		switch {
		case !strings.HasSuffix(s.Name, "example.test."):
			say("RRSet with DNS name %s is not permitted in zone example.test.", s.Name)
		case c.Action == "DELETE" && !there:
			say("Tried to delete resource record set %s but it was not found", what)
		case c.Action == "DELETE" && (old.TTL != s.TTL || !slices.Equal(old.Values, s.Values)):
			say("Tried to delete resource record set %s but the values provided do not match the current values", what)
		case c.Action == "DELETE":
			delete(next, s.key())
		case c.Action == "CREATE" && there:
			say("Tried to create resource record set %s but it already exists", what)
		case c.Action == "CREATE" && (s.TTL == "" || len(s.Values) == 0):
			say("Missing field 'TTL' or 'ResourceRecords' in Change with [Action=CREATE, Name=%s, Type=%s]", s.Name, s.Type)
		case c.Action == "CREATE":
			next[s.key()] = s
		default:
			say("unknown action %q", c.Action)
		}
	}
	names := map[string][]string{}
	for _, s := range next {
		names[s.Name] = append(names[s.Name], s.Type)
	}
	for n, kinds := range names {
		if len(kinds) > 1 && slices.Contains(kinds, "CNAME") {
			say("RRSet of type CNAME with DNS name %s is not permitted as it conflicts with other records with the same DNS name in zone example.test.", n)
		}
	}
	switch {
	case records > 1000 || chars > 32000:
		f.refuse(w, 400, "InvalidChangeBatch", fmt.Sprintf("[%d records, %d characters]", records, chars))
	case len(messages) > 0:
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(400)
		io.WriteString(w, `<InvalidChangeBatch xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><Messages>`)
		for _, m := range messages {
			io.WriteString(w, "<Message>")
			xml.EscapeText(w, []byte(m))
			io.WriteString(w, "</Message>")
		}
		io.WriteString(w, `</Messages><RequestId>r</RequestId></InvalidChangeBatch>`)
	default:
		f.sets = next
		f.changes++
		f.answer(w, `<ChangeResourceRecordSetsResponse><ChangeInfo><Id>/change/C`+strconv.Itoa(f.changes)+
			`</Id><Status>PENDING</Status><SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo></ChangeResourceRecordSetsResponse>`)
	}
}

func TestRoute53(t *testing.T) { apiConformance(t, true, newFakeRoute53) }

func TestRoute53Zones(t *testing.T) {
	f := newFakeRoute53(t).(*fakeRoute53)
	b := f.backend(t)
	if z, err := b.Zone(t.Context(), "a.b.example.test."); z != "example.test." || err != nil {
		t.Errorf("the zone is %s, %v", z, err)
	}
	_, err := b.Read(t.Context(), "twin.test.", []rota.Key{{Name: "twin.test.", Type: rota.TypeA}})
	if r := ReasonOf(err); err == nil || r.Code != CodeNoZone || !strings.Contains(r.Text, "Z3, Z4") {
		t.Errorf("two zones of one name: %v", err)
	}
	_, err = b.Zone(t.Context(), "www.nowhere.test.")
	if r := ReasonOf(err); err == nil || r.Code != CodeNoZone {
		t.Errorf("no zone: %v", err)
	}
}

func TestRoute53Locked(t *testing.T) {
	f := newFakeRoute53(t).(*fakeRoute53)
	f.apiFront.fail(apiAlien, -1)
	keys := []rota.Key{
		{Name: "alias.example.test.", Type: rota.TypeA},
		{Name: "w.example.test.", Type: rota.TypeA},
		{Name: "new.example.test.", Type: rota.TypeA},
		{Name: "*.wild.example.test.", Type: rota.TypeA},
	}
	got, err := f.backend(t).Read(t.Context(), "example.test.", keys)
	if err != nil {
		t.Fatal(err)
	}
	f.apiFront.fail(apiLoop, -1)
	many := append(slices.Clone(keys), rota.Key{Name: "a.example.test.", Type: rota.TypeA})
	if _, err := f.backend(t).Read(t.Context(), "example.test.", many); ReasonOf(err).Code != CodeMalformed {
		t.Errorf("a list without an end: %v", err)
	}
	for _, n := range []rota.Name{"alias.example.test.", "w.example.test.", "new.example.test."} {
		if r := got.Blocked[n]; r == nil || r.Code != CodeOther {
			t.Errorf("%s: %v", n, r)
		}
	}
	if s := find(got.Sets, keys[3]); !cmp.Equal(s.Data, []string{"198.51.100.80"}) {
		t.Errorf("the wildcard is %v", s)
	}
}

func TestRoute53Reasons(t *testing.T) {
	for _, c := range []struct {
		trouble   [3]string
		code      Code
		transient bool
	}{
		{[3]string{"400", "Throttling", "Rate exceeded"}, CodeRateLimited, true},
		{[3]string{"400", "PriorRequestNotComplete", "The request was rejected because Route 53 was still processing a prior request."}, CodeRateLimited, true},
		{[3]string{"403", "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: route53:ListResourceRecordSets"}, CodeDenied, false},
		{[3]string{"403", "SignatureDoesNotMatch", "The request signature we calculated does not match"}, CodeDenied, false},
		{[3]string{"403", "InvalidClientTokenId", "The security token included in the request is invalid."}, CodeDenied, false},
		{[3]string{"400", "RequestExpired", "Request timestamp expired"}, CodeBadTime, true},
		{[3]string{"404", "NoSuchHostedZone", "No hosted zone found with ID: Z1"}, CodeNoZone, false},
		{[3]string{"400", "LimitsExceeded", "Limit exceeded"}, CodeQuota, false},
		{[3]string{"400", "InvalidInput", "Invalid XML"}, CodeUnsupported, false},
		{[3]string{"503", "ServiceUnavailable", "Service is unavailable"}, CodeServfail, true},
	} {
		f := newFakeRoute53(t).(*fakeRoute53)
		f.trouble = c.trouble
		_, err := f.backend(t).Read(t.Context(), "example.test.", []rota.Key{{Name: "app.example.test.", Type: rota.TypeA}})
		if r := ReasonOf(err); err == nil || r.Code != c.code || r.Transient != c.transient || r.InDoubt || r.Advice == "" || !strings.Contains(r.Text, c.trouble[2]) {
			t.Errorf("%v: %+v", c.trouble, err)
		}
	}
}

// A Write waits until the change is everywhere, and not for ever; that it may not look is no failure.
func TestRoute53Wait(t *testing.T) {
	for _, c := range []struct {
		pending  int
		min, max time.Duration
	}{{0, time.Second, 2 * time.Second}, {2, 6 * time.Second, 9 * time.Second}, {1000, 30 * time.Second, 32 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRoute53(t).(*fakeRoute53)
			f.pending = c.pending
			b, err := NewRoute53(Route53Options{AccessKey: "AKIAROTA", SecretKey: f.secret(), Wait: 30 * time.Second, client: f.apiFront})
			if err != nil {
				t.Fatal(err)
			}
			zone := rota.Name("example.test.")
			none := rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}
			start := time.Now()
			_, err = b.Write(t.Context(), Batch{Zone: zone, Fence: rota.Change{Old: none, New: Fence{}.take("test", 1).RRset(zone)}})
			if took := time.Since(start); err != nil || took < c.min || took > c.max {
				t.Errorf("pending %d times: %v after %v", c.pending, err, took)
			}
		})
	}
}

// A batch stays below 1,000 records and 32,000 characters, and no name is parted.
// A change says whose it is, within what Route 53 takes, also when the fence goes.
func TestRoute53Comment(t *testing.T) {
	long := Fence{Owner: strings.Repeat("o", 128), Epoch: 1, Offer: strings.Repeat("p", 128)}.RRset("example.test.")
	for _, tt := range []struct {
		fence rota.RRset
		want  string
	}{
		{Fence{Owner: "me", Epoch: 7, By: "x"}.RRset("example.test."), `rota "owner=me epoch=7 seq=0 by=x"`},
		{rota.RRset{Name: FenceKey("example.test.").Name, Type: rota.TypeTXT}, "rota gives the zone up"},
		{long, ("rota " + long.Data[0])[:256]},
	} {
		if got := route53Comment(tt.fence); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestRoute53Pack(t *testing.T) {
	d := &amazon{}
	for _, c := range []struct{ names, records, length, want int }{
		{1000, 1, 9, 984}, {1000, 10, 9, 98}, {10, 4, 4000, 1}, {1, 1, 40000, 1}, {3, 1, 10, 3}, {0, 0, 0, 0},
	} {
		var changes []rota.Change
		for i := range c.names {
			s := rota.RRset{Name: rota.Name(fmt.Sprintf("s%d.example.test.", i)), Type: rota.TypeTXT}
			for range c.records {
				s.Data = append(s.Data, strings.Repeat("x", c.length))
			}
			changes = append(changes, rota.Change{Old: rota.RRset{Name: s.Name, Type: s.Type}, New: s})
		}
		if got := d.pack(changes); got != c.want {
			t.Errorf("%d names of %d records of %d characters: %d fit, want %d", c.names, c.records, c.length, got, c.want)
		}
	}
}

func TestRoute53Options(t *testing.T) {
	for _, o := range []Route53Options{{AccessKey: "AKIA"}, {SecretKey: "hush"}, {Wait: time.Hour}, {Wait: -1}, {Profile: "none-of-this-name"}} {
		if _, err := NewRoute53(o); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	b, err := NewRoute53(Route53Options{AccessKey: "AKIA", SecretKey: "hush"})
	if err != nil {
		t.Fatal(err)
	}
	client := b.(*ledger).driver.(*amazon).api.Options().HTTPClient.(*http.Client)
	if client.Transport.(capped).RoundTripper.(*http.Transport).Proxy != nil {
		t.Error("a proxy of the environment would be asked")
	}
}

// Route 53's answers are read up to a bound, and nobody is followed to elsewhere with its credentials.
func TestRoute53Elsewhere(t *testing.T) {
	read := 0
	redirect := true
	b, err := NewRoute53(Route53Options{AccessKey: "AKIAROTA", SecretKey: "hush", client: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "route53.amazonaws.com" {
			t.Errorf("asks %s", r.URL)
		}
		a := answer(r, 200, "text/xml", "")
		if redirect {
			a.StatusCode = 302
			a.Header.Set("Location", "https://elsewhere.example.test/")
		} else {
			a.Body, a.ContentLength = endless{&read}, -1
		}
		return a, nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Zone(t.Context(), www.Name); ReasonOf(err).Code != CodeMalformed {
		t.Errorf("a redirect: %v", err)
	}
	redirect = false
	if _, err := b.Zone(t.Context(), www.Name); ReasonOf(err).Code != CodeMalformed || read > 2*maxAnswer {
		t.Errorf("%v, %d bytes read", err, read)
	}
}

func TestOctets(t *testing.T) {
	for _, c := range []struct{ route53, dns string }{
		{"www.example.test.", "www.example.test."},
		{`\052.a.`, `\042.a.`},
		{`a\100b.`, `a\064b.`},
		{`"a\"b\\c\351"`, `"a\"b\\c\233"`},
		{`a\`, `a\`},
		{`\\052`, `\\052`},
	} {
		if got := octets(c.route53, 8, 10); got != c.dns {
			t.Errorf("%s is %s, want %s", c.route53, got, c.dns)
		}
		if got := octets(c.dns, 10, 8); got != c.route53 {
			t.Errorf("%s is %s, want %s", c.dns, got, c.route53)
		}
	}
}

func FuzzOctets(f *testing.F) {
	f.Add(`\052.a\100b.`)
	f.Add(`"a\"b\\c\351"`)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1000 {
			return
		}
		there := octets(text, 8, 10)
		if back := octets(there, 10, 8); octets(back, 8, 10) != there {
			t.Errorf("%q is %q is %q", text, there, back)
		}
	})
}
