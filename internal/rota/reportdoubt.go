package rota

import (
	"net/netip"
	"slices"
	"time"
)

// Sight is what a vantage last saw of one target, with its own eyes.
type Sight struct {
	Address netip.Addr
	Up      time.Time // of the last success; zero: none yet
	Down    time.Time // of the first failure after it; zero: none
	Shared  bool      // the verdict on the target is down as well: others see what this vantage sees
}

// When a vantage doubts itself. Addresses are counted, not targets: many checks of one machine fall with it.
const (
	DoubtShare = 0.8             // of the addresses it looked at since one of them fell, this share fell and did not return
	DoubtLeast = 10              // at least so many fell, and at least a tenth of all; fewer are what machines and sites do, and panic is there for them
	DoubtHold  = 5 * time.Minute // it believes what it saw fall longer ago than this
)

// Doubtful is why a vantage that doubts itself abstains. It never varies, so that a report does not change while nothing happens.
const Doubtful = "most of what it watches fell at once, so the fault may be its own"

// SelfDoubt decides whether a vantage can trust its eyes: it returns Doubtful when most of what it watches fell at once while nobody
// else says so, else nothing. It looks at single probes and not at opinions, so that it knows before the first opinion turns: of what was
// probed since the fault began, nearly all failed, long before everything was probed. When that was chance, the next round shows it;
// so doubt without cause ends within two intervals.
//
// It is for a vantage among others: alone there is nobody to leave the word to, and panic is what keeps the answers. When all vantages
// doubt themselves at once, nothing is decided until they see again, or until DoubtHold passed.
func SelfDoubt(sights []Sight, now time.Time) string {
	since := now.Add(-DoubtHold)
	fell := func(s *Sight) bool { return !s.Shared && !s.Up.IsZero() && s.Down.After(since) }
	n := 0
	for i := range sights {
		if fell(&sights[i]) {
			n++
		}
	}
	if n < DoubtLeast {
		return ""
	}
	// An address was last seen up at the latest success of its targets, and fell with the first failure after that.
	type life struct{ up, down time.Time }
	lives := make(map[netip.Addr]life, len(sights))
	for i := range sights {
		if s := &sights[i]; !s.Shared && !s.Up.IsZero() {
			l := lives[s.Address]
			if s.Up.After(l.up) {
				l.up = s.Up
			}
			lives[s.Address] = l
		}
	}
	for i := range sights {
		if s := &sights[i]; fell(s) {
			l := lives[s.Address]
			if s.Down.After(l.up) && (l.down.IsZero() || s.Down.Before(l.down)) {
				l.down = s.Down
				lives[s.Address] = l
			}
		}
	}
	var ups, downs []time.Time
	for _, l := range lives {
		switch {
		case !l.down.IsZero():
			downs = append(downs, l.down)
		case l.up.After(since):
			ups = append(ups, l.up)
		}
	}
	slices.SortFunc(ups, time.Time.Compare)
	slices.SortFunc(downs, time.Time.Compare)
	least := max(DoubtLeast, (len(ups)+len(downs)+9)/10)
	for i, began := range downs {
		fallen := len(downs) - i
		if fallen < least {
			break
		}
		for len(ups) > 0 && ups[0].Before(began) {
			ups = ups[1:]
		}
		if float64(fallen) >= DoubtShare*float64(fallen+len(ups)) {
			return Doubtful
		}
	}
	return ""
}
