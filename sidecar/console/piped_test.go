package console

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"
)

func contextOf(t *testing.T) (context.Context, func()) { return context.WithCancel(t.Context()) }

// piped is a client that reads by a pipe.
type piped struct {
	header http.Header
	to     io.Writer
}

func (p *piped) Header() http.Header              { return p.header }
func (p *piped) WriteHeader(int)                  {}
func (p *piped) Write(b []byte) (int, error)      { return p.to.Write(b) }
func (p *piped) FlushError() error                { return nil }
func (p *piped) SetWriteDeadline(time.Time) error { return nil }
