package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

// peersCommand shows what a running sidecar knows of the others.
func peersCommand(environ []string, stdout io.Writer) *cobra.Command {
	var asJSON bool
	q := question{environ: environ}
	cmd := q.command("peers", "Show the peers of the sidecar that runs here: who is connected, how far away, and what is wrong", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string) error {
			var s status
			if err := q.ask(cmd.Context(), "/api/status", &s); err != nil {
				return err
			}
			if asJSON {
				q.form = "json"
			}
			return q.print(stdout, s.Peers, func() error { return printPeers(stdout, s, time.Now()) })
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as -o json")
	return cmd
}

// adminURL is where the sidecar of these settings is asked from within its pod.
func adminURL(environ []string) string {
	settings, err := config.Decode(environ)
	if err != nil {
		settings = config.Default()
	}
	host, port, err := net.SplitHostPort(settings.Admin.Listen)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// printPeers writes a line for each peer, and below it what is wrong.
func printPeers(w io.Writer, s status, now time.Time) error {
	connected := 0
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLUSTER\tNODE\tADDRESS\tSTATE\tRTT\tHOLDS\tHEARD\tVERSION")
	for _, p := range s.Peers {
		if p.Connected {
			connected++
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			orDash(p.Cluster), orDash(string(p.ID)), orDash(p.Address), peerState(p), rtt(p.RTT), p.Holds, ago(p.LastSeen, now), orDash(p.Version))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, p := range s.Peers {
		if len(p.Conditions) > 0 || p.Error != "" {
			fmt.Fprintf(w, "! %s: %s\n", cmp.Or(p.Address, string(p.ID)), trouble(strings.Join(p.Conditions, ", "), p.Error))
		}
	}
	for _, d := range s.Discovery {
		if d.Error != "" {
			fmt.Fprintf(w, "! discovery by %s: since %s: %s\n", d.Source, d.Since.Format(time.RFC3339), d.Error)
		}
	}
	_, err := fmt.Fprintf(w, "%s of cluster %s: %d of %d peers connected\n", s.Node, s.Cluster, connected, len(s.Peers))
	return err
}

// peerState is a peer's state in a word or two.
func peerState(p mesh.PeerStatus) string {
	switch {
	case !p.Connected:
		return "down"
	case p.Draining:
		return "draining"
	case !p.Ready:
		return "not ready"
	}
	return "ready"
}

// trouble joins the short name of what is wrong with its words, of which either may be missing.
func trouble(condition, words string) string {
	if condition == "" || words == "" {
		return condition + words
	}
	return condition + ": " + words
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func rtt(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return max(now.Sub(t), 0).Round(time.Second).String() + " ago"
}
