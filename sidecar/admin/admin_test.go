package admin

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPages(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "sidestream_test", Help: "A gauge."}))
	full := Options{
		Ready:   func(context.Context) error { return nil },
		Status:  func() any { return map[string]int{"streams": 2} },
		Metrics: registry,
		Profile: true,
		Drain:   func(context.Context) error { return nil },
		Demand: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "holds "+r.PathValue("stream"))
		}),
	}
	broken := Options{
		Ready:  func(context.Context) error { return errors.New("media server does not answer") },
		Drain:  func(context.Context) error { return errors.New("2 nodes still pull from here") },
		Status: func() any { return math.NaN() },
	}
	for name, tt := range map[string]struct {
		o            Options
		method, path string
		status       int
		body         string
	}{
		"live":              {broken, "GET", "/livez", 200, "ok"},
		"ready":             {full, "GET", "/readyz", 200, "ok"},
		"ready by nobody":   {Options{}, "GET", "/readyz", 200, "ok"},
		"not ready":         {broken, "GET", "/readyz", 503, "media server does not answer"},
		"head":              {full, "HEAD", "/readyz", 200, ""},
		"drained":           {full, "GET", "/drain", 200, "drained"},
		"drained by hand":   {full, "POST", "/drain", 200, "drained"},
		"drained in vain":   {broken, "GET", "/drain", 503, "2 nodes still pull from here"},
		"drain and methods": {full, "DELETE", "/drain", 405, "GET or POST"},
		"no drain":          {Options{}, "GET", "/drain", 404, ""},
		"demand":            {full, "GET", "/demand/live/show", 200, "holds live/show"},
		"demand by POST":    {full, "POST", "/demand/live/show", 200, "holds live/show"},
		"demand methods":    {full, "DELETE", "/demand/live/show", 405, ""},
		"no demand":         {Options{}, "GET", "/demand/show", 404, ""},
		"metrics":           {full, "GET", "/metrics", 200, "sidestream_test 0"},
		"no metrics":        {Options{}, "GET", "/metrics", 404, ""},
		"status":            {full, "GET", "/api/status", 200, `{"streams":2}`},
		"status unwritable": {broken, "GET", "/api/status", 500, "status cannot be written"},
		"no status":         {Options{}, "GET", "/api/status", 404, ""},
		"pprof":             {full, "GET", "/debug/pprof/cmdline", 200, ""},
		"pprof unasked":     {broken, "GET", "/debug/pprof/", 404, ""},
		"method":            {full, "POST", "/readyz", 405, ""},
		"nothing else":      {full, "GET", "/", 404, ""},
		"read only":         {full, "DELETE", "/api/status", 405, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			New(tt.o).ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.body) {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, tt.status, tt.body)
			}
		})
	}
}

func TestReadinessIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		w := httptest.NewRecorder()
		New(Options{Ready: stuck}).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != 503 {
			t.Errorf("status %d", w.Code)
		}
	})
}
