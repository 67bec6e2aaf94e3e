package janus

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// ownRoom begins the description of rooms that the sidecar has made; the stream's name follows.
	ownRoom = "sidestream: "
	// ownDisplay begins the display name of participants that are the sidecar's.
	ownDisplay = "sidestream/"

	// Numbers of rooms that are made from names have this bit; people's own are far smaller. What is above 2^53 JavaScript
	// cannot count.
	hashBit = 1 << 52
)

// naming maps streams to rooms and back.
type naming struct {
	numbers bool // the server's ids are numbers: it runs without string_ids
}

// room is where a stream is published. With string_ids a room bears the stream's name. Without, a name that is a number
// is the room of that number, and any other one has a number that is made from it.
func (n naming) room(id adapters.StreamID) ident {
	if !n.numbers {
		return ident{text: string(id)}
	}
	if number, ok := plainNumber(string(id)); ok {
		return ident{text: strconv.FormatUint(number, 10), number: true}
	}
	sum := sha256.Sum256([]byte(id))
	return ident{text: strconv.FormatUint(hashBit|binary.BigEndian.Uint64(sum[:])&(hashBit-1), 10), number: true}
}

// plainNumber reads a name that is written as the number's own text, below those that are made from names.
func plainNumber(name string) (uint64, bool) {
	number, err := strconv.ParseUint(name, 10, 64)
	return number, err == nil && number > 0 && number < hashBit && strconv.FormatUint(number, 10) == name
}

// stream is whose room it is, and whether the sidecar has made it; false for rooms that cannot be a stream's.
func (n naming) stream(r room) (id adapters.StreamID, own, ok bool) {
	name, own := strings.CutPrefix(r.Description, ownRoom)
	if own && n.room(adapters.StreamID(name)) == r.Room {
		id = adapters.StreamID(name)
	} else {
		id, own = adapters.StreamID(r.Room.text), false
		if n.room(id) != r.Room { // a number made from a name that is not told
			return "", false, false
		}
	}
	return id, own, id.Validate() == nil
}

// participantID makes an id of the kind that the server takes, which nobody can guess and nobody has.
func (n naming) participantID() ident {
	if !n.numbers {
		return ident{text: nonce()}
	}
	sum := sha256.Sum256([]byte(nonce()))
	return ident{text: strconv.FormatUint(1+binary.BigEndian.Uint64(sum[:])>>12, 10), number: true}
}

// mark is the display name of a participant of the sidecar's: whose it is, and of which session with Janus.
type mark struct {
	owner, run string
}

func (m mark) display() string { return ownDisplay + m.owner + "/" + m.run }

// own says whether a display name is of a sidecar, whoever's.
func own(display string) bool { return strings.HasPrefix(display, ownDisplay) }

// ours says whether a display name is of this owner, of whichever run.
func (m mark) ours(display string) bool { return strings.HasPrefix(display, ownDisplay+m.owner+"/") }

// orphan says whether a display name is one of a session of the same owner before this one.
func (m mark) orphan(display string) bool {
	rest, ok := strings.CutPrefix(display, ownDisplay+m.owner+"/")
	return ok && rest != m.run
}

// mimeOf is the name in SDP of a codec as Janus calls it.
func mimeOf(kind, codec string) string {
	switch codec {
	case "vp8", "vp9", "av1", "h264", "h265", "pcmu", "pcma", "g722":
		codec = strings.ToUpper(codec)
	case "l16-48", "l16":
		codec = "L16"
	}
	return kind + "/" + codec
}

// roomCodecs are what a room takes that the sidecar makes: all that Janus can, the ones that most players can first.
const (
	roomVideo = "h264,vp8,vp9,av1,h265"
	roomAudio = "opus,g722,pcmu,pcma"
)
