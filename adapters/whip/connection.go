package whip

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

// connection is a PeerConnection with its states as channels.
type connection struct {
	pc       *webrtc.PeerConnection
	complete <-chan struct{} // gathering has ended

	connected, failed, closed chan struct{}
	markConnected             func()
	markFailed, markClosed    func()
}

// newConnection watches a connection on which nothing has begun yet.
func newConnection(pc *webrtc.PeerConnection) *connection {
	c := &connection{
		pc: pc, connected: make(chan struct{}), failed: make(chan struct{}), closed: make(chan struct{}),
	}
	c.markConnected = sync.OnceFunc(func() { close(c.connected) })
	c.markFailed = sync.OnceFunc(func() { close(c.failed) })
	c.markClosed = sync.OnceFunc(func() { close(c.closed) })
	c.complete = webrtc.GatheringCompletePromise(pc)
	// Pion calls this in a goroutine of its own for each state, so the order in which they arrive says nothing.
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		switch state {
		case webrtc.PeerConnectionStateConnected:
			c.markConnected()
		case webrtc.PeerConnectionStateFailed:
			c.markFailed()
		case webrtc.PeerConnectionStateClosed:
			c.markClosed()
		}
	})
	return c
}

// describe sets the local description and returns it with the candidates that were found within the bound.
func (c *connection) describe(
	ctx context.Context, d webrtc.SessionDescription, bound time.Duration,
) (described, error) {
	if err := c.pc.SetLocalDescription(d); err != nil {
		return described{}, err
	}
	if _, err := c.gathered(ctx, bound); err != nil {
		return described{}, err
	}
	return c.described()
}

// described reads the local description as it now stands.
func (c *connection) described() (described, error) {
	text := c.pc.LocalDescription().SDP
	var parsed sdp.SessionDescription
	if err := parsed.UnmarshalString(text); err != nil {
		return described{}, err
	}
	if len(parsed.MediaDescriptions) == 0 {
		return described{}, errors.New("description without media")
	}
	first := parsed.MediaDescriptions[0]
	d := described{sdp: text, line: first.MediaName.String()}
	for _, attributes := range [][]sdp.Attribute{parsed.Attributes, first.Attributes} {
		for _, a := range attributes {
			switch a.Key {
			case "ice-ufrag":
				d.ufrag = a.Value
			case "ice-pwd":
				d.pwd = a.Value
			case "mid":
				d.mid = a.Value
			case "candidate":
				// Those of the second component are for RTCP, which shares the port of the first (rtcp-mux).
				if fields := strings.Fields(a.Value); len(fields) > 1 && fields[1] == "1" {
					d.candidates = append(d.candidates, a.Value)
				}
			case "end-of-candidates":
				d.complete = true
			}
		}
	}
	return d, nil
}

// gathered waits until all candidates are there, and says so. It waits no longer than the bound, nor once the fate of
// the connection is known.
func (c *connection) gathered(ctx context.Context, bound time.Duration) (bool, error) {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-c.complete:
	case <-c.connected:
	case <-c.failed:
	case <-c.closed:
	case <-timer.C:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return isClosed(c.complete), nil
}

// free closes the connection and waits until nothing of it runs.
func (c *connection) free() {
	_ = c.pc.GracefulClose() // what it reports, nobody can act on
	// GracefulClose does not wait for the callback, which pion starts by "go" (PeerConnection.onConnectionStateChange).
	// It comes at once, unless the caller has put another callback in its place.
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-c.closed:
	case <-timer.C:
	}
}

// described is a local description and what it says of ICE.
type described struct {
	sdp                   string
	ufrag, pwd, line, mid string // of the first media section
	candidates            []string
	complete              bool // no more candidates will come
}

// fragment trickles candidates. It names the first media section, which stands for the whole bundle (RFC 9725, section
// 4.3.1).
func (d described) fragment(candidates []string) Fragment {
	return Fragment{
		FragmentICE: FragmentICE{Ufrag: d.ufrag, Pwd: d.pwd},
		Media: []FragmentMedia{{
			Line: d.line, MID: d.mid,
			FragmentICE: FragmentICE{Candidates: candidates, EndOfCandidates: d.complete},
		}},
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
