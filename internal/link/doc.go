// Package link is how rota's processes meet: one TCP port, TLS 1.3 with certificates on both sides, and the protocol chosen by ALPN.
// It knows who is at the other end, and refuses everyone else; what is said over a connection is the business of others.
//
// A certificate carries an Identity as the URI rota://CLUSTER/node/ID or rota://CLUSTER/agent/NAME. CA is the small authority that
// makes them, Credentials keeps a process's own up to date, Tokens let a newcomer prove itself once, Port listens and Dialer calls.
//
// See DESIGN.md beside this file for what is checked where, and the trade-offs.
package link
