package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/clock"
	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

// self is a vantage's doubt of itself, in virtual time, with clocks that a test sets.
type self struct {
	*doubter
	t    *testing.T
	log  bytes.Buffer
	seen clock.Seen // by the next look; what happened is seen once
	eyes probe.Blind
}

func doubting(t *testing.T, f func(s *self)) {
	synctest.Test(t, func(t *testing.T) {
		s := &self{t: t}
		s.doubter = &doubter{
			clocks: func() clock.Seen {
				now := s.seen
				s.seen.Step, s.seen.Slept = 0, 0
				return now
			},
			log: slog.New(slog.NewTextHandler(&s.log, nil)),
			targets: func() []rota.Target {
				return []rota.Target{{Check: rota.Check{Timing: rota.Timing{Interval: 10 * time.Second, Timeout: 3 * time.Second}}}, {}}
			},
		}
		f(s)
	})
}

// run lets time pass while the vantage asks itself as it does, and wants it to abstain for a cause all the while.
func (s *self) run(d time.Duration, want cause) {
	s.t.Helper()
	for range int(d / doubtEvery) {
		s.consider(s.blind(s.eyes))
		if got := s.why().cause; got != want {
			s.t.Fatalf("it abstains for %q, want %q\n%s", got, want, s.log.String())
		}
		time.Sleep(doubtEvery)
	}
}

// P20. A process that did not run abstains until it has looked at everything again, and from the first word it says.
func TestP20_StoppedProcess(t *testing.T) {
	for name, stop := range map[string]func(s *self){
		"stopped": func(*self) { time.Sleep(time.Minute) },
		"asleep":  func(s *self) { s.seen.Slept = time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			doubting(t, func(s *self) {
				s.run(time.Minute, "")
				stop(s)
				if w := s.why(); w.cause != causeStopped || !strings.Contains(w.text, "did not run for ") {
					t.Errorf("its first word after the stop: %+v", w)
				}
				s.run(13*time.Second, causeStopped)
				s.run(time.Minute, "")
				if n := s.state().stops; n != 1 {
					t.Errorf("%d stops, want 1", n)
				}
				for _, want := range []string{"this process was stopped", "this node abstains", "trusts its eyes again"} {
					if strings.Count(s.log.String(), want) != 1 {
						t.Errorf("%q is not in the log once:\n%s", want, s.log.String())
					}
				}
				if n := s.lapsed(); n != 1 {
					t.Errorf("%d lapses, want 1", n)
				}
				time.Sleep(stopLeast - time.Second) // as busy machines do
				if n := s.lapsed(); n != 2 {
					t.Errorf("%d lapses after a short one, want 2", n)
				}
				s.run(time.Minute, "")
			})
		})
	}
}

// P21. A leap of the wall clock is said, and as long as it may be a passing one, certificates are not judged by it.
func TestP21_ClockSteps(t *testing.T) {
	doubting(t, func(s *self) {
		s.run(time.Minute, "")
		s.seen = clock.Seen{Step: 2 * time.Second, Off: 2 * time.Second}
		s.run(time.Minute, "")
		const far = 25 * 365 * 24 * time.Hour
		s.seen = clock.Seen{Step: far, Off: far, Lost: true}
		s.run(stepHold, causeClock)
		s.run(time.Minute, "")
		s.seen = clock.Seen{Step: -2 * far, Off: -far, Lost: true}
		s.run(time.Minute, causeClock)
		s.seen = clock.Seen{Step: far}
		s.run(time.Minute, "")
		s.seen = clock.Seen{Step: 10 * time.Minute, Off: 10 * time.Minute, Lost: true}
		s.run(time.Minute, "")
		if got := s.state(); got.steps != 5 || !got.Lost {
			t.Errorf("%+v", got)
		}
		if text := clockWords(s.state().Seen); !strings.Contains(text, "10m0s away") || !strings.Contains(text, "restart rota") {
			t.Error(text)
		}
		if n := strings.Count(s.log.String(), "the wall clock was set"); n != 5 {
			t.Errorf("said %d times, want 5:\n%s", n, s.log.String())
		}
	})
}

// P19. A vantage that its own machine lets down abstains, says how, and does not come and go.
func TestP19_OwnResources(t *testing.T) {
	doubting(t, func(s *self) {
		const full = "connect: no descriptor left here"
		s.eyes = probe.Blind{Seen: 1000, Lost: 499, Class: rota.ClassResource, Why: full}
		s.run(time.Minute, "")
		s.eyes.Lost = 812
		s.run(time.Minute, causeResource)
		if w := s.why(); w.text != "812 of 1000 targets cannot be probed from here: "+full {
			t.Errorf("it says %q", w.text)
		}
		said := s.why()
		s.eyes.Lost, s.eyes.Why = 300, "sending: no memory left here"
		s.run(time.Minute, causeResource)
		if s.why() != said {
			t.Errorf("its report changes while nothing happens: %+v", s.why())
		}
		s.eyes.Class, s.eyes.Lost = rota.ClassPermission, 900
		s.run(time.Minute, causePermission)
		s.eyes.Lost = 100
		s.run(time.Minute, "")
		s.eyes.Lost = 600
		s.run(doubtEvery, causePermission)
		s.eyes.Lost = 0
		s.run(doubtLeast-2*doubtEvery, causePermission)
		time.Sleep(2 * doubtEvery)
		s.run(time.Minute, "")
		s.eyes = probe.Blind{Seen: 2, Lost: 2, Class: rota.ClassUnroutable}
		s.run(time.Minute, "")
		s.eyes = probe.Blind{}
		s.run(time.Minute, "")
	})
}

// An agent says in its report why it does not count, wakes who waits for it when that changes, and is counted again afterwards.
func TestDoubtingProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := 0
		d := newDoubtingProber(probe.New(probe.Options{Vantage: "far"}), quiet, func() { first++ })
		d.doubt.clocks = func() clock.Seen { return clock.Seen{} }
		d.Set([]rota.Target{{ID: "x", Check: rota.Check{Timing: rota.Timing{Interval: 20 * time.Second, Timeout: time.Second}}}})
		time.Sleep(time.Second)
		if r := d.Report(); r.Abstain != "" || r.Vantage != "far" || first != 1 {
			t.Errorf("%+v", r)
		}
		time.Sleep(time.Hour) // it does not run
		if r := d.Report(); !strings.Contains(r.Abstain, "did not run for 59m59.5s") {
			t.Errorf("its first report after the stop: %+v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.run(ctx) }()
		synctest.Wait()
		for _, want := range []bool{true, false} {
			if r := d.Report(); (r.Abstain != "") != want {
				t.Errorf("it abstains for %q", r.Abstain)
			}
			if want {
				<-d.Changed()
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
