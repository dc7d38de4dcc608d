package cluster

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// raftLog takes what raft says to slog. What raft calls information or a warning is its daily business (an election at every start
// warns), so both are one level lower here; errors stay errors.
type raftLog struct {
	log  *slog.Logger
	name string
	args []any
	said *said
}

// said keeps what raft repeats from filling the log: a node that is gone would be mentioned twice a second for as long as it is.
type said struct {
	mu   sync.Mutex // guards what follows
	last map[string]*saying
}

// saying is one message of raft about one node.
type saying struct {
	at      time.Time
	dropped int
}

// Bounds of repetition.
const (
	sayAgain   = time.Minute
	maxSayings = 256
)

func newRaftLog(l *slog.Logger) *raftLog {
	return &raftLog{log: l, said: &said{last: map[string]*saying{}}}
}

// again reports whether a message has been logged lately, and if not, how often it came since.
func (s *said) again(key string, now time.Time) (lately bool, dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxSayings {
		clear(s.last)
	}
	x := s.last[key]
	if x == nil {
		s.last[key] = &saying{at: now}
		return false, 0
	}
	if now.Sub(x.at) < sayAgain {
		x.dropped++
		return true, 0
	}
	dropped = x.dropped
	x.at, x.dropped = now, 0
	return false, dropped
}

var _ hclog.Logger = (*raftLog)(nil)

func (l *raftLog) level(h hclog.Level) slog.Level {
	switch {
	case h >= hclog.Error:
		return slog.LevelError
	case h == hclog.Warn:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (l *raftLog) Log(h hclog.Level, msg string, args ...any) {
	level := l.level(h)
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	key := msg
	clean := make([]any, len(args), len(args)+2)
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		if server, ok := a.(raft.Server); ok {
			a = fmt.Sprintf("%s at %s", server.ID, server.Address)
			key += string(server.ID)
		}
		if s, ok := a.(fmt.Stringer); ok {
			a = s.String() // now: raft goes on changing what it points to
		}
		clean[i] = a
	}
	lately, dropped := l.said.again(key, time.Now())
	if lately {
		return
	}
	if dropped > 0 {
		clean = append(clean, "repeated", dropped)
	}
	l.log.Log(context.Background(), level, msg, clean...)
}

func (l *raftLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLog) enabled(h hclog.Level) bool {
	return l.log.Enabled(context.Background(), l.level(h))
}

func (l *raftLog) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *raftLog) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *raftLog) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *raftLog) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *raftLog) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLog) ImpliedArgs() []any { return l.args }

func (l *raftLog) With(args ...any) hclog.Logger {
	return &raftLog{l.log.With(args...), l.name, append(l.args[:len(l.args):len(l.args)], args...), l.said}
}

func (l *raftLog) Name() string { return l.name }
func (l *raftLog) Named(name string) hclog.Logger {
	return &raftLog{l.log, l.name + name, l.args, l.said}
}

func (l *raftLog) ResetNamed(name string) hclog.Logger { return &raftLog{l.log, name, l.args, l.said} }
func (l *raftLog) SetLevel(hclog.Level)                {} // slog's handler decides
func (l *raftLog) GetLevel() hclog.Level               { return hclog.Trace }

func (l *raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}

func (l *raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
