package relay

import (
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
)

// RequestKeyFrame asks the source for a key frame, now or as soon as one may be asked for again.
func (s *Session) RequestKeyFrame() {
	s.mu.Lock()
	video := s.laneLocked(webrtc.RTPCodecTypeVideo)
	s.mu.Unlock()
	if video != nil {
		video.requestKeyFrame()
	}
}

// greet asks for a key frame for readers who have just come to what is relayed, and whom their server does not hear.
func (m *Manager) greet(server map[adapters.StreamID]adapters.Stream) {
	for id, e := range m.entries {
		if !e.run.live() || server[id].Readers <= m.server[id].Readers {
			continue
		}
		if session, ok := e.run.session.(interface{ RequestKeyFrame() }); ok {
			session.RequestKeyFrame()
		}
	}
}
