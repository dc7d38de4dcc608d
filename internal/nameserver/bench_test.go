package nameserver

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

func benchServices(n int) []rota.Service {
	out := make([]rota.Service, n)
	for i := range out {
		out[i] = service(fmt.Sprintf("name%d.example.org", i), "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
	}
	return out
}

// BenchmarkLookup is one answer of four addresses, without (lookup) and with (packet) reading and writing the messages.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		st := stateOf(b, benchServices(n))
		c := catalogOf(b, st, exampleZone())
		questions, packets := make([]question, 1024), make([][]byte, 1024)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range questions {
			name := fmt.Sprintf("name%d.example.org.", rng.IntN(n))
			questions[i] = question{asked: name, name: rota.Name(name), qtype: dns.TypeA}
			packets[i] = packed(b, name, dns.TypeA, withEDNS(1232))
		}
		b.Run(fmt.Sprintf("lookup/names=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if a := lookup(c, st, questions[i&1023], rand.Uint64N); len(a.answer) != 4 {
					b.Fatal(a)
				}
				i++
			}
		})
		b.Run(fmt.Sprintf("packet/names=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if p, _ := respond(c, st, packets[i&1023], true, rand.Uint64N); p == nil {
					b.Fatal("no answer")
				}
				i++
			}
		})
	}
}

// BenchmarkCatalog is what a change of configuration costs the first query after it.
func BenchmarkCatalog(b *testing.B) {
	st := stateOf(b, benchServices(100_000))
	zones, err := Compile([]Zone{exampleZone()})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		newCatalog(zones, st)
	}
}

// BenchmarkServeUDP compares answers a second over loopback with those of a miekg/dns server that only echoes the question: the same
// load, in the same run. Only the ratio says something.
func BenchmarkServeUDP(b *testing.B) {
	st := stateOf(b, benchServices(10))
	b.Run("rota", func(b *testing.B) {
		_, addr := start(b, Options{Zones: []Zone{exampleZone()}, State: fixed(st)})
		load(b, addr)
	})
	b.Run("echo", func(b *testing.B) {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetReply(m))
		})}
		done := make(chan error)
		go func() { done <- srv.ActivateAndServe() }()
		load(b, conn.LocalAddr().String())
		_ = srv.Shutdown()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// load asks with many questions in flight on one socket, until b.N are answered.
func load(b *testing.B, addr string) {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	p := packed(b, "name1.example.org.", dns.TypeA, withEDNS(1232))
	buf := make([]byte, 2048)
	const window = 64
	b.ReportAllocs()
	b.ResetTimer()
	inFlight := 0
	for answered := 0; answered < b.N; {
		for inFlight < window && inFlight < b.N-answered {
			if _, err := conn.Write(p); err != nil {
				b.Fatal(err)
			}
			inFlight++
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(buf); err != nil {
			inFlight = 0 // lost: ask anew
			continue
		}
		inFlight--
		answered++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
}
