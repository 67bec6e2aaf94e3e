package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"
	"golang.org/x/sync/errgroup"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

const (
	settle = 300 * time.Millisecond  // from a relay's turn to the measuring
	rounds = 6                       // of each relay
	rest   = 1100 * time.Millisecond // from one start to the next: key frames are asked for once a second
)

var shape = relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true, Exact: true}

// measurement is both relays at one number of streams.
type measurement struct {
	streams  int
	duration time.Duration // of measuring, for each relay
	profile  string        // of our relay; empty: none
	heap     string        // the same, of its memory
}

// errDone ends the servers of a measurement that is complete.
var errDone = errors.New("done")

func (m measurement) run(ctx context.Context) (rows []Row, err error) {
	source, sink, err := ends()
	if err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error { return sink.Run(ctx) })
	group.Go(func() error {
		var err error
		if rows, err = m.measure(ctx, source, sink); err != nil {
			return err
		}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return nil, err
	}
	return rows, nil
}

func ends() (*relaytest.Source, *relaytest.Sink, error) {
	source, err := relaytest.NewSource(nil, shape)
	if err != nil {
		return nil, nil, err
	}
	sink, err := relaytest.NewSink(nil)
	return source, sink, err
}

// turn is one round of one relay.
type turn struct {
	cpuPerGigabit, share, mbits, allocs, allocated, delivered float64
	latency                                                   Latency
	resident                                                  float64
}

func (m measurement) measure(ctx context.Context, source *relaytest.Source, sink *relaytest.Sink) ([]Row, error) {
	roles := []string{roleRelay, roleLoop}
	children := make(map[string]*child)
	idle := make(map[string]float64)
	for _, role := range roles {
		profile, heap := "", ""
		if role == roleRelay {
			profile, heap = m.profile, m.heap
		}
		c, err := startChild(ctx, role, profile, heap)
		if err != nil {
			return nil, err
		}
		defer c.stop()
		before, err := c.ask(command{})
		if err != nil {
			return nil, err
		}
		idle[role] = float64(before.Resident)
		_, err = c.ask(command{Start: m.streams, From: base(source.Endpoint("")), To: base(sink.Endpoint(""))})
		if err != nil {
			return nil, err
		}
		children[role] = c
		// While the next one starts, this one rests.
		source.Mute(func(name string) bool { return strings.HasPrefix(name, role) })
	}
	turns := make(map[string][]turn)
	for i := range 2 * rounds {
		role := roles[(i+1)/2%2]
		t, err := m.turn(ctx, source, sink, role, children[role])
		if err != nil {
			return nil, err
		}
		turns[role] = append(turns[role], t)
	}
	var rows []Row
	for _, role := range roles {
		rows = append(rows, summarise(role, m.streams, idle[role], turns[role]))
	}
	return rows, nil
}

// turn lets one relay carry its streams for a while.
func (m measurement) turn(
	ctx context.Context, source *relaytest.Source, sink *relaytest.Sink, role string, c *child,
) (turn, error) {
	source.Mute(func(name string) bool { return !strings.HasPrefix(name, role) })
	if err := pause(ctx, settle); err != nil {
		return turn{}, err
	}
	sink.Measure()
	sentBefore := source.Sent()
	packetsBefore, bytesBefore := sink.Totals()
	before, err := c.ask(command{})
	if err != nil {
		return turn{}, err
	}
	began := time.Now()
	if err := pause(ctx, m.duration/rounds); err != nil {
		return turn{}, err
	}
	after, err := c.ask(command{})
	if err != nil {
		return turn{}, err
	}
	took := time.Since(began).Seconds()
	packetsAfter, bytesAfter := sink.Totals()
	sent := source.Sent() - sentBefore
	latencies := slices.Clone(sink.Measured())
	packets, gigabits := float64(packetsAfter-packetsBefore), float64(bytesAfter-bytesBefore)*8/1e9
	if packets == 0 {
		return turn{}, fmt.Errorf("nothing came through the %s", role)
	}
	cpu := (after.CPU - before.CPU).Seconds()
	return turn{
		cpuPerGigabit: cpu / gigabits, share: cpu / took, mbits: gigabits * 1000 / took,
		allocs:    float64(after.Allocs-before.Allocs) / packets,
		allocated: float64(after.Allocated-before.Allocated) / packets,
		delivered: packets / float64(sent),
		latency:   Latency{P50: quantile(latencies, .5), P99: quantile(latencies, .99)},
		resident:  float64(after.Resident),
	}, nil
}

func summarise(role string, streams int, idle float64, turns []turn) Row {
	of := func(value func(turn) float64) float64 {
		var values []float64
		for _, t := range turns {
			values = append(values, value(t))
		}
		return median(values)
	}
	cpu := func(t turn) float64 { return t.cpuPerGigabit }
	least, most := cpu(turns[0]), cpu(turns[0])
	for _, t := range turns {
		least, most = min(least, cpu(t)), max(most, cpu(t))
	}
	resident := of(func(t turn) float64 { return t.resident })
	return Row{
		Relay: role, Streams: streams, Rounds: len(turns), SpreadOfCPU: most / least,
		Mbits: of(func(t turn) float64 { return t.mbits }), CPUPerGigabit: of(cpu),
		CPUShare:           of(func(t turn) float64 { return t.share }),
		AllocsPerPacket:    of(func(t turn) float64 { return t.allocs }),
		BytesPerPacket:     of(func(t turn) float64 { return t.allocated }),
		Megabytes:          resident / 1e6,
		MegabytesPerStream: (resident - idle) / 1e6 / float64(streams),
		Latency: Latency{
			P50: time.Duration(of(func(t turn) float64 { return float64(t.latency.P50) })),
			P99: time.Duration(of(func(t turn) float64 { return float64(t.latency.P99) })),
		},
		Delivered: of(func(t turn) float64 { return t.delivered }),
	}
}

// measureDirect is the one-way time when the sink plays from the source itself.
func measureDirect(ctx context.Context, d time.Duration) (latency Latency, err error) {
	source, sink, err := ends()
	if err != nil {
		return Latency{}, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error { return sink.Run(ctx) })
	group.Go(func() error { return sink.Play(ctx, "direct", source.Endpoint("direct")) })
	group.Go(func() error {
		if _, err := sink.AwaitReception(ctx, "direct", func(r relaytest.Reception) bool { return r.Frames > 10 }); err != nil {
			return err
		}
		sink.Measure()
		if err := pause(ctx, d); err != nil {
			return err
		}
		latencies := slices.Clone(sink.Measured())
		latency = Latency{P50: quantile(latencies, .5), P99: quantile(latencies, .99)}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return Latency{}, err
	}
	return latency, nil
}

// measureStarts takes the time to the first frame along the real path, between two built-in SFUs.
func measureStarts(ctx context.Context, n int) (cold, warm Starts, err error) {
	source, sink, err := ends()
	if err != nil {
		return cold, warm, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error { return sink.Run(ctx) })
	var servers [2]*pionsfu.Adapter
	for i := range servers {
		if servers[i], err = startServer(ctx, group); err != nil {
			return cold, warm, err
		}
	}
	origin, edge := servers[0], servers[1]
	group.Go(func() error { return source.Publish(ctx, "demo", origin.Ingest("demo")) })
	group.Go(func() error {
		if err := awaitStream(ctx, origin, "demo"); err != nil {
			return err
		}
		return sink.Play(ctx, "origin", origin.Egress("demo"))
	})
	group.Go(func() error {
		_, err := sink.AwaitReception(ctx, "origin", func(r relaytest.Reception) bool { return r.Frames > 30 })
		if err != nil {
			return err
		}
		var colds, warms []time.Duration
		for i := range n {
			c, w, err := startOnce(ctx, sink, origin, edge, i)
			if err != nil {
				return err
			}
			colds, warms = append(colds, c), append(warms, w)
			if err := pause(ctx, rest+phase(i)); err != nil {
				return err
			}
		}
		cold = Starts{Median: median(colds), P95: quantile(colds, .95), Count: n}
		warm = Starts{Median: median(warms), P95: quantile(warms, .95), Count: n}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return cold, warm, err
	}
	return cold, warm, nil
}

// phase spreads starts over the group of pictures.
func phase(i int) time.Duration { return time.Duration(i*7%10) * 100 * time.Millisecond }

// startServer runs a built-in SFU on loopback.
func startServer(ctx context.Context, group *errgroup.Group) (*pionsfu.Adapter, error) {
	server, err := pionsfu.New(pionsfu.Config{UDPAddr: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	web := &http.Server{Handler: server}
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error { return web.Serve(listener) })
	group.Go(func() error {
		<-ctx.Done()
		return web.Close()
	})
	return pionsfu.NewAdapter(pionsfu.AdapterConfig{BaseURL: "http://" + listener.Addr().String()})
}

// awaitStream blocks until the server has the stream.
func awaitStream(ctx context.Context, server *pionsfu.Adapter, id adapters.StreamID) error {
	watching, found := context.WithCancelCause(ctx)
	defer found(nil)
	err := server.Watch(watching, func(streams []adapters.Stream) {
		if slices.ContainsFunc(streams, func(s adapters.Stream) bool { return s.ID == id }) {
			found(errDone)
		}
	})
	if errors.Is(context.Cause(watching), errDone) {
		return nil
	}
	return err
}

// startOnce relays and plays once, and plays a second time.
func startOnce(
	ctx context.Context, sink *relaytest.Sink, origin, edge *pionsfu.Adapter, i int,
) (cold, warm time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	began := time.Now()
	session := relay.NewSession(relay.SessionOptions{
		Stream: "demo", From: origin.Egress("demo"), To: edge.Ingest("demo"), Transport: media.Transport{Loopback: true},
		Traits: edge.Traits(),
	})
	group, inner := errgroup.WithContext(ctx)
	group.Go(func() error { return session.Run(inner) })
	group.Go(func() error {
		select {
		case <-session.Live():
		case <-inner.Done():
			return context.Cause(inner)
		}
		var err error
		if cold, err = playOnce(inner, sink, edge.Egress("demo"), fmt.Sprintf("cold%d", i), began); err != nil {
			return err
		}
		if err := pause(inner, rest+phase(i)); err != nil {
			return err
		}
		if warm, err = playOnce(inner, sink, edge.Egress("demo"), fmt.Sprintf("warm%d", i), time.Now()); err != nil {
			return err
		}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return 0, 0, err
	}
	return cold, warm, nil
}

func playOnce(
	ctx context.Context, sink *relaytest.Sink, from adapters.Endpoint, name string, began time.Time,
) (time.Duration, error) {
	var took time.Duration
	group, inner := errgroup.WithContext(ctx)
	group.Go(func() error { return sink.Play(inner, name, from) })
	group.Go(func() error {
		r, err := sink.AwaitReception(inner, name, func(r relaytest.Reception) bool { return r.KeyFrames > 0 })
		if err != nil {
			return err
		}
		took = r.FirstKeyFrame.Sub(began)
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return 0, err
	}
	return took, nil
}

func base(endpoint adapters.Endpoint) string {
	return (&url.URL{Scheme: endpoint.URL.Scheme, Host: endpoint.URL.Host}).String()
}

// child is a relay process.
type child struct {
	process *exec.Cmd
	stdin   io.Closer
	encoder *json.Encoder
	decoder *json.Decoder
}

// startChild runs this program again, as a relay.
func startChild(ctx context.Context, role, profile, heap string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	process := exec.CommandContext(ctx, self, "-role", role, "-cpuprofile", profile, "-memprofile", heap)
	process.Stderr = os.Stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	return &child{process: process, stdin: stdin, encoder: json.NewEncoder(stdin), decoder: json.NewDecoder(stdout)}, nil
}

func (c *child) ask(question command) (usage, error) {
	if err := c.encoder.Encode(question); err != nil {
		return usage{}, err
	}
	var answer usage
	if err := c.decoder.Decode(&answer); err != nil {
		return usage{}, fmt.Errorf("relay process has ended: %w", err)
	}
	if answer.Error != "" {
		return usage{}, errors.New(answer.Error)
	}
	return answer, nil
}

// stop ends the process by closing its standard input.
func (c *child) stop() {
	_ = c.stdin.Close()
	_ = c.process.Wait()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
