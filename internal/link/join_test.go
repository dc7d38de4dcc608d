package link

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// doorkeeper is a node that lets newcomers in.
type doorkeeper struct {
	*process
	w      *world
	tokens *Tokens
	server *JoinServer
	log    syncBuffer
}

func (w *world) doorkeeper(name string) *doorkeeper {
	d := &doorkeeper{w: w, tokens: NewTokens(w.ca.cluster, &FileTokens{Path: filepath.Join(w.t.TempDir(), "tokens.json")})}
	d.server = &JoinServer{
		Tokens: d.tokens, CA: func() (*CA, error) { return w.ca, nil }, Members: w.Members,
		Log: slog.New(slog.NewTextHandler(&d.log, nil)),
	}
	d.process = w.node(name, func(o *Options) { o.Join = d.server.Handler() })
	return d
}

func (d *doorkeeper) token(r TokenRequest) Token {
	d.w.t.Helper()
	if r.Addresses == nil {
		r.Addresses = []string{d.addr}
	}
	if r.Pin == (Pin{}) {
		r.Pin = d.creds.Pin()
	}
	if r.Role == "" {
		r.Role = Node
	}
	return must(d.tokens.Issue(context.Background(), r))(d.w.t)
}

func newcomer(k Token, name string) JoinOptions {
	if k.Role == Agent {
		return JoinOptions{Token: k, Name: name}
	}
	return JoinOptions{Token: k, ID: "id-" + name, Name: name, Address: "192.0.2.7:3648"}
}

func reason(err error) JoinReason {
	if no := (*JoinError)(nil); errors.As(err, &no) {
		return no.Reason
	}
	return ""
}

func TestJoin(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a := w.doorkeeper("a")
	var heard []Newcomer
	a.server.Joined = func(_ context.Context, n Newcomer) error { heard = append(heard, n); return nil }

	k := must(ParseToken(a.token(TokenRequest{}).Reveal()))(t)
	j := must(Join(t.Context(), newcomer(k, "b")))(t)
	if len(j.Members) != 1 || j.Members[0].ID != "id-a" || j.Identity != w.identity(Node, "b") || len(heard) != 1 || heard[0].Address != "192.0.2.7:3648" {
		t.Fatalf("%+v; heard %+v", j, heard)
	}
	b := &process{id: j.Identity, files: FilesIn(t.TempDir())}
	if err := j.Save(b.files); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{b.files.Key, b.files.CAKey} {
		if info := must(os.Stat(f))(t); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
	b.creds = must(LoadCredentials(CredentialOptions{Files: b.files}))(t)
	w.run(b)
	c := must(b.port.Dial(t.Context(), ProtocolPeer, "a"))(t)
	_ = c.Close()

	// The newcomer is a full node: it has the CA and lets the next one in.
	ca := must(LoadCA(b.files))(t)
	if ca.Pin() != w.ca.Pin() {
		t.Error("another CA")
	}
	agent := must(Join(t.Context(), newcomer(a.token(TokenRequest{Role: Agent}), "watcher")))(t)
	files := FilesIn(t.TempDir())
	if err := agent.Save(files); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(files.CAKey); err == nil {
		t.Error("an agent was given the CA's key")
	}
	if id := must(LoadCredentials(CredentialOptions{Files: files}))(t).Identity(); id != w.identity(Agent, "watcher") {
		t.Errorf("the agent is %v", id)
	}
	for _, o := range []fmt.Stringer{k, a.token(TokenRequest{})} {
		for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d"} {
			if s := fmt.Sprintf(verb, o); s != "***" {
				t.Errorf("%s prints %s", verb, s)
			}
		}
	}
	if s := a.log.String(); strings.Contains(s, k.Reveal()) {
		t.Error("the token is in the log")
	}
}

// The table of tokens that do not open the door, and of what the newcomer is told.
func TestTokensThatDoNotDo(t *testing.T) {
	for _, c := range []struct {
		name string
		want JoinReason
		make func(*testing.T, *doorkeeper) JoinOptions
	}{
		{"wrong secret", TokenWrong, func(_ *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			k.secret[3] ^= 1
			return newcomer(k, "b")
		}},
		{"unknown id", TokenWrong, func(_ *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			k.ID += "x"
			return newcomer(k, "b")
		}},
		{"another role", TokenWrong, func(_ *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{Role: Agent})
			k.Role = Node
			return newcomer(k, "b")
		}},
		{"for another agent", JoinRefused, func(_ *testing.T, a *doorkeeper) JoinOptions {
			return newcomer(a.token(TokenRequest{Role: Agent, Name: "watcher"}), "b")
		}},
		{"expired", TokenExpired, func(t *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			a.rewrite(t, func(r *TokenRecord) { r.Expires = time.Now().Add(-time.Second) })
			return newcomer(k, "b")
		}},
		{"used", TokenUsed, func(t *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			must(Join(t.Context(), newcomer(k, "b")))(t)
			return newcomer(k, "c")
		}},
		{"used by the same name with another key", TokenUsed, func(t *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			must(Join(t.Context(), newcomer(k, "b")))(t)
			return newcomer(k, "b")
		}},
		{"twice is enough for two", TokenUsed, func(t *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{Uses: 2})
			must(Join(t.Context(), newcomer(k, "b")))(t)
			must(Join(t.Context(), newcomer(k, "c")))(t)
			return newcomer(k, "d")
		}},
		{"revoked", TokenRevoked, func(t *testing.T, a *doorkeeper) JoinOptions {
			k := a.token(TokenRequest{})
			if err := a.tokens.Revoke(t.Context(), k.ID); err != nil {
				t.Fatal(err)
			}
			return newcomer(k, "b")
		}},
		{"of another cluster, at this one's address", OtherCA, func(t *testing.T, a *doorkeeper) JoinOptions {
			other := newWorld(t, "othercluster").doorkeeper("x")
			return newcomer(other.token(TokenRequest{Addresses: []string{a.addr}}), "b")
		}},
		{"of another cluster, with this one's pin", OtherCA, func(t *testing.T, a *doorkeeper) JoinOptions {
			other := newWorld(t, "othercluster").doorkeeper("x")
			return newcomer(other.token(TokenRequest{Addresses: []string{a.addr}, Pin: a.creds.Pin()}), "b")
		}},
		{"the cluster keeps it out", JoinRefused, func(t *testing.T, a *doorkeeper) JoinOptions {
			a.server.Admit = func(_ context.Context, n Newcomer) error { return fmt.Errorf("%s: that id is taken", n.ID) }
			return newcomer(a.token(TokenRequest{}), "b")
		}},
		{"the node fails", JoinFailed, func(t *testing.T, a *doorkeeper) JoinOptions {
			a.server.Joined = func(context.Context, Newcomer) error { return errors.New("disk full: /secret/path") }
			return newcomer(a.token(TokenRequest{}), "b")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "ourcluster")
			a := w.doorkeeper("a")
			o := c.make(t, a)
			j, err := Join(t.Context(), o)
			if reason(err) != c.want || j != nil {
				t.Fatalf("got %v (%s), want %s", err, reason(err), c.want)
			}
			if s := err.Error(); strings.Contains(s, o.Token.Reveal()) || strings.Contains(s, "/secret") {
				t.Errorf("the error says too much: %s", s)
			}
		})
	}
}

// rewrite changes the only record.
func (d *doorkeeper) rewrite(t *testing.T, change func(*TokenRecord)) {
	err := d.tokens.store.Update(t.Context(), func(all []TokenRecord) ([]TokenRecord, error) {
		change(&all[len(all)-1])
		return all, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A man in the middle, with another CA or with an agent's certificate of the right one, hears no byte of the token.
func TestManInTheMiddleOfJoin(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a := w.doorkeeper("a")
	k := a.token(TokenRequest{})
	evil := must(NewCA("ourcluster"))(t)
	for name, cert := range map[string]tls.Certificate{
		"another CA":                  withRoot(evil.forge(t, a.id, nil), evil),
		"another CA, our root beside": withRoot(evil.forge(t, a.id, nil), w.ca),
		"an agent of ours":            withRoot(w.ca.forge(t, w.identity(Agent, "watcher"), nil), w.ca),
		"no identity":                 {Certificate: [][]byte{w.ca.cert.Raw}, PrivateKey: evil.key},
	} {
		t.Run(name, func(t *testing.T) {
			l := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{ProtocolJoin}}))(t)
			background(t, func(ctx context.Context) error {
				defer context.AfterFunc(ctx, func() { _ = l.Close() })()
				for {
					c, err := l.Accept()
					if err != nil {
						return nil
					}
					_ = c.SetDeadline(time.Now().Add(patience))
					if b, _ := io.ReadAll(c); len(b) > 0 {
						t.Errorf("heard %q", b)
					}
					_ = c.Close()
				}
			})
			m := k
			m.Addresses = []string{l.Addr().String()}
			_, err := Join(t.Context(), newcomer(m, "b"))
			if name != "no identity" && reason(err) != OtherCA || err == nil {
				t.Errorf("got %v", err)
			}
			// The next address is asked all the same.
			m.Addresses = append(m.Addresses, a.addr)
			k2 := a.token(TokenRequest{Addresses: m.Addresses})
			must(Join(t.Context(), newcomer(k2, "b")))(t)
		})
	}
}

func withRoot(c tls.Certificate, ca *CA) tls.Certificate {
	c.Certificate = append(c.Certificate, ca.cert.Raw)
	return c
}

// Whoever keeps the tokens is found, and members that are down do no harm.
func TestJoinFindsTheLeader(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a, b := w.doorkeeper("a"), w.doorkeeper("b")
	b.server.Elsewhere = func() []string { return []string{a.addr} }
	dead := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	_ = dead.Close()
	k := a.token(TokenRequest{Addresses: []string{dead.Addr().String(), b.addr}})
	must(Join(t.Context(), newcomer(k, "c")))(t)

	a.server.Elsewhere = func() []string { return []string{b.addr} } // they send one in circles
	if _, err := Join(t.Context(), newcomer(a.token(TokenRequest{}), "d")); reason(err) != JoinElse {
		t.Errorf("got %v", err)
	}
}

// A newcomer whose answer was lost asks again with the same key: that is one use.
func TestLostAnswerIsAskedForAgain(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a := w.doorkeeper("a")
	k := a.token(TokenRequest{})
	fail := true
	a.server.Joined = func(context.Context, Newcomer) error {
		if fail {
			fail = false
			return errors.New("once")
		}
		return nil
	}
	k2 := k
	k2.Addresses = []string{a.addr, "localhost:" + portOf(t, a.addr)}
	must(Join(t.Context(), newcomer(k2, "b")))(t)
	if l := must(a.tokens.List(t.Context()))(t); len(l) != 1 || len(l[0].Used) != 1 || l[0].Hash != "" {
		t.Errorf("%+v", l)
	}
}

func portOf(t *testing.T, a string) string {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Guessing is slow, and does not slow others down.
func TestGuessingIsSlow(t *testing.T) {
	w := newWorld(t, "ourcluster")
	a := w.doorkeeper("a")
	k := a.token(TokenRequest{})
	bad := k
	bad.secret[0] ^= 1
	var last error
	for range wrongBurst + 2 {
		_, last = Join(t.Context(), newcomer(bad, "b"))
	}
	if reason(last) != JoinBusy {
		t.Errorf("got %v", last)
	}
	if _, err := Join(t.Context(), newcomer(k, "b")); reason(err) != JoinBusy {
		t.Errorf("the right token from the same address: %v", err)
	}
	if n := strings.Count(a.log.String(), "\n"); n > wrongBurst+1 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestRate(t *testing.T) {
	now := time.Now()
	r := newRate(2, time.Second, 3)
	one, two := sourceOf("192.0.2.1:1"), sourceOf("[2001:db8::1]:1")
	for i, c := range []struct {
		after time.Duration
		want  time.Duration
	}{{0, 0}, {0, 0}, {0, time.Second}, {500 * time.Millisecond, 500 * time.Millisecond}, {500 * time.Millisecond, 0}, {0, time.Second}} {
		now = now.Add(c.after)
		if got := r.wait(one, now).Round(time.Millisecond); got != c.want {
			t.Errorf("step %d: %v, want %v", i, got, c.want)
		}
		if c.want == 0 {
			r.spend(one, now)
		}
	}
	if r.wait(two, now) != 0 {
		t.Error("one source's attempts count for another")
	}
	if sourceOf("[2001:db8::2]:9") != two || sourceOf("[2001:db8:0:1::2]:9") == two || sourceOf("[::ffff:192.0.2.1]:5") != one {
		t.Error("sources are told apart wrongly")
	}
	for i := range 100 {
		r.spend(sourceOf(fmt.Sprintf("198.51.100.%d:1", i)), now)
	}
	if len(r.spent) != 3 || r.order.Len() != 3 {
		t.Errorf("%d sources are kept, the bound is 3", len(r.spent))
	}
}

func TestIssue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "tokens.json")
		tokens := NewTokens("ourcluster", &FileTokens{Path: path})
		ok := TokenRequest{Role: Node, Addresses: []string{"192.0.2.1:3648"}, Pin: Pin{1}}
		for name, spoil := range map[string]func(*TokenRequest){
			"role":        func(r *TokenRequest) { r.Role = "king" },
			"for ever":    func(r *TokenRequest) { r.Life = 31 * 24 * time.Hour },
			"for no time": func(r *TokenRequest) { r.Life = -1 },
			"uses":        func(r *TokenRequest) { r.Uses = -1 },
			"all":         func(r *TokenRequest) { r.Uses = 1001 },
			"nowhere":     func(r *TokenRequest) { r.Addresses = nil },
			"no port":     func(r *TokenRequest) { r.Addresses = []string{"192.0.2.1"} },
			"no CA":       func(r *TokenRequest) { r.Pin = Pin{} },
		} {
			r := ok
			spoil(&r)
			if _, err := tokens.Issue(t.Context(), r); err == nil {
				t.Errorf("issued: %s", name)
			}
		}
		k := must(tokens.Issue(t.Context(), ok))(t)
		if d := time.Until(k.Expires); d < time.Hour || d > time.Hour+time.Second {
			t.Errorf("it lives %v", d)
		}
		b := must(os.ReadFile(path))(t)
		info := must(os.Stat(path))(t)
		if strings.Contains(string(b), k.Reveal()) || info.Mode().Perm() != 0o600 {
			t.Errorf("%v:\n%s", info.Mode(), b)
		}
		var kept []TokenRecord
		if err := json.Unmarshal(b, &kept); err != nil || len(kept) != 1 || kept[0].Hash == "" || kept[0].Uses != 1 {
			t.Errorf("%v %+v", err, kept)
		}
		if err := tokens.Revoke(t.Context(), "another"); err == nil {
			t.Error("revoked what is not there")
		}
		full := tokens.store.Update(t.Context(), func(all []TokenRecord) ([]TokenRecord, error) {
			for len(all) < maxTokens {
				all = append(all, all[0])
			}
			return all, nil
		})
		if full != nil {
			t.Fatal(full)
		}
		if _, err := tokens.Issue(t.Context(), ok); err == nil {
			t.Error("no bound")
		}
		time.Sleep(25*time.Hour + 2*time.Second)
		must(tokens.Issue(t.Context(), ok))(t)
		if l := must(tokens.List(t.Context()))(t); len(l) != 1 {
			t.Errorf("%d tokens are kept a day after they expired", len(l)-1)
		}
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tokens.List(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("a damaged file: %v", err)
		}
	})
}

func someToken() Token {
	return Token{
		Cluster: "ourcluster", Role: Node, ID: "abc", Addresses: []string{"192.0.2.1:3648", "[2001:db8::1]:3648", "rota1.example.org:1"},
		Pin: Pin{1, 2, 3}, Expires: time.Unix(1790000000, 0), secret: [secretSize]byte{9, 8, 7},
	}
}

func TestTokenText(t *testing.T) {
	k := someToken()
	text := k.Reveal()
	got := must(ParseToken(" " + text + "\n"))(t)
	if got.Reveal() != text || got.secret != k.secret || got.Pin != k.Pin || len(got.Addresses) != 3 || !got.Expires.Equal(k.Expires) {
		t.Error("it comes back as another")
	}
	for i := range text { // every letter counts
		b := []byte(text)
		b[i] ^= 4
		if _, err := ParseToken(string(b)); err == nil {
			t.Errorf("with letter %d changed it is still one", i)
		} else if strings.Contains(err.Error(), text[len(tokenPrefix)+8:]) {
			t.Errorf("the error repeats it: %v", err)
		}
		if _, err := ParseToken(text[:i]); err == nil {
			t.Errorf("cut after %d letters it is still one", i)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(someToken().Reveal())
	f.Add("rota1.")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseToken(s)
		if err == nil && k.Reveal() != strings.TrimSpace(s) {
			t.Errorf("%q is read as %q", s, k.Reveal())
		}
	})
}

// FuzzJoin feeds bodies to the handler: none but the good one lets anybody in, and none does worse than a refusal.
func FuzzJoin(f *testing.F) {
	ca := must(NewCA("ourcluster"))(f)
	_, csr, err := newRequest()
	if err != nil {
		f.Fatal(err)
	}
	good := joinRequest{Cluster: "ourcluster", Token: "abc", Secret: make([]byte, secretSize), Role: Node, ID: "x", Name: "x", Address: "192.0.2.1:1", Request: csr, Seal: make([]byte, 32)}
	f.Add(must(json.Marshal(good))(f))
	good.Role, good.Address = Agent, ""
	f.Add(must(json.Marshal(good))(f))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"cluster":"ourcluster"}{"cluster":"othercluster"}`))
	f.Add([]byte(strings.Repeat(`[`, 20000)))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := &JoinServer{
			Tokens: NewTokens("ourcluster", &FileTokens{Path: filepath.Join(os.TempDir(), "rota-fuzz-none", "tokens.json")}),
			CA:     func() (*CA, error) { return ca, nil },
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, joinPath, strings.NewReader(string(body))))
		no := &JoinError{}
		if w.Code < 400 || json.Unmarshal(w.Body.Bytes(), no) != nil || no.Reason == "" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
