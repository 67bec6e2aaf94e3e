package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Result is all that one run measured.
type Result struct {
	Rows  []Row    `json:"rows"`
	Joins []Starts `json:"joins"`
	Flood Flood    `json:"flood"`
	// Ratios are how many times as many viewers per core the built-in SFU has as each other server.
	Ratios map[string]float64 `json:"ratios"`
}

// Row is one server with its viewers.
type Row struct {
	Server         string  `json:"server"`
	Viewers        int     `json:"viewers"`
	Mbits          float64 `json:"mbitPerSecond"` // payload, as it came out
	Cores          float64 `json:"cores"`         // user and system
	Spread         float64 `json:"spreadOfCores"` // largest round over smallest
	ViewersPerCore float64 `json:"viewersPerCore"`
	Through        float64 `json:"through"` // whole frames of those published, over all viewers
	BytesPerViewer float64 `json:"bytesPerViewer"`
	Latency        Latency `json:"latency"`
}

// Latency is a distribution of one-way times, from source to viewer.
type Latency struct {
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
}

// Starts is a distribution of times from POST to the first key frame.
type Starts struct {
	Server      string `json:"server"`
	Count       int    `json:"count"`
	Median, P95 time.Duration
}

// Flood is many sessions that came within a short time.
type Flood struct {
	Sessions  int           `json:"sessions"`
	Errors    int           `json:"errors"`
	LastError string        `json:"lastError,omitempty"`
	Took      time.Duration `json:"took"`
	CPU       time.Duration `json:"cpuPerSession"` // of the server
}

const header = `One stream of 1 Mbit/s H264-like video (30 frames/s) and Opus, played by so many viewers of each server in turn.
sfu is the built-in one, loop pion's own track fan-out with default interceptors. "through" is the whole frames that came to viewers,
of those published: about 100 % unless the machine was overloaded.

server    viewers  Mbit/s   cores  (spread)  viewers/core  kB/viewer  p50 ms   p99 ms  through
`

// String is a line of the table.
func (r Row) String() string {
	return fmt.Sprintf("%-8s  %7d  %6.1f  %6.3f  %8.2f  %12.0f  %9.0f  %6.2f  %7.2f  %6.1f%%",
		r.Server, r.Viewers, r.Mbits, r.Cores, r.Spread, r.ViewersPerCore, r.BytesPerViewer/1000,
		milliseconds(r.Latency.P50), milliseconds(r.Latency.P99), r.Through*100)
}

// String is what follows the table.
func (r Result) String() string {
	var b strings.Builder
	b.WriteString("\nFrom POST to the first key frame, with all viewers there:\n")
	for _, s := range r.Joins {
		fmt.Fprintf(&b, "%-8s  median %4.0f ms  p95 %4.0f ms  (%d)\n", s.Server, milliseconds(s.Median), milliseconds(s.P95), s.Count)
	}
	if f := r.Flood; f.Sessions > 0 {
		fmt.Fprintf(&b, "\n%d sessions of the sfu opened in %.1f s, %d errors; %.1f ms of its CPU each\n",
			f.Sessions, f.Took.Seconds(), f.Errors, milliseconds(f.CPU))
		if f.LastError != "" {
			fmt.Fprintf(&b, "the last error: %s\n", f.LastError)
		}
	}
	b.WriteString("\n")
	for _, row := range r.Rows[1:] {
		fmt.Fprintf(&b, "viewers per core, sfu over %s: %.2f\n", row.Server, r.Ratios[row.Server])
	}
	if len(r.Rows) < 3 {
		b.WriteString("(no MediaMTX here: set MEDIAMTX_BIN or put mediamtx into PATH to have it measured too)\n")
	}
	return b.String()
}

func (r *Result) compare() {
	r.Ratios = make(map[string]float64)
	for _, row := range r.Rows[1:] {
		r.Ratios[row.Server] = r.Rows[0].ViewersPerCore / row.ViewersPerCore
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quantile sorts in place.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}
