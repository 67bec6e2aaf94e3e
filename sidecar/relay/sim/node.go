package main

import (
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// node is a pod: a media server and the sidecar beside it, of which one process runs at a time.
type node struct {
	w       *world
	i       int
	cluster string
	id      NodeID
	renamed int
	offset  time.Duration // of its clock
	policy  catalogue.Policy
	server  server
	up      bool     // the pod, with its server
	sidecar *sidecar // nil: it does not run

	incarnation uint64
	record      catalogue.Record // on its disk
}

func newNode(w *world, i int, cluster, id string) *node {
	n := &node{w: w, i: i, cluster: cluster, id: NodeID(id)}
	if w.offsets > 0 {
		n.offset = w.draw(span{-w.offsets, w.offsets})
	}
	n.server = server{node: n, spots: make([]*spot, len(w.names))}
	for s := range w.names {
		n.server.spots[s] = &spot{server: &n.server, stream: s}
	}
	return n
}

// clock is what the node believes that the time is.
func (n *node) clock(at time.Duration) time.Time { return time.Unix(1e9, 0).Add(n.offset + at) }

// boot starts the pod, where it does not run, and its sidecar.
func (n *node) boot() {
	if n.sidecar != nil {
		return
	}
	n.up = true
	n.incarnation++
	n.w.mark("%s boots, incarnation %d", n.id, n.incarnation)
	n.w.ids[n.id] = n
	n.sidecar = newSidecar(n)
	n.sidecar.start()
}

// forgetState is what a new disk does.
func (n *node) forgetState() { n.record = catalogue.Record{} }

// rename makes the next boot a new node's.
func (n *node) rename() {
	n.renamed++
	n.id = NodeID(string(n.id[:2]) + "-" + string(rune('a'+n.renamed%26)) + string(rune('a'+n.renamed/26)))
	n.incarnation = 0
	n.forgetState()
}

// crash kills the sidecar's process. The kernel closes its connections.
func (n *node) crash() {
	if n.sidecar == nil {
		return
	}
	n.w.mark("%s: sidecar crashes", n.id)
	n.sidecar.die(true)
	n.sidecar = nil
}

// vanish takes the pod away, as a power cut does: nobody is told.
func (n *node) vanish() {
	if !n.up {
		return
	}
	n.w.mark("%s vanishes", n.id)
	if n.sidecar != nil {
		n.sidecar.die(false)
		n.sidecar = nil
	}
	n.up = false
	n.server.stop()
}
