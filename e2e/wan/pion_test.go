package wan_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// Our conn must give pion the allocation-free path that a *net.UDPConn has.
var _ ice.AddrPortReaderWriter = (*wan.PacketConn)(nil)

// A peer connection over pion's UDP mux feels the distance, and gets through loss.
func TestPeerConnectionOverLink(t *testing.T) {
	network := wan.NewNetwork()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- network.Run(ctx) }()
	defer func() { cancel(); <-done }()

	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	const roundTrip = 60 * time.Millisecond
	link := wan.NewLink(1, wan.Params{Delay: roundTrip / 2, Loss: 0.02})
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{
		UDPConn: network.PacketConn(socket, func(netip.AddrPort) wan.Link { return link }),
	})
	defer mux.Close()

	near, far := peer(t, nil), peer(t, mux)
	defer far.GracefulClose()  //nolint:errcheck // the end of the test
	defer near.GracefulClose() //nolint:errcheck // the end of the test
	far.OnDataChannel(func(d *webrtc.DataChannel) {
		d.OnMessage(func(m webrtc.DataChannelMessage) { _ = d.Send(m.Data) })
	})
	channel, err := near.CreateDataChannel("ping", nil)
	if err != nil {
		t.Fatal(err)
	}
	open, back := make(chan struct{}), make(chan struct{}, 1)
	channel.OnOpen(func() { close(open) })
	channel.OnMessage(func(webrtc.DataChannelMessage) { back <- struct{}{} })
	connect(t, near, far)

	limit := time.After(20 * time.Second)
	await := func(c <-chan struct{}, what string) {
		select {
		case <-c:
		case <-limit:
			t.Fatalf("%s: nothing", what)
		}
	}
	await(open, "open")
	best := time.Hour
	for range 5 {
		start := time.Now()
		if err := channel.Send([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		await(back, "ping")
		best = min(best, time.Since(start))
	}
	if best < roundTrip || best > roundTrip+30*time.Millisecond {
		t.Errorf("the best round trip took %v, want %v", best, roundTrip)
	}
	if in, out := link.In.Counters(), link.Out.Counters(); in.Packets < 10 || out.Packets < 10 {
		t.Errorf("the link saw %+v and %+v", in, out)
	}
}

func peer(t *testing.T, mux ice.UDPMux) *webrtc.PeerConnection {
	t.Helper()
	var settings webrtc.SettingEngine
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	settings.SetIPFilter(net.IP.IsLoopback)
	if mux != nil {
		settings.SetICEUDPMux(mux)
	}
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(settings)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

func connect(t *testing.T, near, far *webrtc.PeerConnection) {
	t.Helper()
	describe := func(from, to *webrtc.PeerConnection, make func() (webrtc.SessionDescription, error)) {
		description, err := make()
		if err != nil {
			t.Fatal(err)
		}
		gathered := webrtc.GatheringCompletePromise(from)
		if err := from.SetLocalDescription(description); err != nil {
			t.Fatal(err)
		}
		<-gathered
		if err := to.SetRemoteDescription(*from.LocalDescription()); err != nil {
			t.Fatal(err)
		}
	}
	describe(near, far, func() (webrtc.SessionDescription, error) { return near.CreateOffer(nil) })
	describe(far, near, func() (webrtc.SessionDescription, error) { return far.CreateAnswer(nil) })
}
