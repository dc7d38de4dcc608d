// Package nameserver answers DNS queries with authority (RFC 1034, RFC 1035) for the zones rota serves itself. The addresses of a
// service come from the rota.State of the moment, everything else from the zones' static records.
//
// The heart is lookup, a pure function over a catalog (the compiled zones and an index of the services), a State and the question;
// chance is an argument. Around it stand a strict reader of packets and a writer of answers (message.go), and the sockets (udp.go,
// tcp.go). A change of verdict costs nothing here: the next query loads the next State.
//
// See DESIGN.md beside this file for the rules and the trade-offs.
package nameserver
