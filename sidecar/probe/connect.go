package probe

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/report"
	"github.com/pion/logging"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// marks are the header extensions that a publisher sends, with what it puts there.
var marks = map[string][]byte{
	media.AbsCaptureTime: {0xec, 0x9d, 0x10, 0x00, 0x12, 0x34, 0x56, 0x78},
	uriAudioLevel:        {0x80 | 23},
	uriOrientation:       {0x01}, // a quarter turn
	uriPlayoutDelay:      {0x00, 0xa0, 0x64},
}

const (
	uriAudioLevel   = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	uriOrientation  = "urn:3gpp:video-orientation"
	uriPlayoutDelay = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
)

// mark is a header extension as a viewer sees it.
type mark struct {
	same    int    // times with the value that was sent
	foreign int    // times with the value that was sent under another name: not mapped by URI
	other   string // a value that nobody sent
}

func (m mark) with(uri string, value []byte) mark {
	if want, ok := marks[uri]; ok && string(value) == string(want) {
		m.same++
		return m
	}
	for other, sent := range marks {
		// One byte alone may mean anything.
		if other != uri && len(sent) > 1 && string(value) == string(sent) {
			m.foreign++
			return m
		}
	}
	m.other = string(value)
	return m
}

// connecting says what a connection is for.
type connecting struct {
	mux          ice.UDPMux
	viewer       bool // it receives
	repairs      bool // and asks for what it misses
	interceptors []interceptor.Factory
}

// connect makes a connection. Its codecs are the relay's. A viewer names header extensions in another order than a publisher,
// so that their ids differ, and takes packets that come again.
func (p *Probe) connect(config webrtc.Configuration, how connecting) (*webrtc.PeerConnection, error) {
	engine := &webrtc.MediaEngine{}
	if how.viewer {
		for _, uri := range []string{uriPlayoutDelay, uriOrientation, uriAudioLevel, media.AbsCaptureTime} {
			for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
				if audio := kind == webrtc.RTPCodecTypeAudio; uri != media.AbsCaptureTime && audio != (uri == uriAudioLevel) {
					continue
				}
				if err := engine.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, kind); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := media.RegisterCodecs(engine); err != nil {
		return nil, err
	}
	registry := &interceptor.Registry{}
	if how.viewer {
		receiver, err := report.NewReceiverInterceptor()
		if err != nil {
			return nil, err
		}
		registry.Add(receiver)
		if err := webrtc.ConfigureTWCCSender(engine, registry); err != nil {
			return nil, err
		}
	}
	if how.repairs {
		if err := webrtc.ConfigureNack(engine, registry); err != nil {
			return nil, err
		}
	}
	for _, f := range how.interceptors {
		registry.Add(f)
	}
	var s webrtc.SettingEngine
	s.LoggerFactory = &logging.DefaultLoggerFactory{Writer: io.Discard}
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	s.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4, webrtc.NetworkTypeUDP6})
	s.SetIncludeLoopbackCandidate(true)
	s.SetICETimeouts(3*time.Second, 3*time.Second, time.Second)
	if how.repairs {
		s.SetSRTPReplayProtectionWindow(1024)
	} else {
		s.DisableSRTPReplayProtection(true)
	}
	if how.mux != nil {
		s.SetICEUDPMux(how.mux)
	}
	return webrtc.NewAPI(
		webrtc.WithSettingEngine(s), webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(registry),
	).NewPeerConnection(config)
}

// await blocks until state says yes, looking again whenever its channel closes, for so long at most.
func await(ctx context.Context, bound time.Duration, state func() (bool, <-chan struct{})) bool {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	for {
		ok, changed := state()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// ntp is a moment as RTCP writes it (RFC 3550, section 4).
func ntp(t time.Time) uint64 {
	const since1900 = 2208988800
	nanos := uint64(t.UnixNano()) //nolint:gosec // after 1970
	return (nanos/1e9+since1900)<<32 | (nanos%1e9)<<32/1e9
}

// ntpBetween is the time from one NTP timestamp to another.
func ntpBetween(from, to uint64) time.Duration {
	d := int64(to - from) //nolint:gosec // the difference has a sign
	return time.Duration(d>>32)*time.Second + time.Duration((d&0xffffffff)*1e9>>32)
}

func itoa[T ~uint8](n T) string { return strconv.Itoa(int(n)) }
