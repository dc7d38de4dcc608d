package e2e

import (
	"bytes"
	"container/list"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rota-dns/rota/internal/peers"
)

// network is a network namespace without a name. Only the descriptor and the processes in it keep it, so nothing is left of it when the
// test's process ends, however it ends.
type network struct{ f *os.File }

func newNetwork(t testing.TB) network {
	t.Helper()
	defer stay()()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a network of its own: %v (these tests run as root)", err)
	}
	f, err := os.Open(thisNetwork)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return network{f}
}

const thisNetwork = "/proc/thread-self/ns/net"

// stay keeps the goroutine on its thread, and returns what takes the thread back to its network and sets the goroutine free.
func stay() func() {
	runtime.LockOSThread()
	back, err := os.Open(thisNetwork)
	if err != nil {
		panic(err)
	}
	return func() {
		enter(back)
		back.Close()
		runtime.UnlockOSThread()
	}
}

func enter(f *os.File) {
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread would go on in the wrong network
	}
}

// within runs f on a thread that is in the network. Processes that f starts and sockets that it opens stay there; goroutines that it
// starts do not.
func (n network) within(f func()) {
	defer stay()()
	enter(n.f)
	f()
}

// run runs a command in the network and returns what it prints.
func (n network) run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	var out bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &out
	var err error
	n.within(func() { err = c.Start() })
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, stdin, &out)
	}
	return out.String()
}

// place is a network with one machine in it, joined to the other places through the world's router.
type place struct {
	network

	name   string // of its interface, too: 12 characters at most
	prefix string // all its addresses
	addr   string // its own address
}

// at is the place for a server of package peers.
func (p *place) at() peers.Place { return peers.Place{Address: p.addr, Within: p.within} }

// dial connects to an address as the place sees it.
func (p *place) dial(network, address string) (c net.Conn, err error) {
	p.within(func() { c, err = net.DialTimeout(network, address, 2*time.Second) })
	return c, err
}

// world is a small internet on one machine: places, a router between all of them, and faults on the way. Faults are on the router, one
// way each, and are put in force all together, whatever was before.
type world struct {
	t      testing.TB
	router network
	eye    *place // where clients stand

	mu     sync.Mutex // guards what follows
	places []*place
	faults map[way]fault
	slow   *slowRoad // nil until a way is slow
}

// way is from one place to another.
type way struct{ from, to *place }

// fault is what is wrong with a way.
type fault struct {
	cut   bool
	loss  int           // percent of the packets that are lost
	delay time.Duration // of each packet
	vary  time.Duration // the delay is this much longer or shorter, at random
}

// lag is how long packets are kept.
type lag struct{ delay, vary time.Duration }

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, router: newNetwork(t), faults: map[way]fault{}}
	w.router.run(t, "", "ip", "link", "set", "lo", "up")
	w.router.within(func() {
		for name, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			"net/ipv4/conf/all/send_redirects": "0",
		} {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	w.eye = w.place("eye")
	return w
}

// place adds a place.
func (w *world) place(name string) *place {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.places) + 1
	p := &place{
		network: newNetwork(w.t), name: name,
		prefix: fmt.Sprintf("10.77.%d.0/24", n), addr: fmt.Sprintf("10.77.%d.1", n),
	}
	c := exec.Command("ip", "-batch", "-")
	c.ExtraFiles = []*os.File{p.f}
	c.Stdin = strings.NewReader(fmt.Sprintf(`link add name %[1]s type veth peer name road netns /proc/self/fd/3
addr add 10.77.%[2]d.254/24 dev %[1]s
link set dev %[1]s up
`, name, n))
	var out []byte
	var err error
	w.router.within(func() { out, err = c.CombinedOutput() })
	if err != nil {
		w.t.Fatalf("place %s: %v\n%s", name, err, out)
	}
	p.run(w.t, fmt.Sprintf("link set lo up\naddr add %s/24 dev road\nlink set road up\nroute add default via 10.77.%d.254\n", p.addr, n),
		"ip", "-batch", "-")
	w.places = append(w.places, p)
	return p
}

// set puts faults in force on ways, beside what is wrong already.
func (w *world) set(change func(fault) fault, ways ...way) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range ways {
		w.faults[x] = change(w.faults[x])
	}
	w.apply()
}

// apply writes all rules anew, in one transaction.
func (w *world) apply() {
	w.t.Helper()
	var b strings.Builder
	b.WriteString("table ip world\ndelete table ip world\ntable ip world { chain road { type filter hook prerouting priority mangle;\niifname \"slow\" accept\n")
	delays := map[[2]netip.Prefix]lag{}
	for x, f := range w.faults {
		match := fmt.Sprintf("ip saddr %s ip daddr %s", x.from.prefix, x.to.prefix)
		if f.cut {
			fmt.Fprintf(&b, "%s drop\n", match)
		}
		if f.loss > 0 {
			fmt.Fprintf(&b, "%s numgen random mod 100 < %d drop\n", match, f.loss)
		}
		if f.delay > 0 {
			fmt.Fprintf(&b, "%s meta mark set 1\n", match)
			delays[[2]netip.Prefix{netip.MustParsePrefix(x.from.prefix), netip.MustParsePrefix(x.to.prefix)}] = lag{f.delay, f.vary}
		}
	}
	b.WriteString("}\n}\n")
	if w.slow == nil && len(delays) > 0 {
		w.slow = newSlowRoad(w.t, w.router)
	}
	if w.slow != nil {
		w.slow.set(delays)
	}
	w.router.run(w.t, b.String(), "nft", "-f", "-")
}

func both(a, b *place) []way { return []way{{a, b}, {b, a}} }

// cut lets nothing pass between two places.
func (w *world) cut(a, b *place) {
	w.t.Helper()
	w.set(func(f fault) fault { f.cut = true; return f }, both(a, b)...)
}

// oneWay lets nothing pass from one place to another; what goes the other way arrives.
func (w *world) oneWay(from, to *place) {
	w.t.Helper()
	w.set(func(f fault) fault { f.cut = true; return f }, way{from, to})
}

// around returns the ways between a place and all others but the clients' and those in but.
func (w *world) around(p *place, but ...*place) []way {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []way
next:
	for _, o := range w.places {
		for _, b := range append(but, p, w.eye) {
			if o == b {
				continue next
			}
		}
		out = append(out, both(p, o)...)
	}
	return out
}

// isolate cuts a place off from all others, but not from the clients, who see what it answers.
func (w *world) isolate(p *place) {
	w.t.Helper()
	w.set(func(f fault) fault { f.cut = true; return f }, w.around(p)...)
}

// worsen delays packets between two places, each way, and loses some.
func (w *world) worsen(a, b *place, delay time.Duration, loss int) {
	w.t.Helper()
	w.set(func(f fault) fault { f.delay, f.loss = delay, loss; return f }, both(a, b)...)
}

// heal takes all faults away. What is delayed still arrives.
func (w *world) heal() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.faults)
	w.apply()
}

// slowRoad takes the packets that the router marks, keeps each for a while and gives it back to the router. A kernel's netem would do
// it too, but not every kernel has it.
type slowRoad struct {
	tun *os.File

	mu     sync.Mutex // guards what follows
	delays map[[2]netip.Prefix]lag
	held   list.List // of heldPacket, in the order of their time
	wake   chan struct{}
}

type heldPacket struct {
	due  time.Time
	wire []byte
}

func newSlowRoad(t testing.TB, router network) *slowRoad {
	t.Helper()
	r := &slowRoad{wake: make(chan struct{}, 1)}
	router.within(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatalf("/dev/net/tun: %v", err)
		}
		var req struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			_     [22]byte
		}
		copy(req.name[:], "slow")
		req.flags = unix.IFF_TUN | unix.IFF_NO_PI
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
			t.Fatalf("/dev/net/tun: %v", e)
		}
		r.tun = os.NewFile(uintptr(fd), "slow")
	})
	router.run(t, "link set slow up txqueuelen 10000\nrule add fwmark 1 lookup 100\nroute add default dev slow table 100\n", "ip", "-batch", "-")
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(r.take)
	wg.Go(func() { r.give(ended) })
	t.Cleanup(func() {
		close(ended)
		r.tun.Close()
		wg.Wait()
	})
	return r
}

func (r *slowRoad) set(delays map[[2]netip.Prefix]lag) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delays = delays
}

// take reads what is to be delayed.
func (r *slowRoad) take() {
	buf := make([]byte, 65536)
	for {
		n, err := r.tun.Read(buf)
		if err != nil {
			return
		}
		if n < 20 || buf[0]>>4 != 4 {
			continue // the kernel's own, such as router solicitations of IPv6
		}
		from, to := netip.AddrFrom4([4]byte(buf[12:16])), netip.AddrFrom4([4]byte(buf[16:20]))
		r.mu.Lock()
		var delay time.Duration
		for k, d := range r.delays {
			if k[0].Contains(from) && k[1].Contains(to) {
				delay = d.delay
				if d.vary > 0 {
					delay += rand.N(2*d.vary) - d.vary
				}
			}
		}
		p := heldPacket{due: time.Now().Add(delay), wire: bytes.Clone(buf[:n])}
		e := r.held.Back()
		for e != nil && e.Value.(heldPacket).due.After(p.due) {
			e = e.Prev()
		}
		if e == nil {
			r.held.PushFront(p)
		} else {
			r.held.InsertAfter(p, e)
		}
		r.mu.Unlock()
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// give gives back what was kept long enough.
func (r *slowRoad) give(ended chan struct{}) {
	for {
		r.mu.Lock()
		wait := time.Hour
		for e := r.held.Front(); e != nil; e = r.held.Front() {
			p := e.Value.(heldPacket)
			if wait = time.Until(p.due); wait > 0 {
				break
			}
			r.held.Remove(e)
			wait = time.Hour
			_, _ = r.tun.Write(p.wire) // a packet that is lost is a packet that is lost
		}
		r.mu.Unlock()
		select {
		case <-ended:
			return
		case <-r.wake:
		case <-time.After(wait):
		}
	}
}

// endpoint is a web server at a place, on port 80: what the services of these tests are.
type endpoint struct {
	*place

	t      testing.TB
	server *http.Server
	ended  chan struct{}
	sick   atomic.Int64 // of so many requests it answers one with 503; 0: none
	asked  atomic.Int64
}

func (w *world) endpoint(name string) *endpoint {
	w.t.Helper()
	e := &endpoint{place: w.place(name), t: w.t}
	e.start()
	w.t.Cleanup(e.kill)
	return e
}

// start makes the endpoint answer.
func (e *endpoint) start() {
	e.t.Helper()
	var l net.Listener
	var err error
	e.within(func() { l, err = net.Listen("tcp", net.JoinHostPort(e.addr, "80")) })
	if err != nil {
		e.t.Fatal(err)
	}
	e.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := e.sick.Load(); n > 0 && e.asked.Add(1)%n == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, "on duty at", e.name)
	})}
	e.ended = make(chan struct{})
	go func(s *http.Server, ended chan struct{}) {
		defer close(ended)
		_ = s.Serve(l) // ends with kill
	}(e.server, e.ended)
}

// kill makes the endpoint refuse connections.
func (e *endpoint) kill() {
	e.server.Close()
	<-e.ended
}

// process is a command that runs in the background, in a place or, without one, where the test is.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// launch starts a command that dies with the test's process.
func launch(t testing.TB, p *place, c *exec.Cmd) *process {
	t.Helper()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if p == nil {
		err = c.Start()
	} else {
		p.within(func() { err = c.Start() })
	}
	if err != nil {
		t.Fatal(err)
	}
	x := &process{cmd: c, done: make(chan struct{})}
	go func() {
		_ = c.Wait() // the test looks at the state and the log
		close(x.done)
	}()
	return x
}

// kill is kill -9, also of what is stopped.
func (x *process) kill() {
	_ = x.cmd.Process.Kill() // an error: it has ended
	<-x.done
}

func (x *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := x.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}
