package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

const (
	starting = 30 * time.Second // for all to run
	settling = 2 * time.Second  // before what is measured begins
)

type options struct {
	rtt, length time.Duration
	loss        float64
	bitrate     int
	plain       bool
	mediamtx    string
}

// measure runs all that a stream passes, and looks at both ends.
func (o *options) measure(parent context.Context, name string, seed uint64) (*result, error) {
	ctx, cancel := context.WithCancel(parent)
	network := wan.NewNetwork()
	var below, g group
	defer below.waiting.Wait()
	below.run(ctx, "network", network.Run)

	relayMux, relayAt, closeRelay, err := listen(network, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	link := wan.NewLink(seed, wan.Params{Delay: o.rtt / 2, Loss: o.loss})
	originMux, _, closeOrigin, err := listen(network, func(remote netip.AddrPort) wan.Link {
		if remote == relayAt {
			return link
		}
		return wan.Link{}
	})
	if err != nil {
		cancel()
		closeRelay()
		return nil, err
	}
	defer closeOrigin()
	defer closeRelay()
	defer g.waiting.Wait()
	defer cancel()

	origin, err := startSFU(ctx, &g, originMux)
	if err != nil {
		return nil, err
	}
	var edge *server
	switch name {
	case builtIn:
		edgeMux, _, closeEdge, err := listen(network, nil)
		if err != nil {
			return nil, err
		}
		defer closeEdge()
		defer g.waiting.Wait()
		defer cancel()
		if edge, err = startSFU(ctx, &g, edgeMux); err != nil {
			return nil, err
		}
	case strict:
		edge, err = startStrict(ctx, &g)
	case mediaMTX:
		edge, err = startMediaMTX(ctx, &g, o.mediamtx)
	default:
		err = fmt.Errorf("no server %q; there are %q", name, edgeNames)
	}
	if err != nil {
		return nil, err
	}
	return o.carry(ctx, &g, origin, edge, media.Transport{UDPMux: relayMux, Loopback: true})
}

// carry publishes to one server, relays to the other, and plays from both.
func (o *options) carry(ctx context.Context, g *group, origin, edge *server, transport media.Transport) (*result, error) {
	client := &whip.Client{NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection}
	source, err := testsource.New(testsource.Options{Bitrate: o.bitrate})
	if err != nil {
		return nil, err
	}
	again := func(what string, run func(context.Context) error) { // until it can be had, and once then
		g.run(ctx, what, func(ctx context.Context) error {
			for deadline := time.Now().Add(starting); ; {
				began := time.Now()
				err := run(ctx)
				if ctx.Err() != nil || time.Since(began) > settling || time.Now().After(deadline) {
					return err
				}
				if err := pause(ctx, g); err != nil {
					return err
				}
			}
		})
	}
	again("publish", func(ctx context.Context) error { return source.Publish(ctx, client, origin.ingest) })
	near, far := newWatcher(), newWatcher()
	again("play at the origin", func(ctx context.Context) error { return near.play(ctx, client, origin.egress) })
	traits := edge.traits
	if o.plain {
		traits = adapters.Traits{}
	}
	web := &http.Client{Transport: &http.Transport{}}
	defer web.CloseIdleConnections()
	sessions := make(chan *relay.Session, 100)
	again("relay", func(ctx context.Context) error {
		s := relay.NewSession(relay.SessionOptions{
			Stream: stream, From: origin.egress, FromHTTP: web, To: edge.ingest, ToHTTP: web, Transport: transport, Traits: traits,
		})
		select {
		case sessions <- s:
		default:
		}
		return s.Run(ctx)
	})
	var session *relay.Session
	for deadline := time.Now().Add(starting); session == nil; {
		s := <-sessions
		select {
		case <-s.Live():
			session = s
		case <-s.Ended():
		case <-time.After(time.Until(deadline)):
			return nil, fmt.Errorf("the relay is not live: %+v", s.Status())
		}
	}
	again("play at the edge", func(ctx context.Context) error { return far.play(ctx, client, edge.egress) })
	for deadline := time.Now().Add(starting); !far.begun() || !near.begun(); {
		if err := pause(ctx, g); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no picture or sound at a viewer; the relay says %+v", session.Status())
		}
		session.Joined()
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(settling):
	}
	began, before := time.Now(), session.Status()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(o.length):
	}
	r := compare(near, far, began, time.Now().Add(-time.Second))
	after := session.Status()
	for range 20 { // what is missing at one moment may be on its way
		if err := pause(ctx, g); err != nil {
			return nil, err
		}
		for i, t := range session.Status().Tracks {
			after.Tracks[i].Lost = min(after.Tracks[i].Lost, t.Lost)
		}
	}
	for i, t := range after.Tracks {
		r.packets += t.Packets - before.Tracks[i].Packets
		r.repaired += t.Repaired - before.Tracks[i].Repaired
		r.unrepaired += t.GivenUp - before.Tracks[i].GivenUp
		if traits.InOrder {
			r.filled += t.Filled
			continue
		}
		if t.Lost > before.Tracks[i].Lost {
			r.unrepaired += t.Lost - before.Tracks[i].Lost
		}
	}
	if edge.drift != nil { // it makes sender reports by the time of arrival, which tells of the machine and not of the relay
		r.skews = []time.Duration{edge.drift()}
	}
	return r, g.err()
}
