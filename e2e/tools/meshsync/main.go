// Command meshsync is the part of Cilium's operator that writes EndpointSlices for the global Services of other clusters,
// and nothing else of it. It is for the test bed, which runs one per cluster: the whole operator takes twice the memory
// and wants its custom resources, its leader election and an agent's configuration first.
package main

import (
	"os"

	"github.com/cilium/cilium/pkg/clustermesh/endpointslicesync"
	"github.com/cilium/cilium/pkg/clustermesh/operator"
	"github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/controller"
	"github.com/cilium/cilium/pkg/dial"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/k8s"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/k8s/resource"
	corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/hive/cell"
	"github.com/spf13/cobra"
)

// sync is what the operator has of these cells, with what they ask for.
var sync = cell.Module(
	"meshsync", "EndpointSlices for the global Services of other clusters",

	cell.Config(types.DefaultClusterInfo),
	cell.Invoke(types.ClusterInfo.InitClusterIDMax, types.ClusterInfo.Validate),

	client.Cell,
	controller.Cell,
	cell.Config(k8s.DefaultConfig),
	cell.Provide(k8s.DefaultServiceWatchConfig, k8s.ServiceResource),
	cell.Invoke(servicesFirst),

	// The etcds of other clusters are dialled by the files of --clustermesh-config; there is none of our own.
	kvstore.Cell(kvstore.DisabledBackendName),
	cell.Provide(func() (extra kvstore.ExtraOptions) { return }),
	dial.ResourceServiceResolverCell,
	store.Cell,

	operator.Cell,
	endpointslicesync.Cell,
)

// servicesFirst has the local Services read before any remote cluster is dialled: the sync's informer has no store yet
// when a remote cluster's first event beats them, and panics.
func servicesFirst(lifecycle cell.Lifecycle, services resource.Resource[*corev1.Service]) {
	lifecycle.Append(cell.Hook{OnStart: func(ctx cell.HookContext) error {
		_, err := services.Store(ctx)
		return err
	}})
}

func main() {
	h := hive.New(sync)
	cmd := &cobra.Command{
		Use:           "meshsync",
		SilenceUsage:  true,
		SilenceErrors: false,
		PreRun:        func(*cobra.Command, []string) { option.Config.SetupLogging(h.Viper(), "meshsync") },
		RunE:          func(*cobra.Command, []string) error { return h.Run(logging.DefaultSlogLogger) },
	}
	h.RegisterFlags(cmd.Flags())
	if cmd.Execute() != nil {
		os.Exit(1)
	}
}
