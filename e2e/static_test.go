package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// site is one `sidestream run` with the built-in server.
type site struct {
	*process
	url, admin string
}

// startSites runs one sidecar for each cluster named, with each other as static peers.
func startSites(ctx context.Context, t *testing.T, clusters ...string) []*site {
	t.Helper()
	return startSitesWith(ctx, t, nil, clusters...)
}

// startSitesWith is startSites with further settings for some of them, by their place.
func startSitesWith(ctx context.Context, t *testing.T, further map[int][]string, clusters ...string) []*site {
	t.Helper()
	ports := freePorts(t, 4*len(clusters))
	var static string
	for i := range clusters {
		static += fmt.Sprintf("127.0.0.1:%d,", ports[4*i])
	}
	var sites []*site
	for i, cluster := range clusters {
		p := ports[4*i : 4*i+4]
		s := &site{
			url: fmt.Sprintf("http://127.0.0.1:%d", p[1]), admin: fmt.Sprintf("http://127.0.0.1:%d", p[2]),
		}
		s.process = start(t, append([]string{
			"SIDESTREAM_CLUSTER=" + cluster,
			"SIDESTREAM_STATE_DIR=" + t.TempDir(),
			"SIDESTREAM_PEER_SECURITY=plaintext",
			"SIDESTREAM_PEER_STATIC=" + static[:len(static)-1],
			fmt.Sprintf("SIDESTREAM_PEER_LISTEN=127.0.0.1:%d", p[0]),
			fmt.Sprintf("SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:%d", p[1]),
			fmt.Sprintf("SIDESTREAM_ADMIN_LISTEN=127.0.0.1:%d", p[2]),
			fmt.Sprintf("SIDESTREAM_SFU_LISTEN=127.0.0.1:%d", p[3]),
			"SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
			"SIDESTREAM_SFU_LOOPBACK=true",
			"SIDESTREAM_RELAY_LINGER=1s",
		}, further[i]...), "run")
		sites = append(sites, s)
	}
	for _, s := range sites {
		s.until(ctx, t, "all peers", func(st siteStatus) bool {
			connected := 0
			for _, p := range st.Peers {
				if p.Connected {
					connected++
				}
			}
			return connected == len(clusters)-1
		})
	}
	return sites
}

// freePorts finds TCP ports that nobody uses now.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// siteStatus is what the tests read of /api/status.
type siteStatus struct {
	Peers     []struct{ Connected, Draining bool }
	Streams   []streamStatus
	Relays    []relayStatus
	Discovery []discoveryStatus
}

type streamStatus struct {
	Stream  string
	Origin  string
	Holders []struct{ Cluster string }
	Readers int
	Refused string
}

type relayStatus struct {
	Stream, State, Parent string

	Session struct {
		Tracks []struct {
			Kind                                           string
			KeyFrameRequestsSent, KeyFrameRequestsReceived int
		}
	}
}

type discoveryStatus struct{ Source, Error string }

// until asks for the status until it is as wanted.
func (s *site) until(ctx context.Context, t *testing.T, what string, ok func(siteStatus) bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last siteStatus
	for {
		if up(ctx, s.admin) {
			last = siteStatus{}
			getJSON(ctx, t, s.admin+"/api/status", &last)
			if ok(last) {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not in time: %+v", what, last)
		case <-tick.C:
		}
	}
}

func up(ctx context.Context, admin string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/livez", http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}

// publish sends the test clip until the test ends or the returned func is called.
func publish(ctx context.Context, t *testing.T, whip string) (stop func()) {
	t.Helper()
	source, err := testsource.New(testsource.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- source.Publish(ctx, newClient(), endpoint(t, whip)) }()
	var ended bool
	stop = func() {
		if cancel(); !ended {
			ended = true
			<-done
		}
	}
	t.Cleanup(stop)
	return stop
}

// Sidecars in two clusters, two in one of them, that know each other by address only.
func TestStaticPeers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	sites := startSites(ctx, t, "singapore", "germany", "germany")
	singapore, first, second := sites[0], sites[1], sites[2]
	publish(ctx, t, singapore.url+"/whip/live/show")
	holders := func(n int) func(siteStatus) bool {
		return func(st siteStatus) bool { return len(st.Streams) == 1 && len(st.Streams[0].Holders) == n }
	}
	first.until(ctx, t, "the stream is known", holders(1))

	a := watch(ctx, t, first.url+"/whep/live/show")
	b := watch(ctx, t, second.url+"/whep/live/show")
	for _, v := range []*viewer{a, b} {
		if r := v.frames(ctx, t, 60); r.Missing > 0 {
			t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
		}
	}
	// Both German nodes have the stream, and only one of them from Singapore.
	singapore.until(ctx, t, "singapore sees one copy in germany", func(st siteStatus) bool {
		if !holders(2)(st) {
			return false
		}
		return st.Streams[0].Readers == 1
	})

	// A viewer that goes without a word is not demand for long, and neither is one that says goodbye.
	if err := b.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	if err := a.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	singapore.until(ctx, t, "no viewer, no bytes", func(st siteStatus) bool {
		return holders(1)(st) && st.Streams[0].Readers == 0
	})

	silent := vanishing(ctx, t, first.url+"/whep/live/show")
	singapore.until(ctx, t, "pulled again", holders(2))
	silent()
	singapore.until(ctx, t, "the vanished viewer is no demand", func(st siteStatus) bool {
		return holders(1)(st) && st.Streams[0].Readers == 0
	})
}

// cascade is an origin and two nodes of another cluster, each with a viewer: the second has the stream from the first.
func cascade(ctx context.Context, t *testing.T) (origin, parent, child *site, last *viewer) {
	t.Helper()
	sites := startSites(ctx, t, "singapore", "germany", "germany")
	origin, parent, child = sites[0], sites[1], sites[2]
	publish(ctx, t, origin.url+"/whip/live/show")
	for i, s := range []*site{parent, child} {
		s.until(ctx, t, "the stream is known", func(st siteStatus) bool {
			return len(st.Streams) == 1 && len(st.Streams[0].Holders) == i+1
		})
		last = watch(ctx, t, s.url+"/whep/live/show")
		last.frames(ctx, t, 60)
	}
	origin.until(ctx, t, "one copy in germany", oneCopy)
	last.Forget()
	return origin, parent, child, last
}

// oneCopy says whether a node has one reader, which is another node.
func oneCopy(st siteStatus) bool {
	return len(st.Streams) == 1 && len(st.Streams[0].Holders) == 2 && st.Streams[0].Readers == 1
}

// A node that dies is missed by nobody who watches at another one that had the stream from there.
func TestParentKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	origin, parent, _, v := cascade(ctx, t)
	before := v.Report()
	if err := parent.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	after := v.frames(ctx, t, before.Stamped+90)
	// Where the copies could not be aligned the new one begins with a key frame, which may be one that was seen.
	if after.Location != before.Location || after.Repeated > 1 {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	t.Logf("freeze of %s, %d frames missing", after.Freeze, after.Missing-before.Missing)
	origin.until(ctx, t, "one copy in germany", oneCopy)
}

// A node that leaves in order is missed by nobody at all: not a frame is lost.
func TestParentDrains(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	origin, parent, _, v := cascade(ctx, t)
	before := v.Report()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, parent.admin+"/drain", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Errorf("drain: %s", resp.Status)
	}
	parent.interrupt(t)
	after := v.frames(ctx, t, before.Stamped+90)
	if after.Location != before.Location || after.Missing > 0 || after.Repeated > 0 {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	t.Logf("longest from frame to frame: %s", after.Freeze)
	origin.until(ctx, t, "one copy in germany", oneCopy)
}

// vanishing plays, and disappears without DELETE and without a DTLS alert when told to.
func vanishing(ctx context.Context, t *testing.T, whep string) (vanish func()) {
	t.Helper()
	client := newClient()
	var pc *webrtc.PeerConnection
	socket := newCuttable(t)
	client.NewPeerConnection = socket.newPeerConnection
	session, err := client.Play(ctx, adapters.Endpoint{URL: endpoint(t, whep).URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pc = session.PeerConnection()
	t.Cleanup(func() { _ = pc.GracefulClose() })
	if err := session.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	return socket.cut
}

// A name that nobody publishes is refused at once, by the server's own words; the publisher's leaving ends it for all.
func TestNobodyPublishes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	sites := startSites(ctx, t, "singapore", "germany")
	err := player.New(newClient()).Run(ctx, endpoint(t, sites[1].url+"/whep/nothing"))
	if err == nil || ctx.Err() != nil {
		t.Fatalf("playing what nobody publishes: %v", err)
	}
	t.Log(err)

	stop := publish(ctx, t, sites[0].url+"/whip/show")
	sites[1].until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	v := watch(ctx, t, sites[1].url+"/whep/show")
	v.frames(ctx, t, 30)
	stop()
	for _, s := range sites {
		s.until(ctx, t, "the stream is gone", func(st siteStatus) bool { return len(st.Streams) == 0 })
	}
}
