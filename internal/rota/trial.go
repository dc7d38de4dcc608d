package rota

import (
	"net/netip"
	"slices"
)

// A check that is new to a service, or asks another question than before and does not only ask at another pace, is on trial while the
// service had an answer that health decided: a wrong path or port would make every endpoint down at once. Until some endpoint has passed
// it, that it says down is taken for not known.

// Trials returns the keys (Check.Key) of a service's checks that no endpoint of it has passed yet, sorted. The slice must not be changed.
func (s *State) Trials(n Name) []string {
	keys, _ := s.trials.get(n)
	return keys
}

// OnTrial reports whether a check of a service is on trial.
func (s *State) OnTrial(n Name, c Check) bool {
	keys := s.Trials(n)
	return len(keys) > 0 && slices.Contains(keys, c.Key())
}

// isAmong reports whether the check of a target has one of these keys.
func (s *State) isAmong(id TargetID, keys []string) bool {
	t := s.compiled().target(id)
	return t != nil && slices.Contains(keys, t.Check.Key())
}

// try puts the checks of the next spec on trial that the services did not have before.
func (t *transaction) try(next *compiled) {
	for i := range next.all {
		v := &next.all[i]
		sel := t.Selection(v.Name)
		if sel == nil {
			continue
		}
		decided := sel.V4.Mode == ModeNormal || sel.V6.Mode == ModeNormal
		was, before := t.Trials(v.Name), t.before.keys[v.Name]
		var keys []string
		var asked map[string]bool // made when it is needed, which is seldom
		for _, key := range next.keys[v.Name] {
			if slices.Contains(before, key) {
				if slices.Contains(was, key) {
					keys = append(keys, key)
				}
				continue
			}
			if asked == nil {
				asked = t.asked(v)
			}
			tried, known := asked[key]
			if tried || !known && decided && !t.proven(v, key) {
				keys = append(keys, key)
			}
		}
		t.onTrial(v.Name, keys)
	}
}

// asked returns the keys of a service's checks that ask, at another pace, what one of its checks before asked too, and whether that one is
// on trial: who only asks more often or more patiently can have mistaken nothing.
func (t *transaction) asked(v *Service) map[string]bool {
	was, before := t.Trials(v.Name), map[string]bool{}
	visit := func(v *Service, do func(key, question string)) {
		seen := map[string]bool{}
		for i := range v.Endpoints {
			for _, u := range v.Endpoints[i].Checks {
				if key := u.Check.Key(); !u.Observe && !seen[key] {
					seen[key] = true
					do(key, u.Check.question())
				}
			}
		}
	}
	if old := t.before.services[v.Name]; old != nil {
		visit(old, func(key, question string) { before[question] = before[question] || slices.Contains(was, key) })
	}
	out := map[string]bool{}
	visit(v, func(key, question string) {
		if tried, ok := before[question]; ok {
			out[key] = tried
		}
	})
	return out
}

// question is the key of what a check asks, whatever its pace. How long it waits for the answer belongs to the question.
func (c Check) question() string {
	timeout := c.Timing.Timeout
	c.Timing = DefaultTiming()
	c.Timing.Timeout = timeout
	return c.Key()
}

func (t *transaction) onTrial(n Name, keys []string) {
	switch {
	case len(keys) > 0 && !slices.Equal(keys, t.Trials(n)):
		t.trials = t.trials.with(n, keys)
	case len(keys) == 0:
		t.trials = t.trials.without(n)
	}
}

// proven reports whether some endpoint passes the check with this key already, as when another service asks the same.
func (t *transaction) proven(v *Service, key string) bool {
	for i := range v.Endpoints {
		e := &v.Endpoints[i]
		for _, u := range e.Checks {
			if u.Check.Key() == key && t.Verdict(newTarget(e.probed(), u.Check, key).ID).Status == Up {
				return true
			}
		}
	}
	return false
}

// passed ends the trials of the check of a target that is up, in these services.
func (t *transaction) passed(id TargetID, services []Name) {
	for _, n := range services {
		keys := t.Trials(n)
		if t.isAmong(id, keys) {
			key := t.compiled().target(id).Check.Key()
			t.onTrial(n, slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == key }))
		}
	}
}

// rest finds the targets that nothing depends on now: all who use them are disabled, under maintenance or forced down.
func (t *transaction) rest(respecified bool) {
	c := t.compiled()
	lazy := t.idle(c)
	if !respecified && slices.Equal(lazy, t.lazy) {
		return
	}
	t.lazy, t.targets = lazy, c.targets
	if len(lazy) > 0 {
		t.targets = slices.Clone(c.targets)
		for _, i := range lazy {
			t.targets[i].Lazy = true
		}
	}
}

// idle lists the places of the targets that nothing depends on.
func (s *State) idle(c *compiled) []int {
	resting := func(n Name, a netip.Addr) bool {
		o := s.Override(EndpointID{n, a})
		return s.Holds(o, s.at) && (o.Action == ActionMaintenance || o.Action == ActionForceDown)
	}
	any := slices.ContainsFunc(c.all, func(v Service) bool { return v.Disabled })
	for id := range s.overrides.all() {
		any = any || resting(id.Service, id.Address)
	}
	if !any {
		return nil
	}
	type use struct {
		service Name
		probed  netip.Addr
	}
	needed := make(map[use]bool, len(c.targets))
	for i := range c.all {
		v := &c.all[i]
		for j := range v.Endpoints {
			if e := &v.Endpoints[j]; !v.Disabled && !resting(v.Name, e.Address) {
				needed[use{v.Name, e.probed()}] = true
			}
		}
	}
	var out []int
	for i := range c.targets {
		t := &c.targets[i]
		if !slices.ContainsFunc(c.uses[t.ID], func(n Name) bool { return needed[use{n, t.Address}] }) {
			out = append(out, i)
		}
	}
	return out
}
