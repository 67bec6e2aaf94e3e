//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rest waits until nothing is left of what was: each node has one relay's publication at its server and no more, each cluster pulls
// the stream once, and media servers have no readers but viewers and children. It says how long that took.
func (s *soak) rest(ctx context.Context, what string) time.Duration {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, restBound)
	defer cancel()
	for {
		unrest := s.unrest(bounded)
		switch {
		case unrest == "":
			return time.Since(began)
		case ctx.Err() != nil:
			return 0
		case bounded.Err() != nil:
			s.complain("%s: not at rest after %s: %s", what, restBound, unrest)
			s.dump(ctx)
			return time.Since(began)
		}
		sleep(bounded, 250*time.Millisecond)
	}
}

// unrest says what is not as it is at rest; "" if all is.
func (s *soak) unrest(ctx context.Context) string {
	nodes := map[string]status{}
	children := map[string]int{}
	pulls := map[string]int{}
	clusterOf := map[string]string{}
	for _, p := range s.pods {
		clusterOf[p.name] = p.cluster
	}
	for _, p := range s.pods {
		st, err := p.status(ctx)
		if err != nil {
			return err.Error()
		}
		nodes[p.name] = st
		for _, r := range st.Relays {
			if r.State != "live" && r.State != "idle" {
				return fmt.Sprintf("%s has a relay that is %s", p.name, r.State)
			}
			if r.State == "live" {
				children[r.Parent]++
				if clusterOf[r.Parent] != p.cluster {
					pulls[p.cluster]++
				}
			}
		}
	}
	for _, p := range s.pods {
		origin := p == s.source.pod
		if n := pulls[p.cluster]; n > 1 || n == 1 && p.cluster == s.source.pod.cluster || n == 0 && p.cluster != s.source.pod.cluster {
			return fmt.Sprintf("cluster %s pulls the stream %d times", p.cluster, n)
		}
		st := nodes[p.name]
		if len(st.Streams) != 1 || st.Streams[0].Origin != s.source.pod.name {
			return fmt.Sprintf("%s knows of %+v, and it is published at %s", p.name, st.Streams, s.source.pod.name)
		}
		streams, err := p.streams(ctx)
		if err != nil {
			return err.Error()
		}
		if len(streams) != 1 || streams[0].Relayed == origin {
			return fmt.Sprintf("the server at %s has %+v", p.name, streams)
		}
		if !origin {
			i := slices.IndexFunc(st.Relays, func(r relay) bool { return r.State == "live" && r.Session != nil })
			if i < 0 || path.Base(st.Relays[i].Session.Location) != streams[0].Session {
				return fmt.Sprintf("the publication at %s is not its relay's: %+v", p.name, streams)
			}
		}
		viewers := 0
		for _, v := range s.viewers {
			if v.pod == p && v.playing() {
				viewers++
			}
		}
		if want := viewers + children[p.name]; streams[0].Readers != want {
			return fmt.Sprintf("the server at %s has %d readers, and there are %d viewers and %d children", p.name,
				streams[0].Readers, viewers, children[p.name])
		}
	}
	return ""
}

// sample is what a process uses at rest.
type sample struct{ goroutines, files, threads, memory int } // memory in KiB; goroutines 0: it does not say

// measure takes a sample of both processes.
func (n *pod) measure(ctx context.Context) {
	for what, p := range map[string]*process{"sfu": n.server, "sidecar": n.sidecar} {
		if p.cmd == nil {
			continue
		}
		got, err := procSample(p.cmd.Process.Pid)
		if err != nil {
			continue
		}
		if what == "sidecar" {
			got.goroutines = goroutines(ctx, n.admin+"/metrics")
		}
		key := fmt.Sprintf("%s %d", what, p.starts)
		n.samples[key] = append(n.samples[key], got)
	}
}

func procSample(pid int) (s sample, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	files, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return s, err
	}
	s.files = len(files)
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			s.memory = n
		case "Threads":
			s.threads = n
		}
	}
	return s, nil
}

func goroutines(ctx context.Context, address string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return 0
	}
	resp, err := web.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	for lines := bufio.NewScanner(io.LimitReader(resp.Body, 4<<20)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// settled is how many samples of a process are looked at on each side, before it can be said to have grown.
const settled = 6

// grown says what of the processes that run now grew: the least of the last samples is well above the most of the first. Each is
// said once.
func (n *pod) grown() (grown []string) {
	for key, samples := range n.samples {
		if len(samples) < 2*settled || len(samples)%settled != 0 {
			continue
		}
		first, last := samples[:settled], samples[len(samples)-settled:]
		for name, of := range map[string]func(sample) int{
			"goroutines": func(s sample) int { return s.goroutines }, "files": func(s sample) int { return s.files },
			"threads": func(s sample) int { return s.threads }, "KiB of memory": func(s sample) int { return s.memory },
		} {
			// What a node has to do changes from step to step: the roles of origin, puller and child go round.
			most, least := of(slices.MaxFunc(first, by(of))), of(slices.MinFunc(last, by(of)))
			slack := 30
			if name == "KiB of memory" {
				slack = 40 << 10
			}
			if least > most*3/2+slack {
				grown = append(grown, fmt.Sprintf("%s grew from at most %d to at least %d %s", key, most, least, name))
			}
		}
	}
	return grown
}

func by(of func(sample) int) func(a, b sample) int {
	return func(a, b sample) int { return of(a) - of(b) }
}

// summary tells of the process that lived through the most steps what it used at first and in the end.
func (n *pod) summary() string {
	longest := ""
	for key, samples := range n.samples {
		if strings.HasPrefix(key, "sidecar") && len(samples) > len(n.samples[longest]) {
			longest = key
		}
	}
	samples := n.samples[longest]
	if len(samples) == 0 {
		return "nothing was measured"
	}
	first, last := samples[0], samples[len(samples)-1]
	return fmt.Sprintf("%d starts of the sidecar, %d of the server; over %d steps in one process: goroutines %d to %d, files %d to %d, MiB %d to %d",
		n.sidecar.starts, n.server.starts, len(samples), first.goroutines, last.goroutines, first.files, last.files,
		first.memory>>10, last.memory>>10)
}
