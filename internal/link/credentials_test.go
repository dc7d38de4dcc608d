package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdentityInCertificate(t *testing.T) {
	ca := must(NewCA("ourcluster"))(t)
	_, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []Identity{
		{"ourcluster", Node, "abcdefgh12", "rota1"},
		{"ourcluster", Node, "identifier_1", "rota1.example.org"},
		{"ourcluster", Agent, "berlin-1", "berlin-1"},
		{"ourcluster", Agent, "Agent.X_1", "Agent.X_1"},
	} {
		g := must(ca.Sign(csr, id))(t)
		leaf := must(parseCerts(g.Cert, 1))(t)[0]
		got, err := identify(leaf, nil)
		if err != nil || got != id {
			t.Errorf("%+v comes back as %+v, %v", id, got, err)
		}
		if want := time.Until(leaf.NotAfter); want < leafLife-time.Hour || leaf.NotBefore.After(time.Now().Add(-backdated+time.Minute)) {
			t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
		}
		if d := renewAt(leaf).Sub(leaf.NotBefore); d < leafLife/2 || d > leafLife*3/4 {
			t.Errorf("renewed after %v", d)
		}
	}
	for _, id := range []Identity{
		{},
		{"ourcluster", "king", "a", "a"},
		{"ourcluster", Node, "", "a"},
		{"ourcluster", Node, "a/b", "a"},
		{"ourcluster", Node, "../a", "a"},
		{"ourcluster", Node, "a?x", "a"},
		{"ourcluster", Node, "a", ""},
		{"ourcluster", Node, "a", "a b"},
		{"ourcluster", Node, "a", "a\n"},
		{"ourcluster", Node, "ä", "a"},
		{"ourcluster", Node, strings.Repeat("a", 129), "a"},
		{"ourcluster", Agent, "a", "b"},
		{"othercluster", Node, "a", "a"},
		{"OURCLUSTER", Node, "a", "a"},
		{"", Node, "a", "a"},
	} {
		if _, err := ca.Sign(csr, id); err == nil {
			t.Errorf("signed %+v", id)
		}
	}
	for _, u := range []string{
		"rota://c/node", "rota://c/node/", "rota:///node/a", "rota://c/king/a", "rota://c/node/a/b", "rota://c/node/a?b", "rota://c/node/a#b",
		"rota://c:1/node/a", "rota://u@c/node/a", "rota://c//node/a", "rota://c/node/%61", "rota:c/node/a",
	} {
		if i, err := parseURI(must(url.Parse(u))(t)); err == nil {
			t.Errorf("%s is read as %+v", u, i)
		}
	}
}

func FuzzIdentityURI(f *testing.F) {
	f.Add("rota://c/node/a")
	f.Add("rota://c/agent/a.b-c_d")
	f.Add("rota://c/node/a%2fb")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		i, err := parseURI(u)
		if err != nil {
			return
		}
		if i.Name = i.ID; i.Role == Node && !spell(i.Name, maxName) {
			i.Name = "x"
		}
		if len(i.ID) <= maxName && i.Check() != nil || i.uri().String() != u.String() {
			t.Errorf("%q is read as %+v", s, i)
		}
	})
}

func TestSignTakesOnlyTheKey(t *testing.T) {
	ca := must(NewCA("ourcluster"))(t)
	id := Identity{"ourcluster", Agent, "a", "a"}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	asks := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "node", OrganizationalUnit: []string{unitNode}}, DNSNames: []string{"evil.example.org"},
		URIs: []*url.URL{{Scheme: scheme, Host: "ourcluster", Path: "/node/a"}},
	}, key))(t)
	leaf := must(parseCerts(must(ca.Sign(asks, id))(t).Cert, 1))(t)[0]
	if got, err := identify(leaf, nil); err != nil || got != id || len(leaf.DNSNames) != 0 || leaf.Subject.String() != "CN=a" {
		t.Errorf("%+v, %v: %s", got, err, leaf.Subject)
	}
	broken := slices.Clone(asks)
	broken[len(broken)-5] ^= 1
	small := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, must(rsa.GenerateKey(rand.Reader, 2048))(t)))(t)
	odd := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)))(t)
	for name, csr := range map[string][]byte{"a broken signature": broken, "RSA": small, "P-224": odd, "nothing": nil, "garbage": {1, 2, 3}} {
		if _, err := ca.Sign(csr, id); err == nil {
			t.Errorf("signed %s", name)
		}
	}
}

func TestCAFiles(t *testing.T) {
	dir := t.TempDir()
	f := FilesIn(dir)
	ca := must(NewCA("ourcluster"))(t)
	if err := ca.Save(f); err != nil {
		t.Fatal(err)
	}
	got := must(LoadCA(f))(t)
	if got.Cluster() != "ourcluster" || got.Pin() != ca.Pin() || time.Until(got.Expires()) < caLife-time.Hour {
		t.Errorf("%+v", got)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o666} {
		if err := os.Chmod(f.CAKey, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadCA(f); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if err := ca.Save(f); err != nil { // puts the mode right
		t.Fatal(err)
	}
	next := must(ca.Roll())(t)
	if err := next.Save(f); err != nil {
		t.Fatal(err)
	}
	if got := must(LoadCA(f))(t); got.Pin() != next.Pin() || len(got.bundle) != 2 {
		t.Errorf("after the change of CAs: %d roots", len(got.bundle))
	}
	if err := os.WriteFile(f.CA, ca.Bundle(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(f); err == nil {
		t.Error("a key without its certificate is a CA")
	}
	if err := os.Remove(f.CAKey); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(f); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a key: %v", err)
	}
}

// Files that do not fit change nothing; files that do are taken into use without a restart.
func TestCredentialsFollowTheirFiles(t *testing.T) {
	w := newWorld(t, "ourcluster")
	p := w.credentials(w.identity(Node, "a"))
	write := func(path string, b []byte, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, b, mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	good := map[string][]byte{}
	for _, f := range []string{p.files.CA, p.files.Cert, p.files.Key} {
		good[f] = must(os.ReadFile(f))(t)
	}
	other := newWorld(t, "othercluster")
	b, o := w.credentials(w.identity(Node, "b")), other.credentials(other.identity(Node, "a"))
	before := p.creds.now.Load()
	for name, spoil := range map[string]func(){
		"half a certificate":           func() { write(p.files.Cert, good[p.files.Cert][:200], 0o644) },
		"no certificate":               func() { _ = os.Remove(p.files.Cert) },
		"another's certificate":        func() { write(p.files.Cert, must(os.ReadFile(b.files.Cert))(t), 0o644) },
		"a key that others may read":   func() { write(p.files.Key, good[p.files.Key], 0o644) },
		"another CA":                   func() { write(p.files.CA, other.ca.Bundle(), 0o644) },
		"a leaf for a CA":              func() { write(p.files.CA, good[p.files.Cert], 0o644) },
		"a file without end":           func() { write(p.files.CA, bytes.Repeat([]byte("x"), maxFile+1), 0o644) },
		"another node's, all of it":    func() { copyFiles(t, b.files, p.files) },
		"another cluster's, all of it": func() { copyFiles(t, o.files, p.files) },
	} {
		spoil()
		if err := p.creds.Reload(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if p.creds.now.Load() != before {
			t.Errorf("%s was taken into use", name)
		}
		for f, b := range good {
			write(f, b, 0o600)
		}
		if err := p.creds.Reload(); err != nil {
			t.Errorf("put right after %s: %v", name, err)
		}
		before = p.creds.now.Load()
	}
	if err := p.creds.Renew(t.Context()); err != nil || p.creds.now.Load() == before {
		t.Errorf("not renewed: %v", err)
	}
	again := must(LoadCredentials(CredentialOptions{Files: p.files}))(t)
	if !bytes.Equal(again.now.Load().cert.Certificate[0], p.creds.now.Load().cert.Certificate[0]) {
		t.Error("the files hold another certificate than what is in force")
	}
	if err := p.creds.Trust(other.ca.Bundle()); err == nil {
		t.Error("stopped trusting its own CA")
	}
}

func copyFiles(t *testing.T, from, to Files) {
	for f, g := range map[string]string{from.CA: to.CA, from.Cert: to.Cert, from.Key: to.Key} {
		if err := writeFile(g, must(os.ReadFile(f))(t), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A renewal that ends between its two files is finished at the next start.
func TestRenewalCutShort(t *testing.T) {
	w := newWorld(t, "ourcluster")
	p := w.credentials(w.identity(Node, "a"))
	old := must(os.ReadFile(p.files.Key))(t)
	if err := p.creds.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	// As it was before the last step.
	if err := errors.Join(os.Rename(p.files.Key, p.files.Key+nextKey), os.WriteFile(p.files.Key, old, 0o600)); err != nil {
		t.Fatal(err)
	}
	c := must(LoadCredentials(CredentialOptions{Files: p.files}))(t)
	if c.Identity() != p.id {
		t.Errorf("%v", c.Identity())
	}
	if _, err := os.Stat(p.files.Key + nextKey); !errors.Is(err, os.ErrNotExist) {
		t.Error("the second key is still there")
	}
	must(LoadCredentials(CredentialOptions{Files: p.files}))(t)
	// As it was before the certificate came: the old ones hold, whatever lies beside them.
	if err := os.WriteFile(p.files.Key+nextKey, old, 0o600); err != nil {
		t.Fatal(err)
	}
	must(LoadCredentials(CredentialOptions{Files: p.files}))(t)
}

// Renewed at two thirds of its life, tried again when the CA is away, and told about when nobody renews.
func TestRenewalInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "ourcluster")
		p := w.credentials(w.identity(Node, "a"))
		due := func() { // in two hours
			cert := w.ca.forge(t, p.id, func(x *x509.Certificate) {
				x.NotBefore = time.Now().Add(2*time.Hour - leafLife*2/3)
				x.NotAfter = x.NotBefore.Add(leafLife)
			})
			g := Grant{Cert: encodeCerts(must(x509.ParseCertificate(cert.Certificate[0]))(t)), Bundle: w.ca.Bundle()}
			if err := save(p.files, cert.PrivateKey.(*ecdsa.PrivateKey), g); err != nil {
				t.Fatal(err)
			}
		}
		due()
		var here atomic.Bool
		var tries atomic.Int64
		renew := p.creds.o.Renew
		var log syncBuffer
		c := must(LoadCredentials(CredentialOptions{Files: p.files, Log: slog.New(slog.NewTextHandler(&log, nil)), Renew: func(ctx context.Context, csr []byte) (Grant, error) {
			tries.Add(1)
			if !here.Load() {
				return Grant{}, errors.New("the CA is away")
			}
			return renew(ctx, csr)
		}}))(t)
		c.look = 10 * time.Second
		first := c.Expires()
		stop := background(t, c.Run)
		defer stop()
		time.Sleep(time.Hour + 59*time.Minute)
		if tries.Load() != 0 || c.Expires() != first {
			t.Fatalf("%d tries before its time", tries.Load())
		}
		time.Sleep(6 * time.Hour)
		if n := tries.Load(); n < 5 || n > 30 || c.Expires() != first {
			t.Errorf("%d tries in six hours without a CA", n)
		}
		here.Store(true)
		time.Sleep(2 * time.Hour)
		if c.Expires() == first || !strings.Contains(log.String(), "renewed") {
			t.Error("not renewed when the CA was back")
		}
		tries.Store(0)
		time.Sleep(2 * time.Hour)
		if n := tries.Load(); n != 0 {
			t.Errorf("%d tries after it was renewed", n)
		}
		stop()

		due()
		var outside syncBuffer
		o := must(LoadCredentials(CredentialOptions{Files: p.files, Log: slog.New(slog.NewTextHandler(&outside, nil))}))(t)
		o.look = time.Minute
		defer background(t, o.Run)()
		time.Sleep(28 * time.Hour)
		if n := strings.Count(outside.String(), "ends soon"); n != 2 {
			t.Errorf("said %d times in 26 hours, want 2", n)
		}
	})
}

// An agent has its certificate renewed over the port, for itself and for nobody else.
func TestRenewOverThePort(t *testing.T) {
	w := newWorld(t, "ourcluster")
	w.node("a", func(o *Options) {
		o.Peer = RenewHandler(func() (*CA, error) { return w.ca, nil }, quiet())
	})
	p := w.credentials(w.identity(Agent, "watcher"))
	d := w.dialer(p)
	p.creds.o.Renew = func(ctx context.Context, csr []byte) (Grant, error) {
		return RequestRenewal(ctx, d.Client(), "https://a/renew", csr)
	}
	before := p.creds.now.Load().cert.Leaf
	if err := p.creds.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := p.creds.now.Load().cert.Leaf; after.Equal(before) || p.creds.Identity() != p.id {
		t.Errorf("%v", p.creds.Identity())
	}
	if _, err := RequestRenewal(t.Context(), d.Client(), "https://a/renew", []byte("x")); err == nil || !strings.Contains(err.Error(), "certificate request") {
		t.Errorf("garbage: %v", err)
	}
	if resp := must(d.Client().Get("https://a/renew"))(t); resp.StatusCode != http.StatusForbidden {
		t.Errorf("GET: %s", resp.Status)
	} else {
		_ = resp.Body.Close()
	}
}

// The table of certificates that somebody else's CA made.
func TestMapping(t *testing.T) {
	lists := &Mapping{Cluster: "c", Nodes: []string{"rota1", "rota2"}, Agents: []string{"berlin", "paris"}}
	both := &Mapping{Cluster: "c", Nodes: []string{"rota1"}, Agents: []string{"rota1"}}
	later := &Mapping{Cluster: "c", Nodes: []string{"rota1"}, Agents: []string{"berlin"}, Agent: func(n string) bool { return n == "oslo" || n == "rota1" }}
	units := &Mapping{Cluster: "c"}
	ids := &Mapping{Cluster: "c", NodeID: func(n string) (string, bool) { return "id-of-" + n, n == "rota1" }}
	for _, c := range []struct {
		name string
		m    *Mapping
		cn   string
		ou   []string
		dns  []string
		want string // role id/name, or "" for refused
	}{
		{"common name in a list", lists, "rota1", nil, nil, "node /rota1"},
		{"agent in a list", lists, "berlin", nil, nil, "agent berlin/berlin"},
		{"DNS name in a list", lists, "", nil, []string{"rota2"}, "node /rota2"},
		{"DNS name in a list beside others", lists, "some host", nil, []string{"x.example.org", "rota2"}, "node /rota2"},
		{"common name and the same DNS name", lists, "rota1", nil, []string{"rota1", "rota1.example.org"}, "node /rota1"},
		{"two names in the list", lists, "rota1", nil, []string{"rota2"}, ""},
		{"node's and agent's name", lists, "rota1", nil, []string{"berlin"}, ""},
		{"in no list", lists, "rota9", nil, nil, ""},
		{"in no list, with a unit", lists, "rota9", []string{unitNode}, nil, ""},
		{"unit says another role", lists, "berlin", []string{unitNode}, nil, ""},
		{"unit says the same", lists, "berlin", []string{unitAgent, "Operations"}, nil, "agent berlin/berlin"},
		{"agent that was accepted later", later, "oslo", nil, nil, "agent oslo/oslo"},
		{"agent that was accepted later and the unit of a node", later, "oslo", []string{unitNode}, nil, ""},
		{"agent with the name of a node", later, "rota1", nil, nil, "node /rota1"},
		{"agent that is not accepted", later, "paris", []string{unitAgent}, nil, ""},
		{"in both lists", both, "rota1", nil, nil, ""},
		{"unit alone", units, "rota1", []string{unitNode}, nil, "node /rota1"},
		{"unit and only DNS name", units, "", []string{unitAgent}, []string{"paris"}, "agent paris/paris"},
		{"unit and common name beside DNS names", units, "rota1", []string{unitNode}, []string{"a.example.org", "b.example.org"}, "node /rota1"},
		{"unit and two DNS names", units, "", []string{unitAgent}, []string{"paris", "berlin"}, ""},
		{"unit and no name", units, "", []string{unitAgent}, nil, ""},
		{"two units", units, "x", []string{unitAgent, unitNode}, nil, ""},
		{"no unit", units, "rota1", nil, nil, ""},
		{"unit of something else", units, "rota1", []string{"Operations", "node"}, nil, ""},
		{"name that cannot be one", units, "*.example.org", []string{unitNode}, nil, ""},
		{"name with a line feed", units, "a\nb", []string{unitNode}, nil, ""},
		{"known id", ids, "rota1", []string{unitNode}, nil, "node id-of-rota1/rota1"},
		{"unknown id", ids, "rota2", []string{unitNode}, nil, "node /rota2"},
	} {
		i, err := identify(&x509.Certificate{Subject: pkix.Name{CommonName: c.cn, OrganizationalUnit: c.ou}, DNSNames: c.dns}, c.m)
		got := string(i.Role) + " " + i.ID + "/" + i.Name
		if err != nil {
			got = ""
		}
		if got != c.want || err == nil && i.Cluster != "c" {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	if _, err := identify(&x509.Certificate{Subject: pkix.Name{CommonName: "rota1"}}, nil); err == nil {
		t.Error("mapped without a mapping")
	}
}

// Certificates made by openssl, as an operator would, with an intermediate authority between: cluster.tls.
func TestCertificatesFromOutside(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not here")
	}
	dir := t.TempDir()
	script := `set -e
new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null; }
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.crt -days 2 -subj "/CN=Corporate root" 2>/dev/null
new mid "/CN=Corporate issuing"
printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n' > mid.ext
openssl x509 -req -in mid.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 -extfile mid.ext -out mid.crt 2>/dev/null
printf 'extendedKeyUsage=serverAuth,clientAuth\n' > leaf.ext
leaf() { new "$1" "$2"; openssl x509 -req -in "$1.csr" -CA mid.crt -CAkey mid.key -CAcreateserial -days 2 -extfile leaf.ext -out "$1.leaf" 2>/dev/null; cat "$1.leaf" mid.crt > "$1.crt"; chmod 600 "$1.key"; }
leaf rota1 "/CN=rota1"
leaf rota2 "/CN=rota2"
leaf berlin "/CN=berlin/OU=rota-agent"
leaf mail "/CN=mail"`
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := &Mapping{Cluster: "ourcluster", Nodes: []string{"rota1", "rota2"}, NodeID: func(n string) (string, bool) { return "id-" + n, n != "rota2" }}
	load := func(name string) *process {
		f := Files{CA: filepath.Join(dir, "root.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
		return &process{files: f, creds: must(LoadCredentials(CredentialOptions{Files: f, External: m}))(t)}
	}
	w := newWorld(t, "unused")
	one, two, agent := load("rota1"), load("rota2"), load("berlin")
	for _, p := range []*process{one, two} {
		p.id = p.creds.Identity()
		w.run(p)
		w.members = append(w.members, Member{ID: "id-" + p.id.Name, Name: p.id.Name, Address: p.addr})
	}
	resp := must(two.port.Client().Get("https://id-rota1/"))(t)
	b := must(io.ReadAll(resp.Body))(t)
	_ = resp.Body.Close()
	if string(b) != "node rota1 (id-rota1) hears node rota2" {
		t.Errorf("%s", b)
	}
	if _, err := one.port.Dial(t.Context(), ProtocolPeer, "id-rota2"); err != nil {
		t.Errorf("the node that is known by name only: %v", err)
	}
	resp = must(w.dialer(agent).Client().Get("https://rota2/"))(t)
	b = must(io.ReadAll(resp.Body))(t)
	_ = resp.Body.Close()
	if string(b) != "node rota2 hears agent berlin" {
		t.Errorf("%s", b)
	}
	f := Files{CA: filepath.Join(dir, "root.crt"), Cert: filepath.Join(dir, "mail.crt"), Key: filepath.Join(dir, "mail.key")}
	if _, err := LoadCredentials(CredentialOptions{Files: f, External: m}); err == nil {
		t.Error("the mail server's certificate is a member's")
	}
	pair := must(tls.LoadX509KeyPair(f.Cert, f.Key))(t)
	if _, in, _ := poke(one.addr, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{ProtocolPeer}}, "ourcluster", nil); in {
		t.Error("the mail server was let in")
	}
	// The same authority's certificate, meant for another cluster: only the caller's word tells them apart.
	pair = must(tls.LoadX509KeyPair(two.files.Cert, two.files.Key))(t)
	if _, in, _ := poke(one.addr, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{ProtocolPeer}}, "othercluster", nil); in {
		t.Error("a node of another cluster with the same authority was let in")
	}
	if err := one.creds.Renew(t.Context()); err == nil {
		t.Error("renewed what is renewed outside")
	}
}
