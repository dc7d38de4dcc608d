package publish

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"pgregory.net/rapid"

	"github.com/rota-dns/rota/internal/rota"
)

func TestRegistryKey(t *testing.T) {
	for _, c := range []struct {
		zone, name rota.Name
		typ        rota.Type
		want       rota.Name // "": none
	}{
		{"example.org.", "www.example.org.", rota.TypeA, "_rota.a-www.example.org."},
		{"example.org.", "www.example.org.", rota.TypeAAAA, "_rota.aaaa-www.example.org."},
		{"example.org.", "www.example.org.", rota.TypeCNAME, "_rota.cname-www.example.org."},
		{"example.org.", "*.example.org.", rota.TypeA, "_rota.a-*.example.org."},
		{"example.org.", "a-b.c.example.org.", rota.TypeA, "_rota.a-a-b.c.example.org."},
		{"example.org.", "example.org.", rota.TypeA, "_rota.a-_apex.example.org."},
		{"example.org.", rota.Name(strings.Repeat("x", 62) + ".example.org."), rota.TypeA, ""},
	} {
		g := registry{on: true, prefix: DefaultPrefix, zone: c.zone}
		k := rota.Key{Name: c.name, Type: c.typ}
		got, err := g.key(k)
		if (err != nil) != (c.want == "") || err == nil && got != (rota.Key{Name: c.want, Type: rota.TypeTXT}) {
			t.Errorf("%v: %v, %v, want %v", k, got, err, c.want)
		}
		if err == nil && (!got.Name.In(c.zone) || g.subject(got) != c.name) {
			t.Errorf("%v speaks of %v, want %v", got, g.subject(got), c.name)
		}
		if g.subject(k) != c.name || g.subject(FenceKey(c.zone)) != "_rota."+c.zone {
			t.Errorf("%v is taken for a registry record", k)
		}
	}
}

func TestLabels(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`"heritage=external-dns,external-dns/owner=me,external-dns/resource=ingress/default/x"`, "me"},
		{`"heritage=external-dns,external-dns/owner=me,external-dns/version=2,external-dns/resource="`, "me"},
		{`"heritage=external-dns," "external-dns/owner=me"`, "me"},
		{`heritage=external-dns,external-dns/owner=me`, "me"},
		{`"heritage=external-dns"`, ""},
		{`"external-dns/owner=me,heritage=external-dns"`, "not a registry"},
		{`"heritage=other,external-dns/owner=me"`, "not a registry"},
		{`"v=spf1 -all"`, "not a registry"},
		{`"heritage=external-dns,nonsense"`, "not a registry"},
		{`"3vbc0dsjF+/encrypted=="`, "not a registry"},
		{`"heritage=external-dns,external-dns/owner=a\"b\\c,x=1"`, `a"b\c`},
	} {
		text, want := c.text, c.want
		l, ok := labelsOf(rota.RRset{Data: []string{text}})
		got := l[labelOwner]
		if !ok {
			got = "not a registry"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
		if back, ok2 := labelsOf(rota.RRset{Data: []string{l.text()}}); ok && (!ok2 || fmt.Sprint(back) != fmt.Sprint(l)) {
			t.Errorf("%s comes back as %v", text, back)
		}
	}
	if _, ok := labelsOf(rota.RRset{Data: []string{`"heritage=external-dns"`, `"heritage=external-dns"`}}); ok {
		t.Error("two records are one registry")
	}
}

func FuzzLabels(f *testing.F) {
	f.Add(`"heritage=external-dns,external-dns/owner=me,external-dns/resource=rota/www.example.org"`)
	f.Add(`"heritage=external-dns," "a=\065\"\\"`)
	f.Fuzz(func(t *testing.T, data string) {
		l, ok := labelsOf(rota.RRset{Data: []string{data}})
		if !ok {
			return
		}
		if back, ok := labelsOf(rota.RRset{Data: []string{l.text()}}); !ok || fmt.Sprint(back) != fmt.Sprint(l) {
			t.Errorf("%q reads as %v and comes back as %v", data, l, back)
		}
	})
}

const ourText = `"heritage=external-dns,external-dns/owner=test,external-dns/resource=rota/www.example.test"`

func (f *fake) put(name string, t rota.Type, data ...string) {
	f.set(func() {
		f.zone[rota.Key{Name: rota.Name(name), Type: t}] = rota.RRset{Name: rota.Name(name), Type: t, TTL: 30, Data: data}
	})
}

func registered(w *world, b Backend) Options {
	o := usual(w, b)
	o.Registry = &Registry{}
	return o
}

// Each RRset has a record that says whose it is, written with it and gone with it; RRsets without one are left alone.
func TestRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.put("mail.example.test.", rota.TypeA, "198.51.100.1")
		f.put("app.example.test.", rota.TypeA, "198.51.100.2")
		f.put("_rota.a-app.example.test.", rota.TypeTXT, `"heritage=external-dns,external-dns/owner=k8s,external-dns/resource=ingress/x,external-dns/team=blue"`)
		www := service("www.example.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
		www.Safety.OnAllDown, www.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
		w := newWorld(t, www, service("mail.example.test", "192.0.2.1"), service("app.example.test", "192.0.2.1"))
		w.up("192.0.2.1", "192.0.2.2", "2001:db8::1")
		p := run(t, registered(w, f), 1)
		time.Sleep(time.Minute)
		want := func(when string, ours ...string) {
			t.Helper()
			var got []string
			f.set(func() {
				for k, s := range f.zone {
					if strings.HasSuffix(string(k.Name), "www.example.test.") {
						got = append(got, k.Name.Short()+" "+k.Type.String()+" "+strings.Join(s.Data, " "))
					}
				}
			})
			slices.Sort(got)
			slices.Sort(ours)
			if !slices.Equal(got, ours) {
				t.Errorf("%s: there is\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(ours, "\n"))
			}
		}
		txt := func(typ string) string { return "_rota." + typ + "-www.example.test TXT " + ourText }
		want("first", "www.example.test A 192.0.2.1 192.0.2.2", "www.example.test AAAA 2001:db8::1", txt("a"), txt("aaaa"))
		f.set(func() {
			if len(f.writes) != 1 {
				t.Errorf("%d writes, want all in one", len(f.writes))
			}
			var order []string
			for _, c := range f.writes[0].Changes {
				order = append(order, c.Key().String())
			}
			if got := strings.Join(order, ", "); got != "_rota.a-www.example.test TXT, _rota.aaaa-www.example.test TXT, www.example.test A, www.example.test AAAA" {
				t.Errorf("written in the order %s", got)
			}
		})
		if got := f.data("mail.example.test.", rota.TypeA); !slices.Equal(got, []string{"198.51.100.1"}) {
			t.Errorf("mail is %v", got)
		}
		if r := fmt.Sprint(p.Status().Zones[0].Reasons); strings.Count(r, "is not touched") != 2 || !strings.Contains(r, `belongs to "k8s"`) || !strings.Contains(r, "no registry record says that it is rota's (_rota.a-mail.example.test TXT)") {
			t.Errorf("reasons %s", r)
		}

		// Somebody edits our record: labels that are not rota's stay.
		f.put("_rota.a-www.example.test.", rota.TypeTXT, `"heritage=external-dns,external-dns/owner=test,external-dns/resource=service/y,external-dns/team=red"`)
		time.Sleep(time.Minute + time.Second)
		if got := f.data("_rota.a-www.example.test.", rota.TypeTXT)[0]; got != `"heritage=external-dns,external-dns/owner=test,external-dns/resource=rota/www.example.test,external-dns/team=red"` {
			t.Errorf("the edited record is now %s", got)
		}
		f.put("_rota.a-www.example.test.", rota.TypeTXT, ourText)

		w.down("192.0.2.1", "192.0.2.2", "2001:db8::1")
		time.Sleep(2 * time.Second)
		want("fallback", "www.example.test CNAME sorry.example.test.", txt("cname"))
		f.set(func() {
			last := f.writes[len(f.writes)-1].Changes
			if first := last[0].Key().String(); first != "_rota.cname-www.example.test TXT" || !strings.HasPrefix(last[len(last)-1].Key().String(), "_rota.a") {
				t.Errorf("written in the order %v", last)
			}
		})
		w.up("192.0.2.1", "192.0.2.2", "2001:db8::1")
		time.Sleep(time.Minute)

		// A person gives rota what nobody owns, then what the other one has.
		w.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test."})
		time.Sleep(2 * time.Second)
		if got := f.data("mail.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("after the import mail is %v", got)
		}
		if got := f.data("app.example.test.", rota.TypeA); !slices.Equal(got, []string{"198.51.100.2"}) {
			t.Errorf("an import that does not name the owner took app: %v", got)
		}
		w.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test.", From: "k8s", Names: []rota.Name{"app.example.test."}})
		time.Sleep(2 * time.Second)
		if got := f.data("_rota.a-app.example.test.", rota.TypeTXT); len(got) != 1 || !strings.Contains(got[0], "owner=test,external-dns/resource=rota/app.example.test,external-dns/team=blue") {
			t.Errorf("after the import the registry says %v", got)
		}
		if s := p.Status().Zones[0]; len(s.Reasons) > 0 {
			t.Errorf("reasons %v", s.Reasons)
		}

		// Released: the addresses stay, what says that they are ours goes.
		w.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test."})
		time.Sleep(time.Minute)
		want("released", "www.example.test A 192.0.2.1 192.0.2.2", "www.example.test AAAA 2001:db8::1")
		f.set(func() {
			for k := range f.zone {
				if k.Type == rota.TypeTXT {
					t.Errorf("%v is still there", k)
				}
			}
		})
		if c := reasonCode(p.Publisher); c != CodeReleased {
			t.Errorf("it says %q", c)
		}
	})
}

// A registry record that the DNS refuses keeps its RRset out: without it the RRset would be nobody's.
func TestRegistryRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.poison = "_rota.a-s3.example.test."
		f.caps.Batch = 3
		var services []rota.Service
		for i := range 9 {
			services = append(services, service(fmt.Sprintf("s%d.example.test", i), "192.0.2.1"))
		}
		p := run(t, registered(newWorld(t, services...).up("192.0.2.1"), f), 1)
		time.Sleep(time.Minute)
		f.set(func() {
			if len(f.zone) != 8*2+1 {
				t.Errorf("%d RRsets, want eight with their records and the fence", len(f.zone))
			}
		})
		if r := p.Status().Zones[0].Reasons; len(r) != 1 || r[0].Name != "s3.example.test." {
			t.Errorf("reasons %v", r)
		}
	})
}

// A zone goes from one installation to another under load: at no time do both write, no name is ever without addresses, and nothing is
// there twice.
func TestHandOver(t *testing.T) {
	for _, named := range []bool{false, true} { // by an offer, or by naming who holds it
		t.Run(fmt.Sprint("named ", named), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
				f := newFake(t)
				wa := newWorld(t, service("www.example.test", pool...), service("app.example.test", pool...)).up(pool...)
				wb := newWorld(t, service("www.example.test", pool...), service("app.example.test", pool...)).up(pool...)
				f.allowed = func(c rota.Change) error {
					if len(c.New.Data) == 0 {
						return fmt.Errorf("%v is emptied", c)
					}
					return nil
				}
				oa, ob := registered(wa, f), registered(wb, f)
				ob.Owner = func() string { return "other" }
				a := run(t, oa, 1)
				time.Sleep(time.Second)
				b := run(t, ob, 1)
				time.Sleep(time.Minute)
				if c := reasonCode(b.Publisher); c != CodeConflict {
					t.Fatalf("the second installation says %q", c)
				}
				up := true
				load := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(700 * time.Millisecond) {
						if up = !up; up {
							wa.up(pool[0])
							wb.up(pool[0])
						} else {
							wa.down(pool[0])
							wb.down(pool[0])
						}
					}
				}
				load(10 * time.Second)
				if named {
					wb.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test.", From: "somebody"})
					load(10 * time.Second)
					if c := reasonCode(b.Publisher); c != CodeConflict {
						t.Errorf("who names another takes over: %q", c)
					}
				} else {
					wa.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test.", To: "other"})
					load(10 * time.Second)
					if c := reasonCode(a.Publisher); c != CodeReleased {
						t.Errorf("who released says %q", c)
					}
					writes := f.written()
					load(time.Minute)
					if f.written() != writes {
						t.Error("somebody writes to a zone that is only offered")
					}
					if r := b.Status().Zones[0].Reasons[0]; !strings.Contains(r.Error(), "offers the zone to this installation") {
						t.Errorf("the other one says %v", r)
					}
					// Restarts and new leaders keep silent.
					a.stop()
					a = run(t, oa, 2)
					load(time.Minute)
					if f.written() != writes {
						t.Error("a new leader writes to a released zone")
					}
				}
				wb.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test.", From: "test"})
				load(20 * time.Second)
				if f := b.Status().Zones[0]; !strings.HasPrefix(f.Fence, "owner=other ") || len(f.Reasons) > 0 {
					t.Errorf("after the import: %+v", f)
				}
				if c := reasonCode(a.Publisher); named && c != CodeConflict || !named && c != CodeReleased {
					t.Errorf("the first installation says %q", c)
				}
				f.set(func() {
					owner := ""
					for _, b := range f.writes {
						fence, err := ParseFence(b.Fence.New)
						if err != nil || owner == "other" && fence.Owner != "other" {
							t.Errorf("%v wrote after the hand-over: %v", fence, err)
						}
						owner = fence.Owner
					}
					for k, s := range f.zone {
						if k.Type == rota.TypeTXT && (len(s.Data) != 1 || !strings.Contains(s.Data[0], "owner=other")) {
							t.Errorf("%v", s)
						}
					}
				})
				wb.down(pool[1])
				time.Sleep(3 * time.Second)
				if slices.Contains(f.data("www.example.test.", rota.TypeA), pool[1]) {
					t.Error("the new owner does not keep the zone")
				}
			})
		})
	}
}

// What stands in the fence record after a writer was stopped between two steps is settled by whoever may take the zone, and by nobody else.
func TestFencesOfTwo(t *testing.T) {
	a, b := Fence{Owner: "a", Epoch: 3, Seq: 7, By: "00"}, Fence{Owner: "b", Epoch: 4, By: "01"}
	offer := a.Next()
	offer.Offer = "b"
	later := Fence{Owner: "a", Epoch: 5, By: "02"}
	for _, x := range []struct {
		name   string
		fences []Fence
		one    []string // taken together
		want   Fence    // zero: nobody can say
	}{
		{"one", []Fence{a}, nil, a},
		{"two of one", []Fence{a, later}, nil, later},
		{"two", []Fence{a, b}, nil, Fence{}},
		{"an offer that was taken up", []Fence{offer, b}, nil, b},
		{"and what stood beside it", []Fence{offer, b, a}, nil, b},
		{"an offer to another", []Fence{offer, {Owner: "c", Epoch: 9, By: "03"}}, nil, Fence{}},
		{"an offer that was taken back", []Fence{offer, later, b}, nil, Fence{}},
		{"a claim from before the offer", []Fence{offer, {Owner: "b", Epoch: 2, By: "04"}}, nil, Fence{}},
		{"an offer to itself", []Fence{{Owner: "a", Epoch: 3, By: "05", Offer: "a"}, later}, nil, later},
		{"a former name", []Fence{a, b}, []string{"a", "b"}, b},
		{"two former names", []Fence{later, b}, []string{"a", "b", "c"}, later},
		{"a former name and a stranger", []Fence{a, b, {Owner: "d", Epoch: 1, By: "06"}}, []string{"a", "b"}, Fence{}},
	} {
		for range 2 {
			slices.Reverse(x.fences)
			set := rota.RRset{Name: "_rota.example.test.", Type: rota.TypeTXT}
			for _, f := range x.fences {
				set.Data = append(set.Data, quoteTXT(f.String()))
			}
			if got, err := parseFences(set, x.one); got != x.want || (err != nil) != (x.want == Fence{}) {
				t.Errorf("%s: %v, %v, want %v", x.name, got, err, x.want)
			}
		}
	}
}

// A take-over that was cut off in its middle, by a crash or a lost answer, goes on by itself, or with the order that it had.
func TestHandOverIsCutOff(t *testing.T) {
	const zone = "example.test."
	for _, x := range []struct {
		name     string
		offer    string
		formerly []string
		from     string
		heals    bool
	}{
		{"offered", "b", nil, "", true},
		{"renamed", "", []string{"a"}, "", true},
		{"named", "", nil, "a", true},
		{"nobody asked", "", nil, "", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old := Fence{Owner: "a", Epoch: 3, By: "00", Offer: x.offer}
				both := old.RRset(zone)
				both.Data = append(both.Data, old.take("b", 1).RRset(zone).Data...)
				slices.Sort(both.Data)
				f := newFake(t, both)
				w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
				if x.from != "" {
					w.order(rota.Instruction{Verb: rota.VerbImport, From: x.from})
				}
				o := usual(w, f)
				o.Owner, o.Formerly = named("b"), func() []string { return x.formerly }
				p := run(t, o, 1)
				time.Sleep(time.Minute)
				got := f.data("_rota.example.test.", rota.TypeTXT)
				if healed := len(got) == 1 && strings.Contains(got[0], "owner=b ") && len(f.dump()) > 2; healed != x.heals {
					t.Errorf("%v, zone %v", got, f.dump())
				}
				if c := reasonCode(p.Publisher); x.heals == (c == CodeConflict) {
					t.Errorf("it says %q", c)
				}
			})
		})
	}
}

// Two installations that were told to take the zone from each other do it once each: the later word counts.
func TestHandOverThereAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		wa := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
		wb := newWorld(t, service("www.example.test", "192.0.2.2")).up("192.0.2.2")
		oa, ob := usual(wa, f), usual(wb, f)
		oa.Owner, ob.Owner = named("a"), named("b")
		run(t, oa, 1)
		time.Sleep(time.Minute)
		b := run(t, ob, 1)
		wb.order(rota.Instruction{Verb: rota.VerbImport, From: "a"})
		time.Sleep(time.Minute)
		if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
			t.Fatalf("after the import www is %v", got)
		}
		wa.order(rota.Instruction{Verb: rota.VerbImport, From: "b"})
		time.Sleep(10 * time.Second)
		for range 8 {
			if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.1"}) {
				t.Fatalf("after it was taken back www is %v", got)
			}
			time.Sleep(time.Minute)
		}
		if c := reasonCode(b.Publisher); c != CodeConflict {
			t.Errorf("who lost the zone says %q", c)
		}
	})
}

// watched holds a fake's zone against what must be so between any two writes.
type watched struct {
	*fake
	look func(b Batch)
}

func (w watched) Write(ctx context.Context, b Batch) (int, error) {
	n, err := w.fake.Write(ctx, b)
	w.set(func() { w.look(b) })
	return n, err
}

// Whatever is asked for, whoever leads and whatever the DNS does with a message: no name is ever without an answer, no RRset of ours without
// its record unless the zone is being given up, no zone that was given up is written; and in the end all is as it should be.
func TestOracleOfOrders(t *testing.T) {
	pool := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	names := []rota.Name{"app.example.test.", "www.example.test."}
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) [3]int {
			return [3]int{rapid.IntRange(0, 9).Draw(rt, "what"), rapid.IntRange(0, 9).Draw(rt, "which"), rapid.IntRange(0, 5000).Draw(rt, "ms")}
		}), 1, 25).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			var services []rota.Service
			for _, n := range names {
				v := service(n.Short(), pool...)
				v.Safety.OnAllDown, v.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
				v.Safety.MaxChange = rota.MaxChange{Share: 0.5, Per: 20 * time.Second, MinRecords: 1}
				services = append(services, v)
			}
			w := newWorld(t, services...).up(pool...)
			var asked, given bool // the zone is to be given up, and is
			struck := false       // records of the registry may be gone for that
			f := newFake(t)
			back := watched{f, func(b Batch) {
				if given {
					t.Errorf("a write to a zone that was given up: %v", b)
				}
				given = asked && len(f.zone[FenceKey(b.Zone)].Data) == 0
				bare := false
				for _, n := range names {
					answers := 0
					for _, at := range []rota.Type{rota.TypeA, rota.TypeCNAME} {
						s := f.zone[rota.Key{Name: n, Type: at}]
						answers += min(len(s.Data), 1)
						key, err := registry{prefix: DefaultPrefix, zone: b.Zone}.key(rota.Key{Name: n, Type: at})
						if err != nil || len(s.Data) > 0 && len(f.zone[key].Data) == 0 {
							bare = true
						}
					}
					if answers != 1 && len(f.writes) > 1 {
						t.Errorf("%s has %d kinds of answers after %v", n, answers, b.Changes)
					}
				}
				if bare && !struck {
					t.Errorf("an RRset has no record that says whose it is: %v", b.Changes)
				}
				struck = struck && (asked || bare)
			}}
			var past []Past
			o := registered(w, back)
			o.Record = func(_ context.Context, p rota.Published) error {
				past = append(past, Past{time.Now(), p})
				return nil
			}
			o.Recent = func(rota.Name) []Past { return slices.Clone(past) }
			p := run(t, o, 1)
			time.Sleep(2 * time.Second)
			term := uint64(1)
			for _, s := range steps {
				switch a := pool[s[1]%len(pool)]; s[0] {
				case 0, 1:
					w.down(a)
				case 2:
					w.up(a)
				case 3:
					w.down(pool...)
				case 4:
					f.set(func() { f.faults = append(f.faults, fault(s[1]%7)) })
				case 5:
					f.release()
				case 6:
					p.stop()
					term++
					p = run(t, o, term)
				case 7:
					w.order(rota.Instruction{Verb: rota.VerbRefresh, Names: names[s[1]%2:][:1]})
				case 8:
					f.set(func() { asked, struck = true, true })
					w.order(rota.Instruction{Verb: rota.VerbRelease})
				case 9:
					f.set(func() { asked, given = false, false })
					w.order(rota.Instruction{Verb: rota.VerbImport})
				}
				time.Sleep(time.Duration(s[2]) * time.Millisecond)
			}
			f.set(func() { f.faults, asked, given = nil, false, false })
			w.order(rota.Instruction{Verb: rota.VerbImport})
			w.up(pool...)
			time.Sleep(5 * time.Minute)
			f.release()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			for _, n := range names {
				if got := f.data(string(n), rota.TypeA); !slices.Equal(got, pool) {
					t.Errorf("%s is %v", n, got)
				}
			}
			if s := p.Status().Zones[0]; len(s.Reasons) > 0 || s.Drift != 0 || len(f.zone) != 5 {
				t.Errorf("%d RRsets, reasons %v, drift %d", len(f.zone), s.Reasons, s.Drift)
			}
		})
		if t.Failed() {
			rt.Fatalf("steps %v", steps)
		}
	})
}

// A released zone is anybody's, and comes back by an import.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		p := run(t, usual(w, f), 1)
		time.Sleep(time.Minute)
		w.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test."})
		time.Sleep(time.Second)
		f.set(func() { f.tries = nil })
		w.down("192.0.2.1")
		w.respec(func(s *rota.Spec) { s.Services = nil })
		time.Sleep(time.Hour)
		f.set(func() {
			if len(f.tries) > 0 || len(f.zone) != 1 {
				t.Errorf("%d writes to a released zone, which holds %v", len(f.tries), f.zone)
			}
		})
		if plan, err := p.Plan(t.Context()); err != nil || len(plan.Zones) != 1 || plan.Zones[0].Reasons[0].Code != CodeReleased || len(plan.Zones[0].Changes) > 0 {
			t.Errorf("plan %+v, %v", plan, err)
		}
		w.respec(func(s *rota.Spec) { s.Services = []rota.Service{service("www.example.test", "192.0.2.1", "192.0.2.2")} })
		w.up("192.0.2.1", "192.0.2.2").down("192.0.2.1")
		w.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test."})
		time.Sleep(2 * time.Second)
		if got := f.data("www.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
			t.Errorf("after the import it has %v", got)
		}
	})
}

// A refresh adds first and takes out when that was read back, once an order; a new leader may do it again and harms nothing.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2"), service("app.example.test", "192.0.2.1")).up("192.0.2.1", "192.0.2.2")
		p := run(t, registered(w, f), 1)
		time.Sleep(time.Minute)
		f.put("www.example.test.", rota.TypeA, "203.0.113.1")
		f.put("app.example.test.", rota.TypeA, "203.0.113.1")
		f.set(func() { f.writes = nil })
		w.order(rota.Instruction{Verb: rota.VerbRefresh, Names: []rota.Name{"www.example.test."}})
		time.Sleep(time.Second)
		f.set(func() {
			var got []string
			for _, b := range f.writes {
				got = append(got, fmt.Sprint(b.Changes))
			}
			want := []string{
				"[www.example.test A +192.0.2.1 +192.0.2.2]",
				"[app.example.test A -203.0.113.1 +192.0.2.1 www.example.test A -203.0.113.1]",
			}
			if !slices.Equal(got, want) {
				t.Errorf("writes %q, want %q", got, want)
			}
		})
		w.down("192.0.2.1")
		time.Sleep(2 * time.Second)
		if n := f.written(); n != 3 {
			t.Errorf("%d writes, want the order to count once", n)
		}
		p.stop()
		run(t, registered(w, f), 2)
		time.Sleep(time.Minute)
		if n := f.written(); n != 3 {
			t.Errorf("%d writes, want none by a new leader", n)
		}
	})
}

// Whoever asks for a look gets it at once, however long the publisher would have waited.
func TestApplyLooksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := newWorld(t, service("www.example.test", "192.0.2.1")).up("192.0.2.1")
		f.dark = true
		run(t, usual(w, f), 1)
		time.Sleep(10 * time.Minute)
		f.set(func() { f.dark, f.reads = false, 0 })
		w.order(rota.Instruction{Verb: rota.VerbApply})
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := f.data("www.example.test.", rota.TypeA); len(got) != 1 {
			t.Errorf("it has %v after %d reads", got, f.reads)
		}
	})
}

// dryRunOnWire counts what a server is sent by a publisher that may not write.
func dryRunOnWire(t *testing.T, x *target) {
	var updates atomic.Int32
	x.road.Set(func(p peers.Packet) [][]byte {
		if p.Query && p.Update() {
			updates.Add(1)
		}
		return [][]byte{p.Wire}
	})
	before := x.others()
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(w, x.backend())
	o.DryRun, o.Registry = true, &Registry{}
	p := run(t, o, 1)
	eventually(t, "says what it would write", func() bool { return reasonCode(p.Publisher) == CodeDryRun })
	w.down("192.0.2.1")
	w.order(rota.Instruction{Verb: rota.VerbRefresh, Names: []rota.Name{"www.example.test."}})
	w.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test.", From: "x"})
	w.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test.", To: "x"})
	eventually(t, "is released", func() bool { return reasonCode(p.Publisher) == CodeReleased })
	if _, err := p.Plan(t.Context()); err != nil {
		t.Error(err)
	}
	if n := updates.Load(); n > 0 {
		t.Errorf("%d updates in a dry run", n)
	}
	if after := x.others(); !slices.Equal(before, after) {
		t.Errorf("the zone was\n%v\nand is\n%v", before, after)
	}
}

// ownership is the registry and a hand-over on a real server: what others keep stays as it is.
func ownership(t *testing.T, x *target) {
	before := x.others()
	pool := []string{"192.0.2.1", "192.0.2.2"}
	services := []rota.Service{service("new.example.test", pool...), service("example.test", pool...), service("mail.example.test", pool...)}
	wa, wb := newWorld(t, services...).up(pool...), newWorld(t, services...).up(pool...)
	oa, ob := quick(wa, x.backend()), quick(wb, x.backend())
	oa.Registry, ob.Registry = &Registry{}, &Registry{}
	ob.Owner = named("second one")
	a := run(t, oa, 1)
	eventually(t, "new", x.holds("new.example.test.", dns.TypeA, pool...))
	eventually(t, "the apex", x.holds("example.test.", dns.TypeA, pool...))
	eventually(t, "the registry", func() bool {
		return len(x.server.Lookup("_rota.a-new.example.test.", dns.TypeTXT)) == 1 && len(x.server.Lookup("_rota.a-_apex.example.test.", dns.TypeTXT)) == 1
	})
	eventually(t, "mail is not ours", func() bool { return reasonCode(a.Publisher) == CodeNotOwned })
	b := run(t, ob, 1)
	eventually(t, "conflict", func() bool { return reasonCode(b.Publisher) == CodeConflict })
	wa.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test.", To: "second one"})
	eventually(t, "released", func() bool { return reasonCode(a.Publisher) == CodeReleased })
	if f := x.fence(); f.Owner != "test" || f.Offer != "second one" {
		t.Errorf("the fence says %v", f)
	}
	wb.order(rota.Instruction{Verb: rota.VerbImport, Publisher: testPublisher, Zone: "example.test.", From: "test", Names: []rota.Name{"new.example.test.", "example.test."}})
	wb.down(pool[0])
	eventually(t, "handed over", x.holds("new.example.test.", dns.TypeA, pool[1]))
	eventually(t, "the registry names the new owner", func() bool {
		return strings.Contains(fmt.Sprint(x.server.Lookup("_rota.a-new.example.test.", dns.TypeTXT)), "owner=second+one,")
	})
	if f := x.fence(); f.Owner != "second one" || f.Offer != "" {
		t.Errorf("the fence says %v", f)
	}
	wb.order(rota.Instruction{Verb: rota.VerbRelease, Publisher: testPublisher, Zone: "example.test."})
	eventually(t, "released for good", func() bool {
		return len(x.server.Lookup("_rota.example.test.", dns.TypeTXT)) == 0 && len(x.server.Lookup("_rota.a-new.example.test.", dns.TypeTXT)) == 0
	})
	if diff := cmp.Diff(before, x.others("new.example.test. 30 IN A", "example.test. 30 IN A")); diff != "" {
		t.Errorf("foreign records changed:\n%s", diff)
	}
}

// A CNAME takes a name over from records that are all ours, or not at all: half of a name would be lost.
func TestTakeoverNeedsAll(t *testing.T) {
	v := service("www.example.test", "192.0.2.1", "2001:db8::1")
	v.Safety.OnAllDown, v.Safety.Fallback = rota.OnAllDownFallback, "sorry.example.test."
	w := newWorld(t, v).up("192.0.2.1", "2001:db8::1").down("192.0.2.1", "2001:db8::1")
	d := desire{
		state: w.State(), wants: slices.Collect(w.State().Wants(testPublisher)),
		registry: registry{on: true, prefix: DefaultPrefix, zone: "example.test.", owner: "test", ttl: 60},
	}
	have := Reading{Sets: []rota.RRset{
		{Name: "www.example.test.", Type: rota.TypeA, TTL: 30, Data: []string{"192.0.2.1"}},
		{Name: "www.example.test.", Type: rota.TypeAAAA, TTL: 30, Data: []string{"2001:db8::1"}},
	}}
	for _, owned := range []string{"a", "aaaa"} {
		ours := rota.RRset{Name: rota.Name("_rota." + owned + "-www.example.test."), Type: rota.TypeTXT, TTL: 60, Data: []string{
			labels{labelOwner: "test", labelResource: "rota/www.example.test"}.text(),
		}}
		have.Sets = append(have.Sets, ours)
		p := d.decide("example.test.", have, leavings{}, time.Now())
		last := owned == "aaaa" // then all are
		if takes := len(p.Changes) > 0; takes != last || last == (len(p.Reasons) > 0) || !last && p.Reasons[0].Code != CodeNotOwned {
			t.Errorf("with the record of %s: %v, %v", owned, p.Changes, p.Reasons)
		}
	}
}
