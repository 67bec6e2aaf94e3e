// Package check looks at an installation from outside: whether the injector works, whether the clusters' peers can find and
// reach each other, and what about the pods will not do what their owner expects. It changes nothing. Each check has a name
// that stays, and a hint.
package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Status is what came out of a check.
type Status string

// The statuses. Warn is what works, but not as well as it could, or not for long; Skip could not be looked at, or there is
// nothing to look at.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Result is what one check found.
type Result struct {
	ID      string   `json:"id"` // stays the same over versions
	Status  Status   `json:"status"`
	Message string   `json:"message"`
	Details []string `json:"details,omitempty"` // one for each thing that was found
	Hint    string   `json:"hint,omitempty"`    // what to do; empty where all is well
}

// Options say what to look for.
type Options struct {
	// Namespace is that of the media servers.
	Namespace string
	// Clusters are the names of the others that are to be there; empty: those that are seen.
	Clusters []string
	// Now is the clock; nil: this machine's.
	Now func() time.Time
}

// maxDetails bounds what a check lists.
const maxDetails = 20

// check is one row of the table.
type check struct {
	id, hint string
	run      func(ctx context.Context, v *view) finding
}

// finding is what a check's function says.
type finding struct {
	status  Status
	message string
	details []string
	hint    string // in place of the check's
}

func ok(format string, args ...any) finding {
	return finding{status: OK, message: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) finding {
	return finding{status: Skip, message: fmt.Sprintf(format, args...)}
}

func fail(format string, args ...any) finding {
	return finding{status: Fail, message: fmt.Sprintf(format, args...)}
}

func warn(format string, args ...any) finding {
	return finding{status: Warn, message: fmt.Sprintf(format, args...)}
}

// unless is a finding about a list of what is wrong, or that nothing is.
func unless(wrong []string, bad, good finding) finding {
	if len(wrong) == 0 {
		return good
	}
	bad.details = wrong
	return bad
}

// unseen is the finding of a check that could not see what it looks at.
func unseen(what string, err error) finding {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return skip("%s: you may not see that", what)
	case apierrors.IsNotFound(err):
		return skip("%s: there is none", what)
	}
	return skip("%s: %v", what, err)
}

// ErrUnreachable says that the API server did not answer, so that nothing could be checked.
var ErrUnreachable = errors.New("the API server cannot be asked")

// Run runs all checks, one after the other. It fails only where the API server does not answer, or ctx is cancelled; what its
// deadline leaves no time for is skipped.
func Run(ctx context.Context, cluster Cluster, o Options) ([]Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	v, err := newView(ctx, cluster, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	var results []Result
	for _, c := range checks {
		f := c.run(ctx, v)
		if err := ctx.Err(); errors.Is(err, context.Canceled) {
			return results, err
		}
		r := Result{ID: c.id, Status: f.status, Message: f.message, Details: f.details}
		if n := len(r.Details); n > maxDetails {
			r.Details = append(r.Details[:maxDetails:maxDetails], fmt.Sprintf("and %d more", n-maxDetails))
		}
		if f.status == Warn || f.status == Fail {
			if r.Hint = c.hint; f.hint != "" {
				r.Hint = f.hint
			}
		}
		results = append(results, r)
	}
	return results, nil
}

// Failed says that any check did.
func Failed(results []Result) bool {
	for _, r := range results {
		if r.Status == Fail {
			return true
		}
	}
	return false
}

// WriteText writes results for people.
func WriteText(w io.Writer, results []Result) error {
	var b strings.Builder
	counts := map[Status]int{}
	for _, r := range results {
		counts[r.Status]++
		fmt.Fprintf(&b, "%-5s %-20s %s\n", r.Status, r.ID, r.Message)
		for _, d := range r.Details {
			fmt.Fprintf(&b, "%26s - %s\n", "", d)
		}
		if r.Hint != "" {
			fmt.Fprintf(&b, "%26s > %s\n", "", r.Hint)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d to look at, %d failed, %d skipped\n", counts[OK], counts[Warn], counts[Fail], counts[Skip])
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteJSON writes results for programs.
func WriteJSON(w io.Writer, results any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(results)
}
