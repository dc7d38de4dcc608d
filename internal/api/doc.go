// Package api shows the state over HTTP and takes what people say: reads of everything rota knows, overrides, reload, the stream
// of events, metrics and health, with an OpenAPI 3.1 document that is made from the same types.
//
// Nothing here decides. A read is computed from one immutable State when it is asked for and says how old that State is; a write
// becomes one Event and is answered when the event is ordered. Whoever may open the unix socket is trusted, as the file's
// permissions say; over TCP a bearer token decides, and what no rule allows is refused.
//
// See DESIGN.md beside this file for who may do what and why.
package api
