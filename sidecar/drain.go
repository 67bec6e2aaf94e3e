package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// drain tells the peers that this node is about to leave, and returns when no child depends on it any more. An error says
// who does, after all the time that there is. The node serves on meanwhile, and stays marked as leaving until stay.
func (n *node) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.settings.Relay.Drain)
	defer cancel()
	n.logger.Info("draining", "within", n.settings.Relay.Drain)
	n.draining.Store(true)
	n.mesh.SetDraining(true)
	if n.sfu != nil {
		n.sfu.SetDraining(true)
	}
	for {
		known, changed := n.known.Snapshot()
		left := children(known)
		if len(left) == 0 {
			n.logger.Info("drained")
			return nil
		}
		select {
		case <-ctx.Done():
			n.logger.Warn("not drained in time; children will lose their parent", "children", left)
			return fmt.Errorf("%d nodes still pull from here, the first of them %s: %w", len(left), left[0], ctx.Err())
		case <-changed:
		}
	}
}

// stay takes a drain back when the media server runs again, for then the pod does not end: a kubelet runs the hook that drains
// also before it restarts a server that is not alive.
func (n *node) stay() {
	if n.draining.CompareAndSwap(true, false) {
		n.mesh.SetDraining(false)
		if n.sfu != nil {
			n.sfu.SetDraining(false)
		}
		n.logger.Info("not leaving: the media server runs again")
	}
}

// children are the nodes that pull anything from this one, by id.
func children(s *catalogue.State) []catalogue.NodeID {
	return slices.DeleteFunc(s.Related(), func(id catalogue.NodeID) bool { return len(s.Pulls(id)) == 0 })
}
