package peers

import (
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Every server answers, takes an update with the key, keeps it over a restart, and refuses what is closed.
func TestNameServers(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := Start(t, kind, Config{Zones: []Zone{{Name: "example.test.", Text: "www 30 IN A 192.0.2.1"}}})
			if got := s.Lookup("www.example.test.", dns.TypeA); !slices.Equal(got, []string{"192.0.2.1"}) {
				t.Fatalf("www is %v", got)
			}
			serial := s.Serial("example.test.")
			s.Update("example.test.", nil, []string{"www.example.test. 30 IN A 192.0.2.2"})
			if now := s.Serial("example.test."); now <= serial {
				t.Errorf("serial went from %d to %d", serial, now)
			}
			s.Kill()
			s.Restart()
			if got := s.Lookup("www.example.test.", dns.TypeA); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2"}) {
				t.Errorf("after a restart www is %v", got)
			}
			s.SetZone(Zone{Name: "example.test.", Text: "www 30 IN A 192.0.2.9"})
			if got := s.Dump("example.test."); !slices.Contains(got, "www.example.test. 30 IN A 192.0.2.9") || len(got) != 4 {
				t.Errorf("after SetZone the zone is %q", got)
			}
		})
	}
}

// A secondary follows its primary when it is told of a change.
func TestSecondaries(t *testing.T) {
	for _, c := range []struct{ primary, secondary Kind }{{BIND, Knot}, {Knot, BIND}} {
		t.Run(string(c.primary)+" and "+string(c.secondary), func(t *testing.T) {
			t.Parallel()
			port := FreePort(t)
			told := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			p := Start(t, c.primary, Config{Zones: []Zone{{Name: "example.test.", Text: "www 30 IN A 192.0.2.1", Notify: []string{told}}}})
			s := Start(t, c.secondary, Config{Port: port, Zones: []Zone{{Name: "example.test.", Primary: p.Addr()}}})
			p.Update("example.test.", nil, []string{"www.example.test. 30 IN A 192.0.2.2"})
			deadline := time.Now().Add(startLimit)
			for !slices.Equal(s.Lookup("www.example.test.", dns.TypeA), []string{"192.0.2.1", "192.0.2.2"}) {
				if time.Now().After(deadline) {
					t.Fatalf("the secondary has serial %d, the primary %d", s.Serial("example.test."), p.Serial("example.test."))
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

func TestNginx(t *testing.T) {
	n := StartNginx(t, "127.0.0.1", FreePort(t), `location / { return 200 "ok"; } location /bad { return 500; }`)
	for path, want := range map[string]int{"/": 200, "/bad": 500} {
		if got, err := n.Get(path); got != want || err != nil {
			t.Errorf("GET %s is %d %v, want %d", path, got, err, want)
		}
	}
	n.Kill()
	if _, err := n.Get("/"); err == nil {
		t.Error("nginx answers after it was killed")
	}
}
