package bearer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// agreedTime is how long a token goes on to be good for what it was said to be: a client sends several requests.
	agreedTime = 10 * time.Second
	maxAgreed  = 4096
)

// Webhook has somebody else say which tokens are good: a POST to its URL holds what somebody wants, and with what token. Its methods
// may be called concurrently.
type Webhook struct {
	at   *url.URL
	http *http.Client

	mu     sync.Mutex
	agreed map[question]time.Time
}

// question is what was asked; the token is hashed.
type question struct {
	token [sha256.Size]byte
	want  adapters.Request
}

// NewWebhook makes a Webhook; it asks nobody yet. A nil client is one of its own.
func NewWebhook(at *url.URL, client *http.Client) *Webhook {
	if client == nil {
		client = &http.Client{
			Transport: &http.Transport{
				DialContext: (&net.Dialer{Timeout: fetchTime}).DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // tokens go nowhere else
		}
	}
	return &Webhook{at: at, http: client, agreed: map[question]time.Time{}}
}

// Check says whether a token allows to publish or play a stream: nil, an *adapters.DeniedError, or why that cannot be said now. It
// takes two seconds at most.
func (w *Webhook) Check(ctx context.Context, token string, want adapters.Request) error {
	if token == "" {
		return &adapters.DeniedError{Reason: "Send a token in the field Authorization: Bearer TOKEN."}
	}
	if len(token) > maxToken {
		return &adapters.DeniedError{Reason: "The token is longer than any that is given out here."}
	}
	q := question{sha256.Sum256([]byte(token)), want}
	if w.known(q, time.Now()) {
		return nil
	}
	action := "play"
	if want.Publish {
		action = "publish"
	}
	body, err := json.Marshal(map[string]string{"action": action, "stream": string(want.ID), "token": token})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.at.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := w.http.Do(r)
	if err != nil {
		return fmt.Errorf("ask whether a token is good: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // so that the connection can be used again
	switch {
	case resp.StatusCode/100 == 2:
		w.agree(q, time.Now())
		return nil
	case resp.StatusCode == http.StatusUnauthorized:
		return &adapters.DeniedError{Reason: "The token is not good."}
	case resp.StatusCode == http.StatusForbidden:
		return &adapters.DeniedError{Known: true, Reason: "The token does not allow to " + action + " this stream."}
	}
	return fmt.Errorf("ask %s whether a token is good: %s", w.at.Host, resp.Status)
}

func (w *Webhook) known(q question, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.agreed[q]
	return ok && now.Sub(at) < agreedTime
}

func (w *Webhook) agree(q question, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.agreed) >= maxAgreed {
		for old, at := range w.agreed {
			if now.Sub(at) >= agreedTime {
				delete(w.agreed, old)
			}
		}
		if len(w.agreed) >= maxAgreed {
			clear(w.agreed)
		}
	}
	w.agreed[q] = now
}

// CloseIdleConnections closes connections that nobody uses.
func (w *Webhook) CloseIdleConnections() { w.http.CloseIdleConnections() }
