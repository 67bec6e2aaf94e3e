//go:build !linux

package redirect

import (
	"errors"
	"fmt"
)

// Set is possible on Linux only.
func Set(from, to uint16) error {
	return fmt.Errorf("redirect port %d to %d: %w", from, to, errors.ErrUnsupported)
}
