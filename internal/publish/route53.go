package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/time/rate"

	"github.com/rota-dns/rota/internal/rota"
)

// Route53Options say how Amazon Route 53 is reached. The zero value takes the credentials from where AWS programs find them: the
// environment, the shared files, the container's or the machine's role.
type Route53Options struct {
	AccessKey string        // id of an access key; empty: as AWS programs find it
	SecretKey string        // of AccessKey
	Profile   string        // of the shared files; empty: the one that the environment names
	Role      string        // ARN of a role to assume (STS); empty: none
	Zone      string        // id of the only hosted zone to be written; empty: zones are found by their names
	Private   bool          // of zones that exist both public and private, the private one is meant
	Wait      time.Duration // how long a Write waits for INSYNC, at most 45 s; 0: not at all
	Region    string        // empty: us-east-1 unless the environment names one; Route 53 has one for all
	Endpoint  string        // URL of the API; empty: Amazon's
	Timeout   time.Duration // of one request; 0: 15 seconds

	client http.RoundTripper
}

func (o Route53Options) String() string { return "Route 53" }

// GoString hides the key from %#v.
func (o Route53Options) GoString() string { return o.String() }

// NewRoute53 returns a Backend that writes to Route 53. A ChangeBatch deletes exactly what was listed and creates what comes instead, the
// fence included: Route 53 refuses it whole when anything differs. It fails when the options cannot work; credentials are first looked
// for when they are needed.
func NewRoute53(o Route53Options) (Backend, error) {
	if (o.AccessKey == "") != (o.SecretKey == "") {
		return nil, errors.New("one part of an access key is missing: Route 53 needs both, or neither and credentials from elsewhere")
	}
	if o.Wait < 0 || o.Wait > route53Wait {
		return nil, fmt.Errorf("waiting for %v is not possible: Route 53 is waited for at most %v", o.Wait, route53Wait)
	}
	o.Timeout = cmp.Or(o.Timeout, 15*time.Second)
	// What is written where is the configuration's word alone: no proxy and no redirect.
	plain := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.Proxy = nil })
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(plain),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }), // the Publisher looks again
		config.WithDefaultRegion("us-east-1"),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(o.Profile))
	}
	if o.AccessKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, "")))
	}
	c, err := config.LoadDefaultConfig(context.Background(), load...)
	if err != nil {
		return nil, fmt.Errorf("configuration of the AWS library: %w", err)
	}
	if b, ok := c.HTTPClient.(*awshttp.BuildableClient); ok && o.client == nil {
		o.client = b.GetTransport() // with the CA bundle that the environment names
	}
	c.HTTPClient = &http.Client{
		Transport:     capped{o.client},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if o.Role != "" {
		c.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(c), o.Role))
	}
	api := route53.NewFromConfig(c, func(r *route53.Options) {
		if o.Endpoint != "" {
			r.BaseEndpoint = &o.Endpoint
		}
	})
	// Five requests a second are allowed to all of an account.
	d := &amazon{o: o, api: api, who: c.Credentials, line: &line{pace: rate.NewLimiter(4, 4)}}
	return newLedger(d, 0), nil
}

// capped bounds the answers of an API.
type capped struct{ http.RoundTripper }

// RoundTrip carries a request; what an answer has beyond maxAnswer is not read.
func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	a, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		a.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(a.Body, maxAnswer), a.Body}
	}
	return a, err
}

// The limits of Route 53.
const (
	route53Wait   = 45 * time.Second // changes are usually everywhere within a minute
	route53Sets   = 1000             // records in a ChangeBatch
	route53Chars  = 32000            // characters of all their values
	route53Note   = 256              // characters of a comment
	route53PerSet = 4                // names that are listed one by one rather than with all of the zone
)

// amazon is a driver.
type amazon struct {
	o    Route53Options
	api  *route53.Client
	who  aws.CredentialsProvider
	line *line

	mu  sync.Mutex // guards what follows
	ids map[rota.Name][]hostedZone
}

// hostedZone is one of the zones of a name.
type hostedZone struct {
	id      string
	private bool
}

// capabilities list the types that Route 53 has; there are more limits than one on a transaction, see pack.
func (d *amazon) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true, Types: []rota.Type{
		rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeTXT, rota.TypePTR, rota.TypeMX, rota.TypeSRV, rota.TypeNS, typeCAA, typeHTTPS, typeSVCB,
	}}
}

// Types that the hub does not name.
const (
	typeCAA   rota.Type = 257
	typeSVCB  rota.Type = 64
	typeHTTPS rota.Type = 65
)

func (d *amazon) pack(changes []rota.Change) int {
	const each = route53Chars / route53Sets
	const fence = 2 * 256
	return fitting(changes, route53Chars-fence, func(c rota.Change) int {
		n := 0
		for _, data := range slices.Concat(c.Old.Data, c.New.Data) {
			n += max(each, len(data))
		}
		return n
	})
}

// turn waits until a request may be made and has credentials, and bounds it.
func (d *amazon) turn(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if why := d.line.turn(ctx, d.o.Timeout, "route53"); why != nil {
		return nil, nil, why
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	if _, err := d.who.Retrieve(ctx); err != nil {
		cancel()
		return nil, nil, &Reason{
			Code: CodeDenied, Transient: true, Server: "route53", Text: rota.CleanReason("no credentials: %v", err),
			Advice: "check where the credentials should come from: keys, environment, shared files, or the role",
		}
	}
	return ctx, cancel, nil
}

func (d *amazon) zones(ctx context.Context) ([]rota.Name, error) {
	ids := map[rota.Name][]hostedZone{}
	add := func(z *types.HostedZone) error {
		n, err := route53Name(aws.ToString(z.Name))
		if err != nil || z.Id == nil {
			return route53Malformed("a hosted zone without a name or an id")
		}
		ids[n] = append(ids[n], hostedZone{strings.TrimPrefix(*z.Id, "/hostedzone/"), z.Config != nil && z.Config.PrivateZone})
		return nil
	}
	if d.o.Zone != "" {
		ctx, cancel, err := d.turn(ctx)
		if err != nil {
			return nil, err
		}
		defer cancel()
		z, err := d.api.GetHostedZone(ctx, &route53.GetHostedZoneInput{Id: &d.o.Zone})
		if err != nil {
			return nil, d.because(err, false)
		}
		if z.HostedZone == nil {
			return nil, route53Malformed("an answer without the hosted zone")
		}
		if err := add(z.HostedZone); err != nil {
			return nil, err
		}
	} else if err := d.allZones(ctx, add); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.ids = ids
	d.mu.Unlock()
	var out []rota.Name
	for n := range ids {
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

// allZones lists the account's zones.
func (d *amazon) allZones(ctx context.Context, add func(*types.HostedZone) error) error {
	seen := map[string]bool{}
	in := &route53.ListHostedZonesInput{}
	for {
		ctx, cancel, err := d.turn(ctx)
		if err != nil {
			return err
		}
		page, err := d.api.ListHostedZones(ctx, in)
		cancel()
		if err != nil {
			return d.because(err, false)
		}
		if page.MaxItems == nil { // which Route 53 always says: something else answered
			return route53Malformed("the answer is no list of hosted zones")
		}
		for i := range page.HostedZones {
			if err := add(&page.HostedZones[i]); err != nil {
				return err
			}
		}
		if !page.IsTruncated {
			return nil
		}
		if seen[aws.ToString(page.NextMarker)] || len(seen) > maxPages {
			return route53Malformed("the pages of a list lead in a circle")
		}
		seen[aws.ToString(page.NextMarker)] = true
		in.Marker = page.NextMarker
	}
}

func route53Malformed(text string) *Reason {
	return &Reason{
		Code: CodeMalformed, Transient: true, Server: "route53", Text: text, Advice: "check the endpoint, and what lies between here and there",
	}
}

// id finds the hosted zone of a name.
func (d *amazon) id(ctx context.Context, zone rota.Name) (string, error) {
	d.mu.Lock()
	found := d.ids[zone]
	d.mu.Unlock()
	if len(found) == 0 {
		if _, err := d.zones(ctx); err != nil {
			return "", err
		}
		d.mu.Lock()
		found = d.ids[zone]
		d.mu.Unlock()
	}
	var fit []string
	for _, z := range found {
		if z.private == d.o.Private || d.o.Zone != "" {
			fit = append(fit, z.id)
		}
	}
	switch len(fit) {
	case 0:
		return "", &Reason{
			Code: CodeNoZone, Zone: zone, Server: "route53", Text: fmt.Sprintf("the account has no such hosted zone that is %s", d.kind()),
			Advice: "create it there, or check what the credentials may see; rota never creates zones",
		}
	case 1:
		return fit[0], nil
	}
	return "", &Reason{
		Code: CodeNoZone, Zone: zone, Server: "route53", Text: "several hosted zones have this name: " + strings.Join(fit, ", "),
		Advice: "name the one that is meant by its id",
	}
}

func (d *amazon) kind() string {
	if d.o.Private {
		return "private"
	}
	return "public"
}

func (d *amazon) list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error) {
	id, err := d.id(ctx, zone)
	if err != nil {
		return nil, err
	}
	if len(names) > route53PerSet {
		return d.walk(ctx, id, "")
	}
	var out []entry
	for _, n := range names {
		some, err := d.walk(ctx, id, n)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

// walk lists the sets of a name, or of all names.
func (d *amazon) walk(ctx context.Context, id string, only rota.Name) ([]entry, error) {
	in := &route53.ListResourceRecordSetsInput{HostedZoneId: &id}
	if only != "" {
		in.StartRecordName = aws.String(route53Text(only.String()))
	}
	var out []entry
	seen := map[string]bool{}
	for {
		ctx, cancel, err := d.turn(ctx)
		if err != nil {
			return nil, err
		}
		page, err := d.api.ListResourceRecordSets(ctx, in)
		cancel()
		if err != nil {
			return nil, d.because(err, false)
		}
		if page.MaxItems == nil {
			return nil, route53Malformed("the answer is no list of records")
		}
		for _, s := range page.ResourceRecordSets {
			some, err := route53Entries(s)
			if err != nil {
				return nil, err
			}
			if only != "" && (len(some) == 0 || some[0].Key.Name != only) {
				return out, nil
			}
			out = append(out, some...)
		}
		if !page.IsTruncated {
			return out, nil
		}
		mark := aws.ToString(page.NextRecordName) + " " + string(page.NextRecordType) + " " + aws.ToString(page.NextRecordIdentifier)
		if seen[mark] || len(seen) > maxPages {
			return nil, route53Malformed("the pages of a list lead in a circle")
		}
		seen[mark] = true
		in.StartRecordName, in.StartRecordType, in.StartRecordIdentifier = page.NextRecordName, page.NextRecordType, page.NextRecordIdentifier
	}
}

// route53Entries are the records of a set. ID is the value as Route 53 has it, which a DELETE must repeat.
func route53Entries(s types.ResourceRecordSet) ([]entry, error) {
	n, err := route53Name(aws.ToString(s.Name))
	if err != nil {
		return nil, route53Malformed("a record without a name")
	}
	locked := ""
	switch {
	case s.AliasTarget != nil:
		locked = "is an alias of something at Amazon"
	case s.TrafficPolicyInstanceId != nil:
		locked = "belongs to a traffic policy"
	case s.SetIdentifier != nil:
		locked = "belongs to a routing policy (weighted, latency, failover, …)"
	case s.HealthCheckId != nil:
		locked = "depends on a health check of Amazon's"
	}
	ttl := uint32(min(max(aws.ToInt64(s.TTL), 0), 1<<31-1))
	var out []entry
	for _, r := range s.ResourceRecords {
		e := newEntry(n, string(s.Type), ttl, octets(aws.ToString(r.Value), 8, 10))
		e.ID = aws.ToString(r.Value)
		e.Locked = cmp.Or(locked, e.Locked)
		out = append(out, e)
	}
	if len(out) == 0 {
		e := newEntry(n, string(s.Type), ttl, "")
		e.Locked = cmp.Or(locked, "has no data")
		out = append(out, e)
	}
	return out, nil
}

func (d *amazon) commit(ctx context.Context, b Batch, held []entry) error {
	id, err := d.id(ctx, b.Zone)
	if err != nil {
		return err
	}
	var goes, comes []types.Change
	for _, c := range append([]rota.Change{b.Fence}, b.Changes...) {
		if len(c.Old.Data) > 0 {
			goes = append(goes, types.Change{Action: types.ChangeActionDelete, ResourceRecordSet: route53Held(c.Key(), held)})
		}
		if len(c.New.Data) > 0 {
			comes = append(comes, types.Change{Action: types.ChangeActionCreate, ResourceRecordSet: route53Set(c.New)})
		}
	}
	turn, cancel, err := d.turn(ctx)
	if err != nil {
		return err
	}
	answer, err := d.api.ChangeResourceRecordSets(turn, &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: &id, ChangeBatch: &types.ChangeBatch{Changes: append(goes, comes...), Comment: aws.String(route53Comment(b.Fence.New))},
	})
	cancel()
	if err != nil {
		return d.because(err, true)
	}
	if answer.ChangeInfo == nil || answer.ChangeInfo.Id == nil {
		r := route53Malformed("the answer is not about the change")
		r.InDoubt = true
		return r
	}
	d.await(ctx, answer.ChangeInfo)
	return nil
}

// route53Comment says whose a change is, to those who read Amazon's log.
func route53Comment(fence rota.RRset) string {
	if len(fence.Data) == 0 {
		return "rota gives the zone up"
	}
	text := "rota " + fence.Data[0]
	return text[:min(len(text), route53Note)]
}

// await waits until all of Amazon's name servers have a change, as long as the options say. That it takes longer is no failure: the
// change is made.
func (d *amazon) await(ctx context.Context, c *types.ChangeInfo) {
	ctx, cancel := context.WithTimeout(ctx, d.o.Wait)
	defer cancel()
	pause := time.Second
	id := strings.TrimPrefix(aws.ToString(c.Id), "/change/")
	for c.Status != types.ChangeStatusInsync {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = min(2*pause, 8*time.Second)
		turn, cancel, err := d.turn(ctx)
		if err != nil {
			return
		}
		answer, err := d.api.GetChange(turn, &route53.GetChangeInput{Id: &id})
		cancel()
		if err != nil || answer.ChangeInfo == nil {
			return // who may write need not be allowed to look
		}
		c = answer.ChangeInfo
	}
}

// route53Held is a set as it was listed.
func route53Held(k rota.Key, held []entry) *types.ResourceRecordSet {
	s := &types.ResourceRecordSet{Name: aws.String(route53Text(k.Name.String())), Type: types.RRType(mnemonic(k.Type))}
	for _, e := range held {
		if e.Key == k {
			s.TTL = aws.Int64(int64(e.TTL))
			s.ResourceRecords = append(s.ResourceRecords, types.ResourceRecord{Value: aws.String(e.ID)})
		}
	}
	return s
}

func route53Set(r rota.RRset) *types.ResourceRecordSet {
	s := &types.ResourceRecordSet{
		Name: aws.String(route53Text(r.Name.String())), Type: types.RRType(mnemonic(r.Type)), TTL: aws.Int64(int64(r.TTL)),
	}
	for _, data := range r.Data {
		s.ResourceRecords = append(s.ResourceRecords, types.ResourceRecord{Value: aws.String(route53Text(data))})
	}
	return s
}

// route53Text writes a name or data with Route 53's octal escapes instead of the DNS's decimal ones.
func route53Text(text string) string { return octets(text, 10, 8) }

// route53Name reads a name with Route 53's octal escapes.
func route53Name(text string) (rota.Name, error) { return rota.ParseName(octets(text, 8, 10)) }

// octets rewrites each \DDD of one base in another. What is no such escape stays as it is.
func octets(text string, from, to int) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		if i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], from, 8); err == nil {
				fmt.Fprintf(&b, map[int]string{8: "\\%03o", 10: "\\%03d"}[to], n)
				i += 3
				continue
			}
		}
		b.WriteString(text[i : i+2])
		i++
	}
	return b.String()
}

// because is route53Reason, and keeps everybody quiet when Route 53 asks for it.
func (d *amazon) because(err error, changes bool) error {
	why := route53Reason(err, changes)
	if r, ok := errors.AsType[*Reason](why); ok && r.Code == CodeRateLimited {
		r.After = time.Second
		if a, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && a.Response != nil {
			after, _ := retryAfter(a.Response.Header, time.Now())
			r.After = max(r.After, after)
		}
		d.line.quiet.ask(r.After)
	}
	return why
}

// route53Reason says what an error of the AWS library means. changes says that the request changes something.
func route53Reason(err error, changes bool) error {
	r := &Reason{Server: "route53", Transient: true, InDoubt: changes}
	say := func(code Code, advice string) { r.Code, r.Advice = code, advice }
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return route53Transport(err, r)
	}
	status := 0
	if a, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = a.HTTPStatusCode()
	}
	r.Text = rota.CleanReason("HTTP %d, %s: %s", status, api.ErrorCode(), api.ErrorMessage())
	if status < 500 {
		r.InDoubt = false
	}
	switch code := api.ErrorCode(); code {
	case "InvalidChangeBatch":
		said := api.ErrorMessage()
		if b, ok := errors.AsType[*types.InvalidChangeBatch](err); ok {
			said += " " + strings.Join(b.Messages, " ")
		}
		for _, moved := range []string{"was not found", "do not match", "already exists"} {
			if strings.Contains(said, moved) {
				return fmt.Errorf("%w: %s", ErrMoved, rota.CleanReason("%s", said))
			}
		}
		r.Transient = false
		r.Text = rota.CleanReason("Route 53 says: %s", said)
		switch {
		case strings.Contains(said, "conflicts with other records"):
			say(CodeOther, "remove the other records, or choose another safety.on_all_down than fallback")
		case strings.Contains(said, "is not permitted in zone"):
			say(CodeNotZone, "check the zone of the service")
		default:
			say(CodeUnsupported, "see what Route 53 says")
		}
	case "Throttling", "ThrottlingException", "PriorRequestNotComplete", "TooManyRequestsException", "RequestLimitExceeded":
		say(CodeRateLimited, "rota waits; Route 53 takes five requests a second from all of an account")
	case "NoSuchHostedZone", "HostedZoneNotFound":
		say(CodeNoZone, "check the zone's id and account; rota never creates zones")
		r.Transient = false
	case "AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "UnrecognizedClientException",
		"IncompleteSignature", "MissingAuthenticationToken", "OptInRequired":
		say(CodeDenied, "check the credentials and their policy: route53:ListHostedZones (GetHostedZone with a zone's id), ListResourceRecordSets, ChangeResourceRecordSets and GetChange")
		r.Transient = false
	case "RequestExpired":
		say(CodeBadTime, "clock skew: check this host's clock")
	case "InvalidInput", "InvalidDomainName", "InvalidArgument":
		say(CodeUnsupported, "see what Route 53 says")
		r.Transient = false
	case "LimitsExceeded":
		say(CodeQuota, "ask Amazon for more, or use fewer names")
		r.Transient = false
	default:
		switch {
		case status >= 500:
			say(CodeServfail, "the trouble is on Amazon's side")
		case status == http.StatusTooManyRequests:
			say(CodeRateLimited, "rota waits; see whether somebody else uses the same account")
		case status == http.StatusUnauthorized || status == http.StatusForbidden:
			say(CodeDenied, "check the credentials and their policy")
			r.Transient = false
		case status == http.StatusNotFound:
			say(CodeNoZone, "check the zone's id and account; rota never creates zones")
			r.Transient = false
		case status >= 300 && status < 400:
			say(CodeMalformed, "check the endpoint, and what lies between here and there")
		default:
			say(CodeUnsupported, "see what Route 53 says")
			r.Transient = false
		}
	}
	return r
}

// route53Transport fills the reason of an error that no API gave.
func route53Transport(err error, r *Reason) error {
	r.Text = rota.CleanReason("%v", err)
	if u, ok := errors.AsType[*url.Error](err); ok {
		r.Text = rota.CleanReason("%v", u.Err) // without the URL
	}
	if a, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && a.HTTPStatusCode() != 0 {
		r.Code, r.Advice = CodeMalformed, "check the endpoint, and what lies between here and there"
	} else {
		r.Code, r.Advice = CodeUnreachable, "check that Amazon can be reached from here"
	}
	return r
}
