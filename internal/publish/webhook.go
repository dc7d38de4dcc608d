package publish

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// WebhookOptions says who is called and how both sides know each other.
type WebhookOptions struct {
	Name    string            // of the publisher, for the other side
	URL     string            // https://…, or http:// to a loopback address
	Secret  string            // signs requests, and replies when they are signed; at least 16 bytes
	Signed  bool              // replies without a signature are not believed
	Zones   []rota.Name       // that the other side keeps; none: it is asked
	Timeout time.Duration     // of one call in all; 0: 15 seconds
	Client  http.RoundTripper // nil: plain HTTP(S) without a proxy
}

func (o WebhookOptions) String() string { return "webhook " + o.Name }

// GoString hides the secret from %#v.
func (o WebhookOptions) GoString() string { return o.String() }

// The headers of a call.
const (
	webhookSignature = "Rota-Signature" // t=UNIX,v1=HEX: HMAC-SHA256 of UNIX, a dot and the body
	webhookDelivery  = "Rota-Delivery"  // the request's id; the same for the same write
)

// webhookSkew is how far the clocks of both sides may be apart.
const webhookSkew = 5 * time.Minute

// NewWebhook makes a Backend that sends signed JSON to a URL (docs/scripts.md). It checks the options and does not reach out.
func NewWebhook(o WebhookOptions) (Backend, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" {
		return nil, errors.New("webhook: url: want https://HOST/PATH")
	}
	if a, _ := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && !a.IsLoopback() && u.Hostname() != "localhost" {
		return nil, fmt.Errorf("webhook: %s is called without TLS: what it replies could be anybody's; use https", u.Host)
	}
	if len(o.Secret) < 16 {
		return nil, errors.New("webhook: the secret is shorter than 16 bytes; make one with openssl rand -hex 32")
	}
	h := &webhook{secret: []byte(o.Secret), signed: o.Signed}
	h.rest, err = newREST(restOptions{
		base: o.URL, secrets: []string{o.Secret}, timeout: o.Timeout, client: o.Client, believe: h.believe, explain: h.explain,
	})
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	return newLedger(&script{publisher: o.Name, fixed: o.Zones, ask: h.ask}, 0), nil
}

// webhook speaks the scripts' protocol over HTTP.
type webhook struct {
	rest   *rest
	secret []byte
	signed bool
}

// ask sends one request.
func (h *webhook) ask(ctx context.Context, q scriptRequest, body []byte) (scriptReply, error) {
	changes := q.Action == scriptWrite
	req, err := http.NewRequest(http.MethodPost, h.rest.o.base, bytes.NewReader(body))
	if err != nil {
		return scriptReply{}, &Reason{Code: CodeInternal, Server: h.rest.server, Text: h.rest.clean(err.Error())}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(webhookDelivery, q.ID)
	req.Header.Set(webhookSignature, h.sign(time.Now(), body))
	var reply scriptReply
	if err := h.rest.send(ctx, req, changes, &reply); err != nil {
		r := *ReasonOf(err)
		r.InDoubt = r.InDoubt && changes
		return scriptReply{}, &r
	}
	if reply.Error != nil {
		return reply, h.said(reply.Error, changes)
	}
	return reply, nil
}

// sign returns the signature of a body at a time.
func (h *webhook) sign(at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(h.mac(t, body))
}

func (h *webhook) mac(t string, body []byte) []byte {
	m := hmac.New(sha256.New, h.secret)
	m.Write([]byte(t + "."))
	m.Write(body)
	return m.Sum(nil)
}

// believe checks the signature of an answer, if it has one or must have one: made with the secret, now, over this body, which names
// the request.
func (h *webhook) believe(req *http.Request, a *restAnswer) *Reason {
	text := a.header.Get(webhookSignature)
	if text == "" && !h.signed {
		return nil
	}
	err := h.verify(text, a.body, time.Now())
	if err == nil {
		if reply, rerr := readReply(a.body); rerr != nil || reply.ID != req.Header.Get(webhookDelivery) {
			err = errors.New("is signed for another request: its id is not this one's")
		}
	}
	if err == nil {
		return nil
	}
	return &Reason{
		Code: CodeForged, Transient: true, Text: fmt.Sprintf("the reply (HTTP %d) %v, so it is not believed", a.status, err),
		Advice: "compare the secret and the clocks on both sides",
	}
}

func (h *webhook) verify(text string, body []byte, now time.Time) error {
	if text == "" {
		return errors.New("has no signature")
	}
	var t string
	var macs [][]byte
	for field := range strings.SplitSeq(text, ",") {
		switch key, value, _ := strings.Cut(strings.TrimSpace(field), "="); key {
		case "t":
			t = value
		case "v1":
			if mac, err := hex.DecodeString(value); err == nil {
				macs = append(macs, mac)
			}
		}
	}
	want := h.mac(t, body)
	good := false
	for _, mac := range macs {
		good = good || hmac.Equal(mac, want)
	}
	unix, err := strconv.ParseInt(t, 10, 64)
	switch {
	case !good || err != nil:
		return errors.New("has a wrong signature")
	case now.Sub(time.Unix(unix, 0)).Abs() > webhookSkew:
		return errors.New("was signed more than 5 minutes away from now")
	}
	return nil
}

// said is the reason that the other side gives, without our secret.
func (h *webhook) said(e *scriptError, changes bool) *Reason {
	e.Text, e.Advice = h.rest.clean(e.Text), h.rest.clean(e.Advice)
	r := e.reason(changes)
	r.Server = h.rest.server
	return r
}

// explain reads why a request was refused.
func (h *webhook) explain(a *restAnswer) *Reason {
	reply, err := readReply(a.body)
	if err != nil || reply.Error == nil {
		return nil
	}
	r := h.said(reply.Error, true)
	if a.status == http.StatusTooManyRequests {
		r.Code, r.Transient = CodeRateLimited, true
	}
	return r
}
