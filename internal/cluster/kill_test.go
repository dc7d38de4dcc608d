package cluster

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// childEnv names the data directory to a test binary that runs as the child of TestKill.
const childEnv = "ROTA_TEST_CLUSTER_CHILD"

// child appends as fast as it can and says each acknowledged event on its standard output, until it is killed.
func child(dir string) {
	n, err := Open(Options{Dir: dir, Node: "a"})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	say := make(chan string)
	go func() {
		for s := range say {
			os.Stdout.WriteString(s)
		}
	}()
	ctx := context.Background()
	err = n.Lead(ctx, func(ctx context.Context, _ uint64) error {
		if len(n.State().Services()) == 0 {
			if _, err := n.Append(ctx, rota.Event{Kind: rota.EventSpec, Spec: spec(50, 2)}); err != nil {
				return err
			}
		}
		for w := range 4 {
			go func() {
				for i := w; ; i += 4 {
					e, err := n.Append(ctx, drain(i, n.State()))
					if err != nil {
						say <- "error " + err.Error() + "\n"
						return
					}
					say <- fmt.Sprintf("%d %s\n", e.Index, e.Overrides[0].Reason)
				}
			}()
		}
		<-ctx.Done()
		return nil
	})
	fmt.Println("error", err)
}

// TestKill kills a node with SIGKILL while it appends, time and again: what it acknowledged is there when it is opened again, at its
// index, and the state is the fold of the log.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	acknowledged := map[uint64]string{}
	for round := range rounds {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		kill := 20 + rand.IntN(400) // acknowledgements
		lines := bufio.NewScanner(out)
		seen := 0
		for lines.Scan() {
			index, reason, _ := strings.Cut(lines.Text(), " ")
			i, err := strconv.ParseUint(index, 10, 64)
			if err != nil {
				t.Errorf("child: %s", lines.Text())
				break
			}
			acknowledged[i] = reason
			if seen++; seen == kill {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = c.Process.Kill()
		_ = c.Wait()

		n, err := Open(Options{Dir: dir, Node: "a", History: 1 << 20})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		got := map[uint64]string{}
		state := &rota.State{}
		for _, r := range n.Records(0, 0) {
			if len(r.Event.Overrides) > 0 {
				got[r.Event.Index] = r.Event.Overrides[0].Reason
			}
			if state, err = state.Apply(r.Event); err != nil {
				t.Fatal(err)
			}
		}
		for i, reason := range acknowledged {
			if got[i] != reason {
				t.Fatalf("round %d: event %d was acknowledged as %q and is now %q", round, i, reason, got[i])
			}
		}
		led(t, n)
		for n.State().Index() > state.Index() { // the EventLead of this very opening
			r := n.Records(state.Index(), 0)[0]
			if state, err = state.Apply(r.Event); err != nil {
				t.Fatal(err)
			}
		}
		same(t, state, n.State())
		mustClose(t, n)
	}
	if len(acknowledged) < 20*rounds {
		t.Fatalf("only %d events were acknowledged", len(acknowledged))
	}
	t.Logf("%d events acknowledged over %d kills", len(acknowledged), rounds)
}
