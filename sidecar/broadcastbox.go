package main

import (
	"net/url"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
)

// openBroadcastBox makes the adapter of a Broadcast Box. The only credentials that such a server knows are those of its
// administration: to publish and to play, the stream's name is the token.
func (n *node) openBroadcastBox() (adapters.Adapter, *url.URL, error) {
	s := n.settings.Adapter
	target := n.serverAt(broadcastbox.Port)
	adapter, err := broadcastbox.New(broadcastbox.Config{BaseURL: target.String(), AdminToken: credentials(s, s.API).Token})
	return adapter, target, err
}
