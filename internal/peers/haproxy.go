package peers

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// HAProxy is a running HAProxy.
type HAProxy struct {
	t      testing.TB
	socket string
	run    *process
}

// StartHAProxy starts HAProxy with the sections of a configuration that follow global and defaults (mode tcp), and waits until its
// stats socket answers. It ends with the test.
func StartHAProxy(t testing.TB, sections string) *HAProxy {
	t.Helper()
	// The socket lies beside the test's own directory: its path has to be shorter than that may be.
	short, err := os.MkdirTemp("", "haproxy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	dir := t.TempDir()
	h := &HAProxy{t: t, socket: filepath.Join(short, "s")}
	writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`global
	stats socket %s mode 600 level admin
defaults
	mode tcp
	timeout connect 5s
	timeout client 5s
	timeout server 5s
%s
`, h.socket, sections))
	h.run = start(t, Place{}, "haproxy", "haproxy", dir, "-db", "-f", filepath.Join(dir, "haproxy.cfg"))
	h.run.await(func() error {
		_, err := h.ask("show info")
		return err
	})
	return h
}

// Ask gives a command to the stats socket, such as "show servers state", and returns the answer.
func (h *HAProxy) Ask(command string) string {
	h.t.Helper()
	out, err := h.ask(command)
	if err != nil {
		h.t.Fatalf("haproxy: %s: %v", command, err)
	}
	return out
}

func (h *HAProxy) ask(command string) (string, error) {
	c, err := net.DialTimeout("unix", h.socket, askLimit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(askLimit))
	if _, err := io.WriteString(c, command+"\n"); err != nil {
		return "", err
	}
	out, err := io.ReadAll(c)
	return string(out), err
}
