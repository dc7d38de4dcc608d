package rota

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// RegisterTemplate says what a host that announces itself may claim: from its name follow the service it belongs to, the record of its
// own and the pointers back to that.
type RegisterTemplate struct {
	Name        string         `json:"name"`                  // of the block; hosts name it when there are several
	HostName    string         `json:"host_name"`             // pattern of host names, as ParseHostPattern reads it
	ServiceName string         `json:"service_name"`          // template of the service's name; empty: hosts join no service
	HostRecord  string         `json:"host_record,omitempty"` // template of the host's own name; empty: it has none
	Reverse     []Reverse      `json:"reverse,omitempty"`     // where its addresses point back; needs a HostRecord
	ExpireAfter time.Duration  `json:"expire_after_ns"`       // since it was last renewed, MinLease to MaxLease; 0: never
	Networks    []netip.Prefix `json:"networks,omitempty"`    // of addresses that may be claimed; empty: all that can be published

	Service Service `json:"service"` // what a service made of it has, but for Name and Endpoints; its TTL is also that of the other records
	// Endpoint is what each of its endpoints has, but for Address and Monitor. A check whose Host or ServerName is the text of
	// ServiceName asks by the name of the service.
	Endpoint Endpoint `json:"endpoint"`

	HostPublish []string `json:"host_publish,omitempty"` // publishers of the host's own record, as in Service
	HostZone    Name     `json:"host_zone,omitempty"`    // of the host's own record; empty: found by the publisher
}

// TemplateOf returns the template with a name; without one, the only one there is.
func TemplateOf(all []RegisterTemplate, name string) (*RegisterTemplate, error) {
	var names []string
	for i := range all {
		if all[i].Name == name || name == "" && len(all) == 1 {
			return &all[i], nil
		}
		names = append(names, all[i].Name)
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("nobody can register: the configuration has no `discover: - type: register`")
	case name == "":
		return nil, fmt.Errorf("say by which block to register: %s", strings.Join(names, " or "))
	}
	return nil, fmt.Errorf("no block %q to register by: want %s", CleanReason("%s", name), strings.Join(names, " or "))
}

// Reverse is where pointers of addresses are kept. Of several, the one with the longest zone that an address belongs to takes it.
type Reverse struct {
	Zone    Name     `json:"zone,omitempty"` // below in-addr.arpa or ip6.arpa, RFC 2317 zones too; empty: every address, in a zone that the publisher finds
	Publish []string `json:"publish"`        // publishers by name, as in Service
}

// Registration is a host that announced itself. Its names follow from the template.
type Registration struct {
	Template  string       `json:"template"`            // by name
	Host      string       `json:"host"`                // the first label of its name, in lower case
	Addresses []netip.Addr `json:"addresses,omitempty"` // sorted, 1 to MaxAddresses; none to deregister
	At        time.Time    `json:"at,omitzero"`         // of the event since which it has these addresses
	Renewed   time.Time    `json:"renewed,omitzero"`    // of the last event that said that it is there
	Actor     string       `json:"actor,omitempty"`     // who said so last
}

// Bounds of registrations.
const (
	MaxAddresses  = 16     // of one host
	MaxRegistered = 20_000 // hosts
	MinLease      = time.Minute
	MaxLease      = 366 * 24 * time.Hour
	MaxLeftovers  = 20_000             // RRsets; the oldest go first
	LeftoverLife  = 7 * 24 * time.Hour // of what no publisher was seen to take out; it may never have been there
)

// Claim is an RRset beside the services' that hosts claim: their own addresses, and pointers.
type Claim struct {
	Set     RRset     `json:"set"`
	Zone    Name      `json:"zone,omitempty"` // as configured; empty: found by the publisher
	Publish []string  `json:"publish"`        // sorted; Embedded is rota's own name server
	Hosts   []string  `json:"hosts"`          // who claim it, sorted
	At      time.Time `json:"at"`             // since when the newest of them does
}

// Leftover is what a host that left, or has other addresses now, left in a DNS: publishers take it out of whatever is there.
type Leftover struct {
	Publisher string    `json:"publisher"`
	Zone      Name      `json:"zone,omitempty"`
	Key       Key       `json:"key"`
	TTL       uint32    `json:"ttl"`
	Data      []string  `json:"data"` // sorted
	Since     time.Time `json:"since"`
	Host      string    `json:"host"`
}

// Registered is a registration and what came of it.
type Registered struct {
	Registration
	Service Name      `json:"service,omitempty"`
	Record  Name      `json:"record,omitempty"`
	Expires time.Time `json:"expires,omitzero"`  // zero: never
	Problem string    `json:"problem,omitempty"` // why it claims nothing: the configuration changed since
}

// registered is a registration with what follows from its template. It is immutable.
type registered struct {
	Registration
	template *RegisterTemplate // nil: with problem
	service  Name
	record   Name
	claims   []Claim // sorted data, in no order
	problem  string
}

func compareHosts(a, b *registered) int {
	return cmp.Or(cmp.Compare(a.Template, b.Template), cmp.Compare(a.Host, b.Host))
}

// Registrations returns the hosts that registered, sorted by template and host.
func (s *State) Registrations() []Registered {
	out := make([]Registered, len(s.hosts))
	for i, h := range s.hosts {
		out[i] = Registered{Registration: h.Registration, Service: h.service, Record: h.record, Expires: s.Expires(&h.Registration), Problem: h.problem}
	}
	return out
}

// Registration returns what a host registered by a template, and false when it did not.
func (s *State) Registration(template, host string) (Registered, bool) {
	i, ok := s.host(template, host)
	if !ok {
		return Registered{}, false
	}
	h := s.hosts[i]
	return Registered{Registration: h.Registration, Service: h.service, Record: h.record, Expires: s.Expires(&h.Registration), Problem: h.problem}, true
}

func (s *State) host(template, host string) (int, bool) {
	return slices.BinarySearchFunc(s.hosts, &registered{Registration: Registration{Template: template, Host: host}}, compareHosts)
}

// Expires returns when a registration ends unless it is renewed, or the zero time. A lease runs only while there is somebody to renew it
// with: from the begin of the newest term, the last restore, the end of the last freeze and of the last silence of all at the earliest.
func (s *State) Expires(r *Registration) time.Time {
	for i := range s.compiled().spec.Registers {
		if t := &s.compiled().spec.Registers[i]; t.Name == r.Template && t.ExpireAfter > 0 {
			from := r.Renewed
			if s.revived.After(from) {
				from = s.revived
			}
			return from.Add(t.ExpireAfter)
		}
	}
	return time.Time{}
}

// News reports whether a registration says more than that nothing has changed since its lease, if it has one, began less than a third of
// its length ago: only then it has to be an event.
func (s *State) News(r Registration, now time.Time) bool {
	i, ok := s.host(r.Template, r.Host)
	if !ok || s.hosts[i].problem != "" {
		return true
	}
	h := s.hosts[i]
	return !slices.Equal(h.Addresses, r.sorted().Addresses) ||
		h.template.ExpireAfter > 0 && now.Sub(h.Renewed) > h.template.ExpireAfter/3
}

// sorted returns the registration with its addresses sorted and each once.
func (r Registration) sorted() Registration {
	r.Addresses = slices.Compact(slices.SortedFunc(slices.Values(r.Addresses), netip.Addr.Compare))
	return r
}

// registers reports what is wrong with the templates.
func (s Spec) registers() []error {
	var errs []error
	seen := map[string]bool{}
	for i := range s.Registers {
		t := &s.Registers[i]
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("register %q: "+format, append([]any{t.Name}, args...)...))
		}
		if t.Name == "" || len(t.Name) > maxParty || seen[t.Name] {
			bad("want a name that no other has, of 1 to %d bytes", maxParty)
		}
		seen[t.Name] = true
		p, err := ParseHostPattern(t.HostName)
		if err != nil {
			bad("%w", err)
			continue
		}
		if t.ServiceName == "" && t.HostRecord == "" {
			bad("its hosts claim neither a service nor a record of their own")
		}
		// A host made of the pattern itself shows what the templates make of it.
		sample := HostParts{Host: "h"}
		for _, x := range []struct {
			name string
			part *string
		}{{"id", &sample.ID}, {"service", &sample.Service}, {"env", &sample.Env}} {
			if p.offers(x.name) {
				*x.part = "x"
			}
		}
		for _, template := range []string{t.ServiceName, t.HostRecord} {
			if _, err := fill(template, sample); err != nil && template != "" {
				bad("%w", err)
			}
		}
		if len(t.Reverse) > 0 && t.HostRecord == "" {
			bad("pointers lead to the host's own record: give it a host_record")
		}
		for _, r := range t.Reverse {
			if r.Zone != "" && !r.Zone.In("in-addr.arpa.") && !r.Zone.In("ip6.arpa.") {
				bad("the reverse zone %s is not under in-addr.arpa or ip6.arpa", r.Zone.Short())
			}
		}
		if t.ExpireAfter != 0 && (t.ExpireAfter < MinLease || t.ExpireAfter > MaxLease) {
			bad("expire_after %v: want %v to %v, or never", t.ExpireAfter, MinLease, MaxLease)
		}
		v := t.Service
		v.Name, v.Endpoints = "service.invalid.", nil
		if v.Safety.MaxChange == (MaxChange{}) {
			v.Safety.MaxChange = DefaultMaxChange()
		}
		for _, err := range v.contradictions() {
			bad("%w", err)
		}
		if t.Service.Name != "" || len(t.Service.Endpoints) > 0 || t.Endpoint.Address.IsValid() {
			bad("it names a service or an endpoint, which hosts bring")
		}
	}
	return errs
}

// placed works out what hosts claim by a spec's templates. What was worked out by the same templates stands.
func placed(s Spec, hosts []*registered) []*registered {
	if len(hosts) == 0 {
		return nil
	}
	configured := make(map[Name]bool, len(s.Services))
	for i := range s.Services {
		configured[s.Services[i].Name] = true
	}
	out := make([]*registered, len(hosts))
	records := map[Name]*registered{}
	for i, h := range hosts {
		n := &registered{Registration: h.Registration}
		out[i] = n
		at := slices.IndexFunc(s.Registers, func(t RegisterTemplate) bool { return t.Name == h.Template })
		if at < 0 {
			n.problem = fmt.Sprintf("there is no block %q to register by", h.Template)
			continue
		}
		t := &s.Registers[at]
		var err error
		if h.template == t {
			n.template, n.service, n.record, n.claims = t, h.service, h.record, h.claims
		} else if _, n.service, n.record, err = t.Names(h.Host); err != nil {
			n.problem = CleanReason("%v", err)
			continue
		}
		other := records[n.record]
		switch {
		case n.record != "" && other != nil:
			n.problem = fmt.Sprintf("%s is the record of host %s", n.record.Short(), other.Host)
		case configured[n.record]:
			n.problem = fmt.Sprintf("%s is a service", n.record.Short())
		default:
			if n.problem = t.refuses(h.Addresses); n.problem == "" && n.service != "" && t.Service.Safety.Fallback == n.service {
				n.problem = fmt.Sprintf("%s is its own fallback", n.service.Short())
			}
		}
		if n.problem != "" {
			n.template, n.service, n.record, n.claims = nil, "", "", nil
			continue
		}
		if n.template == nil {
			n.template = t
			n.claims = n.claim()
		}
		records[n.record] = n
	}
	services := map[Name]bool{}
	for _, n := range out {
		services[n.service] = true
	}
	for _, n := range out {
		if n.record != "" && services[n.record] {
			n.problem = fmt.Sprintf("%s is the service of other hosts", n.record.Short())
			n.template, n.service, n.record, n.claims = nil, "", "", nil
		}
	}
	return out
}

// refuses says why addresses may not be claimed, or nothing.
func (t *RegisterTemplate) refuses(all []netip.Addr) string {
	for _, a := range all {
		if len(t.Networks) > 0 && !slices.ContainsFunc(t.Networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return fmt.Sprintf("address %v is in none of the networks that hosts may claim addresses of", a)
		}
	}
	return ""
}

// endpoint is what a host's address is in its service.
func (h *registered) endpoint(a netip.Addr) Endpoint {
	e := h.template.Endpoint
	e.Address = a
	labels := map[string]string{"host": h.Host}
	for k, v := range e.Labels {
		labels[k] = v
	}
	e.Labels = labels
	// A check that asks by the service's name has the template in its place.
	e.Checks = slices.Clone(e.Checks)
	for i := range e.Checks {
		for _, name := range []*string{&e.Checks[i].Check.Host, &e.Checks[i].Check.ServerName} {
			if *name != "" && *name == h.template.ServiceName {
				*name = h.service.Short()
			}
		}
	}
	return e
}

// join returns the services with the endpoints of hosts among them, and those that hosts make. An address that a service has is not
// added again. Without hosts it is the very slice.
func join(services []Service, hosts []*registered) []Service {
	by := map[Name][]*registered{}
	for _, h := range hosts {
		if h.service != "" {
			by[h.service] = append(by[h.service], h)
		}
	}
	if len(by) == 0 {
		return services
	}
	out := slices.Clone(services)
	add := func(v *Service, hosts []*registered) {
		v.Endpoints = slices.Clone(v.Endpoints)
		has := make(map[netip.Addr]bool, len(v.Endpoints))
		for _, e := range v.Endpoints {
			has[e.Address] = true
		}
		for _, h := range hosts {
			for _, a := range h.Addresses {
				if !has[a] {
					has[a] = true
					v.Endpoints = append(v.Endpoints, h.endpoint(a))
				}
			}
		}
	}
	for i := range out {
		if hosts := by[out[i].Name]; hosts != nil {
			add(&out[i], hosts)
			delete(by, out[i].Name)
		}
	}
	for n, hosts := range by {
		v := hosts[0].template.Service
		v.Name = n
		add(&v, hosts)
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// claim works out the RRsets that a host claims.
func (h *registered) claim() []Claim {
	if h.record == "" {
		return nil
	}
	t := h.template
	var out []Claim
	claim := func(k Key, zone Name, publish []string, data string) {
		for i := range out {
			if out[i].Set.Key() == k {
				out[i].Set.Data = append(out[i].Set.Data, data)
				return
			}
		}
		out = append(out, Claim{
			Set: RRset{k.Name, k.Type, t.Service.TTL, []string{data}}, Zone: zone, Publish: slices.Compact(slices.Sorted(slices.Values(publish))),
			Hosts: []string{h.Host}, At: h.At,
		})
	}
	for _, a := range h.Addresses {
		typ := TypeAAAA
		if a.Is4() {
			typ = TypeA
		}
		claim(Key{h.record, typ}, t.HostZone, t.HostPublish, a.String())
		if r, n, ok := t.Pointer(a); ok {
			claim(Key{n, TypePTR}, r.Zone, r.Publish, h.record.String())
		}
	}
	for i := range out {
		out[i].Set = out[i].Set.normal()
	}
	return out
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
}

// claimsOf returns what hosts claim, sorted by name and type. Hosts that share an address share its pointer.
func claimsOf(hosts []*registered) []Claim {
	var all []*Claim
	for _, h := range hosts {
		for i := range h.claims {
			all = append(all, &h.claims[i])
		}
	}
	slices.SortStableFunc(all, func(a, b *Claim) int { return compareKeys(a.Set.Key(), b.Set.Key()) })
	out := make([]Claim, 0, len(all))
	for _, c := range all {
		if n := len(out); n > 0 && out[n-1].Set.Key() == c.Set.Key() {
			o := &out[n-1]
			o.Set.Data = slices.Concat(o.Set.Data, c.Set.Data)
			o.Set = o.Set.normal()
			o.Publish = slices.Compact(slices.Sorted(slices.Values(slices.Concat(o.Publish, c.Publish))))
			o.Hosts = append(slices.Clone(o.Hosts), c.Hosts...)
			if c.At.After(o.At) {
				o.At = c.At
			}
		} else {
			out = append(out, *c)
		}
	}
	return out
}

// Claims returns what hosts claim beside their services, sorted by name and type. The slice must not be changed, and is the same while
// nothing in it changes.
func (s *State) Claims() []Claim { return s.claims }

// Claim returns what hosts claim at a key, or nil. It must not be changed.
func (s *State) Claim(k Key) *Claim {
	i, ok := slices.BinarySearchFunc(s.claims, k, func(c Claim, k Key) int { return compareKeys(c.Set.Key(), k) })
	if !ok {
		return nil
	}
	return &s.claims[i]
}

// Leftovers returns what publishers are still to take out of a DNS, sorted by name, type and publisher. The slice must not be changed.
func (s *State) Leftovers() []Leftover { return s.leftovers }

// claimed are the wants that claims and leftovers make for a publisher, sorted by name and type.
func (s *State) claimed(publisher string) []Want {
	var out []Want
	for _, c := range s.claims {
		if slices.Contains(c.Publish, publisher) {
			out = append(out, Want{Service: c.Set.Name, Zone: c.Zone, Set: c.Set})
		}
	}
	for _, l := range s.leftovers {
		if l.Publisher == publisher {
			out = append(out, Want{Service: l.Key.Name, Zone: l.Zone, Set: RRset{Name: l.Key.Name, Type: l.Key.Type, TTL: l.TTL}, Drop: l.Data})
		}
	}
	slices.SortFunc(out, func(a, b Want) int { return compareKeys(a.Set.Key(), b.Set.Key()) })
	return out
}

// claim puts what hosts claim in force.
func (t *transaction) claim(hosts []*registered) {
	t.hosts = hosts
	claims := claimsOf(hosts)
	if !slices.EqualFunc(claims, t.claims, func(a, b Claim) bool {
		return a.Set.Equal(b.Set) && a.Zone == b.Zone && a.At.Equal(b.At) && slices.Equal(a.Publish, b.Publish) && slices.Equal(a.Hosts, b.Hosts)
	}) {
		t.claims = claims
		t.advance()
	}
	t.reclaim()
}

// reclaim forgets what was left at a name that is claimed again, or that a service has: there the whole RRset is wanted.
func (t *transaction) reclaim() {
	taken := func(l Leftover) bool {
		if c := t.Claim(l.Key); c != nil && slices.Contains(c.Publish, l.Publisher) {
			return true
		}
		v := t.Service(l.Key.Name)
		return v != nil && slices.Contains(v.Publish, l.Publisher)
	}
	if slices.ContainsFunc(t.leftovers, taken) {
		t.leftovers = slices.DeleteFunc(slices.Clone(t.leftovers), taken)
	}
}

// ErrFrozen says that hosts neither come nor go in a freeze.
var ErrFrozen = errors.New("everything automatic is frozen")

// register takes in hosts, or that they are still there.
func (t *transaction) register(e Event) error {
	if t.freeze != nil {
		return fmt.Errorf("%w: %v", ErrFrozen, t.freeze)
	}
	if len(e.Registrations) == 0 {
		return errors.New("names no host")
	}
	if t.silent() {
		t.revived = t.now
	}
	next := slices.Clone(t.hosts)
	for _, r := range e.Registrations {
		r = r.sorted()
		host, err := HostLabel(r.Host)
		switch {
		case err != nil:
			return err
		case host != r.Host:
			return fmt.Errorf("host %q: want its first label in lower case", CleanReason("%s", r.Host))
		case len(r.Addresses) == 0 || len(r.Addresses) > MaxAddresses:
			return fmt.Errorf("host %s has %d addresses, want 1 to %d", host, len(r.Addresses), MaxAddresses)
		}
		for _, a := range r.Addresses {
			if err := Publishable(a); err != nil {
				return fmt.Errorf("host %s: %w", host, err)
			}
		}
		r.Renewed, r.At, r.Actor = t.now, t.now, CleanReason("%s", e.Actor)
		h := &registered{Registration: r}
		i, ok := slices.BinarySearchFunc(next, h, compareHosts)
		switch {
		case !ok && len(next) >= MaxRegistered:
			return fmt.Errorf("%d hosts have registered, which is as many as can: deregister those that are gone", len(next))
		case !ok:
			next = slices.Insert(next, i, h)
		default:
			if slices.Equal(next[i].Addresses, r.Addresses) {
				h.At = next[i].At
			}
			next[i] = h
		}
	}
	return t.settle(next, e.Registrations)
}

// deregister takes hosts out.
func (t *transaction) deregister(e Event) error {
	if t.freeze != nil {
		return fmt.Errorf("%w: %v", ErrFrozen, t.freeze)
	}
	next := slices.Clone(t.hosts)
	for _, r := range e.Registrations {
		i, ok := slices.BinarySearchFunc(next, &registered{Registration: r}, compareHosts)
		if !ok {
			return fmt.Errorf("no host %s has registered by %q", CleanReason("%s", r.Host), CleanReason("%s", r.Template))
		}
		next = slices.Delete(next, i, i+1)
	}
	return t.settle(next, nil)
}

// settle puts hosts in force in place of those there are, and remembers what those leave in DNS. Of fresh ones each must get what it asks
// for.
func (t *transaction) settle(hosts []*registered, fresh []Registration) error {
	spec := t.compiled().spec
	hosts = placed(spec, t.inTime(hosts))
	asks := make(map[[2]string]bool, len(fresh))
	for _, r := range fresh {
		asks[[2]string{r.Template, r.Host}] = true
	}
	for _, h := range hosts {
		// Who comes gets what it asks for, and not from one who was there.
		was := t.was(h)
		if h.problem != "" && (asks[[2]string{h.Template, h.Host}] || len(fresh) > 0 && was != nil && was.problem == "") {
			return fmt.Errorf("host %s: %s", h.Host, h.problem)
		}
	}
	gone, came := parted(t.hosts, hosts)
	if len(gone)+len(came) == 0 {
		t.hosts = hosts // leases
		return nil
	}
	c, err := compile(spec, hosts)
	if err != nil {
		return err
	}
	left := t.left(c, gone)
	t.adopt(c, hosts)
	for _, h := range slices.Concat(gone, came) {
		if h.service != "" {
			t.touch(h.service)
		}
	}
	t.leave(left)
	return nil
}

// was returns a host as it was before, or nil.
func (t *transaction) was(h *registered) *registered {
	if i, ok := t.host(h.Template, h.Host); ok {
		return t.hosts[i]
	}
	return nil
}

// parted lists the hosts of a that b does not have as they are, and the other way round. Both are sorted.
func parted(a, b []*registered) (onlyA, onlyB []*registered) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && compareHosts(a[0], b[0]) < 0:
			onlyA, a = append(onlyA, a[0]), a[1:]
		case len(a) == 0 || compareHosts(a[0], b[0]) > 0:
			onlyB, b = append(onlyB, b[0]), b[1:]
		default:
			if a[0].service != b[0].service || a[0].record != b[0].record || !slices.Equal(a[0].Addresses, b[0].Addresses) {
				onlyA, onlyB = append(onlyA, a[0]), append(onlyB, b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
	return onlyA, onlyB
}

// left is what hosts that are gone, or are not as they were, leave in DNS: their claims, and the addresses of services that nobody has any
// more.
func (t *transaction) left(next *compiled, gone []*registered) []Leftover {
	var out []Leftover
	leave := func(publish []string, l Leftover) {
		for _, p := range publish {
			if p != Embedded {
				l.Publisher, l.Since = p, t.now
				out = append(out, l)
			}
		}
	}
	ended := map[Name]bool{}
	for _, h := range gone {
		for _, c := range h.claims {
			leave(c.Publish, Leftover{Zone: c.Zone, Key: c.Set.Key(), TTL: c.Set.TTL, Data: c.Set.Data, Host: h.Host})
		}
		v := t.Service(h.service)
		if v == nil || next.services[h.service] != nil || ended[h.service] {
			continue
		}
		ended[h.service] = true
		for _, typ := range []Type{TypeA, TypeAAAA} {
			var data []string
			for _, e := range v.Endpoints {
				if e.Address.Is4() == (typ == TypeA) {
					data = append(data, e.Address.String())
				}
			}
			if len(data) > 0 {
				slices.Sort(data)
				leave(v.Publish, Leftover{Zone: v.Zone, Key: Key{v.Name, typ}, TTL: v.TTL, Data: data, Host: h.Host})
			}
		}
		if sel := t.Selection(v.Name); sel != nil && sel.Alias != "" {
			leave(v.Publish, Leftover{Zone: v.Zone, Key: Key{v.Name, TypeCNAME}, TTL: v.TTL, Data: []string{sel.Alias.String()}, Host: h.Host})
		}
	}
	return out
}

// leave remembers what is left in DNS.
func (t *transaction) leave(left []Leftover) {
	if len(left) == 0 {
		return
	}
	all := append(slices.Clone(t.leftovers), left...)
	order := func(a, b Leftover) int {
		return cmp.Or(compareKeys(a.Key, b.Key), cmp.Compare(a.Publisher, b.Publisher))
	}
	slices.SortStableFunc(all, order)
	var out []Leftover
	for _, l := range all {
		if n := len(out); n > 0 && order(out[n-1], l) == 0 {
			l.Data = slices.Compact(slices.Sorted(slices.Values(slices.Concat(out[n-1].Data, l.Data))))
			out[n-1] = l
		} else {
			out = append(out, l)
		}
	}
	if len(out) > MaxLeftovers {
		slices.SortStableFunc(out, func(a, b Leftover) int { return b.Since.Compare(a.Since) })
		out = out[:MaxLeftovers]
		slices.SortFunc(out, order)
	}
	t.leftovers = out
	t.reclaim()
}

// published forgets what a publisher has taken out.
func (t *transaction) published(p *Published) {
	if p == nil || len(t.leftovers) == 0 {
		return
	}
	var out []Leftover
	for _, l := range t.leftovers {
		if i := slices.IndexFunc(p.Changes, func(c Change) bool { return c.Key() == l.Key }); i >= 0 && l.Publisher == p.Publisher {
			l.Data = slices.DeleteFunc(slices.Clone(l.Data), func(d string) bool { return !slices.Contains(p.Changes[i].New.Data, d) })
		}
		if len(l.Data) > 0 {
			out = append(out, l)
		}
	}
	t.leftovers = out
}

// expire takes out the hosts whose lease has ended.
func (t *transaction) expire() {
	if next := t.inTime(t.hosts); len(next) < len(t.hosts) {
		// It is the spec in force, with fewer hosts: nothing in it can contradict.
		_ = t.settle(next, nil)
	}
}

// inTime returns the hosts without those whose lease has ended. The last ones of a service that nobody else has stay: that nobody renews
// any more empties no name.
func (t *transaction) inTime(hosts []*registered) []*registered {
	if !slices.ContainsFunc(hosts, t.over) {
		return hosts
	}
	lives := map[Name]bool{}
	for i := range t.compiled().spec.Services {
		lives[t.compiled().spec.Services[i].Name] = len(t.compiled().spec.Services[i].Endpoints) > 0
	}
	for _, h := range placed(t.compiled().spec, hosts) {
		if h.service != "" && !t.over(h) {
			lives[h.service] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(hosts), func(h *registered) bool { return t.over(h) && (h.service == "" || lives[h.service]) })
}

// over reports whether a host's lease has ended.
func (t *transaction) over(h *registered) bool {
	end := t.Expires(&h.Registration)
	return !end.IsZero() && !t.now.Before(end)
}

// silent reports whether several hosts have leases and all of them have ended: then they could not be heard.
func (t *transaction) silent() bool {
	leased := 0
	for _, h := range t.hosts {
		switch {
		case t.over(h):
			leased++
		case !t.Expires(&h.Registration).IsZero():
			return false
		}
	}
	return leased > 1
}

// recalled are registrations out of a snapshot.
func recalled(all []Registration) []*registered {
	out := make([]*registered, len(all))
	for i := range all {
		out[i] = &registered{Registration: all[i]}
	}
	return out
}

// remind takes in the hosts that a backup knows of and that are not known today. Their leases begin anew.
func (t *transaction) remind(all []Registration) error {
	t.revived = t.now
	next := slices.Clone(t.hosts)
	for _, r := range all {
		if i, ok := slices.BinarySearchFunc(next, &registered{Registration: r}, compareHosts); !ok && len(next) < MaxRegistered {
			next = slices.Insert(next, i, &registered{Registration: r.sorted()})
		}
	}
	if len(next) == len(t.hosts) {
		return nil
	}
	hosts := placed(t.compiled().spec, next)
	c, err := compile(t.compiled().spec, hosts)
	if err != nil {
		return err
	}
	t.adopt(c, hosts)
	for n := range c.services {
		t.touch(n)
	}
	return nil
}

// Publishable returns nil for an address that hosts elsewhere can reach a host by.
func Publishable(a netip.Addr) error {
	switch {
	case !a.IsValid() || a.Is4In6() || a.Zone() != "":
		return fmt.Errorf("address %v cannot be published", a)
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == broadcast:
		return fmt.Errorf("address %v reaches no host from elsewhere: give another one", a)
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// explainClaim explains a name that hosts claim.
func (s *State) explainClaim(n Name, t Type) (Explanation, bool) {
	c := s.Claim(Key{n, t})
	if c == nil {
		return Explanation{}, false
	}
	return Explanation{
		Service: n, Type: t, Answer: c.Set.Data, TTL: c.Set.TTL, Mode: ModeNormal, Changed: c.At, Index: s.index, Epoch: s.lead.Term, Summary: c.why(),
	}, true
}

// why says where a claim comes from.
func (c *Claim) why() string {
	return fmt.Sprintf("registered by %s since %s", strings.Join(c.Hosts, ", "), c.At.UTC().Format(time.DateTime+"Z"))
}
