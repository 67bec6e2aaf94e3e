package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// readEvery is how often the file is read. Its content is compared, because a mounted ConfigMap changes by a symbolic
	// link above it.
	readEvery = 3 * time.Second
	// maxFile bounds the file, in bytes: a thousand long lines.
	maxFile = 256 << 10
	// maxFaults bounds how many lines an error tells.
	maxFaults = 10
)

// File is a Source of a list in a file: a host:port on each line, empty lines and what follows a # left out. It is read
// again every few seconds. One that cannot be read, or has a line that is none, changes nothing. Names are looked up again
// as in Static.
type File struct {
	path     string
	log      *slog.Logger
	resolver resolver
	trouble  Condition // of the file
	names    Condition // of the names in it
}

// NewFile is a source of the file at path, which need not be there yet. A nil logger is silent.
func NewFile(path string, logger *slog.Logger) *File {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &File{path: path, log: logger, resolver: net.DefaultResolver}
}

// Trouble tells why the file as it is now is not in force, or which names in it cannot be resolved, as Troubled says.
func (f *File) Trouble() (since time.Time, err error) {
	if since, err = f.trouble.Trouble(); err != nil {
		return since, err
	}
	if other, err := f.names.Trouble(); err != nil || other.After(since) {
		return other, err
	}
	return since, nil
}

// Run reports the list, as Source says; nothing before the file has been read for the first time.
func (f *File) Run(ctx context.Context, report func([]Peer)) error {
	report = OnChange(report)
	stop := func() {}
	defer func() { stop() }()
	var inForce *list
	var content []byte
	said := ""
	for {
		read, err := readBounded(f.path)
		if err == nil && (inForce == nil || !bytes.Equal(read, content)) {
			var next *list
			if next, err = f.parse(read); err == nil {
				stop()
				if inForce != nil {
					next.inherit(inForce)
				}
				f.names.Set(nil)
				stop = start(ctx, next, report)
				inForce, content = next, read
				f.log.Info("list of peers read", "file", f.path, "lines", len(next.fixed)+len(next.names))
			}
		}
		f.trouble.Set(err)
		if err != nil && err.Error() != said {
			f.log.Warn("list of peers not read; what it said before stays", "file", f.path, "error", err)
		}
		said = fmt.Sprint(err)
		timer := time.NewTimer(readEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// start runs a list until the function that it returns is called.
func start(ctx context.Context, l *list, report func([]Peer)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var task sync.WaitGroup
	task.Go(func() { _ = l.Run(ctx, report) }) // it ends with ctx only
	return func() {
		cancel()
		task.Wait()
	}
}

// inherit takes over what another list, which does not run any more, knows of the names that are in both.
func (l *list) inherit(from *list) {
	for _, n := range l.names {
		if addrs, ok := from.known[n]; ok {
			l.known[n] = addrs
		}
	}
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("read peers: %s has more than %d bytes: list at most %d peers", path, maxFile, MaxPeers)
	}
	return content, nil
}

// parse takes the whole file or nothing of it.
func (f *File) parse(content []byte) (*list, error) {
	l := newList(f.log)
	l.trouble, l.resolver = &f.names, f.resolver
	var errs []error
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := l.add(line); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", number, err))
		}
		if len(errs) == maxFaults {
			break
		}
	}
	return l, errors.Join(errs...)
}
