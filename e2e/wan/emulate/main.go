//go:build linux

// Command emulate joins network namespaces by wide-area links that are changed by commands while it runs: the hands-on
// form of package wan.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

const usage = `usage: emulate [flags] HOST HOST...

Makes network namespaces, joins them by links, and removes them when it is interrupted. For example

  emulate -set '* * rtt=150ms' -set 'germany us-west rtt=140ms loss=1%' germany singapore us-west

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "emulate:", err)
		os.Exit(1)
	}
}

// commands is standard input, opened anew: reading from the file that the process was given cannot be interrupted, and
// making that one non-blocking would do so for the shell as well.
func commands() (io.ReadCloser, error) {
	return os.OpenFile("/dev/stdin", os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	var first []string
	flags := flag.NewFlagSet("emulate", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
		fmt.Fprint(flags.Output(), "\nCommands on standard input:\n", help)
	}
	flags.Func("set", "what a link is like at first, as the command set takes it; may come again", func(s string) error {
		first = append(first, "set "+s)
		return nil
	})
	seed := flags.Uint64("seed", 1, "of the accidents: the same seed and the same packets, the same losses")
	realtime := flags.Bool("realtime", true, "run before all ordinary processes, so that delays are exact on a busy machine")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() < 2 {
		flags.Usage()
		return errors.New("names of two or more hosts are wanted")
	}
	stdin, err := commands()
	if err != nil {
		return fmt.Errorf("read commands: %w", err)
	}
	return emulate(ctx, flags.Args(), first, *seed, *realtime, stdin, stdout)
}

// emulate makes the hosts, follows the commands until ctx ends, and removes the hosts.
func emulate(
	ctx context.Context, names, first []string, seed uint64, realtime bool, stdin io.ReadCloser, stdout io.Writer,
) error {
	if realtime {
		if err := wan.Realtime(true); err != nil {
			fmt.Fprintln(stdout, "Delays will be exact only on a machine with time to spare:", err)
		}
		defer wan.Realtime(false) //nolint:errcheck // the end
	}
	network := wan.NewNetwork()
	var ending sync.WaitGroup
	defer ending.Wait()
	defer stdin.Close() //nolint:errcheck // it is read only
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ending.Go(func() { _ = network.Run(ctx) })

	hosts := make([]*wan.Host, 0, len(names))
	t := topology{names: names, ways: make(map[way]*wan.Direction)}
	for i, name := range names {
		for _, other := range names[:i] {
			if other == name {
				return fmt.Errorf("make host %s: there are two", name)
			}
		}
		h, err := network.Host(name)
		if err != nil {
			return err
		}
		for j, other := range hosts {
			link := wan.NewLink(seed+uint64(i)<<32+uint64(j), wan.Params{})
			h.Join(other, link)
			t.ways[way{h.Name, other.Name}], t.ways[way{other.Name, h.Name}] = link.Out, link.In
		}
		hosts = append(hosts, h)
	}
	for _, command := range first {
		if err := t.do(command, stdout); err != nil {
			return err
		}
	}
	if err := introduce(hosts, stdout); err != nil {
		return err
	}
	ending.Go(func() { t.follow(stdin, stdout) })
	<-ctx.Done()
	return nil
}

// introduce says what the hosts are called, where they are, and how to enter them.
func introduce(hosts []*wan.Host, stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tIPV4\tIPV6\tENTER BY")
	for _, h := range hosts {
		fmt.Fprintf(table, "%s\t%v\t%v\tip netns exec %s COMMAND\n", h.Name, h.IPv4, h.IPv6, h.Namespace)
	}
	fmt.Fprintln(table, "\nReady for commands (try help); interrupt to end.")
	return table.Flush()
}

// follow does what the lines say, to their end.
func (t topology) follow(stdin io.Reader, stdout io.Writer) {
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		if err := t.do(lines.Text(), stdout); err != nil {
			fmt.Fprintln(stdout, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
}
