package publish

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// rolledKey is what an operator rolls to.
func rolledKey() peers.Key {
	return peers.Key{Name: "rota-2027", Algorithm: "hmac-sha512", Secret: "YW5vdGhlciBzZWNyZXQgb2YgdGhlIHJvdGEgdGVzdHM="}
}

func ours(k peers.Key) *Key { return &Key{Name: k.Name, Algorithm: k.Algorithm, Secret: k.Secret} }

// spoiltUpdates is U8: answers to updates are cut, junk, truncated or late. The DNS is changed once, and nothing stays wrong.
func spoiltUpdates(t *testing.T, x *target) {
	type answer func([]byte) [][]byte
	for name, spoil := range map[string]answer{
		"cut":  func(w []byte) [][]byte { return [][]byte{w[:len(w)/2]} },
		"junk": func([]byte) [][]byte { return [][]byte{bytes.Repeat([]byte{0xc0, 0x0c}, 600)} },
		"big": func(w []byte) [][]byte {
			return [][]byte{append(bytes.Clone(w), bytes.Repeat([]byte{0}, 60_000)...)}
		},
		"TC": func(w []byte) [][]byte {
			w = bytes.Clone(w)
			w[2] |= 0x02
			return [][]byte{w}
		},
		"gone": func([]byte) [][]byte { return nil },
	} {
		w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
		p := run(t, quick(w, x.backend(func(o *RFC2136Options) { o.Stream = true })), 1)
		eventually(t, name+": first write", func() bool { return settled(p.Publisher, w.State().At()) })
		serial := x.server.Serial("example.test.")
		var spoilt atomic.Int32
		x.road.Set(func(p peers.Packet) [][]byte {
			if !p.Query && p.Update() && spoilt.Add(1) == 1 {
				return spoil(p.Wire)
			}
			return [][]byte{p.Wire}
		})
		w.down("192.0.2.2")
		eventually(t, name+": the change", x.holds("www.example.test.", dns.TypeA, "192.0.2.1"))
		eventually(t, name+": settled", func() bool { return settled(p.Publisher, w.State().At()) })
		if spoilt.Load() == 0 {
			t.Errorf("%s: no answer was spoilt", name)
		}
		if now := x.server.Serial("example.test."); now != serial+1 {
			t.Errorf("%s: the serial went from %d to %d, want one step", name, serial, now)
		}
		if r := reasonCode(p.Publisher); r != "" {
			t.Errorf("%s: %s stays", name, r)
		}
		x.road.Set(peers.Pass)
		p.stop()
	}
}

// restoredBackup is U10: the zone goes back to how it was, our own older fence in it, while the writer goes on.
func restoredBackup(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(w, x.backend())
	o.Audit = 100 * time.Millisecond
	p := run(t, o, 3)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	var backup []string
	for _, rr := range x.server.Dump("example.test.") {
		if !strings.Contains(rr, " SOA ") && !strings.Contains(rr, " NS ns1.example") && !strings.HasPrefix(rr, "ns1.") {
			backup = append(backup, rr)
		}
	}
	old := x.fence()
	w.down("192.0.2.1")
	eventually(t, "a later write", x.holds("www.example.test.", dns.TypeA, "192.0.2.2"))
	eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) })
	if now := x.fence(); now.Seq <= old.Seq {
		t.Fatalf("the fence went from %v to %v", old, now)
	}
	x.server.SetZone(peers.Zone{Name: "example.test.", Text: strings.Join(backup, "\n")})
	eventually(t, "it converges", x.holds("www.example.test.", dns.TypeA, "192.0.2.2"))
	eventually(t, "the repair is counted", func() bool { return p.Status().Zones[0].Repairs >= 1 && reasonCode(p.Publisher) == "" })
}

// emptiedZone is U11: the zone is emptied at the server, then it is gone, then it is made anew. Another zone goes on meanwhile.
func emptiedZone(t *testing.T, x *target) {
	late := service("www.late.test", "192.0.2.1")
	late.Zone = "late.test."
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2"), late).up("192.0.2.1", "192.0.2.2")
	o := quick(w, x.backend())
	o.Audit = 100 * time.Millisecond
	p := run(t, o, 3)
	eventually(t, "first write", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
	x.server.SetZone(peers.Zone{Name: "example.test."})
	eventually(t, "records are made again", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
	code := func() Code {
		for _, z := range p.Status().Zones {
			if z.Zone == "late.test." && len(z.Reasons) > 0 {
				return z.Reasons[0].Code
			}
		}
		return ""
	}
	eventually(t, "the missing zone is named", func() bool { return code() == CodeNoZone })
	w.down("192.0.2.2")
	eventually(t, "the other zone goes on", x.holds("www.example.test.", dns.TypeA, "192.0.2.1"))
	x.server.SetZone(peers.Zone{Name: "late.test."})
	eventually(t, "the zone that came", x.holds("www.late.test.", dns.TypeA, "192.0.2.1"))
}

// twoTargets is U12: of two publishers of one service one is dead. The other one does not notice, and the dead one catches up.
func twoTargets(t *testing.T, x *target) {
	v := service("www.example.test", "192.0.2.1", "192.0.2.2")
	v.Publish = []string{testPublisher, "q"}
	w := newWorld(t, v).up("192.0.2.1", "192.0.2.2")
	other := newTarget(t, x.server.Kind)
	alive := run(t, quick(w, x.backend()), 1)
	o := quick(w, other.backend())
	o.Name = "q"
	dead := run(t, o, 1)
	both := func(want ...string) func() bool {
		return func() bool {
			return x.holds("www.example.test.", dns.TypeA, want...)() && other.holds("www.example.test.", dns.TypeA, want...)()
		}
	}
	eventually(t, "both", both("192.0.2.1", "192.0.2.2"))
	other.server.Kill()
	w.down("192.0.2.1")
	eventually(t, "the one that lives", x.holds("www.example.test.", dns.TypeA, "192.0.2.2"))
	eventually(t, "it is content", func() bool { return settled(alive.Publisher, w.State().At()) && reasonCode(alive.Publisher) == "" })
	eventually(t, "the dead one says so", func() bool { return reasonCode(dead.Publisher) == CodeUnreachable })
	other.server.Restart()
	eventually(t, "it catches up", both("192.0.2.2"))
}

// rolledKeys is U17: a key is rolled at the server, first both are known, then only the new one; and the other order, where the server
// is first. Every change is made all the time.
func rolledKeys(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	old, fresh := peers.DefaultKey(), rolledKey()
	p := run(t, quick(w, x.backend(func(o *RFC2136Options) { o.Key, o.OldKey = ours(fresh), ours(old) })), 1)
	eventually(t, "with the old key", func() bool { return settled(p.Publisher, w.State().At()) })
	for i, keys := range [][]peers.Key{{old, fresh}, {fresh}, {old}} {
		x.server.SetKeys(keys...)
		if i%2 == 0 {
			w.down("192.0.2.1")
			eventually(t, "a removal", x.holds("www.example.test.", dns.TypeA, "192.0.2.2"))
		} else {
			w.up("192.0.2.1")
			eventually(t, "a return", x.holds("www.example.test.", dns.TypeA, "192.0.2.1", "192.0.2.2"))
		}
		eventually(t, "settled", func() bool { return settled(p.Publisher, w.State().At()) && reasonCode(p.Publisher) == "" })
	}
	if _, err := NewRFC2136(RFC2136Options{Servers: []string{"192.0.2.1"}, OldKey: ours(old)}); err == nil {
		t.Error("an old key alone is taken")
	}
}

// killedAfterWrite is U20: the process ends between the write and its record. The next one reads, finds it done, and changes nothing.
func killedAfterWrite(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	first := run(t, quick(w, x.backend()), 1)
	eventually(t, "first write", func() bool { return settled(first.Publisher, w.State().At()) })
	first.stop()
	o := quick(w, x.backend())
	written := make(chan struct{})
	o.Record = func(ctx context.Context, _ rota.Published) error {
		close(written)
		<-ctx.Done()
		return ctx.Err()
	}
	killed := run(t, o, 2)
	w.down("192.0.2.1")
	<-written
	killed.stop()
	before := x.server.Dump("example.test.")
	next := run(t, quick(w, x.backend()), 3)
	eventually(t, "the next one", func() bool { return settled(next.Publisher, w.State().At()) })
	quiet := func(rr string) bool { return strings.Contains(rr, " SOA ") || strings.HasPrefix(rr, "_rota.") }
	if diff := cmp.Diff(slices.DeleteFunc(before, quiet), slices.DeleteFunc(x.server.Dump("example.test."), quiet)); diff != "" {
		t.Errorf("the next one changed the zone:\n%s", diff)
	}
	if s := next.Status().Zones[0]; s.Changes != 0 || s.Writes != 0 {
		t.Errorf("the next one made %d changes in %d writes", s.Changes, s.Writes)
	}
}

// flood is U22: changes come faster than the zone may be written. Few messages are sent, and the last state wins.
func flood(t *testing.T, x *target) {
	w := newWorld(t, service("www.example.test", "192.0.2.1", "192.0.2.2")).up("192.0.2.1", "192.0.2.2")
	o := quick(w, x.backend())
	o.MinGap = 200 * time.Millisecond
	p := run(t, o, 1)
	eventually(t, "first write", func() bool { return settled(p.Publisher, w.State().At()) })
	var sent tap
	x.road.Set(sent.rule(false))
	began := time.Now()
	for range 500 {
		w.down("192.0.2.1")
		w.up("192.0.2.1")
	}
	w.down("192.0.2.1")
	eventually(t, "the last state", func() bool {
		return x.holds("www.example.test.", dns.TypeA, "192.0.2.2")() && settled(p.Publisher, w.State().At())
	})
	most := 2 + int(time.Since(began)/o.MinGap)
	if n, _ := sent.count(); n > most {
		t.Errorf("%d messages for 1001 changes in %v, want at most %d", n, time.Since(began), most)
	}
}
