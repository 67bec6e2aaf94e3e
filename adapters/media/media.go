// Package media is the RTP plumbing which the built-in SFU and the relay share: what a WebRTC connection offers, and how
// packets enter and leave it beneath pion's tracks. A Conn hands over each decrypted packet in the goroutine that reads
// the connection, with retransmissions unwrapped and losses asked for again; a Sender rewrites and sends packets and
// answers what the far end lost from a History. Nothing here starts a goroutine: feedback is sent when packets arrive.
package media

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/transport/v4"
	"github.com/pion/transport/v4/packetio"
	"github.com/pion/webrtc/v4"
)

const (
	// A retransmission over a path of 200 ms comes back hundreds of packets late; pion's default window of 64 takes it
	// for a replay and drops it silently. A larger one costs: the window is shifted for every packet.
	replayWindow = 1024

	iceDisconnected = 3 * time.Second // silence after which a connection is in doubt
	iceFailed       = 3 * time.Second // further silence after which it is gone
	iceKeepalive    = time.Second
)

// Transport is how connections reach the network. The zero value gathers the machine's addresses, without loopback, and
// opens a port for each connection.
type Transport struct {
	// UDPMux shares one UDP port among all connections. The owner closes it after them.
	UDPMux ice.UDPMux
	// Ports are the sockets under UDPMux, where they are ours: the connections on them have the short way then.
	Ports []*Port
	// TCPMux shares one TCP port likewise; nil: media goes by UDP alone.
	TCPMux ice.TCPMux
	// Lite leaves it to the far end to check connectivity (RFC 8445, section 2.5).
	Lite bool
	// Net replaces the machine's network; tests put a virtual one here.
	Net transport.Net
	// Loopback gathers loopback candidates too.
	Loopback bool
	// Filter says which of the machine's addresses are used; nil: all.
	Filter func(net.IP) bool
	// AdvertisedIPs take the place of the addresses of host candidates.
	AdvertisedIPs []string
	// Logger receives what pion has to say, at debug level; nil discards it.
	Logger *slog.Logger
}

// settings applies the transport, and what every connection of ours wants, to a new engine.
func (t Transport) settings() (webrtc.SettingEngine, error) {
	var s webrtc.SettingEngine
	s.SetSRTPReplayProtectionWindow(replayWindow)
	s.SetSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	// The cookie exchange protects against spoofed addresses; ICE has already verified this one, and the exchange
	// costs a round trip.
	s.SetDTLSInsecureSkipHelloVerify(true)
	s.SetICETimeouts(iceDisconnected, iceFailed, iceKeepalive)
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	networks := []webrtc.NetworkType{webrtc.NetworkTypeUDP4, webrtc.NetworkTypeUDP6}
	if t.TCPMux != nil {
		networks = append(networks, webrtc.NetworkTypeTCP4, webrtc.NetworkTypeTCP6)
		s.SetICETCPMux(t.TCPMux)
	}
	s.SetNetworkTypes(networks)
	s.SetLite(t.Lite)
	s.SetIncludeLoopbackCandidate(t.Loopback)
	if t.Filter != nil {
		s.SetIPFilter(t.Filter)
	}
	s.LoggerFactory = loggerFactory{t.Logger}
	if t.UDPMux != nil {
		s.SetICEUDPMux(t.UDPMux)
	}
	if t.Net != nil {
		s.SetNet(t.Net)
	}
	if len(t.AdvertisedIPs) > 0 {
		rule := webrtc.ICEAddressRewriteRule{
			External: t.AdvertisedIPs, AsCandidateType: webrtc.ICECandidateTypeHost, Mode: webrtc.ICEAddressRewriteReplace,
		}
		if err := s.SetICEAddressRewriteRules(rule); err != nil {
			return s, fmt.Errorf("advertise %s: %w", t.AdvertisedIPs, err)
		}
	}
	return s, nil
}

// NewPeerConnection makes a connection whose media is read and written by pion's own tracks and interceptors, for
// programs that want frames rather than packets: publishers, players, tests. The caller closes it.
func (t Transport) NewPeerConnection(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
	engine := &webrtc.MediaEngine{}
	if err := RegisterCodecs(engine); err != nil {
		return nil, err
	}
	registry := &interceptor.Registry{}
	if err := webrtc.RegisterDefaultInterceptors(engine, registry); err != nil {
		return nil, err
	}
	settings, err := t.settings()
	if err != nil {
		return nil, err
	}
	return newPeerConnection(config, settings, engine, registry)
}

func newPeerConnection(config webrtc.Configuration, s webrtc.SettingEngine, engine *webrtc.MediaEngine, registry *interceptor.Registry) (*webrtc.PeerConnection, error) {
	if config.ICETransportPolicy == webrtc.ICETransportPolicyRelay {
		// There is nothing better to wait for.
		s.SetRelayAcceptanceMinWait(0)
	}
	return webrtc.NewAPI(
		webrtc.WithSettingEngine(s), webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(registry),
	).NewPeerConnection(config)
}

// A tap stands where pion keeps the packets of one SSRC until somebody reads them. What is written to it goes to the
// Conn at once; who reads it waits until the stream is closed.
type tap struct {
	deliver func(b []byte)
	closed  chan struct{}
}

var _ io.ReadWriteCloser = (*tap)(nil)

func (c *Conn) tapFor(kind packetio.BufferPacketType, ssrc uint32) io.ReadWriteCloser {
	t := &tap{closed: make(chan struct{})}
	if kind == packetio.RTCPBufferPacket {
		t.deliver = func(b []byte) { c.receiveRTCP(ssrc, b) }
	} else {
		source := &source{conn: c, ssrc: ssrc}
		t.deliver = func(b []byte) {
			c.reading.Lock()
			defer c.reading.Unlock()
			if d := c.direct.Load(); d != nil && d.sources[ssrc] != nil {
				return // pion does not know which of its packets have been here before
			}
			burst := c.burst
			c.burst = nil
			source.receive(b)
			c.burst = burst
		}
	}
	return t
}

func (t *tap) Write(b []byte) (int, error) {
	t.deliver(b)
	return len(b), nil
}

func (t *tap) Read([]byte) (int, error) {
	<-t.closed
	return 0, io.EOF
}

func (t *tap) Close() error {
	select {
	case <-t.closed:
	default:
		close(t.closed)
	}
	return nil
}
