// Command sidestream is the sidecar: it stands beside a media server that speaks WHIP and WHEP and makes it part of a
// cascade. It also holds the built-in server (sfu) and the whole thing on one machine (demo).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/redirect"
)

// version is set by the linker.
var version = "dev"

func main() {
	// The first signal ends things in order; the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sidestream:", err)
		os.Exit(exitCode(err))
	}
}

// exitError is an error that chooses the exit code of the process.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) Unwrap() error { return e.err }

// exitCode is what the process ends with: 1, unless the error says otherwise.
func exitCode(err error) int {
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	return 1
}

// gcPercent is a sidecar's GOGC where its environment has none. It is a guest in the pod: a seventh of Go's usual garbage saves
// megabytes, and `make bench` and `make bench-mesh` see next to no CPU time that it costs.
const gcPercent = 15

// sfuGCPercent is the media server's: a viewer takes a fifth less memory than with Go's own, and packets make no garbage.
const sfuGCPercent = 25

// collect sets GOGC where the environment has none.
func collect(environ []string, percent int) {
	if !slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "GOGC=") }) {
		debug.SetGCPercent(percent)
	}
}

// run is the program, without the process around it. It blocks until the command is done or ctx ends, which is no error.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:           "sidestream",
		Short:         "One global cascade of the WebRTC media servers that you already run",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(longFlags(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(
		&cobra.Command{
			Use:   "run",
			Short: "Run the sidecar; its settings are SIDESTREAM_* environment variables",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				collect(environ, gcPercent)
				return withSettings(cmd.Context(), environ, stderr, config.Config.Validate, runSidecar)
			},
		},
		&cobra.Command{
			Use:   "sfu",
			Short: "Run the built-in media server alone; its settings are SIDESTREAM_SFU_* environment variables",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				collect(environ, sfuGCPercent)
				return withSettings(cmd.Context(), environ, stderr, config.Config.ValidateSFU, runSFU)
			},
		},
		demoCommand(environ, stdout, stderr),
		peersCommand(environ, stdout), streamsCommand(environ, stdout), relaysCommand(environ, stdout), topCommand(environ, stdout),
		explainCommand(environ, stdout),
		probeCommand(stdout, stderr),
		redirectCommand(redirect.Set),
		injectCommand(os.Stdin, stdout, stderr),
		checkCommand(stdout),
		&cobra.Command{
			Use:   "version",
			Short: "Print the version",
			Args:  cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintf(stdout, "sidestream %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
				return err
			},
		},
	)
	err := root.ExecuteContext(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // it was told to end
	}
	return err
}

// withSettings reads the settings and runs with them.
func withSettings(ctx context.Context, environ []string, stderr io.Writer, validate func(config.Config) error,
	run func(context.Context, config.Config, *slog.Logger) error,
) error {
	settings, err := config.Decode(environ)
	if err != nil {
		return fmt.Errorf("read settings:\n%w", err)
	}
	if err := validate(settings); err != nil {
		return fmt.Errorf("check settings:\n%w", err)
	}
	logger := newLogger(settings.Log, stderr)
	logger.Info("starting", "version", version, "settings", settings)
	return run(ctx, settings, logger)
}

func newLogger(c config.Log, to io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == config.Text {
		return slog.New(slog.NewTextHandler(to, options))
	}
	return slog.New(slog.NewJSONHandler(to, options))
}

// longFlags lets flags be written with one dash, as Go programs take them: one-letter flags such as -f stand alone.
func longFlags(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		if len(arg) > 2 && arg[0] == '-' && arg[1] != '-' && !strings.ContainsAny(arg[1:2], "0123456789.") {
			arg = "-" + arg
		}
		out[i] = arg
	}
	return out
}
