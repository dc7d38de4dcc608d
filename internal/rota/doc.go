// Package rota decides. It holds the words of the domain (service, endpoint, check, target, observation, opinion, report,
// verdict, override, selection, RRset, change, event, state, explanation) and the one fold that matters: State.Apply takes an
// Event and returns the next State.
//
// Everything here is a pure function over values: no goroutine, no lock, no input or output, no clock, no logger and no DNS
// library. Time is an argument; it comes from the event. What the rim (probing, ordering, publishing, serving, the API) needs
// is read from an immutable State that any number of readers may hold.
//
// See DESIGN.md beside this file for the rules of selection and the trade-offs.
package rota
