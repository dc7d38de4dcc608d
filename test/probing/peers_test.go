package probing

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// question is what all probers of one comparison ask.
type question string

const (
	askHTTP  question = "http"
	askTCP   question = "tcp"
	askICMP  question = "icmp"
	askHTTPS question = "https"
)

// file writes a file of a part and returns its path.
func (m *machine) file(name, text string) string {
	m.b.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.b.Fatal(err)
	}
	return path
}

// haproxyBackend bounds the servers of one backend: the time that HAProxy takes to read a backend grows with the square of it.
const haproxyBackend = 10_000

// haproxyInterval is about as short as one processor can keep it for 10,000 servers. It is the limit of a connect, too, so that less
// than HAProxy can keep would measure failures.
var haproxyInterval = map[question]time.Duration{askHTTP: 600 * time.Millisecond, askTCP: 300 * time.Millisecond, askHTTPS: 6 * time.Second}

// haproxy starts HAProxy, which checks n servers. It closes with RST, sends no more packets than it has to, and resumes no session.
func (m *machine) haproxy(ask question, n int, interval time.Duration, ca string) *part {
	m.b.Helper()
	var b strings.Builder
	b.WriteString("global\n nbthread 1\ndefaults\n timeout connect 3s\n timeout client 3s\n timeout server 3s\n timeout check 3s\n")
	b.WriteString("listen nothing\n bind 127.0.0.1:1\n") // it does not start without
	option, port, more := "", portTCP, ""
	switch ask {
	case askHTTP:
		option, port = " option httpchk GET /\n", portHTTP
	case askHTTPS:
		option, port = " option httpchk GET /\n", portHTTPS
		more = fmt.Sprintf(" check-ssl no-ssl-reuse check-sni %[1]s verify required verifyhost %[1]s ca-file %[2]s", serverName, m.file("ca.pem", ca))
	}
	for i := range n {
		if i%haproxyBackend == 0 {
			fmt.Fprintf(&b, "backend b%d\n mode http\n%s", i/haproxyBackend, option)
		}
		fmt.Fprintf(&b, " server s%d %v:%d check inter %dms%s\n", i, address(i), port, interval.Milliseconds(), more)
	}
	return m.other(proberCore, "haproxy", "haproxy", "-db", "-f", m.file("haproxy.cfg", b.String()))
}

// gdnsdInterval is the shortest interval that gdnsd takes. It opens the first checks of all at once, so their number is bounded by the
// descriptors of a process.
const gdnsdInterval = 2 * time.Second

// gdnsd starts gdnsd, which checks n addresses.
func (m *machine) gdnsd(ask question, n int, interval time.Duration) *part {
	m.b.Helper()
	dir := filepath.Join(m.dir, "gdnsd")
	plugin, port := "http_status", portHTTP
	if ask == askTCP {
		plugin, port = "tcp_connect", portTCP
	}
	var b strings.Builder
	fmt.Fprintf(&b, "options => { listen => 127.0.0.1, dns_port => 5353, run_dir => %[1]s/run, state_dir => %[1]s/state }\n", dir)
	fmt.Fprintf(&b, "service_types => { web => { plugin => %s, port => %d, interval => %d, timeout => 1 } }\nplugins => { multifo => {\n",
		plugin, port, int(interval.Seconds()))
	const each = 50 // addresses of a resource
	for i := range n {
		if i%each == 0 {
			fmt.Fprintf(&b, "r%d => { service_types => web", i/each)
		}
		fmt.Fprintf(&b, ", a%d => %v", i, address(i))
		if i%each == each-1 || i == n-1 {
			b.WriteString(" }\n")
		}
	}
	b.WriteString("} }\n")
	m.file("gdnsd/etc/config", b.String())
	for _, x := range []string{"etc/zones", "run", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, x), 0o755); err != nil {
			m.b.Fatal(err)
		}
	}
	return m.other(proberCore, "gdnsd", "gdnsd", "-c", filepath.Join(dir, "etc"), "start")
}

// blackbox starts blackbox_exporter, and on the target's processor somebody who has it probe n addresses all the time.
func (m *machine) blackbox(ask question, n int, ca string) *part {
	m.b.Helper()
	config := m.file("blackbox.yml", fmt.Sprintf(`modules:
  http: {prober: http, timeout: 3s, http: {preferred_ip_protocol: ip4}}
  https: {prober: http, timeout: 3s, http: {preferred_ip_protocol: ip4, tls_config: {ca_file: %s, server_name: %s}}}
  tcp: {prober: tcp, timeout: 3s, tcp: {preferred_ip_protocol: ip4}}
  icmp: {prober: icmp, timeout: 3s, icmp: {preferred_ip_protocol: ip4}}
`, m.file("ca.pem", ca), serverName))
	p := m.other(proberCore, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter",
		"--config.file="+config, fmt.Sprintf("--web.listen-address=127.0.0.1:%d", portExport), "--log.level=error")
	load := m.own(targetCore, "load")
	var begun bool
	load.ask(loadJob{ask, n}, &begun)
	return p
}

type loadJob struct {
	Ask     question
	Targets int
}

// runLoad is the process that has blackbox_exporter probe, 16 addresses at a time.
func runLoad() {
	answerer(func(j loadJob) bool {
		next := make(chan int)
		go func() {
			for i := 0; ; i++ {
				next <- i % j.Targets
			}
		}()
		for range 16 {
			go func() {
				c := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
				for i := range next {
					j.one(&c, i)
				}
			}()
		}
		return true
	})
}

func (j loadJob) one(c *http.Client, i int) {
	target := address(i).String()
	switch j.Ask {
	case askHTTP:
		target = fmt.Sprintf("http://%s:%d/", target, portHTTP)
	case askHTTPS:
		target = fmt.Sprintf("https://%s:%d/", target, portHTTPS)
	case askTCP:
		target = fmt.Sprintf("%s:%d", target, portTCP)
	}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/probe?target=%s&module=%s", portExport, target, j.Ask))
	if err != nil {
		time.Sleep(100 * time.Millisecond) // it is not there yet
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
}

// fpingRun bounds the echo requests of one fping: it knows 65,535 sequence numbers in ten seconds.
const fpingRun = 60_000

// fping has fping ask n addresses several times, and returns how many echo requests were answered and what that cost.
func (m *machine) fping(n, runs int) (answered int, used time.Duration) {
	m.b.Helper()
	list := m.addresses(n)
	before := m.kernel("Icmp", "InEchoReps")
	for range runs {
		p := m.other(proberCore, "fping", "fping", "-q", "-i", "0", "-p", "1", "-c", fmt.Sprint(max(fpingRun/n, 1)), "-f", list)
		<-p.done
		used += p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	}
	return m.kernel("Icmp", "InEchoReps") - before, used
}

// addresses writes the addresses of n targets, one a line.
func (m *machine) addresses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, address(i))
	}
	return m.file("addresses", b.String())
}
