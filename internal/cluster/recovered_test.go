package cluster

import (
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// A cluster that was recovered is told from the one before, whether its log was there or not, and however often it happens.
func TestRecoveriesAreCounted(t *testing.T) {
	dir := t.TempDir()
	open := func() *Node {
		t.Helper()
		n, err := Open(Options{Dir: dir, Node: "a"})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := open()
	for {
		changed := n.Changed()
		if n.State().Lead().Node != "" {
			break
		}
		<-changed
	}
	if _, err := n.Append(t.Context(), rota.Event{Kind: rota.EventNodes, Nodes: []rota.Node{{ID: "1", Name: "x"}}}); err != nil {
		t.Fatal(err)
	}
	for want := range uint64(3) {
		if got := n.State().Recoveries(); got != want {
			t.Fatalf("%d recoveries, want %d", got, want)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(Options{Dir: dir, Node: "a"}, nil); err != nil {
			t.Fatal(err)
		}
		n = open()
		if len(n.State().Nodes()) != 1 {
			t.Error("the state was lost")
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}
