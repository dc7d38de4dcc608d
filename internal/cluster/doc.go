// Package cluster orders events and holds the state. It is a raft whose log carries rota.Event and whose state machine is one line,
// State.Apply; alone it is a raft of one, on disk, with no port open. Readers take the state by an atomic pointer. Leadership is the
// scope of a function. Vantage reports are soft state beside the log: only the verdicts they change become events.
//
// The data directory holds the raft log, snapshots of the state, and the last applied state in one file that is served at start
// before anything else is up. An event that Append returned without an error is in the next process's state, however this one ends.
//
// See DESIGN.md beside this file for the files, the order of things and the trade-offs.
package cluster
