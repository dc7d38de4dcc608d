package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// commands runs commands as the daemon does, without its bounds.
func commands(ctx context.Context, c Command) (Output, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append([]string{"PATH=/usr/bin:/bin"}, c.Env...), bytes.NewReader(c.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	out := Output{Started: cmd.Process != nil, Code: -1, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if cmd.ProcessState != nil {
		out.Code = cmd.ProcessState.ExitCode()
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		err = nil
	} else if ctx.Err() != nil {
		err = fmt.Errorf("%s was ended: %w", c.Argv[0], ctx.Err())
	}
	return out, err
}

// program finds a program that Debian's package holds.
func program(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: apt-get install --no-install-recommends %s", name, pkg)
	return ""
}

// TestNSUpdate holds both programs to what every publisher must do, against the servers.
func TestNSUpdate(t *testing.T) {
	t.Parallel()
	scenarios := []struct {
		name string
		all  bool // with every server; otherwise with the one of the same house
		run  func(*testing.T, *target)
	}{
		{"removal, return, TTL, AAAA, fallback", true, lifecycle},
		{"program's words", true, programWords},
		{"moved", false, moved},
		{"refused", false, refused},
		{"lost answer", false, lostAnswer},
		{"hand edit", false, handEdit},
		{"stale writer", false, staleWriter},
		{"replay", false, replay},
		{"late message of our own", false, lateMessage},
		{"other owner", false, otherOwner},
		{"names in the way", false, inTheWay},
		{"many messages", false, manyMessages},
	}
	house := map[string]peers.Kind{
		program(t, "nsupdate", "bind9-dnsutils"): peers.BIND, program(t, "knsupdate", "knot-dnsutils"): peers.Knot,
	}
	for command, own := range house {
		for _, kind := range peers.Kinds() {
			t.Run(command[strings.LastIndex(command, "/")+1:]+" to "+string(kind), func(t *testing.T) {
				t.Parallel()
				for _, s := range scenarios {
					if !s.all && kind != own {
						continue
					}
					t.Run(s.name, func(t *testing.T) {
						t.Parallel()
						x := newTarget(t, kind)
						k := peers.DefaultKey()
						x.backend = func(change ...func(*RFC2136Options)) Backend {
							o := NSUpdateOptions{Command: []string{command}, Timeout: 2 * time.Second, Run: commands, Servers: RFC2136Options{
								Servers: []string{x.road.Addr()}, Key: &Key{Name: k.Name, Algorithm: k.Algorithm, Secret: k.Secret}, Timeout: 2 * time.Second,
							}}
							for _, f := range change {
								f(&o.Servers)
							}
							b, err := NewNSUpdate(o)
							if err != nil {
								t.Fatal(err)
							}
							return b
						}
						s.run(t, x)
					})
				}
			})
		}
	}
}

// programWords holds what the programs say against the codes it stands for.
func programWords(t *testing.T, x *target) {
	good := peers.DefaultKey()
	forged := []Code{CodeBadKey, CodeBadSig, CodeForged, CodeNotAuth}
	first := func(zone rota.Name) Batch {
		return Batch{Zone: zone, Fence: rota.Change{
			Old: rota.RRset{Name: FenceKey(zone).Name, Type: rota.TypeTXT}, New: Fence{Owner: "test", By: "00"}.RRset(zone),
		}}
	}
	for _, c := range []struct {
		name  string
		zone  rota.Name
		key   *Key
		rule  peers.Rule
		codes []Code
		doubt bool
	}{
		{"wrong secret", "example.test.", &Key{Name: good.Name, Secret: "d3Jvbmc="}, peers.Pass, append([]Code{CodeRefused}, forged...), true},
		{"unknown key", "example.test.", &Key{Name: "nobody", Secret: good.Secret}, peers.Pass, append([]Code{CodeRefused}, forged...), true},
		{"no key", "example.test.", nil, peers.Pass, []Code{CodeRefused, CodeNotAuth}, false},
		{"zone missing", "gone.test.", &Key{Name: good.Name, Secret: good.Secret}, peers.Pass, append([]Code{CodeRefused}, forged...), false},
		{
			"no answer", "example.test.", &Key{Name: good.Name, Secret: good.Secret},
			func(p peers.Packet) [][]byte { return nil },
			[]Code{CodeUnreachable},
			true,
		},
	} {
		x.road.Set(c.rule)
		b := x.backend(func(o *RFC2136Options) { o.Key = c.key })
		_, err := b.Write(t.Context(), first(c.zone))
		r := ReasonOf(err)
		doubt := r.InDoubt || !c.doubt || r.Code == CodeRefused // PowerDNS signs its refusals of keys with nothing, and nsupdate believes them
		if err == nil || !slices.Contains(c.codes, r.Code) || !doubt || r.Server == "" {
			t.Errorf("%s is %+v, want one of %v", c.name, r, c.codes)
		}
	}
}

// The script says whole what the message says, and its key is nowhere else.
func TestUpdateScript(t *testing.T) {
	var seen Command
	key := &Key{Name: "k.example", Secret: "c2VjcmV0"}
	b, err := NewNSUpdate(NSUpdateOptions{
		Command: []string{"/usr/bin/nsupdate", "-4"}, Servers: RFC2136Options{Servers: []string{"[2001:db8::53]:5353"}, Key: key},
		Run: func(_ context.Context, c Command) (Output, error) {
			seen = c
			return Output{Started: true}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	old, next := Fence{Owner: "a b", Epoch: 1, By: "0"}, Fence{Owner: "a b", Epoch: 1, Seq: 1, By: "0"}
	www := rota.RRset{Name: "www.example.test.", Type: rota.TypeA, TTL: 30, Data: []string{"192.0.2.1"}}
	six := rota.RRset{Name: "www.example.test.", Type: rota.TypeAAAA, TTL: 30}
	to, fresh := www, six
	to.Data, fresh.Data = []string{"192.0.2.1", "192.0.2.2"}, []string{"2001:db8::1"}
	if n, err := b.Write(t.Context(), Batch{
		Zone: "example.test.", Fence: rota.Change{Old: old.RRset("example.test."), New: next.RRset("example.test.")},
		Changes: []rota.Change{{Old: www, New: to}, {Old: six, New: fresh}},
	}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	want := `server 2001:db8::53 5353
zone example.test.
key hmac-sha256:k.example. c2VjcmV0
prereq yxrrset _rota.example.test. TXT "owner=a+b epoch=1 seq=0 by=0"
prereq yxrrset www.example.test. A 192.0.2.1
prereq nxrrset www.example.test. AAAA
update delete _rota.example.test. TXT
update delete www.example.test. A
update add _rota.example.test. 60 TXT "owner=a+b epoch=1 seq=1 by=0"
update add www.example.test. 30 A 192.0.2.1
update add www.example.test. 30 A 192.0.2.2
update add www.example.test. 30 AAAA 2001:db8::1
send
`
	if string(seen.Stdin) != want {
		t.Errorf("script:\n%s\nwant:\n%s", seen.Stdin, want)
	}
	if got := fmt.Sprint(seen.Argv, seen.Env); got != "[/usr/bin/nsupdate -4 -v -r 0 -t 9] []" {
		t.Errorf("runs %s", got)
	}
}

// A secret that came in several lines is one line in the script, and what cannot be written there is not shown when the key is it.
func TestUpdateScriptKey(t *testing.T) {
	m := new(dns.Msg)
	m.SetUpdate("example.test.")
	s, err := updateScript(m, &road{server: "192.0.2.53:53", key: &Key{Name: "k.example", Secret: "c2Vj\r\ncmV0\nsend"}})
	if want := "server 192.0.2.53 53\nzone example.test.\nkey hmac-sha256:k.example. c2VjcmV0send\nsend\n"; err != nil || string(s) != want {
		t.Errorf("%q, %v", s, err)
	}
	if _, err := updateScript(m, &road{server: "192.0.2.53:53", key: &Key{Name: "k.example", Secret: "c2Vj\vcmV0"}}); err == nil || strings.Contains(err.Error(), "c2Vj") {
		t.Errorf("a key that cannot be written: %v", err)
	}
}

// FuzzUpdateScript: no name and no data can add a line or a word of its own to a script.
func FuzzUpdateScript(f *testing.F) {
	for _, data := range []string{"a b", "x\nsend", `\"quoted\"`, "a; b", "\x00", "ümlaut", `back\slash`, `tail\`, "$(id)", "\r\nupdate delete . ANY"} {
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, label, text string) {
		name, err := rota.ParseName(label)
		if err != nil {
			name = "plain."
		}
		if name += "example.test."; len(name) > 200 || len(text) > 1000 {
			return
		}
		batch := Batch{Zone: "example.test.", Fence: rota.Change{
			Old: rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}, New: Fence{Owner: text[:min(len(text), 30)]}.RRset("example.test."),
		}, Changes: []rota.Change{
			{Old: rota.RRset{Name: name, Type: rota.TypeCNAME}, New: rota.RRset{Name: name, Type: rota.TypeCNAME, TTL: 30, Data: []string{text}}},
			{Old: rota.RRset{Name: name, Type: rota.TypeTXT}, New: rota.RRset{Name: name, Type: rota.TypeTXT, TTL: 30, Data: []string{quoteTXT(text)}}},
			{Old: rota.RRset{Name: name, Type: rota.TypeTXT, Data: []string{text}}, New: rota.RRset{Name: name, Type: rota.TypeTXT}},
		}}
		for _, c := range batch.Changes {
			one := batch
			one.Changes = []rota.Change{c}
			m, _, err := update(one)
			if err != nil {
				continue
			}
			script, err := updateScript(m, &road{server: "192.0.2.53:53"})
			if err != nil {
				continue
			}
			lines := strings.Split(string(script), "\n")
			if want := 2 + len(m.Answer) + len(m.Ns) + 1; len(lines) != want+1 || lines[want-1] != "send" {
				t.Fatalf("%d lines, want %d:\n%s", len(lines)-1, want, script)
			}
			for i, rr := range append(m.Answer, m.Ns...) {
				words := strings.SplitN(lines[2+i], " ", 4)
				if len(words) < 4 || words[2] != rr.Header().Name || words[0] != "prereq" && words[0] != "update" {
					t.Fatalf("line %q is not about %s", lines[2+i], rr.Header().Name)
				}
				if words[1] != "yxrrset" && words[1] != "add" {
					continue
				}
				at := strings.TrimPrefix(words[3], fmt.Sprint(rr.Header().Ttl)+" ")
				if _, err := dns.NewRR("x.example. 0 IN " + at); err != nil {
					t.Fatalf("line %q is not read back: %v", lines[2+i], err)
				}
			}
		}
	})
}

// A program that fails or hangs is a reason, and in doubt once it has begun.
func TestNSUpdateFails(t *testing.T) {
	var calls atomic.Int32
	for _, c := range []struct {
		name  string
		out   Output
		err   error
		code  Code
		doubt bool
	}{
		{"not started", Output{Code: -1}, errors.New("cannot start /x: permission denied"), CodeScript, false},
		{"hangs", Output{Started: true, Code: -1}, context.DeadlineExceeded, CodeUnreachable, true},
		{"exits 1", Output{Started: true, Code: 1, Stderr: []byte("first\ninvalid record\n")}, nil, CodeScript, true},
		{"shows its script", Output{Started: true, Code: 1, Stderr: []byte("syntax error: key k c2VjcmV0\n")}, nil, CodeScript, true},
		{"exits 0 and says that it failed", Output{Started: true, Stderr: []byte("update failed: REFUSED\n")}, nil, CodeRefused, false},
		{"unknown rcode", Output{Started: true, Code: 2, Stderr: []byte("update failed: NONSENSE\n")}, nil, CodeScript, true},
		{"unsigned answer", Output{Started: true, Code: 1, Stdout: []byte("status: NOERROR;"), Stderr: []byte(";; ERROR: reply verification (x)\n")}, nil, CodeForged, true},
		{"unsigned refusal", Output{Started: true, Code: 1, Stdout: []byte("status: NXRRSET;"), Stderr: []byte(";; ERROR: reply verification (x)\n")}, nil, CodeRcode, true},
	} {
		b, err := NewNSUpdate(NSUpdateOptions{
			Command: []string{"/x"}, Servers: RFC2136Options{Servers: []string{"192.0.2.1"}, Key: &Key{Name: "k", Secret: "c2VjcmV0"}},
			Run: func(context.Context, Command) (Output, error) {
				calls.Add(1)
				return c.out, c.err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Write(t.Context(), Batch{Zone: "example.test.", Fence: rota.Change{
			Old: rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}, New: Fence{Owner: "test"}.RRset("example.test."),
		}})
		if r := ReasonOf(err); err == nil || r.Code != c.code || r.InDoubt != c.doubt || strings.Contains(r.Error(), "c2VjcmV0") {
			t.Errorf("%s: %+v, want %s, in doubt %v", c.name, r, c.code, c.doubt)
		}
	}
	for _, o := range []NSUpdateOptions{
		{Command: []string{"nsupdate"}, Run: commands, Servers: RFC2136Options{Servers: []string{"192.0.2.1"}}},
		{Run: commands, Servers: RFC2136Options{Servers: []string{"192.0.2.1"}}},
		{Command: []string{"/usr/bin/nsupdate"}, Run: commands},
		{Command: []string{"/usr/bin/nsupdate"}, Servers: RFC2136Options{Servers: []string{"192.0.2.1"}}},
		{Command: []string{"/usr/bin/nsupdate"}, Run: commands, Timeout: time.Hour, Servers: RFC2136Options{Servers: []string{"192.0.2.1"}}},
	} {
		if _, err := NewNSUpdate(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
