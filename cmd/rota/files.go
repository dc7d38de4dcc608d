package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// configPath is the configuration file: --config, else ROTA_CONFIG, else the system's when it exists, else the one here.
func (a *app) configPath() string {
	if p := cmp.Or(a.config, a.getenv("ROTA_CONFIG")); p != "" {
		return p
	}
	const system = "/etc/rota/rota.yaml"
	if _, err := os.Stat(system); err == nil {
		return system
	}
	return "rota.yaml"
}

// configuredDataDir is the data directory of the configuration, or empty when it cannot be read: then others are tried, for what is
// asked may not need it.
func (a *app) configuredDataDir() string {
	if _, err := os.Stat(a.configPath()); err != nil {
		return ""
	}
	c, err := config.Load(a.configPath(), config.Options{NoSecrets: true})
	if err != nil {
		return ""
	}
	return c.Node.DataDir
}

// targets are what `rota check` probes: a URL's, or those of a service as the configuration says.
func (a *app) targets(arg string) ([]rota.Target, error) {
	if strings.Contains(arg, "://") {
		return urlTargets(arg)
	}
	c, err := config.Load(a.configPath(), config.Options{NoSecrets: true})
	if err != nil {
		return nil, err
	}
	state, err := new(rota.State).Apply(rota.Event{Index: 1, At: time.Now(), Kind: rota.EventSpec, Spec: &c.Spec})
	if err != nil {
		return nil, err
	}
	ids, err := state.Match(arg)
	if err != nil {
		return nil, err
	}
	var out []rota.Target
	for _, id := range ids {
		for _, e := range state.Service(id.Service).Endpoints {
			if e.Address != id.Address {
				continue
			}
			for _, u := range e.Checks {
				out = append(out, e.Target(u))
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no check", arg)
	}
	return out, nil
}

// urlTargets turns a URL into the check it stands for in a configuration, so that both mean the same. A host name is looked up
// here; every address it has is probed, and the name is what the check asks for.
func urlTargets(arg string) ([]rota.Target, error) {
	u, err := url.Parse(arg)
	if err != nil || u.Hostname() == "" {
		return nil, usagef("%q: want a URL such as https://192.0.2.10/health or tcp://192.0.2.10:443", arg)
	}
	addrs, name, err := lookup(u.Hostname())
	if err != nil {
		return nil, err
	}
	pattern := u.Scheme + "://{}"
	if p := u.Port(); p != "" {
		pattern += ":" + p
	}
	pattern += u.EscapedPath()
	if u.RawQuery != "" {
		pattern += "?" + u.RawQuery
	}
	quoted := make([]string, len(addrs))
	for i, a := range addrs {
		quoted[i] = strconv.Quote(a.String())
	}
	text := fmt.Sprintf("dns: {zones: {check.invalid: {ns: [ns.check.invalid]}}}\nservices:\n  %s: {endpoints: [%s], check: %s}\n",
		"www.check.invalid", strings.Join(quoted, ", "), strconv.Quote(pattern))
	c, err := config.Parse("check", []byte(text), config.Options{NoSecrets: true})
	if err != nil {
		var all *config.Errors
		if errors.As(err, &all) && len(all.Problems) > 0 {
			return nil, usagef("%s", all.Problems[0].Message)
		}
		return nil, usagef("%w", err)
	}
	var out []rota.Target
	for _, s := range c.Spec.Services {
		for _, e := range s.Endpoints {
			for _, use := range e.Checks {
				if name != "" || use.Check.Host == s.Name.Short() {
					use.Check.Host = name
				}
				out = append(out, e.Target(use))
			}
		}
	}
	return out, nil
}

// lookup returns the addresses of a host; name is empty when it is an address already.
func lookup(host string) (addrs []netip.Addr, name string, err error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, "", nil
	}
	ips, err := net.LookupHost(host)
	if err != nil {
		return nil, "", err
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, host, nil
}

// outcome says an observation in one line.
func outcome(o rota.Observation) string {
	s := loud(o.Status.String())
	if o.Reason != "" {
		s += ": " + o.Reason
	}
	if t := took(o.Took); t != "" {
		s += " (" + t + ")"
	}
	return s
}
