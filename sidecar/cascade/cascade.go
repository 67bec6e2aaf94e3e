// Package cascade is what the nodes of a mesh say of themselves, and what can be concluded from it: where a stream is, and if it is
// not, why. It holds values only, and asks nobody.
package cascade

import "time"

// Cascade is the mesh as one node sees it, with what the others say of themselves.
type Cascade struct {
	At    time.Time `json:"at"`
	Here  string    `json:"here"` // the node
	Nodes []Node    `json:"nodes"`
}

// Node is one of the mesh. Report is what it says of itself, nil where it could not be asked: Error says why.
type Node struct {
	Node      string  `json:"node"`
	Cluster   string  `json:"cluster"`
	Version   string  `json:"version,omitempty"`
	Connected bool    `json:"connected"` // to the node that looks
	RTTMs     float64 `json:"rttMs"`     // from there; 0: not known
	Error     string  `json:"error,omitempty"`
	Report    *Report `json:"report,omitempty"`
}

// Report is what a node says of itself.
type Report struct {
	Node        string        `json:"node"`
	Cluster     string        `json:"cluster"`
	Version     string        `json:"version"`
	Adapter     string        `json:"adapter"`
	Ready       bool          `json:"ready"`
	Draining    bool          `json:"draining"`
	ServerError string        `json:"serverError,omitempty"` // why its media server cannot be asked
	Published   []Publication `json:"published"`
	Relays      []Relay       `json:"relays"`
	Omitted     int           `json:"omitted,omitempty"` // streams beyond those that are listed
	// Carried are the bytes of media that came from other clusters, Saved those that would have come besides, had each viewer
	// here played at the origin's. Both count from the node's start.
	Carried uint64 `json:"carried"`
	Saved   uint64 `json:"saved"`

	// The rest is there where one stream was asked about.
	Sources []Source `json:"sources,omitempty"`
	Peers   []Peer   `json:"peers,omitempty"`
	Stream  *Stream  `json:"stream,omitempty"`
}

// Source is one by which a node finds its peers.
type Source struct {
	Name  string `json:"name"`
	Peers int    `json:"peers"`
	Error string `json:"error,omitempty"`
}

// Peer is how one node sees another.
type Peer struct {
	Node       string   `json:"node,omitempty"` // "" where nobody has answered
	Cluster    string   `json:"cluster,omitempty"`
	Address    string   `json:"address,omitempty"`
	Connected  bool     `json:"connected"`
	RTTMs      float64  `json:"rttMs"`
	Error      string   `json:"error,omitempty"`
	Conditions []string `json:"conditions,omitempty"` // of the mesh: what a person should look at
}

// Stream is how a stream stands at a node.
type Stream struct {
	Name    string `json:"name"`
	Origin  string `json:"origin,omitempty"` // the node; "": it is known of no publication
	Holders int    `json:"holders"`          // nodes that are known to have it
	Epoch   uint64 `json:"epoch"`
	Export  bool   `json:"export"`            // it may leave the cluster
	Import  bool   `json:"import"`            // it may come in
	Refused string `json:"refused,omitempty"` // why the media server here does not take it
	Lacks   string `json:"lacks,omitempty"`   // what of a publication here plays do not give
	Full    string `json:"full,omitempty"`    // the bound at which viewers are turned away here
	Viewers int    `json:"viewers"`           // and who waits for it
	Demand  bool   `json:"demand"`            // somebody wants it here
	Owner   string `json:"owner,omitempty"`   // the node that is asked who may pull
	// Failure is where the last attempt to carry it ended.
	Failure   *Failure  `json:"failure,omitempty"`
	NextRetry time.Time `json:"nextRetry,omitzero"`
}

// Failure is where an attempt to carry a stream ended.
type Failure struct {
	Side string `json:"side"`           // parent or local server
	Step string `json:"step"`           // grant, play, connect, wait for media, wait for a key frame, publish, relay
	Code int    `json:"code,omitempty"` // of the HTTP answer
	Text string `json:"text"`
}

// Publication is a stream that is published at a node's own server.
type Publication struct {
	Stream  string    `json:"stream"`
	Epoch   uint64    `json:"epoch"`
	Since   time.Time `json:"since,omitzero"`
	Viewers int       `json:"viewers"` // without relays of other nodes; -1: not known
	Tracks  []string  `json:"tracks"`  // codecs
	Counts  bool      `json:"counts"`  // it is the publication that all nodes show
}

// Relay is a stream that a node carries, or would.
type Relay struct {
	Stream      string    `json:"stream"`
	State       string    `json:"state"`
	Why         string    `json:"why,omitempty"`
	Epoch       uint64    `json:"epoch"`
	Parent      string    `json:"parent,omitempty"`
	Path        []string  `json:"path,omitempty"` // nodes, the origin first
	Viewers     int       `json:"viewers"`
	LiveSince   time.Time `json:"liveSince,omitzero"`
	LastError   string    `json:"lastError,omitempty"`
	Standby     string    `json:"standby,omitempty"` // the second copy's parent
	Bytes       uint64    `json:"bytes"`
	Packets     uint64    `json:"packets"`
	Lost        uint64    `json:"lost"`
	Repaired    uint64    `json:"repaired"`
	NACKs       uint64    `json:"nacks"`
	KeyRequests uint64    `json:"keyFrameRequests"`
	RTTMs       float64   `json:"rttMs"`   // to the parent
	AddedMs     float64   `json:"addedMs"` // through the relay
	Tracks      []string  `json:"tracks"`  // codecs
	Steps       []Step    `json:"steps"`   // of the pull
	Changes     int       `json:"changes"` // of parents, without an end
}

// Step is one of a pull, and how long after the first it was taken.
type Step struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}
