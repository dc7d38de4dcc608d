package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
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

// configuredDataDir is the data directory of the configuration. It is empty without an error when there is no file and none was named.
func (a *app) configuredDataDir() (string, error) {
	path := a.configPath()
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) && a.config == "" && a.getenv("ROTA_CONFIG") == "" {
			return "", nil
		}
		return "", err
	}
	c, err := config.Load(path, config.Options{NoSecrets: true})
	if err != nil {
		return "", fmt.Errorf("%s has errors, which `rota validate` shows", path)
	}
	return c.Node.DataDir, nil
}

// targets are what `rota check` probes: a URL's, or those of a service as the configuration says, which comes with them.
func (a *app) targets(arg string) (*config.Config, []rota.Target, error) {
	if strings.Contains(arg, "://") {
		targets, err := urlTargets(arg)
		return nil, targets, err
	}
	c, err := config.Load(a.configPath(), config.Options{NoSecrets: true})
	if err != nil {
		if bare(arg) {
			return nil, nil, usagef("%s is an address, which says nothing about what to ask; write a URL such as %s", arg, examples(arg))
		}
		return nil, nil, err
	}
	state, err := new(rota.State).Apply(rota.Event{Index: 1, At: time.Now(), Kind: rota.EventSpec, Spec: &c.Spec})
	if err != nil {
		return nil, nil, err
	}
	ids, err := state.Match(arg)
	if err != nil {
		if bare(arg) {
			return nil, nil, usagef("no service of %s has the endpoint %s; to probe anything else write a URL such as %s", a.configPath(), arg, examples(arg))
		}
		return nil, nil, err
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
		return nil, nil, fmt.Errorf("%s has no check", arg)
	}
	return c, out, nil
}

// bare reports whether an argument is an address, or one with a port, and no URL.
func bare(arg string) bool {
	_, err := netip.ParseAddr(strings.Trim(arg, "[]"))
	_, err2 := netip.ParseAddrPort(arg)
	return err == nil || err2 == nil
}

// examples are URLs that probe a bare address.
func examples(arg string) string {
	host, port := strings.Trim(arg, "[]"), "443"
	if a, err := netip.ParseAddrPort(arg); err == nil {
		host, port = a.Addr().String(), strconv.Itoa(int(a.Port()))
	}
	at := net.JoinHostPort(host, port)
	return fmt.Sprintf("tcp://%s, https://%s/ or icmp://%s", at, at, strings.TrimSuffix(at, ":"+port))
}

// placeholder names the service of a check that belongs to none. Nobody may see it.
const placeholder = "www.check.invalid"

// urlTargets turns a URL into the check it stands for in a configuration, so that both mean the same. A host name is looked up
// here; every address it has is probed, and the name is what the check asks for. Without a name the address is judged.
func urlTargets(arg string) ([]rota.Target, error) {
	scheme, rest, _ := strings.Cut(arg, "://")
	scheme = strings.ToLower(scheme)
	host, _, _ := strings.Cut(rest, "/")
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return nil, usagef("%q: write an IPv6 address in brackets: %s://[%s]%s", arg, scheme, host, strings.TrimPrefix(rest, host))
	}
	u, err := url.Parse("http://" + rest)
	if err != nil || u.Hostname() == "" {
		return nil, usagef("%q: want a URL such as https://192.0.2.10/health or tcp://192.0.2.10:443", arg)
	}
	pattern := scheme + "://{}"
	if p := u.Port(); p != "" {
		pattern += ":" + p
	}
	pattern += u.EscapedPath()
	if u.RawQuery != "" {
		pattern += "?" + u.RawQuery
	}
	text := fmt.Sprintf("dns: {zones: {check.invalid: {ns: [ns.check.invalid]}}}\nservices:\n  %s: {endpoints: [192.0.2.1], check: %s}\n",
		placeholder, strconv.Quote(pattern))
	c, err := config.Parse("check", []byte(text), config.Options{NoSecrets: true})
	if err != nil {
		message := err.Error()
		var all *config.Errors
		if errors.As(err, &all) && len(all.Problems) > 0 {
			message = strings.TrimPrefix(all.Problems[0].Message, fmt.Sprintf("service %q: check: ", placeholder))
		}
		return nil, usagef("%q: %s", arg, strings.NewReplacer(placeholder, "the check", "{}", u.Hostname()).Replace(message))
	}
	addrs, name, err := lookup(u.Hostname())
	if err != nil {
		return nil, err
	}
	check := c.Spec.Services[0].Endpoints[0].Checks[0].Check
	for _, field := range []*string{&check.Host, &check.ServerName} {
		if *field == placeholder {
			*field = name
		}
	}
	check.Name = check.Describe()
	out := make([]rota.Target, len(addrs))
	for i, a := range addrs {
		out[i] = rota.NewTarget(a, check)
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
		return nil, "", fmt.Errorf("%s: %s", host, plain(err))
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, host, nil
}
