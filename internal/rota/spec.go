package rota

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Spec is what the operator wrote down, as far as decisions depend on it: the services, who may vote and how many voices count.
type Spec struct {
	Services []Service `json:"services"`
	Vantages []Vantage `json:"vantages"`
	Quorum   Quorum    `json:"quorum"`

	Registers []RegisterTemplate `json:"registers,omitempty"` // what hosts that announce themselves may claim

	// Static is a fingerprint of what the name server answers beside the services. When it changes, so does the zones' serial.
	Static string `json:"static,omitempty"`
}

// Service is a domain name and the endpoints that can answer for it.
type Service struct {
	Name      Name              `json:"name"`
	TTL       uint32            `json:"ttl"` // seconds, 0 to 2^31-1 (RFC 2181 §8)
	Endpoints []Endpoint        `json:"endpoints"`
	Publish   []string          `json:"publish,omitempty"` // publishers by name; Embedded is rota's own name server
	Zone      Name              `json:"zone,omitempty"`    // empty: found by the publisher
	Safety    Safety            `json:"safety"`
	Policy    Policy            `json:"policy"`
	Labels    map[string]string `json:"labels,omitempty"`

	// Disabled keeps the answer as it is: neither verdicts nor time change it, and its targets are probed at the slow interval. What a
	// person says of its endpoints, by the configuration or by overrides, still counts.
	Disabled bool `json:"disabled,omitempty"`
}

// Embedded is the publisher name of rota's own name server.
const Embedded = "dns"

// Endpoint is one address of a service.
type Endpoint struct {
	Address  netip.Addr        `json:"address"`          // with a zone id it is probed and never published
	Monitor  netip.Addr        `json:"monitor,omitzero"` // probed instead of Address
	Weight   uint32            `json:"weight"`           // share of the answers among its tier; 0 gets none while another has some
	Priority uint16            `json:"priority"`         // lower is preferred
	Site     string            `json:"site,omitempty"`   // where it stands
	Labels   map[string]string `json:"labels,omitempty"` // for matching
	Agent    string            `json:"agent,omitempty"`  // who, beside operators, speaks for it where KindAgent is asked: the name of a token; empty: nobody
	Checks   []Use             `json:"checks"`           // without any it counts as up
}

// Use is a check as one endpoint uses it.
type Use struct {
	Check   Check `json:"check"`
	Observe bool  `json:"observe,omitempty"` // reported, never decides
}

// Target returns what a use of a check probes for the endpoint.
func (e Endpoint) Target(u Use) Target { return NewTarget(e.probed(), u.Check) }

// probed is the address that is probed for the endpoint.
func (e *Endpoint) probed() netip.Addr {
	if e.Monitor.IsValid() {
		return e.Monitor
	}
	return e.Address
}

// OnAllDown says what is answered when health is not believed.
type OnAllDown string

// The answers when health is not believed.
const (
	OnAllDownKeep     OnAllDown = "keep"     // the last good answer
	OnAllDownAll      OnAllDown = "all"      // every endpoint
	OnAllDownFallback OnAllDown = "fallback" // a CNAME, when no endpoint is up
	OnAllDownNone     OnAllDown = "none"     // nothing, when no endpoint is up
)

// Safety bounds what health may do to a service's answer.
type Safety struct {
	MinPublished  int           `json:"min_published"`      // fewer endpoints up than this: health is not believed; at least 1
	FailOpenBelow float64       `json:"fail_open_below"`    // a smaller share up than this: health is not believed; 0 to 1
	OnAllDown     OnAllDown     `json:"on_all_down"`        //
	Fallback      Name          `json:"fallback,omitempty"` // the CNAME of OnAllDownFallback
	MinHold       time.Duration `json:"min_hold_ns"`        // an address that health took out stays out at least this long
	MaxChange     MaxChange     `json:"max_change"`         // what may leave a zone at once; the zero value becomes DefaultMaxChange
	MaxSites      int           `json:"max_sites"`          // health may take the endpoints of at most so many sites out at once; 0: no limit
}

// MaxChange bounds how much of a zone may leave it in a time. Publishers hold what exceeds it until a person says otherwise.
type MaxChange struct {
	Share      float64       `json:"share"`       // of the records that rota keeps in the zone, 0 to 1; 1: no limit
	Per        time.Duration `json:"per_ns"`      // above 0, at most MaxChangePer
	MinRecords int           `json:"min_records"` // a zone of fewer records has no limit; at least 0
}

// MaxChangePer is the longest time a MaxChange may count over.
const MaxChangePer = 24 * time.Hour

// DefaultMaxChange is what a service has that says nothing.
func DefaultMaxChange() MaxChange {
	return MaxChange{Share: 0.30, Per: 10 * time.Minute, MinRecords: 10}
}

// DefaultSafety is what a service has that says nothing.
func DefaultSafety() Safety {
	return Safety{MinPublished: 1, FailOpenBelow: 0.5, OnAllDown: OnAllDownKeep, MinHold: 30 * time.Second, MaxChange: DefaultMaxChange()}
}

// Pick says how one answer is taken from the endpoints that may serve.
type Pick string

// The ways to pick.
const (
	PickRotate   Pick = "rotate"   // all, in an order that changes
	PickWeighted Pick = "weighted" // by weight
)

// Policy says how a service's answer is picked from the endpoints that may serve.
type Policy struct {
	Answers int  `json:"answers,omitempty"` // most addresses an answer holds, per family; 0: no limit
	Pick    Pick `json:"pick,omitempty"`    // empty: weighted when weights differ, else rotate

	// SlowStart is how long an endpoint that health took out takes to reach its whole weight again, in steps of a tenth, the first of
	// them at once; 0: it has it at once; else MinSlowStart to MaxSlowStart. With PickRotate weights mean nothing.
	SlowStart time.Duration `json:"slow_start_ns,omitempty"`
}

// Bounds of Policy.SlowStart. Each step is an event.
const (
	MinSlowStart = time.Second
	MaxSlowStart = 24 * time.Hour
)

// compiled is a Spec with the indexes that lookups need. It is immutable.
type compiled struct {
	spec     Spec      // as configured
	all      []Service // those of the spec and of the hosts that registered, sorted by name
	services map[Name]*Service
	asked    map[Name][][]TargetID // by service: for each endpoint, the targets of the checks that decide
	keys     map[Name][]string     // by service: the keys of the checks that decide, sorted
	targets  []Target              // sorted by id
	uses     map[TargetID][]Name   // services that a target's verdict touches, sorted
	table    *Table                // of the targets
}

// target returns a target by id, or nil. Whether it is lazy is not known here.
func (c *compiled) target(id TargetID) *Target {
	i, ok := slices.BinarySearchFunc(c.targets, id, func(t Target, id TargetID) int { return cmp.Compare(t.ID, id) })
	if !ok {
		return nil
	}
	return &c.targets[i]
}

// tabulate makes the table of the targets; when they are the same as before, it is the same table.
func (c *compiled) tabulate(before *compiled) {
	if c.table = before.table; c.table == nil || !c.table.holds(c.targets) {
		c.table = TableOf(c.targets)
	}
}

// compile indexes a spec with the hosts that registered, and refuses one whose parts contradict each other.
func compile(s Spec, hosts []*registered) (*compiled, error) {
	c := &compiled{
		spec: s, services: make(map[Name]*Service, len(s.Services)), asked: make(map[Name][][]TargetID, len(s.Services)),
		keys: make(map[Name][]string, len(s.Services)), uses: map[TargetID][]Name{},
	}
	errs := append(s.voters(), s.registers()...)
	c.spec.Services = slices.SortedFunc(slices.Values(s.Services), func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	c.all = join(c.spec.Services, hosts)
	given := map[[2]string]bool{} // targets by id and name of the check: services share many
	for i := range c.all {
		v := &c.all[i]
		if c.services[v.Name] != nil {
			errs = append(errs, fmt.Errorf("service %s is configured twice", v.Name.Short()))
		}
		if v.Safety.MaxChange == (MaxChange{}) { // it was written before there was one
			v.Safety.MaxChange = DefaultMaxChange()
		}
		c.services[v.Name] = v
		errs = append(errs, v.contradictions()...)
		seen := map[netip.Addr]bool{}
		asked := make([][]TargetID, len(v.Endpoints))
		c.asked[v.Name] = asked
		var keys []string
		for j, e := range v.Endpoints {
			if !e.Address.IsValid() || e.Address.Is4In6() {
				errs = append(errs, fmt.Errorf("service %s: endpoint address %v cannot be used", v.Name.Short(), e.Address))
			}
			if seen[e.Address] {
				errs = append(errs, fmt.Errorf("service %s: endpoint %v is configured twice", v.Name.Short(), e.Address))
			}
			seen[e.Address] = true
			for _, u := range e.Checks {
				key := u.Check.Key()
				t := newTarget(e.probed(), u.Check, key)
				if as := [2]string{string(t.ID), t.Check.Name}; !given[as] {
					given[as] = true
					c.targets = append(c.targets, t)
				}
				if !u.Observe {
					asked[j] = append(asked[j], t.ID)
					if !slices.Contains(keys, key) {
						keys = append(keys, key)
					}
				}
				if names := c.uses[t.ID]; len(names) == 0 || names[len(names)-1] != v.Name {
					c.uses[t.ID] = append(names, v.Name)
				}
			}
		}
		slices.Sort(keys)
		c.keys[v.Name] = keys
	}
	c.targets = sortTargets(c.targets)
	return c, errors.Join(errs...)
}

// voters reports what is wrong with who may vote. A vantage named twice would have two voices.
func (s Spec) voters() []error {
	var errs []error
	if slices.ContainsFunc(s.Vantages, func(v Vantage) bool { return v.Name == OwnAgent }) {
		errs = append(errs, fmt.Errorf("a vantage is named %s, which stands for endpoints' own agents", OwnAgent))
	}
	if len(s.Vantages) > 0 {
		// Too few voices are no contradiction: a cluster grows node by node, and shrinks when one is lost.
		if _, err := s.Quorum.Votes(s.Quorum.Voices(s.Vantages)); err != nil && !errors.Is(err, ErrFewVoices) {
			errs = append(errs, err)
		}
	}
	if of := s.Quorum.Of; of != "" && of != "nodes" && of != "sites" {
		errs = append(errs, fmt.Errorf("quorum of %q: want nodes or sites", of))
	}
	if s.Quorum.MaxAge < 0 {
		errs = append(errs, fmt.Errorf("quorum: max_age %v is negative", s.Quorum.MaxAge))
	}
	seen := map[string]bool{}
	for _, v := range s.Vantages {
		if v.Name == "" || seen[v.Name] {
			errs = append(errs, fmt.Errorf("vantage %q is configured twice or has no name", v.Name))
		}
		seen[v.Name] = true
	}
	return errs
}

// maxTTL is the largest TTL there is, in seconds (RFC 2181 §8).
const maxTTL = 1<<31 - 1

// contradictions reports what no decision could be made of.
func (v *Service) contradictions() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("service %s: "+format, append([]any{v.Name.Short()}, args...)...))
	}
	if n, err := ParseName(string(v.Name)); err != nil {
		errs = append(errs, fmt.Errorf("service: %w", err))
	} else if n != v.Name {
		bad("its name is not in canonical form, which is %s", n)
	}
	if v.TTL > maxTTL {
		bad("TTL %d is above %d", v.TTL, maxTTL)
	}
	if f := v.Safety.FailOpenBelow; !(f >= 0 && f <= 1) {
		bad("fail_open_below %v: want a share from 0 to 1", f)
	}
	if m := v.Safety.MaxChange; !(m.Share >= 0 && m.Share <= 1) {
		bad("max_change of %v: want a share from 0 to 1", m.Share)
	} else if m.Per <= 0 || m.Per > MaxChangePer || m.MinRecords < 0 {
		bad("max_change per %v from %d records: want a time above 0 and up to %v, and no negative count", m.Per, m.MinRecords, MaxChangePer)
	}
	if v.Safety.MaxSites < 0 {
		bad("max_sites %d is negative", v.Safety.MaxSites)
	}
	if d := v.Policy.SlowStart; d != 0 && (d < MinSlowStart || d > MaxSlowStart) {
		bad("slow_start %v: want 0, or %v to %v", d, MinSlowStart, MaxSlowStart)
	}
	switch v.Safety.OnAllDown {
	case "", OnAllDownKeep, OnAllDownAll, OnAllDownNone:
	case OnAllDownFallback:
		// Without a name to answer with, the fallback would empty the service.
		if fb := v.Safety.Fallback; fb == "" || fb == v.Name {
			bad("on_all_down is fallback: want a fallback, and another name than the service's own")
		}
	default:
		bad("on_all_down %q: want keep, all, fallback or none", v.Safety.OnAllDown)
	}
	return errs
}

// Validate reports every contradiction inside the spec.
func (s Spec) Validate() error {
	_, err := compile(s, nil)
	return err
}
