package testsource

import "sync/atomic"

// keyFrameGap is how many frames lie at least between a key frame and one that is asked for: 200 ms.
const keyFrameGap = FrameRate / 5

// playhead says what of the clip comes next. Jumps move picture and sound together.
type playhead struct {
	clip     *Clip
	frames   int // played
	sounds   int // played
	skipped  int // frames, by jumps
	sinceKey int // frames played since the last key frame
}

// frame returns the next picture. If one is wished for and the last was not just now, that is the next key frame of the
// clip, and the wish is fulfilled.
func (h *playhead) frame(wish *atomic.Bool) (frame Frame, jumped bool) {
	index := (h.frames + h.skipped) % len(h.clip.Video)
	if wish.Load() && h.frames > 0 && h.sinceKey >= keyFrameGap && !h.clip.Video[index].Key {
		for !h.clip.Video[index].Key {
			h.skipped++
			index = (h.frames + h.skipped) % len(h.clip.Video)
		}
		jumped = true
	}
	frame = h.clip.Video[index]
	h.frames++
	h.sinceKey++
	if frame.Key {
		wish.Store(false)
		h.sinceKey = 0
	}
	return frame, jumped
}

// sound returns the next audio packet: the one that belongs to the picture, to the nearest 10 ms.
func (h *playhead) sound() []byte {
	skipped := (h.skipped*AudioRate + FrameRate/2) / FrameRate
	index := (h.sounds + skipped) % len(h.clip.Audio)
	h.sounds++
	return h.clip.Audio[index]
}
