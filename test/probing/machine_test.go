package probing

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role in the environment makes a process of this test binary one of the machine's parts.
const role = "ROTA_PROBING_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "target":
		serveTarget()
	case "rota":
		runRota()
	case "load":
		runLoad()
	default:
		os.Exit(m.Run())
	}
}

// machine is a network namespace with the target in it.
type machine struct {
	b      *testing.B
	dir    string
	net    *os.File
	target *part
	seen   int // processors
}

// The processors. A machine with one has one for all.
const (
	targetCore = 0
	proberCore = 1
	anyCore    = -1
)

func newMachine(b *testing.B) *machine {
	m := &machine{b: b, dir: b.TempDir(), seen: runtime.NumCPU()}
	if os.Geteuid() != 0 {
		b.Skip("needs root, for a network of its own")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		b.Fatal(err)
	}
	defer here.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatalf("a network of its own: %v", err)
	}
	if m.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.net.Close() })
	for name, value := range map[string]string{
		"net/ipv4/ip_local_port_range": "1024 65535",
		"net/ipv4/tcp_max_tw_buckets":  "8192",
		"net/core/somaxconn":           "65535",
	} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	m.command("ip", "link", "set", "lo", "up")
	// What is sent to the dark port is lost.
	m.command("nft", fmt.Sprintf("add table ip dark; add chain ip dark in { type filter hook input priority 0; }; add rule ip dark in tcp dport %d drop", portDark))
	if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread would go on in the wrong network
	}
	return m
}

// command runs a command where the caller's thread is.
func (m *machine) command(name string, args ...string) {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		m.b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// part is a process on the machine.
type part struct {
	m    *machine
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser // of our own parts
	out  *bufio.Reader
	said beginning // of the others
	done chan struct{}
}

// beginning keeps the first of what is written: a prober in trouble says something about each target.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), max(2048-b.Len(), 0))])
	return len(p), nil
}

// begin starts c in the machine's network, bound to a core.
func (m *machine) begin(core int, c *exec.Cmd) *part {
	m.b.Helper()
	p := &part{m: m, name: filepath.Base(c.Path), cmd: c, done: make(chan struct{})}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = &p.said
	m.within(core, func() {
		if err := c.Start(); err != nil {
			m.b.Fatal(err)
		}
	})
	go func() {
		_ = c.Wait() // what was measured tells
		close(p.done)
	}()
	m.b.Cleanup(p.end)
	return p
}

// within runs f on a thread in the machine's network that is bound to a core.
func (m *machine) within(core int, f func()) {
	m.b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		m.b.Fatal(err)
	}
	defer here.Close()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		m.b.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			panic(err)
		}
	}()
	if err := unix.Setns(int(m.net.Fd()), unix.CLONE_NEWNET); err != nil {
		m.b.Fatal(err)
	}
	if core != anyCore && m.seen > 1 {
		var one unix.CPUSet
		one.Set(nth(&all, core))
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			m.b.Fatal(err)
		}
	}
	f()
}

// nth is the number of the nth processor of a set, counted from 0.
func nth(set *unix.CPUSet, n int) int {
	for i := range len(set) * strconv.IntSize {
		if set.IsSet(i) {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return 0
}

// own starts a part that this test binary plays.
func (m *machine) own(core int, as string) *part {
	m.b.Helper()
	self, err := os.Executable()
	if err != nil {
		m.b.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), role+"="+as)
	in, err := c.StdinPipe()
	if err != nil {
		m.b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		m.b.Fatal(err)
	}
	p := m.begin(core, c)
	p.name, p.in, p.out = as, in, bufio.NewReader(out)
	return p
}

// other starts a program that a Debian package installs.
func (m *machine) other(core int, pkg, name string, args ...string) *part {
	m.b.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		m.b.Fatalf("%s is not installed: apt-get install --no-install-recommends %s", name, pkg)
	}
	return m.begin(core, exec.Command(path, args...))
}

// end kills the part, by its process id.
func (p *part) end() {
	_ = p.cmd.Process.Kill() // an error: it has ended
	<-p.done
}

// alive fails the benchmark when the part has ended.
func (p *part) alive() {
	p.m.b.Helper()
	select {
	case <-p.done:
		p.m.b.Fatalf("%s ended: %v\n%s", p.name, p.cmd.ProcessState, &p.said)
	default:
	}
}

// ask sends one of our own parts a line of JSON and reads its answer.
func (p *part) ask(question, answer any) {
	p.m.b.Helper()
	line, err := json.Marshal(question)
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	if err == nil {
		line, err = p.out.ReadBytes('\n')
	}
	if err == nil {
		err = json.Unmarshal(line, answer)
	}
	if err != nil {
		p.m.b.Fatalf("%s does not answer: %v", p.name, err)
	}
}

// answerer is the other end of ask: it answers lines until the input ends.
func answerer[Q, A any](answer func(Q) A) {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q Q
		if in.Decode(&q) != nil || out.Encode(answer(q)) != nil {
			return
		}
	}
}

// used is the processor time that the part has had.
func (p *part) used() time.Duration {
	p.m.b.Helper()
	p.alive()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.m.b.Fatal(err)
	}
	// The name, which may hold blanks, ends at the last bracket; utime and stime are the 14th and 15th field (proc(5)).
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		p.m.b.Fatalf("/proc/%d/stat: %s", p.cmd.Process.Pid, b)
	}
	const ticks = 100 // a second, on every architecture that Go knows
	return time.Duration(user+system) * time.Second / ticks
}

// resident is the memory of the part, in bytes.
func (p *part) resident() int {
	p.m.b.Helper()
	p.alive()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		p.m.b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		p.m.b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// kernel returns a counter of the machine's network: such as Tcp ActiveOpens (RFC 4022), Icmp InEchoReps (RFC 2011).
func (m *machine) kernel(protocol, counter string) int {
	m.b.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", m.target.cmd.Process.Pid))
	if err != nil {
		m.b.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == counter {
				n, err := strconv.Atoi(f[i])
				if err != nil {
					m.b.Fatal(err)
				}
				return n
			}
		}
	}
	m.b.Fatalf("the kernel does not count %s %s", protocol, counter)
	return 0
}
