package nameserver

import (
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// everyOutcome runs f once for every possible course of its draws, and passes the probability of each course.
func everyOutcome(f func(rnd draw, probability func() *big.Rat)) {
	for script := []uint64{}; ; {
		limits := []uint64{}
		f(func(n uint64) uint64 {
			i := len(limits)
			limits = append(limits, n)
			if i == len(script) {
				script = append(script, 0)
			}
			return script[i]
		}, func() *big.Rat {
			p := big.NewRat(1, 1)
			for _, n := range limits {
				p.Mul(p, big.NewRat(1, int64(n)))
			}
			return p
		})
		// Count on: the last draw that has another value takes it, those behind it begin anew.
		i := len(script) - 1
		for ; i >= 0 && script[i]+1 == limits[i]; i-- {
		}
		if i < 0 {
			return
		}
		script = append(script[:i:i], script[i]+1)
	}
}

func candidatesOf(weights ...uint64) []candidate {
	var out []candidate
	for i, w := range weights {
		out = append(out, candidate{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), w})
	}
	return out
}

// TestPickDistribution: the exact probability of each address to be in each place, by enumeration of all chance there is.
func TestPickDistribution(t *testing.T) {
	tests := []struct {
		weights []uint64
		policy  rota.Policy
		want    [][]string // by place, by candidate
	}{
		{[]uint64{1}, rota.Policy{}, [][]string{{"1"}}},
		{[]uint64{1, 1, 1}, rota.Policy{}, [][]string{{"1/3", "1/3", "1/3"}, {"1/3", "1/3", "1/3"}, {"1/3", "1/3", "1/3"}}},
		{[]uint64{1, 1, 1}, rota.Policy{Answers: 1}, [][]string{{"1/3", "1/3", "1/3"}}},
		{[]uint64{3, 1}, rota.Policy{Answers: 1}, [][]string{{"3/4", "1/4"}}},
		{[]uint64{3, 1}, rota.Policy{Answers: 1, Pick: rota.PickRotate}, [][]string{{"1/2", "1/2"}}},
		{[]uint64{2, 2}, rota.Policy{Answers: 1, Pick: rota.PickWeighted}, [][]string{{"1/2", "1/2"}}},
		{[]uint64{1, 2, 3}, rota.Policy{}, [][]string{{"1/6", "1/3", "1/2"}, {"1/4", "2/5", "7/20"}, {"7/12", "4/15", "3/20"}}},
		{[]uint64{5, 0, 0}, rota.Policy{}, [][]string{{"1", "0", "0"}, {"0", "1/2", "1/2"}, {"0", "1/2", "1/2"}}},
		{[]uint64{0, 0}, rota.Policy{Answers: 1, Pick: rota.PickWeighted}, [][]string{{"1/2", "1/2"}}},
		{[]uint64{1, 1, 1, 1}, rota.Policy{Answers: 9}, [][]string{
			{"1/4", "1/4", "1/4", "1/4"}, {"1/4", "1/4", "1/4", "1/4"}, {"1/4", "1/4", "1/4", "1/4"}, {"1/4", "1/4", "1/4", "1/4"},
		}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.weights, tt.policy), func(t *testing.T) {
			cs := candidatesOf(tt.weights...)
			sums := make([][]*big.Rat, len(tt.want))
			for i := range sums {
				for range cs {
					sums[i] = append(sums[i], new(big.Rat))
				}
			}
			everyOutcome(func(rnd draw, probability func() *big.Rat) {
				got := pick(cs, tt.policy, rnd)
				if len(got) != len(tt.want) {
					t.Fatalf("%d addresses, want %d", len(got), len(tt.want))
				}
				seen := map[netip.Addr]bool{}
				for place, a := range got {
					if seen[a] {
						t.Fatalf("%v twice in %v", a, got)
					}
					seen[a] = true
					s := sums[place][a.As4()[3]]
					s.Add(s, probability())
				}
			})
			for place, row := range tt.want {
				for i, want := range row {
					if got := sums[place][i].RatString(); got != want {
						t.Errorf("place %d holds candidate %d with %s, want %s", place, i, got, want)
					}
				}
			}
		})
	}
}

// TestPickLarge: sums of weights beyond 32 bits do not wrap.
func TestPickLarge(t *testing.T) {
	const most = math.MaxUint32 * 100
	cs := candidatesOf(most, most, 1)
	sum := uint64(0)
	got := pick(cs, rota.Policy{Answers: 1}, func(n uint64) uint64 {
		sum = n
		return n - 1
	})
	if sum != 2*most+1 || got[0] != cs[2].addr {
		t.Errorf("drew of %d and picked %v", sum, got)
	}
}

// TestServerChance: what the real source of chance gives is near to the shares; the seed is fixed.
func TestServerChance(t *testing.T) {
	cs, rnd := candidatesOf(6, 3, 1), seeded(11)
	count := [3]int{}
	const n = 30000
	for range n {
		count[pick(cs, rota.Policy{Answers: 1}, rnd)[0].As4()[3]]++
	}
	chi := 0.0
	for i, share := range []float64{0.6, 0.3, 0.1} {
		d := float64(count[i]) - share*n
		chi += d * d / (share * n)
	}
	if chi > 13.8 { // p = 0.001 with two degrees of freedom
		t.Errorf("counts %v, chi-square %.1f", count, chi)
	}
}

// TestPickShares: an endpoint that asks for a part of its weight gets just that, however small its weight is; all others being alike does
// not make the list rotate.
func TestPickShares(t *testing.T) {
	st := stateOf(t, []rota.Service{service("www.example.org", "192.0.2.0", "192.0.2.1", "192.0.2.2")})
	e := rota.Event{Index: st.Index() + 1, At: st.At(), Kind: rota.EventVerdicts}
	for _, target := range st.Targets() {
		v := rota.Verdict{Target: target.ID, Status: rota.Up}
		if target.Address.As4()[3] == 1 {
			v.Weight = 5
		}
		e.Verdicts = append(e.Verdicts, v)
	}
	st = apply(t, st, e)
	v := &st.Services()[0]
	v.Policy.Answers = 1
	got := [3]*big.Rat{new(big.Rat), new(big.Rat), new(big.Rat)}
	everyOutcome(func(rnd draw, probability func() *big.Rat) {
		first := pick(candidates(v, st.Selection(v.Name), rota.TypeA, false), v.Policy, rnd)[0]
		p := got[first.As4()[3]]
		p.Add(p, probability())
	})
	for i, want := range []string{"20/41", "1/41", "20/41"} {
		if got[i].RatString() != want {
			t.Errorf("%d is answered with %s, want %s", i, got[i].RatString(), want)
		}
	}
}
