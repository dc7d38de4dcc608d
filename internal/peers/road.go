package peers

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Packet is a DNS message on the road.
type Packet struct {
	Wire  []byte
	Query bool // towards the server
	TCP   bool
}

// Update reports whether the message is an UPDATE or the answer to one.
func (p Packet) Update() bool { return len(p.Wire) > 2 && p.Wire[2]>>3&0xf == dns.OpcodeUpdate }

// Rule says what becomes of a packet: the messages to send on in its place, none to drop it. It may be called from several goroutines
// at once.
type Rule func(Packet) [][]byte

// Pass sends a packet on as it is.
func Pass(p Packet) [][]byte { return [][]byte{p.Wire} }

// Road forwards DNS messages over UDP and TCP to a server, by a rule.
type Road struct {
	t      testing.TB
	at     Place
	server string
	udp    *net.UDPConn
	tcp    net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	rule  Rule
	conns map[net.Conn]bool
	shut  bool
}

// NewRoad opens a road to a server. It passes everything until Set, and closes with the test.
func NewRoad(t testing.TB, server string) *Road { return NewRoadAt(t, Place{}, server) }

// NewRoadAt opens a road that begins, and goes on to the server, at a place.
func NewRoadAt(t testing.TB, at Place, server string) *Road {
	t.Helper()
	r := &Road{t: t, at: at, server: server, rule: Pass, conns: map[net.Conn]bool{}}
	near := "127.0.0.1:0"
	if at.Address != "" {
		near = net.JoinHostPort(at.Address, "53")
	}
	var err error
	at.within(func() {
		for range 50 {
			if r.tcp, err = net.Listen("tcp", near); err != nil {
				t.Fatal(err)
			}
			addr := r.tcp.Addr().(*net.TCPAddr)
			if r.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port}); err == nil {
				break
			}
			r.tcp.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.wg.Go(r.serveUDP)
	r.wg.Go(r.serveTCP)
	t.Cleanup(func() {
		r.mu.Lock()
		r.shut = true
		for c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		r.udp.Close()
		r.tcp.Close()
		r.wg.Wait()
	})
	return r
}

// Addr returns the address and port of the near end.
func (r *Road) Addr() string { return r.tcp.Addr().String() }

// Set puts a rule in force.
func (r *Road) Set(rule Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rule = rule
}

// Send delivers a message to the server past the rule, as a late or replayed one, and returns the answer's rcode.
func (r *Road) Send(wire []byte) int {
	r.t.Helper()
	c, err := r.dial("tcp")
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := writeFrame(c, wire); err != nil {
		r.t.Fatal(err)
	}
	answer, err := readFrame(c)
	if err != nil || len(answer) < 4 {
		r.t.Fatalf("no answer to a message sent late: %v", err)
	}
	return int(answer[3] & 0xf)
}

// dial connects to the server.
func (r *Road) dial(network string) (c net.Conn, err error) {
	r.at.within(func() { c, err = net.DialTimeout(network, r.server, 3*time.Second) })
	return c, err
}

func (r *Road) apply(p Packet) [][]byte {
	r.mu.Lock()
	rule := r.rule
	r.mu.Unlock()
	return rule(p)
}

// keep remembers a connection so that it closes with the road, and returns false when that has happened.
func (r *Road) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		c.Close()
		return false
	}
	r.conns[c] = true
	return true
}

func (r *Road) drop(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	c.Close()
}

func (r *Road) serveUDP() {
	clients := map[string]net.Conn{}
	buf := make([]byte, 65535)
	for {
		n, client, err := r.udp.ReadFromUDP(buf)
		if err != nil {
			return
		}
		up := clients[client.String()]
		if up == nil {
			if up, err = r.dial("udp"); err != nil || !r.keep(up) {
				return
			}
			clients[client.String()] = up
			r.wg.Go(func() {
				defer r.drop(up)
				back := make([]byte, 65535)
				for {
					n, err := up.Read(back)
					if err != nil {
						if r.closed() {
							return
						}
						continue // the server is away: an ICMP error, not the end
					}
					for _, w := range r.apply(Packet{Wire: append([]byte(nil), back[:n]...)}) {
						r.udp.WriteToUDP(w, client)
					}
				}
			})
		}
		for _, w := range r.apply(Packet{Wire: append([]byte(nil), buf[:n]...), Query: true}) {
			up.Write(w)
		}
	}
}

func (r *Road) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shut
}

func (r *Road) serveTCP() {
	for {
		near, err := r.tcp.Accept()
		if err != nil {
			return
		}
		if !r.keep(near) {
			return
		}
		r.wg.Go(func() {
			defer r.drop(near)
			far, err := r.dial("tcp")
			if err != nil || !r.keep(far) {
				return
			}
			defer r.drop(far)
			r.wg.Go(func() {
				r.pipe(far, near, false)
				near.Close()
			})
			r.pipe(near, far, true)
		})
	}
}

func (r *Road) pipe(from, to net.Conn, query bool) {
	for {
		w, err := readFrame(from)
		if err != nil {
			return
		}
		for _, w := range r.apply(Packet{Wire: w, Query: query, TCP: true}) {
			if writeFrame(to, w) != nil {
				return
			}
		}
	}
}

func readFrame(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	w := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, w)
	return w, err
}

func writeFrame(c io.Writer, w []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(w))), w...))
	return err
}
