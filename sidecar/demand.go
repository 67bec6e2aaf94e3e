package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

const (
	// maxHooks bounds the hooks that hold a stream at once.
	maxHooks = 1000
	// hookRetry is how often a stream that nobody publishes yet is asked for again, and hookRenew one that is here: what held it
	// here may have ended.
	hookRetry = 250 * time.Millisecond
	hookRenew = 2 * time.Second
)

// acquirer brings a stream here and keeps it until release is called: the relays.
type acquirer interface {
	Acquire(ctx context.Context, id adapters.StreamID) (release func(), err error)
}

// hooks lets a media server's own hook for "somebody wants this path" hold demand for a stream where no gateway stands in front:
// for as long as the request lasts. It answers the pod itself only, since whoever may ask can have any stream fetched.
type hooks struct {
	relays acquirer
	pod    netip.Addr // whose requests are answered beside loopback's; the zero value is nobody's
	logger *slog.Logger
	count  atomic.Int64
}

func (h *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := adapters.StreamID(r.PathValue("stream"))
	switch err := id.Validate(); {
	case !h.trusts(r.RemoteAddr):
		adapters.WriteProblem(w, http.StatusForbidden, "Not from here", "Demand is held for the pod itself only: ask at 127.0.0.1, or "+
			"from the address in SIDESTREAM_POD_IP.")
		return
	case err != nil:
		adapters.WriteProblem(w, http.StatusBadRequest, "Not a stream name", "Ask for /demand/{stream}: "+err.Error()+".")
		return
	}
	defer h.count.Add(-1)
	if h.count.Add(1) > maxHooks {
		w.Header().Set("Retry-After", "1")
		adapters.WriteProblem(w, http.StatusServiceUnavailable, "Too many hooks", fmt.Sprintf("%d streams are held by hooks; end some.", maxHooks))
		return
	}
	h.logger.Info("hook holds a stream", "stream", id)
	err := h.hold(r.Context(), w, id)
	h.logger.Info("hook lets a stream go", "stream", id, "why", err)
}

// trusts says whether a request comes from this pod.
func (h *hooks) trusts(from string) bool {
	at, err := netip.ParseAddrPort(from)
	address := at.Addr().Unmap()
	return err == nil && (address.IsLoopback() || h.pod.IsValid() && address == h.pod.Unmap())
}

// hold keeps a stream wanted until the caller goes away. It tells by a line each how that stands, so that a person who tries it
// sees something.
func (h *hooks) hold(ctx context.Context, w http.ResponseWriter, id adapters.StreamID) error {
	last := ""
	tell := func(line string) {
		if line == last {
			return
		}
		last = line
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, line+"\n")
		_ = http.NewResponseController(w).Flush()
	}
	release := func() {}
	defer func() { release() }()
	for {
		again, err := h.relays.Acquire(ctx, id)
		wait := hookRenew
		switch codec, unfit := errors.AsType[*adapters.CodecError](err); {
		case err == nil:
			release()
			release = again
			tell("live")
		case ctx.Err() != nil:
			return ctx.Err()
		case unfit && last == "":
			adapters.WriteProblem(w, http.StatusUnsupportedMediaType, "Stream cannot be played here", codec.Error()+".")
			return err
		case unfit, errors.Is(err, relay.ErrEnded):
			tell(err.Error())
			return err
		default:
			wait = hookRetry
			tell("waiting: " + err.Error())
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
