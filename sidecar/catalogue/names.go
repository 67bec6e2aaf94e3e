package catalogue

import (
	"path"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Names is a list of stream names, or patterns as of path.Match, of which the first that matches a name decides: for it, or
// against it where the entry begins with "!". Patterns that are malformed match nothing.
type Names []string

// Match says whether an entry decides about a name, and how.
func (n Names) Match(id adapters.StreamID) (yes, decided bool) {
	for _, entry := range n {
		pattern, no := strings.CutPrefix(entry, "!")
		if ok, err := path.Match(pattern, string(id)); pattern == string(id) || ok && err == nil {
			return !no, true
		}
	}
	return false, false
}

// Allows says whether a list of what may be lets a name pass. What no entry matches passes unless the list says which names
// may: an empty list, or one of "!" entries only, allows all others.
func (n Names) Allows(id adapters.StreamID) bool {
	if yes, decided := n.Match(id); decided {
		return yes
	}
	for _, entry := range n {
		if !strings.HasPrefix(entry, "!") {
			return false
		}
	}
	return true
}

// Lists says whether a list of what is meant names a stream: an empty list names none.
func (n Names) Lists(id adapters.StreamID) bool {
	yes, _ := n.Match(id)
	return yes
}
