package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// maxLogged bounds a path in the log.
const maxLogged = 512

// finish counts a request and writes its line to the log. What the server's own pages ask for is written at level debug.
func (g *Gateway) finish(w *recorder, r *http.Request, began time.Time) {
	g.metrics.answered(w)
	level := slog.LevelInfo
	switch {
	case w.kind == kindOther || w.kind == kindPreflight || w.kind == kindHealth:
		level = slog.LevelDebug
	case !g.o.AccessLog, w.kind == kindPull: // that has an audit line of its own
		return
	}
	if !g.log.Enabled(r.Context(), level) {
		return
	}
	g.log.LogAttrs(r.Context(), level, "request", slog.String("kind", w.kind), slog.String("method", r.Method),
		slog.String("path", shown(r.URL.Path)), slog.String("stream", string(w.stream)), slog.Int("status", w.status),
		slog.Duration("took", time.Since(began)), slog.String("remote", g.client(w, r).String()))
}

// shown is a path as the log may hold it: who has a session's URL has the session, so of that only a hash is shown,
// which is enough to find what belongs together. Queries are never shown.
func shown(path string) string {
	for _, prefix := range []string{SessionPrefix, pullPrefix} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			node, own, _ := strings.Cut(rest, "/")
			sum := sha256.Sum256([]byte(own))
			return prefix + node[:min(len(node), maxLogged)] + "/#" + hex.EncodeToString(sum[:6])
		}
	}
	return path[:min(len(path), maxLogged)]
}
