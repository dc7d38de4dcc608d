package rota

import (
	"net/netip"
	"testing"
	"time"
)

// On a target that nobody asks only its own agent has a voice, and one is enough, whatever the quorum of the vantages; elsewhere it has none.
func TestBallot(t *testing.T) {
	now := time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC)
	asked := Check{Name: "tcp", Kind: KindTCP, Port: 443, Timing: DefaultTiming()}
	own := Check{Name: "own", Kind: KindAgent, MaxAge: time.Minute, Timing: DefaultTiming()}
	e := Endpoint{Address: netip.MustParseAddr("192.0.2.1"), Weight: 1, Checks: []Use{{Check: asked}, {Check: own}}}
	vantages := []Vantage{{Name: "a", Site: "x"}, {Name: "b", Site: "x"}, {Name: "c", Site: "y"}}
	for name, q := range map[string]Quorum{"majority": {}, "sites": {Of: "sites"}, "more than there are": {Need: "5"}} {
		spec := Spec{Vantages: vantages, Quorum: q, Services: []Service{{
			Name: "www.example.org.", TTL: 30, Safety: DefaultSafety(), Publish: []string{Embedded}, Endpoints: []Endpoint{e},
		}}}
		s, err := new(State).Apply(Event{Index: 1, At: now, Kind: EventSpec, Spec: &spec})
		if err != nil {
			t.Fatal(name, err)
		}
		tcp, said := e.Target(e.Checks[0]).ID, e.Target(e.Checks[1]).ID
		opinions := func(status Status) []*Opinion {
			return []*Opinion{{Target: said, Status: status}, {Target: tcp, Status: status}}
		}
		reports := []*Report{{Vantage: OwnAgent, At: now.Add(-24 * time.Hour), Opinions: opinions(Draining)}}
		for _, v := range vantages {
			reports = append(reports, &Report{Vantage: v.Name, At: now, Opinions: opinions(Down)})
		}
		got := map[TargetID]Verdict{}
		for _, v := range s.Judge([]TargetID{said, tcp}, reports, now) {
			got[v.Target] = v
		}
		if v := got[said]; v.Status != Draining || v.Need != 1 || len(v.Votes) != 1 || v.Votes[0].Vantage != OwnAgent {
			t.Errorf("%s: of what nobody asks: %+v", name, v)
		}
		want := Down
		if q.Need == "5" {
			want = Unknown
		}
		if v := got[tcp]; v.Status != want || len(v.Votes) != 0 && len(v.Votes) != 3 {
			t.Errorf("%s: of what is asked: %+v", name, v)
		}
		if _, voices := s.Ballot(said); voices != 1 {
			t.Errorf("%s: %d voices on what nobody asks", name, voices)
		}
		if votes := s.Votes(said, reports[1:], now); len(votes) != 1 || votes[0].Status != Unknown || votes[0].Reason != "nothing was said" {
			t.Errorf("%s: in silence: %+v", name, votes)
		}
	}
	if err := (Spec{Vantages: []Vantage{{Name: OwnAgent}}}).Validate(); err == nil {
		t.Error("a vantage may have the name of endpoints' own agents")
	}
}
