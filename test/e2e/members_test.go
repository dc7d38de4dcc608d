package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/link"
)

// L9: a cluster with a history takes in a new node while somebody writes; the new one answers nothing that is no longer true.
func TestNewcomer(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3})
	e := c.endpoints
	if err := c.nodes[1].override(e[2], "drain", "long gone"); err != nil {
		t.Fatal(err)
	}
	c.until("the drained one has left", c.without(e[2]))
	w := c.write(e[0])
	eventually(t, "there is a history", func() bool { return w.count() >= 200 })
	n := c.add("n4", "lax")
	c.watch()
	c.byNode[n].excuse(true)
	for _, x := range c.watchers {
		x.ban(e[2].addr)
	}
	begin := time.Now()
	c.join(n)
	t.Logf("the new node had a vote after %v", time.Since(begin).Round(time.Millisecond))
	w.progress("writes are taken with the new node")
	c.until("the new node answers as the others", c.without(e[2]))
	c.byNode[n].excuse(false)
	w.check()
	c.same()
}

// A node that ran alone becomes the first of a cluster, with the zone that it keeps true, and then may die as any other.
func TestGrow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{sites: threeSites[:1], endpoints: 3, bind: true})
	first, e := c.nodes[0], c.endpoints
	text, err := os.ReadFile(first.config)
	if err != nil {
		t.Fatal(err)
	}
	alone := regexp.MustCompile(`(?m)^cluster: .*$`).ReplaceAllString(string(text), "")
	first.write(alone)
	first.start()
	c.settle()
	if err := first.override(e[2], "drain", "said while alone"); err != nil {
		t.Fatal(err)
	}
	c.watch()
	want := c.without(e[2])
	c.until("the drained one has left", want)
	c.hold(want...)
	c.byNode[first].excuse(true)
	first.stop()
	first.write(string(text))
	c.bootstrap()
	c.byNode[first].excuse(false)
	for _, name := range []string{"n2", "n3"} {
		c.join(c.add(name, name))
	}
	c.watch()
	c.healthy(c.nodes...)
	c.same()
	c.hold()
	c.kill(first)
	e[0].kill()
	c.until("others write the zone of the first", c.without(e[0], e[2]))
	c.restart(first)
	c.until("the first follows", c.without(e[0], e[2]))
	c.healthy(c.nodes...)
	c.same()
}

// copyDir copies the data directory of a node that does not run.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case !info.Mode().IsRegular():
			return nil // a socket
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, info.Mode())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// L10, L11, L13: who does not belong does not come in, and nobody notices.
func TestWhoDoesNotBelong(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 2})
	c.hold(c.all...)
	defer c.hold()
	first, err := c.leader().standing()
	if err != nil {
		t.Fatal(err)
	}
	id := first.Cluster
	undisturbed := func(what string, voters int) {
		t.Helper()
		s, err := c.leader().standing()
		if err != nil || s.Cluster != id || s.Voters != voters || s.Term > first.Term+2 {
			t.Errorf("%s: the cluster is %+v (%v); it was %+v", what, s, err, first)
		}
		first.Term = s.Term
	}

	// L11: beginning a cluster where there is one is nothing.
	n1 := c.nodes[0]
	if out, err := n1.try("cluster", "bootstrap", "-c", n1.config); err != nil || !strings.Contains(out, "already") {
		t.Errorf("bootstrap of a node that runs: %v\n%s", err, out)
	}
	c.kill(n1)
	n1.launch("--bootstrap")
	c.answersAgain(n1)
	c.healthy(c.nodes...)
	undisturbed("run --bootstrap on a node of the cluster", 3)
	c.shape.cluster = ", join: [" + c.nodes[0].place.addr + ":3648]"
	second := c.outside("second")
	if out, err := second.try("cluster", "bootstrap", "-c", second.config); err == nil || !strings.Contains(out, id) {
		t.Errorf("bootstrap of a second cluster beside the first: %v\n%s", err, out)
	}
	c.shape.cluster = ""

	// L10: a node of another cluster.
	stranger := c.outside("stranger")
	stranger.rota("cluster", "bootstrap", "-c", stranger.config)
	stranger.start()
	err = c.nodes[1].do(http.MethodPost, "/api/v1/cluster/members", map[string]any{"node": "stranger", "address": stranger.place.addr + ":3648"}, nil)
	if err == nil {
		t.Error("a node of another cluster was added")
	}
	undisturbed("a node of another cluster", 3)

	// L10: a copied disk.
	twin := c.outside("twin")
	c.kill(c.nodes[2])
	copyDir(t, c.nodes[2].data, twin.data)
	c.restart(c.nodes[2])
	c.healthy(c.nodes...)
	twin.launch()
	eventually(t, "the copy is refused, and says so", func() bool {
		s, err := twin.standing()
		return err == nil && !s.Healthy || twin.ended()
	})
	c.stays(c.all...)
	c.hold(c.all...)
	undisturbed("a copied disk", 3)
	c.same()
	twin.kill()

	// L10, L13: a node that was removed, with all that it had.
	gone := c.others(c.leader())[0]
	c.byNode[gone].excuse(true)
	if err := c.leader().do(http.MethodDelete, "/api/v1/cluster/members/"+gone.name, nil, nil); err != nil {
		t.Fatal(err)
	}
	c.nodes = c.others(gone)
	c.healthy(c.nodes...)
	eventually(t, "the removed one says so", func() bool {
		s, err := gone.standing()
		return err == nil && s.Removed
	})
	gone.kill()
	gone.launch()
	eventually(t, "the removed one is not let in with its old data", func() bool {
		s, err := gone.standing()
		return gone.ended() || err == nil && !s.Healthy
	})
	undisturbed("a removed node with its old data", 2)
	leader := c.leader()
	for _, x := range []struct {
		who   string
		files link.Files
	}{
		{"a removed node", link.FilesIn(filepath.Join(gone.data, "link"))},
		{"a node of another cluster", link.FilesIn(filepath.Join(stranger.data, "link"))},
	} {
		for _, protocol := range []string{link.ProtocolRaft, link.ProtocolPeer} {
			if err := c.call(x.files, protocol, leader); err == nil {
				t.Errorf("%s was welcomed to %s", x.who, protocol)
			}
		}
	}
	for _, protocol := range []string{link.ProtocolRaft, link.ProtocolPeer, ""} {
		if got := c.knock(protocol, leader); got {
			t.Errorf("somebody without a certificate was answered on %q", protocol)
		}
	}
	undisturbed("calls of outsiders", 2)
	gone.kill()
	if err := os.RemoveAll(gone.data); err != nil {
		t.Fatal(err)
	}
	c.nodes = append(c.nodes, gone)
	gone.rota("cluster", "join", c.token(leader), "-c", gone.config)
	c.restart(gone)
	c.healthy(c.nodes...)
	undisturbed("the removed node, joined anew", 3)
	c.same()
}

// outside makes a node with a configuration that is of no cluster and not counted among the nodes.
func (c *cluster) outside(name string) *node {
	c.t.Helper()
	n := c.add(name, name)
	c.nodes = c.others(n)
	return n
}

// ended reports whether the node's process has ended by itself.
func (n *node) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// call calls a node's port as whoever has these files would, and returns why it was not welcome.
func (c *cluster) call(files link.Files, protocol string, to *node) error {
	c.t.Helper()
	credentials, err := link.LoadCredentials(link.CredentialOptions{Files: files})
	if err != nil {
		c.t.Fatal(err)
	}
	d, err := link.NewDialer(link.DialerOptions{Credentials: credentials})
	if err != nil {
		c.t.Fatal(err)
	}
	c.eye.within(func() {
		var conn *link.Conn
		if conn, err = d.Dial(context.Background(), protocol, to.place.addr+":3648"); err == nil {
			conn.Close()
		}
	})
	return err
}

// knock speaks to a node's port without a certificate, over TLS when there is a protocol, and reports whether anything is answered.
func (c *cluster) knock(protocol string, to *node) bool {
	c.t.Helper()
	conn, err := c.eye.dial("tcp", to.place.addr+":3648")
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if protocol != "" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
	}
	_, _ = conn.Write([]byte("\x00\x86\xa9RPCHeader\x81\xafProtocolVersion\x03")) // refused at the latest when it is read
	got, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("%s leaves a stranger connected for %v", to.name, patience)
	}
	return len(got) > 0 && (protocol != "" || got[0] != 21) // 21: a TLS alert
}

// L15: the last node left goes on alone by a command that asks first, and new nodes join it. Those given up do not come back.
func TestRecover(t *testing.T) {
	t.Parallel()
	c := startCluster(t, shape{sites: threeSites, endpoints: 3})
	e := c.endpoints
	if err := c.nodes[1].override(e[1], "drain", "before the disaster"); err != nil {
		t.Fatal(err)
	}
	want := c.without(e[1])
	c.until("the drained one has left", want)
	last := c.others(c.leader())[0]
	lost := c.others(last)
	c.kill(last)
	if out, err := last.try("cluster", "recover", "--yes", "-c", last.config); err == nil {
		t.Errorf("recovered while the others run:\n%s", out)
	}
	for _, n := range lost {
		c.kill(n)
	}
	if out, err := last.try("cluster", "recover", "-c", last.config); err == nil {
		t.Errorf("recover did not ask:\n%s", out)
	}
	last.rota("cluster", "recover", "--yes", "-c", last.config)
	c.nodes = []*node{last}
	c.byNode[last].hold(want...)
	c.restart(last)
	c.healthy(last)
	if err := last.override(e[2], "force-up", "after the disaster"); err != nil {
		t.Errorf("the one that recovered takes no override: %v", err)
	}
	before, err := last.standing()
	if err != nil {
		t.Fatal(err)
	}
	lost[0].launch()
	time.Sleep(several) // for it to do its worst; together, the lost would still be a majority, as the command says
	after, err := last.standing()
	if err != nil || !after.Leading || after.Voters != 1 || after.Term != before.Term {
		t.Errorf("a node that was given up disturbs the one that goes on: %+v, was %+v (%v)", after, before, err)
	}
	for _, n := range lost {
		n.kill()
		if err := os.RemoveAll(n.data); err != nil {
			t.Fatal(err)
		}
		n.rota("cluster", "join", c.token(last), "-c", n.config)
		c.nodes = append(c.nodes, n)
		c.restart(n)
		c.healthy(c.nodes...)
	}
	c.byNode[last].hold()
	c.until("all answer as before", want)
	c.same()
}
