// Package admin is the sidecar's own HTTP side, for kubelets, Prometheus, the console and the command line: liveness,
// readiness, draining, metrics and status. It is served on a listener apart from the viewers' and the peers'; what it shows, its
// caller hands in.
package admin

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout bounds one readiness check; kubelets ask every few seconds.
const readyTimeout = 2 * time.Second

// Options are what the pages show.
type Options struct {
	// Ready says why the node cannot serve viewers now; nil: it always can.
	Ready func(ctx context.Context) error
	// Drain readies the node for its end and returns when nobody depends on it any more, or why it does not wait longer;
	// nil: there is no such page. It is called again where it is asked again, also while it runs.
	Drain func(ctx context.Context) error
	// Demand holds a stream for a hook of the media server, at /demand/{stream}, for as long as the request lasts; nil: there is
	// no such page. Who may, it decides itself.
	Demand http.Handler
	// Status yields the body of /api/status, to be written as JSON; nil: there is no such page.
	Status func() any
	// Explain yields the body of /api/explain?stream=NAME&at=CLUSTER, or what is wrong with the question; nil: there is no such page.
	Explain func(stream, cluster string) (any, error)
	// Metrics is what /metrics shows; nil: there is no such page.
	Metrics prometheus.Gatherer
	// Profile adds /debug/pprof.
	Profile bool
	Logger  *slog.Logger // nil: discard
}

// New makes the handler of /livez, /readyz, /drain, /demand, /metrics, /api/status, /api/explain and, when asked, /debug/pprof.
func New(o Options) http.Handler {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if o.Ready != nil {
			ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
			defer cancel()
			if err := o.Ready(ctx); err != nil {
				text(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
				return
			}
		}
		text(w, http.StatusOK, "ok")
	})
	if o.Drain != nil {
		// A kubelet's preStop hook can only GET.
		mux.HandleFunc("/drain", func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodPost {
				w.Header().Set("Allow", "GET, POST")
				text(w, http.StatusMethodNotAllowed, "drain by GET or POST")
				return
			}
			if err := o.Drain(r.Context()); err != nil {
				text(w, http.StatusServiceUnavailable, "not drained: "+err.Error())
				return
			}
			text(w, http.StatusOK, "drained")
		})
	}
	if o.Demand != nil {
		mux.Handle("GET /demand/{stream...}", o.Demand)
		mux.Handle("POST /demand/{stream...}", o.Demand)
	}
	if o.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
		}))
	}
	if o.Status != nil {
		mux.HandleFunc("GET /api/status", func(w http.ResponseWriter, _ *http.Request) {
			document(w, o.Status(), log)
		})
	}
	if o.Explain != nil {
		mux.HandleFunc("GET /api/explain", func(w http.ResponseWriter, r *http.Request) {
			answer, err := o.Explain(r.URL.Query().Get("stream"), r.URL.Query().Get("at"))
			if err != nil {
				text(w, http.StatusBadRequest, err.Error())
				return
			}
			document(w, answer, log)
		})
	}
	if o.Profile {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// document answers with JSON.
func document(w http.ResponseWriter, v any, log *slog.Logger) {
	body, err := json.Marshal(v)
	if err != nil { // a type that cannot be JSON: ours to mend
		log.Error("status cannot be written", "error", err)
		text(w, http.StatusInternalServerError, "status cannot be written: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(body, '\n'))
}

func text(w http.ResponseWriter, status int, words string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, words+"\n")
}
