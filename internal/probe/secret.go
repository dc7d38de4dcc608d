package probe

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of secrets.
const (
	secretAge     = time.Second // how long what was read is used before it is read again
	maxSecrets    = 1024        // places remembered
	maxCredential = 4 << 10     // bytes of a password or a token
)

// secrets remembers for a moment what was read at places, so that a thousand targets do not read one file a thousand times a second.
// Failures are remembered, too.
type secrets struct {
	read func(rota.Place) ([]byte, error) // nil: there are none

	mu   sync.Mutex
	kept map[rota.Place]*secretValue
}

// secretValue is what one place held when it was last looked at.
type secretValue struct {
	mu    sync.Mutex
	value []byte
	err   error
	at    time.Time
}

func newSecrets(read func(rota.Place) ([]byte, error)) *secrets {
	return &secrets{read: read, kept: map[rota.Place]*secretValue{}}
}

// get returns what is at a place. The value is shared and must not be changed.
func (s *secrets) get(at rota.Place) ([]byte, error) {
	if s.read == nil {
		return nil, errors.New("no secrets are read here")
	}
	s.mu.Lock()
	v := s.kept[at]
	if v == nil {
		if len(s.kept) >= maxSecrets {
			clear(s.kept)
		}
		v = &secretValue{}
		s.kept[at] = v
	}
	s.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.at.IsZero() || time.Since(v.at) >= secretAge {
		v.value, v.err = s.read(at)
		v.at = time.Now()
	}
	return v.value, v.err
}

// authorization is the value of the Authorization field by which the check says who asks: Basic (RFC 7617) or Bearer (RFC 6750); empty
// when it does not. What this machine cannot say is its own failure. From here on the run knows its credential, to keep it out of what
// is shown.
func (r *run) authorization() (string, *finding) {
	a := &r.q.check.Auth
	if a.Secret == "" {
		return "", nil
	}
	refuse := func(format string, args ...any) (string, *finding) {
		f := lacking(format, args...)
		return "", &f
	}
	b, err := r.p.secret(a.Secret)
	text := string(b)
	switch {
	case err != nil:
		return refuse("auth: %v", err)
	case text == "":
		return refuse("auth: secret %s is empty", a.Secret)
	case len(text) > maxCredential:
		return refuse("auth: secret %s is longer than %d bytes", a.Secret, maxCredential)
	case !fieldValue(text):
		return refuse("auth: secret %s has a control character; a password or a token is one line", a.Secret)
	case a.User == "" && !bearer(text):
		return refuse("auth: secret %s is no bearer token, which has letters, digits and -._~+/ only, and = at its end; for a password name its user", a.Secret)
	}
	scheme, credential := "Bearer ", text
	if a.User != "" {
		scheme, credential = "Basic ", base64.StdEncoding.EncodeToString([]byte(a.User+":"+text))
	}
	r.credential = []string{credential, text}
	return scheme + credential, nil
}

// bearer reports whether s is a b64token of RFC 6750 §2.1.
func bearer(s string) bool {
	s = strings.TrimRight(s, "=")
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// conceal takes the credential out of what is going to be shown, whoever said it; head may end within it.
func (r *run) conceal(head []byte) []byte {
	for _, c := range r.credential {
		head = bytes.ReplaceAll(head, []byte(c), []byte("***"))
		for n := min(len(c)-1, len(head)); n > 3; n-- {
			if bytes.HasSuffix(head, []byte(c[:n])) {
				head = append(bytes.Clone(head[:len(head)-n]), "***"...)
				break
			}
		}
	}
	return head
}

// repeats reports whether the target says the credential in its answer.
func (r *run) repeats(a answer) bool {
	for _, c := range r.credential {
		if bytes.Contains(a.head, []byte(c)) || bytes.Contains(a.body, []byte(c)) || a.err != nil && strings.Contains(a.err.Error(), c) {
			return true
		}
		for _, values := range a.header {
			for _, v := range values {
				if strings.Contains(v, c) {
					return true
				}
			}
		}
	}
	return false
}

// discreet is f without the words of a target that repeats the credential.
func (r *run) discreet(f finding, a answer) finding {
	switch f.class {
	case rota.ClassBody, rota.ClassRedirect, rota.ClassProtocol, rota.ClassSaid:
		if r.repeats(a) {
			f.reason = rota.CleanReason("%s: what the target said is not shown, it repeats the check's credential", f.class)
		}
	}
	return f
}
