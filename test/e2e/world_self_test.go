package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/peers"
)

// echo answers every packet at a place with itself, until the test ends, and counts what it hears.
func echo(t *testing.T, p *place) *atomic.Int64 {
	t.Helper()
	heard := new(atomic.Int64)
	var c net.PacketConn
	var err error
	p.within(func() { c, err = net.ListenPacket("udp", p.addr+":7") })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			heard.Add(1)
			_, _ = c.WriteTo(buf[:n], from) // who asked waits for it
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return heard
}

// ping sends packets from one place to the echo at another, one after the other, and returns how many came back and the shortest time
// one took.
func ping(t *testing.T, from, to *place, count int, wait time.Duration) (back int, shortest time.Duration) {
	t.Helper()
	c, err := from.dial("udp", to.addr+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	shortest = time.Hour
	for i := range count {
		begin := time.Now()
		text := strconv.Itoa(i)
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		for c.SetReadDeadline(begin.Add(wait)) == nil {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			if string(buf[:n]) == text {
				back++
				shortest = min(shortest, time.Since(begin))
				break
			}
		}
	}
	return back, shortest
}

// The world's faults do what they say: what is cut is cut, one way is one way, what is slow or lossy is so both for packets and for
// connections, and healing takes everything away.
func TestWorldFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.place("a"), w.place("b"), w.place("c")
	heard := map[*place]*atomic.Int64{}
	for _, p := range []*place{a, b, c} {
		heard[p] = echo(t, p)
	}
	reaches := func(from, to *place, want bool) bool {
		count := 3
		if want {
			count = 100 // a busy machine may be slow
		}
		for range count {
			if back, _ := ping(t, from, to, 1, 200*time.Millisecond); back > 0 {
				return true
			}
		}
		return false
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		for _, x := range []struct {
			name     string
			from, to *place
		}{{"a-b", a, b}, {"b-c", b, c}, {"a-c", a, c}, {"eye-a", w.eye, a}} {
			if got := reaches(x.from, x.to, want[x.name]); got != want[x.name] {
				t.Errorf("%s: %s reach each other: %v, want %v", when, x.name, got, want[x.name])
			}
		}
	}
	all := map[string]bool{"a-b": true, "b-c": true, "a-c": true, "eye-a": true}
	check("at first", all)
	w.cut(a, b)
	check("a and b cut", map[string]bool{"b-c": true, "a-c": true, "eye-a": true})
	w.isolate(c)
	check("c isolated too", map[string]bool{"eye-a": true})
	w.heal()
	check("healed", all)

	w.oneWay(b, a)
	before := heard[b].Load()
	if reaches(a, b, false) {
		t.Error("one way: a hears the answers of b")
	}
	if heard[b].Load() == before {
		t.Error("one way: b does not hear a")
	}
	w.heal()

	web := w.endpoint("web")
	w.worsen(a, b, 100*time.Millisecond, 0)
	w.worsen(a, web.place, 100*time.Millisecond, 0)
	back, shortest := ping(t, a, b, 5, 5*time.Second)
	if back != 5 || shortest < 200*time.Millisecond {
		t.Errorf("slow: %d of 5 came back, the fastest after %v; want all, none before 200ms", back, shortest)
	}
	begin := time.Now()
	if conn, err := a.dial("tcp", web.addr+":80"); err != nil {
		t.Errorf("slow: no connection: %v", err)
	} else {
		conn.Close()
		if took := time.Since(begin); took < 200*time.Millisecond {
			t.Errorf("slow: a connection took %v only", took)
		}
	}
	if _, fast := ping(t, a, c, 5, 5*time.Second); fast >= 100*time.Millisecond {
		t.Errorf("slow: a and c, who are not, need %v", fast)
	}
	w.worsen(a, b, 0, 20)
	if back, _ := ping(t, a, b, 40, 200*time.Millisecond); back == 0 || back == 40 {
		t.Errorf("a fifth of the packets lost each way: %d of 40 came back", back)
	}
	w.heal()
	check("healed again", all)
}

// A real BIND and an endpoint live at places; the watcher sees what the BIND answers, and says when it is silent.
func TestWorldBind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.endpoint("e1")
	at := w.place("dns1")
	b := peers.Start(t, peers.BIND, peers.Config{
		Zones: []peers.Zone{{Name: zoneName + ".", Text: "www 5 IN A " + e.addr}}, At: at.at(),
	})
	watcher := watchFrom(t, w.eye, b.Addr(), service, e.addr)
	eventually(t, "the watcher hears", func() bool { return watcher.answering(e.addr) })
	b.Update(zoneName+".", nil, []string{service + ". 5 IN A 192.0.2.1"})
	eventually(t, "the watcher hears what is foreign", func() bool {
		watcher.mu.Lock()
		defer watcher.mu.Unlock()
		return len(watcher.wrong) > 0
	})
	w.cut(w.eye, at)
	eventually(t, "the watcher notes the silence", func() bool {
		watcher.mu.Lock()
		defer watcher.mu.Unlock()
		return watcher.silence > time.Second
	})
	watcher.mu.Lock()
	watcher.wrong, watcher.silence = nil, 0 // they were meant
	watcher.mu.Unlock()
	watcher.excuse(true)
	if _, err := askFrom(w.eye, e.addr+":53", service, dns.TypeA); err == nil {
		t.Error("an endpoint answers DNS")
	}
	back := peers.NewRoadAt(t, w.place("road1").at(), b.Addr())
	if got, err := askFrom(w.eye, back.Addr(), service, dns.TypeA); err != nil || len(got) != 2 {
		t.Errorf("over a road: %v, %v", got, err)
	}
}

// worldChild makes TestWorldEnds a process that is killed.
const worldChild = "ROTA_TEST_WORLD_CHILD"

// Nothing outlives the test's process, not even when that is killed: no process, and with it no network.
func TestWorldEnds(t *testing.T) {
	if os.Getenv(worldChild) != "" {
		x := launch(t, newWorld(t).place("a"), exec.Command("sleep", "600"))
		fmt.Printf("CHILD %d\n", x.cmd.Process.Pid)
		<-x.done
		return
	}
	t.Parallel()
	c := exec.Command(os.Args[0], "-test.run=^TestWorldEnds$")
	c.Env = append(os.Environ(), worldChild+"=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "CHILD "); ok {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pid == 0 {
		t.Fatal("the child made no world")
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed
	eventually(t, "what ran in the world has ended", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
}
