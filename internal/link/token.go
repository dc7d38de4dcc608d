package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Pin is the SHA-256 of an authority's certificate.
type Pin [sha256.Size]byte

// Bounds and defaults of join tokens.
const (
	DefaultTokenLife = time.Hour
	maxTokenLife     = 30 * 24 * time.Hour
	maxTokenUses     = 1000
	maxTokens        = 256            // kept at once
	keptAfter        = 24 * time.Hour // an ended token, so that it can be told from a wrong one
	secretSize       = 20             // bytes, 160 bit
	tokenPrefix      = "rota1."
	maxTokenText     = 4096
	maxAddresses     = 16
	maxAddress       = 260
)

// Token lets one newcomer, or a few, into a cluster. Its text is a secret until it is used or expires: only Reveal gives it, every way
// of printing it gives "***".
type Token struct {
	Cluster   string
	Role      Role
	ID        string // says which of the cluster's tokens it is; no secret
	Addresses []string
	Pin       Pin
	Expires   time.Time // in seconds

	secret [secretSize]byte
}

// String hides the token.
func (t Token) String() string { return "***" }

// Format hides the token from every verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("***")) }

// LogValue hides the token.
func (t Token) LogValue() slog.Value { return slog.StringValue("***") }

// MarshalText hides the token.
func (t Token) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Reveal gives the text that a newcomer is started with. Show it once and keep it nowhere.
func (t Token) Reveal() string {
	var b []byte
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	role := byte('n')
	if t.Role == Agent {
		role = 'a'
	}
	b = append(b, role)
	b = binary.AppendUvarint(b, uint64(t.Expires.Unix()))
	b = append(b, t.Pin[:]...)
	b = append(b, t.secret[:]...)
	text(t.ID)
	text(t.Cluster)
	for _, a := range t.Addresses {
		text(a)
	}
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:4]...))
}

// ParseToken reads what Reveal gives. Space around it does no harm. No error repeats the token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if len(s) > maxTokenText {
		return Token{}, fmt.Errorf("join token: longer than %d characters", maxTokenText)
	}
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("join token: it does not begin with %q; `rota cluster token` makes one", tokenPrefix)
	}
	cut := errors.New("join token: it is cut short or was changed on its way; copy all of it")
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) < 4 {
		return Token{}, cut
	}
	b, check := b[:len(b)-4], b[len(b)-4:]
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:4], check) {
		return Token{}, cut
	}
	bad := errors.New("join token: made by another version of rota, or forged")
	r := bytes.NewReader(b)
	number := func() (n uint64) {
		if err == nil {
			n, err = binary.ReadUvarint(r)
		}
		return n
	}
	text := func(most int) string {
		n := number()
		if err != nil || n > uint64(most) || n > uint64(r.Len()) {
			err = bad
			return ""
		}
		p := make([]byte, n)
		_, _ = r.Read(p)
		return string(p)
	}
	var t Token
	role, _ := r.ReadByte()
	switch role {
	case 'n':
		t.Role = Node
	case 'a':
		t.Role = Agent
	default:
		return Token{}, bad
	}
	seconds := number()
	if seconds > 1<<40 || r.Len() < len(t.Pin)+len(t.secret) {
		return Token{}, bad
	}
	t.Expires = time.Unix(int64(seconds), 0)
	_, _ = r.Read(t.Pin[:])
	_, _ = r.Read(t.secret[:])
	t.ID, t.Cluster = text(maxID), text(maxName)
	for err == nil && r.Len() > 0 {
		a := text(maxAddress)
		if err != nil || len(t.Addresses) == maxAddresses || checkAddress(a) != nil {
			return Token{}, bad
		}
		t.Addresses = append(t.Addresses, a)
	}
	if err != nil || !spell(t.ID, maxID) || !word(t.Cluster, maxName) || len(t.Addresses) == 0 || t.Reveal() != s {
		return Token{}, bad
	}
	return t, nil
}

// checkAddress makes sure of a host and a port that can be called.
func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || len(a) > maxAddress {
		return fmt.Errorf("address %q: it must be host:port", clip(a))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("address %q: port %q is not a number from 1 to 65535", clip(a), clip(port))
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"\/<>^`+"`{|}", c) >= 0 {
			return fmt.Errorf("address %q: its host has a character that none has", clip(a))
		}
	}
	if host == "" {
		return fmt.Errorf("address %q: no host in it", clip(a))
	}
	return nil
}

// TokenRecord is what the cluster keeps of a token: enough to know it again, not enough to use it.
type TokenRecord struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash,omitempty"` // of the secret; empty in lists
	Role    Role      `json:"role"`
	Name    string    `json:"name,omitempty"` // of the one agent that it lets in; empty: it does not matter
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"` // allowed
	Used    []Use     `json:"used,omitempty"`
	Revoked bool      `json:"revoked,omitempty"`
	Note    string    `json:"note,omitempty"` // who asked for it, what for
}

// Use is one use of a token.
type Use struct {
	By  string    `json:"by"`  // role and id of the newcomer
	Key string    `json:"key"` // hash of its public key: the same newcomer asking again is no second use
	At  time.Time `json:"at"`
}

// by is how a Use names a newcomer.
func by(r Role, id string) string { return string(r) + " " + id }

// TokenStore keeps token records. Update calls change with all of them and keeps what it returns, as one step that no other Update
// interleaves with; it returns after they are kept durably. An error of change keeps nothing and is returned.
type TokenStore interface {
	Update(ctx context.Context, change func([]TokenRecord) ([]TokenRecord, error)) error
}

// FileTokens is a TokenStore in one file with mode 0600, for one process.
type FileTokens struct {
	Path string
	mu   sync.Mutex // held during an Update
}

// Update implements TokenStore.
func (f *FileTokens) Update(_ context.Context, change func([]TokenRecord) ([]TokenRecord, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []TokenRecord
	b, err := readFile(f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("join tokens: %w", err)
	default:
		if err := json.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("join tokens: %s is damaged: %w; remove it: tokens that are out are then worth nothing", f.Path, err)
		}
	}
	next, err := change(all)
	if err != nil {
		return err
	}
	if b, err = json.MarshalIndent(next, "", "  "); err != nil {
		return err
	}
	if err := writeFile(f.Path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("join tokens: %w", err)
	}
	return nil
}

// Tokens issues, lists, revokes and honours join tokens of one cluster.
type Tokens struct {
	cluster string
	store   TokenStore
}

// NewTokens keeps the tokens of a cluster in a store.
func NewTokens(cluster string, store TokenStore) *Tokens { return &Tokens{cluster, store} }

// TokenRequest says what a token is for.
type TokenRequest struct {
	Role      Role
	Name      string        // of the one agent that it lets in; empty: it does not matter
	Life      time.Duration // DefaultTokenLife when zero
	Uses      int           // 1 when zero
	Addresses []string      // where the newcomer may ask
	Pin       Pin           // of the root that the members' certificates lead to: Credentials.Pin
	Note      string
}

// Issue makes a token. It is the only moment at which its secret is known here.
func (t *Tokens) Issue(ctx context.Context, r TokenRequest) (Token, error) {
	if r.Life == 0 {
		r.Life = DefaultTokenLife
	}
	if r.Uses == 0 {
		r.Uses = 1
	}
	switch {
	case !r.Role.valid():
		return Token{}, fmt.Errorf("join token: role %q: node or agent", r.Role)
	case r.Name != "" && (r.Role != Agent || !spell(r.Name, maxName)):
		return Token{}, fmt.Errorf("join token: name %q: only one for an agent has a name, of 1 to %d letters, digits, and . _ -", clip(r.Name), maxName)
	case r.Life < time.Second || r.Life > maxTokenLife:
		return Token{}, fmt.Errorf("join token: a life of %v: from 1s to %v", r.Life, maxTokenLife)
	case r.Uses < 0 || r.Uses > maxTokenUses:
		return Token{}, fmt.Errorf("join token: %d uses: from 1 to %d", r.Uses, maxTokenUses)
	case len(r.Addresses) == 0 || len(r.Addresses) > maxAddresses:
		return Token{}, fmt.Errorf("join token: %d addresses: from 1 to %d", len(r.Addresses), maxAddresses)
	case r.Pin == Pin{}:
		return Token{}, errors.New("join token: no CA to pin")
	}
	for _, a := range r.Addresses {
		if err := checkAddress(a); err != nil {
			return Token{}, fmt.Errorf("join token: %w", err)
		}
	}
	now := time.Now()
	k := Token{
		Cluster: t.cluster, Role: r.Role, ID: strings.ToLower(rand.Text()[:12]), Addresses: r.Addresses, Pin: r.Pin,
		Expires: now.Add(r.Life + time.Second - 1).Truncate(time.Second),
	}
	_, _ = rand.Read(k.secret[:]) // never fails
	err := t.store.Update(ctx, func(all []TokenRecord) ([]TokenRecord, error) {
		all = slices.DeleteFunc(slices.Clone(all), func(o TokenRecord) bool { return now.After(o.Expires.Add(keptAfter)) })
		if len(all) >= maxTokens {
			return nil, fmt.Errorf("join token: %d are kept already: wait until some expire", len(all))
		}
		return append(all, TokenRecord{ID: k.ID, Hash: k.hash(), Role: k.Role, Name: r.Name, Created: now.UTC(), Expires: k.Expires.UTC(), Uses: r.Uses, Note: clip(r.Note)}), nil
	})
	if err != nil {
		return Token{}, err
	}
	return k, nil
}

// hash is how the cluster knows the token again. The secret is random and long: no slow hash would make it safer.
func (t Token) hash() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s%s/%s/%s/", tokenPrefix, t.Cluster, t.Role, t.ID)
	h.Write(t.secret[:])
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil))
}

// List returns the tokens, without what would let one recognise their secrets.
func (t *Tokens) List(ctx context.Context) ([]TokenRecord, error) {
	var out []TokenRecord
	err := t.store.Update(ctx, func(all []TokenRecord) ([]TokenRecord, error) {
		out = slices.Clone(all)
		return nil, errRead
	})
	if !errors.Is(err, errRead) {
		return nil, err
	}
	for i := range out {
		out[i].Hash = ""
	}
	return out, nil
}

// errRead ends an Update that only wanted to look.
var errRead = errors.New("nothing to keep")

// Revoke ends a token now.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	return t.store.Update(ctx, func(all []TokenRecord) ([]TokenRecord, error) {
		all = slices.Clone(all)
		i := slices.IndexFunc(all, func(r TokenRecord) bool { return r.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("join token %q: there is none", clip(id))
		}
		all[i].Revoked = true
		return all, nil
	})
}

// judge says whether a token opens the door to a newcomer, and whether it has done so before. What a caller learns about a token it
// does not hold is nothing: an unknown id and a wrong secret are the same.
func judge(all []TokenRecord, k Token, use Use) (i int, again bool, err error) {
	i = slices.IndexFunc(all, func(r TokenRecord) bool { return r.ID == k.ID })
	known := ""
	if i >= 0 {
		known = all[i].Hash
	}
	if mine := k.hash(); subtle.ConstantTimeCompare([]byte(mine), []byte(known)) != 1 {
		return 0, false, &JoinError{Reason: TokenWrong, Text: "the join token is not one of this cluster, or its record is gone: make a new one with `rota cluster token`"}
	}
	r := all[i]
	again = slices.ContainsFunc(r.Used, func(u Use) bool { return u.By == use.By && u.Key == use.Key })
	switch {
	case r.Name != "" && use.By != by(r.Role, r.Name):
		return 0, false, &JoinError{Reason: JoinRefused, Text: "the join token is for agent " + r.Name + ", and for no other"}
	case r.Revoked:
		return 0, false, &JoinError{Reason: TokenRevoked, Text: "the join token was revoked"}
	case use.At.After(r.Expires):
		return 0, false, &JoinError{Reason: TokenExpired, Text: "the join token expired on " + stamp(r.Expires) + ": make a new one with `rota cluster token`"}
	case !again && len(r.Used) >= r.Uses:
		return 0, false, &JoinError{Reason: TokenUsed, Text: "the join token has been used: make a new one with `rota cluster token`"}
	}
	return i, again, nil
}

// check looks whether a token would do.
func (t *Tokens) check(ctx context.Context, k Token, use Use) error {
	err := t.store.Update(ctx, func(all []TokenRecord) ([]TokenRecord, error) {
		if _, _, err := judge(all, k, use); err != nil {
			return nil, err
		}
		return nil, errRead
	})
	if errors.Is(err, errRead) {
		return nil
	}
	return err
}

// redeem uses a token.
func (t *Tokens) redeem(ctx context.Context, k Token, use Use) error {
	err := t.store.Update(ctx, func(all []TokenRecord) ([]TokenRecord, error) {
		i, again, err := judge(all, k, use)
		if err != nil {
			return nil, err
		}
		if again {
			return nil, errRead
		}
		all = slices.Clone(all)
		all[i].Used = append(slices.Clone(all[i].Used), use)
		return all, nil
	})
	if errors.Is(err, errRead) {
		return nil
	}
	return err
}
