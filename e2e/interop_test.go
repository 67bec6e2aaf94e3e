package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox/broadcastboxtest"
	"github.com/sidestream-dev/sidestream/adapters/janus/janustest"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx/mediamtxtest"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	// interopVariable names the file to which the matrix goes.
	interopVariable = "INTEROP_RESULTS"
	// runsVariable is how many viewers come one after another for each pair with H264, of whom each makes a pull.
	runsVariable = "INTEROP_RUNS"
	// pairVariable is a pattern of the pairs that are run, such as "janus to mediamtx", where Janus is.
	pairVariable = "INTEROP_PAIRS"

	interopFile = "../docs/results/interop/matrix.json"
	// mostSkew is by how much picture and sound may be apart: less than anybody notices.
	mostSkew = 40 * time.Millisecond
)

var interopCodecs = []string{"video/H264", "video/VP8", "video/VP9", "video/AV1"}

// interop is the matrix as it is kept.
type interop struct {
	Date    string            `json:"date"`
	Servers map[string]string `json:"servers"` // version, by make
	Runs    int               `json:"runs"`    // with H264; of other codecs there is one
	Cells   []interopCell     `json:"cells"`
}

// interopCell is what became of one codec between two makes.
type interopCell struct {
	Origin  string `json:"origin"`
	Edge    string `json:"edge"`
	Video   string `json:"video"`
	Refused string `json:"refused,omitempty"` // how, where the edge's server does not take it
	Frames  int    `json:"frames"`            // from the first key frame on
	Missing int    `json:"missing"`           // of those
	Twice   int    `json:"twice"`
	// First is how long each viewer waited for his first key frame, in milliseconds, from the least to the most.
	First []int `json:"first,omitempty"`
	// Skew is by how many milliseconds the picture was later than the sound.
	Skew int `json:"skew"`
	// Asked counts the requests for a key frame of the edge's server, Passed those that went on to the parent.
	Asked  int `json:"asked"`
	Passed int `json:"passed"`
}

// interopMake is a make of server: one of it stands at an origin and one at an edge.
type interopMake struct {
	name, version string
	codecs        []string // empty: all
	origin, edge  *site
	// endpoint is where strangers publish and play, by way of a gateway.
	endpoint func(gateway string, id adapters.StreamID, publish bool) adapters.Endpoint
}

func (m *interopMake) takes(mime string) bool {
	return len(m.codecs) == 0 || slices.ContainsFunc(m.codecs, func(c string) bool { return strings.EqualFold(c, mime) })
}

// TestInterop runs the matrix of every make of server at the origin and every make at the edge, by real sidecars. With a Janus it
// has to be in a network where Janus can be.
func TestInterop(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make interop and make e2e")
	}
	if why := janustest.Missing(); why != "" {
		t.Log("not in the matrix: janus: " + why)
		runInterop(t, "127.0.0.1")
		return
	}
	var out bytes.Buffer
	run := "-test.run=^TestInteropInside$"
	if pair := os.Getenv(pairVariable); pair != "" {
		run += "/^pairs$/" + strings.ReplaceAll(pair, " ", "_")
	}
	code, err := janustest.Inside(&out, []string{binaryVariable + "=" + binary}, run, "-test.v",
		"-test.parallel="+flag.Lookup("test.parallel").Value.String())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Log("not in the matrix: janus:", err)
		runInterop(t, "127.0.0.1")
		return
	}
	t.Log(out.String())
	if err != nil || code != 0 {
		t.Errorf("the matrix with Janus: exit code %d, %v", code, err)
	}
}

// TestInteropInside is the matrix, with Janus.
func TestInteropInside(t *testing.T) {
	if janustest.Host() == "" {
		t.Skip("TestInterop runs it")
	}
	runInterop(t, janustest.Host())
}

// runInterop has all servers at one address of this machine.
func runInterop(t *testing.T, host string) {
	makes := startMakes(t, host)
	runs := 3
	if n, err := strconv.Atoi(os.Getenv(runsVariable)); err == nil && n > 0 {
		runs = n
	}
	result := interop{Date: time.Now().UTC().Format(time.DateOnly), Servers: map[string]string{}, Runs: runs}
	for _, m := range makes {
		result.Servers[m.name] = m.version
	}
	var mu sync.Mutex
	t.Run("pairs", func(t *testing.T) {
		for _, origin := range makes {
			for _, edge := range makes {
				t.Run(origin.name+" to "+edge.name, func(t *testing.T) {
					t.Parallel()
					for _, mime := range interopCodecs {
						if !origin.takes(mime) {
							continue
						}
						_, codec, _ := strings.Cut(mime, "/")
						t.Run(codec, func(t *testing.T) {
							n := 1
							if mime == interopCodecs[0] {
								n = runs
							}
							cell := interopOne(t, origin, edge, mime, n)
							mu.Lock()
							defer mu.Unlock()
							result.Cells = append(result.Cells, cell)
						})
					}
				})
			}
		}
	})
	slices.SortFunc(result.Cells, func(a, b interopCell) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Edge, b.Edge),
			cmp.Compare(slices.Index(interopCodecs, a.Video), slices.Index(interopCodecs, b.Video)))
	})
	t.Log("\n" + result.table())
	if name := os.Getenv(interopVariable); name != "" && !t.Failed() {
		text, err := json.MarshalIndent(result, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, append(text, '\n'), 0o644); err != nil { //nolint:gosec // for a page
			t.Fatal(err)
		}
	}
}

// interopOne publishes at one make, and has viewers come one after another to another.
func interopOne(t *testing.T, origin, edge *interopMake, mime string, runs int) interopCell {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, codec, _ := strings.Cut(strings.ToLower(mime), "/")
	id := adapters.StreamID(fmt.Sprintf("live/%s-%s-%s", origin.name, edge.name, codec))
	cell := interopCell{Origin: origin.name, Edge: edge.name, Video: mime}
	h := adaptertest.Harness{
		Adapter: across{
			ingest: origin.endpoint(origin.origin.url, id, true), egress: edge.endpoint(edge.edge.url, id, false),
		},
		Client: newClient(), OneCodec: true, Patience: 30 * time.Second,
	}
	publisher := h.PublishCodec(t, id, mime)
	publisher.WaitConnected()
	of := func(st siteStatus) (stream streamStatus, relay relayStatus) {
		if i := slices.IndexFunc(st.Streams, func(s streamStatus) bool { return s.Stream == string(id) }); i >= 0 {
			stream = st.Streams[i]
		}
		if i := slices.IndexFunc(st.Relays, func(r relayStatus) bool { return r.Stream == string(id) }); i >= 0 {
			relay = st.Relays[i]
		}
		return stream, relay
	}
	edge.edge.until(ctx, t, "the stream is known, and nothing of it here", func(st siteStatus) bool {
		stream, relay := of(st)
		// A stream is announced with its first track, which may be the sound; who comes then is told by the relay that fails.
		return len(stream.Holders) == 1 && relay.Stream == "" && (edge.takes(mime) || stream.Refused != "")
	})
	if !edge.takes(mime) {
		cell.Refused = interopRefused(ctx, t, h, edge.edge, id, mime)
		return cell
	}
	for run := range runs {
		begun := time.Now()
		player, err := h.TryPlay(t, id)
		if err != nil {
			t.Fatal(err)
		}
		player.WaitKeyFrames(1)
		player.WaitFrames(player.Stats().Frames + 50)
		player.WaitAudio(50)
		if run == 0 {
			cell.Skew = int(interopSkew(ctx, t, player).Milliseconds())
		}
		stats := player.Stats()
		cell.Frames += stats.Frames
		cell.Missing += stats.Missing
		cell.Twice += stats.Repeated
		cell.First = append(cell.First, int(stats.FirstKey.Milliseconds()))
		if stats.Missing > 0 || stats.Repeated > 0 || stats.Damaged > 0 || !strings.EqualFold(stats.Video, mime) {
			t.Errorf("viewer %d got %+v", run, stats)
		}
		edge.edge.until(ctx, t, "its relay", func(st siteStatus) bool {
			_, relay := of(st)
			for _, track := range relay.Session.Tracks {
				if track.Kind == "video" {
					cell.Asked += track.KeyFrameRequestsReceived
					cell.Passed += track.KeyFrameRequestsSent
					if most := 3 + int(time.Since(begun)/time.Second); track.KeyFrameRequestsSent > most {
						t.Errorf("%d requests for a key frame went to the parent, of %d; want at most %d", track.KeyFrameRequestsSent,
							track.KeyFrameRequestsReceived, most)
					}
				}
			}
			return relay.Stream != ""
		})
		player.Close()
		// A server may let a viewer in who comes while its publication ends, and say nothing then: nothing is to be left there.
		edge.edge.until(ctx, t, "no viewer, no relay, and nothing at the server", func(st siteStatus) bool {
			stream, relay := of(st)
			return relay.Stream == "" && stream.Readers == -1
		})
		origin.origin.until(ctx, t, "no viewer, no reader", func(st siteStatus) bool {
			stream, _ := of(st)
			return len(stream.Holders) == 1 && stream.Readers == 0
		})
	}
	slices.Sort(cell.First)
	t.Logf("first key frames after %d ms, %d frames, skew %d ms, %d requests for a key frame, %d passed on, %d at the publisher",
		cell.First, cell.Frames, cell.Skew, cell.Asked, cell.Passed, publisher.KeyFrameRequests())
	return cell
}

// interopSkew waits until the edge's server says how picture and sound belong together, for as long as they do not by what it
// says: a report from before the relay knew its parent's may be wrong by as much as those are apart.
func interopSkew(ctx context.Context, t *testing.T, player *adaptertest.Player) (skew time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for known := false; ; {
		if skew, known = player.Skew(); known && skew.Abs() <= mostSkew {
			return skew
		}
		select {
		case <-ctx.Done():
			t.Errorf("picture later than sound by %s, known: %t; want at most %s", skew, known, mostSkew)
			return skew
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// interopRefused plays what the edge's server does not take: the viewer is told so, and so is who looks at the status or the log.
func interopRefused(ctx context.Context, t *testing.T, h adaptertest.Harness, edge *site, id adapters.StreamID, mime string) string {
	t.Helper()
	_, err := h.TryPlay(t, id)
	refused, ok := errors.AsType[*whip.StatusError](err)
	if !ok || refused.Code != http.StatusUnsupportedMediaType || !strings.Contains(err.Error(), mime) {
		t.Fatalf("play of %s: %v; want 415 with words about it", mime, err)
	}
	edge.until(ctx, t, "the reason", func(st siteStatus) bool {
		return slices.ContainsFunc(st.Streams, func(s streamStatus) bool {
			return s.Stream == string(id) && strings.Contains(s.Refused, mime)
		})
	})
	edge.mu.Lock()
	defer edge.mu.Unlock()
	if !slices.ContainsFunc(edge.log, func(line string) bool {
		return strings.Contains(line, "stream cannot be carried here") && strings.Contains(line, string(id))
	}) {
		t.Error("the log does not say it")
	}
	return strconv.Itoa(refused.Code)
}

// startMakes starts two servers of each make that can run here, each with a sidecar in a cluster of its own, all in one mesh.
func startMakes(t *testing.T, host string) []*interopMake {
	t.Helper()
	stranger := func(ep adapters.Endpoint) adapters.Endpoint { ep.URL.RawQuery = ""; return ep }
	paths := func(gateway string, id adapters.StreamID, publish bool) adapters.Endpoint {
		if publish {
			return endpoint(t, gateway+"/whip/"+string(id))
		}
		return endpoint(t, gateway+"/whep/"+string(id))
	}
	codecs := func(a adapters.Adapter, err error) []string {
		if err != nil {
			t.Fatal(err)
		}
		return a.Traits().Codecs
	}
	kinds := []struct {
		interopMake
		missing string
		start   func(m *interopMake) (settings []string)
	}{{
		interopMake: interopMake{
			name: pionsfu.AdapterName, version: "built in", endpoint: paths,
			codecs: codecs(pionsfu.NewAdapter(pionsfu.AdapterConfig{BaseURL: "http://x"})),
		},
		start: func(*interopMake) []string {
			return []string{"SIDESTREAM_SFU_LISTEN=" + at(t, host), "SIDESTREAM_SFU_MEDIA_LISTEN=" + net.JoinHostPort(host, "0")}
		},
	}, {
		interopMake: interopMake{
			name: mediamtx.AdapterName, codecs: codecs(mediamtx.New(mediamtx.Config{BaseURL: "http://x"})),
			endpoint: func(gateway string, id adapters.StreamID, publish bool) adapters.Endpoint {
				if publish {
					return endpoint(t, gateway+"/"+string(id)+"/whip")
				}
				return endpoint(t, gateway+"/"+string(id)+"/whep")
			},
		},
		missing: mediamtxtest.Missing(),
		start: func(m *interopMake) []string {
			server := mediamtxtest.Start(t, mediamtxtest.Options{YAML: withUsers, Host: host})
			m.version = server.Version
			return besideMediaMTX(server)
		},
	}, {
		interopMake: interopMake{
			name: broadcastbox.AdapterName, codecs: codecs(broadcastbox.New(broadcastbox.Config{BaseURL: "http://x"})),
			endpoint: func(gateway string, id adapters.StreamID, publish bool) adapters.Endpoint {
				a, err := broadcastbox.New(broadcastbox.Config{BaseURL: gateway})
				if err != nil {
					t.Fatal(err)
				}
				if publish {
					return stranger(a.Ingest(id))
				}
				return a.Egress(id)
			},
		},
		missing: broadcastboxtest.Missing(),
		start: func(m *interopMake) []string {
			server := broadcastboxtest.Start(t, broadcastboxtest.Options{AdminToken: "admin-token", Host: host})
			m.version = server.Version
			return []string{"SIDESTREAM_ADAPTER_NAME=broadcastbox", "SIDESTREAM_ADAPTER_URL=" + server.URL, "SIDESTREAM_ADAPTER_TOKEN=admin-token"}
		},
	}, {
		interopMake: interopMake{name: "janus", endpoint: paths},
		missing: func() string {
			if janustest.Host() == "" {
				return "it needs a network of its own"
			}
			return janustest.Missing()
		}(),
		start: func(m *interopMake) []string {
			server := janustest.Start(t, janustest.Options{AdminKey: "key"})
			var info struct {
				Version string `json:"version_string"`
			}
			getJSON(t.Context(), t, server.URL+"/info", &info)
			m.version = info.Version
			return []string{
				"SIDESTREAM_ADAPTER_NAME=janus", "SIDESTREAM_ADAPTER_URL=" + server.URL, "SIDESTREAM_ADAPTER_JANUS_ADMIN_KEY=key",
			}
		},
	}}
	var makes []*interopMake
	var begin []func()
	var peers []string
	for _, kind := range kinds {
		if kind.missing != "" {
			t.Logf("not in the matrix: %s: %s", kind.name, kind.missing)
			continue
		}
		m := &kind.interopMake
		makes = append(makes, m)
		for place, to := range map[string]**site{"origin": &m.origin, "edge": &m.edge} {
			peer, gateway, admin := at(t, host), at(t, host), at(t, host)
			peers = append(peers, peer)
			settings := append([]string{
				"SIDESTREAM_CLUSTER=" + m.name + "-" + place, "SIDESTREAM_NODE_ID=" + m.name + "-" + place,
				"SIDESTREAM_STATE_DIR=" + t.TempDir(), "SIDESTREAM_PEER_SECURITY=plaintext", "SIDESTREAM_PEER_LISTEN=" + peer,
				"SIDESTREAM_GATEWAY_LISTEN=" + gateway, "SIDESTREAM_ADMIN_LISTEN=" + admin, "SIDESTREAM_RELAY_LINGER=1s",
			}, kind.start(m)...)
			if host == janustest.Host() {
				settings = append(settings, "SIDESTREAM_POD_IP="+host)
			} else {
				settings = append(settings, "SIDESTREAM_SFU_LOOPBACK=true")
			}
			begin = append(begin, func() {
				settings = append(settings, "SIDESTREAM_PEER_STATIC="+strings.Join(peers, ","))
				*to = &site{url: "http://" + gateway, admin: "http://" + admin, process: start(t, settings, "run")}
			})
		}
	}
	for _, f := range begin {
		f()
	}
	for _, m := range makes {
		for _, s := range []*site{m.origin, m.edge} {
			s.until(t.Context(), t, "all peers", func(st siteStatus) bool {
				connected := 0
				for _, p := range st.Peers {
					if p.Connected {
						connected++
					}
				}
				return connected == len(peers)-1
			})
		}
	}
	return makes
}

// at is an address that nobody listens at now.
func at(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// table is the matrix for people.
func (m interop) table() string {
	var b strings.Builder
	b.WriteString("| origin → edge |")
	for _, mime := range interopCodecs {
		b.WriteString(" " + strings.TrimPrefix(mime, "video/") + " |")
	}
	b.WriteString(" first key frame: median, p95 | picture after sound | key frames asked, passed on |\n|" +
		strings.Repeat(" --- |", len(interopCodecs)+4) + "\n")
	for i := 0; i < len(m.Cells); {
		first := m.Cells[i]
		cells := map[string]string{}
		for ; i < len(m.Cells) && m.Cells[i].Origin == first.Origin && m.Cells[i].Edge == first.Edge; i++ {
			cells[m.Cells[i].Video] = m.Cells[i].word()
		}
		fmt.Fprintf(&b, "| %s → %s |", first.Origin, first.Edge)
		for _, mime := range interopCodecs {
			b.WriteString(" " + cmp.Or(cells[mime], "not at the origin") + " |")
		}
		if n := len(first.First); n > 0 {
			fmt.Fprintf(&b, " %.2f s, %.2f s | %d ms | %d, %d |\n", float64(first.First[n/2])/1000, float64(first.First[n*95/100])/1000,
				first.Skew, first.Asked, first.Passed)
		} else {
			b.WriteString(" | | |\n")
		}
	}
	return b.String()
}

func (c interopCell) word() string {
	switch {
	case c.Refused != "":
		return "refused, " + c.Refused
	case c.Missing+c.Twice > 0:
		return fmt.Sprintf("%d missing, %d twice of %d", c.Missing, c.Twice, c.Frames)
	}
	return fmt.Sprintf("%d whole", c.Frames)
}

// The table of what passes between makes is what the matrix found.
func TestInteropTable(t *testing.T) {
	const page, begin, end = "../docs/adapters.md", "<!-- interop -->\n", "<!-- /interop -->"
	text, err := os.ReadFile(filepath.FromSlash(interopFile))
	if err != nil {
		t.Fatal(err)
	}
	var m interop
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatalf("%s: %v", interopFile, err)
	}
	var servers []string
	for _, name := range []string{pionsfu.AdapterName, mediamtx.AdapterName, broadcastbox.AdapterName, "janus"} {
		if version := m.Servers[name]; version != "" {
			servers = append(servers, "`"+name+"` "+version)
		}
	}
	made := fmt.Sprintf("%s: %s; %d viewers one after another with H264, one with each other codec.\n\n%s", m.Date, strings.Join(servers, ", "),
		m.Runs, m.table())
	whole, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(whole), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s", page, begin)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+made+end+after), 0o644); err != nil { //nolint:gosec // a page
			t.Fatal(err)
		}
		return
	}
	if was != made {
		t.Errorf("%s is not what %s holds: go test ./e2e -run TestInteropTable -update", page, interopFile)
	}
}
