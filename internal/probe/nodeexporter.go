package probe

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of what is taken of a page.
const (
	maxCores  = 8192
	maxSeries = 1024 // that fit one rule
)

// Two samples make a rate. At least minSpan lies between them: counters of processor time move in steps of 10 ms. When there is no earlier
// sample a second one is taken after firstSpan, or sooner when the timeout wants it.
const (
	minSpan   = 200 * time.Millisecond
	firstSpan = time.Second
)

// pings is how many echo requests are sent at most before a machine counts as gone. The first reply is enough.
const pings = 3

// exporter is a node_exporter check made ready.
type exporter struct {
	rules    []rota.ParsedRule
	names    []string // of the rules
	net      []int    // by rule: the index of an interface's counters in sample.bytes
	selector *selector
	rates    bool          // some rule needs two samples
	most     time.Duration // between them: a mean over more says little about now
}

// The single series of a rule, by its measure.
const (
	slotFree, slotTotal               = 0, 1
	slotLoad                          = 0
	slotReceived, slotSent, slotSpeed = 0, 1, 2
	slots                             = 3 // of a rule
)

// slot is a series of which a page has one.
type slot struct {
	value float64
	times int // that it was on the page
}

// sample is what a target's memory keeps of a page: counters, and when they were asked for.
type sample struct {
	at      time.Time
	clock   slot         // node_time_seconds
	idle    []float64    // seconds, by core; NaN: no such core
	working float64      // seconds of all cores and all other modes
	bytes   [][2]float64 // received and sent, by rule of an interface in their order; NaN: not on the page
}

// reading is what one scrape gave.
type reading struct {
	sample
	cores  int
	cpuBad string // why the series of cores are not to be used
	slots  []slot // by rule
	many   []some // by rule
	took   time.Duration
}

// some is the series that fit a rule about a metric.
type some struct {
	values []float64
	seen   map[uint64]bool // hashes of their labels
	bad    string
}

func prepareExporter(q *question) error {
	if len(q.check.Rules) == 0 || len(q.check.Rules) > rota.MaxRules {
		return fmt.Errorf("%d rules; want 1 to %d", len(q.check.Rules), rota.MaxRules)
	}
	e := &exporter{most: 2*q.check.SlowInterval + q.check.Timeout}
	var wanted []series
	single := func(name, device string, i, which int) {
		wanted = append(wanted, series{name, func(r *reading, labels []label, v float64) {
			if device == "" || value(labels, "device") == device {
				s := &r.slots[i*slots+which]
				s.value = v
				s.times++
			}
		}})
	}
	cpu, nets := false, 0
	for i, rule := range q.check.Rules {
		p, err := rota.ParseRule(rule)
		if err != nil {
			return err
		}
		e.rules, e.names, e.net = append(e.rules, p), append(e.names, p.Rule().Name), append(e.net, nets)
		cpu = cpu || p.Measure == rota.MeasureCPU || p.NeedsCores()
		e.rates = e.rates || p.Measure == rota.MeasureCPU || p.Measure == rota.MeasureNet
		switch p.Measure {
		case rota.MeasureCPU:
		case rota.MeasureMemory:
			single("node_memory_"+p.Of+"_bytes", "", i, slotFree)
			single("node_memory_MemTotal_bytes", "", i, slotTotal)
		case rota.MeasureLoad:
			single("node_load1", "", i, slotLoad)
		case rota.MeasureNet:
			nets++
			single("node_network_receive_bytes_total", p.Of, i, slotReceived)
			single("node_network_transmit_bytes_total", p.Of, i, slotSent)
			single("node_network_speed_bytes", p.Of, i, slotSpeed)
		case rota.MeasureMetric:
			wanted = append(wanted, series{p.Of, func(r *reading, labels []label, v float64) {
				if p.Fits(func(name string) string { return value(labels, name) }) {
					r.many[i].add(labels, v)
				}
			}})
		}
	}
	if cpu {
		wanted = append(wanted, series{"node_cpu_seconds_total", (*reading).core})
	}
	wanted = append(wanted, series{"node_time_seconds", func(r *reading, _ []label, v float64) {
		r.clock.value = v
		r.clock.times++
	}})
	e.selector = newSelector(wanted)
	if q.check.MaxBody <= 0 {
		q.maxBody = rota.LimitMaxBody // nothing of it is kept
	}
	q.ready = e
	return nil
}

// value returns the value of a label, or "".
func value(labels []label, name string) string {
	for _, l := range labels {
		if string(l.name) == name {
			return string(l.value)
		}
	}
	return ""
}

// core takes a series of processor time.
func (r *reading) core(labels []label, v float64) {
	var cpu, mode []byte
	for _, l := range labels {
		switch string(l.name) {
		case "cpu":
			cpu = l.value
		case "mode":
			mode = l.value
		}
	}
	if string(mode) != "idle" {
		r.working += v
		return
	}
	n, err := strconv.ParseUint(string(cpu), 10, 32)
	switch {
	case err != nil || n >= maxCores:
		r.cpuBad = fmt.Sprintf("core %.20q: want a number below %d", cpu, maxCores)
		return
	case math.IsNaN(v) || math.IsInf(v, 0) || v < 0:
		r.cpuBad = fmt.Sprintf("core %d was idle for %g seconds", n, v)
		return
	}
	for uint64(len(r.idle)) <= n {
		r.idle = append(r.idle, math.NaN())
	}
	if !math.IsNaN(r.idle[n]) {
		r.cpuBad = fmt.Sprintf("core %d is there twice", n)
		return
	}
	r.idle[n] = v
	r.cores++
}

var labelSeed = maphash.MakeSeed()

// add takes a series. Labels come in any order, so that the sum of their hashes tells which series it is.
func (s *some) add(labels []label, v float64) {
	var sum uint64
	for _, l := range labels {
		var h maphash.Hash
		h.SetSeed(labelSeed)
		_, _ = h.Write(l.name)
		_ = h.WriteByte(0xff)
		_, _ = h.Write(l.value)
		sum += h.Sum64()
	}
	switch {
	case s.seen[sum]:
		s.bad = "a series is there twice"
	case len(s.values) == maxSeries:
		s.bad = fmt.Sprintf("more than %d series fit", maxSeries)
	case math.IsNaN(v) || math.IsInf(v, 0):
		s.bad = fmt.Sprintf("it is %g", v)
	default:
		if s.seen == nil {
			s.seen = map[uint64]bool{}
		}
		s.seen[sum] = true
		s.values = append(s.values, v)
	}
}

// probeExporter asks whether the machine is there at all and then, with one page, for the numbers of all rules.
func probeExporter(ctx context.Context, r *run) finding {
	e := r.q.ready.(*exporter)
	if !r.q.check.NoPing {
		if f := r.knock(ctx); f.status != rota.Up {
			return f
		}
	}
	var last *sample
	if r.memory != nil {
		last, _ = r.memory.sample.(*sample)
	}
	if last != nil && e.rates {
		if age := time.Since(last.at); age < minSpan {
			r.wait(ctx, minSpan-age)
		}
	}
	now, bad := r.scrape(ctx, e)
	if bad != nil {
		return r.broken(*bad)
	}
	j := e.judge(last, now)
	if j.later != "" && j.stale == "" && (j.violated == "" || r.memory == nil) { // who asks beside the schedule wants to see all numbers
		deadline, _ := ctx.Deadline()
		if pause := min(firstSpan, time.Until(deadline)-2*now.took); pause >= minSpan {
			r.wait(ctx, pause)
			last = &now.sample
			if now, bad = r.scrape(ctx, e); bad != nil {
				return r.broken(*bad)
			}
			j = e.judge(last, now)
		}
	}
	if r.memory != nil {
		if j.stale == "" { // else it is as old as the sample that it is the same as
			last = &now.sample
		}
		s := *last
		r.memory.sample = &s
	}
	r.trace.begin("rules")(j.all)
	switch {
	case j.stale != "":
		return r.broken(unknown(rota.ClassExporter, "%s", j.stale))
	case j.violated != "":
		return down(rota.ClassThreshold, "%s", j.violated)
	case j.cannot != "":
		return r.broken(unknown(rota.ClassExporter, "%s", j.cannot))
	case j.later != "":
		return unknown(rota.ClassExporter, "%s", j.later)
	case len(e.rules) == 1:
		return up("the rule holds")
	}
	return up("all %d rules hold", len(e.rules))
}

// knock asks whether the machine is there: one echo reply will do.
func (r *run) knock(ctx context.Context) finding {
	f := r.echo(ctx, pings, 1)
	if f.class == rota.ClassPermission {
		f.reason = rota.CleanReason("%s; or let the check say ping: false", f.reason)
	}
	return f
}

// wait lets time pass.
func (r *run) wait(ctx context.Context, d time.Duration) {
	done := r.trace.begin("wait")
	for until := time.Now().Add(d); time.Now().Before(until) && ctx.Err() == nil; {
		r.await(ctx, nil, until)
	}
	done("for a second sample")
}

// scrape gets the page. It returns a finding when that fails.
func (r *run) scrape(ctx context.Context, e *exporter) (*reading, *finding) {
	fail := func(f finding) (*reading, *finding) { return nil, &f }
	begun := time.Now()
	c, stop, err := r.dial(ctx)
	if err != nil {
		return fail(r.fault(ctx, "connect", err))
	}
	defer stop()
	ask := page{method: http.MethodGet, host: r.q.check.Host, path: r.q.check.Path}
	if ask.path == "" {
		ask.path = "/metrics"
	}
	if ask.host == "" {
		ask.host = hostPort(r.addr, r.q.check.Port, false)
	}
	request := r.request(ask)
	r.trace.Sent = firstLines(request)
	now := e.reading()
	now.at = time.Now()
	done := r.trace.begin("request")
	_, err = c.Write(request)
	done(ask.method + " " + ask.path)
	if err != nil {
		return fail(r.fault(ctx, "request", err))
	}
	first := r.trace.begin("first byte")
	a, body := answerHead(c, ask.method, func() { first("") })
	r.trace.Received = firstLines(a.head)
	switch {
	case a.err != nil:
		return fail(r.answerFault(ctx, a))
	case a.status != http.StatusOK:
		return fail(down(rota.ClassStatus, "status %d, want 200", a.status))
	}
	if err := exporterPage(a.header); err != nil {
		return fail(down(rota.ClassHeader, "%v", err))
	}
	done = r.trace.begin("body")
	size, err := e.selector.read(body, r.q.maxBody, now)
	done(fmt.Sprintf("%d bytes", size))
	r.trace.ReceivedSize += size
	var bad errPage
	switch {
	case errors.As(err, &bad):
		return fail(down(rota.ClassBody, "page: %v", bad))
	case err != nil:
		a.err = err
		return fail(r.answerFault(ctx, a))
	}
	now.keepCounters(e)
	now.took = time.Since(begun)
	return now, nil
}

// keepCounters puts the counters of interfaces into the sample.
func (r *reading) keepCounters(e *exporter) {
	for i, p := range e.rules {
		if p.Measure == rota.MeasureNet {
			s := r.slots[i*slots:]
			r.bytes = append(r.bytes, [2]float64{s[slotReceived].counter(), s[slotSent].counter()})
		}
	}
}

func (e *exporter) reading() *reading {
	return &reading{slots: make([]slot, slots*len(e.rules)), many: make([]some, len(e.rules))}
}

// exporterPage says why an answer of this head is no exporter's page, or nil.
func exporterPage(h http.Header) error {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return fmt.Errorf("page is compressed (%.20s), which was not asked for", e)
	}
	if t := h.Get("Content-Type"); t != "" {
		if kind, _, err := mime.ParseMediaType(t); err != nil || kind != "text/plain" {
			return fmt.Errorf("page is of type %.60s, want text/plain", t)
		}
	}
	return nil
}

// broken is what it means that the numbers cannot be had: unknown, or down when the check says so. What this machine could not do stays unknown.
func (r *run) broken(f finding) finding {
	if f.status == rota.Unknown && f.class != rota.ClassExporter {
		return f
	}
	f.status, f.class, f.reason = rota.Unknown, rota.ClassExporter, rota.CleanReason("exporter: %s", f.reason)
	if r.q.check.OnError == rota.Down {
		f.status = rota.Down
	}
	return f
}

// number is a slot's value, or why there is none.
func (s slot) number(name string) (float64, error) {
	switch {
	case s.times == 0:
		return 0, fmt.Errorf("%s is missing", name)
	case s.times > 1:
		return 0, fmt.Errorf("%s is there %d times", name, s.times)
	case math.IsNaN(s.value) || math.IsInf(s.value, 0) || s.value < 0:
		return 0, fmt.Errorf("%s is %g", name, s.value)
	}
	return s.value, nil
}

// counter is a slot's value, or NaN.
func (s slot) counter() float64 {
	if v, err := s.number(""); err == nil {
		return v
	}
	return math.NaN()
}

// stretch is what lies between two samples.
type stretch struct {
	time  time.Duration
	stale bool  // the later page is the earlier one
	err   error // why nothing can be told from the two
}

// errLater is why a rate cannot be told from these two samples, although it may be from the next two.
type errLater struct{ error }

func later(format string, args ...any) error { return errLater{fmt.Errorf(format, args...)} }

// slack is by how much two clocks may differ over a time: of the machine's, which reads its counters when it comes to it, and of ours.
func slack(d time.Duration) time.Duration { return d/10 + 250*time.Millisecond }

// since says what lies between an earlier sample and this one. Time is ours, which nobody sets. The page's own clock, or all counters of a page
// that has none, tell whether it is a new page.
func (s *sample) since(last *sample) stretch {
	d := s.at.Sub(last.at)
	was, err := last.clock.number("")
	is, err2 := s.clock.number("")
	if err != nil || err2 != nil {
		return stretch{time: d, stale: s.counts() && s.same(last)}
	}
	moved := time.Duration((is - was) * 1e9)
	if is == was {
		return stretch{time: d, stale: true}
	}
	if (moved - d).Abs() > slack(d) {
		return stretch{time: d, err: later("the page's clock moved by %v in %v: it was set, or something on the way keeps pages", moved.Round(time.Millisecond), d.Round(time.Millisecond))}
	}
	return stretch{time: d}
}

// counts reports whether the sample has a counter.
func (s *sample) counts() bool {
	return len(s.idle) > 0 || slices.ContainsFunc(s.bytes, func(b [2]float64) bool { return !math.IsNaN(b[0]) || !math.IsNaN(b[1]) })
}

// same reports whether all counters are those of another sample.
func (s *sample) same(last *sample) bool {
	equal := func(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }
	return s.working == last.working && slices.EqualFunc(s.idle, last.idle, equal) &&
		slices.EqualFunc(s.bytes, last.bytes, func(a, b [2]float64) bool { return equal(a[0], b[0]) && equal(a[1], b[1]) })
}

// judgement is what the rules say about two samples, each in words; empty: nothing.
type judgement struct {
	stale    string // the page does not move
	violated string // rules that do not hold
	cannot   string // rules that cannot be judged, by the exporter's doing
	later    string // rules that want another sample
	all      string // the numbers
}

func say(to *string, format string, args ...any) {
	if *to != "" {
		*to += "; "
	}
	*to += fmt.Sprintf(format, args...)
}

// judge applies the rules to a reading and to the sample before it, which may be nil.
func (e *exporter) judge(last *sample, now *reading) judgement {
	var j judgement
	moved := stretch{err: later("one sample is not enough")}
	if last != nil {
		switch moved = now.since(last); {
		case moved.stale:
			j.stale = fmt.Sprintf("the page is the same as %v before: it, or something on the way, shows old numbers", moved.time.Round(time.Millisecond))
			return j
		case moved.time > e.most:
			moved.err = later("the sample before is %v old", moved.time.Round(time.Second))
		}
	}
	for i, p := range e.rules {
		name := e.names[i]
		values, err := e.numbers(i, last, now, moved)
		var wait errLater
		switch {
		case errors.As(err, &wait):
			say(&j.later, "%s: %v", name, err)
		case err != nil:
			say(&j.cannot, "%s: %v", name, err)
		default:
			k := max(0, slices.IndexFunc(values, func(v float64) bool { return !p.Holds(v, now.cores) }))
			text := p.Show(values[k], now.cores)
			if p.Measure == rota.MeasureNet {
				text += [...]string{" (receiving)", " (sending)"}[k]
			}
			say(&j.all, "%s", text)
			if !p.Holds(values[k], now.cores) {
				say(&j.violated, "%s", text)
			}
		}
	}
	return j
}

// numbers returns the numbers that have to keep rule i, at least one, or why there are none.
func (e *exporter) numbers(i int, last *sample, now *reading, moved stretch) ([]float64, error) {
	p, own := e.rules[i], now.slots[i*slots:(i+1)*slots]
	if p.NeedsCores() || p.Measure == rota.MeasureCPU {
		switch {
		case now.cpuBad != "":
			return nil, errors.New(now.cpuBad)
		case now.cores == 0:
			return nil, errors.New("the page has no cores (node_cpu_seconds_total)")
		}
	}
	one := func(v float64, err error) ([]float64, error) { return []float64{v}, err }
	switch p.Measure {
	case rota.MeasureCPU:
		return one(now.busy(last, moved))
	case rota.MeasureMemory:
		return one(free(p, own))
	case rota.MeasureLoad:
		return one(own[slotLoad].number("node_load1"))
	case rota.MeasureNet:
		return now.traffic(e.net[i], last, moved, own)
	}
	m := now.many[i]
	if m.bad == "" && len(m.values) == 0 {
		m.bad = "the page has no such series"
	}
	if m.bad != "" {
		return nil, errors.New(m.bad)
	}
	return m.values, nil
}

// busy is the percentage of time that cores were not idle: the mean of those in both samples.
func (s *sample) busy(last *sample, moved stretch) (float64, error) {
	const restarted = "went back: the machine was restarted, or another one answers"
	switch {
	case moved.err != nil:
		return 0, moved.err
	case s.working < last.working:
		return 0, later("the time that cores worked %s", restarted)
	}
	total, cores := 0.0, 0
	for n := range min(len(s.idle), len(last.idle)) {
		idle := s.idle[n] - last.idle[n]
		switch {
		case math.IsNaN(idle):
			continue
		case idle < 0:
			return 0, later("the counter of core %d %s", n, restarted)
		case idle > (moved.time + slack(moved.time)).Seconds():
			return 0, later("core %d was idle for %.3g s in %v", n, idle, moved.time.Round(time.Millisecond))
		}
		total += max(0, 100-100*idle/moved.time.Seconds())
		cores++
	}
	if cores == 0 {
		return 0, later("no core is in both samples")
	}
	return total / float64(cores), nil
}

// free is the memory that is free, in percent or in bytes as the rule wants it.
func free(p rota.ParsedRule, own []slot) (float64, error) {
	is, err := own[slotFree].number("node_memory_" + p.Of + "_bytes")
	if err != nil || p.Unit != rota.UnitPercent {
		return is, err
	}
	total, err := own[slotTotal].number("node_memory_MemTotal_bytes")
	switch {
	case err != nil:
		return 0, err
	case is > total || total == 0:
		return 0, fmt.Errorf("%g bytes of %g are free", is, total)
	}
	return 100 * is / total, nil
}

// impossible is the percentage of a link's speed from which on the speed must be wrong.
const impossible = 200

// traffic is the percentage of an interface's speed that it receives and sends with.
func (s *sample) traffic(i int, last *sample, moved stretch, own []slot) ([]float64, error) {
	for which, name := range [...]string{slotReceived: "node_network_receive_bytes_total", slotSent: "node_network_transmit_bytes_total"} {
		if _, err := own[which].number(name); err != nil {
			return nil, err
		}
	}
	speed := own[slotSpeed]
	if _, err := speed.number("node_network_speed_bytes"); err != nil && (speed.times != 1 || !(speed.value < 0)) {
		return nil, err
	}
	if speed.value <= 0 {
		return nil, fmt.Errorf("the speed of the link is unknown (%g)", speed.value)
	}
	if moved.err != nil {
		return nil, moved.err
	}
	percent := make([]float64, 2)
	for k := range percent {
		bytes := s.bytes[i][k] - last.bytes[i][k]
		switch percent[k] = 100 * bytes / moved.time.Seconds() / speed.value; {
		case math.IsNaN(bytes):
			return nil, later("it was not in the sample before")
		case bytes < 0:
			return nil, later("a counter went back: the machine or the interface was restarted")
		case percent[k] > impossible:
			return nil, fmt.Errorf("%.0f %% of the link's speed; the speed is wrong", percent[k])
		}
	}
	return percent, nil
}
