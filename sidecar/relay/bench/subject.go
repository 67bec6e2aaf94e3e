package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// The two relays that are measured, and what cannot be saved.
const (
	roleRelay = "relay"
	roleLoop  = "loop"
	roleFloor = "floor"
)

// asSidecar is GOGC of our relay, as "sidestream run" sets it.
const asSidecar = 15

// command is what the measuring process says to a relay, one JSON value per line; usage is what it answers.
type command struct {
	Start int    `json:"start,omitempty"` // carry so many streams from now on
	From  string `json:"from,omitempty"`  // http://host of the source
	To    string `json:"to,omitempty"`
}

type usage struct {
	CPU       time.Duration // user and system
	Allocs    uint64
	Allocated uint64   // bytes
	Resident  uint64   // bytes
	Ports     []uint16 // of the floor
	Error     string
}

// serve is the relay process. It ends with its standard input.
func serve(ctx context.Context, role, profile, heap string, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
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
	if heap != "" {
		defer func() {
			if f, err := os.Create(heap); err == nil {
				_ = pprof.Lookup("allocs").WriteTo(f, 0)
				_ = f.Close()
			}
		}()
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	carry := carryByRelay
	if role == roleLoop {
		carry = carryByLoop
	} else {
		debug.SetGCPercent(asSidecar)
	}
	decoder, encoder := json.NewDecoder(stdin), json.NewEncoder(stdout)
	for {
		var c command
		if err := decoder.Decode(&c); err != nil {
			return nil // the measuring process has ended, or has done with us
		}
		var failure error
		var ports []uint16
		if role == roleFloor {
			if c.Start > 0 {
				ports, failure = floorServe(ctx, &group, c.Start, c.To)
			}
			c.Start = 0
		}
		for i := range c.Start {
			from, to, err := c.endpoints(role + strconv.Itoa(i))
			if err != nil {
				return err
			}
			live, ended := make(chan struct{}), make(chan error, 1)
			group.Go(func() { ended <- carry(ctx, client, from, to, live) })
			select {
			case <-live:
			case err := <-ended:
				failure = errors.Join(failure, err)
			}
		}
		answer, err := readUsage()
		if err != nil {
			return err
		}
		answer.Ports = ports
		if failure != nil {
			answer.Error = failure.Error()
		}
		if err := encoder.Encode(answer); err != nil {
			return err
		}
	}
}

func (c command) endpoints(name string) (from, to adapters.Endpoint, err error) {
	for base, endpoint := range map[string]*adapters.Endpoint{c.From: &from, c.To: &to} {
		u, err := url.Parse(base + "/" + name)
		if err != nil {
			return from, to, err
		}
		endpoint.URL = u
	}
	return from, to, nil
}

func readUsage() (usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}, err
	}
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	resident, err := readResident()
	return usage{
		CPU:    time.Duration(r.Utime.Nano() + r.Stime.Nano()),
		Allocs: samples[0].Value.Uint64(), Allocated: samples[1].Value.Uint64(), Resident: resident,
	}, err
}

// readResident is the memory that the process has now; getrusage knows only the most it ever had.
func readResident() (uint64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, nil //nolint:nilerr // not Linux: the figure is left out
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm: %q", b)
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize()), err
}

func carryByRelay(ctx context.Context, client *http.Client, from, to adapters.Endpoint, live chan<- struct{}) error {
	session := relay.NewSession(relay.SessionOptions{
		Stream: "bench", From: from, FromHTTP: client, To: to, ToHTTP: client,
		Transport: media.Transport{Loopback: true, Filter: oneAddress},
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		select {
		case <-session.Live():
			close(live)
		case <-ctx.Done():
		}
	})
	defer cancel()
	return session.Run(ctx)
}

// oneAddress leaves one address of the machine, as a pod has: each costs a socket, with a goroutine and a buffer of pion's.
func oneAddress(ip net.IP) bool { return ip.IsLoopback() && ip.To4() != nil }

// carryByLoop relays as pion's examples do: each track that comes is written to a local one of the same codec.
func carryByLoop(ctx context.Context, client *http.Client, from, to adapters.Endpoint, live chan<- struct{}) error {
	c := &whip.Client{HTTP: client, NewPeerConnection: newLoopConnection}
	tracks := make(chan *webrtc.TrackRemote, 2)
	source, err := c.Play(ctx, from, func(pc *webrtc.PeerConnection) error {
		pc.OnTrack(func(t *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { tracks <- t })
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			_, err := pc.AddTransceiverFromKind(kind,
				webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	var remotes []*webrtc.TrackRemote
	for range 2 {
		select {
		case t := <-tracks:
			remotes = append(remotes, t)
		case <-time.After(10 * time.Second):
			return errors.New("loop: tracks do not come")
		}
	}
	var locals []*webrtc.TrackLocalStaticRTP
	target, err := c.Publish(ctx, to, func(pc *webrtc.PeerConnection) error {
		for _, remote := range remotes {
			local, err := webrtc.NewTrackLocalStaticRTP(remote.Codec().RTPCodecCapability, remote.Kind().String(), "loop")
			if err != nil {
				return err
			}
			sender, err := pc.AddTrack(local)
			if err != nil {
				return err
			}
			locals = append(locals, local)
			group.Go(func() { // interceptors see only the RTCP that is read
				buffer := make([]byte, 1500)
				for {
					if _, _, err := sender.Read(buffer); err != nil {
						return
					}
				}
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { _ = target.Close(context.WithoutCancel(ctx)) }()
	if err := target.Connected(ctx); err != nil {
		return err
	}
	for i, remote := range remotes {
		group.Go(func() {
			buffer := make([]byte, 1500)
			for {
				n, _, err := remote.Read(buffer)
				if err != nil {
					return
				}
				if _, err := locals[i].Write(buffer[:n]); err != nil && !errors.Is(err, io.ErrClosedPipe) {
					return
				}
			}
		})
	}
	close(live)
	return target.Wait(ctx)
}

func newLoopConnection(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
	var settings webrtc.SettingEngine
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetIPFilter(oneAddress)
	return webrtc.NewAPI(webrtc.WithSettingEngine(settings)).NewPeerConnection(config)
}
