package agent

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// leader is whom a relay sends to.
type leader struct {
	mu      sync.Mutex
	fail    error
	hang    bool
	changed chan struct{}
	ages    []time.Duration
	seqs    []uint64
	busy    map[string]int
	most    int // at once of one vantage
}

func (l *leader) send(ctx context.Context, vantage string, age time.Duration, r *rota.Report) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ages, l.seqs = append(l.ages, age), append(l.seqs, r.Seq)
	l.busy[vantage]++
	l.most = max(l.most, l.busy[vantage])
	defer func() { l.busy[vantage]-- }()
	if l.hang {
		l.mu.Unlock()
		<-ctx.Done()
		l.mu.Lock()
		return ctx.Err()
	}
	return l.fail
}

func (l *leader) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// sent returns the ages and numbers sent since it was asked before.
func (l *leader) sent() ([]time.Duration, []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, s := l.ages, l.seqs
	l.ages, l.seqs = nil, nil
	return a, s
}

func (l *leader) next() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func withRelay(t *testing.T, f func(r *Relay, l *leader)) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{changed: make(chan struct{}), busy: map[string]int{}}
		r, err := NewRelay(RelayOptions{
			Accept:        func() []string { return []string{"foo", "bar"} },
			LeaderChanged: func() <-chan struct{} { l.mu.Lock(); defer l.mu.Unlock(); return l.changed },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx, l.send) }()
		synctest.Wait()
		f(r, l)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if l.most > 1 {
			t.Errorf("%d of one vantage were under way at once", l.most)
		}
	})
}

func TestRelay(t *testing.T) {
	offer := func(r *Relay, name string, seq uint64) {
		r.Offer(&rota.Report{Vantage: name, Incarnation: 1, Seq: seq, At: time.Now()})
		synctest.Wait()
	}
	s := time.Second
	for _, c := range []struct {
		what string
		do   func(r *Relay, l *leader)
		ages []time.Duration
		seqs []uint64
	}{
		{"each once", func(r *Relay, _ *leader) { offer(r, "foo", 1); wait(time.Minute); offer(r, "foo", 2) }, []time.Duration{0, 0}, []uint64{1, 2}},
		{"not of strangers", func(r *Relay, _ *leader) { offer(r, "baz", 1) }, nil, nil},
		{"again until it is taken", func(r *Relay, l *leader) {
			l.set(func() { l.fail = errors.New("no leader") })
			offer(r, "foo", 1)
			wait(2500 * time.Millisecond)
			l.set(func() { l.fail = nil })
			wait(time.Minute)
		}, []time.Duration{0, s, 2 * s, 3 * s}, []uint64{1, 1, 1, 1}},
		{"not for ever", func(r *Relay, l *leader) {
			l.set(func() { l.fail = errors.New("no leader") })
			offer(r, "foo", 1)
			wait(12500 * time.Millisecond)
			l.sent()
			wait(time.Minute)
		}, []time.Duration{13 * s, 14 * s}, []uint64{1, 1}},
		{"the newest alone", func(r *Relay, l *leader) {
			l.set(func() { l.fail = errors.New("no leader") })
			offer(r, "foo", 1)
			offer(r, "foo", 2)
			offer(r, "foo", 3)
			wait(s)
		}, []time.Duration{0, s}, []uint64{1, 3}},
		{"overtaken is taken", func(r *Relay, l *leader) {
			l.set(func() { l.fail = &Refusal{Status: http.StatusConflict, Word: RefusedReplay} })
			offer(r, "foo", 1)
			wait(time.Minute)
		}, []time.Duration{0}, []uint64{1}},
		{"a new leader hears it too, while it is young", func(r *Relay, l *leader) {
			offer(r, "foo", 1)
			wait(10 * s)
			offer(r, "bar", 2)
			wait(4 * s)
			l.sent()
			l.next()
			wait(s)
			l.next()
			wait(time.Minute)
		}, []time.Duration{4 * s, 5 * s, 14 * s}, []uint64{1, 2, 2}},
		{"a hanging leader does not hold up the next", func(r *Relay, l *leader) {
			l.set(func() { l.hang = true })
			offer(r, "foo", 1)
			offer(r, "foo", 2)
			wait(s)
			l.set(func() { l.hang = false })
			l.next()
			wait(time.Minute)
		}, []time.Duration{0, s}, []uint64{1, 2}},
		{"a hanging send ends in time", func(r *Relay, l *leader) {
			l.set(func() { l.hang = true })
			offer(r, "foo", 1)
			offer(r, "bar", 2)
			wait(sendTimeout + s)
		}, []time.Duration{0, 0, 6 * s, 6 * s}, []uint64{1, 1, 2, 2}},
	} {
		t.Run(c.what, func(t *testing.T) {
			withRelay(t, func(r *Relay, l *leader) {
				c.do(r, l)
				synctest.Wait()
				ages, seqs := l.sent()
				slices.Sort(ages)
				slices.Sort(seqs)
				if !slices.Equal(ages, c.ages) || !slices.Equal(seqs, c.seqs) {
					t.Errorf("sent at ages %v numbers %v, want %v, %v", ages, seqs, c.ages, c.seqs)
				}
				wait(2 * RelayFor)
				if len(r.kept) != 0 {
					t.Errorf("%d reports are kept for ever", len(r.kept))
				}
			})
		})
	}
}
