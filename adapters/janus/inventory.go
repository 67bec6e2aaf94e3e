package janus

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	lookTime = time.Second // between two lists of rooms
	// maxLookouts bounds the rooms that are watched from within while nobody is in them, so that what happens there is told
	// at once; in others it is found by the next list.
	maxLookouts = 256
	maxRooms    = 10_000
	maxAsked    = 64 // publications whose subscribers are counted in one look, by the administration's API
)

// lookout is one room and what is known of who is in it.
type lookout struct {
	room   ident
	stream adapters.StreamID

	// Below is the inventory's, under its mutex.
	handle     *handle // joined as an attendee; nil where that cannot be
	refused    bool    // joining was
	publishers map[string]*published
	attendees  map[string]bool // participants who publish nothing and are not the sidecar's
	native     int             // subscriptions that did not come through the façade
	missed     bool            // a full list had a publisher of whom no event had told
}

// published is a publisher in a room.
type published struct {
	id      ident
	session string
	since   time.Time
	order   uint64
	tracks  []adapters.Track
}

// state is what the inventory tells: the streams, or why there is none to tell.
type state struct {
	streams  []adapters.Stream
	ready    bool
	attempts int // to connect that have failed
	err      error
}

// inventory finds out what is published in which room.
type inventory struct {
	facade *facade
	admin  *client // nil: none
	logger *slog.Logger
	wake   chan struct{} // capacity 1

	mu       sync.Mutex
	naming   naming
	lookouts map[ident]*lookout
	// ids counts how often a participant's id has come to publish in a room, as applications may use one again.
	ids    map[string]int
	orders uint64
	dead   []*handle // to be detached: their rooms have ended
	list   bool      // rooms have to be listed before the next look is due
	begun  uint64    // looks
	ended  uint64    // the latest of them that has ended
	state  state
	change chan struct{} // closed at the next change of the state
}

func newInventory(admin *client, logger *slog.Logger) *inventory {
	return &inventory{
		admin: admin, logger: logger, wake: make(chan struct{}, 1), lookouts: map[ident]*lookout{}, ids: map[string]int{},
		change: make(chan struct{}),
	}
}

func (i *inventory) snapshot() (state, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state, i.change
}

func (i *inventory) setLocked(s state) {
	if reflect.DeepEqual(s, i.state) {
		return
	}
	i.state = s
	i.changeLocked()
}

func (i *inventory) changeLocked() {
	close(i.change)
	i.change = make(chan struct{})
}

// want has Janus asked anew; a look of the number that comes back, or a later one, has seen what is there now.
func (i *inventory) want() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = true
	select {
	case i.wake <- struct{}{}:
	default:
	}
	return i.begun + 1
}

// looked says whether a look that was wanted has ended, and how the latest attempt failed where there is no session.
func (i *inventory) looked(wanted uint64) (done bool, changed <-chan struct{}, failed error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state.ready && i.ended >= wanted, i.change, i.state.err
}

// lost says why Janus cannot be asked.
func (i *inventory) lost(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lookouts, i.dead = map[ident]*lookout{}, nil
	i.setLocked(state{attempts: i.state.attempts + 1, err: err})
}

func (i *inventory) news(rooms bool) {
	i.mu.Lock()
	i.list = i.list || rooms
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// run keeps the state true until ctx ends, or the server cannot be asked. It calls ready once everything is known.
func (i *inventory) run(ctx context.Context, control *handle, n naming, ready func()) error {
	i.mu.Lock()
	i.naming = n
	i.mu.Unlock()
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		i.mu.Lock()
		due := i.list || !time.Now().Before(next)
		i.list = false
		if due {
			i.begun++
		}
		i.mu.Unlock()
		if due {
			err := i.look(ctx, control)
			if code := codeOf(err); err != nil && (ready != nil || ctx.Err() != nil || code == codeNoSession || code == codeNoHandle) {
				return err
			}
			if err != nil { // whether the session is lost, its events tell
				i.logger.Warn("janus could not be looked at; trying again", "error", err)
				due = false
			}
			next = time.Now().Add(lookTime - time.Duration(rand.Int64N(int64(lookTime/4))))
		}
		if ready != nil {
			ready()
			ready = nil
		}
		i.tell(due)
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-control.over:
			return errHandleOver
		case <-i.wake:
		case <-timer.C:
		}
	}
}

// look lists the rooms, and who is in those of which it is not known.
func (i *inventory) look(ctx context.Context, control *handle) error {
	request := params{"request": "list"}
	if key := i.facade.config.AdminKey; key != "" {
		request["admin_key"] = key // private rooms too
	}
	listed, err := control.ask(ctx, "list rooms", request)
	if err != nil {
		return err
	}
	if len(listed.List) > maxRooms {
		i.logger.Warn("janus has more rooms than are looked at", "rooms", len(listed.List), "most", maxRooms)
		listed.List = listed.List[:maxRooms]
	}
	here := make(map[ident]bool, len(listed.List))
	for _, r := range listed.List {
		stream, made, ok := i.naming.stream(r)
		if !ok {
			continue
		}
		here[r.Room] = true
		if made {
			i.facade.adopt(r.Room)
		}
		if err := i.visit(ctx, control, r, stream, len(listed.List) <= maxLookouts); err != nil {
			return err
		}
	}
	i.forget(ctx, here)
	return i.countNative(ctx)
}

// visit learns who is in a room.
func (i *inventory) visit(ctx context.Context, control *handle, r room, stream adapters.StreamID, few bool) error {
	i.mu.Lock()
	l := i.lookouts[r.Room]
	if l == nil {
		l = &lookout{room: r.Room, stream: stream, publishers: map[string]*published{}, attendees: map[string]bool{}}
		i.lookouts[r.Room] = l
	}
	join := l.handle == nil && !l.refused && (few || r.Participants > 0)
	i.mu.Unlock()
	if join {
		if err := i.join(ctx, l); err != nil {
			return err
		}
	}
	if r.Participants <= 1 && i.facade.vacant(r.Room) {
		return i.facade.closeRoom(ctx, r.Room)
	}
	i.mu.Lock()
	order := i.orders              // who comes while the answer is under way is not in it
	known := len(l.publishers) + 1 // ourselves
	ask := len(l.attendees) > 0 || l.handle == nil && r.Participants > 0 || l.handle != nil && (join || r.Participants != known)
	i.mu.Unlock()
	if !ask {
		return nil
	}
	in, err := control.ask(ctx, "list participants", params{"request": "listparticipants", "room": r.Room})
	if codeOf(err) != 0 {
		return nil // it has ended meanwhile, or is closed to us
	}
	if err != nil {
		return err
	}
	i.take(ctx, control, l, in.Participants, order)
	return nil
}

// join watches a room from within. A room may be closed to the sidecar; then it is looked at from outside, which tells
// no codecs.
func (i *inventory) join(ctx context.Context, l *lookout) error {
	h, err := i.facade.link.attach(ctx, func(m *message) { i.heard(l, m) })
	if err != nil {
		return err
	}
	request := params{
		"request": "join", "ptype": "publisher", "room": l.room, "id": i.naming.participantID(),
		"display": i.facade.current().display(),
	}
	i.facade.withPIN(request)
	joined, _, err := h.request(ctx, "watch a room", request, nil)
	if err == nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		l.handle = h
		i.addLocked(l, joined.Publishers)
		return nil
	}
	_ = h.detach(ctx) // a handle without a connection
	switch codeOf(err) {
	case 0:
		return err
	case codeNoRoom: // it has just ended
	default:
		i.mu.Lock()
		l.refused = true
		i.mu.Unlock()
		i.logger.Warn("room is looked at from outside only: its codecs are not known", "stream", l.stream, "error", err)
	}
	return nil
}

// heard takes what Janus tells of a room.
func (i *inventory) heard(l *lookout, m *message) {
	if m.Janus == "detached" {
		i.mu.Lock()
		l.handle = nil
		i.mu.Unlock()
		i.news(true)
		return
	}
	if m.Janus != "event" {
		return
	}
	about, err := m.said("hear of a room")
	if err != nil {
		i.logger.Warn("janus tells what is not understood", "stream", l.stream, "error", err)
		return
	}
	var gone []ident
	i.mu.Lock()
	i.addLocked(l, about.Publishers)
	for _, id := range []*ident{about.Unpublished, about.Leaving} {
		if id == nil {
			continue
		}
		if id.text == "ok" { // ourselves: kicked
			i.buryLocked(l)
			continue
		}
		delete(l.attendees, id.text)
		if l.publishers[id.text] != nil {
			delete(l.publishers, id.text)
			gone = append(gone, *id)
		}
	}
	if about.VideoRoom == "destroyed" {
		for _, p := range l.publishers {
			gone = append(gone, p.id)
		}
		if i.lookouts[l.room] == l {
			delete(i.lookouts, l.room)
		}
		i.buryLocked(l)
	}
	i.mu.Unlock()
	for _, id := range gone {
		i.facade.left(l.room, id)
	}
	i.news(false)
}

// buryLocked gives up a room's handle, for the next look to detach it and to join anew where the room is there.
func (i *inventory) buryLocked(l *lookout) {
	if l.handle != nil {
		i.dead = append(i.dead, l.handle)
		l.handle = nil
	}
	i.list = true
}

func (i *inventory) addLocked(l *lookout, publishers []publisher) {
	for _, p := range publishers {
		if p.Dummy || i.facade.current().orphan(p.Display) {
			continue
		}
		known := i.publisherLocked(l, p.ID)
		known.tracks = nil
		for _, s := range p.Streams {
			if !s.Disabled && (s.Type == "audio" || s.Type == "video") && s.Codec != "" {
				known.tracks = append(known.tracks, adapters.Track{Kind: s.Type, MIME: mimeOf(s.Type, s.Codec)})
			}
		}
	}
}

func (i *inventory) publisherLocked(l *lookout, id ident) *published {
	if p := l.publishers[id.text]; p != nil {
		return p
	}
	delete(l.attendees, id.text)
	i.orders++
	p := &published{id: id, session: id.text, since: time.Now(), order: i.orders}
	key := l.room.text + "\x00" + id.text
	if len(i.ids) > 4*maxRooms { // the ids of participants are random but for applications that choose them
		clear(i.ids)
	}
	if i.ids[key]++; i.ids[key] > 1 {
		p.session = fmt.Sprintf("%s~%d", id.text, i.ids[key])
	}
	l.publishers[id.text] = p
	return p
}

// take sets a room's participants by a full list, which knows of no publisher after the order, and kicks those that a run
// before this one has left.
func (i *inventory) take(ctx context.Context, control *handle, l *lookout, in []participant, order uint64) {
	var orphans, gone []ident
	i.mu.Lock()
	here, missed := map[string]bool{}, false
	clear(l.attendees)
	for _, p := range in {
		switch {
		case i.facade.current().orphan(p.Display):
			orphans = append(orphans, p.ID)
		case p.Publisher:
			here[p.ID.text] = true
			if l.handle == nil {
				i.publisherLocked(l, p.ID)
			}
			missed = missed || l.publishers[p.ID.text] == nil
		case !own(p.Display):
			l.attendees[p.ID.text] = true
		}
	}
	for text, p := range l.publishers {
		if !here[text] && p.order <= order {
			delete(l.publishers, text)
			gone = append(gone, p.id)
		}
	}
	if missed && l.missed { // twice: it is no event that is under way
		i.buryLocked(l)
		missed = false
	}
	l.missed = missed
	i.mu.Unlock()
	for _, id := range gone {
		i.facade.left(l.room, id)
	}
	for _, id := range orphans {
		if err := i.facade.kick(ctx, control, l.room, id); err != nil {
			i.logger.Warn("what was left behind stays until it times out", "stream", l.stream, "error", err)
		} else {
			i.logger.Info("took out what was left behind", "stream", l.stream)
		}
	}
}

// forget drops rooms that are no longer there.
func (i *inventory) forget(ctx context.Context, here map[ident]bool) {
	i.mu.Lock()
	handles := i.dead
	i.dead = nil
	for id, l := range i.lookouts {
		if here[id] {
			continue
		}
		delete(i.lookouts, id)
		if l.handle != nil {
			handles = append(handles, l.handle)
		}
	}
	i.mu.Unlock()
	for _, h := range handles {
		_ = h.detach(ctx) // a handle without a connection
	}
}

// countNative counts, by the administration's API, who has subscribed to the façade's publications without it.
func (i *inventory) countNative(ctx context.Context) error {
	if i.admin == nil {
		return nil
	}
	_, all := i.facade.counts()
	asked := 0
	i.mu.Lock()
	lookouts := slices.Collect(maps.Values(i.lookouts)) // in no order: where there are too many, each has its turn
	i.mu.Unlock()
	for _, l := range lookouts {
		i.mu.Lock()
		p := l.first(i.facade)
		i.mu.Unlock()
		if p == nil {
			continue
		}
		mine, _, _, h := i.facade.publication(p.id)
		if !mine || h == nil {
			continue
		}
		if asked++; asked > maxAsked {
			return nil
		}
		n, err := i.subscribers(ctx, h)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			i.logger.Warn("janus' administration does not count subscribers", "error", err)
			return nil
		}
		i.mu.Lock()
		l.native = max(0, n-all[l.stream])
		i.mu.Unlock()
	}
	return nil
}

// subscribers counts those of a publisher's track that has most.
func (i *inventory) subscribers(ctx context.Context, h *handle) (most int, err error) {
	const op = "ask the administration for a handle"
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, err := i.admin.call(ctx, op, params{"janus": "handle_info"}, h.session, h.id)
	if err != nil {
		return 0, err
	}
	var info struct {
		Specific struct {
			Streams []struct {
				Subscribers int `json:"subscribers"`
			} `json:"streams"`
		} `json:"plugin_specific"`
	}
	if err := json.Unmarshal(m.Info, &info); err != nil {
		return 0, &garbageError{op, "info of another form"}
	}
	for _, s := range info.Specific.Streams {
		most = max(most, s.Subscribers)
	}
	return most, nil
}

// first is the publisher that is the stream: of several the one that came first, as long as it publishes.
func (l *lookout) first(f *facade) (first *published) {
	for _, p := range l.publishers {
		if mine, media, _, _ := f.publication(p.id); mine && !media {
			continue // accepted, and nothing has come of it yet
		}
		if first == nil || p.order < first.order {
			first = p
		}
	}
	return first
}

// tell makes the state of what is known, after a look or between two.
func (i *inventory) tell(looked bool) {
	up, _ := i.facade.counts()
	i.mu.Lock()
	defer i.mu.Unlock()
	streams := []adapters.Stream{}
	for _, l := range i.lookouts {
		first := l.first(i.facade)
		s := adapters.Stream{ID: l.stream, Readers: up[l.stream] + max(l.native, len(l.attendees))}
		switch {
		case first != nil:
			s.Session, s.Since, s.Tracks = first.session, first.since, slices.Clone(first.tracks)
			_, _, s.Relayed, _ = i.facade.publication(first.id)
		case len(l.attendees) > 0 && len(l.publishers) == 0:
			s.Waiting = true
		default:
			continue
		}
		streams = append(streams, s)
	}
	slices.SortFunc(streams, func(a, b adapters.Stream) int { return strings.Compare(string(a.ID), string(b.ID)) })
	i.setLocked(state{streams: streams, ready: true, attempts: i.state.attempts})
	if looked && i.ended != i.begun {
		i.ended = i.begun
		i.changeLocked()
	}
}

// publisher is whom a play of a stream is to get: false where nobody publishes as far as is known.
func (i *inventory) publisher(room ident) (ident, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	l := i.lookouts[room]
	if l == nil {
		return ident{}, false
	}
	first := l.first(i.facade)
	if first == nil {
		return ident{}, false
	}
	return first.id, true
}

// find is the participant that a stream's session names.
func (i *inventory) find(s adapters.Stream) (room, id ident, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	l := i.lookouts[i.naming.room(s.ID)]
	if l == nil {
		return ident{}, ident{}, false
	}
	for _, p := range l.publishers {
		if p.session == s.Session {
			return l.room, p.id, true
		}
	}
	return ident{}, ident{}, false
}
