// Package manifest puts sidecars into manifests, the files that people give to kubectl: the pods and pod templates in them
// become what the webhook makes of the pods. It is for those who want to see that before, and asks nobody.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// maxSize bounds the files, maxDepth lists within lists.
	maxSize  = 64 << 20
	maxDepth = 8
)

// Options are what files do not tell.
type Options struct {
	Inject inject.Options
	// Namespace is that of objects which name none.
	Namespace string
	// Labels and Annotations are those of namespaces that are not in the files.
	Labels, Annotations map[string]string
}

// Workload is an object with a pod in it, and what was decided about that.
type Workload struct {
	Kind, Namespace, Name string
	Decision              inject.Decision
}

func (w Workload) String() string {
	if w.Namespace == "" {
		return w.Kind + " " + w.Name
	}
	return w.Kind + " " + w.Namespace + "/" + w.Name
}

// Document is one of a file.
type Document struct {
	Workloads []Workload // in their order
	// Text is the document after the injection. Where no pod got a sidecar it is what was read, to the byte; else comments are
	// gone and fields are sorted.
	Text []byte
	// before is the document in the same order as Text; nil where that is what was read.
	before []byte
}

// Changed says that a pod in it got a sidecar.
func (d Document) Changed() bool { return d.before != nil }

// Inject reads documents of YAML or JSON until the end and returns them with sidecars in. An error means that something there
// is no manifest at all; pods that cannot be injected are in the documents' workloads.
func Inject(in io.Reader, o Options) ([]Document, error) {
	limited := &io.LimitedReader{R: in, N: maxSize + 1}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(limited))
	var texts, parsed [][]byte
	namespaces := map[string]*corev1.Namespace{}
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		n := len(texts) + 1
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", n, err)
		}
		if limited.N <= 0 {
			return nil, fmt.Errorf("read document %d: there is more than %d MiB: give fewer files at a time", n, maxSize>>20)
		}
		object, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", n, err)
		}
		if object = bytes.TrimSpace(object); object[0] != '{' && string(object) != "null" {
			return nil, fmt.Errorf("read document %d: it is no Kubernetes object", n)
		}
		if err := collect(object, namespaces, 0); err != nil {
			return nil, fmt.Errorf("read document %d: %w", n, err)
		}
		texts, parsed = append(texts, text), append(parsed, object)
	}
	documents := make([]Document, len(texts))
	for i := range texts {
		j := job{options: o, namespaces: namespaces}
		after, err := j.object(parsed[i], "", 0)
		if err != nil {
			return nil, fmt.Errorf("inject document %d: %w", i+1, err)
		}
		documents[i] = Document{Workloads: j.workloads, Text: texts[i]}
		if !j.injected {
			continue
		}
		if documents[i].before, err = yaml.JSONToYAML(parsed[i]); err == nil {
			documents[i].Text, err = yaml.JSONToYAML(after)
		}
		if err != nil {
			return nil, fmt.Errorf("write document %d: %w", i+1, err)
		}
	}
	return documents, nil
}

// head is what all objects have.
type head struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Items           []json.RawMessage `json:"items"`
}

// list says that the object holds others.
func (h head) list() bool { return strings.HasSuffix(h.Kind, "List") && h.Items != nil }

// read reads an object's head. Items of a list of one kind may have none of their own.
func read(object []byte, kind string) (h head, err error) {
	if err = json.Unmarshal(object, &h); err != nil {
		return h, err
	}
	if h.Kind == "" {
		h.Kind = kind
	}
	return h, nil
}

// itemKind is the kind of items that do not say theirs.
func itemKind(list string) string { return strings.TrimSuffix(list, "List") }

// collect finds the namespaces.
func collect(object []byte, to map[string]*corev1.Namespace, depth int) error {
	h, err := read(object, "")
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("lists stand in lists, more than %d deep", maxDepth)
	}
	if h.list() {
		for _, item := range h.Items {
			if err := collect(item, to, depth+1); err != nil {
				return err
			}
		}
	}
	if h.Kind == "Namespace" {
		to[h.Metadata.Name] = &corev1.Namespace{ObjectMeta: h.Metadata}
	}
	return nil
}

// templates are where pods stand in objects of groups and kinds.
var templates = map[[2]string][]string{
	{"", "Pod"}:                   {},
	{"", "PodTemplate"}:           {"template"},
	{"", "ReplicationController"}: {"spec", "template"},
	{"apps", "Deployment"}:        {"spec", "template"},
	{"apps", "StatefulSet"}:       {"spec", "template"},
	{"apps", "DaemonSet"}:         {"spec", "template"},
	{"apps", "ReplicaSet"}:        {"spec", "template"},
	{"batch", "Job"}:              {"spec", "template"},
	{"batch", "CronJob"}:          {"spec", "jobTemplate", "spec", "template"},
}

// job is one document on its way.
type job struct {
	options    Options
	namespaces map[string]*corev1.Namespace
	workloads  []Workload
	injected   bool
}

// object returns an object with sidecars in.
func (j *job) object(object []byte, kind string, depth int) ([]byte, error) {
	h, err := read(object, kind)
	if err != nil {
		return nil, err
	}
	if h.list() {
		if depth > maxDepth {
			return nil, fmt.Errorf("lists stand in lists, more than %d deep", maxDepth)
		}
		return within(object, []string{"items"}, func([]byte) ([]byte, error) {
			for i, item := range h.Items {
				if h.Items[i], err = j.object(item, itemKind(h.Kind), depth+1); err != nil {
					return nil, err
				}
			}
			return json.Marshal(h.Items)
		})
	}
	path, ok := templates[[2]string{h.GroupVersionKind().Group, h.Kind}]
	if !ok {
		return object, nil
	}
	w := Workload{Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name}
	if w.Name == "" {
		w.Name = h.Metadata.GenerateName + "..."
	}
	if w.Namespace == "" {
		w.Namespace = j.options.Namespace
	}
	object, err = within(object, path, func(pod []byte) ([]byte, error) {
		pod, w.Decision, err = j.pod(pod, w.Namespace)
		return pod, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w, err)
	}
	j.workloads = append(j.workloads, w)
	return object, nil
}

// pod returns a pod, or the template of one, with a sidecar.
func (j *job) pod(object []byte, namespace string) ([]byte, inject.Decision, error) {
	var before corev1.Pod
	if err := json.Unmarshal(object, &before); err != nil {
		return nil, inject.Decision{}, fmt.Errorf("read its pod: %w", err)
	}
	of, ok := j.namespaces[namespace]
	if !ok {
		of = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: namespace, Labels: maps.Clone(j.options.Labels), Annotations: maps.Clone(j.options.Annotations),
		}}
	}
	after, decision := inject.Mutate(&before, of, j.options.Inject)
	if decision.Reason != inject.Injected {
		return object, decision, nil
	}
	// The patch leaves alone what this version does not know of pods.
	patch, err := inject.Patch(&before, after)
	if err != nil {
		return nil, decision, err
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, decision, fmt.Errorf("change its pod: %w", err)
	}
	if object, err = operations.Apply(object); err != nil {
		return nil, decision, fmt.Errorf("change its pod: %w", err)
	}
	j.injected = true
	return object, decision, nil
}

// within changes the part of an object at a path, and nothing else.
func within(object []byte, path []string, change func([]byte) ([]byte, error)) ([]byte, error) {
	if len(path) == 0 {
		return change(object)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, fmt.Errorf("read %s: %w", path[0], err)
	}
	if len(fields[path[0]]) == 0 {
		return nil, fmt.Errorf("it has no %s", path[0])
	}
	part, err := within(fields[path[0]], path[1:], change)
	if err != nil {
		return nil, err
	}
	fields[path[0]] = part
	return json.Marshal(fields)
}

// Write writes documents as one file.
func Write(w io.Writer, documents []Document) error {
	for i, d := range documents {
		if i > 0 {
			if _, err := io.WriteString(w, "---\n"); err != nil {
				return err
			}
		}
		text := d.Text
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(slices.Clip(text), '\n')
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// Diff writes how documents changed, as a unified diff of each that did. Order and comments of the files do not count.
func Diff(w io.Writer, documents []Document) error {
	for _, d := range documents {
		if !d.Changed() {
			continue
		}
		var names []string
		for _, workload := range d.Workloads {
			if workload.Decision.Reason == inject.Injected {
				names = append(names, workload.String())
			}
		}
		name := strings.Join(names, ", ")
		err := difflib.WriteUnifiedDiff(w, difflib.UnifiedDiff{
			A: difflib.SplitLines(string(bytes.TrimSuffix(d.before, []byte("\n")))),
			B: difflib.SplitLines(string(bytes.TrimSuffix(d.Text, []byte("\n")))), FromFile: name, ToFile: name + " with a sidecar", Context: 3,
		})
		if err != nil {
			return err
		}
	}
	return nil
}
