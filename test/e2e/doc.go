// Package e2e runs the real command against real servers: BIND, nginx, and clients that ask all the time. Its tests tell the main
// job from outside, as an operator would see it.
//
// A cluster lives in a world: a network namespace for each node, each name server and each endpoint, and a router between them, on which
// the faults are (nftables; /dev/net/tun for ways that are slow). Namespaces have no names, so nothing is left of a world when the
// test's process ends. That needs root. At every name server stands a watcher, for whom every answer must be right at any time.
//
// The command is built with the race detector for these tests. The environment variable ROTA_E2E_BINARY names another one to be tested
// instead, such as the one that a package holds.
package e2e
