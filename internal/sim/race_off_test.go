//go:build !race

package sim

// shuffled: without the race detector goroutines take turns in the order in which they became ready.
const shuffled = false
