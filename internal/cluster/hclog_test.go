package cluster

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// What raft says again and again is logged once a minute, with how often it came, and separately for each node.
func TestRaftDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newRaftLog(slog.New(slog.NewTextHandler(&out, nil)))
		b, c := raft.Server{ID: "b", Address: "192.0.2.2:1"}, raft.Server{ID: "c", Address: "192.0.2.3:1"}
		for range 120 {
			l.Error("no answer", "peer", b)
			l.Named("x").Error("no answer", "peer", c)
			time.Sleep(time.Second)
		}
		got := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(got) != 4 {
			t.Fatalf("%d lines:\n%s", len(got), out.String())
		}
		for i, want := range []string{`peer="b at 192.0.2.2:1"`, `peer="c at 192.0.2.3:1"`, "repeated=59", "repeated=59"} {
			if !strings.Contains(got[i], want) {
				t.Errorf("line %d is %s, want %s in it", i, got[i], want)
			}
		}
		for i := range 10 * maxSayings {
			l.Error("no answer", "peer", raft.Server{ID: raft.ServerID(rune(i))})
		}
		if n := len(l.said.last); n > maxSayings {
			t.Errorf("%d messages are remembered", n)
		}
	})
}
