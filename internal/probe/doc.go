// Package probe turns targets into observations and observations into the report of one vantage.
//
// A Prober owns a schedule: one goroutine, a heap of due times, and as many probes in flight as Options.Concurrency allows; a
// target that waits costs no goroutine, no timer and, unless its check keeps a connection, no socket. On Linux most probes in flight
// share the goroutine of an event loop. One probe is a function of its kind (see the table kinds) that reaches the literal address of
// its target and nothing else, or runs a command that is told the address, within one total deadline and with bounded memory, whatever
// the other side sends. Its outcome is an observation: up, down, draining, or, when the failure was the prober's own, unknown.
// rota.Streak makes opinions of observations; the report holds all of them.
//
// See DESIGN.md beside this file for the decisions and their trade-offs.
package probe
