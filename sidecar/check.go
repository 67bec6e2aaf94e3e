package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sidestream-dev/sidestream/sidecar/check"
)

type checkFlags struct {
	kubeconfig, context, namespace string
	clusters                       []string
	output                         string
	timeout                        time.Duration
	uninstall                      bool
}

// checkCommand looks at an installation.
func checkCommand(stdout io.Writer) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check an installation in Kubernetes: injector, certificates, rights, peers, Services, pods",
		Long: `Check an installation in Kubernetes: injector, certificates, rights, peers, Services, pods. Nothing is changed.

  sidestream check -n media -clusters singapore,us-west
  sidestream check -uninstall

What cannot be seen with your rights, or from here, is skipped. The exit code is 0 where no check failed, 1 where one did, 2 for
wrong usage or an API server that does not answer. -uninstall lists pods that have a sidecar, of all namespaces unless -n
names one, and the commands that are rid of them; its exit code is 1 while there are any.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), stdout) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	flags := cmd.Flags()
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: as kubectl finds it)")
	flags.StringVar(&f.context, "context", "", "context of the kubeconfig (default: its current one)")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the media servers (default: the context's)")
	flags.StringSliceVar(&f.clusters, "clusters", nil, "names of the other clusters that are to be there, such as germany,singapore")
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "time for it all")
	flags.BoolVar(&f.uninstall, "uninstall", false, "list pods with a sidecar, and how to be rid of them")
	return cmd
}

func (f checkFlags) run(ctx context.Context, stdout io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return exitError{exitUsage, fmt.Errorf("-o is %q: write text or json", f.output)}
	}
	cluster, namespace, err := f.connect()
	if err != nil {
		return exitError{exitUsage, err}
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if f.uninstall {
		return f.listInjected(ctx, cluster, stdout)
	}
	results, err := check.Run(ctx, cluster, check.Options{Namespace: namespace, Clusters: f.clusters})
	if err != nil {
		return exitError{exitUsage, err}
	}
	if f.output == "json" {
		err = check.WriteJSON(stdout, results)
	} else {
		err = check.WriteText(stdout, results)
	}
	if err == nil && check.Failed(results) {
		err = exitError{exitCannot, errors.New("not all is as it should be")}
	}
	return err
}

func (f checkFlags) listInjected(ctx context.Context, cluster check.Cluster, stdout io.Writer) error {
	all, err := check.Uninstall(ctx, cluster, f.namespace)
	if err != nil {
		return exitError{exitUsage, err}
	}
	if f.output == "json" {
		err = check.WriteJSON(stdout, all)
	} else {
		err = check.WriteUninstall(stdout, all)
	}
	if err == nil && len(all) > 0 {
		err = exitError{exitCannot, fmt.Errorf("%d workloads have pods with a sidecar", len(all))}
	}
	return err
}

// connect finds the cluster as kubectl does.
func (f checkFlags) connect() (check.Cluster, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.context}
	overrides.Context.Namespace = f.namespace
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	config.UserAgent = "sidestream-check/" + version
	cluster, err := check.Connect(config)
	return cluster, namespace, err
}
