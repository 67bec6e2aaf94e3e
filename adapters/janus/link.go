package janus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	stepTime   = 10 * time.Second // for Janus' answer to a request, asynchronous ones too
	pollTime   = 40 * time.Second // Janus answers after 30 s where nothing happens
	detachTime = 3 * time.Second
	lostTime   = 5 * time.Second // that a session is asked for again before it counts as lost
	retryTime  = 250 * time.Millisecond
)

var (
	errNotConnected = errors.New("there is no session with janus")
	errHandleOver   = errors.New("janus ended this handle")
)

// link is the one session with Janus that all handles belong to. Its methods may be called concurrently.
type link struct {
	client *client
	logger *slog.Logger

	mu      sync.Mutex
	session uint64 // 0: there is none
	handles map[uint64]*handle
}

// handle is an attachment to the plugin: one PeerConnection, or one look into a room.
type handle struct {
	link    *link
	session uint64
	id      uint64
	// notify takes what Janus tells unasked; it must not block. It is called by one goroutine at a time.
	notify func(*message)
	over   chan struct{} // closed when Janus, or the loss of the session, has ended the handle

	mu      sync.Mutex
	waiting map[string]chan *message // by transaction
	ended   bool
}

// open begins a session.
func (l *link) open(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, err := l.client.call(ctx, "open a session", params{"janus": "create"})
	if err != nil {
		return 0, err
	}
	if m.Data.ID == 0 {
		return 0, &garbageError{"open a session", "no id"}
	}
	l.mu.Lock()
	l.session, l.handles = m.Data.ID, map[uint64]*handle{}
	l.mu.Unlock()
	return m.Data.ID, nil
}

// follow hands the session's events on until it is lost or ctx ends, and says why. Its handles are over then.
func (l *link) follow(ctx context.Context, session uint64) error {
	defer l.lose()
	for {
		events, err := l.poll(ctx, session)
		if err != nil {
			if err = l.revive(ctx, session, err); err != nil {
				return err
			}
			continue
		}
		for i := range events {
			if events[i].Janus == "timeout" {
				return errors.New("janus ended the session for being silent")
			}
			l.dispatch(&events[i])
		}
	}
}

func (l *link) poll(ctx context.Context, session uint64) ([]message, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	return l.client.poll(ctx, session)
}

// revive finds out whether a session lives whose events could not be had. A server that was restarted knows nothing of
// it; one that was slow does.
func (l *link) revive(ctx context.Context, session uint64, cause error) error {
	bounded, cancel := context.WithTimeout(ctx, lostTime)
	defer cancel()
	for codeOf(cause) == 0 {
		_, err := l.client.call(bounded, "keep the session alive", params{"janus": "keepalive"}, session)
		if err == nil {
			return nil
		}
		if codeOf(err) != 0 {
			cause = err
			break
		}
		if pause(bounded, retryTime) != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("session is lost: %w", cause)
}

// lose ends all handles.
func (l *link) lose() {
	l.mu.Lock()
	handles := l.handles
	l.session, l.handles = 0, nil
	l.mu.Unlock()
	for _, h := range handles {
		h.end()
	}
}

// close ends the session at Janus, and with it all that belongs to it.
func (l *link) close(ctx context.Context, session uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	if _, err := l.client.call(ctx, "end the session", params{"janus": "destroy"}, session); err != nil &&
		codeOf(err) != codeNoSession {
		l.logger.Warn("session is left at janus until it times out", "error", err)
	}
}

func (l *link) dispatch(m *message) {
	l.mu.Lock()
	h := l.handles[m.Sender]
	if h != nil && m.Janus == "detached" {
		delete(l.handles, m.Sender)
	}
	l.mu.Unlock()
	if h == nil {
		return
	}
	if m.Janus == "detached" {
		if h.end() && h.notify != nil {
			h.notify(m)
		}
		return
	}
	h.mu.Lock()
	waiting := h.waiting[m.Transaction]
	delete(h.waiting, m.Transaction)
	h.mu.Unlock()
	switch {
	case waiting != nil && m.Transaction != "":
		waiting <- m
	case h.notify != nil:
		h.notify(m)
	}
}

// attach makes a handle. Its owner detaches it, unless it is over before.
func (l *link) attach(ctx context.Context, notify func(*message)) (*handle, error) {
	l.mu.Lock()
	session := l.session
	l.mu.Unlock()
	if session == 0 {
		return nil, errNotConnected
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, err := l.client.call(ctx, "attach to the VideoRoom", params{
		"janus": "attach", "plugin": plugin, "opaque_id": "sidestream",
	}, session)
	if err != nil {
		return nil, err
	}
	h := &handle{
		link: l, session: session, id: m.Data.ID, notify: notify, over: make(chan struct{}), waiting: map[string]chan *message{},
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != session {
		return nil, errNotConnected
	}
	l.handles[h.id] = h
	return h, nil
}

// detach ends the handle at Janus: a PeerConnection is closed, a room left. It is not an error where it was over.
func (h *handle) detach(ctx context.Context) error {
	h.link.mu.Lock()
	if h.link.handles[h.id] == h {
		delete(h.link.handles, h.id)
	}
	h.link.mu.Unlock()
	if !h.end() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	_, err := h.link.client.call(ctx, "detach", params{"janus": "detach"}, h.session, h.id)
	if code := codeOf(err); code == codeNoHandle || code == codeNoSession {
		return nil
	}
	return err
}

// end marks the handle as over; false where it was.
func (h *handle) end() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.ended = true
	close(h.over)
	return true
}

// ask sends a request that the plugin answers at once.
func (h *handle) ask(ctx context.Context, op string, body params) (said, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, err := h.link.client.call(ctx, op, params{"janus": "message", "body": body}, h.session, h.id)
	if err != nil {
		return said{}, err
	}
	return m.said(op)
}

// request sends a request that the plugin answers by an event.
func (h *handle) request(ctx context.Context, op string, body params, description *jsep) (said, *jsep, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	transaction, reply := nonce(), make(chan *message, 1)
	h.mu.Lock()
	h.waiting[transaction] = reply
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, transaction)
		h.mu.Unlock()
	}()
	fields := params{"janus": "message", "transaction": transaction, "body": body}
	if description != nil {
		fields["jsep"] = description
	}
	m, err := h.link.client.call(ctx, op, fields, h.session, h.id)
	if err != nil {
		return said{}, nil, err
	}
	if m.Janus == "ack" {
		select {
		case m = <-reply:
		case <-h.over:
			return said{}, nil, fmt.Errorf("%s: %w", op, errHandleOver)
		case <-ctx.Done():
			return said{}, nil, fmt.Errorf("%s: %w", op, ctx.Err())
		}
		if err := m.failure(op); err != nil {
			return said{}, nil, err
		}
	}
	s, err := m.said(op)
	return s, m.JSEP, err
}

// trickle hands over candidates.
func (h *handle) trickle(ctx context.Context, candidates []params, complete bool) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	if len(candidates) > 0 {
		if _, err := h.link.client.call(ctx, "trickle", params{"janus": "trickle", "candidates": candidates}, h.session, h.id); err != nil {
			return err
		}
	}
	if !complete {
		return nil
	}
	_, err := h.link.client.call(ctx, "trickle", params{
		"janus": "trickle", "candidate": params{"completed": true},
	}, h.session, h.id)
	return err
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
