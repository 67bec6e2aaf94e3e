package relay

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// alignUnits is how many access units must tell the same: one may be a picture that stands still.
	alignUnits = 3
	// alignDoubt is how many matches for the offset outweigh one against it.
	alignDoubt = 4
)

// seam is how the packets of a new source go on where another's end. The two are copies of one publication then, aligned by
// what they carry.
type seam struct {
	shift media.Shift
	// exact is set where the two are packed alike: packets match one to one, and shift holds for sequence numbers too. What of
	// the old source was lost since from, as it goes out, can be filled in.
	exact bool
	from  uint16
}

// inOrder sorts packets by sequence number, around that of the newest in order of arrival, and leaves each once.
func inOrder(packets []media.Packet) []media.Packet {
	if len(packets) == 0 {
		return packets
	}
	middle := packets[len(packets)-1].Header.SequenceNumber
	slices.SortStableFunc(packets, func(a, b media.Packet) int {
		return int(int16(a.Header.SequenceNumber-middle)) - int(int16(b.Header.SequenceNumber-middle))
	})
	return slices.CompactFunc(packets, func(a, b media.Packet) bool {
		return a.Header.SequenceNumber == b.Header.SequenceNumber
	})
}

// tolerance is by how many ticks timestamps of copies may differ: servers round.
func tolerance(clockRate uint32) int32 { return int32(clockRate / 1000) }

// align finds out how the packets of a new copy lie to those of the old one, both in order of sequence number: by their
// content, which must be unique in both, since pictures that stand still and silence repeat themselves.
func align(mime string, clockRate uint32, descriptor uint8, before, after []media.Packet) (seam, bool) {
	if s, ok := alignPackets(mime, descriptor, before, after); ok {
		return s, true
	}
	return alignUnitsOf(mime, clockRate, descriptor, before, after)
}

// once are the keys that a sequence has once, with their places.
type once map[uint64]int

func (o once) add(key uint64, place int) {
	if _, ok := o[key]; ok {
		place = -1
	}
	o[key] = place
}

// alignPackets tries whether packets match one to one.
func alignPackets(mime string, descriptor uint8, before, after []media.Packet) (seam, bool) {
	known, fresh := make(once), make(once)
	hashes := make(map[uint16]uint64)
	for i := range before {
		if len(before[i].Payload) > 0 {
			hash := media.ContentHash(mime, before[i].Payload)
			hashes[before[i].Header.SequenceNumber] = hash
			known.add(hash, i)
		}
	}
	for i := range after {
		if len(after[i].Payload) > 0 {
			fresh.add(media.ContentHash(mime, after[i].Payload), i)
		}
	}
	type offset struct {
		sequence  uint16
		timestamp uint32
	}
	votes := make(map[offset]map[uint32]struct{}) // distinct timestamps
	total := 0
	var best offset
	last := -1 // in after
	for hash, i := range fresh {
		j, ok := known[hash]
		if !ok || i < 0 || j < 0 {
			continue
		}
		a, b := &after[i].Header, &before[j].Header
		o := offset{b.SequenceNumber - a.SequenceNumber, b.Timestamp - a.Timestamp}
		if votes[o] == nil {
			votes[o] = make(map[uint32]struct{})
		}
		if _, ok := votes[o][a.Timestamp]; !ok {
			votes[o][a.Timestamp] = struct{}{}
			total++
		}
		if len(votes[o]) > len(votes[best]) {
			best = o
		}
	}
	n := len(votes[best])
	if n < alignUnits || n < (total-n)*alignDoubt {
		return seam{}, false
	}
	s := seam{exact: true, shift: media.Shift{Sequence: best.sequence, Timestamp: best.timestamp}}
	first := true
	// Where each frame is one packet everybody packs alike; that tells nothing of the next one.
	split := strings.HasPrefix(strings.ToLower(mime), "audio/")
	for i := range after {
		if len(after[i].Payload) == 0 {
			continue
		}
		seq := after[i].Header.SequenceNumber + best.sequence
		there, ok := hashes[seq]
		if !ok {
			continue
		}
		hash := media.ContentHash(mime, after[i].Payload)
		if hash != there {
			return seam{}, false // packed otherwise, and alike only in places
		}
		if first {
			s.from, first = seq, false
		}
		if known[hash] >= 0 {
			last = i
		}
		split = split || i > 0 && after[i-1].Header.Timestamp == after[i].Header.Timestamp
	}
	if last < 0 || !split {
		return seam{}, false
	}
	other := before[known[media.ContentHash(mime, after[last].Payload)]]
	s.shift = withPictures(s.shift, after[last].Pictures(mime, descriptor).To(other.Pictures(mime, descriptor)))
	return s, true
}

func withPictures(s, pictures media.Shift) media.Shift {
	s.Picture, s.Level, s.Frame = pictures.Picture, pictures.Level, pictures.Frame
	return s
}

// alignUnitsOf compares what survives when a server makes packets anew. It tells how timestamps lie.
func alignUnitsOf(mime string, clockRate uint32, descriptor uint8, before, after []media.Packet) (seam, bool) {
	old, fresh := media.Units(mime, before), media.Units(mime, after)
	known, new := make(once), make(once)
	for i, u := range old {
		for _, hash := range u.Content {
			known.add(hash, i)
		}
	}
	for i, u := range fresh {
		for _, hash := range u.Content {
			new.add(hash, i)
		}
	}
	type pair struct{ old, fresh int }
	offsets := make(map[pair]uint32)
	for hash, i := range new {
		if j, ok := known[hash]; ok && i >= 0 && j >= 0 {
			offsets[pair{j, i}] = old[j].Timestamp - fresh[i].Timestamp
		}
	}
	var newest pair
	var best uint32
	most := 0
	for p, o := range offsets {
		n := 0
		for _, other := range offsets {
			if d := int32(other - o); max(d, -d) <= tolerance(clockRate) {
				n++
			}
		}
		if n > most || n == most && p.fresh > newest.fresh {
			most, best, newest = n, o, p
		}
	}
	if most < alignUnits || most < (len(offsets)-most)*alignDoubt {
		return seam{}, false
	}
	a, b := after[fresh[newest.fresh].First], before[old[newest.old].First]
	shift := media.Shift{Timestamp: best}
	return seam{shift: withPictures(shift, a.Pictures(mime, descriptor).To(b.Pictures(mime, descriptor)))}, true
}

// alignTail is for copies that have too few frames in common to be sure by those alone: the new one begins with a key frame
// that is among the last frames of the old one, and is the same up to the old one's end. near says whether an offset of
// timestamps is about what the clocks say: a picture that stands still may have one key frame like the next.
func alignTail(
	mime string, clockRate uint32, descriptor uint8, before, after []media.Packet, near func(offset uint32) bool,
) (seam, bool) {
	old, fresh := media.Units(mime, before), media.Units(mime, after)
	if len(fresh) == 0 || !fresh[0].Whole || !after[fresh[0].First].KeyFrame {
		return seam{}, false
	}
	from := slices.IndexFunc(old, func(u media.Unit) bool { return u.Whole && slices.Equal(u.Content, fresh[0].Content) })
	if from < 0 {
		return seam{}, false
	}
	offset := old[from].Timestamp - fresh[0].Timestamp
	for i, u := range old[from:] {
		if i == len(fresh) {
			break
		}
		apart := int32(u.Timestamp - fresh[i].Timestamp - offset)
		alike := !u.Whole || !fresh[i].Whole || slices.Equal(u.Content, fresh[i].Content)
		if !alike || max(apart, -apart) > tolerance(clockRate) {
			return seam{}, false
		}
	}
	if !near(offset) {
		return seam{}, false
	}
	a, b := after[fresh[0].First], before[old[from].First]
	shift := media.Shift{Timestamp: offset}
	return seam{shift: withPictures(shift, a.Pictures(mime, descriptor).To(b.Pictures(mime, descriptor)))}, true
}

// line is how a source's timestamps run by the time of arrival, taken at the packets that were on their way the shortest.
type line struct {
	at        time.Time
	timestamp uint32
	clockRate uint32
	ok        bool
}

func lineOf(packets []media.Packet, clockRate uint32) line {
	l := line{clockRate: clockRate}
	for i := range packets {
		p := &packets[i]
		if !l.ok || int32(p.Header.Timestamp-l.timestampAt(p.Arrival)) > 0 {
			l.at, l.timestamp, l.ok = p.Arrival, p.Header.Timestamp, true
		}
	}
	return l
}

func (l line) timestampAt(t time.Time) uint32 {
	return l.timestamp + ticks(t.Sub(l.at), l.clockRate)
}

// ticks is a time in units of a clock, which may run over.
func ticks(d time.Duration, clockRate uint32) uint32 {
	return uint32(int64(math.Round(d.Seconds() * float64(clockRate))))
}

// clock is what a source says of one track's timestamps and its own time.
type clock struct {
	ntp       uint64
	timestamp uint32
	clockRate uint32
	ok        bool
}

// timestampAt is the timestamp at a moment of the source's time.
func (c clock) timestampAt(ntp uint64) uint32 {
	return media.SenderReport{NTP: c.ntp, RTP: c.timestamp}.At(ntp, c.clockRate)
}

// ntpAt is the source's time at a timestamp.
func (c clock) ntpAt(timestamp uint32) uint64 {
	return c.ntp + uint64(int64(float64(int32(timestamp-c.timestamp))/float64(c.clockRate)*(1<<32)))
}

// side is one source's part of a lane, as far as clocks go.
type side struct {
	line  line
	clock clock
}

// carried gives the offset of one lane's timestamps from that of another, so that audio and video stay as far apart as the new
// source has them: by what both sources say of their clocks, else by arrival. to and from are the lane's and the other's,
// offset is the other's.
func carried(oldTo, newTo, oldFrom, newFrom side, offset uint32) (uint32, bool) {
	if oldTo.clock.ok && newTo.clock.ok && oldFrom.clock.ok && newFrom.clock.ok {
		at := newFrom.clock.timestamp
		return oldTo.clock.timestampAt(oldFrom.clock.ntpAt(at+offset)) - newTo.clock.timestampAt(newFrom.clock.ntpAt(at)), true
	}
	if !oldTo.line.ok || !newTo.line.ok || !oldFrom.line.ok || !newFrom.line.ok {
		return 0, false
	}
	// The new source is this much later on its way than the old one.
	now := newFrom.line.at
	later := float64(int32(offset-(oldFrom.line.timestampAt(now)-newFrom.line.timestamp))) / float64(newFrom.line.clockRate)
	shift := uint32(int64(math.Round(later * float64(newTo.line.clockRate))))
	return oldTo.line.timestampAt(now) - newTo.line.timestampAt(now) + shift, true
}

// onGrid moves an offset of an audio track by less than half a packet, so that timestamps go on in the step they had.
func onGrid(offset, last, next, step uint32) uint32 {
	if step == 0 {
		return offset
	}
	gap := int64(int32(next + offset - last))
	aligned := int64(math.Round(float64(gap)/float64(step))) * int64(step)
	return offset + uint32(aligned-gap)
}

// stepOf is the distance of timestamps from packet to packet, 0 where they are not even.
func stepOf(packets []media.Packet) uint32 {
	steps := make(map[uint32]int)
	for i := 1; i < len(packets); i++ {
		if a, b := &packets[i-1].Header, &packets[i].Header; b.SequenceNumber == a.SequenceNumber+1 {
			steps[b.Timestamp-a.Timestamp]++
		}
	}
	for step, n := range steps {
		if n*2 > len(packets) && step > 0 && step < 1<<16 {
			return step
		}
	}
	return 0
}
