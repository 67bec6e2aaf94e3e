package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
	"golang.org/x/sys/unix"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
)

// The servers that are measured.
const (
	roleSFU      = "sfu"
	roleLoop     = "loop"
	roleMediaMTX = "mediamtx"
)

// asServer is GOGC of ours, as "sidestream sfu" sets it.
const asServer = 25

// mostSessions is enough for whatever is measured.
const mostSessions = 1 << 16

// serve is a server's process: it says at which address it listens, and ends with its standard input. A line there has the
// profile of its memory written.
func serve(ctx context.Context, role, profile, heap string, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	var handler http.Handler
	if role == roleSFU {
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(asServer)
		}
		server, err := pionsfu.New(pionsfu.Config{
			UDPAddr: "127.0.0.1:0", MaxSessions: mostSessions, MaxHalfOpen: mostSessions, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		group.Go(func() { _ = server.Run(ctx) })
		handler = server
	} else {
		l := newLoop()
		defer l.close()
		handler = l
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	web := &http.Server{Handler: handler}
	group.Go(func() { _ = web.Serve(listener) })
	defer web.Close()
	if _, err := fmt.Fprintln(stdout, "http://"+listener.Addr().String()); err != nil {
		return err
	}
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		if heap == "" {
			continue
		}
		f, err := os.Create(heap)
		if err != nil {
			return err
		}
		runtime.GC()
		err = errors.Join(pprof.Lookup("heap").WriteTo(f, 0), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// loop is the bare fan-out: what comes on a publisher's tracks is written to one local track each, which pion hands to every
// viewer.
type loop struct {
	mu      sync.Mutex
	streams map[string][]*webrtc.TrackLocalStaticRTP
	pcs     []*webrtc.PeerConnection
	group   sync.WaitGroup
}

func newLoop() *loop { return &loop{streams: make(map[string][]*webrtc.TrackLocalStaticRTP)} }

func (l *loop) close() {
	l.mu.Lock()
	pcs := l.pcs
	l.mu.Unlock()
	for _, pc := range pcs {
		_ = pc.Close()
	}
	l.group.Wait()
}

// ServeHTTP implements http.Handler: POST /whip/{stream} and /whep/{stream}, with an answer that has all candidates.
func (l *loop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	offer, err := io.ReadAll(io.LimitReader(r.Body, 1<<17))
	if r.Method != http.MethodPost || err != nil {
		w.WriteHeader(http.StatusOK) // the end of a session
		return
	}
	name, play := strings.CutPrefix(r.URL.Path, "/whep/")
	if !play {
		name = strings.TrimPrefix(r.URL.Path, "/whip/")
	}
	answer, err := l.answer(name, play, string(offer))
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/sdp")
	w.Header().Set("Location", "/session")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, answer)
}

func (l *loop) answer(name string, play bool, offer string) (string, error) {
	var settings webrtc.SettingEngine
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetIPFilter(oneAddress)
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(settings)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.pcs = append(l.pcs, pc)
	tracks := l.streams[name]
	l.mu.Unlock()
	if play {
		if len(tracks) < 2 {
			return "", errors.New("nobody publishes this")
		}
		for _, track := range tracks {
			sender, err := pc.AddTrack(track)
			if err != nil {
				return "", err
			}
			l.group.Go(func() { // interceptors see only the RTCP that is read
				buffer := make([]byte, 1500)
				for {
					if _, _, err := sender.Read(buffer); err != nil {
						return
					}
				}
			})
		}
	} else {
		pc.OnTrack(func(remote *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { l.read(name, remote) })
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return "", err
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return "", err
	}
	<-gathered
	return pc.LocalDescription().SDP, nil
}

func (l *loop) read(name string, remote *webrtc.TrackRemote) {
	l.group.Add(1)
	defer l.group.Done()
	local, err := webrtc.NewTrackLocalStaticRTP(remote.Codec().RTPCodecCapability, remote.Kind().String(), "loop")
	if err != nil {
		return
	}
	l.mu.Lock()
	l.streams[name] = append(l.streams[name], local)
	l.mu.Unlock()
	buffer := make([]byte, 1500)
	for {
		n, _, err := remote.Read(buffer)
		if err != nil {
			return
		}
		if _, err := local.Write(buffer[:n]); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			return
		}
	}
}

func oneAddress(ip net.IP) bool { return ip.IsLoopback() && ip.To4() != nil }

// subject is a server's process and its endpoints.
type subject struct {
	role          string
	process       *exec.Cmd
	stdin         io.Closer
	poke          func() // has the profile of the memory written
	publish, play adapters.Endpoint
	cleanup       func()
	viewers       []*viewer
	idle          memory
}

// start runs this program again, as a server.
func start(ctx context.Context, role, profile, heap string) (*subject, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	process := exec.CommandContext(ctx, self, "-role", role, "-cpuprofile", profile, "-memprofile", heap)
	process.Stderr = os.Stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	s := &subject{role: role, process: process, stdin: stdin, poke: func() { _, _ = io.WriteString(stdin, "\n") }}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		s.stop()
		return nil, fmt.Errorf("the %s has ended", role)
	}
	base := lines.Text()
	if s.publish, err = at(base + "/whip/" + stream); err == nil {
		s.play, err = at(base + "/whep/" + stream)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startMediaMTX runs a MediaMTX; nil where there is none.
func startMediaMTX(ctx context.Context) (*subject, error) {
	binary := os.Getenv("MEDIAMTX_BIN")
	if binary == "" {
		found, err := exec.LookPath("mediamtx")
		if err != nil {
			return nil, nil //nolint:nilerr // it is measured where it is found
		}
		binary = found
	}
	dir, err := os.MkdirTemp("", "sfubench-")
	if err != nil {
		return nil, err
	}
	clean := func() { _ = os.RemoveAll(dir) }
	settings := filepath.Join(dir, "mediamtx.yml")
	if err := os.WriteFile(settings, []byte("paths:\n  all_others:\n"), 0o600); err != nil {
		clean()
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		clean()
		return nil, err
	}
	address := listener.Addr().String()
	_ = listener.Close()
	process := exec.CommandContext(ctx, binary, settings)
	process.Env = append(os.Environ(),
		"MTX_WEBRTCADDRESS="+address, "MTX_WEBRTCLOCALUDPADDRESS="+address, "MTX_WEBRTCIPSFROMINTERFACES=no",
		"MTX_WEBRTCADDITIONALHOSTS=127.0.0.1", "MTX_RTSP=no", "MTX_RTMP=no", "MTX_HLS=no", "MTX_SRT=no", "MTX_MOQ=no")
	if err := process.Start(); err != nil {
		clean()
		return nil, err
	}
	s := &subject{role: roleMediaMTX, process: process, stdin: io.NopCloser(nil), cleanup: clean}
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, errors.New("MediaMTX does not answer")
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			s.stop()
			return nil, err
		}
	}
	adapter, err := mediamtx.New(mediamtx.Config{BaseURL: "http://" + address})
	if err != nil {
		s.stop()
		return nil, err
	}
	s.publish, s.play = adapter.Ingest(stream), adapter.Egress(stream)
	return s, nil
}

// stop ends the process, and waits for it.
func (s *subject) stop() {
	_ = s.stdin.Close()
	if s.role == roleMediaMTX {
		_ = s.process.Process.Kill()
	}
	_ = s.process.Wait()
	if s.cleanup != nil {
		s.cleanup()
	}
}

// cpu is the time that the process has used, its own and the kernel's for it. By the process's clock (clock_getcpuclockid(3)),
// which counts nanoseconds, where /proc has hundredths of a second: too coarse for a short round.
func (s *subject) cpu() (time.Duration, error) {
	const scheduler = 2 // the kernel's CPUCLOCK_SCHED
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^s.process.Process.Pid)<<3|scheduler, &used); err != nil {
		return 0, fmt.Errorf("read the CPU time of the %s: %w", s.role, err)
	}
	return time.Duration(used.Nano()), nil
}

// memory is what a process has, in bytes.
type memory float64

func (s *subject) memory() (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm: %q", b)
	}
	pages, err := strconv.Atoi(fields[1])
	return memory(pages * os.Getpagesize()), err
}
