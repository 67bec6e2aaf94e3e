package mesh

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// PeerStatus is what is known of one peer, of an address at which none has answered, or of a node that was refused lately.
type PeerStatus struct {
	ID          catalogue.NodeID `json:"id,omitempty"` // "" where nobody has answered; what it says, where it was refused
	Incarnation uint64           `json:"incarnation,omitempty"`
	Cluster     string           `json:"cluster,omitempty"`
	Namespace   string           `json:"namespace,omitempty"`
	Address     string           `json:"address,omitempty"` // host:port of its peer port
	Version     string           `json:"version,omitempty"`
	Connected   bool             `json:"connected"`
	Dialled     bool             `json:"dialled"`           // by this node
	Since       time.Time        `json:"since,omitzero"`    // when it was connected; zero when it is not
	LastSeen    time.Time        `json:"lastSeen,omitzero"` // when anything was heard of it
	RTT         time.Duration    `json:"rtt"`               // smoothed; 0 before the first measurement
	Related     bool             `json:"related"`           // its heartbeats come every 500 ms
	Ready       bool             `json:"ready"`
	Draining    bool             `json:"draining"`
	Holds       int              `json:"holds"`
	Error       string           `json:"error,omitempty"`      // why it is not connected, or not believed
	Conditions  []string         `json:"conditions,omitempty"` // what a person should look at
}

// The conditions. The others are "refused-" and why, as in the metric of refusals.
const (
	clusterNameShared    = "cluster-name-shared"
	clusterMismatch      = "cluster-mismatch"
	certificateExpired   = "certificate-expired"
	certificateAuthority = "certificate-authority"
	certificateName      = "certificate-name"
	plaintextMixed       = "plaintext"
	tlsFailed            = "tls-failed"
	holdsDoubted         = "holds-not-believed"
	flooding             = "flooding"
	heartbeatLost        = "heartbeat-lost"
	refusedByPeer        = "refused-by-peer"
	unreachable          = "unreachable"
)

// DatagramsLost is the condition of a peer that is connected, and that no UDP packets of the size of media reach. It says nothing of
// what goes over the link itself.
const DatagramsLost = "datagrams-lost"

// conditions are all of them.
var conditions = []string{
	clusterNameShared, clusterMismatch, certificateExpired, certificateAuthority, certificateName, plaintextMixed, tlsFailed,
	holdsDoubted, flooding, heartbeatLost, refusedByPeer, unreachable, DatagramsLost,
	"refused-clock", "refused-flood", "refused-frame", "refused-handshakes", "refused-holds", "refused-identity",
	"refused-order", "refused-other", "refused-rate", "refused-stale",
}

// conditionOf is that of a connection that is not there; "" where nothing is wrong.
func conditionOf(err error) string {
	var f *fault
	var r *refusal
	var away *turnedAway
	switch {
	case err == nil, errors.Is(err, errClosing), errors.Is(err, errGoodbye), errors.Is(err, errSuperseded):
		return ""
	case errors.As(err, &f):
		switch f.reason {
		case faultExpired:
			return certificateExpired
		case faultAuthority:
			return certificateAuthority
		case faultName:
			return certificateName
		case faultPlaintext:
			return plaintextMixed
		default:
			return tlsFailed
		}
	case errors.As(err, &r):
		return "refused-" + r.reason
	case errors.As(err, &away):
		return refusedByPeer
	case errors.Is(err, errLost):
		return heartbeatLost
	default:
		return unreachable
	}
}

// explain adds why a peer is not connected.
func (s *PeerStatus) explain(err error) {
	if err == nil {
		return
	}
	s.Error = err.Error()
	if c := conditionOf(err); c != "" {
		s.Conditions = append(s.Conditions, c)
	}
}

// Peers is the state of the mesh as this node sees it, by cluster, id and address.
func (m *Mesh) Peers() []PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []PeerStatus
	for _, p := range m.peers {
		s := PeerStatus{
			ID: p.node.ID, Incarnation: p.node.Incarnation, Cluster: p.node.Cluster, Address: p.address,
			LastSeen: p.heard,
		}
		if p.primary != nil {
			s.Connected = true
			p.primary.describe(&s)
			for _, c := range m.oddities(p.primary) {
				s.Conditions = append(s.Conditions, c.id)
			}
		} else if t := m.targets[p.address]; t != nil {
			s.explain(t.err)
		}
		all = append(all, s)
	}
	for addr, t := range m.targets {
		if t.err != nil && m.peers[t.node] == nil {
			s := PeerStatus{ID: t.node, Cluster: t.cluster, Address: addr, LastSeen: t.heard}
			s.explain(t.err)
			all = append(all, s)
		}
	}
	now := time.Now()
	for key, note := range m.refusals {
		if now.Sub(note.at) < refusalShown {
			s := PeerStatus{ID: key.node, Cluster: note.cluster, Address: note.address, LastSeen: note.at}
			s.explain(note.why)
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b PeerStatus) int {
		order := cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.ID, b.ID))
		switch {
		case order != 0:
		case a.Connected != b.Connected: // the true one before who only says that it is
			if a.Connected {
				return -1
			}
			return 1
		}
		return cmp.Or(order, cmp.Compare(a.Address, b.Address), cmp.Compare(a.Error, b.Error))
	})
	return all
}

func (l *link) describe(s *PeerStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Version = l.version
	s.Namespace = l.namespace
	s.Dialled = l.dialled
	s.Since = l.since
	s.LastSeen = l.heard
	s.RTT = l.srtt
	s.Related = min(l.wanted, l.theirs) < distantPeriod
	s.Ready = l.ready
	s.Draining = l.draining
	s.Holds = len(l.holds)
	if l.doubted != nil {
		s.Error = l.doubted.Error()
		s.Conditions = append(s.Conditions, holdsDoubted)
	}
	if l.flooding {
		s.Conditions = append(s.Conditions, flooding)
	}
}

// oddity is a condition of a peer that is connected.
type oddity struct {
	id    string
	level slog.Level
	text  string
}

// oddities are what is wrong with how a peer, or its cluster, is set up. The caller holds mu.
func (m *Mesh) oddities(l *link) []oddity {
	var all []oddity
	own := m.o.ClusterFingerprint
	if l.node.Cluster == m.self.Cluster && len(own) > 0 && len(l.fingerprint) > 0 && !bytes.Equal(own, l.fingerprint) {
		all = append(all, oddity{clusterNameShared, slog.LevelError, "two clusters have the same name, and each pulls for both: " +
			"give each its own SIDESTREAM_CLUSTER (after a change of the cluster's own authority this ends when all pods were restarted)"})
	}
	if m.datagrams.lost(l) {
		all = append(all, oddity{DatagramsLost, slog.LevelWarn, "UDP packets of 1,300 bytes do not come through to the peer's port: media may not " +
			"pass either. Look at the MTU of the network between the clusters, and at firewalls and policies"})
	}
	for addr, t := range m.targets {
		if (addr == l.address || t.node == l.node.ID) && t.announced && t.cluster != "" && t.cluster != l.node.Cluster {
			all = append(all, oddity{clusterMismatch, slog.LevelWarn, "discovery names another cluster than the node itself, " +
				"which is believed: SIDESTREAM_CLUSTER should be the name that the clusters' network knows"})
			break
		}
	}
	return all
}

// maxReported bounds what is remembered of the conditions that were logged. More are not logged.
const maxReported = 4 * maxPeers

// report logs what is wrong with how a peer is set up, once. The caller holds mu.
func (m *Mesh) report(l *link) {
	for _, o := range m.oddities(l) {
		key := o.id + " " + string(l.node.ID)
		if _, known := m.reported[key]; known || len(m.reported) >= maxReported {
			continue
		}
		m.reported[key] = struct{}{}
		l.log.Log(context.Background(), o.level, o.text, "condition", o.id, "address", l.address)
	}
}

const (
	// refusalShown is how long a node that was refused is shown, maxRefusals bounds how many are.
	refusalShown = 10 * time.Minute
	maxRefusals  = 64
)

// refusalKey is whom a refusal was for: who it said it is, and from where.
type refusalKey struct {
	node catalogue.NodeID
	host string
}

// refusalNote is why a node that dialled was turned away.
type refusalNote struct {
	cluster, address string
	why              *refusal
	at               time.Time
}

// noteRefusal remembers it for the status, and says whether it is news.
func (m *Mesh) noteRefusal(n catalogue.Node, address string, why *refusal) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	key, now := refusalKey{n.ID, host}, time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	before, known := m.refusals[key]
	if known && before.why.reason == why.reason && now.Sub(before.at) < floodFor {
		return false
	}
	if !known && len(m.refusals) >= maxRefusals {
		oldest := key
		for k, note := range m.refusals {
			if oldest == key || note.at.Before(m.refusals[oldest].at) {
				oldest = k
			}
		}
		delete(m.refusals, oldest)
	}
	m.refusals[key] = refusalNote{cluster: n.Cluster, address: address, why: why, at: now}
	return !known || before.why.reason != why.reason || now.Sub(before.at) >= refusalShown
}

// flooded says whether a node's link ended a moment ago because it sent too much. The caller holds mu.
func (m *Mesh) flooded(id catalogue.NodeID, now time.Time) bool {
	for key, note := range m.refusals {
		if key.node == id && errors.Is(note.why, errFlood) && now.Sub(note.at) < floodFor {
			return true
		}
	}
	return false
}

// forgive takes back what was noted of a node that is connected now. The caller holds mu.
func (m *Mesh) forgive(l *link) {
	for key := range m.refusals {
		if host, _, err := net.SplitHostPort(l.address); err == nil && key.node == l.node.ID && key.host == host {
			delete(m.refusals, key)
		}
	}
}

// sayGoodbye tells every peer that this node leaves, and waits for a moment until it is said.
func (m *Mesh) sayGoodbye() {
	m.mu.Lock()
	m.closing = true
	var links []*link
	for _, p := range m.peers {
		links = append(links, p.links...)
	}
	m.mu.Unlock()
	for _, l := range links {
		l.leave(&pb.Frame{Body: &pb.Frame_Goodbye{Goodbye: &pb.Goodbye{}}}, errClosing)
	}
	bound := time.NewTimer(farewell)
	defer bound.Stop()
	for _, l := range links {
		select {
		case <-l.done:
		case <-bound.C:
			bound.Reset(0)
			l.end(errClosing)
		}
	}
}

// saidLast says whether the link ended by a last frame from this side.
func (l *link) saidLast() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.final != nil
}
