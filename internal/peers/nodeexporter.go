package peers

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"testing"
)

// NodeExporter is a running node_exporter of Prometheus, which shows this machine's own numbers.
type NodeExporter struct {
	t    testing.TB
	addr string
	run  *process
}

// StartNodeExporter starts node_exporter on an address such as 127.0.0.7 or ::1 and a port, such as FreePort gives. It ends with the test.
func StartNodeExporter(t testing.TB, address string, port int) *NodeExporter {
	t.Helper()
	n := &NodeExporter{t: t, addr: net.JoinHostPort(address, strconv.Itoa(port))}
	n.Restart()
	return n
}

// Addr returns the address and port that node_exporter listens on.
func (n *NodeExporter) Addr() string { return n.addr }

// Restart starts node_exporter again on the same port, and waits until it answers.
func (n *NodeExporter) Restart() {
	n.t.Helper()
	if n.run != nil {
		n.run.kill()
	}
	n.run = start(n.t, Place{}, "prometheus-node-exporter", "prometheus-node-exporter", n.t.TempDir(),
		"--web.listen-address="+n.addr, "--no-collector.systemd", "--log.level=error")
	n.run.await(func() error {
		_, err := n.Page()
		return err
	})
}

// Page returns what node_exporter shows.
func (n *NodeExporter) Page() (string, error) {
	c := http.Client{Timeout: startLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + n.addr + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Kill ends node_exporter at once and waits for it.
func (n *NodeExporter) Kill() { n.run.kill() }

// Signal sends a signal to node_exporter, such as SIGSTOP.
func (n *NodeExporter) Signal(sig syscall.Signal) {
	n.t.Helper()
	if err := n.run.cmd.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
}
