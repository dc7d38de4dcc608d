package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/api"
)

// crew is a cluster of three that does what it is told, as far as the commands can see.
type crew struct {
	err     error
	last    api.ClusterChange
	token   api.TokenRequest
	saved   string
	breaks  bool // Save fails in the middle
	problem bool // Verify finds one
}

func (c *crew) members() []api.ClusterMember {
	return []api.ClusterMember{
		{ID: "1a", Name: "ams1", Site: "ams", Address: "192.0.2.1:7400", Voter: true, Self: true, Leader: true},
		{ID: "2b", Name: "fra1", Site: "fra", Address: "192.0.2.2:7400", Voter: true, LastContact: 14 * time.Millisecond, Trailing: 1},
		{ID: "3c", Address: "192.0.2.3:7400", LastContact: -1},
	}
}

func (c *crew) Change(_ context.Context, x api.ClusterChange) (api.ClusterChanged, error) {
	c.last = x
	return api.ClusterChanged{Op: x.Op, Node: x.Node, Leader: "fra1", Members: c.members(), Notes: []string{"note\x1b[2J"}}, c.err
}

func (c *crew) Token(_ context.Context, r api.TokenRequest) (api.TokenReply, error) {
	c.token = r
	return api.TokenReply{Token: "rota1-" + r.Role, ID: "4kq2", Expires: t0.Add(time.Hour), Notes: []string{"on the new node: rota cluster join TOKEN"}}, c.err
}

func (c *crew) Tokens(context.Context) ([]api.TokenView, error) {
	return []api.TokenView{
		{ID: "4kq2", Role: "node", Created: t0, Expires: t0.Add(time.Hour), Uses: 2, Used: []api.TokenUse{{By: "node fra1", At: t0}}, Node: "ams1"},
		{ID: "7xz9", Role: "agent", Name: "berlin", Created: t0.Add(-time.Hour), Expires: t0, Uses: 1},
	}, c.err
}

func (c *crew) Revoke(context.Context, string, string) error { return c.err }

func (c *crew) Verify(context.Context) (api.ClusterVerification, error) {
	v := api.ClusterVerification{OK: true, Members: []api.MemberVerification{
		{Name: "ams1", Voter: true, Answers: true, Index: 9, Compared: 9, Same: true, Expires: t0.Add(90 * 24 * time.Hour), Version: "v1"},
	}}
	if c.problem {
		v.OK, v.Problems = false, []string{"fra1 does not answer", "nyc1 holds another state"}
		v.Members = append(v.Members, api.MemberVerification{Name: "fra1", Voter: true, Error: "dial: refused"},
			api.MemberVerification{Name: "nyc1", Answers: true, Index: 9, Compared: 9, Behind: 3, Offset: -1500 * time.Millisecond})
	}
	return v, c.err
}

func (c *crew) Save(_ context.Context, w io.Writer) error {
	if c.err != nil {
		return c.err
	}
	_, err := io.WriteString(w, "a state")
	if c.breaks {
		err = errors.New("disk")
	}
	return err
}

func (c *crew) Restore(_ context.Context, r io.Reader, foreign bool, _ string) (uint64, error) {
	b, err := io.ReadAll(r)
	c.saved = fmt.Sprintf("%s, foreign %v", b, foreign)
	return 12, errors.Join(err, c.err)
}

// status is that of a node which leads its cluster.
func (c *crew) status() api.ClusterStatus {
	return api.ClusterStatus{
		Cluster: "c1", Node: "ams1", Leader: "ams1", Leading: true, Raft: "leader", Term: 4, Applied: 3, Healthy: true, Members: c.members(),
	}
}

// answering starts an API over a night on a socket, with what o says besides, and returns what runs commands against it.
func answering(t *testing.T, o api.Options) func(in io.Reader, args ...string) (code int, out, err string) {
	t.Helper()
	f, _ := night()
	dir := t.TempDir()
	o.Source, o.Append, o.Records, o.Socket = f, f.Append, f.Records, filepath.Join(dir, api.SocketName)
	o.Now = func() time.Time { return t0.Add(time.Minute) }
	s, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func(in io.Reader, args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		a := &app{out: &out, err: &errs, getenv: func(string) string { return "" }, version: "v1", now: o.Now, in: in}
		code := a.main(t.Context(), append(args, "--data-dir="+dir))
		return code, out.String(), errs.String()
	}
}

// A cluster without a leader is shown, and ends with 5; what is old says since when.
func TestClusterWithoutALeader(t *testing.T) {
	c := &crew{}
	c.err = fmt.Errorf("%w: 1 of 3 voters reach each other", api.ErrNoLeader)
	rota := answering(t, api.Options{Operator: c, Node: "ams1", Cluster: func() api.ClusterStatus {
		s := c.status()
		s.Leader, s.Leading, s.Raft, s.Since, s.Behind, s.Removed, s.Trouble = "", false, "follower", t0, 7, true, []string{"clock"}
		for i := range s.Members {
			s.Members[i].Leader, s.Members[i].LastContact = false, -1
		}
		return s
	}})
	code, out, errs := rota(nil, "cluster", "status")
	want := `cluster c1, leader NONE, term 4, event 3
asked: ams1, follower
STALE: what this node knows may be older than the cluster's state, since 2026-11-21 02:14:00Z (60s)
REMOVED: the cluster goes on without this node
BEHIND: 7 entries are ordered and not in this node's state yet
TROUBLE: clock

NODE  SITE  ADDRESS         ROLE      CONTACT  TRAILING
ams1  ams   192.0.2.1:7400  voter     asked    –
fra1  fra   192.0.2.2:7400  voter     –        –
3c    –     192.0.2.3:7400  nonvoter  –        –
`
	if code != exitNoLeader || out != want || errs != "" {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	code, out, _ = rota(nil, "cluster", "status", "-o", "json")
	var s api.ClusterStatus
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != exitNoLeader || len(s.Members) != 3 {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
	for _, args := range [][]string{{"promote", "fra1"}, {"transfer"}, {"token"}, {"snapshot", "save", "-"}} {
		if code, _, errs := rota(nil, append([]string{"cluster"}, args...)...); code != exitNoLeader || !strings.Contains(errs, "1 of 3 voters") {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
	if code, out, errs := rota(nil, "status"); code != 0 || !strings.Contains(out, "vantages: NO LEADER hears them") || !strings.Contains(errs, "since 2026-11-21 02:14:00Z") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if _, out, _ := rota(nil, "explain", "www.example.org"); !strings.Contains(out, "votes of other vantages are those of when the verdicts were taken; what they hold now is unknown here") {
		t.Error(out)
	}
	if _, out, errs := rota(nil, "get", "vantages"); !strings.Contains(out, "unknown here, and there is no leader to ask") || strings.Count(errs, "may be older") != 1 {
		t.Errorf("%s%s", out, errs)
	}
}

func TestClusterRefusals(t *testing.T) {
	c := &crew{}
	rota := answering(t, api.Options{Operator: c, Cluster: c.status})
	for _, x := range []struct {
		err  error
		code int
	}{{api.ErrNoSuch, exitFailed}, {api.ErrConflict, exitHeld}, {api.ErrBusy, exitNoLeader}, {errors.New("other"), exitFailed}} {
		c.err = fmt.Errorf("%w: why", x.err)
		if code, out, errs := rota(nil, "cluster", "remove", "fra1"); code != x.code || out != "" || !strings.Contains(errs, "why") {
			t.Errorf("%v: exit code %d: %s%s", x.err, code, out, errs)
		}
	}
	if code, _, errs := answering(t, api.Options{})(nil, "cluster", "leave"); code != exitFailed || !strings.Contains(errs, "this node runs alone") {
		t.Errorf("alone: exit code %d: %s", code, errs)
	}
	if code, _, errs := answering(t, api.Options{})(nil, "cluster", "status"); code != exitFailed || !strings.Contains(errs, "in no cluster") {
		t.Errorf("alone: exit code %d: %s", code, errs)
	}
}

func TestVerifyFindsProblems(t *testing.T) {
	rota := answering(t, api.Options{Operator: &crew{problem: true}})
	code, out, _ := rota(nil, "cluster", "verify")
	want := `NODE  ROLE      ANSWERS  BEHIND  STATE         CLOCK  CERTIFICATE              VERSION
ams1  voter     yes      0       same at 9     0s     until 2027-02-19 02:14Z  v1
fra1  voter     NO       –       –             –      –                        –
  dial: refused
nyc1  nonvoter  yes      3       DIFFERS at 9  -1.5s  –                        –
PROBLEM: fra1 does not answer
PROBLEM: nyc1 holds another state
`
	if code != exitFailed || out != want {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, _ := rota(nil, "cluster", "verify", "-o", "yaml"); code != exitFailed || !strings.Contains(out, "ok: false") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// A snapshot that broke off leaves the file as it was; one that is restored was meant.
func TestSnapshotFiles(t *testing.T) {
	c := &crew{}
	rota := answering(t, api.Options{Operator: c})
	dir := t.TempDir()
	file := filepath.Join(dir, "state")
	if code, out, errs := rota(nil, "cluster", "snapshot", "save", file); code != 0 || !strings.Contains(out, "7 bytes") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if code, out, _ := rota(nil, "cluster", "snapshot", "save", "-"); code != 0 || out != "a state" {
		t.Errorf("exit code %d: %q", code, out)
	}
	if err := os.WriteFile(file, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.breaks = true
	for _, to := range []string{file, "-"} {
		if code, _, errs := rota(nil, "cluster", "snapshot", "save", to); code != exitFailed || errs == "" {
			t.Errorf("%s: exit code %d: %s", to, code, errs)
		}
	}
	b, err := os.ReadFile(file)
	names, _ := os.ReadDir(dir)
	if err != nil || string(b) != "older" || len(names) != 1 {
		t.Errorf("after a save that broke off: %q, %v, %v", b, names, err)
	}
	restore := []string{"cluster", "snapshot", "restore", file}
	for _, x := range []struct {
		in   io.Reader
		more []string
		code int
	}{
		{nil, nil, exitUsage},
		{strings.NewReader("yes\n"), nil, exitFailed},
		{strings.NewReader(""), nil, exitFailed},
		{strings.NewReader(strings.Repeat("restore ", 1000)), nil, exitFailed},
		{strings.NewReader("restore\n"), nil, exitOK},
		{strings.NewReader(" restore"), []string{"--foreign"}, exitOK},
		{nil, []string{"--yes"}, exitOK},
	} {
		c.saved = ""
		code, _, errs := rota(x.in, slices.Concat(restore, x.more)...)
		want := ""
		if x.code == exitOK {
			want = fmt.Sprintf("older, foreign %v", slices.Contains(x.more, "--foreign"))
		}
		if code != x.code || c.saved != want {
			t.Errorf("%v: exit code %d, restored %q: %s", x, code, c.saved, errs)
		}
	}
	for _, bad := range []string{dir, filepath.Join(dir, "none")} {
		if code, _, _ := rota(nil, "cluster", "snapshot", "restore", bad, "--yes"); code != exitFailed {
			t.Errorf("%s: exit code %d", bad, code)
		}
	}
}

// Over TCP a token decides: who may only look may not change the cluster, and ends with 6.
func TestClusterIsForAdmins(t *testing.T) {
	secret := "viewer-0123456789abcdef"
	token, err := api.NewToken("eve", api.RoleViewer, secret)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := night()
	c := &crew{}
	s, err := api.New(api.Options{
		Source: f, Append: f.Append, Operator: c, Cluster: c.status, Listen: "127.0.0.1:0", Tokens: []api.Token{token},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for secret, may := range map[string]int{secret: exitOK, "": exitDenied} {
		for args, want := range map[string]int{"status": may, "leave": exitDenied, "token": exitDenied, "verify": exitDenied, "snapshot save -": exitDenied} {
			var out, errs bytes.Buffer
			a := &app{out: &out, err: &errs, now: time.Now, getenv: func(k string) string {
				return map[string]string{"ROTA_TOKEN": secret}[k]
			}}
			code := a.main(t.Context(), slices.Concat([]string{"cluster"}, strings.Fields(args), []string{"--addr=http://" + s.Addr().String()}))
			if code != want {
				t.Errorf("%s with %q: exit code %d, want %d: %s", args, secret, code, want, &errs)
			}
		}
	}
	if c.last.Op != "" {
		t.Errorf("the cluster was told to %s", c.last.Op)
	}
}
