package media

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// loggerFactory hands pion's messages to slog. What pion calls an error is, for us, the end of one connection, which is
// reported where that is handled; so nothing of it goes above debug.
type loggerFactory struct{ logger *slog.Logger }

func (f loggerFactory) NewLogger(scope string) logging.LeveledLogger {
	if f.logger == nil {
		return leveled{slog.New(slog.DiscardHandler)}
	}
	return leveled{f.logger.With("pion", scope)}
}

type leveled struct{ logger *slog.Logger }

// levelTrace is below what anybody switches on by accident: pion traces packets.
const levelTrace = slog.LevelDebug - 4

func (l leveled) log(level slog.Level, format string, args []any) {
	if l.logger.Enabled(context.Background(), level) {
		l.logger.Log(context.Background(), level, "pion", "message", fmt.Sprintf(format, args...))
	}
}

func (l leveled) Trace(msg string)                  { l.log(levelTrace, "%s", []any{msg}) }
func (l leveled) Tracef(format string, args ...any) { l.log(levelTrace, format, args) }
func (l leveled) Debug(msg string)                  { l.log(levelTrace, "%s", []any{msg}) }
func (l leveled) Debugf(format string, args ...any) { l.log(levelTrace, format, args) }
func (l leveled) Info(msg string)                   { l.log(slog.LevelDebug, "%s", []any{msg}) }
func (l leveled) Infof(format string, args ...any)  { l.log(slog.LevelDebug, format, args) }
func (l leveled) Warn(msg string)                   { l.log(slog.LevelDebug, "%s", []any{msg}) }
func (l leveled) Warnf(format string, args ...any)  { l.log(slog.LevelDebug, format, args) }
func (l leveled) Error(msg string)                  { l.log(slog.LevelDebug, "%s", []any{msg}) }
func (l leveled) Errorf(format string, args ...any) { l.log(slog.LevelDebug, format, args) }
