package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
)

// Limits of a request.
const (
	maxBody   = 1 << 20  // bytes
	maxHeader = 32 << 10 // bytes, all fields together
	maxQuery  = 4 << 10  // bytes
)

// Handler returns the whole API with its guard. Requests count as TCP unless their connection's context was kept by Run.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// serve puts every request through the same gate, in one order: recover, harden, bound, host, route, caller, origin, handler.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	defer s.recover(w, r)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if len(r.URL.RawQuery) > maxQuery {
		refuse(w, r, &refusal{http.StatusRequestURITooLong, "the query is too long"})
		return
	}
	sent := r.Body
	r.Body = http.MaxBytesReader(w, sent, maxBody)
	if bad := s.guard.host(r); bad != nil {
		refuse(w, r, bad)
		return
	}
	_, pattern := s.mux.Handler(r)
	if pattern == "" {
		refuse(w, r, s.unrouted(w, r))
		return
	}
	c, bad := s.guard.admit(r, s.access[pattern])
	if bad == nil {
		bad = s.guard.origin(r, s.uploads[pattern])
	}
	if bad != nil {
		if bad.status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", `Bearer realm="rota"`)
		}
		s.log.Info("request refused", "method", r.Method, "route", pattern, "status", bad.status)
		refuse(w, r, bad)
		return
	}
	if s.uploads[pattern] {
		r.Body = http.MaxBytesReader(w, sent, maxSnapshot)
	}
	if s.o.Cluster != nil && s.access[pattern] > AccessPublic {
		if since := s.o.Cluster().Since; !since.IsZero() {
			h.Set("Rota-State-Since", since.UTC().Format(http.TimeFormat))
		}
	}
	if state := s.o.Source.State(); state != nil {
		h.Set("Rota-State-Index", strconv.FormatUint(state.Index(), 10))
		if !state.At().IsZero() {
			h.Set("Rota-State-Time", state.At().UTC().Format(http.TimeFormat))
		}
	}
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
}

// unrouted says what is wrong with a request that no route takes: no such path, or not this method. The mux knows which, but says
// it as plain text.
func (s *Server) unrouted(w http.ResponseWriter, r *http.Request) *refusal {
	rec := &statusOnly{header: http.Header{}}
	s.mux.ServeHTTP(rec, r)
	if rec.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", rec.header.Get("Allow"))
		return &refusal{rec.status, "this path knows the methods " + rec.header.Get("Allow")}
	}
	return &refusal{http.StatusNotFound, "no such path; /openapi.json lists them"}
}

// statusOnly keeps a response's status and header and drops its body.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// recover ends the one request that panicked.
func (s *Server) recover(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	s.panics.Add(1)
	s.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	refuse(w, r, &refusal{http.StatusInternalServerError, "rota failed at this request; its log says where"})
}

// refuse answers with a problem (RFC 9457).
func refuse(w http.ResponseWriter, r *http.Request, bad *refusal) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(bad.status)
	if r.Method == http.MethodHead {
		return
	}
	_ = json.NewEncoder(w).Encode(&huma.ErrorModel{Status: bad.status, Title: http.StatusText(bad.status), Detail: bad.detail})
}
