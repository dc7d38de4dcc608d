package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The protocols of the port, by ALPN. A connection speaks exactly one.
const (
	ProtocolRaft = "rota-raft/1" // raft's own stream; nodes only
	ProtocolPeer = "rota-peer/1" // HTTP/1.1; nodes and agents
	ProtocolJoin = "rota-join/1" // HTTP/1.1; newcomers with a token, without a certificate
)

// DialerOptions says who calls, and whom.
type DialerOptions struct {
	Credentials *Credentials

	// Members gives the nodes of the cluster's configuration. Whoever calls an address or an id of theirs reaches that node or nobody.
	// It is called often, so it should be quick. Nil: none is known, and any node of the cluster will do at any address.
	Members func() []Member

	// Allowed says why a peer is not let in though its certificate is good: it was removed, it is not accepted. It is asked at every
	// connection, in both directions, and again every few seconds while the connection stands. The peer is told the error's text. It
	// must be quick. Nil: everybody whom the CA vouches for.
	Allowed func(Identity) error

	// Timeout bounds one request of Client, answer included; 60 s when zero.
	Timeout time.Duration

	Log *slog.Logger
}

// Bounds of calls.
const (
	dialTimeout    = 5 * time.Second
	defaultTimeout = 60 * time.Second
	headerWait     = 30 * time.Second
	idlePooled     = 90 * time.Second
	recheckEvery   = 10 * time.Second
	maxGreeting    = 512
)

// Dialer calls nodes over TLS 1.3, with the certificate of this process, and makes sure of who answers. Run keeps watch over the
// connections that stand.
type Dialer struct {
	o       DialerOptions
	refused *counted
	client  *http.Client
	pool    *http.Transport
	ended   context.Context // when close was called; calls under way end
	end     context.CancelFunc

	mu     sync.Mutex // guards what follows
	conns  map[*Conn]struct{}
	closed bool
}

// NewDialer makes a dialer. An agent needs nothing else of this package; a Port has its own.
func NewDialer(o DialerOptions) (*Dialer, error) {
	if o.Credentials == nil {
		return nil, errors.New("cluster: no TLS credentials to call others with")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	d := &Dialer{o: o, refused: newCounted(o.Log), conns: map[*Conn]struct{}{}}
	d.ended, d.end = context.WithCancel(context.Background())
	d.pool = &http.Transport{
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if host := strings.TrimSuffix(address, ":443"); host != address {
				if _, ok := d.find(host); ok { // an id or a name, and the port that net/http put there
					address = host
				}
			}
			return d.Dial(ctx, ProtocolPeer, address)
		},
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("peers are called over https only")
		},
		DisableCompression: true, MaxIdleConnsPerHost: 4, MaxConnsPerHost: 16, MaxIdleConns: 256,
		IdleConnTimeout: idlePooled, ResponseHeaderTimeout: headerWait, MaxResponseHeaderBytes: 32 << 10,
	}
	d.client = &http.Client{
		Transport: d.pool, Timeout: o.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return d, nil
}

// Client returns the pooled client for rota-peer/1. The host of a URL is a member's id or name, as in https://ID/path, or an address
// with its port. No proxy, no redirect, no decompression.
func (d *Dialer) Client() *http.Client { return d.client }

// Conn is a connection to somebody who has been made sure of.
type Conn struct {
	net.Conn
	Peer     Identity
	Protocol string

	certs []*x509.Certificate
	use   x509.ExtKeyUsage
	want  *Member // whom this side meant to call
	leave func()

	by    *material // that verified it, until then; guarded by Dialer.mu
	until time.Time
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// cut ends the connection without a word: saying goodbye could wait for somebody who does not listen.
func (c *Conn) cut() {
	c.leave()
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	}
}

// find gives the member that is meant by an id, a name or an address.
func (d *Dialer) find(to string) (Member, bool) {
	if d.o.Members == nil {
		return Member{}, false
	}
	all := d.o.Members()
	for _, is := range []func(Member) bool{
		func(m Member) bool { return m.ID == to },
		func(m Member) bool { return m.Address == to },
		func(m Member) bool { return m.Name == to },
	} {
		if i := slices.IndexFunc(all, is); i >= 0 && !slices.ContainsFunc(all[i+1:], is) {
			return all[i], true
		}
	}
	return Member{}, false
}

// Dial calls a member by id, name or address, or whoever is at an address, and returns when both sides have made sure of each other.
func (d *Dialer) Dial(ctx context.Context, protocol, to string) (*Conn, error) {
	address := to
	member, known := d.find(to)
	if known {
		address = member.Address
	}
	if err := checkAddress(address); err != nil {
		return nil, fmt.Errorf("call %s: neither a member of the cluster nor an address with a port", clip(to))
	}
	var want *Member
	if known {
		want = &member
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(d.ended, cancel)()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", to, err)
	}
	c, err := d.greet(ctx, raw, protocol, want)
	if err != nil {
		_ = raw.Close()
		if r := (*Refusal)(nil); errors.As(err, &r) {
			d.refused.refuse(r.Reason, slog.LevelWarn, "a call to another node was refused", "to", to, "address", address, "protocol", protocol, "err", r.Text)
		}
		return nil, fmt.Errorf("call %s at %s: %w", to, address, err)
	}
	return c, nil
}

// greet does the caller's part: TLS, who answers, and the word of the other side that it takes the call.
func (d *Dialer) greet(ctx context.Context, raw net.Conn, protocol string, want *Member) (conn *Conn, err error) {
	if end, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(end)
	}
	m := d.o.Credentials.now.Load()
	c := &Conn{Protocol: protocol, use: x509.ExtKeyUsageServerAuth, want: want, by: m}
	c.leave = func() { d.forget(c) }
	t := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.cert, nil },
		InsecureSkipVerify:   true, // VerifyConnection does it all: the identity instead of a host name
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			if cs.NegotiatedProtocol != protocol {
				return &Refusal{WrongProtocol, "who answers there does not speak " + protocol + ": is it rota, and its cluster port?"}
			}
			if c.Peer, c.until, err = m.verify(cs.PeerCertificates, c.use, time.Now()); err != nil {
				return err
			}
			c.certs = cs.PeerCertificates
			return d.authorise(c)
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	c.Conn = t
	if !d.keep(c) { // under watch before it counts: whoever is removed from now on is found
		return nil, net.ErrClosed
	}
	defer func() {
		if err != nil {
			c.leave()
		}
	}()
	// The other side has not spoken yet: in TLS 1.3 the caller is ready before its certificate has been looked at.
	hello := append([]byte{byte(len(m.id.Cluster))}, m.id.Cluster...)
	if _, err := t.Write(hello); err != nil {
		return nil, explain(err)
	}
	var head [3]byte
	if _, err := io.ReadFull(t, head[:]); err != nil {
		return nil, explain(err)
	}
	text := make([]byte, int(head[1])<<8|int(head[2]))
	if len(text) > maxGreeting {
		return nil, &Refusal{BadHandshake, "who answers there does not greet as rota does"}
	}
	if _, err := io.ReadFull(t, text); err != nil {
		return nil, explain(err)
	}
	if head[0] != welcome {
		return nil, &Refusal{NotAllowed, "refused by " + c.Peer.String() + ": " + plain(string(text))}
	}
	if string(text) != m.id.Cluster {
		return nil, &Refusal{OtherCluster, fmt.Sprintf("%s is of cluster %s, this is cluster %s", c.Peer, plain(string(text)), m.id.Cluster)}
	}
	if err := t.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return c, nil
}

// The first byte of the answer to a hello; then the size of a text in two bytes, and the text: the cluster's id, or why not.
const (
	welcome = 0
	goAway  = 1
)

// explain says in words what an alert means: the other side does not tell more to somebody it does not know.
func explain(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "remote error" || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the other side broke off: it refuses this process's certificate, or is too busy; its log says why: %w", err)
	}
	if h := (tls.RecordHeaderError{}); errors.As(err, &h) {
		return fmt.Errorf("who answers there does not speak TLS: is it the cluster port? %w", err)
	}
	return err
}

// authorise says whether somebody with a good certificate may be here for this protocol. The caller has filled in peer and protocol.
func (d *Dialer) authorise(c *Conn) error {
	me := d.o.Credentials.Identity()
	calls := c.use == x509.ExtKeyUsageServerAuth
	switch {
	case c.Peer.Role != Node && (calls || c.Protocol != ProtocolPeer):
		return &Refusal{WrongRole, fmt.Sprintf("%s: only a node may be at this end of %s", c.Peer, c.Protocol)}
	case me.Role != Node && c.Protocol != ProtocolPeer:
		return &Refusal{WrongRole, fmt.Sprintf("this process is %s: only nodes speak %s", me, c.Protocol)}
	case c.Peer.Role == Node && c.Peer.same(me):
		return &Refusal{OwnID, fmt.Sprintf("%s is this node's own identity: it called itself, or its data directory was copied; give the copy an empty one", c.Peer)}
	case c.want != nil && !c.want.is(c.Peer):
		return &Refusal{Unexpected, fmt.Sprintf("%s answers where node %s (%s) should", c.Peer, c.want.Name, c.want.ID)}
	}
	if d.o.Allowed != nil {
		if err := d.o.Allowed(c.Peer); err != nil {
			return &Refusal{NotAllowed, err.Error()}
		}
	}
	return nil
}

// keep takes a connection under watch. It reports false when there is no watch any more.
func (d *Dialer) keep(c *Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = struct{}{}
	return true
}

func (d *Dialer) forget(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
}

// Recheck looks at every connection that stands and ends those that would not be let in now: their certificate has expired, their CA
// is no longer trusted, they were removed. Run does it every few seconds; call it when somebody was just removed.
func (d *Dialer) Recheck() {
	now := time.Now()
	m := d.o.Credentials.now.Load()
	d.mu.Lock()
	conns := make([]*Conn, 0, len(d.conns))
	stale := map[*Conn]bool{}
	for c := range d.conns {
		if c.Protocol == ProtocolJoin {
			continue // nobody yet, and short-lived
		}
		conns = append(conns, c)
		if c.by != m || now.After(c.until) {
			stale[c] = true
		}
	}
	d.mu.Unlock()
	for _, c := range conns {
		var err error
		if stale[c] {
			var id Identity
			var until time.Time
			if id, until, err = m.verify(c.certs, c.use, now); err == nil && !id.same(c.Peer) {
				err = &Refusal{BadCert, fmt.Sprintf("%s is now %s", c.Peer, id)}
			}
			if err == nil {
				d.mu.Lock()
				c.by, c.until = m, until
				d.mu.Unlock()
			}
		}
		if err == nil {
			// What an address meant when it was called may have changed since; who answered has not.
			err = d.authorise(&Conn{Peer: c.Peer, Protocol: c.Protocol, use: c.use})
		}
		if err != nil {
			d.refused.refuse(reasonOf(err, BadCert), slog.LevelWarn, "ended a connection that would not be let in now",
				"peer", c.Peer.String(), "protocol", c.Protocol, "address", c.RemoteAddr().String(), "err", err)
			c.cut()
		}
	}
}

// Run watches over the connections until ctx ends, then ends them all and returns nil.
func (d *Dialer) Run(ctx context.Context) error {
	d.watch(ctx)
	d.close()
	return nil
}

func (d *Dialer) watch(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		changed := d.o.Credentials.changed()
		select {
		case <-ctx.Done():
			return
		case <-changed:
			d.pool.CloseIdleConnections() // they show the old certificate
		case <-tick.C:
		}
		d.Recheck()
	}
}

// close ends every connection, and every call from now on.
func (d *Dialer) close() {
	d.mu.Lock()
	d.closed = true
	conns := d.conns
	d.conns = map[*Conn]struct{}{}
	d.mu.Unlock()
	for c := range conns {
		c.cut()
	}
	d.end()
	d.pool.CloseIdleConnections()
}

type peerKey struct{}

// PeerOf returns who sent the request that a handler behind Options.Peer serves. False: the request did not come over the port.
func PeerOf(ctx context.Context) (Identity, bool) {
	i, ok := ctx.Value(peerKey{}).(Identity)
	return i, ok
}

// WithPeer puts an identity into a context, as the port does for its handlers.
func WithPeer(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, peerKey{}, i)
}
