package config

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// defaultClusterListen is where nodes listen for each other when the configuration does not say.
const defaultClusterListen = ":3648"

// defaultClusterID is the id of a cluster whose certificates are made elsewhere and carry none.
const defaultClusterID = "rota"

// says reports whether there is a value and it holds something: an empty list or map asks for nothing.
func says(n *node) bool { return n != nil && (n.text != "" || len(n.items)+len(n.keys) > 0) }

// written counts what stands in a list, right or wrong; a lone value is one.
func written(n *node) int {
	if n != nil && n.kind == isList {
		return len(n.items)
	}
	return len(withFaults(n))
}

// cluster reads how nodes agree. What only raft has is judged in any case, and kept with raft only.
func (b *builder) cluster() {
	n := b.root.get("cluster")
	election := n.get("election")
	c := Cluster{Election: textOr(election, Singleton), Listen: defaultClusterListen}
	if v := n.get("listen"); v != nil {
		c.Listen, _ = parseListen(v.text)
	}
	if v := n.get("advertise"); v != nil {
		c.Advertise, _ = parsePeer(v.text)
	}
	files := b.certificate(n.get("tls"), certificateUse{what: "cluster", ca: "ca", private: true})
	c.CertFile, c.KeyFile, c.CAFile = files.cert, files.key, files.ca
	b.join(&c, n.get("join"))
	b.nodes(&c, n)
	if c.CertFile != "" {
		c.ID = textOr(n.get("id"), defaultClusterID)
	} else if v := n.get("id"); says(v) && c.Election == Raft && !n.has("tls") {
		b.fail(v.at, "remove it", "cluster: id is for certificates of cluster.tls; rota's own carry an id that nobody has to choose")
	}
	if v := n.get("raftadmin"); v != nil && v.text != "" {
		c.RaftAdmin, _ = parseRaftAdmin(v.text)
	}
	if c.Election != Raft {
		known := election != nil || !n.has("election")
		for _, key := range []string{"listen", "advertise", "join", "tls", "nodes", "id", "raftadmin"} {
			if v := n.get(key); known && says(v) {
				b.fail(v.at, "write election: raft, or remove it", "cluster: %s needs election: raft; a node alone has nobody to talk to", key)
			}
		}
		b.c.Cluster = Cluster{Election: c.Election}
		return
	}
	if err := parseVantageName(b.c.Node.Name); err != nil && b.c.Node.Name != "" {
		b.fail(b.root.get("node").get("name").placeOr(b.root.at), "write node: {name: NAME}", "node: name: %v", err)
	}
	if v := n.get("listen"); v != nil && strings.HasSuffix(c.Listen, ":0") {
		b.warn(v.at, "write a port", "cluster: listen: port 0 is another port at every start, and the other nodes look for this one at the last")
	}
	b.c.Cluster = c
}

// join reads the addresses of other nodes. The node's own one is left out, so that all nodes can have the same list.
func (b *builder) join(c *Cluster, n *node) {
	own := c.Advertise
	if host, _, _ := splitHostPort(c.Listen); own == "" && host != "" {
		if a, err := netip.ParseAddr(host); err != nil || !a.IsUnspecified() {
			own = c.Listen
		}
	}
	seen := map[string]place{}
	for _, j := range elements(n) {
		at, _ := parsePeer(j.text)
		switch first, twice := seen[at]; {
		case twice:
			b.fail(j.at, "", "cluster: join: %s stands twice: first at line %d", at, first.line)
		case at == own:
		default:
			c.Join = append(c.Join, at)
		}
		seen[at] = j.at
	}
}

// nodes reads the names of nodes in certificates that rota did not make.
func (b *builder) nodes(c *Cluster, n *node) {
	names := n.get("nodes")
	seen := map[string]place{}
	for _, v := range elements(names) {
		if at, twice := seen[v.text]; twice {
			b.fail(v.at, "", "cluster: nodes: %q stands twice: first at line %d", v.text, at.line)
			continue
		}
		seen[v.text] = v.at
		c.Nodes = append(c.Nodes, v.text)
	}
	slices.Sort(c.Nodes)
	if len(c.Nodes) > 0 && c.Election == Raft && (!n.has("tls") || n.get("tls") != nil && !says(n.get("tls"))) {
		b.fail(names.at, "write tls: {cert: FILE, key: FILE, ca: FILE}, or remove it",
			"cluster: nodes says who stands in certificates of cluster.tls, and there is no cluster.tls; rota's own certificates say it themselves")
	}
}

// vantage reads whose word counts, and how much of it is needed.
func (b *builder) vantage() {
	v := b.root.get("vantage")
	q := rota.Quorum{
		Need: textOr(v.get("quorum"), "majority"), Of: textOr(v.get("of"), "nodes"), MaxAge: durationOr(v.get("max_age"), rota.DefaultMaxAge),
	}
	whole := b.agents(v)
	b.uplink(v.child("uplink"))
	b.c.NodesVote = true
	var vantages []rota.Vantage
	if n := v.get("nodes"); n != nil && n.text == "false" {
		if b.c.NodesVote = whole && len(b.c.Agents) == 0; b.c.NodesVote {
			b.fail(n.at, "write agents: {accept: [NAME]}, or remove it", "vantage: nodes: false leaves nobody who votes: no agents are accepted")
		}
	}
	if b.c.NodesVote {
		vantages = []rota.Vantage{{Name: b.c.Node.Name, Site: b.c.Node.Site}}
	}
	for _, a := range b.c.Agents {
		vantages = append(vantages, rota.Vantage{Name: a.Name, Site: a.Site, Agent: true})
	}
	slices.SortFunc(vantages, func(a, b rota.Vantage) int { return cmp.Compare(a.Name, b.Name) })
	b.c.Spec.Quorum, b.c.Spec.Vantages = q, vantages
	// How many nodes a cluster has is in no file.
	if n := v.get("quorum"); n != nil && whole && b.alone() {
		if _, err := q.Votes(q.Voices(vantages)); err != nil {
			b.fail(n.at, "", "%v", err)
		}
	}
}

// alone reports whether it is sure that there is no other node.
func (b *builder) alone() bool {
	n := b.root.get("cluster")
	return b.c.Cluster.Election == Singleton && (n.get("election") != nil || !n.has("election"))
}

// agents reads the vantages that are no nodes, and reports whether all that were written could be read.
func (b *builder) agents(v *node) (whole bool) {
	n := v.get("agents")
	accept := n.get("accept")
	list := withFaults(accept)
	whole = (n != nil || !v.has("agents")) && (accept != nil || !n.has("accept")) && len(list) == written(accept)
	seen := map[string]place{}
	for _, a := range list {
		name := a
		if a.kind == isMap {
			name = a.get("name")
		}
		if name == nil {
			whole = false
			continue
		}
		at, twice := seen[name.text]
		switch {
		case twice:
			b.fail(name.at, "", "agent %q stands twice: first at line %d", name.text, at.line)
			whole = false
			continue
		case name.text == b.c.Node.Name:
			b.fail(name.at, "give one of them another name", "agent %q has the name of this node, and a name is one vantage", name.text)
		case slices.Contains(b.c.Cluster.Nodes, name.text):
			b.fail(name.at, "keep one", "agent %q is a node, too, in cluster.nodes", name.text)
		}
		seen[name.text] = name.at
		b.c.Agents = append(b.c.Agents, Agent{Name: name.text, Site: textOr(a.get("site"), "")})
	}
	slices.SortFunc(b.c.Agents, func(a, b Agent) int { return cmp.Compare(a.Name, b.Name) })
	b.healthagent(n.child("healthagent"), n)
	if len(b.c.Agents) > 0 && !n.has("healthagent") && b.alone() {
		b.warn(accept.at, "add healthagent, or cluster: {election: raft}",
			"vantage: agents have nowhere to report: rota's own come in at cluster.listen, which needs election: raft, healthagents at healthagent.listen")
	}
	return whole
}

// healthagent reads the listener for healthagents. agents is what it stands in.
func (b *builder) healthagent(n, agents *node) {
	if n == nil {
		return
	}
	const what = "vantage: agents: healthagent"
	h := &Healthagent{}
	if v := n.get("listen"); v != nil {
		h.Listen, _ = parseListen(v.text)
	}
	tls := n.get("tls")
	files := b.certificate(tls, certificateUse{what: what, ca: "client_ca"})
	h.CertFile, h.KeyFile, h.ClientCAFile = files.cert, files.key, files.ca
	if tls != nil && !says(tls) {
		b.fail(tls.at, "", "%s: tls wants cert, key and client_ca", what)
	}
	if accept := agents.get("accept"); !agents.has("accept") || accept != nil && !says(accept) {
		b.fail(n.at, "write accept: [NAME] with the names in the agents' certificates", "%s would let nobody in: accept names no agent", what)
	}
	b.c.Healthagent = h
}

// uplinkTiming is how the uplink is watched, whatever the services' checks do: one failure counts, and a second passes between
// questions, so that a node knows that it is cut off before an opinion on a service turns, which takes several failures.
var uplinkTiming = rota.Timing{
	Interval: time.Second, FastInterval: time.Second, Timeout: time.Second, Fall: 1, Rise: 2, OK: 1,
}

// uplink reads how this node finds out that it is cut off.
func (b *builder) uplink(n *node) {
	if n == nil {
		return
	}
	s := &scope{b: b, what: "vantage: uplink"}
	u := &Uplink{Need: intOr(n.get("need"), 1)}
	seen := map[rota.TargetID]place{}
	checks := n.get("checks")
	for _, c := range elements(checks) {
		addr, ok := s.endpointURL(c)
		use, fine := s.urlCheck(c, endpointTemplate(c.text))
		if !ok || !fine {
			continue
		}
		use.Check.Name, use.Check.Timing = use.Check.Describe(), uplinkTiming
		t := rota.NewTarget(addr, use.Check)
		if at, twice := seen[t.ID]; twice {
			b.fail(c.at, "", "%s: %s stands twice: first at line %d", s.what, uplinkURL(t), at.line)
			continue
		}
		seen[t.ID] = c.at
		u.Checks = append(u.Checks, t)
	}
	s.warnLoopback("it answers when this node is cut off, too")
	if need := n.get("need"); need != nil && checks != nil && u.Need > written(checks) {
		b.fail(need.at, "", "%s: need %d is above the %d in checks: this node would always abstain", s.what, u.Need, written(checks))
	}
	b.c.Uplink = u
}

// uplinkURL writes an uplink's target as it is configured.
func uplinkURL(t rota.Target) string {
	host := t.Address.String()
	if t.Address.Is6() {
		host = "[" + host + "]"
	}
	if t.Check.Port != 0 {
		host += fmt.Sprintf(":%d", t.Check.Port)
	}
	path := t.Check.Path
	if t.Check.Query != "" {
		path = "/" + t.Check.Query
	}
	return string(t.Check.Kind) + "://" + host + path
}

// certificateUse says what files of certificates are for.
type certificateUse struct {
	what    string // in messages
	ca      string // the key that names the other side's authority; empty: none
	private bool   // nobody but its owner may read the private key; else who can is warned of
}

// certificateFiles are PEM files, all with paths; the zero value is none.
type certificateFiles struct{ cert, key, ca string }

// certificate reads which files a listener's TLS is made of, and whether they can be. None of them and nothing else than all of them
// are right.
func (b *builder) certificate(n *node, use certificateUse) certificateFiles {
	keys := []string{"cert", "key"}
	if use.ca != "" {
		keys = append(keys, use.ca)
	}
	if !slices.ContainsFunc(keys, n.has) {
		return certificateFiles{}
	}
	if !slices.ContainsFunc(keys, func(k string) bool { return !n.has(k) }) {
		return b.certificateFiles(n, use)
	}
	b.fail(n.at, "", "%s: tls wants %s and %s", use.what, strings.Join(keys[:len(keys)-1], ", "), keys[len(keys)-1])
	return certificateFiles{}
}

func (b *builder) certificateFiles(n *node, use certificateUse) certificateFiles {
	path := func(key string) string {
		v := n.get(key)
		if v == nil {
			return ""
		}
		return within(v.at.src, v.text)
	}
	f := certificateFiles{cert: path("cert"), key: path("key")}
	if use.ca != "" {
		f.ca = path(use.ca)
	}
	if b.o.NoSecrets {
		return f
	}
	const limit = 1 << 20
	b.authority(n.get(use.ca), f.ca, limit)
	if f.cert == "" || f.key == "" {
		return f
	}
	cert, key := n.get("cert"), n.get("key")
	certPEM, err1 := b.read(f.cert, limit)
	keyPEM, mode, err2 := b.open(f.key, limit)
	if err1 != nil {
		b.fail(cert.at, "", "certificate %s: %v", f.cert, err1)
	}
	if err2 != nil {
		b.fail(key.at, "", "private key %s: %v", f.key, err2)
	}
	if err1 != nil || err2 != nil {
		return f
	}
	switch {
	case use.private && mode&forOthers != 0:
		b.fail(key.at, "chmod 600", "private key %s has mode %04o, so others than its owner may read or write it", f.key, mode)
	case mode&forAll != 0:
		b.openSecret(key.at, f.key)
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		b.fail(cert.at, "", "certificate %s and key %s cannot be used: %s", f.cert, f.key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return f
}

// authority makes sure of a file with the certificates of an authority.
func (b *builder) authority(n *node, path string, limit int) {
	if n == nil {
		return
	}
	text, err := b.read(path, limit)
	switch {
	case err != nil:
		b.fail(n.at, "", "certificate of the CA %s: %v", path, err)
	case !x509.NewCertPool().AppendCertsFromPEM(text):
		b.fail(n.at, "", "%s holds no certificate in PEM", path)
	}
}
