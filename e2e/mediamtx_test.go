package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx/mediamtxtest"
)

// besideMediaMTX are the settings of a sidecar whose server is a MediaMTX.
func besideMediaMTX(server *mediamtxtest.Server) []string {
	return []string{
		"SIDESTREAM_ADAPTER_NAME=mediamtx", "SIDESTREAM_ADAPTER_URL=" + server.URL, "SIDESTREAM_ADAPTER_API_URL=" + server.API,
		"SIDESTREAM_ADAPTER_PUBLISH_USER=publisher", "SIDESTREAM_ADAPTER_PUBLISH_PASSWORD=publisher",
		"SIDESTREAM_ADAPTER_API_USER=watcher", "SIDESTREAM_ADAPTER_API_PASSWORD=watcher",
	}
}

// withUsers lets strangers play and publish, so that viewers need no credentials, and only the sidecar ask the API.
const withUsers = `
authInternalUsers:
- user: any
  pass:
  permissions: [{action: publish}, {action: read}]
- user: publisher
  pass: publisher
  permissions: [{action: publish}]
- user: watcher
  pass: watcher
  permissions: [{action: api}]
`

func startMediaMTX(t *testing.T) *mediamtxtest.Server {
	t.Helper()
	server := mediamtxtest.Start(t, mediamtxtest.Options{YAML: withUsers})
	t.Logf("MediaMTX %s", server.Version)
	return server
}

// untilEmpty waits until nobody publishes to a server.
func untilEmpty(ctx context.Context, t *testing.T, server *mediamtxtest.Server) {
	t.Helper()
	c := server.Config()
	c.API = adapters.Credentials{User: "watcher", Password: "watcher"}
	adapter, err := mediamtx.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer adapter.CloseIdleConnections()
	ctx, found := context.WithCancel(ctx)
	defer found()
	var done bool
	err = adapter.Watch(ctx, func(streams []adapters.Stream) {
		if len(streams) == 0 {
			done = true
			found()
		}
	})
	if !done {
		t.Fatal(err)
	}
}

// A stream of one make of server plays from another: MediaMTX and the built-in one, both ways, and MediaMTX to MediaMTX.
func TestMediaMTX(t *testing.T) {
	mediamtxtest.Binary(t)
	const builtIn = "pionsfu"
	for _, pair := range []struct{ origin, edge string }{
		{"mediamtx", builtIn}, {builtIn, "mediamtx"}, {"mediamtx", "mediamtx"},
	} {
		t.Run(pair.origin+" to "+pair.edge, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			further := map[int][]string{}
			whip, whep := "/whip/live/show", "/whep/live/show"
			empty := func() {} // waits until the edge's server has nothing left
			if pair.origin != builtIn {
				further[0] = besideMediaMTX(startMediaMTX(t))
				whip = "/live/show/whip"
			}
			if pair.edge != builtIn {
				server := startMediaMTX(t)
				further[1] = besideMediaMTX(server)
				whep = "/live/show/whep"
				empty = func() { untilEmpty(ctx, t, server) }
			}
			sites := startSitesWith(ctx, t, further, "singapore", "germany")
			origin, edge := sites[0], sites[1]
			stop := publish(ctx, t, origin.url+whip)
			known := func(n int) func(siteStatus) bool {
				return func(st siteStatus) bool { return len(st.Streams) == 1 && len(st.Streams[0].Holders) == n }
			}
			edge.until(ctx, t, "the stream is known", known(1))

			v := watch(ctx, t, edge.url+whep)
			r := v.frames(ctx, t, 250)
			t.Logf("first frame after %s, age of frames: median %s, p99 %s; %d missing, %d repeated of %d",
				r.FirstFrame.Round(time.Millisecond), r.Median.Round(time.Millisecond), r.P99.Round(time.Millisecond),
				r.Missing, r.Repeated, r.Stamped)
			if r.Missing > 0 || r.Repeated > 0 {
				t.Errorf("%d of %d frames missing, %d twice", r.Missing, r.Stamped, r.Repeated)
			}
			// The copy at the edge is known for one: nobody takes it for another origin.
			edge.until(ctx, t, "the edge holds a copy", known(2))
			origin.until(ctx, t, "the origin has one reader", func(st siteStatus) bool {
				return known(2)(st) && st.Streams[0].Readers == 1
			})

			if err := v.stop(); ctx.Err() != nil {
				t.Fatal(err)
			}
			origin.until(ctx, t, "no viewer, no bytes", func(st siteStatus) bool { return known(1)(st) && st.Streams[0].Readers == 0 })

			// MediaMTX lets a viewer in who comes just before the relay's publication ends, and says nothing when it then closes
			// that session: who means to see frames comes after.
			empty()
			again := watch(ctx, t, edge.url+whep)
			again.frames(ctx, t, 50)
			stop()
			for i, s := range sites {
				s.until(ctx, t, fmt.Sprintf("the stream is gone at site %d", i), func(st siteStatus) bool { return len(st.Streams) == 0 })
			}
		})
	}
}

// A sidecar that is killed comes back and finds its own relay's publication at MediaMTX: it is no origin, and deleted.
func TestMediaMTXOrphan(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	server := startMediaMTX(t)
	beside := append(besideMediaMTX(server), "SIDESTREAM_STATE_DIR="+t.TempDir(), "SIDESTREAM_NODE_ID=edge")
	sites := startSitesWith(ctx, t, map[int][]string{1: beside}, "singapore", "germany")
	origin, edge := sites[0], sites[1]
	publish(ctx, t, origin.url+"/whip/show")
	edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	v := watch(ctx, t, edge.url+"/show/whep")
	v.frames(ctx, t, 25)

	if err := edge.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-edge.events // closed when it has ended
	edge.process = start(t, edge.cmd.Env, "run")
	edge.until(ctx, t, "the stream has its one origin", func(st siteStatus) bool {
		return len(st.Streams) == 1 && !slices.ContainsFunc(st.Streams[0].Holders, func(h struct{ Cluster string }) bool {
			return h.Cluster == "germany"
		})
	})
	again := watch(ctx, t, edge.url+"/show/whep")
	if r := again.frames(ctx, t, 50); r.Missing > 0 {
		t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
	}
}

// A publisher at the edge who takes a name that is relayed there is an origin at once: MediaMTX ends the relay's publication
// for it, and nobody mistakes one for the other.
func TestMediaMTXTakeover(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	server := startMediaMTX(t)
	sites := startSitesWith(ctx, t, map[int][]string{1: append(besideMediaMTX(server), "SIDESTREAM_NODE_ID=edge")},
		"singapore", "germany")
	origin, edge := sites[0], sites[1]
	publish(ctx, t, origin.url+"/whip/show")
	edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	watch(ctx, t, edge.url+"/show/whep").frames(ctx, t, 25)

	stop := publish(ctx, t, edge.url+"/show/whip")
	originAt := func(node string) func(siteStatus) bool {
		return func(st siteStatus) bool { return len(st.Streams) == 1 && st.Streams[0].Origin == node }
	}
	for _, s := range sites {
		s.until(ctx, t, "the later publication is the origin", originAt("edge"))
	}
	watch(ctx, t, edge.url+"/show/whep").frames(ctx, t, 25)
	stop()
	edge.until(ctx, t, "the earlier publication is the origin again", func(st siteStatus) bool {
		return len(st.Streams) == 1 && st.Streams[0].Origin != "edge"
	})
}

// across publishes at one place and plays at another.
type across struct {
	adapters.Adapter
	ingest, egress adapters.Endpoint
}

func (a across) Ingest(adapters.StreamID) adapters.Endpoint { return a.ingest }
func (a across) Egress(adapters.StreamID) adapters.Endpoint { return a.egress }

// Every codec that both take passes between MediaMTX and the built-in server, whole frames only.
func TestMediaMTXCodecs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	server := startMediaMTX(t)
	sites := startSitesWith(ctx, t, map[int][]string{1: besideMediaMTX(server)}, "singapore", "germany")
	for _, mime := range []string{"video/H264", "video/VP8", "video/VP9", "video/AV1"} {
		codec := strings.ToLower(strings.TrimPrefix(mime, "video/"))
		for way, h := range map[string]adaptertest.Harness{
			"to":   {Adapter: across{ingest: endpoint(t, sites[0].url+"/whip/to-"+codec), egress: endpoint(t, sites[1].url+"/to-"+codec+"/whep")}},
			"from": {Adapter: across{ingest: endpoint(t, sites[1].url+"/from-"+codec+"/whip"), egress: endpoint(t, sites[0].url+"/whep/from-"+codec)}},
		} {
			t.Run(way+" MediaMTX "+codec, func(t *testing.T) {
				h.Client = newClient()
				id := adapters.StreamID(way + "-" + codec)
				h.PublishCodec(t, id, mime).WaitConnected()
				for _, s := range sites {
					s.until(ctx, t, "the stream is known", func(st siteStatus) bool {
						return slices.ContainsFunc(st.Streams, func(s streamStatus) bool { return s.Stream == string(id) })
					})
				}
				player := h.Play(t, id)
				player.WaitKeyFrames(1)
				player.WaitFrames(50)
				player.WaitAudio(50)
				stats := player.Stats()
				if !strings.EqualFold(stats.Video, mime) || stats.Damaged > 0 {
					t.Errorf("player got %+v", stats)
				}
				t.Logf("%d frames whole, %d damaged, the first key frame after %s", stats.Frames, stats.Damaged,
					stats.FirstKey.Round(time.Millisecond))
			})
		}
	}
}

// Where no gateway stands in front, MediaMTX' own hook holds the demand: its viewer's request waits while the stream is fetched,
// and when the hook is ended, so is the relay.
func TestMediaMTXHook(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl in PATH: it is the hook")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	admin := filepath.Join(t.TempDir(), "admin") // where the sidecar's administration is, which is known later
	server := mediamtxtest.Start(t, mediamtxtest.Options{YAML: withUsers + `
pathDefaults:
  runOnDemand: sh -c 'exec curl -sN "$(cat ` + admin + `)/demand/$MTX_PATH"'
  runOnDemandCloseAfter: 1s
`})
	sites := startSitesWith(ctx, t, map[int][]string{1: besideMediaMTX(server)}, "singapore", "germany")
	origin, edge := sites[0], sites[1]
	if err := os.WriteFile(admin, []byte(edge.admin), 0o600); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, origin.url+"/whip/live/show")
	edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 && len(st.Relays) == 0 })

	v := watch(ctx, t, server.URL+"/live/show/whep")
	r := v.frames(ctx, t, 100)
	t.Logf("first frame after %s", r.FirstFrame.Round(time.Millisecond))
	if r.Missing > 0 || r.Repeated > 0 {
		t.Errorf("%d of %d frames missing, %d twice", r.Missing, r.Stamped, r.Repeated)
	}
	if err := v.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	origin.until(ctx, t, "no viewer, no bytes", func(st siteStatus) bool {
		return len(st.Streams) == 1 && len(st.Streams[0].Holders) == 1 && st.Streams[0].Readers == 0
	})
}
