// Package probing measures rota's prober beside other programs that check many endpoints: HAProxy, gdnsd, blackbox_exporter and fping.
// In one run, on one machine, each of them asks the same target on loopback addresses, in a network namespace of its own: the prober is
// bound to one processor, the target to another. What counts is checks a second of processor time, so that a busy machine spoils little.
//
// The tests of package probe say that it is right; nothing here fails because it is slow. docs/performance.md has the figures.
package probing
