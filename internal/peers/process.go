package peers

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a server in the foreground.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when the process has ended
}

// output keeps the last of what a process says.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

const maxOutput = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() > maxOutput {
		o.buf.Next(o.buf.Len() - maxOutput/2)
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// lookPath finds a server's program, in the directories that Debian keeps daemons in too.
func lookPath(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, candidate := range []string{name, filepath.Join("/usr/sbin", name), filepath.Join("/usr/local/sbin", name)} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: apt-get install --no-install-recommends %s", name, pkg)
	return ""
}

func start(t testing.TB, at Place, name, pkg, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, out: &output{}, done: make(chan struct{})}
	p.cmd = exec.Command(lookPath(t, name, pkg), args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	at.within(func() {
		if err := p.cmd.Start(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	})
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.out)
		}
	})
	return p
}

// kill ends the process and its children, and waits for it.
func (p *process) kill() {
	select {
	case <-p.done:
		return
	default:
	}
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// startLimit is how long a server may take to answer on a busy machine.
const startLimit = 30 * time.Second

// await waits until ready says nil.
func (p *process) await(ready func() error) {
	p.t.Helper()
	deadline := time.Now().Add(startLimit)
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-p.done:
			p.t.Fatalf("%s ended before it answered:\n%s", p.name, p.out)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s does not answer after %v: %v\n%s", p.name, startLimit, err, p.out)
		}
	}
}

// Nginx is a running nginx with one server block.
type Nginx struct {
	t    testing.TB
	dir  string
	addr string
	run  *process
}

// StartNginx starts nginx on an address such as 127.0.0.7 and a port, such as FreePort gives; server is the inside of its server block
// after listen, such as `location / { return 200 "ok"; }`. It ends with the test.
func StartNginx(t testing.TB, address string, port int, server string) *Nginx {
	t.Helper()
	n := &Nginx{t: t, dir: t.TempDir(), addr: net.JoinHostPort(address, strconv.Itoa(port))}
	n.Configure(server)
	return n
}

// Addr returns the address and port that nginx listens on.
func (n *Nginx) Addr() string { return n.addr }

// Configure starts nginx anew with another server block.
func (n *Nginx) Configure(server string) {
	n.t.Helper()
	writeFile(n.t, filepath.Join(n.dir, "nginx.conf"), fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events {}
http {
	access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server { listen %[2]s; %[3]s }
}
`, n.dir, n.addr, server))
	n.Restart()
}

// Restart starts nginx again on the same port, and waits until it accepts connections.
func (n *Nginx) Restart() {
	n.t.Helper()
	if n.run != nil {
		n.run.kill()
	}
	n.run = start(n.t, Place{}, "nginx", "nginx-light", n.dir, "-p", n.dir, "-e", "stderr", "-c", filepath.Join(n.dir, "nginx.conf"))
	n.run.await(func() error {
		c, err := net.DialTimeout("tcp", n.addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Kill ends nginx at once and waits for it.
func (n *Nginx) Kill() { n.run.kill() }

// Signal sends a signal to nginx, such as SIGSTOP.
func (n *Nginx) Signal(sig syscall.Signal) {
	n.t.Helper()
	if err := n.run.cmd.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
}

// Get asks nginx for a path and returns the status code.
func (n *Nginx) Get(path string) (int, error) {
	c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + n.addr + path)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}
