package link

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

// Role is what a certificate allows its holder to be.
type Role string

// The roles. A node votes, leads and answers; an agent only probes and reports.
const (
	Node  Role = "node"
	Agent Role = "agent"
)

func (r Role) valid() bool { return r == Node || r == Agent }

// Identity is who is at the other end: of which cluster, as what, under which id. It comes out of a verified certificate and nowhere
// else.
type Identity struct {
	Cluster string
	Role    Role
	ID      string // raft's id of a node; an agent's name; empty for a node of an outside CA that is not known yet
	Name    string // for people
}

// String gives node name (id), or agent name.
func (i Identity) String() string {
	switch {
	case i.Role == "":
		return "nobody"
	case i.ID == i.Name || i.ID == "":
		return string(i.Role) + " " + i.Name
	case i.Name == "":
		return string(i.Role) + " " + i.ID
	}
	return fmt.Sprintf("%s %s (%s)", i.Role, i.Name, i.ID)
}

// same reports whether two identities are of one holder, whatever name it has today.
func (i Identity) same(o Identity) bool {
	if i.Cluster != o.Cluster || i.Role != o.Role {
		return false
	}
	if i.ID == "" || o.ID == "" {
		return i.Name != "" && i.Name == o.Name
	}
	return i.ID == o.ID
}

// Bounds of what stands in a certificate.
const (
	maxID   = 128
	maxName = 64 // ub-common-name, RFC 5280 appendix A.1
)

// Check says what is wrong with an identity for which a certificate is asked, or nil.
func (i Identity) Check() error {
	switch {
	case !i.Role.valid():
		return fmt.Errorf("role %q: node or agent", i.Role)
	case !word(i.Cluster, maxName):
		return fmt.Errorf("cluster id %q: 1 to %d letters, digits, hyphens", clip(i.Cluster), maxName)
	case !spell(i.ID, maxID):
		return fmt.Errorf("%s id %q: 1 to %d letters, digits, and . _ -", i.Role, clip(i.ID), maxID)
	case !spell(i.Name, maxName):
		return fmt.Errorf("%s name %q: 1 to %d letters, digits, and . _ -", i.Role, clip(i.Name), maxName)
	case i.Role == Agent && i.ID != i.Name:
		return fmt.Errorf("agent name %q and id %q: an agent's name is its id", clip(i.Name), clip(i.ID))
	}
	return nil
}

// spell reports whether s is made of what ids and names are made of. A leading dot or hyphen could be taken for a path or a flag.
func spell(s string, most int) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= most && s[0] != '.' && s[0] != '-'
}

// word reports whether s can be the host of a URI as it stands.
func word(s string, most int) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= most && s[0] != '-'
}

// clip keeps foreign text short in errors.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// plain makes foreign text fit to be shown: one line, of bounded length, without control characters.
func plain(s string) string {
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

const scheme = "rota"

// uri is the name that certificates carry.
func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.Cluster, Path: "/" + string(i.Role) + "/" + i.ID}
}

// parseURI reads what uri writes and nothing else.
func parseURI(u *url.URL) (Identity, error) {
	role, id, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	i := Identity{Cluster: u.Host, Role: Role(role), ID: id}
	if !i.Role.valid() || !word(i.Cluster, maxName) || !spell(i.ID, maxID) || i.uri().String() != u.String() {
		return Identity{}, fmt.Errorf("%q is not rota://CLUSTER/node/ID or rota://CLUSTER/agent/NAME", clip(u.String()))
	}
	return i, nil
}

// Mapping says who the holder of a certificate is that was made outside rota and has no rota:// name.
//
// The name is the common name or, without one, the only DNS name. Where Nodes or Agents are given, the name is that of the common
// name and the DNS names that stands in one of them. The role is the list the name stands in, or an organizational unit
// "rota-node" or "rota-agent". Whatever could be read in two ways is refused: two names that fit, two units, a unit that says
// another role than the list, several DNS names without a common name.
type Mapping struct {
	Cluster string   // the cluster that this authority is trusted for
	Nodes   []string // names of nodes
	Agents  []string // names of agents

	// Agent reports whether a name that does not stand in Agents is an agent's all the same: it was accepted meanwhile. Nil: none is. It
	// must be quick.
	Agent func(name string) bool

	// NodeID gives the id of the node with a name. Nil, or false: not known yet, and the node's identity has no id.
	NodeID func(name string) (id string, ok bool)
}

// The organizational units that stand for roles.
const (
	unitNode  = "rota-node"
	unitAgent = "rota-agent"
)

// identify maps a certificate that has no rota:// name.
func (m *Mapping) identify(cert *x509.Certificate) (Identity, error) {
	var unit Role
	for _, u := range cert.Subject.OrganizationalUnit {
		role := map[string]Role{unitNode: Node, unitAgent: Agent}[u]
		if role != "" && unit != "" && role != unit {
			return Identity{}, fmt.Errorf("its units say both %s and %s: keep one", unitNode, unitAgent)
		}
		if role != "" {
			unit = role
		}
	}
	var names []string // as the certificate has them, the common name first
	if n := cert.Subject.CommonName; n != "" {
		names = append(names, n)
	}
	for _, n := range cert.DNSNames {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	var name string
	var role Role
	for _, n := range names {
		isNode, isAgent := slices.Contains(m.Nodes, n), slices.Contains(m.Agents, n)
		if !isNode && !isAgent && m.Agent != nil {
			isAgent = m.Agent(n)
		}
		switch {
		case isNode && isAgent:
			return Identity{}, fmt.Errorf("%q is configured as a node and as an agent: keep one", clip(n))
		case !isNode && !isAgent:
			continue
		case name != "":
			return Identity{}, fmt.Errorf("its names %q and %q are both configured: it can stand for one only", clip(name), clip(n))
		}
		name, role = n, Node
		if isAgent {
			role = Agent
		}
	}
	if name == "" {
		if unit == "" {
			return Identity{}, fmt.Errorf("no name of it (%s) is configured as a node or an agent, and it has no unit %s or %s", clip(strings.Join(names, ", ")), unitNode, unitAgent)
		}
		if list := map[Role][]string{Node: m.Nodes, Agent: m.Agents}[unit]; len(list) > 0 {
			return Identity{}, fmt.Errorf("no name of it (%s) is among the configured %ss", clip(strings.Join(names, ", ")), unit)
		}
		switch {
		case cert.Subject.CommonName != "":
			name = cert.Subject.CommonName
		case len(cert.DNSNames) == 1:
			name = cert.DNSNames[0]
		case len(cert.DNSNames) == 0:
			return Identity{}, errors.New("it has neither a common name nor a DNS name")
		default:
			return Identity{}, errors.New("it has several DNS names and no common name: which is meant?")
		}
		role = unit
	}
	if unit != "" && unit != role {
		return Identity{}, fmt.Errorf("%q is configured as %s, its unit says %s", clip(name), role, unit)
	}
	if !spell(name, maxName) {
		return Identity{}, fmt.Errorf("its name %q cannot be that of a %s: 1 to %d letters, digits, and . _ -", clip(name), role, maxName)
	}
	i := Identity{Cluster: m.Cluster, Role: role, Name: name}
	switch {
	case role == Agent:
		i.ID = name
	case m.NodeID != nil:
		if id, ok := m.NodeID(name); ok {
			i.ID = id
		}
	}
	return i, nil
}

// identify reads who a certificate is for.
func identify(cert *x509.Certificate, m *Mapping) (Identity, error) {
	var uri *url.URL
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		if uri != nil {
			return Identity{}, errors.New("it has two rota:// names")
		}
		uri = u
	}
	if uri == nil {
		if m == nil {
			return Identity{}, errors.New("it has no rota:// name; certificates of another authority need cluster.tls")
		}
		return m.identify(cert)
	}
	i, err := parseURI(uri)
	if err != nil {
		return Identity{}, err
	}
	i.Name = cert.Subject.CommonName
	if i.Role == Agent || !spell(i.Name, maxName) {
		i.Name = i.ID
	}
	return i, nil
}

// Member is one node of the cluster as its configuration has it.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
}

// is reports whether a verified identity is this member. A node of an outside CA that is not known by id yet is known by its name.
func (m Member) is(i Identity) bool {
	if i.Role != Node {
		return false
	}
	if i.ID == "" || m.ID == "" {
		return i.Name != "" && i.Name == m.Name
	}
	return i.ID == m.ID
}
