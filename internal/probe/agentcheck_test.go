package probe

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
	"github.com/rota-dns/rota/internal/rota"
)

// says serves a text to whoever connects.
func says(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text); silent(c) }
}

func TestAgentCheck(t *testing.T) {
	long := strings.Repeat("x", maxAgentLine)
	short := rota.Timing{Timeout: hasty}
	for _, c := range []struct {
		name   string
		server func(net.Conn)
		check  rota.Check
		want   string
	}{
		{"up", says("up\n"), rota.Check{}, "up ok: agent says up"},
		{"weight", says("75%\n"), rota.Check{}, "up ok: agent says 75%"},
		{"drip", func(c net.Conn) {
			for _, b := range []byte("  UP,\t50%\r") {
				_, _ = c.Write([]byte{b})
				time.Sleep(time.Millisecond)
			}
			silent(c)
		}, rota.Check{}, "up ok: agent says up 50%"},
		{"only maxconn", says("maxconn:30\n"), rota.Check{}, "up ok: agent answers"},
		{"the rest is not read", says("up\ndown\n" + long), rota.Check{}, "up ok: agent says up"},
		{"down", says("Down # disk is\x1b[2J full\n"), rota.Check{}, "down said: agent says down: disk is?[2J full"},
		{"maint", says("up maint\n"), rota.Check{}, "down said: agent says up maint"},
		{"drain", says("up drain 30%\n"), rota.Check{}, "draining said: agent says up drain 30%"},
		{"no weight", says("up 0%\n"), rota.Check{}, "draining said: agent says up 0%"},
		{"asked", func(c net.Conn) {
			if strings.HasPrefix(readLine(c), "www") {
				says("up\n")(c)
			}
		}, rota.Check{Send: "www\n"}, "up ok: agent says up"},
		{"nothing known", says("failed, GOOD\n"), rota.Check{}, `unknown exporter: agent: no known word in "failed, GOOD"; want up, down, fail, stopped, maint, drain, ready or a weight such as 75%`},
		{"nothing at all", says("\r\n"), rota.Check{OnError: rota.Down}, `down protocol: agent: no known word in ""; want up, down, fail, stopped, maint, drain, ready or a weight such as 75%`},
		{"cut off", func(c net.Conn) { _, _ = io.WriteString(c, "down") }, rota.Check{}, "unknown exporter: agent: it closed before the end of its line (CR or LF)"},
		{"NUL", says("up\x00\n"), rota.Check{}, "unknown exporter: agent: its line has a NUL byte"},
		{"endless", flood("", "down "), rota.Check{Send: "\r\n"}, fmt.Sprintf("unknown exporter: agent: no end of line in its first %d bytes", maxAgentLine)},
		{"closes", func(net.Conn) {}, rota.Check{}, "unknown exporter: answer: closed by the target"},
		{"silent", silent, rota.Check{Timing: short}, "unknown exporter: answer: not done within 500ms"},
		{"silent is down", silent, rota.Check{Timing: short, OnError: rota.Down}, "down timeout: answer: not done within 500ms"},
		{"drips", drip("", "u"), rota.Check{Send: "\r\n", Timing: short}, "unknown exporter: answer: not done within 500ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Kind = rota.KindAgentCheck
			tr := expect(t, Options{}, serve(t, c.server), c.check, c.want)
			o := tr.Observation
			if said := o.Class == rota.ClassSaid; o.Sure != said {
				t.Errorf("sure is %v of %s", o.Sure, verdict(tr))
			}
			if c.name == "weight" && o.Weight != 75 {
				t.Errorf("weight %d", o.Weight)
			}
		})
	}
}

// A description belongs to the word that it came with, and is gone when that word is taken back.
func TestAgentCheckDescriptions(t *testing.T) {
	var s agentState
	for _, c := range []struct{ line, want string }{
		{"drain # new kernel", "agent says drain: new kernel"},
		{"50%", "agent says drain 50%: new kernel"},
		{"down # disk full", "agent says down drain 50%: disk full; new kernel"},
		{"ready", "agent says down ready 50%: disk full"},
		{"up maint # by hand", "agent says up maint 50%: by hand"},
		{"up ready # all well", "agent says up ready 50%: all well"},
		{"up", "agent says up ready 50%"},
	} {
		if s.take(c.line); s.judge().reason != c.want {
			t.Errorf("after %q: %q, want %q", c.line, s.judge().reason, c.want)
		}
	}
}

func readLine(c net.Conn) string {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil || b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// agentView is what is held of a server after an agent's answers, by us and by HAProxy.
type agentView struct {
	status rota.Status
	weight int
}

// TestAgentCheckAsHAProxy has agents say one line after the other to a real HAProxy and to us: both hold the same after each.
func TestAgentCheckAsHAProxy(t *testing.T) {
	rows := [][]string{
		{"up\n", "down\n", "75%\n", "ready\n", "up\n"}, // a weight brings nobody back, nor does ready
		{"UP 50%\n", "stopped # for good\n", "Up\n"},
		{"drain\n", "up\n", "100%\n", "ready\n"},
		{"maint\n", "up\n", "drain\n", "ready\n"},
		{"up,ready\t33%\r\n", "0%\n", "up\n", "1%\n"},
		{"drain ready\n", "ready drain\n", "maint ready up down\n", "down up\n"},
		{"10% 20%\n", "30% 40%x\n", "7a%\n", "99999999999999999999%\n", "150%\n"},
		{"fail\n", "failed up2 ups\n", "up failed\n"},
		{"down#why\n", "down #why\n", "up#\n", "up #\n"},
		{"down", "up\n", "down\x00\n", "\n", "  ,\t\r\n"},
		{"maxconn:10 60%\n", "maxconn:x\n", "-5%\n", "%\n", "12.5%\n"},
		{"up 100% 0%\n", "# down\n", "up # down\n", "40% drain\n", "ready\n"},
		{"down up drain ready 5%\n", "DRAIN\n", "READY\n", "MAINT\n", "Ready Stopped\n"},
	}
	type agent struct {
		line  atomic.Value
		asked atomic.Int64
		at    netip.AddrPort
		q     *question
		m     memory
		view  agentView
	}
	agents := make([]*agent, len(rows))
	var conf strings.Builder
	conf.WriteString("listen l\n\tbind 127.0.0.1:" + strconv.Itoa(peers.FreePort(t)) + "\n")
	most := 0
	for i, lines := range rows {
		a := &agent{view: agentView{rota.Up, 100}}
		a.line.Store("100%\n")
		a.at = serve(t, func(c net.Conn) {
			line := a.line.Load().(string)
			_, _ = io.WriteString(c, line)
			a.asked.Add(1)
		})
		a.q = newQuestion(rota.Check{Kind: rota.KindAgentCheck, Port: a.at.Port(), Timing: rota.Timing{Timeout: patient}})
		agents[i] = a
		most = max(most, len(lines))
		fmt.Fprintf(&conf, "\tserver s%d 127.0.0.1:1 weight 100 agent-check agent-inter 50ms agent-port %d\n", i, a.at.Port())
	}
	h := peers.StartHAProxy(t, conf.String())
	p := New(Options{})
	for step := range most {
		var last []string
		for i, lines := range rows {
			if step >= len(lines) {
				last = append(last, "")
				continue
			}
			last = append(last, lines[step])
			a := agents[i]
			a.line.Store(lines[step])
			if o := p.observe(t.Context(), "t", a.at.Addr(), a.q, &a.m, nil).Observation; o.Status != rota.Unknown {
				a.view = agentView{o.Status, 0}
				if o.Status == rota.Up {
					a.view.weight = 100
					if o.Weight != 0 {
						a.view.weight = int(o.Weight)
					}
				}
			}
		}
		for i, a := range agents {
			if last[i] == "" {
				continue
			}
			from := a.asked.Load()
			for deadline := time.Now().Add(patient); a.asked.Load() < from+2; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("HAProxy does not ask")
				}
			}
		}
		for deadline := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
			views, state := haproxyViews(t, h)
			wrong := ""
			for i, a := range agents {
				if v := views[i]; last[i] != "" && v != a.view {
					wrong += fmt.Sprintf("after %q we hold %v, HAProxy %v\n", rows[i][:step+1], a.view, v)
				}
			}
			if wrong == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s%s", wrong, state)
			}
		}
	}
}

// haproxyViews reads what HAProxy holds of the servers, by their number.
func haproxyViews(t *testing.T, h *peers.HAProxy) (map[int]agentView, string) {
	t.Helper()
	const forcedMaint, forcedDrain = 0x01, 0x08
	state := h.Ask("show servers state l")
	views := map[int]agentView{}
	for line := range strings.SplitSeq(state, "\n") {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[3], "s") || f[1] != "l" {
			continue
		}
		number := func(s string) int {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatalf("state %q: %v", line, err)
			}
			return n
		}
		op, admin, weight := number(f[5]), number(f[6]), number(f[7])
		v := agentView{rota.Up, min(weight, 100)}
		switch {
		case admin&forcedMaint != 0, op == 0:
			v = agentView{rota.Down, 0}
		case admin&forcedDrain != 0, weight == 0:
			v = agentView{rota.Draining, 0}
		}
		views[number(f[3][1:])] = v
	}
	return views, state
}

func FuzzAgentLine(f *testing.F) {
	for _, line := range []string{"up 75% # fine", "DOWN,drain\tmaxconn:3 0%", "12.5% ready", "# up", "9999999999999999999999%"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var s agentState
		if !s.take(line) {
			if s != (agentState{}) {
				t.Errorf("%q has no known word and says %+v", line, s)
			}
			return
		}
		v := s.judge()
		if v.status == rota.Unknown || v.weight > 100 || len(v.reason) > rota.MaxReason || (v.weight != 0 && v.status != rota.Up) {
			t.Errorf("%q: %+v", line, v)
		}
		again := s
		if again.take(line); again != s {
			t.Errorf("%q said twice is %+v, then %+v", line, s, again)
		}
	})
}
