//go:build linux

package inside

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// Publisher sends the test clip, and comes again when its session ends.
type Publisher struct {
	*testsource.Source
	client *whip.Client
	where  func(attempt int) string

	mu  sync.Mutex
	at  string
	err error
}

// NewPublisher makes a publisher in a host, of H264 at a bitrate (0: the clip's own), that asks where to publish before each
// attempt.
func NewPublisher(h *wan.Host, bitrate int, where func(attempt int) string) (*Publisher, error) {
	client, err := Client(h)
	if err != nil {
		return nil, err
	}
	source, err := testsource.New(testsource.Options{Bitrate: bitrate})
	return &Publisher{Source: source, client: client, where: where}, err
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if at, err := url.Parse(p.where(attempt)); err == nil && at.Host != "" {
			p.set(at.Host, nil)
			p.set("", p.Publish(ctx, p.client, adapters.Endpoint{URL: at}))
		}
		select {
		case <-ctx.Done():
		case <-time.After(comeAgain):
		}
	}
}

func (p *Publisher) set(at string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
	if err != nil {
		p.err = err
	}
}

// At is the host and port where it publishes, "" while it does not, and why the last session ended.
func (p *Publisher) At() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at, p.err
}
