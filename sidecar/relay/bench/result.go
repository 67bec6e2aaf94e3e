package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Result is all that one run measured.
type Result struct {
	Rows []Row `json:"rows"`
	// Direct is the one-way time without any relay, which is in each row's latency too.
	Direct Latency `json:"direct"`
	// Floor is the CPU time, in seconds per gigabit, of receiving, decrypting, encrypting and sending alone, at RatioStreams.
	Floor float64 `json:"floorCPUSecondsPerGigabit"`
	// Cold and Warm are times to the first frame at a viewer.
	Cold, Warm Starts
	// Ratio compares the CPU of relay and loop at so many streams.
	Ratio        float64 `json:"ratio"`
	RatioStreams int     `json:"ratioStreams"`
}

// Row is one relay at one number of streams.
type Row struct {
	Relay              string  `json:"relay"` // "relay" or "loop"
	Streams            int     `json:"streams"`
	Mbits              float64 `json:"mbitPerSecond"`        // RTP, as it came out
	CPUPerGigabit      float64 `json:"cpuSecondsPerGigabit"` // user and system
	CPUShare           float64 `json:"cpuShareOfCore"`
	AllocsPerPacket    float64 `json:"allocsPerPacket"`
	BytesPerPacket     float64 `json:"bytesPerPacket"` // allocated
	MegabytesPerStream float64 `json:"megabytesPerStream"`
	Megabytes          float64 `json:"megabytes"`
	Latency            Latency `json:"latency"` // one way, from source to sink
	Delivered          float64 `json:"delivered"`
	Rounds             int     `json:"rounds"`
	SpreadOfCPU        float64 `json:"spreadOfCPU"` // largest round over smallest
}

// Latency is a distribution of one-way times.
type Latency struct {
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
}

// Starts is a distribution of times to the first frame.
type Starts struct {
	Median, P95 time.Duration
	Count       int
}

const header = `Streams of 2 Mbit/s H264-like video (30 frames/s, a key frame each second) and Opus: about 310 packets/s each.
relay is ours, loop a bare pion read-write loop with default interceptors. Latency is one way from source to sink, the
hop and both ends in it. "through" is what came out of what went in; below 100 % the machine was overloaded.
The last line compares at 20 streams, or at the largest number measured if 20 was not.

streams  relay   Mbit/s  CPU-s/Gbit  (spread)  core %  allocs/pkt  B/pkt  MB/stream  MB RSS   p50 ms   p99 ms  through
`

// String is a line of the table.
func (r Row) String() string {
	return fmt.Sprintf("%7d  %-5s  %7.1f  %10.2f  %8.2f  %6.1f  %10.2f  %5.0f  %9.2f  %6.1f  %7.2f  %7.2f  %6.1f%%",
		r.Streams, r.Relay, r.Mbits, r.CPUPerGigabit, r.SpreadOfCPU, r.CPUShare*100, r.AllocsPerPacket, r.BytesPerPacket,
		r.MegabytesPerStream, r.Megabytes, milliseconds(r.Latency.P50), milliseconds(r.Latency.P99), r.Delivered*100)
}

// String is what follows the table.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\ndirect path without a relay, 1 stream: p50 %.2f ms, p99 %.2f ms\n",
		milliseconds(r.Direct.P50), milliseconds(r.Direct.P99))
	if r.Cold.Count > 0 {
		fmt.Fprintf(&b, `
Time to the first complete key frame at a WHEP viewer, publisher - built-in SFU - relay - built-in SFU - viewer, one
process, %d times. Cold: from the beginning of the pull; the viewer plays once the relay is live. Warm: from the viewer's
own beginning, while the stream is there.
cold  median %4.0f ms  p95 %4.0f ms
warm  median %4.0f ms  p95 %4.0f ms
`, r.Cold.Count, milliseconds(r.Cold.Median), milliseconds(r.Cold.P95), milliseconds(r.Warm.Median),
			milliseconds(r.Warm.P95))
	}
	fmt.Fprintf(&b, "\nat %d streams:\nthe floor (UDP and AES-GCM, packet by packet): %.2f CPU-s/Gbit\nrelay/loop CPU ratio %.2f\n",
		r.RatioStreams, r.Floor, r.Ratio)
	return b.String()
}

// compare fills in the ratio.
func (r *Result) compare(sizes []int) {
	r.RatioStreams = slices.Max(sizes)
	if slices.Contains(sizes, comparedAt) {
		r.RatioStreams = comparedAt
	}
	cpu := make(map[string]float64)
	for _, row := range r.Rows {
		if row.Streams == r.RatioStreams {
			cpu[row.Relay] = row.CPUPerGigabit
		}
	}
	r.Ratio = cpu[roleRelay] / cpu[roleLoop]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median[T int | float64 | time.Duration](values []T) T {
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
