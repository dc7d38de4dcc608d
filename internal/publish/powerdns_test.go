package publish

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rota-dns/rota/internal/peers"
)

// realPowerDNS is a PowerDNS server behind a front that plays faults, holds and captures requests.
type realPowerDNS struct {
	*apiFront
	server *peers.NameServer
}

func newRealPowerDNS(t testing.TB) fakeAPI {
	var text strings.Builder
	for _, line := range apiForeign {
		text.WriteString(line + "\n")
	}
	s := peers.Start(t, peers.PowerDNS, peers.Config{Zones: []peers.Zone{{Name: "example.test.", Text: text.String()}}})
	u, err := url.Parse(s.API())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	carrier := &http.Transport{}
	t.Cleanup(carrier.CloseIdleConnections)
	proxy.Transport = carrier
	return &realPowerDNS{
		apiFront: &apiFront{handler: proxy, changes: func(r *http.Request, _ []byte) bool { return r.Method != http.MethodGet }},
		server:   s,
	}
}

func (p *realPowerDNS) backend(t testing.TB) Backend {
	b, err := NewPowerDNS(PowerDNSOptions{URL: p.server.API(), Key: peers.APIKey, Timeout: 500 * time.Millisecond, client: p.apiFront})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *realPowerDNS) secret() string { return peers.APIKey }

func (p *realPowerDNS) records(zone string) []string {
	return slices.DeleteFunc(p.server.Dump(zone), func(rr string) bool {
		return strings.Contains(rr, " SOA ") || strings.Contains(rr, " ns1."+zone) || strings.HasPrefix(rr, "ns1."+zone)
	})
}

func (p *realPowerDNS) edit(zone string, add, remove []string) { p.server.Update(zone, remove, add) }

func (p *realPowerDNS) fail(f apiFault, n int) bool {
	switch f {
	case apiEmpty, apiLoop, apiStale, apiPartial, apiAlien:
		return false
	}
	return p.apiFront.fail(f, n)
}

func TestPowerDNSServer(t *testing.T) {
	apiConformance(t, false, newRealPowerDNS)
}
