package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/probe"
)

// Exit codes of the probe.
const (
	exitCannot = 1
	exitUsage  = 2
)

type probeFlags struct {
	whip, whep                 string
	token, publish, play       string
	header                     []string
	stream                     string
	timeout                    time.Duration
	slow, json, insecure, mute bool
	caFile                     string
}

// probeCommand tests a media server from outside.
func probeCommand(stdout, stderr io.Writer) *cobra.Command {
	var f probeFlags
	usage := func(err error) error { return exitError{exitUsage, err} }
	cmd := &cobra.Command{
		Use:   "probe [URL | PUBLISH-URL PLAY-URL]",
		Short: "Test a WHIP/WHEP server from outside: what it can do in a cascade, and with which settings",
		Long: `Test a WHIP/WHEP server from outside: publish and play streams of its own, and tell what a cascade can expect.

With one URL the addresses of known makes below it are tried. With two, {stream} stands for the stream's name:

  sidestream probe https://media.example
  sidestream probe https://media.example/{stream}/whip https://media.example/{stream}/whep
  sidestream probe -whip https://media.example/api/whip -whep https://media.example/api/whep -header 'Authorization: Bearer {stream}'

Streams have random names and everything is deleted at the end, so that a server in service may be probed.
The exit code is 0 where the server can be an origin or an edge of a cascade, 1 where it cannot, 2 for wrong usage.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usage(fmt.Errorf("%d URLs are given: give one address, or the URL to publish and the URL to play", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), args, stdout, stderr) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	flags := cmd.Flags()
	flags.StringVar(&f.whip, "whip", "", "URL to publish, with {stream} for the name")
	flags.StringVar(&f.whep, "whep", "", "URL to play, with {stream} for the name")
	flags.StringVar(&f.token, "token", "", "bearer token to publish and to play")
	flags.StringVar(&f.publish, "publish-token", "", "bearer token to publish")
	flags.StringVar(&f.play, "play-token", "", "bearer token to play")
	flags.StringArrayVar(&f.header, "header", nil, "header field to send along, as 'Name: value'; may be repeated, and hold {stream}")
	flags.StringVar(&f.stream, "stream", "", "name to use for every stream (default: random ones)")
	flags.DurationVar(&f.timeout, "timeout", 0, "time for it all (default 1m, with -slow 3m)")
	flags.BoolVar(&f.slow, "slow", false, "also find out how long those are believed in who vanish: minutes")
	flags.BoolVar(&f.json, "json", false, "print the report as JSON")
	flags.BoolVar(&f.mute, "quiet", false, "do not tell on stderr what is being done")
	flags.BoolVar(&f.insecure, "insecure", false, "take any certificate")
	flags.StringVar(&f.caFile, "ca", "", "file with the certificates (PEM) to trust in place of the system's")
	return cmd
}

func (f probeFlags) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := f.options(args)
	if err != nil {
		return exitError{exitUsage, err}
	}
	transport, err := f.transport()
	if err != nil {
		return exitError{exitUsage, err}
	}
	defer transport.CloseIdleConnections()
	o.Transport = transport
	if !f.mute {
		var mu sync.Mutex
		began := time.Now()
		o.Progress = func(what string) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(stderr, "%5.1fs  %s\n", time.Since(began).Seconds(), what)
		}
	}
	p, err := probe.New(o)
	if err != nil {
		return exitError{exitUsage, err}
	}
	report, err := p.Run(ctx)
	if err != nil {
		return exitError{exitCannot, errors.New("interrupted before it was done")}
	}
	if f.json {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = report.WriteText(stdout)
	}
	if err != nil {
		return err
	}
	if !report.CanCascade() {
		return exitError{exitCannot, errors.New("this server can be neither an origin nor an edge of a cascade")}
	}
	return nil
}

func (f probeFlags) options(args []string) (probe.Options, error) {
	o := probe.Options{
		Publish: f.whip, Play: f.whep, Token: f.token, PublishToken: f.publish, PlayToken: f.play,
		Header: http.Header{}, Stream: adapters.StreamID(f.stream), Timeout: f.timeout, Slow: f.slow,
	}
	switch {
	case len(args) > 0 && (f.whip != "" || f.whep != ""):
		return o, errors.New("give URLs as arguments, or by -whip and -whep, not both")
	case len(args) == 1:
		o.Base = args[0]
		if strings.Contains(args[0], "{") {
			return o, errors.New("one URL is the server's address, without {stream}; give both URLs, or -whip or -whep alone")
		}
	case len(args) == 2:
		o.Publish, o.Play = args[0], args[1]
	case f.whip == "" && f.whep == "":
		return o, errors.New("give the server's address, such as https://media.example")
	}
	for _, line := range f.header {
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t\r\n") || strings.ContainsAny(value, "\r\n") {
			return o, errors.New("a -header must be like 'Name: value'")
		}
		o.Header.Add(name, strings.TrimSpace(value))
	}
	return o, nil
}

// transport is as the operator's certificates want it.
func (f probeFlags) transport() (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 8
	if !f.insecure && f.caFile == "" {
		return t, nil
	}
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: f.insecure, MinVersion: tls.VersionTLS12} //nolint:gosec // the operator asked for it
	if f.caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(f.caFile)
	if err != nil {
		return nil, fmt.Errorf("read -ca: %w", err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read -ca: %s holds no certificate in PEM", f.caFile)
	}
	return t, nil
}
