package publish

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// FuzzAnswer lets anything come back for a query and for an update: it is taken, explained or passed over, and never believed
// without the signature.
func FuzzAnswer(f *testing.F) {
	key := &Key{Name: "rota", Secret: "c2VjcmV0"}
	ask := query("www.example.test.", rota.TypeA)
	ask.Id = 4711
	reply := new(dns.Msg)
	reply.SetReply(ask)
	reply.Authoritative = true
	for _, text := range []string{
		"www.example.test. 30 IN A 192.0.2.1", "www.example.test. 30 IN CNAME a.", "example.test. 1 IN DNAME b.", "www.example.test. 1 IN NS c.",
	} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		reply.Answer = append(reply.Answer, rr)
		wire, err := reply.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	signed := reply.Copy()
	signed.SetTsig("rota.", dns.HmacSHA256, 300, time.Now().Unix())
	wire, _, err := dns.TsigGenerateWithProvider(signed, key, "", false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) > 1 {
			packet[0], packet[1] = 0x12, 0x67 // the id: the rest of the header is the fuzzer's
		}
		for _, r := range []*road{{server: "s"}, {server: "s", key: key}} {
			for _, opcode := range []int{dns.OpcodeQuery, dns.OpcodeUpdate} {
				m := ask.Copy()
				m.Opcode = opcode
				answer, why := r.judge(m, packet, "00ff")
				if answer != nil && why != nil || answer != nil && r.key != nil {
					t.Fatalf("believed: %v %v", answer, why) // nobody can sign for the request MAC 00ff
				}
				if why != nil && (why.Code == "" || why.Text == "" || why.InDoubt != (opcode == dns.OpcodeUpdate)) {
					t.Fatalf("reason %+v", why)
				}
				if answer == nil {
					continue
				}
				sets, blocked, err := r.read(answer, "example.test.", rota.Key{Name: "www.example.test.", Type: rota.TypeA})
				for _, s := range sets {
					if s.Name != "www.example.test." || s.Type != rota.TypeA && s.Type != rota.TypeCNAME || len(s.Data) == 0 {
						t.Fatalf("read %+v", s)
					}
				}
				if (err != nil || blocked != nil) && len(sets) > 0 {
					t.Fatalf("read %v beside %v %v", sets, blocked, err)
				}
			}
		}
	})
}

// FuzzFence reads whatever stands in the fence record; what is read back is what was written.
func FuzzFence(f *testing.F) {
	f.Add(`"owner=test epoch=3 seq=4 by=ab"`, "test", uint64(3))
	f.Add(`"owner=%zz epoch=-1"`, "a b\"=\\", uint64(1)<<62)
	f.Fuzz(func(t *testing.T, text, owner string, epoch uint64) {
		if got, err := ParseFence(rota.RRset{Name: "_rota.", Data: []string{text}}); err == nil && got.Owner == "" {
			t.Fatal("a fence of nobody")
		}
		if owner == "" || epoch >= 1<<63 {
			return
		}
		want := Fence{Owner: owner, Epoch: epoch, Seq: 2, By: "00"}
		if got, err := ParseFence(want.RRset("example.test.")); err != nil || got != want {
			t.Fatalf("%+v became %+v, %v", want, got, err)
		}
	})
}

// Every rcode and every TSIG error has a name, an advice, and the right pace.
func TestExplain(t *testing.T) {
	r := &road{server: "192.0.2.53:53", key: &Key{Name: "rota"}}
	m := new(dns.Msg)
	m.SetUpdate("example.test.")
	transient := map[int]bool{dns.RcodeServerFailure: true}
	for rcode := 1; rcode < 24; rcode++ {
		why := r.explain(m, rcode, 0)
		if why.Code == "" || why.Advice == "" || why.Server == "" || why.Transient != transient[rcode] {
			t.Errorf("rcode %d: %+v", rcode, why)
		}
	}
	for tsig, want := range map[uint16]string{16: "BADSIG", 17: "BADKEY", 18: "clock skew"} {
		if why := r.explain(m, dns.RcodeNotAuth, tsig); !strings.Contains(why.Error(), want) || why.Transient {
			t.Errorf("TSIG error %d: %v", tsig, why)
		}
	}
	if s := skew("000065920080"); !strings.Contains(s, "2024-01-01T00:00:00Z") {
		t.Errorf("the server's clock reads %q", s)
	}
}

func TestKeyHidesItsSecret(t *testing.T) {
	const secret = "aHVzaGh1c2hodXNo"
	k := Key{Name: "rota", Secret: secret}
	j, err := json.Marshal(map[string]any{"key": k, "pointer": &k})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "options", RFC2136Options{Key: &k})
	_, bad := NewRFC2136(RFC2136Options{Servers: []string{"192.0.2.1"}, Key: &Key{Name: "k", Secret: secret + "!"}})
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", k, k, k, &k), string(j), log.String(), fmt.Sprint(bad)} {
		if strings.Contains(s, secret) || s == "" {
			t.Errorf("the secret shows in %s", s)
		}
	}
}

func TestOptions(t *testing.T) {
	good := Key{Name: "rota", Secret: "c2VjcmV0"}
	with := func(change func(*Key)) *Key {
		k := good
		change(&k)
		return &k
	}
	for _, c := range []struct {
		o    RFC2136Options
		want string // part of the error; empty: none
	}{
		{RFC2136Options{Servers: []string{"192.0.2.1", "[2001:db8::1]:5353", "2001:db8::1", "ns1.example.test"}, Key: &good}, ""},
		{RFC2136Options{}, "no server"},
		{RFC2136Options{Servers: []string{"http://x/"}}, "server"},
		{RFC2136Options{Servers: []string{"ns1"}, Key: with(func(k *Key) { k.Algorithm = "hmac-sha1" })}, "weak"},
		{RFC2136Options{Servers: []string{"ns1"}, Key: with(func(k *Key) { k.Algorithm = "hmac-md5" })}, "weak"},
		{RFC2136Options{Servers: []string{"ns1"}, Key: with(func(k *Key) { k.Algorithm, k.Weak = "hmac-md5", true })}, ""},
		{RFC2136Options{Servers: []string{"ns1"}, Key: with(func(k *Key) { k.Algorithm = "sha" })}, "unknown algorithm"},
		{RFC2136Options{Servers: []string{"ns1"}, Key: with(func(k *Key) { k.Secret = "%" })}, "base64"},
	} {
		_, err := NewRFC2136(c.o)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// Without a key, id, question and kind are what tells an answer from a stray packet; what is none of ours is not even a reason.
func TestStrayAnswers(t *testing.T) {
	ask := query("www.example.test.", rota.TypeA)
	r := &road{server: "s"}
	for name, change := range map[string]func(*dns.Msg){
		"id":       func(m *dns.Msg) { m.Id++ },
		"query":    func(m *dns.Msg) { m.Response = false },
		"opcode":   func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		"name":     func(m *dns.Msg) { m.Question[0].Name = "wwx.example.test." },
		"type":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"class":    func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"two":      func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"question": func(m *dns.Msg) { m.Question = nil },
		"":         func(m *dns.Msg) { m.Question[0].Name = "wWw.eXample.test." }, // is taken: names have no case
	} {
		m := new(dns.Msg)
		m.SetReply(ask)
		change(m)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if answer, why := r.judge(ask, wire, ""); (answer != nil) != (name == "") || why != nil {
			t.Errorf("another %s: %v, %v", name, answer, why)
		}
	}
}

// A server that answers each question just in time does not hold a reader for the sum of them.
func TestReadIsBounded(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			m := new(dns.Msg)
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			reply := new(dns.Msg)
			reply.SetReply(m)
			reply.Authoritative = true
			time.Sleep(20 * time.Millisecond)
			if wire, err := reply.Pack(); err == nil {
				_, _ = conn.WriteTo(wire, from)
			}
		}
	}()
	b, err := NewRFC2136(RFC2136Options{Servers: []string{conn.LocalAddr().String()}, NoTransfer: true, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var keys []rota.Key
	for i := range 1000 {
		keys = append(keys, rota.Key{Name: rota.Name(fmt.Sprintf("s%d.example.test.", i)), Type: rota.TypeA})
	}
	if got := b.total(len(keys)); got != readWithin+20*time.Second {
		t.Errorf("a read of %d keys may take %v", len(keys), got)
	}
	b.total = func(int) time.Duration { return 200 * time.Millisecond }
	start := time.Now()
	_, err = b.Read(t.Context(), "example.test.", keys)
	if r := ReasonOf(err); r.Code != CodeUnreachable || !r.Transient || r.InDoubt || !strings.Contains(r.Text, "1000 RRsets could not be read within 200ms") {
		t.Errorf("%+v", r)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
