// Command build puts the binaries of the test bed into the cache. `make bed` runs it, so that the first build, which takes
// minutes, is seen and is not part of a test's time.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/sidestream-dev/sidestream/e2e/bed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if _, err := bed.Build(ctx, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		os.Exit(1)
	}
}
