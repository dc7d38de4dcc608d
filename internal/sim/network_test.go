package sim

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestNetwork: what each fault does to a call.
func TestNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(n *Network)
		done  bool // the request arrives
		heard bool // and so does the answer
		least time.Duration
		most  time.Duration
	}{
		"none":                     {func(*Network) {}, true, true, 0, 2 * goodDelay},
		"cut there":                {func(n *Network) { n.Cut("a", "b") }, false, false, time.Second, time.Second + goodDelay},
		"cut back":                 {func(n *Network) { n.Cut("b", "a") }, true, false, time.Second, time.Second + goodDelay},
		"cut elsewhere":            {func(n *Network) { n.Split([]string{"a", "b"}, []string{"c"}) }, true, true, 0, 2 * goodDelay},
		"mended":                   {func(n *Network) { n.Cut("a", "b"); n.Mend("a", "b") }, true, true, 0, 2 * goodDelay},
		"healed":                   {func(n *Network) { n.Split([]string{"a"}, []string{"b"}); n.Pause("a", time.Hour); n.Heal() }, true, true, 0, 2 * goodDelay},
		"all is lost":              {func(n *Network) { n.Weather(0, 1) }, false, false, time.Second, time.Second + goodDelay},
		"a slow network":           {func(n *Network) { n.Weather(400*time.Millisecond, 0) }, true, true, 0, 810 * time.Millisecond},
		"the caller stands still":  {func(n *Network) { n.Pause("a", 10*time.Second) }, true, true, 10 * time.Second, 10*time.Second + 2*goodDelay},
		"the other does":           {func(n *Network) { n.Pause("b", 10*time.Second) }, false, false, time.Second, time.Second + goodDelay},
		"the other does, not long": {func(n *Network) { n.Pause("b", 500*time.Millisecond) }, true, true, 500 * time.Millisecond, 500*time.Millisecond + 2*goodDelay},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := NewNetwork(1)
				c.fault(n)
				begun, done := time.Now(), false
				err := n.Call(t.Context(), "a", "b", func(context.Context) error {
					done = true
					return nil
				})
				if took := time.Since(begun); took < c.least || took > c.most {
					t.Errorf("took %v, want %v to %v", took, c.least, c.most)
				}
				if done != c.done || (err == nil) != c.heard || err != nil && !errors.Is(err, errSilence) {
					t.Errorf("done %v, want %v; heard %v, want %v", done, c.done, err, c.heard)
				}
			})
		})
	}
}
