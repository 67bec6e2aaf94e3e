//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
)

// plot draws how long the counting player's picture stood still at most in each second, by path.
func plot(file string, results []*result) error {
	const (
		width, height, left, bottom = 760, 240, 44, 30
		most                        = 600.0 // milliseconds
	)
	colours := map[string]string{"direct": "#c0392b", "edge": "#1e6fb8"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	y := func(ms float64) float64 { return (height - bottom) - min(ms, most)/most*(height-bottom-20) }
	for ms := 0.0; ms <= most; ms += 200 {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, y(ms), width-10, left-6, y(ms)+4, ms)
	}
	fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#888" stroke-dasharray="4 4"/>`+"\n", left, y(float64(freeze.Milliseconds())), width-10)
	fmt.Fprintf(&b, `<text x="%d" y="14">longest time from frame to frame in each second, ms; above the dashed line it is a freeze</text>`+"\n", left)
	for _, r := range results {
		if len(r.gaps) == 0 {
			continue
		}
		var path strings.Builder
		for i, gap := range r.gaps {
			command := "L"
			if i == 0 {
				command = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", command, left+float64(i)/float64(max(len(r.gaps)-1, 1))*(width-10-left), y(float64(gap.Milliseconds())))
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path.String(), colours[r.path])
	}
	for i, path := range []string{"direct", "edge"} {
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+i*80, height-8, colours[path], path)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">seconds</text></svg>`+"\n", width-10, height-8)
	return os.WriteFile(file, []byte(b.String()), 0o644)
}
