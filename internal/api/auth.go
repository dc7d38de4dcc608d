package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// Role is what a caller may do. The zero value may do nothing but ask whether rota lives.
type Role uint8

// The roles, weakest first; each may do what those before it may, but for RoleAgent's business, which is RoleOperator's too.
const (
	RoleNone      Role = iota
	RoleAgent          // register the host that its token is named after, speak for endpoints that name it, and nothing else
	RoleAnonymous      // over TCP without a token, where anonymous reads are allowed
	RoleViewer         // read everything
	RoleOperator       // override endpoints
	RoleAdmin          // reload the configuration, change the cluster
)

var roleNames = [...]string{"none", "agent", "anonymous", "viewer", "operator", "admin"}

func (r Role) String() string { return roleNames[min(int(r), len(roleNames)-1)] }

// ParseRole reads the role of a token: agent, viewer, operator or admin.
func ParseRole(s string) (Role, error) {
	for _, r := range []Role{RoleAgent, RoleViewer, RoleOperator, RoleAdmin} {
		if r.String() == s {
			return r, nil
		}
	}
	return RoleNone, fmt.Errorf("unknown role %q: want agent, viewer, operator or admin", s)
}

// Token lets its bearer in. The secret itself is not kept, only its SHA-256: nothing that prints a Token can give it away.
type Token struct {
	Name string
	Role Role
	hash [sha256.Size]byte
}

// NewToken makes the token of a secret. It refuses a secret under 16 bytes, which could be guessed.
func NewToken(name string, role Role, secret string) (Token, error) {
	if len(secret) < 16 {
		return Token{}, fmt.Errorf("token %q has %d bytes, want at least 16: make one with `openssl rand -base64 24`", name, len(secret))
	}
	return Token{name, role, sha256.Sum256([]byte(secret))}, nil
}

// Access says who may call a route.
type Access uint8

// The accesses. The zero value lets nobody in, so that a route that was forgotten is refused.
const (
	AccessNobody   Access = iota
	AccessPublic          // everybody
	AccessRead            // RoleAnonymous and above
	AccessKnown           // RoleViewer and above: costs something elsewhere, or says more than the DNS does
	AccessOperator        // RoleOperator and above
	AccessAdmin           // RoleAdmin
	AccessAgent           // RoleAgent, and RoleOperator and above
)

// Allows reports whether a role has the access.
func (a Access) Allows(r Role) bool {
	switch a {
	case AccessPublic:
		return true
	case AccessRead:
		return r >= RoleAnonymous
	case AccessKnown:
		return r >= RoleViewer
	case AccessOperator:
		return r >= RoleOperator
	case AccessAdmin:
		return r >= RoleAdmin
	case AccessAgent:
		return r == RoleAgent || r >= RoleOperator
	}
	return false
}

// caller is who a request comes from.
type caller struct {
	role  Role
	actor string // unix:UID, token:NAME or anonymous
	unix  bool
}

// author is the name an override carries: what a trusted caller says it is called, else what is known of it.
func (c caller) author(claimed string) string {
	claimed = rota.CleanReason("%s", strings.TrimSpace(claimed))
	if c.unix && claimed != "" {
		return claimed
	}
	if _, name, ok := strings.Cut(c.actor, "token:"); ok {
		return name
	}
	return c.actor
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// peerKey carries what is known of a connection over the unix socket.
type peerKey struct{}

type peer struct {
	uid   int
	known bool
}

// keepPeer remembers who opened a connection over the unix socket.
func keepPeer(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	uid, err := peerUID(u)
	return context.WithValue(ctx, peerKey{}, peer{uid, err == nil})
}

// guard decides whether a request may go on, before any of its body is read. It is immutable.
type guard struct {
	tokens    []Token
	anonymous Role // of TCP callers without a token
	hosts     []string
	strict    bool // hosts were named: hold every connection to them, not only those to loopback
	cross     *http.CrossOriginProtection
}

func newGuard(o Options) (guard, error) {
	g := guard{tokens: o.Tokens, strict: len(o.AllowedHosts) > 0, cross: http.NewCrossOriginProtection()}
	if o.AnonymousRead {
		g.anonymous = RoleAnonymous
	}
	for _, h := range hostNames(o.AllowedHosts) {
		g.hosts = append(g.hosts, strings.ToLower(strings.TrimSuffix(h, ".")))
	}
	var errs []error
	for i, t := range o.Tokens {
		if t.Role != RoleAgent && t.Role < RoleViewer || t.Role > RoleAdmin || t.hash == [sha256.Size]byte{} {
			errs = append(errs, fmt.Errorf("api.tokens: %q was not made by NewToken with a role", t.Name))
		}
		for _, u := range o.Tokens[:i] {
			if t.Name == u.Name || t.hash == u.hash {
				errs = append(errs, fmt.Errorf("api.tokens: %q and %q share a name or a secret", u.Name, t.Name))
			}
		}
	}
	return g, errors.Join(errs...)
}

// refusal is why a request does not go on.
type refusal struct {
	status int
	detail string
}

// identify says who calls. Over TCP an Authorization header that is there must be right: a wrong token is not anonymous.
func (g guard) identify(r *http.Request) (caller, *refusal) {
	if p, ok := r.Context().Value(peerKey{}).(peer); ok {
		actor := "unix"
		if p.known {
			actor = "unix:" + strconv.Itoa(p.uid)
		}
		return caller{role: RoleAdmin, actor: actor, unix: true}, nil
	}
	fields := r.Header.Values("Authorization")
	if len(fields) == 0 {
		return caller{role: g.anonymous, actor: "anonymous"}, nil
	}
	scheme, secret, _ := strings.Cut(fields[0], " ")
	if len(fields) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return caller{}, &refusal{http.StatusUnauthorized, "want one header Authorization: Bearer TOKEN"}
	}
	hash := sha256.Sum256([]byte(strings.TrimSpace(secret)))
	found := caller{}
	for _, t := range g.tokens { // all of them, so that the time taken says nothing
		if subtle.ConstantTimeCompare(hash[:], t.hash[:]) == 1 {
			found = caller{role: t.Role, actor: "token:" + t.Name}
		}
	}
	if found.role == RoleNone {
		return caller{}, &refusal{http.StatusUnauthorized, "the token is not known here"}
	}
	return found, nil
}

// host refuses names that this server is not called by. A page of another site can make its own name resolve to 127.0.0.1 and then
// talk to rota as if it were that site (DNS rebinding); the Host header gives it away.
func (g guard) host(r *http.Request) *refusal {
	if _, ok := r.Context().Value(peerKey{}).(peer); ok {
		return nil
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && !g.strict {
		if a, err := netip.ParseAddrPort(local.String()); err == nil && !a.Addr().Unmap().IsLoopback() {
			return nil
		}
	}
	name := r.Host
	if h, _, err := net.SplitHostPort(name); err == nil {
		name = h
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return nil
	}
	if slices.Contains(g.hosts, strings.ToLower(strings.TrimSuffix(name, "."))) {
		return nil
	}
	return &refusal{http.StatusMisdirectedRequest, "this host name is not one of this server's; use its address, or add the name to the allowed hosts"}
}

// origin refuses writes that a browser sends for a page of another site, and bodies that a form can make. An upload's body is octets.
func (g guard) origin(r *http.Request, upload bool) *refusal {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	if err := g.cross.Check(r); err != nil {
		return &refusal{http.StatusForbidden, "refused: sent for a page of another site"}
	}
	ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	want := "application/json"
	if upload {
		want = octets
	}
	if r.ContentLength != 0 && !strings.EqualFold(strings.TrimSpace(ct), want) {
		return &refusal{http.StatusUnsupportedMediaType, "want Content-Type: " + want}
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return &refusal{http.StatusUnsupportedMediaType, "want a body without Content-Encoding"}
	}
	return nil
}

// admit says who calls and whether the route lets them in.
func (g guard) admit(r *http.Request, a Access) (caller, *refusal) {
	if a == AccessPublic {
		c, bad := g.identify(r)
		if bad != nil {
			return caller{}, nil // whether rota lives is nobody's secret
		}
		return c, nil
	}
	c, bad := g.identify(r)
	switch {
	case bad != nil:
		return caller{}, bad
	case a.Allows(c.role):
		return c, nil
	case c.role == RoleNone || c.role == RoleAnonymous:
		return caller{}, &refusal{http.StatusUnauthorized, "this needs a token of api.tokens, sent as Authorization: Bearer TOKEN (the rota command takes it from ROTA_TOKEN or ROTA_TOKEN_FILE), or the unix socket"}
	}
	return caller{}, &refusal{http.StatusForbidden, fmt.Sprintf("%s has the role %s, which may not do this", c.actor, c.role)}
}
