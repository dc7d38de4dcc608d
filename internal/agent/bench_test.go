package agent

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

func manyTargets(n int) []rota.Target {
	ts := make([]rota.Target, n)
	for i := range ts {
		ts[i] = target(rota.KindTCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80).String())
	}
	return sorted(ts...)
}

// One POST of a healthagent with as many monitors as it can have, of which nothing moved.
func BenchmarkHealthagentPost(b *testing.B) {
	m := newMonitors(manyTargets(MaxMonitors))
	var ss []status
	for p := range m.places {
		ss = append(ss, status{IP: p.Addr().String(), Port: int(p.Port()), Healthy: true, Message: "success"})
	}
	body, err := json.Marshal(ss)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	var last *rota.Report
	for b.Loop() {
		said, _, err := readStatuses(body, m.places)
		if err != nil {
			b.Fatal(err)
		}
		last = &rota.Report{Vantage: "foo", Seq: 1, Opinions: m.opine(m, said, last, time.Now())}
	}
}
