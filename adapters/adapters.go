// Package adapters is the border between Sidestream and the media servers that it stands beside: the words and the
// one interface by which a sidecar knows a server. It depends on the standard library only, so that an adapter can be
// written from this page alone; each server lives in a package below, and adaptertest checks them all the same way.
package adapters

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrNoStream says that nobody publishes a stream of the name that was asked for.
var ErrNoStream = errors.New("no such stream")

// MaxStreamID bounds the length of a stream's name, in bytes.
const MaxStreamID = 255

// StreamID is the name of a live publication. It is the same in every region and at every server. It may hold slashes
// (MediaMTX paths do) but never starts or ends with one.
type StreamID string

// Validate reports why a name cannot be one of a stream: empty, too long, not UTF-8, control characters, or path
// elements that a URL would swallow.
func (id StreamID) Validate() error {
	s := string(id)
	switch {
	case s == "":
		return errors.New("stream name is empty")
	case len(s) > MaxStreamID:
		return fmt.Errorf("stream name is %d bytes long; at most %d are allowed", len(s), MaxStreamID)
	case !utf8.ValidString(s):
		return errors.New("stream name is not UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("stream name holds a control character")
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("stream name %q has an empty or dotted path element", s)
		}
	}
	return nil
}

// Track is one audio or video track of a stream.
type Track struct {
	Kind string // "audio" or "video"
	MIME string // as in SDP: "video/H264", "audio/opus"; empty where the server does not say
	RID  string // the simulcast layer (RFC 8851), empty without simulcast
}

// Stream is a publication as the server sees it.
type Stream struct {
	ID StreamID
	// Session is the server's own name of this publication; a new publisher of the same stream has another one. Where
	// the server's WHIP Location ends in that name, a sidecar knows its own publications by it.
	Session string
	// Relayed is set where the server shows something that came with the request to Ingest and that no other publisher
	// sends: the publication is a sidecar's own, of this process or of one before it. Adapters whose server's Location
	// does not end in Session mark their requests to Ingest where they can.
	Relayed bool
	Since   time.Time
	Tracks  []Track // what a play by WHEP gives
	// Lacks says in words what of the publication a play by WHEP does not give; empty where nothing is known to be missing.
	Lacks string
	// Readers counts who plays the stream from this server, by whatever protocol; -1 where the server does not say.
	Readers int
	// Waiting is set on a name that somebody plays and nobody publishes, at servers that accept such a play.
	Waiting bool
}

// Endpoint is where to POST an SDP offer, and with which header fields (Authorization, and what else the server asks
// for).
type Endpoint struct {
	URL    *url.URL
	Header http.Header
}

// Request is what an HTTP request to a media server wants.
type Request struct {
	ID      StreamID
	Publish bool // else a play
}

// Traits say what a make of server can and cannot do.
type Traits struct {
	Codecs                []string      // MIME types that it accepts; empty means all
	Extensions            []string      // RTP header extension URIs that it passes on
	InOrder               bool          // packets must reach it in order
	MaxHold               time.Duration // the longest that it holds a packet back for one that is missing
	FillAudio             bool          // holes in audio must be filled: it counts packets to make timestamps
	DropsReadersOnReplace bool          // readers are closed when the publisher changes
	AcceptsAndWaits       bool          // a play of a name that nobody publishes is accepted and waits
	IgnoresPLI            bool          // key frame requests of its readers do not reach the publisher
	Aliases               bool          // a stream can be published under another name and served under its own
}

// Adapter is all that a sidecar needs to know of the server beside it. Its methods may be called concurrently.
type Adapter interface {
	// Name is a short constant for logs, labels and annotations: "pionsfu", "mediamtx".
	Name() string
	Traits() Traits
	// Ingest is where a WHIP offer for the stream goes (RFC 9725).
	Ingest(id StreamID) Endpoint
	// Egress is where a WHEP offer for the stream goes (draft-ietf-wish-whep).
	Egress(id StreamID) Endpoint
	// Match says whether an HTTP request, as a publisher or viewer sends it to the server, opens a publication or a
	// play, and of which stream. It looks at method, path and header, never at the body. The name may be one that is not valid.
	Match(r *http.Request) (Request, bool)
	// Missing says whether the server's answer to a play means that nobody publishes the stream.
	Missing(status int, header http.Header, body []byte) bool
	// Watch reports the full set of streams, first as it stands and then at every change, never from two goroutines at
	// once. It blocks until ctx ends (and returns its error) or the server cannot be asked (and says why); the caller
	// calls again. A report must not be changed by either side afterwards.
	Watch(ctx context.Context, report func([]Stream)) error
}

// Looker is implemented by adapters that poll their server. A request that passed the gateway makes them look at once and,
// for some seconds, every 50 ms, so that the stream is announced as soon as it has media.
type Looker interface {
	// Look says that something is about to change at the server. It does not block.
	Look()
}

// Confirmer is implemented by adapters that poll their server: a report is true for as long as the server confirms it.
type Confirmer interface {
	// Confirmed is when the server told its streams last, whether or not they had changed; zero: it never has.
	Confirmed() time.Time
}

// Observer is implemented by adapters whose server does not tell its streams: they are told what passed the gateway.
type Observer interface {
	// Observe takes the full set of publications that were opened through the gateway and are not known to have ended. Session
	// is the path of each one's Location. It does not block.
	Observe(seen []Stream)
}

// Occupier is implemented by adapters whose server does not answer 409 to a publisher of a name that another one publishes.
type Occupier interface {
	// Occupied says whether an answer to a publisher means that.
	Occupied(status int, header http.Header, body []byte) bool
}

// Ender is implemented by adapters whose server can end a publication.
type Ender interface {
	End(ctx context.Context, s Stream) error
}

// Credentials are what a server is shown: a bearer token, else a user and password (RFC 7617). The zero value is nothing.
// Printing and logging hide them.
type Credentials struct {
	User, Password, Token string
}

// Header is the credentials as a request carries them; never nil.
func (c Credentials) Header() http.Header {
	h := make(http.Header)
	switch {
	case c.Token != "":
		h.Set("Authorization", "Bearer "+c.Token)
	case c.User != "" || c.Password != "":
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Password)))
	}
	return h
}

// String tells the kind of credentials only.
func (c Credentials) String() string {
	switch {
	case c.Token != "":
		return "a token"
	case c.User != "" || c.Password != "":
		return "a user and password"
	}
	return "no credentials"
}

// GoString is String, for %#v.
func (c Credentials) GoString() string { return c.String() }
