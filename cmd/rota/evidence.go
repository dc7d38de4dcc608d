package main

import (
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// evidence is what this process has seen for itself since it started. The state on disk may be days old: it is answered from, but no
// publisher is told of a service to write it anywhere until enough vantages hold a fresh opinion of it, or have had the time for one
// and could not form it.
type evidence struct {
	start time.Time

	mu    sync.Mutex // guards what follows
	fresh map[rota.Name]bool
	spec  []rota.Service // for which all are fresh
}

func newEvidence(start time.Time) *evidence {
	return &evidence{start: start, fresh: map[rota.Name]bool{}}
}

// look takes in the newest reports. It returns when to look again although nothing is heard, or nil when nothing is waited for.
func (e *evidence) look(st *rota.State, reports []*rota.Report, now time.Time) <-chan time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	services := st.Services()
	if sameSlice(services, e.spec) {
		return nil
	}
	wait := time.Duration(-1)
	for i := range services {
		v := &services[i]
		if e.fresh[v.Name] {
			continue
		}
		left := e.start.Add(v.Grace()).Sub(now)
		if left <= 0 || st.Heard(v.Name, reports, now) {
			e.fresh[v.Name] = true
			continue
		}
		if wait < 0 || left < wait {
			wait = left
		}
	}
	if wait < 0 {
		e.spec = services
		return nil
	}
	return time.After(wait)
}

// held reports whether nothing is to be said of a service yet.
func (e *evidence) held(name rota.Name) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.fresh[name]
}

// held reports whether publishers are to be told nothing of a name yet. What is no service rests on no evidence.
func (n *node) held(name rota.Name) bool {
	return n.raft.State().Service(name) != nil && n.seen.held(name)
}

// broadcast wakes everyone who waits.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// wait returns a channel that is closed by the next fire.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// source shows the state to publishers, who are woken when it or the evidence for it may have changed.
type source struct{ n *node }

func (s source) State() *rota.State       { return s.n.raft.State() }
func (s source) Changed() <-chan struct{} { return s.n.news.wait() }
