package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// writePause is the least time between two writes of the state.
const writePause = 500 * time.Millisecond

// state is what a node remembers over a restart.
type state struct {
	Node        catalogue.NodeID `json:"node"`
	Incarnation uint64           `json:"incarnation"`
	Record      catalogue.Record `json:"record"`
}

// stateFile keeps a state on disk. A directory that cannot be written is said once and lived with: without a memory a
// restarted node is a new one, which works.
type stateFile struct {
	name   string
	logger *slog.Logger
	asked  chan chan<- struct{} // who cannot wait for the pause to end; the inner one is closed when the state is written
}

// open reads the state of the process before and counts the incarnation up. id is the node's given name; where it is
// empty, the remembered one counts, else a random one. The state of another node is not believed.
func (f stateFile) open(id catalogue.NodeID) state {
	var s state
	content, err := os.ReadFile(f.name)
	if err == nil {
		err = json.Unmarshal(content, &s)
	}
	if err == nil && (s.Node != "" && !config.PlainName(string(s.Node)) || s.Incarnation >= math.MaxUint64-1) {
		err = fmt.Errorf("node %q, incarnation %d", s.Node, s.Incarnation)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.logger.Warn("state cannot be read; going on without a memory", "file", f.name, "error", err)
		s = state{}
	}
	switch {
	case id != "" && s.Node != id:
		s = state{Node: id}
	case s.Node == "":
		s = state{Node: catalogue.NodeID(rand.Text())}
	}
	s.Incarnation++
	f.write(s)
	return s
}

// write replaces the file at once, so that a crash leaves the old state or the new one.
func (f stateFile) write(s state) {
	if err := f.replace(s); err != nil {
		f.logger.Warn("state cannot be kept: a restart of this sidecar will count as a new node's",
			"file", f.name, "error", err)
	}
}

func (f stateFile) replace(s state) error {
	content, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err = os.MkdirAll(filepath.Dir(f.name), 0o700); err != nil {
		return err
	}
	temporary := f.name + ".new"
	if err = os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, f.name)
}

// remember returns when what the catalogue knows now is on disk, or ctx ends. It works while follow runs.
func (f stateFile) remember(ctx context.Context) {
	done := make(chan struct{})
	select {
	case f.asked <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// follow keeps the file up with the catalogue until ctx ends, and writes a last time then.
func (f stateFile) follow(ctx context.Context, s state, c *catalogue.Catalogue) error {
	pause := time.NewTicker(writePause)
	defer pause.Stop()
	var asked chan<- struct{}
	for {
		_, changed := c.Snapshot()
		if record, self := c.Record(), c.Self(); !reflect.DeepEqual(record, s.Record) || self.Incarnation != s.Incarnation {
			s.Record, s.Incarnation = record, self.Incarnation
			f.write(s)
		}
		if asked != nil {
			close(asked)
			asked = nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			continue
		case asked = <-f.asked:
			continue
		case <-changed:
		}
		select {
		case <-ctx.Done():
		case asked = <-f.asked:
		case <-pause.C:
		}
	}
}
