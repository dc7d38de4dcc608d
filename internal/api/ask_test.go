package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/rota"
)

func remove(s *Server, path string) *httptest.ResponseRecorder {
	return call(s, asUnix(httptest.NewRequest(http.MethodDelete, path, nil)))
}

// TestInstruct: what is asked of publishers is an event with who and why; what could not be taken in is not ordered.
func TestInstruct(t *testing.T) {
	f := night(t)
	s := server(t, options(t, f))
	before := f.State().Index()
	for _, c := range []struct {
		body string
		code int
		want string
	}{
		{`{"verb": "apply"}`, 422, "reason"},
		{`{"verb": "apply", "reason": " "}`, 422, "say why"},
		{`{"verb": "explode", "reason": "x"}`, 422, "verb"},
		{`{"verb": "apply", "reason": "x", "publisher": "nobody"}`, 404, "no publisher"},
		{`{"verb": "apply", "reason": "x", "names": ["a..b"]}`, 422, "empty label"},
		{`{"verb": "apply", "reason": "x", "zone": "a..b"}`, 422, "empty label"},
		{`{"verb": "apply", "reason": "x", "for": "25h"}`, 422, "at most 24h"},
		{`{"verb": "apply", "reason": "x", "for": "soon"}`, 422, "want a duration"},
		{`{"verb": "import", "reason": "x", "publisher": "cf"}`, 422, "name the publisher and the zone"},
		{`{"verb": "refresh", "reason": "x"}`, 422, "at least one name"},
		{`{"verb": "apply", "reason": "x", "to": "y"}`, 422, "only release does"},
		{`{"verb": "apply", "reason": "x", "more": 1}`, 422, "unexpected"},
	} {
		if w := post(s, "/api/v1/instructions", c.body); w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d %s, want %d %q", c.body, w.Code, w.Body, c.code, c.want)
		}
	}
	if f.State().Index() != before {
		t.Fatal("what was refused was ordered")
	}
	r := decode[InstructionReply](t, post(s, "/api/v1/instructions",
		`{"verb": "apply", "publisher": "cf", "zone": "Example.org", "names": ["b.example.org", "a.example.org."], "for": "30m", "reason": "ams\u001b is moved", "author": "alice"}`))
	want := rota.Instructed{
		Instruction: rota.Instruction{
			Verb: rota.VerbApply, Publisher: "cf", Zone: "example.org.", Names: []rota.Name{"a.example.org.", "b.example.org."}, Until: t0.Add(31 * time.Minute),
		},
		Index: before + 1, At: t0.Add(time.Minute), Actor: "alice", Reason: "ams? is moved",
	}
	if diff := cmp.Diff(InstructionReply{Event: before + 1, Instruction: want}, r); diff != "" {
		t.Error(diff)
	}
	if l := decode[List[rota.Instructed]](t, get(s, "/api/v1/instructions")); len(l.Items) != 1 || l.Items[0].Actor != "alice" {
		t.Errorf("%+v", l)
	}
	f.err = ErrNoLeader
	if w := post(s, "/api/v1/instructions", `{"verb": "apply", "reason": "x"}`); w.Code != 503 {
		t.Errorf("without a leader: %d", w.Code)
	}
	empty := server(t, Options{Source: newFold(), Append: newFold().Append})
	for _, p := range []string{"instructions", "freeze"} {
		if w := get(empty, "/api/v1/"+p); w.Code != 200 {
			t.Errorf("%s before anything: %d %s", p, w.Code, w.Body)
		}
	}
}

// TestFreeze: this node comes first and needs nobody, the cluster is told if it can be, and the reply says which of both worked.
func TestFreeze(t *testing.T) {
	f := night(t)
	o := options(t, f)
	var own *rota.Freeze
	var broken error
	o.Frozen = func() *rota.Freeze { return own }
	o.Freeze = func(x rota.Freeze, _ bool) error {
		if broken == nil {
			own = &x
		}
		return broken
	}
	o.Thaw = func(string) error { own = nil; return broken }
	s := server(t, o)
	if w := post(s, "/api/v1/freeze", `{"reason": ""}`); w.Code != 422 || own != nil {
		t.Errorf("without a reason: %d", w.Code)
	}
	v := decode[FreezeView](t, post(s, "/api/v1/freeze", `{"reason": "why not", "author": "alice"}`))
	if v.Node == nil || v.Cluster == nil || v.Cluster.Actor != "alice" || v.Node.Reason != "why not" || v.Event != f.State().Index() || v.Trouble != "" {
		t.Errorf("%+v", v)
	}
	if x := decode[Explained](t, get(s, "/api/v1/explain?name=www.example.org")); x.Frozen == nil || !strings.HasPrefix(x.Summary, "frozen by alice") {
		t.Errorf("explained: %q", x.Summary)
	}
	v = decode[FreezeView](t, remove(s, "/api/v1/freeze?author=bob"))
	if v.Node != nil || v.Cluster != nil || f.State().Frozen() != nil {
		t.Errorf("%+v", v)
	}
	v = decode[FreezeView](t, post(s, "/api/v1/freeze", `{"reason": "only here", "here": true}`))
	if v.Node == nil || v.Cluster != nil || v.Event != 0 {
		t.Errorf("%+v", v)
	}
	own, f.err = nil, ErrNoLeader
	v = decode[FreezeView](t, post(s, "/api/v1/freeze", `{"reason": "no network"}`))
	if v.Node == nil || v.Cluster != nil || !strings.Contains(v.Trouble, "no leader") {
		t.Errorf("without a leader: %+v", v)
	}
	own, broken = nil, errors.New("disk full")
	if w := post(s, "/api/v1/freeze", `{"reason": "nothing works"}`); w.Code != 503 {
		t.Errorf("neither works: %d %s", w.Code, w.Body)
	}
	if w := post(s, "/api/v1/freeze", `{"reason": "nothing works", "here": true}`); w.Code != 500 || !strings.Contains(w.Body.String(), "disk full") {
		t.Errorf("nor here: %d %s", w.Code, w.Body)
	}
	f.err, broken = nil, errors.New("disk full")
	v = decode[FreezeView](t, post(s, "/api/v1/freeze", `{"reason": "the cluster it is"}`))
	if v.Cluster == nil || !strings.Contains(v.Trouble, "disk full") {
		t.Errorf("by the cluster alone: %+v", v)
	}
}

// TestRecords: a record that is not as wanted is drift when rota wrote what is wanted, held when a limit keeps it, else pending.
func TestRecords(t *testing.T) {
	f := night(t)
	set := func(name rota.Name, data ...string) rota.RRset {
		return rota.RRset{Name: name, Type: rota.TypeA, TTL: 30, Data: data}
	}
	wrote := func(publisher string, s rota.RRset) {
		f.must(t, rota.Event{At: t0.Add(10 * time.Second), Kind: rota.EventPublished, Published: &rota.Published{
			Publisher: publisher, Zone: "example.org.", Changes: []rota.Change{{New: s}},
		}})
	}
	wrote("cf", set("b.example.org.", "192.0.2.9"))
	wrote("cf", set("b.example.org.", "192.0.2.1"))
	wrote("cf", set("c.example.org.", "192.0.2.9"))
	wrote("other", set("c.example.org.", "192.0.2.1"))
	f.must(t, rota.Event{At: t0.Add(20 * time.Second), Kind: rota.EventInstruct, Actor: "alice", Reason: "moved", Instruction: &rota.Instruction{
		Verb: rota.VerbApply, Publisher: "cf", Zone: "example.org.", Names: []rota.Name{"d.example.org."},
	}})
	o := options(t, f)
	asked := ""
	o.Plan = func(_ context.Context, publisher string) ([]Plan, error) {
		asked = publisher
		return []Plan{
			{
				Publisher: "cf", Zone: "example.org.", Unchanged: []rota.RRset{set("a.example.org.", "192.0.2.1")},
				Changes: []rota.Change{
					{Old: set("b.example.org.", "192.0.2.66"), New: set("b.example.org.", "192.0.2.1")},
					{Old: set("c.example.org.", "192.0.2.9"), New: set("c.example.org.", "192.0.2.1"), Why: "down"},
					{Old: set("d.example.org.", "192.0.2.8", "192.0.2.9"), New: set("d.example.org.", "192.0.2.7", "192.0.2.8", "192.0.2.9")},
				},
				Held: []HeldChange{
					{Why: "too much", Change: rota.Change{Old: set("d.example.org.", "192.0.2.7", "192.0.2.8", "192.0.2.9"), New: set("d.example.org.", "192.0.2.7")}},
					{Why: "too much", Change: rota.Change{Old: set("e.example.org.", "192.0.2.8", "192.0.2.9"), New: set("e.example.org.", "192.0.2.9")}},
				},
			},
			{Publisher: "cf", Error: "x.example.net: no zone" + strings.Repeat(", none", 50) + "; create it"},
		}, nil
	}
	s := server(t, o)
	type row struct{ name, state, data, want, why string }
	rows := func(l RecordList) []row {
		var out []row
		for _, r := range l.Items {
			out = append(out, row{r.Name.Short()[:1], r.State, strings.Join(r.Data, " "), strings.Join(r.Want, " "), r.Why})
		}
		return out
	}
	all := []row{
		{"a", "in-step", "192.0.2.1", "192.0.2.1", ""},
		{"b", "drift", "192.0.2.66", "192.0.2.1", "it was as wanted when rota wrote it"},
		{"c", "pending", "192.0.2.9", "192.0.2.1", "down"},
		{"d", "held", "192.0.2.8 192.0.2.9", "192.0.2.7", "too much"},
		{"e", "held", "192.0.2.8 192.0.2.9", "192.0.2.9", "too much"},
	}
	l := decode[RecordList](t, get(s, "/api/v1/records"))
	if diff := cmp.Diff(all, rows(l), cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
	if len(l.Unread) != 1 || l.Items[1].Event == 0 || !l.Items[1].Written.Equal(t0.Add(10*time.Second)) || l.Index != f.State().Index() {
		t.Errorf("%+v", l)
	}
	if diff := cmp.Diff(all[1:], rows(decode[RecordList](t, get(s, "/api/v1/drift?publisher=cf&zone=example.org."))), cmp.AllowUnexported(row{})); diff != "" || asked != "cf" {
		t.Errorf("%s, asked of %q", diff, asked)
	}
	if diff := cmp.Diff(all[3:], rows(decode[RecordList](t, get(s, "/api/v1/records?state=held"))), cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
	p := decode[List[Plan]](t, get(s, "/api/v1/plan")).Items[0]
	if len(p.Forced) != 1 || p.Forced[0].Name != "d.example.org." || p.Forced[0].Actor != "alice" || len(p.Held) != 2 {
		t.Errorf("%+v", p)
	}
	if p := decode[List[Plan]](t, get(s, "/api/v1/plan")).Items[1]; !strings.HasSuffix(p.Error, "; create it") {
		t.Errorf("what to do is cut off: %s", p.Error)
	}
	for path, code := range map[string]int{"plan?publisher=x": 404, "records?zone=example.com": 404, "drift?zone=a..b": 422, "records?state=fine": 422} {
		if w := get(s, "/api/v1/"+path); w.Code != code {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
