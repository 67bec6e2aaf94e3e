package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"golang.org/x/sync/errgroup"

	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

const (
	storm     = 25 * time.Second // of joins and leaves, between two low tides
	tide      = 12 * time.Second // until what was killed is found dead: six seconds, and some for the collector
	crowd     = 40               // viewers at a time
	stay      = 6 * time.Second  // at most
	grown     = 1.15             // what is left at the last low tide, of what was at the early ones: more is a leak
	warmTides = 2                // low tides that do not count yet
)

// soak lets viewers come and go at random, some of them killed, and looks at what the server has when all are gone, again and again.
// It fails where that grows, or where a viewer got nothing.
type soak struct {
	out      io.Writer
	duration time.Duration
	seed     uint64
	profile  string
}

// tidemark is what the server has at a low tide.
type tidemark struct {
	memory memory
	files  int
}

func (k soak) run(ctx context.Context) error {
	server, err := start(ctx, roleSFU, "", k.profile)
	if err != nil {
		return err
	}
	defer server.stop()
	source, err := relaytest.NewSource(nil, shape)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error {
		if err := k.storms(ctx, source, server); err != nil {
			return err
		}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return err
	}
	return nil
}

func (k soak) storms(ctx context.Context, source *relaytest.Source, server *subject) error {
	random := rand.New(rand.NewPCG(k.seed, 1))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: crowd}}
	defer client.CloseIdleConnections()
	fmt.Fprintf(k.out, "seed %d: up to %d viewers for %s each; a third says goodbye, a third closes, a third is killed\n\n"+
		"   time  viewers  nothing came  MB at low tide  files\n", k.seed, crowd, stay)
	began := time.Now()
	var marks []tidemark
	viewers, empty := 0, 0
	for time.Since(began) < k.duration {
		n, nothing, err := k.storm(ctx, random, client, source, server)
		if err != nil {
			return err
		}
		viewers, empty = viewers+n, empty+nothing
		if err := pause(ctx, tide); err != nil {
			return err
		}
		m, err := server.memory()
		if err != nil {
			return err
		}
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.process.Process.Pid))
		if err != nil {
			return err
		}
		marks = append(marks, tidemark{m, len(files)})
		fmt.Fprintf(k.out, "%7s  %7d  %12d  %14.1f  %5d\n", time.Since(began).Round(time.Second), viewers, empty, float64(m)/1e6, len(files))
	}
	if k.profile != "" {
		server.poke()
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return judge(marks, viewers, empty)
}

// judge compares the last low tides with the early ones.
func judge(marks []tidemark, viewers, empty int) error {
	if empty*100 > viewers {
		return fmt.Errorf("nothing came to %d of %d viewers", empty, viewers)
	}
	if len(marks) < warmTides+4 {
		return nil // too short to tell
	}
	marks = marks[warmTides:]
	level := func(marks []tidemark) (bytes, files float64) {
		var all, open []float64
		for _, m := range marks {
			all, open = append(all, float64(m.memory)), append(open, float64(m.files))
		}
		return median(all), median(open)
	}
	third := max(len(marks)/3, 1)
	early, earlyFiles := level(marks[:third])
	late, lateFiles := level(marks[len(marks)-third:])
	if late > early*grown || lateFiles > earlyFiles+5 {
		return fmt.Errorf("it grows: %.1f MB and %.0f files at first, %.1f MB and %.0f files in the end",
			early/1e6, earlyFiles, late/1e6, lateFiles)
	}
	return nil
}

// storm is one publication with its viewers.
func (k soak) storm(
	ctx context.Context, random *rand.Rand, client *http.Client, source *relaytest.Source, server *subject,
) (viewers, nothing int, err error) {
	publishing, stop := context.WithCancel(ctx)
	var publisher sync.WaitGroup
	defer publisher.Wait()
	defer stop()
	publisher.Go(func() { _ = source.Publish(publishing, roleSFU, server.publish) }) // its end is what ends it
	var mu sync.Mutex
	var group sync.WaitGroup
	defer group.Wait()
	places := make(chan struct{}, crowd)
	for began := time.Now(); time.Since(began) < storm && ctx.Err() == nil; {
		if err := pause(ctx, time.Duration(random.Int64N(int64(200*time.Millisecond)))); err != nil {
			break
		}
		places <- struct{}{}
		kind, d := random.IntN(3), time.Second+time.Duration(random.Int64N(int64(stay-time.Second)))
		group.Go(func() {
			defer func() { <-places }()
			came, err := visit(ctx, client, server, kind, d)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				return // at first nobody publishes yet
			}
			viewers++
			if !came {
				nothing++
			}
		})
	}
	group.Wait()
	return viewers, nothing, ctx.Err()
}

// visit plays for a time and leaves in one of three ways; it says whether whole frames came.
func visit(ctx context.Context, client *http.Client, server *subject, kind int, d time.Duration) (came bool, err error) {
	transport := media.Transport{Loopback: true, Filter: oneAddress}
	kill := func() {}
	if kind == 2 {
		socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return false, err
		}
		silent := (&logging.DefaultLoggerFactory{Writer: io.Discard}).NewLogger("ice")
		mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: socket, Logger: silent})
		defer mux.Close() //nolint:errcheck // nobody is left to tell
		transport.UDPMux = mux
		kill = func() { _ = socket.Close() }
	}
	v, err := openBy(ctx, client, server.play, newCounts(), transport)
	if err != nil {
		return false, err
	}
	err = pause(ctx, d)
	came = v.whole.Load() > 0
	switch kind {
	case 0:
		v.close(ctx)
	default:
		kill()
		_ = v.session.PeerConnection().GracefulClose()
	}
	return came, err
}
