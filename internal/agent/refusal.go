package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// The paths that a node offers agents, and ReportPath nodes too, and the headers of a report.
const (
	TargetsPath = "/v1/targets"
	ReportPath  = "/v1/report"

	SiteHeader    = "Rota-Site"    // of the agent that reports, at most 64 printable characters
	VantageHeader = "Rota-Vantage" // nodes only: the agent in whose name the caller hands a report on
	AgeHeader     = "Rota-Age"     // nodes only: how old the report is; see FormatAge
	RefusedHeader = "Rota-Refused" // of an answer: the word of a Refusal

	ReportType = "application/octet-stream" // the media type of a packed report
)

// maxAge bounds the age of a report that is handed on. Whoever judges does not believe one that is anywhere near as old.
const maxAge = 24 * time.Hour

// FormatAge writes an age for AgeHeader: decimal seconds. A negative one is none.
func FormatAge(d time.Duration) string {
	return strconv.FormatFloat(max(d, 0).Seconds(), 'f', 3, 64)
}

// ParseAge reads an AgeHeader, 0 to 86400 seconds; an empty one is 0.
func ParseAge(s string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(cmp.Or(s, "0"), 64)
	if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > maxAge.Seconds() {
		return 0, fmt.Errorf("%s: want 0 to %d seconds", AgeHeader, maxAge/time.Second)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// The words of refusals that ask for different things of the sender although their status is the same, 409.
const (
	RefusedTable  = "table"  // fetch the targets again, and send anew at once
	RefusedReplay = "replay" // a newer one was taken; send a new one
	RefusedTwice  = "twice"  // another process reports under the same name
)

// Refusal is a request that is not served, and why. Among processes of rota it travels as an answer whose status and word say to
// machines what to do, and whose text says it to people. One with the word RefusedTable is rota.ErrTable.
type Refusal struct {
	Status int    // of HTTP
	Word   string // RefusedTable, RefusedReplay, RefusedTwice or empty
	Text   string // one line
}

func refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Text: fmt.Sprintf(format, args...)}
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%d %s: %s", r.Status, http.StatusText(r.Status), r.Text)
}

func (r *Refusal) Is(target error) bool { return target == rota.ErrTable && r.Word == RefusedTable }

// RefusalOf returns the refusal in an error; any other error is one with status 503, after which the sender tries another node.
func RefusalOf(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return refuse(http.StatusServiceUnavailable, "%s", rota.CleanReason("%v", err))
}

// Answer answers a request with the refusal. What is left of the request's body is not read: the connection ends.
func (r *Refusal) Answer(w http.ResponseWriter) {
	if r.Word != "" {
		w.Header().Set(RefusedHeader, r.Word)
	}
	w.Header().Set("Connection", "close")
	http.Error(w, r.Text, r.Status)
}

// ReadRefusal makes a refusal of an answer that is one. It reads at most 4 KiB of its body and does not close it.
func ReadRefusal(resp *http.Response) *Refusal {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return &Refusal{
		Status: resp.StatusCode, Word: rota.CleanReason("%.16s", resp.Header.Get(RefusedHeader)),
		Text: rota.CleanReason("%s", cmp.Or(strings.TrimSpace(string(text)), "no reason given")),
	}
}

// PostReport sends a packed report to a node at base, such as https://10.0.0.1:3648, with headers besides its type. An answer other
// than 200 and 204 is a *Refusal.
func PostReport(ctx context.Context, c *http.Client, base string, h http.Header, packed []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+ReportPath, bytes.NewReader(packed))
	if err != nil {
		return err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", ReportType)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	return ReadRefusal(resp)
}

// Bounds of what is said of refusals: an agent must not be able to fill the disk.
const (
	saidEvery = 10 * time.Second // of one agent
	saidMost  = 1024             // agents
)

// saying logs the refusals of requests, for each agent a line now and then.
type saying struct {
	log *slog.Logger

	mu sync.Mutex // guards what follows
	of map[string]*lastSaid
}

// lastSaid is what was said of one agent's refusals.
type lastSaid struct {
	at   time.Time
	more int // refusals since
}

func (s *saying) refused(what, agent, from string, bad *Refusal) {
	s.mu.Lock()
	now := time.Now()
	a := s.of[agent]
	if a == nil {
		if len(s.of) >= saidMost {
			s.of = nil
		}
		if s.of == nil {
			s.of = map[string]*lastSaid{}
		}
		a = &lastSaid{}
		s.of[agent] = a
	}
	if !a.at.IsZero() && now.Sub(a.at) < saidEvery {
		a.more++
		s.mu.Unlock()
		return
	}
	more := a.more
	*a = lastSaid{at: now}
	s.mu.Unlock()
	args := []any{"agent", rota.CleanReason("%s", agent), "from", from, "status", bad.Status, "why", bad.Text}
	if more > 0 {
		args = append(args, "more_like_it", more)
	}
	s.log.Info(what, args...)
}
