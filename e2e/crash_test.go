package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/player"
)

// pod is a site whose media server is a process of its own.
type pod struct {
	*site
	sfu     *process
	server  string // the media server's URL
	state   string // the sidecar's state file
	env     []string
	sfuEnv  []string
	sidecar *process
}

// startPods is startSites with media servers of their own, and ids that are given.
func startPods(ctx context.Context, t *testing.T, clusters ...string) []*pod {
	t.Helper()
	ports := freePorts(t, 4*len(clusters))
	var static string
	for i := range clusters {
		static += fmt.Sprintf("127.0.0.1:%d,", ports[4*i])
	}
	var pods []*pod
	for i, cluster := range clusters {
		p, dir := ports[4*i:4*i+4], t.TempDir()
		n := &pod{
			site: &site{
				url: fmt.Sprintf("http://127.0.0.1:%d", p[1]), admin: fmt.Sprintf("http://127.0.0.1:%d", p[2]),
			},
			server: fmt.Sprintf("http://127.0.0.1:%d", p[3]), state: filepath.Join(dir, "state.json"),
			sfuEnv: []string{
				fmt.Sprintf("SIDESTREAM_SFU_LISTEN=127.0.0.1:%d", p[3]), "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
				"SIDESTREAM_SFU_LOOPBACK=true",
			},
			env: []string{
				fmt.Sprintf("SIDESTREAM_NODE_ID=pod-%d", i),
				"SIDESTREAM_CLUSTER=" + cluster,
				"SIDESTREAM_STATE_DIR=" + dir,
				fmt.Sprintf("SIDESTREAM_ADAPTER_URL=http://127.0.0.1:%d", p[3]),
				"SIDESTREAM_PEER_SECURITY=plaintext",
				"SIDESTREAM_PEER_STATIC=" + static[:len(static)-1],
				fmt.Sprintf("SIDESTREAM_PEER_LISTEN=127.0.0.1:%d", p[0]),
				fmt.Sprintf("SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:%d", p[1]),
				fmt.Sprintf("SIDESTREAM_ADMIN_LISTEN=127.0.0.1:%d", p[2]),
				"SIDESTREAM_SFU_LOOPBACK=true",
				"SIDESTREAM_RELAY_LINGER=1s",
			},
		}
		n.startSFU(t)
		n.startSidecar(t)
		pods = append(pods, n)
	}
	for _, n := range pods {
		n.until(ctx, t, "all peers", peers(len(clusters)-1))
	}
	return pods
}

func peers(n int) func(siteStatus) bool {
	return func(st siteStatus) bool {
		connected := 0
		for _, p := range st.Peers {
			if p.Connected {
				connected++
			}
		}
		return connected == n
	}
}

func (n *pod) startSFU(t *testing.T)     { n.sfu = start(t, n.sfuEnv, "sfu") }
func (n *pod) startSidecar(t *testing.T) { n.sidecar = start(t, n.env, "run") }

// kill is SIGKILL.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = p.cmd.Process.Wait()
}

// serverStream is what a built-in media server says of a stream.
type serverStream struct {
	ID      string
	Session string
	Readers int
	Relayed bool
}

// streams asks the media server itself.
func (n *pod) streams(ctx context.Context, t *testing.T) []serverStream {
	t.Helper()
	var list struct{ Streams []serverStream }
	getJSON(ctx, t, n.server+"/api/streams", &list)
	return list.Streams
}

// replay plays again and again, as a viewer does whose session has ended. It returns with the first frame that the source sent
// after another one: a server shows what it has of a stream that has ended.
func replay(ctx context.Context, t *testing.T, whep string, after uint64) *viewer {
	t.Helper()
	for {
		bounded, cancel := context.WithTimeout(ctx, 3*time.Second)
		v := watch(ctx, t, whep)
		done := make(chan error, 1)
		go func() { done <- v.Wait(bounded, func(r player.Report) bool { return r.Last > after }) }()
		select {
		case err := <-done:
			cancel()
			if err == nil {
				return v
			}
		case <-v.over:
			cancel()
			<-done
		}
		if ctx.Err() != nil {
			t.Fatalf("no frame: %+v", v.Report())
		}
		_ = v.stop()
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// A sidecar that is killed comes back, whatever it remembers: what it left at its server is deleted there, what was wanted
// flows again, nobody takes the relay for an origin, and there is one copy of it.
func TestSidecarKilled(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	garbage := func(content string) func(*testing.T, *pod) {
		return func(t *testing.T, n *pod) {
			n.sidecar.kill(t)
			if err := os.WriteFile(n.state, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		kill func(t *testing.T, n *pod) // and all that the next process finds
		// whether the next one knows its id's incarnation
		forgets bool
	}{
		{"with its memory", func(t *testing.T, n *pod) { n.sidecar.kill(t) }, false},
		{"with its server", func(t *testing.T, n *pod) {
			n.sidecar.kill(t)
			n.sfu.kill(t)
			n.startSFU(t)
		}, false},
		{"without its memory", func(t *testing.T, n *pod) {
			n.sidecar.kill(t)
			if err := os.Remove(n.state); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"and its memory cut off", func(t *testing.T, n *pod) {
			n.sidecar.kill(t)
			info, err := os.Stat(n.state)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(n.state, info.Size()/2); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"and its memory garbage", garbage("\x00\xff{]"), true},
		{"and its memory another's", garbage(`{"node":"other","incarnation":99,"record":{"clock":1}}`), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			pods := startPods(ctx, t, "singapore", "germany")
			origin, edge := pods[0], pods[1]
			publish(ctx, t, origin.url+"/whip/show")
			edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
			first := watch(ctx, t, edge.url+"/whep/show")
			first.frames(ctx, t, 30)
			before := edge.streams(ctx, t)
			if len(before) != 1 || !before[0].Relayed {
				t.Fatalf("at the server: %+v", before)
			}

			tt.kill(t, edge)
			began := time.Now()
			edge.startSidecar(t)
			v := replay(ctx, t, edge.url+"/whep/show", first.Report().Last)
			t.Logf("media again %s after the process was started", time.Since(began).Round(time.Millisecond))
			v.frames(ctx, t, 30)
			after := edge.streams(ctx, t)
			if len(after) != 1 || !after[0].Relayed || after[0].Session == before[0].Session {
				t.Errorf("at the server before: %+v, after: %+v", before, after)
			}
			for _, n := range pods {
				n.until(ctx, t, "one origin, two holders", func(st siteStatus) bool {
					return len(st.Streams) == 1 && st.Streams[0].Origin == "pod-0" && len(st.Streams[0].Holders) == 2
				})
			}
			// The connection that the killed process had to the origin is dead, and no reader for long.
			origin.until(ctx, t, "one copy", oneCopy)
			for _, n := range pods {
				if n.sidecar.said("superseded") {
					t.Error("a relay was announced as an origin")
				}
			}
		})
	}
}

// A media server that is killed and comes back, with the sidecar alive, has its streams again.
func TestServerKilled(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	pods := startPods(ctx, t, "singapore", "germany")
	origin, edge := pods[0], pods[1]
	publish(ctx, t, origin.url+"/whip/show")
	edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	first := watch(ctx, t, edge.url+"/whep/show")
	first.frames(ctx, t, 30)
	edge.sfu.kill(t)
	edge.startSFU(t)
	began := time.Now()
	v := replay(ctx, t, edge.url+"/whep/show", first.Report().Last)
	t.Logf("media again %s after the process was started", time.Since(began).Round(time.Millisecond))
	v.frames(ctx, t, 30)
	if got := edge.streams(ctx, t); len(got) != 1 || !got[0].Relayed {
		t.Errorf("at the server: %+v", got)
	}
	origin.until(ctx, t, "one origin, one copy", func(st siteStatus) bool { return oneCopy(st) && st.Streams[0].Origin == "pod-0" })
	if resp, err := http.Get(edge.admin + "/readyz"); err != nil || resp.Body.Close() != nil || resp.StatusCode/100 != 2 {
		t.Errorf("ready: %v, %v", resp, err)
	}
}
