package bed

import (
	"net/netip"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

func isolate(local netip.Prefix) error { return wan.Isolate(local) }
