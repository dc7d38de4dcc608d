//go:build race

package sim

// shuffled: under the race detector the scheduler shuffles goroutines on purpose, so that no two nights are alike.
const shuffled = true
