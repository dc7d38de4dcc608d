package main

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/rota"
)

func TestFew(t *testing.T) {
	hundred := make([]string, 100)
	for i := range hundred {
		hundred[i] = "127.0.1." + strconv.Itoa(i+1)
	}
	for _, c := range []struct {
		list []string
		want string
	}{
		{nil, ""},
		{hundred[:4], "127.0.1.1 127.0.1.2 127.0.1.3 127.0.1.4"},
		{hundred, "127.0.1.1 127.0.1.2 … (100)"},
	} {
		if got := few(c.list, " "); got != c.want {
			t.Errorf("%d become %q, want %q", len(c.list), got, c.want)
		}
	}
}

func TestAsked(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8::1")
	check := rota.Check{Kind: rota.KindHTTP, Port: 80, Path: "/", Host: "www.example.org", Timing: rota.Timing{Interval: time.Second}}
	const want = "http://[2001:db8::1]:80/ host www.example.org"
	if got := asked(rota.NewTarget(addr, check).ID); got != want {
		t.Errorf("the id reads %q, want %q", got, want)
	}
	if got := titled(addr, check.Describe()); got != want {
		t.Errorf("the title is %q, want %q", got, want)
	}
	for want, c := range map[string]rota.Check{
		"dns://[2001:db8::1]:53/a.example.org. AAAA": {Kind: rota.KindDNS, Port: 53, Query: "a.example.org.", QueryType: "AAAA"},
		"grpc://[2001:db8::1]:1/a.B":                 {Kind: rota.KindGRPC, Port: 1, Service: "a.B", TLS: true, ServerName: "x.y"},
		"exec://[2001:db8::1] /bin/a -b c&d=":        {Kind: rota.KindExec, Command: []string{"/bin/a", "-b", "c&d="}},
		"http://[2001:db8::1]:80/ host a.b":          {Kind: rota.KindHTTP, Port: 80, Host: "a.b", Body: `x&host="c.d"`},
	} {
		if got := asked(rota.NewTarget(addr, c).ID); got != want {
			t.Errorf("the id reads %q, want %q", got, want)
		}
	}
	if got := titled(addr, "web"); got != "2001:db8::1 web" {
		t.Errorf("the title of a named check is %q", got)
	}
}

func TestStatusWords(t *testing.T) {
	for want, s := range map[string]api.ServiceView{
		"up":                     {Status: "up", ModeA: rota.ModeNormal},
		"DOWN, PANIC (keep)":     {Status: "down", ModeA: rota.ModeKeep},
		"PANIC (all)":            {Status: "panic", ModeA: rota.ModeNormal, ModeAAAA: rota.ModeAll},
		"PANIC (keep, all)":      {Status: "panic", ModeA: rota.ModeKeep, ModeAAAA: rota.ModeAll},
		"DOWN, PANIC (fallback)": {Status: "down", ModeA: rota.ModeFallback},
	} {
		if got := statusWords(s); got != want {
			t.Errorf("%+v reads %q, want %q", s, got, want)
		}
	}
}

func TestEnds(t *testing.T) {
	for life, want := range map[time.Duration]string{90 * time.Second: "2026-11-21 02:15:30Z", time.Hour: "2026-11-21 03:14Z"} {
		if got := ends(rota.Override{Set: t0, Expires: t0.Add(life)}); got != want {
			t.Errorf("%v ends %s, want %s", life, got, want)
		}
	}
}

// A note stands below its row, and widens no column.
func TestTableNotes(t *testing.T) {
	tab := &table{head: []string{"A", "B"}}
	tab.add("1", "2")
	tab.note("a long text about it")
	tab.add("3", "4")
	var b strings.Builder
	if err := tab.write(&b, true, true); err != nil {
		t.Fatal(err)
	}
	if want := "A  B\n1  2\n  a long text about it\n3  4\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// A plan that nobody could make counts nothing.
func TestPlanUnread(t *testing.T) {
	bad := api.Plan{Publisher: "bind", Zone: "example.org.", Error: "refused"}
	good := api.Plan{Publisher: "cf", Zone: "example.net."}
	for want, plans := range map[string][]api.Plan{
		"Nothing could be read, so that nobody knows what there is to write.\n":                         {bad},
		"0 to remove, 0 to add, 0 unchanged. Not counted, as it could not be read: bind example.org.\n": {bad, good},
		"0 to remove, 0 to add, 0 unchanged.\n":                                                         {good},
	} {
		var b strings.Builder
		if err := writePlan(&b, plans); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("got %q, want %q", b.String(), want)
		}
	}
}

// With an address, explain is about that endpoint only; of many it shows the first.
func TestStoryIsShort(t *testing.T) {
	x := api.Explained{Explanation: rota.Explanation{Service: "www.example.org.", Type: rota.TypeA, Index: 7}, Transition: &api.ChangeView{}}
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)})
		x.Answer = append(x.Answer, a.String())
		x.Transition.Why = append(x.Transition.Why, a.String()+" down")
	}
	if text := story(x, netip.Addr{}, t0); !strings.Contains(text, "answers 127.0.1.1 127.0.1.2 … (100)") || !strings.Contains(text, "127.0.1.2 down; … (100)") {
		t.Errorf("of all:\n%s", text)
	}
	text := story(x, netip.MustParseAddr("127.0.1.9"), t0)
	if !strings.Contains(text, "event 7: 127.0.1.9 down\n") || strings.Contains(text, "127.0.1.10 down") {
		t.Errorf("of one:\n%s", text)
	}
}

// Who lacks a token is told where this command takes it from.
func TestTokenIsAskedFor(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"detail":"this needs a token"}`))
	}))
	defer s.Close()
	for _, token := range []string{"", "0123456789abcdef"} {
		a := &app{addr: s.URL, getenv: func(k string) string { return map[string]string{"ROTA_TOKEN": token}[k] }}
		c, err := a.client()
		if err != nil {
			t.Fatal(err)
		}
		err = c.get(t.Context(), "/api/v1/plan", nil, nil)
		words := []string{"ROTA_TOKEN", "ROTA_TOKEN_FILE"}
		if err == nil || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(err.Error(), w) }) {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

// Who asks with a configuration that cannot be read is not told that no rota runs: it may run elsewhere.
func TestDataDirectoryIsGuessed(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("wrong.yaml", []byte("node: {data_dir: right}\nbogus: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"wrong.yaml":  "wrong.yaml has errors, which `rota validate` shows; name it by --data-dir",
		"absent.yaml": "absent.yaml: no such file or directory; name it by --data-dir",
	} {
		a := &app{config: file, getenv: func(string) string { return "" }}
		c, err := a.client()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.explainDial(fs.ErrNotExist); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	if err := os.WriteFile("service.yaml", []byte("services:\n  www.example.org: {endpoints: [192.0.2.10]}\ndns: {listen: \":53\", zones: {example.org: {ns: [ns1.example.org]}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{getenv: func(k string) string { return map[string]string{"STATE_DIRECTORY": "of-the-service"}[k] }, config: "service.yaml"}
	if dir, err := a.dataDirectory(); dir != "of-the-service" || err != nil {
		t.Errorf("no data_dir in the configuration: %s, %v", dir, err)
	}
	a = &app{getenv: func(string) string { return "" }, dataDir: "there", config: "wrong.yaml"}
	if dir, err := a.dataDirectory(); dir != "there" || err != nil {
		t.Errorf("--data-dir there: %s, %v", dir, err)
	}
}
