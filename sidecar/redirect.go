package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
)

// redirectCommand prepares a pod's network, before the sidecar runs.
func redirectCommand(set func(from, to uint16) error) *cobra.Command {
	return &cobra.Command{
		Use:   "redirect FROM TO",
		Short: "Have the kernel send what comes from outside for one TCP port to another, in this network namespace; needs NET_ADMIN",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var ports [2]uint16
			for i, arg := range args {
				n, err := strconv.ParseUint(arg, 10, 16)
				if err != nil || n == 0 {
					return fmt.Errorf("%q is no port: write a number from 1 to 65535", arg)
				}
				ports[i] = uint16(n)
			}
			if ports[0] == ports[1] {
				return fmt.Errorf("port %d cannot be redirected to itself", ports[0])
			}
			return set(ports[0], ports[1])
		},
	}
}
