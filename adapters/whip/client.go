// Package whip is the client's side of WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep): it publishes to and plays from
// any server that speaks them. Relays, tests and the demo's publisher call it; what flows over the connection is theirs.
// The forms that servers need as well are here too: the Link header (RFC 8288) and the SDP fragment (RFC 8840).
package whip

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

// Client opens sessions. Its zero value is ready for use, and its methods may be called concurrently.
type Client struct {
	// HTTP sends the requests; nil means one with the system's proxies and certificates. Redirects are followed here
	// rather than by it: 307 and 308, with body and header, at most five.
	HTTP *http.Client
	// NewPeerConnection makes the connection. One session may take more than one; ICE servers that the media server
	// names are in the configuration. Nil means media.Transport with loopback candidates: every codec, pion's default
	// interceptors.
	NewPeerConnection func(webrtc.Configuration) (*webrtc.PeerConnection, error)
	// AskICEServers has the endpoint asked for its ICE servers by OPTIONS before each offer. It costs a round trip, and
	// saves the second offer that is made when the connection fails without the servers which the answer to the first
	// one names. For endpoints that can be reached through TURN only.
	AskICEServers bool
	// Logger tells what was given up on the way; nil discards it.
	Logger *slog.Logger

	bounds bounds
}

// bounds are the waits that are not the caller's to choose; zero means the default.
type bounds struct {
	// gather is how long an offer waits for candidates. Those of the host are there within a millisecond; those of
	// STUN and TURN are trickled when they are late, where the server allows it.
	gather time.Duration
	// gatherAll is the same where it is known that candidates cannot be trickled. Pion gives up on a STUN server
	// after five seconds.
	gatherAll time.Duration
	// aggregate is how long candidates are collected after the answer before the first PATCH.
	aggregate time.Duration
	// direct is how long a session may take to connect without the ICE servers that came with its answer.
	direct time.Duration
	// late is how long the answer to an offer is waited for that was given up: the session it opens is to be deleted.
	late time.Duration
	// request bounds requests on which nothing depends that would be worth a longer wait: OPTIONS, PATCH, DELETE.
	request time.Duration
}

func (b bounds) orDefault() bounds {
	for _, f := range []struct {
		at    *time.Duration
		value time.Duration
	}{
		{&b.gather, 200 * time.Millisecond},
		{&b.gatherAll, 6 * time.Second},
		{&b.aggregate, 500 * time.Millisecond},
		{&b.direct, 2 * time.Second},
		{&b.late, 2 * time.Second},
		{&b.request, 5 * time.Second},
	} {
		if *f.at == 0 {
			*f.at = f.value
		}
	}
	return b
}

// Publish opens a WHIP session. Setup adds what is to be sent, as sendonly transceivers, before the offer is made; it
// is called again, with another connection, when the first cannot be used. It must leave
// OnConnectionStateChange alone: Connected and Wait tell the same.
//
// Publish returns once the answer is set; media flows when the session is Connected. (Where the answer names ICE servers
// that the connection lacks, it first sees whether the session connects without them.) When it fails, everything is freed
// and nothing is left at the server. The caller closes the session.
func (c *Client) Publish(
	ctx context.Context, ep adapters.Endpoint, setup func(*webrtc.PeerConnection) error,
) (*Session, error) {
	if setup == nil {
		return nil, errors.New("publish: nothing to send")
	}
	return c.open(ctx, "publish", ep, setup)
}

// Play opens a WHEP session, in the same way as Publish. Setup adds recvonly transceivers and the callbacks that
// receive; nil asks for one audio and one video. A server that answers with an offer of its own (406) is given an
// answer, for which setup is called again.
func (c *Client) Play(
	ctx context.Context, ep adapters.Endpoint, setup func(*webrtc.PeerConnection) error,
) (*Session, error) {
	if setup == nil {
		setup = receiveBoth
	}
	return c.open(ctx, "play", ep, setup)
}

func receiveBoth(pc *webrtc.PeerConnection) error {
	for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
		_, err := pc.AddTransceiverFromKind(kind,
			webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
		if err != nil {
			return err
		}
	}
	return nil
}

// opening is one call of Publish or Play.
type opening struct {
	client *Client
	op     string
	ep     adapters.Endpoint
	setup  func(*webrtc.PeerConnection) error
	bounds bounds
	logger *slog.Logger
	// servers are the ICE servers known so far; gather is how long the next offer waits for candidates.
	servers []webrtc.ICEServer
	gather  time.Duration
}

func (c *Client) open(
	ctx context.Context, op string, ep adapters.Endpoint, setup func(*webrtc.PeerConnection) error,
) (*Session, error) {
	if ep.URL == nil {
		return nil, fmt.Errorf("%s: no URL", op)
	}
	ep = withoutUserinfo(ep)
	o := &opening{client: c, op: op, ep: ep, setup: setup, bounds: c.bounds.orDefault(), logger: c.Logger}
	if o.logger == nil {
		o.logger = slog.New(slog.DiscardHandler)
	}
	o.logger = o.logger.With("url", plain(ep.URL))
	o.gather = o.bounds.gather
	if c.AskICEServers {
		if err := o.ask(ctx); err != nil {
			return nil, err
		}
	}
	s, err := o.offer(ctx)
	if err != nil {
		return nil, err
	}
	if s.direct(ctx, o.bounds.direct) {
		return s, nil
	}
	// Pion takes up ICE servers before it gathers, not after: the connection has to be made anew.
	o.logger.DebugContext(ctx, "no connection without the server's ICE servers; offering again")
	if !s.trickles {
		o.gather = o.bounds.gatherAll
	}
	o.servers = append(o.servers, s.named...)
	s.abandon(ctx)
	if err := ctx.Err(); err != nil {
		return nil, o.fail(err)
	}
	return o.offer(ctx)
}

// withoutUserinfo turns a name and password in the URL into the header field that they stand for, which redirects and
// Locations to other hosts do not lose.
func withoutUserinfo(ep adapters.Endpoint) adapters.Endpoint {
	if ep.URL.User == nil {
		return ep
	}
	u, header := *ep.URL, ep.Header.Clone()
	if header.Get("Authorization") == "" {
		if header == nil {
			header = http.Header{}
		}
		password, _ := u.User.Password()
		basic := base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password))
		header.Set("Authorization", "Basic "+basic)
	}
	u.User = nil
	return adapters.Endpoint{URL: &u, Header: header}
}

func (o *opening) fail(err error) error { return fmt.Errorf("%s %s: %w", o.op, plain(o.ep.URL), err) }

// ask takes ICE servers from the answer to OPTIONS (RFC 9725, section 4.6). A server need not give any, nor answer.
func (o *opening) ask(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, o.bounds.request)
	defer cancel()
	r := newRemote(o.client.HTTP, o.ep.Header)
	res, err := r.do(bounded, request{op: o.op, method: http.MethodOptions, url: o.ep.URL})
	if ctx.Err() != nil {
		return o.fail(ctx.Err())
	}
	if err != nil {
		o.logger.DebugContext(ctx, "endpoint does not tell its ICE servers", "error", err)
		return nil
	}
	if res.ok() {
		o.servers = ICEServers(res.header)
	}
	return nil
}

// connect makes a connection that is set up by the caller.
func (o *opening) connect() (*connection, error) {
	newPeerConnection := o.client.NewPeerConnection
	if newPeerConnection == nil {
		newPeerConnection = media.Transport{Loopback: true, Logger: o.client.Logger}.NewPeerConnection
	}
	pc, err := newPeerConnection(webrtc.Configuration{
		ICEServers: o.servers,
		// RFC 9725, section 4.4.1.
		BundlePolicy:  webrtc.BundlePolicyMaxBundle,
		RTCPMuxPolicy: webrtc.RTCPMuxPolicyRequire,
	})
	if err != nil {
		return nil, o.fail(err)
	}
	if err := o.setup(pc); err != nil {
		_ = pc.GracefulClose() // nothing has begun yet
		return nil, o.fail(err)
	}
	return newConnection(pc), nil
}

// offer makes one attempt: POST, answer, candidates.
func (o *opening) offer(ctx context.Context) (_ *Session, err error) {
	conn, err := o.connect()
	if err != nil {
		return nil, err
	}
	s := &Session{op: o.op, conn: conn, bounds: o.bounds, logger: o.logger, done: make(chan struct{})}
	defer func() {
		if err != nil {
			s.abandon(ctx)
		}
	}()
	var options webrtc.OfferOptions
	options.ICETricklingSupported = true
	offer, err := conn.pc.CreateOffer(&options)
	if err != nil {
		return nil, o.fail(err)
	}
	local, err := conn.describe(ctx, offer, o.gather)
	if err != nil {
		return nil, o.fail(err)
	}

	s.remote = newRemote(o.client.HTTP, o.ep.Header)
	res, err := o.post(ctx, s, local.sdp)
	switch {
	case ctx.Err() != nil:
		if res != nil && (res.ok() || res.code == http.StatusNotAcceptable) && s.begin(res, nil) != nil {
			o.logger.DebugContext(ctx, "the answer to an offer that was given up names no session")
		}
		return nil, o.fail(ctx.Err())
	case res == nil:
		return nil, err
	case res.code == http.StatusNotAcceptable && o.op == "play" && res.contentType() == ContentTypeSDP:
		if err = s.begin(res, err); err != nil {
			return nil, err
		}
		if err = o.counter(ctx, s, res); err != nil {
			return nil, err
		}
		return s, nil
	case !res.ok():
		return nil, res.refusal(o.op)
	}
	if err = s.begin(res, err); err != nil {
		return nil, err
	}
	if kind := res.contentType(); kind != ContentTypeSDP {
		return nil, o.fail(fmt.Errorf("answer of type %q instead of %s", legible(kind), ContentTypeSDP))
	}
	answer := webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: string(res.body)}
	if err = conn.pc.SetRemoteDescription(answer); err != nil {
		return nil, o.fail(fmt.Errorf("apply answer: %w", err))
	}
	if err = s.trickle(ctx, local); err != nil {
		return nil, err
	}
	return s, nil
}

// post sends an offer. Once the server has it, the answer is waited for a moment longer than ctx lasts.
func (o *opening) post(ctx context.Context, s *Session, offer string) (*response, error) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var sent atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		if !sent.Load() {
			cancel()
			return
		}
		time.AfterFunc(o.bounds.late, cancel)
	})
	defer stop()
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}
	return s.remote.do(httptrace.WithClientTrace(inner, trace), request{
		op: o.op, method: http.MethodPost, url: o.ep.URL,
		header: http.Header{"Content-Type": {ContentTypeSDP}}, body: []byte(offer),
	})
}

// counter answers the offer that a WHEP server made in place of an answer to ours.
func (o *opening) counter(ctx context.Context, s *Session, res *response) error {
	// There is no way back from an offer in pion, so the connection is given up for another one.
	s.conn.free()
	s.conn = nil
	o.servers = append(slices.Clone(o.servers), s.named...)
	s.named = nil
	conn, err := o.connect()
	if err != nil {
		return err
	}
	s.conn = conn
	offer := webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: string(res.body)}
	if err := conn.pc.SetRemoteDescription(offer); err != nil {
		return o.fail(fmt.Errorf("apply counter-offer: %w", err))
	}
	var options webrtc.AnswerOptions
	options.ICETricklingSupported = true
	answer, err := conn.pc.CreateAnswer(&options)
	if err != nil {
		return o.fail(fmt.Errorf("answer counter-offer: %w", err))
	}
	gather := o.gather
	if !s.trickles {
		gather = o.bounds.gatherAll
	}
	local, err := conn.describe(ctx, answer, gather)
	if err != nil {
		return o.fail(err)
	}
	if err := s.patch(ctx, "answer", ContentTypeSDP, []byte(local.sdp)); err != nil {
		return err
	}
	return s.trickle(ctx, local)
}
