package check

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is what owns pods with sidecars, and how it is rid of them.
type Workload struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Pods      int    `json:"pods"`
	Command   string `json:"command"`
}

// Uninstall lists the workloads whose pods have sidecars, of one namespace or with "" of all.
func Uninstall(ctx context.Context, cluster Cluster, namespace string) ([]Workload, error) {
	pods, err := readPods(ctx, cluster, namespace)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	found := map[Workload]int{}
	for i := range pods {
		p := &pods[i]
		if _, ok := sidecarOf(p); !ok || over(p) {
			continue
		}
		w := Workload{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}
		if owner := metav1.GetControllerOf(p); owner != nil {
			w.Kind, w.Name = owner.Kind, owner.Name
			if hash := p.Labels["pod-template-hash"]; w.Kind == "ReplicaSet" && hash != "" && strings.HasSuffix(w.Name, "-"+hash) {
				w.Kind, w.Name = "Deployment", strings.TrimSuffix(w.Name, "-"+hash)
			}
		}
		found[w]++
	}
	all := []Workload{}
	for w, n := range found {
		w.Pods = n
		switch name := strings.ToLower(w.Kind) + "/" + w.Name; w.Kind {
		case "Deployment", "StatefulSet", "DaemonSet":
			w.Command = fmt.Sprintf("kubectl -n %s rollout restart %s", w.Namespace, name)
		case "Pod":
			w.Command = fmt.Sprintf("kubectl -n %s delete %s # and create it again", w.Namespace, name)
		default:
			w.Command = fmt.Sprintf("kubectl -n %s delete pod -l sidestream.dev/injected=true # of %s", w.Namespace, name)
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// WriteUninstall writes them for people.
func WriteUninstall(w io.Writer, all []Workload) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no pod has a sidecar")
		return err
	}
	var b strings.Builder
	b.WriteString("# Pods keep their sidecars until they are created anew. When the injector is gone, or the label sidestream.dev/inject is\n" +
		"# off the workloads' pod templates, and they carry no streams:\n")
	for _, one := range all {
		fmt.Fprintf(&b, "%s # %d pods\n", one.Command, one.Pods)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
