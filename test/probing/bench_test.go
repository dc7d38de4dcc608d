package probing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math"
	"math/big"
	"os"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/rota-dns/rota/internal/probe"
	"github.com/rota-dns/rota/internal/rota"
)

var full = flag.Bool("full", false, "measure with 10,000 and 100,000 targets, for minutes; else with few, to see that everything runs")

var only = flag.String("only", "", "measure this alone: the rates of http, kept, tcp, icmp or https, or the load of many targets")

// size is how much is measured.
type size struct {
	targets, many   int
	settle, measure time.Duration // of one prober
	scale           time.Duration // of the run with many targets
	runs            int           // of fping
	interval        time.Duration // which asks for more than a prober can give
}

func sizes() size {
	if *full {
		return size{
			targets: 10_000, many: 100_000, settle: 2 * time.Second, measure: 4 * time.Second, scale: time.Minute, runs: 5,
			interval: 50 * time.Millisecond,
		}
	}
	return size{
		targets: 100, many: 200, settle: 300 * time.Millisecond, measure: 500 * time.Millisecond, scale: time.Second, runs: 1,
		interval: 50 * time.Millisecond,
	}
}

const serverName = "target.example.test"

// certificate makes an ECDSA certificate for serverName, which is its own authority.
func certificate(b *testing.B) identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return identity{block("CERTIFICATE", der), block("PRIVATE KEY", private)}
}

// bench is one run.
type bench struct {
	*machine
	size
	id  identity
	out *tabwriter.Writer
}

// BenchmarkBeside measures rota's prober beside others, once, however often it is asked to.
func BenchmarkBeside(b *testing.B) {
	x := &bench{machine: newMachine(b), size: sizes(), id: certificate(b), out: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)}
	b.Cleanup(func() { x.out.Flush() })
	x.target = x.own(targetCore, "target")
	var c counts
	x.target.ask(x.id, &c)
	switch *only {
	case "":
	case "load":
		x.load()
		return
	default:
		x.rates()
		return
	}
	x.rates()
	x.memory(x.load())
	x.trouble()
}

// row prints one line of a table.
func (x *bench) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(x.out, "\t")
		}
		fmt.Fprint(x.out, c)
	}
	fmt.Fprintln(x.out)
}

// table begins a table.
func (x *bench) table(title string, head ...any) {
	x.out.Flush()
	fmt.Printf("\n%s\n\n", title)
	x.row(head...)
}

// met says whether a promise is kept. Nothing was promised of few targets.
func met(ok bool, promise string) string {
	switch {
	case !*full:
		return ""
	case ok:
		return "met: " + promise
	}
	return "MISSED: " + promise
}

// counter returns what counts the checks of a question that were answered.
func (x *bench) counter(ask question) func() int {
	served := func() (c counts) {
		x.target.ask(identity{}, &c)
		return c
	}
	switch ask {
	case askHTTP:
		return func() int { return int(served().Requests) }
	case askHTTPS:
		return func() int { return int(served().Secure) }
	case askTCP: // a check that ends in RST is over before the target could accept it
		return func() int { return x.kernel("Tcp", "ActiveOpens") }
	}
	return func() int { return x.kernel("Icmp", "InEchoReps") }
}

// until waits for a prober.
func (x *bench) until(p *part, what string, ok func() bool) {
	x.b.Helper()
	for end := time.Now().Add(5 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		p.alive()
		if time.Now().After(end) {
			x.b.Fatalf("gave up waiting until %s %s:\n%s", p.name, what, &p.said)
		}
	}
}

// rate is what a prober did.
type rate struct {
	perCore float64 // checks a second of its processor time
	perWall float64 // checks a second
}

// watch lets a prober run and measures it; then it ends it.
func (x *bench) watch(p *part, ask question) rate {
	x.b.Helper()
	count := x.counter(ask)
	before := count()
	x.until(p, "checks anything", func() bool { return count() > before })
	time.Sleep(x.settle)
	n, used, begun := count(), p.used(), time.Now()
	time.Sleep(x.measure)
	n, used = count()-n, p.used()-used
	took := time.Since(begun)
	p.end()
	return newRate(n, used, took)
}

func newRate(n int, used, took time.Duration) rate {
	return rate{float64(n) / max(used, 10*time.Millisecond).Seconds(), float64(n) / took.Seconds()}
}

// check is how rota asks a question as fast as it can.
func (x *bench) check(ask question) rota.Check {
	c := rota.Check{
		Kind: rota.Kind(ask), Port: portHTTP,
		Timing: rota.Timing{Interval: x.interval, FastInterval: x.interval, Timeout: 3 * time.Second, Fall: 3, Rise: 2, OK: 3},
	}
	switch ask {
	case askTCP:
		c.Port = portTCP
	case askHTTPS:
		c.Port, c.ServerName = portHTTPS, serverName
	case askICMP:
		c.Port = 0
	}
	return c
}

// rota starts rota's prober.
func (x *bench) rota(core, targets int, c rota.Check) (p *part, empty int) {
	x.b.Helper()
	p = x.own(core, "rota")
	var now progress
	p.ask(job{}, &now)
	empty = p.resident()
	p.ask(job{targets, c, x.id.Cert}, &now)
	return p, empty
}

func (x *bench) ownRate(ask question, reuse bool) rate {
	x.b.Helper()
	c := x.check(ask)
	c.Reuse = reuse
	p, _ := x.rota(proberCore, x.targets, c)
	return x.watch(p, ask)
}

func (x *bench) rates() {
	x.table(fmt.Sprintf("Checks a second of one processor's time, %d targets, prober and target on a processor each", x.targets),
		"what", "who", "checks/s/core", "checks/s", "rota is", "promised")
	line := func(what, who string, r rate, rota *rate, promise func(ratio float64) string) {
		ratio, text := "", ""
		if rota != nil {
			f := rota.perCore / max(r.perCore, 1) // none: this machine was too busy for its timeouts
			ratio = fmt.Sprintf("%.2f ×", f)
			if promise != nil {
				text = promise(f)
			}
		}
		x.row(what, who, fmt.Sprintf("%.0f", r.perCore), fmt.Sprintf("%.0f", r.perWall), ratio, text)
	}
	atLeast := func(want float64) func(float64) string {
		return func(f float64) string { return met(f >= want, fmt.Sprintf("%g ×", want)) }
	}
	own := func(what string, r rate, want float64) {
		text := ""
		if want > 0 {
			text = met(r.perCore >= want, fmt.Sprintf("%.0f/s", want))
		}
		x.row(what, "rota", fmt.Sprintf("%.0f", r.perCore), fmt.Sprintf("%.0f", r.perWall), "", text)
	}
	wanted := func(what string) bool { return *only == "" || *only == what }
	for _, ask := range []question{askHTTP, askTCP} {
		if !wanted(string(ask)) {
			continue
		}
		what := map[question]string{askHTTP: "HTTP, new connection", askTCP: "TCP connect"}[ask]
		r := x.ownRate(ask, false)
		own(what, r, 0)
		line(what, "HAProxy", x.watch(x.haproxy(ask, x.targets, haproxyInterval[ask], x.id.Cert), ask), &r, atLeast(1.3))
		line(what, "gdnsd", x.watch(x.gdnsd(ask, x.targets, gdnsdInterval), ask), &r, nil)
		line(what, "blackbox", x.watch(x.blackbox(ask, x.targets, x.id.Cert), ask), &r, atLeast(10))
	}
	if wanted("kept") {
		own("HTTP, kept connection", x.ownRate(askHTTP, true), 150_000)
	}
	if wanted("icmp") {
		icmp := x.ownRate(askICMP, false)
		own("ICMP echo", icmp, 0)
		begun := time.Now()
		n, used := x.fping(x.targets, x.runs)
		line("ICMP echo", "fping", newRate(n, used, time.Since(begun)), &icmp, atLeast(2))
		line("ICMP echo", "blackbox", x.watch(x.blackbox(askICMP, x.targets, x.id.Cert), askICMP), &icmp, atLeast(10))
	}
	if !wanted("https") {
		return
	}
	https := x.ownRate(askHTTPS, false)
	own("HTTPS, full handshake", https, 3000)
	line("HTTPS, full handshake", "HAProxy", x.watch(x.haproxy(askHTTPS, x.targets, haproxyInterval[askHTTPS], x.id.Cert), askHTTPS), &https, nil)
	line("HTTPS, full handshake", "blackbox", x.watch(x.blackbox(askHTTPS, x.targets, x.id.Cert), askHTTPS), &https, atLeast(10))
	own("HTTPS, kept connection", x.ownRate(askHTTPS, true), 0)
}

// usual is a check over HTTP with the timing that a check has by default.
func (x *bench) usual(port uint16) rota.Check {
	c := rota.Check{Kind: rota.KindHTTP, Port: port, Timing: rota.DefaultTiming()}
	c.Timeout = time.Second // so that dark targets settle soon
	if !*full {
		c.Interval, c.FastInterval, c.Timeout = time.Second, 100*time.Millisecond, 100*time.Millisecond
	}
	return c
}

// now asks rota's process how it is.
func now(p *part) (out progress) {
	p.ask(job{}, &out)
	return out
}

// load has rota probe many targets at the usual interval, with the target on the same processors. It returns the bytes resident a target.
func (x *bench) load() int {
	c := x.usual(portHTTP)
	p, empty := x.rota(anyCore, x.many, c)
	x.until(p, "has seen all up", func() bool { n := now(p); return n.Reason == "" && n.Up >= 2*uint64(x.many) })
	time.Sleep(c.Interval + c.Interval/5) // the crowd of the start finds its places
	before, used, begun := now(p), p.used(), time.Now()
	most := before
	for time.Since(begun) < x.scale {
		time.Sleep(x.scale / 20)
		n := now(p)
		most.InFlight, most.Goroutines, most.Descriptors = max(most.InFlight, n.InFlight), max(most.Goroutines, n.Goroutines), max(most.Descriptors, n.Descriptors)
	}
	after, took := now(p), time.Since(begun)
	cores := (p.used() - used).Seconds() / took.Seconds()
	late := since(before.Lateness, after.Lateness)
	p99 := quantile(late, .99)
	bytes := (p.resident() - empty) / x.many
	x.table(fmt.Sprintf("%d targets, HTTP with a new connection, every %v, for %v", x.many, c.Interval, took.Round(time.Second)), "what", "measured", "promised")
	x.row("probes a second", fmt.Sprintf("%.0f", float64(after.Up-before.Up)/took.Seconds()), "")
	x.row("probes that were not up", after.Down+after.Unknown-before.Down-before.Unknown, "")
	x.row("processors used", fmt.Sprintf("%.2f", cores), met(cores <= 1, "1"))
	x.row("start after it was due, half of the probes", atMost(quantile(late, .5)), "")
	x.row("start after it was due, 99 %", atMost(p99), met(p99 <= .05, "50 ms"))
	x.row("start after it was due, all", atMost(quantile(late, 1)), "")
	x.row("in flight, at most seen", most.InFlight, "")
	x.row("goroutines, at most seen", most.Goroutines, met(most.Goroutines < x.many/10, "none an idle target"))
	x.row("descriptors, at most seen", most.Descriptors, "")
	x.row("live heap, bytes a target", after.Live/uint64(x.many), "")
	x.row("resident, bytes a target", bytes, met(bytes <= 1024, "1024"))
	x.row("stops of the process noticed", after.Stops-before.Stops, "")
	p.end()
	return bytes
}

// since is what a histogram counted between two looks.
func since(before, after probe.Histogram) probe.Histogram {
	out := probe.Histogram{Bounds: after.Bounds, Counts: slices.Clone(after.Counts)}
	for i, n := range before.Counts {
		out.Counts[i] -= n
	}
	return out
}

// quantile is the bound below which a share of what was counted lies, in seconds; infinite beyond the last bound.
func quantile(h probe.Histogram, share float64) float64 {
	var all, sum uint64
	for _, n := range h.Counts {
		all += n
	}
	for i, n := range h.Counts {
		if sum += n; float64(sum) >= share*float64(all) && i < len(h.Bounds) {
			return h.Bounds[i]
		}
	}
	return math.Inf(1)
}

func atMost(seconds float64) string {
	if math.IsInf(seconds, 1) {
		return "beyond the histogram"
	}
	return fmt.Sprintf("≤ %g ms", 1000*seconds)
}

// memory compares what a target costs, with few and with many. many is rota's figure for those.
func (x *bench) memory(many int) {
	pause := max(x.usual(portHTTP).Interval, 3*time.Second)
	if !*full {
		pause = x.settle
	}
	settled := func(p *part) int { // the memory once it grows no more
		last := 0
		x.until(p, "has its memory", func() bool {
			time.Sleep(pause / 4)
			is := p.resident()
			grown := is > last+last/100
			last = is
			return !grown
		})
		return last
	}
	begin := func(n int) map[string]*part {
		return map[string]*part{
			"HAProxy": x.haproxy(askHTTP, n, x.usual(portHTTP).Interval, x.id.Cert),
			"gdnsd":   x.gdnsd(askHTTP, n, 120*time.Second),
			"fping":   x.other(anyCore, "fping", "fping", "-q", "-l", "-i", "0.2", "-p", "30000", "-f", x.addresses(n)),
		}
	}
	end := func(ps map[string]*part) (out map[string]int) {
		out = map[string]int{}
		for name, p := range ps {
			out[name] = settled(p)
		}
		for _, p := range ps {
			p.end()
		}
		return out
	}
	empty := end(begin(1))
	rota, nothing := x.rota(anyCore, x.targets, x.usual(portHTTP))
	x.until(rota, "has seen all up", func() bool { n := now(rota); return n.Reason == "" && n.Up >= 2*uint64(x.targets) })
	few := end(begin(x.targets))
	ours := (rota.resident() - nothing) / x.targets
	rota.end()
	lots := end(begin(x.many))
	x.table("Memory resident, bytes a target above a process with one (rota: with none)", "who", fmt.Sprint(x.targets), fmt.Sprint(x.many))
	x.row("rota", ours, many)
	for _, who := range []string{"HAProxy", "gdnsd", "fping"} {
		x.row(who, (few[who]-empty[who])/x.targets, (lots[who]-empty[who])/x.many)
	}
}

// trouble compares what rota does when all targets are up, refuse and are dark.
func (x *bench) trouble() {
	type state struct {
		name   string
		port   uint16
		p      *part
		before progress
		used   time.Duration
	}
	states := []*state{{name: "all up", port: portHTTP}, {name: "all refuse", port: portRefused}, {name: "all dark", port: portDark}}
	for _, s := range states {
		s.p, _ = x.rota(anyCore, x.targets, x.usual(s.port))
	}
	for _, s := range states {
		x.until(s.p, "knows how all are", func() bool { n := now(s.p); return n.Up+n.Down >= 3*uint64(x.targets) })
	}
	interval := x.usual(portHTTP).Interval
	time.Sleep(interval + interval/5)
	begun := time.Now()
	for _, s := range states {
		s.before, s.used = now(s.p), s.p.used()
	}
	time.Sleep(interval)
	x.table(fmt.Sprintf("Trouble: %d targets every %v, timeout %v, all at once", x.targets, interval, x.usual(portHTTP).Timeout),
		"what", "probes/s", "processors", "in flight", "descriptors", "promised")
	var up float64
	for _, s := range states {
		after, took := now(s.p), time.Since(begun).Seconds()
		cores := (s.p.used() - s.used).Seconds() / took
		promised := ""
		if s.port == portHTTP {
			up = cores
		} else {
			promised = met(cores <= up, "no more than all up")
		}
		rate := float64(after.Up+after.Down+after.Unknown-s.before.Up-s.before.Down-s.before.Unknown) / took
		x.row(s.name, fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.3f", cores), after.InFlight, after.Descriptors, promised)
		s.p.end()
	}
}
