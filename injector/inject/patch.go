package inject

import (
	"encoding/json"
	"fmt"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
)

// Patch is the JSON patch (RFC 6902) that makes the second pod of the first. It fits the document from which the first was
// decoded, also where that has fields which this version does not know: what Mutate does to lists is to append to them, so
// elements keep their places, and only what it changed is in the patch.
func Patch(before, after *corev1.Pod) ([]byte, error) {
	from, err := json.Marshal(before)
	if err != nil {
		return nil, fmt.Errorf("write pod: %w", err)
	}
	to, err := json.Marshal(after)
	if err != nil {
		return nil, fmt.Errorf("write pod: %w", err)
	}
	operations, err := jsonpatch.CreatePatch(from, to)
	if err != nil {
		return nil, fmt.Errorf("compare pods: %w", err)
	}
	return json.Marshal(operations)
}
