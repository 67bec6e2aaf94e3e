package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// part is something that runs until its context ends or it fails.
type part = func(ctx context.Context) error

// runStages runs parts that build on each other: those of the first stage carry those of the second, and so on. When ctx
// ends or any part fails, the last stage is ended first and has ended before the one beneath it is told to. It returns
// the first failure, else ctx's error.
func runStages(ctx context.Context, stages ...[]part) error {
	if len(stages) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	// This stage outlives ctx until those above it have ended.
	beneath, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, alive := errgroup.WithContext(beneath)
	for _, p := range stages[0] {
		group.Go(func() error { return p(alive) })
	}
	above, stop := context.WithCancel(ctx)
	defer stop()
	release := context.AfterFunc(alive, stop)
	defer release()
	err := runStages(above, stages[1:]...)
	failed := alive.Err() != nil
	end()
	if own := group.Wait(); failed && own != nil && !errors.Is(own, context.Canceled) {
		return own
	}
	return err
}

// serveHTTP is a part that serves until its context ends; requests under way then get a moment to finish.
func serveHTTP(l net.Listener, h http.Handler) part {
	return func(ctx context.Context) error {
		server := &http.Server{
			Handler: h,
			// Bodies are bounded where they are read, and answers may stream for hours.
			ReadHeaderTimeout: 5 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(bound) != nil {
			_ = server.Close()
		}
		<-served
		return ctx.Err()
	}
}
