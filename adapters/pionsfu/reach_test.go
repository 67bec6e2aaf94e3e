package pionsfu

import (
	"net"
	"strings"
	"testing"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// A client that has TCP alone publishes, another plays.
func TestMediaOverTCP(t *testing.T) {
	t.Parallel()
	s := run(t, Config{TCPAddr: "127.0.0.1:0"})
	a := s.publish(t, "candidates")
	_, port, _ := net.SplitHostPort(s.TCPAddr().String())
	if want := " 127.0.0.1 " + port + " typ host tcptype passive"; strings.Count(a.body, want) != 1 || !strings.Contains(a.body, " udp ") {
		t.Errorf("no candidate %q in the answer:\n%s", want, a.body)
	}
	h := s.clients(t)
	h.Client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		engine := &webrtc.MediaEngine{}
		if err := media.RegisterCodecs(engine); err != nil {
			return nil, err
		}
		var settings webrtc.SettingEngine
		settings.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4})
		settings.SetIncludeLoopbackCandidate(true)
		settings.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
		return webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithSettingEngine(settings)).NewPeerConnection(c)
	}
	publisher := h.Publish(t, "tcp")
	publisher.WaitConnected()
	pair, err := publisher.Session.PeerConnection().SCTP().Transport().ICETransport().GetSelectedCandidatePair()
	if err != nil || pair.Remote.Protocol != webrtc.ICEProtocolTCP {
		t.Fatalf("the path is %v: %v", pair, err)
	}
	h.Play(t, "tcp").WaitFrames(20)
	s.clients(t).Play(t, "tcp").WaitFrames(20)
}

// Clients of IPv4 and of IPv6 see the same stream.
func TestDualStack(t *testing.T) {
	t.Parallel()
	s := run(t, Config{UDPAddr: ":0"})
	families := make(map[bool]bool)
	for _, a := range s.UDPAddrs() {
		families[a.Addr().Is4()] = true
	}
	if len(families) < 2 {
		t.Skip("this machine has one family of addresses")
	}
	for _, only := range []func(net.IP) bool{
		func(ip net.IP) bool { return ip.To4() != nil },
		func(ip net.IP) bool { return ip.To4() == nil },
	} {
		h := s.clients(t)
		h.Client.NewPeerConnection = media.Transport{Loopback: true, Filter: only}.NewPeerConnection
		stream := h.NewStream(t)
		publisher := h.Publish(t, stream)
		publisher.WaitConnected()
		h.Play(t, stream).WaitFrames(10)
	}
}

// A STUN server says at which address a port is seen; that goes before the port's own.
func TestAddressBySTUN(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	defer func() {
		_ = server.Close()
		<-served
	}()
	go func() {
		defer close(served)
		for b := make([]byte, 1500); ; {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo([]byte("nonsense"), from)
			ask := &stun.Message{Raw: b[:n]}
			if ask.Decode() != nil {
				continue
			}
			answer, err := stun.Build(ask, stun.BindingSuccess, &stun.XORMappedAddress{IP: net.IPv4(203, 0, 113, 9), Port: 40000})
			if err == nil {
				_, _ = server.WriteTo(answer.Raw, from)
			}
		}
	}()
	s := run(t, Config{STUNServer: server.LocalAddr().String(), AdvertisedIPs: []string{"203.0.113.7"}})
	a := s.publish(t, "stun")
	own := s.UDPAddrs()[0]
	var at []int
	for _, candidate := range []string{
		" 203.0.113.7 " + itoa(own.Port()) + " typ host", " 203.0.113.9 40000 typ host", " 127.0.0.1 " + itoa(own.Port()) + " typ host",
	} {
		at = append(at, strings.Index(a.body, candidate))
	}
	if at[0] < 0 || at[1] < at[0] || at[2] < at[1] {
		t.Errorf("candidates at %v in:\n%s", at, a.body)
	}
	h := s.clients(t)
	h.Publish(t, "on").WaitConnected()

	// Nobody there: the server runs all the same.
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	run(t, Config{STUNServer: silent.LocalAddr().String()}).publish(t, "all the same")
}
