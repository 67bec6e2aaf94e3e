package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/injector/manifest"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// image is the sidecar's, by its version.
const image = "ghcr.io/sidestream-dev/sidestream:"

// unnamed stands for the cluster's name until somebody tells it.
const unnamed = "CLUSTER"

type injectFlags struct {
	files       []string
	diff        bool
	namespace   string
	labels      map[string]string
	annotations map[string]string

	image, pullPolicy, revision, peerSecret string
	pullSecrets                             []string
	native                                  bool
	cluster                                 string
	settings                                []string
	hostPorts                               []int32
	resources                               map[corev1.ResourceName]*[2]string // request and limit
}

// injectCommand shows what the injector would do.
func injectCommand(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	f := injectFlags{resources: map[corev1.ResourceName]*[2]string{
		corev1.ResourceCPU: {"100m", ""}, corev1.ResourceMemory: {"64Mi", "512Mi"},
	}}
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Print manifests with sidecars in: what the injector makes of their pods",
		Long: `Print manifests with sidecars in: what the injector makes of their pods. Nothing is sent anywhere.

  sidestream inject -f deploy.yaml
  kubectl get deployment sfu -o yaml | sidestream inject -f - -diff

Pods and pod templates with the label ` + inject.Label + `: "true" get a sidecar; all other objects are printed as they are. What was
decided of each is said on stderr. The exit code is 1 where one asks for a sidecar and cannot have it, 2 for wrong usage.
The settings are the injector's; what it is told in the cluster, tell here.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(stdin, stdout, stderr) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "file with YAML or JSON documents; - is stdin; may be repeated")
	flags.BoolVar(&f.diff, "diff", false, "print what changes, as a unified diff")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the objects that name none")
	flags.StringToStringVar(&f.labels, "namespace-label", nil, "label of the namespaces that are not in the files, as NAME=VALUE; may be repeated")
	flags.StringToStringVar(&f.annotations, "namespace-annotation", nil, "annotation of them, as NAME=VALUE; may be repeated")
	flags.StringVar(&f.image, "image", image+version, "the sidecar's image")
	flags.StringVar(&f.pullPolicy, "pull-policy", "", "Always, IfNotPresent or Never")
	flags.StringArrayVar(&f.pullSecrets, "pull-secret", nil, "Secret to pull the image with; may be repeated")
	flags.StringVar(&f.revision, "revision", "default", "name of the injector, where there are several")
	flags.BoolVar(&f.native, "native", true, "sidecars are init containers, as from Kubernetes 1.33 on")
	flags.StringVar(&f.peerSecret, "peer-secret", "sidestream-peer-tls", "Secret that peers prove themselves by")
	flags.StringVar(&f.cluster, "cluster", unnamed, "name of the cluster")
	flags.StringArrayVar(&f.settings, "set", nil, "setting of all sidecars, as SIDESTREAM_NAME=VALUE, or OTEL_NAME=VALUE; may be repeated")
	flags.Int32SliceVar(&f.hostPorts, "host-ports", []int32{18100, 18101},
		"gateway's and administration's ports in pods on the host's network, which the injector chooses for each workload")
	for of, values := range f.resources {
		flags.StringVar(&values[0], string(of)+"-request", values[0], "the sidecars' request of "+string(of))
		flags.StringVar(&values[1], string(of)+"-limit", values[1], "the sidecars' limit of "+string(of))
	}
	return cmd
}

func (f injectFlags) run(stdin io.Reader, stdout, stderr io.Writer) error {
	options, err := f.options()
	if err != nil {
		return exitError{exitUsage, err}
	}
	if len(f.files) == 0 {
		return exitError{exitUsage, errors.New("name the manifests: -f deploy.yaml, or -f - for stdin")}
	}
	var all []manifest.Document
	for _, name := range f.files {
		documents, err := f.inject(name, stdin, options)
		if err != nil {
			return err
		}
		all = append(all, documents...)
	}
	if options.Inject.Sidecar.Cluster == unnamed {
		fmt.Fprintf(stderr, "the cluster has no name: %s stands in its place, until -cluster says it\n", unnamed)
	}
	refused := 0
	for _, d := range all {
		for _, w := range d.Workloads {
			if w.Decision.Refused() {
				refused++
			}
			tellDecision(stderr, w)
		}
	}
	write := manifest.Write
	if f.diff {
		write = manifest.Diff
	}
	if err := write(stdout, all); err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	if refused > 0 {
		return fmt.Errorf("%d of the manifests' pods ask for a sidecar and cannot have it", refused)
	}
	return nil
}

// tellDecision says on a line what was decided.
func tellDecision(w io.Writer, of manifest.Workload) {
	switch d := of.Decision; {
	case d.Reason == inject.Injected:
		fmt.Fprintf(w, "%s: injected\n", of)
	default:
		fmt.Fprintf(w, "%s: not injected (%s): %s\n", of, d.Reason, d.Message)
	}
	for _, warning := range of.Decision.Warnings {
		fmt.Fprintf(w, "%s: warning: %s\n", of, warning)
	}
}

func (f injectFlags) inject(name string, stdin io.Reader, o manifest.Options) ([]manifest.Document, error) {
	if name == "-" {
		documents, err := manifest.Inject(stdin, o)
		if err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
		return documents, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	documents, err := manifest.Inject(file, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return documents, nil
}

func (f injectFlags) options() (manifest.Options, error) {
	o := manifest.Options{Namespace: f.namespace, Labels: f.labels, Annotations: f.annotations}
	environ := []string{config.Prefix + "CLUSTER=" + f.cluster, config.Prefix + "PEER_SERVICE=sidestream-peers"}
	for _, s := range f.settings {
		if !strings.HasPrefix(s, config.Prefix) && !strings.HasPrefix(s, "OTEL_") || !strings.Contains(s, "=") {
			return o, fmt.Errorf("-set is %q: write %sNAME=VALUE or OTEL_NAME=VALUE", s, config.Prefix)
		}
		environ = append(environ, s)
	}
	sidecar, err := config.Decode(environ)
	if err != nil {
		return o, fmt.Errorf("read -set:\n%w", err)
	}
	traces, err := inject.Tracing(environ)
	if err != nil {
		return o, fmt.Errorf("read -set: %w", err)
	}
	if len(f.hostPorts) != 2 {
		return o, errors.New("-host-ports wants two ports, such as 18100,18101")
	}
	switch corev1.PullPolicy(f.pullPolicy) {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return o, fmt.Errorf("-pull-policy is %q: write Always, IfNotPresent or Never", f.pullPolicy)
	}
	options := inject.Options{
		Image: f.image, PullPolicy: corev1.PullPolicy(f.pullPolicy), PullSecrets: f.pullSecrets, Revision: f.revision,
		Native: f.native, PeerSecret: f.peerSecret, Tracing: traces,
		HostPorts: inject.HostPorts{Gateway: f.hostPorts[0], Admin: f.hostPorts[1]},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}},
	}
	for of, values := range f.resources {
		for i, list := range []corev1.ResourceList{options.Resources.Requests, options.Resources.Limits} {
			if values[i] == "" || values[i] == "0" {
				continue
			}
			q, err := resource.ParseQuantity(values[i])
			if err != nil || q.Sign() < 0 {
				return o, fmt.Errorf("%q is no amount of %s: write one such as 100m or 64Mi", values[i], of)
			}
			list[of] = q
		}
	}
	o.Inject, err = options.With(sidecar)
	return o, err
}
