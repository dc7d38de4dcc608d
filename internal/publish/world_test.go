package publish

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// world is a state that tests change in the words of the domain. It is a Source.
type world struct {
	t  testing.TB
	mu sync.Mutex // guards what follows

	state   *rota.State
	changed chan struct{}
	index   uint64
	spec    rota.Spec
	events  []rota.Published
}

var testCheck = rota.Check{Name: "tcp", Kind: rota.KindTCP, Port: 80, Timing: rota.DefaultTiming()}

const testPublisher = "p"

func newWorld(t testing.TB, services ...rota.Service) *world {
	w := &world{t: t, state: &rota.State{}, changed: make(chan struct{})}
	w.spec = rota.Spec{Services: services, Vantages: []rota.Vantage{{Name: "v1", Site: "s1"}}}
	w.respec(func(*rota.Spec) {})
	return w
}

// service makes a service of the zone example.test whose endpoints have a check.
func service(name string, addrs ...string) rota.Service {
	v := rota.Service{
		Name: rota.MustParseName(name), TTL: 30, Publish: []string{testPublisher}, Zone: "example.test.", Safety: rota.DefaultSafety(),
	}
	v.Safety.FailOpenBelow, v.Safety.MinHold, v.Safety.MaxChange = 0, 0, rota.MaxChange{Share: 1, Per: time.Minute}
	for _, a := range addrs {
		v.Endpoints = append(v.Endpoints, rota.Endpoint{
			Address: netip.MustParseAddr(a), Weight: 1, Checks: []rota.Use{{Check: testCheck}},
		})
	}
	return v
}

func (w *world) State() *rota.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *world) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *world) apply(e rota.Event) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	e.Index, e.At = w.index, time.Now()
	next, err := w.state.Apply(e)
	if err != nil {
		w.t.Errorf("apply: %v", err)
	}
	w.state = next
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) respec(change func(*rota.Spec)) {
	w.t.Helper()
	s := w.spec
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		s.Services[i].Endpoints = slices.Clone(s.Services[i].Endpoints)
	}
	change(&s)
	w.spec = s
	w.apply(rota.Event{Kind: rota.EventSpec, Spec: &s})
}

func (w *world) judge(status rota.Status, addrs ...string) {
	w.t.Helper()
	e := rota.Event{Kind: rota.EventVerdicts}
	for _, a := range addrs {
		id := rota.NewTarget(netip.MustParseAddr(a), testCheck).ID
		e.Verdicts = append(e.Verdicts, rota.Verdict{
			Target: id, Status: status, Since: time.Now(), Need: 1,
			Votes: []rota.Vote{{Vantage: "v1", Site: "s1", Status: status, Reason: "tested"}},
		})
	}
	w.apply(e)
}

func (w *world) up(addrs ...string) *world {
	w.t.Helper()
	w.judge(rota.Up, addrs...)
	return w
}

func (w *world) down(addrs ...string) *world {
	w.t.Helper()
	w.judge(rota.Down, addrs...)
	return w
}

func (w *world) record(_ context.Context, p rota.Published) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, p)
	return nil
}

func (w *world) recorded() []rota.Published {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// quick are options that let tests with real servers go on fast.
func quick(w *world, b Backend) Options {
	return Options{
		Name: testPublisher, Backend: b, Source: w, Owner: named("test"), Record: w.record,
		Audit: time.Hour, MinGap: time.Millisecond, MinBackoff: 20 * time.Millisecond, MaxBackoff: 300 * time.Millisecond,
	}
}

// running is a publisher that runs until the test ends or stop is called.
type running struct {
	*Publisher
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run, once done
}

func run(t testing.TB, o Options, term uint64) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Publisher: New(o), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = r.Run(ctx, term)
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	r.cancel()
	<-r.done
}

// eventually waits for real servers: it is generous, a failing test is the only slow one. It asks often at first and then seldom, which
// matters where time is virtual and asking is all that costs.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	pause := 2 * time.Millisecond
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
		pause = min(pause*5/4, 50*time.Millisecond)
	}
}

// reasonCode returns the code of the first reason of the only zone, or "".
func reasonCode(p *Publisher) Code {
	s := p.Status()
	for _, r := range s.Lost {
		return r.Code
	}
	for _, z := range s.Zones {
		for _, r := range z.Reasons {
			return r.Code
		}
	}
	return ""
}

func settled(p *Publisher, at time.Time) bool {
	zones := p.Status().Zones
	for _, z := range zones {
		if z.LastSuccess.Before(at) {
			return false
		}
	}
	return len(zones) > 0
}

// named is an installation that is called so all the time.
func named(owner string) func() string { return func() string { return owner } }
