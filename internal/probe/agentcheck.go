package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// maxAgentLine bounds an agent's line, in bytes with its end. HAProxy's buffer is as large.
const maxAgentLine = 16 << 10

// agentState is what an agent has said so far. As with HAProxy, what a line does not mention stays as it was said before: only the agent
// takes back what it said.
type agentState struct {
	health string // up, down, fail or stopped; empty: never said
	admin  string // ready, drain or maint; empty: never said
	weight string // digits and a percent sign; empty: never said
	why    string // description that came with health
	leaves string // description that came with drain or maint
}

// probeAgentCheck asks an agent of HAProxy's agent-check for its line. An agent that is not there or cannot be understood says nothing
// about its endpoint, so it is down only where the check says so.
func probeAgentCheck(ctx context.Context, r *run) finding {
	line, bad := r.agentLine(ctx)
	var said agentState
	if r.memory != nil {
		said, _ = r.memory.sample.(agentState)
	}
	if bad == nil && !said.take(line) {
		f := down(rota.ClassProtocol, "agent: no known word in %q; want up, down, fail, stopped, maint, drain, ready or a weight such as 75%%", escape([]byte(line), 60))
		bad = &f
	}
	if bad != nil {
		return r.unclear(*bad)
	}
	if r.memory != nil {
		r.memory.sample = said
	}
	return said.judge()
}

// agentLine returns what an agent says before the first CR or LF. What has no such end may be cut off, and is not taken.
func (r *run) agentLine(ctx context.Context) (string, *finding) {
	fail := func(f finding) (string, *finding) { return "", &f }
	c, stop, err := r.dial(ctx)
	if err != nil {
		return fail(r.fault(ctx, "connect", err))
	}
	defer stop()
	if s := r.q.check.Send; s != "" {
		done := r.trace.begin("send")
		r.trace.Sent = escape([]byte(s), maxHead)
		if _, err := io.WriteString(c, s); err != nil {
			done("failed")
			return fail(r.fault(ctx, "send", err))
		}
		done("")
	}
	done := r.trace.begin("answer")
	buf := make([]byte, 0, 512)
	end := -1
	for end < 0 && err == nil && len(buf) < maxAgentLine {
		buf = slices.Grow(buf, 1)
		seen, n := len(buf), 0
		n, err = c.Read(buf[seen:min(cap(buf), maxAgentLine)])
		buf = buf[:seen+n]
		if i := bytes.IndexAny(buf[seen:], "\r\n\x00"); i >= 0 {
			end = seen + i
		}
	}
	r.trace.Received, r.trace.ReceivedSize = escape(buf, maxHead), len(buf)
	done(fmt.Sprintf("%d bytes", len(buf)))
	switch {
	case end >= 0 && buf[end] == 0:
		return fail(down(rota.ClassProtocol, "agent: its line has a NUL byte"))
	case end >= 0:
		return string(buf[:end]), nil
	case err == nil:
		return fail(down(rota.ClassProtocol, "agent: no end of line in its first %d bytes", maxAgentLine))
	case errors.Is(err, io.EOF) && len(buf) > 0:
		return fail(down(rota.ClassProtocol, "agent: it closed before the end of its line (CR or LF)"))
	}
	return fail(r.fault(ctx, "answer", err))
}

// take adds a line: words in any case, between spaces, tabs and commas; of words of one sort the last counts; what follows # is a
// description. It reports whether there was a known word.
func (s *agentState) take(line string) bool {
	var health, admin, weight string
	known := false
	for {
		line = strings.TrimLeft(line, " \t,")
		if line == "" || line[0] == '#' {
			break
		}
		word := line
		if i := strings.IndexAny(line, " \t,"); i >= 0 {
			word = line[:i]
		}
		line = line[len(word):]
		switch word = strings.ToLower(word); word {
		case "up", "down", "fail", "stopped":
			health = word
		case "ready", "drain", "maint":
			admin = word
		default:
			switch {
			case '0' <= word[0] && word[0] <= '9' && strings.Contains(word, "%"):
				weight = word
			case strings.HasPrefix(word, "maxconn:"):
				known = true // of no meaning for an answer of the DNS
			}
		}
	}
	if digits, ok := strings.CutSuffix(weight, "%"); ok && strings.Trim(digits, "0123456789") == "" {
		s.weight, known = weight, true
	}
	why := strings.TrimLeft(line, "# \t")
	if admin != "" {
		s.admin, s.leaves, known = admin, "", true
		if admin != "ready" {
			s.leaves, why = why, ""
		}
	}
	if health != "" {
		s.health, s.why, known = health, why, true
	}
	return known
}

// judge says what the words mean for an answer: maint, down, fail and stopped take an endpoint out at once, drain and 0% as gently as
// an operator does.
func (s agentState) judge() finding {
	var words []string
	for _, w := range []string{s.health, s.admin, s.weight} {
		if w != "" {
			words = append(words, w)
		}
	}
	text := "agent says " + strings.Join(words, " ")
	if len(words) == 0 {
		text = "agent answers"
	}
	if why := strings.Trim(s.why+"; "+s.leaves, "; "); why != "" {
		text += ": " + why
	}
	weight, err := strconv.ParseUint(strings.TrimSuffix(s.weight, "%"), 10, 64)
	switch {
	case s.admin == "maint", s.health != "" && s.health != "up":
		f := down(rota.ClassSaid, "%s", text)
		f.sure = true
		return f
	case s.admin == "drain", s.weight != "" && err == nil && weight == 0:
		return draining("%s", text)
	}
	f := up("%s", text)
	if s.weight != "" {
		f.weight = 100 // more than a hundred, or than a number holds, is all
		if err == nil {
			f.weight = uint8(min(weight, 100))
		}
	}
	return f
}
