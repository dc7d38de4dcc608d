package cluster

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLog takes what raft says to slog. What raft calls information or a warning is its daily business (an election at every start
// warns), so both are one level lower here; errors stay errors.
type raftLog struct {
	log  *slog.Logger
	name string
	args []any
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
	clean := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		if s, ok := a.(fmt.Stringer); ok {
			a = s.String() // now: raft goes on changing what it points to
		}
		clean[i] = a
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
	return &raftLog{l.log.With(args...), l.name, append(l.args[:len(l.args):len(l.args)], args...)}
}

func (l *raftLog) Name() string                        { return l.name }
func (l *raftLog) Named(name string) hclog.Logger      { return &raftLog{l.log, l.name + name, l.args} }
func (l *raftLog) ResetNamed(name string) hclog.Logger { return &raftLog{l.log, name, l.args} }
func (l *raftLog) SetLevel(hclog.Level)                {} // slog's handler decides
func (l *raftLog) GetLevel() hclog.Level               { return hclog.Trace }

func (l *raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}

func (l *raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
