package whip_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// A player that reads one stream until it ends or ctx does.
func ExampleClient_Play() {
	play := func(ctx context.Context, u *url.URL, token string) error {
		ep := adapters.Endpoint{URL: u, Header: http.Header{"Authorization": {"Bearer " + token}}}
		var c whip.Client
		session, err := c.Play(ctx, ep, func(pc *webrtc.PeerConnection) error {
			pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
				for {
					if _, _, err := track.ReadRTP(); err != nil {
						return
					}
				}
			})
			_, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
				webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			return err
		})
		if err != nil {
			return err // a *whip.StatusError where the server refused
		}
		defer func() {
			// ctx may have ended by now; the session is deleted all the same.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = session.Close(end)
		}()
		return session.Wait(ctx)
	}
	_ = play
}

func ExampleParseLinks() {
	h := http.Header{"Link": {`<turn:t.example?transport=udp>; rel="ice-server"; username="u"; credential="a,b"`}}
	for _, link := range whip.ParseLinks(h) {
		credential, _ := link.Param("credential")
		fmt.Println(link.Target, link.HasRel("ice-server"), credential)
	}
	// Output: turn:t.example?transport=udp true a,b
}
