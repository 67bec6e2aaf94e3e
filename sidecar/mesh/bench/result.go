package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Result is what was measured at one size.
type Result struct {
	Nodes    int `json:"nodes"` // as each sidecar that is measured sees it, itself included
	Clusters int `json:"clusters"`
	Streams  int `json:"streams"`
	Watchers int `json:"watchers"`
	// Converged is the time from the first address told until everyone knows everything.
	Converged time.Duration `json:"converged"`
	// Starting is the CPU time that each sidecar needed until then.
	Starting map[string]time.Duration `json:"starting"`
	Load     string                   `json:"load"` // averages of the machine, at the end
	Costs    []Cost                   `json:"costs"`
	News     []News                   `json:"news"`
}

// Cost is what one sidecar needed in one window.
type Cost struct {
	Subject    string  `json:"subject"`
	Phase      string  `json:"phase"`
	Resident   float64 `json:"residentMB"`     // at the window's end
	Anonymous  float64 `json:"anonymousMB"`    // of that, not backed by the program's file
	Peak       float64 `json:"peakMB"`         // resident, since the start
	Heap       float64 `json:"heapMB"`         // of Go's heap, in use
	Stacks     float64 `json:"stacksMB"`       // of goroutines
	Goroutines float64 `json:"goroutines"`     // at the window's end
	CPU        float64 `json:"cpuShareOfCore"` // user and system
	In         float64 `json:"bytesInPerSecond"`
	Out        float64 `json:"bytesOutPerSecond"`
	FramesIn   float64 `json:"framesInPerSecond"`
	FramesOut  float64 `json:"framesOutPerSecond"`
}

// News is how long one kind of news took.
type News struct {
	What  string `json:"what"`
	Count int    `json:"count"`
	// Seen counts who saw it, over all times that it happened; Missed who did not while the bench waited.
	Seen   int           `json:"seen"`
	Missed int           `json:"missed"`
	P50    time.Duration `json:"p50"`
	P99    time.Duration `json:"p99"`
	Max    time.Duration `json:"max"`
}

const footer = `
built-in: the idle built-in media server is in the sidecar's process; it publishes nothing. external: the media server is
elsewhere, and publishes its share of the streams besides those of the others.
Memory in MB of 2^20 bytes, at the window's end. CPU is user and system time of the process, in percent of one core. kB/s
are TCP payload with TLS's own bytes, both directions of all connections to peers; IP and TCP headers and
acknowledgements come on top, about 100 bytes a frame.
Times are measured in the bench's own process, on the same cores, from the call that changes a node's catalogue to the
moment at which another's has it. Publications and drains less the emulated one-way delay. A crash is a machine that falls
silent: its connections stay open.
`

// String is the tables of one size.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d nodes in %d clusters, %d streams; %d watchers; load average %s\n", r.Nodes, r.Clusters, r.Streams,
		r.Watchers, r.Load)
	fmt.Fprintf(&b, "converged in %.1f s", r.Converged.Seconds())
	for _, name := range slices.Sorted(maps.Keys(r.Starting)) {
		fmt.Fprintf(&b, ", for %.2f s of CPU time at %s", r.Starting[name].Seconds(), name)
	}
	b.WriteString("\n\n")
	b.WriteString("sidecar   phase   MB RSS   anon   peak   heap  stacks  goroutines   CPU %  kB/s in     out   sum  frames/s in    out\n")
	for _, c := range r.Costs {
		fmt.Fprintf(&b, "%-8s  %-5s  %7.1f %6.1f %6.1f %6.1f  %6.1f  %10.0f  %6.2f  %7.2f %7.2f %5.1f  %11.1f %6.1f\n", c.Subject, c.Phase,
			c.Resident, c.Anonymous, c.Peak, c.Heap, c.Stacks, c.Goroutines, c.CPU*100, c.In/1e3, c.Out/1e3, (c.In+c.Out)/1e3,
			c.FramesIn, c.FramesOut)
	}
	b.WriteString("\nnews                                        times    seen  missed    p50 ms    p99 ms    max ms\n")
	for _, n := range r.News {
		fmt.Fprintf(&b, "%-42s  %5d  %6d  %6d  %8.1f  %8.1f  %8.1f\n", n.What, n.Count, n.Seen, n.Missed,
			milliseconds(n.P50), milliseconds(n.P99), milliseconds(n.Max))
	}
	return b.String()
}

// newsOf sorts in place.
func newsOf(what string, count, missed int, took []time.Duration) News {
	slices.Sort(took)
	n := News{What: what, Count: count, Seen: len(took), Missed: missed}
	if len(took) > 0 {
		n.P50, n.P99, n.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	return n
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
