package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Timing of an event stream.
const (
	beat       = 15 * time.Second // a comment when nothing happens, so that a dead line is noticed
	beatWrite  = 10 * time.Second // what a reader may take to accept one event
	streamsTry = 5                // seconds a client waits before it connects again
)

type eventsInput struct {
	After       uint64 `query:"after" doc:"Only what happened after the event with this index."`
	Limit       int    `query:"limit" minimum:"1" maximum:"10000" default:"200" doc:"At most this many, the newest."`
	LastEventID string `header:"Last-Event-ID" maxLength:"20" doc:"Go on after this event."`
	Accept      string `header:"Accept" doc:"text/event-stream follows; anything else lists."`
}

func (s *Server) registerEvents(a huma.API) {
	op := s.operation(route{
		method: http.MethodGet, path: "/api/v1/events", id: "list-events", access: AccessRead,
		summary: "Events and what came of them: a list, or a stream that goes on", errors: []int{503},
	})
	op.Description += " As text/event-stream each event has the event's index as its id; a stream resumes by Last-Event-ID or after, else it begins with the newest `limit` events. " +
		"History is bounded: a client that was away for long should read the state again."
	schemas := a.OpenAPI().Components.Schemas
	op.Responses = map[string]*huma.Response{"200": {
		Description: "OK",
		Content: map[string]*huma.MediaType{
			"application/json":  {Schema: schemas.Schema(typeOf[List[Record]](), true, "")},
			"text/event-stream": {Schema: schemas.Schema(typeOf[Record](), true, "")},
		},
	}}
	huma.Register(a, op, s.events)
}

func (s *Server) events(_ context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	if !strings.Contains(in.Accept, "text/event-stream") {
		v := s.view()
		records := s.o.Records(in.After, in.Limit)
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/json")
			_ = json.NewEncoder(c.BodyWriter()).Encode(list(v, records))
		}}, nil
	}
	after, resume := in.After, in.After > 0
	if in.LastEventID != "" {
		id, err := strconv.ParseUint(in.LastEventID, 10, 64)
		if err != nil {
			return nil, problem(http.StatusUnprocessableEntity, "Last-Event-ID %q: want the index of an event", in.LastEventID)
		}
		after, resume = id, true
	}
	select {
	case s.streams <- struct{}{}:
	default:
		return nil, problem(http.StatusServiceUnavailable, "%d event streams are open, which is all there may be", maxStreams)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		defer func() { <-s.streams }()
		r, w := humago.Unwrap(c)
		s.stream(r.Context(), w, after, resume, in.Limit)
	}}, nil
}

// stream writes events until the reader leaves or the server stops. It holds nothing for a slow reader: what is to be written is
// looked up when the last write is done.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, after uint64, resume bool, limit int) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	write := func(text string) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(beatWrite))
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	if !write(fmt.Sprintf("retry: %d\n\n", streamsTry*1000)) {
		return
	}
	pulse := time.NewTicker(beat)
	defer pulse.Stop()
	for first := true; ; first = false {
		changed := s.o.Source.Changed() // before reading, so that no event falls between
		n := 0
		if first && !resume {
			n = limit
		}
		for _, r := range s.o.Records(after, n) {
			data, err := json.Marshal(r)
			if err != nil {
				s.log.Error("event cannot be written as JSON", "index", r.Event.Index, "err", err)
				continue
			}
			if !write(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", r.Event.Index, r.Event.Kind, data)) {
				return
			}
			after = r.Event.Index
		}
		select {
		case <-changed:
		case <-pulse.C:
			if !write(": \n\n") {
				return
			}
		case <-ctx.Done():
			return
		case <-s.closing:
			return
		}
	}
}
