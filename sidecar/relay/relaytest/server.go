// Package relaytest is what stands on both sides of a relay, for its tests and its bench: a Source that plays generated
// streams over WHEP, and a Sink that takes publications over WHIP and counts what comes. Both are ordinary pion servers
// with pion's own tracks and interceptors, so that nothing of the relay's is tested against itself. They run on this
// machine and are no servers for anybody else.
package relaytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// server is the signalling that Source and Sink share: POST /{stream}, DELETE /session/{id}.
type server struct {
	api      *webrtc.API
	listener net.Listener
	accept   func(name string, p *peer) error

	// Hook, if set, is called for each POST before it is answered; an error refuses it.
	hook func(r *http.Request) error
	// extensions, if set, are promised to each session, and serve what is below its address.
	extensions *Extensions

	group    sync.WaitGroup
	mu       sync.Mutex
	closed   bool
	next     int
	sessions map[string]*peer // by path
	opened   int
	deleted  int
	changed  chan struct{} // closed and replaced when any of these counts changes
}

// peer is one connection.
type peer struct {
	pc               *webrtc.PeerConnection
	connected, ended chan struct{}
	connect, end     func() // close these

	mu     sync.Mutex
	closed bool
	group  sync.WaitGroup
}

// bare is a peer whose connection somebody else watches.
func bare(pc *webrtc.PeerConnection) *peer {
	p := &peer{pc: pc, connected: make(chan struct{}), ended: make(chan struct{})}
	p.connect = sync.OnceFunc(func() { close(p.connected) })
	p.end = sync.OnceFunc(func() { close(p.ended) })
	return p
}

func newPeer(pc *webrtc.PeerConnection) *peer {
	p := bare(pc)
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		switch state {
		case webrtc.PeerConnectionStateConnected:
			p.connect()
		case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
			p.end()
		}
	})
	return p
}

// use runs a peer over a client's session until ctx ends or the connection does, and closes that.
func (p *peer) use(ctx context.Context, session *whip.Session, begin func()) error {
	begin()
	err := session.Connected(ctx)
	if err == nil {
		p.connect()
		err = session.Wait(ctx)
	}
	p.end()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = errors.Join(err, session.Close(bounded))
	p.run()
	return err
}

// run waits for the end and for what was begun by do. Pion may still call back when it has closed.
func (p *peer) run() {
	<-p.ended
	_ = p.pc.GracefulClose()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.group.Wait()
}

// do runs f until it returns, which it shall soon after the peer has ended.
func (p *peer) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.group.Go(f)
	}
}

func newServer(n transport.Net, register func(*webrtc.MediaEngine, *interceptor.Registry) error) (*server, error) {
	engine := &webrtc.MediaEngine{}
	if err := engine.RegisterDefaultCodecs(); err != nil {
		return nil, err
	}
	registry := &interceptor.Registry{}
	if err := register(engine, registry); err != nil {
		return nil, err
	}
	var settings webrtc.SettingEngine
	settings.SetSRTPReplayProtectionWindow(4096)
	settings.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	if n != nil {
		settings.SetNet(n)
	} else {
		settings.SetIncludeLoopbackCandidate(true)
		settings.SetIPFilter(net.IP.IsLoopback)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &server{
		api: webrtc.NewAPI(
			webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(registry), webrtc.WithSettingEngine(settings)),
		listener: listener, sessions: make(map[string]*peer), changed: make(chan struct{}),
	}, nil
}

// Endpoint is where a stream is played from, or published to.
func (s *server) Endpoint(name string) adapters.Endpoint {
	return adapters.Endpoint{URL: &url.URL{Scheme: "http", Host: s.listener.Addr().String(), Path: "/" + name}}
}

// Run serves until ctx ends, and ends all sessions then.
func (s *server) Run(ctx context.Context) error {
	web := &http.Server{Handler: http.HandlerFunc(s.serve)}
	s.group.Go(func() {
		<-ctx.Done()
		_ = web.Close()
	})
	err := web.Serve(s.listener)
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Vanish()
	s.group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Vanish ends every connection at once, as a server does that is stopped.
func (s *server) Vanish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.sessions {
		p.end()
	}
}

// Await waits until the condition holds of the sessions opened and deleted (by DELETE) so far.
func (s *server) Await(ctx context.Context, condition func(opened, deleted int) bool) error {
	for {
		s.mu.Lock()
		opened, deleted, changed := s.opened, s.deleted, s.changed
		s.mu.Unlock()
		if condition(opened, deleted) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d sessions opened, %d deleted: %w", opened, deleted, ctx.Err())
		}
	}
}

// AwaitIdle waits until no connection is left, whether or not its session was deleted.
func (s *server) AwaitIdle(ctx context.Context) error {
	s.mu.Lock()
	peers := slices.Collect(maps.Values(s.sessions))
	s.mu.Unlock()
	for _, p := range peers {
		select {
		case <-p.ended:
		case <-ctx.Done():
			return fmt.Errorf("a connection is left: %w", ctx.Err())
		}
	}
	return nil
}

func (s *server) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.group.Add(1)
	s.mu.Unlock()
	defer s.group.Done()
	if s.extensions != nil && s.extensions.serve(w, r) {
		return
	}
	switch r.Method {
	case http.MethodPost:
		s.post(w, r)
	case http.MethodDelete:
		s.mu.Lock()
		p, ok := s.sessions[r.URL.Path]
		if ok {
			delete(s.sessions, r.URL.Path)
			s.deleted++
			s.changedLocked()
			p.end()
		}
		s.mu.Unlock()
		if !ok {
			http.Error(w, "no such session", http.StatusNotFound)
		}
	default:
		http.Error(w, "POST and DELETE only", http.StatusMethodNotAllowed)
	}
}

func (s *server) post(w http.ResponseWriter, r *http.Request) {
	offer, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// Only now, with the body read, does the request's context end when the client goes.
	if s.hook != nil {
		if err := s.hook(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	location, answer, err := s.open(strings.TrimPrefix(r.URL.Path, "/"), string(offer))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/sdp")
	w.Header().Set("Location", location)
	if s.extensions != nil {
		s.extensions.promise(w.Header(), location)
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, answer)
}

func (s *server) open(name, offer string) (location, answer string, err error) {
	pc, err := s.api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return "", "", err
	}
	p := newPeer(pc)
	if answer, err = s.negotiate(name, p, offer); err != nil {
		p.end()
		p.run()
		return "", "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // Run has begun to end the others
		p.end()
	}
	s.next++
	location = "/session/" + strconv.Itoa(s.next)
	s.sessions[location] = p
	s.opened++
	s.changedLocked()
	s.group.Go(p.run)
	return location, answer, nil
}

func (s *server) negotiate(name string, p *peer, offer string) (string, error) {
	if err := p.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return "", err
	}
	if err := s.accept(name, p); err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(p.pc)
	answer, err := p.pc.CreateAnswer(nil)
	if err != nil {
		return "", err
	}
	if err := p.pc.SetLocalDescription(answer); err != nil {
		return "", err
	}
	<-gathered
	return p.pc.LocalDescription().SDP, nil
}
