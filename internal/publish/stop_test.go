package publish

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// What a DNS cannot do is never asked of it, and what it does by itself is not corrected.
func TestCapabilities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []rota.Service
		for i := range 20 {
			services = append(services, service(fmt.Sprintf("s%02d.example.test", i), "192.0.2.1", "192.0.2.2"))
		}
		services = append(services, service("six.example.test", "192.0.2.1", "2001:db8::1"))
		f := newFake(t)
		f.caps = Capabilities{Fence: FenceCompare, Batch: 6, MinTTL: 300, Types: []rota.Type{rota.TypeA, rota.TypeTXT}}
		p := run(t, usual(newWorld(t, services...).up("192.0.2.1", "192.0.2.2", "2001:db8::1"), f), 1)
		time.Sleep(time.Hour)
		s := p.Status()
		if len(s.Capabilities.Types) != 2 || s.Capabilities.MinTTL != 300 {
			t.Errorf("the status says %+v", s.Capabilities)
		}
		if r := s.Zones[0].Reasons; len(r) != 1 || r[0].Code != CodeUnsupported || r[0].Name != "six.example.test." {
			t.Errorf("reasons %v", r)
		}
		f.set(func() {
			if len(f.zone) != 21 || len(f.writes) != 4 {
				t.Errorf("%d RRsets by %d writes, want 20 and the fence by 4", len(f.zone), len(f.writes))
			}
			for k, s := range f.zone {
				if s.TTL != 300 {
					t.Errorf("%v has a TTL of %d", k, s.TTL)
				}
			}
		})
	})
}

// A TTL that the DNS chooses is not written again and again.
func TestAnyTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.anyTTL = 3600
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		p := run(t, usual(w, f), 1)
		time.Sleep(time.Hour)
		w.down("192.0.2.1")
		time.Sleep(time.Hour)
		if n := f.written(); n != 2 {
			t.Errorf("%d writes, want 2", n)
		}
		if s := p.Status().Zones[0]; len(s.Reasons) != 0 || s.Records[0].TTL != 3600 {
			t.Errorf("status %+v", s)
		}
	})
}

// A DNS that asks for patience gets it, up to a bound, and then one write of the newest state. It never hurries the publisher.
func TestRetryAfter(t *testing.T) {
	for after, want := range map[time.Duration][2]int{
		0: {8, 60}, time.Millisecond: {8, 60}, 90 * time.Second: {4, 8}, 1000 * time.Hour: {2, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
			run(t, usual(w, f), 1)
			time.Sleep(2 * time.Second)
			tries := 0
			f.set(func() {
				f.patient = &Reason{Code: CodeRateLimited, Transient: true, After: after, Text: "429"}
				tries = len(f.tries)
			})
			for range 300 {
				w.down("192.0.2.1")
				time.Sleep(time.Second)
				w.up("192.0.2.1")
				time.Sleep(time.Second)
			}
			w.down("192.0.2.1")
			f.set(func() {
				f.patient = nil
				if n := len(f.tries) - tries; n < want[0] || n > want[1] {
					t.Errorf("Retry-After %v: %d tries in 10 minutes, want %v", after, n, want)
				}
				tries = len(f.tries)
			})
			time.Sleep(MaxAfter + time.Minute)
			f.set(func() {
				if n := len(f.tries) - tries; n != 1 {
					t.Errorf("Retry-After %v: %d writes once it is allowed again, want 1", after, n)
				}
			})
		})
	}
}

// A dry run says what it would write, and says what stands in the way of writing it.
func TestDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var services []rota.Service
		for i := range 8 {
			services = append(services, service(fmt.Sprintf("s%02d.example.test", i), "192.0.2.1"))
		}
		w := newWorld(t, services...).up("192.0.2.1")
		o := usual(w, f)
		o.DryRun = true
		p := run(t, o, 1)
		time.Sleep(time.Hour)
		s := p.Status()
		if !s.DryRun || reasonCode(p.Publisher) != CodeDryRun || s.Zones[0].Failures != 0 || s.Zones[0].Drift != 8 || s.Zones[0].Fence != "" {
			t.Errorf("status %+v", s)
		}
		if text := s.Zones[0].Reasons[0].Error(); !strings.Contains(text, "would write s00.example.test A +192.0.2.1, ") || !strings.Contains(text, "and 3 more") {
			t.Error(text)
		}
		plan, err := p.Plan(t.Context())
		if z := plan.Zones[0]; err != nil || len(z.Changes) != 8 || len(z.Reasons) != 1 || z.Reasons[0].Code != CodeDryRun {
			t.Errorf("plan %+v, %v", plan, err)
		}
		f.set(func() { f.zone[FenceKey("example.test.")] = Fence{Owner: "other", Epoch: 1}.RRset("example.test.") })
		time.Sleep(time.Minute)
		if c := reasonCode(p.Publisher); c != CodeConflict {
			t.Errorf("with another owner it says %q", c)
		}
		f.set(func() {
			if len(f.tries) > 0 {
				t.Errorf("%d writes", len(f.tries))
			}
		})
	})
}

// A freeze stops the writer between two messages, not its eyes; when it ends the newest state is written.
func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []rota.Service
		for i := range 30 {
			services = append(services, service(fmt.Sprintf("s%02d.example.test", i), "192.0.2.1", "192.0.2.2"))
		}
		f := newFake(t)
		f.limit = 10
		w := newWorld(t, services...)
		o := usual(w, f)
		var frozen atomic.Bool
		o.Frozen = func() string {
			if frozen.Load() {
				return "incident 7"
			}
			return ""
		}
		// The second message of the first round finds the freeze.
		f.allowed = func(rota.Change) error { frozen.Store(true); return nil }
		w.up("192.0.2.1", "192.0.2.2")
		p := run(t, o, 1)
		time.Sleep(time.Minute)
		s := p.Status()
		if len(f.dump()) == 0 || f.written() != 1 || s.Zones[0].Drift != 20 || reasonCode(p.Publisher) != CodeFrozen || s.Frozen != "incident 7" {
			t.Errorf("%d writes, status %+v", f.written(), s)
		}
		if e := w.recorded(); len(e) != 1 || len(e[0].Changes) != 10 {
			t.Errorf("what was written before the freeze is not recorded: %v", e)
		}
		w.down("192.0.2.1")
		time.Sleep(time.Minute)
		if s := p.Status(); f.written() != 1 || s.Zones[0].Drift != 30 {
			t.Errorf("%d writes, status %+v", f.written(), s)
		}
		plan, err := p.Plan(t.Context())
		if z := plan.Zones[0]; err != nil || len(z.Changes) == 0 || len(z.Reasons) != 1 || z.Reasons[0].Code != CodeFrozen {
			t.Errorf("plan %+v, %v", plan, err)
		}
		f.set(func() { f.allowed = nil })
		frozen.Store(false)
		w.apply(rota.Event{Kind: rota.EventTick})
		time.Sleep(2 * time.Second)
		if got := f.data("s29.example.test.", rota.TypeA); !slices.Equal(got, []string{"192.0.2.2"}) {
			t.Errorf("after the freeze it has %v", got)
		}
		if s := p.Status(); len(s.Zones[0].Reasons) > 0 || s.Frozen != "" {
			t.Errorf("status %+v", s)
		}
	})
}
