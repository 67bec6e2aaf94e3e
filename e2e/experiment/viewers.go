//go:build linux

package main

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"syscall"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

const (
	// begin is what is left out of each measurement: the session, and the first key frame.
	begin = 3 * time.Second
	// frame is the time between two of the clip's, and freeze what browsers count as one (webrtc-stats, freezeCount): 150 ms more
	// than the mean, or three of it.
	frame  = time.Second / 30
	freeze = frame + 150*time.Millisecond
)

func mustParse(address string) *url.URL {
	u, err := url.Parse(address)
	if err != nil { // it is made of an IP address
		panic(err)
	}
	return u
}

// count plays in the counting player. It shows a frame as soon as it is whole and its turn: it has no jitter buffer.
func (e *experiment) count(ctx context.Context, h *wan.Host, address string, r *result) error {
	client, err := inside.Client(h)
	if err != nil {
		return err
	}
	var pc *webrtc.PeerConnection // there before the first frame
	open := client.NewPeerConnection
	client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		made, err := open(c)
		pc = made
		return made, err
	}
	p := player.New(client)
	var first, last time.Time
	var before uint64
	ctx, cancel := context.WithTimeout(ctx, e.length+time.Minute)
	defer cancel()
	p.OnFrame = func(now time.Time, stamp *testsource.Stamp) {
		if first.IsZero() {
			first = now
		}
		since := now.Sub(first)
		if since < begin {
			last, before = now, r.mile.Counters().Lost
			return
		}
		gap := now.Sub(last)
		last = now
		r.frames++
		if gap >= freeze {
			r.freezes++
			r.frozen += gap
		}
		r.longest = max(r.longest, gap)
		second := int((since - begin) / time.Second)
		for len(r.gaps) <= second {
			r.gaps = append(r.gaps, 0)
		}
		r.gaps[second] = max(r.gaps[second], gap)
		if stamp != nil {
			r.ages = append(r.ages, now.Sub(stamp.Sent))
		}
		if since >= begin+e.length && r.roundTrip == 0 {
			r.lost, r.roundTrip = r.mile.Counters().Lost-before, roundTrip(pc)
			cancel()
		}
	}
	if err := p.Run(ctx, endpoint(address)); r.roundTrip == 0 {
		return fmt.Errorf("the session ended early: %w", err)
	}
	return nil
}

func roundTrip(pc *webrtc.PeerConnection) (rtt time.Duration) {
	for _, s := range pc.GetStats() {
		if pair, ok := s.(webrtc.ICECandidatePairStats); ok && pair.Nominated {
			rtt = max(rtt, time.Duration(pair.CurrentRoundTripTime*float64(time.Second)))
		}
	}
	return rtt
}

func findBrowser() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// page plays, and writes down what the browser counts.
const page = `(async () => {
	const pc = new RTCPeerConnection(), video = document.createElement("video");
	video.autoplay = video.muted = true;
	document.body.append(video);
	const media = new MediaStream();
	pc.ontrack = e => { media.addTrack(e.track); video.srcObject = media; };
	for (const kind of ["video", "audio"]) pc.addTransceiver(kind, { direction: "recvonly" });
	await pc.setLocalDescription();
	await new Promise(done => { setTimeout(done, 500); pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && done(); });
	const answer = await fetch(%q, { method: "POST", headers: { "Content-Type": "application/sdp" }, body: pc.localDescription.sdp });
	if (!answer.ok) throw new Error("refused: " + answer.status);
	await pc.setRemoteDescription({ type: "answer", sdp: await answer.text() });
	setInterval(async () => {
		const seen = { FramesDecoded: 0 };
		for (const s of (await pc.getStats()).values()) {
			if (s.type === "inbound-rtp" && s.kind === "video") Object.assign(seen, {
				FramesDecoded: s.framesDecoded ?? 0, Freezes: s.freezeCount ?? 0, Frozen: s.totalFreezesDuration ?? 0, Nacks: s.nackCount ?? 0,
				BufferDelay: s.jitterBufferDelay ?? 0, Emitted: s.jitterBufferEmittedCount ?? 0 });
			if (s.type === "candidate-pair" && s.nominated) seen.RoundTrip = s.currentRoundTripTime ?? 0;
		}
		window.seen = seen;
	}, 250);
})().catch(e => { window.failure = String(e); }); 0`

// seen is what the page wrote down.
type seen struct {
	FramesDecoded, Freezes, Frozen, Nacks, BufferDelay, Emitted, RoundTrip float64
}

// browse plays in a browser that runs in the host, and is told what to do from here.
func (e *experiment) browse(ctx context.Context, browser string, h *wan.Host, address string, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, e.length+time.Minute)
	defer cancel()
	enter, err := exec.LookPath("nsenter") // chromedp starts the browser itself
	if err != nil {
		return err
	}
	allocator, stop := chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser),
		chromedp.NoSandbox, // it runs as root, and shows our page only
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-quic", true),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.Args = append([]string{enter, "--net=/var/run/netns/" + h.Namespace, cmd.Path}, cmd.Args[1:]...)
			cmd.Path = enter
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		}))...)
	defer stop()
	tab, leave := chromedp.NewContext(allocator)
	defer leave()
	if err := chromedp.Do(tab, chromedp.Navigate(mustParse(address).ResolveReference(&url.URL{Path: "/"}).String()), chromedp.Evaluate[chromedp.Void](fmt.Sprintf(page, address))); err != nil {
		return err
	}
	var first, last seen
	var lost uint64
	var since time.Time
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for since.IsZero() || time.Since(since) < begin+e.length {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the browser saw %+v: %w", last, ctx.Err())
		case <-tick.C:
		}
		failure, err := chromedp.Run(tab, chromedp.Evaluate[string](`window.failure ?? ""`))
		if err != nil {
			return err
		}
		if failure != "" {
			return fmt.Errorf("in the browser: %s", failure)
		}
		if last, err = chromedp.Run(tab, chromedp.Evaluate[seen](`window.seen ?? {}`)); err != nil {
			return err
		}
		if since.IsZero() && last.FramesDecoded > 0 {
			since = time.Now()
		}
		if !since.IsZero() && time.Since(since) < begin {
			first, lost = last, r.mile.Counters().Lost
		}
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	r.frames, r.freezes = int(last.FramesDecoded-first.FramesDecoded), int(last.Freezes-first.Freezes)
	r.frozen, r.nacks, r.roundTrip = seconds(last.Frozen-first.Frozen), int(last.Nacks-first.Nacks), seconds(last.RoundTrip)
	r.lost = r.mile.Counters().Lost - lost
	if n := last.Emitted - first.Emitted; n > 0 {
		r.buffer = seconds((last.BufferDelay - first.BufferDelay) / n)
	}
	return nil
}
