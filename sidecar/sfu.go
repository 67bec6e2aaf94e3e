package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/iceservers"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// runSFU is the command "sfu".
func runSFU(ctx context.Context, settings config.Config, logger *slog.Logger) error {
	registry := prometheus.NewRegistry()
	turn, err := newTURN(settings.TURN, logger, registry)
	if err != nil {
		return err
	}
	authorize, err := newAuthorize(settings.JWT, logger)
	if err != nil {
		return err
	}
	if authorize != nil && settings.SFU.PublishToken == "" {
		settings.SFU.PublishToken = config.Secret(rand.Text()) // for the test publisher, which has no token
	}
	sfu, err := newSFU(settings.SFU, sfuParts{media.Transport{}, turn, authorize}, logger, registry)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", settings.SFU.Listen)
	if err != nil {
		return fmt.Errorf("open the port for the media server (SIDESTREAM_SFU_LISTEN): %w", err)
	}
	defer listener.Close()
	adapter, err := pionsfu.NewAdapter(pionsfu.AdapterConfig{
		BaseURL: "http://" + dialable(listener.Addr(), netip.Addr{}), PublishToken: string(settings.SFU.PublishToken),
	})
	if err != nil {
		return err
	}
	tests, err := testPublishers(settings.TestStreams, adapter, media.Transport{Loopback: true}, logger)
	if err != nil {
		return err
	}
	drain := func(ctx context.Context) error {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), settings.SFU.Drain)
		defer cancel()
		sfu.Drain(bounded)
		return ctx.Err()
	}
	return runStages(ctx, []part{sfu.Run, serveHTTP(listener, sfu)}, tests, []part{drain})
}

// sfuParts is what the built-in media server is given of its surroundings.
type sfuParts struct {
	transport media.Transport
	turn      *iceservers.Servers // nil: none
	authorize func(context.Context, string, adapters.Request) error
}

func newSFU(s config.SFU, with sfuParts, logger *slog.Logger, registerer prometheus.Registerer) (*pionsfu.Server, error) {
	c := pionsfu.Config{
		UDPAddr: s.MediaListen, TCPAddr: s.TCPListen, STUNServer: s.STUNServer, ICELite: s.ICELite, Transport: with.transport,
		PublicURL: text(s.PublicURL), OverflowURL: text(s.OverflowURL), AllowOrigin: s.AllowOrigin, LaxETags: s.LaxETags,
		PublishToken: string(s.PublishToken), PlayToken: string(s.PlayToken), APIToken: string(s.APIToken), Authorize: with.authorize,
		MaxSessions: s.MaxSessions, MaxHalfOpen: s.MaxHalfOpen, ConnectTimeout: s.ConnectTimeout,
		RatePerAddress: s.RatePerAddress, TrustedProxies: s.TrustedProxies,
		SimulatedLoss: s.SimulatedLoss, PublisherGrace: s.PublisherGrace, Logger: logger, Registerer: registerer,
	}
	for _, ip := range s.AdvertisedIPs {
		c.AdvertisedIPs = append(c.AdvertisedIPs, ip.String())
	}
	if with.turn != nil {
		c.ICEServers = with.turn.Session
	}
	sfu, err := pionsfu.New(c)
	if err != nil {
		return nil, fmt.Errorf("make the media server: %w", err)
	}
	return sfu, nil
}

// text is a URL, "" where there is none.
func text(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.String()
}

// testPublishers publish an endless test picture at the server under each of the names, as anybody would.
func testPublishers(names []string, server adapters.Adapter, transport media.Transport, logger *slog.Logger) ([]part, error) {
	if len(names) == 0 {
		return nil, nil
	}
	source, err := testsource.New(testsource.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	client := &whip.Client{NewPeerConnection: transport.NewPeerConnection, Logger: logger}
	var parts []part
	for _, name := range names {
		id := adapters.StreamID(name)
		if err := id.Validate(); err != nil {
			return nil, fmt.Errorf("test stream %q (SIDESTREAM_TEST_STREAMS): %w", name, err)
		}
		ep := server.Ingest(id)
		if ep.URL == nil {
			return nil, errors.New("test streams (SIDESTREAM_TEST_STREAMS): the media server cannot be published to")
		}
		at := *ep.URL
		q := at.Query()
		q.Del("sidestream") // by which a sidecar's relays are known
		at.RawQuery = q.Encode()
		parts = append(parts, republish(source, client, adapters.Endpoint{URL: &at, Header: ep.Header}, logger.With("stream", id)))
	}
	return parts, nil
}

// republish publishes a test source, and again where its session is lost.
func republish(source *testsource.Source, client *whip.Client, at adapters.Endpoint, logger *slog.Logger) part {
	return func(ctx context.Context) error {
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			err := source.Publish(ctx, client, at)
			if ctx.Err() != nil {
				return struct{}{}, backoff.Permanent(ctx.Err())
			}
			logger.Warn("test publisher lost its session; publishing again", "error", err)
			return struct{}{}, errors.Join(err, errLost)
		}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
		return err
	}
}
