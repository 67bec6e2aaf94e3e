package probe

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// holding is the pause from which on a server is taken to wait for a packet that is missing, rather than to be slow.
	holding = 600 * time.Millisecond
	// forever is how often a packet is withheld that shall never come by itself.
	forever = 1 << 20
	// flood is the number of key frame requests in a second that no encoder should be asked for.
	flood = 5
)

// tryDetails publishes a stream with key frames on request only, and looks closely at what becomes of it.
func (p *Probe) tryDetails(ctx context.Context) {
	if p.target.play == "" {
		return
	}
	p.say("looking at key frames, repair and clocks")
	name, c := p.name("details"), p.fact().main
	b, err := p.publish(ctx, publishing{name: name, content: c, extensions: true})
	if err != nil {
		p.note("key.join", Skip, "no stream to look at: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	v, err := p.playSoon(ctx, playing{name: name, content: c, plain: true})
	if err != nil {
		p.note("key.join", Skip, "no play to look at: %s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // other steps look at that
	if !v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 10 && len(v.sounds) > 10 }) {
		p.note("key.join", Skip, "no frames to look at")
		return
	}
	began := time.Now()
	every := p.tryJoin(ctx, b, c)
	p.tryRequest(ctx, b, v, every)
	p.noteRate(b, began, every)
	p.tryRepairPublisher(ctx, b, v)
	p.tryRepairViewer(ctx, v)
	p.noteRTX(b, v)
	p.tryHole(ctx, b, v)
	p.noteClocks(ctx, b, v)
	p.noteExtensions(b, v)
}

// tryJoin has a second viewer come, who asks for nothing, and finds out before whether the server asks for key frames of
// itself: the time between two such requests, zero where there were none.
func (p *Probe) tryJoin(ctx context.Context, b *publisher, c content) (every time.Duration) {
	quiet := time.Now()
	if !b.wait(ctx, p.bounds.quiet, func() bool { return b.asked(quiet) > 1 }) {
		b.wait(ctx, p.bounds.quiet, func() bool { return b.asked(quiet) != 1 })
	}
	b.mu.Lock()
	var asked []time.Time
	for _, at := range b.requests {
		if at.After(quiet) {
			asked = append(asked, at)
		}
	}
	b.mu.Unlock()
	switch {
	case len(asked) > 1:
		every = asked[1].Sub(asked[0])
	case len(asked) == 1:
		every = p.bounds.quiet
	}

	join := time.Now()
	v, err := p.play(ctx, playing{name: b.how.name, content: c, silent: true})
	if err != nil {
		p.note("key.join", Warn, "a second viewer is refused: %s", why(err))
		return every
	}
	defer v.close() //nolint:errcheck // other steps look at that
	came := v.wait(ctx, p.bounds.wait/2, func() bool { return v.keys > 0 })
	b.mu.Lock()
	requests, sent := b.asked(join), false
	for _, f := range b.frames {
		sent = sent || f.key && f.at.After(join)
	}
	b.mu.Unlock()
	var took time.Duration
	v.look(func() { took = v.firstKey })
	p.learn(func(f *facts) { f.firstKey = max(took, every) })
	switch {
	case !came && requests > 0:
		p.note("key.join", Fail, "the publisher is asked for a key frame when a viewer comes, and the viewer does not get it")
	case !came, requests == 0 && sent && every == 0:
		p.note("key.join", Warn, "nobody asks the publisher for a key frame when a viewer comes: who does not ask himself waits for the next")
	case !sent:
		p.note("key.join", OK, "a viewer gets a key frame from the server's memory, %s after his offer", ms(took))
	case every > 0:
		p.note("key.join", Warn, "a viewer's first key frame may have to wait for the server's own request; here it came %s after his offer",
			ms(took))
	default:
		p.note("key.join", OK, "the publisher is asked for a key frame when a viewer comes; it is there %s after the offer", ms(took))
	}
	return every
}

// tryRequest sends a viewer's request for a key frame at a moment when the server has just sent one of its own, or none.
func (p *Probe) tryRequest(ctx context.Context, b *publisher, v *viewer, every time.Duration) {
	if every > 0 && every < time.Second {
		p.note("key.request", Skip, "the server asks for key frames all the time, so that a viewer's request cannot be told from its own")
		return
	}
	for range 2 {
		if every > 0 {
			now := time.Now()
			b.wait(ctx, 2*every, func() bool { return b.asked(now) > 0 })
		}
		sleep(ctx, 300*time.Millisecond)
		began := time.Now()
		v.requestKeyFrame()
		window := 1500 * time.Millisecond // servers let one pass a second
		if every > 0 {
			window = min(window, every-500*time.Millisecond)
		}
		if b.wait(ctx, window, func() bool { return b.asked(began) > 0 }) {
			p.note("key.request", OK, "a viewer's request for a key frame (PLI) reaches the publisher, after %s", ms(time.Since(began)))
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	p.learn(func(f *facts) { f.traits.IgnoresPLI = true })
	text := "viewers' requests for key frames (PLI) do not reach the publisher"
	if every > 0 {
		text += fmt.Sprintf("; the server asks by itself, every %.1f s", every.Seconds())
	}
	p.note("key.request", Warn, "%s", text)
}

// noteRate says how often the publisher was asked for key frames.
func (p *Probe) noteRate(b *publisher, began time.Time, every time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	busiest := 0
	for i, at := range b.requests {
		n := 0
		for _, other := range b.requests[i:] {
			if other.Sub(at) < time.Second {
				n++
			}
		}
		busiest = max(busiest, n)
	}
	total, span := b.asked(began), time.Since(began)
	switch {
	case busiest > flood:
		p.note("key.rate", Warn, "up to %d requests for key frames in a second; relays let one pass", busiest)
	case every > 0:
		p.note("key.rate", Warn, "the publisher is asked for a key frame every %.1f s for ever; relays answer from memory where they can",
			every.Seconds())
	default:
		p.note("key.rate", OK, "%d requests for key frames in %.0f s, at most %d in one", total, span.Seconds(), busiest)
	}
}

// tryRepairPublisher loses a packet on the way to the server.
func (p *Probe) tryRepairPublisher(ctx context.Context, b *publisher, v *viewer) {
	lost, ok := b.drop(ctx, p.bounds.wait, true, 1)
	if !ok {
		return
	}
	asked := b.wait(ctx, p.bounds.quiet, func() bool { return !b.nacks[lost.seq].IsZero() })
	if !asked {
		p.note("repair.publisher", Warn, "the server asks for nothing that it misses: what is lost on the way to it stays lost")
		return
	}
	b.mu.Lock()
	took := b.nacks[lost.seq].Sub(lost.at)
	b.mu.Unlock()
	if v.wait(ctx, p.bounds.quiet, func() bool { _, came := v.frames[lost.number]; return came }) {
		p.note("repair.publisher", OK, "the server asks for what it misses after %s, and the frame comes out whole", ms(took))
	} else {
		p.note("repair.publisher", Warn, "the server asks for what it misses after %s, and the frame is missing all the same", ms(took))
	}
}

// tryRepairViewer asks the server for packets again.
func (p *Probe) tryRepairViewer(ctx context.Context, v *viewer) {
	for range 3 {
		var seq uint16
		v.look(func() { seq = v.newest - 3 })
		began := time.Now()
		v.requestAgain(seq)
		if v.wait(ctx, p.bounds.quiet/3, func() bool { return v.twice[seq] > 1 }) {
			p.note("repair.viewer", OK, "the server sends again what a viewer asks for (NACK), after %s", ms(time.Since(began)))
			return
		}
	}
	if ctx.Err() == nil {
		p.note("repair.viewer", Fail, "the server sends nothing again (NACK): what is lost on the way to viewers and other regions stays lost")
	}
}

func (p *Probe) noteRTX(b *publisher, v *viewer) {
	up, _ := b.tamper.resent()
	down, negotiated := 0, false
	v.look(func() { down, negotiated = v.repaired, v.rtx })
	switch {
	case up > 0 && down > 0:
		p.note("repair.rtx", OK, "retransmissions have a stream of their own (RTX), both ways")
	case down > 0:
		p.note("repair.rtx", OK, "retransmissions to viewers have a stream of their own (RTX); those to the server have not")
	case up > 0:
		p.note("repair.rtx", Warn, "retransmissions to the server have a stream of their own (RTX); those to viewers have not")
	case negotiated:
		p.note("repair.rtx", Warn, "RTX is negotiated and not used")
	default:
		p.note("repair.rtx", Warn, "no RTX: retransmissions come in the stream itself, where receivers with a short replay window lose them")
	}
}

// tryHole withholds a packet of video and one of sound for good, and looks at what that does to the rest.
func (p *Probe) tryHole(ctx context.Context, b *publisher, v *viewer) {
	var video, audio time.Duration
	var lost, silence missing
	for try := range 2 {
		v.update(func() { clear(v.stall) })
		var ok, also bool
		lost, ok = b.drop(ctx, p.bounds.wait, true, forever)
		silence, also = b.drop(ctx, p.bounds.wait, false, forever)
		if !ok || !also {
			return
		}
		sleep(ctx, p.bounds.hold)
		v.look(func() {
			v.pace(true) // what has not ended yet is a pause as well
			v.pace(false)
			video, audio = v.stall[true], v.stall[false]
		})
		if max(video, audio) < holding || try > 0 {
			break
		}
	}
	if ctx.Err() != nil {
		return
	}
	b.tamper.release(lost.ssrc, lost.seq)
	late := v.wait(ctx, p.bounds.quiet/2, func() bool { _, came := v.frames[lost.number]; return came })
	hold := max(video, audio)
	switch {
	case hold >= holding:
		p.learn(func(f *facts) { f.traits.InOrder, f.traits.MaxHold = true, hold.Round(10*time.Millisecond) })
		p.note("repair.order", Warn, "a packet that never comes stops the rest for %s (video %s, sound %s): relays put packets in order for it",
			ms(hold), ms(video), ms(audio))
	case late:
		p.note("repair.order", OK, "a missing packet stops nothing, and goes on when it comes late")
	default:
		p.note("repair.order", OK, "a missing packet stops nothing; when it comes %s late it is dropped", ms(p.bounds.hold))
	}
	p.noteAudioHole(b, v, silence)
}

// noteAudioHole says whether the time of sound goes on over a hole.
func (p *Probe) noteAudioHole(b *publisher, v *viewer, lost missing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	before, after := lost.number-1, lost.number+1
	from, ok := v.sounds[before]
	to, also := v.sounds[after]
	if !ok || !also {
		p.note("repair.audio", Warn, "a missing packet of sound takes its neighbours with it")
		return
	}
	sent := b.sounds[after].timestamp - b.sounds[before].timestamp
	if got := to.timestamp - from.timestamp; got != sent {
		p.learn(func(f *facts) { f.traits.FillAudio = true })
		p.note("repair.audio", Warn, "a hole of %d ms in the sound becomes one of %d ms: lips go out of step unless relays fill holes",
			sent/48-20, int32(got)/48-20) //nolint:gosec // may be negative
		return
	}
	p.note("repair.audio", OK, "the time of sound goes on over a hole")
}

// noteClocks looks at sender reports: whether there are any, and whether they say what the publisher's said.
func (p *Probe) noteClocks(ctx context.Context, b *publisher, v *viewer) {
	v.wait(ctx, p.bounds.wait, func() bool { return v.reports[true].count > 0 && v.reports[false].count > 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	video, audio := v.reports[true], v.reports[false]
	if video.count == 0 || audio.count == 0 {
		p.note("clock.reports", Warn, "%d sender reports of video and %d of sound: players cannot keep lips in step", video.count, audio.count)
		return
	}
	p.note("clock.reports", OK, "sender reports of both")
	picture, ok := clockError(b.frames, v.frames, video, 90000, -skew)
	sound, also := clockError(b.sounds, v.sounds, audio, 48000, 0)
	if !ok || !also {
		p.note("clock.lipsync", Skip, "too little came to tell")
		return
	}
	switch off := picture - sound; {
	case off.Abs() < skew/3 && sound.Abs() < time.Second:
		p.note("clock.lipsync", OK, "the publisher's clocks are passed on: lips stay in step over any number of hops")
	case off.Abs() < skew/3:
		p.note("clock.lipsync", OK, "picture and sound keep their relation, by a clock of the server's own")
	default:
		p.note("clock.lipsync", Warn, "reports are made anew from times of arrival: picture and sound that a publisher sends %s apart "+
			"stay %s apart", ms(skew), ms(off.Abs()))
	}
}

// clockError is how much later the server's report says that the newest thing was that came of what was sent, than the
// publisher's own.
func clockError(sent map[uint32]sent, came map[uint32]seen, r senderReport, clock int64, correction time.Duration) (time.Duration, bool) {
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(came))) {
		s, ok := sent[n]
		if !ok {
			continue
		}
		ticks := int64(int32(came[n].timestamp - r.rtp)) //nolint:gosec // the difference has a sign
		says := ntpBetween(ntp(s.at.Add(correction)), r.ntp) + time.Duration(ticks)*time.Second/time.Duration(clock)
		return says, true
	}
	return 0, false
}

// noteExtensions says which header extensions came through.
func (p *Probe) noteExtensions(b *publisher, v *viewer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	var passed, uris, changed, gone []string
	foreign := 0
	for _, m := range v.marks {
		foreign += m.foreign
	}
	for _, uri := range slices.Sorted(maps.Keys(marks)) {
		switch m := v.marks[uri]; {
		case m.same > 0:
			passed, uris = append(passed, shortURI(uri)), append(uris, uri)
		case m.other != "":
			changed = append(changed, shortURI(uri))
		default:
			gone = append(gone, shortURI(uri))
		}
	}
	p.learn(func(f *facts) { f.traits.Extensions = uris })
	var parts []string
	for _, part := range []struct {
		what string
		of   []string
	}{{"pass", passed}, {"come changed", changed}, {"do not pass", gone}} {
		if len(part.of) > 0 {
			parts = append(parts, part.what+": "+strings.Join(part.of, ", "))
		}
	}
	text := strings.Join(parts, "; ")
	switch {
	case foreign > 0:
		p.note("extensions", Fail, "header extensions are passed on by number and not by name, so that one is taken for another; %s", text)
	case len(passed) == len(marks):
		p.note("extensions", OK, "%s", text)
	default:
		p.note("extensions", Warn, "%s", text)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
