package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/janus/janustest"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// binaryVariable tells the tests that TestJanus starts anew which program is under test.
const binaryVariable = "E2E_BINARY"

// TestJanus runs TestJanusInside in a network in which Janus can be.
func TestJanus(t *testing.T) {
	if why := janustest.Missing(); why != "" {
		t.Skip(why)
	}
	var out bytes.Buffer
	code, err := janustest.Inside(&out, []string{binaryVariable + "=" + binary}, "-test.run=^TestJanusInside$", "-test.v")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	t.Log(out.String())
	if err != nil || code != 0 {
		t.Errorf("tests with Janus: exit code %d, %v", code, err)
	}
}

// TestJanusInside is a cascade between a Janus and a built-in server, both ways, for each codec.
func TestJanusInside(t *testing.T) {
	if janustest.Host() == "" {
		t.Skip("TestJanus runs it")
	}
	for _, codec := range []string{"h264", "vp8"} {
		t.Run(codec, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			server := janustest.Start(t, janustest.Options{AdminKey: "key"})
			janus, built := startPair(ctx, t, server.URL)
			t.Run("from Janus", func(t *testing.T) { playAcross(ctx, t, codec, "live/from-janus", janus, built) })
			t.Run("to Janus", func(t *testing.T) { playAcross(ctx, t, codec, "live/to-janus", built, janus) })
		})
	}
}

// playAcross publishes at one site and plays at the other, which has nobody play it before, nor after.
func playAcross(ctx context.Context, t *testing.T, codec, stream string, origin, edge *site) {
	published := time.Now()
	source, err := testsource.New(testsource.Options{Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	publishing, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- source.Publish(publishing, newClient(), endpoint(t, origin.url+"/whip/"+stream)) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	edge.until(ctx, t, "the stream is known", func(st siteStatus) bool {
		return len(st.Streams) == 1 && st.Streams[0].Stream == stream && len(st.Relays) == 0
	})
	t.Logf("announced at the edge after %s", time.Since(published).Round(time.Millisecond))

	v := watch(ctx, t, edge.url+"/whep/"+stream)
	if err := v.Wait(ctx, func(r player.Report) bool { return r.Frames >= 100 && r.Audio >= 150 && r.KeyFrames > 0 }); err != nil {
		t.Fatal(err)
	}
	r := v.Report()
	t.Logf("%s: first frame after %s, %d frames, %d missing, %d repeated, %d of sound; age %s", r.Video,
		r.FirstFrame.Round(time.Millisecond), r.Frames, r.Missing, r.Repeated, r.Audio, r.Median.Round(time.Millisecond))
	if r.Missing > 0 || r.Repeated > 0 {
		t.Errorf("%d of %d frames missing, %d repeated", r.Missing, r.Stamped, r.Repeated)
	}
	for _, s := range []*site{origin, edge} {
		s.until(ctx, t, "one reader", func(st siteStatus) bool { return len(st.Streams) == 1 && st.Streams[0].Readers == 1 })
	}
	if err := v.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	origin.until(ctx, t, "no viewer, no bytes", func(st siteStatus) bool {
		return len(st.Streams) == 1 && len(st.Streams[0].Holders) == 1 && st.Streams[0].Readers == 0
	})
	stop()
	for _, s := range []*site{origin, edge} {
		s.until(ctx, t, "the stream is gone", func(st siteStatus) bool { return len(st.Streams) == 0 && len(st.Relays) == 0 })
	}
}

// startPair starts a sidecar beside a Janus and one with the built-in server, in two clusters.
func startPair(ctx context.Context, t *testing.T, janusURL string) (janus, built *site) {
	t.Helper()
	ports := freePorts(t, 7)
	at := func(i int) string { return net.JoinHostPort(janustest.Host(), fmt.Sprint(ports[i])) }
	begin := func(cluster string, first int, more ...string) *site {
		s := &site{url: "http://" + at(first+1), admin: "http://" + at(first+2)}
		s.process = start(t, append([]string{
			"SIDESTREAM_CLUSTER=" + cluster,
			"SIDESTREAM_STATE_DIR=" + t.TempDir(),
			"SIDESTREAM_POD_IP=" + janustest.Host(),
			"SIDESTREAM_PEER_SECURITY=plaintext",
			"SIDESTREAM_PEER_STATIC=" + at(0) + "," + at(3),
			"SIDESTREAM_PEER_LISTEN=" + at(first),
			"SIDESTREAM_GATEWAY_LISTEN=" + at(first+1),
			"SIDESTREAM_ADMIN_LISTEN=" + at(first+2),
			"SIDESTREAM_RELAY_LINGER=1s",
		}, more...), "run")
		return s
	}
	janus = begin("singapore", 0,
		"SIDESTREAM_ADAPTER_NAME=janus", "SIDESTREAM_ADAPTER_URL="+janusURL,
		"SIDESTREAM_ADAPTER_JANUS_ADMIN_KEY=key",
	)
	built = begin("germany", 3, "SIDESTREAM_SFU_LISTEN="+at(6), "SIDESTREAM_SFU_MEDIA_LISTEN="+net.JoinHostPort(janustest.Host(), "0"))
	for _, s := range []*site{janus, built} {
		s.until(ctx, t, "its peer", func(st siteStatus) bool { return len(st.Peers) == 1 && st.Peers[0].Connected })
	}
	return janus, built
}
