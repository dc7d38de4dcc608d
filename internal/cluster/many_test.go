package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
	"github.com/rota-dns/rota/internal/sim"
)

// many is a cluster in a synctest bubble.
type many struct {
	*testing.T
	net   *sim.Network
	dirs  map[string]string
	nodes map[string]*Node // that run, by name, which is also their address

	reach sync.Map // the same nodes, for those who call them

	cluster string
	through map[string]func(store) store
	sent    atomic.Int64 // reports that went from one node to another
	lostFor atomic.Int64 // answers to forwarded events that are to be lost
}

// bubble runs f with a cluster of the named nodes, all of them voters, the first of which has begun it.
func bubble(t *testing.T, f func(m *many), names ...string) {
	dirs := map[string]string{}
	for _, x := range append([]string{"spare", "other"}, names...) {
		dirs[x] = filepath.Join(t.TempDir(), x)
	}
	synctest.Test(t, func(t *testing.T) {
		m := &many{T: t, net: sim.NewNetwork(1), dirs: dirs, nodes: map[string]*Node{}, through: map[string]func(store) store{}}
		defer m.stopAll()
		first := m.start(names[0], func(o *Options) { o.Network.Bootstrap = true })
		m.cluster = first.id.Cluster
		led(t, first)
		for _, x := range names[1:] {
			n := m.start(x)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := first.AddVoter(ctx, Member{ID: n.id.Node, Name: x, Address: x}); err != nil {
				t.Fatalf("AddVoter %s: %v", x, err)
			}
			cancel()
		}
		m.settle()
		f(m)
	})
}

func (m *many) options(name string) Options {
	return Options{Dir: m.dirs[name], Node: name, Log: m.log(name), Network: &Network{
		Address: name, Cluster: m.cluster, Site: "site-" + name,
		Transport: func(Identity) (raft.Transport, error) { return m.net.Transport(name), nil },
		Forward: func(ctx context.Context, leader Member, e rota.Event) (out rota.Event, err error) {
			to := m.at(leader)
			if to == nil {
				return e, ErrUnanswered
			}
			var last error
			if err := m.net.Call(ctx, name, leader.Address, func(ctx context.Context) error {
				out, last = to.AppendHere(ctx, e)
				return nil
			}); err != nil {
				return e, fmt.Errorf("%w: %w", ErrUnanswered, err)
			}
			if last == nil && m.lostFor.Add(-1) >= 0 {
				return e, ErrUnanswered
			}
			return out, last
		},
	}}
}

func (m *many) log(name string) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(m.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("on", name)
}

func (m *many) open(name string, change ...func(*Options)) (*Node, error) {
	o := m.options(name)
	for _, c := range change {
		c(&o)
	}
	through := m.through[name]
	if through == nil {
		through = func(s store) store { return s }
	}
	return open(o, through)
}

func (m *many) start(name string, change ...func(*Options)) *Node {
	m.Helper()
	n, err := m.open(name, change...)
	if err != nil {
		m.Fatalf("open %s: %v", name, err)
	}
	m.nodes[name] = n
	m.reach.Store(name, n)
	return n
}

func (m *many) at(x Member) *Node {
	n, _ := m.reach.Load(x.Address)
	at, _ := n.(*Node)
	return at
}

// kill takes a node away without a word: what the others see of a SIGKILL.
func (m *many) kill(name string) {
	m.Helper()
	var all []string
	for x := range m.dirs {
		all = append(all, x)
	}
	m.net.Split([]string{name}, all)
	m.stop(name)
	m.net.Heal()
}

func (m *many) stop(name string) {
	m.Helper()
	mustClose(m, m.nodes[name])
	m.reach.Delete(name)
	delete(m.nodes, name)
}

func (m *many) stopAll() {
	var wg sync.WaitGroup
	for _, n := range m.nodes {
		wg.Go(func() { _ = n.Close() })
	}
	wg.Wait()
}

// leader waits until exactly one running node leads and the others follow it.
func (m *many) leader() *Node {
	m.Helper()
	for range 600 {
		var found *Node
		follow := 0
		for _, n := range m.nodes {
			if r, _ := n.round.load(); r != nil {
				found = n
			}
		}
		for _, n := range m.nodes {
			if l, ok := n.Leader(); ok && found != nil && l.ID == found.id.Node {
				follow++
			}
		}
		if found != nil && follow == len(m.nodes) {
			return found
		}
		time.Sleep(50 * time.Millisecond)
	}
	m.Fatal("no leader that all follow")
	return nil
}

func (m *many) follower() *Node {
	m.Helper()
	l := m.leader()
	for _, x := range []string{"a", "b", "c", "d", "e"} {
		if n := m.nodes[x]; n != nil && n != l {
			return n
		}
	}
	m.Fatal("no follower")
	return nil
}

// settle waits until all running nodes hold the same state, and returns it.
func (m *many) settle() *rota.State {
	m.Helper()
	l := m.leader()
	for range 600 {
		same := true
		for _, n := range m.nodes {
			same = same && n.State().Index() == l.State().Index() && len(n.State().Nodes()) == len(l.Members())
		}
		if same {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, n := range m.nodes {
		same(m, l.State(), n.State())
	}
	return l.State()
}

func names(ms []Member) string {
	var out []string
	for _, x := range ms {
		s := x.Label()
		if !x.Voter {
			s += "?"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestMany(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l, f := m.leader(), m.follower()
		for _, n := range m.nodes {
			if got := names(n.Members()); got != "a b c" {
				t.Errorf("%s knows %s", n.name, got)
			}
			s := n.Status()
			if !s.Healthy || s.Leader != l.name || s.Voters != 3 || !s.Voter || s.Cluster != m.cluster || !s.Since.IsZero() {
				t.Errorf("status of %s: %+v", n.name, s)
			}
		}
		time.Sleep(3 * time.Second) // each has said its name and site
		m.settle()
		time.Sleep(time.Second)
		for _, x := range l.Members() {
			if x.LastContact < 0 || x.LastContact > time.Second || x.Trailing != 0 || x.Site != "site-"+x.Name || x.Address != x.Name {
				t.Errorf("the leader says %+v", x)
			}
		}
		// An event is taken anywhere; here, only by the leader.
		if _, err := f.AppendHere(t.Context(), rota.Event{Kind: rota.EventTick}); !errors.Is(err, ErrNotLeader) {
			t.Errorf("AppendHere on a follower: %v", err)
		}
		e := mustAppend(t, f, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 2)})
		if e.Index == 0 || e.Actor != f.name {
			t.Errorf("forwarded as %+v", e)
		}
		m.settle()
		// What is refused is refused in the leader's words, once.
		before := l.State().Index()
		bad := drain(0, l.State())
		bad.Overrides[0].Endpoint.Service = "nowhere.test."
		if _, err := f.Append(t.Context(), bad); err == nil || errors.Is(err, ErrUnanswered) {
			t.Errorf("a bad event: %v", err)
		}
		if _, err := f.Append(t.Context(), rota.Event{Kind: "from-the-future"}); err == nil || !strings.Contains(err.Error(), "kind") {
			t.Errorf("an event of no known kind: %v", err)
		}
		if got := l.State().Index(); got != before+1 {
			t.Errorf("%d entries for one refused event and one that was not ordered", got-before)
		}
	}, "a", "b", "c")
}

// TestLostAnswer loses the answers to a forwarded event that was applied: it counts once.
func TestLostAnswer(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		f := m.follower()
		mustAppend(t, f, rota.Event{Kind: rota.EventSpec, Spec: spec(2, 2)})
		before := m.settle().Index()
		m.lostFor.Store(3)
		e := mustAppend(t, f, drain(0, m.leader().State()))
		if got := m.settle().Index(); got != before+1 || e.Index != got {
			t.Errorf("index %d, then %d; the event is %d", before, got, e.Index)
		}
		// Also when the leader that took it is no longer the one that is asked.
		l := m.leader()
		m.lostFor.Store(1)
		old := e
		e = drain(1, l.State())
		e.ID = "once"
		mustAppend(t, f, e)
		m.lostFor.Store(0)
		if err := l.Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		m.leader()
		again := mustAppend(t, f, e)
		if r := m.leader().Records(old.Index, 0); again.Index != old.Index+1 {
			t.Errorf("the second sending is event %d: %+v", again.Index, r)
		}
	}, "a", "b", "c")
}

// TestLeaderDies is L1: nothing acknowledged is lost, and somebody leads within 5 s.
func TestLeaderDies(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		for round := range 4 {
			l := m.leader()
			e := mustAppend(t, l, drain(round, l.State()))
			m.kill(l.name)
			begun := time.Now()
			next := m.follower()
			mustAppend(t, next, drain(round+10, next.State()))
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("the first write came %v after the leader's death", took)
			}
			m.start(l.name)
			s := m.settle()
			if s.Index() <= e.Index || s.Override(e.Overrides[0].Endpoint) == nil {
				t.Fatalf("the acknowledged event %d is lost", e.Index)
			}
		}
	}, "a", "b", "c")
}

// TestLeaderIsolated is L2 and L4: the leader without a majority stops leading within its lease, nobody can write there, and it says
// since when what it shows may be old.
func TestLeaderIsolated(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		mustAppend(t, l, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		m.settle()
		ended := make(chan time.Time, 10)
		go func() {
			_ = l.Lead(t.Context(), func(ctx context.Context, _ uint64) error {
				<-ctx.Done()
				ended <- time.Now()
				return nil
			})
		}()
		synctest.Wait()
		cut := time.Now()
		var rest []string
		for x := range m.nodes {
			if x != l.name {
				rest = append(rest, x)
			}
		}
		m.net.Split([]string{l.name}, rest)
		if took := (<-ended).Sub(cut); took > 2*DefaultHeartbeat {
			t.Errorf("led for %v after the cut", took)
		}
		before := l.State()
		if _, err := l.Append(t.Context(), drain(0, before)); err == nil {
			t.Error("a node without a majority took an event")
		} else if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrNotLeader) {
			t.Errorf("the error is %v", err)
		}
		if err := l.Confirm(t.Context(), l.Status().Term); !errors.Is(err, ErrNotLeader) {
			t.Errorf("Confirm: %v", err)
		}
		time.Sleep(30 * time.Second)
		if s := l.Status(); s.Healthy || s.Leader != "" || s.Since.IsZero() || s.Since.Sub(cut).Abs() > 3*DefaultHeartbeat {
			t.Errorf("cut off at %v, it says %+v", cut, s)
		}
		if l.State().Serial() != before.Serial() {
			t.Error("the state changed without a majority")
		}
		alone := m.nodes[l.name]
		delete(m.nodes, l.name)
		mustAppend(t, m.leader(), drain(1, before)) // the others go on
		m.nodes[l.name] = alone
		m.net.Heal()
		m.settle()
		if s := alone.Status(); !s.Healthy || !s.Since.IsZero() {
			t.Errorf("healed, it says %+v", s)
		}
	}, "a", "b", "c")
}

// TestOneWay is L3: who can speak but hears nothing cannot unseat a leader by calling elections without end.
func TestOneWay(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l, f := m.leader(), m.follower()
		term := l.Status().Term
		for x := range m.nodes {
			if x != f.name {
				m.net.Cut(x, f.name)
			}
		}
		for range 20 {
			time.Sleep(5 * time.Second)
			if _, err := l.AppendHere(t.Context(), rota.Event{Kind: rota.EventTick}); err != nil {
				t.Fatalf("cannot write: %v", err)
			}
		}
		m.net.Heal()
		m.settle()
		if now := m.leader().Status().Term; now > term+1 {
			t.Errorf("from term %d to term %d", term, now)
		}
	}, "a", "b", "c")
}

// TestSplits is L5: five nodes, ten splits under load. Every acknowledged event is in the end in all states, in the order it was
// acknowledged in, once.
func TestSplits(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(40, 2)})
		m.settle()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		acked := map[string]uint64{}
		for _, x := range []string{"a", "b", "c", "d", "e"} {
			n := m.nodes[x]
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					e := drain(i, n.State())
					e.ID = fmt.Sprint(x, i)
					if got, err := n.Append(ctx, e); err == nil {
						mu.Lock()
						acked[e.ID] = got.Index
						mu.Unlock()
					}
					time.Sleep(time.Second)
				}
			})
		}
		sides := [][2][]string{
			{{"a", "b"}, {"c", "d", "e"}}, {{"c", "d"}, {"a", "b", "e"}}, {{"e", "a"}, {"b", "c", "d"}}, {{"b"}, {"a", "c", "d", "e"}}, {{"d", "e"}, {"a", "b", "c"}},
		}
		for i := range 10 {
			m.net.Split(sides[i%5][0], sides[i%5][1])
			time.Sleep(8 * time.Second)
			m.net.Heal()
			time.Sleep(4 * time.Second)
		}
		cancel()
		wg.Wait()
		s := m.settle()
		if len(acked) < 200 {
			t.Errorf("only %d events were taken", len(acked))
		}
		at := map[string]uint64{}
		for _, r := range m.leader().Records(0, 0) {
			if id := r.Event.ID; id != "" && r.Refused == "" {
				if other := at[id]; other != 0 {
					t.Errorf("%s is event %d and %d", id, other, r.Event.Index)
				}
				at[id] = r.Event.Index
			}
		}
		oldest := m.leader().Records(0, 0)[0].Event.Index
		for id, index := range acked {
			if index >= oldest && at[id] != index {
				t.Errorf("%s was acknowledged as event %d and is %d", id, index, at[id])
			}
		}
		if s.Index() == 0 {
			t.Error("no state")
		}
	}, "a", "b", "c", "d", "e")
}

// TestUncommitted restarts a node whose log ends with what no majority ever held. It must not show it.
func TestUncommitted(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		mustAppend(t, l, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		m.settle()
		time.Sleep(2 * tendEvery)
		before := l.State()
		var rest []string
		for x := range m.nodes {
			if x != l.name {
				rest = append(rest, x)
			}
		}
		m.net.Split([]string{l.name}, rest)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := l.AppendHere(ctx, drain(0, before)); err == nil {
			t.Fatal("taken without a majority")
		}
		cancel()
		last := l.raft.Load().LastIndex()
		m.stop(l.name)
		again := m.start(l.name)
		if got := again.raft.Load().LastIndex(); got != last || again.State().Index() != before.Index() {
			t.Errorf("the log ends at %d (was %d), the state shows event %d, want %d", got, last, again.State().Index(), before.Index())
		}
		if s := again.Status(); s.Since.IsZero() || s.Healthy {
			t.Errorf("it claims to be current: %+v", s)
		}
		m.net.Heal()
		m.settle()
	}, "a", "b", "c")
}

// A node of many that was killed before it saved its state serves, before it heard anybody, what it served before. Without a mark that it can
// trust, it serves what it saved.
func TestKilledBeforeItSaved(t *testing.T) {
	for name, x := range map[string]struct {
		spoil  func(mark []byte) []byte
		newest bool
	}{
		"as it was":       {func(b []byte) []byte { return b }, true},
		"no mark":         {func([]byte) []byte { return nil }, false},
		"a torn mark":     {func(b []byte) []byte { b[3] ^= 1; return b }, false},
		"of another log":  {func(b []byte) []byte { return markOf(binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])+1) }, false},
		"beyond the log":  {func(b []byte) []byte { return markOf(binary.BigEndian.Uint64(b)+100, binary.BigEndian.Uint64(b[8:])) }, false},
		"a short file":    {func(b []byte) []byte { return b[:10] }, false},
		"more than there": {func(b []byte) []byte { return append(b, 1, 2, 3) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(m *many) {
				t := m.T
				mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
				m.settle()
				time.Sleep(2 * tendEvery)
				n := m.follower()
				dir := m.dirs[n.name]
				saved, err := os.ReadFile(filepath.Join(dir, stateFile))
				if err != nil {
					t.Fatal(err)
				}
				before := n.State().Index()
				mustAppend(t, m.leader(), drain(0, n.State()))
				after := m.settle().Index()
				m.stop(n.name)
				edit(t, filepath.Join(dir, stateFile), func([]byte) []byte { return saved })
				if err := os.Remove(filepath.Join(dir, previousFile)); err != nil {
					t.Fatal(err)
				}
				edit(t, filepath.Join(dir, markFile), x.spoil)
				m.net.Split([]string{n.name}, []string{m.leader().name})
				again := m.start(n.name)
				want := before
				if x.newest {
					want = after
				}
				if got := again.State().Index(); got != want {
					t.Errorf("event %d is served, want %d; before the last one it was %d", got, want, before)
				}
				m.net.Heal()
				if got := m.settle().Index(); got < after {
					t.Errorf("event %d is what all hold in the end, want %d at least", got, after)
				}
			}, "a", "b", "c")
		})
	}
}

func TestSlowDisk(t *testing.T) { // L7
	f := &faulty{}
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		a := m.nodes["a"]
		if m.leader() != a {
			if err := m.leader().Transfer(t.Context(), a.id.Node); err != nil {
				t.Fatal(err)
			}
		}
		m.stop("a")
		m.through["a"] = func(s store) store { f.store = s; return f }
		a = m.start("a")
		m.settle()
		for m.leader() != a {
			_ = m.leader().Transfer(t.Context(), a.id.Node)
			time.Sleep(time.Second)
		}
		f.fail.Store(true)
		if _, err := a.AppendHere(t.Context(), drain(0, a.State())); err == nil {
			t.Error("acknowledged without a disk")
		}
		delete(m.nodes, "a")
		b := m.leader()
		e := mustAppend(t, b, drain(1, b.State()))
		if s := a.Status(); s.Healthy || len(s.Trouble) == 0 {
			t.Errorf("its disk fails, and it says %+v", s)
		}
		f.fail.Store(false)
		m.nodes["a"] = a
		if s := m.settle(); s.Index() < e.Index {
			t.Error("an acknowledged event is lost")
		}
	}, "a", "b", "c")
}

// TestDamagedLog is L8: a node of many with a damaged log says which file it is and what to do, and does it.
func TestDamagedLog(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		m.settle()
		f := m.follower()
		id := f.id.Node
		m.stop(f.name)
		path := filepath.Join(m.dirs[f.name], logFile)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		edit(t, path, garbage)
		if _, err := m.open(f.name); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "rota cluster remove "+id) {
			t.Errorf("a damaged log: %v", err)
		}
		edit(t, path, func([]byte) []byte { return whole })
		rename(t, m.dirs[f.name], raftDir, "aside")
		if _, err := m.open(f.name); err == nil || !strings.Contains(err.Error(), "rota cluster remove "+id) {
			t.Errorf("a lost log: %v", err) // it would vote a second time in a term
		}
		l := m.leader()
		if err := l.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		m.dirs[f.name] = m.dirs["spare"]
		n := m.start(f.name)
		if err := l.AddVoter(t.Context(), Member{ID: n.id.Node, Name: f.name, Address: f.name}); err != nil {
			t.Fatal(err)
		}
		if s := m.settle(); len(s.Nodes()) != 3 {
			t.Errorf("nodes %v", s.Nodes())
		}
	}, "a", "b", "c")
}

// TestNewNode is L9, small: a node joins a cluster whose log begins after a snapshot, is behind until it has caught up, and restarts.
func TestNewNode(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		mustAppend(t, l, rota.Event{Kind: rota.EventSpec, Spec: spec(50, 2)})
		for i := range 300 {
			mustAppend(t, l, drain(i, l.State()))
		}
		c := l.raft.Load().ReloadableConfig()
		c.TrailingLogs = 10
		if err := errors.Join(l.raft.Load().ReloadConfig(c), l.raft.Load().Snapshot().Error()); err != nil {
			t.Fatal(err)
		}
		n := m.start("spare")
		if s := n.Status(); s.Healthy || s.Voters != 0 || s.Removed || s.Since.IsZero() {
			t.Errorf("a node that nobody knows says %+v", s)
		}
		if _, err := n.Append(t.Context(), rota.Event{Kind: rota.EventTick}); !errors.Is(err, ErrNoLeader) {
			t.Errorf("Append there: %v", err)
		}
		if err := l.AddNonvoter(t.Context(), Member{ID: n.id.Node, Name: "spare", Address: "spare"}); err != nil {
			t.Fatal(err)
		}
		m.settle()
		if s := n.Status(); !s.Healthy || s.Voters != 1 || s.Voter || s.Behind != 0 {
			t.Errorf("caught up, it says %+v", s)
		}
		e := mustAppend(t, n, drain(301, n.State()))
		// Its log has a gap where the snapshot was taken in.
		for range 2 {
			m.settle()
			want := n.State()
			m.stop("spare")
			n = m.start("spare")
			if n.State().Index() < e.Index {
				t.Fatalf("restarted at event %d, want %d", n.State().Index(), want.Index())
			}
			m.settle()
		}
		if n.id.Waiting {
			t.Error("it still counts as never fed, so a lost log would not be seen")
		}
		if err := l.Promote(t.Context(), n.id.Node); err != nil {
			t.Error(err)
		}
		if got := names(m.leader().Members()); got != "a spare" {
			t.Errorf("members %s", got)
		}
	}, "a")
}

// TestArrived: a node that is taken in goes through the history before it says that its state may be believed, also when it is stopped in
// the middle; one that has arrived says so at its next start, whom it hears or not.
func TestArrived(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		mustAppend(t, l, rota.Event{Kind: rota.EventSpec, Spec: spec(50, 2)})
		for i := range 999 {
			mustAppend(t, l, drain(i, l.State()))
		}
		last := mustAppend(t, l, drain(999, l.State())).Index
		arrived := func(n *Node) bool {
			select {
			case <-n.Arrived():
				return true
			default:
				return false
			}
		}
		if !arrived(l) {
			t.Error("who leads has not arrived")
		}
		n := m.start("spare")
		time.Sleep(time.Minute)
		if arrived(n) {
			t.Error("it has arrived where nobody took it in")
		}
		m.net.Weather(200*time.Millisecond, 0)
		if err := l.AddNonvoter(t.Context(), Member{ID: n.id.Node, Name: "spare", Address: "spare"}); err != nil {
			t.Fatal(err)
		}
		for n.State().Index() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond) // for its state file
		m.net.Split([]string{"a"}, []string{"spare"})
		m.stop("spare")
		n = m.start("spare")
		if got := n.State().Index(); got == 0 || got >= last {
			t.Fatalf("it has event %d of %d; the test wants it in the middle", got, last)
		}
		time.Sleep(time.Minute)
		if arrived(n) {
			t.Error("it has arrived with half of the history")
		}
		m.net.Heal()
		m.net.Weather(200*time.Millisecond, 0)
		for seen := n.State().Index(); !arrived(n); seen = n.State().Index() {
			if seen >= last+100 {
				t.Fatal("it never arrives")
			}
			time.Sleep(time.Millisecond)
		}
		if got := n.State().Index(); got < last {
			t.Errorf("arrived at event %d of %d", got, last)
		}
		time.Sleep(5 * time.Second)
		m.net.Split([]string{"a"}, []string{"spare"})
		m.stop("spare")
		if n = m.start("spare"); !arrived(n) {
			t.Error("what it has on disk is not served")
		}
	}, "a")
}

func TestMembersAreGuarded(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		ctx := t.Context()
		id := func(x string) string { return m.nodes[x].id.Node }
		is := func(err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		is(m.follower().Remove(ctx, l.id.Node), ErrNotLeader)
		is(l.Remove(ctx, "nobody"), ErrNoMember)
		is(l.Promote(ctx, "nobody"), ErrNoMember)
		is(l.Transfer(ctx, "nobody"), ErrNoMember)
		is(l.AddNonvoter(ctx, Member{ID: id("b"), Name: "x", Address: "elsewhere"}), ErrTwins)
		if err := l.AddNonvoter(ctx, Member{ID: "fresh", Name: "b", Address: "elsewhere"}); err == nil || !strings.Contains(err.Error(), `"b"`) {
			t.Errorf("a name that is taken: %v", err)
		}
		if err := l.AddNonvoter(ctx, Member{ID: "fresh", Address: "b"}); err == nil || !strings.Contains(err.Error(), "address b") {
			t.Errorf("an address that is taken: %v", err)
		}
		// A node that does not answer is not given a vote, and is not left behind.
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		is(l.AddVoter(short, Member{ID: "typo", Name: "typo", Address: "typo"}), ErrUnreachable)
		cancel()
		time.Sleep(tendEvery)
		if got := names(l.Members()); got != "a b c" || len(l.State().Nodes()) != 3 {
			t.Errorf("members %s, nodes %v", got, l.State().Nodes())
		}
		if l.State().WasRemoved("typo") {
			t.Error("who never answered counts as removed, so it could not be added when it does")
		}
		// With one of three dead, no other may go, but the dead one may.
		f := m.follower()
		m.stop(f.name)
		time.Sleep(10 * time.Second)
		var live string
		for x := range m.nodes {
			if x != l.name {
				live = x
			}
		}
		is(l.Remove(ctx, id(live)), ErrMajority)
		is(l.Demote(ctx, id(live)), ErrMajority)
		is(l.Transfer(ctx, f.id.Node), ErrUnreachable)
		is(l.Remove(ctx, f.id.Node), nil)
		if !l.State().WasRemoved(f.id.Node) {
			t.Errorf("removed are %v", l.State().Removed())
		}
		is(l.AddNonvoter(ctx, Member{ID: f.id.Node, Name: f.name, Address: f.name}), rota.ErrRemoved)
		is(l.AddVoter(ctx, Member{ID: f.id.Node, Name: f.name, Address: f.name}), rota.ErrRemoved)
		if _, err := m.nodes[live].Append(ctx, rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: f.id.Node, Name: f.name}}}); err == nil {
			t.Error("its own word, late, brought it back")
		}
		is(l.Demote(ctx, id(live)), nil)
		is(l.Transfer(ctx, ""), ErrNoMember)
		is(l.Remove(ctx, l.id.Node), ErrMajority)
		is(l.Leave(ctx), ErrMajority)
		is(l.Spare(l.id.Node), ErrMajority)
		is(l.Spare("nobody"), ErrNoMember)
		is(l.Promote(ctx, id(live)), nil)
		// The removed one comes back with all it knew: nobody follows it, and it says so.
		term := l.Status().Term
		n := m.start(f.name)
		time.Sleep(time.Minute)
		delete(m.nodes, f.name)
		if now := m.leader(); now != l || now.Status().Term != term {
			t.Errorf("an old node unseated the leader: term %d, then %d", term, now.Status().Term)
		}
		if s := n.Status(); s.Healthy || s.Leading || s.Since.IsZero() {
			t.Errorf("the removed node says %+v", s)
		}
		mustClose(t, n)
		// The leader leaves.
		is(l.Leave(ctx), nil)
		delete(m.nodes, l.name)
		if got := names(m.leader().Members()); got != live {
			t.Errorf("left are %s", got)
		}
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventTick})
		time.Sleep(2 * tendEvery)
		if s := m.leader().State(); !s.WasRemoved(l.id.Node) || len(s.Nodes()) != 1 {
			t.Errorf("who left by itself is not known as removed: %v", s.Removed())
		}
		if s := l.Status(); !s.Removed || s.Healthy {
			t.Errorf("who left says %+v", s)
		}
		mustClose(t, l)
	}, "a", "b", "c")
}

// TestTwins is L10: a copied disk is not heard, at another address or at its own, and is named.
func TestTwins(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		m.settle()
		f := m.follower()
		m.stop(f.name)
		if err := os.CopyFS(m.dirs["spare"], os.DirFS(m.dirs[f.name])); err != nil {
			t.Fatal(err)
		}
		m.start(f.name)
		l := m.leader()
		m.settle()
		twin, err := m.open("spare", func(o *Options) { o.Node = f.name })
		if err != nil {
			t.Fatal(err)
		}
		// Without a leader it would be asked for by the others, and might get votes for an id that has one.
		m.stop(l.name)
		next := m.leader()
		time.Sleep(time.Minute)
		if twin.raft.Load().State() == raft.Leader || m.leader() != next {
			t.Error("the copy took part")
		}
		named := false
		for _, n := range m.nodes {
			for _, x := range n.Status().Trouble {
				named = named || strings.Contains(x, "copied") && strings.Contains(x, f.id.Node)
			}
		}
		if !named {
			t.Error("nobody says that there is a copy")
		}
		mustClose(t, twin)
		time.Sleep(2 * time.Minute)
		for _, n := range m.nodes {
			if ts := n.Status().Trouble; len(ts) != 0 {
				t.Errorf("the copy is gone, and %s still says %v", n.name, ts)
			}
		}
	}, "a", "b", "c")
}

// TestBootstrap is L11 and the rest of L10: who has begun does not begin again, and who is of another cluster is not taken in.
func TestBootstrap(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		on := func(o *Options) { o.Network.Bootstrap = true }
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		want := m.settle()
		for _, x := range []string{"a", "b", "c"} { // the flag is left on for ever, on every node
			m.stop(x)
			m.start(x, on)
		}
		if s := m.settle(); s.Index() < want.Index() || len(s.Services()) != 3 || len(m.leader().Members()) != 3 {
			t.Error("bootstrap with a state began something new")
		}
		// A node that begins a cluster of its own is not taken in by this one.
		other, err := m.open("other", on, func(o *Options) { o.Network.Cluster = "" })
		if err != nil {
			t.Fatal(err)
		}
		led(t, other)
		if other.id.Cluster == m.cluster {
			t.Fatal("two clusters with one id")
		}
		mustClose(t, other)
		if _, err := m.open("other"); !errors.Is(err, ErrForeign) {
			t.Errorf("a directory of another cluster: %v", err)
		}
		if _, err := m.open("spare", func(o *Options) { o.Network.Cluster = "" }); err == nil || !strings.Contains(err.Error(), "rota cluster join") {
			t.Errorf("an empty directory of nobody: %v", err)
		}
		// A state of another cluster that a leader might send is refused.
		f := m.follower()
		stray := f.saved(view{f.State(), 1})
		stray.header.Cluster = "stray"
		path := filepath.Join(m.dirs["spare"], "stray")
		if err := errors.Join(os.MkdirAll(m.dirs["spare"], 0o700), replaceFile(path, stray.write)); err != nil {
			t.Fatal(err)
		}
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := (*machine)(f).Restore(r); !errors.Is(err, ErrForeign) {
			t.Errorf("a snapshot of another cluster: %v", err)
		}
		_ = r.Close()
		// One of many does not open as if it were alone.
		m.stop(f.name)
		if _, err := Open(Options{Dir: m.dirs[f.name], Node: f.name}); err == nil || !strings.Contains(err.Error(), "election: raft") {
			t.Errorf("one of many, alone: %v", err)
		}
	}, "a", "b", "c")
}

func TestJoin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	if _, err := ReadIdentity(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody's directory: %v", err)
	}
	if err := Join(dir, Identity{Cluster: "c"}); err == nil {
		t.Error("joined as nobody")
	}
	want := Identity{"c", NewID(), "x"}
	if err := Join(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadIdentity(dir); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if err := Join(dir, want); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("joined twice: %v", err)
	}
}

// TestGrow takes the data directory of a node that was alone into a cluster of three, and back.
func TestGrow(t *testing.T) {
	dir := t.TempDir()
	n := mustOpen(t, dir)
	led(t, n)
	mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
	mustAppend(t, n, drain(0, n.State()))
	mustClose(t, n)
	want := n.State()
	dirs := map[string]string{"a": dir, "b": t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		m := &many{T: t, net: sim.NewNetwork(1), dirs: dirs, nodes: map[string]*Node{}, through: map[string]func(store) store{}, cluster: n.id.Cluster}
		defer m.stopAll()
		a := m.start("a")
		led(t, a)
		if a.State().Index() < want.Index() || len(a.State().Overrides()) != 1 {
			t.Fatal("something was lost")
		}
		time.Sleep(time.Minute)
		if got := a.Members(); len(got) != 1 || got[0].Address != "a" {
			t.Fatalf("members %+v", got)
		}
		b := m.start("b")
		if err := a.AddVoter(t.Context(), Member{ID: b.id.Node, Name: "b", Address: "b"}); err != nil {
			t.Fatal(err)
		}
		m.settle()
		if err := a.Remove(t.Context(), b.id.Node); err != nil {
			t.Fatal(err)
		}
		m.stop("b")
		time.Sleep(time.Minute)
		m.stop("a")
		alone, err := Open(Options{Dir: dir, Node: "a"})
		if err != nil {
			t.Fatal(err)
		}
		led(t, alone)
		if len(alone.State().Overrides()) != 1 {
			t.Error("something was lost on the way back")
		}
		mustClose(t, alone)
	})
}

// The index of the last change of members is the same on all nodes, outlives a restart, and guards a change that is made on another one.
func TestMembersIndex(t *testing.T) {
	bubble(t, func(m *many) {
		a, b := m.nodes["a"], m.nodes["b"]
		time.Sleep(time.Second) // followers hear a moment later what is committed
		at := a.MembersIndex()
		if at == 0 || b.MembersIndex() != at {
			m.Fatalf("a knows %d and b %d", at, b.MembersIndex())
		}
		if err := a.Demote(WithMembersIndex(m.Context(), at), b.id.Node); err != nil {
			m.Fatal(err)
		}
		if a.MembersIndex() <= at {
			m.Errorf("after a change: %d, was %d", a.MembersIndex(), at)
		}
		voter := Member{ID: b.id.Node, Name: "b", Address: "b"}
		if err := a.AddVoter(WithMembersIndex(m.Context(), at), voter); err == nil {
			m.Error("a vote was given on what is over")
		}
		if err := a.AddVoter(WithMembersIndex(m.Context(), a.MembersIndex()), voter); err != nil {
			m.Error(err)
		}
		at = a.MembersIndex()
		if err := a.Compact(m.Context()); err != nil {
			m.Fatal(err)
		}
		m.stop("a")
		if got := m.start("a").MembersIndex(); got != at {
			m.Errorf("after a restart: %d, want %d", got, at)
		}
	}, "a", "b", "c")
}

// TestHandOver stops the leader and has another one lead at once.
func TestHandOver(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		begun := time.Now()
		m.stop(l.name)
		m.leader()
		if took := time.Since(begun); took > time.Second {
			t.Errorf("nobody led for %v after an orderly stop", took)
		}
	}, "a", "b", "c")
}

// TestConfirmIsOfATerm: who leads again cannot go on with what it began in an earlier term.
func TestConfirmIsOfATerm(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		term := l.Status().Term
		if err := l.Confirm(t.Context(), term); err != nil {
			t.Errorf("leading: %v", err)
		}
		if err := l.Confirm(t.Context(), term+1); !errors.Is(err, ErrNotLeader) {
			t.Errorf("a term to come: %v", err)
		}
		if err := l.Transfer(t.Context(), m.follower().id.Node); err != nil {
			t.Fatal(err)
		}
		if err := m.leader().Transfer(t.Context(), l.id.Node); err != nil {
			t.Fatal(err)
		}
		if m.leader() != l {
			t.Fatal("it does not lead again")
		}
		if err := l.Confirm(t.Context(), term); !errors.Is(err, ErrNotLeader) {
			t.Errorf("leading again in term %d, it confirms term %d: %v", l.Status().Term, term, err)
		}
		if err := l.Confirm(t.Context(), l.Status().Term); err != nil {
			t.Errorf("leading again: %v", err)
		}
		// An answer to what was asked before, and is still under way, confirms nothing.
		term = l.Status().Term
		m.net.Weather(400*time.Millisecond, 0)
		time.Sleep(10 * time.Second)
		if now := m.leader(); now != l || now.Status().Term != term {
			t.Fatal("another leads")
		}
		if err := l.Confirm(t.Context(), term); err != nil {
			t.Errorf("on a slow network: %v", err)
		}
		var rest []string
		for x := range m.nodes {
			if x != l.name {
				rest = append(rest, x)
			}
		}
		m.net.Split([]string{l.name}, rest)
		if err := l.Confirm(t.Context(), term); !errors.Is(err, ErrNotLeader) {
			t.Errorf("cut off: %v", err)
		}
		m.net.Heal()
		m.settle()
	}, "a", "b", "c")
}

// TestUnfit has nodes that cannot reach the DNS: the one that can leads in the end, and when none can, leadership stays calm.
func TestUnfit(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		var mu sync.Mutex
		fit := map[string]bool{"c": true}
		var runs []string
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for x, n := range m.nodes {
			wg.Go(func() {
				_ = n.Lead(ctx, func(ctx context.Context, _ uint64) error {
					mu.Lock()
					runs = append(runs, x)
					ok := fit[x]
					mu.Unlock()
					if !ok {
						return fmt.Errorf("no DNS: %w", ErrUnfit)
					}
					<-ctx.Done()
					return nil
				})
			})
		}
		time.Sleep(5 * time.Minute)
		if l := m.leader(); l.name != "c" {
			t.Errorf("%s leads", l.name)
		}
		mu.Lock()
		fit["c"] = false
		mu.Unlock()
		term := m.leader().Status().Term
		if err := m.leader().Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		if now := m.leader().Status().Term; now > term+30 {
			t.Errorf("%d terms in two hours in which no node was fit", now-term)
		}
		cancel()
		wg.Wait()
	}, "a", "b", "c")
}

// TestFit asks the others before it hands over: it goes to the one that is fit, to nobody while none is, and in time to one that is again.
func TestFit(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		var mu sync.Mutex
		fit := map[string]bool{"c": true}
		asked := 0
		for x := range m.dirs { // again, with the question
			if m.nodes[x] == nil {
				continue
			}
			m.stop(x)
			m.start(x, func(o *Options) {
				o.Network.Fit = func(ctx context.Context, to Member) error {
					mu.Lock()
					asked++
					ok, silent := fit[to.Name], to.Name == "b"
					mu.Unlock()
					switch {
					case silent && !ok:
						<-ctx.Done()
						return ctx.Err()
					case !ok:
						return errors.New("the DNS does not answer")
					}
					return nil
				}
			})
			m.settle()
		}
		if l := m.leader(); l.name != "a" {
			if err := l.Transfer(t.Context(), m.nodes["a"].id.Node); err != nil {
				t.Fatal(err)
			}
		}
		term := m.leader().Status().Term
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for x, n := range m.nodes {
			wg.Go(func() {
				_ = n.Lead(ctx, func(ctx context.Context, _ uint64) error {
					for {
						mu.Lock()
						ok := fit[x]
						mu.Unlock()
						if !ok {
							return fmt.Errorf("no DNS: %w", ErrUnfit)
						}
						select {
						case <-ctx.Done():
							return nil
						case <-time.After(time.Second):
						}
					}
				})
			})
		}
		set := func(name string, ok bool) {
			mu.Lock()
			defer mu.Unlock()
			fit[name] = ok
		}
		time.Sleep(30 * time.Second)
		l := m.leader()
		if l.name != "c" || l.Status().Term != term+1 {
			t.Errorf("%s leads in term %d after %d: it should have gone to c alone", l.name, l.Status().Term, term)
		}
		set("c", false)
		time.Sleep(time.Minute)
		mu.Lock()
		before := asked
		mu.Unlock()
		time.Sleep(time.Hour)
		if now := m.leader(); now != l || now.Status().Term != term+1 {
			t.Errorf("nobody is fit, and %s leads in term %d after %d", now.name, now.Status().Term, term+1)
		}
		mu.Lock()
		if n := (asked - before) / 2; n < 200 || n > 1000 {
			t.Errorf("asked %d times in an hour", n)
		}
		mu.Unlock()
		if s := l.Status(); s.Healthy || len(s.Trouble) != 1 || !strings.Contains(s.Trouble[0], "a: the DNS does not answer") || !strings.Contains(s.Trouble[0], "b: ") {
			t.Errorf("it says %+v", s)
		}
		set("a", true)
		time.Sleep(30 * time.Second)
		if now := m.leader(); now.name != "a" {
			t.Errorf("a is fit and %s leads", now.name)
		}
		if s := l.Status(); len(s.Trouble) != 0 {
			t.Errorf("it does not lead any more and says %v", s.Trouble)
		}
		// Who is fit again while it leads says so no longer.
		set("a", false)
		time.Sleep(time.Minute)
		if s := m.nodes["a"].Status(); len(s.Trouble) != 1 {
			t.Errorf("it says %v", s.Trouble)
		}
		set("a", true)
		time.Sleep(2 * time.Minute)
		if s := m.nodes["a"].Status(); len(s.Trouble) != 0 || !s.Leading {
			t.Errorf("fit again, it says %+v", s)
		}
		cancel()
		wg.Wait()
	}, "a", "b", "c")
}

// eyes are what a vantage holds.
type eyes struct{ r latest[*rota.Report] }

func (v *eyes) Report() *rota.Report     { r, _ := v.r.load(); return r }
func (v *eyes) Changed() <-chan struct{} { _, c := v.r.load(); return c }

func (v *eyes) say(s *rota.State, status rota.Status) {
	next := &rota.Report{}
	for _, t := range s.Targets() {
		next.Opinions = append(next.Opinions, &rota.Opinion{Target: t.ID, Status: status})
	}
	v.r.store(next)
}

// outbox sends what a node's vantage holds to the inbox of the leader.
func (m *many) outbox(n *Node, v *eyes, inboxes map[string]*Inbox) *Outbox {
	return &Outbox{
		Vantage: n.name, Report: v.Report, ReportChanged: v.Changed,
		Table:  func() *rota.Table { return n.State().Table() },
		Leader: func() string { l, _ := n.Leader(); return l.Address }, LeaderChanged: n.LeaderChanged,
		Send: func(ctx context.Context, b []byte) error {
			l, _ := n.Leader()
			to := inboxes[l.Address]
			if to == nil {
				return ErrNoLeader
			}
			return m.net.Call(ctx, n.name, l.Address, func(context.Context) error {
				err := to.Take(n.name, n.name, 0, b)
				if err == nil && !l.Self {
					m.sent.Add(1)
				}
				return err
			})
		},
	}
}

// TestReportsFindTheLeader sends reports at once on change, each ten seconds without one, and at once to a new leader.
func TestReportsFindTheLeader(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(1, 3)})
		st := m.settle()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		vs, inboxes := map[string]*eyes{}, map[string]*Inbox{}
		for x, n := range m.nodes {
			inboxes[x] = NewInbox(n, nil)
		}
		for x, n := range m.nodes {
			v := &eyes{}
			v.say(st, rota.Up)
			vs[x] = v
			wg.Go(func() { _ = m.outbox(n, v, inboxes).Run(ctx) })
			wg.Go(func() { _ = n.Lead(ctx, func(ctx context.Context, _ uint64) error { return n.Judge(ctx) }) })
		}
		verdict := func(s rota.Status) {
			t.Helper()
			if got := m.settle().Verdict(st.Targets()[0].ID).Status; got != s {
				t.Errorf("the verdict is %v, want %v", got, s)
			}
		}
		time.Sleep(time.Second)
		verdict(rota.Up)
		if got := len(m.leader().Reports()); got != 3 {
			t.Errorf("the leader holds %d reports", got)
		}
		before := m.sent.Load()
		rest := m.leader().Status()
		time.Sleep(100 * time.Second)
		if now := m.leader().Status(); now.Applied != rest.Applied || now.Last != rest.Last {
			t.Errorf("while nothing changed, the log grew from %d to %d, events from %d to %d", rest.Last, now.Last, rest.Applied, now.Applied)
		}
		if got := m.sent.Load() - before; got < 18 || got > 22 {
			t.Errorf("%d reports of two followers in 100 s", got)
		}
		f := m.follower()
		before = m.sent.Load()
		vs[f.name].say(st, rota.Down)
		time.Sleep(3 * reportGap)
		if got := m.sent.Load() - before; got < 1 || got > 2 {
			t.Errorf("%d reports after a change", got)
		}
		verdict(rota.Up) // one voice decides nothing
		old := m.leader()
		if err := old.Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		l := m.leader()
		time.Sleep(time.Second)
		if got := len(l.Reports()); got != 3 {
			t.Errorf("a second after it was elected, the leader holds %d reports", got)
		}
		for _, r := range l.Reports() {
			if time.Since(r.At) > 2*time.Second {
				t.Errorf("the report of %s is %v old", r.Vantage, time.Since(r.At))
			}
		}
		for _, v := range vs {
			v.say(st, rota.Down)
		}
		time.Sleep(time.Second)
		verdict(rota.Down)
		cancel()
		wg.Wait()
	}, "a", "b", "c")
}

// TestRecover is L15: the last node alive goes on alone with everything it held.
func TestRecover(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		e := mustAppend(t, m.follower(), drain(0, m.settle()))
		m.settle()
		f := m.follower()
		if _, err := Recover(m.options(f.name), nil); !errors.Is(err, ErrRunning) {
			t.Errorf("of a running node: %v", err)
		}
		for x := range m.nodes {
			m.stop(x)
		}
		n := m.start(f.name)
		time.Sleep(time.Minute)
		if s := n.Status(); s.Leader != "" {
			t.Errorf("led without a majority: %+v", s)
		}
		m.stop(f.name)
		runs := errors.New("it runs")
		for want := 1; want <= 2; want++ {
			var asked []string
			_, err := Recover(m.options(f.name), func(x Member) error {
				if asked = append(asked, x.Name); len(asked) == want {
					return runs
				}
				return nil
			})
			if !errors.Is(err, runs) || len(asked) != want || asked[want-1] == f.name || asked[0] == f.name {
				t.Errorf("asked for %v, where one runs: %v", asked, err)
			}
		}
		for round, lose := range []bool{false, true, false} {
			if lose {
				rename(t, m.dirs[f.name], raftDir, "aside")
			}
			b, err := Recover(m.options(f.name), func(x Member) error {
				if round > 0 {
					t.Errorf("round %d: alone, and asked whether %s is gone", round, x.Name)
				}
				return nil
			})
			if err != nil || b.Index < e.Index || b.Cluster != m.cluster || b.Services != 3 {
				t.Fatalf("round %d: %+v, %v", round, b, err)
			}
			n = m.start(f.name)
			led(t, n)
			mustAppend(t, n, drain(round+1, n.State()))
			time.Sleep(2 * tendEvery)
			if got := names(n.Members()); got != f.name || len(n.State().Nodes()) != 1 {
				t.Errorf("members %s, nodes %v", got, n.State().Nodes())
			}
			if n.State().Override(e.Overrides[0].Endpoint) == nil {
				t.Error("an acknowledged event is lost")
			}
			m.stop(f.name)
		}
	}, "a", "b", "c")
}

func TestBackup(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		e := drain(0, m.leader().State())
		e.At = time.Now()
		e.Overrides[0].Set, e.Overrides[0].Expires = e.At, e.At.Add(time.Hour)
		mustAppend(t, m.leader(), e)
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventInstruct, Instruction: &rota.Instruction{Verb: rota.VerbRelease, Publisher: "bind", Zone: "example.org."}})
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventFreeze, Actor: "me", Reason: "why not"})
		st := m.settle()
		path := filepath.Join(m.dirs["a"], "backup")
		if err := replaceFile(path, m.follower().Save); err != nil {
			t.Fatal(err)
		}
		b, err := Inspect(path)
		if err != nil || b.Index != st.Index() || b.Services != 3 || b.Overrides != 1 || b.Nodes != 3 || b.Serial != st.Serial() {
			t.Errorf("%+v, %v", b, err)
		}
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventSpec, Spec: spec(1, 1)})
		mustAppend(t, m.leader(), rota.Event{Kind: rota.EventThaw})
		if _, err := m.follower().RestoreFrom(t.Context(), path, false, "me"); err != nil {
			t.Fatal(err)
		}
		s := m.settle()
		if len(s.Services()) != 3 || s.Override(e.Overrides[0].Endpoint) == nil || int32(s.Serial()-st.Serial()) <= 0 || len(s.Nodes()) != 3 {
			t.Errorf("restored %d services, serial %d after %d", len(s.Services()), s.Serial(), st.Serial())
		}
		if s.Frozen() == nil || len(s.Instructions("bind", "example.org.")) != 1 {
			t.Errorf("restored without the freeze or the release: %v, %v", s.Frozen(), s.Instructed())
		}
		edit(t, path, func(b []byte) []byte { return []byte(strings.Replace(string(b), m.cluster, NewID(), 1)) })
		if _, err := Inspect(path); err == nil {
			t.Error("a forged backup was read")
		}
		edit(t, path, half)
		if _, err := m.leader().RestoreFrom(t.Context(), path, false, "me"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("half a backup: %v", err)
		}
		other, err := Open(Options{Dir: m.dirs["other"], Node: "x"})
		if err != nil {
			t.Fatal(err)
		}
		led(t, other)
		if err := replaceFile(path, other.Save); err != nil {
			t.Fatal(err)
		}
		mustClose(t, other)
		if _, err := m.leader().RestoreFrom(t.Context(), path, false, "me"); !errors.Is(err, ErrForeign) {
			t.Errorf("a backup of another cluster: %v", err)
		}
	}, "a", "b", "c")
}

// TestDigest: nodes that hold the same say so, however they came by it, and one that holds something else is found.
func TestDigest(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l := m.leader()
		mustAppend(t, l, rota.Event{Kind: rota.EventSpec, Spec: spec(20, 2)})
		for i := range 40 {
			mustAppend(t, l, drain(i, l.State()))
		}
		mustAppend(t, l, rota.Event{Kind: rota.EventVerdicts, Verdicts: []rota.Verdict{{Target: l.State().Targets()[0].ID, Status: rota.Up, Since: time.Now().In(time.FixedZone("", 3600))}}})
		n := m.start("spare")
		c := l.raft.Load().ReloadableConfig()
		c.TrailingLogs = 1
		if err := errors.Join(l.raft.Load().ReloadConfig(c), l.raft.Load().Snapshot().Error()); err != nil {
			t.Fatal(err)
		}
		if err := l.AddNonvoter(t.Context(), Member{ID: n.id.Node, Name: "spare", Address: "spare"}); err != nil {
			t.Fatal(err)
		}
		f := m.follower()
		m.settle()
		m.stop(f.name) // one from a state file, one from a snapshot, one from the log
		m.start(f.name)
		time.Sleep(2 * tendEvery)
		want := m.settle().Index()
		sums := map[string]string{}
		for x, n := range m.nodes {
			at, sum, err := n.Digest(t.Context(), want)
			if err != nil || at != want || len(sum) != 64 {
				t.Errorf("%s: %d, %q, %v", x, at, sum, err)
			}
			sums[sum] = x
		}
		if len(sums) != 1 {
			t.Errorf("different: %v", sums)
		}
		// It waits for what is to come, and not for ever.
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if at, _, err := n.Digest(short, want+1); !errors.Is(err, context.DeadlineExceeded) || at != want {
			t.Errorf("of the future: %d, %v", at, err)
		}
		got := make(chan string)
		go func() {
			_, sum, _ := n.Digest(t.Context(), want+1)
			got <- sum
		}()
		mustAppend(t, l, drain(7, l.State()))
		now := <-got
		if _, old := sums[now]; old {
			t.Error("another state, the same sum")
		}
		// A node that holds something else.
		v, _ := n.view.load()
		s, err := v.state.Apply(rota.Event{Index: v.state.Index() + 1, At: v.state.At(), Kind: rota.EventTick})
		if err != nil {
			t.Fatal(err)
		}
		n.view.store(view{s, v.term})
		mustAppend(t, l, drain(8, l.State()))
		time.Sleep(time.Second)
		_, a, _ := l.Digest(t.Context(), 0)
		at, b, err := n.Digest(t.Context(), 0)
		if err != nil || at != l.State().Index() || a == b {
			t.Errorf("a difference is not found: %d, %v", at, err)
		}
	}, "a", "b", "c")
}

// TestPokes sends what makes raft panic or believe.
func TestPokes(t *testing.T) {
	bubble(t, func(m *many) {
		t := m.T
		l, f := m.leader(), m.follower()
		outsider := m.net.Transport("outsider")
		defer outsider.Close()
		header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id.Node), Addr: []byte(l.name)}
		to := raft.ServerAddress(f.name)
		if err := outsider.InstallSnapshot("", to, &raft.InstallSnapshotRequest{
			RPCHeader: header, SnapshotVersion: 1, Term: l.Status().Term, Configuration: []byte("nope"),
		}, &raft.InstallSnapshotResponse{}, strings.NewReader("")); err == nil {
			t.Error("a snapshot with a broken configuration was taken")
		}
		if err := outsider.AppendEntries("", to, &raft.AppendEntriesRequest{
			RPCHeader: header, Term: l.Status().Term, Entries: []*raft.Log{{Type: raft.LogConfiguration, Data: []byte("nope")}},
		}, &raft.AppendEntriesResponse{}); err == nil {
			t.Error("a broken configuration was taken")
		}
		header.ID, header.Addr = []byte(f.id.Node), []byte("outsider")
		if err := outsider.RequestVote("", to, &raft.RequestVoteRequest{RPCHeader: header, Term: 1 << 40}, &raft.RequestVoteResponse{}); !strings.Contains(fmt.Sprint(err), "copied") {
			t.Errorf("its own id: %v", err)
		}
		term := l.Status().Term
		time.Sleep(10 * time.Second)
		if m.leader() != l || l.Status().Term != term {
			t.Error("the pokes had an effect")
		}
	}, "a", "b", "c")
}
