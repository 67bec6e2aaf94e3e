package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// server is a node's media server. It outlives the sidecar.
type server struct {
	node   *node
	spots  []*spot // by stream
	report alarm
}

// spot is one stream at one media server.
type spot struct {
	server *server
	stream int

	// The sessions that publish here, 0 for none: a publisher's, the present sidecar's relay's, and what the relay of a
	// sidecar that has crashed left behind.
	published, relayed, left int
	relay                    *run // that relayed is of
	sessions                 []*session

	wants   bool // somebody would watch here
	playing bool // and does
	leaving bool // and has gone, which the server has not noticed
	asked   bool // a play is held at the gateway
	asks    int
	again   alarm
}

// session is what a child plays from its parent's server.
type session struct {
	at     *spot
	child  *run // nil: it is gone, and the server has not noticed
	source int  // what the server hands on by it
	open   bool // at the server
}

func (s *spot) name() adapters.StreamID { return s.server.node.w.names[s.stream] }

// source is what the server hands on.
func (s *spot) source() int {
	switch {
	case s.published != 0:
		return s.published
	case s.relayed != 0:
		return s.relayed
	}
	return s.left
}

// flows says whether media comes in here.
func (s *spot) flows() bool {
	for range len(s.server.node.w.nodes) + 1 {
		if s.published != 0 {
			return true
		}
		up := s.above()
		if up == nil || s.server.node.w.wires[up.server.node.i][s.server.node.i].media {
			return false
		}
		s = up
	}
	return false
}

// unaware says whether the server will yet notice that somebody is gone.
func (s *spot) unaware() bool {
	return s.left != 0 || s.leaving && s.playing ||
		slices.ContainsFunc(s.sessions, func(c *session) bool { return c.child == nil })
}

// above is the server that what is here comes from, nil where nothing comes from anywhere.
func (s *spot) above() *spot {
	if s.published != 0 || s.relayed == 0 || s.relay.liveAt < 0 || s.relay.over {
		return nil
	}
	up := s.relay.session
	if !up.open || up.source != up.at.source() {
		return nil
	}
	return up.at
}

// turn changes what is published here.
func (s *spot) turn(change func()) {
	w := s.server.node.w
	before := s.source()
	change()
	if s.source() == before {
		s.server.changed()
		return
	}
	if before != 0 {
		if s.playing {
			s.playing = false
			s.tryAgain(w.draw(span{300 * time.Millisecond, 2 * time.Second}))
		}
		for _, c := range s.sessions {
			c.open = false
			w.noticed(c)
		}
		s.sessions = s.sessions[:0]
	}
	w.mark("%s: the server hands on %d of %s", s.server.node.id, s.source(), s.name())
	w.watch.turned(w, s)
	s.server.changed()
}

// noticed lets a child see, some time later, that its parent's server has closed the session.
func (w *world) noticed(c *session) {
	if c.child == nil {
		return
	}
	d := w.draw(span{time.Millisecond, 200 * time.Millisecond})
	if w.chance(0.1) {
		d += w.draw(span{0, 4 * time.Second})
	}
	w.after(w.latency(c.at.server.node.i, c.child.s.node.i)+d, func() {
		if c.child != nil {
			c.closed(errParent)
		}
	})
}

// changed makes the server report, a moment later.
func (s *server) changed() {
	w := s.node.w
	s.report.ring(&w.queue, w.now+w.draw(w.options.report), func() {
		if p := s.node.sidecar; p != nil && p.swept {
			p.served(s.streams())
		}
	})
}

func (s *server) streams() []adapters.Stream {
	var streams []adapters.Stream
	for _, at := range s.spots {
		source := at.source()
		if source == 0 {
			continue
		}
		readers := len(at.sessions)
		if at.playing {
			readers++
		}
		streams = append(streams, adapters.Stream{
			ID: s.node.w.names[at.stream], Session: strconv.Itoa(source), Readers: readers, Tracks: tracks,
		})
	}
	return streams
}

var tracks = []adapters.Track{{Kind: "audio", MIME: "audio/opus"}, {Kind: "video", MIME: "video/H264"}}

// stop ends everything that the server does, and tells nobody.
func (s *server) stop() {
	for _, at := range s.spots {
		if at.source() != 0 || at.wants {
			at.published, at.relayed, at.left, at.relay = 0, 0, 0, nil
			for _, c := range at.sessions {
				c.open = false
				if r := c.child; r != nil && r.liveAt >= 0 && !r.over && r.session == c {
					s.node.w.watchTransport(r)
				}
			}
			at.sessions = nil
			at.playing, at.wants, at.asked = false, false, false
			s.node.w.watch.turned(s.node.w, at)
		}
	}
}

// restart ends everything that the server does; it is back at once, and empty.
func (s *server) restart() {
	for _, at := range s.spots {
		if at.source() != 0 {
			at.pushOut(6*time.Second, func() { at.published, at.left = 0, 0 })
		}
	}
	s.changed()
}

// pushOut changes what is published here and ends what a relay publishes, which the relay notices within some time.
func (s *spot) pushOut(notices time.Duration, change func()) {
	w, r := s.server.node.w, s.relay
	s.turn(func() {
		s.relayed, s.relay = 0, nil
		change()
	})
	if r != nil {
		w.after(w.draw(span{0, notices}), func() {
			if r.s.alive {
				r.end(errServer)
			}
		})
	}
}

// publish lets somebody publish here, who pushes out what a relay publishes.
func (s *spot) publish() {
	w := s.server.node.w
	w.mark("%s: %s is published", s.server.node.id, s.name())
	s.pushOut(500*time.Millisecond, func() { s.published, s.left = w.newSession(), 0 })
}

func (s *spot) unpublish() {
	if s.published == 0 {
		return
	}
	w := s.server.node.w
	w.mark("%s: %s is published no more", s.server.node.id, s.name())
	s.turn(func() { s.published = 0 })
}

// want lets somebody watch here.
func (s *spot) want() {
	if s.wants {
		return
	}
	s.server.node.w.mark("%s: somebody would watch %s", s.server.node.id, s.name())
	s.wants, s.leaving = true, false
	s.play()
}

// leave lets the last one go; the server may notice late.
func (s *spot) leave() {
	if !s.wants {
		return
	}
	w := s.server.node.w
	w.mark("%s: nobody watches %s any more", s.server.node.id, s.name())
	s.wants = false
	if s.asked {
		s.asked = false
		if p := s.server.node.sidecar; p != nil {
			p.unhold(s.stream)
		}
	}
	if !s.playing {
		return
	}
	d := w.draw(span{0, 50 * time.Millisecond})
	if w.chance(0.2) {
		d = w.draw(span{0, 15 * time.Second})
	}
	s.leaving = true
	w.after(d, func() {
		if s.leaving {
			w.mark("%s: the server notices that nobody watches %s", s.server.node.id, s.name())
			s.leaving, s.playing = false, false
			s.server.changed()
		}
	})
}

// play is what a viewer's player does, again and again.
func (s *spot) play() {
	p := s.server.node.sidecar
	switch {
	case !s.wants || s.playing || s.asked:
	case s.source() != 0:
		s.playing = true
		s.server.changed()
	case p == nil:
		s.tryAgain(time.Second)
	default:
		s.asked = p.acquire(s.stream)
		if !s.asked {
			s.tryAgain(s.server.node.w.draw(span{time.Second, 3 * time.Second}))
		}
	}
}

func (s *spot) tryAgain(d time.Duration) {
	w := s.server.node.w
	s.again.ring(&w.queue, w.now+d, s.play)
}

// answered is what the gateway tells a viewer whose play it held.
func (s *spot) answered() {
	s.asked = false
	s.tryAgain(s.server.node.w.draw(span{0, 20 * time.Millisecond}))
}

// open begins a child's session, nil where nothing is published here.
func (s *spot) open(child *run) *session {
	if s.source() == 0 {
		return nil
	}
	c := &session{at: s, child: child, source: s.source(), open: true}
	s.sessions = append(s.sessions, c)
	s.server.changed()
	return c
}

// done ends a child's session when the server has noticed.
func (c *session) done() {
	if !c.open {
		return
	}
	c.open = false
	c.at.server.node.w.mark("%s: the server notices that a reader of %s is gone", c.at.server.node.id, c.at.name())
	c.at.sessions = slices.DeleteFunc(c.at.sessions, func(o *session) bool { return o == c })
	c.at.server.changed()
}
