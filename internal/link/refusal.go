package link

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Reason is why a connection was refused, for machines: the label of a metric.
type Reason string

// The reasons.
const (
	NotTLS        Reason = "not-tls"        // plaintext, or garbage
	BadHandshake  Reason = "handshake"      // TLS that went wrong or was broken off
	Slow          Reason = "timeout"        // the handshake took too long
	OldTLS        Reason = "tls-version"    // less than TLS 1.3
	WrongProtocol Reason = "alpn"           // none, an unknown or several application protocols
	NoCertificate Reason = "no-certificate" // from the caller
	BadCert       Reason = "certificate"    // another CA's, not or no longer valid, no identity in it
	OtherCluster  Reason = "cluster"        // a certificate of another cluster
	WrongRole     Reason = "role"           // an agent where only nodes may be
	OwnID         Reason = "own-id"         // somebody with this node's own id: a copied disk, or itself
	Unexpected    Reason = "unexpected"     // another node than the address should lead to
	NotAllowed    Reason = "not-allowed"    // by Options.Allowed: a removed node, an agent that is not accepted
	Busy          Reason = "busy"           // over a bound
	NotServed     Reason = "not-served"     // a protocol that does not run here now
)

// Refusal is a connection that was refused, by this side or by the other.
type Refusal struct {
	Reason Reason
	Text   string
}

// Error says what was refused and why.
func (r *Refusal) Error() string { return r.Text }

// reasonOf finds the reason in an error, or gives that of last resort.
func reasonOf(err error, or Reason) Reason {
	if r := (*Refusal)(nil); errors.As(err, &r) {
		return r.Reason
	}
	return or
}

// logEvery is how often one reason is worth a line: an outsider must not be able to fill the disk.
const logEvery = 10 * time.Second

// counted counts refusals, and logs them with restraint.
type counted struct {
	log *slog.Logger

	mu    sync.Mutex // guards what follows
	count map[Reason]uint64
	said  map[Reason]time.Time
	kept  map[Reason]uint64 // since it was said
}

func newCounted(log *slog.Logger) *counted {
	return &counted{log: log, count: map[Reason]uint64{}, said: map[Reason]time.Time{}, kept: map[Reason]uint64{}}
}

func (c *counted) refuse(reason Reason, level slog.Level, msg string, args ...any) {
	c.mu.Lock()
	c.count[reason]++
	now := time.Now()
	if last, ok := c.said[reason]; ok && now.Sub(last) < logEvery {
		c.kept[reason]++
		c.mu.Unlock()
		return
	}
	silent := c.kept[reason]
	c.said[reason], c.kept[reason] = now, 0
	c.mu.Unlock()
	args = append([]any{"reason", string(reason)}, args...)
	if silent > 0 {
		args = append(args, "more_like_it", silent)
	}
	c.log.Log(context.Background(), level, msg, args...)
}

func (c *counted) counts() map[Reason]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[Reason]uint64, len(c.count))
	for r, n := range c.count {
		out[r] = n
	}
	return out
}
