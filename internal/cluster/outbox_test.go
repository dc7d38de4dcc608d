package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// TestPace is the table of when a vantage sends. Each line is a moment: what there is, whether that is sent, what comes of it, and when it
// wants to be asked again.
func TestPace(t *testing.T) {
	one, two := rota.NewTable([]rota.TargetID{"a", "b"}), rota.NewTable([]rota.TargetID{"a", "c"})
	up, down := &rota.Opinion{Target: "a", Status: rota.Up}, &rota.Opinion{Target: "a", Status: rota.Down}
	reports := map[byte]*rota.Report{
		'u': {Opinions: []*rota.Opinion{up}}, 'U': {Seq: 2, Opinions: []*rota.Opinion{up}}, // the same, published again
		'd': {Opinions: []*rota.Opinion{down}}, 'x': {Opinions: []*rota.Opinion{up}, Abstain: "uplink"},
	}
	tables := map[byte]*rota.Table{'1': one, '!': rota.NewTable(one.Targets()), '2': two}
	for name, story := range map[string]string{
		"nothing changes": `
			0s u1a sent ok 10s
			1s u1a wait 10s
			9.999s u1a wait 10s
			10s u1a sent ok 20s
			25s u1a sent ok 35s`,
		"published again": `
			0s u1a sent ok 10s
			5s U!a wait 10s`,
		"changes are gathered": `
			0s u1a sent ok 10s
			5s d1a wait 5.05s
			5.02s x1a wait 5.05s
			5.05s x1a sent ok 15.05s`,
		"many changes": `
			0s u1a sent ok 10s
			0.1s d1a wait 500ms
			0.5s d1a sent ok 10.5s
			0.6s u1a wait 1s
			1s u1a sent ok 11s`,
		"changed and changed back": `
			0s u1a sent ok 10s
			5s d1a wait 5.05s
			5.04s u1a wait 10s`,
		"due before the change is gathered": `
			0s u1a sent ok 10s
			9.99s d1a wait 10s
			10s d1a sent ok 20s`,
		"nobody leads": `
			0s u1- wait never
			9s u1b sent ok 19s
			10s d1- wait never
			11s d1b wait 11.05s`,
		"a new leader hears at once": `
			0s u1a sent ok 10s
			0.01s u1b sent ok 10.01s
			0.02s u1a sent ok 10.02s`,
		"failures": `
			0s u1a sent fail 1s
			0.5s u1a wait 1s
			1s u1a sent fail 3s
			3s u1a sent fail 7s
			7s u1a sent fail 15s
			15s u1a sent fail 25s
			25s u1a sent fail 35s
			35s u1a sent ok 45s`,
		"news do not hurry what fails": `
			0s u1a sent fail 1s
			0.1s d1a wait 1s
			1s d1a sent fail 3s
			1.5s u1a wait 3s`,
		"other targets do": `
			0s u1a sent fail 1s
			1s u1a sent fail 3s
			1.5s u2a wait 1.55s
			1.55s u2a sent ok 11.55s`,
		"a new leader forgets failures": `
			0s u1a sent fail 1s
			1s u1a sent fail 3s
			1.1s u1b sent fail 2.1s`,
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			begin := time.Now()
			for _, line := range strings.Split(strings.TrimSpace(story), "\n") {
				f := strings.Fields(line)
				d, err := time.ParseDuration(f[0])
				if err != nil {
					t.Fatal(err)
				}
				s := sending{reports[f[1][0]], tables[f[1][1]], strings.Trim(f[1][2:], "-")}
				now := begin.Add(d)
				due, wake := p.due(now, s)
				if due != (f[2] == "sent") {
					t.Fatalf("%s: due is %v", line, due)
				}
				if due {
					p.begin(now, s)
					p.end(map[string]error{"fail": errors.New("no")}[f[3]])
					if due, wake = p.due(now, s); due {
						t.Fatalf("%s: due again at once", line)
					}
				}
				got := "never"
				if !wake.IsZero() {
					got = wake.Sub(begin).String()
				}
				if want := f[len(f)-1]; got != want {
					if d, err := time.ParseDuration(want); err != nil || wake.Sub(begin) != d {
						t.Fatalf("%s: wakes at %s", line, got)
					}
				}
			}
		})
	}
}

// post is a place of which an Outbox sends, and where that goes.
type post struct {
	mu     sync.Mutex
	report latest[*rota.Report]
	table  latest[*rota.Table]
	leader latest[string]
	sent   []string // when, to whom, number
	fail   error
	hang   string // the leader that never answers
}

func (p *post) box(log func(string)) *Outbox {
	return &Outbox{
		Vantage: "a",
		Report:  func() *rota.Report { v, _ := p.report.load(); return v },
		Table:   func() *rota.Table { v, _ := p.table.load(); return v },
		Leader:  func() string { v, _ := p.leader.load(); return v },
		Send: func(ctx context.Context, b []byte) error {
			e, err := rota.ReadEnvelope(b)
			if err != nil {
				return err
			}
			to, _ := p.leader.load()
			p.mu.Lock()
			log(fmt.Sprintf("%s#%d", to, e.Seq))
			fail, hang := p.fail, p.hang == to
			p.mu.Unlock()
			if hang {
				<-ctx.Done()
				return ctx.Err()
			}
			return fail
		},
		ReportChanged: func() <-chan struct{} { _, c := p.report.load(); return c },
		TableChanged:  func() <-chan struct{} { _, c := p.table.load(); return c },
		LeaderChanged: func() <-chan struct{} { _, c := p.leader.load(); return c },
	}
}

func TestOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{}
		begin := time.Now()
		log := func(s string) { p.sent = append(p.sent, time.Since(begin).String()+" "+s) }
		want := func(lines ...string) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if fmt.Sprint(p.sent) != fmt.Sprint(lines) {
				t.Errorf("sent %q, want %q", p.sent, lines)
			}
			p.sent = nil
			begin = time.Now()
		}
		set := func(fail error, hang string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.fail, p.hang = fail, hang
		}
		table := rota.NewTable([]rota.TargetID{"a"})
		p.table.store(table)
		p.report.store(&rota.Report{})
		p.leader.store("")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		box := p.box(log)
		go func() { done <- box.Run(ctx) }()
		time.Sleep(time.Minute)
		want() // nobody leads
		p.leader.store("n1")
		time.Sleep(25 * time.Second)
		want("0s n1#1", "10s n1#2", "20s n1#3")
		// A change, and another one right behind it.
		p.report.store(&rota.Report{Opinions: []*rota.Opinion{{Target: "a", Status: rota.Up}}})
		time.Sleep(10 * time.Millisecond)
		p.report.store(&rota.Report{Opinions: []*rota.Opinion{{Target: "a", Status: rota.Down}}})
		time.Sleep(time.Second)
		want("50ms n1#4")
		p.leader.store("n2")
		time.Sleep(time.Second)
		want("0s n2#5")
		// The leader hangs: the report fails after five seconds, and a new leader need not wait for that.
		set(nil, "n2")
		time.Sleep(16 * time.Second)
		want("9s n2#6", "14s n2#7")
		p.leader.store("n3")
		time.Sleep(time.Second)
		want("0s n3#8")
		set(errors.New("no"), "")
		p.table.store(rota.NewTable([]rota.TargetID{"b"}))
		time.Sleep(2 * time.Second)
		want("50ms n3#9", "1.05s n3#10")
		set(nil, "n3")
		time.Sleep(1500 * time.Millisecond) // a send hangs now
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestOutboxWithoutSignals looks again each time it sends, when nobody tells it what changed and who leads.
func TestOutboxWithoutSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &post{}
		p.table.store(rota.NewTable(nil))
		p.report.store(&rota.Report{})
		p.leader.store("x")
		sent := 0
		box := p.box(func(string) { sent++ })
		box.Leader, box.ReportChanged, box.TableChanged, box.LeaderChanged = nil, nil, nil, nil
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour-time.Second)
		defer cancel()
		if err := box.Run(ctx); err != nil || sent != 360 {
			t.Errorf("%v: %d reports in an hour", err, sent)
		}
	})
}

// TestOutboxToInbox connects both: a report in which nothing moved is sent each ten seconds for an hour, and the verdicts stand; a change
// is a verdict within the time that gathering it takes.
func TestOutboxToInbox(t *testing.T) {
	judged(t, spec(1, 3), func(b *bench) {
		in := NewInbox(b.Node, nil)
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		posts := map[string]*post{}
		for _, name := range []string{"a", "b"} {
			p := &post{}
			posts[name] = p
			p.table.store(b.State().Table())
			v := b.vantage(in, name)
			p.report.store(mustRead(b, v.table, v.pack()))
			p.leader.store("x")
			box := p.box(func(string) {})
			box.Vantage = name
			box.Send = func(_ context.Context, packed []byte) error { return in.Take(name, "", 0, packed) }
			wg.Go(func() { _ = box.Run(ctx) })
		}
		b.want(0, rota.Up)
		before := b.State().Index()
		time.Sleep(time.Hour)
		if b.State().Index() != before {
			b.Error("events at rest")
		}
		st, _ := in.Stats()
		if st[0].Taken != 361 || st[0].Unchanged != 360 || len(st[0].Refused) != 0 {
			b.Errorf("%+v", st[0])
		}
		for name, p := range posts {
			v := b.vantage(in, name)
			v.hold(rota.Down, 0)
			p.report.store(mustRead(b, v.table, v.pack()))
		}
		time.Sleep(reportGap)
		b.want(0, rota.Down)
		cancel()
		wg.Wait()
	})
	n := mustOpen(t, t.TempDir())
	in := NewInbox(n, nil)
	mustClose(t, n)
	if err := in.Take("a", "", 0, nil); !errors.Is(err, ErrNotLeader) {
		t.Errorf("a node that does not lead: %v", err)
	}
}

func mustRead(b *bench, t *rota.Table, packed []byte) *rota.Report {
	b.Helper()
	r, err := new(rota.Unpacker).Unpack(t, packed, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	return r
}
