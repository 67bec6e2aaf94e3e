package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

const (
	stream  = "bench"
	arrival = 10 * time.Second // in which a first key frame must come
)

func at(address string) (adapters.Endpoint, error) {
	u, err := url.Parse(address)
	return adapters.Endpoint{URL: u}, err
}

// viewer plays a stream, counts what comes and looks at nothing else, so that many fit beside the server.
type viewer struct {
	conn    *media.Conn
	session *whip.Session
	counts  *counts
	key     chan time.Time // of the first key frame; capacity 1

	packets, whole atomic.Uint64 // whole frames
	bytes          atomic.Uint64
}

// counts are of all viewers of one server.
type counts struct {
	mu        sync.Mutex
	measured  bool
	latencies []time.Duration
}

// measure begins anew to collect one-way times, and gives those so far.
func (c *counts) measure(on bool) (latencies []time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	latencies, c.latencies, c.measured = c.latencies, nil, on
	return latencies
}

// note keeps every 16th one-way time.
func (c *counts) note(p *media.Packet) {
	if p.Header.SequenceNumber%16 != 0 {
		return
	}
	sent, ok := relaytest.SentAt(p.Payload)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.measured {
		c.latencies = append(c.latencies, time.Since(sent))
	}
}

// picture counts the frames of one track that came whole.
type picture struct {
	viewer *viewer
	video  bool
	began  bool
	broken bool
	last   uint16
	keyed  bool
}

// Packet implements media.Sink.
func (p *picture) Packet(packet *media.Packet) {
	v := p.viewer
	v.packets.Add(1)
	v.bytes.Add(uint64(len(packet.Payload)))
	v.counts.note(packet)
	if !p.video {
		return
	}
	if packet.KeyFrame && !p.keyed {
		p.keyed = true
		v.key <- time.Now()
	}
	if p.began && packet.Header.SequenceNumber != p.last+1 {
		p.broken = true
	}
	p.began, p.last = true, packet.Header.SequenceNumber
	if packet.Header.Marker {
		if !p.broken {
			v.whole.Add(1)
		}
		p.broken = false
	}
}

// SenderReport implements media.Sink.
func (p *picture) SenderReport(media.SenderReport) {}

// open begins to play and waits until the connection is up.
func open(ctx context.Context, client *http.Client, from adapters.Endpoint, c *counts) (*viewer, error) {
	return openBy(ctx, client, from, c, media.Transport{Loopback: true, Filter: oneAddress})
}

func openBy(
	ctx context.Context, client *http.Client, from adapters.Endpoint, c *counts, transport media.Transport,
) (*viewer, error) {
	v := &viewer{counts: c, key: make(chan time.Time, 1)}
	v.conn = media.NewConn(transport, func(t *media.Track) media.Sink {
		return &picture{viewer: v, video: t.Kind() == webrtc.RTPCodecTypeVideo}
	})
	session, err := (&whip.Client{HTTP: client, NewPeerConnection: v.conn.NewPeerConnection}).Play(ctx, from, nil)
	if err != nil {
		return nil, err
	}
	v.session = session
	if err := session.Connected(ctx); err != nil {
		v.close(ctx)
		return nil, err
	}
	return v, nil
}

func (v *viewer) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = v.session.Close(ctx)
}

// firstKey waits for the first key frame.
func (v *viewer) firstKey(ctx context.Context) (time.Time, error) {
	select {
	case t := <-v.key:
		return t, nil
	case <-time.After(arrival):
		return time.Time{}, fmt.Errorf("no key frame within %s", arrival)
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}

// openMany opens viewers a few at a time.
func openMany(ctx context.Context, client *http.Client, from adapters.Endpoint, n int, c *counts) ([]*viewer, error) {
	var mu sync.Mutex
	var group sync.WaitGroup
	var viewers []*viewer
	var failed error
	places := make(chan struct{}, 8)
	for range n {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			v, err := open(ctx, client, from, c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			viewers = append(viewers, v)
		})
	}
	group.Wait()
	return viewers, failed
}

func closeMany(ctx context.Context, viewers []*viewer) {
	var group sync.WaitGroup
	places := make(chan struct{}, 16)
	for _, v := range viewers {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			v.close(ctx)
		})
	}
	group.Wait()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
