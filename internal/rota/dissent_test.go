package rota

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// votingState is a state of n endpoints and five vantages, and a report of each in which all is up.
func votingState(tb testing.TB, n int) (*State, []*Report) {
	tb.Helper()
	s, _ := grownState(tb, n)
	spec := s.Spec()
	spec.Vantages = nil
	var reports []*Report
	for i := range 5 {
		name := fmt.Sprintf("v%d", i)
		spec.Vantages = append(spec.Vantages, Vantage{Name: name, Site: name})
	}
	s, err := s.Apply(Event{Index: s.Index() + 1, At: epoch.Add(time.Hour), Kind: EventSpec, Spec: &spec})
	if err != nil {
		tb.Fatal(err)
	}
	for _, v := range spec.Vantages {
		r := upReport(s.Table())
		r.Vantage = v.Name
		got, err := new(Unpacker).Unpack(s.Table(), s.Table().Pack(r), epoch)
		if err != nil {
			tb.Fatal(err)
		}
		reports = append(reports, got)
	}
	return s, reports
}

// TestJudgeAndDissentCountAsVotesDo compares the fast walk over all targets with one target at a time, counted plainly.
func TestJudgeAndDissentCountAsVotesDo(t *testing.T) {
	s, reports := votingState(t, 100)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		for _, r := range reports {
			r.Abstain, r.At = "", epoch
			switch rng.IntN(12) {
			case 0:
				r.Abstain = "uplink"
			case 1:
				r.At = epoch.Add(-time.Hour)
			}
			r.Opinions = nil
			for _, id := range s.Table().Targets() {
				if rng.IntN(10) > 0 {
					r.Opinions = append(r.Opinions, &Opinion{Target: id, Status: Status(rng.IntN(4))})
				}
			}
		}
		heard := reports[rng.IntN(2):]
		ids := slices.Clone(s.Table().Targets())
		if rng.IntN(2) == 0 {
			rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		}
		changed := map[TargetID]Verdict{}
		for _, v := range s.Judge(ids, heard, epoch) {
			changed[v.Target] = v
		}
		split, claims, against := 0, map[string]int{}, map[string]int{}
		for _, id := range ids {
			votes := s.Votes(id, heard, epoch)
			up, down, draining := 0, 0, 0
			for _, v := range votes {
				switch v.Status {
				case Up:
					up++
				case Down:
					down++
				case Draining:
					down++
					draining++
				}
			}
			want := s.Verdict(id).Status
			if up >= 3 {
				want = Up
			}
			if down >= 3 {
				want = Down
			}
			if draining >= 3 {
				want = Draining
			}
			v, moved := changed[id]
			if moved != (want != s.Verdict(id).Status) || moved && (v.Status != want || !slices.Equal(v.Votes, votes)) {
				t.Fatalf("%d up, %d down, was %v: judged %+v", up, down, s.Verdict(id).Status, v)
			}
			if up > 0 && down > 0 {
				split++
			}
			for _, v := range votes {
				if v.Status != Unknown && up+down > 1 {
					claims[v.Vantage]++
					if v.Status == Up && 2*down > up+down-1 || v.Status != Up && 2*up > up+down-1 {
						against[v.Vantage]++
					}
				}
			}
		}
		d := s.Dissent(heard, epoch)
		if len(d.Vantages) != 5 || len(d.Services) != 10 {
			t.Fatalf("%+v", d)
		}
		for _, x := range d.Services {
			split -= x.Split
			if x.Targets != 10 || x.Share() != float64(x.Split)/10 {
				t.Fatalf("%+v", x)
			}
		}
		for _, x := range d.Vantages {
			if x.Claims != claims[x.Vantage] || x.Against != against[x.Vantage] || (x.Why != "") && x.Claims > 0 {
				t.Fatalf("%+v, want %d of %d", x, against[x.Vantage], claims[x.Vantage])
			}
		}
		if split != 0 {
			t.Fatalf("off by %d targets", split)
		}
	}
}

// TestTableOfState: the table follows the targets, and stays the very same while they do.
func TestTableOfState(t *testing.T) {
	s, _ := votingState(t, 20)
	spec := s.Spec()
	spec.Quorum.Need = "all"
	next, err := s.Apply(Event{Index: 9, At: epoch, Kind: EventSpec, Spec: &spec})
	if err != nil || next.Table() != s.Table() {
		t.Errorf("%v: another table of the same targets", err)
	}
	spec.Services = spec.Services[1:]
	next, err = s.Apply(Event{Index: 9, At: epoch, Kind: EventSpec, Spec: &spec})
	if err != nil || next.Table().Fingerprint() == s.Table().Fingerprint() || len(next.Table().Targets()) != 10 {
		t.Errorf("%v: the same table of other targets", err)
	}
	back, err := Restore(s.Snapshot())
	if err != nil || back.Table().Fingerprint() != s.Table().Fingerprint() {
		t.Errorf("%v: another table after a restart", err)
	}
	if n := len((&State{}).Table().Targets()); n != 0 {
		t.Errorf("%d targets of nothing", n)
	}
}
