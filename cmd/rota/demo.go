package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// demoName is the name the demo serves; .test is reserved for such use (RFC 6761 §6.2).
const demoName = "www.demo.test"

type demoOptions struct {
	length  time.Duration // 0: until interrupted
	listen  string        // of the name server
	out     io.Writer
	in      io.Reader
	explain func(ctx context.Context, w io.Writer, socket string) error
}

func (a *app) demoCommand() *cobra.Command {
	o := demoOptions{}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show rota at work: three endpoints, the embedded name server, a failure leaving the answer",
		Long: `Starts three small web servers on 127.0.0.2, 127.0.0.3 and 127.0.0.4, a rota that checks them and answers for
` + demoName + ` by its own name server, and then kills one endpoint and brings it back, printing what the DNS answers.
Needs no set-up, no privilege and no network; everything is gone when it ends.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.out, o.in = a.out, c.InOrStdin()
			o.explain = func(ctx context.Context, w io.Writer, socket string) error {
				asks := *a
				asks.out, asks.err = w, w
				if code := asks.main(ctx, []string{"--addr", "unix://" + socket, "explain", demoName}); code != exitOK {
					return fmt.Errorf("rota explain ended with exit code %d", code)
				}
				return nil
			}
			return demo(c.Context(), o)
		},
	}
	c.Flags().DurationVar(&o.length, "for", 0, "end by itself after this long, at least 12s (default: until Ctrl-C)")
	c.Flags().StringVar(&o.listen, "listen", "127.0.0.1:5354", "address of the demo's name server; when it is taken, any free port")
	return c
}

// shortestDemo is what a failure, its removal, the return and the explanation need, with room for a slow machine.
const shortestDemo = 12 * time.Second

func demo(ctx context.Context, o demoOptions) error {
	if o.length != 0 && o.length < shortestDemo {
		return usagef("--for %v is too short to show a failure and a return: give at least %v", o.length, shortestDemo)
	}
	dir, err := os.MkdirTemp("", "rota-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends, err := startEndpoints("127.0.0.2", "127.0.0.3", "127.0.0.4")
	if err != nil {
		return err
	}
	defer ends.close()
	cfg, err := demoConfig(dir, freeListen(o.listen), ends.port)
	if err != nil {
		return err
	}
	n, err := newNode(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	story := demoStory{o: o, node: n, ends: ends, start: time.Now(), server: n.dns.Addrs()[0].String()}
	err = story.tell(ctx)
	cancel()
	return errors.Join(err, <-done)
}

func demoConfig(dir, listen string, port int) (*config.Config, error) {
	text := fmt.Sprintf(`version: 1
node: {name: demo, site: here, data_dir: %q}
api: {listen: ""}
dns:
  listen: %q
  zones: {demo.test: {ns: [ns1.demo.test], soa: {minimum: 1s}, records: "ns1 60 IN A 127.0.0.1"}}
services:
  %s:
    ttl: 1s
    endpoints: [127.0.0.2, 127.0.0.3, 127.0.0.4]
    check: {type: http, port: %d, path: /, interval: 1s, timeout: 500ms, fast_interval: 200ms, fall: 2, rise: 2, ok: 2}
    safety: {min_hold: 1s}
`, dir, listen, demoName, port)
	return config.Parse("demo.yaml", []byte(text), config.Options{})
}

// freeListen returns listen when UDP and TCP can be bound there, else any free port of the same host.
func freeListen(listen string) string {
	tcp, err := net.Listen("tcp", listen)
	if err == nil {
		defer tcp.Close()
		udp, err := net.ListenPacket("udp", listen)
		if err == nil {
			udp.Close()
			return listen
		}
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	return net.JoinHostPort(host, "0")
}

// demoStory tells what happens while the demo runs.
type demoStory struct {
	o      demoOptions
	node   *node
	ends   *endpoints
	start  time.Time
	server string
}

func (d *demoStory) say(format string, args ...any) {
	fmt.Fprintf(d.o.out, "%5.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demoStory) tell(ctx context.Context) error {
	host, port, _ := net.SplitHostPort(d.server)
	fmt.Fprintf(d.o.out, `rota demo: keeps DNS true to who is on duty.

  endpoints    http://127.0.0.2:%[1]d  http://127.0.0.3:%[1]d  http://127.0.0.4:%[1]d   (three small web servers, here)
  checks       every second; two failures in a row of a second take one out, two successes bring it back
  name server  %[2]s, embedded; ask it yourself:

      dig @%[3]s -p %[4]s %[5]s +short

  the story    rota --addr unix://%[6]s explain %[5]s

`, d.ends.port, d.server, host, port, demoName, d.node.socket())

	if d.o.length != 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, d.o.length)
		defer stop()
	}
	all := d.ends.addresses()
	if err := d.await(ctx, "all three are up and answered", all); err != nil {
		return d.ended(err)
	}
	if d.o.length == 0 {
		fmt.Fprintf(d.o.out, "        Press Enter to kill or revive an endpoint at once; Ctrl-C ends the demo.\n")
	}
	keys := lines(ctx, d.o.in, d.o.length == 0)
	for round := 0; ; round++ {
		victim := all[(round+1)%len(all)]
		if err := d.failure(ctx, victim, round == 0, keys); err != nil {
			return d.ended(err)
		}
		if end, ok := ctx.Deadline(); ok && time.Until(end) < shortestDemo {
			d.say("the demo ends: each address that left came back, and the others were answered all the time")
			return nil
		}
	}
}

// failure kills one endpoint, waits until it has left the answer, tells why, and brings it back.
func (d *demoStory) failure(ctx context.Context, victim netip.Addr, explain bool, keys <-chan struct{}) error {
	rest := slices.DeleteFunc(d.ends.addresses(), func(a netip.Addr) bool { return a == victim })
	if err := pause(ctx, 2*time.Second, keys); err != nil {
		return err
	}
	d.say("KILL   %s (its port is closed)", victim)
	d.ends.stop(victim)
	if err := d.await(ctx, "it has left the answer", rest); err != nil {
		return err
	}
	if explain {
		fmt.Fprintf(d.o.out, "\n        $ rota explain %s\n", demoName)
		if err := d.o.explain(ctx, indented{d.o.out}, d.node.socket()); err != nil {
			return err
		}
		fmt.Fprintln(d.o.out)
	}
	if err := pause(ctx, 3*time.Second, keys); err != nil {
		return err
	}
	d.say("START  %s again", victim)
	if err := d.ends.startOne(victim); err != nil {
		return err
	}
	return d.await(ctx, "it is back", d.ends.addresses())
}

// await asks the name server until it answers just want, printing each answer that differs from the last.
func (d *demoStory) await(ctx context.Context, what string, want []netip.Addr) error {
	since, last := time.Now(), ""
	for {
		got, err := d.ask(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		}
		if err == nil {
			line := "dig    " + strings.Join(addressTexts(got), " ")
			if slices.Equal(got, want) && d.node.settled(rota.MustParseName(demoName)) {
				d.say("%s   %s, after %.1f s", line, what, time.Since(since).Seconds())
				return nil
			}
			if line != last {
				d.say("%s", line)
				last = line
			}
		}
		if err := pause(ctx, 50*time.Millisecond, nil); err != nil {
			return err
		}
	}
}

func (d *demoStory) ask(ctx context.Context) ([]netip.Addr, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(demoName), dns.TypeA)
	in, _, err := (&dns.Client{Timeout: time.Second}).ExchangeContext(ctx, q, d.server)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, rr := range in.Answer {
		if a, ok := rr.(*dns.A); ok {
			addr, _ := netip.AddrFromSlice(a.A.To4())
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}

// ended turns the end of the demo's time into success when the user asked for it, by Ctrl-C, and into an error when the story was not
// told in time.
func (d *demoStory) ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func addressTexts(as []netip.Addr) []string {
	out := make([]string, len(as))
	for i, a := range as {
		out[i] = a.String()
	}
	return out
}

// pause waits, or until something comes from keys.
func pause(ctx context.Context, d time.Duration, keys <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	case <-keys:
	}
	return nil
}

// lines reports each line of in while ctx lasts. The reader itself ends with the process: a blocked read cannot be interrupted.
func lines(ctx context.Context, in io.Reader, wanted bool) <-chan struct{} {
	keys := make(chan struct{})
	if !wanted {
		return keys
	}
	go func() {
		s := bufio.NewScanner(in)
		for s.Scan() {
			select {
			case keys <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return keys
}

// indented puts four spaces before every line.
type indented struct{ w io.Writer }

func (i indented) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if strings.TrimSpace(line) != "" {
			line = "        " + line
		}
		if _, err := io.WriteString(i.w, line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// endpoints are the demo's web servers: one port, several loopback addresses.
type endpoints struct {
	port int

	mu      sync.Mutex // held for each use of servers
	servers map[netip.Addr]*http.Server
	all     []netip.Addr
}

func startEndpoints(addresses ...string) (*endpoints, error) {
	e := &endpoints{servers: map[netip.Addr]*http.Server{}}
	for _, a := range addresses {
		e.all = append(e.all, netip.MustParseAddr(a))
	}
	var err error
	for range 20 { // a port that is free on the first address may be taken on another
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(addresses[0], "0")); err != nil {
			break
		}
		e.port = l.Addr().(*net.TCPAddr).Port
		l.Close()
		if err = e.startAll(); err == nil {
			return e, nil
		}
		e.close()
	}
	return nil, fmt.Errorf("the demo's endpoints need the loopback addresses %s: %w", strings.Join(addresses, ", "), err)
}

func (e *endpoints) startAll() error {
	for _, a := range e.all {
		if err := e.startOne(a); err != nil {
			return err
		}
	}
	return nil
}

func (e *endpoints) startOne(a netip.Addr) error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, uint16(e.port)).String())
	if err != nil {
		return err
	}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "endpoint %s is on duty\n", a)
		}),
		ReadHeaderTimeout: 5 * time.Second,
	}
	e.mu.Lock()
	e.servers[a] = s
	e.mu.Unlock()
	go s.Serve(l) // ends when stop or close closes the server
	return nil
}

func (e *endpoints) stop(a netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.servers[a]; s != nil {
		s.Close()
		delete(e.servers, a)
	}
}

func (e *endpoints) close() {
	for _, a := range e.all {
		e.stop(a)
	}
}

func (e *endpoints) addresses() []netip.Addr { return slices.Clone(e.all) }
