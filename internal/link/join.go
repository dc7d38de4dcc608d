package link

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// JoinReason is why a newcomer was not let in.
type JoinReason string

// The reasons.
const (
	TokenWrong   JoinReason = "token-wrong"   // unknown here, or its secret is not the one
	TokenExpired JoinReason = "token-expired" //
	TokenUsed    JoinReason = "token-used"    // as often as it may be
	TokenRevoked JoinReason = "token-revoked" //
	TokenForeign JoinReason = "token-foreign" // of another cluster
	OtherCA      JoinReason = "other-ca"      // who answers has not the CA that the token names
	JoinBusy     JoinReason = "too-many"      // wrong attempts from this address
	JoinElse     JoinReason = "elsewhere"     // another node is to be asked
	JoinRefused  JoinReason = "not-admitted"  // by JoinServer.Admit: an id that is taken, a node that was removed
	JoinBad      JoinReason = "request"       // not understood
	JoinFailed   JoinReason = "failed"        // here, for reasons that are in the log
)

// JoinError is a newcomer that was not let in, and why.
type JoinError struct {
	Reason  JoinReason `json:"reason"`
	Text    string     `json:"text"`
	Address string     `json:"-"`             // who said so
	Ask     []string   `json:"ask,omitempty"` // who is to be asked instead

	after time.Duration
}

// Error says why, and what to do.
func (e *JoinError) Error() string {
	if e.Address == "" {
		return e.Text
	}
	return e.Address + ": " + e.Text
}

// final reports whether asking another node is of no use.
func (e *JoinError) final() bool {
	switch e.Reason {
	case TokenWrong, TokenExpired, TokenUsed, TokenRevoked, TokenForeign, JoinRefused, JoinBad:
		return true
	}
	return false
}

// Bounds of joining.
const (
	maxJoinRequest = 32 << 10
	maxJoinAnswer  = 512 << 10
	joinLimit      = 20 * time.Second // one address
	joinHops       = 8                // addresses asked beyond those in the token
	joinPath       = "/v1/join"
	wrongBurst     = 5                // wrong attempts from one source
	wrongEvery     = 10 * time.Second // until one more is allowed
	wrongSources   = 4096
)

// joinRequest is what a newcomer sends once it knows that it talks to the cluster of its token.
type joinRequest struct {
	Cluster string `json:"cluster"`
	Token   string `json:"token"`
	Secret  []byte `json:"secret"`
	Role    Role   `json:"role"`
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
	Request []byte `json:"csr"`
	Seal    []byte `json:"seal,omitempty"` // public key to which the CA's key is sealed
}

type joinAnswer struct {
	Cert    []byte   `json:"cert"`
	Bundle  []byte   `json:"bundle"`
	Members []Member `json:"members"`
	CAKey   []byte   `json:"ca_key,omitempty"`
}

// Newcomer is who asks to be let in, with a token that is good.
type Newcomer struct {
	Identity
	Address string // where others are to reach it; empty for agents
}

// JoinServer lets newcomers in. It is the handler for Options.Join.
type JoinServer struct {
	Tokens  *Tokens
	CA      func() (*CA, error) // the authority in force
	Members func() []Member     // told to newcomers

	// Elsewhere gives the addresses to ask instead when tokens are not kept here now, such as the leader's. Nil or none: here.
	Elsewhere func() []string

	// Admit says why a newcomer cannot be let in though its token is good, such as an id that another node has. It must have no
	// effect: the token is not used yet. Its error's text is told to the newcomer. May be nil.
	Admit func(context.Context, Newcomer) error

	// Joined is told of a newcomer before it gets its certificate; an error keeps it out, though its token is used then. The same
	// newcomer may come again when its answer was lost. May be nil.
	Joined func(context.Context, Newcomer) error

	Log *slog.Logger

	wrong *rate
}

// Handler returns the handler. Call it once.
func (s *JoinServer) Handler() http.Handler {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.wrong = newRate(wrongBurst, wrongEvery, wrongSources)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, s.join)
	return mux
}

func (s *JoinServer) join(w http.ResponseWriter, r *http.Request) {
	from := sourceOf(r.RemoteAddr)
	a, who, err := s.admit(r, from)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if err == nil {
		s.Log.Info("let a newcomer in", "newcomer", who.Identity.String(), "address", who.Address, "from", r.RemoteAddr)
		_ = json.NewEncoder(w).Encode(a) // a lost answer is asked for again
		return
	}
	no := (*JoinError)(nil)
	if !errors.As(err, &no) {
		s.Log.Error("a newcomer with a good token could not be let in", "newcomer", who.Identity.String(), "from", r.RemoteAddr, "err", err)
		no = &JoinError{Reason: JoinFailed, Text: "the node could not let the newcomer in; its log says why"}
	}
	code := http.StatusForbidden
	switch no.Reason {
	case JoinBusy:
		code = http.StatusTooManyRequests
		h.Set("Retry-After", strconv.Itoa(int(no.after.Seconds())+1))
	case JoinElse:
		code = http.StatusMisdirectedRequest
	case JoinBad:
		code = http.StatusBadRequest
	case JoinFailed:
		code = http.StatusInternalServerError
	}
	if no.Reason != JoinElse && no.Reason != JoinBusy {
		s.Log.Warn("a newcomer was not let in", "reason", string(no.Reason), "from", r.RemoteAddr)
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(no)
}

func sourceOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	return source(net.TCPAddrFromAddrPort(ap))
}

func (s *JoinServer) admit(r *http.Request, from netip.Prefix) (*joinAnswer, Newcomer, error) {
	if d := s.wrong.wait(from, time.Now()); d > 0 {
		return nil, Newcomer{}, &JoinError{Reason: JoinBusy, Text: fmt.Sprintf("too many wrong attempts from this address: wait %v", d.Round(time.Second)), after: d}
	}
	fail := func(reason JoinReason, format string, a ...any) (*joinAnswer, Newcomer, error) {
		s.wrong.spend(from, time.Now())
		return nil, Newcomer{}, &JoinError{Reason: reason, Text: fmt.Sprintf(format, a...)}
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxJoinRequest+1))
	if err != nil || len(b) > maxJoinRequest {
		return fail(JoinBad, "the request did not come whole, or is larger than %d bytes", maxJoinRequest)
	}
	var q joinRequest
	if err := json.Unmarshal(b, &q); err != nil {
		return fail(JoinBad, "the request is not understood: another version of rota?")
	}
	ca, err := s.CA()
	if err != nil {
		return nil, Newcomer{}, err
	}
	if q.Cluster != ca.Cluster() {
		return fail(TokenForeign, "the join token is of another cluster, this is cluster %s", ca.Cluster())
	}
	if s.Elsewhere != nil {
		if ask := s.Elsewhere(); len(ask) > 0 {
			return nil, Newcomer{}, &JoinError{Reason: JoinElse, Text: "another node keeps the join tokens now", Ask: ask}
		}
	}
	who := Newcomer{Identity{Cluster: q.Cluster, Role: q.Role, ID: q.ID, Name: q.Name}, q.Address}
	if err := who.Check(); err != nil {
		return fail(JoinBad, "%v", err)
	}
	if q.Role == Node {
		if err := checkAddress(q.Address); err != nil {
			return fail(JoinBad, "%v: set cluster.advertise", err)
		}
	} else if q.Address != "" {
		return fail(JoinBad, "an agent has no address")
	}
	k := Token{Cluster: q.Cluster, Role: q.Role, ID: q.Token}
	if len(q.Secret) != len(k.secret) || !spell(q.Token, maxID) {
		return fail(JoinBad, "the request is not understood: another version of rota?")
	}
	copy(k.secret[:], q.Secret)
	req, err := parseRequest(q.Request)
	if err != nil {
		return fail(JoinBad, "%v", err)
	}
	key := sha256.Sum256(req.RawSubjectPublicKeyInfo)
	use := Use{By: by(q.Role, q.ID), Key: base64.RawStdEncoding.EncodeToString(key[:]), At: time.Now().UTC()}
	if err := s.Tokens.check(r.Context(), k, use); err != nil {
		return s.spent(from, who, err)
	}
	if s.Admit != nil {
		if err := s.Admit(r.Context(), who); err != nil {
			return nil, who, &JoinError{Reason: JoinRefused, Text: err.Error()}
		}
	}
	a := &joinAnswer{}
	if q.Role == Node {
		if a.CAKey, err = sealCA(ca, q.Seal); err != nil {
			return fail(JoinBad, "%v", err)
		}
	}
	g, err := ca.Sign(q.Request, who.Identity)
	if err != nil {
		return nil, who, err
	}
	if err := s.Tokens.redeem(r.Context(), k, use); err != nil {
		return s.spent(from, who, err)
	}
	if s.Joined != nil {
		if err := s.Joined(r.Context(), who); err != nil {
			return nil, who, err
		}
	}
	a.Cert, a.Bundle = g.Cert, g.Bundle
	if s.Members != nil {
		a.Members = s.Members()
	}
	return a, who, nil
}

// spent counts a wrong token; that the store failed is nobody's attempt.
func (s *JoinServer) spent(from netip.Prefix, who Newcomer, err error) (*joinAnswer, Newcomer, error) {
	if no := (*JoinError)(nil); errors.As(err, &no) {
		s.wrong.spend(from, time.Now())
	}
	return nil, who, err
}

// The CA's key is sealed to a key that the newcomer made for this request (HPKE, RFC 9180): whatever keeps or logs bodies on the way
// has nothing.
var sealInfo = []byte("rota join: key of the CA of cluster ")

func sealCA(ca *CA, public []byte) ([]byte, error) {
	pub, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(public)
	if err != nil {
		return nil, errors.New("no key to seal the CA's key to")
	}
	key, err := marshalKey(ca.key)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), append(sealInfo[:len(sealInfo):len(sealInfo)], ca.cluster...), key)
}

func openCA(key hpke.PrivateKey, cluster string, sealed []byte) ([]byte, error) {
	return hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), append(sealInfo[:len(sealInfo):len(sealInfo)], cluster...), sealed)
}

// JoinOptions says who wants in, with which token.
type JoinOptions struct {
	Token   Token
	ID      string // of a node; an agent's is its name
	Name    string
	Address string // where others are to reach a node: cluster.advertise
	Log     *slog.Logger
}

// Joined is what a newcomer got. Save puts it where it is used from then on.
type Joined struct {
	Identity Identity
	Members  []Member
	Expires  time.Time

	key   *ecdsa.PrivateKey
	grant Grant
	caKey []byte
}

// Save writes the credentials, and the CA's key for a node.
func (j *Joined) Save(f Files) error {
	if j.caKey != nil && f.CAKey != "" {
		if err := writeFile(f.CA, j.grant.Bundle, 0o644); err != nil {
			return err
		}
		if err := writeFile(f.CAKey, j.caKey, 0o600); err != nil {
			return err
		}
	}
	return save(f, j.key, j.grant)
}

// Join asks the nodes in the token to let this process in, one after the other. The secret is said only to a node whose certificate
// leads to the authority that the token names. An error that is a JoinError has the reason.
func Join(ctx context.Context, o JoinOptions) (*Joined, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Token.Role == Agent {
		o.ID = o.Name
	}
	who := Identity{Cluster: o.Token.Cluster, Role: o.Token.Role, ID: o.ID, Name: o.Name}
	if err := who.Check(); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	key, csr, err := newRequest()
	if err != nil {
		return nil, err
	}
	seal, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return nil, err
	}
	q := joinRequest{Cluster: who.Cluster, Token: o.Token.ID, Secret: o.Token.secret[:], Role: who.Role, ID: who.ID, Name: who.Name, Address: o.Address, Request: csr}
	if who.Role == Node {
		q.Seal = seal.PublicKey().Bytes()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	ask := slices.Clone(o.Token.Addresses)
	var errs []error
	for i := 0; i < len(ask) && i < len(o.Token.Addresses)+joinHops; i++ {
		a, err := joinAt(ctx, ask[i], o.Token, body)
		if err == nil {
			j, err := accept(a, who, key, seal)
			if err != nil {
				return nil, fmt.Errorf("join: what %s answered: %w", ask[i], err)
			}
			return j, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("join: %w", errors.Join(append(errs, err)...))
		}
		no := (*JoinError)(nil)
		if errors.As(err, &no) {
			if no.final() {
				return nil, fmt.Errorf("join: %w", err)
			}
			for _, n := range no.Ask {
				if checkAddress(n) == nil && !slices.Contains(ask[i+1:], n) && len(ask) < len(o.Token.Addresses)+joinHops {
					ask = slices.Insert(ask, i+1, n)
				}
			}
		}
		o.Log.Info("could not join here", "address", ask[i], "err", err)
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("join: %w", errors.Join(errs...))
}

// joinAt asks one node.
func joinAt(ctx context.Context, address string, k Token, body []byte) (*joinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	t := &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return dialJoin(ctx, address, k) },
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://rota"+joinPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		if no := (*JoinError)(nil); errors.As(err, &no) {
			return nil, no
		}
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinAnswer+1))
	if err != nil || len(b) > maxJoinAnswer {
		return nil, fmt.Errorf("%s: its answer did not come whole, or is larger than %d bytes: %w", address, maxJoinAnswer, err)
	}
	if resp.StatusCode != http.StatusOK {
		no := &JoinError{}
		if err := json.Unmarshal(b, no); err != nil || no.Reason == "" {
			return nil, fmt.Errorf("%s: it answered %s", address, resp.Status)
		}
		no.Address, no.Text = address, plain(no.Text)
		return nil, no
	}
	a := &joinAnswer{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("%s: its answer is not understood: %w", address, err)
	}
	return a, nil
}

// dialJoin connects to a node that proves itself by the CA of the token.
func dialJoin(ctx context.Context, address string, k Token) (net.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtocolJoin},
		InsecureSkipVerify: true, // VerifyConnection does it all: the pin instead of a list, and the identity instead of a host name
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != ProtocolJoin {
				return &JoinError{Reason: OtherCA, Address: address, Text: "who answers there is no rota node, or lets nobody join"}
			}
			return k.meets(address, cs.PeerCertificates)
		},
	}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// meets makes sure that a chain leads to the pinned authority and is of a node of the token's cluster.
func (k Token) meets(address string, certs []*x509.Certificate) error {
	no := func(text string) error { return &JoinError{Reason: OtherCA, Address: address, Text: text} }
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return sha256.Sum256(c.Raw) == k.Pin })
	if i < 1 { // the first is the node's own
		return no("who answers there has not the CA that the join token names, so nothing was said: a wrong address, a token made before the CA changed, or somebody in between")
	}
	m := &material{pool: x509.NewCertPool()}
	m.pool.AddCert(certs[i])
	id, _, err := m.trace(certs, x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return no(err.Error())
	}
	if id.Cluster != k.Cluster || id.Role != Node {
		return no(fmt.Sprintf("%s of cluster %s answers there, and the join token is for a node of cluster %s", id, id.Cluster, k.Cluster))
	}
	return nil
}

// accept makes sure of an answer before anything is done with it.
func accept(a *joinAnswer, who Identity, key *ecdsa.PrivateKey, seal hpke.PrivateKey) (*Joined, error) {
	k, err := marshalKey(key)
	if err != nil {
		return nil, err
	}
	m, err := build(a.Cert, k, a.Bundle, nil)
	if err != nil {
		return nil, err
	}
	if !m.id.same(who) {
		return nil, fmt.Errorf("a certificate of %s, and this is %s", m.id, who)
	}
	j := &Joined{Identity: m.id, Expires: m.cert.Leaf.NotAfter, key: key, grant: Grant{Cert: a.Cert, Bundle: a.Bundle}}
	for _, n := range a.Members {
		if !spell(n.ID, maxID) || checkAddress(n.Address) != nil {
			return nil, errors.New("a member without an id or an address")
		}
		j.Members = append(j.Members, n)
	}
	if who.Role == Node {
		if j.caKey, err = openCA(seal, who.Cluster, a.CAKey); err != nil {
			return nil, errors.New("the CA's key is not sealed to this newcomer")
		}
		if _, err := parseCA(j.caKey, a.Bundle); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// Bounds of a renewal, by which those without the CA's key get a new certificate.
const (
	maxRenewRequest = 16 << 10
	maxRenewAnswer  = 128 << 10
)

// RenewHandler signs anew for whoever the connection's certificate is of. It belongs behind Options.Peer: the identity is the
// connection's, and nothing in the request counts but the key.
func RenewHandler(ca func() (*CA, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := PeerOf(r.Context())
		if !ok || r.Method != http.MethodPost {
			http.Error(w, "a POST of a certificate request, by a member", http.StatusForbidden)
			return
		}
		csr, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRenewRequest))
		if err != nil {
			http.Error(w, "the request did not come whole", http.StatusBadRequest)
			return
		}
		a, err := ca()
		if err != nil {
			log.Error("a certificate could not be renewed: no CA", "for", id.String(), "err", err)
			http.Error(w, "this node has no CA to sign with; ask another", http.StatusServiceUnavailable)
			return
		}
		g, err := a.Sign(csr, id)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		log.Info("renewed a certificate", "for", id.String())
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g)
	})
}

// RequestRenewal asks a RenewHandler at a URL, with a Dialer's client.
func RequestRenewal(ctx context.Context, c *http.Client, url string, csr []byte) (Grant, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(csr))
	if err != nil {
		return Grant{}, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return Grant{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRenewAnswer+1))
	switch {
	case err != nil:
		return Grant{}, err
	case resp.StatusCode != http.StatusOK:
		return Grant{}, fmt.Errorf("%s: %s", resp.Status, plain(string(bytes.TrimSpace(b))))
	case len(b) > maxRenewAnswer:
		return Grant{}, fmt.Errorf("an answer larger than %d bytes", maxRenewAnswer)
	}
	var g Grant
	return g, json.Unmarshal(b, &g)
}
