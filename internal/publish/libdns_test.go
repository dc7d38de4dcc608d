package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libdns/libdns"
	"github.com/libdns/libdns/libdnstest"

	"github.com/rota-dns/rota/internal/rota"
)

// memDNS is a libdns provider in memory, with the manners of a real one: it refuses what is there already and CNAMEs beside other data.
type memDNS struct {
	*books

	state   apiFault // guarded by the lock of the books, as is what follows
	left    int
	holding *heldRequest
	taken   []func() error
	calls   int
	mutated int
}

const libDNSSecret = "libdns-s3cret"

func newMemDNS(t testing.TB, lines ...string) *memDNS {
	return &memDNS{books: newBooks(t, "example.test.", lines...)}
}

func (m *memDNS) backend(t testing.TB) Backend {
	b, err := NewLibDNS(LibDNSOptions{Name: "memory", Provider: m, Secrets: []string{libDNSSecret}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m *memDNS) records(string) []string             { return m.books.records() }
func (m *memDNS) edit(_ string, add, remove []string) { m.books.edit(add, remove) }
func (m *memDNS) secret() string                      { return libDNSSecret }

func (m *memDNS) fail(f apiFault, n int) bool {
	if !slices.Contains([]apiFault{apiFine, apiLost, api502, apiDropped, apiSilent, api500, apiEmpty, apiStale, apiAlien, apiPartial}, f) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.left, m.calm = f, n, m.calm && f == apiFine
	return true
}

func (m *memDNS) hold() *heldRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holding = &heldRequest{caught: make(chan struct{}), arrived: make(chan int, 1), release: make(chan struct{})}
	return m.holding
}

func (m *memDNS) replay() int {
	m.mu.Lock()
	taken := m.taken
	m.taken = nil
	m.mu.Unlock()
	for _, again := range taken {
		again()
	}
	return len(taken)
}

func (m *memDNS) writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mutated
}

func (m *memDNS) requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// next returns what happens to the next call, and what holds it.
func (m *memDNS) next(changes bool) (apiFault, *heldRequest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	f := m.state
	if m.left == 0 {
		f = apiFine
	} else if !changes && (f == apiLost || f == api502) {
		f = apiFine // of calls that change something
	} else if m.left > 0 {
		m.left--
	}
	if !changes {
		return f, nil
	}
	m.mutated++
	h := m.holding
	m.holding = nil
	return f, h
}

// mutate carries out a call that changes something, or worse.
func (m *memDNS) mutate(ctx context.Context, do func() error) error {
	f, held := m.next(true)
	if held != nil {
		close(held.caught)
		go func() {
			<-held.release
			if err := m.change(do); err != nil {
				held.arrived <- 409
				return
			}
			held.arrived <- 200
		}()
		f = apiSilent
	}
	switch f {
	case apiDropped:
		return &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
	case apiSilent:
		<-ctx.Done()
		return ctx.Err()
	case api500, apiPartial:
		return fmt.Errorf("POST https://api.memory.test/?key=%s: internal server error", libDNSSecret)
	case apiLost, api502:
		m.change(do)
		return &net.OpError{Op: "read", Err: errors.New("unexpected EOF")}
	}
	err := m.change(do)
	if err == nil && f == apiFine {
		m.mu.Lock()
		m.taken = append(m.taken, func() error { return m.change(do) })
		m.mu.Unlock()
	}
	return err
}

func (m *memDNS) row(rec libdns.Record) bookRow {
	rr := rec.RR()
	r := bookRow{name: m.abs(rr.Name), ttl: int(rr.TTL / time.Second), typ: rr.Type, data: rr.Data}
	if r.typ == "TXT" {
		r.data = quoted(r.data)
	}
	return r
}

// own makes a record of a row, of the type that stands for its kind.
func (m *memDNS) own(r bookRow) libdns.Record {
	rr := libdns.RR{Name: libdns.RelativeName(r.name, m.zone), TTL: time.Duration(r.ttl) * time.Second, Type: r.typ, Data: r.data}
	if r.typ == "TXT" {
		rr.Data = bare(r.data)
	}
	if rec, err := rr.Parse(); err == nil {
		return rec
	}
	return rr
}

func (m *memDNS) ListZones(context.Context) ([]libdns.Zone, error) {
	if f, _ := m.next(false); f == api500 {
		return nil, errors.New("internal server error")
	}
	return []libdns.Zone{{Name: "test."}, {Name: m.zone}}, nil
}

func (m *memDNS) GetRecords(ctx context.Context, zone string) ([]libdns.Record, error) {
	if zone != m.zone {
		return nil, fmt.Errorf("no such zone: %s", zone)
	}
	f, _ := m.next(false)
	switch f {
	case apiDropped:
		return nil, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
	case apiSilent:
		<-ctx.Done()
		return nil, ctx.Err()
	case api500:
		return nil, fmt.Errorf("GET https://api.memory.test/?key=%s: internal server error", libDNSSecret)
	case apiEmpty:
		return nil, nil
	}
	var out []libdns.Record
	for _, r := range m.listing(f == apiStale) {
		out = append(out, m.own(r))
	}
	if f == apiAlien {
		out = append(out, libdns.RR{Name: "@", Type: "WEB", Data: "https://elsewhere.example"}, libdns.RR{Name: "a..b", Type: "A", Data: "no address"})
	}
	return out, nil
}

func (m *memDNS) AppendRecords(ctx context.Context, _ string, recs []libdns.Record) ([]libdns.Record, error) {
	return recs, m.mutate(ctx, func() error {
		for _, rec := range recs {
			if err := m.add(m.row(rec)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *memDNS) add(r bookRow) error {
	if slices.ContainsFunc(m.rows, func(o bookRow) bool { return o.name == r.name && o.typ == r.typ && o.data == r.data }) {
		return fmt.Errorf("already there: %s", r.line())
	}
	if err := m.conflict(r); err != nil {
		return err
	}
	m.put(r)
	return nil
}

func (m *memDNS) SetRecords(ctx context.Context, _ string, recs []libdns.Record) ([]libdns.Record, error) {
	return recs, m.mutate(ctx, func() error {
		for _, rec := range recs {
			r := m.row(rec)
			m.rows = slices.DeleteFunc(m.rows, func(o bookRow) bool { return o.name == r.name && o.typ == r.typ })
		}
		for _, rec := range recs {
			if err := m.add(m.row(rec)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *memDNS) DeleteRecords(ctx context.Context, _ string, recs []libdns.Record) ([]libdns.Record, error) {
	var gone []libdns.Record
	err := m.mutate(ctx, func() error {
		gone = nil
		for _, rec := range recs {
			want := m.row(rec)
			m.rows = slices.DeleteFunc(m.rows, func(o bookRow) bool {
				same := o.name == want.name && (want.typ == "" || o.typ == want.typ) && (want.ttl == 0 || o.ttl == want.ttl) &&
					(rec.RR().Data == "" || o.data == want.data)
				if same {
					gone = append(gone, m.own(o))
				}
				return same
			})
		}
		return nil
	})
	return gone, err
}

// The provider that our adapter is tested with is a good one: libdns' own suite says so.
func TestLibDNSProvider(t *testing.T) {
	m := newMemDNS(t)
	m.calm, m.read = false, true
	libdnstest.NewTestSuite(m, "example.test.").RunTests(t)
}

func TestLibDNSOptions(t *testing.T) {
	if _, err := NewLibDNS(LibDNSOptions{Name: "x", Provider: 7}); err == nil {
		t.Error("a number is no provider")
	}
	type mute struct{ libDNSProvider }
	if _, err := NewLibDNS(LibDNSOptions{Name: "x", Provider: mute{newMemDNS(t)}}); err == nil || !strings.Contains(err.Error(), "zones") {
		t.Errorf("a provider that cannot list its zones: %v", err)
	}
	b, err := NewLibDNS(LibDNSOptions{Name: "x", Provider: mute{newMemDNS(t)}, Zones: []rota.Name{"example.test."}})
	if err != nil {
		t.Fatal(err)
	}
	if z, err := b.Zone(t.Context(), "www.example.test."); err != nil || z != "example.test." {
		t.Errorf("%s, %v", z, err)
	}
}

// rudeDNS is a provider that panics, or goes on for as long as it likes.
type rudeDNS struct {
	*memDNS
	do atomic.Pointer[func(changes bool)]
}

func (r *rudeDNS) be(do func(changes bool)) { r.do.Store(&do) }

func (r *rudeDNS) GetRecords(ctx context.Context, zone string) ([]libdns.Record, error) {
	(*r.do.Load())(false)
	return r.memDNS.GetRecords(ctx, zone)
}

func (r *rudeDNS) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	(*r.do.Load())(true)
	return r.memDNS.AppendRecords(ctx, zone, recs)
}

// nilDNS lists a record that is none.
type nilDNS struct{ *memDNS }

func (nilDNS) GetRecords(context.Context, string) ([]libdns.Record, error) {
	return []libdns.Record{nil}, nil
}

// A provider runs inside rota: one that panics or does not heed the end of its time fails, and takes nobody with it.
func TestLibDNSRude(t *testing.T) {
	keys := []rota.Key{www}
	synctest.Test(t, func(t *testing.T) {
		rude := &rudeDNS{memDNS: newMemDNS(t, apiForeign...)}
		rude.be(func(bool) { panic("index out of " + libDNSSecret) })
		b, err := NewLibDNS(LibDNSOptions{Name: "rude", Provider: rude, Secrets: []string{libDNSSecret}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Read(t.Context(), "example.test.", keys)
		if r := ReasonOf(err); r.Code != CodeInternal || r.InDoubt || !strings.Contains(r.Text, "panicked") || strings.Contains(r.Error(), libDNSSecret) {
			t.Errorf("a panic: %+v", r)
		}
		b2, err := NewLibDNS(LibDNSOptions{Name: "nil", Provider: nilDNS{rude.memDNS}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = b2.Read(t.Context(), "example.test.", keys); ReasonOf(err).Code != CodeInternal {
			t.Errorf("a record that is nil: %v", err)
		}
		rude.be(func(changes bool) {
			if changes {
				panic("no")
			}
		})
		err = apiWrite(t, b, rr("www.example.test.", rota.TypeA, 60, "192.0.2.1"))
		if r := ReasonOf(err); err == nil || r.Code != CodeInternal || !r.InDoubt {
			t.Errorf("a panic while it writes: %v", err)
		}

		deaf := make(chan struct{})
		rude.be(func(bool) { <-deaf })
		start := time.Now()
		for range libDNSCalls {
			if _, err = b.Read(t.Context(), "example.test.", keys); ReasonOf(err).Code != CodeUnreachable {
				t.Errorf("a provider that does not heed the end of its time: %v", err)
			}
		}
		if took := time.Since(start); took > libDNSCalls*(libDNSTimeout+libDNSGrace) {
			t.Errorf("took %v", took)
		}
		rude.be(func(bool) { t.Error("the provider was called though as many calls have not ended as may be") })
		if _, err = b.Read(t.Context(), "example.test.", keys); ReasonOf(err).Code != CodeUnreachable || !strings.Contains(err.Error(), "have not ended") {
			t.Errorf("one call more: %v", err)
		}
		rude.be(func(bool) {})
		close(deaf)
		synctest.Wait()
		if _, err = b.Read(t.Context(), "example.test.", keys); err != nil {
			t.Errorf("when all calls have ended: %v", err)
		}
	})
}

// A TTL is set for the RRset as a whole, and texts come and go as they are.
func TestLibDNSRecords(t *testing.T) {
	m := newMemDNS(t, `www.example.test. 60 IN A 192.0.2.1`, `www.example.test. 60 IN A 192.0.2.2`, `txt.example.test. 60 IN TXT "a \"b\" \\ c"`)
	m.foreign = nil
	b := m.backend(t)
	if err := apiWrite(t, b, rr("www.example.test.", rota.TypeA, 120, "192.0.2.1", "192.0.2.2", "192.0.2.3"), rr("example.test.", rota.TypeA, 120, "192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	want := []string{"www.example.test. 120 IN A 192.0.2.1", "www.example.test. 120 IN A 192.0.2.2", "www.example.test. 120 IN A 192.0.2.3"}
	if got := linesOf(m.records(""), "www.example.test."); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	have, err := b.Read(t.Context(), "example.test.", []rota.Key{{Name: "txt.example.test.", Type: rota.TypeTXT}})
	if err != nil || len(have.Sets) != 1 || have.Sets[0].Data[0] != `"a \"b\" \\ c"` {
		t.Errorf("%+v, %v", have.Sets, err)
	}
}

func TestLibDNSConformance(t *testing.T) {
	apiConformance(t, true, func(t testing.TB) fakeAPI { return newMemDNS(t, apiForeign...) })
}
