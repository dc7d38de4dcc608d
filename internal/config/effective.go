package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/rota-dns/rota/internal/rota"
)

// Effective returns the configuration as YAML with every shorthand expanded and every default written out. Secrets are shown by the
// file, variable or credential they came from, and as "***" when they stood in the configuration. But for those, Parse reads it
// back to an equal Config.
func (c *Config) Effective() []byte {
	doc := mapOf(
		"version", 1,
		"node", mapOf("name", c.Node.Name, "site", c.Node.Site, "data_dir", c.Node.DataDir),
		"log", c.logNode(),
		"metrics", mapOf("prometheus", mapOf("path", c.Metrics.Path)),
		"api", c.apiNode(),
		"cluster", c.clusterNode(),
		"vantage", c.vantageNode(),
	)
	if c.DNS != nil {
		doc.set("dns", c.dnsNode())
	}
	if len(c.Keys) > 0 || len(c.Publishers) > 0 {
		keys, publishers := c.publishNodes()
		if len(keys.Content) > 0 {
			doc.set("keys", keys)
		}
		if len(publishers.Content) > 0 {
			doc.set("publish", publishers)
		}
	}
	ownership := mapOf("registry", string(c.Ownership.Registry), "prefix", c.Ownership.Prefix)
	if c.Ownership.Owner != "" {
		ownership.set("owner", c.Ownership.Owner)
	}
	doc.set("ownership", ownership)
	if len(c.Spec.Registers) > 0 {
		var templates []*mapping
		for _, t := range c.Spec.Registers {
			templates = append(templates, registerNode(t))
		}
		doc.set("discover", templates)
	}
	services := mapOf()
	for _, v := range c.Spec.Services {
		services.set(v.Name.Short(), serviceNode(v))
	}
	doc.set("services", services)
	var out bytes.Buffer
	d, err := yaml.NewDumper(&out, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err == nil {
		err = d.Dump((*yaml.Node)(doc))
	}
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		panic(fmt.Sprintf("config: effective configuration: %v", err)) // built here of strings and numbers only
	}
	return out.Bytes()
}

// mapping is a YAML map being written, in order.
type mapping yaml.Node

func mapOf(kv ...any) *mapping {
	m := &mapping{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(kv); i += 2 {
		m.set(kv[i].(string), kv[i+1])
	}
	return m
}

func (m *mapping) set(key string, value any) {
	m.Content = append(m.Content, scalarNode(key), valueNode(value))
}

func scalarNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if n.Tag == "" {
		n.Tag = "!!str"
	}
	return n
}

func valueNode(v any) *yaml.Node {
	plain := func(tag, s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: s} }
	switch v := v.(type) {
	case *mapping:
		return (*yaml.Node)(v)
	case string:
		return scalarNode(strings.ReplaceAll(v, "${", "$${"))
	case int:
		return plain("!!int", strconv.Itoa(v))
	case uint16:
		return plain("!!int", strconv.Itoa(int(v)))
	case uint32:
		return plain("!!int", strconv.FormatUint(uint64(v), 10))
	case bool:
		return plain("!!bool", strconv.FormatBool(v))
	case time.Duration:
		return scalarNode(formatDuration(v))
	case rota.Name:
		return scalarNode(v.Short())
	case Secret:
		return secretNode(v)
	case rota.Place:
		return secretNode(Secret{from: string(v)})
	case []string:
		return listNode(v)
	case []rota.Name:
		return listNode(v)
	case []rota.StatusRange:
		return listNode(v)
	case []*mapping:
		return listNode(v)
	case map[string]string:
		m := mapOf()
		for _, k := range slices.Sorted(maps.Keys(v)) {
			m.set(k, v[k])
		}
		return (*yaml.Node)(m)
	case rota.StatusRange:
		if v.From == v.To {
			return plain("!!int", v.String())
		}
		return scalarNode(v.String())
	}
	return scalarNode(fmt.Sprint(v))
}

func listNode[T any](vs []T) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, v := range vs {
		n.Content = append(n.Content, valueNode(v))
	}
	if _, deep := any(vs).([]*mapping); !deep {
		n.Style = yaml.FlowStyle
	}
	return n
}

func secretNode(s Secret) *yaml.Node {
	form, name, ok := strings.Cut(s.from, ":")
	if !ok {
		return scalarNode(hidden)
	}
	n := (*yaml.Node)(mapOf(form, name))
	n.Style = yaml.FlowStyle
	return n
}

func (c *Config) logNode() *mapping {
	m := mapOf("level", strings.ToLower(c.Log.Level.String()), "format", string(c.Log.Format))
	if c.Log.File != "" {
		m.set("file", c.Log.File)
	}
	return m
}

func (c *Config) apiNode() *mapping {
	m := mapOf("listen", c.API.Listen)
	if c.API.CertFile != "" {
		m.set("tls", mapOf("cert", c.API.CertFile, "key", c.API.KeyFile))
	}
	m.set("dashboard", mapOf("anonymous", map[bool]string{true: "read", false: "none"}[c.API.AnonymousRead]))
	var tokens []*mapping
	for _, t := range c.API.Tokens {
		tokens = append(tokens, mapOf("name", t.Name, "role", string(t.Role), "token", t.Token))
	}
	if tokens != nil {
		m.set("tokens", tokens)
	}
	return m
}

func (c *Config) clusterNode() *mapping {
	k := c.Cluster
	m := mapOf("election", k.Election)
	if k.Election != Raft {
		return m
	}
	m.set("listen", k.Listen)
	if k.Advertise != "" {
		m.set("advertise", k.Advertise)
	}
	if len(k.Join) > 0 {
		m.set("join", k.Join)
	}
	if k.CertFile != "" {
		m.set("tls", mapOf("cert", k.CertFile, "key", k.KeyFile, "ca", k.CAFile))
	}
	if len(k.Nodes) > 0 {
		m.set("nodes", k.Nodes)
	}
	if k.ID != "" && k.ID != defaultClusterID {
		m.set("id", k.ID)
	}
	if k.RaftAdmin != "" {
		m.set("raftadmin", k.RaftAdmin)
	}
	return m
}

func (c *Config) vantageNode() *mapping {
	m := mapOf("quorum", c.Spec.Quorum.Need, "of", c.Spec.Quorum.Of, "max_age", c.Spec.Quorum.MaxAge)
	if !c.NodesVote {
		m.set("nodes", false)
	}
	if u := c.Uplink; u != nil {
		var checks []string
		for _, t := range u.Checks {
			checks = append(checks, uplinkURL(t))
		}
		m.set("uplink", mapOf("checks", checks, "need", u.Need))
	}
	if len(c.Agents) == 0 {
		return m
	}
	var accept []*mapping
	for _, a := range c.Agents {
		one := mapOf("name", a.Name)
		if a.Site != "" {
			one.set("site", a.Site)
		}
		accept = append(accept, one)
	}
	agents := mapOf("accept", accept)
	if h := c.Healthagent; h != nil {
		agents.set("healthagent", mapOf("listen", h.Listen, "tls", mapOf("cert", h.CertFile, "key", h.KeyFile, "client_ca", h.ClientCAFile)))
	}
	m.set("agents", agents)
	return m
}

func (c *Config) dnsNode() *mapping {
	zones := mapOf()
	for _, z := range c.DNS.Zones {
		m := mapOf("ns", z.NS, "ttl", z.TTL, "soa", mapOf("mname", z.MName, "rname", z.RName,
			"refresh", z.Refresh, "retry", z.Retry, "expire", z.Expire, "minimum", z.Minimum))
		var b strings.Builder
		for _, s := range z.Records {
			for _, d := range s.Data {
				fmt.Fprintf(&b, "%s %d IN %s %s\n", s.Name, s.TTL, s.Type, d)
			}
		}
		if b.Len() > 0 {
			n := scalarNode(strings.ReplaceAll(b.String(), "${", "$${"))
			n.Style = yaml.LiteralStyle
			m.Content = append(m.Content, scalarNode("records"), n)
		}
		zones.set(z.Name.Short(), m)
	}
	return mapOf("listen", c.DNS.Listen, "zones", zones)
}

// publishNodes writes keys and publishers; a key that was named in a URL gets a name of its own.
func (c *Config) publishNodes() (keys, publishers *mapping) {
	keys, publishers = mapOf(), mapOf()
	write := func(name string, k Key) {
		m := mapOf("name", k.Name.String(), "algorithm", k.algorithm(), "secret", k.Secret)
		if a := k.algorithm(); a == "hmac-sha1" || a == "hmac-md5" {
			m.set("allow_weak", true)
		}
		keys.set(name, m)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Keys)) {
		write(name, c.Keys[name])
	}
	named := func(publisher int, ks []Key) []string {
		var out []string
		for _, k := range ks {
			name := ""
			for _, known := range slices.Sorted(maps.Keys(c.Keys)) {
				if c.Keys[known] == k {
					name = known
					break
				}
			}
			if name == "" {
				name = fmt.Sprintf("key-%d", publisher+1) // only a URL names a key in place, and just one
				write(name, k)
			}
			out = append(out, name)
		}
		return out
	}
	for i, p := range c.Publishers {
		publishers.set(p.Name, publisherNode(p, func(ks []Key) []string { return named(i, ks) }))
	}
	return keys, publishers
}

// publisherNode writes a publisher; named gives the names of keys.
func publisherNode(p Publisher, named func([]Key) []string) *mapping {
	m := mapOf("type", p.Type)
	set := func(kv ...any) {
		for i := 0; i < len(kv); i += 2 {
			switch v := kv[i+1].(type) {
			case string:
				if v == "" {
					continue
				}
			case []string:
				if len(v) == 0 {
					continue
				}
			case Secret:
				if v == (Secret{}) {
					continue
				}
			}
			m.set(kv[i].(string), kv[i+1])
		}
	}
	address := func(url string) {
		set("url", url)
		if u, err := neturl.Parse(url); err == nil && u.Scheme == "http" && !onLoopback(u.Hostname()) {
			m.set("insecure", true)
		}
	}
	signed := func(ks []Key, plain bool) {
		switch names := named(ks); len(names) {
		case 0:
		case 1:
			m.set("key", names[0])
		default:
			m.set("keys", names)
		}
		m.set("plain_reads", plain)
	}
	zones := true
	switch {
	case p.RFC2136 != nil:
		m.set("servers", p.RFC2136.Servers)
		signed(p.RFC2136.Keys, p.RFC2136.PlainReads)
		set("transport", string(p.RFC2136.Transport), "zone_transfer", map[bool]string{true: "off", false: "auto"}[p.RFC2136.NoTransfer])
	case p.NSUpdate != nil:
		set("command", p.NSUpdate.Command, "servers", p.NSUpdate.Servers)
		signed(p.NSUpdate.Keys, p.NSUpdate.PlainReads)
		m.set("timeout", p.NSUpdate.Timeout)
	case p.PowerDNS != nil:
		address(p.PowerDNS.URL)
		set("token", p.PowerDNS.Token, "server_id", p.PowerDNS.ServerID)
	case p.AutoDNS != nil:
		address(p.AutoDNS.URL)
		set("user", p.AutoDNS.User, "password", p.AutoDNS.Password, "context", p.AutoDNS.Context)
	case p.Dynu != nil:
		address(p.Dynu.URL)
		set("token", p.Dynu.Token)
	case p.DigitalOcean != nil:
		address(p.DigitalOcean.URL)
		set("token", p.DigitalOcean.Token)
	case p.Cloudflare != nil:
		address(p.Cloudflare.URL)
		set("token", p.Cloudflare.Token, "proxied", string(p.Cloudflare.Proxied), "min_ttl", p.MinTTL)
	case p.Route53 != nil:
		a := p.Route53
		address(a.URL)
		set("region", a.Region, "role", a.Role, "profile", a.Profile, "access_key", a.AccessKey, "secret_key", a.SecretKey, "zone_id", a.ZoneID, "private", a.Private,
			"wait", map[bool]string{true: "insync", false: "none"}[a.Wait])
	case p.DeSEC != nil:
		address(p.DeSEC.URL)
		set("token", p.DeSEC.Token, "min_ttl", p.MinTTL)
	case p.Webhook != nil:
		address(p.Webhook.URL)
		set("secret", p.Webhook.Secret, "signed", p.Webhook.Signed, "timeout", p.Webhook.Timeout)
	case p.Exec != nil:
		set("command", p.Exec.Command, "mode", string(p.Exec.Mode), "timeout", p.Exec.Timeout, "servers", p.Exec.Servers)
	case p.ExternalDNS != nil:
		address(p.ExternalDNS.URL)
		set("timeout", p.ExternalDNS.Timeout)
	case p.LibDNS != nil:
		set("provider", p.LibDNS.Provider, "settings", p.LibDNS.Settings, "min_ttl", p.MinTTL)
	case p.ZoneFile != nil:
		set("path", p.ZoneFile.Path, "reload", p.ZoneFile.Reload, "timeout", p.ZoneFile.Timeout)
		zones = false
		if len(p.Zones) > 0 {
			m.set("zone", p.Zones[0])
		}
	case p.Mock != nil:
		set("zones", p.Mock.Zones, "state", p.Mock.State)
		zones = false
	}
	switch {
	case zones && len(p.Zones) > 0:
		m.set("zones", p.Zones)
	case zones:
		m.set("zones", "auto")
	}
	set("dry_run", p.DryRun, "min_gap", p.MinGap, "read_every", p.ReadEvery, "max_records", p.MaxRecords)
	if p.Proof.Off {
		m.set("proof", "off")
		return m
	}
	proof := mapOf("servers", "auto")
	if len(p.Proof.Servers) > 0 {
		proof = mapOf("servers", p.Proof.Servers)
	}
	if len(p.Proof.Resolvers) > 0 {
		proof.set("resolvers", p.Proof.Resolvers)
	}
	proof.set("within", p.Proof.Within)
	proof.set("every", p.Proof.Every)
	m.set("proof", proof)
	return m
}

func registerNode(t rota.RegisterTemplate) *mapping {
	m := mapOf("type", "register", "name", t.Name, "host_name", t.HostName)
	if t.ServiceName != "" {
		m.set("service_name", t.ServiceName)
	}
	if t.HostRecord != "" {
		also := mapOf("host_record", t.HostRecord, "publish", t.HostPublish)
		if t.HostZone != "" {
			also.set("zone", t.HostZone)
		}
		var reverse []*mapping
		for _, r := range t.Reverse {
			zone := cmp.Or(r.Zone.Short(), "auto")
			reverse = append(reverse, mapOf("zone", zone, "publish", r.Publish))
		}
		if reverse != nil {
			also.set("ptr", reverse)
		}
		m.set("also", also)
	}
	expire := "never"
	if t.ExpireAfter > 0 {
		expire = formatDuration(t.ExpireAfter)
	}
	m.set("expire_after", expire)
	var networks []string
	for _, n := range t.Networks {
		networks = append(networks, n.String())
	}
	if networks != nil {
		m.set("networks", networks)
	}
	e := mapOf("weight", t.Endpoint.Weight, "priority", t.Endpoint.Priority)
	if t.Endpoint.Site != "" {
		e.set("site", t.Endpoint.Site)
	}
	if len(t.Endpoint.Labels) > 0 {
		e.set("labels", t.Endpoint.Labels)
	}
	m.set("endpoint", e)
	var checks []*mapping
	for _, u := range t.Endpoint.Checks {
		checks = append(checks, checkNode(u, t.ServiceName))
	}
	if checks != nil {
		m.set("checks", checks)
	}
	m.Content = append(m.Content, commonNode(t.Service).Content...)
	return m
}

func serviceNode(v rota.Service) *mapping {
	var endpoints []*mapping
	for _, e := range v.Endpoints {
		endpoints = append(endpoints, endpointNode(e))
	}
	m := mapOf("endpoints", endpoints)
	if v.Disabled {
		m.set("disabled", true)
	}
	m.Content = append(m.Content, commonNode(v).Content...)
	return m
}

// commonNode writes what a service has beside its endpoints.
func commonNode(v rota.Service) *mapping {
	m := mapOf("ttl", v.TTL)
	if v.Zone != "" {
		m.set("zone", v.Zone)
	}
	if v.Policy != (rota.Policy{}) {
		p := mapOf()
		if v.Policy.Pick != "" {
			p.set("pick", string(v.Policy.Pick))
		}
		if v.Policy.Answers > 0 {
			p.set("answers", v.Policy.Answers)
		}
		if v.Policy.SlowStart > 0 {
			p.set("slow_start", v.Policy.SlowStart)
		}
		m.set("policy", p)
	}
	s := mapOf("min_published", v.Safety.MinPublished, "fail_open_below", formatPercent(v.Safety.FailOpenBelow),
		"on_all_down", string(v.Safety.OnAllDown), "min_hold", v.Safety.MinHold, "max_sites", v.Safety.MaxSites,
		"max_change", mapOf("records", formatPercent(v.Safety.MaxChange.Share), "per", v.Safety.MaxChange.Per, "min_records", v.Safety.MaxChange.MinRecords))
	if v.Safety.Fallback != "" {
		s.set("fallback", mapOf("cname", v.Safety.Fallback))
	}
	m.set("safety", s)
	if len(v.Publish) > 0 {
		m.set("publish", v.Publish)
	}
	if len(v.Labels) > 0 {
		m.set("labels", v.Labels)
	}
	return m
}

func endpointNode(e rota.Endpoint) *mapping {
	m := mapOf("address", e.Address.String())
	if e.Monitor != (netip.Addr{}) {
		m.set("monitor", e.Monitor.String())
	}
	m.set("weight", e.Weight)
	m.set("priority", e.Priority)
	if e.Site != "" {
		m.set("site", e.Site)
	}
	if len(e.Labels) > 0 {
		m.set("labels", e.Labels)
	}
	if e.Agent != "" {
		m.set("agent", e.Agent)
	}
	var checks []*mapping
	for _, u := range e.Checks {
		checks = append(checks, checkNode(u, ""))
	}
	if checks != nil {
		m.set("checks", checks)
	}
	return m
}

// checkNode writes a check. template is the name that a template leaves open, and that nobody can write down.
func checkNode(u rota.Use, template string) *mapping {
	c := u.Check
	m := mapOf("type", string(c.Kind))
	set := func(key string, v any, zero bool) {
		if !zero {
			m.set(key, v)
		}
	}
	headers := func(hs []rota.Header) *mapping {
		h := mapOf()
		for _, x := range hs {
			h.set(x.Name, x.Value)
		}
		return h
	}
	set("port", c.Port, c.Port == 0)
	set("method", c.Method, c.Method == "")
	set("path", c.Path, c.Path == "")
	open := func(name string) bool { return name != "" && name == template }
	set("host", cmp.Or(c.Host, itself), c.Kind != rota.KindHTTP && c.Kind != rota.KindHTTPS || open(c.Host))
	set("header", headers(c.Header), len(c.Header) == 0)
	set("status", c.Status, len(c.Status) == 0)
	set("expect_header", headers(c.ExpectHeader), len(c.ExpectHeader) == 0)
	set("body", c.Body, c.Body == "")
	set("follow", "same", !c.Follow)
	set("server_name", c.ServerName, c.ServerName == "" || open(c.ServerName))
	set("verify", string(c.Verify), c.Verify == "")
	set("cert_days", c.CertDays, c.CertDays == 0)
	set("send", c.Send, c.Send == "")
	set("expect", c.Expect, c.Expect == "")
	set("max_body", c.MaxBody, c.MaxBody == 0)
	set("count", c.Count, c.Count == 0)
	set("loss", formatPercent(c.Loss), c.Loss == 0)
	set("data", c.Data, c.Data == "")
	set("json", jsonNode(c.JSON), len(c.JSON) == 0)
	set("auth", authNode(c.Auth), c.Auth == rota.Auth{})
	set("http2", true, !c.HTTP2)
	set("drain_header", c.DrainHeader, c.DrainHeader == "")
	set("reuse", true, !c.Reuse)
	set("watch", true, !c.Watch)
	set("client_cert", c.ClientCert, c.ClientCert == "")
	set("client_key", c.ClientKey, c.ClientKey == "")
	set("ca", c.CA, c.CA == "")
	rules := mapOf()
	for _, r := range c.Rules {
		rules.set(r.Name, r.Want)
	}
	set("rules", rules, len(c.Rules) == 0)
	set("on_error", c.OnError.String(), !slices.Contains([]rota.Kind{rota.KindNodeExporter, rota.KindExec, rota.KindAgentCheck}, c.Kind))
	set("ping", !c.NoPing, c.Kind != rota.KindNodeExporter)
	set("query", c.Query, c.Query == "")
	set("query_type", c.QueryType, c.QueryType == "")
	set("rcode", strings.Split(c.RCode, ","), c.RCode == "")
	set("transport", c.Transport, c.Transport == "")
	set("recurse", true, !c.Recurse)
	set("service", c.Service, c.Service == "")
	set("tls", true, !c.TLS)
	set("command", c.Command, len(c.Command) == 0)
	set("max_age", c.MaxAge, c.MaxAge == 0)
	if c.Kind != rota.KindAgent {
		m.set("interval", c.Interval)
		m.set("timeout", c.Timeout)
		m.set("fast_interval", c.FastInterval)
		m.set("slow_interval", c.SlowInterval)
		m.set("fall", c.Fall)
		m.set("rise", c.Rise)
		m.set("ok", c.OK)
	}
	role := "required"
	if u.Observe {
		role = "observe"
	}
	m.set("role", role)
	return m
}

func authNode(a rota.Auth) *mapping {
	if a.User == "" {
		return mapOf("bearer", a.Secret)
	}
	return mapOf("user", a.User, "password", a.Secret)
}

// jsonNode writes what the values of a JSON answer have to be, so that jsonWant reads it again.
func jsonNode(rules []rota.JSONRule) *mapping {
	m := mapOf()
	for _, r := range rules {
		n := &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: r.Want}
		var text string
		switch {
		case comparison.MatchString(r.Want):
		case json.Unmarshal([]byte(r.Want), &text) == nil && r.Want != "null":
			n.Value = strings.ReplaceAll(text, "${", "$${")
		default: // a number, true, false or null
			n.Style = 0
		}
		m.Content = append(m.Content, scalarNode(r.Pointer), n)
	}
	return m
}
