package probe

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// ok is the head of an exporter's answer that ends with the connection.
const okHead = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\r\n"

func rules(namesAndWants ...string) (rs []rota.Rule) {
	for i := 0; i < len(namesAndWants); i += 2 {
		rs = append(rs, rota.Rule{Name: namesAndWants[i], Want: namesAndWants[i+1]})
	}
	return rs
}

func exporterCheck(rs []rota.Rule) rota.Check {
	return rota.Check{Kind: rota.KindNodeExporter, Rules: rs, NoPing: true}
}

// prepared is a check's exporter.
func prepared(t testing.TB, c rota.Check) *exporter {
	t.Helper()
	c.Port = 9100
	q := newQuestion(c)
	if q.unusable != nil {
		t.Fatal(q.unusable)
	}
	return q.ready.(*exporter)
}

var epoch = time.Now()

// at is the page as it would have been asked for so long after the epoch.
func (e *exporter) at(t testing.TB, after time.Duration, page string) *reading {
	t.Helper()
	r := e.reading()
	if _, err := e.selector.read(strings.NewReader(page), 1<<20, r); err != nil {
		t.Fatalf("page %q: %v", page, err)
	}
	r.at = epoch.Add(after)
	r.keepCounters(e)
	return r
}

// machine writes a page in the exporter's words: two samples of it, ten seconds apart, are the first and the second of a pair.
type machine struct {
	idle           [2][]float64 // by core
	total, free    string
	load           string
	received, sent [2]string // of eth0
	speed          string
	clock          [2]string
	user           [2]float64 // seconds of each core
	more           string
}

func quietMachine() machine {
	return machine{
		idle:  [2][]float64{{1000, 2000, 3000, 4000}, {1009, 2009, 3009, 4009}},
		total: "8e+09", free: "4e+09", load: "0.5",
		received: [2]string{"1e+09", "1.01e+09"}, sent: [2]string{"2e+09", "2.01e+09"}, speed: "1.25e+08",
		clock: [2]string{"1.7e+09", "1.70000001e+09"}, user: [2]float64{50, 51},
	}
}

func (m machine) page(k int) string {
	var b strings.Builder
	b.WriteString("# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.\n# TYPE node_cpu_seconds_total counter\n")
	for n, idle := range m.idle[k] {
		fmt.Fprintf(&b, "node_cpu_seconds_total{cpu=\"%d\",mode=\"idle\"} %g\nnode_cpu_seconds_total{cpu=\"%d\",mode=\"user\"} %g\n", n, idle, n, m.user[k])
	}
	line := func(series, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s %s\n", series, value)
		}
	}
	line("node_memory_MemTotal_bytes", m.total)
	line("node_memory_MemAvailable_bytes", m.free)
	line("node_memory_MemFree_bytes", "1e+06")
	line("node_load1", m.load)
	line("node_load15", "99")
	line(`node_network_receive_bytes_total{device="eth0"}`, m.received[k])
	line(`node_network_receive_bytes_total{device="eth00"}`, "7")
	line(`node_network_transmit_bytes_total{device="eth0"}`, m.sent[k])
	line(`node_network_speed_bytes{device="eth0"}`, m.speed)
	line("node_time_seconds", m.clock[k])
	b.WriteString(m.more)
	return b.String()
}

// The boundaries of the specification, §1.7: what equals the limit stays.
func TestExporterBoundaries(t *testing.T) {
	all, err := rota.DefaultRules("all")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		rules []rota.Rule
		set   func(*machine)
		want  string // of the judgement: "" holds
	}{
		{"quietMachine", append(all, rules("net(eth0)", "< 80%", "mem_free(MemFree)", "> 1kB")...), func(*machine) {}, ""},
		{"cpu 90", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{100}, {101}} }, ""},
		{"cpu 91", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{100}, {100.9}} }, "violated: cpu 91 %, want < 90 %"},
		{"cpu 90 of cores 100 and 80", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{100, 100}, {100, 102}} }, ""},
		{"cpu 91 of cores 100 and 82", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{100, 100}, {100, 101.8}} }, "violated: cpu 91 %, want < 90 %"},
		{"cpu 100, all cores", rules("cpu", "< 90%"), func(m *machine) { m.idle[1] = m.idle[0] }, "violated: cpu 100 %, want < 90 %"},
		{"mem 5.0", rules("mem_free", "> 5%"), func(m *machine) { m.free = "4e+08" }, ""},
		{"mem 4.9", rules("mem_free", "> 5%"), func(m *machine) { m.free = "3.92e+08" }, "violated: mem_free 4.9 %, want > 5 %"},
		{"MemFree for parity", rules("mem_free(MemFree)", "> 5%"), func(*machine) {}, "violated: mem_free(MemFree) 0.0 %, want > 5 %"},
		{"load equals cores", rules("load1", "<= cores"), func(m *machine) { m.load = "4" }, ""},
		{"load above cores", rules("load1", "<= cores"), func(m *machine) { m.load = "4.01" }, "violated: load1 4.01, want <= cores (4)"},
		{"load 2, which looks like an integer", rules("load1", "< 1.5"), func(m *machine) { m.load = "2" }, "violated: load1 2, want < 1.5"},
		{"load 12, which looks like an integer", rules("load1", "<= cores"), func(m *machine) { m.load = "12" }, "violated: load1 12, want <= cores (4)"},
		{"receives 80", rules("net(eth0)", "< 80%"), func(m *machine) { m.received = [2]string{"0", "1e+09"} }, ""},
		{"receives 81", rules("net(eth0)", "< 80%"), func(m *machine) { m.received = [2]string{"0", "1.0125e+09"} }, "violated: net(eth0) 81 %, want < 80 % (receiving)"},
		{"sends 80", rules("net(eth0)", "< 80%"), func(m *machine) { m.sent = [2]string{"5", "1.000000005e+09"} }, ""},
		{"sends 81", rules("net(eth0)", "< 80%"), func(m *machine) { m.sent = [2]string{"5", "1.012500005e+09"} }, "violated: net(eth0) 81 %, want < 80 % (sending)"},
		{
			"the second of several interfaces", rules("net(eth0)", "< 80%", "net(eth1)", "< 10%"), func(m *machine) {
				m.more = "node_network_receive_bytes_total{device=\"eth1\"} 1\nnode_network_transmit_bytes_total{device=\"eth1\"} 1\nnode_network_speed_bytes{device=\"eth1\"} 1\n"
			}, "",
		},
		{"speed -125000", rules("net(eth0)", "< 80%"), func(m *machine) { m.speed = "-125000" }, "cannot: net(eth0): the speed of the link is unknown (-125000)"},
		{"speed 0", rules("net(eth0)", "< 80%"), func(m *machine) { m.speed = "0" }, "cannot: net(eth0): the speed of the link is unknown (0)"},
		{"speed absent", rules("net(eth0)", "< 80%"), func(m *machine) { m.speed = "" }, "cannot: net(eth0): node_network_speed_bytes is missing"},
		{"speed NaN", rules("net(eth0)", "< 80%"), func(m *machine) { m.speed = "NaN" }, "cannot: net(eth0): node_network_speed_bytes is NaN"},
		{"speed too low for what passes", rules("net(eth0)", "< 80%"), func(m *machine) { m.speed = "1000" }, "cannot: net(eth0): 100000 % of the link's speed; the speed is wrong"},
		{"no such interface", rules("net(eth9)", "< 80%"), func(*machine) {}, "cannot: net(eth9): node_network_receive_bytes_total is missing"},
		{"a violated rule wins over one that cannot be judged", rules("net(eth9)", "< 80%", "load1", "< 0"), func(*machine) {}, "violated: load1 0.5, want < 0"},
		{"all that are violated are named", rules("load1", "< 0", "mem_free", "> 60%"), func(*machine) {}, "violated: load1 0.5, want < 0; mem_free 50.0 %, want > 60 %"},
		{"load alone counts cores", rules("load1", "<= cores"), func(m *machine) { m.idle = [2][]float64{{}, {}} }, "cannot: load1: the page has no cores (node_cpu_seconds_total)"},
		{"cpu without cores", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{}, {}} }, "cannot: cpu: the page has no cores (node_cpu_seconds_total)"},
		{"a core's counter goes back", rules("cpu", "< 90%"), func(m *machine) { m.idle[1][2] = 5 }, "later: cpu: the counter of core 2 went back: the machine was restarted, or another one answers"},
		{"the time at work goes back", rules("cpu", "< 90%"), func(m *machine) { m.user[1] = 5 }, "later: cpu: the time that cores worked went back: the machine was restarted, or another one answers"},
		{"an interface's counter goes back", rules("net(eth0)", "< 80%", "load1", "<= cores"), func(m *machine) { m.sent[1] = "5" }, "later: net(eth0): a counter went back: the machine or the interface was restarted"},
		{"idle for longer than time passed", rules("cpu", "< 90%"), func(m *machine) { m.idle[1][0] = 1012 }, "later: cpu: core 0 was idle for 12 s in 10s"},
		{"a core came", rules("cpu", "< 90%"), func(m *machine) { m.idle = [2][]float64{{100}, {100.5, 100}} }, "violated: cpu 95 %, want < 90 %"},
		{"cores in the second sample only", rules("cpu", "< 90%"), func(m *machine) { m.idle[0] = nil }, "later: cpu: no core is in both samples"},
		{"a core's value is NaN", rules("cpu", "< 90%"), func(m *machine) { m.more = "node_cpu_seconds_total{mode=\"idle\",cpu=\"7\"} NaN\n" }, "cannot: cpu: core 7 was idle for NaN seconds"},
		{"a core is negative", rules("cpu", "< 90%"), func(m *machine) { m.more = "node_cpu_seconds_total{mode=\"idle\",cpu=\"7\"} -1\n" }, "cannot: cpu: core 7 was idle for -1 seconds"},
		{"a core twice", rules("load1", "<= cores"), func(m *machine) { m.more = "node_cpu_seconds_total{mode=\"idle\",cpu=\"0\"} 1\n" }, "cannot: load1: core 0 is there twice"},
		{"a core with a silly number", rules("cpu", "< 90%"), func(m *machine) { m.more = "node_cpu_seconds_total{mode=\"idle\",cpu=\"4000000000\"} 1\n" }, "cannot: cpu: core \"4000000000\": want a number below 8192"},
		{"clock stands still", rules("cpu", "< 90%"), func(m *machine) { m.clock[1] = m.clock[0] }, "stale"},
		{"clock stands still, one sample would do", rules("load1", "< 0"), func(m *machine) { m.clock[1] = m.clock[0] }, "stale"},
		{"clock steps", rules("cpu", "< 90%"), func(m *machine) { m.clock[1] = "1.7000036e+09" }, "later: cpu: the page's clock moved by 1h0m0s in 10s: it was set, or something on the way keeps pages"},
		{"clock goes back", rules("cpu", "< 90%", "load1", "< 0"), func(m *machine) { m.clock[1] = "1.6e+09" }, "violated: load1 0.5, want < 0"},
		{"no clock, counters move", rules("cpu", "< 90%"), func(m *machine) { m.clock = [2]string{} }, ""},
		{"no clock, all busy", rules("cpu", "< 90%"), func(m *machine) { m.clock, m.idle[1] = [2]string{}, m.idle[0] }, "violated: cpu 100 %, want < 90 %"},
		{"no clock, an interface stands still", rules("net(eth0)", "< 80%"), func(m *machine) { m.clock, m.received[1], m.sent[1] = [2]string{}, m.received[0], m.sent[0] }, "stale"},
		{"a metric as written", rules("node_load15", "< 99"), func(*machine) {}, "violated: node_load15 99, want < 99"},
		{"a metric at its limit", rules("node_load15", "<= 99"), func(*machine) {}, ""},
		{"a metric against cores", rules("node_load15", "<= 24 cores"), func(*machine) {}, "violated: node_load15 99, want <= 24 cores (4)"},
		{"the worst of several series", rules("fs_avail", "> 10"), func(m *machine) { m.more = "fs_avail{m=\"a\"} 20\nfs_avail{m=\"b\"} 5\nfs_avail{m=\"c\"} 30\n" }, "violated: fs_avail 5, want > 10"},
		{"series by labels", rules(`fs_avail{m!="b"}`, "> 10"), func(m *machine) { m.more = "fs_avail{m=\"a\"} 20\nfs_avail{m=\"b\"} 5\n" }, ""},
		{"one series is NaN", rules("fs_avail", "> 10"), func(m *machine) { m.more = "fs_avail{m=\"a\"} 20\nfs_avail{m=\"b\"} NaN\n" }, "cannot: fs_avail: it is NaN"},
		{"one series twice", rules("fs_avail", "> 10"), func(m *machine) { m.more = "fs_avail{m=\"a\",n=\"b\"} 20\nfs_avail{n=\"b\",m=\"a\"} 30\n" }, "cannot: fs_avail: a series is there twice"},
		{"no such series", rules(`fs_avail{m="x"}`, "> 10"), func(m *machine) { m.more = "fs_avail{m=\"a\"} 20\n" }, "cannot: fs_avail{m=\"x\"}: the page has no such series"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := quietMachine()
			c.set(&m)
			e := prepared(t, exporterCheck(c.rules))
			first := e.at(t, 0, m.page(0))
			j := e.judge(&first.sample, e.at(t, 10*time.Second, m.page(1)))
			got := ""
			switch {
			case j.stale != "":
				got = "stale"
			case j.violated != "":
				got = "violated: " + j.violated
			case j.cannot != "":
				got = "cannot: " + j.cannot
			case j.later != "":
				got = "later: " + j.later
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What the wire brings beside numbers, FAULTS P13: none of it is evidence, unless the check says that a broken exporter is.
func TestExporterHostile(t *testing.T) { bothWays(t, testExporterHostile) }

func testExporterHostile(t *testing.T) {
	page := quietMachine().page(0)
	packed := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return b.String()
	}
	plain := func(change func(m *machine)) func(net.Conn) {
		m := quietMachine()
		change(&m)
		return answers(okHead + m.page(0))
	}
	head := func(fields string) string { return "HTTP/1.1 200 OK\r\n" + fields + "\r\n" }
	var self *authority
	tlsOnly := tlsServer(&tls.Config{Certificates: []tls.Certificate{self.issue(t, epoch.Add(-time.Hour), epoch.Add(time.Hour))}}, silent)
	for _, c := range []struct {
		name    string
		serve   func(net.Conn)
		timeout time.Duration
		want    string
	}{
		{"NaN", plain(func(m *machine) { m.load = "NaN" }), 0, "load1: node_load1 is NaN"},
		{"Inf", plain(func(m *machine) { m.load = "+Inf" }), 0, "load1: node_load1 is +Inf"},
		{"minus Inf", plain(func(m *machine) { m.load = "-Inf" }), 0, "load1: node_load1 is -Inf"},
		{"larger than any number", plain(func(m *machine) { m.load = "1e999" }), 0, "load1: node_load1 is +Inf"},
		{"negative", plain(func(m *machine) { m.load = "-0.5" }), 0, "load1: node_load1 is -0.5"},
		{"missing", plain(func(m *machine) { m.load = "" }), 0, "load1: node_load1 is missing"},
		{"twice", plain(func(m *machine) { m.more = "node_load1 0.5\n" }), 0, "load1: node_load1 is there 2 times"},
		{"no memory at all", plain(func(m *machine) { m.total, m.free = "0", "0" }), 0, "mem_free: 0 bytes of 0 are free"},
		{"more free than there is", plain(func(m *machine) { m.free = "9e+09" }), 0, "mem_free: 9e+09 bytes of 8e+09 are free"},
		{"no cores", plain(func(m *machine) { m.idle[0] = nil }), 0, "load1: the page has no cores (node_cpu_seconds_total)"},
		{"value in words", plain(func(m *machine) { m.load = "low" }), 0, `page: line 14: node_load1: value "low" is no number`},
		{"value with a comma", plain(func(m *machine) { m.load = "0,5" }), 0, `page: line 14: node_load1: value "0,5" is no number`},
		{"value in hexadecimal", plain(func(m *machine) { m.load = "0x1p-2" }), 0, `page: line 14: node_load1: value "0x1p-2" is no number`},
		{"no value", plain(func(m *machine) { m.more = "node_load1\nnode_load1 \n" }), 0, `page: line 22: node_load1: value "" is no number`},
		{"bad timestamp", plain(func(m *machine) { m.load = "0.5 yesterday" }), 0, `page: line 14: node_load1: timestamp "yesterday" is no number of milliseconds`},
		{"labels without end", plain(func(m *machine) { m.more = "node_load1{a=\"b\n" }), 0, "page: line 21: node_load1: malformed labels"},
		{"labels twice", plain(func(m *machine) { m.more = "node_load1{a=\"b\",a=\"c\"} 1\n" }), 0, "page: line 21: node_load1: malformed labels"},
		{"too many labels", plain(func(m *machine) {
			m.more = "node_load1{"
			for i := range 65 {
				m.more += fmt.Sprintf("l%d=\"\",", i)
			}
			m.more += "} 1\n"
		}), 0, "page: line 21: node_load1: more than 64 labels"},
		{"a line without end", flood(okHead, "x"), 0, "page: line 1 is longer than 16384 bytes"},
		{"HTML", answers(head("Content-Type: text/html\r\n") + "<html><body>It works!</body></html>\n"), 0, "page is of type text/html, want text/plain"},
		{"HTML that says it is text", answers(okHead + "<html><body>It works!</body></html>\n"), 0, `page: line 1: "<html><body>It works!</body></html>" is no metric; is this an exporter's page?`},
		{"JSON", answers(head("Content-Type: application/json\r\n") + "{}\n"), 0, "page is of type application/json, want text/plain"},
		{"protobuf", answers(head("Content-Type: application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited\r\n") + "\x01"), 0, "page is of type application/vnd.google.protobuf; proto=io.prom"},
		{"type that is none", answers(head("Content-Type: ;\r\n") + page), 0, "page is of type ;, want text/plain"},
		{"binary junk", answers(okHead + "\x00\x01\xff\xfe\n"), 0, `page: line 1: "\x00\x01\xff\xfe" is no metric; is this an exporter's page?`},
		{"gzip though not asked for", answers(head("Content-Type: text/plain\r\nContent-Encoding: gzip\r\n") + packed(page)), 0, "page is compressed (gzip), which was not asked for"},
		{"gzip bomb that does not say so", answers(okHead + packed(strings.Repeat("node_load1 1\n", 1<<20))), 0, "page: "},
		{"empty page", answers(head("Content-Length: 0\r\n")), 0, "load1: the page has no cores (node_cpu_seconds_total); mem_free: node_memory_MemAvailable_bytes is missing"},
		{"shorter than it says", answers(head(fmt.Sprintf("Content-Length: %d\r\n", len(page)+1)) + page), 0, "body: the target closed before its end"},
		{"longer than it says", answers(head(fmt.Sprintf("Content-Length: %d\r\n", len(page)-1)) + page), 0, "page: cut off in line 20"},
		{"cut in a line", answers(okHead + page[:len(page)-3]), 0, "page: cut off in line 20"},
		{"cut in a chunk", answers(head("Transfer-Encoding: chunked\r\n") + fmt.Sprintf("%x\r\n", len(page)+9) + page), 0, "body: the target closed before its end"},
		{"bad chunk", answers(head("Transfer-Encoding: chunked\r\n") + "zz\r\n" + page), 0, "body: invalid byte in chunk length"},
		{"two lengths", answers(head("Content-Length: 5\r\nContent-Length: 6\r\n") + page), 0, "answer: "},
		{"endless page", flood(okHead, "node_other 1\n"), 0, "page: larger than 4194304 bytes"},
		{"endless comment lines", flood(okHead, "#\n"), 0, "page: larger than 4194304 bytes"},
		{"drip without end", drip(okHead, "node_other 1\n"), hasty, "body: not done within 500ms"},
		{"drip of the head", drip("HTTP/1.1 200 OK\r\n", "X-A: b\r\n"), hasty, "answer: not done within 500ms"},
		{"head without end", flood("HTTP/1.1 200 OK\r\n", "X-A: b\r\n"), 0, "answer: head larger than 64 KiB"},
		{"informational answers without end", flood("", "HTTP/1.1 100 Continue\r\n\r\n"), 0, "answer: more than 8 informational answers"},
		{"silent", silent, hasty, "answer: not done within 500ms"},
		{"closes", func(c net.Conn) { readHead(c) }, 0, "closed by the target before an answer"},
		{"resets", reset, 0, "answer: reset by the target"},
		{"a page without a head", answers(page), 0, "answer: malformed HTTP"},
		{"TLS only", tlsOnly, 0, ""},
		{"404", answers("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), 0, "status 404, want 200"},
		{"500", answers("HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n" + page), 0, "status 500, want 200"},
		{"204", answers("HTTP/1.1 204 No Content\r\n\r\n"), 0, "status 204, want 200"},
		{"redirect", answers("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"), 0, "status 302, want 200"},
		{"switches protocols", answers("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), 0, "status 101, want 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := serve(t, c.serve)
			check := exporterCheck(rules("load1", "<= cores", "mem_free", "> 5%"))
			check.Timeout = c.timeout
			o := ask(t, Options{}, at, check).Observation
			if o.Status != rota.Unknown || o.Class != rota.ClassExporter || !strings.HasPrefix(o.Reason, "exporter: "+c.want) {
				t.Errorf("%v %s %q; want unknown exporter %q", o.Status, o.Class, o.Reason, "exporter: "+c.want)
			}
			check.OnError = rota.Down
			if o := ask(t, Options{}, at, check).Observation; o.Status != rota.Down || o.Class != rota.ClassExporter {
				t.Errorf("on_error down: %v %s %q", o.Status, o.Class, o.Reason)
			}
		})
	}
}

// A port that nobody listens on: unknown, in either case by the word of the check.
func TestExporterDead(t *testing.T) { bothWays(t, testExporterDead) }

func testExporterDead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	check := exporterCheck(rules("load1", "<= cores"))
	expect(t, Options{}, at, check, "unknown exporter: exporter: connect: refused")
	check.OnError = rota.Down
	expect(t, Options{}, at, check, "down exporter: exporter: connect: refused")
	// What this machine cannot do is nobody's fault but its own.
	expect(t, Options{}, netip.MustParseAddrPort("[fe80::1]:9100"), check, "unknown unroutable: connect: fe80::1 is link-local; name its interface, as in fe80::1%eth0")
}

// outcome is a verdict without its reason.
func outcome(tr Trace) string {
	return tr.Observation.Status.String() + " " + string(tr.Observation.Class)
}

// fake is an exporter whose page is set by the test, and which counts who asks.
type fake struct {
	page  atomic.Pointer[func() string]
	asked atomic.Int64
	at    netip.AddrPort
}

func newFake(t testing.TB, page func() string) *fake { return newFakeOn(t, "127.0.0.1:0", page) }

func newFakeOn(t testing.TB, on string, page func() string) *fake {
	t.Helper()
	f := &fake{}
	f.page.Store(&page)
	f.at = serveOn(t, on, func(c net.Conn) {
		readHead(c)
		f.asked.Add(1)
		_, _ = io.WriteString(c, okHead+(*f.page.Load())())
	})
	return f
}

// movingPage is a page of a machine whose counters move with real time; busy is the share of time that its cores are. It has no clock, so that
// nothing but the counters can tell one page from another.
func movingPage(busy float64) func() string {
	begun := time.Now()
	return func() string {
		d := time.Since(begun).Seconds()
		m := quietMachine()
		m.clock[0] = ""
		m.user[0] += d * busy
		for n := range m.idle[0] {
			m.idle[0][n] += d * (1 - busy)
		}
		return m.page(0)
	}
}

// The gate: a machine that does not answer ICMP is down, and its exporter is not asked; without permission to ask it is unknown.
func TestExporterGate(t *testing.T) { bothWays(t, testExporterGate) }

func testExporterGate(t *testing.T) {
	f := newFake(t, movingPage(0.5))
	check := exporterCheck(rules("load1", "<= cores"))
	check.NoPing = false
	tr := expect(t, Options{}, f.at, check, "up ok: the rule holds")
	if len(tr.Steps) == 0 || tr.Steps[0].Name != "echo" || f.asked.Load() != 1 {
		t.Errorf("steps %v, asked %d times", tr.Steps, f.asked.Load())
	}

	// The same exporter on a machine that ICMP does not reach: its socket loses everything.
	q := check
	q.Port, q.Timeout = f.at.Port(), 400*time.Millisecond
	p := New(Options{})
	lost := newPinger(p.log)
	defer lost.close()
	s := &socket{conn: losing{}, raw: true, waiting: map[uint64]waiting{}}
	lost.socks[0] = s
	before := f.asked.Load()
	if o := p.observe(t.Context(), "", f.at.Addr(), newQuestion(q), nil, lost).Observation; o.Status != rota.Down || o.Class != rota.ClassTimeout {
		t.Errorf("without a reply: %v %s %q", o.Status, o.Class, o.Reason)
	}
	if s.number != pings {
		t.Errorf("%d echo requests, want %d", s.number, pings)
	}
	for _, c := range []struct {
		err  error
		want rota.Class
	}{{os.ErrPermission, rota.ClassPermission}, {syscall.EMFILE, rota.ClassResource}} {
		none := newPinger(p.log)
		none.open = func(bool) (*socket, error) { return nil, c.err }
		if o := p.observe(t.Context(), "", f.at.Addr(), newQuestion(q), nil, none).Observation; o.Status != rota.Unknown || o.Class != c.want {
			t.Errorf("%v: %v %s %q, want unknown", c.err, o.Status, o.Class, o.Reason)
		}
	}
	if f.asked.Load() != before {
		t.Error("the exporter was asked although the machine had not answered")
	}

	// And a check of nothing but ICMP has no business with it.
	expect(t, Options{}, f.at, rota.Check{Kind: rota.KindICMP}, "up ok: reply")
	if f.asked.Load() != before {
		t.Error("a check by ICMP asked the exporter")
	}
}

// losing is a socket that sends into the void.
type losing struct{ net.PacketConn }

func (losing) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }
func (losing) Close() error                              { return nil }

// Beside the schedule, and at the first probe, both samples are taken at once; later the sample of the last probe is the first.
func TestExporterSamples(t *testing.T) { bothWays(t, testExporterSamples) }

func testExporterSamples(t *testing.T) {
	f := newFake(t, movingPage(0.25))
	check := exporterCheck(rules("cpu", "< 90%", "load1", "<= cores"))
	tr := expect(t, Options{}, f.at, check, "up ok: all 2 rules hold")
	if f.asked.Load() != 2 {
		t.Errorf("asked %d times, want 2", f.asked.Load())
	}
	if last := tr.Steps[len(tr.Steps)-1]; last.Name != "rules" || !strings.HasPrefix(last.Note, "cpu ") {
		t.Errorf("last step %v, want the numbers", last)
	}

	check.Port, check.Timeout = f.at.Port(), patient
	p, q, m := New(Options{}), newQuestion(check), &memory{}
	observe := func(want string, asked int64) Trace {
		t.Helper()
		before := f.asked.Load()
		tr := *p.observe(t.Context(), "", f.at.Addr(), q, m, nil)
		if outcome(tr) != want || f.asked.Load()-before != asked {
			t.Errorf("%s (%s), asked %d times; want %s, %d", outcome(tr), tr.Observation.Reason, f.asked.Load()-before, want, asked)
		}
		return tr
	}
	observe("up ok", 2)
	observe("up ok", 1)
	page := movingPage(1)
	f.page.Store(&page)
	observe("down threshold", 2) // another machine's counters: they went back, so one sample is skipped
	observe("down threshold", 1)

	still := page()
	stopped := func() string { return still }
	f.page.Store(&stopped)
	p.observe(t.Context(), "", f.at.Addr(), q, m, nil) // moved a little since the last probe
	kept := m.sample.(*sample).at
	observe("unknown exporter", 1)
	observe("unknown exporter", 1)
	if m.sample.(*sample).at != kept {
		t.Error("an old page took the place of the sample that it is: its numbers would seem to be younger")
	}
	f.page.Store(&page)
	observe("down threshold", 1)

	// An old page stays old however long it is shown.
	f.page.Store(&stopped)
	observe("unknown exporter", 2) // it is older than the last, so the first look tells nothing
	observe("unknown exporter", 1)
	m.sample.(*sample).at = time.Now().Add(-time.Hour)
	observe("unknown exporter", 1)
	f.page.Store(&page)

	// What does not hold at the first look is down without a second one, but for a person who wants to see all numbers.
	loaded := check
	loaded.Rules = rules("cpu", "< 90%", "load1", "< 0")
	before := f.asked.Load()
	if tr := p.observe(t.Context(), "", f.at.Addr(), newQuestion(loaded), &memory{}, nil); outcome(*tr) != "down threshold" || f.asked.Load() != before+1 {
		t.Errorf("%s, asked %d times", verdict(*tr), f.asked.Load()-before)
	}
	loaded.Rules = append(loaded.Rules, rules("net(nosuch0)", "< 80%")...)
	tr = ask(t, Options{}, f.at, loaded) // also when another rule cannot be judged
	if last := tr.Steps[len(tr.Steps)-1]; outcome(tr) != "down threshold" || !strings.HasPrefix(last.Note, "cpu ") {
		t.Errorf("%s, last step %v, want all numbers", verdict(tr), last)
	}

	m.sample.(*sample).at = time.Now().Add(-time.Hour)
	observe("down threshold", 2) // too old to tell of now

	short := check
	short.Timeout = 200 * time.Millisecond
	q, m = newQuestion(short), &memory{}
	if o := observe("unknown exporter", 1).Observation; !strings.Contains(o.Reason, "one sample is not enough") {
		t.Errorf("reason %q", o.Reason)
	}
	if m.sample == nil {
		t.Error("the first sample is forgotten")
	}
}

func TestExporterRefusesChecks(t *testing.T) {
	for want, rs := range map[string][]rota.Rule{
		"0 rules; want 1 to 32":  nil,
		"33 rules; want 1 to 32": make([]rota.Rule, 33),
		"as in < 90%":            rules("cpu", "90"),
	} {
		c := exporterCheck(rs)
		c.Port = 9100
		if q := newQuestion(c); q.unusable == nil || !strings.Contains(q.unusable.Error(), want) {
			t.Errorf("%v: %v, want %q", rs, q.unusable, want)
		}
	}
}
