package e2e

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// longSilence is how long a server that is neither dead nor stopped may leave clients without an answer. It is long, because the machine
// may be busy; what it finds is a server that waits for others before it answers.
const longSilence = 10 * time.Second

// watcher is a client that asks a name server all the time and notes what must never be seen.
type watcher struct {
	server, name string
	allowed      []string

	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex // guards what follows
	asked   int        // answers that came
	wrong   []string
	banned  string
	only    []string  // the one answer that is right; nil: any that is allowed
	answers []sighted // each that differs from the one before
	last    time.Time // of the newest answer, or of the moment from which answers are expected again
	excused bool      // the server is dead or stopped on purpose
	silence time.Duration
}

// sighted is an answer and when it was seen first.
type sighted struct {
	at        time.Time
	addresses []string
}

// watch asks server for the addresses of name until the test ends. allowed are the only addresses that may be seen. Only an answer can
// be wrong: silence while a server is down is not.
func watch(t testing.TB, server, name string, allowed ...string) *watcher {
	w := watchFrom(t, nil, server, name, allowed...)
	w.excuse(true)
	return w
}

// watchFrom is watch from a place, and silence is wrong too: of a server that is not excused.
func watchFrom(t testing.TB, p *place, server, name string, allowed ...string) *watcher {
	t.Helper()
	w := &watcher{server: server, name: name, allowed: allowed, stop: make(chan struct{}), done: make(chan struct{}), last: time.Now()}
	var c net.Conn
	var err error
	if p == nil {
		c, err = net.Dial("udp", server)
	} else {
		c, err = p.dial("udp", server)
	}
	if err != nil {
		t.Fatal(err)
	}
	go w.run(&dns.Conn{Conn: c})
	t.Cleanup(func() { w.clean(t) })
	return w
}

func (w *watcher) run(c *dns.Conn) {
	defer close(w.done)
	defer c.Close()
	var serial uint32
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-pace.C:
		}
		in, err := w.exchange(c, dns.TypeA)
		if err != nil {
			w.silent()
			continue
		}
		w.judge(in)
		if in, err = w.exchange(c, dns.TypeSOA); err != nil {
			continue
		}
		for _, rr := range slices.Concat(in.Answer, in.Ns) {
			if soa, ok := rr.(*dns.SOA); ok {
				if serial != 0 && int32(soa.Serial-serial) < 0 {
					w.note(fmt.Sprintf("the serial went back from %d to %d", serial, soa.Serial))
				}
				serial = soa.Serial
			}
		}
	}
}

func (w *watcher) exchange(c *dns.Conn, qtype uint16) (*dns.Msg, error) {
	in, _, err := (&dns.Client{Timeout: 500 * time.Millisecond}).ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(w.name), qtype), c)
	return in, err
}

func (w *watcher) silent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.excused {
		w.silence = max(w.silence, time.Since(w.last))
	}
}

func (w *watcher) judge(in *dns.Msg) {
	var got []string
	for _, rr := range in.Answer {
		if a, ok := rr.(*dns.A); ok {
			got = append(got, a.A.String())
		} else {
			w.note("a record that is no address: " + rr.String())
		}
	}
	slices.Sort(got)
	w.mu.Lock()
	w.asked++
	w.last = time.Now()
	banned, only := w.banned, w.only
	if n := len(w.answers); n == 0 || !slices.Equal(w.answers[n-1].addresses, got) {
		w.answers = append(w.answers, sighted{w.last, got})
	}
	w.mu.Unlock()
	if in.Rcode != dns.RcodeSuccess || len(in.Answer) == 0 {
		w.note(fmt.Sprintf("rcode %s with %d answers", dns.RcodeToString[in.Rcode], len(in.Answer)))
	}
	for _, a := range got {
		switch {
		case a == banned:
			w.note(banned + " was answered, and it is known to be dead")
		case !slices.Contains(w.allowed, a):
			w.note(a + " was answered and is not configured")
		}
	}
	if only != nil && !slices.Equal(got, only) {
		w.note(fmt.Sprintf("%v was answered, and nothing should have changed %v", got, only))
	}
}

// ban makes one more address wrong from now on; empty lifts the ban.
func (w *watcher) ban(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.banned = address
}

// hold makes every other answer wrong from now on; without addresses it lifts that.
func (w *watcher) hold(only ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.only = only
}

// excuse says whether the server may be silent now.
func (w *watcher) excuse(excused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused, w.last = excused, time.Now()
}

// since returns when an answer was first seen after at that is exactly want; zero: not yet.
func (w *watcher) since(at time.Time, want ...string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.answers {
		if s.at.After(at) && slices.Equal(s.addresses, want) {
			return s.at
		}
	}
	return time.Time{}
}

// newest returns the newest answer.
func (w *watcher) newest() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.answers); n > 0 {
		return w.answers[n-1].addresses
	}
	return nil
}

// answering reports whether the newest answer is exactly want.
func (w *watcher) answering(want ...string) bool { return slices.Equal(w.newest(), want) }

func (w *watcher) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) < 20 {
		w.wrong = append(w.wrong, time.Now().Format("15:04:05.000 ")+what)
	}
}

// clean ends the watch and fails the test when anything was wrong, or nothing was seen.
func (w *watcher) clean(t testing.TB) {
	t.Helper()
	select {
	case <-w.stop:
		return
	default:
	}
	close(w.stop)
	<-w.done
	if w.asked == 0 {
		t.Errorf("the watcher at %s never got an answer", w.server)
	}
	for _, x := range w.wrong {
		t.Errorf("%s at %s: %s", w.name, w.server, x)
	}
	if w.silence > longSilence {
		t.Errorf("%s at %s: no answer for %v", w.name, w.server, w.silence)
	}
	if t.Failed() {
		t.Logf("%s at %s was answered as:\n%s", w.name, w.server, w.story())
	}
}

// story is what was answered, one line a change.
func (w *watcher) story() string {
	var b strings.Builder
	for _, s := range w.answers {
		fmt.Fprintf(&b, "%s %s\n", s.at.Format("15:04:05.000"), cmp.Or(strings.Join(s.addresses, " "), "nothing"))
	}
	return b.String()
}
